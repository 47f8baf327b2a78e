//! Tests of topics' lives, on the commit log's twin in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use seaway_federation_proto::control::{Control, order};

use super::*;
use crate::node::origin::{OWN_QUEUES_MAX, TOPICS_MAX};
use crate::{
    link::controls,
    log::memory::{MemoryConfig, MemoryDisk, MemoryLog, Survive},
};

struct TestClock(Mutex<u64>);

impl Clock for TestClock {
    fn now(&self) -> Duration {
        Duration::from_micros(*self.0.lock())
    }
    fn wall_us(&self) -> u64 {
        *self.0.lock()
    }
}

struct Bench {
    log: Arc<MemoryLog>,
    origin: Arc<Origin>,
    clock: Arc<TestClock>,
    config: Arc<Mutex<TopicConfig>>,
    reports: Arc<Mutex<Vec<Report>>>,
}

type Answers<T> = Arc<Mutex<Vec<Result<T, PublishError>>>>;

fn topic() -> Topic {
    "t".parse().unwrap()
}

fn log_of(queue: u16) -> LogName {
    LogName { topic: topic(), origin: "home".parse().unwrap(), queue: Queue(queue) }
}

fn bench_on(disk: MemoryDisk, random: u64, config: TopicConfig, wall_us: u64) -> Bench {
    let log = MemoryLog::open(disk, MemoryConfig::default());
    let clock = Arc::new(TestClock(Mutex::new(wall_us)));
    let config = Arc::new(Mutex::new(config));
    let settings = config.clone();
    let reports: Arc<Mutex<Vec<Report>>> = Arc::default();
    let told = reports.clone();
    let origin = OriginConfig {
        site: "home".parse().unwrap(),
        random,
        topics: Arc::new(move |_| settings.lock().clone()),
        clock: clock.clone(),
        wake: Arc::new(|| {}),
        report: Arc::new(move |report| told.lock().push(report)),
    };
    Bench { origin: Origin::open(origin, log.clone()), log, clock, config, reports }
}

fn bench(queues: u16) -> Bench {
    bench_on(MemoryDisk::default(), 7, TopicConfig { queues, ..TopicConfig::default() }, 1_000_000)
}

impl Bench {
    fn restart(self, survive: Survive, random: u64) -> Bench {
        let (config, wall_us) = (self.config.lock().clone(), *self.clock.0.lock());
        bench_on(self.log.crash(survive), random, config, wall_us + 1)
    }

    fn settle(&self) {
        for _ in 0..100 {
            self.log.sync_now();
            self.origin.pump();
            if self.origin.is_idle() {
                // An entry that was written with the last turn.
                return self.log.sync_now();
            }
        }
        panic!("the origin does not come to rest");
    }

    fn message(key: &str, payload: &str, producer: Option<ProducerStamp>) -> OwnMessage {
        let (key, payload) = (Some(Bytes::copy_from_slice(key.as_bytes())), Bytes::copy_from_slice(payload.as_bytes()));
        OwnMessage { path: "t/x".parse().unwrap(), key, headers: Vec::new(), payload, producer }
    }

    /// `false`: there is no room now.
    fn try_publish(&self, message: OwnMessage, answers: &Answers<Stored>) -> bool {
        let answers = answers.clone();
        self.origin.publish(message, Box::new(move |result| answers.lock().push(result))).is_ok()
    }

    fn publish(&self, key: &str, payload: &str) -> Result<Stored, PublishError> {
        let answers = Answers::default();
        assert!(self.try_publish(Self::message(key, payload, None), &answers));
        self.settle();
        let answer = answers.lock().pop();
        answer.unwrap()
    }

    fn change(&self, begin: impl FnOnce(&Arc<Origin>, TellTopic)) -> Result<(), PublishError> {
        let answers = Answers::default();
        let told = answers.clone();
        begin(&self.origin, Box::new(move |result| told.lock().push(result)));
        self.settle();
        let answer = answers.lock().pop();
        answer.unwrap()
    }

