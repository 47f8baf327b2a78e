//! The lives of this origin's topics: creation, changes of settings, deletion. Each is an entry in the topic's control queue, and
//! becomes durable with the topic's row in its table, as one unit.
//!
//! **When an entry is written**: at creation, when one of the settings changes, at deletion; and anew in full at the first
//! publish after a start, once the newest one is [`REWRITE_AFTER_US`] old. Every entry states all settings, and the newest change of the
//! queue count with where each queue ended before it.
//!
//! **A change closes the topic's queues first.** What was taken is finished, what comes meanwhile waits (it finds no room), and
//! once the queues are idle the entry is written and the topic opened anew. So nothing taken before a change stands after
//! it, in whatever queue. It costs the topic's publishers one write of the commit log.
//!
//! **What a command sets with a change** ([`With`]) is stored in the same unit as the entry: a change that is refused leaves nothing
//! behind, and the topic goes on as it was.
//!
//! **A deletion** trims each queue to its end, which stays as an empty shell: a new life goes on above. The topic takes nothing more
//! until it is created by name, whatever `auto_create` says, so that no retry of a publish brings it back.

use std::collections::HashMap;

use seaway_federation_proto::{
    control::{self, Deletion, Ends, Settings},
    copies::LogInfo,
    replication::tombstone_key,
    wire::store::{QueueChange, TopicDeleted, control_entry::Kind as EntryKind},
};

use super::{
    ended::{Ended, all_ended, is_over},
    *,
};

/// A full entry is written anew after so long, microseconds: a week.
pub const REWRITE_AFTER_US: u64 = 7 * 24 * 3600 * 1_000_000;

/// Told once: what became of a change of a topic, when it is durable or refused.
pub type TellTopic = Box<dyn FnOnce(Result<(), PublishError>) + Send>;

/// What goes with a change of a topic.
#[derive(Debug, Clone, Default)]
pub struct With {
    /// The settings that are to hold, where those that hold now are not meant.
    pub config: Option<TopicConfig>,
    /// Stored in the unit of the change.
    pub entries: Vec<Entry>,
}

/// What is known of one of this origin's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnTopicState {
    /// What its newest entry says.
    pub settings: Settings,
    /// Its tombstone, while it is deleted.
    pub deleted: Option<Deletion>,
}

/// What a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// The settings that hold now are written.
    Settings,
    Delete,
}

/// A topic whose queues are closed for a change.
struct Changing {
    topic: Topic,
    what: What,
    with: With,
    queues: Vec<Arc<OwnQueue>>,
    /// The commit log has no room for it at present.
    blocked: bool,
    tell: TellTopic,
}

/// Changes under way, and who waits for them.
#[derive(Default)]
pub(super) struct Changes {
    open: HashMap<String, Changing>,
    waiting: Vec<Box<dyn FnOnce() + Send>>,
}

impl Changes {
    pub(super) fn is_open(&self, topic: &str) -> bool {
        self.open.contains_key(topic)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes who waits until a change is done; given back where there is none.
    pub(super) fn wait(&mut self, wake: Box<dyn FnOnce() + Send>) -> Option<Box<dyn FnOnce() + Send>> {
        if self.open.is_empty() {
            return Some(wake);
        }
        self.waiting.push(wake);
        None
    }
}

/// Whether the row of a topic is its tombstone.
pub(super) fn tombstone(row: &TopicSettings) -> Option<&TopicDeleted> {
    row.deleted.as_ref().filter(|deleted| deleted.life >= row.life)
}

/// The settings as they are stored.
fn settings_of(config: &TopicConfig) -> Settings {
    Settings {
        queues: config.queues.clamp(1, limits::QUEUES_MAX),
        message_bytes_max: u64::try_from(config.message_bytes_max.min(limits::MESSAGE_BYTES_CEILING))
            .unwrap_or(u64::MAX),
        codec: config.codec,
        replicate: config.replicate.clone(),
    }
}

/// Who asked for a change, until it is durable and this origin goes by it: either may come first.
struct Told {
    tell: Option<TellTopic>,
    result: Option<Result<(), PublishError>>,
    written: bool,
}

impl Told {
    /// Notes what came to be, and tells once there is nothing more to come.
    fn pass(told: &Mutex<Self>, note: impl FnOnce(&mut Self)) {
        let mut told = told.lock();
        note(&mut told);
        if !told.written || told.result.is_none() {
            return;
        }
        let (tell, result) = (told.tell.take(), told.result.take());
        drop(told);
        if let (Some(tell), Some(result)) = (tell, result) {
            tell(result);
        }
    }
}

impl Origin {
    /// Creates a topic by name, also one that was deleted.
    pub fn create_topic(self: &Arc<Self>, topic: &Topic, with: With, tell: TellTopic) {
        if self.stored.lock().get(topic.as_str()).is_some_and(|row| tombstone(row).is_none()) {
            let text = format!("topic {topic} exists at this site already; `seaway topic set` changes it");
            return tell(Err(PublishError::Invalid(text)));
        }
        self.begin_change(topic, What::Settings, with, tell);
    }

