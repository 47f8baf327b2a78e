//! Registration: which sites count at which origin.
//!
//! A site states its registering patterns to each origin once its wants' starts are resolved there, keeps that durably,
//! and repeats it until it is answered; the origin keeps it durably too. When either side's process begins anew the
//! statement is made again, so a lost disk at the origin heals by itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::{
    Change, Output, Replication, StateTable,
    carried::{self, Head, Kind},
    convert::{self, Checked},
    wants,
};
use crate::{
    ids::{Pattern, Site, Start, Topic},
    session::NodeKind,
    wire::{self, link},
};

/// Patterns in one registration, and their bytes.
const PATTERNS_MAX: usize = 4096;
const PATTERN_BYTES_MAX: usize = carried::LIST_BYTES;

/// What this site stated to one origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ours {
    patterns: Vec<Pattern>,
    sequence: u64,
    answered: bool,
    refused: String,
}

/// A site that counts here.
#[derive(Debug, Clone)]
struct Theirs {
    start: Start,
    sequence: u64,
    patterns: Vec<Pattern>,
}

/// All that concerns registration.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    ours: BTreeMap<Site, Ours>,
    sites: BTreeMap<Site, Theirs>,
    sequence: u64,
}

fn site_key(site: &Site) -> Bytes {
    site.to_string().into_bytes().into()
}

impl Registrations {
    pub(super) fn is_registered(&self, site: &Site) -> bool {
        self.sites.contains_key(site)
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.keys()
    }

    /// Forgets a site, as an origin and here; whether it was known as which.
    pub(super) fn forget(&mut self, site: &Site) -> (bool, bool) {
        (self.ours.remove(site).is_some(), self.sites.remove(site).is_some())
    }

    pub(super) fn knows(&self, site: &Site) -> bool {
        self.ours.contains_key(site) || self.sites.contains_key(site)
    }

    /// What this site had stated before this start: it is stated again, so only the origin's name and the patterns count.
    pub(super) fn restore_ours(&mut self, value: &[u8]) -> Checked<()> {
        let (_, origin, theirs) = parse(value)?;
        self.ours.insert(origin, Ours { patterns: theirs.patterns, ..Ours::default() });
        Ok(())
    }

    pub(super) fn restore_site(&mut self, value: &[u8]) -> Checked<()> {
        let (site, _, theirs) = parse(value)?;
        self.sites.insert(site, theirs);
        Ok(())
    }
}

/// A registration as it is kept: who registered, where, and what.
fn parse(value: &[u8]) -> Checked<(Site, Site, Theirs)> {
    let stored = link::StoredRegistration::decode(value).map_err(|_| wire::WireError::Undecodable)?;
    let patterns = stored.patterns.iter().map(|p| convert::pattern_from(p)).collect::<Checked<Vec<Pattern>>>()?;
    let theirs = Theirs { start: convert::start_from(stored.start)?, sequence: stored.sequence, patterns };
    Ok((convert::site_from(&stored.site)?, convert::site_from(&stored.origin)?, theirs))
}

fn stored(site: &Site, start: Start, sequence: u64, origin: &Site, patterns: &[Pattern]) -> Bytes {
    carried::encoded(&link::StoredRegistration {
        site: site.to_string(),
        start: Some(start.into()),
        sequence,
        origin: origin.to_string(),
        patterns: patterns.iter().map(ToString::to_string).collect(),
    })
}

/// As many of the patterns as one registration can name.
fn cut(patterns: &mut Vec<Pattern>) -> bool {
    let before = patterns.len();
    let mut bytes = 0usize;
    let fits = patterns.iter().take(PATTERNS_MAX).take_while(|p| {
        bytes = bytes.saturating_add(p.as_str().len()).saturating_add(8);
        bytes <= PATTERN_BYTES_MAX
    });
    let fits = fits.count();
    patterns.truncate(fits);
    patterns.len() < before
}

impl Replication {
    /// Brings the registration at an origin in line with the wants that are resolved there.
    pub(super) fn registration_changed(&mut self, origin: &Site) {
        let apart = self.config.is_origin_of(origin) || self.removals.contains_key(origin);
        if self.config.kind != NodeKind::Edge || apart {
            return;
        }
        let known = self.registrations.ours.get(origin).cloned();
        let registering: Vec<_> = self.wants.own.values().filter(|w| w.registers && wants::covers(w, origin)).collect();
        let mut patterns: Vec<Pattern> = registering
            .iter()
            .filter(|w| {
                // One that was stated before stays stated while it is being resolved anew.
                self.wants.is_resolved(&w.id, origin) || known.as_ref().is_some_and(|k| k.patterns.contains(&w.pattern))
            })
            .map(|w| w.pattern.clone())
            .collect();
        patterns.sort();
        patterns.dedup();
        let cut = cut(&mut patterns);
        match known {
            None if patterns.is_empty() => return,
            Some(known) if known.patterns == patterns && known.sequence > 0 => return,
            _ => {}
        }
        self.registrations.sequence += 1;
        let ours = Ours { patterns, sequence: self.registrations.sequence, answered: false, refused: String::new() };
        if cut {
            let text = format!(
                "only the first {} patterns are registered at {origin}; use fewer and wider patterns",
                ours.patterns.len()
            );
            self.report("too-many-patterns", text);
        }
        let key = Bytes::copy_from_slice(origin.as_str().as_bytes());
        let value = stored(&self.config.node.site, self.config.start, ours.sequence, origin, &ours.patterns);
        self.out.push_back(Output::Store(vec![Change::Put { table: StateTable::Registrations, key, value }]));
        self.registrations.ours.insert(origin.clone(), ours);
        self.send_registration(origin);
    }

