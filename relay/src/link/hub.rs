//! The hub: owns the node's one replication machine, brings it what links and commit log tell, and carries out what it asks.
//!
//! Every input takes the lock, feeds the machine and turns its outputs into actions; the actions are then carried out without
//! the lock, by one caller at a time, so their order is the machine's. What may wait on the disk, and what the commit log's
//! listener told, is left for [`Hub::pump`], which a thread of the node's calls whenever `wake` was called or
//! [`Hub::poll_timeout`] has come; simulation calls it after each event.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use seaway_federation_proto::{
    control::Control,
    copies::{AppendRefusal, Hole},
    envelope::Batch,
    ids::{LogName, NodeName, Pattern, Place, Queue, Site, Topic},
    replication::{
        Change, CopyStatus, ExplainedWay, Finding, KnownLink, KnownNode, LinkId, Need, OnlyThere, Output, RemoteHeld,
        Removal, Replication, ReplicationConfig, Report, SiteStatus, StateTable, Want,
    },
    session::{CloseReason, FetchEnded, FetchNumber, FetchOrder, Lane, PeerInfo, vitals::Trouble},
    wire::link,
};

use super::{
    alarms::Alarms,
    command::{LinkCommand, Mailbox},
    controls::Controls,
    passing::{PassPool, PassTicket},
    port::HubPort,
    stores::{OnceDurable, Stores, table_of},
};
use crate::{
    log::contract::{Advanced, CommitLog},
    node::Alarm,
};

/// What the hub tells its node. Called without any lock of the hub's, in the machine's order; must not wait.
pub trait NodePort: Send + Sync {
    /// A site's statement.
    fn on_remote_held(&self, held: RemoteHeld);
    /// [`Hub::registered`] may answer something else now.
    fn on_registrations_changed(&self);
    /// A site was removed from the federation: nobody waits for it any more.
    fn on_site_removed(&self, _site: &Site) {}
    /// A one-way message for local subscribers.
    fn on_one_way(&self, message: Box<link::OneWayBody>);
    /// A log moved, appeared or went.
    fn on_log(&self, log: &LogName);
}

