//! One reliable connection: a queue pair, its completion queue, and the sleep until something completes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::abi::{
    ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, AddressHandleAttr, Channel, Cq, GlobalRoute, LINK_LAYER_ETHERNET,
    QP_ACCESS_FLAGS, QP_AV, QP_DEST_QPN, QP_MAX_DEST_RD_ATOMIC, QP_MAX_QP_RD_ATOMIC, QP_MIN_RNR_TIMER, QP_PATH_MTU,
    QP_PKEY_INDEX, QP_PORT, QP_RETRY_CNT, QP_RNR_RETRY, QP_RQ_PSN, QP_SQ_PSN, QP_STATE, QP_TIMEOUT, QPS_ERR, QPS_INIT,
    QPS_RTR, QPS_RTS, QPT_RC, Qp, QpAttr, QpCap, QpInitAttr, SendRequest, WorkCompletion,
};
use crate::device::Device;
use crate::gid::GidEntry;
use crate::handshake::Terms;

/// Time until an unanswered packet is sent again: 4.096 us x 2^14, 67 ms.
const ACK_TIMEOUT: u8 = 14;
/// How often, before the peer counts as gone: within about half a second, on devices that take the time for a lower
/// bound within four. Not 7, the most there is: Soft-RoCE takes that for "for ever", as the standard does for the
/// other counter. A process that dies is noticed earlier, at the control connection.
const RETRIES: u8 = 6;
/// Entries of a queue that is only answered from.
const ANSWERING_ENTRIES: u32 = 16;
/// Events acknowledged at once: each time takes a lock.
const EVENTS: u32 = 256;
/// Completions taken at once.
const BATCH: usize = 16;
/// Interrupt of the next completion queue.
static NEXT_VECTOR: AtomicI32 = AtomicI32::new(0);
/// Longest busy wait before a sleep.
const SPIN_MAX: Duration = Duration::from_micros(20);

/// What a side may do to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reads and writes the other's memory, and lets it do nothing here.
    Asking,
    /// Lets the other read and write registered memory.
    Answering,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// At least one completion was taken.
    Completed,
    Deadline,
    /// The peer hung up the control connection.
    HungUp,
}

/// A queue pair and what it needs. Destroyed in the right order when dropped; afterwards the device touches nothing
/// on its behalf.
#[derive(Debug)]
pub(crate) struct Queue {
    device: Arc<Device>,
    channel: Option<NonNull<Channel>>,
    cq: NonNull<Cq>,
    qp: NonNull<Qp>,
    pub(crate) entries: u32,
    pub(crate) gid: GidEntry,
    psn: u32,
    unacknowledged: u32,
    spin: Duration,
}

// SAFETY: verbs objects belong to the process; this one is used by one thread at a time, as `&mut` says.
unsafe impl Send for Queue {}

impl Queue {
    /// A queue pair that is not connected yet, with room for `entries` requests under way, or as many as the device
    /// agrees to.
    pub(crate) fn new(device: &Arc<Device>, gid: GidEntry, role: Role, entries: u32) -> io::Result<Self> {
        let verbs = device.verbs;
        let is_asking = role == Role::Asking;
        let mut entries = if is_asking { entries } else { ANSWERING_ENTRIES }.min(device.limits.queue);
        let channel = if is_asking { Some(open_channel(device)?) } else { None };
        let made = loop {
            match make_pair(device, channel, entries, if is_asking { device.limits.pieces } else { 1 }) {
                // Devices state limits for entries and pieces that they do not keep together.
                Err(_) if entries > ANSWERING_ENTRIES => entries /= 2,
                result => break result,
            }
        };
        let (cq, qp) = made.inspect_err(|_| {
            if let Some(channel) = channel {
                // SAFETY: made above, used by nothing.
                unsafe { (verbs.ibv_destroy_comp_channel)(channel.as_ptr()) };
            }
        })?;
        // From here on the drop cleans up.
        let queue = Self {
            device: Arc::clone(device),
            channel,
            cq,
            qp,
            entries,
            gid,
            psn: crate::random::u32()? & 0xff_ffff,
            unacknowledged: 0,
            spin: SPIN_MAX,
        };
        let access = if is_asking { 0 } else { ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE };
        let mut attr = QpAttr { qp_state: QPS_INIT, port_num: device.port.number, ..QpAttr::default() };
        attr.qp_access_flags = access.cast_unsigned();
        queue.modify(&mut attr, QP_STATE | QP_PKEY_INDEX | QP_PORT | QP_ACCESS_FLAGS)?;
        if is_asking {
            queue.arm()?;
        }
        Ok(queue)
    }

