//! Bringing what is durable in the segments into the index and into memory.
//!
//! The same code runs after each group that was written and, while opening, for each group that is
//! read back. Only the latter is *tolerant*: where damage took batches away, what follows them is held
//! above a hole that is fenced; live, a record that does not fit is a fault of the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use seaway_federation_proto::{
    copies::{Accepted, AppendRefusal, Facts, Hole, HoleKind, LogCopy},
    envelope::{Batch, Chain},
    ids::{Incarnation, LogName, Offset, Place},
};

use super::{
    cell::{Cell, CellState, Durable, Middle},
    codec::{Position, PutFields},
    index::{
        Applied, BatchEntry, Changes, Family, IndexError, batch_key, incarnation_key, log_key, segment_key,
        split_batch_key,
    },
    record::{Record, role_number},
    shared::Shared,
};
use crate::log::contract::{Advanced, Damage, Entry, Role};

/// Below every offset of every incarnation of a log: all of it is garbage.
pub(crate) const ALL: Incarnation = Incarnation { counter: u64::MAX, random: u64::MAX };

/// Where a batch stands in the segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    /// First byte.
    pub(crate) position: Position,
    /// When it was appended, microseconds since 1970.
    pub(crate) at_us: u64,
}

/// Collects the changes of one group.
pub(crate) struct Applier<'a> {
    shared: &'a Shared,
    changes: Changes<'a>,
    touched: BTreeMap<LogName, Touched>,
    appended: Vec<(Arc<Cell>, (Incarnation, Offset))>,
    indexed: BTreeMap<u64, u64>,
    dead: BTreeMap<u64, u64>,
    tolerant: bool,
    /// Entries that are put and that the index does not show yet; only while opening.
    put: BTreeMap<(u64, Incarnation, Offset), BatchEntry>,
    /// Of these, those that fill a hole.
    put_fills: BTreeSet<(u64, Incarnation, Offset)>,
    /// What did not fit, for the report of the opening.
    pub(crate) misfits: Vec<String>,
    /// Batches that were moved to bytes which are bad now; see [`Applier::fence_moved`].
    pub(crate) moved_bad: Vec<(LogName, Facts)>,
}

struct Touched {
    cell: Arc<Cell>,
    shape_changed: bool,
}

impl<'a> Applier<'a> {
    pub(crate) fn new(shared: &'a Shared, tolerant: bool) -> Self {
        Self {
            shared,
            changes: shared.index.changes(),
            touched: BTreeMap::new(),
            appended: Vec::new(),
            indexed: BTreeMap::new(),
            dead: BTreeMap::new(),
            tolerant,
            put: BTreeMap::new(),
            put_fills: BTreeSet::new(),
            misfits: Vec::new(),
            moved_bad: Vec::new(),
        }
    }

