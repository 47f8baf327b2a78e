//! A disk in memory under the commit log that does what a real one may: forget, tear and reorder what
//! was not yet synced when the power goes, fail a write or a sync, fill up, or flip a bit.
//!
//! Every operation that changes something is counted; [`FaultDisk::cut_after`] names the one at which the
//! power goes. From then on everything fails, as for a process that is no more. [`FaultDisk::power_loss`]
//! then makes the disk that the next process finds: of each file what was synced, plus any subset of the
//! sectors written since, the last of them perhaps torn at any byte, at any length that the file had since;
//! of each directory the names as of its last sync, plus any of the changes since. A directory that was made here
//! and whose own name is not there takes along all that is in it; others (`/` and what tests never made) are always there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};
use seaway_relay::log::files::{Files, LockGuard, LogFile};

/// The unit in which the disk writes: within one, bytes survive up to some point.
pub const SECTOR_BYTES: usize = 512;

/// What becomes of writes that were not synced when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// None of them.
    Nothing,
    /// All of them, up to some byte of the last.
    Prefix,
    /// Each sector for itself.
    Sectors,
    /// All of them.
    Everything,
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// What is on the platter for certain.
    synced: Vec<u8>,
    /// What a running process sees.
    live: Vec<u8>,
    /// Since the last sync that succeeded, in order.
    pending: Vec<Change>,
    /// It is a directory, without contents of its own.
    directory: bool,
    /// Pending changes up to here were thrown away by a sync that failed: no later sync makes them certain.
    doomed: usize,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(PathBuf, usize),
    Gone(PathBuf),
}

#[derive(Debug, Default)]
struct State {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    operations: u64,
    cut_after: Option<u64>,
    dead: bool,
    fail_sync: bool,
    lies: bool,
    fail_write: Option<io::ErrorKind>,
    capacity: Option<u64>,
}

/// See the module's documentation. Clones share the disk.
#[derive(Debug, Clone, Default)]
pub struct FaultDisk {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

/// An open file of a [`FaultDisk`].
#[derive(Debug)]
struct FaultFile {
    shared: Arc<Shared>,
    node: usize,
}

#[derive(Debug)]
struct FaultLock {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl LockGuard for FaultLock {}

impl Drop for FaultLock {
    fn drop(&mut self) {
        self.shared.state.lock().locks.remove(&self.path);
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is gone")
}

impl State {
    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(no_power()) } else { Ok(()) }
    }

    /// Counts an operation. `Ok(true)`: the power goes in the middle of it.
    fn count(&mut self) -> io::Result<bool> {
        self.alive()?;
        self.operations += 1;
        self.dead = self.cut_after.is_some_and(|cut| self.operations > cut);
        Ok(self.dead)
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.names.get(path).and_then(|node| self.nodes.get(*node)).is_some_and(|node| node.directory)
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|node| self.nodes.get(*node)).map(|node| node.live.len() as u64).sum()
    }

    fn room_for(&self, more: usize) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.used() + more as u64 > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl FaultDisk {
    /// The power goes in the middle of the operation after so many more.
    pub fn cut_after(&self, operations: u64) {
        let mut state = self.shared.state.lock();
        state.cut_after = Some(state.operations + operations);
    }

    /// Whether the power is gone.
    pub fn is_dead(&self) -> bool {
        self.shared.state.lock().dead
    }

    /// Lets the power go now.
    pub fn cut_now(&self) {
        self.shared.state.lock().dead = true;
    }

    /// Operations so far that changed something.
    pub fn operations(&self) -> u64 {
        self.shared.state.lock().operations
    }

    /// Makes the next sync of a file fail; what it should have made certain never will be.
    pub fn fail_next_sync(&self) {
        self.shared.state.lock().fail_sync = true;
    }

    /// Makes the next write fail; a part of it may be there.
    pub fn fail_next_write(&self, kind: io::ErrorKind) {
        self.shared.state.lock().fail_write = Some(kind);
    }

    /// Makes it a disk that says it has synced and has not: what runs on it must lose something.
    pub fn lie(&self) {
        self.shared.state.lock().lies = true;
    }

    /// Bounds the bytes of all files.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.state.lock().capacity = bytes;
    }

    /// See [`FaultDisk::set_capacity`].
    pub fn capacity(&self) -> Option<u64> {
        self.shared.state.lock().capacity
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.shared.state.lock().used()
    }

