//! The client: everything a process does with the pool goes through one of these.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memcache_config::Endpoint;
use memcache_memory::Kernel;
use memcache_transport::plan::PathChoice;
use memcache_transport::{Fabric, FabricOptions, ProtocolChoice};
use memcache_types::limits::{OBJECT_BYTES_MAX, PIECES_MAX};
use memcache_types::{GetStatus, KeyBatch, NodeId, PutStatus};

use crate::book::Book;
use crate::buffer::Buffers;
use crate::completion::Completion;
use crate::crowd::Crowd;
use crate::directory::Directory;
use crate::errands::Errands;
use crate::error::{InvalidCall, StoreError};
use crate::flight::Flights;
use crate::get::Located;
use crate::get_async::get_async;
use crate::jobs::Workers;
use crate::local_service::{LocalOptions, LocalService};
use crate::lookup::Shared;
use crate::path::costs::{CostSource, Costs};
use crate::path::{Paths, StagingOptions};
use crate::put::PutOptions;
use crate::put_async::put_async;
use crate::roads::rdma;
use crate::stats::{Stats, StatsSnapshot};
use crate::sums::{Checksums, Sums};
use crate::transfer::Crew;

/// How long a new store waits for its own memory to be accepted before it goes on without.
const JOIN_WAIT: Duration = Duration::from_secs(2);

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where the `MetaService` is.
    pub endpoint: Endpoint,
    /// Memory this process lends, if any.
    pub lend: Option<LocalOptions>,
    /// Which transports may be used.
    pub protocol: ProtocolChoice,
    /// RDMA device, port and address index (`"mlx5_0:1:3"`), or a part of it; empty chooses.
    pub rdma_device: String,
    /// Checksum policy.
    pub checksums: Checksums,
    /// Replicas of each key that a put makes unless it says otherwise, 1 to 8.
    pub replicas: usize,
    /// Threads that copy for one call, this one included; at least 1.
    pub transfer_threads: usize,
    /// Whether those of them that help rest while more threads of this machine want to run than it has processors.
    pub gives_way: bool,
    /// How this process copies much at a time; `None`: as suits the processor. The first store that names one decides.
    pub kernel: Option<Kernel>,
    /// Which path objects take.
    pub path: PathChoice,
    /// Where the costs of paths come from.
    pub costs: CostSource,
    /// Staging of transfers that need it.
    pub staging: StagingOptions,
}

/// Local memory that is ready for transfers; see [`Store::prepare`].
pub struct Prepared {
    _held: Option<Box<dyn Any + Send + Sync>>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").finish_non_exhaustive()
    }
}

/// A client of one pool. Cheap to share by reference; all methods may be called from any thread.
pub struct Store {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) book: Arc<Book>,
    pub(crate) fabric: Fabric,
    pub(crate) directory: Directory,
    pub(crate) crew: Crew,
    pub(crate) flights: Arc<Flights>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) sums: Arc<Sums>,
    pub(crate) replicas: usize,
    pub(crate) paths: Arc<Paths>,
    local: Option<LocalService>,
    closed: AtomicBool,
    process: u32,
}

