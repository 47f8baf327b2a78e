//! The run: nodes, lines and time under one seed. Everything happens in the order of (time, sequence), so a seed replays exactly.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use seaway_federation_proto::{
    copies::HoleKind,
    session::{Channel, CloseReason, Lane},
};
use seaway_relay::node::clock::Clock;

use super::{
    check::{Disk, Holdings, Violation},
    crossings::{Crossings, reachable},
    honest::Honesty,
    net::{Conn, ConnId},
    node::{Loss, SimNode},
    scenario::Scenario,
    topics,
    truth::Truth,
};

/// The channels of a link, in the order in which the simulation sends them.
const CHANNELS: [Channel; 3] = [Channel::Control, Channel::Lane(Lane::Live), Channel::Lane(Lane::Backlog)];

/// What a simulated wall clock shows at the beginning: microseconds since 1970.
const WALL_BASE_US: u64 = 1_800_000_000_000_000;

/// Simulated time, shared by all nodes.
#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<AtomicU64>);

impl SimClock {
    fn set(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    fn wall_us(&self) -> u64 {
        WALL_BASE_US + self.0.load(Ordering::Relaxed)
    }
}

/// Something that will happen.
#[derive(Debug)]
enum Event {
    /// Bytes of a channel reach the other side; `from` is the side (0 or 1) that sent.
    Bytes { conn: ConnId, from: usize, channel: Channel, bytes: Bytes },
    /// A one-way message does.
    OneWay { conn: ConnId, from: usize, bytes: Bytes },
    /// A node looks at its timers.
    Wake { node: usize, epoch: u64 },
    /// A node's storage finishes an fsync.
    Sync { node: usize, epoch: u64 },
    /// A link (by its index in the scenario) is dialled.
    Dial { link: usize },
    /// An edge publishes.
    Publish { node: usize },
    /// A connection breaks.
    Cut,
    /// Some node dies.
    Crash(Death),
    /// This node dies.
    Kill { node: usize, death: Death },
    /// The next write of some node's disk fails.
    WriteFails,
    /// Some origin's retention takes something away.
    Trim,
    /// Some topic is changed, deleted or created anew at its origin.
    Topics,
    /// It starts again.
    Start { node: usize },
    /// A node's disk is copied, for a later restore.
    Snapshot { node: usize },
}

/// What a dying node's disk goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It keeps what was durable, and perhaps some of the rest.
    Restart,
    /// It is lost.
    DiskLost,
    /// It is set back to an old copy.
    DiskOld,
    /// The last writes that it had called durable are gone.
    DiskLied,
}

/// The parts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Messages are published and faults come; until the federation is whole again.
    Faults,
    /// Nothing happens until then: what is under way settles.
    Quiet { until: Duration },
    /// Messages are published without faults until then; then until the federation is whole again.
    Steady { until: Duration },
    /// Nothing more is to come.
    Over,
}

/// Nothing is published for this long before what crosses the links is counted: lanes and marks settle.
const QUIET: Duration = Duration::from_secs(8);

/// See the module's documentation.
pub struct World {
    scenario: Scenario,
    now: Duration,
    clock: SimClock,
    rng: StdRng,
    sequence: u64,
    agenda: BTreeMap<(Duration, u64), Event>,
    nodes: Vec<SimNode>,
    conns: BTreeMap<ConnId, Conn>,
    /// Per link of the scenario: its connection, if one is up.
    up: Vec<Option<ConnId>>,
    next_conn: u64,
    truth: Arc<Mutex<Truth>>,
    faults_until: Duration,
    /// How far the run has come.
    phase: Phase,
    crossings: Option<Crossings>,
    honesty: Honesty,
    violations: Vec<Violation>,
    /// How often it was looked at what hold-back would let go of a log for a site.
    held_back: u64,
    refusals: Vec<String>,
    /// Events handled, for the summary.
    pub events: u64,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Broken invariants; empty is good.
    pub violations: Vec<Violation>,
    /// Messages published.
    pub published: usize,
    /// Of these, handed to their origin more than once.
    pub tried_again: usize,
    /// Receipts given.
    pub receipts: usize,
    /// Receipts that name another site.
    pub remote_receipts: usize,
    /// Events handled.
    pub events: u64,
    /// Simulated time.
    pub time: Duration,
    /// Deaths of nodes.
    pub deaths: u64,
    /// How often a copy was called live when it was looked at, and held to it.
    pub called_live: u64,
    /// How often it was looked at what hold-back would let go of a log for a site.
    pub held_back: u64,
    /// Alarms raised, by name.
    pub alarms: BTreeMap<&'static str, u64>,
    /// Links that a node ended because of what its peer sent, with its words.
    pub refusals: Vec<String>,
    /// How every node holds every log at the end, a line each: for finding out why a seed fails.
    pub holdings: Vec<String>,
    /// A hash over what all disks hold at the end: equal for equal seeds.
    pub fingerprint: u64,
}

