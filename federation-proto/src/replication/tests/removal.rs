//! What registered sites need, and that a removed one counts nowhere, and stays removed.

use super::{
    super::{Need, Removal, StateTable, WantStart},
    net::{Disk, Net, log, want},
};
use crate::{
    ids::{Place, Site},
    session::NodeKind,
};

/// Edges a, b and c at one relay; b and c want what a publishes.
fn star(seed: u64) -> Net {
    let mut net = Net::new(seed);
    net.add("a/edge", NodeKind::Edge);
    net.add("r/relay", NodeKind::Relay);
    net.add("b/edge", NodeKind::Edge);
    net.add("c/edge", NodeKind::Edge);
    [0, 2, 3].into_iter().for_each(|edge| net.connect(edge, 1));
    [2, 3].into_iter().for_each(|edge| net.want(edge, want("w", "t", WantStart::Earliest)));
    net.publish(0, "t", 1, 3);
    net.run(3);
    net
}

fn site(name: &str) -> Site {
    name.parse().unwrap()
}

#[test]
fn a_removal_reaches_everybody_and_survives_restarts_and_those_who_were_away() {
    for seed in 0..8 {
        let mut net = star(seed);
        let topic = "t".parse().unwrap();
        assert_eq!(net.nodes[0].machine.registered(&topic), [site("b"), site("c")]);
        // c is away while b is removed, at the relay.
        net.cut(1, 2);
        net.cut(1, 3);
        net.remove(1, "b", 5).unwrap();
        net.run(2);
        assert_eq!(net.nodes[0].machine.registered(&topic), [site("c")], "seed {seed}");
        assert!(net.nodes[0].machine.removed(&site("b")).is_some());
        assert!(net.nodes[3].machine.removals().is_empty());
        assert!(net.nodes[0].machine.sites().iter().all(|s| s.site != site("b")), "seed {seed}");
        for node in [0, 1] {
            let disk = std::mem::take(&mut net.nodes[node].disk);
            for peer in net.restart(node, disk) {
                net.connect(node, peer);
            }
        }
        net.connect(1, 3);
        net.run(3);
        let removals = net.nodes[3].machine.removals();
        assert_eq!(removals, [Removal { site: site("b"), by: "r/relay".to_owned(), at_us: 5 }], "seed {seed}");
        assert_eq!(net.nodes[0].machine.registered(&topic), [site("c")], "seed {seed}");
        // It comes back with its disk: it is told, its link is closed, and it counts for nobody.
        net.connect(1, 2);
        net.run(3);
        assert!(!net.closing.is_empty(), "seed {seed}");
        assert!(net.nodes[2].machine.removed(&site("b")).is_some(), "seed {seed}: it was told");
        assert_eq!(net.nodes[0].machine.registered(&topic), [site("c")], "seed {seed}");
        assert!(net.nodes[0].machine.still_needed(None, 10).iter().all(|(_, n)| n.iter().all(|n| n.site != site("b"))));
    }
}

/// A crash may leave of a removal nothing but its record: what the site had stated counts no more all the same.
#[test]
fn a_removal_of_which_only_the_record_is_left_counts_after_the_restart() {
    for seed in 0..4 {
        let mut net = star(seed);
        let mut disk = net.nodes[0].disk.clone();
        net.remove(0, "b", 5).unwrap();
        let removed = net.nodes[0].disk.states.iter().filter(|((table, _), _)| *table == StateTable::Removed);
        disk.states.extend(removed.map(|(key, value)| (key.clone(), value.clone())));
        net.restart(0, disk);
        let machine = &net.nodes[0].machine;
        assert_eq!(machine.registered(&"t".parse().unwrap()), [site("c")], "seed {seed}");
        assert!(machine.still_needed(None, 10).iter().all(|(_, needs)| needs.iter().all(|n| n.site != site("b"))));
        assert!(machine.sites().iter().all(|s| s.site != site("b")), "seed {seed}");
        let left =
            |(table, key): &&(StateTable, bytes::Bytes)| *table != StateTable::Removed && key.first() == Some(&b'b');
        assert_eq!(net.nodes[0].disk.states.keys().filter(left).count(), 0, "seed {seed}");
    }
}

#[test]
fn a_site_of_relays_only_is_known() {
    let net = star(1);
    let knows = |name| net.nodes[0].machine.knows_site(&site(name));
    assert!(knows("b") && knows("r") && knows("a"));
    assert!(!knows("nowhere"));
}

