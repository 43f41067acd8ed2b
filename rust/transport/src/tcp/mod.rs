//! `host_tcp`: the owner's data server and the links that lead to it.
//!
//! A connection carries frames one after the other, several in flight; replies come in the order of requests.
//!
//! ```text
//! read    -> request                        <- reply, payload, trailer
//! write   -> request, payload, trailer      <- reply
//! ping    -> request                        <- reply
//! no                                        <- reply with a status, text
//! ```
//!
//! A large object may be moved in parts, by several connections at the same time. A part says where in the extent it
//! starts and is otherwise a request like any other, so every part of a read brings the trailer that stood there after
//! that part was copied: if all of them are the same, it held for the whole. Every part of a write takes the
//! trailer away before its first byte and puts nothing (a trailer of zeros) in its place; when all parts have been
//! acknowledged, a write without payload brings the real one.

pub(crate) mod client;
mod deal;
pub(crate) mod exchange;
pub(crate) mod frame;
mod receiving;
mod sending;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod stream;
mod sum;