enum Action {
    Post(Arc<dyn Mailbox>, LinkCommand),
    /// Not before the changes that came before it are accepted.
    StartFetch(LinkId, Arc<dyn Mailbox>, FetchOrder),
    StopFetch(LinkId, Arc<dyn Mailbox>, FetchNumber),
    /// Not before the changes that came before it are durable.
    PostDurable(Arc<dyn Mailbox>, LinkCommand),
    Store(Vec<Change>),
    /// The machine was told what there was no room to store; what it promised before that was asked before this.
    NotStoredKnown,
    Held(RemoteHeld),
    RegistrationsChanged,
    SiteRemoved(Site),
    OneWay(Box<link::OneWayBody>),
    Report(Report),
    ReportOver(&'static str, String),
}

struct LinkEntry {
    mailbox: Arc<dyn Mailbox>,
    up: bool,
    /// What is read through for the peer, by lane.
    passing: BTreeMap<Lane, PassPool>,
}

struct FindTime {
    token: u64,
    log: LogName,
    time_us: u64,
}

/// A fetch on a link, ours or the peer's.
type FetchKey = (LinkId, FetchNumber);

struct Core {
    machine: Replication,
    links: BTreeMap<LinkId, LinkEntry>,
    /// Our passing fetches, and the peers' fetches that they feed.
    passes: BTreeMap<FetchKey, FetchKey>,
    /// Peers' fetches, and who is to be told when a log moves.
    served: BTreeMap<FetchKey, LogName>,
    serving: BTreeMap<LogName, BTreeSet<FetchKey>>,
    find_times: Vec<FindTime>,
    actions: Vec<Action>,
    /// Somebody carries out actions at this moment and will take these too.
    acting: bool,
    one_way_dropped: u64,
}

/// See the module's documentation.
pub struct Hub {
    log: Arc<dyn CommitLog>,
    node: Arc<dyn NodePort>,
    wake: Arc<dyn Fn() + Send + Sync>,
    core: Mutex<Core>,
    stores: Stores,
    /// What the control queues held here say.
    controls: Controls,
    alarms: Arc<Alarms>,
    /// Logs that moved since the last pump: at most as many as there are logs.
    advanced: Arc<Mutex<BTreeSet<LogName>>>,
    /// One pump at a time.
    pumping: Mutex<()>,
    /// Held from reading a log's state to telling the machine, so that it never hears of an older state after a newer one.
    viewing: Mutex<()>,
    /// The machine knows that the commit log takes nothing more.
    stopped: AtomicBool,
    wall_us: AtomicU64,
    next_link: AtomicU64,
}

mod views;

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

impl Hub {
    /// A hub over its commit log, with the machine's durable state brought back; it becomes the log's listener. `wake` is called
    /// from any thread when [`Hub::pump`] has something to do; it must not block or call back.
    pub fn open(
        config: ReplicationConfig,
        log: Arc<dyn CommitLog>,
        node: Arc<dyn NodePort>,
        alarms: Arc<Alarms>,
        wake: Arc<dyn Fn() + Send + Sync>,
        now: Duration,
        wall_us: u64,
    ) -> Arc<Hub> {
        let mut machine = Replication::new(config, now);
        let tables = StateTable::ALL;
        let states =
            tables.into_iter().flat_map(|t| log.scan(table_of(t), &[]).into_iter().map(move |(k, v)| (t, k, v)));
        let logs = log.logs().into_iter().filter_map(|name| Some((name.clone(), log.info(&name, true)?)));
        machine.restore(states.collect(), logs.collect());
        let core = Core {
            machine,
            links: BTreeMap::new(),
            passes: BTreeMap::new(),
            served: BTreeMap::new(),
            serving: BTreeMap::new(),
            find_times: Vec::new(),
            actions: Vec::new(),
            acting: false,
            one_way_dropped: 0,
        };
        let hub = Arc::new(Hub {
            stores: Stores::new(log.clone(), wake.clone()),
            controls: Controls::default(),
            log,
            node,
            wake,
            core: Mutex::new(core),
            alarms,
            advanced: Arc::default(),
            pumping: Mutex::new(()),
            viewing: Mutex::new(()),
            stopped: AtomicBool::new(false),
            wall_us: AtomicU64::new(wall_us),
            next_link: AtomicU64::new(1),
        });
        let (advanced, wake) = (hub.advanced.clone(), hub.wake.clone());
        hub.log.set_listener(Arc::new(move |news: &[Advanced]| {
            let mut set = advanced.lock();
            let known = set.len();
            set.extend(news.iter().map(|n| n.log.clone()));
            let grown = set.len() > known;
            drop(set);
            if grown {
                wake();
            }
        }));
        // What they said before this start is read with the first turns.
        hub.controls.list(hub.log.logs());
        (hub.wake)();
        hub.act(|_| {});
        hub
    }

    /// Gives a new link its id and makes its mailbox known; to be called before its driver is made.
    pub fn attach(&self, mailbox: Arc<dyn Mailbox>) -> LinkId {
        let link = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        self.core.lock().links.insert(link, LinkEntry { mailbox, up: false, passing: BTreeMap::new() });
        link
    }

    /// Does what waits: news of the commit log, looks for times, retries, timers.
    pub fn pump(&self, now: Duration, wall_us: u64) {
        let _one_at_a_time = self.pumping.lock();
        self.wall_us.store(wall_us, Ordering::Relaxed);
        self.stores.pump(now);
        self.pump_logs(now);
        self.pump_controls(now);
        self.pump_find_times(now);
        let due = |core: &Core| core.machine.poll_timeout().is_some_and(|at| at <= now);
        if due(&self.core.lock()) {
            self.act(|core| core.machine.handle_timeout(now, wall_us));
        }
    }

    fn pump_logs(&self, now: Duration) {
        let logs = mem::take(&mut *self.advanced.lock());
        for name in &logs {
            self.view(now, name, |core| core.tell_serving(name));
            if name.queue == Queue::CONTROL {
                self.read_control(now, name);
            }
            self.node.on_log(name);
        }
    }

    /// Reads on in control queues that were there when the process began: a part in each turn.
    fn pump_controls(&self, now: Duration) {
        for name in self.controls.take_listed(now) {
            self.read_control(now, &name);
        }
        if self.controls.has_listed() {
            (self.wake)();
        }
    }

