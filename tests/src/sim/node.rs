//! A node under simulation: the real hub, link drivers, session, replication machine and publish path over the commit log's twin in
//! memory. What the real shell does with threads and sockets happens here in [`SimNode::settle`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};
use seaway_federation_proto::{
    envelope::Codec,
    ids::{LogName, NodeName, Path, Site, Start, Topic},
    replication::{ReplicationConfig, Want, WantStart},
    session::{Channel, Lane, NodeKind, SessionConfig, Transmit},
    wire::link,
};
use seaway_relay::{
    link::{
        alarms::Alarms,
        command::{LinkCommand, Mailbox},
        driver::LinkDriver,
        hub::{Hub, NodePort, RemoteHeld},
    },
    log::{
        contract::CommitLog,
        memory::{MemoryConfig, MemoryDisk, MemoryLog, Survive},
    },
    node::{
        Acknowledgement, OnDeadline, TopicConfig,
        clock::Clock,
        origin::{Origin, OriginConfig, OwnMessage},
        receipts::{Receipts, decide},
    },
};

use super::{
    check::Disk,
    net::ConnId,
    sabotage::SabotagedLog,
    scenario::{Sabotage, Scenario},
    truth::Truth,
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
    closed: bool,
}

/// What the hub tells the node.
struct Port {
    receipts: Mutex<Option<Arc<Receipts>>>,
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
    fn on_log(&self, _: &LogName) {}
}

/// What exists only while the node's process runs.
struct Running {
    log: Arc<MemoryLog>,
    seen: Arc<dyn CommitLog>,
    hub: Arc<Hub>,
    origin: Option<Arc<Origin>>,
    receipts: Arc<Receipts>,
    links: BTreeMap<ConnId, SimLink>,
    start: Start,
    alarms: Arc<Alarms>,
}

/// See the module's documentation.
pub struct SimNode {
    name: NodeName,
    edge: bool,
    clock: SimClock,
    truth: Arc<Mutex<Truth>>,
    topics: usize,
    sabotage: Option<Sabotage>,
    disk: MemoryDisk,
    old_disk: Option<MemoryDisk>,
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
            // Sabotage has one victim: the last edge, so that others can tell.
            sabotage: scenario.sabotage.filter(|_| scenario.edges.iter().rposition(|e| *e) == Some(index)),
            disk: MemoryDisk::default(),
            old_disk: None,
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

    /// What its status says of a log, if its process runs.
    pub fn status(&self, log: &LogName) -> Option<String> {
        let status = self.running.as_ref()?.hub.copy_status(self.clock.now(), log)?;
        Some(format!("{} {} lag {:?}", status.state, status.reason, status.lag_messages))
    }

