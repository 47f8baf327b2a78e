//! A topic that a site does not take: both ends are told why, and it is taken once the reason is gone.

use super::{
    net::{Net, log, want},
    *,
};
use crate::{control, wire::store};

fn settings(net: &mut Net, message_bytes_max: u64) {
    let settings = store::TopicSettings { queues: 1, message_bytes_max, ..Default::default() };
    net.enter(0, "orders", control::entry(store::control_entry::Kind::Settings(settings)));
}

fn told(net: &Net, node: usize) -> Vec<&str> {
    net.nodes[node].reports.iter().map(|r| r.text.as_str()).collect()
}

#[test]
fn a_refused_topic_is_shown_at_both_ends_and_taken_again_by_itself() {
    for seed in SEEDS {
        let mut net = three(seed);
        net.nodes[2].machine.handle_accepts(500);
        net.want(2, want("w", "#", WantStart::Earliest));
        net.run(3);
        settings(&mut net, 400);
        net.publish(0, "orders", 1, 2);
        net.run(3);
        net.complete(0, 2, &log("orders", "a", 1));
        assert!(told(&net, 0).is_empty() && told(&net, 2).is_empty());
        // The origin allows more than the site takes.
        settings(&mut net, 1000);
        net.run(3);
        net.publish(0, "orders", 1, 3);
        net.publish(0, "other", 1, 1);
        net.run(5);
        let held = net.info(2, &log("orders", "a", 1)).unwrap().end;
        assert!(held.offset < net.info(0, &log("orders", "a", 1)).unwrap().end.offset, "seed {seed}");
        net.complete(0, 2, &log("other", "a", 1));
        let by: Vec<String> = net.nodes[0]
            .machine
            .refused_by(&"orders".parse().unwrap())
            .into_iter()
            .map(|(s, _)| s.to_string())
            .collect();
        assert_eq!(by, ["b"], "seed {seed}");
        for node in [0, 2] {
            let told = told(&net, node);
            assert_eq!(told.len(), 1, "seed {seed}: {told:?}");
            assert!(told[0].contains("up to 1000 bytes") && told[0].contains("at most 500"), "{told:?}");
        }
        let status = net.nodes[2].machine.copy_status(net.now, &log("orders", "a", 1)).unwrap();
        assert_eq!(status.state, "stalled");
        assert!(status.reason.starts_with("refused here: "), "{status:?}");
        assert!((Duration::from_secs(5)..=Duration::from_secs(8)).contains(&status.lasting), "{status:?}");
        // The reason is gone.
        settings(&mut net, 500);
        net.run(8);
        net.complete(0, 2, &log("orders", "a", 1));
        assert!(net.nodes[0].machine.refused_by(&"orders".parse().unwrap()).is_empty());
        assert!([0, 2].iter().all(|node| net.nodes[*node].over.iter().any(|(name, _)| *name == "topic-refused")));
    }
}

#[test]
fn messages_that_this_build_does_not_read_are_stored_and_that_is_shown_at_both_ends() {
    for seed in SEEDS {
        let mut net = three(seed);
        net.want(2, want("w", "#", WantStart::Earliest));
        settings(&mut net, 400);
        net.publish(0, "orders", 1, 2);
        net.run(5);
        let (now, name) = (net.now, log("orders", "a", 1));
        for _ in 0..3 {
            net.nodes[2].machine.handle_body_version(now, &name, 9);
            net.nodes[1].machine.handle_body_version(now, &name, 9);
            net.nodes[2].machine.handle_body_version(now, &name, 1);
        }
        net.pump(2);
        net.publish(0, "orders", 1, 2);
        net.run(5);
        net.complete(0, 2, &name);
        for node in [0, 2] {
            let told = told(&net, node);
            assert_eq!(told.len(), 1, "seed {seed}: {told:?}");
            assert!(told[0].contains("body version 9") && told[0].contains("stored and passed on"), "{told:?}");
        }
        assert!(told(&net, 1).is_empty(), "a relay delivers nothing");
        let by = net.nodes[0].machine.refused_by(&"orders".parse().unwrap());
        assert_eq!(by.len(), 1, "seed {seed}: {by:?}");
        // Another build runs there now.
        let disk = net.nodes[2].disk.clone();
        for peer in net.restart(2, disk) {
            net.connect(2, peer);
        }
        net.run(8);
        assert!(net.nodes[0].machine.refused_by(&"orders".parse().unwrap()).is_empty(), "seed {seed}");
    }
}
