//! Owners that die, stand still or come back; calls whose time is over.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcache_testkit::arena::Arena;
use memcache_testkit::rng::Rng;
use memcache_transport::{ProtocolChoice, ReadOp, RegionDescriptor, TransportError};

use crate::owner::{Owner, fabric, get, place, put, soon};
use crate::proxy;

/// The deadline that calls on a dead owner have; they are answered long before.
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs an RDMA device"]
fn a_killed_owner_gives_an_error_within_the_deadline() {
    let mut owner = Owner::start(ProtocolChoice::HostRdma);
    let fabric = fabric(ProtocolChoice::HostRdma);
    let link = fabric.link(&owner.descriptor, soon()).unwrap();
    let object = put(&*link, 1, 500_000).unwrap();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (link, object) = (Arc::clone(&link), object.clone());
            thread::spawn(move || {
                for reads in 0.. {
                    match get(&*link, 1, object.len(), Instant::now() + DEADLINE) {
                        Ok(found) => assert!(found == object, "wrong bytes after {reads} reads"),
                        Err(error) => return (reads, error, Instant::now()),
                    }
                }
                unreachable!("reads go on until one fails")
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    let killed = Instant::now();
    owner.kill();
    for reader in readers {
        let (reads, error, noticed) = reader.join().unwrap();
        let after = noticed.saturating_duration_since(killed);
        println!("an owner was killed; after {reads} reads, {after:?} later: {error}");
        assert_eq!(error, TransportError::PeerGone, "after {reads} reads");
        assert!(after < DEADLINE, "noticed only after {after:?}");
    }
    assert!(!link.is_open());
    assert_eq!(fabric.link(&owner.descriptor, soon()).unwrap_err(), TransportError::PeerGone);
}

/// As when a whole host goes away: nobody closes the control connection, the packets are just not answered.
#[test]
#[ignore = "needs an RDMA device"]
fn an_owner_that_dies_without_a_word_gives_an_error_within_the_deadline() {
    let mut owner = Owner::start(ProtocolChoice::HostRdma);
    let address = proxy::start(owner.descriptor.rdma.as_deref().unwrap(), |_| false);
    let silent = RegionDescriptor { rdma: Some(address), ..owner.descriptor.clone() };
    let link = fabric(ProtocolChoice::HostRdma).link(&silent, soon()).unwrap();
    put(&*link, 1, 10_000).unwrap();
    owner.kill();
    let started = Instant::now();
    let error = get(&*link, 1, 10_000, started + DEADLINE).unwrap_err();
    println!("an owner died silently; {:?} later: {error}", started.elapsed());
    assert_eq!(error, TransportError::PeerGone);
    assert!(started.elapsed() < DEADLINE);
}

#[test]
#[ignore = "needs an RDMA device"]
fn an_owner_that_comes_back_is_found_under_its_new_descriptor() {
    let mut owner = Owner::start(ProtocolChoice::HostRdma);
    let fabric = fabric(ProtocolChoice::HostRdma);
    let link = fabric.link(&owner.descriptor, soon()).unwrap();
    put(&*link, 1, 10_000).unwrap();
    owner.kill();
    assert_eq!(get(&*link, 1, 10_000, soon()).unwrap_err(), TransportError::PeerGone);
    let again = Owner::start(ProtocolChoice::HostRdma);
    let link = fabric.link(&again.descriptor, soon()).unwrap();
    let object = put(&*link, 2, 10_000).unwrap();
    assert!(get(&*link, 2, 10_000, soon()).unwrap() == object);
    assert!(fabric.link(&owner.descriptor, soon()).is_err(), "the dead one was found");
}

/// One-sided means that: its processor takes no part.
#[test]
#[ignore = "needs an RDMA device"]
fn an_owner_that_stands_still_is_read_all_the_same() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let fabric = fabric(ProtocolChoice::HostRdma);
    let link = fabric.link(&owner.descriptor, soon()).unwrap();
    let object = put(&*link, 1, 100_000).unwrap();
    owner.signal("-STOP");
    assert!(get(&*link, 1, 100_000, soon()).unwrap() == object);
    // A new connection needs it, and the wait for that ends at the deadline.
    let other = crate::owner::fabric(ProtocolChoice::HostRdma);
    let short = Instant::now() + Duration::from_millis(500);
    assert_eq!(other.link(&owner.descriptor, short).unwrap_err(), TransportError::Timeout);
    assert!(Instant::now() >= short);
    owner.signal("-CONT");
    assert!(get(&*link, 1, 100_000, soon()).unwrap() == object);
}

#[test]
#[ignore = "needs an RDMA device"]
fn after_a_timeout_nothing_lands_in_memory_and_the_link_works() {
    const BYTES: usize = 4 << 20;
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let link = fabric(ProtocolChoice::HostRdma).link(&owner.descriptor, soon()).unwrap();
    let object = put(&*link, 1, BYTES).unwrap();
    let mut timeouts = 0;
    for round in 0..20 {
        let mut arena = Arena::cut(BYTES, 2, &mut Rng::new(round));
        let local = arena.list();
        let op = ReadOp { extent: place(0, BYTES), payload_bytes: BYTES as u64, local: &local };
        let deadline = Instant::now() + Duration::from_millis(1 + round);
        // SAFETY: the arena lives and is not touched during the call.
        let results = unsafe { link.read(&[op; 2], deadline) };
        for result in results {
            match result {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, TransportError::Timeout);
                    timeouts += 1;
                }
            }
        }
        let zeros = vec![0; BYTES];
        arena.fill(&zeros);
        thread::sleep(Duration::from_millis(100));
        assert!(arena.object() == zeros, "bytes landed after the call was over");
    }
    assert!(timeouts > 0, "4 MiB twice within milliseconds: no deadline was ever met late");
    assert!(get(&*link, 1, BYTES, soon()).unwrap() == object);
    assert!(link.is_open());
}
