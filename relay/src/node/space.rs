//! What holds the disk, how it is shared out, and how long it lasts.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use seaway_federation_proto::{ids::Topic, replication::CopyStatus};

use super::{clock::Clock, inner::NodeInner, time_guard::TimeGuard};
use crate::log::contract::{CommitLog, LogStats};

/// How often the growth of the disk's use is noted.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// For how long: the time until the disk is full is told at the rate of this.
const SAMPLES_MAX: usize = 360;
/// Growth over less than this says nothing.
const SAMPLED_MIN: Duration = Duration::from_secs(20);

/// How the disk is shared out and given back.
#[derive(Debug, Clone, PartialEq)]
pub struct SpaceConfig {
    /// What own logs may take of the disk in bytes, their part of the overhead counted; `None`: all but the reserve.
    pub own_bytes_max: Option<u64>,
    /// What copies may take, likewise. Not for a relay, whose cache has a size of its own.
    pub copies_bytes_max: Option<u64>,
    /// Dead share of old segments (0 to 1) above which what lives in them is moved.
    pub dead_share_max: f64,
    /// Bytes a second that are moved.
    pub moving_rate: u64,
    /// A wall clock that leaps farther than this is not believed for an hour.
    pub clock_step_max: Duration,
}

impl Default for SpaceConfig {
    /// No shares; moving from a dead share of 0.4 on, 32 MiB a second; a day.
    fn default() -> Self {
        Self {
            own_bytes_max: None,
            copies_bytes_max: None,
            dead_share_max: 0.4,
            moving_rate: 32 << 20,
            clock_step_max: Duration::from_secs(24 * 3600),
        }
    }
}

/// What one topic holds here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicUsage {
    /// The topic.
    pub topic: Topic,
    /// Bytes of this site's own logs.
    pub own_bytes: u64,
    /// Bytes of copies of other sites' logs.
    pub copies_bytes: u64,
}

/// When the disk is full if it goes on so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// By how much the log's files grew, bytes a second; negative: they shrank.
    pub bytes_per_s: f64,
    /// Over how long that was.
    pub over: Duration,
    /// How long what is free above the reserve lasts; `None`: it does not grow.
    pub full_in: Option<Duration>,
}

/// What holds the disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskUsage {
    /// By topic, the largest first.
    pub topics: Vec<TopicUsage>,
    /// Bytes of batches that live, own and copies.
    pub live_bytes: u64,
    /// Bytes of segment files in which nothing lives: dead, and waiting to be given back, state and framing among them.
    pub dead_bytes: u64,
    /// Of these, what the last two checkpoints take, about.
    pub checkpoint_bytes: u64,
    /// The index.
    pub index_bytes: u64,
    /// Kept in a file for what makes room.
    pub kept_bytes: u64,
    /// Free on the file system.
    pub free_bytes: u64,
    /// Of that, what messages may not use.
    pub reserve_bytes: u64,
    /// What own logs may take, if that is bounded, and whether it is used up.
    pub own_max: Option<(u64, bool)>,
    /// What copies may take, likewise.
    pub copies_max: Option<(u64, bool)>,
    /// For how long it lasts; `None` until something can be told.
    pub forecast: Option<Forecast>,
}

/// How the log's files grew in the last hour.
#[derive(Debug, Default)]
pub(super) struct Growth(Mutex<VecDeque<(Duration, u64)>>);

impl Growth {
    /// Notes what the files take, now and then.
    pub(super) fn note(&self, now: Duration, bytes: u64) {
        let mut samples = self.0.lock();
        if samples.back().is_some_and(|(at, _)| now < *at + SAMPLE_EVERY) {
            return;
        }
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back((now, bytes));
    }

    /// The rate since the oldest that is known, and how long `room` lasts at it.
    pub(super) fn forecast(&self, now: Duration, bytes: u64, room: u64) -> Option<Forecast> {
        let (at, before) = self.0.lock().front().copied()?;
        let over = now.checked_sub(at).filter(|over| *over >= SAMPLED_MIN)?;
        let bytes_per_s = (bytes as f64 - before as f64) / over.as_secs_f64();
        let lasts = (bytes_per_s > 0.0).then(|| room as f64 / bytes_per_s);
        let full_in = lasts.map(|s| Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX));
        Some(Forecast { bytes_per_s, over, full_in })
    }
}

/// What upkeep knows of room and time.
#[derive(Debug)]
pub(super) struct SpaceState {
    /// What the wall clock is believed of.
    pub(super) guard: Arc<TimeGuard>,
    /// Whether the room on the disk or in a share comes near its end, as upkeep last saw it.
    pub(super) short: AtomicBool,
    /// Whether the commit log has more space to give back, likewise.
    pub(super) reclaim_again: AtomicBool,
    /// Whether it was told that the share of copies is used up.
    pub(super) copies_full: AtomicBool,
    /// The alarm about the clock that was raised.
    pub(super) clock_astray: Mutex<&'static str>,
    /// How the use of the disk grows.
    pub(super) growth: Growth,
}

