//! What is wrong is said, and what was right before works again afterwards.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use memcache_testkit::arena::Arena;
use memcache_testkit::rng::Rng;
use memcache_transport::{ProtocolChoice, ReadOp, RegionDescriptor, TransportError};

use crate::owner::{Owner, fabric, get, place, put, soon};
use crate::proxy;

#[test]
#[ignore = "needs an RDMA device"]
fn a_wrong_key_is_refused_by_name_and_the_next_connection_works() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let honest = fabric(ProtocolChoice::HostRdma).link(&owner.descriptor, soon()).unwrap();
    let object = put(&*honest, 1, 10_000).unwrap();
    let address = proxy::start(owner.descriptor.rdma.as_deref().unwrap(), |connection| connection == 0);
    let misled = RegionDescriptor { rdma: Some(address), ..owner.descriptor.clone() };
    let fabric = fabric(ProtocolChoice::HostRdma);
    let link = fabric.link(&misled, soon()).unwrap();

    let mut arenas: Vec<Arena> = (0..3).map(|seed| Arena::cut(10_000, 3, &mut Rng::new(seed))).collect();
    let before: Vec<Vec<u8>> = arenas.iter().map(Arena::object).collect();
    let lists: Vec<_> = arenas.iter_mut().map(Arena::list).collect();
    let ops: Vec<ReadOp<'_>> =
        lists.iter().map(|local| ReadOp { extent: place(0, 10_000), payload_bytes: 10_000, local }).collect();
    // SAFETY: the arenas live and are not touched during the call.
    let results = unsafe { link.read(&ops, soon()) };
    match &results[..] {
        [Err(TransportError::Refused { reason }), Err(second), Err(third)] => {
            assert!(reason.contains("key") && reason.contains("access error"), "{reason}");
            assert!(second.is_retryable() && third.is_retryable(), "{second}; {third}");
        }
        other => panic!("{other:?}"),
    }
    assert!(arenas.iter().map(Arena::object).eq(before), "a refused read changed its target");
    // The same link, over a new connection with the right key.
    assert!(get(&*link, 1, 10_000, soon()).unwrap() == object);
    assert!(link.is_open());
}

#[test]
#[ignore = "needs an RDMA device"]
fn other_memory_than_was_announced_is_refused() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let refused = |descriptor: RegionDescriptor| {
        let error = fabric(ProtocolChoice::HostRdma).link(&descriptor, soon()).unwrap_err();
        assert!(matches!(error, TransportError::Refused { .. }), "{error}");
        error.to_string()
    };
    let token = owner.descriptor.token ^ 1;
    refused(RegionDescriptor { token, ..owner.descriptor.clone() });
    let region_bytes = owner.descriptor.region_bytes * 2;
    let error = refused(RegionDescriptor { region_bytes, ..owner.descriptor.clone() });
    assert!(error.contains(&region_bytes.to_string()), "{error}");
}

/// Whatever comes in at the door, nobody is told a key without the token, and the door stays open for others.
#[test]
#[ignore = "needs an RDMA device"]
fn noise_at_the_door_gets_no_answer() {
    let owner = Owner::start(ProtocolChoice::HostRdma);
    let address = owner.descriptor.rdma.as_deref().unwrap();
    let mut rng = Rng::new(3);
    let mut silent = Vec::new();
    for round in 0..60usize {
        let mut stream = TcpStream::connect(address).unwrap();
        let noise: Vec<u8> = (0..rng.index(200)).map(|_| rng.next().to_le_bytes()[0]).collect();
        // The door may hang up in the middle of it.
        let _ = stream.write_all(&noise);
        if round.is_multiple_of(3) {
            silent.push(stream);
            continue;
        }
        if noise.len() >= 64 {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty(), "noise was answered with {answer:?}");
        }
    }
    let link = fabric(ProtocolChoice::HostRdma).link(&owner.descriptor, soon()).unwrap();
    let object = put(&*link, 9, 1000).unwrap();
    assert!(get(&*link, 9, 1000, soon()).unwrap() == object);
}
