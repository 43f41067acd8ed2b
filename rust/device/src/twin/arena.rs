//! A twin's memory, and what else its engine may address.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::{Arc, Weak};

use memcache_memory::{Segment, SegmentOptions};
use memcache_types::limits::SEGMENT_BYTES_MIN;
use parking_lot::Mutex;

use crate::address::{Copy, Direction, Space};
use crate::check::{check_batch, invalid};
use crate::device::{Allocation, DeviceCapabilities, DeviceId, HostRange, Keep, Reach};
use crate::error::DeviceError;
use crate::host::Block;

/// First device address of the arena of twin 0. No address of a process looks like this: following it is a fault.
const ARENA_BASE: u64 = 0x0d00_0000_0000_0000;
/// First address of reached memory.
const REACH_BASE: u64 = 0x0e00_0000_0000_0000;
/// Between the arenas of two twins.
const ARENA_STEP: u64 = 1 << 48;
/// Alignment of allocations, in bytes.
const ALIGN: u64 = 256;

#[derive(Debug)]
pub(super) struct Arena {
    id: DeviceId,
    segment: Segment,
    address: u64,
    align: u64,
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    /// Allocated ranges of the arena: offset to length.
    used: BTreeMap<u64, u64>,
    pinned: BTreeMap<u64, (u64, Weak<Block>)>,
    reached: BTreeMap<u64, (HostRange, Far, Weak<Reached>)>,
    next_reach: u64,
}

/// Whose memory is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Far {
    /// A host's, by its address.
    Host,
    /// Another twin's, over the link between them.
    Twin,
}

/// One copy as this process sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    source: *const u8,
    target: *mut u8,
    bytes: usize,
}

// SAFETY: addresses only; the queue that carries it out holds what keeps the memory.
unsafe impl Send for Move {}

impl Move {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The part of `bytes` bytes from `offset`.
    pub(super) fn part(&self, offset: usize, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes.saturating_sub(offset));
        Self { source: self.source.wrapping_add(offset), target: self.target.wrapping_add(offset), bytes }
    }

    /// Copies.
    ///
    /// # Safety
    /// What [`Arena::resolve`] held is still held, and `Queue::submit`'s contract for the copy.
    pub(super) unsafe fn run(&self) {
        // SAFETY: both ends were found inside memory that is held, and do not overlap by contract.
        unsafe { ptr::copy_nonoverlapping(self.source, self.target, self.bytes) }
    }
}

/// What is reached, while somebody holds it.
struct Reached {
    address: u64,
    books: Arc<Mutex<Books>>,
    _keep: Keep,
}

impl std::fmt::Debug for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reached({:#x})", self.address)
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        self.books.lock().reached.remove(&self.address);
    }
}

/// A range of the arena, freed when dropped.
struct Range {
    offset: u64,
    books: Arc<Mutex<Books>>,
    _arena: Arc<Arena>,
}

impl Drop for Range {
    fn drop(&mut self) {
        self.books.lock().used.remove(&self.offset);
    }
}

