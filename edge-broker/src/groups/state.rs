//! What a group decides: which member gets what, what is out, what is confirmed, what comes again. No I/O, no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use seaway_federation_proto::{
    control::order,
    ids::{LogName, Place},
};

use super::{
    assign::{MemberId, spread},
    position::LogPosition,
};
use crate::{
    api::{
        Message,
        subscribe_reply::{Kind, Messages},
    },
    grpc::convert,
    limits::{GROUP_BUFFER_BYTES_MAX, GROUP_LOGS_MAX, GROUP_UNCONFIRMED_MAX, SUBSCRIBE_REPLY_BYTES},
    subscriptions::{
        credit::Credit,
        cursor::Cursor,
        feed::{Feed, Item},
        filter::Filter,
        plain::gap,
    },
};

/// The share of the time to confirm that a member may use without a sign.
const WORK_SHARE: u32 = 4;

/// A message that a member has and has not confirmed.
#[derive(Debug, Clone, Copy)]
struct Out {
    member: MemberId,
    since: Instant,
    deliveries: u32,
    /// Counts the log's deliveries: "all before" means by this order.
    sequence: u64,
}

#[derive(Debug)]
struct GroupLog {
    position: LogPosition,
    feed: Feed,
    assigned: Option<MemberId>,
    out: BTreeMap<Place, Out>,
    /// What was out and comes again, with how often it was delivered.
    returned: BTreeMap<Place, u32>,
    sequence: u64,
    /// Whether the position moved since it was last stored.
    dirty: bool,
}

impl GroupLog {
    /// Everything that is not confirmed and not out is read again.
    fn rewind(&mut self) {
        self.feed.restart(Cursor::new(self.position.below(), self.position.sides().clone()));
    }

    fn give_back(&mut self, member: MemberId) -> bool {
        let before = self.returned.len();
        let returned = &mut self.returned;
        self.out.retain(|place, out| {
            if out.member == member {
                returned.insert(*place, out.deliveries);
            }
            out.member != member
        });
        self.returned.len() > before
    }

    fn confirm_one(&mut self, place: Place) {
        self.out.remove(&place);
        self.returned.remove(&place);
        self.position.confirm(place, place.offset.saturating_add(1));
        self.dirty = true;
    }

    fn has_room(&self) -> bool {
        self.out.len().saturating_add(self.returned.len()) < GROUP_UNCONFIRMED_MAX
    }
}

#[derive(Debug, Default)]
struct GroupMember {
    credit: Credit,
    /// Let a confirmation time out; gets no logs while there is another.
    stalled: bool,
    /// Assigned logs that may have something to deliver.
    ready: BTreeSet<LogName>,
    turn: Option<LogName>,
}

/// A group's members and logs.
#[derive(Debug)]
pub(crate) struct GroupState {
    filter: Arc<Filter>,
    confirm_timeout: Duration,
    members: BTreeMap<MemberId, GroupMember>,
    logs: BTreeMap<LogName, GroupLog>,
    /// Logs with messages read and not yet delivered.
    buffered: BTreeSet<LogName>,
    next_member: MemberId,
    turn: MemberId,
    /// Whether logs came that no member serves yet.
    unassigned: bool,
}

impl GroupState {
    /// A group without members and logs.
    pub(crate) fn new(filter: Filter, confirm_timeout: Duration) -> Self {
        Self {
            filter: Arc::new(filter),
            confirm_timeout,
            members: BTreeMap::new(),
            logs: BTreeMap::new(),
            buffered: BTreeSet::new(),
            next_member: 1,
            turn: 0,
            unassigned: false,
        }
    }

    /// Whether the group means this log and does not have it yet.
    pub(crate) fn is_new(&self, log: &LogName) -> bool {
        self.filter.covers(log) && !self.logs.contains_key(log)
    }

