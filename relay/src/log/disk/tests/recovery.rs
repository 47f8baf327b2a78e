//! What opening makes of directories that were left in every kind of state.

use std::{
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use seaway_federation_proto::{
    copies::{HoleKind, LogInfo},
    envelope::Batch,
    ids::{LogName, Place},
};

use super::{DiskLog, config, gate::Gate, open, snapshot, store};
use crate::log::{
    conformance::fixture::{Origin, bytes_of, log_name},
    contract::{CommitLog, Entry, Line, Outside, Read, Role, Table, Unit},
    disk::{
        DumpFilter, OpenError,
        codec::Position,
        dump,
        group::{GroupHeader, GroupKey},
        record::{DecodedUnit, UnitFault, unit_crc},
        segment, verify,
    },
};

pub(super) fn own(batch: &Batch) -> Entry {
    Entry::Append { role: Role::Own, batch: batch.clone() }
}

/// A directory with so many batches of one log, one a unit, and some values; closed.
pub(super) fn filled(batches: usize) -> (tempfile::TempDir, LogName, Vec<Batch>) {
    let dir = tempfile::tempdir().unwrap();
    let mut origin = Origin::new(log_name("orders", "s1", 1), 1);
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery, super::Recovery::default());
    let made: Vec<Batch> = (0..batches).map(|_| origin.next(3, 3000)).collect();
    for (n, batch) in made.iter().enumerate() {
        let put = Entry::Put { table: Table::Producers, key: format!("k{n}").into(), value: format!("v{n}").into() };
        store(&*log, vec![own(batch), put]).unwrap();
    }
    log.close().unwrap();
    (dir, origin.log().clone(), made)
}

pub(super) fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("segments")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Segment and byte at which a batch's body is stored.
pub(super) fn find(dir: &Path, batch: &Batch) -> (PathBuf, u64) {
    let body = batch.body();
    for path in segments(dir) {
        let bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(body.len()).position(|window| window == body.as_ref()) {
            return (path, at as u64);
        }
    }
    panic!("the batch is in no segment");
}

pub(super) fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Reads a log from its begin and compares; answers what it ended with and how many batches came.
pub(super) fn read_all(log: &DiskLog, name: &LogName, expected: &[Batch]) -> (Read, usize) {
    let info: LogInfo = log.info(name, true).unwrap();
    let mut at = info.begin;
    let mut count = 0;
    loop {
        match log.read(name, at, Line::Main, 10_000).unwrap() {
            Read::Batches { batches, next } => {
                for batch in batches {
                    assert_eq!(bytes_of(&batch), bytes_of(&expected[count]), "batch {count}");
                    count += 1;
                }
                at = next;
            }
            end => return (end, count),
        }
    }
}

#[test]
fn what_is_torn_is_cut_and_reported() {
    let (dir, name, batches) = filled(5);
    let path = segments(dir.path()).pop().unwrap();
    let end = {
        let bytes = fs::read(&path).unwrap();
        (bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1).next_multiple_of(512)
    };
    // A group that stands elsewhere, and noise, as a write that was interrupted may leave.
    let bytes = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&bytes[4096..4096 + 2000], end).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.torn_at, Some((path.display().to_string(), end)));
    assert!((1..=2000).contains(&recovery.torn_bytes), "{}", recovery.torn_bytes);
    assert_eq!(recovery.damage, []);
    assert_eq!(fs::metadata(&path).unwrap().len(), end);
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 5)));
    log.close().unwrap();
    drop(log);
    let (_, again) = open(dir.path());
    assert_eq!(again.torn_bytes, 0, "it was cut once and for all");
}

#[test]
fn a_torn_last_group_is_cut_whole() {
    let (dir, name, batches) = filled(3);
    let (log, _) = open(dir.path());
    let mut origin = Origin::at(name.clone(), Some((batches[2].end(), batches[2].chain_after())), 9);
    let last = origin.next(2, 3000);
    store(&*log, vec![own(&last)]).unwrap();
    // As if the power went before the sync of that group: no idle point after it, and the index without it.
    let copy = tempfile::tempdir().unwrap();
    copy_dir(&dir.path().join("segments"), &copy.path().join("segments"));
    fs::copy(dir.path().join("identity"), copy.path().join("identity")).unwrap();
    let (path, at) = find(copy.path(), &last);
    let group = at / 512 * 512;
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(at + 1000).unwrap();
    let (log, recovery) = open(copy.path());
    let (cut_in, cut_at) = recovery.torn_at.unwrap();
    assert_eq!(cut_in, path.display().to_string());
    assert!(cut_at <= group && recovery.torn_bytes > 1000);
    assert_eq!(recovery.damage, []);
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 3)));
    store(&*log, vec![own(&last)]).unwrap();
}

