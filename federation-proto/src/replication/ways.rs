//! Which nodes a way leads over: for status, which names the place where a way ends, and for people who ask why a way is taken.
//!
//! What is sent goes by [`super::routing`] alone, next hop by next hop; this says what follows from the same records.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Replication, routing::Routing};
use crate::{
    ids::{NodeName, Site},
    session::NodeKind,
};

/// The ways as they were computed last, and those that were lost since.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The node before each that can be reached, on a shortest way.
    before: BTreeMap<NodeName, NodeName>,
    /// Since when a site cannot be reached, and where its way broke; only for those that could be.
    lost: BTreeMap<Site, (Duration, String)>,
}

impl Ways {
    /// The nodes of the way to a node, that one last and this one left out.
    fn nodes(&self, me: &NodeName, to: &NodeName) -> Vec<NodeName> {
        let mut nodes = vec![to.clone()];
        let mut at = to;
        // No longer than there are nodes.
        for _ in 0..self.before.len() {
            match self.before.get(at) {
                Some(before) if before != me => {
                    nodes.push(before.clone());
                    at = before;
                }
                _ => break,
            }
        }
        nodes.reverse();
        nodes
    }
}

impl Routing {
    /// The nodes on the way to a site's edge broker, nearest first.
    pub(super) fn way_to_site(&self, me: &NodeName, site: &Site) -> Vec<NodeName> {
        let edge = self.edge_of(site);
        edge.map(|edge| self.ways.nodes(me, &edge)).unwrap_or_default()
    }

    /// Computes the ways anew, from the records as they are, and takes note of which of the sites reached until now are lost.
    pub(super) fn renew_ways<'a>(&mut self, me: &NodeName, now: Duration, reached: impl Iterator<Item = &'a Site>) {
        let gone: Vec<&Site> = reached.filter(|site| self.upstream(site).is_none()).collect();
        for site in gone {
            let why = self.broken_at(me, &self.way_to_site(me, site));
            let why = why.map(|at| format!(": {at}")).unwrap_or_default();
            self.ways.lost.insert(site.clone(), (now, why));
        }
        let found: Vec<Site> = self.ways.lost.keys().filter(|s| self.upstream(s).is_some()).cloned().collect();
        for site in found {
            self.ways.lost.remove(&site);
        }
        let mut before: BTreeMap<NodeName, NodeName> = BTreeMap::new();
        let mut best: BTreeMap<NodeName, u64> = BTreeMap::from([(me.clone(), 0)]);
        let mut open = BTreeSet::from([(0, me.clone())]);
        while let Some((cost, node)) = open.pop_first() {
            if best.get(&node).is_some_and(|known| *known < cost) {
                continue;
            }
            for (peer, step) in self.steps(&node, node != *me) {
                let total = cost.saturating_add(step);
                if best.get(peer).is_none_or(|known| total < *known) {
                    best.insert(peer.clone(), total);
                    before.insert(peer.clone(), node.clone());
                    open.insert((total, peer.clone()));
                }
            }
        }
        self.ways.before = before;
    }

    /// The first link of a way that does not hold any more.
    fn broken_at(&self, me: &NodeName, way: &[NodeName]) -> Option<String> {
        let mut at = me;
        for next in way {
            if !self.steps(at, false).any(|(peer, _)| peer == next) {
                return Some(match at == me {
                    true => format!("the link to {next} is down"),
                    false => format!("the link between {at} and {next} is down"),
                });
            }
            at = next;
        }
        None
    }

    /// Since when there is no way to a site, and where the last one broke.
    pub(super) fn lost_way(&self, site: &Site) -> (Duration, String) {
        self.ways.lost.get(site).cloned().unwrap_or_default()
    }
}

impl Replication {
    /// The nodes on the way to an origin, its edge broker last.
    pub(super) fn way_to(&self, origin: &Site) -> Vec<NodeName> {
        self.routing.way_to_site(&self.config.node, origin)
    }
}

/// A node as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNode {
    /// Its name.
    pub node: NodeName,
    /// Its kind, as its record or an older one said.
    pub kind: Option<NodeKind>,
    /// Cost of the way to it; `None`: there is none (to this node itself: 0).
    pub cost: Option<u64>,
    /// For how long its site has not been reachable, and where the way broke; where this node saw it go.
    pub away: Option<(Duration, String)>,
    /// It is nobody's next hop while another way exists.
    pub no_transit: bool,
    /// How long ago it said something of itself, by this node's clock; `None`: never since this start.
    pub record_age: Option<Duration>,
}

/// A link between two nodes, as their records state it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownLink {
    /// One end, the lesser name.
    pub a: NodeName,
    /// The other.
    pub b: NodeName,
    /// Its cost as each end states it; `None`: that end does not.
    pub costs: [Option<u32>; 2],
}

/// One node of a way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayHop {
    /// The node.
    pub node: NodeName,
    /// Cost of the link that leads to it, and what a way through the node before it costs besides.
    pub cost: u64,
    /// The node before it carries no transit, and is taken all the same.
    pub through_no_transit: bool,
}

