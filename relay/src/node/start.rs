//! Starting and stopping a node.

use std::{
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::{
    ids::{NodeName, Site, Start},
    limits::{BATCH_OVERHEAD_BYTES, MESSAGE_BYTES_CEILING},
    message::BODY_VERSION,
    replication::{ReplicationConfig, Report},
    session::NodeKind,
    wire::store::NodeStart,
};
use tokio::sync::{Semaphore, broadcast};

use super::{
    NodeConfig, StartError,
    clock::{Clock, SystemClock},
    hold_back::Keeper,
    inner::{Ears, NodeInner, Opener, READS_MAX, RETENTION_THREAD},
    limits::{LIMIT_KEYS, LimitBook},
    one_way::OneWaySubscribers,
    origin::{Origin, OriginConfig},
    publish::Registered,
    receipts::Receipts,
    room::Room,
    space::SpaceState,
    threads::{Threads, Wake},
    time_guard::TimeGuard,
    topics::TopicBook,
    wants,
};
use crate::{
    link::{alarms::Alarms, hub::Hub},
    log::{
        contract::{CommitLog, Entry, Table},
        disk::{DiskConfig, DiskLog},
    },
    transport::{
        endpoint::Timing,
        service::{Transport, TransportSettings},
        tls::Credentials,
    },
};

/// Largest batch taken from a peer: one message of the largest size that any topic may allow.
pub(super) const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_CEILING + BATCH_OVERHEAD_BYTES;
/// Most wants of a site.
pub(super) const WANTS_MAX: usize = 10_000;
/// Most logs held or known.
const LOGS_MAX: usize = 200_000;
/// Most sites known.
const SITES_MAX: usize = 1_000;
/// Hop limit of everything that travels.
const HOPS: u32 = 16;
/// When a range that nobody answers for is lost, although not every registered site was reached.
const LOST_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Events kept for a watcher that lags; after that it looks anew.
const EVENTS: usize = 4_096;
/// The smallest segment that a cache's size asks for: above this cost of a file more of them bring nothing.
const CACHE_SEGMENT_BYTES_MIN: u64 = 8 << 20;
/// A checkpoint is due after so many bytes at the latest.
const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;
/// How long accepted messages may take to become durable when the node stops.
const FINISH_MAX: Duration = Duration::from_secs(30);
/// How long receipts may wait for other sites when the node stops.
const RECEIPTS_MAX: Duration = Duration::from_secs(2);
/// The append queue takes at least this: one largest message.
const QUEUE_BYTES_MIN: usize = 17 << 20;
const START_KEY: &[u8] = b"start";

/// The start of this process, above the one remembered; and whether the clock stands before that.
fn next_start(log: &dyn CommitLog, clock: &SystemClock, random: u64) -> (Start, Option<Report>) {
    let remembered = log.get(Table::Node, START_KEY).and_then(|value| NodeStart::decode(value).ok());
    let last_us = remembered.map_or(0, |r| r.time_us);
    let wall_us = clock.wall_us();
    let start = Start { time_us: wall_us.max(last_us.saturating_add(1)), random };
    let behind = (wall_us < last_us).then(|| Report {
        name: "clock-behind",
        subject: String::new(),
        text: format!(
            "the wall clock stands {} s before this node's last start; set the clock",
            last_us.saturating_sub(wall_us) / 1_000_000
        ),
    });
    (start, behind)
}

/// 64 random bits of the system's.
pub(super) fn random_bits() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| StartError::Data(format!("the system gives no random numbers: {error}")))
}

