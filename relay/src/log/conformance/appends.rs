//! Units, order, and the rules of appending.

use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::{AppendRefusal, Hole, HoleKind},
    envelope::Chain,
};

use super::{fixture::*, *};
use crate::log::contract::{Outside, Table};

pub(super) const CASES: &[Case] = &[
    ("a unit with one bad entry is given back whole", refused_whole),
    ("appends follow the rules of copies", rules),
    ("submitted and durable ends are told apart", two_ends),
    ("own batches are read only once durable", own_once_durable),
    ("done is called once, in order, after reads see it", done_in_order),
    ("a begun copy accepts the batch at its begin", begun),
    ("a dropped log goes on above where it ended, in one unit", begun_anew),
    ("holes are stated, shown, filled and closed", holes),
    ("forks are kept and read apart", forks),
    ("many logs share one log", many_logs),
];

fn refused_whole(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(3);
    let log = harness.log();
    let put = Entry::Put { table: Table::Node, key: "k".into(), value: "v".into() };
    let entries = vec![put, own(&batches[0]), own(&batches[2])];
    let rejected = submit(&*log, entries).map(|_| ()).unwrap_err();
    assert!(matches!(rejected.reason, RejectReason::Refused { index: 2, refusal: AppendRefusal::Gap { .. } }));
    assert_eq!(rejected.unit.entries.len(), 3, "the unit must be given back");
    assert!(log.info(origin.log(), false).is_none(), "nothing of a refused unit takes effect");
    store(harness, vec![own(&batches[0])]);
    assert_eq!(log.get(Table::Node, b"k"), None);
    // Several logs and shapes in one refused unit.
    let before = log.info(origin.log(), false);
    let other = Origin::new(log_name("orders", "east", 1), 2).next(1, 10);
    let entries = vec![
        copy(&other),
        own(&batches[1]),
        Entry::Trim { log: origin.log().clone(), to: batches[1].end() },
        Entry::Drop { log: origin.log().clone() },
        Entry::Drop { log: log_name("none", "east", 1) },
    ];
    assert!(matches!(reason_of(&*log, entries), RejectReason::Invalid { index: 4, .. }));
    assert_eq!(log.info(origin.log(), false), before);
    assert!(log.info(&other.header().log, false).is_none());
    store(harness, vec![own(&batches[1])]);
    assert_holds(&*log, origin.log(), &batches[..2]);
}

fn rules(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let mut branch = origin.clone();
    let batches = origin.batches(4);
    branch.next(2, 100);
    let strange = Origin::at(origin.log().clone(), Some((batches[1].end(), Chain([7; 16]))), 99).next(1, 10);
    store_all(harness, &batches[..2]);
    let log = harness.log();
    let refusal = |batch: &Batch| match reason_of(&*log, vec![own(batch)]) {
        RejectReason::Refused { index: 0, refusal } => refusal,
        other => panic!("refused for another reason: {other}"),
    };
    assert_eq!(refusal(&batches[0]), AppendRefusal::Repeat(batches[0].begin()));
    let gap = AppendRefusal::Gap { found: batches[3].begin(), expected: batches[1].end() };
    assert_eq!(refusal(&batches[3]), gap);
    assert!(matches!(refusal(&strange), AppendRefusal::BrokenChain { .. }));
    let unknown = Origin::at(log_name("other", "west", 1), Some((batches[1].end(), Chain::default())), 5).next(1, 10);
    assert!(matches!(refusal(&unknown), AppendRefusal::Gap { .. }), "an unknown log begins with its first batch");
    store_all(harness, &batches[2..]);
    assert_holds(&*log, origin.log(), &batches);
    let info = log.info(origin.log(), true).unwrap();
    assert_eq!(info.end, origin.end().unwrap());
    assert_eq!(info.messages, 8);
    assert_eq!(info.bytes, batches.iter().map(|b| b.len() as u64).sum::<u64>());
    assert_eq!(info.newest_origin_time_us, batches[3].header().origin_time_us);
    assert_eq!(info.incarnations[0].chain_at_end, Some(origin.chain()));
}