    /// Takes one record; `stored` says where its batch is.
    pub(crate) fn apply(&mut self, record: &Record, stored: Stored) -> Result<(), IndexError> {
        match record {
            Record::Entry(Entry::Append { role, batch }) => self.append(*role, batch, stored),
            Record::Moved { stored_at_us, role, batch } => {
                self.moved(*role, batch, Stored { at_us: *stored_at_us, ..stored })
            }
            Record::Entry(Entry::Put { table, key, value }) => {
                self.changes.put(Family::State, &state_key(*table as u8, key), value)
            }
            Record::Entry(Entry::Delete { table, key }) => {
                self.changes.delete(Family::State, &state_key(*table as u8, key))
            }
            Record::Entry(Entry::BeginCopy { log, at, chain }) => {
                let cell = self.shared.cell_or_new(log, Role::Copy);
                let mut state = cell.state.lock();
                if state.durable.is_some() {
                    return self.misfit(log, "it begins a copy that is there");
                }
                if self.tolerant {
                    state.role = Role::Copy; // live, the submitter has set it
                }
                self.create(&mut state, LogCopy::begin(*at, *chain))?;
                drop(state);
                self.touch(&cell, true);
                Ok(())
            }
            Record::Entry(Entry::Drop { log }) => self.drop_log(log),
            Record::Entry(Entry::Trim { log, to }) => self.trim(log, *to),
            Record::Entry(Entry::Hole { log, hole }) => self.change(log, |copy| copy.hole(*hole).map_err(|e| e.0)),
            Record::Entry(Entry::Rekind { log, hole, was }) => {
                self.change(log, |copy| copy.rekind(*hole, *was).map_err(|e| e.0))
            }
            Record::CheckpointBegin { number, as_of, sequence } => {
                self.shared.checkpoints.lock().begin(*number, *as_of, *sequence);
                Ok(())
            }
            Record::CheckpointPart { .. } => Ok(()),
            Record::CheckpointEnd { number, .. } => {
                let mut checkpoints = self.shared.checkpoints.lock();
                checkpoints.end(*number);
                self.changes.put(Family::Meta, b"checkpoints", &checkpoints.encode())
            }
            Record::Reclaimed { segment } => {
                self.shared.space.lock().remove(segment);
                self.dead.remove(segment); // what was moved out of it in the same group needs no count any more
                self.changes.delete(Family::Segments, &segment_key(*segment, false))?;
                self.changes.delete(Family::Segments, &segment_key(*segment, true))
            }
        }
    }

    fn misfit(&mut self, log: &LogName, why: &str) -> Result<(), IndexError> {
        let what = format!("a record of {log} does not fit: {why}");
        if !self.tolerant {
            return Err(IndexError(what));
        }
        self.misfits.push(what);
        Ok(())
    }

    fn touch(&mut self, cell: &Arc<Cell>, shape_changed: bool) {
        match self.touched.get_mut(&cell.name) {
            Some(touched) => touched.shape_changed |= shape_changed,
            None => {
                self.touched.insert(cell.name.clone(), Touched { cell: Arc::clone(cell), shape_changed });
            }
        }
    }

