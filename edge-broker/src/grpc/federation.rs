//! What is known of the whole federation from here: where a message is, which nodes and links there are, which way leads where.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use seaway_federation_proto::{
    ids::{Path, Site},
    replication::{ExplainedWay, KnownLink, KnownNode, plain_cost},
    session::{NodeKind, vitals::lasting},
};
use seaway_relay::node::LinkStatus;
use tonic::Status;

use super::{convert::message_id_of, errors};
use crate::{
    api::{self, FindState},
    engine::Engine,
};

/// How long a question waits for answers unless told otherwise, and at most.
const FIND_DEADLINE: Duration = Duration::from_secs(3);
const FIND_DEADLINE_MAX: Duration = Duration::from_secs(30);

/// Asks all sites where a message is.
pub(crate) async fn find<E: Engine>(engine: &E, request: api::FindRequest) -> Result<api::FindReply, Status> {
    let id = request.id.ok_or_else(|| errors::invalid("the message's id is missing"))?;
    let (log, place) = message_id_of(id).map_err(errors::invalid)?;
    let deadline = match request.deadline_ms {
        0 => FIND_DEADLINE,
        ms => Duration::from_millis(ms).min(FIND_DEADLINE_MAX),
    };
    let finding = engine.find(&log, place, deadline).await.map_err(errors::unavailable)?;
    let kinds: BTreeMap<_, _> = engine.topology().0.into_iter().map(|known| (known.node, known.kind)).collect();
    let mut answers: Vec<api::FindAnswer> = finding
        .answers
        .into_iter()
        .map(|found| api::FindAnswer {
            is_site: kinds.get(&found.node).is_none_or(|kind| *kind != Some(NodeKind::Relay)),
            node: found.node.to_string(),
            // The numbers are the same on both wires.
            state: FindState::try_from(i32::from(found.state)).unwrap_or(FindState::Unknown).into(),
            lag_messages: found.lag_messages,
            text: found.text,
        })
        .collect();
    answers.sort_by(|a, b| (!a.is_site, &a.node).cmp(&(!b.is_site, &b.node)));
    let ways: BTreeSet<_> = engine.sites().into_iter().filter(|s| s.next_hop.is_some()).map(|s| s.site).collect();
    let missing = finding.missing.into_iter().map(|(site, why)| api::FindMissing {
        asked: ways.contains(&site),
        site: site.to_string(),
        why,
    });
    Ok(api::FindReply { answers, missing: missing.collect() })
}

