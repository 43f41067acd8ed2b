//! Where a service listens and is found.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

const UNIX: &str = "unix:";
const UNIX_ABSTRACT: &str = "unix-abstract:";

/// Longest path or abstract name of a Unix socket in bytes (one less than the kernel's field, for the final zero).
const UNIX_NAME_BYTES_MAX: usize = 107;

/// An address of a `MetaService`: `host:port`, `[v6]:port`, `unix:/path` or `unix-abstract:name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A TCP address. Port 0 asks a listener for any free port.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port number.
        port: u16,
    },
    /// A Unix socket with a path in the file system.
    Unix(PathBuf),
    /// A Unix socket in the abstract namespace: it vanishes with its listener.
    UnixAbstract(String),
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{text:?} is not an address ({why}); want \"host:port\", \"[v6]:port\", \"unix:/path\" or \"unix-abstract:name\""
)]
pub struct EndpointError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Endpoint {
    /// Whether only processes of this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            Self::Unix(_) | Self::UnixAbstract(_) => true,
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| EndpointError { text: text.to_owned(), why };
        if let Some(path) = text.strip_prefix(UNIX) {
            check_name(path).map_err(bad)?;
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Some(name) = text.strip_prefix(UNIX_ABSTRACT) {
            check_name(name).map_err(bad)?;
            return Ok(Self::UnixAbstract(name.to_owned()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("it has no port"))?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(|| bad("the bracket is not closed"))?,
            None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
            None => host,
        };
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        if host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(bad("the host has characters that no host name has"));
        }
        let port = port.parse().map_err(|_| bad("the port is not a number from 0 to 65535"))?;
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name.len() {
        0 => Err("the name is empty"),
        1..=UNIX_NAME_BYTES_MAX if name.contains('\0') => Err("the name holds a zero byte"),
        1..=UNIX_NAME_BYTES_MAX => Ok(()),
        _ => Err("the name is over 107 bytes"),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            Self::UnixAbstract(name) => write!(f, "{UNIX_ABSTRACT}{name}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_reads() {
        for text in ["127.0.0.1:7411", "book.example:0", "[::1]:80", "unix:/run/m.sock", "unix-abstract:memcache-7"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("[::1]:80".parse(), Ok(Endpoint::Tcp { host: "::1".to_owned(), port: 80 }));
    }

    #[test]
    fn names_what_it_cannot_read() {
        let long = format!("unix:/{}", "x".repeat(107));
        for text in
            ["", "host", ":80", "host:", "host:99999", "::1:80", "[::1:80", "unix:", "unix-abstract:", "a b:1", &long]
        {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.to_string().contains("host:port"), "{error}");
        }
    }

    #[test]
    fn knows_what_stays_on_this_machine() {
        for (text, local) in
            [("127.0.0.1:1", true), ("localhost:1", true), ("[::1]:1", true), ("10.0.0.1:1", false), ("unix:/a", true)]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().is_local(), local, "{text}");
        }
    }
}
