//! The socket beside a mailbox: it hands over the memory, rings, and ends with its process.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};
use rustix::process::{Uid, geteuid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sends all of `bytes` and, with them, a descriptor. For a fresh socket, whose buffer is empty: it never waits.
pub fn pass(socket: &impl AsFd, bytes: &[u8], fd: &impl AsFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other(format!("only {sent} bytes were sent"))) }
}

/// Receives what is there, without waiting, and the descriptor that came with it.
pub fn receive(socket: &impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((message.bytes, fd))
}

/// A socket that its event loop watches for what comes, and for nothing else: a peer that takes a ring out of it makes
/// room, and would wake this end up by that. Only within a runtime of tokio.
pub fn watch(socket: UnixStream) -> io::Result<AsyncFd<UnixStream>> {
    socket.set_nonblocking(true)?;
    // SAFETY: the stream owns its descriptor, which stays the same and open until the stream is dropped; `AsyncFd` drops
    // it after it has taken it from the event loop, and nothing here takes it out.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// Wakes the other end.
pub fn ring(socket: &impl AsFd) -> io::Result<()> {
    match send(socket, &[1], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        // A socket that is full of rings wakes whoever waits on it.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// An error unless the process at the other end of a Unix socket runs as this user, or as root.
pub fn check_peer(socket: &impl AsFd) -> io::Result<()> {
    let peer = socket_peercred(socket)?.uid;
    if is_trusted(geteuid(), peer) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the other end is of user {}", peer.as_raw())))
}

fn is_trusted(own: Uid, peer: Uid) -> bool {
    peer == own || peer == Uid::ROOT
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_root_are_trusted() {
        let user = Uid::from_raw;
        assert!(is_trusted(user(1000), user(1000)) && is_trusted(user(1000), user(0)));
        assert!(!is_trusted(user(1000), user(1001)) && !is_trusted(user(0), user(1000)));
        let (here, there) = UnixStream::pair().unwrap();
        assert!(check_peer(&here).is_ok() && check_peer(&there).is_ok());
    }
}
