//! Many at once: readers against writers of the same memory, and callers beside each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::Trailer;
use memcache_transport::Link;
use memcache_types::Extent;

use super::{extent, read, soon, trailer, write};
use crate::arena::Arena;
use crate::rng::{Rng, pattern};

const SLOTS: usize = 2;
const ROUNDS: u64 = 400;
/// Writings between two waits for a reader.
const PAUSE: u64 = 40;
const CALLERS: u64 = 4;
const CALLS: u64 = 40;

/// Memory that one writer fills again and again, and the generation that is known to be complete.
struct Slot {
    place: Extent,
    bytes: usize,
    sealed: AtomicU64,
    /// The last generation that a reader has found complete.
    seen: AtomicU64,
}

/// A writer per slot overwrites its object without pause while readers read: a reader that finds the generation
/// it was told finds exactly that generation's bytes.
pub(super) fn mixed_bytes(writing: &dyn Link, reading: &dyn Link) {
    let lengths: [usize; SLOTS] = [4000, 1_000_000];
    let slots: Vec<Slot> = lengths
        .into_iter()
        .zip(0u64..)
        .map(|(bytes, number)| Slot {
            place: extent(number << 20, bytes),
            bytes,
            sealed: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        })
        .collect();
    let writers_left = AtomicU64::new(SLOTS as u64);
    thread::scope(|scope| {
        for slot in &slots {
            let writers_left = &writers_left;
            scope.spawn(move || {
                let _done = CountDown(writers_left);
                overwrite(writing, slot);
            });
        }
        for seed in 0..2 {
            let (slots, writers_left) = (&slots, &writers_left);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                while writers_left.load(Ordering::Acquire) > 0 {
                    let slot = &slots[rng.index(SLOTS)];
                    check(reading, slot, &mut rng);
                }
            });
        }
    });
    for slot in &slots {
        assert!(check(reading, slot, &mut Rng::new(9)), "the last object written is not there");
    }
}

struct CountDown<'a>(&'a AtomicU64);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn overwrite(link: &dyn Link, slot: &Slot) {
    let mut from = Arena::cut(slot.bytes, 11, &mut Rng::new(slot.bytes as u64));
    for generation in 1..=ROUNDS {
        from.fill(&content(generation, slot.bytes));
        write(link, slot.place, &mut from, &trailer(generation, slot.bytes)).expect("write");
        slot.sealed.store(generation, Ordering::Release);
        if generation.is_multiple_of(PAUSE) {
            // However few cores there are, readers meet complete objects as well as changing ones.
            let deadline = soon();
            while slot.seen.load(Ordering::Acquire) < generation {
                assert!(Instant::now() < deadline, "no reader finds an object that nobody changes");
                thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

/// The bytes of a generation: quick to make, so that writers mostly write, and unlike those of its neighbours.
fn content(generation: u64, bytes: usize) -> Vec<u8> {
    vec![generation.to_le_bytes()[0]; bytes]
}

/// Reads once; true if the object was the one announced. Panics if it claims to be and is not.
fn check(link: &dyn Link, slot: &Slot, rng: &mut Rng) -> bool {
    let generation = slot.sealed.load(Ordering::Acquire);
    let mut to = Arena::cut(slot.bytes, 7, rng);
    let found = read(link, slot.place, &mut to).expect("read");
    let is_it = generation > 0 && Trailer::decode(&found) == Some(trailer(generation, slot.bytes));
    if is_it {
        assert!(to.object() == content(generation, slot.bytes), "mixed bytes under generation {generation}");
        slot.seen.fetch_max(generation, Ordering::AcqRel);
    }
    is_it
}

/// Several threads use one link at once, each on its own extent.
pub(super) fn many_callers(link: &dyn Link) {
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let failed = &failed;
            scope.spawn(move || {
                let mut rng = Rng::new(caller);
                for call in 0..CALLS {
                    let bytes = rng.index(700_000);
                    let (place, end) = (extent(caller << 20, bytes), trailer(call + 1, bytes));
                    let object = pattern(caller << 32 | call, bytes);
                    let mut from = Arena::cut(bytes, 8, &mut rng);
                    from.fill(&object);
                    write(link, place, &mut from, &end).expect("write");
                    let mut to = Arena::cut(bytes, 8, &mut rng);
                    let found = read(link, place, &mut to).expect("read");
                    if Trailer::decode(&found) != Some(end) || to.object() != object {
                        failed.store(true, Ordering::Relaxed);
                    }
                    to.check_guards();
                }
            });
        }
    });
    assert!(!failed.load(Ordering::Relaxed), "callers of one link got each other's bytes");
}
