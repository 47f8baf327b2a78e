//! How what commands set of limits is stored: in table Node under "limit", 0, kind, 0, of whom, 0, direction, as a `StoredLimit`.

use std::num::NonZeroU64;

use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::wire::store::StoredLimit;

use super::{LimitSettings, OnExceed, Subject};
use crate::log::contract::{Entry, Table};

/// Of all keys.
pub(in crate::node) const PREFIX: &[u8] = b"limit\0";

fn key(subject: &Subject) -> Bytes {
    let direction = subject.direction().map_or("", |direction| direction.name());
    let text = format!("{}\0{}\0{direction}", subject.kind(), subject.of());
    [PREFIX, text.as_bytes()].concat().into()
}

pub(super) fn entry(subject: &Subject, settings: Option<&LimitSettings>) -> Entry {
    let key = key(subject);
    match settings {
        Some(settings) => Entry::Put { table: Table::Node, key, value: encode(settings) },
        None => Entry::Delete { table: Table::Node, key },
    }
}

fn encode(settings: &LimitSettings) -> Bytes {
    let per_s = |rate: Option<Option<NonZeroU64>>| rate.map(|rate| rate.map_or(0, NonZeroU64::get));
    let stored = StoredLimit {
        messages_per_s: per_s(settings.messages_per_s),
        messages_burst: settings.messages_burst.map(NonZeroU64::get),
        bytes_per_s: per_s(settings.bytes_per_s),
        bytes_burst: settings.bytes_burst.map(NonZeroU64::get),
        refuse: settings.on_exceed.map(|on_exceed| on_exceed == OnExceed::Refuse),
    };
    stored.encode_to_vec().into()
}

pub(super) fn decode(key: &[u8], value: &Bytes) -> Option<(Subject, LimitSettings)> {
    let text = std::str::from_utf8(key.strip_prefix(PREFIX)?).ok()?;
    let mut parts = text.split('\0');
    let subject = Subject::parse(parts.next()?, parts.next()?, parts.next()?).ok()?;
    let stored = StoredLimit::decode(value.clone()).ok()?;
    let on_exceed = |refuse| if refuse { OnExceed::Refuse } else { OnExceed::Delay };
    let settings = LimitSettings {
        messages_per_s: stored.messages_per_s.map(NonZeroU64::new),
        messages_burst: stored.messages_burst.and_then(NonZeroU64::new),
        bytes_per_s: stored.bytes_per_s.map(NonZeroU64::new),
        bytes_burst: stored.bytes_burst.and_then(NonZeroU64::new),
        on_exceed: stored.refuse.map(on_exceed),
    };
    Some((subject, settings))
}