    fn apply(&self) -> Result<(), PublishError> {
        self.change(|origin, tell| origin.apply_settings(&topic(), tell))
    }

    fn delete(&self) -> Result<(), PublishError> {
        self.change(|origin, tell| origin.delete_topic(&topic(), With::default(), tell))
    }

    fn create(&self) -> Result<(), PublishError> {
        self.change(|origin, tell| origin.create_topic(&topic(), With::default(), tell))
    }

    fn control(&self) -> Arc<Control> {
        controls::read_all(&*self.log, &topic(), &"home".parse().unwrap()).unwrap().unwrap()
    }

    /// The batches of a queue that are retained.
    fn batches(&self, queue: u16) -> Vec<seaway_federation_proto::envelope::Batch> {
        let Some(info) = self.log.info(&log_of(queue), true) else { return Vec::new() };
        let (mut at, mut all) = (info.begin, Vec::new());
        loop {
            match self.log.read(&log_of(queue), at, crate::log::contract::Line::Main, 1 << 20).unwrap() {
                crate::log::contract::Read::Batches { batches, next } => {
                    all.extend(batches);
                    at = next;
                }
                _ => return all,
            }
        }
    }
}

#[test]
fn a_changed_queue_count_is_named_and_keeps_the_order_of_keys() {
    let mut b = bench(1);
    let mut sent = 0;
    let mut number = |b: &Bench, count: u32| {
        for _ in 0..count {
            let key = format!("k{}", sent % 7);
            b.publish(&key, &format!("{key}:{sent:04}")).unwrap();
            sent += 1;
        }
    };
    for (round, queues) in [1_u16, 8, 3].into_iter().enumerate() {
        b.config.lock().queues = queues;
        if round > 0 {
            b.apply().unwrap();
        }
        number(&b, 30);
        // A restart between changes forgets nothing of it.
        b = b.restart(Survive::Nothing, 8 + round as u64);
        number(&b, 10);
    }
    let control = b.control();
    assert_eq!(control.changes.len(), 2, "{control:?}");
    // Queues that hold something of after a change name it in their first batch of it, and in no other.
    for change in &control.changes {
        for queue in 1..=8 {
            let named: Vec<_> =
                b.batches(queue).into_iter().filter(|b| b.header().after == Some(change.entry)).collect();
            let end = change.ends.get(&Queue(queue)).map_or(0, |end| end.offset);
            assert!(named.len() <= 1 && named.iter().all(|b| b.begin().offset == end), "queue {queue}: {named:?}");
        }
    }
    // A reader that begins with the last queue gets each key in order all the same.
    let mut waiting: BTreeMap<u16, Vec<(Place, String)>> = (1..=8)
        .map(|queue| {
            let messages = b.batches(queue).into_iter().flat_map(|batch| {
                let begin = batch.begin();
                let texts = seaway_federation_proto::message::decode_messages(&batch, 1 << 20).unwrap();
                (begin.offset..)
                    .zip(texts)
                    .map(move |(offset, m)| (Place { offset, ..begin }, String::from_utf8(m.payload.to_vec()).unwrap()))
            });
            (queue, messages.collect())
        })
        .collect();
    let mut read: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let at = |waiting: &BTreeMap<u16, Vec<(Place, String)>>, queue: Queue, end: Place| {
        waiting.get(&queue.0).is_none_or(|left| left.first().is_none_or(|(at, _)| order::is_past(*at, end)))
    };
    while waiting.values().any(|left| !left.is_empty()) {
        let before: usize = waiting.values().map(Vec::len).sum();
        for queue in (1..=8).rev() {
            while let Some((place, text)) = waiting[&queue].first().cloned() {
                let limit = order::limit(&control.changes, Queue(queue), |other, end| at(&waiting, other, end));
                if limit.is_some_and(|limit| order::is_past(place, limit)) {
                    break;
                }
                waiting.get_mut(&queue).unwrap().remove(0);
                read.entry(text.split(':').next().unwrap().to_owned()).or_default().push(text);
            }
        }
        assert!(waiting.values().map(Vec::len).sum::<usize>() < before, "nothing goes on: {waiting:?}");
    }
    assert_eq!(read.values().map(Vec::len).sum::<usize>(), 120);
    assert!(read.values().all(|texts| texts.is_sorted()), "{read:?}");
}

