//! Accepting messages: from the call to the receipt.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use seaway_federation_proto::ids::{Site, Topic};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Acknowledgement, PendingReceipt, Publish, PublishError, Receipt,
    clock::Clock,
    inner::NodeInner,
    one_way::one_way_of,
    origin::{OwnMessage, Refusal, Stored, TOPICS_MAX, Tell, WAITING_BYTES_MAX, check_content},
    receipts::{self, Need, RECEIPTS_WAITING_MAX},
};

/// Room for messages on their way; fair, so that callers are stored in the order in which they came.
#[derive(Debug)]
pub(super) struct Room {
    bytes: Arc<Semaphore>,
    receipts: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            receipts: Arc::new(Semaphore::new(RECEIPTS_WAITING_MAX)),
        }
    }
}

impl Room {
    async fn take(of: &Arc<Semaphore>, amount: usize) -> Result<OwnedSemaphorePermit, PublishError> {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX);
        let closed = |_| PublishError::Unavailable("the node is shutting down".to_owned());
        of.clone().acquire_many_owned(amount).await.map_err(closed)
    }

    /// What is taken now, and the bounds: bytes, then receipts.
    pub(super) fn taken(&self) -> [(u64, u64); 2] {
        let of = |semaphore: &Semaphore, max: usize| {
            let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            (number(max.saturating_sub(semaphore.available_permits())), number(max))
        };
        [of(&self.bytes, WAITING_BYTES_MAX), of(&self.receipts, RECEIPTS_WAITING_MAX)]
    }
}

type Sites = Arc<[Site]>;

/// The sites registered for each topic, as last asked.
#[derive(Debug, Default)]
pub(super) struct Registered {
    version: AtomicU64,
    known: Mutex<HashMap<Topic, (u64, Sites)>>,
}

impl Registered {
    pub(super) fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    fn get(&self, topic: &Topic, ask: impl FnOnce() -> Vec<Site>) -> Arc<[Site]> {
        let version = self.version.load(Ordering::Acquire);
        if let Some((_, sites)) = self.known.lock().get(topic).filter(|(at, _)| *at == version) {
            return sites.clone();
        }
        let sites: Arc<[Site]> = ask().into();
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
        self.check_taking()?;
        let topic = publish.path.topic();
        if topic.is_internal() {
            return Err(PublishError::Internal(topic));
        }
        let need = self.need(&topic, &publish.acknowledgement)?;
        let message = message_of(publish.path, publish.key, publish.headers, publish.payload, publish.producer);
        // Before it waits for room: what is too large would never fit.
        check_content(&message, self.topic_config(&topic).message_bytes_max)?;
        let receipt_room = match need {
            Some(_) => Some(Room::take(&self.room.receipts, 1).await?),
            None => None,
        };
        let room = Room::take(&self.room.bytes, message.charge()).await?;
        let (sender, receiver) = oneshot::channel();
        let deadline = self.clock.now().saturating_add(publish.deadline);
        let (node, on_deadline) = (Arc::downgrade(self), publish.on_deadline);
        let tell: Tell = Box::new(move |stored| {
            drop(room);
            let (stored, need) = match (stored, need) {
                (Ok(stored), Some(need)) => (stored, need),
                (Err(PublishError::StoredBefore { .. }), Some(_)) => {
                    return drop(sender.send(Err(PublishError::StoredBefore { asked: true })));
                }
                // A publisher that no longer waits is told nothing.
                (result, _) => return drop(sender.send(result.map(local_receipt))),
            };
            let Some(node) = node.upgrade() else { return };
            let answer = move |result| {
                drop(receipt_room);
                let _ = sender.send(result);
            };
            node.receipts.wait(stored, need, deadline, on_deadline, Box::new(answer));
            node.hub_wake.wake();
        });
        self.hand_over(message, tell).await?;
        Ok(receiver)
    }

    /// Gives it to the origin, and waits while the commit log has no room for what its topic needs first.
    async fn hand_over(&self, mut message: OwnMessage, mut tell: Tell) -> Result<(), PublishError> {
        let Some(origin) = &self.origin else { return Err(self.no_origin()) };
        loop {
            let not_taken = match origin.publish(message, tell) {
                Ok(()) => return Ok(()),
                Err(not_taken) => *not_taken,
            };
            match not_taken.refusal {
                Refusal::Error(error) => return Err(error),
                Refusal::Full => (message, tell) = (not_taken.message, not_taken.tell),
            }
            let room = Arc::new(Notify::new());
            let wake = room.clone();
            origin.when_room(Box::new(move || wake.notify_one()));
            room.notified().await;
        }
    }

    fn need(&self, topic: &Topic, asked: &Acknowledgement) -> Result<Option<Need>, PublishError> {
        if *asked == Acknowledgement::Local {
            return Ok(None);
        }
        receipts::decide(asked, &self.registered.get(topic, || self.hub.registered(topic)))
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
        let topic = publish.path.topic();
        if topic.is_internal() {
            return Err(PublishError::Internal(topic));
        }
        if publish.acknowledgement != Acknowledgement::Local || publish.producer.is_some() {
            let text = "a one-way message is not stored: it has neither acknowledgements nor a producer's sequence";
            return Err(PublishError::Invalid(text.to_owned()));
        }
        let message = message_of(publish.path, publish.key, publish.headers, publish.payload, None);
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

    fn no_origin(&self) -> PublishError {
        PublishError::Unavailable(format!(
            "{} is a relay and takes no messages; publish at an edge broker",
            self.config.name
        ))
    }
}

fn message_of(
    path: seaway_federation_proto::ids::Path,
    key: Option<bytes::Bytes>,
    headers: Vec<(String, bytes::Bytes)>,
    payload: bytes::Bytes,
    producer: Option<seaway_federation_proto::message::ProducerStamp>,
) -> OwnMessage {
    OwnMessage { path, key, headers, payload, producer }
}

fn local_receipt(stored: Stored) -> Receipt {
    let Stored { log, place, repeated } = stored;
    Receipt { log, place, sites: Vec::new(), degraded: false, missing: Vec::new(), repeated }
}
