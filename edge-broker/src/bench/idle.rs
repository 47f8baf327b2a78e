//! `seaway bench idle`: what an edge broker takes that has nothing to do: two of them, linked, once with the settings that hold
//! unless told otherwise, and once with those for small devices (`deploy/small.toml`).

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    BenchError, Figure,
    cluster::{Cluster, Kind},
    federation, process,
};

/// How long nothing happens before it is looked at.
const SETTLE: Duration = Duration::from_secs(10);
/// For how long CPU time is taken.
const WATCH: Duration = Duration::from_secs(10);

/// Settings for small devices, as `deploy/small.toml` has them.
pub const SMALL: &str = r#"
[log]
segment_size = "16 MiB"
"#;

/// Measures. `binary` is the `seaway` binary, `parent` a directory for the nodes' data.
pub async fn run(
    binary: PathBuf,
    parent: &Path,
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for (name, settings) in [("idle", ""), ("idle.small", SMALL)] {
        tell(format!("{name}: two nodes that do nothing, for {} s", (SETTLE + WATCH).as_secs()));
        let mut cluster = Cluster::new(binary.clone(), parent)?;
        let settings = format!("{}{settings}", federation::QUIET);
        cluster.add("a/edge", Kind::Edge, &[], &settings)?;
        cluster.add("b/edge", Kind::Edge, &["a/edge"], &settings)?;
        cluster.start("a/edge")?;
        cluster.start("b/edge")?;
        federation::wait_ready(&mut cluster).await?;
        tokio::time::sleep(SETTLE).await;
        let pid = cluster.member("a/edge")?.pid();
        let look = |of: fn(u32) -> Option<f64>| {
            pid.and_then(of).ok_or_else(|| BenchError("the node a/edge has ended; see its log".into()))
        };
        let (began, before) = (Instant::now(), look(process::cpu_s)?);
        tokio::time::sleep(WATCH).await;
        let cpu_s = look(process::cpu_s)? - before;
        figures.push(Figure::new(format!("{name}.memory"), look(process::memory)? / 1e6, "MB"));
        figures.push(Figure::new(format!("{name}.memory.own"), look(process::own_memory)? / 1e6, "MB"));
        figures.push(Figure::new(format!("{name}.cpu"), cpu_s / began.elapsed().as_secs_f64() * 100.0, "% of a core"));
    }
    Ok(figures)
}
