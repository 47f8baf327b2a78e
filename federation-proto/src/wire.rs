//! The messages of a link as generated from `proto/seaway/link/v1/link.proto`, and their
//! conversion to and from the checked types of this crate.
//!
//! What comes from a peer is converted with `try_into` before anything else looks at it; what goes
//! to a peer is made with `into`. [`required`] and [`all`] help where a message holds several.

use bytes::Bytes;

use crate::{
    copies::{Hole, HoleKind, Jump},
    envelope::Chain,
    ids::{Incarnation, InvalidName, LogName, NodeName, Place, Queue, Site, Start},
    session::{FetchEnded, FetchLine, FetchOrder, Lane, NodeKind},
};

/// As generated; unchecked.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod link {
    include!(concat!(env!("OUT_DIR"), "/seaway.link.v1.rs"));
}

/// What nodes keep in control queues and tables; see `proto/seaway/store/v1/store.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod store {
    include!(concat!(env!("OUT_DIR"), "/seaway.store.v1.rs"));
}

/// A message of a peer that cannot be meant: its link is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A name breaks the rules for names.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A number is outside its range, or a field contradicts another.
    #[error("the field {what} is out of range: {found}")]
    Range {
        /// The field.
        what: &'static str,
        /// What it says.
        found: u64,
    },
    /// Bytes of the wrong length.
    #[error("the field {what} has {found} bytes instead of {expected}")]
    Length {
        /// The field.
        what: &'static str,
        /// Bytes it has.
        found: usize,
        /// Bytes it should have.
        expected: usize,
    },
    /// The bytes are not a message of this protocol.
    #[error("the message cannot be decoded")]
    Undecodable,
}

/// Converts a field that must be there; `what` names it in the error.
///
/// # Errors
/// [`WireError::Missing`], or what the conversion says.
pub fn required<T, U>(field: Option<T>, what: &'static str) -> Result<U, WireError>
where
    U: TryFrom<T>,
    WireError: From<U::Error>,
{
    Ok(field.ok_or(WireError::Missing(what))?.try_into()?)
}

/// Converts each of a repeated field, or a field that may be absent.
///
/// # Errors
/// What the first failing conversion says.
pub fn all<T, U, C>(fields: impl IntoIterator<Item = T>) -> Result<C, WireError>
where
    U: TryFrom<T>,
    WireError: From<U::Error>,
    C: FromIterator<U>,
{
    fields.into_iter().map(|field| field.try_into().map_err(WireError::from)).collect()
}

impl From<std::convert::Infallible> for WireError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// What a site holds of one log, as it states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLog {
    /// The log.
    pub log: LogName,
    /// Where the site's copy begins, if it is stated: below it the site does not count.
    pub from: Option<Place>,
    /// The place below which all is held, holes aside.
    pub below: Place,
    /// The chain value there, where it is known.
    pub chain: Option<Chain>,
    /// Stated holes below that place.
    pub holes: Vec<Hole>,
    /// Ends of forks.
    pub fork_tips: Vec<Place>,
    /// Incarnations into which the copy jumped, in their order.
    pub jumps: Vec<Jump>,
}

impl TryFrom<link::LogName> for LogName {
    type Error = WireError;
    fn try_from(found: link::LogName) -> Result<Self, WireError> {
        // How many queues a topic may be made with is its origin's affair; any that a batch can name is read.
        let queue =
            u16::try_from(found.queue).ok().ok_or(WireError::Range { what: "queue", found: found.queue.into() })?;
        Ok(Self { topic: found.topic.parse()?, origin: found.origin.parse()?, queue: Queue(queue) })
    }
}

impl From<&LogName> for link::LogName {
    fn from(log: &LogName) -> Self {
        Self { topic: log.topic.to_string(), origin: log.origin.to_string(), queue: log.queue.0.into() }
    }
}

impl From<LogName> for link::LogName {
    fn from(log: LogName) -> Self {
        (&log).into()
    }
}

impl From<link::Incarnation> for Incarnation {
    fn from(found: link::Incarnation) -> Self {
        Self { counter: found.counter, random: found.random }
    }
}

impl From<Incarnation> for link::Incarnation {
    fn from(incarnation: Incarnation) -> Self {
        Self { counter: incarnation.counter, random: incarnation.random }
    }
}