#[test]
fn what_comes_during_a_change_waits_and_is_told_when_it_may_come_again() {
    let b = bench(1);
    b.publish("k", "first").unwrap();
    let answers = Answers::default();
    assert!(b.try_publish(Bench::message("k", "second", None), &answers), "it is on its way");
    b.config.lock().queues = 4;
    let changed = Answers::default();
    let told = changed.clone();
    b.origin.apply_settings(&topic(), Box::new(move |result| told.lock().push(result)));
    assert!(!b.try_publish(Bench::message("k", "third", None), &answers), "the topic is being changed");
    let again = b.change(|origin, tell| origin.delete_topic(&topic(), With::default(), tell));
    assert!(matches!(again, Err(PublishError::Unavailable(why)) if why.contains("being changed")));
    let woken = Arc::new(AtomicBool::new(false));
    let wake = woken.clone();
    b.settle();
    assert_eq!(changed.lock().as_slice(), [Ok(())]);
    b.origin.when_room(Box::new(move || wake.store(true, Ordering::Relaxed)));
    assert!(woken.load(Ordering::Relaxed), "no change is open any more");
    assert!(b.try_publish(Bench::message("k", "third", None), &answers));
    b.settle();
    assert_eq!(answers.lock().iter().filter(|a| a.is_ok()).count(), 2);
    assert_eq!(b.control().changes.len(), 1);
}

#[test]
fn a_waiter_is_woken_by_the_end_of_a_change() {
    let b = bench(1);
    b.publish("k", "first").unwrap();
    let answers = Answers::default();
    b.try_publish(Bench::message("k", "second", None), &answers);
    b.config.lock().queues = 2;
    b.origin.apply_settings(&topic(), Box::new(|_| {}));
    let woken = Arc::new(AtomicBool::new(false));
    let wake = woken.clone();
    b.origin.when_room(Box::new(move || wake.store(true, Ordering::Relaxed)));
    assert!(!woken.load(Ordering::Relaxed));
    b.settle();
    assert!(woken.load(Ordering::Relaxed));
}

#[test]
fn a_deleted_topic_takes_nothing_until_it_is_created_and_goes_on_above() {
    let stamp = |sequence| Some(ProducerStamp { id: 5, epoch: 1, sequence });
    let mut b = bench(2);
    let answers = Answers::default();
    for n in 0..10 {
        assert!(b.try_publish(Bench::message(&format!("k{n}"), "x", stamp(n)), &answers));
    }
    b.settle();
    let stored: Vec<Stored> = answers.lock().drain(..).map(Result::unwrap).collect();
    let ends: Vec<Place> = [1, 2].map(|q| b.log.info(&log_of(q), true).unwrap().end).to_vec();
    assert!(matches!(b.create(), Err(PublishError::Invalid(why)) if why.contains("exists")));
    assert!(!b.origin.is_deleted(&topic()));
    b.delete().unwrap();
    assert!(b.origin.is_deleted(&topic()));
    for _ in 0..2 {
        assert!(b.batches(1).is_empty() && b.batches(2).is_empty());
        assert!(b.control().is_deleted());
        assert!(
            matches!(b.publish("k", "y"), Err(PublishError::NoTopic(why)) if why.contains("seaway topic create t"))
        );
        // A retry of what was stored brings nothing back.
        assert!(b.try_publish(Bench::message("k9", "x", stamp(9)), &answers));
        b.settle();
        assert!(matches!(answers.lock().pop(), Some(Err(PublishError::NoTopic(_)))));
        assert!(matches!(b.delete(), Err(PublishError::Invalid(why)) if why.contains("deleted already")));
        b.apply().unwrap();
        // Through a restart.
        b = b.restart(Survive::Nothing, 8);
    }
    b.create().unwrap();
    assert!(!b.control().is_deleted());
    let first = b.publish("k", "new").unwrap();
    let end = ends[usize::from(first.log.queue.0) - 1];
    assert!(first.place.offset >= end.offset && first.place.incarnation > end.incarnation, "{first:?} above {end}");
    // The retry is told what became of it; the next message of that producer is a new one.
    assert!(b.try_publish(Bench::message("k9", "x", stamp(9)), &answers));
    b.settle();
    assert_eq!(answers.lock().pop(), Some(Err(PublishError::Deleted(topic()))));
    assert!(b.try_publish(Bench::message("k9", "z", stamp(10)), &answers));
    b.settle();
    let next = answers.lock().pop().unwrap().unwrap();
    assert!(!stored.iter().any(|s| s.log == next.log && s.place == next.place));
}

