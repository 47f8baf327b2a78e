//! Opening: lock, identity, index, the cut of what is torn, replay of what the index lacks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::{Facts, Hole, HoleKind, LogCopy},
    ids::{LogName, Place},
};

use super::{
    DiskConfig,
    apply::{Applier, Fence, Stored, damaged_range, misfit_damage},
    cell::{Cell, Durable},
    codec::{Fields, Position},
    group::{FIXED_BYTES, GroupHeader, GroupKey},
    identity::{self, Identity, OpenError, io_failed},
    index::{Applied, Family, Index, IndexError, batch_key, split_batch_key},
    moving::Moving,
    queue::Queue,
    rebuild,
    record::{DecodedUnit, Record, role_of},
    scan::{Depth, FoundGroup, Scanner, Step, read_padded},
    segment::{self, FORMAT, HEADER_BYTES},
    shared::{Checkpoints, Figures, Notify, SegmentSpace, Shared},
    survey::{self, End, OpenSegment},
    tail::Tail,
    writer::{Writer, first_segment},
};
use crate::log::{
    contract::Damage,
    files::{LockGuard, LogFile, create_dirs, sync_name},
};

/// With less room than this an opening that fails is taken to have failed for it, in bytes: the index alone takes some MiB.
const OPEN_ROOM_BYTES: u64 = 16 << 20;
/// Bytes that are replayed in one go before they are written to the index.
const REPLAY_BYTES: u64 = 16 << 20;

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes after the last durable point that were cut.
    pub torn_bytes: u64,
    /// Where they began: segment file and byte.
    pub torn_at: Option<(String, u64)>,
    /// Bytes of segments that were put into the index anew.
    pub replayed_bytes: u64,
    /// Why the index was rebuilt, if it was.
    pub rebuilt: Option<String>,
    /// Whether the index, which is only told what is durable, knew of more than the segments hold: acknowledged data is gone.
    pub cut_short: bool,
    /// Damage found: fenced, never cut.
    pub damage: Vec<Damage>,
}

/// Opens the directory and answers with what the storage thread and all others work on.
pub(crate) fn open(config: DiskConfig) -> Result<(Arc<Shared>, Writer, Recovery), OpenError> {
    let (files, dir) = (Arc::clone(&config.files), config.dir.clone());
    open_with(config).map_err(|e| match (&e, files.free_bytes(&dir)) {
        (OpenError::Index { .. } | OpenError::Io { .. }, Ok(free)) if free < OPEN_ROOM_BYTES => {
            OpenError::NoRoom { dir: dir.display().to_string(), free, why: e.to_string() }
        }
        _ => e,
    })
}

