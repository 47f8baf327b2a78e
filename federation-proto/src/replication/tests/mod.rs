//! Machines joined by ideal links; see [`net`].

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stderr, reason = "tests")]

mod bounds;
mod carried;
mod deleted;
mod find;
mod gaps;
mod missed;
mod net;
mod passing;
mod refusals;
mod removal;
mod standing;
mod starts;
mod statements;

use std::time::Duration;

use prost::Message as _;

use self::net::{Disk, Net, log, want};
use super::*;
use crate::session::{Lane, NodeKind};

const SEEDS: std::ops::Range<u64> = 0..8;

/// Edge, relay, edge.
fn three(seed: u64) -> Net {
    three_by_way_of(seed, "r/relay")
}

fn three_by_way_of(seed: u64, relay: &str) -> Net {
    let mut net = Net::new(seed);
    net.add("a/edge", NodeKind::Edge);
    net.add(relay, NodeKind::Relay);
    net.add("b/edge", NodeKind::Edge);
    net.connect(0, 1);
    net.connect(1, 2);
    net
}

#[test]
fn edge_relay_edge_in_both_directions_with_several_origins_on_one_topic() {
    // The relay has a site of its own, or stands in that of one of the edge brokers.
    let relays = ["r/relay", "a/relay", "b/relay"];
    for (seed, relay) in SEEDS.flat_map(|seed| relays.map(|relay| (seed, relay))) {
        let mut net = three_by_way_of(seed, relay);
        net.want(0, want("w", "#", WantStart::Earliest));
        net.want(2, want("w", "orders/#", WantStart::Earliest));
        for n in 0..20 {
            net.publish(0, "orders", 1, 1 + n % 3);
            net.publish(2, "orders", 1, 2);
            net.publish(0, "other", 1, 1);
            net.publish(0, "orders", 0, 1);
            if n % 5 == 0 {
                net.run(1);
            }
        }
        net.run(5);
        net.complete(0, 2, &log("orders", "a", 1));
        net.complete(0, 2, &log("orders", "a", 0));
        net.complete(2, 0, &log("orders", "b", 1));
        assert!(net.info(2, &log("other", "a", 1)).is_none());
        assert!(net.info(1, &log("other", "a", 1)).is_none());
        assert_eq!((net.repeats, net.refusals.len()), (0, 0), "seed {seed}");
        let end = net.info(0, &log("orders", "a", 1)).unwrap().end;
        let last = Place { offset: end.offset - 1, ..end };
        let machine = &net.nodes[0].machine;
        assert_eq!(machine.registered(&"orders".parse().unwrap()), ["b".parse::<Site>().unwrap()]);
        assert!(machine.registered(&"other".parse().unwrap()).is_empty());
        assert!(machine.site_holds(&"b".parse().unwrap(), &log("orders", "a", 1), last));
        assert!(!machine.site_holds(&"b".parse().unwrap(), &log("orders", "a", 1), end));
        let held = machine.sites().into_iter().find(|s| s.site.as_str() == "b").unwrap().held;
        assert!(
            held.iter()
                .any(|(l, p, registered, equal)| *l == log("orders", "a", 1) && *p == end && *registered && *equal)
        );
        let status = net.nodes[2].machine.copy_status(net.now, &log("orders", "a", 1)).unwrap();
        assert_eq!(
            (status.state, status.lag_messages, status.lag_bytes, status.lag),
            ("live", Some(0), Some(0), Some(Duration::ZERO)),
            "{status:?}"
        );
        assert!(
            net.nodes.iter().all(|n| n.reports.is_empty()),
            "seed {seed}: {:?}",
            net.nodes.iter().map(|n| &n.reports).collect::<Vec<_>>()
        );
    }
}

