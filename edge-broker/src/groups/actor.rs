//! Carries out what a group decides: reads logs, hands replies to members, stores positions, answers confirmations.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use seaway_federation_proto::{
    ids::{LogName, Queue},
    session::vitals::lasting,
};
use seaway_relay::node::{LogEvent, PublishError};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    assign::MemberId,
    position::LogPosition,
    record::{self, Definition},
    state::GroupState,
};
use crate::{
    api::{
        self, SubscribeReply, TopicState,
        subscribe_reply::{Confirmed, Kind},
        subscribe_request::Confirm,
    },
    engine::Engine,
    grpc::{convert, errors},
    limits::{CONFIRM_IDS_MAX, GROUP_LOGS_MAX, GROUP_MEMBERS_MAX, READ_BYTES},
    subscriptions::{
        credit::Credit,
        feed::Filled,
        order::Held,
        plain::next_event,
        replies::{Permit, Replies},
        standing::STANDS_AFTER,
        start::from_begin,
    },
};

/// How often a group without members looks for new logs, in ticks.
const SEARCH_TICKS: u32 = 30;
/// How often positions that nobody waits for are stored, and timeouts looked at.
const TICK: Duration = Duration::from_secs(1);

/// Room for the answer to a confirmation.
type AnswerPermit = mpsc::OwnedPermit<Result<SubscribeReply, Status>>;

/// What a group is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A member comes in.
    Join {
        /// Its first credit.
        credit: Credit,
        /// Where its messages go.
        replies: Replies,
        /// Its name in the group.
        answer: oneshot::Sender<Result<MemberId, Status>>,
    },
    /// A member left.
    Leave(MemberId),
    /// A member is willing to receive more: messages, bytes.
    Credit(MemberId, u64, u64),
    /// A member confirms; the answer goes out once that is durable.
    Confirm {
        /// Who.
        member: MemberId,
        /// What.
        confirm: Confirm,
        /// Room for the answer.
        answer: AnswerPermit,
    },
    /// Says how the group stands.
    Describe(oneshot::Sender<api::Group>),
    /// The group is deleted: members are told, nothing is stored any more.
    Delete(oneshot::Sender<()>),
}

struct Link {
    replies: Replies,
    permit: Option<Permit>,
}

/// A confirmation that waits until the positions are stored.
struct Waiting {
    number: u64,
    refused: String,
    answer: AnswerPermit,
}

struct Saving {
    logs: Vec<LogName>,
    waiting: Vec<Waiting>,
    done: BoxFuture<'static, Result<(), PublishError>>,
}

/// One group at work.
pub(crate) struct Actor<E: Engine> {
    engine: E,
    name: String,
    definition: Definition,
    state: GroupState,
    links: BTreeMap<MemberId, Link>,
    reserving: FuturesUnordered<BoxFuture<'static, (MemberId, Option<Permit>)>>,
    waiting: Vec<Waiting>,
    saving: Option<Saving>,
    save_due: bool,
    ticks: u32,
    /// Logs that could not be read: tried again at the next tick.
    unread: BTreeSet<LogName>,
    /// Logs held back by a change of their topic's queue count.
    held: Held,
    reported_full: bool,
    /// When anything was delivered or confirmed last.
    moved_at: Instant,
    drain: CancellationToken,
}

enum Next {
    Go,
    Stop,
}

impl<E: Engine> Actor<E> {
    /// A group as it was stored.
    pub(crate) fn new(
        engine: E,
        name: &str,
        definition: &Definition,
        positions: BTreeMap<LogName, LogPosition>,
        confirm_timeout: Duration,
        drain: CancellationToken,
    ) -> Self {
        let mut state = GroupState::new(definition.filter.clone(), confirm_timeout);
        for (log, position) in positions {
            state.add_log(log, position, true);
        }
        Self {
            engine,
            name: name.to_owned(),
            definition: definition.clone(),
            state,
            links: BTreeMap::new(),
            reserving: FuturesUnordered::new(),
            waiting: Vec::new(),
            saving: None,
            save_due: false,
            ticks: 0,
            unread: BTreeSet::new(),
            held: Held::default(),
            reported_full: false,
            moved_at: Instant::now(),
            drain,
        }
    }

