//! The node's own threads: small loops around what is synchronous and must not run on async tasks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Wakes one thread; waking an awake one costs almost nothing, and no wake is lost.
#[derive(Debug, Default)]
pub(super) struct Wake {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    pub(super) fn wake(&self) {
        let mut set = self.set.lock();
        if !*set {
            *set = true;
            self.changed.notify_one();
        }
    }

    /// Waits until woken, or for so long.
    fn wait(&self, timeout: Duration) {
        let mut set = self.set.lock();
        if !*set {
            self.changed.wait_for(&mut set, timeout);
        }
        *set = false;
    }
}

/// A thread's last sign of life: at the begin and the end of each turn.
#[derive(Debug)]
struct Beat {
    name: String,
    epoch: Instant,
    /// Milliseconds since the epoch.
    at_ms: AtomicU64,
}

impl Beat {
    fn beat(&self) {
        self.at_ms.store(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn silent(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(Duration::from_millis(self.at_ms.load(Ordering::Relaxed)))
    }
}

/// Threads that run until they are told to stop.
#[derive(Debug, Default)]
pub(super) struct Threads {
    stop: Arc<AtomicBool>,
    running: Mutex<Vec<(Arc<Wake>, JoinHandle<()>)>>,
    beats: Mutex<Vec<Arc<Beat>>>,
}

impl Threads {
    /// Runs `work` whenever `wake` is woken, and after the time that it answered.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(super) fn run(
        &self,
        name: &str,
        wake: Arc<Wake>,
        mut work: impl FnMut() -> Duration + Send + 'static,
    ) -> std::io::Result<()> {
        let (stop, woken) = (self.stop.clone(), wake.clone());
        let beat = Arc::new(Beat { name: name.to_owned(), epoch: Instant::now(), at_ms: AtomicU64::new(0) });
        let beats = beat.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !stop.load(Ordering::Acquire) {
                beats.beat();
                let timeout = work();
                beats.beat();
                woken.wait(timeout);
            }
        })?;
        self.running.lock().push((wake, thread));
        self.beats.lock().push(beat);
        Ok(())
    }

    /// Each thread's name, and the time since its last sign of life; nothing once they were told to stop.
    pub(super) fn silent(&self) -> Vec<(String, Duration)> {
        if self.stop.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.beats.lock().iter().map(|beat| (beat.name.clone(), beat.silent())).collect()
    }

    /// Lets every thread finish what it does, and waits for it.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        for (wake, thread) in std::mem::take(&mut *self.running.lock()) {
            wake.wake();
            if thread.join().is_err() {
                tracing::error!("one of the node's threads had failed");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.running.lock().iter().for_each(|(wake, _)| wake.wake());
    }
}
