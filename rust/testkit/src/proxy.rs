//! A door between a client and a TCP server that does something bad to the bytes, at a chosen place of the stream.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::rng::Rng;

/// How often a thread of the proxy looks whether it shall end.
const TICK: Duration = Duration::from_millis(10);

/// What happens to a connection when the byte it is about is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// Nothing.
    Pass,
    /// Both sides are hung up on.
    Cut,
    /// This direction ends; the other lives on.
    Truncate,
    /// One bit of the byte changes.
    Flip(u8),
    /// This many bytes come twice.
    Repeat(usize),
    /// This many bytes get lost.
    Lose(usize),
    /// This many bytes and as many after them change places.
    Swap(usize),
    /// Nothing passes for a while.
    Stall(Duration),
    /// Nothing passes any more, and nobody hangs up.
    Silence,
    /// The server is hung up on, and the client does not hear of it.
    HalfOpen,
    /// The connection is accepted and leads nowhere.
    NeverAnswer,
}

/// One piece of mischief.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which connection, counted from 0 in the order of their opening; the others pass.
    pub connection: usize,
    /// Whether it happens to what the server sends, rather than to what it gets.
    pub on_replies: bool,
    /// After how many bytes of that direction.
    pub at: usize,
    /// What.
    pub mischief: Mischief,
}

impl Plan {
    /// Some mischief within the first `reach` bytes of one of `connections` connections, often near the start, where
    /// the headers are.
    pub fn random(rng: &mut Rng, connections: usize, reach: usize, stall: Duration) -> Self {
        let some = 1 + rng.index(200);
        let mischief = match rng.index(12) {
            0 | 1 => Mischief::Cut,
            2 => Mischief::Truncate,
            3 | 4 => Mischief::Flip(1 << rng.index(8)),
            5 => Mischief::Repeat(some),
            6 => Mischief::Lose(some),
            7 => Mischief::Swap(some),
            8 => Mischief::Stall(stall * u32::try_from(rng.index(8)).unwrap_or(0) / 4),
            9 => Mischief::Silence,
            10 => Mischief::HalfOpen,
            _ => Mischief::NeverAnswer,
        };
        let at = if rng.below(2) == 0 { rng.index(400) } else { rng.index(reach.max(1)) };
        Self { connection: rng.index(connections), on_replies: rng.below(2) == 0, at, mischief }
    }
}

/// What the threads of a door share.
#[derive(Debug, Default)]
struct State {
    /// The door is closing.
    over: AtomicBool,
    /// The mischief happened.
    struck: AtomicBool,
    /// What the server says and what the client hears instead, of the same length.
    instead: Vec<(String, String)>,
}

impl State {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// A listening door. Closed, with all its threads, when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Opens a door to `server`.
    pub fn start(server: &str, plan: Plan) -> std::io::Result<Self> {
        Self::start_with(server, plan, Vec::new())
    }

    /// Opens a door to `server` that also replaces texts in what the server sends, each by one as long: so that a
    /// client that asks for an address gets that of another door. A text cut in two by chance stays as it is.
    pub fn start_with(server: &str, plan: Plan, instead: Vec<(String, String)>) -> std::io::Result<Self> {
        assert!(instead.iter().all(|(old, new)| old.len() == new.len()), "other lengths: {instead:?}");
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, state) = (listener.local_addr()?, Arc::new(State { instead, ..State::default() }));
        let (server, ours) = (server.to_owned(), Arc::clone(&state));
        let acceptor = thread::spawn(move || {
            let (mut threads, number) = (Vec::new(), AtomicUsize::new(0));
            while let Ok((client, _)) = listener.accept() {
                if ours.is_over() {
                    break;
                }
                let number = number.fetch_add(1, Ordering::Relaxed);
                let plan = (number == plan.connection).then_some(plan);
                let (server, state) = (server.clone(), Arc::clone(&ours));
                threads.push(thread::spawn(move || carry(&client, &server, plan, &state)));
            }
            for thread in threads {
                let _ = thread.join();
            }
        });
        Ok(Self { address, state, acceptor: Some(acceptor) })
    }

    /// Where it is.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether the mischief has happened: the place of the stream it is about was reached.
    pub fn has_struck(&self) -> bool {
        self.state.struck.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Release);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn carry(client: &TcpStream, server: &str, plan: Option<Plan>, state: &State) {
    if plan.is_some_and(|plan| plan.mischief == Mischief::NeverAnswer) {
        state.struck.store(true, Ordering::Release);
        while !state.is_over() {
            thread::sleep(TICK);
        }
        return;
    }
    let Ok(server) = TcpStream::connect(server) else { return };
    let quiet = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| pump(client, &server, plan.filter(|plan| !plan.on_replies), state, (&quiet, false)));
        pump(&server, client, plan.filter(|plan| plan.on_replies), state, (&quiet, true));
    });
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

