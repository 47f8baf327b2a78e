//! `seaway bench federation`: two edge brokers, linked directly, as real processes; published at one, and counted when
//! the receipt says that the other holds it durably.
//!
//! For each size the rate is measured with a full window, then at a tenth of that rate how long a message takes to a
//! subscriber at the other node (`federation.latency`) and until its receipt, which says that it is durable at both
//! (`federation.receipt`). Least of all that takes two syncs of the disk and a round trip: both are measured in the same
//! run, and stand beside the median and the 99th percentile. CPU is that of both nodes together, without the publisher's own; memory is the
//! most that each node has held; what is written is what each node gave to its disk for each byte published. Where the time
//! goes is said as shares of the CPU time that the nodes and the load itself used at the full rate: of their tasks (the door and the links), the
//! log's thread, and the rest.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    BenchError, Figure,
    cluster::{Cluster, Kind},
    listener::Listener,
    load::{Load, Measured},
    machine::Machine,
    process::{self, Cpu},
};

/// Sizes of messages, bytes, with their names in figures.
pub const SIZES: [(&str, usize); 3] = [("100B", 100), ("1KiB", 1024), ("64KiB", 64 * 1024)];
/// The size that the latency figures without a size in their name are for.
const LATENCY_SIZE: &str = "1KiB";
/// How long the two nodes may take to find each other.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Before measuring, as much time is spent on warming up.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures. `binary` is the `seaway` binary, `parent` a directory for the nodes' data; `tell` is told what goes on.
pub async fn run(
    binary: PathBuf,
    parent: &Path,
    sizes: &[(&str, usize)],
    time: Duration,
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<Vec<Figure>, BenchError> {
    let mut cluster = Cluster::new(binary, parent)?;
    cluster.add("a/edge", Kind::Edge, &[], QUIET)?;
    cluster.add("b/edge", Kind::Edge, &["a/edge"], QUIET)?;
    cluster.start("a/edge")?;
    cluster.start("b/edge")?;
    wait_ready(&mut cluster).await?;
    let machine = Machine::measure(&cluster.dir)?;
    let mut figures = vec![
        Figure::new("federation.limit.sync", machine.sync_ms, "ms"),
        Figure::new("federation.limit.round_trip", machine.round_trip_ms, "ms"),
    ];
    for &(name, size) in sizes {
        figures.extend(of_size(&cluster, machine, (name, size), time, tell).await?);
    }
    for (figure, node) in [("federation.memory.publisher", "a/edge"), ("federation.memory.receiver", "b/edge")] {
        let peak = cluster.member(node)?.pid().and_then(process::peak_memory);
        let peak = peak.ok_or_else(|| BenchError(format!("the node {node} has ended; see its log")))?;
        figures.push(Figure::new(figure, peak / 1e6, "MB"));
    }
    Ok(figures)
}

async fn of_size(
    cluster: &Cluster,
    machine: Machine,
    (name, size): (&str, usize),
    time: Duration,
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<Vec<Figure>, BenchError> {
    tell(format!("messages of {name}: rate"));
    let load = Load {
        url: cluster.member("a/edge")?.url(),
        topic: format!("bench-{}", name.to_lowercase()),
        holder: Some("b".into()),
        size,
        time: WARM_UP,
        rate: None,
        epoch: None,
    };
    load.run().await?;
    let before = Used::of(cluster)?;
    let full = Load { time, ..load.clone() }.run().await?;
    let after = Used::of(cluster)?;
    let rate = full.messages as f64 / full.elapsed.as_secs_f64();
    tell(format!("messages of {name}: {rate:.0} messages/s; latency at a tenth of that"));
    let listener = Listener::open(cluster.member("b/edge")?.url(), &load.topic).await?;
    let epoch = Instant::now();
    let (count, all) = tokio::sync::oneshot::channel();
    let listening = listener.listen(epoch, all);
    let paced = Load { time, rate: Some((rate / 10.0).max(1.0)), epoch: Some(epoch), ..load }.run().await?;
    // Who listens no more says why below.
    let _ = count.send(paced.messages);
    let delivered = listening.await.map_err(|e| BenchError(format!("the subscriber ended: {e}")))??;
    let mut figures = rate_figures(name, size, &full, rate, after.cpu_s - before.cpu_s);
    figures.extend(written_figures(name, full.messages as f64 * size as f64, &before, &after));
    figures.extend(latency_figures("latency", name, &delivered, Some(machine.two_nodes_ms())));
    figures.extend(latency_figures("receipt", name, &paced.latency_us, None));
    figures.extend(spent_figures(name, &before.spent, &after.spent));
    Ok(figures)
}

/// Nodes under measurement say only what is wrong.
pub(super) const QUIET: &str = "[logging]\nlevel = \"warn\"\n";

pub(super) async fn wait_ready(cluster: &mut Cluster) -> Result<(), BenchError> {
    let until = Instant::now() + READY_WITHIN;
    let load = Load {
        url: cluster.member("a/edge")?.url(),
        topic: "bench-ready".into(),
        holder: Some("b".into()),
        size: 1,
        time: Duration::from_millis(1),
        rate: Some(1.0),
        epoch: None,
    };
    loop {
        let failure = match tokio::time::timeout(Duration::from_secs(10), load.run()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "no receipt came".into(),
        };
        for node in ["a/edge", "b/edge"] {
            let member = cluster.member_mut(node)?;
            if !member.is_running() {
                return Err(BenchError(format!("the node {node} ended: {}", member.logged().trim())));
            }
        }
        if Instant::now() > until {
            return Err(BenchError(format!("the two nodes do not reach each other: {failure}")));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What the two nodes have used so far.
struct Used {
    /// CPU seconds of both.
    cpu_s: f64,
    spent: Spent,
    /// Bytes that publisher and receiver gave to their disks.
    written: [u64; 2],
}

impl Used {
    fn of(cluster: &Cluster) -> Result<Self, BenchError> {
        let mut used = Used { cpu_s: 0.0, spent: spent(cluster)?, written: [0; 2] };
        for (node, written) in ["a/edge", "b/edge"].into_iter().zip(&mut used.written) {
            let ended = || BenchError(format!("the node {node} has ended; see its log"));
            let pid = cluster.member(node)?.pid().ok_or_else(ended)?;
            used.cpu_s += process::cpu_s(pid).ok_or_else(ended)?;
            *written = process::written(pid).ok_or_else(ended)?;
        }
        Ok(used)
    }
}

/// CPU time by process and part of it.
type Spent = BTreeMap<(&'static str, &'static str), Cpu>;

/// The part of a process that a thread belongs to: its names may change, those of figures stay.
fn part(process: &str, thread: &str) -> &'static str {
    match (process, thread) {
        ("load", _) => "all",
        (_, "seaway") => "tasks",
        (_, "seaway-log") => "log",
        _ => "rest",
    }
}

/// What both nodes and this process have used.
fn spent(cluster: &Cluster) -> Result<Spent, BenchError> {
    let mut spent = Spent::new();
    for (process, node) in [("publisher", Some("a/edge")), ("receiver", Some("b/edge")), ("load", None)] {
        let pid = match node {
            Some(node) => cluster.member(node)?.pid(),
            None => Some(std::process::id()),
        };
        let threads = pid.and_then(process::cpu_of_threads);
        let threads = threads.ok_or_else(|| BenchError(format!("the {process} has ended; see its log")))?;
        for (thread, cpu) in threads {
            let known: &mut Cpu = spent.entry((process, part(process, &thread))).or_default();
            *known = known.plus(cpu);
        }
    }
    Ok(spent)
}

/// Shares of all that was used between the two.
fn spent_figures(name: &str, before: &Spent, after: &Spent) -> Vec<Figure> {
    let since = |key: &(&'static str, &'static str), cpu: &Cpu| cpu.since(before.get(key).copied().unwrap_or_default());
    let used: Vec<_> = after.iter().map(|(key, cpu)| (key, since(key, cpu))).collect();
    let all: f64 = used.iter().map(|(_, cpu)| cpu.sum()).sum();
    let figure = |((process, part), kind, cpu): ((&str, &str), &str, f64)| {
        Figure::new(format!("federation.spent.{name}.{process}.{part}.{kind}"), cpu / all * 100.0, "% of CPU")
    };
    let kinds =
        |(key, cpu): (&(&'static str, &'static str), Cpu)| [(*key, "user", cpu.user), (*key, "system", cpu.system)];
    used.into_iter().flat_map(kinds).map(figure).collect()
}

fn rate_figures(name: &str, size: usize, full: &Measured, rate: f64, cpu_s: f64) -> Vec<Figure> {
    let bytes = full.messages as f64 * size as f64;
    vec![
        Figure::new(format!("federation.live.{name}"), rate, "messages/s"),
        Figure::new(format!("federation.live.{name}.bytes"), rate * size as f64 / 1e6, "MB/s"),
        Figure::new(format!("federation.cpu.{name}.messages"), cpu_s / full.messages as f64 * 1e6, "CPU-s/million"),
        Figure::new(format!("federation.cpu.{name}.bytes"), cpu_s / bytes * 1e9, "CPU-s/GB"),
    ]
}

/// Bytes that each node gave to its disk for each byte published: headers, padding to sectors, and the index.
fn written_figures(name: &str, published: f64, before: &Used, after: &Used) -> [Figure; 2] {
    let figure = |part: &str, before: u64, after: u64| {
        let written = after.saturating_sub(before) as f64;
        Figure::new(format!("federation.written.{name}.{part}"), written / published, "bytes/byte")
    };
    let ([a, b], [c, d]) = (before.written, after.written);
    [figure("publisher", a, c), figure("receiver", b, d)]
}

/// `limit_ms`: the least that it can take; the thousandth slowest says nothing beside that.
fn latency_figures(what: &str, name: &str, times_us: &Histogram<u64>, limit_ms: Option<f64>) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (quantile, part) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        let ms = times_us.value_at_quantile(part) as f64 / 1e3;
        let mut names = vec![format!("federation.{what}.{name}.{quantile}")];
        if name == LATENCY_SIZE {
            names.push(format!("federation.{what}.{quantile}"));
        }
        figures.extend(names.into_iter().map(|name| match limit_ms.filter(|_| quantile != "p999") {
            Some(limit) => Figure::limited(name, ms, "ms", limit),
            None => Figure::new(name, ms, "ms"),
        }));
    }
    figures
}
