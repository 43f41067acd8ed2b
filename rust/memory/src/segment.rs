//! Memory that this node lends to the pool.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memcache_types::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

use crate::error::MemoryError;
use crate::mapped::Mapped;
use crate::prefault;
use crate::region::RawRegion;

/// Length of the huge pages asked for, in bytes.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// How a segment is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentOptions {
    /// Take 2 MiB pages from the system's reserve, if it has enough of them. Saves page-table work and
    /// registration time; copying gains little. Without a reserve a warning is logged and normal pages
    /// are used.
    pub huge_pages: bool,
    /// Touch every page now. Costs about one second a GiB, once; without it the first write to each
    /// page pays instead.
    pub prefault: bool,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        Self { huge_pages: false, prefault: true }
    }
}

/// One contiguous run of lent memory: a memfd that can neither grow nor shrink, or a file (see
/// [`persist`](crate::persist)), mapped shared.
///
/// Use it as `Arc<Segment>`: links and servers keep it alive while they copy.
#[derive(Debug)]
pub struct Segment {
    mapped: Mapped,
    fd: OwnedFd,
    bytes: u64,
}

impl Segment {
    /// Makes a segment of `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`MemoryError::Size`] outside [`SEGMENT_BYTES_MIN`]..=[`SEGMENT_BYTES_MAX`];
    /// [`MemoryError::System`] when the system has not that much memory to give.
    pub fn create(bytes: u64, options: &SegmentOptions) -> Result<Self, MemoryError> {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
            return Err(MemoryError::Size { bytes, min: SEGMENT_BYTES_MIN, max: SEGMENT_BYTES_MAX });
        }
        if options.huge_pages {
            match Self::build(bytes, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, options.prefault) {
                Ok(segment) => return Ok(segment),
                Err(error) => {
                    tracing::warn!(%error, bytes, "no huge pages for this segment, using normal pages; see vm.nr_hugepages");
                }
            }
        }
        let segment = Self::build(bytes, MemfdFlags::empty(), false)?;
        if options.huge_pages {
            // Transparent huge pages for shared memory are off on most systems; asking costs nothing.
            // SAFETY: advice on a mapping this process owns; it changes no byte.
            let advised =
                unsafe { madvise(segment.base().as_ptr().cast(), segment.mapped.len(), Advice::LinuxHugepage) };
            if let Err(error) = advised {
                tracing::debug!(%error, "transparent huge pages not available for this segment");
            }
        }
        if options.prefault {
            prefault::prefault(&segment.mapped)?;
        }
        Ok(segment)
    }

    fn build(bytes: u64, flags: MemfdFlags, prefault: bool) -> Result<Self, MemoryError> {
        let failed = |operation| move |source: Errno| MemoryError::system(operation, bytes, source);
        let fd = memfd_create("memcache-segment", flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(failed("memfd_create"))?;
        let length = if flags.contains(MemfdFlags::HUGETLB) { bytes.next_multiple_of(HUGE_PAGE_BYTES) } else { bytes };
        ftruncate(&fd, length).map_err(failed("ftruncate"))?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(failed("fcntl(F_ADD_SEALS)"))?;
        // All of it is mapped, since huge pages can only be mapped whole; the rounding is not lent.
        let mapped = Mapped::new(fd.as_fd(), length)?;
        if prefault {
            prefault::prefault(&mapped)?;
        }
        Ok(Self { mapped, fd, bytes })
    }

    /// A segment in a file.
    pub(crate) fn of_file(mapped: Mapped, fd: OwnedFd, bytes: u64) -> Self {
        Self { mapped, fd, bytes }
    }

    /// Length in bytes, as asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The memfd or file, to be handed to peers of this host.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.mapped.base()
    }

    /// A view of all of it.
    pub fn region(&self) -> RawRegion<'_> {
        let whole = self.mapped.region();
        whole.sub(0, self.bytes).unwrap_or(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_zero_and_sealed() {
        let segment = Segment::create(SEGMENT_BYTES_MIN, &SegmentOptions::default()).unwrap();
        assert_eq!(segment.bytes(), SEGMENT_BYTES_MIN);
        assert_eq!(ftruncate(segment.fd(), 4096), Err(Errno::PERM));
        assert_eq!(ftruncate(segment.fd(), 2 * SEGMENT_BYTES_MIN), Err(Errno::PERM));
        let mut last = [1u8; 64];
        segment.region().sub(SEGMENT_BYTES_MIN - 64, 64).unwrap().read_into(&mut last);
        assert_eq!(last, [0; 64]);
    }

    #[test]
    fn lengths_outside_the_limits_are_refused() {
        for bytes in [0, SEGMENT_BYTES_MIN - 1, SEGMENT_BYTES_MAX + 1] {
            let error = Segment::create(bytes, &SegmentOptions::default()).unwrap_err();
            assert!(matches!(error, MemoryError::Size { .. }), "{error}");
        }
    }

    #[test]
    fn huge_pages_are_used_if_there_are_any() {
        // Not a whole number of huge pages, so that the rounding shows on machines that have some.
        let options = SegmentOptions { huge_pages: true, prefault: false };
        let segment = Segment::create(SEGMENT_BYTES_MIN + 4096, &options).unwrap();
        assert_eq!(segment.region().bytes(), SEGMENT_BYTES_MIN + 4096);
        let mapping = crate::Mapping::from_fd(segment.fd().try_clone_to_owned().unwrap(), segment.bytes()).unwrap();
        assert_eq!(mapping.region().bytes(), SEGMENT_BYTES_MIN + 4096);
    }

    #[test]
    fn a_mapping_is_warmed_to_its_end() {
        let segment = Segment::create(crate::mapping::WARM_BYTES + 4096, &SegmentOptions::default()).unwrap();
        let mapping = crate::Mapping::from_fd(segment.fd().try_clone_to_owned().unwrap(), segment.bytes()).unwrap();
        let steps: Vec<u64> = std::iter::successors(Some(0), |offset| mapping.warm(*offset)).collect();
        assert_eq!(steps, [0, crate::mapping::WARM_BYTES, segment.bytes()]);
    }

    #[test]
    fn a_mapping_shows_the_same_bytes_and_checks_what_it_gets() {
        let segment =
            Segment::create(SEGMENT_BYTES_MIN, &SegmentOptions { huge_pages: false, prefault: false }).unwrap();
        let copy = segment.fd().try_clone_to_owned().unwrap();
        let mapping = crate::Mapping::from_fd(copy, segment.bytes()).unwrap();
        segment.region().sub(100, 3).unwrap().write_from(b"abc");
        let mut seen = [0; 3];
        mapping.region().sub(100, 3).unwrap().read_into(&mut seen);
        assert_eq!(&seen, b"abc");

        assert_eq!(mapping.warm(0), None, "memory that its owner has not touched is taken from the system");

        let copy = segment.fd().try_clone_to_owned().unwrap();
        let short = crate::Mapping::from_fd(copy, segment.bytes() + 1).unwrap_err();
        assert!(matches!(short, MemoryError::Short { .. }), "{short}");

        let open = memfd_create("unsealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&open, 8192).unwrap();
        let unsealed = crate::Mapping::from_fd(open, 8192).unwrap_err();
        assert!(matches!(unsealed, MemoryError::Unsealed), "{unsealed}");
    }
}
