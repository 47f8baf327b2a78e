//! What is durable where: this site's statements to the origins, and what other sites state to hold of our own logs.
//!
//! Only edge brokers state; relays pass statements on as they are. A statement is numbered by the site's start and a
//! sequence and repeated until the origin answers with its sequence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;

use super::{
    Change, Output, Replication, StateTable,
    carried::{self, Head, Kind},
    convert::{self, Checked},
    lines,
    refusals::Refused,
};
use crate::{
    copies::{Hole, Jump, LogInfo},
    envelope::Chain,
    ids::{Incarnation, LogName, Place, Queue, Site, Start},
    session::NodeKind,
    wire::{self, link},
};

/// Changes of an own copy are gathered for at most this long before they are stated.
const GATHER: Duration = Duration::from_millis(2);
/// Statements heard are answered together after at most this long.
const ANSWER_AFTER: Duration = Duration::from_millis(100);
/// Repeats of one statement whose answers are recognized.
const REPEATS_MAX: usize = 8;
/// Sequences that wait to be answered to one site; more are answered at once.
const ANSWERS_MAX: usize = 1024;
/// Boundaries of an own log whose chain value is remembered, to compare statements with.
const BOUNDARIES_MAX: usize = 64;
/// What stands beyond our own log is asked for again after so many mark intervals.
const ASK_TICKS: u32 = 30;
/// Holes, tips and jumps remembered of one site, beyond one for each log that may be known.
const SITE_PARTS_MAX: usize = 256 * 1024;
/// Holes, tips and jumps remembered of all sites together: 24 to 56 bytes each.
const ALL_PARTS_MAX: usize = 8 * 1024 * 1024;

/// This site's statements to one origin.
#[derive(Debug, Default)]
struct Stating {
    dirty: BTreeSet<LogName>,
    /// Not answered yet, with the sequences of the statements that named it since it last changed, newest last.
    unseen: BTreeMap<LogName, Vec<u64>>,
}

/// What a site stated last of one of our logs.
#[derive(Debug, Clone)]
pub(super) struct Stated {
    start: Start,
    sequence: u64,
    pub(super) from: Place,
    pub(super) tips: Vec<Place>,
    pub(super) holes: Vec<Hole>,
    pub(super) jumps: Vec<Jump>,
    /// Its chain value was found equal to ours at the place it named.
    compared: bool,
    /// The newest place at which it was: below it the site holds what we hold.
    pub(super) proven: Option<Place>,
    /// It stated another chain value than ours at this place: since then it is believed nothing.
    pub(super) differs: Option<Place>,
    /// Of a control queue: whether the topic is taken there.
    refused: Refused,
    /// To be stored with the next tick.
    dirty: bool,
}

impl Stated {
    fn parts(&self) -> usize {
        let places = self.tips.len().saturating_add(self.holes.len()).saturating_add(self.jumps.len());
        places.saturating_add(self.refused.parts())
    }

    /// Up to where it counts: what does not fit our log is not held there.
    pub(super) fn fitting_tips(&self) -> Vec<Place> {
        match self.differs {
            None => self.tips.clone(),
            Some(_) => self.proven.into_iter().collect(),
        }
    }

    /// Whether it says that the site holds a message of our log, of which `info` tells.
    fn covers(&self, info: &LogInfo, place: Place) -> bool {
        let below_begin = place.incarnation <= self.from.incarnation && place.offset < self.from.offset;
        let in_hole = self.holes.iter().any(|h| h.contains(place));
        self.differs.is_none() && !below_begin && !in_hole && lines::covers(info, &self.tips, &self.jumps, place)
    }
}

