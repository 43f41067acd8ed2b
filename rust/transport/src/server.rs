//! Serving a segment to other processes.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use memcache_memory::Segment;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::descriptor::RegionDescriptor;
use crate::error::TransportError;
use crate::host::HostId;
use crate::protocol::{Protocol, ProtocolChoice};
use crate::relay::RelayHost;
use crate::road::{Door, Road};
use crate::shm::server::ShmServer;
use crate::tcp::server::{CONNECTIONS_MAX, TcpServer};

/// Longest host name to serve on, in bytes.
const HOST_BYTES_MAX: usize = 253;

/// How a segment is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Which doors to open. With [`ProtocolChoice::Auto`], shared memory that the system does not allow is a
    /// warning and missing RDMA a note; asked for by name either is an error.
    pub protocols: ProtocolChoice,
    /// Address or name to serve TCP on, also the one peers are told. For an unspecified address (`0.0.0.0`,
    /// `::`) peers are told the address this host would use towards others.
    pub data_host: String,
    /// Port to serve TCP on; 0 takes any.
    pub data_port: u16,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { protocols: ProtocolChoice::Auto, data_host: "127.0.0.1".to_owned(), data_port: 0 }
    }
}

/// The open doors of one segment. Closes them when dropped.
#[derive(Debug)]
pub struct RegionServer {
    descriptor: RegionDescriptor,
    segment: Arc<Segment>,
    shm: Option<ShmServer>,
    tcp: Option<TcpServer>,
    rdma: Option<Box<dyn Door>>,
    /// The process the threads belong to.
    pid: u32,
}

impl RegionServer {
    /// Opens the doors and starts their threads.
    ///
    /// # Errors
    /// [`TransportError::AddressInUse`] if the port is taken; [`TransportError::Unavailable`] if a door asked for
    /// by name cannot be opened; [`TransportError::Io`] if the system is out of something.
    pub fn start(segment: Arc<Segment>, options: &ServerOptions) -> Result<Self, TransportError> {
        Self::start_with(segment, options, None)
    }

    /// As [`start`](Self::start), with RDMA if `rdma` can give it.
    ///
    /// # Errors
    /// As there. With [`ProtocolChoice::Auto`], RDMA that this machine does not have is no error.
    pub fn start_with(
        segment: Arc<Segment>,
        options: &ServerOptions,
        rdma: Option<&dyn Road>,
    ) -> Result<Self, TransportError> {
        Self::start_relaying(segment, options, rdma, None)
    }

    /// As [`start_with`](Self::start_with), relaying through a device of this name if there is one.
    ///
    /// # Errors
    /// As there, and [`TransportError::InvalidOp`] for a relay without TCP, over which it is asked.
    pub fn start_relaying(
        segment: Arc<Segment>,
        options: &ServerOptions,
        rdma: Option<&dyn Road>,
        relay: Option<(&str, Arc<dyn RelayHost>)>,
    ) -> Result<Self, TransportError> {
        if relay.is_some() && !options.protocols.allows_tcp() {
            let why = format!("a relay is asked over host_tcp, which protocol {} leaves out", options.protocols);
            return Err(TransportError::invalid(why));
        }
        let token = random()?;
        let mut server = Self {
            descriptor: RegionDescriptor {
                region_bytes: segment.bytes(),
                token,
                host: HostId::current(),
                pid: std::process::id(),
                shm: None,
                tcp: None,
                rdma: None,
                relay: relay.as_ref().map(|(device, _)| (*device).to_owned()),
            },
            segment,
            shm: None,
            tcp: None,
            rdma: None,
            pid: std::process::id(),
        };
        if options.protocols.allows_tcp() {
            let (listener, address) = listen(&options.data_host, options.data_port)?;
            server.tcp = Some(TcpServer::start(
                listener,
                Arc::clone(&server.segment),
                token,
                CONNECTIONS_MAX,
                relay.map(|(_, host)| host),
            )?);
            server.descriptor.tcp = Some(address);
        }
        if options.protocols.allows_rdma() {
            server.open_rdma(options, rdma)?;
        }
        if options.protocols.allows_shm() {
            // The name shows in /proc/net/unix, so it says nothing about the token.
            let name = format!("memcache-{:032x}", random()?);
            match ShmServer::start(&name, Arc::clone(&server.segment), token) {
                Ok(shm) => {
                    server.shm = Some(shm);
                    server.descriptor.shm = Some(name);
                }
                Err(error) if options.protocols == ProtocolChoice::Auto => {
                    tracing::warn!(%error, "this segment cannot be shared with processes of this host, only over TCP");
                }
                Err(error) => {
                    return Err(TransportError::Unavailable { protocol: Protocol::HostShm, why: error.to_string() });
                }
            }
        }
        Ok(server)
    }

