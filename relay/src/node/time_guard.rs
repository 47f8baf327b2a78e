//! The wall clock as the commit log and retention believe it.
//!
//! A clock that leaps to 2100 for a moment must not have everything trimmed by age, nor may what is stored in that moment stay
//! for decades; and one that falls back to 1970 must not make all that is stored then look old. So time is expected to go on as
//! the monotonic clock says, from the newest time that is durable in the commit log on. A wall clock within a
//! step of that (configured) is believed; one farther away is not: time goes on as expected, it is an alarm (`clock-ahead`,
//! `clock-behind`), and only after the clock has stood there for [`SETTLED_AFTER`] is it believed. A node that was stopped for longer
//! than the step trims nothing by age for that long after its start.

use std::time::Duration;

use parking_lot::Mutex;

/// How long a clock that leapt must go on from there before it is believed.
pub const SETTLED_AFTER: Duration = Duration::from_secs(3600);

/// See the module's documentation.
#[derive(Debug)]
pub struct TimeGuard {
    step_us: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last time that was answered, and when.
    last: Option<(u64, Duration)>,
    /// Since when the wall clock stands elsewhere, and where it stood first.
    astray: Option<(Duration, u64)>,
}

/// How the wall clock stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Where it is expected, or nothing is known to expect.
    Fits,
    /// So much ahead, and not believed.
    Ahead(Duration),
    /// So much behind, and not believed.
    Behind(Duration),
}

impl TimeGuard {
    /// A guard that knows of no time yet: the wall clock is believed until [`TimeGuard::expect`].
    pub fn new(step: Duration) -> Self {
        Self { step_us: micros(step), state: Mutex::default() }
    }

    /// Time stood there at `now`, as far as is durable; 0: nothing is known.
    pub fn expect(&self, time_us: u64, now: Duration) {
        let mut state = self.state.lock();
        state.astray = None;
        state.last = (time_us > 0).then_some((time_us, now));
    }

    /// What time it is, given what both clocks say.
    pub fn time_us(&self, wall_us: u64, now: Duration) -> u64 {
        let mut state = self.state.lock();
        let Some((last_us, at)) = state.last else { return wall_us };
        let passed = now.saturating_sub(at);
        let expected = last_us.saturating_add(micros(passed));
        if wall_us.abs_diff(expected) <= self.step_us {
            state.astray = None;
            state.last = Some((wall_us, now));
            return wall_us;
        }
        let (since, first_us) = match state.astray {
            // It goes on from where it leapt to.
            Some((since, first))
                if {
                    let there = first.saturating_add(micros(now.saturating_sub(since)));
                    wall_us.abs_diff(there) <= self.step_us
                } =>
            {
                (since, first)
            }
            _ => (now, wall_us),
        };
        state.astray = Some((since, first_us));
        if now.saturating_sub(since) >= SETTLED_AFTER {
            state.astray = None;
            state.last = Some((wall_us, now));
            return wall_us;
        }
        state.last = Some((expected, now));
        expected
    }

    /// How the wall clock stands beside what is believed.
    pub fn standing(&self, wall_us: u64, now: Duration) -> Standing {
        let time_us = self.time_us(wall_us, now);
        let by = Duration::from_micros(wall_us.abs_diff(time_us));
        match wall_us.cmp(&time_us) {
            std::cmp::Ordering::Equal => Standing::Fits,
            std::cmp::Ordering::Greater => Standing::Ahead(by),
            std::cmp::Ordering::Less => Standing::Behind(by),
        }
    }

    /// A time that is later than this was told by a clock that stood wrong.
    pub fn latest_us(&self, time_us: u64) -> u64 {
        time_us.saturating_add(self.step_us)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const T2026: u64 = 1_780_000_000_000_000;
    const T2100: u64 = 4_102_444_800_000_000;

    #[test]
    fn a_leap_is_believed_only_after_it_lasted() {
        let guard = TimeGuard::new(DAY);
        let second = Duration::from_secs(1);
        assert_eq!(guard.time_us(T2026, second), T2026, "nothing is known: it is believed");
        guard.expect(T2026, second);
        assert_eq!(guard.time_us(T2100, second * 2), T2026 + 1_000_000);
        assert!(matches!(guard.standing(T2100, second * 2), Standing::Ahead(by) if by > DAY * 20_000));
        assert_eq!(guard.time_us(0, second * 3), T2026 + 2_000_000, "1970 is believed no more");
        assert!(matches!(guard.standing(0, second * 3), Standing::Behind(_)));
        assert_eq!(guard.time_us(T2026 + 7, second * 4), T2026 + 7);
        assert_eq!(guard.standing(T2026 + 7, second * 4), Standing::Fits);
        let leapt = Duration::from_secs(100);
        let mut believed = None;
        for n in 0..4000_u32 {
            let now = leapt + second * n;
            let wall = T2100 + u64::from(n) * 1_000_000;
            if guard.time_us(wall, now) == wall {
                believed.get_or_insert(second * n);
            }
        }
        assert_eq!(believed, Some(SETTLED_AFTER), "nor is it doubted for ever");
    }

    proptest! {
        #[test]
        fn time_never_leaps_by_more_than_a_step_within_an_hour(walls in proptest::collection::vec(any::<u64>(), 1..60)) {
            let guard = TimeGuard::new(DAY);
            guard.expect(T2026, Duration::ZERO);
            let mut before = T2026;
            for (n, wall) in (1..).zip(walls) {
                let time = guard.time_us(wall, Duration::from_secs(n * 30));
                prop_assert!(time.abs_diff(before) <= micros(DAY) + 30_000_000);
                before = time;
            }
        }
    }
}
