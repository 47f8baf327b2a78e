//! Reading, looking up, trimming.

use seaway_federation_proto::ids::Incarnation;

use super::{fixture::*, *};
use crate::log::contract::{Outside, Retention};

pub(super) const CASES: &[Case] = &[
    ("reads follow places, bounds and incarnations", reading),
    ("reads outside say where and why", outside),
    ("times and chain values are found", looking_up),
    ("trims move the begin to a batch, for ever", trimming),
    ("a dropped log is gone, and can begin anew", dropping),
    ("retention names the place to trim to", retention),
    ("a read answered without the disk is the same", cached),
    ("a damaged batch is fenced, the rest is read", damaged),
];

fn reading(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let mut batches: Vec<Batch> = (0..6).map(|_| origin.next(3, 50)).collect();
    origin.restart();
    batches.extend((0..6).map(|_| origin.next(3, 50)));
    origin.restart();
    batches.extend((0..3).map(|_| origin.next(3, 50)));
    store_all(harness, &batches);
    for ending in [None, Some(Ending::Close), Some(Ending::Crash)] {
        if let Some(ending) = ending {
            harness.restart(ending);
        }
        let log = harness.log();
        assert_holds(&*log, origin.log(), &batches);
        for (n, batch) in batches.iter().enumerate() {
            for offset in batch.begin().offset..batch.end_offset() {
                let at = place(batch.begin().incarnation, offset);
                let (found, _) = read_on(&*log, origin.log(), at, Line::Main, 400);
                assert!(same(&found, &batches[n..]), "the first batch is the one that contains {at}");
            }
        }
        let Read::AtEnd { at, .. } = log.read(origin.log(), batches[5].end(), Line::Incarnation, 10).unwrap() else {
            panic!("reading in one incarnation stops at its end");
        };
        assert_eq!(at, batches[5].end());
    }
}

fn outside(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(3);
    store_all(harness, &batches);
    let log = harness.log();
    let read = |at| match log.read(origin.log(), at, Line::Main, 100).unwrap() {
        Read::Outside(outside) => outside,
        other => panic!("{at} is outside, but {other:?} was read"),
    };
    let end = batches[2].end();
    assert_eq!(read(place(end.incarnation, end.offset + 1)), Outside::Above { end });
    let unknown = Incarnation { counter: 9, random: 9 };
    assert_eq!(read(place(unknown, 0)), Outside::UnknownIncarnation);
    let absent = log.read(&log_name("none", "west", 1), end, Line::Main, 100).unwrap();
    assert!(matches!(absent, Read::Outside(Outside::NoCopy)));
    assert!(log.info(&log_name("none", "west", 1), true).is_none());
}

fn looking_up(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let mut batches = origin.batches(4);
    origin.restart();
    batches.extend(origin.batches(4));
    store_all(harness, &batches);
    let log = harness.log();
    let time = |n: usize| batches[n].header().origin_time_us;
    let find = |time_us| log.find_time(origin.log(), time_us).unwrap();
    assert_eq!(find(0), Some(batches[0].begin()));
    for (n, batch) in batches.iter().enumerate().skip(1) {
        let found = find(time(n)).unwrap();
        assert_eq!(found.offset, batch.begin().offset);
        let found = find(time(n - 1) + 1).unwrap();
        assert_eq!(found.offset, batch.begin().offset);
    }
    assert_eq!(find(time(7) + 1), Some(batches[7].end()));
    assert_eq!(log.find_time(&log_name("none", "west", 1), 0).unwrap(), None);
    for batch in &batches {
        assert_eq!(log.chain_at(origin.log(), batch.begin()).unwrap(), Some(batch.header().chain_before));
        let inside = place(batch.begin().incarnation, batch.begin().offset + 1);
        assert_eq!(log.chain_at(origin.log(), inside).unwrap(), None, "not a batch boundary");
    }
    assert_eq!(log.chain_at(origin.log(), batches[7].end()).unwrap(), Some(batches[7].chain_after()));
}

fn trimming(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let mut batches: Vec<Batch> = (0..4).map(|_| origin.next(3, 50)).collect();
    origin.restart();
    batches.extend((0..4).map(|_| origin.next(3, 50)));
    store_all(harness, &batches);
    let name = origin.log().clone();
    let trim = |to| vec![Entry::Trim { log: name.clone(), to }];
    let inside = place(batches[1].begin().incarnation, batches[1].begin().offset + 2);
    store(harness, trim(inside));
    let log = harness.log();
    assert_eq!(log.info(&name, true).unwrap().begin, batches[1].begin(), "a trim stops at a batch's begin");
    assert_holds(&*log, &name, &batches[1..]);
    let above = place(batches[7].begin().incarnation, batches[7].end_offset() + 1);
    assert!(matches!(reason_of(&*log, trim(above)), RejectReason::Invalid { .. }));
    store(harness, trim(batches[5].begin()));
    log.reclaim().unwrap();
    for ending in [None, Some(Ending::Close), Some(Ending::Crash)] {
        if let Some(ending) = ending {
            harness.restart(ending);
        }
        let log = harness.log();
        let info = log.info(&name, true).unwrap();
        assert_eq!((info.begin, info.messages), (batches[5].begin(), 9));
        assert_eq!(info.bytes, batches[5..].iter().map(|b| b.len() as u64).sum::<u64>());
        assert_eq!(info.incarnations.len(), 1, "an incarnation of which nothing is retained is forgotten");
        assert_holds(&*log, &name, &batches[5..]);
        for gone in &batches[..5] {
            let read = log.read(&name, gone.begin(), Line::Main, 100).unwrap();
            assert!(matches!(read, Read::Outside(Outside::Below { .. })), "{read:?}");
            assert!(matches!(reason_of(&*log, vec![own(gone)]), RejectReason::Refused { .. }), "it never comes back");
        }
    }
    // Trimmed to the end, the log still goes on there.
    store(harness, trim(batches[7].end()));
    harness.restart(Ending::Crash);
    let more = origin.batches(1);
    store_all(harness, &more);
    assert_holds(&*harness.log(), &name, &more);
    assert_eq!(harness.log().info(&name, true).unwrap().bytes, more[0].len() as u64);
}

