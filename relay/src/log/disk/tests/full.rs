//! A disk without room: what was accepted waits, what makes room goes first, and all goes on by itself.

use std::sync::{Arc, mpsc};

use super::{DiskConfig, DiskLog, config, recovery::read_all, store};
use crate::log::{
    conformance::fixture::{Origin, log_name},
    contract::{CommitLog, Entry, Read, RejectReason, Role, Unit},
    files::{Files, LockGuard, LogFile, OsFiles},
};

/// The system's files, with so many bytes in all.
#[derive(Debug, Clone)]
struct Small {
    state: Arc<parking_lot::Mutex<(u64, std::collections::BTreeMap<std::path::PathBuf, u64>)>>,
}

#[derive(Debug)]
struct SmallFile {
    file: Arc<dyn LogFile>,
    path: std::path::PathBuf,
    disk: Small,
}

impl Small {
    fn new(bytes: u64) -> Self {
        Self { state: Arc::new(parking_lot::Mutex::new((bytes, Default::default()))) }
    }

    fn set(&self, bytes: u64) {
        self.state.lock().0 = bytes;
    }

    fn used(&self) -> u64 {
        self.state.lock().1.values().sum()
    }

    fn grow(&self, path: &std::path::Path, to: u64) -> std::io::Result<()> {
        let mut state = self.state.lock();
        let used: u64 = state.1.values().sum();
        let has = state.1.get(path).copied().unwrap_or(0);
        if to > has && used - has + to > state.0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        state.1.insert(path.to_owned(), has.max(to));
        Ok(())
    }

    fn wrap(&self, path: &std::path::Path, file: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(SmallFile { file, path: path.to_owned(), disk: self.clone() })
    }
}

impl Files for Small {
    fn create_dir(&self, dir: &std::path::Path) -> std::io::Result<()> {
        OsFiles.create_dir(dir)
    }
    fn create(&self, path: &std::path::Path) -> std::io::Result<Arc<dyn LogFile>> {
        Ok(self.wrap(path, OsFiles.create(path)?))
    }
    fn open(&self, path: &std::path::Path) -> std::io::Result<Arc<dyn LogFile>> {
        Ok(self.wrap(path, OsFiles.open(path)?))
    }
    fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
        OsFiles.rename(from, to)
    }
    fn remove(&self, path: &std::path::Path) -> std::io::Result<()> {
        self.state.lock().1.remove(path);
        OsFiles.remove(path)
    }
    fn list(&self, dir: &std::path::Path) -> std::io::Result<Vec<String>> {
        OsFiles.list(dir)
    }
    fn sync_dir(&self, dir: &std::path::Path) -> std::io::Result<()> {
        OsFiles.sync_dir(dir)
    }
    fn free_bytes(&self, _: &std::path::Path) -> std::io::Result<u64> {
        let bytes = self.state.lock().0;
        Ok(bytes.saturating_sub(self.used()))
    }
    fn lock(&self, path: &std::path::Path) -> std::io::Result<Box<dyn LockGuard>> {
        OsFiles.lock(path)
    }
}

