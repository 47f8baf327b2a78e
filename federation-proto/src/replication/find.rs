//! Where is this message? A question that is flooded to every node, each of which answers from its own log and status, back along
//! the way that the question came.
//!
//! Bounded like all that is flooded ([`super::questions`]): hops, how many a node may ask at once and each second, and here how many
//! are open at a time and for how long. A site answers for itself; a relay only where its cache holds the message, which tells how far
//! it came on its way. An older node passes the question on and answers nothing: then it is missing, and said to be.

use std::{collections::BTreeMap, time::Duration};

use super::{
    LinkId, Replication,
    carried::{FloodKey, Head, Kind, To},
};
use crate::{
    copies::{HoleKind, LogInfo},
    ids::{Incarnation, LogName, NodeName, Place, Site},
    session::NodeKind,
    wire::link::{self, FoundState},
};

/// Questions of this node's that are open at once.
const OPEN_MAX: usize = 64;
/// After this a question is forgotten, answered or not.
const OPEN_FOR: Duration = Duration::from_secs(60);
/// Answers kept of one question.
const ANSWERS_MAX: usize = 4096;
/// Longest text taken of an answer, characters.
const TEXT_CHARS_MAX: usize = 400;
/// Nodes of a way that an answer names.
const WAY_MAX: usize = 64;

/// What one node says of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who says it.
    pub node: NodeName,
    /// How it stands there.
    pub state: FoundState,
    /// Messages that its copy lacks up to this one, this one included, where it is lagging.
    pub lag_messages: u64,
    /// Why, in words.
    pub text: String,
    /// The nodes on its way to the origin, that one's edge broker last.
    pub way: Vec<NodeName>,
}

/// How far a question came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The answers, by name.
    pub answers: Vec<Found>,
    /// Sites that have not answered, and what is known of why.
    pub missing: Vec<(Site, String)>,
    /// Whether waiting on may bring more: a site that can be reached has not answered.
    pub open: bool,
}

/// An open question.
#[derive(Debug)]
struct Asked {
    at: Duration,
    answers: BTreeMap<NodeName, Found>,
}

/// All that concerns these questions.
#[derive(Debug, Default)]
pub(super) struct Finds {
    open: BTreeMap<u64, Asked>,
}

/// What the asker is told by a node's own log.
struct Looked {
    state: FoundState,
    lag_messages: u64,
    text: String,
}

impl Looked {
    fn new(state: FoundState, text: impl Into<String>) -> Self {
        Self { state, lag_messages: 0, text: text.into() }
    }
}

