//! The layouts against the header itself, where rdma-core's development files are installed.

use std::io::Write as _;
use std::mem::{offset_of, size_of};
use std::process::{Command, Stdio};

use super::*;

const HEADER: &str = "infiniband/verbs.h";

/// Every number the code relies on: its C expression, and what is written down here.
#[allow(clippy::too_many_lines, reason = "a table")]
fn expectations() -> Vec<(String, usize)> {
    let mut all = Vec::new();
    macro_rules! offsets {
        ($ours:ident = $theirs:literal: $($field:ident = $name:literal),+ $(,)?) => {
            $(all.push((format!("offsetof({}, {})", $theirs, $name), offset_of!($ours, $field)));)+
        };
    }
    macro_rules! sizes {
        ($($ours:ident = $theirs:literal),+ $(,)?) => {
            $(all.push((format!("sizeof({})", $theirs), size_of::<$ours>()));)+
        };
    }
    macro_rules! constants {
        ($($ours:ident),+ $(,)?) => {
            $(all.push((concat!("IBV_", stringify!($ours)).to_owned(), usize::try_from($ours).expect("small")));)+
        };
    }
    sizes!(
        Gid = "union ibv_gid",
        DeviceAttr = "struct ibv_device_attr",
        PortAttr = "struct ibv_port_attr",
        QpCap = "struct ibv_qp_cap",
        QpInitAttr = "struct ibv_qp_init_attr",
        GlobalRoute = "struct ibv_global_route",
        AddressHandleAttr = "struct ibv_ah_attr",
        QpAttr = "struct ibv_qp_attr",
        Sge = "struct ibv_sge",
        SendRequest = "struct ibv_send_wr",
        WorkCompletion = "struct ibv_wc",
    );
    offsets!(Context = "struct ibv_context": device = "device", poll_cq = "ops.poll_cq",
        req_notify_cq = "ops.req_notify_cq", post_send = "ops.post_send", num_comp_vectors = "num_comp_vectors");
    offsets!(Channel = "struct ibv_comp_channel": context = "context", fd = "fd");
    offsets!(Cq = "struct ibv_cq": context = "context");
    offsets!(Qp = "struct ibv_qp": context = "context", qp_num = "qp_num");
    offsets!(MemoryRegion = "struct ibv_mr": addr = "addr", length = "length", lkey = "lkey", rkey = "rkey");
    offsets!(DeviceAttr = "struct ibv_device_attr": max_mr_size = "max_mr_size", max_qp_wr = "max_qp_wr",
        max_sge = "max_sge", max_sge_rd = "max_sge_rd", max_cqe = "max_cqe", max_qp_rd_atom = "max_qp_rd_atom",
        max_qp_init_rd_atom = "max_qp_init_rd_atom", phys_port_cnt = "phys_port_cnt");
    offsets!(PortAttr = "struct ibv_port_attr": state = "state", active_mtu = "active_mtu",
        gid_tbl_len = "gid_tbl_len", max_msg_sz = "max_msg_sz", lid = "lid", link_layer = "link_layer");
    offsets!(QpInitAttr = "struct ibv_qp_init_attr": send_cq = "send_cq", recv_cq = "recv_cq", srq = "srq",
        cap = "cap", qp_type = "qp_type", sq_sig_all = "sq_sig_all");
    offsets!(QpCap = "struct ibv_qp_cap": max_send_wr = "max_send_wr", max_recv_wr = "max_recv_wr",
        max_send_sge = "max_send_sge", max_recv_sge = "max_recv_sge", max_inline_data = "max_inline_data");
    offsets!(GlobalRoute = "struct ibv_global_route": dgid = "dgid", flow_label = "flow_label",
        sgid_index = "sgid_index", hop_limit = "hop_limit", traffic_class = "traffic_class");
    offsets!(AddressHandleAttr = "struct ibv_ah_attr": grh = "grh", dlid = "dlid", sl = "sl",
        src_path_bits = "src_path_bits", static_rate = "static_rate", is_global = "is_global", port_num = "port_num");
    offsets!(QpAttr = "struct ibv_qp_attr": qp_state = "qp_state", path_mtu = "path_mtu", rq_psn = "rq_psn",
        sq_psn = "sq_psn", dest_qp_num = "dest_qp_num", qp_access_flags = "qp_access_flags", cap = "cap",
        ah_attr = "ah_attr", alt_ah_attr = "alt_ah_attr", pkey_index = "pkey_index", max_rd_atomic = "max_rd_atomic",
        max_dest_rd_atomic = "max_dest_rd_atomic", min_rnr_timer = "min_rnr_timer", port_num = "port_num",
        timeout = "timeout", retry_cnt = "retry_cnt", rnr_retry = "rnr_retry", rate_limit = "rate_limit");
    offsets!(Sge = "struct ibv_sge": addr = "addr", length = "length", lkey = "lkey");
    offsets!(SendRequest = "struct ibv_send_wr": wr_id = "wr_id", next = "next", sg_list = "sg_list",
        num_sge = "num_sge", opcode = "opcode", send_flags = "send_flags", imm_data = "imm_data",
        remote_addr = "wr.rdma.remote_addr", rkey = "wr.rdma.rkey");
    offsets!(WorkCompletion = "struct ibv_wc": wr_id = "wr_id", status = "status", opcode = "opcode",
        vendor_err = "vendor_err", byte_len = "byte_len", qp_num = "qp_num", src_qp = "src_qp",
        wc_flags = "wc_flags", pkey_index = "pkey_index", slid = "slid", dlid_path_bits = "dlid_path_bits");
    constants!(
        PORT_ACTIVE,
        LINK_LAYER_INFINIBAND,
        LINK_LAYER_ETHERNET,
        ACCESS_LOCAL_WRITE,
        ACCESS_REMOTE_WRITE,
        ACCESS_REMOTE_READ,
        QPT_RC,
        QPS_INIT,
        QPS_RTR,
        QPS_RTS,
        QPS_ERR,
        QP_STATE,
        QP_ACCESS_FLAGS,
        QP_PKEY_INDEX,
        QP_PORT,
        QP_AV,
        QP_PATH_MTU,
        QP_TIMEOUT,
        QP_RETRY_CNT,
        QP_RNR_RETRY,
        QP_RQ_PSN,
        QP_MAX_QP_RD_ATOMIC,
        QP_MIN_RNR_TIMER,
        QP_SQ_PSN,
        QP_MAX_DEST_RD_ATOMIC,
        QP_DEST_QPN,
        WR_RDMA_WRITE,
        WR_RDMA_READ,
        SEND_SIGNALED,
        WC_SUCCESS,
        WC_LOC_LEN_ERR,
        WC_LOC_PROT_ERR,
        WC_WR_FLUSH_ERR,
        WC_REM_INV_REQ_ERR,
        WC_REM_ACCESS_ERR,
        WC_RETRY_EXC_ERR,
        WC_RNR_RETRY_EXC_ERR,
        WC_RESP_TIMEOUT_ERR,
    );
    all
}

