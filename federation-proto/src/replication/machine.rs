//! The machine itself: its state, and how inputs are spread over the concerns beside this file.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use super::{
    CopyStatus, LinkId, Output, ReplicationConfig, Report, SiteStatus, StateTable, Want,
    announce::Announcing,
    convert::Checked,
    deleted::Tombstones,
    fetching::FetchOwner,
    find::Finds,
    held::Held,
    logs::{IDLE_LOOKS, LogState, Logs},
    marks::Marks,
    one_way::OneWays,
    passes::Pools,
    questions::Questions,
    refusals::Refusals,
    registration::Registrations,
    removal::Removals,
    routing::{DIGEST_INTERVAL, Routing, SINCE_KEY},
    serving::ServedFetches,
    trace::Traces,
    wants::Wants,
};
use crate::{
    copies::{AppendRefusal, INCARNATIONS_MANY, INCARNATIONS_MAX, LogInfo},
    ids::{LogName, NodeName, Offset, Pattern, Place, Queue, Site, Topic},
    session::{FetchEnded, FetchNumber, FetchOrder, NodeKind, PeerInfo, vitals::Trouble},
    wire::link,
};

/// A link that is up.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: PeerInfo,
    pub(super) next_fetch: FetchNumber,
    /// What was announced there last, by name of its content, and the main line's end that it told.
    pub(super) announced: BTreeMap<LogName, (u64, Offset)>,
    pub(super) announcing: Announcing,
    /// Fetches of ours open there.
    pub(super) open_fetches: usize,
    /// Why what comes over it does not arrive.
    pub(super) trouble: Option<Trouble>,
    /// Which rate limit holds back what comes, in words.
    pub(super) limited: Option<String>,
}

impl Link {
    fn new(peer: PeerInfo) -> Self {
        let announcing = Announcing::default();
        Self {
            peer,
            next_fetch: 0,
            announced: BTreeMap::new(),
            announcing,
            open_fetches: 0,
            trouble: None,
            limited: None,
        }
    }
}

/// The machine; see the module's documentation.
#[derive(Debug)]
pub struct Replication {
    pub(super) config: ReplicationConfig,
    pub(super) now: Duration,
    pub(super) wall_us: u64,
    pub(super) out: VecDeque<Output>,
    pub(super) transit: bool,
    /// Why nothing more can be stored here, and since when.
    pub(super) stopped: Option<(String, Duration)>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) routing: Routing,
    pub(super) logs: Logs,
    pub(super) wants: Wants,
    pub(super) fetches: BTreeMap<(LinkId, FetchNumber), FetchOwner>,
    pub(super) served: ServedFetches,
    pub(super) pools: Pools,
    pub(super) retries: BTreeSet<(Duration, LogName)>,
    /// Logs whose fetches ended with a link, until they are planned anew.
    pub(super) unfed: Vec<LogName>,
    pub(super) held: Held,
    pub(super) registrations: Registrations,
    pub(super) removals: Removals,
    pub(super) marks: Marks,
    pub(super) questions: Questions,
    pub(super) gaps: BTreeSet<LogName>,
    /// Logs with pending holes.
    pub(super) holed: BTreeSet<LogName>,
    /// Own logs of which nothing is left here but others offered, and for how many ticks answers have been gathered.
    pub(super) regaining: BTreeMap<LogName, u32>,
    pub(super) one_ways: OneWays,
    pub(super) traces: Traces,
    pub(super) finds: Finds,
    pub(super) tombstones: Tombstones,
    pub(super) refusals: Refusals,
    /// Logs whose begin moved: announced with the next tick.
    trimmed: BTreeSet<LogName>,
    /// Somewhere a blank copy's origin turned out to have no such log.
    pub(super) none_to_tell: bool,
    counters: BTreeMap<&'static str, u64>,
    next_tick: Duration,
    next_digest: Duration,
}

