//! The replication machine's changes of durable state, on their way into the commit log: in order, each list one unit.
//!
//! What must not overtake a change waits here too: a fetch whose copy is yet to be begun, until the change is accepted; an
//! answer that promises durability ("registered", "seen"), until it and all before it are durable.
//!
//! All of it is bounded in bytes. What finds no room is given back, and the machine is told of it: statements and
//! registrations are said again by their authors until they are answered, copies and fetches are planned anew. Only what
//! this site itself must not forget (starts of its wants, its registrations, the nodes it knows) is always taken: there
//! is little of it, and no neighbour can make more of it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use seaway_federation_proto::{
    replication::{Change, LinkId, StateTable},
    session::{FetchNumber, FetchOrder},
};

use super::command::{LinkCommand, Mailbox};
use crate::log::contract::{CommitLog, Entry, Poisoned, RejectReason, Table, Unit, makes_room};

/// How long a change that the full disk refused waits until it is tried again.
const DISK_FULL_RETRY: Duration = Duration::from_secs(1);
/// What a change, a fetch or a promise takes beside the bytes in it.
const EACH_BYTES: usize = 256;

/// Bounds of what waits, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Past it what others said, and will say again, is given back, and fetches are.
    pub(super) said: usize,
    /// Past it changes of copies are given back.
    pub(super) copies: usize,
    /// Past it promises are dropped: what they answer is said again.
    pub(super) promises: usize,
}

/// The bounds of a node.
const BOUNDS: Bounds = Bounds { said: 64 << 20, copies: 256 << 20, promises: 16 << 20 };

type FetchKey = (LinkId, FetchNumber);

enum Waiting {
    /// Its number, and what it changes.
    Store(u64, Vec<Entry>),
    /// A fetch's start, unless it was stopped meanwhile, and its bytes.
    Start(FetchKey, usize),
}

impl Waiting {
    fn entries(&self) -> &[Entry] {
        match self {
            Self::Store(_, entries) => entries,
            Self::Start(..) => &[],
        }
    }
}

struct Promise {
    /// The change up to which all must be durable.
    needed: u64,
    bytes: usize,
    mailbox: Arc<dyn Mailbox>,
    command: LinkCommand,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// The fetches whose start waits.
    starts: BTreeMap<FetchKey, (Arc<dyn Mailbox>, FetchOrder)>,
    /// Of the starts in `waiting` those that were stopped.
    void_starts: usize,
    /// When to try again after the disk was full.
    retry_at: Option<Duration>,
    disk_full: bool,
    /// Number of the change taken last.
    taken: u64,
    /// All changes up to this one are durable, or turned out to have nothing in them.
    settled: u64,
    /// Those above that the log took, in order, and whether each is durable.
    flight: VecDeque<(u64, Arc<AtomicBool>)>,
    promises: VecDeque<Promise>,
    promises_bytes: usize,
    /// Something was given back of which the machine does not know yet: it may promise what will not be.
    withholding: bool,
}

impl State {
    /// Counts what became durable, in order.
    fn settle(&mut self) {
        while self.flight.front().is_some_and(|(_, durable)| durable.load(Ordering::Acquire)) {
            self.settled = self.flight.pop_front().map_or(self.settled, |(number, _)| number);
        }
    }

    /// A change turned out to have nothing in it: it is settled with the one before.
    fn settle_empty(&mut self, number: u64) {
        match self.flight.back_mut() {
            Some((last, _)) => *last = number,
            None => self.settled = number,
        }
    }

