//! Checkpoints: what retained batches do not yield, written into the log itself.
//!
//! A part's body is a sequence of items:
//!
//! ```text
//! 1 segment  number u64                                       (exists, as of the checkpoint)
//! 2 log      role u8 | log | state of the copy (u32 length + bytes)
//! 3 value    key (u32 length + bytes; table first) | value (u32 length + bytes)
//! 4 damage   log | incarnation | from u64 | to u64            (fenced)
//! ```

use std::{collections::BTreeMap, sync::atomic::Ordering};

use bytes::Bytes;
use seaway_federation_proto::{
    copies::LogCopy,
    ids::{Incarnation, LogName, Offset},
};

use super::{
    apply::damaged_range,
    codec::{Fields, PutFields},
    index::{Family, IndexError},
    queue::Job,
    record::{Record, role_number, role_of},
    recover::{StoredLog, grow, read_log},
    shared::Shared,
};
use crate::log::contract::{Poisoned, Role};

/// Bytes after which a part is full.
const PART_BYTES: usize = 256 * 1024;

/// One thing that a checkpoint states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A segment file that exists.
    Segment(u64),
    /// A log that is held.
    Log {
        /// Whose.
        role: Role,
        /// Its name.
        name: LogName,
        /// How it stands.
        copy: Box<LogCopy>,
    },
    /// A value of a table.
    Value {
        /// Table number, then the key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// A fenced range.
    Damage {
        /// The log.
        name: LogName,
        /// The incarnation.
        incarnation: Incarnation,
        /// First offset.
        from: Offset,
        /// Offset after the last.
        to: Offset,
    },
}

impl Item {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Item::Segment(number) => {
                out.put_u8(1);
                out.put_u64(*number);
            }
            Item::Log { role, name, copy } => {
                out.put_u8(2);
                out.put_u8(role_number(*role));
                out.put_log(name);
                let mut state = Vec::with_capacity(256);
                copy.encode(&mut state);
                out.put_block(&state);
            }
            Item::Value { key, value } => {
                out.put_u8(3);
                out.put_block(key);
                out.put_block(value);
            }
            Item::Damage { name, incarnation, from, to } => {
                out.put_u8(4);
                out.put_log(name);
                out.put_incarnation(*incarnation);
                out.put_u64(*from);
                out.put_u64(*to);
            }
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        match fields.u8()? {
            1 => Some(Item::Segment(fields.u64()?)),
            2 => Some(Item::Log {
                role: role_of(fields.u8()?)?,
                name: fields.log()?,
                copy: Box::new(LogCopy::decode(fields.block()?).ok()?),
            }),
            3 => Some(Item::Value {
                key: Bytes::copy_from_slice(fields.block()?),
                value: Bytes::copy_from_slice(fields.block()?),
            }),
            4 => Some(Item::Damage {
                name: fields.log()?,
                incarnation: fields.incarnation()?,
                from: fields.u64()?,
                to: fields.u64()?,
            }),
            _ => None,
        }
    }
}

/// Reads a part's body.
pub(crate) fn decode_part(body: &[u8]) -> Option<Vec<Item>> {
    let mut fields = Fields::new(body);
    let mut items = Vec::new();
    while !fields.is_empty() {
        items.push(Item::decode(&mut fields)?);
    }
    Some(items)
}

/// Why a checkpoint was not written.
pub(crate) enum Failed {
    /// The log is poisoned or closing.
    Stopped(Poisoned),
    /// The index.
    Index(IndexError),
}

impl From<IndexError> for Failed {
    fn from(e: IndexError) -> Self {
        Self::Index(e)
    }
}

impl From<Poisoned> for Failed {
    fn from(poisoned: Poisoned) -> Self {
        Self::Stopped(poisoned)
    }
}

/// Writes the items of one checkpoint, part by part.
struct Parts<'a> {
    shared: &'a Shared,
    number: u64,
    next: u32,
    body: Vec<u8>,
    /// Of parts that are written.
    bytes: u64,
}

impl Parts<'_> {
    fn push(&mut self, item: &Item) -> Result<(), Poisoned> {
        item.encode(&mut self.body);
        if self.body.len() >= PART_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), Poisoned> {
        let body = Bytes::from(std::mem::take(&mut self.body));
        let bytes = body.len();
        let record = Record::CheckpointPart { number: self.number, part: self.next, body };
        self.next += 1;
        self.bytes += bytes as u64;
        self.shared.wait_for_room(bytes)?;
        self.shared.submit_own(vec![record], bytes, Box::new(|_| {}))
    }
}

impl Shared {
    /// Waits until the append queue has room, or the log stops.
    pub(crate) fn wait_for_room(&self, bytes: usize) -> Result<(), Poisoned> {
        let (woken, wake) = crossbeam_channel::bounded(1);
        self.queue.wake_when(bytes, Box::new(move || _ = woken.try_send(())));
        self.step();
        self.wait(&wake).map_or_else(|_| Err(self.ended()), Ok)
    }

