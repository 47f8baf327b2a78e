//! Questions: who holds more of these logs? Asked by an origin about its own logs after each start, and by a holder whose
//! origin answered "not here"; answered by whoever holds more, who is then fetched from. Nothing is called lost while
//! somebody who may hold it was not reached.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    Change, LinkId, Output, Replication,
    announce::announcement,
    carried::{self, FloodKey, Head, Kind, To},
    holes::offered_apart,
    lines::View,
};
use crate::{
    copies::{Hole, HoleKind, LogInfo},
    ids::{Incarnation, LogName, NodeName, Offset, Pattern, Place, Site, Start},
    session::{FetchEnded, NodeKind},
    wire::{self, link},
};

/// Questions remembered, so that each is passed on once and answers find their way back.
const REMEMBERED_MAX: usize = 4096;
/// An origin asks about its own logs at most this often.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// Mark intervals that an origin without a log waits for answers before it begins with what was offered.
const REGAIN_TICKS: u32 = 2;
/// However many answers came, a range is not called lost before so much time passed since the question: nodes of which
/// nothing was heard yet, just after a start, get their say.
pub(super) const ANSWERS_WAIT: Duration = Duration::from_secs(5);
/// Those with gaps ask again after this long: a question or an answer may have been lost with a link.
const GAP_ASK_AGAIN: Duration = Duration::from_secs(30);
/// Holders remembered for one log.
const OFFERS_MAX: usize = 16;

/// Parts of holes remembered for each that its holder does not have.
const LACKS_MAX: usize = 1024;

/// What a node that answered a question holds.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) holder: NodeName,
    pub(super) view: View,
    /// What of pending holes it was asked for and does not hold, though it lies within what it holds.
    pub(super) lacks: Vec<Hole>,
    /// What was asked of it last could not be had, though it may hold it.
    pub(super) failed: bool,
}

impl Offer {
    /// The first place of a hole at which it may hold something, as far as is known.
    pub(super) fn first_in(&self, hole: &Hole) -> Option<Offset> {
        let edge = self.view.edge(hole.incarnation)?;
        let (mut at, end) = (edge.begin.max(hole.from), edge.end.min(hole.to));
        // In any order: each round goes past one of them.
        for _ in 0..=self.lacks.len() {
            let place = Place { incarnation: hole.incarnation, offset: at };
            match self.lacks.iter().find(|lack| lack.contains(place)) {
                Some(lack) => at = lack.to,
                None => break,
            }
        }
        (at < end).then_some(at)
    }

    /// It does not hold the first part of a hole.
    pub(super) fn lacks(&mut self, part: Hole) {
        let before = self.lacks.iter_mut().find(|lack| lack.incarnation == part.incarnation && lack.to == part.from);
        if let Some(before) = before {
            before.to = part.to;
            return;
        }
        if self.lacks.len() >= LACKS_MAX {
            // It is asked for that again, if nobody else has it.
            self.lacks.remove(0);
        }
        self.lacks.push(part);
    }
}

/// A range that the origin no longer has and this copy never got; of an own log: what this origin lost, and others hold more
/// above it.
#[derive(Debug, Clone)]
pub(super) struct Gap {
    /// Where the origin goes on.
    pub(super) resume: Place,
    pub(super) since: Duration,
    pub(super) asked: Asked,
}

/// The question about something and when it was asked; `None`: to be asked with the next interval.
pub(super) type Asked = Option<(u64, Duration)>;

impl Gap {
    pub(super) fn new(resume: Place, since: Duration) -> Self {
        Self { resume, since, asked: None }
    }

    pub(super) fn words(&self, log: &LogName) -> String {
        format!("{log} is no longer held by its origin below {}; other sites are being asked", self.resume)
    }
}

/// What one node may flood at once, and how much more in each second: little enough that no node can keep the others busy with
/// answers. Nodes that nobody knows share what one has. Whoever asks keeps to it.
const FLOODED_AT_ONCE_MAX: u32 = 256;
const FLOODED_PER_SECOND_MAX: u32 = 8;
/// What is asked about logs of others leaves so much for the questions about a node's own, which its publishing waits for; it also
/// covers the difference between two clocks.
const KEPT_FOR_OWN: u32 = 64;
/// Nodes of which it is remembered how much they flooded; past it those that have been silent are forgotten.
const FLOODERS_MAX: usize = 4096;

