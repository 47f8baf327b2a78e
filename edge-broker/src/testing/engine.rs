//! An engine in memory: real batches and the real rules of logs, no links.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    control::Control,
    copies::{Hole, HoleKind, LogInfo},
    envelope::{Batch, Chain, Codec, Placement},
    ids::{Incarnation, LogName, NodeName, Path, Pattern, Place, Queue, Site, Topic},
    message::{BodyBuilder, Message},
    replication::{CopyStatus, OnlyThere, Removal, SiteStatus, Want},
    session::NodeKind,
};
use seaway_relay::{
    link::controls,
    log::{
        contract::{CommitLog, Entry, Line, LogStats, Read, ReadError, Role, Table, Unit},
        memory::{MemoryConfig, MemoryDisk, MemoryLog, Survive},
    },
    node::{
        Acknowledgement, Alarm, HoldBack, LinkStatus, LogEvent, OneWayMessage, Outcome, OwnMessage, PendingReceipt,
        PendingRun, Publish, PublishError, PublishRun, Receipt, ReceiptRoom, TopicConfig,
        limits::{LimitBook, LimitSettings, Subject},
        queues::QueueView,
        topics::{Source, TopicChange, TopicSettingsView, TrimTo},
    },
};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::engine::{Engine, StateChanges};

/// See the module's documentation. Cloning shares it.
#[derive(Clone)]
pub(crate) struct TestEngine(Arc<Inner>);

struct Inner {
    log: Arc<MemoryLog>,
    start: u64,
    queues: u16,
    events: broadcast::Sender<LogEvent>,
    wants: Mutex<BTreeMap<String, Want>>,
    one_way: Mutex<Vec<(Pattern, mpsc::Sender<OneWayMessage>)>>,
    clock: AtomicU64,
    submitting: Mutex<()>,
    refuse_state: Mutex<Option<String>>,
    times: tokio::sync::Semaphore,
    receipts: tokio::sync::Semaphore,
    receipts_asked: AtomicU64,
    stopped_waiting: AtomicBool,
    limits: Arc<LimitBook>,
}

impl TestEngine {
    /// An engine whose writes are durable at once, with one queue a topic.
    pub(crate) fn new() -> Self {
        Self::open(MemoryDisk::default(), 1, true, 1)
    }

    /// As [`Self::new`], with so many queues a topic.
    pub(crate) fn with_queues(queues: u16) -> Self {
        Self::open(MemoryDisk::default(), 1, true, queues)
    }

    /// An engine whose writes wait for [`Self::sync`].
    pub(crate) fn manual() -> Self {
        Self::open(MemoryDisk::default(), 1, false, 1)
    }

    fn open(disk: MemoryDisk, start: u64, auto: bool, queues: u16) -> Self {
        let log = MemoryLog::open(disk, MemoryConfig { auto, ..MemoryConfig::default() });
        let events = broadcast::channel(1024).0;
        let sender = events.clone();
        log.set_listener(Arc::new(move |advanced| {
            for moved in advanced {
                let _ = sender.send(LogEvent { log: moved.log.clone() });
            }
        }));
        let (wants, one_way) = (Mutex::default(), Mutex::default());
        let limits = Arc::new(LimitBook::default());
        limits.restore(log.scan(Table::Node, b"limit\0"));
        let (clock, submitting) = (AtomicU64::new(1_000_000), Mutex::default());
        Self(Arc::new(Inner {
            log,
            start,
            queues,
            events,
            wants,
            one_way,
            clock,
            submitting,
            refuse_state: Mutex::default(),
            times: tokio::sync::Semaphore::new(1),
            receipts: tokio::sync::Semaphore::new(1),
            receipts_asked: AtomicU64::new(0),
            stopped_waiting: AtomicBool::new(false),
            limits,
        }))
    }

    /// The next start of the node after a loss of power.
    pub(crate) fn restart(&self) -> Self {
        Self::open(self.0.log.crash(Survive::Nothing), self.0.start + 1, true, self.0.queues)
    }

    /// Makes durable what waits.
    pub(crate) fn sync(&self) {
        self.0.log.sync_now();
    }

