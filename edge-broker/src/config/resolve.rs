//! From settings to what the node and the door take: checks that need more than one key, and paths made absolute
//! to the file's directory.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use seaway_federation_proto::{
    ids::{NodeName, Pattern, Site},
    limits,
    replication::Want,
    session::NodeKind,
};
use seaway_relay::node::{self, LinkTls, NodeConfig, TopicConfig};

use super::{
    ConfigError, Loaded,
    settings::{AutoCreate, AutoCreateWord, DoorSection, Kind, OnExceed, TopicSection},
    values::{FromText, Given, Size},
};
use crate::door::{self, AuthConfig, ClientGrant, ClientLimits, DoorConfig, DoorTls, Rights};

/// Least credit: one largest batch.
const CREDIT_BYTES_MIN: u64 = (limits::MESSAGE_BYTES_CEILING + limits::BATCH_OVERHEAD_BYTES) as u64;
/// Least size of a segment file, bytes.
const SEGMENT_BYTES_MIN: u64 = 1024 * 1024;
/// Most size of a segment file, bytes: a segment goes as a whole, so what is trimmed takes room until then.
const SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Least size of a relay's cache, bytes: some segments.
const CACHE_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Shortest interval of probes and marks.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

impl Loaded {
    /// A path as given, taken from the configuration file's directory where it is relative.
    fn absolute(&self, path: &Path) -> PathBuf {
        self.path().parent().map_or_else(|| path.to_path_buf(), |dir| dir.join(path))
    }

    /// Checks that the file is for this kind of node.
    pub fn expect_kind(&self, kind: Kind) -> Result<(), ConfigError> {
        let name = |kind| if kind == Kind::Edge { "edge" } else { "relay" };
        let found = self.settings.node.kind;
        if found == kind {
            return Ok(());
        }
        let (found, kind) = (name(found), name(kind));
        Err(self.mistake(
            &["node", "kind"],
            &format!("is {found:?}, but the command starts a node of kind {kind:?}; run 'seaway {found}' instead"),
        ))
    }

    /// The node's settings.
    pub fn node_config(&self) -> Result<NodeConfig, ConfigError> {
        self.check_sections()?;
        let settings = &self.settings;
        let name = NodeName::new(settings.node.site.0.clone(), &settings.node.name.0.0)
            .map_err(|e| self.mistake(&["node", "name"], &format!("is not usable: {e}")))?;
        let (dial, costs) = self.peers(&name)?;
        let (topics, replicate) = self.topics()?;
        self.check_bounds()?;
        Ok(NodeConfig {
            auto_create: self.auto_create()?,
            accept_message_bytes_max: self.settings.topics.accept_message_size_max.0.0,
            federation: settings.node.federation.0.0.clone(),
            name,
            kind: match settings.node.kind {
                Kind::Edge => NodeKind::Edge,
                Kind::Relay => NodeKind::Relay,
            },
            data_dir: self.absolute(&settings.node.data_dir),
            listen: settings.link.listen.as_ref().map(|listen| listen.0),
            dial,
            tls: LinkTls {
                cert: self.absolute(&settings.link.cert_file),
                key: self.absolute(&settings.link.key_file),
                ca: self.absolute(&settings.link.ca_file),
            },
            wants: self.wants()?,
            replicate,
            topics,
            segment_bytes: settings.log.segment_size.0.0,
            disk_reserve_bytes: settings.log.disk_reserve.0.0,
            space: self.space()?,
            cache_bytes_max: settings.cache.as_ref().map(|cache| cache.size.0.0),
            lane_credit_bytes: settings.link.credit.0.0,
            probe_interval: settings.link.probe_interval.0,
            dead_after: settings.link.dead_after.0,
            mark_interval: settings.link.mark_interval.0,
            costs,
            hold_back: self.hold_back()?,
            limits: self.limits_config()?,
            tail_bytes_max: usize::try_from(settings.log.tail_memory.0.0)
                .map_err(|_| self.mistake(&["log", "tail_memory"], "is more than this machine can address"))?,
        })
    }