/// What a site states to hold of a log of this node's own; see [`Output::RemoteHeld`].
#[derive(Debug, Clone)]
pub struct RemoteHeld {
    /// The site.
    pub site: Site,
    /// The log.
    pub log: LogName,
    /// Where its copy begins: below it the site does not count.
    pub from: Place,
    /// All below on the main line is held, holes aside.
    pub below: Place,
    /// What it lacks below.
    pub holes: Vec<Hole>,
    /// Ends of forks that it holds.
    pub fork_tips: Vec<Place>,
    /// Incarnations into which its copy jumped, in their order.
    pub jumps: Vec<Jump>,
}

impl RemoteHeld {
    /// That a site holds nothing of ours: neither anything below a place, nor did its copy begin above it.
    fn nothing(site: &Site, log: &LogName) -> Self {
        let nowhere = Place { incarnation: Incarnation { counter: 0, random: 0 }, offset: 0 };
        Self {
            site: site.clone(),
            log: log.clone(),
            from: nowhere,
            below: nowhere,
            holes: Vec::new(),
            fork_tips: Vec::new(),
            jumps: Vec::new(),
        }
    }
}

/// A statement beyond what we hold ourselves; told to people when it still stands at the next tick.
#[derive(Debug)]
struct Ahead {
    site: Site,
    tips: Vec<Place>,
    ticks: u32,
    reported: bool,
}

/// What is to be answered to a site.
#[derive(Debug)]
struct Answers {
    start: Start,
    sequences: Vec<u64>,
    /// What was compared of what it stated, and whether it differs.
    compared: BTreeMap<LogName, (Place, bool)>,
}

/// What was found when the chain value that a site stated was compared with ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It names none, or a place at which ours is not remembered.
    Unknown,
    Equal,
    Differs,
}

/// All that concerns statements.
#[derive(Debug, Default)]
pub(super) struct Held {
    stating: BTreeMap<Site, Stating>,
    sequence: u64,
    last_flush: Duration,
    pub(super) flush_at: Option<Duration>,
    pub(super) answer_at: Option<Duration>,
    sites: BTreeMap<LogName, BTreeMap<Site, Stated>>,
    changed: BTreeSet<(LogName, Site)>,
    answers: BTreeMap<Site, Answers>,
    /// Holes, tips and jumps remembered of each site.
    parts: BTreeMap<Site, usize>,
    boundaries: BTreeMap<LogName, BTreeMap<Place, Chain>>,
    ahead: BTreeMap<(LogName, Site), Ahead>,
    /// When each site's edge broker was heard last, in the machine's time.
    pub(super) heard: BTreeMap<Site, Duration>,
}

fn held_key(site: &Site, log: &LogName) -> Bytes {
    format!("{site}\0{}\0{}\0{}", log.topic, log.origin, log.queue).into_bytes().into()
}

