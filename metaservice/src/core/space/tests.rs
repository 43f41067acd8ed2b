#![allow(clippy::unwrap_used, reason = "a test may fail")]

use proptest::prelude::*;

use super::*;

const SEGMENT: u64 = 1 << 14;

#[test]
fn a_segment_is_rounded_down_to_whole_lines() {
    assert_eq!(SpaceMap::new(200).bytes(), 192);
    assert_eq!(SpaceMap::new(63).take(64), None);
}

#[test]
fn the_smallest_run_that_fits_is_taken() {
    let mut space = SpaceMap::new(SEGMENT);
    let runs: Vec<u64> = [256, 64, 128, 64, 512, 64].iter().map(|bytes| space.take(*bytes).unwrap()).collect();
    for (run, bytes) in [(0, 256), (2, 128), (4, 512)] {
        space.give_back(runs[run], bytes);
    }
    assert_eq!(space.take(128), Some(runs[2]));
    assert_eq!(space.take(320), Some(runs[4]));
    assert_eq!(space.take(192), Some(runs[4] + 320), "what was left of the third hole fits exactly");
    assert_eq!(space.take(64), Some(runs[0]));
}

#[test]
fn neighbours_grow_together_again() {
    let mut space = SpaceMap::new(SEGMENT);
    let runs: Vec<u64> = (0..4).map(|_| space.take(SEGMENT / 4).unwrap()).collect();
    for run in [0, 2, 3, 1] {
        space.give_back(runs[run], SEGMENT / 4);
    }
    assert_eq!((space.longest_run(), space.free_bytes()), (SEGMENT, SEGMENT));
}

#[test]
#[should_panic(expected = "were free already")]
fn giving_back_twice_is_noticed() {
    let mut space = SpaceMap::new(SEGMENT);
    let run = space.take(128).unwrap();
    space.give_back(run, 128);
    space.give_back(run, 64);
}

#[derive(Clone, Debug)]
enum Step {
    Take(u64),
    GiveBack(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..40).prop_map(|lines| Step::Take(lines * EXTENT_ALIGN)),
        2 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
    ]
}

/// The free runs that a list of taken ones leaves.
fn holes(taken: &[(u64, u64)]) -> Vec<u64> {
    let mut sorted = taken.to_vec();
    sorted.sort_unstable();
    sorted.push((SEGMENT, 0));
    let mut end = 0;
    let mut holes = Vec::new();
    for (offset, bytes) in sorted {
        if offset > end {
            holes.push(offset - end);
        }
        end = offset + bytes;
    }
    holes
}

proptest! {
    #[test]
    fn runs_never_overlap_and_no_byte_is_lost(steps in prop::collection::vec(step(), 1..200)) {
        let mut space = SpaceMap::new(SEGMENT);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Take(bytes) => {
                    let smallest_fit = holes(&taken).into_iter().filter(|hole| *hole >= bytes).min();
                    let offset = space.take(bytes);
                    prop_assert_eq!(offset.is_some(), smallest_fit.is_some());
                    if let (Some(offset), Some(hole)) = (offset, smallest_fit) {
                        prop_assert!(offset.is_multiple_of(EXTENT_ALIGN) && offset + bytes <= SEGMENT);
                        for (other, length) in &taken {
                            prop_assert!(offset + bytes <= *other || other + length <= offset, "overlap");
                        }
                        let mut without = holes(&taken);
                        taken.push((offset, bytes));
                        // Best fit: exactly one hole changed, and it was the smallest that fits.
                        for left in holes(&taken) {
                            if let Some(same) = without.iter().position(|hole| *hole == left) {
                                without.swap_remove(same);
                            }
                        }
                        prop_assert!(without.is_empty() || without == [hole], "took from {:?}, not {}", without, hole);
                    }
                }
                Step::GiveBack(index) if !taken.is_empty() => {
                    let (offset, bytes) = taken.swap_remove(index.index(taken.len()));
                    space.give_back(offset, bytes);
                }
                Step::GiveBack(_) => {}
            }
            let used: u64 = taken.iter().map(|(_, bytes)| bytes).sum();
            prop_assert_eq!((space.used_bytes(), space.free_bytes()), (used, SEGMENT - used));
            prop_assert_eq!(space.longest_run(), holes(&taken).into_iter().max().unwrap_or(0));
        }
    }
}
