//! Deleted topics stay deleted, whoever was away, and live again only where they are created anew.

use super::{
    net::{Disk, Net, log, want},
    *,
};
use crate::{
    control::{self, Deletion, Ends},
    ids::Queue,
    wire::store,
};

const TOPIC: &str = "orders";

impl Net {
    /// Creates a topic at an origin, or creates it anew.
    pub(super) fn create(&mut self, topic: &str, node: usize, life: u64) {
        let settings = store::TopicSettings { queues: 2, message_bytes_max: 1000, life, ..Default::default() };
        self.enter(node, topic, control::entry(store::control_entry::Kind::Settings(settings)));
    }

    /// Deletes a topic at its origin, as the publish path does: the final entry, the tombstone, and empty shells.
    pub(super) fn delete(&mut self, topic: &str, node: usize, life: u64) {
        let site = self.nodes[node].config.node.site.clone();
        let queues = [1, 2].map(|queue| log(topic, site.as_str(), queue));
        let ends: Ends = queues.iter().filter_map(|q| Some((q.queue, self.info(node, q)?.end))).collect();
        let time_us = 1_000_000 + self.now.as_micros() as u64;
        let stated = store::TopicDeleted { life, time_us, ends: control::stored_ends(&ends), ..Default::default() };
        let entry = self.enter(node, topic, control::entry(store::control_entry::Kind::Deleted(stated)));
        let deletion = Deletion { entry, life, time_us, ends: ends.clone() };
        let key = (StateTable::Deleted, tombstone_key(&site, &topic.parse().unwrap()));
        self.nodes[node].disk.states.insert(key, deletion.to_stored().encode_to_vec().into());
        for queue in queues {
            if let Some(end) = ends.get(&queue.queue) {
                self.trim(node, &queue, *end);
            }
        }
    }

    /// The tombstone's time is over at the origin: its logs go. Where each ended.
    fn end(&mut self, node: usize) -> Vec<(LogName, Place, Option<Chain>)> {
        let site = self.nodes[node].config.node.site.clone();
        let key = (StateTable::Deleted, tombstone_key(&site, &TOPIC.parse().unwrap()));
        let mut ended = Vec::new();
        for queue in 0..3 {
            let name = log(TOPIC, site.as_str(), queue);
            let Some(info) = self.info(node, &name) else { continue };
            ended.push((name.clone(), info.end, info.incarnations.last().unwrap().chain_at_end));
            self.nodes[node].disk.copies.drop_copy(&name).unwrap();
            self.nodes[node].disk.batches.remove(&name);
        }
        let mut stone = store::TopicDeleted::decode(self.nodes[node].disk.states[&key].clone()).unwrap();
        let over = |(log, at, _): &(LogName, Place, Option<Chain>)| store::QueueEnd {
            queue: u32::from(log.queue.0),
            end: Some(control::stored_place(*at)),
            ..Default::default()
        };
        stone.over = ended.iter().map(over).collect();
        self.nodes[node].disk.states.insert(key, stone.encode_to_vec().into());
        ended.iter().for_each(|(log, ..)| self.tell(node, log));
        self.pump(node);
        ended
    }

    /// Nobody was told anything but this, and nothing states a hole.
    fn quiet(&self) {
        for node in &self.nodes {
            let told: Vec<_> = node.reports.iter().map(|r| (r.name, &r.text)).collect();
            assert!(told.is_empty(), "seed {}: {} is told {told:?}", self.seed, node.config.node);
            for (log, copy) in node.disk.copies.iter() {
                assert!(copy.info().holes.is_empty(), "seed {}: {} has holes in {log}", self.seed, node.config.node);
            }
        }
    }

    /// Messages held of a life or of all, at a node.
    fn held(&self, node: usize, queue: u16) -> Option<u64> {
        self.info(node, &log(TOPIC, "a", queue)).map(|info| info.messages)
    }
}

/// Edges a and b on both sides of a relay, c behind b; a publishes, b and c want it.
fn four(seed: u64) -> Net {
    let mut net = three(seed);
    net.add("c/edge", NodeKind::Edge);
    net.connect(2, 3);
    net.want(2, want("w", "#", WantStart::Earliest));
    net.want(3, want("w", "#", WantStart::Latest));
    net.run(3);
    net.create(TOPIC, 0, 0);
    for n in 0..12 {
        net.publish(0, TOPIC, 1 + n % 2, 1 + u32::from(n) % 3);
    }
    net
}

