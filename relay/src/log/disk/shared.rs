//! What the storage thread, submitters and readers of one open log share.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use seaway_federation_proto::ids::{Incarnation, LogName, Offset};

use super::{
    DiskConfig,
    cell::Cell,
    codec::{Fields, Position, PutFields},
    group::GroupKey,
    identity::Identity,
    index::{Changes, Index, IndexError},
    moving::Moving,
    queue::Queue,
    room::Shares,
    segment,
    tail::Tail,
    writer::Writer,
};
use crate::log::{
    contract::{Advanced, Damage, Listener, Poisoned, Role},
    files::{LockGuard, LogFile},
    sync_times::SyncTimer,
};

/// Segment files that are kept open for readers.
const OPEN_SEGMENTS_MAX: usize = 128;
/// How often an index without room is tried again.
const INDEX_RETRY: std::time::Duration = std::time::Duration::from_millis(250);
/// Damage that is listed; more is only counted in the log output.
const DAMAGE_LISTED_MAX: usize = 1000;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: DiskConfig,
    pub(crate) identity: Identity,
    pub(crate) index: Index,
    pub(crate) cells: RwLock<BTreeMap<LogName, Arc<Cell>>>,
    /// Held while a unit is checked and queued: keeps the order.
    pub(crate) submitting: Mutex<()>,
    pub(crate) queue: Queue,
    pub(crate) tail: Mutex<Tail>,
    pub(crate) open_segments: Mutex<BTreeMap<u64, Arc<dyn LogFile>>>,
    /// By segment. Those that are not (yet) counted here exist on disk nevertheless; see `existing`.
    pub(crate) space: Mutex<BTreeMap<u64, SegmentSpace>>,
    /// Segment files that there are, with the bytes in use.
    pub(crate) existing: Mutex<BTreeMap<u64, u64>>,
    pub(crate) checkpoints: Mutex<Checkpoints>,
    /// Held while space is given back, and what moving remembers.
    pub(crate) moving: Mutex<Moving>,
    pub(crate) next_id: AtomicU64,
    pub(crate) notify: Notify,
    pub(crate) figures: Figures,
    pub(crate) damage: Mutex<Vec<Damage>>,
    /// See [`DiskConfig::stepped`].
    pub(crate) stepped: Mutex<Weak<Mutex<Writer>>>,
    /// Held as long as anything here is used: RocksDB must be closed before another may open it.
    pub(crate) _lock: Arc<Box<dyn LockGuard>>,
}

/// The listener, and the order in which it is told.
#[derive(Default)]
pub(crate) struct Notify(pub(crate) Mutex<Option<Listener>>);

impl std::fmt::Debug for Notify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notify")
    }
}

/// Bytes of batches that one segment holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SegmentSpace {
    /// That were ever put into the index.
    pub(crate) indexed: u64,
    /// That were taken out again.
    pub(crate) dead: u64,
}

impl SegmentSpace {
    /// What still lives there, as the index counts it.
    pub(crate) fn live(&self) -> u64 {
        self.indexed.saturating_sub(self.dead)
    }
}

/// Counters since opening.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) groups: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_timer: SyncTimer,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) accepted_bytes: AtomicU64,
    pub(crate) disk_free: AtomicU64,
    pub(crate) disk_full: AtomicBool,
    pub(crate) index_bytes: AtomicU64,
    pub(crate) torn_bytes: AtomicU64,
    pub(crate) moved_bytes: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    /// Of the last one written.
    pub(crate) checkpoint_bytes: AtomicU64,
    pub(crate) reclaim_again: AtomicBool,
    /// When the newest durable group was written, microseconds since 1970; 0 if that is not known.
    pub(crate) newest_us: AtomicU64,
    /// What the file `reserve` keeps of the reserve.
    pub(crate) ballast_bytes: AtomicU64,
    pub(crate) shares: Shares,
    /// The storage thread holds what found no room.
    pub(crate) no_room: AtomicBool,
}

/// What is known of checkpoints in the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Checkpoints {
    /// The last two complete ones, older first: number, as of, and the sequence there.
    pub(crate) complete: Vec<(u64, Position, u64)>,
    /// The one that was begun last.
    pub(crate) begun: Option<(u64, Position, u64)>,
}

impl Checkpoints {
    pub(crate) fn begin(&mut self, number: u64, as_of: Position, sequence: u64) {
        self.begun = Some((number, as_of, sequence));
    }

    pub(crate) fn end(&mut self, number: u64) {
        if let Some(begun) = self.begun.take_if(|(begun, ..)| *begun == number) {
            self.complete.push(begun);
            let excess = self.complete.len().saturating_sub(2);
            self.complete.drain(..excess);
        }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.begun.iter().chain(&self.complete).map(|(number, ..)| *number).max().unwrap_or(0) + 1
    }

