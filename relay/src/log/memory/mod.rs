//! The commit log's twin in memory: same contract, no disk, no threads of its own, no clock of its
//! own. What the disk would do at its own pace happens here when it is told to, so a simulation is
//! in command of it, and can go wrong in every way that a disk can.
//!
//! A [`MemoryDisk`] is what would survive a loss of power. Cloning one is an old copy of the disk;
//! [`MemoryLog::open`] on it starts a node from that copy. [`MemoryLog::sync_now`] makes what was accepted
//! durable; [`MemoryLog::crash`] ends the process and answers with the disk.
//!
//! A unit is all or nothing here by construction: what a crash leaves is a prefix of the units.

mod read;
mod state;

use std::{collections::VecDeque, fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::{Hole, HoleKind, LogInfo},
    envelope::Chain,
    ids::{LogName, Offset, Place},
};

use self::state::{State, StateUndo};
use super::contract::{
    Advanced, CommitLog, Done, Entry, Line, Listener, LogStats, Poisoned, Read, ReadError, RejectReason, Rejected,
    Retention, Role, Surveyed, Table, Unit, makes_room,
};

/// What survives a loss of power. A clone is an old copy of the disk; batches are shared, not copied.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    state: State,
}

impl MemoryDisk {
    /// The logs on the disk and how they stand.
    pub fn logs(&self) -> Vec<(LogName, LogInfo)> {
        self.state.copies.iter().map(|(name, copy)| (name.clone(), copy.info())).collect()
    }

    /// The batch that contains a place can be read no more: a stated hole to be fetched again, as the disk's log states it
    /// when it finds damage. Answers with the range; `None` where no batch is held there.
    pub fn damage(&mut self, log: &LogName, place: Place) -> Option<(Place, Offset)> {
        let batch = self.state.inner(log).containing(place)?.batch.clone();
        let (begin, end) = (batch.begin(), batch.end_offset());
        let hole = Hole { incarnation: begin.incarnation, from: begin.offset, to: end, kind: HoleKind::Pending };
        let (below, above) = (Some(batch.header().chain_before), Some(batch.chain_after()));
        let copy = self.state.copies.get_mut(log).ok()?;
        copy.damage(hole, below, above, batch.len() as u64).ok()?;
        self.state.batches.get_mut(log)?.remove(&(begin.incarnation, begin.offset));
        Some((begin, end))
    }
}

/// What of the units that were accepted but not synced is on the disk after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survive {
    /// None of them.
    Nothing,
    /// So many of them, in order.
    Units(usize),
}

/// Wall clock of the holder: microseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Settings of a [`MemoryLog`].
#[derive(Clone)]
pub struct MemoryConfig {
    /// Bound of what waits to be made durable, in bytes. One unit is accepted whatever its size when nothing waits.
    pub queued_bytes_max: u64,
    /// Whether each unit is durable at once: its `done` is then called before `submit` returns, on the submitter's thread.
    pub auto: bool,
    /// Room for batches in bytes; `None`: no bound. Units with an append past it are refused.
    pub room_bytes: Option<u64>,
    /// For times of appending.
    pub wall_us: WallClock,
}

impl Default for MemoryConfig {
    /// 64 MiB queue, durable when told, no bound of room, a clock that stands at 0.
    fn default() -> Self {
        Self { queued_bytes_max: 64 << 20, auto: false, room_bytes: None, wall_us: Arc::new(|| 0) }
    }
}

impl fmt::Debug for MemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConfig")
            .field("queued_bytes_max", &self.queued_bytes_max)
            .field("auto", &self.auto)
            .field("room_bytes", &self.room_bytes)
            .finish_non_exhaustive()
    }
}

struct Pending {
    unit: Unit,
    bytes: u64,
    appended_us: u64,
    done: Option<Done>,
}

struct Waiter {
    bytes: u64,
    wake: Box<dyn FnOnce() + Send>,
}

struct Shared {
    config: MemoryConfig,
    submitted: State,
    durable: State,
    pending: VecDeque<Pending>,
    queued_bytes: u64,
    waiters: Vec<Waiter>,
    listener: Option<Listener>,
    poisoned: Option<Poisoned>,
    fail_next: Option<Arc<str>>,
    syncing: bool,
    stats: LogStats,
}

/// The twin; see the module's documentation.
pub struct MemoryLog {
    shared: Mutex<Shared>,
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryLog")
    }
}

/// Length of a unit in the queue, in bytes.
fn unit_bytes(unit: &Unit) -> u64 {
    let entry = |entry: &Entry| match entry {
        Entry::Append { batch, .. } => batch.len() as u64,
        Entry::Put { key, value, .. } => (key.len() + value.len()) as u64,
        _ => 64,
    };
    unit.entries.iter().map(entry).sum()
}

