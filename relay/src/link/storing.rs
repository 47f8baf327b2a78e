//! Whether what comes over a link gets stored: told to the peer and to status, so that both ends name the disk that stands still.

use std::time::Duration;

use seaway_federation_proto::session::vitals::Trouble;

/// A disk that has made nothing durable for so long, though it was given something, stands still.
const SYNC_MAX: Duration = Duration::from_secs(1);

/// What became of batches handed to the commit log.
#[derive(Debug, Default)]
pub(super) struct Storing {
    /// Handed over, and not yet durable.
    under_way: u64,
    /// When the oldest of them was handed over, or one before it became durable.
    waits_since: Duration,
    /// Given back for lack of room: since when, and why.
    refused: Option<(Duration, &'static str)>,
    stopped_since: Option<Duration>,
}

impl Storing {
    /// A batch was taken.
    pub(super) fn submitted(&mut self, now: Duration) {
        if self.under_way == 0 {
            self.waits_since = now;
        }
        self.under_way = self.under_way.saturating_add(1);
        self.refused = None;
    }

    /// One is durable, or never will be.
    pub(super) fn stored(&mut self, now: Duration) {
        self.under_way = self.under_way.saturating_sub(1);
        self.waits_since = now;
    }

    /// One was given back.
    pub(super) fn put_back(&mut self, now: Duration, why: &'static str) {
        match &mut self.refused {
            Some((_, known)) => *known = why,
            None => self.refused = Some((now, why)),
        }
    }

    /// What was given back is perhaps dropped: the next one tells.
    pub(super) fn looked_again(&mut self) {
        self.refused = None;
    }

    /// Why nothing is stored, if that has lasted longer than anything may take.
    pub(super) fn trouble(&mut self, now: Duration, patience: Duration, is_stopped: bool) -> Option<Trouble> {
        if is_stopped {
            let since = *self.stopped_since.get_or_insert(now.saturating_sub(patience.saturating_mul(2)));
            return Some(Trouble::storing(since, "its commit log stopped".to_owned()));
        }
        let late = |since: Duration, most: Duration| now.saturating_sub(since) > most;
        if let Some((since, why)) = self.refused.filter(|(since, _)| late(*since, patience)) {
            return Some(Trouble::storing(since, why.to_owned()));
        }
        let stuck = self.under_way > 0 && late(self.waits_since, patience.max(SYNC_MAX));
        stuck.then(|| Trouble::storing(self.waits_since, "its disk makes nothing durable".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_disk_that_stands_still_is_told_from_a_busy_one() {
        let mut storing = Storing::default();
        storing.submitted(1000 * MS);
        storing.submitted(1100 * MS);
        assert_eq!(storing.trouble(2000 * MS, 400 * MS, false), None);
        storing.stored(1900 * MS);
        assert_eq!(storing.trouble(2900 * MS, 400 * MS, false), None);
        let trouble = storing.trouble(2901 * MS, 400 * MS, false).unwrap();
        assert_eq!((trouble.since, trouble.what.as_str()), (1900 * MS, "its disk makes nothing durable"));
        storing.stored(3000 * MS);
        assert_eq!(storing.trouble(9000 * MS, 400 * MS, false), None, "nothing is under way");
    }

    #[test]
    fn what_is_given_back_counts_from_the_first_time_until_something_is_taken() {
        let mut storing = Storing::default();
        storing.put_back(1000 * MS, "full");
        storing.put_back(1300 * MS, "full");
        assert_eq!(storing.trouble(1400 * MS, 400 * MS, false), None);
        assert_eq!(storing.trouble(1401 * MS, 400 * MS, false).unwrap().since, 1000 * MS);
        storing.submitted(1500 * MS);
        assert_eq!(storing.trouble(1600 * MS, 400 * MS, false), None);
    }
}
