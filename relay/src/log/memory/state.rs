//! What the twin's disk holds, and how one entry changes it.

use std::collections::BTreeMap;

use bytes::Bytes;
use seaway_federation_proto::{
    copies::{Boundaries, Boundary, Copies, Facts, Undo},
    envelope::Batch,
    ids::{Incarnation, LogName, Offset, Place},
};

use crate::log::contract::{Entry, RejectReason, Role, Table};

/// Longest key of a table, in bytes.
const KEY_BYTES_MAX: usize = 4 * 1024;
/// Longest value of a table, in bytes.
const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// A batch as stored.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) batch: Batch,
    pub(super) appended_us: u64,
    pub(super) fenced: bool,
}

pub(super) type Batches = BTreeMap<(Incarnation, Offset), Stored>;

/// Logs, their batches and the tables, as of some unit.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) copies: Copies,
    pub(super) batches: BTreeMap<LogName, Batches>,
    pub(super) roles: BTreeMap<LogName, Role>,
    pub(super) tables: BTreeMap<(Table, Bytes), Bytes>,
}

/// What one unit changed in a [`State`], to take it back. Tables are only ever changed by units
/// that are accepted already.
#[derive(Debug, Default)]
pub(super) struct StateUndo {
    copies: Undo,
    /// Taken back from the last to the first.
    steps: Vec<Step>,
}

/// How something was before.
#[derive(Debug)]
enum Step {
    Batch(LogName, (Incarnation, Offset), Option<Stored>),
    Batches(LogName, Option<Batches>),
    Role(LogName, Option<Role>),
}

/// Which log an entry touched, and whether more than an end changed.
pub(super) type Touched = Option<(LogName, bool)>;

/// [`Boundaries`] of one log.
pub(super) struct Inner<'a>(pub(super) Option<&'a Batches>);

impl Inner<'_> {
    /// The batch that contains or begins at a place.
    pub(super) fn containing(&self, place: Place) -> Option<&Stored> {
        let (_, stored) = self.0?.range(..=(place.incarnation, place.offset)).next_back()?;
        let end = stored.batch.end();
        (end.incarnation == place.incarnation && place.offset < end.offset).then_some(stored)
    }
}

impl Boundaries for Inner<'_> {
    fn chain_at(&self, place: Place) -> Boundary {
        match self.containing(place) {
            Some(stored) if stored.batch.begin() == place => Boundary::Chain(stored.batch.header().chain_before),
            Some(_) => Boundary::Inside,
            None => Boundary::Unknown,
        }
    }
    fn floor(&self, place: Place) -> Option<Offset> {
        self.containing(place).map(|stored| stored.batch.begin().offset)
    }
    fn bytes_in(&self, incarnation: Incarnation, from: Offset, to: Offset) -> u64 {
        let Some(batches) = self.0.filter(|_| from < to) else { return 0 };
        batches.range((incarnation, from)..(incarnation, to)).map(|(_, stored)| stored.batch.len() as u64).sum()
    }
}

