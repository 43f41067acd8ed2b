//! Membership: join the pool, keep up heartbeats, tell what the memory holds, join again when the book has forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memcache_memory::Segment;
use memcache_memory::holdings::{Holdings, Shape};
use memcache_proto::pb::{self, reply, request};
use memcache_types::{Epoch, Incarnation, NodeId};
use parking_lot::{Condvar, Mutex};

use crate::book::{Book, BookError};
use crate::listing::{Listing, Next};

/// Longest wait for one answer about membership.
pub(crate) const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between attempts to join.
const JOIN_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for the book to hear that we leave.
pub(crate) const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a node that is being emptied asks whether anything is left.
const DRAIN_PERIOD: Duration = Duration::from_millis(50);

/// Stands for "some earlier life of the book may know this memory": any epoch that is not zero says so.
const SOME_EARLIER_LIFE: Epoch = Epoch::new(1);

/// A lent segment as a member of the pool: what one thread keeps up, and others wait for.
pub(crate) struct Member {
    pub(crate) book: Arc<Book>,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) join: pb::Join,
    pub(crate) segment: Arc<Segment>,
    pub(crate) shape: Shape,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    /// The life of the book that knows us.
    pub(crate) joined: Option<Epoch>,
    /// Our segments as the book calls them.
    pub(crate) segments: Vec<u64>,
    /// The book said that there may be copies to make.
    pub(crate) work: bool,
    /// How far we are with being emptied. Who is empty has left.
    pub(crate) drain: pb::DrainState,
    pub(crate) stopping: bool,
}

/// What the book said to a join.
struct Joined {
    epoch: Epoch,
    heartbeat: Duration,
    /// What it waits to be told.
    listing: Option<Listing>,
}

