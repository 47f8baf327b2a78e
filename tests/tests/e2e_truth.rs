//! End to end: whatever stands still, status names what and where, at every node that can know, and never says "live" of it.
//!
//! Faults come over a UDP proxy, by SIGSTOP, by a small disk, and by a peer that grants no credit. Each wait is for a statement, with
//! a generous deadline; each reading in between is checked for a false "live", by what the node's own clock says ([`Watch`]).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stderr, reason = "tests")]

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use seaway_edge_broker::bench::cluster::Kind;
use seaway_tests::{
    cluster::{Federation, PATIENCE},
    proxy::{Conditions, Proxy},
    small_disk::SmallDisk,
};
use serde_json::Value;

/// After this a copy that gets nothing may not be called live any more.
const COPY_BOUND: Duration = Duration::from_secs(5);
/// After this a link on which nothing is heard may not be called live any more, milliseconds.
const LINK_BOUND_MS: u64 = 1000;

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

fn black_hole() -> Conditions {
    Conditions { black_hole: true, ..Conditions::default() }
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
enum What {
    /// The link to this peer.
    Link(&'static str),
    /// The copy of topic `t` of this origin.
    Copy(&'static str),
}

/// Somebody who reads a node's status from the moment of a fault on.
struct Watch<'a> {
    federation: &'a Federation,
    since: Instant,
}

impl Watch<'_> {
    fn status(&self, node: &str) -> Value {
        status(self.federation, node)
    }

    /// Waits until a node names the fault; nothing may be called live meanwhile that is known not to be.
    fn until(&self, node: &str, what: What, states: &[&str], says: &[&str]) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = self.since.elapsed();
            let status = self.status(node);
            let found = find(&status, what);
            let (state, reason) = (text(&found, "state"), text(&found, "reason"));
            if state == "live" {
                match what {
                    What::Link(_) => check_live_link(&found),
                    What::Copy(_) => {
                        assert!(asked <= COPY_BOUND, "{node} calls {what:?} live {asked:?} after the fault")
                    }
                }
            }
            if states.contains(&state.as_str()) && says.iter().all(|part| reason.contains(part)) {
                eprintln!("{node:10} {what:?}: {state}: {reason} ({} ms by its clock)", found["state_for_ms"]);
                return found;
            }
            assert!(Instant::now() < deadline, "{node} does not say {states:?} {says:?} of {what:?}: {found:#}");
        }
    }

    /// The same state stays, whenever somebody asks.
    fn stays_so(&self, node: &str, what: What) {
        for _ in 0..5 {
            let found = find(&self.status(node), what);
            assert_ne!(text(&found, "state"), "live", "{node}, {what:?}: {found:#}");
        }
    }
}

/// By the node's own clock: a live link was heard of within a second (and a round trip, where that is long).
fn check_live_link(link: &Value) {
    let heard = link["heard_ms_ago"].as_u64().unwrap();
    let round_trip = link["rtt_ms"].as_f64().unwrap() as u64;
    assert!(heard <= LINK_BOUND_MS + round_trip, "called live, and nothing was heard for {heard} ms: {link:#}");
}

fn text(found: &Value, key: &str) -> String {
    found[key].as_str().unwrap_or_default().to_owned()
}

fn status(federation: &Federation, node: &str) -> Value {
    serde_json::from_str(&federation.run(node, &["status", "--output", "json"]).ok().out).unwrap()
}

fn find(status: &Value, what: What) -> Value {
    let is_it = |item: &&Value| match what {
        What::Link(peer) => item["peer"] == peer,
        What::Copy(origin) => item["topic"] == "t" && item["origin"] == origin,
    };
    let list = if matches!(what, What::Link(_)) { "links" } else { "topics" };
    status[list].as_array().unwrap().iter().find(is_it).cloned().unwrap_or(Value::Null)
}

/// Sites eu and us, each over a line of its own to hub/relay; both hold each other's topic `t`.
struct Lines {
    federation: Federation,
    eu: Proxy,
    us: Proxy,
    _runtime: tokio::runtime::Runtime,
}

