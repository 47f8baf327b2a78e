//! End to end: topics created, changed under load, trimmed, deleted while a site is away, and created anew; with real processes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeMap, time::Instant};

use seaway_edge_broker::bench::cluster::Kind;
use seaway_tests::cluster::{Federation, PATIENCE, Ran, finish};

const TOKENS: &str = "[[token]]\nname = \"admin\"\ntoken = \"admin-admin-admin-admin\"\nadmin = true\npublish = [\"#\"]\nsubscribe = [\"#\"]\n";

/// These edges, which dial a relay where there is more than one; whoever steers them has a token.
fn started(edges: &[&str], more: &str) -> Federation {
    let mut federation = Federation::empty();
    let tokens = federation.file("tokens.toml", TOKENS.as_bytes());
    federation.file("admin.token", b"admin-admin-admin-admin\n");
    let dials: &[&str] = if edges.len() > 1 { &["hub/relay"] } else { &[] };
    if edges.len() > 1 {
        federation.cluster.add("hub/relay", Kind::Relay, &[], "").unwrap();
        federation.cluster.start("hub/relay").unwrap();
    }
    for edge in edges {
        federation.cluster.add(edge, Kind::Edge, dials, more).unwrap();
        let config = federation.cluster.member(edge).unwrap().config().to_path_buf();
        let text = std::fs::read_to_string(&config).unwrap();
        let text = text.replace("[door.anonymous]", &format!("token_file = \"{tokens}\"\n\n[door.anonymous]"));
        std::fs::write(&config, text).unwrap();
        federation.cluster.start(edge).unwrap();
    }
    edges.iter().for_each(|edge| federation.wait_up(edge));
    federation
}

fn two_sites() -> Federation {
    let mut federation = started(&["eu/edge", "us/edge"], "");
    federation.join("eu/edge", "us");
    federation.join("us/edge", "eu");
    federation
}

/// Runs a command that changes a node.
fn steer(federation: &Federation, node: &str, args: &[&str]) -> Ran {
    let token = federation.cluster.dir.join("admin.token").display().to_string();
    federation.run(node, &[args, &["--token-file", &token]].concat())
}

fn show(federation: &Federation, node: &str, topic: &str) -> serde_json::Value {
    let ran = federation.run(node, &["topic", "show", topic, "--output", "json"]).ok();
    serde_json::from_str(&ran.out).unwrap()
}

/// The value and source of a setting that a node shows for a topic of an origin.
fn setting(federation: &Federation, node: &str, origin: &str, name: &str) -> (String, String) {
    let shown = show(federation, node, "orders");
    let topic = shown.as_array().unwrap().iter().find(|t| t["origin"] == origin).unwrap_or_else(|| panic!("{shown}"));
    let found = topic["settings"].as_array().unwrap().iter().find(|s| s["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {shown}"));
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("value"), text("source"))
}

#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn read_all(federation: &Federation, node: &str, topic: &str) -> String {
    let args = ["sub", topic, "--from", "earliest", "--until-end", "--timeout", "120s"];
    federation.run(node, &args).ok().out
}

const OFF: &str = "[topics]\nauto_create = [\"test-join\"]\n[[topic]]\npattern = \"orders\"\nqueues = 2\nretention_age = \"7 days\"\n";