    fn open_rdma(&mut self, options: &ServerOptions, road: Option<&dyn Road>) -> Result<(), TransportError> {
        let is_asked_for = options.protocols == ProtocolChoice::HostRdma;
        let Some(road) = road else {
            let why = "this process was built without RDMA".to_owned();
            return if is_asked_for {
                Err(TransportError::Unavailable { protocol: Protocol::HostRdma, why })
            } else {
                Ok(())
            };
        };
        // The port that was asked for belongs to the TCP data server where there is one.
        let port = if is_asked_for { options.data_port } else { 0 };
        let (listener, address) = listen(&options.data_host, port)?;
        match road.serve(Arc::clone(&self.segment), self.descriptor.token, listener) {
            Ok(door) => {
                self.rdma = Some(door);
                self.descriptor.rdma = Some(address);
            }
            Err(error) if is_asked_for => return Err(error),
            Err(error) => tracing::info!(%error, "this segment is not served over RDMA"),
        }
        Ok(())
    }

    /// What peers need to reach the segment.
    pub fn descriptor(&self) -> &RegionDescriptor {
        &self.descriptor
    }

    /// The segment served.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Hangs up on all peers and ends the threads, within two seconds. Peers that have mapped the segment keep
    /// what they mapped. In a process forked from the one that started the server it does nothing.
    pub fn stop(&mut self) {
        let is_ours = std::process::id() == self.pid;
        if let Some(mut shm) = self.shm.take() {
            if is_ours { shm.stop() } else { shm.abandon() }
        }
        if let Some(mut rdma) = self.rdma.take() {
            if is_ours { rdma.stop() } else { rdma.abandon() }
        }
        if let Some(mut tcp) = self.tcp.take() {
            if is_ours { tcp.stop() } else { tcp.abandon() }
        }
    }
}

impl Drop for RegionServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn random() -> Result<u128, TransportError> {
    let mut bytes = [0; 16];
    let filled = getrandom(&mut bytes[..], GetRandomFlags::empty());
    if filled == Ok(bytes.len()) {
        return Ok(u128::from_le_bytes(bytes));
    }
    // Not a call that fails on any system this runs on; but a guessable token must never come out of it.
    let random = fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    random.map_err(|error| TransportError::from_io("getrandom", &error))?;
    Ok(u128::from_le_bytes(bytes))
}

/// A listener, and the address peers are told.
fn listen(host: &str, port: u16) -> Result<(TcpListener, String), TransportError> {
    if host.is_empty() || host.len() > HOST_BYTES_MAX || host.chars().any(char::is_control) {
        return Err(TransportError::invalid(format!("{host:?} is no host to serve on")));
    }
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let listener = TcpListener::bind((plain, port)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => TransportError::AddressInUse { address: join(plain, port) },
        kind => TransportError::Io {
            operation: "bind",
            kind,
            message: format!("cannot serve on {}: {error}", join(plain, port)),
        },
    })?;
    let bound = listener.local_addr().map_err(|error| TransportError::from_io("getsockname", &error))?;
    let told = if bound.ip().is_unspecified() { outward(bound).to_string() } else { plain.to_owned() };
    Ok((listener, join(&told, bound.port())))
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The address this host uses towards others. Asks the routing table; nothing is sent.
fn outward(bound: SocketAddr) -> IpAddr {
    let (own, other) = if bound.is_ipv4() { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
    let asked = UdpSocket::bind(own).and_then(|socket| socket.connect(other).and_then(|()| socket.local_addr()));
    let loopback =
        if bound.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]) };
    asked.map_or(loopback, |address| address.ip())
}