fn origin_of(
    config: &NodeConfig,
    topics: &Arc<TopicBook>,
    start: Start,
    clock: &Arc<SystemClock>,
    log: &Arc<dyn CommitLog>,
    wake: &Arc<Wake>,
    alarms: &Arc<Alarms>,
) -> Option<Arc<Origin>> {
    if config.kind == NodeKind::Relay {
        return None;
    }
    let (settings, wake, alarms, wall) = (topics.clone(), wake.clone(), alarms.clone(), clock.clone());
    let origin = OriginConfig {
        site: config.name.site.clone(),
        random: start.random,
        topics: Arc::new(move |topic| settings.config(topic)),
        clock: clock.clone(),
        wake: Arc::new(move || wake.wake()),
        report: Arc::new(move |report| alarms.raise(report, wall.wall_us())),
    };
    Some(Origin::open(origin, log.clone()))
}

fn replication_config(config: &NodeConfig, topics: &TopicBook, start: Start) -> ReplicationConfig {
    ReplicationConfig {
        node: config.name.clone(),
        kind: config.kind,
        start,
        mark_interval: config.mark_interval,
        hops: HOPS,
        replicate: topics.replicate(),
        lost_after: LOST_AFTER,
        costs: config.costs.clone(),
        logs_max: LOGS_MAX,
        wants_max: WANTS_MAX,
        sites_max: SITES_MAX,
        body_versions: vec![BODY_VERSION],
        no_transit: false,
    }
}

/// Waiting for other sites, of which the hub knows once it is there.
fn receipts_over(hub: Arc<OnceLock<Weak<Hub>>>) -> Arc<Receipts> {
    Arc::new(Receipts::new(Arc::new(move |site: &Site, log, place| {
        hub.get().and_then(Weak::upgrade).is_some_and(|hub| hub.site_holds(site, log, place))
    })))
}

/// The rates that hold, with what commands set of them; the names of those that cannot be read are added to `unreadable`.
fn limits_of(config: &NodeConfig, log: &dyn CommitLog, unreadable: &mut Vec<String>) -> Arc<LimitBook> {
    let book = Arc::new(LimitBook::new(config.limits.clone()));
    unreadable.extend(book.restore(log.scan(Table::Node, LIMIT_KEYS)));
    book
}

/// Who keeps for registered sites what they have not got; a relay has no logs of its own.
fn keeper_of(config: &NodeConfig, log: &dyn CommitLog) -> Option<Keeper> {
    let keeper = || Keeper::open(config.hold_back.clone(), config.space.own_bytes_max, &config.data_dir, log);
    (config.kind != NodeKind::Relay).then(keeper)
}

/// Bytes of a segment and between two checkpoints for a cache of this size. A segment goes as a whole, and none since the last two
/// checkpoints does, so with these a cache takes at most about twice its size on disk, and 64 MiB where it is small.
pub(super) fn cache_bounds(segment_bytes: u64, cache_bytes_max: u64) -> (u64, u64) {
    let segment = segment_bytes.min((cache_bytes_max / 8).max(CACHE_SEGMENT_BYTES_MIN));
    (segment, (cache_bytes_max / 4).clamp(segment, CHECKPOINT_BYTES_MAX.max(segment)))
}

/// Whether the certificate of the node's links is that of the node that it is to be; a node without links needs none.
fn check_credentials(config: &NodeConfig) -> Result<(), StartError> {
    if config.listen.is_none() && config.dial.is_empty() {
        return Ok(());
    }
    let checked = Credentials::load(&config.tls, &config.federation, &config.name);
    checked.map(drop).map_err(|error| StartError::Tls(error.to_string()))
}

