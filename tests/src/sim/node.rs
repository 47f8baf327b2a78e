//! A node under simulation: the real hub, link drivers, session, replication machine and publish path over the commit log's twin in
//! memory. What the real shell does with threads and sockets happens here in [`SimNode::settle`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};
use seaway_federation_proto::{
    copies::{Hole, HoleKind, LogInfo},
    envelope::Codec,
    ids::{Incarnation, LogName, NodeName, Offset, Place, Site, Start, Topic},
    replication::{RemoteHeld, ReplicationConfig, Want, WantStart},
    session::{Channel, CloseReason, Lane, NodeKind, SessionConfig, Transmit},
    wire::link,
};
use seaway_relay::{
    link::{
        alarms::Alarms,
        command::{LinkCommand, Mailbox},
        driver::LinkDriver,
        hub::{Hub, NodePort},
    },
    log::{
        contract::{CommitLog, Entry, Retention, Unit},
        memory::{MemoryConfig, MemoryDisk, MemoryLog, Survive},
    },
    node::{
        TopicConfig,
        clock::Clock,
        origin::{Origin, OriginConfig, settings::With},
        receipts::Receipts,
    },
};

use super::{
    check::Disk,
    crossings::count_batches,
    net::ConnId,
    sabotage::SabotagedLog,
    scenario::{Sabotage, Scenario},
    truth::Truth,
    workload::{self, Door, Producer},
    world::{Death, SimClock},
};

/// Credit of a lane: small, so that runs meet its end often.
const LANE_CREDIT: u64 = 2 * 1024 * 1024;

/// A link's mailbox: what is posted waits for the next [`SimNode::settle`].
#[derive(Default)]
struct Post(Mutex<VecDeque<LinkCommand>>);

impl Mailbox for Post {
    fn post(&self, command: LinkCommand) {
        self.0.lock().push_back(command);
    }
}

struct SimLink {
    driver: LinkDriver,
    post: Arc<Post>,
}

/// What the hub tells the node.
#[derive(Default)]
struct Port {
    receipts: Mutex<Option<Arc<Receipts>>>,
    moved: Mutex<BTreeSet<LogName>>,
}

/// A range that a node states to be lost for good.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The log.
    pub log: LogName,
    /// The range.
    pub hole: Hole,
}

impl NodePort for Port {
    fn on_remote_held(&self, held: RemoteHeld) {
        let receipts = self.receipts.lock().clone();
        if let Some(receipts) = receipts {
            receipts.handle_held(held);
        }
    }
    fn on_registrations_changed(&self) {}
    fn on_one_way(&self, _: Box<link::OneWayBody>) {}
    fn on_log(&self, log: &LogName) {
        self.moved.lock().insert(log.clone());
    }
}

/// What exists only while the node's process runs.
struct Running {
    log: Arc<MemoryLog>,
    seen: Arc<dyn CommitLog>,
    hub: Arc<Hub>,
    port: Arc<Port>,
    origin: Option<Arc<Origin>>,
    receipts: Arc<Receipts>,
    links: BTreeMap<ConnId, SimLink>,
    start: Start,
    alarms: Arc<Alarms>,
}

/// Where the incarnations of an origin's logs end.
pub type OwnEnds = BTreeMap<LogName, BTreeMap<Incarnation, Offset>>;

/// See the module's documentation.
pub struct SimNode {
    name: NodeName,
    edge: bool,
    clock: SimClock,
    truth: Arc<Mutex<Truth>>,
    topics: usize,
    /// Queue counts that were set of topics; 2 where none was.
    queues: Arc<Mutex<BTreeMap<Topic, u16>>>,
    sabotage: Option<Sabotage>,
    wants: Option<Vec<usize>>,
    producers: Vec<Producer>,
    disk: MemoryDisk,
    old_disk: Option<MemoryDisk>,
    /// The disk as it was a few writes ago, where disks may lie.
    recent_disk: Option<MemoryDisk>,
    lies: bool,
    damage: f64,
    losses_seen: BTreeSet<(LogName, Incarnation, Offset)>,
    running: Option<Running>,
    /// For reading a dead node's disk.
    resting: Option<Arc<MemoryLog>>,
    epoch: u64,
    deaths: u64,
    sync_planned: bool,
    wake_planned: Option<Duration>,
    alarms_seen: BTreeMap<&'static str, u64>,
}

