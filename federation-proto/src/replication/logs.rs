//! What is known of each log: the own copy, what the upstream announced, what others offered, the fetches that feed it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use super::{
    LinkId,
    holes::Seeking,
    lines::{self, Edge, View},
    marks::Marked,
    questions::{Gap, Offer, jump},
};
use crate::{
    copies::{Hole, HoleKind, LogInfo},
    ids::{Incarnation, LogName, NodeName, Pattern, Place, Site},
    session::{FetchNumber, Lane},
};

/// Logs looked at in a tick for whether anything is left of them; a whole table of 200,000 takes some minutes.
pub(super) const IDLE_LOOKS: usize = 1024;

/// Which of a log's fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FetchKey {
    /// Along the upstream's main line.
    Main,
    /// A fork's incarnation, from the upstream.
    Fork(Incarnation),
    /// An incarnation from a named holder that answered a question.
    Offered(Incarnation),
    /// A pending hole, named by its upper edge, which stays while it is filled.
    Hole(Place),
}

/// A fetch of ours that fills our copy.
#[derive(Debug, Clone)]
pub(super) struct OwnFetch {
    pub(super) link: LinkId,
    pub(super) number: FetchNumber,
    pub(super) lane: Lane,
    /// Where it was begun.
    pub(super) from: Place,
    /// The holder that it was sent to, if it was not the origin.
    pub(super) towards: Option<NodeName>,
    /// The newest incarnation of the line that its sender follows, as last announced.
    pub(super) newest: Incarnation,
    /// The incarnations of our copy when it was begun.
    pub(super) had: Vec<Incarnation>,
}

#[derive(Debug, Default)]
pub(super) struct LogState {
    pub(super) submitted: Option<LogInfo>,
    pub(super) durable: Option<LogInfo>,
    pub(super) remote: Option<View>,
    pub(super) offers: Vec<Offer>,
    /// Of an own log: the incarnations that were there when the process began; nothing of ours is appended to them.
    pub(super) at_start: Vec<Incarnation>,
    /// It was reported that this own log lost what other sites hold.
    pub(super) went_back: bool,
    /// A copy was asked to be begun; it is not there yet.
    pub(super) beginning: bool,
    /// Where: kept until it is there, so that what could not be stored is asked for again as it was meant.
    pub(super) begins: Option<Place>,
    /// Peers' fetches that wait for the copy to begin, or to go on from a place where its main fetch stands too.
    pub(super) waiting: Vec<((LinkId, FetchNumber), Place)>,
    /// Peers' fetches that are read through.
    pub(super) passes: BTreeSet<(LinkId, FetchNumber)>,
    pub(super) fetches: BTreeMap<FetchKey, OwnFetch>,
    /// Attempts since the copy last grew.
    pub(super) failures: u32,
    pub(super) retry_at: Option<Duration>,
    /// When the copy last grew, or was first fetched for after that.
    pub(super) moved_at: Duration,
    /// When its pending holes last shrank, or began to be there.
    pub(super) filled_at: Duration,
    /// Why nothing comes, as far as it is known.
    pub(super) trouble: Option<String>,
    /// The log refused what comes next, and will again.
    pub(super) refuses: bool,
    /// The origin said that it has no such log: it lost it before anything of it came here.
    pub(super) none_there: bool,
    pub(super) gap: Option<Gap>,
    /// The last one, and where the copy ended: while it does, how long was waited counts on.
    pub(super) gap_before: Option<(Place, Gap)>,
    /// The question about its pending holes.
    pub(super) seeking: Option<Seeking>,
    pub(super) marked: Marked,
    /// Below this the origin found the copy equal to its own by the chain value.
    pub(super) proven: Option<Place>,
    /// Below this it found it to differ.
    pub(super) differs: Option<Place>,
}

impl LogState {
    pub(super) fn edges(&self) -> Vec<Edge> {
        self.submitted.as_ref().map(lines::edges_of).unwrap_or_default()
    }

    /// Whether the copy may not take this again: it was retained once, and is not any more.
    fn is_forgotten(&self, place: &Place) -> bool {
        self.submitted.as_ref().is_some_and(|i| i.forgotten.contains(place.incarnation))
    }

    /// [`View::missing_beside`], of what the copy can take.
    pub(super) fn missing_beside(&self, view: &View) -> Vec<Place> {
        let mut missing = view.missing_beside(&self.edges());
        missing.retain(|place| !self.is_forgotten(place));
        missing
    }

    /// [`View::missing_anywhere`], of what the copy can take.
    pub(super) fn missing_anywhere(&self, view: &View) -> Vec<Place> {
        let mut missing = view.missing_anywhere(&self.edges());
        missing.retain(|place| !self.is_forgotten(place));
        missing
    }

    /// The hole after which the copy goes on at `resume`. Its incarnation is left where that of `resume` went on from it, if
    /// somebody told: what the copy holds above that is a fork's, and not what stands at those offsets of the other.
    pub(super) fn jump(&self, resume: Place, kind: HoleKind) -> Option<Hole> {
        let info = self.submitted.as_ref()?;
        let hole = jump(info, resume, kind)?;
        let newest = info.incarnations.last()?;
        let opens = info.incarnations.iter().all(|i| i.incarnation != resume.incarnation);
        let views = self.remote.iter().chain(self.offers.iter().map(|o| &o.view));
        let named = views.filter_map(|v| v.edge(resume.incarnation)).filter(|e| !e.jumped).find_map(|e| e.previous);
        let left = named.filter(|p| opens && p.incarnation == newest.incarnation && newest.begin <= p.offset);
        Some(Hole { from: left.map_or(hole.from, |p| p.offset.min(hole.from)), ..hole })
    }