impl Replication {
    /// A machine with nothing but its settings.
    pub fn new(config: ReplicationConfig, now: Duration) -> Self {
        let mut machine = Self {
            routing: Routing::new(config.start, now),
            transit: !config.no_transit,
            stopped: None,
            next_tick: now.saturating_add(config.mark_interval),
            next_digest: now.saturating_add(DIGEST_INTERVAL),
            config,
            now,
            wall_us: 0,
            out: VecDeque::new(),
            links: BTreeMap::new(),
            logs: Logs::default(),
            wants: Wants::default(),
            fetches: BTreeMap::new(),
            served: BTreeMap::new(),
            pools: Pools::default(),
            retries: BTreeSet::new(),
            unfed: Vec::new(),
            held: Held::default(),
            registrations: Registrations::default(),
            removals: Removals::new(),
            marks: Marks::default(),
            questions: Questions::default(),
            gaps: BTreeSet::new(),
            holed: BTreeSet::new(),
            regaining: BTreeMap::new(),
            one_ways: OneWays::default(),
            traces: Traces::default(),
            finds: Finds::default(),
            tombstones: Tombstones::default(),
            refusals: Refusals::default(),
            trimmed: BTreeSet::new(),
            none_to_tell: false,
            counters: BTreeMap::new(),
        };
        machine.renew_own_record();
        machine
    }

    /// Brings back durable state before anything else: tables' pairs, and the copies held. Pairs that cannot be read are
    /// reported and forgotten; what they said is stated anew by those who said it.
    pub fn restore(&mut self, states: Vec<(StateTable, Bytes, Bytes)>, logs: Vec<(LogName, LogInfo)>) {
        let mut begun = self.config.kind != NodeKind::Edge;
        for (table, key, value) in states {
            let read = match table {
                StateTable::Starts => {
                    self.wants.restore_start(&key);
                    Ok(())
                }
                StateTable::Registrations => self.registrations.restore_ours(&value),
                StateTable::Node if key == SINCE_KEY => {
                    begun = true;
                    self.routing.restore_since(&value)
                }
                // Other facts of the node are not this machine's.
                StateTable::Node => Ok(()),
                StateTable::Held => self.held.restore(&value),
                StateTable::Sites => self.registrations.restore_site(&value),
                StateTable::Nodes => self.routing.restore_node(&key),
                StateTable::Removed => self.restore_removal(&value),
                StateTable::Deleted => self.tombstones.restore(&key, &value),
            };
            if let Err(why) = read {
                let text = format!("a stored value of {table:?} cannot be read and is forgotten: {why}");
                self.report("stored-state-unreadable", text);
            }
        }
        self.forget_removed();
        self.report_restored_refusals();
        if !begun {
            self.begin_data();
        }
        self.report_restored_differences();
        self.renew_own_record();
        for (log, info) in logs {
            self.handle_log(self.now, log.clone(), Some(info.clone()), Some(info));
            if let Some(state) = self.logs.get_mut(&log) {
                state.at_start = state.edges().iter().map(|e| e.incarnation).collect();
            }
        }
    }

