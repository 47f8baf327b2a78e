//! Marks that are lost although one's own link stands: a copy is not called live for longer than its origin's word allows.

use super::{
    net::{Loses, Net, log, want},
    *,
};

/// Site a publishes, b wants it; two relays between, of which the first loses what is said.
fn chain() -> Net {
    let mut net = Net::new(7);
    for (name, kind) in
        [("a/edge", NodeKind::Edge), ("r/one", NodeKind::Relay), ("r/two", NodeKind::Relay), ("b/edge", NodeKind::Edge)]
    {
        net.add(name, kind);
    }
    for node in 0..3 {
        net.connect(node, node + 1);
    }
    net.want(3, want("w", "t", WantStart::Earliest));
    net.publish(0, "t", 1, 5);
    net.run(5);
    assert_eq!(status(&net).state, "live");
    net
}

fn status(net: &Net) -> CopyStatus {
    net.nodes[3].machine.copy_status(net.now, &log("t", "a", 1)).unwrap()
}

#[test]
fn what_a_lost_mark_named_is_asked_for_and_due_since_it_would_have_come() {
    let mut net = chain();
    net.loses = Some((1, Loses { batches: true, marks: 1, told: false }));
    net.publish(0, "t", 1, 5);
    net.run(5);
    let behind = status(&net);
    assert_eq!((behind.state, behind.lag_messages), ("stalled", Some(5)), "{behind:?}");
    net.loses = None;
    net.cut(0, 1);
    net.connect(0, 1);
    assert!(net.run_until(20, |net| status(net).state == "live"), "{:?}", status(&net));
    assert_eq!(status(&net).lag_messages, Some(0));
}

#[test]
fn a_copy_is_not_live_while_nobody_tells_what_was_missed() {
    let mut net = chain();
    // What its neighbour is told, and tells, is whole only once its own neighbour has told it.
    net.loses = Some((1, Loses { batches: false, marks: 2, told: true }));
    net.publish(0, "t", 1, 5);
    net.run(1);
    assert_eq!(status(&net).state, "live", "a mark may still come: {:?}", status(&net));
    net.run(4);
    let unknown = status(&net);
    assert_eq!(unknown.state, "catching-up", "{unknown:?}");
    assert_eq!(unknown.reason, "how far a goes is not known, since marks were missed; r/two is asked");
    net.run(3);
    assert_eq!(status(&net).state, "stalled", "{:?}", status(&net));
    assert!(status(&net).reason.contains("; r/two is asked, and has not told for "), "{:?}", status(&net));
    net.loses = None;
    net.run(4);
    assert_eq!((status(&net).state, status(&net).lag_messages), ("live", Some(0)), "{:?}", status(&net));
}

#[test]
fn a_neighbour_that_does_not_know_the_question_is_not_waited_for() {
    let mut net = Net::new(7);
    net.features = Vec::new();
    net.add("a/edge", NodeKind::Edge);
    net.add("b/edge", NodeKind::Edge);
    net.connect(0, 1);
    net.want(1, want("w", "t", WantStart::Earliest));
    net.publish(0, "t", 1, 5);
    net.run(5);
    let status = net.nodes[1].machine.copy_status(net.now, &log("t", "a", 1)).unwrap();
    assert_eq!(status.state, "live", "{status:?}");
}

#[test]
fn what_a_neighbour_says_again_of_the_past_changes_nothing() {
    let mut net = chain();
    net.publish(0, "t", 1, 5);
    net.run(2);
    let heard = |net: &Net| net.nodes[3].machine.marks.heard[&"a".parse().unwrap()].at;
    let before = heard(&net);
    // The relay hears nothing of the origin any more, and says what it knows to whoever comes to it.
    net.cut(0, 1);
    net.run(1);
    net.cut(2, 3);
    net.connect(2, 3);
    net.run(1);
    assert_eq!(heard(&net), before, "an old mark was taken for a new one");
    assert_ne!(status(&net).state, "live");
    assert_eq!(status(&net).lag_messages, Some(0));
}
