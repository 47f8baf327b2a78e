//! End to end: a full disk, a frozen node, a node that stops while others still have to acknowledge.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use seaway_edge_broker::bench::cluster::Kind;
use seaway_tests::{
    cluster::{Federation, PATIENCE, finish, lines},
    small_disk::SmallDisk,
};

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// 80 MB that do not compress, a numbered line each.
fn more_than_fits() -> Vec<u8> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut sent = Vec::with_capacity(80 << 20);
    for number in 0..8_000 {
        sent.extend_from_slice(format!("{number} ").as_bytes());
        for _ in 0..10_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sent.push(b'0' + (random >> 58) as u8);
        }
        sent.push(b'\n');
    }
    sent
}

#[test]
fn on_a_full_disk_shorter_retention_and_deleting_a_topic_make_room() {
    const TOKEN: &str = "an-administrator-s-token";
    let mut federation = Federation::empty();
    let more = "[log]\nsegment_size = \"4 MiB\"\ndisk_reserve = \"16 MiB\"\n";
    federation.cluster.add("eu/edge", Kind::Edge, &[], more).unwrap();
    let tokens = format!("[[token]]\nname = \"me\"\ntoken = \"{TOKEN}\"\nadmin = true\n");
    let tokens = federation.file("tokens.toml", tokens.as_bytes());
    let token = federation.file("token", TOKEN.as_bytes());
    let config = federation.cluster.member("eu/edge").unwrap().config().to_owned();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("[door]\n", &format!("[door]\ntoken_file = \"{tokens}\"\n"), 1)).unwrap();
    let Some(_node) = SmallDisk::run(&federation, "eu/edge") else {
        return seaway_tests::skipped("a full disk: this machine gives no user namespace with a disk of its own");
    };
    let file = federation.file("sent", &more_than_fits());
    federation.run("eu/edge", &["pub", "orders", "kept"]).ok();
    let ready = || federation.run("eu/edge", &["status"]).ok().out.contains(": ready");
    let steps: [&[&str]; 2] = [&["topic", "set", "bulk", "--retention-size", "17 MiB"], &["topic", "rm", "bulk"]];
    for step in steps {
        federation.run("eu/edge", &["pub", "bulk", "--file", &file]).failed(1, "the disk is nearly full");
        wait_for("the node says that it is full", || !ready());
        let args = [step, &["--token-file", &token]].concat();
        federation.run("eu/edge", &args).ok();
        wait_for("there is room again", ready);
        federation.run("eu/edge", &["pub", "orders", "more"]).ok();
        if step.contains(&"set") {
            federation
                .run("eu/edge", &["topic", "set", "bulk", "--unset", "retention-size", "--token-file", &token])
                .ok();
        }
    }
    let args = ["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"];
    assert_eq!(federation.run("eu/edge", &args).ok().out, "kept\nmore\nmore\n");
}