    /// Takes a log with its position; a position that is not stored yet is dirty.
    pub(crate) fn add_log(&mut self, log: LogName, position: LogPosition, stored: bool) {
        let cursor = Cursor::new(position.below(), position.sides().clone());
        let feed = Feed::new(log.clone(), self.filter.clone(), cursor, None);
        let (out, returned) = (BTreeMap::new(), BTreeMap::new());
        self.logs.insert(log, GroupLog { position, feed, assigned: None, out, returned, sequence: 0, dirty: !stored });
        self.unassigned = true;
    }

    /// Takes a member; answers its name.
    pub(crate) fn add_member(&mut self, credit: Credit) -> MemberId {
        let id = self.next_member;
        self.next_member = id.wrapping_add(1);
        self.members.insert(id, GroupMember { credit, ..GroupMember::default() });
        self.assign();
        id
    }

    /// A member left: what it had comes again.
    pub(crate) fn remove_member(&mut self, member: MemberId) {
        self.members.remove(&member);
        for log in self.logs.values_mut() {
            if log.give_back(member) {
                log.rewind();
            }
        }
        self.assign();
    }

    /// A member is willing to receive more.
    pub(crate) fn add_credit(&mut self, member: MemberId, messages: u64, bytes: u64) {
        if let Some(member) = self.members.get_mut(&member) {
            member.credit.add(messages, bytes);
        }
    }

    /// Spreads the logs over the members that keep up.
    fn assign(&mut self) {
        self.unassigned = false;
        let keeping_up: BTreeSet<_> = self.members.iter().filter(|(_, m)| !m.stalled).map(|(id, _)| *id).collect();
        let able = if keeping_up.is_empty() { self.members.keys().copied().collect() } else { keeping_up };
        let spread = spread(self.logs.iter().map(|(name, log)| (name.clone(), log.assigned)), &able);
        for member in self.members.values_mut() {
            member.ready.clear();
        }
        for (name, log) in &mut self.logs {
            log.assigned = spread.get(name).copied();
            if let Some(member) = log.assigned.and_then(|id| self.members.get_mut(&id)) {
                member.ready.insert(name.clone());
            }
        }
    }

    /// Whether all below a place of a log was delivered and confirmed, or never will be; `None`: the group has no such log.
    pub(crate) fn is_settled(&self, name: &LogName, end: Place) -> Option<bool> {
        let log = self.logs.get(name)?;
        let first = [log.out.keys().next(), log.returned.keys().next()].into_iter().flatten().min();
        Some(first.is_none_or(|place| order::is_past(*place, end)) && log.feed.is_settled(end))
    }

    /// A log moved.
    pub(crate) fn wake(&mut self, name: &LogName) {
        let Some(log) = self.logs.get_mut(name) else { return };
        log.feed.wake();
        if let Some(member) = log.assigned.and_then(|id| self.members.get_mut(&id)) {
            member.ready.insert(name.clone());
        }
    }

    /// Every log may have moved.
    pub(crate) fn wake_all(&mut self) {
        let names: Vec<_> = self.logs.keys().cloned().collect();
        for name in names {
            self.wake(&name);
        }
    }

    /// Whether the group has as many logs as it may.
    pub(crate) fn is_full(&self) -> bool {
        self.logs.len() >= GROUP_LOGS_MAX
    }

    /// The member (of those that `may` take a reply) and log whose turn it is.
    pub(crate) fn next_turn(&mut self, may: impl Fn(MemberId) -> bool) -> Option<(MemberId, LogName)> {
        if self.unassigned {
            self.assign();
        }
        let eligible = |(id, m): &(&MemberId, &mut GroupMember)| m.credit.is_left() && !m.ready.is_empty() && may(**id);
        let turn = self.turn;
        let mut able: Vec<_> = self.members.iter_mut().filter(eligible).collect();
        let index = able.iter().position(|(id, _)| **id > turn).unwrap_or(0);
        if able.is_empty() {
            return None;
        }
        let (id, member) = able.swap_remove(index);
        self.turn = *id;
        let after = member
            .turn
            .as_ref()
            .and_then(|t| member.ready.range((std::ops::Bound::Excluded(t), std::ops::Bound::Unbounded)).next());
        let log = after.or_else(|| member.ready.first()).cloned()?;
        member.turn = Some(log.clone());
        Some((*id, log))
    }