impl TryFrom<link::Place> for Place {
    type Error = WireError;
    fn try_from(found: link::Place) -> Result<Self, WireError> {
        Ok(Self { incarnation: required(found.incarnation, "place.incarnation")?, offset: found.offset })
    }
}

impl From<Place> for link::Place {
    fn from(place: Place) -> Self {
        Self { incarnation: Some(place.incarnation.into()), offset: place.offset }
    }
}

impl From<link::Start> for Start {
    fn from(found: link::Start) -> Self {
        Self { time_us: found.time_us, random: found.random }
    }
}

impl From<Start> for link::Start {
    fn from(start: Start) -> Self {
        Self { time_us: start.time_us, random: start.random }
    }
}

impl TryFrom<link::NodeName> for NodeName {
    type Error = WireError;
    fn try_from(found: link::NodeName) -> Result<Self, WireError> {
        Ok(NodeName::new(found.site.parse::<Site>()?, &found.node)?)
    }
}

impl From<&NodeName> for link::NodeName {
    fn from(name: &NodeName) -> Self {
        Self { site: name.site.to_string(), node: name.node.to_string() }
    }
}

impl From<NodeName> for link::NodeName {
    fn from(name: NodeName) -> Self {
        (&name).into()
    }
}

impl From<i32> for NodeKind {
    fn from(found: i32) -> Self {
        match link::NodeKind::try_from(found) {
            Ok(link::NodeKind::Edge) => Self::Edge,
            Ok(link::NodeKind::Relay) => Self::Relay,
            Ok(link::NodeKind::Unspecified) | Err(_) => Self::Other(found),
        }
    }
}

impl From<NodeKind> for i32 {
    fn from(kind: NodeKind) -> Self {
        match kind {
            NodeKind::Edge => link::NodeKind::Edge.into(),
            NodeKind::Relay => link::NodeKind::Relay.into(),
            NodeKind::Other(number) => number,
        }
    }
}

impl TryFrom<link::Hole> for Hole {
    type Error = WireError;
    fn try_from(found: link::Hole) -> Result<Self, WireError> {
        let kind = match found.kind() {
            link::HoleKind::Pending => HoleKind::Pending,
            link::HoleKind::NotWanted => HoleKind::NotWanted,
            // A kind of a newer node's is not held, and nothing that this node knows of will fill it.
            link::HoleKind::Lost | link::HoleKind::Unspecified => HoleKind::Lost,
        };
        if found.from >= found.to {
            return Err(WireError::Range { what: "hole.to", found: found.to });
        }
        Ok(Self { incarnation: required(found.incarnation, "hole.incarnation")?, from: found.from, to: found.to, kind })
    }
}

impl From<Hole> for link::Hole {
    fn from(hole: Hole) -> Self {
        let kind = match hole.kind {
            HoleKind::Pending => link::HoleKind::Pending,
            HoleKind::NotWanted => link::HoleKind::NotWanted,
            HoleKind::Lost => link::HoleKind::Lost,
        };
        Self { incarnation: Some(hole.incarnation.into()), from: hole.from, to: hole.to, kind: kind.into() }
    }
}

