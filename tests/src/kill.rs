//! The kill test: a child process publishes through the real publish path onto a real disk, prints a receipt for each
//! message that is durable, and is ended with SIGKILL at a random moment. Whatever it printed must be there,
//! unaltered, under the place it printed, in every later life.
//!
//! The child is the `crash` binary itself (`crash child DIR SEED NEXT…`). Most of its messages come from idempotent
//! producers, which do as a client does after a broken connection: they begin with the first sequence that has no
//! receipt and send everything from there again. What was stored already must be answered with the place that it had,
//! and never be stored a second time. They publish in runs, as clients' batches come. The parent reads receipts from a pipe; what was written to the pipe before
//! the kill is read to the end, so no receipt is overlooked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test, called by tests and by the crash command only"
)]

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use seaway_federation_proto::{
    envelope::Codec,
    ids::{LogName, NodeName, Place, Queue, Start},
    message::{ProducerStamp, decode_messages},
};
use seaway_relay::{
    log::{
        conformance::fixture::log_name,
        contract::{CommitLog, Entry, Line, Read, Unit},
        disk::{DiskConfig, DiskLog},
    },
    node::{
        PublishError, TopicConfig,
        clock::SystemClock,
        origin::{Origin, OriginConfig, OwnMessage, RestOfRun, Stored, TellRun},
    },
};

/// Queues that the child publishes to.
const QUEUES: u16 = 3;
/// Publishers: 0 numbers its messages for the test alone, the others are idempotent producers. Those with an even
/// number give all their messages one key.
const PUBLISHERS: u64 = 5;
/// Messages that the child has out without an answer, at most.
const WINDOW: usize = 200;
/// Most messages of one run.
const RUN: u64 = 24;

/// Who published a message, and which of his it is.
type Message = (u64, u64);
/// Where a message is.
type At = (u16, Place);

/// What the rounds came across.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Kills.
    pub kills: u64,
    /// Receipts that were printed, and found.
    pub receipts: u64,
    /// Of these, for messages that an earlier life had stored.
    pub repeated: u64,
    /// Messages found that had no receipt when the child died.
    pub without_receipt: u64,
    /// Batches of several messages that were found.
    pub gathered: u64,
    /// Lives that began without the index.
    pub rebuilt: u64,
    /// Openings that cut torn bytes.
    pub torn: u64,
    /// Bytes of batches that the children moved out of old segments.
    pub moved: u64,
}

fn config(dir: &Path, start: u64) -> DiskConfig {
    let name = NodeName::new("near".parse().unwrap(), "one").unwrap();
    let mut config = DiskConfig::new(dir.to_owned(), "test", name, Start { time_us: start, random: start });
    config.segment_bytes = 256 << 10;
    config.reserve_bytes = 0;
    config.queue_bytes_max = 256 << 10;
    config.flush_bytes = 200 << 10;
    config.checkpoint_bytes = 500 << 10;
    config.dead_share_max = 0.1;
    config.moving_rate = u64::MAX;
    config.idle_after = Duration::from_millis(2);
    config
}

fn name_of(queue: u16) -> LogName {
    log_name("orders", "near", queue)
}

fn publish_path(log: &Arc<DiskLog>, random: u64, wake: Arc<dyn Fn() + Send + Sync>) -> Arc<Origin> {
    let codec = if random.is_multiple_of(2) { Codec::None } else { Codec::Lz4 };
    let settings = OriginConfig {
        site: "near".parse().unwrap(),
        random,
        topics: Arc::new(move |_| TopicConfig { queues: QUEUES, codec, ..TopicConfig::default() }),
        clock: Arc::new(SystemClock::new()),
        wake,
        report: Arc::new(|_| {}),
    };
    Origin::open(settings, Arc::clone(log) as Arc<dyn CommitLog>)
}

