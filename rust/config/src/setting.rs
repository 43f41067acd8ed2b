//! The kinds of values a key may have.

use memcache_types::ByteCount;
use toml::Value;

use crate::endpoint::Endpoint;

/// A value that TOML, the environment and code can give.
pub(crate) trait Setting: Sized {
    /// From a value of a TOML file.
    fn from_value(value: &Value) -> Option<Self>;

    /// From text: an environment variable or a `key=value` override.
    fn from_text(text: &str) -> Option<Self>;

    /// As it would stand in a TOML file.
    fn to_value(&self) -> Value;
}

impl Setting for u64 {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_integer().and_then(|number| number.try_into().ok())
    }

    fn from_text(text: &str) -> Option<Self> {
        text.trim().replace('_', "").parse().ok()
    }

    fn to_value(&self) -> Value {
        Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
    }
}

impl Setting for u16 {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_integer().and_then(|number| number.try_into().ok())
    }

    fn from_text(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }

    fn to_value(&self) -> Value {
        Value::Integer(i64::from(*self))
    }
}

impl Setting for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => Some(*number),
            Value::Integer(0) => Some(0.0),
            Value::Integer(1) => Some(1.0),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }

    fn to_value(&self) -> Value {
        Value::Float(*self)
    }
}

impl Setting for bool {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }

    fn from_text(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        Value::Boolean(*self)
    }
}

impl Setting for String {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn to_value(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Setting for ByteCount {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(bytes) => u64::try_from(*bytes).ok().map(Self::new),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_value(&self) -> Value {
        match self.get() {
            0 => Value::Integer(0),
            _ => Value::String(self.to_string()),
        }
    }
}

impl Setting for Endpoint {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }

    fn from_text(text: &str) -> Option<Self> {
        text.trim().parse().ok()
    }

    fn to_value(&self) -> Value {
        Value::String(self.to_string())
    }
}

/// The empty text stands for "none".
impl Setting for Option<Endpoint> {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }

    fn from_text(text: &str) -> Option<Self> {
        match text.trim() {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        }
    }

    fn to_value(&self) -> Value {
        Value::String(self.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$item_doc])* $item),+
        }

        impl $name {
            /// The word for it in files and in code.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$item => $text),+
                }
            }
        }

        impl Setting for $name {
            fn from_value(value: &Value) -> Option<Self> {
                value.as_str().and_then(Self::from_text)
            }

            fn from_text(text: &str) -> Option<Self> {
                match text.trim() {
                    $($text => Some(Self::$item),)+
                    _ => None,
                }
            }

            fn to_value(&self) -> Value {
                Value::String(self.as_str().to_owned())
            }
        }
    };
}

choice! {
    /// Which objects are evicted first; see docs/eviction.md.
    EvictionPolicy {
        /// Those whose keeping serves least, or the least recently used ones, whichever serves more at present.
        Adaptive = "adaptive",
        /// The least recently used ones.
        Lru = "lru",
        /// Those that were not used while they stood in a short first queue, then those not used in a long one.
        S3Fifo = "s3fifo",
    }
}

choice! {
    /// How the bytes of a node are reached.
    Protocol {
        /// Shared memory on the same host, else RDMA where both sides have it, else TCP; chosen for each peer.
        Auto = "auto",
        /// Shared memory only: peers on other hosts are not reached.
        HostShm = "host_shm",
        /// RDMA only, also on the same host.
        HostRdma = "host_rdma",
        /// TCP only, also on the same host.
        HostTcp = "host_tcp",
    }
}

choice! {
    /// How large copies of a process are made.
    CopyKernel {
        /// In the way that suits the processor.
        Auto = "auto",
        /// 32-byte stores in one stream.
        Avx2Lines = "avx2-nt-lines",
        /// 32-byte stores over two runs at a time.
        Avx2Runs = "avx2-nt-2-runs",
        /// 64-byte stores over four runs at a time.
        Avx512Runs = "avx512-nt-4-runs",
    }
}

choice! {
    /// Which path objects take between the pool and an engine's memory.
    TransferPath {
        /// The one predicted to be fastest, for each object.
        Auto = "auto",
        /// Over the host and its staging.
        Host = "0",
        /// Relayed by the owner's device.
        Relay = "1",
        /// One contiguous transfer, then a local scatter.
        Staged = "2",
        /// Each piece straight to its place.
        Direct = "3",
    }
}

choice! {
    /// When payload checksums are made and verified.
    ChecksumPolicy {
        /// On every write and every read.
        Always = "always",
        /// Made on every write, verified on one read in `checksum_one_in`.
        Sampled = "sampled",
        /// Never: generation and length are still compared.
        Off = "off",
    }
}
