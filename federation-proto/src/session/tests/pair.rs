//! Random walks of two honest sessions: bytes cut anywhere, credit returned whenever, fetches begun, stopped and fed.

use std::collections::BTreeMap;

use bytes::BytesMut;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

const CHANNELS: [Channel; 3] = [Channel::Control, Channel::Lane(Lane::Live), Channel::Lane(Lane::Backlog)];

#[derive(Debug)]
struct Fetch {
    order: FetchOrder,
    allowance: u64,
    received: Vec<Place>,
    next: Option<usize>,
    stopped: bool,
    ended: Option<link::FetchEnd>,
}

struct Side {
    session: Session,
    pipes: [BytesMut; 3],
    fetches: BTreeMap<FetchNumber, Fetch>,
    credits: Vec<(Lane, u64)>,
    reads: Vec<(FetchNumber, LogName, Place, usize)>,
    served: BTreeMap<FetchNumber, FetchOrder>,
    /// Fetches of the peer that the core feeds, and the next batch of each.
    fed: BTreeMap<FetchNumber, (LogName, usize)>,
    up: bool,
    closed: Option<CloseReason>,
}

impl Side {
    fn new(node: &str) -> Self {
        Self {
            session: Session::new(config(node), NOW),
            pipes: Default::default(),
            fetches: BTreeMap::new(),
            credits: Vec::new(),
            reads: Vec::new(),
            served: BTreeMap::new(),
            fed: BTreeMap::new(),
            up: false,
            closed: None,
        }
    }
}

struct World {
    rng: SmallRng,
    /// Each side holds its own logs; below `begins` its copy has nothing and the core feeds.
    logs: [BTreeMap<LogName, TestLog>; 2],
    begins: u64,
    sides: [Side; 2],
    numbers: u64,
    honest: bool,
}

impl World {
    fn new(seed: u64, honest: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut logs = [BTreeMap::new(), BTreeMap::new()];
        for logs in &mut logs {
            for topic in ["x", "y", "z"] {
                let mut log = TestLog::new(topic);
                for _ in 0..rng.random_range(1..30) {
                    append(&mut rng, &mut log);
                }
                logs.insert(log.name.clone(), log);
            }
        }
        let sides = [Side::new("a/1"), Side::new("b/1")];
        let begins = rng.random_range(0..20);
        Self { rng, logs, begins, sides, numbers: 0, honest }
    }

    fn step(&mut self) {
        let side = self.rng.random_range(0..2);
        match self.rng.random_range(0..20) {
            0..5 => self.transmit(side, None),
            5..10 => self.deliver(side, None),
            10..12 => self.answer_read(side),
            12..14 => self.release(side),
            14 => self.append(side),
            15 => self.start_fetch(side),
            16 => self.stop_fetch(side),
            17 => self.raise(side),
            18 => self.feed(side),
            _ => {
                let now = NOW + Duration::from_millis(self.rng.random_range(0..2000));
                self.sides[side].session.handle_timeout(now);
            }
        }
        self.events(side);
        self.events(1 - side);
    }

    fn transmit(&mut self, side: usize, channel: Option<usize>) {
        let index = channel.unwrap_or_else(|| self.rng.random_range(0..3));
        if let Some(out) = self.sides[side].session.poll_transmit(NOW, CHANNELS[index]) {
            out.chunks.iter().for_each(|c| self.sides[1 - side].pipes[index].extend_from_slice(c));
        }
    }

    fn deliver(&mut self, side: usize, channel: Option<usize>) {
        let index = channel.unwrap_or_else(|| self.rng.random_range(0..3));
        let len = self.sides[side].pipes[index].len();
        let cut = if channel.is_some() || self.rng.random_bool(0.3) { len } else { self.rng.random_range(0..=len) };
        let bytes = self.sides[side].pipes[index].split_to(cut).freeze();
        self.sides[side].session.handle_bytes(NOW, CHANNELS[index], bytes);
    }

