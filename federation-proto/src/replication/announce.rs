//! Announcements: telling neighbours which logs their wants cover, and hearing it from the upstream.
//!
//! What moves all the time (the newest end) is told by marks; an announcement is sent when a log appears, when its
//! incarnations, forks or begin change, and when its end goes back.

use std::collections::{BTreeSet, VecDeque};

use prost::Message as _;

use super::{
    LinkId, Replication,
    carried::LIST_BYTES,
    convert::{self, Checked},
    lines::{self, Edge, View},
    logs::LogState,
};
use crate::{
    ids::{LogName, Pattern, Place, Site},
    wire::{WireError, link},
};

/// Parts of [`LIST_BYTES`] that may be on the way to one neighbour, unanswered.
const PARTS_UNANSWERED_MAX: u64 = 4;
/// Logs whose marks are told at a time.
const MARKS_AT_ONCE: usize = 1024;
/// Bytes that an origin may say of a log besides.
const FACTS_BYTES_MAX: usize = 4096;
/// Most incarnations and tips that one announcement may list.
const EDGES_MAX: usize = 8192;

/// What is still to be said to a neighbour, in order.
#[derive(Debug)]
pub(super) enum Say {
    Log(LogName),
    End {
        key: u64,
        origin: Site,
    },
    /// How far the logs go that a new want covers, from the so manieth on.
    Marks {
        origin: Site,
        pattern: Pattern,
        from: usize,
    },
    /// Of this origin there is nothing more to say that was missed.
    MarksTold(Site),
}

/// Announcements to one neighbour, as fast as it takes them.
#[derive(Debug, Default)]
pub(super) struct Announcing {
    queue: VecDeque<Say>,
    /// Logs in the queue.
    queued: BTreeSet<LogName>,
    /// Bytes since the last part's end.
    bytes: usize,
    sent: u64,
    answered: u64,
}

fn message(log: Option<&LogName>, view: &View) -> link::Announce {
    link::Announce {
        log: log.map(Into::into),
        begin: Some(view.begin.into()),
        tips: view.tips.iter().copied().map(Into::into).collect(),
        incarnations: view
            .edges
            .iter()
            .map(|e| link::IncarnationEdge {
                incarnation: Some(e.incarnation.into()),
                previous: e.previous.map(Into::into),
                begin: e.begin,
                end: e.end,
                jumped: e.jumped,
            })
            .collect(),
        facts: view.facts.clone(),
    }
}

/// Names what of an announcement must be told at once: all but the newest end.
fn digest(view: &View) -> u64 {
    let newest = view.tip().incarnation;
    let mut still = view.clone();
    for edge in still.edges.iter_mut().filter(|e| e.incarnation == newest) {
        edge.end = 0;
    }
    for tip in still.tips.iter_mut().filter(|p| p.incarnation == newest) {
        tip.offset = 0;
    }
    twox_hash::XxHash3_64::oneshot(&message(None, &still).encode_to_vec())
}

pub(super) fn announcement(log: &LogName, view: &View) -> link::Announce {
    message(Some(log), view)
}

pub(super) fn view_from(announce: &link::Announce) -> Checked<View> {
    if announce.incarnations.len() > EDGES_MAX || announce.tips.len() > EDGES_MAX {
        return Err(WireError::Range { what: "announce.incarnations", found: announce.incarnations.len() as u64 });
    }
    let mut edges = Vec::with_capacity(announce.incarnations.len());
    for e in &announce.incarnations {
        let previous = e.previous.as_ref().map(|p| convert::place_from(Some(p))).transpose()?;
        if e.begin > e.end {
            return Err(WireError::Range { what: "announce.incarnations.end", found: e.end });
        }
        edges.push(Edge {
            incarnation: convert::incarnation_from(e.incarnation)?,
            previous,
            jumped: e.jumped,
            begin: e.begin,
            end: e.end,
        });
    }
    // Ours are in order; nobody else's need be.
    edges.sort_by_key(|e| e.incarnation);
    edges.dedup_by_key(|e| e.incarnation);
    let tips = convert::places_from(&announce.tips)?;
    if tips.is_empty() {
        return Err(WireError::Missing("announce.tips"));
    }
    if announce.facts.len() > FACTS_BYTES_MAX {
        return Err(WireError::Range { what: "announce.facts", found: announce.facts.len() as u64 });
    }
    Ok(View { begin: convert::place_from(announce.begin.as_ref())?, tips, edges, facts: announce.facts.clone() })
}

