//! The session of one link: handshake and version, frames, credit by lane, fetches asked and served,
//! probes. Pure: inputs are `handle_*`, outputs are `poll_*`, time is an argument (a [`Duration`] since
//! a moment of the caller's choosing, never decreasing).
//!
//! The session moves batches and keeps their order; *what* to fetch, announce or acknowledge is decided by
//! [`crate::replication`], to which it hands every other control message unread.
//!
//! It speaks over ordered channels (one for control, one a lane) and datagrams, and does not know QUIC.

mod credit;
mod fetches;
mod frames;
mod handshake;
mod machine;
pub mod pace;
mod probes;
mod serving;
#[cfg(test)]
mod tests;
pub mod vitals;

use std::time::Duration;

use bytes::Bytes;

pub use self::{
    machine::Session,
    serving::{READ_AHEAD_BYTES, READ_BYTES},
};
use crate::{
    envelope::Batch,
    ids::{LogName, NodeName, Offset, Place, Start},
    wire::{WireError, link},
};

/// A share of a link: live traffic goes before backlog. The numbers are on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Fetches that stood near their log's end when they began.
    Live = 1,
    /// Fetches that catch up.
    Backlog = 2,
}

/// All lanes, in the order in which arrays hold them.
pub const LANES: [Lane; 2] = [Lane::Live, Lane::Backlog];

/// Where a lane stands in [`LANES`].
fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Live => 0,
        Lane::Backlog => 1,
    }
}

/// What a peer that names it in its hello understands: `Condition`. The number is on the wire.
pub const FEATURE_CONDITION: u32 = 140;
/// The same: `MarksAsk`, which it answers with `MarksTold`.
pub const FEATURE_MARKS_TOLD: u32 = 220;

/// An ordered sequence of bytes that the transport gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Kind 1 frames.
    Control,
    /// Kinds 2 and 3.
    Lane(Lane),
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Serves clients, appends; at most one active in a site.
    Edge,
    /// Transit only.
    Relay,
    /// A kind of a newer node's, by its number: a neighbour like any, counted as no site's edge broker.
    Other(i32),
}

/// What this side says of itself, and its bounds.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The federation's name.
    pub federation: String,
    /// This node.
    pub node: NodeName,
    /// Its kind.
    pub kind: NodeKind,
    /// This start of its process.
    pub start: Start,
    /// Protocol versions spoken.
    pub versions: std::ops::RangeInclusive<u32>,
    /// Largest batch accepted, bytes.
    pub batch_bytes_max: usize,
    /// Credit granted per lane: the receive buffer, bytes; at least one largest batch.
    pub lane_credit: [(Lane, u64); 2],
    /// Bound of the outgoing control queue, bytes; a peer that lets it fill is cut off.
    pub control_queue_bytes_max: usize,
    /// Interval of probes.
    pub probe_interval: Duration,
    /// The link is dead when nothing was heard for this long.
    pub dead_after: Duration,
    /// Name and version of the software.
    pub software: String,
    /// Most fetches the peer may have open at once.
    pub fetches_max: usize,
    /// The peer's identity as its certificate states it; hello must agree. `None` only in tests.
    pub peer_identity: Option<NodeName>,
}

/// What the peer said of itself.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its name.
    pub node: NodeName,
    /// Its kind.
    pub kind: NodeKind,
    /// Its start.
    pub start: Start,
    /// The version in use.
    pub version: u32,
    /// Its software.
    pub software: String,
    /// Largest batch it accepts.
    pub batch_bytes_max: usize,
    /// Body versions it reads.
    pub body_versions: Vec<u8>,
    /// Most fetches of ours that it lets be open at once.
    pub fetches_max: usize,
    /// What it understands beyond its version.
    pub features: Vec<u32>,
}

/// A fetch's number on one link in one direction.
pub type FetchNumber = u64;

/// How a fetch runs where a log has several incarnations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FetchLine {
    /// On into the next incarnation of the main line.
    Main,
    /// Stays in the place's incarnation (a fork's part).
    Incarnation,
}

/// A fetch, as asked by either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchOrder {
    /// Unique and ascending on this link in this direction.
    pub number: FetchNumber,
    /// The lane its batches take.
    pub lane: Lane,
    /// The log.
    pub log: LogName,
    /// The first place wanted.
    pub from: Place,
    /// See [`FetchLine`].
    pub line: FetchLine,
    /// Read through on the way and not stored by the asker; see `link.proto`.
    pub passing: bool,
    /// Hops left (passing only).
    pub hops: u32,
    /// Bytes that may be sent so far (passing only).
    pub allowance: u64,
    /// Exclusive end.
    pub until: Option<Offset>,
    /// End at the holder's end instead of waiting there.
    pub no_wait: bool,
    /// Sent on towards this node instead of the log's origin (a named holder).
    pub towards: Option<NodeName>,
}

