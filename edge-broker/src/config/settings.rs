//! The configuration file's sections and keys, one field each. Every key here is obeyed: [`super::resolve`] hands each
//! on to the part of the node that acts on it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use seaway_federation_proto::{
    envelope::Codec,
    ids::{NodeName, Pattern, Site},
    limits,
    replication::WantStart,
};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{
    hold_back::HoldBackSection,
    limits::RateSection,
    values::{Given, HostPort, Label, Size},
};

/// The whole file.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "sections such as [node]")]
pub struct Settings {
    /// Who this node is.
    pub node: NodeSection,
    /// Its links.
    pub link: LinkSection,
    /// Its commit log.
    #[serde(default)]
    pub log: LogSection,
    /// Where clients come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<DoorSection>,
    /// A relay's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSection>,
    /// What concerns all topics.
    #[serde(default)]
    pub topics: TopicsSection,
    /// Topics by pattern; the first match counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topic: Vec<TopicSection>,
    /// What is kept beyond retention for sites that have not got it.
    #[serde(default)]
    pub hold_back: HoldBackSection,
    /// What this site wants of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub want: Vec<WantSection>,
    /// What it says of itself on standard error.
    #[serde(default)]
    pub logging: LoggingSection,
    /// Where probes and metrics are asked for; without it, nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<AdminSection>,
}

/// The names of all sections, whatever they hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "sections such as [node]")]
#[allow(dead_code, reason = "only the names count")]
pub(crate) struct Sections {
    node: Option<IgnoredAny>,
    link: Option<IgnoredAny>,
    log: Option<IgnoredAny>,
    door: Option<IgnoredAny>,
    cache: Option<IgnoredAny>,
    topics: Option<IgnoredAny>,
    topic: Option<IgnoredAny>,
    hold_back: Option<IgnoredAny>,
    want: Option<IgnoredAny>,
    logging: Option<IgnoredAny>,
    admin: Option<IgnoredAny>,
}

/// The kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Serves clients.
    Edge,
    /// Transit only.
    Relay,
}

/// `[node]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [node]")]
pub struct NodeSection {
    /// `edge` or `relay`; must agree with the command that starts it.
    pub kind: Kind,
    /// The federation's name.
    pub federation: Given<Label>,
    /// The site's name.
    pub site: Given<Site>,
    /// The node's name in its site.
    pub name: Given<Label>,
    /// Directory of the commit log and its index.
    pub data_dir: PathBuf,
    /// Whether memory may come in large pages, where the system has them: faster under load, and some 20 MB more.
    #[serde(default = "yes")]
    pub huge_pages: bool,
}

/// `[link]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [link]")]
pub struct LinkSection {
    /// Where links are listened for (UDP); without it the node only dials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<Given<SocketAddr>>,
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
    /// Authorities that peers' certificates may come from, PEM.
    pub ca_file: PathBuf,
    /// Credit a link and lane: how much a peer may have on the way.
    #[serde(default = "default_credit")]
    pub credit: Given<Size>,
    /// Between two probes of a link.
    #[serde(default = "default_probe_interval")]
    pub probe_interval: Given<Duration>,
    /// Silence after which a link is down.
    #[serde(default = "default_dead_after")]
    pub dead_after: Given<Duration>,
    /// Between two marks of an origin.
    #[serde(default = "default_mark_interval")]
    pub mark_interval: Given<Duration>,
    /// What is sent to each peer that has no rate of its own, those that dial included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_rate: Option<RateSection>,
    /// What each peer that has no rate of its own is let send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_rate: Option<RateSection>,
    /// Neighbours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer: Vec<PeerSection>,
}

