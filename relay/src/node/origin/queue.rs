//! One queue of this site's own: gathers messages into batches and knows where its log ends.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicBool},
};

use parking_lot::Mutex;
use seaway_federation_proto::{
    copies::LogInfo,
    envelope::{Batch, Chain, Codec, Placement, SealedBody},
    ids::{Incarnation, LogName, Offset, Place, Topic},
    limits::{self, BATCH_BYTES_MAX, BATCH_BYTES_TARGET, BATCH_MESSAGES_MAX, BATCH_OVERHEAD_BYTES},
    message::{BodyBuilder, Message, ProducerStamp},
};

use super::{producers::Stamped, teller::Teller};
use crate::{log::contract::CommitLog, node::PublishError};

/// A message, or several of one run, that wait for their batch to become durable.
pub(super) struct Waiting {
    pub(super) teller: Teller,
    /// Of the first; the others' sequences follow it.
    pub(super) stamp: Option<ProducerStamp>,
    /// Bytes it takes of the origin's bound.
    pub(super) charge: usize,
}

/// A batch in the making.
#[derive(Default)]
pub(super) struct Gathering {
    pub(super) builder: BodyBuilder,
    pub(super) waiting: Vec<Waiting>,
    /// Origin time of its newest message.
    pub(super) time_us: u64,
}

impl Gathering {
    fn is_full(&self) -> bool {
        self.builder.bytes() >= BATCH_BYTES_TARGET || self.builder.count() >= BATCH_MESSAGES_MAX
    }

    fn has_room(&self, bytes: usize) -> bool {
        !self.is_full() && self.builder.bytes() + bytes + BATCH_OVERHEAD_BYTES <= BATCH_BYTES_MAX
    }

    pub(super) fn stamped(&self) -> Vec<Stamped> {
        stamped(&self.waiting)
    }
}

pub(super) fn stamped(waiting: &[Waiting]) -> Vec<Stamped> {
    let mut index = 0;
    let mut all = Vec::new();
    for one in waiting {
        let count = u64::from(one.teller.count);
        if let Some(first) = one.stamp {
            all.extend((0..count).map(|n| {
                let stamp = ProducerStamp { sequence: first.sequence.saturating_add(n), ..first };
                Stamped { stamp, index: index + n }
            }));
        }
        index += count;
    }
    all
}

impl Waiting {
    /// Takes `next` in, if it goes on where this ends; else gives it back.
    fn join(&mut self, next: Waiting) -> Option<Waiting> {
        let count = u64::from(self.teller.count);
        let follows = match (self.stamp, next.stamp) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => {
                ours.sequence.checked_add(count).is_some_and(|sequence| theirs == ProducerStamp { sequence, ..ours })
            }
            _ => false,
        };
        if !follows {
            return Some(next);
        }
        let Waiting { teller, stamp, charge } = next;
        match self.teller.join(teller) {
            None => {
                self.charge += charge;
                None
            }
            Some(teller) => Some(Waiting { teller, stamp, charge }),
        }
    }
}

/// A batch with its body sealed, on its way into the commit log.
pub(super) struct Ready {
    pub(super) body: SealedBody,
    pub(super) waiting: Vec<Waiting>,
    pub(super) stamped: Vec<Stamped>,
    pub(super) time_us: u64,
}

/// A batch that the commit log has accepted.
pub(super) struct InFlight {
    pub(super) begin: Place,
    pub(super) waiting: Vec<Waiting>,
}

/// Where an own log ends, and how its next batch follows.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Place of the next message, in this start's incarnation.
    end: Place,
    /// Set until this start's first batch: what it names as the end before it.
    first: Option<Option<Place>>,
    chain: Chain,
    /// Origin time of the newest batch.
    pub(super) time_us: u64,
    /// An incarnation of this log that lies too far above this site's own to be believed; see [`limits::INCARNATION_LEAP_MAX`].
    pub(super) made_up: Option<Incarnation>,
}

impl Line {
    /// How this log goes on in a new incarnation. May wait on the disk where a log ends in a damaged range.
    ///
    /// # Errors
    /// Where its end cannot be read, or no incarnation is left above it.
    pub(super) fn open(log: &dyn CommitLog, name: &LogName, random: u64) -> Result<Line, PublishError> {
        let Some(info) = log.info(name, false) else {
            let end = Place { incarnation: Incarnation { counter: 1, random }, offset: 0 };
            return Ok(Line { end, first: Some(None), chain: Chain::default(), time_us: 0, made_up: None });
        };
        let (own, made_up) = believed_end(&info);
        let counter = above(name, own.incarnation.counter)?;
        let (previous, chain) = proven_end(log, name, &info, own)?;
        let end = Place { incarnation: Incarnation { counter, random }, offset: previous.offset };
        Ok(Line { end, first: Some(Some(previous)), chain, time_us: info.newest_origin_time_us, made_up })
    }

