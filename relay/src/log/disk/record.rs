//! Units and their entries on disk. Kind numbers are permanent.
//!
//! ```text
//! 3 begin copy    log | place | chain (optional)
//! 4 hole          log | hole
//! 5 rekind        log | hole | former kind u8
//! 6 trim          log | place (a batch boundary)
//! 7 drop          log
//! 8 put           table u8 | key (u32 length + bytes) | value (u32 length + bytes)
//! 9 delete        table u8 | key
//! 10 checkpoint begins  number u64 | as of position | sequence of the group that ends there u64
//! 11 checkpoint part    number u64 | part u32 | body, see `checkpoint`
//! 12 checkpoint ends    number u64 | parts u32
//! 13 reclaimed    segment u64
//! 129 append      role u8 (1 own, 2 copy) | the batch's head || its body
//! 130 moved       stored at u64 | role u8 | the batch's head || its body
//!
//! log: topic, origin (u16 length + UTF-8) | queue u16      place: counter, random, offset (u64)
//! hole: counter, random, from, to (u64) | kind u8 (1 pending, 2 not wanted, 3 lost)
//! optional: 0 u8, or 1 u8 and the value
//! ```
//! **Two layouts, for all kinds there will ever be.** The payload of kinds 1 to 127 is the fields named, and the unit's CRC
//! covers all of it. Kinds 128 to 255 carry a body that the CRC leaves out: their payload is `head length u32 | head | body`
//! (`||` above), the CRC covers the length and the head, and the head says how the body is checked. So a version that
//! does not know a kind can still tell bytes that are what was written from bytes that are not: what it does not know is
//! refused with the advice to run the newer version, and is neither called damaged nor cut. A kind's fields never change;
//! what needs others is another kind. Numbers 0, 1, 2 and 128 mean nothing, and are not to be used.
//!
//! *Moved* is a batch copied unchanged from an old segment, with the time at which it was first
//! appended. It only says where a batch is that the copy holds within its bounds: it never makes a log
//! and never lowers a begin. This version reads it and writes none.

use bytes::Bytes;
use seaway_federation_proto::{
    copies::{Facts, Hole, HoleKind},
    envelope::{Batch, Chain},
    ids::LogName,
};

use super::codec::{Fields, Position, PutFields};
use crate::log::contract::{Entry, Role, Table};

/// Kinds with this bit carry a body that the unit's CRC leaves out.
const BODIED: u8 = 0x80;
const APPEND: u8 = 129;
const MOVED: u8 = 130;
/// Bodies up to this many bytes are copied next to their heads: cheaper than a part of their own.
const BODY_INLINE_BYTES_MAX: usize = 2048;
/// Bytes in front of a unit's entries.
pub(crate) const UNIT_HEAD_BYTES: usize = 12;
/// Bytes in front of an entry's payload.
const ENTRY_HEAD_BYTES: usize = 5;

/// An entry as it is on disk: those of the contract, and the log's own.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    /// An entry of the contract.
    Entry(Entry),
    /// A batch that was copied from an older segment.
    Moved {
        /// When it was first appended, microseconds since 1970.
        stored_at_us: u64,
        /// Whose.
        role: Role,
        /// The batch.
        batch: Batch,
    },
    /// A checkpoint's first record.
    CheckpointBegin {
        /// Its number.
        number: u64,
        /// The state is that as of here.
        as_of: Position,
        /// Sequence of the group that ends at `as_of`.
        sequence: u64,
    },
    /// A part of its contents.
    CheckpointPart {
        /// Its number.
        number: u64,
        /// Counted from 0.
        part: u32,
        /// Encoded contents.
        body: Bytes,
    },
    /// Its last record.
    CheckpointEnd {
        /// Its number.
        number: u64,
        /// How many parts there are.
        parts: u32,
    },
    /// This segment is about to be removed.
    Reclaimed {
        /// Its number.
        segment: u64,
    },
}

impl Record {
    /// The batch inside, with its role.
    pub(crate) fn batch(&self) -> Option<(Role, &Batch)> {
        match self {
            Record::Entry(Entry::Append { role, batch }) | Record::Moved { role, batch, .. } => Some((*role, batch)),
            _ => None,
        }
    }
}

