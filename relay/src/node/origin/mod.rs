//! The publish path of this site's own logs: checks a message, gives it to a queue, gathers batches, and tells each
//! publisher its message's place once the commit log has made it durable.
//!
//! Synchronous and free of threads, so that simulation and the kill test run exactly this code: [`Origin::publish_run`] accepts,
//! [`Origin::pump`] does what follows from the commit log's answers and is called whenever the `wake` given in
//! [`OriginConfig`] was called. In a node a thread of its own does that.
//!
//! **Batches form by themselves**: while a queue's unit is with the storage thread, its messages gather; the next
//! batch goes when that unit is durable, or earlier once it holds [`limits::BATCH_BYTES_TARGET`] bytes. An idle queue's
//! message goes at once. Bodies are hashed and compressed outside the queue's lock; only the right to seal, which one caller
//! at a time holds, keeps the order.
//!
//! **Bounds**: [`WAITING_BYTES_MAX`] of messages accepted and not yet durable; [`TOPICS_MAX`] topics with
//! [`OWN_QUEUES_MAX`] queues, deleted ones too (`ended`).

mod ended;
mod producers;
mod queue;
pub mod settings;
mod teller;
mod topic;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use seaway_federation_proto::{
    envelope::Codec,
    ids::{Incarnation, LogName, Path, Place, Queue, Site, Topic},
    limits,
    message::{BodyBuilder, Message, ProducerStamp},
    replication::Report,
    wire::store::TopicSettings,
};

use self::{
    producers::{Producers, Stamped, Verdict},
    queue::{InFlight, Line, OwnQueue, QueueState, Ready, Waiting, Work},
    settings::Changes,
    teller::{TellOnce, Teller},
    topic::OwnTopic,
};
use super::{PublishError, TopicConfig, clock::Clock};
use crate::log::contract::{CommitLog, Done, Entry, Poisoned, RejectReason, Role, Table, Unit};

/// Bytes of messages accepted and not yet durable, over all queues.
pub const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Counted for each message on top of its content.
pub const MESSAGE_CHARGE_BYTES: usize = 256;
/// Most topics of one origin, those too that are deleted and not over.
pub const TOPICS_MAX: usize = 10_000;
/// Most queues of one origin, over all its topics.
pub const OWN_QUEUES_MAX: usize = 100_000;
/// A batch of at most this many bytes is compressed by the publisher's own call; larger ones by whoever pumps.
const COMPRESS_INLINE_BYTES: usize = 16 * 1024;
/// How far the wall clock may stand before the newest durable time before it is reported, microseconds.
const CLOCK_BACK_US: u64 = 1_000_000;

/// What became of a message that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its log.
    pub log: LogName,
    /// Its place.
    pub place: Place,
    /// A retry of a message that was stored before.
    pub repeated: bool,
}

/// Told once, from within [`Origin::publish_run`] or [`Origin::pump`].
pub type Tell = Box<dyn FnOnce(Result<Stored, PublishError>) + Send>;

/// Told of the messages of one [`Origin::publish_run`], piece by piece, of each message once.
pub trait TellRun: Send + Sync {
    /// The `count` messages from the run's message `first` on are stored in one batch, one after the other from that place
    /// on, or all failed.
    fn tell(&self, first: u32, count: u32, result: Result<Stored, PublishError>);
}

/// A message of this site's.
#[derive(Debug, Clone)]
pub struct OwnMessage {
    /// Its path.
    pub path: Path,
    /// The key that chooses its queue.
    pub key: Option<Bytes>,
    /// Headers.
    pub headers: Vec<(String, Bytes)>,
    /// Content.
    pub payload: Bytes,
    /// Idempotence.
    pub producer: Option<ProducerStamp>,
}

impl OwnMessage {
    /// Payload, key and headers together, bytes.
    pub fn content_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.payload.len() + self.key.as_ref().map_or(0, Bytes::len) + headers
    }

    /// Bytes it takes of the origin's bound, and about what it takes in a body.
    pub fn charge(&self) -> usize {
        self.content_bytes() + self.path.as_str().len() + MESSAGE_CHARGE_BYTES
    }
}

