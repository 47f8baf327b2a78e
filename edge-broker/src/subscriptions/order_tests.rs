use std::collections::BTreeMap as Map;

use super::*;
use crate::testing::TestEngine;

use seaway_federation_proto::{
    control::{Ends, Settings, entry, stored_ends},
    envelope::{Batch, Chain, Codec, Placement},
    ids::{Incarnation, Queue},
    message::{BodyBuilder, Message},
    wire::store::{QueueChange, TopicSettings, control_entry::Kind},
};
use seaway_relay::log::contract::{Entry, Role};

use crate::{
    limits::READ_BYTES,
    subscriptions::{
        cursor::Cursor,
        feed::{Feed, Filled, Item},
        filter::Filter,
    },
};

#[test]
fn what_never_comes_is_not_waited_for_for_ever() {
    let engine = TestEngine::new();
    let log = TestEngine::log_name("orders", "east");
    let mut held = Held::default();
    held.hold(&log);
    let place =
        |offset| Place { incarnation: seaway_federation_proto::ids::Incarnation { counter: 1, random: 1 }, offset };
    // No control queue here: a batch that names an entry waits, but not when it is about what is here now.
    assert!(!held.gate(&engine, &log, false, |_, _| None).knows(place(0)));
    assert!(held.gate(&engine, &log, true, |_, _| None).knows(place(0)));
    held.0.insert(log.clone(), Instant::now().checked_sub(WAIT_MAX).unwrap());
    assert!(held.gate(&engine, &log, false, |_, _| None).knows(place(0)));
    assert_eq!(held.behind(&TestEngine::log_name("orders", "west")), []);
    held.went_on(&log);
    assert!(held.is_empty());
}

#[test]
fn a_gate_clips_what_may_be_read() {
    let place =
        |offset| Place { incarnation: seaway_federation_proto::ids::Incarnation { counter: 1, random: 1 }, offset };
    let gate = Gate { limit: Some(place(5)), control: None, trusting: true };
    assert_eq!((gate.clip(place(0), 9), gate.clip(place(4), 5), gate.clip(place(5), 9)), (Some(5), Some(5), None));
    assert_eq!(Gate::open().clip(place(7), 9), Some(9));
}

const INCARNATION: Incarnation = Incarnation { counter: 1, random: 7 };

fn at(offset: u64) -> Place {
    Place { incarnation: INCARNATION, offset }
}

/// A log's first batch.
fn first_batch(queue: u16, after: Option<Place>, payloads: Vec<bytes::Bytes>) -> Batch {
    let log = LogName { queue: Queue(queue), ..TestEngine::log_name("orders", "west") };
    let mut body = BodyBuilder::default();
    for payload in payloads {
        let path = "orders".parse().unwrap();
        body.push(&Message { path, key: None, headers: Vec::new(), time_us: 1, producer: None, payload });
    }
    let placement = Placement {
        log: &log,
        begin: at(0),
        first_of_incarnation: true,
        previous: None,
        origin_time_us: 1,
        chain_before: Chain::default(),
    };
    Batch::seal_after(&placement, after, body.finish(Codec::None).unwrap()).unwrap()
}

fn settings_entry(queues: u16, ends: Option<&Ends>) -> bytes::Bytes {
    let settings = Settings { queues, message_bytes_max: 1000, codec: Codec::None, replicate: None };
    let change = ends.map(|ends| QueueChange { ends: stored_ends(ends), entry: None });
    entry(Kind::Settings(TopicSettings { change, ..settings.to_stored() }))
}

/// Queue 2 comes first, then the control queue, and queue 1 last: nothing of queue 2 is given out before all of queue 1.
#[tokio::test]
async fn what_comes_after_a_change_waits_for_the_entry_and_for_what_comes_before() {
    let engine = TestEngine::new();
    let copy = |batch| engine.submit(vec![Entry::Append { role: Role::Copy, batch }]);
    copy(first_batch(2, Some(at(1)), vec!["after".into()]));
    let names = [1, 2].map(|queue| LogName { queue: Queue(queue), ..TestEngine::log_name("orders", "west") });
    let filter = Arc::new(Filter { pattern: "#".parse().unwrap(), origins: Vec::new() });
    let feed = |log: &LogName| Feed::new(log.clone(), filter.clone(), Cursor::new(at(0), Map::new()), None);
    let mut held = Held::default();
    let mut second = feed(&names[1]);
    // The entry is not here yet.
    let gate = held.gate(&engine, &names[1], false, |_, _| None);
    assert_eq!(second.fill(&engine, READ_BYTES, &gate).await.unwrap(), Filled::Held);
    held.hold(&names[1]);
    // Now it is, and says that queue 1 has two messages from before, which are not here yet.
    let ends: Ends = [(Queue(1), at(2))].into();
    copy(first_batch(0, None, vec![settings_entry(1, None), settings_entry(2, Some(&ends))]));
    let gate = held.gate(&engine, &names[1], false, |_, _| None);
    assert_eq!(second.fill(&engine, READ_BYTES, &gate).await.unwrap(), Filled::Held);
    // They come; as long as one of them is not given out, queue 2 waits.
    copy(first_batch(1, None, vec!["one".into(), "two".into()]));
    let mut first = feed(&names[0]);
    let open = held.gate(&engine, &names[0], false, |_, _| None);
    assert_eq!(first.fill(&engine, READ_BYTES, &open).await.unwrap(), Filled::Items);
    for _ in 0..2 {
        let gate = held.gate(&engine, &names[1], false, |_, end| Some(first.is_settled(end)));
        assert_eq!(second.fill(&engine, READ_BYTES, &gate).await.unwrap(), Filled::Held);
        assert!(matches!(first.pop(), Some(Item::Message { .. })));
    }
    let gate = held.gate(&engine, &names[1], false, |_, end| Some(first.is_settled(end)));
    assert_eq!(second.fill(&engine, READ_BYTES, &gate).await.unwrap(), Filled::Items);
    assert!(matches!(second.pop(), Some(Item::Message { message, .. }) if message.payload == "after"));
}