impl Held {
    pub(super) fn of_site<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = (LogName, Place, bool)> + 'a {
        self.sites.iter().filter_map(move |(log, sites)| {
            let stated = sites.get(site)?;
            Some((log.clone(), stated.tips.first().copied()?, stated.compared))
        })
    }

    /// Up to where a site's copies of our logs are proven equal, and whether they were found to differ.
    pub(super) fn proven_of<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = (LogName, Option<Place>, bool)> + 'a {
        self.sites.iter().filter_map(move |(log, sites)| {
            let stated = sites.get(site)?;
            Some((log.clone(), stated.proven, stated.differs.is_some()))
        })
    }

    pub(super) fn restore(&mut self, value: &[u8]) -> Checked<()> {
        let by = link::StoredHeld::decode(value).map_err(|_| wire::WireError::Undecodable)?;
        let site = convert::site_from(&by.site)?;
        let start = convert::start_from(by.start)?;
        let mut log = by.log.ok_or(wire::WireError::Missing("held.log"))?;
        let refused = Refused::from_wire(&mut log);
        let log: wire::HeldLog = log.try_into()?;
        let mut tips = vec![log.below];
        tips.extend(log.fork_tips);
        let stated = Stated {
            start,
            sequence: by.sequence,
            from: log.from.unwrap_or(log.below),
            tips,
            holes: log.holes,
            jumps: log.jumps,
            compared: false,
            proven: by.proven.map(|place| convert::place_from(Some(&place))).transpose()?,
            differs: by.differs.map(|place| convert::place_from(Some(&place))).transpose()?,
            refused,
            dirty: false,
        };
        self.put(&log.log, &site, stated);
        Ok(())
    }

    fn put(&mut self, log: &LogName, site: &Site, stated: Stated) {
        let more = stated.parts();
        let sites = match self.sites.get_mut(log) {
            Some(sites) => sites,
            None => self.sites.entry(log.clone()).or_default(),
        };
        let less = sites.insert(site.clone(), stated).map_or(0, |before| before.parts());
        let sum = self.parts.entry(site.clone()).or_default();
        *sum = sum.saturating_add(more).saturating_sub(less);
    }

    /// What a site stated of a log was not stored after all.
    pub(super) fn keep_again(&mut self, log: LogName, site: Site) {
        if let Some(stated) = self.sites.get_mut(&log).and_then(|sites| sites.get_mut(&site)) {
            stated.dirty = true;
            self.changed.insert((log, site));
        }
    }

    /// Whether so much more may be remembered of a site.
    fn has_room(&self, site: &Site, more: usize, logs_max: usize) -> bool {
        let of_site = self.parts.get(site).copied().unwrap_or(0).saturating_add(more);
        let of_all = self.parts.values().fold(more, |sum, parts| sum.saturating_add(*parts));
        of_site <= logs_max.saturating_add(SITE_PARTS_MAX) && of_all <= ALL_PARTS_MAX
    }

    /// A durable end of one of our own logs, to compare statements with.
    pub(super) fn boundary(&mut self, log: &LogName, place: Place, chain: Option<Chain>) {
        let Some(chain) = chain else { return };
        if !self.boundaries.contains_key(log) {
            self.boundaries.insert(log.clone(), BTreeMap::new());
        }
        if let Some(known) = self.boundaries.get_mut(log) {
            known.insert(place, chain);
            if known.len() > BOUNDARIES_MAX {
                known.pop_first();
            }
        }
    }

    /// What is to be answered to this start of a site's process.
    fn answers_to(&mut self, site: &Site, start: Start) -> &mut Answers {
        let anew = || Answers { start, sequences: Vec::new(), compared: BTreeMap::new() };
        let answers = self.answers.entry(site.clone()).or_insert_with(anew);
        if answers.start != start {
            *answers = anew();
        }
        answers
    }

    pub(super) fn stated(&self, site: &Site, log: &LogName) -> Option<&Stated> {
        self.sites.get(log)?.get(site)
    }

    /// Whether a site stated anything.
    pub(super) fn knows(&self, site: &Site) -> bool {
        self.parts.contains_key(site)
    }

    /// Forgets what a site stated; answers the keys under which it is stored.
    pub(super) fn forget_site(&mut self, site: &Site) -> Vec<Bytes> {
        let logs: Vec<LogName> =
            self.sites.iter().filter(|(_, sites)| sites.contains_key(site)).map(|(log, _)| log.clone()).collect();
        for log in &logs {
            if let Some(sites) = self.sites.get_mut(log) {
                sites.remove(site);
            }
            self.changed.remove(&(log.clone(), site.clone()));
            self.ahead.remove(&(log.clone(), site.clone()));
        }
        self.parts.remove(site);
        self.answers.remove(site);
        self.heard.remove(site);
        self.stating.remove(site);
        logs.iter().map(|log| held_key(site, log)).collect()
    }

    /// What sites state not to take.
    pub(super) fn refusals(&self) -> impl Iterator<Item = (Site, LogName, Refused)> + '_ {
        let of_log = |(log, sites): (&'_ LogName, &'_ BTreeMap<Site, Stated>)| {
            let refused = sites.iter().filter(|(_, stated)| !stated.refused.why.is_empty());
            let refused = refused.map(|(site, stated)| (site.clone(), log.clone(), stated.refused.clone()));
            refused.collect::<Vec<_>>()
        };
        self.sites.iter().filter(|(log, _)| log.queue == Queue::CONTROL).flat_map(of_log)
    }

    /// Who states not to take a topic, by its control queue.
    pub(super) fn refusing(&self, control: &LogName) -> impl Iterator<Item = (&Site, &Refused)> {
        let sites = self.sites.get(control).into_iter().flatten();
        sites.map(|(site, stated)| (site, &stated.refused)).filter(|(_, refused)| !refused.why.is_empty())
    }

    /// What a site states to hold of each of our logs that it was heard of: where its copy begins, and its tips.
    pub(super) fn statements_of<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = (&'a LogName, &'a Stated)> + 'a {
        self.sites.iter().filter_map(move |(log, sites)| Some((log, sites.get(site)?)))
    }

    /// Whether a site states to hold of a log what this origin does not.
    pub(super) fn is_noted_ahead(&self, log: &LogName, site: &Site) -> bool {
        self.ahead.contains_key(&(log.clone(), site.clone()))
    }

    /// Where the copies of other sites begin that hold something of a log.
    pub(super) fn others_begin<'a>(&'a self, log: &LogName, site: &'a Site) -> impl Iterator<Item = Place> + 'a {
        let sites = self.sites.get(log).into_iter().flatten();
        sites.filter(move |(name, s)| *name != site && s.tips.first() != Some(&s.from)).map(|(_, s)| s.from)
    }
}