    /// Reads on in a control queue, and tells the machine what it says.
    fn read_control(&self, now: Duration, name: &LogName) {
        match self.controls.advance(&*self.log, name) {
            Ok(news) => {
                if self.controls.was_read(name) {
                    self.alarms.clear_one("read-failed", &name.to_string());
                }
                if let Some(control) = news {
                    self.act(|core| core.machine.handle_control(now, name, &control));
                }
            }
            Err(error) => {
                self.controls.was_not_read(now, name);
                let report = Report { name: "read-failed", subject: name.to_string(), text: error.to_string() };
                self.alarms.raise(report, self.wall_us());
            }
        }
    }

    /// What the control queue of an origin's topic says, as far as it is held here.
    pub fn control(&self, topic: &Topic, origin: &Site) -> Option<Arc<Control>> {
        self.controls.get(topic, origin)
    }

    /// The largest message of others' topics that this site takes; told before anything is read of them.
    pub fn set_accepts(&self, message_bytes_max: u64) {
        self.act(|core| core.machine.handle_accepts(message_bytes_max));
    }

    /// The sites that refuse a topic of this origin, and why.
    pub fn refused_by(&self, topic: &Topic) -> Vec<(Site, String)> {
        self.core.lock().machine.refused_by(topic)
    }

    /// See [`Replication::not_taken_by`].
    pub fn not_taken_by(&self, topic: &Topic) -> Vec<(Site, String)> {
        self.core.lock().machine.not_taken_by(topic)
    }

    /// See [`Replication::untaken_at`].
    pub fn untaken_at(&self, site: &Site) -> Vec<(Topic, String)> {
        self.core.lock().machine.untaken_at(site)
    }

    /// Which sites count as registered, from now on; see [`ReplicationConfig::replicate`].
    pub fn set_replicate(&self, now: Duration, replicate: Vec<(Pattern, Option<Vec<Site>>)>) {
        self.act(|core| core.machine.handle_replicate(now, replicate));
    }

    /// Tells the machine how a log is now, and what follows from it.
    fn view(&self, now: Duration, name: &LogName, then: impl FnOnce(&mut Core)) {
        let viewing = self.viewing.lock();
        let (submitted, durable) = (self.log.info(name, false), self.log.info(name, true));
        let mut core = self.core.lock();
        core.machine.handle_log(now, name.clone(), submitted, durable);
        then(&mut core);
        core.collect();
        drop(viewing);
        self.carry_out(core);
    }

    fn pump_find_times(&self, now: Duration) {
        loop {
            let questions = mem::take(&mut self.core.lock().find_times);
            if questions.is_empty() {
                return;
            }
            for FindTime { token, log, time_us } in questions {
                let place = self.log.find_time(&log, time_us).unwrap_or_else(|error| {
                    self.alarms.raise(
                        Report { name: "read-failed", subject: String::new(), text: error.to_string() },
                        self.wall_us(),
                    );
                    None
                });
                self.act(|core| core.machine.handle_time_found(now, token, place));
            }
        }
    }

    /// When to call [`Hub::pump`] at the latest.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let machine = self.core.lock().machine.poll_timeout();
        [machine, self.stores.poll_timeout(), self.controls.poll_timeout()].into_iter().flatten().min()
    }

    /// A want is there: at start, or made durable since.
    pub fn put_want(&self, now: Duration, want: Want) {
        self.act(|core| core.machine.handle_want(now, want));
    }

    /// A want is gone.
    pub fn remove_want(&self, now: Duration, id: &str) {
        self.act(|core| core.machine.handle_want_removed(now, id));
    }

    /// Publishes a one-way message of this site's.
    pub fn publish_one_way(&self, now: Duration, message: link::OneWayBody) {
        self.act(|core| core.machine.handle_publish_one_way(now, message));
    }

    /// Whether this node may be others' next hop (poisoned, out of disk, draining: no).
    pub fn set_transit(&self, now: Duration, allowed: bool) {
        self.act(|core| core.machine.handle_transit(now, allowed));
    }