#[test]
fn a_flipped_bit_is_found_by_the_read_and_fenced() {
    let (dir, name, batches) = filled(30);
    let (path, at) = find(dir.path(), &batches[10]);
    flip(&path, at + 100);
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.damage, [], "the index knows where all is; nothing was read");
    let (end, count) = read_all(&log, &name, &batches);
    assert_eq!(count, 10);
    assert!(matches!(end, Read::Outside(Outside::Damaged { to }) if to == batches[10].end_offset()), "{end:?}");
    let damage = log.stats().damage;
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].file, path.display().to_string());
    assert!(damage[0].from <= at && at + 100 < damage[0].to);
    let rest = log.read(&name, batches[10].end(), Line::Main, 1).unwrap();
    assert!(matches!(rest, Read::Batches { batches: found, .. } if bytes_of(&found[0]) == bytes_of(&batches[11])));
    // It stays fenced, and can be fetched again.
    log.close().unwrap();
    drop(log);
    let (log, _) = open(dir.path());
    let end = log.read(&name, batches[10].begin(), Line::Main, 1).unwrap();
    assert!(matches!(end, Read::Outside(Outside::Damaged { .. })), "{end:?}");
    store(&*log, vec![Entry::Append { role: Role::Copy, batch: batches[10].clone() }]).unwrap();
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 30)));
    // The index made anew finds the same: the second copy of the batch counts.
    log.close().unwrap();
    drop(log);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.damage.len(), 1);
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 30)));
}

#[test]
fn a_flipped_bit_is_found_by_the_scan_and_never_cut() {
    for (what, offset) in [("body", 100), ("envelope", -40), ("sector before", -512)] {
        let (dir, name, batches) = filled(30);
        let (path, at) = find(dir.path(), &batches[10]);
        let at = at.checked_add_signed(offset).unwrap();
        let length = fs::metadata(&path).unwrap().len();
        flip(&path, at);
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let (log, recovery) = open(dir.path());
        assert!(recovery.rebuilt.is_some());
        assert_eq!(recovery.torn_bytes, 0, "{what}");
        assert_eq!(fs::metadata(&path).unwrap().len(), length, "{what}: nothing is cut");
        if what == "sector before" {
            continue; // it may be padding, which nobody reads, or another batch
        }
        let found = recovery.damage.iter().find(|d| d.file == path.display().to_string());
        assert!(found.is_some_and(|d| d.from <= at && at < d.to), "{what}: {:?}", recovery.damage);
        let (end, count) = read_all(&log, &name, &batches);
        assert_eq!(count, 10);
        let to = batches[10].end_offset();
        assert!(matches!(end, Read::Outside(Outside::Damaged { to: found }) if found == to), "{what}: {end:?}");
        let rest = log.read(&name, batches[10].end(), Line::Main, 1).unwrap();
        assert!(matches!(rest, Read::Batches { .. }));
        let report = verify_closed(log, dir.path());
        assert_eq!(report.torn_bytes, 0);
        assert!(report.damage.iter().any(|d| d.from <= at && at < d.to), "{what}: {:?}", report.damage);
    }
}

fn verify_closed(log: Arc<DiskLog>, dir: &Path) -> crate::log::disk::VerifyReport {
    log.close().unwrap();
    drop(log);
    verify(dir).unwrap()
}

#[test]
fn the_last_groups_header_is_damage_too_once_the_log_fell_idle() {
    let (dir, name, batches) = filled(3);
    let (path, at) = find(dir.path(), &batches[2]);
    let bytes = fs::read(&path).unwrap();
    let group = (0..=at / 512).rev().map(|n| n * 512).find(|at| bytes[*at as usize..].starts_with(b"SWG1")).unwrap();
    flip(&path, group + 50);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.torn_bytes, 0);
    assert!(recovery.damage.iter().any(|d| d.from == group), "{:?}", recovery.damage);
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 2)));
}

