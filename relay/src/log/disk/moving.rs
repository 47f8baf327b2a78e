//! Moving: what still lives in old segments is copied to the end, so that their files can go.
//!
//! A segment goes as a whole, so one thin log that is kept for a week would keep all that a busy one wrote beside it in that
//! week. *Old* segments are those before both checkpoints. Once the dead share of their bytes passes
//! [`DiskConfig::dead_share_max`](super::DiskConfig::dead_share_max), the one with the largest dead share (the best yield for
//! what has to be written) is emptied, then the next, until the share is below the bound again. A bound of `b` costs at
//! most `1 / (1 - b)` bytes of old segments for each byte that lives in them, and at most `(1 - b) / b` bytes written for each
//! byte given back; since the most dead goes first, it is far less where logs are kept for different times.
//!
//! # One segment
//! Its records are read in order, and the index is asked for each batch whether it still points there: then the batch
//! lives and is copied unchanged as a *Moved* record, with the time of its first appending. When that is
//! durable, the index follows ([`super::apply`]); a trim, a drop or a fence in between wins, because a *Moved* record counts
//! only within what the copy holds. What the counters say to live there after that was hidden from the walk by
//! damage: the index is gone through for what points into the segment, and each batch is read by itself; a
//! good one is moved, a bad one reported and fenced, none forgotten. Only when nothing lives there any more is *Reclaimed* written, and
//! durable, before the file goes. A reader that still has the old position finds no file, and looks again.
//!
//! # Its rate, and what it may hold
//! Moving has a rate of its own ([`Pace`], by the log's injected clock) and never waits for it: [`CommitLog::reclaim`] moves
//! what the rate allows at that moment and returns; whoever calls it, calls it again as long as
//! [`LogStats::reclaim_again`] says so. It goes through the append queue like everybody, one unit of [`UNIT_BYTES`] at a time, and
//! waits for room there. At most that, and one group of a segment, is in memory. Once publishers are refused for lack of room the rate does not
//! count: only this brings them back. It may use the disk's reserve, but only for a segment
//! whose living batches fit into what is free.
//!
//! [`CommitLog::reclaim`]: crate::log::contract::CommitLog::reclaim
//! [`LogStats::reclaim_again`]: crate::log::contract::LogStats::reclaim_again

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use seaway_federation_proto::{
    envelope::Batch,
    ids::{Incarnation, Offset, Place},
};

use super::{
    apply::holds,
    cell::Cell,
    checkpoint::Failed,
    codec::Position,
    index::{BatchEntry, Family, IndexError, batch_key, split_batch_key},
    record::Record,
    scan::{Depth, FoundGroup, Scanner, Step},
    segment::HEADER_BYTES,
    shared::{SegmentSpace, Shared},
    survey,
};
use crate::log::contract::{Damage, Role};

/// Bytes of batches that one unit moves, unless one batch alone is larger.
const UNIT_BYTES: usize = 1 << 20;
/// Batches that one unit moves at most: what the storage thread does for them keeps publishers waiting.
const UNIT_BATCHES: usize = 256;
/// What a batch costs of the rate beside its bytes: the look-ups in the index.
const BATCH_COST_BYTES: u64 = 4 << 10;
/// Reading is so many times cheaper than writing, as the rate counts.
const READ_DISCOUNT: u64 = 16;
/// One call of `reclaim` reads no more than this: it must come back soon when the node stops.
const CALL_BYTES_MAX: u64 = 256 << 20;
/// Of a disk that is short of room, segments that yield at least this part of their bytes are emptied, whatever the bound.
const YIELD_MIN: u64 = 8;
/// Index entries that are looked at in one go where damage hides batches.
const HIDDEN_CHUNK: usize = 1024;

/// A token bucket in bytes. Going back, the clock gives nothing; leaping forward, no more than half a second's worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pace {
    rate: u64,
    tokens: i64,
    at_us: u64,
}

impl Pace {
    /// So many bytes a second; all of them at once if it is `u64::MAX`.
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, tokens: Self::burst(rate), at_us: 0 }
    }

    fn burst(rate: u64) -> i64 {
        i64::try_from((rate / 2).max(UNIT_BYTES as u64)).unwrap_or(i64::MAX)
    }

    /// Whether something may be moved now; what that costs is said afterwards.
    pub(crate) fn allows(&mut self, now_us: u64) -> bool {
        let passed = now_us.saturating_sub(self.at_us).min(500_000);
        self.at_us = now_us;
        let more = u128::from(self.rate) * u128::from(passed) / 1_000_000;
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_add(more).min(Self::burst(self.rate));
        self.tokens > 0
    }

    /// Takes what was used, beyond what there is if need be.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// An old segment, as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its number.
    pub(crate) number: u64,
    /// Its bytes on the disk.
    pub(crate) bytes: u64,
    /// Bytes of batches that live in it.
    pub(crate) live: u64,
}