    /// The commit log takes nothing more until this process ends; `why` says it in a sentence. The links stay, and what is
    /// held is served on; see [`Replication::handle_stopped`].
    pub fn stop_storing(&self, now: Duration, why: &str) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        self.act(|core| {
            core.machine.handle_stopped(now, why);
            self.stopped.store(true, Ordering::Release);
            // Fetches that wait at the end of a copy wait in vain: they are looked at again.
            let logs: Vec<LogName> = core.serving.keys().cloned().collect();
            logs.iter().for_each(|log| core.tell_serving(log));
        });
    }

    /// Closes every link in peace.
    pub fn close_links(&self, why: &str) {
        let mailboxes: Vec<_> = self.core.lock().links.values().map(|l| l.mailbox.clone()).collect();
        for mailbox in mailboxes {
            mailbox.post(LinkCommand::Close(CloseReason::Goodbye(why.to_owned())));
        }
    }

    /// Links attached and not closed yet.
    pub fn links(&self) -> usize {
        self.core.lock().links.len()
    }

    /// Removes a site from the federation; see [`Replication::remove_site`]. `stored` is called once that is durable here, and
    /// dropped where it is not known to be.
    ///
    /// # Errors
    /// A sentence; nothing is stored then.
    pub fn remove_site(
        &self,
        now: Duration,
        site: &Site,
        at_us: u64,
        stored: Box<dyn FnOnce() + Send>,
    ) -> Result<(), String> {
        let mut result = Ok(());
        self.act(|core| {
            result = core.machine.remove_site(now, site, at_us);
            core.collect();
            if result.is_ok() {
                let promise = Arc::new(OnceDurable::new(stored));
                core.actions.push(Action::PostDurable(promise, LinkCommand::Retry));
            }
        });
        result
    }

    /// Gives up what a copy waits for; see [`Replication::skip`].
    ///
    /// # Errors
    /// A sentence.
    pub fn skip(&self, now: Duration, log: &LogName, really: bool) -> Result<Vec<Hole>, String> {
        let mut result = Ok(Vec::new());
        self.act(|core| result = core.machine.skip(now, log, really));
        result
    }

    /// Raises an alarm of the node's own.
    pub fn report(&self, report: Report, wall_us: u64) {
        self.alarms.raise(report, wall_us);
    }

    /// Raises an alarm that is in the program's log already.
    pub fn note(&self, report: Report, wall_us: u64) {
        self.alarms.note(report, wall_us);
    }

    /// Takes the alarms of a kind away: what they say is over.
    pub fn clear(&self, name: &str) {
        self.alarms.clear(name);
    }

    /// Takes the alarm of one subject away.
    pub fn clear_one(&self, name: &'static str, subject: &str) {
        self.alarms.clear_one(name, subject);
    }

    fn wall_us(&self) -> u64 {
        self.wall_us.load(Ordering::Relaxed)
    }

    /// Feeds the machine, then carries out what it asks.
    fn act(&self, input: impl FnOnce(&mut Core)) {
        let mut core = self.core.lock();
        input(&mut core);
        core.collect();
        if !core.find_times.is_empty() {
            (self.wake)();
        }
        self.carry_out(core);
    }

    fn carry_out(&self, mut core: MutexGuard<'_, Core>) {
        if core.acting {
            return;
        }
        core.acting = true;
        while !core.actions.is_empty() {
            let actions = mem::take(&mut core.actions);
            MutexGuard::unlocked(&mut core, || actions.into_iter().for_each(|action| self.carry_out_one(action)));
        }
        core.acting = false;
    }

    fn carry_out_one(&self, action: Action) {
        match action {
            Action::Post(mailbox, command) => mailbox.post(command),
            Action::StartFetch(link, mailbox, order) => {
                if let Some(number) = self.stores.start_fetch(link, mailbox, order) {
                    let mut core = self.core.lock();
                    core.machine.handle_not_started(link, number);
                    core.collect();
                }
            }
            Action::StopFetch(link, mailbox, number) => self.stores.stop_fetch(link, &*mailbox, number),
            Action::PostDurable(mailbox, command) => self.stores.post_durable(mailbox, command),
            Action::Store(changes) => self.store(changes),
            Action::NotStoredKnown => self.stores.machine_knows(),
            Action::Held(held) => self.node.on_remote_held(held),
            Action::RegistrationsChanged => self.node.on_registrations_changed(),
            Action::SiteRemoved(site) => self.node.on_site_removed(&site),
            Action::OneWay(message) => self.node.on_one_way(message),
            Action::Report(report) => self.alarms.raise(report, self.wall_us()),
            Action::ReportOver(name, subject) => self.alarms.clear_one(name, &subject),
        }
    }

    fn store(&self, changes: Vec<Change>) {
        let given_back = self.stores.store(changes);
        if given_back.is_empty() {
            return;
        }
        let mut core = self.core.lock();
        core.machine.handle_not_stored(given_back);
        core.collect();
        core.actions.push(Action::NotStoredKnown);
    }
}

