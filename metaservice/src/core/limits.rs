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

/// Most nodes.
pub const NODES_MAX: usize = 1 << 16;

/// Most departed nodes whose last incarnation is remembered; the longest departed is forgotten first.
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

/// Most objects of a node that is gone that one call forgets; the next calls go on.
pub const CALL_BURIALS_MAX: usize = 256;

/// Most of them that one tick forgets.
pub const TICK_BURIALS_MAX: usize = 4096;

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

/// Most removed keys that are remembered, lest a node that was away bring them back. Past it, nodes that come back lose
/// whatever is as old as the first key forgotten.
pub const REMOVALS_MAX: usize = 1 << 16;
