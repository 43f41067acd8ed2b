//! Which object goes first.
//!
//! A [`Policy`] looks at every use of an object and gives it a [`Mark`]. Each segment keeps its idle objects on
//! [`Shelves`], by class of mark and by time of last use, and the policy picks the next victim from them. So victims
//! can be asked for of any one segment, and what a policy learns, it learns from the whole book.
//!
//! Pure and deterministic as all of the core: the time is handed in, and what is sampled depends on the hash of the key.
//! `docs/eviction.md` says what the policies do and how well.

mod adaptive;
mod ghosts;
mod hazard;
mod lru;
mod order;
mod s3fifo;
mod shelves;
mod tracker;

use memcache_config::EvictionPolicy;

use self::adaptive::Adaptive;
use self::lru::Lru;
use self::s3fifo::S3Fifo;
pub(super) use self::shelves::{Shelved, Shelves};

use super::Millis;
use super::slab::{Slab, Slot};

/// What a policy remembers of one object: a number of [`MARK_BITS`] bits whose meaning is the policy's own.
pub(super) type Mark = u16;

/// Length of a [`Mark`].
pub(super) const MARK_BITS: u32 = 12;

/// Greatest [`Mark`].
const MARK_MAX: Mark = (1 << MARK_BITS) - 1;

/// The order in which victims of several segments go: the least first.
pub(super) type Rank = (u64, u64);

/// A use of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    pub(super) now: Millis,
    /// Hash of the key.
    pub(super) hash: u64,
    /// Length of the extent.
    pub(super) bytes: u64,
    /// Readable keys of the book.
    pub(super) keys: u64,
}

/// Decides who goes first.
pub(super) trait Policy {
    /// The mark of an object that has become readable.
    fn sealed(&mut self, seal: Use) -> Mark;

    /// The mark of an object that was read, matched or put again. Uses of one second come as one.
    fn used(&mut self, usage: Use, mark: Mark) -> Mark;

    /// An object was evicted.
    fn evicted(&mut self, eviction: Use, mark: Mark);

    /// What the pool lends, in bytes.
    fn lent(&mut self, bytes: u64);

    /// The shelf for objects of a mark.
    fn shelf_of(mark: Mark) -> usize;

    /// Whether a use moves an object to the newest end of its shelf.
    const MOVES: bool;

    /// Whether age matters to it beyond the order of use.
    const AGES: bool;

    /// The next victim among objects of one segment.
    fn victim<T: Shelved>(
        &mut self,
        now: Millis,
        shelves: &mut Shelves<T>,
        slab: &mut Slab<T>,
    ) -> Option<(Rank, Slot<T>)>;

    /// The objects of one segment in the order in which they would be its victims now, all without moving any.
    fn order<'a, T: Shelved>(
        &'a self,
        now: Millis,
        shelves: &'a Shelves<T>,
        slab: &'a Slab<T>,
    ) -> impl Iterator<Item = Slot<T>> + 'a;
}

/// One of the policies.
#[derive(Debug)]
pub(super) enum AnyPolicy {
    Lru(Lru),
    S3Fifo(S3Fifo),
    Adaptive(Box<Adaptive>),
}

macro_rules! each {
    ($self:expr, $policy:ident => $do:expr) => {
        match $self {
            Self::Lru($policy) => $do,
            Self::S3Fifo($policy) => $do,
            Self::Adaptive($policy) => $do,
        }
    };
}

impl AnyPolicy {
    pub(super) fn new(which: EvictionPolicy) -> Self {
        match which {
            EvictionPolicy::Lru => Self::Lru(Lru),
            EvictionPolicy::S3Fifo => Self::S3Fifo(S3Fifo::default()),
            EvictionPolicy::Adaptive => Self::Adaptive(Box::default()),
        }
    }

    /// Shelves that suit this policy.
    pub(super) fn shelves<T: Shelved>(&self) -> Shelves<T> {
        fn of<P: Policy, T: Shelved>(_: &P) -> Shelves<T> {
            Shelves::new(P::shelf_of, P::AGES)
        }
        match self {
            Self::Lru(policy) => of(policy),
            Self::S3Fifo(policy) => of(policy),
            Self::Adaptive(policy) => of(policy.as_ref()),
        }
    }

    pub(super) fn sealed(&mut self, seal: Use) -> Mark {
        each!(self, policy => policy.sealed(seal))
    }

    pub(super) fn used(&mut self, usage: Use, mark: Mark) -> Mark {
        each!(self, policy => policy.used(usage, mark))
    }

    pub(super) fn evicted(&mut self, eviction: Use, mark: Mark) {
        each!(self, policy => policy.evicted(eviction, mark));
    }

    pub(super) fn lent(&mut self, bytes: u64) {
        each!(self, policy => policy.lent(bytes));
    }

    /// Whether a use moves an object to the newest end of its shelf.
    pub(super) const fn moves(&self) -> bool {
        match self {
            Self::Lru(_) => Lru::MOVES,
            Self::S3Fifo(_) => S3Fifo::MOVES,
            Self::Adaptive(_) => Adaptive::MOVES,
        }
    }

    pub(super) fn victim<T: Shelved>(
        &mut self,
        now: Millis,
        shelves: &mut Shelves<T>,
        slab: &mut Slab<T>,
    ) -> Option<(Rank, Slot<T>)> {
        each!(self, policy => policy.victim(now, shelves, slab))
    }

    /// The objects of one segment in the order in which they would be its victims now, all without moving any.
    pub(super) fn order<'a, T: Shelved>(
        &'a self,
        now: Millis,
        shelves: &'a Shelves<T>,
        slab: &'a Slab<T>,
    ) -> Box<dyn Iterator<Item = Slot<T>> + 'a> {
        each!(self, policy => Box::new(policy.order(now, shelves, slab)))
    }
}
