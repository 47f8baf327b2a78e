//! Starts by time: resolved where somebody can tell, and never guessed.

use super::{
    super::*,
    net::{Net, log, want},
    three,
};

/// Batches at seconds 1, 11, 21 … of each queue; the time between the second and the third.
fn history(net: &mut Net, queues: u16) -> u64 {
    let mut time = 0;
    for n in 0..4 {
        for queue in 1..=queues {
            net.publish(0, "t", queue, 1);
        }
        net.run(5);
        if n == 1 {
            time = 1_000_000 + net.now.as_micros() as u64;
        }
        net.run(5);
    }
    time
}

fn begins(net: &Net, queues: u16) -> Vec<Option<u64>> {
    (1..=queues).map(|q| net.info(2, &log("t", "a", q)).map(|i| i.begin.offset)).collect()
}

#[test]
fn a_time_that_cannot_be_told_is_asked_again() {
    let mut net = three(1);
    let time = history(&mut net, 1);
    net.nodes[0].unreadable = true;
    net.want(2, want("w", "t", WantStart::Time(time)));
    net.run(90);
    assert_eq!(begins(&net, 1), [None], "not \"latest\", and not for ever");
    assert!(net.nodes[2].reports.iter().any(|r| r.name == "start-unresolved"));
    net.nodes[0].unreadable = false;
    net.run(10);
    assert_eq!(begins(&net, 1), [Some(2)]);
    net.complete(0, 2, &log("t", "a", 1));
    // A time to come is the end, at once.
    let mut net = three(2);
    history(&mut net, 1);
    net.want(2, want("w", "t", WantStart::Time(u64::MAX)));
    net.run(3);
    assert_eq!(begins(&net, 1), [Some(4)]);
}

#[test]
fn many_logs_are_asked_about_in_windows() {
    let mut net = three(3);
    let time = history(&mut net, 700);
    net.want(2, want("w", "t", WantStart::Time(time)));
    net.run(5);
    assert!(begins(&net, 700).into_iter().all(|begin| begin == Some(2)));
}

/// Whoever begins with the batch that was found cannot tell what was before it.
#[test]
fn a_partial_cache_does_not_tell() {
    let mut net = three(5);
    net.want(2, want("w", "t", WantStart::Earliest));
    (0..6).for_each(|_| net.publish(0, "t", 1, 1));
    net.run(3);
    let name = log("t", "a", 1);
    let end = net.info(1, &name).unwrap().end;
    net.trim(1, &name, Place { offset: 4, ..end });
    let (from, now) = (net.link_of(1, 2), net.now);
    let machine = &mut net.nodes[1].machine;
    for (offset, outcome) in
        [(4, link::ResolveOutcome::CannotTell), (5, link::ResolveOutcome::Found), (6, link::ResolveOutcome::AtEnd)]
    {
        // The hops ran out: nobody else is asked.
        let resolve = link::Resolve { number: offset, log: Some((&name).into()), time_us: 7, hops: 0 };
        machine.handle_message(now, from, link::control::Kind::Resolve(resolve));
        let mut answers = Vec::new();
        while let Some(output) = machine.poll_output() {
            match output {
                Output::FindTime { token, .. } => machine.handle_time_found(now, token, Some(Place { offset, ..end })),
                Output::Send(to, kind) if to == from => {
                    if let link::control::Kind::Resolved(resolved) = *kind {
                        answers.push((resolved.number, resolved.outcome()));
                    }
                }
                _ => {}
            }
        }
        assert_eq!(answers, [(offset, outcome)]);
    }
}
