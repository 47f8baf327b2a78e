//! What an origin makes of what sites state, in whatever order it comes.

use super::{
    super::{held::RemoteHeld, refusals::Refused},
    net::{Net, log, want},
    *,
};
use crate::{control, ids::Incarnation, wire, wire::store};

/// An edge a with a topic that b wants.
fn pair(seed: u64) -> Net {
    let mut net = three(seed);
    net.want(2, want("w", "#", WantStart::Earliest));
    net.run(3);
    let settings = store::TopicSettings { queues: 1, message_bytes_max: 400, ..Default::default() };
    net.enter(0, "t", control::entry(store::control_entry::Kind::Settings(settings)));
    net.publish(0, "t", 1, 3);
    net.run(3);
    net
}

/// b's edge broker says something of a log of a's, as of that start.
fn say(net: &mut Net, start: Start, sequence: u64, held: wire::HeldLog, refused: &str) -> Vec<RemoteHeld> {
    let head = super::super::carried::Head::of("b/edge".parse().unwrap(), start);
    let refused = Refused { why: refused.to_owned(), untaken: !refused.is_empty() };
    net.nodes[0].machine.hear_statement(&head, sequence, vec![(held, refused)]);
    let mut told = Vec::new();
    while let Some(output) = net.nodes[0].machine.poll_output() {
        match output {
            Output::RemoteHeld(held) => told.push(held),
            Output::Report(report) => net.nodes[0].reports.push(report),
            Output::ReportOver(name, subject) => net.nodes[0].over.push((name, subject)),
            _ => {}
        }
    }
    told
}

fn holding(log: LogName, below: Place, chain: Option<Chain>) -> wire::HeldLog {
    let from = Some(Place { offset: 0, ..below });
    wire::HeldLog { log, from, below, chain, holes: vec![], fork_tips: vec![], jumps: vec![] }
}

#[test]
fn a_refusal_is_taken_in_order_and_of_topics_that_there_are() {
    let mut net = pair(3);
    let control = log("t", "a", 0);
    let (end, start) = (net.info(0, &control).unwrap().end, net.nodes[2].config.start);
    let refusing = |net: &Net| net.nodes[0].machine.refused_by(&"t".parse().unwrap()).len();
    say(&mut net, start, 100, holding(control.clone(), end, None), "too large");
    assert_eq!((refusing(&net), net.nodes[0].machine.not_taken_by(&"t".parse().unwrap()).len()), (1, 1));
    // What was said before it, and comes later, is over.
    say(&mut net, start, 99, holding(control.clone(), end, None), "");
    assert_eq!(refusing(&net), 1);
    // Topics that there are not are no room for anybody's words.
    for n in 0..50 {
        let none = log(&format!("none-{n}"), "a", 0);
        say(&mut net, start, 101 + n, holding(none.clone(), end, None), "no");
        assert!(net.nodes[0].machine.refused_by(&none.topic).is_empty());
    }
    // It stands through a restart of the origin, and is told again.
    net.run(2);
    let disk = net.nodes[0].disk.clone();
    net.restart(0, disk);
    assert_eq!(refusing(&net), 1);
    assert_eq!(net.nodes[0].reports.iter().filter(|r| r.name == "topic-refused").count(), 1);
    // It goes with the site.
    net.remove(0, "b", 1).unwrap();
    assert_eq!(refusing(&net), 0);
    assert!(net.nodes[0].over.iter().any(|(name, _)| *name == "topic-refused"));
}

#[test]
fn a_site_set_back_to_before_the_origin_s_restart_is_told_of() {
    for seed in SEEDS {
        let mut net = pair(seed);
        let old = net.info(2, &log("t", "a", 1)).unwrap().end;
        let disk = net.nodes[0].disk.clone();
        for peer in net.restart(0, disk) {
            net.connect(0, peer);
        }
        net.run(3);
        net.publish(0, "t", 1, 3);
        net.run(3);
        net.complete(0, 2, &log("t", "a", 1));
        assert!(net.nodes[0].reports.iter().all(|r| r.name != "site-went-back"), "seed {seed}");
        // It comes back with what it had then.
        let (sequence, start) = (1000, net.nodes[2].config.start);
        say(&mut net, start, sequence, holding(log("t", "a", 1), old, None), "");
        let told = net.nodes[0].reports.iter().filter(|r| r.name == "site-went-back").count();
        assert_eq!(told, 1, "seed {seed}: nobody was told");
    }
}

#[test]
fn who_waits_is_told_that_a_site_that_differs_holds_nothing() {
    let mut net = pair(4);
    let name = log("t", "a", 1);
    let (end, start) = (net.info(0, &name).unwrap().end, net.nodes[2].config.start);
    let told = say(&mut net, start, 100, holding(name.clone(), end, Some(Chain([9; 16]))), "");
    let [held] = told.as_slice() else { panic!("{told:?}") };
    let nowhere = Place { incarnation: Incarnation { counter: 0, random: 0 }, offset: 0 };
    // Neither does it hold anything, nor does its copy begin above it.
    assert_eq!((held.from, held.below), (nowhere, nowhere));
}