/// Why a message was not taken.
#[derive(Debug)]
enum Refusal {
    /// No room at this moment: try again after [`Origin::when_room`].
    Full,
    /// Refused; nothing is stored.
    Error(PublishError),
}

/// The end of a run that found no room.
#[derive(Debug)]
pub struct RestOfRun {
    /// Number of the first message of it.
    pub first: u32,
    /// As they came.
    pub messages: Vec<OwnMessage>,
}

/// What an origin needs.
pub struct OriginConfig {
    /// This site.
    pub site: Site,
    /// The random half of the incarnations that this start opens.
    pub random: u64,
    /// Settings of topics.
    pub topics: Arc<dyn Fn(&Topic) -> TopicConfig + Send + Sync>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Called from any thread when [`Origin::pump`] has something to do; must not block or call back.
    pub wake: Arc<dyn Fn() + Send + Sync>,
    /// Told what people should know; must not block or call back.
    pub report: Arc<dyn Fn(Report) + Send + Sync>,
}

/// A queue that has something to seal, and how many bytes.
type Due = Option<(Arc<OwnQueue>, usize)>;

/// A message that was not taken.
struct Refused {
    message: OwnMessage,
    teller: Teller,
    refusal: Refusal,
}

/// The commit log's answer for a queue's oldest batch that is with it.
type Answered = (Arc<OwnQueue>, Result<(), Poisoned>);

/// The publish path; see the module's documentation. Lock order: topics, changes, producers, then a queue's state.
pub struct Origin {
    config: OriginConfig,
    log: Arc<dyn CommitLog>,
    topics: RwLock<HashMap<String, Arc<OwnTopic>>>,
    /// Settings of topics as they are stored: a copy in memory, so that publishing does not wait on the disk.
    stored: Mutex<HashMap<String, TopicSettings>>,
    /// Topics of which what is stored cannot be read.
    unreadable: BTreeSet<String>,
    /// Topics that are being changed.
    changing: Mutex<Changes>,
    /// Where control queues end that were written in this start.
    control_lines: Mutex<HashMap<String, Line>>,
    producers: Mutex<Producers>,
    waiting_bytes: AtomicUsize,
    closed: AtomicBool,
    clock_reported: AtomicBool,
    /// What the storage thread answered: in order for each queue.
    answered: Mutex<Vec<Answered>>,
    /// Queues to look after.
    listed: Mutex<Vec<Arc<OwnQueue>>>,
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").field("site", &self.config.site).finish_non_exhaustive()
    }
}

impl Origin {
    /// An origin over its commit log: brings back what is known of producers.
    pub fn open(config: OriginConfig, log: Arc<dyn CommitLog>) -> Arc<Origin> {
        let (mut stored, mut unreadable) = (HashMap::new(), BTreeSet::new());
        for (key, value) in log.scan(Table::Topics, &[]) {
            let name = String::from_utf8_lossy(&key).into_owned();
            match TopicSettings::decode(value) {
                Ok(row) => drop(stored.insert(name, row)),
                Err(why) => {
                    let text = format!(
                        "what is stored of topic {name} cannot be read ({why}): it takes no messages, since nobody can tell where it goes on;                          use another topic, or bring the data directory back from a backup"
                    );
                    (config.report)(Report { name: "stored-state-unreadable", subject: name.clone(), text });
                    unreadable.insert(name);
                }
            }
        }
        let producers = Producers::restore(log.scan(Table::Producers, &[]), config.clock.now());
        Arc::new(Origin {
            config,
            log,
            topics: RwLock::default(),
            stored: Mutex::new(stored),
            unreadable,
            changing: Mutex::default(),
            control_lines: Mutex::default(),
            producers: Mutex::new(producers),
            waiting_bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            clock_reported: AtomicBool::new(false),
            answered: Mutex::default(),
            listed: Mutex::default(),
        })
    }

