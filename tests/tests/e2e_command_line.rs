//! End to end: what a user meets at the command line, mistakes first of all.

#![allow(clippy::unwrap_used, reason = "tests")]

use seaway_edge_broker::bench::cluster::Kind;
use seaway_tests::cluster::{Federation, PATIENCE, lines, seaway};

fn signal(name: &str, pid: u32) {
    let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn wrong_usage_is_answered_without_a_server() {
    seaway(&["pub", "a//b", "x"]).failed(2, "empty level");
    seaway(&["pub", "", "x"]).failed(2, "must not be empty");
    seaway(&["pub", &"x".repeat(1025), "x"]).failed(2, "1024 bytes");
    seaway(&["pub", "a/+", "x"]).failed(2, "wildcards");
    seaway(&["sub", ""]).failed(2, "'#'");
    seaway(&["sub", "a/#/b"]).failed(2, "last level");
    seaway(&["sub", "a", "--group", "g", "--until-end"]).failed(2, "--until-end");
    seaway(&["sub", "a", "--from", "yesterday"]).failed(2, "earliest, latest, a time");
    seaway(&["pub", "a", "--ack", "everyone", "x"]).failed(2, "sites=a,b");
    seaway(&["pub", "a", "--mode", "async", "--ack", "all", "x"]).failed(2, "--mode sync");
    seaway(&["pub", "a", "--server", "ftp://x", "x"]).failed(2, "http://HOST:PORT");
    seaway(&["status", "--server", "https://localhost:1"]).failed(2, "--tls-ca");
    seaway(&["sub"]).failed(2, "begins a comment in a shell");
    seaway(&["ca", "client", "x", "--dir", "nowhere", "--host", "h"]).failed(2, "--host");
    seaway(&["token", "create", "x", "--admin", "--expires-in", "0s"]).failed(2, "expired already");
    seaway(&["token", "create", "a b", "--admin"]).failed(2, "must be 1 to");
    seaway(&["sub", "x", "--group", "a b"]).failed(2, "must be 1 to");
    seaway(&["frobnicate"]).failed(2, "frobnicate");
    seaway(&["status", "--server", "http://127.0.0.1:1"]).failed(1, "cannot reach http://127.0.0.1:1");
    let script = seaway(&["completions", "bash"]).ok().out;
    assert!(script.contains("complete -F _seaway"), "{script:.200}");
}

#[test]
fn a_configuration_mistake_names_file_line_and_the_nearest_key() {
    let mut federation = Federation::empty();
    federation.cluster.add("eu/edge", Kind::Edge, &[], "").unwrap();
    let config = federation.cluster.member("eu/edge").unwrap().config().display().to_string();
    let text = std::fs::read_to_string(&config).unwrap();
    seaway(&["config", "check", &config]).ok();
    for (from, to, says) in [
        ("cert_file = \"eu-edge.pem\"", "cert_file = \"gone.pem\"", "gone.pem cannot be read"),
        ("key_file = \"eu-edge.key\"", "key_file = \"ca/ca.key\"", "does not fit the certificate"),
        ("site = \"eu\"", "site = \"us\"", "is the certificate of"),
        ("federation = \"bench\"", "federation = \"other\"", "is the certificate of"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        let wrong = federation.file("would-not-start.toml", text.replace(from, to).as_bytes());
        seaway(&["config", "check", &wrong]).failed(1, says);
    }
    let line = 1 + text.lines().position(|line| line.starts_with("data_dir")).unwrap();
    let wrong = federation.file("wrong.toml", text.replace("data_dir", "data_dri").as_bytes());
    let expected = format!("wrong.toml:{line}: unknown key \"data_dri\" in [node]; did you mean \"data_dir\"?");
    seaway(&["config", "check", &wrong]).failed(1, &expected);
    seaway(&["edge", "--config", &wrong]).failed(1, &expected);
    seaway(&["relay", "--config", &config]).failed(1, "run 'seaway edge' instead");
    seaway(&["edge", "--config", "/nowhere.toml"]).failed(1, "/nowhere.toml");
    let shown = seaway(&["config", "show", &config, "--set", "log.segment_size=4 MiB"]).ok().out;
    assert!(shown.contains("segment_size = \"4 MiB\""), "{shown}");
}

#[test]
fn a_node_that_cannot_start_says_why_in_one_sentence() {
    let mut federation = Federation::one_edge("");
    federation.cluster.add("us/edge", Kind::Edge, &[], "").unwrap();
    let eu = federation.cluster.member("eu/edge").unwrap();
    let us = federation.cluster.member("us/edge").unwrap();
    let (eu_config, us_config) = (eu.config().display().to_string(), us.config().display().to_string());
    let start = |set: &str| seaway(&["edge", "--config", &us_config, "--set", set]);
    // Its door's address in use, its link's address in use, another's directory, its own directory twice.
    let ran = start(&format!("door.listen=127.0.0.1:{}", eu.door_port)).failed(1, "choose another address");
    assert!(!ran.err.contains("the node is up"), "{}", ran.err);
    let ran = start(&format!("link.listen=127.0.0.1:{}", eu.link_port)).failed(1, &eu.link_port.to_string());
    assert!(!ran.err.contains("the node is up"), "{}", ran.err);
    seaway(&["edge", "--config", &eu_config]).failed(1, "in use by another process");
    seaway(&["log", "verify", &eu.data_dir().display().to_string()]).failed(1, "in use by another process");
    let foreign = format!("node.data_dir={}", eu.data_dir().display());
    federation.cluster.member_mut("eu/edge").unwrap().stop();
    start(&foreign).failed(1, "belongs to");
    // A certificate of somebody else.
    start("link.cert_file=eu-edge.pem").failed(1, "");
}

/// The state of a node's only link, over its door's TLS.
fn only_link(door: &[&str]) -> serde_json::Value {
    let shown = seaway(&[&["link", "ls", "--output", "json"], door].concat());
    let links: serde_json::Value = serde_json::from_str(&shown.out).unwrap_or_default();
    links.get(0).cloned().unwrap_or_default()
}

#[test]
fn sighup_reads_certificates_and_tokens_anew_and_keeps_what_stands() {
    let mut federation = Federation::empty();
    federation.cluster.add("hub/relay", Kind::Relay, &[], "").unwrap();
    federation.cluster.add("eu/edge", Kind::Edge, &["hub/relay"], "").unwrap();
    let dir = federation.cluster.dir.clone();
    let at = |name: &str| dir.join(name).display().to_string();
    let tokens = |name: &str| {
        format!("[[token]]\nname = \"{name}\"\ntoken = \"{name}-secret-secret-secret\"\npublish = [\"#\"]\n")
    };
    let token_file = federation.file("tokens.toml", tokens("old").as_bytes());
    for name in ["old", "new"] {
        federation.file(name, format!("{name}-secret-secret-secret").as_bytes());
    }
    let eu = federation.cluster.member("eu/edge").unwrap();
    let (config, url) = (eu.config().to_path_buf(), format!("https://127.0.0.1:{}", eu.door_port));
    let text = std::fs::read_to_string(&config).unwrap();
    let door = format!(
        "cert_file = \"eu-edge.pem\"\nkey_file = \"eu-edge.key\"\ntoken_file = \"{token_file}\"\n\n[door.anonymous]"
    );
    std::fs::write(&config, text.replace("[door.anonymous]", &door)).unwrap();
    federation.cluster.start("hub/relay").unwrap();
    federation.cluster.start("eu/edge").unwrap();

    // Another authority of the same federation, and a certificate of its own for eu.
    std::fs::copy(at("ca/ca.pem"), at("first.pem")).unwrap();
    let (second, first) = (at("ca2/ca.pem"), at("first.pem"));
    seaway(&["ca", "init", "--dir", &at("ca2"), "--federation", "bench"]).ok();
    let hosts = ["--host", "localhost", "--host", "127.0.0.1"];
    seaway(&[&["ca", "issue", "eu/edge", "--dir", &at("ca2"), "--out", &at("renewed")], &hosts[..]].concat()).ok();

    let by = |ca: &str| ["--server".to_string(), url.clone(), "--tls-ca".into(), ca.to_string()];
    let (by_first, by_second) = (by(&first), by(&second));
    let old = by_first.each_ref().map(String::as_str);
    let new = by_second.each_ref().map(String::as_str);
    wait_for("eu's link is live", || only_link(&old)["state"] == "live");
    let before = only_link(&old);
    let publish = |door: &[&str], token: &str| {
        seaway(&[&["pub", "a", "x", "--mode", "async", "--token-file", &at(token)], door].concat())
    };
    publish(&old, "old").ok();

    // A key that does not fit: nothing changes, the tokens neither.
    std::fs::copy(at("eu-edge.key"), at("kept.key")).unwrap();
    std::fs::copy(at("renewed/eu-edge.key"), at("eu-edge.key")).unwrap();
    std::fs::write(at("tokens.toml"), tokens("new")).unwrap();
    let hang_up = |federation: &Federation, node: &str, says: &str| {
        let member = federation.cluster.member(node).unwrap();
        let count = || member.logged().matches(says).count();
        let known = count();
        signal("HUP", member.pid().unwrap());
        wait_for(says, || count() > known);
    };
    hang_up(&federation, "eu/edge", "SIGHUP: nothing was changed");
    publish(&old, "old").ok();
    publish(&old, "new").failed(5, "not known");

    // Everything renewed.
    let both = [std::fs::read(at("first.pem")).unwrap(), std::fs::read(&second).unwrap()].concat();
    std::fs::write(at("ca/ca.pem"), both).unwrap();
    std::fs::copy(at("renewed/eu-edge.key"), at("eu-edge.key")).unwrap();
    std::fs::copy(at("renewed/eu-edge.pem"), at("eu-edge.pem")).unwrap();
    hang_up(&federation, "eu/edge", "were read anew");
    publish(&new, "new").ok();
    publish(&new, "old").failed(5, "not known");
    seaway(&[&["status"], &old[..]].concat()).failed(1, "cannot reach");
    let after = only_link(&new);
    assert_eq!(after["state"], "live");
    assert_eq!((&after["up_since"], &after["reconnects"]), (&before["up_since"], &before["reconnects"]), "{after}");

    // The next link shows the new certificate: the relay believes only its authority now.
    let relay = federation.cluster.member("hub/relay").unwrap().config().to_path_buf();
    let text = std::fs::read_to_string(&relay).unwrap();
    std::fs::write(&relay, text.replace("ca_file = \"ca/ca.pem\"", "ca_file = \"ca2/ca.pem\"")).unwrap();
    hang_up(&federation, "hub/relay", "applied=\"link.ca_file\"");
    assert_eq!(federation.cluster.member_mut("hub/relay").unwrap().stop(), Some(0));
    federation.cluster.start("hub/relay").unwrap();
    wait_for("the link is live again", || {
        let link = only_link(&new);
        link["state"] == "live" && link["reconnects"] != before["reconnects"]
    });
}

#[test]
fn a_file_that_never_comes_to_its_end_keeps_no_node_from_stopping() {
    let mut federation = Federation::one_edge("");
    let file = federation.cluster.dir.join("eu-edge.pem");
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    let eu = federation.cluster.member("eu/edge").unwrap();
    wait_for("the files are being read", || {
        signal("HUP", eu.pid().unwrap());
        eu.logged().contains("are being read at present")
    });
    assert_eq!(federation.cluster.member_mut("eu/edge").unwrap().stop(), Some(0));
}

#[test]
fn positions_of_a_group_survive_a_restart() {
    let mut federation = Federation::one_edge("");
    federation.run_with("eu/edge", &["pub", "jobs"], lines(10, "job").as_bytes()).ok();
    let take = |federation: &Federation, count: &str| {
        let args = ["sub", "jobs", "--group", "workers", "--from", "earliest", "--count", count, "--timeout", "120s"];
        federation.run("eu/edge", &args).ok().out
    };
    assert_eq!(take(&federation, "4"), lines(4, "job"));
    assert_eq!(federation.cluster.member_mut("eu/edge").unwrap().stop(), Some(0));
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    let rest: String = lines(10, "job").lines().skip(4).map(|line| format!("{line}\n")).collect();
    assert_eq!(take(&federation, "6"), rest);
    let shown = federation.run("eu/edge", &["group", "ls"]).ok().out;
    assert!(shown.contains("workers"), "{shown}");
    federation.run("eu/edge", &["group", "rm", "workers"]).failed(5, "token or certificate");
}

#[test]
fn json_goes_round_unchanged_and_positions_can_be_given_back() {
    let federation = Federation::one_edge("");
    let binary: Vec<u8> = (0..=255).collect();
    federation.run_with("eu/edge", &["pub", "raw/bin", "--whole", "--key", "k", "--header", "h=v"], &binary).ok();
    federation.run("eu/edge", &["pub", "raw/text", "plain"]).ok();
    let json = federation
        .run("eu/edge", &["sub", "raw/#", "--from", "earliest", "--count", "2", "--output", "json", "--timeout", "60s"])
        .ok()
        .out;
    federation.run_with("eu/edge", &["pub", "--input", "json"], json.as_bytes()).ok();
    let all = federation
        .run("eu/edge", &["sub", "raw/#", "--from", "earliest", "--until-end", "--output", "json", "--timeout", "60s"])
        .ok()
        .out;
    let parsed: Vec<serde_json::Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(parsed.len(), 4, "{all}");
    for field in ["path", "key", "headers", "payload", "payload_base64"] {
        assert_eq!(parsed[0].get(field), parsed[2].get(field), "{field}");
        assert_eq!(parsed[1].get(field), parsed[3].get(field), "{field}");
    }
    assert!(parsed[0].get("payload_base64").is_some() && parsed[1]["payload"] == "plain");
    let position = parsed[3]["position"].as_str().unwrap();
    let again =
        federation.run("eu/edge", &["sub", "raw/#", "--from", position, "--until-end", "--timeout", "60s"]).ok();
    assert_eq!(again.out, "plain\n");
    // A place that never was, a log that is not here, and a place after the end: read, or not, but never in silence.
    let from = |position: &str| {
        federation.run("eu/edge", &["sub", "raw/#", "--from", position, "--until-end", "--timeout", "60s"]).ok().err
    };
    let strange = from("raw@eu#1=1.1234567890abcdef:3");
    assert!(strange.contains("does not have the place") || strange.contains("before that is reached"), "{strange}");
    assert!(from("raw@us#1=1.1234567890abcdef:3").contains("is not held here"));
    let (log, place) = position.split_once('=').unwrap();
    let after = format!("{log}={}:99999", place.rsplit_once(':').unwrap().0);
    assert!(from(&after).contains("before that is reached"));
    let last = federation.run("eu/edge", &["sub", "raw/#", "--last", "1", "--until-end", "--timeout", "60s"]).ok();
    assert_eq!(last.out, "plain\n");
    federation.run("eu/edge", &["sub", "quiet", "--count", "1", "--timeout", "300ms"]).failed(4, "time");
    let bad = b"{\"payload\":\"good\",\"path\":\"raw/a\"}\n{\"payload\":5}\n";
    federation.run_with("eu/edge", &["pub", "--input", "json"], bad).failed(1, "input line 2");
}

#[test]
fn rights_and_limits_refuse_with_exit_code_5() {
    let more = "[[topic]]\npattern = \"small\"\nmessage_size_max = \"1 KiB\"\n";
    let mut federation = Federation::empty();
    let tokens = "[[token]]\nname = \"shop\"\ntoken = \"secret-secret-secret-secret-1234\"\npublish = [\"orders/#\", \"small\"]\nsubscribe = [\"orders/#\"]\n";
    let token_file = federation.file("tokens.toml", tokens.as_bytes());
    federation.cluster.add("eu/edge", Kind::Edge, &[], more).unwrap();
    let config = federation.cluster.member("eu/edge").unwrap().config().to_path_buf();
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("[door.anonymous]", &format!("token_file = \"{token_file}\"\n\n[door.anonymous]"));
    std::fs::write(&config, text).unwrap();
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    let shown = federation.file("token", b"secret-secret-secret-secret-1234\n");
    let with = |args: &[&str]| federation.run("eu/edge", &[args, &["--token-file", &shown]].concat());
    with(&["pub", "orders/1", "x"]).ok();
    with(&["pub", "other", "x"]).failed(5, "lacks the right to publish to other");
    with(&["sub", "#", "--count", "1"]).failed(5, "lacks the right to subscribe");
    with(&["status"]).failed(5, "admin right");
    with(&["pub", "small", &"x".repeat(2000)]).failed(5, "message 1");
    with(&["pub", "_internal", "x"]).failed(5, "");
    // More than any topic takes: as a whole, as a line that ends or does not, as one of several, and by its key and headers.
    let long = vec![b'x'; (16 << 20) + 1];
    let input = |args: &[&str], text: &[u8]| {
        federation.run_with("eu/edge", &[args, &["--token-file", &shown]].concat(), text).failed(5, "than")
    };
    input(&["pub", "orders", "--whole"], &long);
    input(&["pub", "orders"], &long);
    let several = [b"short\n", &long[..], b"\n", &long[..], b"\nshort\n"].concat();
    let ran = input(&["pub", "orders"], &several);
    assert!(ran.err.contains("line 2") && ran.err.contains("1 message stored"), "{}", ran.err);
    input(&["pub", "orders", "--whole", "--header", "name=value"], &long[1..]);
    let object = format!("{{\"path\":\"orders\",\"payload\":\"{}\"}}\n", "x".repeat(long.len()));
    input(&["pub", "--input", "json"], object.as_bytes());
    let wrong = federation.file("wrong-token", b"not-the-secret\n");
    federation.run("eu/edge", &["status", "--token-file", &wrong]).failed(5, "");
}

#[test]
fn damage_in_a_stopped_log_is_reported_with_file_and_position() {
    let mut federation = Federation::one_edge("");
    federation.run_with("eu/edge", &["pub", "orders"], lines(5000, "eu").as_bytes()).ok();
    federation.run_with("eu/edge", &["pub", "orders"], lines(5000, "more").as_bytes()).ok();
    let data = federation.cluster.member("eu/edge").unwrap().data_dir();
    federation.cluster.member_mut("eu/edge").unwrap().stop();
    let dir = data.display().to_string();
    let whole = seaway(&["log", "verify", &dir]).ok().out;
    assert!(whole.contains("no damage"), "{whole}");
    let dump = seaway(&["log", "dump", &dir, "--topic", "orders", "--messages"]).ok().out;
    assert!(dump.contains("more line 4999"));
    let files: Vec<_> = walk(&data);
    let biggest = files.iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(biggest).unwrap();
    let needle = b"eu line 2500";
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at] ^= 1;
    std::fs::write(biggest, bytes).unwrap();
    let ran = seaway(&["log", "verify", &dir]).failed(1, "damaged range");
    assert!(ran.out.contains(biggest.file_name().unwrap().to_str().unwrap()), "{}", ran.out);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
