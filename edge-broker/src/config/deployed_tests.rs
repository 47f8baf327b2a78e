//! What lies in `deploy/` is checked against the program: configurations by the real loader, expressions by the metrics' table, and of
//! units and container files what can be checked without a service manager or a container engine.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::*;
use crate::metrics::table::{ALL, Kind, Metric};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap()
}

/// Labels that Prometheus itself adds.
const ADDED: [&str; 2] = ["instance", "job"];

/// The names in an expression that are metrics', with the matchers that follow them; grouping labels apart.
fn check(expression: &str) -> Result<(), String> {
    let (mut used, mut grouped): (Vec<&Metric>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '"') {
        rest = &rest[at..];
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').ok_or("a quote is open")?.1;
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        if matches!(word, "by" | "without" | "on" | "ignoring" | "group_left" | "group_right") {
            let list = after.trim_start().strip_prefix('(').and_then(|list| list.split_once(')'));
            let (list, after) = list.ok_or_else(|| format!("{word} without a list"))?;
            grouped.extend(list.split(',').map(|label| label.trim().to_owned()));
            rest = after;
            continue;
        }
        if !word.starts_with("seaway_") {
            let known = [
                "up",
                "time",
                "rate",
                "increase",
                "sum",
                "max",
                "min",
                "and",
                "or",
                "unless",
                "predict_linear",
                "deriv",
            ];
            // Durations such as 5m stand in brackets, behind a number.
            if known.contains(&word) || word.len() == 1 {
                if let Some(matchers) = after.strip_prefix('{') {
                    rest = matchers.split_once('}').ok_or("a brace is open")?.1;
                }
                continue;
            }
            return Err(format!("{word:?} is neither a metric nor a function"));
        }
        let metric = ALL
            .iter()
            .find(|metric| metric.name == word || is_of_histogram(metric, word))
            .ok_or_else(|| format!("there is no metric {word}"))?;
        used.push(metric);
        if let Some(matchers) = after.strip_prefix('{') {
            let (matchers, after) = matchers.split_once('}').ok_or("a brace is open")?;
            for matcher in matchers.split(',') {
                let label = matcher.split(['=', '!']).next().unwrap_or_default().trim();
                if !metric.labels.contains(&label) && !ADDED.contains(&label) {
                    return Err(format!("{word} has no label {label:?}"));
                }
            }
            rest = after;
        }
    }
    for label in grouped {
        if !ADDED.contains(&label.as_str()) && !used.iter().any(|metric| metric.labels.contains(&label.as_str())) {
            return Err(format!("no metric of {expression:?} has the label {label:?}"));
        }
    }
    if used.is_empty() && !expression.contains("up{") {
        return Err(format!("{expression:?} asks of no metric"));
    }
    let opened = |open, close| expression.matches(open).count() == expression.matches(close).count();
    if !opened('(', ')') || !opened('[', ']') || !opened('{', '}') {
        return Err(format!("{expression:?} has brackets that do not match"));
    }
    Ok(())
}

/// Whether a word names a part of a histogram.
fn is_of_histogram(metric: &Metric, word: &str) -> bool {
    let part = word.strip_prefix(metric.name).filter(|_| metric.kind == Kind::Histogram);
    part.is_some_and(|part| ["_bucket", "_sum", "_count"].contains(&part))
}

/// Labels that a text for people names as `{{ $labels.x }}` or `{{x}}` must be those of a metric of its expression.
fn check_labels(expression: &str, shown: &str) {
    for part in shown.split("{{").skip(1) {
        let name = part.split("}}").next().unwrap().trim().trim_start_matches("$labels.");
        let has = |metric: &&Metric| expression.contains(metric.name) && metric.labels.contains(&name);
        assert!(
            name == "$value" || ADDED.contains(&name) || ALL.iter().any(|m| has(&m)),
            "{name} of {shown} in {expression}"
        );
    }
}

