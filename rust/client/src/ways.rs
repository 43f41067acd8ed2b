//! The two ways bytes go: from the pool to local memory and back.

use std::sync::Arc;
use std::time::Instant;

use memcache_memory::{Checksum, Part, Trailer};
use memcache_transport::{Link, Parts, ReadOp, SummedWriteOp, TransportError, WriteOp};
use memcache_types::limits::TRAILER_LEN;
use memcache_types::{Extent, ScatterList};

use crate::buffer::Buffers;
use crate::errands::Whom;
use crate::jobs::Kind;
use crate::path::Paths;
use crate::record::Record;
use crate::transfer::{Move, MoveError, Transfer};

/// What a read found: the trailer behind the payload, and the payload's CRC-32C if a sum was asked for.
pub(crate) type Found = ([u8; TRAILER_LEN], Option<u32>);

/// Reading or writing. The lists given are those of a [`Buffers`], whose maker promised that the pieces may be touched
/// until the transfer ends; every task holds the buffers' owner until then.
pub(crate) trait Way: Send + Sync + Sized + 'static {
    /// What is known of an object that was moved.
    type Found: Send + 'static;

    /// The queue its tasks stand in.
    const KIND: Kind;

    /// The queue of calls over the link at this address.
    fn whom(link: usize) -> Whom;

    /// Moves whole objects, all of them with a sum or none.
    fn whole(
        link: &dyn Link,
        moves: &[Move],
        buffers: &Buffers,
        deadline: Instant,
    ) -> Vec<Result<Self::Found, MoveError>>;

    /// As [`whole`](Self::whole), to and from memory that links cannot scatter to by themselves.
    fn planned(
        paths: &Paths,
        transfer: &Transfer<Self>,
        link: &Arc<dyn Link>,
        moves: &[Move],
    ) -> Vec<Result<Self::Found, MoveError>>;

    /// Before the parts of an object.
    fn begin(parts: &dyn Parts, one: &Move, list: &ScatterList, deadline: Instant) -> Result<(), TransportError>;

    /// Moves one part.
    fn part(
        parts: &dyn Parts,
        one: &Move,
        list: &ScatterList,
        part: Part,
        deadline: Instant,
    ) -> Result<Option<u32>, TransportError>;

    /// After all parts of an object, with their common CRC-32C if one was made.
    fn end(
        link: &dyn Link,
        parts: &dyn Parts,
        one: &Move,
        sum: Option<u32>,
        deadline: Instant,
    ) -> Result<Self::Found, TransportError>;
}

/// From the pool into the buffers.
pub(crate) enum Reads {}

/// From the buffers into the pool.
pub(crate) enum Writes {}

impl Way for Reads {
    type Found = Found;
    const KIND: Kind = Kind::Load;

    fn whom(link: usize) -> Whom {
        Whom::Read(link)
    }

    fn whole(link: &dyn Link, moves: &[Move], buffers: &Buffers, deadline: Instant) -> Vec<Result<Found, MoveError>> {
        let ops: Vec<ReadOp<'_>> = moves
            .iter()
            .map(|one| ReadOp {
                extent: one.extent,
                payload_bytes: one.trailer.payload_bytes,
                local: buffers.list(one.index),
            })
            .collect();
        if moves.iter().any(|one| one.summed) {
            // SAFETY: the pieces may be written until the transfer ends, by the promise `Buffers` was made under.
            let found = unsafe { link.read_summed(&ops, deadline) };
            found.into_iter().map(|one| Ok(one.map(|(trailer, sum)| (trailer, Some(sum)))?)).collect()
        } else {
            // SAFETY: as above.
            let found = unsafe { link.read(&ops, deadline) };
            found.into_iter().map(|one| Ok(one.map(|trailer| (trailer, None))?)).collect()
        }
    }

    fn planned(
        paths: &Paths,
        transfer: &Transfer<Self>,
        link: &Arc<dyn Link>,
        moves: &[Move],
    ) -> Vec<Result<Found, MoveError>> {
        let summed = moves.iter().any(|one| one.summed);
        let found = paths.read(&transfer.stats, link, moves, &transfer.buffers, summed, transfer.deadline);
        found.into_iter().map(|one| Ok(one?)).collect()
    }

    fn begin(parts: &dyn Parts, one: &Move, list: &ScatterList, deadline: Instant) -> Result<(), TransportError> {
        parts.begin_read(one.extent, list, deadline)
    }

    fn part(
        parts: &dyn Parts,
        one: &Move,
        list: &ScatterList,
        part: Part,
        deadline: Instant,
    ) -> Result<Option<u32>, TransportError> {
        // SAFETY: the pieces may be written until the transfer ends, by the promise `Buffers` was made under.
        unsafe { parts.read_part(one.extent, list, part, one.summed, deadline) }
    }

    fn end(
        _link: &dyn Link,
        parts: &dyn Parts,
        one: &Move,
        sum: Option<u32>,
        _deadline: Instant,
    ) -> Result<Found, TransportError> {
        Ok((parts.end_read(one.extent)?, sum))
    }
}

