//! Poison, a full queue, a full disk, and closing.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{fixture::*, *};
use crate::log::contract::Table;

pub(super) const CASES: &[Case] = &[
    ("a failed write poisons the log", poison),
    ("a full queue gives back, and says when there is room", busy),
    ("a full disk refuses appends, and goes on by itself", full),
    ("a closed log accepts nothing", closed),
];

fn poison(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(5);
    store_all(harness, &batches[..2]);
    let log = harness.log();
    harness.hold();
    harness.fail_next_sync();
    let waiting: Vec<Waiting> = batches[2..4].iter().map(|b| submit(&*log, vec![own(b)]).unwrap()).collect();
    harness.release();
    for waiting in waiting {
        let why = waiting.wait().unwrap_err().why;
        assert!(!why.is_empty(), "the answer says what failed");
    }
    let rejected = submit(&*log, vec![own(&batches[4])]).map(|_| ()).unwrap_err();
    assert!(matches!(rejected.reason, RejectReason::Poisoned(_)));
    assert_eq!(rejected.unit.entries.len(), 1);
    assert!(log.stats().poisoned.is_some());
    assert!(log.close().is_err(), "a poisoned log does not claim to have closed well");
    drop((log, rejected));
    harness.restart(Ending::Crash);
    let log = harness.log();
    let end = log.info(origin.log(), true).unwrap().end;
    let kept = batches.iter().position(|b| b.begin() == end).unwrap();
    assert!((2..=4).contains(&kept));
    assert_holds(&*log, origin.log(), &batches[..kept]);
    store_all(harness, &batches[kept..]);
    assert_holds(&*log, origin.log(), &batches);
}

fn busy(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let log = harness.log();
    let max = log.stats().queued_bytes_max;
    assert!(max > 0);
    let woken = Arc::new(AtomicUsize::new(0));
    let wake = |woken: &Arc<AtomicUsize>| {
        let woken = woken.clone();
        Box::new(move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }) as Box<dyn FnOnce() + Send>
    };
    log.ready(1, wake(&woken));
    assert_eq!(woken.load(Ordering::SeqCst), 1, "there is room: it is told at once");
    harness.hold();
    let size = usize::try_from(max / 8).unwrap();
    let mut waiting = Vec::new();
    let refused = loop {
        let batch = origin.next(1, size);
        match submit(&*log, vec![own(&batch)]) {
            Ok(one) => waiting.push(one),
            Err(rejected) => {
                assert!(matches!(rejected.reason, RejectReason::Busy), "{}", rejected.reason);
                break batch;
            }
        }
        assert!(waiting.len() < 64, "the queue has no bound");
    };
    assert!(log.stats().queued_bytes <= max.max(size as u64 * 2));
    log.ready(size + 1000, wake(&woken));
    assert_eq!(woken.load(Ordering::SeqCst), 1, "there is no room yet");
    harness.release();
    for one in &waiting {
        one.wait().unwrap();
    }
    for _ in 0..6000 {
        if woken.load(Ordering::SeqCst) == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(woken.load(Ordering::SeqCst), 2, "whoever waits for room must be told, once");
    store(harness, vec![own(&refused)]);
}

fn full(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(4);
    store_all(harness, &batches[..2]);
    let put = Entry::Put { table: Table::Node, key: "k".into(), value: "v".into() };
    store(harness, vec![put]);
    harness.fill_disk(true);
    let log = harness.log();
    let rejected = submit(&*log, vec![own(&batches[2])]).map(|_| ()).unwrap_err();
    assert!(matches!(rejected.reason, RejectReason::DiskFull { .. }), "{}", rejected.reason);
    assert_eq!(rejected.unit.entries.len(), 1);
    assert!(log.stats().disk_full);
    let put = Entry::Put { table: Table::Node, key: "k2".into(), value: "v".into() };
    let rejected = submit(&*log, vec![put]).map(|_| ()).unwrap_err();
    assert!(matches!(rejected.reason, RejectReason::DiskFull { .. }), "{}", rejected.reason);
    let name = origin.log().clone();
    store(harness, vec![Entry::Trim { log: name.clone(), to: batches[1].begin() }]);
    store(harness, vec![Entry::Delete { table: Table::Node, key: "k".into() }]);
    assert_holds(&*log, &name, &batches[1..2]);
    harness.fill_disk(false);
    store_all(harness, &batches[2..]);
    assert_holds(&*log, &name, &batches[1..]);
}

fn closed(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(2);
    let log = harness.log();
    let waiting = submit(&*log, vec![own(&batches[0])]).unwrap();
    log.close().unwrap();
    waiting.wait().unwrap();
    assert!(matches!(reason_of(&*log, vec![own(&batches[1])]), RejectReason::Poisoned(_)));
    drop(log);
    harness.restart(Ending::Close);
    assert_holds(&*harness.log(), origin.log(), &batches[..1]);
}
