//! Which way: link-state records, their numbering, flooding and aging, and the shortest paths that follow from them.
//!
//! Everything else asks only [`Routing::upstream`] (towards a site) and [`Routing::towards`] (a node), so classes of
//! topics and rules can come behind these two without anything else changing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;

use super::{
    Change, LinkId, Output, Replication, StateTable,
    convert::{self, Checked},
    twins::Twins,
    ways::{KnownLink, Ways},
};
use crate::{
    ids::{NodeName, Site, Start},
    session::NodeKind,
    wire::{WireError, link},
};

/// A record is forgotten when it was not renewed for this long.
pub(super) const RECORD_AGE_MAX: Duration = Duration::from_secs(3600);
/// A node renews its own record this often although nothing changed.
pub(super) const RECORD_REFRESH: Duration = Duration::from_secs(900);
/// Neighbours compare digests this often.
pub(super) const DIGEST_INTERVAL: Duration = Duration::from_secs(60);
/// What a hop through a node that carries no transit adds: more than any real path costs.
const NO_TRANSIT_COST: u64 = 1 << 40;

/// What a way costs by its links alone, and whether it leads through a node that carries no transit.
#[must_use]
pub fn plain_cost(cost: u64) -> (u32, bool) {
    (u32::try_from(cost % NO_TRANSIT_COST).unwrap_or(u32::MAX), cost >= NO_TRANSIT_COST)
}
/// Most neighbours believed of one record.
const NEIGHBOURS_MAX: usize = 4096;

/// What a node said of itself last.
#[derive(Debug, Clone)]
pub(super) struct Known {
    kind: NodeKind,
    pub(super) start: Start,
    /// When its data was begun.
    pub(super) since: Start,
    pub(super) sequence: u64,
    pub(super) neighbours: BTreeMap<NodeName, u32>,
    no_transit: bool,
    /// It says that another process of its name counts, or that it does itself.
    pub(super) stands_back: bool,
    pub(super) counts: bool,
    body: Bytes,
    heard: Duration,
    age: Duration,
}

/// The first step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) link: LinkId,
    pub(super) cost: u64,
}

/// Records and what follows from them.
#[derive(Debug)]
pub(super) struct Routing {
    pub(super) start: Start,
    /// This node's first start with the data it has.
    pub(super) since: Start,
    pub(super) sequence: u64,
    pub(super) twins: Twins,
    renewed: Duration,
    records: BTreeMap<NodeName, Known>,
    /// Every node that was ever heard of, also when nobody has renewed its record for long: it may be back, with what
    /// only it holds. Edge brokers' names are durable.
    ever: BTreeMap<NodeName, NodeKind>,
    nodes: BTreeMap<NodeName, Hop>,
    sites: BTreeMap<Site, Hop>,
    /// Sites with more than one edge broker within reach, as reported.
    doubled: BTreeSet<Site>,
    /// Those sites, each with the edge brokers that can be reached, the one that counts first.
    claimed: BTreeMap<Site, Vec<NodeName>>,
    /// For each node the links that lead to it by a way as short as the shortest.
    shortest: BTreeMap<NodeName, BTreeSet<LinkId>>,
    pub(super) ways: Ways,
}

/// Key of when this node's data was begun.
pub(super) const SINCE_KEY: &[u8] = b"since";

/// Key of an edge broker that was heard of: its name.
fn node_key(node: &NodeName) -> Bytes {
    node.to_string().into_bytes().into()
}

impl Routing {
    pub(super) fn new(start: Start, now: Duration) -> Self {
        Self {
            start,
            since: start,
            sequence: 0,
            twins: Twins::default(),
            renewed: now,
            records: BTreeMap::new(),
            ever: BTreeMap::new(),
            nodes: BTreeMap::new(),
            sites: BTreeMap::new(),
            doubled: BTreeSet::new(),
            claimed: BTreeMap::new(),
            shortest: BTreeMap::new(),
            ways: Ways::default(),
        }
    }

