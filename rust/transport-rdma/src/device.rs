//! Devices, ports and addresses: which of them this process speaks through.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::Arc;

use crate::abi::{self, Context, DeviceAttr, LINK_LAYER_ETHERNET, LINK_LAYER_INFINIBAND, PORT_ACTIVE, Pd, PortAttr};
use crate::gid::{GidEntry, choose, gids_of};
use crate::library::Verbs;

/// Most local pieces of one work request asked of a device, whatever it offers: more makes every queue entry larger.
const PIECES_MAX: usize = 32;
/// Most reads under way on one queue pair.
const READS_MAX: u8 = 16;

/// Which device, port and address to use; what is `None` is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    device: Option<String>,
    port: Option<u8>,
    gid: Option<u8>,
}

impl FromStr for Wanted {
    type Err = String;

    /// `""`, `"device"`, `"device:port"` or `"device:port:gid_index"`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is no RDMA device: want \"device\", \"device:port\" or \"device:port:gid_index\"");
        let mut parts = text.split(':');
        let device = parts.next().filter(|name| !name.is_empty()).map(str::to_owned);
        if device.is_none() && !text.is_empty() {
            return Err(bad());
        }
        let port = parts.next().map(u8::from_str).transpose().map_err(|_| bad())?;
        let gid = parts.next().map(u8::from_str).transpose().map_err(|_| bad())?;
        if parts.next().is_some() || port == Some(0) {
            return Err(bad());
        }
        Ok(Self { device, port, gid })
    }
}

/// An open device with its protection domain, and the port that is used.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) verbs: &'static Verbs,
    context: NonNull<Context>,
    pd: NonNull<Pd>,
    pub(crate) name: String,
    pub(crate) port: Port,
    pub(crate) limits: Limits,
    /// The process that opened it. One forked from it shares the kernel's objects and must not destroy them.
    process: u32,
}

// SAFETY: verbs objects may be used from any thread; the library locks what it must.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The port in use.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) number: u8,
    pub(crate) lid: u16,
    /// `enum ibv_mtu`: 1 is 256 bytes, 5 is 4096.
    pub(crate) mtu: u8,
    pub(crate) link_layer: u8,
    /// Its addresses, of which one is used for each connection.
    gids: Vec<GidEntry>,
    /// The one asked for by number.
    fixed_gid: Option<u8>,
}

/// What the device allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Local pieces of one work request.
    pub(crate) pieces: usize,
    /// Bytes of one message.
    pub(crate) message_bytes: u64,
    /// Entries of a send queue.
    pub(crate) queue: u32,
    /// Reads a queue pair has under way, and answers, at the same time.
    pub(crate) reads: u8,
    pub(crate) answers: u8,
}

impl Device {
    /// Opens the device that is wanted, or the first with an active port.
    ///
    /// The error says what was searched and what was found there.
    pub(crate) fn open(wanted: &Wanted) -> Result<Arc<Self>, String> {
        let verbs = Verbs::get()?;
        let mut count = 0;
        // SAFETY: fills `count` and returns an array of that many devices, or null.
        let list = unsafe { (verbs.ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            return Err(format!("this system has no RDMA subsystem: {}", io::Error::last_os_error()));
        }
        let mut found = Vec::new();
        let mut opened = None;
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: within the array of `count` devices.
            let device = unsafe { *list.add(index) };
            // SAFETY: a device of the list; its name is a string inside it.
            let name = unsafe { CStr::from_ptr((verbs.ibv_get_device_name)(device)) }.to_string_lossy().into_owned();
            if wanted.device.as_ref().is_some_and(|wanted| *wanted != name) {
                found.push(format!("{name} (not asked for)"));
                continue;
            }
            // SAFETY: a device of the list.
            match unsafe { Self::open_one(verbs, device, &name, wanted) } {
                Ok(device) => {
                    opened = Some(device);
                    break;
                }
                Err(why) => found.push(format!("{name} ({why})")),
            }
        }
        // SAFETY: the list from above; an open device lives on without it.
        unsafe { (verbs.ibv_free_device_list)(list) };
        let seen = if found.is_empty() { "none at all".to_owned() } else { found.join(", ") };
        let asked = wanted.device.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        opened.map(Arc::new).ok_or_else(|| {
            format!("no usable RDMA device{asked}; libibverbs is there and knows of these under /sys/class/infiniband: {seen}")
        })
    }

    /// # Safety
    /// `device` is one of a list that is still alive.
    unsafe fn open_one(
        verbs: &'static Verbs,
        device: *mut abi::Device,
        name: &str,
        wanted: &Wanted,
    ) -> Result<Self, String> {
        // SAFETY: by contract.
        let context = NonNull::new(unsafe { (verbs.ibv_open_device)(device) })
            .ok_or_else(|| format!("cannot be opened: {}", io::Error::last_os_error()))?;
        // SAFETY: a context just opened.
        let looked = unsafe { look(verbs, context, name, wanted) };
        let with_pd = looked.and_then(|found| {
            // SAFETY: as above.
            let pd = NonNull::new(unsafe { (verbs.ibv_alloc_pd)(context.as_ptr()) });
            pd.map(|pd| (found, pd)).ok_or_else(|| format!("no protection domain: {}", io::Error::last_os_error()))
        });
        match with_pd {
            Ok(((port, limits), pd)) => {
                let (name, process) = (name.to_owned(), std::process::id());
                Ok(Self { verbs, context, pd, name, port, limits, process })
            }
            Err(why) => {
                // SAFETY: opened above, and nothing was made from it.
                unsafe { (verbs.ibv_close_device)(context.as_ptr()) };
                Err(why)
            }
        }
    }

