//! End to end: what an operator does to running nodes, and what watchers see of them.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Child,
    time::{Duration, Instant},
};

use seaway_edge_broker::bench::cluster::Kind;
use seaway_tests::cluster::{Federation, PATIENCE, Ran, finish, lines, seaway};

const TOKEN: &str = "operator-operator-operator";
const NODES: [&str; 3] = ["hub/relay", "eu/edge", "us/edge"];

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A federation whose nodes let an operator in by a token, and answer probes.
struct Operated {
    federation: Federation,
    admin: Vec<(String, u16)>,
}

impl Operated {
    /// eu and us dial the relay; all are started and joined.
    fn start() -> Self {
        let mut operated = Self { federation: Federation::empty(), admin: Vec::new() };
        for (node, kind) in NODES.into_iter().zip([Kind::Relay, Kind::Edge, Kind::Edge]) {
            operated.add(node, kind, if kind == Kind::Edge { &["hub/relay"] } else { &[] });
        }
        for node in NODES {
            operated.federation.cluster.start(node).unwrap();
        }
        operated.federation.join("eu/edge", "us");
        operated.federation.join("us/edge", "eu");
        operated
    }

    fn add(&mut self, node: &str, kind: Kind, dials: &[&str]) {
        let federation = &mut self.federation;
        let token = "[[token]]\nname = \"operator\"\ntoken = \"operator-operator-operator\"\nadmin = true\n";
        let tokens = federation.file("tokens.toml", token.as_bytes());
        federation.file("token", TOKEN.as_bytes());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more = format!("[admin]\nlisten = \"127.0.0.1:{port}\"\n");
        federation.cluster.add(node, kind, dials, &more).unwrap();
        self.admin.push((node.to_owned(), port));
        self.edit(node, "[door.anonymous]", &format!("token_file = \"{tokens}\"\n\n[door.anonymous]"));
    }

    fn config(&self, node: &str) -> String {
        std::fs::read_to_string(self.federation.cluster.member(node).unwrap().config()).unwrap()
    }

    fn edit(&self, node: &str, from: &str, to: &str) {
        let text = self.config(node);
        assert!(text.contains(from), "{from} is not in {text}");
        let path = self.federation.cluster.member(node).unwrap().config();
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    fn at(&self, name: &str) -> String {
        self.federation.cluster.dir.join(name).display().to_string()
    }

    /// A command with the operator's token.
    fn operate(&self, node: &str, args: &[&str]) -> Ran {
        let token = self.at("token");
        self.federation.run(node, &[args, &["--token-file", &token]].concat())
    }

    /// What the admin port answers: status and body.
    fn get(&self, node: &str, path: &str) -> (u16, String) {
        let port = self.admin.iter().find(|(name, _)| name == node).unwrap().1;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn links(&self, node: &str) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.federation.run(node, &["link", "ls", "--output", "json"]).ok().out).unwrap()
    }

    fn link(&self, node: &str, peer: &str) -> serde_json::Value {
        self.links(node).into_iter().find(|link| link["peer"] == peer).unwrap()
    }
}

#[test]
fn a_drained_node_takes_nothing_says_so_and_comes_back() {
    let operated = Operated::start();
    let federation = &operated.federation;
    for node in NODES {
        for path in ["/livez", "/startupz", "/readyz"] {
            assert_eq!(operated.get(node, path), (200, "ok\n".into()), "{node} {path}");
        }
        assert!(operated.get(node, "/metrics").1.contains("\nseaway_ready 1\n"), "{node}");
    }
    federation.run("eu/edge", &["drain"]).failed(5, "never done for unknown callers");
    let drained = operated.operate("eu/edge", &["drain", "--wait", "30s"]).ok().out;
    assert!(drained.contains("it takes no new messages, and none waits"), "{drained}");
    let (code, why) = operated.get("eu/edge", "/readyz");
    assert!(code == 503 && why.contains("drained by token:operator"), "{code} {why}");
    assert_eq!(operated.get("eu/edge", "/livez").0, 200);
    federation.run("eu/edge", &["pub", "orders", "x", "--deadline", "1s"]).failed(4, "drained by token:operator");
    federation.run("eu/edge", &["pub", "orders", "x", "--mode", "one-way"]).failed(1, "drained by token:operator");
    // What is published elsewhere still comes here, and subscribers stay.
    federation.run("us/edge", &["pub", "orders", "there", "--ack", "sites=eu", "--deadline", "120s"]).ok();
    let args = ["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"];
    assert_eq!(federation.run("eu/edge", &args).ok().out, "there\n");
    // A relay, too.
    operated.operate("hub/relay", &["drain"]).ok();
    assert_eq!(operated.get("hub/relay", "/readyz").0, 503);
    for node in ["hub/relay", "eu/edge"] {
        let back = operated.operate(node, &["drain", "--undo"]).ok().out;
        assert_eq!(back, "the node is in use again\n");
        wait_for("ready", || operated.get(node, "/readyz").0 == 200);
    }
    // Who did that can be read by those who may do it; the drained node stored it, too.
    let trail = ["sub", "_audit/#", "--from", "earliest", "--until-end", "--timeout", "120s"];
    federation.run("eu/edge", &trail).failed(5, "never done for unknown callers");
    let trail = operated.operate("eu/edge", &[&trail[..], &["--origin", "eu"]].concat()).ok().out;
    let told: Vec<serde_json::Value> = trail.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = told.iter().map(|r| ["who", "call", "detail"].map(|key| r[key].as_str().unwrap())).collect();
    assert_eq!(
        told,
        [
            ["anonymous", "Drain", "not looked at"],
            ["token:operator", "Drain", "this node"],
            ["token:operator", "Drain", "undo"]
        ],
        "{trail}"
    );
    federation.run("eu/edge", &["pub", "orders", "here", "--ack", "sites=us", "--deadline", "120s"]).ok();
}

