//! The flipped-bit test: one bit in the middle of a segment, below the durable point, is damage. It is
//! reported with file and position and fenced; nothing is cut, and what is around it is read as before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test, called by tests only"
)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use seaway_federation_proto::{
    envelope::Batch,
    ids::{NodeName, Place, Start},
};
use seaway_relay::log::{
    conformance::fixture::{Origin, bytes_of, log_name},
    contract::{CommitLog, Damage, Entry, Line, Outside, Read, Role, Unit},
    disk::{DiskConfig, DiskLog, Recovery},
};

use crate::{faults::FaultDisk, power_loss::scratch};

/// What one seed met.
#[derive(Debug, Clone, Copy, Default)]
pub struct Met {
    /// The bit was in a batch: so many batches are fenced.
    pub fenced: usize,
    /// The bit was in padding or unused room: nothing is wrong.
    pub harmless: bool,
    /// Segments there were.
    pub segments: usize,
}

fn config(disk: &FaultDisk, index: PathBuf, start: u64) -> DiskConfig {
    let name = NodeName::new("near".parse().unwrap(), "one").unwrap();
    let mut config = DiskConfig::new("/data".into(), "test", name, Start { time_us: start, random: 0 });
    config.index_dir = Some(index);
    config.segment_bytes = 16 << 10;
    config.reserve_bytes = 0;
    config.tail_bytes_max = 0;
    config.flush_interval = Duration::from_secs(3600);
    config.files = Arc::new(disk.clone());
    config
}

fn store(log: &DiskLog, batches: &[Batch]) {
    let (tell, told) = std::sync::mpsc::channel();
    let entries = batches.iter().map(|batch| Entry::Append { role: Role::Own, batch: batch.clone() }).collect();
    log.submit(Unit { entries }, Box::new(move |result| drop(tell.send(result)))).unwrap();
    told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
}

/// Reads all batches there are of the log, and the ranges that answer that they are damaged or lacking.
fn read_around(log: &dyn CommitLog, origin: &Origin) -> (Vec<Batch>, u64) {
    let (mut found, mut fenced) = (Vec::new(), 0);
    for held in log.info(origin.log(), true).expect("the log is still held").incarnations {
        let mut at = Place { incarnation: held.incarnation, offset: held.begin };
        while at.offset < held.end {
            let to = match log.read(origin.log(), at, Line::Incarnation, 1 << 20).unwrap() {
                Read::Batches { batches, next } => {
                    found.extend(batches);
                    next.offset
                }
                Read::Outside(Outside::Damaged { to }) => {
                    fenced += to - at.offset;
                    to
                }
                Read::Outside(Outside::Hole { hole }) => {
                    fenced += hole.to - at.offset;
                    hole.to
                }
                other => panic!("{at} cannot be read: {other:?}"),
            };
            assert!(to > at.offset, "reading must get on");
            at.offset = to;
        }
    }
    (found, fenced)
}

/// Flips a bit in a random place of a log that was closed in order, then opens it, with the index as it
/// was (`keep_index`) or without.
pub fn run_seed(seed: u64, keep_index: bool) -> Met {
    let scratch = scratch().unwrap();
    let index = scratch.path().join("index");
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = FaultDisk::default();
    let mut origin = Origin::new(log_name("orders", "near", 1), seed);
    let (log, _) = DiskLog::open(config(&disk, index.clone(), 1)).unwrap();
    let mut all = Vec::new();
    for _ in 0..12 {
        let group: Vec<Batch> = (0..rng.random_range(1..4))
            .map(|_| origin.next(rng.random_range(1..4), rng.random_range(10..1200)))
            .collect();
        store(&log, &group);
        all.extend(group);
    }
    log.close().unwrap();
    drop(log);
    let disk = disk.killed();
    let segments: Vec<(PathBuf, usize)> =
        disk.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg")).collect();
    // In the middle: not the newest segment's last group, which nothing after it proves durable.
    let (path, len) = segments[rng.random_range(0..segments.len().saturating_sub(1).max(1))].clone();
    let at = rng.random_range(0..len);
    disk.flip(&path, at, 1 << rng.random_range(0..8));
    if !keep_index {
        let _ = std::fs::remove_dir_all(&index);
    }
    let lengths: usize = segments.iter().map(|(_, len)| len).sum();
    let opened = DiskLog::open(config(&disk, index, 2));
    let (log, recovery) = opened.unwrap_or_else(|e| panic!("seed {seed}: one flipped bit, and it does not open: {e}"));
    assert_eq!(recovery.torn_bytes, 0, "seed {seed}: damage at {}:{at} was taken for torn", path.display());
    let left: usize =
        disk.files().iter().filter(|(path, _)| segments.iter().any(|(s, _)| s == path)).map(|(_, len)| len).sum();
    assert!(left >= lengths, "seed {seed}: damage was cut");
    let met = check(seed, &log, &recovery, &origin, &all, &path, at as u64);
    // It goes on, and stays what it is.
    origin.restart();
    let more = origin.batches(2);
    store(&log, &more);
    let (found, _) = read_around(&*log, &origin);
    assert!(found.ends_with_same(&more), "seed {seed}: it does not go on");
    log.close().unwrap();
    Met { segments: segments.len(), ..met }
}

trait EndsWith {
    fn ends_with_same(&self, end: &[Batch]) -> bool;
}

impl EndsWith for Vec<Batch> {
    fn ends_with_same(&self, end: &[Batch]) -> bool {
        self.len() >= end.len()
            && self[self.len() - end.len()..].iter().zip(end).all(|(a, b)| bytes_of(a) == bytes_of(b))
    }
}

fn check(
    seed: u64,
    log: &Arc<DiskLog>,
    recovery: &Recovery,
    origin: &Origin,
    all: &[Batch],
    path: &std::path::Path,
    at: u64,
) -> Met {
    let (found, fenced) = read_around(&**log, origin);
    for batch in &found {
        let was = all.iter().find(|b| b.begin() == batch.begin()).expect("a batch that was stored");
        assert!(bytes_of(was) == bytes_of(batch), "seed {seed}: altered bytes were read at {}", batch.begin());
    }
    let messages: u64 = all.iter().map(|b| u64::from(b.header().count)).sum();
    let read: u64 = found.iter().map(|b| u64::from(b.header().count)).sum();
    assert_eq!(read + fenced, messages, "seed {seed}: messages are neither read nor fenced");
    let mut reports: Vec<Damage> = recovery.damage.clone();
    reports.extend(log.stats().damage);
    let file = path.file_name().unwrap().to_string_lossy().into_owned();
    let names = |d: &Damage| d.file.contains(&file) && d.from <= at && at < d.to;
    let lost = all.len() - found.len();
    if lost > 0 {
        assert!(reports.iter().any(names), "seed {seed}: {file}:{at} is not in the reports {reports:?}");
    }
    Met { fenced: lost, harmless: lost == 0, segments: 0 }
}
