//! Taking a site out of the federation, for ever.
//!
//! A removal is a record that every node keeps: it is told to all neighbours when it is new and whenever a link comes up, so it
//! reaches nodes that were away, and it survives restarts. From then on the site does not count anywhere (not for `all`, not
//! for hold-back, not among those who are waited for before a range is lost), its nodes' records are not believed, and links with it
//! are closed. Its name is never used again. What is held of its logs stays, for retention to take. Removals are believed from
//! authenticated members, as records are.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use super::{
    Change, LinkId, Output, Replication, StateTable, carried,
    convert::{self, Checked},
};
use crate::{
    ids::{LogName, Place, Site},
    wire::{self, link},
};

/// Most removals that are remembered; the next is refused.
pub(super) const REMOVALS_MAX: usize = 10_000;
/// Most bytes believed of the name of who removed a site.
const BY_BYTES_MAX: usize = 256;

/// A site that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The site.
    pub site: Site,
    /// The node at which it was asked.
    pub by: String,
    /// When, by that node's clock, microseconds since 1970.
    pub at_us: u64,
}

/// Messages that only one site is known to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlyThere {
    /// The log.
    pub log: LogName,
    /// How many, as far as it is known.
    pub messages: u64,
    /// Which, and why only there, in words.
    pub why: String,
}

/// The sites that were removed.
pub(super) type Removals = BTreeMap<Site, Removal>;

fn wire_of(removal: &Removal) -> link::SiteRemoval {
    link::SiteRemoval { site: removal.site.to_string(), by: removal.by.clone(), at_us: removal.at_us }
}

fn removal_from(wire: &link::SiteRemoval) -> Checked<Removal> {
    let by = wire.by.chars().filter(|c| !c.is_control()).take(BY_BYTES_MAX / 4).collect();
    Ok(Removal { site: convert::site_from(&wire.site)?, by, at_us: wire.at_us })
}

/// What is told to a removed site's nodes, and to who dials one.
pub fn removed_text(removal: &Removal) -> String {
    format!(
        "site {} was removed from this federation by {}, for ever; give the node a site of another name and an empty data directory",
        removal.site, removal.by
    )
}

impl Replication {
    pub(super) fn restore_removal(&mut self, value: &[u8]) -> Checked<()> {
        let stored = <link::SiteRemoval as prost::Message>::decode(value).map_err(|_| wire::WireError::Undecodable)?;
        let removal = removal_from(&stored)?;
        self.removals.insert(removal.site.clone(), removal);
        Ok(())
    }

    /// Removes a site, for ever; `at_us` is the wall clock. Removing it again changes nothing.
    ///
    /// # Errors
    /// A sentence: it is this node's own site, or too many were removed.
    pub fn remove_site(&mut self, now: Duration, site: &Site, at_us: u64) -> Result<(), String> {
        self.at(now);
        if *site == self.config.node.site {
            return Err(format!("{site} is this node's own site; remove it at a node of another site"));
        }
        if self.removals.contains_key(site) {
            return Ok(());
        }
        if self.removals.len() >= REMOVALS_MAX {
            return Err(format!("{REMOVALS_MAX} sites were removed already, the most that are remembered"));
        }
        let removal = Removal { site: site.clone(), by: self.config.node.to_string(), at_us };
        self.take_removal(removal, None);
        Ok(())
    }

    /// A neighbour tells which sites were removed.
    pub(super) fn hear_removals(&mut self, from: LinkId, told: &link::SitesRemoved) -> Checked<()> {
        for wire in &told.removals {
            let removal = removal_from(wire)?;
            if self.removals.contains_key(&removal.site) {
                continue;
            }
            if self.removals.len() >= REMOVALS_MAX {
                let text = format!("site {} was removed, but {REMOVALS_MAX} are remembered already", removal.site);
                self.refuse("too-many-removals", text);
                continue;
            }
            self.take_removal(removal, Some(from));
        }
        Ok(())
    }

    /// Tells a neighbour that just came up.
    pub(super) fn tell_removals(&mut self, link: LinkId) {
        let all: Vec<link::SiteRemoval> = self.removals.values().map(wire_of).collect();
        for removals in carried::parts(all).into_iter().filter(|part| !part.is_empty()) {
            self.send(link, link::control::Kind::SitesRemoved(link::SitesRemoved { removals }));
        }
    }

