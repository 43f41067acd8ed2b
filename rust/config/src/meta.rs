//! Settings of the `MetaService`.

use memcache_types::ByteCount;

use crate::component::component;
use crate::endpoint::Endpoint;
use crate::error::ConfigError;
use crate::setting::EvictionPolicy;

component! {
    /// Settings of the `MetaService`: `conf/meta.toml`, `MEMCACHE_META_<KEY>`.
    MetaConfig, "meta", "MEMCACHE_META_", "Settings of the MetaService (memcache-meta).";
    /// Address to listen on. Port 0 takes any free port. Unix sockets serve the same user and root only.
    listen: Endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 7411 },
        "\"host:port\", \"[v6]:port\", \"unix:/path\" or \"unix-abstract:name\"", |_| true;
    /// How long a writer has between reserving space and sealing it, in milliseconds.
    reservation_ttl_ms: u64 = 20_000, "100 to 3600000", |ms| (100..=3_600_000).contains(ms);
    /// How long located objects stay in place for their reader, in milliseconds.
    lease_ms: u64 = 10_000, "10 to 600000", |ms| (10..=600_000).contains(ms);
    /// How often a node is asked to tell that it lives, in milliseconds.
    heartbeat_ms: u64 = 1_000, "10 to 60000", |ms| (10..=60_000).contains(ms);
    /// Silence after which a node counts as dead and its objects as gone, in milliseconds. At least twice heartbeat_ms.
    node_dead_ms: u64 = 5_000, "20 to 600000", |ms| (20..=600_000).contains(ms);
    /// Part of a node's memory in use at which eviction starts.
    eviction_high_watermark: f64 = 0.95, "a number above 0, up to 1", |part| *part > 0.0 && *part <= 1.0;
    /// Part of a node's memory in use at which eviction stops. Below eviction_high_watermark.
    eviction_low_watermark: f64 = 0.90, "a number from 0, below 1", |part| *part >= 0.0 && *part < 1.0;
    /// Part of a node's memory that hard pins may hold. 0: there are none.
    hard_pin_quota: f64 = 0.25, "a number from 0, up to 1", |part| *part >= 0.0 && *part <= 1.0;
    /// Bytes of free memory of the whole pool that extra replicas of objects read from afar may hold. 0: there are none.
    hot_replica_bytes: ByteCount = ByteCount::new(0), "0 or a size such as \"512MB\"", |_| true;
    /// Which objects are evicted first; see docs/eviction.md.
    eviction_policy: EvictionPolicy = EvictionPolicy::Adaptive, "adaptive, lru or s3fifo", |_| true;
    /// Most mailboxes: lanes of clients on this host that go through shared memory, 132 KiB each. 0: there are none.
    mailboxes_max: u64 = 1_024, "0 to 65536", |count| *count <= 65_536;
    /// What is logged to stderr: a level or a filter such as "info,memcache_meta=debug".
    log: String = "info".to_owned(), "off, error, warn, info, debug, trace, or a filter of them", |_| true;
    /// How lines of the log look: for people, or one JSON object a line for collectors.
    log_format: String = "text".to_owned(), "text or json", |format| format == "text" || format == "json";
}

impl MetaConfig {
    fn check_together(&self) -> Result<(), ConfigError> {
        if self.eviction_low_watermark >= self.eviction_high_watermark {
            return Err(ConfigError::Conflict {
                message: format!(
                    "eviction_low_watermark = {} must be below eviction_high_watermark = {}",
                    self.eviction_low_watermark, self.eviction_high_watermark
                ),
            });
        }
        if self.node_dead_ms < self.heartbeat_ms.saturating_mul(2) {
            return Err(ConfigError::Conflict {
                message: format!(
                    "node_dead_ms = {} must be at least twice heartbeat_ms = {}",
                    self.node_dead_ms, self.heartbeat_ms
                ),
            });
        }
        Ok(())
    }
}
