//! The roads by name.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A way to reach a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The segment belongs to this process.
    Local,
    /// The segment is mapped from another process of this host.
    HostShm,
    /// The owner's network device reads and writes the segment for us.
    HostRdma,
    /// The segment's owner answers over TCP.
    HostTcp,
}

impl Protocol {
    /// The name used in configuration, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::HostShm => "host_shm",
            Self::HostRdma => "host_rdma",
            Self::HostTcp => "host_tcp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the user asks for: one protocol, or the best that reaches each peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolChoice {
    /// Shared memory on the same host; elsewhere RDMA if both sides have it, else TCP.
    #[default]
    Auto,
    /// Shared memory only. A peer it does not reach is unavailable.
    HostShm,
    /// RDMA only, also on the same host.
    HostRdma,
    /// TCP only, also on the same host.
    HostTcp,
}

impl ProtocolChoice {
    /// Whether this choice lets other processes come in by shared memory.
    pub const fn allows_shm(self) -> bool {
        matches!(self, Self::Auto | Self::HostShm)
    }

    /// Whether this choice lets other processes come in by RDMA.
    pub const fn allows_rdma(self) -> bool {
        matches!(self, Self::Auto | Self::HostRdma)
    }

    /// Whether this choice lets other processes come in by TCP.
    pub const fn allows_tcp(self) -> bool {
        matches!(self, Self::Auto | Self::HostTcp)
    }
}

impl fmt::Display for ProtocolChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::HostShm => Protocol::HostShm.name(),
            Self::HostRdma => Protocol::HostRdma.name(),
            Self::HostTcp => Protocol::HostTcp.name(),
        })
    }
}

/// A name that is no protocol.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown protocol {name:?}: want \"auto\", \"host_shm\", \"host_rdma\" or \"host_tcp\"")]
pub struct UnknownProtocol {
    /// What was given.
    pub name: String,
}

impl FromStr for ProtocolChoice {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::HostShm, Self::HostRdma, Self::HostTcp]
            .into_iter()
            .find(|choice| choice.to_string() == name)
            .ok_or_else(|| UnknownProtocol { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_reads_back_as_it_prints() {
        for choice in [ProtocolChoice::Auto, ProtocolChoice::HostShm, ProtocolChoice::HostRdma, ProtocolChoice::HostTcp]
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "rdma".parse::<ProtocolChoice>().unwrap_err();
        assert!(error.to_string().contains("\"rdma\""), "{error}");
    }
}
