//! Sites that lost their past, are there twice, or whose certificates ran out, with real processes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use seaway_edge_broker::bench::cluster::Kind;
use seaway_tests::cluster::{Federation, PATIENCE, lines, seaway};

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// How often each line is there.
fn counted(text: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        *counts.entry(line).or_insert(0) += 1;
    }
    counts
}

fn stored(federation: &Federation, node: &str) -> String {
    federation.run(node, &["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"]).out
}

#[test]
fn a_data_directory_restored_from_an_old_copy_overwrites_nothing_and_gets_the_difference_back() {
    let mut federation = Federation::two_sites_and_a_relay();
    let publish = |federation: &Federation, tag: &str, count: usize| {
        let args = ["pub", "orders", "--ack", "sites=us", "--deadline", "150s"];
        federation.run_with("eu/edge", &args, lines(count, tag).as_bytes()).ok();
    };
    publish(&federation, "first", 300);
    assert_eq!(federation.cluster.member_mut("eu/edge").unwrap().stop(), Some(0));
    let data = federation.cluster.member("eu/edge").unwrap().data_dir();
    let old = federation.cluster.dir.join("old-copy");
    copy_dir(&data, &old);
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    publish(&federation, "second", 200);
    federation.cluster.member_mut("eu/edge").unwrap().kill();

    // The copy knows nothing of the second part. It publishes at once, before anybody can tell it what it lost.
    federation.cluster.member_mut("hub/relay").unwrap().kill();
    fs::remove_dir_all(&data).unwrap();
    copy_dir(&old, &data);
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    federation.run_with("eu/edge", &["pub", "orders"], lines(50, "alone").as_bytes()).ok();
    federation.cluster.start("hub/relay").unwrap();
    publish(&federation, "third", 100);

    let all = [("first", 300), ("second", 200), ("alone", 50), ("third", 100)];
    let all: String = all.iter().map(|(tag, count)| lines(*count, tag)).collect();
    let whole = counted(&all);
    assert_eq!(whole.values().max(), Some(&1));
    for node in ["eu/edge", "us/edge"] {
        wait_for(&format!("{node} has everything"), || stored(&federation, node).lines().count() >= whole.len());
        assert!(counted(&stored(&federation, node)) == whole, "{node}: something is there twice, or is wrong");
    }
    let status = federation.run("eu/edge", &["status"]).ok().out;
    assert!(status.contains("origin-went-back"), "{status}");
    for node in ["eu/edge", "us/edge"] {
        let status = federation.run(node, &["status"]).ok().out;
        assert!(status.contains("has a fork up to"), "{node}: {status}");
    }
}

#[test]
fn the_second_edge_broker_of_a_site_takes_no_messages_and_everybody_says_so() {
    let mut federation = Federation::two_sites_and_a_relay();
    federation.cluster.add("us/twin", Kind::Edge, &["hub/relay"], "").unwrap();
    federation.cluster.start("us/twin").unwrap();
    federation.wait_up("us/twin");
    let alarmed = |node: &str| federation.run(node, &["status"]).ok().out.contains("two-edges-one-site");
    for node in ["hub/relay", "eu/edge", "us/edge", "us/twin"] {
        wait_for(&format!("{node} tells of it"), || alarmed(node));
    }
    // It notices with its next look at itself.
    wait_for("the twin is not ready", || !federation.run("us/twin", &["status"]).ok().out.contains(": ready"));
    let refused = federation.run("us/twin", &["pub", "orders", "y", "--deadline", "1s"]);
    assert!(refused.code != 0 && refused.err.contains("us/edge"), "{}", refused.err);
    let refused = federation.run("us/twin", &["pub", "orders", "z", "--mode", "one-way"]);
    assert!(refused.code != 0 && refused.err.contains("us/edge"), "one-way is refused too: {}", refused.err);
    federation.run("us/edge", &["pub", "orders", "x"]).ok();
    assert_eq!(federation.cluster.member_mut("us/twin").unwrap().stop(), Some(0));
    wait_for("it is over", || !federation.run("us/edge", &["status"]).ok().out.contains("two-edges-one-site"));
    wait_for("eu has it once", || stored(&federation, "eu/edge") == "x\n");
}

#[test]
fn a_certificate_that_ran_out_is_named_and_a_new_one_mends_it() {
    let mut federation = Federation::empty();
    federation.cluster.add("hub/relay", Kind::Relay, &[], "").unwrap();
    federation.cluster.add("eu/edge", Kind::Edge, &["hub/relay"], "").unwrap();
    let dir = federation.cluster.dir.clone();
    let at = |name: &str| dir.join(name).display().to_string();
    let issue = |lifetime: &str, into: &str| {
        seaway(&["ca", "issue", "eu/edge", "--dir", &at("ca"), "--out", &at(into), "--lifetime", lifetime]).ok();
        for file in ["eu-edge.pem", "eu-edge.key"] {
            fs::copy(at(&format!("{into}/{file}")), at(file)).unwrap();
        }
    };
    issue("2s", "short");
    // How long a second is, only the clock can tell; that it is over is seen, not assumed.
    std::thread::sleep(Duration::from_secs(3));
    federation.cluster.start("hub/relay").unwrap();
    federation.cluster.start("eu/edge").unwrap();
    let edge = federation.cluster.member_mut("eu/edge").unwrap();
    assert_eq!(edge.wait(), Some(1), "{}", edge.logged());
    let said = edge.logged();
    assert!(said.contains("eu-edge.pem") && said.contains("expired"), "{said}");
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");

    issue("1 day", "renewed");
    federation.cluster.start("eu/edge").unwrap();
    federation.wait_up("eu/edge");
    wait_for("the link is live", || federation.run("eu/edge", &["link", "ls"]).ok().out.contains("live"));
}