/// A unit ready to be written: what is small in one buffer, large bodies shared with the caller.
#[derive(Debug)]
pub(crate) struct EncodedUnit {
    /// Everything but the large bodies.
    pub(crate) small: Vec<u8>,
    /// Large bodies, each with the byte of `small` that it stands before.
    pub(crate) bodies: Vec<(usize, Bytes)>,
    /// Length of the whole.
    pub(crate) length: usize,
    /// CRC32C of the whole without any body.
    pub(crate) crc: u32,
    /// For each batch, in order: where in the unit it begins.
    pub(crate) batch_offsets: Vec<u32>,
    /// Whether it holds the begin or end of a checkpoint.
    pub(crate) checkpoint: bool,
}

impl EncodedUnit {
    /// Encodes records; they must be what `submit` has checked (lengths within bounds).
    pub(crate) fn encode(stored_at_us: u64, records: &[Record]) -> Self {
        let mut unit = Self {
            small: Vec::with_capacity(512),
            bodies: Vec::new(),
            length: 0,
            crc: 0,
            batch_offsets: Vec::new(),
            checkpoint: false,
        };
        let mut covered = 0;
        unit.small.put_u64(stored_at_us);
        unit.small.put_u32(records.len() as u32);
        for record in records {
            unit.push(record, &mut covered);
        }
        unit.cover(covered, unit.small.len());
        unit.length += unit.small.len();
        unit
    }

    fn cover(&mut self, from: usize, to: usize) {
        self.crc = crc32c::crc32c_append(self.crc, self.small.get(from..to).unwrap_or_default());
    }

    fn push(&mut self, record: &Record, covered: &mut usize) {
        self.small.put_u8(record.kind());
        let length_at = self.small.len();
        self.small.put_u32(0);
        let batch = record.put_payload(&mut self.small);
        let payload = self.small.len() - length_at - 4 + batch.map_or(0, Batch::len);
        if let Some(field) = self.small.get_mut(length_at..length_at + 4) {
            field.copy_from_slice(&(payload as u32).to_le_bytes());
        }
        self.checkpoint |= matches!(record, Record::CheckpointBegin { .. } | Record::CheckpointEnd { .. });
        let Some(batch) = batch else { return };
        self.batch_offsets.push((self.small.len() + self.length) as u32);
        self.small.put(batch.head());
        self.cover(*covered, self.small.len());
        if batch.body().len() <= BODY_INLINE_BYTES_MAX {
            self.small.put(batch.body());
        } else {
            self.bodies.push((self.small.len(), batch.body().clone()));
            self.length += batch.body().len(); // of shared bodies, until all is encoded
        }
        *covered = self.small.len();
    }
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Record::Entry(entry) => match entry {
                Entry::Append { .. } => APPEND,
                Entry::BeginCopy { .. } => 3,
                Entry::Hole { .. } => 4,
                Entry::Rekind { .. } => 5,
                Entry::Trim { .. } => 6,
                Entry::Drop { .. } => 7,
                Entry::Put { .. } => 8,
                Entry::Delete { .. } => 9,
            },
            Record::Moved { .. } => MOVED,
            Record::CheckpointBegin { .. } => 10,
            Record::CheckpointPart { .. } => 11,
            Record::CheckpointEnd { .. } => 12,
            Record::Reclaimed { .. } => 13,
        }
    }

    /// Writes the payload up to the batch, which is answered where there is one.
    fn put_payload(&self, out: &mut Vec<u8>) -> Option<&Batch> {
        match self {
            Record::Entry(entry) => return put_entry(entry, out),
            Record::Moved { stored_at_us, role, batch } => {
                out.put_u32((9 + batch.head().len()) as u32);
                out.put_u64(*stored_at_us);
                out.put_u8(role_number(*role));
                return Some(batch);
            }
            Record::CheckpointBegin { number, as_of, sequence } => {
                out.put_u64(*number);
                out.put_position(*as_of);
                out.put_u64(*sequence);
            }
            Record::CheckpointPart { number, part, body } => {
                out.put_u64(*number);
                out.put_u32(*part);
                out.put(body);
            }
            Record::CheckpointEnd { number, parts } => {
                out.put_u64(*number);
                out.put_u32(*parts);
            }
            Record::Reclaimed { segment } => out.put_u64(*segment),
        }
        None
    }
}

