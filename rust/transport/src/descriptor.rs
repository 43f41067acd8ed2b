//! What a peer needs to know to reach a region.

use std::fmt;

use memcache_types::limits::{DESCRIPTOR_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use thiserror::Error;

use crate::host::HostId;

const MAGIC: [u8; 4] = *b"MCRD";
/// 2 added the RDMA address, 3 the relay.
const VERSION: u16 = 3;
/// Longest socket name or address, in bytes. A socket name has 107 at most, a host name 253.
const NAME_BYTES_MAX: usize = 320;

/// How to reach the memory of one [`RegionServer`](crate::RegionServer). Whoever has it may read and write that memory.
#[derive(Clone, PartialEq, Eq)]
pub struct RegionDescriptor {
    /// Length of the region in bytes.
    pub region_bytes: u64,
    /// Secret drawn by the server when it started; peers present it.
    pub token: u128,
    /// Where the server runs.
    pub host: HostId,
    /// Its process id, for logs.
    pub pid: u32,
    /// Name of its abstract Unix socket, if it shares its memory.
    pub shm: Option<String>,
    /// `host:port` of its TCP data server, if it has one.
    pub tcp: Option<String>,
    /// `host:port` at which RDMA connections to it are agreed on, if it can be reached so.
    pub rdma: Option<String>,
    /// The device it relays through, such as `twin:0`, if it does; asked over TCP.
    pub relay: Option<String>,
}

impl fmt::Debug for RegionDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionDescriptor")
            .field("region_bytes", &self.region_bytes)
            .field("host", &self.host)
            .field("pid", &self.pid)
            .field("shm", &self.shm)
            .field("tcp", &self.tcp)
            .field("rdma", &self.rdma)
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

/// Why some bytes are not a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// Longer than any descriptor.
    #[error("a descriptor of {bytes} bytes; the limit is {DESCRIPTOR_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Ends in the middle of a field.
    #[error("the descriptor ends within its {field}")]
    Truncated {
        /// The field that is not whole.
        field: &'static str,
    },
    /// Does not start as a descriptor does.
    #[error("these bytes are not a region descriptor")]
    Magic,
    /// Written by another version of this software.
    #[error("region descriptor version {version}; this build knows {VERSION}")]
    Version {
        /// The version found.
        version: u16,
    },
    /// A field with an impossible value.
    #[error("the descriptor's {field} is not a legal value")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// Goes on after the last field.
    #[error("the descriptor has {bytes} bytes too many")]
    Trailing {
        /// Bytes after the last field.
        bytes: usize,
    },
}

impl RegionDescriptor {
    /// The bytes that say this, for the control plane to carry.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.region_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.token.to_le_bytes());
        bytes.extend_from_slice(&self.host.to_bytes());
        bytes.extend_from_slice(&self.pid.to_le_bytes());
        for name in [&self.shm, &self.tcp, &self.rdma, &self.relay] {
            let name = name.as_deref().unwrap_or("");
            // The server makes its names from a checked host and fixed parts; longer ones never get here.
            let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&name.as_bytes()[..usize::from(length)]);
        }
        bytes
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// A [`DescriptorError`] naming what is wrong with them; never panics, whatever they are.
    pub fn decode(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > DESCRIPTOR_BYTES_MAX {
            return Err(DescriptorError::TooLong { bytes: bytes.len() });
        }
        let mut reader = Reader { rest: bytes };
        if reader.take::<4>("magic")? != MAGIC {
            return Err(DescriptorError::Magic);
        }
        let version = u16::from_le_bytes(reader.take("version")?);
        if version != VERSION {
            return Err(DescriptorError::Version { version });
        }
        let region_bytes = u64::from_le_bytes(reader.take("region length")?);
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&region_bytes) {
            return Err(DescriptorError::Field { field: "region length" });
        }
        let token = u128::from_le_bytes(reader.take("token")?);
        let host = HostId::from_parts(
            u128::from_le_bytes(reader.take("host")?),
            u64::from_le_bytes(reader.take("host")?),
            u64::from_le_bytes(reader.take("host")?),
        );
        let pid = u32::from_le_bytes(reader.take("process id")?);
        let shm = reader.name("socket name")?;
        let tcp = reader.name("address")?;
        let rdma = reader.name("RDMA address")?;
        let relay = reader.name("relay")?;
        match reader.rest.len() {
            0 => Ok(Self { region_bytes, token, host, pid, shm, tcp, rdma, relay }),
            bytes => Err(DescriptorError::Trailing { bytes }),
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DescriptorError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DescriptorError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DescriptorError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(DescriptorError::Truncated { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    fn name(&mut self, field: &'static str) -> Result<Option<String>, DescriptorError> {
        let length = usize::from(u16::from_le_bytes(self.take(field)?));
        if length > NAME_BYTES_MAX {
            return Err(DescriptorError::Field { field });
        }
        let text = std::str::from_utf8(self.bytes(length, field)?).map_err(|_| DescriptorError::Field { field })?;
        if text.chars().any(char::is_control) {
            return Err(DescriptorError::Field { field });
        }
        Ok((length > 0).then(|| text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptors() -> impl Strategy<Value = RegionDescriptor> {
        let name = || prop::option::of("[a-z0-9:.-]{1,107}");
        let host = (any::<u128>(), any::<u64>(), any::<u64>())
            .prop_map(|(boot, net, user)| HostId::from_parts(boot, net, user));
        (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX, any::<u128>(), host, any::<u32>(), name(), name(), name(), name())
            .prop_map(|(region_bytes, token, host, pid, shm, tcp, rdma, relay)| RegionDescriptor {
                region_bytes,
                token,
                host,
                pid,
                shm,
                tcp,
                rdma,
                relay,
            })
    }

    proptest! {
        #[test]
        fn encoding_loses_nothing(descriptor in descriptors()) {
            prop_assert_eq!(RegionDescriptor::decode(&descriptor.encode()), Ok(descriptor));
        }

        #[test]
        fn a_cut_or_lengthened_one_is_refused(descriptor in descriptors(), cut in any::<prop::sample::Index>()) {
            let mut bytes = descriptor.encode();
            prop_assert!(RegionDescriptor::decode(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert_eq!(RegionDescriptor::decode(&bytes), Err(DescriptorError::Trailing { bytes: 1 }));
        }

        #[test]
        fn decoding_never_panics(descriptor in descriptors(), at in any::<prop::sample::Index>(), byte in any::<u8>(), noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RegionDescriptor::decode(&noise);
            let mut bytes = descriptor.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = RegionDescriptor::decode(&bytes);
            let _ = RegionDescriptor::decode(&[&bytes[..10], &noise].concat());
        }
    }

    #[test]
    fn the_token_stays_out_of_logs() {
        let descriptor = RegionDescriptor {
            region_bytes: SEGMENT_BYTES_MIN,
            token: 0xdead_beef,
            host: HostId::UNKNOWN,
            pid: 1,
            shm: None,
            tcp: None,
            rdma: None,
            relay: None,
        };
        let shown = format!("{descriptor:?}");
        assert!(!shown.contains("dead") && !shown.contains(&0xdead_beef_u128.to_string()), "{shown}");
    }
}
