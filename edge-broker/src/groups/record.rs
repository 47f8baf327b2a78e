//! Groups and positions as they are stored. Keys and field numbers are permanent: they are on disk.
//!
//! `group/NAME` holds a [`GroupRecord`], `position/NAME/TOPIC/ORIGIN/QUEUE` a [`PositionRecord`].

use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::{
    ids::{Incarnation, InvalidName, LogName, Place},
    replication::WantStart,
};
use seaway_relay::log::contract::Table;

use super::position::LogPosition;
use crate::{grpc::convert::log_of, subscriptions::filter::Filter};

/// In front of groups' keys.
pub(crate) const GROUP_PREFIX: &str = "group/";
const POSITION_PREFIX: &str = "position/";

/// A change of the groups' table.
type Change = (Table, Bytes, Option<Bytes>);

/// What a group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    /// Which messages it means.
    pub(crate) filter: Filter,
    /// Where its want began.
    pub(crate) start: WantStart,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GroupRecord {
    #[prost(string, tag = "1")]
    pattern: String,
    #[prost(string, repeated, tag = "2")]
    origins: Vec<String>,
    /// 0 earliest, 1 latest, 2 time.
    #[prost(uint32, tag = "3")]
    start: u32,
    #[prost(uint64, tag = "4")]
    time_us: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PlaceRecord {
    #[prost(uint64, tag = "1")]
    counter: u64,
    #[prost(fixed64, tag = "2")]
    random: u64,
    #[prost(uint64, tag = "3")]
    offset: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRecord {
    #[prost(message, optional, tag = "1")]
    from: Option<PlaceRecord>,
    #[prost(uint64, tag = "2")]
    to: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PositionRecord {
    #[prost(message, optional, tag = "1")]
    below: Option<PlaceRecord>,
    #[prost(message, repeated, tag = "2")]
    sides: Vec<PlaceRecord>,
    #[prost(message, repeated, tag = "3")]
    above: Vec<RangeRecord>,
}

fn place_record(place: Place) -> PlaceRecord {
    PlaceRecord { counter: place.incarnation.counter, random: place.incarnation.random, offset: place.offset }
}

fn place_of(record: &PlaceRecord) -> Place {
    let incarnation = Incarnation { counter: record.counter, random: record.random };
    Place { incarnation, offset: record.offset }
}

/// Key of a group.
pub(crate) fn group_key(name: &str) -> Bytes {
    format!("{GROUP_PREFIX}{name}").into()
}

/// What the keys of a group's positions begin with.
pub(crate) fn positions_prefix(name: &str) -> String {
    format!("{POSITION_PREFIX}{name}/")
}

/// The change that stores a group.
pub(crate) fn encode_group(name: &str, definition: &Definition) -> Change {
    let (start, time_us) = match definition.start {
        WantStart::Earliest => (0, 0),
        WantStart::Latest => (1, 0),
        WantStart::Time(time_us) => (2, time_us),
    };
    let origins = definition.filter.origins.iter().map(ToString::to_string).collect();
    let record = GroupRecord { pattern: definition.filter.pattern.to_string(), origins, start, time_us };
    (Table::Groups, group_key(name), Some(record.encode_to_vec().into()))
}

/// A stored group: its name and what it is.
pub(crate) fn decode_group(key: &[u8], value: &[u8]) -> Result<(String, Definition), String> {
    let text = String::from_utf8_lossy(key).into_owned();
    let fail =
        |why: String| format!("the stored group {text:?} cannot be read ({why}); delete it or upgrade this node");
    let name = text.strip_prefix(GROUP_PREFIX).ok_or_else(|| fail("not a group's key".into()))?;
    let record = GroupRecord::decode(value).map_err(|error| fail(error.to_string()))?;
    let invalid = |error: InvalidName| fail(error.to_string());
    let origins: Result<Vec<_>, InvalidName> = record.origins.iter().map(|o| o.parse()).collect();
    let filter = Filter { pattern: record.pattern.parse().map_err(invalid)?, origins: origins.map_err(invalid)? };
    let start = match record.start {
        0 => WantStart::Earliest,
        1 => WantStart::Latest,
        2 => WantStart::Time(record.time_us),
        other => return Err(fail(format!("start {other} is unknown"))),
    };
    Ok((name.to_owned(), Definition { filter, start }))
}

/// The change that stores a position.
pub(crate) fn encode_position(group: &str, log: &LogName, position: &LogPosition) -> Change {
    let side = |(incarnation, offset): (&Incarnation, &u64)| {
        place_record(Place { incarnation: *incarnation, offset: *offset })
    };
    let range = |(incarnation, offset, to)| RangeRecord { from: Some(place_record(Place { incarnation, offset })), to };
    let record = PositionRecord {
        below: Some(place_record(position.below())),
        sides: position.sides().iter().map(side).collect(),
        above: position.ranges().map(range).collect(),
    };
    let key = format!("{}{}/{}/{}", positions_prefix(group), log.topic, log.origin, log.queue);
    (Table::Groups, key.into(), Some(record.encode_to_vec().into()))
}

/// A stored position and its log.
pub(crate) fn decode_position(key: &[u8], value: &[u8]) -> Result<(LogName, LogPosition), String> {
    let text = String::from_utf8_lossy(key).into_owned();
    let fail = |why: &str| {
        format!("the stored position {text:?} cannot be read ({why}); delete its group or upgrade this node")
    };
    let mut parts = text.rsplitn(4, '/');
    let (queue, origin, topic) = (parts.next(), parts.next(), parts.next());
    let (Some(queue), Some(origin), Some(topic)) = (queue, origin, topic) else { return Err(fail("its key is cut")) };
    let queue = queue.parse().map_err(|_| fail("its queue is no number"))?;
    let log = log_of(topic, origin, queue).map_err(|error| fail(&error.to_string()))?;
    let record = PositionRecord::decode(value).map_err(|error| fail(&error.to_string()))?;
    let below = record.below.as_ref().map(place_of).ok_or_else(|| fail("it has no place"))?;
    let sides = record.sides.iter().map(place_of).map(|p| (p.incarnation, p.offset)).collect();
    let mut position = LogPosition::new(below, sides);
    for range in &record.above {
        position.confirm(range.from.as_ref().map(place_of).ok_or_else(|| fail("a range has no begin"))?, range.to);
    }
    Ok((log, position))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn place() -> impl Strategy<Value = Place> {
        (1_u64..4, any::<u64>(), 0_u64..1000)
            .prop_map(|(counter, random, offset)| Place { incarnation: Incarnation { counter, random }, offset })
    }

    proptest! {
        #[test]
        fn positions_come_back_as_they_were(
            below in place(),
            sides in proptest::collection::vec(place(), 0..4),
            ranges in proptest::collection::vec((0_u64..1000, 1_u64..50), 0..20),
        ) {
            let sides = sides.into_iter().map(|p| (p.incarnation, p.offset)).collect::<BTreeMap<_, _>>();
            let mut position = LogPosition::new(below, sides);
            for (from, len) in ranges {
                position.confirm(Place { offset: from, ..below }, from + len);
            }
            let log = log_of("orders", "east", 3).unwrap();
            let (_, key, value) = encode_position("g.1", &log, &position);
            prop_assert_eq!(decode_position(&key, &value.unwrap()).unwrap(), (log, position));
        }

        #[test]
        fn hostile_bytes_are_refused_or_read_but_never_panic(key in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
            let _ = decode_position(&key, &value);
            let _ = decode_group(&key, &value);
        }
    }

    #[test]
    fn groups_come_back_as_they_were() {
        let filter = Filter { pattern: "a/#".parse().unwrap(), origins: vec!["east".parse().unwrap()] };
        for start in [WantStart::Earliest, WantStart::Latest, WantStart::Time(5)] {
            let definition = Definition { filter: filter.clone(), start };
            let (_, key, value) = encode_group("g", &definition);
            assert_eq!(decode_group(&key, &value.unwrap()).unwrap(), ("g".to_owned(), definition));
        }
    }
}