#[test]
fn the_index_may_be_deleted_or_old() {
    let (dir, name, batches) = filled(40);
    let (log, _) = open(dir.path());
    let before = snapshot(&*log);
    log.close().unwrap();
    drop(log);
    let old = dir.path().join("old");
    copy_dir(&dir.path().join("index"), &old);
    // More is written after the copy was taken.
    let (log, _) = open(dir.path());
    let mut origin = Origin::at(name.clone(), Some((batches[39].end(), batches[39].chain_after())), 4);
    let more: Vec<Batch> = (0..20).map(|_| origin.next(2, 2000)).collect();
    for batch in &more {
        store(&*log, vec![own(batch)]).unwrap();
    }
    store(&*log, vec![Entry::Trim { log: name.clone(), to: batches[5].begin() }]).unwrap();
    store(&*log, vec![Entry::Delete { table: Table::Producers, key: "k3".into() }]).unwrap();
    let after = snapshot(&*log);
    assert_ne!(before, after);
    log.close().unwrap();
    drop(log);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    fs::rename(&old, dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!((recovery.rebuilt, recovery.torn_bytes, recovery.cut_short), (None, 0, false));
    assert!(recovery.replayed_bytes > 0);
    assert_eq!(snapshot(&*log), after);
    drop(log);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert!(recovery.rebuilt.is_some());
    assert_eq!(snapshot(&*log), after);
}

#[test]
fn a_missing_segment_is_damage() {
    let (dir, name, batches) = filled(60);
    let paths = segments(dir.path());
    assert!(paths.len() > 4, "{paths:?}");
    fs::remove_file(&paths[2]).unwrap();
    let missing = paths[2].display().to_string();
    let (log, recovery) = open(dir.path());
    assert!(recovery.damage.iter().any(|d| d.file == missing), "{:?}", recovery.damage);
    let (end, count) = read_all(&log, &name, &batches);
    assert!(matches!(end, Read::Outside(Outside::Damaged { .. })), "{end:?}");
    assert!(count > 0 && count < 60);
    drop(log);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert!(recovery.damage.iter().any(|d| d.file == missing), "{:?}", recovery.damage);
    let (end, again) = read_all(&log, &name, &batches);
    assert!(matches!(end, Read::Outside(Outside::Damaged { .. })), "{end:?}");
    assert_eq!(again, count);
    let last = log.info(&name, true).unwrap().end;
    assert_eq!(last, batches[59].end(), "what comes after the damage is held");
}

#[test]
fn an_index_that_is_ahead_is_thrown_away() {
    let (dir, name, batches) = filled(60);
    let last = segments(dir.path()).pop().unwrap();
    fs::remove_file(last).unwrap();
    let (log, recovery) = open(dir.path());
    assert!(recovery.cut_short);
    assert!(recovery.rebuilt.unwrap().contains("ahead"));
    let (end, count) = read_all(&log, &name, &batches);
    assert!(matches!(end, Read::AtEnd { .. }) && count > 0 && count < 60, "{end:?} {count}");
    store(&*log, vec![own(&batches[count])]).unwrap();
}

#[test]
fn directories_that_are_not_ours_are_refused_in_one_sentence() {
    let (dir, ..) = filled(1);
    let foreign = crate::log::disk::DiskConfig { name: "s2/edge".parse().unwrap(), ..config(dir.path()) };
    let e = DiskLog::open(foreign).unwrap_err();
    assert!(matches!(&e, OpenError::Foreign { .. }), "{e}");
    assert!(e.to_string().contains("node s1/edge") && e.to_string().contains("node s2/edge"), "{e}");

    let (log, _) = open(dir.path());
    let e = DiskLog::open(config(dir.path())).unwrap_err();
    assert!(matches!(&e, OpenError::Locked { .. }), "{e}");
    assert!(matches!(verify(dir.path()).unwrap_err(), OpenError::Locked { .. }));
    drop(log);

    let identity = dir.path().join("identity");
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, text.replace("format = 1", "format = 2")).unwrap();
    let e = DiskLog::open(config(dir.path())).unwrap_err();
    assert!(matches!(&e, OpenError::NewerFormat { found: 2, .. }), "{e}");
    fs::write(&identity, text).unwrap();

    // A segment of another directory.
    let (other, ..) = filled(1);
    let path = segments(dir.path()).pop().unwrap();
    fs::copy(segments(other.path()).pop().unwrap(), &path).unwrap();
    let e = DiskLog::open(config(dir.path())).unwrap_err();
    assert!(matches!(&e, OpenError::Malformed { .. }), "{e}");
    assert!(!e.to_string().contains("move"), "whichever of the two is wrong, the log is not to be moved away: {e}");
    let nothing = tempfile::tempdir().unwrap();
    assert!(matches!(verify(nothing.path()).unwrap_err(), OpenError::NotThere { .. }));
}

