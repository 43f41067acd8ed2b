//! The objects that are put and got: the number of one says what it holds.

use std::sync::Arc;
use std::time::Instant;

use memcache_client::{Buffers, PutOptions, Store};
use memcache_testkit::rng::{mix, pattern};
use memcache_types::{GetStatus, KeyBatch, PutStatus, ScatterList};

/// An object: its number is its key, and says what its bytes are.
pub(crate) fn value(number: u64) -> Vec<u8> {
    let bytes = match mix(number) % 8 {
        0 => 2_100_000 + mix(number + 1) % 500_000,
        1 => 1 + mix(number) % 5,
        _ => 1 + mix(number + 1) % 150_000,
    };
    pattern(number, usize::try_from(bytes).unwrap())
}

pub(crate) fn keys(numbers: &[u64]) -> KeyBatch {
    KeyBatch::from_keys(numbers.iter().map(|number| number.to_le_bytes())).unwrap()
}

pub(crate) fn values(numbers: &[u64]) -> Buffers {
    Buffers::from_owned(numbers.iter().map(|number| value(*number)).collect())
}

pub(crate) fn put(store: &Store, numbers: &[u64], options: &PutOptions, deadline: Instant) -> Vec<PutStatus> {
    store.put(&keys(numbers), &values(numbers), options, deadline).unwrap()
}

pub(crate) fn get(store: &Store, numbers: &[u64], deadline: Instant) -> Vec<(GetStatus, Vec<u8>)> {
    let mut targets: Vec<Vec<u8>> = numbers.iter().map(|number| vec![0; value(*number).len()]).collect();
    let lists = targets
        .iter_mut()
        .map(|target| ScatterList::single(target.as_mut_ptr().expose_provenance() as u64, target.len() as u64))
        .collect();
    // SAFETY: the vectors outlive the call and nothing else touches them meanwhile.
    let buffers = unsafe { Buffers::new(lists, Arc::new(())) };
    let statuses = store.get(&keys(numbers), &buffers, deadline).unwrap();
    statuses.into_iter().zip(targets).collect()
}
