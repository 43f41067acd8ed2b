#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::{HashMap, VecDeque};

use super::*;

#[test]
fn a_replay_counts_leading_blocks_by_their_tokens() {
    let text = r#"{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]}
        {"timestamp": 5, "input_length": 1030, "output_length": 5, "hash_ids": [1, 2, 4]}

        {"timestamp": 5, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]}
        {"timestamp": 9, "input_length": 600, "output_length": 5, "hash_ids": [9, 3]}"#;
    let trace = Trace::parse(text).unwrap();
    for policy in ReplayPolicy::ALL {
        let row = replay(&trace, policy, CAPACITY_BLOCKS_MIN);
        assert_eq!((row.requests, row.blocks, row.hit_blocks), (4, 11, 5), "{policy:?}");
        assert_eq!((row.tokens, row.hit_tokens), (3830, 1024 + 1100), "{policy:?}");
        assert_eq!(ReplayPolicy::named(policy.as_str()), Some(policy));
    }
}

#[test]
fn a_bad_trace_is_refused_by_line_and_value() {
    let wrong = |text: &str| Trace::parse(text).unwrap_err().to_string();
    assert!(wrong("{}").starts_with("line 1: not a request"));
    let few = wrong("\n{\"timestamp\": 1, \"input_length\": 513, \"hash_ids\": [1]}");
    assert_eq!(few, "line 2: 513 tokens take 2 blocks of 512, found 1 hash_ids");
    let line = |at: u64| format!("{{\"timestamp\": {at}, \"input_length\": 1, \"hash_ids\": [1]}}\n");
    assert_eq!(wrong(&(line(7) + &line(6))), "line 2: timestamp 6 is before that of the line before, 7");
}

#[test]
fn a_workload_is_the_same_for_the_same_seed() {
    for name in WORKLOADS.into_iter().chain(HELD_OUT).chain(VARIED) {
        let trace = workload(name, 1).unwrap();
        assert!(trace == workload(name, 1).unwrap() && trace != workload(name, 2).unwrap(), "{name}");
        assert!(trace.requests.is_sorted_by_key(|request| request.at_ms), "{name}");
        assert!(trace.distinct_blocks() > 2000, "{name}");
    }
    assert!(workload("none", 1).is_none());
}

#[test]
fn a_replay_is_the_same_every_time() {
    let trace = workload("mixed", 3).unwrap();
    for policy in ReplayPolicy::ALL {
        assert_eq!(replay(&trace, policy, 3000), replay(&trace, policy, 3000), "{policy:?}");
    }
}

/// Rates of lru, s3fifo, adaptive and clairvoyant, in parts of ten thousand.
fn rates(name: &str, seed: u64, capacity: u64) -> [f64; 4] {
    let trace = workload(name, seed).unwrap();
    ReplayPolicy::ALL.map(|policy| (replay(&trace, policy, capacity).hit_rate() * 1e4).round())
}

#[test]
fn the_default_policy_keeps_up_with_the_better_of_two() {
    for (name, capacity) in [("rag", 1500), ("kvscan", 1000), ("scan", 2500), ("pareto", 2000), ("poisson", 2720)] {
        let [lru, s3fifo, adaptive, clairvoyant] = rates(name, 1, capacity);
        assert!(adaptive >= lru.max(s3fifo) - 50.0, "{name}: {lru} {s3fifo} {adaptive}");
        assert!(clairvoyant >= adaptive, "{name}: {adaptive} {clairvoyant}");
    }
}

/// A shape of which S3-FIFO serves more than both other orders do, by some points.
#[test]
fn the_default_policy_follows_what_s3fifo_does_where_that_serves_most() {
    let [lru, s3fifo, adaptive, _] = rates("any-scan", 8, 7592);
    assert!(s3fifo > lru + 400.0, "{lru} {s3fifo}");
    assert!(adaptive > s3fifo - 50.0, "{s3fifo} {adaptive}");
}

/// Blocks in the textbook forms: all in one queue, or a small one of a tenth, a main one and a memory of what left the small.
#[derive(Default)]
struct Textbook {
    s3fifo: bool,
    capacity: usize,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    /// Uses since they came, by block that is there.
    uses: HashMap<u64, u8>,
    ghosts: VecDeque<u64>,
}

impl Textbook {
    fn make_room(&mut self) {
        while self.uses.len() >= self.capacity {
            if !self.s3fifo {
                let oldest = self.main.pop_front().unwrap();
                self.uses.remove(&oldest);
            } else if self.small.len() >= self.capacity / 10 || self.main.is_empty() {
                let oldest = self.small.pop_front().unwrap();
                if self.uses[&oldest] > 1 {
                    self.uses.insert(oldest, 0);
                    self.main.push_back(oldest);
                } else {
                    self.uses.remove(&oldest);
                    self.ghosts.push_back(oldest);
                    self.ghosts.drain(..self.ghosts.len().saturating_sub(self.capacity));
                }
            } else {
                let oldest = self.main.pop_front().unwrap();
                match self.uses[&oldest] {
                    0 => drop(self.uses.remove(&oldest)),
                    left => {
                        self.uses.insert(oldest, left - 1);
                        self.main.push_back(oldest);
                    }
                }
            }
        }
    }

    fn ask(&mut self, block: u64) {
        if let Some(uses) = self.uses.get_mut(&block) {
            *uses = (*uses + 1).min(3);
            if !self.s3fifo {
                self.main.retain(|other| *other != block);
                self.main.push_back(block);
            }
            return;
        }
        self.make_room();
        self.uses.insert(block, 0);
        if self.s3fifo && !self.ghosts.contains(&block) { &mut self.small } else { &mut self.main }.push_back(block);
    }
}

#[test]
fn lru_and_s3fifo_serve_what_their_textbook_forms_do() {
    let trace = workload("kvscan", 4).unwrap();
    for (policy, s3fifo) in [(EvictionPolicy::Lru, false), (EvictionPolicy::S3Fifo, true)] {
        let mut book = Textbook { s3fifo, capacity: 500, ..Textbook::default() };
        let (mut hits, mut all) = (0.0, 0.0);
        for request in &trace.requests {
            let there = request.blocks.iter().take_while(|block| book.uses.contains_key(block)).count();
            hits += f64::from(u32::try_from(there).unwrap());
            all += f64::from(u32::try_from(request.blocks.len()).unwrap());
            request.blocks.iter().rev().for_each(|block| book.ask(*block));
        }
        let found = replay(&trace, ReplayPolicy::Real(policy), 500).hit_rate();
        assert!((found - hits / all).abs() < 0.005, "{policy:?}: {found}, textbook {}", hits / all);
    }
}