/// Passes bytes on until either side ends, doing what the plan says. `quiet`: nothing passes any more, either way.
fn pump(
    mut from: &TcpStream,
    mut to: &TcpStream,
    plan: Option<Plan>,
    state: &State,
    (quiet, are_replies): (&AtomicBool, bool),
) {
    let _ = (from.set_read_timeout(Some(TICK)), to.set_write_timeout(Some(TICK)));
    let (mut passed, mut plan, mut buffer) = (0, plan, vec![0; 64 << 10]);
    let is_over = || state.is_over();
    while !is_over() {
        if quiet.load(Ordering::Acquire) {
            thread::sleep(TICK);
            continue;
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        let mut bytes = buffer[..read].to_vec();
        if are_replies {
            replace(&mut bytes, &state.instead);
        }
        if let Some(Plan { at, mischief, on_replies, .. }) = plan
            && at < passed + read
        {
            plan = None;
            state.struck.store(true, Ordering::Release);
            let server = if on_replies { from } else { to };
            if !meddle(&mut bytes, at - passed, mischief, (from, to, server), &is_over, quiet) {
                let _ = to.write_all(&bytes);
                break;
            }
        }
        passed += read;
        let mut rest = &bytes[..];
        while !rest.is_empty() && !is_over() {
            match to.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn replace(bytes: &mut [u8], instead: &[(String, String)]) {
    for (old, new) in instead {
        for at in 0..(bytes.len() + 1).saturating_sub(old.len()) {
            if bytes[at..].starts_with(old.as_bytes()) {
                bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
            }
        }
    }
}

/// Does it; false if this direction ends with what `bytes` holds then.
fn meddle(
    bytes: &mut Vec<u8>,
    at: usize,
    mischief: Mischief,
    (from, to, server): (&TcpStream, &TcpStream, &TcpStream),
    is_over: &dyn Fn() -> bool,
    quiet: &AtomicBool,
) -> bool {
    let end = |length: usize| (at + length).min(bytes.len());
    match mischief {
        Mischief::Pass | Mischief::NeverAnswer => {}
        Mischief::Flip(bits) => bytes[at] ^= bits,
        Mischief::Repeat(length) => {
            let again = bytes[at..end(length)].to_vec();
            bytes.splice(at..at, again);
        }
        Mischief::Lose(length) => drop(bytes.drain(at..end(length))),
        Mischief::Swap(length) => {
            let (middle, end) = (end(length), end(2 * length));
            bytes[at..end].rotate_left(middle - at);
        }
        Mischief::Stall(pause) => {
            let mut left = pause;
            while !left.is_zero() && !is_over() {
                thread::sleep(left.min(TICK));
                left = left.saturating_sub(TICK);
            }
        }
        Mischief::Cut => {
            bytes.truncate(at);
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return false;
        }
        Mischief::Truncate => {
            bytes.truncate(at);
            return false;
        }
        Mischief::Silence | Mischief::HalfOpen => {
            bytes.truncate(at);
            quiet.store(true, Ordering::Release);
            if mischief == Mischief::HalfOpen {
                let _ = server.shutdown(Shutdown::Both);
            }
        }
    }
    true
}