/// Whether a holder with these tips holds all below a place.
fn reaches(info: &LogInfo, tips: &[Place], jumps: &[Jump], place: Place) -> bool {
    let last = place.offset.checked_sub(1).map(|offset| Place { offset, ..place });
    last.is_none_or(|last| tips.contains(&place) || lines::covers(info, tips, jumps, last))
}

/// Up to where a copy is proven equal after a statement of this place, and where it was found to differ.
fn proven_by(
    found: Found,
    below: Place,
    before: Option<&Stated>,
    still: impl Fn(Place) -> bool,
) -> (Option<Place>, Option<Place>) {
    // What it had before it went back is not what it has.
    let proven = before.and_then(|b| b.proven).filter(|place| still(*place));
    match found {
        Found::Equal => (Some(below), None),
        Found::Differs => (proven, Some(below)),
        Found::Unknown => (proven, before.and_then(|b| b.differs)),
    }
}

impl Replication {
    /// What is durable of a copy here changed: its origin is told.
    pub(super) fn state_held(&mut self, log: &LogName) {
        if self.config.kind != NodeKind::Edge || self.config.is_origin_of(&log.origin) {
            return;
        }
        let stating = match self.held.stating.get_mut(&log.origin) {
            Some(stating) => stating,
            None => self.held.stating.entry(log.origin.clone()).or_default(),
        };
        stating.unseen.remove(log);
        stating.dirty.insert(log.clone());
        if self.held.flush_at.is_none() {
            self.held.flush_at = Some(self.now.max(self.held.last_flush.saturating_add(GATHER)));
        }
    }

    /// Sends what was gathered.
    pub(super) fn flush_held(&mut self) {
        if self.held.flush_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.held.flush_at = None;
        self.held.last_flush = self.now;
        let origins: Vec<Site> =
            self.held.stating.iter().filter(|(_, s)| !s.dirty.is_empty()).map(|(o, _)| o.clone()).collect();
        for origin in origins {
            self.flush_held_to(&origin);
        }
    }

