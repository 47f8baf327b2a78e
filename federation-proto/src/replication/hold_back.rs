//! What registered sites still need of this origin's logs: the place below which each holds, or has given up, everything.
//!
//! A site is believed: where it states less than before (a restored one), it needs more again. What lies below the place where
//! its copy begins does not count, nor what it jumped over or stated as lost or not wanted: it will not ask for that again. Its pending
//! holes count, and so does what is held here of a fork and is not stated by it. Where the chain value that it states is not ours, it
//! holds something else: what lies above the last place at which it was ours is kept for it. A registered site that has stated nothing of a log
//! needs all of it. How much is kept for whom, and for how long, is the holder's policy and not decided here.

use std::{collections::BTreeMap, time::Duration};

use super::{Replication, held::Stated};
use crate::{
    copies::{Hole, HoleKind, IncarnationInfo, LogInfo},
    ids::{Incarnation, LogName, Offset, Place, Site, Topic},
};

/// What a registered site needs of a log of this origin's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The site.
    pub site: Site,
    /// The lowest place, in the order of incarnations and offsets, that it does not hold and has not given up; the log's end
    /// where it holds all.
    pub from: Place,
    /// The end of its copy's main line, as it stated last, or up to where that fits this log; `None` where it has stated nothing of this
    /// log, or nothing that fits.
    pub tip: Option<Place>,
}

impl Replication {
    /// What each site that counts for the topic needs of the logs of this origin, in order of name: at most `count` logs, those
    /// after `after`. Nothing of a log without such a site.
    pub fn still_needed(&self, after: Option<&LogName>, count: usize) -> Vec<(LogName, Vec<Need>)> {
        let mut known: Option<(Topic, Vec<Site>)> = None;
        let logs = self.logs.of_origin_after(&self.config.node.site, after).take(count);
        let needs = logs.filter_map(|(name, state)| {
            let info = state.durable.as_ref()?;
            if known.as_ref().is_none_or(|(topic, _)| *topic != name.topic) {
                known = Some((name.topic.clone(), self.registered_sites(&name.topic)));
            }
            let sites = known.as_ref().map(|(_, sites)| sites.as_slice()).unwrap_or_default();
            let need = |site: &Site| {
                let stated = self.held.stated(site, name);
                Need {
                    site: site.clone(),
                    from: needed_from(info, stated),
                    tip: stated.and_then(|s| s.fitting_tips().first().copied()),
                }
            };
            Some((name.clone(), sites.iter().map(need).collect()))
        });
        needs.collect()
    }

    /// How long ago each site was last heard of; only those heard since the process began.
    pub fn last_heard(&self, now: Duration) -> Vec<(Site, Duration)> {
        self.held.heard.iter().map(|(site, at)| (site.clone(), now.saturating_sub(*at))).collect()
    }
}

/// See [`Need::from`].
pub(super) fn needed_from(info: &LogInfo, stated: Option<&Stated>) -> Place {
    let Some(stated) = stated else { return first_held(info).unwrap_or(info.end) };
    let reached = reached(info, stated);
    let pending: Vec<&Hole> = stated.holes.iter().filter(|h| h.kind == HoleKind::Pending).collect();
    let needed = info.incarnations.iter().find_map(|own| {
        // Below its copy's begin a site does not count.
        let below_begin = if own.incarnation <= stated.from.incarnation { stated.from.offset } else { 0 };
        let begin = own.begin.max(below_begin);
        let above = reached.get(&own.incarnation).copied().unwrap_or(begin).max(begin);
        let rest = (above < own.end).then_some(above);
        let holes = pending.iter().filter_map(|hole| pending_in(info, own, hole));
        let offset = holes.chain(rest).min()?;
        Some(Place { incarnation: own.incarnation, offset })
    });
    needed.unwrap_or(info.end)
}

fn first_held(info: &LogInfo) -> Option<Place> {
    let first = info.incarnations.iter().find(|i| i.begin < i.end)?;
    Some(Place { incarnation: first.incarnation, offset: first.begin })
}

fn held_in(info: &LogInfo, incarnation: Incarnation) -> Option<&IncarnationInfo> {
    let at = info.incarnations.binary_search_by_key(&incarnation, |i| i.incarnation).ok()?;
    info.incarnations.get(at)
}

/// Up to where the site came in each incarnation: its tips, and all places on the way back from them, by its own jumps and by
/// what our incarnations name.
fn reached(info: &LogInfo, stated: &Stated) -> BTreeMap<Incarnation, Offset> {
    let mut reached: BTreeMap<Incarnation, Offset> = BTreeMap::new();
    let mut open: Vec<Place> = stated.fitting_tips();
    while let Some(at) = open.pop() {
        match reached.get_mut(&at.incarnation) {
            // The way from there was gone already.
            Some(known) => *known = (*known).max(at.offset),
            None => {
                reached.insert(at.incarnation, at.offset);
                let jumped = stated.jumps.iter().filter(|j| j.incarnation == at.incarnation).filter_map(|j| j.from);
                open.extend(jumped);
                open.extend(held_in(info, at.incarnation).filter(|e| !e.jumped).and_then(|e| e.previous));
            }
        }
    }
    reached
}

/// The lowest offset held of an incarnation of ours that lies in a pending hole of the site's. A hole has offsets of one
/// incarnation; what lies below where that begins here stands in those that it goes on from.
fn pending_in(info: &LogInfo, own: &IncarnationInfo, hole: &Hole) -> Option<Offset> {
    let mut at = held_in(info, hole.incarnation);
    let mut to = hole.to;
    for _ in 0..=info.incarnations.len() {
        let here = at?;
        if here.incarnation == own.incarnation {
            let first = hole.from.max(own.begin);
            return (first < to.min(own.end)).then_some(first);
        }
        let previous = here.previous.filter(|p| p.offset > hole.from)?;
        to = to.min(previous.offset);
        at = held_in(info, previous.incarnation);
    }
    None
}

#[cfg(test)]
#[path = "tests/hold_back.rs"]
mod tests;