fn memory_config(clock: &SimClock) -> MemoryConfig {
    let clock = clock.clone();
    MemoryConfig {
        queued_bytes_max: 4 << 20,
        auto: false,
        room_bytes: None,
        wall_us: Arc::new(move || clock.wall_us()),
    }
}

impl SimNode {
    /// A node that has not started yet, with an empty disk.
    pub fn new(index: usize, edge: bool, scenario: &Scenario, clock: SimClock, truth: Arc<Mutex<Truth>>) -> Self {
        let site: Site = format!("site-{index}").parse().expect("a label");
        Self {
            name: NodeName::new(site, "n").expect("a label"),
            edge,
            clock,
            truth,
            topics: scenario.topics,
            queues: Arc::default(),
            // Sabotage has one victim: the last edge, so that others can tell.
            sabotage: scenario.sabotage.filter(|_| scenario.edges.iter().rposition(|e| *e) == Some(index)),
            wants: scenario.wants.get(index).cloned().flatten(),
            producers: (0..scenario.producers).map(|n| Producer::new((index * 10 + n + 1) as u128)).collect(),
            disk: MemoryDisk::default(),
            old_disk: None,
            recent_disk: None,
            lies: scenario.faults.disk_lied > 0.0,
            damage: scenario.faults.damage,
            losses_seen: BTreeSet::new(),
            running: None,
            resting: None,
            epoch: 0,
            deaths: 0,
            sync_planned: false,
            wake_planned: None,
            alarms_seen: BTreeMap::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Counts the node's starts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How often it died.
    pub fn deaths(&self) -> u64 {
        self.deaths
    }

    /// Whether its process runs.
    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Whether something waits for its storage.
    pub fn is_busy(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.log.units_waiting() > 0)
    }

    /// Alarms by name, over all its lives.
    pub fn alarms(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.alarms_seen.clone();
        for alarm in self.running.iter().flat_map(|r| r.alarms.list()) {
            *all.entry(alarm.report.name).or_default() += alarm.count;
        }
        all
    }

    /// The logs that its process holds.
    pub fn logs(&self) -> Vec<LogName> {
        self.running.as_ref().map(|running| running.log.logs()).unwrap_or_default()
    }

    /// A log as its commit log has accepted it.
    pub fn submitted(&self, log: &LogName) -> Option<LogInfo> {
        self.running.as_ref()?.log.info(log, false)
    }

    /// What its status says of a log, if its process runs.
    pub fn status(&self, log: &LogName) -> Option<String> {
        let status = self.running.as_ref()?.hub.copy_status(self.clock.now(), log)?;
        Some(format!("{} {} lag {:?}", status.state, status.reason, status.lag_messages))
    }

    /// Its disk for the checkers: what is durable.
    pub fn disk<'a>(&'a self, wants: Box<dyn Fn(&str) -> bool + 'a>) -> Disk<'a> {
        // What is really there, below whatever lies to the node and its neighbours.
        let log: &dyn CommitLog = match (&self.running, &self.resting) {
            (Some(running), _) => &*running.log,
            (None, Some(resting)) => &**resting,
            (None, None) => unreachable!("a node has started, or died"),
        };
        Disk { name: self.name.to_string(), site: self.name.site.clone(), edge: self.edge, wants, log }
    }

    /// Starts the process over its disk.
    pub fn start(&mut self, now: Duration, rng: &mut StdRng) {
        self.epoch += 1;
        self.sync_planned = false;
        self.wake_planned = None;
        self.resting = None;
        let log = MemoryLog::open(self.disk.clone(), memory_config(&self.clock));
        let seen: Arc<dyn CommitLog> = match self.sabotage {
            Some(sabotage) => Arc::new(SabotagedLog::new(log.clone(), sabotage)),
            None => log.clone(),
        };
        let start = Start { time_us: self.clock.wall_us(), random: rng.random() };
        let alarms = Arc::new(Alarms::default());
        let port = Arc::<Port>::default();
        let hub = Hub::open(
            self.replication(start),
            seen.clone(),
            port.clone(),
            alarms.clone(),
            Arc::new(|| {}),
            now,
            self.clock.wall_us(),
        );
        // Retries of earlier incarnations' messages ask the machine.
        let machine = Arc::downgrade(&hub);
        let holds = move |site: &Site, log: &LogName, place| {
            machine.upgrade().is_some_and(|hub| hub.site_holds(site, log, place))
        };
        let receipts = Arc::new(Receipts::new(Arc::new(holds)));
        *port.receipts.lock() = Some(receipts.clone());
        let origin = self.edge.then(|| {
            self.wants_of().into_iter().for_each(|want| hub.put_want(now, want));
            Origin::open(self.origin_config(rng.random()), seen.clone())
        });
        self.running = Some(Running { log, seen, hub, port, origin, receipts, links: BTreeMap::new(), start, alarms });
        self.clients_return();
    }

    /// What this edge wants: from the beginning, and it counts.
    fn wants_of(&self) -> Vec<Want> {
        let want = |id: String, pattern: &str| Want {
            id,
            pattern: pattern.parse().expect("a pattern"),
            origins: Vec::new(),
            start: WantStart::Earliest,
            registers: true,
        };
        match &self.wants {
            None => vec![want("all".to_owned(), "#")],
            Some(topics) => {
                topics.iter().map(|topic| want(format!("want-{topic}"), &format!("topic-{topic}/#"))).collect()
            }
        }
    }

    fn replication(&self, start: Start) -> ReplicationConfig {
        ReplicationConfig {
            node: self.name.clone(),
            kind: if self.edge { NodeKind::Edge } else { NodeKind::Relay },
            start,
            mark_interval: Duration::from_secs(1),
            hops: 8,
            replicate: vec![("#".parse().expect("a pattern"), None)],
            lost_after: Duration::from_secs(30),
            costs: Vec::new(),
            logs_max: 1000,
            wants_max: 100,
            sites_max: 100,
            body_versions: vec![1],
            no_transit: false,
        }
    }

    fn origin_config(&self, random: u64) -> OriginConfig {
        let topic = TopicConfig { queues: 2, message_bytes_max: 1 << 20, codec: Codec::None, ..TopicConfig::default() };
        let set = self.queues.clone();
        OriginConfig {
            site: self.name.site.clone(),
            random,
            topics: Arc::new(move |name: &Topic| {
                let queues = set.lock().get(name).copied().unwrap_or(topic.queues);
                TopicConfig { queues, ..topic.clone() }
            }),
            clock: Arc::new(self.clock.clone()),
            wake: Arc::new(|| {}),
            report: Arc::new(|_| {}),
        }
    }

    /// The process dies.
    pub fn crash(&mut self, death: Death, rng: &mut StdRng) {
        let Some(running) = self.running.take() else { return };
        for alarm in running.alarms.list() {
            *self.alarms_seen.entry(alarm.report.name).or_default() += alarm.count;
        }
        self.deaths += 1;
        let durable = running.log.disk_copy();
        let waiting = running.log.units_waiting();
        let survive =
            if rng.random_bool(0.5) { Survive::Nothing } else { Survive::Units(rng.random_range(0..=waiting)) };
        self.disk = running.log.crash(survive);
        let lost = match (death, &self.old_disk) {
            (Death::Restart, _) => None,
            (Death::DiskLost, _) | (Death::DiskOld, None) => Some(MemoryDisk::default()),
            (Death::DiskOld, Some(old)) => Some(old.clone()),
            (Death::DiskLied, _) => self.recent_disk.clone(),
        };
        if let Some(disk) = lost {
            self.disk = disk;
            self.losses_seen.clear();
            self.truth.lock().lose_disk(&self.name.to_string(), durable.logs());
        }
        if self.damage > 0.0 && rng.random_bool(self.damage) {
            self.damage_disk(rng);
        }
        self.resting = Some(MemoryLog::open(self.disk.clone(), memory_config(&self.clock)));
        self.epoch += 1;
    }

    /// One batch on the disk cannot be read any more.
    fn damage_disk(&mut self, rng: &mut StdRng) {
        let logs = self.disk.logs();
        if logs.is_empty() {
            return;
        }
        let (log, info) = &logs[rng.random_range(0..logs.len())];
        let place = Place { offset: rng.random_range(0..=info.end.offset), ..info.end };
        if let Some((from, to)) = self.disk.damage(log, place) {
            self.truth.lock().damage(&self.name.to_string(), log.clone(), from, to);
        }
    }

    /// Copies the disk for a later restore.
    pub fn snapshot(&mut self) {
        self.old_disk = Some(self.running.as_ref().map_or_else(|| self.disk.clone(), |r| r.log.disk_copy()));
    }

    /// A connection to a peer is there.
    pub fn open_link(&mut self, conn: ConnId, peer: NodeName, now: Duration) {
        let (name, kind) = (self.name.clone(), if self.edge { NodeKind::Edge } else { NodeKind::Relay });
        let Some(running) = &mut self.running else { return };
        let config = SessionConfig {
            federation: "sim".to_owned(),
            node: name,
            kind,
            start: running.start,
            versions: 1..=1,
            batch_bytes_max: 1 << 20,
            lane_credit: [(Lane::Live, LANE_CREDIT), (Lane::Backlog, LANE_CREDIT)],
            control_queue_bytes_max: 8 << 20,
            probe_interval: Duration::from_millis(500),
            dead_after: Duration::from_secs(10),
            software: "sim".to_owned(),
            fetches_max: 10_000,
            peer_identity: Some(peer),
        };
        let post = Arc::new(Post::default());
        let link = running.hub.attach(post.clone());
        let driver = LinkDriver::new(link, config, running.seen.clone(), running.hub.clone(), post.clone(), now);
        running.links.insert(conn, SimLink { driver, post });
    }

    /// The connection is gone.
    pub fn lose_link(&mut self, conn: ConnId, now: Duration, why: &str) {
        let Some(running) = &mut self.running else { return };
        if let Some(mut link) = running.links.remove(&conn) {
            link.driver.handle_lost(now, why.to_owned());
        }
    }

    fn link(&mut self, conn: ConnId) -> Option<&mut SimLink> {
        self.running.as_mut()?.links.get_mut(&conn)
    }

    /// The connections it has.
    pub fn conns(&self) -> Vec<ConnId> {
        self.running.iter().flat_map(|r| r.links.keys().copied()).collect()
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, conn: ConnId, now: Duration, channel: Channel, bytes: Bytes) {
        if let Some(link) = self.link(conn) {
            link.driver.handle_bytes(now, channel, bytes);
        }
    }

    /// A one-way message came.
    pub fn handle_one_way(&mut self, conn: ConnId, now: Duration, bytes: Bytes) {
        if let Some(link) = self.link(conn) {
            link.driver.handle_one_way(now, bytes);
        }
    }

    /// What a channel has to send.
    pub fn poll_transmit(&mut self, conn: ConnId, now: Duration, channel: Channel) -> Option<Transmit> {
        self.link(conn)?.driver.poll_transmit(now, channel)
    }

    /// A one-way message to send.
    pub fn poll_one_way(&mut self, conn: ConnId) -> Option<Bytes> {
        self.link(conn)?.driver.poll_one_way()
    }

    /// Why the link's session is over, if it is.
    pub fn closed(&self, conn: ConnId) -> Option<&CloseReason> {
        self.running.as_ref()?.links.get(&conn)?.driver.closed()
    }

    /// Time passed.
    pub fn handle_timeouts(&mut self, now: Duration) {
        self.wake_planned = None;
        let Some(running) = &mut self.running else { return };
        for link in running.links.values_mut() {
            if link.driver.poll_timeout().is_some_and(|at| at <= now) {
                link.driver.handle_timeout(now);
            }
        }
        running.receipts.handle_timeout(now);
    }

    /// An fsync is done.
    pub fn sync(&mut self, rng: &mut StdRng) {
        self.sync_planned = false;
        if let Some(running) = &mut self.running {
            if self.lies && rng.random_bool(0.1) {
                self.recent_disk = Some(running.log.disk_copy());
            }
            running.log.sync_now();
        }
    }

    /// Publishes a message, or lets a producer try one again.
    pub fn publish(&mut self, rng: &mut StdRng) {
        let Some(door) = self.door() else { return };
        let twice = self.sabotage == Some(Sabotage::AppendTwice);
        let forget = self.sabotage == Some(Sabotage::ForgetProducers);
        if self.producers.is_empty() || rng.random_bool(0.5) {
            workload::publish_plain(rng, &door, self.topics, twice);
        } else {
            let producer = &self.producers[rng.random_range(0..self.producers.len())];
            producer.publish(rng, &door, self.topics, forget);
        }
    }

    /// The clients' way in, while the process of an edge broker runs.
    fn door(&self) -> Option<Door<'_>> {
        let Some(Running { origin: Some(origin), hub, receipts, .. }) = &self.running else { return None };
        Some(Door { node: self.name.to_string(), origin, hub, receipts, truth: &self.truth, now: self.clock.now() })
    }

