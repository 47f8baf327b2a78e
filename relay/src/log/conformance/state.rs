//! Tables, the listener, and what survives a restart.

use std::sync::Arc;

use bytes::Bytes;
use seaway_federation_proto::copies::{Hole, HoleKind};

use super::{fixture::*, *};
use crate::log::contract::{Advanced, Retention, Table};

pub(super) const CASES: &[Case] = &[
    ("tables hold what was put, in order, for ever", tables),
    ("batches and state of one unit go together", together),
    ("the listener is told of ends", listener),
    ("what was answered survives a crash, the rest is a prefix", crash),
    ("a log goes on after any ending", goes_on),
    ("bytes count right where a filled hole is trimmed", filled_and_trimmed),
    ("reclaiming changes nothing that is held", reclaiming),
    ("a wrong clock's times count as what comes after", wrong_times),
];

fn put(table: Table, key: &str, value: &str) -> Entry {
    Entry::Put { table, key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn delete(table: Table, key: &str) -> Entry {
    Entry::Delete { table, key: Bytes::copy_from_slice(key.as_bytes()) }
}

fn pairs(log: &dyn CommitLog, table: Table, prefix: &str) -> Vec<(String, String)> {
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    log.scan(table, prefix.as_bytes()).into_iter().map(|(k, v)| (text(k), text(v))).collect()
}

fn tables(harness: &mut dyn Harness) {
    for (n, table) in Table::ALL.into_iter().enumerate() {
        store(harness, vec![put(table, "b/2", "two"), put(table, "a", &n.to_string()), put(table, "b/1", "one")]);
    }
    store(harness, vec![put(Table::Node, "a", "x"), put(Table::Node, "a", "last"), delete(Table::Node, "absent")]);
    store(harness, vec![put(Table::Wants, "gone", "x"), delete(Table::Wants, "gone"), put(Table::Wants, "", "empty")]);
    for ending in [None, Some(Ending::Crash), Some(Ending::Close)] {
        if let Some(ending) = ending {
            harness.restart(ending);
        }
        let log = harness.log();
        assert_eq!(log.get(Table::Node, b"a").unwrap(), "last", "the last of a unit counts");
        assert_eq!(log.get(Table::Wants, b"gone"), None);
        assert_eq!(log.get(Table::Wants, b"").unwrap(), "empty");
        for (n, table) in Table::ALL.into_iter().enumerate().skip(2) {
            assert_eq!(log.get(table, b"a").unwrap(), n.to_string());
            let found = pairs(&*log, table, "b/");
            assert_eq!(found, [("b/1".into(), "one".into()), ("b/2".into(), "two".into())]);
            assert_eq!(pairs(&*log, table, "").len(), 3);
            assert!(pairs(&*log, table, "c").is_empty());
        }
    }
    let log = harness.log();
    let long = |bytes| Bytes::from(vec![1_u8; bytes]);
    let key = Entry::Put { table: Table::Node, key: long(4097), value: Bytes::new() };
    assert!(matches!(reason_of(&*log, vec![key]), RejectReason::Invalid { index: 0, .. }));
    let value = Entry::Put { table: Table::Node, key: long(1), value: long((1 << 20) + 1) };
    assert!(matches!(reason_of(&*log, vec![value]), RejectReason::Invalid { index: 0, .. }));
    store(harness, vec![Entry::Put { table: Table::Node, key: long(4096), value: long(1 << 19) }]);
    assert_eq!(harness.log().get(Table::Node, &long(4096)).unwrap().len(), 1 << 19);
}

fn together(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(40);
    harness.hold();
    let log = harness.log();
    for (n, batch) in batches.iter().enumerate() {
        submit(&*log, vec![own(batch), put(Table::Producers, "p", &n.to_string())]).unwrap();
    }
    drop(log);
    harness.restart(Ending::Crash);
    let log = harness.log();
    let found = log.info(origin.log(), true).map_or(0, |info| info.messages / 2);
    let sequence = log.get(Table::Producers, b"p").map(|v| String::from_utf8(v.to_vec()).unwrap());
    assert_eq!(sequence, found.checked_sub(1).map(|n| n.to_string()), "a unit is there whole or not at all");
}

fn listener(harness: &mut dyn Harness) {
    let told: Seen<Advanced> = Seen::default();
    let keep = told.clone();
    let log = harness.log();
    log.set_listener(Arc::new(move |advanced| keep.lock().extend_from_slice(advanced)));
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(2);
    harness.hold();
    let waiting = submit(&*log, vec![own(&batches[0])]).unwrap();
    let early = told.lock().iter().any(|a| a.readable.is_some() || a.durable.is_some());
    assert!(!early, "an own batch is not told of before it is durable");
    harness.release();
    waiting.wait().unwrap();
    until(harness, &told, |a| a.log == *origin.log() && a.durable == Some(batches[0].end()));
    let last = told.lock().last().cloned().unwrap();
    assert_eq!((last.readable, last.chain), (Some(batches[0].end()), Some(batches[0].chain_after())));
    assert!(told.lock()[0].shape_changed, "a log that is new is a change of shape");
    let other = Origin::new(log_name("orders", "east", 1), 2).next(1, 10);
    store(harness, vec![copy(&other)]);
    until(harness, &told, |a| a.log == other.header().log && a.durable == Some(other.end()));
    store(harness, vec![Entry::Drop { log: other.header().log.clone() }]);
    until(harness, &told, |a| a.log == other.header().log && a.durable.is_none() && a.readable.is_none());
}

/// The listener may be told just after `done`.
fn until(harness: &mut dyn Harness, told: &Seen<Advanced>, is: impl Fn(&Advanced) -> bool) {
    for _ in 0..6000 {
        if told.lock().iter().any(&is) {
            return;
        }
        harness.settle();
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the listener was not told; it heard {:?}", told.lock());
}

fn crash(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(60);
    store_all(harness, &batches[..10]);
    harness.hold();
    let log = harness.log();
    for batch in &batches[10..40] {
        submit(&*log, vec![own(batch)]).unwrap();
    }
    drop(log);
    harness.restart(Ending::Crash);
    let log = harness.log();
    let info = log.info(origin.log(), true).unwrap();
    let kept = batches.iter().position(|b| b.begin().offset == info.end.offset).unwrap();
    assert!((10..=40).contains(&kept), "what was answered is there");
    assert_holds(&*log, origin.log(), &batches[..kept]);
    assert_eq!(log.info(origin.log(), false), Some(info));
    store_all(harness, &batches[kept..]);
    harness.restart(Ending::Crash);
    assert_holds(&*harness.log(), origin.log(), &batches);
}

fn goes_on(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let mut all = Vec::new();
    for round in 0..6 {
        let info = harness.log().info(origin.log(), true);
        assert_eq!(info.map(|info| info.end), origin.end());
        origin.restart();
        let batches = origin.batches(5);
        store_all(harness, &batches);
        all.extend(batches);
        harness.log().reclaim().unwrap();
        harness.restart(if round % 2 == 0 { Ending::Crash } else { Ending::Close });
        assert_holds(&*harness.log(), origin.log(), &all);
    }
    assert_eq!(harness.log().info(origin.log(), true).unwrap().incarnations.len(), 6);
}

fn filled_and_trimmed(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(6);
    let log = origin.log().clone();
    let copy = |n: usize| Entry::Append { role: Role::Copy, batch: batches[n].clone() };
    let hole = |from: usize, to: usize| Entry::Hole {
        log: log.clone(),
        hole: Hole {
            incarnation: batches[from].begin().incarnation,
            from: batches[from].begin().offset,
            to: batches[to].end_offset(),
            kind: HoleKind::Pending,
        },
    };
    store(harness, vec![copy(0)]);
    store(harness, vec![hole(1, 2)]);
    store(harness, vec![copy(3)]);
    store(harness, vec![copy(1)]);
    store(harness, vec![copy(2), copy(4)]);
    for n in 1..5 {
        store(harness, vec![Entry::Trim { log: log.clone(), to: batches[n].begin() }]);
        let bytes: usize = batches[n..5].iter().map(Batch::len).sum();
        assert_eq!(harness.log().info(&log, true).unwrap().bytes, bytes as u64, "trimmed up to batch {n}");
    }
    store(harness, vec![copy(5)]);
    let bytes: usize = batches[4..].iter().map(Batch::len).sum();
    assert_eq!(harness.log().bytes(&log), Some(bytes as u64));
}

fn reclaiming(harness: &mut dyn Harness) {
    let mut busy = Origin::new(log_name("busy", "west", 1), 1);
    let mut thin = Origin::new(log_name("thin", "west", 1), 2);
    let mut kept = Vec::new();
    for round in 0..30 {
        let batch = thin.next(1, 200);
        kept.push(batch.clone());
        store(harness, vec![own(&busy.next(1, 4000)), own(&batch), put(Table::Groups, "g", &round.to_string())]);
        let to = busy.end().unwrap();
        store(harness, vec![Entry::Trim { log: busy.log().clone(), to }]);
        if round % 10 == 9 {
            let before = (harness.log().info(thin.log(), true), harness.log().info(busy.log(), true));
            let log = harness.log();
            for _ in 0..20 {
                log.reclaim().unwrap();
                harness.settle();
            }
            assert_eq!((log.info(thin.log(), true), log.info(busy.log(), true)), before);
            drop(log);
            harness.restart(if round % 20 == 9 { Ending::Crash } else { Ending::Close });
        }
        let log = harness.log();
        let mut at = kept[0].begin();
        let mut found = Vec::new();
        while let Read::Batches { batches, next } = log.read(thin.log(), at, Line::Main, 1 << 20).unwrap() {
            found.extend(batches);
            at = next;
        }
        assert!(same(&found, &kept), "round {round}");
    }
}

fn wrong_times(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(2);
    for batch in &batches {
        store(harness, vec![own(batch)]);
    }
    let log = harness.log();
    let target = |before: u64, latest: Option<u64>| {
        let retention = Retention { appended_before_us: Some(before), not_after_us: latest, ..Retention::default() };
        log.trim_target(origin.log(), retention).unwrap()
    };
    assert_eq!(target(u64::MAX, None), Some(batches[1].end()), "all of it is older than the end of time");
    assert_eq!(target(0, None), None);
}
