//! The simulated network: connections of ordered channels and of one-way messages, with delay, stalls (what loss does to an ordered
//! channel), reordering between channels, loss of one-way messages, cuts.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use rand::{Rng, rngs::StdRng};
use seaway_federation_proto::session::Channel;

/// A connection between two nodes while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// How a line behaves.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// One-way delay, least.
    pub delay: Duration,
    /// And what is added at random, at most.
    pub jitter: Duration,
    /// Share of sends that meet a loss: ordered channels stall for a retransmission, one-way messages are gone.
    pub loss: f64,
    /// Bytes that a channel keeps under way before it takes no more.
    pub window: usize,
}

/// One direction of a connection.
#[derive(Debug, Clone, Default)]
struct Direction {
    arrival: BTreeMap<Channel, Duration>,
    under_way: BTreeMap<Channel, usize>,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct Conn {
    /// The nodes' indices: the one that dialled first.
    pub nodes: [usize; 2],
    line: Line,
    directions: [Direction; 2],
}

impl Conn {
    /// A new connection over a line.
    pub fn new(nodes: [usize; 2], line: Line) -> Self {
        Self { nodes, line, directions: Default::default() }
    }

    /// Room in bytes that a channel has from side `from` (0 or 1).
    pub fn room(&self, from: usize, channel: Channel) -> usize {
        let under_way = self.directions.get(from).and_then(|d| d.under_way.get(&channel)).copied().unwrap_or(0);
        self.line.window.saturating_sub(under_way)
    }

    /// Sends bytes on a channel: when they arrive. Later bytes of the same channel never arrive earlier.
    pub fn send(&mut self, now: Duration, rng: &mut StdRng, from: usize, channel: Channel, bytes: &Bytes) -> Duration {
        let mut at = now + self.line.delay + self.line.jitter.mul_f64(rng.random::<f64>());
        while rng.random_bool(self.line.loss) {
            at += self.line.delay * 3;
        }
        let Some(direction) = self.directions.get_mut(from) else { return at };
        let last = direction.arrival.entry(channel).or_default();
        *last = at.max(*last);
        *direction.under_way.entry(channel).or_default() += bytes.len();
        *last
    }

    /// Bytes arrived.
    pub fn arrived(&mut self, from: usize, channel: Channel, bytes: usize) {
        if let Some(under_way) = self.directions.get_mut(from).and_then(|d| d.under_way.get_mut(&channel)) {
            *under_way = under_way.saturating_sub(bytes);
        }
    }

    /// Sends a one-way message: when it arrives, in any order; `None`: lost.
    pub fn send_one_way(&mut self, now: Duration, rng: &mut StdRng) -> Option<Duration> {
        let lost = rng.random_bool(self.line.loss);
        (!lost).then(|| now + self.line.delay + self.line.jitter.mul_f64(rng.random::<f64>()))
    }
}