/// A segment that never ends, in place of one that takes long to read.
#[test]
fn a_paused_link_waits_at_both_ends_and_loses_nothing() {
    let operated = Operated::start();
    let federation = &operated.federation;
    operated.operate("eu/edge", &["link", "pause", "hub/nobody"]).failed(1, "the peers known here are hub/relay");
    operated.operate("eu/edge", &["link", "pause", "nonsense"]).failed(1, "SITE/NODE");
    operated.operate("hub/relay", &["link", "pause", "eu/edge"]).ok();
    let reason = "paused: by token:operator at hub/relay";
    for (node, peer) in [("hub/relay", "eu/edge"), ("eu/edge", "hub/relay")] {
        wait_for("the pause is shown", || operated.link(node, peer)["state"] == "paused");
        assert_eq!(operated.link(node, peer)["reason"], reason, "{node}");
    }
    assert!(operated.get("eu/edge", "/metrics").1.contains("seaway_links{state=\"paused\"} 1\n"));
    let sent = lines(500, "eu");
    federation.run_with("eu/edge", &["pub", "orders", "--mode", "async"], sent.as_bytes()).ok();
    let resumed = operated.operate("hub/relay", &["link", "resume", "eu/edge"]).ok().out;
    assert!(resumed.contains("may come up again"), "{resumed}");
    let args = ["sub", "orders", "--from", "earliest", "--count", "500", "--timeout", "120s"];
    assert_eq!(federation.run("us/edge", &args).ok().out, sent);
    assert_eq!(operated.link("eu/edge", "hub/relay")["state"], "live");
}

#[test]
fn a_log_level_is_set_for_a_time_and_nonsense_refused() {
    let mut operated = Operated::start();
    operated.operate("eu/edge", &["debug", "level", "seaway_reley=debug"]).failed(1, "did you mean \"seaway_relay\"?");
    operated.operate("eu/edge", &["debug", "level", "seaway_relay=loud"]).failed(1, "\"loud\" is no level");
    operated.operate("eu/edge", &["debug", "level", "debug", "--for", "48h"]).failed(1, "up to 24 hours");
    operated.federation.run("eu/edge", &["debug", "level", "debug"]).failed(5, "unknown callers");
    let shown = operated.operate("eu/edge", &["debug", "level", "h2=trace", "--for", "2s"]).ok().out;
    assert!(shown.contains("configured: info") && shown.contains("token:operator"), "{shown}");
    operated.federation.wait_logged("eu/edge", 0, "TRACE");
    operated.federation.wait_logged("eu/edge", 0, "has fallen back");
    let shown = operated.operate("eu/edge", &["debug", "level"]).ok().out;
    assert_eq!(shown, "configured: info\n");
}

