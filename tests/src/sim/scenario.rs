//! What a run is made of: a tree of nodes, how its lines behave, which faults come how often, and how much is published. All of it
//! follows from one seed.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::net::Line;

/// A fault put into the code's surroundings on purpose, to see that the checkers catch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The commit log of one node says "durable" before it is.
    AcknowledgeEarly,
    /// A batch read from one node's disk comes with other content under the same place, envelope made anew.
    ForgeBatch,
    /// One node's disk drops a batch from the middle of a copy and does not say so.
    LoseSilently,
    /// One node appends a message that it holds already a second time.
    AppendTwice,
    /// One node never serves its neighbours.
    ServeNothing,
    /// One node finds every batch wanting at first sight, so that it comes twice.
    RefuseOnce,
    /// One node forgets which producers it knows whenever it starts.
    ForgetProducers,
    /// One node now and then states a batch that came as lost instead of storing it.
    CallLost,
}

/// Faults and how often they come, each a mean number per simulated second while faults last.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// A connection breaks; it is dialled anew after a while.
    pub cut: f64,
    /// A node's process dies; what was not yet durable is lost or torn; it starts again with its disk.
    pub crash: f64,
    /// As above, but the disk is empty when it starts again.
    pub disk_lost: f64,
    /// As above, but the disk is an old copy of itself.
    pub disk_old: f64,
    /// As above, but the disk lied: the last writes that it called durable are gone.
    pub disk_lied: f64,
    /// A write fails: the commit log is poisoned, and the node is started again after a while.
    pub write_fails: f64,
    /// An origin's retention takes away the older part of one of its logs.
    pub trim: f64,
    /// Somebody changes a topic's queue count, deletes a topic, or creates one anew.
    pub topics: f64,
    /// Chance that a disk comes back from a node's death with a batch that cannot be read any more.
    pub damage: f64,
}

impl Faults {
    const NONE: Self = Self {
        cut: 0.0,
        crash: 0.0,
        disk_lost: 0.0,
        disk_old: 0.0,
        disk_lied: 0.0,
        write_fails: 0.0,
        trim: 0.0,
        topics: 0.0,
        damage: 0.0,
    };
}

/// A run's plan.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Everything follows from it.
    pub seed: u64,
    /// Per node: whether it is an edge broker (else a relay).
    pub edges: Vec<bool>,
    /// Pairs of nodes with a link: the first dials.
    pub links: Vec<(usize, usize)>,
    /// How each line behaves.
    pub lines: Vec<Line>,
    /// Faults.
    pub faults: Faults,
    /// How long messages are published and faults come.
    pub active: Duration,
    /// How long the federation may then take to become whole, at most.
    pub settle: Duration,
    /// Messages published per simulated second, at each edge.
    pub rate: f64,
    /// Topics shared by all sites.
    pub topics: usize,
    /// Per node: the topics that it wants; `None`: all, those to come included.
    pub wants: Vec<Option<Vec<usize>>>,
    /// Idempotent producers at each edge, which publish half of its messages and try again what was not answered.
    pub producers: usize,
    /// How long messages are published once more when everything is whole, to see what crosses the links then.
    pub steady: Duration,
    /// Mean delay of an fsync.
    pub sync_delay: Duration,
    /// A deliberate fault.
    pub sabotage: Option<Sabotage>,
}

/// Whether two kinds of disaster may come in one run: an origin's disk lost or set back, and ranges taken away by retention or
/// damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disasters {
    /// The one or the other.
    Apart,
    /// Both.
    Together,
}

impl Scenario {
    /// A random tree of two to five nodes, at least two of them edges, with every kind of fault, disasters apart.
    pub fn random(seed: u64) -> Self {
        Self::random_with(seed, Disasters::Apart)
    }

