//! `seaway bench space`: a busy topic kept for an hour beside a thin one kept for two days, on the real commit log with a clock
//! of its own: what the disk holds for each byte that lives, with moving and without, and what the moving costs.

use std::path::Path;

use seaway_relay::log::bench::{SpaceResult, bench_space};

use super::{BenchError, Figure};

/// The bound of dead bytes in old segments that a node has unless it is told otherwise.
const DEAD_SHARE: f64 = 0.4;

/// Measures in `dir`, which must not exist yet; writes about `bytes` twice.
pub fn run(dir: &Path, bytes: u64, tell: &mut dyn FnMut(String)) -> Result<Vec<Figure>, BenchError> {
    let failed = |e: seaway_relay::log::bench::BenchError| BenchError(e.to_string());
    tell("two days and six hours, with moving".to_owned());
    let moved = bench_space(dir, bytes, DEAD_SHARE).map_err(failed)?;
    tell("and without".to_owned());
    let kept = bench_space(dir, bytes, 1.0).map_err(failed)?;
    Ok(figures(&moved, &kept))
}

fn figures(moved: &SpaceResult, kept: &SpaceResult) -> Vec<Figure> {
    let overhead = |r: &SpaceResult| r.segment_bytes / r.live_bytes.max(1.0);
    let accepted = moved.accepted_bytes.max(1) as f64;
    let written = moved.written_bytes.saturating_add(moved.index_written_bytes);
    let seconds = moved.reclaiming.as_secs_f64().max(1e-9);
    vec![
        Figure::new("space.live", moved.live_bytes / 1e6, "MB"),
        Figure::new("space.disk", moved.segment_bytes / 1e6, "MB"),
        // Less is better: the ratio is what is left of the overhead without moving.
        Figure::limited("space.overhead", overhead(moved), "bytes/byte", overhead(kept)),
        Figure::new("space.overhead.max", moved.overhead_max, "bytes/byte"),
        Figure::new("space.overhead.unmoved", overhead(kept), "bytes/byte"),
        Figure::new("space.index", moved.index_bytes as f64 / 1e6, "MB"),
        Figure::new("space.moved_bytes_per_byte", moved.moved_bytes as f64 / accepted, "bytes/byte"),
        Figure::new("space.written_bytes_per_byte", written as f64 / accepted, "bytes/byte"),
        Figure::new("space.index_bytes_per_byte", moved.index_written_bytes as f64 / accepted, "bytes/byte"),
        Figure::new("space.moving_rate", moved.moved_bytes as f64 / seconds / 1e6, "MB/s"),
        Figure::new("space.freeing_rate", moved.freed_bytes as f64 / seconds / 1e6, "MB/s"),
    ]
}
