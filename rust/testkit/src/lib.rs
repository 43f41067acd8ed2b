//! The bench: what tests of several crates share. Nothing that ships names this crate.
//!
//! | module | what |
//! |---|---|
//! | [`rng`] | a small seeded generator, so that every failure can be played again |
//! | [`arena`] | local memory cut into random pieces, with guard bytes between them |
//! | [`device_suite`] | what every [`Device`](memcache_device::Device) must do |
//! | [`in_parts`] | a link that moves every object in parts, by several threads |
//! | [`proxy`] | a door that does bad things to a TCP connection |
//! | [`transport_suite`] | what every [`Link`](memcache_transport::Link) must do |

pub mod arena;
pub mod device_suite;
pub mod in_parts;
pub mod proxy;
pub mod rng;
pub mod transport_suite;
