//! What a node is told and answers: settings, messages, receipts, status.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use seaway_federation_proto::{
    envelope::Codec,
    ids::{LogName, NodeName, Path, Pattern, Place, Site, Topic},
    limits,
    message::{Message, ProducerStamp},
    replication::{Report, Want},
    session::NodeKind,
};

use super::{hold_back::HoldBackConfig, limits::LimitsConfig, one_way::Charge, origin::OwnMessage, space::SpaceConfig};

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
    /// Wants that are configured (id, pattern, …); those of groups come and go by [`super::Node::put_want`].
    pub wants: Vec<Want>,
    /// Which sites count as registered: see [`seaway_federation_proto::replication::ReplicationConfig::replicate`].
    pub replicate: Vec<(Pattern, Option<Vec<Site>>)>,
    /// Settings for topics by pattern of the topic name; the first match counts.
    pub topics: Vec<(Pattern, TopicConfig)>,
    /// Which topics a publish creates.
    pub auto_create: AutoCreate,
    /// Largest message that this site takes of other origins' topics, bytes: topics that allow larger ones are refused.
    pub accept_message_bytes_max: u64,
    /// Size of a segment file, bytes.
    pub segment_bytes: u64,
    /// Bytes of disk kept free for recovery, trims and checkpoints.
    pub disk_reserve_bytes: u64,
    /// How the disk is shared out and given back.
    pub space: SpaceConfig,
    /// For a relay: bytes of batches its cache may hold in all. On disk it takes up to about twice as much, and never less than
    /// some 64 MiB; segments are made smaller than asked for where the cache is small.
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
    /// What is kept beyond retention for registered sites, and for how much and how long.
    pub hold_back: HoldBackConfig,
    /// Rates of topics and links.
    pub limits: LimitsConfig,
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

/// The topic of the audit trail: Seaway's own, see [`super::Node::record`].
pub const AUDIT_TOPIC: &str = "_audit";
/// Which topics a publish creates that are not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AutoCreate {
    /// None: topics are created by name.
    Off,
    /// Any.
    #[default]
    Local,
    /// Those that match one of these.
    Patterns(Vec<Pattern>),
}

impl AutoCreate {
    /// Whether a publish creates this topic.
    pub fn covers(&self, topic: &Topic) -> bool {
        match self {
            Self::Off => false,
            Self::Local => true,
            Self::Patterns(patterns) => patterns.iter().any(|p| p.touches(topic)),
        }
    }
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
    /// Which sites count as registered for own logs; `None`: all that ask.
    pub replicate: Option<Vec<Site>>,
    /// Whether a publish to a topic that is not there creates it.
    pub auto_create: bool,
}

impl Default for TopicConfig {
    /// One queue, messages up to 1 MiB, no compression, nothing trimmed.
    fn default() -> Self {
        Self {
            queues: 1,
            message_bytes_max: limits::MESSAGE_BYTES_DEFAULT,
            codec: Codec::None,
            retention_bytes: None,
            retention_age: None,
            replicate: None,
            auto_create: true,
        }
    }
}

impl TopicConfig {
    /// What holds for a topic that no setting names.
    pub(super) fn unnamed(topic: &Topic) -> Self {
        match topic.as_str() {
            // A quarter of a year, and never so much that it fills a disk.
            AUDIT_TOPIC => Self {
                retention_bytes: Some(64 << 20),
                retention_age: Some(Duration::from_secs(92 * 86_400)),
                ..Self::default()
            },
            _ => Self::default(),
        }
    }
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

/// Messages of one publisher, to be stored one after the other.
#[derive(Debug, Clone)]
pub struct PublishRun {
    /// The messages.
    pub messages: Vec<OwnMessage>,
    /// Whom to wait for beyond this node.
    pub acknowledgement: Acknowledgement,
    /// How long to wait for them.
    pub deadline: Duration,
    /// And then.
    pub on_deadline: OnDeadline,
}

/// Room among the messages that wait for other sites, held until the messages that it is for are answered. None is needed for
/// those that wait for nobody.
#[derive(Debug, Default)]
pub struct ReceiptRoom(pub(super) Option<super::room::ReceiptRoom>);

/// What became of neighbours in a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Of so many messages.
    pub count: u32,
    /// The first one's receipt, whose place the others' follow; or why all of them have none (a place in it is the
    /// first one's, too).
    pub result: Result<Receipt, PublishError>,
}

