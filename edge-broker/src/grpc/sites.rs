//! Sites as clients see them: the way there, what they hold of this site's logs, what is kept for them; and removing one.

use std::{collections::BTreeMap, sync::Arc};

use seaway_federation_proto::ids::{LogName, Place, Site};
use seaway_federation_proto::replication::{Removal, SiteStatus, plain_cost};
use seaway_relay::node::{HoldBack, SiteHoldBack};
use tonic::Status;

use super::{convert::place, errors, pages::split};
use crate::{api, engine::Engine};

/// Topics, and gaps, that are listed of one site.
const LISTED_MAX: usize = 256;

/// The sites, with what each states to hold of this one's logs, and their keys for pages. Not for async tasks.
pub(crate) fn sites<E: Engine>(engine: &E) -> impl Iterator<Item = (String, api::SiteInfo)> {
    let own = engine.identity().1.site;
    let held_back = engine.hold_back();
    let mut sites: Vec<api::SiteInfo> =
        engine.sites().into_iter().map(|site| site_info(engine, site, &own, &held_back)).collect();
    sites.extend(engine.removals().into_iter().map(removed_info));
    sites.sort_by(|a, b| a.site.cmp(&b.site));
    let parts = sites.into_iter().flat_map(move |mut whole| {
        let held = std::mem::take(&mut whole.held);
        split(&whole.site, held, |held| api::SiteInfo { held, ..whole.clone() })
    });
    parts.collect::<Vec<_>>().into_iter()
}

fn site_info<E: Engine>(engine: &E, site: SiteStatus, own: &Site, held_back: &Arc<HoldBack>) -> api::SiteInfo {
    let proven: BTreeMap<&LogName, (Option<Place>, bool)> =
        site.proven.iter().map(|(log, at, differs)| (log, (*at, *differs))).collect();
    let held = |(log, below, registered, verified): (LogName, Place, bool, bool)| {
        let end = engine.info(&log).map_or(below.offset, |info| info.end.offset);
        api::SiteHeld {
            topic: log.topic.to_string(),
            queue: u32::from(log.queue.0),
            below: Some(place(below)),
            lag_messages: end.saturating_sub(below.offset),
            registered,
            verified,
            verified_to: proven.get(&log).and_then(|(at, _)| *at).map(place),
            differs: proven.get(&log).is_some_and(|(_, differs)| *differs),
        }
    };
    let kept = held_back.sites.iter().find(|kept| kept.site == site.site.as_str());
    let (cost, through_no_transit) = site.cost.map_or((0, false), plain_cost);
    api::SiteInfo {
        reachable: site.next_hop.is_some() || site.site == *own,
        site: site.site.to_string(),
        nodes: site.nodes.iter().map(ToString::to_string).collect(),
        next_hop: site.via.map(|node| node.to_string()).unwrap_or_default(),
        cost,
        through_no_transit,
        held: site.held.into_iter().map(held).collect(),
        held_back: kept.map(site_held_back),
        removed_us: 0,
        removed_by: String::new(),
    }
}

fn removed_info(removal: Removal) -> api::SiteInfo {
    api::SiteInfo {
        site: removal.site.to_string(),
        removed_us: removal.at_us.max(1),
        removed_by: removal.by,
        ..api::SiteInfo::default()
    }
}

fn site_held_back(kept: &SiteHoldBack) -> api::SiteHoldBack {
    let mut topics: Vec<api::TopicHoldBack> = kept
        .topics
        .iter()
        .map(|topic| api::TopicHoldBack {
            topic: topic.topic.to_string(),
            bytes: topic.bytes,
            behind_bytes: topic.behind_bytes,
            oldest_us: topic.oldest_us.unwrap_or(0),
        })
        .collect();
    topics.sort_by_key(|topic| std::cmp::Reverse((topic.bytes, topic.behind_bytes)));
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let gap = |gap: &seaway_relay::node::Gap| api::SiteGap {
        topic: gap.log.topic.to_string(),
        queue: u32::from(gap.log.queue.0),
        from: Some(place(gap.from)),
        to: Some(place(gap.to)),
        messages: gap.messages,
        bytes: gap.bytes,
        since_us: gap.since_us,
        last_us: gap.last_us,
    };
    api::SiteHoldBack {
        site: kept.site.clone(),
        bytes: kept.bytes,
        behind_bytes: kept.behind_bytes,
        oldest_us: kept.oldest_us.unwrap_or(0),
        last_heard_us: kept.last_heard_us.unwrap_or(0),
        suffices_s: kept.suffices.map(|time| time.as_secs()),
        topics_total: count(topics.len()),
        topics: topics.into_iter().take(LISTED_MAX).collect(),
        gaps_total: count(kept.gaps.len()),
        gaps: kept.gaps.iter().take(LISTED_MAX).map(gap).collect(),
    }
}

/// Hold-back as a whole; of each site only the sums.
pub(crate) fn hold_back<E: Engine>(engine: &E) -> Option<api::HoldBackStatus> {
    let held = engine.hold_back();
    if held.as_of_us == 0 {
        return None;
    }
    let refused = held.refused.iter().take(LISTED_MAX);
    Some(api::HoldBackStatus {
        bytes: held.bytes,
        bytes_max: held.bytes_max,
        bytes_per_s: held.rate,
        suffices_s: held.suffices.map(|time| time.as_secs()),
        sites: held
            .sites
            .iter()
            .map(|site| api::SiteHoldBack { topics: Vec::new(), gaps: Vec::new(), ..site_held_back(site) })
            .collect(),
        refused: refused.map(|(t, why)| api::RefusedTopic { topic: t.to_string(), why: why.clone() }).collect(),
        as_of_us: held.as_of_us,
    })
}

/// Removes a site where `request.yes`, and tells in any case what only it is known to hold.
pub(crate) async fn remove<E: Engine>(
    engine: &E,
    request: api::RemoveSiteRequest,
) -> Result<api::RemoveSiteReply, Status> {
    let site: Site = request.site.parse().map_err(|e| errors::invalid(format!("no site's name: {e}")))?;
    if engine.identity().1.site == site {
        return Err(errors::invalid(format!("{site} is this node's own site; remove it at a node of another site")));
    }
    let status = engine.sites().into_iter().find(|known| known.site == site);
    let removed = engine.removals().into_iter().any(|removal| removal.site == site);
    // A site may have relays only.
    let known = || status.is_some() || engine.topology().0.iter().any(|known| known.node.site == site);
    if !removed && !known() {
        let text = format!("no site {site} was ever heard of here; `seaway site ls` lists those that were");
        return Err(errors::not_found(text));
    }
    let only = engine.only_there(&site);
    let total = u32::try_from(only.len()).unwrap_or(u32::MAX);
    let only = only.into_iter().take(LISTED_MAX).map(|only| api::OnlyThere {
        topic: only.log.topic.to_string(),
        origin: only.log.origin.to_string(),
        queue: u32::from(only.log.queue.0),
        messages: only.messages,
        why: only.why,
    });
    let reply = api::RemoveSiteReply {
        only: only.collect(),
        only_total: total,
        reachable: status.as_ref().is_some_and(|s| s.next_hop.is_some()),
        removed: removed || request.yes,
        held_back: engine.hold_back().sites.iter().find(|s| s.site == site.as_str()).map(site_held_back),
    };
    if request.yes {
        engine.remove_site(&site).await.map_err(|error| errors::engine_status(&error))?;
    }
    Ok(reply)
}
