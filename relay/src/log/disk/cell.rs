//! One log in memory: its copy as submitted and as durable, and the batches that readers near the
//! end find without the disk.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::{Boundaries, Boundary, LogCopy},
    envelope::Batch,
    ids::{Incarnation, LogName, Offset, Place},
};

use super::index::Index;
use crate::log::contract::{Advanced, Role};

/// Batches by incarnation and first offset.
pub(crate) type Batches = BTreeMap<(Incarnation, Offset), Batch>;

/// A log that is held, or was a moment ago.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Its name.
    pub(crate) name: LogName,
    /// The rest. Held for look-ups in memory and, for forks and trims, in the index; never while reading a segment.
    pub(crate) state: Mutex<CellState>,
}

/// See [`Cell`].
#[derive(Debug)]
pub(crate) struct CellState {
    /// Whose.
    pub(crate) role: Role,
    /// As of the last accepted unit.
    pub(crate) submitted: Option<LogCopy>,
    /// How many copies of this log were begun by accepted units.
    pub(crate) submitted_life: u64,
    /// As of the last durable unit.
    pub(crate) durable: Option<Durable>,
    /// How many copies of this log were begun by durable units.
    pub(crate) durable_life: u64,
    /// Batches that are accepted and not yet in the index.
    pub(crate) pending: Batches,
    /// Recent batches that are in the index too.
    pub(crate) recent: Batches,
    /// Ranges that are fenced, by incarnation and first offset: to.
    pub(crate) damaged: BTreeMap<(Incarnation, Offset), Offset>,
}

/// A durable copy and what belongs to it in the index.
#[derive(Debug)]
pub(crate) struct Durable {
    /// Its id in the index.
    pub(crate) id: u64,
    /// The copy.
    pub(crate) copy: LogCopy,
    /// Counts the changes of shape that were stored.
    pub(crate) version: u32,
    /// By incarnation: bytes appended since the last stored change of shape.
    pub(crate) grown: BTreeMap<Incarnation, u64>,
    /// By incarnation: bytes appended in all, fills left out; filled when first needed.
    pub(crate) appended: BTreeMap<Incarnation, u64>,
    /// Whether the shape changed since it was last stored.
    pub(crate) shape_changed: bool,
}

impl Durable {
    pub(crate) fn new(id: u64, copy: LogCopy) -> Self {
        Self { id, copy, version: 0, grown: BTreeMap::new(), appended: BTreeMap::new(), shape_changed: true }
    }
}

impl Cell {
    pub(crate) fn new(name: LogName, role: Role) -> Arc<Self> {
        let state = CellState {
            role,
            submitted: None,
            submitted_life: 0,
            durable: None,
            durable_life: 0,
            pending: Batches::new(),
            recent: Batches::new(),
            damaged: BTreeMap::new(),
        };
        Arc::new(Self { name, state: Mutex::new(state) })
    }

    /// What the listener is told.
    pub(crate) fn advanced(&self, shape_changed: bool) -> Advanced {
        let state = self.state.lock();
        let durable = state.durable.as_ref().map(|durable| &durable.copy);
        Advanced {
            log: self.name.clone(),
            readable: state.readable().map(LogCopy::end),
            durable: durable.map(LogCopy::end),
            chain: durable.and_then(LogCopy::chain_at_end),
            shape_changed,
        }
    }
}

impl CellState {
    /// The copy whose bounds readers see.
    pub(crate) fn readable(&self) -> Option<&LogCopy> {
        match self.role {
            Role::Own => self.durable.as_ref().map(|durable| &durable.copy),
            Role::Copy => self.submitted.as_ref(),
        }
    }

    /// Id in the index of what `submitted` grew from, unless the log was begun anew since.
    pub(crate) fn id(&self) -> Option<u64> {
        let same = self.submitted_life == self.durable_life;
        self.durable.as_ref().filter(|_| same).map(|durable| durable.id)
    }

