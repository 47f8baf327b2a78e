//! End to end: rates of topics and links, set by file and command, changed while they hold, kept over restarts; with real processes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use seaway_edge_broker::bench::cluster::Kind;
use seaway_tests::cluster::{Federation, PATIENCE, Ran, finish};
use serde_json::Value;

const TOKENS: &str = "[[token]]\nname = \"admin\"\ntoken = \"admin-admin-admin-admin\"\nadmin = true\npublish = [\"#\"]\nsubscribe = [\"#\"]\n";
const MIB: u64 = 1 << 20;

/// An edge with these keys in its section of links; whoever steers it has a token.
fn add(federation: &mut Federation, edge: &str, dials: &[&str], link: &str, more: &str) {
    let tokens = federation.file("tokens.toml", TOKENS.as_bytes());
    federation.file("admin.token", b"admin-admin-admin-admin\n");
    federation.cluster.add(edge, Kind::Edge, dials, more).unwrap();
    let config = federation.cluster.member(edge).unwrap().config().to_path_buf();
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("[door.anonymous]", &format!("token_file = \"{tokens}\"\n\n[door.anonymous]"));
    std::fs::write(&config, text.replace("[link]\n", &format!("[link]\n{link}\n"))).unwrap();
    federation.cluster.start(edge).unwrap();
    federation.wait_up(edge);
}

/// Runs a command that changes a node.
fn steer(federation: &Federation, node: &str, args: &[&str]) -> Ran {
    let token = federation.cluster.dir.join("admin.token").display().to_string();
    federation.run(node, &[args, &["--token-file", &token]].concat())
}

fn json(federation: &Federation, node: &str, args: &[&str]) -> Value {
    serde_json::from_str(&federation.run(node, &[args, &["--output", "json"]].concat()).ok().out).unwrap()
}

/// The row of one subject in `limit ls`.
fn limit(federation: &Federation, node: &str, kind: &str, of: &str) -> Option<Value> {
    let all = json(federation, node, &["limit", "ls"]);
    all.as_array().unwrap().iter().find(|limit| limit["kind"] == kind && limit["of"] == of).cloned()
}

fn link(federation: &Federation, node: &str) -> Value {
    json(federation, node, &["link", "ls"]).get(0).cloned().unwrap_or_default()
}