impl World {
    /// A federation about to start.
    pub fn new(scenario: Scenario) -> Self {
        let rng = StdRng::seed_from_u64(scenario.seed ^ 0x5ea3_a1b2_c3d4_e5f6);
        let clock = SimClock::default();
        let truth = Arc::new(Mutex::new(Truth::default()));
        let nodes = scenario
            .edges
            .iter()
            .enumerate()
            .map(|(index, edge)| SimNode::new(index, *edge, &scenario, clock.clone(), truth.clone()))
            .collect();
        let up = vec![None; scenario.links.len()];
        let faults_until = scenario.active;
        Self {
            now: Duration::ZERO,
            clock,
            rng,
            sequence: 0,
            agenda: BTreeMap::new(),
            nodes,
            conns: BTreeMap::new(),
            up,
            next_conn: 0,
            truth,
            faults_until,
            phase: Phase::Faults,
            crossings: None,
            honesty: Honesty::default(),
            violations: Vec::new(),
            held_back: 0,
            refusals: Vec::new(),
            scenario,
            events: 0,
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.agenda.insert((at.max(self.now), self.sequence), event);
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// A random time with the given mean number per second; `None` for never.
    fn wait(&mut self, per_second: f64) -> Option<Duration> {
        (per_second > 0.0).then(|| {
            let uniform: f64 = self.rng.random_range(1e-9..1.0);
            Duration::from_secs_f64(-uniform.ln() / per_second)
        })
    }

    /// Runs to the end: an active phase with faults, then one without in which everything must become whole.
    pub fn run(mut self) -> Outcome {
        self.begin();
        while let Some(((at, _), event)) = self.agenda.pop_first() {
            if at > self.faults_until + self.scenario.settle || (at > self.faults_until && self.is_over(at)) {
                break;
            }
            self.now = at;
            self.clock.set(at);
            self.events += 1;
            self.handle(event);
            self.honesty.look(self.now, &self.nodes, &self.truth.lock(), &mut self.violations);
        }
        self.finish()
    }

    /// Goes on to the next phase where this one is done; whether the last one is.
    fn is_over(&mut self, at: Duration) -> bool {
        match self.phase {
            Phase::Faults if self.is_whole() => {
                self.phase =
                    if self.scenario.steady.is_zero() { Phase::Over } else { Phase::Quiet { until: at + QUIET } };
            }
            Phase::Quiet { until } if at >= until && self.is_live() => {
                self.crossings = Some(Crossings::begin(&self.nodes, &self.conns));
                let until = at + self.scenario.steady;
                self.phase = Phase::Steady { until };
                self.faults_until = until;
                self.now = at;
                let edges: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].is_edge()).collect();
                edges.into_iter().for_each(|node| self.plan_publish(node));
            }
            Phase::Steady { until } if at > until && self.is_whole() => {
                if let Some(crossings) = self.crossings.take() {
                    crossings.check(&self.nodes, &self.conns, &self.scenario, &mut self.violations);
                }
                self.phase = Phase::Over;
            }
            _ => {}
        }
        self.phase == Phase::Over
    }

    fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        for link in 0..self.up.len() {
            self.after(Duration::from_millis(1), Event::Dial { link });
        }
        for node in 0..self.nodes.len() {
            if self.scenario.edges.get(node) == Some(&true) {
                self.plan_publish(node);
            }
            let snapshot = self.scenario.active.mul_f64(self.rng.random_range(0.1..0.7));
            self.at(snapshot, Event::Snapshot { node });
        }
        let faults = self.scenario.faults;
        self.plan(faults.cut, Event::Cut);
        self.plan(faults.crash, Event::Crash(Death::Restart));
        self.plan(faults.disk_lost, Event::Crash(Death::DiskLost));
        self.plan(faults.disk_old, Event::Crash(Death::DiskOld));
        self.plan(faults.disk_lied, Event::Crash(Death::DiskLied));
        self.plan(faults.write_fails, Event::WriteFails);
        self.plan(faults.trim, Event::Trim);
        self.plan(faults.topics, Event::Topics);
    }

    fn plan(&mut self, rate: f64, event: Event) {
        if let Some(wait) = self.wait(rate).filter(|wait| self.now + *wait < self.faults_until) {
            self.after(wait, event);
        }
    }

    fn plan_publish(&mut self, node: usize) {
        self.plan(self.scenario.rate, Event::Publish { node });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Bytes { conn, from, channel, bytes } => {
                let Some(line) = self.conns.get_mut(&conn) else { return };
                line.arrived(from, channel, bytes.len());
                let (sender, receiver) = (line.nodes[from], line.nodes[1 - from]);
                self.nodes[receiver].handle_bytes(conn, self.now, channel, bytes);
                self.settle(receiver);
                self.settle(sender);
            }
            Event::OneWay { conn, from, bytes } => {
                let Some(line) = self.conns.get(&conn) else { return };
                let receiver = line.nodes[1 - from];
                self.nodes[receiver].handle_one_way(conn, self.now, bytes);
                self.settle(receiver);
            }
            Event::Wake { node, epoch } => {
                if self.nodes[node].epoch() == epoch {
                    self.nodes[node].handle_timeouts(self.now);
                    self.settle(node);
                }
            }
            Event::Sync { node, epoch } => {
                if self.nodes[node].epoch() == epoch {
                    self.nodes[node].sync(&mut self.rng);
                    self.settle(node);
                }
            }
            Event::Dial { link } => self.dial(link),
            Event::Publish { node } => {
                self.plan_publish(node);
                self.nodes[node].publish(&mut self.rng);
                self.settle(node);
            }
            Event::Cut => {
                self.plan(self.scenario.faults.cut, Event::Cut);
                let conns: Vec<ConnId> = self.conns.keys().copied().collect();
                if !conns.is_empty() {
                    let conn = conns[self.rng.random_range(0..conns.len())];
                    self.cut(conn, "the line broke");
                }
            }
            Event::Crash(death) => self.crash(death),
            Event::Kill { node, death } => self.kill(node, death),
            Event::WriteFails => {
                self.plan(self.scenario.faults.write_fails, Event::WriteFails);
                let node = self.rng.random_range(0..self.nodes.len());
                self.nodes[node].fail_next_write();
                let wait = Duration::from_millis(self.rng.random_range(100..2000));
                self.after(wait, Event::Kill { node, death: Death::Restart });
            }
            Event::Trim => {
                self.plan(self.scenario.faults.trim, Event::Trim);
                let node = self.rng.random_range(0..self.nodes.len());
                self.check_hold_back(node);
                self.nodes[node].trim(&mut self.rng);
                self.settle(node);
            }
            Event::Topics => {
                self.plan(self.scenario.faults.topics, Event::Topics);
                let node = self.rng.random_range(0..self.nodes.len());
                self.nodes[node].steer(&mut self.rng);
                self.settle(node);
            }
            Event::Start { node } => self.start(node),
            Event::Snapshot { node } => self.nodes[node].snapshot(),
        }
    }

    fn start(&mut self, node: usize) {
        self.nodes[node].start(self.now, &mut self.rng);
        self.settle(node);
    }

    fn crash(&mut self, death: Death) {
        let faults = self.scenario.faults;
        let rate = match death {
            Death::Restart => faults.crash,
            Death::DiskLost => faults.disk_lost,
            Death::DiskOld => faults.disk_old,
            Death::DiskLied => faults.disk_lied,
        };
        self.plan(rate, Event::Crash(death));
        let node = self.rng.random_range(0..self.nodes.len());
        self.kill(node, death);
    }

    fn kill(&mut self, node: usize, death: Death) {
        if !self.nodes[node].is_up() {
            return;
        }
        let conns: Vec<ConnId> =
            self.conns.iter().filter(|(_, c)| c.nodes.contains(&node)).map(|(id, _)| *id).collect();
        self.nodes[node].crash(death, &mut self.rng);
        for conn in conns {
            self.cut(conn, "the peer died");
        }
        let wait = Duration::from_millis(self.rng.random_range(10..2000));
        self.after(wait, Event::Start { node });
    }

    fn dial(&mut self, link: usize) {
        let Some((a, b)) = self.scenario.links.get(link).copied() else { return };
        if self.up.get(link).is_some_and(Option::is_some) {
            return;
        }
        if !self.nodes[a].is_up() || !self.nodes[b].is_up() {
            self.after(Duration::from_millis(200), Event::Dial { link });
            return;
        }
        self.next_conn += 1;
        let conn = ConnId(self.next_conn);
        self.conns.insert(conn, Conn::new([a, b], self.scenario.lines[link]));
        self.up[link] = Some(conn);
        let (name_a, name_b) = (self.nodes[a].name().clone(), self.nodes[b].name().clone());
        self.nodes[a].open_link(conn, name_b, self.now);
        self.nodes[b].open_link(conn, name_a, self.now);
        self.settle(a);
        self.settle(b);
    }

    fn cut(&mut self, conn: ConnId, why: &str) {
        let Some(line) = self.conns.remove(&conn) else { return };
        for (link, up) in self.up.iter_mut().enumerate() {
            if *up == Some(conn) {
                *up = None;
                let wait = Duration::from_millis(self.rng.random_range(5..1500));
                self.sequence += 1;
                self.agenda.insert((self.now + wait, self.sequence), Event::Dial { link });
            }
        }
        for node in line.nodes {
            self.nodes[node].lose_link(conn, self.now, why);
            self.settle(node);
        }
    }

    /// Hold-back never lets go what a registered site lacks: not even when that site's process, or its way here, is gone. A site whose
    /// disk was lost or set back needs more than its origin was told; what a trim that asked nobody took is gone already.
    fn check_hold_back(&mut self, node: usize) {
        let faults = &self.scenario.faults;
        if faults.disk_lost + faults.disk_old + faults.disk_lied > 0.0 {
            return;
        }
        for (log, site, from) in self.nodes[node].hold_back_allows() {
            let edges = self.nodes.iter().filter(|other| other.is_edge());
            let Some((_, came_to)) = edges.map(|other| other.came_to(&log)).find(|(of, _)| *of == site) else {
                continue;
            };
            self.held_back += 1;
            let begin = self.nodes[node].own_info(&log).map_or(0, |info| info.begin.offset);
            let came_to = came_to.map_or(begin, |end| end.offset.max(begin));
            if from.offset > came_to {
                let what = format!("hold-back lets go of {log} below {from}, and {site} has come to {came_to}");
                self.violations.push(Violation { invariant: 6, what });
            }
        }
    }

    /// Lets a node do all it can do now, and carries out what it asks of the world.
    fn settle(&mut self, node: usize) {
        self.nodes[node].settle(self.now);
        let mut closed = VecDeque::new();
        for conn in self.nodes[node].conns() {
            let Some(line) = self.conns.get_mut(&conn) else { continue };
            let from = usize::from(line.nodes[1] == node);
            let mut sent = Vec::new();
            for channel in CHANNELS {
                while line.room(from, channel) > 0 {
                    let Some(transmit) = self.nodes[node].poll_transmit(conn, self.now, channel) else { break };
                    for bytes in transmit.chunks {
                        let at = line.send(self.now, &mut self.rng, from, channel, &bytes);
                        sent.push((at, Event::Bytes { conn, from, channel, bytes }));
                    }
                }
            }
            while let Some(bytes) = self.nodes[node].poll_one_way(conn) {
                if let Some(at) = line.send_one_way(self.now, &mut self.rng) {
                    sent.push((at, Event::OneWay { conn, from, bytes }));
                }
            }
            if let Some(reason) = self.nodes[node].closed(conn) {
                if let CloseReason::Refused { text, .. } = reason {
                    self.refusals.push(format!("{} refused its peer: {text}", self.nodes[node].name()));
                }
                closed.push_back(conn);
            }
            for (at, event) in sent {
                self.at(at, event);
            }
        }
        while let Some(conn) = closed.pop_front() {
            self.cut(conn, "the peer closed the link");
        }
        self.check_losses(node);
        let epoch = self.nodes[node].epoch();
        if self.nodes[node].take_sync_due() {
            let delay = self.scenario.sync_delay.mul_f64(self.rng.random_range(0.1..2.0));
            self.after(delay + Duration::from_micros(50), Event::Sync { node, epoch });
        }
        if let Some(at) = self.nodes[node].take_wake(self.now) {
            self.at(at, Event::Wake { node, epoch });
        }
    }

    /// Invariant 6 at the moment at which it matters: what is called lost exists nowhere, and people are told.
    fn check_losses(&mut self, node: usize) {
        for Loss { log, hole } in self.nodes[node].take_losses() {
            let name = self.nodes[node].name().to_string();
            let mut found = |what: String| self.violations.push(Violation { invariant: 6, what });
            if hole.kind != HoleKind::Lost {
                found(format!("{name} wants all of {log}, yet states {hole:?}"));
                continue;
            }
            let reached = reachable(node, self.nodes.len(), &self.conns);
            for (other, holder) in self.nodes.iter().enumerate().filter(|(other, _)| *other != node) {
                // A relay that cannot be reached may hold it and is not waited for; a site is, longer than faults last here.
                if holder.holds_any(&log, &hole) && (holder.is_edge() || reached.contains(&other)) {
                    found(format!("{name} calls {hole:?} of {log} lost, but {} holds it", holder.name()));
                }
            }
            if !self.nodes[node].alarms().contains_key("range-lost") {
                found(format!("{name} states {hole:?} of {log} and tells nobody"));
            }
        }
    }

    /// Whether every node is up and every edge holds the same ends; looked at now and then once the faults are over.
    fn is_whole(&self) -> bool {
        if !self.events.is_multiple_of(256) || self.nodes.iter().any(|node| !node.is_up() || node.is_busy()) {
            return false;
        }
        let mut found = Vec::new();
        let disks = self.disks();
        let holdings = Holdings::read(&disks, &mut found);
        holdings.check_complete(&disks, &self.truth.lock(), &mut found);
        topics::check_deleted(&holdings, &mut found);
        found.is_empty()
    }

    /// Whether every edge broker says that its copies are at their ends, with nothing that is still asked for.
    fn is_live(&self) -> bool {
        let said = |status: String| status.starts_with("live") || status.starts_with("own");
        let live = |node: &SimNode| node.logs().iter().all(|log| node.status(log).is_none_or(said));
        self.events.is_multiple_of(256) && self.nodes.iter().filter(|node| node.is_edge()).all(live)
    }

    fn disks(&self) -> Vec<Disk<'_>> {
        let wants = |node: usize| move |topic: &str| self.scenario.wants_topic(node, topic);
        self.nodes.iter().enumerate().map(|(index, node)| node.disk(Box::new(wants(index)))).collect()
    }

    fn finish(mut self) -> Outcome {
        let mut violations = std::mem::take(&mut self.violations);
        if self.phase != Phase::Over {
            violations.push(Violation { invariant: 5, what: format!("it stopped in the phase {:?}", self.phase) });
        }
        let disks = self.disks();
        let holdings = Holdings::read(&disks, &mut violations);
        let truth = self.truth.lock();
        holdings.check_equal(&mut violations);
        holdings.check_once(&truth, &mut violations);
        holdings.check_receipts(&disks, &truth, &mut violations);
        holdings.check_retries(&truth, &mut violations);
        holdings.check_complete(&disks, &truth, &mut violations);
        topics::check_deleted(&holdings, &mut violations);
        if self.scenario.faults.topics > 0.0 {
            topics::check_keys(&holdings, &truth, &mut violations);
        }
        Outcome {
            published: truth.published_count(),
            tried_again: truth.tried_again(),
            receipts: truth.receipts().len(),
            remote_receipts: truth.receipts().iter().filter(|r| !r.sites.is_empty()).count(),
            events: self.events,
            time: self.now,
            held_back: self.held_back,
            deaths: self.nodes.iter().map(SimNode::deaths).sum(),
            called_live: self.honesty.called_live,
            alarms: self.nodes.iter().flat_map(SimNode::alarms).fold(BTreeMap::new(), |mut all, (name, count)| {
                *all.entry(name).or_default() += count;
                all
            }),
            refusals: self.refusals.clone(),
            holdings: describe(&disks, &self.nodes),
            fingerprint: holdings.fingerprint(),
            violations,
        }
    }
}

fn describe(disks: &[Disk<'_>], nodes: &[SimNode]) -> Vec<String> {
    let mut lines = Vec::new();
    for (disk, node) in disks.iter().zip(nodes) {
        for log in disk.log.logs() {
            let Some(info) = disk.log.info(&log, true) else { continue };
            let held: Vec<String> = info
                .incarnations
                .iter()
                .map(|i| format!("{}:{}..{} after {:?}", i.incarnation, i.begin, i.end, i.previous))
                .collect();
            lines.push(format!(
                "{log} at {}: {} | end {} forks {:?} holes {:?} | {}",
                disk.name,
                held.join(", "),
                info.end,
                info.fork_tips,
                info.holes,
                node.status(&log).unwrap_or_default()
            ));
        }
    }
    lines.sort();
    lines
}
