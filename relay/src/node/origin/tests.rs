//! Tests of the publish path, on the commit log's twin in memory.

use std::{sync::mpsc, time::Duration};

use seaway_federation_proto::{
    envelope::{Batch, Chain, Placement},
    ids::Incarnation,
    message::decode_messages,
    wire::store::{ControlEntry, control_entry},
};

use super::*;
use crate::log::{
    contract::{Line as ReadLine, Read},
    memory::{MemoryConfig, MemoryDisk, MemoryLog, Survive},
};

struct TestClock {
    wall_us: Mutex<u64>,
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        Duration::from_micros(*self.wall_us.lock())
    }
    fn wall_us(&self) -> u64 {
        let mut wall = self.wall_us.lock();
        *wall += 1;
        *wall
    }
}

type Outcome = (u64, Result<Stored, PublishError>);

struct Bench {
    log: Arc<MemoryLog>,
    origin: Arc<Origin>,
    clock: Arc<TestClock>,
    reports: Arc<Mutex<Vec<Report>>>,
    to: mpsc::Sender<Outcome>,
    from: mpsc::Receiver<Outcome>,
    next: u64,
}

fn bench_on(disk: MemoryDisk, config: MemoryConfig, random: u64, queues: u16) -> Bench {
    let log = MemoryLog::open(disk, config);
    let clock = Arc::new(TestClock { wall_us: Mutex::new(1_000_000) });
    let reports: Arc<Mutex<Vec<Report>>> = Arc::default();
    let told = reports.clone();
    let settings = OriginConfig {
        site: "home".parse().unwrap(),
        random,
        topics: Arc::new(move |_| TopicConfig { queues, ..TopicConfig::default() }),
        clock: clock.clone(),
        wake: Arc::new(|| {}),
        report: Arc::new(move |report| told.lock().push(report)),
    };
    let origin = Origin::open(settings, log.clone());
    let (to, from) = mpsc::channel();
    Bench { log, origin, clock, reports, to, from, next: 0 }
}

fn bench(queues: u16) -> Bench {
    bench_on(MemoryDisk::default(), MemoryConfig::default(), 7, queues)
}

impl Bench {
    fn message(path: &str, key: Option<&str>, payload: &[u8], producer: Option<ProducerStamp>) -> OwnMessage {
        OwnMessage {
            path: path.parse().unwrap(),
            key: key.map(|k| Bytes::copy_from_slice(k.as_bytes())),
            headers: Vec::new(),
            payload: Bytes::copy_from_slice(payload),
            producer,
        }
    }

    fn try_publish(&mut self, message: OwnMessage) -> Result<u64, Refusal> {
        let (to, number) = (self.to.clone(), self.next);
        self.next += 1;
        let tell = Box::new(move |result| drop(to.send((number, result))));
        self.origin.publish(message, tell).map_err(|_| Refusal::Full)?;
        Ok(number)
    }

    fn refused(&mut self, key: &str, epoch: u32, sequence: u64) -> PublishError {
        let asked = self.stamped(key, epoch, sequence);
        self.refusal(asked)
    }

    /// What was told of the last message, which is refused within the call.
    fn refusal(&self, asked: Result<u64, Refusal>) -> PublishError {
        let (number, told) = self.answers().pop().unwrap();
        assert_eq!(number, asked.unwrap());
        told.unwrap_err()
    }

    fn publish(&mut self, path: &str, payload: &[u8]) -> u64 {
        self.try_publish(Self::message(path, None, payload, None)).unwrap()
    }

    fn stamped(&mut self, key: &str, epoch: u32, sequence: u64) -> Result<u64, Refusal> {
        let stamp = ProducerStamp { id: 5, epoch, sequence };
        self.try_publish(Self::message("t", Some(key), format!("{key}{sequence}").as_bytes(), Some(stamp)))
    }

    fn settle(&self) {
        for _ in 0..100 {
            self.log.sync_now();
            self.origin.pump();
            if self.origin.is_idle() {
                return;
            }
        }
        panic!("the origin does not come to rest");
    }

    fn answers(&self) -> Vec<Outcome> {
        self.from.try_iter().collect()
    }

