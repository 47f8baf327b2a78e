//! A token bucket over [`governor`], for rates of up to 64 bits.
//!
//! `governor` counts in 32 bits, and knows a rate as whole nanoseconds between two units. So a unit here is as many messages or bytes
//! as keep these a microsecond apart and the burst below 2^31 units; what does not fill a unit is owed to the next call.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota,
    clock::{Clock, DefaultClock},
};
use parking_lot::Mutex;
use seaway_federation_proto::session::pace::Rate;

/// Units that come in a second at most, and that a burst has at most.
const UNITS_PER_S_MAX: u64 = 1_000_000;
const BURST_UNITS_MAX: u64 = 1 << 31;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Bucket {
    unit: u64,
    burst: u64,
    burst_units: NonZeroU32,
    owed: Mutex<u64>,
    limiter: DefaultDirectRateLimiter,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Rate) -> Self {
        let (per_s, burst) = (rate.per_s.get(), rate.burst.get());
        let unit = per_s.div_ceil(UNITS_PER_S_MAX).max(burst.div_ceil(BURST_UNITS_MAX));
        let apart_ns = u128::from(unit) * 1_000_000_000 / u128::from(per_s);
        let apart = Duration::from_nanos(u64::try_from(apart_ns).unwrap_or(u64::MAX).max(1));
        let units = u32::try_from(burst.div_ceil(unit)).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        // None only for no time at all, which is not.
        let quota = Quota::with_period(apart).unwrap_or(Quota::per_second(NonZeroU32::MAX)).allow_burst(units);
        let limiter = DefaultDirectRateLimiter::direct(quota);
        Self { unit, burst, burst_units: units, owed: Mutex::new(0), limiter }
    }

    /// Takes `amount` (what is above the burst counts as the burst, so that every message can pass), or says after how long it
    /// can be taken.
    pub(super) fn take(&self, amount: usize) -> Result<(), Duration> {
        let amount = u64::try_from(amount).unwrap_or(u64::MAX).min(self.burst);
        let mut owed = self.owed.lock();
        let total = owed.saturating_add(amount);
        let units = u32::try_from(total / self.unit).unwrap_or(u32::MAX).min(self.burst_units.get());
        let rest = total.saturating_sub(u64::from(units).saturating_mul(self.unit));
        let Some(units) = NonZeroU32::new(units) else {
            *owed = rest;
            return Ok(());
        };
        match self.limiter.check_n(units) {
            // An amount above the burst cannot come here.
            Ok(Ok(())) | Err(_) => {
                *owed = rest;
                Ok(())
            }
            Ok(Err(until)) => {
                let wait = until.wait_time_from(DefaultClock::default().now());
                Err(wait.max(Duration::from_millis(1)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU64, time::Instant};

    use super::*;

    fn bucket(per_s: u64, burst: u64) -> Bucket {
        let number = |n| NonZeroU64::new(n).unwrap();
        Bucket::new(Rate { per_s: number(per_s), burst: number(burst) })
    }

    #[test]
    fn every_rate_of_64_bits_has_a_bucket() {
        for per_s in [1, 2, 999_999, 1_000_001, 1 << 32, u64::MAX / 3, u64::MAX] {
            for burst in [1, 10_000, 1 << 40, u64::MAX] {
                if burst / per_s > 100 * 365 * 86_400 {
                    continue; // refused where limits are set
                }
                let bucket = bucket(per_s, burst);
                assert_eq!(bucket.take(1), Ok(()), "{per_s} {burst}");
                assert!(bucket.unit <= per_s.div_ceil(1_000_000).max(burst.div_ceil(1 << 31)));
            }
        }
    }

    #[test]
    fn small_amounts_of_large_units_are_not_lost() {
        // Two bytes a unit, and hardly any time.
        let bucket = bucket(1_500_000, 3_000_000);
        assert_eq!(bucket.unit, 2);
        let begun = Instant::now();
        let passed = (0..10_000_000_u64).take_while(|_| bucket.take(1).is_ok()).count() as u64;
        let most = 3_000_002 + u64::try_from(begun.elapsed().as_micros()).unwrap() * 16 / 10;
        assert!((3_000_000..=most).contains(&passed), "{passed} of {most}");
    }
}
