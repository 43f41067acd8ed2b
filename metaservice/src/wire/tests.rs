use proptest::prelude::*;

use super::*;
use crate::core::{EvictionPolicy, SearchLimits, Settings, limits};

const SETTINGS: Settings = Settings {
    reservation_ttl_ms: 1000,
    lease_ms: 400,
    heartbeat_ms: 1000,
    node_dead_ms: 5000,
    high_watermark_ppm: 950_000,
    low_watermark_ppm: 900_000,
    hard_pin_ppm: 250_000,
    hot_replica_bytes: 0,
    removals_max: limits::REMOVALS_MAX,
    step: limits::CALL_BURIALS_MAX,
    policy: EvictionPolicy::Adaptive,
    search: SearchLimits::DEFAULT,
};

/// Small numbers that mean something, and any others.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..6, 2 => (0u64..40).prop_map(|offset| (1 << 22) + offset), 1 => any::<u64>()]
}

fn numbers() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(number(), 0..5)
}

fn keys() -> impl Strategy<Value = Option<pb::Keys>> {
    let sound = prop::collection::vec(0u8..4, 1..6).prop_map(|data| pb::Keys { data, lengths: vec![1] });
    let wild = (prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(0u32..300, 0..4))
        .prop_map(|(data, lengths)| pb::Keys { data, lengths });
    prop_oneof![6 => sound.prop_map(Some), 2 => wild.prop_map(Some), 1 => Just(None)]
}

fn segment() -> impl Strategy<Value = pb::JoinSegment> {
    let bytes = prop_oneof![3 => Just(1u64 << 20), 1 => any::<u64>()];
    let places = prop_oneof![3 => Just((1u64 << 20, 1u64 << 21)), 1 => (any::<u64>(), any::<u64>())];
    (bytes, 0u32..5, places, 0u32..5).prop_map(|(bytes, tier, (table_offset, floors_offset), records)| {
        pb::JoinSegment { bytes, tier, descriptor: vec![1], table_offset, records, floors_offset }
    })
}

/// What a node says its memory holds, mostly with lists of fitting lengths.
fn holdings() -> impl Strategy<Value = request::Body> {
    let claims = (numbers(), numbers(), numbers(), prop::collection::vec(0u32..6, 0..5));
    (number(), number(), number(), keys(), claims, any::<bool>()).prop_map(
        |(node, incarnation, segment, keys, (offsets, payload_bytes, generations, records), done)| {
            let mut claims = pb::Holdings {
                node,
                incarnation,
                segment,
                keys,
                offsets,
                payload_bytes,
                generations,
                records,
                done,
                told: node % 3 == 0,
                gone: node % 5 == 0,
                ..pb::Holdings::default()
            };
            if let (true, Some(keys)) = (done, &claims.keys) {
                let count = keys.data.len();
                claims.offsets.resize(count, 64);
                claims.payload_bytes.resize(count, 10);
                claims.generations.resize(count, 3);
                claims.origins.resize(count, 3);
                claims.wanted.resize(count, 1);
                claims.records.resize(count, 1);
            }
            request::Body::Holdings(claims)
        },
    )
}

