//! Addresses, and copies between them.

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// The device's own memory. Its addresses mean something to the device alone.
    Device,
    /// Host memory the engine can address as well: page-locked on real hardware. Its addresses are pointers.
    Pinned,
}

/// Which way a batch of copies goes. Each batch has one direction, as the hardware's batch calls want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From pinned host memory to the device.
    HostToDevice,
    /// From the device to pinned host memory.
    DeviceToHost,
    /// Inside the device.
    Local,
    /// From memory made addressable by [`reach`](crate::Device::reach) to the device.
    PeerToDevice,
    /// From the device to such memory.
    DeviceToPeer,
    /// From another device's memory, made addressable by [`import`](crate::Device::import), to the device.
    LinkToDevice,
    /// From the device to such memory.
    DeviceToLink,
}

impl Direction {
    /// All directions.
    pub const ALL: [Self; 7] = [
        Self::HostToDevice,
        Self::DeviceToHost,
        Self::Local,
        Self::PeerToDevice,
        Self::DeviceToPeer,
        Self::LinkToDevice,
        Self::DeviceToLink,
    ];

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostToDevice => "host to device",
            Self::DeviceToHost => "device to host",
            Self::Local => "inside the device",
            Self::PeerToDevice => "peer to device",
            Self::DeviceToPeer => "device to peer",
            Self::LinkToDevice => "another device to device",
            Self::DeviceToLink => "device to another device",
        }
    }
}

/// One contiguous copy. The direction of its batch says what the addresses mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// First byte read.
    pub source: u64,
    /// First byte written.
    pub target: u64,
    /// Length in bytes.
    pub bytes: u64,
}
