//! Two drivers joined back to back over logs in memory.

use parking_lot::Mutex;
use seaway_federation_proto::{
    envelope::{Chain, Codec, Placement, Tags},
    ids::{Incarnation, Queue, Start},
    message::{BodyBuilder, Message},
    session::{FetchOrder, LANES, NodeKind},
};

use super::*;
use crate::log::{
    contract::{Advanced, Done, Listener, LogStats, Poisoned, Rejected, Retention, Surveyed, Table},
    memory::{MemoryConfig, MemoryDisk, MemoryLog},
};

const NOW: Duration = Duration::from_secs(50);
const CREDIT: u64 = 8000;
const LINK: LinkId = LinkId(1);

#[derive(Default)]
struct TestMailbox {
    commands: Mutex<VecDeque<LinkCommand>>,
}

impl Mailbox for TestMailbox {
    fn post(&self, command: LinkCommand) {
        self.commands.lock().push_back(command);
    }
}

#[derive(Debug, PartialEq)]
enum Told {
    Up,
    Control,
    Requested(FetchNumber),
    Outside(FetchNumber, Place),
    Room(FetchNumber, u64),
    Over(FetchNumber),
    Ended(FetchNumber, FetchEnd),
    Refused(FetchNumber),
    Passed(FetchNumber, Place),
    OneWay,
    Stopped(String),
    Closed(CloseReason),
}

/// Serves every fetch from the copy, and remembers what it was told.
struct TestHub {
    told: Mutex<Vec<Told>>,
    passed: Mutex<Vec<(Lane, u64)>>,
    mailbox: Arc<TestMailbox>,
}

impl TestHub {
    fn note(&self, told: Told) {
        let mut all = self.told.lock();
        assert!(!matches!(all.last(), Some(Told::Closed(_))), "{told:?} came after the end");
        all.push(told);
    }
}

impl HubPort for TestHub {
    fn on_limited(&self, _: Duration, _: LinkId, _: Option<String>) {}
    fn on_condition(&self, _: Duration, _: LinkId, _: Option<seaway_federation_proto::session::vitals::Trouble>) {}
    fn on_up(&self, _: Duration, _: LinkId, _: PeerInfo) {
        self.note(Told::Up);
    }
    fn on_control(&self, _: Duration, _: LinkId, _: Box<link::control::Kind>) {
        self.note(Told::Control);
    }
    fn on_fetch_requested(&self, _: Duration, _: LinkId, order: FetchOrder) {
        self.note(Told::Requested(order.number));
        self.mailbox.post(LinkCommand::Serve(order.number));
    }
    fn on_served_outside(&self, _: Duration, _: LinkId, number: FetchNumber, next: Place, _: u64) {
        self.note(Told::Outside(number, next));
    }
    fn on_served_room(&self, _: Duration, _: LinkId, number: FetchNumber, _: Place, passed: u64, _: u64) {
        self.note(Told::Room(number, passed));
    }
    fn on_served_over(&self, _: Duration, _: LinkId, number: FetchNumber) {
        self.note(Told::Over(number));
    }
    fn on_fetch_ended(&self, _: Duration, _: LinkId, ended: FetchEnded) {
        self.note(Told::Ended(ended.number, ended.end));
    }
    fn on_refused_batch(&self, _: Duration, _: LinkId, number: FetchNumber, _: AppendRefusal) {
        self.note(Told::Refused(number));
    }
    fn on_body_version(&self, _: Duration, _: &LogName, _: u8) {}
    fn on_stopped(&self, _: Duration, why: &str) {
        self.note(Told::Stopped(why.to_owned()));
    }
    fn is_stopped(&self) -> bool {
        self.told.lock().iter().any(|told| matches!(told, Told::Stopped(_)))
    }
    fn on_passed_batch(&self, _: Duration, _: LinkId, number: FetchNumber, batch: Batch, lane: Lane, credit: u64) {
        self.note(Told::Passed(number, batch.begin()));
        self.passed.lock().push((lane, credit));
    }
    fn on_one_way(&self, _: Duration, _: LinkId, _: Box<link::OneWay>) {
        self.note(Told::OneWay);
    }
    fn on_closed(&self, _: Duration, _: LinkId, reason: &CloseReason) {
        self.note(Told::Closed(reason.clone()));
    }
}

