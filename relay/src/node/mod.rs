//! The node: commit log, hub, links and the publish path joined into one handle, which doors use.
//!
//! This is what `edge-broker` sees of the engine. Cloning a [`Node`] shares it.

pub mod clock;
pub mod origin;
pub mod receipts;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use seaway_federation_proto::{
    copies::LogInfo,
    envelope::Codec,
    ids::{LogName, NodeName, Path, Pattern, Place, Site, Topic},
    message::{Message, ProducerStamp},
    replication::{CopyStatus, Report, SiteStatus, Want},
    session::NodeKind,
};
use tokio::sync::{broadcast, mpsc};

use crate::log::contract::{Line, LogStats, Read, ReadError};

/// Settings of a node; the configuration file is parsed elsewhere.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The federation's name.
    pub federation: String,
    /// This node.
    pub name: NodeName,
    /// Its kind.
    pub kind: NodeKind,
    /// Directory of commit log and index.
    pub data_dir: PathBuf,
    /// Listening for links; `None`: only dials.
    pub listen: Option<std::net::SocketAddr>,
    /// Peers to dial: name and `host:port`, resolved anew for each attempt.
    pub dial: Vec<(NodeName, String)>,
    /// Certificate chain, key and authorities, PEM files.
    pub tls: LinkTls,
    /// Wants that are configured (id, pattern, …); those of groups come and go by [`Node::put_want`].
    pub wants: Vec<Want>,
    /// Which sites count as registered: see [`seaway_federation_proto::replication::ReplicationConfig::replicate`].
    pub replicate: Vec<(Pattern, Option<Vec<Site>>)>,
    /// Settings for topics by pattern of the topic name; the first match counts.
    pub topics: Vec<(Pattern, TopicConfig)>,
    /// Size of a segment file, bytes.
    pub segment_bytes: u64,
    /// Bytes of disk kept free for recovery, trims and checkpoints.
    pub disk_reserve_bytes: u64,
    /// For a relay: bytes of batches its cache may hold in all.
    pub cache_bytes_max: Option<u64>,
    /// Credit per link and lane, bytes.
    pub lane_credit_bytes: u64,
    /// Interval of probes on a link, and after how much silence it is dead.
    pub probe_interval: Duration,
    /// See above.
    pub dead_after: Duration,
    /// Interval of marks.
    pub mark_interval: Duration,
    /// Link costs by peer.
    pub costs: Vec<(NodeName, u32)>,
    /// Bytes of recent batches kept in memory for readers near the end.
    pub tail_bytes_max: usize,
}

/// PEM files of a node's link identity.
#[derive(Debug, Clone)]
pub struct LinkTls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authorities that peers' certificates may come from.
    pub ca: PathBuf,
}

/// Settings of a topic at this origin or holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// Queues for own messages.
    pub queues: u16,
    /// Largest message, bytes: payload, key and headers together.
    pub message_bytes_max: usize,
    /// Compression of own batches.
    pub codec: Codec,
    /// Retention of own logs and copies here: bytes a log.
    pub retention_bytes: Option<u64>,
    /// Retention by the holder's time of appending.
    pub retention_age: Option<Duration>,
}

/// Which other sites must hold a message before its receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledgement {
    /// None.
    Local,
    /// All registered for the topic.
    All,
    /// Any so many others.
    Count(u32),
    /// These.
    Sites(Vec<Site>),
}

/// What happens at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeadline {
    /// Fail, with the place; the message stays stored.
    Fail,
    /// Answer with what was reached.
    Degrade,
}

/// A message to be stored.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Its path.
    pub path: Path,
    /// The key that chooses its queue.
    pub key: Option<Bytes>,
    /// Headers.
    pub headers: Vec<(String, Bytes)>,
    /// Content.
    pub payload: Bytes,
    /// Idempotence.
    pub producer: Option<ProducerStamp>,
    /// Whom to wait for beyond this node.
    pub acknowledgement: Acknowledgement,
    /// How long to wait for them.
    pub deadline: Duration,
    /// And then.
    pub on_deadline: OnDeadline,
}