    fn places(&self) -> Vec<Place> {
        self.answers().into_iter().map(|(_, r)| r.unwrap().place).collect()
    }

    fn batches(&self, queue: u16) -> Vec<Batch> {
        let name = LogName { topic: "t".parse().unwrap(), origin: "home".parse().unwrap(), queue: Queue(queue) };
        let Some(info) = self.log.info(&name, true) else { return Vec::new() };
        let mut at = info.begin;
        let mut all = Vec::new();
        while let Read::Batches { batches, next } = self.log.read(&name, at, ReadLine::Main, 1 << 20).unwrap() {
            all.extend(batches);
            at = next;
        }
        all
    }

    fn payloads(&self, queue: u16) -> Vec<Vec<u8>> {
        let batches = self.batches(queue);
        batches.iter().flat_map(|b| decode_messages(b, 1 << 26).unwrap()).map(|m| m.payload.to_vec()).collect()
    }

    /// The process ends; so many of the units that were not durable survive.
    fn crash(self, units: usize, random: u64, queues: u16) -> Bench {
        bench_on(self.log.crash(Survive::Units(units)), MemoryConfig::default(), random, queues)
    }
}

fn unavailable(outcome: &Result<Stored, PublishError>) -> bool {
    matches!(outcome, Err(PublishError::Unavailable(_)))
}

fn in_doubt(outcome: &Result<Stored, PublishError>) -> bool {
    matches!(outcome, Err(PublishError::InDoubt(_)))
}