#[test]
fn a_full_disk_refuses_publishers_and_goes_on_when_there_is_room() {
    let mut federation = Federation::empty();
    let more = "[log]\nsegment_size = \"4 MiB\"\ndisk_reserve = \"16 MiB\"\n";
    federation.cluster.add("eu/edge", Kind::Edge, &[], more).unwrap();
    let Some(_node) = SmallDisk::run(&federation, "eu/edge") else {
        // tests/run.sh counts such lines, so that nobody takes it for passed.
        return seaway_tests::skipped("a full disk: this machine gives no user namespace with a disk of its own");
    };
    let sent = more_than_fits();
    let file = federation.file("sent", &sent);
    let ran = federation.run("eu/edge", &["pub", "orders", "--receipts", "--file", &file]);
    let receipts = ran.out.lines().count();
    let ran = ran.failed(1, "the disk is nearly full");
    assert!(ran.err.contains(&format!("{receipts} messages stored")), "{}", ran.err);
    assert!(receipts > 500, "it was full from the start: {receipts}");
    let status = federation.run("eu/edge", &["status"]).ok().out;
    assert!(status.contains("nearly full: publishes are refused"), "{status}");
    assert!(!status.contains("the log stopped"), "{status}");
    // What is there can be read, and is the beginning of what was sent, with at least what has a receipt.
    let args = ["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"];
    let stored = federation.run("eu/edge", &args).ok().out;
    assert!(sent.starts_with(stored.as_bytes()) && stored.lines().count() >= receipts);
    assert!(status.contains("not-taking-messages"), "{status}");
    let short = federation.run("eu/edge", &["pub", "orders", "--deadline", "3s", "x"]);
    short.failed(4, "trying again for 3s");
    // Room is made: it goes on by itself.
    federation.file("room", b"");
    // Ready it may be for a moment before, when a file of its own is given back.
    wait_for("publishes are taken again", || federation.run("eu/edge", &["pub", "orders", "after"]).code == 0);
    wait_for("it is ready", || federation.run("eu/edge", &["status"]).ok().out.contains(": ready"));
    let status = federation.run("eu/edge", &["status"]).ok().out;
    assert!(!status.contains("not-taking-messages"), "{status}");
    let now = federation.run("eu/edge", &args).ok().out;
    assert_eq!(now, stored + "after\n");
}