    /// Its disk for the checkers: what is durable.
    pub fn disk(&self) -> Disk<'_> {
        let log: &dyn CommitLog = match (&self.running, &self.resting) {
            // A forged or shortened copy is this node's disk; one that is only not served is whole.
            (Some(running), _) if self.sabotage == Some(Sabotage::ServeNothing) => &*running.log,
            (Some(running), _) => &*running.seen,
            (None, Some(resting)) => &**resting,
            (None, None) => unreachable!("a node has started, or died"),
        };
        Disk { name: self.name.to_string(), site: self.name.site.clone(), edge: self.edge, log }
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
        let port = Arc::new(Port { receipts: Mutex::new(None) });
        let hub = Hub::open(
            self.replication(start),
            seen.clone(),
            port.clone(),
            alarms.clone(),
            Arc::new(|| {}),
            now,
            self.clock.wall_us(),
        );
        // Only retries of earlier incarnations' messages ask; the workload has none.
        let receipts = Arc::new(Receipts::new(Arc::new(|_: &Site, _: &LogName, _| false)));
        *port.receipts.lock() = Some(receipts.clone());
        let origin = self.edge.then(|| {
            hub.put_want(now, everything());
            Origin::open(self.origin_config(rng.random()), seen.clone())
        });
        self.running = Some(Running { log, seen, hub, origin, receipts, links: BTreeMap::new(), start, alarms });
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
        let topic = TopicConfig {
            queues: 2,
            message_bytes_max: 1 << 20,
            codec: Codec::None,
            retention_bytes: None,
            retention_age: None,
        };
        OriginConfig {
            site: self.name.site.clone(),
            random,
            topics: Arc::new(move |_: &Topic| topic.clone()),
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
        let waiting = running.log.units_waiting();
        let survive =
            if rng.random_bool(0.5) { Survive::Nothing } else { Survive::Units(rng.random_range(0..=waiting)) };
        self.disk = running.log.crash(survive);
        let lost = match (death, &self.old_disk) {
            (Death::Restart, _) => None,
            (Death::DiskLost, _) | (Death::DiskOld, None) => Some(MemoryDisk::default()),
            (Death::DiskOld, Some(old)) => Some(old.clone()),
        };
        if let Some(disk) = lost {
            self.disk = disk;
            self.truth.lock().lose_disk(&self.name.to_string());
        }
        self.resting = Some(MemoryLog::open(self.disk.clone(), memory_config(&self.clock)));
        self.epoch += 1;
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
        running.links.insert(conn, SimLink { driver, post, closed: false });
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

    /// Whether the link's session is over.
    pub fn is_closed(&self, conn: ConnId) -> bool {
        self.running.as_ref().and_then(|r| r.links.get(&conn)).is_some_and(|link| link.closed)
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
    pub fn sync(&mut self) {
        self.sync_planned = false;
        if let Some(running) = &mut self.running {
            running.log.sync_now();
        }
    }

    /// Publishes a message, asking one of the acknowledgements at random.
    pub fn publish(&mut self, rng: &mut StdRng) {
        let now = self.clock.now();
        let Some(Running { origin: Some(origin), hub, receipts, .. }) = &self.running else { return };
        let path: Path = format!("topic-{}/tag", rng.random_range(0..self.topics)).parse().expect("a path");
        let registered: Arc<[Site]> = hub.registered(&path.topic()).into();
        let asked = match rng.random_range(0..3) {
            0 => Acknowledgement::Local,
            1 => Acknowledgement::All,
            _ => Acknowledgement::Count(1),
        };
        let need = decide(&asked, &registered).unwrap_or(None);
        let id = self.truth.lock().publish();
        let size = if rng.random_bool(0.02) { 20_000 } else { rng.random_range(12..300) };
        let key = rng.random_bool(0.5).then(|| Bytes::from(rng.random_range(0..10_u8).to_string()));
        let message = OwnMessage { path, key, headers: Vec::new(), payload: id.payload(size), producer: None };
        let (truth, receipts) = (self.truth.clone(), receipts.clone());
        let tell = Box::new(move |stored: Result<_, _>| {
            let Ok(stored) = stored else { return };
            let stored: seaway_relay::node::origin::Stored = stored;
            truth.lock().receipt(id, stored.log.clone(), stored.place, Vec::new());
            let Some(need) = need else { return };
            let answer = Box::new(move |receipt: Result<seaway_relay::node::Receipt, _>| {
                if let Ok(receipt) = receipt {
                    truth.lock().receipt(id, receipt.log, receipt.place, receipt.sites);
                }
            });
            receipts.wait(stored, need, now + Duration::from_secs(20), OnDeadline::Fail, answer);
        });
        if self.sabotage == Some(Sabotage::AppendTwice) {
            let _ = origin.publish(message.clone(), Box::new(|_| {}));
        }
        // Refused for want of room: nobody was promised anything.
        let _ = origin.publish(message, tell);
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

/// Every edge wants everything, from the beginning, and counts.
fn everything() -> Want {
    Want {
        id: "all".to_owned(),
        pattern: "#".parse().expect("a pattern"),
        origins: Vec::new(),
        start: WantStart::Earliest,
        registers: true,
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
        self.closed = self.driver.closed().is_some();
        moved
    }
}