#[test]
fn two_edge_brokers_of_one_site_are_reported_everywhere_while_both_are_there() {
    let mut net = three(3);
    net.run(5);
    assert!(net.nodes.iter().all(|n| n.reports.is_empty()));
    let twin = net.add("a/other", NodeKind::Edge);
    net.connect(1, twin);
    net.run(5);
    for node in &net.nodes {
        let found: Vec<_> = node.reports.iter().filter(|r| r.name == "two-edges-one-site").collect();
        assert_eq!(found.len(), 1, "{:?}", node.reports);
        assert!(found[0].text.contains("a/edge, whose data is oldest, counts; a/other takes no"), "{}", found[0].text);
    }
    // One that is gone is no second one, although its record is still known; back again, it is reported again.
    net.cut(1, twin);
    net.run(5);
    assert_eq!(net.nodes[2].over, [("two-edges-one-site", "a".to_owned())]);
    net.connect(1, twin);
    net.run(5);
    let again = net.nodes[2].reports.iter().filter(|r| r.name == "two-edges-one-site").count();
    assert_eq!(again, 2);
    let outdone = |net: &Net| [0, twin].map(|node| net.nodes[node].machine.outdone_by().map(|n| n.to_string()));
    assert_eq!(outdone(&net), [None, Some("a/edge".to_owned())]);
}

#[test]
fn a_restart_never_makes_an_edge_broker_the_second_of_its_site() {
    let mut net = three(3);
    net.run(5);
    let outdone = |net: &Net, node: usize| net.nodes[node].machine.outdone_by().map(|n| n.to_string());
    // Alone, with its disk and with a new one, none is in its own way.
    for disk in [net.nodes[0].disk.clone(), Disk::default()] {
        let peers = net.restart(0, disk);
        assert_eq!(outdone(&net, 0), None);
        for peer in peers {
            net.connect(0, peer);
        }
        for _ in 0..20 {
            net.run(1);
            assert_eq!(outdone(&net, 0), None);
        }
    }
    // A second one was started by mistake, and stays the second although the first begins anew.
    let twin = net.add("a/other", NodeKind::Edge);
    net.connect(1, twin);
    net.run(5);
    for _ in 0..2 {
        let disk = net.nodes[0].disk.clone();
        let peers = net.restart(0, disk);
        for peer in peers {
            net.connect(0, peer);
        }
        net.run(5);
        assert_eq!(outdone(&net, 0), None);
        assert_eq!(outdone(&net, twin), Some("a/edge".to_owned()));
    }
    // A node of another name takes its place.
    net.cut(0, 1);
    net.run(5);
    assert_eq!(outdone(&net, twin), None);
}

/// One, two and c/edge in a row, and a/edge at one; a second process of its name is at two.
fn namesakes(seed: u64, copied: bool) -> (Net, usize) {
    let mut net = Net::new(seed);
    net.add("a/edge", NodeKind::Edge);
    for relay in ["r/one", "s/two"] {
        net.add(relay, NodeKind::Relay);
    }
    net.add("c/edge", NodeKind::Edge);
    net.want(3, want("w", "t", WantStart::Earliest));
    // Its data is kept from its first start on.
    let disk = net.nodes[0].disk.clone();
    net.restart(0, disk);
    for (a, b) in [(0, 1), (1, 2), (2, 3)] {
        net.connect(a, b);
    }
    net.run(5);
    let twin = net.add("a/edge", NodeKind::Edge);
    if copied {
        let disk = net.nodes[0].disk.clone();
        net.restart(twin, disk);
    }
    net.connect(2, twin);
    net.run(2);
    (net, twin)
}

fn stands_back(net: &Net, node: usize) -> bool {
    net.nodes[node].machine.is_second_of_its_name()
}

fn told_of_namesake(net: &Net, node: usize) -> bool {
    net.nodes[node].reports.iter().any(|r| r.name == "two-nodes-one-name")
}

fn over_with_namesake(net: &Net, node: usize) -> bool {
    net.nodes[node].over.iter().any(|(name, _)| *name == "two-nodes-one-name")
}

