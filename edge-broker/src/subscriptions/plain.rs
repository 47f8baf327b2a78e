//! A plain subscriber: reads matching logs from where it asked, as far as its credit goes; nothing is remembered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seaway_federation_proto::ids::{LogName, Place, Queue};
use seaway_relay::node::{LogEvent, OneWayMessage};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    credit::Credit,
    feed::{Feed, Filled, Item, Reason},
    filter::Filter,
    order::Held,
    replies::{NoRoom, Replies},
    standing::{Standing, Waits},
    start::{StartAt, from_begin},
};
use crate::{
    api::{
        GapReason, SubscribeReply,
        subscribe_reply::{AtEnd, Confirmed, Gap, Kind, Messages},
        subscribe_request,
    },
    engine::Engine,
    grpc::{convert, errors},
    limits::{READ_BYTES, SUBSCRIBE_REPLY_BYTES},
};

/// Sentences that a subscriber is told when it opens.
const NOTES_MAX: usize = 16;
/// Logs that are looked at for whether anything waits.
const LOGS_LOOKED_AT_MAX: usize = 16;
/// How often logs that are held back are looked at, whatever happens.
const HELD_TICK: Duration = Duration::from_secs(1);

/// What a subscriber says after opening.
pub(crate) type Requests = mpsc::Receiver<Result<subscribe_request::Kind, Status>>;

/// What a plain subscriber asked for.
#[derive(Debug)]
pub(crate) struct PlainOpen {
    /// Which messages.
    pub(crate) filter: Filter,
    /// From where.
    pub(crate) start: StartAt,
    /// First credit.
    pub(crate) credit: Credit,
    /// End when all that was there at the start was sent.
    pub(crate) until_end: bool,
    /// One-way messages too.
    pub(crate) one_way: bool,
}

/// A plain subscriber while it is connected.
pub(crate) struct Plain<E: Engine> {
    engine: E,
    filter: Arc<Filter>,
    start: StartAt,
    credit: Credit,
    until_end: bool,
    feeds: BTreeMap<LogName, Feed>,
    /// Logs that may have something to read, and the one to begin with.
    ready: BTreeSet<LogName>,
    turn: Option<LogName>,
    held: Held,
    events: broadcast::Receiver<LogEvent>,
    one_way: Option<mpsc::Receiver<OneWayMessage>>,
    replies: Replies,
    standing: Arc<Standing>,
}

impl<E: Engine> Plain<E> {
    /// Opens the subscription: finds the logs and where to begin in each.
    pub(crate) async fn open(
        engine: E,
        open: PlainOpen,
        replies: Replies,
        standing: Arc<Standing>,
    ) -> Result<Self, Status> {
        let events = engine.watch(); // before the logs are listed, so that none is missed between
        let one_way = open.one_way.then(|| engine.subscribe_one_way(open.filter.pattern.clone()));
        let mut plain = Self {
            engine,
            filter: Arc::new(open.filter),
            start: open.start,
            credit: open.credit,
            until_end: open.until_end,
            feeds: BTreeMap::new(),
            ready: BTreeSet::new(),
            turn: None,
            held: Held::default(),
            events,
            one_way,
            replies,
            standing,
        };
        for log in plain.engine.logs() {
            plain.begin(log).await?;
        }
        Ok(plain)
    }

    async fn begin(&mut self, log: LogName) -> Result<(), Status> {
        if !self.filter.covers(&log) {
            return Ok(());
        }
        let Some(info) = self.engine.info(&log) else { return Ok(()) };
        let cursor = self.start.resolve(&self.engine, &log, &info).await;
        let cursor = cursor.map_err(|error| errors::unavailable(error.to_string()))?;
        let end = self.until_end.then_some(info.end);
        self.insert(Feed::new(log, self.filter.clone(), cursor, end));
        Ok(())
    }

    fn insert(&mut self, feed: Feed) {
        self.ready.insert(feed.log().clone());
        self.feeds.insert(feed.log().clone(), feed);
    }

    /// What the subscriber should know of where it begins.
    pub(crate) fn notes(&self) -> Vec<String> {
        let StartAt::Positions(positions) = &self.start else { return Vec::new() };
        let note = |(log, place): (&LogName, &Place)| {
            let Some(info) = self.engine.info(log) else {
                return Some(format!("{log} is not held here; should it come, it is read from its begin"));
            };
            match info.incarnations.iter().find(|i| i.incarnation == place.incarnation) {
                Some(held) if place.offset > held.end => Some(format!(
                    "{log} ends at {} here, before {place}: nothing of it comes before that is reached",
                    info.end
                )),
                Some(_) => None,
                None if place.incarnation > info.end.incarnation => Some(format!(
                    "{log} ends at {} here, before {place}: nothing of it comes before that is reached",
                    info.end
                )),
                None => Some(format!(
                    "{log} does not have the place {place} here (any more); it is read from where it goes on after that"
                )),
            }
        };
        positions.iter().filter(|(log, _)| self.filter.covers(log)).filter_map(note).take(NOTES_MAX).collect()
    }

