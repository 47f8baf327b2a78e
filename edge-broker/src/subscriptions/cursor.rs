//! Where a reader stands in one log, and what it does next: pure.
//!
//! The main line of a log runs through its incarnations, each naming the place before it. What an incarnation holds past
//! that place is a fork: read as well, and marked late. A reader of the main line moves its cursor from stretch to
//! stretch; it reads forks of what it has passed whenever they grow. Every range that it cannot have is reported once.

use std::collections::BTreeMap;

use seaway_federation_proto::{
    copies::{HoleKind, LogInfo},
    ids::{Incarnation, Offset, Place},
};

/// Most ranges that a cursor remembers as missing for now, to be read late when they come; beyond, it waits for them.
const MISSING_MAX: usize = 64;

/// A part of the main line: what one incarnation holds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    incarnation: Incarnation,
    from: Offset,
    to: Offset,
}

/// A range that was passed over because it is not here at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Missing {
    incarnation: Incarnation,
    from: Offset,
    to: Offset,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read this stretch, staying in the incarnation.
    Read {
        /// From here.
        from: Place,
        /// Up to this offset, exclusive.
        until: Offset,
        /// Deliver as late: a fork, or a hole that was filled.
        late: bool,
    },
    /// The main line goes on in another incarnation; nothing is missing between.
    Hop {
        /// Left here.
        from: Place,
        /// Goes on here.
        to: Place,
    },
    /// A range will not come.
    Gap {
        /// First place missing.
        from: Place,
        /// Where reading goes on.
        to: Place,
        /// In words.
        reason: &'static str,
    },
    /// A fork begins to be read here.
    Side(Place),
    /// Nothing more until the log moves.
    Wait,
}

/// A reader's place in one log.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    at: Place,
    /// Up to where each incarnation left behind, or fork, has been read.
    passed: BTreeMap<Incarnation, Offset>,
    missing: Vec<Missing>,
    recheck: bool,
}

impl Cursor {
    /// A cursor at a place of the main line, with what is already read of other incarnations.
    pub(crate) fn new(at: Place, passed: BTreeMap<Incarnation, Offset>) -> Self {
        Self { at, passed, missing: Vec::new(), recheck: false }
    }

    /// A cursor at `at` for which everything that stands beside or before it now counts as read.
    pub(crate) fn from_here(at: Place, info: &LogInfo) -> Self {
        Self::new(at, read_beside(at, info))
    }

    /// The place on the main line where reading goes on.
    pub(crate) fn at(&self) -> Place {
        self.at
    }

    /// Up to where each incarnation left behind, or fork, has been read.
    pub(crate) fn passed(&self) -> &BTreeMap<Incarnation, Offset> {
        &self.passed
    }

    /// Goes on at a place of the main line: all before it is settled.
    pub(crate) fn go_to(&mut self, to: Place) {
        self.hop_to(to);
    }

    /// The log changed: ranges that were missing are looked at again.
    pub(crate) fn wake(&mut self) {
        self.recheck = !self.missing.is_empty();
    }

    /// Decides the next step; hops and gaps are taken as they are returned.
    pub(crate) fn plan(&mut self, info: &LogInfo) -> Step {
        let line = main_line(info);
        if let Some(step) = self.plan_missing(info) {
            return step;
        }
        let index = line.iter().position(|s| s.incarnation == self.at.incarnation);
        if let Some(step) = self.plan_forks(info, &line, index) {
            return step;
        }
        match index {
            Some(index) => self.plan_on_line(&line, index),
            None => self.plan_off_line(info, &line),
        }
    }

    fn plan_on_line(&mut self, line: &[Stretch], index: usize) -> Step {
        let Some(stretch) = line.get(index).copied() else { return Step::Wait };
        if self.at.offset < stretch.from {
            return self.gap_to(Place { offset: stretch.from, ..self.at }, "retention removed it before it was read");
        }
        if self.at.offset < stretch.to {
            return Step::Read { from: self.at, until: stretch.to, late: false };
        }
        match line.get(index.saturating_add(1)) {
            Some(next) => {
                let to = Place { incarnation: next.incarnation, offset: next.from };
                if next.from > self.at.offset {
                    self.gap_to(to, "retention removed it before it was read")
                } else {
                    self.hop_to(to)
                }
            }
            None => Step::Wait,
        }
    }