/// What a unit takes of the queue's bound: its content and so much an entry, as on disk.
fn charge(unit: &Unit) -> u64 {
    const ENTRY_BYTES: u64 = 256;
    let entry = |entry: &Entry| match entry {
        Entry::Append { batch, .. } => batch.len() as u64,
        Entry::Put { key, value, .. } => (key.len() + value.len()) as u64,
        Entry::Delete { key, .. } => key.len() as u64,
        _ => 0,
    };
    unit.entries.iter().map(|e| entry(e) + ENTRY_BYTES).sum()
}

impl MemoryLog {
    /// Starts on what a disk holds.
    pub fn open(disk: MemoryDisk, config: MemoryConfig) -> Arc<Self> {
        let mut submitted = disk.state.clone();
        submitted.tables.clear();
        let shared = Shared {
            stats: LogStats { queued_bytes_max: config.queued_bytes_max, ..LogStats::default() },
            config,
            submitted,
            durable: disk.state,
            pending: VecDeque::new(),
            queued_bytes: 0,
            waiters: Vec::new(),
            listener: None,
            poisoned: None,
            fail_next: None,
            syncing: false,
        };
        Arc::new(Self { shared: Mutex::new(shared) })
    }

    /// Ends the process: nothing more is accepted, no `done` is called any more. Answers with the disk.
    pub fn crash(&self, survive: Survive) -> MemoryDisk {
        let mut shared = self.shared.lock();
        let units = match survive {
            Survive::Nothing => 0,
            Survive::Units(units) => units,
        };
        let mut state = shared.durable.clone();
        for pending in shared.pending.drain(..).take(units) {
            apply_all(&mut state, &pending);
        }
        shared.waiters.clear();
        shared.listener = None;
        shared.poisoned = Some(Poisoned { why: "the process has ended".into() });
        MemoryDisk { state }
    }

    /// The disk as it would be after a loss of power now, nothing unsynced surviving.
    pub fn disk_copy(&self) -> MemoryDisk {
        MemoryDisk { state: self.shared.lock().durable.clone() }
    }

    /// Makes what was accepted until now durable, calls each `done` in order, then the listener. A call
    /// from within a `done` does nothing.
    pub fn sync_now(&self) {
        let waiting = self.units_waiting();
        self.sync_units(waiting);
    }

    /// As [`MemoryLog::sync_now`], for the first `units` that wait.
    pub fn sync_units(&self, units: usize) {
        let mut left = units;
        {
            let mut shared = self.shared.lock();
            if shared.syncing {
                return;
            }
            shared.syncing = true;
        }
        while left > 0 {
            let Some(round) = self.sync_round(left) else { break };
            left -= round.dones.len().min(left);
            round.tell();
        }
        self.shared.lock().syncing = false;
    }

    /// Units accepted that are not durable yet.
    pub fn units_waiting(&self) -> usize {
        self.shared.lock().pending.len()
    }

    /// Makes the next write fail, with these words: the log is poisoned then.
    pub fn fail_next_write(&self, why: &str) {
        self.shared.lock().fail_next = Some(why.into());
    }

    /// Sets the room for batches in bytes.
    pub fn set_room(&self, room_bytes: Option<u64>) {
        self.shared.lock().config.room_bytes = room_bytes;
    }

    /// Makes the batch at a place unreadable: a damaged block. Answers whether there is one.
    pub fn damage(&self, log: &LogName, place: Place) -> bool {
        let mut shared = self.shared.lock();
        let Some(key) = shared.durable.inner(log).containing(place).map(|s| s.batch.begin()) else { return false };
        let key = (key.incarnation, key.offset);
        let Shared { submitted, durable, .. } = &mut *shared;
        for state in [submitted, durable] {
            if let Some(stored) = state.batches.get_mut(log).and_then(|batches| batches.get_mut(&key)) {
                stored.fenced = true;
            }
        }
        true
    }