    fn create(&mut self, state: &mut CellState, copy: LogCopy) -> Result<(), IndexError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        self.changes.set_next_id(id + 1)?;
        state.durable_life += 1;
        state.durable = Some(Durable::new(id, copy));
        Ok(())
    }

    fn append(&mut self, role: Role, batch: &Batch, stored: Stored) -> Result<(), IndexError> {
        let cell = self.shared.cell_or_new(&batch.header().log, role);
        let mut state = cell.state.lock();
        if self.tolerant && (role == Role::Own || state.durable.is_none()) {
            state.role = role;
        }
        let facts = Facts::from(batch);
        let key = (facts.begin.incarnation, facts.begin.offset);
        if state.durable.is_none() {
            match first_copy(&facts) {
                Ok(copy) => self.create(&mut state, copy)?,
                Err(_) if self.tolerant => self.create_above_damage(&mut state, &facts)?,
                Err(e) => return self.misfit(&cell.name, &e.to_string()),
            }
        }
        if self.tolerant {
            state.pending.entry(key).or_insert_with(|| batch.clone());
        }
        match self.append_to(&mut state, &facts, stored) {
            Ok(shape_changed) => {
                drop(state);
                self.appended.push((Arc::clone(&cell), key));
                self.touch(&cell, shape_changed);
                Ok(())
            }
            Err(Misfit::Index(e)) => Err(e),
            Err(Misfit::Refused(AppendRefusal::Repeat(_))) if self.tolerant => {
                state.pending.remove(&key);
                let id = state.durable.as_ref().map(|durable| durable.id);
                drop(state);
                self.relocate(id, &facts, stored)
            }
            Err(Misfit::Refused(e)) => {
                state.pending.remove(&key);
                drop(state);
                self.misfit(&cell.name, &e.to_string())
            }
        }
    }

    /// Makes the copy that a batch goes into whose predecessors were damaged. A log of this node's own began at its first
    /// offset; of another's only its first batch would say where the copy began.
    fn create_above_damage(&mut self, state: &mut CellState, facts: &Facts) -> Result<(), IndexError> {
        if state.role == Role::Own {
            let incarnation = facts.previous.unwrap_or(facts.begin).incarnation;
            return self.create(state, LogCopy::begin(Place { incarnation, offset: 0 }, None));
        }
        self.misfits.push(format!("where the copy began is not known: it begins at {} now", facts.begin));
        self.create(state, LogCopy::begin(facts.begin, Some(facts.chain_before)))
    }

    /// A batch that is bad, of which the envelope is known: the copy holds its range as one that is fenced.
    pub(crate) fn lost(&mut self, role: Role, log: &LogName, facts: &Facts) -> Result<(), IndexError> {
        let cell = self.shared.cell_or_new(log, role);
        let mut state = cell.state.lock();
        if role == Role::Own || state.durable.is_none() {
            state.role = role;
        }
        if state.durable.is_none() {
            match first_copy(facts) {
                Ok(copy) => self.create(&mut state, copy)?,
                Err(_) => self.create_above_damage(&mut state, facts)?,
            }
        }
        let accepted = self.accept(&mut state, facts);
        let CellState { durable: Some(durable), damaged: fenced, .. } = &mut *state else { return Ok(()) };
        let Place { incarnation, offset: from } = facts.begin;
        let hole = Hole { incarnation, from, to: facts.end, kind: HoleKind::Pending };
        match accepted {
            Ok((accepted, _)) => {
                let (below, above) = (Some(facts.chain_before), Some(facts.chain_after));
                if durable.copy.damage(hole, below, above, facts.bytes).is_ok() {
                    fenced.insert((incarnation, from), hole.to);
                    let key = batch_key(durable.id, incarnation, from);
                    self.changes.put(Family::Damage, &key, &hole.to.to_le_bytes())?;
                }
                durable.shape_changed = true;
                let id = durable.id;
                for hole in accepted.dropped {
                    self.forget(id, hole)?;
                }
            }
            Err(Misfit::Refused(AppendRefusal::Repeat(_))) => {} // another copy of it is held
            Err(Misfit::Refused(e)) => return self.misfit(log, &e.to_string()),
            Err(Misfit::Index(e)) => return Err(e),
        }
        drop(state);
        self.touch(&cell, true);
        Ok(())
    }

    /// Accepts a batch into the durable copy, tolerantly above a fenced hole; answers whether one was made.
    fn accept(&mut self, state: &mut CellState, facts: &Facts) -> Result<(Accepted, bool), Misfit> {
        let CellState { durable: Some(durable), pending, damaged: fenced, .. } = state else {
            return Err(Misfit::Index(IndexError("a copy is missing".to_owned())));
        };
        let middle = Middle { index: &self.shared.index, id: Some(durable.id), pending };
        let mut accepted = durable.copy.append(facts, &middle);
        let mut damaged = false;
        if self.tolerant
            && let Err(AppendRefusal::Gap { .. }) = accepted
            && let Some(hole) = hole_below(&durable.copy, facts)
            && durable.copy.hole(hole).is_ok()
        {
            damaged = true;
            durable.shape_changed = true;
            if hole.from < hole.to {
                fenced.insert((hole.incarnation, hole.from), hole.to);
                let key = batch_key(durable.id, hole.incarnation, hole.from);
                self.changes.put(Family::Damage, &key, &hole.to.to_le_bytes()).map_err(Misfit::Index)?;
            }
            accepted = durable.copy.append(facts, &middle);
        }
        Ok((accepted.map_err(Misfit::Refused)?, damaged))
    }

    /// Appends to the durable copy and the index; answers whether the shape changed.
    fn append_to(&mut self, state: &mut CellState, facts: &Facts, stored: Stored) -> Result<bool, Misfit> {
        let begin = facts.begin;
        let (accepted, damaged) = self.accept(state, facts)?;
        let CellState { durable: Some(durable), .. } = state else {
            return Err(Misfit::Index(IndexError("a copy is missing".to_owned())));
        };
        let end_before = durable.copy.range_of(begin.incarnation).map(|(_, end)| end);
        // A batch that is not at the end of its incarnation after being accepted filled a hole.
        let is_fill = end_before.is_some_and(|end| end > facts.end);
        let bytes_before = self.bytes_before(durable, facts, is_fill).map_err(Misfit::Index)?;
        self.put_entry(durable.id, facts, bytes_before, is_fill, stored).map_err(Misfit::Index)?;
        let shape_changed = accepted.shape_changed || damaged || is_fill || !durable.grows_plainly(facts);
        durable.shape_changed |= shape_changed;
        *durable.grown.entry(begin.incarnation).or_default() += facts.bytes;
        let id = durable.id;
        for hole in &accepted.dropped {
            self.forget(id, *hole).map_err(Misfit::Index)?;
            state.recent.retain(|(incarnation, offset), _| {
                *incarnation != hole.incarnation || !(hole.from..hole.to).contains(offset)
            });
        }
        Ok(shape_changed)
    }

    fn bytes_before(&self, durable: &mut Durable, facts: &Facts, is_fill: bool) -> Result<u64, IndexError> {
        let incarnation = facts.begin.incarnation;
        if is_fill {
            return self.appended_below(durable.id, incarnation, facts.begin.offset);
        }
        let total = match durable.appended.get(&incarnation) {
            Some(total) => *total,
            None => self.appended_below(durable.id, incarnation, Offset::MAX)?,
        };
        durable.appended.insert(incarnation, total + facts.bytes);
        Ok(total)
    }

    /// Bytes appended to an incarnation below `offset`, fills left out: what the next entry above says, else what follows from
    /// the last one below.
    fn appended_below(&self, id: u64, incarnation: Incarnation, offset: Offset) -> Result<u64, IndexError> {
        let written = self.shared.index.ceiling(id, incarnation, offset)?;
        let put = self.put.range((id, incarnation, offset)..=(id, incarnation, Offset::MAX)).next();
        let put = put.map(|((_, _, offset), entry)| (*offset, *entry));
        let above = match (written, put) {
            (Some(written), Some(put)) if written.0 < put.0 => Some(written),
            (written, put) => put.or(written),
        };
        if let Some((_, entry)) = above {
            return Ok(entry.bytes_before);
        }
        let Some((begin, entry)) = self.floor(id, incarnation, offset)? else { return Ok(0) };
        let is_fill = self.put_fills.contains(&(id, incarnation, begin))
            || self.shared.index.is_fill(id, Place { incarnation, offset: begin })?;
        Ok(entry.bytes_before + if is_fill { 0 } else { u64::from(entry.length) })
    }

    fn put_entry(
        &mut self,
        id: u64,
        facts: &Facts,
        bytes_before: u64,
        is_fill: bool,
        stored: Stored,
    ) -> Result<(), IndexError> {
        let length = facts.bytes as u32;
        let entry = BatchEntry {
            position: stored.position,
            length,
            count: (facts.end - facts.begin.offset) as u32,
            origin_time_us: facts.origin_time_us,
            stored_at_us: stored.at_us,
            bytes_before,
            chain_after: facts.chain_after,
        };
        self.put_batch(id, facts.begin, entry)?;
        let Place { incarnation, offset } = facts.begin;
        if is_fill {
            if self.tolerant {
                self.put_fills.insert((id, incarnation, offset));
            }
            self.changes.put(Family::Fills, &batch_key(id, incarnation, offset), &length.to_le_bytes())?;
        }
        *self.indexed.entry(stored.position.segment).or_default() += u64::from(length);
        Ok(())
    }

    fn put_batch(&mut self, id: u64, begin: Place, entry: BatchEntry) -> Result<(), IndexError> {
        if self.tolerant {
            self.put.insert((id, begin.incarnation, begin.offset), entry);
        }
        self.changes.put_batch(id, begin.incarnation, begin.offset, &entry)
    }

    /// The last entry at or below `offset`, of those in the index and those on the way there.
    fn floor(
        &self,
        id: u64,
        incarnation: Incarnation,
        offset: Offset,
    ) -> Result<Option<(Offset, BatchEntry)>, IndexError> {
        let written = self.shared.index.floor(id, incarnation, offset)?;
        let put = self.put.range((id, incarnation, 0)..=(id, incarnation, offset)).next_back();
        let put = put.map(|((_, _, offset), entry)| (*offset, *entry));
        Ok(match (written, put) {
            (Some(written), Some(put)) if written.0 > put.0 => Some(written),
            (written, put) => put.or(written),
        })
    }

    /// The entry of the batch that begins there.
    fn exact(&self, id: u64, begin: Place) -> Result<Option<BatchEntry>, IndexError> {
        match self.put.get(&(id, begin.incarnation, begin.offset)) {
            Some(put) => Ok(Some(*put)),
            None => self.shared.index.batch(id, begin),
        }
    }

    /// Removes the entries of a range at once (it may be filled again).
    fn forget(&mut self, id: u64, hole: Hole) -> Result<(), IndexError> {
        let mut found = Vec::new();
        self.shared.index.visit_batches(id, hole.incarnation, hole.from, |offset, entry| {
            let inside = offset < hole.to;
            if inside {
                found.push((offset, entry));
            }
            inside
        })?;
        self.put.retain(|(of, incarnation, offset), _| {
            *of != id || *incarnation != hole.incarnation || !(hole.from..hole.to).contains(offset)
        });
        for (offset, entry) in found {
            self.changes.delete(Family::Batches, &batch_key(id, hole.incarnation, offset))?;
            self.changes.delete(Family::Fills, &batch_key(id, hole.incarnation, offset))?;
            *self.dead.entry(entry.position.segment).or_default() += u64::from(entry.length);
        }
        Ok(())
    }

    /// A batch that is held stands somewhere else too: the newer place counts.
    fn relocate(&mut self, id: Option<u64>, facts: &Facts, stored: Stored) -> Result<(), IndexError> {
        let Some(id) = id else { return Ok(()) };
        let Place { incarnation, offset } = facts.begin;
        let Some((begin, old)) = self.floor(id, incarnation, offset)? else { return Ok(()) };
        if begin != offset { Ok(()) } else { self.relocate_from(id, facts, old, stored) }
    }

    fn relocate_from(&mut self, id: u64, facts: &Facts, old: BatchEntry, stored: Stored) -> Result<(), IndexError> {
        if old.chain_after != facts.chain_after || old.position >= stored.position {
            return Ok(());
        }
        let entry = BatchEntry { position: stored.position, stored_at_us: stored.at_us, ..old };
        self.put_batch(id, facts.begin, entry)?;
        *self.dead.entry(old.position.segment).or_default() += u64::from(old.length);
        *self.indexed.entry(stored.position.segment).or_default() += u64::from(old.length);
        Ok(())
    }

    /// A batch that was copied from an older segment, which may be gone by now: a place for it, whatever the index has. It
    /// counts only within what the copy holds; and where damage took the older bytes, it fills the hole again.
    fn moved(&mut self, role: Role, batch: &Batch, stored: Stored) -> Result<(), IndexError> {
        let fenced = self.shared.cell(&batch.header().log).is_some_and(|cell| {
            let state = cell.state.lock();
            let held = state.durable.as_ref().is_some_and(|durable| holds(&durable.copy, batch));
            !held
                && state.durable.is_some()
                && state.damaged_to(batch.begin()).is_some_and(|to| to >= batch.end_offset())
        });
        if self.tolerant && fenced {
            return self.append(role, batch, stored);
        }
        self.held_batch(batch, stored)
    }

    /// A batch that counts only within what the copy holds: one that was moved, or one from before a checkpoint, which
    /// states the bounds.
    pub(crate) fn held_batch(&mut self, batch: &Batch, stored: Stored) -> Result<(), IndexError> {
        let Some(cell) = self.shared.cell(&batch.header().log) else { return Ok(()) };
        let mut state = cell.state.lock();
        let Some(durable) = state.durable.as_mut().filter(|durable| holds(&durable.copy, batch)) else {
            return Ok(());
        };
        let facts = Facts::from(batch);
        let id = durable.id;
        if let Some(old) = self.exact(id, facts.begin)? {
            drop(state);
            return self.relocate_from(id, &facts, old, stored);
        }
        let known = self.floor(id, facts.begin.incarnation, Offset::MAX)?;
        let is_fill = known.is_some_and(|(begin, _)| begin >= facts.begin.offset);
        let before = self.bytes_before(durable, &facts, is_fill)?;
        self.put_entry(id, &facts, before, is_fill, stored)
    }

    /// Fences a batch whose moved bytes are bad, unless the bytes that it was moved from are still there.
    pub(crate) fn fence_moved(&mut self, log: &LogName, facts: &Facts, segments: &[u64]) -> Result<(), IndexError> {
        let Some(cell) = self.shared.cell(log) else { return Ok(()) };
        let Place { incarnation, offset: from } = facts.begin;
        let hole = Hole { incarnation, from, to: facts.end, kind: HoleKind::Pending };
        let mut state = cell.state.lock();
        let Some(durable) = state.durable.as_ref().filter(|durable| holds_range(&durable.copy, &hole)) else {
            return Ok(());
        };
        let id = durable.id;
        let known = self.floor(id, incarnation, from)?;
        if known.is_some_and(|(begin, entry)| begin == from && segments.contains(&entry.position.segment)) {
            return Ok(());
        }
        state.damaged.insert((incarnation, from), hole.to);
        drop(state);
        let (below, above) = (Some(facts.chain_before), Some(facts.chain_after));
        self.fence(log, &Fence { id, hole, below, above, bytes: facts.bytes }).map(drop)
    }

    fn change(
        &mut self,
        log: &LogName,
        change: impl FnOnce(&mut LogCopy) -> Result<(), &'static str>,
    ) -> Result<(), IndexError> {
        let Some(cell) = self.shared.cell(log) else { return self.misfit(log, "there is no copy") };
        let mut state = cell.state.lock();
        let Some(durable) = state.durable.as_mut() else { return self.misfit(log, "there is no copy") };
        let done = change(&mut durable.copy);
        durable.shape_changed = true;
        drop(state);
        match done {
            Ok(()) => {
                self.touch(&cell, true);
                Ok(())
            }
            Err(why) => self.misfit(log, why),
        }
    }

    fn trim(&mut self, log: &LogName, to: Place) -> Result<(), IndexError> {
        let Some(cell) = self.shared.cell(log) else { return self.misfit(log, "there is no copy") };
        let mut state = cell.state.lock();
        let CellState { durable: Some(durable), pending, recent, .. } = &mut *state else {
            return self.misfit(log, "there is no copy");
        };
        let middle = Middle { index: &self.shared.index, id: Some(durable.id), pending };
        let trimmed = match durable.copy.trim(to, &middle) {
            Ok(trimmed) => trimmed,
            Err(e) => return self.misfit(log, e.0),
        };
        durable.shape_changed = true;
        recent.retain(|key, _| *key >= (trimmed.begin.incarnation, trimmed.begin.offset));
        let id = durable.id;
        for incarnation in trimmed.forgotten {
            self.changes.put(Family::Garbage, &batch_key(id, incarnation, Offset::MAX), b"")?;
            self.changes.delete(Family::Ends, &incarnation_key(id, incarnation))?;
        }
        let key = batch_key(id, trimmed.begin.incarnation, trimmed.begin.offset);
        self.changes.put(Family::Garbage, &key, b"")?;
        drop(state);
        self.touch(&cell, true);
        Ok(())
    }

    fn drop_log(&mut self, log: &LogName) -> Result<(), IndexError> {
        let Some(cell) = self.shared.cell(log) else { return self.misfit(log, "there is no copy") };
        let mut state = cell.state.lock();
        let Some(durable) = state.durable.take() else { return self.misfit(log, "there is no copy") };
        state.recent.clear();
        state.damaged.clear();
        drop(state);
        let id = durable.id;
        self.changes.put(Family::Garbage, &batch_key(id, ALL, Offset::MAX), b"")?;
        self.changes.delete(Family::Logs, &log_key(id))?;
        for family in [Family::Ends, Family::Damage] {
            self.changes.delete_range(family, &log_key(id), &log_key(id + 1))?;
        }
        self.touch(&cell, true);
        Ok(())
    }

    /// Fences a range in the durable copy: damage that a read found. Answers whether the copy held it.
    pub(crate) fn fence(&mut self, log: &LogName, fence: &Fence) -> Result<bool, IndexError> {
        let Some(cell) = self.shared.cell(log) else { return Ok(false) };
        let mut state = cell.state.lock();
        let Some(durable) = state.durable.as_mut().filter(|durable| durable.id == fence.id) else { return Ok(false) };
        if durable.copy.damage(fence.hole, fence.below, fence.above, fence.bytes).is_err() {
            return Ok(false);
        }
        durable.shape_changed = true;
        let key = batch_key(durable.id, fence.hole.incarnation, fence.hole.from);
        self.changes.put(Family::Damage, &key, &fence.hole.to.to_le_bytes())?;
        drop(state);
        self.forget(fence.id, fence.hole)?;
        self.touch(&cell, true);
        Ok(true)
    }

    /// Writes everything as one, and answers what the listener is to be told.
    pub(crate) fn finish(mut self, applied: Option<&Applied>) -> Result<Vec<Advanced>, IndexError> {
        for touched in self.touched.values() {
            store_copy(&mut self.changes, &touched.cell)?;
        }
        if let Some(applied) = applied {
            self.changes.set_applied(applied)?;
        }
        {
            let mut space = self.shared.space.lock(); // held over the write: reclaim writes these counters too
            for (segment, bytes) in &self.indexed {
                let counters = space.entry(*segment).or_default();
                counters.indexed += bytes;
                let key = segment_key(*segment, false);
                self.changes.put(Family::Segments, &key, &counters.indexed.to_le_bytes())?;
            }
            for (segment, bytes) in &self.dead {
                let counters = space.entry(*segment).or_default();
                counters.dead += bytes;
                self.changes.put(Family::Segments, &segment_key(*segment, true), &counters.dead.to_le_bytes())?;
            }
            self.shared.write_index(self.changes)?;
        }
        self.shared.tail_keep(self.appended);
        let mut advanced = Vec::with_capacity(self.touched.len());
        for touched in self.touched.into_values() {
            advanced.push(touched.cell.advanced(touched.shape_changed));
            self.shared.forget_if_empty(&touched.cell);
        }
        Ok(advanced)
    }
}

