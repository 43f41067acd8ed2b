//! Which link leads to which segment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dashmap::DashMap;
use memcache_proto::pb;
use memcache_transport::{Fabric, Link, RegionDescriptor, TransportError};
use memcache_types::SegmentId;

use crate::book::{Book, BookError};

/// Most descriptors kept; past it the cache starts afresh. Far more than the segments of any real pool.
const KNOWN_MAX: usize = 65_536;

/// Descriptors by segment. A segment id is never issued twice, so an entry can only become useless, never wrong.
#[derive(Debug)]
pub(crate) struct Directory {
    known: DashMap<SegmentId, RegionDescriptor>,
    epoch: AtomicU64,
}

pub(crate) type Links = HashMap<SegmentId, Result<Arc<dyn Link>, LinkError>>;

/// Why a segment cannot be reached.
#[derive(Debug)]
pub(crate) enum LinkError {
    /// The book does not know the segment any more.
    Gone,
    /// The book could not be asked.
    Book(BookError),
    /// The node that lends it cannot be reached.
    Transport(TransportError),
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { known: DashMap::new(), epoch: AtomicU64::new(0) }
    }

    /// A link for each of these segments, asking the book once for those not yet known.
    pub(crate) fn links(
        &self,
        book: &Book,
        fabric: &Fabric,
        segments: impl IntoIterator<Item = SegmentId>,
        deadline: Instant,
    ) -> Links {
        self.forget_older_lives(book);
        let wanted = distinct(segments);
        let unknown = self.unknown(wanted.iter());
        let asked = if unknown.is_empty() { Ok(()) } else { self.ask(book, unknown, deadline) };
        wanted
            .into_iter()
            .map(|segment| {
                let descriptor = self.known.get(&segment).map(|entry| entry.value().clone());
                let link = match (descriptor, &asked) {
                    (Some(descriptor), _) => fabric.link(&descriptor, deadline).map_err(LinkError::Transport),
                    (None, Ok(())) => Err(LinkError::Gone),
                    (None, Err(error)) => Err(LinkError::Book(error.clone())),
                };
                (segment, link)
            })
            .collect()
    }

    /// As [`links`](Self::links) without waiting: `Err` names the first segment for which there is something to wait for.
    pub(crate) fn links_now(
        &self,
        book: &Book,
        fabric: &Fabric,
        segments: impl IntoIterator<Item = SegmentId>,
    ) -> Result<Links, SegmentId> {
        self.forget_older_lives(book);
        distinct(segments)
            .into_iter()
            .map(|segment| {
                let known = self.known.get(&segment).and_then(|descriptor| fabric.link_now(descriptor.value()));
                known.map(|link| (segment, link.map_err(LinkError::Transport))).ok_or(segment)
            })
            .collect()
    }

    /// The first of these segments that the book would have to be asked about.
    pub(crate) fn first_unknown(
        &self,
        book: &Book,
        segments: impl IntoIterator<Item = SegmentId>,
    ) -> Option<SegmentId> {
        self.forget_older_lives(book);
        segments.into_iter().find(|segment| !self.known.contains_key(segment))
    }

    /// How far away each of these segments is, nearest least. What the book does not tell is farthest.
    pub(crate) fn distances(
        &self,
        book: &Book,
        fabric: &Fabric,
        segments: impl IntoIterator<Item = SegmentId>,
        deadline: Instant,
    ) -> HashMap<SegmentId, u8> {
        self.forget_older_lives(book);
        let wanted: HashSet<SegmentId> = segments.into_iter().collect();
        let unknown = self.unknown(wanted.iter());
        if !unknown.is_empty()
            && let Err(error) = self.ask(book, unknown, deadline)
        {
            tracing::debug!(%error, "replicas are read in the order of the book");
        }
        let distance = |segment| self.known.get(&segment).map_or(u8::MAX, |entry| fabric.distance(entry.value()));
        wanted.into_iter().map(|segment| (segment, distance(segment))).collect()
    }

    fn unknown<'a>(&self, segments: impl Iterator<Item = &'a SegmentId>) -> Vec<u64> {
        segments.filter(|segment| !self.known.contains_key(segment)).map(|segment| segment.get()).collect()
    }

    fn ask(&self, book: &Book, segments: Vec<u64>, deadline: Instant) -> Result<(), BookError> {
        let answer = book.call(pb::request::Body::Describe(pb::Describe { segments }), deadline)?;
        let pb::reply::Body::Describe(reply) = answer.body else {
            return Err(BookError::not_a("Describe"));
        };
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        for info in reply.segments {
            match RegionDescriptor::decode(&info.descriptor) {
                Ok(descriptor) => drop(self.known.insert(SegmentId::new(info.segment), descriptor)),
                Err(error) => {
                    tracing::warn!(segment = info.segment, %error, "a node advertises memory nobody can read");
                }
            }
        }
        Ok(())
    }

    /// A restarted book issues new ids for everything: the old entries only take room.
    fn forget_older_lives(&self, book: &Book) {
        let epoch = book.epoch().map_or(0, memcache_types::Epoch::get);
        if self.epoch.swap(epoch, Ordering::AcqRel) != epoch {
            self.known.clear();
        }
    }
}

fn distinct(segments: impl IntoIterator<Item = SegmentId>) -> Vec<SegmentId> {
    let mut wanted: Vec<SegmentId> = segments.into_iter().collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}
