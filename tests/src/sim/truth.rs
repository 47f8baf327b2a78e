//! What really happened in a run: messages published, receipts given, disks lost. Written by the workload, read by the checkers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use seaway_federation_proto::ids::{LogName, Place, Site};

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
    /// In the order of the run.
    pub number: u64,
    /// The message.
    pub id: MessageId,
    /// Where it says the message is.
    pub log: LogName,
    /// See above.
    pub place: Place,
    /// Other sites that it names.
    pub sites: Vec<Site>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Truth {
    published: BTreeSet<MessageId>,
    receipts: Vec<GivenReceipt>,
    lost: BTreeMap<String, u64>,
}

impl Truth {
    /// A fresh id, counted as published from now on.
    pub fn publish(&mut self) -> MessageId {
        let id = MessageId(self.published.len() as u64 + 1);
        self.published.insert(id);
        id
    }

    /// Whether a message was handed to an origin.
    pub fn published(&self, id: MessageId) -> bool {
        self.published.contains(&id)
    }

    /// How many messages were handed to origins.
    pub fn published_count(&self) -> usize {
        self.published.len()
    }

    /// Notes a receipt.
    pub fn receipt(&mut self, id: MessageId, log: LogName, place: Place, sites: Vec<Site>) {
        let number = self.receipts.len() as u64;
        self.receipts.push(GivenReceipt { number, id, log, place, sites });
    }

    /// All receipts.
    pub fn receipts(&self) -> &[GivenReceipt] {
        &self.receipts
    }

    /// Notes that a node's disk was lost, or set back to an old copy, just now.
    pub fn lose_disk(&mut self, node: &str) {
        self.lost.insert(node.to_owned(), self.receipts.len() as u64);
    }

    /// Whether the node's disk was lost after that receipt.
    pub fn disk_lost_since(&self, node: &str, receipt: u64) -> bool {
        self.lost.get(node).is_some_and(|at| receipt < *at)
    }
}
