//! Deleted topics: what a node knows of them, and that nothing brings them back.
//!
//! A deletion is an entry of the topic's control queue, which every node that carries the topic reads like any other log. A holder that
//! reads it drops what it holds below the stated ends, and remembers the *tombstone*. From then on nothing below those
//! ends is taken for alive, whoever says so: an announcement by a neighbour that has not heard of it yet, an offer in answer
//! to a question, a statement by a site that was away. None of it is missing either: what was deleted is no gap, no
//! hole, and not lost.
//!
//! The origin's own logs stay as empty shells that end where the topic was deleted, so that a new life of the topic goes on above. After
//! the tombstone's time they go; the tombstone stays, and says where a later life goes on: no place is used twice, and who comes
//! back after years with what was deleted brings nothing back. A
//! holder that has not read the deletion yet, but is told by an announcement ([`link::LogFacts`]) that all it holds was
//! deleted, waits for the control queue instead of looking for the rest.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message as _;

use super::{
    Change, Output, Replication, StateTable,
    convert::{self, Checked},
    lines::View,
};
use crate::{
    control::{Control, Deletion},
    copies::LogInfo,
    ids::{LogName, Offset, Place, Queue, Site, Topic},
    wire::{WireError, link, store},
};

/// A tombstone stays for at least so long, microseconds: a year.
pub const TOMBSTONE_US: u64 = 365 * 24 * 3600 * 1_000_000;
/// At a holder it stays longer than at the origin, microseconds.
const HOLDER_GRACE_US: u64 = 30 * 24 * 3600 * 1_000_000;
/// A removal that was not carried out is asked for again after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// What is known of a deleted topic of an origin.
#[derive(Debug, Clone)]
pub(super) struct Tombstone {
    deletion: Deletion,
    /// It was created anew since.
    lives: bool,
    /// Of an own topic: its logs, the control queue too, are gone for good.
    over: bool,
}

/// All of them, and what of them is still to be removed here.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    known: BTreeMap<(Site, Topic), Tombstone>,
    /// Copies whose removal was asked for, and when.
    removing: BTreeMap<LogName, Duration>,
}

/// The key of a tombstone in its table.
#[must_use]
pub fn tombstone_key(origin: &Site, topic: &Topic) -> Bytes {
    format!("{origin}\0{topic}").into_bytes().into()
}

impl Tombstones {
    pub(super) fn restore(&mut self, key: &[u8], value: &[u8]) -> Checked<()> {
        let text = std::str::from_utf8(key).map_err(|_| WireError::Undecodable)?;
        let (origin, topic) = text.split_once('\0').ok_or(WireError::Undecodable)?;
        let stored = store::TopicDeleted::decode(value).map_err(|_| WireError::Undecodable)?;
        let entry = stored.entry.map(crate::control::place_of).ok_or(WireError::Missing("deleted.entry"))?;
        let (deletion, over) = (Deletion::from_stored(&stored, entry), !stored.over.is_empty());
        // Whether it lives again is read in the control queue.
        self.known.insert((convert::site_from(origin)?, topic.parse()?), Tombstone { deletion, lives: false, over });
        Ok(())
    }

    fn of(&self, log: &LogName) -> Option<&Tombstone> {
        if self.known.is_empty() || log.queue == Queue::CONTROL {
            return None;
        }
        self.known.get(&(log.origin.clone(), log.topic.clone()))
    }

    /// The offset below which all of a log was deleted.
    pub(super) fn floor(&self, log: &LogName) -> Option<Offset> {
        self.of(log)?.deletion.floor(log.queue)
    }

    /// Whether a log that goes up to this place holds nothing that was not deleted.
    pub(super) fn is_dead(&self, log: &LogName, tip: Place) -> bool {
        let Some(tombstone) = self.of(log) else { return false };
        tombstone.deletion.floor(log.queue).is_some_and(|floor| match tombstone.lives {
            true => tip.offset < floor,
            false => tip.offset <= floor,
        })
    }

    /// Below which offset nothing of an own log comes back: also of a control queue that went after its time.
    fn gone_below(&self, log: &LogName, held: Option<&LogInfo>) -> Option<Offset> {
        if log.queue != Queue::CONTROL {
            return self.floor(log);
        }
        let stone = self.known.get(&(log.origin.clone(), log.topic.clone()))?;
        let end = stone.deletion.entry.offset.saturating_add(1);
        // One that is held from further down has not gone.
        held.map_or(stone.over, |info| info.begin.offset >= end).then_some(end)
    }

    /// Where a new life of the log begins, if it has one.
    pub(super) fn begin(&self, log: &LogName) -> Option<Place> {
        self.of(log)?.deletion.ends.get(&log.queue).copied()
    }

