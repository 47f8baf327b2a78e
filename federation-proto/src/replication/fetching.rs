//! Which fetches feed this node's copies: on which link, from where, on which lane, and what to do when one ends.

use std::{collections::BTreeSet, time::Duration};

use super::{
    LinkId, Output, Replication,
    lines::{Edge, View},
    logs::{FetchKey, LogState, OwnFetch},
    marks::Marked,
};
use crate::{
    copies::{AppendRefusal, Hole, HoleKind},
    ids::{Incarnation, LogName, NodeName, Offset, Place, Site},
    session::{FetchEnded, FetchLine, FetchNumber, FetchOrder, Lane, NodeKind},
    wire::link,
};

/// A fetch that stands no more messages behind its log's end begins on the live lane.
pub(super) const LIVE_LAG_MESSAGES: u64 = 1000;
/// First pause before a fetch that failed is asked again; doubled each time, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before a fetch that failed is asked again.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Most pending holes of one log that are fetched at a time.
const HOLE_FETCHES_MAX: usize = 4;
/// Most forks of one log that are fetched at a time.
const FORK_FETCHES_MAX: usize = 8;

/// Whom a fetch of ours serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FetchOwner {
    /// Our own copy.
    Copy(LogName, FetchKey),
    /// A peer's fetch, read through.
    Pass(LinkId, FetchNumber),
}

/// A fetch that should run.
#[derive(Debug, Clone)]
struct Planned {
    key: FetchKey,
    link: LinkId,
    from: Place,
    line: FetchLine,
    lane: Lane,
    newest: Incarnation,
    until: Option<Offset>,
    towards: Option<NodeName>,
    /// A fetch that runs for this is to be replaced.
    anew: bool,
}

impl Replication {
    /// Whether this node keeps its copy of the log growing.
    pub(super) fn needs(&self, log: &LogName) -> bool {
        self.stopped.is_none() && self.is_wanted(log)
    }

    /// Whether this node would keep its copy of the log growing if it can store anything.
    pub(super) fn is_wanted(&self, log: &LogName) -> bool {
        if self.config.is_origin_of(&log.origin) {
            return false;
        }
        match self.config.kind {
            NodeKind::Edge => self.wants.own_covers(log) && !self.is_refused(log),
            NodeKind::Relay | NodeKind::Other(_) => {
                let upstream = self.routing.upstream(&log.origin);
                let links = self.wants.links_for(&log.origin);
                links.into_iter().any(|l| Some(l) != upstream && self.wants.peer_covers(l, &log.origin, &log.topic))
            }
        }
    }

    /// Whether the copy's end lies past the place where its upstream's main line goes on into a later incarnation: what
    /// was under way before that was announced came after it.
    pub(super) fn has_overshot(&self, log: &LogName) -> bool {
        let Some(state) = self.logs.get(log) else { return false };
        let (Some(remote), Some(end)) = (&state.remote, state.end()) else { return false };
        let leaves = |p: Place| p.incarnation == end.incarnation && p.offset < end.offset;
        remote.tip().incarnation != end.incarnation && remote.edges.iter().any(|e| e.previous.is_some_and(leaves))
    }

    pub(super) fn evaluate_origin(&mut self, origin: &Site) {
        for log in self.logs.names_of_origin(origin) {
            self.evaluate(&log);
        }
    }

    /// Brings the fetches that feed a copy in line with what is wanted, announced, offered and reachable.
    pub(super) fn evaluate(&mut self, log: &LogName) {
        if let Some(resume) = self.cut_off(log) {
            self.resume_above(log, resume);
        }
        if self.config.is_origin_of(&log.origin) {
            self.notice_parted(log);
        }
        let planned = self.plan(log);
        let Some(state) = self.logs.get_mut(log) else { return };
        let tip = state.remote.as_ref().map(|r| r.tip().incarnation);
        let mut stop = Vec::new();
        state.fetches.retain(|key, fetch| {
            let keep = planned.iter().any(|p| p.key == *key && p.link == fetch.link && !p.anew);
            if !keep {
                stop.push((fetch.link, fetch.number));
            } else if let Some(tip) = tip.filter(|_| *key == FetchKey::Main) {
                fetch.newest = tip;
            }
            keep
        });
        let waits = state.retry_at.is_some_and(|at| at > self.now);
        let missing: Vec<Planned> =
            planned.into_iter().filter(|p| !waits && !state.fetches.contains_key(&p.key)).collect();
        for (link, number) in stop {
            self.stop_fetch(link, number);
        }
        for plan in missing {
            self.start_own_fetch(log, plan);
        }
        self.decide_waiting(log);
    }