struct Node {
    log: Arc<MemoryLog>,
    hub: Arc<TestHub>,
    mailbox: Arc<TestMailbox>,
    driver: LinkDriver,
    jobs: usize,
    sync: bool,
}

fn config(node: &str) -> SessionConfig {
    SessionConfig {
        federation: "test".to_owned(),
        node: node.parse().unwrap(),
        kind: NodeKind::Edge,
        start: Start { time_us: 1, random: 2 },
        versions: 1..=1,
        batch_bytes_max: 4096,
        lane_credit: LANES.map(|lane| (lane, CREDIT)),
        control_queue_bytes_max: 1 << 20,
        probe_interval: Duration::from_secs(1),
        dead_after: Duration::from_secs(10),
        software: "test".to_owned(),
        fetches_max: 16,
        peer_identity: None,
    }
}

fn node(name: &str, config_of_log: MemoryConfig) -> Node {
    let log = MemoryLog::open(MemoryDisk::default(), config_of_log);
    let shared: Arc<dyn CommitLog> = log.clone();
    node_with(name, log, shared)
}

fn node_with(name: &str, log: Arc<MemoryLog>, shared: Arc<dyn CommitLog>) -> Node {
    let mailbox = Arc::new(TestMailbox::default());
    let hub = Arc::new(TestHub { told: Mutex::default(), passed: Mutex::default(), mailbox: mailbox.clone() });
    let driver = LinkDriver::new(LINK, config(name), shared, hub.clone(), mailbox.clone(), NOW);
    let posted = mailbox.clone();
    log.set_listener(Arc::new(move |advanced: &[Advanced]| {
        advanced.iter().for_each(|a| posted.post(LinkCommand::Advanced(a.log.clone())));
    }));
    Node { log, hub, mailbox, driver, jobs: 0, sync: true }
}

impl Node {
    fn post(&self, command: LinkCommand) {
        self.mailbox.post(command);
    }

    fn told(&self, what: &Told) -> usize {
        self.hub.told.lock().iter().filter(|t| *t == what).count()
    }

    /// One round; whether anything happened.
    fn turn(&mut self, peer: &mut Node) -> bool {
        let mut busy = false;
        while let Some(command) = { self.mailbox.commands.lock().pop_front() } {
            self.driver.handle_command(NOW, command);
            busy = true;
        }
        for channel in [Channel::Control, Channel::Lane(Lane::Live), Channel::Lane(Lane::Backlog)] {
            while let Some(transmit) = self.driver.poll_transmit(NOW, channel) {
                busy = true;
                transmit.chunks.into_iter().for_each(|c| peer.driver.handle_bytes(NOW, channel, c));
            }
        }
        while let Some(bytes) = self.driver.poll_one_way() {
            peer.driver.handle_one_way(NOW, bytes);
            busy = true;
        }
        while let Some(job) = self.driver.poll_read_job() {
            self.jobs += 1;
            let outcome = job.run(&*self.log);
            self.driver.handle_read_done(NOW, job.number, outcome);
            busy = true;
        }
        let waiting = self.log.units_waiting();
        if self.sync {
            self.log.sync_now();
        }
        busy || self.log.units_waiting() < waiting
    }
}

fn settle(a: &mut Node, b: &mut Node) {
    for _ in 0..1000 {
        if !(a.turn(b) | b.turn(a)) {
            return;
        }
    }
    panic!("the two nodes never come to rest");
}

fn log_name() -> LogName {
    LogName { topic: "x".parse().unwrap(), origin: "a".parse().unwrap(), queue: Queue(1) }
}