    /// What a new process finds when the power is back. This disk stays dead.
    pub fn power_loss(&self, survival: Survival, rng: &mut StdRng) -> FaultDisk {
        self.cut_now();
        let state = self.shared.state.lock();
        let mut names = state.synced_names.clone();
        for change in &state.name_changes {
            let survives = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Prefix | Survival::Sectors => rng.random(),
            };
            match change {
                NameChange::Set(path, node) if survives => drop(names.insert(path.clone(), *node)),
                NameChange::Gone(path) if survives => drop(names.remove(path)),
                NameChange::Set(..) | NameChange::Gone(_) if survival == Survival::Prefix => break,
                NameChange::Set(..) | NameChange::Gone(_) => {}
            }
        }
        let lost: Vec<_> =
            state.names.keys().filter(|path| state.is_directory(path) && !names.contains_key(*path)).collect();
        names.retain(|path, _| !lost.iter().any(|lost| path.starts_with(lost)));
        let nodes = state.nodes.iter().map(|node| node.after_power_loss(survival, rng)).collect();
        let found = State {
            nodes,
            synced_names: names.clone(),
            names,
            capacity: state.capacity,
            lies: state.lies,
            ..State::default()
        };
        FaultDisk { shared: Arc::new(Shared { state: Mutex::new(found) }) }
    }

    /// What a new process finds after this one was killed: everything, synced or not.
    pub fn killed(&self) -> FaultDisk {
        self.cut_now();
        let state = self.shared.state.lock();
        let found = State {
            nodes: state.nodes.clone(),
            names: state.names.clone(),
            synced_names: state.synced_names.clone(),
            name_changes: state.name_changes.clone(),
            capacity: state.capacity,
            ..State::default()
        };
        FaultDisk { shared: Arc::new(Shared { state: Mutex::new(found) }) }
    }

    /// Names and lengths of all files.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let state = self.shared.state.lock();
        let file = |(path, node): (&PathBuf, &usize)| {
            let node = state.nodes.get(*node).filter(|node| !node.directory)?;
            Some((path.clone(), node.live.len()))
        };
        state.names.iter().filter_map(file).collect()
    }

    /// The bytes of a file.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.shared.state.lock();
        state.nodes.get(*state.names.get(path)?).map(|node| node.live.clone())
    }

    /// Flips bits of one byte of a file, on the platter too: damage.
    pub fn flip(&self, path: &Path, at: usize, bits: u8) {
        let mut state = self.shared.state.lock();
        let State { nodes, names, .. } = &mut *state;
        if let Some(node) = names.get(path).and_then(|node| nodes.get_mut(*node)) {
            for bytes in [&mut node.live, &mut node.synced] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
        }
    }
}

impl Change {
    /// What is left of a write where a range was written anew.
    fn without(self, over: &Range<usize>) -> Vec<Change> {
        let Change::Write { at, bytes } = self else { return vec![self] };
        let end = at + bytes.len();
        let piece = |from: usize, to: usize| {
            let part = bytes.get(from.saturating_sub(at)..to.saturating_sub(at))?;
            (from < to).then(|| Change::Write { at: from, bytes: part.to_vec() })
        };
        [piece(at, end.min(over.start)), piece(at.max(over.end), end)].into_iter().flatten().collect()
    }
}

fn write_into(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    if let Some(part) = file.get_mut(at..end) {
        part.copy_from_slice(bytes);
    }
}

impl Node {
    fn change(&mut self, change: Change) {
        match &change {
            Change::Write { at, bytes } => write_into(&mut self.live, *at, bytes),
            Change::Length(len) => self.live.resize(*len, 0),
        }
        self.pending.push(change);
    }

    fn sync(&mut self) {
        let certain = self.pending.split_off(self.doomed);
        if self.doomed == 0 {
            self.synced.clone_from(&self.live);
        } else {
            // What a failed sync threw away stays uncertain, but for what was written or cut since.
            for change in certain {
                let over = match &change {
                    Change::Write { at, bytes } => {
                        write_into(&mut self.synced, *at, bytes);
                        *at..at + bytes.len()
                    }
                    Change::Length(len) => {
                        self.synced.resize(*len, 0);
                        *len..usize::MAX
                    }
                };
                self.pending = self.pending.drain(..).flat_map(|doomed| doomed.without(&over)).collect();
            }
            // The length is written anew with each sync.
            self.pending.retain(|doomed| matches!(doomed, Change::Write { .. }));
            self.doomed = self.pending.len();
        }
    }