    fn put_back(&mut self, number: u64, entries: Vec<Entry>) {
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes_of(&entries));
        self.waiting.push_front(Waiting::Store(number, entries));
    }

    /// What waits up to the first change that makes room, as one: on a full disk that may go into the reserve, and nothing overtakes.
    fn join_for_room(&mut self) -> Option<(u64, Vec<Entry>)> {
        let trims = |entry: &Entry| matches!(entry, Entry::Trim { .. } | Entry::Drop { .. });
        let last = self.waiting.iter().position(|waiting| waiting.entries().iter().any(trims))?;
        let first = || self.waiting.iter().take(last + 1);
        if !makes_room(first().flat_map(Waiting::entries)) {
            return None;
        }
        let bytes = first().map(|waiting| bytes_of(waiting.entries())).sum();
        let (mut number, mut joined) = (0, Vec::new());
        let rest = self.waiting.split_off(last + 1);
        for waiting in std::mem::replace(&mut self.waiting, rest).into_iter().rev() {
            match waiting {
                Waiting::Store(of, entries) => {
                    number = number.max(of);
                    joined.splice(0..0, entries);
                }
                start @ Waiting::Start(..) => self.waiting.push_front(start),
            }
        }
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        Some((number, joined))
    }

    fn has_room(&self, bytes: usize, max: usize) -> bool {
        self.waiting.is_empty() || self.waiting_bytes.saturating_add(bytes) <= max
    }

    /// Forgets starts that were stopped, once they are the greater part.
    fn compact(&mut self) {
        if self.void_starts <= self.waiting.len() / 2 {
            return;
        }
        let (starts, bytes) = (&self.starts, &mut self.waiting_bytes);
        self.waiting.retain(|waiting| match waiting {
            Waiting::Start(key, len) if !starts.contains_key(key) => {
                *bytes = bytes.saturating_sub(*len);
                false
            }
            _ => true,
        });
        self.void_starts = 0;
    }
}

/// About what changes take while they wait.
fn bytes_of(entries: &[Entry]) -> usize {
    let bytes = |entry: &Entry| match entry {
        Entry::Put { key, value, .. } => key.len().saturating_add(value.len()),
        Entry::Delete { key, .. } => key.len(),
        _ => EACH_BYTES,
    };
    entries.iter().fold(0, |sum: usize, entry| sum.saturating_add(EACH_BYTES).saturating_add(bytes(entry)))
}

/// A promise that is nobody's message: called once all changes before it are durable, dropped uncalled where that will not be known.
pub(super) struct OnceDurable(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl OnceDurable {
    pub(super) fn new(call: Box<dyn FnOnce() + Send>) -> Self {
        Self(Mutex::new(Some(call)))
    }
}

impl Mailbox for OnceDurable {
    fn post(&self, _: LinkCommand) {
        let call = self.0.lock().take();
        if let Some(call) = call {
            call();
        }
    }
}

/// See the module's documentation.
pub(super) struct Stores {
    log: Arc<dyn CommitLog>,
    wake: Arc<dyn Fn() + Send + Sync>,
    bounds: Bounds,
    state: Mutex<State>,
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
        StateTable::Removed => Table::Removed,
        StateTable::Node => Table::Node,
        StateTable::Deleted => Table::Deleted,
    }
}

fn entry_of(change: Change) -> Entry {
    match change {
        Change::BeginCopy { log, at, chain } => Entry::BeginCopy { log, at, chain },
        Change::Drop { log } => Entry::Drop { log },
        Change::Trim { log, to } => Entry::Trim { log, to },
        Change::Hole { log, hole } => Entry::Hole { log, hole },
        Change::Rekind { log, hole, was } => Entry::Rekind { log, hole, was },
        Change::Put { table, key, value } => Entry::Put { table: table_of(table), key, value },
        Change::Delete { table, key } => Entry::Delete { table: table_of(table), key },
    }
}

impl Stores {
    pub(super) fn new(log: Arc<dyn CommitLog>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self::bounded(log, wake, BOUNDS)
    }

    pub(super) fn bounded(log: Arc<dyn CommitLog>, wake: Arc<dyn Fn() + Send + Sync>, bounds: Bounds) -> Self {
        Self { log, wake, bounds, state: Mutex::default(), dropped: AtomicU64::new(0), busy: Arc::default() }
    }