    /// Writes a record of the log's own and waits until it is durable.
    pub(crate) fn write_own(&self, record: Record) -> Result<(), Poisoned> {
        self.write_all_own(vec![record], 64)
    }

    /// Writes records of the log's own, of so many bytes, as one unit, and waits until they are durable and applied.
    pub(crate) fn write_all_own(&self, records: Vec<Record>, bytes: usize) -> Result<(), Poisoned> {
        let (told, answer) = crossbeam_channel::bounded(1);
        self.submit_own(records, bytes, Box::new(move |done| _ = told.try_send(done)))?;
        self.step();
        self.wait(&answer).unwrap_or_else(|_| Err(self.ended()))
    }

    /// Waits until the storage thread has done what was queued before.
    pub(crate) fn settle_fences(&self) -> Result<(), Poisoned> {
        let (told, answer) = crossbeam_channel::bounded(1);
        self.queue.push(Job::Tell(Box::new(move |done| _ = told.try_send(done))));
        self.step();
        self.wait(&answer).unwrap_or_else(|_| Err(self.ended()))
    }

    fn ended(&self) -> Poisoned {
        let full = self.figures.no_room.load(Ordering::Relaxed);
        Poisoned { why: if full { "there is no room on the disk now" } else { "the storage thread has ended" }.into() }
    }

    /// Waits for what the storage thread tells; a log without a thread has told it by now.
    fn wait<T>(&self, told: &crossbeam_channel::Receiver<T>) -> Result<T, crossbeam_channel::RecvError> {
        if self.config.stepped { told.try_recv().map_err(|_| crossbeam_channel::RecvError) } else { told.recv() }
    }

    /// Writes a checkpoint of what is durable now, and waits until it is complete.
    pub(crate) fn write_checkpoint(&self) -> Result<(), Failed> {
        let snapshot = self.index.snapshot();
        let Some(applied) = snapshot.applied()? else { return Ok(()) };
        let number = self.checkpoints.lock().next_number();
        let begin = Record::CheckpointBegin { number, as_of: applied.to, sequence: applied.sequence };
        self.submit_own(vec![begin], 64, Box::new(|_| {}))?;
        let mut parts = Parts { shared: self, number, next: 0, body: Vec::with_capacity(PART_BYTES), bytes: 0 };
        let segments: Vec<u64> = self.existing.lock().keys().copied().collect();
        for segment in segments.into_iter().filter(|segment| *segment <= applied.to.segment) {
            parts.push(&Item::Segment(segment))?;
        }
        let mut logs = BTreeMap::<u64, StoredLog>::new();
        snapshot.visit(Family::Logs, |key, value| {
            let id = key.try_into().map(u64::from_be_bytes);
            let (Ok(id), Some(log)) = (id, read_log(value)) else {
                return Err(Failed::Index(IndexError("the state of a log is malformed".to_owned())));
            };
            logs.insert(id, log);
            Ok(())
        })?;
        snapshot.visit::<Failed>(Family::Ends, |key, value| {
            let id = key.first_chunk::<8>().map(|id| u64::from_be_bytes(*id));
            if let Some(log) = id.and_then(|id| logs.get_mut(&id)) {
                grow(log, key, value);
            }
            Ok(())
        })?;
        snapshot.visit::<Failed>(Family::Damage, |key, value| {
            if let Some(((id, incarnation, from), to)) = damaged_range(key, value)
                && let Some(log) = logs.get(&id)
            {
                parts.push(&Item::Damage { name: log.name.clone(), incarnation, from, to })?;
            }
            Ok(())
        })?;
        for log in logs.into_values() {
            parts.push(&Item::Log { role: log.role, name: log.name, copy: Box::new(log.copy) })?;
        }
        snapshot.visit::<Failed>(Family::State, |key, value| {
            let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            Ok(parts.push(&Item::Value { key, value })?)
        })?;
        if !parts.body.is_empty() {
            parts.write()?;
        }
        let (parts, bytes) = (parts.next, parts.bytes);
        self.write_own(Record::CheckpointEnd { number, parts })?;
        self.figures.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.figures.checkpoint_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seaway_federation_proto::ids::{Place, Queue};

    use super::*;

    #[test]
    fn items_come_back() {
        let name = LogName { topic: "t".parse().unwrap(), origin: "s".parse().unwrap(), queue: Queue(3) };
        let incarnation = Incarnation { counter: 1, random: 2 };
        let copy = Box::new(LogCopy::begin(Place { incarnation, offset: 9 }, None));
        let items = vec![
            Item::Segment(7),
            Item::Log { role: Role::Copy, name: name.clone(), copy },
            Item::Value { key: Bytes::from_static(b"\x01k"), value: Bytes::from_static(b"") },
            Item::Damage { name, incarnation, from: 1, to: 5 },
        ];
        let mut body = Vec::new();
        items.iter().for_each(|item| item.encode(&mut body));
        assert_eq!(decode_part(&body), Some(items));
        for len in 1..body.len() {
            // Never more than was there: items in front may be whole.
            assert!(decode_part(&body[..len]).is_none_or(|items| items.len() < 4));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_part(&body);
        }
    }
}
