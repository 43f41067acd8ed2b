//! Readers against a writer of the same extent, for every way of copying: a reader that finds the generation it was
//! told finds that generation's bytes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use memcache_memory::{Checksum, CopyMode, Kernel, Segment, SegmentOptions, Trailer, gather_with, scatter_with};
use memcache_types::{Generation, KeyDigest, ScatterList, extent_bytes};

const BYTES: usize = 700_000;
const ROUNDS: u64 = 1000;

fn trailer(generation: u64) -> Trailer {
    Trailer {
        digest: KeyDigest::of(b"key"),
        generation: Generation::new(generation),
        payload_bytes: BYTES as u64,
        checksum: Checksum::None,
    }
}

fn byte_of(generation: u64) -> u8 {
    generation.to_le_bytes()[0]
}

/// Writes one generation after the other; tells readers of each as soon as it is published.
fn write_all(segment: &Segment, mode: CopyMode, published: &AtomicU64) {
    let extent = segment.region().sub(0, extent_bytes(BYTES as u64)).unwrap();
    let mut source = vec![0u8; BYTES];
    for generation in 1..=ROUNDS {
        source.fill(byte_of(generation));
        let local = ScatterList::single(source.as_ptr().expose_provenance() as u64, BYTES as u64);
        extent.retract_trailer();
        // SAFETY: the source lives and is not written meanwhile.
        unsafe { gather_with(mode, &local, extent) };
        extent.publish_trailer(&trailer(generation).encode());
        published.store(generation, Ordering::Release);
        if generation.is_multiple_of(4) {
            // Lets readers finish between two writings now and then, however few cores there are.
            thread::yield_now();
        }
    }
}

/// Reads until told to stop; returns how many reads found what they were told.
fn read_all(segment: &Segment, mode: CopyMode, published: &AtomicU64, is_over: &AtomicBool) -> u64 {
    let extent = segment.region().sub(0, extent_bytes(BYTES as u64)).unwrap();
    let mut accepted = 0;
    loop {
        // The last look comes after the last writing, so it must succeed.
        let is_last = is_over.load(Ordering::Acquire);
        let generation = published.load(Ordering::Acquire);
        let mut target = vec![0u8; BYTES];
        let local = ScatterList::single(target.as_mut_ptr().expose_provenance() as u64, BYTES as u64);
        // SAFETY: the target lives and is touched by nobody else.
        unsafe { scatter_with(mode, extent, &local) };
        let found = Trailer::decode(&extent.load_trailer());
        if generation > 0 && found == Some(trailer(generation)) {
            assert!(target.iter().all(|byte| *byte == byte_of(generation)), "{mode:?}: mixed bytes under {generation}");
            accepted += 1;
        } else {
            assert!(!is_last, "{mode:?}: the last generation is not there");
        }
        if is_last {
            return accepted;
        }
    }
}

#[test]
fn no_reader_takes_mixed_bytes_for_an_object() {
    let streaming = Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).map(CopyMode::Streaming);
    for mode in [CopyMode::Plain].into_iter().chain(streaming) {
        let segment = Segment::create(1 << 20, &SegmentOptions::default()).unwrap();
        let (published, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let accepted: u64 = thread::scope(|scope| {
            let readers: Vec<_> =
                (0..2).map(|_| scope.spawn(|| read_all(&segment, mode, &published, &is_over))).collect();
            let written = scope.spawn(|| write_all(&segment, mode, &published)).join();
            is_over.store(true, Ordering::Release);
            written.unwrap();
            readers.into_iter().map(|reader| reader.join().unwrap()).sum()
        });
        assert!(accepted >= 2, "{mode:?}: {accepted} reads met a complete object");
    }
}
