//! Where clients come in: TCP, a Unix socket, or one in the abstract namespace.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::TcpListener as StdTcpListener;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use memcache_config::Endpoint;
use memcache_mailbox::check_peer;
use memcache_proto::MESSAGE_BYTES_MAX;
use memcache_proto::lane::{PREFACE, mailbox_name};
use memcache_proto::pb::meta_server::MetaServer as MetaRpcs;
use memcache_types::Epoch;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::lane::{Connection, LaneCount, PATIENCE, serve_lane};
use super::service::{Book, Handler};
use super::{DRAIN, http};
use crate::error::MetaError;

/// Accepted connections that wait to be served.
const ACCEPTED_MAX: usize = 64;

/// Pause after a failed accept: the usual cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often an idle connection is probed, and how long the answer may take: a half-open link is noticed in the sum.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Bytes in flight towards the service, for one stream and for one connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A bound socket.
pub(super) struct Listener {
    address: Endpoint,
    socket: Socket,
    /// Where mailboxes are handed out beside a TCP address.
    doorman: Option<StdUnixListener>,
}

enum Socket {
    Tcp(StdTcpListener),
    Unix(StdUnixListener, Option<SocketFile>),
}

/// The name of a Unix socket in the file system; it goes when the service stops.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have taken it away already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(super) fn bind(address: &Endpoint) -> Result<Self, MetaError> {
        Self::try_bind(address).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => MetaError::AddressInUse { address: address.clone() },
            _ => MetaError::Listen { address: address.clone(), source },
        })
    }

    fn try_bind(address: &Endpoint) -> io::Result<Self> {
        match address {
            Endpoint::Tcp { host, port } => {
                let socket = StdTcpListener::bind((host.as_str(), *port))?;
                socket.set_nonblocking(true)?;
                let port = socket.local_addr()?.port();
                Ok(Self {
                    address: Endpoint::Tcp { host: host.clone(), port },
                    socket: Socket::Tcp(socket),
                    doorman: None,
                })
            }
            Endpoint::Unix(path) => {
                let socket = bind_path(path)?;
                socket.set_nonblocking(true)?;
                let file = Some(SocketFile(path.clone()));
                Ok(Self { address: address.clone(), socket: Socket::Unix(socket, file), doorman: None })
            }
            Endpoint::UnixAbstract(name) => {
                let socket = StdUnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?)?;
                socket.set_nonblocking(true)?;
                Ok(Self { address: address.clone(), socket: Socket::Unix(socket, None), doorman: None })
            }
        }
    }

    /// The same, and mailboxes are handed out there.
    #[must_use]
    pub(super) fn with_doorman(self, doorman: Option<StdUnixListener>) -> Self {
        Self { doorman, ..self }
    }

    pub(super) const fn address(&self) -> &Endpoint {
        &self.address
    }

    /// Serves until told to stop, then lets connections finish for a moment.
    pub(super) async fn serve(self, book: Arc<Book>, stopped: watch::Receiver<bool>) -> io::Result<()> {
        let lanes = LaneCount::new(book.mailboxes_max());
        let doorman = self.doorman.map(UnixListener::from_std).transpose()?;
        let doorman = doorman.map(|doorman| {
            tokio::spawn(hand_out_mailboxes(doorman, Arc::clone(&book), Arc::clone(&lanes), stopped.clone()))
        });
        let _doorman = doorman.map(AbortOnDrop);
        match self.socket {
            Socket::Tcp(socket) => {
                let listener = Arc::new(TcpListener::from_std(socket)?);
                let accept = move || {
                    let listener = Arc::clone(&listener);
                    async move {
                        let (stream, _) = listener.accept().await?;
                        stream.set_nodelay(true)?;
                        Ok(Some(stream))
                    }
                };
                serve_connections(accept, book, lanes, stopped).await
            }
            Socket::Unix(socket, file) => {
                let listener = Arc::new(UnixListener::from_std(socket)?);
                let accept = move || {
                    let listener = Arc::clone(&listener);
                    async move { Ok(Some(listener.accept().await?.0).filter(may_connect)) }
                };
                let served = serve_connections(accept, book, lanes, stopped).await;
                drop(file);
                served
            }
        }
    }
}

