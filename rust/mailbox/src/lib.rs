//! Mailboxes: two rings of bytes in shared memory, between two processes of one host and one user.
//!
//! One ring carries bytes to the service, the other to the client. Each [`End`] writes to one and reads from the other.
//! Who has nothing to do watches the memory for a while; then it says so there ([`End::lie_down`]) and waits on the
//! socket that the mailbox came through. Who changes something that the other sleeps for ([`End::must_ring`]) sends one
//! byte through that socket ([`ring`]).
//!
//! The socket is also the sign of life: the end of a process is seen there. Memory says nothing of it.
//!
//! An end is as quick as its thread has its turn: a thread that others wait for asks for [short ones](take_short_turns).
//!
//! Neither end trusts the other. An end keeps its own place in both rings for itself and only tells it; what the other
//! says is checked against it each time, and bytes are copied out before anybody looks at them.

mod end;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod memory;
mod socket;
mod turns;

pub use end::{Change, End};
pub use error::MailboxError;
pub use socket::{check_peer, pass, receive, ring, watch};
pub use turns::take_short_turns;

/// Bytes that one ring holds. Longer messages flow through it.
pub const RING_BYTES: usize = 64 << 10;

/// Bytes of shared memory that a mailbox takes.
pub const MAILBOX_BYTES: usize = memory::BYTES;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("mailboxes need Linux (memfd, seals) and 64-bit addresses");
