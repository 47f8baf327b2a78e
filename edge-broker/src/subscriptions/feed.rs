//! Reads one log for a subscription: from the cursor's steps to messages, gaps and what was passed by.

use std::{borrow::Cow, collections::VecDeque, sync::Arc};

use seaway_federation_proto::{
    control::order,
    copies::HoleKind,
    envelope::Batch,
    ids::{LogName, Offset, Place, Queue},
    limits::BODY_BYTES_READ_MAX,
    message::{Message, decode_messages},
};
use seaway_relay::log::contract::{Line, Outside, Read, ReadError};

use super::{
    cursor::{Cursor, Step},
    filter::Filter,
    order::Gate,
};
use crate::{api::GapReason, engine::Engine, grpc::convert};

/// Largest decompressed body, bytes: one message of the greatest size.
const BODY_BYTES_MAX: usize = BODY_BYTES_READ_MAX;
/// Steps that one filling takes at most before others get their turn.
const STEPS_MAX: usize = 16;

/// Why a range does not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    /// For programs.
    pub(crate) why: GapReason,
    /// For people.
    pub(crate) text: Cow<'static, str>,
}

impl Reason {
    /// Both.
    pub(crate) fn new(why: GapReason, text: impl Into<Cow<'static, str>>) -> Self {
        Self { why, text: text.into() }
    }
}

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
        /// Why.
        reason: Reason,
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
    /// Nothing until other queues of the topic were delivered: the queue count changed.
    Held,
    /// The end that was set is reached.
    Done,
}

/// What a batch has for the reader: its messages from one offset to another.
#[derive(Debug)]
struct Stretch {
    batch: Batch,
    from: Offset,
    to: Offset,
    late: bool,
}

/// Counted for each item on top of its content.
const ITEM_BYTES: usize = 256;

/// One log as a subscription reads it.
#[derive(Debug)]
pub(crate) struct Feed {
    log: LogName,
    filter: Arc<Filter>,
    cursor: Cursor,
    items: VecDeque<Item>,
    /// Bytes of the messages in `items`, as they were decoded.
    decoded_bytes: usize,
    /// Read and not decoded yet: a batch may decode to many times its size, so each is decoded only when it has its turn.
    read: VecDeque<Stretch>,
    /// Encoded bytes of `read`.
    read_bytes: usize,
    end: Option<Place>,
    /// A batch names an entry of the control queue that has not come yet.
    blocked: bool,
}

impl Feed {
    /// A feed that stands at `cursor`; with `end` it is done there.
    pub(crate) fn new(log: LogName, filter: Arc<Filter>, cursor: Cursor, end: Option<Place>) -> Self {
        let (items, read) = (VecDeque::new(), VecDeque::new());
        Self { log, filter, cursor, items, decoded_bytes: 0, read, read_bytes: 0, end, blocked: false }
    }

    /// The log.
    pub(crate) fn log(&self) -> &LogName {
        &self.log
    }

    /// Whether items are at hand.
    pub(crate) fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    /// Whether it has not read up to a place.
    pub(crate) fn is_below(&self, end: Place) -> bool {
        let at = self.cursor.at();
        at.incarnation < end.incarnation || at.incarnation == end.incarnation && at.offset < end.offset
    }

    /// Bytes held: of messages as they were decoded, and of batches that are not yet.
    pub(crate) fn bytes(&self) -> usize {
        self.decoded_bytes.saturating_add(self.read_bytes)
    }

    /// The next item, left in place.
    pub(crate) fn peek(&self) -> Option<&Item> {
        self.items.front()
    }

