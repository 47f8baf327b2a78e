//! How the bytes of a log lie along its main line, and when they were stored: so that what a site pins is a sum and not a walk
//! through the index.
//!
//! A ledger follows one log: what is new is counted once, what was trimmed is left out. It keeps slices, some batches each; where a
//! place lies inside of one, that one alone is looked through, from the place on, and what was found is remembered, so sums are
//! exact. The newest slices stay fine, for that is where the places of those lie that keep up. Forks are not in it: their bytes count in the log's
//! total only.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
};

use seaway_federation_proto::ids::{Incarnation, LogName, Offset, Place};

use crate::{
    log::{
        ages::Ages,
        contract::{CommitLog, ReadError, Surveyed},
    },
    node::retention::{Keep, Now},
};

/// A slice is closed when it has so many bytes, at first.
const SLICE_BYTES: u64 = 1 << 20;
/// Most slices of one log: beyond it the two neighbours that are smallest together become one.
const SLICES_MAX: usize = 64;
/// The newest of them stay as they are.
const SLICES_FINE: usize = 16;
/// Cuts that are remembered for one log; beyond it all are forgotten.
const CUTS_MAX: usize = 64;

/// Places of one main line in their order.
pub(super) fn key(place: Place) -> (Incarnation, Offset) {
    (place.incarnation, place.offset)
}

/// The lower one.
pub(super) fn lower(a: Place, b: Place) -> Place {
    if key(b) < key(a) { b } else { a }
}

/// The higher one.
pub(super) fn higher(a: Place, b: Place) -> Place {
    if key(b) > key(a) { b } else { a }
}

/// Batches that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) begin: Place,
    pub(super) end: Place,
    pub(super) bytes: u64,
    /// When its batches were stored, microseconds since 1970: the earliest, and the latest.
    pub(super) oldest_us: u64,
    pub(super) newest_us: u64,
}

impl Slice {
    fn of(batch: Surveyed) -> Self {
        let Surveyed { begin, end, bytes, stored_at_us } = batch;
        Self { begin, end, bytes, oldest_us: stored_at_us, newest_us: stored_at_us }
    }

    fn join(&mut self, next: Slice) {
        self.end = next.end;
        self.bytes = self.bytes.saturating_add(next.bytes);
        self.oldest_us = self.oldest_us.min(next.oldest_us);
        self.newest_us = self.newest_us.max(next.newest_us);
    }
}

/// Bytes of a part of a log, and when the oldest of them was stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) bytes: u64,
    pub(super) oldest_us: Option<u64>,
}

impl Part {
    pub(super) fn add(&mut self, bytes: u64, stored_us: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.oldest_us = Some(self.oldest_us.map_or(stored_us, |oldest| oldest.min(stored_us)));
    }