    /// The link towards an origin: the next hop on the shortest path to its edge broker.
    pub(super) fn upstream(&self, origin: &Site) -> Option<LinkId> {
        self.sites.get(origin).map(|h| h.link)
    }

    /// The link towards a node.
    pub(super) fn towards(&self, node: &NodeName) -> Option<LinkId> {
        self.nodes.get(node).map(|h| h.link)
    }

    /// Whether a link leads to a node by a shortest way: what the node says to somebody over here can come on it.
    pub(super) fn leads_to(&self, link: LinkId, node: &NodeName) -> bool {
        self.shortest.get(node).is_some_and(|links| links.contains(&link))
    }

    /// Whether a node is known, an edge broker, and not the second one that claims its site.
    pub(super) fn is_edge(&self, node: &NodeName) -> bool {
        let second = self.claimed.get(&node.site).is_some_and(|nodes| nodes.first() != Some(node));
        !second && self.records.get(node).is_some_and(|k| k.kind == NodeKind::Edge)
    }

    /// The edge broker that counts for this node's site, where it is another one.
    pub(super) fn outdone_by(&self, me: &NodeName) -> Option<&NodeName> {
        let nodes = self.claimed.get(&me.site)?;
        let first = nodes.first()?;
        (first != me && nodes.contains(me)).then_some(first)
    }

    /// What a node's record says: kind, whether it carries no transit, and how long ago it came.
    pub(super) fn said_of(&self, node: &NodeName, now: Duration) -> Option<(NodeKind, bool, Duration)> {
        let known = self.records.get(node)?;
        let age = known.age.saturating_add(now.saturating_sub(known.heard));
        Some((known.kind, known.no_transit, age))
    }

    /// What kind of node was ever heard of by this name.
    pub(super) fn kind_ever(&self, node: &NodeName) -> Option<NodeKind> {
        self.ever.get(node).copied()
    }

    /// All links that records state, in order of name, with the cost that each end states.
    pub(super) fn stated_links(&self) -> Vec<KnownLink> {
        let mut links: BTreeMap<(NodeName, NodeName), [Option<u32>; 2]> = BTreeMap::new();
        for (node, known) in &self.records {
            for (peer, cost) in &known.neighbours {
                let (key, end) = if node < peer { ((node, peer), 0) } else { ((peer, node), 1) };
                let costs = links.entry((key.0.clone(), key.1.clone())).or_default();
                if let Some(stated) = costs.get_mut(end) {
                    *stated = Some((*cost).max(1));
                }
            }
        }
        links.into_iter().map(|((a, b), costs)| KnownLink { a, b, costs }).collect()
    }

    /// The edge broker that counts of a site, as far as its record is known.
    pub(super) fn edge_of(&self, site: &Site) -> Option<NodeName> {
        if let Some(first) = self.claimed.get(site).and_then(|nodes| nodes.first()) {
            return Some(first.clone());
        }
        self.records
            .iter()
            .find(|(node, known)| node.site == *site && known.kind == NodeKind::Edge)
            .map(|(n, _)| n.clone())
    }

    pub(super) fn cost(&self, site: &Site) -> Option<u64> {
        self.sites.get(site).map(|h| h.cost)
    }

    /// Whether one of these nodes that can be reached states a link with `me`.
    pub(super) fn is_linked_with_any(&self, me: &NodeName, counts: impl Fn(&NodeName) -> bool) -> bool {
        let states = |(node, known): (&NodeName, &Known)| {
            node != me && counts(node) && self.nodes.contains_key(node) && known.neighbours.contains_key(me)
        };
        self.records.iter().any(states)
    }

    /// Every site with an edge broker that was ever heard of, reachable or not.
    pub(super) fn known_sites(&self) -> BTreeSet<Site> {
        self.ever.iter().filter(|(_, kind)| **kind == NodeKind::Edge).map(|(n, _)| n.site.clone()).collect()
    }

