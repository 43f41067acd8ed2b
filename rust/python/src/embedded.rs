//! A `MetaService` inside the engine's own process, for when no address is configured.

use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::{MetaError, MetaServer};
use pyo3::prelude::*;

use crate::errors::meta_error;

/// Bytes of an abstract socket name that the pool id may take.
const POOL_ID_BYTES_MAX: usize = 64;

/// The hosted service, if this process is the one of its siblings that hosts it, and where it is.
pub(crate) struct Embedded {
    pub(crate) server: Option<MetaServer>,
    pub(crate) endpoint: Endpoint,
}

/// Hosts a service for this pool, or finds the sibling that already does: binding the name decides.
pub(crate) fn host_or_find(pool_id: &str) -> PyResult<Embedded> {
    let private;
    let pool_id = if pool_id.is_empty() {
        private = format!("private-{}-{}", std::process::id(), next_private());
        &private
    } else {
        pool_id
    };
    let endpoint = Endpoint::UnixAbstract(socket_name(pool_id));
    let config = MetaConfig { listen: endpoint.clone(), ..MetaConfig::default() };
    match MetaServer::start(&config) {
        Ok(server) => Ok(Embedded { server: Some(server), endpoint }),
        Err(MetaError::AddressInUse { .. }) => Ok(Embedded { server: None, endpoint }),
        Err(error) => Err(meta_error(&error)),
    }
}

/// A name that processes of one user derive alike. Long ids are cut and told apart by their digest.
fn socket_name(pool_id: &str) -> String {
    let digest = memcache_types::KeyDigest::of(pool_id.as_bytes()).low();
    let readable: String = pool_id
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(POOL_ID_BYTES_MAX)
        .collect();
    format!("memcache-meta-{readable}-{digest:016x}")
}

fn next_private() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
