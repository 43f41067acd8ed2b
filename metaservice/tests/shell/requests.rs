use memcache_proto::pb::{self, reply, request};

use crate::client::{Client, config, exist, join, keys, put, reserve, server};

fn failure(body: reply::Body) -> pb::Failure {
    match body {
        reply::Body::Failure(failure) => failure,
        other => panic!("not a failure: {other:?}"),
    }
}

#[test]
fn bad_requests_are_answered_by_name_and_the_session_goes_on() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    let raw = |data: &[u8], lengths: &[u32]| Some(pb::Keys { data: data.to_vec(), lengths: lengths.to_vec() });
    let exist_raw = |keys| request::Body::Exist(pb::Exist { keys });
    let uneven = pb::Reserve {
        keys: keys(&["a", "b"]),
        payload_bytes: vec![1, 2, 3],
        near: 0,
        exclusive: false,
        ..pb::Reserve::default()
    };
    let tier = pb::JoinSegment { bytes: 1 << 20, tier: 9, ..Default::default() };
    let tiny = pb::JoinSegment { bytes: 5, tier: 2, ..Default::default() };
    let join_with = |segment| {
        request::Body::Join(pb::Join { node: 1, incarnation: 1, segments: vec![segment], ..Default::default() })
    };
    for (body, named) in [
        (exist_raw(None), "keys"),
        (exist_raw(raw(b"", &[0])), "empty"),
        (exist_raw(raw(&[0; 257], &[257])), "257"),
        (exist_raw(raw(b"abc", &[1, 1])), "2 bytes, the data has 3"),
        (request::Body::Reserve(uneven), "payload_bytes has 3 elements, want 2"),
        (join_with(tier), "tier = 9"),
        (join_with(tiny), "bytes of a segment = 5"),
        (join(0, 1), "node = 0"),
    ] {
        let failure = failure(client.ask(body));
        assert_eq!(failure.code(), pb::failure::Code::Invalid);
        assert!(failure.message.contains(named), "{:?} does not name {named:?}", failure.message);
    }
    let id = client.send(None);
    let reply = client.receive().expect("an open session");
    assert_eq!(reply.request_id, id);
    assert!(failure(reply.body.unwrap()).message.contains("body"));
    assert_eq!(exist(&mut client, &["a"]), [2]);
}

#[test]
fn stale_claims_have_their_own_code() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    client.ask(join(5, 7));
    let heartbeat = request::Body::Heartbeat(pb::Heartbeat { node: 5, incarnation: 6, ..pb::Heartbeat::default() });
    assert_eq!(failure(client.ask(heartbeat)).code(), pb::failure::Code::Stale);
}

#[test]
fn limits_have_their_own_code() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    let release = request::Body::Release(pb::Release { leases: vec![1; 65_537] });
    let failure = failure(client.ask(release));
    assert_eq!(failure.code(), pb::failure::Code::Limit);
    assert!(failure.message.contains("65537 is over the limit of 65536"), "{}", failure.message);
}

#[test]
fn keys_of_any_bytes_are_fine() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    client.ask(join(5, 1));
    put(&mut client, &["a\0b", "\0", "a"], 3);
    assert_eq!(exist(&mut client, &["\0", "a\0", "a\0b"]), [1, 2, 1]);
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    client.ask(join(5, 1));
    put(&mut client, &["a"], 3);
    let asked: Vec<u64> =
        (0..500).map(|_| client.send(Some(request::Body::Exist(pb::Exist { keys: keys(&["a"]) })))).collect();
    let mut answered: Vec<u64> = (0..500).map(|_| client.receive().expect("an open session").request_id).collect();
    answered.sort_unstable();
    assert_eq!(answered, asked);
}

#[test]
fn the_largest_batch_fits_in_a_message() {
    let server = server(&[]);
    let mut client = Client::connect(server.address(), 1);
    let mut data = vec![7; 256 * 65_536];
    let most = Some(pb::Keys { data: data.clone(), lengths: vec![256] });
    let found = client.ask(request::Body::Exist(pb::Exist { keys: most }));
    assert_eq!(found, reply::Body::Exist(pb::ExistReply { outcomes: vec![2; 65_536] }));
    data.extend([7; 256]);
    let more = Some(pb::Keys { data, lengths: vec![256] });
    let failure = failure(client.ask(request::Body::Exist(pb::Exist { keys: more })));
    assert!(failure.message.contains("65537") && failure.message.contains("65536"), "{}", failure.message);
}

#[test]
fn two_clients_race_for_one_key_and_both_are_told_the_truth() {
    let server = server(&[]);
    let (mut one, mut two) = (Client::connect(server.address(), 1), Client::connect(server.address(), 2));
    one.ask(join(5, 1));
    let ticket = |client: &mut Client| match client.ask(reserve(&["a"], 10)) {
        reply::Body::Reserve(reserved) => reserved.reservations,
        other => panic!("{other:?}"),
    };
    let (first, second) = (ticket(&mut one), ticket(&mut two));
    let seal = |client: &mut Client, reservations: &[u64]| match client
        .ask(request::Body::Seal(pb::Seal { reservations: reservations.to_vec() }))
    {
        reply::Body::Seal(sealed) => sealed.outcomes,
        other => panic!("{other:?}"),
    };
    assert_eq!(seal(&mut one, &second), [3], "not its own");
    assert_eq!(seal(&mut two, &second), [1]);
    assert_eq!(seal(&mut one, &first), [2]);
}

#[test]
fn a_silent_node_is_gone_without_being_asked_about() {
    let settings = [("heartbeat_ms", "20"), ("node_dead_ms", "100")];
    let server = memcache_meta::MetaServer::start(&config(&settings)).unwrap();
    let mut client = Client::connect(server.address(), 1);
    client.ask(join(5, 1));
    put(&mut client, &["a"], 1);
    let started = std::time::Instant::now();
    while exist(&mut client, &["a"]) != [2] {
        assert!(started.elapsed() < crate::client::DEADLINE, "the node is still there");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
