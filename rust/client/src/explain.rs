//! What a store would do with objects, and why.

use std::sync::Arc;

use memcache_device::{Device, HostDevice, TwinDevice, TwinOptions};
use memcache_transport::plan::{
    CostModel, LocalView, PathChoice, PeerView, PlanObject, PlanRequest, TransferPlan, Way, plan,
};
use memcache_transport::{Capabilities, Protocol};
use memcache_types::limits::{OBJECT_BYTES_MAX, PIECES_MAX};
use memcache_types::{Extent, GlobalAddress, Piece, ScatterList, SegmentId, extent_bytes};

use crate::buffer::Buffers;
use crate::error::{InvalidCall, StoreError};
use crate::path::costs::{CostSource, Costs};
use crate::path::{StagingOptions, view_of};
use crate::store::Store;
use crate::sums::Checksums;

/// A question that needs no pool: objects of one shape over one protocol.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which way.
    pub way: Way,
    /// Number of objects.
    pub objects: usize,
    /// Pieces of each.
    pub pieces: u64,
    /// Payload bytes of each.
    pub payload_bytes: u64,
    /// How the owner would be reached.
    pub protocol: Protocol,
    /// Whether the owner relays through a device that the pieces' device has a link to, with as much staging as this side.
    pub relay: bool,
    /// The memory the pieces are in; `None`: host memory.
    pub device: Option<Arc<dyn Device>>,
    /// A forced path, or the fastest.
    pub choice: PathChoice,
    /// What the legs cost; those that are not known have defaults, nothing is measured.
    pub costs: CostSource,
    /// Whether payloads are summed.
    pub summed: bool,
}

/// The plan for objects that lie in pieces of equal length with gaps between them, and where its costs come from.
pub fn explain(question: &Question) -> Result<(TransferPlan, String), StoreError> {
    let Question { objects, pieces, payload_bytes, protocol, .. } = *question;
    if pieces == 0 || pieces > PIECES_MAX as u64 || pieces > payload_bytes.max(1) {
        let pieces = usize::try_from(pieces).unwrap_or(usize::MAX);
        let limit = PIECES_MAX.min(usize::try_from(payload_bytes.max(1)).unwrap_or(usize::MAX));
        return Err(InvalidCall::TooManyPieces { index: 0, pieces, limit }.into());
    }
    if payload_bytes > OBJECT_BYTES_MAX {
        return Err(InvalidCall::TooLarge { index: 0, bytes: payload_bytes, limit: OBJECT_BYTES_MAX }.into());
    }
    let device = question.device.clone().unwrap_or_else(|| Arc::new(HostDevice));
    let local = view_of(&*device, StagingOptions::default());
    let known = Costs::open(&question.costs)?;
    let costs = known.named(protocol, &*device, question.relay);
    let origin = known.origin(protocol, &*device, question.relay);
    let lists: Vec<ScatterList> = (0..objects).map(|_| pieces_of(payload_bytes, pieces)).collect();
    let mut peer = imagined(protocol, &local, &costs, question.summed);
    if let Some(staging) = local.staging.filter(|_| question.relay && device.links_devices()) {
        peer.relay = Ok(staging);
    }
    Ok((made(question.way, question.choice, peer, &local, &lists)?, origin))
}

/// The device of this name for a [`Question`]: `host`, or `twin`, which stands for memory the CPU cannot touch.
pub fn device_by_name(name: &str) -> Result<Option<Arc<dyn Device>>, StoreError> {
    match name {
        "host" => Ok(None),
        "twin" => {
            let twin = TwinDevice::new(TwinOptions { arena_bytes: 1 << 20, ..TwinOptions::default() })?;
            Ok(Some(Arc::new(twin)))
        }
        _ => Err(InvalidCall::Device { name: name.to_owned() }.into()),
    }
}

impl Store {
    /// How objects would move between these buffers and each kind of peer, with the costs as they are now. Nothing is
    /// located and nothing moves: the objects are taken to lie side by side from the beginning of a region. One plan
    /// for each link that is open, or for each protocol this store may use while none is.
    pub fn explain_plan(&self, way: Way, buffers: &Buffers) -> Result<Vec<TransferPlan>, StoreError> {
        let inner = self.inner()?;
        let summed = inner.sums.policy() != Checksums::Off;
        let state = inner.paths.state(buffers.device());
        let local = state.view();
        let mut links = inner.fabric.links();
        links.sort_by_key(|link| link.protocol().name());
        links.dedup_by_key(|link| link.protocol());
        let mut peers: Vec<PeerView> =
            links.iter().map(|link| inner.paths.peer(link, &state, &local, summed)).collect();
        if peers.is_empty() {
            let costs = |protocol| inner.paths.costs.named(protocol, &*state.device, false);
            let roads = [Protocol::HostShm, Protocol::HostTcp].into_iter();
            peers = roads.map(|protocol| imagined(protocol, &local, &costs(protocol), summed)).collect();
        }
        let choice = inner.paths.choice();
        peers.into_iter().map(|peer| made(way, choice, peer, &local, buffers.lists())).collect()
    }
}

