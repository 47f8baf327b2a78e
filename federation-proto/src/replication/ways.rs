//! Which nodes a way leads over: for status, which names the place where a way ends, and for people who ask why a way is taken.
//!
//! What is sent goes by [`super::routing`] alone, next hop by next hop; this says what follows from the same records.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Replication, routing::Routing};
use crate::ids::{NodeName, Site};

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