#[test]
fn a_reload_is_whole_or_not_at_all() {
    let operated = Operated::start();
    let whole = operated.config("eu/edge");
    let path = operated.federation.cluster.member("eu/edge").unwrap().config().to_path_buf();
    let reload = || operated.operate("eu/edge", &["config", "reload"]);
    let done = reload().ok().out;
    assert_eq!(done, "certificates, keys, authorities and tokens were read anew\n");
    // Rights that would be taken away, and a mistake below: nothing changes.
    let line = 1 + whole.lines().position(|line| line.starts_with("listen = \"127.0.0.1:")).unwrap();
    for (from, to, says) in [
        ("publish = [\"#\"]", "publish = [\"#\"", "eu-edge.toml:"),
        ("listen =", "lisen =", format!("eu-edge.toml:{line}: unknown key \"lisen\"").as_str()),
        ("cert_file = \"eu-edge.pem\"", "cert_file = \"gone.pem\"", "gone.pem cannot be read"),
        ("[admin]", "[logging]\nlevel = \"loud\"\n[admin]", "\"loud\" is no level"),
    ] {
        let broken = whole.replacen("subscribe = [\"#\"]", "subscribe = []", 1).replacen(from, to, 1);
        std::fs::write(&path, broken).unwrap();
        reload().failed(1, "nothing was changed: ");
        reload().failed(1, says);
    }
    let read = ["sub", "test-join", "--from", "earliest", "--count", "1", "--timeout", "120s"];
    operated.federation.run("eu/edge", &read).ok();
    // What can change does, the rest is named.
    let changed = whole.replacen("subscribe = [\"#\"]", "subscribe = [\"orders\"]", 1);
    let changed = changed.replacen("[link]", "[link]\ncredit = \"64 MiB\"", 1);
    std::fs::write(&path, changed).unwrap();
    let done = reload();
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.out.contains("in use now: door.anonymous.subscribe"), "{done:?}");
    assert!(done.out.contains("needs a restart: link.credit"), "{done:?}");
    operated.federation.run("eu/edge", &read).failed(5, "lacks the right to subscribe to test-join");
}

/// Renews every node's certificate under another authority, a step at a time, as README says.
fn rotate(operated: &Operated) {
    let reload_all = || {
        for node in NODES {
            operated.operate(node, &["config", "reload"]).ok();
        }
    };
    let (first, second) = (std::fs::read(operated.at("ca/ca.pem")).unwrap(), operated.at("ca2/ca.pem"));
    seaway(&["ca", "init", "--dir", &operated.at("ca2"), "--federation", "bench"]).ok();
    let second = std::fs::read(second).unwrap();
    std::fs::write(operated.at("ca/ca.pem"), [first, second.clone()].concat()).unwrap();
    reload_all();
    for node in NODES {
        let (dir, out) = (operated.at("ca2"), operated.at("."));
        seaway(&["ca", "issue", node, "--dir", &dir, "--out", &operated.at("renewed"), "--host", "localhost"]).ok();
        let files = node.replace('/', "-");
        for end in ["pem", "key"] {
            std::fs::copy(format!("{out}/renewed/{files}.{end}"), format!("{out}/{files}.{end}")).unwrap();
        }
    }
    reload_all();
    std::fs::write(operated.at("ca/ca.pem"), second).unwrap();
    reload_all();
}

fn read_on(mut child: Child, count: usize) -> String {
    let mut out = child.stdout.take().unwrap();
    let (mut text, mut part) = (Vec::new(), vec![0; 1 << 16]);
    let until = Instant::now() + PATIENCE;
    while text.iter().filter(|byte| **byte == b'\n').count() < count {
        assert!(Instant::now() < until, "{} bytes have come", text.len());
        match out.read(&mut part).unwrap() {
            0 => break,
            read => text.extend_from_slice(part.get(..read).unwrap()),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn every_certificate_and_the_authority_are_renewed_under_load_without_a_link_going_down() {
    let operated = Operated::start();
    let federation = &operated.federation;
    let pairs =
        [("eu/edge", "hub/relay"), ("us/edge", "hub/relay"), ("hub/relay", "eu/edge"), ("hub/relay", "us/edge")];
    let state = || {
        pairs.map(|(node, peer)| operated.link(node, peer)).map(|l| (l["up_since"].clone(), l["reconnects"].clone()))
    };
    let before = state();
    let (mut publishing, feed) =
        federation.feed("eu/edge", &["pub", "orders", "--ack", "sites=us", "--deadline", "150s"], "eu");
    let reading = federation.spawn("us/edge", &["sub", "orders", "--from", "earliest"], b"");
    rotate(&operated);
    feed.assert_running(&mut publishing);
    let sent = feed.stop();
    finish(publishing, &["pub"]).ok();
    assert!(read_on(reading, sent.lines().count()) == sent, "what was read is not what was sent");
    assert_eq!(state(), before, "no link was made anew");
    assert!(before.iter().all(|(_, reconnects)| *reconnects == 0), "{before:?}");
    // The next link is made with what is new alone: the old authority is believed nowhere.
    for node in ["eu/edge", "us/edge"] {
        operated.operate(node, &["link", "pause", "hub/relay"]).ok();
        operated.operate(node, &["link", "resume", "hub/relay"]).ok();
        wait_for("the link is live again", || operated.link(node, "hub/relay")["state"] == "live");
    }
    federation.run("eu/edge", &["pub", "orders", "last", "--ack", "sites=us", "--deadline", "120s"]).ok();
}