/// What a node may still flood.
#[derive(Debug, Clone, Copy)]
struct Share {
    left: u32,
    at: Duration,
}

impl Share {
    fn refill(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.at).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(FLOODED_PER_SECOND_MAX);
            self.left = self.left.saturating_add(more).min(FLOODED_AT_ONCE_MAX);
            self.at = self.at.saturating_add(Duration::from_secs(seconds));
        }
    }
}

/// All that concerns questions.
#[derive(Debug, Default)]
pub(super) struct Questions {
    sequence: u64,
    /// What was flooded, and the link that it came on first.
    seen: BTreeMap<FloodKey, LinkId>,
    order: VecDeque<FloodKey>,
    /// Who answered which question of ours.
    pub(super) answered: BTreeMap<u64, BTreeSet<NodeName>>,
    ask_at: Option<Duration>,
    asked_at: Option<Duration>,
    /// What each node may still flood.
    shares: BTreeMap<Option<NodeName>, Share>,
    /// What this one may still.
    own_share: Option<Share>,
}

impl Questions {
    /// Whether something flooded comes for the first time; then it is remembered, with the link that it came on.
    pub(super) fn first_time(&mut self, key: FloodKey, from: LinkId) -> bool {
        if self.seen.contains_key(&key) {
            return false;
        }
        self.seen.insert(key.clone(), from);
        self.order.push_back(key);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// Takes one from what a node (`None`: one that is not known) may flood; false when there is nothing left.
    pub(super) fn may_ask(&mut self, asker: Option<&NodeName>, now: Duration) -> bool {
        if self.shares.len() >= FLOODERS_MAX {
            self.shares.retain(|_, share| {
                share.refill(now);
                share.left < FLOODED_AT_ONCE_MAX
            });
        }
        let full = Share { left: FLOODED_AT_ONCE_MAX, at: now };
        let share = self.shares.entry(asker.cloned()).or_insert(full);
        share.refill(now);
        let may = share.left > 0;
        share.left = share.left.saturating_sub(1);
        may
    }

    /// What this node may still ask before others take no more of it.
    fn own_share(&mut self, now: Duration) -> &mut Share {
        let share = self.own_share.get_or_insert(Share { left: FLOODED_AT_ONCE_MAX, at: now });
        share.refill(now);
        share
    }

    /// The number of something that this node is about to flood, if it may now: enough is left for what it must ask.
    pub(super) fn next_flooded(&mut self, now: Duration) -> Option<u64> {
        let share = self.own_share(now);
        if share.left <= KEPT_FOR_OWN {
            return None;
        }
        share.left -= 1;
        self.sequence += 1;
        Some(self.sequence)
    }

    /// The link that something flooded came on.
    pub(super) fn came_from(&self, key: &FloodKey) -> Option<LinkId> {
        self.seen.get(key).copied()
    }
}

impl super::logs::LogState {
    /// In a full list, one that helps takes the place of one that does not.
    pub(super) fn keep_offer(&mut self, offer: Offer) {
        if self.offers.len() < OFFERS_MAX {
            return self.offers.push(offer);
        }
        if !self.helps(&offer) {
            return;
        }
        let useless = self.offers.iter().position(|o| !self.helps(o));
        match useless.and_then(|at| self.offers.get_mut(at)) {
            Some(other) => *other = offer,
            // It counts as an answer only when it is given again and there is room for it.
            None => self.ask_again(),
        }
    }

    /// Whether a holder has what can be taken here, or lies in a pending hole.
    fn helps(&self, offer: &Offer) -> bool {
        let mut holes = self.submitted.iter().flat_map(|i| &i.holes).filter(|h| h.kind == HoleKind::Pending);
        holes.any(|h| offer.first_in(h).is_some()) || !self.missing_anywhere(&offer.view).is_empty()
    }

