//! What every plan must be, whatever it is made of: complete, within limits, the same each time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::collections::BTreeMap;

use memcache_transport::plan::{
    CostModel, Leg, LegCost, LocalView, Path, PathChoice, PeerView, PlanError, PlanObject, PlanRequest, Staging,
    TransferPlan, Way, plan,
};
use memcache_transport::{Capabilities, Protocol};
use memcache_types::{Extent, GlobalAddress, Piece, ScatterList, SegmentId, extent_bytes};
use proptest::prelude::*;

fn capabilities(pieces_max: usize, payload_bytes_max: u64) -> Capabilities {
    Capabilities {
        protocol: Protocol::HostShm,
        region_bytes: 1 << 40,
        pieces_max,
        payload_bytes_max,
        copies_on_caller: true,
        connections: 0,
    }
}

fn peer(capabilities: Capabilities, costs: &CostModel) -> PeerView {
    PeerView {
        name: "peer".to_owned(),
        capabilities,
        reach: Ok(()),
        relay: Ok(Staging { slot_bytes: 1 << 40, slots: 2 }),
        summed: false,
        cpu_sees_region: true,
        costs: *costs,
    }
}

fn device(batch_copies_max: usize, copy_bytes_max: u64, slot_bytes: u64, slots: usize) -> LocalView {
    let staging = Some(Staging { slot_bytes, slots });
    LocalView {
        name: "device".to_owned(),
        cpu_touches: false,
        runs_beside: true,
        batch_copies_max,
        copy_bytes_max,
        align: 1,
        pinned: staging,
        staging,
    }
}

/// Objects of these pieces (address gap, length), each in an extent of its own.
fn objects(shapes: &[Vec<(u64, u64)>]) -> Vec<(Extent, ScatterList)> {
    let (mut address, mut offset) = (1 << 30, 0);
    shapes
        .iter()
        .map(|shape| {
            let list: ScatterList = shape
                .iter()
                .map(|(gap, bytes)| {
                    let piece = Piece { address: address + gap, bytes: *bytes };
                    address += gap + bytes;
                    piece
                })
                .collect();
            address += 1;
            let extent =
                Extent::new(GlobalAddress::new(SegmentId::new(1), offset), extent_bytes(list.bytes())).unwrap();
            offset = extent.end();
            (extent, list)
        })
        .collect()
}

fn request<'a>(
    way: Way,
    choice: PathChoice,
    peers: &'a [PeerView],
    local: &'a LocalView,
    objects: &'a [PlanObject<'a>],
) -> PlanRequest<'a> {
    PlanRequest { way, choice, peers, local, objects }
}

fn plan_objects(made: &[(Extent, ScatterList)]) -> Vec<PlanObject<'_>> {
    made.iter()
        .map(|(extent, local)| PlanObject { peer: 0, extent: *extent, payload_bytes: local.bytes(), local })
        .collect()
}