/// The nodes and links that are known here.
pub(crate) fn topology<E: Engine>(engine: &E) -> api::TopologyReply {
    let me = engine.identity().1;
    let (nodes, links) = engine.topology();
    let own = engine.links();
    let node = |known: KnownNode| {
        let state = match known.cost {
            _ if known.node == me => "here",
            Some(_) => "reachable",
            None => "away",
        };
        let (cost, through_no_transit) = known.cost.map_or((0, false), plain_cost);
        let (away_for_ms, reason) = known.away.map_or((0, String::new()), |(away, why)| (milliseconds(away), why));
        api::TopologyNode {
            node: known.node.to_string(),
            kind: match known.kind {
                Some(NodeKind::Edge) => "edge".into(),
                Some(NodeKind::Relay) => "relay".into(),
                Some(NodeKind::Other(number)) => format!("kind {number}"),
                None => String::new(),
            },
            state: state.into(),
            away_for_ms,
            reason,
            no_transit: known.no_transit,
            cost,
            through_no_transit,
            record_age_ms: known.record_age.map_or(0, milliseconds),
        }
    };
    // What neither end can say any more, nobody knows.
    let away: BTreeSet<_> = nodes.iter().filter(|known| known.cost.is_none()).map(|known| known.node.clone()).collect();
    let is_known = |known: &KnownLink| !(away.contains(&known.a) && away.contains(&known.b));
    let links = links.into_iter().map(|known| {
        let is_known = is_known(&known);
        link(known, is_known, &me.to_string(), &own)
    });
    api::TopologyReply { nodes: nodes.into_iter().map(node).collect(), links: links.collect() }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn link(known: KnownLink, is_known: bool, me: &str, own: &[LinkStatus]) -> api::TopologyLink {
    let [cost_a, cost_b] = known.costs;
    let (a, b) = (known.a.to_string(), known.b.to_string());
    let peer = if a == me { Some(&known.b) } else { Some(&known.a).filter(|_| b == me) };
    // A node's own links are known better than by records.
    let status = peer.and_then(|peer| own.iter().find(|link| link.peer.as_ref() == Some(peer)));
    let (state, reason) = match (status, cost_a, cost_b) {
        (Some(link), ..) => (link.state.to_owned(), link.reason.clone()),
        (None, ..) if !is_known => ("unknown".to_owned(), format!("neither {a} nor {b} can be reached")),
        (None, Some(_), Some(_)) => ("up".to_owned(), String::new()),
        (None, Some(_), None) => ("half".to_owned(), format!("{b} does not state it")),
        (None, None, _) => ("half".to_owned(), format!("{a} does not state it")),
    };
    let cost = cost_a.zip(cost_b).map_or(0, |(a, b)| a.max(b));
    api::TopologyLink { a, b, cost_a: cost_a.unwrap_or(0), cost_b: cost_b.unwrap_or(0), cost, state, reason }
}

/// The way from one site to another, for messages under a path.
pub(crate) fn explain<E: Engine>(
    engine: &E,
    request: &api::ExplainRouteRequest,
) -> Result<api::ExplainRouteReply, Status> {
    let invalid = |error: seaway_federation_proto::ids::InvalidName| errors::invalid(error.to_string());
    let path: Path = request.path.parse().map_err(invalid)?;
    let site = |name: &str| name.parse::<Site>().map_err(invalid);
    let (from, to) = (site(&request.from_site)?, site(&request.to_site)?);
    let way = engine.explain_way(&from, &to).map_err(errors::not_found)?;
    Ok(explained(engine, &path, (&from, &to), way))
}

fn explained<E: Engine>(
    engine: &E,
    path: &Path,
    (from, to): (&Site, &Site),
    way: ExplainedWay,
) -> api::ExplainRouteReply {
    let me = engine.identity().1;
    let own = engine.links();
    let state = |node: &seaway_federation_proto::ids::NodeName,
                 before: Option<&seaway_federation_proto::ids::NodeName>| {
        let peer = match before {
            Some(before) if *before == me => Some(node),
            Some(before) if *node == me => Some(before),
            _ => None,
        };
        let status = peer.and_then(|peer| own.iter().find(|link| link.peer.as_ref() == Some(peer)));
        status.map_or_else(|| if before.is_some() { "up".to_owned() } else { String::new() }, |l| l.state.to_owned())
    };
    let mut total = 0_u64;
    let mut hops = Vec::new();
    let mut before = None;
    for hop in &way.hops {
        total = total.saturating_add(hop.cost);
        hops.push(api::RouteHop {
            node: hop.node.to_string(),
            cost: u32::try_from(hop.cost).unwrap_or(u32::MAX),
            cost_so_far: total,
            state: state(&hop.node, before),
        });
        before = Some(&hop.node);
    }
    let forced = way.hops.iter().any(|hop| hop.through_no_transit);
    let taken = way.hops.get(1).map(|hop| hop.node.to_string()).unwrap_or_default();
    let other = |(node, cost): &(seaway_federation_proto::ids::NodeName, Option<u64>)| api::RouteOther {
        by: node.to_string(),
        cost: cost.map_or(0, |cost| u64::from(plain_cost(cost).0)),
        why_not: match cost {
            None => "no way leads on from there".into(),
            Some(cost) if plain_cost(*cost).1 => "it leads through a node that carries no transit".into(),
            Some(cost) if *cost > total => format!("it costs {cost}, and the way by {taken} {total}"),
            Some(_) => format!("it costs as much; of several the one of smallest name is taken ({taken})"),
        },
    };
    let text = match (hops.len(), from == to) {
        (_, true) => format!("{from} is both ends: nothing goes over a link"),
        (0, _) => format!("there is no way from {from} to {to}: no chain of links that both ends state leads there"),
        (count, _) => format!(
            "what {to} wants of {path} from {from} goes over {}, at a cost of {total}{}",
            if count == 2 { "one link".to_owned() } else { format!("{} links", count - 1) },
            if forced { "; a node on it carries no transit, and there is no way around it" } else { "" },
        ),
    };
    api::ExplainRouteReply { hops, cost: total, others: way.others.iter().map(other).collect(), text }
}

/// For how long something is away, as people read it.
pub(crate) fn away(ms: u64) -> String {
    lasting(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_which_neither_end_can_be_asked_is_not_called_up() {
        let known =
            || KnownLink { a: "a/edge".parse().unwrap(), b: "b/edge".parse().unwrap(), costs: [Some(3), Some(4)] };
        let seen = link(known(), true, "c/edge", &[]);
        assert_eq!((seen.state.as_str(), seen.cost), ("up", 4));
        let unseen = link(known(), false, "c/edge", &[]);
        assert_eq!((unseen.state.as_str(), unseen.cost), ("unknown", 4));
        assert!(unseen.reason.contains("can be reached"), "{}", unseen.reason);
    }

    #[test]
    fn a_way_through_a_drained_node_shows_what_its_links_cost() {
        assert_eq!(plain_cost(7), (7, false));
        assert_eq!(plain_cost((1 << 40) + 7), (7, true));
        assert_eq!(plain_cost(2 * (1 << 40) + 9), (9, true));
    }
}