    /// A run of one message; see [`Origin::publish_run`].
    ///
    /// # Errors
    /// The message, where there is no room for it now.
    pub fn publish(self: &Arc<Self>, message: OwnMessage, tell: Tell) -> Result<(), Box<OwnMessage>> {
        let once: Arc<dyn TellRun> = Arc::new(TellOnce::new(tell));
        match self.publish_run(0, vec![message], &once) {
            Ok(()) => Ok(()),
            Err(rest) => rest.messages.into_iter().next().map_or(Ok(()), |message| Err(Box::new(message))),
        }
    }

    /// Takes the messages of a run one after the other, the first of which has the number `first`. They are stored in the
    /// order of these calls within their queues, and `run` is told of each once: also of what is refused for good. Where there
    /// is no room, the rest comes back, for after [`Origin::when_room`]. Waits on nothing, except where a topic's logs are
    /// first opened after damage.
    ///
    /// # Errors
    /// The messages that found no room.
    pub fn publish_run(
        self: &Arc<Self>,
        first: u32,
        messages: Vec<OwnMessage>,
        run: &Arc<dyn TellRun>,
    ) -> Result<(), RestOfRun> {
        let time_us = self.config.clock.wall_us();
        let mut known = None;
        let mut due: Due = None;
        let mut messages = messages.into_iter();
        let mut number = first;
        while let Some(message) = messages.next() {
            let teller = Teller { run: run.clone(), first: number, count: 1 };
            match self.accept(message, teller, time_us, &mut known) {
                Ok(None) => {}
                Ok(Some(now)) => {
                    if let Some((queue, _)) = due.take_if(|(queue, _)| !Arc::ptr_eq(queue, &now.0)) {
                        self.drive(&queue);
                    }
                    due = Some(now);
                }
                Err(refused) => {
                    let Refused { message, teller, refusal } = *refused;
                    match refusal {
                        Refusal::Error(error) => teller.tell(Err(error)),
                        Refusal::Full => {
                            self.follow_up(due);
                            let messages = std::iter::once(message).chain(messages).collect();
                            return Err(RestOfRun { first: number, messages });
                        }
                    }
                }
            }
            number = number.saturating_add(1);
        }
        self.follow_up(due);
        Ok(())
    }

    /// Checks a message and puts it into its queue. `known` is the topic of the message before it.
    fn accept(
        self: &Arc<Self>,
        message: OwnMessage,
        teller: Teller,
        time_us: u64,
        known: &mut Option<Arc<OwnTopic>>,
    ) -> Result<Due, Box<Refused>> {
        let (topic, queue) = match self.place_of(&message, known) {
            Ok(found) => found,
            Err(refusal) => return Err(Box::new(Refused { message, teller, refusal })),
        };
        let closed = |(message, teller): (OwnMessage, Teller)| {
            // The topic is being changed: it comes again when that is done.
            Err(Box::new(Refused { message, teller, refusal: Refusal::Full }))
        };
        let Some(stamp) = message.producer else {
            return self.push(&queue, message, teller, time_us).or_else(|back| {
                *known = None;
                closed(*back)
            });
        };
        let mut producers = self.producers.lock();
        // Queues are closed under this lock.
        if queue.state.lock().closed {
            *known = None;
            return closed((message, teller));
        }
        match producers.judge(&topic.topic, stamp, self.config.clock.now(), teller) {
            // Under the producers' lock, so that two calls cannot change places between judgement and queue.
            Verdict::Accept(teller) => self.push(&queue, message, teller, time_us).or_else(|back| closed(*back)),
            Verdict::Waits => Ok(None),
            Verdict::Repeated(teller, queue, place) => {
                drop(producers);
                let log = LogName { topic: topic.topic.clone(), origin: self.config.site.clone(), queue };
                teller.tell(match self.is_deleted_place(&topic.topic, queue, place) {
                    false => Ok(Stored { log, place, repeated: true }),
                    true => Err(PublishError::Deleted(topic.topic.clone())),
                });
                Ok(None)
            }
            Verdict::StoredBefore(teller) => {
                drop(producers);
                teller.tell(Err(PublishError::StoredBefore { asked: false }));
                Ok(None)
            }
            Verdict::Refused(teller, error) => {
                Err(Box::new(Refused { message, teller, refusal: Refusal::Error(error) }))
            }
        }
    }