#[test]
fn a_missing_identity_is_asked_for_and_no_new_one_is_made() {
    let (dir, name, batches) = filled(30);
    let identity = dir.path().join("identity");
    let text = fs::read_to_string(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    let before = segments(dir.path());
    for index_too in [false, true] {
        if index_too {
            fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let e = DiskLog::open(config(dir.path())).unwrap_err();
        assert!(matches!(&e, OpenError::IdentityMissing { .. }), "{e}");
        let said = e.to_string();
        assert!(text.lines().all(|line| said.contains(line)), "{said}");
        assert!(said.contains("leave the segments where they are") && !said.contains("move"), "{said}");
        assert!(!identity.exists());
    }
    assert_eq!(segments(dir.path()), before);
    // Exactly what it says brings the directory back.
    let said = DiskLog::open(config(dir.path())).unwrap_err().to_string();
    let lines = said.split_once("they are: ").unwrap().1;
    fs::write(&identity, lines.replace(", ", "\n")).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!((recovery.torn_bytes, recovery.damage), (0, vec![]));
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 30)));
}

#[test]
fn a_start_on_a_full_disk_says_what_to_do_and_keeps_the_index() {
    let (dir, name, batches) = filled(30);
    let index = dir.path().join("index");
    let kept = dir.path().join("kept");
    fs::rename(&index, &kept).unwrap();
    fs::write(&index, "RocksDB cannot open this").unwrap();
    let gate = Gate::new();
    gate.set_free(4096);
    let full = || crate::log::disk::DiskConfig { files: Arc::new(gate.clone()), ..config(dir.path()) };
    let e = DiskLog::open(full()).unwrap_err();
    assert!(matches!(&e, OpenError::NoRoom { free: 4096, .. }), "{e}");
    assert!(e.to_string().contains("make room"), "{e}");
    assert!(index.is_file(), "what cannot be opened on a full disk may be as good as ever");
    fs::remove_file(&index).unwrap();
    fs::rename(&kept, &index).unwrap();
    gate.set_free(u64::MAX);
    let (log, recovery) = DiskLog::open(full()).unwrap();
    assert_eq!(recovery.rebuilt, None);
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 30)));
}

#[test]
fn space_comes_back_by_segment_and_checkpoints_carry_the_rest() {
    let (dir, name, batches) = filled(120);
    let (log, _) = open(dir.path());
    assert_eq!(log.reclaim().unwrap(), 0, "all of it lives");
    store(&*log, vec![Entry::Trim { log: name.clone(), to: batches[100].begin() }]).unwrap();
    let before = segments(dir.path());
    let mut origin = Origin::at(name.clone(), Some((batches[119].end(), batches[119].chain_after())), 5);
    let mut freed = 0;
    for _ in 0..3 {
        for _ in 0..40 {
            store(&*log, vec![own(&origin.next(3, 3000))]).unwrap();
        }
        freed += log.reclaim().unwrap();
    }
    assert!(freed > 512 * 1024, "{freed}");
    let after = segments(dir.path());
    assert!(!after.contains(&before[0]) && after.contains(before.last().unwrap()));
    let held = snapshot(&*log);
    assert_eq!(held.tables.len(), 120, "the values outlive the segments that they were written in");
    let report = verify_closed(log, dir.path());
    assert_eq!(report.damage, []);
    assert_eq!(report.segments, after.len() as u64);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert!(recovery.rebuilt.is_some());
    assert_eq!(recovery.damage, []);
    assert_eq!(snapshot(&*log), held);
    // And once more the other way: dropped logs leave nothing.
    store(&*log, vec![Entry::Drop { log: name.clone() }]).unwrap();
    let mut other = Origin::new(log_name("other", "s1", 1), 8);
    for _ in 0..4 {
        for _ in 0..40 {
            store(&*log, vec![own(&other.next(3, 3000))]).unwrap();
        }
        log.reclaim().unwrap();
    }
    let held = snapshot(&*log);
    assert!(log.info(&name, true).is_none());
    log.close().unwrap();
    drop(log);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.damage, []);
    assert_eq!(snapshot(&*log), held);
}

