//! Batches that were moved out of an old segment. Nothing writes them yet; what reads them must be right before anything
//! does, so here they are written by hand.

use std::{fs, path::Path, sync::Arc};

use seaway_federation_proto::{
    copies::HoleKind,
    envelope::Batch,
    ids::{LogName, Place},
};

use super::{
    super::record::Record,
    DiskLog, Snapshot, open,
    recovery::{copy_dir, filled, find, flip, read_all, segments},
    snapshot, store,
};
use crate::log::{
    contract::{CommitLog, Entry, Line, Outside, Read, Role},
    disk::{codec::Position, segment},
};

/// When the batches were first stored, as their moved copies say.
const STORED_AT_US: u64 = 1_600_000_000_000_000;
const BATCHES: usize = 60;

/// A log whose oldest segment's batches were moved to its end.
struct Moved {
    dir: tempfile::TempDir,
    name: LogName,
    batches: Vec<Batch>,
    /// How many of them were moved: the first ones.
    count: usize,
    /// What it held before.
    held: Snapshot,
}

/// The index as of before the move is kept beside.
fn moved(reclaim: bool) -> Moved {
    let (dir, name, batches) = filled(BATCHES);
    let first = segments(dir.path()).remove(0);
    let count = batches.iter().take_while(|batch| find(dir.path(), batch).0 == first).count();
    assert!((3..BATCHES / 2).contains(&count), "{count}");
    let (log, _) = open(dir.path());
    let held = snapshot(&*log);
    for _ in 0..2 {
        assert!(log.shared.write_checkpoint().is_ok());
    }
    log.close().unwrap();
    drop(log);
    copy_dir(&dir.path().join("index"), &dir.path().join("old"));
    let (log, _) = open(dir.path());
    for batch in &batches[..count] {
        let record = Record::Moved { stored_at_us: STORED_AT_US, role: Role::Own, batch: batch.clone() };
        log.shared.write_own(record).unwrap();
    }
    if reclaim {
        assert!(log.reclaim().unwrap() > 0, "the old segment holds nothing any more");
    }
    assert_eq!(first.exists(), !reclaim);
    let moved = Moved { dir, name, batches, count, held };
    moved.check(&log, "while the node runs");
    log.close().unwrap();
    moved
}

impl Moved {
    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn remove_index(&self) {
        fs::remove_dir_all(self.dir().join("index")).unwrap();
    }

    /// All is held and read, and what was moved is read from where it was moved to.
    fn check(&self, log: &Arc<DiskLog>, when: &str) {
        let read = read_all(log, &self.name, &self.batches);
        assert!(matches!(read, (Read::AtEnd { .. }, BATCHES)), "{when}: {read:?}");
        snapshot(&**log).assert_same(self.held.clone(), when);
        for (n, batch) in self.batches.iter().enumerate() {
            let (position, stored_at_us) = entry(log, &self.name, batch);
            assert_eq!(stored_at_us == STORED_AT_US, n < self.count, "{when}: batch {n}");
            assert_ne!(position.segment, 1, "{when}: batch {n}");
        }
    }

    /// Segment and byte of the body that was moved.
    fn moved_body(&self, batch: &Batch) -> (std::path::PathBuf, u64) {
        let body = batch.body();
        let found = segments(self.dir()).into_iter().rev().find_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(body.len()).rposition(|window| window == body.as_ref())?;
            Some((path, at as u64))
        });
        found.unwrap()
    }
}

/// Where the index says that a batch is, and since when.
fn entry(log: &DiskLog, name: &LogName, batch: &Batch) -> (Position, u64) {
    let id = log.shared.cell(name).unwrap().state.lock().id().unwrap();
    let Place { incarnation, offset } = batch.begin();
    let (begin, entry) = log.shared.index.floor(id, incarnation, offset).unwrap().unwrap();
    assert_eq!(begin, offset, "there is an entry for the batch");
    (entry.position, entry.stored_at_us)
}

#[test]
fn what_was_moved_is_found_again_whatever_is_left_of_the_index() {
    for reclaim in [false, true] {
        let moved = moved(reclaim);
        let (log, recovery) = open(moved.dir());
        assert_eq!((recovery.rebuilt, recovery.damage), (None, vec![]), "reclaimed {reclaim}");
        moved.check(&log, "with the index");
        drop(log);
        moved.remove_index();
        let (log, recovery) = open(moved.dir());
        assert!(recovery.rebuilt.is_some());
        assert_eq!(recovery.damage, [], "reclaimed {reclaim}");
        moved.check(&log, "without the index");
        drop(log);
        moved.remove_index();
        fs::rename(moved.dir().join("old"), moved.dir().join("index")).unwrap();
        let (log, recovery) = open(moved.dir());
        assert_eq!((recovery.rebuilt, recovery.damage), (None, vec![]), "reclaimed {reclaim}");
        assert!(recovery.replayed_bytes > 0);
        moved.check(&log, "with the index of before the move");
        // And it counts as any other: its bytes are given back with the log's.
        let to = moved.batches[moved.count].begin();
        store(&*log, vec![Entry::Trim { log: moved.name.clone(), to }]).unwrap();
        let bytes: usize = moved.batches[moved.count..].iter().map(Batch::len).sum();
        assert_eq!(log.info(&moved.name, true).unwrap().bytes, bytes as u64);
    }
}

