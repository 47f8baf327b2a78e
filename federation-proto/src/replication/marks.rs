//! Marks: what an origin says each interval of how far its logs go, and what a copy's holder concludes from it.
//!
//! Lag in seconds needs one clock only, the origin's: marks carry its time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    CopyStatus, LinkId, Replication,
    carried::{self, Head, Kind, MarkedPoint, To},
    logs::{FetchKey, LogState},
};
use crate::{
    copies::LogInfo,
    ids::{LogName, NodeName, Place, Site, Start},
    wire::link,
};

/// Marks of one log remembered, to tell what had to be reached by now.
const RECENT_MAX: usize = 6;
/// A copy is live while the newest mark of its origin is no older than this many intervals.
const LIVE_INTERVALS: u32 = 3;

/// A point of a log as its origin stated it.
#[derive(Debug, Clone, Copy)]
struct Point {
    heard: Duration,
    time_us: u64,
    end: Place,
    bytes_total: u64,
    messages_total: u64,
}

/// What is known of a log by marks: at its origin the running totals, elsewhere the last points.
#[derive(Debug, Default)]
pub(super) struct Marked {
    bytes_total: u64,
    messages_total: u64,
    counted_to: u64,
    recent: VecDeque<Point>,
    /// Origin time of the newest mark that the copy had reached before it fell behind.
    reached_us: u64,
}

/// An origin's marks as heard here.
#[derive(Debug)]
struct Heard {
    author: NodeName,
    start: Start,
    sequence: u64,
    time_us: u64,
    at: Duration,
    link: LinkId,
}

/// Who says a mark, when, and its number.
#[derive(Debug)]
struct MarkHead {
    author: NodeName,
    start: Start,
    sequence: u64,
    time_us: u64,
}

/// All that concerns marks.
#[derive(Debug, Default)]
pub(super) struct Marks {
    sequence: u64,
    changed: BTreeSet<LogName>,
    heard: BTreeMap<Site, Heard>,
}

impl Marked {
    /// Counts what was appended to an own log.
    fn count(&mut self, before: Option<&LogInfo>, info: &LogInfo) {
        let appended = info.end.offset.saturating_sub(self.counted_to);
        let bytes = match before {
            None => info.bytes,
            Some(b) if b.begin == info.begin => info.bytes.saturating_sub(b.bytes),
            // Something was trimmed at the same time: what came is counted by the average.
            Some(_) => appended.saturating_mul(info.bytes.checked_div(info.messages).unwrap_or(0)),
        };
        self.messages_total = match before {
            None => info.messages,
            Some(_) => self.messages_total.saturating_add(appended),
        };
        self.bytes_total = self.bytes_total.saturating_add(bytes);
        self.counted_to = self.counted_to.max(info.end.offset);
    }

    fn newest(&self) -> Option<&Point> {
        self.recent.back()
    }

    /// Byte total at an offset, between the points known.
    fn bytes_behind(&self, at: u64) -> Option<u64> {
        let newest = self.newest()?;
        let behind = newest.end.offset.saturating_sub(at);
        if behind == 0 {
            return Some(0);
        }
        let below = self.recent.iter().rev().find(|p| p.end.offset <= at);
        let scaled = |bytes: u64, messages: u64| {
            let product = u128::from(bytes).saturating_mul(u128::from(behind));
            u64::try_from(product.checked_div(u128::from(messages)).unwrap_or(0)).unwrap_or(u64::MAX)
        };
        Some(match below {
            Some(p) => scaled(newest.bytes_total.saturating_sub(p.bytes_total), newest.end.offset - p.end.offset),
            None => scaled(newest.bytes_total, newest.messages_total),
        })
    }
}

impl Replication {
    /// An own log's durable end moved.
    pub(super) fn mark_changed(&mut self, log: &LogName, before: Option<&LogInfo>) {
        if let Some(state) = self.logs.get_mut(log)
            && let Some(info) = &state.durable
        {
            state.marked.count(before, info);
            self.marks.changed.insert(log.clone());
        }
    }

    fn marked_log(log: &LogName, state: &LogState) -> Option<link::MarkedLog> {
        let end = state.durable.as_ref()?.end;
        Some(link::MarkedLog {
            log: Some(log.into()),
            end: Some(end.into()),
            bytes_total: state.marked.bytes_total,
            messages_total: state.marked.messages_total,
        })
    }

    /// Who says the mark, when, and its number: our own.
    fn own_mark(&self) -> MarkHead {
        let author = self.config.node.clone();
        MarkHead { author, start: self.config.start, sequence: self.marks.sequence, time_us: self.wall_us }
    }

