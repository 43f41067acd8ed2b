use std::path::PathBuf;

use memcache_config::Endpoint;
use memcache_meta::{MetaError, MetaServer};
use memcache_proto::pb::{self, reply, request};

use crate::client::{Client, DEADLINE, config, exist, join, keys, put, server};

fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("memcache-meta-test-{}-{name}.sock", std::process::id()))
}

/// A put, a look-up and a read over whatever the service listens on.
fn one_round(server: &MetaServer) {
    let mut client = Client::connect(server.address(), 1);
    let reply::Body::Join(joined) = client.ask(join(5, 1)) else { panic!("not a join") };
    let put = put(&mut client, &["a", "bc"], 100);
    assert_eq!(put.segments, vec![joined.segments[0]; 2]);
    let locate = request::Body::Locate(pb::Locate { keys: keys(&["bc", "x"]), near: 0 });
    let reply::Body::Locate(found) = client.call(locate) else { panic!("not a locate") };
    assert_eq!(found.outcomes, [1, 2]);
    assert_eq!((found.offsets[0], found.generations[0]), (put.offsets[1], put.generations[1]));
    assert_eq!(found.payload_bytes, [100]);
    assert_ne!(found.lease, 0);
    let describe = request::Body::Describe(pb::Describe { segments: joined.segments.clone() });
    let reply::Body::Describe(known) = client.ask(describe) else { panic!("not a describe") };
    assert_eq!(known.segments[0].descriptor, b"here");
}

#[test]
fn serves_over_tcp_and_tells_the_real_port() {
    let server = server(&[]);
    assert!(matches!(server.address(), Endpoint::Tcp { port, .. } if *port != 0));
    one_round(&server);
}

#[test]
fn serves_over_a_unix_socket_and_takes_its_file_away() {
    let path = socket_path("unix");
    let server = server(&[("listen", &format!("unix:{}", path.display()))]);
    one_round(&server);
    assert!(path.exists());
    assert!(server.stop(DEADLINE));
    assert!(!path.exists());
}

#[test]
fn serves_over_an_abstract_socket() {
    let name = format!("unix-abstract:memcache-meta-test-{}", std::process::id());
    one_round(&server(&[("listen", &name)]));
}

#[test]
fn a_left_over_socket_file_is_replaced() {
    let path = socket_path("stale");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    one_round(&server(&[("listen", &format!("unix:{}", path.display()))]));
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced() {
    let path = socket_path("file");
    std::fs::write(&path, "precious").unwrap();
    let error = MetaServer::start(&config(&[("listen", &format!("unix:{}", path.display()))])).unwrap_err();
    assert!(matches!(error, MetaError::AddressInUse { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn an_address_in_use_is_told_as_such() {
    let path = socket_path("used");
    let abstract_name = format!("unix-abstract:memcache-meta-used-{}", std::process::id());
    for listen in ["127.0.0.1:0", &format!("unix:{}", path.display()), &abstract_name] {
        let first = server(&[("listen", listen)]);
        let address = first.address().to_string();
        let error = MetaServer::start(&config(&[("listen", &address)])).unwrap_err();
        assert!(matches!(error, MetaError::AddressInUse { .. }), "{error}");
        assert!(error.to_string().contains(&address), "{error}");
        one_round(&first);
    }
}

#[test]
fn an_address_of_nobody_here_is_told_as_such() {
    let error = MetaServer::start(&config(&[("listen", "192.0.2.1:0")])).unwrap_err();
    assert!(matches!(error, MetaError::Listen { .. }), "{error}");
    assert!(error.to_string().contains("192.0.2.1:0"), "{error}");
}

#[test]
fn a_restarted_service_knows_nothing_and_has_a_later_epoch() {
    let first = server(&[]);
    let address = first.address().to_string();
    let mut client = Client::connect(first.address(), 1);
    client.ask(join(5, 1));
    put(&mut client, &["a"], 1);
    assert!(first.stop(DEADLINE));
    let second = server(&[("listen", &address)]);
    assert!(second.epoch() > first.epoch());
    let mut client = Client::connect(second.address(), 1);
    assert_eq!(exist(&mut client, &["a"]), [2]);
    let heartbeat = request::Body::Heartbeat(pb::Heartbeat { node: 5, incarnation: 1, ..pb::Heartbeat::default() });
    assert_eq!(client.ask(heartbeat), reply::Body::Heartbeat(pb::HeartbeatReply { ..Default::default() }));
}
