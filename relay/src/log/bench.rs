//! How fast the commit log appends, beside plain sequential writes to a file on the same disk.
//!
//! They take turns, so that whatever else the machine does slows all alike. The plain files get as many
//! bytes per write and sync as the log put into a group on average: one is written as any program writes a
//! file, through the page cache, the other directly, as the log does where it can.

mod space;

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use seaway_federation_proto::{
    envelope::{Batch, Chain, Codec, EnvelopeError, Placement},
    ids::{Incarnation, InvalidName, LogName, Place, Queue, Start},
    message::{BodyBuilder, Message},
};

use super::{
    contract::{CommitLog, Entry, Poisoned, RejectReason, Role, Unit},
    disk::{DiskConfig, DiskLog, OpenError},
    files::{Files, LogFile, OsFiles},
};

pub use space::{SpaceResult, bench_space};

/// Turns that log and plain file take.
const TURNS: u64 = 4;
/// Size of the plain file's segments and the log's, in bytes.
const SEGMENT_BYTES: u64 = 256 << 20;

/// What [`bench_log`] measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BenchResult {
    /// Bytes of one batch, envelope included.
    pub batch_bytes: u64,
    /// Bytes of batches appended.
    pub bytes: u64,
    /// Of the log: bytes of batches made durable in a second.
    pub log_bytes_per_s: f64,
    /// Of the plain file, through the page cache.
    pub plain_bytes_per_s: f64,
    /// Of the plain file that is written directly.
    pub direct_bytes_per_s: f64,
    /// Batches that the log made durable in a second.
    pub batches_per_s: f64,
    /// Bytes for each sync of the log, and of the plain file.
    pub bytes_per_sync: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// CPU time of the process for each 10^9 bytes of the log, in seconds; 0 where the system does not tell.
    pub log_cpu_s_per_gb: f64,
    /// The same for the plain file.
    pub plain_cpu_s_per_gb: f64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The log could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The log stopped.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// The log refused an append.
    #[error("the log refused an append: {0}")]
    Refused(String),
    /// A plain write failed.
    #[error("writing the plain file failed: {0}")]
    Io(#[from] io::Error),
    /// A batch could not be made.
    #[error("a batch of {0} bytes cannot be made; take between 1 byte and 1 MiB")]
    BatchSize(usize),
}

impl From<InvalidName> for BenchError {
    fn from(e: InvalidName) -> Self {
        Self::Refused(e.to_string())
    }
}

impl From<EnvelopeError> for BenchError {
    fn from(e: EnvelopeError) -> Self {
        Self::Refused(e.to_string())
    }
}

/// Makes the batches of one log; the body is hashed once.
struct Origin {
    log: LogName,
    end: Place,
    chain: Chain,
    body: seaway_federation_proto::envelope::SealedBody,
    first: bool,
    time_us: u64,
}

impl Origin {
    fn new(batch_bytes: usize) -> Result<Self, BenchError> {
        Self::of("bench", batch_bytes)
    }

