//! Reads one log for a subscription: from the cursor's steps to messages, gaps and what was passed by.

use std::{collections::VecDeque, sync::Arc};

use seaway_federation_proto::{
    copies::HoleKind,
    envelope::Batch,
    ids::{LogName, Offset, Place},
    limits::{BATCH_OVERHEAD_BYTES, MESSAGE_BYTES_CEILING},
    message::{Message, decode_messages},
};
use seaway_relay::log::contract::{Line, Outside, Read, ReadError};

use super::{
    cursor::{Cursor, Step},
    filter::Filter,
};
use crate::engine::Engine;

/// Largest decompressed body, bytes: one message of the greatest size.
const BODY_BYTES_MAX: usize = MESSAGE_BYTES_CEILING + BATCH_OVERHEAD_BYTES;
/// Steps that one filling takes at most before others get their turn.
const STEPS_MAX: usize = 16;

/// What comes out of a log, in order.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// A message that is meant.
    Message {
        /// Its place.
        place: Place,
        /// The message.
        message: Message,
        /// Out of order: of a fork or a filled hole.
        late: bool,
    },
    /// Messages from here to an offset that are not meant.
    Passed(Place, Offset),
    /// A range that will not come (`settled`), or not now.
    Gap {
        /// First place missing.
        from: Place,
        /// Where reading goes on.
        to: Place,
        /// In words.
        reason: String,
        /// Whether it will never come; otherwise it comes late.
        settled: bool,
    },
    /// The main line goes on in another incarnation.
    Hop {
        /// Left here.
        from: Place,
        /// Goes on here.
        to: Place,
    },
    /// A fork begins to be read here.
    Side(Place),
}

/// What filling a feed came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// There are items.
    Items,
    /// Nothing until the log moves.
    Waiting,
    /// The end that was set is reached.
    Done,
}

/// One log as a subscription reads it.
#[derive(Debug)]
pub(crate) struct Feed {
    log: LogName,
    filter: Arc<Filter>,
    cursor: Cursor,
    items: VecDeque<Item>,
    /// Encoded bytes behind `items`, about.
    bytes: usize,
    end: Option<Place>,
}

impl Feed {
    /// A feed that stands at `cursor`; with `end` it is done there.
    pub(crate) fn new(log: LogName, filter: Arc<Filter>, cursor: Cursor, end: Option<Place>) -> Self {
        Self { log, filter, cursor, items: VecDeque::new(), bytes: 0, end }
    }

    /// The log.
    pub(crate) fn log(&self) -> &LogName {
        &self.log
    }

    /// Whether items are at hand.
    pub(crate) fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    /// Bytes held in items, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The next item, left in place.
    pub(crate) fn peek(&self) -> Option<&Item> {
        self.items.front()
    }