    /// Where the upstream's main line begins or was jumped into, when nothing of it joins what our copy holds.
    fn cut_off(&self, log: &LogName) -> Option<Place> {
        let state = self.logs.get(log)?;
        let waits = state.gap.is_some() || state.retry_at.is_some_and(|at| at > self.now);
        let waits = waits || self.lacks_what_was_deleted(log);
        if waits || state.submitted.is_none() || !self.needs(log) || self.routing.upstream(&log.origin).is_none() {
            return None;
        }
        let remote = state.remote.as_ref()?;
        remote.continue_main(&state.edges()).is_none().then(|| remote.line_begin())
    }

    fn plan(&self, log: &LogName) -> Vec<Planned> {
        let Some(state) = self.logs.get(log) else { return Vec::new() };
        let own_log = self.config.is_origin_of(&log.origin);
        if state.submitted.is_none() || self.stopped.is_some() || (!own_log && !self.needs(log)) {
            return Vec::new();
        }
        let edges = state.edges();
        let mut planned = Vec::new();
        let upstream = self.routing.upstream(&log.origin);
        if let (Some(link), Some(remote)) = (upstream, &state.remote)
            && !own_log
            && state.gap.is_none()
        {
            if let Some(from) = remote.continue_main(&edges) {
                planned.push(plan_main(state, remote, link, from));
            }
            if state.seeking.is_none() || state.offers.is_empty() {
                let covers = |hole: &Hole| remote.edge(hole.incarnation).is_some_and(|e| e.covers(hole.from));
                planned.extend(plan_holes(state, covers, link, None));
            }
            for from in state.missing_beside(remote).into_iter().take(FORK_FETCHES_MAX) {
                planned.push(Planned {
                    key: FetchKey::Fork(from.incarnation),
                    link,
                    from,
                    line: FetchLine::Incarnation,
                    lane: Lane::Backlog,
                    newest: from.incarnation,
                    until: None,
                    towards: None,
                    anew: false,
                });
            }
        }
        let main_runs = planned.iter().any(|p| p.key == FetchKey::Main);
        if own_log || !main_runs {
            planned.extend(self.plan_offered(log));
        } else if state.seeking.is_some() {
            let offered = self.plan_offered(log);
            planned.extend(offered.into_iter().filter(|p| matches!(p.key, FetchKey::Hole(_))));
        }
        planned
    }

    fn plan_offered(&self, log: &LogName) -> Vec<Planned> {
        let Some(state) = self.logs.get(log) else { return Vec::new() };
        let mut planned: Vec<Planned> = Vec::new();
        for offer in &state.offers {
            let Some(link) = self.routing.towards(&offer.holder) else { continue };
            planned.extend(plan_holes(
                state,
                |hole| offer.first_in(hole) == Some(hole.from),
                link,
                Some(&offer.holder),
            ));
            for from in state.missing_anywhere(&offer.view) {
                let key = FetchKey::Offered(from.incarnation);
                if planned.len() >= FORK_FETCHES_MAX || planned.iter().any(|p| p.key == key) {
                    continue;
                }
                planned.push(Planned {
                    key,
                    link,
                    from,
                    line: FetchLine::Incarnation,
                    lane: Lane::Backlog,
                    newest: from.incarnation,
                    until: None,
                    towards: Some(offer.holder.clone()),
                    anew: false,
                });
            }
        }
        let mut seen = BTreeSet::new();
        planned.retain(|p| seen.insert(p.key));
        planned
    }