impl Lines {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut federation = Federation::empty();
        federation.cluster.add("hub/relay", Kind::Relay, &[], "").unwrap();
        let port = federation.cluster.member("hub/relay").unwrap().link_port;
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        let proxies: Vec<Proxy> = ["eu/edge", "us/edge"]
            .into_iter()
            .zip(1..)
            .map(|(node, seed)| {
                federation.cluster.add(node, Kind::Edge, &["hub/relay"], "").unwrap();
                let _entered = runtime.enter();
                let proxy = Proxy::start(target, seed, &Conditions::default()).unwrap();
                let config = federation.cluster.member(node).unwrap().config().to_path_buf();
                let text = std::fs::read_to_string(&config).unwrap();
                let over = text.replace(&format!("localhost:{port}"), &proxy.address().to_string());
                assert_ne!(text, over);
                std::fs::write(&config, over).unwrap();
                proxy
            })
            .collect();
        for node in ["hub/relay", "eu/edge", "us/edge"] {
            federation.cluster.start(node).unwrap();
        }
        federation.join("eu/edge", "us");
        federation.join("us/edge", "eu");
        federation.run("eu/edge", &["pub", "t", "--ack", "sites=us", "--deadline", "60s", "from eu"]).ok();
        federation.run("us/edge", &["pub", "t", "--ack", "sites=eu", "--deadline", "60s", "from us"]).ok();
        let [eu, us] = <[Proxy; 2]>::try_from(proxies).unwrap();
        let lines = Self { federation, eu, us, _runtime: runtime };
        lines.until_all_live();
        lines
    }

    fn pid(&self, node: &str) -> u32 {
        self.federation.cluster.member(node).unwrap().pid().unwrap()
    }

    /// Everything is well again, and idle copies are live with lag 0.
    fn until_all_live(&self) {
        let parts = [
            ("eu/edge", What::Link("hub/relay")),
            ("us/edge", What::Link("hub/relay")),
            ("hub/relay", What::Link("eu/edge")),
            ("hub/relay", What::Link("us/edge")),
            ("eu/edge", What::Copy("us")),
            ("us/edge", What::Copy("eu")),
        ];
        let deadline = Instant::now() + PATIENCE;
        for (node, what) in parts {
            loop {
                let found = find(&status(&self.federation, node), what);
                let is_copy = matches!(what, What::Copy(_));
                if found["state"] == "live" && (!is_copy || (found["lag_messages"] == 0 && found["lag_s"] == 0.0)) {
                    break;
                }
                assert!(Instant::now() < deadline, "{node}, {what:?} is not well again: {found:#}");
            }
        }
    }

    fn watch(&self) -> Watch<'_> {
        Watch { federation: &self.federation, since: Instant::now() }
    }
}

const NOT_LIVE: &[&str] = &["stalled", "down"];

#[test]
fn a_line_that_is_broken_both_ways_or_one_way_is_named_at_every_node() {
    let lines = Lines::start();
    // Nothing passes between us and the hub.
    lines.us.set(&black_hole());
    let watch = lines.watch();
    watch.until("us/edge", What::Link("hub/relay"), &["stalled"], &["nothing was heard of the peer"]);
    watch.until("us/edge", What::Copy("eu"), NOT_LIVE, &["link to hub/relay"]);
    watch.until("hub/relay", What::Link("us/edge"), NOT_LIVE, &["heard"]);
    watch.until("eu/edge", What::Copy("us"), &["down"], &["between hub/relay and us/edge is down"]);
    watch.until("us/edge", What::Link("hub/relay"), &["down"], &[]);
    watch.stays_so("eu/edge", What::Copy("us"));
    watch.stays_so("us/edge", What::Copy("eu"));
    lines.us.set(&Conditions::default());
    lines.until_all_live();

    // What us sends is lost; it hears the hub, and the hub does not hear it.
    lines.us.set_up(black_hole());
    let watch = lines.watch();
    watch.until("us/edge", What::Link("hub/relay"), NOT_LIVE, &[]);
    watch.until("hub/relay", What::Link("us/edge"), NOT_LIVE, &["heard"]);
    watch.until("us/edge", What::Copy("eu"), NOT_LIVE, &["link to hub/relay"]);
    watch.until("eu/edge", What::Copy("us"), &["down"], &["hub/relay"]);
    lines.us.set(&Conditions::default());
    lines.until_all_live();

    // What the hub sends to eu is lost.
    lines.eu.set_down(black_hole());
    let watch = lines.watch();
    watch.until("eu/edge", What::Link("hub/relay"), NOT_LIVE, &["heard"]);
    watch.until("hub/relay", What::Link("eu/edge"), NOT_LIVE, &[]);
    watch.until("eu/edge", What::Copy("us"), NOT_LIVE, &["link to hub/relay"]);
    watch.until("us/edge", What::Copy("eu"), &["down"], &["hub/relay"]);
    lines.eu.set(&Conditions::default());
    lines.until_all_live();
}