    /// Every node that was ever heard of, reachable or not.
    pub(super) fn known_nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.ever.keys()
    }

    /// An edge broker that a former process heard of.
    pub(super) fn restore_node(&mut self, key: &[u8]) -> Checked<()> {
        let name = String::from_utf8_lossy(key);
        self.ever.insert(name.parse()?, NodeKind::Edge);
        Ok(())
    }

    /// Whether a node is a site's edge broker, as far as was ever heard.
    pub(super) fn is_origin(&self, node: &NodeName, site: &Site) -> bool {
        node.site == *site && self.ever.get(node) == Some(&NodeKind::Edge)
    }

    /// The first start of this node with the data it has; a later one does not replace it.
    pub(super) fn restore_since(&mut self, value: &[u8]) -> Checked<()> {
        let since = link::Start::decode(value).map_err(|_| WireError::Undecodable)?;
        self.since = convert::start_from(Some(since))?;
        Ok(())
    }

    /// Forgets a site's nodes; answers the keys under which they are stored.
    pub(super) fn forget_site(&mut self, site: &Site) -> Vec<Bytes> {
        let nodes = self.nodes_of(site);
        self.records.retain(|node, _| node.site != *site);
        self.ever.retain(|node, _| node.site != *site);
        nodes.iter().map(node_key).collect()
    }

    pub(super) fn nodes_of(&self, site: &Site) -> Vec<NodeName> {
        self.ever.keys().filter(|n| n.site == *site).cloned().collect()
    }

    /// The start that a site's edge broker states of itself now.
    pub(super) fn start_of(&self, site: &Site) -> Option<Start> {
        let edges = self.records.iter().filter(|(name, _)| name.site == *site && self.is_edge(name));
        edges.map(|(_, known)| known.start).max()
    }

    /// Whether what a site numbered by `found` comes before what it numbered by `known`: by the starts, unless its record says
    /// that the lower one is its present one (its clock was ahead, and the memory of that is gone).
    pub(super) fn is_former(&self, site: &Site, found: Start, known: Start) -> bool {
        found < known && self.start_of(site) != Some(found)
    }

    fn heads(&self) -> Vec<link::RecordHead> {
        let head = |node: &NodeName, k: &Known| link::RecordHead {
            node: Some((node).into()),
            start: Some(k.start.into()),
            sequence: k.sequence,
        };
        self.records.iter().map(|(n, k)| head(n, k)).collect()
    }

    fn record(known: &Known, now: Duration) -> link::control::Kind {
        let age = known.age.saturating_add(now.saturating_sub(known.heard));
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        link::control::Kind::Record(link::Record { body: known.body.clone(), age_ms })
    }

    /// Dijkstra from `me`: each node's distance, and the first hops of all shortest ways. Costs are at least 1, so next hops
    /// along shortest paths cannot form a loop; of several the one of smallest name is taken.
    pub(super) fn paths(&self, me: &NodeName) -> BTreeMap<NodeName, (u64, BTreeSet<NodeName>)> {
        let mut best: BTreeMap<NodeName, (u64, BTreeSet<NodeName>)> = BTreeMap::new();
        let mut open: BTreeSet<(u64, NodeName)> = BTreeSet::from([(0, me.clone())]);
        let mut done: BTreeSet<NodeName> = BTreeSet::new();
        while let Some((cost, node)) = open.pop_first() {
            if !done.insert(node.clone()) {
                continue;
            }
            let firsts = best.get(&node).map(|(_, firsts)| firsts.clone()).unwrap_or_default();
            for (peer, step) in self.steps(&node, node != *me) {
                let total = cost.saturating_add(step);
                let known = best.get(peer).map_or(u64::MAX, |(cost, _)| *cost);
                if peer == me || total > known {
                    continue;
                }
                let through = if node == *me { BTreeSet::from([peer.clone()]) } else { firsts.clone() };
                let entry = best.entry(peer.clone()).or_insert((total, BTreeSet::new()));
                if total < known {
                    *entry = (total, through);
                } else {
                    entry.1.extend(through);
                }
                open.insert((total, peer.clone()));
            }
        }
        best
    }

    /// A node's usable links: the peer, and what the way over the link costs. A link counts only if both ends state it; its
    /// cost is the greater of the two.
    pub(super) fn steps(&self, node: &NodeName, transit: bool) -> impl Iterator<Item = (&NodeName, u64)> {
        let known = self.records.get(node);
        let through = if transit && known.is_some_and(|k| k.no_transit) { NO_TRANSIT_COST } else { 0 };
        known.into_iter().flat_map(|k| &k.neighbours).filter_map(move |(peer, here)| {
            let there = self.records.get(peer).and_then(|k| k.neighbours.get(node))?;
            Some((peer, u64::from(*here.max(there)).max(1).saturating_add(through)))
        })
    }

    fn recompute(&mut self, me: &NodeName, links: &BTreeMap<NodeName, LinkId>) {
        self.nodes.clear();
        self.sites.clear();
        self.shortest.clear();
        // Which edge brokers can be reached of each site, this node itself too: one, if all is well.
        let mut claims: BTreeMap<Site, BTreeMap<(Start, NodeName), Option<Hop>>> = BTreeMap::new();
        let own = self.records.get(me).filter(|k| k.kind == NodeKind::Edge);
        let own_edge = own.is_some();
        if let Some(own) = own {
            claims.entry(me.site.clone()).or_default().insert((own.since, me.clone()), None);
        }
        for (node, (cost, firsts)) in self.paths(me) {
            let usable: Vec<LinkId> = firsts.iter().filter_map(|first| links.get(first).copied()).collect();
            let Some(link) = usable.first().copied() else { continue };
            self.shortest.insert(node.clone(), usable.into_iter().collect());
            let hop = Hop { link, cost };
            if let Some(known) = self.records.get(&node).filter(|k| k.kind == NodeKind::Edge) {
                claims.entry(node.site.clone()).or_default().insert((known.since, node.clone()), Some(hop));
            }
            self.nodes.insert(node, hop);
        }
        self.claimed.clear();
        for (site, nodes) in claims {
            // Everybody takes the same one of several for the site's: the one whose data is oldest, restarted or not.
            // A relay may stand in the site of an edge broker: it is then as far from that origin as any other.
            let elsewhere = !own_edge || site != me.site;
            if let Some((_, Some(hop))) = nodes.first_key_value().filter(|_| elsewhere) {
                self.sites.insert(site.clone(), *hop);
            }
            if nodes.len() > 1 {
                self.claimed.insert(site, nodes.into_keys().map(|(_, node)| node).collect());
            }
        }
    }
}