impl Replication {
    /// The log as it can be had through this node.
    pub(super) fn offered(&self, log: &LogName) -> Option<View> {
        let state = self.logs.get(log)?;
        if self.config.is_origin_of(&log.origin) {
            let info = state.durable.as_ref().filter(|_| !self.tombstones.is_gone(log))?;
            return Some(View { facts: self.own_facts(log), ..View::of(info) });
        }
        self.offered_copy(log, state).filter(|view| !self.is_dead_view(log, view))
    }

    /// A log of another origin as it can be had through this node: what was announced here, and what the own copy holds more.
    fn offered_copy(&self, log: &LogName, state: &LogState) -> Option<View> {
        let own = state.submitted.as_ref().map(View::of);
        let Some(mut view) = state.remote.clone() else { return own.filter(|v| !self.is_dead_view(log, v)) };
        for edge in own.iter().flat_map(|o| &o.edges) {
            match view.edges.binary_search_by_key(&edge.incarnation, |e| e.incarnation) {
                Ok(at) => view.edges.iter_mut().skip(at).take(1).for_each(|known| known.end = known.end.max(edge.end)),
                Err(at) => {
                    let tip = Place { incarnation: edge.incarnation, offset: edge.end };
                    // What came before it was announced goes on where the main line ended.
                    let main =
                        view.edge(view.tip().incarnation).map(|e| Place { incarnation: e.incarnation, offset: e.end });
                    match view.tips.first_mut().filter(|_| main.is_some() && edge.previous == main) {
                        Some(main) => *main = tip,
                        None => view.tips.push(tip),
                    }
                    view.edges.insert(at, *edge);
                }
            }
        }
        for tip in &mut view.tips {
            let end = lines::edge_in(&view.edges, tip.incarnation).map(|e| e.end);
            tip.offset = tip.offset.max(end.unwrap_or(0));
        }
        Some(view)
    }

    /// Announces a log to one neighbour if its wants cover it and it was not told the same before: at once, or when the
    /// neighbour has taken what was announced before.
    pub(super) fn announce_to(&mut self, to: LinkId, log: &LogName) {
        let Some(link) = self.links.get_mut(&to) else { return };
        if link.announcing.queued.insert(log.clone()) {
            link.announcing.queue.push_back(Say::Log(log.clone()));
        }
        self.go_on_announcing(to);
    }

    /// Says something behind what is still to be announced.
    pub(super) fn say_behind(&mut self, to: LinkId, say: Say) {
        if let Some(link) = self.links.get_mut(&to) {
            link.announcing.queue.push_back(say);
        }
        self.go_on_announcing(to);
    }

    /// Whether it is still to be said how far an origin's logs go.
    pub(super) fn says_marks(&self, to: LinkId, of: &Site) -> bool {
        let queue = self.links.get(&to).map(|link| &link.announcing.queue);
        queue.into_iter().flatten().any(|say| matches!(say, Say::Marks { origin, .. } if origin == of))
    }

    /// Says, behind all marks of an origin, that these were all; once.
    pub(super) fn say_marks_told(&mut self, to: LinkId, of: &Site) {
        let queue = self.links.get(&to).map(|link| &link.announcing.queue);
        if !queue.into_iter().flatten().any(|say| matches!(say, Say::MarksTold(origin) if origin == of)) {
            self.say_behind(to, Say::MarksTold(of.clone()));
        }
    }

    pub(super) fn handle_paced(&mut self, from: LinkId, number: u64) {
        if let Some(link) = self.links.get_mut(&from) {
            let announcing = &mut link.announcing;
            announcing.answered = announcing.answered.max(number.min(announcing.sent));
        }
        self.go_on_announcing(from);
    }

    fn go_on_announcing(&mut self, to: LinkId) {
        loop {
            let Some(link) = self.links.get_mut(&to) else { return };
            let announcing = &mut link.announcing;
            if announcing.sent.saturating_sub(announcing.answered) >= PARTS_UNANSWERED_MAX {
                return;
            }
            if announcing.bytes >= LIST_BYTES {
                announcing.bytes = 0;
                announcing.sent = announcing.sent.saturating_add(1);
                let number = announcing.sent;
                self.send(to, link::control::Kind::Pace(link::Pace { number }));
                continue;
            }
            let Some(say) = announcing.queue.pop_front() else { return };
            let bytes = match say {
                Say::Log(log) => {
                    announcing.queued.remove(&log);
                    self.announce_now(to, &log)
                }
                Say::End { key, origin } => {
                    self.send_announce_end(to, key, &origin);
                    0
                }
                Say::Marks { origin, pattern, from } => self.say_marks(to, origin, pattern, from),
                Say::MarksTold(origin) => {
                    self.send_marks_told(to, origin);
                    0
                }
            };
            if let Some(link) = self.links.get_mut(&to) {
                link.announcing.bytes = link.announcing.bytes.saturating_add(bytes);
            }
        }
    }

