//! End-to-end probes: each interval a site probes the way to every origin that it wants from, so that "live" is true.

use std::{collections::BTreeMap, time::Duration};

use super::{
    LinkId, Replication,
    convert::{self, Checked},
};
use crate::{
    ids::Site,
    session::NodeKind,
    wire::{self, link},
};

/// Nodes that a probe may list.
const WAY_MAX: usize = 64;
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
            let Some(upstream) = self.routing.upstream(&origin) else { continue };
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
            let probe = link::TraceProbe {
                from: Some((&self.config.node).into()),
                number,
                to_site: origin.to_string(),
                hops: self.config.hops,
                way: vec![(&self.config.node).into()],
            };
            self.send(upstream, link::control::Kind::TraceProbe(probe));
        }
    }

    fn wants_origin(&self, origin: &Site) -> bool {
        *origin != self.config.node.site && self.wants.own.values().any(|w| super::wants::covers(w, origin))
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

    pub(super) fn handle_trace_probe(&mut self, from: LinkId, mut probe: link::TraceProbe) -> Checked<()> {
        let to = convert::site_from(&probe.to_site)?;
        let asker = convert::node_from(probe.from.as_ref())?;
        if probe.way.len() >= WAY_MAX {
            return Err(wire::WireError::Range { what: "trace_probe.way", found: probe.way.len() as u64 });
        }
        probe.way.push((&self.config.node).into());
        if to == self.config.node.site && self.config.kind == NodeKind::Edge {
            return self.answer_trace(from, probe, &asker, String::new());
        }
        match self.routing.upstream(&to).filter(|l| *l != from) {
            Some(way) if probe.hops > 0 => {
                let on = link::TraceProbe { hops: probe.hops - 1, ..probe };
                self.send(way, link::control::Kind::TraceProbe(on));
                Ok(())
            }
            Some(_) => self.answer_trace(from, probe, &asker, "the way is too long".to_owned()),
            None => {
                let text = format!("{} has no way to {to}", self.config.node);
                self.answer_trace(from, probe, &asker, text)
            }
        }
    }

    fn answer_trace(
        &mut self,
        from: LinkId,
        probe: link::TraceProbe,
        asker: &crate::ids::NodeName,
        failed: String,
    ) -> Checked<()> {
        let way = self.routing.towards(asker).unwrap_or(from);
        let reply =
            link::TraceReply { to: probe.from, number: probe.number, way: probe.way, hops: self.config.hops, failed };
        self.send(way, link::control::Kind::TraceReply(reply));
        Ok(())
    }

    pub(super) fn handle_trace_reply(&mut self, from: LinkId, reply: link::TraceReply) -> Checked<()> {
        let to = convert::node_from(reply.to.as_ref())?;
        if to != self.config.node {
            if let Some(way) = self.routing.towards(&to).filter(|l| *l != from)
                && reply.hops > 0
            {
                let on = link::TraceReply { hops: reply.hops - 1, ..reply };
                self.send(way, link::control::Kind::TraceReply(on));
            }
            return Ok(());
        }
        let now = self.now;
        if let Some(probed) = self.traces.origins.values_mut().find(|p| p.number == reply.number) {
            if reply.failed.is_empty() {
                probed.missed = 0;
                probed.number = 0;
                probed.since = now;
                probed.round_trip = Some(now.saturating_sub(probed.sent));
            }
            probed.failed = reply.failed;
        }
        Ok(())
    }
}