impl Arena {
    pub(super) fn new(id: DeviceId, bytes: u64, align: u64) -> Result<Self, DeviceError> {
        let options = SegmentOptions { huge_pages: false, prefault: false };
        let segment = Segment::create(bytes.max(SEGMENT_BYTES_MIN), &options).map_err(|error| {
            DeviceError::NoMemory { device: id.to_string(), bytes, what: "device memory", why: error.to_string() }
        })?;
        let address = ARENA_BASE + u64::from(id.ordinal & 0xff) * ARENA_STEP;
        Ok(Self { id, segment, address, align: align.max(ALIGN), books: Arc::default() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.segment.fd()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segment.bytes()
    }

    /// Where an allocation lies in the arena; `None` if it is no such thing.
    pub(super) fn offset_of(&self, memory: &Allocation) -> Option<u64> {
        self.own(&self.books.lock(), memory.address(), memory.bytes())?;
        memory.address().checked_sub(self.address)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.books.lock().used.values().sum()
    }

    /// First fit.
    pub(super) fn allocate(arena: &Arc<Self>, bytes: u64) -> Result<Allocation, DeviceError> {
        let length = bytes.max(1).next_multiple_of(arena.align);
        let mut books = arena.books.lock();
        let mut offset = 0;
        for (start, used) in &books.used {
            if start - offset >= length {
                break;
            }
            offset = start + used;
        }
        if offset.checked_add(length).is_none_or(|end| end > arena.segment.bytes()) {
            let used: u64 = books.used.values().sum();
            let why = format!("{used} of {} bytes are in use", arena.segment.bytes());
            return Err(DeviceError::NoMemory { device: arena.id.to_string(), bytes, what: "device memory", why });
        }
        books.used.insert(offset, length);
        let range = Range { offset, books: Arc::clone(&arena.books), _arena: Arc::clone(arena) };
        Ok(Allocation::new(Space::Device, arena.address + offset, bytes, Arc::new(range)))
    }

    pub(super) fn allocate_pinned(&self, bytes: u64) -> Result<Allocation, DeviceError> {
        let block = Arc::new(Block::new(&self.id.to_string(), bytes)?);
        let mut books = self.books.lock();
        books.pinned.retain(|_, (_, block)| block.strong_count() > 0);
        books.pinned.insert(block.address(), (bytes, Arc::downgrade(&block)));
        Ok(Allocation::new(Space::Pinned, block.address(), bytes, block))
    }

    pub(super) fn reach(&self, range: HostRange, far: Far, keep: Keep) -> Reach {
        let mut books = self.books.lock();
        let address = REACH_BASE + books.next_reach;
        books.next_reach += range.bytes.next_multiple_of(1 << 21) + (1 << 21);
        let reached = Arc::new(Reached { address, books: Arc::clone(&self.books), _keep: keep });
        books.reached.insert(address, (range, far, Arc::downgrade(&reached)));
        Reach::new(address, range.bytes, reached)
    }

    /// The copies of a batch as this process sees them, and what must be held until they are over.
    pub(super) fn resolve(
        &self,
        limits: &DeviceCapabilities,
        direction: Direction,
        copies: &[Copy],
    ) -> Result<(Vec<Move>, Vec<Keep>), DeviceError> {
        check_batch(self.id, limits, direction, copies)?;
        let mut held: Vec<Keep> = Vec::new();
        let books = self.books.lock();
        let moves = copies.iter().enumerate().map(|(index, copy)| {
            let (source, target) = match direction {
                Direction::HostToDevice => (Self::pinned(&books, copy.source, copy.bytes, &mut held), None),
                Direction::PeerToDevice | Direction::LinkToDevice => {
                    (Self::reached(&books, far(direction), copy.source, copy.bytes, &mut held), None)
                }
                Direction::DeviceToHost => (None, Self::pinned(&books, copy.target, copy.bytes, &mut held)),
                Direction::DeviceToPeer | Direction::DeviceToLink => {
                    (None, Self::reached(&books, far(direction), copy.target, copy.bytes, &mut held))
                }
                Direction::Local => (None, None),
            };
            let foreign_source =
                matches!(direction, Direction::HostToDevice | Direction::PeerToDevice | Direction::LinkToDevice);
            let foreign_target =
                matches!(direction, Direction::DeviceToHost | Direction::DeviceToPeer | Direction::DeviceToLink);
            let source = if foreign_source { source } else { self.own(&books, copy.source, copy.bytes) };
            let target = if foreign_target { target } else { self.own(&books, copy.target, copy.bytes) };
            let missing = |what: &str, address: u64| {
                let why = format!("{what} {address:#x}..+{} is no memory of this kind", copy.bytes);
                invalid(self.id, direction, index, why)
            };
            let source = source.ok_or_else(|| missing("source", copy.source))?;
            let target = target.ok_or_else(|| missing("target", copy.target))?;
            let bytes = usize::try_from(copy.bytes).map_err(|_| missing("length of", copy.source))?;
            Ok(Move { source: source.cast_const(), target, bytes })
        });
        let moves = moves.collect::<Result<Vec<_>, _>>()?;
        Ok((moves, held))
    }

    /// An address inside one live allocation.
    fn own(&self, books: &Books, address: u64, bytes: u64) -> Option<*mut u8> {
        let offset = address.checked_sub(self.address)?;
        let (start, length) = books.used.range(..=offset).next_back()?;
        let end = offset.checked_add(bytes)?;
        if end > start + length {
            return None;
        }
        Some(self.segment.base().as_ptr().wrapping_add(usize::try_from(offset).ok()?))
    }

    fn pinned(books: &Books, address: u64, bytes: u64, held: &mut Vec<Keep>) -> Option<*mut u8> {
        let (start, (length, block)) = books.pinned.range(..=address).next_back()?;
        hold(held, block)?;
        if address.checked_add(bytes)? > start + length {
            return None;
        }
        Some(ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?))
    }

    fn reached(books: &Books, far: Far, address: u64, bytes: u64, held: &mut Vec<Keep>) -> Option<*mut u8> {
        let (start, (range, kind, reached)) = books.reached.range(..=address).next_back()?;
        if *kind != far {
            return None;
        }
        hold(held, reached)?;
        let offset = address - start;
        if offset.checked_add(bytes)? > range.bytes {
            return None;
        }
        Some(range.base.as_ptr().wrapping_add(usize::try_from(offset).ok()?))
    }

    pub(super) fn plant(&self, address: u64, bytes: &[u8]) {
        self.view(address, bytes.len()).write_from(bytes);
    }

    pub(super) fn inspect(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        self.view(address, bytes).read_into(&mut found);
        found
    }

    fn view(&self, address: u64, bytes: usize) -> memcache_memory::RawRegion<'_> {
        assert!(
            self.own(&self.books.lock(), address, bytes as u64).is_some(),
            "{address:#x}..+{bytes} is not allocated"
        );
        self.segment.region().sub(address - self.address, bytes as u64).expect("inside an allocation")
    }
}

/// Whose memory the other end of a copy is.
fn far(direction: Direction) -> Far {
    match direction {
        Direction::LinkToDevice | Direction::DeviceToLink => Far::Twin,
        _ => Far::Host,
    }
}

/// Holds a thing, once; `None` if it is gone. Never drops one: that would take the lock that the caller holds.
fn hold<T: std::any::Any + Send + Sync>(held: &mut Vec<Keep>, thing: &Weak<T>) -> Option<()> {
    if !held.last().is_some_and(|last| ptr::addr_eq(Arc::as_ptr(last), thing.as_ptr())) {
        held.push(thing.upgrade()?);
    }
    Some(())
}