    /// A message's topic and queue, opened.
    fn place_of(
        self: &Arc<Self>,
        message: &OwnMessage,
        known: &mut Option<Arc<OwnTopic>>,
    ) -> Result<(Arc<OwnTopic>, Arc<OwnQueue>), Refusal> {
        let topic = self.admit(message, known)?;
        let Some(queue) = topic.choose(message.key.as_deref(), message.charge()) else {
            return Err(Refusal::Error(PublishError::Unavailable(format!("topic {} has no queue", topic.topic))));
        };
        self.open_line(queue).map_err(Refusal::Error)?;
        let queue = queue.clone();
        Ok((topic, queue))
    }

    /// Adds to the queue; answers whether it has something to seal, and how many bytes. A closed one gives the message back.
    fn push(
        &self,
        queue: &Arc<OwnQueue>,
        message: OwnMessage,
        teller: Teller,
        time_us: u64,
    ) -> Result<Due, Box<(OwnMessage, Teller)>> {
        let mut state = queue.state.lock();
        if state.closed {
            return Err(Box::new((message, teller)));
        }
        let charge = message.charge();
        self.waiting_bytes.fetch_add(charge, Ordering::Relaxed);
        let OwnMessage { path, key, headers, payload, producer } = message;
        let message = Message { path, key, headers, time_us, producer, payload };
        state.push(message, charge, Waiting { teller, stamp: producer, charge });
        Ok(state.is_due().then(|| (queue.clone(), state.due_bytes())))
    }

    fn follow_up(self: &Arc<Self>, due: Due) {
        match due {
            Some((queue, bytes)) if queue.codec == Codec::None || bytes <= COMPRESS_INLINE_BYTES => self.drive(&queue),
            Some((queue, _)) => self.list(&queue),
            None => {}
        }
    }

    /// Checks that need no queue, and opens the topic.
    fn admit(
        self: &Arc<Self>,
        message: &OwnMessage,
        last: &mut Option<Arc<OwnTopic>>,
    ) -> Result<Arc<OwnTopic>, Refusal> {
        if self.closed.load(Ordering::Acquire) {
            let text = "the node is shutting down; publish elsewhere or when it is back";
            return Err(Refusal::Error(PublishError::Unavailable(text.to_owned())));
        }
        if self.waiting_bytes.load(Ordering::Relaxed) >= WAITING_BYTES_MAX {
            return Err(Refusal::Full);
        }
        let name = message.path.as_str().split('/').next().unwrap_or_default();
        let topic = match last.take_if(|topic| topic.topic.as_str() == name) {
            Some(topic) => topic,
            None => match self.known_topic(name) {
                Some(topic) => topic,
                None => self.open_topic(&message.path.topic())?,
            },
        };
        *last = Some(topic.clone());
        check_content(message, topic.message_bytes_max).map_err(Refusal::Error)?;
        Ok(topic)
    }

    /// Why a topic can be neither used nor changed, if what is stored of it cannot be read.
    fn is_unreadable(&self, topic: &Topic) -> Option<PublishError> {
        let text = || format!("what is stored of topic {topic} cannot be read; see the alarm stored-state-unreadable");
        self.unreadable.contains(topic.as_str()).then(|| PublishError::Unavailable(text()))
    }

    fn known_topic(&self, name: &str) -> Option<Arc<OwnTopic>> {
        self.topics.read().get(name).cloned()
    }