    fn after_power_loss(&self, survival: Survival, rng: &mut StdRng) -> Node {
        let mut found = self.synced.clone();
        let mut longest = found.len();
        let mut lengths = vec![found.len()];
        let whole = match survival {
            Survival::Nothing => 0,
            Survival::Everything => self.pending.len(),
            Survival::Prefix => rng.random_range(0..=self.pending.len()),
            Survival::Sectors => 0,
        };
        for (n, change) in self.pending.iter().enumerate() {
            match change {
                Change::Write { at, bytes } if n < whole => write_into(&mut found, *at, bytes),
                Change::Write { at, bytes } if n == whole && survival == Survival::Prefix => {
                    let until = rng.random_range(0..=bytes.len());
                    write_into(&mut found, *at, bytes.get(..until).unwrap_or_default());
                }
                Change::Write { at, bytes } if survival == Survival::Sectors => {
                    write_sectors(&mut found, *at, bytes, rng)
                }
                Change::Length(len) if n < whole => found.resize(*len, 0),
                _ => {}
            }
            match change {
                Change::Write { at, bytes } => longest = longest.max(at + bytes.len()),
                Change::Length(len) => longest = *len,
            }
            lengths.push(longest);
        }
        if survival == Survival::Sectors && !self.pending.is_empty() {
            let len = lengths.get(rng.random_range(0..lengths.len())).copied().unwrap_or_default();
            found.resize(len, 0);
        }
        Node { synced: found.clone(), live: found, directory: self.directory, ..Node::default() }
    }
}

/// Each sector of a write is there, or not, or torn at some byte.
fn write_sectors(file: &mut Vec<u8>, at: usize, bytes: &[u8], rng: &mut StdRng) {
    let mut from = 0;
    while from < bytes.len() {
        let sector_end = ((at + from) / SECTOR_BYTES + 1) * SECTOR_BYTES - at;
        let to = sector_end.min(bytes.len());
        let until = match rng.random_range(0..8) {
            0..=2 => from,
            3 => rng.random_range(from..=to),
            _ => to,
        };
        if until > from {
            write_into(file, at + from, bytes.get(from..until).unwrap_or_default());
        }
        from = to;
    }
}

impl Files for FaultDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        if state.names.contains_key(dir) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if dir.parent().is_some_and(|above| above.parent().is_some() && !state.is_directory(above)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let cut = state.count()?;
        let node = state.nodes.len();
        state.nodes.push(Node { directory: true, ..Node::default() });
        state.names.insert(dir.to_owned(), node);
        state.name_changes.push(NameChange::Set(dir.to_owned(), node));
        if cut { Err(no_power()) } else { Ok(()) }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.shared.state.lock();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let cut = state.count()?;
        let node = state.nodes.len();
        state.nodes.push(Node::default());
        state.names.insert(path.to_owned(), node);
        state.name_changes.push(NameChange::Set(path.to_owned(), node));
        if cut { Err(no_power()) } else { Ok(Arc::new(FaultFile { shared: self.shared.clone(), node })) }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let state = self.shared.state.lock();
        state.alive()?;
        let node = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(FaultFile { shared: self.shared.clone(), node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let node = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        let cut = state.count()?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), node);
        // Either name or both may be left, but what `to` had is replaced or not, as a whole.
        state.name_changes.push(NameChange::Set(to.to_owned(), node));
        state.name_changes.push(NameChange::Gone(from.to_owned()));
        if cut { Err(no_power()) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let cut = state.count()?;
        state.names.remove(path);
        state.name_changes.push(NameChange::Gone(path.to_owned()));
        if cut { Err(no_power()) } else { Ok(()) }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.shared.state.lock();
        state.alive()?;
        let names = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        if state.count()? {
            return Err(no_power());
        }
        let inside = |path: &PathBuf| path.parent() == Some(dir);
        let (now, later): (Vec<_>, Vec<_>) = state.name_changes.drain(..).partition(|change| match change {
            NameChange::Set(path, _) | NameChange::Gone(path) => inside(path),
        });
        state.name_changes = later;
        for change in now {
            match change {
                NameChange::Set(path, node) => state.synced_names.insert(path, node),
                NameChange::Gone(path) => state.synced_names.remove(&path),
            };
        }
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.shared.state.lock();
        state.alive()?;
        Ok(state.capacity.map_or(1 << 40, |capacity| capacity.saturating_sub(state.used())))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut state = self.shared.state.lock();
        state.alive()?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(FaultLock { shared: self.shared.clone(), path: path.to_owned() }))
    }
}