/// Both tell of it at once, all ways lead to the one whose data is older, the other takes no messages until the first is gone.
#[test]
fn of_two_processes_of_one_name_at_different_neighbours_the_older_one_counts() {
    for seed in SEEDS {
        let (mut net, twin) = namesakes(seed, false);
        assert!(told_of_namesake(&net, 0) && told_of_namesake(&net, twin), "seed {seed}: both tell of it");
        assert_eq!((stands_back(&net, 0), stands_back(&net, twin)), (false, true), "seed {seed}");
        net.publish(0, "t", 1, 3);
        net.run(3);
        net.complete(0, 3, &log("t", "a", 1));
        // A restart gives nothing away, and the new process learns of it too.
        let disk = net.nodes[0].disk.clone();
        net.restart(0, disk);
        assert!(!told_of_namesake(&net, 0));
        for _ in 0..10 {
            net.run(1);
            assert!(stands_back(&net, twin), "seed {seed}");
        }
        net.connect(0, 1);
        net.run(5);
        assert_eq!((stands_back(&net, 0), stands_back(&net, twin)), (false, true), "seed {seed}");
        assert!(told_of_namesake(&net, 0), "seed {seed}: the new process tells of it too");
        // Nor does the second one's line, when it breaks for a moment or for long.
        for away in [1, 90] {
            net.cut(2, twin);
            net.run(away);
            assert_eq!(over_with_namesake(&net, 0), away > 60, "seed {seed}");
            net.nodes[0].reports.clear();
            net.connect(2, twin);
            net.run(5);
            assert_eq!((stands_back(&net, 0), stands_back(&net, twin)), (false, true), "seed {seed}");
            assert_eq!(told_of_namesake(&net, 0), away > 60, "seed {seed}: it is told again where it was over");
        }
        // The first is gone, and back.
        net.cut(0, 1);
        net.run(30);
        assert!(stands_back(&net, twin), "seed {seed}");
        net.run(60);
        assert!(!stands_back(&net, twin) && over_with_namesake(&net, twin), "seed {seed}");
        net.connect(0, 1);
        net.run(5);
        assert_eq!((stands_back(&net, 0), stands_back(&net, twin)), (false, true), "seed {seed}");
    }
}

#[test]
fn of_two_copies_of_one_machine_one_counts_and_stays_through_restarts() {
    for seed in SEEDS {
        let (mut net, twin) = namesakes(seed, true);
        let first = if stands_back(&net, 0) { twin } else { 0 };
        assert!(stands_back(&net, twin - first), "seed {seed}: one of the two, and not both");
        for _ in 0..3 {
            let disk = net.nodes[first].disk.clone();
            for peer in net.restart(first, disk) {
                net.connect(first, peer);
            }
            net.run(5);
            assert!(!stands_back(&net, first) && stands_back(&net, twin - first), "seed {seed}");
        }
        // Whichever of the two it is that restarts.
        for _ in 0..3 {
            let disk = net.nodes[twin - first].disk.clone();
            for peer in net.restart(twin - first, disk) {
                net.connect(twin - first, peer);
            }
            net.run(5);
            assert!(!stands_back(&net, first) && stands_back(&net, twin - first), "seed {seed}");
        }
    }
}

/// Two that stand back do not keep each other there once the first is gone.
#[test]
fn of_three_processes_of_one_name_one_is_left_when_another_dies() {
    for seed in SEEDS {
        let (mut net, second) = namesakes(seed, false);
        let relay = net.add("u/three", NodeKind::Relay);
        net.connect(1, relay);
        let third = net.add("a/edge", NodeKind::Edge);
        net.connect(relay, third);
        net.run(5);
        let standing = |net: &Net| [0, second, third].map(|node| stands_back(net, node));
        assert_eq!(standing(&net), [false, true, true], "seed {seed}");
        net.cut(0, 1);
        net.run(90);
        assert_eq!(standing(&net)[1..], [false, true], "seed {seed}");
    }
}

