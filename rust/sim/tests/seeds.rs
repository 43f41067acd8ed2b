//! Worlds that must hold together: a thousand in a row, and those that once did not.

use memcache_sim::{Sabotage, replay, replay_command, run};

/// Seeds that once broke a rule, and what they found.
const REGRESSIONS: &[(u64, &str)] = &[
    (1028, "memory was lent anew after a restart while it was still read: leases were longer than reservations"),
    (5429, "the same, up to a hit with other bytes"),
    (6146, "a join that came late lent memory anew while it was still written"),
    (7546, "the same in a later life of the node"),
    (7, "with the gap put back: a record of a removed key stood when its remover was told success"),
    (
        4755,
        "a join that came late gave the memory another name, and its node went on telling under the old one for ever",
    ),
    (5088, "an old order to empty a node arrived after its cancel, which nobody repeated"),
    (8257, "a copy of a put that was under way when its key was removed was asked to outlast a restart"),
    (9314, "a damaged object was readable for ever, and a copy of it tried again and again"),
    (11422, "the answer to the second arrival of a seal came first: its node cleared the record of a replica"),
    (18241, "a telling that came late made an object readable whose record its node had cleared"),
    (19432, "a key that was evicted for others was asked to be there"),
    (20574, "a join that came late hid that its memory held records of removed keys"),
    (43043, "damage was told of a replica whose node was given up in the same moment"),
    (12635, "a join that came late gave the memory another name, and its node had told all it knew of and never heard"),
    (1328, "with the gap put back: a key that was removed came back from a life with greater numbers"),
    (7478, "with the gap put back: what such a life had put replaced what was put later"),
    (3153, "with the gap put back: a reader without checksums got bytes of a writer of an earlier life"),
];

#[test]
fn a_thousand_seeds_keep_every_rule() {
    let mut hits = 0;
    for seed in 0..1000 {
        let ended = run(seed, Sabotage::None);
        assert_eq!(ended.violation, None, "replay it: {}", replay_command(seed));
        hits += ended.hits;
    }
    assert!(hits > 10_000, "only {hits} hits: these worlds try nothing");
}

#[test]
fn seeds_that_once_failed_keep_every_rule() {
    for (seed, found) in REGRESSIONS {
        let ended = run(*seed, Sabotage::None);
        assert_eq!(ended.violation, None, "{found}; replay it: {}", replay_command(*seed));
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 0..20 {
        let (once, again) = (replay(seed, Sabotage::None), replay(seed, Sabotage::None));
        assert_eq!(once.trace, again.trace);
        assert_eq!((once.digest, once.hits), (again.digest, again.hits));
        assert_eq!(run(seed, Sabotage::None).digest, once.digest, "keeping the words changes nothing");
    }
    assert_ne!(run(0, Sabotage::None).digest, run(1, Sabotage::None).digest);
}
