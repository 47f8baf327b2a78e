//! The open log: what [`CommitLog`] asks, handed to who does it.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::LogInfo,
    envelope::Chain,
    ids::{Incarnation, LogName, NodeName, Place, Start},
};

use super::{
    OpenError, Recovery, apply::state_key, cell::CellState, index::Family, recover, shared::Shared, writer::Writer,
};
use crate::log::{
    contract::{
        CommitLog, Done, Line, Listener, LogStats, Poisoned, Read, ReadError, Rejected, Retention, Role, Surveyed,
        Table, Unit,
    },
    files::{Files, OsFiles},
};

/// Wall clock: microseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Settings of a commit log on disk.
#[derive(Clone)]
pub struct DiskConfig {
    /// The data directory; made if it is not there.
    pub dir: PathBuf,
    /// Directory of the index; `None`: `index` in the data directory.
    pub index_dir: Option<PathBuf>,
    /// The federation.
    pub federation: String,
    /// This node.
    pub name: NodeName,
    /// This start of the process.
    pub start: Start,
    /// Size of a segment file in bytes; a larger group gets a file of its own.
    pub segment_bytes: u64,
    /// Free bytes of the disk below which appends are refused.
    pub reserve_bytes: u64,
    /// What of that is kept in a file, so that nobody else can take it; made when there is room for it, 0 for none.
    pub ballast_bytes: u64,
    /// What own logs may take of the disk, their part of the overhead counted; `None`: all but the reserve.
    pub own_bytes_max: Option<u64>,
    /// What copies may take, likewise.
    pub copies_bytes_max: Option<u64>,
    /// Bound of the append queue in bytes.
    pub queue_bytes_max: usize,
    /// Bytes of recent batches kept in memory.
    pub tail_bytes_max: usize,
    /// The index is flushed after so many bytes of segments …
    pub flush_bytes: u64,
    /// … or after this time, whichever comes first.
    pub flush_interval: Duration,
    /// How long nothing must have come before the log writes its idle durable point.
    pub idle_after: Duration,
    /// A checkpoint is written after so many bytes of segments since the last.
    pub checkpoint_bytes: u64,
    /// Dead share of old segments (0 to 1) above which what lives in them is moved to the end.
    pub dead_share_max: f64,
    /// Bytes a second that are moved; `u64::MAX`: no bound.
    pub moving_rate: u64,
    /// How often the room on the disk is measured, and no more often.
    pub measure_interval: Duration,
    /// Works without a thread of its own: what is queued is written by [`DiskLog::step`] and by whoever waits for it, and
    /// RocksDB's flushes are waited for. One sequence of calls is then one sequence of operations on the disk: for
    /// tests that must replay.
    pub stepped: bool,
    /// The disk.
    pub files: Arc<dyn Files>,
    /// Wall clock for times of storing.
    pub clock: WallClock,
}

impl fmt::Debug for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskConfig")
            .field("dir", &self.dir)
            .field("federation", &self.federation)
            .field("name", &self.name)
            .field("segment_bytes", &self.segment_bytes)
            .field("reserve_bytes", &self.reserve_bytes)
            .field("queue_bytes_max", &self.queue_bytes_max)
            .field("tail_bytes_max", &self.tail_bytes_max)
            .finish_non_exhaustive()
    }
}

impl DiskConfig {
    /// Settings with everything but the names at its default: 256 MiB segments, a reserve of 256 MiB, a queue and
    /// tail of 64 MiB, index flushes each 1 GiB or 60 s, a checkpoint each 1 GiB, moving from a dead share of 0.4 on at 32 MiB a second, the system's disk and
    /// clock.
    pub fn new(dir: PathBuf, federation: &str, name: NodeName, start: Start) -> Self {
        Self {
            dir,
            index_dir: None,
            federation: federation.to_owned(),
            name,
            start,
            segment_bytes: 256 << 20,
            reserve_bytes: 256 << 20,
            ballast_bytes: 0,
            own_bytes_max: None,
            copies_bytes_max: None,
            queue_bytes_max: 64 << 20,
            tail_bytes_max: 64 << 20,
            flush_bytes: 1 << 30,
            flush_interval: Duration::from_secs(60),
            idle_after: Duration::from_millis(100),
            checkpoint_bytes: 1 << 30,
            dead_share_max: 0.4,
            moving_rate: 32 << 20,
            measure_interval: Duration::from_millis(250),
            stepped: false,
            files: Arc::new(OsFiles),
            clock: Arc::new(wall_us),
        }
    }

    pub(crate) fn index_dir(&self) -> PathBuf {
        self.index_dir.clone().unwrap_or_else(|| self.dir.join("index"))
    }
}

fn wall_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// A commit log on disk, open. Dropping it closes it.
#[derive(Debug)]
pub struct DiskLog {
    pub(super) shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// In place of the thread; see [`DiskConfig::stepped`].
    stepped: Option<Arc<Mutex<Writer>>>,
}

impl DiskLog {
    /// Opens the log in a directory, or makes one. Waits on the disk. What was found is answered, and logged.
    pub fn open(config: DiskConfig) -> Result<(Arc<DiskLog>, Recovery), OpenError> {
        let (shared, mut writer, recovery) = recover::open(config)?;
        if shared.config.stepped {
            let writer = Arc::new(Mutex::new(writer));
            *shared.stepped.lock() = Arc::downgrade(&writer);
            return Ok((Arc::new(Self { shared, thread: Mutex::new(None), stepped: Some(writer) }), recovery));
        }
        let thread = std::thread::Builder::new().name("seaway-log".into()).spawn(move || writer.run());
        let thread =
            thread.map_err(|e| OpenError::Io { what: "starting the storage thread".into(), why: e.to_string() })?;
        Ok((Arc::new(Self { shared, thread: Mutex::new(Some(thread)), stepped: None }), recovery))
    }

