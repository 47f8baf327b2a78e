use std::path::Path;

use super::super::{
    Loaded,
    source::{Overrides, SourceFile},
};

const EDGE: &str = "\
[node]
kind = \"edge\"
federation = \"acme\"
site = \"eu\"
name = \"edge\"
data_dir = \"data\"
[link]
cert_file = \"a\"
key_file = \"b\"
ca_file = \"c\"
[door]
listen = \"127.0.0.1:7500\"
[[topic]]
pattern = \"orders\"
retention_size = \"10 GiB\"
[log]
";

fn load(lines: &str) -> Result<Loaded, String> {
    let text = format!("{EDGE}{lines}");
    let file = SourceFile::parse(Path::new("edge.toml"), text).map_err(|e| e.to_string())?;
    let none = Overrides::from_flags(&[]).map_err(|e| e.to_string())?;
    let loaded = Loaded::merge(file, Overrides::from_env([]), none).map_err(|e| e.to_string())?;
    loaded.node_config().map_err(|e| e.to_string())?;
    Ok(loaded)
}

#[test]
fn shares_and_moving_reach_the_node() {
    let lines = "own_size = \"1 GiB\"\ncopies_size = \"2 GiB\"\ndead_share_max = 0.25\nmoving_rate = \"5 MiB\"\nclock_step_max = \"2h\"";
    let space = load(lines).unwrap().node_config().unwrap().space;
    assert_eq!((space.own_bytes_max, space.copies_bytes_max), (Some(1 << 30), Some(2 << 30)));
    assert_eq!((space.dead_share_max, space.moving_rate, space.clock_step_max.as_secs()), (0.25, 5 << 20, 7200));
    let space = load("").unwrap().node_config().unwrap().space;
    assert_eq!(space, seaway_relay::node::SpaceConfig::default());
}

#[test]
fn what_makes_no_sense_is_refused_with_its_line() {
    for (line, expected) in [
        ("own_size = \"0 B\"", "log.own_size is \"0 B\", but at least \"16 MiB\" is expected"),
        ("copies_size = 0", "log.copies_size is \"0 B\", but at least \"16 MiB\" is expected"),
        ("own_size = \"17179869184 GiB\"", "that is more than 64 bits of bytes"),
        ("copies_size = \"-1\"", "log.copies_size"),
        ("moving_rate = \"0 B\"", "log.moving_rate is \"0 B\", but at least \"64 KiB\" is expected"),
        ("dead_share_max = 0.0", "log.dead_share_max is 0, but 0.05 to 0.95 is expected"),
        ("dead_share_max = 1e400", "edge.toml:17: this is not TOML"),
        ("dead_share_max = nan", "log.dead_share_max is NaN, but 0.05 to 0.95 is expected"),
        ("clock_step_max = \"0s\"", "log.clock_step_max is too short"),
    ] {
        let found = load(line).map(drop).expect_err(line);
        assert!(found.contains(expected), "{line}: {found}");
        assert!(found.contains("edge.toml:17"), "{line}: {found}");
    }
}

#[test]
fn a_relay_has_no_shares() {
    let text = "\
[node]
kind = \"relay\"
federation = \"acme\"
site = \"hub\"
name = \"relay\"
data_dir = \"data\"
[link]
cert_file = \"a\"
key_file = \"b\"
ca_file = \"c\"
[cache]
size = \"1 GiB\"
[log]
copies_size = \"1 GiB\"
";
    let file = SourceFile::parse(Path::new("relay.toml"), text.to_owned()).unwrap();
    let loaded = Loaded::merge(file, Overrides::from_env([]), Overrides::from_flags(&[]).unwrap()).unwrap();
    let found = loaded.node_config().unwrap_err().to_string();
    assert!(found.contains("relay.toml:14") && found.contains("cache.size"), "{found}");
}

#[test]
fn a_hold_back_that_is_no_part_of_the_own_logs_share_is_refused() {
    let found = load("own_size = \"2 GiB\"\n[hold_back]\nsize = \"2 GiB\"").map(drop).expect_err("all of it");
    assert!(found.starts_with("edge.toml:19: hold_back.size is not less than log.own_size"), "{found}");
    load("own_size = \"2 GiB\"\n[hold_back]\nsize = \"1 GiB\"").unwrap();
}

#[test]
fn a_share_smaller_than_two_segments_is_warned_of() {
    assert_eq!(load("").unwrap().warnings(), Vec::<String>::new());
    let warnings = load("own_size = \"300 MiB\"").unwrap().warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("log.own_size"), "{warnings:?}");
}