#[test]
fn messages_gather_while_the_log_is_busy_and_are_answered_in_order() {
    let mut b = bench(1);
    for n in 0..10 {
        b.publish("t/x", &[n]);
    }
    assert!(b.answers().is_empty(), "nothing is answered before it is durable");
    b.settle();
    let answers = b.answers();
    assert_eq!(answers.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    let offsets: Vec<u64> = answers.into_iter().map(|(_, r)| r.unwrap().place.offset).collect();
    assert_eq!(offsets, (0..10).collect::<Vec<_>>());
    // The first went alone, the others gathered behind it.
    assert_eq!(b.batches(1).iter().map(|b| b.header().count).collect::<Vec<_>>(), vec![1, 9]);
    assert_eq!(b.payloads(1), (0..10).map(|n| vec![n]).collect::<Vec<_>>());
    assert_eq!(b.origin.waiting_bytes(), 0);
}

#[test]
fn a_full_batch_does_not_wait_and_a_large_message_goes_alone() {
    let mut b = bench(1);
    b.publish("t", b"first");
    for _ in 0..3 {
        b.publish("t", &vec![1; limits::BATCH_BYTES_TARGET]);
    }
    assert_eq!(b.log.units_waiting(), 1 + 1 + 3, "control entry, the first message, and each full batch");
    b.publish("t", b"small");
    b.publish("t", &vec![2; limits::MESSAGE_BYTES_DEFAULT]);
    b.settle();
    let batches = b.batches(1);
    assert_eq!(batches.iter().map(|b| b.header().count).collect::<Vec<_>>(), vec![1, 1, 1, 1, 1, 1]);
    assert!(batches.iter().all(|b| b.len() <= limits::BATCH_BYTES_MAX + limits::BATCH_OVERHEAD_BYTES));
}

#[test]
fn the_control_queue_says_how_the_topic_is_made() {
    let mut b = bench(3);
    b.publish("t", b"x");
    b.settle();
    let payloads = b.payloads(0);
    let Some(control_entry::Kind::Settings(settings)) = ControlEntry::decode(payloads[0].as_slice()).unwrap().kind
    else {
        panic!("no settings")
    };
    assert_eq!((settings.queues, settings.message_bytes_max), (3, limits::MESSAGE_BYTES_DEFAULT as u64));
    // After a restart nothing is written anew, unless something changed.
    let mut b = b.crash(0, 8, 3);
    b.publish("t", b"y");
    b.settle();
    assert_eq!(b.payloads(0).len(), 1);
    let mut b = b.crash(0, 9, 5);
    b.publish("t", b"z");
    b.settle();
    assert_eq!(b.payloads(0).len(), 2);
    assert!(b.reports.lock().is_empty());
}

#[test]
fn keys_keep_their_queue_and_their_order() {
    let mut b = bench(4);
    for n in 0..200_u64 {
        let key = format!("k{}", n % 10);
        b.try_publish(Bench::message("t", Some(&key), format!("{key}:{n:03}").as_bytes(), None)).unwrap();
        if n % 7 == 0 {
            b.log.sync_units(1);
            b.origin.pump();
        }
    }
    b.settle();
    let mut seen = std::collections::BTreeMap::new();
    let mut total = 0;
    for queue in 1..=4 {
        let payloads = b.payloads(queue);
        total += payloads.len();
        for payload in payloads {
            let text = String::from_utf8(payload).unwrap();
            let (key, number) = text.split_once(':').unwrap();
            let number: u64 = number.parse().unwrap();
            let before = seen.insert(key.to_owned(), (queue, number));
            assert!(before.is_none_or(|(q, n)| q == queue && n < number), "key {key} out of order");
        }
    }
    assert_eq!((total, seen.len()), (200, 10));
}

#[test]
fn each_start_opens_an_incarnation_that_names_the_end_before_it() {
    let mut b = bench(1);
    b.publish("t", b"a");
    b.publish("t", b"b");
    b.settle();
    let before = b.batches(1).last().unwrap().clone();
    let mut b = b.crash(0, 8, 1);
    b.publish("t", b"c");
    b.settle();
    let place = b.places()[0];
    assert_eq!(place, Place { incarnation: Incarnation { counter: 2, random: 8 }, offset: 2 });
    let batches = b.batches(1);
    let first = batches.last().unwrap().header();
    assert!(first.first_of_incarnation);
    assert_eq!((first.previous, first.chain_before), (Some(before.end()), before.chain_after()));
}

#[test]
fn origin_time_never_goes_back_and_a_clock_that_does_is_reported() {
    let mut b = bench(1);
    *b.clock.wall_us.lock() = 90_000_000;
    b.publish("t", b"a");
    b.settle();
    *b.clock.wall_us.lock() = 50_000_000;
    b.publish("t", b"b");
    b.settle();
    let mut b = b.crash(0, 8, 1);
    *b.clock.wall_us.lock() = 40_000_000;
    b.publish("t", b"c");
    b.settle();
    let times: Vec<u64> = b.batches(1).iter().map(|b| b.header().origin_time_us).collect();
    assert!(times.is_sorted(), "{times:?}");
    let messages = b.batches(1).iter().flat_map(|b| decode_messages(b, 1 << 20).unwrap()).collect::<Vec<_>>();
    assert!(messages.is_sorted_by_key(|m| m.time_us));
    assert_eq!(b.reports.lock()[0].name, "clock-behind");
}

#[test]
fn a_busy_log_holds_messages_back_and_loses_none() {
    let config = MemoryConfig { queued_bytes_max: 2_000, ..MemoryConfig::default() };
    let mut b = bench_on(MemoryDisk::default(), config, 7, 2);
    for n in 0..60_u8 {
        let message = || Bench::message("t", Some(&format!("{}", n % 5)), &vec![n; 900], None);
        while let Err(refusal) = b.try_publish(message()) {
            assert!(matches!(refusal, Refusal::Full));
            b.log.sync_now();
            b.origin.pump();
        }
    }
    b.settle();
    assert_eq!(b.answers().into_iter().filter(|(_, r)| r.is_ok()).count(), 60);
    assert_eq!(b.payloads(1).len() + b.payloads(2).len(), 60);
}

#[test]
fn a_full_disk_fails_what_waits_and_goes_on_when_there_is_room() {
    let mut b = bench(1);
    b.publish("t", b"a");
    b.settle();
    b.log.set_room(Some(0));
    b.publish("t", b"b");
    b.settle();
    b.log.set_room(None);
    b.publish("t", b"c");
    b.settle();
    let answers = b.answers();
    assert!(answers[0].1.is_ok() && unavailable(&answers[1].1) && answers[2].1.is_ok());
    assert_eq!(b.payloads(1), vec![b"a".to_vec(), b"c".to_vec()]);
}

#[test]
fn a_failed_write_fails_every_message_that_waits() {
    let mut b = bench(1);
    b.publish("t", b"a");
    b.publish("t", b"b");
    b.log.fail_next_write("no disk");
    b.settle();
    let mut answers = b.answers();
    answers.sort_by_key(|(number, _)| *number);
    assert!(in_doubt(&answers[0].1), "it was on its way to the disk: {answers:?}");
    assert!(unavailable(&answers[1].1), "it was not: {answers:?}");
}

#[test]
fn what_is_not_allowed_is_refused_before_anything_is_stored() {
    let mut b = bench(1);
    let too_large = Bench::message("t", None, &vec![0; limits::MESSAGE_BYTES_DEFAULT + 1], None);
    let asked = b.try_publish(too_large);
    assert!(matches!(b.refusal(asked), PublishError::Invalid(_)));
    let long_key = Bench::message("t", Some(&"k".repeat(limits::KEY_BYTES_MAX + 1)), b"", None);
    let asked = b.try_publish(long_key);
    assert!(matches!(b.refusal(asked), PublishError::Invalid(_)));
    b.origin.close();
    let asked = b.try_publish(Bench::message("t", None, b"", None));
    assert!(matches!(b.refusal(asked), PublishError::Unavailable(_)));
    assert!(b.payloads(1).is_empty());
}

#[test]
fn a_retry_is_stored_once_and_answered_with_the_same_place() {
    let mut b = bench(1);
    b.stamped("a", 1, 0).unwrap();
    b.stamped("a", 1, 1).unwrap();
    b.stamped("a", 1, 1).unwrap();
    b.settle();
    b.stamped("a", 1, 0).unwrap();
    let answers: Vec<Stored> = b.answers().into_iter().map(|(_, r)| r.unwrap()).collect();
    assert_eq!(answers.iter().map(|s| s.place.offset).collect::<Vec<_>>(), vec![0, 1, 1, 0]);
    assert_eq!(answers.iter().map(|s| s.repeated).collect::<Vec<_>>(), vec![false, false, true, true]);
    assert_eq!(b.payloads(1).len(), 2);
    // And after a restart.
    let mut b = b.crash(0, 8, 1);
    b.stamped("a", 1, 1).unwrap();
    let stored = b.answers().remove(0).1.unwrap();
    assert!(stored.repeated);
    assert_eq!(stored.place, answers[1].place);
    b.stamped("a", 1, 2).unwrap();
    b.settle();
    assert_eq!(b.payloads(1).len(), 3);
}

#[test]
fn sequences_epochs_and_unknown_producers_are_told_apart() {
    let mut b = bench(1);
    assert_eq!(b.refused("a", 1, 4), PublishError::ProducerUnknown);
    b.stamped("a", 1, 0).unwrap();
    assert_eq!(b.refused("a", 1, 2), PublishError::ProducerSequence { found: 2, last: 0 });
    b.settle();
    b.stamped("a", 2, 0).unwrap();
    b.settle();
    assert_eq!(b.refused("a", 1, 1), PublishError::ProducerFenced { found: 1, current: 2 });
    // A restored disk: the producer is ahead of what is known.
    let mut b = b.crash(0, 8, 1);
    assert_eq!(b.refused("a", 2, 5), PublishError::ProducerUnknown);
    assert_eq!(b.refused("a", 1, 0), PublishError::ProducerFenced { found: 1, current: 2 });
    assert_eq!(b.payloads(1).len(), 2);
}

/// Sequences go to several queues; any prefix of the units survives; the producer sends again what has no receipt, in order.
#[test]
fn whatever_survives_a_crash_every_sequence_is_stored_exactly_once() {
    for survivors in 0..12 {
        let mut b = bench(3);
        for sequence in 0..12_u64 {
            b.stamped(&format!("k{}", sequence % 5), 1, sequence).unwrap();
            if sequence % 4 == 3 {
                b.log.sync_units(1);
                b.origin.pump();
            }
        }
        let received: Vec<u64> = b.answers().into_iter().filter(|(_, r)| r.is_ok()).map(|(n, _)| n).collect();
        let mut b = b.crash(survivors, 8, 3);
        let first = (0..12).find(|s| !received.contains(s)).unwrap();
        // When nothing at all is known the producer begins anew, as it is told to.
        let sends: Vec<u64> = (first..14).collect();
        for sequence in sends {
            match b.stamped(&format!("k{}", sequence % 5), 1, sequence) {
                Ok(_) => {}
                Err(refusal) => panic!("{survivors} survivors, sequence {sequence}: {refusal:?}"),
            }
        }
        b.settle();
        assert!(b.answers().iter().all(|(_, r)| r.is_ok()));
        let mut all: Vec<Vec<u8>> = (1..=3).flat_map(|q| b.payloads(q)).collect();
        all.sort();
        let mut expected: Vec<Vec<u8>> = (0..14).map(|s| format!("k{}{s}", s % 5).into_bytes()).collect();
        expected.sort();
        assert_eq!(all, expected, "{survivors} survivors");
    }
}

#[test]
fn a_retry_after_a_failed_write_is_never_called_stored() {
    let mut b = bench(1);
    b.stamped("a", 1, 0).unwrap();
    b.settle();
    b.answers();
    b.stamped("a", 1, 1).unwrap();
    b.stamped("a", 1, 2).unwrap();
    b.log.fail_next_write("no disk");
    b.settle();
    let mut answers = b.answers();
    answers.sort_by_key(|(number, _)| *number);
    assert!(in_doubt(&answers[0].1), "it was on its way to the disk: {answers:?}");
    assert!(unavailable(&answers[1].1), "it was not: {answers:?}");
    for sequence in [1, 2, 0] {
        let asked = b.stamped("a", 1, sequence);
        let PublishError::Unavailable(why) = b.refusal(asked) else {
            panic!("a retry of {sequence} was taken by a poisoned node");
        };
        assert!(why.contains("no disk"), "{why}");
    }
    // What is durable is answered again by the next life; the rest is stored then.
    let mut b = b.crash(0, 8, 1);
    for sequence in 0..3 {
        b.stamped("a", 1, sequence).unwrap();
    }
    b.settle();
    assert_eq!(b.answers().into_iter().map(|(_, r)| r.unwrap().repeated).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(b.payloads(1).len(), 3);
}

/// All that one stream may have on the way can be stored and in doubt: each retry is answered with its place, also by the next life.
#[test]
fn all_that_may_be_on_the_way_can_be_sent_again() {
    const ON_THE_WAY: u64 = 65_536;
    let mut b = bench(1);
    for sequence in 0..2 * ON_THE_WAY {
        while b.stamped("a", 1, sequence).is_err() {
            b.settle();
        }
        if sequence % 1000 == 0 {
            b.settle();
        }
    }
    b.settle();
    b.answers();
    let rows = b.log.scan(Table::Producers, &[]).len();
    assert!(rows < 10, "{rows} rows for one producer of one queue");
    let mut b = b.crash(0, 8, 1);
    for sequence in [ON_THE_WAY, ON_THE_WAY + 1, 2 * ON_THE_WAY - 1] {
        b.stamped("a", 1, sequence).unwrap();
        let stored = b.answers().remove(0).1.unwrap();
        assert!(stored.repeated);
        assert_eq!(stored.place.offset, sequence);
    }
}

#[test]
fn below_the_places_remembered_a_retry_is_still_known_to_be_stored() {
    let mut b = bench(3);
    let last = producers::SEQUENCES_REMEMBERED + 2_000;
    for sequence in 0..=last {
        while b.stamped(&format!("{}", sequence / 1000), 1, sequence).is_err() {
            b.settle();
        }
        if sequence % 500 == 0 {
            b.settle();
        }
    }
    b.settle();
    b.answers();
    let mut b = b.crash(0, 8, 3);
    b.stamped("a", 1, 3).unwrap();
    assert_eq!(b.answers().remove(0).1, Err(PublishError::StoredBefore { asked: false }));
    b.stamped("a", 1, last).unwrap();
    assert!(b.answers().remove(0).1.unwrap().repeated);
    b.stamped("a", 1, last + 1).unwrap();
    b.settle();
    assert!(!b.answers().remove(0).1.unwrap().repeated);
}

#[test]
fn a_failed_batch_leaves_a_gap_that_is_filled_lowest_first() {
    let mut b = bench(1);
    b.stamped("a", 1, 0).unwrap();
    b.settle();
    b.log.set_room(Some(0));
    b.stamped("a", 1, 1).unwrap();
    b.settle();
    b.log.set_room(None);
    let asked = b.stamped("a", 1, 2);
    assert!(matches!(b.refusal(asked), PublishError::ProducerSequence { found: 2, last: 0 }));
    b.stamped("a", 1, 1).unwrap();
    b.stamped("a", 1, 2).unwrap();
    b.settle();
    assert_eq!(b.payloads(1), vec![b"a0".to_vec(), b"a1".to_vec(), b"a2".to_vec()]);
}

#[test]
fn unused_producers_are_forgotten_with_time() {
    let mut b = bench(1);
    b.stamped("a", 1, 0).unwrap();
    b.settle();
    assert_eq!(b.origin.producers_remembered(), (1, 1));
    *b.clock.wall_us.lock() += producers::REMEMBERED_FOR.as_micros() as u64;
    b.origin.expire();
    b.log.sync_now();
    assert_eq!(b.origin.producers_remembered(), (0, 0));
    assert!(b.log.scan(Table::Producers, &[]).is_empty());
    let asked = b.stamped("a", 1, 1);
    assert!(matches!(b.refusal(asked), PublishError::ProducerUnknown));
}

#[test]
fn rows_of_forgotten_producers_go_although_the_log_was_busy() {
    let config = MemoryConfig { queued_bytes_max: 2_000, ..MemoryConfig::default() };
    let mut b = bench_on(MemoryDisk::default(), config, 7, 1);
    b.stamped("a", 1, 0).unwrap();
    b.settle();
    *b.clock.wall_us.lock() += producers::REMEMBERED_FOR.as_micros() as u64;
    let put = || Entry::Put { table: Table::Node, key: Bytes::from_static(b"k"), value: vec![0; 100].into() };
    while b.log.submit(Unit { entries: vec![put()] }, Box::new(|_| {})).is_ok() {}
    b.origin.expire();
    b.log.sync_now();
    assert!(!b.log.scan(Table::Producers, &[]).is_empty(), "there was no room for the deletions");
    b.origin.expire();
    b.log.sync_now();
    assert!(b.log.scan(Table::Producers, &[]).is_empty());
}

/// The disk was restored from an old copy; the origin publishes, then gets its own later history back from another holder.
#[test]
fn an_origin_that_went_back_goes_on_above_what_it_meets() {
    let mut b = bench(1);
    b.publish("t", b"a");
    b.settle();
    let old = b.log.disk_copy();
    let mut b = b.crash(0, 8, 1);
    b.publish("t", b"lost");
    b.settle();
    let lost = b.batches(1).last().unwrap().clone();
    let mut b = bench_on(old, MemoryConfig::default(), 3, 1);
    b.publish("t", b"new");
    b.settle();
    b.answers();
    // Both are incarnation 2; the one that comes back is the greater.
    assert!(lost.begin().incarnation > b.batches(1).last().unwrap().begin().incarnation);
    let unit = Unit { entries: vec![Entry::Append { role: Role::Own, batch: lost.clone() }] };
    b.log.submit(unit, Box::new(|_| {})).unwrap();
    b.log.sync_now();
    b.publish("t", b"on");
    b.publish("t", b"and on");
    b.settle();
    assert_eq!(b.places()[0].incarnation.counter, 3);
    assert_eq!(b.payloads(1), vec![b"a".to_vec(), b"new".to_vec(), b"on".to_vec(), b"and on".to_vec()]);
    let info = b.log.info(&lost.header().log, true).unwrap();
    assert_eq!(info.fork_tips, vec![lost.end()]);
}

/// The first batch of an incarnation of this log that somebody else made: after a batch of its own, or as its very first.
fn forged(log: &LogName, after: Option<&Batch>, counter: u64) -> Batch {
    let mut body = BodyBuilder::default();
    body.push(&Message {
        path: "t".parse().unwrap(),
        key: None,
        headers: Vec::new(),
        time_us: 1,
        producer: None,
        payload: Bytes::from_static(b"forged"),
    });
    let incarnation = Incarnation { counter, random: 1 };
    let placement = Placement {
        log,
        begin: Place { incarnation, offset: after.map_or(0, Batch::end_offset) },
        first_of_incarnation: true,
        previous: after.map(Batch::end),
        origin_time_us: 1,
        chain_before: after.map_or(Chain::default(), Batch::chain_after),
    };
    Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap()
}

fn append(b: &Bench, batch: Batch) {
    b.log.submit(Unit { entries: vec![Entry::Append { role: Role::Own, batch }] }, Box::new(|_| {})).unwrap();
    b.log.sync_now();
}

fn made_up(b: &Bench) -> usize {
    b.reports.lock().iter().filter(|report| report.name == "incarnation-made-up").count()
}

#[test]
fn an_incarnation_that_was_made_up_is_not_followed() {
    for counter in [limits::INCARNATION_COUNTER_MAX, 2 + limits::INCARNATION_LEAP_MAX] {
        let mut b = bench(1);
        b.publish("t", b"a");
        b.settle();
        b.answers();
        let own = b.batches(1)[0].clone();
        append(&b, forged(&own.header().log, Some(&own), counter));
        for payload in [b"b", b"c"] {
            b.publish("t", payload);
            b.settle();
            assert_eq!(b.places()[0].incarnation, own.begin().incarnation, "it goes on in its own");
        }
        assert_eq!(made_up(&b), 1, "reported once a start");
        let mut b = b.crash(0, 8, 1);
        for payload in [b"d", b"e"] {
            b.publish("t", payload);
            b.settle();
            assert_eq!(b.places()[0].incarnation, Incarnation { counter: 2, random: 8 });
        }
        assert_eq!(made_up(&b), 1);
        // What was receipted is held, and every holder can read it.
        let info = b.log.info(&own.header().log, true).unwrap();
        let mut payloads = Vec::new();
        for held in info.incarnations {
            let mut at = Place { incarnation: held.incarnation, offset: held.begin };
            while let Read::Batches { batches, next } =
                b.log.read(&own.header().log, at, ReadLine::Incarnation, 1 << 20).unwrap()
            {
                for batch in batches {
                    let bytes = [batch.head().as_ref(), batch.body().as_ref()].concat();
                    let read = Batch::decode(bytes.into(), limits::BATCH_BYTES_MAX, false).unwrap();
                    payloads.extend(decode_messages(&read, 1 << 20).unwrap().into_iter().map(|m| m.payload));
                }
                at = next;
            }
        }
        assert_eq!(payloads, ["a", "b", "c", "d", "e", "forged"]);
    }
}

#[test]
fn starts_that_were_forgotten_are_no_leap() {
    let mut b = bench(1);
    b.publish("t", b"a");
    b.settle();
    b.answers();
    let own = b.batches(1)[0].clone();
    append(&b, forged(&own.header().log, Some(&own), 1 + limits::INCARNATION_LEAP_MAX));
    b.publish("t", b"b");
    b.settle();
    assert_eq!(b.places()[0].incarnation.counter, 2 + limits::INCARNATION_LEAP_MAX);
    assert_eq!(made_up(&b), 0);
}

#[test]
fn publishing_stops_with_a_sentence_where_no_incarnation_is_left() {
    let log = LogName { topic: "t".parse().unwrap(), origin: "home".parse().unwrap(), queue: Queue(1) };
    let mut b = bench(1);
    append(&b, forged(&log, None, limits::INCARNATION_COUNTER_MAX - 1));
    b.publish("t", b"the last start");
    b.settle();
    assert_eq!(b.places()[0].incarnation.counter, limits::INCARNATION_COUNTER_MAX);
    let mut b = b.crash(0, 8, 1);
    let asked = b.try_publish(Bench::message("t", None, b"one more", None));
    let refused = b.refusal(asked);
    assert!(matches!(&refused, PublishError::Unavailable(why) if why.contains("used up")), "{refused:?}");
}
