//! The checkers: what must hold of a federation's disks, whatever the workload did.
//!
//! They read the commit logs through their contract and the published messages from [`Truth`], and share no code with the
//! sessions, the replication machine or the workload. Numbers are those of the design's invariants.

use std::collections::{BTreeMap, BTreeSet};

use seaway_federation_proto::{
    copies::{HoleKind, IncarnationInfo, LogInfo},
    envelope::Batch,
    ids::{Incarnation, LogName, Offset, Place, Site},
    message::decode_messages,
};
use seaway_relay::log::contract::{CommitLog, Line, Outside, Read};

use super::{
    topics::Topics,
    truth::{MessageId, Truth},
};

/// A broken invariant: which, where, and what was seen.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The invariant's number in the design.
    pub invariant: u8,
    /// What was seen.
    pub what: String,
}

/// One node's disk, by the node's name.
pub struct Disk<'a> {
    /// For messages.
    pub name: String,
    /// The site.
    pub site: Site,
    /// Whether the node is its site's edge broker.
    pub edge: bool,
    /// Whether it wants a topic.
    pub wants: Box<dyn Fn(&str) -> bool + 'a>,
    /// Its commit log.
    pub log: &'a dyn CommitLog,
}

/// The batches that a node holds of one log.
pub type Batches = BTreeMap<(Incarnation, Offset), Batch>;

/// All batches that a node holds of one log, and invariant 2's second half: nothing is lacking between begin and end but stated holes.
fn read_copy(disk: &Disk<'_>, log: &LogName, found: &mut Vec<Violation>) -> Batches {
    let mut batches = Batches::new();
    let Some(info) = disk.log.info(log, true) else { return batches };
    for held in &info.incarnations {
        let mut at = Place { incarnation: held.incarnation, offset: held.begin };
        let mut chain = None;
        while at.offset < held.end {
            match disk.log.read(log, at, Line::Incarnation, 1 << 20) {
                Ok(Read::Batches { batches: read, .. }) => {
                    for batch in read {
                        let lacking = batch.begin().offset > at.offset || batch.begin().incarnation != at.incarnation;
                        if lacking {
                            found.push(violation(
                                2,
                                format!("{}: {log} lacks {at}..{} and states no hole", disk.name, batch.begin()),
                            ));
                            return batches;
                        }
                        if chain.is_some_and(|chain| chain != batch.header().chain_before) {
                            found.push(violation(
                                2,
                                format!("{}: {log} breaks its chain at {}", disk.name, batch.begin()),
                            ));
                        }
                        chain = Some(batch.chain_after());
                        at.offset = batch.end_offset();
                        batches.insert((batch.begin().incarnation, batch.begin().offset), batch);
                    }
                }
                Ok(Read::Outside(Outside::Hole { hole })) => {
                    chain = None;
                    at.offset = hole.to;
                }
                other => {
                    found.push(violation(
                        2,
                        format!("{}: {log} holds {at}..{} but reading there gives {other:?}", disk.name, held.end),
                    ));
                    return batches;
                }
            }
        }
    }
    batches
}

fn violation(invariant: u8, what: String) -> Violation {
    Violation { invariant, what }
}

/// Everything on all disks, read once.
pub struct Holdings {
    copies: BTreeMap<String, BTreeMap<LogName, Batches>>,
    shapes: BTreeMap<String, BTreeMap<LogName, LogInfo>>,
    topics: Topics,
}