    fn clients_return(&self) {
        let forget = self.sabotage == Some(Sabotage::ForgetProducers);
        let Some(door) = self.door() else { return };
        self.producers.iter().for_each(|producer| producer.try_all_again(&door, forget));
    }

    /// The next write of its disk fails.
    pub fn fail_next_write(&mut self) {
        if let Some(running) = &self.running {
            running.log.fail_next_write("the disk broke");
        }
    }

    /// Retention takes away the older part of one of this origin's logs.
    pub fn trim(&mut self, rng: &mut StdRng) {
        let Some(running) = &self.running else { return };
        let own = |log: &LogName| log.origin == self.name.site && log.queue.0 > 0;
        let logs: Vec<LogName> = running.log.logs().into_iter().filter(own).collect();
        if logs.is_empty() {
            return;
        }
        let log = logs[rng.random_range(0..logs.len())].clone();
        let Some(info) = running.log.info(&log, true) else { return };
        let keep = rng.random_range(0..=info.bytes);
        let retention = Retention { bytes_max: Some(keep), ..Retention::default() };
        if let Ok(Some(to)) = running.log.trim_target(&log, retention) {
            self.truth.lock().trim(log.clone(), info, to);
            let unit = Unit { entries: vec![Entry::Trim { log, to }] };
            let _ = running.log.submit(unit, Box::new(|_| {}));
        }
    }

