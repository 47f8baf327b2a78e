//! What a link may carry on average: token buckets for one direction, shared by its lanes.
//!
//! A bucket fills at its rate up to its burst. Each lane has half of the burst for itself; of what comes in, the live lane gets
//! seven eighths and the backlog lane one, and what one of them has no use for goes to the other: so live traffic goes first, backlog
//! does not stand still behind it, and a lane that is alone has the whole rate.
//!
//! A batch is never split. It goes once its lane holds as much as it takes, or all that the lane can hold, and what it takes beyond that
//! is owed: so every batch can pass, and on average the rate holds for every size. What has to go at once (control messages) is
//! owed, too. Over any time `t` that makes at most `rate × t + burst`, and one batch's excess over half the burst.
//!
//! Counts in billionths, so that any rate of 64 bits and any time are exact. A library's bucket (`governor`, which the doors use) reads
//! a clock of its own, counts in 32 bits and in whole nanoseconds between two units, which at 600 MB/s is two thirds too much.

use std::{num::NonZeroU64, time::Duration};

use super::{Lane, lane_index};
use crate::limits::{BATCH_BYTES_MAX, BATCH_OVERHEAD_BYTES, MESSAGE_BYTES_CEILING};

/// Billionths of one.
const ONE: i128 = 1_000_000_000;
/// Of what comes in, the live lane's share and the whole.
const LIVE_SHARE: (i128, i128) = (7, 8);
/// A wait is never said to be shorter.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// Nobody is told to wait longer without looking again.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// For how long a link that was held back is called limited.
pub(super) const LIMITED_FOR: Duration = Duration::from_secs(5);

/// Least burst of what is sent on a link, bytes: a lane has half of it, and holds a batch of messages.
pub const SEND_BURST_BYTES_MIN: u64 = 2 * BATCH_BYTES_MAX as u64;

/// Least burst of what is received, bytes: each lane must hold a largest batch, and grants come in pieces.
pub const RECEIVE_BURST_BYTES_MIN: u64 = 2 * (MESSAGE_BYTES_CEILING + BATCH_OVERHEAD_BYTES) as u64 + GRANTS_BYTES_MAX;
/// Of what may be received, how much is granted at once.
const GRANTS_BYTES_MIN: u64 = 16 * 1024;
const GRANTS_BYTES_MAX: u64 = 1024 * 1024;

/// What may pass on average, and above that at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// A second.
    pub per_s: NonZeroU64,
    /// At once.
    pub burst: NonZeroU64,
}

/// Rates of one direction of a link; `None`: as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirectionRates {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Messages.
    pub messages: Option<Rate>,
}

/// Rates of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkRates {
    /// What this side sends.
    pub send: DirectionRates,
    /// What this side lets the peer send.
    pub receive: DirectionRates,
}

impl DirectionRates {
    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.messages.is_some()
    }

    /// In words: "1000000 bytes and 50 messages a second".
    pub fn words(&self) -> String {
        let of = |rate: Option<Rate>, unit| rate.map(|rate| format!("{} {unit}", rate.per_s));
        let parts: Vec<_> = [of(self.bytes, "bytes"), of(self.messages, "messages")].into_iter().flatten().collect();
        format!("{} a second", parts.join(" and "))
    }
}

/// How a rate of what is received is kept by granting credit: what may be under way on each lane is the burst, but for a fifth
/// of a second that the grants themselves come in. Of messages nothing is known before they came: then it is as little as can be, and
/// nothing is granted while messages are owed.
pub(super) fn receive_window(rates: DirectionRates) -> (Option<u64>, DirectionRates) {
    let Some(bytes) = rates.bytes else { return (rates.messages.map(|_| 0), rates) };
    let grants = (bytes.per_s.get() / 5).clamp(GRANTS_BYTES_MIN, GRANTS_BYTES_MAX);
    let window = if rates.messages.is_some() { 0 } else { bytes.burst.get().saturating_sub(grants) / 2 };
    let burst = NonZeroU64::new(grants).unwrap_or(NonZeroU64::MIN);
    (Some(window), DirectionRates { bytes: Some(Rate { burst, ..bytes }), ..rates })
}