    /// What is sought of the log is asked for anew.
    fn ask_again(&mut self) {
        if let Some(gap) = &mut self.gap {
            gap.asked = None;
        }
        if let Some(seeking) = &mut self.seeking {
            seeking.asked = None;
        }
    }

    /// The upstream announced anew: a gap is looked at again with the next answer.
    pub(super) fn gap_answered(&mut self) {
        if let (Some(gap), Some(remote)) = (&self.gap, &self.remote)
            && remote.line_begin().offset < gap.resume.offset
        {
            // Should nothing have changed for this copy, its question goes on.
            self.gap_before = self.submitted.as_ref().map(|info| info.end).zip(self.gap.take());
        }
    }
}

impl Replication {
    /// Asks all sites about this origin's own logs, now or as soon as the rate allows.
    pub(super) fn ask_about_own(&mut self) {
        if self.config.kind != NodeKind::Edge {
            return;
        }
        let earliest = self.questions.asked_at.map_or(self.now, |at| at.saturating_add(ASK_INTERVAL));
        self.questions.ask_at = Some(self.questions.ask_at.unwrap_or(earliest).max(earliest).max(self.now));
        self.due_questions();
    }

    pub(super) fn due_questions(&mut self) {
        if self.questions.ask_at.is_none_or(|at| at > self.now) || self.links.is_empty() {
            return;
        }
        self.questions.ask_at = None;
        self.questions.asked_at = Some(self.now);
        let me = self.config.node.site.clone();
        let known: Vec<link::HeldLog> =
            self.logs.of_origin(&me).filter_map(|(log, s)| known(log, s.submitted.as_ref())).collect();
        let everything = vec!["#".to_owned()];
        if known.is_empty() {
            self.ask(&me, Vec::new(), everything);
            return;
        }
        let mut parts = carried::parts(known);
        match (parts.len(), parts.pop()) {
            (1, Some(all)) => drop(self.ask(&me, all, everything)),
            (_, Some(last)) => {
                parts.push(last);
                for part in parts {
                    self.ask(&me, part, Vec::new());
                }
                self.ask(&me, Vec::new(), everything);
            }
            (_, None) => {}
        }
    }

    pub(super) fn next_question(&self) -> Option<Duration> {
        self.questions.ask_at.filter(|_| !self.links.is_empty())
    }

    /// A site can be reached that could not before: an origin asks again, so do those with gaps.
    pub(super) fn site_appeared(&mut self) {
        self.ask_about_own();
        for log in self.open_questions() {
            if let Some(state) = self.logs.get_mut(&log) {
                state.ask_again();
            }
        }
    }

    fn ask(&mut self, origin: &Site, known: Vec<link::HeldLog>, patterns: Vec<String>) -> u64 {
        let share = self.questions.own_share(self.now);
        share.left = share.left.saturating_sub(1);
        self.questions.sequence += 1;
        let sequence = self.questions.sequence;
        let question = Kind::Question(link::Question { origin: origin.to_string(), known, patterns });
        let carried = self.authored(&To::All(sequence), question);
        self.questions.answered.insert(sequence, BTreeSet::new());
        while self.questions.answered.len() > REMEMBERED_MAX {
            self.questions.answered.pop_first();
        }
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.send(link, link::control::Kind::Carried(carried.clone()));
        }
        sequence
    }

    /// Logs of which something is sought: gaps, and pending holes that the upstream cannot fill.
    fn open_questions(&self) -> BTreeSet<LogName> {
        let sought = self.holed.iter().filter(|log| self.logs.get(log).is_some_and(|s| s.seeking.is_some()));
        self.gaps.iter().chain(sought).cloned().collect()
    }

