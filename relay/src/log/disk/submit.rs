//! Accepting units: every entry is checked against the rules of copies before anything takes effect.

use std::sync::{Arc, atomic::Ordering};

use seaway_federation_proto::{
    copies::{AppendRefusal, Facts, Impossible, LogCopy},
    envelope::Batch,
    ids::{Incarnation, LogName, Offset, Place},
};

use super::{
    apply::first_copy,
    cell::{Cell, CellState, Middle},
    queue::{Full, Job, QueuedUnit, must_tell},
    record::Record,
    shared::Shared,
};
use crate::log::contract::{Done, Entry, Poisoned, RejectReason, Rejected, Role, Unit};

/// Longest key of a table, in bytes.
const KEY_BYTES_MAX: usize = 4 * 1024;
/// Longest value of a table, in bytes.
const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// What an entry counts in the queue beside its contents, in bytes.
const ENTRY_BYTES: usize = 256;

/// What a unit of the contract counts in the queue.
fn queue_bytes(unit: &Unit) -> usize {
    let of = |entry: &Entry| match entry {
        Entry::Append { batch, .. } => batch.len(),
        Entry::Put { key, value, .. } => key.len() + value.len(),
        Entry::Delete { key, .. } => key.len(),
        _ => 0,
    };
    unit.entries.iter().map(|entry| of(entry) + ENTRY_BYTES).sum()
}

/// How the logs that a unit has touched stood before, to go back to.
#[derive(Default)]
struct Undo {
    copies: Vec<(Arc<Cell>, Option<LogCopy>, u64, Role)>,
    pending: Vec<(Arc<Cell>, (Incarnation, Offset))>,
}

impl Undo {
    fn remember(&mut self, cell: &Arc<Cell>, state: &CellState) {
        if !self.copies.iter().any(|(known, ..)| Arc::ptr_eq(known, cell)) {
            let before = state.submitted.clone();
            self.copies.push((Arc::clone(cell), before, state.submitted_life, state.role));
        }
    }

    fn roll_back(self, shared: &Shared) {
        for (cell, key) in self.pending {
            cell.state.lock().pending.remove(&key);
        }
        for (cell, before, life, role) in self.copies {
            let mut state = cell.state.lock();
            state.submitted = before;
            state.submitted_life = life;
            state.role = role;
            if state.submitted.is_none() && state.durable.is_none() {
                drop(state);
                shared.cells.write().remove(&cell.name);
            }
        }
    }
}

/// What is in the making: the unit's effects so far.
struct Check<'a> {
    shared: &'a Shared,
    undo: Undo,
    /// Only one entry changes a copy: where that is refused nothing has changed, and there is nothing to go back to.
    /// Remembering a copy costs as much as it has incarnations, and the usual unit is one batch with its producers' rows.
    alone: bool,
    touched: Vec<(Arc<Cell>, bool)>,
    /// Trims, by index, at the batch boundary that they were moved to.
    boundaries: Vec<(usize, Place)>,
}

impl Shared {
    /// See [`crate::log::contract::CommitLog::submit`].
    pub(crate) fn submit_unit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        let bytes = queue_bytes(&unit);
        let reject = |unit, done, reason| Err(Box::new(Rejected { unit, done, reason }));
        if let Err(reason) = check_sizes(&unit) {
            return reject(unit, done, reason);
        }
        let touched = {
            let _order = self.submitting.lock();
            if let Err(reason) = self.check_room(&unit, bytes) {
                return reject(unit, done, reason);
            }
            let changes =
                unit.entries.iter().filter(|e| !matches!(e, Entry::Put { .. } | Entry::Delete { .. })).count();
            let mut check = Check {
                shared: self,
                undo: Undo::default(),
                alone: changes == 1,
                touched: Vec::new(),
                boundaries: Vec::new(),
            };
            let checked = unit.entries.iter().enumerate().try_for_each(|(index, entry)| check.entry(index, entry));
            // A look-up that failed was taken as "not known": no unit may pass on that.
            self.stop_if_unreadable();
            let stopped = self.queue.poisoned().map_or(Ok(()), |poisoned| Err(RejectReason::Poisoned(poisoned)));
            if let Err(reason) = checked.and(stopped) {
                check.undo.roll_back(self);
                return reject(unit, done, reason);
            }
            self.count_appended(&unit);
            let records = records_of(unit, &check.boundaries);
            let accepted: u64 = records.iter().filter_map(Record::batch).map(|(_, batch)| batch.len() as u64).sum();
            self.figures.accepted_bytes.fetch_add(accepted, Ordering::Relaxed);
            let stored_at_us = (self.config.clock)();
            self.queue.push(Job::Unit(QueuedUnit { records, stored_at_us, done: must_tell(done), bytes }));
            check.touched
        };
        self.tell_accepted(&touched);
        Ok(())
    }

    /// Queues records of the log's own: they need no check, and are small enough to go past a full queue.
    pub(crate) fn submit_own(&self, records: Vec<Record>, bytes: usize, done: Done) -> Result<(), Poisoned> {
        let _order = self.submitting.lock();
        if let Err(Full::Stopped(poisoned)) = self.queue.check(bytes) {
            return Err(poisoned);
        }
        let stored_at_us = (self.config.clock)();
        self.queue.push(Job::Unit(QueuedUnit { records, stored_at_us, done, bytes }));
        Ok(())
    }

    /// Copies may be read as soon as they are accepted.
    fn tell_accepted(&self, touched: &[(Arc<Cell>, bool)]) {
        let is_copy = |cell: &Cell| cell.state.lock().role == Role::Copy;
        if touched.iter().any(|(cell, _)| is_copy(cell)) {
            let copies = || touched.iter().filter(|(cell, _)| is_copy(cell));
            self.tell(|| copies().map(|(cell, shape_changed)| cell.advanced(*shape_changed)).collect());
        }
    }
}

