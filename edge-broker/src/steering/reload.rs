//! The configuration is read anew, on SIGHUP or `seaway config reload`: whole or not at all.
//!
//! First everything is read and checked as a start would: the file (a mistake names file and line), the certificates, keys,
//! authorities and tokens that it names. Only when all of that can be used, what can change in a running node is taken into use; nothing
//! of that can fail any more. Links, clients and messages on their way are not touched, except that whoever lost the rights it came in with
//! is told so and has to come again.
//!
//! | changes while the node runs | |
//! |---|---|
//! | `link.cert_file`, `key_file`, `ca_file`; `door.cert_file`, `key_file`, `client_ca_file`, and what stands in them | for new connections |
//! | `door.token_file` and the tokens in it, `door.client`, `other_clients`, `anonymous` | at once |
//! | `door.limits` | at once, clients that wait included |
//! | `logging.level` | at once |
//! | retention in `[[topic]]` | with the next look, within 10 s |
//! | `limits` in `[[topic]]`, `send_rate` and `receive_rate` in `[link]` and `[[link.peer]]` | at once, where no command set them |
//! | a `[[want]]` that was added or taken out | at once |
//!
//! Every other key that differs from what is in use is answered as one that needs a restart.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use seaway_relay::node::{Node, StartError};
use serde_json::Value;
use tokio::sync::oneshot;

use super::levels::Levels;
use crate::{
    config::{ConfigError, Loaded, settings::Settings},
    door::{DoorError, DoorHandle},
};

/// How long somebody who asked for it waits; the reading goes on.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Keys that are taken into use whole; those of files count where they name some before and after.
const LIVE: [&str; 19] = [
    "link.cert_file",
    "link.key_file",
    "link.ca_file",
    "door.cert_file",
    "door.key_file",
    "door.client_ca_file",
    "door.token_file",
    "door.client",
    "door.other_clients.publish",
    "door.other_clients.subscribe",
    "door.other_clients.admin",
    "door.anonymous.publish",
    "door.anonymous.subscribe",
    "door.anonymous.see",
    "door.limits.messages_per_s",
    "door.limits.messages_burst",
    "door.limits.bytes_per_s",
    "door.limits.bytes_burst",
    "door.limits.on_exceed",
];
const LEVEL: &str = "logging.level";
/// Keys of a topic's section that change while the node runs.
const RETENTION: [&str; 3] = ["retention_age", "retention_size", "limits"];
/// Keys of a link's or peer's section that do.
const RATES: [&str; 2] = ["send_rate", "receive_rate"];

/// What came of a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// Keys whose new value is in use.
    pub(crate) applied: Vec<String>,
    /// Keys that differ from what is in use until a restart.
    pub(crate) needs_restart: Vec<String>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Level(String),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Links(#[from] StartError),
    #[error("what would be in use is not consistent ({0}); restart the node")]
    Settings(String),
    #[error("the node is not up yet; ask again later")]
    NotUp,
}

/// What a reload reaches.
pub(crate) struct Reload {
    config: PathBuf,
    set: Vec<String>,
    levels: Arc<Levels>,
    reached: OnceLock<(Node, Option<DoorHandle<Node>>)>,
    /// The settings that are in use; held while files are read, by one thread at a time.
    in_use: Mutex<Value>,
    /// A signal waits for its turn already.
    signalled: AtomicBool,
}