/// Compiles `lines` after the header; what the compiler said, or `None` if there is no compiler.
fn compile(lines: &str) -> Option<Result<(), String>> {
    let mut child = Command::new("cc")
        .args(["-x", "c", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let source = format!("#include <stddef.h>\n#include <{HEADER}>\n{lines}\n");
    child.stdin.take().expect("piped").write_all(source.as_bytes()).expect("the compiler reads");
    let output = child.wait_with_output().expect("the compiler ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(said) })
}

fn is_header_here() -> bool {
    let is_here = matches!(compile(""), Some(Ok(())));
    if !is_here {
        eprintln!("SKIPPED: no C compiler, or no {HEADER} (package libibverbs-dev)");
    }
    is_here
}

#[test]
fn layouts_are_those_of_the_header() {
    if !is_header_here() {
        return;
    }
    let line =
        |(what, value): &(String, usize)| format!("_Static_assert({what} == {value}, \"{what} is not {value}\");");
    let lines: Vec<String> = expectations().iter().map(line).collect();
    let lines = lines.join("\n");
    if let Some(Err(said)) = compile(&lines) {
        panic!("{said}");
    }
}

#[test]
fn a_wrong_layout_would_be_noticed() {
    if is_header_here() {
        let wrong = "_Static_assert(sizeof(struct ibv_send_wr) == 1, \"as it should\");";
        assert!(matches!(compile(wrong), Some(Err(_))));
    }
}