impl SpaceState {
    pub(super) fn new(guard: Arc<TimeGuard>) -> Self {
        Self {
            guard,
            short: false.into(),
            reclaim_again: false.into(),
            copies_full: false.into(),
            clock_astray: Mutex::default(),
            growth: Growth::default(),
        }
    }
}

/// Room for own messages as hold-back counts it: bytes that dead files give back anyway count, while there is something to move.
pub(super) fn own_room(stats: &LogStats) -> Option<i64> {
    let dead = stats.segment_bytes.saturating_sub(stats.live_bytes);
    let coming = if stats.reclaim_again { i64::try_from(dead).unwrap_or(i64::MAX) } else { 0 };
    stats.own_room.map(|room| room.saturating_add(coming))
}

fn files_bytes(stats: &LogStats) -> u64 {
    stats.segment_bytes.saturating_add(stats.index_bytes)
}

impl NodeInner {
    /// Notes how the disk's use grows.
    pub(super) fn note_growth(&self, stats: &LogStats) {
        self.space.growth.note(self.clock.now(), files_bytes(stats));
    }

    /// A copy that is behind and takes nothing since the share of copies is used up says so.
    pub(super) fn say_without_room(&self, status: CopyStatus) -> CopyStatus {
        let up_to_date = status.state == "own" || status.lag_messages == Some(0);
        if up_to_date || !self.space.copies_full.load(Ordering::Relaxed) {
            return status;
        }
        let max = self.config.space.copies_bytes_max.unwrap_or(0);
        let reason = format!(
            "copies have used up their share of this node's disk ({max} bytes, log.copies_size): lower their retention or raise it"
        );
        CopyStatus { state: "stalled", reason, ..status }
    }

    /// See [`super::Node::disk_usage`].
    pub(super) fn disk_usage(&self) -> DiskUsage {
        let log: &dyn CommitLog = &*self.log;
        let stats = log.stats();
        let own_site = &self.config.name.site;
        let mut topics = BTreeMap::<Topic, TopicUsage>::new();
        for name in log.logs() {
            let bytes = log.bytes(&name).unwrap_or(0);
            let topic = name.topic.clone();
            let usage = topics.entry(topic.clone()).or_insert(TopicUsage { topic, own_bytes: 0, copies_bytes: 0 });
            *(if name.origin == *own_site { &mut usage.own_bytes } else { &mut usage.copies_bytes }) += bytes;
        }
        let mut topics: Vec<TopicUsage> = topics.into_values().collect();
        topics.sort_by_key(|usage| std::cmp::Reverse(usage.own_bytes.saturating_add(usage.copies_bytes)));
        let dead_bytes = stats.segment_bytes.saturating_sub(stats.live_bytes);
        let reserve_bytes = self.config.disk_reserve_bytes.saturating_sub(stats.ballast_bytes);
        let room = stats.disk_free.saturating_sub(reserve_bytes);
        let space = &self.config.space;
        DiskUsage {
            topics,
            live_bytes: stats.live_bytes,
            dead_bytes,
            checkpoint_bytes: (stats.checkpoint_bytes * stats.checkpoints.min(2)).min(dead_bytes),
            index_bytes: stats.index_bytes,
            kept_bytes: stats.ballast_bytes,
            free_bytes: stats.disk_free,
            reserve_bytes,
            own_max: space.own_bytes_max.map(|max| (max, stats.own_full)),
            copies_max: space.copies_bytes_max.map(|max| (max, stats.copies_full)),
            forecast: self.space.growth.forecast(self.clock.now(), files_bytes(&stats), room),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forecast_is_of_the_last_hour() {
        let growth = Growth::default();
        let second = Duration::from_secs(1);
        assert_eq!(growth.forecast(second, 0, 1), None);
        for n in 0..10_000_u32 {
            growth.note(second * n, u64::from(n) * 1000);
        }
        let forecast = growth.forecast(second * 10_000, 10_000_000, 3_600_000).unwrap();
        assert!((forecast.bytes_per_s - 1000.0).abs() < 1.0, "{forecast:?}");
        assert!((3590..=3620).contains(&forecast.over.as_secs()), "{forecast:?}");
        assert_eq!(forecast.full_in.unwrap().as_secs(), 3600);
        let shrinks = growth.forecast(second * 10_000, 1_000, 3_600_000).unwrap();
        assert!(shrinks.bytes_per_s < 0.0 && shrinks.full_in.is_none());
    }
}