impl FaultFile {
    fn length(&self, state: &State) -> usize {
        state.nodes.get(self.node).map_or(0, |node| node.live.len())
    }

    fn change(&self, state: &mut State, change: Change) {
        if let Some(node) = state.nodes.get_mut(self.node) {
            node.change(change);
        }
    }
}

impl LogFile for FaultFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        let bytes = parts.iter().map(|part| part.to_vec()).collect::<Vec<_>>().concat();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let mut state = self.shared.state.lock();
        let cut = state.count()?;
        let grows = (at + bytes.len()).saturating_sub(self.length(&state));
        let failure = state.fail_write.take().map(io::Error::from).or_else(|| state.room_for(grows).err());
        if let Some(failure) = failure {
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default().to_vec();
            self.change(&mut state, Change::Write { at, bytes: half });
            return Err(failure);
        }
        self.change(&mut state, Change::Write { at, bytes });
        if cut { Err(no_power()) } else { Ok(()) }
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.shared.state.lock();
        state.alive()?;
        let live = state.nodes.get(self.node).map(|node| node.live.as_slice()).unwrap_or_default();
        let rest = usize::try_from(at).ok().and_then(|at| live.get(at..)).unwrap_or_default();
        let count = rest.len().min(into.len());
        if let (Some(into), Some(rest)) = (into.get_mut(..count), rest.get(..count)) {
            into.copy_from_slice(rest);
        }
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        if state.count()? {
            return Err(no_power());
        }
        let fails = std::mem::take(&mut state.fail_sync);
        let Some(node) = state.nodes.get_mut(self.node) else { return Ok(()) };
        if fails {
            node.doomed = node.pending.len();
            return Err(io::Error::other("input/output error"));
        }
        if !state.lies
            && let Some(node) = state.nodes.get_mut(self.node)
        {
            node.sync();
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.shared.state.lock();
        state.alive()?;
        Ok(self.length(&state) as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut state = self.shared.state.lock();
        let cut = state.count()?;
        self.change(&mut state, Change::Length(len));
        if cut { Err(no_power()) } else { Ok(()) }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut state = self.shared.state.lock();
        let cut = state.count()?;
        let have = self.length(&state);
        if len > have {
            state.room_for(len - have)?;
            self.change(&mut state, Change::Length(len));
        }
        if cut { Err(no_power()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use seaway_relay::log::files::{create_dirs, sync_name};

    use super::*;

    fn write(file: &dyn LogFile, at: u64, bytes: &[u8]) {
        file.write_all_at(&mut [IoSlice::new(bytes)], at).unwrap();
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may_not() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let survival =
                [Survival::Nothing, Survival::Prefix, Survival::Sectors, Survival::Everything][seed as usize % 4];
            let disk = FaultDisk::default();
            let path = Path::new("/d/a");
            let file = disk.create(path).unwrap();
            write(&*file, 0, &[1; 1000]);
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            write(&*file, 1024, &[2; 2048]);
            let after = disk.power_loss(survival, &mut rng);
            assert!(write_fails(&*file));
            let found = after.contents(path).expect("a synced name is there");
            assert_eq!(found[..1000], [1; 1000]);
            match found.iter().filter(|byte| **byte == 2).count() {
                0 => lost += 1,
                2048 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 50 && kept > 50 && torn > 50, "{lost} lost, {kept} kept, {torn} torn");
    }

    fn write_fails(file: &dyn LogFile) -> bool {
        file.write_all_at(&mut [IoSlice::new(&[0])], 0).is_err() && file.sync_data().is_err()
    }

    #[test]
    fn names_need_their_directory_synced() {
        let mut rng = StdRng::seed_from_u64(0);
        let disk = FaultDisk::default();
        disk.create(Path::new("/d/a")).unwrap().sync_data().unwrap();
        let after = disk.power_loss(Survival::Nothing, &mut rng);
        assert!(after.open(Path::new("/d/a")).is_err());
        let file = after.create(Path::new("/d/b")).unwrap();
        write(&*file, 0, b"new");
        file.sync_data().unwrap();
        after.sync_dir(Path::new("/d")).unwrap();
        after.remove(Path::new("/d/b")).unwrap();
        let again = after.power_loss(Survival::Nothing, &mut rng);
        assert_eq!(again.contents(Path::new("/d/b")).unwrap(), b"new");
    }

    #[test]
    fn a_directory_whose_name_was_not_synced_takes_its_files_along() {
        let mut rng = StdRng::seed_from_u64(0);
        for synced in [false, true] {
            let disk = FaultDisk::default();
            assert_eq!(disk.create_dir(Path::new("/d/e")).unwrap_err().kind(), io::ErrorKind::NotFound);
            disk.create_dir(Path::new("/d")).unwrap();
            disk.create(Path::new("/d/a")).unwrap().sync_data().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            if synced {
                disk.sync_dir(Path::new("/")).unwrap();
            }
            let after = disk.power_loss(Survival::Nothing, &mut rng);
            assert_eq!(after.open(Path::new("/d/a")).is_ok(), synced);
        }
    }

    #[test]
    fn directories_that_the_log_makes_are_there_after_a_loss_of_power() {
        let mut rng = StdRng::seed_from_u64(0);
        let disk = FaultDisk::default();
        // Made by somebody who did not sync it.
        disk.create_dir(Path::new("/data")).unwrap();
        create_dirs(&disk, Path::new("/data/new/segments")).unwrap();
        sync_name(&disk, Path::new("/data")).unwrap();
        disk.create(Path::new("/data/new/segments/a")).unwrap().sync_data().unwrap();
        disk.sync_dir(Path::new("/data/new/segments")).unwrap();
        let after = disk.power_loss(Survival::Nothing, &mut rng);
        assert!(after.open(Path::new("/data/new/segments/a")).is_ok());
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next() {
        let mut rng = StdRng::seed_from_u64(0);
        let disk = FaultDisk::default();
        let file = disk.create(Path::new("/d/a")).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        write(&*file, 0, b"lost");
        disk.fail_next_sync();
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        let after = disk.power_loss(Survival::Nothing, &mut rng);
        assert_eq!(after.contents(Path::new("/d/a")).unwrap(), b"");
    }

    #[test]
    fn what_a_failed_sync_threw_away_does_not_come_back_over_what_was_written_since() {
        let mut rng = StdRng::seed_from_u64(0);
        let disk = FaultDisk::default();
        let file = disk.create(Path::new("/d/a")).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        write(&*file, 0, b"aaaaaaaa");
        disk.fail_next_sync();
        file.sync_data().unwrap_err();
        file.truncate(6).unwrap();
        write(&*file, 2, b"bb");
        file.sync_data().unwrap();
        let after = disk.power_loss(Survival::Everything, &mut rng);
        assert_eq!(after.contents(Path::new("/d/a")).unwrap(), b"aabbaa");
        let after = disk.power_loss(Survival::Nothing, &mut rng);
        assert_eq!(after.contents(Path::new("/d/a")).unwrap(), b"\0\0bb\0\0");
    }

    #[test]
    fn the_power_goes_at_the_operation_named_and_all_after_it_fails() {
        let disk = FaultDisk::default();
        let file = disk.create(Path::new("/d/a")).unwrap();
        disk.cut_after(2);
        write(&*file, 0, b"one");
        file.sync_data().unwrap();
        assert!(write_fails(&*file) && disk.is_dead());
        assert!(disk.open(Path::new("/d/a")).is_err() && disk.list(Path::new("/d")).is_err());
    }

    #[test]
    fn a_full_disk_refuses_and_has_room_again() {
        let disk = FaultDisk::default();
        disk.set_capacity(Some(100));
        let file = disk.create(Path::new("/d/a")).unwrap();
        assert_eq!(file.allocate(200).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(write_full(&*file));
        disk.set_capacity(None);
        write(&*file, 0, &[1; 200]);
    }

    fn write_full(file: &dyn LogFile) -> bool {
        let written = file.write_all_at(&mut [IoSlice::new(&[1; 200])], 0);
        written.unwrap_err().kind() == io::ErrorKind::StorageFull
    }
}
