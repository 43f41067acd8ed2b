//! A peer's side: ask for the memfd, map it, and keep the connection as a sign of life.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcache_memory::Mapping;
use rustix::cmsg_space;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

use crate::error::TransportError;
use crate::net::{is_quiet, wait_for};
use crate::protocol::Protocol;
use crate::shm::{FOREIGN_USER, FULL, UNKNOWN_TOKEN, WELCOME, WELCOME_BYTES, hello, read_welcome};

/// Pause before another try when the owner's queue is full.
const RETRY: Duration = Duration::from_millis(2);

/// The silent connection to the owner of mapped memory.
#[derive(Clone, Debug)]
pub(crate) struct OwnerWatch(Arc<OwnedFd>);

impl OwnerWatch {
    /// Whether the owner still holds its end.
    pub(crate) fn is_alive(&self) -> bool {
        is_quiet(self.0.as_fd())
    }

    /// Waits for the owner to hang up; false if the deadline comes first.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        wait_for(self.0.as_fd(), PollFlags::IN | PollFlags::RDHUP, deadline).is_ok()
    }
}

/// Maps the memory that the owner behind the abstract socket `name` shares under `token`.
pub(crate) fn attach(
    name: &str,
    token: u128,
    region_bytes: u64,
    deadline: Instant,
) -> Result<(Mapping, OwnerWatch), TransportError> {
    let failed = |operation| move |error: Errno| TransportError::from_io(operation, &error.into());
    let socket = reach(name, deadline)?;
    let said =
        sendmsg(&socket, &[IoSlice::new(&hello(token))], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL);
    said.map_err(failed("sendmsg"))?;
    wait_for(socket.as_fd(), PollFlags::IN, deadline)?;

    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; WELCOME_BYTES + 1];
    let message = recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(failed("recvmsg"))?;
    let memfd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    if message.bytes == 0 {
        return Err(TransportError::PeerGone);
    }
    let reason = match (read_welcome(&bytes[..message.bytes.min(bytes.len())]), memfd) {
        (Some((WELCOME, actual)), Some(memfd)) if actual == region_bytes => {
            let mapping = Mapping::from_fd(memfd, region_bytes)
                .map_err(|error| TransportError::Unavailable { protocol: Protocol::HostShm, why: error.to_string() })?;
            return Ok((mapping, OwnerWatch(Arc::new(socket))));
        }
        (Some((WELCOME, actual)), _) => format!("it shares {actual} bytes, {region_bytes} were announced"),
        (Some((UNKNOWN_TOKEN, _)), _) => "this is not the memory you look for".to_owned(),
        (Some((FOREIGN_USER, _)), _) => "it belongs to another user".to_owned(),
        (Some((FULL, _)), _) => "too many peers".to_owned(),
        _ => "it does not speak the protocol".to_owned(),
    };
    Err(TransportError::refused(reason))
}

fn reach(name: &str, deadline: Instant) -> Result<OwnedFd, TransportError> {
    let failed = |operation| move |error: Errno| TransportError::from_io(operation, &error.into());
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(|_| TransportError::Unavailable {
        protocol: Protocol::HostShm,
        why: format!("bad socket name {name:?}"),
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed("socket"))?;
    loop {
        if Instant::now() >= deadline {
            return Err(TransportError::Timeout);
        }
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            // The owner's queue is full: it answers within milliseconds or not at all.
            Err(Errno::AGAIN) => thread::sleep(RETRY),
            Err(error) => return Err(failed("connect")(error)),
        }
    }
}