    /// Writes what is queued, as one group if it fits, and with `idle` also what a log writes that falls idle. Only for a
    /// log that is [stepped](DiskConfig::stepped); of others it does nothing.
    pub fn step(&self, idle: bool) {
        if let Some(writer) = &self.stepped {
            writer.lock().step(idle);
        }
    }

    fn end(&self) -> Result<(), Poisoned> {
        self.shared.queue.close();
        if let Some(writer) = &self.stepped {
            writer.lock().run();
        }
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            self.shared.queue.poison(Poisoned { why: "the storage thread failed".into() });
        }
        self.shared.queue.poisoned().map_or(Ok(()), Err)
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            tracing::error!("closing the commit log: {e}");
        }
    }
}

impl CommitLog for DiskLog {
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        self.shared.submit_unit(unit, done)
    }

    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        self.shared.queue.wake_when(bytes, wake);
    }

    fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        self.shared.read_log(log, from, line, bytes_max)
    }

    fn read_cached(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Option<Read> {
        self.shared.read_log_cached(log, from, line, bytes_max)
    }

    fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        self.shared.find_time_in(log, time_us)
    }

    fn chain_at(&self, log: &LogName, place: Place) -> Result<Option<Chain>, ReadError> {
        self.shared.chain_in(log, place)
    }

    fn info(&self, log: &LogName, durable: bool) -> Option<LogInfo> {
        let cell = self.shared.cell(log)?;
        let state = cell.state.lock();
        let CellState { submitted, durable: on_disk, .. } = &*state;
        let copy = if durable { on_disk.as_ref().map(|durable| &durable.copy) } else { submitted.as_ref() };
        copy.map(seaway_federation_proto::copies::LogCopy::info)
    }

    fn newest(&self, log: &LogName) -> Option<Incarnation> {
        self.shared.cell(log)?.state.lock().submitted.as_ref()?.newest()
    }

    fn bytes(&self, log: &LogName) -> Option<u64> {
        Some(self.shared.cell(log)?.state.lock().durable.as_ref()?.copy.bytes())
    }

    fn logs(&self) -> Vec<LogName> {
        self.shared.cells.read().keys().cloned().collect()
    }

    fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        let found = self.shared.index.get(Family::State, &state_key(table as u8, key));
        found.unwrap_or_else(|e| {
            tracing::error!("a value cannot be read: {e}");
            self.shared.stop_if_unreadable();
            None
        })
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let mut pairs = Vec::new();
        let prefix = state_key(table as u8, prefix);
        let found = self.shared.index.visit(Family::State, &prefix, b"", |key, value| {
            let key = key.get(1..).unwrap_or_default();
            pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            true
        });
        if let Err(e) = found {
            tracing::error!("a table cannot be read: {e}");
            self.shared.stop_if_unreadable();
        }
        pairs
    }

    fn survey(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError> {
        self.shared.survey_line(log, from, visit)
    }

    fn trim_target(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError> {
        self.shared.trim_target_of(log, retention)
    }

    fn reclaim(&self) -> Result<u64, Poisoned> {
        self.shared.reclaim_space()
    }

    fn set_listener(&self, listener: Listener) {
        *self.shared.notify.0.lock() = Some(listener);
    }

    fn stats(&self) -> LogStats {
        let shared = &self.shared;
        let figures = &shared.figures;
        let get = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
        let (queued, queued_max) = shared.queue.fill();
        let live = |cell: &Arc<super::cell::Cell>| {
            cell.state.lock().durable.as_ref().map_or(0, |durable| durable.copy.bytes())
        };
        let (segments, segment_bytes) = {
            let existing = shared.existing.lock();
            (existing.len() as u64, existing.values().sum())
        };
        LogStats {
            poisoned: shared.queue.poisoned().map(|poisoned| poisoned.why),
            segments,
            segment_bytes,
            live_bytes: shared.cells.read().values().map(live).sum(),
            index_bytes: get(&figures.index_bytes),
            queued_bytes: queued as u64,
            queued_bytes_max: queued_max as u64,
            groups: get(&figures.groups),
            syncs: get(&figures.syncs),
            sync_times: figures.sync_timer.times(),
            written_bytes: get(&figures.written_bytes),
            waits_for_room: figures.no_room.load(Ordering::Relaxed),
            newest_us: get(&figures.newest_us),
            index_written_bytes: shared.index.written_bytes(),
            ballast_bytes: get(&figures.ballast_bytes),
            moved_bytes: get(&figures.moved_bytes),
            checkpoints: get(&figures.checkpoints),
            checkpoint_bytes: get(&figures.checkpoint_bytes),
            reclaim_again: figures.reclaim_again.load(Ordering::Relaxed),
            accepted_bytes: get(&figures.accepted_bytes),
            disk_free: get(&figures.disk_free),
            disk_full: figures.disk_full.load(Ordering::Relaxed),
            short: shared.is_short(),
            own_room: shared.own_room(),
            own_full: figures.shares.of(Role::Own).is_full(),
            copies_full: figures.shares.of(Role::Copy).is_full(),
            damage: shared.damage.lock().clone(),
            torn_bytes: get(&figures.torn_bytes),
        }
    }

    fn close(&self) -> Result<(), Poisoned> {
        self.end()
    }
}
