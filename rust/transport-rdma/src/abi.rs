//! The part of the verbs ABI that is used here, written down by hand.
//!
//! `libibverbs.so.1` keeps these layouts for all of its versions; `layouts_are_those_of_the_header` compares them with
//! `infiniband/verbs.h` wherever that header is installed. Structs that only the library makes end after the last
//! field that is looked at.

#![allow(clippy::struct_field_names, reason = "the names are those of the header")]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `struct ibv_device`: only ever pointed at.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Device {
    _opaque: [u8; 0],
}

/// `struct ibv_pd`: only ever pointed at.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Pd {
    _opaque: [u8; 0],
}

/// `struct ibv_context`, with its table of functions. The three used here are not exported: the header calls them
/// through this table.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: *mut Device,
    /// Members of `struct ibv_context_ops` before `poll_cq`.
    _before_poll: [*mut c_void; 11],
    pub(crate) poll_cq: unsafe extern "C" fn(cq: *mut Cq, entries: c_int, completions: *mut WorkCompletion) -> c_int,
    pub(crate) req_notify_cq: unsafe extern "C" fn(cq: *mut Cq, solicited_only: c_int) -> c_int,
    _before_post: [*mut c_void; 12],
    pub(crate) post_send:
        unsafe extern "C" fn(qp: *mut Qp, requests: *mut SendRequest, bad: *mut *mut SendRequest) -> c_int,
    _after_post: [*mut c_void; 6],
    _cmd_fd: c_int,
    _async_fd: c_int,
    pub(crate) num_comp_vectors: c_int,
}

/// `struct ibv_comp_channel`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) context: *mut Context,
    pub(crate) fd: c_int,
}

/// `struct ibv_cq`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Cq {
    pub(crate) context: *mut Context,
}

/// `struct ibv_qp`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) context: *mut Context,
    _qp_context: *mut c_void,
    _pd: *mut Pd,
    _send_cq: *mut Cq,
    _recv_cq: *mut Cq,
    _srq: *mut c_void,
    _handle: u32,
    pub(crate) qp_num: u32,
}

/// `struct ibv_mr`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct MemoryRegion {
    _context: *mut Context,
    _pd: *mut Pd,
    pub(crate) addr: *mut c_void,
    pub(crate) length: usize,
    _handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

/// `union ibv_gid`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gid(pub(crate) [u8; 16]);

/// `struct ibv_device_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceAttr {
    _fw_ver: [c_char; 64],
    _node_guid: u64,
    _sys_image_guid: u64,
    pub(crate) max_mr_size: u64,
    _page_size_cap: u64,
    _vendor_id: u32,
    _vendor_part_id: u32,
    _hw_ver: u32,
    _max_qp: c_int,
    pub(crate) max_qp_wr: c_int,
    _device_cap_flags: c_uint,
    pub(crate) max_sge: c_int,
    pub(crate) max_sge_rd: c_int,
    _max_cq: c_int,
    pub(crate) max_cqe: c_int,
    _max_mr: c_int,
    _max_pd: c_int,
    /// Reads and atomics a queue pair answers at the same time.
    pub(crate) max_qp_rd_atom: c_int,
    _max_ee_rd_atom: c_int,
    _max_res_rd_atom: c_int,
    /// Reads and atomics a queue pair has under way at the same time.
    pub(crate) max_qp_init_rd_atom: c_int,
    _from_max_ee_init_rd_atom: [c_int; 16],
    _max_pkeys: u16,
    _local_ca_ack_delay: u8,
    pub(crate) phys_port_cnt: u8,
}

/// `struct ibv_port_attr`. The exported function fills an older, shorter one: it never writes past this.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortAttr {
    pub(crate) state: c_uint,
    _max_mtu: c_uint,
    pub(crate) active_mtu: c_uint,
    pub(crate) gid_tbl_len: c_int,
    _port_cap_flags: u32,
    pub(crate) max_msg_sz: u32,
    _bad_pkey_cntr: u32,
    _qkey_viol_cntr: u32,
    _pkey_tbl_len: u16,
    pub(crate) lid: u16,
    _sm_lid: u16,
    _lmc: u8,
    _max_vl_num: u8,
    _sm_sl: u8,
    _subnet_timeout: u8,
    _init_type_reply: u8,
    _active_width: u8,
    _active_speed: u8,
    _phys_state: u8,
    pub(crate) link_layer: u8,
    _flags: u8,
    _port_cap_flags2: u16,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QpCap {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct QpInitAttr {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut Cq,
    pub(crate) recv_cq: *mut Cq,
    pub(crate) srq: *mut c_void,
    pub(crate) cap: QpCap,
    pub(crate) qp_type: c_uint,
    pub(crate) sq_sig_all: c_int,
}

/// `struct ibv_global_route`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GlobalRoute {
    pub(crate) dgid: Gid,
    pub(crate) flow_label: u32,
    pub(crate) sgid_index: u8,
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
}