/// A run that was accepted in order; resolves to what became of its messages, in their order.
pub type PendingRun = tokio::sync::oneshot::Receiver<Vec<Outcome>>;

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
    /// Sites asked for that were removed from the federation before they were known to hold it: it went on without them.
    pub removed: Vec<Site>,
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
    /// A producer's sequence that was stored before, so long ago that its place is no longer remembered.
    #[error(
        "the message was stored before, so long ago that its place is no longer remembered; which sites hold it cannot be told"
    )]
    StoredBefore {
        /// Whether other sites were to acknowledge it; if not, nothing is amiss.
        asked: bool,
    },
    /// Stored here at this place, but the node stops before the sites asked for stated to hold it. A retry under the same
    /// producer number waits on once the node is back, and is stored once.
    #[error(
        "this node is stopping: the message is stored at {log} {place}, and {missing} is not yet known to hold it; it will still be delivered"
    )]
    Stopping {
        /// Its log.
        log: LogName,
        /// Its place.
        place: Place,
        /// Who, in words.
        missing: String,
    },
    /// Disk full, draining, no room in time; the sentence says which. Nothing was stored.
    #[error("{0}")]
    Unavailable(String),
    /// Hold-back refuses the topic's publishers until a site has caught up. Nothing was stored.
    #[error("{0}")]
    HeldBack(String),
    /// It may be stored or not: what was to make it durable failed half-way, or stopped.
    #[error("the message may be stored or not: {0}")]
    InDoubt(String),
    /// There is no such topic at this site, and a publish does not create it. Nothing was stored.
    #[error("{0}")]
    NoTopic(String),
    /// The message was stored, and its topic was deleted since.
    #[error("topic {0} was deleted: the message was stored here and is gone with it")]
    Deleted(Topic),
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

/// A publish that was accepted in order; resolves to its receipt. Accepting happens when [`super::Node::publish`] returns,
/// so a caller that publishes in sequence is stored in that order, pipelined.
pub type PendingReceipt = tokio::sync::oneshot::Receiver<Result<Receipt, PublishError>>;

/// A one-way message as subscribers get it.
#[derive(Debug, Clone)]
pub struct OneWayMessage {
    /// Where it was published.
    pub origin: Site,
    /// The message.
    pub message: Message,
    /// Gives its bytes back to the subscriber's bound when the message is dropped.
    #[allow(dead_code, reason = "held for what its drop does")]
    pub(super) charge: std::sync::Arc<Charge>,
}

impl OneWayMessage {
    /// A message that counts against nobody's bound.
    pub fn new(origin: Site, message: Message) -> Self {
        Self { origin, message, charge: std::sync::Arc::new(Charge::nothing()) }
    }
}

/// What log readers are told; a receiver that lags takes [`super::Node::info`] anew.
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
    /// `connecting`, `live`, `catching-up`, `stalled`, `down`; see [`seaway_federation_proto::session::vitals`].
    pub state: &'static str,
    /// Why: fault and place.
    pub reason: String,
    /// For how long it has been so, by this node's monotonic clock; what is not live counts from the first sign of it.
    pub lasting: Duration,
    /// How long ago anything was heard of the peer over this connection, by this node's monotonic clock.
    pub heard: Option<Duration>,
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
    /// Bytes that the peer has granted for what is live and for the backlog, and that are not used; while it is up.
    pub credit: Option<[u64; 2]>,
    /// Since when up, microseconds since 1970.
    pub up_since_us: Option<u64>,
    /// Times it was made anew.
    pub reconnects: u64,
    /// One-way messages dropped here for lack of room.
    pub one_way_dropped: u64,
    /// Times that a rate limit held back what is sent, on the present connection.
    pub send_limited: u64,
    /// The same of what the peer is let send.
    pub receive_limited: u64,
    /// One-way messages dropped here, in either direction, since they were above a rate limit.
    pub one_way_limited: u64,
}

/// An alarm: a report with its count and first time.
#[derive(Debug, Clone)]
pub struct Alarm {
    /// The report last given.
    pub report: Report,
    /// First seen, microseconds since 1970.
    pub since_us: u64,
    /// Seen last, microseconds since 1970.
    pub last_us: u64,
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
