//! A link that moves every object in parts, so that one suite checks both ways.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use memcache_memory::{Checksum, Part, Trailer, checksum_bytes, checksum_combine, parts_of};
use memcache_transport::{Capabilities, Link, Parts, Protocol, ReadOp, SummedWriteOp, TransportError, WriteOp};
use memcache_types::limits::TRAILER_LEN;

/// Parts an object is cut into.
const PARTS: usize = 5;

/// Objects from this size on are moved by two threads, in bytes.
const THREADS_BYTES_MIN: u64 = 200_000;

/// Moves objects through the [`Parts`] of another link, last part first.
#[derive(Debug)]
pub struct InParts(Arc<dyn Link>);

impl InParts {
    /// Wraps a link that offers parts. Panics for one that does not.
    pub fn new(inner: Arc<dyn Link>) -> Self {
        assert!(inner.parts().is_some(), "{} moves whole objects only", inner.protocol());
        Self(inner)
    }

    fn parts(&self) -> &dyn Parts {
        self.0.parts().expect("checked when it was made")
    }

    fn read_one(&self, op: &ReadOp<'_>, summed: bool, deadline: Instant) -> Result<Found, TransportError> {
        if op.payload_bytes != op.local.bytes() {
            return Err(TransportError::InvalidOp { why: "other bytes than pieces".to_owned() });
        }
        let parts = self.parts();
        parts.begin_read(op.extent, op.local, deadline)?;
        // SAFETY: as for the read this is a part of.
        let copy = |part: Part| unsafe { parts.read_part(op.extent, op.local, part, summed, deadline) };
        let sum = all(&parts_of(op.local, PARTS), op.payload_bytes, &copy)?;
        Ok((parts.end_read(op.extent)?, sum))
    }

    fn write_one(
        &self,
        op: &WriteOp<'_>,
        summed: bool,
        deadline: Instant,
        seal: impl FnOnce(u32) -> [u8; TRAILER_LEN],
    ) -> Result<(), TransportError> {
        if op.payload_bytes != op.local.bytes() {
            return Err(TransportError::InvalidOp { why: "other bytes than pieces".to_owned() });
        }
        let parts = self.parts();
        parts.begin_write(op.extent, op.local, deadline)?;
        // SAFETY: as for the write this is a part of.
        let copy = |part: Part| unsafe { parts.write_part(op.extent, op.local, part, summed, deadline) };
        let sum = all(&parts_of(op.local, PARTS), op.payload_bytes, &copy)?;
        parts.end_write(op.extent, &seal(sum))
    }
}

type Found = ([u8; TRAILER_LEN], u32);

/// Copies all parts, by two threads where there is much to copy; returns the sum of the whole.
fn all(
    parts: &[Part],
    bytes: u64,
    copy: &(dyn Fn(Part) -> Result<Option<u32>, TransportError> + Sync),
) -> Result<u32, TransportError> {
    let copied = |parts: &[Part]| parts.iter().rev().map(|part| copy(*part)).collect::<Vec<_>>();
    let (first, second) = parts.split_at(parts.len() / 2);
    let (mut sums, late) = if bytes < THREADS_BYTES_MIN {
        (copied(second), copied(first))
    } else {
        thread::scope(|scope| {
            let other = scope.spawn(|| copied(second));
            let mine = copied(first);
            (other.join().expect("a copying thread"), mine)
        })
    };
    sums.extend(late);
    let mut whole = checksum_bytes(b"");
    for (part, sum) in parts.iter().zip(sums.into_iter().rev()) {
        whole = checksum_combine(whole, sum?.unwrap_or(0), part.bytes());
    }
    Ok(whole)
}

impl Link for InParts {
    fn protocol(&self) -> Protocol {
        self.0.protocol()
    }

    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    unsafe fn read(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<[u8; TRAILER_LEN], TransportError>> {
        ops.iter().map(|op| self.read_one(op, false, deadline).map(|(trailer, _)| trailer)).collect()
    }

    unsafe fn write(&self, ops: &[WriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        ops.iter().map(|op| self.write_one(op, false, deadline, |_| *op.trailer)).collect()
    }

    unsafe fn read_summed(&self, ops: &[ReadOp<'_>], deadline: Instant) -> Vec<Result<Found, TransportError>> {
        ops.iter().map(|op| self.read_one(op, true, deadline)).collect()
    }

    unsafe fn write_summed(&self, ops: &[SummedWriteOp<'_>], deadline: Instant) -> Vec<Result<(), TransportError>> {
        let one = |op: &SummedWriteOp<'_>| {
            let plain = WriteOp {
                extent: op.extent,
                payload_bytes: op.trailer.payload_bytes,
                local: op.local,
                trailer: &Trailer::RETRACTED,
            };
            let seal = |sum| Trailer { checksum: Checksum::Crc32c(sum), ..*op.trailer }.encode();
            self.write_one(&plain, true, deadline, seal)
        };
        ops.iter().map(one).collect()
    }

    fn is_open(&self) -> bool {
        self.0.is_open()
    }
}