/// Binds the name where clients on this host ask for mailboxes. It is taken when another service has this epoch and port.
pub(super) fn bind_doorman(epoch: Epoch, port: u16) -> io::Result<StdUnixListener> {
    let name = UnixAddress::from_abstract_name(mailbox_name(epoch.get(), port))?;
    let socket = StdUnixListener::bind_addr(&name)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A task that ends with this.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves lanes of clients on this host.
async fn hand_out_mailboxes(
    listener: UnixListener,
    book: Arc<Book>,
    lanes: Arc<LaneCount>,
    stopped: watch::Receiver<bool>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if may_connect(&stream) => {
                let (book, lanes, stopped) = (Arc::clone(&book), Arc::clone(&lanes), stopped.clone());
                tokio::spawn(async move { serve_lane(stream, book, lanes, stopped).await });
            }
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "cannot accept a client that asks for a mailbox");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Binds a path. A socket file that nobody listens on any more is replaced.
fn bind_path(path: &Path) -> io::Result<StdUnixListener> {
    match StdUnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            let refused =
                || StdUnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
            if !is_socket || !refused() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            StdUnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Unix sockets serve the user who started the service, and root.
fn may_connect(stream: &UnixStream) -> bool {
    check_peer(stream).inspect_err(|why| warn!(%why, "refused a connection")).is_ok()
}

async fn serve_connections<S, F, A>(
    accept: F,
    book: Arc<Book>,
    lanes: Arc<LaneCount>,
    stopped: watch::Receiver<bool>,
) -> io::Result<()>
where
    S: Connection + Connected + FirstByte + Send + 'static,
    F: Fn() -> A + Send + 'static,
    A: Future<Output = io::Result<Option<S>>> + Send + 'static,
{
    let (sessions, incoming) = mpsc::channel(ACCEPTED_MAX);
    let router = Router { sessions, lanes: Arc::clone(&lanes), book: Arc::clone(&book), stopped: stopped.clone() };
    let vigil = tokio::spawn({
        let book = Arc::clone(&book);
        async move { lanes.vigil().keep(&book).await }
    });
    let accepting = tokio::spawn(accept_all(accept, router));
    let pages = http::routes(Arc::clone(&book), stopped.clone());
    let rpcs = MetaRpcs::new(Handler { book, stopped: stopped.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .accept_http1(true)
        .add_routes(Routes::from(pages).add_service(rpcs))
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), until_stopped(stopped.clone()));
    tokio::pin!(server);
    let ended_early = tokio::select! {
        outcome = &mut server => Some(outcome),
        () = until_stopped(stopped) => None,
    };
    accepting.abort();
    vigil.abort();
    let outcome = match ended_early {
        Some(outcome) => outcome,
        // Whoever has not finished by then is cut off.
        None => tokio::time::timeout(DRAIN, server).await.unwrap_or(Ok(())),
    };
    outcome.map_err(io::Error::other)
}

pub(super) async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    // An error means that nobody is left who could say stop.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Where a new connection goes once it has said its first byte.
struct Router<S> {
    sessions: mpsc::Sender<io::Result<S>>,
    lanes: Arc<LaneCount>,
    book: Arc<Book>,
    stopped: watch::Receiver<bool>,
}

impl<S> Clone for Router<S> {
    fn clone(&self) -> Self {
        let Self { sessions, lanes, book, stopped } = self;
        let (lanes, book) = (Arc::clone(lanes), Arc::clone(book));
        Self { sessions: sessions.clone(), lanes, book, stopped: stopped.clone() }
    }
}

impl<S: Connection + FirstByte> Router<S> {
    async fn take(self, stream: S) {
        let first = tokio::select! {
            first = tokio::time::timeout(PATIENCE, stream.first_byte()) => first,
            () = until_stopped(self.stopped.clone()) => return,
        };
        match first {
            Ok(Ok(Some(first))) if first == PREFACE[0] => {
                drop(self.sessions);
                serve_lane(stream, self.book, self.lanes, self.stopped).await;
            }
            // An error means that the service is stopping.
            Ok(Ok(Some(_))) => drop(self.sessions.send(Ok(stream)).await),
            Ok(Ok(None)) | Err(_) => debug!("a connection said nothing"),
            Ok(Err(error)) => debug!(%error, "a connection broke before it said anything"),
        }
    }
}

/// A look at the first byte a peer sends that leaves it there.
trait FirstByte {
    fn first_byte(&self) -> impl Future<Output = io::Result<Option<u8>>> + Send;
}

fn peek(socket: impl AsFd) -> io::Result<Option<u8>> {
    let mut first = [0];
    let (arrived, _) = rustix::net::recv(socket, &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok((arrived > 0).then_some(first[0]))
}

impl FirstByte for TcpStream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        self.async_io(Interest::READABLE, || peek(self)).await
    }
}

impl FirstByte for UnixStream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        self.async_io(Interest::READABLE, || peek(self)).await
    }
}

async fn accept_all<S, F, A>(accept: F, router: Router<S>)
where
    S: Connection + FirstByte + Send + 'static,
    F: Fn() -> A,
    A: Future<Output = io::Result<Option<S>>>,
{
    loop {
        match accept().await {
            Ok(Some(stream)) => drop(tokio::spawn(router.clone().take(stream))),
            Ok(None) => {}
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