    pub(super) fn join(&mut self, other: Part) {
        if let Some(oldest) = other.oldest_us {
            self.add(other.bytes, oldest);
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    slices: VecDeque<Slice>,
    slice_bytes: u64,
    begun: bool,
    /// What was found where a place cuts a slice: by begin and end of the slice, and of what was asked for.
    cuts: RefCell<HashMap<[Place; 4], Option<Slice>>>,
}

impl Ledger {
    /// Slices kept.
    pub(super) fn len(&self) -> usize {
        self.slices.len()
    }

    /// Brings it in line with the log, whose main line begins at `begin`; answers how many bytes came since it was last called.
    /// Waits on the disk.
    pub(super) fn follow(&mut self, log: &dyn CommitLog, name: &LogName, begin: Place) -> Result<u64, ReadError> {
        self.slice_bytes = self.slice_bytes.max(SLICE_BYTES);
        while self.slices.front().is_some_and(|s| key(s.end) <= key(begin)) {
            self.slices.pop_front();
        }
        if let Some(front) = self.slices.front().copied().filter(|s| key(s.begin) < key(begin)) {
            self.slices.pop_front();
            let mut left: Option<Slice> = None;
            log.survey(name, Some(begin), &mut |batch| {
                let within = key(batch.end) <= key(front.end);
                if within {
                    put(&mut left, Slice::of(batch));
                }
                within
            })?;
            left.into_iter().for_each(|slice| self.slices.push_front(slice));
        }
        let from = self.slices.back().map(|s| s.end);
        let (mut came, joined) = self.take_in(log, name, from)?;
        if !joined {
            // The log goes on apart from what it was (its origin was restored): it is counted anew.
            self.cuts.borrow_mut().clear();
            self.slices.clear();
            self.begun = false;
            came = self.take_in(log, name, None)?.0;
        }
        Ok(if std::mem::replace(&mut self.begun, true) { came } else { 0 })
    }

    /// The bytes that came, and whether `from` was still on the main line.
    fn take_in(&mut self, log: &dyn CommitLog, name: &LogName, from: Option<Place>) -> Result<(u64, bool), ReadError> {
        let mut came = 0_u64;
        let joined = log.survey(name, from, &mut |batch| {
            came = came.saturating_add(batch.bytes);
            self.push(Slice::of(batch));
            true
        })?;
        Ok((came, joined))
    }

    fn push(&mut self, slice: Slice) {
        match self.slices.back_mut().filter(|last| last.bytes < self.slice_bytes) {
            Some(last) => last.join(slice),
            None => self.slices.push_back(slice),
        }
        if self.slices.len() > SLICES_MAX {
            self.join_smallest();
        }
    }

    /// Makes those two older neighbours one that are smallest together.
    fn join_smallest(&mut self) {
        let older = self.slices.len().saturating_sub(SLICES_FINE);
        let pairs = self.slices.iter().zip(self.slices.iter().skip(1)).take(older);
        let smallest = pairs.enumerate().min_by_key(|(_, (one, two))| one.bytes.saturating_add(two.bytes));
        let Some((at, (_, next))) = smallest.map(|(at, (one, two))| (at, (*one, *two))) else { return };
        self.slices.remove(at + 1);
        self.slices.get_mut(at).into_iter().for_each(|slice| slice.join(next));
    }

    /// Makes each two slices one.
    pub(super) fn coarsen(&mut self) {
        self.slice_bytes = self.slice_bytes.saturating_mul(2);
        let mut fine = std::mem::take(&mut self.slices).into_iter();
        while let Some(mut slice) = fine.next() {
            fine.next().into_iter().for_each(|next| slice.join(next));
            self.slices.push_back(slice);
        }
    }

    /// What lies in `from..to`. Waits on the disk where these lie inside of slices.
    pub(super) fn between(
        &self,
        log: &dyn CommitLog,
        name: &LogName,
        from: Place,
        to: Place,
    ) -> Result<Part, ReadError> {
        let mut part = Part::default();
        self.pieces(log, name, from, to, |slice| {
            part.join(Part { bytes: slice.bytes, oldest_us: Some(slice.oldest_us) })
        })?;
        Ok(part)
    }

    /// Calls `each` with the slices in `from..to`, cut at both.
    pub(super) fn pieces(
        &self,
        log: &dyn CommitLog,
        name: &LogName,
        from: Place,
        to: Place,
        mut each: impl FnMut(Slice),
    ) -> Result<(), ReadError> {
        for slice in &self.slices {
            if key(slice.end) <= key(from) || key(to) <= key(slice.begin) {
                continue;
            }
            if key(from) <= key(slice.begin) && key(slice.end) <= key(to) {
                each(*slice);
                continue;
            }
            let at = [slice.begin, slice.end, from, lower(to, slice.end)];
            let known = self.cuts.borrow().get(&at).copied();
            let cut = match known {
                Some(cut) => cut,
                None => {
                    let cut = cut(log, name, slice, from, to)?;
                    let mut cuts = self.cuts.borrow_mut();
                    if cuts.len() >= CUTS_MAX {
                        cuts.clear();
                    }
                    cuts.insert(at, cut);
                    cut
                }
            };
            cut.into_iter().for_each(&mut each);
        }
        Ok(())
    }

    /// Up to where retention would trim, were nobody waited for; `None`: nothing. `total` is what the log holds.
    pub(super) fn retained_from(
        &self,
        log: &dyn CommitLog,
        name: &LogName,
        keep: Keep,
        total: u64,
        now: Now,
    ) -> Result<Option<Place>, ReadError> {
        let retention = keep.at(now);
        let before = retention.appended_before_us.unwrap_or(0);
        let max = keep.bytes_max.unwrap_or(u64::MAX);
        let (mut left, mut target, mut ages) = (total, None, Ages::default());
        for slice in &self.slices {
            if slice.newest_us < before || left.saturating_sub(slice.bytes) >= max {
                left = left.saturating_sub(slice.bytes);
                (target, ages) = (Some(slice.end), Ages::default());
                continue;
            }
            let mut stays = false;
            log.survey(name, Some(slice.begin), &mut |batch| {
                if key(batch.begin) >= key(slice.end) {
                    return false;
                }
                stays = !ages.goes_on(&retention, batch.begin, batch.stored_at_us, left > max);
                if stays {
                    return false;
                }
                left = left.saturating_sub(batch.bytes);
                if !ages.has_passed() {
                    target = Some(batch.end);
                }
                true
            })?;
            if stays {
                break;
            }
        }
        Ok(target)
    }
}

/// What of a slice lies in `from..to`. Waits on the disk.
fn cut(log: &dyn CommitLog, name: &LogName, slice: &Slice, from: Place, to: Place) -> Result<Option<Slice>, ReadError> {
    let begin = higher(slice.begin, from);
    // A place is a batch's begin as a rule. Where it is none, or at a hole's, the slice is gone through from its own.
    for begin in [begin, slice.begin] {
        let (mut cut, mut first) = (None, None);
        let joined = log.survey(name, Some(begin), &mut |batch| {
            if *first.get_or_insert(batch.begin) != begin && begin != slice.begin {
                return false;
            }
            if key(batch.begin) >= key(slice.end) || key(batch.begin) >= key(to) {
                return false;
            }
            if key(batch.end) > key(from) {
                put(&mut cut, Slice::of(batch));
            }
            true
        })?;
        if (joined && first == Some(begin)) || begin == slice.begin {
            return Ok(cut);
        }
    }
    Ok(None)
}

fn put(into: &mut Option<Slice>, slice: Slice) {
    match into {
        Some(whole) => whole.join(slice),
        None => *into = Some(slice),
    }
}