/// Why a fetch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchEnded {
    /// Which.
    pub number: FetchNumber,
    /// Why.
    pub end: link::FetchEnd,
    /// A place that goes with it.
    pub at: Option<Place>,
    /// The site that answered.
    pub answered_by: String,
    /// In words.
    pub text: String,
}

/// What a read for a served fetch gave (the shell reads; see [`Event::Read`]).
#[derive(Debug, Clone)]
pub enum ReadOutcome {
    /// Batches, and the place where to read on.
    Batches(Vec<Batch>, Place),
    /// At the readable end: wait for [`Session::handle_advanced`] (or end, for `no_wait`).
    AtEnd(Place),
    /// Outside the copy: the core says how it goes on ([`Session::serve`], [`Session::push_passed`] or
    /// [`Session::end_served`]).
    Outside,
}

/// Where a fetch served by this side stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedAt {
    /// The place after everything sent and queued for it.
    pub next: Place,
    /// Bytes of allowance and lane credit left for it, whichever is less, beyond what is queued.
    pub room: u64,
    /// Bytes sent of what was fed by [`Session::push_passed`] since it last ran outside the own copy.
    pub passed: u64,
}

/// What the session tells its shell.
#[derive(Debug)]
pub enum Event {
    /// Hello was exchanged; the link is usable.
    Up(PeerInfo),
    /// A control message for [`crate::replication`].
    Control(Box<link::control::Kind>),
    /// The peer asks for a log. The core answers with serve, passing, or end.
    FetchRequested(FetchOrder),
    /// Read for a served fetch and answer with [`Session::handle_read`]. At most one is out a fetch.
    Read {
        /// The peer's fetch.
        number: FetchNumber,
        /// The log.
        log: LogName,
        /// Where.
        from: Place,
        /// How.
        line: FetchLine,
        /// About how much.
        bytes_max: usize,
    },
    /// The peer stopped its fetch.
    FetchStopped(FetchNumber),
    /// A fetch of the peer ended by itself (`no_wait`, `until`, a failure); its end goes out by itself.
    ServedOver(FetchNumber),
    /// A fetch of the peer that is not served from the own copy went on, or its asker granted more; see
    /// [`Session::served_at`].
    ServedMoved(FetchNumber),
    /// A batch came in order for an open fetch of ours; checksum and continuity within the fetch
    /// hold. Its credit returns with [`Session::release`].
    Batch {
        /// Our fetch.
        number: FetchNumber,
        /// The lane whose credit it took.
        lane: Lane,
        /// Bytes of credit it took.
        credit: u64,
        /// Whether it is to be passed on, not stored.
        passing: bool,
        /// The batch.
        batch: Batch,
    },
    /// A fetch of ours ended.
    FetchEnded(FetchEnded),
    /// A one-way message.
    OneWay(Box<link::OneWay>),
    /// A probe came back.
    RoundTrip(Duration),
    /// The session is over; transmit what is left, then close. Nothing follows.
    Closed(CloseReason),
}

/// Why a session ended, sorted by who caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// In peace, by either side.
    #[error("closed: {0}")]
    Goodbye(String),
    /// The peer refused us.
    #[error("the peer refused the link ({reason:?}): {text}")]
    RefusedByPeer {
        /// Its reason.
        reason: link::RefuseReason,
        /// Its words.
        text: String,
    },
    /// We refuse the peer.
    #[error("this node refused the link ({reason:?}): {text}")]
    Refused {
        /// Reason sent.
        reason: link::RefuseReason,
        /// Words sent.
        text: String,
    },
    /// The transport failed.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// Nothing heard for too long.
    #[error("nothing was heard from the peer for {:.1} s; check that it runs, and the line between", .0.as_secs_f64())]
    Dead(Duration),
}

/// What a session holds, in bytes; each with its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Buffered {
    /// Control messages that wait to be sent.
    pub control: (u64, u64),
    /// Batches that came and whose credit was not given back: the bound is the credit.
    pub received: (u64, u64),
    /// Batches read from the own copies that wait to be sent, reads under way included.
    pub reads: (u64, u64),
    /// Batches read through that wait to be sent; the bound is the core's.
    pub passing: u64,
}

/// Bytes for one channel, in order; the chunks together are whole frames.
#[derive(Debug)]
pub struct Transmit {
    /// To be written one after the other.
    pub chunks: Vec<Bytes>,
    /// Batches among them.
    pub batches: u32,
}

/// What the peer did wrong; it ends the session.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    reason: link::RefuseReason,
    text: String,
}

impl Fault {
    fn protocol(text: String) -> Self {
        Self { reason: link::RefuseReason::Protocol, text }
    }

    fn before_hello() -> Self {
        Self::protocol("it sent something before its hello".to_owned())
    }
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::protocol(error.to_string())
    }
}

/// The control queue is full: the peer does not read. The link is being closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer does not read its control channel")]
pub struct Congested;