/// `[[link.peer]]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [[link.peer]]")]
pub struct PeerSection {
    /// Its name.
    pub node: Given<NodeName>,
    /// Where it listens; without it the peer dials us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Given<HostPort>>,
    /// Cost of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u32>,
    /// What is sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_rate: Option<RateSection>,
    /// What it is let send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_rate: Option<RateSection>,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [log]")]
pub struct LogSection {
    /// Size of a segment file.
    pub segment_size: Given<Size>,
    /// Disk kept free for recovery, trims and checkpoints.
    pub disk_reserve: Given<Size>,
    /// Memory for recent batches, which readers near the end are served from.
    pub tail_memory: Given<Size>,
    /// What own logs may take of the disk; without it, all but the reserve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_size: Option<Given<Size>>,
    /// What copies of other sites' logs may take; without it, all but the reserve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies_size: Option<Given<Size>>,
    /// Dead share of old segments above which what lives in them is moved, so that they can go.
    pub dead_share_max: f64,
    /// How much is moved in a second at most.
    pub moving_rate: Given<Size>,
    /// A wall clock that leaps farther is not believed for an hour: retention goes by the time that is expected.
    pub clock_step_max: Given<Duration>,
}

/// `[door]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [door]")]
pub struct DoorSection {
    /// Where clients connect (TCP, gRPC).
    pub listen: Given<SocketAddr>,
    /// Certificate chain of the door, PEM; without it the door speaks plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Authorities that clients' certificates may come from, PEM; without it clients have tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// Allows plain text beyond loopback.
    #[serde(default)]
    pub allow_plain_text: bool,
    /// Tokens: `[[token]]` with name, token or sha256, publish, subscribe, admin, expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// How long a sync publish waits for other sites when it does not say.
    #[serde(default = "default_publish_deadline")]
    pub publish_deadline: Given<Duration>,
    /// After how long without a confirmation a group's message is delivered again.
    #[serde(default = "default_confirm_timeout")]
    pub confirm_timeout: Given<Duration>,
    /// How long a plain subscriber's want outlives its connection.
    #[serde(default = "default_passing_want")]
    pub passing_want: Given<Duration>,
    /// How long draining waits for receipts that are still out.
    #[serde(default = "default_drain_timeout")]
    pub drain_timeout: Given<Duration>,
    /// Rates for each client.
    #[serde(default)]
    pub limits: LimitsSection,
    /// Rights of clients with a certificate, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client: Vec<ClientSection>,
    /// Rights of a certificate's client that is not named; without it, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_clients: Option<RightsSection>,
    /// Rights of callers on loopback that show neither token nor certificate; without it, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<AnonymousSection>,
}

/// `[door.limits]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [door.limits]")]
pub struct LimitsSection {
    /// Messages a second that a client may publish, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_s: Option<u32>,
    /// Messages above the average at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_burst: Option<u32>,
    /// Bytes a second that a client may publish, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<Given<Size>>,
    /// Bytes above the average at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<Given<Size>>,
    /// What a client beyond its rate meets.
    pub on_exceed: OnExceed,
}

/// What a client beyond its rate meets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExceed {
    /// It is slowed down.
    #[default]
    Delay,
    /// It is refused, and told after how long to try again.
    Refuse,
}

/// `[[door.client]]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [[door.client]]")]
pub struct ClientSection {
    /// Its name in the certificate.
    pub name: String,
    /// Paths it may publish to.
    #[serde(default)]
    pub publish: Vec<Given<Pattern>>,
    /// Patterns it may subscribe within.
    #[serde(default)]
    pub subscribe: Vec<Given<Pattern>>,
    /// Whether it may see and steer the node.
    #[serde(default)]
    pub admin: bool,
}

/// `[door.other_clients]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [door.other_clients]")]
pub struct RightsSection {
    /// Paths they may publish to.
    pub publish: Vec<Given<Pattern>>,
    /// Patterns they may subscribe within.
    pub subscribe: Vec<Given<Pattern>>,
    /// Whether they may see and steer the node.
    pub admin: bool,
}

/// `[door.anonymous]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [door.anonymous]")]
pub struct AnonymousSection {
    /// Paths they may publish to.
    pub publish: Vec<Given<Pattern>>,
    /// Patterns they may subscribe within.
    pub subscribe: Vec<Given<Pattern>>,
    /// Whether they may see status and lists; they never steer.
    pub see: bool,
}

/// `[cache]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [cache]")]
pub struct CacheSection {
    /// How much a relay keeps of what it carries.
    pub size: Given<Size>,
}

/// `[topics]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [topics]")]
pub struct TopicsSection {
    /// Which topics a publish creates that are not there.
    pub auto_create: AutoCreate,
    /// Largest message that this site takes of other origins' topics; a topic that allows larger ones is refused.
    pub accept_message_size_max: Given<Size>,
}