#[test]
fn a_quiet_federation_says_little() {
    let mut net = three(1);
    net.want(2, want("w", "#", WantStart::Earliest));
    for _ in 0..10 {
        net.publish(0, "orders", 1, 1);
    }
    net.run(10);
    let before = net.control_messages;
    net.run(100);
    // Each second: a mark over two links, a probe over two links and back.
    let each = (net.control_messages - before) as f64 / 100.0;
    assert!(each <= 6.5, "{each} control messages a second");
}

#[test]
fn starts_are_counted_once() {
    for seed in SEEDS {
        let mut net = three(seed);
        for _ in 0..5 {
            net.publish(0, "t", 1, 1);
        }
        net.run(2);
        net.want(2, want("latest", "t", WantStart::Latest));
        net.run(3);
        net.publish(0, "t", 1, 1);
        // A log that appears later is taken from its begin.
        net.publish(0, "t", 2, 1);
        net.run(3);
        assert_eq!(net.info(2, &log("t", "a", 1)).unwrap().begin.offset, 5);
        assert_eq!(net.info(2, &log("t", "a", 2)).unwrap().begin.offset, 0);
        // Away while more comes: it goes on at its own end.
        net.cut(1, 2);
        for _ in 0..5 {
            net.publish(0, "t", 1, 1);
        }
        let disk = net.nodes[2].disk.clone();
        net.restart(2, disk);
        net.run(3);
        net.connect(1, 2);
        net.run(5);
        net.complete(0, 2, &log("t", "a", 1));
        assert_eq!(net.info(2, &log("t", "a", 1)).unwrap().begin.offset, 5, "seed {seed}");
        assert_eq!(net.nodes[2].disk.batches[&log("t", "a", 1)].len(), 6);
    }
}

#[test]
fn a_start_by_time_is_resolved_by_the_origin() {
    let mut net = three(3);
    net.publish(0, "t", 1, 1);
    net.run(10);
    let time = 1_000_000 + net.now.as_micros() as u64;
    net.run(1);
    net.publish(0, "t", 1, 1);
    net.publish(0, "t", 1, 1);
    net.want(2, want("w", "t", WantStart::Time(time)));
    net.run(5);
    assert_eq!(net.info(2, &log("t", "a", 1)).unwrap().begin.offset, 1);
    net.complete(0, 2, &log("t", "a", 1));
}

#[test]
fn what_the_relay_no_longer_holds_is_read_through() {
    for seed in SEEDS {
        let mut net = three(seed);
        net.add("c/edge", NodeKind::Edge);
        net.want(2, want("w", "t", WantStart::Earliest));
        for _ in 0..30 {
            net.publish(0, "t", 1, 2);
        }
        net.run(3);
        let end = net.info(1, &log("t", "a", 1)).unwrap().end;
        net.trim(1, &log("t", "a", 1), Place { offset: 40, ..end });
        net.cut(1, 2);
        net.connect(1, 3);
        net.want(3, want("w", "t", WantStart::Earliest));
        net.publish(0, "t", 1, 1);
        net.run(5);
        net.complete(0, 3, &log("t", "a", 1));
        assert_eq!(net.nodes[1].passed_batches, 20, "seed {seed}");
        // Away for longer than the cache reaches back.
        for _ in 0..10 {
            net.publish(0, "t", 1, 1);
        }
        net.run(3);
        let end = net.info(1, &log("t", "a", 1)).unwrap().end;
        net.trim(1, &log("t", "a", 1), end);
        net.connect(1, 2);
        net.run(5);
        net.complete(0, 2, &log("t", "a", 1));
        assert_eq!((net.repeats, net.refusals.len()), (0, 0), "seed {seed}");
    }
}

