//! The service over real sockets.

mod client;
mod requests;
mod stopping;
mod transports;
