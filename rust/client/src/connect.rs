//! One gRPC channel to a `MetaService`, over TCP or a Unix socket.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use memcache_config::Endpoint;
use memcache_proto::MESSAGE_BYTES_MAX;
use memcache_proto::pb::meta_client::MetaClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint as TonicEndpoint, Error, Uri};
use tower::service_fn;

/// Longest wait for one connection attempt.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often an idle connection is probed, and how long the answer may take: a half-open link is noticed in the sum.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

pub(crate) async fn connect(endpoint: &Endpoint) -> Result<MetaClient<Channel>, Error> {
    let channel = match endpoint {
        Endpoint::Tcp { host, port } => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            configured(TonicEndpoint::from_shared(format!("http://{host}:{port}"))?).connect().await?
        }
        Endpoint::Unix(path) => {
            let path = path.clone();
            local()
                .connect_with_connector(service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                }))
                .await?
        }
        Endpoint::UnixAbstract(name) => {
            let name = name.clone();
            local()
                .connect_with_connector(service_fn(move |_: Uri| {
                    let stream = connect_abstract(&name);
                    async move { stream.map(TokioIo::new) }
                }))
                .await?
        }
    };
    Ok(MetaClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// The URI of a local connection is never looked at, but one must be given.
fn local() -> TonicEndpoint {
    configured(TonicEndpoint::from_static("http://localhost"))
}

fn configured(endpoint: TonicEndpoint) -> TonicEndpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}

/// A connection to a name in the abstract namespace.
pub(crate) fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    let stream = StdUnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
