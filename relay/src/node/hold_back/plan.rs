//! The decision of one round: up to where each own log may be trimmed, what is given up for whom, and which topics are refused.
//!
//! Bounds are kept in this order: a rule's age, a rule's size for each of its sites, the size of the whole, and last the room that own
//! messages need: an absent site does not stop publishers by filling the disk. Past a bound the oldest goes first, over all logs that
//! it is about. What a rule with `refuse` pins is never given up: its topics are refused instead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use seaway_federation_proto::{
    ids::{LogName, Place, Site, Topic},
    replication::Need,
};

use super::{
    HoldBackConfig, HoldBackRule,
    ledger::{Ledger, Part, Slice, higher, key, lower},
};
use crate::{
    log::contract::{CommitLog, ReadError, Surveyed},
    node::retention::{Keep, Now},
};

/// A log of this origin's with the sites that count for it.
pub(super) struct Own<'a> {
    pub(super) name: &'a LogName,
    pub(super) ledger: &'a Ledger,
    /// Up to where retention would trim it.
    pub(super) target: Option<Place>,
    pub(super) pins: Vec<Pin>,
}

/// What one site needs of it.
pub(super) struct Pin {
    pub(super) need: Need,
    /// The first rule that is about this site and topic.
    pub(super) rule: Option<usize>,
    /// From where on it is kept for the site: what it needs, less what is given up.
    pub(super) from: Place,
}

/// Why a topic's publishers are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) site: Site,
    pub(super) bound: String,
}

/// What was decided beside [`Pin::from`].
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Bytes kept beyond retention for registered sites.
    pub(super) bytes: u64,
    /// By topic.
    pub(super) refused: BTreeMap<Topic, Refusal>,
    /// Which bound was met for a site, in words.
    pub(super) bounds: BTreeMap<Site, String>,
}

/// The first rule about a site and topic.
pub(super) fn rule_of(rules: &[HoldBackRule], site: &Site, topic: &Topic) -> Option<usize> {
    rules.iter().position(|rule| {
        let sites = rule.sites.is_empty() || rule.sites.contains(site);
        sites && (rule.topics.is_empty() || rule.topics.iter().any(|p| p.touches(topic)))
    })
}

/// Decides a round; see the module's documentation. Waits on the disk.
pub(super) struct Planner<'a> {
    pub(super) log: &'a dyn CommitLog,
    pub(super) config: &'a HoldBackConfig,
    /// Bound of the whole; `None`: none.
    pub(super) bytes_max: Option<u64>,
    pub(super) now: Now,
    /// What own messages lack of room, bytes: as much is given up as may be, for publishing goes on.
    pub(super) lacking: u64,
}

