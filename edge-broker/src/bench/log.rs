//! `seaway bench log`: the commit log, and in the same run plain sequential writes of the same bytes with the same
//! fdatasync policy, which is what the disk itself can do: through the page cache, and directly.

use std::path::Path;

use seaway_relay::log::bench::bench_log;

use super::{BenchError, Figure};

/// Sizes of batches, bytes, with their names in figures.
const SIZES: [(&str, usize); 3] = [("4KiB", 4 << 10), ("256KiB", 256 << 10), ("1MiB", 1 << 20)];

/// Measures in `dir`, which must not exist yet; writes `bytes` for each size, three times.
pub fn run(dir: &Path, bytes: u64, tell: &mut dyn FnMut(String)) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for (name, size) in SIZES {
        tell(format!("batches of {name}"));
        let found = bench_log(dir, size, bytes).map_err(|e| BenchError(e.to_string()))?;
        let append = format!("log.append.{name}");
        figures.push(Figure::limited(
            append.clone(),
            found.log_bytes_per_s / 1e6,
            "MB/s",
            found.plain_bytes_per_s / 1e6,
        ));
        let direct = found.direct_bytes_per_s / 1e6;
        figures.push(Figure::limited(format!("{append}.direct"), found.log_bytes_per_s / 1e6, "MB/s", direct));
        figures.push(Figure::new(format!("{append}.batches"), found.batches_per_s, "batches/s"));
        figures.push(Figure::new(format!("{append}.sync"), found.bytes_per_sync as f64 / 1e3, "kB/fdatasync"));
        // Less is better here: the ratio says how many times the plain file's CPU the log takes.
        let cpu = (found.log_cpu_s_per_gb, found.plain_cpu_s_per_gb);
        figures.push(Figure::limited(format!("{append}.cpu"), cpu.0, "CPU-s/GB", cpu.1));
    }
    Ok(figures)
}
