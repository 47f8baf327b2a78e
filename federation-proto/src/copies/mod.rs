//! The rules by which a holder's set of log copies grows and shrinks: pure, shared by the disk
//! commit log, its memory twin and the simulation's checkers.
//!
//! A copy is a set of incarnations, each held over one contiguous range with stated holes, joined
//! by "first batch names the place before". Accepting a batch is decided in [`LogCopy`] and nowhere
//! else; [`Copies`] is all logs of one holder. A holder keeps two of them: what was *submitted*
//! (checked, moves at once) and what is *durable* (follows, applied with [`TakenAsGiven`], since
//! the same steps were checked before). Two instances cost some 200 bytes a log each, and keep an
//! append a look-up and a few comparisons; nothing here grows with the number of messages.
//!
//! What is in the middle of a copy (the chain value at an inner boundary, the bytes of a range) is
//! not kept here: the holder looks it up through [`Boundaries`], and it is asked only for forks,
//! trims and holes that close.

mod codec;
mod forgotten;
mod log_copy;
#[cfg(test)]
mod tests;
mod view;

use std::{collections::BTreeMap, sync::Arc};

pub use self::{
    codec::DecodeError,
    forgotten::{FORGOTTEN_MAX, Forgotten},
    log_copy::{Accepted, HOLES_MAX, INCARNATIONS_MANY, INCARNATIONS_MAX, LogCopy, Trimmed},
    view::{Located, OnLine},
};
use crate::{
    envelope::{Batch, Chain},
    ids::{Incarnation, LogName, Offset, Place},
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

impl Hole {
    /// Whether a place lies in it.
    pub fn contains(&self, place: Place) -> bool {
        self.incarnation == place.incarnation && (self.from..self.to).contains(&place.offset)
    }
}

/// An incarnation into which a copy came otherwise than its first batch says: by a jump over what it could not have, or
/// without what that batch names. Nothing of the incarnation below `begin` is held, nor anything between `from` and there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Jump {
    /// The incarnation.
    pub incarnation: Incarnation,
    /// The lowest offset that the copy has of it, or states as a hole.
    pub begin: Offset,
    /// Where the copy stood before; `None` where it holds nothing below that it knows to join.
    pub from: Option<Place>,
}

/// One incarnation as a holder has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncarnationInfo {
    /// Which.
    pub incarnation: Incarnation,
    /// What its first batch names as the place before it, or where this copy jumped from; `None` for a log's very first
    /// incarnation and where the first batch is not held and never was.
    pub previous: Option<Place>,
    /// The copy jumped into it: `previous` is where the copy stood.
    pub jumped: bool,
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
    /// Incarnations that were retained once.
    pub forgotten: Arc<Forgotten>,
}

impl LogInfo {
    /// Whether the copy stands at the beginning of a log of which nothing has come yet, in whatever incarnation it comes.
    pub fn is_blank(&self) -> bool {
        let blank = |i: &IncarnationInfo| i.end == 0 && i.previous.is_none() && !i.jumped;
        self.incarnations.len() == 1 && self.incarnations.iter().all(blank) && self.forgotten.is_empty()
    }

    /// The incarnations into which the copy came otherwise than their first batches say, in their order. What lies below the
    /// oldest one is told by `begin`, unless it is a fork's.
    pub fn jumps(&self) -> Vec<Jump> {
        let find = |incarnation| {
            let at = self.incarnations.binary_search_by_key(&incarnation, |i| i.incarnation).ok()?;
            self.incarnations.get(at)
        };
        let jump = |i: &IncarnationInfo| {
            let joined = |p: &Place| {
                i.begin == p.offset && find(p.incarnation).is_some_and(|b| (b.begin..=b.end).contains(&p.offset))
            };
            let from = i.previous.filter(joined);
            (i.jumped || from.is_none()).then_some(Jump { incarnation: i.incarnation, begin: i.begin, from })
        };
        let told =
            |i: &&IncarnationInfo| i.incarnation == self.begin.incarnation && i.begin == self.begin.offset && !i.jumped;
        let told = usize::from(self.incarnations.first().as_ref().is_some_and(told));
        self.incarnations.iter().skip(told).filter_map(jump).collect()
    }
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

/// A change other than an append that makes no sense for this copy; the words say why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(pub &'static str);

/// What the rules need to know of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Place of its first message.
    pub begin: Place,
    /// Offset after its last message; greater than `begin.offset`.
    pub end: Offset,
    /// Whether it is its incarnation's first batch.
    pub first_of_incarnation: bool,
    /// The place before its incarnation, as its first batch names it.
    pub previous: Option<Place>,
    /// Chain value before it.
    pub chain_before: Chain,
    /// Chain value after it.
    pub chain_after: Chain,
    /// Origin time, microseconds since 1970.
    pub origin_time_us: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl From<&Batch> for Facts {
    fn from(batch: &Batch) -> Self {
        let header = batch.header();
        Self {
            begin: header.begin,
            end: batch.end_offset(),
            first_of_incarnation: header.first_of_incarnation,
            previous: header.previous,
            chain_before: header.chain_before,
            chain_after: batch.chain_after(),
            origin_time_us: header.origin_time_us,
            bytes: batch.len() as u64,
        }
    }
}

/// What a holder knows of a place in the middle of its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// A batch begins there, with this chain value before it.
    Chain(Chain),
    /// It lies inside a batch.
    Inside,
    /// It cannot be told (damaged, not read now): what is claimed is taken as given.
    Unknown,
}