/// Why a way leads as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedWay {
    /// From the first node to the last, the first with cost 0; empty: there is none.
    pub hops: Vec<WayHop>,
    /// Other neighbours of the first node, and what the way by them costs (`None`: there is none by them), cheapest first.
    pub others: Vec<(NodeName, Option<u64>)>,
}

impl Routing {
    /// The costs of the ways from a node to all others, by the records.
    fn costs_from(&self, from: &NodeName, without: Option<&NodeName>) -> BTreeMap<NodeName, u64> {
        let mut best: BTreeMap<NodeName, u64> = BTreeMap::from([(from.clone(), 0)]);
        let mut open = BTreeSet::from([(0, from.clone())]);
        while let Some((cost, node)) = open.pop_first() {
            if best.get(&node).is_some_and(|known| *known < cost) {
                continue;
            }
            for (peer, step) in self.steps(&node, node != *from).filter(|(peer, _)| Some(*peer) != without) {
                let total = cost.saturating_add(step);
                if best.get(peer).is_none_or(|known| total < *known) {
                    best.insert(peer.clone(), total);
                    open.insert((total, peer.clone()));
                }
            }
        }
        best
    }

    /// What the way from a node's neighbour on costs, with the step to it; `None`: none leads on from there.
    fn cost_by(&self, from: &NodeName, by: &NodeName, step: u64, to: &NodeName) -> Option<u64> {
        if by == to {
            return Some(step);
        }
        let first = self.steps(by, true).filter(|(peer, _)| *peer != from);
        let rest = |(peer, next): (&NodeName, u64)| {
            let on = if peer == to { Some(0) } else { self.onward(peer, from, to) };
            on.map(|on| next.saturating_add(on))
        };
        first.filter_map(rest).min().map(|rest| step.saturating_add(rest))
    }

    /// Cost of the way from a node that is passed through, without coming back to `not`.
    fn onward(&self, at: &NodeName, not: &NodeName, to: &NodeName) -> Option<u64> {
        let cost = self.costs_from(at, Some(not)).get(to).copied()?;
        let through = self.steps(at, true).next().map_or(0, |(_, step)| step);
        let plain = self.steps(at, false).next().map_or(0, |(_, step)| step);
        Some(cost.saturating_add(through.saturating_sub(plain)))
    }

    /// The way from one node to another, as each node on it decides by itself: the next hop of smallest name on a shortest way.
    fn explain(&self, from: &NodeName, to: &NodeName) -> ExplainedWay {
        let mut hops = vec![WayHop { node: from.clone(), cost: 0, through_no_transit: false }];
        let mut at = from.clone();
        while at != *to && hops.len() <= self.known_nodes().count() {
            let paths = self.paths(&at);
            let Some(next) = paths.get(to).and_then(|(_, firsts)| firsts.first()) else { break };
            let plain = self.steps(&at, false).find(|(peer, _)| *peer == next).map_or(0, |(_, step)| step);
            let step = self.steps(&at, at != *from).find(|(peer, _)| *peer == next).map_or(0, |(_, step)| step);
            hops.push(WayHop { node: next.clone(), cost: plain, through_no_transit: step > plain });
            at = next.clone();
        }
        if at != *to {
            hops.clear();
        }
        let taken = hops.get(1).map(|hop| hop.node.clone());
        let neighbours = self.steps(from, false).filter(|(peer, _)| Some(*peer) != taken.as_ref());
        let mut others: Vec<_> =
            neighbours.map(|(peer, step)| (peer.clone(), self.cost_by(from, peer, step, to))).collect();
        others.sort_by_key(|(node, cost)| (cost.unwrap_or(u64::MAX), node.clone()));
        ExplainedWay { hops, others }
    }
}

impl Replication {
    /// The nodes ever heard of and the links that their records state, in order of name.
    pub fn topology(&self, now: Duration) -> (Vec<KnownNode>, Vec<KnownLink>) {
        let me = &self.config.node;
        let costs = self.routing.costs_from(me, None);
        let mut names: BTreeSet<NodeName> = self.routing.known_nodes().cloned().collect();
        names.insert(me.clone());
        let node = |node: NodeName| {
            let cost = costs.get(&node).copied();
            let away = self.routing.ways.lost.get(&node.site).filter(|_| cost.is_none());
            let (kind, no_transit, record_age) = match self.routing.said_of(&node, now) {
                Some((kind, no_transit, age)) => (Some(kind), no_transit, Some(age)),
                None => (self.routing.kind_ever(&node), false, None),
            };
            let away = away.map(|(since, why)| (now.saturating_sub(*since), why.trim_start_matches(": ").to_owned()));
            KnownNode { node, kind, cost, away, no_transit, record_age }
        };
        (names.into_iter().map(node).collect(), self.routing.stated_links())
    }

    /// The way from one site's edge broker to another's.
    ///
    /// # Errors
    /// A sentence: a site is not known here.
    pub fn explain_way(&self, from: &Site, to: &Site) -> Result<ExplainedWay, String> {
        let edge = |site: &Site| {
            let known = self.routing.edge_of(site);
            known.ok_or_else(|| {
                format!("no edge broker of a site named {site} is known here; `seaway topology` lists all nodes")
            })
        };
        Ok(self.routing.explain(&edge(from)?, &edge(to)?))
    }
}
