//! Messages and bytes by topic, counted where the door takes and gives them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::RwLock;

use super::{OTHER, TOPICS_MAX};
use crate::api::Message;

/// One direction's messages and bytes.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Messages.
    pub(crate) messages: AtomicU64,
    /// Bytes.
    pub(crate) bytes: AtomicU64,
}

impl Flow {
    /// Counts more.
    pub(crate) fn add(&self, messages: usize, bytes: usize) {
        self.messages.fetch_add(u64::try_from(messages).unwrap_or(u64::MAX), Relaxed);
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Relaxed);
    }
}

/// What passed the door for one topic since its start.
#[derive(Debug, Default)]
pub(crate) struct TopicFlows {
    /// Taken of publishers.
    pub(crate) published: Flow,
    /// Given to subscribers.
    pub(crate) delivered: Flow,
    /// Whether the topic was seen to be stored here; one-way messages alone leave nothing.
    stored: AtomicBool,
}

/// All topics' flows; those past [`TOPICS_MAX`] share one.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    topics: RwLock<BTreeMap<String, Arc<TopicFlows>>>,
}

impl Traffic {
    /// A topic's flows.
    pub(crate) fn of(&self, topic: &str) -> Arc<TopicFlows> {
        if let Some(known) = self.topics.read().get(topic) {
            return known.clone();
        }
        let mut topics = self.topics.write();
        let topic = if topics.len() >= TOPICS_MAX && !topics.contains_key(topic) { OTHER } else { topic };
        topics.entry(topic.to_owned()).or_default().clone()
    }

    /// Counts what a subscriber is given.
    pub(crate) fn delivered(&self, messages: &[Message]) {
        let runs = messages.chunk_by(|a, b| topic_of(&a.path) == topic_of(&b.path));
        for run in runs {
            let Some(first) = run.first() else { continue };
            let bytes = run.iter().map(|message| message.payload.len()).sum();
            self.of(topic_of(&first.path)).delivered.add(run.len(), bytes);
        }
    }

    /// Forgets topics that were stored here and are not any more: deleted ones make room for others to be told apart.
    pub(crate) fn keep(&self, stored: &BTreeSet<&str>) {
        self.topics.write().retain(|topic, flows| {
            let is_stored = stored.contains(topic.as_str());
            flows.stored.fetch_or(is_stored, Relaxed);
            is_stored || topic == OTHER || !flows.stored.load(Relaxed)
        });
    }

    /// All of them, by topic.
    pub(crate) fn all(&self) -> Vec<(String, Arc<TopicFlows>)> {
        self.topics.read().iter().map(|(topic, flows)| (topic.clone(), flows.clone())).collect()
    }
}

/// The first level of a path.
pub(crate) fn topic_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_past_the_bound_are_summed() {
        let traffic = Traffic::default();
        for number in 0..TOPICS_MAX + 10 {
            traffic.of(&format!("topic-{number}")).published.add(1, 10);
        }
        let all = traffic.all();
        assert_eq!(all.len(), TOPICS_MAX + 1);
        let other = &all.iter().find(|(topic, _)| topic == OTHER).unwrap().1.published;
        assert_eq!((other.messages.load(Relaxed), other.bytes.load(Relaxed)), (10, 100));
        traffic.of("topic-3").published.add(1, 1);
        assert_eq!(traffic.of("topic-3").published.messages.load(Relaxed), 2);
    }

    #[test]
    fn deleted_topics_are_forgotten_and_those_never_stored_are_not() {
        let traffic = Traffic::default();
        for topic in ["gone", "kept", "one-way", OTHER] {
            traffic.of(topic).published.add(1, 1);
        }
        traffic.keep(&BTreeSet::from(["gone", "kept"]));
        traffic.keep(&BTreeSet::from(["kept"]));
        let left: Vec<String> = traffic.all().into_iter().map(|(topic, _)| topic).collect();
        assert_eq!(left, [OTHER, "kept", "one-way"]);
    }

    #[test]
    fn what_is_delivered_counts_by_the_topic_of_each_message() {
        let traffic = Traffic::default();
        let message =
            |path: &str| Message { path: path.into(), payload: b"1234".to_vec().into(), ..Message::default() };
        traffic.delivered(&[message("a/x"), message("a/y"), message("b"), message("a")]);
        assert_eq!(traffic.of("a").delivered.messages.load(Relaxed), 3);
        assert_eq!(traffic.of("b").delivered.bytes.load(Relaxed), 4);
    }
}
