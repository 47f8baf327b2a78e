//! Wants: what this site asks for, what its neighbours ask for, and what of both goes on to which upstream.
//!
//! To the upstream of an origin go this site's own wants and those of the neighbours that fetch from here, never what came
//! from that upstream. A want's start counts once for each origin, for the logs of the first complete announcement; from
//! then on the copies' own ends say where to go on, and logs announced later are fetched from their begin.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;

use super::{
    Change, LinkId, Output, Replication, StateTable, Want, WantStart,
    announce::Say,
    convert::{self, Checked},
};
use crate::{
    copies::LogInfo,
    ids::{LogName, Pattern, Place, Queue, Site, Topic},
    session::NodeKind,
    wire::{WireError, link},
};

/// Most questions for a time under way at once, own and passed on.
const RESOLVES_MAX: usize = 65_536;
/// Questions for a time that one want has under way at an origin.
const RESOLVES_AT_ONCE: usize = 256;
/// What could not be told, or was not answered, is asked again after this long.
const RESOLVE_AGAIN: Duration = Duration::from_secs(5);
/// After so many rounds without an answer people are told.
const RESOLVE_ROUNDS_QUIET: u32 = 12;
/// Copies begun in one unit.
const BEGINS_PER_UNIT: usize = 1024;

/// What was sent to an origin's upstream.
#[derive(Debug)]
pub(super) struct SentWants {
    link: LinkId,
    patterns: BTreeMap<Pattern, SentWant>,
}

#[derive(Debug)]
struct SentWant {
    key: u64,
    /// Its first complete announcement came.
    complete: bool,
}

/// Who waits for the answer to a question for a time.
#[derive(Debug)]
pub(super) enum Resolving {
    Own { want: String, log: LogName },
    Peer { link: LinkId, number: u64 },
}

/// A want whose start by time is being resolved at one origin.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    time_us: u64,
    /// Asked, and not answered yet.
    open: BTreeSet<u64>,
    /// Yet to be asked, or to be asked again with the next round.
    ask: BTreeSet<LogName>,
    again: BTreeSet<LogName>,
    /// When the next round begins, and how many went by.
    next_round: Duration,
    rounds: u32,
    starts: BTreeMap<LogName, Place>,
}

/// All that concerns wants.
#[derive(Debug, Default)]
pub(super) struct Wants {
    pub(super) own: BTreeMap<String, Want>,
    /// By origin, link and the sender's key.
    pub(super) peers: BTreeMap<Site, BTreeMap<LinkId, BTreeMap<u64, Pattern>>>,
    sent: BTreeMap<Site, SentWants>,
    /// Want and origin pairs whose start is resolved.
    resolved: BTreeSet<(String, Site)>,
    gathering: BTreeMap<(String, Site), Gathering>,
    resolving: BTreeMap<u64, (LinkId, Resolving)>,
    finding: BTreeMap<u64, (LinkId, u64, LogName)>,
    next_number: u64,
}

pub(super) fn covers(want: &Want, origin: &Site) -> bool {
    want.origins.is_empty() || want.origins.contains(origin)
}

fn starts_key(want: &str, origin: &Site) -> Bytes {
    format!("{origin}\0{want}").into_bytes().into()
}

impl Wants {
    pub(super) fn restore_start(&mut self, key: &[u8]) {
        let text = String::from_utf8_lossy(key);
        if let Some((origin, want)) = text.split_once('\0')
            && let Ok(origin) = origin.parse()
        {
            self.resolved.insert((want.to_owned(), origin));
        }
    }

    /// Whether a want of this site covers the log.
    pub(super) fn own_covers(&self, log: &LogName) -> bool {
        self.own.values().any(|w| covers(w, &log.origin) && w.pattern.touches(&log.topic))
    }

    /// Whether a neighbour's want covers the log.
    pub(super) fn peer_covers(&self, link: LinkId, origin: &Site, topic: &Topic) -> bool {
        let wants = self.peers.get(origin).and_then(|links| links.get(&link));
        wants.is_some_and(|wants| wants.values().any(|p| p.touches(topic)))
    }

    /// The links with wants for an origin.
    pub(super) fn links_for(&self, origin: &Site) -> Vec<LinkId> {
        self.peers.get(origin).map(|links| links.keys().copied().collect()).unwrap_or_default()
    }

    pub(super) fn is_resolved(&self, want: &str, origin: &Site) -> bool {
        self.resolved.contains(&(want.to_owned(), origin.clone()))
    }
}

