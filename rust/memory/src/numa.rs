//! Memory near a node of the machine: a page belongs to the NUMA node whose processor touches it first.

use std::fs;
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::MemoryError;

/// Runs `act` on a thread that runs on the processors of this NUMA node, as all threads that it starts do. Pages that
/// `act` touches first lie there, unless the node is full.
///
/// # Errors
/// [`MemoryError::Node`] if there is no such node, or this process may not run there.
pub fn on_node<T: Send>(node: u32, act: impl FnOnce() -> T + Send) -> Result<T, MemoryError> {
    let failed = |why: String| MemoryError::Node { node, why };
    let path = format!("/sys/devices/system/node/node{node}/cpulist");
    let list = fs::read_to_string(&path).map_err(|error| failed(format!("{path}: {error}")))?;
    let there = processors(&list).ok_or_else(|| failed(format!("{path} holds {list:?}")))?;
    let allowed = sched_getaffinity(None).map_err(|error| failed(format!("sched_getaffinity: {error}")))?;
    let mut wanted = CpuSet::new();
    for cpu in there.into_iter().filter(|cpu| *cpu < CpuSet::MAX_CPU && allowed.is_set(*cpu)) {
        wanted.set(cpu);
    }
    if wanted.count() == 0 {
        return Err(failed(format!("this process may not run on its processors ({})", list.trim())));
    }
    // A thread of its own: the caller goes on running wherever it likes.
    let run = || {
        sched_setaffinity(None, &wanted).map_err(|error| failed(format!("sched_setaffinity: {error}")))?;
        Ok(act())
    };
    let there = thread::scope(|scope| {
        let thread = thread::Builder::new().name("memcache-touch".to_owned()).spawn_scoped(scope, run)?;
        Ok::<_, std::io::Error>(thread.join())
    });
    match there.map_err(|error| failed(format!("no thread: {error}")))? {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The numbers of a list such as `0-3,8`; none in an empty one.
fn processors(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        if to < from || to > CpuSet::MAX_CPU * 64 {
            return None;
        }
        numbers.extend(from..=to);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_understood() {
        assert_eq!(processors("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(processors("\n"), Some(Vec::new()), "a node of memory alone");
        for broken in ["x", "1-", "3-1", "0-99999999999"] {
            assert_eq!(processors(broken), None, "{broken}");
        }
    }

    #[test]
    fn what_runs_on_a_node_stays_on_its_processors() {
        let Some(list) =
            fs::read_to_string("/sys/devices/system/node/node0/cpulist").ok().filter(|l| !l.trim().is_empty())
        else {
            return; // a kernel without nodes
        };
        let before = sched_getaffinity(None).unwrap();
        let there = processors(&list).unwrap();
        let is_there =
            |set: &CpuSet| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).all(|cpu| there.contains(&cpu));
        // Threads that are started there run there too: the ones that touch memory.
        let seen = on_node(0, || {
            let own = sched_getaffinity(None).unwrap();
            [own, thread::spawn(|| sched_getaffinity(None).unwrap()).join().unwrap()]
        });
        match seen {
            Ok(seen) => assert!(seen.iter().all(is_there)),
            Err(error) => assert!(!is_there(&before) && error.to_string().contains("may not run"), "{error}"),
        }
        assert_eq!(sched_getaffinity(None).unwrap(), before, "the caller was moved");
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let error = on_node(4_000_000, || ()).unwrap_err().to_string();
        assert!(error.contains("4000000"), "{error}");
    }
}
