//! What an origin trimmed while a site was away: nothing that anybody holds is called lost, and copies go on above.

use super::super::*;
use super::{
    SEEDS,
    net::{Disk, Net, log, want},
    three,
};
use crate::copies::HoleKind;

const NAME: (&str, &str, u16) = ("t", "a", 1);

fn name() -> LogName {
    log(NAME.0, NAME.1, NAME.2)
}

fn lost(net: &Net, node: usize) -> bool {
    net.nodes[node].reports.iter().any(|r| r.name == "range-lost")
}

fn restart(net: &mut Net, node: usize) {
    let disk = net.nodes[node].disk.clone();
    for peer in net.restart(node, disk) {
        net.connect(node, peer);
    }
}

fn publish(net: &mut Net, count: usize) {
    for _ in 0..count {
        net.publish(0, "t", 1, 1);
    }
}

/// The origin starts twice and trims all before its newest incarnation, whose very first batch is what goes on. A relay's
/// cache jumps there too, and a site that stands where the cache jumped from asks through it.
#[test]
fn copies_go_on_at_the_first_batch_of_an_incarnation_when_all_before_it_was_trimmed() {
    for seed in SEEDS {
        for batches_between in [0, 4] {
            let mut net = three(seed);
            net.add("c/edge", NodeKind::Edge);
            net.connect(1, 3);
            net.want(2, want("w", "t", WantStart::Earliest));
            net.want(3, want("w", "t", WantStart::Earliest));
            publish(&mut net, 5);
            net.run(5);
            net.complete(0, 2, &name());
            for peer in [2, 3] {
                net.cut(1, peer);
            }
            net.cut(0, 1);
            for _ in 0..2 {
                restart(&mut net, 0);
                publish(&mut net, 1 + batches_between);
            }
            let newest = net.info(0, &name()).unwrap().incarnations.last().cloned().unwrap();
            net.trim(0, &name(), Place { incarnation: newest.incarnation, offset: newest.begin });
            net.connect(0, 1);
            net.connect(1, 2);
            // c sleeps, and may hold it.
            net.run(80);
            net.complete(0, 2, &name());
            net.connect(1, 3);
            net.run(40);
            net.complete(0, 3, &name());
            let hole = Hole { incarnation: newest.incarnation, from: 5, to: newest.begin, kind: HoleKind::Lost };
            assert_eq!(net.info(2, &name()).unwrap().holes, [hole], "seed {seed}");
            assert_eq!((net.refusals.len(), lost(&net, 2)), (0, true), "seed {seed}");
            publish(&mut net, 3);
            net.run(5);
            net.complete(0, 2, &name());
            net.complete(0, 3, &name());
        }
    }
}

/// The first batch of the origin's newest incarnation is damaged on its own disk, and a site stands right before it.
#[test]
fn an_origin_with_a_hole_behind_a_seam_answers() {
    let mut net = three(1);
    // One that is away may hold what the origin lost.
    let away = net.add("c/edge", NodeKind::Edge);
    net.connect(1, away);
    net.run(2);
    net.cut(1, away);
    net.want(2, want("w", "t", WantStart::Earliest));
    publish(&mut net, 5);
    net.run(5);
    net.cut(1, 2);
    restart(&mut net, 0);
    publish(&mut net, 3);
    let newest = net.info(0, &name()).unwrap().incarnations.last().cloned().unwrap();
    let first = Place { incarnation: newest.incarnation, offset: newest.begin };
    net.damage(0, &name(), first, newest.begin + 1);
    net.connect(1, 2);
    net.run(30);
    // The relay's cache asks again and again, without haste; b waits at its end.
    let status = net.nodes[1].machine.copy_status(net.now, &name()).unwrap();
    assert!(status.reason.contains("asks others"), "{status:?}");
    assert_eq!(net.info(2, &name()).unwrap().end.offset, 5);
}