#[derive(Debug, Clone)]
struct Bucket {
    per_s: i128,
    /// What each lane can hold, and holds; below zero it owes.
    cap: [i128; 2],
    level: [i128; 2],
    at: Duration,
}

impl Bucket {
    /// A full one.
    fn new(rate: Rate, now: Duration) -> Self {
        let burst = i128::from(rate.burst.get()) * ONE;
        let cap = [burst - burst / 2, burst / 2];
        Self { per_s: i128::from(rate.per_s.get()), cap, level: cap, at: now }
    }

    fn fill(&mut self, now: Duration) {
        let passed = i128::try_from(now.saturating_sub(self.at).as_nanos()).unwrap_or(i128::MAX);
        self.at = self.at.max(now);
        let gained = self.per_s.saturating_mul(passed);
        let [live, backlog] = &mut self.level;
        let [live_cap, backlog_cap] = self.cap;
        let for_live = gained / LIVE_SHARE.1 * LIVE_SHARE.0;
        *live = live.saturating_add(for_live);
        *backlog = backlog.saturating_add(gained.saturating_sub(for_live));
        let (live_over, backlog_over) = ((*live - live_cap).max(0), (*backlog - backlog_cap).max(0));
        *live = (*live).min(live_cap).saturating_add(backlog_over).min(live_cap);
        *backlog = (*backlog).min(backlog_cap).saturating_add(live_over).min(backlog_cap);
    }

    fn lane(&self, lane: Lane) -> (i128, i128) {
        let [(live, live_cap), (backlog, backlog_cap)] = [(self.level[0], self.cap[0]), (self.level[1], self.cap[1])];
        match lane {
            Lane::Live => (live, live_cap),
            Lane::Backlog => (backlog, backlog_cap),
        }
    }

    /// How long until so much may pass; nothing if it may now.
    fn wait(&self, lane: Lane, amount: u64) -> Option<Duration> {
        let (level, cap) = self.lane(lane);
        let lacks = (i128::from(amount) * ONE).min(cap) - level;
        if lacks <= 0 {
            return None;
        }
        // At the whole rate; who looks again and still lacks something waits again.
        let ns = u64::try_from(lacks / self.per_s).unwrap_or(u64::MAX);
        Some(Duration::from_nanos(ns).clamp(WAIT_MIN, WAIT_MAX))
    }

    fn take(&mut self, lane: Lane, amount: u64) {
        if let Some(level) = self.level.get_mut(lane_index(lane)) {
            *level = level.saturating_sub(i128::from(amount) * ONE);
        }
    }

    /// What a lane holds, whole ones.
    fn held(&self, lane: Lane) -> u64 {
        u64::try_from(self.lane(lane).0 / ONE).unwrap_or(0)
    }
}

/// One direction's buckets.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    rates: DirectionRates,
    bytes: Option<Bucket>,
    messages: Option<Bucket>,
    /// Whether a lane is held back, and when one was last.
    holding: [bool; 2],
    held_back: Option<Duration>,
    /// Since when, without a pause of [`LIMITED_FOR`].
    since: Duration,
    /// How often.
    times: u64,
}

