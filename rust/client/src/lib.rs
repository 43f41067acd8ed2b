//! The hands: put and get over the pool, and lending memory to it.
//!
//! A [`Store`] speaks to the `MetaService` through a [`Book`] and to the memory of other nodes through the
//! transports; a [`LocalService`] lends a segment. Both may live in one process and share a connection.
//!
//! ```text
//! put:  block ids -> ScatterLists -> Reserve (one message) -> write, one-sided -> Seal (one message)
//! get:  keys -> Locate (one message, with a lease) -> read, one-sided -> verify trailers -> Release (unawaited)
//! ```
//!
//! Every wait has a deadline. Trouble with one key is that key's status; a call fails as a whole only when its
//! arguments are wrong, or when the store was closed or crossed a `fork`.

pub mod book;
pub mod buffer;
pub mod completion;
mod connect;
mod crowd;
mod directory;
mod errands;
pub mod error;
pub mod explain;
mod flight;
pub mod get;
mod get_async;
mod jobs;
mod listing;
pub mod local_service;
pub mod lookup;
mod member;
mod options;
mod pace;
pub mod path;
mod put;
mod put_async;
mod random;
mod record;
pub mod relay;
mod repair;
mod roads;
mod runtime;
pub mod stats;
pub mod store;
pub mod sums;
mod tasks;
mod transfer;
mod verdict;
mod ways;

pub use book::Book;
pub use buffer::Buffers;
pub use completion::Completion;
pub use error::StoreError;
pub use explain::{Question, explain};
pub use get::Located;
pub use local_service::{LocalOptions, LocalService};
pub use lookup::{FieldDifference, Matched, Presence};
pub use put::PutOptions;
pub use relay::RelayOptions;
pub use stats::StatsSnapshot;
pub use store::{Prepared, Store, StoreOptions};
pub use sums::Checksums;
