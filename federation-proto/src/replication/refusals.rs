//! Topics that a site does not take: the reason is stated to the origin, both ends tell people, and the site takes the topic up again by
//! itself when the reason is gone.
//!
//! A site judges by the topic's settings, which are in the control queue that it always takes: an origin that lets messages be larger
//! than the site does is refused before the first of them comes, instead of a copy that stands still half-way. Only edge
//! brokers refuse; a relay carries what others want.
//!
//! Messages in a body version that this build does not read are stored and passed on like any others, and come out once the site runs a
//! newer build. That they do not come out now is told at both ends in the same way.

use std::{collections::BTreeMap, time::Duration};

use super::{Output, Replication};
use crate::{
    control::Control,
    ids::{LogName, Queue, Site, Topic},
    limits::MESSAGE_BYTES_CEILING,
    session::NodeKind,
    wire::link,
};

/// The name of the report at both ends.
const REFUSED: &str = "topic-refused";

/// Most bytes believed of a refusal.
const REFUSAL_BYTES_MAX: usize = 1024;

/// Why a site does not take a topic, as it states with its control queue; by default it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) why: String,
    /// Nothing more of it is stored there.
    pub(super) untaken: bool,
}

impl Refused {
    /// Takes it out of a statement.
    pub(super) fn from_wire(held: &mut link::HeldLog) -> Self {
        let mut why = std::mem::take(&mut held.refused);
        why.truncate(why.floor_char_boundary(REFUSAL_BYTES_MAX));
        Self { untaken: held.untaken && !why.is_empty(), why }
    }

    /// What it takes to remember it, in parts of a statement.
    pub(super) fn parts(&self) -> usize {
        self.why.len().div_ceil(32)
    }
}

/// What is refused here; what others refuse of this origin's topics is kept with what they state.
#[derive(Debug)]
pub(super) struct Refusals {
    /// Largest message of others' topics that this site takes, bytes.
    message_bytes_max: u64,
    /// What the settings of others' topics allow, where it is more than this build's bound or was asked about.
    allowed: BTreeMap<(Site, Topic), u64>,
    /// Since when topics are refused here.
    since: BTreeMap<(Site, Topic), Duration>,
    /// The body version that this build does not read and that a topic's messages came in, since the process began.
    unread: BTreeMap<(Site, Topic), u8>,
}

impl Default for Refusals {
    fn default() -> Self {
        let most = u64::try_from(MESSAGE_BYTES_CEILING).unwrap_or(u64::MAX);
        Self { message_bytes_max: most, allowed: BTreeMap::new(), since: BTreeMap::new(), unread: BTreeMap::new() }
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

    /// What is stated to the origin: why the topic's messages are not taken, or do not come out.
    pub(super) fn stated(&self, log: &LogName) -> Option<String> {
        if let Some(reason) = self.reason(log) {
            return Some(reason);
        }
        if self.unread.is_empty() {
            return None;
        }
        let version = self.unread.get(&(log.origin.clone(), log.topic.clone()))?;
        Some(format!(
            "messages of it come in body version {version}, which this site does not read; they are stored and passed on, and delivered \
             once it runs a newer build"
        ))
    }
}

impl Refusals {
    /// Since when this site has refused a topic.
    pub(super) fn since(&self, log: &LogName) -> Option<Duration> {
        self.since.get(&(log.origin.clone(), log.topic.clone())).copied()
    }
}

impl Replication {
    /// A batch of this body version was stored in a copy here.
    pub fn handle_body_version(&mut self, now: Duration, log: &LogName, version: u8) {
        let known = self.config.body_versions.contains(&version) || self.config.kind != NodeKind::Edge;
        if known || self.config.is_origin_of(&log.origin) {
            return;
        }
        self.at(now);
        let key = (log.origin.clone(), log.topic.clone());
        if self.refusals.unread.insert(key, version) == Some(version) {
            return;
        }
        let control = LogName { queue: Queue::CONTROL, ..log.clone() };
        let why = self.refusals.stated(&control).unwrap_or_default();
        let text = format!("topic {} of {} is not delivered: {why}", log.topic, log.origin);
        self.count("topics_unread");
        self.report_of(REFUSED, format!("{} {}", log.topic, log.origin), text);
        self.state_held(&control);
    }

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

    /// A site's statement of a control queue of ours was taken: people are told what it says of whether it takes the topic.
    pub(super) fn note_refusal(&mut self, site: &Site, log: &LogName, before: &Refused, now: &Refused) {
        if before == now {
            return;
        }
        if now.why.is_empty() {
            self.out.push_back(Output::ReportOver(REFUSED, refusal_subject(site, log)));
        } else {
            self.report_refusal(site, log, now);
        }
        if before.untaken != now.untaken {
            self.out.push_back(Output::RegistrationsChanged);
        }
    }

    fn report_refusal(&mut self, site: &Site, log: &LogName, refused: &Refused) {
        let verb = if refused.untaken { "does not take" } else { "has trouble with" };
        let text = format!("site {site} {verb} topic {}: {}", log.topic, refused.why);
        self.report_of(REFUSED, refusal_subject(site, log), text);
    }

    /// What was stated before the process began, and is not over.
    pub(super) fn report_restored_refusals(&mut self) {
        let all: Vec<(Site, LogName, Refused)> = self.held.refusals().collect();
        all.iter().for_each(|(site, log, refused)| self.report_refusal(site, log, refused));
    }

    /// Nothing that a site stated counts any more.
    pub(super) fn refusals_over(&mut self, site: &Site) {
        let of_site = self.held.refusals().filter(|(by, ..)| by == site);
        let subjects: Vec<String> = of_site.map(|(by, log, _)| refusal_subject(&by, &log)).collect();
        self.out.extend(subjects.into_iter().map(|subject| Output::ReportOver(REFUSED, subject)));
    }

    /// The sites that refuse a topic of this origin, and why.
    pub fn refused_by(&self, topic: &Topic) -> Vec<(Site, String)> {
        let control = self.own_control(topic);
        self.held.refusing(&control).map(|(site, refused)| (site.clone(), refused.why.clone())).collect()
    }

    /// Those of them that store nothing more of it: they cannot acknowledge.
    pub fn not_taken_by(&self, topic: &Topic) -> Vec<(Site, String)> {
        let control = self.own_control(topic);
        let untaken = self.held.refusing(&control).filter(|(_, refused)| refused.untaken);
        untaken.map(|(site, refused)| (site.clone(), refused.why.clone())).collect()
    }

    /// The topics of this origin that a site does not take, and why.
    pub fn untaken_at(&self, site: &Site) -> Vec<(Topic, String)> {
        let of_site = self.held.refusals().filter(|(by, _, refused)| by == site && refused.untaken);
        of_site.map(|(_, log, refused)| (log.topic, refused.why)).collect()
    }

    fn own_control(&self, topic: &Topic) -> LogName {
        LogName { topic: topic.clone(), origin: self.config.node.site.clone(), queue: Queue::CONTROL }
    }
}

fn refusal_subject(site: &Site, log: &LogName) -> String {
    format!("{} at {site}", log.topic)
}
