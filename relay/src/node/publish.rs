//! Accepting messages: from the call to the receipt.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::ids::{Path, Site, Topic};
use tokio::sync::{Notify, oneshot};

use super::{
    Acknowledgement, OnDeadline, Outcome, PendingReceipt, PendingRun, Publish, PublishError, PublishRun, ReceiptRoom,
    answers::{Answers, Part, PartRoom, RunDone, Waits},
    clock::Clock,
    inner::NodeInner,
    one_way::one_way_of,
    origin::{OwnMessage, RestOfRun, TOPICS_MAX, TellRun, check_content},
    receipts::{self, Need},
    untaken::cannot_be_met,
};

/// A run is handed over in parts of so many bytes, or one message: each waits for its own room.
const RUN_BYTES: usize = 1024 * 1024;

/// How long a record of the node's own may wait for room.
const RECORD_WITHIN: Duration = Duration::from_secs(30);

/// Whose messages a run has: clients have no topics of Seaway's own, and Seaway has no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Clients,
    Own,
}

/// The sites that count for a topic.
#[derive(Debug, Clone)]
struct Counting {
    sites: Arc<[Site]>,
    /// Those that do not take it at present, and why.
    untaken: Arc<[(Site, String)]>,
}

/// The sites that count for each topic, as last asked.
#[derive(Debug, Default)]
pub(super) struct Registered {
    version: AtomicU64,
    known: Mutex<HashMap<Topic, (u64, Counting)>>,
}

impl Registered {
    pub(super) fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    fn get(&self, topic: &Topic, ask: impl FnOnce() -> Counting) -> Counting {
        let version = self.version.load(Ordering::Acquire);
        if let Some((_, sites)) = self.known.lock().get(topic).filter(|(at, _)| *at == version) {
            return sites.clone();
        }
        let sites = ask();
        let mut known = self.known.lock();
        if known.len() >= TOPICS_MAX {
            known.clear();
        }
        known.insert(topic.clone(), (version, sites.clone()));
        sites
    }
}

impl NodeInner {
    /// See [`super::Node::publish`].
    pub(super) async fn publish(self: &Arc<Self>, publish: Publish) -> Result<PendingReceipt, PublishError> {
        let Publish { path, key, headers, payload, producer, acknowledgement, deadline, on_deadline } = publish;
        let message = OwnMessage { path, key, headers, payload, producer };
        // What is refused at once is answered at once.
        self.check_message(&message, &acknowledgement, on_deadline, Whose::Clients)?;
        let (sender, receiver) = oneshot::channel();
        let answer = move |outcomes: Vec<Outcome>| {
            let only = outcomes.into_iter().next();
            // A publisher that no longer waits is told nothing.
            _ = only.map(|outcome| sender.send(outcome.result).is_ok());
        };
        let run = PublishRun { messages: vec![message], acknowledgement, deadline, on_deadline };
        self.accept_run(run, ReceiptRoom::default(), Whose::Clients, Box::new(answer)).await;
        Ok(receiver)
    }

    /// See [`super::Node::record`].
    pub(super) async fn record(self: &Arc<Self>, path: Path, payload: Bytes) -> Result<(), PublishError> {
        let message = OwnMessage { path, key: None, headers: Vec::new(), payload, producer: None };
        let (acknowledgement, on_deadline) = (Acknowledgement::Local, OnDeadline::Fail);
        let run = PublishRun { messages: vec![message], acknowledgement, deadline: RECORD_WITHIN, on_deadline };
        let (sender, receiver) = oneshot::channel();
        let told = Box::new(move |outcomes| _ = sender.send(outcomes));
        self.accept_run(run, ReceiptRoom::default(), Whose::Own, told).await;
        let outcomes: Vec<Outcome> = receiver.await.unwrap_or_default();
        let only = outcomes.into_iter().next();
        let lost = || Err(PublishError::InDoubt("the node stopped before it said so".to_owned()));
        only.map_or_else(lost, |outcome| outcome.result.map(drop))
    }

