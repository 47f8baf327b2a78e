//! What a node's handles share, and what runs in its own threads.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::LogInfo,
    ids::{LogName, NodeName, Place, Queue, Site, Start, Topic},
    replication::{RemoteHeld, Report, Want},
    session::{Lane, NodeKind, SessionConfig},
};
use tokio::sync::{Notify, Semaphore, broadcast, oneshot};

use super::{
    LogEvent, NodeConfig, PublishError, TopicConfig,
    clock::{Clock, SystemClock},
    hold_back::Keeper,
    life::{self, Progress},
    limits::LimitBook,
    one_way::OneWaySubscribers,
    origin::Origin,
    publish::Registered,
    receipts::Receipts,
    retention::{self, Keep},
    room::Room,
    space::SpaceState,
    threads::{Threads, Wake},
    time_guard::Standing,
    topics::TopicBook,
    twins::{self, Twins},
    wants,
};
use crate::{
    link::{
        driver::LinkDriver,
        hub::{Hub, NodePort},
    },
    log::contract::{CommitLog, Damage, Entry, Line, LogStats, Read, ReadError, RejectReason, Table, Unit},
    transport::{
        link::{Drive, LoggedDriver},
        mailbox::LinkMailbox,
        service::{LinkOpener, Transport},
    },
};

/// Reads that may wait on the disk at once.
pub(super) const READS_MAX: usize = 16;
/// Most fetches that a peer may have open at once.
const FETCHES_MAX: usize = 65_536;
/// Control messages that wait for a link's peer, bytes.
const CONTROL_QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How often disk and poison are looked at.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Retention and reclaiming run each so many upkeeps: 10 s.
const RETENTION_EVERY: u64 = 40;
/// While the room on the disk, in a share, in a cache or in hold-back comes near its end, each so many: 1 s.
const RETENTION_EVERY_SHORT: u64 = 4;
/// Producers are looked through each so many: 60 s.
const EXPIRE_EVERY: u64 = 240;
/// The hub's thread wakes at least so often.
const HUB_IDLE: Duration = Duration::from_secs(1);

/// The thread that trims and reclaims.
pub(super) const RETENTION_THREAD: &str = "seaway-retention";

/// Name of the alarm that copies have used up their share.
const COPIES_FULL: &str = "copies-full";
/// Name of the alarm that the node takes no messages; it goes when that is over.
const NOT_TAKING: &str = "not-taking-messages";

/// Why the node takes no messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Unavailable {
    /// The disk is nearly full.
    DiskFull = 1,
    /// The commit log is poisoned.
    Stopped = 2,
    /// The share of own logs is used up.
    ShareFull = 7,
    /// Another edge broker of this site was there before.
    Outdone = 3,
    /// Another process has this node's name.
    Twin = 4,
    /// An operator took it out of use.
    Drained = 5,
    /// Its site was removed from the federation.
    Removed = 6,
}

/// What the hub tells, spread to whom it concerns.
pub(super) struct Ears {
    pub(super) receipts: Arc<Receipts>,
    pub(super) registered: Arc<Registered>,
    pub(super) one_way: Arc<OneWaySubscribers>,
    pub(super) events: broadcast::Sender<LogEvent>,
}

impl NodePort for Ears {
    fn on_remote_held(&self, held: RemoteHeld) {
        self.receipts.handle_held(held);
    }

    fn on_registrations_changed(&self) {
        self.registered.changed();
    }

    fn on_site_removed(&self, site: &Site) {
        self.receipts.remove_site(site);
    }

    fn on_one_way(&self, message: Box<seaway_federation_proto::wire::link::OneWayBody>) {
        self.one_way.deliver(*message);
    }

    fn on_log(&self, log: &LogName) {
        if self.events.receiver_count() > 0 {
            // Nobody listening is fine.
            let _ = self.events.send(LogEvent { log: log.clone() });
        }
    }
}

