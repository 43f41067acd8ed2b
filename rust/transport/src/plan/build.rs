//! From objects to steps: adjacent pieces merged, everything cut to the limits.

use memcache_types::limits::EXTENT_ALIGN;

use super::input::{LocalView, PeerView, PlanObject, Staging};
use super::{Part, Path, PieceCopy, Step};
use crate::relay::RELAY_RUNS_MAX;

/// What one step may hold.
pub(super) struct Limits {
    /// Slots to go round; `None` for direct transfers.
    staging: Option<Staging>,
    /// Most bytes of a step.
    step_bytes: u64,
    /// Most bytes of a part.
    part_bytes: u64,
    /// Most pieces of a part.
    part_pieces: usize,
    /// Most pieces of a step.
    step_pieces: usize,
    /// Most parts of a step.
    step_parts: usize,
    /// Longest piece.
    piece_bytes: u64,
    align: u64,
    /// Whether pieces count from the start of the region instead of the slot.
    from_region: bool,
}

impl Limits {
    /// The limits of a path over this link. `step_bytes` says how much of a slot to use.
    pub(super) fn new(path: Path, peer: &PeerView, local: &LocalView, step_bytes: u64) -> Self {
        let link = &peer.capabilities;
        let over_link = local.cpu_touches || path == Path::Host;
        let staging = staging_of(path, peer, local);
        let is_direct = staging.is_none();
        let step_bytes = if staging.is_some() { step_bytes } else { u64::MAX };
        // Copies of the device keep their own limits; where the link scatters by itself, only its limits count.
        let (piece_bytes, align) = match (over_link, is_direct) {
            (true, true) => (u64::MAX, 1),
            _ => (local.copy_bytes_max.max(EXTENT_ALIGN), local.align.max(1)),
        };
        let piece_bytes = (piece_bytes / align.max(EXTENT_ALIGN)).max(1).saturating_mul(align.max(EXTENT_ALIGN));
        let part_bytes = if over_link { link.payload_bytes_max } else { piece_bytes };
        Self {
            staging,
            step_bytes,
            part_bytes: if is_direct && !over_link { u64::MAX } else { part_bytes.min(step_bytes).max(EXTENT_ALIGN) },
            part_pieces: if over_link && is_direct { link.pieces_max.max(1) } else { usize::MAX },
            step_parts: if path == Path::Relay { RELAY_RUNS_MAX } else { usize::MAX },
            step_pieces: if over_link && is_direct { usize::MAX } else { local.batch_copies_max.max(1) },
            piece_bytes,
            align,
            from_region: is_direct,
        }
    }
}

/// What a path is staged in; `None` where it is not staged, or there is no such staging.
pub(super) fn staging_of(path: Path, peer: &PeerView, local: &LocalView) -> Option<Staging> {
    match (path, local.cpu_touches) {
        (Path::Direct, _) | (Path::Host, true) => None,
        (Path::Host, false) => local.pinned,
        (Path::Staged, _) | (Path::Relay, true) => local.staging,
        // A slot here for each slot there.
        (Path::Relay, false) => local.staging.zip(peer.relay.as_ref().ok()).map(|(near, far)| Staging {
            slot_bytes: near.slot_bytes.min(far.slot_bytes),
            slots: near.slots.min(far.slots),
        }),
    }
}

/// The steps of these objects over one path, or why there are none.
pub(super) fn steps(objects: &[(usize, PlanObject<'_>)], limits: &Limits) -> Result<Vec<Step>, String> {
    let mut builder = Builder { limits, steps: Vec::new(), step: Step::default(), filled: 0 };
    for (index, object) in objects {
        builder.add(*index, object)?;
    }
    builder.close();
    Ok(builder.steps)
}

struct Builder<'a> {
    limits: &'a Limits,
    steps: Vec<Step>,
    step: Step,
    /// Bytes of the slot in use.
    filled: u64,
}

/// How far into an object's pieces the plan has come.
struct Cursor<'a> {
    pieces: &'a [memcache_types::Piece],
    /// Bytes of the first piece already planned.
    used: u64,
}