#[test]
fn the_check_of_expressions_can_fail() {
    for (wrong, says) in [
        ("seaway_reedy == 0", "no metric seaway_reedy"),
        ("seaway_ready{topic=\"x\"} == 0", "no label \"topic\""),
        ("sum by (topic) (seaway_ready)", "the label \"topic\""),
        ("rat(seaway_ready[5m])", "\"rat\" is neither"),
        ("rate(seaway_ready[5m)", "do not match"),
        ("1 > 0", "no metric"),
    ] {
        let error = check(wrong).unwrap_err();
        assert!(error.contains(says), "{wrong}: {error}");
    }
    check("sum by (instance, reason) (rate(seaway_door_refused_total{reason=~\"rate|x\"}[5m])) > 0").unwrap();
}

#[test]
fn every_alert_asks_of_metrics_that_exist() {
    let rules = text("prometheus/alerts.yaml");
    assert!(!rules.contains('\t'));
    let mut names = BTreeSet::new();
    let mut expression = String::new();
    for line in rules.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            assert!(name.starts_with("Seaway") && names.insert(name), "{name}");
            expression.clear();
        } else if let Some(found) = line.strip_prefix("expr: ") {
            check(found).unwrap_or_else(|error| panic!("{error}: {found}"));
            found.clone_into(&mut expression);
        } else if line.starts_with("annotations: ") {
            assert!(!expression.is_empty(), "annotations without an expression");
            check_labels(&expression, line);
        }
    }
    assert!(names.len() >= 15 && rules.matches("severity: ").count() == names.len());
    // What stops nothing and shows nowhere else has to be told by a rule.
    for needed in [
        "seaway_copy_live == 0",
        "seaway_queue_items / seaway_queue_max_items",
        "seaway_audit_failures_total",
        "hold-back-exceeded",
        "hold-back-refusing",
        "broken-chain",
        "not-following",
        "topic-refused",
    ] {
        assert!(rules.contains(needed), "no rule asks for {needed}");
    }
}

fn strings<'a>(
    value: &'a serde_json::Value,
    key: &str,
    found: &mut Vec<&'a serde_json::Map<String, serde_json::Value>>,
) {
    match value {
        serde_json::Value::Array(list) => list.iter().for_each(|value| strings(value, key, found)),
        serde_json::Value::Object(map) => {
            if map.contains_key(key) {
                found.push(map);
            }
            map.values().for_each(|value| strings(value, key, found));
        }
        _ => {}
    }
}

#[test]
fn every_panel_asks_of_metrics_that_exist() {
    let dashboard: serde_json::Value = serde_json::from_str(&text("grafana/seaway.json")).unwrap();
    let mut targets = Vec::new();
    strings(&dashboard, "expr", &mut targets);
    assert!(targets.len() >= 30, "{}", targets.len());
    for target in targets {
        let expression = target["expr"].as_str().unwrap();
        check(expression).unwrap_or_else(|error| panic!("{error}: {expression}"));
        check_labels(expression, target["legendFormat"].as_str().unwrap());
    }
    let mut variables = Vec::new();
    strings(&dashboard["templating"], "query", &mut variables);
    let query = variables.iter().find_map(|v| v["query"].as_str()?.strip_prefix("label_values(")).unwrap();
    check(query.split(',').next().unwrap()).unwrap();
    let ids: Vec<_> = dashboard["panels"].as_array().unwrap().iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
}

#[test]
fn every_sample_configuration_is_one() {
    let samples = [
        "edge.toml",
        "small.toml",
        "relay.toml",
        "hub.toml",
        "compose/relay.toml",
        "compose/eu.toml",
        "compose/us.toml",
    ];
    for sample in samples.map(deploy) {
        let loaded = Loaded::load(&sample, [], &[]).unwrap();
        loaded.node_config().unwrap();
        loaded.door_config().unwrap();
        assert!(loaded.settings.admin.is_some(), "{}", sample.display());
    }
}