    /// Segments from this one on must stay.
    pub(crate) fn keep_from(&self) -> u64 {
        match self.complete.as_slice() {
            [(_, older, _), _] => older.segment,
            _ => 0,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, as_of, sequence) in &self.complete {
            out.put_u64(*number);
            out.put_position(*as_of);
            out.put_u64(*sequence);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let mut complete = Vec::new();
        while !fields.is_empty() {
            complete.push((fields.u64()?, fields.position()?, fields.u64()?));
        }
        Some(Self { complete, begun: None })
    }
}

impl Shared {
    pub(crate) fn cell(&self, log: &LogName) -> Option<Arc<Cell>> {
        self.cells.read().get(log).cloned()
    }

    pub(crate) fn cell_or_new(&self, log: &LogName, role: Role) -> Arc<Cell> {
        if let Some(cell) = self.cell(log) {
            return cell;
        }
        let mut cells = self.cells.write();
        Arc::clone(cells.entry(log.clone()).or_insert_with(|| Cell::new(log.clone(), role)))
    }

    /// Forgets a log of which nothing is left.
    pub(crate) fn forget_if_empty(&self, cell: &Arc<Cell>) {
        let empty = |cell: &Cell| {
            let state = cell.state.lock();
            state.submitted.is_none() && state.durable.is_none()
        };
        if !empty(cell) {
            return;
        }
        let _order = self.submitting.lock(); // a submitter may be about to begin it anew
        let mut cells = self.cells.write();
        if empty(cell) {
            cells.remove(&cell.name);
        }
    }

    /// Moves batches that are in the index now from `pending` to the tail.
    pub(crate) fn tail_keep(&self, appended: Vec<(Arc<Cell>, (Incarnation, Offset))>) {
        let mut gone = Vec::new();
        for (cell, key) in appended {
            let kept = {
                let mut state = cell.state.lock();
                let batch = state.pending.remove(&key);
                let held = state.durable.is_some();
                batch.filter(|_| held).map(|batch| {
                    let bytes = batch.len();
                    state.recent.insert(key, batch);
                    bytes
                })
            };
            if let Some(bytes) = kept {
                self.tail.lock().keep(cell, key, bytes, &mut gone);
            }
        }
        for (cell, key, _) in gone {
            cell.state.lock().recent.remove(&key);
        }
    }

    /// Tells the listener; in order, since what is told was computed before.
    pub(crate) fn tell(&self, advanced: impl FnOnce() -> Vec<Advanced>) {
        let listener = self.notify.0.lock();
        let advanced = advanced();
        if let Some(listener) = listener.as_ref()
            && !advanced.is_empty()
        {
            listener(&advanced);
        }
    }

    /// Stops accepting where the index could not be read: what depends on it must not be decided without it.
    pub(crate) fn stop_if_unreadable(&self) {
        if let Some(why) = self.index.unreadable() {
            let why = format!("the index cannot be read ({why}); it is made anew at the next start");
            self.queue.begin_poison(Poisoned { why: why.into() });
        }
    }

    /// Writes to the index; where that finds no room on the disk, it is held until there is some, or the log closes.
    pub(crate) fn write_index(&self, changes: Changes<'_>) -> Result<(), IndexError> {
        let mut told = false;
        let done = self.index.write_patiently(changes, |e| {
            if !std::mem::replace(&mut told, true) {
                tracing::error!("{e}: what is stored waits for it until there is room");
                self.figures.no_room.store(true, Ordering::Relaxed);
                self.release_ballast();
                self.measure_disk();
            }
            std::thread::sleep(INDEX_RETRY);
            !self.config.stepped && !self.queue.is_closing()
        });
        if told && done.is_ok() {
            self.figures.no_room.store(false, Ordering::Relaxed);
        }
        done
    }

    /// Lets a log without a thread do what somebody is about to wait for.
    pub(crate) fn step(&self) {
        let writer = self.stepped.lock().upgrade();
        if let Some(writer) = writer {
            writer.lock().step(false);
        }
    }

    /// What the checksums of this directory's group headers begin with.
    pub(crate) fn group_key(&self) -> GroupKey {
        GroupKey::of(&self.identity.directory)
    }

    /// Path of a segment.
    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        self.config.dir.join(segment::relative_path(number))
    }

    /// Name of a segment in reports.
    pub(crate) fn segment_name(&self, number: u64) -> String {
        self.segment_path(number).display().to_string()
    }

    /// The file of a segment, for reading.
    pub(crate) fn segment_file(&self, number: u64) -> std::io::Result<Arc<dyn LogFile>> {
        if let Some(file) = self.open_segments.lock().get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = self.config.files.open(&self.segment_path(number))?;
        self.remember_file(number, &file);
        Ok(file)
    }

    /// Keeps a file open; the oldest goes where there are too many.
    pub(crate) fn remember_file(&self, number: u64, file: &Arc<dyn LogFile>) {
        let mut open = self.open_segments.lock();
        open.insert(number, Arc::clone(file));
        if open.len() > OPEN_SEGMENTS_MAX {
            open.pop_first();
        }
    }

    /// Notes and reports damage.
    pub(crate) fn report_damage(&self, damage: Damage) {
        tracing::error!(file = %damage.file, from = damage.from, to = damage.to, "damage in the commit log: {}", damage.detail);
        let mut listed = self.damage.lock();
        if listed.len() < DAMAGE_LISTED_MAX && !listed.contains(&damage) {
            listed.push(damage);
        }
    }
}