impl Reload {
    /// For a node that starts with these settings.
    pub(crate) fn of(config: PathBuf, set: Vec<String>, loaded: &Loaded, levels: Arc<Levels>) -> Arc<Self> {
        let in_use = Mutex::new(as_value(loaded));
        let (reached, signalled) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { config, set, levels, reached, in_use, signalled })
    }

    /// The node is up.
    pub(crate) fn reaches(&self, node: &Node, door: Option<DoorHandle<Node>>) {
        // It comes up once.
        let _ = self.reached.set((node.clone(), door));
    }

    /// SIGHUP: the outcome goes to the log. Nothing waits for it, for a file may lie on a file system that does not answer, and
    /// the node must still be told to stop.
    pub(crate) fn begin(this: &Arc<Self>) {
        if this.signalled.swap(true, Ordering::AcqRel) {
            tracing::warn!("SIGHUP: the files are being read at present, and will be read again after that");
            return;
        }
        let reload = this.clone();
        let heed = move || {
            // The outcome is in the log.
            let _ = reload.run(|| reload.signalled.store(false, Ordering::Release), "SIGHUP");
        };
        if let Err(error) = this.aside(heed) {
            this.signalled.store(false, Ordering::Release);
            tracing::error!("SIGHUP: nothing was changed: {error}");
        }
    }

    /// Reads everything anew and says what came of it.
    pub(crate) async fn ask(self: &Arc<Self>) -> Result<Reloaded, String> {
        let (answer, answered) = oneshot::channel();
        let reload = self.clone();
        self.aside(move || _ = answer.send(reload.run(|| {}, "reload")))?;
        match tokio::time::timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok(outcome)) => outcome.map_err(|error| error.to_string()),
            Ok(Err(_)) => Err("the reading ended without an answer; see the node's log".to_owned()),
            Err(_) => Err(format!(
                "not as of yet: the files could not be read within {} s; the node's log says what becomes of it",
                ANSWER_WITHIN.as_secs()
            )),
        }
    }

    fn aside(&self, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let _runtime = runtime.enter();
            work();
        };
        let spawned = std::thread::Builder::new().name("reload".into()).spawn(work);
        spawned.map(drop).map_err(|error| format!("no thread could be started: {error}"))
    }

    /// Reads the files, and logs what came of it; `begins` is called when it is this one's turn.
    fn run(&self, begins: impl FnOnce(), who: &str) -> Result<Reloaded, ReloadError> {
        let mut in_use = self.in_use.lock();
        begins();
        let outcome = self.reload(&mut in_use);
        match &outcome {
            Ok(done) => {
                tracing::info!(
                    applied = done.applied.join(", "),
                    "{who}: certificates, keys, authorities and tokens were read anew and hold for new connections"
                );
                if !done.needs_restart.is_empty() {
                    tracing::warn!(
                        "{who}: in {} these differ from what is in use and take a restart: {}",
                        self.config.display(),
                        done.needs_restart.join(", ")
                    );
                }
            }
            Err(error) => tracing::error!("{who}: nothing was changed: {error}"),
        }
        outcome
    }

    fn reload(&self, in_use: &mut Value) -> Result<Reloaded, ReloadError> {
        let (node, door) = self.reached.get().ok_or(ReloadError::NotUp)?;
        let loaded = Loaded::load(&self.config, std::env::vars(), &self.set)?;
        let (node_config, door_config) = (loaded.node_config()?, loaded.door_config()?);
        crate::cli::log_filter(&loaded).map_err(|error| ReloadError::Level(error.to_string()))?;
        let fresh = as_value(&loaded);
        let plan = plan(in_use, &fresh);
        // All that can fail.
        let level = loaded.settings.logging.level.clone();
        let changed = loaded.with(settings_of(&plan.in_use)?).node_config()?;
        let tls = node.read_tls(&node_config.tls)?;
        let door = match (door, &door_config) {
            (Some(door), Some(config)) => Some((door, door.read_again(config)?)),
            _ => None,
        };
        self.levels.configure(&level).map_err(ReloadError::Level)?;
        // And what cannot.
        if let Some(tls) = tls {
            node.use_tls(tls);
        }
        if let (Some((door, read)), Some(config)) = (door, &door_config) {
            door.use_from_now(config, read);
        }
        node.limits().replace_file(changed.limits);
        node.set_retention(changed.topics);
        node.set_wants(changed.wants);
        *in_use = plan.in_use;
        Ok(Reloaded { applied: plan.applied, needs_restart: plan.needs_restart })
    }
}

/// The settings that a plan leaves in use: of what needs a restart nothing is taken over, not even what alone could be.
fn settings_of(in_use: &Value) -> Result<Settings, ReloadError> {
    serde_json::from_value(in_use.clone()).map_err(|error| ReloadError::Settings(error.to_string()))
}

fn as_value(loaded: &Loaded) -> Value {
    // Settings are made of what JSON has.
    serde_json::to_value(&loaded.settings).unwrap_or_default()
}

/// What is to become of the keys that differ.
struct Plan {
    applied: Vec<String>,
    needs_restart: Vec<String>,
    /// The settings as they are in use after that.
    in_use: Value,
}

fn plan(in_use: &Value, fresh: &Value) -> Plan {
    let mut plan = Plan { applied: Vec::new(), needs_restart: Vec::new(), in_use: in_use.clone() };
    let mut keys = BTreeSet::new();
    for settings in [in_use, fresh] {
        collect_keys(settings, String::new(), &mut keys);
    }
    for key in keys {
        let (old, new) = (at(in_use, &key), at(fresh, &key));
        if old == new {
            continue;
        }
        match key.as_str() {
            "topic" => plan_list(&mut plan, &key, old, new, "pattern", |old, new| match (old, new) {
                (Some(old), Some(new)) => without(old, &RETENTION) == without(new, &RETENTION),
                _ => false,
            }),
            // A section that says nothing but rates, or none, is like no section.
            "link.peer" => plan_list(&mut plan, &key, old, new, "node", |old, new| {
                let rest = |section: Option<&Value>| {
                    section
                        .map(|section| without(section, &RATES))
                        .filter(|s| s.as_object().is_none_or(|s| s.len() > 1))
                };
                rest(old) == rest(new)
            }),
            "want" => plan_list(&mut plan, &key, old, new, "name", |old, new| old.is_none() || new.is_none()),
            live if is_live(live, old, new, in_use, fresh) => {
                put(&mut plan.in_use, &key, new.cloned());
                plan.applied.push(key);
            }
            _ => plan.needs_restart.push(key),
        }
    }
    plan
}