    /// Finds where the queue's log ends, once each start.
    fn open_line(&self, queue: &OwnQueue) -> Result<(), PublishError> {
        let mut state = queue.state.lock();
        if state.line.is_none() {
            let line = Line::open(&*self.log, &queue.log, self.config.random)?;
            self.check_clock(self.config.clock.wall_us(), line.time_us);
            self.report_made_up(&queue.log, line.made_up);
            state.after = queue.seam.filter(|seam| line.is_at(seam)).map(|seam| seam.entry);
            state.line = Some(line);
        }
        Ok(())
    }

    fn report_made_up(&self, log: &LogName, made_up: Option<Incarnation>) {
        let Some(incarnation) = made_up else { return };
        let text = format!(
            "{log} has an incarnation {incarnation} that this site cannot have made: a member made it up or is broken; what is published here goes on below it, and is delivered as a fork"
        );
        (self.config.report)(Report { name: "incarnation-made-up", subject: log.to_string(), text });
    }

    fn check_clock(&self, wall_us: u64, durable_us: u64) {
        if wall_us.saturating_add(CLOCK_BACK_US) < durable_us && !self.clock_reported.swap(true, Ordering::Relaxed) {
            let behind_s = durable_us.saturating_sub(wall_us) / 1_000_000;
            let text = format!(
                "the wall clock stands {behind_s} s before the newest message stored here; set the clock, origin times stand still until then"
            );
            (self.config.report)(Report { name: "clock-behind", subject: String::new(), text });
        }
    }

    /// Does what follows from the commit log's answers: seals and submits what gathered, then tells publishers.
    pub fn pump(self: &Arc<Self>) {
        loop {
            let answered = std::mem::take(&mut *self.answered.lock());
            let listed = std::mem::take(&mut *self.listed.lock());
            if answered.is_empty() && listed.is_empty() {
                return self.finish_changes();
            }
            let mut finished = Vec::with_capacity(answered.len());
            for (queue, result) in answered {
                if let Some(batch) = queue.state.lock().in_flight.pop_front() {
                    finished.push((queue.clone(), batch, result));
                }
                self.drive(&queue);
            }
            for queue in listed {
                queue.listed.store(false, Ordering::Release);
                self.drive(&queue);
            }
            for (queue, batch, result) in finished {
                self.finish(&queue, batch, result);
            }
        }
    }

    /// Seals and submits what is due in a queue.
    fn drive(self: &Arc<Self>, queue: &Arc<OwnQueue>) {
        while let Some(work) = queue.take_work() {
            let ready = match work {
                Work::Submit(ready) => ready,
                Work::Seal(mut gathering) => {
                    let stamped = gathering.stamped();
                    let Some(body) = gathering.builder.finish(queue.codec) else {
                        queue.state.lock().end_sealing();
                        continue;
                    };
                    Ready { body, waiting: gathering.waiting, stamped, time_us: gathering.time_us }
                }
            };
            self.submit(queue, ready);
        }
    }

