//! The disk log against real directories.

mod conformance;
mod gate;

use std::path::Path;

use seaway_federation_proto::ids::Start;

use super::{DiskConfig, DiskLog};

/// Settings for a small log in `dir`: segments of 64 KiB, so that tests have many.
fn config(dir: &Path) -> DiskConfig {
    let start = Start { time_us: 1_700_000_000_000_000, random: 7 };
    let config = DiskConfig::new(dir.to_owned(), "test", "s1/edge".parse().unwrap(), start);
    DiskConfig { segment_bytes: 64 * 1024, reserve_bytes: 0, checkpoint_bytes: 256 * 1024, ..config }
}