    /// Each interval: asks about what was not asked about yet, or so long ago that the question may have been lost; no faster than
    /// others take it.
    pub(super) fn ask_about_gaps(&mut self) {
        if self.links.is_empty() {
            return;
        }
        // By origin, with when the question about any of its logs was asked that was asked first.
        let mut due: BTreeMap<Site, (Option<Duration>, Vec<_>)> = BTreeMap::new();
        for log in self.open_questions() {
            let Some(state) = self.logs.get(&log) else { continue };
            // While there is no room for further offers, those that are there are used first.
            if state.offers.len() >= OFFERS_MAX && state.offers.iter().all(|o| state.helps(o)) {
                continue;
            }
            let stale = |asked: &Asked| asked.is_none_or(|(_, at)| self.now.saturating_sub(at) >= GAP_ASK_AGAIN);
            let asked = [state.gap.as_ref().map(|g| g.asked), state.seeking.as_ref().map(|s| s.asked)];
            if let Some(asked) = asked.into_iter().flatten().filter(stale).map(|a| a.map(|(_, at)| at)).min() {
                let (oldest, logs) = due.entry(log.origin.clone()).or_insert((asked, Vec::new()));
                *oldest = asked.min(*oldest);
                logs.push((asked, log));
            }
        }
        // Where not all can be asked about now, those go first that have waited for longest.
        let mut due: Vec<_> = due.into_iter().map(|(origin, (oldest, logs))| (oldest, origin, logs)).collect();
        due.sort();
        for (_, origin, mut logs) in due {
            logs.sort();
            let logs = logs.into_iter().map(|(_, log)| log).collect();
            if !self.may_ask_more() {
                return;
            }
            self.ask_about_these(&origin, logs);
        }
    }

    fn may_ask_more(&mut self) -> bool {
        self.questions.own_share(self.now).left > KEPT_FOR_OWN
    }

    fn ask_about_these(&mut self, origin: &Site, logs: Vec<LogName>) {
        let about = |log: LogName| {
            let known = known(&log, self.logs.get(&log).and_then(|s| s.submitted.as_ref()))?;
            Some((log, known))
        };
        let (names, stated): (Vec<LogName>, Vec<link::HeldLog>) = logs.into_iter().filter_map(about).unzip();
        let mut names = names.into_iter();
        for part in carried::parts(stated) {
            let count = part.len();
            // The rest is asked about when this node may again.
            if count == 0 || !self.may_ask_more() {
                return;
            }
            let asked = Some((self.ask(origin, part, Vec::new()), self.now));
            for log in names.by_ref().take(count) {
                let Some(state) = self.logs.get_mut(&log) else { continue };
                if let Some(gap) = &mut state.gap {
                    gap.asked = asked;
                }
                if let Some(seeking) = &mut state.seeking {
                    seeking.asked = asked;
                }
            }
        }
    }

    /// Says what we hold more than somebody who asks.
    pub(super) fn answer_question(
        &mut self,
        to: LinkId,
        asked: FloodKey,
        origin: &Site,
        known: Vec<wire::HeldLog>,
        patterns: &[Pattern],
    ) {
        let mut theirs: BTreeMap<LogName, (BTreeMap<Incarnation, u64>, bool)> = BTreeMap::new();
        for held in known {
            let mut ends: BTreeMap<Incarnation, u64> = BTreeMap::new();
            for tip in held.fork_tips.iter().chain([&held.below]) {
                ends.insert(tip.incarnation, tip.offset);
            }
            theirs.insert(held.log, (ends, !held.holes.is_empty()));
        }
        let more: Vec<link::Announce> = self
            .logs
            .of_origin(origin)
            .filter_map(|(log, state)| {
                // A copy's content cannot change any more once it was accepted.
                let info = if self.config.is_origin_of(origin) { &state.durable } else { &state.submitted };
                let info = info.as_ref()?;
                let asked = theirs.get(log);
                if asked.is_none() && !patterns.iter().any(|p| p.touches(&log.topic)) {
                    return None;
                }
                let more = info.incarnations.iter().any(|i| {
                    i.end > i.begin
                        && asked.and_then(|(ends, _)| ends.get(&i.incarnation)).is_none_or(|end| *end < i.end)
                }) || asked.is_some_and(|(_, lacks_something)| *lacks_something);
                more.then(|| announcement(log, &View::of(info)))
            })
            .collect();
        // Whoever holds nothing more says so: until then he may.
        let mut parts = carried::parts(more).into_iter().peekable();
        while let Some(logs) = parts.next() {
            let answer = link::Answer { logs, more: parts.peek().is_some() };
            let carried = self.authored(&To::Back(asked.clone()), Kind::Answer(answer));
            self.send(to, link::control::Kind::Carried(carried));
        }
    }

