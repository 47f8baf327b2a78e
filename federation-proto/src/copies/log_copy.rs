//! One log's copy and the rules by which it changes.
//!
//! Where a batch is accepted:
//! * at the end of an incarnation that is held, with the chain value of that end;
//! * at the lower edge of a pending hole, likewise; the batch that reaches the hole's upper edge
//!   must also yield the chain value that the part above began with, else that part becomes a hole;
//! * as the first batch of an incarnation that was opened by a jump and of which nothing but holes is
//!   held below: what it names may lie in what was jumped over, so it is taken as given;
//! * as the first batch of an incarnation that is not held, where the place that it names is held,
//!   with the chain value there. A place below the begin, in a hole, or in an incarnation that is
//!   older than all that is held cannot be compared: its chain value is taken as given.
//!
//! An incarnation is never accepted again once it was held and forgotten; see [`Forgotten`].

use std::sync::Arc;

use super::{AppendRefusal, Boundaries, Boundary, Facts, Forgotten, Hole, HoleKind, Impossible};
use crate::{
    envelope::Chain,
    ids::{Incarnation, Offset, Place},
};

/// Most stated holes of one copy.
pub const HOLES_MAX: usize = 1024;
/// Most incarnations retained of one copy. There is one for each start of the origin that published, and none can be left out
/// while a batch of it is retained: a place names its incarnation, readers and holders may stand in any, and each is where a
/// fork may hang. What an announcement lists of a log, and what every look at it costs, grows with them; so they are bounded,
/// and retention is what keeps them few.
pub const INCARNATIONS_MAX: usize = 4096;
/// So many are reported: the log is on its way to a bound at which it takes nothing more from a new start.
pub const INCARNATIONS_MANY: usize = INCARNATIONS_MAX / 4 * 3;

/// One incarnation as held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) incarnation: Incarnation,
    pub(super) previous: Option<Place>,
    /// Opened by a jump: `previous` is where the copy stood, not what the first batch names.
    pub(super) jumped: bool,
    pub(super) begin: Offset,
    pub(super) end: Offset,
    pub(super) chain_at_begin: Option<Chain>,
    pub(super) chain_at_end: Option<Chain>,
}

impl Held {
    pub(super) fn end_place(&self) -> Place {
        Place { incarnation: self.incarnation, offset: self.end }
    }
    pub(super) fn begin_place(&self) -> Place {
        Place { incarnation: self.incarnation, offset: self.begin }
    }
}

/// A stated hole with the chain values at its edges, where they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edged {
    pub(super) hole: Hole,
    pub(super) below: Option<Chain>,
    pub(super) above: Option<Chain>,
}

/// A log's copy; see the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogCopy {
    /// In order; never empty.
    pub(super) incarnations: Vec<Held>,
    /// In order of (incarnation, from); never overlapping, never empty.
    pub(super) holes: Vec<Edged>,
    pub(super) forgotten: Arc<Forgotten>,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) newest_origin_time_us: u64,
}

impl LogCopy {
    /// The newest incarnation of which anything is held, without the rest of [`LogCopy::info`].
    pub fn newest(&self) -> Option<Incarnation> {
        self.incarnations.last().map(|held| held.incarnation)
    }
}

/// What accepting a batch changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accepted {
    /// Whether the end of the main line is another one now.
    pub line_end_moved: bool,
    /// Whether holes, begin or the set of incarnations changed.
    pub shape_changed: bool,
    /// Ranges that were held and are pending holes now, since the batch closed a hole below them and
    /// their chain did not fit: the holder forgets their batches and reports it.
    pub dropped: Vec<Hole>,
}

/// What a trim took away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trimmed {
    /// The begin as it is now; `to` moved down to a batch boundary.
    pub begin: Place,
    /// Incarnations that are wholly forgotten.
    pub forgotten: Vec<Incarnation>,
    /// Bytes of batches no longer retained.
    pub bytes: u64,
}

impl LogCopy {
    /// An empty copy that begins at `at`.
    pub fn begin(at: Place, chain: Option<Chain>) -> Self {
        let held = Held {
            incarnation: at.incarnation,
            previous: None,
            jumped: false,
            begin: at.offset,
            end: at.offset,
            chain_at_begin: chain,
            chain_at_end: chain,
        };
        Self {
            incarnations: vec![held],
            holes: Vec::new(),
            forgotten: Arc::default(),
            messages: 0,
            bytes: 0,
            newest_origin_time_us: 0,
        }
    }

