//! What the disk holds beside what lives, and what giving it back costs: a busy topic that is kept for an hour beside a thin one
//! that is kept for two days, on the real commit log, with a clock of its own.
//!
//! Two days and six hours are lived through, ten minutes at a time: messages of both topics, then retention, then reclaiming to
//! the end of what there is to do. The first two days fill the thin topic; the figures are of the rest, when as much goes as comes. All
//! sizes follow from how much is written, so that a small run has the proportions of a large one: a segment holds a fifth of the busy
//! topic's hour.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use seaway_federation_proto::ids::Start;

use super::{BenchError, Origin, submit};
use crate::log::{
    contract::{CommitLog, Entry, LogStats, Poisoned, Retention, Role, Unit},
    disk::{DiskConfig, DiskLog},
};

/// Hours that are lived through; the thin topic is full after [`THIN_HOURS`].
const HOURS: u64 = 54;
/// For how long the busy topic is kept, in hours.
const BUSY_HOURS: u64 = 1;
/// For how long the thin topic is kept, in hours.
const THIN_HOURS: u64 = 48;
/// Bytes of the busy topic for each byte of the thin one.
const BUSY_SHARE: u64 = 50;
/// Turns in an hour.
const TURNS: u64 = 6;
const BUSY_BATCH_BYTES: usize = 64 << 10;
const THIN_BATCH_BYTES: usize = 1 << 10;
/// Microseconds of a turn.
const TURN_US: u64 = 3600 * 1_000_000 / TURNS;

/// What [`bench_space`] measured; bytes are of the last six hours unless they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SpaceResult {
    /// What lived, on average.
    pub live_bytes: f64,
    /// Segment files, on average.
    pub segment_bytes: f64,
    /// Segment files for each byte that lived, at most.
    pub overhead_max: f64,
    /// The index at the end.
    pub index_bytes: u64,
    /// Batches accepted, over the whole run.
    pub accepted_bytes: u64,
    /// Written to segments, over the whole run.
    pub written_bytes: u64,
    /// Of these, batches that were moved.
    pub moved_bytes: u64,
    /// Written by the index.
    pub index_written_bytes: u64,
    /// Time spent in reclaiming, everything counted.
    pub reclaiming: Duration,
    /// Segment files that were given back.
    pub freed_bytes: u64,
}

struct Run {
    log: Arc<DiskLog>,
    now_us: Arc<AtomicU64>,
    topics: [Topic; 2],
    result: SpaceResult,
    samples: u64,
}

struct Topic {
    origin: Origin,
    bytes_per_turn: u64,
    kept_us: u64,
}

/// Lives through it in a new directory `dir`, with about `total_bytes` of messages; from `dead_share_max` on old segments are
/// emptied (1: never). Removes the directory at the end.
pub fn bench_space(dir: &Path, total_bytes: u64, dead_share_max: f64) -> Result<SpaceResult, BenchError> {
    let _ = fs::remove_dir_all(dir);
    let measured = Run::begin(dir, total_bytes, dead_share_max).and_then(Run::live);
    let _ = fs::remove_dir_all(dir);
    measured
}

impl Run {
    fn begin(dir: &Path, total_bytes: u64, dead_share_max: f64) -> Result<Self, BenchError> {
        let busy_per_turn = total_bytes / HOURS / TURNS;
        let now_us = Arc::new(AtomicU64::new(1_700_000_000_000_000));
        let clock = Arc::clone(&now_us);
        let config = DiskConfig::new(dir.to_owned(), "bench", "bench/bench".parse()?, Start { time_us: 1, random: 1 });
        let segment_bytes = (busy_per_turn * TURNS / 5).max(1 << 20);
        let config = DiskConfig {
            segment_bytes,
            checkpoint_bytes: segment_bytes * 4,
            reserve_bytes: 0,
            dead_share_max,
            moving_rate: u64::MAX,
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            ..config
        };
        let (log, _) = DiskLog::open(config)?;
        let topic = |name: &str, batch, bytes_per_turn, hours: u64| {
            let origin = Origin::of(name, batch)?;
            Ok::<_, BenchError>(Topic { origin, bytes_per_turn, kept_us: hours * TURNS * TURN_US })
        };
        let topics = [
            topic("busy", BUSY_BATCH_BYTES, busy_per_turn, BUSY_HOURS)?,
            topic("thin", THIN_BATCH_BYTES, busy_per_turn / BUSY_SHARE, THIN_HOURS)?,
        ];
        Ok(Self { log, now_us, topics, result: SpaceResult::default(), samples: 0 })
    }