/// A random tree of up to five nodes with links that come and go, and nodes that restart.
#[test]
fn random_trees_come_to_rest_complete() {
    let seeds = std::env::var("SEAWAY_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let mut net = Net::new(seed);
        let count = 2 + net.pick(4);
        let mut tree = Vec::new();
        for n in 0..count {
            let relay = n > 0 && n + 1 < count && net.pick(2) == 0;
            let (name, kind) = if relay { ("relay", NodeKind::Relay) } else { ("edge", NodeKind::Edge) };
            net.add(&format!("s{n}/{name}"), kind);
            if n > 0 {
                tree.push((net.pick(n), n));
            }
        }
        let edges: Vec<usize> = (0..count).filter(|n| net.nodes[*n].config.kind == NodeKind::Edge).collect();
        for n in &edges {
            net.want(*n, want("all", "#", WantStart::Earliest));
        }
        for (a, b) in &tree {
            net.connect(*a, *b);
        }
        for _ in 0..60 {
            match net.pick(12) {
                0 => {
                    let (a, b) = tree[net.pick(tree.len())];
                    net.cut(a, b);
                }
                1 | 2 => {
                    let (a, b) = tree[net.pick(tree.len())];
                    net.connect(a, b);
                }
                3 => {
                    let node = net.pick(count);
                    let keep = net.nodes[node].config.kind == NodeKind::Edge || net.pick(2) == 0;
                    let disk = if keep { net.nodes[node].disk.clone() } else { Disk::default() };
                    for peer in net.restart(node, disk) {
                        net.connect(node, peer);
                    }
                }
                4 => net.run(1),
                _ => {
                    let node = edges[net.pick(edges.len())];
                    let topic = ["t", "u"][net.pick(2)];
                    let (queue, messages) = (net.pick(2) as u16, 1 + net.pick(3) as u32);
                    net.publish(node, topic, queue, messages);
                }
            }
        }
        for (a, b) in &tree {
            net.connect(*a, *b);
        }
        net.run(40);
        for origin in &edges {
            let logs: Vec<LogName> = net.nodes[*origin].disk.copies.iter().map(|(l, _)| l.clone()).collect();
            for name in logs.iter().filter(|l| l.origin == net.nodes[*origin].config.node.site) {
                for copy in edges.iter().filter(|c| *c != origin) {
                    net.complete(*origin, *copy, name);
                }
            }
        }
        for node in &net.nodes {
            assert!(node.reports.is_empty(), "seed {seed}: {:?}", node.reports);
        }
    }
}

#[test]
fn a_restored_origin_is_reported_and_gets_its_lost_history_back() {
    for seed in SEEDS {
        let mut net = three(seed);
        net.want(2, want("w", "t", WantStart::Earliest));
        for _ in 0..5 {
            net.publish(0, "t", 1, 1);
        }
        net.run(3);
        let old = net.nodes[0].disk.clone();
        for _ in 0..5 {
            net.publish(0, "t", 1, 1);
        }
        net.run(3);
        let name = log("t", "a", 1);
        net.complete(0, 2, &name);
        let peers = net.restart(0, old);
        net.publish(0, "t", 1, 1);
        for peer in peers {
            net.connect(0, peer);
        }
        net.run(20);
        let reports: Vec<&str> = net.nodes[0].reports.iter().map(|r| r.name).collect();
        assert!(reports.contains(&"origin-went-back"), "seed {seed}: {reports:?}");
        let (a, b) = (net.info(0, &name).unwrap(), net.info(2, &name).unwrap());
        let tips =
            |i: &crate::copies::LogInfo| i.incarnations.iter().map(|i| (i.incarnation, i.end)).collect::<Vec<_>>();
        assert_eq!(tips(&a), tips(&b), "seed {seed}");
        assert_eq!(net.nodes[0].disk.batches[&name].len(), 11, "seed {seed}");
        net.publish(0, "t", 1, 1);
        net.publish(0, "t", 1, 1);
        net.run(10);
        net.complete(0, 2, &name);
        assert_eq!(net.nodes[2].disk.batches[&name].len(), 13, "seed {seed}");
        net.same_bytes(0, 2);
    }
}