/// b was away; c, which was told everything, sleeps while the origin trims.
fn asleep(net: &mut Net) {
    net.lost_after = Duration::from_secs(24 * 3600);
    for name in ["a/edge", "r/relay", "b/edge", "c/edge"] {
        net.add(name, if name == "r/relay" { NodeKind::Relay } else { NodeKind::Edge });
    }
    for node in [0, 2, 3] {
        net.connect(1, node);
    }
    for node in [2, 3] {
        net.want(node, want("w", "t", WantStart::Earliest));
    }
    publish(net, 5);
    net.run(5);
    net.cut(1, 2);
    publish(net, 10);
    net.run(5);
    net.complete(0, 3, &name());
    net.cut(1, 3);
    let end = net.info(0, &name()).unwrap().end;
    net.trim(0, &name(), Place { offset: 12, ..end });
}

#[test]
fn what_a_sleeping_site_holds_is_not_called_lost() {
    for restarted in [false, true] {
        let mut net = Net::new(3);
        asleep(&mut net);
        restart_empty(&mut net, 1);
        // So long that nobody has a record of c any more.
        net.run(4000);
        if restarted {
            restart(&mut net, 2);
        }
        net.connect(1, 2);
        net.run(600);
        assert!(!lost(&net, 2), "only c holds it, and c is asleep");
        let status = net.nodes[2].machine.copy_status(net.now, &name()).unwrap();
        assert!(status.reason.contains("other sites are being asked"), "{status:?}");
        net.connect(1, 3);
        net.run(60);
        net.complete(0, 2, &name());
        assert!(!lost(&net, 2) && net.info(2, &name()).unwrap().holes.is_empty());
        assert_eq!(net.nodes[2].disk.batches[&name()].len(), 15);
    }
}

/// c trimmed too, but holds more than the origin.
#[test]
fn of_a_lost_range_the_part_that_somebody_holds_is_fetched() {
    for restarted in [false, true] {
        let mut net = Net::new(3);
        asleep(&mut net);
        restart_empty(&mut net, 1);
        let end = net.info(3, &name()).unwrap().end;
        net.trim(3, &name(), Place { offset: 8, ..end });
        if restarted {
            // The origin has begun another incarnation since.
            restart(&mut net, 0);
            publish(&mut net, 3);
        }
        net.connect(1, 3);
        net.connect(1, 2);
        net.run(60);
        net.complete_but_for(0, 2, &name(), 5, 8);
        assert!((8..15).all(|offset| net.nodes[2].disk.batches[&name()].contains_key(&Place { offset, ..end })));
    }
}

#[test]
fn after_the_configured_wait_the_copy_goes_on() {
    let mut net = Net::new(3);
    asleep(&mut net);
    restart_empty(&mut net, 1);
    net.connect(1, 2);
    net.run(24 * 3600 - 60);
    assert!(!lost(&net, 2));
    net.run(120);
    assert!(lost(&net, 2));
    net.complete_but_for(0, 2, &name(), 5, 12);
}

