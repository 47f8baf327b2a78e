//! The replication machine's changes of durable state, on their way into the commit log: in order, each list one unit.
//!
//! What must not overtake a change waits here too: a fetch whose copy is yet to be begun, until the change is accepted; an
//! answer that promises durability ("registered", "seen"), until it is durable.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use seaway_federation_proto::replication::{Change, StateTable};

use super::command::{LinkCommand, Mailbox};
use crate::log::contract::{CommitLog, Entry, Poisoned, RejectReason, Table, Unit};

/// How long a change that the full disk refused waits until it is tried again.
const DISK_FULL_RETRY: Duration = Duration::from_secs(1);
/// Most changes and posts waiting for room; past it what comes is dropped, and what it was for is asked again.
const WAITING_MAX: usize = 65_536;

type Post = (Arc<dyn Mailbox>, LinkCommand);

enum Waiting {
    Store(Vec<Entry>),
    Post(Post),
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// When to try again after the disk was full.
    retry_at: Option<Duration>,
    disk_full: bool,
    /// Changes taken so far.
    taken: u64,
    /// Posts that wait until so many changes are settled.
    promises: VecDeque<(u64, Post)>,
}

/// See the module's documentation.
pub(super) struct Stores {
    log: Arc<dyn CommitLog>,
    wake: Arc<dyn Fn() + Send + Sync>,
    state: Mutex<State>,
    /// Changes that are durable, or turned out to have nothing in them.
    settled: Arc<AtomicU64>,
    dropped: AtomicU64,
    busy: Arc<AtomicBool>,
}

pub(super) fn table_of(table: StateTable) -> Table {
    match table {
        StateTable::Starts => Table::Starts,
        StateTable::Registrations => Table::Registrations,
        StateTable::Held => Table::Held,
        StateTable::Sites => Table::Sites,
        StateTable::Nodes => Table::Nodes,
    }
}

fn entry_of(change: Change) -> Entry {
    match change {
        Change::BeginCopy { log, at, chain } => Entry::BeginCopy { log, at, chain },
        Change::Drop { log } => Entry::Drop { log },
        Change::Hole { log, hole } => Entry::Hole { log, hole },
        Change::Rekind { log, hole, was } => Entry::Rekind { log, hole, was },
        Change::Put { table, key, value } => Entry::Put { table: table_of(table), key, value },
        Change::Delete { table, key } => Entry::Delete { table: table_of(table), key },
    }
}

impl Stores {
    pub(super) fn new(log: Arc<dyn CommitLog>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        let (settled, busy) = (Arc::default(), Arc::default());
        Self { log, wake, state: Mutex::default(), settled, dropped: AtomicU64::new(0), busy }
    }

    /// Submits a list of changes as one unit, after those that wait.
    pub(super) fn store(&self, changes: Vec<Change>) {
        let mut state = self.state.lock();
        if state.waiting.len() >= WAITING_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.taken += 1;
        state.waiting.push_back(Waiting::Store(changes.into_iter().map(entry_of).collect()));
        self.flush(&mut state);
    }

