//! Bulk over a bad line: two ends of a link's transport with a [`Proxy`] between them, and as many bytes as pass.
//!
//! Used by the tests of the mapping of channels to streams, and by the measurements behind the choice
//! of the congestion controller (`cargo run --release -p seaway-tests --example lines`).

use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::{Connection, Endpoint, TransportConfig, congestion::ControllerFactory};
use seaway_federation_proto::{
    ids::NodeName,
    session::{Channel, Lane, Transmit},
};
use seaway_relay::{
    ca::{AUTHORITY_LIFETIME, Authority, CERTIFICATE_LIFETIME, Holder, Request},
    node::LinkTls,
    transport::{
        channels::{Readers, Received, Writers},
        endpoint::{self, Timing},
        identity::Identity,
        tls::Credentials,
    },
};

use crate::proxy::{Conditions, Counts, Proxy};

const FEDERATION: &str = "lines";
const PIECE_BYTES: usize = 64 * 1024;

/// How the bytes are laid on streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// As links do it: short numbered streams.
    Channels,
    /// One stream for everything with a receive window of so many bytes: what links do not do.
    OneStream {
        /// The stream's and the connection's window.
        window_bytes: u32,
    },
}

/// What to try.
pub struct Trial {
    /// The line from sender to receiver; acknowledgements come back over the same without loss or rate limit.
    pub line: Conditions,
    /// The proxy's seed.
    pub seed: u64,
    /// See there.
    pub mapping: Mapping,
    /// `None`: what links use.
    pub congestion: Option<Arc<dyn ControllerFactory + Send + Sync>>,
    /// How long to send.
    pub duration: Duration,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("line", &self.line).field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Bytes that the receiver got, in order.
    pub bytes: u64,
    /// Time taken.
    pub elapsed: Duration,
    /// Why the connection ended before its time, as the receiver or the sender says.
    pub broken: Option<String>,
    /// What became of the packets towards the receiver.
    pub packets: Counts,
    /// Packets that the sender thinks lost, and all it sent.
    pub lost_of_sent: (u64, u64),
    /// The sender's view of the path in the end.
    pub path: String,
}

impl Outcome {
    /// Received bits per second, in millions.
    pub fn megabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.elapsed.as_secs_f64().max(0.001)
    }
}

/// Errors of setting up, all fatal to a test.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn credentials(dir: &Path, authority: &Authority, name: &str) -> Result<Credentials, AnyError> {
    let node: NodeName = name.parse()?;
    let holder = Holder::Member(Identity::node(FEDERATION, node.clone())?);
    let request = Request { holder, hosts: Vec::new(), lifetime: CERTIFICATE_LIFETIME };
    let issued = authority.issue(&request, dir, &name.replace('/', "-"))?;
    let files = LinkTls { cert: issued.cert, key: issued.key, ca: dir.join("ca.pem") };
    Ok(Credentials::load(&files, FEDERATION, &node)?)
}

struct Ends {
    sender: Connection,
    receiver: Connection,
    proxy: Proxy,
    _endpoints: (Endpoint, Endpoint),
}

