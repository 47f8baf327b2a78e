//! What a copy shows: its main line, forks' tips, and where a reader stands.

use super::{Hole, IncarnationInfo, LogCopy, LogInfo, log_copy::Held};
use crate::{
    envelope::Chain,
    ids::{Incarnation, Offset, Place},
};

/// How a reader goes on at the end of an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnLine {
    /// Into the next incarnation of the main line.
    Main,
    /// It stays in its incarnation.
    Incarnation,
}

/// Where a place lies in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    /// Held: batches can be read from `at` (perhaps in a later incarnation than asked for) up to `until`.
    Held {
        /// Where to read.
        at: Place,
        /// Offset of the same incarnation where reading must stop: an end, a hole, or where the main line leaves it.
        until: Offset,
    },
    /// In a hole that begins at or below `at`.
    Hole {
        /// The place reached.
        at: Place,
        /// The hole, as far as the line goes through it: reading goes on at its `to`.
        hole: Hole,
    },
    /// The end of what is held.
    AtEnd(Place),
    /// Below the begin, or in an incarnation of which nothing is retained: reading goes on at this place, with a gap.
    Below(Place),
    /// Above the end of its incarnation, which is this.
    Above(Place),
    /// In an incarnation that was never held.
    UnknownIncarnation,
}

impl LogCopy {
    /// End of the main line.
    pub fn end(&self) -> Place {
        self.incarnations.last().map_or(NOWHERE, Held::end_place)
    }

    /// Chain value at the end of the main line; `None` right after a hole and where it is not known.
    pub fn chain_at_end(&self) -> Option<Chain> {
        self.incarnations.last().and_then(|held| held.chain_at_end)
    }

    /// Range of an incarnation that is held (holes included).
    pub fn range_of(&self, incarnation: Incarnation) -> Option<(Offset, Offset)> {
        self.held(incarnation).map(|held| (held.begin, held.end))
    }

    /// Messages retained.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes of batches retained.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Origin time of the newest batch held, microseconds since 1970.
    pub fn newest_origin_time_us(&self) -> u64 {
        self.newest_origin_time_us
    }

    /// Chain value at an end, a begin or the lower edge of a hole, where it is known.
    pub fn known_chain(&self, place: Place) -> Option<Chain> {
        let held = self.held(place.incarnation)?;
        if place.offset == held.end {
            return held.chain_at_end;
        }
        if let Some((_, edged)) = self.hole_from(place)
            && edged.hole.from == place.offset
        {
            return edged.below;
        }
        if place.offset == held.begin { held.chain_at_begin } else { None }
    }

    /// The incarnations of the main line, newest first: each with the offset where the line leaves it.
    fn line(&self) -> impl Iterator<Item = (&Held, Offset)> {
        let newest = self.incarnations.last().map(|held| (held, held.end));
        std::iter::successors(newest, |(held, _)| {
            let previous = held.previous?;
            let before = self.held(previous.incarnation)?;
            // Trimmed above the place that it names: nothing joins the two any more.
            let joined = held.begin == previous.offset && before.incarnation < held.incarnation;
            (joined && (before.begin..=before.end).contains(&previous.offset)).then_some((before, previous.offset))
        })
    }

    /// Begin of the main line: the oldest place from which it can be read to its end.
    pub fn begin_place(&self) -> Place {
        self.line().last().map_or(NOWHERE, |(held, _)| held.begin_place())
    }

    /// A place of the main line to read on from: `from` if it is one, the line's begin if that lies below it, or nothing is asked.
    pub fn line_from(&self, from: Option<Place>) -> Option<Place> {
        let begin = self.begin_place();
        let Some(from) = from else { return Some(begin) };
        match self.locate(from, OnLine::Main) {
            _ if (from.incarnation, from.offset) < (begin.incarnation, begin.offset) => Some(begin),
            Located::Below(_) | Located::Above(_) | Located::UnknownIncarnation => None,
            _ => (!self.is_beside(from)).then_some(from),
        }
    }

    /// Where the main line leaves an incarnation, and where it goes on.
    fn leaves(&self, incarnation: Incarnation) -> Option<(Offset, Place)> {
        let mut after: Option<&Held> = None;
        for (held, leaves_at) in self.line() {
            if held.incarnation == incarnation {
                return after.map(|next| (leaves_at, next.begin_place()));
            }
            after = Some(held);
        }
        None
    }