impl Builder<'_> {
    fn add(&mut self, index: usize, object: &PlanObject<'_>) -> Result<(), String> {
        let mut cursor = Cursor { pieces: object.local.pieces(), used: 0 };
        let mut at = 0;
        loop {
            let room = self.limits.step_bytes.saturating_sub(self.filled);
            let is_full = self.limits.staging.is_some() && room < EXTENT_ALIGN && object.payload_bytes > at;
            if is_full
                || self.step.copies.len() >= self.limits.step_pieces
                || self.step.parts.len() >= self.limits.step_parts
            {
                self.close();
                continue;
            }
            let part = self.take_part(index, object, at, room, &mut cursor)?;
            let Some(part) = part else {
                // Not even 64 bytes fit into what is left of this step.
                if self.step.parts.is_empty() {
                    return Err(format!(
                        "{EXTENT_ALIGN} bytes of object {index} lie in more than {} pieces, the most of one operation",
                        self.limits.part_pieces.min(self.limits.step_pieces)
                    ));
                }
                self.close();
                continue;
            };
            at += part.bytes;
            self.filled = (self.filled + part.bytes).next_multiple_of(self.limits.align.max(EXTENT_ALIGN));
            let is_last = part.is_last;
            self.step.parts.push(part);
            if is_last {
                return Ok(());
            }
        }
    }

    /// The longest run from `at` that fits the limits; `None` if no 64 bytes do.
    fn take_part(
        &mut self,
        index: usize,
        object: &PlanObject<'_>,
        at: u64,
        room: u64,
        cursor: &mut Cursor<'_>,
    ) -> Result<Option<Part>, String> {
        let left = object.payload_bytes - at;
        let mut wanted = left.min(room).min(self.limits.part_bytes);
        let pieces_max = self.limits.part_pieces.min(self.limits.step_pieces - self.step.copies.len());
        let reachable = cursor.reach(wanted, pieces_max, self.limits.piece_bytes);
        wanted = wanted.min(reachable);
        if wanted < left {
            wanted -= wanted % self.limits.align.max(EXTENT_ALIGN);
            if wanted == 0 {
                return Ok(None);
            }
        }
        let base = if self.limits.from_region { object.extent.offset() + at } else { self.filled };
        let first_copy = self.step.copies.len();
        cursor.take(wanted, self.limits.piece_bytes, base, &mut self.step.copies);
        for copy in &self.step.copies[first_copy..] {
            let broken =
                [copy.local, copy.offset, copy.bytes].into_iter().any(|n| !n.is_multiple_of(self.limits.align));
            if broken {
                return Err(format!(
                    "a copy of {} bytes between offset {} and address {:#x} breaks the device's alignment of {} bytes",
                    copy.bytes, copy.offset, copy.local, self.limits.align
                ));
            }
        }
        Ok(Some(Part {
            object: index,
            payload_offset: at,
            bytes: wanted,
            staging_offset: self.filled,
            first_copy,
            copies: self.step.copies.len() - first_copy,
            is_last: wanted == left,
        }))
    }

    fn close(&mut self) {
        if self.step.parts.is_empty() {
            return;
        }
        let slots = self.limits.staging.map(|staging| staging.slots.max(1));
        let mut step = std::mem::take(&mut self.step);
        step.slot = slots.map(|slots| self.steps.len() % slots);
        self.steps.push(step);
        self.filled = 0;
    }
}

impl Cursor<'_> {
    /// How many of the next `wanted` bytes lie in the next `pieces_max` pieces.
    fn reach(&self, wanted: u64, pieces_max: usize, piece_bytes: u64) -> u64 {
        let (mut bytes, mut used, mut room) = (0u64, self.used, pieces_max as u64);
        for piece in self.pieces {
            if bytes >= wanted || room == 0 {
                break;
            }
            let whole = (piece.bytes - used).min(wanted - bytes);
            let taken = whole.min(room.saturating_mul(piece_bytes));
            room = room.saturating_sub(taken.div_ceil(piece_bytes));
            bytes += taken;
            used = 0;
        }
        bytes
    }

    /// Plans the next `bytes` bytes, the first of them at `offset`.
    fn take(&mut self, mut bytes: u64, piece_bytes: u64, mut offset: u64, copies: &mut Vec<PieceCopy>) {
        let first = copies.len();
        while bytes > 0
            && let Some(piece) = self.pieces.first()
        {
            let taken = (piece.bytes - self.used).min(bytes);
            let (mut local, mut rest) = (piece.address + self.used, taken);
            while rest > 0 {
                let own = first < copies.len();
                let merged = copies.last_mut().filter(|last| {
                    own && last.local + last.bytes == local
                        && last.offset + last.bytes == offset
                        && last.bytes < piece_bytes
                });
                let part = if let Some(last) = merged {
                    let part = rest.min(piece_bytes - last.bytes);
                    last.bytes += part;
                    part
                } else {
                    let part = rest.min(piece_bytes);
                    copies.push(PieceCopy { local, offset, bytes: part });
                    part
                };
                (local, offset, rest) = (local + part, offset + part, rest - part);
            }
            bytes -= taken;
            self.used += taken;
            if self.used == piece.bytes {
                self.pieces = &self.pieces[1..];
                self.used = 0;
            }
        }
    }
}
