//! How many records refused admin calls leave: anybody who is recognised can make such calls, and the audit trail has an end.
//!
//! Of each caller [`RECORDED_MAX`] refusals are recorded one by one in each [`WINDOW`]; those beyond are counted, and one record sums them up
//! when the window ends or the door closes. Callers past [`CALLERS_MAX`] share one window.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Refusals of one caller that are recorded one by one in one window.
pub(crate) const RECORDED_MAX: u64 = 5;
/// Length of a window: with the sum at its end, a caller leaves at most 144 records a day.
pub(crate) const WINDOW: Duration = Duration::from_secs(3600);
/// Callers with a window of their own at one time.
const CALLERS_MAX: usize = 64;
/// Name of the window that the others share; no caller's own.
const OTHERS: &str = "others";

/// What becomes of one more refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Becomes {
    /// A record of its own.
    Record,
    /// It is the first that is only counted; the sum is due at this time.
    CountFirst(Instant),
    /// It is counted.
    Count,
}

/// The refusals of one caller that were only counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Its name.
    pub(crate) who: String,
    /// How many.
    pub(crate) calls: u64,
}

#[derive(Debug)]
struct Window {
    ends: Instant,
    calls: u64,
}

impl Window {
    fn uncounted(&self) -> u64 {
        self.calls.saturating_sub(RECORDED_MAX)
    }
}

/// The windows of all callers.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<String, Window>>);

impl Refusals {
    /// One more refusal of this caller.
    pub(crate) fn one_more(&self, who: &str, now: Instant) -> Becomes {
        let mut windows = self.0.lock();
        // One with a sum to be told stays until that was taken.
        windows.retain(|_, window| window.ends > now || window.uncounted() > 0);
        let who = if windows.contains_key(who) || windows.len() < CALLERS_MAX { who } else { OTHERS };
        let window = windows.entry(who.to_owned()).or_insert(Window { ends: now + WINDOW, calls: 0 });
        window.calls = window.calls.saturating_add(1);
        match window.uncounted() {
            0 => Becomes::Record,
            1 => Becomes::CountFirst(window.ends),
            _ => Becomes::Count,
        }
    }

    /// Takes the sums that are due; all of them where no time is given.
    pub(crate) fn take_sums(&self, now: Option<Instant>) -> Vec<Sum> {
        let mut windows = self.0.lock();
        let is_due = |window: &Window| window.uncounted() > 0 && now.is_none_or(|now| window.ends <= now);
        let sums = windows.iter().filter(|(_, window)| is_due(window));
        let sums = sums.map(|(who, window)| Sum { who: who.clone(), calls: window.uncounted() }).collect();
        windows.retain(|_, window| !is_due(window));
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_first_they_are_summed_up_and_the_next_window_begins_anew() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let made: Vec<Becomes> = (0..RECORDED_MAX + 3).map(|_| refusals.one_more("a", start)).collect();
        let (recorded, counted) = made.split_at(usize::try_from(RECORDED_MAX).unwrap());
        assert!(recorded.iter().all(|one| *one == Becomes::Record));
        assert_eq!(counted, [Becomes::CountFirst(start + WINDOW), Becomes::Count, Becomes::Count]);
        assert_eq!(refusals.one_more("b", start), Becomes::Record, "another caller has a window of its own");
        assert_eq!(refusals.take_sums(Some(start)), []);
        assert_eq!(refusals.take_sums(Some(start + WINDOW)), [Sum { who: "a".into(), calls: 3 }]);
        assert_eq!(refusals.take_sums(None), []);
        assert_eq!(refusals.one_more("a", start + WINDOW), Becomes::Record);
    }

    #[test]
    fn many_callers_take_bounded_room_and_none_is_lost() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let callers = 1_000;
        let mut recorded = 0;
        for number in 0..callers {
            recorded += u64::from(refusals.one_more(&format!("caller {number}"), start) == Becomes::Record);
        }
        assert!(refusals.0.lock().len() <= CALLERS_MAX + 1);
        let summed: u64 = refusals.take_sums(None).iter().map(|sum| sum.calls).sum();
        assert_eq!(recorded + summed, callers);
    }
}
