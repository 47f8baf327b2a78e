use std::path::Path;

use proptest::prelude::*;
use seaway_relay::node::limits::{LimitBook, OnExceed};

use super::*;

const EDGE: &str = r##"
[node]
kind = "edge"
federation = "acme"
site = "eu"
name = "edge"
data_dir = "data"

[link]
listen = "127.0.0.1:7400"
cert_file = "eu.pem"
key_file = "eu.key"
ca_file = "/etc/ca.pem"

[[link.peer]]
node = "hub/relay"
address = "localhost:7401"
cost = 3

[door]
listen = "127.0.0.1:7500"

[[topic]]
pattern = "orders"
queues = 4
compression = "lz4"
retention_age = "7 days"
replicate = ["us"]

[[want]]
name = "all"
pattern = "#"
"##;

fn load(text: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, String> {
    let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
    let env = env.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    let file = SourceFile::parse(Path::new("conf/edge.toml"), text.to_string()).map_err(|e| e.to_string())?;
    let flags = Overrides::from_flags(&flags).map_err(|e| e.to_string())?;
    let loaded = Loaded::merge(file, Overrides::from_env(env), flags).map_err(|e| e.to_string())?;
    loaded.node_config().map_err(|e| e.to_string())?;
    Ok(loaded)
}

fn mistake(from: &str, to: &str) -> String {
    assert!(EDGE.contains(from), "{from}");
    load(&EDGE.replacen(from, to, 1), &[], &[]).expect_err("a mistake")
}

#[test]
fn what_is_set_reaches_the_node() {
    let node = load(EDGE, &[], &[]).unwrap().node_config().unwrap();
    assert_eq!(node.name.to_string(), "eu/edge");
    assert_eq!(node.data_dir, Path::new("conf/data"));
    assert_eq!(node.tls.ca, Path::new("/etc/ca.pem"));
    assert_eq!(node.dial, [("hub/relay".parse().unwrap(), "localhost:7401".to_string())]);
    assert_eq!(node.costs, [("hub/relay".parse().unwrap(), 3)]);
    let (pattern, topic) = &node.topics[0];
    assert_eq!((pattern.as_str(), topic.queues), ("orders", 4));
    assert_eq!(topic.retention_age, Some(std::time::Duration::from_secs(7 * 86_400)));
    assert_eq!(node.replicate[0].1, Some(vec!["us".parse().unwrap()]));
    assert_eq!(node.wants[0].id, "config/all");
}

#[test]
fn a_mistake_says_line_found_and_expected() {
    let cases = [
        (
            ("listen = \"127.0.0.1:7400\"", "lisen = 1"),
            "conf/edge.toml:10: unknown key \"lisen\" in [link]; did you mean \"listen\"?",
        ),
        (("[door]", "[dor]"), "conf/edge.toml:20: unknown section \"dor\"; did you mean \"door\"?"),
        // Although without it another key is missing, too.
        (
            ("[door]\n", "[dor]\nx = 1\n[door.limits]\n"),
            "conf/edge.toml:20: unknown section \"dor\"; did you mean \"door\"?",
        ),
        (
            ("queues = 4", "queus = 4"),
            "conf/edge.toml:25: unknown key \"queus\" in [topic[1]]; did you mean \"queues\"?",
        ),
        (
            ("queues = 4", "queues = \"four\""),
            "conf/edge.toml:25: topic[1].queues is \"four\", but a whole number is expected",
        ),
        (("queues = 4", "queues = 100000"), "conf/edge.toml:25: topic[1].queues is 100000, but 1 to 1024 is expected"),
        (("queues = 4", "queues = 0"), "conf/edge.toml:25: topic[1].queues is 0, but 1 to 1024 is expected"),
        (
            ("site = \"eu\"", "site = 5"),
            "conf/edge.toml:5: node.site is 5, but a site's name such as \"eu-1\" is expected",
        ),
        (
            ("kind = \"edge\"", "kind = \"hub\""),
            "conf/edge.toml:3: node.kind is \"hub\", but one of \"edge\", \"relay\" is expected",
        ),
        (("site = \"eu\"\n", ""), "conf/edge.toml:2: key \"site\" is missing in [node]; add it"),
        (
            ("cost = 3", "cost = 0"),
            "conf/edge.toml:18: link.peer[1].cost is 0, but a whole number of at least 1 is expected",
        ),
        (
            ("\"lz4\"", "\"gzip\""),
            "conf/edge.toml:26: topic[1].compression is \"gzip\", but \"none\", \"lz4\" or \"zstd\" is expected",
        ),
        (("[node]", "[node"), "conf/edge.toml:2: this is not TOML"),
        (("name = \"all\"", "name = \"\""), "conf/edge.toml:31: want[1].name must have"),
    ];
    for ((from, to), expected) in cases {
        let found = mistake(from, to);
        assert!(found.starts_with(expected), "\nfound    {found}\nexpected {expected}");
    }
}

#[test]
fn a_site_that_is_no_label_says_why() {
    let found = mistake("site = \"eu\"", "site = \"EU\"");
    assert!(found.contains("edge.toml:5: node.site is \"EU\", but a site's name"), "{found}");
    assert!(found.contains("DNS label"), "{found}");
}

#[test]
fn the_environment_wins_over_the_file_and_flags_over_both() {
    let env = [
        ("SEAWAY_NODE__SITE", "us"),
        ("SEAWAY_PORT_7400_TCP", "x"),
        ("SEAWAY_LINK__LISTEN", "0.0.0.0:9"),
        ("HOME", "/"),
    ];
    let node = load(EDGE, &env, &["node.site=asia"]).unwrap().node_config().unwrap();
    assert_eq!(node.name.to_string(), "asia/edge");
    assert_eq!(node.listen, Some("0.0.0.0:9".parse().unwrap()));
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let found = load(EDGE, &[("SEAWAY_NODE__SIET", "us")], &[]).expect_err("misspelt");
    assert_eq!(found, "environment variable SEAWAY_NODE__SIET: unknown key \"siet\" in [node]; did you mean \"site\"?");
    let found = load(EDGE, &[("SEAWAY_LINK__PROBE_INTERVAL", "soon")], &[]).expect_err("no duration");
    assert!(
        found.starts_with(
            "environment variable SEAWAY_LINK__PROBE_INTERVAL: link.probe_interval is \"soon\", but a duration"
        ),
        "{found}"
    );
    let found = load(EDGE, &[], &["log.segment_size=1"]).expect_err("too small");
    assert_eq!(found, "--set log.segment_size: log.segment_size is \"1 B\", but at least \"1 MiB\" is expected");
    let found = load(EDGE, &[], &["log.segment_size=100 TiB"]).expect_err("too large");
    assert_eq!(found, "--set log.segment_size: log.segment_size is \"100 TiB\", but at most \"16 GiB\" is expected");
    assert!(load(EDGE, &[], &["segment_size"]).expect_err("no value").contains("--set SECTION.KEY=VALUE"));
}

#[test]
fn hold_back_has_bounds_that_make_sense_and_refuses_for_named_sites_only() {
    let with = |text: &str| load(&format!("{EDGE}\n{text}"), &[], &[]);
    let right = "[hold_back]\nsize = \"4 GiB\"\n[[hold_back.rule]]\nsites = [\"us\"]\ntopics = [\"orders\"]\nsize_max = \"1 GiB\"\n\
        age_max = \"2 days\"\npolicy = \"refuse\"\n";
    let held = with(right).unwrap().node_config().unwrap().hold_back;
    assert_eq!(held.bytes_max, Some(4 << 30));
    assert!(held.rules.len() == 1 && held.rules[0].refuse && held.rules[0].bytes_max == Some(1 << 30));
    assert_eq!(load(EDGE, &[], &[]).unwrap().node_config().unwrap().hold_back, Default::default());
    for (text, says) in [
        ("[hold_back]\nsize = \"0 B\"", "conf/edge.toml:35: hold_back.size is 0"),
        ("[hold_back]\nsize = \"99999999999999999999 B\"", "conf/edge.toml:35: hold_back.size"),
        (
            "[[hold_back.rule]]\nsize_max = \"1 B\"\npolicy = \"refuse\"",
            "conf/edge.toml:36: hold_back.rule[1].policy is \"refuse\"",
        ),
        ("[[hold_back.rule]]\nsites = [\"us\"]", "hold_back.rule[1].policy has no bound"),
        ("[[hold_back.rule]]\nage_max = \"0 s\"", "hold_back.rule[1].age_max is 0"),
        ("[[hold_back.rule]]\nsize_max = \"0 B\"", "hold_back.rule[1].size_max is 0"),
        (
            "[[hold_back.rule]]\nsize_max = \"1 B\"\ntopics = [\"a/b\"]",
            "hold_back.rule[1].topics have more than one level",
        ),
        (&right.replace("1 GiB", "5 GiB"), "hold_back.rule[1].size_max is more than hold_back.size"),
    ] {
        let found = with(text).map(drop).expect_err(text);
        assert!(found.contains(says), "{found}\n{says}");
    }
}

#[test]
fn rates_reach_the_node_and_make_sense() {
    let with = |link: &str, peer: &str, topic: &str| {
        let text = EDGE.replacen("ca_file", &format!("{link}\nca_file"), 1);
        let text = text.replacen("cost = 3", &format!("cost = 3\n{peer}"), 1);
        load(&text.replacen("queues = 4", &format!("queues = 4\n{topic}"), 1), &[], &[])
    };
    let topic = "limits = { messages_per_s = 10, bytes_per_s = \"1 MiB\", on_exceed = \"refuse\" }";
    let loaded =
        with("send_rate = { bytes_per_s = \"4 MiB\" }", "receive_rate = { messages_per_s = 7 }", topic).unwrap();
    let book = LimitBook::new(loaded.node_config().unwrap().limits);
    let (hub, other) = (book.link(&"hub/relay".parse().unwrap()), book.link(&"x/y".parse().unwrap()));
    assert_eq!(hub.send.bytes.map(|rate| (rate.per_s.get(), rate.burst.get())), Some((4 << 20, 4 << 20)));
    assert_eq!((other.send, other.receive.messages), (hub.send, None));
    assert_eq!(hub.receive.messages.map(|rate| rate.per_s.get()), Some(7));
    let orders = book.topic(&"orders".parse().unwrap(), 1 << 20);
    assert_eq!((orders.messages.unwrap().per_s.get(), orders.on_exceed), (10, OnExceed::Refuse));
    assert!(!book.topic(&"bills".parse().unwrap(), 1 << 20).is_limited());
    for (wrong, says) in [
        ("{ bytes_per_s = 0 }", "topic[1].limits.bytes_per_s is 0, but at least \"1 B\""),
        ("{ bytes_per_s = -1 }", "topic[1].limits.bytes_per_s is -1, but a size"),
        ("{ bytes_per_s = \"99999999999999999999 B\" }", "topic[1].limits.bytes_per_s is \"99999999999999999999 B\""),
        ("{ messages_per_s = 0 }", "topic[1].limits.messages_per_s is 0, but a whole number of at least 1"),
        ("{ messages_per_s = -5 }", "topic[1].limits.messages_per_s is -5, but a whole number of at least 1"),
        ("{ messages_per_s = 99999999999999999999 }", "conf/edge.toml:28: this is not TOML: integer number overflowed"),
        ("{ messages_per_s = \"18446744073709551616\" }", "topic[1].limits.messages_per_s is \"18446744073709551616\""),
        ("{ messages_per_s = 1, messages_burst = 0 }", "topic[1].limits.messages_burst is 0"),
        ("{ messages_burst = 5 }", "topic[1].limits.messages_burst has no effect without a rate"),
        (
            "{ bytes_per_s = 5, bytes_burst = \"1 KiB\" }",
            "topic[1].limits.bytes_burst is 1024 bytes, less than the largest message",
        ),
        ("{ bytes_per_s = 1, bytes_burst = \"1 TiB\" }", "more than a hundred years"),
        ("{ bits_per_s = 1 }", "unknown key \"bits_per_s\" in [topic[1].limits]"),
        ("{ on_exceed = \"drop\" }", "topic[1].limits.on_exceed is \"drop\""),
    ] {
        let found = with("", "", &format!("limits = {wrong}")).map(drop).expect_err(wrong);
        assert!(found.contains(says) && found.starts_with("conf/edge.toml:2"), "{found}\n{says}");
    }
    for (wrong, says) in [
        ("send_rate = { bytes_per_s = 0 }", "conf/edge.toml:20: link.peer[1].send_rate.bytes_per_s is 0"),
        (
            "send_rate = { bytes_per_s = 5, bytes_burst = \"1 MiB\" }",
            "bytes_burst is 1048576 bytes, less than what a link needs",
        ),
        ("receive_rate = { bytes_per_s = 5, bytes_burst = \"2 MiB\" }", "the credit of one largest message"),
        (
            "send_rate = { bytes_per_s = 5, on_exceed = \"refuse\" }",
            "send_rate.on_exceed is \"refuse\", but a link only delays",
        ),
        ("send_rate = { messages_per_s = 99999999999999999999 }", "conf/edge.toml:20: this is not TOML"),
    ] {
        let found = with("", wrong, "").map(drop).expect_err(wrong);
        assert!(found.contains(says), "{found}\n{says}");
    }
}

#[test]
fn a_relay_has_a_cache_and_no_wants() {
    let found = mistake("kind = \"edge\"", "kind = \"relay\"");
    assert!(found.contains("section [cache]"), "{found}");
    let loaded = load(EDGE, &[], &[]).unwrap();
    let found = loaded.expect_kind(settings::Kind::Relay).expect_err("an edge").to_string();
    assert!(found.contains("edge.toml:3") && found.contains("run 'seaway edge' instead"), "{found}");
}

#[test]
fn what_is_shown_is_read_back() {
    let loaded = load(EDGE, &[], &[]).unwrap();
    let text = toml::to_string(&loaded.settings).unwrap();
    let again = load(&text, &[], &[]).unwrap();
    assert_eq!(format!("{:?}", loaded.settings), format!("{:?}", again.settings));
}

proptest! {
    #[test]
    fn mutated_files_give_an_answer(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..12, ".{0,6}"), 1..6),
    ) {
        let mut text = EDGE.to_string();
        for (at, length, with) in cuts {
            let places: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            if places.is_empty() { break; }
            let from = places[at.index(places.len())];
            let to = places.iter().copied().find(|i| *i >= from + length).unwrap_or(text.len());
            text.replace_range(from..to, &with);
        }
        if let Err(e) = load(&text, &[], &[]) {
            prop_assert!(!e.contains('\n'), "{e:?}");
        }
    }

    #[test]
    fn any_text_gives_an_answer(text in "[\\[\\]a-z=\"{}.,#0-9 \n]{0,200}", key in "[A-Z_]{0,20}", value in ".{0,20}") {
        let _ = load(&text, &[], &[]);
        let _ = load(EDGE, &[(&format!("SEAWAY_{key}"), &value)], &[]);
    }
}
