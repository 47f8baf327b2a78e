//! Moving at work: a busy log that is kept for a short while beside a thin one that is kept.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use seaway_federation_proto::{envelope::Batch, ids::Place};

use super::{
    DiskConfig, DiskLog, Snapshot, config, open,
    recovery::{copy_dir, find, flip, own, read_all, segments},
    snapshot, store,
};
use crate::log::{
    conformance::fixture::{Origin, log_name},
    contract::{CommitLog, Entry, Line, Outside, Read, Role},
};

/// Units that are written; each has a batch of the busy log, every fourth one of the thin log too.
const UNITS: usize = 200;

struct Pair {
    dir: tempfile::TempDir,
    log: Arc<DiskLog>,
    busy: Origin,
    thin: Origin,
    thin_batches: Vec<Batch>,
}

/// The thin log is held whole, of the busy one nearly nothing; nothing is given back yet.
fn pair(dir: tempfile::TempDir, settings: DiskConfig) -> Pair {
    let (log, _) = DiskLog::open(settings).unwrap();
    let mut pair = Pair {
        dir,
        log,
        busy: Origin::new(log_name("busy", "s1", 1), 1),
        thin: Origin::new(log_name("thin", "s2", 1), 2),
        thin_batches: Vec::new(),
    };
    pair.write(UNITS);
    pair
}

fn default_pair() -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let settings = config(dir.path());
    pair(dir, settings)
}

impl Pair {
    fn write(&mut self, units: usize) {
        for n in 0..units {
            let mut entries = vec![own(&self.busy.next(3, 3000))];
            if n % 4 == 0 {
                let batch = self.thin.next(2, 500);
                self.thin_batches.push(batch.clone());
                entries.push(Entry::Append { role: Role::Copy, batch });
            }
            store(&*self.log, entries).unwrap();
        }
        let to = self.busy.end().unwrap();
        store(&*self.log, vec![Entry::Trim { log: self.busy.log().clone(), to }]).unwrap();
    }

    /// Gives back what can be given back.
    fn reclaim(&self) -> u64 {
        let mut freed = 0;
        for _ in 0..100 {
            freed += self.log.reclaim().unwrap();
            if !self.log.stats().reclaim_again {
                return freed;
            }
        }
        panic!("reclaiming comes to no end: {:?}", self.log.stats());
    }

    fn check(&self, log: &Arc<DiskLog>, when: &str) {
        let read = read_all(log, self.thin.log(), &self.thin_batches);
        assert!(matches!(read.0, Read::AtEnd { .. }) && read.1 == self.thin_batches.len(), "{when}: {read:?}");
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Closes, and answers what was held.
    fn close(self) -> (tempfile::TempDir, Snapshot) {
        let held = snapshot(&*self.log);
        self.log.close().unwrap();
        (self.dir, held)
    }
}

#[test]
fn a_thin_log_does_not_keep_a_busy_ones_bytes() {
    let mut pair = default_pair();
    let before = pair.log.stats();
    let held = snapshot(&*pair.log);
    let freed = pair.reclaim();
    let after = pair.log.stats();
    assert!(after.moved_bytes > 0 && freed > before.segment_bytes / 2, "{freed} of {before:?}, {after:?}");
    // What is left: what lives, by the bound, and some segments that are new or held by checkpoints.
    let bound = after.live_bytes * 10 / 6 + 4 * 64 * 1024;
    assert!(after.segment_bytes <= bound, "{} bytes for {} that live", after.segment_bytes, after.live_bytes);
    assert_eq!(segments(&pair.path()).len() as u64, after.segments);
    pair.check(&pair.log, "after moving");
    snapshot(&*pair.log).assert_same(held, "moving changes nothing");
    // It goes on so, and stays so through restarts with any index.
    for round in 0..4 {
        pair.write(UNITS);
        pair.reclaim();
        let dir = pair.path();
        let held = snapshot(&*pair.log);
        pair.log.close().unwrap();
        // RocksDB is closed with the last handle.
        let other = tempfile::tempdir().unwrap();
        drop(std::mem::replace(&mut pair.log, open(other.path()).0));
        match round {
            0 => copy_dir(&dir.join("index"), &dir.join("old")),
            1 => fs::remove_dir_all(dir.join("index")).unwrap(),
            2 => {
                fs::remove_dir_all(dir.join("index")).unwrap();
                fs::rename(dir.join("old"), dir.join("index")).unwrap();
            }
            _ => {}
        }
        let (log, recovery) = open(&dir);
        assert_eq!(recovery.damage, [], "round {round}");
        assert_eq!(recovery.rebuilt.is_some(), (1..3).contains(&round), "round {round}: {:?}", recovery.rebuilt);
        snapshot(&*log).assert_same(held, &format!("round {round}"));
        pair.log = log;
        pair.check(&pair.log, "after a restart");
    }
}

#[test]
fn what_was_moved_keeps_its_time_of_appending() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_000_000));
    let clock = Arc::clone(&now);
    let settings = DiskConfig { clock: Arc::new(move || clock.load(Ordering::SeqCst)), ..config(dir.path()) };
    let pair = pair(dir, settings);
    now.store(900_000_000, Ordering::SeqCst);
    pair.reclaim();
    assert!(pair.log.stats().moved_bytes > 0);
    let retention = |before| crate::log::contract::Retention { appended_before_us: Some(before), ..Default::default() };
    let end = pair.log.info(pair.thin.log(), true).unwrap().end;
    let trimmed = |before| pair.log.trim_target(pair.thin.log(), retention(before)).unwrap();
    assert_eq!(trimmed(1_000_000), None);
    assert_eq!(trimmed(1_000_001), Some(end), "all of it was appended then, wherever it is now");
}