/// Proof that a message is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its log.
    pub log: LogName,
    /// Its place.
    pub place: Place,
    /// Other sites whose copy holds it.
    pub sites: Vec<Site>,
    /// The deadline passed and the policy said degrade.
    pub degraded: bool,
    /// Then: who is still missing, where known by name.
    pub missing: Vec<Site>,
    /// An idempotent retry.
    pub repeated: bool,
}

/// Why a message has no receipt.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PublishError {
    /// Too large, too many headers …
    #[error("{0}")]
    Invalid(String),
    /// The topic is Seaway's own.
    #[error("topic {0} is Seaway's own; choose a name that does not begin with '_' or '$'")]
    Internal(Topic),
    /// Empty set, too large a number, or a name outside it. Nothing was stored.
    #[error("{0}")]
    NobodyToAcknowledge(String),
    /// Stored here at this place, but the sites asked for did not all state to hold it in time.
    #[error(
        "stored at {log} {place}, but {missing} did not acknowledge within the deadline; it will still be delivered"
    )]
    Deadline {
        /// Its log.
        log: LogName,
        /// Its place.
        place: Place,
        /// Who, in words.
        missing: String,
    },
    /// Disk full, draining, poisoned; the sentence says which.
    #[error("{0}")]
    Unavailable(String),
    /// Producer unknown here: begin a new epoch.
    #[error("this producer is not known here (any more); begin a new epoch at sequence 0")]
    ProducerUnknown,
    /// Not last + 1.
    #[error("sequence {found} does not follow {last}")]
    ProducerSequence {
        /// Found.
        found: u64,
        /// Last stored.
        last: u64,
    },
    /// A newer epoch exists.
    #[error("epoch {found} is over: epoch {current} has begun")]
    ProducerFenced {
        /// Found.
        found: u32,
        /// Current.
        current: u32,
    },
}

/// A publish that was accepted in order; resolves to its receipt. Accepting happens when [`Node::publish`] returns,
/// so a caller that publishes in sequence is stored in that order, pipelined.
pub type PendingReceipt = tokio::sync::oneshot::Receiver<Result<Receipt, PublishError>>;

/// A one-way message as subscribers get it.
#[derive(Debug, Clone)]
pub struct OneWayMessage {
    /// Where it was published.
    pub origin: Site,
    /// The message.
    pub message: Message,
}

/// What log readers are told; a receiver that lags takes [`Node::info`] anew.
#[derive(Debug, Clone)]
pub struct LogEvent {
    /// The log that moved, appeared, or went.
    pub log: LogName,
}

/// State of one link.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// The peer, if it is known yet.
    pub peer: Option<NodeName>,
    /// Its kind.
    pub peer_kind: Option<NodeKind>,
    /// Whether this node dials.
    pub dials: bool,
    /// Address in use or last tried.
    pub address: String,
    /// `live`, `connecting`, `down`.
    pub state: &'static str,
    /// Why.
    pub reason: String,
    /// Smoothed round-trip time of probes.
    pub rtt: Option<Duration>,
    /// Share of packets lost, over about ten seconds.
    pub loss: f64,
    /// Bytes per second, over about ten seconds.
    pub rate_in: f64,
    /// See above.
    pub rate_out: f64,
    /// Bytes since it came up.
    pub bytes_in: u64,
    /// See above.
    pub bytes_out: u64,
    /// Batches since it came up.
    pub batches_in: u64,
    /// See above.
    pub batches_out: u64,
    /// Since when up, microseconds since 1970.
    pub up_since_us: Option<u64>,
    /// Times it was made anew.
    pub reconnects: u64,
    /// One-way messages dropped here for lack of room.
    pub one_way_dropped: u64,
}

/// An alarm: a report with its count and first time.
#[derive(Debug, Clone)]
pub struct Alarm {
    /// The report last given.
    pub report: Report,
    /// First seen, microseconds since 1970.
    pub since_us: u64,
    /// How often.
    pub count: u64,
}