#[test]
fn a_stopped_process_is_named_by_the_others_wherever_it_stands() {
    let lines = Lines::start();
    // The relay in the middle.
    let hub = lines.pid("hub/relay");
    signal("STOP", hub);
    let watch = lines.watch();
    for (node, origin) in [("eu/edge", "us"), ("us/edge", "eu")] {
        watch.until(node, What::Link("hub/relay"), NOT_LIVE, &["heard"]);
        watch.until(node, What::Copy(origin), NOT_LIVE, &["link to hub/relay"]);
        watch.stays_so(node, What::Copy(origin));
    }
    signal("CONT", hub);
    lines.until_all_live();

    // The origin of a copy: its neighbour notices first, the site behind it learns where.
    let eu = lines.pid("eu/edge");
    signal("STOP", eu);
    let watch = lines.watch();
    watch.until("hub/relay", What::Link("eu/edge"), NOT_LIVE, &["heard"]);
    watch.until("us/edge", What::Copy("eu"), &["down"], &["hub/relay", "eu/edge"]);
    watch.stays_so("us/edge", What::Copy("eu"));
    signal("CONT", eu);
    lines.until_all_live();
}

#[test]
fn an_origin_and_a_way_that_are_gone_are_named() {
    let mut lines = Lines::start();
    lines.federation.cluster.member_mut("eu/edge").unwrap().kill();
    let watch = lines.watch();
    watch.until("us/edge", What::Copy("eu"), &["down"], &["no way to eu", "between hub/relay and eu/edge is down"]);
    watch.stays_so("us/edge", What::Copy("eu"));
    lines.federation.cluster.member_mut("hub/relay").unwrap().kill();
    let watch = lines.watch();
    watch.until("us/edge", What::Link("hub/relay"), NOT_LIVE, &[]);
    watch.until("us/edge", What::Copy("eu"), &["down"], &["no way to eu"]);
    for node in ["hub/relay", "eu/edge"] {
        lines.federation.cluster.start(node).unwrap();
        lines.federation.wait_up(node);
    }
    lines.until_all_live();
}

