//! What a segment holds, written in the segment: a table of records, and one page about the segment itself.
//!
//! Where they are is [`memcache_types::holdings`]'s affair; here is what stands in them. Every part is an extent with a
//! trailer and written as one: nothing half written is ever taken for a whole.
//!
//! | bytes of the header page | |
//! |---|---|
//! | 0..512 | what the segment is: [`Identity`] |
//! | 512..576 | life of the `MetaService` that it was lent under last |
//! | 576..640 | newest incarnation that lent it |
//! | 1024..2048 | floors |

use std::collections::HashMap;

use memcache_types::holdings::{FLOORS, RECORD_BYTES, RECORD_HEAD_BYTES, RECORD_LEN, RECORDS_MAX};
use memcache_types::limits::{EXTENT_ALIGN, KEY_BYTES_MAX, OBJECT_BYTES_MAX, TRAILER_BYTES, TRAILER_LEN};
use memcache_types::{Generation, HoldingsPlace, KeyDigest, extent_bytes};

use crate::checksum::checksum_bytes;
use crate::region::RawRegion;
use crate::trailer::{Checksum, Trailer};

/// Length of the header page.
pub const HEADER_BYTES: u64 = 4096;
const FLOORS_AT: u64 = 1024;
const IDENTITY_LEN: usize = 512;
const IDENTITY_BYTES: u64 = IDENTITY_LEN as u64;
const EPOCH_AT: u64 = 512;
const INCARNATION_AT: u64 = 576;

const MAGIC: [u8; 8] = *b"MEMCACHE";
const VERSION: u32 = 1;

/// Lent bytes for which there is one record unless told otherwise.
const BYTES_A_RECORD: u64 = 64 << 10;
/// Records of a small segment, as far as they fit objects of 4 KiB.
const RECORDS_FLOOR: u64 = 1024;

/// How a segment is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes that objects may take, from the start.
    pub lent_bytes: u64,
    /// Table and floors.
    pub place: HoldingsPlace,
    /// All of it. The header page is its end.
    pub region_bytes: u64,
}

impl Shape {
    /// The shape of a segment that lends `lent_bytes` bytes and writes down up to `records` objects (0: one for every
    /// 64 KiB, and 1,024 for small segments), in whole pages of `page_bytes` bytes.
    pub fn new(lent_bytes: u64, records: u32, page_bytes: u64) -> Self {
        let usual = (lent_bytes / BYTES_A_RECORD).max(RECORDS_FLOOR.min(lent_bytes / 4096));
        let records = if records == 0 { u32::try_from(usual).unwrap_or(RECORDS_MAX) } else { records };
        let records = records.min(RECORDS_MAX);
        let table_offset = lent_bytes.saturating_add(HEADER_BYTES - 1) / HEADER_BYTES * HEADER_BYTES;
        let needed = table_offset + u64::from(records) * RECORD_BYTES + HEADER_BYTES;
        let region_bytes = needed.next_multiple_of(page_bytes.max(HEADER_BYTES));
        let floors_offset = region_bytes - HEADER_BYTES + FLOORS_AT;
        Self { lent_bytes, place: HoldingsPlace { table_offset, records, floors_offset }, region_bytes }
    }

    fn header(&self) -> u64 {
        self.region_bytes - HEADER_BYTES
    }
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// How it is divided.
    pub shape: Shape,
    /// The node that lends it, over all its lives.
    pub node: u64,
}

/// Why the end of some memory is no header page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotASegment {
    /// Nothing stands there.
    Blank,
    /// Something else does.
    Foreign,
    /// Written by another version of this software.
    Version(u32),
}

/// One object that a table names and that is there, whole as far as trailers can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Place in the table.
    pub record: u32,
    /// First byte of the object.
    pub offset: u64,
    /// Length of its payload.
    pub payload_bytes: u64,
    /// Which writing.
    pub generation: Generation,
    /// The put that its bytes come from: the lowest generation of the tickets of that put.
    pub origin: Generation,
    /// How many replicas its key should have.
    pub wanted: u32,
    /// Whether its trailer carries a checksum of the payload.
    pub summed: bool,
    /// Its key.
    pub key: Box<[u8]>,
}