    /// Whether the main line does not run through a place of an incarnation that is held: a fork's, or past where the line leaves it.
    pub fn is_beside(&self, place: Place) -> bool {
        let left = || self.leaves(place.incarnation).is_none_or(|(leaves_at, _)| leaves_at < place.offset);
        !self.is_newest(place.incarnation) && left()
    }

    /// Whether the copy stands at the beginning of a log of which nothing has come yet, in whatever incarnation it comes.
    pub(super) fn is_blank(&self) -> bool {
        let blank = |held: &Held| held.end == 0 && held.previous.is_none() && !held.jumped;
        self.incarnations.len() == 1 && self.incarnations.iter().all(blank) && self.forgotten.is_empty()
    }

    /// Where a reader that stands at `place` reads, or why it cannot.
    pub fn locate(&self, place: Place, line: OnLine) -> Located {
        let mut at = place;
        loop {
            let Some(held) = self.held(at.incarnation) else {
                if at.offset == 0 && self.is_blank() {
                    return Located::AtEnd(at);
                }
                let older = self.incarnations.first().is_some_and(|h| at.incarnation < h.incarnation);
                return if older || self.is_forgotten(at.incarnation) {
                    Located::Below(self.begin_place())
                } else {
                    Located::UnknownIncarnation
                };
            };
            if at.offset > held.end {
                return Located::Above(held.end_place());
            }
            if at.offset < held.begin {
                return Located::Below(held.begin_place());
            }
            let mut until = held.end;
            if line == OnLine::Main
                && !self.is_newest(held.incarnation)
                && let Some((leaves_at, next)) = self.leaves(held.incarnation)
                && at.offset <= leaves_at
            {
                if at.offset == leaves_at {
                    at = next;
                    continue;
                }
                until = leaves_at;
            }
            if at.offset == until {
                return Located::AtEnd(at);
            }
            if let Some((_, edged)) = self.hole_from(at) {
                if edged.hole.from <= at.offset {
                    return Located::Hole { at, hole: Hole { to: edged.hole.to.min(until), ..edged.hole } };
                }
                until = until.min(edged.hole.from);
            }
            return Located::Held { at, until };
        }
    }

    fn is_newest(&self, incarnation: Incarnation) -> bool {
        self.incarnations.last().is_some_and(|held| held.incarnation == incarnation)
    }

    /// Ends of incarnations that no other goes on from, apart from the main line's.
    pub fn fork_tips(&self) -> Vec<Place> {
        // The highest place of each that another goes on from; one look at each incarnation, since there may be thousands.
        let mut left_at = vec![None; self.incarnations.len()];
        for previous in self.incarnations.iter().filter_map(|held| held.previous) {
            let Ok(index) = self.index_of(previous.incarnation) else { continue };
            if let Some(left_at) = left_at.get_mut(index) {
                *left_at = (*left_at).max(Some(previous.offset));
            }
        }
        let tip = |(held, left_at): &(&Held, Option<Offset>)| {
            !self.is_newest(held.incarnation) && left_at.is_none_or(|left_at| left_at < held.end)
        };
        self.incarnations.iter().zip(left_at).filter(tip).map(|(held, _)| held.end_place()).collect()
    }

    /// All stated holes in order.
    pub fn holes(&self) -> impl Iterator<Item = Hole> {
        self.holes.iter().map(|edged| edged.hole)
    }

    /// The copy as its holder shows it.
    pub fn info(&self) -> LogInfo {
        LogInfo {
            begin: self.begin_place(),
            end: self.end(),
            fork_tips: if self.incarnations.len() > 1 { self.fork_tips() } else { Vec::new() },
            incarnations: self
                .incarnations
                .iter()
                .map(|held| IncarnationInfo {
                    incarnation: held.incarnation,
                    previous: held.previous,
                    jumped: held.jumped,
                    begin: held.begin,
                    end: held.end,
                    chain_at_end: held.chain_at_end,
                })
                .collect(),
            holes: self.holes().collect(),
            messages: self.messages,
            bytes: self.bytes,
            newest_origin_time_us: self.newest_origin_time_us,
            forgotten: self.forgotten.clone(),
        }
    }
}

/// Never seen: a copy holds at least one incarnation.
const NOWHERE: Place = Place { incarnation: Incarnation { counter: 0, random: 0 }, offset: 0 };
