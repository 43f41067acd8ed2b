use proptest::prelude::*;

use super::*;

const PLACE: RingPlace = RingPlace { address: 1 << 40, lkey: 7 };

fn direct(address: u64, bytes: u64) -> Part {
    Part { address, bytes, lkey: Some(1) }
}

/// All requests of an object, giving ring room back as if each request completed when there is none left.
fn plan(parts: &[Part], limits: RequestLimits, ring_bytes: u64) -> Vec<(Request, Vec<Sge>, Vec<RingCopy>)> {
    let (mut ring, mut cursor) = (Ring::new(ring_bytes), Cursor::default());
    let (mut all, mut under_way) = (Vec::new(), std::collections::VecDeque::new());
    while !cursor.is_done(parts) {
        let (mut sges, mut copies) = (Vec::new(), Vec::new());
        match cursor.next(parts, limits, &mut ring, PLACE, &mut sges, &mut copies) {
            Some(request) => {
                under_way.push_back(request.ring_bytes);
                all.push((request, sges, copies));
            }
            None if cursor.is_done(parts) => break,
            None => ring.give(under_way.pop_front().expect("no room in an empty ring")),
        }
    }
    all
}

#[test]
fn a_block_of_122_pieces_takes_as_few_requests_as_the_device_allows() {
    let parts: Vec<Part> =
        (0..122).map(|piece| direct(piece * 1_000_000, if piece % 2 == 0 { 128 << 10 } else { 16 << 10 })).collect();
    for (pieces, expected) in [(1, 122), (4, 31), (16, 8), (30, 5), (32, 4), (122, 1), (1000, 1)] {
        let limits = RequestLimits { pieces, message_bytes: 1 << 30 };
        assert_eq!(plan(&parts, limits, 4096).len(), expected, "{pieces} pieces a request");
    }
}

#[test]
fn messages_end_at_the_limit() {
    let requests = plan(&[direct(0, 10_000)], RequestLimits { pieces: 4, message_bytes: 4096 }, 64);
    let lengths: Vec<u64> = requests.iter().map(|(request, ..)| request.bytes).collect();
    assert_eq!(lengths, [4096, 4096, 1808]);
}

#[test]
fn unregistered_neighbours_share_a_piece_of_the_ring() {
    let parts: Vec<Part> = (0..122).map(|piece| Part { lkey: None, ..direct(piece * 1000, 100) }).collect();
    let requests = plan(&parts, RequestLimits { pieces: 4, message_bytes: 1 << 20 }, 1 << 20);
    assert_eq!(requests.len(), 1);
    assert_eq!((requests[0].1.len(), requests[0].2.len()), (1, 122));
}

#[test]
fn nothing_and_empty_parts_take_no_request() {
    let limits = RequestLimits { pieces: 4, message_bytes: 4096 };
    assert!(plan(&[], limits, 64).is_empty());
    assert!(plan(&[direct(1, 0), direct(2, 0)], limits, 64).is_empty());
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let part = (0u64..5000, any::<bool>(), 0u64..40);
    prop::collection::vec(part, 0..60).prop_map(|parts| {
        let mut address = 0;
        parts
            .into_iter()
            .map(|(bytes, is_registered, gap)| {
                address += gap;
                let part = Part { address, bytes, lkey: is_registered.then_some(3) };
                address += bytes;
                part
            })
            .collect()
    })
}

proptest! {
    /// Every byte once, in order, where it belongs; no request past a limit, none wasted.
    #[test]
    fn requests_cover_the_object(parts in parts(), pieces in 1usize..40, message_bytes in 1u64..20_000, ring_bytes in 1u64..20_000) {
        let limits = RequestLimits { pieces, message_bytes };
        let requests = plan(&parts, limits, ring_bytes);
        let mut bytes: Vec<(u64, Option<u32>)> = Vec::new();
        let mut expected_offset = 0;
        for (request, sges, copies) in &requests {
            prop_assert_eq!(request.offset, expected_offset);
            expected_offset += request.bytes;
            prop_assert!(request.bytes > 0 && request.bytes <= message_bytes);
            prop_assert!(!sges.is_empty() && sges.len() <= pieces);
            prop_assert_eq!(sges.iter().map(|sge| u64::from(sge.length)).sum::<u64>(), request.bytes);
            prop_assert_eq!(copies.iter().map(|copy| copy.bytes).sum::<u64>(), request.ring_bytes);
            let mut ring_bytes_seen = copies.iter().flat_map(|copy| (0..copy.bytes).map(move |at| (copy.at + at, copy.address + at)));
            for sge in sges {
                for at in 0..u64::from(sge.length) {
                    if sge.lkey == PLACE.lkey {
                        let (place, address) = ring_bytes_seen.next().expect("a copy for every byte of the ring");
                        prop_assert_eq!(place, sge.addr + at - PLACE.address);
                        prop_assert!(place < ring_bytes);
                        bytes.push((address, None));
                    } else {
                        bytes.push((sge.addr + at, Some(sge.lkey)));
                    }
                }
            }
            prop_assert!(ring_bytes_seen.next().is_none());
        }
        let wanted: Vec<(u64, Option<u32>)> =
            parts.iter().flat_map(|part| (0..part.bytes).map(|at| (part.address + at, part.lkey))).collect();
        prop_assert_eq!(bytes, wanted);
    }

    /// With all memory registered: at most one request for every `pieces` pieces and one for every full message.
    #[test]
    fn registered_memory_takes_no_more_requests_than_needed(parts in parts(), pieces in 1usize..40, message_bytes in 1u64..20_000) {
        let parts: Vec<Part> = parts.into_iter().filter(|part| part.bytes > 0).map(|part| Part { lkey: Some(3), ..part }).collect();
        let total: u64 = parts.iter().map(|part| part.bytes).sum();
        let count = plan(&parts, RequestLimits { pieces, message_bytes }, 64).len();
        let limit = parts.len().div_ceil(pieces) + usize::try_from(total / message_bytes).unwrap();
        prop_assert!(count <= limit, "{count} requests, {limit} expected at most");
    }

    /// Two requests that are under way at the same time never share ring bytes.
    #[test]
    fn ring_bytes_are_not_given_twice(wanted in prop::collection::vec(1u64..300, 1..80), bytes in 1u64..1000) {
        let mut ring = Ring::new(bytes);
        let mut under_way: std::collections::VecDeque<(u64, u64)> = std::collections::VecDeque::new();
        for wanted in wanted {
            let Some((at, run)) = ring.take(wanted) else {
                let (_, run) = under_way.pop_front().expect("an empty ring has room");
                ring.give(run);
                continue;
            };
            prop_assert!(run > 0 && run <= wanted && at + run <= bytes);
            for (other, length) in &under_way {
                prop_assert!(at + run <= *other || other + length <= at, "overlap");
            }
            under_way.push_back((at, run));
        }
    }
}