#[test]
fn a_slow_subscriber_is_named_and_holds_up_nobody_else() {
    let federation = Federation::one_edge("");
    let message = "x".repeat(1000) + "\n";
    federation.run_with("eu/edge", &["pub", "t"], message.repeat(40_000).as_bytes()).ok();
    // Its output is a pipe that nobody reads.
    let slow = ["sub", "t", "--from", "earliest", "--count", "40000"];
    let mut reader = federation.cluster.command("eu/edge", &slow).unwrap().stdout(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let stalled = loop {
        let shown = status(&federation, "eu/edge");
        let subscribers = shown["subscribers"].as_array().unwrap().clone();
        if let Some(found) = subscribers.into_iter().find(|s| s["state"] == "stalled") {
            break found;
        }
        assert!(Instant::now() < deadline, "nobody is named: {shown:#}");
    };
    eprintln!("{stalled}");
    assert_eq!((text(&stalled, "pattern"), text(&stalled, "client")), ("t".to_owned(), "anonymous".to_owned()));
    assert!(stalled["state_for_ms"].as_u64().unwrap() >= 1000, "{stalled}");
    let all = ["sub", "t", "--from", "earliest", "--until-end", "--timeout", "150s"];
    assert_eq!(federation.run("eu/edge", &all).ok().out.lines().count(), 40_000);
    // A group whose member confirms nothing.
    let group = federation.cluster.command("eu/edge", &["sub", "t", "--from", "earliest", "--group", "g"]);
    let mut member = group.unwrap().stdout(Stdio::piped()).spawn().unwrap();
    loop {
        let groups = federation.run("eu/edge", &["group", "ls", "--output", "json"]).ok().out;
        let groups: Value = serde_json::from_str(&groups).unwrap();
        if groups.as_array().unwrap().first().is_some_and(|g| g["state"] == "stalled" && g["members"] == 1) {
            eprintln!("{}", groups[0]["reason"]);
            break;
        }
        assert!(Instant::now() < deadline, "the group is not named: {groups:#}");
    }
    for child in [&mut reader, &mut member] {
        let _ = child.kill();
        let _ = child.wait();
    }
    let gone = || status(&federation, "eu/edge")["subscribers"].as_array().unwrap().is_empty();
    while !gone() {
        assert!(Instant::now() < deadline, "who is gone is still named");
    }
}

/// Runs a command and reads its JSON, whatever it ended with.
fn json(federation: &Federation, node: &str, args: &[&str]) -> (i32, Value) {
    let ran = federation.run(node, &[args, &["--output", "json"]].concat());
    let value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{args:?}: {} {}", ran.out, ran.err));
    (ran.code, value)
}

/// What a node says of a message.
fn said(answer: &Value, node: &str) -> String {
    let answers = answer["answers"].as_array().unwrap();
    answers.iter().find(|a| a["node"] == node).map(|a| text(a, "state")).unwrap_or_default()
}

#[test]
fn a_message_is_found_from_anywhere_and_the_way_to_it_is_told() {
    let lines = Lines::start();
    let federation = &lines.federation;
    let receipt = federation.run("eu/edge", &["pub", "t", "--receipts", "where am I"]).ok().out;
    let receipt: Value = serde_json::from_str(&receipt).unwrap();
    let id = text(&receipt, "position");
    assert!(id.starts_with("t@eu#1=1."), "{id}");
    // The subscriber's position is the same name.
    let last = ["sub", "t", "--origin", "eu", "--last", "1", "--count", "1", "--timeout", "60s", "--output", "json"];
    let line: Value = serde_json::from_str(&federation.run("eu/edge", &last).ok().out).unwrap();
    assert_eq!(text(&line, "position"), id);
    let deadline = Instant::now() + PATIENCE;
    for node in ["us/edge", "eu/edge", "hub/relay"] {
        loop {
            let (code, answer) = json(federation, node, &["find", &id, "--deadline", "20s"]);
            if code == 0 && said(&answer, "us/edge") == "here" {
                assert_eq!((said(&answer, "eu/edge"), answer["complete"] == true), ("here".into(), true), "{answer:#}");
                break;
            }
            assert!(Instant::now() < deadline, "asked at {node}: {answer:#}");
        }
    }
    let (head, offset) = id.rsplit_once(':').unwrap();
    let beyond = format!("{head}:{}", offset.parse::<u64>().unwrap() + 1000);
    let (code, answer) = json(federation, "us/edge", &["find", &beyond, "--deadline", "20s"]);
    assert_eq!((code, said(&answer, "eu/edge").as_str()), (1, "never-published"), "{answer:#}");
    for bad in ["nonsense", "t@eu#1", "t@eu#1=1.zz:4", "t@EU!#1=1.00:4", "t/x@eu#1=1.00:4", "t@eu#99999=1.00:4"] {
        federation.run("us/edge", &["find", bad]).failed(2, "is no message id");
    }
    let (code, answer) = json(federation, "us/edge", &["find", "t@mars#1=1.00:4", "--deadline", "2s"]);
    assert_eq!(code, 4, "{answer:#}");
    assert!(
        answer["missing"][0]["why"].as_str().unwrap().contains("no edge broker of this site is known"),
        "{answer:#}"
    );
}

#[test]
fn nodes_and_ways_are_told_and_so_is_who_cannot_be_asked() {
    let lines = Lines::start();
    let federation = &lines.federation;
    let deadline = Instant::now() + PATIENCE;
    let (_, topology) = json(federation, "us/edge", &["topology"]);
    let nodes: Vec<String> = topology["nodes"].as_array().unwrap().iter().map(|n| text(n, "node")).collect();
    assert_eq!(nodes, ["eu/edge", "hub/relay", "us/edge"]);
    assert_eq!(topology["links"].as_array().unwrap().len(), 2);
    let way = federation.run("us/edge", &["route", "explain", "t/x", "--from", "eu", "--to", "us"]).ok().out;
    assert!(way.contains("goes over 2 links, at a cost of 2") && way.contains("hub/relay"), "{way}");
    federation.run("us/edge", &["route", "explain", "t", "--from", "eu", "--to", "mars"]).failed(1, "mars");
    // us is cut off: what comes now is behind there, and it cannot be asked from eu.
    lines.us.set(&black_hole());
    lines.watch().until("eu/edge", What::Copy("us"), &["down"], &["between hub/relay and us/edge"]);
    let receipt = federation.run("eu/edge", &["pub", "t", "--receipts", "and I"]).ok().out;
    let late = text(&serde_json::from_str::<Value>(&receipt).unwrap(), "position");
    let (code, answer) = json(federation, "us/edge", &["find", &late, "--deadline", "1s"]);
    assert_eq!((code, said(&answer, "us/edge").as_str()), (4, "lagging"), "{answer:#}");
    let (code, answer) = json(federation, "eu/edge", &["find", &late, "--deadline", "1s"]);
    assert_eq!((code, said(&answer, "eu/edge").as_str()), (4, "here"), "{answer:#}");
    assert_eq!(answer["missing"][0]["site"], "us", "{answer:#}");
    let (_, topology) = json(federation, "eu/edge", &["topology"]);
    let gone = topology["nodes"].as_array().unwrap().iter().find(|n| n["node"] == "us/edge").cloned().unwrap();
    assert_eq!(
        (text(&gone, "state").as_str(), text(&gone, "reason").contains("hub/relay")),
        ("away", true),
        "{gone:#}"
    );
    federation.run("eu/edge", &["route", "explain", "t", "--from", "eu", "--to", "us"]).failed(1, "");
    lines.us.set(&Conditions::default());
    lines.until_all_live();
    let (_, shown) = json(federation, "us/edge", &["topic", "show", "t"]);
    let verified = |topics: &Value| {
        let copy = topics.as_array().unwrap().iter().find(|t| t["origin"] == "eu").unwrap();
        let queue = copy["queues"].as_array().unwrap().iter().find(|q| q["queue"] == 1).unwrap();
        queue["verified"] == queue["end"]
    };
    while !verified(&json(federation, "us/edge", &["topic", "show", "t"]).1) {
        assert!(Instant::now() < deadline, "the copy is not proven equal to its end: {shown:#}");
    }
}

#[test]
fn a_full_disk_downstream_is_named_at_both_ends_of_the_link() {
    let mut federation = Federation::empty();
    let small = "[log]\nsegment_size = \"4 MiB\"\ndisk_reserve = \"16 MiB\"\n";
    federation.cluster.add("eu/edge", Kind::Edge, &[], "").unwrap();
    federation.cluster.add("us/edge", Kind::Edge, &["eu/edge"], small).unwrap();
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    let Some(_node) = SmallDisk::run(&federation, "us/edge") else {
        return seaway_tests::skipped(
            "a full disk downstream: this machine gives no user namespace with a disk of its own",
        );
    };
    // 100 MB that do not compress.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut sent = Vec::with_capacity(100 << 20);
    for number in 0..1_000 {
        sent.extend_from_slice(format!("{number} ").as_bytes());
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sent.push(b'0' + (random >> 58) as u8);
        }
        sent.push(b'\n');
    }
    let file = federation.file("sent", &sent);
    federation.run("eu/edge", &["pub", "t", "--file", &file]).ok();
    // The bound of copies counts from when the disk is full; only what is said after that is looked at.
    let deadline = Instant::now() + PATIENCE;
    while !status(&federation, "us/edge")["log"]["disk_full"].as_bool().unwrap() {
        assert!(Instant::now() < deadline, "the disk never gets full: {:#}", status(&federation, "us/edge"));
    }
    let watch = Watch { federation: &federation, since: Instant::now() };
    watch.until("us/edge", What::Copy("eu"), &["stalled"], &["this node stores nothing", "disk is nearly full"]);
    watch.until("us/edge", What::Link("eu/edge"), &["stalled"], &["this node stores nothing", "disk is nearly full"]);
    watch.until("eu/edge", What::Link("us/edge"), &["stalled"], &["the peer stores nothing", "disk is nearly full"]);
    watch.stays_so("us/edge", What::Copy("eu"));
    watch.stays_so("eu/edge", What::Link("us/edge"));
    federation.file("room", b"");
    let well = |node, what| find(&status(&federation, node), what)["state"] == "live";
    let parts = [("us/edge", What::Copy("eu")), ("us/edge", What::Link("eu/edge")), ("eu/edge", What::Link("us/edge"))];
    while !parts.iter().all(|(node, what)| well(node, *what)) {
        assert!(Instant::now() < deadline, "it is not well again: {:#}", status(&federation, "us/edge"));
    }
}