#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Looks for so long at how much the link has sent, and that it is never more than the rate and the burst allow.
fn within(federation: &Federation, per_s: u64, burst: u64, time: Duration) -> u64 {
    let begun = Instant::now();
    let sent = || link(federation, "eu/edge").get("bytes_out").and_then(Value::as_u64).unwrap();
    let first = sent();
    loop {
        let now = sent();
        // From before the first look to after this one.
        let passed = begun.elapsed();
        let moved = now - first;
        let most = burst + u64::try_from(u128::from(per_s) * passed.as_micros() / 1_000_000).unwrap();
        assert!(moved <= most, "{moved} bytes in {passed:?}, {most} allowed");
        if passed >= time {
            return moved;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_link_keeps_to_its_rate_which_changes_live_and_outlives_a_restart() {
    let mut federation = Federation::empty();
    add(&mut federation, "eu/edge", &[], "send_rate = { bytes_per_s = \"2 MiB\" }", "");
    add(&mut federation, "us/edge", &["eu/edge"], "", "");
    federation.join("eu/edge", "us");
    let line = format!("{}\n", "x".repeat(4095));
    federation.run_with("eu/edge", &["pub", "orders", "--mode", "async"], line.repeat(7_000).as_bytes()).ok();
    within(&federation, 2 * MIB, 2 * MIB, Duration::from_secs(3));
    // Slow because of a limit, and said so at both ends.
    until("the link is called limited", || {
        let link = link(&federation, "eu/edge");
        link["state"] == "catching-up"
            && link["reason"].as_str().unwrap().contains("limited: this node sends it at most 2097152 bytes")
    });
    let copies = json(&federation, "us/edge", &["topic", "ls"]);
    let orders = copies
        .as_array()
        .unwrap()
        .iter()
        .find(|topic| topic["topic"] == "orders")
        .unwrap_or_else(|| panic!("{copies}"));
    assert_eq!(orders["state"], "catching-up", "{orders}");
    assert!(orders["reason"].as_str().unwrap().contains("(limited)"), "{orders}");
    // Lower, by command, while it runs.
    let set = ["limit", "set", "link", "us/edge", "--direction", "send", "--bytes-per-s", "512KiB"];
    steer(&federation, "eu/edge", &set).ok();
    std::thread::sleep(Duration::from_secs(1));
    within(&federation, MIB / 2, 2 * MIB, Duration::from_secs(4));
    let row = limit(&federation, "eu/edge", "link", "us/edge").unwrap();
    assert_eq!(
        (row["holds"]["bytes_per_s"].as_u64(), row["delayed"].as_u64().map(|n| n > 0)),
        (Some(MIB / 2), Some(true)),
        "{row}"
    );
    // And it holds after a restart.
    federation.cluster.member_mut("eu/edge").unwrap().kill();
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    until("the link is up again", || link(&federation, "eu/edge")["bytes_out"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!(limit(&federation, "eu/edge", "link", "us/edge").unwrap()["by_command"]["bytes_per_s"], MIB / 2);
    within(&federation, MIB / 2, 2 * MIB, Duration::from_secs(3));
    // The command forgotten, the file counts; none at all, it is soon through.
    steer(&federation, "eu/edge", &["limit", "rm", "link", "us/edge", "--direction", "send"]).ok();
    assert!(limit(&federation, "eu/edge", "link", "us/edge").is_none());
    assert_eq!(limit(&federation, "eu/edge", "link", "*").unwrap()["holds"]["bytes_per_s"], 2 * MIB);
    steer(&federation, "eu/edge", &["limit", "set", "link", "*", "--direction", "send", "--bytes-per-s", "none"]).ok();
    federation.run("eu/edge", &["pub", "orders", "last", "--ack", "sites=us", "--deadline", "120s"]).ok();
    until("the link is live", || link(&federation, "eu/edge")["state"] == "live");
    let audit = steer(&federation, "eu/edge", &["sub", "_audit/#", "--from", "earliest", "--until-end"]).ok().out;
    assert!(audit.contains("SetLimit") && audit.contains("link us/edge send bytes-per-s=524288"), "{audit}");
    assert!(audit.contains("RemoveLimit") && audit.contains("bytes-per-s=none"), "{audit}");
}

#[test]
fn what_a_peer_may_send_is_limited_by_the_credit_that_it_gets() {
    let mut federation = Federation::empty();
    // The burst is the credit of one largest message on each lane.
    let burst = 34_619_392;
    add(&mut federation, "eu/edge", &[], "", "");
    add(&mut federation, "us/edge", &["eu/edge"], "receive_rate = { bytes_per_s = \"4 MiB\" }", "");
    federation.join("eu/edge", "us");
    let line = format!("{}\n", "x".repeat(65_535));
    federation.run_with("eu/edge", &["pub", "orders", "--mode", "async"], line.repeat(900).as_bytes()).ok();
    // Batches alone are counted there, and this test counts what goes beside them, too.
    within(&federation, 4 * MIB, burst + MIB, Duration::from_secs(4));
    until("the link is called limited", || {
        link(&federation, "eu/edge")["reason"]
            .as_str()
            .unwrap()
            .contains("limited: the peer takes at most 4194304 bytes")
    });
    steer(
        &federation,
        "us/edge",
        &["limit", "set", "link", "eu/edge", "--direction", "receive", "--bytes-per-s", "none"],
    )
    .ok();
    federation.run("eu/edge", &["pub", "orders", "last", "--ack", "sites=us", "--deadline", "120s"]).ok();
}

#[test]
fn a_topics_publishers_are_refused_or_delayed_by_file_and_command() {
    let mut federation = Federation::empty();
    let more = "[[topic]]\npattern = \"orders\"\nlimits = { messages_per_s = 1, messages_burst = 3, on_exceed = \"refuse\" }\n";
    add(&mut federation, "eu/edge", &[], "", more);
    let lines = "a\nb\nc\nd\ne\nf\ng\nh\n";
    federation
        .run_with("eu/edge", &["pub", "orders"], lines.as_bytes())
        .failed(5, "messages a second for topic orders");
    assert!(limit(&federation, "eu/edge", "topic", "orders").unwrap()["refused"].as_u64().unwrap() > 0);
    federation.run_with("eu/edge", &["pub", "bills"], lines.as_bytes()).ok();
    let set = |args: &[&str]| steer(&federation, "eu/edge", &[&["limit", "set"], args].concat());
    set(&["topic", "orders", "--on-exceed", "delay", "--messages-per-s", "100"]).ok();
    let begun = Instant::now();
    federation.run_with("eu/edge", &["pub", "orders"], lines.repeat(10).as_bytes()).ok();
    assert!(begun.elapsed() >= Duration::from_millis(700), "80 messages at 100 a second, {:?}", begun.elapsed());
    // Of a burst of a message at a time, more is taken as the rate allows.
    let waiting = federation.spawn("eu/edge", &["pub", "orders", "--deadline", "60s"], lines.repeat(500).as_bytes());
    set(&["topic", "orders", "--messages-per-s", "none"]).ok();
    finish(waiting, &["pub"]).ok();
    for (args, code, says) in [
        (&["topic", "orders", "--bytes-per-s", "0"][..], 2, "lets nothing pass"),
        (&["topic", "orders", "--bytes-per-s", "-5"], 2, "--bytes-per-s"),
        (&["topic", "orders", "--messages-per-s", "18446744073709551616"], 2, "from 1 to 18446744073709551615"),
        (&["topic", "orders", "--bytes-per-s", "17179869184GiB"], 2, "64 bits"),
        (&["link", "us/edge", "--direction", "send", "--bytes-per-s", "0"], 2, "lets nothing pass"),
        (&["link", "us/edge", "--bytes-per-s", "1MiB"], 2, "--direction"),
        (&["link", "us", "--direction", "send", "--bytes-per-s", "1MiB"], 1, "SITE/NODE"),
        (
            &["topic", "orders", "--bytes-per-s", "1KiB", "--bytes-burst", "1KiB"],
            1,
            "bytes-burst is 1024 bytes, less than the largest message",
        ),
        (&["topic", "orders", "--bytes-burst", "2MiB"], 1, "bytes-burst has no effect without a rate"),
        (
            &["link", "us/edge", "--direction", "send", "--bytes-per-s", "1MiB", "--bytes-burst", "1MiB"],
            1,
            "less than what a link needs",
        ),
        (&["topic", "orders"], 2, "nothing is to be set"),
    ] {
        set(args).failed(code, says);
    }
    set(&["topic", "orders", "--bytes-per-s", "2MiB", "--bytes-burst", "2MiB"]).ok();
    let larger = ["topic", "set", "orders", "--message-size-max", "4MiB"];
    steer(&federation, "eu/edge", &larger).failed(1, "seaway limit set topic orders --bytes-burst");
    // The file anew, as a reload takes it.
    steer(&federation, "eu/edge", &["limit", "rm", "topic", "orders"]).ok();
    let config = federation.cluster.member("eu/edge").unwrap().config().to_path_buf();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("messages_per_s = 1,", "messages_per_s = 10000,")).unwrap();
    let reloaded = steer(&federation, "eu/edge", &["config", "reload"]).ok().out;
    assert!(reloaded.contains("in use now: topic[orders]"), "{reloaded}");
    assert_eq!(limit(&federation, "eu/edge", "topic", "orders").unwrap()["holds"]["messages_per_s"], 10_000);
    std::fs::write(&config, text.replace("messages_per_s = 1,", "messages_per_s = 0,")).unwrap();
    let refused = steer(&federation, "eu/edge", &["config", "reload"]);
    refused.failed(1, "topic[1].limits.messages_per_s is 0, but a whole number of at least 1");
}

#[test]
fn every_queue_is_listed_with_its_bound_and_moves_under_load() {
    let mut federation = Federation::empty();
    add(&mut federation, "eu/edge", &[], "send_rate = { bytes_per_s = \"256 KiB\" }", "");
    add(&mut federation, "us/edge", &["eu/edge"], "", "");
    federation.join("eu/edge", "us");
    // One that reads nothing of what it is sent, and messages that wait for a site to which little goes.
    let mut silent = federation.spawn("eu/edge", &["sub", "orders/#"], b"");
    let line = format!("{}\n", "x".repeat(65_535));
    federation.run_with("eu/edge", &["pub", "orders", "--mode", "async"], line.repeat(300).as_bytes()).ok();
    let mut waiting =
        federation.spawn("eu/edge", &["pub", "orders", "--ack", "sites=us", "--deadline", "60s", "last"], b"");
    let rows = || json(&federation, "eu/edge", &["queues"]).as_array().unwrap().clone();
    let row = |rows: &[Value], name: &str| {
        rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    for name in ["receipts", "link-reads", "link-sent", "door-replies", "door-connections", "door-subscriptions"] {
        until(&format!("{name} holds something"), || row(&rows(), name)["used"].as_u64().is_some_and(|used| used > 0));
    }
    let rows = rows();
    for name in ["publish", "append", "door-in-flight", "changes", "link-mailbox", "link-control"] {
        assert!(row(&rows, name)["bound"].as_u64().unwrap() > 0, "{name}");
    }
    for row in &rows {
        let (used, highest, bound) = (&row["used"], &row["highest"], row["bound"].as_u64().unwrap());
        assert!(used.is_null() || used.as_u64().unwrap() <= bound, "{row}");
        assert!(highest.is_null() || highest.as_u64().unwrap() <= bound, "{row}");
        assert!(!row["at_bound"].as_str().unwrap().is_empty(), "{row}");
        assert_eq!(row["of"] == "us/edge", row["name"].as_str().unwrap().starts_with("link-"), "{row}");
    }
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let expected = [
        "publish",
        "receipts",
        "append",
        "one-way subscribers",
        "changes",
        "tail",
        "index",
        "door-requests",
        "door-parts",
        "door-in-flight",
        "door-replies",
        "door-groups",
        "door-reads",
        "door-connections",
        "door-subscriptions",
        "door-confirmations",
        "admin-port",
        "link-mailbox",
        "link-sent",
        "link-quic-received",
        "link-datagrams",
        "link-one-way-streams",
        "link-control",
        "link-received",
        "link-reads",
        "link-passing",
        "link-one-way",
    ];
    assert_eq!(names, expected);
    for child in [&mut silent, &mut waiting] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
