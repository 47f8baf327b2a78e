//! How the disk is shared out and given back: keys of `[log]`, and what contradicts itself in them.

use std::time::Duration;

use seaway_relay::node::SpaceConfig;

use super::{
    ConfigError, Loaded,
    settings::Kind,
    values::{Given, Size},
};

/// Least share of the disk, bytes: some segments of the smallest size.
const SHARE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Least rate of moving, bytes a second: with less a disk never comes back.
const MOVING_BYTES_MIN: u64 = 64 * 1024;
/// Bounds of the dead share: below, all is moved again and again, above, hardly anything comes back.
const DEAD_SHARES: std::ops::RangeInclusive<f64> = 0.05..=0.95;
/// Shortest step of the clock that can be called one.
const CLOCK_STEP_MIN: Duration = Duration::from_secs(60);

impl Loaded {
    pub(super) fn space(&self) -> Result<SpaceConfig, ConfigError> {
        let log = &self.settings.log;
        for (key, size) in [("own_size", &log.own_size), ("copies_size", &log.copies_size)] {
            let Some(size) = size else { continue };
            if self.settings.node.kind == Kind::Relay {
                return Err(
                    self.mistake(&["log", key], "is for edges: what a relay keeps is set by cache.size; remove it")
                );
            }
            self.at_least(&["log", key], size, SHARE_BYTES_MIN)?;
        }
        self.at_least(&["log", "moving_rate"], &log.moving_rate, MOVING_BYTES_MIN)?;
        if !DEAD_SHARES.contains(&log.dead_share_max) {
            let text = format!("is {}, but 0.05 to 0.95 is expected", log.dead_share_max);
            return Err(self.mistake(&["log", "dead_share_max"], &text));
        }
        if log.clock_step_max.0 < CLOCK_STEP_MIN {
            return Err(self.mistake(&["log", "clock_step_max"], "is too short; at least \"1 min\" is expected"));
        }
        let bytes = |size: &Option<Given<Size>>| size.as_ref().map(|size| size.0.0);
        Ok(SpaceConfig {
            own_bytes_max: bytes(&log.own_size),
            copies_bytes_max: bytes(&log.copies_size),
            dead_share_max: log.dead_share_max,
            moving_rate: log.moving_rate.0.0,
            clock_step_max: log.clock_step_max.0,
        })
    }

    /// What is allowed and hardly meant: sentences for people.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let log = &self.settings.log;
        for (key, size) in [("own_size", &log.own_size), ("copies_size", &log.copies_size)] {
            if let Some(size) = size.as_ref().map(|size| size.0.0)
                && size < log.segment_size.0.0.saturating_mul(2)
            {
                let text =
                    "is less than two segments: space comes back by whole segments; make log.segment_size smaller";
                warnings.push(self.mistake(&["log", key], text).to_string());
            }
        }
        warnings
    }
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
