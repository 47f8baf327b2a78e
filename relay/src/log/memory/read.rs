//! Readers' views of a [`State`].

use seaway_federation_proto::{
    copies::{Located, LogCopy, OnLine},
    envelope::{Batch, Chain},
    ids::{LogName, Place},
};

use super::state::State;
use crate::log::{
    ages::Ages,
    contract::{Line, Outside, Read, Retention, Surveyed},
};

impl From<Line> for OnLine {
    fn from(line: Line) -> Self {
        match line {
            Line::Main => OnLine::Main,
            Line::Incarnation => OnLine::Incarnation,
        }
    }
}

pub(super) fn read(state: &State, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Read {
    let Some(copy) = state.copies.get(log) else { return Read::Outside(Outside::NoCopy) };
    let inner = state.inner(log);
    let mut batches: Vec<Batch> = Vec::new();
    let (mut next, mut bytes) = (from, 0_usize);
    loop {
        let answer = match copy.locate(next, line.into()) {
            Located::Held { at, .. } => match inner.containing(at) {
                Some(stored) if !stored.fenced => {
                    if !batches.is_empty() && bytes.saturating_add(stored.batch.len()) > bytes_max {
                        return Read::Batches { batches, next };
                    }
                    bytes = bytes.saturating_add(stored.batch.len());
                    next = stored.batch.end();
                    batches.push(stored.batch.clone());
                    continue;
                }
                Some(stored) => Read::Outside(Outside::Damaged { to: stored.batch.end_offset() }),
                None => Read::Outside(Outside::UnknownIncarnation),
            },
            Located::AtEnd(at) => Read::AtEnd { at, beside: line == Line::Main && copy.is_beside(at) },
            Located::Hole { hole, .. } => Read::Outside(Outside::Hole { hole }),
            Located::Below(begin) => Read::Outside(Outside::Below { begin }),
            Located::Above(end) => Read::Outside(Outside::Above { end }),
            Located::UnknownIncarnation => Read::Outside(Outside::UnknownIncarnation),
        };
        return if batches.is_empty() { answer } else { Read::Batches { batches, next } };
    }
}

/// Calls `each` with the batches of the main line in order until it answers `false`; the place where it stopped.
fn walk(state: &State, log: &LogName, copy: &LogCopy, each: impl FnMut(&super::state::Stored) -> bool) -> Place {
    walk_from(state, log, copy, copy.begin_place(), each)
}

fn walk_from(
    state: &State,
    log: &LogName,
    copy: &LogCopy,
    from: Place,
    mut each: impl FnMut(&super::state::Stored) -> bool,
) -> Place {
    let inner = state.inner(log);
    let mut at = from;
    loop {
        at = match copy.locate(at, OnLine::Main) {
            Located::Held { at: place, until } => match inner.containing(place) {
                Some(stored) if !each(stored) => return stored.batch.begin(),
                Some(stored) => stored.batch.end(),
                None => Place { offset: until, ..place },
            },
            Located::Hole { hole, .. } => Place { incarnation: hole.incarnation, offset: hole.to },
            _ => return at,
        };
    }
}

pub(super) fn find_time(state: &State, log: &LogName, time_us: u64) -> Option<Place> {
    let copy = state.copies.get(log)?;
    Some(walk(state, log, copy, |stored| stored.batch.header().origin_time_us < time_us))
}

pub(super) fn chain_at(state: &State, log: &LogName, place: Place) -> Option<Chain> {
    let copy = state.copies.get(log)?;
    let begins = || {
        let inner = state.inner(log);
        let stored = inner.containing(place)?;
        (stored.batch.begin() == place).then_some(stored.batch.header().chain_before)
    };
    copy.known_chain(place).or_else(begins)
}

pub(super) fn survey(
    state: &State,
    log: &LogName,
    from: Option<Place>,
    visit: &mut dyn FnMut(Surveyed) -> bool,
) -> bool {
    let Some(copy) = state.copies.get(log) else { return false };
    let Some(from) = copy.line_from(from) else { return false };
    walk_from(state, log, copy, from, |stored| {
        let (begin, end, bytes) = (stored.batch.begin(), stored.batch.end(), stored.batch.len() as u64);
        visit(Surveyed { begin, end, bytes, stored_at_us: stored.appended_us })
    });
    true
}

pub(super) fn trim_target(state: &State, log: &LogName, retention: Retention) -> Option<Place> {
    let copy = state.copies.get(log)?;
    let mut bytes = copy.bytes();
    let mut ages = Ages::default();
    let target = walk(state, log, copy, |stored| {
        let (begin, end) = (stored.batch.begin(), stored.batch.end());
        if retention.keep_from.is_some_and(|keep| {
            keep.incarnation < begin.incarnation || (keep.incarnation == begin.incarnation && keep.offset < end.offset)
        }) {
            return false;
        }
        let large = retention.bytes_max.is_some_and(|max| bytes > max);
        let goes = ages.goes_on(&retention, begin, stored.appended_us, large);
        if goes {
            bytes = bytes.saturating_sub(stored.batch.len() as u64);
        }
        goes
    });
    let target = ages.target(target);
    (target != copy.begin_place()).then_some(target)
}
