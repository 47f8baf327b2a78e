//! What a loss of power leaves of RocksDB's files, which do not go through the commit log's own file layer.
//!
//! RocksDB is linked into this process and asks the system to sync through `fsync` and `fdatasync`; both are defined
//! here, pass the call on, and note for files below a watched directory what is durable since: of a file its
//! length (RocksDB only appends), of the directory its names. [`Watch::image`] then makes the directory that the
//! next process finds: names as of the last sync of the directory, plus any of the changes since; of each file what
//! was synced, plus any part of the rest, perhaps torn. [`Watch::capture`] makes such an image in the middle of
//! RocksDB's own work, at a sync that does not come to pass.

#![allow(unsafe_code, reason = "stands in for two functions of the C library, which RocksDB calls by name")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test, called by tests and by the crash command only"
)]

use std::{
    collections::BTreeMap,
    ffi::c_int,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{
        fd::BorrowedFd,
        unix::fs::{DirEntryExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::faults::{SECTOR_BYTES, Survival};

/// The watched directories.
static WATCHED: Mutex<Vec<(PathBuf, Arc<Mutex<State>>)>> = Mutex::new(Vec::new());
/// How many there are: who syncs elsewhere is not kept waiting.
static COUNT: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug, Default)]
struct State {
    /// By inode: the bytes that are durable. Each is linked in `shadow`, so that no inode is used a second time.
    lengths: BTreeMap<u64, u64>,
    /// Names that are durable, and what they mean.
    names: BTreeMap<String, u64>,
    shadow: PathBuf,
    syncs: u64,
    capture: Option<Capture>,
}

#[derive(Debug)]
struct Capture {
    at: u64,
    into: PathBuf,
    survival: Survival,
    seed: u64,
}

/// Watches a directory until it is dropped.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

/// What a file of an image keeps of its durability.
#[derive(Debug)]
pub struct Found {
    name: String,
    durable: u64,
    named: bool,
}

impl Found {
    /// The files of a directory, all of them durable.
    pub fn all_in(dir: &Path) -> io::Result<Vec<Found>> {
        let file = |(name, _): (String, u64)| {
            let durable = fs::metadata(dir.join(&name))?.len();
            Ok(Found { name, durable, named: true })
        };
        live(dir)?.into_iter().map(file).collect()
    }

    /// As after a loss of power, if it was one: what is there now is there for certain.
    pub fn all_durable(self, is_so: bool) -> Found {
        if is_so { Found { durable: u64::MAX, named: true, ..self } } else { self }
    }
}

impl Watch {
    /// Watches `root`, which need not be there yet; keeps links to its files in `shadow`, on the same file system.
    pub fn new(root: &Path, shadow: &Path) -> io::Result<Self> {
        fs::create_dir_all(shadow)?;
        let state = Arc::new(Mutex::new(State { shadow: shadow.to_owned(), ..State::default() }));
        WATCHED.lock().push((root.to_owned(), Arc::clone(&state)));
        COUNT.fetch_add(1, Ordering::SeqCst);
        Ok(Self { root: root.to_owned(), state })
    }

    /// Syncs seen since the watch began, or the last [`Watch::adopt`].
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Makes `into` what a loss of power would leave at the sync after so many more, which is as good as none.
    pub fn capture(&self, after: u64, into: &Path, survival: Survival, seed: u64) {
        let mut state = self.state.lock();
        let at = state.syncs + after;
        state.capture = Some(Capture { at, into: into.to_owned(), survival, seed });
    }

    /// Makes `into` what a loss of power now leaves. RocksDB must be doing nothing. Ends a [`Watch::capture`].
    pub fn image(&self, into: &Path, survival: Survival, seed: u64) -> io::Result<Vec<Found>> {
        let mut state = self.state.lock();
        state.capture = None;
        state.image(&self.root, into, survival, seed)
    }

    /// Goes on with a directory that was made by [`Watch::image`], now at its place.
    pub fn adopt(&self, found: &[Found]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.syncs = 0;
        state.lengths.clear();
        state.names.clear();
        fs::remove_dir_all(&state.shadow)?;
        fs::create_dir_all(&state.shadow)?;
        for Found { name, durable, named } in found {
            let path = self.root.join(name);
            let metadata = fs::metadata(&path)?;
            let inode = metadata.ino();
            state.keep(&path, inode, (*durable).min(metadata.len()));
            if *named {
                state.names.insert(name.clone(), inode);
            }
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.lock().retain(|(root, _)| *root != self.root);
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    fn keep(&mut self, path: &Path, inode: u64, durable: u64) {
        if self.lengths.insert(inode, durable).is_none() {
            let _ = fs::hard_link(path, self.shadow.join(inode.to_string()));
        }
    }

    fn note(&mut self, root: &Path, path: &Path) {
        self.syncs += 1;
        if let Some(capture) = self.capture.take_if(|capture| self.syncs > capture.at) {
            let _ = self.image(root, &capture.into, capture.survival, capture.seed);
        }
        let Ok(found) = fs::metadata(path) else { return };
        if path != root {
            self.keep(path, found.ino(), found.len());
            return;
        }
        let names = live(root).unwrap_or_default();
        for (name, inode) in &names {
            if !self.lengths.contains_key(inode) {
                self.keep(&root.join(name), *inode, 0);
            }
        }
        self.names = names;
    }

    fn image(&mut self, root: &Path, into: &Path, survival: Survival, seed: u64) -> io::Result<Vec<Found>> {
        let _ = fs::remove_dir_all(into);
        fs::create_dir_all(into)?;
        let live = live(root)?;
        let mut names = self.names.clone();
        let mut rng = StdRng::seed_from_u64(seed);
        let all: std::collections::BTreeSet<&String> = live.keys().chain(self.names.keys()).collect();
        for name in all {
            let survives = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Prefix | Survival::Sectors => rng.random(),
            };
            if survives && live.get(name) != self.names.get(name) {
                match live.get(name) {
                    Some(inode) => names.insert(name.clone(), *inode),
                    None => names.remove(name),
                };
            }
        }
        let mut found = Vec::new();
        for (name, inode) in names.into_iter().filter(|(name, _)| name != "LOCK") {
            let live_path = root.join(&name);
            let shadow = self.shadow.join(inode.to_string());
            let path = if live.get(&name) == Some(&inode) { live_path } else { shadow.clone() };
            // RocksDB removes files in its own time; one that it never synced is gone then, any other has its shadow.
            let bytes = match fs::read(path).or_else(|_| fs::read(shadow)) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let durable = self.lengths.get(&inode).map_or(0, |len| *len as usize).min(bytes.len());
            let mut hasher = DefaultHasher::new();
            (seed, &name).hash(&mut hasher);
            let left = remains(bytes, durable, survival, &mut StdRng::seed_from_u64(hasher.finish()));
            fs::write(into.join(&name), &left)?;
            let named = self.names.get(&name) == Some(&inode);
            found.push(Found { name, durable: durable as u64, named });
        }
        Ok(found)
    }
}

/// What is left of a file of which so many bytes are durable.
fn remains(mut bytes: Vec<u8>, durable: usize, survival: Survival, rng: &mut StdRng) -> Vec<u8> {
    match survival {
        Survival::Everything => {}
        Survival::Nothing => bytes.truncate(durable),
        Survival::Prefix => bytes.truncate(rng.random_range(durable..=bytes.len())),
        Survival::Sectors => {
            bytes.truncate(rng.random_range(durable..=bytes.len()));
            for sector in bytes[durable..].chunks_mut(SECTOR_BYTES) {
                if rng.random_range(0..3) == 0 {
                    sector.fill(0);
                }
            }
        }
    }
    bytes
}

/// The files of a directory.
fn live(root: &Path) -> io::Result<BTreeMap<String, u64>> {
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    // The inode as the directory names it: RocksDB may remove the file before anything could be asked of it.
    entries.map(|entry| entry.map(|e| (e.file_name().to_string_lossy().into_owned(), e.ino()))).collect()
}

/// Notes a sync before it is passed on.
fn note(fd: c_int) {
    if COUNT.load(Ordering::SeqCst) == 0 {
        return;
    }
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{fd}")) else { return };
    let watched = {
        let watched = WATCHED.lock();
        let root = watched.iter().find(|(root, _)| path.starts_with(root));
        root.map(|(root, state)| (root.clone(), Arc::clone(state)))
    };
    if let Some((root, state)) = watched {
        state.lock().note(&root, &path);
    }
}

// SAFETY: declared as the C library declares it.
unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn pass_on(fd: c_int, sync: fn(BorrowedFd<'_>) -> rustix::io::Result<()>) -> c_int {
    // SAFETY: the caller of fsync owns the descriptor, and keeps it open while it waits for the answer.
    let done = sync(unsafe { BorrowedFd::borrow_raw(fd) });
    match done {
        Ok(()) => 0,
        Err(e) => {
            // SAFETY: the C library's own errno of this thread.
            unsafe { *__errno_location() = e.raw_os_error() };
            -1
        }
    }
}

/// In place of the C library's, for all that is linked into this process.
// SAFETY: the same name and signature as the one it stands in for.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    note(fd);
    pass_on(fd, |fd| rustix::fs::fsync(fd))
}

/// As [`fsync`].
// SAFETY: as for `fsync`.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    note(fd);
    pass_on(fd, |fd| rustix::fs::fdatasync(fd))
}