impl Holdings {
    /// Reads all disks; violations of invariant 2 within one copy go to `found`.
    pub fn read(disks: &[Disk<'_>], found: &mut Vec<Violation>) -> Self {
        let copies = disks
            .iter()
            .map(|disk| {
                let logs = disk.log.logs().into_iter().map(|log| (log.clone(), read_copy(disk, &log, found))).collect();
                (disk.name.clone(), logs)
            })
            .collect();
        let shape = |disk: &Disk<'_>, log: LogName| Some((log.clone(), disk.log.info(&log, true)?));
        let shapes = disks
            .iter()
            .map(|disk| (disk.name.clone(), disk.log.logs().into_iter().filter_map(|log| shape(disk, log)).collect()))
            .collect();
        Self { copies, shapes, topics: Topics::read(disks) }
    }

    /// What each node holds.
    pub fn copies(&self) -> &BTreeMap<String, BTreeMap<LogName, Batches>> {
        &self.copies
    }

    /// What the origins' control queues say.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Invariant 2: two copies are equal wherever both hold.
    pub fn check_equal(&self, found: &mut Vec<Violation>) {
        let mut first: BTreeMap<(&LogName, Incarnation, Offset), (&str, &Batch)> = BTreeMap::new();
        for (node, logs) in &self.copies {
            for (log, batches) in logs {
                for ((incarnation, offset), batch) in batches {
                    let (other, known) = first.entry((log, *incarnation, *offset)).or_insert((node, batch));
                    if known.head() != batch.head() || known.body() != batch.body() {
                        found.push(violation(
                            2,
                            format!("{log} differs at {incarnation}:{offset} between {other} and {node}"),
                        ));
                    }
                }
            }
        }
        for (node, logs) in &self.copies {
            for (log, batches) in logs {
                let mut end: Option<(Incarnation, Offset)> = None;
                for ((incarnation, offset), batch) in batches {
                    if end.is_some_and(|(before, end)| before == *incarnation && end > *offset) {
                        found.push(violation(2, format!("{node}: batches of {log} overlap at {incarnation}:{offset}")));
                    }
                    end = Some((*incarnation, batch.end_offset()));
                }
            }
        }
    }

    /// Messages by id and how often each is held, for one node.
    fn messages(&self, node: &str, found: &mut Vec<Violation>) -> BTreeMap<MessageId, u32> {
        let mut held = BTreeMap::new();
        for batch in self.copies.get(node).into_iter().flatten().flat_map(|(_, batches)| batches.values()) {
            match decode_messages(batch, 64 << 20) {
                Ok(messages) => {
                    for message in messages {
                        match MessageId::from_payload(&message.payload) {
                            Some(id) => *held.entry(id).or_insert(0) += 1,
                            None if batch.header().log.queue.0 == 0 => {}
                            None => found.push(violation(2, format!("{node} holds a message that nobody published"))),
                        }
                    }
                }
                Err(error) => found.push(violation(2, format!("{node} holds a batch that cannot be read: {error}"))),
            }
        }
        held
    }

    /// Invariant 3 (first half): a message is in a site's log at most once. And nothing is held that was never published.
    pub fn check_once(&self, truth: &Truth, found: &mut Vec<Violation>) {
        for node in self.copies.keys() {
            for (id, times) in self.messages(node, found) {
                if times > 1 && !truth.is_excused(id) {
                    found.push(violation(3, format!("{node} holds message {id:?} {times} times")));
                }
                if !truth.published(id) {
                    found.push(violation(2, format!("{node} holds message {id:?}, which was never published")));
                }
            }
        }
    }

    /// Invariant 1: what has a receipt is durable at its origin and at every site that the receipt names, at the place it states, unless
    /// a disk that held it there was lost or set back.
    pub fn check_receipts(&self, disks: &[Disk<'_>], truth: &Truth, found: &mut Vec<Violation>) {
        for receipt in truth.receipts() {
            let sites: BTreeSet<&Site> = receipt.sites.iter().chain([&receipt.log.origin]).collect();
            for disk in disks.iter().filter(|disk| disk.edge && sites.contains(&disk.site)) {
                let gone = self.is_below_begin(&disk.name, &receipt.log, receipt.place)
                    && truth.was_trimmed(&receipt.log)
                    || disk.site == receipt.log.origin && truth.was_trimmed_away(&receipt.log, receipt.place)
                    || truth.was_damaged(&disk.name, &receipt.log, receipt.place)
                    || self.topics.is_deleted(&receipt.log, receipt.place);
                if gone || truth.was_on_lost_disk(&disk.name, &receipt.log, receipt.place) {
                    continue;
                }
                let held = self.copies.get(&disk.name).and_then(|logs| logs.get(&receipt.log)).and_then(|batches| {
                    let (_, batch) = batches.range(..=(receipt.place.incarnation, receipt.place.offset)).next_back()?;
                    let index = receipt.place.offset.checked_sub(batch.begin().offset)?;
                    let same = batch.begin().incarnation == receipt.place.incarnation;
                    let messages = decode_messages(batch, 64 << 20).ok().filter(|_| same)?;
                    MessageId::from_payload(&messages.get(usize::try_from(index).ok()?)?.payload)
                });
                if held != Some(receipt.id) {
                    found.push(violation(
                        1,
                        format!(
                            "{} does not hold message {:?} of {} at {} although a receipt says so (found {held:?})",
                            disk.name, receipt.id, receipt.log, receipt.place
                        ),
                    ));
                }
            }
        }
    }

    /// A hash over everything held: equal runs have equal ones.
    pub fn fingerprint(&self) -> u64 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for (node, logs) in &self.copies {
            for (log, batches) in logs {
                for batch in batches.values() {
                    let text = format!("{node} {log} {} {:?}", batch.begin(), batch.chain_after());
                    for byte in text.bytes() {
                        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
                    }
                }
            }
        }
        hash
    }

    /// Whether a place lies below what a node holds, of the log or of that incarnation.
    fn is_below_begin(&self, node: &str, log: &LogName, place: Place) -> bool {
        let Some(info) = self.shapes.get(node).and_then(|logs| logs.get(log)) else { return false };
        match info.incarnations.iter().find(|i| i.incarnation == place.incarnation) {
            Some(held) => place.offset < held.begin,
            None => place.incarnation < info.begin.incarnation,
        }
    }

    /// Whether a fork can no longer be joined to what a node holds: retention took away where it began, or that is lost, and the
    /// origin began the log anew after it lost its disk. What the main line runs through is jumped to.
    fn is_severed(&self, node: &str, holder: &str, log: &LogName, incarnation: Incarnation) -> bool {
        let held = |node: &str, incarnation: Incarnation| {
            let info = self.shapes.get(node).and_then(|logs| logs.get(log));
            info.and_then(|i| i.incarnations.iter().find(|i| i.incarnation == incarnation)).cloned()
        };
        let end = self.shapes.get(holder).and_then(|logs| logs.get(log)).map(|info| info.end.incarnation);
        // By the ways that others can go too: where the holder jumped, nothing joins what is above.
        let joined = |i: &IncarnationInfo| i.previous.filter(|_| !i.jumped);
        let back = |from| std::iter::successors(held(holder, from), |i| held(holder, joined(i)?.incarnation));
        if end.is_some_and(|end| back(end).any(|i| i.incarnation == incarnation)) {
            return false;
        }
        let line: Vec<_> = back(incarnation).collect();
        line.iter().all(|i| held(node, i.incarnation).is_none())
            && line.last().is_some_and(|i| {
                let first = Place { incarnation: i.incarnation, offset: i.begin };
                match joined(i) {
                    None => i.begin > 0 || self.states_lost(holder, log, first),
                    Some(before) => held(node, before.incarnation).is_none(),
                }
            })
    }

    fn states_lost(&self, node: &str, log: &LogName, place: Place) -> bool {
        let info = self.shapes.get(node).and_then(|logs| logs.get(log));
        info.is_some_and(|info| {
            info.holes.iter().any(|h| {
                h.kind == HoleKind::Lost && h.incarnation == place.incarnation && (h.from..h.to).contains(&place.offset)
            })
        })
    }

    /// Invariant 5 after the faults stopped: every edge holds of every log that it wants, and of its own, whatever some node
    /// still holds. What it states as lost is final (invariant 6 is looked at when it does), and what retention took away at
    /// the origin is not owed to those who begin later.
    pub fn check_complete(&self, disks: &[Disk<'_>], truth: &Truth, found: &mut Vec<Violation>) {
        let mut everywhere: BTreeMap<(&LogName, Incarnation, Offset), Vec<&str>> = BTreeMap::new();
        for (node, logs) in &self.copies {
            for (log, batches) in logs {
                for (incarnation, offset) in batches.keys() {
                    everywhere.entry((log, *incarnation, *offset)).or_default().push(node);
                }
            }
        }
        // Sites catch up with the origin: what its retention took away is owed to nobody, and that takes all older incarnations,
        // the ends of forks too.
        let origins: BTreeMap<&Site, &str> = disks.iter().filter(|d| d.edge).map(|d| (&d.site, &*d.name)).collect();
        for disk in disks.iter().filter(|disk| disk.edge) {
            let here = self.copies.get(&disk.name);
            let lacks = |log: &LogName, incarnation: Incarnation, offset: Offset, holders: &[&str]| {
                let place = Place { incarnation, offset };
                let wanted = log.origin == disk.site || (disk.wants)(log.topic.as_str());
                wanted
                    && !self.topics.is_deleted(log, place)
                    && !here.and_then(|logs| logs.get(log)).is_some_and(|b| b.contains_key(&(incarnation, offset)))
                    && !self.states_lost(&disk.name, log, place)
                    && !holders.iter().all(|holder| self.is_severed(&disk.name, holder, log, incarnation))
                    && !(truth.was_trimmed(log)
                        && (self.is_below_begin(&disk.name, log, place)
                            || origins.get(&log.origin).is_some_and(|o| self.is_below_begin(o, log, place))))
            };
            let missing: Vec<_> =
                everywhere.iter().filter(|((log, inc, offset), holders)| lacks(log, *inc, *offset, holders)).collect();
            if let Some(((log, incarnation, offset), holders)) = missing.first() {
                found.push(violation(
                    5,
                    format!(
                        "{} lacks {} batches that still exist, first {incarnation}:{offset} of {log}, held by {holders:?}",
                        disk.name,
                        missing.len()
                    ),
                ));
            }
        }
    }

    /// Invariant 3 again, for retries: however often a message was handed over, its receipts name one place.
    pub fn check_retries(&self, truth: &Truth, found: &mut Vec<Violation>) {
        let mut first: BTreeMap<MessageId, (&LogName, Place)> = BTreeMap::new();
        for receipt in truth.receipts() {
            let (log, place) = *first.entry(receipt.id).or_insert((&receipt.log, receipt.place));
            if (log, place) != (&receipt.log, receipt.place) && !truth.is_excused(receipt.id) {
                found.push(violation(
                    3,
                    format!(
                        "message {:?} has receipts for {log} {place} and for {} {}",
                        receipt.id, receipt.log, receipt.place
                    ),
                ));
            }
        }
    }
}