fn open_with(config: DiskConfig) -> Result<(Arc<Shared>, Writer, Recovery), OpenError> {
    let files = Arc::clone(&config.files);
    let dir = config.dir.clone();
    let segments = dir.join(segment::DIRECTORY);
    create_dirs(&*files, &segments).map_err(io_failed("making", &segments))?;
    sync_name(&*files, &dir).map_err(io_failed("syncing the directory of", &dir))?;
    let lock = Arc::new(identity::lock(&files, &dir)?);
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| OpenError::Io { what: "asking for random bytes".into(), why: e.to_string() })?;
    let identity = identity::claim(&files, &dir, &config.federation, &config.name, id)?;
    let mut numbers = survey::list(&files, &dir)?;
    let (index, applied, misfit) = open_index(&config, &identity, &numbers)?;
    // The names of lock, identity, segments and index. An index that is made anew later may lose its own: it is disposable.
    files.sync_dir(&dir).map_err(io_failed("syncing", &dir))?;
    let mut index = Some(index);
    let end = survey::survey(&files, &dir, &numbers, applied.as_ref(), Some(&identity.directory))?;
    let cut_short = misfit.as_ref().is_some_and(|misfit| misfit.ahead);
    let mut recovery = Recovery { rebuilt: misfit.map(|misfit| misfit.why), cut_short, ..Recovery::default() };
    if let Some(cut) = end.cut {
        recovery.torn_bytes = end.torn_bytes;
        recovery.torn_at = Some((dir.join(segment::relative_path(cut.segment)).display().to_string(), cut.at));
        tracing::warn!(
            bytes = end.torn_bytes,
            segment = cut.segment,
            at = cut.at,
            "cutting what was torn at the end of the commit log"
        );
        survey::cut(&files, &dir, &mut numbers, cut)?;
    }
    survey::settle(&files, &dir, &end)?;
    loop {
        let index = match index.take() {
            Some(index) => index,
            None => new_index(&config, &identity)?,
        };
        let shared = Arc::new(share(config.clone(), identity.clone(), index, Arc::clone(&lock)));
        shared.figures.torn_bytes.store(recovery.torn_bytes, Ordering::Relaxed);
        let replayed = replay(&shared, numbers.clone(), end.clone(), applied.as_ref(), &mut recovery);
        match replayed {
            Ok(writer) => {
                recovery.damage = shared.damage.lock().clone();
                shared.find_ballast();
                shared.keep_ballast();
                shared.measure_disk();
                return Ok((shared, writer, recovery));
            }
            // Its contents are no better than its files: the segments are what counts.
            Err(OpenError::Index { why, .. }) if recovery.rebuilt.is_none() => recovery.rebuilt = Some(why),
            Err(e) => return Err(e),
        }
    }
}

/// Brings index and memory up to the segments.
fn replay(
    shared: &Arc<Shared>,
    numbers: Vec<u64>,
    end: End,
    applied: Option<&Applied>,
    recovery: &mut Recovery,
) -> Result<Writer, OpenError> {
    let mut replay = Replay::new(shared, numbers, end);
    if let Some(why) = &recovery.rebuilt {
        tracing::warn!("the index is rebuilt from the segments: {why}");
        rebuild::rebuild(&mut replay)?;
    } else {
        load(shared).map_err(|e| index_failed(shared, &e))?;
        replay.from(&applied.copied().unwrap_or_default())?;
    }
    replay.fence_moved()?;
    if let Some(why) = shared.index.unreadable() {
        return Err(index_failed(shared, &IndexError(why.to_owned())));
    }
    let writer = replay.finish()?;
    recovery.replayed_bytes = replay.bytes;
    Ok(writer)
}

pub(crate) fn index_failed(shared: &Shared, e: &IndexError) -> OpenError {
    OpenError::Index { dir: shared.config.index_dir().display().to_string(), why: e.to_string() }
}

/// Why an index cannot be used.
#[derive(Debug)]
struct Misfit {
    why: String,
    /// It knows of groups that the segments do not hold.
    ahead: bool,
}

impl From<String> for Misfit {
    fn from(why: String) -> Self {
        Self { why, ahead: false }
    }
}

/// Opens the index if it fits the segments, else a new one, with the reason.
fn open_index(
    config: &DiskConfig,
    identity: &Identity,
    numbers: &[u64],
) -> Result<(Index, Option<Applied>, Option<Misfit>), OpenError> {
    let dir = config.index_dir();
    let misfit = match Index::open(&dir, config.stepped, config.ballast_bytes) {
        // On a full disk it may be as good as ever.
        Err(e) if config.files.free_bytes(&config.dir).is_ok_and(|free| free < OPEN_ROOM_BYTES) => {
            return Err(OpenError::Index { dir: dir.display().to_string(), why: e.to_string() });
        }
        Err(e) => Misfit::from(e.to_string()),
        Ok(index) => match check_index(config, identity, &index, numbers) {
            Ok(applied) if applied.is_some() || numbers.is_empty() => return Ok((index, applied, None)),
            Ok(_) => Misfit::from("it is empty".to_owned()),
            Err(misfit) => misfit,
        },
    };
    Ok((new_index(config, identity)?, None, Some(misfit)))
}