    /// Brings a topic in line with the settings that hold now; one that does not exist yet gets them when it is created.
    pub fn apply_settings(self: &Arc<Self>, topic: &Topic, tell: TellTopic) {
        self.change_topic(topic, With::default(), tell);
    }

    /// Whether a topic is there whose settings are others than these.
    pub fn would_change(&self, topic: &Topic, config: &TopicConfig) -> bool {
        let row = self.stored_row(topic).filter(|row| tombstone(row).is_none());
        row.is_some_and(|row| Settings::from_stored(&row) != settings_of(config))
    }

    /// As [`Origin::apply_settings`], with settings that are to hold. Where nothing changes, nothing is stored.
    pub fn change_topic(self: &Arc<Self>, topic: &Topic, with: With, tell: TellTopic) {
        let wanted = with.config.clone().unwrap_or_else(|| (self.config.topics)(topic));
        if !self.would_change(topic, &wanted) {
            return tell(Ok(()));
        }
        self.begin_change(topic, What::Settings, with, tell);
    }

    /// Deletes a topic of this origin.
    pub fn delete_topic(self: &Arc<Self>, topic: &Topic, with: With, tell: TellTopic) {
        let known = self.stored_row(topic).map(|row| tombstone(&row).is_some());
        let refused = match known {
            Some(false) => return self.begin_change(topic, What::Delete, with, tell),
            Some(true) => format!("topic {topic} is deleted already"),
            None => format!("topic {topic} was never published at this site; only its origin can delete a topic"),
        };
        tell(Err(PublishError::Invalid(refused)));
    }

    /// What is known of a topic of this origin.
    pub fn topic_state(&self, topic: &Topic) -> Option<OwnTopicState> {
        let row = &self.stored_row(topic)?;
        let deleted = tombstone(row).and_then(|d| Some(Deletion::from_stored(d, control::place_of(d.entry?))));
        Some(OwnTopicState { settings: Settings::from_stored(row), deleted })
    }

    /// Whether a topic of this origin is deleted.
    pub fn is_deleted(&self, topic: &Topic) -> bool {
        self.stored.lock().get(topic.as_str()).is_some_and(|row| tombstone(row).is_some())
    }

    /// Closes the topic's queues; the rest follows when they are idle.
    fn begin_change(self: &Arc<Self>, topic: &Topic, what: What, with: With, tell: TellTopic) {
        if let Some(refused) = self.is_unreadable(topic) {
            return tell(Err(refused));
        }
        let mut topics = self.topics.write();
        let mut changing = self.changing.lock();
        if changing.is_open(topic.as_str()) {
            drop((topics, changing));
            let text = format!("topic {topic} is being changed at this moment; try again");
            return tell(Err(PublishError::Unavailable(text)));
        }
        let queues = topics.remove(topic.as_str()).map(|open| open.queues().to_vec()).unwrap_or_default();
        let producers = self.producers.lock();
        for queue in &queues {
            queue.state.lock().closed = true;
        }
        drop(producers);
        let change = Changing { topic: topic.clone(), what, with, queues, blocked: false, tell };
        changing.open.insert(topic.as_str().to_owned(), change);
        drop((topics, changing));
        (self.config.wake)();
    }

    /// Writes the changes whose topics have come to rest.
    pub(super) fn finish_changes(self: &Arc<Self>) {
        loop {
            // The order of locks is topics, then changes.
            let mut topics = self.topics.write();
            let mut changing = self.changing.lock();
            let idle = |c: &Changing| !c.blocked && c.queues.iter().all(|q| q.state.lock().is_idle());
            let due = changing.open.iter().find(|(_, c)| idle(c)).map(|(name, _)| name.clone());
            let Some(change) = due.and_then(|name| changing.open.remove(&name)) else { return };
            drop(changing);
            let refused = self.write_change(&mut topics, change);
            let waiting = std::mem::take(&mut self.changing.lock().waiting);
            drop(topics);
            waiting.into_iter().for_each(|wake| wake());
            if let Some((tell, error)) = refused {
                tell(Err(error));
            }
        }
    }