    fn flush_held_to(&mut self, origin: &Site) {
        if self.routing.upstream(origin).is_none() {
            // It is said when there is a way again.
            return;
        }
        let Some(stating) = self.held.stating.get_mut(origin) else { return };
        let dirty = std::mem::take(&mut stating.dirty);
        let (mut names, mut stated) = (Vec::new(), Vec::new());
        for log in dirty {
            if let Some(statement) = self.statement(&log) {
                names.push(log);
                stated.push(statement);
            }
        }
        let mut names = names.into_iter();
        for logs in carried::parts(stated) {
            if logs.is_empty() {
                continue;
            }
            self.held.sequence += 1;
            let sequence = self.held.sequence;
            let Some(stating) = self.held.stating.get_mut(origin) else { return };
            for log in names.by_ref().take(logs.len()) {
                let sequences = stating.unseen.entry(log).or_default();
                sequences.push(sequence);
                if sequences.len() > REPEATS_MAX {
                    sequences.remove(0);
                }
            }
            self.tell_site(origin, Kind::Held(link::Held { sequence, logs }));
        }
    }

    fn statement(&self, log: &LogName) -> Option<link::HeldLog> {
        let info = self.logs.get(log)?.durable.as_ref()?;
        let newest = info.incarnations.iter().find(|i| i.incarnation == info.end.incarnation);
        let held = wire::HeldLog {
            log: log.clone(),
            from: Some(info.begin),
            below: info.end,
            chain: newest.and_then(|i| i.chain_at_end),
            holes: info.holes.clone(),
            fork_tips: info.fork_tips.clone(),
            jumps: info.jumps(),
        };
        let refused = self.refusals.stated(log).filter(|_| log.queue == Queue::CONTROL).unwrap_or_default();
        let untaken = log.queue == Queue::CONTROL && self.refusals.reason(log).is_some();
        Some(link::HeldLog { refused, untaken, ..held.into() })
    }

    /// States again what was not answered.
    pub(super) fn repeat_statements(&mut self) {
        for stating in self.held.stating.values_mut() {
            let unseen: Vec<LogName> = stating.unseen.keys().cloned().collect();
            stating.dirty.extend(unseen);
        }
        if self.held.stating.values().any(|s| !s.dirty.is_empty()) {
            self.held.flush_at = Some(self.now);
            self.flush_held();
        }
    }

    /// The way to an origin changed: what was not answered may be lost.
    pub(super) fn statements_moved(&mut self, origin: &Site) {
        let Some(stating) = self.held.stating.get_mut(origin) else { return };
        let unseen: Vec<LogName> = stating.unseen.keys().cloned().collect();
        stating.dirty.extend(unseen);
        if !stating.dirty.is_empty() && self.routing.upstream(origin).is_some() {
            self.held.flush_at = Some(self.now);
        }
    }

    /// The origin's process is a new one: it may have forgotten what it was told.
    pub(super) fn statements_anew(&mut self, origin: &Site) {
        for log in self.logs.names_of_origin(origin) {
            if self.logs.get(&log).is_some_and(|s| s.durable.is_some()) {
                self.state_held(&log);
            }
        }
    }

    /// A site states what it holds of our logs.
    pub(super) fn hear_statement(&mut self, head: &Head, sequence: u64, logs: Vec<(wire::HeldLog, Refused)>) {
        if !self.routing.is_edge(&head.author) {
            return self.count("statement_dropped_unknown_site");
        }
        let (site, start) = (&head.author.site, head.start);
        for (log, refused) in logs {
            if self.config.is_origin_of(&log.log.origin) && !self.hear_held(site, start, sequence, log, refused) {
                // Not answered: it is said again, and heard once there is room.
                return;
            }
        }
        let answers = self.held.answers_to(site, start);
        answers.sequences.push(sequence);
        if answers.sequences.len() >= ANSWERS_MAX {
            self.answer_statements();
        } else if self.held.answer_at.is_none() {
            self.held.answer_at = Some(self.now.saturating_add(ANSWER_AFTER));
        }
    }

