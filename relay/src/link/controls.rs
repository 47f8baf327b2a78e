//! What the control queues held here say: each is read once, entry by entry, and read on when it moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use seaway_federation_proto::{
    control::Control,
    ids::{LogName, Place, Queue, Site, Topic},
    limits::BODY_BYTES_READ_MAX,
    message::decode_messages,
};

use crate::log::contract::{CommitLog, Line, Outside, Read, ReadError};

/// Bytes of batches read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Control queues read in one turn at the start.
const AT_ONCE: usize = 64;
/// Stretches read of one queue in one turn: more than any sound queue has.
const STRETCHES_MAX: usize = 16_384;

#[derive(Debug, Default)]
struct Known {
    control: Arc<Control>,
    /// Where reading goes on.
    next: Option<Place>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Controls {
    known: RwLock<BTreeMap<(Topic, Site), Known>>,
    /// Not read yet since the start.
    listed: Mutex<BTreeSet<LogName>>,
}

impl Controls {
    /// What is known of a topic of an origin.
    pub fn get(&self, topic: &Topic, origin: &Site) -> Option<Arc<Control>> {
        let known = self.known.read();
        Some(known.get(&(topic.clone(), origin.clone()))?.control.clone())
    }

    /// Puts the control queues among these logs on the list of those to be read.
    pub fn list(&self, logs: Vec<LogName>) {
        self.listed.lock().extend(logs.into_iter().filter(|log| log.queue == Queue::CONTROL));
    }

    /// Takes some of the list.
    pub fn take_listed(&self) -> Vec<LogName> {
        let mut listed = self.listed.lock();
        let some: Vec<LogName> = listed.iter().take(AT_ONCE).cloned().collect();
        some.iter().for_each(|log| _ = listed.remove(log));
        some
    }

    /// Whether more are on the list.
    pub fn has_listed(&self) -> bool {
        !self.listed.lock().is_empty()
    }

    /// Reads on in a control queue; answers with what it says now, if anything came. May wait on the disk; one caller at a time.
    ///
    /// # Errors
    /// The disk could not be read; what was read until then is kept.
    pub fn advance(&self, log: &dyn CommitLog, name: &LogName) -> Result<Option<Arc<Control>>, ReadError> {
        let key = (name.topic.clone(), name.origin.clone());
        let Some(info) = log.info(name, true) else {
            self.known.write().remove(&key);
            return Ok(None);
        };
        let (mut control, next) = {
            let known = self.known.read();
            known.get(&key).map_or((Control::default(), None), |k| ((*k.control).clone(), k.next))
        };
        let mut next = next.unwrap_or(info.begin);
        let before = control.clone();
        let result = read_on(log, name, info.begin, &mut control, &mut next);
        let changed = control != before;
        let known = Known { control: Arc::new(control), next: Some(next) };
        let control = known.control.clone();
        self.known.write().insert(key, known);
        result.map(|()| changed.then_some(control))
    }
}

/// What the control queue of a topic says, read from its begin.
///
/// # Errors
/// The disk could not be read.
pub fn read_all(log: &dyn CommitLog, topic: &Topic, origin: &Site) -> Result<Option<Arc<Control>>, ReadError> {
    let name = LogName { topic: topic.clone(), origin: origin.clone(), queue: Queue::CONTROL };
    Controls::default().advance(log, &name)
}

fn read_on(
    log: &dyn CommitLog,
    name: &LogName,
    begin: Place,
    control: &mut Control,
    next: &mut Place,
) -> Result<(), ReadError> {
    let mut restarted = false;
    for _ in 0..STRETCHES_MAX {
        match log.read(name, *next, Line::Main, READ_BYTES)? {
            Read::Batches { batches, next: after } => {
                for batch in batches {
                    // One that cannot be decoded says nothing that this build could heed.
                    let messages = decode_messages(&batch, BODY_BYTES_READ_MAX).unwrap_or_default();
                    for (offset, message) in (batch.begin().offset..).zip(messages) {
                        if offset >= next.offset {
                            control.read(Place { offset, ..batch.begin() }, &message.payload);
                        }
                    }
                    control.read_to = Some(batch.end());
                }
                *next = after;
            }
            Read::AtEnd { at, beside: false } => {
                *next = at;
                return Ok(());
            }
            Read::Outside(Outside::Hole { hole }) => next.offset = hole.to,
            Read::Outside(Outside::Damaged { to }) => next.offset = to,
            Read::Outside(Outside::Below { begin }) if begin != *next => *next = begin,
            // The log went on from elsewhere: it is read anew.
            Read::AtEnd { beside: true, .. } | Read::Outside(_) => {
                if std::mem::replace(&mut restarted, true) {
                    return Ok(());
                }
                (*control, *next) = (Control::default(), begin);
            }
        }
    }
    Ok(())
}
