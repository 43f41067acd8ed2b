//! Without RDMA: an error that says what was searched, and everything else as before.

use std::sync::Arc;

use memcache_memory::{Segment, SegmentOptions};
use memcache_transport::{Protocol, ProtocolChoice, RegionServer, ServerOptions, TransportError};
use memcache_transport_rdma::{RdmaOptions, RdmaRoad};
use memcache_types::limits::SEGMENT_BYTES_MIN;

fn start(device: &str, protocols: ProtocolChoice) -> Result<RegionServer, TransportError> {
    let segment = Arc::new(Segment::create(SEGMENT_BYTES_MIN, &SegmentOptions::default()).unwrap());
    let options = ServerOptions { protocols, ..ServerOptions::default() };
    let road = RdmaRoad::new(&RdmaOptions { device: device.to_owned(), ..RdmaOptions::default() }).unwrap();
    RegionServer::start_with(segment, &options, Some(&road))
}

/// The device asked for exists nowhere, so this holds on machines with RDMA as well.
#[test]
fn asking_for_rdma_by_name_says_what_was_searched_and_auto_goes_on_without() {
    let error = start("none_such", ProtocolChoice::HostRdma).unwrap_err();
    assert!(matches!(error, TransportError::Unavailable { protocol: Protocol::HostRdma, .. }), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("libibverbs") || said.contains("none_such") || said.contains("RDMA subsystem"), "{said}");
    let server = start("none_such", ProtocolChoice::Auto).unwrap();
    assert!(server.descriptor().rdma.is_none() && server.descriptor().tcp.is_some());
}

#[test]
fn a_name_that_is_no_device_is_refused_at_once() {
    let error = RdmaRoad::new(&RdmaOptions { device: "a:b".to_owned(), ..RdmaOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("\"a:b\""), "{error}");
}