    /// Takes the next item.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front();
        if self.items.is_empty() {
            self.bytes = 0;
        }
        item
    }

    /// Goes on from another cursor; what is at hand is forgotten.
    pub(crate) fn restart(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.items.clear();
        self.bytes = 0;
    }

    /// The log changed.
    pub(crate) fn wake(&mut self) {
        self.cursor.wake();
    }

    fn is_done(&self) -> bool {
        let at = self.cursor.at();
        self.end.is_some_and(|end| {
            at.incarnation > end.incarnation || (at.incarnation == end.incarnation && at.offset >= end.offset)
        })
    }

    /// Reads on, about `bytes_max` bytes, unless items are at hand.
    pub(crate) async fn fill<E: Engine>(&mut self, engine: &E, bytes_max: usize) -> Result<Filled, ReadError> {
        for _ in 0..STEPS_MAX {
            if self.has_items() {
                return Ok(Filled::Items);
            }
            let Some(info) = engine.info(&self.log) else { return Ok(Filled::Waiting) };
            if self.is_done() {
                return Ok(Filled::Done);
            }
            match self.cursor.plan(&info) {
                Step::Wait => return Ok(Filled::Waiting),
                Step::Hop { from, to } => self.items.push_back(Item::Hop { from, to }),
                Step::Side(place) => self.items.push_back(Item::Side(place)),
                Step::Gap { from, to, reason } => {
                    self.items.push_back(Item::Gap { from, to, reason: reason.into(), settled: true });
                }
                Step::Read { from, until, late } => {
                    let read = engine.read(&self.log, from, Line::Incarnation, bytes_max).await?;
                    if !self.take(from, until, late, read) {
                        return Ok(Filled::Waiting);
                    }
                }
            }
        }
        Ok(if self.has_items() { Filled::Items } else { Filled::Waiting })
    }

    /// Takes what a read found; `false` when there is nothing until the log moves.
    fn take(&mut self, from: Place, until: Offset, late: bool, read: Read) -> bool {
        match read {
            Read::Batches { batches, .. } => self.take_batches(from, until, late, &batches),
            Read::AtEnd { .. } => false,
            Read::Outside(outside) => self.take_outside(from, until, late, outside),
        }
    }

    fn take_batches(&mut self, from: Place, until: Offset, late: bool, batches: &[Batch]) -> bool {
        let until =
            self.end.filter(|e| !late && e.incarnation == from.incarnation).map_or(until, |e| e.offset.min(until));
        let mut next = from.offset;
        for batch in batches {
            let (begin, end) = (batch.begin(), batch.end_offset());
            if begin.incarnation != from.incarnation || begin.offset > next || next >= until {
                break;
            }
            if end > next {
                self.take_batch(batch, next, end.min(until), late);
                next = end.min(until);
            }
        }
        if next == from.offset {
            return false;
        }
        self.cursor.advance(Place { offset: next, ..from }, late);
        true
    }

    /// Takes the messages of a batch from `from` to `to`.
    fn take_batch(&mut self, batch: &Batch, from: Offset, to: Offset, late: bool) {
        let at = |offset| Place { offset, ..batch.begin() };
        if !self.filter.may_hold(batch.header()) {
            return self.pass(at(from), to);
        }
        let messages = match decode_messages(batch, BODY_BYTES_MAX) {
            Ok(messages) => messages,
            Err(error) => {
                let reason = format!("{error}");
                tracing::warn!(log = %self.log, place = %at(from), %error, "a batch cannot be delivered");
                return self.items.push_back(Item::Gap { from: at(from), to: at(to), reason, settled: false });
            }
        };
        self.bytes = self.bytes.saturating_add(batch.len());
        for (offset, message) in (batch.begin().offset..).zip(messages) {
            if offset < from || offset >= to {
                continue;
            }
            if self.filter.matches(&message.path) {
                self.items.push_back(Item::Message { place: at(offset), message, late });
            } else {
                self.pass(at(offset), offset.saturating_add(1));
            }
        }
    }

    fn pass(&mut self, from: Place, to: Offset) {
        if let Some(Item::Passed(begin, end)) = self.items.back_mut()
            && begin.incarnation == from.incarnation
            && *end == from.offset
        {
            *end = to;
            return;
        }
        self.items.push_back(Item::Passed(from, to));
    }

    fn take_outside(&mut self, from: Place, until: Offset, late: bool, outside: Outside) -> bool {
        let (to, reason, settled) = match outside {
            Outside::Hole { hole } => match hole.kind {
                HoleKind::Pending => (hole.to, "it is not here at present; it will be delivered late", false),
                HoleKind::NotWanted => (hole.to, "this site did not want it", true),
                HoleKind::Lost => (hole.to, "it is lost: no reachable site holds it", true),
            },
            Outside::Damaged { to } => {
                (to, "it is damaged on this disk; it will be delivered late once fetched again", false)
            }
            Outside::Below { begin } if begin.incarnation == from.incarnation => {
                (begin.offset, "retention removed it before it was read", true)
            }
            Outside::Below { .. } | Outside::NoCopy | Outside::Above { .. } | Outside::UnknownIncarnation => {
                return false;
            }
        };
        let to = to.min(until);
        if to <= from.offset {
            return false;
        }
        let gap = Item::Gap { from, to: Place { offset: to, ..from }, reason: reason.into(), settled };
        if settled {
            self.cursor.advance(Place { offset: to, ..from }, late);
        } else if !self.cursor.pass_over(from, to, late) {
            return false;
        }
        self.items.push_back(gap);
        true
    }
}