    /// Up to where hold-back would let retention take each of this origin's logs now, for which sites.
    pub fn hold_back_allows(&self) -> Vec<(LogName, Site, Place)> {
        let Some(running) = &self.running else { return Vec::new() };
        let needs = running.hub.still_needed(None, usize::MAX);
        let each = needs.into_iter().flat_map(|(log, needs)| needs.into_iter().map(move |need| (log.clone(), need)));
        each.map(|(log, need)| (log, need.site, need.from)).collect()
    }

    /// The site of this node, and where its durable copy of a log ends: what lies below it has, had, or was told is lost.
    pub fn came_to(&self, log: &LogName) -> (Site, Option<Place>) {
        let info = match (&self.running, &self.resting) {
            (Some(running), _) => running.log.info(log, true),
            (None, Some(resting)) => resting.info(log, true),
            (None, None) => None,
        };
        (self.name.site.clone(), info.map(|info| info.end))
    }

    /// A command changes a topic's queue count, deletes a topic, or creates one anew.
    pub fn steer(&mut self, rng: &mut StdRng) {
        let Some(Running { origin: Some(origin), .. }) = &self.running else { return };
        let topic: Topic = format!("topic-{}", rng.random_range(0..self.topics)).parse().expect("a topic");
        let told = Box::new(|_| {});
        match rng.random_range(0..5) {
            0 | 1 => {
                self.queues.lock().insert(topic.clone(), rng.random_range(1..=4));
                origin.apply_settings(&topic, told);
            }
            2 => origin.delete_topic(&topic, With::default(), told),
            _ => origin.create_topic(&topic, With::default(), told),
        }
    }