    /// Posts once every change before is accepted.
    pub(super) fn post_behind(&self, mailbox: Arc<dyn Mailbox>, command: LinkCommand) {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            drop(state);
            mailbox.post(command);
        } else if state.waiting.len() < WAITING_MAX {
            state.waiting.push_back(Waiting::Post((mailbox, command)));
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Posts once every change before is durable.
    pub(super) fn post_durable(&self, mailbox: Arc<dyn Mailbox>, command: LinkCommand) {
        let mut state = self.state.lock();
        if state.taken <= self.settled.load(Ordering::Acquire) {
            drop(state);
            mailbox.post(command);
        } else if state.promises.len() < WAITING_MAX {
            let needed = state.taken;
            state.promises.push_back((needed, (mailbox, command)));
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tries again what waits, and posts what was promised.
    pub(super) fn pump(&self, now: Duration) {
        let mut state = self.state.lock();
        if state.disk_full {
            let at = *state.retry_at.get_or_insert(now + DISK_FULL_RETRY);
            if now >= at {
                (state.disk_full, state.retry_at) = (false, None);
            }
        }
        self.flush(&mut state);
        let settled = self.settled.load(Ordering::Acquire);
        let mut due = Vec::new();
        while state.promises.front().is_some_and(|(needed, _)| *needed <= settled) {
            due.extend(state.promises.pop_front());
        }
        drop(state);
        due.into_iter().for_each(|(_, (mailbox, command))| mailbox.post(command));
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.state.lock().retry_at
    }

    /// Waiting now, and dropped so far.
    pub(super) fn waiting(&self) -> (u64, u64) {
        let state = self.state.lock();
        let waiting = u64::try_from(state.waiting.len() + state.promises.len()).unwrap_or(u64::MAX);
        (waiting, self.dropped.load(Ordering::Relaxed))
    }

    /// Bound of what waits, in number.
    pub(super) const fn waiting_max() -> u64 {
        2 * WAITING_MAX as u64
    }

    fn flush(&self, state: &mut State) {
        while !state.disk_full && !self.busy.load(Ordering::Acquire) {
            match state.waiting.pop_front() {
                None => return,
                Some(Waiting::Post((mailbox, command))) => mailbox.post(command),
                Some(Waiting::Store(entries)) => self.submit(state, entries),
            }
        }
    }

    fn submit(&self, state: &mut State, entries: Vec<Entry>) {
        if entries.is_empty() {
            self.settled.fetch_add(1, Ordering::AcqRel);
            return;
        }
        let (settled, wake) = (self.settled.clone(), self.wake.clone());
        let done = Box::new(move |result: Result<(), Poisoned>| {
            // What never became durable keeps its promises from being given.
            if result.is_ok() {
                settled.fetch_add(1, Ordering::AcqRel);
                wake();
            }
        });
        let Err(rejected) = self.log.submit(Unit { entries }, done) else { return };
        let room_bytes = rejected.unit.room_bytes();
        let mut entries = rejected.unit.entries;
        match rejected.reason {
            RejectReason::Busy => {
                self.busy.store(true, Ordering::Release);
                state.waiting.push_front(Waiting::Store(entries));
                let (busy, wake) = (self.busy.clone(), self.wake.clone());
                let room = move || {
                    busy.store(false, Ordering::Release);
                    wake();
                };
                self.log.ready(room_bytes, Box::new(room));
            }
            RejectReason::DiskFull { .. } => {
                state.disk_full = true;
                state.waiting.push_front(Waiting::Store(entries));
                (self.wake)();
            }
            RejectReason::Refused { index, .. } | RejectReason::Invalid { index, .. } => {
                // What the machine asked for no longer fits the copy; it learns of the copy as it is by the log's listener.
                tracing::debug!(reason = %rejected.reason, "a change of a copy no longer fits");
                self.dropped.fetch_add(1, Ordering::Relaxed);
                if index < entries.len() {
                    entries.remove(index);
                } else {
                    entries.clear();
                }
                state.waiting.push_front(Waiting::Store(entries));
            }
            RejectReason::Poisoned(_) => {
                state.promises.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use seaway_federation_proto::session::FetchNumber;

    use super::*;
    use crate::log::memory::{MemoryConfig, MemoryDisk, MemoryLog};

    #[derive(Default)]
    struct Posts(Mutex<Vec<FetchNumber>>);

    impl Mailbox for Posts {
        fn post(&self, command: LinkCommand) {
            if let LinkCommand::Serve(number) = command {
                self.0.lock().push(number);
            }
        }
    }

    fn put(key: u8, bytes: usize) -> Vec<Change> {
        vec![Change::Put { table: StateTable::Held, key: vec![key].into(), value: Bytes::from(vec![key; bytes]) }]
    }

    fn stores(config: MemoryConfig) -> (Arc<MemoryLog>, Stores, Arc<Posts>) {
        let log = MemoryLog::open(MemoryDisk::default(), config);
        let stores = Stores::new(log.clone(), Arc::new(|| {}));
        (log, stores, Arc::default())
    }

    #[test]
    fn each_thing_that_is_stored_has_a_table_of_its_own() {
        let tables: std::collections::BTreeSet<Table> = StateTable::ALL.into_iter().map(table_of).collect();
        assert_eq!(tables.len(), StateTable::ALL.len());
        let numbers: Vec<u8> = Table::ALL.into_iter().map(|table| table as u8).collect();
        assert_eq!(numbers, (1..=11).collect::<Vec<u8>>(), "numbers are permanent, and all tables are listed");
    }

    #[test]
    fn a_promise_is_given_when_what_came_before_is_durable() {
        let (log, stores, mailbox) = stores(MemoryConfig::default());
        stores.post_durable(mailbox.clone(), LinkCommand::Serve(1));
        assert_eq!(*mailbox.0.lock(), vec![1], "nothing came before");
        stores.store(put(1, 10));
        stores.post_durable(mailbox.clone(), LinkCommand::Serve(2));
        stores.post_behind(mailbox.clone(), LinkCommand::Serve(3));
        stores.pump(Duration::ZERO);
        assert_eq!(*mailbox.0.lock(), vec![1, 3], "accepted is enough for a fetch, not for a promise");
        log.sync_now();
        stores.pump(Duration::ZERO);
        assert_eq!(*mailbox.0.lock(), vec![1, 3, 2]);
    }

    #[test]
    fn what_a_busy_log_refuses_waits_in_order() {
        let (log, stores, mailbox) = stores(MemoryConfig { queued_bytes_max: 100, ..MemoryConfig::default() });
        for key in 0..5 {
            stores.store(put(key, 80));
            stores.post_behind(mailbox.clone(), LinkCommand::Serve(u64::from(key)));
        }
        assert_eq!(*mailbox.0.lock(), vec![0], "a fetch does not overtake the copy it needs");
        for _ in 0..5 {
            log.sync_now();
            stores.pump(Duration::ZERO);
        }
        assert_eq!(*mailbox.0.lock(), vec![0, 1, 2, 3, 4]);
        assert_eq!(log.scan(Table::Held, &[]).len(), 5);
        assert_eq!(stores.waiting(), (0, 0));
    }

    #[test]
    fn a_change_that_no_longer_fits_does_not_hold_up_the_others() {
        let (log, stores, _) = stores(MemoryConfig::default());
        let name = seaway_federation_proto::ids::LogName {
            topic: "t".parse().unwrap(),
            origin: "a".parse().unwrap(),
            queue: seaway_federation_proto::ids::Queue(1),
        };
        let mut changes = vec![Change::Drop { log: name }];
        changes.extend(put(1, 1));
        stores.store(changes);
        log.sync_now();
        assert_eq!(log.scan(Table::Held, &[]).len(), 1);
        assert_eq!(stores.waiting(), (0, 1));
    }

    #[test]
    fn no_promise_is_given_for_what_was_lost() {
        let (log, stores, mailbox) = stores(MemoryConfig::default());
        stores.store(put(1, 10));
        stores.post_durable(mailbox.clone(), LinkCommand::Serve(1));
        log.fail_next_write("no disk");
        log.sync_now();
        stores.pump(Duration::ZERO);
        assert!(mailbox.0.lock().is_empty());
    }
}