    /// Serves until the subscriber goes, is at the end, or the node drains.
    pub(crate) async fn run(mut self, mut requests: Requests, drain: CancellationToken) {
        let mut requests_open = true;
        let mut held_tick = tokio::time::interval(HELD_TICK);
        held_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let replies = self.replies.clone();
        let end = loop {
            if self.until_end && self.ready.is_empty() && self.held.is_empty() {
                self.reply(Kind::AtEnd(AtEnd {})).await;
                break None;
            }
            self.note_waiting();
            let can_send = self.credit.is_left() && !self.ready.is_empty();
            let can_send_one_way = self.credit.is_left() && self.one_way.is_some();
            tokio::select! {
                biased;
                () = drain.cancelled() => break Some(errors::draining()),
                () = replies.closed() => break None,
                request = requests.recv(), if requests_open => match request {
                    Some(Ok(request)) => if let Err(status) = self.handle(request).await { break Some(status) },
                    Some(Err(status)) => break Some(status),
                    None => requests_open = false,
                },
                event = next_event(&mut self.events) => self.handle_event(event),
                _ = held_tick.tick(), if !self.held.is_empty() => self.ready.extend(self.held.all()),
                message = next_one_way(&mut self.one_way), if can_send_one_way => self.send_one_way(message).await,
                () = std::future::ready(()), if can_send => if let Err(status) = self.send_some().await { break Some(status) },
            }
        };
        if let Some(status) = end {
            replies.send(Err(status)).await;
        }
    }

    async fn handle(&mut self, request: subscribe_request::Kind) -> Result<(), Status> {
        match request {
            subscribe_request::Kind::Credit(credit) => self.credit.add(credit.messages.into(), credit.bytes),
            subscribe_request::Kind::Confirm(confirm) => {
                let refused =
                    "a subscriber without a group has nothing to confirm; open the subscription with a group".into();
                self.reply(Kind::Confirmed(Confirmed { number: confirm.number, refused })).await;
            }
            subscribe_request::Kind::Open(_) => return Err(errors::invalid("the subscription is open already")),
        }
        Ok(())
    }

    fn handle_event(&mut self, event: Option<LogEvent>) {
        match event {
            Some(event) => self.handle_log(event.log),
            None => {
                for log in self.engine.logs() {
                    self.handle_log(log);
                }
            }
        }
    }

    fn handle_log(&mut self, log: LogName) {
        if log.queue == Queue::CONTROL {
            return self.ready.extend(self.held.behind(&log));
        }
        if let Some(feed) = self.feeds.get_mut(&log) {
            if !self.until_end {
                feed.wake();
                self.ready.insert(log);
            }
            return;
        }
        if self.until_end || !self.filter.covers(&log) {
            return;
        }
        // A log that appears later is read from its begin: all of it is new here.
        if let Some(info) = self.engine.info(&log) {
            self.insert(Feed::new(log, self.filter.clone(), from_begin(&info), None));
        }
    }

    async fn reply(&self, kind: Kind) {
        self.replies.send(Ok(SubscribeReply { kind: Some(kind) })).await;
    }

    async fn send_one_way(&mut self, message: Option<OneWayMessage>) {
        let Some(message) = message else {
            self.one_way = None;
            return;
        };
        if self.filter.is_from(&message.origin) && self.filter.matches(&message.message.path) {
            self.credit.take(convert::message_bytes(&message.message));
            let messages = vec![convert::one_way_message(message)];
            self.reply(Kind::Messages(Messages { messages })).await;
        }
    }

    /// Tells status whether messages wait for credit.
    fn note_waiting(&self) {
        let waits = !self.credit.is_left() && (self.standing.is_waited_for() || self.is_behind());
        self.standing.set(waits.then_some(Waits::Credit));
    }

    /// Whether something can be read that was not sent.
    fn is_behind(&self) -> bool {
        let ready = self.ready.iter().filter_map(|log| self.feeds.get(log)).take(LOGS_LOOKED_AT_MAX);
        let mut ends =
            ready.map(|feed| feed.bytes() > 0 || self.engine.info(feed.log()).is_some_and(|i| feed.is_below(i.end)));
        ends.any(|behind| behind)
    }