    /// Each interval: the logs that changed since the last mark, to all who want any of ours.
    pub(super) fn send_marks(&mut self) {
        if self.config.kind != crate::session::NodeKind::Edge {
            return;
        }
        let me = self.config.node.site.clone();
        self.marks.sequence += 1;
        let changed: Vec<LogName> = std::mem::take(&mut self.marks.changed).into_iter().collect();
        for to in self.wants.links_for(&me) {
            let logs: Vec<link::MarkedLog> = changed
                .iter()
                .filter(|log| self.wants.peer_covers(to, &me, &log.topic))
                .filter_map(|log| Self::marked_log(log, self.logs.get(log)?))
                .collect();
            self.send_mark_parts(to, &self.own_mark(), logs);
        }
    }

    /// One mark, in as many messages as its logs need.
    fn send_mark_parts(&mut self, to: LinkId, head: &MarkHead, logs: Vec<link::MarkedLog>) -> usize {
        let mut bytes = 0usize;
        let wanting = To::Wanting(head.author.site.clone());
        for logs in carried::parts(logs) {
            let mark = link::Mark { sequence: head.sequence, time_us: head.time_us, logs };
            let carried = self.authored_as(&head.author, head.start, &wanting, Kind::Mark(mark));
            bytes = bytes.saturating_add(carried.body.len());
            self.send(to, link::control::Kind::Carried(carried));
        }
        bytes
    }

    /// A neighbour's new want: it is told how far these logs, which it covers, go. Answers about how many bytes that was.
    pub(super) fn send_marks_of(&mut self, to: LinkId, origin: &Site, names: &[LogName]) -> usize {
        if self.config.is_origin_of(origin) {
            if self.wall_us == 0 {
                return 0;
            }
            let logs = names.iter().filter_map(|log| Self::marked_log(log, self.logs.get(log)?)).collect();
            return self.send_mark_parts(to, &self.own_mark(), logs);
        }
        let Some(heard) = self.marks.heard.get(origin) else { return 0 };
        let head = MarkHead {
            author: heard.author.clone(),
            start: heard.start,
            sequence: heard.sequence,
            time_us: heard.time_us,
        };
        let point = |log: &LogName| {
            let newest = self.logs.get(log)?.marked.newest()?;
            Some(link::MarkedLog {
                log: Some(log.into()),
                end: Some(newest.end.into()),
                bytes_total: newest.bytes_total,
                messages_total: newest.messages_total,
            })
        };
        let logs = names.iter().filter_map(point).collect();
        self.send_mark_parts(to, &head, logs)
    }

    /// How far an origin's logs go, by itself.
    pub(super) fn hear_mark(&mut self, from: LinkId, head: &Head, sequence: u64, time_us: u64, logs: Vec<MarkedPoint>) {
        let origin = &head.author.site;
        let before = self.marks.heard.get(origin);
        // The same number comes again with the logs of a want that is new.
        let former = |h: &Heard| match h.start == head.start {
            true => h.sequence > sequence,
            false => self.routing.is_former(origin, head.start, h.start),
        };
        if before.is_some_and(|h| h.link == from && former(h)) {
            return;
        }
        let before_us = before.map_or(0, |h| h.time_us);
        for marked in logs {
            let MarkedPoint { log, end, bytes_total, messages_total } = marked;
            let point = Point { heard: self.now, time_us, end, bytes_total, messages_total };
            self.hear_point(&log, point, before_us);
        }
        let heard =
            Heard { author: head.author.clone(), start: head.start, sequence, time_us, at: self.now, link: from };
        self.marks.heard.insert(origin.clone(), heard);
    }

    fn hear_point(&mut self, log: &LogName, point: Point, before_us: u64) {
        let Some(state) = self.logs.get_mut(log) else { return };
        if reached(state) {
            state.marked.reached_us = state.marked.reached_us.max(before_us);
        }
        state.marked.recent.push_back(point);
        if state.marked.recent.len() > RECENT_MAX {
            state.marked.recent.pop_front();
        }
        if let Some(remote) = &mut state.remote {
            for edge in remote.edges.iter_mut().filter(|e| e.incarnation == point.end.incarnation) {
                edge.end = edge.end.max(point.end.offset);
            }
            for tip in remote.tips.iter_mut().filter(|t| t.incarnation == point.end.incarnation) {
                tip.offset = tip.offset.max(point.end.offset);
            }
        }
        self.move_to_live(log);
    }

    /// A fetch that caught up goes over to the live lane, once.
    fn move_to_live(&mut self, log: &LogName) {
        let Some(state) = self.logs.get(log) else { return };
        let Some(fetch) = state.fetches.get(&FetchKey::Main) else { return };
        if fetch.lane == crate::session::Lane::Live || !reached(state) {
            return;
        }
        let (link, number) = (fetch.link, fetch.number);
        self.stop_fetch(link, number);
        if let Some(state) = self.logs.get_mut(log) {
            state.fetches.remove(&FetchKey::Main);
        }
        self.evaluate(log);
    }

