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

/// What `deploy/small.toml` marks as measured, but for the key below.
const SMALL: &str = "[log]\nsegment_size = \"16 MiB\"\ndisk_reserve = \"32 MiB\"\ntail_memory = \"4 MiB\"\n";
/// Of the section that a node's configuration begins with.
const SMALL_NODE: &str = "huge_pages = false\n";

/// Measures. `binary` is the `seaway` binary, `parent` a directory for the nodes' data.
pub async fn run(
    binary: PathBuf,
    parent: &Path,
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for (name, is_small) in [("idle", false), ("idle.small", true)] {
        tell(format!("{name}: two nodes that do nothing, for {} s", (SETTLE + WATCH).as_secs()));
        let mut cluster = Cluster::new(binary.clone(), parent)?;
        let settings = format!("{}{}", federation::QUIET, if is_small { SMALL } else { "" });
        cluster.add("a/edge", Kind::Edge, &[], &settings)?;
        cluster.add("b/edge", Kind::Edge, &["a/edge"], &settings)?;
        for node in ["a/edge", "b/edge"] {
            if is_small {
                add_to_node(cluster.member(node)?.config())?;
            }
            cluster.start(node)?;
        }
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

fn add_to_node(config: &Path) -> Result<(), BenchError> {
    let failed = |e: std::io::Error| BenchError(format!("{} cannot be changed: {e}", config.display()));
    let text = std::fs::read_to_string(config).map_err(failed)?;
    std::fs::write(config, text.replacen("[node]\n", &format!("[node]\n{SMALL_NODE}"), 1)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_for_small_devices_is_what_is_measured() {
        let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/small.toml")).unwrap();
        let measured: Vec<String> =
            sample.lines().filter_map(|line| Some(line.strip_suffix("# measured")?.trim_end().to_owned())).collect();
        let set: Vec<&str> = SMALL_NODE.lines().chain(SMALL.lines().filter(|line| !line.starts_with('['))).collect();
        assert_eq!(measured, set);
    }
}