    /// Bytes sent.
    fn say_marks(&mut self, to: LinkId, origin: Site, pattern: Pattern, from: usize) -> usize {
        let names = self.logs.names_of(&origin, &pattern);
        let logs: Vec<LogName> = names.into_iter().skip(from).take(MARKS_AT_ONCE).collect();
        let bytes = self.send_marks_of(to, &origin, &logs);
        if logs.len() == MARKS_AT_ONCE
            && let Some(link) = self.links.get_mut(&to)
        {
            let from = from.saturating_add(MARKS_AT_ONCE);
            link.announcing.queue.push_front(Say::Marks { origin, pattern, from });
        }
        bytes
    }

    /// Bytes sent.
    fn announce_now(&mut self, to: LinkId, log: &LogName) -> usize {
        if self.routing.upstream(&log.origin) == Some(to) || !self.wants.peer_covers(to, &log.origin, &log.topic) {
            return 0;
        }
        let Some(view) = self.offered(log) else { return 0 };
        let (digest, end) = (digest(&view), view.tip().offset);
        let Some(link) = self.links.get_mut(&to) else { return 0 };
        // An end that went back is told too: no mark says so.
        let told = link.announced.insert(log.clone(), (digest, end));
        if told.is_some_and(|(told, told_end)| told == digest && told_end <= end) {
            return 0;
        }
        let announce = message(Some(log), &view);
        let bytes = announce.encoded_len();
        self.send(to, link::control::Kind::Announce(announce));
        bytes
    }

    pub(super) fn announce_log(&mut self, log: &LogName) {
        for link in self.wants.links_for(&log.origin) {
            self.announce_to(link, log);
        }
    }

    pub(super) fn forget_announced(&mut self, link: LinkId, log: &LogName) {
        if let Some(link) = self.links.get_mut(&link) {
            link.announced.remove(log);
        }
    }

    /// The log is gone from here: those who were told of it are told so.
    pub(super) fn unannounce(&mut self, log: &LogName) {
        let told: Vec<LinkId> =
            self.links.iter_mut().filter_map(|(id, link)| link.announced.remove(log).map(|_| *id)).collect();
        for link in told {
            let log = Some(log.into());
            self.send(link, link::control::Kind::Unannounce(link::Unannounce { log }));
        }
    }

    pub(super) fn handle_announce(&mut self, from: LinkId, announce: &link::Announce) -> Checked<()> {
        let log = convert::log_from(announce.log.as_ref())?;
        let view = view_from(announce)?;
        if self.routing.upstream(&log.origin) != Some(from) {
            return Ok(());
        }
        let max = self.config.logs_max;
        let Some(state) = self.logs.entry(&log, max) else {
            self.refuse(
                "too-many-logs",
                format!(
                    "log {log} is refused: {max} are known already, or half as many of its origin; remove topics that are not used"
                ),
            );
            return Ok(());
        };
        if state.remote.as_ref() == Some(&view) {
            return Ok(());
        }
        state.remote = Some(view);
        if std::mem::take(&mut state.none_there) {
            (state.retry_at, state.failures) = (None, 0);
        }
        state.gap_answered();
        if self.lacks_what_was_deleted(&log) {
            self.close_gap_of_deleted(&log);
        }
        self.announce_log(&log);
        self.begin_if_wanted(&log);
        self.evaluate(&log);
        Ok(())
    }

    pub(super) fn handle_unannounce(&mut self, from: LinkId, gone: &link::Unannounce) -> Checked<()> {
        let log = convert::log_from(gone.log.as_ref())?;
        if self.routing.upstream(&log.origin) != Some(from) {
            return Ok(());
        }
        if let Some(state) = self.logs.get_mut(&log) {
            state.remote = None;
            state.none_there = true;
            let held = state.submitted.is_some();
            if !held {
                self.unannounce(&log);
            }
        }
        self.decide_waiting(&log);
        Ok(())
    }
}
