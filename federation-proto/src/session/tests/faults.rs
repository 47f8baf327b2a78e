//! What a peer may not do: each ends its session with a sentence that says what it was.

use link::control::Kind;

use super::{
    frames::{TransmitBuilder, control_frame},
    *,
};

type Change = fn(&mut link::Hello, &mut SessionConfig);

/// The end of a session to which a hand-made hello is said.
fn refusal_of(change: Change) -> (link::RefuseReason, String) {
    let mut own = config("a/1");
    let mut hello = link::Hello {
        fetches_max: 9,
        features: vec![],
        version_min: 1,
        version_max: 1,
        federation: "test".into(),
        node: Some(link::NodeName { site: "b".into(), node: "1".into() }),
        kind: link::NodeKind::Relay.into(),
        start: Some(link::Start::default()),
        batch_bytes_max: 1000,
        credit: vec![link::LaneCredit { lane: 1, bytes: 1000 }, link::LaneCredit { lane: 2, bytes: 1000 }],
        software: "x".into(),
        body_versions: vec![1],
    };
    change(&mut hello, &mut own);
    let mut session = Session::new(own, NOW);
    session.handle_bytes(NOW, Channel::Control, control_frame(Kind::Hello(hello)));
    refusal(&mut session)
}

/// The refusal, which the peer is told as well.
fn refusal(session: &mut Session) -> (link::RefuseReason, String) {
    let Some(CloseReason::Refused { reason, text }) = closed(session) else { panic!("it was not refused") };
    let mut peer = Session::new(SessionConfig { versions: 1..=9, ..config("c/1") }, NOW);
    let bytes = take(session, Channel::Control);
    peer.handle_bytes(NOW, Channel::Control, bytes);
    assert_eq!(closed(&mut peer), Some(CloseReason::RefusedByPeer { reason, text: text.clone() }));
    (reason, text)
}