impl Core {
    /// Turns the machine's outputs into actions.
    fn collect(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.translate(output);
        }
    }

    fn post(&mut self, link: LinkId, command: LinkCommand) {
        if let Some(entry) = self.links.get(&link) {
            self.actions.push(Action::Post(entry.mailbox.clone(), command));
        }
    }

    fn translate(&mut self, output: Output) {
        match output {
            Output::Send(link, message) => self.post(link, LinkCommand::Send(message)),
            Output::SendDurable(link, message) => {
                if let Some(entry) = self.links.get(&link) {
                    self.actions.push(Action::PostDurable(entry.mailbox.clone(), LinkCommand::Send(message)));
                }
            }
            Output::StartFetch(link, order) => {
                if let Some(entry) = self.links.get(&link) {
                    self.actions.push(Action::StartFetch(link, entry.mailbox.clone(), order));
                }
            }
            Output::StopFetch(link, number) => {
                self.passes.remove(&(link, number));
                if let Some(entry) = self.links.get(&link) {
                    self.actions.push(Action::StopFetch(link, entry.mailbox.clone(), number));
                }
            }
            // Of passing fetches, whose start does not wait.
            Output::RaiseAllowance(link, number, total) => {
                self.post(link, LinkCommand::RaiseAllowance(number, total));
            }
            Output::Serve(link, number) => self.post(link, LinkCommand::Serve(number)),
            Output::Pass(ours, theirs) => {
                self.passes.insert(ours, theirs);
            }
            Output::EndServed(link, ended) => {
                self.served_over((link, ended.number));
                self.post(link, LinkCommand::EndServed(ended));
            }
            Output::Store(changes) => self.actions.push(Action::Store(changes)),
            Output::RemoteHeld(held) => self.actions.push(Action::Held(held)),
            Output::RegistrationsChanged => self.actions.push(Action::RegistrationsChanged),
            Output::SiteRemoved(site) => self.actions.push(Action::SiteRemoved(site)),
            Output::CloseLink(link, reason, text) => {
                self.post(link, LinkCommand::Close(CloseReason::Refused { reason, text }));
            }
            Output::OneWay(message, links) => {
                for link in links {
                    if !self.links.contains_key(&link) {
                        self.one_way_dropped += 1;
                    }
                    self.post(link, LinkCommand::OneWay(message.clone()));
                }
            }
            Output::FindTime { token, log, time_us } => self.find_times.push(FindTime { token, log, time_us }),
            Output::DeliverOneWay(message) => self.actions.push(Action::OneWay(message)),
            Output::Report(report) => self.actions.push(Action::Report(report)),
            Output::ReportOver(name, subject) => self.actions.push(Action::ReportOver(name, subject)),
        }
    }

    fn tell_serving(&mut self, log: &LogName) {
        let Some(keys) = self.serving.get(log) else { return };
        let links: BTreeSet<LinkId> = keys.iter().map(|(link, _)| *link).collect();
        for link in links {
            self.post(link, LinkCommand::Advanced(log.clone()));
        }
    }

    fn serve(&mut self, key: FetchKey, log: LogName) {
        self.serving.entry(log.clone()).or_default().insert(key);
        self.served.insert(key, log);
    }

    fn served_over(&mut self, key: FetchKey) {
        let Some(log) = self.served.remove(&key) else { return };
        if let Some(keys) = self.serving.get_mut(&log) {
            keys.remove(&key);
            if keys.is_empty() {
                self.serving.remove(&log);
            }
        }
    }

    fn forget_link(&mut self, link: LinkId) -> bool {
        self.passes.retain(|ours, theirs| ours.0 != link && theirs.0 != link);
        let over: Vec<FetchKey> =
            self.served.range((link, FetchNumber::MIN)..=(link, FetchNumber::MAX)).map(|(key, _)| *key).collect();
        over.into_iter().for_each(|key| self.served_over(key));
        self.links.remove(&link).is_some_and(|entry| entry.up)
    }
}

