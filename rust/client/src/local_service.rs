//! Lending memory: a segment, the servers that let peers reach it, and membership in the pool.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use memcache_memory::holdings::{Holdings, Identity, Shape};
use memcache_memory::{PersistLock, PersistOptions, Persisted, Segment, SegmentOptions, on_node};
use memcache_proto::pb::{self, request};
use memcache_transport::{Fabric, ProtocolChoice, RegionServer, RelayHost, ServerOptions};
use memcache_types::limits::{NODE_NAME_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use memcache_types::{Epoch, Incarnation, NodeId, Tier};
use parking_lot::{Condvar, Mutex};

use crate::book::Book;
use crate::error::{InvalidCall, StoreError};
use crate::member::{LEAVE_TIMEOUT, MEMBERSHIP_TIMEOUT, Member};
use crate::random::random_id;
use crate::relay::{RelayOptions, RelayOwner};
use crate::repair::Copier;
use crate::roads::rdma;

/// Longest wait for the process that lends the same file to stop.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a stop looks whether the threads have ended.
const STOP_LOOK: Duration = Duration::from_millis(2);

/// What to lend and how others reach it.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Size of the segment in bytes.
    pub bytes: u64,
    /// Name for people; cut at the limit.
    pub name: String,
    /// Which transports peers may use.
    pub protocol: ProtocolChoice,
    /// Address the data server listens on and advertises.
    pub data_host: String,
    /// Its port; 0 for any free one.
    pub data_port: u16,
    /// RDMA device, port and address index (`"mlx5_0:1:3"`), or a part of it; empty chooses.
    pub rdma_device: String,
    /// Use huge pages where there are any.
    pub huge_pages: bool,
    /// Touch all memory at the start, so that no put pays for it.
    pub prefault: bool,
    /// NUMA node whose processors touch the memory first. `None`: whichever the touching threads happen to run on.
    pub numa_node: Option<u32>,
    /// Most objects that are written down, so that they are found again after a restart of the `MetaService`; 0 for
    /// the usual number.
    pub records: u32,
    /// File to lend, on a file system that is memory: what it holds outlives this process. `None`: memory that goes with
    /// this process.
    pub persist: Option<PathBuf>,
    /// Bytes a second to copy into this memory for replicas that others lost; 0 for none.
    pub repair_bytes_per_s: u64,
    /// A device for peers with such devices to come through (path 1).
    pub relay: Option<RelayOptions>,
}

/// One lent segment. Joins the pool in the background, keeps up heartbeats, and joins again when the `MetaService`
/// has forgotten it.
pub struct LocalService {
    node: NodeId,
    server: Mutex<RegionServer>,
    member: Arc<Member>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Keeps other processes from lending the same file. A thread that writes there keeps it as well.
    lock: Mutex<Option<Arc<PersistLock>>>,
    process: u32,
}