/// What a writer puts into a record beside the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// First byte of the object.
    pub offset: u64,
    /// Length of its payload.
    pub payload_bytes: u64,
    /// The put that its bytes come from: the lowest generation of the tickets of that put.
    pub origin: Generation,
    /// How many replicas its key should have.
    pub wanted: u32,
}

/// The payload of a record.
pub fn record_payload(head: &RecordHead, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_HEAD_BYTES + key.len());
    for number in [head.offset, head.payload_bytes, head.origin.get(), u64::from(head.wanted)] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(key);
    bytes
}

/// The trailer of a record with this payload.
pub fn record_trailer(payload: &[u8], digest: KeyDigest, generation: Generation) -> Trailer {
    let checksum = Checksum::Crc32c(checksum_bytes(payload));
    Trailer { digest, generation, payload_bytes: payload.len() as u64, checksum }
}

/// The trailer that is a floor: nothing of this generation or an older one may come back.
pub fn floor_trailer(generation: Generation) -> Trailer {
    mark(generation.get())
}

/// An extent that is only a number. No number of ours is 0, which a trailer cannot carry.
fn mark(number: u64) -> Trailer {
    let generation = Generation::new(number.max(1));
    Trailer { digest: KeyDigest::from_u128(0), generation, payload_bytes: 0, checksum: Checksum::None }
}

/// The table and the header page of one mapped segment.
#[derive(Clone, Copy, Debug)]
pub struct Holdings<'a> {
    region: RawRegion<'a>,
    shape: Shape,
}

impl<'a> Holdings<'a> {
    /// Those of a segment of this shape. Parts that the region does not have are passed over.
    pub fn new(region: RawRegion<'a>, shape: Shape) -> Self {
        Self { region, shape }
    }

    /// Writes down what the segment is.
    pub fn write_identity(&self, node: u64) {
        let mut payload = Vec::with_capacity(64);
        payload.extend_from_slice(&MAGIC);
        payload.extend_from_slice(&VERSION.to_le_bytes());
        payload.extend_from_slice(&self.shape.place.records.to_le_bytes());
        for number in [self.shape.lent_bytes, self.shape.place.table_offset, self.shape.region_bytes, node] {
            payload.extend_from_slice(&number.to_le_bytes());
        }
        if let Some(extent) = self.extent(self.shape.header(), IDENTITY_BYTES) {
            extent.retract_trailer();
            extent.write_from(&payload);
            let trailer = record_trailer(&payload, KeyDigest::of(&MAGIC), Generation::new(1));
            extent.publish_trailer(&trailer.encode());
        }
    }

    /// Newest life of the `MetaService` that the memory was lent under; 0: never lent.
    pub fn epoch(&self) -> u64 {
        self.number(self.shape.header() + EPOCH_AT)
    }

    /// Notes the life of the `MetaService` that the memory is lent under.
    pub fn set_epoch(&self, epoch: u64) {
        self.set_number(self.shape.header() + EPOCH_AT, epoch);
    }

    /// Newest incarnation that lent the memory; 0: none.
    pub fn incarnation(&self) -> u64 {
        self.number(self.shape.header() + INCARNATION_AT)
    }

    /// Notes the incarnation that lends the memory.
    pub fn set_incarnation(&self, incarnation: u64) {
        self.set_number(self.shape.header() + INCARNATION_AT, incarnation);
    }

    /// Nothing of this generation or an older one may come back; 0: no such bound.
    pub fn floor(&self) -> u64 {
        let floors = (0..u64::from(FLOORS)).map(|turn| self.number(self.shape.place.floor_offset(turn)));
        floors.max().unwrap_or(0)
    }

