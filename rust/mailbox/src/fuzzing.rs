//! A door for the fuzzer (`fuzz/`): an end of a mailbox beside another that changes the shared memory just before any
//! touch of it, as the input says. The kept corpus is replayed by a test of this module.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use crate::memory::{Memory, Way, Word};
use crate::{Change, End, MailboxError, RING_BYTES};

/// Most touches of shared memory that one call makes.
const TOUCHES_MAX: usize = 8;
/// Room behind what may be read into.
const GUARD_BYTES: usize = 64;
const GUARD: u8 = 0xa5;

thread_local! {
    static OTHER: RefCell<Option<Other>> = const { RefCell::new(None) };
}

/// The other end's turn. What it touches itself does not interrupt it.
pub(crate) fn other_acts() {
    if let Some(mut other) = OTHER.take() {
        other.act();
        OTHER.set(Some(other));
    }
}

/// A hostile end, and the script that both ends follow: numbers and bytes from the front of the input, zeros after it.
struct Other {
    memory: Memory,
    script: Vec<u8>,
    at: usize,
    touches: usize,
    /// What it has put into the ring that the end under test reads from: nobody else may.
    puts: Way,
    put: Vec<u8>,
}

impl Other {
    fn byte(&mut self) -> u8 {
        let byte = self.script.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    /// Up to twice what a ring holds.
    fn number(&mut self) -> usize {
        2 * usize::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    fn act(&mut self) {
        self.touches += 1;
        let what = self.byte();
        let way = if what & 8 == 0 { Way::ToService } else { Way::ToClient };
        let word = match what >> 4 & 3 {
            0 => Word::Written(way),
            1 => Word::Read(way),
            2 => Word::Asleep(way),
            _ => Word::Processor(way),
        };
        match what & 7 {
            // A step that could be true, or goes back.
            4 => {
                let step = self.number() as u64;
                self.memory.word(word).fetch_add(step, Ordering::Relaxed);
            }
            5 => {
                let step = self.number() as u64;
                self.memory.word(word).fetch_sub(step, Ordering::Relaxed);
            }
            6 => {
                let wild = [(); 8].map(|()| self.byte());
                self.memory.word(word).store(u64::from_le_bytes(wild), Ordering::Relaxed);
            }
            7 => self.scribble(way),
            _ => {}
        }
    }

    fn scribble(&mut self, way: Way) {
        let place = self.number() % RING_BYTES;
        let byte = self.byte();
        let bytes = vec![byte; usize::from(byte) * 16];
        self.memory.copy_in(way, place as u64, &bytes);
        if way == self.puts {
            for (offset, byte) in bytes.into_iter().enumerate() {
                self.put[(place + offset) % RING_BYTES] = byte;
            }
        }
    }
}

/// The next call of the end under test, while the script lasts.
fn next_call() -> Option<(u8, usize)> {
    OTHER.with_borrow_mut(|other| {
        let other = other.as_mut().filter(|other| other.at < other.script.len())?;
        other.touches = 0;
        let call = other.byte();
        Some((call, if call & 7 < 4 { other.number() } else { 0 }))
    })
}

/// Calls of either end, and what the other does meanwhile. Panics when one hands out more than a ring holds, touches what
/// it should not, or goes on for ever.
///
/// # Panics
/// As above.
pub fn mailbox(input: &[u8]) {
    let (fd, service) = End::create().expect("memory");
    let is_service = input.first().is_none_or(|first| first & 1 == 0);
    let mut end = if is_service { service } else { End::attach(&fd).expect("the same memory") };
    let puts = if is_service { Way::ToService } else { Way::ToClient };
    let memory = Memory::attach(std::os::fd::AsFd::as_fd(&fd)).expect("the same memory");
    let (script, put) = (input.to_vec(), vec![0; RING_BYTES]);
    OTHER.set(Some(Other { memory, script, at: 1, touches: 0, puts, put }));
    let mut target = vec![GUARD; 2 * RING_BYTES + GUARD_BYTES];
    let source = vec![0x5a; 2 * RING_BYTES];
    while let Some((call, bytes)) = next_call() {
        let wanted =
            [Change::BYTES, Change::ROOM, Change::NONE, Change::BYTES.or(Change::ROOM)][usize::from(call >> 3 & 3)];
        match call & 7 {
            0 | 1 => within(end.write(&source[..bytes]), bytes),
            2 | 3 => {
                let read = end.read(&mut target[..bytes]);
                let count = *read.as_ref().unwrap_or(&0);
                within(read, bytes);
                assert!(target[count..][..GUARD_BYTES].iter().all(|byte| *byte == GUARD), "a byte too many");
                target[..count].fill(GUARD);
            }
            4 => drop(end.is_there(wanted)),
            5 if end.lie_down(wanted) => end.get_up(),
            6 => drop(end.must_ring(wanted)),
            _ => drop((end.is_peer_asleep(), end.shares_processor())),
        }
        let touches = OTHER.with_borrow(|other| other.as_ref().map_or(0, |other| other.touches));
        assert!(touches <= TOUCHES_MAX, "{touches} touches in one call");
    }
    let other = OTHER.take().expect("it was put there");
    let mut ring = vec![0; RING_BYTES];
    other.memory.copy_out(puts, 0, &mut ring);
    assert!(ring == other.put, "the end wrote to the ring that it reads from");
}

fn within(moved: Result<usize, MailboxError>, asked: usize) {
    match moved {
        Ok(count) => assert!(count <= asked.min(RING_BYTES), "{count} bytes of {asked}"),
        Err(MailboxError::Corrupt { claimed, .. }) => assert!(claimed > RING_BYTES as u64, "{claimed} can be"),
        Err(other) => panic!("{other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Every input that is kept, in both roles, and with its end cut off and with a byte changed.
    #[test]
    fn the_kept_inputs_break_no_promise() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/mailbox");
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("a corpus") {
            let mut bytes = fs::read(entry.expect("an entry").path()).expect("an input can be read");
            for role in [0, 1] {
                bytes[0] = role;
                mailbox(&bytes);
                mailbox(&bytes[..bytes.len() / 2]);
            }
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 0x10;
            }
            mailbox(&bytes);
            inputs += 1;
        }
        assert!(inputs > 2, "only {inputs} inputs in {}", folder.display());
    }
}
