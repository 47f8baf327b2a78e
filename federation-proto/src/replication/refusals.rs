//! Topics that a site does not take: the reason is stated to the origin, both ends tell people, and the site takes the topic up again by
//! itself when the reason is gone.
//!
//! A site judges by the topic's settings, which are in the control queue that it always takes: an origin that lets messages be larger
//! than the site does is refused before the first of them comes, instead of a copy that stands still half-way. Only edge
//! brokers refuse; a relay carries what others want.

use std::{collections::BTreeMap, time::Duration};

use super::{Output, Replication};
use crate::{
    control::Control,
    ids::{LogName, Queue, Site, Topic},
    limits::MESSAGE_BYTES_CEILING,
    session::NodeKind,
};

/// The name of the report at both ends.
const REFUSED: &str = "topic-refused";

/// What is refused here, and what others refuse of this origin's topics.
#[derive(Debug)]
pub(super) struct Refusals {
    /// Largest message of others' topics that this site takes, bytes.
    message_bytes_max: u64,
    /// What the settings of others' topics allow, where it is more than this build's bound or was asked about.
    allowed: BTreeMap<(Site, Topic), u64>,
    /// Since when topics are refused here.
    since: BTreeMap<(Site, Topic), Duration>,
    /// By topic of this origin and site.
    theirs: BTreeMap<(Topic, Site), String>,
}

impl Default for Refusals {
    fn default() -> Self {
        let most = u64::try_from(MESSAGE_BYTES_CEILING).unwrap_or(u64::MAX);
        Self { message_bytes_max: most, allowed: BTreeMap::new(), since: BTreeMap::new(), theirs: BTreeMap::new() }
    }
}

impl Refusals {
    /// Why this site does not take a topic's messages.
    pub(super) fn reason(&self, log: &LogName) -> Option<String> {
        if self.allowed.is_empty() {
            return None;
        }
        let allowed = self.allowed.get(&(log.origin.clone(), log.topic.clone()))?;
        (*allowed > self.message_bytes_max).then(|| {
            format!(
                "its messages may have up to {allowed} bytes, and this site takes at most {} ([topics] accept_message_size_max)",
                self.message_bytes_max
            )
        })
    }
}

impl Refusals {
    /// Since when this site has refused a topic.
    pub(super) fn since(&self, log: &LogName) -> Option<Duration> {
        self.since.get(&(log.origin.clone(), log.topic.clone())).copied()
    }
}

impl Replication {
    /// The largest message of others' topics that this site takes, from now on.
    pub fn handle_accepts(&mut self, message_bytes_max: u64) {
        self.refusals.message_bytes_max = message_bytes_max;
    }

    /// Whether this site refuses a log.
    pub(super) fn is_refused(&self, log: &LogName) -> bool {
        log.queue != Queue::CONTROL && self.refusals.reason(log).is_some()
    }

    /// Judges a topic by what its control queue says now.
    pub(super) fn judge_topic(&mut self, log: &LogName, control: &Control) {
        let Some((_, settings)) = &control.settings else { return };
        if self.config.kind != NodeKind::Edge || self.config.is_origin_of(&log.origin) {
            return;
        }
        let before = self.refusals.reason(log);
        let key = (log.origin.clone(), log.topic.clone());
        // Those that are in no danger of being refused are not remembered.
        if settings.message_bytes_max > self.refusals.message_bytes_max && !control.is_deleted() {
            self.refusals.allowed.insert(key, settings.message_bytes_max);
        } else {
            self.refusals.allowed.remove(&key);
        }
        let now = self.refusals.reason(log);
        if before == now {
            return;
        }
        let subject = format!("{} {}", log.topic, log.origin);
        match now {
            Some(why) => {
                self.refusals.since.entry((log.origin.clone(), log.topic.clone())).or_insert(self.now);
                let text =
                    format!("topic {} of {} is not taken: {why}; what is held of it stays", log.topic, log.origin);
                self.count(REFUSED);
                self.report_of(REFUSED, subject, text);
            }
            None => {
                self.refusals.since.remove(&(log.origin.clone(), log.topic.clone()));
                self.out.push_back(Output::ReportOver(REFUSED, subject));
            }
        }
        // The origin is told with the statement of the control queue.
        self.state_held(log);
        for name in self.message_logs(log) {
            self.begin_if_wanted(&name);
            self.evaluate(&name);
        }
    }

    /// A site's statement of a control queue says whether it takes the topic.
    pub(super) fn hear_refusal(&mut self, site: &Site, log: &LogName, refused: &str) {
        if log.queue != Queue::CONTROL || !self.config.is_origin_of(&log.origin) {
            return;
        }
        let key = (log.topic.clone(), site.clone());
        let subject = format!("{} at {site}", log.topic);
        match (self.refusals.theirs.get(&key).cloned(), refused.is_empty()) {
            (Some(_), true) => {
                self.refusals.theirs.remove(&key);
                self.out.push_back(Output::ReportOver(REFUSED, subject));
            }
            (before, false) if before.as_deref() != Some(refused) => {
                let text = format!("site {site} does not take topic {}: {refused}", log.topic);
                self.refusals.theirs.insert(key, refused.to_owned());
                self.report_of(REFUSED, subject, text);
            }
            _ => {}
        }
    }

    /// The sites that refuse a topic of this origin, and why.
    pub fn refused_by(&self, topic: &Topic) -> Vec<(Site, String)> {
        let of_topic = self.refusals.theirs.iter().filter(|((t, _), _)| t == topic);
        of_topic.map(|((_, site), why)| (site.clone(), why.clone())).collect()
    }
}