impl Store {
    /// Opens a store. Does not fail when nobody answers at the endpoint: calls then say so, and work once somebody does.
    ///
    /// Lending memory takes the time to touch all of it.
    pub fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        let costs = Costs::open(&options.costs)?;
        let book = Book::open(options.endpoint.clone())?;
        if let Some(wanted) = options.kernel
            && wanted.settle() != Some(wanted)
        {
            let used = Kernel::best().map_or("none", Kernel::name);
            tracing::warn!(
                wanted = wanted.name(),
                used,
                "copies of this process are made in another way than asked for"
            );
        }
        let rdma = rdma(options.protocol, &options.rdma_device)?;
        let fabric = Fabric::with_rdma(FabricOptions { choice: options.protocol, ..FabricOptions::default() }, rdma);
        let local = match &options.lend {
            Some(lend) => {
                let local = LocalService::start(Arc::clone(&book), lend)?;
                local.register_with(&fabric);
                local.wait_joined(Instant::now() + JOIN_WAIT);
                Some(local)
            }
            None => None,
        };
        let stats = Arc::default();
        let crowd = options.gives_way.then(|| Crowd::new(&stats));
        let inner = Inner {
            book,
            fabric,
            directory: Directory::new(),
            crew: Crew {
                workers: Workers::new("memcache-copy", options.transfer_threads.max(1), crowd),
                errands: Errands::new(),
            },
            flights: Arc::default(),
            stats,
            sums: Arc::new(Sums::new(options.checksums)),
            replicas: options.replicas,
            paths: Arc::new(Paths::new(options.path, options.staging, costs)),
            local,
            closed: AtomicBool::new(false),
            process: std::process::id(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Prepares local memory that many transfers will use, such as a KV cache, until the returned value is dropped:
    /// transports that need it registered do so once. Costs nothing where none does.
    ///
    /// # Safety
    /// Until then the range stays mapped as it is: not unmapped, not moved, not replaced by other memory.
    pub unsafe fn prepare(&self, address: u64, bytes: u64) -> Result<Prepared, StoreError> {
        // SAFETY: the same promise.
        Ok(Prepared { _held: unsafe { self.inner()?.fabric.prepare(address, bytes) } })
    }

    /// Stores one object a key and says for each what became of it. A key is stored when one of its replicas is.
    ///
    /// Of several writers of a key the first to seal wins.
    pub fn put(
        &self,
        keys: &KeyBatch,
        sources: &Buffers,
        options: &PutOptions,
        deadline: Instant,
    ) -> Result<Vec<PutStatus>, StoreError> {
        self.inner()?.put(keys, sources, options, deadline)
    }

    /// Reads one object a key into its target and says for each what became of it. A target whose status is not
    /// [`GetStatus::Hit`] holds nothing of use.
    pub fn get(&self, keys: &KeyBatch, targets: &Buffers, deadline: Instant) -> Result<Vec<GetStatus>, StoreError> {
        self.inner()?.get(keys, targets, deadline)
    }

    /// Finds objects and holds them in place, for a caller that must know their sizes first.
    pub fn locate(&self, keys: &KeyBatch, deadline: Instant) -> Result<Located, StoreError> {
        let inner = self.inner()?;
        inner.locate_raw(keys, deadline).map_err(|error| inner.book.error(error))
    }

    /// Reads what [`locate`](Self::locate) found. Give absent keys an empty target.
    pub fn read(
        &self,
        located: &Located,
        keys: &KeyBatch,
        targets: &Buffers,
        deadline: Instant,
    ) -> Result<Vec<GetStatus>, StoreError> {
        self.inner()?.read(located, keys, targets, deadline)
    }

    /// [`put`](Self::put) without waiting, and without a thread that waits. The sources are held until the transfer has
    /// ended.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when too many puts and gets are under way. Every other trouble is in the statuses.
    pub fn put_async(
        &self,
        keys: KeyBatch,
        sources: Buffers,
        options: &PutOptions,
        deadline: Instant,
    ) -> Result<Completion<Shared<Vec<PutStatus>>>, StoreError> {
        put_async(&self.inner()?, keys, sources, options, deadline)
    }

    /// [`get`](Self::get) without waiting, and without a thread that waits. The targets are held until the transfer has
    /// ended.
    ///
    /// # Errors
    /// As [`put_async`](Self::put_async).
    pub fn get_async(
        &self,
        keys: KeyBatch,
        targets: Buffers,
        deadline: Instant,
    ) -> Result<Completion<Shared<Vec<GetStatus>>>, StoreError> {
        get_async(&self.inner()?, keys, targets, deadline)
    }

    /// What this store has done so far.
    pub fn stats(&self) -> StatsSnapshot {
        self.inner.stats.snapshot()
    }

    /// Puts and gets under way that were started without waiting; at most a few thousand may be.
    pub fn in_flight(&self) -> usize {
        self.inner.flights.count()
    }

    /// The connection to the `MetaService`.
    pub fn book(&self) -> &Arc<Book> {
        &self.inner.book
    }

    /// The node this store lends memory as, if it does.
    pub fn node(&self) -> Option<NodeId> {
        self.inner.local.as_ref().map(LocalService::node)
    }

    /// Has other nodes copy what is only in the memory this store lends, which then leaves the pool; says whether
    /// nothing was left before the deadline. The store goes on without lending. True where it lends nothing.
    pub fn drain_own(&self, deadline: Instant) -> Result<bool, StoreError> {
        Ok(self.inner()?.local.as_ref().is_none_or(|local| local.drain(deadline)))
    }

    /// Ends the store: later calls fail; puts and gets under way that have not begun to move bytes resolve as
    /// unavailable, the others are waited for until the deadline and then stopped. Says whether all ended. What was lent
    /// leaves the pool.
    pub fn close(&self, deadline: Instant) -> bool {
        let inner = &self.inner;
        if inner.closed.swap(true, Ordering::AcqRel) {
            return true;
        }
        inner.shut_down(deadline)
    }

    pub(crate) fn inner(&self) -> Result<Arc<Inner>, StoreError> {
        let inner = &self.inner;
        let used = std::process::id();
        if used != inner.process {
            return Err(StoreError::Forked { opened: inner.process, used });
        }
        if inner.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        Ok(Arc::clone(inner))
    }
}

/// Arguments are checked before anything moves.
pub(crate) fn check_call(keys: &KeyBatch, buffers: &Buffers) -> Result<(), StoreError> {
    if keys.len() != buffers.len() {
        return Err(InvalidCall::Count { keys: keys.len(), others: buffers.len(), what: "values" }.into());
    }
    for (index, list) in buffers.lists().iter().enumerate() {
        if list.bytes() > OBJECT_BYTES_MAX {
            let (bytes, limit) = (list.bytes(), OBJECT_BYTES_MAX);
            return Err(InvalidCall::TooLarge { index, bytes, limit }.into());
        }
        if !list.is_within_limits() {
            let pieces = list.pieces().len();
            return Err(InvalidCall::TooManyPieces { index, pieces, limit: PIECES_MAX }.into());
        }
    }
    Ok(())
}

impl Inner {
    /// The node to place objects on, as the wire has it: 0 for none.
    pub(crate) fn near(&self) -> u64 {
        self.local.as_ref().map_or(0, |local| local.node().get())
    }

    fn shut_down(&self, deadline: Instant) -> bool {
        let flights = self.flights.end_all(deadline);
        let calls = self.crew.errands.stop(deadline);
        let copies = self.crew.workers.stop(deadline);
        if let Some(local) = &self.local {
            local.stop(deadline);
        }
        self.book.close();
        flights && calls && copies
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // In a forked child everything here belongs to the parent's threads.
        if self.inner.process == std::process::id() {
            self.close(Instant::now() + Duration::from_secs(2));
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("book", &self.inner.book).field("node", &self.node()).finish_non_exhaustive()
    }
}