#[test]
fn hellos_that_cannot_be_accepted() {
    use link::RefuseReason::*;
    let cases: [(link::RefuseReason, &str, Change); 9] = [
        (Version, "b/1 speaks protocol versions 2 to 3, this node 1 to 1", |h, _| {
            (h.version_min, h.version_max) = (2, 3)
        }),
        (Version, "upgrade", |_, own| own.versions = 2..=2),
        (Federation, "belongs to federation \"other\"", |h, _| h.federation = "other".into()),
        (Identity, "names b/1, but its certificate c/1", |_, own| own.peer_identity = Some("c/1".parse().unwrap())),
        (SiteClaimed, "this node's own name", |h, _| {
            h.node = Some(link::NodeName { site: "a".into(), node: "1".into() })
        }),
        (Protocol, "hello.node is missing", |h, _| h.node = None),
        (Protocol, "node kind is missing", |h, _| h.kind = 0),
        (Protocol, "grants 999 bytes on lane 2", |h, _| h.credit[1].bytes = 999),
        (Protocol, "hello.start is missing", |h, _| h.start = None),
    ];
    for (reason, part, change) in cases {
        let (found, text) = refusal_of(change);
        assert_eq!(found, reason, "{text}");
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[test]
fn the_version_used_is_the_smaller_of_the_two_greatest() {
    let newer = SessionConfig { versions: 1..=7, ..config("a/1") };
    let mut session = Session::new(newer, NOW);
    let mut peer = Session::new(SessionConfig { versions: 1..=4, ..config("b/1") }, NOW);
    session.handle_bytes(NOW, Channel::Control, take(&mut peer, Channel::Control));
    assert_eq!(session.peer().map(|p| p.version), Some(4));
}

fn batch_frame(number: FetchNumber, batch: &Batch) -> Bytes {
    let mut out = TransmitBuilder::default();
    out.push_batch(number, batch);
    out.finish().unwrap().chunks.concat().into()
}

fn end_frame(number: FetchNumber) -> Bytes {
    let mut out = TransmitBuilder::default();
    out.push_end(link::FetchEnded { number, ..Default::default() });
    out.finish().unwrap().chunks.concat().into()
}

#[test]
fn control_messages_that_break_the_protocol() {
    let fetch = |number| Kind::Fetch((&order(number, &log_name("x"), log_place())).into());
    let cases: Vec<(&str, Vec<Kind>)> = vec![
        ("hello twice", vec![Kind::Hello(link::Hello::default())]),
        ("lowered a lane's credit", vec![Kind::Credit(link::Credit { lane: 1, granted_total: 3 })]),
        ("lane is out of range", vec![Kind::Credit(link::Credit { lane: 9, granted_total: 3 })]),
        ("fetch 3 came after fetch 5", vec![fetch(5), fetch(3)]),
        ("never asked for", vec![Kind::FetchStop(link::FetchStop { number: 4 })]),
        ("never asked for", vec![Kind::FetchMore(link::FetchMore { number: 4, allowance_total: 1 })]),
        ("lowered the allowance", vec![fetch(1), Kind::FetchMore(link::FetchMore { number: 1, allowance_total: 1 })]),
        ("fetch.log is missing", vec![Kind::Fetch(link::Fetch { number: 1, lane: 1, ..Default::default() })]),
        ("more than 64 fetches open", (1..=65).map(fetch).collect()),
    ];
    for (part, messages) in cases {
        let (mut a, _) = up();
        messages.into_iter().for_each(|m| a.handle_bytes(NOW, Channel::Control, control_frame(m)));
        let (_, text) = refusal(&mut a);
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

fn log_place() -> Place {
    Place { incarnation: Incarnation { counter: 1, random: 31 }, offset: 0 }
}

fn three() -> TestLog {
    let mut log = TestLog::new("x");
    (0..6).for_each(|n| drop(log.append(2, 1000, n == 3).clone()));
    log
}

/// The end of a session that fetches `order` and is sent these bytes on its live lane.
fn refusal_on_lane(order: FetchOrder, frames: Vec<Bytes>) -> String {
    let (mut a, _) = up();
    a.start_fetch(order).unwrap();
    frames.into_iter().for_each(|f| a.handle_bytes(NOW, Channel::Lane(Lane::Live), f));
    refusal(&mut a).1
}

#[test]
fn batches_that_break_the_protocol() {
    let log = three();
    let b = &log.batches;
    let whole = || order(1, &log.name, b[0].begin());
    let mut other = TestLog::new("y");
    other.append(2, 10, false);
    let mut twin = TestLog::new("x");
    (0..6).for_each(|n| drop(twin.append(2, 999, n == 3).clone()));
    let damaged = {
        let mut bytes = batch_frame(1, &b[0]).to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        Bytes::from(bytes)
    };
    let cases: Vec<(&str, FetchOrder, Vec<Bytes>)> = vec![
        ("checksum of the body", whole(), vec![damaged]),
        ("which is not open", whole(), vec![batch_frame(2, &b[0])]),
        ("which is not open", whole(), vec![end_frame(2)]),
        ("which is not open", whole(), vec![end_frame(1), batch_frame(1, &b[0])]),
        ("on another lane", FetchOrder { lane: Lane::Backlog, ..whole() }, vec![batch_frame(1, &b[0])]),
        ("which is for x@a#1", whole(), vec![batch_frame(1, &other.batches[0])]),
        ("but began with", whole(), vec![batch_frame(1, &b[1])]),
        ("jumped from", whole(), vec![batch_frame(1, &b[0]), batch_frame(1, &b[2])]),
        ("jumped from", whole(), vec![batch_frame(1, &b[0]), batch_frame(1, &b[0])]),
        ("chain of fetch 1 is broken", whole(), vec![batch_frame(1, &b[0]), batch_frame(1, &twin.batches[1])]),
        ("jumped from", order(1, &log.name, b[1].begin()), vec![batch_frame(1, &b[1]), batch_frame(1, &b[3])]),
        (
            "but began with",
            FetchOrder { line: FetchLine::Incarnation, ..order(1, &log.name, b[2].end()) },
            vec![batch_frame(1, &b[3])],
        ),
        (
            "more than its allowance",
            FetchOrder { passing: true, allowance: 5, ..whole() },
            vec![batch_frame(1, &b[0]), batch_frame(1, &b[1])],
        ),
        ("ran past", FetchOrder { until: Some(2), ..whole() }, vec![batch_frame(1, &b[0]), batch_frame(1, &b[1])]),
    ];
    for (part, order, frames) in cases {
        let text = refusal_on_lane(order, frames);
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[test]
fn more_bytes_than_were_granted() {
    let mut log = TestLog::new("x");
    (0..20).for_each(|_| drop(log.append(2, 1000, false).clone()));
    let frames = log.batches.iter().map(|b| batch_frame(1, b)).collect();
    let text = refusal_on_lane(order(1, &log.name, log.batches[0].begin()), frames);
    assert!(text.contains("10000 were granted"), "{text}");
}

#[test]
fn frames_that_lie_or_stand_in_the_wrong_place() {
    let lie = |len: u32, kind: u8| Bytes::from([&len.to_le_bytes()[..], &[kind]].concat());
    let lane = Channel::Lane(Lane::Live);
    let cases = [
        (Channel::Control, lie(u32::MAX, 1), "claims 4294967295 bytes"),
        (Channel::Control, lie(0, 1), "claims 0 bytes"),
        (Channel::Control, lie(5, 2), "does not belong"),
        (lane, lie(5, 1), "does not belong"),
        (lane, lie(BATCH_MAX as u32 + 12, 2), "claims"),
        (lane, lie(1 << 20, 3), "claims"),
        (lane, lie(1, 2), "no fetch number"),
        (Channel::Control, Bytes::from_static(&[3, 0, 0, 0, 1, 0xff, 0xff]), "cannot be decoded"),
    ];
    for (channel, bytes, part) in cases {
        let (mut a, _) = up();
        a.handle_bytes(NOW, channel, bytes);
        let (reason, text) = refusal(&mut a);
        assert_eq!(reason, link::RefuseReason::Protocol);
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[test]
fn nothing_comes_before_hello() {
    let log = three();
    for (channel, bytes) in [
        (Channel::Control, control_frame(Kind::Probe(link::Probe { number: 1 }))),
        (Channel::Lane(Lane::Live), batch_frame(1, &log.batches[0])),
        (Channel::Lane(Lane::Backlog), end_frame(1)),
    ] {
        let mut session = Session::new(config("a/1"), NOW);
        session.handle_bytes(NOW, channel, bytes);
        assert!(refusal(&mut session).1.contains("before its hello"));
    }
}

#[test]
fn unknown_kinds_of_control_messages_are_skipped_and_counted() {
    // Field 999, of wire type 2, with one byte.
    let (mut a, _) = up();
    a.handle_bytes(NOW, Channel::Control, Bytes::from_static(&[5, 0, 0, 0, 1, 0xba, 0x3e, 1, 7]));
    assert_eq!(closed(&mut a), None);
    assert_eq!(a.skipped(), 1);
}

#[test]
fn a_fetch_runs_on_into_the_next_incarnation_and_its_batches_end_with_a_stop() {
    let log = three();
    let (mut a, _) = up();
    a.start_fetch(order(1, &log.name, log.batches[1].begin())).unwrap();
    for batch in &log.batches[1..5] {
        a.handle_bytes(NOW, Channel::Lane(Lane::Live), batch_frame(1, batch));
    }
    let came = std::iter::from_fn(|| a.poll_event()).filter(|e| matches!(e, Event::Batch { .. })).count();
    assert_eq!(came, 4);
    a.stop_fetch(1).unwrap();
    a.handle_bytes(NOW, Channel::Lane(Lane::Live), batch_frame(1, &log.batches[5]));
    a.handle_bytes(NOW, Channel::Lane(Lane::Live), end_frame(1));
    assert!(std::iter::from_fn(|| a.poll_event()).next().is_none());
    // The dropped batch's credit is back: with it the total grows by exactly that much.
    for batch in &log.batches[1..5] {
        a.release(Lane::Live, batch.len() as u64);
    }
    let total: u64 = CREDIT + log.batches[1..].iter().map(|b| b.len() as u64).sum::<u64>();
    let expected = control_frame(Kind::Credit(link::Credit { lane: 1, granted_total: total }));
    let sent = take(&mut a, Channel::Control);
    assert!(sent.windows(expected.len()).any(|w| w == &expected[..]));
}