/// A range that a read found damaged.
#[derive(Debug, Clone)]
pub(crate) struct Fence {
    /// The log's id in the index.
    pub(crate) id: u64,
    /// The range.
    pub(crate) hole: Hole,
    /// Chain value at its lower edge, where known.
    pub(crate) below: Option<Chain>,
    /// Chain value at its upper edge.
    pub(crate) above: Option<Chain>,
    /// Bytes of its batches.
    pub(crate) bytes: u64,
}

enum Misfit {
    Refused(AppendRefusal),
    Index(IndexError),
}

/// The copy, still empty, that a log's very first batch goes into.
pub(crate) fn first_copy(facts: &Facts) -> Result<LogCopy, AppendRefusal> {
    let zero = Place { offset: 0, ..facts.begin };
    if !facts.first_of_incarnation || facts.previous.is_some() || facts.begin != zero {
        return Err(AppendRefusal::Gap { found: facts.begin, expected: zero });
    }
    Ok(LogCopy::begin(zero, Some(Chain::default())))
}

/// The hole that damage left below a batch which lies above what is held: up to the batch, or up to the place that it
/// names as the one before its incarnation.
fn hole_below(copy: &LogCopy, facts: &Facts) -> Option<Hole> {
    let is_new = facts.first_of_incarnation && copy.range_of(facts.begin.incarnation).is_none();
    let Place { incarnation, offset: to } = facts.previous.filter(|_| is_new).unwrap_or(facts.begin);
    let from = match copy.range_of(incarnation) {
        Some((_, end)) => end,
        None => copy.end().offset.min(to),
    };
    (from <= to).then_some(Hole { incarnation, from, to, kind: HoleKind::Pending })
}