/// The node behind its handles.
pub(super) struct NodeInner {
    pub(super) config: NodeConfig,
    pub(super) start: Start,
    pub(super) clock: Arc<SystemClock>,
    pub(super) log: Arc<dyn CommitLog>,
    /// A relay has none.
    pub(super) origin: Option<Arc<Origin>>,
    pub(super) hub: Arc<Hub>,
    pub(super) hub_wake: Arc<Wake>,
    pub(super) topics: Arc<TopicBook>,
    pub(super) limits: Arc<LimitBook>,
    /// One command at a time changes what is set of topics.
    pub(super) changing_topics: tokio::sync::Mutex<()>,
    pub(super) receipts: Arc<Receipts>,
    pub(super) registered: Arc<Registered>,
    pub(super) room: Room,
    /// Of an edge broker's own logs.
    pub(super) hold_back: Option<Keeper>,
    pub(super) one_way: Arc<OneWaySubscribers>,
    pub(super) events: broadcast::Sender<LogEvent>,
    pub(super) reads: Arc<Semaphore>,
    /// Set once, right after the node stands; a node without links has none.
    pub(super) transport: OnceLock<Transport>,
    pub(super) draining: AtomicBool,
    /// The configured wants that are in use.
    pub(super) wants: Mutex<Vec<Want>>,
    /// Set while an operator has taken the node out of use: the sentence for those who publish.
    pub(super) drained: ArcSwapOption<String>,
    /// Why messages are not taken: poisoned, disk full.
    pub(super) unavailable: ArcSwapOption<String>,
    /// Which [`Unavailable`] that is, 0 for none.
    pub(super) not_taking: AtomicU8,
    pub(super) twins: Mutex<Twins>,
    /// How many of the commit log's damages were reported.
    pub(super) damage_reported: AtomicUsize,
    /// Bytes the commit log had accepted when upkeep last looked.
    pub(super) accepted: AtomicU64,
    /// And when retention last ran.
    pub(super) accepted_at_retention: AtomicU64,
    pub(super) threads: Threads,
    /// Of the commit log, as upkeep sees it.
    pub(super) progress: Mutex<Progress>,
    /// What is known of room and time.
    pub(super) space: SpaceState,
}

impl std::fmt::Debug for NodeInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.config.name).finish_non_exhaustive()
    }
}