    /// See [`super::Node::publish_run`].
    pub(super) async fn publish_run(
        self: &Arc<Self>,
        run: PublishRun,
        room: ReceiptRoom,
    ) -> Result<PendingRun, PublishError> {
        self.check_taking()?;
        let (sender, receiver) = oneshot::channel();
        self.accept_run(run, room, Whose::Clients, Box::new(move |outcomes| _ = sender.send(outcomes))).await;
        Ok(receiver)
    }

    /// See [`super::Node::receipt_room`].
    pub(super) async fn receipt_room(&self, topic: &Topic, asked: &Acknowledgement, count: usize) -> ReceiptRoom {
        match self.need(topic, asked, OnDeadline::Degrade) {
            Ok(Some(need)) => ReceiptRoom(self.room.receipts(&need, count).await.ok()),
            _ => ReceiptRoom::default(),
        }
    }

    /// What is known of a message without storing it.
    fn check_message(
        &self,
        message: &OwnMessage,
        asked: &Acknowledgement,
        on_deadline: OnDeadline,
        whose: Whose,
    ) -> Result<Option<Need>, PublishError> {
        match whose {
            Whose::Own => self.check_storing()?,
            Whose::Clients => self.check_taking()?,
        }
        let topic = message.path.topic();
        if topic.is_internal() != (whose == Whose::Own) {
            return Err(PublishError::Internal(topic));
        }
        if let Some(why) = self.hold_back.as_ref().and_then(|held| held.refuses(&topic)) {
            return Err(PublishError::HeldBack(self.with_reasons(&topic, why)));
        }
        let need = self.need(&topic, asked, on_deadline)?;
        check_content(message, self.topic_config(&topic).message_bytes_max)?;
        Ok(need)
    }

    /// Takes a run: waits for room, and gives it to the origin. `done` is called once all is told.
    async fn accept_run(self: &Arc<Self>, run: PublishRun, mut held: ReceiptRoom, whose: Whose, done: RunDone) {
        let PublishRun { messages, acknowledgement, deadline, on_deadline } = run;
        let deadline = self.clock.now().saturating_add(deadline);
        let total = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let answers = Arc::new(Answers::new(total, done));
        let mut number = 0_u32;
        let mut messages = messages.into_iter().peekable();
        while let Some(first) = messages.next() {
            let begin = number;
            number = number.saturating_add(1);
            // Before it waits for room: what is too large would never fit.
            let need = match self.check_message(&first, &acknowledgement, on_deadline, whose) {
                Ok(need) => need,
                Err(error) => {
                    answers.put(begin, 1, Err(error));
                    continue;
                }
            };
            let topic = first.path.topic();
            let bytes_max = self.topic_config(&topic).message_bytes_max;
            let mut bytes = first.charge();
            let mut part = vec![first];
            while let Some(next) = messages.next_if(|next| {
                let same = next.path.as_str().split('/').next() == Some(topic.as_str());
                same && bytes < RUN_BYTES && check_content(next, bytes_max).is_ok()
            }) {
                bytes = bytes.saturating_add(next.charge());
                part.push(next);
                number = number.saturating_add(1);
            }
            let (count, first) = (part.len(), begin);
            let room = match self.room_for(count, bytes, need.as_ref(), &mut held, deadline).await {
                Ok(room) => room,
                Err(error) => {
                    answers.put(first, u32::try_from(count).unwrap_or(u32::MAX), Err(error));
                    continue;
                }
            };
            let waits = need.map(|need| Waits { node: Arc::downgrade(self), need, deadline, on_deadline });
            let told: Arc<dyn TellRun> = Arc::new(Part::new(answers.clone(), waits, count, room));
            self.hand_over(first, part, &told, deadline).await;
        }
    }

    /// Waits until there is room for messages, but not beyond their deadline.
    async fn room_for(
        &self,
        count: usize,
        bytes: usize,
        need: Option<&Need>,
        held: &mut ReceiptRoom,
        deadline: Duration,
    ) -> Result<PartRoom, PublishError> {
        let room = async {
            let held = held.0.as_mut().and_then(|held| held.split(count));
            let receipts = match need {
                Some(need) if held.is_none() => Some(self.room.receipts(need, count).await?),
                Some(_) => held,
                None => None,
            };
            Ok(PartRoom { receipts, bytes: self.room.bytes(bytes).await? })
        };
        let within = deadline.saturating_sub(self.clock.now());
        tokio::time::timeout(within, room).await.unwrap_or_else(|_| Err(no_room()))
    }