    /// The cursor stands in an incarnation that the main line does not run through (any more).
    fn plan_off_line(&mut self, info: &LogInfo, line: &[Stretch]) -> Step {
        let (Some(first), Some(last)) = (line.first(), line.last()) else { return Step::Wait };
        if let Some(place) = self.ancestor_on_line(info, line) {
            return self.hop_to(place);
        }
        if self.at.incarnation > last.incarnation {
            return Step::Wait; // this copy is behind the position: it will come
        }
        let next = line.iter().find(|s| s.incarnation > self.at.incarnation).unwrap_or(first);
        let to = Place { incarnation: next.incarnation, offset: next.from };
        if next.from > self.at.offset {
            self.gap_to(to, "retention removed it before it was read")
        } else {
            self.hop_to(to)
        }
    }

    /// Where the main line was left for the fork in which the cursor stands.
    fn ancestor_on_line(&self, info: &LogInfo, line: &[Stretch]) -> Option<Place> {
        let mut incarnation = self.at.incarnation;
        for _ in 0..info.incarnations.len() {
            let previous = info.incarnations.iter().find(|i| i.incarnation == incarnation)?.previous?;
            if line.iter().any(|s| s.incarnation == previous.incarnation) {
                let read = self.passed.get(&previous.incarnation).copied().unwrap_or(0);
                return Some(Place { offset: previous.offset.max(read), ..previous });
            }
            incarnation = previous.incarnation;
        }
        None
    }

    fn plan_forks(&mut self, info: &LogInfo, line: &[Stretch], at: Option<usize>) -> Option<Step> {
        if info.fork_tips.is_empty() {
            return None;
        }
        for held in &info.incarnations {
            let on_line = line.iter().position(|s| s.incarnation == held.incarnation);
            let from = match on_line {
                Some(index) if at.is_some_and(|at| index < at) => line.get(index).map_or(held.end, |s| s.to),
                Some(_) => continue, // not passed yet, or the newest
                None if held.incarnation == self.at.incarnation => continue,
                None => held.begin,
            };
            let Some(read) = self.passed.get(&held.incarnation).copied() else {
                if from >= held.end {
                    continue;
                }
                self.passed.insert(held.incarnation, from);
                return Some(Step::Side(Place { incarnation: held.incarnation, offset: from }));
            };
            let from = from.max(read);
            if from < held.end {
                let from = Place { incarnation: held.incarnation, offset: from };
                return Some(Step::Read { from, until: held.end, late: true });
            }
        }
        None
    }

    fn plan_missing(&mut self, info: &LogInfo) -> Option<Step> {
        if !std::mem::take(&mut self.recheck) {
            return None;
        }
        let found = self.missing.iter().position(|m| !overlaps_pending(info, m))?;
        let missing = self.missing.get(found).copied()?;
        let from = Place { incarnation: missing.incarnation, offset: missing.from };
        Some(Step::Read { from, until: missing.to, late: true })
    }

    fn hop_to(&mut self, to: Place) -> Step {
        let from = std::mem::replace(&mut self.at, to);
        if from.incarnation != to.incarnation {
            let read = self.passed.entry(from.incarnation).or_insert(from.offset);
            *read = (*read).max(from.offset);
        }
        Step::Hop { from, to }
    }

    fn gap_to(&mut self, to: Place, reason: &'static str) -> Step {
        let from = self.at;
        self.hop_to(to);
        Step::Gap { from, to, reason }
    }