impl NodeInner {
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(super) fn readiness(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("the node is shutting down; publish elsewhere or when it is back".to_owned());
        }
        if let Some(why) = &*self.drained.load() {
            return Err(why.to_string());
        }
        self.unavailable.load().as_ref().map_or(Ok(()), |why| Err(why.to_string()))
    }

    /// See [`super::Node::liveness`].
    pub(super) fn liveness(&self) -> Result<(), String> {
        // Retention waits for room and for the disk, as long as that takes.
        let silent: Vec<_> = self.threads.silent().into_iter().filter(|(name, _)| name != RETENTION_THREAD).collect();
        let stuck = self.progress.lock().stuck(self.clock.now());
        life::verdict(&silent, stuck)
    }

    pub(super) fn topic_config(&self, topic: &Topic) -> TopicConfig {
        self.topics.config(topic)
    }

    /// See [`super::Node::set_wants`].
    pub(super) fn set_wants(&self, fresh: Vec<Want>) {
        if self.origin.is_none() {
            return;
        }
        let mut wants = self.wants.lock();
        let now = self.clock.now();
        let is_in = |list: &[Want], id: &str| list.iter().any(|want| want.id == id);
        for gone in wants.iter().filter(|want| !is_in(&fresh, &want.id)) {
            self.hub.remove_want(now, &gone.id);
        }
        wants.retain(|want| is_in(&fresh, &want.id));
        for want in fresh {
            if !is_in(&wants, &want.id) {
                self.hub.put_want(now, want.clone());
                wants.push(want);
            }
        }
    }

    pub(super) fn report(&self, name: &'static str, text: String) {
        self.hub.report(Report { name, subject: String::new(), text }, self.clock.wall_us());
    }

    /// One turn of the hub's thread; answers how long it may sleep.
    pub(super) fn turn_hub(&self) -> Duration {
        let now = self.clock.now();
        self.hub.pump(now, self.clock.wall_us());
        self.receipts.look_again(now);
        self.receipts.handle_timeout(now);
        let next = [self.hub.poll_timeout(), self.receipts.poll_timeout()].into_iter().flatten().min();
        next.map_or(HUB_IDLE, |at| at.saturating_sub(self.clock.now())).min(HUB_IDLE)
    }

    /// One turn of the upkeep's thread: the state of the disk, what is forgotten with time.
    pub(super) fn turn_upkeep(&self, turn: u64) -> Duration {
        let stats = self.log.stats();
        let why = match (&stats.poisoned, stats.disk_full) {
            (Some(why), _) => {
                let text = format!("the commit log stopped: {why}; free or replace the disk, then restart the node");
                self.hub.stop_storing(self.clock.now(), &text);
                Some((Unavailable::Stopped, text))
            }
            (None, true) => {
                let free = stats.disk_free;
                let text = format!(
                    "the disk is nearly full ({free} bytes free); make room or lower the retention, publishing then goes on by itself"
                );
                Some((Unavailable::DiskFull, text))
            }
            (None, false) if stats.own_full => {
                let max = self.config.space.own_bytes_max.unwrap_or(0);
                let text = format!(
                    "own logs have used up their share of the disk ({max} bytes, log.own_size); lower their retention or raise it, publishing then goes on by itself"
                );
                Some((Unavailable::ShareFull, text))
            }
            (None, false) => self.hub.outdone_by().map(|other| {
                let text = format!(
                    "{other} is the edge broker of this site already; stop this node, or give it a site of its own"
                );
                (Unavailable::Outdone, text)
            }),
        };
        let drained = || self.drained.load().as_ref().map(|text| (Unavailable::Drained, text.to_string()));
        let why = why.or_else(drained);
        let removed = || self.hub.removed(&self.config.name.site).map(|text| (Unavailable::Removed, text));
        let why = why.or_else(removed);
        let why = self.look_at_twins().filter(|_| why.is_none()).map(|text| (Unavailable::Twin, text)).or(why);
        self.accepted.store(stats.accepted_bytes, Ordering::Relaxed);
        self.progress.lock().look(self.clock.now(), &stats);
        self.note_availability(why);
        self.note_damage(&stats.damage);
        self.space.short.store(stats.short, Ordering::Relaxed);
        self.space.reclaim_again.store(stats.reclaim_again, Ordering::Relaxed);
        self.note_growth(&stats);
        self.note_copies_full(&stats);
        self.note_clock();
        if turn.is_multiple_of(EXPIRE_EVERY)
            && let Some(origin) = &self.origin
        {
            origin.expire();
            self.expire_tombstones(origin);
        }
        UPKEEP_INTERVAL
    }

    /// One turn of the retention's thread, which may wait long for room in the append queue and for the disk.
    pub(super) fn turn_retention(&self, turn: u64) -> Duration {
        let accepted = self.accepted.load(Ordering::Relaxed);
        // A cache, and hold-back, are held to their bounds more often while they fill quickly.
        let bound = self.config.cache_bytes_max.or_else(|| self.hold_back.as_ref()?.smallest_bound());
        let fills = bound
            .is_some_and(|max| accepted.saturating_sub(self.accepted_at_retention.load(Ordering::Relaxed)) > max / 8);
        let short = self.space.short.load(Ordering::Relaxed);
        let every = if short || fills { RETENTION_EVERY_SHORT } else { RETENTION_EVERY };
        if turn.is_multiple_of(every) {
            self.accepted_at_retention.store(accepted, Ordering::Relaxed);
            self.retain();
        } else if self.space.reclaim_again.load(Ordering::Relaxed) {
            self.reclaim();
        }
        UPKEEP_INTERVAL
    }

    /// Tells of processes that share a name; answers why this one takes no messages, if it is the second of its own.
    fn look_at_twins(&self) -> Option<String> {
        let mut twins = self.twins.lock();
        let told = twins.look(self.clock.now(), |peer| self.hub.is_linked_with(peer));
        // Who is linked elsewhere may be the first one there: two that refuse each other's messages would help nobody.
        let taken = twins.taken().filter(|_| !self.hub.is_linked()).map(ToOwned::to_owned);
        drop(twins);
        let elsewhere = || {
            "another process of this node's name is in the federation, and counts; stop one of the two, or give it a name and \
             certificate of its own (what was stored here and is at no other site stays here until this process is the only one)"
                .to_owned()
        };
        let taken = taken.or_else(|| self.hub.is_second_of_its_name().then(elsewhere));
        for report in told.raise {
            self.hub.report(report, self.clock.wall_us());
        }
        for subject in told.over {
            self.hub.clear_one(twins::TWO_NODES, &subject);
        }
        taken
    }

    /// The links, or that there are none.
    pub(super) fn links(&self) -> Result<&Transport, String> {
        self.transport.get().ok_or_else(|| "this node has no links: it neither listens nor dials".to_owned())
    }

    /// See [`super::Node::drain`] and [`super::Node::undrain`]; whether it was drained before.
    pub(super) fn set_drained(&self, by: Option<&str>) -> bool {
        let text = |by: &str| {
            format!(
                "this node was drained by {by}: publish at another server, or here once `seaway drain --undo` is said"
            )
        };
        let before = self.drained.swap(by.map(|by| Arc::new(text(by))));
        if by.is_some() {
            // At once; upkeep sees to the alarm, and to the way back.
            self.hub.set_transit(self.clock.now(), false);
        } else if before.is_some() && self.not_taking.load(Ordering::Relaxed) == 0 && !self.is_draining() {
            // It was over before upkeep saw it.
            self.hub.set_transit(self.clock.now(), true);
        }
        before.is_some()
    }

    /// Whether nothing else keeps the node from taking messages than that it is drained, as upkeep saw it last.
    pub(super) fn is_kept_by_drain_alone(&self) -> bool {
        [0, Unavailable::Drained as u8].contains(&self.not_taking.load(Ordering::Relaxed))
    }

    /// Whether nothing but room, or that it is drained, keeps the node from taking messages, as upkeep saw it last.
    pub(super) fn lacks_only_room(&self) -> bool {
        let reason = self.not_taking.load(Ordering::Relaxed);
        [Unavailable::DiskFull, Unavailable::ShareFull, Unavailable::Drained].iter().any(|of| *of as u8 == reason)
    }

    /// Whether an operator took the node out of use.
    pub(super) fn is_drained(&self) -> bool {
        self.drained.load().is_some()
    }

    /// Whether another process is this site's edge broker, as far as it is known.
    pub(super) fn is_second(&self) -> bool {
        let reason = self.not_taking.load(Ordering::Relaxed);
        reason == Unavailable::Outdone as u8 || reason == Unavailable::Twin as u8
    }

    /// `why` names the reason; `text` says it with the figures of this moment. It was logged where it was found.
    fn note_availability(&self, why: Option<(Unavailable, String)>) {
        let before = self.not_taking.swap(why.as_ref().map_or(0, |(reason, _)| *reason as u8), Ordering::Relaxed);
        if before != why.as_ref().map_or(0, |(reason, _)| *reason as u8) {
            self.hub.clear(NOT_TAKING);
            if let Some((_, text)) = &why {
                self.hub.note(
                    Report { name: NOT_TAKING, subject: String::new(), text: text.clone() },
                    self.clock.wall_us(),
                );
            }
        }
        let why = why.map(|(_, text)| text);
        // What is full for this site's own messages is not for those that pass.
        let stops = |reason: u8| reason != 0 && reason != Unavailable::ShareFull as u8;
        let now = self.not_taking.load(Ordering::Relaxed);
        if stops(now) != stops(before) && !self.is_draining() {
            self.hub.set_transit(self.clock.now(), !stops(now));
        }
        self.unavailable.store(why.map(Arc::new));
    }

    fn note_damage(&self, damage: &[Damage]) {
        let known = self.damage_reported.swap(damage.len(), Ordering::Relaxed);
        for Damage { file, from, to, detail } in damage.iter().skip(known) {
            let text = format!(
                "bytes {from} to {to} of {file} are damaged ({detail}); they are fenced and fetched again where another site has them"
            );
            // Where it was found, it was logged.
            self.hub.note(Report { name: "damage", subject: String::new(), text }, self.clock.wall_us());
        }
    }

    fn retain(&self) {
        let keep = |log: &LogName| {
            // Settings and deletions are for those who come later, too, and small. Of removed sites they go below.
            if log.queue == Queue::CONTROL {
                return Keep::default();
            }
            let config = self.topic_config(&log.topic);
            Keep { bytes_max: config.retention_bytes, age_max: config.retention_age }
        };
        let now_us = self.space.guard.time_us(self.clock.wall_us(), self.clock.now());
        let now = retention::Now { us: now_us, latest_us: self.space.guard.latest_us(now_us) };
        let trimmed = self.hold_back_round(keep, now).and_then(|held| {
            let Some(held) = held else { return Ok(()) };
            // Of an own log that came meanwhile nobody has said yet who needs it.
            let decided = |log: &LogName| if held.is_open(log) { Keep::default() } else { keep(log) };
            retention::trim(&self.log, decided, |log| held.keep_from(log), self.config.cache_bytes_max, now)?;
            self.drop_what_is_over()
        });
        if let Err(why) = trimmed {
            self.report("retention-failed", why);
        }
        // What was trimmed before is reclaimed in any case.
        self.reclaim();
    }

    fn reclaim(&self) {
        if let Err(why) = self.log.reclaim()
            && !self.is_draining()
        {
            self.report("retention-failed", why.to_string());
        }
    }

    /// Copies take nothing more while their share is used up; who publishes here goes on.
    fn note_copies_full(&self, stats: &LogStats) {
        let was = self.space.copies_full.swap(stats.copies_full, Ordering::Relaxed);
        if was == stats.copies_full {
            return;
        }
        if was {
            return self.hub.clear(COPIES_FULL);
        }
        let max = self.config.space.copies_bytes_max.unwrap_or(0);
        let text = format!(
            "copies have used up their share of the disk ({max} bytes, log.copies_size): no copy takes anything more; lower their retention or raise it, they then go on by themselves"
        );
        self.hub.note(Report { name: COPIES_FULL, subject: String::new(), text }, self.clock.wall_us());
    }

    /// A clock that is not believed is an alarm, until it is.
    fn note_clock(&self) {
        let wall_us = self.clock.wall_us();
        let standing = self.space.guard.standing(wall_us, self.clock.now());
        let (name, by) = match standing {
            Standing::Fits => ("", Duration::ZERO),
            Standing::Ahead(by) => ("clock-ahead", by),
            Standing::Behind(by) => ("clock-behind", by),
        };
        let mut astray = self.space.clock_astray.lock();
        if *astray == name {
            return;
        }
        if !astray.is_empty() {
            self.hub.clear(*astray);
        }
        *astray = name;
        if !name.is_empty() {
            let way = if name == "clock-ahead" { "ahead of" } else { "behind" };
            self.report(
                name,
                format!(
                    "the wall clock stands {} s {way} the time that follows from what is stored, and is not believed for an hour: retention by age goes by that time; set the clock",
                    by.as_secs()
                ),
            );
        }
    }

    /// What is left of other sites that were removed.
    fn drop_what_is_over(&self) -> Result<(), String> {
        let others = self.hub.removals().into_iter().map(|removal| removal.site);
        let removed: BTreeSet<Site> = others.filter(|site| *site != self.config.name.site).collect();
        if removed.is_empty() {
            return Ok(());
        }
        match retention::submit(&self.log, retention::over_with_their_site(&*self.log, &removed)) {
            Ok(()) | Err(RejectReason::Busy) => Ok(()),
            Err(reason) => Err(reason.to_string()),
        }
    }

    /// Submits changes of state and waits until they are durable.
    pub(super) async fn store(&self, mut entries: Vec<Entry>) -> Result<(), PublishError> {
        loop {
            let (sender, receiver) = oneshot::channel();
            let done = Box::new(move |result| drop(sender.send(result)));
            let rejected = match self.log.submit(Unit { entries }, done) {
                Ok(()) => {
                    let lost = || PublishError::Unavailable("the commit log was closed".to_owned());
                    let result = receiver.await.map_err(|_| lost())?;
                    return result.map_err(|poisoned| PublishError::Unavailable(poisoned.to_string()));
                }
                Err(rejected) => *rejected,
            };
            if rejected.reason != RejectReason::Busy {
                return Err(PublishError::Unavailable(rejected.reason.to_string()));
            }
            let room_bytes = rejected.unit.room_bytes();
            entries = rejected.unit.entries;
            let room = Arc::new(Notify::new());
            let wake = room.clone();
            self.log.ready(room_bytes, Box::new(move || wake.notify_one()));
            room.notified().await;
        }
    }

    pub(super) async fn put_want(&self, want: Want) -> Result<(), PublishError> {
        self.check_want(&want).await?;
        let key = Bytes::copy_from_slice(want.id.as_bytes());
        self.store(vec![Entry::Put { table: Table::Wants, key, value: wants::encode(&want) }]).await?;
        self.hub.put_want(self.clock.now(), want);
        Ok(())
    }

    async fn check_want(&self, want: &Want) -> Result<(), PublishError> {
        if self.origin.is_none() {
            return Err(PublishError::Invalid(format!("{} is a relay and has no wants of its own", self.config.name)));
        }
        if want.id.is_empty() || want.id.len() > 1024 {
            return Err(PublishError::Invalid("a want's id must have 1 to 1024 bytes".to_owned()));
        }
        if self.wants.lock().iter().any(|w| w.id == want.id) {
            return Err(PublishError::Invalid(format!("want {} is configured; choose another id", want.id)));
        }
        // It waits on the disk.
        let (log, id) = (self.log.clone(), want.id.clone());
        let look = move || {
            log.get(Table::Wants, id.as_bytes()).is_some()
                || log.scan(Table::Wants, &[]).len() < super::start::WANTS_MAX
        };
        let looked = tokio::task::spawn_blocking(look).await;
        if !looked.map_err(|_| PublishError::Unavailable("reading the wants failed; try again".to_owned()))? {
            let text = format!("this site has {} wants already, the most it may have", super::start::WANTS_MAX);
            return Err(PublishError::Unavailable(text));
        }
        Ok(())
    }

    pub(super) async fn remove_want(&self, id: &str) -> Result<(), PublishError> {
        let key = Bytes::copy_from_slice(id.as_bytes());
        self.store(vec![Entry::Delete { table: Table::Wants, key }]).await?;
        self.hub.remove_want(self.clock.now(), id);
        Ok(())
    }

    /// See [`super::Node::read`].
    pub(super) async fn read(
        &self,
        log: &LogName,
        from: Place,
        line: Line,
        bytes_max: usize,
    ) -> Result<Read, ReadError> {
        let read = match self.log.read_cached(log, from, line, bytes_max) {
            Some(read) => read,
            None => {
                let (commit_log, name) = (self.log.clone(), log.clone());
                self.block(log, from, move || commit_log.read(&name, from, line, bytes_max)).await?
            }
        };
        let own = self.config.kind == NodeKind::Edge && log.origin == self.config.name.site;
        Ok(if own { read } else { self.only_durable(log, read) })
    }

    pub(super) async fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        let (commit_log, name) = (self.log.clone(), log.clone());
        let nowhere =
            Place { incarnation: seaway_federation_proto::ids::Incarnation { counter: 0, random: 0 }, offset: 0 };
        self.block(log, nowhere, move || commit_log.find_time(&name, time_us)).await
    }

    /// Runs what waits on the disk where that harms nobody.
    async fn block<T: Send + 'static>(
        &self,
        log: &LogName,
        place: Place,
        work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let failed = |why: &str| ReadError { log: log.clone(), place, why: why.to_owned() };
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| failed("the node is shutting down"))?;
        let run = move || {
            let result = work();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| failed("the reading task failed"))?
    }

    /// The commit log shows copies as soon as they are accepted; readers here get what is durable.
    fn only_durable(&self, log: &LogName, read: Read) -> Read {
        let Read::Batches { mut batches, next } = read else { return read };
        let durable = self.log.info(log, true);
        let is_durable = |info: &LogInfo, place: Place| {
            info.incarnations.iter().any(|i| i.incarnation == place.incarnation && place.offset <= i.end)
        };
        let Some(info) = durable else {
            let at = batches.first().map_or(next, |b| b.begin());
            return Read::AtEnd { at, beside: false };
        };
        let keep = batches.iter().take_while(|b| is_durable(&info, b.end())).count();
        if keep == batches.len() {
            return Read::Batches { batches, next };
        }
        batches.truncate(keep);
        match batches.last().map(|b| b.end()) {
            Some(next) => Read::Batches { batches, next },
            None => Read::AtEnd { at: info.end, beside: false },
        }
    }
}

