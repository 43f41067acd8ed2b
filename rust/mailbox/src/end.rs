//! One end of a mailbox.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use rustix::thread::sched_getcpu;

use crate::RING_BYTES;
use crate::error::MailboxError;
use crate::memory::{Memory, Way, Word};

/// What an end may sleep for, and what the other end changes: a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Change(u64);

impl Change {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// There are bytes to read.
    pub const BYTES: Self = Self(1);
    /// There is room to write.
    pub const ROOM: Self = Self(2);

    /// Either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether this has any part of another.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// One end: writes to one ring, reads from the other. One thread at a time.
#[derive(Debug)]
pub struct End {
    memory: Memory,
    /// Which way what is read here comes.
    reads: Way,
    writes: Way,
    /// Bytes written and read here since the beginning. The other end is told, but what it could make of the words in
    /// the shared memory means nothing.
    written: u64,
    read: u64,
    /// What was left to read, and to take up, when it was looked at last: the words are only looked at when needed, for
    /// every look at a word that the other end has just written fetches it from the other processor.
    known_written: u64,
    known_read: u64,
}

impl End {
    /// The service's end of a new mailbox, and the memory to hand to its client.
    pub fn create() -> Result<(OwnedFd, Self), MailboxError> {
        let (fd, memory) = Memory::create()?;
        Ok((fd, Self::new(memory, Way::ToService, Way::ToClient)))
    }

    /// The client's end of a mailbox that a service handed over.
    pub fn attach(fd: &impl AsFd) -> Result<Self, MailboxError> {
        Ok(Self::new(Memory::attach(fd.as_fd())?, Way::ToClient, Way::ToService))
    }

    const fn new(memory: Memory, reads: Way, writes: Way) -> Self {
        Self { memory, reads, writes, written: 0, read: 0, known_written: 0, known_read: 0 }
    }

    /// Writes what there is room for, and says how many bytes that was.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, MailboxError> {
        let mut count = bytes.len().min(self.room()?);
        if count < bytes.len() {
            self.known_read = self.memory.word(Word::Read(self.writes)).load(Ordering::Acquire);
            count = bytes.len().min(self.room()?);
        }
        if count > 0 {
            self.memory.copy_in(self.writes, self.written, &bytes[..count]);
            self.written += count as u64;
            self.memory.word(Word::Written(self.writes)).store(self.written, Ordering::Release);
        }
        Ok(count)
    }

    /// Reads what is there, at most `target.len()` bytes, and says how many bytes that was.
    pub fn read(&mut self, target: &mut [u8]) -> Result<usize, MailboxError> {
        if self.known_written == self.read {
            self.known_written = self.memory.word(Word::Written(self.reads)).load(Ordering::Acquire);
        }
        let count = target.len().min(in_ring(self.known_written, self.read)?);
        if count > 0 {
            self.memory.copy_out(self.reads, self.read, &mut target[..count]);
            self.read += count as u64;
            self.memory.word(Word::Read(self.reads)).store(self.read, Ordering::Release);
        }
        Ok(count)
    }

    fn room(&self) -> Result<usize, MailboxError> {
        Ok(RING_BYTES - in_ring(self.written, self.known_read)?)
    }

    /// Whether any of this is so now. What the other end claims may be nonsense; reading or writing tells.
    pub fn is_there(&self, wanted: Change) -> bool {
        let bytes = || self.memory.word(Word::Written(self.reads)).load(Ordering::Acquire) != self.read;
        let room = || {
            let read = self.memory.word(Word::Read(self.writes)).load(Ordering::Acquire);
            self.written.wrapping_sub(read) != RING_BYTES as u64
        };
        (wanted.has(Change::BYTES) && bytes()) || (wanted.has(Change::ROOM) && room())
    }

    /// Says that this end is going to wait on its socket, and for what. False: some of that is there already, and
    /// nothing was said. After true the other end rings when it changes any of it.
    pub fn lie_down(&self, wanted: Change) -> bool {
        let asleep = self.memory.word(Word::Asleep(self.reads));
        asleep.store(wanted.0, Ordering::Relaxed);
        // Here the word comes before the look at the rings, in `must_ring` the change of a ring before the look at the
        // word, with a fence between them each: whichever end is later sees what the other did.
        fence(Ordering::SeqCst);
        if self.is_there(wanted) {
            self.get_up();
            return false;
        }
        true
    }

    /// Whether the other end waits on its socket.
    pub fn is_peer_asleep(&self) -> bool {
        self.memory.word(Word::Asleep(self.writes)).load(Ordering::Relaxed) != 0
    }

    /// Says that this end does not wait any more.
    pub fn get_up(&self) {
        self.memory.word(Word::Asleep(self.reads)).store(0, Ordering::Relaxed);
    }

    /// Tells which processor this end runs on, and says whether the other end ran there last. Then it waits for this end to
    /// stop: to look for what it may do would be in its way.
    pub fn shares_processor(&self) -> bool {
        let here = sched_getcpu() as u64 + 1;
        let own = self.memory.word(Word::Processor(self.reads));
        if own.load(Ordering::Relaxed) != here {
            own.store(here, Ordering::Relaxed);
        }
        self.memory.word(Word::Processor(self.writes)).load(Ordering::Relaxed) == here
    }

    /// Whether the other end sleeps for what was just changed here: it must be rung for, which this says only once.
    #[must_use]
    pub fn must_ring(&self, changed: Change) -> bool {
        let asleep = self.memory.word(Word::Asleep(self.writes));
        fence(Ordering::SeqCst); // see `lie_down`
        Change(asleep.load(Ordering::Relaxed)).has(changed) && asleep.swap(0, Ordering::Relaxed) != 0
    }
}

/// Bytes in a ring.
fn in_ring(written: u64, read: u64) -> Result<usize, MailboxError> {
    let claimed = written.wrapping_sub(read);
    usize::try_from(claimed)
        .ok()
        .filter(|bytes| *bytes <= RING_BYTES)
        .ok_or(MailboxError::Corrupt { claimed, limit: RING_BYTES as u64 })
}
