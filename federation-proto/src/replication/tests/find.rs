//! Where a message is, asked from any node and answered by every site; and what is known of nodes, links and ways.

use super::{
    net::{Net, log, want},
    *,
};
use crate::wire::link::FoundState;

/// Sites a (the origin), b and c at a relay; b wants `t`, c wants another topic.
fn star() -> Net {
    let mut net = Net::new(11);
    for (name, kind) in [
        ("a/edge", NodeKind::Edge),
        ("r/relay", NodeKind::Relay),
        ("b/edge", NodeKind::Edge),
        ("c/edge", NodeKind::Edge),
    ] {
        net.add(name, kind);
    }
    for node in [0, 2, 3] {
        net.connect(node, 1);
    }
    net.want(2, want("w", "t", WantStart::Earliest));
    net.want(3, want("w", "other", WantStart::Earliest));
    net.publish(0, "t", 1, 10);
    net.run(3);
    net
}

/// Asks at a node and gives the answers by site, those missing, and whether more may come.
fn ask(net: &mut Net, node: usize, name: &LogName, place: Place) -> (Vec<(String, FoundState)>, Vec<String>) {
    let now = net.now;
    let number = net.nodes[node].machine.find(now, name, place).unwrap();
    net.run(1);
    let finding = net.nodes[node].machine.found(number, name).unwrap();
    net.nodes[node].machine.find_over(number);
    assert!(net.nodes[node].machine.found(number, name).is_none());
    let answers = finding.answers.iter().map(|found| (found.node.to_string(), found.state)).collect();
    (answers, finding.missing.into_iter().map(|(site, why)| format!("{site}: {why}")).collect())
}

fn states(answers: &[(String, FoundState)], node: &str) -> FoundState {
    answers.iter().find(|(name, _)| name == node).unwrap_or_else(|| panic!("{node} said nothing: {answers:?}")).1
}

#[test]
fn every_site_answers_for_itself_whoever_asks() {
    let mut net = star();
    let name = log("t", "a", 1);
    let end = net.info(0, &name).unwrap().end;
    let there = Place { offset: 4, ..end };
    for asker in 0..4 {
        let (answers, missing) = ask(&mut net, asker, &name, there);
        assert_eq!(missing, Vec::<String>::new(), "asked at {asker}");
        let said = ["a/edge", "b/edge", "c/edge", "r/relay"].map(|node| states(&answers, node));
        assert_eq!(said, [FoundState::Here, FoundState::Here, FoundState::Filtered, FoundState::Here], "at {asker}");
    }
    // Beyond the end, in an incarnation that never was, of a topic and of a site that are not there.
    let foreign = Place { incarnation: crate::ids::Incarnation { counter: 7, random: 7 }, offset: 4 };
    for (name, place) in [(&name, end), (&name, foreign), (&log("no", "a", 1), there), (&log("t", "a", 9), there)] {
        let (answers, missing) = ask(&mut net, 2, name, place);
        assert_eq!(states(&answers, "a/edge"), FoundState::NeverPublished, "{name} {place}");
        assert_ne!(states(&answers, "b/edge"), FoundState::Here);
        assert!(missing.is_empty());
    }
    let (answers, missing) = ask(&mut net, 2, &log("t", "nowhere", 1), there);
    assert!(answers.iter().all(|(_, state)| *state != FoundState::Here));
    assert_eq!(missing, ["nowhere: no edge broker of this site is known here"]);
}

#[test]
fn what_is_trimmed_lagging_or_cannot_be_asked_is_said_to_be_so() {
    let mut net = star();
    let name = log("t", "a", 1);
    let end = net.info(0, &name).unwrap().end;
    net.trim(0, &name, Place { offset: 5, ..end });
    net.run(1);
    let (answers, _) = ask(&mut net, 3, &name, Place { offset: 2, ..end });
    assert_eq!(states(&answers, "a/edge"), FoundState::Expired);
    assert_eq!(states(&answers, "b/edge"), FoundState::Here);
    // b is cut off, and what comes then does not come there.
    net.cut(1, 2);
    net.publish(0, "t", 1, 5);
    net.run(2);
    let new = Place { offset: end.offset + 2, ..end };
    let (answers, missing) = ask(&mut net, 0, &name, new);
    assert_eq!(states(&answers, "a/edge"), FoundState::Here);
    assert_eq!(missing, ["b: it cannot be asked: there is no way to it: the link between r/relay and b/edge is down"]);
    let (answers, missing) = ask(&mut net, 2, &name, new);
    assert_eq!(states(&answers, "b/edge"), FoundState::Lagging);
    assert_eq!(missing.len(), 2, "{missing:?}");
}