    pub(super) fn at(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    pub(super) fn report(&mut self, name: &'static str, text: String) {
        self.report_of(name, "", text);
    }

    /// Of one subject the newest is kept.
    pub(super) fn report_of(&mut self, name: &'static str, subject: impl std::fmt::Display, text: String) {
        self.out.push_back(Output::Report(Report { name, subject: subject.to_string(), text }));
    }

    /// A site's edge broker said something so long ago; what was said before the machine began is not noted.
    pub(super) fn note_heard(&mut self, site: &Site, ago: Duration) {
        let Some(at) = self.now.checked_sub(ago) else { return };
        let known = self.held.heard.entry(site.clone()).or_insert(at);
        *known = at.max(*known);
    }

    pub(super) fn count(&mut self, name: &'static str) {
        let counter = self.counters.entry(name).or_insert(0);
        *counter = counter.saturating_add(1);
    }

    /// Something past a bound: counted, and told to people.
    pub(super) fn refuse(&mut self, name: &'static str, text: String) {
        self.count(name);
        self.report(name, text);
    }

    /// A want is there (at start, or new); an edge broker's only.
    pub fn handle_want(&mut self, now: Duration, want: Want) {
        self.at(now);
        self.own_want(want);
    }

    /// A want of this site is gone.
    pub fn handle_want_removed(&mut self, now: Duration, id: &str) {
        self.at(now);
        self.own_want_removed(id);
    }

    /// A link came up.
    pub fn handle_link_up(&mut self, now: Duration, link: LinkId, peer: PeerInfo) {
        self.at(now);
        self.links.insert(link, Link::new(peer));
        self.renew_own_record();
        self.tell_removals(link);
        self.close_removed();
        self.tell_first();
        self.send_digest(link);
        self.due_questions();
    }

    /// A link went down; its fetches are over.
    pub fn handle_link_down(&mut self, now: Duration, link: LinkId) {
        self.at(now);
        if self.links.remove(&link).is_none() {
            return;
        }
        self.served_link_down(link);
        self.fetches_link_down(link);
        self.renew_own_record();
        self.wants_link_down(link);
        for log in std::mem::take(&mut self.unfed) {
            self.evaluate(&log);
        }
    }

    /// A control message that the session handed up. What this node cannot read of it was mostly written by a node farther away,
    /// perhaps a newer one: it is dropped, counted and reported, and costs the neighbour that passed it on nothing.
    pub fn handle_message(&mut self, now: Duration, link: LinkId, message: link::control::Kind) {
        self.at(now);
        if !self.links.contains_key(&link) {
            return;
        }
        if let Err(why) = self.dispatch(link, message) {
            let peer = self.links.get(&link).map(|l| l.peer.node.to_string()).unwrap_or_default();
            self.refuse(
                "message-not-understood",
                format!("a message from {peer} is left out: {why}; see whether all nodes run versions that fit"),
            );
        }
    }

    fn dispatch(&mut self, from: LinkId, message: link::control::Kind) -> Checked<()> {
        use link::control::Kind;
        match message {
            Kind::WantPut(m) => self.handle_want_put(from, &m),
            Kind::WantDrop(m) => {
                self.handle_want_drop(from, m.key);
                Ok(())
            }
            Kind::Announce(m) => self.handle_announce(from, &m),
            Kind::AnnounceEnd(m) => self.handle_announce_end(from, &m),
            Kind::Unannounce(m) => self.handle_unannounce(from, &m),
            Kind::Resolve(m) => self.handle_resolve(from, &m),
            Kind::Resolved(m) => self.handle_resolved(from, &m),
            Kind::Carried(m) => {
                self.handle_carried(from, m);
                Ok(())
            }
            Kind::MarksAsk(m) => self.handle_marks_ask(from, &m),
            Kind::MarksTold(m) => self.handle_marks_told(from, &m),
            Kind::Pace(m) => {
                self.send(from, Kind::Paced(link::Paced { number: m.number }));
                Ok(())
            }
            Kind::Paced(m) => {
                self.handle_paced(from, m.number);
                Ok(())
            }
            Kind::Record(m) => self.handle_record(from, m),
            Kind::SitesRemoved(m) => self.hear_removals(from, &m),
            Kind::RecordDigest(m) => {
                self.handle_digest(from, &m);
                Ok(())
            }
            // The session's own.
            Kind::Hello(_)
            | Kind::Refuse(_)
            | Kind::Goodbye(_)
            | Kind::Credit(_)
            | Kind::Probe(_)
            | Kind::Condition(_)
            | Kind::ProbeReply(_)
            | Kind::Fetch(_)
            | Kind::FetchMore(_)
            | Kind::FetchStop(_) => Ok(()),
        }
    }

    /// A peer asks for a log.
    pub fn handle_fetch_requested(&mut self, now: Duration, link: LinkId, order: FetchOrder) {
        self.at(now);
        self.fetch_requested(link, order);
    }

    /// A fetch that we served from our copy ran outside it at `next`; `room` is what its asker has granted, in bytes.
    pub fn handle_served_outside(&mut self, now: Duration, link: LinkId, number: FetchNumber, next: Place, room: u64) {
        self.at(now);
        self.served_outside((link, number), next, room);
    }

    /// A fetch of the peer that we feed by [`Output::Pass`] moved on or was given more room by its asker: `next` is where it
    /// stands, `passed` how many bytes were sent to the asker since that `Pass`, `room` how many more it has granted. Call it
    /// when the allowance or credit grew, and whenever about 256 KiB more were sent on.
    pub fn handle_served_room(
        &mut self,
        now: Duration,
        link: LinkId,
        number: FetchNumber,
        next: Place,
        passed: u64,
        room: u64,
    ) {
        self.at(now);
        self.served_room((link, number), next, passed, room);
    }

    /// A batch of so many bytes came for the pass ([`Output::Pass`]) that feeds this fetch of the peer.
    pub fn handle_pass_arrived(&mut self, now: Duration, link: LinkId, number: FetchNumber, bytes: u64) {
        self.at(now);
        self.pass_arrived((link, number), bytes);
    }

    /// A fetch of the peer is over: its asker stopped it, or the session ended it by itself (`no_wait`, `until`, failed read).
    pub fn handle_served_over(&mut self, now: Duration, link: LinkId, number: FetchNumber) {
        self.at(now);
        self.served_over((link, number));
    }

    /// The log that a fetch of ours stores into: its views must be up to date ([`Replication::handle_log`]) before the
    /// fetch's end is told. `None`: it is passing, or over.
    pub fn fetched_log(&self, link: LinkId, number: FetchNumber) -> Option<&LogName> {
        match self.fetches.get(&(link, number))? {
            FetchOwner::Copy(log, _) => Some(log),
            FetchOwner::Pass(..) => None,
        }
    }

    /// A fetch of ours ended.
    pub fn handle_fetch_ended(&mut self, now: Duration, link: LinkId, ended: FetchEnded) {
        self.at(now);
        self.fetch_ended(link, ended);
    }

    /// The log refused a batch of a fetch of ours (gap, broken chain): the fetch was stopped; decide anew.
    pub fn handle_refused_batch(&mut self, now: Duration, link: LinkId, number: FetchNumber, refusal: AppendRefusal) {
        self.at(now);
        self.batch_refused(link, number, &refusal);
    }

    /// Whether this node may carry transit (poisoned, out of disk, replaying, draining: no).
    pub fn handle_transit(&mut self, now: Duration, allowed: bool) {
        self.at(now);
        let allowed = allowed && self.stopped.is_none();
        if self.transit != allowed {
            self.transit = allowed;
            self.renew_own_record();
        }
    }

    /// Nothing more can be stored here until this process ends; `why` says it in a sentence. What is held is served on, what
    /// comes after it is read through, and nothing is fetched or begun for this node itself.
    pub fn handle_stopped(&mut self, now: Duration, why: &str) {
        if self.stopped.is_some() {
            return;
        }
        self.stopped = Some((why.to_owned(), now));
        self.handle_transit(now, false);
        for origin in self.logs.origins() {
            self.evaluate_origin(&origin);
            for log in self.logs.names_of_origin(&origin) {
                // A copy that was to be begun never will be.
                self.decide_waiting(&log);
            }
        }
    }

    /// Tells people of forks that a log has now and had not before.
    fn report_forks(&mut self, log: &LogName, was: Option<&LogInfo>) {
        let Some((was, now)) = was.zip(self.logs.get(log).and_then(|s| s.submitted.as_ref())) else { return };
        let known = |tip: &Place| was.fork_tips.iter().any(|w| w.incarnation == tip.incarnation);
        let Some(tip) = now.fork_tips.iter().rfind(|tip| !known(tip)).copied() else { return };
        let text = format!(
            "{log} has a fork up to {tip}, beside its main line: the origin's data was restored, lost or used twice; both parts are kept, and \
             readers get each message once"
        );
        self.report_of("fork", log, text);
    }

    /// A copy or own log changed: submitted view (what the next batch must follow) and durable view (what may be stated to
    /// others); `None`: there is no such log in that view. [`Replication::restore`] gives the views that there are at the start.
    pub fn handle_log(&mut self, now: Duration, log: LogName, submitted: Option<LogInfo>, durable: Option<LogInfo>) {
        self.at(now);
        let max = self.config.logs_max;
        let own = self.config.is_origin_of(&log.origin);
        let Some(state) = self.logs.entry_held(&log, max) else {
            let text = format!("log {log} is not replicated: {max} are known already; raise the bound of logs");
            return self.refuse("too-many-logs", text);
        };
        let was_submitted = std::mem::replace(&mut state.submitted, submitted);
        let was_durable = std::mem::replace(&mut state.durable, durable);
        let appeared = was_submitted.is_none() && state.submitted.is_some();
        let gone = state.submitted.is_none() && (was_submitted.is_some() || state.beginning);
        if appeared || gone {
            (state.beginning, state.begins) = (false, None);
        }
        let control_gone = own && gone && log.queue == Queue::CONTROL;
        let incarnations = |info: &Option<LogInfo>| info.as_ref().map_or(0, |i| i.incarnations.len());
        let many =
            incarnations(&was_submitted) < INCARNATIONS_MANY && incarnations(&state.submitted) >= INCARNATIONS_MANY;
        let grew = was_submitted.as_ref().map(|i| i.end) != state.submitted.as_ref().map(|i| i.end);
        if grew {
            state.failures = 0;
            (state.trouble, state.refuses, state.none_there) = (None, false, false);
            state.moved_at = self.now;
        }
        let (lacked, lacks) = (LogState::pending(was_submitted.as_ref()), LogState::pending(state.submitted.as_ref()));
        if lacks > 0 && (lacks < lacked || lacked == 0) {
            state.filled_at = self.now;
        }
        if many {
            self.report("many-incarnations", many_incarnations(&log, own));
        }
        self.report_forks(&log, was_submitted.as_ref());
        let Some(state) = self.logs.get(&log) else { return };
        let seen = |now: &Option<LogInfo>, was: &Option<LogInfo>| Change::between(was.as_ref(), now.as_ref());
        let change = if own { seen(&state.durable, &was_durable) } else { seen(&state.submitted, &was_submitted) };
        let stated = state.durable != was_durable;
        if gone && state.durable.is_none() {
            self.unannounce(&log);
        }
        if control_gone {
            self.own_tombstone_over(&log);
        }
        if change.line {
            self.announce_log(&log);
        } else if change.begin {
            self.trimmed.insert(log.clone());
        }
        if stated {
            self.durable_changed(&log, own, was_durable.as_ref());
        }
        if appeared || grew || change.begin {
            self.remove_dead(&log);
        }
        if appeared {
            self.decide_waiting(&log);
        }
        if grew {
            self.take_over_passes(&log);
        }
        if change.holes {
            self.holes_changed(&log);
        }
        if appeared || gone || change.line || change.holes || (grew && self.has_overshot(&log)) {
            self.evaluate(&log);
        }
    }

    fn durable_changed(&mut self, log: &LogName, own: bool, was: Option<&LogInfo>) {
        if !own {
            return self.state_held(log);
        }
        let end = self.logs.get(log).and_then(|s| s.durable.as_ref()).and_then(|info| {
            let newest = info.incarnations.last()?;
            Some((info.end, newest.chain_at_end))
        });
        if let Some((place, chain)) = end {
            self.held.boundary(log, place, chain);
        }
        self.mark_changed(log, was);
    }

    /// This node publishes a one-way message; origin, start and sequence are set here.
    pub fn handle_publish_one_way(&mut self, now: Duration, message: link::OneWayBody) {
        self.at(now);
        if self.publish_one_way(message).is_err() {
            self.count("one_way_dropped_malformed");
        }
    }

    /// The session received a one-way message on `link`.
    pub fn handle_one_way(&mut self, now: Duration, link: LinkId, message: link::OneWay) {
        self.at(now);
        self.receive_one_way(link, message);
    }

    /// Answers [`Output::FindTime`]: the first batch, or the main line's end if none is so late; `None` if it cannot be told.
    pub fn handle_time_found(&mut self, now: Duration, token: u64, place: Option<Place>) {
        self.at(now);
        self.time_found(token, place);
    }

    /// Time passed; `wall_us` is the wall clock, microseconds since 1970.
    pub fn handle_timeout(&mut self, now: Duration, wall_us: u64) {
        self.at(now);
        self.wall_us = wall_us;
        self.flush_held();
        self.due_retries();
        self.due_questions();
        if self.held.answer_at.is_some_and(|at| at <= self.now) {
            self.answer_statements();
        }
        if self.now < self.next_tick {
            return;
        }
        self.next_tick = self.now.saturating_add(self.config.mark_interval);
        self.send_marks();
        self.ask_marks_again();
        self.repeat_statements();
        self.store_statements();
        self.check_ahead();
        self.repeat_registrations();
        self.send_traces();
        self.resolve_again();
        if self.stopped.is_none() {
            self.begin_regaining();
            self.ask_about_gaps();
            self.check_gaps();
            self.check_holes();
        }
        self.look_at_tombstones();
        self.lend_idle_passes();
        self.tell_none_there();
        self.age_records();
        self.look_for_twin();
        self.logs.forget_idle(IDLE_LOOKS);
        for log in std::mem::take(&mut self.trimmed) {
            self.announce_log(&log);
        }
        if self.now >= self.next_digest {
            self.next_digest = self.now.saturating_add(DIGEST_INTERVAL);
            let links: Vec<LinkId> = self.links.keys().copied().collect();
            for link in links {
                self.send_digest(link);
            }
        }
    }

    /// When to call [`Replication::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Duration> {
        let retry = self.retries.first().map(|(at, _)| *at);
        let held = [self.held.flush_at, self.held.answer_at];
        [Some(self.next_tick), retry, self.next_question()].into_iter().chain(held).flatten().min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// An edge broker's process began anew: it may have lost what it was told.
    pub(super) fn origin_restarted(&mut self, origin: &Site) {
        self.statements_anew(origin);
        self.registration_anew(origin);
        if self.routing.upstream(origin).is_some() {
            self.site_appeared();
        }
    }

    /// Whether a session with this neighbour is up.
    pub fn is_linked_with(&self, node: &NodeName) -> bool {
        self.links.values().any(|link| link.peer.node == *node)
    }

    /// Whether a session with any neighbour is up.
    pub fn is_linked(&self) -> bool {
        !self.links.is_empty()
    }

    /// The edge broker that counts for this node's site, where it is another one: then this one must take no messages.
    pub fn outdone_by(&self) -> Option<NodeName> {
        self.routing.outdone_by(&self.config.node).cloned()
    }

    /// The sites registered for a topic of this origin, in order of name.
    pub fn registered(&self, topic: &Topic) -> Vec<Site> {
        self.registered_sites(topic)
    }

    /// Whether a site has stated to hold the message at this place of a log of ours (and not a hole).
    pub fn site_holds(&self, site: &Site, log: &LogName, place: Place) -> bool {
        self.is_held_by(site, log, place)
    }

    /// Which sites count as registered from now on; see [`ReplicationConfig::replicate`].
    pub fn handle_replicate(&mut self, now: Duration, replicate: Vec<(Pattern, Option<Vec<Site>>)>) {
        self.at(now);
        if self.config.replicate != replicate {
            self.config.replicate = replicate;
            self.out.push_back(Output::RegistrationsChanged);
        }
    }

    /// State of a log.
    pub fn copy_status(&self, now: Duration, log: &LogName) -> Option<CopyStatus> {
        self.status_of(now, log)
    }

    /// Counters by cause: dropped one-way messages, refused announcements and so on; the names are stable.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.iter().map(|(name, value)| (*name, *value)).collect()
    }