    /// Places a sealed body at its log's end and hands it to the commit log.
    fn submit(self: &Arc<Self>, queue: &Arc<OwnQueue>, ready: Ready) {
        let mut producers = (!ready.stamped.is_empty()).then(|| self.producers.lock());
        let mut state = queue.state.lock();
        let after = state.after;
        let Some(line) = state.line.as_mut() else {
            return self.fail_queue(queue, producers, state, ready.waiting, "the log was not opened");
        };
        let placed = line.go_above(&*self.log, &queue.log).and_then(|made_up| {
            self.report_made_up(&queue.log, made_up);
            line.place(&queue.log, after, ready.body.clone(), ready.time_us)
        });
        let batch = match placed {
            Ok(batch) => batch,
            Err(e) => {
                state.line = None; // the next message finds out anew, and is refused before it is taken
                return self.fail_queue(queue, producers, state, ready.waiting, &e.to_string());
            }
        };
        let begin = batch.begin();
        let mut entries = vec![Entry::Append { role: Role::Own, batch: batch.clone() }];
        let mut undo = None;
        if let Some(producers) = &mut producers {
            let (more, changed) = producers.submitting(queue.topic(), queue.log.queue, begin, &ready.stamped);
            entries.extend(more);
            undo = Some(changed);
        }
        match self.log.submit(Unit { entries }, self.answer_to(queue)) {
            Ok(()) => {
                if let Some(producers) = &mut producers {
                    producers.submitted(queue.topic(), queue.log.queue, begin, &ready.stamped);
                }
                state.after = None;
                if let Some(line) = &mut state.line {
                    line.advance(&batch);
                }
                state.in_flight.push_back(InFlight { begin, waiting: ready.waiting });
                state.end_sealing();
            }
            Err(rejected) => {
                if let (Some(producers), Some(undo)) = (&mut producers, undo) {
                    producers.not_submitted(queue.topic(), &ready.stamped, undo);
                }
                if rejected.reason != RejectReason::Busy {
                    let reason = rejected.reason.to_string();
                    if matches!(rejected.reason, RejectReason::Refused { .. } | RejectReason::Invalid { .. }) {
                        // The log is not as this line remembers it: look again before the next message.
                        tracing::error!(log = %queue.log, %reason, "the commit log refused a batch of this site's own");
                        state.line = None;
                    }
                    return self.fail_queue(queue, producers, state, ready.waiting, &reason);
                }
                let bytes = rejected.unit.room_bytes();
                state.blocked = Some(ready);
                state.end_sealing();
                drop(state);
                drop(producers);
                self.retry_when_room(queue, bytes);
            }
        }
    }

    fn answer_to(self: &Arc<Self>, queue: &Arc<OwnQueue>) -> Done {
        let (origin, queue) = (Arc::downgrade(self), queue.clone());
        Box::new(move |result| {
            if let Some(origin) = origin.upgrade() {
                origin.answered.lock().push((queue, result));
                (origin.config.wake)();
            }
        })
    }

    fn retry_when_room(self: &Arc<Self>, queue: &Arc<OwnQueue>, bytes: usize) {
        let (origin, queue) = (Arc::downgrade(self), queue.clone());
        let wake = move || {
            if let Some(origin) = origin.upgrade() {
                queue.state.lock().woken = true;
                origin.list(&queue);
            }
        };
        self.log.ready(bytes, Box::new(wake));
    }

    /// Puts a queue on the list that [`Origin::pump`] works off.
    fn list(&self, queue: &Arc<OwnQueue>) {
        if !queue.listed.swap(true, Ordering::AcqRel) {
            self.listed.lock().push(queue.clone());
        }
        (self.config.wake)();
    }

    /// A batch was refused for good: it and everything behind it in the queue fails, so that no order is broken.
    fn fail_queue(
        &self,
        queue: &OwnQueue,
        producers: Option<parking_lot::MutexGuard<'_, Producers>>,
        mut state: parking_lot::MutexGuard<'_, QueueState>,
        waiting: Vec<Waiting>,
        reason: &str,
    ) {
        let behind = state.take_unsubmitted();
        state.end_sealing();
        drop(state);
        drop(producers);
        let all: Vec<Waiting> = waiting.into_iter().chain(behind).collect();
        let stamps: Vec<Stamped> = queue::stamped(&all);
        let mut retries = Vec::new();
        if !stamps.is_empty() {
            let mut producers = self.producers.lock();
            // From the last to the first, so that what is missing stays one range.
            retries = stamps.iter().rev().flat_map(|s| producers.failed(queue.topic(), s.stamp)).collect();
        }
        for waiting in all {
            self.waiting_bytes.fetch_sub(waiting.charge, Ordering::Relaxed);
            waiting.teller.tell(Err(PublishError::Unavailable(reason.to_owned())));
        }
        for teller in retries {
            teller.tell(Err(PublishError::Unavailable(reason.to_owned())));
        }
    }