    /// Writes a change; who asked for it is told when it is durable, or given back with why not.
    fn write_change(
        self: &Arc<Self>,
        topics: &mut HashMap<String, Arc<OwnTopic>>,
        change: Changing,
    ) -> Option<(TellTopic, PublishError)> {
        let Changing { topic, what, with, tell, .. } = change;
        let told = Arc::new(Mutex::new(Told { tell: Some(tell), result: None, written: false }));
        let done = {
            let told = told.clone();
            Box::new(move |result: Result<(), Poisoned>| {
                let result = result.map_err(|poisoned| PublishError::InDoubt(poisoned.to_string()));
                Told::pass(&told, |told| told.result = Some(result));
            })
        };
        let stored = self.stored.lock().get(topic.as_str()).cloned();
        let written = match what {
            What::Settings => self.open_as(topics, &topic, stored, &with, Some(done)).map(drop),
            What::Delete => self.write_deletion(&topic, stored, &with, done),
        };
        let tell = match &written {
            Ok(()) => {
                Told::pass(&told, |told| told.written = true);
                None
            }
            Err(_) => told.lock().tell.take(),
        };
        match (written, tell) {
            (Err(Refusal::Error(error)), Some(tell)) => Some((tell, error)),
            (Err(Refusal::Full), Some(tell)) => {
                let name = topic.as_str().to_owned();
                let change = Changing { topic, what, with, queues: Vec::new(), blocked: true, tell };
                self.changing.lock().open.insert(name.clone(), change);
                let origin = Arc::downgrade(self);
                let room = move || {
                    let Some(origin) = origin.upgrade() else { return };
                    if let Some(change) = origin.changing.lock().open.get_mut(&name) {
                        change.blocked = false;
                    }
                    (origin.config.wake)();
                };
                self.log.ready(limits::BATCH_BYTES_MAX, Box::new(room));
                None
            }
            _ => None,
        }
    }

    /// Opens a topic for a publish: at its creation, when its settings changed, and now and then, a control entry is written first.
    pub(super) fn open_topic(self: &Arc<Self>, topic: &Topic) -> Result<Arc<OwnTopic>, Refusal> {
        let mut topics = self.topics.write();
        if let Some(known) = topics.get(topic.as_str()) {
            return Ok(known.clone());
        }
        if self.changing.lock().is_open(topic.as_str()) {
            return Err(Refusal::Full);
        }
        if let Some(refused) = self.is_unreadable(topic) {
            return Err(Refusal::Error(refused));
        }
        let stored = self.stored.lock().get(topic.as_str()).cloned();
        let refused = match stored.as_ref().filter(|row| !is_over(row)) {
            Some(row) if tombstone(row).is_some() => {
                Some(format!("topic {topic} was deleted; `seaway topic create {topic}` begins it anew"))
            }
            None if !(self.config.topics)(topic).auto_create => Some(format!(
                "there is no topic {topic} at this site, and publishing does not create it ([topics] auto_create); make it with \
                 `seaway topic create {topic}`"
            )),
            _ => None,
        };
        match refused {
            Some(text) => Err(Refusal::Error(PublishError::NoTopic(text))),
            None => self.open_as(&mut topics, topic, stored, &With::default(), None),
        }
    }

