//! Control messages, and a whole session under bytes that nearly are a peer's.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::{
    copies::Hole,
    ids::{LogName, NodeName, Place, Start},
    session::{
        Channel, CloseReason, Event, FetchEnded, FetchLine, FetchOrder, LANES, Lane, NodeKind, ReadOutcome, Session,
        SessionConfig,
    },
    wire::{HeldLog, all, link, link::control::Kind},
};

use super::batches::batches;

/// Takes a step: u8, u16 length, bytes (fewer at the end).
pub(super) fn take_step<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (step, after) = rest.split_first()?;
    let (len, after) = after.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
    let (bytes, after) = after.split_at_checked(len)?;
    *rest = after;
    Some((*step, bytes))
}

/// Decodes a control message and converts what has checked types.
pub(super) fn control(input: &[u8]) {
    let Some(kind) = link::Control::decode(input).ok().and_then(|c| c.kind) else { return };
    match kind {
        Kind::Fetch(fetch) => {
            if let Ok(order) = FetchOrder::try_from(fetch) {
                let again = FetchOrder::try_from(link::Fetch::from(&order));
                assert_eq!(again, Ok(order));
            }
        }
        Kind::Announce(announce) => {
            let _ = announce.log.map(LogName::try_from);
            let _ = all::<_, Place, Vec<_>>(announce.tips);
        }
        Kind::Carried(carried) => {
            if let Ok(body) = link::CarriedBody::decode(carried.body) {
                control_carried(body);
            }
        }
        _ => {}
    }
}

fn control_carried(body: link::CarriedBody) {
    use link::carried_body::Kind as Said;
    let _ = body.author.map(NodeName::try_from);
    match body.kind {
        Some(Said::Held(held)) => {
            let Ok(read) = all::<_, HeldLog, Vec<_>>(held.logs) else { return };
            let again = all::<_, HeldLog, Vec<_>>(read.iter().cloned().map(link::HeldLog::from));
            assert_eq!(again.as_ref(), Ok(&read));
        }
        Some(Said::Question(question)) => {
            let holes = question.known.into_iter().flat_map(|k| k.holes);
            let _ = all::<_, Hole, Vec<_>>(holes);
        }
        _ => {}
    }
}

fn place(offset: u64) -> link::Place {
    link::Place { incarnation: Some(link::Incarnation { counter: 1, random: 99 }), offset }
}

fn log() -> Option<link::LogName> {
    Some(link::LogName { topic: "orders".into(), origin: "a".into(), queue: 1 })
}

fn start() -> Option<link::Start> {
    Some(link::Start { time_us: 1_700_000_000_000_000, random: 4 })
}

fn node(site: &str) -> Option<link::NodeName> {
    Some(link::NodeName { site: site.into(), node: "1".into() })
}

/// One message of each kind that replication reads.
#[allow(clippy::too_many_lines, reason = "a list of one example a kind")]
fn messages() -> Vec<Kind> {
    let announce = || link::Announce {
        log: log(),
        begin: Some(place(0)),
        tips: vec![place(36)],
        incarnations: vec![link::IncarnationEdge {
            incarnation: place(0).incarnation,
            previous: None,
            begin: 0,
            end: 36,
            jumped: false,
        }],
        facts: Bytes::new(),
    };
    let held = || link::HeldLog {
        log: log(),
        below: Some(place(12)),
        chain: vec![3; 16].into(),
        holes: vec![link::Hole { incarnation: place(0).incarnation, from: 3, to: 5, kind: 1 }],
        fork_tips: vec![place(40)],
        from: Some(place(0)),
        jumps: vec![link::Jump { incarnation: place(0).incarnation, begin: 2, from: Some(place(1)) }],
        refused: String::new(),
        untaken: true,
    };
    let record = link::RecordBody {
        node: node("a"),
        kind: 1,
        start: start(),
        since: None,
        stands_back: true,
        counts: false,
        sequence: 3,
        neighbours: vec![link::Neighbour { node: node("b"), cost: 1 }],
        no_transit: false,
        body_versions: vec![1],
        features: vec![],
    };
    let fetch = link::Fetch { number: 1, lane: 1, log: log(), from: Some(place(0)), ..Default::default() };
    let (origin, sequence): (String, u64) = ("b".into(), 9);
    let (hops, number) = (5, 7);
    let mut all = vec![
        Kind::Record(link::Record { body: record.encode_to_vec().into(), age_ms: 10 }),
        Kind::RecordDigest(link::RecordDigest {
            heads: vec![link::RecordHead { node: node("a"), start: start(), sequence }],
        }),
        Kind::Announce(announce()),
        Kind::AnnounceEnd(link::AnnounceEnd { key: 1, origin: "a".into() }),
        Kind::WantPut(link::WantPut { key: 3, origin: origin.clone(), pattern: "orders/#".into() }),
        Kind::WantDrop(link::WantDrop { key: 3 }),
        Kind::Fetch(fetch.clone()),
        Kind::Fetch(link::Fetch { number: 2, passing: true, allowance: 99, hops, until: 20, no_wait: true, ..fetch }),
        Kind::Resolve(link::Resolve { number, log: log(), time_us: 5, hops }),
        Kind::Resolved(link::Resolved { number, place: Some(place(4)), outcome: 1 }),
        Kind::Unannounce(link::Unannounce { log: log() }),
    ];
    all.extend(carried(held(), announce()));
    all
}

