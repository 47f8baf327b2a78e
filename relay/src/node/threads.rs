//! The node's own threads: small loops around what is synchronous and must not run on async tasks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
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

/// Threads that run until they are told to stop.
#[derive(Debug, Default)]
pub(super) struct Threads {
    stop: Arc<AtomicBool>,
    running: Mutex<Vec<(Arc<Wake>, JoinHandle<()>)>>,
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
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !stop.load(Ordering::Acquire) {
                let timeout = work();
                woken.wait(timeout);
            }
        })?;
        self.running.lock().push((wake, thread));
        Ok(())
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