    fn start_own_fetch(&mut self, log: &LogName, plan: Planned) {
        let owner = FetchOwner::Copy(log.clone(), plan.key);
        let Some(number) = self.next_fetch(plan.link, owner) else {
            return self.retry_later(log, Some("the neighbour lets no more fetches be open at once".to_owned()));
        };
        let order = FetchOrder {
            number,
            lane: plan.lane,
            log: log.clone(),
            from: plan.from,
            line: plan.line,
            passing: false,
            hops: self.config.hops,
            allowance: 0,
            until: plan.until,
            no_wait: plan.towards.is_some() || plan.until.is_some(),
            towards: plan.towards.clone(),
        };
        let now = self.now;
        if let Some(state) = self.logs.get_mut(log) {
            let fetch = OwnFetch {
                link: plan.link,
                number,
                lane: plan.lane,
                from: plan.from,
                towards: plan.towards.clone(),
                newest: plan.newest,
                had: state.edges().iter().map(|e| e.incarnation).collect(),
            };
            let fills = matches!(plan.key, FetchKey::Hole(_));
            state.fetches.insert(plan.key, fetch);
            if state.failures == 0 && !fills {
                state.moved_at = now;
            }
        }
        self.out.push_back(Output::StartFetch(plan.link, order));
    }

    /// The next number on a link, owned; `None` where the peer allows no more fetches. What was stopped counts there until
    /// its end is sent, hence the eighth that is left free.
    pub(super) fn next_fetch(&mut self, link: LinkId, owner: FetchOwner) -> Option<FetchNumber> {
        let state = self.links.get_mut(&link)?;
        let most = state.peer.fetches_max - state.peer.fetches_max / 8;
        if state.open_fetches >= most {
            let peer = state.peer.node.clone();
            let text = format!("{peer} lets {most} fetches be open at once, and more logs are wanted through it");
            self.count("too-many-fetches");
            self.report_of("too-many-fetches", peer, text);
            return None;
        }
        state.open_fetches += 1;
        state.next_fetch += 1;
        let number = state.next_fetch;
        self.fetches.insert((link, number), owner);
        Some(number)
    }

    fn forget_fetch(&mut self, link: LinkId, number: FetchNumber) -> Option<FetchOwner> {
        let owner = self.fetches.remove(&(link, number))?;
        if let Some(link) = self.links.get_mut(&link) {
            link.open_fetches = link.open_fetches.saturating_sub(1);
        }
        Some(owner)
    }

    pub(super) fn stop_fetch(&mut self, link: LinkId, number: FetchNumber) {
        if self.forget_fetch(link, number).is_some() && self.links.contains_key(&link) {
            self.out.push_back(Output::StopFetch(link, number));
        }
    }

    pub(super) fn fetch_ended(&mut self, link: LinkId, ended: FetchEnded) {
        match self.forget_fetch(link, ended.number) {
            None => {}
            Some(FetchOwner::Pass(asker_link, asker)) => self.pass_ended((asker_link, asker), &ended),
            Some(FetchOwner::Copy(log, key)) => self.own_fetch_ended(&log, key, &ended),
        }
    }

