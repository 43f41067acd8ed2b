//! Local memory as a caller would have it: pieces of any length at any alignment, in any order.

use memcache_types::{Piece, ScatterList};

use crate::rng::Rng;

const GUARD: u8 = 0xa5;

/// A buffer, some pieces of it that make up one object, and guard bytes around them.
#[derive(Debug)]
pub struct Arena {
    bytes: Vec<u8>,
    /// Start and length of each piece within `bytes`, in the order of the object's bytes.
    pieces: Vec<(usize, usize)>,
}

impl Arena {
    /// Room for pieces of these lengths, laid out in random order with gaps of 1 to 70 bytes.
    pub fn new(lengths: &[usize], rng: &mut Rng) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        rng.shuffle(&mut order);
        let mut pieces = vec![(0, 0); lengths.len()];
        let mut end = rng.index(70);
        for index in order {
            let start = end + 1 + rng.index(70);
            pieces[index] = (start, lengths[index]);
            end = start + lengths[index];
        }
        Self { bytes: vec![GUARD; end + 70], pieces }
    }

    /// Room for `total` bytes cut into at most `pieces` pieces at random places.
    pub fn cut(total: usize, pieces: usize, rng: &mut Rng) -> Self {
        let mut cuts: Vec<usize> = (1..pieces).map(|_| rng.index(total + 1)).collect();
        cuts.extend([0, total]);
        cuts.sort_unstable();
        let lengths: Vec<usize> = cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Self::new(&lengths, rng)
    }

    /// The pieces as a transport gets them. Valid while the arena is neither moved out of nor dropped.
    pub fn list(&mut self) -> ScatterList {
        let base = self.bytes.as_mut_ptr().expose_provenance() as u64;
        self.pieces.iter().map(|(start, bytes)| Piece { address: base + *start as u64, bytes: *bytes as u64 }).collect()
    }

    /// Fills the pieces, in order, with `object`.
    pub fn fill(&mut self, object: &[u8]) {
        let mut rest = object;
        for (start, bytes) in &self.pieces {
            let (part, after) = rest.split_at(*bytes);
            self.bytes[*start..start + bytes].copy_from_slice(part);
            rest = after;
        }
        assert!(rest.is_empty(), "an object of another length");
    }

    /// The bytes of the pieces, in order.
    pub fn object(&self) -> Vec<u8> {
        let parts: Vec<&[u8]> = self.pieces.iter().map(|(start, bytes)| &self.bytes[*start..start + bytes]).collect();
        parts.concat()
    }

    /// Panics if a byte outside the pieces has changed.
    pub fn check_guards(&self) {
        let mut inside = self.pieces.clone();
        inside.sort_unstable();
        let mut at = 0;
        for (start, bytes) in inside {
            assert!(self.bytes[at..start].iter().all(|byte| *byte == GUARD), "bytes before {start} were overwritten");
            at = start + bytes;
        }
        assert!(self.bytes[at..].iter().all(|byte| *byte == GUARD), "bytes after the last piece were overwritten");
    }
}
