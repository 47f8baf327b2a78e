//! Whose batch goes next, probes, and the end in peace.

use super::*;

fn request(a: &mut Session, b: &mut Session, order: FetchOrder) {
    a.start_fetch(order).unwrap();
    b.handle_bytes(NOW, Channel::Control, take(a, Channel::Control));
}

fn serve_all(session: &mut Session, logs: &[&TestLog]) {
    while let Some(event) = session.poll_event() {
        match event {
            Event::FetchRequested(order) => session.serve(order.number),
            Event::Read { number, log, from, bytes_max, .. } => {
                let log = logs.iter().find(|l| l.name == log).unwrap();
                session.handle_read(number, log.read(from, bytes_max));
            }
            _ => {}
        }
    }
}

fn bytes_by_fetch(session: &mut Session) -> [u64; 3] {
    let mut bytes = [0; 3];
    while let Some(event) = session.poll_event() {
        if let Event::Batch { number, credit, .. } = event {
            bytes[number as usize] += credit;
        }
    }
    bytes
}

#[test]
fn a_log_of_small_batches_gets_as_many_bytes_as_one_of_large() {
    let big_credit = |node| SessionConfig {
        batch_bytes_max: 200_000,
        lane_credit: [(Lane::Live, 2_000_000), (Lane::Backlog, 2_000_000)],
        ..config(node)
    };
    let (mut a, mut b) = (Session::new(big_credit("a/1"), NOW), Session::new(big_credit("b/1"), NOW));
    b.handle_bytes(NOW, Channel::Control, take(&mut a, Channel::Control));
    a.handle_bytes(NOW, Channel::Control, take(&mut b, Channel::Control));
    let (mut small, mut large) = (TestLog::new("small"), TestLog::new("large"));
    (0..8000).for_each(|_| drop(small.append(1, 300, false).clone()));
    (0..40).for_each(|_| drop(large.append(1, 150_000, false).clone()));
    request(&mut a, &mut b, order(1, &large.name, large.batches[0].begin()));
    request(&mut a, &mut b, order(2, &small.name, small.batches[0].begin()));
    for _ in 0..200 {
        serve_all(&mut b, &[&small, &large]);
        if let Some(out) = b.poll_transmit(NOW, Channel::Lane(Lane::Live)) {
            out.chunks.into_iter().for_each(|c| a.handle_bytes(NOW, Channel::Lane(Lane::Live), c));
        }
    }
    let [_, large, small] = bytes_by_fetch(&mut a);
    assert!(large + small > 1_700_000, "{large} + {small} bytes of 2,000,000 that were granted");
    assert!(large.abs_diff(small) < 350_000, "{large} bytes of large batches and {small} of small ones");
}

#[test]
fn a_lane_without_credit_waits_and_goes_on() {
    let (mut a, mut b) = up();
    let mut log = TestLog::new("x");
    (0..20).for_each(|_| drop(log.append(1, 3000, false).clone()));
    request(&mut a, &mut b, order(1, &log.name, log.batches[0].begin()));
    let mut received = 0;
    for _ in 0..20 {
        serve_all(&mut b, &[&log]);
        a.handle_bytes(NOW, Channel::Lane(Lane::Live), take(&mut b, Channel::Lane(Lane::Live)));
        let mut came = Vec::new();
        while let Some(event) = a.poll_event() {
            if let Event::Batch { lane, credit, .. } = event {
                came.push((lane, credit));
            }
        }
        received += came.len();
        assert!(came.len() <= 3, "three of these batches fit the credit");
        came.into_iter().for_each(|(lane, credit)| a.release(lane, credit));
        b.handle_bytes(NOW, Channel::Control, take(&mut a, Channel::Control));
    }
    assert_eq!(received, 20);
}

#[test]
fn a_passing_fetch_runs_over_its_allowance_by_less_than_one_batch() {
    let (mut a, mut b) = up();
    let mut log = TestLog::new("x");
    (0..5).for_each(|_| drop(log.append(1, 1000, false).clone()));
    let len = log.batches[0].len() as u64;
    let from = log.batches[0].begin();
    request(&mut a, &mut b, FetchOrder { passing: true, allowance: 0, ..order(1, &log.name, from) });
    let mut total = 0;
    for (allowance, batches) in [(0, 0), (1, 1), (len, 0), (len + 1, 1), (10 * len, 3)] {
        a.raise_allowance(1, allowance).unwrap();
        b.handle_bytes(NOW, Channel::Control, take(&mut a, Channel::Control));
        serve_all(&mut b, &[&log]);
        a.handle_bytes(NOW, Channel::Lane(Lane::Live), take(&mut b, Channel::Lane(Lane::Live)));
        let came = bytes_by_fetch(&mut a)[1];
        assert!(came.abs_diff(batches * len) < 50, "with an allowance of {allowance}, {came} bytes came");
        total += batches;
    }
    assert_eq!(total, 5);
}

