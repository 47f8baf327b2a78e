//! How a log's incarnations hang together: where a follower stands on somebody else's main line,
//! and which places of a copy can be read.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    copies::{Hole, IncarnationInfo, Jump, LogInfo},
    ids::{Incarnation, Offset, Place},
    session::FetchLine,
};

/// One incarnation as a holder has it, or as a neighbour announced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) incarnation: Incarnation,
    pub(super) previous: Option<Place>,
    /// `previous` is where the holder jumped from.
    pub(super) jumped: bool,
    pub(super) begin: Offset,
    pub(super) end: Offset,
}

impl Edge {
    pub(super) fn covers(&self, offset: Offset) -> bool {
        (self.begin..self.end).contains(&offset)
    }
}

/// A log as it can be had somewhere: its begin, its main line's end first among the tips, its incarnations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) begin: Place,
    pub(super) tips: Vec<Place>,
    /// In the order of their incarnations, each once: look-ups are searches, since a log may have thousands.
    pub(super) edges: Vec<Edge>,
    /// What the origin says besides, as it encoded it.
    pub(super) facts: Bytes,
}

impl View {
    pub(super) fn of(info: &LogInfo) -> View {
        let mut tips = vec![info.end];
        tips.extend(&info.fork_tips);
        View { begin: info.begin, tips, edges: edges_of(info), facts: Bytes::new() }
    }

    /// The main line's end.
    pub(super) fn tip(&self) -> Place {
        self.tips.first().copied().unwrap_or(self.begin)
    }

    pub(super) fn edge(&self, incarnation: Incarnation) -> Option<&Edge> {
        edge_in(&self.edges, incarnation)
    }

    /// The main line from the newest incarnation back: each with the offset at which the line leaves it (`None`: the newest).
    /// It ends where the holder jumped: nobody else comes by that way into what is above.
    pub(super) fn main_line(&self) -> Vec<(Edge, Option<Offset>)> {
        let mut line = Vec::new();
        let mut next = self.edge(self.tip().incarnation).copied();
        let mut leave = None;
        while let Some(edge) = next {
            line.push((edge, leave));
            // A hostile view could go round in circles.
            if line.len() > self.edges.len() {
                break;
            }
            let joined = edge.previous.filter(|_| !edge.jumped);
            leave = joined.map(|p| p.offset);
            next = joined.and_then(|p| self.edge(p.incarnation)).copied();
        }
        line
    }

    /// The incarnations by which the holder came to where it jumped into the main line.
    fn below_jumps(&self) -> BTreeSet<Incarnation> {
        let mut below = BTreeSet::new();
        let mut next = self.main_line().last().and_then(|(edge, _)| edge.previous);
        while let Some(edge) = next.and_then(|p| self.edge(p.incarnation)) {
            if !below.insert(edge.incarnation) {
                break;
            }
            next = edge.previous;
        }
        below
    }

    /// Where a copy goes on that nothing of the main line joins.
    pub(super) fn line_begin(&self) -> Place {
        let jumped = self.main_line().last().map(|(edge, _)| *edge).filter(|edge| edge.jumped);
        jumped.map_or(self.begin, |edge| Place { incarnation: edge.incarnation, offset: edge.begin })
    }

    pub(super) fn on_main_line(&self, incarnation: Incarnation) -> bool {
        self.main_line().iter().any(|(e, _)| e.incarnation == incarnation)
    }