    fn own_fetch_ended(&mut self, log: &LogName, key: FetchKey, ended: &FetchEnded) {
        let Some(state) = self.logs.get_mut(log) else { return };
        let holder = state.fetches.remove(&key).and_then(|f| f.towards);
        match (key, ended.end) {
            (
                FetchKey::Offered(incarnation),
                link::FetchEnd::AtEnd
                | link::FetchEnd::Done
                | link::FetchEnd::NotHere
                | link::FetchEnd::Lost
                | link::FetchEnd::UnknownPlace,
            ) => {
                let goes_on = matches!(ended.end, link::FetchEnd::Lost | link::FetchEnd::NotHere);
                let above = ended.at.filter(|_| goes_on);
                self.offer_used(log, incarnation, holder.as_ref(), above);
            }
            (FetchKey::Hole(_), link::FetchEnd::Done) => self.evaluate(log),
            (
                FetchKey::Hole(to),
                link::FetchEnd::AtEnd | link::FetchEnd::NotHere | link::FetchEnd::Lost | link::FetchEnd::UnknownPlace,
            ) => self.hole_not_filled(log, to, holder.as_ref(), ended),
            (_, link::FetchEnd::Done | link::FetchEnd::AtEnd | link::FetchEnd::Stopped) => self.retry_later(log, None),
            (FetchKey::Main, link::FetchEnd::NotHere | link::FetchEnd::Lost) => self.not_here(log, ended),
            (FetchKey::Fork(incarnation), link::FetchEnd::Lost | link::FetchEnd::NotHere) => {
                self.fork_not_here(log, incarnation, ended);
            }
            (FetchKey::Main, link::FetchEnd::UnknownPlace) if ended.at.is_none() => self.none_there(log, &ended.text),
            (_, end) => {
                if matches!(key, FetchKey::Hole(_)) {
                    self.hole_failed(log, holder.as_ref());
                }
                let by = if ended.answered_by.is_empty() { "the next node" } else { ended.answered_by.as_str() };
                let text = format!("{by} answered {}: {}", end.as_str_name(), ended.text);
                self.retry_later(log, Some(text));
            }
        }
    }

    /// The origin has no such log. It is asked again all the same, since it may have one by now.
    fn none_there(&mut self, log: &LogName, text: &str) {
        let Some(state) = self.logs.get_mut(log) else { return };
        let known = std::mem::replace(&mut state.none_there, true);
        if state.is_as_blank_as_there() {
            state.marked = Marked::default();
            self.none_to_tell |= !known;
        }
        self.retry_later(log, Some(text.to_owned()));
        self.decide_waiting(log);
    }

    /// The log refused a batch; the fetch was stopped by the shell.
    pub(super) fn batch_refused(&mut self, link: LinkId, number: FetchNumber, refusal: &AppendRefusal) {
        let Some(FetchOwner::Copy(log, key)) = self.forget_fetch(link, number) else { return };
        let lasting = !matches!(refusal, AppendRefusal::Repeat(_) | AppendRefusal::Gap { .. });
        if let Some(state) = self.logs.get_mut(&log) {
            let holder = state.fetches.remove(&key).and_then(|fetch| fetch.towards);
            state.refuses |= lasting;
            if matches!(key, FetchKey::Hole(_)) {
                self.hole_failed(&log, holder.as_ref());
            }
        }
        match refusal {
            AppendRefusal::Repeat(_) | AppendRefusal::Gap { .. } => {}
            AppendRefusal::BrokenChain { .. } => {
                self.report_of(
                    "broken-chain",
                    &log,
                    format!("log {log}: {refusal}; compare the sites with `seaway log verify`"),
                );
            }
            AppendRefusal::NotFollowing { .. } | AppendRefusal::Overlap(_) => {
                self.report_of("not-following", &log, format!("log {log}: {refusal}; it is asked for again"));
            }
        }
        self.retry_later(&log, Some(refusal.to_string()));
        if lasting {
            self.decide_waiting(&log);
        }
    }

