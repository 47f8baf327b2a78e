//! The way to the storage thread: bounded in bytes, in the order in which units were accepted.

use std::{collections::VecDeque, time::Duration};

use parking_lot::{Condvar, Mutex};
use seaway_federation_proto::ids::LogName;

use super::{apply::Fence, record::Record};
use crate::log::contract::{Done, Poisoned};

/// One unit on its way.
pub(crate) struct QueuedUnit {
    /// What is written.
    pub(crate) records: Vec<Record>,
    /// When it was accepted, microseconds since 1970.
    pub(crate) stored_at_us: u64,
    /// Told how it went.
    pub(crate) done: Done,
    /// What it counts in the queue.
    pub(crate) bytes: usize,
}

/// Something for the storage thread to do.
pub(crate) enum Job {
    /// Write it.
    Unit(QueuedUnit),
    /// Fence a range in the index; nothing is written to a segment.
    Fence(LogName, Box<Fence>),
    /// Tell when everything before is done.
    Tell(Done),
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Job::Unit(_) => "Unit",
            Job::Fence(..) => "Fence",
            Job::Tell(_) => "Tell",
        })
    }
}

impl Job {
    /// Tells whoever waits for it that it will not be done.
    fn fail(self, poisoned: Poisoned) {
        match self {
            Job::Unit(QueuedUnit { done, .. }) | Job::Tell(done) => done(Err(poisoned)),
            Job::Fence(..) => {}
        }
    }
}

/// Waits for room: so many bytes, and whom to call.
type Waiter = (usize, Box<dyn FnOnce() + Send>);

/// See the module's documentation.
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    work: Condvar,
    bytes_max: usize,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    /// Of units that are queued or being written.
    bytes: usize,
    waiters: Vec<Waiter>,
    closing: bool,
    poisoned: Option<Poisoned>,
    /// Poisoned, and all that was queued has been told.
    drained: bool,
    /// The storage thread has seen that nothing will come.
    ended: bool,
}

/// What the storage thread gets.
pub(crate) enum Taken {
    /// Something to do.
    Jobs(Vec<Job>),
    /// Nothing came for as long as was asked.
    Idle,
    /// Nothing is left, and nothing will come.
    Closed,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("bytes_max", &self.bytes_max).finish_non_exhaustive()
    }
}

/// Why a unit is not taken.
pub(crate) enum Full {
    /// No room.
    Busy,
    /// Poisoned or closed.
    Stopped(Poisoned),
}

