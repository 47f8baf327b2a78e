//! Giving space back: index entries of what was trimmed or dropped, then whole segments.

use std::sync::atomic::Ordering;

use seaway_federation_proto::ids::{Incarnation, Offset};

use super::{
    apply::ALL,
    checkpoint::Failed,
    index::{BatchEntry, Family, IndexError, batch_key, incarnation_key, log_key, segment_key, split_batch_key},
    moving::{Moving, past_bound},
    record::Record,
    segment,
    shared::Shared,
};
use crate::log::contract::Poisoned;

/// Index entries that are removed at once.
const CHUNK: usize = 4096;
/// A checkpoint before its time must free so many times its own size.
const CHECKPOINTS_WORTH: u64 = 4;

impl Shared {
    /// See [`crate::log::contract::CommitLog::reclaim`].
    pub(crate) fn reclaim_space(&self) -> Result<u64, Poisoned> {
        let mut moving = self.moving.lock(); // one at a time
        if let Some(poisoned) = self.queue.poisoned() {
            return Err(poisoned);
        }
        match self.reclaim_steps(&mut moving) {
            Ok(bytes) => Ok(bytes),
            Err(Failed::Stopped(poisoned)) => Err(poisoned),
            Err(Failed::Index(e)) if e.is_no_room() => {
                tracing::warn!("{e}; space is given back when there is room for that");
                Ok(0)
            }
            Err(Failed::Index(e)) => {
                let poisoned = Poisoned { why: e.to_string().into() };
                self.queue.poison(poisoned.clone());
                Err(poisoned)
            }
        }
    }

    fn reclaim_steps(&self, moving: &mut Moving) -> Result<u64, Failed> {
        self.collect_garbage()?;
        if self.checkpoint_is_due() || self.checkpoint_frees() {
            self.write_checkpoint()?;
            self.index.settle()?; // its snapshot is gone: RocksDB may compact more
        }
        let mut bytes = 0;
        let dead = self.dead_segments();
        if !dead.is_empty() {
            // What the segments held must never be asked for again, even if the node stops now.
            self.index.flush(true)?;
        }
        for number in dead {
            bytes += self.give_back(number)?;
        }
        bytes += self.move_out(moving)?;
        if !self.figures.no_room.load(Ordering::Relaxed) {
            self.keep_ballast();
        }
        let again = self.has_to_move(moving) || self.checkpoint_frees();
        self.figures.reclaim_again.store(again, Ordering::Relaxed);
        Ok(bytes)
    }

    fn checkpoint_is_due(&self) -> bool {
        let last = self.checkpoints.lock().complete.last().map(|(_, as_of, _)| *as_of).unwrap_or_default();
        let existing = self.existing.lock();
        let since: u64 = existing
            .range(last.segment..)
            .map(|(number, len)| if *number == last.segment { len.saturating_sub(last.at) } else { *len })
            .sum();
        since >= self.config.checkpoint_bytes
    }

    /// Whether a checkpoint before its time is what dead bytes wait for: the room is short or the dead share past its bound,
    /// and segments that the checkpoints keep hold enough of them to be worth it.
    fn checkpoint_frees(&self) -> bool {
        let keep_from = self.checkpoints.lock().keep_from();
        let Some(current) = self.existing.lock().keys().next_back().copied() else { return false };
        let held = self.candidates(keep_from.min(current)..current);
        let dead: u64 = held.iter().map(|segment| segment.bytes.saturating_sub(segment.live)).sum();
        let checkpoint = self.figures.checkpoint_bytes.load(Ordering::Relaxed);
        let worth = self.config.segment_bytes.max(checkpoint.saturating_mul(CHECKPOINTS_WORTH));
        dead >= worth && (self.is_short() || past_bound(&self.candidates(..current), self.config.dead_share_max))
    }

    /// Segments before both checkpoints in which nothing lives.
    fn dead_segments(&self) -> Vec<u64> {
        let keep_from = self.checkpoints.lock().keep_from();
        self.candidates(..keep_from).into_iter().filter(|segment| segment.live == 0).map(|s| s.number).collect()
    }

    /// Notes durably that a segment goes, and removes its file; answers its bytes.
    pub(crate) fn give_back(&self, number: u64) -> Result<u64, Failed> {
        self.write_own(Record::Reclaimed { segment: number })?;
        Ok(self.remove_segment(number).map_err(|e| Poisoned { why: e.into() })?)
    }

    fn remove_segment(&self, number: u64) -> Result<u64, String> {
        let path = self.segment_path(number);
        let failed = |e: std::io::Error| format!("removing {} failed: {e}", path.display());
        self.open_segments.lock().remove(&number);
        match self.config.files.remove(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {} // somebody was faster
            done => done.map_err(failed)?,
        }
        self.config.files.sync_dir(&self.config.dir.join(segment::DIRECTORY)).map_err(failed)?;
        let bytes = self.existing.lock().remove(&number).unwrap_or(0);
        tracing::info!(segment = number, bytes, "a segment was removed");
        Ok(bytes)
    }

    /// Removes the index entries of what trims and drops have noted, and counts their bytes as dead.
    pub(crate) fn collect_garbage(&self) -> Result<(), IndexError> {
        let mut notes = Vec::new();
        self.index.visit(Family::Garbage, b"", b"", |key, _| {
            notes.extend(split_batch_key(key));
            true
        })?;
        for (id, incarnation, to) in notes {
            while self.collect_chunk(id, incarnation, to)? {}
            let mut changes = self.index.changes();
            changes.delete(Family::Garbage, &batch_key(id, incarnation, to))?;
            if incarnation == ALL {
                changes.delete_range(Family::Fills, &log_key(id), &log_key(id + 1))?;
            }
            self.write_index(changes)?;
        }
        Ok(())
    }

    /// Answers whether there may be more.
    fn collect_chunk(&self, id: u64, incarnation: Incarnation, to: Offset) -> Result<bool, IndexError> {
        let whole = log_key(id);
        let one = incarnation_key(id, incarnation);
        let prefix = if incarnation == ALL { whole.as_slice() } else { one.as_slice() };
        let mut found = Vec::with_capacity(CHUNK);
        self.index.visit(Family::Batches, prefix, b"", |key, value| {
            let below = split_batch_key(key).filter(|(_, _, offset)| *offset < to);
            if let (Some(_), Some(entry)) = (below, BatchEntry::decode(value)) {
                found.push((key.to_vec(), entry));
            }
            below.is_some() && found.len() < CHUNK
        })?;
        if found.is_empty() {
            return Ok(false);
        }
        let mut changes = self.index.changes();
        let mut space = self.space.lock(); // held over the write: the storage thread writes these counters too
        let mut touched = std::collections::BTreeSet::new();
        for (key, entry) in &found {
            changes.delete(Family::Batches, key)?;
            changes.delete(Family::Fills, key)?;
            space.entry(entry.position.segment).or_default().dead += u64::from(entry.length);
            touched.insert(entry.position.segment);
        }
        for segment in touched {
            let dead = space.get(&segment).map_or(0, |space| space.dead);
            changes.put(Family::Segments, &segment_key(segment, true), &dead.to_le_bytes())?;
        }
        self.write_index(changes)?;
        Ok(found.len() == CHUNK)
    }
}