    /// Opens a topic with the settings that hold now. `done` is called in any case where the answer is `Ok`.
    fn open_as(
        self: &Arc<Self>,
        topics: &mut HashMap<String, Arc<OwnTopic>>,
        topic: &Topic,
        stored: Option<TopicSettings>,
        with: &With,
        done: Option<Done>,
    ) -> Result<Arc<OwnTopic>, Refusal> {
        let mut wanted = settings_of(&with.config.clone().unwrap_or_else(|| (self.config.topics)(topic)));
        if let Err(refused) = self.check_bounds(topic, stored.as_ref(), wanted.queues) {
            // Who commands it is told; where the file asks for it, the topic goes on as it is.
            let living = stored.as_ref().filter(|row| done.is_none() && tombstone(row).is_none());
            let Some(row) = living else { return Err(refused) };
            self.report_bounds(topic, refused);
            wanted.queues = Settings::from_stored(row).queues;
        }
        let now_us = self.config.clock.wall_us();
        let row = match stored {
            Some(row) if tombstone(&row).is_none() => {
                let before = Settings::from_stored(&row);
                let stale = row.written_us.saturating_add(REWRITE_AFTER_US) < now_us;
                if before == wanted && !stale {
                    Err(row)
                } else {
                    let ends = (before.queues != wanted.queues)
                        .then(|| QueueChange { ends: control::stored_ends(&self.ends(topic, &row)), entry: None });
                    let (change, life, deleted) = (ends.or(row.change), row.life, row.deleted);
                    Ok(TopicSettings { change, life, deleted, ..wanted.to_stored() })
                }
            }
            // A new life, or the first.
            row => {
                let deleted = row.and_then(|row| row.deleted);
                let life = deleted.as_ref().map_or(0, |d| d.life.saturating_add(1));
                Ok(TopicSettings { life, deleted, ..wanted.to_stored() })
            }
        };
        let row = match row {
            Ok(new) => self.write_settings(topic, TopicSettings { written_us: now_us, ..new }, with, done)?,
            Err(as_it_was) => {
                match done {
                    Some(done) if with.entries.is_empty() => done(Ok(())),
                    Some(done) => self.submit_change(with.entries.clone(), done)?,
                    None => {}
                }
                as_it_was
            }
        };
        let opened = Arc::new(OwnTopic::new(topic.clone(), &self.config.site, &row));
        topics.insert(topic.as_str().to_owned(), opened.clone());
        Ok(opened)
    }

    /// Where every queue that a topic ever had ends.
    fn ends(&self, topic: &Topic, row: &TopicSettings) -> Ends {
        let of_change = row.change.iter().flat_map(|c| &c.ends).map(|e| e.queue);
        let of_deletion = row.deleted.iter().flat_map(|d| &d.ends).map(|e| e.queue);
        let highest = of_change.chain(of_deletion).chain([row.queues]).max().unwrap_or(0);
        let highest = u16::try_from(highest).unwrap_or(limits::QUEUES_MAX).min(limits::QUEUES_MAX);
        let end = |queue| Some((queue, self.own_info(topic, queue)?.end));
        (1..=highest).map(Queue).filter_map(end).collect()
    }

    fn own_info(&self, topic: &Topic, queue: Queue) -> Option<LogInfo> {
        self.log.info(&LogName { topic: topic.clone(), origin: self.config.site.clone(), queue }, false)
    }

    /// Writes the entry and the topic's row as one unit; the row as it is then. Messages submitted after it become durable after it.
    fn write_settings(
        self: &Arc<Self>,
        topic: &Topic,
        mut row: TopicSettings,
        with: &With,
        done: Option<Done>,
    ) -> Result<TopicSettings, Refusal> {
        // Tombstones of former lives stand in entries of their own.
        let stated = TopicSettings { deleted: None, ..row.clone() };
        let over = row.deleted.as_mut().map(|deleted| std::mem::take(&mut deleted.over)).unwrap_or_default();
        let ended = all_ended(topic, &over)?;
        self.write_entry(topic, EntryKind::Settings(stated), ended, done, |entry| {
            if let Some(change) = row.change.as_mut().filter(|change| change.entry.is_none()) {
                change.entry = Some(control::stored_place(entry));
            }
            [put_row(topic, &row)].into_iter().chain(with.entries.iter().cloned()).collect()
        })?;
        self.stored.lock().insert(topic.as_str().to_owned(), row.clone());
        Ok(row)
    }

    /// Writes the final entry, the tombstone, and empties the queues, as one unit.
    fn write_deletion(
        self: &Arc<Self>,
        topic: &Topic,
        stored: Option<TopicSettings>,
        with: &With,
        done: Done,
    ) -> Result<(), Refusal> {
        let Some(row) = stored.filter(|row| tombstone(row).is_none()) else {
            return Err(Refusal::Error(PublishError::Invalid(format!("topic {topic} is deleted already"))));
        };
        let ends = self.ends(topic, &row);
        let time_us = self.config.clock.wall_us();
        let stated =
            TopicDeleted { life: row.life, time_us, ends: control::stored_ends(&ends), ..TopicDeleted::default() };
        let mut row = TopicSettings { deleted: Some(stated.clone()), change: None, ..row };
        let site = &self.config.site;
        self.write_entry(topic, EntryKind::Deleted(stated.clone()), Vec::new(), Some(done), |entry| {
            let stone = TopicDeleted { entry: Some(control::stored_place(entry)), ..stated };
            row.deleted = Some(stone.clone());
            let (key, value) = (tombstone_key(site, topic), stone.encode_to_vec().into());
            let mut entries = vec![put_row(topic, &row), Entry::Put { table: Table::Deleted, key, value }];
            entries.extend(ends.iter().map(|(queue, end)| Entry::Trim {
                log: LogName { topic: topic.clone(), origin: site.clone(), queue: *queue },
                to: *end,
            }));
            entries.extend(with.entries.iter().cloned());
            entries
        })?;
        self.stored.lock().insert(topic.as_str().to_owned(), row);
        Ok(())
    }