/// Opens the commit log in the node's directory; answers with it and with what people should know of it.
fn open_log(
    config: &NodeConfig,
    start: Start,
    guard: &Arc<TimeGuard>,
    epoch: Instant,
) -> Result<(Arc<dyn CommitLog>, Vec<Report>), StartError> {
    let mut disk = DiskConfig::new(config.data_dir.clone(), &config.federation, config.name.clone(), start);
    disk.segment_bytes = config.segment_bytes;
    if let Some(cache) = config.cache_bytes_max {
        (disk.segment_bytes, disk.checkpoint_bytes) = cache_bounds(config.segment_bytes, cache);
    }
    disk.reserve_bytes = config.disk_reserve_bytes;
    disk.ballast_bytes = config.disk_reserve_bytes / 2;
    // What was accepted must fit into it when others fill the disk at once.
    let queue_bytes = usize::try_from(disk.ballast_bytes).unwrap_or(usize::MAX);
    disk.queue_bytes_max = queue_bytes.clamp(QUEUE_BYTES_MIN.min(disk.queue_bytes_max), disk.queue_bytes_max);
    if config.kind != NodeKind::Relay {
        (disk.own_bytes_max, disk.copies_bytes_max) = (config.space.own_bytes_max, config.space.copies_bytes_max);
    }
    (disk.dead_share_max, disk.moving_rate) = (config.space.dead_share_max, config.space.moving_rate);
    let clock_base = Arc::new(SystemClock::since(epoch));
    let (clock, believed) = (clock_base.clone(), guard.clone());
    disk.clock = Arc::new(move || believed.time_us(clock.wall_us(), clock.now()));
    disk.tail_bytes_max = config.tail_bytes_max;
    let (log, recovery) = DiskLog::open(disk).map_err(|error| StartError::Data(error.to_string()))?;
    let newest_us = log.stats().newest_us;
    guard.expect(if newest_us == 0 { clock_base.wall_us() } else { newest_us }, clock_base.now());
    let mut reports = Vec::new();
    if let Some((file, at)) = &recovery.torn_at {
        let what = if recovery.cut_short { "" } else { " that were never acknowledged" };
        let text = format!("{} bytes{what} were cut at {file}, byte {at}", recovery.torn_bytes);
        reports.push(Report { name: "torn-end-cut", subject: String::new(), text });
    }
    if let (true, Some(why)) = (recovery.cut_short, &recovery.rebuilt) {
        let text = format!(
            "the end of the commit log is gone, with what was acknowledged there: the index knew of more than the segments hold ({why}); what \
             other sites have of it is fetched again"
        );
        reports.push(Report { name: "log-cut-short", subject: String::new(), text });
    }
    if let Some(why) = &recovery.rebuilt {
        reports.push(Report {
            name: "index-rebuilt",
            subject: String::new(),
            text: format!("the index was rebuilt from the segments: {why}"),
        });
    }
    Ok((log, reports))
}

impl NodeInner {
    /// Opens the commit log on disk and joins everything over it.
    pub(super) async fn open(config: NodeConfig) -> Result<Arc<Self>, StartError> {
        let random = random_bits()?;
        let settings = config.clone();
        let epoch = Instant::now();
        let guard = Arc::new(TimeGuard::new(config.space.clock_step_max));
        let believed = guard.clone();
        let open = move || {
            // First what may be wrong with the configuration: a directory that was claimed under a wrong name stays so.
            check_credentials(&settings)?;
            let start = Start { time_us: SystemClock::default().wall_us(), random };
            open_log(&settings, start, &believed, epoch)
        };
        let failed = |error| StartError::Data(format!("opening the commit log failed: {error}"));
        let (log, reports) = tokio::task::spawn_blocking(open).await.map_err(failed)??;
        let node = Self::start_at(config, log, random, guard, epoch).await?;
        reports.into_iter().for_each(|report| node.report(report.name, report.text));
        Ok(node)
    }

    /// Joins everything over a commit log that is open, up to the links' sockets; [`NodeInner::begin_links`] lets peers in.
    /// Needs a tokio runtime for the links.
    pub(super) async fn start(
        config: NodeConfig,
        log: Arc<dyn CommitLog>,
        random: u64,
        guard: Arc<TimeGuard>,
    ) -> Result<Arc<Self>, StartError> {
        Self::start_at(config, log, random, guard, Instant::now()).await
    }

