//! Invariant 4: on a steady topology every batch crosses each link at most once in each direction, and only where it is wanted.
//!
//! Counted while messages are published and no faults come, among receivers that stand at the senders' ends. In a tree the link is
//! the only way between its two sides, so what must cross is known: the batches that were appended on one side and are wanted
//! on the other. Where a log has a fork, the first batch of its next incarnation may come on the old line and on the new, and where
//! that incarnation goes on from another line than the last one, what was not wanted as the main line's past or as a severed fork may
//! be wanted now: that is the last step of the topology's change.

use std::collections::{BTreeMap, BTreeSet};

use seaway_federation_proto::{
    copies::{IncarnationInfo, LogInfo},
    ids::{Incarnation, LogName, Offset, Place},
};
use seaway_relay::log::contract::{CommitLog, Line, Outside, Read};

use super::{
    check::Violation,
    net::{Conn, ConnId},
    node::{OwnEnds, SimNode},
    scenario::Scenario,
};

/// How things stood at the beginning: the ends of each origin's own logs, and batches that came on each connection, by side.
pub struct Crossings {
    own: Vec<OwnEnds>,
    came: BTreeMap<ConnId, [u64; 2]>,
}

fn came(nodes: &[SimNode], conns: &BTreeMap<ConnId, Conn>) -> BTreeMap<ConnId, [u64; 2]> {
    conns.iter().map(|(id, conn)| (*id, conn.nodes.map(|node| nodes[node].batches_in(*id)))).collect()
}

/// The nodes that one node reaches over the connections that are up.
pub fn reachable(from: usize, count: usize, conns: &BTreeMap<ConnId, Conn>) -> BTreeSet<usize> {
    let mut reached = BTreeSet::from([from]);
    for _ in 0..count {
        for conn in conns.values() {
            let [a, b] = conn.nodes;
            if reached.contains(&a) || reached.contains(&b) {
                reached.extend([a, b]);
            }
        }
    }
    reached
}

/// Batches of a log above these ends. And how many more may cross where the log has forks: the first ones of incarnations that
/// came since; and where the main line turned, what was there before on only one of the old and the new line.
pub fn count_batches(log: &dyn CommitLog, name: &LogName, above: &BTreeMap<Incarnation, Offset>) -> (u64, u64) {
    let Some(info) = log.info(name, true) else { return (0, 0) };
    let (old, new) = (line_to(&info, above.keys().next_back()), line_to(&info, Some(&info.end.incarnation)));
    let (mut count, mut more) = (0, 0);
    for held in &info.incarnations {
        let end = above.get(&held.incarnation).copied().unwrap_or(0).max(held.begin);
        let (came, first) = batches_between(log, name, held.incarnation, end, held.end);
        count += came;
        if info.fork_tips.is_empty() {
            continue;
        }
        more += first;
        if !above.is_empty()
            && !new.is_superset(&old)
            && old.contains(&held.incarnation) != new.contains(&held.incarnation)
        {
            more += batches_between(log, name, held.incarnation, held.begin, end).0;
        }
    }
    (count, more)
}

/// The incarnations by which a log comes to one of them.
fn line_to(info: &LogInfo, newest: Option<&Incarnation>) -> BTreeSet<Incarnation> {
    let held = |incarnation: &Incarnation| info.incarnations.iter().find(|i| i.incarnation == *incarnation);
    let back = |i: &&IncarnationInfo| i.previous.and_then(|p| held(&p.incarnation));
    std::iter::successors(newest.and_then(held), back).map(|i| i.incarnation).collect()
}

/// Batches of a range of one incarnation, and how many of them are its first.
fn batches_between(
    log: &dyn CommitLog,
    name: &LogName,
    incarnation: Incarnation,
    from: Offset,
    to: Offset,
) -> (u64, u64) {
    let (mut count, mut first) = (0, 0);
    let mut at = Place { incarnation, offset: from };
    while at.offset < to {
        at = match log.read(name, at, Line::Incarnation, 1 << 20) {
            Ok(Read::Batches { batches, next }) => {
                let inside = batches.iter().filter(|b| b.begin().offset < to);
                for batch in inside {
                    count += 1;
                    first += u64::from(batch.header().first_of_incarnation);
                }
                next
            }
            Ok(Read::Outside(Outside::Hole { hole })) => Place { offset: hole.to, ..at },
            _ => break,
        };
    }
    (count, first)
}

impl Crossings {
    /// Counting begins.
    pub fn begin(nodes: &[SimNode], conns: &BTreeMap<ConnId, Conn>) -> Self {
        Self { own: nodes.iter().map(SimNode::own_ends).collect(), came: came(nodes, conns) }
    }

    /// Counting ends: everything that was published has arrived.
    pub fn check(
        self,
        nodes: &[SimNode],
        conns: &BTreeMap<ConnId, Conn>,
        scenario: &Scenario,
        found: &mut Vec<Violation>,
    ) {
        let now = came(nodes, conns);
        let own: Vec<BTreeMap<LogName, (u64, u64)>> =
            nodes.iter().zip(&self.own).map(|(node, ends)| node.own_batches_above(ends)).collect();
        for (id, conn) in conns {
            let (Some(before), Some(after)) = (self.came.get(id), now.get(id)) else { continue };
            let mut others = conns.clone();
            others.remove(id);
            for side in 0..2 {
                let (receiver, sender) = (conn.nodes[side], conn.nodes[1 - side]);
                let wanting = reachable(receiver, nodes.len(), &others);
                let (mut due, mut twice) = (0, 0);
                for origin in reachable(sender, nodes.len(), &others) {
                    for (log, (count, first)) in &own[origin] {
                        let wanted =
                            |node: &usize| nodes[*node].is_edge() && scenario.wants_topic(*node, log.topic.as_str());
                        if wanting.iter().any(wanted) {
                            due += count;
                            twice += first;
                        }
                    }
                }
                let crossed = after[side] - before[side];
                if crossed < due || crossed > due + twice {
                    let what = format!(
                        "{crossed} batches crossed from {} to {} where {due} were published and wanted",
                        nodes[sender].name(),
                        nodes[receiver].name()
                    );
                    found.push(Violation { invariant: 4, what });
                }
            }
        }
    }
}
