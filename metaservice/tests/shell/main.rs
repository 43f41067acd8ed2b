//! The service over real sockets.

#![allow(clippy::unwrap_used, clippy::unnecessary_wraps, reason = "a test may fail, and messages have optional parts")]

mod client;
mod lanes;
mod mailboxes;
mod requests;
mod stopping;
mod transports;