    /// A copy that a log's very first batch makes.
    pub(super) fn from_first(facts: &Facts) -> Result<Self, AppendRefusal> {
        if !facts.first_of_incarnation || facts.previous.is_some() {
            let zero = Place { offset: 0, ..facts.begin };
            return Err(AppendRefusal::Gap { found: facts.begin, expected: zero });
        }
        check_root(facts)?;
        let mut copy = Self::begin(facts.begin, Some(facts.chain_before));
        copy.count(facts);
        if let Some(held) = copy.incarnations.last_mut() {
            held.end = facts.end;
            held.chain_at_end = Some(facts.chain_after);
        }
        Ok(copy)
    }

    pub(super) fn index_of(&self, incarnation: Incarnation) -> Result<usize, usize> {
        // The newest is asked for nearly always.
        match self.incarnations.last() {
            Some(held) if held.incarnation == incarnation => Ok(self.incarnations.len() - 1),
            Some(held) if held.incarnation < incarnation => Err(self.incarnations.len()),
            _ => self.incarnations.binary_search_by(|held| held.incarnation.cmp(&incarnation)),
        }
    }

    pub(super) fn held(&self, incarnation: Incarnation) -> Option<&Held> {
        self.index_of(incarnation).ok().and_then(|at| self.incarnations.get(at))
    }

    /// Index of the first hole of the incarnation that ends after `offset`.
    pub(super) fn hole_index(&self, place: Place) -> usize {
        self.holes.partition_point(|e| {
            e.hole.incarnation < place.incarnation
                || (e.hole.incarnation == place.incarnation && e.hole.to <= place.offset)
        })
    }

    /// The first hole of the place's incarnation that ends after it.
    pub(super) fn hole_from(&self, place: Place) -> Option<(usize, &Edged)> {
        let at = self.hole_index(place);
        self.holes.get(at).filter(|e| e.hole.incarnation == place.incarnation).map(|e| (at, e))
    }

    pub(super) fn is_forgotten(&self, incarnation: Incarnation) -> bool {
        self.forgotten.contains(incarnation)
    }

    fn count(&mut self, facts: &Facts) {
        self.messages += facts.end - facts.begin.offset;
        self.bytes += facts.bytes;
        self.newest_origin_time_us = self.newest_origin_time_us.max(facts.origin_time_us);
    }

    /// Accepts a batch, or says why not; then nothing changed.
    pub fn append(&mut self, facts: &Facts, boundaries: &dyn Boundaries) -> Result<Accepted, AppendRefusal> {
        if facts.end <= facts.begin.offset {
            let found = facts.begin.incarnation;
            return Err(AppendRefusal::NotFollowing { found, why: "its batch has no messages" });
        }
        match self.index_of(facts.begin.incarnation) {
            Ok(index) => self.append_held(index, facts, boundaries),
            Err(index) => self.append_new(index, facts, boundaries),
        }
    }

    fn append_held(
        &mut self,
        index: usize,
        facts: &Facts,
        boundaries: &dyn Boundaries,
    ) -> Result<Accepted, AppendRefusal> {
        let newest = index + 1 == self.incarnations.len();
        let at = facts.begin;
        let end = self.incarnations.get(index).map_or(at, Held::end_place);
        if at.offset > end.offset {
            return Err(AppendRefusal::Gap { found: at, expected: end });
        }
        if at.offset < end.offset {
            return self.append_inside(index, facts, boundaries);
        }
        let jumped = facts.first_of_incarnation && self.is_jump(index, at.offset);
        if jumped {
            self.check_previous_of_jump(facts, boundaries)?;
        }
        let Some(held) = self.incarnations.get_mut(index) else {
            return Err(AppendRefusal::Repeat(facts.begin));
        };
        let empty = held.begin == held.end;
        if facts.first_of_incarnation && !jumped && !(empty && held.previous.is_none()) {
            return Err(AppendRefusal::NotFollowing {
                found: at.incarnation,
                why: "its first batch comes a second time, further up",
            });
        }
        if held.chain_at_end.is_some_and(|chain| chain != facts.chain_before) {
            return Err(AppendRefusal::BrokenChain { at });
        }
        // After a hole the copy stays joined to what it jumped from, not to what the batch names.
        if facts.first_of_incarnation && empty {
            (held.previous, held.jumped) = (facts.previous, false);
        }
        if empty {
            held.chain_at_begin = Some(facts.chain_before);
        }
        held.end = facts.end;
        let after_hole = held.chain_at_end.is_none();
        held.chain_at_end = Some(facts.chain_after);
        if after_hole && !empty {
            let below = Place { offset: at.offset.saturating_sub(1), ..at };
            let edge = self.hole_index(below);
            if let Some(edged) =
                self.holes.get_mut(edge).filter(|e| e.hole.incarnation == at.incarnation && e.hole.to == at.offset)
            {
                edged.above = Some(facts.chain_before);
            }
        }
        self.count(facts);
        Ok(Accepted { line_end_moved: newest, shape_changed: facts.first_of_incarnation, dropped: Vec::new() })
    }