/// `- ./HERE:THERE:ro` lines of the compose file.
fn mounts(compose: &str) -> Vec<(&str, &str)> {
    let mounts = compose.lines().filter_map(|line| line.trim().strip_prefix("- ./"));
    mounts
        .map(|mount| mount.split_once(':').unwrap())
        .map(|(here, there)| (here, there.trim_end_matches(":ro")))
        .collect()
}

#[test]
fn what_the_compose_file_mounts_is_there_and_what_it_runs_is_mounted() {
    let compose = text("compose/compose.yaml");
    assert!(!compose.contains('\t'));
    let mounts = mounts(&compose);
    for (here, _) in &mounts {
        assert!(deploy("compose").join(here).is_file(), "{here}");
    }
    let mut runs = 0;
    for line in compose.lines().filter(|line| line.contains("\"--config\"")) {
        let words: Vec<_> =
            line.split('"').filter(|word| !word.trim_matches([' ', ',', '[', ']']).is_empty()).collect();
        let (kind, config) = (words[words.len() - 3], words[words.len() - 1]);
        let (here, _) = mounts.iter().find(|(_, there)| *there == config).unwrap_or_else(|| panic!("{line}"));
        let loaded = Loaded::load(&deploy("compose").join(here), [], &[]).unwrap();
        loaded.expect_kind(if kind == "edge" { settings::Kind::Edge } else { settings::Kind::Relay }).unwrap();
        runs += 1;
        // The certificates that it names are those that the script makes, in the volume that is mounted.
        let node = loaded.node_config().unwrap();
        let name = format!("{}-{}", node.name.site, node.name.node);
        assert_eq!(node.tls.cert, Path::new("/etc/seaway/tls").join(format!("{name}.pem")));
        assert_eq!(node.tls.ca, Path::new("/etc/seaway/tls/ca/ca.pem"));
        assert!(text("compose/certificates.sh").contains(&node.name.to_string()));
        assert!(compose.contains(&format!("{}:/var/lib/seaway", here.replace(".toml", "-data"))));
        // Its door speaks TLS and knows the operator whose certificate the script issues.
        let Some(door) = loaded.door_config().unwrap() else { continue };
        let tls = door.tls.unwrap();
        assert_eq!((&tls.cert, tls.client_ca.as_ref()), (&node.tls.cert, Some(&node.tls.ca)));
        assert!(door.auth.anonymous.is_none() && !door.allow_plain_text);
        let operator = door.auth.clients.iter().find(|client| client.name == "operator").unwrap();
        assert!(operator.rights.admin && text("compose/certificates.sh").contains("seaway ca client operator"));
    }
    assert_eq!(runs, 3);
}

#[test]
fn the_image_is_built_of_what_is_there_and_runs_as_nobody_special() {
    let image = text("Dockerfile");
    let root = deploy("..");
    let toolchain = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let version = toolchain.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(image.contains(&format!("FROM rust:{version}-")), "{version}");
    assert!(image.contains("-p seaway-edge-broker --bin seaway") && image.contains("USER 10001:10001"));
    assert!(root.join("Cargo.lock").is_file() && root.join(".dockerignore").is_file());
}

#[test]
fn the_unit_starts_what_the_command_line_knows() {
    let unit = text("systemd/seaway@.service");
    let keys: Vec<_> = unit.lines().filter(|l| !l.starts_with(['#', '[']) && !l.is_empty()).collect();
    assert!(
        keys.iter()
            .all(|line| line.split_once('=').is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_alphanumeric())))
    );
    for needed in ["Type=notify", "WatchdogSec=60", "ExecReload=/bin/kill -HUP $MAINPID", "NoNewPrivileges=yes"] {
        assert!(keys.contains(&needed), "{needed}");
    }
    // A stuck node is found out before the manager would, and says why.
    assert!(seaway_relay::node::life::STUCK_AFTER.as_secs() * 2 <= 60);
    let start = keys.iter().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/seaway ")).unwrap();
    assert_eq!(start, "%i --config /etc/seaway/%i.toml");
}