impl Candidate {
    fn dead(&self) -> u64 {
        self.bytes.saturating_sub(self.live)
    }

    /// Whether it gives more than the other for what has to be written.
    fn yields_more(&self, other: &Self) -> bool {
        let (one, two) =
            (u128::from(self.dead()) * u128::from(other.bytes), u128::from(other.dead()) * u128::from(self.bytes));
        one > two || (one == two && self.number < other.number)
    }
}

/// Whether more than `share` of these bytes are dead.
pub(crate) fn past_bound(segments: &[Candidate], share: f64) -> bool {
    let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let dead: u64 = segments.iter().map(Candidate::dead).sum();
    dead as f64 > bytes as f64 * share
}

/// The old segment to be emptied next, of those whose living bytes fit into `room`: the one with the largest dead share, if
/// more than `share` of them all is dead, or if the disk is `short` and it yields enough.
pub(crate) fn choose(old: &[Candidate], share: f64, short: bool, room: u64) -> Option<u64> {
    let past = past_bound(old, share);
    let worth = |segment: &&Candidate| segment.dead() > 0 && (past || segment.dead() >= segment.bytes / YIELD_MIN);
    let fitting = old.iter().filter(|segment| segment.live.saturating_add(HEADER_BYTES) <= room);
    let best = fitting.filter(worth).reduce(|best, next| if next.yields_more(best) { next } else { best });
    best.filter(|_| past || short).map(|segment| segment.number)
}

/// The segment that is being emptied, and how far that is.
#[derive(Debug)]
struct Victim {
    segment: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its records are read in order.
    Walk(Box<Scanner>),
    /// The index is gone through from this key on for what the walk did not find.
    Hidden { from: Vec<u8>, met: bool },
}

/// What moving remembers between two calls.
#[derive(Debug)]
pub(crate) struct Moving {
    pace: Pace,
    victim: Option<Victim>,
    /// Segments that could not be emptied; not tried again in this life of the process.
    stuck: BTreeSet<u64>,
}

impl Moving {
    pub(crate) fn new(rate: u64) -> Self {
        Self { pace: Pace::new(rate), victim: None, stuck: BTreeSet::new() }
    }
}

/// Batches on their way.
#[derive(Default)]
struct Load {
    records: Vec<Record>,
    bytes: usize,
}

impl Load {
    /// A copy: the batch as it was read holds the memory of its whole group.
    fn push(&mut self, batch: &Batch, role: Role, stored_at_us: u64) {
        let bytes = Bytes::from([batch.head().as_ref(), batch.body().as_ref()].concat());
        if let Ok(batch) = Batch::decode(bytes, usize::MAX, true) {
            self.bytes += batch.len();
            self.records.push(Record::Moved { stored_at_us, role, batch });
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= UNIT_BYTES || self.records.len() >= UNIT_BATCHES
    }
}

/// Whether a stage of a victim has come to its end.
#[derive(PartialEq, Eq)]
enum Went {
    /// There is more, for another call.
    On,
    /// Nothing is left to do.
    Through,
}

impl Shared {
    /// Empties old segments as far as the rate allows now; answers how many bytes of files went.
    pub(crate) fn move_out(&self, moving: &mut Moving) -> Result<u64, Failed> {
        let (mut freed, mut left) = (0, CALL_BYTES_MAX);
        loop {
            if moving.victim.is_none() {
                let Some(segment) = self.next_victim(moving) else { return Ok(freed) };
                moving.victim = Some(self.begin_victim(segment));
            }
            let Some(mut victim) = moving.victim.take() else { return Ok(freed) };
            let went = match &mut victim.stage {
                Stage::Walk(scanner) => self.walk_segment(scanner, &mut moving.pace, &mut left)?,
                Stage::Hidden { from, met } => self.uncover(victim.segment, from, met, &mut moving.pace, &mut left)?,
            };
            if went == Went::On {
                moving.victim = Some(victim);
                return Ok(freed);
            }
            freed += self.end_stage(moving, victim)?;
        }
    }

    /// Whether there is something to move, now or when the rate allows it.
    pub(crate) fn has_to_move(&self, moving: &Moving) -> bool {
        moving.victim.is_some() || self.next_victim(moving).is_some()
    }

