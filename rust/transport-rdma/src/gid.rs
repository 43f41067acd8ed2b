//! The addresses of a port, and which of them to speak from.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use crate::abi::Gid;

/// Most addresses of a port that are looked at.
const GIDS_MAX: u8 = 255;
/// Free places in a row after which the table is taken to be over.
const GAP_MAX: usize = 64;

/// One entry of a port's address table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct GidEntry {
    pub(crate) index: u8,
    pub(crate) gid: Gid,
    /// Whether it is a RoCE v2 address (UDP); on InfiniBand never.
    pub(crate) is_v2: bool,
}

impl fmt::Debug for GidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.is_v2 { "v2" } else { "v1 or InfiniBand" };
        write!(f, "{}: {} ({version})", self.index, Ipv6Addr::from(self.gid.0))
    }
}

impl GidEntry {
    fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.gid.0).to_canonical()
    }

    fn is_link_local(&self) -> bool {
        self.gid.0[0] == 0xfe && self.gid.0[1] & 0xc0 == 0x80
    }
}

/// The addresses of a port, as the system lists them.
pub(crate) fn gids_of(device: &str, port: u8) -> Vec<GidEntry> {
    let folder = format!("/sys/class/infiniband/{device}/ports/{port}");
    let mut gids = Vec::new();
    let mut gap = 0;
    for index in 0..=GIDS_MAX {
        let gid = fs::read_to_string(format!("{folder}/gids/{index}")).ok().and_then(|text| parse(&text));
        let Some(gid) = gid else {
            gap += 1;
            if gap > GAP_MAX {
                break;
            }
            continue;
        };
        gap = 0;
        let kind = fs::read_to_string(format!("{folder}/gid_attrs/types/{index}")).unwrap_or_default();
        gids.push(GidEntry { index, gid, is_v2: kind.trim() == "RoCE v2" });
    }
    gids
}

/// An address as sysfs prints it; `None` for a free place.
fn parse(text: &str) -> Option<Gid> {
    let address: Ipv6Addr = text.trim().parse().ok()?;
    (!address.is_unspecified()).then(|| Gid(address.octets()))
}

/// The address to use: the one of the control connection if the port has it, else one that is routed. On Ethernet
/// only RoCE v2 counts: version 1 does not leave its network, and two ends must agree.
pub(crate) fn choose(gids: &[GidEntry], local: Option<IpAddr>, is_ethernet: bool) -> Option<GidEntry> {
    let local = local.map(|address| address.to_canonical());
    let rank = |entry: &&GidEntry| {
        let is_local = Some(entry.ip()) == local;
        (!is_local, entry.is_link_local(), !entry.ip().is_ipv4(), entry.index)
    };
    if is_ethernet { gids.iter().filter(|entry| entry.is_v2).min_by_key(rank).copied() } else { gids.first().copied() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u8, address: &str, is_v2: bool) -> GidEntry {
        GidEntry { index, gid: parse(address).unwrap(), is_v2 }
    }

    #[test]
    fn addresses_are_read_as_sysfs_prints_them() {
        assert_eq!(parse("0000:0000:0000:0000:0000:0000:0000:0000\n"), None);
        assert_eq!(parse("nonsense"), None);
        assert_eq!(
            parse("0000:0000:0000:0000:0000:ffff:0a63:0001\n").map(|gid| gid.0[10..].to_vec()),
            Some(vec![0xff, 0xff, 10, 99, 0, 1])
        );
    }

    #[test]
    fn the_control_connections_address_wins_then_ipv4_of_version_2() {
        let table = [
            entry(0, "fe80::1", false),
            entry(1, "fe80::1", true),
            entry(2, "::ffff:10.0.0.1", false),
            entry(3, "fd00::7", true),
            entry(4, "::ffff:10.0.0.1", true),
            entry(5, "::ffff:10.0.1.1", true),
        ];
        let index = |local: Option<&str>| {
            choose(&table, local.map(|text| text.parse().unwrap()), true).map(|entry| entry.index)
        };
        assert_eq!(index(None), Some(4));
        assert_eq!(index(Some("10.0.1.1")), Some(5));
        assert_eq!(index(Some("fd00::7")), Some(3));
        assert_eq!(index(Some("127.0.0.1")), Some(4));
        assert_eq!(choose(&table[..1], None, true), None);
        assert_eq!(choose(&table[..2], None, true).map(|entry| entry.index), Some(1));
        assert_eq!(choose(&table, None, false).map(|entry| entry.index), Some(0));
    }
}