impl State {
    pub(super) fn inner(&self, log: &LogName) -> Inner<'_> {
        Inner(self.batches.get(log))
    }

    /// Carries out one entry, or changes nothing. `index` is for the answer.
    pub(super) fn apply(
        &mut self,
        entry: &Entry,
        index: usize,
        appended_us: u64,
        undo: &mut StateUndo,
    ) -> Result<Touched, RejectReason> {
        let impossible = |e: seaway_federation_proto::copies::Impossible| RejectReason::Invalid { index, why: e.0 };
        match entry {
            Entry::Append { role, batch } => {
                self.append(*role, batch, appended_us, undo).map_err(|refusal| RejectReason::Refused { index, refusal })
            }
            Entry::BeginCopy { log, at, chain } => {
                self.copies.remember(log, &mut undo.copies);
                self.copies.begin_copy(log, *at, *chain).map_err(impossible)?;
                Ok(Some((log.clone(), true)))
            }
            Entry::Hole { log, hole } => {
                self.copies.remember(log, &mut undo.copies);
                self.copies.get_mut(log).and_then(|copy| copy.hole(*hole)).map_err(impossible)?;
                Ok(Some((log.clone(), true)))
            }
            Entry::Rekind { log, hole, was } => {
                self.copies.remember(log, &mut undo.copies);
                self.copies.get_mut(log).and_then(|copy| copy.rekind(*hole, *was)).map_err(impossible)?;
                Ok(Some((log.clone(), true)))
            }
            Entry::Trim { log, to } => {
                self.copies.remember(log, &mut undo.copies);
                let inner = Inner(self.batches.get(log));
                let trimmed = self.copies.get_mut(log).and_then(|copy| copy.trim(*to, &inner)).map_err(impossible)?;
                let keep_from = (trimmed.begin.incarnation, trimmed.begin.offset);
                self.forget(log, (Incarnation { counter: 0, random: 0 }, 0), keep_from, undo);
                Ok(Some((log.clone(), true)))
            }
            Entry::Drop { log } => {
                self.copies.remember(log, &mut undo.copies);
                self.copies.drop_copy(log).map_err(impossible)?;
                undo.steps.push(Step::Batches(log.clone(), self.batches.remove(log)));
                undo.steps.push(Step::Role(log.clone(), self.roles.remove(log)));
                Ok(Some((log.clone(), true)))
            }
            Entry::Put { key, value, .. } if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX => {
                Err(RejectReason::Invalid { index, why: "the key or value is too long" })
            }
            Entry::Delete { key, .. } if key.len() > KEY_BYTES_MAX => {
                Err(RejectReason::Invalid { index, why: "the key is too long" })
            }
            Entry::Put { .. } | Entry::Delete { .. } => Ok(None),
        }
    }

    /// Carries out what [`State::apply`] only checks.
    pub(super) fn apply_to_tables(&mut self, entry: &Entry) {
        match entry {
            Entry::Put { table, key, value } => {
                self.tables.insert((*table, key.clone()), value.clone());
            }
            Entry::Delete { table, key } => {
                self.tables.remove(&(*table, key.clone()));
            }
            _ => {}
        }
    }

    fn append(
        &mut self,
        role: Role,
        batch: &Batch,
        appended_us: u64,
        undo: &mut StateUndo,
    ) -> Result<Touched, seaway_federation_proto::copies::AppendRefusal> {
        let log = &batch.header().log;
        self.copies.remember(log, &mut undo.copies);
        let accepted = self.copies.append(log, &Facts::from(batch), &Inner(self.batches.get(log)))?;
        for hole in &accepted.dropped {
            self.forget(log, (hole.incarnation, hole.from), (hole.incarnation, hole.to), undo);
        }
        let key = (batch.begin().incarnation, batch.begin().offset);
        let stored = Stored { batch: batch.clone(), appended_us, fenced: false };
        let before = self.batches.entry(log.clone()).or_default().insert(key, stored);
        undo.steps.push(Step::Batch(log.clone(), key, before));
        if role == Role::Own || !self.roles.contains_key(log) {
            undo.steps.push(Step::Role(log.clone(), self.roles.insert(log.clone(), role)));
        }
        Ok(Some((log.clone(), accepted.shape_changed)))
    }

    fn forget(&mut self, log: &LogName, from: (Incarnation, Offset), to: (Incarnation, Offset), undo: &mut StateUndo) {
        let Some(batches) = self.batches.get_mut(log).filter(|_| from < to) else { return };
        let keys: Vec<_> = batches.range(from..to).map(|(key, _)| *key).collect();
        for key in keys {
            let stored = batches.remove(&key);
            undo.steps.push(Step::Batch(log.clone(), key, stored));
        }
    }

    /// Takes back what the entries noted in `undo` did.
    pub(super) fn roll_back(&mut self, undo: StateUndo) {
        for step in undo.steps.into_iter().rev() {
            match step {
                Step::Batch(log, key, Some(stored)) => {
                    self.batches.entry(log).or_default().insert(key, stored);
                }
                Step::Batch(log, key, None) => {
                    self.batches.entry(log).or_default().remove(&key);
                }
                Step::Batches(log, Some(batches)) => {
                    self.batches.insert(log, batches);
                }
                Step::Role(log, Some(role)) => {
                    self.roles.insert(log, role);
                }
                Step::Batches(log, None) => {
                    self.batches.remove(&log);
                }
                Step::Role(log, None) => {
                    self.roles.remove(&log);
                }
            }
        }
        self.copies.roll_back(undo.copies);
    }
}
