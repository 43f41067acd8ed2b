//! Questions that move no payload.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use memcache_proto::pack::{expect_length, keys_to_wire, outcomes_from_wire};
use memcache_proto::pb::{self, reply, request};
use memcache_types::{Epoch, KeyBatch, NodeId, PinStatus};

use crate::book::{Answer, Book, BookError};
use crate::completion::{Completion, completion};
use crate::error::StoreError;
use crate::stats::{Stats, add};
use crate::store::Store;

/// How far a list of keys is in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Leading keys that are readable.
    pub present: usize,
    /// Leading keys that are readable or being written. At least `present`.
    pub pending: usize,
}

/// What the book knows of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Not in the pool.
    Absent,
    /// Readable.
    Present,
    /// Some writer holds a reservation for it.
    Pending,
}

/// One field in which a fingerprint differs from one registered before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldDifference {
    /// Name of the field.
    pub name: String,
    /// Our value; empty where we have none.
    pub ours: String,
    /// The registered value; empty where it has none.
    pub theirs: String,
}

/// A result that another thread may be waiting for as well.
pub type Shared<T> = Arc<Result<T, StoreError>>;

impl Store {
    /// How many leading keys are in the pool: one message however many keys.
    pub fn match_prefix(&self, keys: &KeyBatch, deadline: Instant) -> Result<Matched, StoreError> {
        self.ask(match_request(keys), deadline, |body| Ok(read_match(&body)))
    }

    /// [`match_prefix`](Self::match_prefix) without waiting.
    pub fn match_prefix_async(
        &self,
        keys: &KeyBatch,
        deadline: Instant,
    ) -> Result<Completion<Shared<Matched>>, StoreError> {
        self.ask_async(match_request(keys), deadline, |body| Ok(read_match(&body)))
    }

    /// Which keys are in the pool.
    pub fn exist(&self, keys: &KeyBatch, deadline: Instant) -> Result<Vec<Presence>, StoreError> {
        let count = keys.len();
        self.ask(exist_request(keys), deadline, move |body| read_exist(body, count))
    }

    /// [`exist`](Self::exist) without waiting.
    pub fn exist_async(
        &self,
        keys: &KeyBatch,
        deadline: Instant,
    ) -> Result<Completion<Shared<Vec<Presence>>>, StoreError> {
        let count = keys.len();
        self.ask_async(exist_request(keys), deadline, move |body| read_exist(body, count))
    }

    /// Removes keys; says which were readable. Readers that hold a lease finish undisturbed. When this returns no restart
    /// of the `MetaService` brings the keys back. While nodes are telling a restarted service what they hold, this waits.
    ///
    /// # Errors
    /// [`StoreError::NotForgotten`]: they are removed, but a node cannot be reached to make that last, or has not told
    /// before the deadline.
    pub fn remove(&self, keys: &KeyBatch, deadline: Instant) -> Result<Vec<bool>, StoreError> {
        let count = keys.len();
        let request = request::Body::Remove(pb::Remove { keys: Some(keys_to_wire(keys)) });
        let (asked_in, reply) = self.ask_in(request, deadline, move |body| match body {
            reply::Body::Remove(reply) => {
                expect_length("removed", reply.removed.len(), count)?;
                Ok(Some(reply))
            }
            _ => Ok(None),
        })?;
        self.inner()?.forget_records(&reply, asked_in, deadline)?;
        Ok(reply.removed.iter().map(|byte| *byte != 0).collect())
    }

    /// Removes everything from the pool; says how many objects that were. When this returns no restart of anything brings
    /// back what was put before.
    ///
    /// # Errors
    /// [`StoreError::NotForgotten`]: it is removed, but a node cannot be reached to make that last.
    pub fn remove_all(&self, deadline: Instant) -> Result<u64, StoreError> {
        let (asked_in, reply) =
            self.ask_in(request::Body::RemoveAll(pb::RemoveAll {}), deadline, |body| match body {
                reply::Body::RemoveAll(reply) => Ok(Some(reply)),
                _ => Ok(None),
            })?;
        self.inner()?.raise_floors(&reply, asked_in, deadline)?;
        Ok(reply.removed)
    }

