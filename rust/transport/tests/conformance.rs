//! The suite of `memcache-testkit` over every road within one process, and over a link with a flaw.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Segment, SegmentOptions};
use memcache_testkit::in_parts::InParts;
use memcache_testkit::transport_suite;
use memcache_transport::{
    Fabric, FabricOptions, Fault, FaultLink, Link, Protocol, ProtocolChoice, RegionServer, ServerOptions,
};

fn serve(protocols: ProtocolChoice) -> RegionServer {
    let options = SegmentOptions { huge_pages: false, prefault: false };
    let segment = Arc::new(Segment::create(transport_suite::REGION_BYTES_MIN, &options).unwrap());
    RegionServer::start(segment, &ServerOptions { protocols, ..ServerOptions::default() }).unwrap()
}

fn link(fabric: &Fabric, server: &RegionServer) -> Arc<dyn Link> {
    fabric.link(server.descriptor(), Instant::now() + Duration::from_secs(20)).unwrap()
}

fn run_over(choice: ProtocolChoice, connections_per_peer: usize, expected: Protocol) {
    let server = serve(choice);
    let fabric = Fabric::new(FabricOptions { choice, connections_per_peer });
    assert_eq!(link(&fabric, &server).protocol(), expected);
    transport_suite::run(&|| link(&fabric, &server));
}

#[test]
fn local() {
    let server = serve(ProtocolChoice::Auto);
    let fabric = Fabric::new(FabricOptions::default());
    fabric.register_local(&server);
    assert_eq!(link(&fabric, &server).protocol(), Protocol::Local);
    transport_suite::run(&|| link(&fabric, &server));
}

#[test]
fn host_shm() {
    run_over(ProtocolChoice::HostShm, 1, Protocol::HostShm);
}

/// Every object in parts, large ones by two threads: the same promises, the order of payload and trailer included.
#[test]
fn host_shm_in_parts() {
    let server = serve(ProtocolChoice::HostShm);
    let fabric = Fabric::new(FabricOptions { choice: ProtocolChoice::HostShm, connections_per_peer: 1 });
    transport_suite::run(&|| Arc::new(InParts::new(link(&fabric, &server))));
}

#[test]
fn host_tcp_on_one_connection() {
    run_over(ProtocolChoice::HostTcp, 1, Protocol::HostTcp);
}

#[test]
fn host_tcp_on_three_connections() {
    run_over(ProtocolChoice::HostTcp, 3, Protocol::HostTcp);
}

#[test]
fn a_flawed_link_does_not_pass() {
    let server = serve(ProtocolChoice::Auto);
    let fabric = Fabric::new(FabricOptions::default());
    fabric.register_local(&server);
    for flaw in [Fault::Corrupt { at: 77 }, Fault::Cut { after: 10 }, Fault::Drop] {
        let script = std::iter::repeat_n(Fault::Pass, 9).chain([flaw]);
        let flawed: Arc<dyn Link> = Arc::new(FaultLink::new(link(&fabric, &server), script));
        let passed = catch_unwind(AssertUnwindSafe(|| transport_suite::run(&|| Arc::clone(&flawed))));
        assert!(passed.is_err(), "the suite did not notice {flaw:?}");
    }
}