    /// Sends one reply from the log whose turn it is.
    async fn send_some(&mut self) -> Result<(), Status> {
        let permit = match self.replies.try_reserve() {
            Ok(permit) => permit,
            Err(NoRoom::Closed) => return Ok(()),
            Err(NoRoom::Full) => {
                self.standing.set(Some(Waits::Reading));
                let Some(permit) = self.replies.clone().reserve().await else { return Ok(()) };
                permit
            }
        };
        let Some(log) = self.next_turn() else { return Ok(()) };
        let done = |other: &LogName, end| Some(self.feeds.get(other)?.is_settled(end));
        let gate = self.held.gate(&self.engine, &log, self.until_end, done);
        let Some(feed) = self.feeds.get_mut(&log) else {
            self.ready.remove(&log);
            return Ok(());
        };
        let filled = feed.fill(&self.engine, READ_BYTES, &gate).await;
        if !matches!(filled, Ok(Filled::Held)) {
            self.held.went_on(&log);
            self.ready.extend(self.held.behind(&log));
        }
        match filled {
            Ok(Filled::Held) => {
                self.held.hold(&log);
                self.ready.remove(&log);
            }
            Ok(Filled::Items) => {
                if let Some(kind) = take_reply(feed, &mut self.credit) {
                    permit.send(Ok(SubscribeReply { kind: Some(kind) }));
                }
            }
            Ok(Filled::Waiting) if self.until_end => {
                // Nothing is read after the end: what does not come now is told as missing before it is called so.
                if let Some((from, to)) = feed.give_up() {
                    let text = "it cannot be read here at present; subscribe again to get it";
                    let kind = Kind::Gap(gap(&log, from, to, Reason::new(GapReason::Pending, text)));
                    permit.send(Ok(SubscribeReply { kind: Some(kind) }));
                }
                self.ready.remove(&log);
            }
            Ok(Filled::Waiting | Filled::Done) => {
                self.ready.remove(&log);
            }
            Err(error) => return Err(errors::unavailable(error.to_string())),
        }
        Ok(())
    }

    /// The log that is begun, or the next ready one after the last.
    fn next_turn(&mut self) -> Option<LogName> {
        if let Some(log) = &self.turn
            && self.feeds.get(log).is_some_and(Feed::has_items)
        {
            return Some(log.clone());
        }
        let after = self
            .turn
            .as_ref()
            .and_then(|turn| self.ready.range((std::ops::Bound::Excluded(turn), std::ops::Bound::Unbounded)).next());
        self.turn = after.or_else(|| self.ready.first()).cloned();
        self.turn.clone()
    }
}

/// The next event, or `None` when some were missed.
pub(crate) async fn next_event(events: &mut broadcast::Receiver<LogEvent>) -> Option<LogEvent> {
    match events.recv().await {
        Ok(event) => Some(event),
        Err(broadcast::error::RecvError::Lagged(_)) => None,
        // The engine stops: draining follows.
        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
    }
}

async fn next_one_way(one_way: &mut Option<mpsc::Receiver<OneWayMessage>>) -> Option<OneWayMessage> {
    match one_way {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// One reply's worth of a feed's items, within the credit; `None` when only what is not meant came by.
fn take_reply(feed: &mut Feed, credit: &mut Credit) -> Option<Kind> {
    let mut messages = Vec::new();
    let mut bytes = 0_usize;
    while let Some(item) = feed.peek() {
        let full = match item {
            Item::Message { .. } => !credit.is_left() || bytes >= SUBSCRIBE_REPLY_BYTES,
            Item::Gap { .. } => !messages.is_empty(),
            Item::Passed(..) | Item::Hop { .. } | Item::Side(_) => false,
        };
        if full {
            break;
        }
        match feed.pop() {
            Some(Item::Message { place, message, late }) => {
                let size = convert::message_bytes(&message);
                credit.take(size);
                bytes = bytes.saturating_add(size);
                messages.push(convert::message(feed.log(), place, message, late, 1));
            }
            Some(Item::Gap { from, to, reason, .. }) => {
                return Some(Kind::Gap(gap(feed.log(), from, to, reason)));
            }
            Some(Item::Passed(..) | Item::Hop { .. } | Item::Side(_)) | None => {}
        }
    }
    (!messages.is_empty()).then_some(Kind::Messages(Messages { messages }))
}

/// A gap as subscribers are told.
pub(crate) fn gap(log: &LogName, from: Place, to: Place, reason: Reason) -> Gap {
    let Reason { why, text } = reason;
    Gap {
        from: Some(convert::message_id(log, from)),
        to: Some(convert::place(to)),
        why: why.into(),
        text: text.into_owned(),
    }
}