    fn answer_read(&mut self, side: usize) {
        if self.sides[side].reads.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.sides[side].reads.len());
        let (number, log, from, bytes_max) = self.sides[side].reads.swap_remove(at);
        let Some(copy) = self.logs[side].get(&log) else {
            // A changed byte made it another name.
            return self.sides[side].session.handle_read(number, ReadOutcome::Outside);
        };
        let outcome = if from.offset < self.begins && from.offset < copy.end().offset {
            ReadOutcome::Outside
        } else {
            copy.read(from, bytes_max.min(8000))
        };
        let outside = matches!(outcome, ReadOutcome::Outside);
        self.sides[side].session.handle_read(number, outcome);
        if outside && let Some(at) = self.sides[side].session.served_at(number) {
            let Some(index) = copy.index(at.next) else { return };
            self.sides[side].fed.insert(number, (log, index));
        }
    }

    /// What the core does with a fetch that ran outside: it pushes while there is room, then the copy goes on.
    fn feed(&mut self, side: usize) {
        let World { sides, logs, begins, .. } = self;
        let Side { session, fed, .. } = &mut sides[side];
        fed.retain(|number, (log, index)| {
            let Some(at) = session.served_at(*number) else { return false };
            let Some(batch) = logs[side][log].batches.get(*index).filter(|_| at.next.offset < *begins) else {
                session.serve(*number);
                return false;
            };
            if at.room > 0 {
                let _ = session.push_passed(*number, batch.clone());
                *index += 1;
            }
            true
        });
    }

    fn release(&mut self, side: usize) {
        let side = &mut self.sides[side];
        if !side.credits.is_empty() {
            let at = self.rng.random_range(0..side.credits.len());
            let (lane, credit) = side.credits.swap_remove(at);
            side.session.release(lane, credit);
        }
    }

    fn append(&mut self, side: usize) {
        let topic = ["x", "y", "z"][self.rng.random_range(0..3)];
        let log = self.logs[side].get_mut(&log_name(topic)).unwrap();
        append(&mut self.rng, log);
        self.sides[side].session.handle_advanced(&log_name(topic));
    }

    fn start_fetch(&mut self, side: usize) {
        let open = self.sides[side].fetches.values().filter(|f| f.ended.is_none()).count();
        if !self.sides[side].up || open > 20 {
            return;
        }
        let rng = &mut self.rng;
        let name = log_name(["x", "y", "z"][rng.random_range(0..3)]);
        let log = &self.logs[1 - side][&name];
        let batch = &log.batches[rng.random_range(0..log.batches.len())];
        let mut from = batch.begin();
        from.offset += rng.random_range(0..=u64::from(batch.header().count));
        self.numbers += rng.random_range(1..3);
        let passing = rng.random_bool(0.3);
        let order = FetchOrder {
            lane: LANES[rng.random_range(0..2)],
            passing,
            allowance: if passing { rng.random_range(0..5000) } else { 0 },
            until: rng.random_bool(0.2).then(|| from.offset + rng.random_range(1..50)),
            no_wait: rng.random_bool(0.3),
            ..order(self.numbers, &name, from)
        };
        let next = log.index(from);
        let allowance = order.allowance;
        self.sides[side].session.start_fetch(order.clone()).unwrap();
        let fetch = Fetch { order, allowance, received: Vec::new(), next, stopped: false, ended: None };
        self.sides[side].fetches.insert(self.numbers, fetch);
    }

    fn stop_fetch(&mut self, side: usize) {
        if self.sides[side].fetches.is_empty() || self.rng.random_bool(0.5) {
            return;
        }
        let at = self.rng.random_range(0..self.sides[side].fetches.len());
        let (number, fetch) = self.sides[side].fetches.iter_mut().nth(at).unwrap();
        if fetch.ended.is_none() {
            fetch.stopped = true;
            self.sides[side].session.stop_fetch(*number).unwrap();
        }
    }

    fn raise(&mut self, side: usize) {
        let by = self.rng.random_range(1..6000);
        let side = &mut self.sides[side];
        for (number, fetch) in side.fetches.iter_mut().filter(|(_, f)| f.order.passing && f.ended.is_none()) {
            fetch.allowance += by;
            side.session.raise_allowance(*number, fetch.allowance).unwrap();
        }
    }

    fn events(&mut self, index: usize) {
        while let Some(event) = self.sides[index].session.poll_event() {
            assert!(self.sides[index].closed.is_none(), "after the end came {event:?}");
            self.event(index, event);
        }
    }

    fn event(&mut self, index: usize, event: Event) {
        let peer_logs = &self.logs[1 - index];
        let side = &mut self.sides[index];
        match event {
            Event::Up(_) => side.up = true,
            Event::FetchRequested(order) => {
                side.session.serve(order.number);
                side.served.insert(order.number, order);
            }
            Event::Read { number, log, from, bytes_max, .. } => {
                assert!(!side.reads.iter().any(|r| r.0 == number), "two reads are out for fetch {number}");
                side.reads.push((number, log, from, bytes_max));
            }
            Event::FetchStopped(number) | Event::ServedOver(number) => {
                side.fed.remove(&number);
                side.served.remove(&number);
            }
            Event::Batch { number, lane, credit, passing, batch } => {
                side.credits.push((lane, credit));
                let held: u64 = side.credits.iter().filter(|c| c.0 == lane).map(|c| c.1).sum();
                assert!(held <= CREDIT, "{held} bytes are held of a lane's buffer of {CREDIT}");
                if !self.honest {
                    return;
                }
                let fetch = side.fetches.get_mut(&number).unwrap();
                assert!(!fetch.stopped, "a batch came for stopped fetch {number}");
                assert_eq!((passing, lane), (fetch.order.passing, fetch.order.lane));
                let log = &peer_logs[&fetch.order.log];
                // What was asked from the log's end on begins with the first batch appended after.
                let at = fetch.next.or_else(|| log.index(fetch.order.from)).unwrap();
                assert_eq!(batch.begin(), log.batches[at].begin());
                assert_eq!(batch.chain_after(), log.batches[at].chain_after());
                assert_eq!(credit, batch.len() as u64);
                fetch.next = Some(at + 1);
                fetch.received.push(batch.begin());
            }
            Event::FetchEnded(ended) => {
                let fetch = side.fetches.get_mut(&ended.number);
                if self.honest || fetch.is_some() {
                    let fetch = fetch.unwrap();
                    assert!(!fetch.stopped && fetch.ended.is_none());
                    fetch.ended = Some(ended.end);
                }
            }
            Event::Closed(reason) => {
                assert!(!self.honest, "an honest session ended: {reason}");
                side.closed = Some(reason);
            }
            Event::ServedMoved(_) | Event::RoundTrip(_) => {}
            Event::Control(_) | Event::OneWay(_) => assert!(!self.honest),
        }
    }

    /// Everything that is still to happen happens: then each fetch must have got all that it asked for.
    fn settle(&mut self) {
        for _ in 0..3000 {
            for side in 0..2 {
                for channel in 0..3 {
                    self.transmit(side, Some(channel));
                    self.deliver(1 - side, Some(channel));
                }
                while !self.sides[side].reads.is_empty() {
                    self.answer_read(side);
                }
                while !self.sides[side].credits.is_empty() {
                    self.release(side);
                }
                self.raise(side);
                self.feed(side);
                self.events(side);
                self.events(1 - side);
            }
        }
    }

    fn check_complete(&self) {
        for (index, side) in self.sides.iter().enumerate() {
            for fetch in side.fetches.values().filter(|f| !f.stopped) {
                let log = &self.logs[1 - index][&fetch.order.log];
                let until = fetch.order.until.unwrap_or(u64::MAX);
                let all =
                    log.batches.iter().filter(|b| b.end_offset() > fetch.order.from.offset && b.begin().offset < until);
                let all: Vec<_> = all.map(Batch::begin).collect();
                if fetch.ended == Some(link::FetchEnd::AtEnd) {
                    assert!(fetch.order.no_wait && all.starts_with(&fetch.received), "{fetch:?}");
                } else {
                    assert_eq!(fetch.received, all, "{fetch:?} of a log to {:?}", log.end());
                    let done = log.end().offset >= until;
                    assert_eq!(fetch.ended == Some(link::FetchEnd::Done), done, "{fetch:?}");
                }
                assert!(fetch.ended.is_some() || !fetch.order.no_wait, "{fetch:?}");
            }
        }
    }
}