#[test]
fn a_dump_lists_every_record() {
    let (dir, name, batches) = filled(5);
    let mut lines = Vec::new();
    let all = DumpFilter { groups: true, ..DumpFilter::default() };
    dump(dir.path(), &all, &mut |line| {
        lines.push(line);
        true
    })
    .unwrap();
    let of = |kind: &str| lines.iter().filter(|line| line.kind == kind).count();
    assert_eq!((of("append"), of("put"), of("damage")), (5, 5, 0));
    assert!(of("group") >= 2);
    let found: Vec<_> = lines.iter().filter_map(|line| line.batch.as_ref()).collect();
    assert!(found.iter().zip(&batches).all(|(a, b)| bytes_of(a) == bytes_of(b)));
    let mut count = 0;
    let other = DumpFilter { topic: Some("nothing".into()), ..DumpFilter::default() };
    dump(dir.path(), &other, &mut |_| {
        count += 1;
        true
    })
    .unwrap();
    assert_eq!(count, 0);
    assert_eq!(lines.iter().find(|line| line.kind == "append").unwrap().log, Some(name));
}

#[test]
fn a_torn_new_segment_is_removed() {
    let (dir, name, batches) = filled(30);
    let last = segments(dir.path()).pop().unwrap();
    let number = segment::number_of(last.file_name().unwrap().to_str().unwrap()).unwrap();
    let torn = dir.path().join(segment::relative_path(number + 1));
    fs::File::create(&torn).unwrap().write_all(&[7; 1000]).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.torn_at, Some((torn.display().to_string(), 0)));
    assert_eq!(recovery.damage, []);
    assert!(!torn.exists());
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 30)));
}

/// Reads from a place on and answers the first thing that is no batch, or the first batch.
fn at(log: &DiskLog, name: &LogName, place: Place) -> Read {
    log.read(name, place, Line::Main, 1).unwrap()
}

#[test]
fn the_very_first_batch_is_fenced_too() {
    for (what, offset) in [("body", 100), ("envelope", -40)] {
        let (dir, name, batches) = filled(30);
        let (path, byte) = find(dir.path(), &batches[0]);
        let byte = byte.checked_add_signed(offset).unwrap();
        flip(&path, byte);
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let (log, recovery) = open(dir.path());
        assert_eq!(recovery.torn_bytes, 0, "{what}");
        let found = recovery.damage.iter().find(|d| d.file == path.display().to_string());
        assert!(found.is_some_and(|d| d.from <= byte && byte < d.to), "{what}: {:?}", recovery.damage);
        let info = log.info(&name, true).unwrap();
        assert_eq!(info.begin, batches[0].begin(), "{what}: the begin is not raised in silence");
        let hole = info.holes[0];
        assert_eq!((hole.from, hole.to, hole.kind), (0, batches[0].end_offset(), HoleKind::Pending), "{what}");
        let first = at(&log, &name, batches[0].begin());
        assert!(matches!(first, Read::Outside(Outside::Damaged { to }) if to == hole.to), "{what}: {first:?}");
        assert!(matches!(at(&log, &name, batches[1].begin()), Read::Batches { .. }), "{what}");
        // It is fetched again like any other.
        store(&*log, vec![Entry::Append { role: Role::Copy, batch: batches[0].clone() }]).unwrap();
        assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 30)), "{what}");
    }
}

#[test]
fn a_first_incarnation_that_is_wholly_damaged_is_fenced() {
    for offset in [100, -40] {
        let (dir, name, batches) = filled(1);
        let mut origin = Origin::at(name.clone(), Some((batches[0].end(), batches[0].chain_after())), 9);
        let second = origin.next(2, 500);
        let (log, _) = open(dir.path());
        store(&*log, vec![own(&second)]).unwrap();
        log.close().unwrap();
        drop(log);
        let (path, byte) = find(dir.path(), &batches[0]);
        flip(&path, byte.checked_add_signed(offset).unwrap());
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let (log, recovery) = open(dir.path());
        assert_eq!(recovery.damage.len(), 1, "{:?}", recovery.damage);
        let first = at(&log, &name, batches[0].begin());
        assert!(matches!(first, Read::Outside(Outside::Damaged { to }) if to == batches[0].end_offset()), "{first:?}");
        assert!(matches!(at(&log, &name, second.begin()), Read::Batches { .. }));
        assert_eq!(log.info(&name, true).unwrap().end, second.end());
    }
}

