use std::{collections::BTreeSet, time::Duration};

use crate::{
    api::{
        self,
        subscribe_reply::Kind,
        subscribe_request::{Open, open::From},
    },
    limits::GROUP_UNCONFIRMED_MAX,
    testing::*,
};

#[tokio::test]
async fn a_group_goes_on_after_a_restart_exactly_where_it_confirmed() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(0..10)).await;
    let mut first = harness.subscribe(member("g", "orders/#")).await.unwrap();
    let messages = first.messages(10).await;
    let confirmed = first.confirm(1, ids(&messages[3..4]), true).await;
    assert_eq!((confirmed.number, confirmed.refused.as_str()), (1, ""));
    let confirmed = first.confirm(2, vec![ids(&messages)[6].clone(), ids(&messages)[8].clone()], false).await;
    assert_eq!((confirmed.number, confirmed.refused.as_str()), (2, ""));
    harness.stop().await;

    let engine = engine.restart();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(10..12)).await;
    let mut second = harness.subscribe(member("g", "orders/#")).await.unwrap();
    let expected: Vec<_> = [4, 5, 7, 9, 10, 11].map(|n| format!("message {n}")).into();
    let messages = second.messages(6).await;
    assert_eq!(payloads(&messages), expected);
    second.confirm(1, ids(&messages[5..]), true).await;
    second.nothing_more().await;
    let described = group(&mut harness.admin().await, "g").await;
    assert_eq!((described.members, described.lag_messages, described.unconfirmed), (1, 0, 0));
    let position = described.positions[0].position.clone().unwrap().place.unwrap();
    assert_eq!((position.offset, position.incarnation), (12, 2), "the position followed into the new incarnation");
    harness.stop().await;
}

#[tokio::test]
async fn making_one_group_stops_no_other() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(0..3)).await;
    let held = engine.hold_times().await;
    let by_time = Open { from: Some(From::TimeUs(1)), ..member("slow", "orders") };
    let client = harness.messages().await;
    let slow = tokio::spawn(Subscriber::open(client, by_time));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut other = harness.subscribe(member("other", "orders")).await.unwrap();
    assert_eq!(payloads(&other.messages(3).await), numbered(0..3));
    group(&mut harness.admin().await, "other").await;
    assert!(!slow.is_finished());
    drop(held);
    let mut slow = soon("the slow group", slow).await.unwrap().unwrap();
    assert_eq!(payloads(&slow.messages(3).await), numbered(0..3));
    harness.stop().await;
}

#[tokio::test]
async fn a_confirmation_is_answered_only_when_it_is_stored() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(0..3)).await;
    let mut subscriber = harness.subscribe(member("g", "orders")).await.unwrap();
    let messages = subscriber.messages(3).await;
    engine.refuse_state(Some("the disk is full"));
    let confirmed = subscriber.confirm(1, ids(&messages), false).await;
    assert!(confirmed.refused.contains("the disk is full"), "{confirmed:?}");
    engine.refuse_state(None);
    let confirmed = subscriber.confirm(2, ids(&messages), false).await;
    assert_eq!(confirmed.refused, "");
    harness.stop().await;
    let harness = Harness::start(&engine.restart()).await;
    harness.subscribe(member("g", "orders")).await.unwrap().nothing_more().await;
    harness.stop().await;
}

#[tokio::test]
async fn what_a_member_had_comes_again_when_it_leaves() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(0..6)).await;
    let mut first = harness.subscribe(member("g", "orders")).await.unwrap();
    let messages = first.messages(6).await;
    first.confirm(1, ids(&messages[..1]), false).await;
    drop(first);
    let mut second = harness.subscribe(member("g", "orders")).await.unwrap();
    let again = second.messages(5).await;
    assert_eq!(payloads(&again), numbered(1..6), "in order, without what was confirmed");
    assert!(again.iter().all(|m| m.deliveries == 2), "{:?}", again.iter().map(|m| m.deliveries).collect::<Vec<_>>());
    second.nothing_more().await;
    harness.stop().await;
}

#[tokio::test]
async fn what_is_not_confirmed_in_time_goes_to_another_member() {
    let engine = TestEngine::new();
    let timeout = Duration::from_secs(2);
    let harness = Harness::start_with(&engine, |config| config.confirm_timeout = timeout).await;
    harness.publish("orders", numbered(0..3)).await;
    let mut stuck = harness.subscribe(Open { credit: Some(credit(3)), ..member("g", "orders") }).await.unwrap();
    assert_eq!(payloads(&stuck.messages(3).await), numbered(0..3));
    let mut other = harness.subscribe(member("g", "orders")).await.unwrap();
    let again = other.messages(3).await;
    assert_eq!(payloads(&again), numbered(0..3));
    assert!(again.iter().all(|m| m.deliveries == 2));
    assert_eq!(other.confirm(1, ids(&again), false).await.refused, "");
    harness.stop().await;
}