/// Who is removed is not waited for before a range is lost.
#[test]
fn a_removed_site_is_not_asked_about_what_is_missing() {
    for removed in [false, true] {
        let mut net = star(3);
        let name = log("t", "a", 1);
        net.cut(1, 2);
        net.cut(1, 3);
        (0..10).for_each(|_| net.publish(0, "t", 1, 1));
        net.run(2);
        let end = net.info(0, &name).unwrap().end;
        net.trim(0, &name, Place { offset: 8, ..end });
        for peer in net.restart(1, Disk::default()) {
            net.connect(1, peer);
        }
        net.connect(0, 1);
        if removed {
            net.remove(0, "b", 5).unwrap();
        }
        net.connect(1, 3);
        net.run(30);
        let lost = net.nodes[3].reports.iter().any(|r| r.name == "range-lost");
        assert_eq!(lost, removed, "b may hold it, unless it is gone for ever");
    }
}

#[test]
fn what_only_a_site_holds_is_told_before_it_is_removed() {
    let mut net = star(5);
    let name = log("t", "a", 1);
    assert!(net.nodes[0].machine.only_there(&site("b")).is_empty());
    net.cut(1, 3);
    (0..4).for_each(|_| net.publish(0, "t", 1, 1));
    net.run(2);
    // The origin's retention takes what only b has.
    let end = net.info(0, &name).unwrap().end;
    net.trim(0, &name, Place { offset: 3, ..end });
    net.run(2);
    let only = net.nodes[0].machine.only_there(&site("b"));
    assert!(only.is_empty(), "c states to hold it too: {only:?}");
    net.remove(0, "c", 1).unwrap();
    let only = net.nodes[0].machine.only_there(&site("b"));
    assert_eq!(only.iter().map(|o| (o.log.clone(), o.messages)).collect::<Vec<_>>(), [(name, 3)]);
    assert!(net.remove(0, "a", 1).is_err(), "nobody removes himself");
}

#[test]
fn a_registered_site_needs_all_that_it_has_not_stated_and_less_as_it_states_more() {
    for seed in 0..8 {
        let mut net = Net::new(seed);
        for (name, kind) in [("a/edge", NodeKind::Edge), ("r/relay", NodeKind::Relay), ("b/edge", NodeKind::Edge)] {
            net.add(name, kind);
        }
        net.connect(0, 1);
        net.connect(1, 2);
        net.want(2, want("w", "t", WantStart::Earliest));
        net.publish(0, "t", 1, 3);
        net.run(3);
        let name = log("t", "a", 1);
        let needs = |net: &Net| net.nodes[0].machine.still_needed(None, 10);
        let site: Site = "b".parse().unwrap();
        let end = net.info(0, &name).unwrap().end;
        let all = vec![(name.clone(), vec![Need { site: site.clone(), from: end, tip: Some(end) }])];
        assert_eq!(needs(&net), all, "seed {seed}");
        assert!(
            net.nodes[0].machine.last_heard(net.now).iter().any(|(s, ago)| *s == site && ago.as_secs() < 3),
            "seed {seed}"
        );
        // Away: it needs what is published meanwhile, also of a log that it has never heard of, and also after a restart here.
        net.cut(1, 2);
        net.publish(0, "t", 1, 2);
        net.publish(0, "t", 2, 1);
        net.run(2);
        let second = log("t", "a", 2);
        let begin = net.info(0, &second).unwrap().begin;
        let away = vec![
            (name.clone(), vec![Need { site: site.clone(), from: end, tip: Some(end) }]),
            (second.clone(), vec![Need { site: site.clone(), from: begin, tip: None }]),
        ];
        assert_eq!(needs(&net), away, "seed {seed}");
        let disk = std::mem::take(&mut net.nodes[0].disk);
        for peer in net.restart(0, disk) {
            net.connect(0, peer);
        }
        net.run(2);
        assert_eq!(needs(&net), away, "seed {seed}");
        assert_eq!(net.nodes[0].machine.still_needed(Some(&name), 10), away[1..], "pages follow each other");
        net.connect(1, 2);
        net.run(5);
        for (log, needs) in needs(&net) {
            assert_eq!(needs[0].from, net.info(0, &log).unwrap().end, "seed {seed} {log}");
        }
    }
}