    /// Where a copy with these incarnations goes on along this view's main line; `None` when nothing of the line is held
    /// and it cannot be begun from its very first place either.
    pub(super) fn continue_main(&self, own: &[Edge]) -> Option<Place> {
        let line = self.main_line();
        let mut after: Option<Incarnation> = None;
        for (edge, leave) in &line {
            if let Some(held) = edge_in(own, edge.incarnation) {
                return Some(match (after, leave) {
                    // More is held than the line goes on from: the next incarnation's first batch.
                    (Some(next), Some(leave)) if held.end > *leave => Place { incarnation: next, offset: *leave },
                    _ => Place { incarnation: edge.incarnation, offset: held.end },
                });
            }
            if let Some(previous) = edge.previous.filter(|_| !edge.jumped)
                && let Some(before) = edge_in(own, previous.incarnation)
                && (before.begin..=before.end).contains(&previous.offset)
                && edge.begin == previous.offset
            {
                let stands = before.end == previous.offset;
                // Where several incarnations go on from the seam, a holder may take another one than this view does.
                let follows = |e: &&Edge| e.previous == Some(previous);
                let forked = own.iter().any(|e| follows(&e)) || self.edges.iter().filter(follows).count() > 1;
                // Standing exactly at the seam, the own end is a place that every holder knows.
                return Some(if stands && !forked {
                    previous
                } else {
                    Place { incarnation: edge.incarnation, offset: previous.offset }
                });
            }
            after = Some(edge.incarnation);
        }
        let oldest = line.last()?.0;
        (oldest.previous.is_none() && oldest.begin == 0).then_some(Place { incarnation: oldest.incarnation, offset: 0 })
    }

    /// What this view holds of incarnations beside (or above) the main line and the own copy can take next.
    pub(super) fn missing_beside(&self, own: &[Edge]) -> Vec<Place> {
        let line: BTreeMap<Incarnation, Option<Offset>> =
            self.main_line().into_iter().map(|(edge, leave)| (edge.incarnation, leave)).collect();
        let past = self.below_jumps();
        self.edges
            .iter()
            .filter_map(|edge| match line.get(&edge.incarnation).copied() {
                Some(None) => None,
                Some(Some(leave)) if edge.end <= leave => None,
                Some(Some(leave)) => next_of(edge, own).filter(|p| p.offset >= leave),
                // Also where the origin's retention has passed it: it says so when it is asked.
                None => match edge_in(own, edge.incarnation) {
                    Some(held) => {
                        (held.end < edge.end).then_some(Place { offset: held.end, incarnation: edge.incarnation })
                    }
                    // Below what the holder jumped into lies the log's past, which only those want that began there.
                    None if past.contains(&edge.incarnation) => None,
                    None => next_of(edge, own),
                },
            })
            .collect()
    }

    /// What this view holds of any incarnation and the own copy can take next, oldest first.
    pub(super) fn missing_anywhere(&self, own: &[Edge]) -> Vec<Place> {
        self.edges.iter().filter_map(|edge| next_of(edge, own)).collect()
    }
}

/// Looks an incarnation up among edges in order.
pub(super) fn edge_in(edges: &[Edge], incarnation: Incarnation) -> Option<&Edge> {
    let at = edges.binary_search_by_key(&incarnation, |e| e.incarnation).ok()?;
    edges.get(at)
}

/// Looks an incarnation of a copy up.
fn held_in(info: &LogInfo, incarnation: Incarnation) -> Option<&IncarnationInfo> {
    let at = info.incarnations.binary_search_by_key(&incarnation, |i| i.incarnation).ok()?;
    info.incarnations.get(at)
}

/// The next place of an incarnation that a copy lacks and could take now.
fn next_of(edge: &Edge, own: &[Edge]) -> Option<Place> {
    let place = |offset| Place { incarnation: edge.incarnation, offset };
    if let Some(held) = edge_in(own, edge.incarnation) {
        return (held.end < edge.end && held.end >= edge.begin).then(|| place(held.end));
    }
    if edge.end <= edge.begin {
        return None;
    }
    match edge.previous {
        None => (edge.begin == 0).then(|| place(0)),
        // What its first batch names is something else, which the holder does not have.
        Some(_) if edge.jumped => None,
        Some(previous) => {
            let before = edge_in(own, previous.incarnation);
            let joined = before.is_some_and(|e| (e.begin..=e.end).contains(&previous.offset));
            (joined && edge.begin == previous.offset).then(|| place(edge.begin))
        }
    }
}