fn append(rng: &mut SmallRng, log: &mut TestLog) {
    let bytes = if rng.random_bool(0.1) { 3800 } else { rng.random_range(0..1500) };
    log.append(rng.random_range(1..8), bytes, rng.random_bool(0.1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn everything_asked_for_comes_in_order_and_within_credit(seed in any::<u64>()) {
        let mut world = World::new(seed, true);
        for _ in 0..3000 {
            world.step();
        }
        world.settle();
        world.check_complete();
        let received: usize = world.sides.iter().flat_map(|s| s.fetches.values()).map(|f| f.received.len()).sum();
        prop_assert!(received > 20, "only {} batches came: the walk shows nothing", received);
    }

    #[test]
    fn changed_bytes_end_the_session_or_do_nothing(seed in any::<u64>(), changes in 1..5) {
        let mut world = World::new(seed, false);
        for _ in 0..200 {
            world.step();
        }
        for _ in 0..changes {
            for _ in 0..100 {
                world.step();
            }
            let (side, index) = (world.rng.random_range(0..2), world.rng.random_range(0..3));
            let len = world.sides[side].pipes[index].len();
            if len > 0 {
                let at = world.rng.random_range(0..len);
                world.sides[side].pipes[index][at] ^= world.rng.random_range(1..=255u8);
            }
        }
        for _ in 0..500 {
            world.step();
        }
    }
}
