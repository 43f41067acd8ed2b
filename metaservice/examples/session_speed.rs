//! How fast a kept session answers `exist`, over TCP and over a Unix socket: service and client on one thread each.
//!
//! `cargo run --release -p memcache-meta --example session_speed`

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a command whose purpose is to print rates")]

use std::error::Error;
use std::time::Instant;

use hyper_util::rt::TokioIo;
use memcache_config::{Endpoint, MetaConfig};
use memcache_meta::MetaServer;
use memcache_proto::pb::meta_client::MetaClient;
use memcache_proto::{pack, pb};
use memcache_types::KeyBatch;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint as TonicEndpoint, Uri};
use tower::service_fn;

const CALLS: usize = 20_000;
const KEY_BYTES: usize = 48;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    println!("{:>6} {:>8} {:>10} {:>10} {:>10} {:>14}", "socket", "keys", "in flight", "p50 us", "p99 us", "k keys/s");
    let unix = format!("unix:{}/memcache-session-speed-{}.sock", std::env::temp_dir().display(), std::process::id());
    for (name, listen) in [("tcp", "127.0.0.1:0"), ("unix", &unix)] {
        let settings = [("listen".to_owned(), listen.to_owned())];
        let server = MetaServer::start(&MetaConfig::load(None, [], &settings)?)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for (keys, in_flight) in [(1, 1), (64, 1), (512, 1), (1, 32), (64, 32), (512, 32)] {
            let row = runtime.block_on(measure(server.address(), keys, in_flight))?;
            println!(
                "{name:>6} {keys:>8} {in_flight:>10} {:>10.1} {:>10.1} {:>14.0}",
                row.p50_us,
                row.p99_us,
                row.keys_per_s / 1e3
            );
        }
    }
    Ok(())
}

struct Row {
    p50_us: f64,
    p99_us: f64,
    keys_per_s: f64,
}

async fn connect(endpoint: &Endpoint) -> Result<Channel, Failure> {
    let Endpoint::Unix(path) = endpoint.clone() else {
        return Ok(TonicEndpoint::from_shared(format!("http://{endpoint}"))?.tcp_nodelay(true).connect().await?);
    };
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Ok(TonicEndpoint::from_static("http://localhost").connect_with_connector(connector).await?)
}

async fn measure(endpoint: &Endpoint, keys: usize, in_flight: usize) -> Result<Row, Failure> {
    let (requests, outgoing) = mpsc::channel(in_flight);
    let mut rpcs = MetaClient::new(connect(endpoint).await?);
    let mut replies: Streaming<pb::Reply> = rpcs.session(ReceiverStream::new(outgoing)).await?.into_inner();
    let names = KeyBatch::from_keys((0..keys).map(|number| {
        let mut key = [7u8; KEY_BYTES];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }))?;
    let mut sent = std::collections::VecDeque::with_capacity(in_flight);
    let mut waits = Vec::with_capacity(CALLS);
    let started = Instant::now();
    for call in 0..CALLS + in_flight {
        if call >= in_flight {
            replies.message().await?.ok_or("the service ended the session")?;
            let asked: Instant = sent.pop_front().ok_or("a reply that nobody asked for")?;
            waits.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        if call < CALLS {
            let body = pb::request::Body::Exist(pb::Exist { keys: Some(pack::keys_to_wire(&names)) });
            sent.push_back(Instant::now());
            requests.send(pb::Request { request_id: call as u64, client: 1, body: Some(body) }).await?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    waits.sort_by(f64::total_cmp);
    let at = |part: usize| waits[waits.len() * part / 100];
    Ok(Row { p50_us: at(50), p99_us: at(99), keys_per_s: (CALLS * keys) as f64 / seconds })
}
