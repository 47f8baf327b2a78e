//! What really happened in a run: messages published, tried again, receipts given, disks lost, logs trimmed. Written by the
//! workload and the faults, read by the checkers.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use seaway_federation_proto::{
    copies::LogInfo,
    ids::{LogName, Offset, Place, Site},
};

/// A number that only one message of a run carries, at the start of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

const MAGIC: &[u8; 4] = b"sim\0";

impl MessageId {
    /// A payload of `len` bytes (at least 12) that carries this id.
    pub fn payload(self, len: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(len.max(12));
        bytes.put_slice(MAGIC);
        bytes.put_u64_le(self.0);
        while bytes.len() < len {
            bytes.put_u8((self.0 as u8).wrapping_add(bytes.len() as u8));
        }
        bytes.freeze()
    }

    /// The id in a payload, if [`MessageId::payload`] made it and all of it is intact.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        let number = payload.strip_prefix(MAGIC)?.first_chunk::<8>()?;
        let id = Self(u64::from_le_bytes(*number));
        (id.payload(payload.len()) == payload).then_some(id)
    }
}

/// A receipt that a publisher was given.
#[derive(Debug, Clone)]
pub struct GivenReceipt {
    /// The message.
    pub id: MessageId,
    /// Where it says the message is.
    pub log: LogName,
    /// See above.
    pub place: Place,
    /// Other sites that it names.
    pub sites: Vec<Site>,
}

/// How often a message was handed to its origin, and what that origin had been through at the first and the last time.
#[derive(Debug, Clone, Copy)]
struct Tries {
    count: u32,
    losses_first: u64,
    losses_last: u64,
}

/// A batch that a node's disk could not read any more: log, and the range of offsets from a place on.
type Damaged = (String, LogName, Place, Offset);

fn holds(info: &LogInfo, place: Place) -> bool {
    let covers = |from: Offset, to: Offset| (from..to).contains(&place.offset);
    info.incarnations.iter().any(|i| i.incarnation == place.incarnation && covers(i.begin, i.end))
        && !info.holes.iter().any(|h| h.incarnation == place.incarnation && covers(h.from, h.to))
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Truth {
    published: BTreeMap<MessageId, Tries>,
    receipts: Vec<GivenReceipt>,
    lost: Vec<(String, LogName, LogInfo)>,
    losses: BTreeMap<String, u64>,
    damaged: Vec<Damaged>,
    /// Each log that its origin trimmed, how it stood before, and its begin from then on.
    trimmed: Vec<(LogName, LogInfo, Place)>,
}

impl Truth {
    /// A fresh id, counted as published from now on.
    pub fn publish(&mut self, node: &str) -> MessageId {
        let id = MessageId(self.published.len() as u64 + 1);
        let losses = self.losses_of(node);
        self.published.insert(id, Tries { count: 1, losses_first: losses, losses_last: losses });
        id
    }

    /// Notes that a message was handed to its origin once more.
    pub fn try_again(&mut self, node: &str, id: MessageId) {
        let losses = self.losses_of(node);
        if let Some(tries) = self.published.get_mut(&id) {
            tries.count += 1;
            tries.losses_last = losses;
        }
    }

    /// Whether a message was handed to its origin just once.
    pub fn was_tried_once(&self, id: MessageId) -> bool {
        self.published.get(&id).is_some_and(|tries| tries.count == 1)
    }

    /// Messages that were handed to their origins more than once.
    pub fn tried_again(&self) -> usize {
        self.published.values().filter(|tries| tries.count > 1).count()
    }

    /// Whether the origin's disk was lost or set back between the first and the last try: then it cannot know the message again.
    pub fn is_excused(&self, id: MessageId) -> bool {
        self.published.get(&id).is_some_and(|tries| tries.losses_first != tries.losses_last)
    }

    /// How often a node's disk was lost or set back.
    pub fn losses_of(&self, node: &str) -> u64 {
        self.losses.get(node).copied().unwrap_or(0)
    }

    /// Whether a message was handed to an origin.
    pub fn published(&self, id: MessageId) -> bool {
        self.published.contains_key(&id)
    }

    /// How many messages were handed to origins.
    pub fn published_count(&self) -> usize {
        self.published.len()
    }

    /// Notes a receipt.
    pub fn receipt(&mut self, id: MessageId, log: LogName, place: Place, sites: Vec<Site>) {
        self.receipts.push(GivenReceipt { id, log, place, sites });
    }

    /// All receipts.
    pub fn receipts(&self) -> &[GivenReceipt] {
        &self.receipts
    }

    /// Notes that a node's disk was lost, or set back to an old copy, just now, and how its logs stood before, as far as durable.
    pub fn lose_disk(&mut self, node: &str, held: Vec<(LogName, LogInfo)>) {
        self.lost.extend(held.into_iter().map(|(log, info)| (node.to_owned(), log, info)));
        *self.losses.entry(node.to_owned()).or_default() += 1;
    }

    /// Notes that a node's disk can no longer read a batch.
    pub fn damage(&mut self, node: &str, log: LogName, from: Place, to: Offset) {
        self.damaged.push((node.to_owned(), log, from, to));
    }

    /// Whether the node's disk could once not read a message that it held.
    pub fn was_damaged(&self, node: &str, log: &LogName, place: Place) -> bool {
        self.damaged.iter().any(|(at, of, from, to)| {
            at == node
                && of == log
                && from.incarnation == place.incarnation
                && (from.offset..*to).contains(&place.offset)
        })
    }

    /// Notes that a log's origin took away its older part, up to a place.
    pub fn trim(&mut self, log: LogName, before: LogInfo, to: Place) {
        self.trimmed.push((log, before, to));
    }

    /// Whether the log's origin ever did.
    pub fn was_trimmed(&self, log: &LogName) -> bool {
        self.trimmed.iter().any(|(of, _, _)| of == log)
    }

    /// Whether the log's origin took away this place, which it held: whatever became of the log since, it is owed to nobody there.
    pub fn was_trimmed_away(&self, log: &LogName, place: Place) -> bool {
        self.trimmed.iter().any(|(of, before, to)| {
            of == log
                && holds(before, place)
                && (place.incarnation < to.incarnation
                    || place.incarnation == to.incarnation && place.offset < to.offset)
        })
    }

    /// Whether a disk that the node lost held the place: then what a receipt says of it was true, even if the news of the loss
    /// had not reached the origin when it was given.
    pub fn was_on_lost_disk(&self, node: &str, log: &LogName, place: Place) -> bool {
        self.lost.iter().any(|(at, of, info)| at == node && of == log && holds(info, place))
    }
}