/// The clock of a site was ahead; it starts again with the right time and without its disk. What it states must count, not
/// what is known of the former start.
#[test]
fn a_site_whose_clock_had_run_ahead_is_heard_again() {
    let mut net = three(33);
    net.want(0, want("w", "t", WantStart::Earliest));
    net.want(2, want("w", "t", WantStart::Earliest));
    let site: Site = "b".parse().unwrap();
    let name = log("t", "a", 1);
    let last = |net: &Net| {
        let end = net.info(0, &name).unwrap().end;
        Place { offset: end.offset - 1, ..end }
    };
    let say = |net: &mut Net| {
        let message = link::OneWayBody { path: "t".to_owned(), ..Default::default() };
        net.nodes[2].machine.handle_publish_one_way(net.now, message);
        net.run(1);
        net.nodes[0].one_way.len()
    };
    net.clock_ahead = Duration::from_secs(1_000_000);
    let disk = net.nodes[2].disk.clone();
    net.restart(2, disk).into_iter().for_each(|peer| net.connect(2, peer));
    net.run(5);
    net.publish(0, "t", 1, 3);
    net.run(5);
    assert!(net.nodes[0].machine.site_holds(&site, &name, last(&net)));
    assert_eq!(say(&mut net), 1);
    net.clock_ahead = Duration::ZERO;
    net.restart(2, Disk::default()).into_iter().for_each(|peer| net.connect(2, peer));
    net.run(5);
    net.publish(0, "t", 1, 3);
    net.run(10);
    assert!(net.nodes[0].machine.site_holds(&site, &name, last(&net)), "its statements are not heard");
    assert_eq!(net.nodes[0].machine.registered(&"t".parse().unwrap()), [site]);
    assert_eq!(say(&mut net), 2, "its one-way messages are taken for its former start's");
}

#[test]
fn an_origin_without_its_disk_gets_its_logs_back() {
    let mut net = three(5);
    net.want(2, want("w", "t", WantStart::Earliest));
    for _ in 0..5 {
        net.publish(0, "t", 1, 1);
    }
    net.run(3);
    for peer in net.restart(0, Disk::default()) {
        net.connect(0, peer);
    }
    net.run(20);
    assert_eq!(net.nodes[0].disk.batches[&log("t", "a", 1)].len(), 5);
    net.publish(0, "t", 1, 1);
    net.run(10);
    net.complete(0, 2, &log("t", "a", 1));
    let registered = net.nodes[0].machine.registered(&"t".parse().unwrap());
    assert_eq!(registered, ["b".parse::<Site>().unwrap()]);
}

#[test]
fn what_the_origin_trimmed_comes_from_another_site_or_is_stated_as_lost() {
    for seed in SEEDS {
        for other_holds in [true, false] {
            let mut net = three(seed);
            net.add("c/edge", NodeKind::Edge);
            net.connect(1, 3);
            net.want(2, want("w", "t", WantStart::Earliest));
            net.want(3, want("w", "t", WantStart::Earliest));
            let name = log("t", "a", 1);
            net.publish(0, "t", 1, 1);
            net.run(2);
            net.cut(1, 2);
            if !other_holds {
                net.cut(1, 3);
            }
            for _ in 0..10 {
                net.publish(0, "t", 1, 1);
            }
            net.run(2);
            let end = net.info(0, &name).unwrap().end;
            net.trim(0, &name, Place { offset: 8, ..end });
            for peer in net.restart(1, Disk::default()) {
                net.connect(1, peer);
            }
            net.connect(1, 2);
            net.connect(1, 3);
            net.run(30);
            let info = net.info(2, &name).unwrap();
            assert_eq!(info.end, end, "seed {seed} {:?}", net.nodes[2].machine.copy_status(net.now, &name));
            let lost = net.nodes[2].reports.iter().any(|r| r.name == "range-lost");
            assert_eq!(lost, !other_holds, "seed {seed}");
            let holes: Vec<(u64, u64)> = info.holes.iter().map(|h| (h.from, h.to)).collect();
            assert_eq!(holes, if other_holds { vec![] } else { vec![(1, 8)] }, "seed {seed}");
            net.same_bytes(0, 2);
        }
    }
}