impl Way for Writes {
    type Found = ();
    const KIND: Kind = Kind::Save;

    fn whom(link: usize) -> Whom {
        Whom::Write(link)
    }

    fn whole(link: &dyn Link, moves: &[Move], buffers: &Buffers, deadline: Instant) -> Vec<Result<(), MoveError>> {
        let results = if moves.iter().any(|one| one.summed) {
            let ops = pairs(moves, buffers).map(|(extent, local, trailer)| SummedWriteOp { extent, local, trailer });
            let ops: Vec<SummedWriteOp<'_>> = ops.collect();
            // SAFETY: the pieces may be read until the transfer ends, by the promise `Buffers` was made under; records
            // own theirs.
            unsafe { link.write_summed(&ops, deadline) }
        } else {
            let trailers: Vec<[u8; TRAILER_LEN]> =
                pairs(moves, buffers).map(|(_, _, trailer)| trailer.encode()).collect();
            let ops: Vec<WriteOp<'_>> = pairs(moves, buffers)
                .zip(&trailers)
                .map(|((extent, local, said), trailer)| WriteOp {
                    extent,
                    payload_bytes: said.payload_bytes,
                    local,
                    trailer,
                })
                .collect();
            // SAFETY: as above.
            unsafe { link.write(&ops, deadline) }
        };
        with_records(moves, results)
    }

    fn planned(
        paths: &Paths,
        transfer: &Transfer<Self>,
        link: &Arc<dyn Link>,
        moves: &[Move],
    ) -> Vec<Result<(), MoveError>> {
        let summed = moves.iter().any(|one| one.summed);
        let mut records = write_records(&**link, moves, transfer.deadline).into_iter();
        let objects = paths.write(&transfer.stats, link, moves, &transfer.buffers, summed, transfer.deadline);
        let both = moves
            .iter()
            .zip(objects)
            .flat_map(|(one, object)| one.record.as_ref().and_then(|_| records.next()).into_iter().chain([object]));
        with_records(moves, both.collect())
    }

    fn begin(parts: &dyn Parts, one: &Move, list: &ScatterList, deadline: Instant) -> Result<(), TransportError> {
        parts.begin_write(one.extent, list, deadline)
    }

    fn part(
        parts: &dyn Parts,
        one: &Move,
        list: &ScatterList,
        part: Part,
        deadline: Instant,
    ) -> Result<Option<u32>, TransportError> {
        // SAFETY: the pieces may be read until the transfer ends, by the promise `Buffers` was made under.
        unsafe { parts.write_part(one.extent, list, part, one.summed, deadline) }
    }

    fn end(
        link: &dyn Link,
        parts: &dyn Parts,
        one: &Move,
        sum: Option<u32>,
        deadline: Instant,
    ) -> Result<(), TransportError> {
        if let Some(Record { extent, trailer, local, .. }) = &one.record {
            let op =
                WriteOp { extent: *extent, payload_bytes: trailer.payload_bytes, local, trailer: &trailer.encode() };
            // SAFETY: the record owns its payload.
            unsafe { link.write(&[op], deadline) }.into_iter().collect::<Result<(), _>>()?;
        }
        let checksum = sum.map_or(Checksum::None, Checksum::Crc32c);
        parts.end_write(one.extent, &Trailer { checksum, ..one.trailer }.encode())
    }
}

/// Writes the records alone: they are host memory wherever their objects are.
fn write_records(link: &dyn Link, moves: &[Move], deadline: Instant) -> Vec<Result<(), TransportError>> {
    let records = moves.iter().filter_map(|one| one.record.as_ref());
    let trailers: Vec<[u8; TRAILER_LEN]> = records.clone().map(|one| one.trailer.encode()).collect();
    let ops = records.zip(&trailers).map(|(one, trailer)| WriteOp {
        extent: one.extent,
        payload_bytes: one.trailer.payload_bytes,
        local: &one.local,
        trailer,
    });
    let ops: Vec<WriteOp<'_>> = ops.collect();
    // SAFETY: records own their bytes.
    unsafe { link.write(&ops, deadline) }
}

/// What is to be written: for each object its record, if it gets one, and itself.
fn pairs<'a>(moves: &'a [Move], buffers: &'a Buffers) -> impl Iterator<Item = (Extent, &'a ScatterList, &'a Trailer)> {
    moves.iter().flat_map(|one| {
        let record = one.record.as_ref().map(|record| (record.extent, &record.local, &record.trailer));
        record.into_iter().chain([(one.extent, buffers.list(one.index), &one.trailer)])
    })
}

/// One result for each object: the trouble of its record is its own.
fn with_records(moves: &[Move], results: Vec<Result<(), TransportError>>) -> Vec<Result<(), MoveError>> {
    let mut results = results.into_iter();
    let mut next = || results.next().unwrap_or(Err(TransportError::PeerGone));
    moves
        .iter()
        .map(|one| {
            let record = one.record.as_ref().map_or(Ok(()), |_| next());
            Ok(next().and(record)?)
        })
        .collect()
}
