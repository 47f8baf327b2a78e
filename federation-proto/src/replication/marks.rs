//! Marks: what an origin says each interval of how far its logs go, and what a copy's holder concludes from it.
//!
//! Lag in seconds needs one clock only, the origin's: marks carry its time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    LinkId, Replication,
    carried::{self, Head, Kind, MarkedPoint, To},
    logs::{FetchKey, LogState},
    missed::Missed,
    standing::{reached, reaches},
};
use crate::{
    copies::LogInfo,
    ids::{LogName, NodeName, Place, Site, Start},
    wire::link,
};

/// Marks of one log remembered, to tell what had to be reached by now.
const RECENT_MAX: usize = 6;
/// A point of a log as its origin stated it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// When it was first heard, or would have been if no mark had been lost: what it names has been due since then.
    pub(super) heard: Duration,
    time_us: u64,
    pub(super) end: Place,
    bytes_total: u64,
    messages_total: u64,
}

/// What is known of a log by marks: at its origin the running totals, elsewhere the last points.
#[derive(Debug, Default)]
pub(super) struct Marked {
    bytes_total: u64,
    messages_total: u64,
    counted_to: u64,
    pub(super) recent: VecDeque<Point>,
    /// Origin time of the newest mark that the copy had reached before it fell behind.
    reached_us: u64,
}

/// An origin's marks as heard here.
#[derive(Debug)]
pub(super) struct Heard {
    author: NodeName,
    start: Start,
    sequence: u64,
    pub(super) time_us: u64,
    /// When its newest mark came.
    pub(super) at: Duration,
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
    pub(super) heard: BTreeMap<Site, Heard>,
    pub(super) missed: Missed,
}

/// How a mark stands to the newest that was heard of its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// It says of some logs what others said later, or how far logs go that nothing was said of.
    Former,
    /// Another part of the newest.
    Same,
    Next,
    /// Others between were not heard.
    Beyond,
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

    /// Keeps the newest points. One that says nothing new keeps the moment at which it was heard first: what it names has been
    /// due since then.
    fn remember(&mut self, point: Point) {
        // A log's offsets only grow: what lay above this was lost by its origin, and is owed to nobody.
        self.recent.retain(|p| p.end.offset <= point.end.offset);
        match self.recent.back_mut().filter(|newest| newest.end == point.end) {
            Some(newest) => *newest = Point { heard: newest.heard, ..point },
            None => self.recent.push_back(point),
        }
        if self.recent.len() > RECENT_MAX {
            // The newest that was reached and the oldest that was not stay: they tell for how long the copy has been behind.
            self.recent.remove(2);
        }
    }

    /// What the copy reached is of no more use, but for the newest of it.
    fn forget_reached(&mut self, is_reached: impl Fn(Place) -> bool) {
        while self.recent.get(1).is_some_and(|second| is_reached(second.end)) {
            self.recent.pop_front();
        }
    }

    /// The newest time that a point among these says which the copy has reached.
    pub(super) fn reached_us(&self, is_reached: impl Fn(Place) -> bool) -> u64 {
        let points = self.recent.iter().filter(|p| is_reached(p.end)).map(|p| p.time_us);
        points.max().unwrap_or(0).max(self.reached_us)
    }

    pub(super) fn newest(&self) -> Option<&Point> {
        self.recent.back()
    }

    /// Byte total at an offset, between the points known.
    pub(super) fn bytes_behind(&self, at: u64) -> Option<u64> {
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

    fn order_of(&self, head: &Head, sequence: u64) -> Order {
        let origin = &head.author.site;
        let Some(heard) = self.marks.heard.get(origin) else { return Order::Next };
        if heard.start != head.start {
            return match self.routing.is_former(origin, head.start, heard.start) {
                true => Order::Former,
                false => Order::Beyond,
            };
        }
        match sequence.checked_sub(heard.sequence) {
            None => Order::Former,
            Some(0) => Order::Same,
            Some(1) => Order::Next,
            Some(_) => Order::Beyond,
        }
    }

    /// How far an origin's logs go, by itself; or what a neighbour heard of that, for a want that is new or marks that were missed.
    pub(super) fn hear_mark(&mut self, head: &Head, sequence: u64, time_us: u64, logs: Vec<MarkedPoint>) {
        let origin = &head.author.site;
        let order = self.order_of(head, sequence);
        if order == Order::Beyond {
            self.marks_missed(origin);
        }
        let before = self.marks.heard.get(origin);
        let before_us = before.map_or(0, |h| h.time_us);
        // Had the marks between come, what this one names would have been due since the next after the last that did.
        let next = before.map_or(self.now, |h| h.at.saturating_add(self.config.mark_interval));
        let due = self.marks.missed.of(origin).map_or(next, |missing| next.min(missing.due)).min(self.now);
        for marked in logs {
            let MarkedPoint { log, end, bytes_total, messages_total } = marked;
            let point = Point { heard: due, time_us, end, bytes_total, messages_total };
            self.hear_point(&log, point, before_us, order == Order::Former);
        }
        if matches!(order, Order::Next | Order::Beyond) {
            let heard = Heard { author: head.author.clone(), start: head.start, sequence, time_us, at: self.now };
            self.marks.heard.insert(origin.clone(), heard);
        }
    }

    /// `former`: it may be older than what is known.
    fn hear_point(&mut self, log: &LogName, point: Point, before_us: u64, former: bool) {
        let Some(state) = self.logs.get_mut(log) else { return };
        if former && state.marked.newest().is_some_and(|newest| newest.end.offset >= point.end.offset) {
            return;
        }
        if reached(state) {
            state.marked.reached_us = state.marked.reached_us.max(before_us);
        }
        let info = state.submitted.as_ref();
        state.marked.forget_reached(|place| reaches(info, place));
        state.marked.remember(point);
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
}