fn put_entry<'a>(entry: &'a Entry, out: &mut Vec<u8>) -> Option<&'a Batch> {
    match entry {
        Entry::Append { role, batch } => {
            out.put_u32((1 + batch.head().len()) as u32);
            out.put_u8(role_number(*role));
            return Some(batch);
        }
        Entry::BeginCopy { log, at, chain } => {
            out.put_log(log);
            out.put_place(*at);
            out.put_option(*chain, Vec::put_chain);
        }
        Entry::Hole { log, hole } => {
            out.put_log(log);
            put_hole(out, hole);
        }
        Entry::Rekind { log, hole, was } => {
            out.put_log(log);
            put_hole(out, hole);
            out.put_u8(was.number());
        }
        Entry::Trim { log, to } => {
            out.put_log(log);
            out.put_place(*to);
        }
        Entry::Drop { log } => out.put_log(log),
        Entry::Put { table, key, value } => {
            out.put_u8(*table as u8);
            out.put_block(key);
            out.put_block(value);
        }
        Entry::Delete { table, key } => {
            out.put_u8(*table as u8);
            out.put_block(key);
        }
    }
    None
}

pub(crate) fn put_hole(out: &mut Vec<u8>, hole: &Hole) {
    out.put_incarnation(hole.incarnation);
    out.put_u64(hole.from);
    out.put_u64(hole.to);
    out.put_u8(hole.kind.number());
}

pub(crate) fn read_hole(fields: &mut Fields<'_>) -> Option<Hole> {
    Some(Hole {
        incarnation: fields.incarnation()?,
        from: fields.u64()?,
        to: fields.u64()?,
        kind: HoleKind::from_number(fields.u8()?)?,
    })
}

pub(crate) fn role_number(role: Role) -> u8 {
    match role {
        Role::Own => 1,
        Role::Copy => 2,
    }
}

pub(crate) fn role_of(number: u8) -> Option<Role> {
    match number {
        1 => Some(Role::Own),
        2 => Some(Role::Copy),
        _ => None,
    }
}

pub(crate) fn table_of(number: u8) -> Option<Table> {
    Table::ALL.into_iter().find(|table| *table as u8 == number)
}

/// A record that was read, and where its batch stands in the unit.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    /// The record.
    pub(crate) record: Record,
    /// Byte of the unit at which its batch begins; 0 where it has none.
    pub(crate) batch_at: u32,
}

/// A batch in a good unit whose own bytes are bad.
#[derive(Debug, Clone)]
pub(crate) struct BadBatch {
    /// How many good records stand before it in the unit.
    pub(crate) after: usize,
    /// Whether it was moved here: then the bytes that it was moved from may still be good.
    pub(crate) moved: bool,
    /// What its envelope says, which the unit's CRC covers: whose it is, and where it belongs.
    pub(crate) lost: Option<(Role, LogName, Facts)>,
    /// First byte in the unit.
    pub(crate) from: u32,
    /// Byte after the last.
    pub(crate) to: u32,
    /// What is known of it.
    pub(crate) detail: String,
}

/// A unit that was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct DecodedUnit {
    /// When it was stored, microseconds since 1970.
    pub(crate) stored_at_us: u64,
    /// Its records, without those whose batch is bad.
    pub(crate) records: Vec<Located>,
    /// Batches that are bad.
    pub(crate) bad: Vec<BadBatch>,
}

/// Why a unit cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnitFault {
    /// It is not (or not wholly) what was written.
    Damaged,
    /// It is what was written, by a version that knows more.
    Unknown,
}

impl DecodedUnit {
    /// Reads a unit that must have this CRC. With `trust_bodies` the bodies of batches are not hashed.
    pub(crate) fn decode(bytes: &Bytes, crc: u32, trust_bodies: bool) -> Result<Self, UnitFault> {
        if unit_crc(bytes) != Some(crc) {
            return Err(UnitFault::Damaged);
        }
        Self::decode_fields(bytes, trust_bodies).ok_or(UnitFault::Unknown)
    }