    /// Somebody answers a question of ours, with this part or with others to come.
    pub(super) fn hear_answer(&mut self, head: &Head, asked: (Start, u64), logs: Vec<(LogName, View)>, last: bool) {
        let (start, number) = asked;
        if start != self.config.start {
            return;
        }
        let holder = &head.author;
        if last
            && let Some(nodes) = self.questions.answered.get_mut(&number)
            && self.routing.known_nodes().any(|n| n == holder)
        {
            nodes.insert(holder.clone());
        }
        for (log, view) in logs {
            self.take_offer(&log, Offer { holder: holder.clone(), view, lacks: Vec::new(), failed: false });
        }
    }

    /// Somebody holds more of a log than we do.
    fn take_offer(&mut self, log: &LogName, mut offer: Offer) {
        let own = self.config.is_origin_of(&log.origin);
        let max = self.config.logs_max;
        if (!own && self.logs.get(log).is_none()) || self.is_dead_view(log, &offer.view) {
            return;
        }
        if own {
            let offered = offer.view.edges.len();
            self.without_deleted(log, &mut offer.view);
            if offered > 0 && offer.view.edges.is_empty() {
                return;
            }
            self.check_went_back(log, &offer);
        }
        if offer.view.edges.iter().all(|e| e.end <= e.begin) {
            return;
        }
        let Some(state) = self.logs.entry(log, max) else { return };
        if own && state.submitted.is_none() {
            // Our own log of which nothing is left here: who holds most of it is known only when all have answered.
            self.regaining.entry(log.clone()).or_insert(0);
        }
        let pending = self.has_pending_hole(log);
        let Some(state) = self.logs.get_mut(log) else { return };
        state.offers.retain(|o| o.holder != offer.holder);
        let above = match (&state.submitted, &state.gap) {
            (Some(info), Some(gap)) if !own => offered_above([&offer], info, gap).is_some(),
            (Some(info), _) => own && offered_apart([&offer], info).is_some(),
            _ => false,
        };
        let joins = !state.missing_anywhere(&offer.view).is_empty();
        if !pending && !above && state.submitted.is_some() && !joins {
            return;
        }
        state.keep_offer(offer);
        self.evaluate(log);
    }

    /// Tells people when somebody holds what this origin once had and has no more. Incarnations that were opened since
    /// the process began do not count: there the offer may merely be newer than what we heard of our own log.
    fn check_went_back(&mut self, log: &LogName, offer: &Offer) {
        let Some(state) = self.logs.get(log) else {
            return self.report_went_back(log, offer);
        };
        if state.went_back {
            return;
        }
        let own = state.edges();
        let more = offer.view.edges.iter().any(|e| match own.iter().find(|o| o.incarnation == e.incarnation) {
            Some(o) => o.end < e.end && state.at_start.contains(&e.incarnation),
            None => {
                let tip = Place { incarnation: e.incarnation, offset: e.end };
                let forgotten = state.submitted.as_ref().is_some_and(|i| i.forgotten.contains(e.incarnation));
                e.end > e.begin && !forgotten && !super::lines::is_forgotten(&own, tip)
            }
        });
        if more {
            self.report_went_back(log, offer);
        }
    }

    fn report_went_back(&mut self, log: &LogName, offer: &Offer) {
        let text = format!(
            "{} holds {log} up to {}, which this origin has no more: its data was restored or lost; what others hold of it is fetched from them",
            offer.holder,
            offer.view.tip()
        );
        self.report_of("origin-went-back", log, text);
        let max = self.config.logs_max;
        if let Some(state) = self.logs.entry(log, max) {
            state.went_back = true;
        }
    }