impl Replication {
    /// Asks every node for a message; the number names the question to [`Replication::found`].
    ///
    /// # Errors
    /// A sentence: too many questions are open.
    pub fn find(&mut self, now: Duration, log: &LogName, place: Place) -> Result<u64, String> {
        self.now = self.now.max(now);
        self.finds.open.retain(|_, asked| now.saturating_sub(asked.at) < OPEN_FOR);
        if self.finds.open.len() >= OPEN_MAX {
            return Err(format!("{OPEN_MAX} such questions are open already; try again in a moment"));
        }
        let number = self.questions.next_flooded(now).ok_or_else(|| {
            "this node has asked the federation too much just now; try again in a few seconds".to_owned()
        })?;
        let mut answers = BTreeMap::new();
        if let Some(own) = self.look_here(now, log, place) {
            answers.insert(own.node.clone(), own);
        }
        self.finds.open.insert(number, Asked { at: now, answers });
        let find = Kind::Find(link::Find { log: Some(log.into()), place: Some(place.into()) });
        let carried = self.authored(&To::All(number), find);
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.send(link, link::control::Kind::Carried(carried.clone()));
        }
        Ok(number)
    }

    /// What is known by now; `None`: there is no such question (any more).
    pub fn found(&self, number: u64, log: &LogName) -> Option<Finding> {
        let asked = self.finds.open.get(&number)?;
        let mut answers: Vec<Found> = asked.answers.values().cloned().collect();
        place_on_the_way(&mut answers);
        let mut sites = self.routing.known_sites();
        sites.insert(log.origin.clone());
        let has_answered =
            |site: &Site| asked.answers.values().any(|found| found.node.site == *site && !is_relays(self, &found.node));
        let mut missing = Vec::new();
        let mut open = false;
        for site in sites.into_iter().filter(|site| !has_answered(site)) {
            let reachable = self.routing.upstream(&site).is_some();
            open |= reachable;
            let why = match (reachable, self.routing.edge_of(&site)) {
                (true, _) => "it has not answered; it may run a version that does not know this question".to_owned(),
                (false, None) => "no edge broker of this site is known here".to_owned(),
                (false, Some(_)) => {
                    format!("it cannot be asked: there is no way to it{}", self.routing.lost_way(&site).1)
                }
            };
            missing.push((site, why));
        }
        Some(Finding { answers, missing, open })
    }

    /// The question is of no more interest.
    pub fn find_over(&mut self, number: u64) {
        self.finds.open.remove(&number);
    }

    /// Somebody asks.
    pub(super) fn answer_find(&mut self, from: LinkId, asked: FloodKey, log: &LogName, place: Place) {
        let Some(found) = self.look_here(self.now, log, place) else { return };
        let answer = Kind::Found(link::Found {
            state: found.state.into(),
            lag_messages: found.lag_messages,
            text: found.text,
            way: found.way.iter().map(Into::into).collect(),
        });
        let carried = self.authored(&To::Back(asked), answer);
        self.send(from, link::control::Kind::Carried(carried));
    }

    /// An answer to a question of ours.
    pub(super) fn hear_found(&mut self, head: &Head, number: u64, mut found: Found) {
        let Some(asked) = self.finds.open.get_mut(&number) else { return };
        if asked.answers.len() >= ANSWERS_MAX && !asked.answers.contains_key(&head.author) {
            return;
        }
        found.node = head.author.clone();
        found.text = crate::wire::plain(&found.text).chars().take(TEXT_CHARS_MAX).collect();
        found.way.truncate(WAY_MAX);
        asked.answers.insert(head.author.clone(), found);
    }

    /// What this node says of a message; `None`: nothing, for it is a relay without it.
    fn look_here(&self, now: Duration, log: &LogName, place: Place) -> Option<Found> {
        let edge = self.config.kind == NodeKind::Edge;
        let looked =
            self.look_at_tombstone(log, place).unwrap_or_else(|| match self.config.is_origin_of(&log.origin) {
                true => self.look_at_origin(log, place),
                false => self.look_at_copy(now, log, place),
            });
        let relays = looked.state == FoundState::Here;
        let way = if edge { self.way_to(&log.origin) } else { Vec::new() };
        let Looked { state, lag_messages, text } = looked;
        (edge || relays).then(|| Found { node: self.config.node.clone(), state, lag_messages, text, way })
    }

    /// What was deleted with its topic, as far as this node has heard of that.
    fn look_at_tombstone(&self, log: &LogName, place: Place) -> Option<Looked> {
        let floor = self.tombstones.floor(log).filter(|floor| place.offset < *floor)?;
        let text = format!("its topic was deleted at {}, with all of this log below {floor}", log.origin);
        Some(Looked::new(FoundState::Deleted, text))
    }

    fn look_at_origin(&self, log: &LogName, place: Place) -> Looked {
        let Some(info) = self.logs.get(log).and_then(|s| s.durable.as_ref()) else {
            return Looked::new(FoundState::NeverPublished, "this origin has no such topic or queue");
        };
        if let Some(looked) = look_in(info, place) {
            return looked;
        }
        let submitted = self.logs.get(log).and_then(|s| s.submitted.as_ref());
        if submitted.is_some_and(|info| end_of(info, place.incarnation).is_some_and(|end| place.offset < end)) {
            return Looked::new(FoundState::OnTheWay, "it is being made durable at its origin");
        }
        Looked::new(
            FoundState::NeverPublished,
            match end_of(info, place.incarnation) {
                Some(end) => format!("this incarnation ends at {end} at its origin"),
                None => "this origin has no such incarnation".to_owned(),
            },
        )
    }

    fn look_at_copy(&self, now: Duration, log: &LogName, place: Place) -> Looked {
        let state = self.logs.get(log);
        let wanted = self.is_wanted(log);
        let Some(info) = state.and_then(|s| s.durable.as_ref()) else {
            return match wanted {
                true if state.is_some() => {
                    Looked::new(FoundState::Lagging, "this site's copy of the log is not begun yet")
                }
                true => Looked::new(FoundState::Unknown, "this site wants it, and has heard of no such log"),
                false => Looked::new(FoundState::Filtered, "no want of this site covers it"),
            };
        };
        if let Some(looked) = look_in(info, place) {
            return looked;
        }
        let submitted = state.and_then(|s| s.submitted.as_ref());
        if submitted.is_some_and(|info| end_of(info, place.incarnation).is_some_and(|end| place.offset < end)) {
            return Looked::new(FoundState::OnTheWay, "it came, and is being made durable here");
        }
        if end_of(info, place.incarnation).is_none() && place.incarnation < info.end.incarnation {
            return Looked::new(FoundState::Unknown, "this copy never heard of that incarnation");
        }
        if !wanted {
            return Looked::new(
                FoundState::Filtered,
                format!("this copy ends at {}, and no want covers it any more", info.end),
            );
        }
        let status = self.status_of(now, log);
        let why =
            status.map(|s| if s.reason.is_empty() { s.state.to_owned() } else { format!("{}: {}", s.state, s.reason) });
        let lag_messages = place.offset.saturating_sub(info.end.offset).saturating_add(1);
        let text = format!("this copy ends at {}; it is {}", info.end, why.unwrap_or_default());
        Looked { state: FoundState::Lagging, lag_messages, text }
    }
}

