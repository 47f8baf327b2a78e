//! `seaway bench slow-disk`: small messages, published async at a node whose disk takes long to make anything durable.
//!
//! The node and its door run in this process over a layer of files that waits in each sync; all else is what ships.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use seaway_federation_proto::ids::Start;
use seaway_relay::{
    log::{
        contract::CommitLog as _,
        disk::{DiskConfig, DiskLog},
        files::{Files, LockGuard, LogFile, OsFiles},
    },
    node::Node,
};

use super::{
    BenchError, Figure,
    cluster::{Cluster, Kind},
    federation,
    load::Load,
};
use crate::{config::Loaded, door::Door};

/// Size of a message, bytes.
const SIZE: usize = 100;
const WARM_UP: Duration = Duration::from_secs(1);

const NODE: &str = "a/edge";

/// Measures. `binary` is the `seaway` binary, `parent` a directory for the node's data; each sync takes `sync` longer.
pub async fn run(
    binary: PathBuf,
    parent: &Path,
    sync: Duration,
    time: Duration,
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<Vec<Figure>, BenchError> {
    let mut cluster = Cluster::new(binary, parent)?;
    cluster.add(NODE, Kind::Edge, &[], federation::QUIET)?;
    let (node, log, door) = open(cluster.member(NODE)?.config(), sync).await?;
    let url = cluster.member(NODE)?.url();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(door.serve(async {
        let _ = stopped.await;
    }));
    tell(format!("messages of {SIZE} B, where each sync of the disk takes {} ms longer", sync.as_millis()));
    let load = Load { url, topic: "bench".into(), holder: None, size: SIZE, time: WARM_UP, rate: None, epoch: None };
    load.run().await?;
    let before = log.stats();
    let measured = Load { time, ..load }.run().await?;
    let after = log.stats();
    let _ = stop.send(());
    serving.await.map_err(failed)?.map_err(failed)?;
    node.shutdown().await.map_err(BenchError)?;
    let seconds = measured.elapsed.as_secs_f64();
    let p50 = measured.latency_us.value_at_quantile(0.5) as f64 / 1e3;
    Ok(vec![
        Figure::new("slow-disk.live.100B", measured.messages as f64 / seconds, "messages/s"),
        Figure::new("slow-disk.syncs", (after.syncs - before.syncs) as f64 / seconds, "syncs/s"),
        Figure::limited("slow-disk.receipt.p50", p50, "ms", sync.as_secs_f64() * 1e3),
    ])
}

/// A node and its door as a configuration file says, but for the disk.
async fn open(config: &Path, sync: Duration) -> Result<(Node, Arc<DiskLog>, Door<Node>), BenchError> {
    let loaded = Loaded::load(config, std::iter::empty(), &[]).map_err(failed)?;
    let config = loaded.node_config().map_err(failed)?;
    let start = Start { time_us: 1, random: 1 };
    let mut disk = DiskConfig::new(config.data_dir.clone(), &config.federation, config.name.clone(), start);
    disk.segment_bytes = config.segment_bytes;
    disk.files = Arc::new(SlowFiles { sync });
    let opened = tokio::task::spawn_blocking(move || DiskLog::open(disk)).await.map_err(failed)?;
    let (log, _) = opened.map_err(failed)?;
    let node = Node::start_on(config, log.clone()).await.map_err(failed)?;
    let door = loaded.door_config().map_err(failed)?.ok_or_else(|| BenchError("the node has no door".into()))?;
    let door = Door::open(door, node.clone()).await.map_err(failed)?;
    Ok((node, log, door))
}

fn failed(error: impl std::fmt::Display) -> BenchError {
    BenchError(error.to_string())
}

/// The system's files, whose syncs take longer.
#[derive(Debug)]
struct SlowFiles {
    sync: Duration,
}

#[derive(Debug)]
struct SlowFile {
    file: Arc<dyn LogFile>,
    sync: Duration,
}

impl SlowFiles {
    fn slow(&self, file: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(SlowFile { file, sync: self.sync })
    }
}

impl Files for SlowFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        OsFiles.create_dir(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        OsFiles.create(path).map(|file| self.slow(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        OsFiles.open(path).map(|file| self.slow(file))
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
        std::thread::sleep(self.sync);
        OsFiles.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        OsFiles.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        OsFiles.lock(path)
    }
}

impl LogFile for SlowFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        self.file.write_all_at(parts, at)
    }

    fn end_writing(&self) {
        self.file.end_writing();
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(into, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        std::thread::sleep(self.sync);
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }
}