/// Whether a place in an incarnation that is not held lies below all that is retained: trimmed here, not lost. What is
/// older but reaches higher is a fork's.
pub(super) fn is_forgotten(own: &[Edge], place: Place) -> bool {
    own.first().is_some_and(|oldest| place.incarnation < oldest.incarnation && place.offset <= oldest.begin)
}

pub(super) fn edges_of(info: &LogInfo) -> Vec<Edge> {
    info.incarnations
        .iter()
        .map(|i| Edge {
            incarnation: i.incarnation,
            previous: i.previous,
            jumped: i.jumped,
            begin: i.begin,
            end: i.end,
        })
        .collect()
}

/// How a place lies to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// It can be read, perhaps in a later incarnation into which the copy goes on from it.
    Held,
    /// The next batch appended there will be the one asked for.
    AtEnd,
    /// In a hole, or the copy goes on from it into a hole.
    Hole(Hole),
    /// Not in the copy.
    Outside,
}

/// Where a reader that stands at `place` finds itself: as `LogCopy::locate`, which answers the reads, does.
pub(super) fn locate(info: &LogInfo, place: Place, line: FetchLine) -> Where {
    let mut at = place;
    // Each round goes to a later incarnation.
    for _ in 0..=info.incarnations.len() {
        let Some(own) = held_in(info, at.incarnation) else {
            // An empty copy that was just begun has a place but perhaps no incarnation yet.
            let blank = at.offset == 0 && info.is_blank();
            return if blank || info.end == at { Where::AtEnd } else { Where::Outside };
        };
        if at.offset < own.begin || at.offset > own.end {
            return Where::Outside;
        }
        let next = if line == FetchLine::Main { leaves(info, own.incarnation) } else { None };
        if let Some(next) = next.filter(|n| n.offset == at.offset) {
            at = next;
            continue;
        }
        if at.offset == own.end {
            return Where::AtEnd;
        }
        let hole = info.holes.iter().find(|h| h.contains(at));
        return hole.map_or(Where::Held, |hole| Where::Hole(*hole));
    }
    Where::Outside
}

/// Where the copy's main line goes on from an incarnation.
fn leaves(info: &LogInfo, incarnation: Incarnation) -> Option<Place> {
    let mut after = info.incarnations.last()?;
    while after.incarnation > incarnation {
        let previous = after.previous.filter(|p| p.offset == after.begin && p.incarnation < after.incarnation)?;
        let before = held_in(info, previous.incarnation)?;
        if !(before.begin..=before.end).contains(&previous.offset) {
            return None;
        }
        if before.incarnation == incarnation {
            return Some(Place { incarnation: after.incarnation, offset: after.begin });
        }
        after = before;
    }
    None
}

/// Whether a holder with these tips has the message at `place`, holes of its incarnation aside: whether it lies on the way
/// back from one of them. The way is that of the incarnations of `info`, and of `jumps` (in their order) where the holder
/// came into an incarnation otherwise.
pub(super) fn covers(info: &LogInfo, tips: &[Place], jumps: &[Jump], place: Place) -> bool {
    let jump_into = |incarnation| {
        let at = jumps.binary_search_by_key(&incarnation, |j| j.incarnation).ok()?;
        jumps.get(at)
    };
    tips.iter().any(|tip| {
        let mut at = *tip;
        for _ in 0..=info.incarnations.len() {
            let jump = jump_into(at.incarnation);
            if at.incarnation == place.incarnation {
                return place.offset < at.offset && jump.is_none_or(|j| j.begin <= place.offset);
            }
            let before = match jump {
                Some(jump) => jump.from,
                // Where we jumped ourselves, what our own copy names is no message's way.
                None => held_in(info, at.incarnation).filter(|e| !e.jumped).and_then(|e| e.previous),
            };
            match before {
                Some(previous) => at = previous,
                None => return false,
            }
        }
        false
    })
}

#[cfg(test)]
#[path = "tests/lines.rs"]
mod tests;