/// An empty index in place of what there is.
fn new_index(config: &DiskConfig, identity: &Identity) -> Result<Index, OpenError> {
    let dir = config.index_dir();
    let failed = |why: String| OpenError::Index { dir: dir.display().to_string(), why };
    Index::destroy(&dir).map_err(|e| failed(format!("it cannot be removed: {e}")))?;
    let index = Index::open(&dir, config.stepped, config.ballast_bytes).map_err(|e| failed(e.0))?;
    index.claim(&identity.directory).map_err(|e| failed(e.0))?;
    Ok(index)
}

/// How far the index was brought, or why it cannot be used with these segments.
fn check_index(
    config: &DiskConfig,
    identity: &Identity,
    index: &Index,
    numbers: &[u64],
) -> Result<Option<Applied>, Misfit> {
    if !index.claim(&identity.directory).map_err(|e| e.0)? {
        return Err("it is of another format or belongs to another data directory".to_owned().into());
    }
    let Some(applied) = index.applied().map_err(|e| e.0)? else { return Ok(None) };
    let group = applied.group;
    let name = config.dir.join(segment::relative_path(group.segment)).display().to_string();
    if !numbers.contains(&group.segment) {
        let newer = numbers.first().is_some_and(|first| *first > group.segment);
        return Err(match newer {
            true => format!("it is older than the oldest segment that is left ({name} is gone)").into(),
            false => Misfit { why: format!("it is ahead of the segments ({name} is not there)"), ahead: true },
        });
    }
    // A segment that went after this state of the index was made held state that only a checkpoint has now.
    let after = numbers.iter().filter(|number| **number >= applied.to.segment);
    if after.clone().zip(after.skip(1)).any(|(one, next)| *next != one + 1) {
        return Err("it is older than a segment that is gone".to_owned().into());
    }
    let file = config.files.open(std::path::Path::new(&name)).map_err(|e| format!("{name} cannot be opened: {e}"))?;
    let key = GroupKey::of(&identity.directory);
    match header_at(file.as_ref(), key, group) {
        Some((_, crc)) if crc == applied.crc => Ok(Some(applied)),
        Some(_) => {
            Err(format!("it does not belong to these segments (another group stands in {name} at {})", group.at).into())
        }
        None if is_damaged(&file, key, &applied) => Ok(Some(applied)),
        None => {
            let why = format!("it is ahead of the segments (its last group is not in {name} at {})", group.at);
            Err(Misfit { why, ahead: true })
        }
    }
}

fn header_at(file: &dyn LogFile, key: GroupKey, position: Position) -> Option<(GroupHeader, u32)> {
    let bytes = read_padded(file, position.at, FIXED_BYTES).ok()?;
    let bytes = read_padded(file, position.at, GroupHeader::claimed_bytes(&bytes)?).ok()?;
    GroupHeader::decode(&bytes, key, position)
}

/// Whether the index's last group was there and is damaged, rather than never there: the next one stands after it.
fn is_damaged(file: &Arc<dyn LogFile>, key: GroupKey, applied: &Applied) -> bool {
    header_at(file.as_ref(), key, applied.to).is_some_and(|(next, _)| next.sequence == applied.sequence + 1)
}

fn share(config: DiskConfig, identity: Identity, index: Index, lock: Arc<Box<dyn LockGuard>>) -> Shared {
    let moving = Mutex::new(Moving::new(config.moving_rate));
    Shared {
        queue: Queue::new(config.queue_bytes_max),
        tail: Mutex::new(Tail::new(config.tail_bytes_max)),
        config,
        identity,
        index,
        cells: Default::default(),
        submitting: Mutex::default(),
        open_segments: Mutex::default(),
        space: Mutex::default(),
        existing: Mutex::default(),
        checkpoints: Mutex::default(),
        moving,
        next_id: 1.into(),
        notify: Notify::default(),
        figures: Figures::default(),
        damage: Mutex::default(),
        stepped: Mutex::default(),
        _lock: lock,
    }
}

