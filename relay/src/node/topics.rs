//! Settings of topics at this site: what the configuration says, what commands set, and the commands themselves.
//!
//! **One rule**: what a command set holds until a command unsets it; the first section of the file whose pattern matches gives
//! what no command set; the defaults give the rest. [`Node::topic_settings`] says of each value where it comes from.
//!
//! Queue count, largest message, compression and `replicate` are the origin's: they hold for what is published at this site, and travel in the
//! topic's control queue. Retention is this holder's, for its own logs and its copies of others'.
//!
//! What a command sets becomes durable in the unit of the control queue's entry, where there is one: a refused command changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message as _;
use seaway_federation_proto::{
    control::Control,
    copies::Hole,
    envelope::Codec,
    ids::{LogName, Pattern, Place, Queue, Site, Topic},
    limits,
    replication::TOMBSTONE_US,
    wire::store::{ReplicateOverride, TopicOverrides as Stored},
};
use tokio::sync::oneshot;

use super::{
    AutoCreate, Node, NodeConfig, PublishError, TopicConfig,
    clock::Clock,
    inner::NodeInner,
    origin::{
        Origin,
        settings::{OwnTopicState, TellTopic, With},
    },
};
use crate::log::contract::{CommitLog, Entry, Retention, Table};

/// Most topics of which commands set something.
pub const OVERRIDES_MAX: usize = 10_000;

/// A change of a value by command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Set<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It holds from now on.
    To(T),
    /// What the file says holds again.
    Unset,
}

/// What commands set of a topic; `None`: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Queues for own messages.
    pub queues: Option<u16>,
    /// Largest message, bytes.
    pub message_bytes_max: Option<usize>,
    /// Compression of own batches.
    pub codec: Option<Codec>,
    /// Which sites count as registered (`None` within: all that ask).
    pub replicate: Option<Option<Vec<Site>>>,
    /// Retention here by size, bytes a log (`None` within: none).
    pub retention_bytes: Option<Option<u64>>,
    /// Retention here by age (`None` within: none).
    pub retention_age: Option<Option<Duration>>,
}

/// What a command changes of a topic's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicChange {
    /// See [`Overrides`].
    pub queues: Set<u16>,
    /// See [`Overrides`].
    pub message_bytes_max: Set<usize>,
    /// See [`Overrides`].
    pub codec: Set<Codec>,
    /// See [`Overrides`].
    pub replicate: Set<Option<Vec<Site>>>,
    /// See [`Overrides`].
    pub retention_bytes: Set<Option<u64>>,
    /// See [`Overrides`].
    pub retention_age: Set<Option<Duration>>,
}