#[test]
fn a_tombstone_goes_after_its_time_and_when_all_know_of_it() {
    const YEAR_US: u64 = 1_000_000_000;
    let mut b = bench(2);
    let mut stored: Vec<Stored> = (0..4).map(|n| b.publish(&format!("k{n}"), "x").unwrap()).collect();
    b.delete().unwrap();
    let expire = |b: &Bench, known: bool| {
        b.origin.expire_tombstones(YEAR_US, &|_, _| known);
        b.settle();
        b.log.logs().len()
    };
    assert_eq!(expire(&b, true), 3, "it is too young");
    *b.clock.0.lock() += YEAR_US + 1;
    assert_eq!(expire(&b, false), 3, "somebody does not know of it yet");
    // Life after life, in one process and through restarts.
    for life in 1..5_u32 {
        assert_eq!(expire(&b, true), 0, "life {life}");
        // One row of each is left, that tells where a later life goes on.
        assert_eq!((b.log.scan(Table::Deleted, &[]).len(), b.log.scan(Table::Topics, &[]).len()), (1, 1));
        assert!(b.origin.topic_state(&topic()).is_none());
        let again = b.change(|origin, tell| origin.delete_topic(&topic(), With::default(), tell));
        assert!(matches!(again, Err(PublishError::Invalid(why)) if why.contains("never published")), "life {life}");
        if life % 2 == 0 {
            b = b.restart(Survive::Nothing, 7);
        }
        let below: BTreeMap<Queue, u64> = stored.iter().map(|s| (s.log.queue, s.place.offset)).collect();
        for n in 0..4 {
            let new = b.publish(&format!("k{n}"), "a new topic").unwrap();
            let above = below.get(&new.log.queue).is_none_or(|below| new.place.offset > *below);
            assert!(above, "life {life}: {} {} after {below:?}", new.log, new.place);
            stored.push(new);
        }
        assert!(b.origin.topic_state(&topic()).is_some_and(|state| state.deleted.is_none()));
        assert!(!b.control().is_deleted());
        b.delete().unwrap();
        *b.clock.0.lock() += YEAR_US + 1;
    }
    let places: BTreeSet<_> = stored.iter().map(|s| (s.log.queue, s.place)).collect();
    assert_eq!(places.len(), stored.len(), "places were used twice: {stored:?}");
}

/// Holders keep the control queue: its places, too, are used once.
#[test]
fn a_control_queue_goes_on_above_its_former_life() {
    let b = bench(1);
    let entry = |b: &Bench| b.batches(0).last().unwrap().clone();
    b.create().unwrap();
    b.delete().unwrap();
    let last = entry(&b);
    b.origin.expire_tombstones(0, &|_, _| true);
    *b.clock.0.lock() += 10;
    b.origin.expire_tombstones(0, &|_, _| true);
    b.settle();
    assert!(b.log.logs().is_empty());
    b.create().unwrap();
    let first = entry(&b);
    assert_eq!(first.begin().offset, last.end().offset);
    assert_eq!((first.header().previous, first.header().chain_before), (Some(last.end()), last.chain_after()));
}