#[test]
fn holders_drop_their_copies_and_keep_the_tombstone() {
    for seed in SEEDS {
        let mut net = four(seed);
        net.run(5);
        assert!(net.held(2, 1).is_some_and(|m| m > 0) && net.held(3, 2).is_some_and(|m| m > 0));
        net.delete(TOPIC, 0, 0);
        net.run(15);
        for node in 1..4 {
            assert_eq!((net.held(node, 1), net.held(node, 2)), (None, None), "seed {seed}: node {node}");
            assert!(net.held(node, 0).is_some(), "its control queue says why");
            assert!(net.nodes[node].disk.states.keys().any(|(t, _)| *t == StateTable::Deleted));
        }
        net.quiet();
        // The deletion is confirmed by those who hold its entry.
        let control = log(TOPIC, "a", 0);
        let end = net.info(0, &control).unwrap().end;
        let entry = Place { offset: end.offset - 1, ..end };
        assert!(["b", "c"].iter().all(|site| net.nodes[0].machine.site_holds(&site.parse().unwrap(), &control, entry)));
        // Through restarts of all, with their disks.
        for node in [0, 1, 2, 3] {
            let disk = net.nodes[node].disk.clone();
            for peer in net.restart(node, disk) {
                net.connect(node, peer);
            }
            net.run(8);
        }
        assert!((1..4).all(|node| net.held(node, 1).is_none()), "seed {seed}");
        net.quiet();
    }
}

#[test]
fn who_was_away_does_not_bring_it_back() {
    for seed in SEEDS {
        let mut net = four(seed);
        // Some have all of it, some a part, when the line to b and c is cut.
        if seed % 2 == 0 {
            net.run(5);
        } else {
            net.run(0);
            net.some_steps(40);
        }
        net.cut(1, 2);
        net.delete(TOPIC, 0, 0);
        net.run(10);
        let disk = net.nodes[0].disk.clone();
        for peer in net.restart(0, disk) {
            net.connect(0, peer);
        }
        net.run(3);
        net.connect(1, 2);
        net.run(60);
        for node in 1..4 {
            assert_eq!((net.held(node, 1), net.held(node, 2)), (None, None), "seed {seed}: node {node}");
        }
        assert!([1, 2].iter().all(|queue| net.held(0, *queue).is_none_or(|m| m == 0)), "seed {seed}: it came back");
        net.quiet();
    }
}

#[test]
fn a_new_life_goes_on_above_the_deleted_one() {
    for seed in SEEDS {
        for published_before in [false, true] {
            let mut net = four(seed);
            net.run(if seed % 2 == 0 { 5 } else { 0 });
            net.some_steps(60);
            net.cut(1, 2);
            net.delete(TOPIC, 0, 0);
            let floor = net.info(0, &log(TOPIC, "a", 1)).unwrap().end;
            net.run(2);
            net.create(TOPIC, 0, 1);
            if published_before {
                net.publish(0, TOPIC, 1, 3);
            }
            net.run(2);
            net.connect(1, 2);
            net.run(10);
            net.publish(0, TOPIC, 1, 2);
            net.publish(0, TOPIC, 2, 2);
            net.run(60);
            for node in [2, 3] {
                for queue in [1, 2] {
                    net.complete(0, node, &log(TOPIC, "a", queue));
                }
                let info = net.info(node, &log(TOPIC, "a", 1)).unwrap();
                assert!(info.begin.offset >= floor.offset, "seed {seed}: node {node} holds deleted messages: {info:?}");
            }
            net.quiet();
        }
    }
}

/// A holder whose data are from before the deletion meets others that know of it, and nobody fetches from it.
#[test]
fn a_restored_copy_is_dropped_again() {
    for seed in SEEDS {
        let mut net = four(seed);
        net.run(5);
        let old = net.nodes[2].disk.clone();
        net.delete(TOPIC, 0, 0);
        net.run(10);
        for peer in net.restart(2, old) {
            net.connect(2, peer);
        }
        net.run(30);
        assert!((1..4).all(|node| net.held(node, 1).is_none()), "seed {seed}");
        let bad = |r: &Report| ["origin-went-back", "range-lost", "fork", "broken-chain"].contains(&r.name);
        assert!(!net.nodes.iter().flat_map(|n| &n.reports).any(bad), "seed {seed}");
    }
}