impl TopicChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what it changes is the origin's, and travels.
    pub fn concerns_origin(&self) -> bool {
        let Self { queues, message_bytes_max, codec, replicate, .. } = self;
        *queues != Set::Keep || *message_bytes_max != Set::Keep || *codec != Set::Keep || *replicate != Set::Keep
    }

    fn apply(self, to: &mut Overrides) {
        fn one<T>(set: Set<T>, to: &mut Option<T>) {
            match set {
                Set::Keep => {}
                Set::To(value) => *to = Some(value),
                Set::Unset => *to = None,
            }
        }
        one(self.queues, &mut to.queues);
        one(self.message_bytes_max, &mut to.message_bytes_max);
        one(self.codec, &mut to.codec);
        one(self.replicate, &mut to.replicate);
        one(self.retention_bytes, &mut to.retention_bytes);
        one(self.retention_age, &mut to.retention_age);
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A command set it.
    Command,
    /// The section of the configuration with this pattern.
    File(Pattern),
    /// Nobody said anything.
    Default,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command => f.write_str("topic set"),
            Self::File(pattern) => write!(f, "[[topic]] {pattern}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A topic's settings at this site, and where each comes from.
#[derive(Debug, Clone)]
pub struct TopicSettingsView {
    /// What holds.
    pub config: TopicConfig,
    /// What commands set of it.
    pub overrides: Overrides,
    /// Where the rest comes from.
    pub rest: Source,
    /// What is known of it as a topic of this origin.
    pub own: Option<OwnTopicState>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct TopicBook {
    file: RwLock<Vec<(Pattern, TopicConfig)>>,
    replicate: Vec<(Pattern, Option<Vec<Site>>)>,
    auto_create: AutoCreate,
    set: RwLock<BTreeMap<Topic, Overrides>>,
}

impl Overrides {
    fn put_on(&self, config: &mut TopicConfig) {
        config.queues = self.queues.unwrap_or(config.queues);
        config.message_bytes_max = self.message_bytes_max.unwrap_or(config.message_bytes_max);
        config.codec = self.codec.unwrap_or(config.codec);
        config.replicate = self.replicate.clone().unwrap_or(config.replicate.take());
        config.retention_bytes = self.retention_bytes.unwrap_or(config.retention_bytes);
        config.retention_age = self.retention_age.unwrap_or(config.retention_age);
    }
}

fn decode(value: &Bytes) -> Option<Overrides> {
    let stored = Stored::decode(value.clone()).ok()?;
    let queues = stored.queues.map(u16::try_from).transpose().ok()?;
    let replicate = match stored.replicate {
        None => None,
        Some(r) if r.all => Some(None),
        Some(r) => Some(Some(r.sites.iter().map(|s| s.parse().ok()).collect::<Option<Vec<Site>>>()?)),
    };
    Some(Overrides {
        queues: queues.filter(|q| (1..=limits::QUEUES_MAX).contains(q)),
        message_bytes_max: stored.message_bytes_max.map(usize::try_from).transpose().ok()?,
        codec: stored.codec.and_then(|c| u8::try_from(c).ok()).map(Codec::from_number),
        replicate,
        retention_bytes: stored.retention_bytes.map(|bytes| (bytes > 0).then_some(bytes)),
        retention_age: stored.retention_us.map(|us| (us > 0).then(|| Duration::from_micros(us))),
    })
}

fn encode(set: &Overrides) -> Bytes {
    let replicate = set
        .replicate
        .as_ref()
        .map(|r| ReplicateOverride { all: r.is_none(), sites: r.iter().flatten().map(ToString::to_string).collect() });
    let us = |age: Duration| u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
    let stored = Stored {
        queues: set.queues.map(u32::from),
        message_bytes_max: set.message_bytes_max.map(|bytes| u64::try_from(bytes).unwrap_or(u64::MAX)),
        codec: set.codec.map(|codec| u32::from(codec.number())),
        replicate,
        retention_bytes: set.retention_bytes.map(|bytes| bytes.unwrap_or(0)),
        retention_us: set.retention_age.map(|age| age.map_or(0, us)),
    };
    stored.encode_to_vec().into()
}

impl TopicBook {
    /// Brings back what commands set; the names of topics of which that cannot be read.
    pub(super) fn open(config: &NodeConfig, log: &dyn CommitLog) -> (Arc<Self>, Vec<String>) {
        let (mut set, mut unreadable) = (BTreeMap::new(), Vec::new());
        for (key, value) in log.scan(Table::Overrides, &[]) {
            let name = String::from_utf8_lossy(&key).into_owned();
            match name.parse::<Topic>().ok().zip(decode(&value)) {
                Some((topic, overrides)) => drop(set.insert(topic, overrides)),
                None => unreadable.push(name),
            }
        }
        let book = Self {
            file: RwLock::new(config.topics.clone()),
            replicate: config.replicate.clone(),
            auto_create: config.auto_create.clone(),
            set: RwLock::new(set),
        };
        (Arc::new(book), unreadable)
    }

    /// Retention as the file has it from now on; what else it says holds from the next start on.
    pub(super) fn set_retention(&self, fresh: &[(Pattern, TopicConfig)]) {
        for (pattern, config) in self.file.write().iter_mut() {
            if let Some((_, fresh)) = fresh.iter().find(|(p, _)| p == pattern) {
                (config.retention_bytes, config.retention_age) = (fresh.retention_bytes, fresh.retention_age);
            }
        }
    }

    fn in_file(&self, topic: &Topic) -> (TopicConfig, Source) {
        let file = self.file.read();
        let found = file.iter().find(|(pattern, _)| pattern.touches(topic));
        let (mut config, source) = match found {
            Some((pattern, config)) => (config.clone(), Source::File(pattern.clone())),
            None => (TopicConfig::unnamed(topic), Source::Default),
        };
        drop(file);
        let replicate = self.replicate.iter().find(|(pattern, _)| pattern.touches(topic));
        config.replicate = replicate.and_then(|(_, sites)| sites.clone());
        // Seaway's own are made when they are needed.
        config.auto_create = topic.is_internal() || self.auto_create.covers(topic);
        (config, source)
    }

    /// What holds for a topic.
    pub(super) fn config(&self, topic: &Topic) -> TopicConfig {
        let (mut config, _) = self.in_file(topic);
        if let Some(set) = self.set.read().get(topic) {
            set.put_on(&mut config);
        }
        config
    }

    /// What would hold with these and what the file says, if it goes together.
    fn check(&self, topic: &Topic, set: &Overrides) -> Result<TopicConfig, PublishError> {
        let mut config = self.in_file(topic).0;
        set.put_on(&mut config);
        let most = u64::try_from(config.message_bytes_max).unwrap_or(u64::MAX);
        if let Some(bytes) = config.retention_bytes.filter(|bytes| *bytes < most) {
            let text = format!(
                "retention-size would be {bytes} bytes, less than message-size-max ({most}): a log of {topic} could not keep one such \
                 message; raise retention-size, or lower message-size-max"
            );
            return Err(PublishError::Invalid(text));
        }
        Ok(config)
    }

    /// Which sites count as registered, first what commands set.
    pub(super) fn replicate(&self) -> Vec<(Pattern, Option<Vec<Site>>)> {
        let set = self.set.read();
        let of_commands = set.iter().filter_map(|(topic, set)| {
            // A topic's name is a pattern that means it alone.
            Some((topic.as_str().parse::<Pattern>().ok()?, set.replicate.clone()?))
        });
        of_commands.chain(self.replicate.iter().cloned()).collect()
    }
}

/// What of a log is trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrimTo {
    /// What lies below this place.
    Place(Place),
    /// What was published before this time at its origin, microseconds since 1970.
    Time(u64),
    /// All but so many of the newest bytes.
    KeepBytes(u64),
}

/// What a command makes of what is set of a topic.
struct Planned {
    set: Overrides,
    /// What holds then.
    config: TopicConfig,
    entry: Entry,
}

impl Planned {
    fn with(&self) -> With {
        With { config: Some(self.config.clone()), entries: vec![self.entry.clone()] }
    }
}

impl NodeInner {
    /// The origin, for what an operator changes: that goes on where messages are not taken for lack of room, or while the node is
    /// drained.
    fn own(&self) -> Result<&Arc<Origin>, PublishError> {
        self.check_steering()?;
        let no_origin = || PublishError::Invalid(format!("{} is a relay and has no topics", self.config.name));
        self.origin.as_ref().ok_or_else(no_origin)
    }

    /// What a command makes of what is set of a topic, checked and not stored yet.
    fn plan(&self, topic: &Topic, change: TopicChange) -> Result<Planned, PublishError> {
        let before = self.topics.set.read().get(topic).cloned();
        let known = before.is_some();
        let mut set = before.unwrap_or_default();
        change.apply(&mut set);
        let config = self.topics.check(topic, &set)?;
        self.check_burst(topic, &set)?;
        let count = self.topics.set.read().len();
        if !known && count >= OVERRIDES_MAX {
            let text = format!("commands set something of {count} topics already, the most that may be; use the file");
            return Err(PublishError::Invalid(text));
        }
        let key = Bytes::copy_from_slice(topic.as_str().as_bytes());
        let entry = match set == Overrides::default() {
            true => Entry::Delete { table: Table::Overrides, key },
            false => Entry::Put { table: Table::Overrides, key, value: encode(&set) },
        };
        Ok(Planned { set, config, entry })
    }

    /// What commands set of a topic is durable: it holds from now on.
    fn use_overrides(&self, topic: &Topic, set: Overrides) {
        let mut sets = self.topics.set.write();
        if set == Overrides::default() {
            sets.remove(topic);
        } else {
            sets.insert(topic.clone(), set);
        }
        drop(sets);
        self.hub.set_replicate(self.clock.now(), self.topics.replicate());
    }

    /// Waits for a change of the origin's.
    async fn changed(&self, begin: impl FnOnce(TellTopic)) -> Result<(), PublishError> {
        let (tell, told) = oneshot::channel();
        begin(Box::new(move |result| drop(tell.send(result))));
        let stopped = || PublishError::Unavailable("the node is stopping; try again when it is back".to_owned());
        told.await.map_err(|_| stopped())?
    }

    async fn create_topic(&self, topic: &Topic, change: TopicChange) -> Result<(), PublishError> {
        check_name(topic)?;
        let origin = self.own()?.clone();
        let _one_at_a_time = self.changing_topics.lock().await;
        if origin.topic_state(topic).is_some_and(|state| state.deleted.is_none()) {
            let text = format!("topic {topic} exists at this site already; `seaway topic set` changes it");
            return Err(PublishError::Invalid(text));
        }
        let planned = if change.is_empty() { None } else { Some(self.plan(topic, change)?) };
        let with = planned.as_ref().map(Planned::with).unwrap_or_default();
        self.changed(|tell| origin.create_topic(topic, with, tell)).await?;
        if let Some(Planned { set, .. }) = planned {
            self.use_overrides(topic, set);
        }
        Ok(())
    }

    async fn set_topic(&self, topic: &Topic, change: TopicChange) -> Result<(), PublishError> {
        check_name(topic)?;
        let origin = self.own()?.clone();
        let _one_at_a_time = self.changing_topics.lock().await;
        let own = origin.topic_state(topic);
        let here = || self.log.logs().iter().any(|log| log.topic == *topic);
        if own.as_ref().is_some_and(|state| state.deleted.is_some()) {
            let text = format!("topic {topic} was deleted; `seaway topic create {topic}` begins it anew");
            return Err(PublishError::NoTopic(text));
        }
        if own.is_none() && (change.concerns_origin() || !here()) {
            let text = match here() {
                true => format!(
                    "topic {topic} is not published at this site: its queues, message size, compression and replicate are set at its \
                     origin, and only retention here; `seaway topic create {topic}` makes it a topic of this site too"
                ),
                false => format!("there is no topic {topic} here; make it with `seaway topic create {topic}`"),
            };
            return Err(PublishError::NoTopic(text));
        }
        let planned = self.plan(topic, change)?;
        if origin.would_change(topic, &planned.config) {
            self.changed(|tell| origin.change_topic(topic, planned.with(), tell)).await?;
        } else {
            self.store(vec![planned.entry]).await?;
        }
        self.use_overrides(topic, planned.set);
        Ok(())
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<(), PublishError> {
        check_name(topic)?;
        let origin = self.own()?.clone();
        let _one_at_a_time = self.changing_topics.lock().await;
        let own = origin.topic_state(topic);
        if own.is_none() {
            let origins: BTreeSet<Site> =
                self.log.logs().into_iter().filter(|log| log.topic == *topic).map(|log| log.origin).collect();
            let names: Vec<String> = origins.iter().map(ToString::to_string).collect();
            return Err(PublishError::NoTopic(match names.is_empty() {
                true => format!("there is no topic {topic} here; `seaway topic ls` lists those there are"),
                false => format!(
                    "topic {topic} is published at {}, not here: only its origin can delete it; run the command there",
                    names.join(" and ")
                ),
            }));
        }
        // What commands set of it was for that life.
        let key = Bytes::copy_from_slice(topic.as_str().as_bytes());
        let with = With { config: None, entries: vec![Entry::Delete { table: Table::Overrides, key }] };
        let (receipts, gone) = (self.receipts.clone(), topic.clone());
        self.changed(|tell| {
            // At once: who waits for others waits in vain.
            let told = move |result: Result<(), PublishError>| {
                if result.is_ok() {
                    receipts.topic_deleted(&gone);
                }
                tell(result);
            };
            origin.delete_topic(topic, with, Box::new(told));
        })
        .await?;
        self.use_overrides(topic, Overrides::default());
        Ok(())
    }

    /// Trims one log; its begin then, where it moved.
    async fn trim_log(&self, name: &LogName, to: TrimTo) -> Result<Option<Place>, PublishError> {
        // What is Seaway's own, the audit trail above all, goes by its retention and by no command.
        check_name(&name.topic)?;
        let (log, name) = (self.log.clone(), name.clone());
        let failed = |e: &dyn std::fmt::Display| PublishError::Unavailable(format!("reading {e}"));
        let find = {
            let (log, name) = (log.clone(), name.clone());
            move || match to {
                TrimTo::Place(place) => Ok(Some(place)),
                TrimTo::Time(time_us) => log.find_time(&name, time_us),
                TrimTo::KeepBytes(bytes) => {
                    log.trim_target(&name, Retention { bytes_max: Some(bytes), ..Retention::default() })
                }
            }
        };
        let found = tokio::task::spawn_blocking(find).await.map_err(|e| failed(&e))?;
        let Some(to) = found.map_err(|e| PublishError::Unavailable(e.to_string()))? else { return Ok(None) };
        let Some(before) = log.info(&name, true) else { return Ok(None) };
        let Some(held) = before.incarnations.iter().find(|i| i.incarnation == to.incarnation) else {
            let text =
                format!("{name} has no incarnation {} here; `seaway topic show` lists its places", to.incarnation);
            return Err(PublishError::Invalid(text));
        };
        if to.offset > held.end {
            let text = format!("{name} ends at {} here, before {to}", Place { offset: held.end, ..to });
            return Err(PublishError::Invalid(text));
        }
        if to <= before.begin {
            return Ok(None);
        }
        self.store(vec![Entry::Trim { log: name.clone(), to }]).await?;
        Ok(log.info(&name, true).map(|info| info.begin).filter(|begin| *begin != before.begin))
    }

    /// Tombstones of own topics that are old enough, and that all registered sites know of, go.
    pub(super) fn expire_tombstones(&self, origin: &Origin) {
        origin.expire_tombstones(TOMBSTONE_US, &|log, entry| {
            self.hub.registered(&log.topic).iter().all(|site| self.hub.site_holds(site, log, entry))
        });
    }
}

/// Whether commands may speak of a topic.
fn check_name(topic: &Topic) -> Result<(), PublishError> {
    if topic.is_internal() { Err(PublishError::Internal(topic.clone())) } else { Ok(()) }
}

impl Node {
    /// A topic's settings at this site, and where they come from.
    pub fn topic_settings(&self, topic: &Topic) -> TopicSettingsView {
        let inner = &self.inner;
        TopicSettingsView {
            config: inner.topics.config(topic),
            overrides: inner.topics.set.read().get(topic).cloned().unwrap_or_default(),
            rest: inner.topics.in_file(topic).1,
            own: inner.origin.as_ref().and_then(|origin| origin.topic_state(topic)),
        }
    }

    /// What the control queue of an origin's topic says, as far as it is held here.
    pub fn control(&self, topic: &Topic, origin: &Site) -> Option<Arc<Control>> {
        self.inner.hub.control(topic, origin)
    }

    /// Creates a topic of this site by name, with these settings; durable when this returns. Also one that was deleted.
    ///
    /// # Errors
    /// It exists, its name is not allowed, or the node takes nothing.
    pub async fn create_topic(&self, topic: &Topic, change: TopicChange) -> Result<(), PublishError> {
        self.inner.create_topic(topic, change).await
    }

    /// Changes settings of a topic; those of the origin are durable in its control queue when this returns.
    ///
    /// # Errors
    /// There is no such topic here, or what is to change is not this site's, or the node takes nothing.
    pub async fn set_topic(&self, topic: &Topic, change: TopicChange) -> Result<(), PublishError> {
        self.inner.set_topic(topic, change).await
    }

    /// Deletes a topic of this origin, durably; holders follow.
    ///
    /// # Errors
    /// This site is not its origin, it is deleted already, or the node takes nothing.
    pub async fn delete_topic(&self, topic: &Topic) -> Result<(), PublishError> {
        self.inner.delete_topic(topic).await
    }

    /// Trims a log held here, up to a batch's boundary; where it begins then, if that moved. Durable when this returns.
    ///
    /// # Errors
    /// The place is not in the log, it could not be read, or the node takes nothing.
    pub async fn trim_log(&self, log: &LogName, to: TrimTo) -> Result<Option<Place>, PublishError> {
        self.inner.trim_log(log, to).await
    }

    /// The ranges that the copy of a log waits for here and nobody who can be reached gives; with `really` they are stated as lost.
    ///
    /// # Errors
    /// [`PublishError::Invalid`]: why what is missing is not given up.
    pub fn skip_log(&self, log: &LogName, really: bool) -> Result<Vec<Hole>, PublishError> {
        self.inner.hub.skip(self.inner.clock.now(), log, really).map_err(PublishError::Invalid)
    }

    /// The sites that refuse a topic of this origin, and why.
    pub fn refused_by(&self, topic: &Topic) -> Vec<(Site, String)> {
        self.inner.hub.refused_by(topic)
    }

    /// The sites that have confirmed the deletion of a topic of this origin, and those that have not.
    pub fn deletion_confirmed(&self, topic: &Topic) -> (Vec<Site>, Vec<Site>) {
        let inner = &self.inner;
        let state = inner.origin.as_ref().and_then(|origin| origin.topic_state(topic));
        let Some(entry) = state.and_then(|s| s.deleted).map(|d| d.entry) else { return Default::default() };
        let control = LogName { topic: topic.clone(), origin: inner.config.name.site.clone(), queue: Queue::CONTROL };
        inner.hub.registered(topic).into_iter().partition(|site| inner.hub.site_holds(site, &control, entry))
    }
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
