//! Registration: which sites count at which origin.
//!
//! A site states its registering patterns to each origin once its wants' starts are resolved there, keeps that durably,
//! and repeats it until it is answered; the origin keeps it durably too. When either side's process begins anew the
//! statement is made again, so a lost disk at the origin heals by itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::{
    Change, LinkId, Output, Replication, StateTable,
    convert::{self, Checked},
    wants,
};
use crate::{
    ids::{Pattern, Site, Start, Topic},
    session::NodeKind,
    wire::{self, link},
};

/// Patterns in one registration.
const PATTERNS_MAX: usize = 4096;

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
    format!("r\0{site}").into_bytes().into()
}

impl Registrations {
    pub(super) fn is_registered(&self, site: &Site) -> bool {
        self.sites.contains_key(site)
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.keys()
    }

    /// What this site had stated before this start: it is stated again, so only the origin's name and the patterns count.
    pub(super) fn restore_ours(&mut self, value: &[u8]) -> Checked<()> {
        let (origin, theirs) = parse(value)?;
        let (_, origin_name) = origin;
        let ours = Ours { patterns: theirs.patterns, ..Ours::default() };
        self.ours.insert(origin_name, ours);
        Ok(())
    }

    pub(super) fn restore_site(&mut self, value: &[u8]) -> Checked<()> {
        let ((site, _), theirs) = parse(value)?;
        self.sites.insert(site, theirs);
        Ok(())
    }
}

fn parse(value: &[u8]) -> Checked<((Site, Site), Theirs)> {
    let message = link::Register::decode(value).map_err(|_| wire::WireError::Undecodable)?;
    read(&message)
}

fn read(message: &link::Register) -> Checked<((Site, Site), Theirs)> {
    let count = message.patterns.len();
    if count > PATTERNS_MAX {
        return Err(wire::WireError::Range { what: "register.patterns", found: count as u64 });
    }
    let patterns = message.patterns.iter().map(|p| convert::pattern_from(p)).collect::<Checked<Vec<Pattern>>>()?;
    let theirs = Theirs { start: convert::start_from(message.start)?, sequence: message.sequence, patterns };
    Ok(((convert::site_from(&message.site)?, convert::site_from(&message.origin)?), theirs))
}

impl Replication {
    fn register_message(&self, origin: &Site, ours: &Ours) -> link::Register {
        link::Register {
            site: self.config.node.site.to_string(),
            start: Some(self.config.start.into()),
            sequence: ours.sequence,
            origin: origin.to_string(),
            hops: self.config.hops,
            patterns: ours.patterns.iter().map(ToString::to_string).collect(),
            withdraw: ours.patterns.is_empty(),
        }
    }

    /// Brings the registration at an origin in line with the wants that are resolved there.
    pub(super) fn registration_changed(&mut self, origin: &Site) {
        if self.config.kind != NodeKind::Edge || *origin == self.config.node.site {
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
        patterns.truncate(PATTERNS_MAX);
        match known {
            None if patterns.is_empty() => return,
            Some(known) if known.patterns == patterns && known.sequence > 0 => return,
            _ => {}
        }
        self.registrations.sequence += 1;
        let ours = Ours { patterns, sequence: self.registrations.sequence, answered: false, refused: String::new() };
        let message = self.register_message(origin, &ours);
        let key = Bytes::copy_from_slice(origin.as_str().as_bytes());
        let value = message.encode_to_vec().into();
        self.out.push_back(Output::Store(vec![Change::Put { table: StateTable::Registrations, key, value }]));
        self.registrations.ours.insert(origin.clone(), ours);
        self.send_registration(origin);
    }

    fn send_registration(&mut self, origin: &Site) {
        let Some(upstream) = self.routing.upstream(origin) else { return };
        let Some(ours) = self.registrations.ours.get(origin).filter(|o| !o.answered && o.sequence > 0) else { return };
        let message = self.register_message(origin, ours);
        self.send(upstream, link::control::Kind::Register(message));
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

    pub(super) fn handle_register(&mut self, from: LinkId, message: link::Register) -> Checked<()> {
        let ((site, origin), theirs) = read(&message)?;
        if origin != self.config.node.site {
            if let Some(upstream) = self.routing.upstream(&origin).filter(|l| *l != from)
                && message.hops > 0
            {
                let on = link::Register { hops: message.hops - 1, ..message };
                self.send(upstream, link::control::Kind::Register(on));
            }
            return Ok(());
        }
        let known = self.registrations.sites.get(&site);
        let former = |k: &Theirs| match k.start == theirs.start {
            true => k.sequence > theirs.sequence,
            false => self.routing.is_former(&site, theirs.start, k.start),
        };
        if known.is_some_and(former) {
            return Ok(());
        }
        let refused = self.refusal(&site, known.is_some());
        let mut changes = Vec::new();
        if message.withdraw || !refused.is_empty() {
            if self.registrations.sites.remove(&site).is_some() {
                changes.push(Change::Delete { table: StateTable::Held, key: site_key(&site) });
            }
        } else if known.is_none_or(|k| k.patterns != theirs.patterns || k.start != theirs.start) {
            let value = message.encode_to_vec().into();
            changes.push(Change::Put { table: StateTable::Held, key: site_key(&site), value });
            self.registrations.sites.insert(site.clone(), theirs);
        }
        if !changes.is_empty() {
            self.out.push_back(Output::Store(changes));
            self.out.push_back(Output::RegistrationsChanged);
        }
        self.answer_registration(&site, &message, refused);
        Ok(())
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

    fn answer_registration(&mut self, site: &Site, message: &link::Register, refused: String) {
        let Some(way) = self.routing.upstream(site) else { return };
        let answer = link::Registered {
            site: message.site.clone(),
            start: message.start,
            sequence: message.sequence,
            origin: message.origin.clone(),
            hops: self.config.hops,
            refused,
        };
        self.send(way, link::control::Kind::Registered(answer));
    }

    pub(super) fn handle_registered(&mut self, from: LinkId, answer: link::Registered) -> Checked<()> {
        let site = convert::site_from(&answer.site)?;
        if site != self.config.node.site {
            if let Some(way) = self.routing.upstream(&site).filter(|l| *l != from)
                && answer.hops > 0
            {
                let on = link::Registered { hops: answer.hops - 1, ..answer };
                self.send(way, link::control::Kind::Registered(on));
            }
            return Ok(());
        }
        let origin = convert::site_from(&answer.origin)?;
        let mine = convert::start_from(answer.start)? == self.config.start;
        let Some(ours) = self.registrations.ours.get_mut(&origin) else { return Ok(()) };
        if !mine || ours.sequence != answer.sequence || ours.answered {
            return Ok(());
        }
        ours.answered = true;
        ours.refused.clone_from(&answer.refused);
        let withdrawn = ours.patterns.is_empty();
        if !answer.refused.is_empty() {
            self.report("registration-refused", format!("{origin} does not count this site: {}", answer.refused));
        }
        if withdrawn {
            self.registrations.ours.remove(&origin);
            let key = Bytes::copy_from_slice(origin.as_str().as_bytes());
            self.out.push_back(Output::Store(vec![Change::Delete { table: StateTable::Registrations, key }]));
        }
        Ok(())
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
