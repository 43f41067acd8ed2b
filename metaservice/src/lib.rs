//! The `MetaService`: the book of the pool. It knows where every object is and moves no bytes.
//!
//! | module | what |
//! |---|---|
//! | [`core`] | all state and every decision; pure |
//! | [`wire`] | a request message to a reply message over a core; pure |
//! | [`replay`] | the core over recorded and generated requests, offline |
//! | [`server`] | [`MetaServer`]: the sockets, the clock and the ticks around it |
//! | [`cli`] | the command, shared by the binary and `python -m memcache.meta` |

#![forbid(unsafe_code)]

pub mod cli;
pub mod core;
mod error;
pub mod replay;
pub mod server;
pub mod wire;

pub use cli::run_cli;
pub use error::MetaError;
pub use server::MetaServer;
