//! Random units on the disk log and on its twin in memory, with restarts in between that leave the index as
//! it was, set it back to an older state, or delete it: both must hold the same.

use std::{fs, path::Path, sync::Arc};

use rand::{Rng, SeedableRng, rngs::StdRng};
use seaway_federation_proto::copies::{Hole, HoleKind};

use super::{DiskConfig, DiskLog, config, snapshot, store};
use crate::log::{
    conformance::fixture::{Origin, log_name},
    contract::{CommitLog, Entry, Role, Table, Unit},
    memory::{MemoryConfig, MemoryDisk, MemoryLog},
};

struct World {
    rng: StdRng,
    origins: Vec<Origin>,
}

impl World {
    fn new(seed: u64) -> Self {
        let origin =
            |n: u16| Origin::new(log_name("t", if n.is_multiple_of(2) { "s1" } else { "s2" }, n), u64::from(n) + seed);
        Self { rng: StdRng::seed_from_u64(seed), origins: (0..4).map(origin).collect() }
    }

    /// Some entry; most are accepted, some are not.
    fn entry(&mut self, log: &dyn CommitLog) -> Entry {
        let index = self.rng.random_range(0..self.origins.len());
        let name = self.origins[index].log().clone();
        let info = log.info(&name, false);
        let role = if index % 2 == 0 { Role::Own } else { Role::Copy };
        match (self.rng.random_range(0..100), info) {
            (0..6, Some(info)) => {
                let offset = self.rng.random_range(info.begin.offset..=info.end.offset);
                let incarnation = match info.incarnations.iter().rfind(|held| held.begin <= offset) {
                    Some(held) => held.incarnation,
                    None => info.end.incarnation,
                };
                Entry::Trim { log: name, to: seaway_federation_proto::ids::Place { incarnation, offset } }
            }
            (6..8, Some(_)) => {
                self.origins[index] = Origin::new(name.clone(), self.rng.random());
                Entry::Drop { log: name }
            }
            (8..12, Some(info)) => {
                let at = info.end;
                // What the origin writes now is not sent: the copy states that it lacks it.
                let missing = self.origins[index].next(3, 50);
                let hole = Hole {
                    incarnation: missing.begin().incarnation,
                    from: at.offset,
                    to: missing.end_offset(),
                    kind: HoleKind::Lost,
                };
                Entry::Hole { log: name, hole }
            }
            (12..18, _) => {
                self.origins[index].restart();
                self.append(index, role)
            }
            (18..40, _) => {
                let key = format!("key {}", self.rng.random_range(0..30));
                let value = format!("value {}", self.rng.random::<u32>());
                Entry::Put { table: Table::Producers, key: key.into(), value: value.into() }
            }
            (40..48, _) => {
                let key = format!("key {}", self.rng.random_range(0..30));
                Entry::Delete { table: Table::Producers, key: key.into() }
            }
            _ => self.append(index, role),
        }
    }

    fn append(&mut self, index: usize, role: Role) -> Entry {
        let bytes = if self.rng.random_range(0..10) == 0 { 20_000 } else { self.rng.random_range(1..500) };
        let messages = self.rng.random_range(1..5);
        Entry::Append { role, batch: self.origins[index].next(messages, bytes) }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn open(dir: &Path) -> Arc<DiskLog> {
    let config = DiskConfig { tail_bytes_max: 20_000, checkpoint_bytes: 100_000, dead_share_max: 0.2, ..config(dir) };
    let (log, recovery) = DiskLog::open(config).unwrap();
    assert_eq!((recovery.damage, recovery.torn_bytes), (Vec::new(), 0));
    log
}

/// Answers how many bytes were moved.
fn run(seed: u64, rounds: usize) -> u64 {
    let mut moved = 0;
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old index");
    let index = dir.path().join("index");
    let memory_config = MemoryConfig { auto: true, ..MemoryConfig::default() };
    let memory = MemoryLog::open(MemoryDisk::default(), memory_config);
    let mut world = World::new(seed);
    for round in 0..rounds {
        let log = open(dir.path());
        for _ in 0..world.rng.random_range(1..40) {
            let saved = world.origins.clone();
            let count = world.rng.random_range(1..4);
            let entries: Vec<Entry> = (0..count).map(|_| world.entry(&*log)).collect();
            let expected = memory.submit(Unit { entries: entries.clone() }, Box::new(|done| done.unwrap()));
            match expected {
                Ok(()) => store(&*log, entries).unwrap(),
                Err(rejected) => {
                    world.origins = saved;
                    let found = log.submit(Unit { entries }, Box::new(|_| {})).unwrap_err();
                    assert_eq!(found.reason, rejected.reason, "seed {seed}, round {round}");
                }
            }
        }
        log.reclaim().unwrap();
        let when = format!("seed {seed}, round {round}, before the restart");
        snapshot(&*log).assert_same(snapshot(&*memory), &when);
        moved += log.stats().moved_bytes;
        log.close().unwrap();
        drop(log);
        let way = world.rng.random_range(0..6);
        match way {
            0 => fs::remove_dir_all(&index).unwrap(),
            1 if old.exists() => copy_dir(&old, &index),
            2 => copy_dir(&index, &old),
            _ => {}
        }
        let log = open(dir.path());
        let when = format!("seed {seed}, round {round}, after the restart, way {way}");
        snapshot(&*log).assert_same(snapshot(&*memory), &when);
    }
    moved
}

#[test]
fn the_disk_log_holds_what_its_twin_holds() {
    let moved: u64 = (0..12).map(|seed| run(seed, 8)).sum();
    assert!(moved > 500_000, "moving must be at work: {moved} bytes");
}
