//! Deliberate faults: a commit log that lies in one way, put under one node to see that the checkers tell.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::{AppendRefusal, Hole, HoleKind, LogInfo},
    envelope::{Batch, Chain, Codec, Placement},
    ids::{LogName, Place},
    message::{BodyBuilder, decode_messages},
};
use seaway_relay::log::{
    contract::{
        CommitLog, Done, Entry, Line, Listener, LogStats, Poisoned, Read, ReadError, RejectReason, Rejected, Retention,
        Role, Surveyed, Table, Unit,
    },
    memory::MemoryLog,
};

use super::scenario::Sabotage;

/// See the module's documentation.
pub struct SabotagedLog {
    log: Arc<MemoryLog>,
    sabotage: Sabotage,
    /// Batches refused already.
    refused: Mutex<BTreeSet<(LogName, Place)>>,
}

impl SabotagedLog {
    /// The log, with a fault.
    pub fn new(log: Arc<MemoryLog>, sabotage: Sabotage) -> Self {
        Self { log, sabotage, refused: Mutex::default() }
    }

    fn submit_refusing(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        if let Some(Entry::Append { role: Role::Copy, batch }) = unit.entries.first() {
            let (log, found) = (batch.header().log.clone(), batch.begin());
            if self.refused.lock().insert((log, found)) {
                let refusal = AppendRefusal::Gap { found, expected: found };
                return Err(Box::new(Rejected { unit, done, reason: RejectReason::Refused { index: 0, refusal } }));
            }
        }
        self.log.submit(unit, done)
    }

    /// Now and then states a batch that came as lost instead of storing it.
    fn submit_losing(&self, mut unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        if let Some(Entry::Append { role: Role::Copy, batch }) = unit.entries.first() {
            let (header, begin) = (batch.header(), batch.begin());
            if header.log.queue.0 > 0 && begin.offset % 7 == 3 {
                let hole = Hole {
                    incarnation: begin.incarnation,
                    from: begin.offset,
                    to: batch.end_offset(),
                    kind: HoleKind::Lost,
                };
                unit = Unit { entries: vec![Entry::Hole { log: header.log.clone(), hole }] };
            }
        }
        self.log.submit(unit, done)
    }

    fn spoil(&self, read: Read) -> Read {
        match (self.sabotage, read) {
            (Sabotage::ForgeBatch, Read::Batches { batches, next }) => {
                Read::Batches { batches: batches.into_iter().map(forge).collect(), next }
            }
            (Sabotage::LoseSilently, Read::Batches { mut batches, next }) => {
                if batches.len() > 1 {
                    batches.remove(batches.len() / 2);
                }
                Read::Batches { batches, next }
            }
            (Sabotage::ServeNothing, Read::Batches { batches, .. }) => {
                let at = batches.first().map_or_else(|| unreachable!("reads give batches"), Batch::begin);
                Read::AtEnd { at, beside: false }
            }
            (_, read) => read,
        }
    }
}

/// The same place and chain value before it, other content.
fn forge(batch: Batch) -> Batch {
    let header = batch.header();
    if header.log.queue.0 == 0 || !header.begin.offset.is_multiple_of(5) {
        return batch;
    }
    let Ok(messages) = decode_messages(&batch, 64 << 20) else { return batch };
    let mut body = BodyBuilder::default();
    for mut message in messages {
        message.payload = message.payload.iter().map(|byte| byte ^ 1).collect();
        body.push(&message);
    }
    let Some(body) = body.finish(Codec::None) else { return batch };
    let placement = Placement {
        log: &header.log,
        begin: header.begin,
        first_of_incarnation: header.first_of_incarnation,
        previous: header.previous,
        origin_time_us: header.origin_time_us,
        chain_before: header.chain_before,
    };
    Batch::seal(&placement, body).unwrap_or(batch)
}

impl CommitLog for SabotagedLog {
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        match self.sabotage {
            Sabotage::AcknowledgeEarly => {}
            Sabotage::RefuseOnce => return self.submit_refusing(unit, done),
            Sabotage::CallLost => return self.submit_losing(unit, done),
            _ => return self.log.submit(unit, done),
        }
        let early: Arc<Mutex<Option<Done>>> = Arc::new(Mutex::new(Some(done)));
        let ignored = Box::new(|_| {});
        match self.log.submit(unit, ignored) {
            Ok(()) => {
                // The lie: nothing is durable yet.
                let done = early.lock().take();
                if let Some(done) = done {
                    done(Ok(()));
                }
                Ok(())
            }
            Err(mut rejected) => {
                if let Some(done) = early.lock().take() {
                    rejected.done = done;
                }
                Err(rejected)
            }
        }
    }
    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        self.log.ready(bytes, wake);
    }
    fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        self.log.read(log, from, line, bytes_max).map(|read| self.spoil(read))
    }
    fn read_cached(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Option<Read> {
        self.log.read_cached(log, from, line, bytes_max).map(|read| self.spoil(read))
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
