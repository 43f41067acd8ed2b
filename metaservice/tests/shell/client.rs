//! A client as small as a test needs it.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_proto::pb::meta_client::MetaClient;
use memcache_proto::pb::{self, reply, request};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint as TonicEndpoint, Error, Uri};
use tower::service_fn;

/// Nothing in these tests takes as long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn server(settings: &[(&str, &str)]) -> MetaServer {
    MetaServer::start(&config(settings)).unwrap()
}

pub(crate) fn config(settings: &[(&str, &str)]) -> MetaConfig {
    let mut overrides = vec![("listen".to_owned(), "127.0.0.1:0".to_owned())];
    overrides.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    MetaConfig::load(None, [], &overrides).unwrap()
}

async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    let local = TonicEndpoint::from_static("http://localhost");
    match endpoint.clone() {
        Endpoint::Tcp { host, port } => {
            TonicEndpoint::from_shared(format!("http://{host}:{port}"))?.tcp_nodelay(true).connect().await
        }
        Endpoint::Unix(path) => {
            local
                .connect_with_connector(service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                }))
                .await
        }
        Endpoint::UnixAbstract(name) => {
            local
                .connect_with_connector(service_fn(move |_: Uri| {
                    let stream = StdUnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap());
                    async move {
                        let stream = stream?;
                        stream.set_nonblocking(true)?;
                        UnixStream::from_std(stream).map(TokioIo::new)
                    }
                }))
                .await
        }
    }
}

/// A blocking client with one open session.
pub(crate) struct Client {
    runtime: Runtime,
    rpcs: MetaClient<Channel>,
    requests: mpsc::Sender<pb::Request>,
    replies: Streaming<pb::Reply>,
    next: u64,
    id: u64,
}

impl Client {
    pub(crate) fn connect(endpoint: &Endpoint, id: u64) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (requests, outgoing) = mpsc::channel(1024);
        let (rpcs, replies) = runtime.block_on(async {
            let mut rpcs = MetaClient::new(connect(endpoint).await.unwrap());
            let replies = rpcs.session(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
            (rpcs, replies)
        });
        Self { runtime, rpcs, requests, replies, next: 1, id }
    }

    pub(crate) fn send(&mut self, body: Option<request::Body>) -> u64 {
        let request_id = self.next;
        self.next += 1;
        let request = pb::Request { request_id, client: self.id, body };
        self.requests.try_send(request).unwrap();
        request_id
    }

    /// The next reply of the session; `None` when the service has ended it.
    pub(crate) fn receive(&mut self) -> Option<pb::Reply> {
        let replies = &mut self.replies;
        self.runtime
            .block_on(async { tokio::time::timeout(DEADLINE, replies.message()).await.expect("a reply in time") })
            .unwrap_or(None)
    }

    pub(crate) fn ask(&mut self, body: request::Body) -> reply::Body {
        let id = self.send(Some(body));
        let reply = self.receive().expect("an open session");
        assert_eq!(reply.request_id, id);
        reply.body.expect("a body")
    }

    /// The other rpc: one exchange.
    pub(crate) fn call(&mut self, body: request::Body) -> reply::Body {
        let request = pb::Request { request_id: 7, client: self.id, body: Some(body) };
        let rpcs = &mut self.rpcs;
        let reply = self
            .runtime
            .block_on(async { tokio::time::timeout(DEADLINE, rpcs.call(request)).await.expect("a reply in time") })
            .unwrap()
            .into_inner();
        assert_eq!(reply.request_id, 7);
        reply.body.expect("a body")
    }
}

pub(crate) fn keys(keys: &[&str]) -> Option<pb::Keys> {
    Some(pb::Keys {
        data: keys.concat().into_bytes(),
        lengths: keys.iter().map(|key| u32::try_from(key.len()).unwrap()).collect(),
    })
}

pub(crate) fn join(node: u64, incarnation: u64) -> request::Body {
    let segments =
        vec![pb::JoinSegment { bytes: 1 << 20, tier: 2, descriptor: b"here".to_vec(), ..Default::default() }];
    request::Body::Join(pb::Join { node, incarnation, name: "n".to_owned(), segments, ..Default::default() })
}

pub(crate) fn reserve(names: &[&str], payload_bytes: u64) -> request::Body {
    request::Body::Reserve(pb::Reserve {
        keys: keys(names),
        payload_bytes: vec![payload_bytes],
        near: 0,
        exclusive: false,
        ..pb::Reserve::default()
    })
}

/// Puts keys all the way.
pub(crate) fn put(client: &mut Client, names: &[&str], payload_bytes: u64) -> pb::ReserveReply {
    let reply::Body::Reserve(reserved) = client.ask(reserve(names, payload_bytes)) else { panic!("not a reserve") };
    let seal = pb::Seal { reservations: reserved.reservations.clone() };
    let reply::Body::Seal(sealed) = client.ask(request::Body::Seal(seal)) else { panic!("not a seal") };
    assert_eq!(sealed.outcomes, vec![1; names.len()]);
    reserved
}

pub(crate) fn exist(client: &mut Client, names: &[&str]) -> Vec<u8> {
    match client.ask(request::Body::Exist(pb::Exist { keys: keys(names) })) {
        reply::Body::Exist(found) => found.outcomes,
        other => panic!("{other:?}"),
    }
}