fn batches(count: u64) -> Vec<Batch> {
    let mut chain = Chain::default();
    let one = |offset| {
        let mut body = BodyBuilder::default();
        body.push(&Message {
            path: "x".parse().unwrap(),
            key: None,
            headers: Vec::new(),
            time_us: 1,
            producer: None,
            payload: vec![7; 1000].into(),
        });
        let placement = Placement {
            log: &log_name(),
            begin: at(offset),
            first_of_incarnation: offset == 0,
            previous: None,
            origin_time_us: 1,
            chain_before: chain,
        };
        let batch = Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap();
        assert_eq!(batch.header().tags, Tags::Only(vec!["".into()]));
        chain = batch.chain_after();
        batch
    };
    (0..count).map(one).collect()
}

fn at(offset: u64) -> Place {
    Place { incarnation: Incarnation { counter: 1, random: 5 }, offset }
}

fn fill(node: &Node, role: Role, batches: &[Batch]) {
    for batch in batches {
        let unit = Unit { entries: vec![Entry::Append { role, batch: batch.clone() }] };
        node.log.submit(unit, Box::new(|done| done.unwrap())).unwrap();
    }
    node.log.sync_now();
}

fn order(number: FetchNumber, from: Place) -> FetchOrder {
    FetchOrder {
        number,
        lane: Lane::Live,
        log: log_name(),
        from,
        line: FetchLine::Main,
        passing: false,
        hops: 3,
        allowance: 0,
        until: None,
        no_wait: false,
        towards: None,
    }
}

fn end_of(node: &Node) -> Option<Place> {
    node.log.info(&log_name(), true).map(|info| info.end)
}

fn pair(config_of_copy: MemoryConfig) -> (Node, Node) {
    let (mut a, mut b) = (node("a/1", MemoryConfig::default()), node("b/1", config_of_copy));
    settle(&mut a, &mut b);
    assert_eq!((a.told(&Told::Up), b.told(&Told::Up)), (1, 1));
    (a, b)
}

#[test]
fn a_copy_follows_its_origin() {
    let (mut a, mut b) = pair(MemoryConfig::default());
    let all = batches(40);
    fill(&a, Role::Own, &all[..30]);
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(30)));
    fill(&a, Role::Own, &all[30..]);
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(40)));
    let bytes: u64 = all.iter().map(|b| b.len() as u64).sum();
    let (sent, received) = (a.driver.counters(), b.driver.counters());
    assert_eq!(sent.batches_out.load(Ordering::Relaxed), 40);
    assert_eq!(received.batches_in.load(Ordering::Relaxed), 40);
    assert!(sent.bytes_out.load(Ordering::Relaxed) > bytes);
    assert_eq!(sent.bytes_out.load(Ordering::Relaxed), received.bytes_in.load(Ordering::Relaxed));
    assert_eq!(a.log.read(&log_name(), at(0), Line::Main, 1 << 20).unwrap().places(), places(0..40));
    assert_eq!(b.log.read(&log_name(), at(0), Line::Main, 1 << 20).unwrap().places(), places(0..40));
}

trait Places {
    fn places(&self) -> Vec<Place>;
}

impl Places for Read {
    fn places(&self) -> Vec<Place> {
        match self {
            Read::Batches { batches, .. } => batches.iter().map(Batch::begin).collect(),
            _ => Vec::new(),
        }
    }
}

fn places(range: std::ops::Range<u64>) -> Vec<Place> {
    range.map(at).collect()
}

#[test]
fn repeats_are_dropped_and_cost_no_credit() {
    let (mut a, mut b) = pair(MemoryConfig::default());
    let all = batches(60);
    fill(&a, Role::Own, &all);
    fill(&b, Role::Copy, &all[..50]);
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(60)));
    assert_eq!(b.driver.counters().repeats.load(Ordering::Relaxed), 50);
    assert_eq!(b.told(&Told::Refused(1)), 0);
}

