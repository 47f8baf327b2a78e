//! The rules by which a holder's set of log copies grows and shrinks: pure, shared by the disk
//! commit log, its memory twin and the simulation's checkers.
//!
//! A copy is a set of incarnations, each held over one contiguous range with stated holes, joined
//! by "first batch names the place before". Accepting a batch is decided here and nowhere else.
//!
//! (Filled by its owner; the types below are the interface others build on.)

use crate::{
    envelope::Chain,
    ids::{Incarnation, Offset, Place},
};

/// What a stated hole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoleKind {
    /// Still wanted: to be fetched.
    Pending,
    /// Outside what the site asked for.
    NotWanted,
    /// Nobody reachable holds it; final.
    Lost,
}

/// A range of offsets that a copy lacks, within one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hole {
    /// The incarnation.
    pub incarnation: Incarnation,
    /// First offset that is missing.
    pub from: Offset,
    /// First offset after it that is not.
    pub to: Offset,
    /// Why.
    pub kind: HoleKind,
}

/// One incarnation as a holder has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncarnationInfo {
    /// Which.
    pub incarnation: Incarnation,
    /// What its first batch names as the place before it; `None` for a log's very first
    /// incarnation and where the first batch is not held and never was.
    pub previous: Option<Place>,
    /// Lowest offset held (or stated as a hole).
    pub begin: Offset,
    /// Offset after the last one held (or stated as a hole).
    pub end: Offset,
    /// Chain value at `end`; `None` right after a hole.
    pub chain_at_end: Option<Chain>,
}

/// A copy as its holder sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogInfo {
    /// Oldest place retained.
    pub begin: Place,
    /// End of the main line: what followers fetch towards.
    pub end: Place,
    /// Ends of forks: places past what their successor names, apart from `end`.
    pub fork_tips: Vec<Place>,
    /// All incarnations retained, in the order of (counter, random).
    pub incarnations: Vec<IncarnationInfo>,
    /// All stated holes.
    pub holes: Vec<Hole>,
    /// Messages retained.
    pub messages: u64,
    /// Bytes of batches retained.
    pub bytes: u64,
    /// Origin time of the newest batch held, microseconds since 1970.
    pub newest_origin_time_us: u64,
}

/// Why a batch is not accepted at this moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendRefusal {
    /// The copy holds it already: dropped, harmless.
    #[error("the batch at {0} is held already")]
    Repeat(Place),
    /// It lies above the copy's end (or its incarnation's predecessor is not complete): fetch from `expected`.
    #[error("a batch came at {found}, but the copy ends at {expected}")]
    Gap {
        /// Where the batch begins.
        found: Place,
        /// Where the copy ends.
        expected: Place,
    },
    /// The chain value before it is not the copy's own: two histories under one place.
    #[error("the batch at {at} does not follow: its chain value before it is not the one held")]
    BrokenChain {
        /// Where the batch begins.
        at: Place,
    },
    /// An incarnation that names a predecessor which contradicts what is held.
    #[error("incarnation {found} does not follow what is held: {why}")]
    NotFollowing {
        /// The incarnation refused.
        found: Incarnation,
        /// In words.
        why: &'static str,
    },
    /// A batch that begins inside what is held and ends outside it: batches are never split.
    #[error("the batch at {0} overlaps the end of what is held")]
    Overlap(Place),
}
