//! What must hold of topics that are changed and deleted: what was deleted is nowhere and stays so, and a key's messages stand in
//! their order through every change of the queue count.
//!
//! Read from the control queues on the origins' disks, by the entries alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use seaway_federation_proto::{
    control::{Control, order::is_past},
    ids::{LogName, Offset, Place, Queue, Site, Topic},
    message::decode_messages,
};
use seaway_relay::link::controls;

use super::{
    check::{Batches, Disk, Holdings, Violation},
    truth::{MessageId, Truth},
};

/// What the origins' control queues say.
#[derive(Default)]
pub struct Topics(BTreeMap<(Site, Topic), Control>);

impl Topics {
    /// Reads the control queues of every origin on its own disk.
    pub fn read(disks: &[Disk<'_>]) -> Self {
        let mut topics = BTreeMap::new();
        for disk in disks.iter().filter(|disk| disk.edge) {
            for log in disk.log.logs() {
                if log.queue == Queue::CONTROL
                    && log.origin == disk.site
                    && let Ok(Some(control)) = controls::read_all(disk.log, &log.topic, &log.origin)
                {
                    topics.insert((log.origin, log.topic), (*control).clone());
                }
            }
        }
        Self(topics)
    }

    fn of(&self, log: &LogName) -> Option<&Control> {
        self.0.get(&(log.origin.clone(), log.topic.clone()))
    }

    /// The offset below which all of a log was deleted.
    pub fn floor(&self, log: &LogName) -> Offset {
        let deleted = self.of(log).and_then(|control| control.deleted.as_ref());
        deleted.and_then(|d| d.floor(log.queue)).unwrap_or(0)
    }

    /// Whether what stands at a place was deleted.
    pub fn is_deleted(&self, log: &LogName, place: Place) -> bool {
        place.offset < self.floor(log)
    }

    /// How many changes of the queue count stand before a place.
    fn changes_before(&self, log: &LogName, place: Place) -> usize {
        let changes = self.of(log).map(|control| control.changes.as_slice()).unwrap_or_default();
        changes.iter().filter(|c| c.ends.get(&log.queue).is_none_or(|end| is_past(place, *end))).count()
    }
}

/// Nothing that was deleted is held by anybody.
pub fn check_deleted(holdings: &Holdings, found: &mut Vec<Violation>) {
    for (node, logs) in holdings.copies() {
        for (log, batches) in logs {
            let floor = holdings.topics().floor(log);
            if let Some((incarnation, offset)) = batches.keys().find(|(_, offset)| *offset < floor) {
                found.push(Violation {
                    invariant: 6,
                    what: format!("{node} holds {incarnation}:{offset} of {log}, which was deleted below {floor}"),
                });
            }
        }
    }
}

/// On every node each key's messages stand in the order in which they were published, by queue count and place alone.
pub fn check_keys(holdings: &Holdings, truth: &Truth, found: &mut Vec<Violation>) {
    type Sent = (usize, Queue, Place, MessageId);
    for (node, logs) in holdings.copies() {
        let mut keys: BTreeMap<(&Site, &Topic, Bytes), Vec<Sent>> = BTreeMap::new();
        for (log, batches) in logs.iter().filter(|(log, _)| log.queue != Queue::CONTROL) {
            for (key, place, id) in messages(batches) {
                // One that was tried again may stand behind what came after its first try.
                if truth.was_tried_once(id) {
                    let sent = (holdings.topics().changes_before(log, place), log.queue, place, id);
                    keys.entry((&log.origin, &log.topic, key)).or_default().push(sent);
                }
            }
        }
        for ((origin, topic, key), mut sent) in keys {
            sent.sort_by_key(|(changes, queue, place, _)| (*changes, *queue, place.offset));
            let wrong = sent.windows(2).find(|two| match two {
                [a, b] => (a.0 == b.0 && a.1 != b.1) || a.3 >= b.3,
                _ => false,
            });
            if let Some(wrong) = wrong {
                found.push(Violation {
                    invariant: 3,
                    what: format!("{node}: key {key:?} of {topic} from {origin} is out of its order: {wrong:?}"),
                });
            }
        }
    }
}

fn messages(batches: &Batches) -> Vec<(Bytes, Place, MessageId)> {
    let mut all = Vec::new();
    for batch in batches.values() {
        let begin = batch.begin();
        for (offset, message) in (begin.offset..).zip(decode_messages(batch, 64 << 20).unwrap_or_default()) {
            if let (Some(key), Some(id)) = (message.key, MessageId::from_payload(&message.payload)) {
                all.push((key, Place { offset, ..begin }, id));
            }
        }
    }
    all
}
