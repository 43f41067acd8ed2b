//! The cache that knows the future.

use std::collections::{BTreeSet, HashMap};

use super::{Cache, Request, Trace};

/// Evicts the block whose next use is farthest, of a request's blocks the last first. It takes in every block, so it is a
/// line to compare with rather than the best possible.
pub(super) struct Clairvoyant {
    capacity_blocks: usize,
    /// Requests that use each block, the next one last.
    uses: HashMap<u64, Vec<usize>>,
    served: usize,
    held: HashMap<u64, (usize, usize)>,
    /// By next use, position in its request, block.
    order: BTreeSet<(usize, usize, u64)>,
    evicted: u64,
}

impl Clairvoyant {
    pub(super) fn new(trace: &Trace, capacity_blocks: u64) -> Self {
        let mut uses: HashMap<u64, Vec<usize>> = HashMap::new();
        for (number, request) in trace.requests.iter().enumerate().rev() {
            for block in &request.blocks {
                uses.entry(*block).or_default().push(number);
            }
        }
        Self {
            capacity_blocks: usize::try_from(capacity_blocks).unwrap_or(usize::MAX),
            uses,
            served: 0,
            held: HashMap::new(),
            order: BTreeSet::new(),
            evicted: 0,
        }
    }

    fn next_use(&mut self, block: u64) -> usize {
        let uses = self.uses.entry(block).or_default();
        while uses.last().is_some_and(|next| *next <= self.served) {
            uses.pop();
        }
        uses.last().copied().unwrap_or(usize::MAX)
    }
}

impl Cache for Clairvoyant {
    fn request(&mut self, request: &Request) -> usize {
        let hits = request.blocks.iter().take_while(|block| self.held.contains_key(block)).count();
        for (position, block) in request.blocks.iter().enumerate() {
            let next = self.next_use(*block);
            if let Some((next, position)) = self.held.insert(*block, (next, position)) {
                self.order.remove(&(next, position, *block));
            }
            self.order.insert((next, position, *block));
        }
        while self.held.len() > self.capacity_blocks
            && let Some((_, _, block)) = self.order.pop_last()
        {
            self.held.remove(&block);
            self.evicted += 1;
        }
        self.served += 1;
        hits
    }

    fn evicted(&mut self) -> u64 {
        self.evicted
    }
}
