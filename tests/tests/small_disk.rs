//! A real file system of some MiB, filled to the last byte by another writer while the commit log is under load.
//!
//! Where mounting is possible (as root on Linux) it is a tmpfs of its own; elsewhere the test says so and does nothing more: the same
//! is tried there with a bound of the program's own, in the commit log's unit tests (`log/disk/tests/full.rs`).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]
#![allow(clippy::print_stdout, reason = "a test says what it ran on")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use seaway_federation_proto::{
    envelope::Batch,
    ids::{NodeName, Start},
};
use seaway_relay::log::{
    conformance::fixture::{Origin, bytes_of, log_name},
    contract::{CommitLog, Entry, Line, Read, RejectReason, Role, Unit},
    disk::{DiskConfig, DiskLog},
};

/// Size of the file system.
const DISK: u64 = 64 << 20;
const RESERVE: u64 = 12 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// A tmpfs, until it is dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "seaway-test"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn config(dir: &Path, start: u64) -> DiskConfig {
    let name = NodeName::new("near".parse().unwrap(), "one").unwrap();
    let config = DiskConfig::new(dir.join("data"), "test", name, Start { time_us: start, random: start });
    DiskConfig {
        segment_bytes: 2 << 20,
        checkpoint_bytes: 4 << 20,
        reserve_bytes: RESERVE,
        ballast_bytes: RESERVE / 2,
        queue_bytes_max: 1 << 20,
        tail_bytes_max: 1 << 20,
        moving_rate: u64::MAX,
        ..config
    }
}

/// Publishes until it is told to stop: every batch that was accepted must be answered with `Ok`.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: thread::JoinHandle<(Vec<Batch>, u64)>,
}

impl Load {
    fn begin(log: &Arc<DiskLog>, mut origin: Origin) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (log, ends, told) = (Arc::clone(log), Arc::clone(&stop), Arc::clone(&answered));
        let publish = move || {
            let (mut batches, mut refused) = (Vec::new(), 0);
            while !ends.load(Ordering::SeqCst) {
                let kept = origin.clone();
                let batch = origin.next(4, 2000);
                let told = Arc::clone(&told);
                let done = move |done: Result<(), _>| {
                    assert_eq!(done, Ok(()), "a publisher is answered wrongly");
                    told.fetch_add(1, Ordering::SeqCst);
                };
                let unit = Unit { entries: vec![Entry::Append { role: Role::Own, batch: batch.clone() }] };
                match log.submit(unit, Box::new(done)) {
                    Ok(()) => batches.push(batch),
                    Err(rejected) => {
                        origin = kept;
                        refused += 1;
                        let reason = &rejected.reason;
                        assert!(matches!(reason, RejectReason::Busy | RejectReason::DiskFull { .. }), "{reason}");
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            (batches, refused)
        };
        Self { stop, answered, thread: thread::spawn(publish) }
    }

    /// Stops, and waits until all that was accepted is answered.
    fn end(self) -> Vec<Batch> {
        self.stop.store(true, Ordering::SeqCst);
        let (batches, refused) = self.thread.join().unwrap();
        let answered = self.answered;
        until("all answers", || answered.load(Ordering::SeqCst) == batches.len() as u64);
        println!("{} batches stored, {refused} times refused", batches.len());
        batches
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what} did not come");
        thread::sleep(Duration::from_millis(20));
    }
}

fn free(dir: &Path) -> u64 {
    let found = rustix::fs::statvfs(dir).unwrap();
    found.f_bavail * found.f_frsize
}

/// Another writer: takes every byte, again and again while something becomes free.
fn take_all(path: &Path) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    for size in [1 << 20, 4096, 512, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

fn check(log: &DiskLog, name: &seaway_federation_proto::ids::LogName, batches: &[Batch]) {
    let info = log.info(name, true).unwrap();
    let mut at = info.begin;
    let begin = info.begin;
    let mut expected = batches.iter().skip_while(|batch| batch.begin() != begin);
    while let Read::Batches { batches, next } = log.read(name, at, Line::Main, 1 << 20).unwrap() {
        for batch in batches {
            assert!(bytes_of(&batch) == bytes_of(expected.next().unwrap()), "{} is altered", batch.begin());
        }
        at = next;
    }
    assert_eq!(expected.next().map(Batch::begin), None, "something is lost");
}

fn trim(log: &DiskLog, to: &Batch) {
    let entries = vec![Entry::Trim { log: to.header().log.clone(), to: to.begin() }];
    let (tell, told) = mpsc::channel();
    log.submit(Unit { entries }, Box::new(move |done| tell.send(done).unwrap())).unwrap();
    told.recv_timeout(PATIENCE).unwrap().unwrap();
}

#[test]
fn a_file_system_that_is_filled_to_the_last_byte_stops_nothing_for_good() {
    let Some(mount) = Mount::new() else {
        println!("nothing can be mounted here: see log/disk/tests/full.rs, which ran with a bound of its own");
        return;
    };
    println!("on a tmpfs of {} MiB", DISK >> 20);
    let filler: PathBuf = mount.path().join("filler");
    let (log, _) = DiskLog::open(config(mount.path(), 1)).unwrap();
    let name = log_name("orders", "near", 1);
    let load = Load::begin(&log, Origin::new(name.clone(), 1));
    until("some load", || load.answered.load(Ordering::SeqCst) > 200);

    // The other writer takes everything, several times over, while messages come.
    for _ in 0..20 {
        take_all(&filler);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(free(mount.path()), 0, "it is filled to the last byte");
    until("the log to notice", || log.stats().disk_full);
    assert_eq!(log.stats().poisoned, None);

    // Back to work once it is gone, with the same process.
    fs::remove_file(&filler).unwrap();
    until("room", || !log.stats().disk_full);
    let before = load.answered.load(Ordering::SeqCst);
    until("messages again", || load.answered.load(Ordering::SeqCst) > before + 100);
    let mut batches = load.end();
    check(&log, &name, &batches);

    // How much came meanwhile is the machine's matter: the reserve needs room of its own.
    trim(&log, &batches[batches.len() - 20]);
    until("the reserve to be kept again", || {
        log.reclaim().unwrap();
        mount.path().join("data/reserve").exists()
    });

    // Full by its own messages and by another writer that stays: retention alone makes room.
    let end = batches.last().map(|last| (last.end(), last.chain_after()));
    let load = Load::begin(&log, Origin::at(name.clone(), end, 2));
    until("the log to be full", || log.stats().disk_full);
    take_all(&filler);
    assert_eq!(free(mount.path()), 0);
    thread::sleep(Duration::from_millis(300));
    batches.extend(load.end());
    assert!(log.stats().disk_full);
    trim(&log, &batches[batches.len() - 20]);
    until("room", || {
        log.reclaim().unwrap();
        !log.stats().disk_full
    });
    let end = batches.last().map(|last| (last.end(), last.chain_after()));
    let load = Load::begin(&log, Origin::at(name.clone(), end, 3));
    until("messages again", || load.answered.load(Ordering::SeqCst) > 100);
    batches.extend(load.end());
    check(&log, &name, &batches);
    assert_eq!(log.stats().poisoned, None);
    log.close().unwrap();
    drop(log);
    let (log, recovery) = DiskLog::open(config(mount.path(), 2)).unwrap();
    assert_eq!((recovery.damage, recovery.torn_bytes), (vec![], 0));
    check(&log, &name, &batches);
}
