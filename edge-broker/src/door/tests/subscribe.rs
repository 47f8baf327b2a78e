use seaway_federation_proto::{
    control,
    copies::{Hole, HoleKind},
    ids::{Incarnation, Place},
    replication::WantStart,
    wire::store,
};
use seaway_relay::log::contract::Entry;
use tonic::Code;

use crate::{
    api::{
        Mode, Position, PublishRequest,
        subscribe_reply::Kind,
        subscribe_request::{Open, Positions, open::From},
    },
    engine::Engine as _,
    testing::*,
};

#[tokio::test]
async fn a_subscriber_gets_what_is_there_then_what_comes_in_order() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders/new", numbered(0..5)).await;
    let mut subscriber = harness.subscribe(open("orders/#")).await.unwrap();
    harness.publish("orders/new", numbered(5..8)).await;
    harness.publish("other", numbered(0..2)).await;
    harness.publish("orders", numbered(8..9)).await;
    let messages = subscriber.messages(9).await;
    assert_eq!(payloads(&messages), numbered(0..9));
    assert!(messages.iter().all(|m| m.origin == "east" && !m.late && m.deliveries == 1 && m.time_us > 0));
    subscriber.nothing_more().await;
    harness.stop().await;
}

#[tokio::test]
async fn what_goes_before_it_was_read_is_told_before_the_end_is() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(0..5)).await;
    let mut subscriber = harness.subscribe(Open { until_end: true, credit: None, ..open("orders") }).await.unwrap();
    engine.submit(vec![Entry::Drop { log: TestEngine::log_name("orders", "east") }]);
    subscriber.give(100).await;
    let Some(Kind::Gap(gap)) = subscriber.next().await.unwrap() else { panic!("nothing is told of what is missing") };
    assert_eq!((gap.from.unwrap().place.unwrap().offset, gap.to.unwrap().offset), (0, 5));
    assert!(matches!(subscriber.next().await.unwrap(), Some(Kind::AtEnd(_))));
    harness.stop().await;
}

#[tokio::test]
async fn each_start_begins_where_it_says() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let ids = harness.publish("orders", numbered(0..10)).await;
    let mut all = harness.subscribe(open("orders")).await.unwrap();
    let times: Vec<_> = all.messages(10).await.iter().map(|m| m.time_us).collect();
    let position = Position { topic: "orders".into(), origin: "east".into(), queue: 1, place: ids[6].place };
    let cases = [
        (From::Earliest(true), 0),
        (From::TimeUs(times[4]), 4),
        (From::Positions(Positions { positions: vec![position] }), 6),
        (From::Last(3), 7),
        (From::Last(1000), 0),
    ];
    for (from, first) in cases {
        let mut subscriber =
            harness.subscribe(Open { from: Some(from.clone()), until_end: true, ..open("orders") }).await.unwrap();
        assert_eq!(payloads(&subscriber.messages(10 - first).await), numbered(first..10), "{from:?}");
        assert!(matches!(subscriber.next().await.unwrap(), Some(Kind::AtEnd(_))), "{from:?}");
        assert!(subscriber.next().await.unwrap().is_none(), "{from:?}");
    }
    let mut latest = harness.subscribe(Open { from: Some(From::Latest(true)), ..open("orders") }).await.unwrap();
    harness.publish("orders", numbered(10..11)).await;
    assert_eq!(payloads(&latest.messages(1).await), numbered(10..11));
    harness.stop().await;
}

#[tokio::test]
async fn until_end_of_nothing_ends_at_once() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let mut subscriber = harness.subscribe(Open { until_end: true, ..open("orders") }).await.unwrap();
    assert!(matches!(subscriber.next().await.unwrap(), Some(Kind::AtEnd(_))));
    harness.stop().await;
}

#[tokio::test]
async fn no_more_is_sent_than_there_is_credit_for() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(0..10)).await;
    let mut subscriber = harness.subscribe(Open { credit: Some(credit(3)), ..open("orders") }).await.unwrap();
    assert_eq!(payloads(&subscriber.messages(3).await), numbered(0..3));
    subscriber.nothing_more().await;
    subscriber.give(2).await;
    assert_eq!(payloads(&subscriber.messages(2).await), numbered(3..5));
    subscriber.nothing_more().await;
    let mut none = harness.subscribe(Open { credit: None, ..open("orders") }).await.unwrap();
    none.nothing_more().await;
    harness.stop().await;
}