impl Queue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), work: Condvar::new(), bytes_max }
    }

    /// Bytes waiting, and the bound.
    pub(crate) fn fill(&self) -> (usize, usize) {
        (self.state.lock().bytes, self.bytes_max)
    }

    /// Whether a unit of so many bytes is taken now. One that is larger than the bound is, when it is alone.
    pub(crate) fn check(&self, bytes: usize) -> Result<(), Full> {
        let state = self.state.lock();
        match &state.poisoned {
            Some(poisoned) => Err(Full::Stopped(poisoned.clone())),
            None if state.closing => Err(Full::Stopped(Poisoned { why: "the node is shutting down".into() })),
            None if state.bytes > 0 && state.bytes.saturating_add(bytes) > self.bytes_max => Err(Full::Busy),
            None => Ok(()),
        }
    }

    /// Puts a job at the end; checked before, under the lock that keeps units in order.
    pub(crate) fn push(&self, job: Job) {
        let mut state = self.state.lock();
        let over = || Poisoned { why: "the node is shutting down".into() };
        let poisoned = state.poisoned.clone().filter(|_| state.drained).or_else(|| state.ended.then(over));
        if let Some(poisoned) = poisoned {
            drop(state);
            return job.fail(poisoned);
        }
        if let Job::Unit(unit) = &job {
            state.bytes += unit.bytes;
        }
        state.jobs.push_back(job);
        self.work.notify_one();
    }

    /// Calls `wake` once there is room for `bytes`, at once if there is.
    pub(crate) fn wake_when(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        let mut state = self.state.lock();
        let room = state.bytes == 0 || state.bytes.saturating_add(bytes) <= self.bytes_max;
        if room || state.closing || state.poisoned.is_some() {
            drop(state);
            wake();
        } else {
            state.waiters.push((bytes, wake));
        }
    }

    /// Takes jobs up to about `bytes_max` and `units_max`, at least one; waits at most `wait`.
    pub(crate) fn take(&self, bytes_max: usize, units_max: usize, wait: Duration) -> Taken {
        let mut state = self.state.lock();
        if state.jobs.is_empty() {
            if state.closing {
                state.ended = true;
                return Taken::Closed;
            }
            self.work.wait_for(&mut state, wait);
        }
        let mut jobs = Vec::new();
        let mut bytes = 0_usize;
        while let Some(job) = state.jobs.front() {
            let size = if let Job::Unit(unit) = job { unit.bytes } else { 0 };
            if !jobs.is_empty() && (bytes.saturating_add(size) > bytes_max || jobs.len() >= units_max) {
                break;
            }
            bytes = bytes.saturating_add(size);
            jobs.extend(state.jobs.pop_front());
        }
        match jobs.is_empty() {
            true if state.closing => {
                state.ended = true;
                Taken::Closed
            }
            true => Taken::Idle,
            false => Taken::Jobs(jobs),
        }
    }

    /// Gives back the room of units that are done, and wakes who waited for it.
    pub(crate) fn release(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        let mut room = self.bytes_max.saturating_sub(state.bytes);
        let mut woken = Vec::new();
        while let Some((need, _)) = state.waiters.first() {
            if *need > room && (state.bytes > 0 || !woken.is_empty()) {
                break;
            }
            room = room.saturating_sub(*need);
            woken.push(state.waiters.remove(0).1);
        }
        drop(state);
        woken.into_iter().for_each(|wake| wake());
    }

    /// Whether nothing more is accepted since it was closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.state.lock().closing
    }

    /// Nothing more is accepted.
    pub(crate) fn close(&self) {
        let waiters = {
            let mut state = self.state.lock();
            state.closing = true;
            self.work.notify_all();
            std::mem::take(&mut state.waiters)
        };
        waiters.into_iter().for_each(|(_, wake)| wake());
    }

    /// Nothing more is accepted; what is queued stays, for [`Queue::poison`] to fail after what is being
    /// written. The first reason stays, and is answered; here, and nowhere else, it is logged.
    pub(crate) fn begin_poison(&self, poisoned: Poisoned) -> Poisoned {
        let mut state = self.state.lock();
        if let Some(first) = &state.poisoned {
            return first.clone();
        }
        state.poisoned = Some(poisoned.clone());
        drop(state);
        tracing::error!("the commit log stops: {poisoned}");
        poisoned
    }

    /// Nothing more is accepted, and what is queued fails, in order. The first reason stays.
    pub(crate) fn poison(&self, poisoned: Poisoned) {
        let poisoned = self.begin_poison(poisoned);
        let waiters = loop {
            let mut state = self.state.lock();
            let jobs = std::mem::take(&mut state.jobs);
            if jobs.is_empty() {
                state.bytes = 0;
                state.drained = true;
                self.work.notify_all();
                break std::mem::take(&mut state.waiters);
            }
            drop(state);
            for job in jobs {
                job.fail(poisoned.clone());
            }
        };
        waiters.into_iter().for_each(|(_, wake)| wake());
    }

    /// Why the log is poisoned, if it is.
    pub(crate) fn poisoned(&self) -> Option<Poisoned> {
        self.state.lock().poisoned.clone()
    }
}

/// Tells a failure if it is dropped before it was told anything, as when the storage thread panics.
struct MustTell(Option<Done>);

impl Drop for MustTell {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(storage_failed()));
        }
    }
}

/// A `done` that is called in any case.
pub(crate) fn must_tell(done: Done) -> Done {
    let mut told = MustTell(Some(done));
    Box::new(move |result| {
        if let Some(done) = told.0.take() {
            done(result);
        }
    })
}