#[test]
fn a_batch_that_does_not_fit_stops_its_fetch_and_nothing_else() {
    let (mut a, mut b) = pair(MemoryConfig::default());
    let all = batches(60);
    fill(&a, Role::Own, &all);
    fill(&b, Role::Copy, &all[..1]);
    b.post(LinkCommand::StartFetch(order(1, at(3))));
    settle(&mut a, &mut b);
    assert_eq!((b.told(&Told::Refused(1)), end_of(&b)), (1, Some(at(1))));
    assert_eq!(a.told(&Told::Over(1)), 1);
    b.post(LinkCommand::StartFetch(order(2, at(1))));
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(60)));
}

/// The queue has room for the batch itself, but not for what it is charged beside: waiting for that must not spin.
#[test]
fn a_busy_log_is_not_asked_again_before_there_is_room() {
    let length = batches(1)[0].len() as u64;
    let (mut a, mut b) = pair(MemoryConfig { queued_bytes_max: 3 * length + 600, ..MemoryConfig::default() });
    b.sync = false;
    fill(&a, Role::Own, &batches(40));
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    assert_eq!(b.log.units_waiting(), 2);
    b.sync = true;
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(40)));
}

#[test]
fn a_busy_log_holds_batches_within_the_credit_and_in_order() {
    let (mut a, mut b) = pair(MemoryConfig { queued_bytes_max: 3000, ..MemoryConfig::default() });
    b.sync = false;
    fill(&a, Role::Own, &batches(40));
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    assert_eq!(b.log.units_waiting(), 2);
    let sent = a.driver.counters().bytes_out.load(Ordering::Relaxed);
    assert!(sent < CREDIT + 1000, "{sent} bytes went out although nothing was stored");
    assert!(b.driver.held.len() >= 4);
    b.sync = true;
    settle(&mut a, &mut b);
    assert_eq!((end_of(&b), b.driver.held.len()), (Some(at(40)), 0));
    assert_eq!(b.told(&Told::Refused(1)), 0);
}

#[test]
fn the_end_of_a_fetch_does_not_overtake_its_batches() {
    let (mut a, mut b) = pair(MemoryConfig { queued_bytes_max: 2500, ..MemoryConfig::default() });
    b.sync = false;
    fill(&a, Role::Own, &batches(5));
    b.post(LinkCommand::StartFetch(FetchOrder { no_wait: true, ..order(1, at(0)) }));
    settle(&mut a, &mut b);
    assert!(end_of(&b).is_none_or(|end| end < at(5)));
    assert_eq!(b.told(&Told::Ended(1, FetchEnd::AtEnd)), 0, "batches are still waiting for the log");
    b.sync = true;
    settle(&mut a, &mut b);
    assert_eq!((end_of(&b), b.told(&Told::Ended(1, FetchEnd::AtEnd))), (Some(at(5)), 1));
}

#[test]
fn a_stopped_fetch_gives_its_held_credit_back() {
    let (mut a, mut b) = pair(MemoryConfig { queued_bytes_max: 3000, ..MemoryConfig::default() });
    b.sync = false;
    fill(&a, Role::Own, &batches(40));
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    b.post(LinkCommand::StopFetch(1));
    settle(&mut a, &mut b);
    assert_eq!((b.driver.held.len(), a.told(&Told::Over(1))), (0, 1));
    b.sync = true;
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(2)));
    b.post(LinkCommand::StartFetch(order(2, at(2))));
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(40)));
}

#[test]
fn a_full_disk_is_tried_again_without_haste() {
    let (mut a, mut b) = pair(MemoryConfig { room_bytes: Some(5000), ..MemoryConfig::default() });
    fill(&a, Role::Own, &batches(40));
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(4)));
    b.driver.handle_timeout(NOW + DISK_FULL_RETRY);
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(4)));
    b.log.set_room(None);
    assert!(b.driver.poll_timeout() <= Some(NOW + 2 * DISK_FULL_RETRY));
    b.driver.handle_timeout(NOW + 2 * DISK_FULL_RETRY);
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(40)));
}

