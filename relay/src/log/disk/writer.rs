//! The storage thread: takes all that is queued, writes it as one group, makes it durable, puts it into the
//! index, and answers.

use std::{
    io::IoSlice,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use seaway_federation_proto::ids::{LogName, Start};

use super::{
    apply::{Applier, Fence, Stored},
    codec::Position,
    group::{ALIGN, FLAG_CHECKPOINT, GroupHeader, UNITS_MAX, UnitLine, align_up, header_bytes},
    index::Applied,
    queue::{Job, PoisonOnPanic, QueuedUnit, Taken},
    record::EncodedUnit,
    segment::{FORMAT, HEADER_BYTES, SegmentHeader},
    shared::Shared,
};
use crate::log::{contract::Poisoned, files::LogFile};

/// Bytes of units that one group takes at most, unless one unit alone is larger.
pub const GROUP_BYTES_MAX: usize = 8 << 20;
/// The room on the disk is measured after so many bytes, too: a fast disk would pass the reserve between two looks.
const MEASURE_EVERY_BYTES: u64 = 32 << 20;
/// Where the reserve is small, as often as fits it, and not after fewer bytes than these.
const MEASURE_BYTES_MIN: u64 = 1 << 20;
/// How often what found no room on the disk is tried again.
const HELD_RETRY: Duration = Duration::from_millis(100);
/// How often RocksDB is asked how large its files are.
const INDEX_SIZE_EVERY: Duration = Duration::from_secs(10);
const PADDING: [u8; ALIGN as usize] = [0; ALIGN as usize];

/// Where the next group goes.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    start: Start,
    file: Arc<dyn LogFile>,
    /// Where the next group begins: everything before is durable.
    end: Position,
    /// Sequence of the next group.
    sequence: u64,
    /// Whether the last group's durability is written down.
    settled: bool,
    unflushed_bytes: u64,
    unmeasured_bytes: u64,
    flushed_at: Instant,
    measured_at: Instant,
    index_measured_at: Option<Instant>,
    /// What found no room on the disk, in order: it is written when there is some, before anything else.
    held: Vec<Job>,
}

/// What failed, in words.
enum Failure {
    /// For good: the log stops.
    Fatal(String),
    /// The file system had no room for a write, of which nothing was synced: it may be written again, over what is there of it.
    NoRoom(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Fatal(why)
    }
}