    /// Gives messages to the origin, and waits while the commit log has no room for what their topic needs first.
    async fn hand_over(&self, first: u32, messages: Vec<OwnMessage>, told: &Arc<dyn TellRun>, deadline: Duration) {
        let mut rest = RestOfRun { first, messages };
        let refused = loop {
            let Some(origin) = &self.origin else { break self.no_origin() };
            match origin.publish_run(rest.first, rest.messages, told) {
                Ok(()) => return,
                Err(back) => rest = back,
            }
            let room = Arc::new(Notify::new());
            let wake = room.clone();
            origin.when_room(Box::new(move || wake.notify_one()));
            let within = deadline.saturating_sub(self.clock.now());
            if tokio::time::timeout(within, room.notified()).await.is_err() {
                break no_room();
            }
        };
        told.tell(rest.first, u32::try_from(rest.messages.len()).unwrap_or(u32::MAX), Err(refused));
    }

    /// Whom a message waits for; one that may degrade waits also for who cannot acknowledge at present.
    fn need(
        &self,
        topic: &Topic,
        asked: &Acknowledgement,
        on_deadline: OnDeadline,
    ) -> Result<Option<Need>, PublishError> {
        if *asked == Acknowledgement::Local {
            return Ok(None);
        }
        let ask =
            || Counting { sites: self.hub.registered(topic).into(), untaken: self.hub.not_taken_by(topic).into() };
        let Counting { sites, untaken } = self.registered.get(topic, ask);
        let need = receipts::decide(asked, &sites)?;
        let in_vain = need.as_ref().filter(|_| on_deadline == OnDeadline::Fail && !untaken.is_empty());
        match in_vain.and_then(|need| cannot_be_met(topic, need, &untaken)) {
            Some(refused) => Err(refused),
            None => Ok(need),
        }
    }

    /// See [`super::Node::publish_one_way`].
    pub(super) fn publish_one_way(&self, publish: Publish) -> Result<(), PublishError> {
        if self.origin.is_none() {
            return Err(self.no_origin());
        }
        if self.is_draining() {
            return Err(PublishError::Unavailable(
                "the node is shutting down; publish elsewhere or when it is back".to_owned(),
            ));
        }
        // What does not go to the disk does not need one; but a second edge broker's messages would go nowhere.
        if self.is_second() || self.is_drained() {
            self.check_taking()?;
        }
        let topic = publish.path.topic();
        if topic.is_internal() {
            return Err(PublishError::Internal(topic));
        }
        if publish.acknowledgement != Acknowledgement::Local || publish.producer.is_some() {
            let text = "a one-way message is not stored: it has neither acknowledgements nor a producer's sequence";
            return Err(PublishError::Invalid(text.to_owned()));
        }
        let Publish { path, key, headers, payload, .. } = publish;
        let message = OwnMessage { path, key, headers, payload, producer: None };
        check_content(&message, self.topic_config(&topic).message_bytes_max)?;
        self.hub.publish_one_way(self.clock.now(), one_way_of(message, self.clock.wall_us()));
        Ok(())
    }

    /// Whether publishes are taken now, or why not.
    pub(super) fn check_taking(&self) -> Result<(), PublishError> {
        if self.origin.is_none() {
            return Err(self.no_origin());
        }
        self.readiness().map_err(PublishError::Unavailable)
    }

    /// Whether an operator may change what its topics are: also where there is no room for messages, which deleting and shorter retention
    /// make, and while it is drained.
    pub(super) fn check_steering(&self) -> Result<(), PublishError> {
        if self.origin.is_some() && self.lacks_only_room() {
            return Ok(());
        }
        self.check_taking()
    }

    /// Whether the node stores what it says itself: a drained one does, and one that was drained until just now.
    fn check_storing(&self) -> Result<(), PublishError> {
        if self.origin.is_some() && !self.is_draining() && self.is_kept_by_drain_alone() {
            return Ok(());
        }
        self.check_taking()
    }

