//! What a control queue says reaches the machine, also where the disk fails for a while.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use seaway_federation_proto::{
    control,
    copies::LogInfo,
    envelope::{Batch, Chain, Codec, Placement},
    ids::{Incarnation, NodeName, Start},
    message::{BodyBuilder, Message},
    replication::{RemoteHeld, ReplicationConfig},
    session::NodeKind,
    wire::{link, store},
};

use super::*;
use crate::{
    link::hub::{Hub, NodePort},
    log::{
        contract::{Done, Entry, Listener, LogStats, Poisoned, Rejected, Retention, Role, Surveyed, Table, Unit},
        memory::{MemoryConfig, MemoryDisk, MemoryLog},
    },
};

/// A log that gives one batch a read, and of which only so many reads succeed.
struct Failing {
    log: Arc<MemoryLog>,
    reads_left: AtomicUsize,
}

impl CommitLog for Failing {
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        self.log.submit(unit, done)
    }
    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        self.log.ready(bytes, wake);
    }
    fn read(&self, log: &LogName, from: Place, line: Line, _: usize) -> Result<Read, ReadError> {
        let less = |left: usize| left.checked_sub(1);
        match self.reads_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => self.log.read(log, from, line, 1),
            Err(_) => Err(ReadError { log: log.clone(), place: from, why: "a bad sector".to_owned() }),
        }
    }
    fn read_cached(&self, _: &LogName, _: Place, _: Line, _: usize) -> Option<Read> {
        None
    }
    fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
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
        self.log.get(table, key)
    }
    fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.log.scan(table, prefix)
    }
    fn survey(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError> {
        self.log.survey(log, from, visit)
    }
    fn trim_target(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError> {
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

struct Nobody;

impl NodePort for Nobody {
    fn on_remote_held(&self, _: RemoteHeld) {}
    fn on_registrations_changed(&self) {}
    fn on_one_way(&self, _: Box<link::OneWayBody>) {}
    fn on_log(&self, _: &LogName) {}
}

fn config() -> ReplicationConfig {
    ReplicationConfig {
        node: "b/edge".parse::<NodeName>().unwrap(),
        kind: NodeKind::Edge,
        start: Start { time_us: 1, random: 2 },
        mark_interval: Duration::from_secs(1),
        hops: 8,
        replicate: Vec::new(),
        lost_after: Duration::from_secs(60),
        costs: Vec::new(),
        logs_max: 100,
        wants_max: 100,
        sites_max: 100,
        body_versions: vec![1],
        no_transit: false,
    }
}

fn name() -> LogName {
    LogName { topic: "t".parse().unwrap(), origin: "a".parse().unwrap(), queue: Queue::CONTROL }
}

/// A topic's settings, and its deletion, in a batch each.
fn entries() -> Vec<Batch> {
    let settings = store::TopicSettings { queues: 1, message_bytes_max: 1000, ..Default::default() };
    let deleted = store::TopicDeleted { life: 0, time_us: 5, ..Default::default() };
    let kinds = [store::control_entry::Kind::Settings(settings), store::control_entry::Kind::Deleted(deleted)];
    let mut chain_before = Chain::default();
    let batch = |(offset, kind)| {
        let mut body = BodyBuilder::default();
        let payload = control::entry(kind);
        let path = "t".parse().unwrap();
        body.push(&Message { path, key: None, headers: Vec::new(), time_us: 1, producer: None, payload });
        let placement = Placement {
            log: &name(),
            begin: Place { incarnation: Incarnation { counter: 1, random: 5 }, offset },
            first_of_incarnation: offset == 0,
            previous: None,
            origin_time_us: 1,
            chain_before,
        };
        let batch = Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap();
        chain_before = batch.chain_after();
        batch
    };
    (0..).zip(kinds).map(batch).collect()
}

/// However far the first read comes, also past the news itself, the machine is told once the rest can be read.
#[test]
fn news_of_a_control_queue_outlast_a_disk_that_cannot_be_read_for_a_while() {
    for reads in 0..3 {
        let memory = MemoryLog::open(MemoryDisk::default(), MemoryConfig { auto: true, ..MemoryConfig::default() });
        let log = Arc::new(Failing { log: memory.clone(), reads_left: AtomicUsize::new(reads) });
        let mut now = Duration::from_secs(10);
        let hub = Hub::open(config(), log.clone(), Arc::new(Nobody), Arc::default(), Arc::new(|| {}), now, 1);
        let entries = entries().into_iter().map(|batch| Entry::Append { role: Role::Copy, batch }).collect();
        log.submit(Unit { entries }, Box::new(|result| result.unwrap())).unwrap();
        let alarm = |hub: &Hub| hub.alarms().iter().any(|alarm| alarm.report.name == "read-failed");
        let told = || !memory.scan(Table::Deleted, &[]).is_empty();
        hub.pump(now, 1);
        assert!(alarm(&hub) && !told(), "{reads} reads");
        // The disk is well again. Nothing else comes of this queue.
        log.reads_left.store(1000, Ordering::Relaxed);
        for _ in 0..20 {
            now = hub.poll_timeout().unwrap().max(now);
            hub.pump(now, 1);
        }
        assert!(told() && !alarm(&hub), "{reads} reads: what it says was lost");
        assert!(hub.control(&name().topic, &name().origin).unwrap().is_deleted());
    }
}