fn storage_failed() -> Poisoned {
    Poisoned { why: "the storage thread failed; its last words are in the program's log".into() }
}

/// Held by the storage thread while it runs: should it panic, nothing waits for it for ever.
pub(crate) struct PoisonOnPanic<'a>(pub(crate) &'a Queue);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison(storage_failed());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn unit(bytes: usize) -> Job {
        Job::Unit(QueuedUnit { records: Vec::new(), stored_at_us: 0, done: Box::new(|_| {}), bytes })
    }

    #[test]
    fn it_is_bounded_and_wakes_in_order() {
        let queue = Queue::new(100);
        assert!(queue.check(1000).is_ok(), "a large unit alone is taken");
        queue.push(unit(90));
        assert!(matches!(queue.check(11), Err(Full::Busy)));
        assert!(queue.check(10).is_ok());
        let woken = Arc::new(AtomicUsize::new(0));
        for (bytes, number) in [(60, 1), (60, 10)] {
            let woken = Arc::clone(&woken);
            queue.wake_when(bytes, Box::new(move || _ = woken.fetch_add(number, Ordering::SeqCst)));
        }
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        queue.release(90);
        assert_eq!(woken.load(Ordering::SeqCst), 1, "there is room for one of the two");
        queue.push(unit(40));
        queue.release(40);
        assert_eq!(woken.load(Ordering::SeqCst), 11, "the next has its turn");
    }

    fn counted(failed: &Arc<AtomicUsize>) -> Job {
        let failed = Arc::clone(failed);
        let done = move |result: Result<(), Poisoned>| {
            result.unwrap_err();
            failed.fetch_add(1, Ordering::SeqCst);
        };
        Job::Unit(QueuedUnit { records: Vec::new(), stored_at_us: 0, done: must_tell(Box::new(done)), bytes: 1 })
    }

    #[test]
    fn a_unit_that_comes_after_the_end_is_told() {
        let queue = Queue::new(100);
        let failed = Arc::new(AtomicUsize::new(0));
        assert!(queue.check(1).is_ok());
        queue.close();
        assert!(matches!(queue.take(100, 10, Duration::ZERO), Taken::Closed));
        queue.push(counted(&failed));
        assert_eq!(failed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn when_the_storage_thread_panics_all_are_told() {
        let queue = Arc::new(Queue::new(100));
        let failed = Arc::new(AtomicUsize::new(0));
        queue.push(counted(&failed));
        queue.push(counted(&failed));
        let theirs = Arc::clone(&queue);
        let thread = std::thread::spawn(move || {
            let _guard = PoisonOnPanic(&theirs);
            let Taken::Jobs(jobs) = theirs.take(1, 1, Duration::ZERO) else { return };
            assert!(jobs.is_empty(), "this panic belongs to the test");
        });
        assert!(thread.join().is_err());
        assert_eq!(failed.load(Ordering::SeqCst), 2);
        assert!(matches!(queue.check(1), Err(Full::Stopped(_))));
    }

    #[test]
    fn poison_fails_what_is_queued_and_all_that_comes() {
        let queue = Queue::new(100);
        let failed = Arc::new(AtomicUsize::new(0));
        let job = || {
            let failed = Arc::clone(&failed);
            let done = move |result: Result<(), Poisoned>| {
                result.unwrap_err();
                failed.fetch_add(1, Ordering::SeqCst);
            };
            Job::Unit(QueuedUnit { records: Vec::new(), stored_at_us: 0, done: Box::new(done), bytes: 1 })
        };
        queue.push(job());
        queue.poison(Poisoned { why: "first".into() });
        queue.poison(Poisoned { why: "second".into() });
        queue.push(job());
        assert_eq!(failed.load(Ordering::SeqCst), 2);
        assert_eq!(queue.poisoned().unwrap().why.as_ref(), "first");
        assert!(matches!(queue.check(1), Err(Full::Stopped(_))));
    }
}