impl Replication {
    pub(super) fn own_want(&mut self, want: Want) {
        if self.config.kind != NodeKind::Edge {
            return;
        }
        if self.wants.own.len() >= self.config.wants_max && !self.wants.own.contains_key(&want.id) {
            let text = format!(
                "want {} is refused: there are {} already; raise the bound or remove some",
                want.id,
                self.wants.own.len()
            );
            return self.refuse("too-many-wants", text);
        }
        if self.wants.own.get(&want.id).is_some_and(|known| *known != want) {
            self.own_want_removed(&want.id);
        }
        self.wants.own.insert(want.id.clone(), want.clone());
        for origin in self.routing.known_sites() {
            if covers(&want, &origin) && origin != self.config.node.site {
                self.sync_wants(&origin);
                // A pattern that somebody else's want brought already is complete at once.
                let complete = self
                    .wants
                    .sent
                    .get(&origin)
                    .and_then(|s| s.patterns.get(&want.pattern))
                    .is_some_and(|s| s.complete);
                if complete {
                    self.resolve_want(&want, &origin);
                }
                self.evaluate_origin(&origin);
                self.registration_changed(&origin);
            }
        }
    }

    pub(super) fn own_want_removed(&mut self, id: &str) {
        let Some(want) = self.wants.own.remove(id) else { return };
        let resolved: Vec<_> = self.wants.resolved.iter().filter(|(w, _)| w == id).cloned().collect();
        let mut changes = Vec::new();
        for pair in resolved {
            changes.push(Change::Delete { table: StateTable::Starts, key: starts_key(&pair.0, &pair.1) });
            self.wants.resolved.remove(&pair);
        }
        if !changes.is_empty() {
            self.out.push_back(Output::Store(changes));
        }
        self.wants.gathering.retain(|(w, _), _| w != id);
        let mut origins = self.routing.known_sites();
        origins.extend(self.logs.origins());
        for origin in origins {
            if covers(&want, &origin) && origin != self.config.node.site {
                self.sync_wants(&origin);
                self.evaluate_origin(&origin);
                self.registration_changed(&origin);
            }
        }
    }

    /// The merged wants for an origin as they should stand at its upstream.
    fn merged(&self, origin: &Site, upstream: LinkId) -> BTreeSet<Pattern> {
        let mut patterns: BTreeSet<Pattern> =
            self.wants.own.values().filter(|w| covers(w, origin)).map(|w| w.pattern.clone()).collect();
        for (link, wants) in self.wants.peers.get(origin).into_iter().flatten() {
            if *link != upstream {
                patterns.extend(wants.values().cloned());
            }
        }
        patterns
    }

    /// Brings what the origin's upstream was told in line with what is wanted.
    pub(super) fn sync_wants(&mut self, origin: &Site) {
        let Some(upstream) = self.routing.upstream(origin) else { return };
        let merged = self.merged(origin, upstream);
        let sent = self
            .wants
            .sent
            .entry(origin.clone())
            .or_insert_with(|| SentWants { link: upstream, patterns: BTreeMap::new() });
        let first = sent.patterns.is_empty();
        let gone: Vec<Pattern> = sent.patterns.keys().filter(|p| !merged.contains(*p)).cloned().collect();
        let mut messages = Vec::new();
        for pattern in gone {
            if let Some(old) = sent.patterns.remove(&pattern) {
                messages.push(link::control::Kind::WantDrop(link::WantDrop { key: old.key }));
            }
        }
        for pattern in merged {
            if sent.patterns.contains_key(&pattern) {
                continue;
            }
            self.wants.next_number += 1;
            let key = self.wants.next_number;
            messages.push(link::control::Kind::WantPut(link::WantPut {
                key,
                origin: origin.to_string(),
                pattern: pattern.to_string(),
            }));
            sent.patterns.insert(pattern, SentWant { key, complete: false });
        }
        let wanted = !sent.patterns.is_empty();
        for message in messages {
            self.send(upstream, message);
        }
        match (first, wanted) {
            (true, true) => self.marks_begin(origin),
            (_, false) => self.marks.missed.forget(origin),
            (false, true) => {}
        }
    }

