//! End-to-end probes: each interval a site probes the way to every origin that it wants from, so that "live" is true.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Replication,
    carried::{Content, Head, Kind, To},
};
use crate::{ids::Site, session::NodeKind, wire::link};

/// Probes without an answer before the way counts as broken.
const MISSED_MAX: u32 = 3;

#[derive(Debug, Default)]
struct Probed {
    number: u64,
    since: Duration,
    missed: u32,
    failed: String,
    round_trip: Option<Duration>,
    sent: Duration,
}

/// All that concerns end-to-end probes.
#[derive(Debug, Default)]
pub(super) struct Traces {
    number: u64,
    origins: BTreeMap<Site, Probed>,
}

impl Replication {
    /// Sends the next probes and counts those that were not answered.
    pub(super) fn send_traces(&mut self) {
        if self.config.kind != NodeKind::Edge {
            return;
        }
        let origins: Vec<Site> = self.routing.known_sites().into_iter().filter(|o| self.wants_origin(o)).collect();
        self.traces.origins.retain(|origin, _| origins.contains(origin));
        for origin in origins {
            if self.routing.upstream(&origin).is_none() {
                continue;
            }
            self.traces.number += 1;
            let number = self.traces.number;
            let now = self.now;
            let probed =
                self.traces.origins.entry(origin.clone()).or_insert_with(|| Probed { since: now, ..Probed::default() });
            if probed.number != 0 {
                probed.missed = probed.missed.saturating_add(1);
            }
            probed.number = number;
            probed.sent = now;
            self.tell_site(&origin, Kind::TraceProbe(link::TraceProbe { number }));
        }
    }

    fn wants_origin(&self, origin: &Site) -> bool {
        !self.config.is_origin_of(origin) && self.wants.own.values().any(|w| super::wants::covers(w, origin))
    }

    pub(super) fn trace_moved(&mut self, origin: &Site) {
        self.traces.origins.remove(origin);
    }

    /// Why the way to an origin counts as broken, if it does.
    pub(super) fn trace_trouble(&self, now: Duration, origin: &Site) -> Option<String> {
        let probed = self.traces.origins.get(origin)?;
        if probed.missed < MISSED_MAX {
            return None;
        }
        let silent = now.saturating_sub(probed.since).as_secs();
        Some(match probed.failed.as_str() {
            "" => format!("probes to {origin} have not come back for {silent} s"),
            why => format!("probes to {origin} fail: {why}"),
        })
    }

    pub(super) fn round_trip(&self, origin: &Site) -> Option<Duration> {
        self.traces.origins.get(origin)?.round_trip
    }

    /// Answers a probe's author, with the way that it came.
    pub(super) fn answer_trace(&mut self, head: &Head, number: u64, way: Vec<link::NodeName>, failed: String) {
        let Some(back) = self.routing.towards(&head.author) else { return };
        let reply = Kind::TraceReply(link::TraceReply { number, way, failed });
        let carried = self.authored(&To::Node(head.author.clone()), reply);
        self.send(back, link::control::Kind::Carried(carried));
    }

    /// What could not be passed on: if it was a probe, its author is told where it ended.
    pub(super) fn trace_failed(&mut self, head: &Head, content: &Content, why: String) {
        if let Content::TraceProbe(number) = content {
            self.answer_trace(head, *number, Vec::new(), why);
        }
    }

    /// A probe's answer.
    pub(super) fn hear_trace_reply(&mut self, number: u64, failed: String) {
        let now = self.now;
        if let Some(probed) = self.traces.origins.values_mut().find(|p| p.number == number) {
            if failed.is_empty() {
                probed.missed = 0;
                probed.number = 0;
                probed.since = now;
                probed.round_trip = Some(now.saturating_sub(probed.sent));
            }
            probed.failed = failed;
        }
    }
}