/// Look-ups in the middle of one log's copy; see the module's documentation.
pub trait Boundaries {
    /// What is at a place that is held, neither at a hole nor at an end.
    fn chain_at(&self, place: Place) -> Boundary;
    /// Begin of the held batch that contains (or begins at) the place; `None`: not known, the place itself is taken.
    fn floor(&self, place: Place) -> Option<Offset>;
    /// Bytes of the held batches in a range of an incarnation whose bounds are batch boundaries.
    fn bytes_in(&self, incarnation: Incarnation, from: Offset, to: Offset) -> u64;
}

/// For steps that were checked before: nothing is looked up, everything is taken as given. Byte
/// totals are then kept only by appends; trims with it must use [`LogCopy::trim_to_boundary`].
#[derive(Debug, Clone, Copy, Default)]
pub struct TakenAsGiven;

impl Boundaries for TakenAsGiven {
    fn chain_at(&self, _: Place) -> Boundary {
        Boundary::Unknown
    }
    fn floor(&self, _: Place) -> Option<Offset> {
        None
    }
    fn bytes_in(&self, _: Incarnation, _: Offset, _: Offset) -> u64 {
        0
    }
}

/// All logs that one holder has copies of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies {
    logs: BTreeMap<LogName, LogCopy>,
}

/// Copies as they were before some changes, to go back to when one of several is refused.
#[derive(Debug, Default)]
pub struct Undo {
    before: Vec<(LogName, Option<LogCopy>)>,
}

impl Copies {
    /// The copy of a log.
    pub fn get(&self, log: &LogName) -> Option<&LogCopy> {
        self.logs.get(log)
    }

    /// All copies in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&LogName, &LogCopy)> {
        self.logs.iter()
    }

    /// Number of logs.
    pub fn len(&self) -> usize {
        self.logs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Puts a copy in place as it is: from a checkpoint.
    pub fn insert(&mut self, log: LogName, copy: LogCopy) {
        self.logs.insert(log, copy);
    }

    /// Accepts a batch or says why not. A log not held begins with its very first batch.
    pub fn append(
        &mut self,
        log: &LogName,
        facts: &Facts,
        boundaries: &dyn Boundaries,
    ) -> Result<Accepted, AppendRefusal> {
        if let Some(copy) = self.logs.get_mut(log) {
            return copy.append(facts, boundaries);
        }
        let copy = LogCopy::from_first(facts)?;
        self.logs.insert(log.clone(), copy);
        Ok(Accepted { line_end_moved: true, shape_changed: true, dropped: Vec::new() })
    }

    /// Makes an empty copy that begins at `at`.
    pub fn begin_copy(&mut self, log: &LogName, at: Place, chain: Option<Chain>) -> Result<(), Impossible> {
        if self.logs.contains_key(log) {
            return Err(Impossible("a copy of this log exists already"));
        }
        self.logs.insert(log.clone(), LogCopy::begin(at, chain));
        Ok(())
    }

    /// The copy, for the other changes.
    pub fn get_mut(&mut self, log: &LogName) -> Result<&mut LogCopy, Impossible> {
        self.logs.get_mut(log).ok_or(Impossible("there is no copy of this log"))
    }

    /// Forgets a copy wholly.
    pub fn drop_copy(&mut self, log: &LogName) -> Result<LogCopy, Impossible> {
        self.logs.remove(log).ok_or(Impossible("there is no copy of this log"))
    }

    /// Notes how a log stands now, unless it is noted already.
    pub fn remember(&self, log: &LogName, undo: &mut Undo) {
        if !undo.before.iter().any(|(name, _)| name == log) {
            undo.before.push((log.clone(), self.logs.get(log).cloned()));
        }
    }

    /// Goes back to what was noted.
    pub fn roll_back(&mut self, undo: Undo) {
        for (log, copy) in undo.before {
            match copy {
                Some(copy) => self.logs.insert(log, copy),
                None => self.logs.remove(&log),
            };
        }
    }
}
