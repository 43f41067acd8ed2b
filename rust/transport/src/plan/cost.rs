//! What the legs of a path cost.

/// One stretch of a path, with a cost of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leg {
    /// A link's read into host memory. Pieces are the local pieces of its operations.
    NetworkRead,
    /// A link's write from host memory.
    NetworkWrite,
    /// The device's copy engine, from a region it can address.
    PeerToDevice,
    /// The same, to a region.
    DeviceToPeer,
    /// The copy engine, from pinned host memory.
    HostToDevice,
    /// The same, to pinned host memory.
    DeviceToHost,
    /// Copies inside the device (for host memory: memcpy).
    DeviceLocal,
    /// The request to an owner that relays, with the owner's own copy to or from its device.
    Relay,
    /// The device's copy engine, from the staging of an owner's device.
    LinkToDevice,
    /// The same, to such staging.
    DeviceToLink,
    /// The processor's checksum of bytes it can read.
    Checksum,
}

impl Leg {
    /// All legs.
    pub const ALL: [Self; 11] = [
        Self::NetworkRead,
        Self::NetworkWrite,
        Self::PeerToDevice,
        Self::DeviceToPeer,
        Self::HostToDevice,
        Self::DeviceToHost,
        Self::DeviceLocal,
        Self::Relay,
        Self::LinkToDevice,
        Self::DeviceToLink,
        Self::Checksum,
    ];

    /// Its name in files, tables and settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkRead => "network_read",
            Self::NetworkWrite => "network_write",
            Self::PeerToDevice => "peer_to_device",
            Self::DeviceToPeer => "device_to_peer",
            Self::HostToDevice => "host_to_device",
            Self::DeviceToHost => "device_to_host",
            Self::DeviceLocal => "device_local",
            Self::Relay => "relay",
            Self::LinkToDevice => "link_to_device",
            Self::DeviceToLink => "device_to_link",
            Self::Checksum => "checksum",
        }
    }

    /// The leg of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|leg| leg.name() == name)
    }
}

/// What one leg costs: `batches * batch_ns + pieces * piece_ns + bytes / bytes_per_s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegCost {
    /// Each submission, in nanoseconds.
    pub batch_ns: u64,
    /// Each contiguous piece, in nanoseconds.
    pub piece_ns: u64,
    /// Bytes a second, at least 1.
    pub bytes_per_s: u64,
}

impl LegCost {
    /// A leg that costs nothing.
    pub const FREE: Self = Self { batch_ns: 0, piece_ns: 0, bytes_per_s: u64::MAX };

    /// Nanoseconds for this much, rounded down; saturates.
    pub fn time_ns(&self, batches: u64, pieces: u64, bytes: u64) -> u64 {
        let setup = batches.saturating_mul(self.batch_ns).saturating_add(pieces.saturating_mul(self.piece_ns));
        let copying = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.max(1));
        setup.saturating_add(u64::try_from(copying).unwrap_or(u64::MAX))
    }
}

/// What a correction of "as predicted" is written as.
pub const CORRECTION_UNIT: u64 = 1000;

/// The legs between one peer and one device, and what experience says about the predictions made from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostModel {
    legs: [LegCost; Leg::ALL.len()],
    corrections: [u64; 4],
}

impl CostModel {
    /// A model in which every leg costs the same.
    pub const fn uniform(cost: LegCost) -> Self {
        Self { legs: [cost; Leg::ALL.len()], corrections: [CORRECTION_UNIT; 4] }
    }

    /// The cost of a leg.
    pub const fn leg(&self, leg: Leg) -> &LegCost {
        &self.legs[leg as usize]
    }

    /// The model with another cost for one leg.
    #[must_use]
    pub const fn with(mut self, leg: Leg, cost: LegCost) -> Self {
        self.legs[leg as usize] = cost;
        self
    }

    /// What transfers over a path took, in thousandths of what the legs say.
    pub const fn correction(&self, path: super::Path) -> u64 {
        self.corrections[path.number()]
    }

    /// The model with another correction for one path.
    #[must_use]
    pub const fn corrected(mut self, path: super::Path, thousandths: u64) -> Self {
        self.corrections[path.number()] = thousandths;
        self
    }
}

impl Default for CostModel {
    /// Orders of magnitude of a present-day host, for legs nobody has measured yet.
    fn default() -> Self {
        let leg =
            |batch_ns, piece_ns, gigabytes: u64| LegCost { batch_ns, piece_ns, bytes_per_s: gigabytes * 1_000_000_000 };
        Self::uniform(LegCost::FREE)
            .with(Leg::NetworkRead, leg(2_000, 100, 5))
            .with(Leg::NetworkWrite, leg(2_000, 100, 5))
            .with(Leg::PeerToDevice, leg(10_000, 2_000, 20))
            .with(Leg::DeviceToPeer, leg(10_000, 2_000, 20))
            .with(Leg::HostToDevice, leg(10_000, 1_000, 20))
            .with(Leg::DeviceToHost, leg(10_000, 1_000, 20))
            .with(Leg::DeviceLocal, leg(5_000, 500, 200))
            .with(Leg::Relay, leg(50_000, 1_000, 20))
            .with(Leg::LinkToDevice, leg(10_000, 1_000, 50))
            .with(Leg::DeviceToLink, leg(10_000, 1_000, 50))
            .with(Leg::Checksum, leg(0, 0, 15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_adds_up_and_saturates() {
        let cost = LegCost { batch_ns: 10, piece_ns: 3, bytes_per_s: 1_000_000_000 };
        assert_eq!(cost.time_ns(2, 5, 100), 20 + 15 + 100);
        assert_eq!(LegCost::FREE.time_ns(7, 7, 1 << 30), 0);
        assert_eq!(cost.time_ns(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(LegCost { bytes_per_s: 0, ..cost }.time_ns(0, 0, 1), 1_000_000_000);
    }

    #[test]
    fn every_leg_has_a_name_of_its_own() {
        for leg in Leg::ALL {
            assert_eq!(Leg::from_name(leg.name()), Some(leg));
            assert_eq!(Leg::ALL[leg as usize], leg);
        }
    }
}