    async fn start_at(
        config: NodeConfig,
        log: Arc<dyn CommitLog>,
        random: u64,
        guard: Arc<TimeGuard>,
        epoch: Instant,
    ) -> Result<Arc<Self>, StartError> {
        let clock = Arc::new(SystemClock::since(epoch));
        let (start, clock_behind) = next_start(&*log, &clock, random);
        let alarms = Arc::new(Alarms::default());
        let (origin_wake, hub_wake, upkeep_wake) =
            (Arc::<Wake>::default(), Arc::<Wake>::default(), Arc::<Wake>::default());
        let hub_cell: Arc<OnceLock<Weak<Hub>>> = Arc::default();
        let receipts = receipts_over(hub_cell.clone());
        let (registered, one_way): (Arc<Registered>, Arc<OneWaySubscribers>) = (Arc::default(), Arc::default());
        let (events, _) = broadcast::channel(EVENTS);
        let ears = Ears {
            receipts: receipts.clone(),
            registered: registered.clone(),
            one_way: one_way.clone(),
            events: events.clone(),
        };
        let (wake, (topics, mut unreadable)) = (hub_wake.clone(), TopicBook::open(&config, &*log));
        let limits = limits_of(&config, &*log, &mut unreadable);
        let hub = Hub::open(
            replication_config(&config, &topics, start),
            log.clone(),
            Arc::new(ears),
            alarms.clone(),
            Arc::new(move || wake.wake()),
            clock.now(),
            clock.wall_us(),
        );
        // Set once, right here.
        let _ = hub_cell.set(Arc::downgrade(&hub));
        hub.set_accepts(config.accept_message_bytes_max);
        let origin = origin_of(&config, &topics, start, &clock, &log, &origin_wake, &alarms);
        let wants = config.wants.clone();
        let node = Arc::new(NodeInner {
            hold_back: keeper_of(&config, &*log),
            config,
            start,
            clock,
            log,
            origin,
            hub,
            hub_wake: hub_wake.clone(),
            topics,
            limits,
            changing_topics: tokio::sync::Mutex::default(),
            receipts,
            registered,
            room: Room::default(),
            one_way,
            events,
            reads: Arc::new(Semaphore::new(READS_MAX)),
            transport: OnceLock::new(),
            draining: false.into(),
            wants: parking_lot::Mutex::new(wants),
            drained: ArcSwapOption::empty(),
            unavailable: ArcSwapOption::empty(),
            not_taking: 0.into(),
            twins: parking_lot::Mutex::default(),
            damage_reported: 0.into(),
            accepted: 0.into(),
            accepted_at_retention: 0.into(),
            threads: Threads::default(),
            progress: parking_lot::Mutex::default(),
            space: SpaceState::new(guard),
        });
        node.run_threads(&origin_wake, hub_wake, upkeep_wake)?;
        node.report_found(clock_behind, unreadable);
        node.remember_start().await?;
        node.begin_wants();
        node.open_links(epoch)?;
        Ok(node)
    }

    /// What people should know of what was found at the start.
    fn report_found(&self, clock_behind: Option<Report>, topics_unreadable: Vec<String>) {
        for topic in topics_unreadable {
            let text = format!("what commands set of topic {topic} cannot be read by this build; set it again");
            self.report("stored-state-unreadable", text);
        }
        if let Some(report) = clock_behind {
            self.report(report.name, report.text);
        }
    }

    fn run_threads(
        self: &Arc<Self>,
        origin_wake: &Arc<Wake>,
        hub: Arc<Wake>,
        upkeep: Arc<Wake>,
    ) -> Result<(), StartError> {
        let failed = |error: std::io::Error| StartError::Data(format!("a thread could not be started: {error}"));
        if let Some(origin) = &self.origin {
            let origin = Arc::downgrade(origin);
            let turn = move || {
                if let Some(origin) = origin.upgrade() {
                    origin.pump();
                }
                Duration::from_secs(1)
            };
            self.threads.run("seaway-origin", origin_wake.clone(), turn).map_err(failed)?;
        }
        let node = Arc::downgrade(self);
        let turn = move || node.upgrade().map_or(Duration::ZERO, |node| node.turn_hub());
        self.threads.run("seaway-hub", hub, turn).map_err(failed)?;
        let node = Arc::downgrade(self);
        let mut turns = 0;
        let turn = move || {
            turns += 1;
            node.upgrade().map_or(Duration::ZERO, |node| node.turn_upkeep(turns))
        };
        self.threads.run("seaway-upkeep", upkeep, turn).map_err(failed)?;
        let node = Arc::downgrade(self);
        let mut turns = 0;
        let turn = move || {
            turns += 1;
            node.upgrade().map_or(Duration::ZERO, |node| node.turn_retention(turns))
        };
        self.threads.run(RETENTION_THREAD, Arc::default(), turn).map_err(failed)
    }