#[test]
fn a_damaged_batch_is_fenced_and_the_others_are_moved() {
    for keep_index in [true, false] {
        let pair = default_pair();
        let bad = pair.thin_batches[3].clone();
        let (path, at) = find(&pair.path(), &bad);
        flip(&path, at + 20);
        pair.reclaim();
        assert!(!path.exists(), "the segment went although something in it is bad");
        let damage = pair.log.stats().damage;
        assert!(damage.iter().any(|d| d.file == path.display().to_string() && d.from <= at && at < d.to), "{damage:?}");
        let check = |log: &DiskLog, when: &str| {
            let info = log.info(pair.thin.log(), true).unwrap();
            let holes: Vec<_> = info.holes.iter().map(|hole| (hole.from, hole.to)).collect();
            assert_eq!(holes, [(bad.begin().offset, bad.end_offset())], "{when}");
            for batch in &pair.thin_batches {
                let read = log.read(pair.thin.log(), batch.begin(), Line::Main, 1).unwrap();
                match batch.begin() == bad.begin() {
                    true => assert!(matches!(read, Read::Outside(Outside::Damaged { .. })), "{when}: {read:?}"),
                    false => assert!(matches!(&read, Read::Batches { .. }), "{when}: {} {read:?}", batch.begin()),
                }
            }
        };
        check(&pair.log, "at once");
        pair.log.close().unwrap();
        let dir = pair.path();
        if !keep_index {
            // The fence may be in no checkpoint yet.
            let copy = tempfile::tempdir().unwrap();
            copy_dir(&dir.join("segments"), &copy.path().join("segments"));
            fs::copy(dir.join("identity"), copy.path().join("identity")).unwrap();
            let (log, _) = open(copy.path());
            check(&log, "without the index");
            // It may be fetched again.
            store(&*log, vec![Entry::Append { role: Role::Copy, batch: bad.clone() }]).unwrap();
            assert_eq!(log.info(pair.thin.log(), true).unwrap().holes, []);
        }
    }
}

#[test]
fn what_damage_hides_is_moved_where_it_is_good() {
    let pair = default_pair();
    // The head of a group is bad: none of its units is found by reading in order.
    let (path, at) = find(&pair.path(), &pair.thin_batches[2]);
    let bytes = fs::read(&path).unwrap();
    let group = bytes[..at as usize].windows(4).rposition(|window| window == b"SWG1").unwrap();
    flip(&path, group as u64 + 30);
    pair.reclaim();
    assert!(!path.exists());
    pair.check(&pair.log, "nothing is lost");
    let damage = pair.log.stats().damage;
    assert!(damage.iter().any(|d| d.from == group as u64), "{damage:?}");
    assert_eq!(pair.log.info(pair.thin.log(), true).unwrap().holes, []);
}

#[test]
fn a_segment_that_somebody_removed_is_fenced_not_forgotten() {
    let pair = default_pair();
    let (path, _) = find(&pair.path(), &pair.thin_batches[2]);
    fs::remove_file(&path).unwrap();
    pair.log.shared.open_segments.lock().clear();
    pair.reclaim();
    let gone: Vec<_> = pair.log.info(pair.thin.log(), true).unwrap().holes;
    assert!(!gone.is_empty());
    let damage = pair.log.stats().damage;
    assert!(damage.iter().any(|d| d.file == path.display().to_string()), "{damage:?}");
    let lost = |batch: &&Batch| gone.iter().any(|hole| (hole.from..hole.to).contains(&batch.begin().offset));
    for batch in &pair.thin_batches {
        let read = pair.log.read(pair.thin.log(), batch.begin(), Line::Main, 1).unwrap();
        assert_eq!(matches!(read, Read::Batches { .. }), !lost(&batch), "{}", batch.begin());
    }
    let missing: Vec<Batch> = pair.thin_batches.iter().filter(lost).cloned().collect();
    for batch in missing {
        store(&*pair.log, vec![Entry::Append { role: Role::Copy, batch }]).unwrap();
    }
    pair.check(&pair.log, "fetched again");
}

