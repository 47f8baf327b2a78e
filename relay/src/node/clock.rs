//! Time as the node's own parts take it: monotonic for everything that waits, the wall clock for
//! origin time and retention. Simulation gives its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Time since a moment that stays the same while the process runs; never decreases.
    fn now(&self) -> Duration;
    /// The wall clock: microseconds since 1970.
    fn wall_us(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    base: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    pub fn new() -> Self {
        Self::since(Instant::now())
    }

    /// A clock whose monotonic time began then.
    pub fn since(base: Instant) -> Self {
        Self { base }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.base.elapsed()
    }

    fn wall_us(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
    }
}