#[test]
fn a_poisoned_log_leaves_the_link_up_and_what_is_held_is_served() {
    let (mut a, mut b) = pair(MemoryConfig::default());
    let all = batches(40);
    fill(&a, Role::Own, &all[..3]);
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    b.log.fail_next_write("the disk is on fire");
    // Far more than the credit: all of it comes back.
    fill(&a, Role::Own, &all[3..]);
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(3)));
    assert!(b.hub.is_stopped());
    let told =
        b.hub.told.lock().iter().all(|t| !matches!(t, Told::Stopped(why) if !why.contains("the disk is on fire")));
    assert!(told);
    b.post(LinkCommand::StartFetch(FetchOrder { passing: true, allowance: 1 << 20, ..order(2, at(30)) }));
    settle(&mut a, &mut b);
    assert_eq!(b.told(&Told::Passed(2, at(30))), 1, "there is credit left for what is read through");
    assert_eq!((a.driver.closed(), b.driver.closed()), (None, None));
    // The peer reads the copy; where it ends, it is as if it had run outside.
    a.post(LinkCommand::StartFetch(FetchOrder { passing: true, allowance: 1 << 20, ..order(1, at(0)) }));
    settle(&mut a, &mut b);
    assert_eq!(a.told(&Told::Passed(1, at(2))), 1);
    assert_eq!(b.hub.told.lock().iter().filter(|t| matches!(t, Told::Outside(1, _))).count(), 1);
}

#[test]
fn passing_batches_go_to_the_hub_and_hold_their_credit() {
    let (mut a, mut b) = pair(MemoryConfig::default());
    fill(&a, Role::Own, &batches(40));
    b.post(LinkCommand::StartFetch(FetchOrder { passing: true, allowance: 1 << 20, ..order(1, at(0)) }));
    settle(&mut a, &mut b);
    let first = b.hub.passed.lock().len();
    assert!((5..=7).contains(&first), "{first} batches came on {CREDIT} bytes of credit");
    for _ in 0..20 {
        b.hub.passed.lock().drain(..).for_each(|(lane, credit)| b.mailbox.post(LinkCommand::Stored(lane, credit)));
        settle(&mut a, &mut b);
    }
    assert!((0..40).all(|offset| b.told(&Told::Passed(1, at(offset))) == 1));
    assert_eq!(end_of(&b), None);
}

#[test]
fn what_lies_outside_the_copy_is_fed_until_the_copy_goes_on() {
    let (mut a, mut b) = pair(MemoryConfig::default());
    let all = batches(20);
    fill(&a, Role::Own, &all);
    let trim = Unit { entries: vec![Entry::Trim { log: log_name(), to: at(10) }] };
    a.log.submit(trim, Box::new(|done| done.unwrap())).unwrap();
    a.log.sync_now();
    b.post(LinkCommand::StartFetch(order(1, at(4))));
    settle(&mut a, &mut b);
    assert_eq!(a.told(&Told::Outside(1, at(4))), 1);
    // b's copy begins where it asked from.
    let begin = Entry::BeginCopy { log: log_name(), at: at(4), chain: None };
    b.log.submit(Unit { entries: vec![begin] }, Box::new(|done| done.unwrap())).unwrap();
    for batch in &all[4..10] {
        a.post(LinkCommand::Passed(1, batch.clone(), PassTicket::free()));
        settle(&mut a, &mut b);
    }
    assert_eq!(end_of(&b), Some(at(10)));
    a.post(LinkCommand::Serve(1));
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(20)));
}

#[test]
fn one_way_messages_pass_and_the_queue_is_bounded() {
    let (mut a, mut b) = pair(MemoryConfig::default());
    let message = |bytes: usize| Box::new(link::OneWay { body: vec![1; bytes].into(), hops: 1 });
    a.post(LinkCommand::OneWay(message(10)));
    a.post(LinkCommand::OneWay(message(5000)));
    settle(&mut a, &mut b);
    let dropped = |n: &Node| n.driver.counters().one_way_dropped.load(Ordering::Relaxed);
    assert_eq!((b.told(&Told::OneWay), dropped(&a)), (1, 1));
    for _ in 0..2000 {
        a.driver.handle_command(NOW, LinkCommand::OneWay(message(4000)));
    }
    assert!(a.driver.one_way_bytes <= ONE_WAY_QUEUE_BYTES_MAX);
    assert!(dropped(&a) > 900);
    b.driver.handle_one_way(NOW, Bytes::from_static(&[0xff, 1]));
    assert_eq!(dropped(&b), 1);
}