/// The command does at once what the wait does at last, and never what somebody who can be reached still holds.
#[test]
fn what_is_waited_for_is_given_up_by_command_and_what_others_hold_is_not() {
    let mut net = Net::new(3);
    asleep(&mut net);
    restart_empty(&mut net, 1);
    let skip = |net: &mut Net, really| {
        let now = net.now;
        let skipped = net.nodes[2].machine.skip(now, &name(), really);
        net.pump(2);
        skipped.map(|holes| holes.into_iter().map(|hole| (hole.from, hole.to)).collect::<Vec<_>>())
    };
    assert_eq!(skip(&mut net, true), Ok(Vec::new()), "it waits for nothing yet");
    net.connect(1, 2);
    net.run(60);
    assert!(!lost(&net, 2));
    assert_eq!(skip(&mut net, false), Ok(vec![(5, 12)]));
    net.run(60);
    assert!(!lost(&net, 2), "it was only asked what would be given up");
    assert_eq!(skip(&mut net, true), Ok(vec![(5, 12)]));
    net.run(60);
    assert!(lost(&net, 2));
    net.complete_but_for(0, 2, &name(), 5, 12);
    assert_eq!(skip(&mut net, true), Ok(Vec::new()));

    // What cannot be read any more, and nobody who can be reached holds.
    let end = net.info(2, &name()).unwrap().end;
    net.cut(0, 1);
    net.damage(2, &name(), Place { offset: 13, ..end }, 14);
    net.run(60);
    assert!(skip(&mut net, true).is_err(), "its origin may have it");
    restart_empty(&mut net, 1);
    net.trim(0, &name(), Place { offset: 14, ..end });
    net.connect(0, 1);
    net.run(60);
    assert_eq!(skip(&mut net, true), Ok(vec![(13, 14)]));
    net.run(60);
    let kinds: Vec<_> = net.info(2, &name()).unwrap().holes.iter().map(|h| (h.from, h.kind)).collect();
    assert_eq!(kinds, [(5, HoleKind::Lost), (13, HoleKind::Lost)]);
    assert_eq!(skip(&mut net, true), Ok(Vec::new()));

    // c is there: what it holds comes from there, and is not given up.
    let mut net = Net::new(3);
    asleep(&mut net);
    restart_empty(&mut net, 1);
    net.connect(1, 3);
    net.connect(1, 2);
    assert!(net.run_until(60, |net| net.nodes[2].machine.logs.get(&name()).is_some_and(|s| !s.offers.is_empty())));
    let refused = skip(&mut net, true).unwrap_err();
    assert!(refused.contains("is held by others, and comes from there"), "{refused}");
    net.run(60);
    net.complete(0, 2, &name());
    assert!(!lost(&net, 2));
}

/// The origin lost its disk; c has the beginning of its log, b the end, and nobody what lies between.
#[test]
fn an_origin_goes_on_above_what_nobody_has_of_its_own_log() {
    for seed in SEEDS {
        for at_once in [false, true] {
            let mut net = three(seed);
            net.add("c/edge", NodeKind::Edge);
            net.connect(1, 3);
            for node in [2, 3] {
                net.want(node, want("w", "t", WantStart::Earliest));
            }
            publish(&mut net, 10);
            net.run(5);
            net.cut(1, 3);
            publish(&mut net, 14);
            net.run(5);
            net.complete(0, 2, &name());
            let old = net.info(0, &name()).unwrap().end;
            net.cut(0, 1);
            net.trim(2, &name(), Place { offset: 18, ..old });
            restart_empty(&mut net, 1);
            net.connect(1, 3);
            net.run(5);
            restart_empty(&mut net, 0);
            net.connect(0, 1);
            if at_once {
                // Before anybody told it what it lost: what it had is a fork, or leads the main line.
                publish(&mut net, 2);
            }
            net.run(120);
            publish(&mut net, 3);
            net.run(60);
            let hole = Hole { incarnation: old.incarnation, from: 10, to: 18, kind: HoleKind::Lost };
            for node in [0, 3] {
                assert_eq!(net.info(node, &name()).unwrap().holes, [hole], "seed {seed}, {at_once}, node {node}");
                let held = &net.nodes[node].disk.batches[&name()];
                let whole = (0..10).chain(18..24).all(|offset| held.contains_key(&Place { offset, ..old }));
                assert!(whole && lost(&net, node), "seed {seed}, {at_once}, node {node}");
            }
            net.complete(0, 3, &name());
            // It trimmed what lies below, also where that is a fork now.
            assert_eq!(net.info(2, &name()).unwrap().end, net.info(0, &name()).unwrap().end, "seed {seed}, {at_once}");
            net.same_bytes(0, 2);
            assert_eq!(net.refusals.len(), 0, "seed {seed}, {at_once}");
        }
    }
}