    /// Where a copy of a log begins that its origin began when this site wanted it already: at the log's very first place, or where
    /// its new life began. What of that nobody holds any more is a hole of the copy then, told to people like any other, and
    /// not left out in silence. Of settings only what the origin still says counts.
    pub(super) fn first_owed(&self, log: &LogName, view: &View) -> Place {
        if let Some(begin) = self.begin(log).filter(|begin| begin.offset != view.begin.offset) {
            // A neighbour that has not heard of the deletion yet may still hold what came before.
            return begin;
        }
        let deleted = self.begin(log).is_some() || facts_of(view).is_some_and(|facts| facts.deleted_below > 0);
        if log.queue == Queue::CONTROL || view.begin.offset == 0 || deleted {
            return view.begin;
        }
        // What the oldest incarnation goes on from was the log's, too.
        let before = view.edge(view.begin.incarnation).and_then(|edge| edge.previous);
        let incarnation = before.map_or(view.begin.incarnation, |place| place.incarnation);
        Place { incarnation, offset: 0 }
    }

    /// Whether the topic of a log was deleted and not created anew.
    pub(super) fn is_gone(&self, log: &LogName) -> bool {
        self.of(log).is_some_and(|t| !t.lives && t.deletion.floor(log.queue).is_some())
    }
}

/// What an announcement says besides.
fn facts_of(view: &View) -> Option<link::LogFacts> {
    (!view.facts.is_empty()).then(|| link::LogFacts::decode(view.facts.clone()).ok()).flatten()
}

impl Replication {
    /// What the control queue of a topic says, as far as it is held here.
    pub fn handle_control(&mut self, now: Duration, log: &LogName, control: &Control) {
        self.now = self.now.max(now);
        self.judge_topic(log, control);
        let Some(deletion) = &control.deleted else { return self.lives_above(log, control) };
        let key = (log.origin.clone(), log.topic.clone());
        let own = self.config.is_origin_of(&log.origin);
        let known = self.tombstones.known.get(&key);
        // A control queue that went back says less than what is known.
        if known.is_some_and(|k| k.deletion.life > deletion.life) {
            return;
        }
        let new = known.is_none_or(|k| k.deletion.life < deletion.life);
        if !new && known.is_some_and(|k| k.lives == control.lives) && !self.has_dead(log) {
            return;
        }
        let tombstone = Tombstone { deletion: deletion.clone(), lives: control.lives, over: false };
        self.tombstones.known.insert(key, tombstone);
        if new && !own {
            self.count("topics_deleted");
            let (key, value) = (tombstone_key(&log.origin, &log.topic), deletion.to_stored().encode_to_vec().into());
            self.out.push_back(Output::Store(vec![Change::Put { table: StateTable::Deleted, key, value }]));
        }
        self.follow_life(log);
    }

    /// The control queue does not reach back to a deletion that is known, and has settings from after it: the topic was created
    /// anew.
    fn lives_above(&mut self, log: &LogName, control: &Control) {
        let Some((at, _)) = control.settings else { return };
        let known = self.tombstones.known.get_mut(&(log.origin.clone(), log.topic.clone()));
        let Some(known) = known.filter(|t| !t.lives && t.deletion.entry.offset < at.offset) else { return };
        (known.lives, known.over) = (true, false);
        self.follow_life(log);
    }

    /// Brings the message queues of a topic in line with what its control queue says now.
    fn follow_life(&mut self, log: &LogName) {
        let own = self.config.is_origin_of(&log.origin);
        for name in self.message_logs(log) {
            if own {
                self.own_lives_or_dies(&name);
            } else {
                self.remove_dead(&name);
                self.begin_if_wanted(&name);
                self.evaluate(&name);
                // It was announced here perhaps before it was known to live again, and then to nobody behind this node.
                self.announce_log(&name);
            }
        }
    }

    /// The message queues known of a control queue's topic.
    pub(super) fn message_logs(&self, control: &LogName) -> Vec<LogName> {
        let of_topic = |log: &&LogName| log.topic == control.topic && log.queue != Queue::CONTROL;
        self.logs.of_origin(&control.origin).map(|(log, _)| log).filter(of_topic).cloned().collect()
    }

    fn has_dead(&self, control: &LogName) -> bool {
        !self.config.is_origin_of(&control.origin)
            && self.message_logs(control).iter().any(|log| self.removal(log).is_some())
    }

    fn own_lives_or_dies(&mut self, log: &LogName) {
        if self.tombstones.is_gone(log) {
            self.unannounce(log);
        } else {
            self.announce_log(log);
        }
        // Nothing of it is missing here.
        self.forget_gap(log);
        self.regaining.remove(log);
    }

    fn forget_gap(&mut self, log: &LogName) {
        if let Some(state) = self.logs.get_mut(log) {
            (state.gap, state.gap_before, state.seeking) = (None, None, None);
            state.offers.clear();
        }
        self.gaps.remove(log);
        self.holed.remove(log);
    }