/// What the publisher's message of that number holds: both numbers, then noise.
fn payload((publisher, number): Message) -> Bytes {
    let mut rng = StdRng::seed_from_u64(publisher << 48 ^ number);
    let noise = if rng.random_range(0..30) == 0 { rng.random_range(3000..40_000) } else { rng.random_range(0..1500) };
    let mut bytes = vec![0; 16 + noise];
    bytes[..8].copy_from_slice(&publisher.to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    rng.fill_bytes(&mut bytes[16..]);
    bytes.into()
}

fn message(message: Message) -> OwnMessage {
    let (publisher, sequence) = message;
    OwnMessage {
        path: "orders/kill".parse().unwrap(),
        key: publisher.is_multiple_of(2).then(|| Bytes::from(publisher.to_string())),
        headers: Vec::new(),
        payload: payload(message),
        producer: (publisher > 0).then_some(ProducerStamp { id: publisher.into(), epoch: 1, sequence }),
    }
}

/// The child: publishes until it is killed; each producer from its number in `next` on. One line a receipt.
pub fn child(dir: &Path, seed: u64, next: &[u64]) -> io::Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (log, _) = DiskLog::open(config(dir, seed)).map_err(io::Error::other)?;
    let (wake, woken) = mpsc::sync_channel(1);
    let origin = publish_path(&log, seed, Arc::new(move || _ = wake.try_send(())));
    let pumped = Arc::clone(&origin);
    std::thread::spawn(move || woken.iter().for_each(|()| pumped.pump()));
    // Receipts are printed by a thread of their own: the publish path never waits for the reader.
    let (tell, told) = mpsc::channel::<String>();
    std::thread::spawn(move || {
        let mut out = io::stdout();
        for line in told {
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    });
    let (take, taken) = mpsc::sync_channel(WINDOW);
    let taken = Arc::new(Mutex::new(taken));
    let mut next = next.to_vec();
    next.resize(PUBLISHERS as usize, 0);
    next[0] = seed << 24;
    loop {
        let publisher = rng.random_range(0..PUBLISHERS);
        let count = if rng.random_bool(0.5) { 1 } else { rng.random_range(1..=RUN) };
        let first = next[publisher as usize];
        next[publisher as usize] += count;
        for _ in 0..count {
            let _ = take.send(());
        }
        let receipts = Receipts { publisher, first, tell: tell.clone(), taken: Arc::clone(&taken) };
        publish(&origin, (first..first + count).map(|number| message((publisher, number))).collect(), receipts);
        if rng.random_range(0..60) == 0 {
            // The last queue is kept longer than the others: what lives there has to be moved.
            let queues = if rng.random_range(0..20) == 0 { QUEUES } else { QUEUES - 1 };
            let moved = trim(&log, rng.random_range(1..=queues));
            let _ = tell.send(format!("moved {moved}"));
        }
        // Sometimes all is answered before more comes, so that kills meet idle moments too.
        if rng.random_range(0..100) == 0 {
            std::thread::sleep(Duration::from_micros(rng.random_range(0..6000)));
        }
    }
}

/// Prints the receipts of a run, and lets as many more be sent.
struct Receipts {
    publisher: u64,
    first: u64,
    tell: mpsc::Sender<String>,
    taken: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl TellRun for Receipts {
    fn tell(&self, first: u32, count: u32, result: Result<Stored, PublishError>) {
        for n in 0..count {
            let _ = self.taken.lock().try_recv();
            let number = self.first + u64::from(first + n);
            let line = match &result {
                Ok(stored) => {
                    let place = Place { offset: stored.place.offset + u64::from(n), ..stored.place };
                    let repeated = u8::from(stored.repeated);
                    format!("{} {number} {} {place} {repeated} .", self.publisher, stored.log.queue.0)
                }
                Err(e) => format!("failed {} {number}: {e}", self.publisher),
            };
            let _ = self.tell.send(line);
        }
    }
}

/// As a node does it: what finds no room is given again when there is some.
fn publish(origin: &Arc<Origin>, messages: Vec<OwnMessage>, receipts: Receipts) {
    let run: Arc<dyn TellRun> = Arc::new(receipts);
    let mut rest = RestOfRun { first: 0, messages };
    while let Err(back) = origin.publish_run(rest.first, rest.messages, &run) {
        rest = back;
        let (wake, woken) = mpsc::channel();
        origin.when_room(Box::new(move || _ = wake.send(())));
        let _ = woken.recv();
    }
}

/// Answers how many bytes were moved so far.
fn trim(log: &DiskLog, queue: u16) -> u64 {
    if let Some(info) = log.info(&name_of(queue), true) {
        let unit = Unit { entries: vec![Entry::Trim { log: name_of(queue), to: info.end }] };
        let _ = log.submit(unit, Box::new(|_| {})); // where the queue is full, another time
        for _ in 0..4 {
            let _ = log.reclaim();
        }
    }
    log.stats().moved_bytes
}

/// What the child claimed.
#[derive(Debug, Clone, Copy)]
struct Receipt {
    message: Message,
    at: At,
    repeated: bool,
}

fn parse(line: &str) -> Option<Receipt> {
    assert!(!line.starts_with("failed"), "a message was not stored: {line}");
    let words: Vec<&str> = line.trim_end_matches('\n').split(' ').collect();
    let [publisher, number, queue, place, repeated, "."] = words[..] else { return None };
    Some(Receipt {
        message: (publisher.parse().ok()?, number.parse().ok()?),
        at: (queue.parse().ok()?, place.parse().ok()?),
        repeated: repeated == "1",
    })
}

/// All that is known of earlier lives.
#[derive(Default)]
struct Known {
    /// What was ever seen at a place.
    places: BTreeMap<At, Message>,
    /// Where each message was ever seen, or said to be.
    messages: BTreeMap<Message, At>,
    /// Receipts.
    receipts: BTreeMap<Message, At>,
    tally: Tally,
}

impl Known {
    /// The lowest sequence of each producer that has no receipt.
    fn next(&self) -> Vec<u64> {
        let first = |publisher| {
            let known = self.receipts.range((publisher, 0)..(publisher + 1, 0)).zip(0_u64..);
            known.take_while(|(((_, number), _), expected)| number == expected).count() as u64
        };
        (0..PUBLISHERS).map(|publisher| if publisher == 0 { 0 } else { first(publisher) }).collect()
    }

    fn see(&mut self, round: u64, message: Message, at: At) {
        let before = self.places.insert(at, message);
        assert!(before.is_none_or(|before| before == message), "round {round}: {at:?} is used twice");
        let before = self.messages.insert(message, at);
        assert!(before.is_none_or(|before| before == at), "round {round}: {message:?} is at {at:?} and {before:?}");
    }
}

/// Runs `rounds` lives of the child, each ended by SIGKILL, in one directory; checks after each.
pub fn run(binary: &Path, seed: u64, rounds: u64) -> Tally {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("data");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    for round in 0..rounds {
        let start = seed.wrapping_add(round);
        // In some lives the index has to be made again from the log.
        if round % 4 == 3 {
            std::fs::remove_dir_all(dir.join("index")).expect("removing the index");
            known.tally.rebuilt += 1;
        }
        let (receipts, moved) = live_and_die(binary, &dir, start, &known.next(), &mut rng);
        known.tally.moved += moved;
        known.tally.kills += 1;
        for receipt in receipts {
            known.tally.receipts += 1;
            known.tally.repeated += u64::from(receipt.repeated);
            known.see(round, receipt.message, receipt.at);
            known.receipts.insert(receipt.message, receipt.at);
        }
        check(round, &dir, &mut known, &mut rng);
    }
    known.tally
}

fn live_and_die(binary: &Path, dir: &Path, seed: u64, next: &[u64], rng: &mut StdRng) -> (Vec<Receipt>, u64) {
    let mut child = Command::new(binary)
        .arg("child")
        .arg(dir)
        .arg(seed.to_string())
        .args(next.iter().map(u64::to_string))
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting the child");
    let mut lines = BufReader::new(child.stdout.take().expect("its output"));
    // Killed after so many receipts, or while it still opens, and then a little later.
    let mut receipts = Vec::new();
    let wait_for = if rng.random_range(0..10) == 0 { 0 } else { rng.random_range(1..600) };
    let (mut line, mut moved) = (String::new(), 0);
    let moved_of = |line: &str| line.strip_prefix("moved ")?.trim_end().parse::<u64>().ok();
    while receipts.len() < wait_for {
        line.clear();
        assert!(lines.read_line(&mut line).expect("reading its output") > 0, "the child ended by itself");
        receipts.extend(parse(&line));
        moved = moved_of(&line).unwrap_or(moved);
    }
    std::thread::sleep(Duration::from_micros(rng.random_range(0..15_000)));
    child.kill().expect("killing the child");
    child.wait().expect("waiting for the child");
    loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(0) => break,
            // The last line may be cut short by the kill; a receipt counts once its line is whole.
            Ok(_) if line.ends_with('\n') => {
                receipts.extend(parse(&line));
                moved = moved_of(&line).unwrap_or(moved);
            }
            Ok(_) | Err(_) => break,
        }
    }
    (receipts, moved)
}