    fn decode_fields(bytes: &Bytes, trust_bodies: bool) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let mut unit = Self { stored_at_us: fields.u64()?, ..Self::default() };
        let count = fields.u32()?;
        for _ in 0..count {
            let kind = fields.u8()?;
            let payload = fields.block()?;
            let end = bytes.len() - fields.rest().len();
            let payload = bytes.get(end - payload.len()..end).map(|found| bytes.slice_ref(found))?;
            unit.read_record(kind, &payload, end, trust_bodies)?;
        }
        fields.is_empty().then_some(unit)
    }

    fn read_record(&mut self, kind: u8, payload: &Bytes, end: usize, trust_bodies: bool) -> Option<()> {
        if kind & BODIED == 0 {
            let record = read_plain(kind, payload)?;
            self.records.push(Located { record, batch_at: 0 });
            return Some(());
        }
        let mut fields = Fields::new(payload);
        let mut head = Fields::new(fields.block()?);
        let stored_at_us = match kind {
            APPEND => 0,
            MOVED => head.u64()?,
            _ => return None,
        };
        let role = role_of(head.u8()?)?;
        let bytes = payload.slice(payload.len() - fields.rest().len() - head.rest().len()..);
        let from = end - bytes.len();
        match Batch::decode(bytes.clone(), usize::MAX, trust_bodies) {
            Ok(batch) => {
                let record = match kind {
                    APPEND => Record::Entry(Entry::Append { role, batch }),
                    _ => Record::Moved { stored_at_us, role, batch },
                };
                self.records.push(Located { record, batch_at: from as u32 });
            }
            Err(e) => {
                let envelope = Batch::decode(bytes, usize::MAX, true).ok();
                let lost = envelope.map(|batch| (role, batch.header().log.clone(), Facts::from(&batch)));
                let after = self.records.len();
                self.bad.push(BadBatch {
                    after,
                    moved: kind == MOVED,
                    lost,
                    from: from as u32,
                    to: end as u32,
                    detail: e.to_string(),
                });
            }
        }
        Some(())
    }
}

/// CRC32C over a unit without bodies, of whatever kinds its entries are; `None` where its lengths do not fit together.
pub(super) fn unit_crc(bytes: &[u8]) -> Option<u32> {
    let mut crc = 0;
    let mut from = 0;
    let mut at = UNIT_HEAD_BYTES;
    while at < bytes.len() {
        let mut fields = Fields::new(bytes.get(at..)?);
        let kind = fields.u8()?;
        let payload = fields.block()?;
        let next = at + ENTRY_HEAD_BYTES + payload.len();
        if kind & BODIED != 0 {
            let mut fields = Fields::new(payload);
            fields.block()?;
            crc = crc32c::crc32c_append(crc, bytes.get(from..next - fields.rest().len())?);
            from = next;
        }
        at = next;
    }
    Some(crc32c::crc32c_append(crc, bytes.get(from..)?))
}

fn read_plain(kind: u8, payload: &Bytes) -> Option<Record> {
    let mut fields = Fields::new(payload);
    let entry = match kind {
        3 => {
            Entry::BeginCopy { log: fields.log()?, at: fields.place()?, chain: fields.option::<Chain>(Fields::chain)? }
        }
        4 => Entry::Hole { log: fields.log()?, hole: read_hole(&mut fields)? },
        5 => Entry::Rekind {
            log: fields.log()?,
            hole: read_hole(&mut fields)?,
            was: HoleKind::from_number(fields.u8()?)?,
        },
        6 => Entry::Trim { log: fields.log()?, to: fields.place()? },
        7 => Entry::Drop { log: fields.log()? },
        8 => Entry::Put {
            table: table_of(fields.u8()?)?,
            key: Bytes::copy_from_slice(fields.block()?),
            value: Bytes::copy_from_slice(fields.block()?),
        },
        9 => Entry::Delete { table: table_of(fields.u8()?)?, key: Bytes::copy_from_slice(fields.block()?) },
        _ => return read_own(kind, payload),
    };
    fields.is_empty().then_some(Record::Entry(entry))
}

fn read_own(kind: u8, payload: &Bytes) -> Option<Record> {
    let mut fields = Fields::new(payload);
    let number = fields.u64()?;
    let record = match kind {
        10 => Record::CheckpointBegin { number, as_of: fields.position()?, sequence: fields.u64()? },
        11 => {
            let part = fields.u32()?;
            return Some(Record::CheckpointPart { number, part, body: payload.slice_ref(fields.rest()) });
        }
        12 => Record::CheckpointEnd { number, parts: fields.u32()? },
        13 => Record::Reclaimed { segment: number },
        _ => return None,
    };
    fields.is_empty().then_some(record)
}
