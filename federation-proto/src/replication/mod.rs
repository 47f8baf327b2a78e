//! What a node wants, announces, fetches, acknowledges and routes: the state machine above the links.
//! Pure; one for each node. Inputs are `handle_*`, outputs come from [`Replication::poll_output`], time is an argument.
//!
//! The shell brings it every control message of every link, every change of the local copies, and the local wants;
//! it carries out the outputs. Batches themselves do not pass through here.
//!
//! One file for each concern: [`machine`] holds the state and spreads the inputs; [`routing`] knows the way; [`wants`] and
//! [`announce`] say what is asked for and what there is; [`fetching`] feeds the own copies, [`serving`] answers others' fetches, [`passes`] bounds what
//! is read through for them;
//! [`held`] and [`registration`] tell origins who has what, [`hold_back`] what they still need; [`removal`] takes a site
//! out for ever; [`marks`] (with [`missed`]) and [`trace`] keep status true, which [`standing`] says; [`ways`] tells which
//! nodes a way leads over; [`questions`] look for
//! what an origin lost, [`find`] asks all nodes for one message, and [`holes`] for what cannot be read any more, which [`skip`] ends; [`unstored`] plans anew what the
//! shell had no room for; [`deleted`] knows what was deleted, [`refusals`] what this site does not take;
//! [`one_way`] carries what is not stored, [`carried`] what goes to nodes
//! farther than a neighbour. [`lines`] knows how a log's incarnations hang together.

mod announce;
mod carried;
mod convert;
mod deleted;
mod fetching;
mod find;
mod held;
mod hold_back;
mod holes;
mod lines;
mod logs;
mod machine;
mod marks;
mod missed;
mod one_way;
mod passes;
mod questions;
mod refusals;
mod registration;
mod removal;
mod routing;
mod serving;
mod skip;
mod standing;
mod trace;
mod twins;
mod unstored;
mod wants;
mod ways;

use std::time::Duration;

use bytes::Bytes;

pub use self::{
    deleted::{TOMBSTONE_US, tombstone_key},
    find::{Finding, Found},
    held::RemoteHeld,
    hold_back::Need,
    machine::Replication,
    passes::PASS_POOL_BYTES,
    removal::{OnlyThere, Removal, removed_text},
    routing::plain_cost,
    ways::{ExplainedWay, KnownLink, KnownNode, WayHop},
};
use crate::{
    copies::{Hole, HoleKind},
    envelope::Chain,
    ids::{LogName, NodeName, Pattern, Place, Site, Start},
    session::{FetchEnded, FetchNumber, FetchOrder, NodeKind},
    wire::link,
};

/// A link of this node, while it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Where a want begins, counted once for each origin, for the logs of the first complete announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WantStart {
    /// From the oldest place that can be had.
    Earliest,
    /// From the end as first announced.
    Latest,
    /// From the first batch at or after this origin time, microseconds since 1970.
    Time(u64),
}

/// A site's durable request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Unique at this site; permanent for this want.
    pub id: String,
    /// Which topics.
    pub pattern: Pattern,
    /// From these origins; empty: all.
    pub origins: Vec<Site>,
    /// Where to begin.
    pub start: WantStart,
    /// Whether this site registers with the origins for it (counts for `all` and for hold-back).
    pub registers: bool,
}

/// Settings of the state machine.
#[derive(Debug, Clone)]
pub struct ReplicationConfig {
    /// This node.
    pub node: NodeName,
    /// Its kind: a relay has no wants of its own, is never counted, and keeps copies as a cache.
    pub kind: NodeKind,
    /// This start.
    pub start: Start,
    /// Interval of marks and of repeated statements.
    pub mark_interval: Duration,
    /// Hop limit of everything that travels.
    pub hops: u32,
    /// Which sites an origin accepts as registered, for each topic pattern in order; the first match counts. `None`: all that ask.
    pub replicate: Vec<(Pattern, Option<Vec<Site>>)>,
    /// After how long without an answer a range is lost although not every node ever heard of was reached.
    pub lost_after: Duration,
    /// Configured cost of a link by the peer's name; else 1.
    pub costs: Vec<(NodeName, u32)>,
    /// Bounds in number: logs, wants, sites.
    pub logs_max: usize,
    /// See above.
    pub wants_max: usize,
    /// See above.
    pub sites_max: usize,
    /// Body versions read here.
    pub body_versions: Vec<u8>,
    /// Nobody's next hop while another way exists (a stub site; see also [`Replication::handle_transit`]).
    pub no_transit: bool,
}

impl ReplicationConfig {
    /// Whether this node gives the places in the logs of a site: it is the site's edge broker. A relay that stands in the
    /// same site is a follower of it like any other.
    #[must_use]
    pub fn is_origin_of(&self, site: &Site) -> bool {
        self.kind == NodeKind::Edge && self.node.site == *site
    }
}