/// Whether a key's new value can be taken into use.
fn is_live(key: &str, old: Option<&Value>, new: Option<&Value>, in_use: &Value, fresh: &Value) -> bool {
    // A door that gains or loses its section, or TLS, is another door.
    let same = |key: &str| at(in_use, key).is_some() == at(fresh, key).is_some();
    match key {
        LEVEL => true,
        _ if RATES
            .iter()
            .any(|rate| key.strip_prefix("link.").is_some_and(|key| key.split('.').next() == Some(rate))) =>
        {
            true
        }
        "door.cert_file" | "door.key_file" => old.is_some() && new.is_some(),
        _ if key.starts_with("door.") => LIVE.contains(&key) && same("door") && same("door.cert_file"),
        _ => LIVE.contains(&key),
    }
}

/// Lists of sections with a name each: every section that differs is judged on its own.
fn plan_list(
    plan: &mut Plan,
    key: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    name: &str,
    live: impl Fn(Option<&Value>, Option<&Value>) -> bool,
) {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, new) = (list(old), list(new));
    let name_of = |section: &Value| section.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let find = |list: &[Value], wanted: &str| list.iter().find(|section| name_of(section) == wanted).cloned();
    let names: Vec<String> = old.iter().map(name_of).collect();
    let names_new: Vec<String> = new.iter().map(name_of).collect();
    let mut in_use = Vec::new();
    for wanted in names.iter().chain(names_new.iter().filter(|name| !names.contains(name))) {
        let (before, after) = (find(&old, wanted), find(&new, wanted));
        let (was, is) = (before.as_ref(), after.as_ref());
        let shown = format!("{key}[{wanted}]");
        if was == is {
            in_use.extend(before);
        } else if live(was, is) {
            in_use.extend(after);
            plan.applied.push(shown);
        } else {
            in_use.extend(before);
            plan.needs_restart.push(shown);
        }
    }
    let order = |names: &[String], others: &[String]| -> Vec<String> {
        names.iter().filter(|name| others.contains(name)).cloned().collect()
    };
    // Of topics the first that matches counts.
    if key == "topic" && order(&names, &names_new) != order(&names_new, &names) {
        plan.needs_restart.push("topic (their order)".to_owned());
    }
    put(&mut plan.in_use, key, Some(Value::Array(in_use)));
}

fn without(section: &Value, keys: &[&str]) -> Value {
    let mut section = section.clone();
    if let Some(map) = section.as_object_mut() {
        map.retain(|key, _| !keys.contains(&key.as_str()));
    }
    section
}

/// The names of all values but sections.
fn collect_keys(value: &Value, path: String, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect_keys(below, path, keys);
            }
        }
        _ => _ = keys.insert(path),
    }
}

fn at<'a>(settings: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(settings, |value, part| value.get(part)).filter(|value| !value.is_null())
}