/// What is read for passing fetches that are given no more must not take the room of the others: no more is read than they may send.
#[test]
fn fetches_that_may_not_go_on_do_not_stop_the_others() {
    const ALLOWANCE: u64 = 300_000;
    let wide = |node| SessionConfig {
        batch_bytes_max: 2000,
        lane_credit: [(Lane::Live, 40_000), (Lane::Backlog, 40_000)],
        ..config(node)
    };
    let (mut a, mut b) = (Session::new(wide("a/1"), NOW), Session::new(wide("b/1"), NOW));
    b.handle_bytes(NOW, Channel::Control, take(&mut a, Channel::Control));
    a.handle_bytes(NOW, Channel::Control, take(&mut b, Channel::Control));
    let mut log = TestLog::new("x");
    (0..600).for_each(|_| drop(log.append(1, 1000, false).clone()));
    let (from, len) = (log.batches[0].begin(), log.batches[0].len() as u64);
    let (mut came, mut read) = ([0; 42], [0; 42]);
    // A few at a time, and as much as the credit holds, so that each is read for again while a part of it still waits.
    let numbers: Vec<FetchNumber> = (1..=41).collect();
    for few in numbers.chunks(4) {
        for number in few {
            let passing = *number < 41;
            request(&mut a, &mut b, FetchOrder { passing, allowance: ALLOWANCE, ..order(*number, &log.name, from) });
        }
        for _ in 0..100 {
            while let Some(event) = b.poll_event() {
                match event {
                    Event::FetchRequested(order) => b.serve(order.number),
                    Event::Read { number, from, bytes_max, .. } => {
                        let found = log.read(from, bytes_max);
                        if let ReadOutcome::Batches(batches, _) = &found {
                            read[number as usize] += batches.iter().map(|b| b.len() as u64).sum::<u64>();
                        }
                        b.handle_read(number, found);
                    }
                    _ => {}
                }
            }
            a.handle_bytes(NOW, Channel::Lane(Lane::Live), take(&mut b, Channel::Lane(Lane::Live)));
            while let Some(event) = a.poll_event() {
                if let Event::Batch { number, lane, credit, .. } = event {
                    came[number as usize] += 1;
                    a.release(lane, credit);
                }
            }
            b.handle_bytes(NOW, Channel::Control, take(&mut a, Channel::Control));
        }
    }
    assert_eq!(came[41], 600, "{came:?}");
    assert!(came[1..41].iter().all(|n| *n as u64 * len >= ALLOWANCE), "{came:?}");
    assert!(read[1..41].iter().all(|bytes| *bytes < ALLOWANCE + len), "{read:?}");
}

#[test]
fn what_is_fed_is_counted_from_the_first_batch_fed() {
    let (mut a, mut b) = up();
    let mut log = TestLog::new("x");
    (0..4).for_each(|_| drop(log.append(2, 1000, false).clone()));
    request(&mut a, &mut b, order(1, &log.name, log.batches[0].begin()));
    b.serve(1);
    while let Some(event) = b.poll_event() {
        if let Event::Read { number, from, .. } = event {
            let next = log.batches[1].begin();
            let first = ReadOutcome::Batches(vec![log.batches[0].clone()], next);
            b.handle_read(number, if from == next { ReadOutcome::Outside } else { first });
        }
    }
    let room = b.served_at(1).unwrap().room;
    assert!(b.push_passed(1, log.batches[1].clone()));
    assert_eq!(b.poll_fed_gone(), None, "it waits here");
    let at = b.served_at(1).unwrap();
    assert_eq!((at.next, at.passed), (log.batches[2].begin(), 0));
    assert_eq!(room - at.room, log.batches[1].len() as u64);
    take(&mut b, Channel::Lane(Lane::Live));
    assert_eq!(b.served_at(1).unwrap().passed, log.batches[1].len() as u64);
    assert_eq!(b.poll_fed_gone(), Some((1, log.batches[1].len() as u64)));
    assert!(!b.push_passed(1, log.batches[1].clone()), "it was sent already");
    // A gap in what is read through ends the fetch rather than reach the peer.
    assert!(!b.push_passed(1, log.batches[3].clone()));
    assert!(b.served_at(1).is_none());
    let over = std::iter::from_fn(|| b.poll_event()).any(|e| matches!(e, Event::ServedOver(1)));
    assert!(over);
}