    /// What was stated as lost here since this was asked last, and what is wrong with how a copy began or lacks something.
    pub fn take_losses(&mut self) -> Vec<Loss> {
        let Some(running) = &self.running else { return Vec::new() };
        let moved = std::mem::take(&mut *running.port.moved.lock());
        let mut losses = Vec::new();
        for log in moved {
            let Some(info) = running.log.info(&log, false) else { continue };
            for hole in info.holes.iter().filter(|h| h.kind != HoleKind::Pending) {
                if self.edge && self.losses_seen.insert((log.clone(), hole.incarnation, hole.from)) {
                    losses.push(Loss { log: log.clone(), hole: *hole });
                }
            }
        }
        losses
    }

    /// Whether the node holds something of a range, durable or not.
    pub fn holds_any(&self, log: &LogName, hole: &Hole) -> bool {
        let held = match (&self.running, &self.resting) {
            (Some(running), _) => running.log.info(log, false),
            (None, Some(resting)) => resting.info(log, true),
            (None, None) => None,
        };
        let Some(info) = held else { return false };
        let Some(own) = info.incarnations.iter().find(|i| i.incarnation == hole.incarnation) else { return false };
        let lacks = |offset: Offset| {
            info.holes.iter().any(|h| h.incarnation == hole.incarnation && (h.from..h.to).contains(&offset))
        };
        (own.begin.max(hole.from)..own.end.min(hole.to)).any(|offset| !lacks(offset))
    }

