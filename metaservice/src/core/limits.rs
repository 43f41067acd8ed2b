//! How much of everything one service keeps. A request past a bound is refused by name.

/// Most keys that are readable or being written.
pub const KEYS_MAX: usize = 1 << 31;

/// Most reservations in all.
pub const RESERVATIONS_MAX: usize = 1 << 22;

/// Most reservations of one client.
pub const CLIENT_RESERVATIONS_MAX: u32 = 1 << 20;

/// Most leases in all.
pub const LEASES_MAX: usize = 1 << 20;

/// Most objects named by all leases together, counted once a lease.
pub const LEASED_MAX: usize = 1 << 25;

/// Most leases of one client: who lets go of none stands in nobody's way.
pub const CLIENT_LEASES_MAX: usize = LEASES_MAX / 16;

/// Most objects named by the leases of one client.
pub const CLIENT_LEASED_MAX: usize = LEASED_MAX / 16;

/// A lease ends so many times its length after the locate at the latest, however often it is renewed.
pub const LEASE_LENGTHS_MAX: u64 = 30;

/// Most nodes.
pub const NODES_MAX: usize = 1 << 16;

/// Most departed nodes that are remembered, with their last incarnation and how they went; the longest departed is forgotten first.
pub const DEPARTED_MAX: usize = 1 << 16;

/// Most reservations, leases or segments named in one request.
pub const BATCH_NUMBERS_MAX: usize = memcache_types::limits::BATCH_KEYS_MAX;

/// Most scopes with fingerprints; the one longest unused is forgotten first.
pub const SCOPES_MAX: usize = 1024;

/// Longest name of a scope, in bytes.
pub const SCOPE_BYTES_MAX: usize = 1024;

/// Most fingerprints of one scope; the one longest unused is forgotten first.
pub const SCOPE_FINGERPRINTS_MAX: usize = 16;

/// Longest fingerprint, all names and values together, in bytes.
pub const FINGERPRINT_BYTES_MAX: usize = 16 << 10;

/// Most objects evicted in one tick. The next tick goes on.
pub const TICK_EVICTIONS_MAX: usize = 4096;

/// Objects of nodes that are gone, or under a floor, that one call forgets; the next calls go on.
pub const CALL_BURIALS_MAX: u32 = 256;

/// A tick forgets so many times as many.
pub const TICK_STEPS: usize = 16;

/// Entries that a sweep looks at for the cost of one object that is forgotten.
pub const SWEEP_SEEN_MAX: usize = 16;

/// Most reservations, and objects under leases, that end within one call because their time is over, and most extents that
/// are free again; the next calls go on.
pub const CALL_ENDED_MAX: usize = 4096;

/// Most keys that wait in line for more replicas. Those beyond are found again by going through all keys.
pub const REPAIRS_MAX: usize = 1 << 22;

/// Most copies under way.
pub const COPIES_MAX: usize = 1 << 14;

/// Most copies handed out in one reply.
pub const REPLY_COPIES_MAX: usize = 1024;

/// Most keys looked at for one reply.
pub const REPLY_REPAIRS_SEEN_MAX: usize = 512;

/// Most keys looked at in one tick for those that lack replicas but do not stand in line.
pub const TICK_KEYS_SEEN_MAX: usize = 8192;

/// Reads from afar, within some half-lives, that make a key hot.
pub const HOT_READS: u8 = 16;

/// Time in which counts of such reads fall to half, in milliseconds.
pub const HOT_HALF_LIFE_MS: u64 = 10_000;

/// An extra replica whose key was not used for so long goes, in milliseconds; at most twice as long.
pub const HOT_UNUSED_MS: u64 = 60_000;

/// Most hot keys that wait to be copied by one node.
pub const HOT_ASKED_MAX: usize = 256;

/// Most extra replicas that one tick looks at.
pub const TICK_EXTRAS_SEEN_MAX: usize = 4096;

/// Most objects that one tick takes from nodes that are being drained.
pub const TICK_DRAINED_MAX: usize = 4096;

/// Most objects that one reply with copies evicts for them.
pub const REPLY_EVICTIONS_MAX: usize = 256;

/// Most pins.
pub const PINS_MAX: usize = 1 << 20;

/// Longest soft pin, in milliseconds: 30 days.
pub const PIN_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// Most pins that end within one call because their time is over; the next calls go on.
pub const CALL_PINS_ENDED_MAX: usize = 4096;

/// Most objects of a segment looked at in the order in which they would go, to find those whose eviction makes one long
/// hole. Where that is not enough those that lie together are looked at.
pub const HOLE_OBJECTS_MAX: usize = 4096;

/// Most objects that one call looks at for all the holes that its keys need.
pub const CALL_LOOKS_MAX: usize = 1 << 18;

/// Most segments in which one key looks for a hole.
pub const SEGMENTS_TRIED_MAX: usize = 16;

/// Most places of objects that one step goes through to learn in which order the objects of a segment lie.
pub const ROW_STEP: usize = 1 << 15;

/// Where no hole for an extent was found in the order in which objects would go, one is looked for in the order in which they
/// lie alone for so long, in milliseconds.
pub const ROW_ALONE_MS: u64 = 1000;

/// What is known of that order is forgotten when nobody asked for it for so long, in milliseconds.
pub const ROW_UNASKED_MS: u64 = 60_000;

/// Most objects that one tick takes out of it then.
pub const TICK_ROW_FORGOTTEN_MAX: usize = 8192;

/// Segments with the most free bytes that are tried before the one with the longest free run.
pub const PLACES_TRIED_MAX: usize = 16;

/// Most removals that are remembered, lest a node that was away bring back what they took: 16 parts, each a full table of
/// 2^18 places and 4.3 MiB. Past it, nodes lose what is as old as the removals that were forgotten while they were away.
pub const REMOVALS_MAX: u32 = 16 * (7 << 15);