    pub(crate) fn context(&self) -> NonNull<Context> {
        self.context
    }

    pub(crate) fn pd(&self) -> NonNull<Pd> {
        self.pd
    }

    /// Whether this process opened the device, so that it may destroy what belongs to it.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// The address for a connection whose control socket has this local address.
    pub(crate) fn gid_for(&self, local: Option<IpAddr>) -> Result<GidEntry, String> {
        let port = &self.port;
        match port.fixed_gid {
            Some(index) => port.gids.iter().find(|entry| entry.index == index).copied().ok_or_else(|| {
                format!("{} port {} has no GID at index {index}; it has {:?}", self.name, port.number, port.gids)
            }),
            None => choose(&port.gids, local, port.link_layer == LINK_LAYER_ETHERNET).ok_or_else(|| {
                format!("{} port {} has no RoCE v2 address; give one to its network device", self.name, port.number)
            }),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        // SAFETY: everything made from the domain holds this device in an `Arc` and is gone.
        let freed = unsafe { (self.verbs.ibv_dealloc_pd)(self.pd.as_ptr()) };
        // SAFETY: opened by `open_one`, closed once.
        let closed = unsafe { (self.verbs.ibv_close_device)(self.context.as_ptr()) };
        if freed != 0 || closed != 0 {
            tracing::warn!(device = self.name, freed, closed, "an RDMA device was not given back whole");
        }
    }
}

/// # Safety
/// `context` is open.
unsafe fn look(
    verbs: &Verbs,
    context: NonNull<Context>,
    name: &str,
    wanted: &Wanted,
) -> Result<(Port, Limits), String> {
    let mut attr = MaybeUninit::<DeviceAttr>::zeroed();
    // SAFETY: `attr` has the layout the library fills.
    let failed = unsafe { (verbs.ibv_query_device)(context.as_ptr(), attr.as_mut_ptr()) };
    if failed != 0 {
        return Err(format!("ibv_query_device: {}", io::Error::from_raw_os_error(failed)));
    }
    // SAFETY: numbers, zero or filled.
    let attr = unsafe { attr.assume_init() };
    let mut reasons = Vec::new();
    let ports = wanted.port.map_or(1..=attr.phys_port_cnt, |port| port..=port);
    for number in ports {
        let mut port = MaybeUninit::<PortAttr>::zeroed();
        // SAFETY: the library fills at most the layout of `PortAttr`.
        let failed = unsafe { (verbs.ibv_query_port)(context.as_ptr(), number, port.as_mut_ptr()) };
        if failed != 0 {
            reasons.push(format!("port {number}: {}", io::Error::from_raw_os_error(failed)));
            continue;
        }
        // SAFETY: numbers, zero or filled.
        let port = unsafe { port.assume_init() };
        if port.state != PORT_ACTIVE {
            reasons.push(format!("port {number} is not active but in state {}", port.state));
            continue;
        }
        if port.link_layer != LINK_LAYER_ETHERNET && port.link_layer != LINK_LAYER_INFINIBAND {
            reasons.push(format!("port {number} has link layer {}", port.link_layer));
            continue;
        }
        let gids = gids_of(name, number);
        if gids.is_empty() {
            reasons.push(format!("port {number} has no address (GID)"));
            continue;
        }
        return Ok((describe(number, &port, gids, wanted.gid), limits(&attr, &port)));
    }
    Err(if reasons.is_empty() { "has no port".to_owned() } else { reasons.join(", ") })
}

fn describe(number: u8, port: &PortAttr, gids: Vec<GidEntry>, fixed_gid: Option<u8>) -> Port {
    let mtu = u8::try_from(port.active_mtu).unwrap_or(1).clamp(1, 5);
    Port { number, lid: port.lid, mtu, link_layer: port.link_layer, gids, fixed_gid }
}

fn limits(attr: &DeviceAttr, port: &PortAttr) -> Limits {
    let at_most = |value: i32, max: u8| u8::try_from(value).unwrap_or(max).clamp(1, max);
    let pieces = [attr.max_sge, attr.max_sge_rd].into_iter().filter_map(|value| usize::try_from(value).ok());
    Limits {
        // Some devices allow fewer pieces for reads, and say 0 where they do not say.
        pieces: pieces.filter(|pieces| *pieces > 0).min().unwrap_or(1).min(PIECES_MAX),
        message_bytes: u64::from(port.max_msg_sz.max(4096)),
        queue: u32::try_from(attr.max_qp_wr.min(attr.max_cqe)).unwrap_or(1).max(1),
        reads: at_most(attr.max_qp_init_rd_atom, READS_MAX),
        answers: at_most(attr.max_qp_rd_atom, READS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_three_parts_at_most() {
        let wanted = |device: &str, port, gid| Wanted { device: Some(device.to_owned()), port, gid };
        assert_eq!("".parse(), Ok(Wanted::default()));
        assert_eq!("mlx5_0".parse(), Ok(wanted("mlx5_0", None, None)));
        assert_eq!("mlx5_0:2".parse(), Ok(wanted("mlx5_0", Some(2), None)));
        assert_eq!("rxe0:1:3".parse(), Ok(wanted("rxe0", Some(1), Some(3))));
        for bad in [":1", "a:x", "a:0", "a:1:2:3", "a:1:300"] {
            let error = bad.parse::<Wanted>().unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_what_was_searched() {
        let error = Device::open(&"no_such_device".parse().unwrap()).unwrap_err();
        assert!(
            error.contains("no_such_device") || error.contains("libibverbs") || error.contains("RDMA subsystem"),
            "{error}"
        );
    }
}