fn made(
    way: Way,
    choice: PathChoice,
    peer: PeerView,
    local: &LocalView,
    lists: &[ScatterList],
) -> Result<TransferPlan, StoreError> {
    let objects = side_by_side(lists)?;
    Ok(plan(&PlanRequest { way, choice, peers: &[peer], local, objects: &objects })?)
}

/// A peer as it will be once its link is open.
fn imagined(protocol: Protocol, local: &LocalView, costs: &CostModel, summed: bool) -> PeerView {
    let is_mapped = matches!(protocol, Protocol::Local | Protocol::HostShm);
    let reach = if is_mapped || local.cpu_touches {
        Ok(())
    } else {
        Err(format!("{protocol} does not map the region here: the device cannot address it"))
    };
    PeerView {
        name: protocol.to_string(),
        capabilities: Capabilities {
            protocol,
            region_bytes: u64::MAX,
            pieces_max: PIECES_MAX,
            payload_bytes_max: OBJECT_BYTES_MAX,
            copies_on_caller: is_mapped,
            connections: 0,
        },
        reach,
        relay: Err("its owner offers no relay".to_owned()),
        summed,
        cpu_sees_region: is_mapped,
        costs: *costs,
    }
}

fn pieces_of(payload_bytes: u64, pieces: u64) -> ScatterList {
    let stride = payload_bytes / pieces + 64;
    let piece = |at: u64| {
        let bytes = payload_bytes * (at + 1) / pieces - payload_bytes * at / pieces;
        Piece { address: (1 << 32) + at * stride.next_multiple_of(64), bytes }
    };
    (0..pieces).map(piece).collect()
}

fn side_by_side(lists: &[ScatterList]) -> Result<Vec<PlanObject<'_>>, StoreError> {
    let mut offset: u64 = 0;
    let mut objects = Vec::with_capacity(lists.len());
    for (index, local) in lists.iter().enumerate() {
        let address = GlobalAddress::new(SegmentId::new(0), offset);
        let extent = Extent::new(address, extent_bytes(local.bytes())).map_err(|_| InvalidCall::TooLarge {
            index,
            bytes: local.bytes(),
            limit: OBJECT_BYTES_MAX,
        })?;
        offset = extent.end();
        objects.push(PlanObject { peer: 0, extent, payload_bytes: local.bytes(), local });
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use memcache_transport::plan::Path;

    use super::*;

    fn question(pieces: u64, payload_bytes: u64) -> Question {
        Question {
            way: Way::Get,
            objects: 2,
            pieces,
            payload_bytes,
            protocol: Protocol::HostShm,
            relay: false,
            device: None,
            choice: PathChoice::Auto,
            costs: CostSource::Fixed(Box::default()),
            summed: false,
        }
    }

    #[test]
    fn the_answer_names_the_path_and_why_others_are_not_possible() {
        let made = explain(&question(122, 8_994_816)).unwrap().0;
        assert_eq!(made.groups[0].path, Path::Direct, "host memory: the link scatters by itself");
        assert!(made.to_string().contains("nothing to relay"), "{made}");
        let twin = TwinDevice::new(TwinOptions { arena_bytes: 1 << 20, ..TwinOptions::default() }).unwrap();
        let device: Arc<dyn Device> = Arc::new(twin);
        let staged = explain(&Question { device: Some(Arc::clone(&device)), ..question(122, 124_928) }).unwrap().0;
        assert_eq!(staged.groups[0].path, Path::Staged);
        assert_eq!(staged.considered[0].pieces, 122);
        let far = Question { device: Some(device), protocol: Protocol::HostTcp, ..question(122, 124_928) };
        assert_eq!(explain(&far).unwrap().0.groups[0].path, Path::Host);
        let relayed = explain(&Question { relay: true, ..far.clone() }).unwrap().0;
        assert!(relayed.considered[0].times_ns[1].is_ok(), "{relayed}");
        let unrelayed = explain(&Question { choice: PathChoice::Forced(Path::Relay), ..far.clone() }).unwrap_err();
        let said = unrelayed.to_string();
        assert!(said.contains("path 1 to host_tcp") && said.contains("offers no relay"), "{said}");
        let forced = explain(&Question { choice: PathChoice::Forced(Path::Direct), ..far }).unwrap_err();
        assert!(forced.to_string().contains("cannot address it"), "{forced}");
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        assert!(explain(&question(0, 10)).is_err());
        assert!(explain(&question(11, 10)).is_err());
        assert!(explain(&question(1, u64::MAX)).is_err());
        assert!(explain(&question(1, 0)).is_ok());
    }
}