    /// A fetch from a holder that offered is over: what it gave is there now, or it has nothing more of this incarnation, or
    /// (`above`) it has nothing below that place of what is missing here.
    pub(super) fn offer_used(
        &mut self,
        log: &LogName,
        incarnation: Incarnation,
        holder: Option<&NodeName>,
        above: Option<Place>,
    ) {
        let own = self.config.is_origin_of(&log.origin);
        let Some(state) = self.logs.get_mut(log) else { return };
        let end = state
            .submitted
            .as_ref()
            .and_then(|i| i.incarnations.iter().find(|i| i.incarnation == incarnation))
            .map(|i| i.end);
        for offer in state.offers.iter_mut().filter(|o| Some(&o.holder) == holder) {
            for edge in offer.view.edges.iter_mut().filter(|e| e.incarnation == incarnation) {
                match above.filter(|p| p.incarnation == incarnation && edge.begin < p.offset && p.offset < edge.end) {
                    Some(above) => edge.begin = above.offset,
                    // What was given cannot be less than what is there; what was promised and did not come is given up.
                    None => edge.end = edge.end.min(end.unwrap_or(edge.begin)),
                }
            }
        }
        let mut offers = std::mem::take(&mut state.offers);
        let holes = state.submitted.as_ref().is_some_and(|i| i.holes.iter().any(|h| h.kind == HoleKind::Pending));
        let (info, gap) = (state.submitted.as_ref(), state.gap.as_ref());
        let above = |o: &Offer| match info.zip(gap) {
            Some((info, gap)) if !own => offered_above([o], info, gap).is_some(),
            _ => own && info.is_some_and(|info| offered_apart([o], info).is_some()),
        };
        offers.retain(|o| holes || above(o) || !state.missing_anywhere(&o.view).is_empty());
        state.offers = offers;
        if own {
            self.notice_parted(log);
        }
        self.evaluate(log);
    }

    /// The origin says that it begins above where our copy ends.
    pub(super) fn not_here(&mut self, log: &LogName, ended: &FetchEnded) {
        let Some(resume) = ended.at else { return self.retry_later(log, Some("the origin said no place".to_owned())) };
        if self.lacks_what_was_deleted(log) {
            return self.retry_later(log, Some("its origin deleted the topic".to_owned()));
        }
        self.resume_above(log, resume);
    }

    /// The origin goes on at `resume`, above what our copy holds. A cache just goes on there; a site asks everybody first.
    pub(super) fn resume_above(&mut self, log: &LogName, resume: Place) {
        if self.config.kind == NodeKind::Relay {
            return self.resume_cache(log, resume);
        }
        let now = self.now;
        let Some(state) = self.logs.get_mut(log) else { return };
        let end = state.end();
        let before = state.gap_before.take().filter(|(at, _)| Some(*at) == end).map(|(_, gap)| gap);
        state.gap = Some(match before {
            Some(gap) if gap.resume == resume => gap,
            Some(gap) => Gap { resume, since: gap.since, asked: None },
            None => Gap::new(resume, now),
        });
        self.gaps.insert(log.clone());
        self.decide_waiting(log);
    }

    fn resume_cache(&mut self, log: &LogName, resume: Place) {
        let Some(hole) = self.logs.get(log).and_then(|s| s.jump(resume, HoleKind::NotWanted)) else {
            // Nothing joins: the next fetch asked begins another copy.
            self.out.push_back(Output::Store(vec![Change::Drop { log: log.clone() }]));
            return self.retry_later(log, None);
        };
        self.out.push_back(Output::Store(vec![Change::Hole { log: log.clone(), hole }]));
        self.retry_later(log, None);
    }

    /// Each interval: own logs of which nothing is left here begin where the holder does that reaches back farthest.
    pub(super) fn begin_regaining(&mut self) {
        for (log, ticks) in std::mem::take(&mut self.regaining) {
            let Some(state) = self.logs.get_mut(&log) else { continue };
            if state.submitted.is_some() || state.beginning {
                continue;
            }
            if ticks < REGAIN_TICKS {
                self.regaining.insert(log, ticks + 1);
                continue;
            }
            let held = state.offers.iter().filter_map(|o| o.view.edges.iter().find(|e| e.end > e.begin));
            let Some(oldest) = held.min_by_key(|e| (e.begin, e.incarnation)) else { continue };
            let at = Place { incarnation: oldest.incarnation, offset: oldest.begin };
            state.beginning = true;
            self.out.push_back(Output::Store(vec![Change::BeginCopy { log, at, chain: None }]));
        }
    }

