//! Pending holes: ranges that were held and cannot be read any more. They are fetched from the upstream, which for a site's own
//! logs there is not, then from whoever answers a question; what nobody holds is lost, told to people, and final. Until
//! then a hole of the origin's own holds up everybody who has not passed it. So it is with what an origin lost of its own log
//! together with its disk, where others hold what lies below and what lies above and nobody what lies between.

use std::time::Duration;

use super::{
    Change, Output, Replication,
    lines::Edge,
    logs::FetchKey,
    questions::{Asked, Gap, Offer, jump},
};
use crate::{
    copies::{Hole, HoleKind, LogInfo},
    ids::{Incarnation, LogName, NodeName, Place},
    limits::LOST_RANGE_MAX,
    session::{FetchEnded, NodeKind},
    wire::link::FetchEnd,
};

/// A question about a log's pending holes.
#[derive(Debug, Clone)]
pub(super) struct Seeking {
    since: Duration,
    pub(super) asked: Asked,
    /// When parts of them were last given up.
    gave_up: Option<Duration>,
    /// The holes that it is about.
    holes: Vec<Hole>,
}

/// The log has recorded within this time what was given up, or it is said again.
const STORE_WAIT: Duration = Duration::from_secs(10);

impl Replication {
    /// Since when pending ranges of the copy are sought from others.
    pub(super) fn sought_since(&self, log: &LogName) -> Option<Duration> {
        self.logs.get(log)?.seeking.as_ref().map(|seeking| seeking.since)
    }

    /// Whether a range of the copy is to be fetched again.
    pub(super) fn has_pending_hole(&self, log: &LogName) -> bool {
        self.pending_holes(log).next().is_some()
    }