    /// The batch that contains the place, if it is in memory.
    pub(crate) fn in_memory(&self, place: Place) -> Option<&Batch> {
        containing(&self.pending, place).or_else(|| containing(&self.recent, place))
    }

    /// The fenced range that contains the place: where it ends.
    pub(crate) fn damaged_to(&self, place: Place) -> Option<Offset> {
        let upto = (place.incarnation, place.offset);
        let ((incarnation, _), to) = self.damaged.range(..=upto).next_back()?;
        (*incarnation == place.incarnation && *to > place.offset).then_some(*to)
    }
}

/// The last batch of the place's incarnation that begins at or below it.
fn floor(batches: &Batches, place: Place) -> Option<&Batch> {
    let ((incarnation, _), batch) = batches.range(..=(place.incarnation, place.offset)).next_back()?;
    (*incarnation == place.incarnation).then_some(batch)
}

fn containing(batches: &Batches, place: Place) -> Option<&Batch> {
    floor(batches, place).filter(|batch| batch.end_offset() > place.offset)
}

/// Look-ups in the middle of a copy: the index, and what is on its way there.
#[derive(Debug)]
pub(crate) struct Middle<'a> {
    /// The index.
    pub(crate) index: &'a Index,
    /// The log's id there, if it has one.
    pub(crate) id: Option<u64>,
    /// What is not there yet.
    pub(crate) pending: &'a Batches,
}

impl Middle<'_> {
    /// Logs a failing index once for each look-up; the rules go on with "not known".
    fn ask<T>(&self, ask: impl FnOnce(&Index, u64) -> Result<T, super::index::IndexError>) -> Option<T> {
        match ask(self.index, self.id?) {
            Ok(found) => Some(found),
            Err(e) => {
                tracing::error!("a look-up failed, and is taken as not known: {e}");
                None
            }
        }
    }

    fn chain_in_index(&self, place: Place) -> Option<Boundary> {
        let at = |offset| self.ask(|index, id| index.floor(id, place.incarnation, offset)).flatten();
        if place.offset > 0
            && let Some((begin, entry)) = at(place.offset - 1)
        {
            let end = begin + u64::from(entry.count);
            if end == place.offset {
                return Some(Boundary::Chain(entry.chain_after));
            }
            if end > place.offset {
                return Some(Boundary::Inside);
            }
        }
        None
    }

    fn chain_in_pending(&self, place: Place) -> Option<Boundary> {
        let batch = floor(self.pending, place)?;
        if batch.begin().offset == place.offset {
            return Some(Boundary::Chain(batch.header().chain_before));
        }
        match batch.end_offset().cmp(&place.offset) {
            std::cmp::Ordering::Equal => Some(Boundary::Chain(batch.chain_after())),
            std::cmp::Ordering::Greater => Some(Boundary::Inside),
            std::cmp::Ordering::Less => None,
        }
    }
}

impl Boundaries for Middle<'_> {
    fn chain_at(&self, place: Place) -> Boundary {
        self.chain_in_pending(place).or_else(|| self.chain_in_index(place)).unwrap_or(Boundary::Unknown)
    }

    fn floor(&self, place: Place) -> Option<Offset> {
        if let Some(batch) = containing(self.pending, place) {
            return Some(batch.begin().offset);
        }
        let (begin, entry) = self.ask(|index, id| index.floor(id, place.incarnation, place.offset)).flatten()?;
        (begin + u64::from(entry.count) > place.offset).then_some(begin)
    }

    fn bytes_in(&self, incarnation: Incarnation, from: Offset, to: Offset) -> u64 {
        if from >= to {
            return 0;
        }
        let range = self.pending.range((incarnation, from)..(incarnation, to));
        let pending: u64 = range.map(|(_, batch)| batch.len() as u64).sum();
        pending + self.ask(|index, id| index.bytes_in(id, incarnation, from, to)).unwrap_or(0)
    }
}