    /// Each interval: gaps that nobody can fill are stated as lost, and the copy goes on above them.
    pub(super) fn check_gaps(&mut self) {
        let open: Vec<LogName> = self.gaps.iter().cloned().collect();
        for log in open {
            let Some(state) = self.logs.get(&log) else {
                self.gaps.remove(&log);
                continue;
            };
            let (Some(gap), Some(info)) = (state.gap.clone(), state.submitted.clone()) else {
                self.gaps.remove(&log);
                self.evaluate(&log);
                continue;
            };
            if self.config.is_origin_of(&log.origin) {
                self.check_own_gap(&log, &info, &gap);
                continue;
            }
            let edges = super::lines::edges_of(&info);
            let joins = state.remote.as_ref().and_then(|r| r.continue_main(&edges));
            let reached = edges.iter().any(|e| e.incarnation == gap.resume.incarnation && e.end >= gap.resume.offset);
            if reached || joins.is_some_and(|p| p.offset >= gap.resume.offset) {
                self.close_gap(&log);
                continue;
            }
            let filling = !state.fetches.is_empty();
            let joins = |o: &Offer| !state.missing_anywhere(&o.view).is_empty();
            let offered = state.offers.iter().any(joins);
            let here = |o: &&Offer| self.routing.towards(&o.holder).is_some();
            let waited = self.has_waited(gap.since, gap.asked) && !state.offers.iter().filter(here).any(joins);
            // Who offered and went away is waited for as who did not answer.
            let reachable = state.offers.iter().filter(|o| self.routing.towards(&o.holder).is_some());
            let lowest = offered_above(reachable, &info, &gap) == offered_above(&state.offers, &info, &gap);
            if !filling && (waited || (lowest && !offered && self.all_answered(&log.origin, gap.asked))) {
                self.lose(&log, &info, &gap);
            }
        }
    }

    /// Whether what is sought has been for so long that nobody who was not heard is waited for any more, and those who can be reached
    /// had time to answer.
    pub(super) fn has_waited(&self, since: Duration, asked: Asked) -> bool {
        let asked = asked.is_some_and(|(_, at)| self.now.saturating_sub(at) >= ANSWERS_WAIT);
        asked && self.now.saturating_sub(since) >= self.config.lost_after
    }

    /// What is missing was deleted at its origin: nobody is asked for it.
    pub(super) fn close_gap_of_deleted(&mut self, log: &LogName) {
        if self.gaps.contains(log) {
            self.close_gap(log);
        }
    }

    fn close_gap(&mut self, log: &LogName) {
        if let Some(state) = self.logs.get_mut(log) {
            state.gap = None;
            state.offers.clear();
        }
        self.gaps.remove(log);
        self.evaluate(log);
    }

    /// Whether every node that was ever heard of answered the question, and had time to (the origin has answered by its
    /// "not here"). So must the sites that registered here and those whose logs are held: they are known from the disk though
    /// nothing was heard of their nodes since this process began.
    pub(super) fn all_answered(&self, origin: &Site, asked: Asked) -> bool {
        let Some((question, at)) = asked else { return false };
        let Some(answered) = self.questions.answered.get(&question) else { return false };
        let settled =
            |n: &NodeName| self.routing.is_origin(n, origin) || *n == self.config.node || answered.contains(n);
        let answers_for = |s: &Site| answered.iter().any(|n| self.routing.is_origin(n, s));
        let gone = |s: &Site| self.removals.contains_key(s);
        let heard = |s: &Site| self.config.is_origin_of(s) || s == origin || gone(s) || answers_for(s);
        self.now.saturating_sub(at) >= ANSWERS_WAIT
            && self.routing.known_nodes().all(settled)
            && self.registrations.sites().chain(&self.logs.origins()).all(heard)
    }

