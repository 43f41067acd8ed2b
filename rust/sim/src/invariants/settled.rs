//! When nothing has gone wrong for a while, nothing is left over and everybody can put and get again.

use memcache_proto::pb;

use super::{Violation, hold};
use crate::client::{Client, Probe};

/// All that ran on must be over.
pub fn check_leaks(status: &pb::StatusReply, nodes: usize) -> Result<(), Violation> {
    hold("settled", (status.reservations, status.leases, status.nodes.len()) == (0, 0, nodes), || {
        format!(
            "{} reservations and {} leases are left; {} of {nodes} nodes are back",
            status.reservations,
            status.leases,
            status.nodes.len()
        )
    })
}

/// Everybody has put a key and got it.
pub fn check_service(clients: &[Client]) -> Result<(), Violation> {
    for client in clients {
        hold("settled", client.probe() == Probe::Done, || {
            format!("the owner of key {} has come no further than {:?}", client.probe_key(), client.probe())
        })?;
    }
    Ok(())
}