impl Planner<'_> {
    pub(super) fn decide(&self, logs: &mut [Own<'_>]) -> Result<Decision, ReadError> {
        let mut decision = Decision::default();
        self.keep_ages(logs, &mut decision)?;
        self.keep_sizes(logs, &mut decision)?;
        self.keep_whole(logs, &mut decision)?;
        Ok(decision)
    }

    fn rule(&self, pin: &Pin) -> Option<&HoldBackRule> {
        self.config.rules.get(pin.rule?)
    }

    fn refuses(&self, pin: &Pin) -> bool {
        self.rule(pin).is_some_and(|rule| rule.refuse)
    }

    fn keep_ages(&self, logs: &mut [Own<'_>], decision: &mut Decision) -> Result<(), ReadError> {
        for own in logs {
            let Some(target) = own.target else { continue };
            for pin in &mut own.pins {
                let Some(rule) = pin.rule.and_then(|rule| self.config.rules.get(rule)) else { continue };
                let Some(age_max) = rule.age_max.filter(|_| !rule.refuse && key(pin.from) < key(target)) else {
                    continue;
                };
                let keep = Keep { bytes_max: None, age_max: Some(age_max) };
                let young = own.ledger.retained_from(self.log, own.name, keep, u64::MAX, self.now)?;
                let young = young.map_or(pin.from, |young| higher(pin.from, lower(young, target)));
                if key(young) > key(pin.from) {
                    pin.from = young;
                    let bound = format!("an age of {}", humantime::format_duration(age_max));
                    decision.bounds.insert(pin.need.site.clone(), bound);
                }
            }
        }
        Ok(())
    }

    fn keep_sizes(&self, logs: &mut [Own<'_>], decision: &mut Decision) -> Result<(), ReadError> {
        let mut groups: BTreeMap<(Site, usize), Part> = BTreeMap::new();
        for own in logs.iter() {
            let Some(target) = own.target else { continue };
            for pin in own.pins.iter().filter(|pin| key(pin.from) < key(target)) {
                let Some(rule) = pin.rule else { continue };
                let part = own.ledger.between(self.log, own.name, pin.from, target)?;
                groups.entry((pin.need.site.clone(), rule)).or_default().join(part);
            }
        }
        for ((site, number), pinned) in groups {
            let Some(rule) = self.config.rules.get(number) else { continue };
            let concerns = |pin: &Pin| pin.need.site == site && pin.rule == Some(number);
            if rule.refuse {
                if let Some(bound) = self.reached(rule, pinned) {
                    refuse(logs, concerns, &Refusal { site: site.clone(), bound }, decision);
                }
                continue;
            }
            let Some(excess) = rule.bytes_max.map(|max| pinned.bytes.saturating_sub(max)).filter(|e| *e > 0) else {
                continue;
            };
            self.give_up(logs, concerns, excess)?;
            let bound = format!("{} bytes for the site", rule.bytes_max.unwrap_or(0));
            decision.bounds.insert(site, bound);
        }
        Ok(())
    }

    /// Which bound of a rule that refuses is reached.
    fn reached(&self, rule: &HoldBackRule, pinned: Part) -> Option<String> {
        if let Some(max) = rule.bytes_max.filter(|max| pinned.bytes >= *max) {
            return Some(format!("{max} bytes"));
        }
        let age_us = pinned.oldest_us.map(|oldest| self.now.us.saturating_sub(oldest))?;
        let age_max = rule.age_max.filter(|max| u128::from(age_us) >= max.as_micros())?;
        Some(format!("an age of {}", humantime::format_duration(age_max)))
    }

    /// What is kept of a log beyond retention, and for whom it may not be given up.
    fn kept(&self, own: &Own<'_>) -> Option<(Place, Place, Place)> {
        let target = own.target?;
        let from = own.pins.iter().map(|pin| pin.from).reduce(lower).filter(|from| key(*from) < key(target))?;
        let firm = own.pins.iter().filter(|pin| self.refuses(pin)).map(|pin| pin.from).fold(target, lower);
        Some((from, firm, target))
    }

    fn keep_whole(&self, logs: &mut [Own<'_>], decision: &mut Decision) -> Result<(), ReadError> {
        let mut whole = 0_u64;
        for own in logs.iter() {
            let Some((from, _, target)) = self.kept(own) else { continue };
            whole = whole.saturating_add(own.ledger.between(self.log, own.name, from, target)?.bytes);
        }
        decision.bytes = whole;
        let (past, lacking) = (self.bytes_max.map_or(0, |max| whole.saturating_sub(max)), self.lacking.min(whole));
        let excess = past.max(lacking);
        if excess == 0 {
            return Ok(());
        }
        let bound = if past >= lacking {
            format!("{} bytes in all", self.bytes_max.unwrap_or(0))
        } else {
            "what is left of the disk, or of log.own_size".to_owned()
        };
        let before: Vec<Vec<Place>> = logs.iter().map(|own| own.pins.iter().map(|pin| pin.from).collect()).collect();
        let gone = self.give_up_whole(logs, excess)?;
        decision.bytes = whole.saturating_sub(gone);
        for (own, before) in logs.iter().zip(before) {
            for (pin, _) in own.pins.iter().zip(before).filter(|(pin, before)| pin.from != *before) {
                decision.bounds.insert(pin.need.site.clone(), bound.clone());
            }
        }
        if gone < past {
            // Only what must not be given up is left.
            let firm: BTreeSet<Site> = logs
                .iter()
                .flat_map(|own| {
                    own.pins
                        .iter()
                        .filter(|pin| self.refuses(pin) && own.target.is_some_and(|t| key(pin.from) < key(t)))
                })
                .map(|pin| pin.need.site.clone())
                .collect();
            for site in firm {
                let concerns = |pin: &Pin| pin.need.site == site && self.refuses(pin);
                refuse(logs, concerns, &Refusal { site: site.clone(), bound: bound.clone() }, decision);
            }
        }
        Ok(())
    }

    /// Raises the pins concerned, oldest first over all logs, until `excess` bytes less are pinned.
    fn give_up(&self, logs: &mut [Own<'_>], concerns: impl Fn(&Pin) -> bool, excess: u64) -> Result<(), ReadError> {
        let range = |own: &Own<'_>| {
            let target = own.target?;
            let from = own.pins.iter().find(|pin| concerns(pin)).map(|pin| pin.from)?;
            (key(from) < key(target)).then_some((from, target))
        };
        for (index, to) in self.oldest_first(logs, range, excess)?.0 {
            let Some(own) = logs.get_mut(index) else { continue };
            own.pins.iter_mut().filter(|pin| concerns(pin)).for_each(|pin| pin.from = higher(pin.from, to));
        }
        Ok(())
    }

    /// The same for all pins of each log that may be given up; answers how many bytes go.
    fn give_up_whole(&self, logs: &mut [Own<'_>], excess: u64) -> Result<u64, ReadError> {
        let range = |own: &Own<'_>| {
            let (from, firm, _) = self.kept(own)?;
            (key(from) < key(firm)).then_some((from, firm))
        };
        let (floors, gone) = self.oldest_first(logs, range, excess)?;
        for (index, to) in floors {
            let Some(own) = logs.get_mut(index) else { continue };
            own.pins.iter_mut().for_each(|pin| pin.from = higher(pin.from, to));
        }
        Ok(gone)
    }

    /// Up to where each log goes so that together at least `excess` bytes do, batch by batch, the oldest first; and how many do.
    fn oldest_first(
        &self,
        logs: &[Own<'_>],
        range: impl Fn(&Own<'_>) -> Option<(Place, Place)>,
        excess: u64,
    ) -> Result<(BTreeMap<usize, Place>, u64), ReadError> {
        let mut queues: BTreeMap<usize, Queue> = BTreeMap::new();
        // By the time of what comes next of each log; of what is not looked at yet, the oldest in its slice.
        let mut next: BTreeSet<(u64, usize)> = BTreeSet::new();
        for (index, own) in logs.iter().enumerate() {
            let Some((from, to)) = range(own) else { continue };
            let mut queue = Queue::default();
            own.ledger.pieces(self.log, own.name, from, to, |slice| queue.slices.push_back(slice))?;
            next.extend(queue.next_us().map(|at| (at, index)));
            queues.insert(index, queue);
        }
        let (mut floors, mut gone) = (BTreeMap::new(), 0_u64);
        while gone < excess
            && let Some((at, index)) = next.pop_first()
        {
            let (Some(own), Some(queue)) = (logs.get(index), queues.get_mut(&index)) else { continue };
            match queue.batches.pop_front() {
                Some(batch) => {
                    gone = gone.saturating_add(batch.bytes);
                    floors.insert(index, batch.end);
                }
                None => queue.look(self.log, own.name)?,
            }
            // A batch never goes before those below it in its log.
            next.extend(queue.next_us().map(|then| (then.max(at), index)));
        }
        Ok((floors, gone))
    }
}

/// What may go of one log, in its order.
#[derive(Default)]
struct Queue {
    slices: VecDeque<Slice>,
    /// Those of the slice that was looked at last.
    batches: VecDeque<Surveyed>,
}

impl Queue {
    fn next_us(&self) -> Option<u64> {
        let batch = self.batches.front().map(|batch| batch.stored_at_us);
        batch.or_else(|| self.slices.front().map(|slice| slice.oldest_us))
    }

    fn look(&mut self, log: &dyn CommitLog, name: &LogName) -> Result<(), ReadError> {
        let Some(slice) = self.slices.pop_front() else { return Ok(()) };
        log.survey(name, Some(slice.begin), &mut |batch| {
            let within = key(batch.begin) < key(slice.end);
            if within {
                self.batches.push_back(batch);
            }
            within
        })?;
        Ok(())
    }
}

/// Refuses the topics of the logs that a pin concerns.
fn refuse(logs: &[Own<'_>], concerns: impl Fn(&Pin) -> bool, refusal: &Refusal, decision: &mut Decision) {
    for own in logs.iter().filter(|own| own.pins.iter().any(&concerns)) {
        decision.refused.entry(own.name.topic.clone()).or_insert_with(|| refusal.clone());
    }
}