/// A site was away while its origin began a log and gave up the log's beginning. `restarted`: in an incarnation before the one that is left.
fn away_from_the_beginning(seed: u64, restarted: bool) -> Net {
    let mut net = Net::new(seed);
    for (name, kind) in [("a/edge", NodeKind::Edge), ("r/relay", NodeKind::Relay), ("b/edge", NodeKind::Edge)] {
        net.add(name, kind);
    }
    net.add("c/edge", NodeKind::Edge);
    for node in [0, 2, 3] {
        net.connect(node, 1);
    }
    for node in [2, 3] {
        net.want(node, want("w", "#", WantStart::Earliest));
    }
    net.publish(0, "before", 1, 3);
    net.run(5);
    net.complete(0, 2, &log("before", "a", 1));
    net.cut(1, 2);
    net.publish(0, "t", 1, 12);
    if restarted {
        restart(&mut net, 0);
    }
    net.publish(0, "t", 1, 6);
    net.run(5);
    net
}

fn trim_to(net: &mut Net, node: usize, offset: u64) {
    let info = net.info(node, &name()).unwrap();
    let held = info.incarnations.iter().rfind(|i| i.begin <= offset).unwrap();
    net.trim(node, &name(), Place { incarnation: held.incarnation, offset });
}

#[test]
fn a_log_begun_while_a_site_was_away_begins_there_at_its_first_place() {
    for seed in SEEDS {
        for restarted in [false, true] {
            // Somebody else still has the beginning: it comes from there, and nothing is lost.
            let mut net = away_from_the_beginning(seed, restarted);
            trim_to(&mut net, 0, 12);
            net.run(5);
            net.connect(1, 2);
            net.run(120);
            net.complete(0, 2, &name());
            let info = net.info(2, &name()).unwrap();
            assert_eq!((info.messages, info.begin.offset), (18, 0), "seed {seed}, {restarted}: {info:?}");
            assert!(!lost(&net, 2) && info.holes.is_empty(), "seed {seed}, {restarted}: {info:?}");
            // Nobody has it any more: the copy says what it lacks, and people are told.
            let mut net = away_from_the_beginning(seed, restarted);
            for node in [0, 1, 3] {
                trim_to(&mut net, node, 12);
            }
            net.run(5);
            net.connect(1, 2);
            net.run(120);
            net.complete_but_for(0, 2, &name(), 0, 12);
            assert!(lost(&net, 2), "seed {seed}, {restarted}");
            net.publish(0, "t", 1, 2);
            net.run(10);
            net.complete_but_for(0, 2, &name(), 0, 12);
            assert_eq!(net.refusals.len(), 0, "seed {seed}, {restarted}: {:?}", net.refusals);
        }
    }
}

/// The origin lost its disk, and the only site that has its log could not read a range in the middle of it either.
#[test]
fn an_origin_gets_back_what_lies_above_a_range_that_its_only_holder_lost() {
    for seed in SEEDS {
        let mut net = Net::new(seed);
        net.lost_after = Duration::from_secs(60);
        for name in ["a/edge", "r/relay", "b/edge"] {
            net.add(name, if name == "r/relay" { NodeKind::Relay } else { NodeKind::Edge });
        }
        net.connect(0, 1);
        net.connect(1, 2);
        net.want(2, want("w", "t", WantStart::Earliest));
        publish(&mut net, 10);
        net.run(5);
        net.complete(0, 2, &name());
        let old = net.info(0, &name()).unwrap().end;
        net.cut(0, 1);
        restart_empty(&mut net, 1);
        net.damage(2, &name(), Place { offset: 4, ..old }, 5);
        net.run(5);
        restart_empty(&mut net, 0);
        net.connect(0, 1);
        net.run(240);
        let hole = Hole { incarnation: old.incarnation, from: 4, to: 5, kind: HoleKind::Lost };
        for node in [2, 0] {
            assert_eq!(net.info(node, &name()).unwrap().holes, [hole], "seed {seed}, node {node}");
        }
        assert!(lost(&net, 0), "seed {seed}");
        publish(&mut net, 3);
        net.run(60);
        net.complete(0, 2, &name());
        net.complete(2, 0, &name());
        assert_eq!(net.refusals.len(), 0, "seed {seed}");
    }
}