/// Whether a write failed only because the file system is full.
fn is_no_room(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// A failed write, in words.
fn write_failed(what: &str, e: &std::io::Error) -> Failure {
    let why = format!("{what} failed: {e}");
    if is_no_room(e) { Failure::NoRoom(why) } else { Failure::Fatal(why) }
}

impl Writer {
    /// Goes on in an open segment at `end`.
    pub(crate) fn new(shared: Arc<Shared>, file: Arc<dyn LogFile>, end: Position, sequence: u64) -> Self {
        let start = shared.config.start;
        let now = Instant::now();
        Self {
            shared,
            start,
            file,
            end,
            sequence,
            settled: true,
            unflushed_bytes: 0,
            unmeasured_bytes: 0,
            flushed_at: now,
            measured_at: now,
            index_measured_at: None,
            held: Vec::new(),
        }
    }

    /// Works until the log is closed or poisoned.
    pub(crate) fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        let _guard = PoisonOnPanic(&shared.queue);
        loop {
            if !self.held.is_empty() {
                if self.shared.queue.is_closing() {
                    self.poison("the node is shutting down, and there is no room on the disk for what it had accepted");
                } else {
                    std::thread::sleep(HELD_RETRY);
                }
                self.try_held();
                if let Some(poisoned) = self.shared.queue.poisoned() {
                    return self.shared.queue.poison(poisoned);
                }
                continue;
            }
            match self.shared.queue.take(GROUP_BYTES_MAX, UNITS_MAX, self.shared.config.idle_after) {
                Taken::Jobs(jobs) => self.handle_jobs(jobs),
                Taken::Idle => self.handle_idle(),
                Taken::Closed => break,
            }
            self.shared.stop_if_unreadable();
            if let Some(poisoned) = self.shared.queue.poisoned() {
                return self.shared.queue.poison(poisoned); // tells those who still wait
            }
        }
        if !self.settled {
            self.write_idle_point();
        }
        match self.shared.index.flush(true) {
            Err(e) if e.is_no_room() => {
                tracing::warn!("{e}; what it lacks is read from the segments at the next start")
            }
            Err(e) => self.poison(&e.to_string()),
            Ok(()) => {}
        }
    }

    /// Does what there is to do, and waits for nothing; with `idle` also what falls due when nothing comes.
    pub(crate) fn step(&mut self, idle: bool) {
        loop {
            self.try_held();
            if let Some(poisoned) = self.shared.queue.poisoned() {
                return self.shared.queue.poison(poisoned);
            }
            if !self.held.is_empty() {
                return;
            }
            match self.shared.queue.take(GROUP_BYTES_MAX, UNITS_MAX, Duration::ZERO) {
                Taken::Jobs(jobs) => self.handle_jobs(jobs),
                Taken::Idle if idle => return self.handle_idle(),
                Taken::Idle | Taken::Closed => return self.measure_when_due(),
            }
            self.shared.stop_if_unreadable();
        }
    }

    fn poison(&self, why: &str) {
        self.shared.queue.poison(Poisoned { why: why.into() });
    }

    /// Once more what found no room before.
    fn try_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.handle_jobs(held);
        }
    }

    /// In order: a unit may refill what the fence before it took out. What finds no room is held, with all that comes after it.
    fn handle_jobs(&mut self, jobs: Vec<Job>) {
        let mut units = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                Job::Unit(unit) => units.push(unit),
                later if !self.held.is_empty() => {
                    self.held.extend(units.drain(..).map(Job::Unit));
                    self.held.push(later);
                }
                later => {
                    self.handle_units(std::mem::take(&mut units));
                    match later {
                        later if !self.held.is_empty() => self.held.push(later),
                        Job::Fence(log, fence) => self.handle_fence(&log, &fence),
                        Job::Tell(done) => done(self.shared.queue.poisoned().map_or(Ok(()), Err)),
                        Job::Unit(_) => {}
                    }
                }
            }
        }
        if self.held.is_empty() {
            self.handle_units(units);
        } else {
            self.held.extend(units.into_iter().map(Job::Unit));
        }
        self.shared.figures.no_room.store(!self.held.is_empty(), Ordering::Relaxed);
        if self.held.is_empty() {
            self.flush_when_due();
            self.measure_when_due();
        } else {
            self.shared.measure_disk();
        }
    }

    fn handle_fence(&self, log: &LogName, fence: &Fence) {
        if self.shared.queue.poisoned().is_some() {
            return;
        }
        let mut applier = Applier::new(&self.shared, false);
        match applier.fence(log, fence).and_then(|_| applier.finish(None)) {
            Ok(advanced) => self.shared.tell(|| advanced),
            Err(e) => self.poison(&e.to_string()),
        }
    }

    fn handle_units(&mut self, units: Vec<QueuedUnit>) {
        if units.is_empty() {
            return;
        }
        if let Some(poisoned) = self.shared.queue.poisoned() {
            return units.into_iter().for_each(|unit| (unit.done)(Err(poisoned.clone())));
        }
        let bytes = units.iter().map(|unit| unit.bytes).sum();
        let written = self.write_group(&units);
        let applied = written.and_then(|(header, crc, encoded)| self.apply_group(&units, &header, crc, &encoded));
        match applied {
            Ok(advanced) => {
                units.into_iter().for_each(|unit| (unit.done)(Ok(())));
                self.shared.tell(|| advanced);
                self.shared.queue.release(bytes);
            }
            Err(Failure::NoRoom(why)) => {
                if !self.shared.figures.no_room.load(Ordering::Relaxed) {
                    tracing::error!("{why}: what was accepted waits until there is room");
                }
                self.held = units.into_iter().map(Job::Unit).collect();
                // First of all nothing more is taken, by any old measure of the disk: what the file gives back is for what was.
                self.shared.figures.no_room.store(true, Ordering::Relaxed);
                let released = self.shared.release_ballast();
                self.shared.measure_disk();
                if released {
                    self.try_held();
                }
            }
            Err(Failure::Fatal(why)) => {
                // Whoever submits from now on is refused; those on the way fail in order.
                let poisoned = self.shared.queue.begin_poison(Poisoned { why: why.into() });
                units.into_iter().for_each(|unit| (unit.done)(Err(poisoned.clone())));
                self.shared.queue.poison(poisoned);
            }
        }
    }

    /// Writes units as one group and makes it durable.
    fn write_group(&mut self, units: &[QueuedUnit]) -> Result<(GroupHeader, u32, Vec<EncodedUnit>), Failure> {
        let encoded: Vec<EncodedUnit> =
            units.iter().map(|unit| EncodedUnit::encode(unit.stored_at_us, &unit.records)).collect();
        let length = header_bytes(encoded.len()) + encoded.iter().map(|unit| unit.length).sum::<usize>();
        let durable = self.end;
        self.make_room(length as u64)?;
        let header = GroupHeader {
            position: self.end,
            length: length as u64,
            flags: if encoded.iter().any(|unit| unit.checkpoint) { FLAG_CHECKPOINT } else { 0 },
            start: self.start,
            sequence: self.sequence,
            durable,
            written_at_us: (self.shared.config.clock)(),
            units: encoded.iter().map(|unit| UnitLine { length: unit.length as u32, crc: unit.crc }).collect(),
            later: 0,
        };
        let crc = self.write_durably(&header, &encoded)?;
        Ok((header, crc, encoded))
    }

    fn write_durably(&mut self, header: &GroupHeader, encoded: &[EncodedUnit]) -> Result<u32, Failure> {
        let mut head = Vec::with_capacity(header.header_bytes());
        let crc = header.encode(self.shared.group_key(), &mut head);
        let mut parts = vec![IoSlice::new(&head)];
        for unit in encoded {
            let mut from = 0;
            for (at, body) in &unit.bodies {
                parts.push(IoSlice::new(unit.small.get(from..*at).unwrap_or_default()));
                parts.push(IoSlice::new(body));
                from = *at;
            }
            parts.push(IoSlice::new(unit.small.get(from..).unwrap_or_default()));
        }
        let end = align_up(header.position.at + header.length);
        let padding = end - header.position.at - header.length;
        parts.push(IoSlice::new(PADDING.get(..padding as usize).unwrap_or_default()));
        let place = |what: &str| {
            let name = self.shared.segment_name(header.position.segment);
            format!("{what} {name} at byte {}", header.position.at)
        };
        self.file.write_all_at(&mut parts, header.position.at).map_err(|e| write_failed(&place("writing"), &e))?;
        let begun = Instant::now();
        self.file.sync_data().map_err(|e| format!("{} failed: {e}", place("syncing")))?;
        self.shared.figures.sync_timer.count(begun.elapsed());
        self.end.at = end;
        self.sequence += 1;
        self.settled = header.units.is_empty();
        let figures = &self.shared.figures;
        let written = end - header.position.at;
        figures.newest_us.store(header.written_at_us, Ordering::Relaxed);
        figures.groups.fetch_add(1, Ordering::Relaxed);
        figures.syncs.fetch_add(1, Ordering::Relaxed);
        figures.written_bytes.fetch_add(written, Ordering::Relaxed);
        self.unflushed_bytes += written;
        self.unmeasured_bytes += written;
        self.shared.existing.lock().insert(self.end.segment, self.end.at);
        Ok(crc)
    }

    /// Puts a durable group into the index and into memory.
    fn apply_group(
        &self,
        units: &[QueuedUnit],
        header: &GroupHeader,
        crc: u32,
        encoded: &[EncodedUnit],
    ) -> Result<Vec<crate::log::contract::Advanced>, Failure> {
        let mut applier = Applier::new(&self.shared, false);
        let mut at = header.position.at + header.header_bytes() as u64;
        for (unit, encoded) in units.iter().zip(encoded) {
            let mut batches = encoded.batch_offsets.iter();
            for record in &unit.records {
                let offset = match record.batch() {
                    Some(_) => batches.next().copied().unwrap_or_default(),
                    None => 0,
                };
                let position = Position { at: at + u64::from(offset), ..header.position };
                let stored = Stored { position, at_us: unit.stored_at_us };
                applier.apply(record, stored).map_err(|e| Failure::Fatal(e.to_string()))?;
            }
            at += encoded.length as u64;
        }
        let applied = Applied { to: self.end, group: header.position, sequence: header.sequence, crc };
        applier.finish(Some(&applied)).map_err(|e| Failure::Fatal(e.to_string()))
    }

    /// Begins a new segment where the group does not fit into this one.
    fn make_room(&mut self, length: u64) -> Result<(), Failure> {
        let full = self.end.at.saturating_add(length) > self.shared.config.segment_bytes;
        if full && self.end.at > HEADER_BYTES {
            self.file.truncate(self.end.at).map_err(|e| {
                Failure::Fatal(format!(
                    "giving back the end of {} failed: {e}",
                    self.shared.segment_name(self.end.segment)
                ))
            })?;
            let (file, end) = begin_segment(&self.shared, self.end.segment + 1, self.end, self.sequence)?;
            self.file.end_writing();
            self.file = file;
            self.end = end;
        }
        Ok(())
    }

    fn handle_idle(&mut self) {
        if !self.settled {
            self.write_idle_point();
        }
        self.flush_when_due();
        self.measure_when_due();
    }

    /// Writes a group without units: proof that what is before it was durable.
    fn write_idle_point(&mut self) {
        let written = self.write_group(&[]);
        match written.and_then(|(header, crc, _)| self.apply_group(&[], &header, crc, &[]).map(drop)) {
            Ok(()) => {}
            Err(Failure::NoRoom(why)) => tracing::debug!("{why}"), // nobody waits for it; the next group says it too
            Err(Failure::Fatal(why)) => self.poison(&why),
        }
    }

    fn flush_when_due(&mut self) {
        let config = &self.shared.config;
        let due = self.unflushed_bytes >= config.flush_bytes || self.flushed_at.elapsed() >= config.flush_interval;
        if due && self.unflushed_bytes > 0 {
            self.unflushed_bytes = 0;
            self.flushed_at = Instant::now();
            match self.shared.index.flush(config.stepped) {
                Err(e) if e.is_no_room() => tracing::warn!("{e}; it is tried again"),
                Err(e) => self.poison(&e.to_string()),
                Ok(()) => {}
            }
        }
    }

    fn measure_when_due(&mut self) {
        let due = self.measured_at.elapsed() >= self.shared.config.measure_interval;
        let often = (self.shared.reserve() / 8).clamp(MEASURE_BYTES_MIN, MEASURE_EVERY_BYTES);
        if due || self.unmeasured_bytes >= often {
            self.measured_at = Instant::now();
            self.unmeasured_bytes = 0;
            self.shared.measure_disk();
        }
        if self.index_measured_at.is_none_or(|at| at.elapsed() >= INDEX_SIZE_EVERY) {
            self.index_measured_at = Some(Instant::now());
            self.shared.figures.index_bytes.store(self.shared.index.disk_bytes(), Ordering::Relaxed);
        }
    }
}