    fn no_origin(&self) -> PublishError {
        PublishError::Unavailable(format!(
            "{} is a relay and takes no messages; publish at an edge broker",
            self.config.name
        ))
    }
}

fn no_room() -> PublishError {
    let text = "there was no room for the message before its deadline; nothing was stored, publish it again later";
    PublishError::Unavailable(text.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use seaway_federation_proto::session::NodeKind;

    use super::*;
    use crate::{
        log::memory::{MemoryConfig, MemoryDisk, MemoryLog},
        node::{LinkTls, Node, NodeConfig, OnDeadline},
    };

    pub(in crate::node) fn config() -> NodeConfig {
        NodeConfig {
            auto_create: crate::node::AutoCreate::Local,
            accept_message_bytes_max: 16 << 20,
            federation: "test".into(),
            name: "home/edge".parse().unwrap(),
            kind: NodeKind::Edge,
            data_dir: "unused".into(),
            listen: None,
            dial: vec![],
            tls: LinkTls { cert: "unused".into(), key: "unused".into(), ca: "unused".into() },
            wants: vec![],
            replicate: vec![],
            topics: vec![],
            segment_bytes: 64 << 20,
            disk_reserve_bytes: 0,
            space: crate::node::SpaceConfig::default(),
            cache_bytes_max: None,
            lane_credit_bytes: 1 << 20,
            probe_interval: Duration::from_secs(1),
            dead_after: Duration::from_secs(10),
            mark_interval: Duration::from_secs(1),
            costs: vec![],
            tail_bytes_max: 1 << 20,
            hold_back: crate::node::HoldBackConfig::default(),
            limits: crate::node::limits::LimitsConfig::default(),
        }
    }

    /// The disk stands still: what finds no room is told so at its deadline, and is not kept waiting for ever.
    #[tokio::test]
    async fn the_deadline_runs_while_there_is_no_room() {
        const SIZE: usize = 1_000_000;
        let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig::default());
        let mut start = Box::pin(Node::start_on(config(), log.clone()));
        let node = loop {
            tokio::select! {
                node = &mut start => break node.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(1)) => log.sync_now(),
            }
        };
        let publish = || Publish {
            path: "t".parse().unwrap(),
            key: None,
            headers: vec![],
            payload: vec![0; SIZE].into(),
            producer: None,
            acknowledgement: Acknowledgement::Local,
            deadline: Duration::from_millis(50),
            on_deadline: OnDeadline::Fail,
        };
        let mut pending = Vec::new();
        for _ in 0..(64 << 20) / SIZE + 5 {
            let accepted = tokio::time::timeout(Duration::from_secs(60), node.publish(publish())).await;
            pending.push(accepted.expect("it waits beyond its deadline").unwrap());
        }
        let last = pending.pop().unwrap().await.unwrap();
        assert!(matches!(&last, Err(PublishError::Unavailable(why)) if why.contains("deadline")), "{last:?}");
        log.sync_now();
        assert!(pending.remove(0).await.unwrap().is_ok(), "what found room is stored however long it takes");
    }

    /// Waits until the node's alarms and readiness are as asked.
    async fn until(node: &Node, is: impl Fn(&[&'static str], bool) -> bool) {
        for _ in 0..6000 {
            let names: Vec<&'static str> = node.alarms().into_iter().map(|alarm| alarm.report.name).collect();
            if is(&names, node.readiness().is_ok()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the alarms stay {:?}", node.alarms());
    }

    #[tokio::test]
    async fn the_alarm_that_nothing_is_taken_goes_when_it_is_over() {
        let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig { auto: true, ..MemoryConfig::default() });
        let node = Node::start_on(config(), log.clone()).await.unwrap();
        for _ in 0..2 {
            log.set_room(Some(0));
            until(&node, |names, ready| names.contains(&"not-taking-messages") && !ready).await;
            log.set_room(None);
            until(&node, |names, ready| !names.contains(&"not-taking-messages") && ready).await;
        }
    }
}
