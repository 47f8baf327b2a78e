//! A topic's control queue: what its entries say, one after the other.
//!
//! Queue 0 of each topic at each origin is a log like any other, copied like any other and fetched first; its messages are
//! entries about the topic. Each states in full what it is about: the settings that the origin gives to its own logs, or that
//! the topic is deleted. [`Control`] is what a reader makes of them, entry by entry; whoever has read the same entries has the
//! same one. What follows from it for the order of messages is in [`order`].
//!
//! **Settings that travel** are those of the origin for its own logs: queue count, largest message, compression, and who counts as
//! registered. Retention is each holder's own and never stands here.
//!
//! **Lives.** A deletion ends a topic's life: all that was published before lies below the ends that the deletion states, and is
//! gone everywhere, not lost. A creation after it begins the next life in the very same logs, above those ends, so no place is
//! ever used twice.

pub mod order;

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    envelope::Codec,
    ids::{Incarnation, Offset, Place, Queue, Site},
    limits::QUEUES_MAX,
    wire::store,
};

/// Most changes of a queue count that a reader keeps in mind; what came before the oldest of them counts as delivered.
pub const CHANGES_KEPT: usize = 256;

/// Where queues ended.
pub type Ends = BTreeMap<Queue, Place>;

/// Settings that an origin gives to its own logs of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Message queues are 1 to this number.
    pub queues: u16,
    /// Largest message, bytes: payload, key and headers together.
    pub message_bytes_max: u64,
    /// Compression of batches.
    pub codec: Codec,
    /// Which sites count as registered; `None`: all that ask.
    pub replicate: Option<Vec<Site>>,
}

/// A change of the queue count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueChange {
    /// The place of the entry that made it, which batches name.
    pub entry: Place,
    /// Where each queue that there ever was ended before it; one that is not named holds nothing from before.
    pub ends: Ends,
}

/// A topic's deletion at its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// The place of its entry.
    pub entry: Place,
    /// Which life of the topic it ended; the first is 0.
    pub life: u64,
    /// When, by the origin's clock: microseconds since 1970.
    pub time_us: u64,
    /// Where each queue ended: what lies below is gone.
    pub ends: Ends,
}

/// What a control queue says, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Control {
    /// The newest settings, and the place of their entry.
    pub settings: Option<(Place, Settings)>,
    /// Changes of the queue count in this life, oldest first; the newest [`CHANGES_KEPT`] of them.
    pub changes: Vec<QueueChange>,
    /// The newest deletion.
    pub deleted: Option<Deletion>,
    /// Whether settings came after it: the topic lives again.
    pub lives: bool,
    /// The end of what was read.
    pub read_to: Option<Place>,
    /// Entries that this build cannot read.
    pub unreadable: u64,
}

impl Control {
    /// Takes the next entry.
    pub fn read(&mut self, at: Place, payload: &[u8]) {
        self.read_to = Some(Place { offset: at.offset.saturating_add(1), ..at });
        let kind = store::ControlEntry::decode(payload).ok().and_then(|entry| entry.kind);
        match kind {
            Some(store::control_entry::Kind::Settings(settings)) => self.read_settings(at, &settings),
            Some(store::control_entry::Kind::Deleted(deleted)) => {
                self.deleted = Some(Deletion::from_stored(&deleted, at));
                self.lives = false;
                // The order of what is gone is nobody's concern any more.
                self.changes.clear();
            }
            None => self.unreadable = self.unreadable.saturating_add(1),
        }
    }

    fn read_settings(&mut self, at: Place, stored: &store::TopicSettings) {
        self.settings = Some((at, Settings::from_stored(stored)));
        self.lives = true;
        let Some(change) = &stored.change else { return };
        let entry = change.entry.map_or(at, place_of);
        // An entry may state again a change that was read before.
        let known = self.changes.iter().any(|known| known.entry == entry);
        let of_this_life = self.deleted.as_ref().is_none_or(|d| d.entry.offset < entry.offset);
        if known || !of_this_life {
            return;
        }
        self.changes.push(QueueChange { entry, ends: ends_of(&change.ends) });
        if self.changes.len() > CHANGES_KEPT {
            self.changes.remove(0);
        }
    }

    /// Whether the topic is deleted, as far as was read.
    pub fn is_deleted(&self) -> bool {
        self.deleted.is_some() && !self.lives
    }
}

impl Settings {
    /// As stored; numbers that make no sense are brought within their bounds.
    pub fn from_stored(stored: &store::TopicSettings) -> Self {
        let sites = |r: &store::Replicate| r.sites.iter().filter_map(|site| site.parse().ok()).collect();
        Self {
            queues: u16::try_from(stored.queues).unwrap_or(QUEUES_MAX).clamp(1, QUEUES_MAX),
            message_bytes_max: stored.message_bytes_max,
            codec: Codec::from_number(u8::try_from(stored.codec).unwrap_or(u8::MAX)),
            replicate: stored.replicate.as_ref().map(sites),
        }
    }

    /// As it is stored, without what is not a setting.
    pub fn to_stored(&self) -> store::TopicSettings {
        let names = |sites: &Vec<Site>| store::Replicate { sites: sites.iter().map(ToString::to_string).collect() };
        store::TopicSettings {
            queues: u32::from(self.queues),
            message_bytes_max: self.message_bytes_max,
            codec: u32::from(self.codec.number()),
            replicate: self.replicate.as_ref().map(names),
            ..store::TopicSettings::default()
        }
    }
}

impl Deletion {
    /// As stored; `at` where the entry does not say its own place.
    pub fn from_stored(stored: &store::TopicDeleted, at: Place) -> Self {
        Self {
            entry: stored.entry.map_or(at, place_of),
            life: stored.life,
            time_us: stored.time_us,
            ends: ends_of(&stored.ends),
        }
    }

    /// As it is stored in tables, its place said.
    pub fn to_stored(&self) -> store::TopicDeleted {
        let entry = Some(stored_place(self.entry));
        store::TopicDeleted {
            life: self.life,
            time_us: self.time_us,
            ends: stored_ends(&self.ends),
            entry,
            over: Vec::new(),
        }
    }

    /// The offset in a queue below which all is gone.
    pub fn floor(&self, queue: Queue) -> Option<Offset> {
        self.ends.get(&queue).map(|end| end.offset)
    }
}

/// The payload of an entry.
pub fn entry(kind: store::control_entry::Kind) -> Bytes {
    store::ControlEntry { kind: Some(kind) }.encode_to_vec().into()
}

/// A place as stored.
pub fn stored_place(place: Place) -> store::Place {
    let Incarnation { counter, random } = place.incarnation;
    store::Place { counter, random, offset: place.offset }
}

/// A stored place.
pub fn place_of(place: store::Place) -> Place {
    Place { incarnation: Incarnation { counter: place.counter, random: place.random }, offset: place.offset }
}

/// Ends as stored.
pub fn stored_ends(ends: &Ends) -> Vec<store::QueueEnd> {
    let end = |(queue, place): (&Queue, &Place)| store::QueueEnd {
        queue: u32::from(queue.0),
        end: Some(stored_place(*place)),
        chain: Bytes::new(),
    };
    ends.iter().map(end).collect()
}

/// Stored ends; those of queues that there cannot be are left out.
pub fn ends_of(stored: &[store::QueueEnd]) -> Ends {
    let end = |e: &store::QueueEnd| Some((Queue(u16::try_from(e.queue).ok()?), place_of(e.end?)));
    stored.iter().filter_map(end).filter(|(queue, _)| *queue != Queue::CONTROL).collect()
}

#[cfg(test)]
mod tests;