#[test]
fn the_last_batch_of_a_log_is_fenced_too() {
    let (dir, name, batches) = filled(5);
    let (path, byte) = find(dir.path(), &batches[4]);
    flip(&path, byte + 100);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!((recovery.damage.len(), recovery.torn_bytes), (1, 0));
    assert_eq!(log.info(&name, true).unwrap().end, batches[4].end(), "the end does not go back");
    let last = at(&log, &name, batches[4].begin());
    assert!(matches!(last, Read::Outside(Outside::Damaged { to }) if to == batches[4].end_offset()), "{last:?}");
}

/// The table files of an index.
fn tables(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("index")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "sst")).collect()
}

#[test]
fn an_index_that_lacks_a_file_or_cannot_be_read_is_rebuilt() {
    let damages: [fn(&Path); 3] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap(),
        |path| fs::write(path, vec![0x5a; fs::metadata(path).unwrap().len() as usize]).unwrap(),
    ];
    let (dir, name, batches) = filled(40);
    for damage in damages {
        let files = tables(dir.path());
        assert!(files.len() > 3);
        for n in (0..files.len()).step_by(4) {
            let (log, _) = open(dir.path());
            let before = snapshot(&*log);
            log.close().unwrap();
            drop(log);
            damage(&tables(dir.path())[n]);
            let (log, recovery) = open(dir.path());
            // Of what was not needed to open, the first look-up finds out; then the next opening rebuilds.
            if recovery.rebuilt.is_none() {
                let end = batches[3].begin();
                let looked = (log.scan(Table::Producers, b""), log.read(&name, end, Line::Main, 1));
                if log.submit(Unit::default(), Box::new(|_| {})).is_err() || looked.1.is_err() {
                    drop(log);
                    let (log, recovery) = open(dir.path());
                    assert!(recovery.rebuilt.is_some());
                    snapshot(&*log).assert_same(before, "rebuilt at the next opening");
                    continue;
                }
            }
            snapshot(&*log).assert_same(before, "rebuilt at once, or not needed");
        }
    }
    let (log, _) = open(dir.path());
    log.close().unwrap();
    drop(log);
    fs::remove_file(&tables(dir.path())[0]).unwrap();
    let (_, recovery) = open(dir.path());
    assert!(recovery.rebuilt.is_some(), "a file that is missing is noticed at opening");
}

#[test]
fn padding_cut_off_a_segment_is_no_loss() {
    for keep_index in [true, false] {
        let (dir, name, batches) = filled(30);
        for path in segments(dir.path()) {
            let bytes = fs::read(&path).unwrap();
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(end).unwrap();
        }
        if !keep_index {
            fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let (log, recovery) = open(dir.path());
        assert_eq!((recovery.torn_bytes, recovery.damage), (0, vec![]));
        assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 30)));
        let mut origin = Origin::at(name.clone(), Some((batches[29].end(), batches[29].chain_after())), 9);
        store(&*log, vec![own(&origin.next(2, 500))]).unwrap();
        log.close().unwrap();
        drop(log);
        let (_, recovery) = open(dir.path());
        assert_eq!((recovery.torn_bytes, recovery.damage), (0, vec![]));
    }
}

#[test]
fn what_a_newer_version_wrote_is_neither_cut_nor_called_damaged() {
    // Entries that are all in the checksum, and one with a body that is not; and a flag in the group's header.
    let bodied = |kind: u8, unit: &mut Vec<u8>, put: usize| {
        unit[put] = kind;
        unit[put + 5..put + 9].copy_from_slice(&2_u32.to_le_bytes()); // of the 13 bytes, 4 for the length and 2 of head
    };
    refuses_newer(|unit, put, _| unit[put] = 77);
    refuses_newer(|unit, put, _| bodied(131, unit, put));
    refuses_newer(|unit, put, _| bodied(255, unit, put));
    refuses_newer(|_, _, header| header.flags |= 1 << 16);
}

#[test]
fn a_body_of_an_unknown_kind_is_not_in_the_checksum() {
    let unit = |body: u8| {
        let entry = [&[200_u8][..], &9_u32.to_le_bytes(), &3_u32.to_le_bytes(), b"abc", &[body, body]].concat();
        [&[0; 8][..], &1_u32.to_le_bytes(), &entry].concat()
    };
    let crc = unit_crc(&unit(1)).unwrap();
    assert_eq!(unit_crc(&unit(2)), Some(crc));
    let mut head = unit(1);
    head[12 + 9] ^= 1;
    assert_ne!(unit_crc(&head), Some(crc));
    let fault = DecodedUnit::decode(&unit(7).into(), crc, false).unwrap_err();
    assert_eq!(fault, UnitFault::Unknown, "not damage: its head is what was written");
    assert_eq!(DecodedUnit::decode(&head.into(), crc, false).unwrap_err(), UnitFault::Damaged);
}