#[test]
fn what_was_deleted_is_said_to_be_so_by_everybody_who_heard_of_it() {
    let mut net = star();
    let (name, place) = (log("t", "a", 1), net.info(0, &log("t", "a", 1)).unwrap().begin);
    net.create("t", 0, 0);
    net.run(3);
    net.cut(1, 2);
    net.delete("t", 0, 0);
    net.run(15);
    let (answers, _) = ask(&mut net, 3, &name, place);
    assert_eq!(states(&answers, "a/edge"), FoundState::Deleted);
    assert_eq!(states(&answers, "c/edge"), FoundState::Filtered, "it wants nothing of it, and heard nothing of it");
    // One that was away has it still, until it hears of the deletion.
    let (answers, _) = ask(&mut net, 2, &name, place);
    assert_eq!(states(&answers, "b/edge"), FoundState::Here);
    net.connect(1, 2);
    net.run(15);
    let (answers, _) = ask(&mut net, 2, &name, place);
    assert_eq!(["a/edge", "b/edge"].map(|node| states(&answers, node)), [FoundState::Deleted; 2]);
    // What was published after it was created anew is another matter.
    net.create("t", 0, 1);
    net.publish(0, "t", 1, 3);
    net.run(60);
    let end = net.info(0, &name).unwrap().end;
    let (answers, _) = ask(&mut net, 2, &name, Place { offset: end.offset - 1, ..end });
    assert_eq!(["a/edge", "b/edge"].map(|node| states(&answers, node)), [FoundState::Here; 2]);
    let (answers, _) = ask(&mut net, 2, &name, place);
    assert_eq!(["a/edge", "b/edge"].map(|node| states(&answers, node)), [FoundState::Deleted; 2]);
}

#[test]
fn questions_are_bounded() {
    let mut net = star();
    let (name, now) = (log("t", "a", 1), net.now);
    let place = net.info(0, &name).unwrap().begin;
    let machine = &mut net.nodes[0].machine;
    let taken = (0..100).take_while(|_| machine.find(now, &name, place).is_ok()).count();
    assert_eq!(taken, 64);
    // They are forgotten, asked for or not; what a node may flood at once is bounded besides.
    let later = now + Duration::from_secs(61);
    let again = (0..100).take_while(|_| machine.find(later, &name, place).is_ok()).count();
    assert_eq!(again, 64);
}

#[test]
fn the_topology_and_its_ways_are_told_from_the_records() {
    let mut net = star();
    let site = |name: &str| -> Site { name.parse().unwrap() };
    let (nodes, links) = net.nodes[2].machine.topology(net.now);
    let named: Vec<_> = nodes.iter().map(|n| (n.node.to_string(), n.cost)).collect();
    let expected = [("a/edge", Some(2)), ("b/edge", Some(0)), ("c/edge", Some(2)), ("r/relay", Some(1))];
    assert_eq!(named, expected.map(|(name, cost)| (name.to_owned(), cost)));
    assert_eq!(links.len(), 3);
    assert!(links.iter().all(|link| link.costs == [Some(1), Some(1)]), "{links:?}");
    // A second way, as short from c to a: by name the relay of smaller name is taken.
    let second = net.add("q/relay", NodeKind::Relay);
    net.connect(0, second);
    net.connect(3, second);
    net.run(1);
    let way = net.nodes[2].machine.explain_way(&site("c"), &site("a")).unwrap();
    let hops: Vec<_> = way.hops.iter().map(|hop| (hop.node.to_string(), hop.cost)).collect();
    assert_eq!(hops, [("c/edge".to_owned(), 0), ("q/relay".to_owned(), 1), ("a/edge".to_owned(), 1)]);
    assert_eq!(way.others, [("r/relay".parse().unwrap(), Some(2))]);
    // One that carries no transit is gone around; nobody has to be told twice.
    let now = net.now;
    net.nodes[second].machine.handle_transit(now, false);
    net.run(1);
    let way = net.nodes[2].machine.explain_way(&site("c"), &site("a")).unwrap();
    assert_eq!(way.hops[1].node.to_string(), "r/relay");
    assert!(way.others[0].1 > Some(1 << 40), "{:?}", way.others);
    assert!(net.nodes[2].machine.explain_way(&site("c"), &site("x")).is_err());
    // Who is away is said to be, and where its last way broke: over c and the second relay.
    net.cut(0, 1);
    net.cut(0, second);
    net.run(1);
    let (nodes, _) = net.nodes[2].machine.topology(net.now);
    let gone = nodes.into_iter().find(|n| n.node.to_string() == "a/edge").unwrap();
    assert_eq!(gone.cost, None);
    let (away, why) = gone.away.unwrap();
    assert!(away <= Duration::from_secs(1) && why == "the link between q/relay and a/edge is down", "{away:?} {why}");
    assert!(net.nodes[2].machine.explain_way(&site("c"), &site("a")).unwrap().hops.is_empty());
}