    fn pending_holes<'a>(&'a self, log: &LogName) -> impl Iterator<Item = &'a Hole> + use<'a> {
        let info = self.logs.get(log).and_then(|s| s.submitted.as_ref());
        info.into_iter().flat_map(|i| &i.holes).filter(|h| h.kind == HoleKind::Pending)
    }

    /// The holes of a log changed.
    pub(super) fn holes_changed(&mut self, log: &LogName) {
        if !self.has_pending_hole(log) {
            self.holed.remove(log);
            if let Some(state) = self.logs.get_mut(log) {
                state.seeking = None;
            }
            return;
        }
        self.holed.insert(log.clone());
        let holes: Vec<Hole> = self.pending_holes(log).copied().collect();
        let now = self.now;
        if let Some(seeking) = self.logs.get_mut(log).and_then(|s| s.seeking.as_mut()) {
            seeking.gave_up = None;
            // About another one nobody was asked.
            let known = |hole: &Hole| {
                let within = |k: &Hole| k.incarnation == hole.incarnation && k.from <= hole.from && hole.to <= k.to;
                seeking.holes.iter().any(within)
            };
            if !holes.iter().all(known) {
                (seeking.since, seeking.asked) = (now, None);
            }
            seeking.holes = holes;
        }
        if self.config.is_origin_of(&log.origin) {
            self.seek(log);
        }
    }

    /// The upstream does not hold what fills a hole: everybody is asked, once; a cache goes on without.
    pub(super) fn hole_not_upstream(&mut self, log: &LogName) {
        if self.config.kind == NodeKind::Edge {
            self.seek(log);
        } else {
            let all = self.pending_holes(log).copied().collect();
            self.give_up_holes(log, all, HoleKind::NotWanted);
            self.holed.remove(log);
        }
    }

    /// Whoever was asked for what fills the hole that ends at `to` does not hold it, or nothing below the place that he names.
    pub(super) fn hole_not_filled(&mut self, log: &LogName, to: Place, holder: Option<&NodeName>, ended: &FetchEnded) {
        let Some(holder) = holder else {
            self.hole_not_upstream(log);
            return self.retry_later(log, None);
        };
        let goes_on = matches!(ended.end, FetchEnd::NotHere | FetchEnd::Lost);
        let above = ended.at.filter(|at| goes_on && at.incarnation == to.incarnation && at.offset < to.offset);
        // Of this hole alone: about another one nothing was said.
        let hole = self.pending_holes(log).find(|h| h.incarnation == to.incarnation && h.to == to.offset).copied();
        if let (Some(hole), Some(state)) = (hole, self.logs.get_mut(log)) {
            let part = Hole { to: above.map_or(hole.to, |at| at.offset), ..hole };
            let of_holder = state.offers.iter_mut().filter(|o| o.holder == *holder);
            of_holder.for_each(|offer| offer.lacks(part));
        }
        // The next one is asked at once; this one is not asked for it again.
        self.evaluate(log);
    }

    /// A holder that was asked for what fills a hole could not give it, or gave what does not fit: others go before it from now on.
    pub(super) fn hole_failed(&mut self, log: &LogName, holder: Option<&NodeName>) {
        let Some(state) = self.logs.get_mut(log) else { return };
        let at = state.offers.iter().position(|o| Some(&o.holder) == holder);
        if let Some(at) = at {
            let offer = state.offers.remove(at);
            state.offers.push(Offer { failed: true, ..offer });
        }
    }

    fn seek(&mut self, log: &LogName) {
        let since = self.now;
        let holes = self.pending_holes(log).copied().collect();
        if let Some(state) = self.logs.get_mut(log) {
            state.seeking.get_or_insert(Seeking { since, asked: None, gave_up: None, holes });
        }
    }

    /// Each interval: holes that nobody can fill are stated as lost.
    pub(super) fn check_holes(&mut self) {
        let open: Vec<LogName> = self.holed.iter().cloned().collect();
        for log in open {
            let Some(state) = self.logs.get(&log) else {
                self.holed.remove(&log);
                continue;
            };
            let Some(seeking) = &state.seeking else {
                let covers = |h: &Hole| {
                    let edge = state.remote.as_ref().and_then(|r| r.edge(h.incarnation));
                    edge.is_some_and(|e| e.begin <= h.from && h.from < e.end)
                };
                // What the upstream says that it does not hold is not even asked for there.
                if state.remote.is_some() && !self.pending_holes(&log).any(covers) {
                    self.hole_not_upstream(&log);
                }
                continue;
            };
            let filling = state.fetches.keys().any(|key| matches!(key, FetchKey::Hole(_)));
            let waited = self.has_waited(seeking.since, seeking.asked);
            let paused = seeking.gave_up.is_some_and(|at| self.now.saturating_sub(at) < STORE_WAIT);
            if !filling && !paused && (waited || self.all_answered(&log.origin, seeking.asked)) {
                let lost = self.lost_parts(&log, waited);
                self.give_up_holes(&log, lost, HoleKind::Lost);
            }
        }
    }

    /// What of the pending holes nobody has, from each one's begin up to where the first offer of it begins. Who offered and
    /// went away is waited for as who did not answer.
    pub(super) fn lost_parts(&self, log: &LogName, waited: bool) -> Vec<Hole> {
        let offers = self.logs.get(log).map(|s| s.offers.as_slice()).unwrap_or_default();
        let counts = |offer: &&Offer| !waited || (!offer.failed && self.routing.towards(&offer.holder).is_some());
        let lost = |hole: &Hole| {
            let first = offers.iter().filter(counts).filter_map(|offer| offer.first_in(hole)).min();
            Hole { to: first.unwrap_or(hole.to), ..*hole }
        };
        self.pending_holes(log).map(lost).filter(|hole| hole.from < hole.to).collect()
    }

    pub(super) fn give_up_holes(&mut self, log: &LogName, parts: Vec<Hole>, kind: HoleKind) {
        if parts.is_empty() {
            return;
        }
        if kind == HoleKind::Lost {
            for hole in &parts {
                let text = format!(
                    "{log}: {} to {} of incarnation {} cannot be read here any more, and is held by no site that can be reached; it is recorded as lost",
                    hole.from, hole.to, hole.incarnation
                );
                self.report_of("range-lost", log, text);
            }
        }
        let rekind =
            |hole: Hole| Change::Rekind { log: log.clone(), hole: Hole { kind, ..hole }, was: HoleKind::Pending };
        self.out.push_back(Output::Store(parts.into_iter().map(rekind).collect()));
        // What is left is sought on; should the log not take this, it is said again.
        let now = self.now;
        if let Some(seeking) = self.logs.get_mut(log).and_then(|s| s.seeking.as_mut()) {
            seeking.gave_up = Some(now);
        }
    }
}

