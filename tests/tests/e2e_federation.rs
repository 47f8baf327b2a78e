//! End to end: real processes, two sites and a relay, messages through every mode while things break.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
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

/// Waits until a topic is there at a node.
fn wait_for_topic(federation: &Federation, node: &str, topic: &str) {
    let deadline = Instant::now() + PATIENCE;
    while federation.run(node, &["topic", "show", topic]).code != 0 {
        assert!(Instant::now() < deadline, "no {topic} at {node}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_relay_that_is_killed_loses_and_repeats_nothing() {
    let mut federation = Federation::two_sites_and_a_relay();
    let (mut publishing, feed) =
        federation.feed("eu/edge", &["pub", "orders", "--ack", "sites=us", "--deadline", "150s"], "eu");
    let mut reading = federation.spawn("us/edge", &["sub", "orders", "--from", "earliest"], b"");
    let read: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (mut out, into) = (reading.stdout.take().unwrap(), read.clone());
    let reader = std::thread::spawn(move || {
        let mut part = vec![0; 1 << 16];
        while let Ok(count @ 1..) = std::io::Read::read(&mut out, &mut part) {
            into.lock().extend_from_slice(&part[..count]);
        }
    });
    // The first messages have arrived, and more are on the way: kill it now.
    wait_for_topic(&federation, "us/edge", "orders");
    federation.cluster.member_mut("hub/relay").unwrap().kill();
    feed.assert_running(&mut publishing);
    std::thread::sleep(Duration::from_millis(500));
    federation.cluster.start("hub/relay").unwrap();
    let sent = feed.stop();
    finish(publishing, &["pub"]).ok();
    let deadline = Instant::now() + PATIENCE;
    while read.lock().len() < sent.len() {
        assert!(Instant::now() < deadline, "{} of {} bytes have arrived", read.lock().len(), sent.len());
        std::thread::sleep(Duration::from_millis(20));
    }
    reading.kill().unwrap();
    reading.wait().unwrap();
    reader.join().unwrap();
    assert!(String::from_utf8(read.lock().clone()).unwrap() == sent, "what was read is not what was sent");
    assert!(received(&federation, "us/edge", "orders", "eu") == sent, "what is stored is not what was sent");
}

#[test]
fn a_killed_edge_keeps_every_receipted_message_and_a_retry_is_stored_once() {
    let mut federation = Federation::one_edge("");
    let (mut publishing, feed) = federation.feed("eu/edge", &["pub", "orders"], "eu");
    wait_for_topic(&federation, "eu/edge", "orders");
    federation.cluster.member_mut("eu/edge").unwrap().kill();
    feed.assert_running(&mut publishing);
    federation.cluster.start("eu/edge").unwrap();
    // The publisher connects again by itself, sends again what was in doubt, and is done.
    let sent = feed.stop();
    finish(publishing, &["pub"]).ok();
    assert!(received(&federation, "eu/edge", "orders", "eu") == sent, "what is stored is not what was sent");
}

#[test]
fn sigterm_while_publishing_gives_no_wrong_receipt() {
    let mut federation = Federation::one_edge("");
    let (mut publishing, feed) = federation.feed("eu/edge", &["pub", "orders", "--receipts"], "eu");
    // A client that does not read its receipts would be cut off, which is another matter.
    let mut out = publishing.stdout.take().unwrap();
    let receipts = std::thread::spawn(move || std::io::read_to_string(&mut out).unwrap());
    wait_for_topic(&federation, "eu/edge", "orders");
    feed.assert_running(&mut publishing);
    let code = federation.cluster.member_mut("eu/edge").unwrap().stop();
    let logged = federation.cluster.member("eu/edge").unwrap().logged();
    assert_eq!(code, Some(0), "{logged}");
    assert!(!logged.contains("were cut"), "{logged}");
    feed.assert_running(&mut publishing);
    // With more to send, the publisher gives up after its time, and says how many are stored.
    let ran = finish(publishing, &["pub"]);
    let receipts = receipts.join().unwrap().lines().count();
    ran.failed(1, &format!("{receipts} messages stored"));
    let sent = feed.stop();
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
    publish(&["second"]).failed(4, "1 message stored, but not acknowledged as asked");
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
