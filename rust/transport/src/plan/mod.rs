//! One planner for every path: from a batch of objects to the operations that move it, as data.
//!
//! Nothing here moves a byte, waits, or reads a clock. Input is what is to move, what the links and the device can
//! do, and what their legs cost; output is a [`TransferPlan`] that can be printed, compared and tested. An executor
//! follows it step by step, and [`predict`](mod@predict) plays the same steps against the costs.
//!
//! | path | a get moves | a put moves |
//! |---|---|---|
//! | 0 host | region -> link -> pinned host staging -> each piece | back |
//! | 1 relay | region -> owner's device -> staging of this device -> each piece | back |
//! | 2 staged | region -> one contiguous run in staging -> each piece, locally | back |
//! | 3 direct | region -> each piece | back |
//!
//! Where the pieces are memory the CPU may touch, paths 0 and 3 are the same thing: the link scatters by itself.

mod build;
mod cost;
mod input;
pub mod predict;
mod request;
mod show;

pub use cost::{CORRECTION_UNIT, CostModel, Leg, LegCost};
pub use input::{LocalView, PeerView, PlanObject, Staging};
pub use request::{Considered, PlanError, PlanRequest, plan};

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the pool to the local pieces: scatter.
    Get,
    /// From the local pieces to the pool: gather.
    Put,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Put => "put",
        })
    }
}

/// One of the four paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Over the host: the link, then host staging, then the device.
    Host,
    /// The owner relays through its device.
    Relay,
    /// One contiguous transfer into staging, then local pieces.
    Staged,
    /// Each piece straight to its place.
    Direct,
}

impl Path {
    /// All of them by number.
    pub const ALL: [Self; 4] = [Self::Host, Self::Relay, Self::Staged, Self::Direct];

    /// Its number, as in documents and settings.
    pub const fn number(self) -> usize {
        self as usize
    }

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "0 host",
            Self::Relay => "1 relay",
            Self::Staged => "2 staged",
            Self::Direct => "3 direct",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PathChoice {
    /// The path predicted to be fastest, for each object.
    #[default]
    Auto,
    /// This path, or an error that says why not.
    Forced(Path),
}

impl fmt::Display for PathChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Forced(path) => write!(f, "{}", path.number()),
        }
    }
}

/// A text that is no path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown path {text:?}: want \"auto\", \"0\", \"1\", \"2\" or \"3\"")]
pub struct UnknownPath {
    /// What was given.
    pub text: String,
}

impl FromStr for PathChoice {
    type Err = UnknownPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Auto]
            .into_iter()
            .chain(Path::ALL.map(Self::Forced))
            .find(|choice| choice.to_string() == text.trim())
            .ok_or_else(|| UnknownPath { text: text.to_owned() })
    }
}

/// A contiguous run of one object's payload, as one operation on a link or one copy to or from a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which object of the batch.
    pub object: usize,
    /// Where it starts in the payload, in bytes; a multiple of 64.
    pub payload_offset: u64,
    /// Its length in bytes; a multiple of 64 unless it is the last of the object.
    pub bytes: u64,
    /// Where it lies in the slot, in bytes. Meaningless where a step has no slot.
    pub staging_offset: u64,
    /// First of this step's [`copies`](Step::copies) that belongs to it.
    pub first_copy: usize,
    /// How many of them do.
    pub copies: usize,
    /// Whether the object ends with it, so that its trailer follows.
    pub is_last: bool,
}

/// One local piece, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceCopy {
    /// The piece's own address, in the address space of the device.
    pub local: u64,
    /// The other end, in bytes: from the start of the slot, or from the start of the region where there is no slot.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What is submitted at a time: one filling of a slot, or one batch where nothing is staged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Which staging slot; `None` for direct transfers.
    pub slot: Option<usize>,
    /// Contiguous runs of remote objects, in the order given.
    pub parts: Vec<Part>,
    /// Local pieces, in the order of the parts.
    pub copies: Vec<PieceCopy>,
}

impl Step {
    /// Payload bytes it moves.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// Everything that goes to or comes from one peer over one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedGroup {
    /// Position among the request's peers.
    pub peer: usize,
    /// The path.
    pub path: Path,
    /// Objects of the batch that take it, in order.
    pub objects: Vec<usize>,
    /// What to submit, in order.
    pub steps: Vec<Step>,
    /// How long it should take, in nanoseconds.
    pub predicted_ns: u64,
}

/// How a batch moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferPlan {
    /// Which way.
    pub way: Way,
    /// By peer, then path.
    pub groups: Vec<PlannedGroup>,
    /// Why: the predicted times of all paths for every kind of object.
    pub considered: Vec<Considered>,
}

impl TransferPlan {
    /// How long the groups should take one after the other, in nanoseconds.
    pub fn predicted_ns(&self) -> u64 {
        self.groups.iter().map(|group| group.predicted_ns).sum()
    }
}
