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
    /// Mean delay of an fsync.
    pub sync_delay: Duration,
    /// A deliberate fault.
    pub sabotage: Option<Sabotage>,
}

impl Scenario {
    /// A random tree of two to five nodes, at least two of them edges, with every kind of fault.
    pub fn random(seed: u64) -> Self {
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
        let faults = Faults { cut: some(0.5), crash: some(0.3), disk_lost: some(0.08), disk_old: some(0.08) };
        Self {
            seed,
            edges,
            links,
            lines,
            faults,
            active: Duration::from_secs(rng.random_range(3..12)),
            settle: Duration::from_secs(300),
            rate: rng.random_range(2.0..40.0),
            topics: rng.random_range(1..=3),
            sync_delay: Duration::from_millis(rng.random_range(0..20)),
            sabotage: None,
        }
    }

    /// The same without faults of any kind on lines or nodes.
    #[must_use]
    pub fn calm(mut self) -> Self {
        self.faults = Faults { cut: 0.0, crash: 0.0, disk_lost: 0.0, disk_old: 0.0 };
        for line in &mut self.lines {
            line.loss = 0.0;
        }
        self
    }
}