    /// Whether there is nothing that the copy could lack: nothing came, and the origin has nothing either.
    pub(super) fn is_as_blank_as_there(&self) -> bool {
        self.none_there && self.submitted.as_ref().is_some_and(LogInfo::is_blank)
    }

    /// How many messages its pending holes lack.
    pub(super) fn pending(info: Option<&LogInfo>) -> u64 {
        let pending = info.iter().flat_map(|info| &info.holes).filter(|hole| hole.kind == HoleKind::Pending);
        pending.fold(0, |sum, hole| sum.saturating_add(hole.to.saturating_sub(hole.from)))
    }

    pub(super) fn end(&self) -> Option<Place> {
        self.submitted.as_ref().map(|i| i.end)
    }

    /// Whether there is nothing left of the log here: no copy, nobody who has it, nothing that is waited for.
    fn is_idle(&self) -> bool {
        let held = self.submitted.is_some() || self.durable.is_some() || self.beginning;
        let known = self.remote.is_some() || !self.offers.is_empty() || self.gap.is_some();
        !held && !known && self.waiting.is_empty() && self.passes.is_empty() && self.fetches.is_empty()
    }
}

/// All logs, by origin.
#[derive(Debug, Default)]
pub(super) struct Logs {
    by_origin: BTreeMap<Site, BTreeMap<LogName, LogState>>,
    count: usize,
    /// Up to where the last [`Logs::forget_idle`] looked.
    looked_at: Option<LogName>,
}

impl Logs {
    pub(super) fn get(&self, log: &LogName) -> Option<&LogState> {
        self.by_origin.get(&log.origin)?.get(log)
    }

    pub(super) fn get_mut(&mut self, log: &LogName) -> Option<&mut LogState> {
        self.by_origin.get_mut(&log.origin)?.get_mut(log)
    }

    /// The state of a log that others speak of, made if there is room for one more. One origin may have half of the table, so
    /// that one which invents names leaves room for all others.
    pub(super) fn entry(&mut self, log: &LogName, max: usize) -> Option<&mut LogState> {
        let of_origin = self.by_origin.get(&log.origin).map_or(0, BTreeMap::len);
        if of_origin >= max.div_ceil(2) && self.get(log).is_none() {
            return None;
        }
        self.entry_held(log, max)
    }

    /// The state of a log that is held here, made if there is any room.
    pub(super) fn entry_held(&mut self, log: &LogName, max: usize) -> Option<&mut LogState> {
        if self.get(log).is_none() {
            if self.count >= max {
                return None;
            }
            self.count += 1;
            self.by_origin.entry(log.origin.clone()).or_default().insert(log.clone(), LogState::default());
        }
        self.get_mut(log)
    }

    /// Logs known.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Looks at so many logs, beginning where it stopped last, and forgets those of which nothing is left. What still names
    /// them (a mark under way, a peer's fetch) meets an unknown log, as it would have at first.
    pub(super) fn forget_idle(&mut self, looks: usize) {
        let after = self.looked_at.take();
        let rest = after.as_ref().and_then(|after| {
            Some(self.by_origin.get(&after.origin)?.range((Bound::Excluded(after.clone()), Bound::Unbounded)))
        });
        let origin = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(after.origin.clone()));
        let others = self.by_origin.range((origin, Bound::Unbounded)).flat_map(|(_, logs)| logs);
        let looked: Vec<(&LogName, &LogState)> = rest.into_iter().flatten().chain(others).take(looks).collect();
        let last = looked.last().filter(|_| looked.len() == looks).map(|(name, _)| (*name).clone());
        let idle: Vec<LogName> =
            looked.into_iter().filter(|(_, state)| state.is_idle()).map(|(name, _)| name.clone()).collect();
        for log in idle {
            let Some(of_origin) = self.by_origin.get_mut(&log.origin) else { continue };
            if of_origin.remove(&log).is_some() {
                self.count -= 1;
            }
            if of_origin.is_empty() {
                self.by_origin.remove(&log.origin);
            }
        }
        self.looked_at = last;
    }

    pub(super) fn origins(&self) -> Vec<Site> {
        self.by_origin.keys().cloned().collect()
    }

    pub(super) fn of_origin(&self, origin: &Site) -> impl Iterator<Item = (&LogName, &LogState)> {
        self.by_origin.get(origin).into_iter().flatten()
    }

    /// Those after a name, in order of names.
    pub(super) fn of_origin_after<'a>(
        &'a self,
        origin: &Site,
        after: Option<&LogName>,
    ) -> impl Iterator<Item = (&'a LogName, &'a LogState)> + use<'a> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
        self.by_origin.get(origin).into_iter().flat_map(move |logs| logs.range((from.clone(), Bound::Unbounded)))
    }

    /// An origin's logs, control queues first.
    pub(super) fn names_of_origin(&self, origin: &Site) -> Vec<LogName> {
        let mut names: Vec<LogName> = self.of_origin(origin).map(|(n, _)| n.clone()).collect();
        names.sort_by_key(|n| n.queue.0 != 0);
        names
    }

    /// Those that a pattern touches.
    pub(super) fn names_of(&self, origin: &Site, pattern: &Pattern) -> Vec<LogName> {
        let mut names = self.names_of_origin(origin);
        names.retain(|n| pattern.touches(&n.topic));
        names
    }
}
