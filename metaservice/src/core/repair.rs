//! Keys get back the replicas that they lack, in the background: the core knows which key lacks how many, and hands
//! copies out to nodes that ask for work and have room. A copy is a reservation as any other; it becomes a replica only
//! beside one that it was made of.

use std::collections::VecDeque;
use std::num::NonZeroU64;

use memcache_types::{ClientId, Incarnation, LeaseId, NodeId, extent_bytes};

use super::Core;
use super::clock::Millis;
use super::effect::Effect;
use super::index::Entry;
use super::limits::{
    CALL_ENDED_MAX, COPIES_MAX, REPAIRS_MAX, REPLY_COPIES_MAX, REPLY_REPAIRS_SEEN_MAX, TICK_KEYS_SEEN_MAX,
};
use super::list::Links;
use super::lookup::Found;
use super::node::Node;
use super::object::Object;
use super::record::Held;
use super::refusal::Refusal;
use super::reserve::{Reservation, Ticket};
use super::segment::Segment;
use super::slab::Slot;

/// Keys that lack replicas, longest waiting first.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// An entry may be gone, and its slot another's, by the time it is looked at: its mark tells.
    queue: VecDeque<Slot<Entry>>,
    /// Keys whose copy was given up, by when they get in line again: where a source is damaged the next try may fail, too.
    later: VecDeque<(Millis, Slot<Entry>)>,
    /// Where a walk through all entries has come, while there is one.
    walk: Option<usize>,
    /// Copies that became replicas.
    pub(super) copied: u64,
}

impl Repairs {
    /// How many keys wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.later.len()
    }
}

/// One copy to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyTask {
    /// Where it goes; to be sealed or given back as any ticket.
    pub ticket: Ticket,
    /// Of which key.
    pub key: Box<[u8]>,
    /// Replicas to copy from: any will do.
    pub sources: Vec<Found>,
    /// Records to clear before the first byte is written, in the ticket's segment.
    pub clears: Vec<u64>,
    /// The put that the bytes come from, and how many replicas the key should have: for the record.
    pub origin: u64,
    /// See `origin`.
    pub wanted: usize,
}

/// What there is to do for a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkReply {
    /// Copies to make into its own memory.
    pub tasks: Vec<CopyTask>,
    /// The lease on all their sources.
    pub lease: Option<LeaseId>,
    /// Keys that still lack replicas; some of them may find no room anywhere.
    pub waiting: u64,
}

impl Core {
    /// A replica of a key came or went, or a writer of it is done: it gets in line if it lacks any.
    pub(super) fn restore(&mut self, entry: Slot<Entry>) {
        if !self.lacks(entry) || self.index.get(entry).is_queued() {
            return;
        }
        if self.repairs.queue.len() >= REPAIRS_MAX {
            // It will be found by a walk.
            self.repairs.walk.get_or_insert(0);
            return;
        }
        self.index.get_mut(entry).set_queued(true);
        self.repairs.queue.push_back(entry);
    }

    /// The copy of a key was given up by its maker: the next try has time.
    pub(super) fn defer_repair(&mut self, entry: Slot<Entry>) {
        if self.index.get(entry).is_queued() || self.repairs.later.len() >= REPAIRS_MAX {
            return;
        }
        self.index.get_mut(entry).set_queued(true);
        self.repairs.later.push_back((self.now.plus(self.settings.reservation_ttl_ms.into()), entry));
    }

    /// Keys whose copies were given up a while ago get in line.
    pub(super) fn resume_repairs(&mut self) {
        for _ in 0..CALL_ENDED_MAX {
            let Some((_, entry)) = self.repairs.later.front().copied().filter(|(from, _)| *from <= self.now) else {
                return;
            };
            self.repairs.later.pop_front();
            self.repairs.queue.push_back(entry);
        }
    }

    /// Whether a readable key has fewer replicas than it should. Nobody is bringing one.
    pub(super) fn lacks(&self, entry: Slot<Entry>) -> bool {
        let known = self.index.get(entry);
        known.object.is_some() && known.writers() == 0 && !self.is_void(entry) && self.lasting(entry) < known.wanted()
    }

    /// A replica was sealed.
    pub(super) fn settle(&mut self, entry: Slot<Entry>) {
        self.leave_draining(entry);
        self.restore(entry);
    }

    /// Goes on with the walk for keys that found no room in the line.
    pub(super) fn find_repairs(&mut self) {
        let Some(start) = self.repairs.walk.filter(|_| self.repairs.queue.len() < REPAIRS_MAX / 2) else { return };
        let (entries, next) = self.index.walk(start, TICK_KEYS_SEEN_MAX);
        let entries: Vec<_> = entries.collect();
        self.repairs.walk = next;
        for entry in entries {
            self.restore(entry);
        }
    }

    /// Whether there may be copies to make for a node.
    pub(super) fn has_work(&self, node: NodeId) -> bool {
        !self.repairs.queue.is_empty() || self.moves_wanted() || self.extras_asked_of(node)
    }