fn put(settings: &mut Value, key: &str, value: Option<Value>) {
    let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
    let mut place = settings;
    for part in parents.split('.').filter(|part| !part.is_empty()) {
        let Some(map) = place.as_object_mut() else { return };
        place = map.entry(part).or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    let Some(map) = place.as_object_mut() else { return };
    match value {
        Some(value) => _ = map.insert(last.to_owned(), value),
        None => _ = map.remove(last),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config::source::{Overrides, SourceFile};

    const FILE: &str = r##"
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
ca_file = "ca.pem"

[door]
listen = "127.0.0.1:7500"

[[topic]]
pattern = "orders"
queues = 4
retention_age = "1 day"

[[topic]]
pattern = "logs"
retention_size = "2 GiB"

[[want]]
name = "all"
pattern = "#"
"##;

    fn settings() -> Value {
        json!({
            "node": {"site": "eu"},
            "link": {"cert_file": "a.pem", "credit": "32 MiB"},
            "door": {"listen": "127.0.0.1:1", "limits": {"messages_per_s": 5}, "client": [{"name": "a"}]},
            "topic": [{"pattern": "orders", "queues": 4, "retention_age": "1 day"}, {"pattern": "#", "queues": 1}],
            "want": [{"name": "all", "pattern": "#"}],
            "logging": {"level": "info", "format": "text"},
        })
    }

    fn changed(change: impl FnOnce(&mut Value)) -> (Vec<String>, Vec<String>, Value) {
        let mut fresh = settings();
        change(&mut fresh);
        let plan = plan(&settings(), &fresh);
        (plan.applied, plan.needs_restart, plan.in_use)
    }

    #[test]
    fn what_can_change_is_applied_and_the_rest_named() {
        assert_eq!(changed(|_| {}), (vec![], vec![], settings()));
        let (applied, restart, in_use) = changed(|s| {
            s["link"]["cert_file"] = json!("b.pem");
            s["link"]["credit"] = json!("64 MiB");
            s["door"]["limits"] = json!({"bytes_per_s": 7});
            s["door"]["client"] = json!([]);
            s["door"]["anonymous"] = json!({"see": true});
            s["logging"] = json!({"level": "debug", "format": "json"});
        });
        assert_eq!(
            applied,
            [
                "door.anonymous.see",
                "door.client",
                "door.limits.bytes_per_s",
                "door.limits.messages_per_s",
                "link.cert_file",
                "logging.level"
            ]
        );
        assert_eq!(restart, ["link.credit", "logging.format"]);
        assert_eq!((&in_use["link"]["cert_file"], &in_use["link"]["credit"]), (&json!("b.pem"), &json!("32 MiB")));
        assert_eq!(in_use["door"]["limits"], json!({"bytes_per_s": 7}));
        assert_eq!(in_use["logging"], json!({"level": "debug", "format": "text"}));
    }

    #[test]
    fn of_topics_retention_and_of_wants_their_coming_and_going_is_live() {
        let (applied, restart, in_use) = changed(|s| {
            s["topic"][0]["retention_age"] = json!("2 days");
            s["topic"][1]["queues"] = json!(2);
            s["want"] = json!([{"name": "all", "pattern": "a"}, {"name": "more", "pattern": "b"}]);
        });
        assert_eq!(applied, ["topic[orders]", "want[more]"]);
        assert_eq!(restart, ["topic[#]", "want[all]"]);
        assert_eq!(in_use["topic"][0]["retention_age"], json!("2 days"));
        assert_eq!((&in_use["topic"][1]["queues"], &in_use["want"][0]["pattern"]), (&json!(1), &json!("#")));
        let (_, restart, _) = changed(|s| s["topic"].as_array_mut().unwrap().reverse());
        assert_eq!(restart, ["topic (their order)"]);
    }

    #[test]
    fn what_needs_a_restart_is_not_used_in_part() {
        let load = |text: &str| {
            let file = SourceFile::parse(Path::new("edge.toml"), text.to_owned()).unwrap();
            Loaded::merge(file, Overrides::from_env([]), Overrides::from_flags(&[]).unwrap()).unwrap()
        };
        let loaded = load(FILE);
        let change = FILE
            .replace("retention_age = \"1 day\"", "retention_age = \"2 days\"")
            .replace("queues = 4", "queues = 8")
            .replace("retention_size = \"2 GiB\"", "retention_size = \"3 GiB\"");
        let fresh = load(&change);
        let plan = plan(&as_value(&loaded), &as_value(&fresh));
        assert_eq!(
            (plan.needs_restart, plan.applied),
            (vec!["topic[orders]".to_owned()], vec!["topic[logs]".to_owned()])
        );
        let used = fresh.with(settings_of(&plan.in_use).unwrap()).node_config().unwrap().topics;
        let kept: Vec<_> =
            used.iter().map(|(p, t)| (p.as_str(), t.queues, t.retention_age, t.retention_bytes)).collect();
        let day = Duration::from_secs(86_400);
        assert_eq!(kept, [("orders", 4, Some(day), None), ("logs", 1, None, Some(3 << 30))]);
    }

    #[test]
    fn rates_of_links_and_topics_are_taken_into_use() {
        let (applied, restart, in_use) = changed(|s| {
            s["link"]["send_rate"] = json!({"bytes_per_s": "1 MiB"});
            s["link"]["peer"] =
                json!([{"node": "a/b", "receive_rate": {"messages_per_s": 5}}, {"node": "c/d", "address": "x:1"}]);
            s["topic"][0]["limits"] = json!({"messages_per_s": 5});
        });
        assert_eq!(applied, ["link.peer[a/b]", "link.send_rate.bytes_per_s", "topic[orders]"]);
        assert_eq!(restart, ["link.peer[c/d]"]);
        assert_eq!(in_use["link"]["peer"], json!([{"node": "a/b", "receive_rate": {"messages_per_s": 5}}]));
    }

    #[test]
    fn a_door_that_gains_or_loses_tls_or_itself_needs_a_restart() {
        let (applied, restart, _) = changed(|s| {
            s["door"]["cert_file"] = json!("d.pem");
            s["door"]["client_ca_file"] = json!("ca.pem");
        });
        assert_eq!((applied, restart), (vec![], vec!["door.cert_file".to_owned(), "door.client_ca_file".to_owned()]));
        let (applied, restart, _) = changed(|s| _ = s.as_object_mut().unwrap().remove("door"));
        assert_eq!((applied, restart.len()), (vec![], 3));
    }
}
