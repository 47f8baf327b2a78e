//! A copy as bytes, for checkpoints: little-endian, lists with their length in front.
//!
//! ```text
//! version u8 = 1 | messages u64 | bytes u64 | newest origin time u64
//! incarnations u32, each: incarnation | flags u8 (1 previous, 2 chain at begin, 4 chain at end, 8 jumped)
//!                         | begin u64 | end u64 | what the flags say, in that order
//! holes u32, each: incarnation | from u64 | to u64 | kind u8 | flags u8 (1 below, 2 above) | chain values
//! forgotten u32, each: incarnation | fence flag u8, incarnation
//! incarnation: counter u64, random u64      place: incarnation, offset u64      chain value: 16 B
//! ```

use std::sync::Arc;

use super::{
    Hole, HoleKind, LogCopy,
    forgotten::{FORGOTTEN_MAX, Forgotten},
    log_copy::{Edged, HOLES_MAX, Held, INCARNATIONS_MAX},
};
use crate::{
    envelope::Chain,
    ids::{Incarnation, Place},
};

const VERSION: u8 = 1;

/// Bytes that are not a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state of a log's copy is malformed: {0}")]
pub struct DecodeError(pub &'static str);

const SHORT: DecodeError = DecodeError("it is cut short");

impl HoleKind {
    /// The kind's number on disk; permanent.
    pub fn number(self) -> u8 {
        match self {
            HoleKind::Pending => 1,
            HoleKind::NotWanted => 2,
            HoleKind::Lost => 3,
        }
    }

    /// The kind of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        [HoleKind::Pending, HoleKind::NotWanted, HoleKind::Lost].into_iter().find(|kind| kind.number() == number)
    }
}

fn put_u64(into: &mut Vec<u8>, value: u64) {
    into.extend_from_slice(&value.to_le_bytes());
}

fn put_len(into: &mut Vec<u8>, len: usize) {
    into.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_incarnation(into: &mut Vec<u8>, incarnation: Incarnation) {
    put_u64(into, incarnation.counter);
    put_u64(into, incarnation.random);
}

fn put_chain(into: &mut Vec<u8>, chain: Option<Chain>) {
    if let Some(chain) = chain {
        into.extend_from_slice(&chain.0);
    }
}

fn flags(of: &[bool]) -> u8 {
    of.iter().enumerate().map(|(bit, set)| u8::from(*set) << bit).sum()
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (front, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*front)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }
    fn len(&mut self, max: usize) -> Result<usize, DecodeError> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        if len > max { Err(DecodeError("a list is too long")) } else { Ok(len) }
    }
    fn incarnation(&mut self) -> Result<Incarnation, DecodeError> {
        Ok(Incarnation { counter: self.u64()?, random: self.u64()? })
    }
    fn chain(&mut self, there: bool) -> Result<Option<Chain>, DecodeError> {
        if there { self.array().map(|bytes| Some(Chain(bytes))) } else { Ok(None) }
    }
    fn held(&mut self) -> Result<Held, DecodeError> {
        let incarnation = self.incarnation()?;
        let flags = self.u8()?;
        let (begin, end) = (self.u64()?, self.u64()?);
        let previous = match flags & 1 {
            0 => None,
            _ => Some(Place { incarnation: self.incarnation()?, offset: self.u64()? }),
        };
        let chain_at_begin = self.chain(flags & 2 != 0)?;
        let chain_at_end = self.chain(flags & 4 != 0)?;
        if begin > end {
            return Err(DecodeError("an incarnation ends before it begins"));
        }
        Ok(Held { incarnation, previous, jumped: flags & 8 != 0, begin, end, chain_at_begin, chain_at_end })
    }
    fn hole(&mut self) -> Result<Edged, DecodeError> {
        let incarnation = self.incarnation()?;
        let (from, to) = (self.u64()?, self.u64()?);
        let kind = HoleKind::from_number(self.u8()?).ok_or(DecodeError("a hole is of no known kind"))?;
        let flags = self.u8()?;
        let (below, above) = (self.chain(flags & 1 != 0)?, self.chain(flags & 2 != 0)?);
        if from >= to {
            return Err(DecodeError("a hole is empty"));
        }
        Ok(Edged { hole: Hole { incarnation, from, to, kind }, below, above })
    }
}