    /// Raises the floor.
    pub fn raise_floor(&self, floor: u64) {
        if floor > self.floor() {
            // The lowest one gives way: the others may be newer than what we were told.
            let lowest = (0..u64::from(FLOORS)).min_by_key(|turn| self.number(self.shape.place.floor_offset(*turn)));
            self.set_number(self.shape.place.floor_offset(lowest.unwrap_or(0)), floor);
        }
    }

    /// Every object that is recorded and there, oldest writing first, and clears every other record. Of objects that
    /// meet, the later written one stays: its writer came last.
    pub fn scan(&self) -> Vec<Holding> {
        let floor = self.floor();
        let mut found: Vec<Holding> = Vec::new();
        for record in 0..self.shape.place.records {
            let Some(mut holding) = self.read(record) else { continue };
            match self.object_of(&holding).filter(|_| holding.origin.get() > floor) {
                Some(trailer) => {
                    holding.summed = trailer.checksum != Checksum::None;
                    found.push(holding);
                }
                None => self.clear(record),
            }
        }
        let mut kept = without_overlaps(found, |record| self.clear(record));
        kept.sort_unstable_by_key(|holding| holding.generation);
        kept
    }

    /// Clears every record that is not of this writing: place in the table to generation.
    pub fn keep_only(&self, kept: &HashMap<u32, Generation>) {
        for record in 0..self.shape.place.records {
            let found = self.record(record).and_then(|extent| Trailer::decode(&extent.load_trailer()));
            if let Some(found) = found
                && kept.get(&record) != Some(&found.generation)
            {
                self.clear(record);
            }
        }
    }

    /// Takes a record away.
    pub fn clear(&self, record: u32) {
        if let Some(extent) = self.record(record) {
            extent.retract_trailer();
        }
    }

    /// Takes the record at this offset away, if one may stand there.
    pub fn clear_at(&self, offset: u64) {
        if let Some(extent) = self.record_at(offset) {
            extent.retract_trailer();
        }
    }

    /// Takes the record at this offset away if it is still of this writing.
    pub fn clear_at_if(&self, offset: u64, generation: Generation) {
        let extent = self.record_at(offset);
        if let Some(extent) = extent
            .filter(|one| Trailer::decode(&one.load_trailer()).is_some_and(|found| found.generation == generation))
        {
            extent.retract_trailer();
        }
    }

    /// Writes a record at this offset, if one may stand there.
    pub fn write_at(&self, offset: u64, head: &RecordHead, key: &[u8], generation: Generation) {
        let payload = record_payload(head, key);
        let length = payload.len() as u64;
        if let Some(extent) = self.record_at(offset).filter(|_| length + TRAILER_BYTES <= RECORD_BYTES) {
            extent.retract_trailer();
            extent.write_from(&payload);
            extent.publish_trailer(&record_trailer(&payload, KeyDigest::of(key), generation).encode());
        }
    }