fn check(round: u64, dir: &Path, known: &mut Known, rng: &mut StdRng) {
    let (log, recovery) = DiskLog::open(config(dir, u64::MAX)).expect("it opens after a kill");
    assert_eq!(recovery.damage, [], "round {round}: damage after a kill");
    known.tally.torn += u64::from(recovery.torn_bytes > 0);
    let mut begins = BTreeMap::new();
    let mut held = BTreeMap::new();
    for queue in 1..=QUEUES {
        let Some(info) = log.info(&name_of(queue), true) else { continue };
        begins.insert(queue, info.begin);
        let end = read_queue(round, &log, queue, info.begin, known, &mut held);
        assert_eq!(end, info.end, "round {round}: the log is read to its end");
    }
    for (message, at) in &known.receipts {
        match held.get(message) {
            Some(found) => assert_eq!(found, at, "round {round}: {message:?} is elsewhere than its receipt says"),
            // Only what the child itself trimmed may be gone: everything below the begin.
            None => assert!(
                begins.get(&at.0).is_some_and(|begin| at.1 < *begin),
                "round {round}: {message:?} at {at:?} has a receipt and is lost"
            ),
        }
    }
    known.tally.without_receipt += held.keys().filter(|message| !known.receipts.contains_key(message)).count() as u64;
    ask_again(round, &log, known, rng);
    log.close().expect("closing in order");
}