    /// The sites known, in order of name.
    pub fn sites(&self) -> Vec<SiteStatus> {
        let mut names = self.routing.known_sites();
        names.extend(self.registrations.sites().cloned());
        names.retain(|site| !self.removals.contains_key(site));
        names
            .into_iter()
            .map(|site| SiteStatus {
                nodes: self.routing.nodes_of(&site),
                next_hop: self.routing.upstream(&site),
                via: self.routing.upstream(&site).and_then(|link| self.links.get(&link)).map(|l| l.peer.node.clone()),
                cost: self.routing.cost(&site),
                round_trip: self.round_trip(&site),
                held: self
                    .held
                    .of_site(&site)
                    .map(|(log, below, compared)| {
                        let registered = self.registrations.is_registered(&site);
                        (log, below, registered, compared)
                    })
                    .collect(),
                proven: self.held.proven_of(&site).collect(),
                site,
            })
            .collect()
    }

    /// This node's kind.
    pub fn kind(&self) -> NodeKind {
        self.config.kind
    }
}

fn many_incarnations(log: &LogName, own: bool) -> String {
    let from = if own { "this node publishes" } else { "its origin publishes" };
    format!(
        "{INCARNATIONS_MANY} starts are retained of log {log} and at most {INCARNATIONS_MAX} may be, one for each restart after \
         which {from}: then it takes nothing from a new start; give its topic a retention (retention_age, retention_size), \
         and look why the origin restarts so often"
    )
}

/// What differs between two views of a log, newest ends aside.
#[derive(Debug, Clone, Copy)]
struct Change {
    line: bool,
    begin: bool,
    holes: bool,
}

impl Change {
    fn between(was: Option<&LogInfo>, now: Option<&LogInfo>) -> Self {
        let (Some(was), Some(now)) = (was, now) else {
            let same = was.is_none() && now.is_none();
            return Self { line: !same, begin: !same, holes: !same };
        };
        let names = |i: &LogInfo| (i.incarnations.len(), i.incarnations.last().map(|i| i.incarnation));
        // What was jumped into may turn out to be joined.
        let ways = |i: &LogInfo| i.incarnations.iter().filter(|i| i.jumped).count();
        // A fork's part may grow without the main line's end moving.
        let forks = was.fork_tips != now.fork_tips;
        Self {
            line: names(was) != names(now) || forks || ways(was) != ways(now),
            begin: was.begin != now.begin,
            holes: was.holes != now.holes,
        }
    }
}
