//! Sessions joined back to back in memory, honest and not.

mod faults;
mod paced;
mod pair;
mod turns;

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::{
    envelope::{Chain, Codec, Placement, SealedBody, Tags, hash},
    ids::{Incarnation, Queue},
};

const BATCH_MAX: usize = 4096;
const CREDIT: u64 = 10_000;
const NOW: Duration = Duration::from_secs(100);

fn config(node: &str) -> SessionConfig {
    SessionConfig {
        federation: "test".to_owned(),
        node: node.parse().unwrap(),
        kind: NodeKind::Edge,
        start: Start { time_us: 1, random: 2 },
        versions: 1..=1,
        batch_bytes_max: BATCH_MAX,
        lane_credit: [(Lane::Live, CREDIT), (Lane::Backlog, CREDIT)],
        control_queue_bytes_max: 1 << 20,
        probe_interval: Duration::from_secs(1),
        dead_after: Duration::from_secs(10),
        software: "test 1".to_owned(),
        fetches_max: 64,
        peer_identity: None,
    }
}

fn log_name(topic: &str) -> LogName {
    LogName { topic: topic.parse().unwrap(), origin: "a".parse().unwrap(), queue: Queue(1) }
}

/// A log as its origin makes it: batches of any size, a new incarnation now and then.
#[derive(Debug)]
struct TestLog {
    name: LogName,
    batches: Vec<Batch>,
}

impl TestLog {
    fn new(topic: &str) -> Self {
        Self { name: log_name(topic), batches: Vec::new() }
    }

    fn append(&mut self, count: u32, body_bytes: usize, new_incarnation: bool) -> &Batch {
        let last = self.batches.last();
        let first = new_incarnation || last.is_none();
        let end = last.map(Batch::end);
        let counter = end.map_or(0, |p| p.incarnation.counter) + u64::from(first);
        let begin =
            Place { incarnation: Incarnation { counter, random: counter * 31 }, offset: end.map_or(0, |p| p.offset) };
        let placement = Placement {
            log: &self.name,
            begin,
            first_of_incarnation: first,
            previous: end.filter(|_| first),
            origin_time_us: 7,
            chain_before: last.map_or(Chain::default(), Batch::chain_after),
        };
        let bytes = Bytes::from(vec![counter as u8; body_bytes]);
        let body = SealedBody { hash: hash(&bytes), bytes, codec: Codec::None, version: 1, count, tags: Tags::Any };
        self.batches.push(Batch::seal(&placement, body).unwrap());
        self.batches.last().unwrap()
    }

    fn end(&self) -> Place {
        self.batches.last().unwrap().end()
    }

    /// Index of the batch that holds `place`, or of the one after it.
    fn index(&self, place: Place) -> Option<usize> {
        self.batches.iter().position(|b| b.begin().offset <= place.offset && place.offset < b.end_offset())
    }

    fn read(&self, from: Place, bytes_max: usize) -> ReadOutcome {
        let Some(index) = self.index(from) else { return ReadOutcome::AtEnd(self.end()) };
        let mut bytes = 0;
        let fits = |b: &&Batch| {
            let first = bytes == 0;
            bytes += b.len();
            first || bytes <= bytes_max
        };
        let batches: Vec<_> = self.batches[index..].iter().take_while(fits).cloned().collect();
        let next = batches.last().unwrap().end();
        ReadOutcome::Batches(batches, next)
    }
}

fn order(number: FetchNumber, log: &LogName, from: Place) -> FetchOrder {
    FetchOrder {
        number,
        lane: Lane::Live,
        log: log.clone(),
        from,
        line: FetchLine::Main,
        passing: false,
        hops: 0,
        allowance: 0,
        until: None,
        no_wait: false,
        towards: None,
    }
}

fn take(session: &mut Session, channel: Channel) -> Bytes {
    let mut bytes = Vec::new();
    while let Some(transmit) = session.poll_transmit(NOW, channel) {
        transmit.chunks.iter().for_each(|c| bytes.extend_from_slice(c));
    }
    bytes.into()
}

/// Two sessions that have said hello.
fn up() -> (Session, Session) {
    let (mut a, mut b) = (Session::new(config("a/1"), NOW), Session::new(config("b/1"), NOW));
    b.handle_bytes(NOW, Channel::Control, take(&mut a, Channel::Control));
    a.handle_bytes(NOW, Channel::Control, take(&mut b, Channel::Control));
    assert!(matches!(a.poll_event(), Some(Event::Up(_))));
    assert!(matches!(b.poll_event(), Some(Event::Up(_))));
    (a, b)
}

fn closed(session: &mut Session) -> Option<CloseReason> {
    while let Some(event) = session.poll_event() {
        if let Event::Closed(reason) = event {
            return Some(reason);
        }
    }
    None
}