    /// Tells the publishers of a batch that is durable, or never will be.
    fn finish(&self, queue: &OwnQueue, batch: InFlight, result: Result<(), Poisoned>) {
        let stamps = queue::stamped(&batch.waiting);
        let mut retries: Vec<(u64, Vec<Teller>)> = Vec::new();
        if !stamps.is_empty() {
            let mut producers = self.producers.lock();
            if let Err(poisoned) = &result {
                // Under the same lock as what follows, or a retry would find a place that never was durable.
                producers.poison(&poisoned.to_string());
            }
            for Stamped { stamp, index } in stamps {
                let waiting = producers.stored(queue.topic(), stamp);
                if !waiting.is_empty() {
                    retries.push((index, waiting));
                }
            }
        }
        let answer = |index: u64, repeated| {
            let place = Place { offset: batch.begin.offset.saturating_add(index), ..batch.begin };
            match &result {
                Ok(()) => Ok(Stored { log: queue.log.clone(), place, repeated }),
                Err(poisoned) => Err(PublishError::InDoubt(poisoned.to_string())),
            }
        };
        let mut index = 0;
        for waiting in batch.waiting {
            self.waiting_bytes.fetch_sub(waiting.charge, Ordering::Relaxed);
            let count = u64::from(waiting.teller.count);
            waiting.teller.tell(answer(index, false));
            index += count;
        }
        for (index, tellers) in retries {
            tellers.into_iter().for_each(|teller| teller.tell(answer(index, true)));
        }
    }

    /// Calls `wake` when it is worth while to publish again after [`Refusal::Full`].
    pub fn when_room(&self, wake: Box<dyn FnOnce() + Send>) {
        let wake = self.changing.lock().wait(wake);
        if let Some(wake) = wake {
            self.log.ready(limits::BATCH_BYTES_TARGET, wake);
        }
    }

    /// Now and then (a minute is fine): forgets producers unused for long.
    pub fn expire(&self) {
        // One lock for both: a row that is written anew meanwhile must not be deleted after it.
        let mut producers = self.producers.lock();
        let entries = producers.expire(self.config.clock.now());
        if entries.is_empty() {
            return;
        }
        if let Err(rejected) = self.log.submit(Unit { entries }, Box::new(|_| {})) {
            producers.not_expired(rejected.unit.entries);
        }
    }

    /// Takes nothing more; what was taken is finished.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether everything taken has been answered.
    pub fn is_idle(&self) -> bool {
        // Not under its lock: topics come first.
        let changing = !self.changing.lock().is_empty();
        !changing
            && self.waiting_bytes.load(Ordering::Relaxed) == 0
            && self.topics.read().values().flat_map(|t| t.queues()).all(|q| q.state.lock().is_idle())
    }

    /// Bytes of messages taken and not yet answered.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Producers and runs of sequences remembered.
    pub fn producers_remembered(&self) -> (usize, usize) {
        self.producers.lock().remembered()
    }
}

/// Limits of a message's content.
pub fn check_content(message: &OwnMessage, bytes_max: usize) -> Result<(), PublishError> {
    let bytes = message.content_bytes();
    let invalid = |text: String| Err(PublishError::Invalid(text));
    if bytes > bytes_max {
        return invalid(format!(
            "the message has {bytes} bytes, more than the {bytes_max} that its topic allows; send it in parts, or \
             raise the topic's `message_size_max`"
        ));
    }
    if message.key.as_ref().is_some_and(|k| k.len() > limits::KEY_BYTES_MAX) {
        return invalid(format!("the key is longer than {} bytes", limits::KEY_BYTES_MAX));
    }
    if message.headers.len() > limits::HEADERS_MAX {
        return invalid(format!(
            "the message has {} headers, more than {}",
            message.headers.len(),
            limits::HEADERS_MAX
        ));
    }
    if message.headers.iter().any(|(name, _)| name.is_empty()) {
        return invalid("a header has an empty name".to_owned());
    }
    Ok(())
}
