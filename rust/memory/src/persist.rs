//! Memory that outlives the process that lends it: a file of a file system that is memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memcache_types::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use rustix::fs::{
    FallocateFlags, FlockOperation, Mode, OFlags, Stat, fallocate, flock, fstat, fstatfs, ftruncate, open, stat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::MemoryError;
use crate::holdings::{Holdings, Identity, NotASegment, Shape, identity};
use crate::mapped::Mapped;
use crate::prefault;
use crate::segment::{Segment, SegmentOptions};

/// File systems that are memory: tmpfs, hugetlbfs.
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

/// Pause between two attempts to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What file to lend, and as what.
#[derive(Clone, Debug)]
pub struct PersistOptions {
    /// The file, on tmpfs or hugetlbfs.
    pub path: PathBuf,
    /// Bytes that objects may take.
    pub lent_bytes: u64,
    /// Most objects that are written down; 0: what the file has, or the usual number for a new one.
    pub records: u32,
    /// The node that lends a new file.
    pub node: u64,
    /// Until when to wait for another process that lends the file.
    pub deadline: Instant,
}

/// Memory of an earlier process, or new memory for later ones.
#[derive(Debug)]
pub struct Persisted {
    /// The memory.
    pub segment: Segment,
    /// What it says about itself.
    pub identity: Identity,
    /// Keeps other processes from lending it.
    pub lock: PersistLock,
}

/// While it lives no other process lends the file. It is a descriptor of its own: that of the memory is handed to peers,
/// and a lock ends only with the last copy of its descriptor.
#[derive(Debug)]
pub struct PersistLock(#[expect(dead_code, reason = "held for its drop alone")] OwnedFd);

impl Persisted {
    /// Takes up the memory in a file, or makes the file. All of its memory is reserved before this returns: later
    /// accesses never find the file system full.
    ///
    /// # Errors
    /// [`MemoryError::File`] naming the file, what is wrong with it and what to do.
    pub fn open(options: &PersistOptions, memory: &SegmentOptions) -> Result<Self, MemoryError> {
        let bytes = options.lent_bytes;
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
            return Err(MemoryError::Size { bytes, min: SEGMENT_BYTES_MIN, max: SEGMENT_BYTES_MAX });
        }
        let file = Kept { path: &options.path };
        let (lock, status) = file.lock(options.deadline)?;
        let page = file.check(&lock, &status)?;
        let shape = Shape::new(bytes, options.records, page);
        let fd = file.open_again(&status)?;
        let size = u64::try_from(status.st_size).unwrap_or(0);
        let segment = if size == 0 { file.make(fd, &shape, *memory)? } else { file.map(fd, size, *memory)? };
        let found = if size == 0 { Err(NotASegment::Blank) } else { identity(segment.region()) };
        let identity = match found {
            Ok(found) => file.accept(found, &shape, options.records)?,
            // Its maker was killed before it was done, and nobody has written to it.
            Err(NotASegment::Blank) if size == 0 || size == shape.region_bytes => {
                Holdings::new(segment.region(), shape).write_identity(options.node);
                Identity { shape, node: options.node }
            }
            Err(other) => return Err(file.error(describe(other))),
        };
        Ok(Self { segment, identity, lock: PersistLock(lock) })
    }
}

fn describe(what: NotASegment) -> String {
    match what {
        NotASegment::Blank => "it ends in zeroes, so it is no segment of this size".to_owned(),
        NotASegment::Foreign => "it is no segment, or a damaged one".to_owned(),
        NotASegment::Version(version) => format!("it is a segment of version {version}, and this software knows 1"),
    }
}

/// A file to be lent.
struct Kept<'a> {
    path: &'a Path,
}