    /// `false`: there is no room to remember it.
    fn hear_held(&mut self, site: &Site, start: Start, sequence: u64, held: wire::HeldLog, refused: Refused) -> bool {
        let log = held.log.clone();
        let before = self.held.sites.get(&log).and_then(|s| s.get(site)).cloned();
        let former = |b: &Stated| match b.start == start {
            true => b.sequence > sequence,
            false => self.routing.is_former(site, start, b.start),
        };
        if before.as_ref().is_some_and(former) {
            return true;
        }
        let mut tips = vec![held.below];
        tips.extend(&held.fork_tips);
        let more = tips.len().saturating_add(held.holes.len()).saturating_add(held.jumps.len());
        let more = more.saturating_sub(before.as_ref().map_or(0, Stated::parts));
        if !self.held.has_room(site, more, self.config.logs_max) {
            let text = format!(
                "what {site} states to hold of {log} is not remembered: it stated too many holes and forks already"
            );
            self.count("statement-refused");
            self.report_of("statement-refused", site, text);
            return false;
        }
        let lower = self.went_back(site, &held, before.as_ref());
        let found = self.compare_chain(site, &held);
        self.note_compared(site, start, &held, found);
        let compared = found == Found::Equal || before.as_ref().is_some_and(|b| b.compared && b.tips == tips);
        let info = self.logs.get(&log).and_then(|s| s.submitted.as_ref());
        let still = |place: Place| !lower && info.is_some_and(|info| reaches(info, &tips, &held.jumps, place));
        let (proven, differs) = proven_by(found, held.below, before.as_ref(), still);
        let unknown = info.is_none();
        // Only of topics that there are.
        let refused = if unknown || log.queue != Queue::CONTROL { Refused::default() } else { refused };
        if unknown && before.is_none() && self.held.sites.len() >= self.config.logs_max {
            self.count("statement_dropped_too_many_logs");
            return true;
        }
        let stated = Stated {
            start,
            sequence,
            from: held.from.unwrap_or(held.below),
            tips: tips.clone(),
            holes: held.holes.clone(),
            jumps: held.jumps.clone(),
            compared,
            proven,
            differs,
            refused,
            dirty: true,
        };
        let refused_before = before.map(|b| b.refused).unwrap_or_default();
        self.note_refusal(site, &log, &refused_before, &stated.refused);
        if differs.is_some() {
            // It holds something else: it is named in no receipt, and nothing is given up for it.
            self.out.push_back(Output::RemoteHeld(RemoteHeld::nothing(site, &log)));
            self.held.put(&log, site, stated);
            self.held.changed.insert((log, site.clone()));
            return true;
        }
        self.out.push_back(Output::RemoteHeld(RemoteHeld {
            site: site.clone(),
            log: log.clone(),
            from: stated.from,
            below: held.below,
            holes: stated.holes.clone(),
            jumps: stated.jumps.clone(),
            fork_tips: tips.iter().skip(1).copied().collect(),
        }));
        self.held.put(&log, site, stated);
        self.held.changed.insert((log.clone(), site.clone()));
        // An empty copy is begun at a place that was announced once: nothing of it can be fetched.
        let empty = tips.len() == 1 && held.from == Some(held.below);
        self.note_ahead(log, site, tips, empty);
        true
    }

    /// What was found when a statement was compared is answered with it.
    fn note_compared(&mut self, site: &Site, start: Start, held: &wire::HeldLog, found: Found) {
        if found == Found::Unknown {
            return;
        }
        let compared = &mut self.held.answers_to(site, start).compared;
        if compared.contains_key(&held.log) || compared.len() < ANSWERS_MAX {
            compared.insert(held.log.clone(), (held.below, found == Found::Differs));
        }
    }

    /// Takes note of whether somebody's tips lie beyond what we hold.
    fn note_ahead(&mut self, log: LogName, site: &Site, tips: Vec<Place>, empty: bool) {
        if !empty && self.is_ahead(&log, &tips) {
            let ahead = Ahead { site: site.clone(), tips, ticks: 0, reported: false };
            let known = self.held.ahead.entry((log, site.clone())).or_insert(ahead);
            known.tips.sort_unstable();
        } else {
            self.held.ahead.remove(&(log, site.clone()));
        }
    }