impl Replication {
    /// Sees whether others hold of an own log what lies above a range that was lost here: then it is asked who has the range.
    pub(super) fn notice_parted(&mut self, log: &LogName) {
        let Some(state) = self.logs.get_mut(log) else { return };
        let (None, Some(info)) = (&state.gap, &state.submitted) else { return };
        let Some(resume) = offered_apart(&state.offers, info) else { return };
        state.gap = Some(Gap::new(resume, self.now));
        self.gaps.insert(log.clone());
    }

    /// Each interval, as [`Replication::check_gaps`] does for the logs of others: what nobody has of an own log is lost, and
    /// what lies above it is fetched from those who offered it.
    pub(super) fn check_own_gap(&mut self, log: &LogName, info: &LogInfo, gap: &Gap) {
        let Some(state) = self.logs.get(log) else { return };
        if offered_apart(&state.offers, info).is_none() {
            if let Some(state) = self.logs.get_mut(log) {
                state.gap = None;
            }
            self.gaps.remove(log);
            return self.evaluate(log);
        }
        let reachable = state.offers.iter().filter(|o| self.routing.towards(&o.holder).is_some());
        let Some(resume) = offered_apart(reachable, info) else { return };
        // Who offered and went away is waited for as who did not answer.
        let joins = state.offers.iter().any(|o| !state.missing_anywhere(&o.view).is_empty());
        let lowest = offered_apart(&state.offers, info) == Some(resume);
        let answered = lowest && !joins && self.all_answered(&log.origin, gap.asked);
        let here = |o: &&Offer| self.routing.towards(&o.holder).is_some();
        let joins_here = state.offers.iter().filter(here).any(|o| !state.missing_anywhere(&o.view).is_empty());
        let waited = self.has_waited(gap.since, gap.asked) && !joins_here;
        if !state.fetches.is_empty() || !(answered || waited) {
            return;
        }
        let Some(hole) = state.jump(resume, HoleKind::Lost) else { return };
        let text = format!(
            "{log}: {} to {} of incarnation {} was lost here and is held by no site that can be reached; it is recorded as lost, and what others hold above it is fetched",
            hole.from, hole.to, hole.incarnation
        );
        if hole.to > hole.from {
            self.report_of("range-lost", log, text);
        }
        self.out.push_back(Output::Store(vec![Change::Hole { log: log.clone(), hole }]));
        // Should the log refuse it, everybody is asked anew.
        if let Some(state) = self.logs.get_mut(log) {
            state.gap = Some(Gap::new(resume, self.now));
        }
    }

    /// The origin does not hold a part of a fork: the copy goes on above it. What it lost is lost for good, since it asked
    /// everybody before it told so; what its retention took away may be held elsewhere, which is asked as for any hole.
    pub(super) fn fork_not_here(&mut self, log: &LogName, incarnation: Incarnation, ended: &FetchEnded) {
        let state = self.logs.get(log);
        let info = state.and_then(|s| s.submitted.as_ref());
        let theirs = state.and_then(|s| s.remote.as_ref()).and_then(|r| r.edge(incarnation));
        let hole = info.zip(ended.at.filter(|at| at.incarnation == incarnation));
        let kind = if ended.end == FetchEnd::Lost { HoleKind::Lost } else { HoleKind::Pending };
        let hole = hole.and_then(|(info, at)| jump(info, at, kind));
        let begins = |e: &Edge, h: &Hole| kind == HoleKind::Pending || e.begin <= h.from;
        let Some(hole) = hole.filter(|h| theirs.is_some_and(|e| begins(e, h) && h.to <= e.end)) else {
            return self.retry_later(log, Some("the origin no longer holds a part of a fork".to_owned()));
        };
        if kind == HoleKind::Lost {
            let text = format!(
                "{log}: {} to {} of incarnation {incarnation} was lost by its origin and is held by no site; it is recorded as lost",
                hole.from, hole.to
            );
            self.report_of("range-lost", log, text);
        }
        self.out.push_back(Output::Store(vec![Change::Hole { log: log.clone(), hole }]));
        self.retry_later(log, None);
    }
}