/// Makes the drivers of links.
pub(super) struct Opener(pub(super) std::sync::Weak<NodeInner>);

impl LinkOpener for Opener {
    fn open_link(
        &self,
        peer: &NodeName,
        _dialled: bool,
        mailbox: LinkMailbox,
        now: Duration,
    ) -> Result<Box<dyn Drive>, String> {
        let node = self.0.upgrade().filter(|node| !node.is_draining());
        let node = node.ok_or_else(|| "the node is shutting down".to_owned())?;
        if let Some(removed) = node.hub.removed(&peer.site) {
            return Err(removed);
        }
        let config = &node.config;
        let session = SessionConfig {
            federation: config.federation.clone(),
            node: config.name.clone(),
            kind: config.kind,
            start: node.start,
            versions: 1..=1,
            batch_bytes_max: super::start::BATCH_BYTES_MAX,
            lane_credit: [(Lane::Live, node.lane_credit()), (Lane::Backlog, node.lane_credit())],
            control_queue_bytes_max: CONTROL_QUEUE_BYTES_MAX,
            probe_interval: config.probe_interval,
            dead_after: config.dead_after,
            software: format!("seaway {}", env!("CARGO_PKG_VERSION")),
            fetches_max: FETCHES_MAX,
            peer_identity: Some(peer.clone()),
        };
        let mailbox = Arc::new(mailbox);
        let link = node.hub.attach(mailbox.clone());
        let driver = LinkDriver::new(link, session, node.log.clone(), node.hub.clone(), mailbox, now)
            .with_rates(now, node.limits.feed(peer.clone()));
        Ok(Box::new(LoggedDriver::new(driver, node.log.clone())))
    }

    fn dial_ended(&self, peer: &NodeName, name_taken: bool) {
        let Some(node) = self.0.upgrade() else { return };
        let mut twins = node.twins.lock();
        if name_taken { twins.refused_here(peer, node.clock.now()) } else { twins.not_refused_here(peer) }
    }

    fn refused_twin(&self, peer: &NodeName, text: &str) {
        if let Some(node) = self.0.upgrade() {
            node.twins.lock().refused_there(peer, text.to_owned(), node.clock.now());
        }
    }
}

impl NodeInner {
    /// At least one largest batch.
    fn lane_credit(&self) -> u64 {
        self.config.lane_credit_bytes.max(u64::try_from(super::start::BATCH_BYTES_MAX).unwrap_or(u64::MAX))
    }
}
