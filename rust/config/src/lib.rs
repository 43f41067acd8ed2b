//! Settings of the services and the client: where they come from, what they may be, what they mean.
//!
//! One struct a component: [`MetaConfig`], [`LocalConfig`], [`StoreConfig`]. Each is loaded in the same order, later
//! ones winning: defaults, a TOML file, the environment, overrides from code or the command line. The environment is
//! handed in by the caller; nothing here reads it. A key nobody knows is an error that names the nearest known one.

#![forbid(unsafe_code)]

mod component;
mod endpoint;
mod error;
mod layers;
mod local;
mod meta;
mod setting;
mod store;

pub use component::KeyInfo;
pub use endpoint::{Endpoint, EndpointError};
pub use error::ConfigError;
pub use local::LocalConfig;
pub use meta::MetaConfig;
pub use setting::{ChecksumPolicy, CopyKernel, EvictionPolicy, Protocol, TransferPath};
pub use store::StoreConfig;

#[cfg(test)]
mod tests;
