//! Time as the core knows it: a number that somebody else reads from a clock.

/// Milliseconds since an origin that the shell chose. Never a wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(u64);

impl Millis {
    /// This many milliseconds after the origin.
    pub const fn new(ms: u64) -> Self {
        Self(ms)
    }

    /// A time that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Milliseconds since the origin.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The time `ms` milliseconds later.
    #[must_use]
    pub const fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`; 0 if that lies in the future.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