    /// The origin has another upstream, or none.
    pub(super) fn wants_moved(&mut self, origin: &Site, old: Option<LinkId>) {
        if let Some(sent) = self.wants.sent.remove(origin) {
            for want in sent.patterns.into_values() {
                self.send(sent.link, link::control::Kind::WantDrop(link::WantDrop { key: want.key }));
            }
        }
        // Our own are asked again with the next announcement.
        if let Some(old) = old {
            self.resolving_lost(old);
        }
        self.wants.gathering.retain(|(_, o), _| o != origin);
        self.sync_wants(origin);
    }

    pub(super) fn wants_link_down(&mut self, link: LinkId) {
        self.marks.missed.link_down(link);
        let mut origins = Vec::new();
        self.wants.peers.retain(|origin, links| {
            if links.remove(&link).is_some() {
                origins.push(origin.clone());
            }
            !links.is_empty()
        });
        self.resolving_lost(link);
        self.wants
            .resolving
            .retain(|_, (_, who)| !matches!(who, Resolving::Peer { link: asker, .. } if *asker == link));
        self.wants.finding.retain(|_, (l, ..)| *l != link);
        for origin in origins {
            self.sync_wants(&origin);
            self.evaluate_origin(&origin);
        }
    }

    pub(super) fn handle_want_put(&mut self, from: LinkId, want: &link::WantPut) -> Checked<()> {
        let origin = convert::site_from(&want.origin)?;
        let pattern = convert::pattern_from(&want.pattern)?;
        let count: usize = self.wants.peers.values().filter_map(|links| links.get(&from)).map(BTreeMap::len).sum();
        if count >= self.config.wants_max {
            let text =
                format!("a neighbour has {count} wants here; the next one, for {pattern} from {origin}, is refused");
            self.refuse("too-many-wants", text);
            return Ok(());
        }
        self.wants.peers.entry(origin.clone()).or_default().entry(from).or_default().insert(want.key, pattern.clone());
        let own = self.config.is_origin_of(&origin);
        if !own {
            self.sync_wants(&origin);
        }
        for log in self.logs.names_of(&origin, &pattern) {
            self.announce_to(from, &log);
            if !own {
                self.evaluate(&log);
            }
        }
        let sent = self.wants.sent.get(&origin).filter(|s| s.link != from);
        let complete = own || sent.and_then(|s| s.patterns.get(&pattern)).is_some_and(|s| s.complete);
        if complete {
            self.say_behind(from, Say::End { key: want.key, origin: origin.clone() });
        }
        self.say_behind(from, Say::Marks { origin, pattern, from: 0 });
        Ok(())
    }

    pub(super) fn handle_want_drop(&mut self, from: LinkId, key: u64) {
        let mut found = None;
        for (origin, links) in &mut self.wants.peers {
            if let Some(wants) = links.get_mut(&from)
                && let Some(pattern) = wants.remove(&key)
            {
                if wants.is_empty() {
                    links.remove(&from);
                }
                found = Some((origin.clone(), pattern));
                break;
            }
        }
        let Some((origin, pattern)) = found else { return };
        if !self.config.is_origin_of(&origin) {
            self.sync_wants(&origin);
            for log in self.logs.names_of(&origin, &pattern) {
                self.evaluate(&log);
            }
        }
        for log in self.logs.names_of(&origin, &pattern) {
            if !self.wants.peer_covers(from, &origin, &log.topic) {
                self.forget_announced(from, &log);
            }
        }
    }

    pub(super) fn send_announce_end(&mut self, to: LinkId, key: u64, origin: &Site) {
        self.send(to, link::control::Kind::AnnounceEnd(link::AnnounceEnd { key, origin: origin.to_string() }));
    }

