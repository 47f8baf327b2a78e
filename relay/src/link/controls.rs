//! What the control queues held here say: each is read once, entry by entry, and read on when it moves. One that could not be read is
//! read again after a while; what it says is told once it was read to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
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
/// A queue that could not be read is read again after this long.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// Stretches read of one queue in one turn: more than any sound queue has.
const STRETCHES_MAX: usize = 16_384;

#[derive(Debug, Default)]
struct Known {
    control: Arc<Control>,
    /// Where reading goes on.
    next: Option<Place>,
    /// What was answered last: a read that fails half-way leaves more read than told.
    told: Arc<Control>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Controls {
    known: RwLock<BTreeMap<(Topic, Site), Known>>,
    /// Not read yet since the start.
    listed: Mutex<BTreeSet<LogName>>,
    /// Those that could not be read, and when they are read again: at most as many as there are logs.
    failed: Mutex<BTreeMap<LogName, Duration>>,
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

    /// Takes some of the list, and of those that are to be read again by now.
    pub fn take_listed(&self, now: Duration) -> Vec<LogName> {
        let mut listed = self.listed.lock();
        for (log, at) in self.failed.lock().iter_mut().filter(|(_, at)| **at <= now) {
            *at = now.saturating_add(READ_AGAIN);
            listed.insert(log.clone());
        }
        let some: Vec<LogName> = listed.iter().take(AT_ONCE).cloned().collect();
        some.iter().for_each(|log| _ = listed.remove(log));
        some
    }

    /// Whether more are on the list.
    pub fn has_listed(&self) -> bool {
        !self.listed.lock().is_empty()
    }

    /// When one that could not be read is read again.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.failed.lock().values().min().copied()
    }

    /// A queue was read to its end; whether that had failed before.
    pub fn was_read(&self, name: &LogName) -> bool {
        self.failed.lock().remove(name).is_some()
    }

    /// A queue could not be read: it comes on the list again after a while.
    pub fn was_not_read(&self, now: Duration, name: &LogName) {
        self.failed.lock().insert(name.clone(), now.saturating_add(READ_AGAIN));
    }

    /// Reads on in a control queue; answers with what it says now, if that is not what was answered last. May wait on the disk; one
    /// caller at a time.
    ///
    /// # Errors
    /// The disk could not be read; what was read until then is kept, and answered once the rest was read too.
    pub fn advance(&self, log: &dyn CommitLog, name: &LogName) -> Result<Option<Arc<Control>>, ReadError> {
        let key = (name.topic.clone(), name.origin.clone());
        let Some(info) = log.info(name, true) else {
            self.known.write().remove(&key);
            return Ok(None);
        };
        let (mut control, next, told) = {
            let known = self.known.read();
            let known = known.get(&key).map(|k| ((*k.control).clone(), k.next, k.told.clone()));
            known.unwrap_or_default()
        };
        let mut next = next.unwrap_or(info.begin);
        let result = read_on(log, name, info.begin, &mut control, &mut next);
        let control = Arc::new(control);
        let news = (result.is_ok() && control != told).then(|| control.clone());
        let known = Known { control, next: Some(next), told: news.clone().unwrap_or(told) };
        self.known.write().insert(key, known);
        result.map(|()| news)
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

#[cfg(test)]
#[path = "controls_tests.rs"]
mod tests;