    /// Works until the group is deleted or the node drains.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut events: Option<broadcast::Receiver<LogEvent>> = None;
        loop {
            if self.links.is_empty() {
                events = None; // nobody to deliver to: the ticks are enough
            } else if events.is_none() {
                events = Some(self.engine.watch());
                self.find_logs();
                self.state.wake_all();
            }
            self.start_saving();
            let turn = self.state.next_turn(|id| self.links.get(&id).is_some_and(|l| l.permit.is_some()));
            tokio::select! {
                () = self.drain.cancelled() => break self.drain_out().await,
                command = commands.recv() => match command.map(|c| self.handle(c)) {
                    Some(Next::Go) => {}
                    Some(Next::Stop) | None => break,
                },
                Some((member, permit)) = self.reserving.next() => self.handle_reserved(member, permit),
                result = saved(&mut self.saving) => self.handle_saved(result),
                event = next_group_event(&mut events) => self.handle_event(event),
                _ = tick.tick() => self.handle_tick(),
                () = std::future::ready(()), if turn.is_some() => if let Some((member, log)) = turn {
                    self.deliver(member, &log).await;
                },
            }
        }
    }

    fn handle(&mut self, command: Command) -> Next {
        match command {
            Command::Join { credit, replies, answer } => self.join(credit, replies, answer),
            Command::Leave(member) => self.leave(member),
            Command::Credit(member, messages, bytes) => self.state.add_credit(member, messages, bytes),
            Command::Confirm { member, confirm, answer } => self.confirm(member, confirm, answer),
            Command::Describe(answer) => {
                let _ = answer.send(self.describe());
            }
            Command::Delete(answer) => {
                self.end_members(&errors::status(Code::Aborted, "group-deleted", "the group was deleted"));
                let _ = answer.send(());
                return Next::Stop;
            }
        }
        Next::Go
    }

    fn join(&mut self, credit: Credit, replies: Replies, answer: oneshot::Sender<Result<MemberId, Status>>) {
        if self.links.len() >= GROUP_MEMBERS_MAX {
            let text = format!("group {} has {GROUP_MEMBERS_MAX} members already", self.name);
            let _ = answer.send(Err(errors::too_many(text)));
            return;
        }
        let member = self.state.add_member(credit);
        self.links.insert(member, Link { replies, permit: None });
        self.reserve(member);
        if answer.send(Ok(member)).is_err() {
            self.leave(member);
        }
    }

    fn leave(&mut self, member: MemberId) {
        if self.links.remove(&member).is_some() {
            self.state.remove_member(member);
        }
    }

    /// Asks for room for the member's next reply, without waiting for it here.
    fn reserve(&mut self, member: MemberId) {
        if let Some(link) = self.links.get(&member) {
            let replies = link.replies.clone();
            self.reserving.push(Box::pin(async move { (member, replies.reserve().await) }));
        }
    }

    fn handle_reserved(&mut self, member: MemberId, permit: Option<Permit>) {
        match (permit, self.links.get_mut(&member)) {
            (Some(permit), Some(link)) => link.permit = Some(permit),
            (None, Some(_)) => self.leave(member),
            (_, None) => {}
        }
    }

    async fn deliver(&mut self, member: MemberId, log: &LogName) {
        let gate = self.held.gate(&self.engine, log, false, |other, end| self.state.is_settled(other, end));
        let Some(feed) = self.state.feed(log) else { return };
        let filled = feed.fill(&self.engine, READ_BYTES, &gate).await;
        if !matches!(filled, Ok(Filled::Held)) {
            self.held.went_on(log);
        }
        match filled {
            Ok(Filled::Items) => {}
            Ok(Filled::Held) => {
                self.held.hold(log);
                return self.state.set_idle(member, log);
            }
            Ok(Filled::Waiting | Filled::Done) => {
                self.state.set_idle(member, log);
                return self.release_behind(log);
            }
            Err(error) => {
                tracing::warn!(group = %self.name, %error, "a group cannot read a log; it tries again");
                self.unread.insert(log.clone());
                return self.state.set_idle(member, log);
            }
        }
        let reply = self.state.take_reply(member, log, Instant::now());
        self.release_behind(log);
        let Some(kind) = reply else { return };
        if let Some(permit) = self.links.get_mut(&member).and_then(|link| link.permit.take()) {
            permit.send(Ok(SubscribeReply { kind: Some(kind) }));
            self.moved_at = Instant::now();
            self.reserve(member);
        }
    }

    /// Logs that may have waited for this one are looked at again.
    fn release_behind(&mut self, log: &LogName) {
        for held in self.held.behind(log) {
            self.state.wake(&held);
        }
    }

    fn confirm(&mut self, member: MemberId, confirm: Confirm, answer: AnswerPermit) {
        let mut refused = String::new();
        let mut confirmed_of = BTreeSet::new();
        if confirm.ids.len() > CONFIRM_IDS_MAX {
            refused = format!("{} ids are too many for one confirmation; at most {CONFIRM_IDS_MAX}", confirm.ids.len());
        } else {
            for id in confirm.ids {
                let confirmed = convert::message_id_of(id).and_then(|(log, place)| {
                    self.state.confirm(member, &log, place, confirm.up_to)?;
                    confirmed_of.insert(log);
                    Ok(())
                });
                if let Err(why) = confirmed
                    && refused.is_empty()
                {
                    refused = why;
                }
            }
        }
        if refused.is_empty() {
            self.moved_at = Instant::now();
        }
        if !self.held.is_empty() {
            confirmed_of.iter().for_each(|log| self.release_behind(log));
        }
        self.waiting.push(Waiting { number: confirm.number, refused, answer });
    }

    /// Stores what moved, when somebody waits for it or it is time; one write at a time.
    fn start_saving(&mut self) {
        if self.saving.is_some() || (self.waiting.is_empty() && !self.save_due) {
            return;
        }
        self.save_due = false;
        let dirty = self.state.take_dirty();
        let waiting = std::mem::take(&mut self.waiting);
        let changes: Vec<_> = dirty.iter().map(|(log, p)| record::encode_position(&self.name, log, p)).collect();
        let engine = self.engine.clone();
        let done = Box::pin(async move { if changes.is_empty() { Ok(()) } else { engine.put_state(changes).await } });
        if !dirty.is_empty() || !waiting.is_empty() {
            self.saving = Some(Saving { logs: dirty.into_iter().map(|(log, _)| log).collect(), waiting, done });
        }
    }

    fn handle_saved(&mut self, result: Result<(), PublishError>) {
        let Some(saving) = self.saving.take() else { return };
        if result.is_err() {
            self.state.set_dirty(saving.logs.iter());
        }
        for Waiting { number, refused, answer } in saving.waiting {
            let refused = match &result {
                Ok(()) => refused,
                Err(error) => format!("the confirmation could not be stored: {error}"),
            };
            let kind = Some(Kind::Confirmed(Confirmed { number, refused }));
            answer.send(Ok(SubscribeReply { kind }));
        }
    }

    fn handle_event(&mut self, event: Option<LogEvent>) {
        match event {
            Some(event) => {
                if event.log.queue == Queue::CONTROL {
                    self.release_behind(&event.log);
                }
                self.find_log(event.log.clone());
                self.state.wake(&event.log);
            }
            None => {
                self.find_logs();
                self.state.wake_all();
            }
        }
    }

    fn handle_tick(&mut self) {
        self.save_due = true;
        self.state.expire(Instant::now());
        for log in std::mem::take(&mut self.unread).into_iter().chain(self.held.all()) {
            self.state.wake(&log);
        }
        self.ticks = self.ticks.wrapping_add(1);
        if self.links.is_empty() && self.ticks.is_multiple_of(SEARCH_TICKS) {
            self.find_logs(); // with members, events tell
        }
    }

    fn find_logs(&mut self) {
        for log in self.engine.logs() {
            self.find_log(log);
        }
    }

    /// A log that appears after the group was made is read from its begin.
    fn find_log(&mut self, log: LogName) {
        if !self.state.is_new(&log) {
            return;
        }
        if self.state.is_full() {
            if !std::mem::replace(&mut self.reported_full, true) {
                tracing::warn!(group = %self.name, %log, "the group covers {GROUP_LOGS_MAX} logs already; narrow its pattern");
            }
            return;
        }
        if let Some(info) = self.engine.info(&log) {
            let cursor = from_begin(&info);
            self.state.add_log(log, LogPosition::new(cursor.at(), cursor.passed().clone()), false);
        }
    }

    fn describe(&self) -> api::Group {
        let mut group = api::Group {
            name: self.name.clone(),
            pattern: self.definition.filter.pattern.to_string(),
            members: u32::try_from(self.links.len()).unwrap_or(u32::MAX),
            ..api::Group::default()
        };
        for (log, position, unconfirmed) in self.state.positions() {
            let below = position.below();
            let end_offset = self.engine.info(log).map_or(below.offset, |info| info.end.offset);
            let lag = end_offset.saturating_sub(below.offset).saturating_sub(position.confirmed_above());
            group.lag_messages = group.lag_messages.saturating_add(lag);
            group.unconfirmed = group.unconfirmed.saturating_add(u64::try_from(unconfirmed).unwrap_or(u64::MAX));
            group.positions.push(api::GroupPosition {
                position: Some(api::Position {
                    topic: log.topic.to_string(),
                    origin: log.origin.to_string(),
                    queue: u32::from(log.queue.0),
                    place: Some(convert::place(below)),
                }),
                ranges_above: u32::try_from(position.ranges().count()).unwrap_or(u32::MAX),
                end_offset,
            });
        }
        self.add_standing(&mut group);
        group
    }

    /// Whether the group goes on, and if not, what keeps it.
    fn add_standing(&self, group: &mut api::Group) {
        if group.lag_messages == 0 {
            return group.set_state(TopicState::Live);
        }
        let silent = self.moved_at.elapsed();
        let members = self.links.len();
        let reads = self.links.values().filter(|link| link.permit.is_some()).count();
        let grants = self.state.members_with_credit();
        // Who has messages may work on them for a while; who has let the time for that pass once does not work.
        let has_work = group.unconfirmed > 0 && self.state.members_late() < members;
        let patience = if has_work { self.state.work_time().max(STANDS_AFTER) } else { STANDS_AFTER };
        let (state, why) = match (members, silent > patience) {
            (0, _) => (TopicState::Stalled, "nobody is subscribed".to_owned()),
            (_, false) => (TopicState::CatchingUp, String::new()),
            _ if reads == 0 => (TopicState::Stalled, format!("none of {members} members reads what it was sent")),
            _ if group.unconfirmed > 0 => {
                (TopicState::Stalled, format!("members have {} messages and confirm none", group.unconfirmed))
            }
            _ if grants == 0 => (TopicState::Stalled, format!("none of {members} members grants credit")),
            _ => (TopicState::CatchingUp, String::new()),
        };
        group.set_state(state);
        if state == TopicState::Stalled {
            group.reason = format!("{why}, for {}", lasting(silent));
            group.state_for_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        }
    }

    /// Stores what is confirmed, answers it, and tells the members to go elsewhere.
    async fn drain_out(&mut self) {
        if let Some(saving) = &mut self.saving {
            let result = (&mut saving.done).await;
            self.handle_saved(result);
        }
        self.save_due = true;
        self.start_saving();
        if let Some(saving) = &mut self.saving {
            let result = (&mut saving.done).await;
            self.handle_saved(result);
        }
        self.end_members(&errors::draining());
    }

    fn end_members(&mut self, status: &Status) {
        for link in std::mem::take(&mut self.links).into_values() {
            match link.permit {
                Some(permit) => permit.send(Err(status.clone())),
                None => link.replies.try_send(Err(status.clone())), // one that does not read just sees the end
            }
        }
    }
}

async fn saved(saving: &mut Option<Saving>) -> Result<(), PublishError> {
    match saving {
        Some(saving) => (&mut saving.done).await,
        None => std::future::pending().await,
    }
}

async fn next_group_event(events: &mut Option<broadcast::Receiver<LogEvent>>) -> Option<LogEvent> {
    match events {
        Some(events) => next_event(events).await,
        None => std::future::pending().await,
    }
}
