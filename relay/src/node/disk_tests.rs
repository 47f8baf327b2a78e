//! What waits on the disk is kept off the tasks that serve everybody.

use std::{
    sync::Arc,
    thread::{self, ThreadId},
};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::LogInfo,
    envelope::Chain,
    ids::{LogName, Place},
    replication::{Want, WantStart},
};

use super::*;
use crate::log::{
    contract::{
        CommitLog, Done, Line, Listener, LogStats, Poisoned, Read, ReadError, Rejected, Retention, Surveyed, Table,
        Unit,
    },
    memory::{MemoryConfig, MemoryDisk, MemoryLog},
};

/// A log of which nothing is in memory; it notes which threads wait on its disk.
struct Slow {
    log: Arc<MemoryLog>,
    waited: Mutex<Vec<(&'static str, ThreadId)>>,
}

impl Slow {
    fn waits(&self, what: &'static str) {
        self.waited.lock().push((what, thread::current().id()));
    }
}

impl CommitLog for Slow {
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        self.log.submit(unit, done)
    }
    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        self.log.ready(bytes, wake);
    }
    fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        self.waits("read");
        self.log.read(log, from, line, bytes_max)
    }
    fn read_cached(&self, _: &LogName, _: Place, _: Line, _: usize) -> Option<Read> {
        None
    }
    fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        self.waits("find_time");
        self.log.find_time(log, time_us)
    }
    fn chain_at(&self, log: &LogName, place: Place) -> Result<Option<Chain>, ReadError> {
        self.log.chain_at(log, place)
    }
    fn info(&self, log: &LogName, durable: bool) -> Option<LogInfo> {
        self.log.info(log, durable)
    }
    fn logs(&self) -> Vec<LogName> {
        self.log.logs()
    }
    fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.waits("get");
        self.log.get(table, key)
    }
    fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.waits("scan");
        self.log.scan(table, prefix)
    }
    fn survey(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError> {
        self.waits("survey");
        self.log.survey(log, from, visit)
    }

    fn trim_target(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError> {
        self.waits("trim_target");
        self.log.trim_target(log, retention)
    }
    fn reclaim(&self) -> Result<u64, Poisoned> {
        self.log.reclaim()
    }
    fn set_listener(&self, listener: Listener) {
        self.log.set_listener(listener);
    }
    fn stats(&self) -> LogStats {
        self.log.stats()
    }
    fn close(&self) -> Result<(), Poisoned> {
        self.log.close()
    }
}

#[tokio::test]
async fn no_task_waits_on_the_disk() {
    let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig { auto: true, ..MemoryConfig::default() });
    let slow = Arc::new(Slow { log, waited: Mutex::default() });
    let node = Node::start_on(publish::tests::config(), slow.clone()).await.unwrap();
    // The start itself reads its tables before anybody is served.
    slow.waited.lock().clear();
    let publish = Publish {
        path: "t/new".parse().unwrap(),
        key: None,
        headers: vec![],
        payload: "x".into(),
        producer: None,
        acknowledgement: Acknowledgement::Local,
        deadline: std::time::Duration::from_secs(60),
        on_deadline: OnDeadline::Fail,
    };
    let receipt = node.publish(publish).await.unwrap().await.unwrap().unwrap();
    let (pattern, origins) = ("#".parse().unwrap(), vec![]);
    let want = Want { id: "w".into(), pattern, origins, start: WantStart::Earliest, registers: false };
    node.put_want(want).await.unwrap();
    node.read(&receipt.log, receipt.place, Line::Main, 1000).await.unwrap();
    node.find_time(&receipt.log, 0).await.unwrap();
    node.remove_want("w").await.unwrap();
    let waited = slow.waited.lock().clone();
    let here: Vec<_> = waited.iter().filter(|(_, thread)| *thread == thread::current().id()).collect();
    assert!(here.is_empty(), "the runtime's thread waited on the disk: {here:?}");
    let met: std::collections::BTreeSet<_> = waited.iter().map(|(what, _)| *what).collect();
    assert!(met.is_superset(&["find_time", "read", "scan"].into()), "{met:?}");
    node.shutdown().await.unwrap();
}
