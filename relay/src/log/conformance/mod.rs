//! What every commit log must do, as one suite: each MUST of [`super::contract`] has a case here.
//!
//! An implementation brings a [`Harness`], which opens, holds, fails and ends it, and calls [`run`].
//! A case that fails panics with its name in front.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test suite, called by tests only"
)]

mod appends;
mod failures;
pub mod fixture;
mod reads;
mod state;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use seaway_federation_proto::{
    envelope::Batch,
    ids::{LogName, Place},
};

use self::fixture::bytes_of;
use super::contract::{CommitLog, Entry, Line, Poisoned, Read, RejectReason, Rejected, Role, Unit};

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In order.
    Close,
    /// At once: what was not made durable may be lost, from some unit on.
    Crash,
}

/// One implementation under test, on a disk of its own that is empty at first.
pub trait Harness {
    /// The log that is open now.
    fn log(&self) -> Arc<dyn CommitLog>;
    /// From now on nothing becomes durable, until [`Harness::release`].
    fn hold(&mut self);
    /// Lets what is held become durable.
    fn release(&mut self);
    /// Called after each submission outside of a hold: an implementation that only works when told does so.
    fn settle(&mut self) {}
    /// Ends the process, and starts another on the same disk. A hold is over.
    fn restart(&mut self, ending: Ending);
    /// Makes the next write or fsync fail, once.
    fn fail_next_sync(&mut self);
    /// Leaves no room for appends on the disk, or gives it back.
    fn fill_disk(&mut self, full: bool);
    /// Makes the stored batch at a place unreadable on the disk, caches included; `false`: this
    /// implementation cannot.
    fn damage(&mut self, log: &LogName, place: Place) -> bool;
}

type Case = (&'static str, fn(&mut dyn Harness));

/// All cases.
pub fn cases() -> Vec<Case> {
    [appends::CASES, reads::CASES, state::CASES, failures::CASES].concat()
}

/// Runs every case, each on a fresh implementation.
pub fn run(make: &dyn Fn() -> Box<dyn Harness>) {
    for (name, case) in cases() {
        println!("conformance: {name}");
        case(make().as_mut());
    }
}

/// Long enough for any disk on a busy machine, in seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A unit's answer, when it comes.
struct Waiting(mpsc::Receiver<Result<(), Poisoned>>);

impl Waiting {
    fn wait(&self) -> Result<(), Poisoned> {
        self.0.recv_timeout(PATIENCE).expect("done must be called")
    }
    fn is_open(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}

fn submit(log: &dyn CommitLog, entries: Vec<Entry>) -> Result<Waiting, Box<Rejected>> {
    let (tell, told) = mpsc::channel();
    log.submit(Unit { entries }, Box::new(move |result| drop(tell.send(result))))?;
    Ok(Waiting(told))
}

/// Submits and waits until it is durable.
fn store(harness: &mut dyn Harness, entries: Vec<Entry>) {
    let waiting = submit(&*harness.log(), entries).expect("the unit must be accepted");
    harness.settle();
    waiting.wait().expect("the unit must become durable");
}

fn reason_of(log: &dyn CommitLog, entries: Vec<Entry>) -> RejectReason {
    match submit(log, entries) {
        Ok(_) => panic!("the unit must be refused"),
        Err(rejected) => rejected.reason,
    }
}

fn own(batch: &Batch) -> Entry {
    Entry::Append { role: Role::Own, batch: batch.clone() }
}

fn copy(batch: &Batch) -> Entry {
    Entry::Append { role: Role::Copy, batch: batch.clone() }
}

fn store_all(harness: &mut dyn Harness, batches: &[Batch]) {
    store(harness, batches.iter().map(own).collect());
}

/// Reads from a place as far as it goes, in pieces of `bytes_max`; what ended it.
fn read_on(log: &dyn CommitLog, name: &LogName, from: Place, line: Line, bytes_max: usize) -> (Vec<Batch>, Read) {
    let mut all = Vec::new();
    let mut at = from;
    loop {
        match log.read(name, at, line, bytes_max).expect("the read must not fail") {
            Read::Batches { batches, next } => {
                assert!(!batches.is_empty(), "a read must answer with at least one batch");
                assert_ne!(at, next, "a read must get on");
                let bytes: usize = batches.iter().map(Batch::len).sum();
                let last = batches.last().map_or(0, Batch::len);
                assert!(batches.len() == 1 || bytes - last <= bytes_max, "a read must keep to its bound");
                all.extend(batches);
                at = next;
            }
            end => return (all, end),
        }
    }
}

/// Whether the log's main line holds exactly these batches, read in large and small pieces.
fn assert_holds(log: &dyn CommitLog, name: &LogName, expected: &[Batch]) {
    let begin = log.info(name, true).expect("the log must be held").begin;
    for bytes_max in [1, 1 << 20] {
        let (found, end) = read_on(log, name, begin, Line::Main, bytes_max);
        assert!(matches!(end, Read::AtEnd { .. }), "reading ended with {end:?}");
        let places = |batches: &[Batch]| batches.iter().map(Batch::begin).collect::<Vec<_>>();
        assert_eq!(places(&found), places(expected));
        for (found, expected) in found.iter().zip(expected) {
            assert!(bytes_of(found) == bytes_of(expected), "the batch at {} is not what was stored", found.begin());
        }
    }
}

#[cfg(test)]
mod on_memory {
    use seaway_federation_proto::ids::{LogName, Place};

    use super::*;
    use crate::log::memory::{MemoryConfig, MemoryDisk, MemoryLog, Survive};

    struct Memory {
        log: Arc<MemoryLog>,
        held: bool,
    }

    fn open(disk: MemoryDisk) -> Memory {
        let config = MemoryConfig { queued_bytes_max: 1 << 20, ..MemoryConfig::default() };
        Memory { log: MemoryLog::open(disk, config), held: false }
    }

    impl Harness for Memory {
        fn log(&self) -> Arc<dyn CommitLog> {
            self.log.clone()
        }
        fn hold(&mut self) {
            self.held = true;
        }
        fn release(&mut self) {
            self.held = false;
            self.log.sync_now();
        }
        fn settle(&mut self) {
            assert!(!self.held);
            self.log.sync_now();
        }
        fn restart(&mut self, ending: Ending) {
            let disk = match ending {
                Ending::Close => {
                    let _ = self.log.close();
                    self.log.disk_copy()
                }
                Ending::Crash => self.log.crash(Survive::Units(self.log.units_waiting() / 2)),
            };
            *self = open(disk);
        }
        fn fail_next_sync(&mut self) {
            self.log.fail_next_write("write failed: the test said so");
        }
        fn fill_disk(&mut self, full: bool) {
            self.log.set_room(full.then_some(0));
        }
        fn damage(&mut self, log: &LogName, place: Place) -> bool {
            self.log.damage(log, place)
        }
    }

    #[test]
    fn the_memory_twin_keeps_the_contract() {
        run(&|| Box::new(open(MemoryDisk::default())));
    }
}