async fn connect(trial: &Trial) -> Result<Ends, AnyError> {
    let dir = tempfile::tempdir()?;
    Authority::create(dir.path(), FEDERATION, AUTHORITY_LIFETIME)?;
    let authority = Authority::open(dir.path())?;
    let (a, b) = (credentials(dir.path(), &authority, "a/a")?, credentials(dir.path(), &authority, "b/b")?);
    let transport = Arc::new(transport(trial));
    let listener = endpoint::open(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    listener.set_server_config(Some(endpoint::server_config(&b, transport.clone())?));
    let back = Conditions { delay: trial.line.delay, ..Conditions::default() };
    let proxy = Proxy::start(listener.local_addr()?, trial.seed, &back)?;
    proxy.set_up(trial.line.clone());
    let dialler = endpoint::open(None)?;
    let peer: NodeName = "b/b".parse()?;
    let config = endpoint::client_config(&a, &peer, transport)?;
    let connecting = dialler.connect_with(config, proxy.address(), &a.server_name(&peer))?;
    let accepting = async {
        let incoming = listener.accept().await.ok_or_else(|| io::Error::other("the endpoint closed"))?;
        Ok::<_, AnyError>(incoming.await?)
    };
    let (sender, receiver) = tokio::join!(connecting, accepting);
    Ok(Ends { sender: sender?, receiver: receiver?, proxy, _endpoints: (dialler, listener) })
}

fn transport(trial: &Trial) -> TransportConfig {
    let timing = Timing { probe_interval: Duration::from_secs(1), dead_after: Duration::from_secs(30) };
    let mut config = match &trial.congestion {
        Some(congestion) => endpoint::transport_config_with(timing, congestion.clone()),
        None => endpoint::transport_config(timing),
    };
    if let Mapping::OneStream { window_bytes } = trial.mapping {
        config
            .stream_receive_window(window_bytes.into())
            .receive_window(window_bytes.into())
            .send_window(u64::from(window_bytes));
    }
    config
}

/// Sends for as long as the trial says.
///
/// # Errors
/// When the ends cannot be set up; a connection that breaks later is an [`Outcome`].
pub async fn run(trial: &Trial) -> Result<Outcome, AnyError> {
    let ends = connect(trial).await?;
    let begin = Instant::now();
    let mut bytes = 0;
    let transfer = async {
        match trial.mapping {
            Mapping::Channels => tokio::select! {
                end = send_channel(ends.sender.clone()) => end,
                end = receive_channel(ends.receiver.clone(), &mut bytes) => end,
            },
            Mapping::OneStream { .. } => tokio::select! {
                end = send_stream(ends.sender.clone()) => end,
                end = receive_stream(ends.receiver.clone(), &mut bytes) => end,
            },
        }
    };
    let broken = tokio::time::timeout(trial.duration, transfer).await.ok();
    let elapsed = begin.elapsed();
    // The reason of the connection's end says more than the failed write or read.
    let reason = ends.receiver.close_reason().or_else(|| ends.sender.close_reason());
    let broken = broken.map(|said| reason.map_or(said, |reason| reason.to_string()));
    let path = ends.sender.stats().path;
    Ok(Outcome {
        bytes,
        elapsed,
        broken,
        packets: ends.proxy.counts().0,
        lost_of_sent: (path.lost_packets, path.sent_packets),
        path: format!("{path:?}"),
    })
}

const LANE: Channel = Channel::Lane(Lane::Backlog);

/// The stream of bytes is a running pattern, so that bytes out of place show.
fn piece(from: u64) -> Bytes {
    (from..from + PIECE_BYTES as u64).map(pattern).collect::<Vec<u8>>().into()
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

fn check(bytes: &[u8], from: u64) -> Option<String> {
    let wrong = (from..).zip(bytes).find(|(at, byte)| pattern(*at) != **byte);
    wrong.map(|(at, _)| format!("byte {at} is not what was sent"))
}

async fn send_channel(connection: Connection) -> String {
    let mut writers = Writers::new(connection);
    let mut sent = 0;
    poll_fn(|cx| {
        writers.poll_acknowledged(cx);
        while let Poll::Ready(ready) = writers.poll_ready(cx, LANE) {
            if let Err(error) = ready {
                return Poll::Ready(error.to_string());
            }
            writers.push(LANE, Transmit { chunks: vec![piece(sent)], batches: 0 });
            sent += PIECE_BYTES as u64;
        }
        Poll::Pending
    })
    .await
}

async fn receive_channel(connection: Connection, bytes: &mut u64) -> String {
    let mut readers = Readers::new(connection);
    loop {
        match poll_fn(|cx| readers.poll(cx)).await {
            Ok(Received::Bytes(_, chunk)) => {
                if let Some(wrong) = check(&chunk, *bytes) {
                    return wrong;
                }
                *bytes += chunk.len() as u64;
            }
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

async fn send_stream(connection: Connection) -> String {
    let send = async {
        let mut stream = connection.open_uni().await?;
        let mut sent = 0;
        loop {
            stream.write_chunk(piece(sent)).await?;
            sent += PIECE_BYTES as u64;
        }
    };
    let end: Result<(), AnyError> = send.await;
    end.map_or_else(|error| error.to_string(), |()| String::new())
}

async fn receive_stream(connection: Connection, bytes: &mut u64) -> String {
    let receive = async {
        let mut stream = connection.accept_uni().await?;
        while let Some(chunk) = stream.read_chunk(PIECE_BYTES, true).await? {
            *bytes += chunk.bytes.len() as u64;
        }
        Ok(())
    };
    let end: Result<(), AnyError> = receive.await;
    end.map_or_else(|error| error.to_string(), |()| String::new())
}
