//! Reading: bounds from memory, batches from the tail, else from the index and the segments.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use seaway_federation_proto::{
    copies::{Boundaries, Boundary, Hole, HoleKind, Located, LogCopy, OnLine},
    envelope::{Batch, Chain},
    ids::{LogName, Offset, Place},
};

use super::{
    apply::Fence,
    cell::{Cell, Middle},
    index::{BatchEntry, IndexError},
    queue::Job,
    shared::Shared,
};
use crate::log::{
    ages::Ages,
    contract::{Damage, Line, Outside, Read, ReadError, Retention, Role, Surveyed},
};

/// Batches that stand close together are read at once, up to this many bytes.
const RUN_BYTES_MAX: u64 = 4 << 20;
/// Bytes of other logs between two batches that are read along rather than apart.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// How often a read that lost a race with a trim or a move begins anew.
const ATTEMPTS: usize = 4;

/// Why a look-up did not succeed.
enum Failed {
    /// Something changed under the read: begin anew.
    Again(String),
    /// This batch is damaged.
    Damaged(Offset, BatchEntry, String),
    /// Its segment file is not there.
    Missing(Offset, BatchEntry, String),
    /// The index.
    Index(IndexError),
}

impl From<IndexError> for Failed {
    fn from(e: IndexError) -> Self {
        Self::Index(e)
    }
}

/// What memory alone can say.
enum InMemory {
    /// All that was asked.
    Answer(Read),
    /// The next batch is on the disk: log id, place, and where the run ends.
    OnDisk { id: u64, at: Place, until: Offset, batches: Vec<Batch> },
}

impl Shared {
    /// See [`crate::log::contract::CommitLog::read`].
    pub(crate) fn read_log(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        let Some(cell) = self.cell(log) else { return Ok(Read::Outside(Outside::NoCopy)) };
        let mut why = String::new();
        for attempt in 1..=ATTEMPTS {
            let (id, at, until, batches) = match read_memory(&cell, from, line, bytes_max) {
                InMemory::Answer(read) => return Ok(read),
                InMemory::OnDisk { id, at, until, batches } => (id, at, until, batches),
            };
            if let Some(last) = batches.last() {
                let next = last.end();
                return Ok(Read::Batches { batches, next });
            }
            match self.read_disk(&cell, id, at, until, bytes_max) {
                Ok(batches) => {
                    let next = batches.last().map_or(at, Batch::end);
                    return Ok(Read::Batches { batches, next });
                }
                Err(Failed::Again(reason)) => why = reason,
                Err(Failed::Missing(_, _, reason)) if attempt < ATTEMPTS => why = reason,
                Err(Failed::Damaged(offset, entry, detail) | Failed::Missing(offset, entry, detail)) => {
                    match self.fence(&cell, id, Place { offset, ..at }, &entry, &detail) {
                        Ok(true) => {
                            let to = offset + u64::from(entry.count);
                            return Ok(Read::Outside(Outside::Damaged { to }));
                        }
                        Ok(false) => why = detail, // moved or trimmed meanwhile
                        Err(e) => {
                            why = e.to_string();
                            break;
                        }
                    }
                }
                Err(Failed::Index(e)) => {
                    why = e.to_string();
                    break;
                }
            }
        }
        Err(ReadError { log: log.clone(), place: from, why })
    }