/// Takes into memory what the index says of logs, segments and checkpoints.
fn load(shared: &Shared) -> Result<(), IndexError> {
    let index = &shared.index;
    shared.next_id.store(index.next_id()?, Ordering::Relaxed);
    if let Some(bytes) = index.get(Family::Meta, b"checkpoints")? {
        *shared.checkpoints.lock() = Checkpoints::decode(&bytes).unwrap_or_default();
    }
    let mut space = BTreeMap::<u64, SegmentSpace>::new();
    index.visit(Family::Segments, b"", b"", |key, value| {
        if let (Some((number, [dead])), Some(bytes)) = (key.split_first_chunk::<8>(), Fields::new(value).u64()) {
            let counters = space.entry(u64::from_be_bytes(*number)).or_default();
            *(if *dead == 0 { &mut counters.indexed } else { &mut counters.dead }) = bytes;
        }
        true
    })?;
    *shared.space.lock() = space;
    let mut copies = BTreeMap::new();
    let mut bad = None;
    index.visit(Family::Logs, b"", b"", |key, value| {
        match (key.try_into().map(u64::from_be_bytes), read_log(value)) {
            (Ok(id), Some(log)) => _ = copies.insert(id, log),
            _ => bad = Some(IndexError("the state of a log is malformed".to_owned())),
        }
        bad.is_none()
    })?;
    if let Some(e) = bad {
        return Err(e);
    }
    index.visit(Family::Ends, b"", b"", |key, value| {
        let id = key.first_chunk::<8>().map(|id| u64::from_be_bytes(*id));
        if let Some(log) = id.and_then(|id| copies.get_mut(&id)) {
            grow(log, key, value);
        }
        true
    })?;
    let mut by_id = BTreeMap::new();
    let mut cells = shared.cells.write();
    for (id, log) in copies {
        let cell = Cell::new(log.name.clone(), log.role);
        {
            let mut state = cell.state.lock();
            let mut durable = Durable::new(id, log.copy);
            durable.version = log.version;
            durable.shape_changed = false;
            durable.grown = log.grown;
            state.durable = Some(durable);
            state.durable_life = 1;
        }
        by_id.insert(id, Arc::clone(&cell));
        cells.insert(log.name, cell);
    }
    index.visit(Family::Damage, b"", b"", |key, value| {
        if let Some(((id, incarnation, from), to)) = damaged_range(key, value)
            && let Some(cell) = by_id.get(&id)
        {
            cell.state.lock().damaged.insert((incarnation, from), to);
        }
        true
    })
}

/// A log as the index has it.
pub(crate) struct StoredLog {
    version: u32,
    pub(crate) role: crate::log::contract::Role,
    pub(crate) name: seaway_federation_proto::ids::LogName,
    pub(crate) copy: LogCopy,
    grown: BTreeMap<seaway_federation_proto::ids::Incarnation, u64>,
}

pub(crate) fn read_log(value: &[u8]) -> Option<StoredLog> {
    let mut fields = Fields::new(value);
    Some(StoredLog {
        version: fields.u32()?,
        role: role_of(fields.u8()?)?,
        name: fields.log()?,
        copy: LogCopy::decode(fields.rest()).ok()?,
        grown: BTreeMap::new(),
    })
}

/// Brings a stored copy to a stored end, as one append would.
pub(crate) fn grow(log: &mut StoredLog, key: &[u8], value: &[u8]) -> Option<()> {
    let mut padded = key.to_vec();
    padded.extend([0; 8]);
    let (_, incarnation, _) = split_batch_key(&padded)?;
    let mut fields = Fields::new(value);
    if fields.u32()? != log.version {
        return None; // of before the last change of shape
    }
    let (_, from) = log.copy.range_of(incarnation)?;
    let end = fields.u64()?;
    let chain = fields.option(Fields::chain)?;
    let bytes = fields.u64()?;
    let begin = seaway_federation_proto::ids::Place { incarnation, offset: from };
    let facts = Facts {
        begin,
        end,
        first_of_incarnation: false,
        previous: None,
        chain_before: log.copy.known_chain(begin).unwrap_or_default(),
        chain_after: chain?,
        origin_time_us: fields.u64()?,
        bytes,
    };
    log.copy.append(&facts, &seaway_federation_proto::copies::TakenAsGiven).ok()?;
    log.grown.insert(incarnation, bytes);
    Some(())
}

