//! Which batches of a log are old enough to go, where some claim to have been appended in the future.

use seaway_federation_proto::ids::Place;

use super::contract::Retention;

/// Goes along a log from its begin. What was appended by a clock that stood wrong is passed, and goes along if what comes after
/// it is old.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// The first of those passed of which it is not known yet.
    passed: Option<Place>,
}

impl Ages {
    /// Whether the walk goes on past the batch at `begin`; `large`: it goes in any case, for the log is too large.
    pub(crate) fn goes_on(&mut self, retention: &Retention, begin: Place, stored_at_us: u64, large: bool) -> bool {
        let goes = large || retention.appended_before_us.is_some_and(|before| stored_at_us < before);
        if goes {
            self.passed = None;
            return true;
        }
        let future = retention.not_after_us.is_some_and(|latest| stored_at_us > latest);
        if future && retention.appended_before_us.is_some() {
            self.passed.get_or_insert(begin);
            return true;
        }
        false
    }

    /// Whether it is not known yet of some whether they go.
    pub(crate) fn has_passed(&self) -> bool {
        self.passed.is_some()
    }

    /// Where the begin moves to, if the walk stopped there.
    pub(crate) fn target(&self, stopped: Place) -> Place {
        self.passed.unwrap_or(stopped)
    }
}

#[cfg(test)]
mod tests {
    use seaway_federation_proto::ids::Incarnation;

    use super::*;

    fn target(times: &[u64], before: u64, latest: Option<u64>) -> u64 {
        let place = |offset| Place { incarnation: Incarnation { counter: 1, random: 1 }, offset };
        let retention = Retention { appended_before_us: Some(before), not_after_us: latest, ..Retention::default() };
        let mut ages = Ages::default();
        let stopped = (0..).zip(times).find(|(n, time)| !ages.goes_on(&retention, place(*n), **time, false));
        ages.target(place(stopped.map_or(times.len() as u64, |(n, _)| n))).offset
    }

    #[test]
    fn what_a_wrong_clock_stored_goes_with_what_comes_after_it() {
        assert_eq!(target(&[1, 2, 3, 9], 3, Some(100)), 2);
        assert_eq!(target(&[1, 2, 900, 900, 2, 9], 3, Some(100)), 5, "as old as what was stored after it");
        assert_eq!(target(&[1, 2, 900, 900, 9, 10], 3, Some(100)), 2, "no older than what was stored after it");
        assert_eq!(target(&[1, 2, 900, 900], 3, Some(100)), 2, "nothing tells how old it is");
        assert_eq!(target(&[900, 1, 1], 3, None), 0, "who names no bound believes every time");
    }
}