#[test]
fn topics_are_created_set_shown_and_trimmed_by_command() {
    let mut federation = started(&["eu/edge"], OFF);
    let run = |args: &[&str]| steer(&federation, "eu/edge", args);
    run(&["pub", "orders/new", "x"]).failed(5, "seaway topic create orders");
    run(&["topic", "set", "orders", "--queues", "3"]).failed(1, "there is no topic orders here");
    run(&["topic", "create", "orders", "--compression", "lz4"]).ok();
    run(&["topic", "create", "orders"]).failed(1, "exists at this site already");
    run(&["pub", "orders/new", "first"]).ok();
    let of = |name: &str| setting(&federation, "eu/edge", "eu", name);
    assert_eq!(of("queues"), ("2".into(), "[[topic]] orders".into()));
    assert_eq!(of("compression"), ("lz4".into(), "topic set".into()));
    assert_eq!(of("message-size-max").0, "1 MiB");
    run(&["topic", "set", "orders", "--queues", "4", "--retention-age", "none", "--retention-size", "8MiB"]).ok();
    assert_eq!(of("queues"), ("4".into(), "topic set".into()));
    assert_eq!(of("retention-age"), ("none".into(), "topic set".into()));
    run(&["topic", "set", "orders", "--unset", "queues,retention-age"]).ok();
    assert_eq!(of("queues").0, "2");
    assert_eq!(of("retention-age").1, "[[topic]] orders");
    // Bad input, each with what is wrong.
    for (args, code, says) in [
        (&["--queues", "0"][..], 1, "queues is 0, but 1 to 1024 is expected"),
        (&["--queues", "1025"], 1, "1 to 1024"),
        (&["--queues", "18446744073709551616"], 2, "queues"),
        (&["--retention-size", "99999999999999999999 B"], 2, "retention-size"),
        (&["--message-size-max", "17MiB"], 1, "1 B to 16 MiB"),
        (&["--retention-size", "10KiB"], 1, "message-size-max"),
        (&["--compression", "rar"], 1, "compression"),
        (&["--unset", "colour"], 1, "there is no setting \"colour\""),
        (&["--queues", "3", "--unset", "queues"], 1, "set and unset at once"),
        (&[], 2, "nothing is to be set"),
    ] {
        let ran = run(&[&["topic", "set", "orders"], args].concat());
        assert!(ran.err.contains(says) && ran.code == code, "{args:?}: {code} {says:?}, but {} {}", ran.code, ran.err);
    }
    run(&["topic", "create", "_own"]).failed(1, "Seaway's own");
    run(&["topic", "rm", "$own"]).failed(1, "Seaway's own");
    // What a command set is there after a restart, and trimming is by place, time or size.
    federation.cluster.member_mut("eu/edge").unwrap().stop();
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    assert_eq!(setting(&federation, "eu/edge", "eu", "compression").1, "topic set");
    federation.run("eu/edge", &["pub", "orders", "second"]).ok();
    steer(&federation, "eu/edge", &["topic", "trim", "orders", "--keep-size", "1B"]).ok();
    steer(&federation, "eu/edge", &["topic", "trim", "orders", "--before", "2100-01-01T00:00:00Z"]).ok();
    assert_eq!(read_all(&federation, "eu/edge", "orders/#"), "");
    federation.run("eu/edge", &["pub", "orders", "third"]).ok();
    let line =
        federation.run("eu/edge", &["sub", "orders", "--from", "earliest", "--until-end", "--output", "json"]).ok();
    let line: serde_json::Value = serde_json::from_str(line.out.trim()).unwrap();
    let position = line["position"].as_str().unwrap();
    steer(&federation, "eu/edge", &["topic", "trim", "orders", "--before", position]).ok();
    assert_eq!(read_all(&federation, "eu/edge", "orders/#"), "third\n");
    steer(&federation, "eu/edge", &["topic", "trim", "orders", "--before", "soon"])
        .failed(2, "neither a position nor a time");
    steer(&federation, "eu/edge", &["topic", "trim", "nothing", "--keep-size", "1B"])
        .failed(1, "nothing of topic nothing");
}

/// Keys under load while the queue count goes from 1 to 8 to 3: plain subscribers here and there, and a group of two members, get each
/// key in its order.
#[test]
fn keys_keep_their_order_while_the_queue_count_changes_under_load() {
    const KEYS: usize = 10;
    const EACH: usize = 2000;
    let federation = two_sites();
    let count = (KEYS * EACH).to_string();
    steer(&federation, "eu/edge", &["topic", "create", "orders", "--queues", "1"]).ok();
    let sub = ["sub", "orders", "--from", "earliest", "--count", &count, "--timeout", "150s", "--output", "json"];
    // What each of them writes is read at once: one that cannot write confirms nothing, and holds the others back.
    let plain = ["eu/edge", "us/edge"].map(|node| {
        let reader = federation.spawn(node, &sub, b"");
        std::thread::spawn(move || finish(reader, &["sub"]))
    });
    // Two members of a group that share what comes.
    let member = ["sub", "orders", "--group", "g", "--from", "earliest", "--output", "json"];
    let members = [(); 2].map(|()| {
        let member = federation.spawn("us/edge", &member, b"");
        (member.id().to_string(), std::thread::spawn(move || member.wait_with_output().unwrap()))
    });
    let mut publishers = Vec::new();
    for key in 0..KEYS {
        let name = format!("k{key}");
        let args = ["pub", "orders", "--key", &name, "--mode", "async"];
        let lines: String = (0..EACH).map(|n| format!("{key}:{n:05}\n")).collect();
        publishers.push((federation.spawn("eu/edge", &args, lines.as_bytes()), name));
    }
    // From 1 to 8 to 3 and so on for as long as they publish, and to 3 at last.
    let mut counts = ["8", "3"].iter().cycle();
    let mut changes = 0;
    while changes < 2 || publishers.iter_mut().any(|(p, _)| p.try_wait().unwrap().is_none()) {
        steer(&federation, "eu/edge", &["topic", "set", "orders", "--queues", counts.next().unwrap()]).ok();
        changes += 1;
    }
    steer(&federation, "eu/edge", &["topic", "set", "orders", "--queues", "3"]).ok();
    println!("{changes} changes while it was published");
    for (publisher, name) in publishers {
        finish(publisher, &["pub", &name]).ok();
    }
    let keys_of = |out: &str| {
        let mut read: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in out.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let payload = line["payload"].as_str().unwrap().to_owned();
            read.entry(payload.split(':').next().unwrap().to_owned()).or_default().push(payload);
        }
        read
    };
    for reader in plain {
        let read = keys_of(&reader.join().unwrap().ok().out);
        assert_eq!(read.len(), KEYS);
        for (key, payloads) in read {
            assert_eq!(payloads.len(), EACH, "key {key}");
            assert!(payloads.is_sorted(), "key {key} lost its order");
        }
    }
    let lag_is = |lag: u64| {
        let groups = federation.run("us/edge", &["group", "ls", "--output", "json"]).ok().out;
        groups.contains(&format!("\"lag_messages\": {lag}")) || groups.contains(&format!("\"lag_messages\":{lag}"))
    };
    until("the group has confirmed all", || lag_is(0));
    let mut all = 0;
    for (member, reader) in members {
        // What it confirmed it has written before.
        assert!(std::process::Command::new("kill").args(["-KILL", &member]).status().unwrap().success());
        let read = keys_of(&String::from_utf8(reader.join().unwrap().stdout).unwrap());
        all += read.values().map(Vec::len).sum::<usize>();
        assert!(read.values().all(|payloads| payloads.is_sorted()), "a member got a key out of order");
    }
    assert!(all >= KEYS * EACH, "{all} messages came to the group");
    // The change is on every copy, and what is published after it is there.
    federation
        .run("eu/edge", &["pub", "orders", "--key", "k1", "--ack", "sites=us", "--deadline", "100s", "last"])
        .ok();
    assert_eq!(setting(&federation, "us/edge", "eu", "queues"), ("3".into(), "origin eu".into()));
    until("the group has one message left", || lag_is(1));
}

