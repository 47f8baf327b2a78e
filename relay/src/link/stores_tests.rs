//! What the changes owe each other and those who wait for them.

use bytes::Bytes;
use seaway_federation_proto::{
    ids::{Incarnation, LogName, Place, Queue},
    session::{FetchLine, Lane},
    wire::link,
};

use super::*;
use crate::log::memory::{MemoryConfig, MemoryDisk, MemoryLog};

#[derive(Default)]
struct Posts(Mutex<Vec<FetchNumber>>);

impl Posts {
    fn all(&self) -> Vec<FetchNumber> {
        self.0.lock().clone()
    }
}

impl Mailbox for Posts {
    fn post(&self, command: LinkCommand) {
        self.0.lock().push(match command {
            LinkCommand::Serve(number) => number,
            LinkCommand::StartFetch(order) => order.number,
            LinkCommand::StopFetch(number) => 1000 + number,
            _ => return,
        });
    }
}

const LINK: LinkId = LinkId(1);

fn name() -> LogName {
    LogName { topic: "t".parse().unwrap(), origin: "a".parse().unwrap(), queue: Queue(1) }
}

fn put(key: u8, bytes: usize) -> Vec<Change> {
    vec![Change::Put { table: StateTable::Held, key: vec![key].into(), value: Bytes::from(vec![key; bytes]) }]
}

/// What a site stated.
fn said(key: u8, bytes: usize) -> Vec<Change> {
    let key = vec![b'h', 0, key].into();
    vec![Change::Put { table: StateTable::Held, key, value: vec![0; bytes].into() }]
}

/// A change that does not fit: there is no such copy.
fn unfit() -> Vec<Change> {
    vec![Change::Drop { log: name() }]
}

fn begin() -> Vec<Change> {
    let at = Place { incarnation: Incarnation { counter: 1, random: 5 }, offset: 0 };
    vec![Change::BeginCopy { log: name(), at, chain: None }]
}

fn order(number: FetchNumber, passing: bool) -> FetchOrder {
    FetchOrder {
        number,
        lane: Lane::Live,
        log: name(),
        from: Place { incarnation: Incarnation { counter: 1, random: 5 }, offset: 0 },
        line: FetchLine::Main,
        passing,
        hops: 8,
        allowance: 0,
        until: None,
        no_wait: false,
        towards: None,
    }
}

fn stores(config: MemoryConfig) -> (Arc<MemoryLog>, Stores, Arc<Posts>) {
    let log = MemoryLog::open(MemoryDisk::default(), config);
    let bounds = Bounds { said: 10_000, copies: 20_000, promises: 2000 };
    let stores = Stores::bounded(log.clone(), Arc::new(|| {}), bounds);
    (log, stores, Arc::default())
}

/// A log that takes nothing more until it was made durable.
fn full() -> (Arc<MemoryLog>, Stores, Arc<Posts>) {
    let (log, stores, mailbox) = stores(MemoryConfig { queued_bytes_max: 100, ..MemoryConfig::default() });
    assert!(stores.store(put(0, 80)).is_empty());
    (log, stores, mailbox)
}

#[test]
fn each_thing_that_is_stored_has_a_table_of_its_own() {
    let tables: std::collections::BTreeSet<Table> = StateTable::ALL.into_iter().map(table_of).collect();
    assert_eq!(tables.len(), StateTable::ALL.len());
    let numbers: Vec<u8> = Table::ALL.into_iter().map(|table| table as u8).collect();
    let known: Vec<u8> = (1..=13).chain([120, 121]).collect();
    assert_eq!(numbers, known, "numbers are permanent, and all tables are listed");
}

#[test]
fn a_promise_is_given_when_what_came_before_is_durable() {
    let (log, stores, mailbox) = stores(MemoryConfig::default());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(1));
    assert_eq!(mailbox.all(), [1], "nothing came before");
    assert!(stores.store(put(1, 10)).is_empty());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(2));
    assert_eq!(stores.start_fetch(LINK, mailbox.clone(), order(3, false)), None);
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [1, 3], "accepted is enough for a fetch, not for a promise");
    log.sync_now();
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [1, 3, 2]);
    assert_eq!(stores.waiting(), 0);
}