    fn live(mut self) -> Result<SpaceResult, BenchError> {
        for turn in 0..HOURS * TURNS {
            self.now_us.fetch_add(TURN_US, Ordering::Relaxed);
            self.write()?;
            self.retain()?;
            self.reclaim()?;
            if turn >= THIN_HOURS * TURNS {
                self.sample();
            }
        }
        let stats = self.log.stats();
        self.log.close()?;
        Ok(self.sum_up(&stats))
    }

    /// What comes in one turn, both topics mixed.
    fn write(&mut self) -> Result<(), BenchError> {
        let [busy, thin] = &mut self.topics;
        let (mut sent, mut thin_sent) = (0, 0);
        while sent < busy.bytes_per_turn {
            let batch = busy.origin.next()?;
            sent += batch.len() as u64;
            append(&self.log, batch)?;
            while thin_sent * BUSY_SHARE < sent {
                let batch = thin.origin.next()?;
                thin_sent += batch.len() as u64;
                append(&self.log, batch)?;
            }
        }
        Ok(())
    }

    fn retain(&self) -> Result<(), BenchError> {
        let now = self.now_us.load(Ordering::Relaxed);
        let mut entries = Vec::new();
        for topic in &self.topics {
            let appended_before_us = Some(now.saturating_sub(topic.kept_us));
            let retention = Retention { appended_before_us, ..Retention::default() };
            let log = &topic.origin.log;
            let to = self.log.trim_target(log, retention).map_err(|e| BenchError::Refused(e.to_string()))?;
            entries.extend(to.map(|to| Entry::Trim { log: log.clone(), to }));
        }
        let (told, done) = crossbeam_channel::bounded(1);
        submit(&self.log, Unit { entries }, Box::new(move |result| _ = told.try_send(result)))?;
        wait(&done)
    }

    fn reclaim(&mut self) -> Result<(), BenchError> {
        let began = Instant::now();
        loop {
            self.result.freed_bytes += self.log.reclaim()?;
            if !self.log.stats().reclaim_again {
                break;
            }
        }
        self.result.reclaiming += began.elapsed();
        Ok(())
    }

    fn sample(&mut self) {
        let stats = self.log.stats();
        let (live, segments) = (stats.live_bytes as f64, stats.segment_bytes as f64);
        self.result.live_bytes += live;
        self.result.segment_bytes += segments;
        self.result.overhead_max = self.result.overhead_max.max(segments / live.max(1.0));
        self.samples += 1;
    }

    fn sum_up(self, stats: &LogStats) -> SpaceResult {
        let samples = self.samples.max(1) as f64;
        SpaceResult {
            live_bytes: self.result.live_bytes / samples,
            segment_bytes: self.result.segment_bytes / samples,
            index_bytes: stats.index_bytes,
            accepted_bytes: stats.accepted_bytes,
            written_bytes: stats.written_bytes,
            moved_bytes: stats.moved_bytes,
            index_written_bytes: stats.index_written_bytes,
            ..self.result
        }
    }
}

fn append(log: &Arc<DiskLog>, batch: seaway_federation_proto::envelope::Batch) -> Result<(), BenchError> {
    submit(log, Unit { entries: vec![Entry::Append { role: Role::Own, batch }] }, Box::new(|_| {}))
}

fn wait(done: &crossbeam_channel::Receiver<Result<(), Poisoned>>) -> Result<(), BenchError> {
    Ok(done.recv().map_err(|_| BenchError::Refused("the storage thread has ended".to_owned()))??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_keeps_the_overhead_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let total = 64 << 20;
        let moved = bench_space(&dir.path().join("log"), total, 0.4).unwrap();
        let kept = bench_space(&dir.path().join("log"), total, 1.0).unwrap();
        assert_eq!(kept.moved_bytes, 0);
        assert!(moved.moved_bytes > 0);
        let overhead = |r: &SpaceResult| r.segment_bytes / r.live_bytes;
        // What lives / (1 - 0.4), and some segments of the newest, of which each is a tenth of what lives.
        assert!(overhead(&moved) < 2.5, "{moved:?}");
        assert!(overhead(&kept) > 2.0 * overhead(&moved), "{kept:?}, {moved:?}");
        // (1 - b) / b for each byte given back.
        assert!((moved.moved_bytes as f64) < 1.5 * moved.freed_bytes as f64, "{moved:?}");
    }
}