/// Goes through the segments and brings the index up to them.
pub(crate) struct Replay<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) numbers: Vec<u64>,
    end: End,
    bytes: u64,
    /// Segments that were removed on purpose.
    pub(crate) reclaimed: BTreeSet<u64>,
    /// Segments that are not there; damage, unless they turn out to be reclaimed.
    pub(crate) missing: BTreeSet<u64>,
    /// Batches that were moved to bytes which are bad now.
    moved_bad: Vec<(LogName, Facts)>,
    /// The last group that was read.
    last: Applied,
    /// Whether the log may go on in its last segment.
    clean: bool,
}

impl<'a> Replay<'a> {
    fn new(shared: &'a Arc<Shared>, numbers: Vec<u64>, end: End) -> Self {
        Self {
            shared,
            numbers,
            end,
            bytes: 0,
            reclaimed: BTreeSet::new(),
            missing: BTreeSet::new(),
            moved_bad: Vec::new(),
            last: Applied::default(),
            clean: true,
        }
    }

    pub(crate) fn open(&self, number: u64) -> Result<OpenSegment, OpenError> {
        let config = &self.shared.config;
        survey::open_segment(&config.files, &config.dir, number, Some(&self.shared.identity.directory))
    }

    pub(crate) fn damage(&self, number: u64, from: u64, to: u64, detail: &str) {
        let file = self.shared.segment_name(number);
        self.shared.report_damage(Damage { file, from, to, detail: detail.to_owned() });
    }

    /// Replays everything after `applied`.
    pub(crate) fn from(&mut self, applied: &Applied) -> Result<(), OpenError> {
        self.last = *applied;
        let numbers: Vec<u64> = self.numbers.iter().copied().filter(|n| *n >= applied.to.segment).collect();
        let mut before: Option<u64> = (applied.to.segment > 0).then_some(applied.to.segment);
        for (index, number) in numbers.iter().enumerate() {
            if let Some(before) = before
                && *number > before + 1
            {
                self.missing.extend(before + 1..*number);
            }
            before = Some(*number);
            let next = numbers.get(index + 1).copied();
            self.segment(*number, next)?;
        }
        Ok(())
    }

    fn segment(&mut self, number: u64, next: Option<u64>) -> Result<(), OpenError> {
        let open = self.open(number)?;
        let resumes = self.last.to.segment == number;
        self.clean = true;
        if open.header.is_none() && !resumes {
            self.damage(number, 0, HEADER_BYTES, "the segment's header is damaged");
        }
        // All of a segment is of one format: an older one is not gone on in.
        self.clean &= open.header.as_ref().is_some_and(|header| header.format == FORMAT);
        let from = if resumes { self.last.to } else { Position { segment: number, at: HEADER_BYTES } };
        let path = self.shared.segment_path(number);
        let mut scanner =
            Scanner::new(Arc::clone(&open.file), self.shared.group_key(), from, self.last.sequence, Depth::Bodies)
                .map_err(io_failed("reading", &path))?;
        let mut applier = Applier::new(self.shared, true);
        let mut unwritten = 0;
        let end = loop {
            match scanner.step().map_err(io_failed("reading", &path))? {
                Step::Group(group) => {
                    self.take_group(&mut applier, &group)?;
                    unwritten += group.header.length;
                    self.clean &= group.bad().is_empty();
                    if unwritten >= REPLAY_BYTES {
                        let full = std::mem::replace(&mut applier, Applier::new(self.shared, true));
                        self.write(full)?;
                        unwritten = 0;
                    }
                }
                Step::Bad(range) => self.damage(number, range.from, range.to, &range.detail),
                Step::End { at, .. } => break at,
            }
        };
        self.write(applier)?;
        self.check_end(number, next, end)
    }

