//! A topic of this origin: its settings, its control queue's entries, and the choice of a queue.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use seaway_federation_proto::{
    control::{self, Settings},
    ids::{LogName, Queue, Site, Topic},
    limits::{BATCH_BYTES_TARGET, MESSAGE_BYTES_CEILING},
    wire::store::TopicSettings,
};
use twox_hash::XxHash3_64;

use super::queue::{OwnQueue, Seam};

/// An open topic.
pub(super) struct OwnTopic {
    pub(super) topic: Topic,
    pub(super) message_bytes_max: usize,
    /// Message queues 1 to n, in order.
    queues: Vec<Arc<OwnQueue>>,
    /// Bytes that went to queues without a key so far: decides whose turn it is.
    keyless_bytes: AtomicUsize,
}

impl OwnTopic {
    pub(super) fn new(topic: Topic, origin: &Site, row: &TopicSettings) -> Self {
        let settings = Settings::from_stored(row);
        let log = |queue| LogName { topic: topic.clone(), origin: origin.clone(), queue };
        let change = row.change.as_ref().and_then(|c| Some((control::place_of(c.entry?), control::ends_of(&c.ends))));
        let seam = |queue| {
            let (entry, ends) = change.as_ref()?;
            Some(Seam { entry: *entry, end: ends.get(&queue).map_or(0, |end| end.offset) })
        };
        let queues = (1..=settings.queues)
            .map(Queue)
            .map(|queue| OwnQueue::new(log(queue), settings.codec, seam(queue)))
            .collect();
        let message_bytes_max = usize::try_from(settings.message_bytes_max).unwrap_or(MESSAGE_BYTES_CEILING);
        Self { topic, message_bytes_max, queues, keyless_bytes: AtomicUsize::new(0) }
    }

    /// Messages with one key go to one queue: the remainder of XXH3-64 of the key by the number of queues, for ever.
    /// Messages without a key have no order among each other beyond their queue's: they stay with one queue for
    /// [`BATCH_BYTES_TARGET`], so that batches fill, and then go to the next.
    pub(super) fn choose(&self, key: Option<&[u8]>, bytes: usize) -> Option<&Arc<OwnQueue>> {
        let count = self.queues.len().max(1);
        let index = match key {
            Some(key) => usize::try_from(XxHash3_64::oneshot(key) % u64::try_from(count).unwrap_or(1)).unwrap_or(0),
            None if count == 1 => 0,
            None => (self.keyless_bytes.fetch_add(bytes, Ordering::Relaxed) / BATCH_BYTES_TARGET) % count,
        };
        self.queues.get(index)
    }

    pub(super) fn queues(&self) -> &[Arc<OwnQueue>] {
        &self.queues
    }
}