/// What is carried over nodes between.
fn carried(held: link::HeldLog, announce: link::Announce) -> Vec<Kind> {
    use link::carried_body::{Kind as Said, To};
    let (to_a, to_b) = (To::Site("a".into()), To::Site("b".into()));
    let back = To::Back(link::Back { node: node("b"), start: start(), number: 9 });
    let marked = link::MarkedLog { log: log(), end: Some(place(50)), bytes_total: 9, messages_total: 50 };
    let said = [
        ("a", to_b.clone(), Said::Held(link::Held { sequence: 9, logs: vec![held.clone()] })),
        (
            "b",
            to_a.clone(),
            Said::HeldSeen(link::HeldSeen {
                start: start(),
                sequences: vec![9],
                compared: vec![link::Compared { log: log(), at: Some(place(5)), differs: true }],
            }),
        ),
        (
            "a",
            to_b.clone(),
            Said::Register(link::Register { sequence: 9, patterns: vec!["t".into()], withdraw: false }),
        ),
        ("b", to_a, Said::Registered(link::Registered { start: start(), sequence: 9, refused: String::new() })),
        ("a", To::Wanting("a".into()), Said::Mark(link::Mark { sequence: 9, time_us: 1 << 50, logs: vec![marked] })),
        (
            "a",
            To::All(9),
            Said::Question(link::Question { origin: "b".into(), known: vec![held], patterns: vec!["#".into()] }),
        ),
        ("c", back, Said::Answer(link::Answer { logs: vec![announce], more: false })),
        ("a", To::All(10), Said::Find(link::Find { log: log(), place: Some(place(5)) })),
        (
            "c",
            To::Back(link::Back { node: node("b"), start: start(), number: 10 }),
            Said::Found(link::Found {
                state: link::FoundState::Lagging.into(),
                lag_messages: 7,
                text: "behind".into(),
                way: node("a").into_iter().collect(),
            }),
        ),
        ("a", to_b, Said::TraceProbe(link::TraceProbe { number: 7 })),
        (
            "a",
            To::Node(node("b").unwrap_or_default()),
            Said::TraceReply(link::TraceReply { number: 7, way: vec![], failed: String::new() }),
        ),
    ];
    let carry = |(author, to, kind): (&str, To, Said)| {
        let body = link::CarriedBody {
            author: node(author),
            start: start(),
            to: Some(to),
            note_way: matches!(kind, Said::TraceProbe(_)),
            kind: Some(kind),
        };
        Kind::Carried(link::Carried { body: body.encode_to_vec().into(), hops: 5, way: vec![] })
    };
    said.into_iter().map(carry).collect()
}

pub(super) fn controls() -> Vec<Vec<u8>> {
    messages().into_iter().map(|kind| link::Control { kind: Some(kind) }.encode_to_vec()).collect()
}

