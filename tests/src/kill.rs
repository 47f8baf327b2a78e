//! The kill test: a child process publishes into a commit log on a real disk and prints a receipt for each
//! message that is durable; it is ended with SIGKILL at a random moment. Whatever it printed must be there,
//! unaltered, under the place it printed, in every later life.
//!
//! The child is the `crash` binary itself (`crash child DIR SEED`). The parent reads its receipts from a
//! pipe; what was written to the pipe before the kill is read to the end, so no receipt is overlooked.

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
    sync::mpsc,
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use seaway_federation_proto::{
    envelope::Batch,
    ids::{LogName, NodeName, Place, Start},
};
use seaway_relay::log::{
    conformance::fixture::{Origin, bytes_of, log_name},
    contract::{CommitLog, Entry, Line, Read, RejectReason, Role, Table, Unit},
    disk::{DiskConfig, DiskLog},
};

/// Logs that the child publishes to.
const LOGS: u16 = 4;

/// What the rounds came across.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Kills.
    pub kills: u64,
    /// Receipts that were printed, and found.
    pub receipts: u64,
    /// Batches found that had no receipt.
    pub without_receipt: u64,
    /// Openings that cut torn bytes.
    pub torn: u64,
}

fn config(dir: &Path, start: u64) -> DiskConfig {
    let name = NodeName::new("near".parse().unwrap(), "one").unwrap();
    let mut config = DiskConfig::new(dir.to_owned(), "test", name, Start { time_us: start, random: start });
    config.segment_bytes = 256 << 10;
    config.reserve_bytes = 0;
    config.queue_bytes_max = 256 << 10;
    config.flush_bytes = 200 << 10;
    config.checkpoint_bytes = 500 << 10;
    config.idle_after = Duration::from_millis(2);
    config
}

fn name_of(n: u16) -> LogName {
    log_name("orders", "near", n + 1)
}

fn hash(batch: &Batch) -> String {
    format!("{:?}", batch.chain_after())
}

/// The child: publishes until it is killed, one line a receipt: `log offset-place end chain sequence`.
pub fn child(dir: &Path, seed: u64) -> io::Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (log, _) = DiskLog::open(config(dir, seed)).map_err(io::Error::other)?;
    // Receipts are printed by a thread of their own: the storage thread never waits for the reader.
    let (tell, told) = mpsc::channel::<String>();
    std::thread::spawn(move || {
        let mut out = io::stdout();
        for line in told {
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    });
    let mut origins: Vec<Origin> = (0..LOGS).map(|n| continued(&*log, n, seed)).collect();
    let mut sequences: Vec<u64> = (0..LOGS).map(|n| sequence(&*log, n)).collect();
    loop {
        let n = rng.random_range(0..LOGS);
        let at = usize::from(n);
        let batch = origins[at].next(rng.random_range(1..5), rng.random_range(1..3000));
        sequences[at] += 1;
        let value = Bytes::copy_from_slice(&sequences[at].to_be_bytes());
        let key = Bytes::from(format!("producer-{n}"));
        let line = format!("{n} {} {} {}", batch.begin(), hash(&batch), sequences[at]);
        let mut entries =
            vec![Entry::Append { role: Role::Own, batch }, Entry::Put { table: Table::Producers, key, value }];
        if rng.random_range(0..300) == 0
            && let Some(info) = log.info(&name_of(n), true)
        {
            entries.push(Entry::Trim { log: name_of(n), to: info.end });
            let _ = log.reclaim();
        }
        let mut unit = Unit { entries };
        loop {
            let (tell, line) = (tell.clone(), line.clone());
            let receipt = Box::new(move |result: Result<(), _>| {
                if result.is_ok() {
                    let _ = tell.send(line);
                }
            });
            match log.submit(unit, receipt) {
                Ok(()) => break,
                Err(rejected) if matches!(rejected.reason, RejectReason::Busy) => {
                    unit = rejected.unit;
                    let (wake, woken) = mpsc::channel();
                    log.ready(
                        64 << 10,
                        Box::new(move || {
                            let _ = wake.send(());
                        }),
                    );
                    let _ = woken.recv();
                }
                Err(rejected) => return Err(io::Error::other(rejected.reason.to_string())),
            }
        }
        // Sometimes the queue runs dry, so that kills meet idle moments too.
        if rng.random_range(0..20) == 0 {
            std::thread::sleep(Duration::from_micros(rng.random_range(0..6000)));
        }
    }
}

fn continued(log: &dyn CommitLog, n: u16, seed: u64) -> Origin {
    let name = name_of(n);
    let end = log.info(&name, true).map(|info| info.end);
    let end = end.map(|end| (end, log.chain_at(&name, end).unwrap().expect("the end's chain value is known")));
    Origin::at(name, end, seed.wrapping_mul(31) ^ u64::from(n))
}

fn sequence(log: &dyn CommitLog, n: u16) -> u64 {
    let value = log.get(Table::Producers, format!("producer-{n}").as_bytes());
    value.map_or(0, |value| u64::from_be_bytes(value[..].try_into().expect("8 bytes")))
}