    /// Our upstream announced all that one of our wants covers.
    pub(super) fn handle_announce_end(&mut self, from: LinkId, end: &link::AnnounceEnd) -> Checked<()> {
        let origin = convert::site_from(&end.origin)?;
        let Some(sent) = self.wants.sent.get_mut(&origin).filter(|s| s.link == from) else { return Ok(()) };
        let Some((pattern, want)) = sent.patterns.iter_mut().find(|(_, w)| w.key == end.key) else { return Ok(()) };
        want.complete = true;
        let pattern = pattern.clone();
        // A blank copy of what was not announced: its origin has no such log any more.
        for log in self.logs.names_of(&origin, &pattern) {
            let state = self.logs.get_mut(&log).filter(|s| s.remote.is_none() && !s.none_there);
            if let Some(state) = state
                && state.submitted.as_ref().is_some_and(LogInfo::is_blank)
            {
                (state.none_there, self.none_to_tell) = (true, true);
            }
        }
        let mut tell = Vec::new();
        for (link, wants) in self.wants.peers.get(&origin).into_iter().flatten() {
            if *link != from {
                tell.extend(wants.iter().filter(|(_, p)| **p == pattern).map(|(key, _)| (*link, *key)));
            }
        }
        for (link, key) in tell {
            self.say_behind(link, Say::End { key, origin: origin.clone() });
        }
        let own: Vec<Want> =
            self.wants.own.values().filter(|w| w.pattern == pattern && covers(w, &origin)).cloned().collect();
        // Those that begin lowest first: a copy that was begun cannot be lowered.
        let rank = |w: &Want| match w.start {
            WantStart::Earliest => 0,
            WantStart::Time(_) => 1,
            WantStart::Latest => 2,
        };
        let mut own = own;
        own.sort_by_key(rank);
        for want in own {
            self.resolve_want(&want, &origin);
        }
        Ok(())
    }

    /// The first complete announcement of an origin for a want of ours: its start is counted now, once.
    fn resolve_want(&mut self, want: &Want, origin: &Site) {
        if self.wants.is_resolved(&want.id, origin) {
            self.registration_changed(origin);
            return;
        }
        let pair = (want.id.clone(), origin.clone());
        let mut gathering = Gathering { next_round: self.now.saturating_add(RESOLVE_AGAIN), ..Gathering::default() };
        for log in self.logs.names_of(origin, &want.pattern) {
            let Some(state) = self.logs.get(&log) else { continue };
            if state.submitted.is_some() || state.beginning {
                continue;
            }
            let Some(remote) = &state.remote else { continue };
            let earliest = self
                .wants
                .own
                .values()
                .any(|w| w.start == WantStart::Earliest && covers(w, origin) && w.pattern.touches(&log.topic));
            // Settings and deletions are read from the first on, whatever messages are wanted.
            let earliest = earliest || log.queue == Queue::CONTROL;
            match want.start {
                _ if earliest => drop(gathering.starts.insert(log, remote.begin)),
                WantStart::Earliest => drop(gathering.starts.insert(log, remote.begin)),
                WantStart::Latest => drop(gathering.starts.insert(log, remote.tip())),
                WantStart::Time(time_us) => {
                    gathering.time_us = time_us;
                    gathering.ask.insert(log);
                }
            }
        }
        // A former round of it may be under way still: its answers no longer count.
        self.forget_gathering(&pair);
        self.wants.gathering.insert(pair.clone(), gathering);
        self.ask_times(&pair);
        self.gathered(&pair);
    }

    fn forget_gathering(&mut self, pair: &(String, Site)) {
        for number in self.wants.gathering.remove(pair).into_iter().flat_map(|g| g.open) {
            self.wants.resolving.remove(&number);
        }
    }

    /// Asks for the next times of a want, a window of them at once.
    fn ask_times(&mut self, pair: &(String, Site)) {
        while let Some(gathering) = self.wants.gathering.get_mut(pair)
            && gathering.open.len() < RESOLVES_AT_ONCE
            && let Some(log) = gathering.ask.pop_first()
        {
            let time_us = gathering.time_us;
            let asked = self.ask_time(&pair.0, &log, time_us);
            let Some(gathering) = self.wants.gathering.get_mut(pair) else { return };
            match asked {
                Some(number) => drop(gathering.open.insert(number)),
                None => drop(gathering.again.insert(log)),
            }
        }
    }

    /// Begins what is known of a want's starts; when nothing is open any more, the start is counted.
    fn gathered(&mut self, pair: &(String, Site)) {
        let Some(gathering) = self.wants.gathering.get_mut(pair) else { return };
        let done = gathering.open.is_empty() && gathering.ask.is_empty() && gathering.again.is_empty();
        if !done && gathering.starts.len() < RESOLVES_AT_ONCE {
            return;
        }
        let starts = std::mem::take(&mut gathering.starts);
        if done {
            self.want_resolved(pair, starts);
        } else {
            let changes = self.begin_at(starts);
            self.out.push_back(Output::Store(changes));
        }
    }