fn new_session(name: &str, now: Duration) -> Option<Session> {
    let config = SessionConfig {
        federation: "test".to_owned(),
        node: name.parse().ok()?,
        kind: NodeKind::Edge,
        start: Start { time_us: 1, random: 2 },
        versions: 1..=1,
        batch_bytes_max: 16 * 1024,
        lane_credit: LANES.map(|lane| (lane, 32 * 1024)),
        control_queue_bytes_max: 1 << 20,
        probe_interval: Duration::from_secs(1),
        dead_after: Duration::from_secs(10),
        software: "fuzz".to_owned(),
        fetches_max: 16,
        peer_identity: None,
    };
    Some(Session::new(config, now))
}

fn fetch_order(number: u64) -> Option<FetchOrder> {
    let batch = batches().into_iter().next()?;
    Some(FetchOrder {
        number,
        lane: if number.is_multiple_of(2) { Lane::Backlog } else { Lane::Live },
        log: batch.header().log.clone(),
        from: batch.begin(),
        line: FetchLine::Main,
        passing: number.is_multiple_of(3),
        hops: 4,
        allowance: 1000,
        until: None,
        no_wait: false,
        towards: None,
    })
}

const CHANNELS: [Channel; 3] = [Channel::Control, Channel::Lane(Lane::Live), Channel::Lane(Lane::Backlog)];

/// What the shell does with the session's events; answers the first of our fetches that goes on.
fn answer(session: &mut Session, credits: &mut Vec<(Lane, u64)>, ended: &mut bool) {
    while let Some(event) = session.poll_event() {
        assert!(!*ended, "after the end came {event:?}");
        match event {
            Event::FetchRequested(order) => session.serve(order.number),
            Event::Read { number, from, .. } => {
                let mut batches = batches();
                batches.retain(|b| b.end_offset() > from.offset);
                let outcome = match batches.last().map(|b| b.end()) {
                    Some(next) if from.offset < 1000 => ReadOutcome::Batches(batches, next),
                    Some(_) => ReadOutcome::Outside,
                    None => ReadOutcome::AtEnd(from),
                };
                session.handle_read(number, outcome);
            }
            Event::Batch { lane, credit, .. } => credits.push((lane, credit)),
            Event::Closed(_) => *ended = true,
            _ => {}
        }
    }
}

/// A sequence of steps: bytes of the three channels (0 to 2), a one-way message (3), time (4), output (5), credit
/// back (6), and what this side does (7).
pub(super) fn session(input: &[u8]) {
    let mut now = Duration::from_secs(10);
    let Some(mut session) = new_session("b/1", now) else { return };
    let (mut credits, mut ended, mut number) = (Vec::new(), false, 0);
    let mut rest = input;
    while let Some((step, bytes)) = take_step(&mut rest) {
        let first = bytes.first().copied().unwrap_or_default();
        match step % 8 {
            channel @ 0..=2 => {
                let Some(channel) = CHANNELS.get(usize::from(channel)) else { return };
                session.handle_bytes(now, *channel, Bytes::copy_from_slice(bytes));
            }
            3 => session.handle_one_way(now, Bytes::copy_from_slice(bytes)),
            4 => {
                now += Duration::from_millis(u64::from(first) * 10);
                session.handle_timeout(now);
            }
            5 => CHANNELS.iter().for_each(|channel| while session.poll_transmit(now, *channel).is_some() {}),
            6 => credits.drain(..).for_each(|(lane, credit)| session.release(lane, credit)),
            _ => act(&mut session, first, &mut number),
        }
        answer(&mut session, &mut credits, &mut ended);
        for lane in LANES {
            let held: u64 = credits.iter().filter(|c| c.0 == lane).map(|c| c.1).sum();
            assert!(held <= 32 * 1024, "{held} bytes of batches are held, more than were granted");
        }
    }
}