/// Why a node does not start: one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used: another site's, a newer format, locked, unreadable.
    #[error("{0}")]
    Data(String),
    /// Certificates or keys.
    #[error("{0}")]
    Tls(String),
    /// Address in use …
    #[error("{0}")]
    Listen(String),
}

/// A running node.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<NodeInner>,
}

#[derive(Debug)]
struct NodeInner {}

#[allow(unused_variables, clippy::unused_async, reason = "signatures first")]
impl Node {
    /// Opens the log, starts threads and links.
    pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
        let _ = Node { inner: Arc::new(NodeInner {}) }.inner;
        todo!()
    }
    /// Its settings.
    pub fn config(&self) -> &NodeConfig {
        todo!()
    }
    /// Accepts a message: waits only for room in the append queue. The order of returns is the order of storage.
    pub async fn publish(&self, publish: Publish) -> Result<PendingReceipt, PublishError> {
        todo!()
    }
    /// Hands a message to the network and to local subscribers; nothing is stored.
    pub fn publish_one_way(&self, publish: Publish) -> Result<(), PublishError> {
        todo!()
    }
    /// One-way messages that match, from here and elsewhere; bounded (bytes), dropping and counting the newest when full.
    pub fn subscribe_one_way(&self, pattern: Pattern) -> mpsc::Receiver<OneWayMessage> {
        todo!()
    }
    /// Told when any log moves, appears or goes.
    pub fn watch(&self) -> broadcast::Receiver<LogEvent> {
        todo!()
    }
    /// Logs held here, in order of name.
    pub fn logs(&self) -> Vec<LogName> {
        todo!()
    }
    /// One of them, as durable here.
    pub fn info(&self, log: &LogName) -> Option<LogInfo> {
        todo!()
    }
    /// Reads what is durable here; goes to the storage threads when the tail does not hold it.
    pub async fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        todo!()
    }
    /// First batch at or after an origin time.
    pub async fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        todo!()
    }
    /// Makes a want, durable when this returns.
    pub async fn put_want(&self, want: Want) -> Result<(), PublishError> {
        todo!()
    }
    /// Removes one.
    pub async fn remove_want(&self, id: &str) -> Result<(), PublishError> {
        todo!()
    }
    /// Stores values in the groups', tokens' … tables as one unit, durable when this returns (`None` deletes).
    pub async fn put_state(
        &self,
        changes: Vec<(crate::log::contract::Table, Bytes, Option<Bytes>)>,
    ) -> Result<(), PublishError> {
        todo!()
    }
    /// Reads a table.
    pub fn scan_state(&self, table: crate::log::contract::Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        todo!()
    }
    /// Settings that hold for a topic here.
    pub fn topic_config(&self, topic: &Topic) -> TopicConfig {
        todo!()
    }
    /// State of each link.
    pub fn links(&self) -> Vec<LinkStatus> {
        todo!()
    }
    /// State of a log.
    pub fn copy_status(&self, log: &LogName) -> Option<CopyStatus> {
        todo!()
    }
    /// Sites known.
    pub fn sites(&self) -> Vec<SiteStatus> {
        todo!()
    }
    /// Alarms since the start.
    pub fn alarms(&self) -> Vec<Alarm> {
        todo!()
    }
    /// Counters (name, label, value) that are nobody else's, one-way drops by cause among them.
    pub fn counters(&self) -> Vec<(&'static str, String, u64)> {
        todo!()
    }
    /// Every queue of the engine: name, bytes now, bound.
    pub fn queues(&self) -> Vec<(String, u64, u64)> {
        todo!()
    }
    /// Figures of the commit log.
    pub fn log_stats(&self) -> LogStats {
        todo!()
    }
    /// Whether publishes are taken, or why not.
    pub fn readiness(&self) -> Result<(), String> {
        todo!()
    }
    /// Refuses new publishes, lets those accepted finish, closes links in peace, closes the log.
    pub async fn shutdown(&self) -> Result<(), String> {
        todo!()
    }
}