/// Changes of durable state that the machine asks for; carried out in order, each list as one unit.
#[derive(Debug, Clone)]
pub enum Change {
    /// Begin a copy.
    BeginCopy {
        /// The log.
        log: LogName,
        /// Where.
        at: Place,
        /// Chain value there, if known.
        chain: Option<Chain>,
    },
    /// Forget a copy wholly (a relay's cache that nothing can continue, or a copy of a deleted topic).
    Drop {
        /// The log.
        log: LogName,
    },
    /// Raise a copy's begin: what lies below was deleted.
    Trim {
        /// The log.
        log: LogName,
        /// Its new begin.
        to: Place,
    },
    /// State a hole at an incarnation's end.
    Hole {
        /// The log.
        log: LogName,
        /// The hole.
        hole: Hole,
    },
    /// Change what a stated hole is.
    Rekind {
        /// The log.
        log: LogName,
        /// The hole, and what it is from now on.
        hole: Hole,
        /// What it was.
        was: HoleKind,
    },
    /// Keep a value of the machine's own ("starts", "registrations", "held"); given back at the next start by [`Replication::restore`].
    Put {
        /// Its table.
        table: StateTable,
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Forget one.
    Delete {
        /// Its table.
        table: StateTable,
        /// Key.
        key: Bytes,
    },
}

/// The machine's durable tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateTable {
    /// Facts of the node itself.
    Node,
    /// Resolved starts of wants.
    Starts,
    /// Registrations this site stated.
    Registrations,
    /// What registered sites hold of our logs.
    Held,
    /// Sites that registered here.
    Sites,
    /// Every edge broker ever heard of.
    Nodes,
    /// Sites that were removed, for ever.
    Removed,
    /// Topics that were deleted.
    Deleted,
}

impl StateTable {
    /// All of them.
    pub const ALL: [StateTable; 8] = [
        StateTable::Node,
        StateTable::Starts,
        StateTable::Registrations,
        StateTable::Held,
        StateTable::Sites,
        StateTable::Nodes,
        StateTable::Removed,
        StateTable::Deleted,
    ];
}

/// Something that people should know; each kind is counted and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Stable name: `origin-went-back`, `broken-chain`, `fork`, `range-lost`, `two-nodes-one-name` …
    pub name: &'static str,
    /// What it is about: a log, a site; empty where the text says all that tells two of a kind apart.
    pub subject: String,
    /// One sentence.
    pub text: String,
}

/// What the shell is to do.
#[derive(Debug)]
pub enum Output {
    /// Send a control message on a link.
    Send(LinkId, Box<link::control::Kind>),
    /// The same, once every change that was asked before it is durable: the message promises them.
    SendDurable(LinkId, Box<link::control::Kind>),
    /// Ask a link's peer for a log.
    StartFetch(LinkId, FetchOrder),
    /// End a fetch of ours.
    StopFetch(LinkId, FetchNumber),
    /// Raise a passing fetch's allowance.
    RaiseAllowance(LinkId, FetchNumber, u64),
    /// Serve the peer's fetch from our copy.
    Serve(LinkId, FetchNumber),
    /// Hand the batches of our passing fetch (first) to the peer's fetch (second).
    Pass((LinkId, FetchNumber), (LinkId, FetchNumber)),
    /// End the peer's fetch with an answer.
    EndServed(LinkId, FetchEnded),
    /// Change durable state, as one unit.
    Store(Vec<Change>),
    /// A site states to hold a log of ours up to a place (lower than before: believed).
    RemoteHeld(RemoteHeld),
    /// The sites registered with this origin changed; see [`Replication::registered`].
    RegistrationsChanged,
    /// A site was removed from the federation, for ever.
    SiteRemoved(Site),
    /// Close a link for cause.
    CloseLink(LinkId, link::RefuseReason, String),
    /// Forward a one-way message to these links (already filtered, hop taken).
    OneWay(Box<link::OneWay>, Vec<LinkId>),
    /// Look for the first batch at or after a time in our copy; answer with [`Replication::handle_time_found`].
    FindTime {
        /// Names the question.
        token: u64,
        /// The log.
        log: LogName,
        /// Origin time, microseconds since 1970.
        time_us: u64,
    },
    /// Deliver a one-way message to local subscribers.
    DeliverOneWay(Box<link::OneWayBody>),
    /// Tell people.
    Report(Report),
    /// What was told people of this subject, under this name, is over.
    ReportOver(&'static str, String),
}

/// State of one copy, or of one own log.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyStatus {
    /// `live`, `catching-up`, `stalled`, `own` …
    pub state: &'static str,
    /// Why, where there is something to say: the fault, and at which node or link, as far as it can be known here.
    pub reason: String,
    /// For how long it has not been live, by this node's own monotonic clock: since the first sign of the fault.
    pub lasting: Duration,
    /// The origin's end as last marked or announced.
    pub origin_end: Option<Place>,
    /// Messages behind; `None` while nothing is known.
    pub lag_messages: Option<u64>,
    /// Bytes behind.
    pub lag_bytes: Option<u64>,
    /// Seconds behind, by the origin's clock alone.
    pub lag: Option<Duration>,
    /// Below this the origin found the copy equal to its own log, by the chain value; as it said last since this start.
    pub proven: Option<Place>,
}

/// A site as this node knows it.
#[derive(Debug, Clone)]
pub struct SiteStatus {
    /// Its name.
    pub site: Site,
    /// Its nodes.
    pub nodes: Vec<NodeName>,
    /// The link towards it.
    pub next_hop: Option<LinkId>,
    /// The node at its other end.
    pub via: Option<NodeName>,
    /// Cost of the way; see [`plain_cost`].
    pub cost: Option<u64>,
    /// Last round trip of an end-to-end probe to it; `None` while it is not wanted from, or none came back.
    pub round_trip: Option<Duration>,
    /// What it states to hold of our logs: place below which all is held, whether registered, whether the chain value was checked equal.
    pub held: Vec<(LogName, Place, bool, bool)>,
    /// Of these logs: below which place its copy was found equal to ours by the chain value, and whether it differs since.
    pub proven: Vec<(LogName, Option<Place>, bool)>,
}

#[cfg(test)]
mod tests;