impl HubPort for Hub {
    fn on_up(&self, now: Duration, link: LinkId, peer: PeerInfo) {
        self.act(|core| {
            if let Some(entry) = core.links.get_mut(&link) {
                entry.up = true;
                core.machine.handle_link_up(now, link, peer);
            }
        });
    }

    fn on_control(&self, now: Duration, link: LinkId, message: Box<link::control::Kind>) {
        self.act(|core| core.machine.handle_message(now, link, *message));
    }

    fn on_fetch_requested(&self, now: Duration, link: LinkId, order: FetchOrder) {
        self.act(|core| {
            core.serve((link, order.number), order.log.clone());
            core.machine.handle_fetch_requested(now, link, order);
        });
    }

    fn on_served_outside(&self, now: Duration, link: LinkId, number: FetchNumber, next: Place, room: u64) {
        self.act(|core| core.machine.handle_served_outside(now, link, number, next, room));
    }

    fn on_served_room(&self, now: Duration, link: LinkId, number: FetchNumber, next: Place, passed: u64, room: u64) {
        self.act(|core| core.machine.handle_served_room(now, link, number, next, passed, room));
    }

    fn on_served_over(&self, now: Duration, link: LinkId, number: FetchNumber) {
        self.act(|core| {
            core.served_over((link, number));
            core.machine.handle_served_over(now, link, number);
        });
    }

    fn on_fetch_ended(&self, now: Duration, link: LinkId, ended: FetchEnded) {
        let end = |core: &mut Core| {
            core.passes.remove(&(link, ended.number));
            core.machine.handle_fetch_ended(now, link, ended.clone());
        };
        // What the fetch brought is in the log, but perhaps the machine was not told yet; it must not take it for missing.
        let log = self.core.lock().machine.fetched_log(link, ended.number).cloned();
        match log {
            Some(log) => self.view(now, &log, end),
            None => self.act(end),
        }
    }

    fn on_body_version(&self, now: Duration, log: &LogName, version: u8) {
        self.act(|core| core.machine.handle_body_version(now, log, version));
    }

    fn on_refused_batch(&self, now: Duration, link: LinkId, number: FetchNumber, refusal: AppendRefusal) {
        self.act(|core| core.machine.handle_refused_batch(now, link, number, refusal));
    }

    fn on_stopped(&self, now: Duration, why: &str) {
        self.stop_storing(now, why);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn on_passed_batch(&self, now: Duration, link: LinkId, number: FetchNumber, batch: Batch, lane: Lane, credit: u64) {
        self.act(|core| {
            let bytes = batch.len() as u64;
            let to = core.passes.get(&(link, number)).copied();
            let from = core.links.get(&link).map(|entry| entry.mailbox.clone());
            let asker = to.and_then(|(to, _)| core.links.get_mut(&to));
            let (Some((to, served)), Some(from), Some(asker)) = (to, from, asker) else {
                return core.post(link, LinkCommand::Stored(lane, credit));
            };
            let pool = asker.passing.entry(lane).or_default();
            let ticket = PassTicket::take(pool, bytes, from, lane, credit);
            core.machine.handle_pass_arrived(now, to, served, bytes);
            core.post(to, LinkCommand::Passed(served, batch, ticket));
        });
    }

    fn on_condition(&self, now: Duration, link: LinkId, trouble: Option<Trouble>) {
        self.act(|core| core.machine.handle_link_condition(now, link, trouble));
    }

    fn on_limited(&self, now: Duration, link: LinkId, limited: Option<String>) {
        self.act(|core| core.machine.handle_link_limited(now, link, limited));
    }

    fn on_one_way(&self, now: Duration, link: LinkId, message: Box<link::OneWay>) {
        self.act(|core| core.machine.handle_one_way(now, link, *message));
    }

    fn on_closed(&self, now: Duration, link: LinkId, _reason: &CloseReason) {
        self.act(|core| {
            if core.forget_link(link) {
                core.machine.handle_link_down(now, link);
            }
        });
        self.stores.forget_link(link);
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