    fn sync_round(&self, units: usize) -> Option<Round> {
        let mut shared = self.shared.lock();
        if shared.pending.is_empty() || shared.poisoned.is_some() {
            return None;
        }
        if let Some(why) = shared.fail_next.take() {
            let poisoned = Poisoned { why };
            shared.stats.poisoned = Some(poisoned.why.clone());
            shared.poisoned = Some(poisoned.clone());
            // What was written may yet be on the disk: the units stay for `crash` to decide.
            let dones = shared.pending.iter_mut().filter_map(|p| p.done.take()).collect();
            let wakes = shared.waiters.drain(..).map(|w| w.wake).collect();
            return Some(Round { dones, result: Err(poisoned), wakes, advanced: Vec::new(), listener: None });
        }
        let count = units.min(shared.pending.len());
        let taken: Vec<Pending> = shared.pending.drain(..count).collect();
        let mut touched = Vec::new();
        let mut dones = Vec::with_capacity(count);
        shared.stats.groups += 1;
        shared.stats.syncs += 1;
        for mut pending in taken {
            note(&mut touched, apply_all(&mut shared.durable, &pending));
            shared.queued_bytes = shared.queued_bytes.saturating_sub(charge(&pending.unit));
            shared.stats.written_bytes += pending.bytes;
            dones.extend(pending.done.take());
        }
        let advanced = touched.iter().map(|(log, shape)| shared.advanced(log, *shape)).collect();
        let wakes = shared.take_wakes();
        Some(Round { dones, result: Ok(()), wakes, advanced, listener: shared.listener.clone() })
    }
}

/// What is to be told, without the lock.
struct Round {
    dones: Vec<Done>,
    result: Result<(), Poisoned>,
    wakes: Vec<Box<dyn FnOnce() + Send>>,
    advanced: Vec<Advanced>,
    listener: Option<Listener>,
}

impl Round {
    fn tell(self) {
        for done in self.dones {
            done(self.result.clone());
        }
        if let Some(listener) = self.listener.filter(|_| !self.advanced.is_empty()) {
            listener(&self.advanced);
        }
        for wake in self.wakes {
            wake();
        }
    }
}

/// Carries out a unit that was checked when it was accepted, on a state that stands as that one stood.
fn apply_all(state: &mut State, pending: &Pending) -> Vec<(LogName, bool)> {
    let mut touched = Vec::new();
    for (index, entry) in pending.unit.entries.iter().enumerate() {
        match state.apply(entry, index, pending.appended_us, &mut StateUndo::default()) {
            Ok(log) => note(&mut touched, log),
            Err(reason) => {
                tracing::error!(%reason, "an accepted unit does not apply; this is a fault of the memory log")
            }
        }
        state.apply_to_tables(entry);
    }
    touched
}

fn note(touched: &mut Vec<(LogName, bool)>, more: impl IntoIterator<Item = (LogName, bool)>) {
    for (log, shape) in more {
        match touched.iter_mut().find(|(name, _)| *name == log) {
            Some((_, changed)) => *changed |= shape,
            None => touched.push((log, shape)),
        }
    }
}

impl Shared {
    fn is_own(&self, log: &LogName) -> bool {
        self.submitted.roles.get(log).or_else(|| self.durable.roles.get(log)) == Some(&Role::Own)
    }

    /// The state that readers of this log see.
    fn readable(&self, log: &LogName) -> &State {
        if self.is_own(log) { &self.durable } else { &self.submitted }
    }

    fn advanced(&self, log: &LogName, shape_changed: bool) -> Advanced {
        let durable = self.durable.copies.get(log);
        Advanced {
            log: log.clone(),
            readable: self.readable(log).copies.get(log).map(|copy| copy.end()),
            durable: durable.map(|copy| copy.end()),
            chain: durable.and_then(|copy| copy.chain_at_end()),
            shape_changed,
        }
    }

    fn take_wakes(&mut self) -> Vec<Box<dyn FnOnce() + Send>> {
        let room = self.config.queued_bytes_max.saturating_sub(self.queued_bytes);
        let empty = self.pending.is_empty();
        let (now, later) = self.waiters.drain(..).partition(|w: &Waiter| empty || w.bytes <= room);
        self.waiters = later;
        now.into_iter().map(|w| w.wake).collect()
    }

    /// Checks a unit against all bounds and rules; accepted, it has taken effect on the submitted state.
    fn accept(&mut self, unit: &Unit, bytes: u64, appended_us: u64) -> Result<Vec<(LogName, bool)>, RejectReason> {
        if let Some(poisoned) = &self.poisoned {
            return Err(poisoned.clone().into());
        }
        if !self.pending.is_empty() && self.queued_bytes.saturating_add(charge(unit)) > self.config.queued_bytes_max {
            return Err(RejectReason::Busy);
        }
        if let Some(room) = self.config.room_bytes.filter(|_| !makes_room(&unit.entries)) {
            let appends = unit.entries.iter().any(|entry| matches!(entry, Entry::Append { .. }));
            let used: u64 = self.submitted.copies.iter().map(|(_, copy)| copy.bytes()).sum();
            // State goes on until the last; what makes room, beyond.
            if used >= room || (appends && used.saturating_add(bytes) > room) {
                return Err(RejectReason::DiskFull { free: room.saturating_sub(used), needed: bytes });
            }
        }
        let mut undo = StateUndo::default();
        let mut touched = Vec::new();
        for (index, entry) in unit.entries.iter().enumerate() {
            match self.submitted.apply(entry, index, appended_us, &mut undo) {
                Ok(log) => note(&mut touched, log),
                Err(reason) => {
                    self.submitted.roll_back(undo);
                    return Err(reason);
                }
            }
        }
        Ok(touched)
    }
}