    /// A batch that begins below its incarnation's end: a repeat, or it fills a hole.
    fn append_inside(
        &mut self,
        index: usize,
        facts: &Facts,
        boundaries: &dyn Boundaries,
    ) -> Result<Accepted, AppendRefusal> {
        let at = facts.begin;
        let (begin, end) = self.incarnations.get(index).map_or((0, 0), |h| (h.begin, h.end));
        if at.offset < begin {
            return Err(if facts.end <= begin { AppendRefusal::Repeat(at) } else { AppendRefusal::Overlap(at) });
        }
        let Some((hole_at, edged)) = self.hole_from(at) else {
            return Err(if facts.end <= end { AppendRefusal::Repeat(at) } else { AppendRefusal::Overlap(at) });
        };
        let (hole, below) = (edged.hole, edged.below);
        if at.offset < hole.from {
            return Err(if facts.end <= hole.from { AppendRefusal::Repeat(at) } else { AppendRefusal::Overlap(at) });
        }
        if hole.kind != HoleKind::Pending {
            return Err(AppendRefusal::NotFollowing {
                found: at.incarnation,
                why: "the batch lies in a hole that is not pending",
            });
        }
        let opens = facts.first_of_incarnation && (hole.from == begin || self.is_jump(index, hole.from));
        if facts.first_of_incarnation && !opens {
            return Err(AppendRefusal::NotFollowing {
                found: at.incarnation,
                why: "its first batch comes a second time, further up",
            });
        }
        if at.offset != hole.from && !(opens && hole.from == begin) {
            return Err(AppendRefusal::Gap { found: at, expected: Place { offset: hole.from, ..at } });
        }
        if opens {
            self.check_previous_of_jump(facts, boundaries)?;
        } else if below.is_some_and(|chain| chain != facts.chain_before) {
            return Err(AppendRefusal::BrokenChain { at });
        }
        if facts.end > hole.to {
            return Err(AppendRefusal::Overlap(at));
        }
        if let Some(held) = self.incarnations.get_mut(index).filter(|_| hole.from == begin) {
            held.begin = at.offset;
            held.chain_at_begin = Some(facts.chain_before);
            if opens {
                (held.previous, held.jumped) = (facts.previous, false);
            }
        }
        Ok(self.fill(index, hole_at, facts, boundaries))
    }

    /// Puts a checked batch at the lower edge of a hole.
    fn fill(&mut self, index: usize, hole_at: usize, facts: &Facts, boundaries: &dyn Boundaries) -> Accepted {
        self.count(facts);
        let mut accepted = Accepted { shape_changed: true, ..Accepted::default() };
        let Some(edged) = self.holes.get_mut(hole_at) else { return accepted };
        edged.hole.from = facts.end;
        edged.below = Some(facts.chain_after);
        if edged.hole.from < edged.hole.to {
            return accepted;
        }
        let above = edged.above;
        let closed = Place { offset: facts.end, ..facts.begin };
        self.holes.remove(hole_at);
        if let Some(next) = self.holes.get_mut(hole_at)
            && next.hole.incarnation == closed.incarnation
            && next.hole.from == closed.offset
        {
            next.below = Some(facts.chain_after);
            return accepted;
        }
        let Some(held) = self.incarnations.get_mut(index) else { return accepted };
        if held.end == closed.offset {
            held.chain_at_end = Some(facts.chain_after);
        } else if above.is_some_and(|chain| chain != facts.chain_after) {
            accepted.dropped.extend(self.drop_piece(closed, Some(facts.chain_after), boundaries));
        }
        // Incarnations that go on from the very place that is known now.
        let successors: Vec<Place> = self
            .incarnations
            .iter()
            .filter(|h| h.previous == Some(closed) && h.chain_at_begin.is_some_and(|chain| chain != facts.chain_after))
            .map(Held::begin_place)
            .collect();
        for begin in successors {
            accepted.dropped.extend(self.drop_piece(begin, None, boundaries));
        }
        accepted
    }