impl Kept<'_> {
    fn error(&self, why: impl Into<String>) -> MemoryError {
        MemoryError::File { path: self.path.to_owned(), why: why.into() }
    }

    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> MemoryError {
        let path = self.path.to_owned();
        move |error| MemoryError::File { path: path.clone(), why: format!("{operation}: {}", io::Error::from(error)) }
    }

    /// Opens the file, made if there is none, and waits for its lock.
    fn lock(&self, deadline: Instant) -> Result<(OwnedFd, Stat), MemoryError> {
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = open(self.path, flags, Mode::RUSR | Mode::WUSR).map_err(self.failed("open"))?;
            match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let status = fstat(&fd).map_err(self.failed("fstat"))?;
                    // Somebody may have put another file into its place meanwhile.
                    let now = stat(self.path).map(|now| (now.st_dev, now.st_ino));
                    if now == Ok((status.st_dev, status.st_ino)) {
                        return Ok((fd, status));
                    }
                }
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    return Err(self.error("another process lends it still; stop that one, or give each its own file"));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed("flock")(error)),
            }
        }
    }

    /// Checks that the file is memory and nobody else's; the length of its pages.
    fn check(&self, fd: &OwnedFd, status: &Stat) -> Result<u64, MemoryError> {
        let system = fstatfs(fd).map_err(self.failed("fstatfs"))?;
        #[allow(clippy::cast_sign_loss, reason = "a bit pattern")]
        let kind = system.f_type as u64;
        if kind != TMPFS && kind != HUGETLBFS {
            return Err(self.error(format!(
                "its file system (type {kind:#x}) is not memory: want a file on tmpfs or hugetlbfs, such as /dev/shm/NAME"
            )));
        }
        if status.st_uid != geteuid().as_raw() || status.st_mode & 0o022 != 0 {
            return Err(self.error(format!(
                "it belongs to user {} with mode {:o}: want a file of user {} that nobody else may write to",
                status.st_uid,
                status.st_mode & 0o7777,
                geteuid().as_raw()
            )));
        }
        Ok(u64::try_from(system.f_bsize).unwrap_or(1))
    }

    /// The descriptor for the memory, which is handed to peers.
    fn open_again(&self, expected: &Stat) -> Result<OwnedFd, MemoryError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = open(self.path, flags, Mode::empty()).map_err(self.failed("open"))?;
        let found = fstat(&fd).map_err(self.failed("fstat"))?;
        if (found.st_dev, found.st_ino) != (expected.st_dev, expected.st_ino) {
            return Err(self.error("somebody replaced it while it was opened"));
        }
        Ok(fd)
    }

    /// Gives a new file its length and its memory. A file that cannot have all of it stays empty.
    fn make(&self, fd: OwnedFd, shape: &Shape, memory: SegmentOptions) -> Result<Segment, MemoryError> {
        let bytes = shape.region_bytes;
        ftruncate(&fd, bytes).map_err(self.failed("ftruncate"))?;
        let copy = fd.try_clone().map_err(|error| self.error(format!("dup: {error}")))?;
        self.map(fd, bytes, memory).inspect_err(|_| {
            let _ = File::from(copy).set_len(0);
        })
    }

    fn map(&self, fd: OwnedFd, bytes: u64, memory: SegmentOptions) -> Result<Segment, MemoryError> {
        loop {
            match fallocate(&fd, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::NOSPC) => {
                    return Err(self.error(format!(
                        "its file system has no room for all of its {bytes} bytes: lend less, or enlarge the file system"
                    )));
                }
                Err(error) => return Err(self.failed("fallocate")(error)),
            }
        }
        let mapped = Mapped::new(fd.as_fd(), bytes)?;
        if memory.prefault {
            prefault::prefault(&mapped)?;
        }
        Ok(Segment::of_file(mapped, fd, bytes))
    }

    fn accept(&self, found: Identity, asked: &Shape, records: u32) -> Result<Identity, MemoryError> {
        let Shape { lent_bytes, place, .. } = found.shape;
        if lent_bytes != asked.lent_bytes {
            return Err(self.error(format!(
                "it holds {lent_bytes} bytes for objects, lend_bytes asks for {}: set lend_bytes to {lent_bytes}, or delete \
                 the file to start anew",
                asked.lent_bytes
            )));
        }
        if records != 0 && place.records != records {
            return Err(self.error(format!(
                "it has {} holdings slots, holdings_slots asks for {records}: set holdings_slots to 0, or delete the file to \
                 start anew",
                place.records
            )));
        }
        Ok(found)
    }
}