fn two_ends(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(3);
    store_all(harness, &batches[..1]);
    let log = harness.log();
    harness.hold();
    let second = submit(&*log, vec![own(&batches[1])]).unwrap();
    let third = submit(&*log, vec![own(&batches[2])]).unwrap();
    assert_eq!(log.info(origin.log(), false).unwrap().end, batches[2].end());
    assert_eq!(log.info(origin.log(), true).unwrap().end, batches[0].end());
    assert!(second.is_open() && third.is_open());
    assert!(log.stats().queued_bytes >= batches[1].len() as u64);
    harness.release();
    second.wait().unwrap();
    third.wait().unwrap();
    assert_eq!(log.info(origin.log(), true), log.info(origin.log(), false));
    assert_eq!(log.logs(), [origin.log().clone()]);
}

fn own_once_durable(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(2);
    let log = harness.log();
    harness.hold();
    let put = Entry::Put { table: Table::Node, key: "k".into(), value: "v".into() };
    let first = submit(&*log, vec![own(&batches[0]), put]).unwrap();
    let read = |from| log.read(origin.log(), from, Line::Main, 1 << 20).unwrap();
    assert!(!matches!(read(batches[0].begin()), Read::Batches { .. }), "it is not durable yet");
    assert_eq!(log.get(Table::Node, b"k"), None);
    assert!(log.scan(Table::Node, b"").is_empty());
    harness.release();
    first.wait().unwrap();
    assert!(matches!(read(batches[0].begin()), Read::Batches { .. }));
    assert_eq!(log.get(Table::Node, b"k").unwrap(), "v");
    harness.hold();
    let second = submit(&*log, vec![own(&batches[1])]).unwrap();
    assert!(matches!(read(batches[0].end()), Read::AtEnd { at, .. } if at == batches[0].end()));
    harness.release();
    second.wait().unwrap();
    assert!(matches!(read(batches[0].end()), Read::Batches { .. }));
}

fn done_in_order(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(100);
    let log = harness.log();
    let order: Seen<usize> = Seen::default();
    let unseen: Seen<Place> = Seen::default();
    let (tell, told) = mpsc::channel();
    harness.hold();
    for (n, batch) in batches.iter().enumerate() {
        let (order, unseen, seen_by, tell) = (order.clone(), unseen.clone(), log.clone(), tell.clone());
        let (name, begin) = (origin.log().clone(), batch.begin());
        let key = bytes::Bytes::from(format!("{n:03}"));
        let entries = vec![own(batch), Entry::Put { table: Table::Groups, key: key.clone(), value: key.clone() }];
        let done = Box::new(move |result: Result<(), Poisoned>| {
            order.lock().push(n);
            let read = seen_by.read(&name, begin, Line::Main, 1);
            let seen =
                matches!(read, Ok(Read::Batches { .. })) && seen_by.get(Table::Groups, &key).as_ref() == Some(&key);
            if !seen || result.is_err() {
                unseen.lock().push(begin);
            }
            let _ = tell.send(());
        });
        log.submit(Unit { entries }, done).unwrap();
    }
    harness.release();
    for _ in 0..batches.len() {
        told.recv_timeout(PATIENCE).expect("done must be called for each unit");
    }
    assert_eq!(*order.lock(), (0..batches.len()).collect::<Vec<_>>());
    assert_eq!(*unseen.lock(), [], "done came before reads and look-ups saw the unit");
    assert_holds(&*log, origin.log(), &batches);
}