    /// A stretch was read up to `to` (exclusive).
    pub(crate) fn advance(&mut self, to: Place, late: bool) {
        if let Some(index) = self.missing.iter().position(|m| late && is_in(m, to)) {
            if let Some(missing) = self.missing.get_mut(index) {
                missing.from = to.offset;
                if missing.from >= missing.to {
                    self.missing.remove(index);
                }
            }
            self.recheck = !self.missing.is_empty();
        } else if late {
            let read = self.passed.entry(to.incarnation).or_insert(to.offset);
            *read = (*read).max(to.offset);
        } else {
            self.at = to;
        }
    }

    /// The range from the read's begin to `to` is not here at present. Whether it could be passed over (and will be
    /// read late); if not, the reader waits.
    pub(crate) fn pass_over(&mut self, from: Place, to: Offset, late: bool) -> bool {
        if self.missing.iter().any(|m| m.incarnation == from.incarnation && m.from == from.offset) {
            return false;
        }
        if self.missing.len() >= MISSING_MAX {
            return false;
        }
        self.missing.push(Missing { incarnation: from.incarnation, from: from.offset, to });
        let to = Place { offset: to, ..from };
        if late {
            let read = self.passed.entry(to.incarnation).or_insert(to.offset);
            *read = (*read).max(to.offset);
        } else {
            self.at = to;
        }
        true
    }
}

fn is_in(missing: &Missing, to: Place) -> bool {
    missing.incarnation == to.incarnation && missing.from < to.offset && to.offset <= missing.to
}

fn overlaps_pending(info: &LogInfo, missing: &Missing) -> bool {
    info.holes.iter().any(|h| {
        h.incarnation == missing.incarnation
            && h.kind == HoleKind::Pending
            && h.from < missing.to
            && missing.from < h.to
    })
}

/// The stretches of the main line, oldest first.
fn main_line(info: &LogInfo) -> Vec<Stretch> {
    let held: BTreeMap<_, _> = info.incarnations.iter().map(|i| (i.incarnation, i)).collect();
    let mut line = Vec::new();
    let mut end = Some(info.end);
    while let Some(place) = end.take() {
        let Some(found) = held.get(&place.incarnation) else { break };
        line.push(Stretch { incarnation: place.incarnation, from: found.begin, to: place.offset.min(found.end) });
        end = found.previous.filter(|p| p.incarnation < place.incarnation);
    }
    line.reverse();
    line
}

/// Everything beside and before `at` as read: for readers that begin in the middle.
pub(crate) fn read_beside(at: Place, info: &LogInfo) -> BTreeMap<Incarnation, Offset> {
    let line = main_line(info);
    let later = |i: &Incarnation| *i >= at.incarnation && line.iter().any(|s| s.incarnation == *i);
    info.incarnations.iter().filter(|i| !later(&i.incarnation)).map(|i| (i.incarnation, i.end)).collect()
}

#[cfg(test)]
mod tests {
    use seaway_federation_proto::copies::IncarnationInfo;

    use super::*;

    fn incarnation(counter: u64) -> Incarnation {
        Incarnation { counter, random: 7 }
    }

    fn at(counter: u64, offset: u64) -> Place {
        Place { incarnation: incarnation(counter), offset }
    }

    fn held(counter: u64, previous: Option<Place>, begin: u64, end: u64) -> IncarnationInfo {
        IncarnationInfo { incarnation: incarnation(counter), previous, jumped: false, begin, end, chain_at_end: None }
    }

    fn info(incarnations: Vec<IncarnationInfo>, end: Place, fork_tips: Vec<Place>) -> LogInfo {
        let first = &incarnations[0];
        LogInfo {
            begin: Place { incarnation: first.incarnation, offset: first.begin },
            end,
            fork_tips,
            incarnations,
            holes: Vec::new(),
            messages: 0,
            bytes: 0,
            newest_origin_time_us: 0,
            forgotten: Default::default(),
        }
    }