    /// The feed of a log, to be filled; others give back what they read where that is too much.
    pub(crate) fn feed(&mut self, name: &LogName) -> Option<&mut Feed> {
        let held = |s: &Self, n: &LogName| s.logs.get(n).map_or(0, |l| l.feed.bytes());
        let mut bytes: usize = self.buffered.iter().map(|n| held(self, n)).sum();
        while bytes > GROUP_BUFFER_BYTES_MAX {
            let Some(other) = self.buffered.iter().find(|n| *n != name).cloned() else { break };
            bytes = bytes.saturating_sub(held(self, &other));
            self.buffered.remove(&other);
            if let Some(log) = self.logs.get_mut(&other) {
                log.rewind();
            }
        }
        self.buffered.insert(name.clone());
        self.logs.get_mut(name).map(|log| &mut log.feed)
    }

    /// Nothing to deliver from this log until it moves.
    pub(crate) fn set_idle(&mut self, member: MemberId, name: &LogName) {
        self.buffered.remove(name);
        if let Some(member) = self.members.get_mut(&member) {
            member.ready.remove(name);
        }
    }

    /// One reply's worth for a member from one of its logs; `None`: nothing at present.
    pub(crate) fn take_reply(&mut self, id: MemberId, name: &LogName, now: Instant) -> Option<Kind> {
        let (Some(log), Some(member)) = (self.logs.get_mut(name), self.members.get_mut(&id)) else { return None };
        if log.out.values().any(|out| out.member != id) {
            // Another member still has messages of this log: they are confirmed or given back first.
            member.ready.remove(name);
            return None;
        }
        let (messages, taken) = take_messages(log, member, id, name, now);
        let reply = match taken {
            Taken::Gap(kind) if messages.is_empty() => Some(kind),
            _ => (!messages.is_empty()).then_some(Kind::Messages(Messages { messages })),
        };
        if taken_is_full(log) {
            member.ready.remove(name);
        }
        if !log.feed.has_items() {
            self.buffered.remove(name);
        }
        reply
    }

    /// Confirms a message, or it and all before it that the same member has of its log.
    pub(crate) fn confirm(&mut self, by: MemberId, name: &LogName, place: Place, up_to: bool) -> Result<(), String> {
        let unknown = || format!("the message at {name} {place} was not delivered by this group");
        let log = self.logs.get_mut(name).ok_or_else(unknown)?;
        let mut confirmed = vec![place];
        if let Some(out) = log.out.get(&place).copied() {
            if up_to {
                let before = |o: &Out| o.member == out.member && o.sequence <= out.sequence;
                confirmed = log.out.iter().filter(|(_, o)| before(o)).map(|(p, _)| *p).collect();
            }
        } else if log.returned.contains_key(&place) {
            if up_to {
                confirmed = log.returned.range(..=place).map(|(p, _)| *p).collect();
            }
        } else if log.position.is_confirmed(place) {
            return Ok(());
        } else {
            return Err(unknown());
        }
        for place in confirmed {
            log.confirm_one(place);
        }
        self.wake(name);
        if let Some(member) = self.members.get_mut(&by)
            && std::mem::take(&mut member.stalled)
        {
            self.assign();
        }
        Ok(())
    }

    /// What was out too long comes again, from another member where there is one.
    pub(crate) fn expire(&mut self, now: Instant) {
        let mut stalled = BTreeSet::new();
        for log in self.logs.values_mut() {
            let late = |out: &&Out| now.saturating_duration_since(out.since) >= self.confirm_timeout;
            let late: BTreeSet<_> = log.out.values().filter(late).map(|out| out.member).collect();
            for member in &late {
                log.give_back(*member);
            }
            if !late.is_empty() {
                log.rewind();
            }
            stalled.extend(late);
        }
        if stalled.is_empty() {
            return;
        }
        for id in stalled {
            if let Some(member) = self.members.get_mut(&id) {
                member.stalled = true;
            }
        }
        self.assign();
    }