    /// What the other side needs to know of this one.
    pub(crate) fn terms(&self) -> Terms {
        // SAFETY: the queue pair lives as long as `self`.
        let qp_num = unsafe { self.qp.as_ref().qp_num };
        let Device { port, limits, .. } = &*self.device;
        Terms {
            qp_num,
            psn: self.psn,
            gid: self.gid.gid.0,
            lid: port.lid,
            mtu: port.mtu,
            link_layer: port.link_layer,
            reads: limits.reads,
            answers: limits.answers,
        }
    }

    /// Connects to the other side.
    pub(crate) fn connect(&self, peer: &Terms) -> io::Result<()> {
        let Device { port, limits, .. } = &*self.device;
        let is_ethernet = port.link_layer == LINK_LAYER_ETHERNET;
        let mut attr = QpAttr {
            qp_state: QPS_RTR,
            path_mtu: u32::from(port.mtu.min(peer.mtu)),
            dest_qp_num: peer.qp_num,
            rq_psn: peer.psn,
            max_dest_rd_atomic: limits.answers.min(peer.reads).max(1),
            min_rnr_timer: 12,
            ah_attr: AddressHandleAttr {
                grh: GlobalRoute {
                    dgid: crate::abi::Gid(peer.gid),
                    sgid_index: self.gid.index,
                    hop_limit: 64,
                    ..GlobalRoute::default()
                },
                dlid: peer.lid,
                // Within an InfiniBand subnet the local id is enough; RoCE knows global addresses only.
                is_global: u8::from(is_ethernet),
                port_num: port.number,
                ..AddressHandleAttr::default()
            },
            ..QpAttr::default()
        };
        let mask = QP_STATE | QP_AV | QP_PATH_MTU | QP_DEST_QPN | QP_RQ_PSN | QP_MAX_DEST_RD_ATOMIC | QP_MIN_RNR_TIMER;
        self.modify(&mut attr, mask)?;
        let mut attr = QpAttr {
            qp_state: QPS_RTS,
            sq_psn: self.psn,
            timeout: ACK_TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RETRIES,
            max_rd_atomic: limits.reads.min(peer.answers).max(1),
            ..QpAttr::default()
        };
        let mask = QP_STATE | QP_TIMEOUT | QP_RETRY_CNT | QP_RNR_RETRY | QP_SQ_PSN | QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attr, mask)
    }

    /// Hands requests to the device. An error comes with the first request that was not taken.
    ///
    /// # Safety
    /// The list ends in a null `next`; what it points to is whole until this returns. The memory that the requests
    /// name is registered and stays so, readable or writable as they say, until they have completed or the queue is
    /// dropped.
    pub(crate) unsafe fn post(&mut self, first: *mut SendRequest) -> Result<(), (io::Error, *mut SendRequest)> {
        let mut bad = null_mut();
        // SAFETY: the queue pair is alive; the list is as promised.
        let failed = unsafe {
            let post_send = (*self.qp.as_ref().context).post_send;
            post_send(self.qp.as_ptr(), first, &raw mut bad)
        };
        if failed == 0 { Ok(()) } else { Err((io::Error::from_raw_os_error(failed), bad)) }
    }

    /// Takes completions, without waiting.
    pub(crate) fn take(&mut self, completions: &mut Vec<WorkCompletion>) -> io::Result<()> {
        let mut batch = [WorkCompletion::default(); BATCH];
        // SAFETY: the completion queue is alive and `batch` holds as many entries as said.
        let count = unsafe {
            let poll_cq = (*self.cq.as_ref().context).poll_cq;
            poll_cq(self.cq.as_ptr(), 16, batch.as_mut_ptr())
        };
        let count = usize::try_from(count).map_err(|_| io::Error::other(format!("ibv_poll_cq returned {count}")))?;
        completions.extend_from_slice(&batch[..count.min(BATCH)]);
        Ok(())
    }

    /// Waits until requests have completed, and takes the completions: at first busily and very shortly, then asleep.
    pub(crate) fn wait(
        &mut self,
        completions: &mut Vec<WorkCompletion>,
        control: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> io::Result<Woken> {
        let started = Instant::now();
        while started.elapsed() < self.spin {
            self.take(completions)?;
            if !completions.is_empty() {
                self.spin = (self.spin * 2).clamp(Duration::from_micros(1), SPIN_MAX);
                return Ok(Woken::Completed);
            }
            std::hint::spin_loop();
        }
        // Spinning that finds nothing is time taken from somebody else.
        self.spin /= 2;
        loop {
            // Armed since before the last sleep, or from the start: look once more, then sleep.
            self.take(completions)?;
            if !completions.is_empty() {
                self.spin = (self.spin + Duration::from_micros(1)).min(SPIN_MAX);
                return Ok(Woken::Completed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Woken::Deadline);
            }
            if let Some(woken) = self.sleep(control, left)? {
                return Ok(woken);
            }
        }
    }

    /// Sleeps until the channel has something, or for `left`. Something else if that ends the wait.
    fn sleep(&mut self, control: Option<BorrowedFd<'_>>, left: Duration) -> io::Result<Option<Woken>> {
        let Some(channel) = self.channel else { return Ok(Some(Woken::Deadline)) };
        // SAFETY: the channel lives as long as `self`; its descriptor with it.
        let channel_fd = unsafe { BorrowedFd::borrow_raw(channel.as_ref().fd) };
        let mut fds = vec![PollFd::from_borrowed_fd(channel_fd, PollFlags::IN)];
        fds.extend(control.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::RDHUP)));
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            drop(fds);
            self.acknowledge()?;
            // Before the completions are taken: one that comes in between wakes the next sleep.
            self.arm()?;
            return Ok(None);
        }
        Ok(Some(Woken::HungUp))
    }

    /// Takes the events of the channel, all of which are about this completion queue.
    fn acknowledge(&mut self) -> io::Result<()> {
        let Some(channel) = self.channel else { return Ok(()) };
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel is alive and its descriptor does not block.
        let failed = unsafe { (self.device.verbs.ibv_get_cq_event)(channel.as_ptr(), &raw mut cq, &raw mut context) };
        if failed == 0 {
            self.unacknowledged += 1;
            if self.unacknowledged >= EVENTS {
                // SAFETY: as many events of this completion queue were taken and not acknowledged.
                unsafe { (self.device.verbs.ibv_ack_cq_events)(self.cq.as_ptr(), self.unacknowledged) };
                self.unacknowledged = 0;
            }
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) { Ok(()) } else { Err(error) }
    }

    /// Asks for an event at the next completion.
    fn arm(&self) -> io::Result<()> {
        // SAFETY: the completion queue is alive.
        let failed = unsafe {
            let req_notify_cq = (*self.cq.as_ref().context).req_notify_cq;
            req_notify_cq(self.cq.as_ptr(), 0)
        };
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    /// Stops the connection: what is under way completes with an error, soon.
    pub(crate) fn fail(&self) -> io::Result<()> {
        self.modify(&mut QpAttr { qp_state: QPS_ERR, ..QpAttr::default() }, QP_STATE)
    }

    fn modify(&self, attr: &mut QpAttr, mask: i32) -> io::Result<()> {
        // SAFETY: the queue pair is alive, `attr` has the layout the library reads.
        let failed = unsafe { (self.device.verbs.ibv_modify_qp)(self.qp.as_ptr(), attr, mask) };
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if !self.device.is_ours() {
            return;
        }
        let verbs = self.device.verbs;
        // SAFETY: made by `new`, destroyed once, in the order the library asks for. All events that were taken are
        // acknowledged, without which destroying the queue would wait for ever.
        let failed = unsafe {
            let pair = (verbs.ibv_destroy_qp)(self.qp.as_ptr());
            (verbs.ibv_ack_cq_events)(self.cq.as_ptr(), self.unacknowledged);
            let cq = (verbs.ibv_destroy_cq)(self.cq.as_ptr());
            let channel = self.channel.map_or(0, |channel| (verbs.ibv_destroy_comp_channel)(channel.as_ptr()));
            [pair, cq, channel]
        };
        if failed != [0; 3] {
            tracing::error!(?failed, "an RDMA connection was not destroyed whole");
        }
    }
}