    /// Registers what a family of engines must agree on; says where it differs from what others registered.
    pub fn register_fingerprint(
        &self,
        scope: &str,
        fields: &[(String, String)],
        deadline: Instant,
    ) -> Result<Vec<FieldDifference>, StoreError> {
        let fields =
            fields.iter().map(|(name, value)| pb::Field { name: name.clone(), value: value.clone() }).collect();
        let request = pb::RegisterFingerprint { scope: scope.to_owned(), fields };
        self.ask(request::Body::RegisterFingerprint(request), deadline, |body| match body {
            reply::Body::RegisterFingerprint(reply) => Ok(Some(
                reply
                    .differences
                    .into_iter()
                    .map(|found| FieldDifference { name: found.name, ours: found.ours, theirs: found.theirs })
                    .collect(),
            )),
            _ => Ok(None),
        })
    }

    /// The state of the pool, and the life of the service that told it.
    pub fn status(&self, deadline: Instant) -> Result<(u64, pb::StatusReply), StoreError> {
        let (epoch, reply) = self.ask_in(request::Body::Status(pb::Status {}), deadline, |body| match body {
            reply::Body::Status(reply) => Ok(Some(reply)),
            _ => Ok(None),
        })?;
        Ok((epoch.get(), reply))
    }

    /// Everything the book knows about some keys, one a key. Not a use, and no lease.
    pub fn info(&self, keys: &KeyBatch, deadline: Instant) -> Result<Vec<pb::KeyInfo>, StoreError> {
        let count = keys.len();
        let request = request::Body::Info(pb::Info { keys: Some(keys_to_wire(keys)) });
        self.ask(request, deadline, move |body| match body {
            reply::Body::Info(reply) => {
                expect_length("keys", reply.keys.len(), count)?;
                Ok(Some(reply.keys))
            }
            _ => Ok(None),
        })
    }

    /// Keeps readable keys from eviction: softly for `ttl_ms`, or with `None` until they are unpinned.
    pub fn pin(
        &self,
        keys: &KeyBatch,
        ttl_ms: Option<NonZeroU64>,
        deadline: Instant,
    ) -> Result<Vec<PinStatus>, StoreError> {
        let count = keys.len();
        let ttl_ms = ttl_ms.map_or(0, NonZeroU64::get);
        let request = request::Body::Pin(pb::Pin { keys: Some(keys_to_wire(keys)), ttl_ms });
        self.ask(request, deadline, move |body| {
            let reply::Body::Pin(reply) = body else { return Ok(None) };
            let outcomes = outcomes_from_wire::<pb::PinOutcome>("outcomes", &reply.outcomes, count)?;
            let status = |outcome| match outcome {
                pb::PinOutcome::Pinned => PinStatus::Pinned,
                pb::PinOutcome::PinOverQuota => PinStatus::OverQuota,
                pb::PinOutcome::PinAbsent | pb::PinOutcome::PinUnknown => PinStatus::Absent,
            };
            Ok(Some(outcomes.into_iter().map(status).collect()))
        })
    }

    /// Ends pins; says which keys had one.
    pub fn unpin(&self, keys: &KeyBatch, deadline: Instant) -> Result<Vec<bool>, StoreError> {
        let count = keys.len();
        let request = request::Body::Unpin(pb::Unpin { keys: Some(keys_to_wire(keys)) });
        self.ask(request, deadline, move |body| match body {
            reply::Body::Unpin(reply) => {
                expect_length("unpinned", reply.unpinned.len(), count)?;
                Ok(Some(reply.unpinned.iter().map(|byte| *byte != 0).collect()))
            }
            _ => Ok(None),
        })
    }

