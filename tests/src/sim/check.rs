//! The checkers: what must hold of a federation's disks, whatever the workload did.
//!
//! They read the commit logs through their contract and the published messages from [`Truth`], and share no code with the
//! sessions, the replication machine or the workload. Numbers are those of the design's invariants.

use std::collections::{BTreeMap, BTreeSet};

use seaway_federation_proto::{
    envelope::Batch,
    ids::{Incarnation, LogName, Offset, Place, Site},
    message::decode_messages,
};
use seaway_relay::log::contract::{CommitLog, Line, Outside, Read};

use super::truth::{MessageId, Truth};

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
    /// Its commit log.
    pub log: &'a dyn CommitLog,
}

type Batches = BTreeMap<(Incarnation, Offset), Batch>;

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
        Self { copies }
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
                if times > 1 {
                    found.push(violation(3, format!("{node} holds message {id:?} {times} times")));
                }
                if !truth.published(id) {
                    found.push(violation(2, format!("{node} holds message {id:?}, which was never published")));
                }
            }
        }
    }

    /// Invariant 1: what has a receipt is durable at its origin and at every site that the receipt names, at the place it states, unless
    /// that disk was lost or set back since.
    pub fn check_receipts(&self, disks: &[Disk<'_>], truth: &Truth, found: &mut Vec<Violation>) {
        for receipt in truth.receipts() {
            let sites: BTreeSet<&Site> = receipt.sites.iter().chain([&receipt.log.origin]).collect();
            for disk in disks.iter().filter(|disk| disk.edge && sites.contains(&disk.site)) {
                if truth.disk_lost_since(&disk.name, receipt.number) {
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

    /// Invariants 5 and 6 after the faults stopped: every edge holds every message that some node still holds.
    pub fn check_complete(&self, disks: &[Disk<'_>], found: &mut Vec<Violation>) {
        let mut everywhere: BTreeMap<MessageId, String> = BTreeMap::new();
        let held: BTreeMap<&str, BTreeMap<MessageId, u32>> =
            disks.iter().map(|disk| (disk.name.as_str(), self.messages(&disk.name, found))).collect();
        for (node, messages) in &held {
            for id in messages.keys() {
                everywhere.entry(*id).or_insert_with(|| (*node).to_owned());
            }
        }
        for disk in disks.iter().filter(|disk| disk.edge) {
            let here = held.get(disk.name.as_str());
            let missing: Vec<_> =
                everywhere.iter().filter(|(id, _)| !here.is_some_and(|here| here.contains_key(id))).collect();
            if let Some((id, holder)) = missing.first() {
                found.push(violation(
                    5,
                    format!(
                        "{} lacks {} messages that still exist, first {id:?}, held by {holder}",
                        disk.name,
                        missing.len()
                    ),
                ));
            }
        }
    }
}
