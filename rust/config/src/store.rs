//! Settings of a client.

use std::path::{Path, PathBuf};

use memcache_types::ByteCount;
use memcache_types::limits::NODE_NAME_BYTES_MAX;

use crate::component::component;
use crate::endpoint::Endpoint;
use crate::error::ConfigError;
use crate::layers::FILE_VARIABLE;
use crate::local::{is_device, is_file, is_host, is_lendable};
use crate::setting::{ChecksumPolicy, CopyKernel, Protocol, TransferPath};

component! {
    /// Settings of a client of the pool: `conf/store.toml`, `MEMCACHE_<KEY>`.
    StoreConfig, "store", "MEMCACHE_", "Settings of a client of the pool (memcache.Store and the engine connectors).";
    /// Address of the MetaService. Empty: this process hosts one itself.
    meta_address: Option<Endpoint> = None,
        "\"host:port\", \"[v6]:port\", \"unix:/path\", \"unix-abstract:name\" or empty", |_| true;
    /// Which processes of this host share a hosted MetaService: those with the same pool_id. Empty: this process alone. Without meaning when meta_address is set.
    pool_id: String = String::new(), "up to 256 bytes", |id| id.len() <= 256;
    /// Host memory to lend to the pool. 0 lends nothing.
    lend_bytes: ByteCount = ByteCount::new(0),
        "0 or a size such as \"512MB\" or \"64GB\", from 1MB to 256TB", |bytes| is_lendable(*bytes);
    /// How peers are reached.
    protocol: Protocol = Protocol::Auto, "\"auto\", \"host_shm\", \"host_rdma\" or \"host_tcp\"", |_| true;
    /// RDMA device, its port and the index of its address: "mlx5_0", "mlx5_0:1" or "mlx5_0:1:3". Empty: the first with an active port, RoCE v2.
    rdma_device: String = String::new(), "a device name, with port and GID index if wanted, or empty", |device| is_device(device);
    /// Name of this node for humans. Empty: host name and process id.
    node_name: String = String::new(), "up to 256 bytes", |name| name.len() <= NODE_NAME_BYTES_MAX;
    /// Host name or address that peers on other hosts connect to for data. Empty: 127.0.0.1 if the MetaService is on this host, else the address this host reaches it from.
    data_host: String = String::new(), "a host name or address without port, or empty", |host| is_host(host);
    /// Deadline of a call that names none, in milliseconds.
    timeout_ms: u64 = 5_000, "1 to 3600000", |ms| (1..=3_600_000).contains(ms);
    /// When payload checksums are made and verified. Generation and length are always compared.
    checksum: ChecksumPolicy = ChecksumPolicy::Always, "\"always\", \"sampled\" (made by every put, verified by one get in checksum_one_in) or \"off\"", |_| true;
    /// How many objects share one verification where checksum is "sampled". After a mismatch every object is verified for a while.
    checksum_one_in: u64 = 16, "1 to 1000000", |count| (1..=1_000_000).contains(count);
    /// Replicas that a put makes of each object, on distinct nodes, unless it says otherwise.
    replica_num: u64 = 1, "1 to 8", |replicas| (1..=8).contains(replicas);
    /// Bytes a second that this node copies into the memory it lends, to restore lost replicas and to take over from nodes that are drained. 0 copies nothing.
    repair_bytes_per_s: ByteCount = ByteCount::new(1 << 30), "0 or a size such as \"512MB\"", |_| true;
    /// Back lent memory with huge pages. Where the system has not enough of them: a warning, and normal pages.
    huge_pages: bool = false, "true or false", |_| true;
    /// Path between the pool and the engine's memory: 0 over the host, 1 relayed by the owner's device, 2 staged, 3 direct. A number forces it; where it does not lead there, calls fail and say why.
    path: TransferPath = TransferPath::Auto, "\"auto\", \"0\", \"1\", \"2\" or \"3\"", |_| true;
    /// File with the costs of paths. Empty: measured when first needed and kept in the user's cache folder.
    costs: String = String::new(), "a path or empty", |_| true;
    /// Threads that copy for one call, its own included. 0: as many as cores, at most 4, of which all but one rest while more threads of the machine want to run than it has processors. Another number: that many, always.
    transfer_threads: u64 = 0, "0 to 256", |threads| *threads <= 256;
    /// How large copies of host memory are made. "auto": as a trial of a millisecond at the first one says. The first store of a process that names one decides for all of it; one that the processor does not have is left.
    copy_kernel: CopyKernel = CopyKernel::Auto, "\"auto\", \"avx2-nt-lines\", \"avx2-nt-2-runs\" or \"avx512-nt-4-runs\"", |_| true;
    /// Most objects of the lent memory that are written down in it, so that they are found again after a restart of the MetaService; 384 bytes each, beside lend_bytes. 0: one for every 64KB, and at least one for every 4KB up to 1024.
    holdings_slots: u64 = 0, "0 to 1073741824", |slots| *slots <= 1 << 30;
    /// File to lend instead of memory that ends with this process, on tmpfs or hugetlbfs such as /dev/shm/NAME: a process that lends it again brings back what it holds. It stays until somebody deletes it. Empty: none.
    persist: String = String::new(), "an absolute path, or empty", |path| is_file(path);
}

impl StoreConfig {
    /// As [`Self::load`], with the file that `MEMCACHE_CONFIG` names in `environment` where `file` is none.
    pub fn load_or_env_file(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let named = environment
            .iter()
            .find(|(variable, path)| variable == FILE_VARIABLE && !path.is_empty())
            .map(|(_, path)| PathBuf::from(path));
        let file = file.map(Path::to_owned).or(named);
        Self::load(file.as_deref(), environment, overrides)
    }

    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "the same shape for every component")]
    fn check_together(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}