    fn count_dropped(&self, by: usize) {
        self.dropped.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Submits a list of changes as one unit, after those that wait. What there is no room for is given back: the machine
    /// must be told, and then [`Stores::machine_knows`] be called; until then nothing is promised.
    #[must_use]
    pub(super) fn store(&self, mut changes: Vec<Change>) -> Vec<Change> {
        let said_again = !changes.is_empty() && changes.iter().all(Change::is_said_again);
        let mut given_back = Vec::new();
        let mut state = self.state.lock();
        let bytes = changes.iter().fold(0, |sum: usize, change| sum.saturating_add(EACH_BYTES + change.bytes()));
        if said_again && !state.has_room(bytes, self.bounds.said) {
            given_back = changes;
        } else {
            if !state.has_room(bytes, self.bounds.copies) {
                (given_back, changes) = changes.into_iter().partition(|change| change.log().is_some());
            }
            let entries: Vec<Entry> = changes.into_iter().map(entry_of).collect();
            if !entries.is_empty() {
                state.taken += 1;
                let number = state.taken;
                state.waiting_bytes = state.waiting_bytes.saturating_add(bytes_of(&entries));
                state.waiting.push_back(Waiting::Store(number, entries));
                self.flush(&mut state);
            }
        }
        if !given_back.is_empty() {
            state.withholding = true;
            self.count_dropped(given_back.len());
        }
        given_back
    }

    /// The machine was told of all that was given back so far.
    pub(super) fn machine_knows(&self) {
        self.state.lock().withholding = false;
    }

    /// Begins a fetch once every change before is accepted; given back if there is no room for it to wait. What is only
    /// read through stores nothing and waits for nothing.
    #[must_use]
    pub(super) fn start_fetch(
        &self,
        link: LinkId,
        mailbox: Arc<dyn Mailbox>,
        order: FetchOrder,
    ) -> Option<FetchNumber> {
        let mut state = self.state.lock();
        if order.passing || state.waiting.is_empty() {
            drop(state);
            mailbox.post(LinkCommand::StartFetch(order));
            return None;
        }
        let bytes = 2 * EACH_BYTES + order.log.topic.as_str().len() + order.log.origin.as_str().len();
        if !state.has_room(bytes, self.bounds.said) {
            self.count_dropped(1);
            return Some(order.number);
        }
        let key = (link, order.number);
        state.waiting_bytes = state.waiting_bytes.saturating_add(bytes);
        state.waiting.push_back(Waiting::Start(key, bytes));
        state.starts.insert(key, (mailbox, order));
        None
    }

    /// Ends a fetch: one that still waits never begins.
    pub(super) fn stop_fetch(&self, link: LinkId, mailbox: &dyn Mailbox, number: FetchNumber) {
        let mut state = self.state.lock();
        if state.starts.remove(&(link, number)).is_some() {
            state.void_starts += 1;
            state.compact();
            return;
        }
        drop(state);
        mailbox.post(LinkCommand::StopFetch(number));
    }

    /// A link is gone, and its fetches with it.
    pub(super) fn forget_link(&self, link: LinkId) {
        let mut state = self.state.lock();
        let gone = (link, FetchNumber::MIN)..=(link, FetchNumber::MAX);
        let gone: Vec<FetchKey> = state.starts.range(gone).map(|(key, _)| *key).collect();
        for key in gone {
            state.starts.remove(&key);
            state.void_starts += 1;
        }
        state.compact();
    }

    /// Posts once every change before is durable.
    pub(super) fn post_durable(&self, mailbox: Arc<dyn Mailbox>, command: LinkCommand) {
        let mut state = self.state.lock();
        state.settle();
        let needed = state.taken;
        let bytes = EACH_BYTES.saturating_add(command.bytes());
        let room = state.promises.is_empty() || state.promises_bytes.saturating_add(bytes) <= self.bounds.promises;
        if state.withholding || (needed > state.settled && !room) {
            self.count_dropped(1);
        } else if needed > state.settled {
            state.promises_bytes = state.promises_bytes.saturating_add(bytes);
            state.promises.push_back(Promise { needed, bytes, mailbox, command });
        } else {
            drop(state);
            mailbox.post(command);
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
        state.settle();
        let mut due = Vec::new();
        while state.promises.front().is_some_and(|promise| promise.needed <= state.settled) {
            due.extend(state.promises.pop_front());
        }
        let bytes = due.iter().fold(0, |sum: usize, promise| sum.saturating_add(promise.bytes));
        state.promises_bytes = state.promises_bytes.saturating_sub(bytes);
        drop(state);
        due.into_iter().for_each(|promise| promise.mailbox.post(promise.command));
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.state.lock().retry_at
    }

    /// Bytes waiting now, promises included.
    pub(super) fn waiting(&self) -> u64 {
        let state = self.state.lock();
        u64::try_from(state.waiting_bytes.saturating_add(state.promises_bytes)).unwrap_or(u64::MAX)
    }

    /// Changes, fetches and promises given back or dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Bound of what waits, in bytes.
    pub(super) const fn waiting_max() -> u64 {
        BOUNDS.copies as u64 + BOUNDS.promises as u64
    }

    fn flush(&self, state: &mut State) {
        while !state.disk_full && !self.busy.load(Ordering::Acquire) {
            match state.waiting.pop_front() {
                None => return,
                Some(Waiting::Start(key, bytes)) => {
                    state.waiting_bytes = state.waiting_bytes.saturating_sub(bytes);
                    match state.starts.remove(&key) {
                        Some((mailbox, order)) => mailbox.post(LinkCommand::StartFetch(order)),
                        None => state.void_starts = state.void_starts.saturating_sub(1),
                    }
                }
                Some(Waiting::Store(number, entries)) => {
                    state.waiting_bytes = state.waiting_bytes.saturating_sub(bytes_of(&entries));
                    self.submit(state, number, entries);
                }
            }
        }
    }

    fn submit(&self, state: &mut State, number: u64, entries: Vec<Entry>) {
        if entries.is_empty() {
            return state.settle_empty(number);
        }
        let durable = Arc::new(AtomicBool::new(false));
        let (settled, wake) = (durable.clone(), self.wake.clone());
        let done = Box::new(move |result: Result<(), Poisoned>| {
            // What never became durable keeps its promises from being given.
            if result.is_ok() {
                settled.store(true, Ordering::Release);
                wake();
            }
        });
        let Err(rejected) = self.log.submit(Unit { entries }, done) else {
            return state.flight.push_back((number, durable));
        };
        let room_bytes = rejected.unit.room_bytes();
        let mut entries = rejected.unit.entries;
        match rejected.reason {
            RejectReason::Busy => {
                self.busy.store(true, Ordering::Release);
                state.put_back(number, entries);
                let (busy, wake) = (self.busy.clone(), self.wake.clone());
                let room = move || {
                    busy.store(false, Ordering::Release);
                    wake();
                };
                self.log.ready(room_bytes, Box::new(room));
            }
            RejectReason::DiskFull { .. } | RejectReason::ShareFull { .. } => {
                let makes_room = makes_room(&entries);
                state.put_back(number, entries);
                let joined = if makes_room { None } else { state.join_for_room() };
                if let Some((number, entries)) = joined {
                    return self.submit(state, number, entries);
                }
                state.disk_full = true;
                (self.wake)();
            }
            RejectReason::Refused { index, .. } | RejectReason::Invalid { index, .. } => {
                // What the machine asked for no longer fits the copy; it learns of the copy as it is by the log's listener.
                tracing::debug!(reason = %rejected.reason, "a change of a copy no longer fits");
                self.count_dropped(1);
                if index < entries.len() {
                    entries.remove(index);
                } else {
                    entries.clear();
                }
                state.put_back(number, entries);
            }
            RejectReason::Poisoned(_) => {
                (state.promises_bytes, _) = (0, state.promises.clear());
                // Nothing becomes durable from here on; one change that never does stands for all.
                if state.flight.is_empty() {
                    state.flight.push_back((number, durable));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "stores_tests.rs"]
mod tests;