#[test]
fn one_way_messages_go_where_they_are_wanted_once() {
    let mut net = three(7);
    net.want(2, want("w", "t/#", WantStart::Latest));
    net.run(3);
    for path in ["t/x", "t", "other"] {
        let message = link::OneWayBody { path: path.to_owned(), ..Default::default() };
        let now = net.now;
        net.nodes[0].machine.handle_publish_one_way(now, message);
    }
    net.run(2);
    assert_eq!(net.nodes[2].one_way.iter().map(|m| m.path.as_str()).collect::<Vec<_>>(), ["t/x", "t"]);
    let again = net.nodes[2].one_way[0].clone();
    let again = link::OneWay { body: again.encode_to_vec().into(), hops: 9 };
    let upstream = net.nodes[2].machine.sites().into_iter().find(|s| s.site.as_str() == "a").unwrap().next_hop.unwrap();
    let now = net.now;
    net.nodes[2].machine.handle_one_way(now, upstream, again);
    assert_eq!(net.nodes[2].machine.counters(), [("one_way_dropped_repeat", 1)]);
}

#[test]
fn status_says_when_a_copy_is_behind_or_cut_off() {
    let mut net = three(9);
    net.want(2, want("w", "t", WantStart::Earliest));
    net.publish(0, "t", 1, 1);
    net.run(5);
    net.cut(0, 1);
    net.run(1);
    let status = net.nodes[2].machine.copy_status(net.now, &log("t", "a", 1)).unwrap();
    assert_eq!(status.state, "down", "{status:?}");
    net.connect(0, 1);
    net.run(3);
    let status = net.nodes[2].machine.copy_status(net.now, &log("t", "a", 1)).unwrap();
    assert_eq!(status.state, "live", "{status:?}");
    net.nodes[1].machine.handle_transit(net.now, false);
    net.run(1);
    let status = net.nodes[2].machine.copy_status(net.now, &log("t", "a", 1)).unwrap();
    assert_eq!(status.state, "live", "no other way exists: {status:?}");
}

#[test]
fn an_edge_without_wants_lets_others_traffic_pass() {
    for seed in SEEDS {
        let mut net = Net::new(seed);
        for name in ["a/edge", "m/edge", "b/edge"] {
            net.add(name, NodeKind::Edge);
        }
        net.connect(0, 1);
        net.connect(1, 2);
        net.want(2, want("w", "t", WantStart::Earliest));
        for n in 0..30 {
            net.publish(0, "t", 1, 1);
            if n % 10 == 0 {
                net.run(1);
            }
        }
        net.run(5);
        net.complete(0, 2, &log("t", "a", 1));
        assert!(net.nodes[1].disk.copies.is_empty());
        assert_eq!((net.repeats, net.nodes[1].passed_batches), (0, 30), "seed {seed}");
    }
}

#[test]
fn a_damaged_range_is_fetched_again() {
    let mut net = three(11);
    net.want(2, want("w", "t", WantStart::Earliest));
    let name = log("t", "a", 1);
    for _ in 0..10 {
        net.publish(0, "t", 1, 1);
    }
    net.run(3);
    let end = net.info(0, &name).unwrap().end;
    for node in [2, 0] {
        net.damage(node, &name, Place { offset: 3, ..end }, 6);
        net.run(20);
        assert!(net.info(node, &name).unwrap().holes.is_empty());
        assert_eq!(net.nodes[node].disk.batches[&name].len(), 10);
    }
    net.complete(0, 2, &name);
}

#[test]
fn a_site_that_asks_for_a_long_history_goes_over_to_the_live_lane_when_it_has_caught_up() {
    let mut net = three(13);
    for _ in 0..1200 {
        net.publish(0, "t", 1, 2);
    }
    net.run(2);
    net.want(2, want("w", "t", WantStart::Earliest));
    net.run(1);
    net.publish(0, "t", 1, 1);
    net.run(5);
    net.complete(0, 2, &log("t", "a", 1));
    assert_eq!(net.started, [Lane::Backlog, Lane::Backlog, Lane::Live, Lane::Live]);
}