    /// Takes the next item.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.decoded_bytes = self.decoded_bytes.saturating_sub(item_bytes(&item));
        Some(item)
    }

    /// Goes on from another cursor; what is at hand is forgotten.
    pub(crate) fn restart(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.items.clear();
        self.read.clear();
        (self.decoded_bytes, self.read_bytes) = (0, 0);
    }

    /// The log changed.
    pub(crate) fn wake(&mut self) {
        self.cursor.wake();
    }

    /// Whether all below a place of the main line was given out, or never will be.
    pub(crate) fn is_settled(&self, end: Place) -> bool {
        let of_item = |item: &Item| match item {
            Item::Message { late: true, .. } | Item::Side(_) => None,
            Item::Message { place, .. } => Some(*place),
            Item::Passed(from, _) | Item::Gap { from, .. } | Item::Hop { from, .. } => Some(*from),
        };
        let of_stretch = |s: &Stretch| (!s.late).then(|| Place { offset: s.from, ..s.batch.begin() });
        let next = self.items.iter().find_map(of_item).or_else(|| self.read.iter().find_map(of_stretch));
        let nothing_left = next.is_none() && self.is_done();
        nothing_left || order::is_past(next.unwrap_or(self.cursor.at()), end)
    }

    fn is_done(&self) -> bool {
        let at = self.cursor.at();
        self.end.is_some_and(|end| {
            at.incarnation > end.incarnation || (at.incarnation == end.incarnation && at.offset >= end.offset)
        })
    }

    /// Nothing more comes although the end that was set is not reached: the range up to it, which is given up then.
    pub(crate) fn give_up(&mut self) -> Option<(Place, Place)> {
        let end = self.end.filter(|_| !self.is_done())?;
        let from = self.cursor.at();
        self.end = Some(from);
        Some((from, end))
    }

    /// Reads on, about `bytes_max` encoded bytes, unless items are at hand. Decodes one batch at a time.
    pub(crate) async fn fill<E: Engine>(
        &mut self,
        engine: &E,
        bytes_max: usize,
        gate: &Gate,
    ) -> Result<Filled, ReadError> {
        for _ in 0..STEPS_MAX {
            while !self.has_items()
                && let Some(stretch) = self.read.pop_front()
            {
                self.read_bytes = self.read_bytes.saturating_sub(stretch.batch.len());
                self.take_batch(&stretch);
            }
            if self.has_items() {
                return Ok(Filled::Items);
            }
            if self.is_done() {
                return Ok(Filled::Done);
            }
            let Some(info) = engine.info(&self.log) else {
                if !self.pass_deleted(engine) {
                    return Ok(Filled::Waiting);
                }
                continue;
            };
            match self.cursor.plan(&info) {
                Step::Wait => return Ok(Filled::Waiting),
                Step::Hop { from, to } => self.items.push_back(Item::Hop { from, to }),
                Step::Side(place) => self.items.push_back(Item::Side(place)),
                Step::Gap { from, to, reason } => {
                    let reason = match self.deleted_to(engine, from) {
                        Some(end) if to.offset <= end.offset => deleted(),
                        _ => Reason::new(GapReason::Retention, reason),
                    };
                    self.items.push_back(Item::Gap { from, to, reason, settled: true });
                }
                Step::Read { from, until, late } => {
                    let clipped = if late { Some(until) } else { gate.clip(from, until) };
                    let Some(until) = clipped else { return Ok(Filled::Held) };
                    let read = engine.read(&self.log, from, Line::Incarnation, bytes_max).await?;
                    let removed = matches!(read, Read::Outside(Outside::Below { .. } | Outside::NoCopy));
                    if removed && !late && self.pass_deleted(engine) {
                        continue;
                    }
                    if !self.take(from, until, late, read, gate) {
                        return Ok(if std::mem::take(&mut self.blocked) { Filled::Held } else { Filled::Waiting });
                    }
                }
            }
        }
        Ok(if self.has_items() || !self.read.is_empty() { Filled::Items } else { Filled::Waiting })
    }

    /// Up to where all from a place on was deleted with its topic.
    fn deleted_to<E: Engine>(&self, engine: &E, from: Place) -> Option<Place> {
        if self.log.queue == Queue::CONTROL {
            return None;
        }
        let control = engine.control(&self.log.topic, &self.log.origin)?;
        let end = control.deleted.as_ref()?.ends.get(&self.log.queue).copied()?;
        (from.offset < end.offset).then_some(end)
    }

    /// What was deleted before it was read is told, and passed; `false` where there is nothing of that.
    fn pass_deleted<E: Engine>(&mut self, engine: &E) -> bool {
        let from = self.cursor.at();
        let Some(to) = self.deleted_to(engine, from) else { return false };
        self.cursor.go_to(to);
        self.items.push_back(Item::Gap { from, to, reason: deleted(), settled: true });
        true
    }

    /// Takes what a read found; `false` when there is nothing until the log moves.
    fn take(&mut self, from: Place, until: Offset, late: bool, read: Read, gate: &Gate) -> bool {
        match read {
            Read::Batches { batches, .. } => self.take_batches(from, until, late, &batches, gate),
            Read::AtEnd { .. } => false,
            Read::Outside(outside) => self.take_outside(from, until, late, outside),
        }
    }

    fn take_batches(&mut self, from: Place, until: Offset, late: bool, batches: &[Batch], gate: &Gate) -> bool {
        self.blocked = false;
        let until =
            self.end.filter(|e| !late && e.incarnation == from.incarnation).map_or(until, |e| e.offset.min(until));
        let mut next = from.offset;
        for batch in batches {
            let (begin, end) = (batch.begin(), batch.end_offset());
            if begin.incarnation != from.incarnation || begin.offset > next || next >= until {
                break;
            }
            if !late && batch.header().after.is_some_and(|entry| !gate.knows(entry)) {
                self.blocked = true;
                break;
            }
            if end > next {
                let to = end.min(until);
                self.read_bytes = self.read_bytes.saturating_add(batch.len());
                self.read.push_back(Stretch { batch: batch.clone(), from: next, to, late });
                next = to;
            }
        }
        if next == from.offset {
            return false;
        }
        self.cursor.advance(Place { offset: next, ..from }, late);
        true
    }

    /// Decodes what a batch has for the reader.
    fn take_batch(&mut self, stretch: &Stretch) {
        let Stretch { batch, from, to, late } = stretch;
        let (from, to, late) = (*from, *to, *late);
        let at = |offset| Place { offset, ..batch.begin() };
        if !self.filter.may_hold(batch.header()) {
            return self.pass(at(from), to);
        }
        let messages = match decode_messages(batch, BODY_BYTES_MAX) {
            Ok(messages) => messages,
            Err(error) => {
                let reason = Reason::new(GapReason::Unreadable, error.to_string());
                tracing::warn!(log = %self.log, place = %at(from), %error, "a batch cannot be delivered");
                return self.items.push_back(Item::Gap { from: at(from), to: at(to), reason, settled: false });
            }
        };
        for (offset, message) in (batch.begin().offset..).zip(messages) {
            if offset < from || offset >= to {
                continue;
            }
            if self.filter.matches(&message.path) {
                let item = Item::Message { place: at(offset), message, late };
                self.decoded_bytes = self.decoded_bytes.saturating_add(item_bytes(&item));
                self.items.push_back(item);
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
        let (to, why, reason, settled) = match outside {
            Outside::Hole { hole } => match hole.kind {
                HoleKind::Pending => {
                    (hole.to, GapReason::Pending, "it is not here at present; it will be delivered late", false)
                }
                HoleKind::NotWanted => (hole.to, GapReason::NotWanted, "this site did not want it", true),
                HoleKind::Lost => (hole.to, GapReason::Lost, "it is lost: no reachable site holds it", true),
            },
            Outside::Damaged { to } => {
                let text = "it is damaged on this disk; it will be delivered late once fetched again";
                (to, GapReason::Damaged, text, false)
            }
            Outside::Below { begin } if begin.incarnation == from.incarnation => {
                (begin.offset, GapReason::Retention, "retention removed it before it was read", true)
            }
            Outside::Below { .. } | Outside::NoCopy | Outside::Above { .. } | Outside::UnknownIncarnation => {
                return false;
            }
        };
        let to = to.min(until);
        if to <= from.offset {
            return false;
        }
        let gap = Item::Gap { from, to: Place { offset: to, ..from }, reason: Reason::new(why, reason), settled };
        if settled {
            self.cursor.advance(Place { offset: to, ..from }, late);
        } else if !self.cursor.pass_over(from, to, late) {
            return false;
        }
        self.items.push_back(gap);
        true
    }
}

fn deleted() -> Reason {
    Reason::new(GapReason::Deleted, "its topic was deleted at its origin before it was read")
}

/// What an item counts: a message shares its batch's decoded body, so all of it together counts about that.
fn item_bytes(item: &Item) -> usize {
    match item {
        Item::Message { message, .. } => {
            convert::message_bytes(message).saturating_add(message.path.as_str().len()).saturating_add(ITEM_BYTES)
        }
        Item::Passed(..) | Item::Gap { .. } | Item::Hop { .. } | Item::Side(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{limits::READ_BYTES, testing::TestEngine};

    /// Batches that decode to a thousand times their size: what is held in memory is what counts.
    #[tokio::test]
    async fn what_is_decoded_counts_and_is_decoded_one_batch_at_a_time() {
        const PAYLOAD: usize = 512 * 1024;
        let engine = TestEngine::new();
        let log = TestEngine::log_name("orders", "east");
        for _ in 0..40 {
            engine.append_compressed(&log, &"x".repeat(PAYLOAD));
        }
        let info = engine.info(&log).unwrap();
        let filter = Arc::new(Filter { pattern: "#".parse().unwrap(), origins: Vec::new() });
        let mut feed = Feed::new(log, filter, Cursor::new(info.begin, BTreeMap::new()), Some(info.end));
        let mut messages = 0;
        while feed.fill(&engine, READ_BYTES, &Gate::open()).await.unwrap() == Filled::Items {
            let held: usize = feed
                .items
                .iter()
                .map(|item| if let Item::Message { message, .. } = item { message.payload.len() } else { 0 })
                .sum();
            assert!(held <= PAYLOAD, "{held} bytes decoded at once");
            assert!(feed.bytes() >= held, "{held} bytes held, {} counted", feed.bytes());
            while feed.pop().is_some_and(|item| matches!(item, Item::Message { .. })) {
                messages += 1;
            }
        }
        assert_eq!((messages, feed.bytes()), (40, 0));
    }
}