#[tokio::test]
async fn members_share_the_logs_and_each_log_stays_in_order() {
    let engine = TestEngine::with_queues(8);
    let harness = Harness::start(&engine).await;
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(harness.subscribe(member("g", "orders")).await.unwrap());
    }
    let mut client = harness.messages().await;
    for n in 0..80_u8 {
        let key = Some(vec![n % 8].into());
        let publish = api::PublishRequest { key, ..request("orders", &n.to_string()) };
        soon("a receipt", client.publish(publish)).await.unwrap();
    }
    let mut seen = BTreeSet::new();
    let mut last = std::collections::BTreeMap::new();
    let mut shares = vec![0; members.len()];
    let began = std::time::Instant::now();
    let mut turn = 0;
    // In turns, until all are there: how long a member says nothing depends on the machine.
    while seen.len() < 80 {
        assert!(began.elapsed() < Duration::from_secs(60), "{} of 80 came", seen.len());
        turn = (turn + 1) % members.len();
        let next = tokio_stream::StreamExt::next(members[turn].replies());
        if let Ok(reply) = tokio::time::timeout(Duration::from_millis(20), next).await {
            let reply = reply.unwrap().unwrap();
            let Some(Kind::Messages(messages)) = reply.kind else { panic!("{reply:?}") };
            for message in messages.messages {
                let id = message.id.unwrap();
                let offset = id.place.unwrap().offset;
                assert_eq!(offset, last.get(&id.queue).map_or(0, |o: &u64| o + 1), "queue {} in order", id.queue);
                last.insert(id.queue, offset);
                assert!(seen.insert((id.queue, offset)), "{id:?} came twice");
                shares[turn] += 1;
            }
        }
    }
    assert_eq!(seen.len(), 80);
    assert!(shares.iter().all(|s| *s > 0), "every member has a share: {shares:?}");
    harness.stop().await;
}

#[tokio::test]
async fn a_member_that_never_confirms_stops_at_its_credit_and_shows() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    harness.publish("orders", numbered(0..10)).await;
    let mut subscriber = harness.subscribe(Open { credit: Some(credit(4)), ..member("g", "orders") }).await.unwrap();
    subscriber.messages(4).await;
    subscriber.nothing_more().await;
    let described = group(&mut harness.admin().await, "g").await;
    assert_eq!((described.members, described.unconfirmed, described.lag_messages), (1, 4, 10));
    harness.stop().await;
}

#[tokio::test]
async fn no_more_is_out_unconfirmed_than_the_position_has_room_for() {
    let engine = TestEngine::new();
    let log = TestEngine::log_name("orders", "west");
    let messages = vec![("orders", "x"); GROUP_UNCONFIRMED_MAX + 100];
    engine.append(&log, 1, None, &messages);
    let harness = Harness::start(&engine).await;
    let mut subscriber = harness.subscribe(member("g", "orders")).await.unwrap();
    let first = subscriber.messages(GROUP_UNCONFIRMED_MAX).await;
    subscriber.nothing_more().await;
    subscriber.confirm(1, ids(&first[..50]), false).await;
    subscriber.messages(50).await;
    subscriber.nothing_more().await;
    harness.stop().await;
}

#[tokio::test]
async fn what_was_not_delivered_cannot_be_confirmed() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let published = harness.publish("orders", numbered(0..2)).await;
    let mut subscriber = harness.subscribe(Open { credit: Some(credit(1)), ..member("g", "orders") }).await.unwrap();
    subscriber.messages(1).await;
    let confirmed = subscriber.confirm(1, published[1..].to_vec(), true).await;
    assert!(confirmed.refused.contains("was not delivered"), "{confirmed:?}");
    let mut plain = harness.subscribe(open("orders")).await.unwrap();
    assert!(plain.confirm(1, published, false).await.refused.contains("without a group"));
    harness.stop().await;
}

#[tokio::test]
async fn messages_outside_the_pattern_do_not_hold_the_position_back() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    for n in 0..6 {
        harness.publish(if n % 2 == 0 { "orders/a" } else { "orders/b" }, numbered(n..n + 1)).await;
    }
    let mut subscriber = harness.subscribe(member("g", "orders/a")).await.unwrap();
    let messages = subscriber.messages(3).await;
    subscriber.confirm(1, ids(&messages), false).await;
    let described = group(&mut harness.admin().await, "g").await;
    assert_eq!(described.lag_messages, 0);
    assert_eq!(described.positions[0].position.clone().unwrap().place.unwrap().offset, 6);
    harness.stop().await;
}

#[tokio::test]
async fn a_deleted_group_is_gone_with_its_want_and_begins_anew() {
    let engine = TestEngine::new();
    let harness = Harness::start_with(&engine, |config| {
        config.auth.token_file =
            Some(super::rights::token_file("[[token]]\nname='a'\ntoken='admin-admin-admin'\nadmin=true"));
    })
    .await;
    harness.publish("orders", numbered(0..3)).await;
    let mut subscriber = harness.subscribe(member("g", "orders")).await.unwrap();
    let messages = subscriber.messages(3).await;
    subscriber.confirm(1, ids(&messages), false).await;
    assert!(engine.wants().iter().any(|w| w.id == "group-g" && w.registers));
    let other = harness.subscribe(member("g", "elsewhere")).await.err().unwrap();
    assert!(other.message().contains("exists with pattern orders"), "{other:?}");
    let mut admin = harness.admin().await;
    let request = with_token(api::DeleteGroupRequest { group: "g".into() }, "admin-admin-admin");
    soon("deleting", admin.delete_group(request)).await.unwrap();
    let status = subscriber.next().await.unwrap_err();
    assert_eq!(code(&status), "group-deleted");
    assert!(engine.wants().is_empty());
    let mut anew = harness.subscribe(member("g", "orders")).await.unwrap();
    assert_eq!(payloads(&anew.messages(3).await), numbered(0..3));
    harness.stop().await;
}
