//! End-to-end probes: each interval a site probes the way to every origin that it wants from, so that "live" is true. While they
//! do not come back, each node of the way is probed by itself, so that status can name the place at which the way ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Replication,
    carried::{Content, Head, Kind, To},
};
use crate::{
    ids::{NodeName, Site},
    session::{NodeKind, vitals::lasting},
    wire::link,
};

/// Probes without an answer before the way counts as broken.
const MISSED_MAX: u32 = 3;
/// Nodes of one way that are probed by themselves.
const HOPS_PROBED_MAX: usize = 16;

/// A node of a way that is probed by itself.
#[derive(Debug, Default)]
struct Hop {
    /// The newest probe.
    number: u64,
    asked: Duration,
    answered: Option<Duration>,
}

#[derive(Debug, Default)]
struct Probed {
    number: u64,
    since: Duration,
    missed: u32,
    failed: String,
    round_trip: Option<Duration>,
    sent: Duration,
    /// Nodes on the way, while the origin does not answer.
    hops: BTreeMap<NodeName, Hop>,
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
        let known = self.routing.known_sites();
        let origins: BTreeSet<Site> = known.into_iter().filter(|o| self.wants_origin(o)).collect();
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
            let missed = probed.missed > 0;
            self.tell_site(&origin, Kind::TraceProbe(link::TraceProbe { number }));
            if missed {
                self.probe_hops(&origin);
            }
        }
    }

    /// Asks each node between here and an origin that does not answer.
    fn probe_hops(&mut self, origin: &Site) {
        let mut way = self.way_to(origin);
        way.pop();
        way.truncate(HOPS_PROBED_MAX);
        let now = self.now;
        if let Some(probed) = self.traces.origins.get_mut(origin) {
            probed.hops.retain(|node, _| way.contains(node));
        }
        for node in way {
            self.traces.number += 1;
            let number = self.traces.number;
            if let Some(probed) = self.traces.origins.get_mut(origin) {
                let hop = probed.hops.entry(node.clone()).or_default();
                (hop.number, hop.asked) = (number, now);
            }
            if let Some(link) = self.routing.towards(&node) {
                let probe = Kind::TraceProbe(link::TraceProbe { number });
                let carried = self.authored(&To::Node(node), probe);
                self.send(link, link::control::Kind::Carried(carried));
            }
        }
    }

    fn wants_origin(&self, origin: &Site) -> bool {
        !self.config.is_origin_of(origin) && self.wants.own.values().any(|w| super::wants::covers(w, origin))
    }

    pub(super) fn trace_moved(&mut self, origin: &Site) {
        self.traces.origins.remove(origin);
    }

    /// Since when the way to an origin counts as broken, and why, if it does.
    pub(super) fn trace_trouble(&self, now: Duration, origin: &Site) -> Option<(Duration, String)> {
        let probed = self.traces.origins.get(origin)?;
        if probed.missed < MISSED_MAX {
            return None;
        }
        let silent = lasting(now.saturating_sub(probed.since));
        let text = match probed.failed.as_str() {
            "" => {
                let place = self.trace_place(now, origin).map(|place| format!("; {place}")).unwrap_or_default();
                format!("probes to {origin} have not come back for {silent}{place}")
            }
            why => format!("probes to {origin} fail: {why}"),
        };
        Some((probed.since, text))
    }

    /// Where the way to an origin ends, as far as the probes tell.
    pub(super) fn trace_place(&self, now: Duration, origin: &Site) -> Option<String> {
        let probed = self.traces.origins.get(origin)?;
        let way = self.way_to(origin);
        let last = way.last()?;
        let young = self.config.mark_interval.saturating_mul(2);
        if probed.missed == 0 {
            return Some(format!("{last} answers probes, but states nothing"));
        }
        if !probed.failed.is_empty() {
            return Some(probed.failed.clone());
        }
        let (mut answers, mut silent) = (None, None);
        for node in way.iter().filter(|node| *node != last) {
            let hop = probed.hops.get(node)?;
            match hop.answered.filter(|at| now.saturating_sub(*at) <= young) {
                Some(_) => answers = Some(node),
                // It was asked just now.
                None if hop.asked == now => return None,
                None => {
                    silent = Some(node);
                    break;
                }
            }
        }
        let silent = silent.unwrap_or(last);
        Some(match answers {
            Some(answers) => format!("{answers} on the way answers probes, {silent} behind it does not"),
            None => format!("{silent}, the next node, answers no probe that goes farther than the link"),
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
        let hop = |p: &mut Probed| {
            p.hops.values_mut().any(|h| {
                h.number == number && failed.is_empty() && {
                    h.answered = Some(now);
                    true
                }
            })
        };
        if self.traces.origins.values_mut().any(hop) {
            return;
        }
        if let Some(probed) = self.traces.origins.values_mut().find(|p| p.number == number) {
            if failed.is_empty() {
                probed.missed = 0;
                probed.number = 0;
                probed.since = now;
                probed.round_trip = Some(now.saturating_sub(probed.sent));
                probed.hops.clear();
            }
            probed.failed = failed;
        }
    }
}