    /// A node asks for copies to make into its own memory: up to so many, of so many bytes together, but at least one
    /// if there is any.
    pub fn work(
        &mut self,
        now: Millis,
        client: ClientId,
        (node, incarnation): (NodeId, Incarnation),
        (tasks_max, bytes_max): (usize, u64),
        effects: &mut Vec<Effect>,
    ) -> Result<WorkReply, Refusal> {
        self.advance(now, effects);
        self.check_incarnation(node, incarnation)?;
        let mut reply = WorkReply::default();
        let known = self.node_ids.get(&node).copied().filter(|slot| self.nodes[*slot].incarnation == incarnation);
        if let Some(node) = known.filter(|slot| !self.is_draining(*slot)) {
            let mut hand = Hand {
                client,
                node,
                tasks: tasks_max.min(REPLY_COPIES_MAX).min(COPIES_MAX.saturating_sub(self.copies)),
                bytes: bytes_max,
                extra: false,
                tasks_out: Vec::new(),
                leased: Vec::new(),
            };
            self.hand_out_repairs(&mut hand);
            self.hand_out_moves(&mut hand);
            self.hand_out_extras(&mut hand);
            reply.tasks = hand.tasks_out;
            if !hand.leased.is_empty() {
                reply.lease = Some(self.new_lease(client, hand.leased.into_boxed_slice()));
            }
        }
        reply.waiting = self.repairs.waiting() as u64;
        Ok(reply)
    }

    fn hand_out_repairs(&mut self, hand: &mut Hand) {
        for _ in 0..self.repairs.queue.len().min(REPLY_REPAIRS_SEEN_MAX) {
            if !hand.has_room() {
                return;
            }
            let Some(entry) = self.repairs.queue.pop_front() else { return };
            // The key that stood in line may be gone, and its slot another's.
            if !self.index.knows(entry) || !self.index.get(entry).is_queued() {
                continue;
            }
            self.index.get_mut(entry).set_queued(false);
            if self.bury_of(entry) && self.lacks(entry) && !self.hand_out(hand, entry) {
                self.restore(entry);
            }
        }
    }

    /// Hands out a copy of a key, if this node has none and has room without eviction.
    pub(super) fn hand_out(&mut self, hand: &mut Hand, entry: Slot<Entry>) -> bool {
        let Some(first) = self.chain(entry).find(|object| self.is_live(*object)) else { return false };
        let payload_bytes = self.objects[first].payload_bytes;
        if self.holds(hand.node, entry) {
            return false;
        }
        let Some((segment, offset)) = self.take_spare(hand.node, extent_bytes(payload_bytes)) else { return false };
        let sources: Vec<Slot<Object>> = self.chain(entry).filter(|object| self.is_live(*object)).collect();
        let serial = self.objects[first].serial.get();
        let mut clears = Vec::new();
        let reservation = Reservation {
            links: Links::new(),
            serial: NonZeroU64::MIN,
            client: hand.client,
            entry,
            segment,
            offset,
            payload_bytes,
            deadline: self.now.plus(self.settings.reservation_ttl_ms.into()),
            position: 0,
            // While this one is there, so are the bytes that any of the sources had.
            kin: serial..serial + 1,
            wanted: 1,
            copy: true,
            extra: hand.extra,
            held: Held::default(),
        };
        let ticket = self.add_reservation(reservation, |offset| clears.push(offset));
        let found = sources.iter().map(|source| self.found(*source)).collect();
        for source in &sources {
            self.add_lease(*source);
        }
        hand.leased.extend(sources);
        hand.tasks -= 1;
        hand.bytes = hand.bytes.saturating_sub(payload_bytes);
        let known = self.index.get(entry);
        let (key, origin, wanted) = (known.key().into(), self.index.origin(entry), known.wanted());
        hand.tasks_out.push(CopyTask { ticket, key, sources: found, clears, origin, wanted });
        true
    }

    /// Takes space on a node that does not push it over its high watermark: copies evict nothing, now or soon.
    fn take_spare(&mut self, node: Slot<Node>, bytes: u64) -> Option<(Slot<Segment>, u64)> {
        if bytes > self.spare_of(node) {
            return None;
        }
        let slot = self.roomiest_of(node, bytes)?;
        Some((slot, self.take_run(slot, bytes)?))
    }
}

/// What is being handed out to one node.
#[derive(Debug)]
pub(super) struct Hand {
    client: ClientId,
    pub(super) node: Slot<Node>,
    tasks: usize,
    bytes: u64,
    /// What it gets now is more than the keys should have.
    pub(super) extra: bool,
    tasks_out: Vec<CopyTask>,
    leased: Vec<Slot<Object>>,
}

impl Hand {
    /// Whether one more may be handed out.
    pub(super) const fn has_room(&self) -> bool {
        self.tasks > 0 && self.bytes > 0
    }
}