#[test]
fn moved_bytes_that_are_bad_take_nothing_away_while_the_older_ones_are_there() {
    for keep_index in [false, true] {
        let moved = moved(false);
        let (path, at) = moved.moved_body(&moved.batches[1]);
        assert_ne!(segment::number_of(path.file_name().unwrap().to_str().unwrap()), Some(1));
        flip(&path, at + 100);
        moved.remove_index();
        if keep_index {
            fs::rename(moved.dir().join("old"), moved.dir().join("index")).unwrap();
        }
        let (log, recovery) = open(moved.dir());
        assert_eq!(recovery.rebuilt.is_none(), keep_index);
        let damage = &recovery.damage;
        assert!(damage.len() == 1 && damage[0].from <= at && at < damage[0].to, "{damage:?}");
        let read = read_all(&log, &moved.name, &moved.batches);
        assert!(matches!(read, (Read::AtEnd { .. }, BATCHES)), "{read:?}");
        assert_eq!(entry(&log, &moved.name, &moved.batches[1]).0.segment, 1);
    }
}

#[test]
fn moved_bytes_that_are_bad_are_fenced_when_nothing_else_is_left() {
    for keep_index in [false, true] {
        let moved = moved(true);
        let batch = &moved.batches[1];
        let (path, at) = moved.moved_body(batch);
        flip(&path, at + 100);
        moved.remove_index();
        if keep_index {
            fs::rename(moved.dir().join("old"), moved.dir().join("index")).unwrap();
        }
        let (log, recovery) = open(moved.dir());
        assert_eq!(recovery.rebuilt.is_none(), keep_index);
        assert_eq!(recovery.damage.len(), 1, "{:?}", recovery.damage);
        let info = log.info(&moved.name, true).unwrap();
        let hole = info.holes[0];
        let range = (batch.begin().offset, batch.end_offset(), HoleKind::Pending);
        assert_eq!((info.holes.len(), (hole.from, hole.to, hole.kind)), (1, range), "index kept {keep_index}");
        assert_eq!(info.end, moved.batches[BATCHES - 1].end());
        let read = log.read(&moved.name, batch.begin(), Line::Main, 1).unwrap();
        assert!(matches!(read, Read::Outside(Outside::Damaged { to }) if to == hole.to), "{read:?}");
        store(&*log, vec![Entry::Append { role: Role::Copy, batch: batch.clone() }]).unwrap();
        let read = read_all(&log, &moved.name, &moved.batches);
        assert!(matches!(read, (Read::AtEnd { .. }, BATCHES)), "{read:?}");
    }
}

#[test]
fn moved_bytes_fill_what_damage_took_of_the_older_ones() {
    let moved = moved(false);
    let (path, at) = find(moved.dir(), &moved.batches[1]);
    assert_eq!(segment::number_of(path.file_name().unwrap().to_str().unwrap()), Some(1));
    flip(&path, at + 100);
    moved.remove_index();
    let (log, recovery) = open(moved.dir());
    assert_eq!(recovery.damage.len(), 1, "{:?}", recovery.damage);
    let read = read_all(&log, &moved.name, &moved.batches);
    assert!(matches!(read, (Read::AtEnd { .. }, BATCHES)), "{read:?}");
}

#[test]
fn what_was_moved_never_makes_a_log_nor_lowers_a_begin() {
    let moved = moved(true);
    let to = moved.batches[2].begin();
    let (log, _) = open(moved.dir());
    store(&*log, vec![Entry::Trim { log: moved.name.clone(), to }]).unwrap();
    for batch in &moved.batches[..4] {
        let record = Record::Moved { stored_at_us: STORED_AT_US, role: Role::Own, batch: batch.clone() };
        log.shared.write_own(record).unwrap();
    }
    let trimmed = snapshot(&*log);
    assert_eq!(log.info(&moved.name, true).unwrap().begin, to);
    log.close().unwrap();
    drop(log);
    moved.remove_index();
    let (log, _) = open(moved.dir());
    snapshot(&*log).assert_same(trimmed, "after a trim");
    store(&*log, vec![Entry::Drop { log: moved.name.clone() }]).unwrap();
    let record = Record::Moved { stored_at_us: STORED_AT_US, role: Role::Own, batch: moved.batches[5].clone() };
    log.shared.write_own(record).unwrap();
    assert!(log.info(&moved.name, true).is_none());
    log.close().unwrap();
    drop(log);
    moved.remove_index();
    let (log, _) = open(moved.dir());
    assert!(log.info(&moved.name, true).is_none());
}
