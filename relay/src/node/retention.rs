//! Retention: raises the begins of logs as their topics' settings, or a relay's bound for its cache, ask.
//!
//! Ages are by this node's own time of appending. Retention waits neither for sites that have not fetched yet nor for groups that
//! have not read yet: what it takes away shows at them as a reported gap.

use std::{sync::Arc, time::Duration};

use seaway_federation_proto::{copies::LogInfo, ids::LogName};

use crate::log::contract::{CommitLog, Entry, Retention, Unit};

/// Most trims in one unit.
const TRIMS_PER_UNIT: usize = 256;

/// What holds for one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Keep {
    pub(super) bytes_max: Option<u64>,
    pub(super) age_max: Option<Duration>,
}

/// Trims what is past its retention. Waits on the disk. Answers a sentence if that was not possible.
pub(super) fn trim(
    log: &Arc<dyn CommitLog>,
    keep: impl Fn(&LogName) -> Keep,
    cache_bytes_max: Option<u64>,
    wall_us: u64,
) -> Result<(), String> {
    let held: Vec<(LogName, LogInfo)> =
        log.logs().into_iter().filter_map(|n| Some((n.clone(), log.info(&n, true)?))).collect();
    let share =
        cache_bytes_max.and_then(|max| share(&held.iter().map(|(_, info)| info.bytes).collect::<Vec<_>>(), max));
    let mut entries = Vec::new();
    for (name, info) in held {
        let keep = keep(&name);
        let bytes_max = [keep.bytes_max, share].into_iter().flatten().min();
        let before = |age: Duration| wall_us.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        let retention = Retention { bytes_max, appended_before_us: keep.age_max.map(before), keep_from: None };
        let nothing_to_do = bytes_max.is_none_or(|max| info.bytes <= max) && retention.appended_before_us.is_none();
        if nothing_to_do {
            continue;
        }
        if let Some(to) = log.trim_target(&name, retention).map_err(|e| e.to_string())? {
            entries.push(Entry::Trim { log: name, to });
        }
        if entries.len() >= TRIMS_PER_UNIT {
            submit(log, std::mem::take(&mut entries))?;
        }
    }
    submit(log, entries)
}

fn submit(log: &Arc<dyn CommitLog>, entries: Vec<Entry>) -> Result<(), String> {
    if entries.is_empty() {
        return Ok(());
    }
    log.submit(Unit { entries }, Box::new(|_| {})).map_err(|rejected| rejected.reason.to_string())
}

/// The most bytes that each log may keep so that all together keep `max`: the small ones keep all they have. `None`: all fit.
fn share(sizes: &[u64], max: u64) -> Option<u64> {
    let total: u64 = sizes.iter().fold(0, |sum, size| sum.saturating_add(*size));
    if total <= max {
        return None;
    }
    let mut ascending = sizes.to_vec();
    ascending.sort_unstable();
    let mut left = max;
    let mut logs = u64::try_from(ascending.len()).unwrap_or(u64::MAX);
    for size in ascending {
        let even = left / logs.max(1);
        if size > even {
            return Some(even);
        }
        left -= size;
        logs -= 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::share;

    #[test]
    fn small_logs_keep_all_and_large_ones_share_the_rest() {
        assert_eq!(share(&[10, 20, 30], 60), None);
        assert_eq!(share(&[10, 100, 100], 110), Some(50));
        assert_eq!(share(&[100, 100], 100), Some(50));
    }

    proptest! {
        #[test]
        fn the_sum_stays_within_the_bound(sizes in proptest::collection::vec(0_u64..10_000, 0..50), max in 0_u64..100_000) {
            let each = share(&sizes, max).unwrap_or(u64::MAX);
            prop_assert!(sizes.iter().map(|s| (*s).min(each)).sum::<u64>() <= max);
        }
    }
}
