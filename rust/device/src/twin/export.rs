//! The link between twins: what one exports leads another, of this process or of one of the same user and host, to its
//! memfd.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use memcache_memory::Mapping;

use super::arena::{Arena, Far};
use crate::device::{Allocation, DeviceId, HostRange, Reach};
use crate::error::DeviceError;

const MAGIC: [u8; 4] = *b"MCTW";
/// Process, descriptor, file system and number of the memfd; its length; where the memory begins in it and how long it is.
const FIELDS: usize = 7;
/// Longest arena that is mapped, in bytes.
const ARENA_BYTES_MAX: u64 = 1 << 40;

pub(super) fn export(id: DeviceId, arena: &Arena, memory: &Allocation) -> Result<Vec<u8>, DeviceError> {
    let offset = arena.offset_of(memory).ok_or_else(|| DeviceError::Unsupported {
        device: id.to_string(),
        what: "exporting memory that is not its own",
    })?;
    let lost = |error: std::io::Error| DeviceError::Lost { device: id.to_string(), why: error.to_string() };
    let file = File::from(arena.fd().try_clone_to_owned().map_err(lost)?).metadata().map_err(lost)?;
    let descriptor = u64::try_from(arena.fd().as_raw_fd()).unwrap_or(u64::MAX);
    let fields: [u64; FIELDS] =
        [u64::from(std::process::id()), descriptor, file.dev(), file.ino(), arena.bytes(), offset, memory.bytes()];
    Ok(MAGIC.into_iter().chain(fields.into_iter().flat_map(u64::to_le_bytes)).collect())
}

pub(super) fn import(id: DeviceId, arena: &Arena, export: &[u8]) -> Result<Reach, DeviceError> {
    let bad = |why: String| DeviceError::BadExport { device: id.to_string(), why };
    let rest = export.strip_prefix(&MAGIC).ok_or_else(|| bad("no twin made it".to_owned()))?;
    let (fields, more) = rest.as_chunks::<8>();
    let fields: Vec<u64> = fields.iter().map(|field| u64::from_le_bytes(*field)).collect();
    let [process, descriptor, dev, ino, arena_bytes, offset, bytes] = fields[..] else {
        return Err(bad(format!("{} fields; there are {FIELDS}", fields.len())));
    };
    if !more.is_empty() || arena_bytes > ARENA_BYTES_MAX {
        return Err(bad(format!("{} bytes too many, or an arena of {arena_bytes} bytes", more.len())));
    }
    if offset.checked_add(bytes).is_none_or(|end| end > arena_bytes) {
        return Err(bad(format!("{bytes} bytes from {offset} of an arena of {arena_bytes}")));
    }
    // The only way to another process's memfd without a socket to it.
    let path = format!("/proc/{process}/fd/{descriptor}");
    let gone = |error: std::io::Error| bad(format!("{path}: {error}"));
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(gone)?;
    let found = file.metadata().map_err(gone)?;
    if (found.dev(), found.ino(), found.len()) != (dev, ino, arena_bytes) {
        return Err(bad(format!("{path} is another file")));
    }
    let mapping = Mapping::from_fd(OwnedFd::from(file), arena_bytes).map_err(|error| bad(error.to_string()))?;
    let start = usize::try_from(offset).map_err(|_| bad(format!("offset {offset}")))?;
    // SAFETY: offset + bytes <= arena_bytes, the length of the mapping.
    let range = HostRange { base: unsafe { mapping.base().add(start) }, bytes };
    Ok(arena.reach(range, Far::Twin, Arc::new(mapping)))
}
