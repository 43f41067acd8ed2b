//! From settings as people write them to options as the code wants them.

use std::net::{ToSocketAddrs, UdpSocket};
use std::thread::available_parallelism;

use memcache_config::{ChecksumPolicy, Endpoint, LocalConfig, Protocol, StoreConfig};
use memcache_memory::Kernel;
use memcache_transport::ProtocolChoice;

use crate::local_service::LocalOptions;
use crate::path::StagingOptions;
use crate::path::costs::CostSource;
use crate::store::StoreOptions;
use crate::sums::Checksums;

/// Most threads one call copies with unless told otherwise: memory is saturated before.
const TRANSFER_THREADS_DEFAULT_MAX: usize = 4;

const LOOPBACK: &str = "127.0.0.1";

impl StoreOptions {
    /// The defaults of a store whose `MetaService` is at `endpoint`; it lends nothing.
    pub fn new(endpoint: Endpoint) -> Self {
        Self::from_config(&StoreConfig::default(), endpoint)
    }

    /// Options for a store whose `MetaService` is at `endpoint`.
    pub fn from_config(config: &StoreConfig, endpoint: Endpoint) -> Self {
        let bytes = config.lend_bytes.get();
        let lend = (bytes > 0).then(|| LocalOptions {
            bytes,
            name: node_name(&config.node_name),
            protocol: choice(config.protocol),
            data_host: data_host(&config.data_host, &endpoint),
            data_port: 0,
            rdma_device: config.rdma_device.clone(),
            huge_pages: config.huge_pages,
            prefault: true,
            numa_node: None,
            records: u32::try_from(config.holdings_slots).unwrap_or(u32::MAX),
            persist: (!config.persist.is_empty()).then(|| config.persist.clone().into()),
            repair_bytes_per_s: config.repair_bytes_per_s.get(),
            relay: None,
        });
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let transfer_threads = match usize::try_from(config.transfer_threads) {
            Ok(threads) if threads > 0 => threads,
            _ => cores.min(TRANSFER_THREADS_DEFAULT_MAX),
        };
        let checksums = match config.checksum {
            ChecksumPolicy::Always => Checksums::Always,
            ChecksumPolicy::Sampled => {
                Checksums::Sampled { one_in: u32::try_from(config.checksum_one_in).unwrap_or(u32::MAX) }
            }
            ChecksumPolicy::Off => Checksums::Off,
        };
        let path = config.path.as_str().parse().unwrap_or_default();
        let costs = match config.costs.as_str() {
            "" => CostSource::Measured,
            file => CostSource::File(file.into()),
        };
        let replicas = usize::try_from(config.replica_num).unwrap_or(usize::MAX);
        let (protocol, rdma_device) = (choice(config.protocol), config.rdma_device.clone());
        let staging = StagingOptions::default();
        let kernel = Kernel::ALL.into_iter().find(|kernel| kernel.name() == config.copy_kernel.as_str());
        Self {
            endpoint,
            lend,
            protocol,
            rdma_device,
            checksums,
            replicas,
            transfer_threads,
            gives_way: config.transfer_threads == 0,
            kernel,
            path,
            costs,
            staging,
        }
    }
}

impl LocalOptions {
    /// The defaults of a standalone `LocalService` that lends `bytes`, for a pool of this host.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, ..Self::from_config(&LocalConfig::default()) }
    }

    /// Options of a standalone `LocalService`.
    pub fn from_config(config: &LocalConfig) -> Self {
        Self {
            bytes: config.lend_bytes.get(),
            name: node_name(&config.node_name),
            protocol: choice(config.protocol),
            data_host: data_host(&config.data_host, &config.meta_address),
            data_port: config.data_port,
            rdma_device: config.rdma_device.clone(),
            huge_pages: config.huge_pages,
            prefault: config.prefault,
            numa_node: config.numa_node.parse().ok(),
            records: u32::try_from(config.holdings_slots).unwrap_or(u32::MAX),
            persist: (!config.persist.is_empty()).then(|| config.persist.clone().into()),
            repair_bytes_per_s: config.repair_bytes_per_s.get(),
            relay: None,
        }
    }
}

fn choice(protocol: Protocol) -> ProtocolChoice {
    match protocol {
        Protocol::Auto => ProtocolChoice::Auto,
        Protocol::HostShm => ProtocolChoice::HostShm,
        Protocol::HostRdma => ProtocolChoice::HostRdma,
        Protocol::HostTcp => ProtocolChoice::HostTcp,
    }
}

fn node_name(configured: &str) -> String {
    if !configured.is_empty() {
        return configured.to_owned();
    }
    let uname = rustix::system::uname();
    format!("{}:{}", uname.nodename().to_string_lossy(), std::process::id())
}

/// The address peers are told: as configured, or loopback where the `MetaService` is on this host, or the one this
/// host would use to reach it.
fn data_host(configured: &str, endpoint: &Endpoint) -> String {
    match endpoint {
        _ if !configured.is_empty() => configured.to_owned(),
        Endpoint::Tcp { host, port } if !endpoint.is_local() => {
            route_towards(host, *port).unwrap_or_else(|| LOOPBACK.to_owned())
        }
        _ => LOOPBACK.to_owned(),
    }
}

/// Our own address on the way to `host`. Connecting a datagram socket picks the route and sends nothing.
fn route_towards(host: &str, port: u16) -> Option<String> {
    (host, port).to_socket_addrs().ok()?.find_map(|remote| {
        let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(remote).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    })
}

#[cfg(test)]
mod tests {
    use memcache_config::CopyKernel;

    use super::*;

    #[test]
    fn peers_are_told_an_address_they_can_use() {
        let near: Endpoint = "127.0.0.1:7411".parse().unwrap();
        let far: Endpoint = "203.0.113.7:7411".parse().unwrap();
        assert_eq!(data_host("", &near), LOOPBACK);
        assert_eq!(data_host("node7", &far), "node7");
        assert_eq!(data_host("", &"unix-abstract:x".parse().unwrap()), LOOPBACK);
    }

    #[test]
    fn every_kernel_has_its_word_in_the_settings() {
        let words = [CopyKernel::Auto, CopyKernel::Avx2Lines, CopyKernel::Avx2Runs, CopyKernel::Avx512Runs];
        let kernels = words.map(|copy_kernel| {
            let config = StoreConfig { copy_kernel, ..StoreConfig::default() };
            StoreOptions::from_config(&config, "127.0.0.1:7411".parse().unwrap()).kernel
        });
        assert_eq!(kernels.into_iter().flatten().collect::<Vec<_>>(), Kernel::ALL);
        assert_eq!(kernels[0], None);
    }

    #[test]
    fn a_store_lends_only_what_it_is_told_to() {
        let endpoint: Endpoint = "127.0.0.1:7411".parse().unwrap();
        let config = StoreConfig::default();
        let options = StoreOptions::from_config(&config, endpoint);
        assert!(options.lend.is_none());
        assert!(options.transfer_threads >= 1);
        assert!(options.gives_way);
        assert_eq!(options.checksums, Checksums::Always);
        let config =
            StoreConfig { checksum: ChecksumPolicy::Sampled, checksum_one_in: 7, transfer_threads: 3, ..config };
        let options = StoreOptions::from_config(&config, options.endpoint);
        assert_eq!(options.checksums, Checksums::Sampled { one_in: 7 });
        assert_eq!((options.transfer_threads, options.gives_way), (3, false));
    }
}