/// `struct ibv_ah_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AddressHandleAttr {
    pub(crate) grh: GlobalRoute,
    pub(crate) dlid: u16,
    pub(crate) sl: u8,
    pub(crate) src_path_bits: u8,
    pub(crate) static_rate: u8,
    pub(crate) is_global: u8,
    pub(crate) port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QpAttr {
    pub(crate) qp_state: c_uint,
    pub(crate) cur_qp_state: c_uint,
    pub(crate) path_mtu: c_uint,
    pub(crate) path_mig_state: c_uint,
    pub(crate) qkey: u32,
    pub(crate) rq_psn: u32,
    pub(crate) sq_psn: u32,
    pub(crate) dest_qp_num: u32,
    pub(crate) qp_access_flags: c_uint,
    pub(crate) cap: QpCap,
    pub(crate) ah_attr: AddressHandleAttr,
    pub(crate) alt_ah_attr: AddressHandleAttr,
    pub(crate) pkey_index: u16,
    pub(crate) alt_pkey_index: u16,
    pub(crate) en_sqd_async_notify: u8,
    pub(crate) sq_draining: u8,
    pub(crate) max_rd_atomic: u8,
    pub(crate) max_dest_rd_atomic: u8,
    pub(crate) min_rnr_timer: u8,
    pub(crate) port_num: u8,
    pub(crate) timeout: u8,
    pub(crate) retry_cnt: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) alt_port_num: u8,
    pub(crate) alt_timeout: u8,
    pub(crate) rate_limit: u32,
}

/// `struct ibv_sge`: one local piece of a work request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

/// `struct ibv_send_wr` of an RDMA read or write.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendRequest {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut SendRequest,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: c_uint,
    pub(crate) send_flags: c_uint,
    pub(crate) imm_data: u32,
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u32,
    /// The rest of the three unions, which these operations do not use.
    pub(crate) unused: [u64; 9],
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkCompletion {
    pub(crate) wr_id: u64,
    pub(crate) status: c_uint,
    /// Means something only in a completion that succeeded, as everything below it.
    pub(crate) opcode: c_uint,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    pub(crate) imm_data: u32,
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) pkey_index: u16,
    pub(crate) slid: u16,
    pub(crate) sl: u8,
    pub(crate) dlid_path_bits: u8,
}

pub(crate) const PORT_ACTIVE: c_uint = 4;
pub(crate) const LINK_LAYER_INFINIBAND: u8 = 1;
pub(crate) const LINK_LAYER_ETHERNET: u8 = 2;

pub(crate) const ACCESS_LOCAL_WRITE: c_int = 1;
pub(crate) const ACCESS_REMOTE_WRITE: c_int = 1 << 1;
pub(crate) const ACCESS_REMOTE_READ: c_int = 1 << 2;

pub(crate) const QPT_RC: c_uint = 2;
pub(crate) const QPS_INIT: c_uint = 1;
pub(crate) const QPS_RTR: c_uint = 2;
pub(crate) const QPS_RTS: c_uint = 3;
pub(crate) const QPS_ERR: c_uint = 6;

pub(crate) const QP_STATE: c_int = 1;
pub(crate) const QP_ACCESS_FLAGS: c_int = 1 << 3;
pub(crate) const QP_PKEY_INDEX: c_int = 1 << 4;
pub(crate) const QP_PORT: c_int = 1 << 5;
pub(crate) const QP_AV: c_int = 1 << 7;
pub(crate) const QP_PATH_MTU: c_int = 1 << 8;
pub(crate) const QP_TIMEOUT: c_int = 1 << 9;
pub(crate) const QP_RETRY_CNT: c_int = 1 << 10;
pub(crate) const QP_RNR_RETRY: c_int = 1 << 11;
pub(crate) const QP_RQ_PSN: c_int = 1 << 12;
pub(crate) const QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub(crate) const QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub(crate) const QP_SQ_PSN: c_int = 1 << 16;
pub(crate) const QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub(crate) const QP_DEST_QPN: c_int = 1 << 20;

pub(crate) const WR_RDMA_WRITE: c_uint = 0;
pub(crate) const WR_RDMA_READ: c_uint = 4;
pub(crate) const SEND_SIGNALED: c_uint = 1 << 1;

pub(crate) const WC_SUCCESS: c_uint = 0;
pub(crate) const WC_LOC_LEN_ERR: c_uint = 1;
pub(crate) const WC_LOC_PROT_ERR: c_uint = 4;
pub(crate) const WC_WR_FLUSH_ERR: c_uint = 5;
pub(crate) const WC_REM_INV_REQ_ERR: c_uint = 9;
pub(crate) const WC_REM_ACCESS_ERR: c_uint = 10;
pub(crate) const WC_RETRY_EXC_ERR: c_uint = 12;
pub(crate) const WC_RNR_RETRY_EXC_ERR: c_uint = 13;
pub(crate) const WC_RESP_TIMEOUT_ERR: c_uint = 20;

#[cfg(test)]
mod tests;