    fn record_at(&self, offset: u64) -> Option<RawRegion<'a>> {
        let at = offset.checked_sub(self.shape.place.table_offset)?;
        let record = u32::try_from(at / RECORD_BYTES).ok()?;
        let is_place = at.is_multiple_of(RECORD_BYTES) && record < self.shape.place.records;
        is_place.then(|| self.record(record)).flatten()
    }

    fn read(&self, record: u32) -> Option<Holding> {
        let extent = self.record(record)?;
        Trailer::decode(&extent.load_trailer())?;
        let mut bytes = [0; RECORD_LEN - TRAILER_LEN];
        extent.read_into(&mut bytes);
        // Looked at again behind the payload: a writer may be at work.
        let trailer = Trailer::decode(&extent.load_trailer())?;
        let length = usize::try_from(trailer.payload_bytes).ok()?;
        if !(RECORD_HEAD_BYTES + 1..=RECORD_HEAD_BYTES + KEY_BYTES_MAX).contains(&length) {
            return None;
        }
        let payload = &bytes[..length];
        let (head, key) = payload.split_at(RECORD_HEAD_BYTES);
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| head[at + index]));
        let is_sound = trailer == record_trailer(payload, KeyDigest::of(key), trailer.generation);
        is_sound.then(|| Holding {
            record,
            offset: number(0),
            payload_bytes: number(8),
            generation: trailer.generation,
            origin: Generation::new(number(16)),
            wanted: u32::try_from(number(24)).unwrap_or(1),
            summed: false,
            key: key.into(),
        })
    }

    /// The trailer of the object that a record speaks of, if it stands where it says.
    fn object_of(&self, holding: &Holding) -> Option<Trailer> {
        let bytes = extent_bytes(holding.payload_bytes);
        let is_inside = holding.payload_bytes <= OBJECT_BYTES_MAX
            && holding.offset.is_multiple_of(EXTENT_ALIGN)
            && holding.offset.checked_add(bytes).is_some_and(|end| end <= self.shape.lent_bytes);
        let extent = if is_inside { self.extent(holding.offset, bytes) } else { None };
        extent.and_then(|extent| Trailer::decode(&extent.load_trailer())).filter(|found| {
            (found.generation, found.payload_bytes, found.digest)
                == (holding.generation, holding.payload_bytes, KeyDigest::of(&holding.key))
        })
    }

    fn record(&self, record: u32) -> Option<RawRegion<'a>> {
        self.extent(self.shape.place.record_offset(record), RECORD_BYTES)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Option<RawRegion<'a>> {
        self.region.sub(offset, bytes).ok()
    }

    fn number(&self, offset: u64) -> u64 {
        let found = self.extent(offset, TRAILER_BYTES).and_then(|extent| Trailer::decode(&extent.load_trailer()));
        found.map_or(0, |found| found.generation.get())
    }

    fn set_number(&self, offset: u64, number: u64) {
        if let Some(extent) = self.extent(offset, TRAILER_BYTES) {
            extent.retract_trailer();
            extent.publish_trailer(&mark(number).encode());
        }
    }
}

/// What the end of some memory says about it.
///
/// # Errors
/// [`NotASegment`] saying what stands there instead.
pub fn identity(region: RawRegion<'_>) -> Result<Identity, NotASegment> {
    let header = region.bytes().checked_sub(HEADER_BYTES).ok_or(NotASegment::Blank)?;
    let extent = region.sub(header, IDENTITY_BYTES).map_err(|_| NotASegment::Blank)?;
    let mut bytes = [0; IDENTITY_LEN - TRAILER_LEN];
    extent.read_into(&mut bytes);
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(NotASegment::Blank);
    }
    if bytes[..8] != MAGIC {
        return Err(NotASegment::Foreign);
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
    if word(8) != VERSION {
        return Err(NotASegment::Version(word(8)));
    }
    let trailer = record_trailer(&bytes[..48], KeyDigest::of(&MAGIC), Generation::new(1));
    if Trailer::decode(&extent.load_trailer()) != Some(trailer) {
        return Err(NotASegment::Foreign);
    }
    let (records, lent_bytes, region_bytes) = (word(12), number(16), number(32));
    let place = HoldingsPlace { table_offset: number(24), records, floors_offset: header + FLOORS_AT };
    if region_bytes != region.bytes() || !place.is_behind(lent_bytes) {
        return Err(NotASegment::Foreign);
    }
    Ok(Identity { shape: Shape { lent_bytes, place, region_bytes }, node: number(40) })
}

/// Leaves out whatever meets a later written object.
fn without_overlaps(mut found: Vec<Holding>, mut drop: impl FnMut(u32)) -> Vec<Holding> {
    found.sort_unstable_by_key(|holding| holding.offset);
    let mut kept: Vec<Holding> = Vec::with_capacity(found.len());
    for holding in found {
        let mut is_newest = true;
        while let Some(last) = kept.last()
            && last.offset + extent_bytes(last.payload_bytes) > holding.offset
        {
            if last.generation > holding.generation {
                is_newest = false;
                break;
            }
            drop(last.record);
            kept.pop();
        }
        if is_newest {
            kept.push(holding);
        } else {
            drop(holding.record);
        }
    }
    kept
}

#[cfg(test)]
mod tests;