fn body() -> impl Strategy<Value = Option<request::Body>> {
    use request::Body;
    let payloads = prop_oneof![3 => Just(vec![1000]), 1 => numbers()];
    let reserve = (keys(), payloads, number(), any::<bool>()).prop_map(|(keys, payload_bytes, near, exclusive)| {
        let replicas = u32::try_from(near % 10).unwrap_or(0);
        let preferred = vec![near; (near % 3) as usize];
        Body::Reserve(pb::Reserve { keys, payload_bytes, near, exclusive, replicas, preferred })
    });
    let join = (number(), number(), prop::collection::vec(segment(), 0..3), number(), any::<bool>(), number());
    let join = join.prop_map(|(node, incarnation, segments, previous_epoch, lists, floor)| {
        Body::Join(pb::Join { node, incarnation, name: "n".to_owned(), segments, previous_epoch, lists, floor })
    });
    let pair = || (number(), number());
    let field = || pb::Field { name: "f".to_owned(), value: "v".to_owned() };
    let some = prop_oneof![
        4 => reserve,
        4 => numbers().prop_map(|reservations| Body::Seal(pb::Seal { reservations })),
        1 => numbers().prop_map(|reservations| Body::Abort(pb::Abort { reservations })),
        2 => keys().prop_map(|keys| Body::Locate(pb::Locate { keys, near: 1 })),
        1 => numbers().prop_map(|leases| Body::Release(pb::Release { leases })),
        1 => keys().prop_map(|keys| Body::MatchPrefix(pb::MatchPrefix { keys })),
        1 => keys().prop_map(|keys| Body::Exist(pb::Exist { keys })),
        1 => keys().prop_map(|keys| Body::Remove(pb::Remove { keys })),
        1 => Just(Body::RemoveAll(pb::RemoveAll {})),
        3 => join,
        3 => holdings(),
        1 => (pair(), prop::collection::vec(0..9u64, 0..3)).prop_map(|((node, incarnation), segments)| {
            Body::Heartbeat(pb::Heartbeat { node, incarnation, segments })
        }),
        1 => pair().prop_map(|(node, incarnation)| Body::Leave(pb::Leave { node, incarnation })),
        1 => numbers().prop_map(|segments| Body::Describe(pb::Describe { segments })),
        1 => Just(Body::RegisterFingerprint(pb::RegisterFingerprint { scope: "s".to_owned(), fields: vec![field()] })),
        1 => Just(Body::Status(pb::Status {})),
        2 => (pair(), 0u32..5, number()).prop_map(|((node, incarnation), tasks_max, bytes_max)| {
            Body::Work(pb::Work { node, incarnation, tasks_max, bytes_max })
        }),
        1 => numbers().prop_map(|leases| Body::Renew(pb::Renew { leases })),
        1 => keys().prop_map(|keys| Body::Info(pb::Info { keys })),
        2 => (keys(), number()).prop_map(|(keys, ttl_ms)| Body::Pin(pb::Pin { keys, ttl_ms })),
        1 => keys().prop_map(|keys| Body::Unpin(pb::Unpin { keys })),
        2 => (keys(), numbers(), numbers()).prop_map(|(keys, segments, generations)| {
            Body::Damaged(pb::Damaged { keys, segments, generations })
        }),
        1 => (number(), 0i32..7).prop_map(|(node, mode)| Body::Drain(pb::Drain { node, mode })),
    ];
    prop_oneof![20 => some.prop_map(Some), 1 => Just(None)]
}

/// How many elements the arrays of a reply have beside its outcomes, and how many outcomes call for one.
fn arrays(body: &reply::Body) -> Option<(usize, Vec<usize>)> {
    let first = |outcomes: &[u8]| outcomes.iter().map(|outcome| usize::from(*outcome == 1)).sum();
    match body {
        reply::Body::Reserve(found) => {
            let lengths = [&found.reservations, &found.segments, &found.offsets, &found.generations];
            let each = first(&found.outcomes);
            let tickets = if found.replicas.is_empty() {
                each
            } else {
                assert_eq!(found.replicas.len(), each);
                found.replicas.iter().map(|count| usize::from(*count)).sum()
            };
            Some((tickets, lengths.map(Vec::len).to_vec()))
        }
        reply::Body::Locate(found) => {
            let lengths = [&found.segments, &found.offsets, &found.payload_bytes, &found.generations];
            Some((first(&found.outcomes), lengths.map(Vec::len).to_vec()))
        }
        _ => None,
    }
}

proptest! {
    #[test]
    fn any_request_gets_a_well_formed_reply(requests in prop::collection::vec((number(), body(), 0u64..800), 1..40)) {
        let mut core = Core::new(SETTINGS, Epoch::new(1), Millis::new(0));
        let (mut now, mut effects) = (0, Vec::new());
        for (request_id, (client, body, ms)) in (1..).zip(requests) {
            now += ms;
            let request = pb::Request { request_id, client, body };
            let reply = serve(&mut core, Millis::new(now), request, &mut effects);
            prop_assert_eq!((reply.request_id, reply.epoch), (request_id, core.epoch().get()));
            let body = reply.body.expect("a body");
            if let Some((wanted, lengths)) = arrays(&body) {
                prop_assert!(lengths.iter().all(|length| *length == wanted), "{:?}", body);
            }
            if let reply::Body::Failure(failure) = body {
                prop_assert!(!failure.message.is_empty() && failure.code != 0);
            }
        }
    }
}