fn check_sizes(unit: &Unit) -> Result<(), RejectReason> {
    for (index, entry) in unit.entries.iter().enumerate() {
        match entry {
            Entry::Put { key, value, .. } if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX => {
                return Err(RejectReason::Invalid { index, why: "the key or value is too long" });
            }
            Entry::Delete { key, .. } if key.len() > KEY_BYTES_MAX => {
                return Err(RejectReason::Invalid { index, why: "the key is too long" });
            }
            _ => {}
        }
    }
    Ok(())
}

fn records_of(unit: Unit, boundaries: &[(usize, Place)]) -> Vec<Record> {
    let mut records: Vec<Record> = unit.entries.into_iter().map(Record::Entry).collect();
    for (index, boundary) in boundaries {
        if let Some(Record::Entry(Entry::Trim { to, .. })) = records.get_mut(*index) {
            *to = *boundary;
        }
    }
    records
}

impl Check<'_> {
    fn entry(&mut self, index: usize, entry: &Entry) -> Result<(), RejectReason> {
        let invalid = |e: Impossible| RejectReason::Invalid { index, why: e.0 };
        match entry {
            Entry::Append { role, batch } => {
                self.append(*role, batch).map_err(|refusal| RejectReason::Refused { index, refusal })
            }
            Entry::BeginCopy { log, at, chain } => self.begin(log, *at, *chain).map_err(invalid),
            Entry::Hole { log, hole } => self.change(log, |copy, _| copy.hole(*hole)).map_err(invalid),
            Entry::Rekind { log, hole, was } => self.change(log, |copy, _| copy.rekind(*hole, *was)).map_err(invalid),
            Entry::Trim { log, to } => {
                let mut boundary = *to;
                let trimmed = self.change(log, |copy, middle| {
                    boundary = copy.trim(*to, middle)?.begin;
                    Ok(())
                });
                self.boundaries.push((index, boundary));
                trimmed.map_err(invalid)
            }
            Entry::Drop { log } => self.drop_log(log).map_err(invalid),
            Entry::Put { .. } | Entry::Delete { .. } => Ok(()),
        }
    }

    fn touch(&mut self, cell: Arc<Cell>, shape_changed: bool) {
        match self.touched.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &cell)) {
            Some((_, changed)) => *changed |= shape_changed,
            None => self.touched.push((cell, shape_changed)),
        }
    }

    fn append(&mut self, role: Role, batch: &Batch) -> Result<(), AppendRefusal> {
        let facts = Facts::from(batch);
        let log = &batch.header().log;
        let known = self.shared.cell(log);
        if known.as_ref().is_none_or(|cell| cell.state.lock().submitted.is_none()) {
            first_copy(&facts)?; // before anything is made
        }
        let cell = known.unwrap_or_else(|| self.shared.cell_or_new(log, role));
        let mut state = cell.state.lock();
        if !self.alone || state.submitted.is_none() {
            self.undo.remember(&cell, &state);
        }
        if state.submitted.is_none() {
            state.submitted = Some(first_copy(&facts)?);
            state.submitted_life += 1;
            state.role = role;
        }
        let id = state.id();
        let CellState { submitted: Some(copy), pending, .. } = &mut *state else {
            return Err(AppendRefusal::Repeat(facts.begin));
        };
        let accepted = copy.append(&facts, &Middle { index: &self.shared.index, id, pending })?;
        let key = (facts.begin.incarnation, facts.begin.offset);
        pending.insert(key, batch.clone());
        if role == Role::Own {
            state.role = Role::Own;
        }
        drop(state);
        self.undo.pending.push((Arc::clone(&cell), key));
        self.touch(cell, accepted.shape_changed);
        Ok(())
    }

    fn begin(
        &mut self,
        log: &LogName,
        at: Place,
        chain: Option<seaway_federation_proto::envelope::Chain>,
    ) -> Result<(), Impossible> {
        let cell = self.shared.cell_or_new(log, Role::Copy);
        let mut state = cell.state.lock();
        if state.submitted.is_some() {
            return Err(Impossible("a copy of this log exists already"));
        }
        self.undo.remember(&cell, &state);
        state.submitted = Some(LogCopy::begin(at, chain));
        state.submitted_life += 1;
        state.role = Role::Copy;
        drop(state);
        self.touch(cell, true);
        Ok(())
    }

    fn change(
        &mut self,
        log: &LogName,
        change: impl FnOnce(&mut LogCopy, &Middle<'_>) -> Result<(), Impossible>,
    ) -> Result<(), Impossible> {
        const NO_COPY: Impossible = Impossible("there is no copy of this log");
        let cell = self.shared.cell(log).ok_or(NO_COPY)?;
        let mut state = cell.state.lock();
        self.undo.remember(&cell, &state);
        let id = state.id();
        let CellState { submitted: Some(copy), pending, .. } = &mut *state else { return Err(NO_COPY) };
        change(copy, &Middle { index: &self.shared.index, id, pending })?;
        drop(state);
        self.touch(cell, true);
        Ok(())
    }

    fn drop_log(&mut self, log: &LogName) -> Result<(), Impossible> {
        const NO_COPY: Impossible = Impossible("there is no copy of this log");
        let cell = self.shared.cell(log).ok_or(NO_COPY)?;
        let mut state = cell.state.lock();
        self.undo.remember(&cell, &state);
        state.submitted.take().ok_or(NO_COPY)?;
        drop(state);
        self.touch(cell, true);
        Ok(())
    }
}