    async fn remember_start(&self) -> Result<(), StartError> {
        let NodeName { site, node } = &self.config.name;
        let start = NodeStart {
            time_us: self.start.time_us,
            random: self.start.random,
            federation: self.config.federation.clone(),
            site: site.to_string(),
            node: node.to_string(),
        };
        let key = Bytes::from_static(START_KEY);
        let entry = Entry::Put { table: Table::Node, key, value: start.encode_to_vec().into() };
        self.store(vec![entry]).await.map_err(|error| StartError::Data(error.to_string()))
    }

    fn begin_wants(&self) {
        if self.origin.is_none() {
            return;
        }
        self.receipts.remove_all(self.hub.removals().into_iter().map(|removal| removal.site));
        let now = self.clock.now();
        for want in &self.config.wants {
            self.hub.put_want(now, want.clone());
        }
        for (key, value) in self.log.scan(Table::Wants, &[]) {
            match wants::decode(&key, &value) {
                Some(want) if self.config.wants.iter().any(|w| w.id == want.id) => {}
                Some(want) => self.hub.put_want(now, want),
                None => {
                    let id = String::from_utf8_lossy(&key);
                    self.report("want-unreadable", format!("want {id} cannot be read by this build; subscribe again"));
                }
            }
        }
    }

    fn open_links(self: &Arc<Self>, epoch: Instant) -> Result<(), StartError> {
        let config = &self.config;
        if config.listen.is_none() && config.dial.is_empty() {
            return Ok(());
        }
        let settings = TransportSettings {
            federation: config.federation.clone(),
            node: config.name.clone(),
            listen: config.listen,
            dial: config.dial.clone(),
            tls: config.tls.clone(),
            timing: Timing { probe_interval: config.probe_interval, dead_after: config.dead_after },
            epoch,
        };
        let transport = Transport::open(settings, Arc::new(Opener(Arc::downgrade(self))))?;
        // Set once, right here.
        let _ = self.transport.set(transport);
        Ok(())
    }

    /// See [`super::Node::begin_links`].
    pub(super) fn begin_links(&self) {
        if let Some(transport) = self.transport.get() {
            transport.begin();
        }
    }

    /// See [`super::Node::shutdown`].
    pub(super) async fn shutdown(self: &Arc<Self>) -> Result<(), String> {
        if self.draining.swap(true, Ordering::AcqRel) {
            return Err("the node is shutting down already".to_owned());
        }
        self.hub.set_transit(self.clock.now(), false);
        if let Some(origin) = &self.origin {
            origin.close();
            let limit = self.clock.now().saturating_add(FINISH_MAX);
            while !origin.is_idle() && self.clock.now() < limit {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let limit = self.clock.now().saturating_add(RECEIPTS_MAX);
        while !self.receipts.is_empty() && self.clock.now() < limit {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.receipts.stop();
        if let Some(transport) = self.transport.get() {
            transport.shutdown().await;
        }
        let node = self.clone();
        let close = move || {
            node.threads.stop();
            node.log.close().map_err(|poisoned| poisoned.to_string())
        };
        tokio::task::spawn_blocking(close).await.map_err(|error| format!("closing the commit log failed: {error}"))?
    }
}