/// Reads a queue to its end; each message must be what was published, under a place of its own, and those of a producer
/// with one key in their order.
fn read_queue(
    round: u64,
    log: &DiskLog,
    queue: u16,
    begin: Place,
    known: &mut Known,
    held: &mut BTreeMap<Message, At>,
) -> Place {
    let mut at = begin;
    let mut last = BTreeMap::new();
    while let Read::Batches { batches, next } = log.read(&name_of(queue), at, Line::Main, 1 << 20).unwrap() {
        for batch in batches {
            let messages = decode_messages(&batch, 64 << 20).expect("a body that can be read");
            known.tally.gathered += u64::from(messages.len() > 1);
            for (found, offset) in messages.iter().zip(batch.begin().offset..) {
                let (publisher, rest) = found.payload.split_first_chunk::<8>().expect("a publisher");
                let number = rest.first_chunk::<8>().expect("a number");
                let message = (u64::from_be_bytes(*publisher), u64::from_be_bytes(*number));
                assert_eq!(found.payload, payload(message), "round {round}: {message:?} is altered");
                let place = Place { offset, ..batch.begin() };
                known.see(round, message, (queue, place));
                assert!(held.insert(message, (queue, place)).is_none(), "round {round}: {message:?} is there twice");
                if message.0.is_multiple_of(2) {
                    let before = last.insert(message.0, message.1);
                    let follows = before.is_none_or(|before| before < message.1);
                    assert!(follows, "round {round}: {message:?} comes after {before:?}");
                }
            }
        }
        at = next;
    }
    at
}

/// Publishes once more what has a receipt: each must be known, at its place, and nothing be stored.
fn ask_again(round: u64, log: &Arc<DiskLog>, known: &Known, rng: &mut StdRng) {
    let origin = publish_path(log, u64::MAX - 1, Arc::new(|| {}));
    let ends = |log: &DiskLog| -> Vec<Option<Place>> {
        (1..=QUEUES).map(|n| log.info(&LogName { queue: Queue(n), ..name_of(1) }, true).map(|info| info.end)).collect()
    };
    let before = ends(log);
    let next = known.next();
    for publisher in 1..PUBLISHERS {
        let Some(last) = next[publisher as usize].checked_sub(1) else { continue };
        for number in [last, rng.random_range(0..=last)] {
            let at = known.receipts[&(publisher, number)];
            let (tell, told) = mpsc::channel();
            let asked = origin.publish(message((publisher, number)), Box::new(move |result| drop(tell.send(result))));
            assert!(asked.is_ok(), "round {round}: {publisher} {number} is not known any more: {asked:?}");
            let stored = told.try_recv().expect("answered at once").expect("stored before");
            assert_eq!((stored.log.queue.0, stored.place, stored.repeated), (at.0, at.1, true), "round {round}");
        }
    }
    assert_eq!(ends(log), before, "round {round}: nothing is stored a second time");
}
