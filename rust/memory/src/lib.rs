//! The ground of `MemCache`: memory that one node lends to the pool, and the care its bytes need.
//!
//! A [`Segment`] is a sealed memfd, mapped and touched before anything is stored in it. A peer on the
//! same host maps the same memory as a [`Mapping`]. Both are looked at through a [`RawRegion`], which
//! checks every range once and then copies without asking again.
//!
//! An object lies in an extent like this, and nothing else does:
//!
//! ```text
//!  offset                                            offset + bytes - 64      offset + bytes
//!  | payload (payload_bytes) | unused, up to the next 64 bytes | trailer (64 bytes) |
//! ```
//!
//! The trailer says whose bytes these are ([`Trailer`]). A writer takes it away before the first byte
//! of a payload changes and puts a new one last ([`RawRegion::retract_trailer`],
//! [`RawRegion::publish_trailer`]); a reader copies the payload and looks at the trailer afterwards
//! ([`RawRegion::load_trailer`]). A reader that was told a generation by someone who saw it published,
//! and finds that generation after its copy, knows that no writer came in between.
//!
//! | module | what |
//! |---|---|
//! | [`segment`] | `Segment`, `SegmentOptions`: memory this node lends |
//! | [`persist`] | `Persisted`: memory that outlives the process that lends it |
//! | [`mapping`] | `Mapping`: a peer's segment in this process |
//! | [`numa`] | `on_node`: memory near a node of the machine |
//! | [`region`] | `RawRegion`: a bounds-checked view, and the order of trailer and payload |
//! | [`copy`] | `gather`, `scatter`: between local pieces and a region, with the kernel that suits |
//! | [`trailer`] | `Trailer`, `Checksum`, the geometry of an extent |
//! | [`holdings`] | the table of what a segment holds, and its header page |
//! | [`checksum`] | CRC-32C over pieces |

pub mod checksum;
pub mod copy;
pub mod error;
pub mod holdings;
mod mapped;
pub mod mapping;
pub mod numa;
pub mod persist;
mod prefault;
pub mod region;
pub mod segment;
pub mod trailer;

pub use checksum::{checksum_bytes, checksum_combine, checksum_pieces, checksum_region};
pub use copy::{
    CopyMode, Kernel, Part, gather, gather_part, gather_part_summed, gather_summed, gather_with, parts_of, scatter,
    scatter_part, scatter_part_summed, scatter_summed, scatter_with,
};
pub use error::MemoryError;
pub use mapping::Mapping;
pub use numa::on_node;
pub use persist::{PersistLock, PersistOptions, Persisted};
pub use region::{OutOfBounds, RawRegion};
pub use segment::{Segment, SegmentOptions};
pub use trailer::{Checksum, Trailer};

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("segments need Linux (memfd, seals) and 64-bit addresses");