impl Default for TopicsSection {
    fn default() -> Self {
        let accept_message_size_max = Given(Size(limits::MESSAGE_BYTES_CEILING as u64));
        Self { auto_create: AutoCreate::default(), accept_message_size_max }
    }
}

/// Which topics a publish creates that are not there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "\"off\", \"local\" or a list of patterns")]
pub enum AutoCreate {
    /// `off`: none; `local`: any that is published at this site.
    Word(AutoCreateWord),
    /// Those that match.
    Patterns(Vec<Given<Pattern>>),
}

/// See [`AutoCreate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoCreateWord {
    /// None.
    Off,
    /// Any.
    Local,
}

impl Default for AutoCreate {
    fn default() -> Self {
        Self::Word(AutoCreateWord::Local)
    }
}

/// `[[topic]]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [[topic]]")]
pub struct TopicSection {
    /// Which topics.
    pub pattern: Given<Pattern>,
    /// Queues for messages published here.
    #[serde(default = "default_queues")]
    pub queues: u64,
    /// Largest message: payload, key and headers together.
    #[serde(default = "default_message_size")]
    pub message_size_max: Given<Size>,
    /// Compression of what is published here.
    #[serde(default = "default_compression")]
    pub compression: Given<Codec>,
    /// How much of each log is kept here; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_size: Option<Given<Size>>,
    /// How long it is kept here; without it, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_age: Option<Given<Duration>>,
    /// Which sites count as registered; without it, all that ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicate: Option<Vec<Given<Site>>>,
    /// Rates of what is published here to each of these topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<RateSection>,
}

/// `[[want]]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "a section: [[want]]")]
pub struct WantSection {
    /// Its name, unique and permanent at this site.
    pub name: String,
    /// Which topics.
    pub pattern: Given<Pattern>,
    /// Of which origins; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<Given<Site>>,
    /// Where to start.
    #[serde(default = "default_from")]
    pub from: Given<WantStart>,
    /// Whether this site counts for the origins' `--ack all`.
    #[serde(default = "yes")]
    pub register: bool,
}

/// `[logging]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [logging]")]
pub struct LoggingSection {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,seaway_relay=debug`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

/// `[admin]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [admin]")]
pub struct AdminSection {
    /// Where probes and metrics are answered (TCP, HTTP/1.1 in plain text; nothing else is).
    pub listen: Given<SocketAddr>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            segment_size: Given(Size(256 << 20)),
            disk_reserve: Given(Size(256 << 20)),
            tail_memory: Given(Size(64 << 20)),
            own_size: None,
            copies_size: None,
            dead_share_max: 0.4,
            moving_rate: Given(Size(32 << 20)),
            clock_step_max: Given(Duration::from_secs(24 * 3600)),
        }
    }
}

impl Default for AdminSection {
    /// On loopback: beyond it only where an address is named.
    fn default() -> Self {
        Self { listen: Given(SocketAddr::from(([127, 0, 0, 1], 7600))) }
    }
}

impl Default for LoggingSection {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

fn default_credit() -> Given<Size> {
    Given(Size(32 << 20))
}
fn default_probe_interval() -> Given<Duration> {
    Given(Duration::from_millis(200))
}
fn default_dead_after() -> Given<Duration> {
    Given(Duration::from_secs(2))
}
fn default_mark_interval() -> Given<Duration> {
    Given(Duration::from_secs(1))
}
fn default_publish_deadline() -> Given<Duration> {
    Given(Duration::from_secs(10))
}
fn default_confirm_timeout() -> Given<Duration> {
    Given(Duration::from_secs(60))
}
fn default_passing_want() -> Given<Duration> {
    Given(Duration::from_secs(600))
}
fn default_drain_timeout() -> Given<Duration> {
    Given(Duration::from_secs(10))
}
fn default_queues() -> u64 {
    1
}
fn default_message_size() -> Given<Size> {
    Given(Size(limits::MESSAGE_BYTES_DEFAULT as u64))
}
fn default_compression() -> Given<Codec> {
    Given(Codec::None)
}
fn default_from() -> Given<WantStart> {
    Given(WantStart::Earliest)
}
fn yes() -> bool {
    true
}
