//! Segment files of the commit log: header, groups, units, records, checkpoints.

use std::fs;

use seaway_federation_proto::ids::Start;
use seaway_relay::log::{
    conformance::fixture::{Origin, log_name},
    contract::{CommitLog, Entry, Role, Table, Unit},
    disk::{DiskConfig, DiskLog, inspect_segment},
};

/// Number of the segment that the corpus holds: a group says where it stands.
const SEGMENT: u64 = 1;

pub(super) fn segment(input: &[u8]) {
    let found = inspect_segment(SEGMENT, input.to_vec());
    assert!(found.groups <= input.len() / 512 + 1, "more groups than sectors: {found:?}");
}

/// A true segment with a checkpoint in it, and what a crash could have left of it: half, and little more than the header.
pub(super) fn segments() -> Vec<Vec<u8>> {
    let Some(whole) = write_segment() else { return Vec::new() };
    let cut = |sectors: usize| whole.iter().take(sectors * 512).copied().collect();
    vec![cut(whole.len() / 1024), cut(9), whole]
}

fn write_segment() -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().ok()?;
    let start = Start { time_us: 1, random: 2 };
    let config = DiskConfig::new(dir.path().to_owned(), "fuzz", "s1/edge".parse().ok()?, start);
    let (log, _) = DiskLog::open(DiskConfig { reserve_bytes: 0, checkpoint_bytes: 1, ..config }).ok()?;
    let mut origin = Origin::new(log_name("t", "s1", 1), 3);
    for batch in origin.batches(3) {
        let put = Entry::Put { table: Table::Node, key: "k".into(), value: "v".into() };
        let trim = Entry::Trim { log: origin.log().clone(), to: batch.begin() };
        let entries = vec![Entry::Append { role: Role::Own, batch }, put, trim];
        log.submit(Unit { entries }, Box::new(|_| {})).ok()?;
    }
    log.reclaim().ok()?;
    log.close().ok()?;
    let mut bytes = fs::read(dir.path().join("segments/00000000000000000001.seg")).ok()?;
    let used = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    bytes.truncate(used.next_multiple_of(512));
    Some(bytes)
}