fn act(session: &mut Session, what: u8, number: &mut u64) {
    let other = u64::from(what >> 3);
    let _ = match what % 8 {
        0..=3 => {
            *number += 1;
            fetch_order(*number).map_or(Ok(()), |order| session.start_fetch(order))
        }
        4 => session.stop_fetch(other),
        5 => session.raise_allowance(other, 1 << 20),
        6 => {
            for batch in batches() {
                let _ = session.push_passed(other, batch);
            }
            session.end_served(FetchEnded {
                number: other,
                end: link::FetchEnd::NotHere,
                at: None,
                answered_by: "b".into(),
                text: String::new(),
            });
            Ok(())
        }
        _ if what > 250 => {
            session.close(CloseReason::Goodbye("done".into()));
            Ok(())
        }
        _ => Ok(()),
    };
}

fn record(steps: &mut Vec<u8>, step: u8, bytes: &[u8]) {
    for part in bytes.chunks(60_000) {
        steps.push(step);
        steps.extend_from_slice(&(part.len() as u16).to_le_bytes());
        steps.extend_from_slice(part);
    }
}

/// Two honest sessions; what the second one gets is recorded as steps.
fn honest(chunk: usize, act_with: &[u8]) -> Option<Vec<u8>> {
    let now = Duration::from_secs(10);
    let (mut a, mut b) = (new_session("a/1", now)?, new_session("b/1", now)?);
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    let (mut ended, mut number, mut steps) = (false, 0, Vec::new());
    a.start_fetch(fetch_order(1)?).ok()?;
    messages().into_iter().filter(|m| !matches!(m, Kind::Fetch(_))).try_for_each(|m| a.send(m)).ok()?;
    for round in 0..6 {
        if let Some(what) = act_with.get(round) {
            record(&mut steps, 7, &[*what]);
            act(&mut b, *what, &mut number);
        }
        for (index, channel) in CHANNELS.into_iter().enumerate() {
            while let Some(out) = a.poll_transmit(now, channel) {
                for part in out.chunks.concat().chunks(chunk) {
                    record(&mut steps, index as u8, part);
                    b.handle_bytes(now, channel, Bytes::copy_from_slice(part));
                }
            }
            answer(&mut b, &mut of_b, &mut ended);
            record(&mut steps, 5, &[0]);
            for channel in CHANNELS {
                while let Some(out) = b.poll_transmit(now, channel) {
                    a.handle_bytes(now, channel, out.chunks.concat().into());
                }
            }
            answer(&mut a, &mut of_a, &mut ended);
        }
        record(&mut steps, 6, &[0]);
        of_b.drain(..).for_each(|(lane, credit)| b.release(lane, credit));
        of_a.drain(..).for_each(|(lane, credit)| a.release(lane, credit));
    }
    assert!(!ended, "two honest sessions refused each other");
    Some(steps)
}

pub(super) fn sessions() -> Vec<Vec<u8>> {
    let body = link::OneWayBody { origin: "a".into(), start: start(), path: "orders".into(), ..Default::default() };
    let one_way = link::OneWay { body: body.encode_to_vec().into(), hops: 5 };
    let mut with_one_way = honest(1000, &[0]).unwrap_or_default();
    record(&mut with_one_way, 3, &one_way.encode_to_vec());
    let walks: [&[u8]; 4] = [&[0, 0, 4 | 1 << 3], &[0, 1, 2, 5 | 3 << 3], &[], &[0, 0, 0, 6 | 1 << 3]];
    let walks = walks.into_iter().zip([60_000, 100, 7, 2000]).filter_map(|(acts, chunk)| honest(chunk, acts));
    walks.chain([with_one_way]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_of_honest_sessions_that_move_batches() {
        let recorded = sessions();
        assert_eq!(recorded.len(), 5);
        let batch = batches().into_iter().next().unwrap();
        let moved = recorded.iter().filter(|r| r.windows(batch.head().len()).any(|w| w == &batch.head()[..]));
        assert!(moved.count() >= 2, "batches appear in too few recordings");
        for input in recorded {
            session(&input);
        }
    }

    #[test]
    fn every_control_message_is_read_back() {
        for (kind, bytes) in messages().into_iter().zip(controls()) {
            assert_eq!(link::Control::decode(&bytes[..]).unwrap().kind, Some(kind));
        }
    }
}