    /// Whether a site states a lower place than before; people are told.
    fn went_back(&mut self, site: &Site, held: &wire::HeldLog, before: Option<&Stated>) -> bool {
        let Some(was) = before.and_then(|b| b.tips.first().copied()) else { return false };
        // Also where the origin began anew since: a copy's main line goes on from incarnation to incarnation.
        let lower = held.below < was;
        if lower {
            let (log, below) = (&held.log, held.below);
            let text = format!(
                "site {site} held {log} up to {was} and now states {below}; it was restored or lost data, and is believed"
            );
            self.report_of("site-went-back", format!("{site} {log}"), text);
        }
        lower
    }

    /// Compares the stated chain value with ours; a different one is told to people.
    fn compare_chain(&mut self, site: &Site, held: &wire::HeldLog) -> Found {
        let Some(theirs) = held.chain else { return Found::Unknown };
        let ours = self.held.boundaries.get(&held.log).and_then(|b| b.get(&held.below)).copied();
        match ours {
            None => Found::Unknown,
            Some(ours) if ours == theirs => {
                self.out.push_back(Output::ReportOver("broken-chain", format!("{site} {}", held.log)));
                Found::Equal
            }
            Some(_) => {
                self.report_differs(site, &held.log, held.below);
                Found::Differs
            }
        }
    }

    fn report_differs(&mut self, site: &Site, log: &LogName, below: Place) {
        let text = format!(
            "site {site} holds other bytes than this origin below {below} of {log}; compare both with `seaway log verify`"
        );
        self.report_of("broken-chain", format!("{site} {log}"), text);
    }

    /// What was found before the process began, and is not over.
    pub(super) fn report_restored_differences(&mut self) {
        let differ = |(log, sites): (&LogName, &BTreeMap<Site, Stated>)| {
            let of = |(site, stated): (&Site, &Stated)| Some((site.clone(), log.clone(), stated.differs?));
            sites.iter().filter_map(of).collect::<Vec<_>>()
        };
        let all: Vec<(Site, LogName, Place)> = self.held.sites.iter().flat_map(differ).collect();
        for (site, log, below) in all {
            self.report_differs(&site, &log, below);
        }
    }

    /// Whether somebody's tips lie beyond what we hold of our own log.
    fn is_ahead(&self, log: &LogName, tips: &[Place]) -> bool {
        if self.was_deleted_below(log, tips) {
            return false;
        }
        let Some(info) = self.logs.get(log).and_then(|s| s.submitted.as_ref()) else { return true };
        let edges = lines::edges_of(info);
        tips.iter().any(|tip| match info.incarnations.iter().find(|i| i.incarnation == tip.incarnation) {
            Some(own) => own.end < tip.offset,
            None => !info.forgotten.contains(tip.incarnation) && !lines::is_forgotten(&edges, *tip),
        })
    }

    /// Once each mark interval: those still ahead are believed to be, told to people, and asked for.
    pub(super) fn check_ahead(&mut self) {
        let keys: Vec<(LogName, Site)> = self.held.ahead.keys().cloned().collect();
        let mut ask = false;
        for key in keys {
            let Some(tips) = self.held.ahead.get(&key).map(|a| a.tips.clone()) else { continue };
            if !self.is_ahead(&key.0, &tips) {
                self.held.ahead.remove(&key);
                continue;
            }
            let Some(ahead) = self.held.ahead.get_mut(&key) else { continue };
            ahead.ticks = ahead.ticks.saturating_add(1);
            // The first tick may come before our own log's news.
            if ahead.ticks % ASK_TICKS != 2 {
                continue;
            }
            ask = true;
            if std::mem::replace(&mut ahead.reported, true) {
                continue;
            }
            let site = ahead.site.clone();
            let text = format!(
                "site {site} holds {} up to {tips:?}, beyond what this origin holds: its data was restored or lost; what it holds is fetched from there",
                key.0
            );
            self.report_of("origin-went-back", &key.0, text);
        }
        if ask {
            self.ask_about_own();
        }
    }

