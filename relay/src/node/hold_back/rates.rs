//! How much is published by topic, over up to a day, in steps of an hour; of this process's life only.

use std::collections::{HashMap, VecDeque};

use seaway_federation_proto::ids::Topic;

/// Length of a step, microseconds.
const STEP_US: u64 = 3600 * 1_000_000;
/// Steps kept, the one under way included.
const STEPS: usize = 24;
/// Topics counted by themselves; the rest is counted in the sum only.
const TOPICS_MAX: usize = 16_384;
/// A rate is told once so much was seen, microseconds.
const SEEN_MIN_US: u64 = 60_000_000;

/// Bytes by step, the newest last.
#[derive(Debug, Default)]
struct Counted(VecDeque<(u64, u64)>);

impl Counted {
    fn count(&mut self, bytes: u64, step: u64) {
        match self.0.back_mut().filter(|(last, _)| *last >= step) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => self.0.push_back((step, bytes)),
        }
        while self.0.front().is_some_and(|(old, _)| old.saturating_add(STEPS as u64) <= step) {
            self.0.pop_front();
        }
    }

    fn sum(&self, step: u64) -> u64 {
        let counts = |(old, _): &&(u64, u64)| old.saturating_add(STEPS as u64) > step;
        self.0.iter().filter(counts).fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Rates {
    since_us: Option<u64>,
    all: Counted,
    topics: HashMap<Topic, Counted>,
}

impl Rates {
    pub(super) fn count(&mut self, topic: &Topic, bytes: u64, wall_us: u64) {
        self.since_us.get_or_insert(wall_us);
        let step = wall_us / STEP_US;
        self.all.count(bytes, step);
        if !self.topics.contains_key(topic) && self.topics.len() >= TOPICS_MAX {
            return;
        }
        self.topics.entry(topic.clone()).or_default().count(bytes, step);
    }

    /// Over what time, seconds; `None`: too short yet.
    fn seen(&self, wall_us: u64) -> Option<f64> {
        let since = self.since_us?;
        // From the begin of the oldest step that is kept.
        let oldest = (wall_us / STEP_US).saturating_sub(STEPS as u64 - 1).saturating_mul(STEP_US);
        let seen = wall_us.saturating_sub(since.max(oldest));
        (seen >= SEEN_MIN_US).then(|| seen as f64 / 1e6)
    }

    /// Bytes a second of all topics.
    pub(super) fn all(&self, wall_us: u64) -> Option<f64> {
        Some(self.all.sum(wall_us / STEP_US) as f64 / self.seen(wall_us)?)
    }

    /// Bytes a second of these.
    pub(super) fn of<'a>(&self, topics: impl Iterator<Item = &'a Topic>, wall_us: u64) -> Option<f64> {
        let sums = topics.filter_map(|topic| self.topics.get(topic)).map(|c| c.sum(wall_us / STEP_US));
        Some(sums.fold(0, u64::saturating_add) as f64 / self.seen(wall_us)?)
    }
}