/// Whether the batch lies within what the copy holds, no hole included.
pub(crate) fn holds(copy: &LogCopy, batch: &Batch) -> bool {
    let Place { incarnation, offset: from } = batch.begin();
    holds_range(copy, &Hole { incarnation, from, to: batch.end_offset(), kind: HoleKind::Pending })
}

fn holds_range(copy: &LogCopy, range: &Hole) -> bool {
    let inside = |(from, to): (Offset, Offset)| from <= range.from && range.to <= to;
    copy.range_of(range.incarnation).is_some_and(inside)
        && !copy
            .holes()
            .any(|hole| hole.incarnation == range.incarnation && hole.from < range.to && range.from < hole.to)
}

impl Durable {
    /// Whether a stored copy plus a stored end say it all; see [`store_copy`].
    fn grows_plainly(&self, facts: &Facts) -> bool {
        // Right after a hole or at an unknown begin the batch also settles chain values inside the copy.
        self.copy.known_chain(facts.begin).is_none_or(|chain| chain == facts.chain_before)
            && !self
                .copy
                .holes()
                .any(|hole| hole.incarnation == facts.begin.incarnation && hole.to == facts.begin.offset)
            && self.copy.range_of(facts.begin.incarnation).is_some_and(|(begin, _)| begin < facts.begin.offset)
    }
}