    fn next_victim(&self, moving: &Moving) -> Option<u64> {
        let keep_from = self.checkpoints.lock().keep_from();
        let old: Vec<Candidate> =
            self.candidates(..keep_from).into_iter().filter(|c| !moving.stuck.contains(&c.number)).collect();
        let free = self.figures.disk_free.load(Ordering::Relaxed);
        let room = if free == 0 && !self.is_short() { u64::MAX } else { free }; // 0: it could not be measured
        choose(&old, self.config.dead_share_max, self.is_short(), room)
    }

    /// Segments in a range of numbers, with what lives in them.
    pub(crate) fn candidates(&self, range: impl std::ops::RangeBounds<u64>) -> Vec<Candidate> {
        let space = self.space.lock();
        let existing = self.existing.lock();
        let of = |(number, bytes): (&u64, &u64)| {
            let live = space.get(number).map_or(0, SegmentSpace::live);
            Candidate { number: *number, bytes: *bytes, live }
        };
        existing.range(range).map(of).collect()
    }

    fn begin_victim(&self, segment: u64) -> Victim {
        let config = &self.config;
        let opened = survey::open_segment(&config.files, &config.dir, segment, Some(&self.identity.directory));
        let scanner = opened.map_err(|e| e.to_string()).and_then(|open| {
            let after = open.header.map_or(0, |header| header.first_sequence.saturating_sub(1));
            let from = Position { segment, at: HEADER_BYTES };
            Scanner::new(open.file, self.group_key(), from, after, Depth::Bodies).map_err(|e| e.to_string())
        });
        tracing::debug!(segment, "moving what lives out of a segment");
        let stage = match scanner {
            Ok(scanner) => Stage::Walk(Box::new(scanner)),
            Err(why) => {
                tracing::warn!(segment, "a segment cannot be read from its beginning ({why}): each batch is looked up");
                Stage::Hidden { from: Vec::new(), met: false }
            }
        };
        Victim { segment, stage }
    }

    /// Whether moving may go on, and has not yet done enough in this call.
    fn may_move(&self, pace: &mut Pace, left: u64) -> bool {
        let allowed = pace.allows((self.config.clock)()); // asked in any case: it counts the time
        left > 0 && (allowed || self.figures.disk_full.load(Ordering::Relaxed))
    }

    fn walk_segment(&self, scanner: &mut Scanner, pace: &mut Pace, left: &mut u64) -> Result<Went, Failed> {
        let mut load = Load::default();
        let went = loop {
            if !self.may_move(pace, *left) {
                break Went::On;
            }
            match scanner.step() {
                Ok(Step::Group(group)) => {
                    let read = group.header.length;
                    *left = left.saturating_sub(read);
                    pace.spend(read / READ_DISCOUNT);
                    self.take_living(&group, &mut load, pace)?;
                }
                Ok(Step::Bad(bad)) => self.tell_damage(scanner.segment(), bad.from, bad.to, &bad.detail),
                Ok(Step::End { .. }) => break Went::Through,
                Err(e) => {
                    tracing::warn!("reading {} failed: {e}", self.segment_name(scanner.segment()));
                    break Went::Through; // what it hid is looked for by itself
                }
            }
        };
        self.write_load(&mut load, pace)?;
        Ok(went)
    }

    fn tell_damage(&self, segment: u64, from: u64, to: u64, detail: &str) {
        self.report_damage(Damage { file: self.segment_name(segment), from, to, detail: detail.to_owned() });
    }

