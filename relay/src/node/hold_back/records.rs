//! What hold-back keeps in its table: `gap`, site, topic, origin and queue with a zero byte between them (value
//! `HoldBackGap`), and `heard` and a site (value `SiteHeard`); see `store.proto`.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::{
    ids::{Incarnation, LogName, Place, Queue, Site},
    wire::store,
};

use super::ledger::higher;
use crate::log::contract::{CommitLog, Entry, Table};

/// How far apart two times are that are written down, microseconds.
pub(super) const HEARD_STEP_US: u64 = 60_000_000;

/// What was given up of one log that a site needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The log.
    pub log: LogName,
    /// From here …
    pub from: Place,
    /// … up to here, along the main line.
    pub to: Place,
    /// Messages.
    pub messages: u64,
    /// Bytes of their batches.
    pub bytes: u64,
    /// When the first went, microseconds since 1970.
    pub since_us: u64,
    /// And the last.
    pub last_us: u64,
}

impl Gap {
    /// More went.
    pub(super) fn extend(&mut self, more: &Gap) {
        if self == more {
            return;
        }
        self.to = higher(self.to, more.to);
        self.messages = self.messages.saturating_add(more.messages);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.last_us = more.last_us;
    }
}

fn place(place: Place) -> store::Place {
    let Place { incarnation: Incarnation { counter, random }, offset } = place;
    store::Place { counter, random, offset }
}

fn place_from(place: Option<store::Place>) -> Option<Place> {
    let store::Place { counter, random, offset } = place?;
    Some(Place { incarnation: Incarnation { counter, random }, offset })
}

fn gap_key(site: &Site, log: &LogName) -> Bytes {
    format!("gap\0{site}\0{}\0{}\0{}", log.topic, log.origin, log.queue).into_bytes().into()
}

fn heard_key(site: &Site) -> Bytes {
    format!("heard\0{site}").into_bytes().into()
}

pub(super) fn put_gap(site: &Site, log: &LogName, gap: &Gap) -> Entry {
    let value = store::HoldBackGap {
        from: Some(place(gap.from)),
        to: Some(place(gap.to)),
        messages: gap.messages,
        bytes: gap.bytes,
        since_us: gap.since_us,
        last_us: gap.last_us,
        site: site.to_string(),
        topic: log.topic.to_string(),
        origin: log.origin.to_string(),
        queue: u32::from(log.queue.0),
    };
    Entry::Put { table: Table::HoldBack, key: gap_key(site, log), value: value.encode_to_vec().into() }
}

pub(super) fn delete_gap(site: &Site, log: &LogName) -> Entry {
    Entry::Delete { table: Table::HoldBack, key: gap_key(site, log) }
}

pub(super) fn put_heard(site: &Site, at_us: u64) -> Entry {
    let value = store::SiteHeard { site: site.to_string(), at_us };
    Entry::Put { table: Table::HoldBack, key: heard_key(site), value: value.encode_to_vec().into() }
}

fn gap_from(value: &[u8]) -> Option<((Site, LogName), Gap)> {
    let stored = store::HoldBackGap::decode(value).ok()?;
    let log = LogName {
        topic: stored.topic.parse().ok()?,
        origin: stored.origin.parse().ok()?,
        queue: Queue(u16::try_from(stored.queue).ok()?),
    };
    let gap = Gap {
        log: log.clone(),
        from: place_from(stored.from)?,
        to: place_from(stored.to)?,
        messages: stored.messages,
        bytes: stored.bytes,
        since_us: stored.since_us,
        last_us: stored.last_us,
    };
    Some(((stored.site.parse().ok()?, log), gap))
}

/// What the processes before wrote; what cannot be read is left out.
pub(super) fn restore(log: &dyn CommitLog) -> (BTreeMap<(Site, LogName), Gap>, BTreeMap<Site, u64>) {
    let gaps = log.scan(Table::HoldBack, b"gap\0").into_iter().filter_map(|(_, value)| gap_from(&value)).collect();
    let heard = log.scan(Table::HoldBack, b"heard\0").into_iter().filter_map(|(_, value)| {
        let stored = store::SiteHeard::decode(value).ok()?;
        Some((stored.site.parse().ok()?, stored.at_us))
    });
    (gaps, heard.collect())
}