    /// How a log goes on of which nothing is left but where it ended.
    ///
    /// # Errors
    /// Where no incarnation is left above it.
    pub(super) fn above(name: &LogName, end: Place, chain: Chain, random: u64) -> Result<Line, PublishError> {
        let incarnation = Incarnation { counter: above(name, end.incarnation.counter)?, random };
        let first = Some(Some(end));
        Ok(Line { end: Place { incarnation, ..end }, first, chain, time_us: 0, made_up: None })
    }

    /// A restored or cloned origin meets incarnations of its own that it did not know: they come from other holders. The newest
    /// one leads the main line, so this start goes on in one above it, at its own end; what was met is a fork. One that lies too
    /// far above is not followed: nobody may drive an origin to where no incarnation is left. Answers it the first time.
    ///
    /// # Errors
    /// Where no incarnation is left above it.
    pub(super) fn go_above(
        &mut self,
        log: &dyn CommitLog,
        name: &LogName,
    ) -> Result<Option<Incarnation>, PublishError> {
        let known = self.made_up.unwrap_or(self.end.incarnation).max(self.end.incarnation);
        let Some(newest) = log.newest(name).filter(|newest| *newest > known) else { return Ok(None) };
        if newest.counter.saturating_sub(self.end.incarnation.counter) > limits::INCARNATION_LEAP_MAX {
            let told = self.made_up.replace(newest).is_some();
            return Ok(Some(newest).filter(|_| !told));
        }
        let counter = above(name, newest.counter)?;
        if self.first.is_none() {
            self.first = Some(Some(self.end));
        }
        self.end.incarnation.counter = counter;
        Ok(None)
    }

    /// Places a sealed body at the end, perhaps as one that names an entry of the control queue; [`Line::advance`] makes it so.
    ///
    /// # Errors
    /// Where the batch would be one that nobody reads.
    pub(super) fn place(
        &self,
        log: &LogName,
        after: Option<Place>,
        body: SealedBody,
        time_us: u64,
    ) -> Result<Batch, PublishError> {
        let placement = Placement {
            log,
            begin: self.end,
            first_of_incarnation: self.first.is_some(),
            previous: self.first.flatten(),
            origin_time_us: time_us.max(self.time_us),
            chain_before: self.chain,
        };
        Batch::seal_after(&placement, after, body)
            .map_err(|e| PublishError::Unavailable(format!("{log} cannot go on at {}: {e}", self.end)))
    }

    /// Whether nothing was appended since the topic's queue count changed.
    pub(super) fn is_at(&self, seam: &Seam) -> bool {
        self.end.offset <= seam.end
    }

    pub(super) fn advance(&mut self, batch: &Batch) {
        self.end = batch.end();
        self.first = None;
        self.chain = batch.chain_after();
        self.time_us = batch.header().origin_time_us;
    }
}

/// The end of the newest incarnation that this site can have made itself, going up from the oldest that is held; and one
/// that lies too far above it, if there is one.
fn believed_end(info: &LogInfo) -> (Place, Option<Incarnation>) {
    let mut own = info.incarnations.first().map_or(0, |first| first.incarnation.counter);
    for held in &info.incarnations {
        let counter = held.incarnation.counter;
        if counter.saturating_sub(own) > limits::INCARNATION_LEAP_MAX {
            break;
        }
        own = own.max(counter);
    }
    let made_up = info.incarnations.iter().rev().map(|i| i.incarnation).find(|i| i.counter > own);
    let believed = info.incarnations.iter().rev().find(|i| i.incarnation.counter == own);
    match believed {
        Some(held) if made_up.is_some() => (Place { incarnation: held.incarnation, offset: held.end }, made_up),
        _ => (info.end, None),
    }
}

/// The counter of an incarnation above one.
fn above(name: &LogName, counter: u64) -> Result<u64, PublishError> {
    if counter < limits::INCARNATION_COUNTER_MAX {
        return Ok(counter + 1);
    }
    let text = format!(
        "{name} takes nothing more: its incarnations are used up, which no origin comes to by itself; publish to another topic, and find who made one of number {counter}"
    );
    Err(PublishError::Unavailable(text))
}