    /// Whether it is an edge broker.
    pub fn is_edge(&self) -> bool {
        self.edge
    }

    /// One of its own logs.
    pub fn own_info(&self, log: &LogName) -> Option<LogInfo> {
        self.running.as_ref()?.log.info(log, true)
    }

    /// Where the incarnations of its own logs end.
    pub fn own_ends(&self) -> OwnEnds {
        let Some(running) = &self.running else { return OwnEnds::new() };
        let own = running.log.logs().into_iter().filter(|log| log.origin == self.name.site);
        let ends = |info: LogInfo| info.incarnations.iter().map(|i| (i.incarnation, i.end)).collect();
        own.filter_map(|log| Some((log.clone(), ends(running.log.info(&log, true)?)))).collect()
    }

    /// Batches of its own logs that came above these ends, and how many more may cross; see [`count_batches`].
    pub fn own_batches_above(&self, ends: &OwnEnds) -> BTreeMap<LogName, (u64, u64)> {
        let Some(running) = &self.running else { return BTreeMap::new() };
        let nothing = BTreeMap::new();
        let own = running.log.logs().into_iter().filter(|log| log.origin == self.name.site);
        own.map(|log| (log.clone(), count_batches(&*running.log, &log, ends.get(&log).unwrap_or(&nothing)))).collect()
    }

    /// Batches that came on a connection so far.
    pub fn batches_in(&self, conn: ConnId) -> u64 {
        let link = self.running.as_ref().and_then(|r| r.links.get(&conn));
        link.map_or(0, |link| link.driver.counters().batches_in.load(Ordering::Relaxed))
    }

    /// Lets everything that waits inside the node happen.
    pub fn settle(&mut self, now: Duration) {
        let wall_us = self.clock.wall_us();
        let Some(running) = &mut self.running else { return };
        loop {
            running.hub.pump(now, wall_us);
            if let Some(origin) = &running.origin {
                origin.pump();
            }
            let mut moved = false;
            for link in running.links.values_mut() {
                moved |= link.settle(now, &*running.seen);
            }
            if !moved {
                return;
            }
        }
    }

    /// Whether an fsync is to be planned.
    pub fn take_sync_due(&mut self) -> bool {
        let due = !self.sync_planned && self.is_busy();
        self.sync_planned |= due;
        due
    }

    /// When the node wants to be woken, if that is not planned yet.
    pub fn take_wake(&mut self, now: Duration) -> Option<Duration> {
        let running = self.running.as_ref()?;
        let links = running.links.values().filter_map(|l| l.driver.poll_timeout());
        let at = links.chain(running.hub.poll_timeout()).chain(running.receipts.poll_timeout()).min()?;
        let at = at.max(now + Duration::from_micros(100));
        if self.wake_planned.is_some_and(|planned| planned <= at) {
            return None;
        }
        self.wake_planned = Some(at);
        Some(at)
    }
}

impl SimLink {
    /// Commands, reads, events: until nothing is left. Answers whether there was anything.
    fn settle(&mut self, now: Duration, log: &dyn CommitLog) -> bool {
        let mut moved = false;
        loop {
            let command = self.post.0.lock().pop_front();
            let Some(command) = command else { break };
            moved = true;
            self.driver.handle_command(now, command);
        }
        while let Some(job) = self.driver.poll_read_job() {
            moved = true;
            let outcome = job.run(log);
            self.driver.handle_read_done(now, job.number, outcome);
        }
        moved
    }
}
