//! Which link a fabric gives, how long it keeps it, and what a server and its links do across a fork.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::{Segment, SegmentOptions};
use memcache_transport::{
    Fabric, FabricOptions, Link, Protocol, ProtocolChoice, RegionServer, ServerOptions, TransportError,
};

const REGION: u64 = 1 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn segment() -> Arc<Segment> {
    Arc::new(Segment::create(REGION, &SegmentOptions { huge_pages: false, prefault: false }).unwrap())
}

fn serve(options: &ServerOptions) -> RegionServer {
    RegionServer::start(segment(), options).unwrap()
}

fn fabric(choice: ProtocolChoice) -> Fabric {
    Fabric::new(FabricOptions { choice, ..FabricOptions::default() })
}

#[test]
fn a_link_is_kept_until_it_is_forgotten() {
    let server = serve(&ServerOptions::default());
    for choice in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let fabric = fabric(choice);
        let first = fabric.link(server.descriptor(), soon()).unwrap();
        assert!(Arc::ptr_eq(&first, &fabric.link(server.descriptor(), soon()).unwrap()), "{choice}");
        fabric.forget(server.descriptor().token);
        let weak = Arc::downgrade(&first);
        drop(first);
        let deadline = soon();
        while weak.upgrade().is_some() {
            assert!(Instant::now() < deadline, "{choice}: a forgotten link is still held");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(fabric.link(server.descriptor(), soon()).unwrap().is_open(), "{choice}");
    }
}

#[test]
fn own_memory_is_reached_directly_whatever_the_choice() {
    let server = serve(&ServerOptions { protocols: ProtocolChoice::HostTcp, ..ServerOptions::default() });
    for choice in [ProtocolChoice::Auto, ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        let fabric = fabric(choice);
        fabric.register_local(&server);
        assert_eq!(fabric.link(server.descriptor(), soon()).unwrap().protocol(), Protocol::Local);
    }
}

#[test]
fn a_stopped_server_is_gone_at_once_and_its_port_is_free() {
    let mut server = serve(&ServerOptions::default());
    let shm = fabric(ProtocolChoice::HostShm).link(server.descriptor(), soon()).unwrap();
    let tcp_fabric = fabric(ProtocolChoice::HostTcp);
    let tcp = tcp_fabric.link(server.descriptor(), soon()).unwrap();
    assert!(shm.is_open() && tcp.is_open());
    server.stop();
    assert!(!shm.is_open());
    for choice in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp, ProtocolChoice::Auto] {
        let error = fabric(choice).link(server.descriptor(), soon()).unwrap_err();
        assert_eq!(error, TransportError::PeerGone, "{choice}");
    }
    assert!(TcpListener::bind(server.descriptor().tcp.as_deref().unwrap()).is_ok(), "the port is still taken");
}

#[test]
fn a_failure_is_remembered_for_a_while_and_no_longer() {
    // A port that is free, then refused, then served: what the fabric says follows, with a pause.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = ServerOptions { protocols: ProtocolChoice::HostTcp, data_port: port, ..ServerOptions::default() };
    let mut server = serve(&options);
    let descriptor = server.descriptor().clone();
    let fabric = fabric(ProtocolChoice::HostTcp);
    server.stop();
    assert_eq!(fabric.link(&descriptor, soon()).unwrap_err(), TransportError::PeerGone);
    // Another life on the same port: not the memory that was asked for, and never taken for it.
    let second = serve(&options);
    let deadline = soon();
    loop {
        match fabric.link(&descriptor, soon()).unwrap_err() {
            TransportError::PeerGone => assert!(Instant::now() < deadline, "the failure is remembered for ever"),
            error => break assert!(matches!(error, TransportError::Refused { .. }), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(fabric.link(second.descriptor(), soon()).is_ok());
}

#[test]
fn peers_are_told_an_address_they_can_use() {
    let everywhere = serve(&ServerOptions { data_host: "0.0.0.0".to_owned(), ..ServerOptions::default() });
    let told = everywhere.descriptor().tcp.clone().unwrap();
    assert!(!told.starts_with("0.0.0.0"), "{told}");
    assert!(fabric(ProtocolChoice::HostTcp).link(everywhere.descriptor(), soon()).is_ok(), "{told}");
    let named = serve(&ServerOptions { data_host: "localhost".to_owned(), ..ServerOptions::default() });
    assert!(fabric(ProtocolChoice::HostTcp).link(named.descriptor(), soon()).is_ok());
    for data_host in ["", "no such host", "a\nb"] {
        let options = ServerOptions { data_host: data_host.to_owned(), ..ServerOptions::default() };
        assert!(RegionServer::start(segment(), &options).is_err(), "{data_host:?}");
    }
}

const FORKER: &str = "MEMCACHE_TEST_FORKER";

/// Not a test: the process that forks, started by the test below.
#[test]
#[ignore = "run by another test as a process of its own"]
fn forking_process() {
    assert!(std::env::var_os(FORKER).is_some(), "started by a test");
    let server = serve(&ServerOptions::default());
    let links: Vec<Arc<dyn Link>> = [ProtocolChoice::HostShm, ProtocolChoice::HostTcp]
        .map(|choice| fabric(choice).link(server.descriptor(), soon()).unwrap())
        .into();
    // SAFETY: the child only drops what it inherited and leaves without running anything else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(links);
        drop(server);
        // SAFETY: ends the child at once, without the test harness's exit handlers.
        unsafe { libc::_exit(0) }
    }
    let mut status = -1;
    // SAFETY: waits for the child just made, into a live integer.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child did not get through its drops");
    for choice in [ProtocolChoice::HostShm, ProtocolChoice::HostTcp] {
        assert!(fabric(choice).link(server.descriptor(), soon()).is_ok(), "{choice} was shut by the child");
    }
    assert!(links.iter().all(|link| link.is_open()));
}

#[test]
fn a_forked_child_that_drops_everything_does_no_harm() {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "forking_process", "--ignored", "--nocapture"])
        .env(FORKER, "1")
        .spawn()
        .unwrap();
    let deadline = soon();
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            process.kill().unwrap();
            process.wait().unwrap();
            panic!("the process that forked hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success());
}