    /// Answers the statements heard: what they say of registered sites is stored before, so that the answer promises it.
    pub(super) fn answer_statements(&mut self) {
        self.held.answer_at = None;
        self.store_statements();
        for (site, Answers { start, mut sequences, compared }) in std::mem::take(&mut self.held.answers) {
            let compared = compared.into_iter().map(|(log, (at, differs))| link::Compared {
                log: Some((&log).into()),
                at: Some(at.into()),
                differs,
            });
            for compared in carried::parts(compared.collect()) {
                let sequences = std::mem::take(&mut sequences);
                let seen = link::HeldSeen { start: Some(start.into()), sequences, compared };
                self.promise_site(&site, Kind::HeldSeen(seen));
            }
        }
    }

    /// Keeps what changed of registered sites.
    pub(super) fn store_statements(&mut self) {
        let mut changes = Vec::new();
        for (log, site) in std::mem::take(&mut self.held.changed) {
            if !self.registrations.is_registered(&site) {
                continue;
            }
            let Some(stated) = self.held.sites.get_mut(&log).and_then(|s| s.get_mut(&site)) else { continue };
            if !std::mem::take(&mut stated.dirty) {
                continue;
            }
            let Some(below) = stated.tips.first().copied() else { continue };
            let held = wire::HeldLog {
                log: log.clone(),
                from: Some(stated.from),
                below,
                chain: None,
                holes: stated.holes.clone(),
                fork_tips: stated.tips.iter().skip(1).copied().collect(),
                jumps: stated.jumps.clone(),
            };
            let by = link::StoredHeld {
                site: site.to_string(),
                start: Some(stated.start.into()),
                sequence: stated.sequence,
                log: Some(link::HeldLog {
                    refused: stated.refused.why.clone(),
                    untaken: stated.refused.untaken,
                    ..held.into()
                }),
                differs: stated.differs.map(Into::into),
                proven: stated.proven.filter(|_| stated.differs.is_some()).map(Into::into),
            };
            let value = carried::encoded(&by);
            changes.push(Change::Put { table: StateTable::Held, key: held_key(&site, &log), value });
        }
        if !changes.is_empty() {
            self.out.push_back(Output::Store(changes));
        }
    }

    /// An origin answers what this site stated.
    pub(super) fn hear_seen(
        &mut self,
        head: &Head,
        start: Start,
        sequences: Vec<u64>,
        compared: Vec<(LogName, Place, bool)>,
    ) {
        if start != self.config.start || !self.routing.is_edge(&head.author) {
            return;
        }
        if let Some(stating) = self.held.stating.get_mut(&head.author.site) {
            let sequences: BTreeSet<u64> = sequences.into_iter().collect();
            stating.unseen.retain(|_, stated| !stated.iter().any(|s| sequences.contains(s)));
        }
        for (log, at, differs) in compared.into_iter().filter(|(log, ..)| log.origin == head.author.site) {
            let Some(state) = self.logs.get_mut(&log) else { continue };
            if differs {
                state.differs = Some(at);
                let text = format!(
                    "{} says that what this site holds of {log} below {at} is not what it holds; compare both with `seaway log verify`",
                    head.author
                );
                self.report_of("broken-chain", &log, text);
            } else {
                state.differs = None;
                state.proven = Some(at);
            }
        }
    }

    /// Whether a site's statement covers a message of our own.
    pub(super) fn is_held_by(&self, site: &Site, log: &LogName, place: Place) -> bool {
        let Some(stated) = self.held.stated(site, log) else { return false };
        let Some(info) = self.logs.get(log).and_then(|s| s.submitted.as_ref()) else { return false };
        stated.covers(info, place)
    }
}

#[cfg(test)]
#[path = "tests/held.rs"]
pub(super) mod tests;