    fn send_registration(&mut self, origin: &Site) {
        let Some(ours) = self.registrations.ours.get(origin).filter(|o| !o.answered && o.sequence > 0) else { return };
        let register = link::Register {
            sequence: ours.sequence,
            patterns: ours.patterns.iter().map(ToString::to_string).collect(),
            withdraw: ours.patterns.is_empty(),
        };
        self.tell_site(origin, Kind::Register(register));
    }

    /// Repeats what was not answered.
    pub(super) fn repeat_registrations(&mut self) {
        let open: Vec<Site> =
            self.registrations.ours.iter().filter(|(_, o)| !o.answered).map(|(o, _)| o.clone()).collect();
        for origin in open {
            self.send_registration(&origin);
        }
    }

    pub(super) fn registration_moved(&mut self, origin: &Site) {
        self.registration_changed(origin);
        self.send_registration(origin);
    }

    /// The origin's process is a new one: it is told again.
    pub(super) fn registration_anew(&mut self, origin: &Site) {
        self.registrations.sequence += 1;
        let sequence = self.registrations.sequence;
        if let Some(ours) = self.registrations.ours.get_mut(origin) {
            ours.answered = false;
            ours.sequence = sequence;
        }
        self.send_registration(origin);
    }

    /// A site registers here, or withdraws.
    pub(super) fn hear_registration(&mut self, head: &Head, sequence: u64, patterns: Vec<Pattern>, withdraw: bool) {
        let (site, start) = (head.author.site.clone(), head.start);
        if !self.routing.is_edge(&head.author) {
            return self.count("registration_dropped_unknown_site");
        }
        let theirs = Theirs { start, sequence, patterns };
        let known = self.registrations.sites.get(&site);
        let former = |k: &Theirs| match k.start == theirs.start {
            true => k.sequence > theirs.sequence,
            false => self.routing.is_former(&site, theirs.start, k.start),
        };
        if known.is_some_and(former) {
            return;
        }
        let refused = self.refusal(&site, known.is_some());
        // Also what is known: it comes again only because the answer was lost, or what it was to be kept in.
        let (change, changed);
        if withdraw || !refused.is_empty() {
            changed = self.registrations.sites.remove(&site).is_some();
            change = Change::Delete { table: StateTable::Sites, key: site_key(&site) };
        } else {
            changed = known.is_none_or(|k| k.patterns != theirs.patterns || k.start != theirs.start);
            let value = stored(&site, start, sequence, &self.config.node.site, &theirs.patterns);
            change = Change::Put { table: StateTable::Sites, key: site_key(&site), value };
            self.registrations.sites.insert(site.clone(), theirs);
        }
        self.out.push_back(Output::Store(vec![change]));
        if changed {
            self.out.push_back(Output::RegistrationsChanged);
        }
        let answer = link::Registered { start: Some(start.into()), sequence, refused };
        self.promise_site(&site, Kind::Registered(answer));
    }

    /// Why a site may not register here; empty where it may.
    fn refusal(&self, site: &Site, known: bool) -> String {
        if !known && self.registrations.sites.len() >= self.config.sites_max {
            return format!("{} sites are registered here already; raise the bound of sites", self.config.sites_max);
        }
        let some_entry_admits =
            self.config.replicate.iter().any(|(_, sites)| sites.as_ref().is_none_or(|s| s.contains(site)));
        let all_named = self.config.replicate.iter().any(|(p, s)| p.as_str() == "#" && s.is_some());
        if all_named && !some_entry_admits {
            return format!("the `replicate` setting of {} does not name {site}", self.config.node.site);
        }
        String::new()
    }

    /// An origin answers this site's registration.
    pub(super) fn hear_registered(&mut self, head: &Head, start: Start, sequence: u64, refused: String) {
        let origin = &head.author.site;
        let Some(ours) = self.registrations.ours.get_mut(origin) else { return };
        if start != self.config.start
            || ours.sequence != sequence
            || ours.answered
            || !self.routing.is_edge(&head.author)
        {
            return;
        }
        ours.answered = true;
        ours.refused.clone_from(&refused);
        let withdrawn = ours.patterns.is_empty();
        if !refused.is_empty() {
            self.report("registration-refused", format!("{origin} does not count this site: {refused}"));
        }
        if withdrawn {
            self.registrations.ours.remove(origin);
            let key = Bytes::copy_from_slice(origin.as_str().as_bytes());
            self.out.push_back(Output::Store(vec![Change::Delete { table: StateTable::Registrations, key }]));
        }
    }

    /// The sites that count for a topic of ours, by what they registered and by the `replicate` setting.
    pub(super) fn registered_sites(&self, topic: &Topic) -> Vec<Site> {
        let policy = self.config.replicate.iter().find(|(p, _)| p.touches(topic)).and_then(|(_, sites)| sites.as_ref());
        self.registrations
            .sites
            .iter()
            .filter(|(site, theirs)| {
                policy.is_none_or(|p| p.contains(site)) && theirs.patterns.iter().any(|p| p.touches(topic))
            })
            .map(|(site, _)| site.clone())
            .collect()
    }
}