    fn of(topic: &str, batch_bytes: usize) -> Result<Self, BenchError> {
        if !(1..=1 << 20).contains(&batch_bytes) {
            return Err(BenchError::BatchSize(batch_bytes));
        }
        let payload: Vec<u8> =
            (0..batch_bytes as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let mut body = BodyBuilder::default();
        let message = Message {
            path: topic.parse()?,
            key: None,
            headers: Vec::new(),
            time_us: 1,
            producer: None,
            payload: Bytes::from(payload),
        };
        body.push(&message);
        let body = body.finish(Codec::None).ok_or(BenchError::BatchSize(batch_bytes))?;
        let incarnation = Incarnation { counter: 1, random: 1 };
        let log = LogName { topic: topic.parse()?, origin: "bench".parse()?, queue: Queue(1) };
        let end = Place { incarnation, offset: 0 };
        Ok(Self { log, end, chain: Chain::default(), body, first: true, time_us: 1 })
    }

    fn next(&mut self) -> Result<Batch, BenchError> {
        self.time_us += 1;
        let placement = Placement {
            log: &self.log,
            begin: self.end,
            first_of_incarnation: self.first,
            previous: None,
            origin_time_us: self.time_us,
            chain_before: self.chain,
        };
        let batch = Batch::seal(&placement, self.body.clone())?;
        self.first = false;
        self.end = batch.end();
        self.chain = batch.chain_after();
        Ok(batch)
    }
}

/// Appends about `total_bytes` in batches of about `batch_bytes` (payload) to a new log in `dir`, as fast as the
/// append queue takes them, and writes as much to plain files there. Removes both at the end.
pub fn bench_log(dir: &Path, batch_bytes: usize, total_bytes: u64) -> Result<BenchResult, BenchError> {
    let log_dir = dir.join("bench-log");
    let plain_dir = dir.join("bench-plain");
    for dir in [&log_dir, &plain_dir] {
        let _ = fs::remove_dir_all(dir);
    }
    let measured = measure(&log_dir, &plain_dir, batch_bytes, total_bytes);
    for dir in [&log_dir, &plain_dir] {
        let _ = fs::remove_dir_all(dir);
    }
    measured
}

fn measure(log_dir: &Path, plain_dir: &Path, batch_bytes: usize, total_bytes: u64) -> Result<BenchResult, BenchError> {
    let name = "bench/bench".parse()?;
    let config = DiskConfig::new(log_dir.to_owned(), "bench", name, Start { time_us: 1, random: 1 });
    let (log, _) = DiskLog::open(DiskConfig { segment_bytes: SEGMENT_BYTES, ..config })?;
    let mut plain = Plain::new(plain_dir.join("cached"), false)?;
    let mut direct = Plain::new(plain_dir.join("direct"), true)?;
    let mut origin = Origin::new(batch_bytes)?;
    let mut result = BenchResult::default();
    let mut log_time = Duration::ZERO;
    let (mut log_cpu, mut batches) = (0.0, 0_u64);
    for _ in 0..TURNS {
        let before = log.stats();
        let (began, cpu) = (Instant::now(), cpu_seconds());
        batches += append(&log, &mut origin, total_bytes / TURNS)?;
        log_time += began.elapsed();
        log_cpu += cpu_seconds() - cpu;
        let after = log.stats();
        result.bytes += after.accepted_bytes - before.accepted_bytes;
        let syncs = (after.syncs - before.syncs).max(1);
        result.syncs += syncs;
        let group = ((after.written_bytes - before.written_bytes) / syncs).max(1);
        for plain in [&mut plain, &mut direct] {
            plain.write(origin.body.bytes.as_ref(), group as usize, total_bytes / TURNS)?;
        }
    }
    log.close()?;
    result.batch_bytes = result.bytes / batches.max(1);
    result.bytes_per_sync = result.bytes / result.syncs.max(1);
    result.log_bytes_per_s = result.bytes as f64 / log_time.as_secs_f64();
    result.batches_per_s = batches as f64 / log_time.as_secs_f64();
    result.plain_bytes_per_s = plain.bytes as f64 / plain.time.as_secs_f64();
    result.direct_bytes_per_s = direct.bytes as f64 / direct.time.as_secs_f64();
    result.log_cpu_s_per_gb = log_cpu / (result.bytes as f64 / 1e9);
    result.plain_cpu_s_per_gb = plain.cpu_s / (plain.bytes as f64 / 1e9);
    Ok(result)
}

/// Appends through the contract, as many on the way as the queue takes; waits for the last. Answers how many.
fn append(log: &Arc<DiskLog>, origin: &mut Origin, bytes: u64) -> Result<u64, BenchError> {
    let (mut sent, mut count) = (0, 0);
    let (told, last) = crossbeam_channel::bounded(1);
    while sent < bytes {
        let batch = origin.next()?;
        sent += batch.len() as u64;
        count += 1;
        let told = (sent >= bytes).then(|| told.clone());
        let done = move |result: Result<(), Poisoned>| {
            if let Some(told) = told {
                let _ = told.try_send(result);
            }
        };
        submit(log, Unit { entries: vec![Entry::Append { role: Role::Own, batch }] }, Box::new(done))?;
    }
    last.recv().map_err(|_| BenchError::Refused("the storage thread has ended".to_owned()))??;
    Ok(count)
}

fn submit(log: &Arc<DiskLog>, unit: Unit, done: super::contract::Done) -> Result<(), BenchError> {
    let mut next = Some((unit, done));
    while let Some((unit, done)) = next.take() {
        match log.submit(unit, done) {
            Ok(()) => {}
            Err(rejected) if rejected.reason == RejectReason::Busy => {
                let (woken, wake) = crossbeam_channel::bounded(1);
                // A quarter of the queue at once: the submitter must not be woken for every batch.
                log.ready(16 << 20, Box::new(move || _ = woken.try_send(())));
                let _ = wake.recv();
                next = Some((rejected.unit, rejected.done));
            }
            Err(rejected) => return Err(BenchError::Refused(rejected.reason.to_string())),
        }
    }
    Ok(())
}

/// Plain sequential writes, in files as large as segments and given their room in advance as those are.
struct Plain {
    dir: PathBuf,
    direct: bool,
    file: PlainFile,
    number: u64,
    at: u64,
    bytes: u64,
    time: Duration,
    cpu_s: f64,
}

enum PlainFile {
    Cached(fs::File),
    Direct(Arc<dyn LogFile>),
}

impl PlainFile {
    fn begin(dir: &Path, number: u64, direct: bool) -> io::Result<Self> {
        let path = dir.join(number.to_string());
        let file = OsFiles.create(&path)?;
        file.allocate(SEGMENT_BYTES)?;
        file.sync_data()?;
        OsFiles.sync_dir(dir)?;
        Ok(if direct { Self::Direct(file) } else { Self::Cached(fs::OpenOptions::new().write(true).open(path)?) })
    }