/// Stores a copy: whole after a change of its shape, else the ends that grew.
pub(crate) fn store_copy(changes: &mut Changes<'_>, cell: &Cell) -> Result<(), IndexError> {
    let mut state = cell.state.lock();
    let role = state.role;
    let Some(durable) = state.durable.as_mut() else { return Ok(()) };
    if durable.shape_changed {
        durable.version += 1;
        durable.shape_changed = false;
        durable.grown.clear();
        let mut value = Vec::with_capacity(256);
        value.put_u32(durable.version);
        value.put_u8(role_number(role));
        value.put_log(&cell.name);
        durable.copy.encode(&mut value);
        changes.put(Family::Logs, &log_key(durable.id), &value)?;
    } else {
        for (incarnation, bytes) in &durable.grown {
            let Some((_, end)) = durable.copy.range_of(*incarnation) else { continue };
            let place = Place { incarnation: *incarnation, offset: end };
            let mut value = Vec::with_capacity(64);
            value.put_u32(durable.version);
            value.put_u64(end);
            value.put_option(durable.copy.known_chain(place), Vec::put_chain);
            value.put_u64(*bytes);
            value.put_u64(durable.copy.newest_origin_time_us());
            changes.put(Family::Ends, &incarnation_key(durable.id, *incarnation), &value)?;
        }
    }
    // Only the newest incarnation is likely to be asked for again.
    let newest = durable.copy.end().incarnation;
    durable.appended.retain(|incarnation, _| *incarnation == newest);
    Ok(())
}

/// Key of a value in a table.
pub(crate) fn state_key(table: u8, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.put_u8(table);
    out.put(key);
    out
}

/// Makes one range of damage out of what the index notes.
pub(crate) fn damaged_range(key: &[u8], value: &[u8]) -> Option<((u64, Incarnation, Offset), Offset)> {
    Some((split_batch_key(key)?, u64::from_le_bytes(value.try_into().ok()?)))
}

/// One sentence for a record that does not fit, as damage.
pub(crate) fn misfit_damage(file: &str, position: Position, what: String) -> Damage {
    Damage { file: file.to_owned(), from: position.at, to: position.at, detail: what }
}
