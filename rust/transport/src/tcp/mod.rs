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

pub(crate) mod client;
mod exchange;
pub(crate) mod frame;
pub(crate) mod server;
mod session;
mod stream;