    fn write(&self, piece: &[u8], at: u64) -> io::Result<()> {
        match self {
            Self::Cached(file) => file.write_all_at(piece, at).and_then(|()| file.sync_data()),
            Self::Direct(file) => file.write_all_at(&mut [io::IoSlice::new(piece)], at).and_then(|()| file.sync_data()),
        }
    }
}

impl Plain {
    fn new(dir: PathBuf, direct: bool) -> Result<Self, BenchError> {
        fs::create_dir_all(&dir)?;
        let file = PlainFile::begin(&dir, 1, direct)?;
        Ok(Self { dir, direct, file, number: 1, at: 0, bytes: 0, time: Duration::ZERO, cpu_s: 0.0 })
    }

    /// Writes about `bytes` in pieces of about `group`, each synced.
    fn write(&mut self, body: &[u8], group: usize, bytes: u64) -> Result<(), BenchError> {
        let piece: Vec<u8> = body.iter().copied().cycle().take(group.next_multiple_of(512)).collect();
        let (began, cpu_s) = (Instant::now(), cpu_seconds());
        let until = self.bytes + bytes;
        while self.bytes < until {
            if self.at + piece.len() as u64 > SEGMENT_BYTES {
                self.number += 1;
                self.file = PlainFile::begin(&self.dir, self.number, self.direct)?;
                self.at = 0;
            }
            self.file.write(&piece, self.at)?;
            self.at += piece.len() as u64;
            self.bytes += piece.len() as u64;
        }
        self.time += began.elapsed();
        self.cpu_s += cpu_seconds() - cpu_s;
        Ok(())
    }
}

/// CPU time of this process so far, as Linux tells it (in steps of 10 ms); 0 elsewhere.
fn cpu_seconds() -> f64 {
    let ticks = || {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some(user + system)
    };
    ticks().unwrap_or(0.0) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_measures_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let result = bench_log(dir.path(), 4096, 1 << 20).unwrap();
        assert!(result.bytes >= 1 << 20 && result.batch_bytes > 4096);
        assert!(result.log_bytes_per_s > 0.0 && result.syncs > 0);
        assert!(result.plain_bytes_per_s > 0.0 && result.direct_bytes_per_s > 0.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        assert!(matches!(bench_log(dir.path(), 0, 1), Err(BenchError::BatchSize(0))));
    }
}