    /// See [`crate::log::contract::CommitLog::read_cached`].
    pub(crate) fn read_log_cached(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Option<Read> {
        let Some(cell) = self.cell(log) else { return Some(Read::Outside(Outside::NoCopy)) };
        match read_memory(&cell, from, line, bytes_max) {
            InMemory::Answer(read) => Some(read),
            InMemory::OnDisk { batches, .. } => {
                let next = batches.last()?.end();
                Some(Read::Batches { batches, next })
            }
        }
    }

    /// Reads batches from the one that contains `at`; at least one.
    fn read_disk(
        &self,
        cell: &Cell,
        id: u64,
        at: Place,
        until: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Batch>, Failed> {
        let entries = self.entries(id, at, until, bytes_max)?;
        let mut batches = Vec::with_capacity(entries.len());
        let mut rest = entries.as_slice();
        while let Some((first, _)) = rest.split_first() {
            let run = run_length(rest);
            let (now, later) = rest.split_at(run);
            let end = now.last().map_or(first.1.position.at, |(_, e)| e.position.at + u64::from(e.length));
            let bytes = self.read_bytes(first, first.1.position.at..end)?;
            for (offset, entry) in now {
                let from = (entry.position.at - first.1.position.at) as usize;
                let slice = bytes.slice(from..from + entry.length as usize);
                match decode(cell, at, *offset, slice) {
                    Ok(batch) => batches.push(batch),
                    // What is good before it is answered first.
                    Err(_) if !batches.is_empty() => return Ok(batches),
                    Err(_) => batches.push(self.read_again(cell, at, *offset, entry)?),
                }
            }
            rest = later;
        }
        if batches.is_empty() { Err(Failed::Again("the index lacks a batch".to_owned())) } else { Ok(batches) }
    }

    /// Where the batches are, from the one that contains `at`: at least one, about `bytes_max` in all.
    fn entries(
        &self,
        id: u64,
        at: Place,
        until: Offset,
        bytes_max: usize,
    ) -> Result<Vec<(Offset, BatchEntry)>, Failed> {
        let lacks = || Failed::Again(format!("the index lacks the batch at {at}"));
        let (begin, _) = self.index.floor(id, at.incarnation, at.offset)?.ok_or_else(lacks)?;
        let mut entries = Vec::new();
        let (mut expected, mut bytes) = (begin, 0_usize);
        self.index.visit_batches(id, at.incarnation, begin, |offset, entry| {
            let fits = entries.is_empty() || bytes.saturating_add(entry.length as usize) <= bytes_max;
            if offset != expected || offset >= until || !fits {
                return false;
            }
            expected = offset + u64::from(entry.count);
            bytes = bytes.saturating_add(entry.length as usize);
            entries.push((offset, entry));
            true
        })?;
        match entries.first() {
            Some((offset, entry)) if offset + u64::from(entry.count) > at.offset => Ok(entries),
            _ => Err(lacks()),
        }
    }

    /// Reads bytes of the segment that holds `first`.
    fn read_bytes(&self, first: &(Offset, BatchEntry), range: Range<u64>) -> Result<Bytes, Failed> {
        let segment = first.1.position.segment;
        let file = self.segment_file(segment).map_err(|e| {
            let why = format!("{} cannot be opened: {e}", self.segment_name(segment));
            match e.kind() {
                std::io::ErrorKind::NotFound => Failed::Missing(first.0, first.1, why),
                _ => Failed::Again(why),
            }
        })?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        // What cannot be read stays zeros and fails its checksum: then it is damage, with its place.
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, range.start + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::error!(segment, from = range.start, "reading {} failed: {e}", self.segment_name(segment));
                    break;
                }
            }
        }
        Ok(bytes.into())
    }

    /// A second look at a batch that failed its check: the memory, not the disk, may have been at fault.
    fn read_again(&self, cell: &Cell, at: Place, offset: Offset, entry: &BatchEntry) -> Result<Batch, Failed> {
        let from = entry.position.at;
        let bytes = self.read_bytes(&(offset, *entry), from..from + u64::from(entry.length))?;
        decode(cell, at, offset, bytes).map_err(|why| Failed::Damaged(offset, *entry, why))
    }

    /// Reads a batch by itself, at `begin`. `None`: it is bad, and was reported and fenced, or it is elsewhere by now.
    ///
    /// # Errors
    /// In words, why that cannot be told now.
    pub(crate) fn read_or_fence(
        &self,
        cell: &Arc<Cell>,
        id: u64,
        begin: Place,
        entry: &BatchEntry,
    ) -> Result<Option<Batch>, String> {
        match self.read_again(cell, begin, begin.offset, entry) {
            Ok(batch) => Ok(Some(batch)),
            Err(Failed::Damaged(_, entry, why) | Failed::Missing(_, entry, why)) => {
                let _ = self.fence(cell, id, begin, &entry, &why).map_err(|e| e.to_string())?;
                Ok(None)
            }
            Err(Failed::Again(why)) => Err(why),
            Err(Failed::Index(e)) => Err(e.to_string()),
        }
    }

    /// Fences a batch that cannot be read: reported, readers are told, and it may be fetched again. Answers false, and
    /// does nothing, where the index has the batch elsewhere by now.
    fn fence(
        &self,
        cell: &Arc<Cell>,
        id: u64,
        begin: Place,
        entry: &BatchEntry,
        why: &str,
    ) -> Result<bool, IndexError> {
        if self.index.batch(id, begin)?.is_none_or(|now| now.position != entry.position) {
            return Ok(false);
        }
        let from = entry.position.at;
        self.report_damage(Damage {
            file: self.segment_name(entry.position.segment),
            from,
            to: from + u64::from(entry.length),
            detail: format!("the batch of {} at {begin}: {why}", cell.name),
        });
        let to = begin.offset + u64::from(entry.count);
        let hole = Hole { incarnation: begin.incarnation, from: begin.offset, to, kind: HoleKind::Pending };
        let _order = self.submitting.lock();
        let mut state = cell.state.lock();
        let below = match (Middle { index: &self.index, id: Some(id), pending: &state.pending }).chain_at(begin) {
            Boundary::Chain(chain) => Some(chain),
            Boundary::Inside | Boundary::Unknown => None,
        };
        let above = Some(entry.chain_after);
        let bytes = u64::from(entry.length);
        let current = state.id() == Some(id);
        if let Some(copy) = state.submitted.as_mut().filter(|_| current)
            && copy.damage(hole, below, above, bytes).is_ok()
        {
            state.damaged.insert((hole.incarnation, hole.from), hole.to);
            let fence = Fence { id, hole, below, above, bytes };
            self.queue.push(Job::Fence(cell.name.clone(), Box::new(fence)));
        }
        Ok(true)
    }

    /// The copy that readers see, for look-ups that go to the index: only what is durable.
    fn durable_copy(&self, log: &LogName) -> Option<(u64, LogCopy)> {
        let cell = self.cell(log)?;
        let state = cell.state.lock();
        state.durable.as_ref().map(|durable| (durable.id, durable.copy.clone()))
    }

    /// Goes along the main line, batch by batch, until `visit` answers false: the place where it stopped.
    /// `seek` may jump ahead within a run: given the run, it answers from which offset on to visit.
    fn walk(
        &self,
        id: u64,
        copy: &LogCopy,
        seek: impl FnMut(Place, Offset) -> Result<Offset, IndexError>,
        visit: impl FnMut(Offset, &BatchEntry) -> bool,
    ) -> Result<Place, IndexError> {
        self.walk_from(id, copy, copy.begin_place(), seek, visit)
    }

    /// The same, from a place of the main line.
    fn walk_from(
        &self,
        id: u64,
        copy: &LogCopy,
        from: Place,
        mut seek: impl FnMut(Place, Offset) -> Result<Offset, IndexError>,
        mut visit: impl FnMut(Offset, &BatchEntry) -> bool,
    ) -> Result<Place, IndexError> {
        let mut at = from;
        loop {
            at = match copy.locate(at, OnLine::Main) {
                Located::Held { at: place, until } => {
                    let from = seek(place, until)?;
                    let mut stopped = None;
                    self.index.visit_batches(id, place.incarnation, from, |offset, entry| {
                        if offset >= until {
                            return false;
                        }
                        let goes_on = visit(offset, &entry);
                        if !goes_on {
                            stopped = Some(offset);
                        }
                        goes_on
                    })?;
                    if let Some(offset) = stopped {
                        return Ok(Place { offset, ..place });
                    }
                    Place { offset: until, ..place }
                }
                Located::Hole { hole, .. } => Place { incarnation: hole.incarnation, offset: hole.to },
                _ => return Ok(at),
            };
        }
    }

    /// See [`crate::log::contract::CommitLog::find_time`].
    pub(crate) fn find_time_in(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        let Some((id, copy)) = self.durable_copy(log) else { return Ok(None) };
        // Origin time never decreases within a log, so a run is bisected by offset.
        let seek = |place: Place, until: Offset| {
            let (mut low, mut high) = (place.offset, until);
            while low < high {
                let middle = low + (high - low) / 2;
                match self.index.floor(id, place.incarnation, middle)? {
                    Some((begin, entry)) if entry.origin_time_us >= time_us => high = begin.max(low),
                    Some((begin, entry)) => low = (begin + u64::from(entry.count)).max(middle + 1),
                    None => low = middle + 1,
                }
            }
            Ok(low.min(until))
        };
        let found = self.walk(id, &copy, seek, |_, entry| entry.origin_time_us < time_us);
        found.map(Some).map_err(|e| read_error(log, copy.begin_place(), &e))
    }

    /// See [`crate::log::contract::CommitLog::survey`].
    pub(crate) fn survey_line(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError> {
        let Some((id, copy)) = self.durable_copy(log) else { return Ok(false) };
        let Some(from) = copy.line_from(from) else { return Ok(false) };
        let current = std::cell::Cell::new(from);
        let seek = |place: Place, _: Offset| {
            current.set(place);
            Ok(place.offset)
        };
        let walked = self.walk_from(id, &copy, from, seek, |offset, entry| {
            let begin = Place { offset, ..current.get() };
            let end = Place { offset: offset + u64::from(entry.count), ..begin };
            let (bytes, stored_at_us) = (u64::from(entry.length), entry.stored_at_us);
            visit(Surveyed { begin, end, bytes, stored_at_us })
        });
        walked.map(|_| true).map_err(|e| read_error(log, from, &e))
    }

    /// See [`crate::log::contract::CommitLog::trim_target`].
    pub(crate) fn trim_target_of(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError> {
        let Some((id, copy)) = self.durable_copy(log) else { return Ok(None) };
        let mut bytes = copy.bytes();
        let begin = copy.begin_place();
        let mut incarnation = begin.incarnation;
        let keeps = |place: Place, end: Offset| {
            retention.keep_from.is_some_and(|keep| {
                keep.incarnation < place.incarnation || (keep.incarnation == place.incarnation && keep.offset < end)
            })
        };
        let current = std::cell::Cell::new(incarnation);
        let mut ages = Ages::default();
        let seek = |place: Place, _: Offset| {
            current.set(place.incarnation);
            Ok(place.offset)
        };
        let target = self.walk(id, &copy, seek, |offset, entry| {
            incarnation = current.get();
            if keeps(Place { incarnation, offset }, offset + u64::from(entry.count)) {
                return false;
            }
            let large = retention.bytes_max.is_some_and(|max| bytes > max);
            let goes = ages.goes_on(&retention, Place { incarnation, offset }, entry.stored_at_us, large);
            if goes {
                bytes = bytes.saturating_sub(u64::from(entry.length));
            }
            goes
        });
        let target = ages.target(target.map_err(|e| read_error(log, begin, &e))?);
        Ok((target != begin).then_some(target))
    }

    /// See [`crate::log::contract::CommitLog::chain_at`].
    pub(crate) fn chain_in(&self, log: &LogName, place: Place) -> Result<Option<Chain>, ReadError> {
        let Some(cell) = self.cell(log) else { return Ok(None) };
        let id = {
            let state = cell.state.lock();
            let Some(copy) = state.readable() else { return Ok(None) };
            let Some(range) = copy.range_of(place.incarnation) else { return Ok(None) };
            if place.offset < range.0 || place.offset > range.1 {
                return Ok(None);
            }
            if let Some(chain) = copy.known_chain(place) {
                return Ok(Some(chain));
            }
            let id = state.id();
            match (Middle { index: &self.index, id, pending: &state.pending }).chain_at(place) {
                Boundary::Chain(chain) => return Ok(Some(chain)),
                Boundary::Inside => return Ok(None),
                Boundary::Unknown => id,
            }
        };
        let Some(id) = id else { return Ok(None) };
        let found = self.index.floor(id, place.incarnation, place.offset).map_err(|e| read_error(log, place, &e))?;
        match found.filter(|(begin, _)| *begin == place.offset) {
            None => Ok(None),
            Some((offset, entry)) => {
                Ok(self.read_again(&cell, place, offset, &entry).ok().map(|b| b.header().chain_before))
            }
        }
    }
}

fn read_error(log: &LogName, place: Place, e: &IndexError) -> ReadError {
    ReadError { log: log.clone(), place, why: e.to_string() }
}

/// Answers from memory as far as that goes.
fn read_memory(cell: &Cell, from: Place, line: Line, bytes_max: usize) -> InMemory {
    let state = cell.state.lock();
    let Some(copy) = state.readable() else { return InMemory::Answer(Read::Outside(Outside::NoCopy)) };
    let mut batches: Vec<Batch> = Vec::new();
    let (mut next, mut bytes) = (from, 0_usize);
    loop {
        let answer = match copy.locate(next, line.into()) {
            Located::Held { at, until } => match state.in_memory(at) {
                Some(batch) => {
                    if !batches.is_empty() && bytes.saturating_add(batch.len()) > bytes_max {
                        return InMemory::Answer(Read::Batches { batches, next });
                    }
                    bytes = bytes.saturating_add(batch.len());
                    next = batch.end();
                    batches.push(batch.clone());
                    continue;
                }
                None => match (state.role, state.id(), &state.durable) {
                    (_, Some(id), _) => return InMemory::OnDisk { id, at, until, batches },
                    (Role::Own, None, Some(durable)) => {
                        return InMemory::OnDisk { id: durable.id, at, until, batches };
                    }
                    _ => Read::AtEnd { at, beside: false },
                },
            },
            Located::AtEnd(at) => Read::AtEnd { at, beside: line == Line::Main && copy.is_beside(at) },
            Located::Hole { hole, at } => Read::Outside(match state.damaged_to(at) {
                Some(to) => Outside::Damaged { to: to.min(hole.to) },
                None => Outside::Hole { hole },
            }),
            Located::Below(begin) => Read::Outside(Outside::Below { begin }),
            Located::Above(end) => Read::Outside(Outside::Above { end }),
            Located::UnknownIncarnation => Read::Outside(Outside::UnknownIncarnation),
        };
        return InMemory::Answer(if batches.is_empty() { answer } else { Read::Batches { batches, next } });
    }
}

/// How many of the entries, from the first on, one read covers.
fn run_length(entries: &[(Offset, BatchEntry)]) -> usize {
    let Some((_, first)) = entries.first() else { return 0 };
    let mut end = first.position.at + u64::from(first.length);
    let follows = |(_, entry): &&(Offset, BatchEntry)| {
        let position = entry.position;
        let near = position.segment == first.position.segment
            && position.at >= end
            && position.at - end <= GAP_BYTES_MAX
            && position.at + u64::from(entry.length) - first.position.at <= RUN_BYTES_MAX;
        if near {
            end = position.at + u64::from(entry.length);
        }
        near
    };
    1 + entries.iter().skip(1).take_while(follows).count()
}

/// Reads a batch and checks that it is the one that belongs there.
fn decode(cell: &Cell, at: Place, offset: Offset, bytes: Bytes) -> Result<Batch, String> {
    let batch = Batch::decode(bytes, usize::MAX, false).map_err(|e| e.to_string())?;
    if batch.header().log != cell.name || batch.begin() != (Place { offset, ..at }) {
        return Err(format!("another batch is there: {} at {}", batch.header().log, batch.begin()));
    }
    Ok(batch)
}