    /// Carries steps out until the cursor waits.
    fn follow(cursor: &mut Cursor, info: &LogInfo) -> Vec<Step> {
        let mut steps = Vec::new();
        loop {
            let step = cursor.plan(info);
            match &step {
                Step::Wait => return steps,
                Step::Read { from, until, late } => cursor.advance(Place { offset: *until, ..*from }, *late),
                Step::Hop { .. } | Step::Gap { .. } | Step::Side(_) => {}
            }
            steps.push(step);
            assert!(steps.len() < 100, "no end: {steps:?}");
        }
    }

    fn read(counter: u64, from: u64, until: u64, late: bool) -> Step {
        Step::Read { from: at(counter, from), until, late }
    }

    #[test]
    fn follows_the_main_line_through_restarts_of_the_origin() {
        let log = info(vec![held(1, None, 0, 5), held(2, Some(at(1, 5)), 5, 9)], at(2, 9), vec![]);
        let mut cursor = Cursor::new(at(1, 0), BTreeMap::new());
        let expected = [read(1, 0, 5, false), Step::Hop { from: at(1, 5), to: at(2, 5) }, read(2, 5, 9, false)];
        assert_eq!(follow(&mut cursor, &log), expected);
        assert_eq!(cursor.at(), at(2, 9));
    }

    #[test]
    fn what_retention_took_is_a_gap_told_once() {
        let log = info(vec![held(2, Some(at(1, 5)), 7, 9)], at(2, 9), vec![]);
        let mut cursor = Cursor::new(at(1, 3), BTreeMap::new());
        let steps = follow(&mut cursor, &log);
        assert!(matches!(&steps[0], Step::Gap { from, to, .. } if (*from, *to) == (at(1, 3), at(2, 7))), "{steps:?}");
        assert_eq!(steps[1..], [read(2, 7, 9, false)]);
    }

    #[test]
    fn a_position_that_the_copy_has_not_reached_waits_for_it() {
        let log = info(vec![held(1, None, 0, 5)], at(1, 5), vec![]);
        assert_eq!(Cursor::new(at(2, 7), BTreeMap::new()).plan(&log), Step::Wait);
        assert_eq!(Cursor::new(at(1, 7), BTreeMap::new()).plan(&log), Step::Wait);
    }

    #[test]
    fn what_turns_out_to_be_a_fork_is_not_read_twice() {
        let before = info(vec![held(1, None, 0, 5)], at(1, 5), vec![]);
        let mut cursor = Cursor::new(at(1, 0), BTreeMap::new());
        assert_eq!(follow(&mut cursor, &before), [read(1, 0, 5, false)]);
        // The origin went back to 3; what lies above in its first life is a fork, read already, and grows by one.
        let after = info(vec![held(1, None, 0, 6), held(2, Some(at(1, 3)), 3, 4)], at(2, 4), vec![at(1, 6)]);
        let steps = follow(&mut cursor, &after);
        let reads: Vec<_> = steps.into_iter().filter(|s| matches!(s, Step::Read { .. })).collect();
        assert_eq!(reads, [read(1, 5, 6, true), read(2, 3, 4, false)]);
    }

    #[test]
    fn a_range_that_is_missing_for_now_is_read_late_when_it_comes() {
        let log = info(vec![held(1, None, 0, 9)], at(1, 9), vec![]);
        let mut cursor = Cursor::new(at(1, 2), BTreeMap::new());
        assert!(cursor.pass_over(at(1, 2), 4, false));
        assert_eq!(follow(&mut cursor, &log), [read(1, 4, 9, false)]);
        cursor.wake();
        assert_eq!(follow(&mut cursor, &log), [read(1, 2, 4, true)]);
        cursor.wake();
        assert_eq!(follow(&mut cursor, &log), []);
    }

    #[test]
    fn whoever_begins_in_the_middle_gets_no_forks_of_before() {
        let log = info(vec![held(1, None, 0, 6), held(2, Some(at(1, 3)), 3, 4)], at(2, 4), vec![at(1, 6)]);
        assert_eq!(follow(&mut Cursor::from_here(at(2, 4), &log), &log), []);
    }
}