#[test]
fn a_topic_deleted_while_a_site_is_away_does_not_return() {
    let mut federation = two_sites();
    let publish = |federation: &Federation, text: &str| {
        federation.run("eu/edge", &["pub", "orders", "--ack", "sites=us", "--deadline", "100s", text])
    };
    publish(&federation, "old").ok();
    steer(&federation, "us/edge", &["topic", "rm", "orders"])
        .failed(1, "published at eu, not here: only its origin can delete it");
    steer(&federation, "eu/edge", &["topic", "rm", "unknown"]).failed(1, "there is no topic unknown here");
    // A group that reads it keeps it, unless told otherwise.
    federation
        .run(
            "eu/edge",
            &["sub", "orders", "--group", "billing", "--from", "earliest", "--timeout", "100s", "--count", "1"],
        )
        .ok();
    publish(&federation, "unread").ok();
    steer(&federation, "eu/edge", &["topic", "rm", "orders"]).failed(5, "read by group billing");
    // The relay and the site at its other end are away.
    federation.cluster.member_mut("us/edge").unwrap().stop();
    let waiting =
        federation.spawn("eu/edge", &["pub", "orders", "--ack", "sites=us", "--deadline", "100s", "waits"], b"");
    until("it is stored", || read_all(&federation, "eu/edge", "orders").contains("waits"));
    federation.cluster.member_mut("hub/relay").unwrap().kill();
    let removed = steer(&federation, "eu/edge", &["topic", "rm", "orders", "--force"]).ok();
    assert!(removed.out.contains("us will drop it when it hears of it"), "{}", removed.out);
    finish(waiting, &["pub"]).failed(1, "topic orders was deleted");
    federation.run("eu/edge", &["pub", "orders", "x"]).failed(5, "seaway topic create orders");
    assert_eq!(read_all(&federation, "eu/edge", "orders"), "");
    let shown = show(&federation, "eu/edge", "orders");
    assert_eq!(shown[0]["deleted"]["unconfirmed"], serde_json::json!(["us"]), "{shown}");
    assert!(!federation.run("eu/edge", &["topic", "ls"]).ok().out.contains("orders"));
    // A restart of the origin forgets nothing of it.
    federation.cluster.member_mut("eu/edge").unwrap().stop();
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    steer(&federation, "eu/edge", &["topic", "rm", "orders"]).failed(1, "deleted already");
    // Those who were away still hold it, and come back.
    federation.cluster.start("us/edge").unwrap();
    federation.wait_up("us/edge");
    assert!(read_all(&federation, "us/edge", "orders").contains("old"));
    federation.cluster.start("hub/relay").unwrap();
    until("us has dropped its copy", || {
        let args = ["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"];
        // While it goes, some of it may not be readable.
        let ran = federation.run("us/edge", &args);
        ran.code == 0 && ran.out.is_empty()
    });
    until("us has confirmed", || {
        show(&federation, "eu/edge", "orders")[0]["deleted"]["confirmed"] == serde_json::json!(["us"])
    });
    assert_eq!(read_all(&federation, "eu/edge", "orders"), "");
    for node in ["eu/edge", "us/edge"] {
        let status = federation.run(node, &["status", "--output", "json"]).ok().out;
        for alarm in ["range-lost", "origin-went-back", "site-went-back", "fork", "broken-chain"] {
            assert!(!status.contains(&format!("\"{alarm}\"")), "{node}: {status}");
        }
    }
    // A new life goes on above.
    steer(&federation, "eu/edge", &["topic", "create", "orders", "--queues", "2"]).ok();
    publish(&federation, "new").ok();
    assert_eq!(read_all(&federation, "us/edge", "orders"), "new\n");
    let shown = show(&federation, "us/edge", "orders");
    let queues = shown[0]["queues"].as_array().unwrap();
    let above = queues.iter().filter(|q| q["queue"] == 1).all(|q| !q["begin"].as_str().unwrap().ends_with(":0"));
    assert!(above, "{shown}");
    assert!(shown[0]["deleted"].is_null(), "{shown}");
}
