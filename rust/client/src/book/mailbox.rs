//! A lane through shared memory, where the service is on the same host.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use memcache_mailbox::{Change, End, MailboxError, is_trusted, receive, ring};
use memcache_proto::lane::{Eagerness, GREETING_BYTES_MAX, Incoming, MAILBOX_PREFACE, mailbox_name};
use rustix::net::RecvFlags;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};

use super::lane::{Broken, Patience, blocking, broke, greeting, hung_up, refused};
use crate::connect::connect_abstract;

/// How many times the memory is looked at before the clock is.
const LOOKS: u32 = 16;

/// Rings, and the socket to wait on and to wake the service through.
pub(super) struct Mailbox {
    end: End,
    pub(super) socket: OwnedFd,
}

impl Mailbox {
    /// A mailbox of the service that greeted with `epoch` at the other end of `stream`, if that is this host.
    pub(super) async fn beside_tcp(stream: &TcpStream, epoch: u64) -> io::Result<Self> {
        let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
        if own.ip() != peer.ip() {
            return Err(refused(format!("{peer} is another host")));
        }
        Self::open(connect_abstract(&mailbox_name(epoch, peer.port()))?, epoch).await
    }

    /// The mailbox that the service at the other end of `stream` hands out, if it is that of `epoch`.
    pub(super) async fn open(mut stream: UnixStream, epoch: u64) -> io::Result<Self> {
        if !is_trusted(&stream) {
            return Err(refused("the service is another user's".to_owned()));
        }
        stream.write_all(MAILBOX_PREFACE).await?;
        let mut incoming = Incoming::new(GREETING_BYTES_MAX);
        let mut memory = None;
        let greeted = loop {
            let (bytes, fd) = stream.async_io(Interest::READABLE, || receive(&stream, incoming.room())).await?;
            memory = memory.or(fd);
            incoming.arrived(bytes);
            if let Some(epoch) = greeting(&mut incoming)? {
                break epoch;
            }
            if bytes == 0 {
                return Err(refused("the service hung up".to_owned()));
            }
        };
        if greeted != epoch {
            return Err(refused("another life of the service".to_owned()));
        }
        let memory = memory.ok_or_else(|| refused("no memory came with the greeting".to_owned()))?;
        let end = End::attach(&memory)?;
        let socket = blocking(stream.into_std()?, std::os::unix::net::UnixStream::set_nonblocking)?;
        Ok(Self { end, socket })
    }

    /// Writes all of this for the service.
    pub(super) fn send(&mut self, bytes: &[u8], eager: &mut Eagerness, patience: &Patience<'_>) -> Result<(), Broken> {
        let mut sent = 0;
        while sent < bytes.len() {
            let more = self.end.write(&bytes[sent..]).map_err(|error| broke(&error))?;
            if more == 0 {
                self.wait(Change::ROOM, eager, patience)?;
                continue;
            }
            sent += more;
            if self.end.must_ring(Change::BYTES) {
                ring(&self.socket).map_err(|error| broke(&error))?;
            }
        }
        Ok(())
    }

    /// Reads what the service has written, and waits for it.
    pub(super) fn receive(
        &mut self,
        incoming: &mut Incoming,
        eager: &mut Eagerness,
        patience: &Patience<'_>,
    ) -> Result<(), Broken> {
        let read = |end: &mut End, incoming: &mut Incoming| -> Result<usize, MailboxError> {
            let bytes = end.read(incoming.room())?;
            incoming.arrived(bytes);
            Ok(bytes)
        };
        self.wait(Change::BYTES, eager, patience)?;
        if read(&mut self.end, incoming).map_err(|error| broke(&error))? > 0 && self.end.must_ring(Change::ROOM) {
            ring(&self.socket).map_err(|error| broke(&error))?;
        }
        Ok(())
    }

    /// Waits for a change: looks at the memory for a while, then sleeps at the socket. May end without any.
    fn wait(&self, wanted: Change, eager: &mut Eagerness, patience: &Patience<'_>) -> Result<(), Broken> {
        if self.end.is_there(wanted) {
            return Ok(());
        }
        let look = eager.looks();
        if let Some(long) = look {
            let started = Instant::now();
            let mut helped = false;
            while !helped && started.elapsed() < long {
                helped = (0..LOOKS).any(|_| {
                    std::hint::spin_loop();
                    self.end.is_there(wanted)
                });
            }
            eager.helped(helped);
            if helped {
                return Ok(());
            }
        }
        if !self.end.lie_down(wanted) {
            return Ok(());
        }
        let asleep = Instant::now();
        let rung = rustix::net::recv(&self.socket, &mut [0; 64][..], RecvFlags::empty());
        self.end.get_up();
        if let Some(long) = look {
            eager.came(long, asleep.elapsed());
        }
        match rung {
            // What it wrote before it hung up counts.
            Ok((0, _)) if !self.end.is_there(wanted) => Err(hung_up()),
            Ok(_) => patience.is_left(),
            Err(error) => patience.is_left_after(error),
        }
    }
}