    /// The positions that moved since they were last taken.
    pub(crate) fn take_dirty(&mut self) -> Vec<(LogName, LogPosition)> {
        let dirty =
            self.logs.iter_mut().filter_map(|(name, log)| std::mem::take(&mut log.dirty).then_some((name, log)));
        dirty.map(|(name, log)| (name.clone(), log.position.clone())).collect()
    }

    /// Storing these failed: they are dirty again.
    pub(crate) fn set_dirty<'a>(&mut self, names: impl Iterator<Item = &'a LogName>) {
        for name in names {
            if let Some(log) = self.logs.get_mut(name) {
                log.dirty = true;
            }
        }
    }

    /// Members that would take a message.
    pub(crate) fn members_with_credit(&self) -> usize {
        self.members.values().filter(|member| member.credit.is_left()).count()
    }

    /// Members who let the time to confirm pass, and have confirmed nothing since.
    pub(crate) fn members_late(&self) -> usize {
        self.members.values().filter(|member| member.stalled).count()
    }

    /// How long members may work on what they have until it counts as standing still: a share of the time that they have to confirm it.
    pub(crate) fn work_time(&self) -> Duration {
        self.confirm_timeout / WORK_SHARE
    }

    /// Each log with its position and how many messages are out or come again.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (&LogName, &LogPosition, usize)> {
        self.logs.iter().map(|(name, log)| (name, &log.position, log.out.len().saturating_add(log.returned.len())))
    }
}

enum Taken {
    Some,
    Gap(Kind),
}

fn taken_is_full(log: &GroupLog) -> bool {
    match log.feed.peek() {
        Some(Item::Message { place, .. }) => !log.returned.contains_key(place) && !log.has_room(),
        _ => false,
    }
}

/// Takes items until the reply is full, the credit or the room ends, or a gap must be told.
fn take_messages(
    log: &mut GroupLog,
    member: &mut GroupMember,
    id: MemberId,
    name: &LogName,
    now: Instant,
) -> (Vec<Message>, Taken) {
    let mut messages = Vec::new();
    let mut bytes = 0_usize;
    while let Some(item) = log.feed.peek() {
        match item {
            Item::Message { place, .. } => {
                let done = log.position.is_confirmed(*place) || log.out.contains_key(place);
                let full = !member.credit.is_left() || bytes >= SUBSCRIBE_REPLY_BYTES || taken_is_full(log);
                if !done && full {
                    break;
                }
                let Some(Item::Message { place, message, late }) = log.feed.pop() else { break };
                if done {
                    continue;
                }
                let size = convert::message_bytes(&message);
                bytes = bytes.saturating_add(size);
                member.credit.take(size);
                let deliveries = log.returned.remove(&place).unwrap_or(0).saturating_add(1);
                log.sequence = log.sequence.wrapping_add(1);
                log.out.insert(place, Out { member: id, since: now, deliveries, sequence: log.sequence });
                messages.push(convert::message(name, place, message, late, deliveries));
            }
            Item::Gap { .. } if !messages.is_empty() => break,
            Item::Gap { .. } | Item::Passed(..) | Item::Hop { .. } | Item::Side(_) => {
                if let Some(kind) = log.feed.pop().and_then(|item| settle(log, name, item)) {
                    return (messages, Taken::Gap(kind));
                }
            }
        }
    }
    (messages, Taken::Some)
}

/// Moves the position past what is not a message; answers what the member is told.
fn settle(log: &mut GroupLog, name: &LogName, item: Item) -> Option<Kind> {
    match item {
        Item::Message { .. } => return None,
        Item::Passed(from, to) => log.position.confirm(from, to),
        Item::Hop { from, to } => log.position.hop(from, to),
        Item::Side(place) => log.position.begin_side(place),
        Item::Gap { from, to, reason, settled } => {
            if settled {
                log.position.hop(from, to);
                log.dirty = true;
            }
            return Some(Kind::Gap(gap(name, from, to, reason)));
        }
    }
    log.dirty = true;
    None
}