/// Where the lowest part begins that is offered of an own log and does not join what is left of it here.
pub(super) fn offered_apart<'a>(offers: impl IntoIterator<Item = &'a Offer>, info: &LogInfo) -> Option<Place> {
    let held = |incarnation| info.incarnations.iter().find(|i| i.incarnation == incarnation);
    let newest = info.incarnations.last()?.incarnation;
    let part = |e: &Edge| {
        let begin = Place { incarnation: e.incarnation, offset: e.begin };
        if let Some(own) = held(e.incarnation) {
            return (e.begin > own.end).then_some(begin);
        }
        let before = e.previous.filter(|_| !e.jumped).and_then(|p| Some((p, held(p.incarnation)?)));
        match before {
            // What its first batch names was lost too.
            Some((previous, own)) if previous.offset > own.end => Some(previous),
            Some((previous, own)) if (own.begin..=own.end).contains(&previous.offset) && e.begin == previous.offset => {
                None
            }
            // Opened by a jump, which only the newest can be.
            _ => (e.incarnation > newest && e.begin > 0).then_some(begin),
        }
    };
    let edges = offers.into_iter().flat_map(|o| &o.view.edges);
    let edges = edges.filter(|e| e.end > e.begin && !info.forgotten.contains(e.incarnation));
    let believed = |place: &Place| jump(info, *place, HoleKind::Lost).is_some_and(|h| h.to - h.from <= LOST_RANGE_MAX);
    let parts = edges.filter_map(part).filter(believed);
    parts.min_by_key(|p| (p.incarnation, p.offset))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{lines::View, logs::LogState},
        *,
    };
    use crate::copies::IncarnationInfo;

    fn held(begin: u64, end: u64) -> LogInfo {
        let incarnation = Incarnation { counter: 3, random: 7 };
        let at = |offset| Place { incarnation, offset };
        LogInfo {
            begin: at(begin),
            end: at(end),
            fork_tips: Vec::new(),
            incarnations: vec![IncarnationInfo {
                incarnation,
                previous: None,
                jumped: false,
                begin,
                end,
                chain_at_end: None,
            }],
            holes: Vec::new(),
            messages: end - begin,
            bytes: 100,
            newest_origin_time_us: 1,
            forgotten: Default::default(),
        }
    }

    #[test]
    fn in_a_full_list_an_offer_that_helps_takes_the_place_of_one_that_does_not() {
        let mut state = LogState { submitted: Some(held(0, 10)), ..LogState::default() };
        let offer = |site: usize, begin, end| Offer {
            holder: format!("s{site}/edge").parse().unwrap(),
            view: View::of(&held(begin, end)),
            lacks: Vec::new(),
            failed: false,
        };
        for site in 0..40 {
            state.keep_offer(offer(site, 18, 24));
        }
        let full = state.offers.len();
        state.keep_offer(offer(40, 0, 18));
        assert_eq!(state.offers.len(), full);
        assert!(full < 40 && state.offers.iter().any(|o| o.holder.to_string() == "s40/edge"));
    }

    #[test]
    fn what_one_holder_lacks_of_one_hole_says_nothing_of_another() {
        let view = View::of(&held(0, 22));
        let mut offer = Offer { holder: "us/edge".parse().unwrap(), view, lacks: Vec::new(), failed: false };
        let hole =
            |from, to| Hole { incarnation: Incarnation { counter: 3, random: 7 }, from, to, kind: HoleKind::Pending };
        let (low, high) = (hole(5, 10), hole(20, 25));
        assert_eq!((offer.first_in(&low), offer.first_in(&high)), (Some(5), Some(20)));
        offer.lacks(high);
        offer.lacks(hole(7, 9));
        offer.lacks(hole(5, 7));
        assert_eq!((offer.first_in(&low), offer.first_in(&high)), (Some(9), None));
        assert_eq!(offer.first_in(&hole(22, 24)), None, "that is above what it holds");
    }

    #[test]
    fn a_range_too_long_to_have_been_is_not_believed_lost() {
        let apart = |begin| {
            let view = View::of(&held(begin, begin + 5));
            let offer = Offer { holder: "us/edge".parse().unwrap(), view, lacks: Vec::new(), failed: false };
            offered_apart([&offer], &held(0, 10)).map(|place| place.offset)
        };
        assert_eq!(apart(10), None, "it joins");
        assert_eq!(apart(11), Some(11));
        assert_eq!(apart(10 + LOST_RANGE_MAX), Some(10 + LOST_RANGE_MAX));
        assert_eq!(apart(11 + LOST_RANGE_MAX), None);
    }
}