impl Member {
    /// What this node's segment holds.
    pub(crate) fn table(&self) -> Holdings<'_> {
        Holdings::new(self.segment.region(), self.shape)
    }

    pub(crate) fn run(&self, mut previous: Option<Epoch>) {
        let mut period = JOIN_PAUSE;
        let mut listing: Option<Listing> = None;
        let mut refused = None;
        loop {
            let joined = self.state.lock().joined;
            let pause = match joined {
                None => match self.join(previous) {
                    Ok(joined) => {
                        refused = None;
                        // Told before anybody who waits for us looks.
                        listing = joined.listing;
                        previous = Some(joined.epoch);
                        period = joined.heartbeat;
                        let next = self.go_on(listing.as_mut());
                        let stays = !matches!(next, Next::Join(_));
                        self.set_joined(stays.then_some(joined.epoch));
                        next.pause(period)
                    }
                    Err(error) => {
                        self.tell(&error, &mut refused);
                        if may_have_been_served(&error) {
                            previous = previous.or(Some(SOME_EARLIER_LIFE));
                        }
                        JOIN_PAUSE
                    }
                },
                Some(epoch) => match self.heartbeat(epoch) {
                    Ok(Some(pb::DrainState::Drained)) => {
                        self.leave_drained();
                        return;
                    }
                    Ok(Some(drain)) => {
                        let next = self.go_on(listing.as_mut());
                        if matches!(next, Next::Join(_)) {
                            self.set_joined(None);
                        }
                        let draining = drain == pb::DrainState::Draining;
                        next.pause(if draining { period.min(DRAIN_PERIOD) } else { period })
                    }
                    Ok(None) => {
                        tracing::info!(node = %self.node, "the MetaService does not know this node; joining again");
                        self.set_joined(None);
                        Duration::ZERO
                    }
                    Err(error) => {
                        self.tell(&error, &mut refused);
                        JOIN_PAUSE
                    }
                },
            };
            if self.sleep(pause) {
                return;
            }
        }
    }

    /// Says why this node is not in the pool, or no longer: a refusal aloud, but once, as each attempt meets it anew until
    /// somebody acts.
    fn tell(&self, error: &BookError, refused: &mut Option<String>) {
        match error {
            BookError::Refused(why) | BookError::Limit(why) if refused.as_ref() != Some(why) => {
                tracing::warn!(node = %self.node, address = %self.book.endpoint(), why, "the MetaService refuses this node");
                *refused = Some(why.clone());
            }
            _ => tracing::debug!(%error, "the MetaService does not count this node in"),
        }
    }

    fn go_on(&self, listing: Option<&mut Listing>) -> Next {
        listing.map_or(Next::Nothing, |listing| listing.go_on(self))
    }

    fn join(&self, previous: Option<Epoch>) -> Result<Joined, BookError> {
        let table = self.table();
        // Whatever becomes of this request and this process: from now on the memory may have been lent.
        if table.epoch() == 0 {
            table.set_epoch(SOME_EARLIER_LIFE.get());
        }
        let join = pb::Join {
            previous_epoch: previous.map_or(0, Epoch::get),
            lists: previous.is_some(),
            floor: table.floor(),
            ..self.join.clone()
        };
        let answer = self.book.call(request::Body::Join(join), Instant::now() + MEMBERSHIP_TIMEOUT)?;
        match answer.body {
            reply::Body::Join(reply) => {
                tracing::info!(node = %self.node, address = %self.book.endpoint(), "joined the pool");
                let heartbeat = Duration::from_millis(u64::from(reply.heartbeat_ms)).max(JOIN_PAUSE);
                table.set_epoch(answer.epoch.get());
                table.raise_floor(reply.floor);
                let segment = reply.segments.first().copied().unwrap_or(0);
                let rest = Duration::from_millis(reply.rest_ms);
                let listing = reply.lists.then(|| Listing::new(&table, segment, Instant::now() + rest));
                self.state.lock().segments = reply.segments;
                Ok(Joined { epoch: answer.epoch, heartbeat, listing })
            }
            _ => Err(BookError::not_a("Join")),
        }
    }

    /// How far we are with being emptied; `None`: the book does not know us, or not in the same life.
    fn heartbeat(&self, epoch: Epoch) -> Result<Option<pb::DrainState>, BookError> {
        let segments = self.state.lock().segments.clone();
        let beat = pb::Heartbeat { node: self.node.get(), incarnation: self.incarnation.get(), segments };
        let answer = self.book.call(request::Body::Heartbeat(beat), Instant::now() + MEMBERSHIP_TIMEOUT)?;
        match answer.body {
            reply::Body::Heartbeat(reply) => {
                if reply.work {
                    self.state.lock().work = true;
                    self.changed.notify_all();
                }
                self.table().raise_floor(reply.floor);
                self.note_drain(reply.drain());
                Ok((reply.joined && answer.epoch == epoch).then_some(reply.drain()))
            }
            _ => Err(BookError::not_a("Heartbeat")),
        }
    }

    pub(crate) fn note_drain(&self, drain: pb::DrainState) {
        let draining = drain != pb::DrainState::NotDraining;
        let now = if draining { pb::DrainState::Draining } else { pb::DrainState::NotDraining };
        let before = std::mem::replace(&mut self.state.lock().drain, now);
        if before != now {
            tracing::info!(node = %self.node, draining, "whether this node is being emptied");
            self.changed.notify_all();
        }
    }

    /// Says good-bye, so that nobody has to find out.
    pub(crate) fn leave(&self, until: Instant) {
        let leave = pb::Leave { node: self.node.get(), incarnation: self.incarnation.get() };
        if let Err(error) = self.book.call(request::Body::Leave(leave), until) {
            tracing::debug!(%error, "the MetaService did not hear that we leave; it will notice");
        }
    }

    /// Has all threads of this node end; says whether it was in the pool.
    pub(crate) fn stop(&self) -> bool {
        let mut state = self.state.lock();
        state.stopping = true;
        let was_joined = state.joined.take().is_some();
        drop(state);
        self.changed.notify_all();
        was_joined
    }

    /// Nothing is left here: this node goes.
    fn leave_drained(&self) {
        self.leave(Instant::now() + LEAVE_TIMEOUT);
        tracing::info!(node = %self.node, "emptied, and out of the pool");
        let mut state = self.state.lock();
        state.joined = None;
        state.drain = pb::DrainState::Drained;
        drop(state);
        self.changed.notify_all();
    }

    fn set_joined(&self, epoch: Option<Epoch>) {
        let mut state = self.state.lock();
        if !state.stopping {
            state.joined = epoch;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Sleeps; says whether to stop.
    fn sleep(&self, pause: Duration) -> bool {
        let started = Instant::now();
        let mut state = self.state.lock();
        while !state.stopping {
            // A drain that begins meanwhile is followed more closely.
            let pause = if state.drain == pb::DrainState::Draining { pause.min(DRAIN_PERIOD) } else { pause };
            let until = started + pause;
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.stopping
    }
}

/// Whether a join that failed may have put the memory into the pool all the same. Writers may then hold space in it
/// that the next life of the book knows nothing of; so it must be told that the memory is not new.
fn may_have_been_served(error: &BookError) -> bool {
    match error {
        BookError::Timeout { .. } | BookError::Interrupted(_) | BookError::Malformed(_) => true,
        BookError::Unavailable(_) | BookError::Refused(_) | BookError::Limit(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_without_an_answer_counts_as_served_one_never_sent_does_not() {
        assert!(may_have_been_served(&BookError::Timeout { waited_ms: 1 }));
        assert!(may_have_been_served(&BookError::Interrupted("reset".to_owned())));
        assert!(!may_have_been_served(&BookError::Unavailable("refused".to_owned())));
    }
}
