//! The suite that every commit log must pass, on the disk log.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::LogInfo,
    envelope::Chain,
    ids::{LogName, Place},
};

use super::{DiskConfig, DiskLog, config, gate::Gate};
use crate::log::{
    conformance::{Ending, Harness, run},
    contract::{
        CommitLog, Done, Line, Listener, LogStats, Poisoned, Read, ReadError, Rejected, Retention, Surveyed, Table,
        Unit,
    },
};

struct Disk {
    dir: tempfile::TempDir,
    gate: Gate,
    log: Option<Arc<DiskLog>>,
    /// The handle that cases get.
    handle: Arc<Handle>,
}

/// What a case holds: the directory stays locked as long as anybody holds the log itself.
struct Handle(Mutex<Option<Arc<DiskLog>>>);

impl Handle {
    fn log(&self) -> Arc<DiskLog> {
        self.0.lock().clone().expect("a handle from before a restart must not be used after it")
    }
}

impl CommitLog for Handle {
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        self.log().submit(unit, done)
    }
    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        self.log().ready(bytes, wake);
    }
    fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        self.log().read(log, from, line, bytes_max)
    }
    fn read_cached(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Option<Read> {
        self.log().read_cached(log, from, line, bytes_max)
    }
    fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        self.log().find_time(log, time_us)
    }
    fn chain_at(&self, log: &LogName, place: Place) -> Result<Option<Chain>, ReadError> {
        self.log().chain_at(log, place)
    }
    fn info(&self, log: &LogName, durable: bool) -> Option<LogInfo> {
        self.log().info(log, durable)
    }
    fn logs(&self) -> Vec<LogName> {
        self.log().logs()
    }
    fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.log().get(table, key)
    }
    fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.log().scan(table, prefix)
    }
    fn survey(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError> {
        self.log().survey(log, from, visit)
    }

    fn trim_target(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError> {
        self.log().trim_target(log, retention)
    }
    fn reclaim(&self) -> Result<u64, Poisoned> {
        self.log().reclaim()
    }
    fn set_listener(&self, listener: Listener) {
        self.log().set_listener(listener);
    }
    fn stats(&self) -> LogStats {
        self.log().stats()
    }
    fn close(&self) -> Result<(), Poisoned> {
        self.log().close()
    }
}

impl Disk {
    fn new() -> Self {
        let mut disk = Self {
            dir: tempfile::tempdir().unwrap(),
            gate: Gate::new(),
            log: None,
            handle: Arc::new(Handle(Mutex::default())),
        };
        disk.open();
        disk
    }

    fn open(&mut self) {
        self.gate = Gate::new();
        let config = DiskConfig {
            files: Arc::new(self.gate.clone()),
            queue_bytes_max: 1 << 20,
            tail_bytes_max: 4096,
            reserve_bytes: 1,
            ..config(self.dir.path())
        };
        let (log, recovery) = DiskLog::open(config).unwrap();
        assert_eq!(recovery.damage, [], "nothing was damaged");
        self.log = Some(Arc::clone(&log));
        self.handle = Arc::new(Handle(Mutex::new(Some(log))));
    }
}

impl Harness for Disk {
    fn log(&self) -> Arc<dyn CommitLog> {
        self.handle.clone()
    }
    fn hold(&mut self) {
        self.gate.hold(true);
    }
    fn release(&mut self) {
        self.gate.hold(false);
    }
    fn restart(&mut self, ending: Ending) {
        if ending == Ending::Crash {
            self.gate.end();
        }
        let log = self.log.take().unwrap();
        let _ = log.close();
        self.handle.0.lock().take();
        drop(log);
        self.open();
    }
    fn fail_next_sync(&mut self) {
        self.gate.fail_next_sync();
    }
    fn fill_disk(&mut self, full: bool) {
        self.gate.set_free(if full { 0 } else { u64::MAX });
        let log = self.log();
        for _ in 0..6000 {
            if log.stats().disk_full == full {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the log does not measure the disk");
    }
    fn damage(&mut self, log: &LogName, place: Place) -> bool {
        let shared = &self.log.as_ref().unwrap().shared;
        let Some(cell) = shared.cell(log) else { return false };
        let id = cell.state.lock().durable.as_ref().unwrap().id;
        let (_, entry) = shared.index.floor(id, place.incarnation, place.offset).unwrap().unwrap();
        let path = shared.segment_path(entry.position.segment);
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let at = entry.position.at + u64::from(entry.length) - 3;
        std::os::unix::fs::FileExt::write_all_at(&file, b"\xa5\x5a", at).unwrap();
        cell.state.lock().recent.clear();
        true
    }
}

#[test]
fn the_disk_log_keeps_the_contract() {
    run(&|| Box::new(Disk::new()));
}