fn is_relays(machine: &Replication, node: &NodeName) -> bool {
    match *node == machine.config.node {
        true => machine.config.kind != NodeKind::Edge,
        false => !machine.routing.is_origin(node, &node.site),
    }
}

fn end_of(info: &LogInfo, incarnation: Incarnation) -> Option<u64> {
    info.incarnations.iter().find(|i| i.incarnation == incarnation).map(|i| i.end)
}

/// What a copy or an own log says by itself of a place; `None`: it lies above what is there.
fn look_in(info: &LogInfo, place: Place) -> Option<Looked> {
    if let Some(hole) = info.holes.iter().find(|hole| hole.contains(place)) {
        return Some(match hole.kind {
            HoleKind::Pending => Looked::new(FoundState::Lagging, "it is missing here, and is being looked for"),
            HoleKind::NotWanted => Looked::new(FoundState::Filtered, "this site did not want it"),
            HoleKind::Lost => Looked::new(FoundState::Lost, "it was stated as lost: no site that was reached held it"),
        });
    }
    let expired =
        |why: &str| Some(Looked::new(FoundState::Expired, format!("{why}; what is here begins at {}", info.begin)));
    match info.incarnations.iter().find(|i| i.incarnation == place.incarnation) {
        Some(own) if place.offset < own.begin => expired("it was trimmed, or lies before where this site's want began"),
        Some(own) if place.offset < own.end => Some(Looked::new(FoundState::Here, "")),
        Some(_) => None,
        None if info.forgotten.contains(place.incarnation) => expired("it was trimmed"),
        None if place.incarnation < info.begin.incarnation && place.offset < info.begin.offset => {
            expired("it was trimmed, or lies before where this site's want began")
        }
        None => None,
    }
}

/// Where a node on a site's way holds what the site lacks, the message is on its way: it says how far it came.
fn place_on_the_way(answers: &mut [Found]) {
    let holders: Vec<NodeName> =
        answers.iter().filter(|found| found.state == FoundState::Here).map(|found| found.node.clone()).collect();
    for found in answers.iter_mut().filter(|found| found.state == FoundState::Lagging) {
        let Some((last, between)) = found.way.split_last() else { continue };
        if let Some(at) = between.iter().find(|node| holders.contains(node)) {
            found.state = FoundState::OnTheWay;
            found.text = format!("it came as far as {at}; {}", found.text);
        } else if holders.contains(last) && found.lag_messages > 0 {
            found.text = format!("it is still at {last}; {}", found.text);
        }
    }
}
