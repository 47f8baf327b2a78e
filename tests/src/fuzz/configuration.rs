//! The configuration file.

use std::path::Path;

use seaway_edge_broker::config::{
    Loaded,
    source::{Overrides, SourceFile},
};

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

const RELAY: &str = r#"
[node]
kind = "relay"
federation = "acme"
site = "hub"
name = "relay"
data_dir = "data"
[link]
listen = "[::]:7401"
cert_file = "hub.pem"
key_file = "hub.key"
ca_file = "ca.pem"
[cache]
size = "100 MiB"
"#;

/// Reads a file with this content and takes from it what a node and a door need.
pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(file) = SourceFile::parse(Path::new("conf/edge.toml"), text.to_owned()) else { return };
    let Ok(flags) = Overrides::from_flags(&[]) else { return };
    match Loaded::merge(file, Overrides::from_env([]), flags) {
        Ok(loaded) => {
            let _ = loaded.node_config();
            let _ = loaded.door_config();
        }
        Err(error) => assert!(error.to_string().contains("conf/edge.toml"), "the mistake has no place: {error}"),
    }
}

pub(super) fn corpus() -> Vec<Vec<u8>> {
    let with_env = format!("{EDGE}\n[limits]\nmessages_per_s = 5\n");
    [EDGE, RELAY, &with_env, "[node]\nkind = \"edge\"\n"].iter().map(|t| t.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_valid() {
        for text in [EDGE, RELAY] {
            let file = SourceFile::parse(Path::new("conf/edge.toml"), text.to_owned()).unwrap();
            let loaded = Loaded::merge(file, Overrides::from_env([]), Overrides::from_flags(&[]).unwrap()).unwrap();
            loaded.node_config().unwrap();
        }
    }
}
