use std::time::Duration;

use bytes::Bytes;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Code;

use crate::{
    api::{self, Mode, PublishReply, PublishRequest, acknowledgement::Of, publish_failure, publish_reply},
    door::{ClientLimits, OnExceed},
    grpc::convert::batch_of_one,
    limits::{CLIENT_IN_FLIGHT_BYTES_MAX, CLIENT_RECEIPTS_MAX, IN_FLIGHT_OVERHEAD_BYTES, REQUEST_BYTES_MAX},
    testing::*,
};

/// Each request as a batch of its own.
async fn stream(harness: &Harness, requests: Vec<PublishRequest>) -> tonic::Streaming<PublishReply> {
    let (sender, receiver) = tokio::sync::mpsc::channel(requests.len().max(1));
    for request in requests {
        sender.send(batch_of_one(request)).await.unwrap();
    }
    let mut client = harness.messages().await;
    soon("the stream", client.publish_stream(ReceiverStream::new(receiver))).await.unwrap().into_inner()
}

fn failure(reply: &PublishReply) -> (publish_failure::Code, String) {
    match &reply.result {
        Some(publish_reply::Result::Failure(failure)) => (failure.code(), failure.text.clone()),
        other => panic!("expected a failure, found {other:?}"),
    }
}

#[tokio::test]
async fn receipts_come_in_the_order_of_the_requests_and_only_once_durable() {
    let engine = TestEngine::manual();
    let harness = Harness::start(&engine).await;
    let mut requests: Vec<_> = (0..20).map(|n| request("orders/new", &format!("{n}"))).collect();
    requests[3].mode = Mode::OneWay.into();
    requests[5].path = "bad//path".into();
    let mut replies = stream(&harness, requests).await;
    soon("accepting all", async {
        while engine.waiting() < 18 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let early = tokio::time::timeout(Duration::from_millis(200), replies.next()).await;
    assert!(early.is_err(), "a receipt before the message is durable: {early:?}");
    engine.sync();
    let mut offset = 0;
    for number in 0..20_u64 {
        let reply = soon("a receipt", replies.next()).await.unwrap().unwrap();
        assert_eq!(reply.number, number);
        match (number, reply.result.clone().unwrap()) {
            (3, publish_reply::Result::Receipt(receipt)) => assert_eq!(receipt.id, None),
            (5, _) => assert_eq!(failure(&reply).0, publish_failure::Code::Invalid),
            (_, publish_reply::Result::Receipt(receipt)) => {
                assert_eq!(receipt.id.unwrap().place.unwrap().offset, offset);
                offset += 1;
            }
            (_, other) => panic!("{number}: {other:?}"),
        }
    }
    assert!(soon("the end", replies.next()).await.is_none());
    harness.stop().await;
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_with_one_sentence_and_nothing_is_stored() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let good = || request("orders", "x");
    let header = |name: &str| api::Header { name: name.into(), value: Bytes::new() };
    let ack = |of| Some(api::Acknowledgement { of: Some(of) });
    let cases = [
        ("empty path", PublishRequest { path: String::new(), ..good() }, "must not be empty"),
        ("long path", PublishRequest { path: "a".repeat(1025), ..good() }, "at most 1024 bytes"),
        ("wildcard", PublishRequest { path: "a/#".into(), ..good() }, "wildcards"),
        ("control character", PublishRequest { path: "a\u{1}".into(), ..good() }, "control characters"),
        ("own topic", PublishRequest { path: "_sys/x".into(), ..good() }, "Seaway's own"),
        ("long key", PublishRequest { key: Some(vec![0; 5000].into()), ..good() }, "the key has 5000 bytes"),
        ("many headers", PublishRequest { headers: vec![header("h"); 65], ..good() }, "65 headers"),
        ("nameless header", PublishRequest { headers: vec![header("")], ..good() }, "header's name"),
        ("unknown mode", PublishRequest { mode: 9, ..good() }, "mode 9 is unknown"),
        ("count of none", PublishRequest { acknowledgement: ack(Of::Count(0)), ..good() }, "count of 0"),
        (
            "async with sites",
            PublishRequest { mode: 1, acknowledgement: ack(Of::All(true)), ..good() },
            "only sync mode",
        ),
        (
            "bad site",
            PublishRequest { acknowledgement: ack(Of::Sites(api::SiteList { sites: vec!["Ä".into()] })), ..good() },
            "DNS label",
        ),
        ("bad producer", PublishRequest { producer: Some(api::ProducerStamp::default()), ..good() }, "16 bytes"),
        (
            "too large",
            PublishRequest { payload: vec![0; (1 << 20) + 1].into(), ..good() },
            "larger than its topic allows",
        ),
    ];
    let mut client = harness.messages().await;
    for (name, request, expected) in cases {
        let status = soon(name, client.publish(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert_eq!(code(&status), "invalid", "{name}");
        assert!(status.message().contains(expected), "{name}: {}", status.message());
    }
    let nobody = PublishRequest { acknowledgement: ack(Of::Sites(api::SiteList::default())), ..good() };
    let status = client.publish(nobody).await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::FailedPrecondition, "nobody-to-acknowledge"));
    assert!(crate::engine::Engine::logs(&engine).is_empty());
    harness.stop().await;
}

#[tokio::test]
async fn a_request_beyond_every_bound_is_refused_and_the_door_lives_on() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let mut client = harness.messages().await;
    let huge = PublishRequest { payload: vec![0; REQUEST_BYTES_MAX + 1].into(), ..request("orders", "") };
    assert!(soon("the refusal", client.publish(huge)).await.is_err());
    assert_eq!(harness.publish("orders", numbered(0..1)).await.len(), 1);
    harness.stop().await;
}

#[tokio::test]
async fn beyond_its_rate_a_client_is_told_when_to_try_again() {
    let engine = TestEngine::new();
    let limits = ClientLimits {
        messages_per_s: Some(1),
        messages_burst: 2,
        on_exceed: OnExceed::Refuse,
        ..ClientLimits::default()
    };
    let harness = Harness::start_with(&engine, |config| config.limits = limits).await;
    let mut client = harness.messages().await;
    let mut refused = None;
    for _ in 0..200 {
        if let Err(status) = client.publish(request("orders", "x")).await {
            refused = Some(status);
            break;
        }
    }
    let status = refused.expect("200 messages at once pass a limit of 1 a second");
    assert_eq!((status.code(), code(&status).as_str()), (Code::ResourceExhausted, "limited"));
    let after: u64 = status.metadata().get("retry-after-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=1000).contains(&after), "{after}");
    let mut replies = stream(&harness, vec![request("orders", "x"); 50]).await;
    let mut limited = 0;
    while let Some(reply) = soon("a reply", replies.next()).await {
        if let Some(publish_reply::Result::Failure(failure)) = reply.unwrap().result {
            assert_eq!(failure.code(), publish_failure::Code::Limited);
            assert!(failure.retry_after_ms > 0);
            limited += 1;
        }
    }
    assert!(limited > 0);
    harness.stop().await;
}

#[tokio::test]
async fn draining_finishes_receipts_that_are_out_and_refuses_the_rest() {
    let engine = TestEngine::manual();
    let mut harness = Harness::start(&engine).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    for n in 0..3 {
        sender.send(batch_of_one(request("orders", &format!("{n}")))).await.unwrap();
    }
    let mut client = harness.messages().await;
    let mut replies = client.publish_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    soon("accepting all", async {
        while engine.waiting() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    harness.drain();
    tokio::time::sleep(Duration::from_millis(50)).await;
    engine.sync();
    for number in 0..3 {
        let reply = soon("a receipt", replies.next()).await.unwrap().unwrap();
        assert!(matches!(reply.result, Some(publish_reply::Result::Receipt(_))), "{number}: {reply:?}");
    }
    let status = soon("the end", replies.next()).await.unwrap().unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::Unavailable, "draining"));
    drop((sender, client, replies));
    harness.stop().await;
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_own_fate_and_follows_the_one_before() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let content = |path: &str, payload: &str| api::publish_batch::Content {
        path: path.into(),
        payload: payload.to_owned().into(),
        ..Default::default()
    };
    let batch = |messages: Vec<_>| api::PublishBatch { messages, ..Default::default() };
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let paths = ["orders/a", "", "bad//path", "", "orders/b", ""];
    sender.send(batch(paths.iter().map(|path| content(path, path)).collect())).await.unwrap();
    sender.send(batch(vec![content("", "no path before it")])).await.unwrap();
    let stamped = api::PublishBatch {
        producer: Some(api::ProducerStamp { id: vec![7; 16].into(), epoch: 1, sequence: 0 }),
        ..batch(vec![content("orders/a", "x"), content("bills/a", "y")])
    };
    sender.send(stamped).await.unwrap();
    sender.send(batch(Vec::new())).await.unwrap();
    let mut client = harness.messages().await;
    let mut replies = client.publish_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut fates = Vec::new();
    let end = loop {
        match soon("a reply", replies.next()).await.unwrap() {
            Ok(reply) => {
                assert_eq!(reply.number, fates.len() as u64);
                let good = matches!(reply.result, Some(publish_reply::Result::Receipt(_)));
                fates.extend(std::iter::repeat_n(good, reply.count as usize));
            }
            Err(status) => break status,
        }
    };
    assert_eq!(fates, [true, true, false, false, true, true, false, true, false]);
    assert!(end.message().contains("no message"), "{end:?}");
    drop((sender, client, replies));
    harness.stop().await;
}

#[tokio::test]
async fn while_draining_waits_for_other_sites_end_before_the_door_is_cut() {
    let engine = TestEngine::manual();
    let mut harness = Harness::start(&engine).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(batch_of_one(request("orders", "waits"))).await.unwrap();
    let mut client = harness.messages().await;
    let mut replies = client.publish_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    soon("accepting it", async {
        while engine.waiting() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!engine.stopped_waiting());
    harness.drain();
    soon("the word that the node stops", async {
        while !engine.stopped_waiting() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // The stream is still there to be told.
    engine.sync();
    let reply = soon("its answer", replies.next()).await.unwrap().unwrap();
    assert!(matches!(reply.result, Some(publish_reply::Result::Receipt(_))), "{reply:?}");
    drop((sender, client, replies));
    harness.stop().await;
}

#[tokio::test]
async fn a_client_that_waits_for_other_sites_leaves_room_for_the_other_clients() {
    const SHOP: &str = "[[token]]\nname = \"shop\"\ntoken = \"shop-shop-shop-shop\"\npublish = [\"orders\"]\n";
    let engine = TestEngine::manual();
    let harness =
        Harness::start_with(&engine, |config| config.auth.token_file = Some(super::rights::token_file(SHOP))).await;
    let acknowledgement = Some(api::Acknowledgement { of: Some(Of::Count(1)) });
    let content = api::publish_batch::Content { path: "orders".into(), payload: "x".into(), ..Default::default() };
    let batch = api::PublishBatch {
        acknowledgement: acknowledgement.clone(),
        deadline_ms: 600_000,
        messages: vec![content; CLIENT_RECEIPTS_MAX / 2],
        ..Default::default()
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    sender.send(batch.clone()).await.unwrap();
    sender.send(batch).await.unwrap();
    let mut client = harness.messages().await;
    let _replies = client.publish_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let waiting = async |count: usize| {
        soon("accepting them", async {
            while engine.waiting() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    waiting(CLIENT_RECEIPTS_MAX).await;
    let one = |deadline_ms| PublishRequest {
        acknowledgement: acknowledgement.clone(),
        deadline_ms,
        ..request("orders", "one more")
    };
    let status = soon("the refusal", client.publish(one(100))).await.unwrap_err();
    assert!(status.message().contains("no room"), "{status:?}");
    // What waits for nobody goes on, and so do the others.
    let (mut here, mut other) = (client.clone(), client.clone());
    let here = tokio::spawn(async move { here.publish(request("orders", "here")).await });
    let other_request = with_token(one(600_000), "shop-shop-shop-shop");
    let other = tokio::spawn(async move { other.publish(other_request).await });
    waiting(CLIENT_RECEIPTS_MAX + 2).await;
    engine.sync();
    soon("its receipt", here).await.unwrap().unwrap();
    soon("the other's receipt", other).await.unwrap().unwrap();
    harness.stop().await;
}

/// A message that waits for one other site.
fn waiting(payload: &str) -> PublishRequest {
    let acknowledgement = Some(api::Acknowledgement { of: Some(Of::Count(1)) });
    PublishRequest { acknowledgement, deadline_ms: 3_600_000, ..request("orders", payload) }
}

/// A batch of such messages.
fn waiting_batch(count: u32) -> api::PublishBatch {
    let content = |n: u32| api::publish_batch::Content {
        path: "orders".into(),
        payload: n.to_string().into(),
        ..Default::default()
    };
    api::PublishBatch { messages: (0..count).map(content).collect(), ..batch_of_one(waiting("")) }
}

/// Limits that hold nobody back, but let so few messages wait for other sites.
fn share_of(receipts_max: usize) -> ClientLimits {
    ClientLimits { messages_per_s: Some(1_000_000), messages_burst: 1_000_000, receipts_max, ..ClientLimits::default() }
}

#[tokio::test]
async fn streams_of_a_limited_client_do_not_wait_for_each_other_for_ever() {
    let engine = TestEngine::manual();
    let harness = Harness::start_with(&engine, |config| config.limits = share_of(4)).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut client = harness.messages().await;
        let batches = tokio_stream::iter([waiting_batch(6), waiting_batch(6)]);
        streams.push(client.publish_stream(batches).await.unwrap().into_inner());
    }
    let syncing = tokio::spawn({
        let engine = engine.clone();
        async move {
            loop {
                engine.sync();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    for mut replies in streams {
        let mut receipts = 0;
        while let Some(reply) = soon("a receipt", replies.next()).await {
            let reply = reply.unwrap();
            assert!(matches!(reply.result, Some(publish_reply::Result::Receipt(_))), "{reply:?}");
            receipts += reply.count;
        }
        assert_eq!(receipts, 12);
    }
    syncing.abort();
    harness.stop().await;
}

#[tokio::test]
async fn a_stream_that_waits_ends_with_its_token_and_publishes_nothing_more() {
    let engine = TestEngine::manual();
    let tokens = "[[token]]\nname='shop'\ntoken='shop-shop-shop-shop'\npublish=['#']";
    let file = super::rights::token_file(tokens);
    let mut config = crate::door::DoorConfig::new(([127, 0, 0, 1], 0).into());
    config.limits = share_of(1);
    config.auth.token_file = Some(file.clone());
    let door = crate::door::Door::open(config.clone(), engine.clone()).await.unwrap();
    let (address, handle) = (door.address(), door.handle());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(door.serve(async move { drop(stopped.await) }));
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap();
    let mut client = api::messages_client::MessagesClient::new(channel.connect().await.unwrap());
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(waiting_batch(3)).await.unwrap();
    let request = with_token(ReceiverStream::new(receiver), "shop-shop-shop-shop");
    let mut replies = soon("the stream", client.publish_stream(request)).await.unwrap().into_inner();
    soon("accepting the first", async {
        while engine.waiting() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    std::fs::write(&file, tokens.replace("shop", "other")).unwrap();
    handle.reload(&config).unwrap();
    engine.sync();
    let first = soon("the receipt that was out", replies.next()).await.unwrap().unwrap();
    assert!(matches!(first.result, Some(publish_reply::Result::Receipt(_))), "{first:?}");
    let end = soon("the end", replies.next()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    let ends = crate::engine::Engine::info(&engine, &TestEngine::log_name("orders", "east")).unwrap().end;
    assert_eq!((ends.offset, engine.waiting()), (1, 0), "only what was handed over is stored");
    drop((sender, client, replies, stop));
    soon("the door's end", serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_publish_that_waits_ends_at_its_deadline_and_when_the_node_drains() {
    let engine = TestEngine::new();
    let limits = ClientLimits { bytes_per_s: Some(1), bytes_burst: 1000, ..ClientLimits::default() };
    let mut harness = Harness::start_with(&engine, |config| config.limits = limits).await;
    let mut client = harness.messages().await;
    let large = |deadline_ms| PublishRequest { deadline_ms, ..request("orders", &"x".repeat(1000)) };
    soon("the burst", client.publish(large(0))).await.unwrap();
    // The next is due in a thousand seconds.
    let late = soon("its deadline", client.publish(large(100))).await.unwrap_err();
    assert_eq!((late.code(), code(&late).as_str()), (Code::Unavailable, "unavailable"));
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(batch_of_one(large(3_600_000))).await.unwrap();
    let mut replies = client.publish_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let early = tokio::time::timeout(Duration::from_millis(200), replies.next()).await;
    assert!(early.is_err(), "it waits for the rate: {early:?}");
    harness.drain();
    let end = soon("the end", replies.next()).await.unwrap().unwrap_err();
    assert_eq!((end.code(), code(&end).as_str()), (Code::Unavailable, "draining"));
    drop((sender, client, replies));
    harness.stop().await;
}

#[tokio::test]
async fn for_a_client_that_left_nothing_more_is_published_and_nothing_is_held() {
    let engine = TestEngine::new();
    // A message a second: a batch takes hours.
    let limits = ClientLimits { bytes_per_s: Some(1), bytes_burst: 1, ..ClientLimits::default() };
    let harness = Harness::start_with(&engine, |config| config.limits = limits).await;
    let content =
        api::publish_batch::Content { path: "orders".into(), payload: vec![0; 200].into(), ..Default::default() };
    let batch = api::PublishBatch { messages: vec![content; 16_000], deadline_ms: 3_600_000, ..Default::default() };
    // As many as fill the client's share, and one that waits for room in it.
    let counted = 16_000 * (200 + IN_FLIGHT_OVERHEAD_BYTES);
    let mut streams = Vec::new();
    for _ in 0..CLIENT_IN_FLIGHT_BYTES_MAX / counted + 1 {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.send(batch.clone()).await.unwrap();
        let replies = harness.messages().await.publish_stream(ReceiverStream::new(receiver)).await.unwrap();
        streams.push((sender, replies));
    }
    // Without a payload, no rate holds it back.
    let mut client = harness.messages().await;
    let mut empty = async |deadline_ms| client.publish(PublishRequest { deadline_ms, ..request("orders", "") }).await;
    soon("a full share", async { while empty(20).await.is_ok() {} }).await;
    drop(streams);
    soon("room", empty(50_000)).await.unwrap();
    harness.stop().await;
}

#[tokio::test]
async fn who_waits_for_nobody_has_room_while_others_wait_for_a_site_that_is_cut_off() {
    const TOKENS: &str = "[[token]]\nname='a'\ntoken='a-a-a-a-a-a-a-a-a'\npublish=['#']\n\
                          [[token]]\nname='b'\ntoken='b-b-b-b-b-b-b-b-b'\npublish=['#']\n\
                          [[token]]\nname='c'\ntoken='c-c-c-c-c-c-c-c-c'\npublish=['#']";
    let engine = TestEngine::new();
    let file = super::rights::token_file(TOKENS);
    let harness = Harness::start_with(&engine, |config| config.auth.token_file = Some(file)).await;
    let held = engine.hold_receipts().await;
    let content =
        api::publish_batch::Content { path: "orders".into(), payload: vec![0; 1_000_000].into(), ..Default::default() };
    let batch = api::PublishBatch { messages: vec![content; 15], ..waiting_batch(0) };
    // Together more than the door reads at one time.
    let mut streams = Vec::new();
    for token in ["a-a-a-a-a-a-a-a-a", "b-b-b-b-b-b-b-b-b", "c-c-c-c-c-c-c-c-c"] {
        for _ in 0..4 {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            sender.send(batch.clone()).await.unwrap();
            let request = with_token(ReceiverStream::new(receiver), token);
            streams.push((sender, harness.messages().await.publish_stream(request).await.unwrap()));
        }
    }
    soon("all of them waiting", async {
        while engine.receipts_asked() < 12 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let large = request("orders", &"x".repeat(1_000_000));
    soon("room for it", harness.messages().await.publish(large)).await.unwrap();
    drop((streams, held));
    harness.stop().await;
}