/// As above, but d has what lies between, says so, and goes away before it was fetched: it is waited for.
#[test]
fn what_a_holder_offered_is_not_called_lost_while_it_is_away() {
    for seed in SEEDS {
        let mut net = three(seed);
        net.add("c/edge", NodeKind::Edge);
        net.add("d/edge", NodeKind::Edge);
        net.connect(1, 3);
        net.connect(1, 4);
        for node in [2, 3, 4] {
            net.want(node, want("w", "t", WantStart::Earliest));
        }
        for (count, then_away) in [(10, 3), (8, 4), (6, 2)] {
            publish(&mut net, count);
            net.run(5);
            net.cut(1, then_away);
        }
        let old = net.info(2, &name()).unwrap().end;
        net.trim(2, &name(), Place { offset: 18, ..old });
        net.cut(0, 1);
        restart_empty(&mut net, 1);
        restart_empty(&mut net, 0);
        net.connect(0, 1);
        net.connect(1, 3);
        net.run(20);
        assert_eq!(net.info(0, &name()).unwrap().end, Place { offset: 10, ..old }, "seed {seed}");
        net.connect(1, 2);
        net.run(2);
        net.connect(1, 4);
        let answered_by_d = |net: &Net| {
            let machine = &net.nodes[0].machine;
            let asked = machine.logs.get(&name()).and_then(|s| s.gap.as_ref()?.asked);
            let answered = asked.and_then(|(question, _)| machine.questions.answered.get(&question));
            answered.is_some_and(|nodes| nodes.iter().any(|n| n.to_string() == "d/edge"))
        };
        assert!(net.run_until(20, answered_by_d), "seed {seed}");
        net.cut(1, 4);
        net.run(40);
        assert_eq!(net.info(0, &name()).unwrap().end, Place { offset: 10, ..old }, "seed {seed}: it was too late");
        assert!(!lost(&net, 0), "seed {seed}: {:?}", net.info(0, &name()));
        net.connect(1, 4);
        net.run(60);
        let held = &net.nodes[0].disk.batches[&name()];
        assert!((0..24).all(|offset| held.contains_key(&Place { offset, ..old })), "seed {seed}");
        assert!(!lost(&net, 0), "seed {seed}");
    }
}

/// Only a relay's cache still has what the origin trimmed.
#[test]
fn what_only_a_cache_holds_is_not_called_lost() {
    for seed in SEEDS {
        let mut net = Net::new(seed);
        for name in ["a/edge", "b/edge", "r/relay", "c/edge"] {
            net.add(name, if name == "r/relay" { NodeKind::Relay } else { NodeKind::Edge });
        }
        net.connect(0, 1);
        net.connect(0, 2);
        net.connect(2, 3);
        net.want(1, want("w", "t", WantStart::Earliest));
        net.want(3, want("w", "t", WantStart::Earliest));
        publish(&mut net, 5);
        net.run(5);
        net.cut(0, 1);
        publish(&mut net, 10);
        net.run(5);
        net.nodes[3].wants.clear();
        net.cut(2, 3);
        net.restart(3, Disk::default());
        net.connect(2, 3);
        let end = net.info(0, &name()).unwrap().end;
        net.trim(0, &name(), Place { offset: 12, ..end });
        net.connect(0, 1);
        net.run(60);
        assert!(!lost(&net, 1), "seed {seed}");
        assert_eq!(net.nodes[1].disk.batches[&name()].len(), 15, "seed {seed}");
    }
}

fn restart_empty(net: &mut Net, node: usize) {
    for peer in net.restart(node, Disk::default()) {
        net.connect(node, peer);
    }
}