    /// Forgets what a site stated and registered, and its nodes; what is to be forgotten of it on the disk.
    fn forget_site(&mut self, site: &Site) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut forget = |table, key| changes.push(Change::Delete { table, key });
        let key = Bytes::copy_from_slice(site.as_str().as_bytes());
        let (ours, theirs) = self.registrations.forget(site);
        if theirs {
            forget(StateTable::Sites, key.clone());
        }
        if ours {
            forget(StateTable::Registrations, key);
        }
        self.refusals_over(site);
        self.held.forget_site(site).into_iter().for_each(|key| forget(StateTable::Held, key));
        self.routing.forget_site(site).into_iter().for_each(|key| forget(StateTable::Nodes, key));
        changes
    }

    /// After the restart: what a removed site had stated counts no more, whatever became durable of its removal.
    pub(super) fn forget_removed(&mut self) {
        let others = self.removals.keys().filter(|site| **site != self.config.node.site);
        let left: Vec<Site> = others.filter(|site| self.is_remembered(site)).cloned().collect();
        let changes: Vec<Change> = left.iter().flat_map(|site| self.forget_site(site)).collect();
        if !changes.is_empty() {
            self.out.push_back(Output::Store(changes));
        }
    }

    /// Whether anything is known of a site: its nodes, what it registered or stated.
    fn is_remembered(&self, site: &Site) -> bool {
        self.registrations.knows(site)
            || self.held.knows(site)
            || self.routing.known_nodes().any(|node| node.site == *site)
    }

    /// Whether a site was ever heard of: by a node of any kind, a registration, a statement or a log.
    pub fn knows_site(&self, site: &Site) -> bool {
        self.is_remembered(site) || self.logs.of_origin(site).next().is_some()
    }

    fn take_removal(&mut self, removal: Removal, from: Option<LinkId>) {
        let site = removal.site.clone();
        let key = Bytes::copy_from_slice(site.as_str().as_bytes());
        let value = carried::encoded(&wire_of(&removal));
        let mut changes = vec![Change::Put { table: StateTable::Removed, key, value }];
        changes.extend(self.forget_site(&site));
        self.out.push_back(Output::Store(changes));
        let text = match site == self.config.node.site {
            true => removed_text(&removal),
            false => {
                format!("site {site} was removed from the federation by {}; nothing waits for it any more", removal.by)
            }
        };
        self.report_of("site-removed", &site, text);
        let told = link::SitesRemoved { removals: vec![wire_of(&removal)] };
        self.removals.insert(site.clone(), removal);
        let others: Vec<LinkId> = self.links.keys().copied().filter(|l| Some(*l) != from).collect();
        for link in others {
            self.send(link, link::control::Kind::SitesRemoved(told.clone()));
        }
        self.close_removed();
        self.out.push_back(Output::RegistrationsChanged);
        self.out.push_back(Output::SiteRemoved(site));
        self.reroute();
    }

    /// Closes the links with nodes of removed sites; on a node of such a site it stands until the others close it.
    pub(super) fn close_removed(&mut self) {
        let gone = self.links.iter().filter_map(|(link, l)| Some((*link, self.removals.get(&l.peer.node.site)?)));
        let gone: Vec<(LinkId, String)> = gone.map(|(link, removal)| (link, removed_text(removal))).collect();
        for (link, text) in gone {
            self.out.push_back(Output::CloseLink(link, link::RefuseReason::Identity, text));
        }
    }

    /// The sites that were removed, in order of name.
    pub fn removals(&self) -> Vec<Removal> {
        self.removals.values().cloned().collect()
    }

    /// Why a site has no place here any more, if it was removed.
    pub fn removed(&self, site: &Site) -> Option<String> {
        self.removals.get(site).map(removed_text)
    }

    /// What only this site is known to hold: of this origin's logs what it states and nobody else does, and of its own logs what
    /// was announced and has not come here. What other sites hold of others' logs is not known here.
    pub fn only_there(&self, site: &Site) -> Vec<OnlyThere> {
        let mut only = Vec::new();
        for (log, stated) in self.held.statements_of(site) {
            let Some(tip) = stated.tips.first().copied() else { continue };
            let info = self.logs.get(log).and_then(|s| s.durable.as_ref());
            let Some(begin) = info.map(|info| info.begin) else {
                only.push(OnlyThere {
                    log: log.clone(),
                    messages: tip.offset.saturating_sub(stated.from.offset),
                    why: format!("this origin holds nothing of it any more; {site} holds it up to {tip}"),
                });
                continue;
            };
            let others = self.held.others_begin(log, site).map(|from| from.offset).min().unwrap_or(u64::MAX);
            let below = begin.offset.min(others).min(tip.offset);
            if stated.from.offset < below {
                only.push(OnlyThere {
                    log: log.clone(),
                    messages: below - stated.from.offset,
                    why: format!("offsets {} to {below}, which retention took away here", stated.from.offset),
                });
            }
            only.extend(self.beyond(log, site, &stated.tips));
        }
        for (log, _) in self.logs.of_origin(site) {
            let lag = self.status_of(self.now, log).and_then(|status| status.lag_messages).unwrap_or(0);
            if lag > 0 {
                let why = "published there, announced, and not come here yet".to_owned();
                only.push(OnlyThere { log: log.clone(), messages: lag, why });
            }
        }
        only
    }

    /// What a site holds above all that this origin does.
    fn beyond(&self, log: &LogName, site: &Site, tips: &[Place]) -> Option<OnlyThere> {
        if !self.held.is_noted_ahead(log, site) {
            return None;
        }
        let info = self.logs.get(log).and_then(|s| s.durable.as_ref())?;
        let above = |tip: &Place| match info.incarnations.iter().find(|i| i.incarnation == tip.incarnation) {
            Some(own) => tip.offset.saturating_sub(own.end),
            None => tip.offset.saturating_sub(info.end.offset),
        };
        let messages = tips.iter().map(above).max().unwrap_or(0);
        let why = "beyond what this origin holds, whose data was restored or lost".to_owned();
        Some(OnlyThere { log: log.clone(), messages, why })
    }
}