    /// Takes what lives of a group along.
    fn take_living(&self, group: &FoundGroup, load: &mut Load, pace: &mut Pace) -> Result<(), Failed> {
        let segment = group.header.position.segment;
        for bad in group.bad() {
            self.tell_damage(segment, bad.from, bad.to, &bad.detail);
        }
        for found in &group.units {
            let Some(unit) = &found.unit else { continue };
            for located in &unit.records {
                let Some((_, batch)) = located.record.batch() else { continue };
                let position = Position { segment, at: found.from + u64::from(located.batch_at) };
                if let Some((role, entry)) = self.living(batch, position)? {
                    load.push(batch, role, entry.stored_at_us);
                    if load.is_full() {
                        self.write_load(load, pace)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whose the batch is, and its entry, if it is held and this is where the index has it.
    fn living(&self, batch: &Batch, position: Position) -> Result<Option<(Role, BatchEntry)>, IndexError> {
        let Some(cell) = self.cell(&batch.header().log) else { return Ok(None) };
        let (id, role) = {
            let state = cell.state.lock();
            let Some(durable) = state.durable.as_ref().filter(|d| holds(&d.copy, batch)) else { return Ok(None) };
            (durable.id, state.role)
        };
        let entry = self.index.batch(id, batch.begin())?;
        Ok(entry.filter(|entry| entry.position == position).map(|entry| (role, entry)))
    }

    /// Writes what was gathered, and waits until it is durable and the index has followed.
    fn write_load(&self, load: &mut Load, pace: &mut Pace) -> Result<(), Failed> {
        let Load { records, bytes } = std::mem::take(load);
        if records.is_empty() {
            return Ok(());
        }
        let cost = bytes as u64 + records.len() as u64 * BATCH_COST_BYTES;
        self.wait_for_room(bytes)?;
        self.write_all_own(records, bytes)?;
        pace.spend(cost);
        self.figures.moved_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Goes through the index for batches of a segment that the walk did not meet; each is read by itself.
    fn uncover(
        &self,
        segment: u64,
        from: &mut Vec<u8>,
        met: &mut bool,
        pace: &mut Pace,
        left: &mut u64,
    ) -> Result<Went, Failed> {
        let cells: BTreeMap<u64, Arc<Cell>> = {
            let cells: Vec<_> = self.cells.read().values().cloned().collect();
            let id_of = |cell: &Arc<Cell>| cell.state.lock().durable.as_ref().map(|durable| durable.id);
            cells.into_iter().filter_map(|cell| Some((id_of(&cell)?, cell))).collect()
        };
        let mut load = Load::default();
        let went = loop {
            if !self.may_move(pace, *left) {
                break Went::On;
            }
            let found = self.pointing_into(segment, from)?;
            *met |= !found.is_empty();
            let last = found.len() < HIDDEN_CHUNK;
            for (id, place, entry) in found {
                *left = left.saturating_sub(u64::from(entry.length));
                from.clone_from(&batch_key(id, place.incarnation, place.offset + 1).to_vec());
                let Some(cell) = cells.get(&id) else { continue };
                match self.read_or_fence(cell, id, place, &entry) {
                    Ok(Some(batch)) => load.push(&batch, cell.state.lock().role, entry.stored_at_us),
                    Ok(None) => {}
                    Err(why) => return self.give_up(segment, &why, &mut load, pace),
                }
                if load.is_full() {
                    self.write_load(&mut load, pace)?;
                }
            }
            if last {
                break Went::Through;
            }
        };
        self.write_load(&mut load, pace)?;
        Ok(went)
    }

    fn give_up(&self, segment: u64, why: &str, load: &mut Load, pace: &mut Pace) -> Result<Went, Failed> {
        tracing::warn!(segment, "a segment is not emptied for now: {why}");
        self.write_load(load, pace)?;
        Ok(Went::Through)
    }

    /// Some entries, from a key on, that point into a segment.
    pub(crate) fn pointing_into(&self, segment: u64, from: &[u8]) -> Result<Vec<(u64, Place, BatchEntry)>, IndexError> {
        let mut found = Vec::new();
        self.index.visit(Family::Batches, b"", from, |key, value| {
            let at: Option<(u64, Incarnation, Offset)> = split_batch_key(key);
            if let (Some((id, incarnation, offset)), Some(entry)) = (at, BatchEntry::decode(value))
                && entry.position.segment == segment
            {
                found.push((id, Place { incarnation, offset }, entry));
            }
            found.len() < HIDDEN_CHUNK
        })?;
        Ok(found)
    }

    /// What comes after a stage: the file goes, or what is hidden is looked for, or the segment stays for now.
    fn end_stage(&self, moving: &mut Moving, victim: Victim) -> Result<u64, Failed> {
        let segment = victim.segment;
        if matches!(victim.stage, Stage::Hidden { .. }) {
            self.settle_fences()?;
        }
        self.collect_garbage()?;
        let live = self.space.lock().get(&segment).map_or(0, SegmentSpace::live);
        if live == 0 {
            self.index.flush(true)?; // what was there must never be asked for again, even if the node stops now
            return self.give_back(segment);
        }
        match victim.stage {
            Stage::Walk(_) => {
                let stage = Stage::Hidden { from: Vec::new(), met: false };
                moving.victim = Some(Victim { segment, stage });
            }
            Stage::Hidden { met: false, .. } => {
                tracing::warn!(segment, live, "the count of living bytes of a segment was wrong, and is set right");
                let mut space = self.space.lock();
                let counters = space.entry(segment).or_default();
                counters.dead = counters.indexed;
            }
            Stage::Hidden { met: true, .. } => _ = moving.stuck.insert(segment),
        }
        Ok(0)
    }
}

#[cfg(test)]
#[path = "moving_tests.rs"]
mod tests;