#[test]
fn a_link_tells_why_it_is_not_live() {
    let (mut a, mut b) = up();
    let second = Duration::from_secs(1);
    let exchange = |a: &mut Session, b: &mut Session, now| {
        for _ in 0..2 {
            b.handle_bytes(now, Channel::Control, take(a, Channel::Control));
            a.handle_bytes(now, Channel::Control, take(b, Channel::Control));
        }
    };
    exchange(&mut a, &mut b, NOW);
    let judged = |session: &mut Session, now: Duration| {
        let judged = session.vitals(now).judge(now);
        (judged.standing != vitals::Standing::Live).then_some((judged.standing, judged.reason))
    };
    assert_eq!(judged(&mut a, NOW + 5 * second), None, "every probe was answered");
    a.handle_timeout(NOW + second);
    assert_eq!(judged(&mut a, NOW + 3 * second), None);
    let (_, late) = judged(&mut a, NOW + 3 * second + Duration::from_millis(1)).unwrap();
    assert!(late.contains("nothing was heard"), "{late}");
    exchange(&mut a, &mut b, NOW + 4 * second);
    assert_eq!(judged(&mut a, NOW + 5 * second), None);
    // What is due does not move: the peer has no room.
    let now = NOW + 5 * second;
    let mut log = TestLog::new("x");
    (0..5).for_each(|_| drop(log.append(1, 3000, false).clone()));
    request(&mut a, &mut b, order(1, &log.name, log.batches[0].begin()));
    serve_all(&mut b, &[&log]);
    while let Some(out) = b.poll_transmit(now, Channel::Lane(Lane::Live)) {
        out.chunks.into_iter().for_each(|c| a.handle_bytes(now, Channel::Lane(Lane::Live), c));
    }
    exchange(&mut a, &mut b, now);
    assert_eq!(judged(&mut b, now + second), None);
    let (standing, blocked) = judged(&mut b, now + 10 * second).unwrap();
    assert!(standing == vitals::Standing::Stalled && blocked.contains("granted no room"), "{blocked}");
    // The peer says itself why, once and only while it lasts.
    a.say_condition(NOW, "its disk is nearly full");
    a.say_condition(NOW, "its disk is nearly full");
    exchange(&mut a, &mut b, now);
    let (_, told) = judged(&mut b, now + second).unwrap();
    assert!(told.starts_with("the peer stores nothing that comes: its disk is nearly full"), "{told}");
    a.say_condition(NOW, "");
    exchange(&mut a, &mut b, now);
    assert_eq!(judged(&mut b, now + second), None);
}

#[test]
fn probes_measure_the_round_trip_and_notice_silence() {
    let (mut a, mut b) = up();
    let later = NOW + Duration::from_millis(1500);
    let dead = a.poll_timeout().unwrap();
    assert!(dead <= NOW + Duration::from_secs(1));
    a.handle_timeout(later);
    b.handle_bytes(later, Channel::Control, take(&mut a, Channel::Control));
    a.handle_bytes(later + Duration::from_millis(20), Channel::Control, take(&mut b, Channel::Control));
    let took = std::iter::from_fn(|| a.poll_event()).find_map(|e| match e {
        Event::RoundTrip(took) if took < Duration::from_secs(1) => Some(took),
        _ => None,
    });
    assert_eq!(took, Some(Duration::from_millis(20)));
    a.handle_timeout(later + Duration::from_secs(11));
    assert!(matches!(closed(&mut a), Some(CloseReason::Dead(_))));
    assert_eq!(a.poll_timeout(), None);
}

#[test]
fn a_peer_that_never_says_hello_is_given_up() {
    let mut a = Session::new(config("a/1"), NOW);
    let at = a.poll_timeout().unwrap();
    assert_eq!(at, NOW + Duration::from_secs(10));
    a.handle_timeout(at);
    assert!(matches!(closed(&mut a), Some(CloseReason::Dead(_))));
}