    /// Each kind of node has sections that the other cannot obey.
    fn check_sections(&self) -> Result<(), ConfigError> {
        let settings = &self.settings;
        match settings.node.kind {
            Kind::Edge if settings.cache.is_some() => {
                Err(self.mistake(&["cache"], "is for relays: an edge keeps its topics as retention says; remove it"))
            }
            Kind::Edge if settings.door.is_none() => {
                Err(self
                    .mistake(&["node", "kind"], "is \"edge\", so section [door] with key \"listen\" is needed; add it"))
            }
            Kind::Relay if settings.cache.is_none() => {
                Err(self
                    .mistake(&["node", "kind"], "is \"relay\", so section [cache] with key \"size\" is needed; add it"))
            }
            Kind::Relay if !settings.want.is_empty() => {
                Err(self.mistake(&["want"], "is for edges: a relay wants nothing of its own; remove it"))
            }
            Kind::Relay if settings.hold_back.size.is_some() || !settings.hold_back.rule.is_empty() => {
                Err(self.mistake(&["hold_back"], "is for edges: a relay has no logs of its own; remove it"))
            }
            Kind::Relay if settings.topics.auto_create != AutoCreate::default() => {
                Err(self.mistake(&["topics", "auto_create"], "is for edges: nobody publishes at a relay; remove it"))
            }
            Kind::Relay if !settings.topic.is_empty() => {
                Err(self.mistake(&["topic"], "is for edges: what a relay keeps is set by [cache]; remove it"))
            }
            _ => Ok(()),
        }
    }

    /// The door's settings; `None` where the node has no door.
    pub fn door_config(&self) -> Result<Option<DoorConfig>, ConfigError> {
        let Some(door) = &self.settings.door else { return Ok(None) };
        let tls = match (&door.cert_file, &door.key_file) {
            (Some(cert), Some(key)) => Some(DoorTls {
                cert: self.absolute(cert),
                key: self.absolute(key),
                client_ca: door.client_ca_file.as_ref().map(|ca| self.absolute(ca)),
            }),
            (None, None) if door.client_ca_file.is_some() => {
                return Err(
                    self.mistake(&["door", "client_ca_file"], "needs door.cert_file and door.key_file beside it")
                );
            }
            (None, None) => None,
            (Some(_), None) => return Err(self.mistake(&["door", "cert_file"], "needs door.key_file beside it")),
            (None, Some(_)) => return Err(self.mistake(&["door", "key_file"], "needs door.cert_file beside it")),
        };
        if tls.is_none() && !door.allow_plain_text && !door.listen.0.ip().is_loopback() {
            let text =
                "is beyond loopback without TLS; set door.cert_file and door.key_file, or door.allow_plain_text = true";
            return Err(self.mistake(&["door", "listen"], text));
        }
        if door.publish_deadline.0.is_zero() {
            return Err(self.mistake(&["door", "publish_deadline"], "is 0, but a duration above it is expected"));
        }
        if door.confirm_timeout.0.is_zero() {
            return Err(self.mistake(&["door", "confirm_timeout"], "is 0, but a duration above it is expected"));
        }
        self.check_clients(door)?;
        Ok(Some(DoorConfig {
            listen: door.listen.0,
            tls,
            allow_plain_text: door.allow_plain_text,
            auth: self.auth(door),
            limits: self.limits(door)?,
            publish_deadline: door.publish_deadline.0,
            confirm_timeout: door.confirm_timeout.0,
            passing_want: door.passing_want.0,
            drain_timeout: door.drain_timeout.0,
        }))
    }

