//! How long the commit log's syncs take: counts by duration, cheap enough to be kept always.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the counts, microseconds; what took longer than the last is counted beyond it.
pub const SYNC_BOUNDS_US: [u64; 12] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];

/// Syncs so far, by how long they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncTimes {
    /// How many took at most the bound of [`SYNC_BOUNDS_US`] at the same place, and longer than the one before.
    pub within: [u64; SYNC_BOUNDS_US.len()],
    /// How many took longer than all bounds.
    pub beyond: u64,
    /// How long all of them took, microseconds.
    pub total_us: u64,
}

/// The same while it grows.
#[derive(Debug, Default)]
pub(crate) struct SyncTimer {
    within: [AtomicU64; SYNC_BOUNDS_US.len()],
    beyond: AtomicU64,
    total_us: AtomicU64,
}

impl SyncTimer {
    /// Counts a sync.
    pub(crate) fn count(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = SYNC_BOUNDS_US.partition_point(|bound| *bound < us);
        self.within.get(at).unwrap_or(&self.beyond).fetch_add(1, Relaxed);
        self.total_us.fetch_add(us, Relaxed);
    }

    /// The counts so far.
    pub(crate) fn times(&self) -> SyncTimes {
        let mut times = SyncTimes { beyond: self.beyond.load(Relaxed), ..SyncTimes::default() };
        for (count, counted) in times.within.iter_mut().zip(&self.within) {
            *count = counted.load(Relaxed);
        }
        times.total_us = self.total_us.load(Relaxed);
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sync_is_counted_once_where_it_belongs() {
        let timer = SyncTimer::default();
        for us in [0, 250, 251, 5_000_000, 5_000_001] {
            timer.count(Duration::from_micros(us));
        }
        let times = timer.times();
        assert_eq!((times.within[0], times.within[1], times.within[11], times.beyond), (2, 1, 1, 1));
        assert_eq!(times.within.iter().sum::<u64>() + times.beyond, 5);
        assert_eq!(times.total_us, 10_000_502);
    }
}