    /// Each interval: times that could not be told, or whose answer is long due, are asked again.
    pub(super) fn resolve_again(&mut self) {
        let due = |g: &Gathering, now| now >= g.next_round;
        let pairs: Vec<_> =
            self.wants.gathering.iter().filter(|(_, g)| due(g, self.now)).map(|(pair, _)| pair.clone()).collect();
        for pair in pairs {
            let Some(gathering) = self.wants.gathering.get_mut(&pair) else { continue };
            gathering.next_round = self.now.saturating_add(RESOLVE_AGAIN);
            gathering.rounds = gathering.rounds.saturating_add(1);
            let waits = gathering.again.len().saturating_add(gathering.open.len());
            let report = gathering.rounds == RESOLVE_ROUNDS_QUIET && waits > 0;
            let mut again = std::mem::take(&mut gathering.again);
            for number in std::mem::take(&mut gathering.open) {
                if let Some((_, Resolving::Own { log, .. })) = self.wants.resolving.remove(&number) {
                    again.insert(log);
                }
            }
            gathering.ask.extend(again);
            if report {
                let text = format!(
                    "{} does not tell where {waits} of its logs stood at the time that want {} asks for; it is asked again \
                     and again",
                    pair.1, pair.0
                );
                self.report("start-unresolved", text);
            }
            self.ask_times(&pair);
            self.gathered(&pair);
        }
    }

    /// Questions that went this way will not be answered: those who asked through us are told so, and ask again.
    fn resolving_lost(&mut self, way: LinkId) {
        let lost: Vec<u64> =
            self.wants.resolving.iter().filter(|(_, (link, _))| *link == way).map(|(number, _)| *number).collect();
        for number in lost {
            match self.wants.resolving.remove(&number) {
                Some((_, Resolving::Peer { link, number })) => self.answer_resolve(link, number, None),
                Some((_, Resolving::Own { want, log })) => {
                    if let Some(gathering) = self.wants.gathering.get_mut(&(want, log.origin.clone())) {
                        gathering.open.remove(&number);
                        gathering.again.insert(log);
                    }
                }
                None => {}
            }
        }
    }

    fn ask_time(&mut self, want: &str, log: &LogName, time_us: u64) -> Option<u64> {
        let upstream = self.routing.upstream(&log.origin)?;
        self.wants.next_number += 1;
        let number = self.wants.next_number;
        let own = Resolving::Own { want: want.to_owned(), log: log.clone() };
        self.wants.resolving.insert(number, (upstream, own));
        let resolve = link::Resolve { number, log: Some(log.into()), time_us, hops: self.config.hops };
        self.send(upstream, link::control::Kind::Resolve(resolve));
        Some(number)
    }

    /// Begins the copies at the resolved starts and remembers, in the same unit, that the start was counted.
    fn want_resolved(&mut self, pair: &(String, Site), starts: BTreeMap<LogName, Place>) {
        self.forget_gathering(pair);
        let mut changes = self.begin_at(starts);
        self.wants.resolved.insert(pair.clone());
        changes.push(Change::Put { table: StateTable::Starts, key: starts_key(&pair.0, &pair.1), value: Bytes::new() });
        self.out.push_back(Output::Store(changes));
        self.registration_changed(&pair.1);
        // Logs that were announced while the times were asked for count as announced later.
        for log in self.logs.names_of_origin(&pair.1) {
            self.begin_if_wanted(&log);
        }
    }

    /// Begins copies; the changes that are left for the last unit.
    fn begin_at(&mut self, starts: BTreeMap<LogName, Place>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (log, at) in starts.into_iter().filter(|_| self.stopped.is_none()) {
            let Some(state) = self.logs.get_mut(&log) else { continue };
            let dead = state.remote.as_ref().is_some_and(|r| self.tombstones.is_dead(&log, r.tip()));
            if state.submitted.is_some() || state.beginning || dead {
                continue;
            }
            let at = self.tombstones.begin(&log).filter(|end| at.offset < end.offset).unwrap_or(at);
            (state.beginning, state.begins) = (true, Some(at));
            changes.push(Change::BeginCopy { log, at, chain: None });
            if changes.len() >= BEGINS_PER_UNIT {
                self.out.push_back(Output::Store(std::mem::take(&mut changes)));
            }
        }
        changes
    }