impl Pace {
    /// Other rates from now on; one that stays keeps what it holds.
    pub(super) fn set(&mut self, rates: DirectionRates, now: Duration) {
        let fresh = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now));
        if self.rates.bytes != rates.bytes {
            self.bytes = fresh(rates.bytes);
        }
        if self.rates.messages != rates.messages {
            self.messages = fresh(rates.messages);
        }
        if !rates.is_limited() {
            self.held_back = None;
        }
        self.rates = rates;
    }

    pub(super) fn rates(&self) -> DirectionRates {
        self.rates
    }

    fn fill(&mut self, now: Duration) {
        self.bytes.iter_mut().chain(&mut self.messages).for_each(|bucket| bucket.fill(now));
    }

    /// How long until so much may pass on a lane; `None`: now.
    pub(super) fn wait(&mut self, now: Duration, lane: Lane, bytes: u64, messages: u64) -> Option<Duration> {
        if !self.rates.is_limited() {
            return None;
        }
        self.fill(now);
        let of = |bucket: &Option<Bucket>, amount| bucket.as_ref().and_then(|bucket| bucket.wait(lane, amount));
        let wait = of(&self.bytes, bytes).max(of(&self.messages, messages));
        if wait.is_some() {
            if self.limited(now).is_none() {
                self.since = now;
            }
            self.held_back = Some(now);
        }
        if let Some(holding) = self.holding.get_mut(lane_index(lane)) {
            let begins = wait.is_some() && !*holding;
            *holding = wait.is_some();
            self.times = self.times.saturating_add(u64::from(begins));
        }
        wait
    }

    /// What passes.
    pub(super) fn take(&mut self, lane: Lane, bytes: u64, messages: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(lane, bytes);
        }
        if let Some(bucket) = &mut self.messages {
            bucket.take(lane, messages);
        }
    }

    /// Whether a one-way message of so many bytes may pass, which then takes them.
    pub(super) fn admit(&mut self, now: Duration, bytes: u64) -> bool {
        if self.wait(now, Lane::Live, bytes, 1).is_some() {
            return false;
        }
        self.take(Lane::Live, bytes, 1);
        true
    }

    /// Takes up to so many bytes of a lane, and no fewer than half of what it can hold unless fewer are asked for; an error says
    /// how long until there are as many.
    pub(super) fn take_some(&mut self, now: Duration, lane: Lane, most: u64) -> Result<u64, Duration> {
        let half = self
            .bytes
            .as_ref()
            .map_or(u64::MAX, |bucket| u64::try_from(bucket.lane(lane).1 / ONE / 2).unwrap_or(u64::MAX).max(1));
        if let Some(wait) = self.wait(now, lane, most.min(half), 0) {
            return Err(wait);
        }
        let some = self.bytes.as_ref().map_or(most, |bucket| most.min(bucket.held(lane)));
        self.take(lane, some, 0);
        Ok(some)
    }

    /// What status says while something was held back lately.
    pub(super) fn limited(&self, now: Duration) -> Option<String> {
        let lately = self.held_back.is_some_and(|at| now.saturating_sub(at) <= LIMITED_FOR);
        lately.then(|| self.rates.words())
    }

    /// Since when that is so.
    pub(super) fn limited_since(&self) -> Duration {
        self.since
    }

    /// How often something was held back.
    pub(super) fn times(&self) -> u64 {
        self.times
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn rate(per_s: u64, burst: u64) -> Rate {
        Rate { per_s: NonZeroU64::new(per_s).unwrap(), burst: NonZeroU64::new(burst).unwrap() }
    }

    fn pace(per_s: u64, burst: u64) -> Pace {
        let mut pace = Pace::default();
        pace.set(DirectionRates { bytes: Some(rate(per_s, burst)), messages: None }, Duration::ZERO);
        pace
    }

    #[test]
    fn what_is_above_the_burst_waits_as_long_as_the_rate_says() {
        let mut pace = pace(100, 1000);
        assert_eq!(pace.wait(S, Lane::Live, 500, 1), None);
        pace.take(Lane::Live, 500, 1);
        assert_eq!(pace.wait(S, Lane::Live, 100, 1), Some(S));
        assert_eq!(pace.wait(2 * S, Lane::Live, 100, 1), None, "the other lane is full, and leaves it all");
        pace.take(Lane::Live, 100, 1);
        pace.take(Lane::Backlog, 100, 1);
        assert_eq!(pace.wait(3 * S, Lane::Live, 100, 1), Some(S / 8));
        assert_eq!(pace.times(), 2);
        assert_eq!(pace.limited(3 * S).as_deref(), Some("100 bytes a second"));
        assert_eq!(pace.limited(9 * S), None);
    }

    #[test]
    fn a_batch_above_the_burst_passes_when_the_bucket_is_full_and_is_paid_for_after() {
        let mut pace = pace(100, 1000);
        assert_eq!(pace.wait(S, Lane::Live, 5000, 1), None);
        pace.take(Lane::Live, 5000, 1);
        // It owes 4,500, and half the burst is its lane's.
        assert_eq!(pace.wait(2 * S, Lane::Live, 500, 1).map(|wait| wait.as_secs()), Some(49));
        assert_eq!(pace.wait(60 * S, Lane::Live, 500, 1), None);
    }

    #[test]
    fn backlog_gets_its_eighth_beside_live_and_all_of_it_alone() {
        let mut both = pace(8000, 2000);
        let mut alone = both.clone();
        let (mut live, mut backlog, mut only) = (0, 0, 0);
        for tick in 1..=10_000 {
            let now = Duration::from_millis(tick);
            for (lane, sum) in [(Lane::Live, &mut live), (Lane::Backlog, &mut backlog)] {
                while both.wait(now, lane, 100, 1).is_none() {
                    both.take(lane, 100, 1);
                    *sum += 100;
                }
            }
            while alone.wait(now, Lane::Backlog, 100, 1).is_none() {
                alone.take(Lane::Backlog, 100, 1);
                only += 100;
            }
        }
        assert!((70_000..=71_000).contains(&live), "{live}");
        assert!((10_000..=11_000).contains(&backlog), "{backlog}");
        assert!((80_000..=81_000).contains(&only), "{only}");
    }

    #[test]
    fn messages_and_bytes_both_count() {
        let mut pace = Pace::default();
        let rates = DirectionRates { bytes: Some(rate(1_000_000, 1_000_000)), messages: Some(rate(10, 10)) };
        pace.set(rates, Duration::ZERO);
        assert_eq!(rates.words(), "1000000 bytes and 10 messages a second");
        pace.take(Lane::Live, 1, 5);
        assert!(pace.wait(Duration::ZERO, Lane::Live, 1, 1).is_some());
        assert_eq!(pace.take_some(Duration::ZERO, Lane::Live, 600_000), Ok(499_999));
        assert_eq!(pace.take_some(Duration::ZERO, Lane::Live, 250_000), Err(S / 4));
        assert_eq!(pace.take_some(S / 2, Lane::Live, 100), Ok(100));
        pace.take(Lane::Live, 0, 6);
        assert!(pace.take_some(S / 2, Lane::Live, 100).is_err(), "it owes messages");
        pace.set(DirectionRates::default(), S);
        assert_eq!((pace.wait(S, Lane::Live, u64::MAX, 1), pace.take_some(S, Lane::Live, 7)), (None, Ok(7)));
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_the_burst_and_never_standing_still(
            per_s in 1u64..=u64::MAX, burst in 2u64..=u64::MAX,
            batches in prop::collection::vec((any::<bool>(), 0u64..=u64::MAX, 0u64..10_000), 1..60),
        ) {
            let mut pace = pace(per_s, burst);
            let (mut now, mut passed, mut excess) = (Duration::ZERO, 0u128, 0u128);
            for (live, size, after_ms) in batches {
                now += Duration::from_millis(after_ms);
                let lane = if live { Lane::Live } else { Lane::Backlog };
                let half = if live { burst - burst / 2 } else { burst / 2 };
                if pace.wait(now, lane, size, 1).is_none() {
                    pace.take(lane, size, 1);
                    passed += u128::from(size);
                    excess += u128::from(size.saturating_sub(half));
                }
                let most = u128::from(per_s) * now.as_nanos() / 1_000_000_000 + u128::from(burst) + 1;
                prop_assert!(passed <= most + excess, "{passed} of {most}");
            }
            // After whatever, waiting as told lets it pass.
            for _ in 0..400 {
                let Some(wait) = pace.wait(now, Lane::Backlog, 1, 1) else { return Ok(()) };
                now += wait * 2;
                now += Duration::from_secs(u64::from(u32::MAX));
            }
            let owed = excess / u128::from(per_s) > 1 << 40;
            prop_assert!(owed, "it stands still");
        }
    }
}