impl LogFile for SmallFile {
    fn write_all_at(&self, parts: &mut [std::io::IoSlice<'_>], at: u64) -> std::io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.disk.grow(&self.path, at + len as u64)?;
        self.file.write_all_at(parts, at)
    }
    fn end_writing(&self) {
        self.file.end_writing();
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<usize> {
        self.file.read_at(into, at)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn truncate(&self, len: u64) -> std::io::Result<()> {
        self.file.truncate(len)?;
        self.disk.state.lock().1.insert(self.path.clone(), len);
        Ok(())
    }
    fn allocate(&self, len: u64) -> std::io::Result<()> {
        self.disk.grow(&self.path, len)?;
        self.file.allocate(len)
    }
}

fn append(role: Role, batch: seaway_federation_proto::envelope::Batch) -> Unit {
    Unit { entries: vec![Entry::Append { role, batch }] }
}

/// Submits until it is refused; answers with the reason and the batches that were accepted.
fn fill(
    log: &DiskLog,
    origin: &mut Origin,
    role: Role,
    told: &mpsc::Sender<()>,
) -> (RejectReason, Vec<seaway_federation_proto::envelope::Batch>) {
    let mut accepted = Vec::new();
    for _ in 0..5_000 {
        let kept = origin.clone();
        let batch = origin.next(2, 4000);
        let told = told.clone();
        let done = Box::new(move |done: Result<(), _>| {
            assert_eq!(done, Ok(()));
            told.send(()).unwrap();
        });
        match log.submit(append(role, batch.clone()), done) {
            Ok(()) => accepted.push(batch),
            Err(rejected) => {
                *origin = kept;
                match rejected.reason {
                    RejectReason::Busy => {
                        let (wake, woken) = mpsc::channel();
                        log.ready(rejected.unit.room_bytes(), Box::new(move || _ = wake.send(())));
                        if woken.recv_timeout(std::time::Duration::from_secs(2)).is_err() {
                            return (RejectReason::Busy, accepted);
                        }
                    }
                    reason => return (reason, accepted),
                }
            }
        }
    }
    panic!("nothing ends it");
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if is() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{what} did not come");
}

#[test]
fn what_was_accepted_is_written_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Small::new(2 << 20);
    let settings = DiskConfig { files: Arc::new(disk.clone()), queue_bytes_max: 256 << 10, ..config(dir.path()) };
    let (log, _) = DiskLog::open(settings).unwrap();
    let mut origin = Origin::new(log_name("orders", "s1", 1), 1);
    let (tell, told) = mpsc::channel();
    let (why, mut batches) = fill(&log, &mut origin, Role::Own, &tell);
    assert!(matches!(why, RejectReason::Busy | RejectReason::DiskFull { .. }), "{why}");
    let answered = told.try_iter().count();
    assert!(answered < batches.len() && batches.len() > 100, "{answered} of {}", batches.len());
    until("the disk to be full", || log.stats().disk_full);
    assert_eq!(log.stats().poisoned, None);
    // Another writer goes away.
    disk.set(64 << 20);
    for _ in answered..batches.len() {
        told.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    }
    until("room", || !log.stats().disk_full);
    let batch = origin.next(2, 4000);
    store(&*log, append(Role::Own, batch.clone()).entries).unwrap();
    batches.push(batch);
    let read = read_all(&log, origin.log(), &batches);
    assert!(matches!(read.0, Read::AtEnd { .. }) && read.1 == batches.len(), "{read:?}");
    log.close().unwrap();
    drop(log);
    let settings = DiskConfig { files: Arc::new(disk), ..config(dir.path()) };
    let (log, recovery) = DiskLog::open(settings).unwrap();
    assert_eq!((recovery.damage, recovery.torn_bytes), (vec![], 0));
    assert_eq!(read_all(&log, origin.log(), &batches).1, batches.len());
}

#[test]
fn a_disk_that_others_filled_to_the_last_byte_is_freed_by_retention() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Small::new(16 << 20);
    let settings = DiskConfig {
        files: Arc::new(disk.clone()),
        queue_bytes_max: 128 << 10,
        reserve_bytes: 1 << 20,
        ballast_bytes: 512 << 10,
        ..config(dir.path())
    };
    let (log, _) = DiskLog::open(settings).unwrap();
    assert_eq!(std::fs::metadata(dir.path().join("reserve")).unwrap().len(), 512 << 10);
    let mut origin = Origin::new(log_name("orders", "s1", 1), 1);
    let (tell, told) = mpsc::channel();
    // Another writer takes all that is left while it is under load.
    let mut batches = Vec::new();
    for _ in 0..400 {
        let batch = origin.next(2, 4000);
        batches.push(batch.clone());
        store(&*log, append(Role::Own, batch).entries).unwrap();
    }
    disk.set(disk.used());
    let (why, more) = fill(&log, &mut origin, Role::Own, &tell);
    assert!(matches!(why, RejectReason::DiskFull { .. } | RejectReason::Busy), "{why}");
    batches.extend(more.iter().cloned());
    for _ in &more {
        told.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    }
    assert!(!dir.path().join("reserve").exists(), "what was kept is used");
    until("the disk to be full", || log.stats().disk_full);
    // Nobody makes room but retention.
    let to = batches[batches.len() - 3].begin();
    store(&*log, vec![Entry::Trim { log: origin.log().clone(), to }]).unwrap();
    until("room", || {
        log.reclaim().unwrap();
        !log.stats().disk_full
    });
    assert_eq!(log.stats().poisoned, None);
    store(&*log, append(Role::Own, origin.next(2, 4000)).entries).unwrap();
    until("the reserve to be kept again", || {
        log.reclaim().unwrap();
        dir.path().join("reserve").exists()
    });
    assert_eq!(log.info(origin.log(), true).unwrap().begin, to);
}

#[test]
fn a_full_share_refuses_its_own_and_no_other() {
    for (full, other) in [(Role::Own, Role::Copy), (Role::Copy, Role::Own)] {
        let dir = tempfile::tempdir().unwrap();
        let share = Some(1 << 20);
        let settings = DiskConfig {
            own_bytes_max: share.filter(|_| full == Role::Own),
            copies_bytes_max: share.filter(|_| full == Role::Copy),
            queue_bytes_max: 128 << 10,
            ..config(dir.path())
        };
        let (log, _) = DiskLog::open(settings).unwrap();
        let (mut one, mut two) =
            (Origin::new(log_name("orders", "s1", 1), 1), Origin::new(log_name("orders", "s2", 1), 2));
        let (tell, told) = mpsc::channel();
        let (why, batches) = fill(&log, &mut one, full, &tell);
        assert!(matches!(why, RejectReason::ShareFull { role, max, .. } if role == full && max == 1 << 20), "{why}");
        for _ in &batches {
            told.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        }
        let bytes: usize = batches.iter().map(|batch| batch.len()).sum();
        assert!(((1 << 19)..=1 << 20).contains(&bytes), "{bytes} bytes live in a share of 1 MiB");
        let stats = log.stats();
        assert_eq!(
            (stats.own_full, stats.copies_full, stats.disk_full),
            (full == Role::Own, full == Role::Copy, false)
        );
        for _ in 0..200 {
            store(&*log, append(other, two.next(2, 4000)).entries).unwrap();
        }
        // State and trims go on; with them it goes on by itself.
        store(&*log, vec![Entry::Trim { log: one.log().clone(), to: one.end().unwrap() }]).unwrap();
        until("room in the share", || {
            log.reclaim().unwrap();
            !log.stats().own_full && !log.stats().copies_full
        });
        store(&*log, append(full, one.next(2, 4000)).entries).unwrap();
    }
}
