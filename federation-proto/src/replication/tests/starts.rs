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

/// The relay's cache begins above the time asked for, and the origin cannot be reached at first.
#[test]
fn a_partial_cache_does_not_tell() {
    let mut net = three(5);
    net.add("c/edge", NodeKind::Edge);
    net.connect(1, 3);
    net.publish(0, "t", 1, 1);
    net.run(10);
    let time = 1_000_000 + net.now.as_micros() as u64;
    net.run(1);
    for _ in 0..5 {
        net.publish(0, "t", 1, 1);
    }
    net.want(3, want("w", "t", WantStart::Earliest));
    net.run(3);
    let end = net.info(1, &log("t", "a", 1)).unwrap().end;
    net.trim(1, &log("t", "a", 1), Place { offset: 4, ..end });
    net.want(2, want("w", "t", WantStart::Time(time)));
    net.some_steps(10);
    net.cut(0, 1);
    net.run(30);
    assert!(begins(&net, 1)[0].is_none_or(|begin| begin == 1), "{:?}", begins(&net, 1));
    net.connect(0, 1);
    net.run(30);
    assert_eq!(begins(&net, 1), [Some(1)]);
    net.complete(0, 2, &log("t", "a", 1));
}
