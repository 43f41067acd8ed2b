//! The choice of a path for each object, and the plan that follows from it.

use std::collections::BTreeMap;

use thiserror::Error;

use super::build::{Limits, staging_of, steps};
use super::input::{LocalView, PeerView, PlanObject};
use super::predict::predict;
use super::{Path, PathChoice, PlannedGroup, Step, TransferPlan, Way};

/// Objects of one kind that a choice is made on; the times of more are in proportion.
const SAMPLE_OBJECTS: usize = 4;

/// Parts of a slot tried as the length of a step: smaller steps overlap sooner and cost more submissions.
const STEP_SHARES: [u64; 4] = [1, 2, 4, 8];

/// Shortest step tried, in bytes.
const STEP_BYTES_MIN: u64 = 64 << 10;

/// A batch, and everything the plan depends on.
#[derive(Clone, Debug)]
pub struct PlanRequest<'a> {
    /// Which way.
    pub way: Way,
    /// What the user asks for.
    pub choice: PathChoice,
    /// The regions; objects name them by position.
    pub peers: &'a [PeerView],
    /// Where the pieces are.
    pub local: &'a LocalView,
    /// What moves.
    pub objects: &'a [PlanObject<'a>],
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The forced path does not lead there.
    #[error("path {} to {peer} is not possible: {why}", path.number())]
    Impossible {
        /// The path.
        path: Path,
        /// Name of the peer.
        peer: String,
        /// Why not.
        why: String,
    },
    /// No path does.
    #[error("no path to {peer}: {}", all_reasons(whys))]
    NoPath {
        /// Name of the peer.
        peer: String,
        /// Why not, for each path.
        whys: [String; 4],
    },
    /// An object whose pieces do not hold its payload.
    #[error("object {object} has {payload_bytes} bytes, its pieces hold {piece_bytes}")]
    Length {
        /// Position in the batch.
        object: usize,
        /// Length of the payload.
        payload_bytes: u64,
        /// Length of all pieces.
        piece_bytes: u64,
    },
    /// An object of a peer that is not in the request.
    #[error("object {object} names peer {peer}; there are {peers}")]
    NoPeer {
        /// Position in the batch.
        object: usize,
        /// The peer it names.
        peer: usize,
        /// Number of peers.
        peers: usize,
    },
}

fn all_reasons(whys: &[String; 4]) -> String {
    let named = Path::ALL.iter().zip(whys).map(|(path, why)| format!("path {}: {why}", path.number()));
    named.collect::<Vec<_>>().join("; ")
}

/// What was weighed for objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// Position among the request's peers.
    pub peer: usize,
    /// Name of the peer.
    pub peer_name: String,
    /// Name of the device.
    pub local_name: String,
    /// Pieces of one object.
    pub pieces: usize,
    /// Payload bytes of one object.
    pub payload_bytes: u64,
    /// How many objects of this kind there are.
    pub objects: usize,
    /// For each path the time all of them would take, in nanoseconds, or why it is not possible.
    pub times_ns: [Result<u64, String>; 4],
    /// The path taken.
    pub chosen: Path,
    /// Whether the user asked for it.
    pub is_forced: bool,
}

/// Objects that only differ in where they are: peer, pieces, bytes.
type Kind = (usize, usize, u64);

/// Plans a batch. The same request gives the same plan.
pub fn plan(request: &PlanRequest<'_>) -> Result<TransferPlan, PlanError> {
    let mut kinds: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
    for (object, one) in request.objects.iter().enumerate() {
        let (peer, peers) = (one.peer, request.peers.len());
        if peer >= peers {
            return Err(PlanError::NoPeer { object, peer, peers });
        }
        if one.local.bytes() != one.payload_bytes {
            let piece_bytes = one.local.bytes();
            return Err(PlanError::Length { object, payload_bytes: one.payload_bytes, piece_bytes });
        }
        kinds.entry((peer, one.local.pieces().len(), one.payload_bytes)).or_default().push(object);
    }
    let mut considered = Vec::with_capacity(kinds.len());
    let mut groups: BTreeMap<(usize, Path), Vec<usize>> = BTreeMap::new();
    for (kind, objects) in kinds {
        let one = consider(request, kind, &objects)?;
        groups.entry((kind.0, one.chosen)).or_default().extend(objects);
        considered.push(one);
    }
    let groups =
        groups.into_iter().map(|((peer, path), mut objects)| {
            objects.sort_unstable();
            let (steps, predicted_ns) = best_steps(request, peer, path, &objects)
                .map_err(|why| PlanError::Impossible { path, peer: request.peers[peer].name.clone(), why })?;
            Ok(PlannedGroup { peer, path, objects, steps, predicted_ns })
        });
    Ok(TransferPlan { way: request.way, groups: groups.collect::<Result<_, PlanError>>()?, considered })
}