    /// Records what nobody has, up to where somebody goes on: another site, or at last the origin.
    pub(super) fn lose(&mut self, log: &LogName, info: &LogInfo, gap: &Gap) {
        let offers = self.logs.get(log).map(|s| s.offers.as_slice()).unwrap_or_default();
        let reachable = offers.iter().filter(|o| self.routing.towards(&o.holder).is_some());
        let part = offered_above(reachable, info, gap);
        let resume = part.unwrap_or(gap.resume);
        let Some(hole) = self.logs.get(log).and_then(|s| s.jump(resume, HoleKind::Lost)) else {
            // It was held by the time everybody had answered.
            if let Some(state) = self.logs.get_mut(log) {
                state.gap = None;
            }
            self.gaps.remove(log);
            return self.retry_later(log, None);
        };
        let opens = info.incarnations.iter().all(|i| i.incarnation != hole.incarnation);
        if opens && info.incarnations.last().is_some_and(|newest| hole.to < newest.begin) {
            let text = format!(
                "{log}: the origin goes on at {resume}, below what is held here, and nothing joins the two; the copy goes on there, \
                 and what it holds stays as a fork"
            );
            self.report_of("history-diverged", log, text);
        }
        if hole.to > hole.from {
            let text = format!(
                "{log}: {} to {} of incarnation {} is held by no site that can be reached any more; it is recorded as lost and the copy goes on above",
                hole.from, hole.to, hole.incarnation
            );
            self.report_of("range-lost", log, text);
        }
        self.out.push_back(Output::Store(vec![Change::Hole { log: log.clone(), hole }]));
        if part.is_some() {
            // What is offered there is fetched now; for what is still missing above it, everybody is asked anew.
            if let Some(gap) = self.logs.get_mut(log).and_then(|s| s.gap.as_mut()) {
                gap.asked = None;
            }
            return;
        }
        if let Some(state) = self.logs.get_mut(log) {
            let gap = state.gap.take();
            // What is to come may be missing too, for as long: nothing but the way there was found.
            state.gap_before = gap.filter(|_| hole.to == hole.from).map(|gap| (resume, gap));
            state.offers.clear();
        }
        self.gaps.remove(log);
        // The hole's being there plans anew; should the log refuse it, the fetch is asked again and so is this.
        self.retry_later(log, None);
    }
}

/// Where the lowest part begins that is offered of a gap but does not join what is held.
pub(super) fn offered_above<'a>(
    offers: impl IntoIterator<Item = &'a Offer>,
    info: &LogInfo,
    gap: &Gap,
) -> Option<Place> {
    let newest = info.incarnations.last()?;
    let edges = offers.into_iter().flat_map(|o| &o.view.edges).filter(|e| e.end > e.begin);
    let begins = edges.map(|e| Place { incarnation: e.incarnation, offset: e.begin });
    let inside = |p: &Place| {
        (newest.incarnation..=gap.resume.incarnation).contains(&p.incarnation)
            && (newest.end..gap.resume.offset).contains(&p.offset)
            && jump(info, *p, HoleKind::Lost).is_some()
    };
    begins.filter(inside).min_by_key(|p| (p.incarnation, p.offset))
}

/// The hole after which a copy goes on at `resume`, if what it holds allows one.
pub(super) fn jump(info: &LogInfo, resume: Place, kind: HoleKind) -> Option<Hole> {
    let same = info.incarnations.iter().find(|i| i.incarnation == resume.incarnation);
    let newest = info.incarnations.last()?;
    let from = match same {
        Some(held) => held.end,
        // Below all that is held there is nothing to jump from: the log goes on apart from it.
        None => newest.end.min(resume.offset),
    };
    (same.is_none() || resume.offset > from).then_some(Hole {
        incarnation: resume.incarnation,
        from,
        to: resume.offset,
        kind,
    })
}

/// What is held of a log, with the ends of all its incarnations, as a question states it.
fn known(log: &LogName, info: Option<&LogInfo>) -> Option<link::HeldLog> {
    let info = info?;
    let others = info.incarnations.iter().filter(|i| i.incarnation != info.end.incarnation);
    let held = wire::HeldLog {
        log: log.clone(),
        from: Some(info.begin),
        below: info.end,
        chain: None,
        holes: info.holes.iter().filter(|h| h.kind == HoleKind::Pending).copied().collect(),
        fork_tips: others.map(|i| Place { incarnation: i.incarnation, offset: i.end }).collect(),
        jumps: Vec::new(),
    };
    Some(held.into())
}