    /// Whether the segment ends where it should.
    fn check_end(&mut self, number: u64, next: Option<u64>, end: u64) -> Result<(), OpenError> {
        let mut should = if self.end.durable.segment == number { self.end.durable.at } else { end };
        if let Some(next) = next {
            let header = self.open(next)?.header;
            should = header.filter(|h| h.previous.0 == number).map_or(should, |h| should.max(h.previous.1));
        }
        if end < should {
            self.clean = false;
            self.damage(number, end, should, "bytes that were durable are gone");
        }
        self.shared.existing.lock().insert(number, end.max(should));
        Ok(())
    }

    fn take_group(&mut self, applier: &mut Applier<'_>, group: &FoundGroup) -> Result<(), OpenError> {
        let header = &group.header;
        for bad in group.bad() {
            self.damage(header.position.segment, bad.from, bad.to, &bad.detail);
        }
        for found in &group.units {
            let Some(unit) = &found.unit else { continue };
            for (at, located) in unit.records.iter().enumerate() {
                take_lost(applier, unit, at).map_err(|e| index_failed(self.shared, &e))?;
                if let Record::Reclaimed { segment } = located.record {
                    self.reclaimed.insert(segment);
                }
                let at = found.from + u64::from(located.batch_at);
                let stored = Stored { position: Position { at, ..header.position }, at_us: unit.stored_at_us };
                applier.apply(&located.record, stored).map_err(|e| index_failed(self.shared, &e))?;
            }
            take_lost(applier, unit, unit.records.len()).map_err(|e| index_failed(self.shared, &e))?;
            self.moved_bad.append(&mut applier.moved_bad);
            for what in applier.misfits.drain(..) {
                let file = self.shared.segment_name(header.position.segment);
                self.shared.report_damage(misfit_damage(&file, header.position, what));
            }
        }
        self.bytes += header.length;
        self.last = Applied { to: header.end(), group: header.position, sequence: header.sequence, crc: group.crc };
        Ok(())
    }

    /// Only now it is known which segments are left, and so what a bad copy of a batch takes away.
    fn fence_moved(&mut self) -> Result<(), OpenError> {
        let bad = std::mem::take(&mut self.moved_bad);
        if bad.is_empty() {
            return Ok(());
        }
        let mut applier = Applier::new(self.shared, true);
        let fenced = bad.iter().try_for_each(|(log, facts)| applier.fence_moved(log, facts, &self.numbers));
        fenced.map_err(|e| index_failed(self.shared, &e))?;
        self.write(applier)
    }

    /// Fences what the index has in a segment that is not there, so that it is fetched again before anybody asks for it.
    fn fence_missing(&self, number: u64) -> Result<(), IndexError> {
        let shared = self.shared;
        let cells: Vec<Arc<Cell>> = shared.cells.read().values().cloned().collect();
        let id_of = |cell: &Arc<Cell>| cell.state.lock().durable.as_ref().map(|durable| durable.id);
        let cells: BTreeMap<u64, Arc<Cell>> =
            cells.into_iter().filter_map(|cell| Some((id_of(&cell)?, cell))).collect();
        let mut from = Vec::new();
        loop {
            let found = shared.pointing_into(number, &from)?;
            let Some((id, last, _)) = found.last() else { return Ok(()) };
            from = batch_key(*id, last.incarnation, last.offset + 1).to_vec();
            let mut applier = Applier::new(shared, true);
            for (id, begin, entry) in found {
                let Some(cell) = cells.get(&id) else { continue };
                let Place { incarnation, offset } = begin;
                let to = offset + u64::from(entry.count);
                let hole = Hole { incarnation, from: offset, to, kind: HoleKind::Pending };
                let below =
                    offset.checked_sub(1).map(|before| shared.index.floor(id, incarnation, before)).transpose()?;
                let below = below.flatten().filter(|(begin, e)| begin + u64::from(e.count) == offset);
                let below = below.map(|(_, entry)| entry.chain_after);
                let fence = Fence { id, hole, below, above: Some(entry.chain_after), bytes: u64::from(entry.length) };
                if applier.fence(&cell.name, &fence)? {
                    cell.state.lock().damaged.insert((incarnation, offset), to);
                }
            }
            applier.finish(None)?;
        }
    }