impl LogCopy {
    /// Appends the copy's state to `into`.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.push(VERSION);
        put_u64(into, self.messages);
        put_u64(into, self.bytes);
        put_u64(into, self.newest_origin_time_us);
        put_len(into, self.incarnations.len());
        for held in &self.incarnations {
            put_incarnation(into, held.incarnation);
            let chains = [held.chain_at_begin.is_some(), held.chain_at_end.is_some()];
            into.push(flags(&[held.previous.is_some(), chains[0], chains[1], held.jumped]));
            put_u64(into, held.begin);
            put_u64(into, held.end);
            if let Some(previous) = held.previous {
                put_incarnation(into, previous.incarnation);
                put_u64(into, previous.offset);
            }
            put_chain(into, held.chain_at_begin);
            put_chain(into, held.chain_at_end);
        }
        put_len(into, self.holes.len());
        for edged in &self.holes {
            put_incarnation(into, edged.hole.incarnation);
            put_u64(into, edged.hole.from);
            put_u64(into, edged.hole.to);
            into.push(edged.hole.kind.number());
            into.push(flags(&[edged.below.is_some(), edged.above.is_some()]));
            put_chain(into, edged.below);
            put_chain(into, edged.above);
        }
        put_len(into, self.forgotten.named.len());
        for incarnation in &self.forgotten.named {
            put_incarnation(into, *incarnation);
        }
        into.push(flags(&[self.forgotten.up_to.is_some()]));
        if let Some(up_to) = self.forgotten.up_to {
            put_incarnation(into, up_to);
        }
    }

    /// Reads what [`LogCopy::encode`] wrote; all of `bytes` must be used up.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        if reader.u8()? != VERSION {
            return Err(DecodeError("it is of a version that this build does not read"));
        }
        let (messages, bytes, newest_origin_time_us) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let count = reader.len(INCARNATIONS_MAX)?;
        let incarnations = (0..count).map(|_| reader.held()).collect::<Result<Vec<_>, _>>()?;
        let count = reader.len(HOLES_MAX)?;
        let holes = (0..count).map(|_| reader.hole()).collect::<Result<Vec<_>, _>>()?;
        let count = reader.len(FORGOTTEN_MAX)?;
        let named = (0..count).map(|_| reader.incarnation()).collect::<Result<Vec<_>, _>>()?;
        let up_to = if reader.u8()? == 0 { None } else { Some(reader.incarnation()?) };
        let forgotten = Arc::new(Forgotten { named, up_to });
        let copy = Self { incarnations, holes, forgotten, messages, bytes, newest_origin_time_us };
        if !reader.0.is_empty() {
            return Err(DecodeError("bytes are left over"));
        }
        copy.check_order()?;
        Ok(copy)
    }

    /// Whether the lists are in the order that every look-up relies on.
    fn check_order(&self) -> Result<(), DecodeError> {
        let ordered = self.incarnations.is_sorted_by(|a, b| a.incarnation < b.incarnation)
            && self.forgotten.named.is_sorted_by(|a, b| a < b)
            && self.holes.is_sorted_by(|a, b| (a.hole.incarnation, a.hole.to) <= (b.hole.incarnation, b.hole.from));
        let inside = self.holes.iter().all(|e| {
            self.held(e.hole.incarnation).is_some_and(|held| held.begin <= e.hole.from && e.hole.to <= held.end)
        });
        if self.incarnations.is_empty() || !ordered || !inside {
            return Err(DecodeError("its lists are out of order"));
        }
        Ok(())
    }
}