impl LocalService {
    /// Lends a new segment. Returns once the memory is there and reachable; joining goes on in the background.
    pub fn start(book: Arc<Book>, options: &LocalOptions) -> Result<Self, StoreError> {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&options.bytes) {
            let (bytes, min, max) = (options.bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
            return Err(InvalidCall::SegmentSize { bytes, min, max }.into());
        }
        let (segment, Identity { shape, node }, lock) = memory(options)?;
        let (segment, node, lock) = (Arc::new(segment), NodeId::new(node), lock.map(Arc::new));
        let table = Holdings::new(segment.region(), shape);
        // Greater than any of an earlier process, also where the clock was set back.
        let incarnation = Incarnation::new(now_nanos().max(table.incarnation() + 1));
        table.set_incarnation(incarnation.get());
        let previous = Some(table.epoch()).filter(|epoch| *epoch != 0).map(Epoch::new);
        let rdma = rdma(options.protocol, &options.rdma_device)?;
        let relay = options.relay.as_ref().map(|relay| RelayOwner::open(relay, &segment)).transpose()?;
        let relay = relay.map(|host| (host.device(), Arc::new(host) as Arc<dyn RelayHost>));
        let server = RegionServer::start_relaying(
            Arc::clone(&segment),
            &ServerOptions {
                protocols: options.protocol,
                data_host: options.data_host.clone(),
                data_port: options.data_port,
            },
            rdma.as_deref(),
            relay.as_ref().map(|(device, host)| (device.as_str(), Arc::clone(host))),
        )?;
        let offer = pb::JoinSegment {
            bytes: options.bytes,
            tier: tier_to_wire(Tier::Dram),
            descriptor: server.descriptor().encode(),
            table_offset: shape.place.table_offset,
            records: shape.place.records,
            floors_offset: shape.place.floors_offset,
        };
        let (name, segments) = (cut(&options.name, NODE_NAME_BYTES_MAX), vec![offer]);
        let (who, life) = (node.get(), incarnation.get());
        let join = pb::Join { node: who, incarnation: life, name, segments, ..pb::Join::default() };
        let member = Arc::new(Member {
            book,
            node,
            incarnation,
            join,
            segment: Arc::clone(&segment),
            shape,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let runner = Arc::clone(&member);
        let mut threads =
            vec![std::thread::Builder::new().name("memcache-member".to_owned()).spawn(move || runner.run(previous))?];
        if options.repair_bytes_per_s > 0 {
            let copier = Copier::new(Arc::clone(&member), segment, rdma, options);
            let lock = lock.clone();
            let run = move || {
                copier.run();
                drop(lock);
            };
            match std::thread::Builder::new().name("memcache-repair".to_owned()).spawn(run) {
                Ok(copier) => threads.push(copier),
                Err(error) => {
                    member.stop();
                    return Err(error.into());
                }
            }
        }
        Ok(Self {
            node,
            server: Mutex::new(server),
            member,
            threads: Mutex::new(threads),
            lock: Mutex::new(lock),
            process: std::process::id(),
        })
    }

    /// Who we are in the pool.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Waits until the pool has accepted the memory; says whether it has.
    pub fn wait_joined(&self, deadline: Instant) -> bool {
        let mut state = self.member.state.lock();
        while state.joined.is_none() && !state.stopping {
            if self.member.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.joined.is_some()
    }

    /// Leaves the pool and stops serving. Objects held here are gone, unless the memory is a file: then whoever lends that
    /// next brings them back.
    pub fn stop(&self, deadline: Instant) {
        let was_joined = self.member.stop();
        if self.process != std::process::id() {
            return; // the thread and the servers belong to the parent
        }
        if was_joined {
            self.member.leave(deadline.min(Instant::now() + LEAVE_TIMEOUT));
        }
        self.server.lock().stop();
        if !self.join_threads(deadline) {
            tracing::warn!(node = %self.node, "a copy into the lent memory goes on past the deadline of the stop");
        }
        drop(self.lock.lock().take());
    }

    /// Whether all threads ended before the deadline.
    fn join_threads(&self, deadline: Instant) -> bool {
        let mut threads = self.threads.lock();
        while !threads.iter().all(JoinHandle::is_finished) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(STOP_LOOK);
        }
        threads.drain(..).for_each(|thread| drop(thread.join()));
        true
    }

    /// Has other nodes copy what is only here, and leaves when nothing is left; says whether that is so before the
    /// deadline. New objects go elsewhere from now on.
    pub fn drain(&self, deadline: Instant) -> bool {
        let drain = pb::Drain { node: self.node.get(), mode: pb::drain::Mode::Move.into() };
        let until = deadline.min(Instant::now() + MEMBERSHIP_TIMEOUT);
        match self.member.book.call(request::Body::Drain(drain), until) {
            Ok(_) => self.member.note_drain(pb::DrainState::Draining),
            Err(error) => {
                tracing::warn!(%error, "the MetaService did not hear that this node is to be drained");
                return false;
            }
        }
        self.wait_drained(deadline)
    }

    /// Waits until this node was emptied by somebody's wish and has left; says whether it has. It holds nothing then and
    /// does not join again.
    pub fn wait_drained(&self, deadline: Instant) -> bool {
        let mut state = self.member.state.lock();
        while state.drain != pb::DrainState::Drained && !state.stopping {
            if self.member.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.drain == pb::DrainState::Drained
    }

    /// Lets this process reach its own segment directly.
    pub(crate) fn register_with(&self, fabric: &Fabric) {
        fabric.register_local(&self.server.lock());
    }
}

impl Drop for LocalService {
    fn drop(&mut self) {
        self.stop(Instant::now() + LEAVE_TIMEOUT);
    }
}

impl fmt::Debug for LocalService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalService").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The memory to lend, where it was asked for, what it is, and the lock on it if it is a file.
fn memory(options: &LocalOptions) -> Result<(Segment, Identity, Option<PersistLock>), StoreError> {
    match options.numa_node {
        None => memory_here(options),
        Some(node) => on_node(node, || memory_here(options))?,
    }
}

fn memory_here(options: &LocalOptions) -> Result<(Segment, Identity, Option<PersistLock>), StoreError> {
    let memory = SegmentOptions { huge_pages: options.huge_pages, prefault: options.prefault };
    let node = random_id()?;
    let Some(path) = &options.persist else {
        let shape = Shape::new(options.bytes, options.records, 1);
        let segment = Segment::create(shape.region_bytes, &memory)?;
        Holdings::new(segment.region(), shape).write_identity(node);
        return Ok((segment, Identity { shape, node }, None));
    };
    let asked = PersistOptions {
        path: path.clone(),
        lent_bytes: options.bytes,
        records: options.records,
        node,
        deadline: Instant::now() + LOCK_TIMEOUT,
    };
    let Persisted { segment, identity, lock } = Persisted::open(&asked, &memory)?;
    Ok((segment, identity, Some(lock)))
}

fn tier_to_wire(tier: Tier) -> u32 {
    match tier {
        Tier::Hbm => 1,
        Tier::Dram => 2,
        Tier::Ssd => 3,
    }
}

fn now_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The longest start of `text` within `bytes` bytes.
fn cut(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut("grün", 3), "gr");
        assert_eq!(cut("grün", 4), "grü");
        assert_eq!(cut("node", 256), "node");
    }
}
