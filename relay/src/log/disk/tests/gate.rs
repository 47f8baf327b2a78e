//! The system's files behind a gate: syncs can be held, failed or ended, and room taken away.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Condvar, Mutex};

use crate::log::files::{Files, LockGuard, LogFile, OsFiles};

#[derive(Debug, Default)]
struct State {
    held: bool,
    fail_next: bool,
    ended: bool,
}

/// See the module's documentation. Clones share the gate.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    state: Arc<(Mutex<State>, Condvar)>,
    free: Arc<AtomicU64>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { state: Arc::default(), free: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.0.lock());
        self.state.1.notify_all();
    }

    pub(super) fn hold(&self, held: bool) {
        self.set(|state| state.held = held);
    }

    pub(super) fn fail_next_sync(&self) {
        self.set(|state| state.fail_next = true);
    }

    /// Every sync fails from now on: the process is as good as gone.
    pub(super) fn end(&self) {
        self.set(|state| state.ended = true);
    }

    pub(super) fn set_free(&self, free: u64) {
        self.free.store(free, Ordering::SeqCst);
    }

    fn pass(&self) -> io::Result<()> {
        let mut state = self.state.0.lock();
        while state.held && !state.ended {
            self.state.1.wait(&mut state);
        }
        if state.ended || std::mem::take(&mut state.fail_next) {
            return Err(io::Error::other("the gate is shut"));
        }
        Ok(())
    }
}

impl Files for Gate {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        OsFiles.create_dir(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(GateFile(OsFiles.create(path)?, self.clone())))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(GateFile(OsFiles.open(path)?, self.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsFiles.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsFiles.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsFiles.sync_dir(dir)
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.free.load(Ordering::SeqCst))
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        OsFiles.lock(path)
    }
}

#[derive(Debug)]
struct GateFile(Arc<dyn LogFile>, Gate);

impl LogFile for GateFile {
    fn write_all_at(&self, parts: &mut [io::IoSlice<'_>], at: u64) -> io::Result<()> {
        self.0.write_all_at(parts, at)
    }
    fn end_writing(&self) {
        self.0.end_writing();
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(into, at)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.pass()?;
        self.0.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
}
