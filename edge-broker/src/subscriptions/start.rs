//! Where a subscription begins in each log.

use std::collections::BTreeMap;

use seaway_federation_proto::{
    copies::LogInfo,
    ids::{LogName, Place},
    replication::WantStart,
};
use seaway_relay::log::contract::ReadError;

use super::cursor::Cursor;
use crate::engine::Engine;

/// Where a subscriber asks to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartAt {
    /// The oldest place that this site's copy holds.
    Earliest,
    /// The end.
    Latest,
    /// The first batch at or after an origin time, microseconds since 1970.
    Time(u64),
    /// These places; logs that are not named, from their begin.
    Positions(BTreeMap<LogName, Place>),
    /// So many messages before the end of each log.
    Last(u64),
}

impl StartAt {
    /// What this site asks of others for it.
    pub(crate) fn for_want(&self) -> WantStart {
        match self {
            StartAt::Earliest | StartAt::Positions(_) => WantStart::Earliest,
            StartAt::Latest | StartAt::Last(_) => WantStart::Latest,
            StartAt::Time(time_us) => WantStart::Time(*time_us),
        }
    }

    /// The cursor for a log that was there when the subscription began.
    pub(crate) async fn resolve<E: Engine>(
        &self,
        engine: &E,
        log: &LogName,
        info: &LogInfo,
    ) -> Result<Cursor, ReadError> {
        let place = match self {
            StartAt::Earliest => return Ok(from_begin(info)),
            StartAt::Latest => info.end,
            StartAt::Time(time_us) => engine.find_time(log, *time_us).await?.unwrap_or(info.end),
            StartAt::Positions(positions) => match positions.get(log) {
                Some(place) => *place,
                None => return Ok(from_begin(info)),
            },
            StartAt::Last(count) => before_end(info, *count),
        };
        Ok(Cursor::from_here(place, info))
    }
}

/// The cursor for a log read from the oldest place held, forks included.
pub(crate) fn from_begin(info: &LogInfo) -> Cursor {
    Cursor::new(info.begin, BTreeMap::new())
}

/// So many messages before the main line's end, or the begin.
fn before_end(info: &LogInfo, count: u64) -> Place {
    let wanted = info.end.offset.saturating_sub(count).max(info.begin.offset);
    let mut place = info.end;
    for _ in 0..info.incarnations.len() {
        let Some(held) = info.incarnations.iter().find(|i| i.incarnation == place.incarnation) else { break };
        if held.begin <= wanted {
            return Place { offset: wanted, ..place };
        }
        match held.previous.filter(|p| info.incarnations.iter().any(|i| i.incarnation == p.incarnation)) {
            Some(previous) => place = previous,
            None => return Place { offset: held.begin, ..place },
        }
    }
    info.begin
}