/// Makes a segment: its header and its name are durable when this returns.
fn begin_segment(
    shared: &Shared,
    number: u64,
    previous: Position,
    first_sequence: u64,
) -> Result<(Arc<dyn LogFile>, Position), Failure> {
    let path = shared.segment_path(number);
    let what = |what: &'static str| format!("{what} {}", path.display());
    let failed = |doing: &'static str| {
        let what = what(doing);
        move |e: std::io::Error| Failure::Fatal(format!("{what} failed: {e}"))
    };
    let config = &shared.config;
    let file = config.files.create(&path).map_err(|e| write_failed(&what("making"), &e))?;
    let free = config.files.free_bytes(&config.dir).unwrap_or(0);
    if free.saturating_sub(config.segment_bytes) > shared.reserve() {
        // Without room in advance the file simply grows.
        if let Err(e) = file.allocate(config.segment_bytes) {
            tracing::warn!("no room was set aside for {}: {e}", path.display());
        }
    }
    let header = SegmentHeader {
        format: FORMAT,
        number,
        directory: shared.identity.directory,
        made_at_us: (config.clock)(),
        previous: (previous.segment, previous.at),
        first_sequence,
        federation: shared.identity.federation.clone(),
        site: shared.identity.site.clone(),
        node: shared.identity.node.clone(),
    };
    let bytes = Bytes::from(header.encode());
    if let Err(e) = file.write_all_at(&mut [IoSlice::new(&bytes)], 0) {
        if is_no_room(&e) {
            config.files.remove(&path).map_err(failed("removing"))?; // it is made again when there is room
        }
        return Err(write_failed(&what("writing"), &e));
    }
    file.sync_data().map_err(failed("syncing"))?;
    let dir = path.parent().unwrap_or(&config.dir);
    config.files.sync_dir(dir).map_err(failed("syncing the directory of"))?;
    shared.figures.syncs.fetch_add(1, Ordering::Relaxed);
    shared.remember_file(number, &file);
    shared.existing.lock().insert(number, HEADER_BYTES);
    Ok((file, Position { segment: number, at: HEADER_BYTES }))
}

/// The segment in which an opened log goes on.
///
/// # Errors
/// In words.
pub(crate) fn first_segment(
    shared: &Shared,
    number: u64,
    previous: Position,
    first_sequence: u64,
) -> Result<(Arc<dyn LogFile>, Position), String> {
    begin_segment(shared, number, previous, first_sequence).map_err(|failure| match failure {
        Failure::Fatal(why) | Failure::NoRoom(why) => why,
    })
}