#[test]
fn goodbye_goes_after_what_is_queued() {
    let (mut a, mut b) = up();
    a.send(link::control::Kind::WantDrop(link::WantDrop { key: 9 })).unwrap();
    a.close(CloseReason::Goodbye("drained".into()));
    b.handle_bytes(NOW, Channel::Control, take(&mut a, Channel::Control));
    let events: Vec<_> = std::iter::from_fn(|| b.poll_event()).collect();
    let want = events.iter().position(|e| matches!(e, Event::Control(_))).unwrap();
    let end = events.iter().position(|e| matches!(e, Event::Closed(CloseReason::Goodbye(t)) if t == "drained"));
    assert!(end.unwrap() > want);
    assert!(b.poll_transmit(NOW, Channel::Control).is_none());
}

#[test]
fn one_way_messages_pass_once_up_and_are_counted_when_dropped() {
    use prost::Message as _;
    let message = link::OneWay { body: vec![4; 9].into(), hops: 4 };
    let bytes = Bytes::from(message.encode_to_vec());
    let mut early = Session::new(config("a/1"), NOW);
    early.handle_one_way(NOW, bytes.clone());
    assert_eq!(early.one_way_dropped(), 1);
    let (mut a, _) = up();
    a.handle_one_way(NOW, bytes);
    a.handle_one_way(NOW, Bytes::from_static(&[0xff]));
    a.handle_one_way(NOW, vec![0; BATCH_MAX + 1].into());
    let found = std::iter::from_fn(|| a.poll_event()).find_map(|e| match e {
        Event::OneWay(found) => Some(*found),
        _ => None,
    });
    assert_eq!(found, Some(message));
    assert_eq!(a.one_way_dropped(), 2);
}

#[test]
fn a_peer_that_does_not_read_its_control_channel_is_cut_off() {
    let (mut a, _) = up();
    let big = link::control::Kind::Record(link::Record { body: vec![0; 100_000].into(), ..Default::default() });
    let sent = (0..20).take_while(|_| a.send(big.clone()).is_ok()).count();
    assert_eq!(sent, 10);
    assert!(matches!(closed(&mut a), Some(CloseReason::Refused { reason: link::RefuseReason::Overloaded, .. })));
    let last = a.poll_transmit(NOW, Channel::Control).unwrap();
    assert!(last.chunks.iter().map(Bytes::len).sum::<usize>() < 200, "only the refusal goes out");
}

#[test]
fn a_backlog_that_live_traffic_goes_before_is_behind_and_not_stalled() {
    let (mut a, mut b) = up();
    let (mut live, mut backlog) = (TestLog::new("live"), TestLog::new("backlog"));
    for log in [&mut live, &mut backlog] {
        (0..150).for_each(|_| drop(log.append(1, 3000, false).clone()));
    }
    request(&mut a, &mut b, order(1, &live.name, live.batches[0].begin()));
    let behind = FetchOrder { lane: Lane::Backlog, ..order(2, &backlog.name, backlog.batches[0].begin()) };
    request(&mut a, &mut b, behind);
    let step = Duration::from_millis(200);
    let mut now = NOW;
    let mut found = Vec::new();
    for _ in 0..30 {
        now += step;
        serve_all(&mut b, &[&live, &backlog]);
        a.handle_bytes(now, Channel::Lane(Lane::Live), take(&mut b, Channel::Lane(Lane::Live)));
        while let Some(event) = a.poll_event() {
            if let Event::Batch { lane, credit, .. } = event {
                assert_eq!(lane, Lane::Live);
                a.release(lane, credit);
            }
        }
        b.handle_bytes(now, Channel::Control, take(&mut a, Channel::Control));
        let judged = b.vitals(now).judge(now);
        assert_ne!(judged.standing, vitals::Standing::Stalled, "{}", judged.reason);
        found.push((judged.standing, judged.reason));
    }
    let (standing, reason) = found.pop().unwrap();
    assert!(standing == vitals::Standing::CatchingUp && reason.starts_with("live traffic goes first"), "{reason}");
    // Once no lane moves, the line is at fault.
    for _ in 0..30 {
        now += step;
        drop(b.vitals(now));
    }
    let judged = b.vitals(now).judge(now);
    assert!(judged.standing == vitals::Standing::Stalled && judged.reason.contains("no batches"), "{}", judged.reason);
}