#[test]
fn readers_find_everything_while_it_moves() {
    let mut pair = default_pair();
    let stop = Arc::new(AtomicBool::new(false));
    let (log, ends, name) = (Arc::clone(&pair.log), Arc::clone(&stop), pair.thin.log().clone());
    let reader = std::thread::spawn(move || {
        let mut reads = 0_u64;
        while !ends.load(Ordering::SeqCst) {
            let info = log.info(&name, true).unwrap();
            let mut at: Place = info.begin;
            while at != info.end {
                match log.read(&name, at, Line::Main, 4000).unwrap() {
                    Read::Batches { next, .. } => at = next,
                    Read::AtEnd { .. } => break,
                    other => panic!("{other:?}"),
                }
                reads += 1;
            }
        }
        reads
    });
    for _ in 0..6 {
        pair.write(UNITS);
        pair.reclaim();
    }
    stop.store(true, Ordering::SeqCst);
    assert!(reader.join().unwrap() > 100);
    assert!(pair.log.stats().damage.is_empty() && pair.log.stats().moved_bytes > 100_000);
    pair.check(&pair.log, "at the end");
    pair.close();
}

#[test]
fn it_keeps_its_rate_and_ends_with_the_log() {
    const RATE: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_000_000));
    let clock = Arc::clone(&now);
    let clock = Arc::new(move || clock.load(Ordering::SeqCst));
    let settings = DiskConfig { clock, moving_rate: RATE, stepped: true, ..config(dir.path()) };
    let (log, _) = DiskLog::open(settings).unwrap();
    let (mut busy, mut thin) = (Origin::new(log_name("busy", "s1", 1), 1), Origin::new(log_name("thin", "s1", 1), 2));
    let submit = |entries| {
        log.submit(crate::log::contract::Unit { entries }, Box::new(|done| done.unwrap())).unwrap();
        log.step(false);
    };
    for _ in 0..400 {
        submit(vec![own(&busy.next(1, 16_000)), own(&thin.next(1, 10_000))]);
    }
    submit(vec![Entry::Trim { log: busy.log().clone(), to: busy.end().unwrap() }]);
    let mut calls = 0;
    loop {
        log.reclaim().unwrap();
        let stats = log.stats();
        let seconds = now.load(Ordering::SeqCst) as f64 / 1e6 - 1.0;
        let most = (RATE as f64 * (seconds + 2.5)) as u64;
        assert!(stats.moved_bytes <= most, "{} bytes in {seconds} s", stats.moved_bytes);
        if !stats.reclaim_again {
            break;
        }
        calls += 1;
        assert!(calls < 10_000);
        now.fetch_add(100_000, Ordering::SeqCst);
    }
    assert!(calls > 5 && log.stats().moved_bytes > 2_000_000, "{calls} calls, {:?}", log.stats());
    log.close().unwrap();
    assert!(log.reclaim().is_err() || !log.stats().reclaim_again);
}

#[test]
fn a_segment_that_was_removed_while_the_node_was_stopped_is_fenced_at_once() {
    for keep_index in [true, false] {
        let pair = default_pair();
        for _ in 0..2 {
            assert!(pair.log.shared.write_checkpoint().is_ok());
        }
        let (path, _) = find(&pair.path(), &pair.thin_batches[2]);
        let (dir, name, batches) = (pair.path(), pair.thin.log().clone(), pair.thin_batches.clone());
        let (kept, _) = pair.close();
        fs::remove_file(&path).unwrap();
        if !keep_index {
            fs::remove_dir_all(dir.join("index")).unwrap();
        }
        let (log, recovery) = open(&dir);
        assert_eq!(recovery.rebuilt.is_some(), !keep_index, "{:?}", recovery.rebuilt);
        let file = path.display().to_string();
        assert!(recovery.damage.iter().any(|damage| damage.file == file), "{:?}", recovery.damage);
        // What is lost is a pending hole before anybody reads it: it is fetched again by itself.
        let holes = log.info(&name, true).unwrap().holes;
        assert!(!holes.is_empty() && log.info(&name, false).unwrap().holes == holes, "index kept {keep_index}");
        assert!(holes.iter().all(|hole| hole.kind == seaway_federation_proto::copies::HoleKind::Pending));
        let lost = |batch: &&Batch| holes.iter().any(|hole| (hole.from..hole.to).contains(&batch.begin().offset));
        assert!(batches.iter().any(|batch| lost(&batch)) && !batches.iter().all(|batch| lost(&batch)));
        for batch in &batches {
            let read = log.read(&name, batch.begin(), Line::Main, 1).unwrap();
            match lost(&batch) {
                true => assert!(matches!(read, Read::Outside(Outside::Damaged { .. })), "{read:?}"),
                false => assert!(matches!(read, Read::Batches { .. }), "{read:?}"),
            }
        }
        for batch in batches.iter().filter(lost) {
            store(&*log, vec![Entry::Append { role: Role::Copy, batch: batch.clone() }]).unwrap();
        }
        let read = read_all(&log, &name, &batches);
        assert!(matches!(read.0, Read::AtEnd { .. }) && read.1 == batches.len(), "{read:?}");
        drop(kept);
    }
}
