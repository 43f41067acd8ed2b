//! Which host, as far as shared memory reaches.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Identity of a host as seen by one process: which boot of which kernel, and which network and user namespace.
///
/// Two processes with equal ids can meet at an abstract Unix socket and trust each other's user ids. Processes
/// that cannot tell get an id that equals no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId {
    boot: u128,
    network: u64,
    user: u64,
}

impl HostId {
    /// An id for a host that does not say who it is. Never the [same host](Self::is_same_host) as any other.
    pub const UNKNOWN: Self = Self { boot: 0, network: 0, user: 0 };

    /// The host this process runs on.
    pub fn current() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok());
        let namespace = |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).ok().map(|status| status.ino());
        match (boot, namespace("net"), namespace("user")) {
            (Some(boot), Some(network), Some(user)) if boot != 0 => Self { boot, network, user },
            _ => Self::UNKNOWN,
        }
    }

    /// Whether processes with these ids can share memory.
    pub fn is_same_host(&self, other: &Self) -> bool {
        *self != Self::UNKNOWN && self == other
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.boot.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.network.to_le_bytes());
        bytes[24..].copy_from_slice(&self.user.to_le_bytes());
        bytes
    }

    pub(crate) fn from_parts(boot: u128, network: u64, user: u64) -> Self {
        Self { boot, network, user }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_this_host_and_an_unknown_one_is_nobody() {
        let here = HostId::current();
        assert_eq!(here, HostId::current());
        assert_eq!(here.is_same_host(&here), here != HostId::UNKNOWN);
        assert!(!HostId::UNKNOWN.is_same_host(&HostId::UNKNOWN));
        assert!(!HostId::from_parts(1, 2, 3).is_same_host(&HostId::from_parts(1, 4, 3)));
    }
}