impl CommitLog for MemoryLog {
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        let bytes = unit_bytes(&unit);
        let (advanced, listener, auto) = {
            let mut shared = self.shared.lock();
            let appended_us = (shared.config.wall_us)();
            let touched = match shared.accept(&unit, bytes, appended_us) {
                Ok(touched) => touched,
                Err(reason) => return Err(Box::new(Rejected { unit, done, reason })),
            };
            shared.queued_bytes += charge(&unit);
            shared.stats.accepted_bytes += bytes;
            shared.pending.push_back(Pending { unit, bytes, appended_us, done: Some(done) });
            let copies = touched.into_iter().filter(|(log, _)| !shared.is_own(log));
            let advanced: Vec<Advanced> = copies.map(|(log, shape)| shared.advanced(&log, shape)).collect();
            (advanced, shared.listener.clone(), shared.config.auto)
        };
        if let Some(listener) = listener.filter(|_| !advanced.is_empty()) {
            listener(&advanced);
        }
        if auto {
            self.sync_units(usize::MAX);
        }
        Ok(())
    }

    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        let now = {
            let mut shared = self.shared.lock();
            shared.waiters.push(Waiter { bytes: bytes as u64, wake });
            if shared.poisoned.is_some() {
                shared.waiters.drain(..).map(|w| w.wake).collect()
            } else {
                shared.take_wakes()
            }
        };
        for wake in now {
            wake();
        }
    }

    fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        let shared = self.shared.lock();
        Ok(read::read(shared.readable(log), log, from, line, bytes_max))
    }

    fn read_cached(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Option<Read> {
        self.read(log, from, line, bytes_max).ok()
    }

    fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        let shared = self.shared.lock();
        Ok(read::find_time(shared.readable(log), log, time_us))
    }

    fn chain_at(&self, log: &LogName, place: Place) -> Result<Option<Chain>, ReadError> {
        let shared = self.shared.lock();
        Ok(read::chain_at(shared.readable(log), log, place))
    }

    fn info(&self, log: &LogName, durable: bool) -> Option<LogInfo> {
        let shared = self.shared.lock();
        let state = if durable { &shared.durable } else { &shared.submitted };
        state.copies.get(log).map(|copy| copy.info())
    }

    fn logs(&self) -> Vec<LogName> {
        self.shared.lock().submitted.copies.iter().map(|(name, _)| name.clone()).collect()
    }

    fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.shared.lock().durable.tables.get(&(table, Bytes::copy_from_slice(key))).cloned()
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let shared = self.shared.lock();
        let from = (table, Bytes::copy_from_slice(prefix));
        let pairs = shared.durable.tables.range(from..);
        pairs
            .take_while(|((found, key), _)| *found == table && key.starts_with(prefix))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    fn survey(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError> {
        Ok(read::survey(&self.shared.lock().durable, log, from, visit))
    }

    fn trim_target(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError> {
        let shared = self.shared.lock();
        Ok(read::trim_target(shared.readable(log), log, retention))
    }

    fn reclaim(&self) -> Result<u64, Poisoned> {
        match &self.shared.lock().poisoned {
            Some(poisoned) => Err(poisoned.clone()),
            None => Ok(0),
        }
    }

    fn set_listener(&self, listener: Listener) {
        self.shared.lock().listener = Some(listener);
    }

    fn stats(&self) -> LogStats {
        let shared = self.shared.lock();
        let live: u64 = shared.durable.copies.iter().map(|(_, copy)| copy.bytes()).sum();
        let used: u64 = shared.submitted.copies.iter().map(|(_, copy)| copy.bytes()).sum();
        LogStats {
            live_bytes: live,
            queued_bytes: shared.queued_bytes,
            disk_free: shared.config.room_bytes.map_or(u64::MAX, |room| room.saturating_sub(used)),
            disk_full: shared.config.room_bytes.is_some_and(|room| used >= room),
            ..shared.stats.clone()
        }
    }

    fn close(&self) -> Result<(), Poisoned> {
        self.sync_now();
        let mut shared = self.shared.lock();
        if let Some(why) = &shared.stats.poisoned {
            return Err(Poisoned { why: why.clone() });
        }
        shared.poisoned = Some(Poisoned { why: "it was closed".into() });
        Ok(())
    }
}