#[test]
fn what_a_busy_log_refuses_waits_in_order() {
    let (log, stores, mailbox) = stores(MemoryConfig { queued_bytes_max: 100, ..MemoryConfig::default() });
    for key in 0..5 {
        assert!(stores.store(put(key, 80)).is_empty());
        assert_eq!(stores.start_fetch(LINK, mailbox.clone(), order(u64::from(key), false)), None);
    }
    assert_eq!(mailbox.all(), [0], "a fetch does not overtake the copy it needs");
    for _ in 0..5 {
        log.sync_now();
        stores.pump(Duration::ZERO);
    }
    assert_eq!(mailbox.all(), [0, 1, 2, 3, 4]);
    assert_eq!(log.scan(Table::Held, &[]).len(), 5);
    assert_eq!((stores.waiting(), stores.dropped()), (0, 0));
}

#[test]
fn a_change_that_no_longer_fits_does_not_hold_up_the_others() {
    let (log, stores, _) = stores(MemoryConfig::default());
    let mut changes = unfit();
    changes.extend(put(1, 1));
    assert!(stores.store(changes).is_empty());
    log.sync_now();
    assert_eq!(log.scan(Table::Held, &[]).len(), 1);
    assert_eq!((stores.waiting(), stores.dropped()), (0, 1));
}

#[test]
fn a_change_with_nothing_in_it_promises_nothing_of_those_before() {
    let (log, stores, mailbox) = stores(MemoryConfig::default());
    assert!(stores.store(put(1, 10)).is_empty());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(1));
    assert!(stores.store(unfit()).is_empty());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(2));
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [0; 0], "the first change is not durable yet");
    log.sync_now();
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [1, 2]);
    // With nothing under way there is nothing to wait for.
    assert!(stores.store(unfit()).is_empty());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(3));
    assert_eq!(mailbox.all(), [1, 2, 3]);
}

#[test]
fn promises_are_settled_in_order_of_the_changes() {
    let (log, stores, mailbox) = stores(MemoryConfig::default());
    for number in 1..=3 {
        assert!(stores.store(put(number, 10)).is_empty());
        stores.post_durable(mailbox.clone(), LinkCommand::Serve(number.into()));
        if number == 2 {
            log.sync_now();
            assert!(stores.store(unfit()).is_empty());
        }
    }
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [1, 2]);
    log.sync_now();
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [1, 2, 3]);
}

#[test]
fn what_others_say_again_is_bounded_in_bytes_and_not_promised() {
    let (log, stores, mailbox) = full();
    let taken = (0..50).filter(|key| stores.store(said(*key, 1000)).is_empty()).count();
    assert!((7..=8).contains(&taken), "{taken} of about 1,250 bytes each fit into 10,000");
    assert_eq!(stores.dropped(), 50 - taken as u64);
    // What this site itself must not forget is taken all the same.
    let own = Change::Put { table: StateTable::Starts, key: vec![1].into(), value: vec![0; 1000].into() };
    assert!(stores.store(vec![own]).is_empty());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(1));
    for _ in 0..20 {
        log.sync_now();
        stores.pump(Duration::ZERO);
    }
    assert_eq!(mailbox.all(), [0; 0], "part of what it promises was given back");
    assert_eq!(stores.waiting(), 0);
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(2));
    assert_eq!(mailbox.all(), [0; 0], "the machine may still take it for stored");
    stores.machine_knows();
    assert!(stores.store(said(9, 1000)).is_empty(), "there is room again");
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(3));
    log.sync_now();
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [3]);
    assert_eq!(log.scan(Table::Held, &[]).len(), taken + 2, "what was taken before, and after");
}

#[test]
fn copies_and_fetches_past_the_bounds_are_given_back() {
    let (log, stores, mailbox) = full();
    while stores.store(said(1, 1000)).is_empty() {}
    let given = (1..100).filter_map(|number| stores.start_fetch(LINK, mailbox.clone(), order(number, false)));
    let first = given.min().unwrap();
    assert!(first < 4, "{first}");
    assert!(stores.store(begin()).is_empty(), "there is more room for copies");
    while stores.store(begin()).is_empty() {}
    let mut changes = begin();
    changes.extend(put(7, 10));
    let given_back = stores.store(changes);
    assert!(matches!(&given_back[..], [Change::BeginCopy { .. }]), "{given_back:?}");
    assert!(stores.waiting() <= 21_000, "{}", stores.waiting());
    for _ in 0..100 {
        log.sync_now();
        stores.pump(Duration::ZERO);
    }
    assert_eq!(mailbox.all().len() as u64, first - 1);
    assert_eq!((stores.waiting(), log.scan(Table::Held, &[7]).len()), (0, 1));
}

