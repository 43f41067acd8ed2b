//! Numbers that look random and come out the same for the same seed.

/// A `SplitMix64` generator.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator that plays the sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `bound`, which is at least 1.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A position in something of `len` elements, at least one.
    #[allow(clippy::cast_possible_truncation, reason = "below a length of this process")]
    pub const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }
}

/// Spreads the bits of a number over all 64.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The bytes that stand for `seed` in tests: every word of them depends on the seed and on its place.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let words = (0u64..).map(|word| mix(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ word).to_le_bytes());
    words.flatten().take(bytes).collect()
}