#[test]
fn a_header_may_grow() {
    let (dir, name, batches) = filled(2);
    let (path, key, at, mut header) = last_unit(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let units = bytes[at + header.header_bytes()..at + header.length as usize].to_vec();
    header.later = 24;
    header.length += 24;
    header.flags |= 1 << 15;
    let mut group = Vec::new();
    header.encode(key, &mut group);
    group.extend(&units);
    // The idle point follows in the next sector: there is room in the padding.
    assert_eq!(group.len().next_multiple_of(512), (group.len() - 24).next_multiple_of(512));
    bytes[at..at + group.len()].copy_from_slice(&group);
    fs::write(&path, &bytes).unwrap();
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let (log, recovery) = open(dir.path());
    assert_eq!((recovery.torn_bytes, recovery.damage), (0, vec![]));
    assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 2)));
}

#[test]
fn a_segment_of_an_older_format_is_read_and_not_gone_on_in() {
    let (dir, name, batches) = filled(2);
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let older = segment::SegmentHeader { format: 0, ..segment::SegmentHeader::decode(&bytes).unwrap() };
    bytes[..4096].copy_from_slice(&older.encode());
    fs::write(&path, &bytes).unwrap();
    for keep_index in [true, false] {
        if !keep_index {
            fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let (log, recovery) = open(dir.path());
        assert_eq!((recovery.torn_bytes, recovery.damage), (0, vec![]));
        assert!(matches!(read_all(&log, &name, &batches), (Read::AtEnd { .. }, 2)));
        store(&*log, vec![Entry::Put { table: Table::Node, key: "k".into(), value: "v".into() }]).unwrap();
        log.close().unwrap();
        assert_eq!(fs::read(&path).unwrap()[..bytes.len()], bytes, "nothing is added to it");
        assert_eq!(segments(dir.path()).len(), 2, "once there is a segment of this format, it is gone on in");
    }
}

/// The last group that holds a unit: its file, where it begins, and what its header says.
fn last_unit(dir: &Path) -> (PathBuf, GroupKey, usize, GroupHeader) {
    let path = segments(dir).remove(0);
    let bytes = fs::read(&path).unwrap();
    let key = GroupKey::of(&segment::SegmentHeader::decode(&bytes).unwrap().directory);
    let found = (0..bytes.len() / 512).rev().find_map(|sector| {
        let at = sector * 512;
        let position = Position { segment: 1, at: at as u64 };
        let (header, _) = GroupHeader::decode(bytes.get(at..)?, key, position)?;
        (header.units.len() == 1).then_some((at, header))
    });
    let (at, header) = found.unwrap();
    (path, key, at, header)
}

/// Changes the last unit, whose last entry (a put) begins at the byte given, and its header; all checksums fit.
fn refuses_newer(change: impl FnOnce(&mut Vec<u8>, usize, &mut GroupHeader)) {
    let (dir, _, _) = filled(2);
    let segment = segments(dir.path()).remove(0);
    let before = fs::read(&segment).unwrap();
    let (_, key, at, mut header) = last_unit(dir.path());
    let unit = at + header.header_bytes()..at + header.length as usize;
    let mut bytes = before.clone();
    let mut records = bytes[unit.clone()].to_vec();
    let put = records.len() - (5 + 1 + 4 + 2 + 4 + 2);
    assert_eq!(records[put], 8, "the unit's last entry is a put");
    change(&mut records, put, &mut header);
    header.units[0].crc = unit_crc(&records).unwrap();
    let mut head = Vec::new();
    header.encode(key, &mut head);
    bytes[at..at + head.len()].copy_from_slice(&head);
    bytes[unit].copy_from_slice(&records);
    fs::write(&segment, &bytes).unwrap();
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let refused = DiskLog::open(config(dir.path())).unwrap_err().to_string();
    assert!(refused.contains("does not know") && refused.contains("newer"), "{refused}");
    assert_eq!(fs::read(&segment).unwrap(), bytes, "nothing was cut");
}