/// Whether memory that is not sealed may be mapped all the same: nobody but its owner and root can shorten it.
pub(crate) fn is_kept_by_owner(fd: &OwnedFd, status: &Stat) -> bool {
    #[allow(clippy::cast_sign_loss, reason = "a bit pattern")]
    let is_memory = fstatfs(fd).is_ok_and(|system| matches!(system.f_type as u64, TMPFS | HUGETLBFS));
    let uid = geteuid().as_raw();
    is_memory && (status.st_uid == uid || status.st_uid == 0) && status.st_mode & 0o022 == 0 && status.st_nlink > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use memcache_types::Generation;

    const LENT: u64 = 2 << 20;
    const QUICK: SegmentOptions = SegmentOptions { huge_pages: false, prefault: false };

    /// A name in memory that goes when the test ends.
    struct Name(PathBuf);

    impl Name {
        fn new(test: &str) -> Self {
            Self(PathBuf::from(format!("/dev/shm/memcache-test-{test}-{}", std::process::id())))
        }

        fn options(&self) -> PersistOptions {
            PersistOptions { path: self.0.clone(), lent_bytes: LENT, records: 0, node: 7, deadline: Instant::now() }
        }

        fn error(&self, options: &PersistOptions) -> String {
            let text = Persisted::open(options, &QUICK).unwrap_err().to_string();
            assert!(text.contains(&self.0.display().to_string()), "{text}");
            text
        }
    }

    impl Drop for Name {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_was_written_is_there_for_the_next_owner() {
        let name = Name::new("next");
        let first = Persisted::open(&name.options(), &QUICK).unwrap();
        let table = Holdings::new(first.segment.region(), first.identity.shape);
        table.set_epoch(5);
        first.segment.region().sub(100, 3).unwrap().write_from(b"abc");
        let identity = first.identity;
        drop(first);
        // Another number drawn by its next owner means nothing.
        let second = Persisted::open(&PersistOptions { node: 8, ..name.options() }, &QUICK).unwrap();
        assert_eq!(second.identity, identity);
        let mut seen = [0; 3];
        second.segment.region().sub(100, 3).unwrap().read_into(&mut seen);
        assert_eq!(&seen, b"abc");
        assert_eq!(Holdings::new(second.segment.region(), identity.shape).epoch(), 5);
        assert_eq!(Generation::new(identity.node).get(), 7);
    }

    #[test]
    fn two_owners_are_one_too_many() {
        let name = Name::new("two");
        let first = Persisted::open(&name.options(), &QUICK).unwrap();
        assert!(name.error(&name.options()).contains("another process lends it still"));
        // Peers have the memory, and its former owner is gone: the next one need not wait for them.
        let peer = crate::Mapping::from_fd(first.segment.fd().try_clone_to_owned().unwrap(), LENT).unwrap();
        let Persisted { segment, lock, .. } = first;
        drop(lock);
        let waiting = PersistOptions { deadline: Instant::now() + Duration::from_secs(5), ..name.options() };
        Persisted::open(&waiting, &QUICK).unwrap();
        drop((peer, segment));
    }

    #[test]
    fn files_that_will_not_do_are_named_with_what_to_do() {
        let name = Name::new("wrong");
        drop(Persisted::open(&name.options(), &QUICK).unwrap());
        let larger = name.error(&PersistOptions { lent_bytes: 2 * LENT, ..name.options() });
        assert!(
            larger.contains("2097152") && larger.contains("4194304") && larger.contains("delete the file"),
            "{larger}"
        );
        let slots = name.error(&PersistOptions { records: 3, ..name.options() });
        assert!(slots.contains("holdings_slots asks for 3"), "{slots}");
        std::fs::write(&name.0, vec![7; 100_000]).unwrap();
        assert!(name.error(&name.options()).contains("no segment"));
        std::fs::write(&name.0, vec![0; 100_000]).unwrap();
        assert!(name.error(&name.options()).contains("zeroes"));
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&name.0, open).unwrap();
        assert!(name.error(&name.options()).contains("mode 666"));
        let disk = Name(std::env::temp_dir().join(format!("memcache-test-disk-{}", std::process::id())));
        let text = Persisted::open(&disk.options(), &QUICK).map(drop);
        // Where the folder for temporary files is memory too there is nothing to refuse.
        assert!(text.is_ok() || text.unwrap_err().to_string().contains("is not memory"));
    }

    #[test]
    fn a_file_whose_maker_was_killed_is_made_anew() {
        let name = Name::new("killed");
        let shape = Shape::new(LENT, 0, 4096);
        let file = File::create(&name.0).unwrap();
        std::fs::set_permissions(&name.0, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        file.set_len(shape.region_bytes).unwrap();
        assert_eq!(Persisted::open(&name.options(), &QUICK).unwrap().identity, Identity { shape, node: 7 });
    }

    #[test]
    fn more_than_the_file_system_has_is_an_error_and_leaves_no_memory_taken() {
        let name = Name::new("full");
        let huge = PersistOptions { lent_bytes: 1 << 47, ..name.options() };
        assert!(name.error(&huge).contains("no room"));
        assert_eq!(std::fs::metadata(&name.0).unwrap().len(), 0);
    }
}