fn parse(body: Bytes, age: Duration, now: Duration) -> Checked<(NodeName, Known)> {
    let record = link::RecordBody::decode(body.clone()).map_err(|_| WireError::Undecodable)?;
    let kind = NodeKind::from(record.kind);
    let mut neighbours = BTreeMap::new();
    // A neighbour that cannot be named here is no way for this node; the record is passed on with it all the same.
    for n in record.neighbours.iter().take(NEIGHBOURS_MAX) {
        if let Ok(node) = convert::node_from(n.node.as_ref()) {
            neighbours.insert(node, n.cost);
        }
    }
    let start = convert::start_from(record.start)?;
    let known = Known {
        kind,
        start,
        since: record.since.map_or(Ok(start), |since| convert::start_from(Some(since)))?,
        sequence: record.sequence,
        neighbours,
        no_transit: record.no_transit,
        stands_back: record.stands_back,
        counts: record.counts,
        body,
        heard: now,
        age,
    };
    Ok((convert::node_from(record.node.as_ref())?, known))
}

impl Replication {
    /// The data of this edge broker begin with this start.
    pub(super) fn begin_data(&mut self) {
        let since = link::Start::from(self.routing.since).encode_to_vec();
        let change = Change::Put { table: StateTable::Node, key: SINCE_KEY.into(), value: since.into() };
        self.out.push_back(Output::Store(vec![change]));
    }