    /// Units that wait for [`Self::sync`].
    pub(crate) fn waiting(&self) -> usize {
        self.0.log.units_waiting()
    }

    /// Look-ups by time wait while this is held.
    pub(crate) async fn hold_times(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.0.times.acquire().await.unwrap()
    }

    /// There is no room for messages that wait for other sites while this is held.
    pub(crate) async fn hold_receipts(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.0.receipts.acquire().await.unwrap()
    }

    /// How often room for such messages was asked for.
    pub(crate) fn receipts_asked(&self) -> u64 {
        self.0.receipts_asked.load(Ordering::SeqCst)
    }

    /// Appends one batch, its body compressed.
    pub(crate) fn append_compressed(&self, log: &LogName, payload: &str) {
        let message = self.message(log.topic.as_str(), payload);
        let batch = self.batch_in(log, 1, None, &[message], Codec::Lz4);
        self.submit(vec![Entry::Append { role: Role::Own, batch }]);
    }

    /// Whether the door has said that nothing waits for other sites any more.
    pub(crate) fn stopped_waiting(&self) -> bool {
        self.0.stopped_waiting.load(Ordering::SeqCst)
    }

    /// From now on state is not stored, for this reason.
    pub(crate) fn refuse_state(&self, why: Option<&str>) {
        *self.0.refuse_state.lock() = why.map(str::to_owned);
    }

    /// The wants at present.
    pub(crate) fn wants(&self) -> Vec<Want> {
        self.0.wants.lock().values().cloned().collect()
    }

    /// The log of queue 1 of a topic of an origin.
    pub(crate) fn log_name(topic: &str, origin: &str) -> LogName {
        LogName { topic: topic.parse().unwrap(), origin: origin.parse().unwrap(), queue: Queue(1) }
    }

    /// Submits entries that must be accepted.
    pub(crate) fn submit(&self, entries: Vec<Entry>) {
        self.0.log.submit(Unit { entries }, Box::new(|result| result.unwrap())).unwrap();
    }

    /// Appends one batch to a log in an incarnation; its first batch follows `previous`.
    pub(crate) fn append(&self, log: &LogName, incarnation: u64, previous: Option<Place>, messages: &[(&str, &str)]) {
        let batch = self.batch(log, incarnation, previous, messages);
        self.submit(vec![Entry::Append { role: Role::Own, batch }]);
    }

    /// Appends an entry to a topic's control queue.
    pub(crate) fn enter(&self, topic: &str, origin: &str, entry: Bytes) {
        let log = LogName { queue: Queue::CONTROL, ..Self::log_name(topic, origin) };
        let message = Message { payload: entry, ..self.message(topic, "") };
        let batch = self.batch_in(&log, 1, None, &[message], Codec::None);
        self.submit(vec![Entry::Append { role: Role::Own, batch }]);
    }

    fn batch(&self, log: &LogName, incarnation: u64, previous: Option<Place>, messages: &[(&str, &str)]) -> Batch {
        let messages: Vec<_> = messages.iter().map(|(path, payload)| self.message(path, payload)).collect();
        self.batch_of(log, incarnation, previous, &messages)
    }

    fn batch_of(&self, log: &LogName, incarnation: u64, previous: Option<Place>, messages: &[Message]) -> Batch {
        self.batch_in(log, incarnation, previous, messages, Codec::None)
    }

    fn batch_in(
        &self,
        log: &LogName,
        incarnation: u64,
        previous: Option<Place>,
        messages: &[Message],
        codec: Codec,
    ) -> Batch {
        let mut body = BodyBuilder::default();
        messages.iter().for_each(|message| body.push(message));
        let incarnation = Incarnation { counter: incarnation, random: 7 };
        let info = self.0.log.info(log, false);
        let held = info.as_ref().and_then(|i| i.incarnations.iter().find(|i| i.incarnation == incarnation)).cloned();
        let chain_at = |p: Place| self.0.log.chain_at(log, p).unwrap().unwrap_or_default();
        let (offset, chain_before, first) = match (&held, previous) {
            (Some(held), _) => (held.end, held.chain_at_end.unwrap(), false),
            (None, Some(previous)) => (previous.offset, chain_at(previous), true),
            (None, None) => (0, Chain::default(), true),
        };
        let begin = Place { incarnation, offset };
        let previous = previous.filter(|_| held.is_none());
        let origin_time_us = messages.last().map_or(0, |m| m.time_us);
        let placement = Placement { log, begin, first_of_incarnation: first, previous, origin_time_us, chain_before };
        Batch::seal(&placement, body.finish(codec).unwrap()).unwrap()
    }