fn begun(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(5);
    let name = origin.log().clone();
    let at = batches[2].begin();
    let begin = |chain| Entry::BeginCopy { log: name.clone(), at, chain };
    store(harness, vec![begin(Some(batches[2].header().chain_before))]);
    let log = harness.log();
    assert!(matches!(reason_of(&*log, vec![begin(None)]), RejectReason::Invalid { index: 0, .. }));
    assert!(matches!(log.read(&name, at, Line::Main, 100).unwrap(), Read::AtEnd { .. }));
    let info = log.info(&name, true).unwrap();
    assert_eq!((info.begin, info.end, info.messages), (at, at, 0));
    assert!(matches!(reason_of(&*log, vec![copy(&batches[0])]), RejectReason::Refused { .. }));
    assert!(matches!(reason_of(&*log, vec![copy(&batches[3])]), RejectReason::Refused { .. }));
    store(harness, batches[2..].iter().map(copy).collect());
    assert_holds(&*log, &name, &batches[2..]);
    harness.restart(Ending::Crash);
    assert_holds(&*harness.log(), &name, &batches[2..]);
    let below = harness.log().read(&name, batches[0].begin(), Line::Main, 100).unwrap();
    assert!(matches!(below, Read::Outside(Outside::Below { begin }) if begin == at));
    // A wrong chain value at a begin that was stated.
    let other = log_name("orders", "east", 1);
    store(harness, vec![Entry::BeginCopy { log: other.clone(), at, chain: Some(Chain([1; 16])) }]);
    let wrong = Origin::at(other, Some((at, Chain([2; 16]))), 3).next(1, 1);
    assert!(matches!(reason_of(&*harness.log(), vec![copy(&wrong)]), RejectReason::Refused { .. }));
}

fn begun_anew(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let name = origin.log().clone();
    let former = origin.batches(3);
    store(harness, former.iter().map(own).collect());
    let (at, chain) = (origin.end().unwrap(), origin.chain());
    store(harness, vec![Entry::Drop { log: name.clone() }]);
    harness.restart(Ending::Crash);
    assert!(harness.log().info(&name, false).is_none());
    origin.restart();
    let first = origin.next(2, 10);
    assert_eq!(first.header().previous, Some(at));
    store(harness, vec![Entry::BeginCopy { log: name.clone(), at, chain: Some(chain) }, own(&first)]);
    let second = origin.next(1, 10);
    store(harness, vec![own(&second)]);
    for _ in 0..2 {
        let log = harness.log();
        assert_eq!(log.info(&name, true).unwrap().begin, at);
        assert_eq!(log.chain_at(&name, at).unwrap(), Some(chain));
        let (batches, _) = read_on(&*log, &name, at, Line::Main, 1 << 20);
        assert!(same(&batches, &[first.clone(), second.clone()]), "{batches:?}");
        harness.restart(Ending::Crash);
    }
}

fn holes(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let batches = origin.batches(6);
    let name = origin.log().clone();
    let hole = |from: usize, to: usize, kind| Hole {
        incarnation: batches[0].begin().incarnation,
        from: batches[from].begin().offset,
        to: batches[to].begin().offset,
        kind,
    };
    let lost = hole(1, 4, HoleKind::Lost);
    store(harness, vec![copy(&batches[0]), Entry::Hole { log: name.clone(), hole: lost }, copy(&batches[4])]);
    let log = harness.log();
    let wrong = Entry::Hole { log: name.clone(), hole: hole(1, 2, HoleKind::Lost) };
    assert!(matches!(reason_of(&*log, vec![wrong]), RejectReason::Invalid { .. }));
    let met = log.read(&name, batches[1].begin(), Line::Main, 1000).unwrap();
    assert!(matches!(met, Read::Outside(Outside::Hole { hole }) if hole == lost));
    let (before, end) = read_on(&*log, &name, batches[0].begin(), Line::Main, 1 << 20);
    assert!(same(&before, &batches[..1]) && matches!(end, Read::Outside(Outside::Hole { .. })));
    assert_eq!(log.info(&name, true).unwrap().holes, [lost]);
    let rekind = Entry::Rekind { log: name.clone(), hole: hole(1, 4, HoleKind::Pending), was: HoleKind::Lost };
    let absent = Entry::Rekind { log: name.clone(), hole: hole(1, 4, HoleKind::Pending), was: HoleKind::NotWanted };
    assert!(matches!(reason_of(&*log, vec![absent]), RejectReason::Invalid { .. }));
    store(harness, vec![rekind]);
    harness.restart(Ending::Crash);
    let log = harness.log();
    assert_eq!(log.info(&name, true).unwrap().holes, [hole(1, 4, HoleKind::Pending)]);
    store(harness, vec![copy(&batches[1]), copy(&batches[5])]);
    assert!(matches!(reason_of(&*log, vec![copy(&batches[3])]), RejectReason::Refused { .. }));
    store(harness, vec![copy(&batches[2]), copy(&batches[3])]);
    assert_eq!(log.info(&name, true).unwrap().holes, []);
    assert_holds(&*log, &name, &batches);
    harness.restart(Ending::Close);
    assert_holds(&*harness.log(), &name, &batches);
}

