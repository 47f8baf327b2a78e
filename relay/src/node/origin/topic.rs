//! A topic of this origin: its settings, its control queue's entries, and the choice of a queue.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prost::Message as _;
use seaway_federation_proto::{
    envelope::Codec,
    ids::{LogName, Queue, Site, Topic},
    limits::{BATCH_BYTES_TARGET, MESSAGE_BYTES_CEILING, QUEUES_MAX},
    wire::store::{ControlEntry, TopicSettings, control_entry},
};
use twox_hash::XxHash3_64;

use super::queue::OwnQueue;
use crate::node::TopicConfig;

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
    pub(super) fn new(topic: Topic, origin: &Site, settings: &TopicSettings) -> Self {
        let codec = codec_of(settings.codec);
        let count = u16::try_from(settings.queues).unwrap_or(QUEUES_MAX).clamp(1, QUEUES_MAX);
        let log = |queue| LogName { topic: topic.clone(), origin: origin.clone(), queue: Queue(queue) };
        let queues = (1..=count).map(|queue| OwnQueue::new(log(queue), codec)).collect();
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

/// The settings as they are stored.
pub(super) fn settings_of(config: &TopicConfig) -> TopicSettings {
    TopicSettings {
        queues: u32::from(config.queues.clamp(1, QUEUES_MAX)),
        message_bytes_max: u64::try_from(config.message_bytes_max.min(MESSAGE_BYTES_CEILING)).unwrap_or(u64::MAX),
        codec: codec_number(config.codec),
    }
}

/// The payload of the control entry that states them.
pub(super) fn control_payload(settings: &TopicSettings) -> Vec<u8> {
    ControlEntry { kind: Some(control_entry::Kind::Settings(*settings)) }.encode_to_vec()
}

fn codec_number(codec: Codec) -> u32 {
    match codec {
        Codec::None => 0,
        Codec::Lz4 => 1,
        Codec::Zstd => 2,
        Codec::Unknown(other) => u32::from(other),
    }
}

fn codec_of(number: u32) -> Codec {
    match number {
        1 => Codec::Lz4,
        2 => Codec::Zstd,
        _ => Codec::None,
    }
}