#[test]
fn a_lost_transport_ends_the_link_at_once() {
    let (mut a, _) = pair(MemoryConfig::default());
    a.driver.handle_lost(NOW, "reset".to_owned());
    assert_eq!(a.driver.closed(), Some(&CloseReason::Lost("reset".to_owned())));
    assert!(a.driver.poll_transmit(NOW, Channel::Control).is_none());
    assert_eq!(a.driver.poll_timeout(), None);
    a.driver.handle_command(NOW, LinkCommand::StartFetch(order(1, at(0))));
    assert!(matches!(a.hub.told.lock().last(), Some(Told::Closed(_))));
}

/// A log of which nothing is in memory.
struct Cold(Arc<MemoryLog>);

impl CommitLog for Cold {
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>> {
        self.0.submit(unit, done)
    }
    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>) {
        self.0.ready(bytes, wake);
    }
    fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        self.0.read(log, from, line, bytes_max)
    }
    fn read_cached(&self, _: &LogName, _: Place, _: Line, _: usize) -> Option<Read> {
        None
    }
    fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        self.0.find_time(log, time_us)
    }
    fn chain_at(&self, log: &LogName, place: Place) -> Result<Option<Chain>, ReadError> {
        self.0.chain_at(log, place)
    }
    fn info(&self, log: &LogName, durable: bool) -> Option<seaway_federation_proto::copies::LogInfo> {
        self.0.info(log, durable)
    }
    fn logs(&self) -> Vec<LogName> {
        self.0.logs()
    }
    fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.0.get(table, key)
    }
    fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.0.scan(table, prefix)
    }
    fn survey(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError> {
        self.0.survey(log, from, visit)
    }

    fn trim_target(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError> {
        self.0.trim_target(log, retention)
    }
    fn reclaim(&self) -> Result<u64, Poisoned> {
        self.0.reclaim()
    }
    fn set_listener(&self, listener: Listener) {
        self.0.set_listener(listener);
    }
    fn stats(&self) -> LogStats {
        self.0.stats()
    }
    fn close(&self) -> Result<(), Poisoned> {
        self.0.close()
    }
}

#[test]
fn cold_reads_are_jobs_for_the_shell_and_failed_ones_end_the_fetch() {
    let memory = MemoryLog::open(MemoryDisk::default(), MemoryConfig::default());
    let mut a = node_with("a/1", memory.clone(), Arc::new(Cold(memory)));
    let mut b = node("b/1", MemoryConfig::default());
    settle(&mut a, &mut b);
    fill(&a, Role::Own, &batches(20));
    b.post(LinkCommand::StartFetch(order(1, at(0))));
    settle(&mut a, &mut b);
    assert_eq!(end_of(&b), Some(at(20)));
    assert!(a.jobs >= 2);
    b.post(LinkCommand::StartFetch(order(2, at(0))));
    let mut job = None;
    while job.is_none() {
        while let Some(command) = { b.mailbox.commands.lock().pop_front() } {
            b.driver.handle_command(NOW, command);
        }
        while let Some(out) = b.driver.poll_transmit(NOW, Channel::Control) {
            out.chunks.into_iter().for_each(|c| a.driver.handle_bytes(NOW, Channel::Control, c));
        }
        while let Some(command) = { a.mailbox.commands.lock().pop_front() } {
            a.driver.handle_command(NOW, command);
        }
        job = a.driver.poll_read_job();
    }
    let failed = ReadError { log: log_name(), place: at(0), why: "a bad sector".to_owned() };
    a.driver.handle_read_done(NOW, 2, Err(failed));
    settle(&mut a, &mut b);
    assert_eq!(a.told(&Told::Over(2)), 1);
    assert_eq!(b.told(&Told::Ended(2, FetchEnd::Failed)), 1);
}