impl TryFrom<link::Jump> for Jump {
    type Error = WireError;
    fn try_from(found: link::Jump) -> Result<Self, WireError> {
        Ok(Self {
            incarnation: required(found.incarnation, "jump.incarnation")?,
            begin: found.begin,
            from: found.from.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<Jump> for link::Jump {
    fn from(jump: Jump) -> Self {
        Self { incarnation: Some(jump.incarnation.into()), begin: jump.begin, from: jump.from.map(Into::into) }
    }
}

/// A chain value as a field holds it: empty where it is not known.
///
/// # Errors
/// [`WireError::Length`] for anything but 0 or 16 bytes.
pub fn chain_from_wire(found: &[u8]) -> Result<Option<Chain>, WireError> {
    if found.is_empty() {
        return Ok(None);
    }
    let chain = found.try_into().map_err(|_| WireError::Length { what: "chain", found: found.len(), expected: 16 })?;
    Ok(Some(Chain(chain)))
}

/// The opposite of [`chain_from_wire`].
pub fn chain_to_wire(chain: Option<Chain>) -> Bytes {
    chain.map_or_else(Bytes::new, |chain| Bytes::copy_from_slice(&chain.0))
}

impl TryFrom<link::HeldLog> for HeldLog {
    type Error = WireError;
    fn try_from(found: link::HeldLog) -> Result<Self, WireError> {
        let mut jumps: Vec<Jump> = all(found.jumps)?;
        jumps.sort_unstable_by_key(|j| j.incarnation);
        Ok(Self {
            log: required(found.log, "held.log")?,
            from: found.from.map(TryInto::try_into).transpose()?,
            below: required(found.below, "held.below")?,
            chain: chain_from_wire(&found.chain)?,
            holes: all(found.holes)?,
            fork_tips: all(found.fork_tips)?,
            jumps,
        })
    }
}

impl From<HeldLog> for link::HeldLog {
    fn from(held: HeldLog) -> Self {
        Self {
            log: Some(held.log.into()),
            from: held.from.map(Into::into),
            below: Some(held.below.into()),
            chain: chain_to_wire(held.chain),
            holes: held.holes.into_iter().map(Into::into).collect(),
            fork_tips: held.fork_tips.into_iter().map(Into::into).collect(),
            jumps: held.jumps.into_iter().map(Into::into).collect(),
            refused: String::new(),
            untaken: false,
        }
    }
}

impl TryFrom<u32> for Lane {
    type Error = WireError;
    fn try_from(found: u32) -> Result<Self, WireError> {
        match found {
            1 => Ok(Lane::Live),
            2 => Ok(Lane::Backlog),
            _ => Err(WireError::Range { what: "lane", found: found.into() }),
        }
    }
}

impl From<Lane> for u32 {
    fn from(lane: Lane) -> Self {
        lane as u32
    }
}

impl TryFrom<link::Fetch> for FetchOrder {
    type Error = WireError;
    fn try_from(found: link::Fetch) -> Result<Self, WireError> {
        let line = match link::FetchLine::try_from(found.line) {
            Ok(link::FetchLine::Main) => FetchLine::Main,
            Ok(link::FetchLine::Incarnation) => FetchLine::Incarnation,
            Err(_) => return Err(WireError::Range { what: "fetch.line", found: u64::from(found.line.unsigned_abs()) }),
        };
        Ok(Self {
            number: found.number,
            lane: found.lane.try_into()?,
            log: required(found.log, "fetch.log")?,
            from: required(found.from, "fetch.from")?,
            line,
            passing: found.passing,
            hops: found.hops,
            allowance: found.allowance,
            until: (found.until != 0).then_some(found.until),
            no_wait: found.no_wait,
            towards: found.towards.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&FetchOrder> for link::Fetch {
    fn from(order: &FetchOrder) -> Self {
        let line = match order.line {
            FetchLine::Main => link::FetchLine::Main,
            FetchLine::Incarnation => link::FetchLine::Incarnation,
        };
        Self {
            number: order.number,
            lane: order.lane.into(),
            log: Some((&order.log).into()),
            from: Some(order.from.into()),
            line: line.into(),
            passing: order.passing,
            hops: order.hops,
            allowance: order.allowance,
            until: order.until.unwrap_or_default(),
            no_wait: order.no_wait,
            towards: order.towards.as_ref().map(Into::into),
        }
    }
}

/// Most characters that are kept of a peer's words.
const WORDS_CHARS_MAX: usize = 512;

/// A peer's words, fit for a log and a terminal: cut, and without control characters.
pub(crate) fn plain(words: &str) -> String {
    words.chars().take(WORDS_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl TryFrom<link::FetchEnded> for FetchEnded {
    type Error = WireError;
    fn try_from(found: link::FetchEnded) -> Result<Self, WireError> {
        Ok(Self {
            number: found.number,
            end: found.end(),
            at: found.at.map(TryInto::try_into).transpose()?,
            answered_by: plain(&found.answered_by),
            text: plain(&found.text),
        })
    }
}

impl From<FetchEnded> for link::FetchEnded {
    fn from(ended: FetchEnded) -> Self {
        Self {
            number: ended.number,
            end: ended.end.into(),
            at: ended.at.map(Into::into),
            answered_by: ended.answered_by,
            text: ended.text,
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
