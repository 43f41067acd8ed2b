//! Local memory as an ordered list of pieces.

use crate::limits::PIECES_MAX;

/// A run of local bytes. The address is a plain number here: only `memory` and `transport` may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Ordered pieces of local memory that make up one object, adjacent ones merged.
///
/// The order is the order of the object's bytes in the pool. Empty pieces vanish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScatterList {
    pieces: Vec<Piece>,
    bytes: u64,
}

impl ScatterList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { pieces: Vec::new(), bytes: 0 }
    }

    /// An empty list with room for `pieces` pieces.
    pub fn with_capacity(pieces: usize) -> Self {
        Self { pieces: Vec::with_capacity(pieces), bytes: 0 }
    }

    /// A list of exactly these pieces, none of them empty; nothing is merged.
    pub(crate) const fn from_merged(pieces: Vec<Piece>, bytes: u64) -> Self {
        Self { pieces, bytes }
    }

    /// A list of one piece.
    pub fn single(address: u64, bytes: u64) -> Self {
        let mut list = Self::with_capacity(1);
        list.push(address, bytes);
        list
    }

    /// Adds a piece at the end; merged into the last one if it follows on from it.
    #[inline]
    pub fn push(&mut self, address: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.bytes += bytes;
        if let Some(last) = self.pieces.last_mut()
            && last.address + last.bytes == address
        {
            last.bytes += bytes;
            return;
        }
        self.pieces.push(Piece { address, bytes });
    }

    /// The pieces in the order of the object's bytes.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Total bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the list holds no byte.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether the number of pieces is within [`PIECES_MAX`].
    pub fn is_within_limits(&self) -> bool {
        self.pieces.len() <= PIECES_MAX
    }
}

impl FromIterator<Piece> for ScatterList {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Self {
        let mut list = Self::new();
        for piece in pieces {
            list.push(piece.address, piece.bytes);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_pieces_merge_and_empty_ones_vanish() {
        let list: ScatterList = [(100, 10), (110, 5), (0, 0), (200, 1), (199, 1)]
            .map(|(address, bytes)| Piece { address, bytes })
            .into_iter()
            .collect();
        assert_eq!(
            list.pieces(),
            [Piece { address: 100, bytes: 15 }, Piece { address: 200, bytes: 1 }, Piece { address: 199, bytes: 1 }]
        );
        assert_eq!(list.bytes(), 17);
    }
}