#[test]
fn fetches_that_wait_are_stopped_where_they_wait() {
    let (log, stores, mailbox) = full();
    assert!(stores.store(put(1, 80)).is_empty());
    for number in 1..=3 {
        assert_eq!(stores.start_fetch(LINK, mailbox.clone(), order(number, false)), None);
    }
    assert_eq!(stores.start_fetch(LinkId(2), mailbox.clone(), order(4, false)), None);
    stores.stop_fetch(LINK, &*mailbox, 2);
    stores.forget_link(LinkId(2));
    assert_eq!(stores.start_fetch(LINK, mailbox.clone(), order(5, true)), None);
    assert_eq!(mailbox.all(), [5], "what is read through waits for nothing");
    log.sync_now();
    stores.pump(Duration::ZERO);
    stores.stop_fetch(LINK, &*mailbox, 1);
    assert_eq!(mailbox.all(), [5, 1, 3, 1001]);
    // However many come and go, they take no room.
    assert!(stores.store(put(2, 80)).is_empty());
    for number in 10..10_000 {
        assert_eq!(stores.start_fetch(LINK, mailbox.clone(), order(number, false)), None);
        stores.stop_fetch(LINK, &*mailbox, number);
    }
    assert!(stores.waiting() < 3000, "{}", stores.waiting());
}

#[test]
fn promises_are_bounded_in_bytes() {
    let (log, stores, mailbox) = full();
    let goodbye = link::Goodbye { text: "x".repeat(200) };
    let command = || LinkCommand::Send(Box::new(link::control::Kind::Goodbye(goodbye.clone())));
    assert!(link::control::Kind::Goodbye(goodbye.clone()).encoded_len() > 200);
    for _ in 0..100 {
        stores.post_durable(mailbox.clone(), command());
    }
    assert!(stores.waiting() <= 2000, "{}", stores.waiting());
    assert!(stores.dropped() > 90);
    log.sync_now();
    stores.pump(Duration::ZERO);
    assert_eq!(stores.waiting(), 0);
}

#[test]
fn no_promise_is_given_for_what_was_lost() {
    let (log, stores, mailbox) = stores(MemoryConfig::default());
    assert!(stores.store(put(1, 10)).is_empty());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(1));
    log.fail_next_write("no disk");
    log.sync_now();
    stores.pump(Duration::ZERO);
    assert!(stores.store(put(2, 10)).is_empty());
    assert!(stores.store(Vec::new()).is_empty());
    stores.post_durable(mailbox.clone(), LinkCommand::Serve(2));
    stores.pump(Duration::ZERO);
    assert_eq!(mailbox.all(), [0; 0]);
}

#[test]
fn on_a_full_disk_what_makes_room_goes_with_all_before_it() {
    let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig { auto: true, ..MemoryConfig::default() });
    let bounds = Bounds { said: 1 << 20, copies: 1 << 20, promises: 2000 };
    let (stores, mailbox) = (Stores::bounded(log.clone(), Arc::new(|| {}), bounds), Arc::<Posts>::default());
    assert!(stores.store(begin()).is_empty());
    log.set_room(Some(0));
    assert!(stores.store(put(1, 10)).is_empty());
    assert!(stores.start_fetch(LINK, mailbox.clone(), order(7, false)).is_none());
    assert!(stores.store(put(2, 10)).is_empty());
    assert_eq!(log.scan(Table::Held, b"").len(), 0, "state waits");
    assert!(stores.store(vec![Change::Drop { log: name() }]).is_empty());
    stores.pump(Duration::from_secs(10));
    stores.pump(Duration::from_secs(20));
    assert_eq!(log.scan(Table::Held, b"").len(), 2, "what waited before it went with it");
    assert!(log.logs().is_empty());
    assert_eq!(mailbox.all(), [7], "and nothing overtook");
    // Too much to go into the reserve with it.
    log.set_room(None);
    assert!(stores.store(begin()).is_empty());
    log.set_room(Some(0));
    for key in 3..10 {
        assert!(stores.store(put(key, 20_000)).is_empty());
    }
    assert!(stores.store(vec![Change::Drop { log: name() }]).is_empty());
    stores.pump(Duration::from_secs(30));
    stores.pump(Duration::from_secs(40));
    assert_eq!(log.scan(Table::Held, b"").len(), 2);
    log.set_room(None);
    stores.pump(Duration::from_secs(50));
    stores.pump(Duration::from_secs(60));
    assert_eq!(log.scan(Table::Held, b"").len(), 9);
}