    /// Rights that nobody could ever have, or that depend on which section is read first.
    fn check_clients(&self, door: &DoorSection) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for (index, client) in door.client.iter().enumerate() {
            let wrong = |text: &str| Err(self.mistake(&["door", "client", &index.to_string(), "name"], text));
            if !seen.insert(&client.name) {
                return wrong(&format!("is {:?} a second time; one section a client is expected", client.name));
            }
            if door.client_ca_file.is_none() {
                return wrong(
                    "is of a client with a certificate, but no certificate is believed here; set door.client_ca_file",
                );
            }
        }
        Ok(())
    }

    fn auth(&self, door: &DoorSection) -> AuthConfig {
        let grants = door.client.iter().map(|client| ClientGrant {
            name: client.name.clone(),
            rights: rights(&client.publish, &client.subscribe, client.admin),
        });
        AuthConfig {
            federation: self.settings.node.federation.0.0.clone(),
            token_file: door.token_file.as_ref().map(|file| self.absolute(file)),
            clients: grants.collect(),
            other_clients: door.other_clients.as_ref().map(|r| rights(&r.publish, &r.subscribe, r.admin)),
            anonymous: door.anonymous.as_ref().map(|r| rights(&r.publish, &r.subscribe, r.see)),
        }
    }

    fn limits(&self, door: &DoorSection) -> Result<ClientLimits, ConfigError> {
        let (given, default) = (&door.limits, ClientLimits::default());
        let wrong = |key: &str, text: &str| self.mistake(&["door", "limits", key], text);
        for (key, number) in [("messages_per_s", given.messages_per_s), ("messages_burst", given.messages_burst)] {
            if number == Some(0) {
                return Err(wrong(key, "is 0, but at least 1 is expected"));
            }
        }
        let bytes = |key, size: &Option<Given<Size>>| match size {
            None => Ok(None),
            Some(Given(Size(size))) => match u32::try_from(*size) {
                Ok(size) if size > 0 => Ok(Some(size)),
                _ => Err(wrong(key, "is out of bounds; \"1 B\" to \"4095 MiB\" is expected")),
            },
        };
        Ok(ClientLimits {
            messages_per_s: given.messages_per_s,
            messages_burst: given.messages_burst.unwrap_or(default.messages_burst),
            bytes_per_s: bytes("bytes_per_s", &given.bytes_per_s)?,
            bytes_burst: bytes("bytes_burst", &given.bytes_burst)?.unwrap_or(default.bytes_burst),
            on_exceed: match given.on_exceed {
                OnExceed::Delay => door::OnExceed::Delay,
                OnExceed::Refuse => door::OnExceed::Refuse,
            },
            ..ClientLimits::default()
        })
    }

    fn check_bounds(&self) -> Result<(), ConfigError> {
        let (link, log) = (&self.settings.link, &self.settings.log);
        self.at_least(&["link", "credit"], &link.credit, CREDIT_BYTES_MIN)?;
        self.at_least(&["log", "segment_size"], &log.segment_size, SEGMENT_BYTES_MIN)?;
        self.at_most(&["log", "segment_size"], &log.segment_size, SEGMENT_BYTES_MAX)?;
        if let Some(cache) = &self.settings.cache {
            self.at_least(&["cache", "size"], &cache.size, CACHE_BYTES_MIN)?;
        }
        for (key, interval) in [("probe_interval", &link.probe_interval), ("mark_interval", &link.mark_interval)] {
            if interval.0 < INTERVAL_MIN {
                return Err(self.mistake(&["link", key], "is too short; at least \"10 ms\" is expected"));
            }
        }
        if link.dead_after.0 < link.probe_interval.0 * 3 {
            return Err(self.mistake(
                &["link", "dead_after"],
                "is too short; at least three times link.probe_interval is expected, since three probes tell a path's failure",
            ));
        }
        Ok(())
    }

    pub(super) fn at_least(&self, key: &[&str], size: &Given<Size>, least: u64) -> Result<(), ConfigError> {
        use super::values::FromText;
        if size.0.0 >= least {
            return Ok(());
        }
        let (found, least) = (size.0.to_text(), Size(least).to_text());
        Err(self.mistake(key, &format!("is \"{found}\", but at least \"{least}\" is expected")))
    }

    fn at_most(&self, key: &[&str], size: &Given<Size>, most: u64) -> Result<(), ConfigError> {
        use super::values::FromText;
        if size.0.0 <= most {
            return Ok(());
        }
        let (found, most) = (size.0.to_text(), Size(most).to_text());
        Err(self.mistake(key, &format!("is \"{found}\", but at most \"{most}\" is expected")))
    }

    #[allow(clippy::type_complexity, reason = "the two lists are exactly the node's two fields")]
    fn peers(&self, own: &NodeName) -> Result<(Vec<(NodeName, String)>, Vec<(NodeName, u32)>), ConfigError> {
        let (mut dial, mut costs, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (index, peer) in self.settings.link.peer.iter().enumerate() {
            let index = index.to_string();
            let wrong = |key: &str, text: &str| Err(self.mistake(&["link", "peer", &index, key], text));
            let node = &peer.node.0;
            if node == own {
                return wrong("node", "is this node itself; a node has no link to itself");
            }
            if !seen.insert(node.clone()) {
                return wrong("node", &format!("is {node} a second time; one section a peer is expected"));
            }
            if peer.address.is_none() && self.settings.link.listen.is_none() {
                return wrong("node", "has no address, and this node does not listen; set its address, or link.listen");
            }
            let limited = peer.send_rate.is_some() || peer.receive_rate.is_some();
            if peer.address.is_none() && peer.cost.is_none() && !limited {
                return wrong("node", "has neither address nor cost nor rate; set one, or remove the section");
            }
            if let Some(address) = &peer.address {
                dial.push((node.clone(), address.0.0.clone()));
            }
            match peer.cost {
                Some(0) => return wrong("cost", "is 0, but a whole number of at least 1 is expected"),
                Some(cost) => costs.push((node.clone(), cost)),
                None => {}
            }
        }
        Ok((dial, costs))
    }

    #[allow(clippy::type_complexity, reason = "the two lists are exactly the node's two fields")]
    fn topics(&self) -> Result<(Vec<(Pattern, TopicConfig)>, Vec<(Pattern, Option<Vec<Site>>)>), ConfigError> {
        let (mut topics, mut replicate) = (Vec::new(), Vec::new());
        for (index, topic) in self.settings.topic.iter().enumerate() {
            let pattern = topic.pattern.0.clone();
            topics.push((pattern.clone(), self.topic(&index.to_string(), topic)?));
            let sites = topic.replicate.as_ref().map(|sites| sites.iter().map(|site| site.0.clone()).collect());
            replicate.push((pattern, sites));
        }
        Ok((topics, replicate))
    }

    fn auto_create(&self) -> Result<node::AutoCreate, ConfigError> {
        let patterns = match &self.settings.topics.auto_create {
            AutoCreate::Word(AutoCreateWord::Off) => return Ok(node::AutoCreate::Off),
            AutoCreate::Word(AutoCreateWord::Local) => return Ok(node::AutoCreate::Local),
            AutoCreate::Patterns(patterns) => patterns,
        };
        if let Some(wrong) = patterns.iter().find(|p| p.0.as_str().contains('/')) {
            let text = format!(
                "names {:?}, which has more than one level; whole topics are created, so first levels are expected",
                wrong.0.as_str()
            );
            return Err(self.mistake(&["topics", "auto_create"], &text));
        }
        Ok(node::AutoCreate::Patterns(patterns.iter().map(|p| p.0.clone()).collect()))
    }

    fn topic(&self, index: &str, topic: &TopicSection) -> Result<TopicConfig, ConfigError> {
        let wrong = |key: &str, text: &str| self.mistake(&["topic", index, key], text);
        if topic.pattern.0.as_str().contains('/') {
            return Err(wrong(
                "pattern",
                "has more than one level; settings are for whole topics, so the first level is expected",
            ));
        }
        let queues = u16::try_from(topic.queues).ok().filter(|queues| (1..=limits::QUEUES_MAX).contains(queues));
        let queues = queues.ok_or_else(|| {
            wrong("queues", &format!("is {}, but 1 to {} is expected", topic.queues, limits::QUEUES_MAX))
        })?;
        let message_bytes_max = usize::try_from(topic.message_size_max.0.0)
            .ok()
            .filter(|size| (1..=limits::MESSAGE_BYTES_CEILING).contains(size))
            .ok_or_else(|| wrong("message_size_max", "is out of bounds; \"1 B\" to \"16 MiB\" is expected"))?;
        if let Some(size) = topic.retention_size.as_ref().filter(|size| size.0.0 < topic.message_size_max.0.0) {
            let text = format!(
                "is {}, less than message_size_max ({}): a log could not keep one such message; raise retention_size, or lower \
                 message_size_max",
                size.0.to_text(),
                topic.message_size_max.0.to_text()
            );
            return Err(wrong("retention_size", &text));
        }
        Ok(TopicConfig {
            queues,
            message_bytes_max,
            codec: topic.compression.0,
            retention_bytes: topic.retention_size.as_ref().map(|size| size.0.0),
            retention_age: topic.retention_age.as_ref().map(|age| age.0),
            ..TopicConfig::default()
        })
    }

    fn wants(&self) -> Result<Vec<Want>, ConfigError> {
        let mut seen = BTreeSet::new();
        let mut wants = Vec::new();
        for (index, want) in self.settings.want.iter().enumerate() {
            let index = index.to_string();
            let wrong = |text: &str| Err(self.mistake(&["want", &index, "name"], text));
            if want.name.is_empty() || want.name.len() > 128 || want.name.chars().any(char::is_control) {
                return wrong("must have 1 to 128 bytes and no control characters");
            }
            if !seen.insert(&want.name) {
                return wrong(&format!("is {:?} a second time; names of wants are unique at a site", want.name));
            }
            wants.push(Want {
                id: format!("config/{}", want.name),
                pattern: want.pattern.0.clone(),
                origins: want.origins.iter().map(|site| site.0.clone()).collect(),
                start: want.from.0,
                registers: want.register,
            });
        }
        Ok(wants)
    }
}

fn rights(publish: &[Given<Pattern>], subscribe: &[Given<Pattern>], admin: bool) -> Rights {
    let patterns = |given: &[Given<Pattern>]| given.iter().map(|pattern| pattern.0.clone()).collect();
    Rights { publish: patterns(publish), subscribe: patterns(subscribe), admin }
}