#[tokio::test]
async fn patterns_and_origins_choose_messages() {
    let engine = TestEngine::new();
    for (origin, tag) in [("east", "a"), ("west", "b"), ("west", "a")] {
        let log = TestEngine::log_name(&format!("t-{origin}-{tag}"), origin);
        let path = format!("t-{origin}-{tag}/{tag}");
        engine.append(
            &log,
            1,
            None,
            &[(&path, origin), (&format!("{path}/deep"), "deep"), (&format!("{}/z", log.topic), "z")],
        );
    }
    let harness = Harness::start(&engine).await;
    let count = async |pattern: &str, origins: &[&str]| {
        let origins = origins.iter().map(|o| (*o).to_owned()).collect();
        let mut subscriber = harness.subscribe(Open { origins, until_end: true, ..open(pattern) }).await.unwrap();
        let mut count = 0;
        loop {
            match subscriber.next().await.unwrap() {
                Some(Kind::Messages(messages)) => count += messages.messages.len(),
                Some(Kind::AtEnd(_)) => return count,
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(count("#", &[]).await, 9);
    assert_eq!(count("+/a", &[]).await, 2);
    assert_eq!(count("+/a/#", &[]).await, 4);
    assert_eq!(count("#", &["west"]).await, 6);
    assert_eq!(count("t-west-b/b", &["east"]).await, 0);
    assert_eq!(count("t-west-b/b", &["west"]).await, 1);
    harness.stop().await;
}

#[tokio::test]
async fn a_fork_is_delivered_late_and_the_main_line_in_order() {
    let engine = TestEngine::new();
    let log = TestEngine::log_name("orders", "west");
    let place = |counter, offset| Place { incarnation: Incarnation { counter, random: 7 }, offset };
    engine.append(&log, 1, None, &[("orders", "0"), ("orders", "1"), ("orders", "2"), ("orders", "3")]);
    let harness = Harness::start(&engine).await;
    let mut early = harness.subscribe(open("orders")).await.unwrap();
    assert_eq!(payloads(&early.messages(4).await), ["0", "1", "2", "3"]);
    // The origin went back to offset 4 of the batches it had made durable, then its older life grew elsewhere.
    engine.append(&log, 2, Some(place(1, 4)), &[("orders", "4")]);
    engine.append(&log, 1, None, &[("orders", "lost life")]);
    engine.append(&log, 2, None, &[("orders", "5")]);
    let rest = early.messages(3).await;
    let late: Vec<_> = rest.iter().filter(|m| m.late).cloned().collect();
    let main: Vec<_> = rest.iter().filter(|m| !m.late).cloned().collect();
    assert_eq!((payloads(&late), payloads(&main)), (vec!["lost life".to_owned()], vec!["4".into(), "5".into()]));
    early.nothing_more().await;
    let mut later = harness.subscribe(open("orders")).await.unwrap();
    let all = later.messages(7).await;
    let main: Vec<_> = all.iter().filter(|m| !m.late).cloned().collect();
    assert_eq!(payloads(&main), ["0", "1", "2", "3", "4", "5"]);
    harness.stop().await;
}

#[tokio::test]
async fn every_hole_is_reported() {
    let engine = TestEngine::new();
    let log = TestEngine::log_name("orders", "west");
    engine.append(&log, 1, None, &[("orders", "0"), ("orders", "1")]);
    let incarnation = Incarnation { counter: 1, random: 7 };
    engine.submit(vec![Entry::Hole {
        log: log.clone(),
        hole: Hole { incarnation, from: 2, to: 7, kind: HoleKind::Lost },
    }]);
    let harness = Harness::start(&engine).await;
    let mut subscriber = harness.subscribe(Open { until_end: true, ..open("orders") }).await.unwrap();
    assert_eq!(payloads(&subscriber.messages(2).await), ["0", "1"]);
    match subscriber.next().await.unwrap() {
        Some(Kind::Gap(gap)) => {
            assert_eq!((gap.from.as_ref().unwrap().place.unwrap().offset, gap.to.unwrap().offset), (2, 7));
            assert_eq!(gap.why(), crate::api::GapReason::Lost);
            assert_eq!(gap.to.unwrap().incarnation, 1);
            assert!(gap.text.contains("lost"), "{}", gap.text);
        }
        other => panic!("expected a gap, found {other:?}"),
    }
    assert!(matches!(subscriber.next().await.unwrap(), Some(Kind::AtEnd(_))));
    harness.stop().await;
}

/// Deletes topic `orders` of site `west` as a holder sees it: the entry in the control queue, then the copy is dropped.
fn delete_orders(engine: &TestEngine, drop: bool) {
    let log = TestEngine::log_name("orders", "west");
    let end = engine.info(&log).unwrap().end;
    let ends = control::stored_ends(&[(log.queue, end)].into_iter().collect());
    let stated = store::TopicDeleted { life: 0, time_us: 1, ends, ..Default::default() };
    engine.enter("orders", "west", control::entry(store::control_entry::Kind::Deleted(stated)));
    engine.submit(vec![if drop { Entry::Drop { log } } else { Entry::Trim { log, to: end } }]);
}

#[tokio::test]
async fn what_was_deleted_before_it_was_read_is_a_gap_that_says_so() {
    for drop in [false, true] {
        let engine = TestEngine::new();
        let log = TestEngine::log_name("orders", "west");
        engine.append(&log, 1, None, &[("orders", "0"), ("orders", "1")]);
        let harness = Harness::start(&engine).await;
        let mut all = harness.subscribe(open("orders")).await.unwrap();
        assert_eq!(payloads(&all.messages(2).await), ["0", "1"]);
        // This one takes one message at a time, and has not taken the others yet when their topic is deleted.
        let mut slow = harness.subscribe(Open { credit: Some(credit(1)), ..open("orders") }).await.unwrap();
        assert_eq!(payloads(&slow.messages(1).await), ["0"]);
        engine.append(&log, 1, None, &[("orders", "2"), ("orders", "3")]);
        assert_eq!(payloads(&all.messages(2).await), ["2", "3"]);
        delete_orders(&engine, drop);
        all.nothing_more().await;
        slow.give(10).await;
        let gap = loop {
            match slow.next().await.unwrap() {
                Some(Kind::Gap(gap)) => break gap,
                Some(Kind::Messages(_)) => {} // what was read already
                other => panic!("expected a gap, found {other:?}"),
            }
        };
        assert_eq!((gap.why(), gap.to.unwrap().offset), (crate::api::GapReason::Deleted, 4), "{gap:?}");
        assert!(gap.text.contains("deleted"), "{}", gap.text);
        harness.stop().await;
    }
}

#[tokio::test]
async fn one_way_messages_come_to_those_who_ask_for_them() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let mut with = harness.subscribe(Open { one_way: true, ..open("news/#") }).await.unwrap();
    let mut without = harness.subscribe(open("news/#")).await.unwrap();
    let mut client = harness.messages().await;
    let one_way = PublishRequest { mode: Mode::OneWay.into(), ..request("news/now", "quick") };
    let receipt = soon("handing over", client.publish(one_way)).await.unwrap().into_inner();
    assert_eq!(receipt.id, None);
    let messages = with.messages(1).await;
    assert!(messages[0].one_way && messages[0].id.is_none());
    without.nothing_more().await;
    harness.stop().await;
}

#[tokio::test]
async fn a_plain_subscriber_wants_while_connected_and_for_some_time_after() {
    let engine = TestEngine::new();
    let linger = std::time::Duration::from_millis(300);
    let harness = Harness::start_with(&engine, |config| config.passing_want = linger).await;
    let first = harness.subscribe(open("orders/#")).await.unwrap();
    let second = harness.subscribe(open("orders/#")).await.unwrap();
    let wants = engine.wants();
    assert_eq!(wants.len(), 1, "both share one: {wants:?}");
    assert_eq!((wants[0].start, wants[0].registers), (WantStart::Earliest, false));
    drop(first);
    tokio::time::sleep(linger * 3).await;
    assert_eq!(engine.wants().len(), 1, "one is still connected");
    drop(second);
    soon("expiry", async {
        while !engine.wants().is_empty() {
            tokio::time::sleep(linger / 10).await;
        }
    })
    .await;
    harness.stop().await;
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused_with_a_sentence() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let cases = [
        (open(""), Code::InvalidArgument, "quotes"),
        (open("a/#/b"), Code::InvalidArgument, "last level"),
        (open("_sys/#"), Code::PermissionDenied, "Seaway's own"),
        (Open { origins: vec!["No Site".into()], ..open("a") }, Code::InvalidArgument, "DNS label"),
        (member("bad name", "a"), Code::InvalidArgument, "group \"bad name\""),
        (Open { until_end: true, ..member("g", "a") }, Code::InvalidArgument, "until_end"),
    ];
    for (open, expected, text) in cases {
        let status = harness.subscribe(open.clone()).await.err().unwrap_or_else(|| panic!("{open:?} opened"));
        assert_eq!(status.code(), expected, "{open:?}: {status:?}");
        assert!(status.message().contains(text), "{open:?}: {}", status.message());
    }
    harness.stop().await;
}

#[tokio::test]
async fn draining_ends_subscriptions_with_a_clear_status() {
    let engine = TestEngine::new();
    let mut harness = Harness::start(&engine).await;
    let mut plain = harness.subscribe(open("orders")).await.unwrap();
    let mut grouped = harness.subscribe(member("g", "orders")).await.unwrap();
    harness.drain();
    for subscriber in [&mut plain, &mut grouped] {
        let status = subscriber.next().await.unwrap_err();
        assert_eq!((status.code(), code(&status).as_str()), (Code::Unavailable, "draining"));
    }
    drop((plain, grouped));
    harness.stop().await;
}