    /// Asks again after a pause that grows while the copy does not.
    pub(super) fn retry_later(&mut self, log: &LogName, trouble: Option<String>) {
        let now = self.now;
        let Some(state) = self.logs.get_mut(log) else { return };
        state.failures = state.failures.saturating_add(1);
        let factor = 1u32.checked_shl(state.failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let at = now.saturating_add(RETRY_FIRST.saturating_mul(factor).min(RETRY_MAX));
        state.retry_at = Some(at);
        if trouble.is_some() {
            state.trouble = trouble;
        }
        self.retries.insert((at, log.clone()));
    }

    pub(super) fn due_retries(&mut self) {
        while let Some((at, _)) = self.retries.first() {
            if *at > self.now {
                return;
            }
            let Some((at, log)) = self.retries.pop_first() else { return };
            if let Some(state) = self.logs.get_mut(&log)
                && state.retry_at == Some(at)
            {
                state.retry_at = None;
                // A copy that could not be begun before.
                self.begin_if_wanted(&log);
                self.evaluate(&log);
            }
        }
    }

    /// The way to an origin is another one: what failed on the old one is tried at once.
    pub(super) fn retry_now(&mut self, origin: &Site) {
        for log in self.logs.names_of_origin(origin) {
            if let Some(state) = self.logs.get_mut(&log) {
                state.retry_at = None;
                state.failures = 0;
            }
        }
    }

    /// A link is gone, and its fetches with it.
    pub(super) fn fetches_link_down(&mut self, link: LinkId) {
        let lost: Vec<_> = self.fetches.range((link, 0)..=(link, u64::MAX)).map(|(k, v)| (*k, v.clone())).collect();
        for (key, owner) in lost {
            self.forget_fetch(key.0, key.1);
            match owner {
                FetchOwner::Copy(log, which) => {
                    if let Some(state) = self.logs.get_mut(&log) {
                        state.fetches.remove(&which);
                        self.unfed.push(log);
                    }
                }
                FetchOwner::Pass(asker_link, asker) => self.pass_lost((asker_link, asker)),
            }
        }
    }
}

fn plan_main(state: &LogState, remote: &View, link: LinkId, from: Place) -> Planned {
    let tip = remote.tip();
    let lane = if tip.offset.saturating_sub(from.offset) <= LIVE_LAG_MESSAGES { Lane::Live } else { Lane::Backlog };
    let anew = state.fetches.get(&FetchKey::Main).is_some_and(|f| has_left_line(f, &state.edges(), remote, from));
    let newest = tip.incarnation;
    Planned { key: FetchKey::Main, link, from, line: FetchLine::Main, lane, newest, until: None, towards: None, anew }
}

/// Whether the running main fetch no longer follows the upstream's main line, on which `from` is our next place. It runs
/// on by itself as long as the line that its sender last followed is part of it.
fn has_left_line(fetch: &OwnFetch, own: &[Edge], remote: &View, from: Place) -> bool {
    if !remote.on_main_line(fetch.newest) {
        return true;
    }
    // Our copy holds more than the line goes on from: a fetch begun below may stand past the seam, where nothing follows.
    let overshot = remote.main_line().iter().any(|(edge, leave)| {
        fetch.from.incarnation <= edge.incarnation
            && leave.is_some_and(|leave| own.iter().any(|o| o.incarnation == edge.incarnation && o.end > leave))
    });
    // The fetch may have run on into an incarnation that is a fork now. One that was not announced yet is the sender's newest.
    let ran_on = own.iter().any(|e| {
        e.previous == Some(from)
            && !fetch.had.contains(&e.incarnation)
            && remote.edge(e.incarnation).is_some()
            && !remote.on_main_line(e.incarnation)
    });
    // The next place is in an incarnation that is named because several go on from the seam.
    let named = own.iter().all(|e| e.incarnation != from.incarnation) && fetch.from != from;
    overshot || ran_on || named
}

/// Pending holes of our copy whose first place somebody holds.
fn plan_holes(
    state: &LogState,
    covers: impl Fn(&Hole) -> bool,
    link: LinkId,
    holder: Option<&NodeName>,
) -> Vec<Planned> {
    let Some(info) = &state.submitted else { return Vec::new() };
    info.holes
        .iter()
        .filter(|h| h.kind == HoleKind::Pending)
        .filter(|h| covers(h))
        .take(HOLE_FETCHES_MAX)
        .map(|h| {
            let from = Place { incarnation: h.incarnation, offset: h.from };
            Planned {
                key: FetchKey::Hole(Place { offset: h.to, ..from }),
                link,
                from,
                line: FetchLine::Incarnation,
                lane: Lane::Backlog,
                newest: h.incarnation,
                until: Some(h.to),
                towards: holder.cloned(),
                anew: false,
            }
        })
        .collect()
}
