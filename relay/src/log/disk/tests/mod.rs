//! The disk log against real directories.

mod conformance;
mod full;
mod gate;
mod golden;
mod moved;
mod moving;
mod random;
mod recovery;
mod room;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use seaway_federation_proto::{
    copies::LogInfo,
    ids::{LogName, Place, Start},
};

use super::{DiskConfig, DiskLog, Recovery};
use crate::log::{
    conformance::fixture::bytes_of,
    contract::{CommitLog, Entry, Line, Outside, Poisoned, Read, Table, Unit},
};

/// Settings for a small log in `dir`: segments of 64 KiB, so that tests have many.
fn config(dir: &Path) -> DiskConfig {
    let start = Start { time_us: 1_700_000_000_000_000, random: 7 };
    let config = DiskConfig::new(dir.to_owned(), "test", "s1/edge".parse().unwrap(), start);
    DiskConfig { segment_bytes: 64 * 1024, reserve_bytes: 0, checkpoint_bytes: 256 * 1024, ..config }
}

fn open(dir: &Path) -> (Arc<DiskLog>, Recovery) {
    DiskLog::open(config(dir)).unwrap()
}

/// Submits a unit and waits for its answer.
fn store(log: &dyn CommitLog, entries: Vec<Entry>) -> Result<(), Poisoned> {
    let (tell, told) = mpsc::channel();
    log.submit(Unit { entries }, Box::new(move |done| tell.send(done).unwrap())).unwrap();
    told.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// All that a log holds, to be compared; of batches a checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    logs: BTreeMap<LogName, (LogInfo, Vec<(Place, u32)>)>,
    tables: BTreeMap<(Table, Bytes), Bytes>,
}

fn snapshot(log: &dyn CommitLog) -> Snapshot {
    let mut logs = BTreeMap::new();
    for name in log.logs() {
        let Some(info) = log.info(&name, true) else { continue };
        let batches = info.incarnations.iter().flat_map(|held| {
            let from = Place { incarnation: held.incarnation, offset: held.begin };
            read_incarnation(log, &name, from)
        });
        let batches = batches.collect();
        logs.insert(name, (info, batches));
    }
    let mut tables = BTreeMap::new();
    for table in [Table::Node, Table::Producers, Table::Groups] {
        tables.extend(log.scan(table, b"").into_iter().map(|(key, value)| ((table, key), value)));
    }
    Snapshot { logs, tables }
}

impl Snapshot {
    /// Fails with what differs, and only that.
    fn assert_same(mut self, mut expected: Snapshot, when: &str) {
        self.logs.retain(|name, log| expected.logs.get(name) != Some(log) || expected.logs.remove(name).is_none());
        self.tables
            .retain(|key, value| expected.tables.get(key) != Some(value) || expected.tables.remove(key).is_none());
        assert_eq!(self, expected, "{when}");
    }
}

/// All batches of one incarnation; holes are passed.
fn read_incarnation(log: &dyn CommitLog, name: &LogName, from: Place) -> Vec<(Place, u32)> {
    let mut found = Vec::new();
    let mut at = from;
    loop {
        match log.read(name, at, Line::Incarnation, 20_000).unwrap() {
            Read::Batches { batches, next } => {
                found.extend(batches.iter().map(|batch| (batch.begin(), crc32c::crc32c(&bytes_of(batch)))));
                at = next;
            }
            Read::Outside(Outside::Hole { hole }) => at.offset = hole.to,
            Read::AtEnd { .. } => return found,
            other => panic!("{name} at {at}: {other:?}"),
        }
    }
}