#[test]
fn deleted_topics_count_until_they_are_over() {
    let b = bench(1);
    let name = |n: usize| format!("t{n}").parse::<Topic>().unwrap();
    let create = |n| b.change(|origin, tell| origin.create_topic(&name(n), With::default(), tell));
    for n in 0..TOPICS_MAX {
        create(n).unwrap();
        b.change(|origin, tell| origin.delete_topic(&name(n), With::default(), tell)).unwrap();
    }
    let refused = create(TOPICS_MAX);
    let deleted = format!("{TOPICS_MAX} deleted topics");
    assert!(matches!(&refused, Err(PublishError::Unavailable(why)) if why.contains(&deleted)), "{refused:?}");
    // One of them may live again, and when they are over there is room.
    create(5).unwrap();
    *b.clock.0.lock() += 10;
    b.origin.expire_tombstones(0, &|_, _| true);
    b.settle();
    create(TOPICS_MAX).unwrap();
}

#[test]
fn a_refused_change_leaves_the_topic_as_it_was() {
    let b = bench(1);
    b.publish("k", "x").unwrap();
    b.config.lock().queues = 1024;
    for n in 0..OWN_QUEUES_MAX / 1024 {
        let name = format!("t{n}").parse().unwrap();
        b.change(|origin, tell| origin.create_topic(&name, With::default(), tell)).unwrap();
    }
    b.config.lock().queues = 1;
    let key = Bytes::from_static(b"t");
    let with = || With {
        config: Some(TopicConfig { queues: 1024, ..b.config.lock().clone() }),
        entries: vec![Entry::Put { table: Table::Overrides, key: key.clone(), value: key.clone() }],
    };
    let refused = b.change(|origin, tell| origin.change_topic(&topic(), with(), tell));
    assert!(matches!(&refused, Err(PublishError::Unavailable(why)) if why.contains("queues")), "{refused:?}");
    b.publish("k", "y").unwrap();
    assert!(b.log.scan(Table::Overrides, &[]).is_empty());
    // One that is taken has it in its own unit.
    let two = TopicConfig { queues: 2, ..b.config.lock().clone() };
    let with = With { config: Some(two), ..with() };
    let units = b.log.units_waiting();
    b.origin.change_topic(&topic(), with, Box::new(|_| {}));
    b.origin.pump();
    assert_eq!(b.log.units_waiting(), units + 1);
    b.settle();
    assert_eq!(b.control().settings.as_ref().unwrap().1.queues, 2);
    assert_eq!(b.log.scan(Table::Overrides, &[]).len(), 1);
    // The file may ask for too much, too: the topic goes on as it is.
    b.config.lock().queues = 1024;
    let b = b.restart(Survive::Nothing, 8);
    b.publish("k", "z").unwrap();
    assert_eq!(b.reports.lock().iter().map(|r| r.name).collect::<Vec<_>>(), ["too-many-queues"]);
}

#[test]
fn a_topic_whose_row_cannot_be_read_is_refused_and_told() {
    let b = bench(1);
    b.publish("k", "x").unwrap();
    let (key, value) = (Bytes::from_static(b"t"), Bytes::from_static(&[0xff, 0xff]));
    b.log.submit(Unit { entries: vec![Entry::Put { table: Table::Topics, key, value }] }, Box::new(|_| {})).unwrap();
    b.settle();
    let before = b.log.info(&log_of(1), true).unwrap();
    let b = b.restart(Survive::Nothing, 8);
    assert_eq!(b.reports.lock().iter().map(|r| r.name).collect::<Vec<_>>(), ["stored-state-unreadable"]);
    assert!(matches!(b.publish("k", "y"), Err(PublishError::Unavailable(why)) if why.contains("cannot be read")));
    assert!(b.create().is_err() && b.delete().is_err());
    assert_eq!(b.log.info(&log_of(1), true).unwrap(), before);
}