    fn message(&self, path: &str, payload: &str) -> Message {
        let path: Path = path.parse().unwrap();
        let time_us = self.0.clock.fetch_add(1000, Ordering::Relaxed);
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        Message { path, key: None, headers: Vec::new(), time_us, producer: None, payload }
    }
}

impl TestEngine {
    fn publish_one(&self, publish: Publish) -> Result<PendingReceipt, PublishError> {
        if publish.payload.len() > 1024 * 1024 {
            return Err(PublishError::Invalid("the message is larger than its topic allows".into()));
        }
        // The one other site that there is acknowledges once all is made durable.
        if !matches!(publish.acknowledgement, Acknowledgement::Local | Acknowledgement::Count(1)) {
            return Err(PublishError::NobodyToAcknowledge("no site is registered".into()));
        }
        let key = publish.key.as_deref().map_or(0, |k| k.iter().map(|b| u16::from(*b)).sum());
        let queue = Queue(1 + key % self.0.queues);
        let log = LogName { topic: publish.path.topic(), origin: "east".parse().unwrap(), queue };
        let _submitting = self.0.submitting.lock();
        let info = self.0.log.info(&log, false);
        let previous = info.filter(|i| i.end.incarnation.counter < self.0.start).map(|i| i.end);
        let mut message = self.message("x", "");
        (message.path, message.key, message.headers) = (publish.path, publish.key, publish.headers);
        message.payload = publish.payload;
        let batch = self.batch_of(&log, self.0.start, previous, &[message]);
        let (tell, pending) = oneshot::channel();
        let (sites, missing) = (Vec::new(), Vec::new());
        let receipt =
            Receipt { log, place: batch.begin(), sites, degraded: false, missing, removed: vec![], repeated: false };
        let done = Box::new(move |result: Result<(), _>| {
            let _ = tell.send(
                result
                    .map(|()| receipt)
                    .map_err(|e: seaway_relay::log::contract::Poisoned| PublishError::Unavailable(e.to_string())),
            );
        });
        let unit = Unit { entries: vec![Entry::Append { role: Role::Own, batch }] };
        self.0.log.submit(unit, done).map_err(|e| PublishError::Unavailable(e.reason.to_string()))?;
        Ok(pending)
    }
}

impl Engine for TestEngine {
    fn identity(&self) -> (String, NodeName, NodeKind) {
        ("test".into(), "east/edge-1".parse().unwrap(), NodeKind::Edge)
    }

    async fn receipt_room(&self, _: &Topic, _: &Acknowledgement, _: usize) -> ReceiptRoom {
        self.0.receipts_asked.fetch_add(1, Ordering::SeqCst);
        let _receipts = self.0.receipts.acquire().await.unwrap();
        ReceiptRoom::default()
    }

