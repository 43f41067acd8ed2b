//! When the checksum of a payload is made, and when it is compared.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Whether objects carry a checksum of their payload (CRC-32C), and who compares it. Generation, length and key are
/// compared in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Made by every put, compared by every get.
    Always,
    /// Made by every put, compared by one get in so many, at random; after a mismatch by every get, until
    /// [`SOUND_IN_A_ROW`] objects in a row were sound.
    Sampled {
        /// At least 1.
        one_in: u32,
    },
    /// Neither made nor compared.
    Off,
}

/// After a mismatch a sampling store compares every object until this many in a row were sound.
pub const SOUND_IN_A_ROW: u32 = 1024;

/// The policy of a store and what it remembers.
#[derive(Debug)]
pub(crate) struct Sums {
    policy: Checksums,
    reads: AtomicU64,
    /// Objects still to be compared since the last mismatch.
    suspicious: AtomicU32,
}

impl Sums {
    pub(crate) fn new(policy: Checksums) -> Self {
        Self { policy, reads: AtomicU64::new(0), suspicious: AtomicU32::new(0) }
    }

    /// What was asked for.
    pub(crate) fn policy(&self) -> Checksums {
        self.policy
    }

    /// Whether a put makes the checksum of its next object.
    pub(crate) fn of_put(&self) -> bool {
        self.policy != Checksums::Off
    }

    /// Whether a get compares the checksum of its next object.
    pub(crate) fn of_get(&self) -> bool {
        match self.policy {
            Checksums::Always => true,
            Checksums::Off => false,
            Checksums::Sampled { one_in } => {
                let read = self.reads.fetch_add(1, Ordering::Relaxed);
                // A plain count would meet the same block of every equally long batch again and again.
                scatter(read).is_multiple_of(u64::from(one_in.max(1))) || self.suspicious.load(Ordering::Relaxed) > 0
            }
        }
    }

    /// Takes note of a comparison.
    pub(crate) fn compared(&self, sound: bool) {
        if !matches!(self.policy, Checksums::Sampled { .. }) {
            return;
        }
        if sound {
            let fewer = |left: u32| left.checked_sub(1);
            // Nothing to take away: no mismatch was seen lately.
            let _ = self.suspicious.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        } else {
            self.suspicious.store(SOUND_IN_A_ROW, Ordering::Relaxed);
        }
    }
}

/// Spreads consecutive numbers over all of `u64` (the finishing steps of SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_meets_every_place_of_a_batch_about_as_often_as_it_says() {
        let sums = Sums::new(Checksums::Sampled { one_in: 16 });
        let mut met = [0; 32];
        for _ in 0..1000 {
            for place in &mut met {
                *place += u32::from(sums.of_get());
            }
        }
        let total: u32 = met.iter().sum();
        assert!((1700..2300).contains(&total), "{total} of 32000, wanted about 2000");
        assert!(met.iter().all(|count| (20..150).contains(count)), "some places are met too rarely: {met:?}");
        assert!(sums.of_put());
    }

    #[test]
    fn a_mismatch_makes_a_store_look_at_everything_for_a_while() {
        let sums = Sums::new(Checksums::Sampled { one_in: u32::MAX });
        assert!((0..1000).filter(|_| sums.of_get()).count() <= 1);
        sums.compared(false);
        for _ in 0..SOUND_IN_A_ROW {
            assert!(sums.of_get());
            sums.compared(true);
        }
        assert!((0..1000).filter(|_| sums.of_get()).count() <= 1);
    }

    #[test]
    fn always_and_off_are_what_they_say() {
        let (always, off) = (Sums::new(Checksums::Always), Sums::new(Checksums::Off));
        assert!((0..100).all(|_| always.of_get() && always.of_put() && !off.of_get() && !off.of_put()));
    }
}