/// What is to make room needs some itself, for the entry that says why.
#[test]
fn a_deletion_and_its_end_are_taken_on_a_full_disk() {
    let b = bench(2);
    (0..4).for_each(|n| drop(b.publish(&format!("k{n}"), "x").unwrap()));
    b.log.set_room(Some(0));
    let (name, given) = (topic(), Answers::default());
    assert!(b.try_publish(Bench::message("k", "y", None), &given));
    b.settle();
    assert!(given.lock().pop().unwrap().is_err(), "there is no room for messages");
    b.delete().unwrap();
    assert!(b.control().is_deleted() && b.origin.is_deleted(&name));
    assert!(b.batches(1).is_empty() && b.batches(2).is_empty());
    *b.clock.0.lock() += 10;
    b.origin.expire_tombstones(0, &|_, _| true);
    b.settle();
    assert!(b.log.logs().is_empty());
}

#[test]
fn a_publish_creates_only_what_it_may() {
    let b = bench(1);
    b.config.lock().auto_create = false;
    assert!(matches!(b.publish("k", "x"), Err(PublishError::NoTopic(why)) if why.contains("seaway topic create t")));
    assert!(b.log.logs().is_empty());
    b.create().unwrap();
    b.publish("k", "x").unwrap();
    // What is there stays publishable through a restart.
    let b = b.restart(Survive::Nothing, 9);
    b.publish("k", "y").unwrap();
}

#[test]
fn settings_are_written_anew_in_full_now_and_then() {
    let mut b = bench(1);
    b.config.lock().replicate = Some(vec!["us".parse().unwrap()]);
    b.publish("k", "x").unwrap();
    b.config.lock().queues = 2;
    b.apply().unwrap();
    let entries = |b: &Bench| b.batches(0).len();
    assert_eq!(entries(&b), 2);
    b = b.restart(Survive::Nothing, 8);
    b.publish("k", "y").unwrap();
    assert_eq!(entries(&b), 2, "it is young");
    *b.clock.0.lock() += REWRITE_AFTER_US + 10;
    b = b.restart(Survive::Nothing, 9);
    b.publish("k", "z").unwrap();
    assert_eq!(entries(&b), 3);
    // Whoever reads only that one knows all.
    let last = b.batches(0).pop().unwrap();
    let message = seaway_federation_proto::message::decode_messages(&last, 1 << 20).unwrap().pop().unwrap();
    let mut alone = Control::default();
    alone.read(last.begin(), &message.payload);
    let whole = b.control();
    assert_eq!(alone.settings.unwrap().1, whole.settings.as_ref().unwrap().1);
    assert_eq!(alone.changes, whole.changes);
}

/// A crash at any moment leaves a topic as it was before the change, or as it is after it.
#[test]
fn a_change_is_whole_or_not_at_all_through_a_crash() {
    for survive in 0..4 {
        let b = bench(1);
        b.publish("k", "x").unwrap();
        b.config.lock().queues = 3;
        b.origin.apply_settings(&topic(), Box::new(|_| {}));
        b.origin.pump();
        let answers = Answers::default();
        b.try_publish(Bench::message("k1", "y", None), &answers);
        b.try_publish(Bench::message("k2", "z", None), &answers);
        let b = b.restart(Survive::Units(survive), 11);
        let control = b.control();
        let queues = control.settings.as_ref().unwrap().1.queues;
        assert_eq!(queues == 3, survive > 0, "{survive} units survive");
        assert_eq!(control.changes.len(), usize::from(survive > 0));
        b.publish("k3", "w").unwrap();
        // Whatever survived: each queue's first batch after the change names it.
        let control = b.control();
        let change = control.changes.last().unwrap();
        for queue in 1..=3 {
            let end = change.ends.get(&Queue(queue)).map_or(0, |e| e.offset);
            let first = b.batches(queue).into_iter().find(|b| b.begin().offset >= end);
            assert!(first.is_none_or(|first| first.header().after == Some(change.entry)), "queue {queue}");
        }
    }
}