    /// Appends an entry to a control queue, together with what follows from its place. Of a topic that is over the logs are begun where they
    /// `ended`.
    fn write_entry(
        self: &Arc<Self>,
        topic: &Topic,
        kind: EntryKind,
        ended: Vec<Ended>,
        done: Option<Done>,
        with: impl FnOnce(Place) -> Vec<Entry>,
    ) -> Result<(), Refusal> {
        let name = LogName { topic: topic.clone(), origin: self.config.site.clone(), queue: Queue::CONTROL };
        let Ok(path) = topic.as_str().parse::<Path>() else {
            return Err(Refusal::Error(PublishError::Invalid(format!("topic {topic} is not a path"))));
        };
        let known = self.control_lines.lock().remove(topic.as_str());
        let mut line = match (known, ended.iter().find(|ended| ended.queue == Queue::CONTROL)) {
            (_, Some(ended)) => {
                Line::above(&name, ended.at, ended.chain, self.config.random).map_err(Refusal::Error)?
            }
            (Some(line), None) => line,
            (None, None) => Line::open(&*self.log, &name, self.config.random).map_err(Refusal::Error)?,
        };
        let time_us = self.config.clock.wall_us();
        self.check_clock(time_us, line.time_us);
        let made_up = line.go_above(&*self.log, &name).map_err(Refusal::Error)?;
        self.report_made_up(&name, made_up.or(line.made_up));
        let mut builder = BodyBuilder::default();
        let payload = control::entry(kind);
        builder.push(&Message { path, key: None, headers: Vec::new(), time_us, producer: None, payload });
        let Some(body) = builder.finish(Codec::None) else {
            return Err(Refusal::Error(PublishError::Invalid(format!("topic {topic} has nothing to write"))));
        };
        let batch = line.place(&name, None, body, time_us).map_err(Refusal::Error)?;
        line.advance(&batch);
        let begin = |Ended { queue, at, chain }| {
            let log = LogName { queue, ..name.clone() };
            Entry::BeginCopy { log, at, chain: Some(chain) }
        };
        let mut entries: Vec<Entry> = ended.into_iter().map(begin).collect();
        entries.push(Entry::Append { role: Role::Own, batch: batch.clone() });
        entries.extend(with(batch.begin()));
        // A unit that is lost after it was accepted takes every later one with it: the publishers are told by theirs.
        self.submit_change(entries, done.unwrap_or_else(|| Box::new(|_| {})))?;
        self.control_lines.lock().insert(topic.as_str().to_owned(), line);
        Ok(())
    }

    fn submit_change(&self, entries: Vec<Entry>, done: Done) -> Result<(), Refusal> {
        match self.log.submit(Unit { entries }, done) {
            Ok(()) => Ok(()),
            Err(rejected) if rejected.reason == RejectReason::Busy => Err(Refusal::Full),
            Err(rejected) => Err(Refusal::Error(PublishError::Unavailable(rejected.reason.to_string()))),
        }
    }

    /// Whether what is stored at a place belongs to a life of the topic that was deleted since.
    pub(super) fn is_deleted_place(&self, topic: &Topic, queue: Queue, place: Place) -> bool {
        let stored = self.stored.lock();
        let deleted = stored.get(topic.as_str()).and_then(|row| row.deleted.as_ref());
        let end = deleted.and_then(|d| d.ends.iter().find(|e| e.queue == u32::from(queue.0))?.end);
        end.is_some_and(|end| place.offset < end.offset)
    }
}

pub(super) fn put_row(topic: &Topic, row: &TopicSettings) -> Entry {
    let key = Bytes::copy_from_slice(topic.as_str().as_bytes());
    Entry::Put { table: Table::Topics, key, value: row.encode_to_vec().into() }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