fn forks(harness: &mut dyn Harness) {
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let mut batches = origin.batches(2);
    let mut restored = origin.clone();
    let lost = origin.batches(3);
    restored.restart();
    let newer = restored.batches(2);
    let name = origin.log().clone();
    store(harness, batches.iter().chain(&lost[..2]).map(copy).collect());
    store(harness, newer.iter().map(copy).collect());
    store(harness, vec![copy(&lost[2])]); // the fork grows by the same rule
    batches.extend(newer.clone());
    for ending in [None, Some(Ending::Close), Some(Ending::Crash)] {
        if let Some(ending) = ending {
            harness.restart(ending);
        }
        let log = harness.log();
        assert_holds(&*log, &name, &batches);
        let info = log.info(&name, true).unwrap();
        assert_eq!(info.fork_tips, [lost[2].end()]);
        assert_eq!(info.end, newer[1].end());
        let (fork, end) = read_on(&*log, &name, lost[0].begin(), Line::Incarnation, 1 << 20);
        assert!(same(&fork, &lost), "the fork must be read in its own incarnation");
        assert!(matches!(end, Read::AtEnd { at, .. } if at == lost[2].end()));
    }
    // An origin that lost its disk begins anew; both histories are kept.
    let anew = Origin::new(name.clone(), 77).batches(2);
    store(harness, anew.iter().map(copy).collect());
    let log = harness.log();
    let info = log.info(&name, true).unwrap();
    assert_eq!(info.incarnations.len(), 3);
    let (found, _) = read_on(&*log, &name, anew[0].begin(), Line::Incarnation, 1 << 20);
    assert!(same(&found, &anew));
}

fn many_logs(harness: &mut dyn Harness) {
    let mut origins: Vec<Origin> =
        (0..300).map(|n| Origin::new(log_name(&format!("topic{}", n / 10), "west", n % 10), u64::from(n))).collect();
    let kept: Mutex<Vec<Vec<Batch>>> = Mutex::new(vec![Vec::new(); origins.len()]);
    for _ in 0..3 {
        let batches: Vec<Batch> = origins.iter_mut().map(|origin| origin.next(1, 20)).collect();
        for (kept, batch) in kept.lock().iter_mut().zip(&batches) {
            kept.push(batch.clone());
        }
        store_all(harness, &batches);
    }
    let infos: Vec<_> = origins.iter().map(|o| harness.log().info(o.log(), true)).collect();
    for ending in [Ending::Close, Ending::Crash] {
        harness.restart(ending);
        let log = harness.log();
        let mut names: Vec<_> = origins.iter().map(|o| o.log().clone()).collect();
        names.sort();
        assert_eq!(log.logs(), names);
        for ((origin, info), batches) in origins.iter().zip(&infos).zip(kept.lock().iter()) {
            assert_eq!(log.info(origin.log(), true), *info);
            assert_holds(&*log, origin.log(), batches);
        }
    }
}