    /// A log without a copy here that a resolved want covers was announced: it is copied from its begin, also where its origin does
    /// not hold that any more.
    pub(super) fn begin_if_wanted(&mut self, log: &LogName) {
        if self.is_refused(log) {
            return;
        }
        let wanted = self.wants.own.values().any(|w| {
            covers(w, &log.origin) && w.pattern.touches(&log.topic) && self.wants.is_resolved(&w.id, &log.origin)
        });
        let Some(state) = self.logs.get_mut(log) else { return };
        if !wanted || self.stopped.is_some() || state.submitted.is_some() || state.beginning {
            return;
        }
        let Some(remote) = &state.remote else { return };
        if self.tombstones.is_dead(log, remote.tip()) {
            return;
        }
        let at = state.begins.unwrap_or_else(|| self.tombstones.first_owed(log, remote));
        (state.beginning, state.begins) = (true, Some(at));
        self.out.push_back(Output::Store(vec![Change::BeginCopy { log: log.clone(), at, chain: None }]));
    }

    pub(super) fn handle_resolve(&mut self, from: LinkId, resolve: &link::Resolve) -> Checked<()> {
        let log = convert::log_from(resolve.log.as_ref())?;
        let full = self.wants.resolving.len() + self.wants.finding.len() >= RESOLVES_MAX;
        let own = self.config.is_origin_of(&log.origin);
        let upstream = self.routing.upstream(&log.origin).filter(|l| *l != from);
        if let Some(upstream) = upstream
            && !own
            && !full
            && resolve.hops > 0
        {
            self.wants.next_number += 1;
            let number = self.wants.next_number;
            let peer = Resolving::Peer { link: from, number: resolve.number };
            self.wants.resolving.insert(number, (upstream, peer));
            let on = link::Resolve { number, hops: resolve.hops - 1, ..resolve.clone() };
            self.send(upstream, link::control::Kind::Resolve(on));
            return Ok(());
        }
        if full || self.logs.get(&log).is_none_or(|s| s.submitted.is_none()) {
            self.answer_resolve(from, resolve.number, None);
            return Ok(());
        }
        self.wants.next_number += 1;
        let token = self.wants.next_number;
        self.wants.finding.insert(token, (from, resolve.number, log.clone()));
        self.out.push_back(Output::FindTime { token, log, time_us: resolve.time_us });
        Ok(())
    }

    fn answer_resolve(&mut self, to: LinkId, number: u64, told: Option<(link::ResolveOutcome, Place)>) {
        let outcome = told.map_or(link::ResolveOutcome::CannotTell, |(outcome, _)| outcome);
        let place = told.map(|(_, place)| place.into());
        self.send(to, link::control::Kind::Resolved(link::Resolved { number, place, outcome: outcome.into() }));
    }

    /// The own copy was searched. What it begins with may be too late: whoever trimmed what came before cannot tell, the
    /// origin excepted.
    pub(super) fn time_found(&mut self, token: u64, place: Option<Place>) {
        let Some((link, number, log)) = self.wants.finding.remove(&token) else { return };
        let own = self.config.is_origin_of(&log.origin);
        let info = self.logs.get(&log).and_then(|s| if own { s.durable.as_ref() } else { s.submitted.as_ref() });
        let told = match (place, info) {
            (Some(place), Some(info)) => {
                let root = info.incarnations.first().is_some_and(|i| i.begin == 0 && i.previous.is_none());
                let outcome = if place == info.end { link::ResolveOutcome::AtEnd } else { link::ResolveOutcome::Found };
                (own || root || place != info.begin).then_some((outcome, place))
            }
            _ => None,
        };
        self.answer_resolve(link, number, told);
    }

    pub(super) fn handle_resolved(&mut self, from: LinkId, resolved: &link::Resolved) -> Checked<()> {
        // An outcome that is not known here reads as "cannot tell".
        let told = match resolved.outcome() {
            link::ResolveOutcome::CannotTell => None,
            outcome => Some((outcome, convert::place_from(resolved.place.as_ref())?)),
        };
        let Some((link, who)) = self.wants.resolving.remove(&resolved.number) else { return Ok(()) };
        if link != from {
            return Err(WireError::Range { what: "resolved.number", found: resolved.number });
        }
        match who {
            Resolving::Peer { link, number } => self.answer_resolve(link, number, told),
            Resolving::Own { want, log } => {
                let pair = (want, log.origin.clone());
                let Some(gathering) = self.wants.gathering.get_mut(&pair) else { return Ok(()) };
                gathering.open.remove(&resolved.number);
                match told {
                    Some((_, at)) => drop(gathering.starts.insert(log, at)),
                    None => drop(gathering.again.insert(log)),
                }
                self.ask_times(&pair);
                self.gathered(&pair);
            }
        }
        Ok(())
    }
}