/// The end of a log's main line, `place`; where that is a range that was lost to damage, the place before it, so that the chain
/// value named is one that every holder can compare.
pub(super) fn proven_end(
    log: &dyn CommitLog,
    name: &LogName,
    info: &LogInfo,
    mut place: Place,
) -> Result<(Place, Chain), PublishError> {
    let known = info.incarnations.iter().find(|i| i.incarnation == place.incarnation && i.end == place.offset);
    if let Some(chain) = known.and_then(|i| i.chain_at_end) {
        return Ok((place, chain));
    }
    while let Some(hole) = info.holes.iter().find(|h| h.incarnation == place.incarnation && h.to == place.offset) {
        place.offset = hole.from;
    }
    let found = log.chain_at(name, place).map_err(|e| PublishError::Unavailable(e.to_string()))?;
    let text = || format!("the end of {name} at {place} cannot be read; run `seaway log verify` on the stopped node");
    Ok((place, found.ok_or_else(|| PublishError::Unavailable(text()))?))
}

#[derive(Default)]
pub(super) struct QueueState {
    /// Batches in the making, oldest first; all but the last are full.
    gathering: VecDeque<Gathering>,
    /// Somebody seals and submits this queue's next batch at this moment.
    sealing: bool,
    /// Sealed, but the commit log had no room; and whether it has said since that there is.
    pub(super) blocked: Option<Ready>,
    pub(super) woken: bool,
    /// Accepted by the commit log, oldest first.
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) line: Option<Line>,
    /// What the next batch names: the entry of a change of the queue count after which it is the first.
    pub(super) after: Option<Place>,
    /// Nothing more is taken: the topic is changed or deleted.
    pub(super) closed: bool,
}

/// What [`OwnQueue::take_work`] found to do.
pub(super) enum Work {
    Seal(Gathering),
    Submit(Ready),
}

impl QueueState {
    /// Adds a message; its time never goes back within the log.
    pub(super) fn push(&mut self, mut message: Message, bytes: usize, waiting: Waiting) {
        let newest = self.gathering.back().map_or(0, |g| g.time_us).max(self.line.as_ref().map_or(0, |l| l.time_us));
        message.time_us = message.time_us.max(newest);
        if !self.gathering.back().is_some_and(|g| g.has_room(bytes)) {
            self.gathering.push_back(Gathering::default());
        }
        if let Some(last) = self.gathering.back_mut() {
            last.time_us = message.time_us;
            last.builder.push(&message);
            let apart = match last.waiting.last_mut() {
                Some(before) => before.join(waiting),
                None => Some(waiting),
            };
            last.waiting.extend(apart);
        }
    }

    /// Whether a batch may go now: the log is idle, or the batch is as large as it gets.
    pub(super) fn is_due(&self) -> bool {
        let front = self.gathering.front();
        self.blocked.is_none()
            && front.is_some_and(|f| self.in_flight.is_empty() || self.gathering.len() > 1 || f.is_full())
    }

    /// Bytes of the batch that would go next.
    pub(super) fn due_bytes(&self) -> usize {
        self.gathering.front().map_or(0, |g| g.builder.bytes())
    }

    /// Takes everything that is not in the commit log yet, for failing it.
    pub(super) fn take_unsubmitted(&mut self) -> Vec<Waiting> {
        self.gathering.drain(..).flat_map(|g| g.waiting).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.gathering.is_empty() && self.in_flight.is_empty() && self.blocked.is_none() && !self.sealing
    }

    pub(super) fn end_sealing(&mut self) {
        self.sealing = false;
    }
}

/// One queue; shared by publishers and the sealing thread.
pub(super) struct OwnQueue {
    pub(super) log: LogName,
    pub(super) codec: Codec,
    pub(super) state: Mutex<QueueState>,
    /// Whether it stands in the origin's list of queues to look after.
    pub(super) listed: AtomicBool,
    /// The newest change of the topic's queue count.
    pub(super) seam: Option<Seam>,
}

/// A change of the queue count, as one queue sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seam {
    /// The place of its entry.
    pub(super) entry: Place,
    /// Where the queue ended before it; 0 where there was none.
    pub(super) end: Offset,
}

impl OwnQueue {
    pub(super) fn new(log: LogName, codec: Codec, seam: Option<Seam>) -> Arc<Self> {
        Arc::new(Self { log, codec, state: Mutex::default(), listed: AtomicBool::new(false), seam })
    }

    pub(super) fn topic(&self) -> &Topic {
        &self.log.topic
    }

    /// Takes the right to seal and submit, and the next thing to do, if there is one.
    pub(super) fn take_work(&self) -> Option<Work> {
        let mut state = self.state.lock();
        if state.sealing {
            return None;
        }
        let work = match state.blocked.take() {
            Some(ready) if state.woken => {
                state.woken = false;
                Work::Submit(ready)
            }
            Some(ready) => {
                state.blocked = Some(ready);
                return None;
            }
            None if state.is_due() => Work::Seal(state.gathering.pop_front()?),
            None => return None,
        };
        state.sealing = true;
        Some(work)
    }
}
