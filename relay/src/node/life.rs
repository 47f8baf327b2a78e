//! Whether the node's own threads turn and its storage gets on: what `/livez` and the service manager's watchdog ask.
//!
//! A node that stopped taking messages for a reason that it states (disk full, commit log poisoned, draining) is alive: a
//! restart would not help it. One whose hub, origin or upkeep has not turned for [`STUCK_AFTER`], or whose commit log holds
//! units and has written nothing for so long, does nothing any more, and says nothing either.

use std::time::Duration;

use crate::log::contract::LogStats;

/// Longest time without a turn, or without progress of what waits for the disk. Threads that wait turn once a second at least.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Follows the commit log's progress, a look at a time.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Groups, syncs and bytes written, as last seen.
    seen: (u64, u64, u64),
    /// Since when something waits and nothing moves.
    waits_since: Option<Duration>,
}

impl Progress {
    /// A look at the commit log's figures.
    pub(super) fn look(&mut self, now: Duration, stats: &LogStats) {
        let seen = (stats.groups, stats.syncs, stats.written_bytes);
        let waits = stats.queued_bytes > 0 && stats.poisoned.is_none() && !stats.waits_for_room;
        self.waits_since = match self.waits_since {
            Some(since) if waits && seen == self.seen => Some(since),
            _ if waits => Some(now),
            _ => None,
        };
        self.seen = seen;
    }

    /// How long something has waited for the disk without any progress.
    pub(super) fn stuck(&self, now: Duration) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// What is stuck, in a sentence: threads with the time since their last sign of life, and the storage.
pub(super) fn verdict(threads: &[(String, Duration)], storage: Duration) -> Result<(), String> {
    if let Some((name, silent)) = threads.iter().find(|(_, silent)| *silent > STUCK_AFTER) {
        return Err(format!("thread {name} has not turned for {} s", silent.as_secs()));
    }
    if storage > STUCK_AFTER {
        return Err(format!(
            "the commit log has written nothing for {} s, though units wait for it",
            storage.as_secs()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(queued_bytes: u64, groups: u64, poisoned: bool) -> LogStats {
        LogStats { queued_bytes, groups, poisoned: poisoned.then(|| "on purpose".into()), ..LogStats::default() }
    }

    #[test]
    fn storage_is_stuck_only_while_something_waits_and_nothing_moves() {
        let s = Duration::from_secs;
        let mut progress = Progress::default();
        progress.look(s(0), &stats(0, 0, false));
        assert_eq!(progress.stuck(s(100)), s(0), "an idle log is well");
        progress.look(s(100), &stats(10, 1, false));
        progress.look(s(110), &stats(10, 1, false));
        assert_eq!(progress.stuck(s(140)), s(40));
        assert!(verdict(&[], progress.stuck(s(140))).is_err());
        progress.look(s(141), &stats(10, 2, false));
        assert_eq!(progress.stuck(s(142)), s(1), "a group was written");
        progress.look(s(200), &stats(10, 2, true));
        assert_eq!(progress.stuck(s(300)), s(0), "poisoned is not dead");
    }

    #[test]
    fn a_silent_thread_is_named() {
        let threads =
            [("seaway-hub".to_owned(), Duration::from_secs(1)), ("seaway-origin".to_owned(), STUCK_AFTER * 2)];
        assert_eq!(verdict(&threads, Duration::ZERO), Err("thread seaway-origin has not turned for 60 s".to_owned()));
        assert_eq!(verdict(&threads[..1], Duration::ZERO), Ok(()));
    }
}