    /// Makes a pending hole of the part that begins at `from` and reaches to the next hole or the end.
    fn drop_piece(&mut self, from: Place, below: Option<Chain>, boundaries: &dyn Boundaries) -> Option<Hole> {
        let end = self.held(from.incarnation)?.end;
        let to = self.hole_from(from).map_or(end, |(_, e)| e.hole.from);
        let hole = Hole { incarnation: from.incarnation, from: from.offset, to, kind: HoleKind::Pending };
        if to <= from.offset {
            return None;
        }
        let bytes = boundaries.bytes_in(from.incarnation, from.offset, to);
        self.punch(hole, below, None, bytes);
        Some(hole)
    }

    /// States that a range that is held (bounds at batch boundaries, no hole inside) can no longer be read
    /// here: damage. `below` and `above` are the chain values at its edges, where they are known; a range
    /// that reaches the end takes the known one. `bytes` is what was held there.
    pub fn damage(
        &mut self,
        hole: Hole,
        below: Option<Chain>,
        above: Option<Chain>,
        bytes: u64,
    ) -> Result<(), Impossible> {
        let held = self.held(hole.incarnation).ok_or(Impossible("the incarnation is not held"))?;
        if hole.from >= hole.to || hole.from < held.begin || hole.to > held.end {
            return Err(Impossible("the range is not held"));
        }
        let place = Place { incarnation: hole.incarnation, offset: hole.from };
        if self.hole_from(place).is_some_and(|(_, e)| e.hole.from < hole.to) {
            return Err(Impossible("a hole is in the range already"));
        }
        let above = if hole.to == held.end { above.or(held.chain_at_end) } else { above };
        self.punch(hole, below, above, bytes);
        Ok(())
    }

