//! Settings of the `LocalService`.

use memcache_types::ByteCount;
use memcache_types::limits::{NODE_NAME_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

use crate::component::component;
use crate::endpoint::Endpoint;
use crate::error::ConfigError;
use crate::setting::Protocol;

/// Nothing, or what one segment may be.
pub(crate) fn is_lendable(bytes: ByteCount) -> bool {
    bytes.get() == 0 || (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes.get())
}

component! {
    /// Settings of a standalone `LocalService`: `conf/local.toml`, `MEMCACHE_LOCAL_<KEY>`.
    LocalConfig, "local", "MEMCACHE_LOCAL_", "Settings of a LocalService that lends memory (python -m memcache.local).";
    /// Address of the MetaService.
    meta_address: Endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 7411 },
        "\"host:port\", \"[v6]:port\", \"unix:/path\" or \"unix-abstract:name\"", |_| true;
    /// Host memory to lend to the pool.
    lend_bytes: ByteCount = ByteCount::new(1 << 30),
        "a size such as \"512MB\" or \"64GB\", from 1MB to 256TB", |bytes| bytes.get() != 0 && is_lendable(*bytes);
    /// How peers reach this memory.
    protocol: Protocol = Protocol::Auto, "\"auto\", \"host_shm\", \"host_rdma\" or \"host_tcp\"", |_| true;
    /// RDMA device, its port and the index of its address: "mlx5_0", "mlx5_0:1" or "mlx5_0:1:3". Empty: the first with an active port, RoCE v2.
    rdma_device: String = String::new(), "a device name, with port and GID index if wanted, or empty", |device| is_device(device);
    /// Host name or address that peers on other hosts connect to for data. Empty: 127.0.0.1 if the MetaService is on this host, else the address this host reaches it from.
    data_host: String = String::new(), "a host name or address without port, or empty", |host| is_host(host);
    /// TCP port for data. 0 takes any free port.
    data_port: u16 = 0, "0 to 65535", |_| true;
    /// Name of this node for humans. Empty: host name and process id.
    node_name: String = String::new(), "up to 256 bytes", |name| name.len() <= NODE_NAME_BYTES_MAX;
    /// Bytes a second that this node copies into its memory, to restore lost replicas and to take over from nodes that are drained. 0 copies nothing.
    repair_bytes_per_s: ByteCount = ByteCount::new(1 << 30), "0 or a size such as \"512MB\"", |_| true;
    /// On SIGTERM, how long other nodes may take to copy what is only here before this one leaves, in milliseconds. 0 leaves at once.
    drain_ms: u64 = 0, "0 to 3600000", |ms| *ms <= 3_600_000;
    /// Back the memory with huge pages. Where the system has not enough of them: a warning, and normal pages.
    huge_pages: bool = false, "true or false", |_| true;
    /// Touch all memory at start, so that the first writes find it mapped.
    prefault: bool = true, "true or false", |_| true;
    /// NUMA node whose memory is lent: threads that run there touch all of it at start, so keep prefault on. Empty: wherever the touching threads happen to run.
    numa_node: String = String::new(), "the number of a node, or empty", |node| node.is_empty() || node.parse::<u32>().is_ok();
    /// Most objects of the lent memory that are written down in it, so that they are found again after a restart of the MetaService; 384 bytes each, beside lend_bytes. 0: one for every 64KB, and at least one for every 4KB up to 1024.
    holdings_slots: u64 = 0, "0 to 1073741824", |slots| *slots <= 1 << 30;
    /// File to lend instead of memory that ends with this process, on tmpfs or hugetlbfs such as /dev/shm/NAME: a process that lends it again brings back what it holds. It stays until somebody deletes it. Empty: none.
    persist: String = String::new(), "an absolute path, or empty", |path| is_file(path);
    /// What is logged to stderr: a level or a filter such as "info,memcache_client=debug".
    log: String = "info".to_owned(), "off, error, warn, info, debug, trace, or a filter of them", |_| true;
    /// How lines of the log look: for people, or one JSON object a line for collectors.
    log_format: String = "text".to_owned(), "text or json", |format| format == "text" || format == "json";
}

/// A file by its full path, or none.
pub(crate) fn is_file(path: &str) -> bool {
    path.is_empty() || (path.starts_with('/') && !path.ends_with('/') && !path.contains('\0'))
}

pub(crate) fn is_host(host: &str) -> bool {
    !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '[')
}

pub(crate) fn is_device(device: &str) -> bool {
    device.len() <= 64 && device.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}

impl LocalConfig {
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "the same shape for every component")]
    fn check_together(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}