    pub(crate) fn write(&self, applier: Applier<'_>) -> Result<(), OpenError> {
        let applied = (self.last.sequence > 0).then_some(&self.last);
        applier.finish(applied).map(drop).map_err(|e| index_failed(self.shared, &e))
    }

    /// Takes from the last group when it was written.
    fn note_newest_time(&self) {
        let group = self.last.group;
        let newest = self.open(group.segment).ok().and_then(|open| {
            let (header, _) = header_at(open.file.as_ref(), self.shared.group_key(), group)?;
            Some(header.written_at_us)
        });
        self.shared.figures.newest_us.store(newest.unwrap_or(0), Ordering::Relaxed);
    }

    /// Checks what only now can be told, and says where the log goes on.
    fn finish(&mut self) -> Result<Writer, OpenError> {
        let shared = self.shared;
        if self.last.group.segment > 0 {
            self.note_newest_time();
        }
        let config = &shared.config;
        for number in &self.numbers {
            if shared.existing.lock().contains_key(number) {
                continue;
            }
            let path = shared.segment_path(*number);
            let len = config.files.open(&path).and_then(|file| file.len()).map_err(io_failed("opening", &path))?;
            shared.existing.lock().insert(*number, len);
        }
        let live = |space: &SegmentSpace| space.indexed > space.dead;
        let expected = shared.space.lock();
        self.missing.extend(expected.iter().filter(|(_, space)| live(space)).map(|(number, _)| *number));
        drop(expected);
        let gone = |n: &&u64| !self.numbers.contains(n) && !self.reclaimed.contains(n);
        let gone: Vec<u64> = self.missing.iter().filter(gone).copied().collect();
        for number in gone {
            self.damage(number, 0, 0, "the segment file is missing");
            self.fence_missing(number).map_err(|e| index_failed(shared, &e))?;
        }
        for cell in shared.cells.read().values() {
            let mut state = cell.state.lock();
            state.submitted = state.durable.as_ref().map(|durable| durable.copy.clone());
            state.submitted_life = state.durable_life;
            state.pending.clear();
        }
        let sequence = self.last.sequence + 1;
        let (file, end) = match self.numbers.last() {
            Some(number) if self.clean && shared.existing.lock().contains_key(number) => {
                let file = self.open(*number)?.file;
                let at = if self.last.to.segment == *number { self.last.to.at } else { HEADER_BYTES };
                (file, Position { segment: *number, at })
            }
            last => {
                let number = last.copied().unwrap_or(0).max(self.last.to.segment).max(self.end.durable.segment) + 1;
                let previous = match last {
                    Some(last) => Position {
                        segment: *last,
                        at: shared.existing.lock().get(last).copied().unwrap_or(HEADER_BYTES),
                    },
                    None => Position::default(),
                };
                let begun = first_segment(shared, number, previous, sequence);
                begun.map_err(|why| OpenError::Io { what: "beginning a segment".into(), why })?
            }
        };
        Ok(Writer::new(Arc::clone(shared), file, end, sequence))
    }
}

/// Fences the bad batches that stand in a unit after so many good records.
fn take_lost(applier: &mut Applier<'_>, unit: &DecodedUnit, after: usize) -> Result<(), IndexError> {
    for bad in unit.bad.iter().filter(|bad| bad.after == after) {
        match &bad.lost {
            Some((_, log, facts)) if bad.moved => applier.moved_bad.push((log.clone(), *facts)),
            Some((role, log, facts)) => applier.lost(*role, log, facts)?,
            None => {}
        }
    }
    Ok(())
}
