//! A lane through shared memory, where the service is on the same host.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use memcache_mailbox::{Change, End, check_peer, receive, ring};
use memcache_proto::MESSAGE_BYTES_MAX;
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
        check_peer(&stream)?;
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

    /// Writes all of this for the service, which is taken what it has written meanwhile: it may wait for that.
    pub(super) fn send(
        &mut self,
        bytes: &[u8],
        incoming: &mut Incoming,
        eager: &mut Eagerness,
        patience: &Patience<'_>,
    ) -> Result<(), Broken> {
        let (mut sent, mut has_waited) = (0, false);
        while sent < bytes.len() {
            let more = self.end.write(&bytes[sent..]).map_err(|error| broke(&error))?;
            if more == 0 {
                // What came was no room, or not enough: there may be no end to that.
                if std::mem::replace(&mut has_waited, true) {
                    patience.is_left()?;
                }
                if incoming.held() > MESSAGE_BYTES_MAX {
                    return Err(broke(&"the service says more than it was asked"));
                }
                self.wait(Change::ROOM.or(Change::BYTES), eager, patience)?;
                self.take(incoming)?;
                continue;
            }
            sent += more;
            if self.end.must_ring(Change::BYTES) {
                ring(&self.socket).map_err(|error| broke(&error))?;
            }
        }
        Ok(())
    }

    /// Whether a request now would have to wake the service, and there is room for one.
    pub(super) fn can_rouse(&self) -> bool {
        self.end.is_peer_asleep() && self.end.is_there(Change::ROOM)
    }

    /// Waits for what the service writes, and reads it. May end without any.
    pub(super) fn receive(
        &mut self,
        incoming: &mut Incoming,
        eager: &mut Eagerness,
        patience: &Patience<'_>,
    ) -> Result<(), Broken> {
        self.wait(Change::BYTES, eager, patience)?;
        self.take(incoming)
    }

    /// Reads what is there.
    pub(super) fn take(&mut self, incoming: &mut Incoming) -> Result<(), Broken> {
        let bytes = self.end.read(incoming.room()).map_err(|error| broke(&error))?;
        incoming.arrived(bytes);
        if bytes > 0 && self.end.must_ring(Change::ROOM) {
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
                if self.end.shares_processor() {
                    std::thread::yield_now();
                }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use memcache_mailbox::{RING_BYTES, pass};
    use memcache_proto::lane::{greeting as greet_with, push_frame};
    use memcache_proto::pb;

    use super::*;

    /// A service, played by the test: its end, its socket, and the memory itself.
    struct Service {
        end: End,
        socket: StdUnixStream,
        memory: OwnedFd,
    }

    fn both() -> (Mailbox, Service) {
        let (memory, end) = End::create().unwrap();
        let (here, socket) = StdUnixStream::pair().unwrap();
        here.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mailbox = Mailbox { end: End::attach(&memory).unwrap(), socket: here.into() };
        (mailbox, Service { end, socket, memory })
    }

    fn receive_within(mailbox: &mut Mailbox, long: Duration) -> Result<pb::Reply, Broken> {
        let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
        let patience = Patience::new(Instant::now() + long, &|| None);
        loop {
            if let Some(reply) = incoming.message().map_err(|error| broke(&error))? {
                return Ok(reply);
            }
            mailbox.receive(&mut incoming, &mut Eagerness::new(), &patience)?;
        }
    }

    #[test]
    fn a_service_that_claims_what_cannot_be_breaks_the_lane() {
        for word in [u64::MAX, 1 << 40, 70_000] {
            let (mut mailbox, service) = both();
            // Where the service says how much it has written.
            rustix::io::pwrite(&service.memory, &word.to_ne_bytes(), 128).unwrap();
            let broken = receive_within(&mut mailbox, Duration::from_secs(10));
            assert!(matches!(broken, Err(Broken::Interrupted(_))), "{word}: {broken:?}");
        }
    }

    #[test]
    fn rings_without_bytes_do_not_keep_a_caller_past_its_deadline() {
        let (mut mailbox, mut service) = both();
        service.socket.set_nonblocking(true).unwrap();
        while service.socket.write(&[1; 4096]).is_ok() {}
        let late = receive_within(&mut mailbox, Duration::from_millis(50));
        assert!(matches!(late, Err(Broken::Late)), "{late:?}");
    }

    #[test]
    fn a_service_that_dies_is_noticed_after_its_last_words() {
        let (mut mailbox, mut service) = both();
        let mut frames = Vec::new();
        assert!(push_frame(&greet_with(7), &mut frames));
        service.end.write(&frames).unwrap();
        drop(service);
        assert_eq!(receive_within(&mut mailbox, Duration::from_secs(10)).unwrap().epoch, 7);
        let over = receive_within(&mut mailbox, Duration::from_secs(10));
        assert!(matches!(over, Err(Broken::Interrupted(_))), "{over:?}");
    }

    #[test]
    fn a_service_that_takes_nothing_ends_a_long_request_at_its_deadline() {
        let (mut mailbox, service) = both();
        let patience = Patience::new(Instant::now() + Duration::from_millis(50), &|| None);
        let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
        let late = mailbox.send(&vec![0; 200_000], &mut incoming, &mut Eagerness::new(), &patience);
        assert!(matches!(late, Err(Broken::Late)), "{late:?}");
        drop(service);
    }

    /// A long request to a service that says so much at a time for as long as somebody listens, and takes nothing.
    fn send_to_a_talker(bytes_at_once: usize, within: Duration) -> Broken {
        let (mut mailbox, mut service) = both();
        let until = Instant::now() + Duration::from_secs(20);
        let is_over = AtomicBool::new(false);
        let talk = || {
            while !is_over.load(Ordering::Acquire) {
                assert!(Instant::now() < until, "the caller listens for ever");
                service.end.write(&vec![7; bytes_at_once]).unwrap();
                if service.end.must_ring(Change::BYTES) {
                    ring(&service.socket).unwrap();
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(talk);
            let patience = Patience::new(Instant::now() + within, &|| None);
            let mut incoming = Incoming::new(MESSAGE_BYTES_MAX);
            let sent = mailbox.send(&vec![0; 200_000], &mut incoming, &mut Eagerness::new(), &patience);
            is_over.store(true, Ordering::Release);
            assert!(incoming.held() <= MESSAGE_BYTES_MAX + RING_BYTES, "{}", incoming.held());
            sent.unwrap_err()
        })
    }

    #[test]
    fn a_service_that_talks_and_takes_nothing_ends_a_long_request() {
        let late = send_to_a_talker(1, Duration::from_millis(50));
        assert!(matches!(late, Broken::Late), "{late:?}");
        let talked_over = send_to_a_talker(RING_BYTES, Duration::from_secs(3600));
        assert!(matches!(talked_over, Broken::Interrupted(_)), "{talked_over:?}");
    }

    /// What a stranger offers under the name of a service.
    fn offered(by: impl FnOnce(StdUnixStream) + Send + 'static) -> io::Result<Mailbox> {
        let (here, mut there) = StdUnixStream::pair().unwrap();
        let stranger = std::thread::spawn(move || {
            let mut preface = [0; MAILBOX_PREFACE.len()];
            there.read_exact(&mut preface).unwrap();
            assert_eq!(preface, *MAILBOX_PREFACE);
            by(there);
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mailbox = runtime.block_on(async {
            here.set_nonblocking(true)?;
            tokio::time::timeout(Duration::from_secs(10), Mailbox::open(UnixStream::from_std(here)?, 7)).await?
        });
        stranger.join().unwrap();
        mailbox
    }

    fn hello(epoch: u64) -> Vec<u8> {
        let mut hello = Vec::new();
        assert!(push_frame(&greet_with(epoch), &mut hello));
        hello
    }

    #[test]
    fn only_a_mailbox_of_this_life_of_the_service_is_taken() {
        let memory = || End::create().unwrap().0;
        assert!(offered(move |to| pass(&to, &hello(7), &memory()).unwrap()).is_ok());
        assert!(offered(move |to| pass(&to, &hello(8), &memory()).unwrap()).is_err(), "another life");
        assert!(offered(|mut to| to.write_all(&hello(7)).unwrap()).is_err(), "no memory");
        assert!(offered(drop).is_err(), "a service that knows no mailboxes");
        let file = || std::fs::File::open("/proc/self/exe").unwrap();
        assert!(offered(move |to| pass(&to, &hello(7), &file()).unwrap()).is_err(), "no mailbox's memory");
    }
}