    pub(super) fn status_of(&self, now: Duration, log: &LogName) -> Option<CopyStatus> {
        let state = self.logs.get(log)?;
        if self.config.is_origin_of(&log.origin) {
            return Some(CopyStatus {
                state: "own",
                reason: String::new(),
                origin_end: state.durable.as_ref().map(|i| i.end),
                lag_messages: Some(0),
                lag_bytes: Some(0),
                lag: Some(Duration::ZERO),
            });
        }
        let newest = state.marked.newest();
        let end = state.end();
        let heard = self.marks.heard.get(&log.origin);
        let lag_messages = match (newest, end) {
            (Some(point), Some(end)) => Some(point.end.offset.saturating_sub(end.offset)),
            _ => None,
        };
        let (name, reason) = self.state_of(now, log, state);
        Some(CopyStatus {
            state: name,
            reason,
            origin_end: newest.map(|p| p.end).or_else(|| state.remote.as_ref().map(super::lines::View::tip)),
            lag_messages,
            lag_bytes: end.and_then(|end| state.marked.bytes_behind(end.offset)),
            lag: newest.and(heard).map(|heard| lag(state, heard.time_us)),
        })
    }

    fn state_of(&self, now: Duration, log: &LogName, state: &LogState) -> (&'static str, String) {
        let origin = &log.origin;
        if let Some(why) = self.stopped.as_ref().filter(|_| self.is_wanted(log)) {
            return ("stalled", why.clone());
        }
        if self.routing.upstream(origin).is_none() {
            return ("down", format!("there is no way to {origin} at present"));
        }
        let young = self.config.mark_interval.saturating_mul(LIVE_INTERVALS);
        let heard = self.marks.heard.get(origin).map(|h| now.saturating_sub(h.at));
        match heard {
            Some(age) if age <= young => {}
            Some(age) => return ("down", format!("nothing was heard of {origin} for {} s", age.as_secs())),
            None => return ("down", format!("nothing was heard of {origin} yet")),
        }
        if let Some(failed) = self.trace_trouble(now, origin) {
            return ("down", failed);
        }
        if state.submitted.is_none() {
            return ("catching-up", "the copy is not begun yet".to_owned());
        }
        if let Some(gap) = &state.gap {
            return ("stalled", gap.words(log));
        }
        let due = state.marked.recent.iter().rev().find(|p| now.saturating_sub(p.heard) > young);
        let end = state.end();
        let reached_due = due.is_none_or(|p| end.is_some_and(|e| past(e, p.end)) || holds(state, p.end));
        let by_announcement = || match (&state.remote, end) {
            (Some(remote), Some(end)) => past(end, remote.tip()) || holds(state, remote.tip()),
            _ => false,
        };
        let unmarked = state.marked.recent.is_empty();
        if reached(state) || (reached_due && due.is_some()) || (unmarked && by_announcement()) {
            return ("live", String::new());
        }
        if !self.needs(log) {
            return ("not-wanted", "no want covers this log any more".to_owned());
        }
        if state.is_as_blank_as_there() && state.marked.newest().is_none() {
            return ("live", String::new());
        }
        if state.fetches.is_empty() {
            let why = state.trouble.clone().unwrap_or_else(|| "it is not being fetched".to_owned());
            return ("stalled", why);
        }
        if now.saturating_sub(state.moved_at) > young.saturating_mul(2) {
            return ("stalled", "it is being fetched, but nothing comes".to_owned());
        }
        ("catching-up", String::new())
    }
}

/// Whether an end has reached a place (by offset where the incarnations differ: offsets go on counting over them).
fn past(end: Place, place: Place) -> bool {
    end.offset >= place.offset && end.incarnation >= place.incarnation || end == place
}

/// Whether the copy has reached the newest mark.
fn reached(state: &LogState) -> bool {
    match (state.end(), state.marked.newest()) {
        (Some(end), Some(point)) => past(end, point.end) || holds(state, point.end),
        _ => false,
    }
}

/// Whether the copy reaches a place in that place's own incarnation: one that a later lost part of the origin's history left
/// behind may be its newest.
fn holds(state: &LogState, place: Place) -> bool {
    let held = state.submitted.iter().flat_map(|info| &info.incarnations);
    held.into_iter().any(|i| i.incarnation == place.incarnation && i.end >= place.offset)
}

fn lag(state: &LogState, newest_us: u64) -> Duration {
    if reached(state) {
        return Duration::ZERO;
    }
    let by_marks = state
        .marked
        .recent
        .iter()
        .filter(|p| state.end().is_some_and(|e| past(e, p.end)) || holds(state, p.end))
        .map(|p| p.time_us)
        .max()
        .unwrap_or(0);
    let by_batch = state.submitted.as_ref().map_or(0, |i| i.newest_origin_time_us);
    let seen = by_marks.max(by_batch).max(state.marked.reached_us);
    Duration::from_micros(newest_us.saturating_sub(seen))
}
