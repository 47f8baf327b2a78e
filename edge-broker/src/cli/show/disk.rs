//! What holds the disk, for people and as JSON.

use serde::Serialize;

use super::super::output::{Table, size};
use crate::api;

/// What holds the disk.
#[derive(Debug, Default, Serialize)]
pub(crate) struct DiskView {
    topics: Vec<TopicUsageView>,
    live_bytes: u64,
    dead_bytes: u64,
    checkpoint_bytes: u64,
    index_bytes: u64,
    kept_bytes: u64,
    free_bytes: u64,
    reserve_bytes: u64,
    own_bytes_max: Option<u64>,
    own_full: bool,
    copies_bytes_max: Option<u64>,
    copies_full: bool,
    growth_bytes_per_s: Option<f64>,
    growth_over_s: f64,
    full_in_s: Option<f64>,
}

/// What one topic holds; the one without a name is the rest.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TopicUsageView {
    topic: String,
    own_bytes: u64,
    copies_bytes: u64,
}

impl From<api::DiskUsage> for DiskView {
    fn from(from: api::DiskUsage) -> Self {
        let topic = |topic: api::TopicUsage| TopicUsageView {
            topic: topic.topic,
            own_bytes: topic.own_bytes,
            copies_bytes: topic.copies_bytes,
        };
        Self {
            topics: from.topics.into_iter().map(topic).collect(),
            live_bytes: from.live_bytes,
            dead_bytes: from.dead_bytes,
            checkpoint_bytes: from.checkpoint_bytes,
            index_bytes: from.index_bytes,
            kept_bytes: from.kept_bytes,
            free_bytes: from.free_bytes,
            reserve_bytes: from.reserve_bytes,
            own_bytes_max: from.own.map(|share| share.bytes_max),
            own_full: from.own.is_some_and(|share| share.full),
            copies_bytes_max: from.copies.map(|share| share.bytes_max),
            copies_full: from.copies.is_some_and(|share| share.full),
            growth_bytes_per_s: from.growth_bytes_per_s,
            growth_over_s: from.growth_over_s,
            full_in_s: from.full_in_s,
        }
    }
}

/// Topics that the table names.
const TOPICS_SHOWN: usize = 20;

impl DiskView {
    /// Sentences and a table.
    pub(crate) fn text(&self) -> String {
        let bytes = |bytes: u64| size(bytes as f64);
        let mut text = format!(
            "disk: {} live, {} dead (about {} of checkpoints), index {}, reserve {} of which {} is kept in a file; {}\n",
            bytes(self.live_bytes),
            bytes(self.dead_bytes),
            bytes(self.checkpoint_bytes),
            bytes(self.index_bytes),
            bytes(self.reserve_bytes.saturating_add(self.kept_bytes)),
            bytes(self.kept_bytes),
            self.forecast()
        );
        for (whose, max, full) in
            [("own logs", self.own_bytes_max, self.own_full), ("copies", self.copies_bytes_max, self.copies_full)]
        {
            if let Some(max) = max {
                let used = if full { "used up" } else { "not used up" };
                text.push_str(&format!("share of {whose}: {}, {used}\n", bytes(max)));
            }
        }
        let mut table = Table::new(&["TOPIC", ">OWN", ">COPIES"]);
        for topic in self.topics.iter().filter(|t| t.own_bytes + t.copies_bytes > 0).take(TOPICS_SHOWN) {
            let name = if topic.topic.is_empty() { "(others)".to_owned() } else { topic.topic.clone() };
            table.row([name, bytes(topic.own_bytes), bytes(topic.copies_bytes)]);
        }
        if !table.is_empty() {
            text.push_str(&table.render());
        }
        text
    }

    fn forecast(&self) -> String {
        let span = |s: f64| {
            // Whole units only: it is an estimate.
            let s = s.clamp(0.0, 1e10) as u64;
            let unit = [86_400, 3_600, 60].into_iter().find(|unit| s >= *unit).unwrap_or(1);
            humantime::format_duration(std::time::Duration::from_secs(s - s % unit)).to_string()
        };
        match (self.growth_bytes_per_s, self.full_in_s) {
            (None, _) => "how long it lasts is not known yet".to_owned(),
            (Some(_), None) => format!("it did not grow in the last {}", span(self.growth_over_s)),
            (Some(rate), Some(left)) => {
                format!("full in {} at the {}/s of the last {}", span(left), size(rate), span(self.growth_over_s))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_long_it_lasts_and_over_what() {
        let view = |rate, left| DiskView {
            growth_bytes_per_s: rate,
            growth_over_s: 3599.0,
            full_in_s: left,
            ..DiskView::default()
        };
        assert_eq!(view(None, None).forecast(), "how long it lasts is not known yet");
        assert_eq!(view(Some(-1.0), None).forecast(), "it did not grow in the last 59m");
        let text = view(Some(1e6), Some(200_000.0)).forecast();
        assert!(text.starts_with("full in 2days at the ") && text.ends_with(" of the last 59m"), "{text}");
        let topics = vec![TopicUsageView { topic: "orders".into(), own_bytes: 5, copies_bytes: 7 }];
        let view = DiskView { topics, copies_bytes_max: Some(1 << 20), copies_full: true, ..view(None, None) };
        assert!(view.text().contains("orders") && view.text().contains("copies: 1.0 MiB, used up"), "{}", view.text());
    }
}