fn consider(request: &PlanRequest<'_>, kind: Kind, objects: &[usize]) -> Result<Considered, PlanError> {
    let (peer, pieces, payload_bytes) = kind;
    let view = &request.peers[peer];
    let sample = &objects[..objects.len().min(SAMPLE_OBJECTS)];
    let times_ns: [Result<u64, String>; 4] = Path::ALL.map(|path| {
        possible(view, request.local, path)?;
        let (_, ns) = best_steps(request, peer, path, sample)?;
        let scaled = u128::from(ns) * objects.len() as u128 / sample.len().max(1) as u128;
        Ok(u64::try_from(scaled).unwrap_or(u64::MAX))
    });
    let chosen = match request.choice {
        PathChoice::Forced(path) => match &times_ns[path.number()] {
            Ok(_) => path,
            Err(why) => return Err(PlanError::Impossible { path, peer: view.name.clone(), why: why.clone() }),
        },
        PathChoice::Auto => {
            // Where two cost the same, the one with fewer copies.
            let order = [Path::Direct, Path::Staged, Path::Host, Path::Relay];
            let open = order.into_iter().filter_map(|path| Some((*times_ns[path.number()].as_ref().ok()?, path)));
            let best = open.reduce(|best, next| if next.0 < best.0 { next } else { best });
            best.map(|(_, path)| path).ok_or_else(|| PlanError::NoPath {
                peer: view.name.clone(),
                whys: times_ns.clone().map(|time| time.err().unwrap_or_default()),
            })?
        }
    };
    Ok(Considered {
        peer,
        peer_name: view.name.clone(),
        local_name: request.local.name.clone(),
        pieces,
        payload_bytes,
        objects: objects.len(),
        times_ns,
        chosen,
        is_forced: request.choice != PathChoice::Auto,
    })
}

/// Whether a path leads from this peer to this memory at all.
fn possible(peer: &PeerView, local: &LocalView, path: Path) -> Result<(), String> {
    let staged = |staging: &Option<super::Staging>, what| match staging {
        Some(staging) if staging.slots > 0 && staging.slot_bytes >= STEP_BYTES_MIN => Ok(()),
        Some(staging) => Err(format!(
            "{what} has {} slots of {} bytes; it takes at least 1 of {STEP_BYTES_MIN}",
            staging.slots, staging.slot_bytes
        )),
        None => Err(format!("{} has no {what}", local.name)),
    };
    let summable = || {
        if peer.summed && !peer.cpu_sees_region {
            return Err("checksums are on, and the CPU sees neither the region nor the device's memory".to_owned());
        }
        Ok(())
    };
    match (path, local.cpu_touches) {
        (Path::Host | Path::Direct, true) => Ok(()),
        (Path::Relay, true) => Err("the pieces are host memory: nothing to relay through a device".to_owned()),
        (Path::Staged, true) => staged(&local.staging, "host staging"),
        (Path::Host, false) => staged(&local.pinned, "pinned host staging"),
        (Path::Relay, false) => {
            // The owner's processor sees to trailers and checksums: it sees the region.
            let far = peer.relay.clone()?;
            staged(&local.staging, "device staging")?;
            staged(&Some(far), "the staging of its owner's device")
        }
        (Path::Staged, false) => {
            peer.reach.clone()?;
            summable()?;
            staged(&local.staging, "device staging")
        }
        (Path::Direct, false) => {
            peer.reach.clone()?;
            summable()
        }
    }
}

/// The steps with the length that is predicted to be fastest.
fn best_steps(
    request: &PlanRequest<'_>,
    peer: usize,
    path: Path,
    objects: &[usize],
) -> Result<(Vec<Step>, u64), String> {
    let (view, local) = (&request.peers[peer], request.local);
    let objects: Vec<_> = objects.iter().map(|index| (*index, request.objects[*index])).collect();
    let make = |objects: &[(usize, PlanObject<'_>)], step_bytes| {
        let built = steps(objects, &Limits::new(path, view, local, step_bytes))?;
        let ns = predict(request.way, path, &built, local, &view.costs, view.summed);
        Ok::<_, String>((built, ns))
    };
    let Some(staging) = staging_of(path, view, local) else { return make(&objects, u64::MAX) };
    let sample = &objects[..objects.len().min(SAMPLE_OBJECTS)];
    let mut best: Option<(u64, Vec<Step>, u64)> = None;
    let lengths = STEP_SHARES.iter().map(|share| staging.slot_bytes / share).filter(|bytes| *bytes >= STEP_BYTES_MIN);
    for step_bytes in lengths {
        let (built, ns) = make(sample, step_bytes)?;
        let is_single = built.len() <= 1;
        if best.as_ref().is_none_or(|(_, _, least)| ns < *least) {
            best = Some((step_bytes, built, ns));
        }
        if is_single && objects.len() > sample.len() {
            break; // a sample that fits one step says nothing about shorter ones
        }
    }
    match best {
        Some((_, built, ns)) if sample.len() == objects.len() => Ok((built, ns)),
        Some((step_bytes, ..)) => make(&objects, step_bytes),
        None => Err(format!("staging slots of {} bytes are shorter than {STEP_BYTES_MIN}", staging.slot_bytes)),
    }
}
