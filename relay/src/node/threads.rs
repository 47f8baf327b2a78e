//! The node's own threads: small loops around what is synchronous and must not run on async tasks.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
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

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason is known")
}

/// Threads that run until they are told to stop.
#[derive(Debug, Default)]
pub(super) struct Threads {
    stop: Arc<AtomicBool>,
    running: Mutex<Vec<(Arc<Wake>, JoinHandle<()>)>>,
}

impl Threads {
    /// Runs `work` whenever `wake` is woken, and after the time that it answered. Should it panic, the thread ends and
    /// `failed` is told: nobody else would notice that its work is not done any more.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(super) fn run(
        &self,
        name: &str,
        wake: Arc<Wake>,
        mut work: impl FnMut() -> Duration + Send + 'static,
        failed: impl FnOnce(&str) + Send + 'static,
    ) -> std::io::Result<()> {
        let (stop, woken) = (self.stop.clone(), wake.clone());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !stop.load(Ordering::Acquire) {
                match catch_unwind(AssertUnwindSafe(&mut work)) {
                    Ok(timeout) => woken.wait(timeout),
                    Err(panic) => return failed(panic_text(&*panic)),
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_reported_with_its_reason() {
        let (threads, (tell, told)) = (Threads::default(), std::sync::mpsc::channel());
        let mut turns = 0;
        let work = move || {
            turns += 1;
            assert!(turns < 3, "turn {turns}");
            Duration::ZERO
        };
        threads.run("test", Arc::default(), work, move |why| tell.send(why.to_owned()).unwrap()).unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(60)).unwrap(), "turn 3");
        threads.stop();
    }
}
