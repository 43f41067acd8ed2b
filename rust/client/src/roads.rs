//! The roads that do not come with `transport`.

use std::sync::Arc;

use memcache_transport::{ProtocolChoice, Road, TransportError};
use memcache_transport_rdma::{RdmaOptions, RdmaRoad};

/// RDMA over this device, where the choice allows it. Nothing is opened before it is needed, unless RDMA was asked for
/// by name: then a machine without it is told so at once.
pub(crate) fn rdma(choice: ProtocolChoice, device: &str) -> Result<Option<Arc<dyn Road>>, TransportError> {
    if !choice.allows_rdma() {
        return Ok(None);
    }
    let options = RdmaOptions { device: device.to_owned(), ..RdmaOptions::default() };
    let road = RdmaRoad::shared(&options)?;
    if choice == ProtocolChoice::HostRdma {
        road.check()?;
    }
    Ok(Some(road))
}