#[test]
fn a_frozen_node_is_left_for_the_next_and_named() {
    let mut federation = Federation::two_sites_and_a_relay();
    let url = |node: &str| federation.cluster.member(node).unwrap().url();
    let (eu, us) = (url("eu/edge"), url("us/edge"));
    let pid = federation.cluster.member("eu/edge").unwrap().pid().unwrap();
    signal("STOP", pid);
    let mut command = Command::new(&federation.cluster.binary);
    command.args(["pub", "orders", "x", "--server", &format!("{eu},{us}")]);
    let ran = finish(seaway_tests::cluster::spawn(command, b""), &["pub"]);
    signal("CONT", pid);
    // Over plain text the connection itself is made, and its silence is noticed by pings: before anything was sent.
    let ran = ran.ok();
    assert!(ran.err.contains("1 message stored at us"), "{}", ran.err);
    federation.wait_up("eu/edge");
    let all = ["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"];
    for node in ["eu/edge", "us/edge"] {
        federation.join(node, if node == "eu/edge" { "us" } else { "eu" });
        assert_eq!(federation.run(node, &all).ok().out, "x\n", "{node}");
    }
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_left_for_the_next() {
    let mut federation = Federation::empty();
    let tls = "[[door.client]]\nname = \"me\"\npublish = [\"#\"]\nsubscribe = [\"#\"]\nadmin = true\n";
    federation.cluster.add("eu/edge", Kind::Edge, &[], tls).unwrap();
    federation.cluster.issue_client("me").unwrap();
    let config = federation.cluster.member("eu/edge").unwrap().config().to_path_buf();
    let text = std::fs::read_to_string(&config).unwrap();
    let files =
        "cert_file = \"eu-edge.pem\"\nkey_file = \"eu-edge.key\"\nclient_ca_file = \"ca/ca.pem\"\n\n[door.anonymous]";
    std::fs::write(&config, text.replace("[door.anonymous]", files)).unwrap();
    federation.cluster.start("eu/edge").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("https://localhost:{}", listener.local_addr().unwrap().port()); // the system accepts for it
    let good = format!("https://localhost:{}", federation.cluster.member("eu/edge").unwrap().door_port);
    let file = |name: &str| federation.cluster.dir.join(name).display().to_string();
    let (ca, cert, key) = (file("ca/ca.pem"), file("me.pem"), file("me.key"));
    let run = |servers: &str| {
        let args = ["status", "--server", servers, "--tls-ca", &ca, "--cert", &cert, "--key", &key];
        seaway_tests::cluster::seaway(&args)
    };
    wait_for("the door opens", || run(&good).code == 0);
    run(&format!("{silent},{good}")).ok();
    run(&silent).failed(4, "no answer within 5 s");
}

#[test]
fn a_node_that_stops_says_so_and_the_publisher_waits_on_when_it_is_back() {
    let mut federation = Federation::two_sites_and_a_relay();
    // us is away: nothing is acknowledged.
    federation.cluster.member_mut("us/edge").unwrap().stop();
    let sent = lines(200, "eu");
    let publishing = federation.spawn(
        "eu/edge",
        &["pub", "orders", "--ack", "sites=us", "--deadline", "150s", "--receipts"],
        sent.as_bytes(),
    );
    let stored = ["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"];
    wait_for("all is stored", || federation.run("eu/edge", &stored).out == sent);
    assert_eq!(federation.cluster.member_mut("eu/edge").unwrap().stop(), Some(0));
    for node in ["eu/edge", "us/edge"] {
        federation.cluster.start(node).unwrap();
    }
    // Not a deadline: the same messages again under the same numbers, stored once, and acknowledged in the end.
    let ran = finish(publishing, &["pub"]).ok();
    assert!(ran.err.contains("this node is stopping: the message is stored at orders@eu#1"), "{}", ran.err);
    assert!(ran.err.contains("200 messages stored at eu, held by us"), "{}", ran.err);
    assert_eq!(ran.out.lines().filter(|line| line.contains("\"repeated\":true")).count(), 200, "{}", ran.out);
    federation.wait_up("us/edge");
    for node in ["eu/edge", "us/edge"] {
        assert_eq!(federation.run(node, &stored).ok().out, sent, "{node}");
    }
}

#[test]
fn subscribers_go_on_when_their_node_was_away() {
    let mut federation = Federation::one_edge("");
    federation.run_with("eu/edge", &["pub", "jobs"], lines(50, "first").as_bytes()).ok();
    let reading = |more: &[&str]| {
        let args = [&["sub", "jobs", "--from", "earliest", "--count", "100", "--timeout", "150s"], more].concat();
        federation.spawn("eu/edge", &args, b"")
    };
    let (group, plain) = (reading(&["--group", "workers"]), reading(&[]));
    let latest = federation.spawn("eu/edge", &["sub", "jobs", "--timeout", "150s"], b"");
    let delivered = |federation: &Federation, count: u64| {
        let shown = federation.run("eu/edge", &["status", "--output", "json"]).ok().out;
        let status: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let counter = |name: &str| {
            let all = status["counters"].as_array().unwrap();
            all.iter().find(|c| c["name"] == name).unwrap()["value"].as_u64().unwrap()
        };
        counter("seaway_door_delivered_total") == count && counter("seaway_door_subscriptions") == 3
    };
    wait_for("both have the first half", || delivered(&federation, 100));
    // The third one, too, is surely open.
    federation.run("eu/edge", &["pub", "jobs", "mark"]).ok();
    wait_for("all have what came then", || delivered(&federation, 103));
    federation.cluster.member_mut("eu/edge").unwrap().kill();
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    federation.run_with("eu/edge", &["pub", "jobs"], lines(49, "second").as_bytes()).ok();
    let all = lines(50, "first") + "mark\n" + &lines(49, "second");
    // A plain one has each message once; a group's last confirmations may have been on the way.
    let ran = finish(plain, &["sub"]).ok();
    assert_eq!(ran.out, all, "{}", ran.err);
    assert!(ran.err.contains("after 51 messages") && ran.err.contains("connecting again"), "{}", ran.err);
    let ran = finish(group, &["sub", "--group"]).ok();
    assert!(ran.out.starts_with(&lines(50, "first")), "{}", ran.out);
    assert_eq!(ran.out.lines().count(), 100);
    // Where it would go on is not certain for one that began at the end: it says so and ends.
    finish(latest, &["sub"]).failed(1, "after 1 message");
}
