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

/// Whether the process at the other end of a Unix socket runs as this user, or as root.
pub fn is_trusted(socket: &impl AsFd) -> bool {
    socket_peercred(socket).is_ok_and(|peer| peer.uid == geteuid() || peer.uid == Uid::ROOT)
}