/// What the child claimed.
#[derive(Debug, Clone)]
struct Receipt {
    n: u16,
    begin: Place,
    chain: String,
    sequence: u64,
}

fn parse(line: &str) -> Option<Receipt> {
    let mut words = line.split(' ');
    let receipt = Receipt {
        n: words.next()?.parse().ok()?,
        begin: words.next()?.parse().ok()?,
        chain: words.next()?.to_owned(),
        sequence: words.next()?.parse().ok()?,
    };
    (words.next().is_none() && line.ends_with(char::is_numeric)).then_some(receipt)
}

/// Runs `rounds` lives of the child, each ended by SIGKILL, in one directory; checks after each.
pub fn run(binary: &Path, seed: u64, rounds: u64) -> Tally {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("data");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let mut places: BTreeMap<(u16, Place), Vec<u8>> = BTreeMap::new();
    for round in 0..rounds {
        let receipts = live_and_die(binary, &dir, seed.wrapping_add(round), &mut rng);
        tally.kills += 1;
        check(seed, round, &dir, &receipts, &mut places, &mut tally);
    }
    tally
}

fn live_and_die(binary: &Path, dir: &Path, seed: u64, rng: &mut StdRng) -> Vec<Receipt> {
    let mut child = Command::new(binary)
        .arg("child")
        .arg(dir)
        .arg(seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting the child");
    let mut lines = BufReader::new(child.stdout.take().expect("its output"));
    // Killed after so many receipts, or while it still opens, and then a little later.
    let mut receipts = Vec::new();
    let wait_for = if rng.random_range(0..10) == 0 { 0 } else { rng.random_range(1..400) };
    let mut line = String::new();
    while receipts.len() < wait_for {
        line.clear();
        assert!(lines.read_line(&mut line).expect("reading its output") > 0, "the child ended by itself");
        receipts.extend(parse(line.trim_end_matches('\n')));
    }
    std::thread::sleep(Duration::from_micros(rng.random_range(0..15_000)));
    child.kill().expect("killing the child");
    child.wait().expect("waiting for the child");
    loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(0) => break,
            // The last line may be cut short by the kill; a receipt counts once its line is whole.
            Ok(_) if line.ends_with('\n') => receipts.extend(parse(line.trim_end_matches('\n'))),
            Ok(_) | Err(_) => break,
        }
    }
    receipts
}

fn check(
    seed: u64,
    round: u64,
    dir: &Path,
    receipts: &[Receipt],
    places: &mut BTreeMap<(u16, Place), Vec<u8>>,
    tally: &mut Tally,
) {
    let (log, recovery) = DiskLog::open(config(dir, u64::MAX)).expect("it opens after a kill");
    assert_eq!(recovery.damage, [], "seed {seed} round {round}: damage after a kill");
    tally.torn += u64::from(recovery.torn_bytes > 0);
    let mut held: BTreeMap<(u16, Place), Batch> = BTreeMap::new();
    for n in 0..LOGS {
        let Some(info) = log.info(&name_of(n), true) else { continue };
        let mut at = info.begin;
        while let Read::Batches { batches, next } = log.read(&name_of(n), at, Line::Main, 1 << 20).unwrap() {
            for batch in batches {
                let bytes = bytes_of(&batch);
                let before = places.insert((n, batch.begin()), bytes.clone());
                let fits = before.is_none_or(|before| before == bytes);
                assert!(fits, "seed {seed} round {round}: {} was used twice or altered", batch.begin());
                held.insert((n, batch.begin()), batch);
            }
            at = next;
        }
        assert_eq!(at, info.end, "seed {seed} round {round}: the log is read to its end");
    }
    let mut newest: BTreeMap<u16, u64> = BTreeMap::new();
    for receipt in receipts {
        tally.receipts += 1;
        let info = log.info(&name_of(receipt.n), true).expect("a log with a receipt");
        match held.get(&(receipt.n, receipt.begin)) {
            Some(batch) => assert_eq!(hash(batch), receipt.chain, "seed {seed} round {round}: altered"),
            // Only what the child itself trimmed may be gone: everything below the begin.
            None => assert!(
                receipt.begin < info.begin,
                "seed {seed} round {round}: {} of log {} has a receipt and is lost",
                receipt.begin,
                receipt.n
            ),
        }
        let last = newest.entry(receipt.n).or_default();
        *last = receipt.sequence.max(*last);
    }
    for (n, last) in newest {
        let found = sequence(&*log, n);
        assert!(found >= last, "seed {seed} round {round}: producer {n} is at {found}, a receipt said {last}");
    }
    let receipted: std::collections::BTreeSet<_> = receipts.iter().map(|r| (r.n, r.begin)).collect();
    let before = receipts.iter().map(|r| r.begin.incarnation).min();
    tally.without_receipt += held
        .keys()
        .filter(|key| before.is_some_and(|least| key.1.incarnation >= least) && !receipted.contains(*key))
        .count() as u64;
    log.close().expect("closing in order");
}