/// Every byte of every object appears once: at its place in the payload, its slot and its piece.
fn check(plan: &TransferPlan, objects: &[PlanObject<'_>], peers: &[PeerView], local: &LocalView) {
    let mut reached: BTreeMap<usize, u64> = BTreeMap::new();
    for group in &plan.groups {
        let is_direct = group.path == Path::Direct || (local.cpu_touches && group.path == Path::Host);
        let over_link = local.cpu_touches || group.path == Path::Host;
        let link = &peers[group.peer].capabilities;
        for step in &group.steps {
            assert_eq!(step.slot.is_none(), is_direct);
            if !(over_link && is_direct) {
                assert!(step.copies.len() <= local.batch_copies_max);
                assert!(step.copies.iter().all(|copy| copy.bytes <= local.copy_bytes_max));
            }
            let mut next_copy = 0;
            let mut filled = 0;
            for part in &step.parts {
                let object = &objects[part.object];
                let at = reached.entry(part.object).or_default();
                assert_eq!(part.payload_offset, *at, "parts of an object are in order and leave nothing out");
                assert_eq!(part.payload_offset % 64, 0);
                assert_eq!(part.first_copy, next_copy);
                if over_link {
                    assert!(part.bytes <= link.payload_bytes_max);
                    assert!(!is_direct || part.copies <= link.pieces_max);
                }
                if !is_direct {
                    assert!(part.staging_offset >= filled, "parts overlap in their slot");
                    filled = part.staging_offset + part.bytes;
                    assert!(filled <= local.staging.unwrap().slot_bytes);
                }
                let mut within = 0;
                for copy in &step.copies[part.first_copy..part.first_copy + part.copies] {
                    let base = if is_direct { object.extent.offset() + *at } else { part.staging_offset };
                    assert_eq!(copy.offset, base + within);
                    expect_local(object.local, *at + within, copy.local, copy.bytes);
                    within += copy.bytes;
                }
                assert_eq!(within, part.bytes, "the copies of a part move all of it");
                *at += part.bytes;
                next_copy += part.copies;
                assert_eq!(part.is_last, *at == object.payload_bytes);
            }
            assert_eq!(next_copy, step.copies.len());
        }
    }
    for (index, object) in objects.iter().enumerate() {
        assert_eq!(reached.get(&index), Some(&object.payload_bytes), "object {index}");
    }
}

/// The bytes `at..at + bytes` of an object are those at `address`.
fn expect_local(list: &ScatterList, mut at: u64, address: u64, bytes: u64) {
    for piece in list.pieces() {
        if at < piece.bytes {
            assert_eq!(piece.address + at, address);
            assert!(bytes <= piece.bytes - at);
            return;
        }
        at -= piece.bytes;
    }
    panic!("a copy past the end of its object");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_byte_moves_once_within_the_limits(
        shapes in prop::collection::vec(prop::collection::vec((0u64..3, 0u64..90_000), 0..20), 1..8),
        batch in prop::sample::select(vec![1usize, 3, 64, 4096]),
        copy_bytes in prop::sample::select(vec![64u64, 1000, 1 << 32]),
        link_pieces in prop::sample::select(vec![64usize, 1 << 20]),
        link_bytes in prop::sample::select(vec![64u64, 100_000, 1 << 40]),
        slots in 1usize..4,
        path in prop::sample::select(Path::ALL.map(PathChoice::Forced).into_iter().chain([PathChoice::Auto]).collect::<Vec<_>>()),
        cpu_touches in any::<bool>(),
        is_put in any::<bool>(),
    ) {
        prop_assume!(!(cpu_touches && path == PathChoice::Forced(Path::Relay)));
        let made = objects(&shapes);
        let objects = plan_objects(&made);
        let peers = [peer(capabilities(link_pieces, link_bytes), &CostModel::default())];
        let local = LocalView { cpu_touches, ..device(batch, copy_bytes, 128 << 10, slots) };
        let way = if is_put { Way::Put } else { Way::Get };
        let request = request(way, path, &peers, &local, &objects);
        match plan(&request) {
            Ok(made) => {
                check(&made, &objects, &peers, &local);
                prop_assert_eq!(&plan(&request).unwrap(), &made, "the same request gives the same plan");
                prop_assert!(made.to_string().contains("predicted us"));
            }
            // 64 bytes in more pieces than one operation takes: said, not planned wrongly.
            Err(error) => prop_assert!(error.to_string().contains("more than"), "{}", error),
        }
    }
}

fn blocks(count: usize, pieces: usize, bytes: u64) -> Vec<(Extent, ScatterList)> {
    objects(&vec![vec![(64, bytes); pieces]; count])
}

/// Costs of a device whose far copies are slow to set up and whose near ones are not.
fn far_pieces_dear() -> CostModel {
    let leg = |batch_ns, piece_ns, bytes_per_s| LegCost { batch_ns, piece_ns, bytes_per_s };
    CostModel::default()
        .with(Leg::PeerToDevice, leg(5_000, 2_000, 20_000_000_000))
        .with(Leg::DeviceToPeer, leg(5_000, 2_000, 20_000_000_000))
        .with(Leg::DeviceLocal, leg(5_000, 200, 200_000_000_000))
        .with(Leg::NetworkRead, leg(10_000, 0, 5_000_000_000))
}

fn chosen(count: usize, pieces: usize, bytes: u64) -> Path {
    let made = blocks(count, pieces, bytes);
    let objects = plan_objects(&made);
    let peers = [peer(capabilities(1 << 20, 1 << 40), &far_pieces_dear())];
    let relay = PeerView { relay: Err("no device".to_owned()), ..peers[0].clone() };
    let peers = [relay];
    let local = device(4096, 1 << 32, 8 << 20, 2);
    let made = plan(&request(Way::Get, PathChoice::Auto, &peers, &local, &objects)).unwrap();
    made.groups[0].path
}

#[test]
fn many_small_pieces_are_staged_and_few_large_ones_go_straight() {
    assert_eq!(chosen(1, 1, 1 << 20), Path::Direct);
    assert_eq!(chosen(1, 4, 4 << 20), Path::Direct);
    assert_eq!(chosen(1, 122, 4 << 10), Path::Staged);
    assert_eq!(chosen(8, 4096, 256), Path::Staged);
}

#[test]
fn a_slow_past_changes_the_choice() {
    let made = blocks(1, 122, 4 << 10);
    let objects = plan_objects(&made);
    let slow = far_pieces_dear().corrected(Path::Staged, 100_000);
    let peers = [PeerView { relay: Err("none".to_owned()), ..peer(capabilities(1 << 20, 1 << 40), &slow) }];
    let local = device(4096, 1 << 32, 8 << 20, 2);
    let made = plan(&request(Way::Get, PathChoice::Auto, &peers, &local, &objects)).unwrap();
    assert_ne!(made.groups[0].path, Path::Staged);
}

#[test]
fn paths_that_do_not_lead_there_say_why() {
    let made = blocks(1, 2, 100);
    let objects = plan_objects(&made);
    let blind = PeerView {
        reach: Err("another host".to_owned()),
        relay: Err("its owner has no device".to_owned()),
        ..peer(capabilities(16, 1 << 30), &CostModel::default())
    };
    let local = device(16, 1 << 20, 1 << 20, 2);
    let peers = [blind.clone()];
    let ask = |choice, local: &LocalView| plan(&request(Way::Get, choice, &peers, local, &objects));
    let error = ask(PathChoice::Forced(Path::Direct), &local).unwrap_err();
    assert_eq!(error.to_string(), "path 3 to peer is not possible: another host");
    assert_eq!(ask(PathChoice::Auto, &local).unwrap().groups[0].path, Path::Host);
    let bare = LocalView { pinned: None, staging: None, ..local };
    let error = ask(PathChoice::Auto, &bare).unwrap_err();
    assert!(matches!(&error, PlanError::NoPath { whys, .. } if whys[0].contains("pinned")), "{error}");
    let summed = [PeerView { summed: true, cpu_sees_region: false, reach: Ok(()), ..blind }];
    let local = device(16, 1 << 20, 1 << 20, 2);
    let made = plan(&request(Way::Get, PathChoice::Auto, &summed, &local, &objects)).unwrap();
    assert_eq!(made.groups[0].path, Path::Host, "the only path on which the CPU sees the bytes");
    assert!(made.considered[0].times_ns[3].as_ref().unwrap_err().contains("checksums"));
}

#[test]
fn a_device_that_wants_alignment_gets_it_or_a_reason() {
    let local = LocalView { align: 64, ..device(16, 1 << 20, 1 << 20, 2) };
    let peers = [peer(capabilities(16, 1 << 30), &CostModel::default())];
    let made = objects(&[vec![(0, 128), (64, 64)]]);
    let good = plan_objects(&made);
    assert!(plan(&request(Way::Get, PathChoice::Forced(Path::Staged), &peers, &local, &good)).is_ok());
    let made = objects(&[vec![(0, 100), (28, 64)]]);
    let odd = plan_objects(&made);
    let error = plan(&request(Way::Get, PathChoice::Forced(Path::Staged), &peers, &local, &odd)).unwrap_err();
    assert!(error.to_string().contains("alignment of 64 bytes"), "{error}");
}

#[test]
fn objects_that_make_no_sense_are_refused() {
    let made = blocks(1, 1, 100);
    let mut objects = plan_objects(&made);
    let peers = [peer(capabilities(16, 1 << 30), &CostModel::default())];
    let local = LocalView::host(None);
    objects[0].payload_bytes = 99;
    let error = plan(&request(Way::Get, PathChoice::Auto, &peers, &local, &objects)).unwrap_err();
    assert_eq!(error, PlanError::Length { object: 0, payload_bytes: 99, piece_bytes: 100 });
    objects[0].peer = 1;
    let error = plan(&request(Way::Get, PathChoice::Auto, &peers, &local, &objects)).unwrap_err();
    assert_eq!(error, PlanError::NoPeer { object: 0, peer: 1, peers: 1 });
}

#[test]
fn names_of_paths_read_back() {
    for choice in Path::ALL.map(PathChoice::Forced).into_iter().chain([PathChoice::Auto]) {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    assert!("4".parse::<PathChoice>().is_err());
}
