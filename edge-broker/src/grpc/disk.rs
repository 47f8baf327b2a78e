//! What holds the disk, as the wire says it.

use seaway_relay::node::{DiskUsage, TopicUsage};

use crate::api;

/// Topics that are named; the rest is summed up.
const TOPICS_MAX: usize = 200;

pub(crate) fn usage(usage: DiskUsage) -> api::DiskUsage {
    let (named, rest) = usage.topics.split_at(usage.topics.len().min(TOPICS_MAX));
    let topic = |name: String, of: &[TopicUsage]| api::TopicUsage {
        topic: name,
        own_bytes: of.iter().map(|topic| topic.own_bytes).sum(),
        copies_bytes: of.iter().map(|topic| topic.copies_bytes).sum(),
    };
    let mut topics: Vec<_> = named.iter().map(|one| topic(one.topic.to_string(), std::slice::from_ref(one))).collect();
    if !rest.is_empty() {
        topics.push(topic(String::new(), rest));
    }
    let share = |share: Option<(u64, bool)>| share.map(|(bytes_max, full)| api::DiskShare { bytes_max, full });
    api::DiskUsage {
        topics,
        live_bytes: usage.live_bytes,
        dead_bytes: usage.dead_bytes,
        checkpoint_bytes: usage.checkpoint_bytes,
        index_bytes: usage.index_bytes,
        kept_bytes: usage.kept_bytes,
        free_bytes: usage.free_bytes,
        reserve_bytes: usage.reserve_bytes,
        own: share(usage.own_max),
        copies: share(usage.copies_max),
        growth_bytes_per_s: usage.forecast.map(|forecast| forecast.bytes_per_s),
        growth_over_s: usage.forecast.map_or(0.0, |forecast| forecast.over.as_secs_f64()),
        full_in_s: usage.forecast.and_then(|forecast| forecast.full_in).map(|left| left.as_secs_f64()),
    }
}