    async fn publish_run(&self, run: PublishRun, _: ReceiptRoom) -> Result<PendingRun, PublishError> {
        let PublishRun { messages, acknowledgement, deadline, on_deadline } = run;
        let pending: Vec<_> = messages
            .into_iter()
            .map(|OwnMessage { path, key, headers, payload, producer }| {
                let acknowledgement = acknowledgement.clone();
                self.publish_one(Publish {
                    path,
                    key,
                    headers,
                    payload,
                    producer,
                    acknowledgement,
                    deadline,
                    on_deadline,
                })
            })
            .collect();
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            for one in pending {
                let result = match one {
                    Ok(receipt) => receipt.await.unwrap(),
                    Err(error) => Err(error),
                };
                outcomes.push(Outcome { count: 1, result });
            }
            let _ = tell.send(outcomes);
        });
        Ok(told)
    }

    async fn record(&self, path: Path, payload: Bytes) -> Result<(), PublishError> {
        let publish = Publish {
            path,
            key: None,
            headers: Vec::new(),
            payload,
            producer: None,
            acknowledgement: Acknowledgement::Local,
            deadline: std::time::Duration::from_secs(60),
            on_deadline: seaway_relay::node::OnDeadline::Fail,
        };
        self.publish_one(publish)?.await.unwrap().map(drop)
    }

    fn publish_one_way(&self, publish: Publish) -> Result<(), PublishError> {
        let mut message = self.message("x", "");
        (message.path, message.payload) = (publish.path, publish.payload);
        for (pattern, sender) in self.0.one_way.lock().iter() {
            if pattern.matches(&message.path) {
                let _ = sender.try_send(OneWayMessage::new("east".parse().unwrap(), message.clone()));
            }
        }
        Ok(())
    }

    fn subscribe_one_way(&self, pattern: Pattern) -> mpsc::Receiver<OneWayMessage> {
        let (sender, receiver) = mpsc::channel(64);
        self.0.one_way.lock().push((pattern, sender));
        receiver
    }

    fn watch(&self) -> broadcast::Receiver<LogEvent> {
        self.0.events.subscribe()
    }

    fn logs(&self) -> Vec<LogName> {
        self.0.log.logs()
    }

    fn info(&self, log: &LogName) -> Option<LogInfo> {
        self.0.log.info(log, true)
    }

    async fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        self.0.log.read(log, from, line, bytes_max)
    }

    async fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        let _times = self.0.times.acquire().await.unwrap();
        self.0.log.find_time(log, time_us)
    }

    fn control(&self, topic: &Topic, origin: &Site) -> Option<Arc<Control>> {
        controls::read_all(&*self.0.log, topic, origin).unwrap()
    }

    fn topic_settings(&self, _: &Topic) -> TopicSettingsView {
        let (config, rest) = (TopicConfig { queues: self.0.queues, ..TopicConfig::default() }, Source::Default);
        TopicSettingsView { config, overrides: Default::default(), rest, own: None }
    }

    fn deletion_confirmed(&self, _: &Topic) -> (Vec<Site>, Vec<Site>) {
        Default::default()
    }

    fn refused_by(&self, _: &Topic) -> Vec<(Site, String)> {
        Vec::new()
    }

    async fn create_topic(&self, topic: &Topic, _: TopicChange) -> Result<(), PublishError> {
        Err(PublishError::NoTopic(format!("this engine creates no {topic}")))
    }

    async fn set_topic(&self, topic: &Topic, _: TopicChange) -> Result<(), PublishError> {
        Err(PublishError::NoTopic(format!("this engine sets nothing of {topic}")))
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<(), PublishError> {
        Err(PublishError::NoTopic(format!("this engine deletes no {topic}")))
    }

    async fn trim_log(&self, log: &LogName, _: TrimTo) -> Result<Option<Place>, PublishError> {
        Err(PublishError::NoTopic(format!("this engine trims no {log}")))
    }

    fn skip_log(&self, log: &LogName, really: bool) -> Result<Vec<Hole>, PublishError> {
        let Some(info) = self.0.log.info(log, false) else { return Ok(Vec::new()) };
        let pending: Vec<Hole> = info.holes.into_iter().filter(|hole| hole.kind == HoleKind::Pending).collect();
        let lost = |hole: &Hole| Entry::Rekind {
            log: log.clone(),
            hole: Hole { kind: HoleKind::Lost, ..*hole },
            was: HoleKind::Pending,
        };
        if really {
            self.submit(pending.iter().map(lost).collect());
        }
        Ok(pending)
    }

    fn limits(&self) -> &Arc<LimitBook> {
        &self.0.limits
    }

    async fn set_limit(
        &self,
        subject: &Subject,
        change: Option<&LimitSettings>,
        file_of_client: &LimitSettings,
    ) -> Result<(), PublishError> {
        let planned = self.0.limits.plan(subject, change, file_of_client, 1 << 20);
        let (settings, entry) = planned.map_err(PublishError::Invalid)?;
        let change = match entry {
            Entry::Put { table, key, value } => (table, key, Some(value)),
            Entry::Delete { table, key } => (table, key, None),
            _ => return Err(PublishError::Invalid("not a row".to_owned())),
        };
        self.put_state(vec![change]).await?;
        self.0.limits.apply(subject, settings);
        Ok(())
    }

    async fn put_want(&self, want: Want) -> Result<(), PublishError> {
        self.0.wants.lock().insert(want.id.clone(), want);
        Ok(())
    }

    async fn remove_want(&self, id: &str) -> Result<(), PublishError> {
        self.0.wants.lock().remove(id);
        Ok(())
    }

    async fn put_state(&self, changes: StateChanges) -> Result<(), PublishError> {
        if let Some(why) = self.0.refuse_state.lock().clone() {
            return Err(PublishError::Unavailable(why));
        }
        let entry = |(table, key, value): (Table, Bytes, Option<Bytes>)| match value {
            Some(value) => Entry::Put { table, key, value },
            None => Entry::Delete { table, key },
        };
        let unit = Unit { entries: changes.into_iter().map(entry).collect() };
        let (tell, stored) = oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        self.0.log.submit(unit, done).map_err(|e| PublishError::Unavailable(e.reason.to_string()))?;
        let stored = stored.await.map_err(|_| PublishError::Unavailable("the node stopped".into()))?;
        stored.map_err(|e| PublishError::Unavailable(e.to_string()))
    }

    fn scan_state(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.0.log.scan(table, prefix)
    }

    fn links(&self) -> Vec<LinkStatus> {
        Vec::new()
    }

    fn copy_status(&self, log: &LogName) -> Option<CopyStatus> {
        let origin_end = self.info(log).map(|i| i.end);
        let (lag_messages, lag_bytes, lag) = (Some(0), Some(0), Some(std::time::Duration::ZERO));
        let (reason, lasting) = (String::new(), std::time::Duration::ZERO);
        Some(CopyStatus { state: "own", reason, lasting, origin_end, lag_messages, lag_bytes, lag, proven: None })
    }

    fn sites(&self) -> Vec<SiteStatus> {
        Vec::new()
    }

    async fn find(
        &self,
        _: &LogName,
        _: Place,
        _: std::time::Duration,
    ) -> Result<seaway_federation_proto::replication::Finding, String> {
        Err("there is no federation".to_owned())
    }
    fn topology(
        &self,
    ) -> (Vec<seaway_federation_proto::replication::KnownNode>, Vec<seaway_federation_proto::replication::KnownLink>)
    {
        (Vec::new(), Vec::new())
    }
    fn draining(&self) -> (bool, u64) {
        (false, 0)
    }
    fn explain_way(
        &self,
        _: &seaway_federation_proto::ids::Site,
        _: &seaway_federation_proto::ids::Site,
    ) -> Result<seaway_federation_proto::replication::ExplainedWay, String> {
        Err("there is no federation".to_owned())
    }
    fn hold_back(&self) -> Arc<HoldBack> {
        Arc::default()
    }

    fn removals(&self) -> Vec<Removal> {
        Vec::new()
    }

    fn only_there(&self, _: &Site) -> Vec<OnlyThere> {
        Vec::new()
    }

    async fn remove_site(&self, _: &Site) -> Result<(), PublishError> {
        Ok(())
    }

    fn alarms(&self) -> Vec<Alarm> {
        Vec::new()
    }

    fn counters(&self) -> Vec<(&'static str, String, u64)> {
        Vec::new()
    }

    fn queues(&self) -> Vec<QueueView> {
        Vec::new()
    }

    fn disk_usage(&self) -> seaway_relay::node::DiskUsage {
        seaway_relay::node::DiskUsage::default()
    }
    fn log_stats(&self) -> LogStats {
        self.0.log.stats()
    }

    fn readiness(&self) -> Result<(), String> {
        Ok(())
    }

    fn stop_waiting(&self) {
        self.0.stopped_waiting.store(true, Ordering::SeqCst);
    }
}
