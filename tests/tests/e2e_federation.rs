//! End to end: real processes, two sites and a relay, messages through every mode while things break.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use seaway_tests::cluster::{Federation, PATIENCE, finish, lines};

fn received(federation: &Federation, node: &str, topic: &str, origin: &str) -> String {
    let args = ["sub", topic, "--origin", origin, "--from", "earliest", "--until-end", "--timeout", "120s"];
    federation.run(node, &args).ok().out
}

#[test]
fn published_here_is_received_there_in_order_and_once() {
    let federation = Federation::two_sites_and_a_relay();
    let (from_eu, from_us) = (lines(2000, "eu"), lines(2000, "us"));
    // Both sites publish to one topic, in both stored modes.
    for (node, input, mode) in [("eu/edge", &from_eu, "sync"), ("us/edge", &from_us, "async")] {
        let mut args = vec!["pub", "orders", "--mode", mode];
        if mode == "sync" {
            args.extend(["--ack", "all", "--deadline", "120s"]);
        }
        let ran = federation.run_with(node, &args, input.as_bytes()).ok();
        assert!(ran.err.contains("2000 messages stored at"), "{}", ran.err);
    }
    for node in ["eu/edge", "us/edge"] {
        for (origin, sent) in [("eu", &from_eu), ("us", &from_us)] {
            let args =
                ["sub", "orders", "--origin", origin, "--from", "earliest", "--count", "2000", "--timeout", "120s"];
            assert_eq!(&federation.run(node, &args).ok().out, sent, "{origin} at {node}");
            assert_eq!(&received(&federation, node, "orders", origin), sent, "{origin} at {node}, to the end");
        }
    }
    let receipt = federation.run("eu/edge", &["pub", "orders", "--ack", "sites=us", "--receipts", "one"]).ok().out;
    let receipt: serde_json::Value = serde_json::from_str(&receipt).unwrap();
    assert_eq!(receipt["sites"], serde_json::json!(["us"]));
    assert_eq!(receipt["degraded"], false);
}

#[test]
fn a_relay_that_is_killed_loses_and_repeats_nothing() {
    let mut federation = Federation::two_sites_and_a_relay();
    let sent = lines(30_000, "eu");
    let file = federation.file("sent", sent.as_bytes());
    let publishing = federation.spawn(
        "eu/edge",
        &["pub", "orders", "--ack", "sites=us", "--deadline", "150s", "--file", &file],
        b"",
    );
    let mut reading = federation.spawn(
        "us/edge",
        &["sub", "orders", "--from", "earliest", "--count", "30000", "--timeout", "170s"],
        b"",
    );
    // The first messages have arrived: kill it now.
    let mut out = reading.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut out, &mut text).unwrap();
        text
    });
    let deadline = Instant::now() + PATIENCE;
    while federation.run("us/edge", &["topic", "show", "orders"]).code != 0 {
        assert!(Instant::now() < deadline, "nothing arrives");
        std::thread::sleep(Duration::from_millis(20));
    }
    federation.cluster.member_mut("hub/relay").unwrap().kill();
    std::thread::sleep(Duration::from_millis(500));
    federation.cluster.start("hub/relay").unwrap();
    finish(publishing, &["pub"]).ok();
    finish(reading, &["sub"]).ok();
    assert_eq!(String::from_utf8(reader.join().unwrap()).unwrap(), sent);
    assert_eq!(received(&federation, "us/edge", "orders", "eu"), sent);
}

#[test]
fn a_killed_edge_keeps_every_receipted_message_and_a_retry_is_stored_once() {
    let mut federation = Federation::one_edge("");
    let sent = lines(60_000, "eu");
    let file = federation.file("sent", sent.as_bytes());
    let publishing = federation.spawn("eu/edge", &["pub", "orders", "--file", &file], b"");
    let deadline = Instant::now() + PATIENCE;
    while federation.run("eu/edge", &["topic", "show", "orders"]).code != 0 {
        assert!(Instant::now() < deadline, "nothing is stored");
        std::thread::sleep(Duration::from_millis(10));
    }
    federation.cluster.member_mut("eu/edge").unwrap().kill();
    federation.cluster.start("eu/edge").unwrap();
    // The publisher connects again by itself, sends again what was in doubt, and is done.
    finish(publishing, &["pub"]).ok();
    assert_eq!(received(&federation, "eu/edge", "orders", "eu"), sent);
}

#[test]
fn sigterm_while_publishing_gives_no_wrong_receipt() {
    let mut federation = Federation::one_edge("");
    let sent = lines(60_000, "eu");
    let file = federation.file("sent", sent.as_bytes());
    let publishing = federation.spawn("eu/edge", &["pub", "orders", "--receipts", "--file", &file], b"");
    let deadline = Instant::now() + PATIENCE;
    while federation.run("eu/edge", &["topic", "show", "orders"]).code != 0 {
        assert!(Instant::now() < deadline, "nothing is stored");
        std::thread::sleep(Duration::from_millis(10));
    }
    let code = federation.cluster.member_mut("eu/edge").unwrap().stop();
    assert_eq!(code, Some(0), "{}", federation.cluster.member("eu/edge").unwrap().logged());
    // The publisher gives up after its time, and says how many are stored.
    let ran = finish(publishing, &["pub"]);
    let receipts = ran.out.lines().count();
    if ran.code != 0 {
        assert!(ran.err.contains(&format!("{receipts} messages stored")), "{}", ran.err);
    }
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    let stored = received(&federation, "eu/edge", "orders", "eu");
    assert!(sent.starts_with(&stored), "what is stored is not the beginning of what was sent");
    assert!(stored.lines().count() >= receipts, "{} stored, {receipts} receipts", stored.lines().count());
}

#[test]
fn a_site_that_was_away_catches_up_and_a_deadline_says_so() {
    let mut federation = Federation::two_sites_and_a_relay();
    federation.cluster.member_mut("us/edge").unwrap().stop();
    let publish = |more: &[&str]| {
        let args = [&["pub", "orders", "--ack", "sites=us", "--deadline", "1s"], more].concat();
        federation.run("eu/edge", &args)
    };
    publish(&["--on-deadline", "degrade", "first"])
        .failed(3, "1 message not acknowledged as asked before the deadline (missing: us)");
    publish(&["second"]).failed(4, "1 more stored but not acknowledged as asked");
    federation.run("eu/edge", &["pub", "orders", "--ack", "sites=nowhere", "x"]).failed(5, "nowhere");
    federation.run("eu/edge", &["pub", "orders", "--ack", "7", "x"]).failed(5, "message 1");
    federation.cluster.start("us/edge").unwrap();
    let args = ["sub", "orders", "--from", "earliest", "--count", "2", "--timeout", "120s"];
    federation.wait_up("us/edge");
    assert_eq!(federation.run("us/edge", &args).ok().out, "first\nsecond\n");
}

#[test]
fn one_way_messages_pass_and_are_not_stored() {
    let federation = Federation::two_sites_and_a_relay();
    let reading = federation.spawn("us/edge", &["sub", "news/+", "--count", "1", "--timeout", "120s"], b"");
    let deadline = Instant::now() + PATIENCE;
    let mut reading = Some(reading);
    let ran = loop {
        federation.run("eu/edge", &["pub", "news/weather", "--mode", "one-way", "sun"]).ok();
        if reading.as_mut().unwrap().try_wait().unwrap().is_some() {
            break finish(reading.take().unwrap(), &["sub"]);
        }
        assert!(Instant::now() < deadline, "nothing arrives");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(ran.ok().out, "sun\n");
    assert_eq!(received(&federation, "us/edge", "news/#", "eu"), "");
}