    /// Begins to empty a node, changes how, cancels it, or only looks; how far it is. A look tells of nodes
    /// that are `gone` as well. `known` is false where there is no such node.
    pub fn drain(&self, node: NodeId, mode: pb::drain::Mode, deadline: Instant) -> Result<pb::DrainReply, StoreError> {
        let body = request::Body::Drain(pb::Drain { node: node.get(), mode: mode.into() });
        self.ask(body, deadline, |body| match body {
            reply::Body::Drain(reply) => Ok(Some(reply)),
            _ => Ok(None),
        })
    }

    fn ask<T>(
        &self,
        request: request::Body,
        deadline: Instant,
        read: impl FnOnce(reply::Body) -> Result<Option<T>, StoreError>,
    ) -> Result<T, StoreError> {
        self.ask_in(request, deadline, read).map(|(_, value)| value)
    }

    /// As `ask`, and says which life of the service answered.
    fn ask_in<T>(
        &self,
        request: request::Body,
        deadline: Instant,
        read: impl FnOnce(reply::Body) -> Result<Option<T>, StoreError>,
    ) -> Result<(Epoch, T), StoreError> {
        let inner = self.inner()?;
        add(&inner.stats.lookups, 1);
        let outcome = inner.book.call(request, deadline);
        let epoch = outcome.as_ref().map_or(Epoch::new(0), |answer| answer.epoch);
        Ok((epoch, decode(&inner.book, &inner.stats, outcome, read)?))
    }

    fn ask_async<T: Send + Sync + 'static>(
        &self,
        request: request::Body,
        deadline: Instant,
        read: impl FnOnce(reply::Body) -> Result<Option<T>, StoreError> + Send + 'static,
    ) -> Result<Completion<Shared<T>>, StoreError> {
        let inner = self.inner()?;
        add(&inner.stats.lookups, 1);
        let (resolver, done) = completion();
        // Not the whole store: its last owner must not be a callback of the runtime, which may not wait.
        let (book, stats) = (Arc::clone(&inner.book), Arc::clone(&inner.stats));
        inner.book.submit(request, deadline, move |outcome| {
            resolver.resolve(Arc::new(decode(&book, &stats, outcome, read)));
        });
        Ok(done)
    }
}

fn decode<T>(
    book: &Book,
    stats: &Stats,
    outcome: Result<Answer, BookError>,
    read: impl FnOnce(reply::Body) -> Result<Option<T>, StoreError>,
) -> Result<T, StoreError> {
    let result = outcome
        .map_err(|error| book.error(error))
        .and_then(|answer| read(answer.body))
        .and_then(|value| value.ok_or_else(|| book.error(BookError::not_a("matching"))));
    if result.is_err() {
        add(&stats.lookup_failures, 1);
    }
    result
}

fn match_request(keys: &KeyBatch) -> request::Body {
    request::Body::MatchPrefix(pb::MatchPrefix { keys: Some(keys_to_wire(keys)) })
}

fn read_match(body: &reply::Body) -> Option<Matched> {
    let reply::Body::MatchPrefix(reply) = body else { return None };
    Some(Matched { present: reply.present as usize, pending: reply.pending.max(reply.present) as usize })
}

fn exist_request(keys: &KeyBatch) -> request::Body {
    request::Body::Exist(pb::Exist { keys: Some(keys_to_wire(keys)) })
}

fn read_exist(body: reply::Body, count: usize) -> Result<Option<Vec<Presence>>, StoreError> {
    let reply::Body::Exist(reply) = body else { return Ok(None) };
    let outcomes = outcomes_from_wire::<pb::LocateOutcome>("outcomes", &reply.outcomes, count)?;
    Ok(Some(
        outcomes
            .into_iter()
            .map(|outcome| match outcome {
                pb::LocateOutcome::Located => Presence::Present,
                pb::LocateOutcome::LocatePending => Presence::Pending,
                pb::LocateOutcome::LocateAbsent | pb::LocateOutcome::LocateUnknown => Presence::Absent,
            })
            .collect(),
    ))
}