    /// What is to be done with a copy that holds what was deleted.
    fn removal(&self, log: &LogName) -> Option<Change> {
        let floor = self.tombstones.floor(log)?;
        let info: &LogInfo = self.logs.get(log)?.submitted.as_ref()?;
        if info.end.offset <= floor {
            let begun_above =
                info.begin.offset >= floor && self.tombstones.begin(log).is_some() && !self.tombstones.is_gone(log);
            return (!begun_above).then(|| Change::Drop { log: log.clone() });
        }
        // What was fetched of the next life stays.
        let to = self.tombstones.begin(log).filter(|end| {
            info.begin.offset < floor && info.incarnations.iter().any(|i| i.incarnation == end.incarnation)
        })?;
        Some(Change::Trim { log: log.clone(), to })
    }

    /// Drops what a copy holds of a deleted life.
    pub(super) fn remove_dead(&mut self, log: &LogName) {
        if self.tombstones.known.is_empty() || self.config.is_origin_of(&log.origin) {
            return;
        }
        let Some(change) = self.removal(log) else {
            self.tombstones.removing.remove(log);
            return;
        };
        let again = self.tombstones.removing.get(log).is_none_or(|at| self.now.saturating_sub(*at) >= AGAIN);
        if !again || self.stopped.is_some() {
            return;
        }
        self.tombstones.removing.insert(log.clone(), self.now);
        self.forget_gap(log);
        self.count("copies_deleted");
        self.out.push_back(Output::Store(vec![change]));
    }

    /// Each interval: removals that were not carried out, and tombstones that are as old as they get.
    pub(super) fn look_at_tombstones(&mut self) {
        let removing: Vec<LogName> = self.tombstones.removing.keys().cloned().collect();
        for log in removing {
            self.remove_dead(&log);
        }
        let age = TOMBSTONE_US.saturating_add(HOLDER_GRACE_US);
        let old = |t: &Tombstone| !t.lives && t.deletion.time_us.saturating_add(age) < self.wall_us;
        let old: Vec<(Site, Topic)> =
            self.tombstones.known.iter().filter(|(_, t)| old(t)).map(|(key, _)| key.clone()).collect();
        for (origin, topic) in old {
            let control = LogName { topic: topic.clone(), origin: origin.clone(), queue: Queue::CONTROL };
            let there = self.logs.get(&control).is_some_and(|s| s.remote.is_some());
            // Its origin says when it is over; one that was removed says nothing more.
            let silent = self.removals.contains_key(&origin);
            let may_speak = !silent && (there || self.routing.upstream(&origin).is_none());
            if self.config.is_origin_of(&origin) || may_speak {
                continue;
            }
            let mut changes = vec![Change::Delete { table: StateTable::Deleted, key: tombstone_key(&origin, &topic) }];
            if self.logs.get(&control).is_some_and(|s| s.submitted.is_some()) {
                changes.push(Change::Drop { log: control });
            }
            self.out.push_back(Output::Store(changes));
            self.tombstones.known.remove(&(origin, topic));
        }
    }

    /// The control queue of an own topic is gone: its tombstone was as old as it gets.
    pub(super) fn own_tombstone_over(&mut self, control: &LogName) {
        if let Some(known) = self.tombstones.known.get_mut(&(control.origin.clone(), control.topic.clone())) {
            known.over = !known.lives;
        }
    }

    /// What an offer of an own log has that was not deleted here.
    pub(super) fn without_deleted(&self, log: &LogName, view: &mut View) {
        let held = self.logs.get(log).and_then(|s| s.submitted.as_ref());
        if let Some(below) = self.tombstones.gone_below(log, held) {
            view.edges.retain(|edge| edge.end > below);
        }
    }

    /// Whether all that lies below these places of an own log was deleted here.
    pub(super) fn was_deleted_below(&self, log: &LogName, tips: &[Place]) -> bool {
        let held = self.logs.get(log).and_then(|s| s.submitted.as_ref());
        self.tombstones.gone_below(log, held).is_some_and(|below| tips.iter().all(|tip| tip.offset <= below))
    }

    /// What this origin says of its log besides, in announcements.
    pub(super) fn own_facts(&self, log: &LogName) -> Bytes {
        let Some(deleted_below) = self.tombstones.floor(log) else { return Bytes::new() };
        link::LogFacts { deleted_below }.encode_to_vec().into()
    }

    /// Whether what a copy lacks of its log was deleted, as its origin announces: then its control queue is waited for.
    pub(super) fn lacks_what_was_deleted(&self, log: &LogName) -> bool {
        let Some(state) = self.logs.get(log) else { return false };
        let below = state.remote.as_ref().and_then(facts_of).map(|facts| facts.deleted_below);
        below.zip(state.end()).is_some_and(|(below, end)| end.offset < below)
    }

    /// Whether a view of a log has nothing that was not deleted.
    pub(super) fn is_dead_view(&self, log: &LogName, view: &View) -> bool {
        self.tombstones.is_dead(log, view.tip()) && view.tips.iter().all(|tip| self.tombstones.is_dead(log, *tip))
    }

    /// Whether this origin deleted what stands at a place of its log.
    pub(super) fn deleted_here(&self, log: &LogName, at: Place) -> bool {
        self.config.is_origin_of(&log.origin)
            && (self.tombstones.is_gone(log) || self.tombstones.floor(log).is_some_and(|floor| at.offset < floor))
    }
}