/// After the tombstone's time nothing is left of the topic at its origin but where it ended, and that suffices.
#[test]
fn a_life_after_the_tombstone_s_time_goes_on_above_and_nothing_comes_back() {
    for seed in SEEDS {
        let mut net = four(seed);
        net.run(5);
        let old = net.nodes[3].disk.clone();
        net.delete(TOPIC, 0, 0);
        net.run(10);
        let ended = net.end(0);
        assert_eq!(ended.len(), 3);
        net.run(3);
        // One is set back to before the deletion; and the origin begins anew, in some.
        for peer in net.restart(3, old) {
            net.connect(3, peer);
        }
        if seed % 2 == 0 {
            let disk = net.nodes[0].disk.clone();
            for peer in net.restart(0, disk) {
                net.connect(0, peer);
            }
        }
        net.run(40);
        let back: Vec<&LogName> = ended.iter().map(|(log, ..)| log).filter(|log| net.info(0, log).is_some()).collect();
        assert!(back.is_empty(), "seed {seed}: {back:?} came back");
        for (log, at, chain) in &ended {
            net.nodes[0].disk.copies.begin_copy(log, *at, *chain).unwrap();
            net.tell(0, log);
        }
        net.create(TOPIC, 0, 1);
        net.run(3);
        net.publish(0, TOPIC, 1, 3);
        net.publish(0, TOPIC, 2, 2);
        net.run(60);
        for (log, at, _) in &ended {
            for node in [2, 3] {
                net.complete(0, node, log);
            }
            let held = net.info(0, log).unwrap();
            assert!(held.begin.offset >= at.offset, "seed {seed}: the origin took back what was deleted: {held:?}");
        }
        let bad = |r: &&Report| ["origin-went-back", "range-lost", "fork", "broken-chain"].contains(&r.name);
        let told: Vec<&Report> = net.nodes.iter().flat_map(|n| &n.reports).filter(bad).collect();
        assert!(told.is_empty(), "seed {seed}: {told:?}");
    }
}

/// An origin that was removed says no more when its tombstones are over: their holders let them go by themselves.
#[test]
fn tombstones_of_a_removed_origin_go_with_their_time() {
    let mut net = four(2);
    net.run(5);
    net.delete(TOPIC, 0, 0);
    net.run(10);
    net.cut(0, 1);
    net.remove(1, "a", 5).unwrap();
    net.run(5);
    let wall_us = TOMBSTONE_US * 2;
    for node in 1..4 {
        assert!(net.held(node, 0).is_some());
        net.nodes[node].machine.handle_timeout(net.now + Duration::from_secs(2), wall_us);
        net.pump(node);
        assert_eq!(net.held(node, 0), None, "node {node}");
        assert!(!net.nodes[node].disk.states.keys().any(|(t, _)| *t == StateTable::Deleted), "node {node}");
    }
}

/// Without a tombstone nothing is deleted as unknown: an origin that lost its disk fetches its topic back.
#[test]
fn an_origin_that_lost_its_disk_has_deleted_nothing() {
    let mut net = four(5);
    net.run(5);
    let had = net.held(2, 1);
    for peer in net.restart(0, Disk::default()) {
        net.connect(0, peer);
    }
    net.run(30);
    assert_eq!(net.held(2, 1), had);
    assert_eq!(net.held(0, 1), had);
}

#[test]
fn a_tombstone_that_cannot_be_read_is_reported_and_forgotten() {
    let mut net = four(6);
    net.run(5);
    let mut disk = net.nodes[2].disk.clone();
    for key in [&b"no-separator"[..], b"a\0orders", b"\0", b"a\0bad/topic"] {
        disk.states.insert((StateTable::Deleted, Bytes::copy_from_slice(key)), Bytes::from_static(&[0xff, 0xff]));
    }
    net.restart(2, disk);
    assert_eq!(net.nodes[2].reports.iter().filter(|r| r.name == "stored-state-unreadable").count(), 4);
    assert!(net.held(2, 1).is_some_and(|m| m > 0), "{:?}", Queue(1));
}