    /// Says anew who this node's neighbours are, and floods it.
    pub(super) fn renew_own_record(&mut self) {
        self.routing.sequence += 1;
        self.routing.renewed = self.now;
        let mut neighbours: BTreeMap<NodeName, u32> = BTreeMap::new();
        for link in self.links.values() {
            let cost = self.config.costs.iter().find(|(n, _)| *n == link.peer.node).map_or(1, |(_, c)| (*c).max(1));
            neighbours.insert(link.peer.node.clone(), cost);
        }
        let neighbour = |(node, cost): (&NodeName, &u32)| link::Neighbour { node: Some((node).into()), cost: *cost };
        let body = link::RecordBody {
            node: Some((&self.config.node).into()),
            kind: self.config.kind.into(),
            start: Some(self.routing.start.into()),
            since: Some(self.routing.since.into()),
            sequence: self.routing.sequence,
            neighbours: neighbours.iter().map(neighbour).collect(),
            no_transit: !self.transit,
            body_versions: self.config.body_versions.iter().map(|v| u32::from(*v)).collect(),
            features: Vec::new(),
            stands_back: self.is_second_of_its_name(),
            counts: self.routing.twins.counts(),
        };
        let known = Known {
            kind: self.config.kind,
            start: self.routing.start,
            since: self.routing.since,
            sequence: self.routing.sequence,
            neighbours,
            no_transit: !self.transit,
            stands_back: body.stands_back,
            counts: body.counts,
            body: body.encode_to_vec().into(),
            heard: self.now,
            age: Duration::ZERO,
        };
        let message = Routing::record(&known, self.now);
        self.routing.records.insert(self.config.node.clone(), known);
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.send(link, message.clone());
        }
        self.reroute();
    }

    pub(super) fn send_digest(&mut self, link: LinkId) {
        let heads = self.routing.heads();
        self.send(link, link::control::Kind::RecordDigest(link::RecordDigest { heads }));
    }

    pub(super) fn handle_digest(&mut self, from: LinkId, digest: &link::RecordDigest) {
        let mut theirs: BTreeMap<NodeName, (Start, u64)> = BTreeMap::new();
        for head in &digest.heads {
            // A node that cannot be named here has no record here that the peer might lack.
            if let (Ok(node), Ok(start)) = (convert::node_from(head.node.as_ref()), convert::start_from(head.start)) {
                theirs.insert(node, (start, head.sequence));
            }
        }
        let newer: Vec<_> = self
            .routing
            .records
            .iter()
            .filter(|(node, k)| theirs.get(*node).is_none_or(|t| *t < (k.start, k.sequence)))
            .map(|(_, k)| Routing::record(k, self.now))
            .collect();
        for record in newer {
            self.send(from, record);
        }
        // Where the peer knows a greater number under our own name, we learn of it only by the record itself.
    }

    pub(super) fn handle_record(&mut self, from: LinkId, record: link::Record) -> Checked<()> {
        let age = Duration::from_millis(record.age_ms);
        let (node, known) = parse(record.body, age, self.now)?;
        if node == self.config.node {
            self.meet_own_record(&known);
            return Ok(());
        }
        if age >= RECORD_AGE_MAX {
            return Ok(());
        }
        if self.removals.contains_key(&node.site) {
            self.count("record_dropped_of_removed_site");
            return Ok(());
        }
        let before = self.routing.records.get(&node).map(|k| (k.start, k.sequence));
        match before {
            Some(number) if number == (known.start, known.sequence) => return Ok(()),
            Some(number) if number > (known.start, known.sequence) => {
                if let Some(newer) = self.routing.records.get(&node).map(|k| Routing::record(k, self.now)) {
                    self.send(from, newer);
                }
                return Ok(());
            }
            None if self.routing.records.len() >= self.config.sites_max.saturating_mul(4) => {
                self.refuse(
                    "too-many-nodes",
                    format!(
                        "the record of {node} is refused: {} nodes are known already; raise the bound of sites",
                        self.routing.records.len()
                    ),
                );
                return Ok(());
            }
            _ => {}
        }
        let message = Routing::record(&known, self.now);
        self.remember_node(&node, known.kind);
        if known.kind == NodeKind::Edge {
            self.note_heard(&node.site, age);
        }
        let restarted = known.kind == NodeKind::Edge && before.is_none_or(|(start, _)| start != known.start);
        self.routing.records.insert(node.clone(), known);
        let others: Vec<LinkId> = self.links.keys().copied().filter(|l| *l != from).collect();
        for link in others {
            self.send(link, message.clone());
        }
        self.reroute();
        if restarted {
            self.origin_restarted(&node.site);
        }
        Ok(())
    }

    /// Keeps the name of a node that may hold what nobody else does.
    fn remember_node(&mut self, node: &NodeName, kind: NodeKind) {
        if self.routing.ever.get(node) == Some(&kind) {
            return;
        }
        if self.routing.ever.len() >= self.config.sites_max.saturating_mul(4) {
            return self.count("nodes_not_remembered");
        }
        self.routing.ever.insert(node.clone(), kind);
        if kind == NodeKind::Edge {
            let change = Change::Put { table: StateTable::Nodes, key: node_key(node), value: Bytes::new() };
            self.out.push_back(Output::Store(vec![change]));
        }
    }

    /// Forgets records that nobody renewed, renews the own one when it is due.
    pub(super) fn age_records(&mut self) {
        let now = self.now;
        let me = self.config.node.clone();
        let before = self.routing.records.len();
        self.routing
            .records
            .retain(|n, k| *n == me || k.age.saturating_add(now.saturating_sub(k.heard)) < RECORD_AGE_MAX);
        if now.saturating_sub(self.routing.renewed) >= RECORD_REFRESH {
            self.renew_own_record();
        } else if self.routing.records.len() != before {
            self.reroute();
        }
    }

    /// Recomputes the paths and tells the rest of the machine which origins have another upstream now.
    pub(super) fn reroute(&mut self) {
        let before = self.routing.sites.clone();
        // Where two links lead to one node, the newer one counts: the older is about to be found dead.
        let links: BTreeMap<NodeName, LinkId> = self.links.iter().map(|(id, l)| (l.peer.node.clone(), *id)).collect();
        let me = self.config.node.clone();
        self.routing.recompute(&me, &links);
        self.routing.renew_ways(&me, self.now, before.keys());
        let mut changed: BTreeSet<Site> = BTreeSet::new();
        for (site, hop) in &self.routing.sites {
            if before.get(site).is_none_or(|b| b.link != hop.link) {
                changed.insert(site.clone());
            }
        }
        changed.extend(before.keys().filter(|s| !self.routing.sites.contains_key(*s)).cloned());
        for origin in changed {
            let old = before.get(&origin).map(|h| h.link);
            self.upstream_changed(&origin, old);
        }
        self.report_doubled_sites();
    }

    /// A site has one active edge broker; a second one's messages would be forks of the first one's logs.
    fn report_doubled_sites(&mut self) {
        let doubled = self.routing.claimed.clone();
        for (site, nodes) in &doubled {
            if !self.routing.doubled.contains(site)
                && let Some((first, others)) = nodes.split_first()
            {
                let others = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
                let text = format!(
                    "site {site} has several edge brokers: {first}, whose data is oldest, counts; {others} takes no messages meanwhile: \
                     stop what should not be, or give it a site of its own"
                );
                self.report_of("two-edges-one-site", site, text);
            }
        }
        let doubled = doubled.into_keys().collect();
        let was = std::mem::replace(&mut self.routing.doubled, doubled);
        for site in was.difference(&self.routing.doubled) {
            self.out.push_back(Output::ReportOver("two-edges-one-site", site.to_string()));
        }
    }

    /// Everything of an origin moves to its new upstream.
    fn upstream_changed(&mut self, origin: &Site, old: Option<LinkId>) {
        self.retry_now(origin);
        self.wants_moved(origin, old);
        self.evaluate_origin(origin);
        self.statements_moved(origin);
        self.registration_moved(origin);
        self.trace_moved(origin);
        if old.is_none() {
            self.site_appeared();
        }
    }

    pub(super) fn send(&mut self, link: LinkId, message: link::control::Kind) {
        if self.links.contains_key(&link) {
            self.out.push_back(Output::Send(link, Box::new(message)));
        }
    }
}