    /// The same, with a choice.
    pub fn random_with(seed: u64, disasters: Disasters) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(2..=5_usize);
        let mut edges: Vec<bool> = (0..count).map(|_| rng.random_bool(0.65)).collect();
        for edge in edges.iter_mut().take(2) {
            *edge = true;
        }
        let links: Vec<(usize, usize)> = (1..count)
            .map(|node| {
                let other = rng.random_range(0..node);
                if rng.random_bool(0.5) { (node, other) } else { (other, node) }
            })
            .collect();
        let lines = links
            .iter()
            .map(|_| Line {
                delay: Duration::from_millis(rng.random_range(0..100)),
                jitter: Duration::from_millis(rng.random_range(0..30)),
                loss: if rng.random_bool(0.5) { rng.random_range(0.0..0.2) } else { 0.0 },
                window: rng.random_range(8..512) * 1024,
            })
            .collect();
        let mut some = |rate: f64| if rng.random_bool(0.5) { rate } else { 0.0 };
        let faults =
            Faults { cut: some(0.5), crash: some(0.3), disk_lost: some(0.08), disk_old: some(0.08), ..Faults::NONE };
        let plain = Self {
            seed,
            edges,
            links,
            lines,
            faults,
            active: Duration::from_secs(rng.random_range(3..12)),
            settle: Duration::from_secs(300),
            rate: rng.random_range(2.0..40.0),
            topics: rng.random_range(1..=3),
            wants: vec![None; count],
            producers: 0,
            steady: Duration::ZERO,
            sync_delay: Duration::from_millis(rng.random_range(0..20)),
            sabotage: None,
        };
        plain.widened(disasters)
    }

    /// What came later than the rest, drawn from numbers of its own so that seeds keep the trees that they had.
    fn widened(mut self, disasters: Disasters) -> Self {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0x77d1_03e5_90bb_42a6);
        let mut some = |chance: f64, rate: f64| if rng.random_bool(chance) { rate } else { 0.0 };
        self.faults.disk_lied = some(0.3, 0.1);
        self.faults.write_fails = some(0.3, 0.15);
        self.faults.trim = some(0.3, 0.5);
        self.faults.damage = some(0.3, 0.5);
        let disks = self.faults.disk_lost + self.faults.disk_old + self.faults.disk_lied;
        if disasters == Disasters::Apart && disks > 0.0 && self.faults.trim + self.faults.damage > 0.0 {
            if rng.random_bool(0.5) {
                (self.faults.trim, self.faults.damage) = (0.0, 0.0);
            } else {
                (self.faults.disk_lost, self.faults.disk_old, self.faults.disk_lied) = (0.0, 0.0, 0.0);
            }
        }
        for (node, wants) in self.wants.iter_mut().enumerate() {
            // An edge in the middle wants what it carries: one that does not keeps no copy of it and reads through for each
            // neighbour that asks.
            let links = self.links.iter().filter(|(a, b)| *a == node || *b == node).count();
            if links == 1 && rng.random_bool(0.3) {
                *wants = Some((0..self.topics).filter(|_| rng.random_bool(0.6)).collect());
            }
        }
        self.producers = rng.random_range(0..=2);
        if rng.random_bool(0.4) {
            self.steady = Duration::from_secs(2);
        }
        self
    }

    /// Whether an edge wants a topic.
    pub fn wants_topic(&self, node: usize, topic: &str) -> bool {
        let number = topic.strip_prefix("topic-").and_then(|n| n.parse().ok());
        match self.wants.get(node) {
            Some(Some(topics)) => number.is_some_and(|n: usize| topics.contains(&n)),
            _ => true,
        }
    }

    /// The same with topics that are changed, deleted and created anew. No disk is set back: an origin of before a deletion knows
    /// nothing of it (see ARCHITECTURE.md).
    #[must_use]
    pub fn with_topics(mut self) -> Self {
        (self.faults.disk_lost, self.faults.disk_old, self.faults.disk_lied) = (0.0, 0.0, 0.0);
        (self.faults.damage, self.faults.topics) = (0.0, 1.0);
        self
    }

    /// The same without faults of any kind on lines or nodes.
    #[must_use]
    pub fn calm(mut self) -> Self {
        self.faults = Faults::NONE;
        for line in &mut self.lines {
            line.loss = 0.0;
        }
        self
    }
}