#[test]
fn bounds_refuse_and_report() {
    let mut net = Net::new(17);
    net.add("a/edge", NodeKind::Edge);
    net.add("b/edge", NodeKind::Edge);
    net.limit(1, 6, 2); // one origin has half of it
    net.connect(0, 1);
    for n in 0..5 {
        net.want(0, want(&format!("w{n}"), &format!("t{n}"), WantStart::Earliest));
        net.publish(0, &format!("u{n}"), 1, 1);
    }
    net.want(1, want("w", "#", WantStart::Earliest));
    net.run(3);
    let names: std::collections::BTreeSet<&str> = net.nodes[1].reports.iter().map(|r| r.name).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["too-many-logs", "too-many-wants"]);
    assert_eq!(net.nodes[1].disk.copies.len(), 3);
}

/// As above, but edge brokers also lose their disks: what some site still holds must come to be everywhere.
#[test]
fn what_survives_lost_disks_comes_to_all_sites() {
    let seeds = std::env::var("SEAWAY_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let first = std::env::var("SEAWAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let mut net = Net::new(seed);
        let count = 2 + net.pick(4);
        let mut tree = Vec::new();
        for n in 0..count {
            let relay = n > 1 && net.pick(3) == 0;
            let (name, kind) = if relay { ("relay", NodeKind::Relay) } else { ("edge", NodeKind::Edge) };
            net.add(&format!("s{n}/{name}"), kind);
            if n > 0 {
                tree.push((net.pick(n), n));
            }
        }
        let edges: Vec<usize> = (0..count).filter(|n| net.nodes[*n].config.kind == NodeKind::Edge).collect();
        for n in &edges {
            net.want(*n, want("all", "#", WantStart::Earliest));
        }
        for (a, b) in &tree {
            net.connect(*a, *b);
        }
        for _ in 0..60 {
            match net.pick(12) {
                0 => {
                    let node = net.pick(count);
                    let disk = if net.pick(3) > 0 { net.nodes[node].disk.clone() } else { Disk::default() };
                    for peer in net.restart(node, disk) {
                        net.connect(node, peer);
                    }
                }
                1 => net.run(1),
                2 => net.some_steps(40),
                _ => {
                    let node = edges[net.pick(edges.len())];
                    let messages = 1 + net.pick(3) as u32;
                    net.publish(node, "t", 1, messages);
                }
            }
        }
        net.run(120);
        for holder in &edges {
            for (name, batches) in net.nodes[*holder].disk.batches.clone() {
                for other in &edges {
                    let held = net.nodes[*other].disk.batches.get(&name);
                    let lacking: Vec<&Place> =
                        batches.keys().filter(|p| !held.is_some_and(|h| h.contains_key(p))).collect();
                    let views = || (0..count).map(|n| (n, net.info(n, &name))).collect::<Vec<_>>();
                    assert!(
                        lacking.is_empty(),
                        "seed {seed}: node {other} of {tree:?} lacks {lacking:?} of {name}, held by {holder}\n{:#?}\n{:?}\n{:?}",
                        views(),
                        net.nodes[*other].machine.copy_status(net.now, &name),
                        net.nodes.iter().map(|n| &n.reports).collect::<Vec<_>>(),
                    );
                }
            }
        }
    }
}

#[test]
fn no_more_fetches_are_opened_than_the_neighbour_allows() {
    let mut net = Net::new(3);
    net.fetches_max = 16;
    net.add("a/edge", NodeKind::Edge);
    net.add("b/edge", NodeKind::Edge);
    net.connect(0, 1);
    for queue in 1..=40 {
        net.publish(0, "t", queue, 1);
    }
    net.want(1, want("w", "#", WantStart::Earliest));
    net.run(20);
    assert_eq!(net.open_fetches(), 14);
    assert!(net.nodes[1].reports.iter().any(|r| r.name == "too-many-fetches"));
    assert!(net.nodes[1].reports.iter().all(|r| r.name == "too-many-fetches"));
}