fn dropping(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(4);
    let name = origin.log().clone();
    store(harness, batches.iter().map(copy).collect());
    store(harness, vec![Entry::Drop { log: name.clone() }]);
    let log = harness.log();
    assert!(matches!(reason_of(&*log, vec![Entry::Drop { log: name.clone() }]), RejectReason::Invalid { .. }));
    for ending in [None, Some(Ending::Close), Some(Ending::Crash)] {
        if let Some(ending) = ending {
            harness.restart(ending);
        }
        let log = harness.log();
        assert!(log.info(&name, true).is_none() && log.info(&name, false).is_none());
        assert_eq!(log.logs(), []);
        let read = log.read(&name, batches[0].begin(), Line::Main, 100).unwrap();
        assert!(matches!(read, Read::Outside(Outside::NoCopy)));
    }
    let begin = Entry::BeginCopy { log: name.clone(), at: batches[2].begin(), chain: None };
    store(harness, vec![begin, copy(&batches[2])]);
    assert_holds(&*harness.log(), &name, &batches[2..3]);
    // Dropped and begun anew in one unit.
    let begin = Entry::BeginCopy { log: name.clone(), at: batches[1].begin(), chain: None };
    store(harness, vec![Entry::Drop { log: name.clone() }, begin, copy(&batches[1])]);
    assert_holds(&*harness.log(), &name, &batches[1..2]);
    harness.restart(Ending::Crash);
    assert_holds(&*harness.log(), &name, &batches[1..2]);
}

fn retention(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(6);
    store_all(harness, &batches);
    let log = harness.log();
    let name = origin.log();
    let target = |retention| log.trim_target(name, retention).unwrap();
    assert_eq!(target(Retention::default()), None);
    let last_two = (batches[4].len() + batches[5].len()) as u64;
    let bytes = Retention { bytes_max: Some(last_two), ..Retention::default() };
    assert_eq!(target(bytes), Some(batches[4].begin()));
    let bytes = Retention { bytes_max: Some(last_two + 1), ..Retention::default() };
    assert_eq!(target(bytes), Some(batches[4].begin()), "batches go whole, until the rest fits");
    assert_eq!(target(Retention { bytes_max: Some(u64::MAX), ..Retention::default() }), None);
    let kept = Retention { bytes_max: Some(0), keep_from: Some(batches[2].begin()), ..Retention::default() };
    assert_eq!(target(kept), Some(batches[2].begin()), "hold-back goes before retention");
    let all = Retention { bytes_max: Some(0), ..Retention::default() };
    assert_eq!(target(all), Some(batches[5].end()));
    let old = Retention { appended_before_us: Some(0), ..Retention::default() };
    assert_eq!(target(old), None);
    let old = Retention { appended_before_us: Some(u64::MAX), ..Retention::default() };
    assert_eq!(target(old), Some(batches[5].end()));
    assert_eq!(log.trim_target(&log_name("none", "west", 1), all).unwrap(), None);
}

fn cached(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(5);
    store_all(harness, &batches);
    let log = harness.log();
    for batch in &batches {
        let slow = log.read(origin.log(), batch.begin(), Line::Main, 500).unwrap();
        if let Some(fast) = log.read_cached(origin.log(), batch.begin(), Line::Main, 500) {
            match (slow, fast) {
                // Without the disk it may answer less, never something else.
                (Read::Batches { batches: slow, .. }, Read::Batches { batches: fast, next }) => {
                    assert!(!fast.is_empty() && fast.len() <= slow.len() && same(&fast, &slow[..fast.len()]));
                    assert_eq!(Some(next), fast.last().map(Batch::end));
                }
                (slow, fast) => panic!("{slow:?} and {fast:?} differ"),
            }
        }
    }
    let end = log.read_cached(origin.log(), batches[4].end(), Line::Main, 500);
    assert!(matches!(end, None | Some(Read::AtEnd { .. })));
}

fn damaged(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(6);
    store_all(harness, &batches[..3]);
    store_all(harness, &batches[3..]);
    if !harness.damage(origin.log(), batches[1].begin()) {
        return;
    }
    let log = harness.log();
    let (before, end) = read_on(&*log, origin.log(), batches[0].begin(), Line::Main, 1 << 20);
    assert!(same(&before, &batches[..1]));
    let fenced = matches!(end, Read::Outside(Outside::Damaged { to }) if to == batches[1].end_offset());
    assert!(fenced, "a damaged batch must be fenced: {end:?}");
    let (after, _) = read_on(&*log, origin.log(), batches[1].end(), Line::Main, 1 << 20);
    assert!(same(&after, &batches[2..]), "what follows the damage must be read");
    let more = origin.batches(1);
    store_all(harness, &more);
    harness.restart(Ending::Close);
    let (after, _) = read_on(&*harness.log(), origin.log(), batches[1].end(), Line::Main, 1 << 20);
    assert_eq!(after.len(), 5, "damage must not cut what follows");
}