    /// Corrects the bytes retained: where a copy was brought back from a checkpoint, what a later trim took away may be
    /// gone already and cannot be counted any more.
    pub fn recount(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// Makes a hole of a range that is held wholly.
    fn punch(&mut self, hole: Hole, below: Option<Chain>, above: Option<Chain>, bytes: u64) {
        self.messages = self.messages.saturating_sub(hole.to - hole.from);
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Ok(index) = self.index_of(hole.incarnation)
            && let Some(held) = self.incarnations.get_mut(index)
        {
            if held.end == hole.to {
                held.chain_at_end = above;
            }
            if held.begin == hole.from {
                held.chain_at_begin = None;
            }
        }
        let at = self.hole_index(Place { incarnation: hole.incarnation, offset: hole.from });
        self.holes.insert(at, Edged { hole, below, above });
        self.merge_holes();
    }

    /// Joins neighbours of one kind.
    fn merge_holes(&mut self) {
        self.holes.dedup_by(|next, before| {
            let joins = before.hole.incarnation == next.hole.incarnation
                && before.hole.to == next.hole.from
                && before.hole.kind == next.hole.kind;
            if joins {
                before.hole.to = next.hole.to;
                before.above = next.above;
            }
            joins
        });
    }

    /// An incarnation that is not held: only its first batch can be accepted.
    fn append_new(
        &mut self,
        index: usize,
        facts: &Facts,
        boundaries: &dyn Boundaries,
    ) -> Result<Accepted, AppendRefusal> {
        let at = facts.begin;
        if self.is_forgotten(at.incarnation) {
            return Err(AppendRefusal::Repeat(at));
        }
        if !facts.first_of_incarnation {
            return Err(AppendRefusal::Gap { found: at, expected: self.end() });
        }
        if self.incarnations.len() >= INCARNATIONS_MAX {
            return Err(AppendRefusal::NotFollowing {
                found: at.incarnation,
                why: "too many incarnations are retained; trim the log",
            });
        }
        self.check_previous(facts, boundaries)?;
        // The log never came to the incarnation at which the copy was begun: its origin lost its data before.
        let index = if facts.previous.is_none() && self.is_blank() {
            self.incarnations.clear();
            0
        } else {
            index
        };
        let held = Held {
            incarnation: at.incarnation,
            previous: facts.previous,
            jumped: false,
            begin: at.offset,
            end: facts.end,
            chain_at_begin: Some(facts.chain_before),
            chain_at_end: Some(facts.chain_after),
        };
        let newest = index == self.incarnations.len();
        self.incarnations.insert(index, held);
        self.count(facts);
        Ok(Accepted { line_end_moved: newest, shape_changed: true, dropped: Vec::new() })
    }

    /// Whether an incarnation's first batch fits what it names as the place before it.
    fn check_previous(&self, facts: &Facts, boundaries: &dyn Boundaries) -> Result<(), AppendRefusal> {
        let at = facts.begin;
        let refuse = |why| Err(AppendRefusal::NotFollowing { found: at.incarnation, why });
        let Some(previous) = facts.previous else { return check_root(facts) };
        if previous.offset != at.offset {
            return refuse("its first offset is not the end of the incarnation that it names");
        }
        if previous.incarnation.counter >= at.incarnation.counter {
            return refuse("its counter is not above that of the incarnation that it names");
        }
        let Some(held) = self.held(previous.incarnation) else {
            let older = self.incarnations.first().is_some_and(|h| previous.incarnation < h.incarnation);
            if self.is_forgotten(previous.incarnation) || (older && !self.is_whole_below()) {
                return Ok(());
            }
            return Err(AppendRefusal::Gap { found: at, expected: self.end() });
        };
        if previous.offset > held.end {
            return Err(AppendRefusal::Gap { found: at, expected: held.end_place() });
        }
        let found = if previous.offset < held.begin {
            Boundary::Unknown
        } else {
            match self.known_chain(previous) {
                Some(chain) => Boundary::Chain(chain),
                None if previous.offset == held.end || self.is_in_hole(previous) => Boundary::Unknown,
                None if previous.offset == held.begin => Boundary::Unknown,
                None => boundaries.chain_at(previous),
            }
        };
        match found {
            Boundary::Chain(chain) if chain != facts.chain_before => Err(AppendRefusal::BrokenChain { at }),
            Boundary::Inside => refuse("it names a place inside a batch"),
            Boundary::Chain(_) | Boundary::Unknown => Ok(()),
        }
    }

    /// Whether an incarnation was opened by a jump, and nothing but holes is stated of it below `offset`: its first batch
    /// may be there.
    fn is_jump(&self, index: usize, offset: Offset) -> bool {
        let Some(held) = self.incarnations.get(index) else { return false };
        let holes = self.holes.iter().filter(|e| e.hole.incarnation == held.incarnation);
        let lacking: u64 = holes.map(|e| e.hole.to.min(offset).saturating_sub(e.hole.from)).sum();
        held.chain_at_begin.is_none() && lacking == offset.saturating_sub(held.begin)
    }

    /// As [`LogCopy::check_previous`], where the place that the batch names may lie in what the copy jumped over.
    fn check_previous_of_jump(&self, facts: &Facts, boundaries: &dyn Boundaries) -> Result<(), AppendRefusal> {
        match self.check_previous(facts, boundaries) {
            Err(AppendRefusal::Gap { .. }) => Ok(()),
            checked => checked,
        }
    }

    fn is_in_hole(&self, place: Place) -> bool {
        // The upper edge counts too: its value belongs to the part above, and is not proven.
        let below = Place { offset: place.offset.saturating_sub(1), ..place };
        self.hole_from(below).is_some_and(|(_, e)| e.hole.from <= place.offset)
    }

    /// Whether the copy reaches down to a log's very first batch, so that nothing lies below it.
    fn is_whole_below(&self) -> bool {
        self.forgotten.is_empty()
            && self.incarnations.first().is_some_and(|h| {
                h.begin == 0 && h.end > 0 && h.previous.is_none() && h.chain_at_begin == Some(Chain::default())
            })
    }

    /// States that the copy will lack a range. It begins at the end of an incarnation that is held; or it
    /// opens one that is not, so that the copy goes on there: then `from` is a place of the newest
    /// incarnation from which the copy jumps, and `to` may equal `from`. Where nothing held reaches so low, both are the
    /// place at which the log goes on: what was held is a fork from then on.
    pub fn hole(&mut self, hole: Hole) -> Result<(), Impossible> {
        if self.holes.len() >= HOLES_MAX {
            return Err(Impossible("the copy has as many holes as it may"));
        }
        match self.index_of(hole.incarnation) {
            Ok(index) => {
                let held = self.incarnations.get_mut(index).ok_or(Impossible("the incarnation is not held"))?;
                if hole.from != held.end || hole.to <= hole.from {
                    return Err(Impossible("a hole must begin at the end of its incarnation and not be empty"));
                }
                let below = held.chain_at_end.take();
                held.end = hole.to;
                self.insert_hole(Edged { hole, below, above: None });
            }
            Err(index) => {
                if self.is_forgotten(hole.incarnation) {
                    return Err(Impossible("the incarnation was held here and is forgotten"));
                }
                if self.incarnations.len() >= INCARNATIONS_MAX {
                    return Err(Impossible("the copy has as many incarnations as it may"));
                }
                let jump = self.incarnations.last().ok_or(Impossible("the copy is empty"))?;
                let apart = hole.from == hole.to && hole.from < jump.begin;
                if !apart && (hole.to < hole.from || hole.from < jump.begin || hole.from > jump.end) {
                    return Err(Impossible("a hole that opens an incarnation must begin where the copy stands"));
                }
                let held = Held {
                    incarnation: hole.incarnation,
                    previous: Some(Place { incarnation: jump.incarnation, offset: hole.from })
                        .filter(|p| !apart && p.incarnation < hole.incarnation),
                    jumped: true,
                    begin: hole.from,
                    end: hole.to,
                    chain_at_begin: None,
                    chain_at_end: None,
                };
                self.incarnations.insert(index, held);
                if hole.from < hole.to {
                    self.insert_hole(Edged { hole, below: None, above: None });
                }
            }
        }
        Ok(())
    }

    fn insert_hole(&mut self, edged: Edged) {
        let at = self.hole_index(Place { incarnation: edged.hole.incarnation, offset: edged.hole.from });
        self.holes.insert(at, edged);
        self.merge_holes();
    }

    /// Changes the kind of a stated hole or of a part of one.
    pub fn rekind(&mut self, part: Hole, was: HoleKind) -> Result<(), Impossible> {
        const UNKNOWN: Impossible = Impossible("there is no such hole of that kind");
        let place = Place { incarnation: part.incarnation, offset: part.from };
        let (at, edged) = self.hole_from(place).ok_or(UNKNOWN)?;
        let whole = edged.hole;
        if part.from >= part.to || part.from < whole.from || part.to > whole.to || whole.kind != was {
            return Err(UNKNOWN);
        }
        let pieces = [
            Hole { to: part.from, ..whole },
            Hole { kind: part.kind, from: part.from, to: part.to, ..whole },
            Hole { from: part.to, ..whole },
        ];
        let left = pieces.iter().filter(|h| h.from < h.to).count();
        if self.holes.len() - 1 + left > HOLES_MAX {
            return Err(Impossible("the copy has as many holes as it may"));
        }
        let old = self.holes.remove(at);
        let edged = pieces.into_iter().filter(|h| h.from < h.to).map(|hole| Edged {
            hole,
            below: old.below.filter(|_| hole.from == whole.from),
            above: old.above.filter(|_| hole.to == whole.to),
        });
        self.holes.splice(at..at, edged);
        self.merge_holes();
        Ok(())
    }

    /// Raises the begin to the batch boundary at or below `to`. All incarnations that come before `to`'s
    /// are forgotten, forks too. The incarnation of `to` stays, even if nothing of it is left.
    pub fn trim(&mut self, to: Place, boundaries: &dyn Boundaries) -> Result<Trimmed, Impossible> {
        let held = self.held(to.incarnation).ok_or(Impossible("the incarnation is not held"))?;
        if to.offset > held.end {
            return Err(Impossible("a trim must not reach above the end"));
        }
        let (begin, end) = (held.begin, held.end);
        let in_hole = self.hole_from(to).is_some_and(|(_, e)| e.hole.from <= to.offset);
        let offset = match to.offset {
            offset if offset <= begin => begin,
            offset if offset == end || in_hole => offset,
            offset => boundaries.floor(to).unwrap_or(offset).max(begin),
        };
        let to = Place { offset, ..to };
        let mut bytes = boundaries.bytes_in(to.incarnation, begin, offset);
        for older in self.incarnations.iter().take_while(|h| h.incarnation < to.incarnation) {
            bytes += boundaries.bytes_in(older.incarnation, older.begin, older.end);
        }
        let chain = match boundaries.chain_at(to) {
            _ if offset == begin => None,
            Boundary::Chain(chain) if offset < end && !in_hole => Some(chain),
            _ => None,
        };
        self.trim_to_boundary(to, chain, bytes)
    }

    /// As [`LogCopy::trim`], with all that it would look up: `to` is a batch boundary, `chain` the value
    /// there, where known, and `bytes` what is no longer retained.
    pub fn trim_to_boundary(&mut self, to: Place, chain: Option<Chain>, bytes: u64) -> Result<Trimmed, Impossible> {
        let index = self.index_of(to.incarnation).map_err(|_| Impossible("the incarnation is not held"))?;
        let held = self.incarnations.get(index).ok_or(Impossible("the incarnation is not held"))?;
        if to.offset > held.end {
            return Err(Impossible("a trim must not reach above the end"));
        }
        let to = Place { offset: to.offset.max(held.begin), ..to };
        let known = self.known_chain(to).or(chain);
        let mut gone = 0;
        for older in self.incarnations.iter().take(index) {
            gone += older.end - older.begin;
        }
        gone += to.offset - held.begin;
        let lacking: u64 = self.holes.iter().map(|e| missing_below(&e.hole, to)).sum();
        let forgotten: Vec<Incarnation> = self.incarnations.drain(..index).map(|h| h.incarnation).collect();
        Arc::make_mut(&mut self.forgotten).remember(forgotten.iter().copied());
        // What it names lies below the begin from now on, even if it was never held.
        let above = |p: &Place| p.offset < to.offset;
        let named = self.incarnations.first().and_then(|held| held.previous).filter(above);
        Arc::make_mut(&mut self.forgotten).remember(named.map(|p| p.incarnation).into_iter());
        if let Some(held) = self.incarnations.first_mut() {
            held.begin = to.offset;
            held.chain_at_begin = known;
        }
        self.holes.retain_mut(|e| {
            if e.hole.incarnation < to.incarnation || (e.hole.incarnation == to.incarnation && e.hole.to <= to.offset) {
                return false;
            }
            if e.hole.incarnation == to.incarnation && e.hole.from < to.offset {
                e.hole.from = to.offset;
                e.below = None;
            }
            true
        });
        self.messages = self.messages.saturating_sub(gone.saturating_sub(lacking));
        self.bytes = self.bytes.saturating_sub(bytes);
        Ok(Trimmed { begin: to, forgotten, bytes })
    }
}

/// How much of a hole lies below a place.
fn missing_below(hole: &Hole, to: Place) -> u64 {
    match hole.incarnation.cmp(&to.incarnation) {
        std::cmp::Ordering::Less => hole.to - hole.from,
        std::cmp::Ordering::Equal => hole.to.min(to.offset).saturating_sub(hole.from),
        std::cmp::Ordering::Greater => 0,
    }
}

/// The log's very first batch, which names no place before it.
fn check_root(facts: &Facts) -> Result<(), AppendRefusal> {
    if facts.begin.offset != 0 {
        let found = facts.begin.incarnation;
        return Err(AppendRefusal::NotFollowing {
            found,
            why: "a first batch that names no place before it must begin at offset 0",
        });
    }
    if facts.chain_before != Chain::default() {
        return Err(AppendRefusal::BrokenChain { at: facts.begin });
    }
    Ok(())
}