/// A channel whose descriptor does not block.
fn open_channel(device: &Arc<Device>) -> io::Result<NonNull<Channel>> {
    // SAFETY: the device is open.
    let channel = unsafe { (device.verbs.ibv_create_comp_channel)(device.context().as_ptr()) };
    let channel = NonNull::new(channel).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: just made.
    let fd: RawFd = unsafe { channel.as_ref().fd };
    // SAFETY: open until the channel is destroyed.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let set = fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK));
    set.map(|()| channel).map_err(|error| {
        // SAFETY: made above, used by nothing.
        unsafe { (device.verbs.ibv_destroy_comp_channel)(channel.as_ptr()) };
        error.into()
    })
}

fn make_pair(
    device: &Arc<Device>,
    channel: Option<NonNull<Channel>>,
    entries: u32,
    pieces: usize,
) -> io::Result<(NonNull<Cq>, NonNull<Qp>)> {
    let verbs = device.verbs;
    let channel = channel.map_or(null_mut(), NonNull::as_ptr);
    let length = i32::try_from(entries).unwrap_or(i32::MAX);
    // Room for the completion of every request: when a connection fails, each of them completes.
    // SAFETY: device and channel are open.
    let cq = unsafe {
        // Completions of different connections wake different processors, where the device can.
        let vectors = device.context().as_ref().num_comp_vectors.max(1);
        let vector = NEXT_VECTOR.fetch_add(1, Ordering::Relaxed).rem_euclid(vectors);
        (verbs.ibv_create_cq)(device.context().as_ptr(), length, null_mut(), channel, vector)
    };
    let cq = NonNull::new(cq).ok_or_else(io::Error::last_os_error)?;
    let mut attr = MaybeUninit::new(QpInitAttr {
        qp_context: null_mut(),
        send_cq: cq.as_ptr(),
        recv_cq: cq.as_ptr(),
        srq: null_mut(),
        cap: QpCap {
            max_send_wr: entries,
            max_recv_wr: 1,
            max_send_sge: u32::try_from(pieces).unwrap_or(1),
            max_recv_sge: 1,
            max_inline_data: 0,
        },
        qp_type: QPT_RC,
        sq_sig_all: 0,
    });
    // SAFETY: the domain is alive, `attr` has the layout the library reads and updates.
    let qp = unsafe { (verbs.ibv_create_qp)(device.pd().as_ptr(), attr.as_mut_ptr()) };
    NonNull::new(qp).map(|qp| (cq, qp)).ok_or_else(|| {
        let error = io::Error::last_os_error();
        // SAFETY: made above, used by nothing.
        unsafe { (verbs.ibv_destroy_cq)(cq.as_ptr()) };
        error
    })
}
