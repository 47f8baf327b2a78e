//! One link's driver: the session of the link, joined to the commit log and the hub.
//!
//! Synchronous and without threads: the shell brings bytes, time, posted commands and finished reads by `handle_*`,
//! and takes what is to be written and read by `poll_*`. After any `handle_*` the shell polls everything again.
//! See [`super`] for the flow of data.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use seaway_federation_proto::{
    copies::AppendRefusal,
    envelope::Batch,
    ids::{LogName, Place, Site},
    message::BODY_VERSION,
    replication::{LinkId, PASS_POOL_BYTES},
    session::{
        Buffered, Channel, CloseReason, Event, FetchEnded, FetchLine, FetchNumber, LANES, Lane, NodeKind, PeerInfo,
        ReadOutcome, Session, SessionConfig, Transmit,
        pace::LinkRates,
        vitals::{Judgement, Trouble, Vitals},
    },
    wire::{link, link::FetchEnd},
};

use super::{
    command::{LinkCommand, Mailbox},
    passing::PassTicket,
    port::HubPort,
    storing::Storing,
};
use crate::{
    log::contract::{CommitLog, Entry, Line, Read, ReadError, RejectReason, Role, Unit},
    node::queues::{Gauge, QueueView},
};

/// One-way messages that wait for the transport, in bytes; past it they are dropped and counted.
const ONE_WAY_QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a batch that found the disk full waits before it is submitted again.
const DISK_FULL_RETRY: Duration = Duration::from_secs(1);

/// A read that may wait on the disk: to be run by the shell where that does no harm, and answered
/// with [`LinkDriver::handle_read_done`]. At most one is out a served fetch.
#[derive(Debug, Clone)]
pub struct ReadJob {
    /// The peer's fetch.
    pub number: FetchNumber,
    /// The log.
    pub log: LogName,
    /// From where.
    pub from: Place,
    /// How it goes on.
    pub line: Line,
    /// About how many bytes.
    pub bytes_max: usize,
}

impl ReadJob {
    /// Reads; may wait on the disk.
    ///
    /// # Errors
    /// As [`CommitLog::read`].
    pub fn run(&self, log: &dyn CommitLog) -> Result<Read, ReadError> {
        log.read(&self.log, self.from, self.line, self.bytes_max)
    }
}

/// What a link has done so far, for status; shared, so that it can be read while the driver runs.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// Bytes of all channels and one-way messages, received.
    pub bytes_in: AtomicU64,
    /// The same, handed to the transport.
    pub bytes_out: AtomicU64,
    /// Batches received for fetches of ours.
    pub batches_in: AtomicU64,
    /// Batches handed to the transport.
    pub batches_out: AtomicU64,
    /// Batches that our copy held already.
    pub repeats: AtomicU64,
    /// One-way messages received.
    pub one_way_in: AtomicU64,
    /// One-way messages handed to the transport.
    pub one_way_out: AtomicU64,
    /// One-way messages dropped here: the queue was full, or they could not be read.
    pub one_way_dropped: AtomicU64,
    /// Times that a rate limit held back what is sent.
    pub send_limited: AtomicU64,
    /// Times that a rate limit held back what the peer is let send.
    pub receive_limited: AtomicU64,
    /// One-way messages dropped here, in either direction, since they were above a rate limit.
    pub one_way_limited: AtomicU64,
    /// Newest round trip of a probe through the whole session, microseconds; 0 before the first.
    pub round_trip_us: AtomicU64,
    /// Of the driver's last look, which comes with each probe.
    vitals: Mutex<Option<Vitals>>,
    /// What is held, as of the same.
    buffered: Mutex<Buffered>,
    one_way_queued: Gauge,
}

impl LinkCounters {
    /// How the link stands at this moment of the driver's time, once it is up.
    pub fn judge(&self, now: Duration) -> Option<Judgement> {
        self.vitals.lock().as_ref().map(|vitals| vitals.judge(now))
    }

    /// Bytes that the peer has granted on each lane ([`LANES`]) and that are not used, as of the driver's last look.
    pub fn credit(&self) -> Option<[u64; LANES.len()]> {
        self.vitals.lock().as_ref().map(|vitals| vitals.credit)
    }

    /// What the link's parts hold, as of the driver's last look.
    pub fn queues(&self) -> Vec<QueueView> {
        let Buffered { control, received, reads, passing } = *self.buffered.lock();
        let passing_max = LANES.len() as u64 * (PASS_POOL_BYTES + received.1 / 2);
        let rows = [
            ("link-control", control, "the link is closed: its peer does not read"),
            ("link-received", received, "the peer gets no more credit until something is durable"),
            ("link-reads", reads, "nothing more is read for the peer until it takes some"),
            ("link-passing", (passing, passing_max), "what comes keeps the credit of the link on which it came"),
        ];
        let rows =
            rows.into_iter().map(|(name, (used, bound), at_bound)| QueueView::bytes(name, used, bound, at_bound));
        let one_way = self.one_way_queued.row("link-one-way", ONE_WAY_QUEUE_BYTES_MAX as u64, "dropped and counted");
        rows.chain([one_way]).collect()
    }

    /// For how long nothing has been heard of the peer, as of the driver's last look.
    pub fn silence(&self, now: Duration) -> Option<Duration> {
        self.vitals.lock().as_ref().map(|vitals| now.saturating_sub(vitals.heard))
    }
}

/// Gives a link's rates, if they have changed since it was called last; the first call gives what holds.
pub type RatesFeed = Box<dyn FnMut() -> Option<LinkRates> + Send>;

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A batch of a fetch of ours on its way into the commit log.
struct Incoming {
    number: FetchNumber,
    lane: Lane,
    credit: u64,
    batch: Batch,
}

/// Something of a fetch of ours that waits for the commit log, in order.
enum Waiting {
    Batch(Incoming),
    /// Its end, told when all that came before it was handed over.
    Ended(FetchEnded),
}

impl Waiting {
    fn number(&self) -> FetchNumber {
        match self {
            Waiting::Batch(incoming) => incoming.number,
            Waiting::Ended(ended) => ended.number,
        }
    }
}

/// See the module's documentation.
pub struct LinkDriver {
    link: LinkId,
    site: Site,
    /// Whether this node gives the places in the logs of its site; else they are copies here like all others.
    origin: bool,
    session: Session,
    log: Arc<dyn CommitLog>,
    hub: Arc<dyn HubPort>,
    mailbox: Arc<dyn Mailbox>,
    counters: Arc<LinkCounters>,
    /// What the commit log has no room for at present, in order. Its credit is not given back, which bounds it.
    held: VecDeque<Waiting>,
    /// When the held batches are submitted again, where nobody wakes us.
    retry_at: Option<Duration>,
    /// Fetches stopped since the session last had nothing to tell: what it told before that of them is dropped.
    stopped: BTreeSet<FetchNumber>,
    jobs: VecDeque<ReadJob>,
    /// Of batches read through that wait in the session: their length, and what is given back when they have left.
    tickets: BTreeMap<FetchNumber, VecDeque<(u64, PassTicket)>>,
    one_way: VecDeque<Bytes>,
    one_way_bytes: usize,
    /// What the session had dropped when it was last asked.
    session_dropped: u64,
    session_limited: u64,
    /// Whether what is in the counters tells of trouble, or the hub was told.
    troubled: Option<Trouble>,
    storing: Storing,
    /// Where its rates come from; without it, it has none.
    rates: Option<RatesFeed>,
    /// Which limit holds back what comes, as the hub was told.
    limited: Option<String>,
    closed: Option<CloseReason>,
}

impl fmt::Debug for LinkDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkDriver").field("link", &self.link).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl LinkDriver {
    /// A driver whose session begins with its hello. `mailbox` is this link's own: what the commit log
    /// tells later comes through it.
    pub fn new(
        link: LinkId,
        config: SessionConfig,
        log: Arc<dyn CommitLog>,
        hub: Arc<dyn HubPort>,
        mailbox: Arc<dyn Mailbox>,
        now: Duration,
    ) -> Self {
        Self {
            link,
            site: config.node.site.clone(),
            origin: config.kind == NodeKind::Edge,
            session: Session::new(config, now),
            log,
            hub,
            mailbox,
            counters: Arc::default(),
            held: VecDeque::new(),
            retry_at: None,
            stopped: BTreeSet::new(),
            jobs: VecDeque::new(),
            tickets: BTreeMap::new(),
            one_way: VecDeque::new(),
            one_way_bytes: 0,
            session_dropped: 0,
            session_limited: 0,
            troubled: None,
            storing: Storing::default(),
            rates: None,
            limited: None,
            closed: None,
        }
    }

    /// Keeps to these rates, as they are at each look.
    #[must_use]
    pub fn with_rates(mut self, now: Duration, rates: RatesFeed) -> Self {
        self.rates = Some(rates);
        self.look_at_rates(now);
        self
    }

    fn look_at_rates(&mut self, now: Duration) {
        if let Some(rates) = self.rates.as_mut().and_then(|rates| rates()) {
            self.session.set_rates(now, rates);
        }
        let [send, receive, one_way] = self.session.times_limited();
        self.counters.send_limited.store(send, Ordering::Relaxed);
        self.counters.receive_limited.store(receive, Ordering::Relaxed);
        let before = self.session_limited;
        self.session_limited = one_way;
        count(&self.counters.one_way_limited, one_way.saturating_sub(before));
    }

    // ---- input ------------------------------------------------------------------------------

    /// Bytes of a channel, in order, cut anywhere.
    pub fn handle_bytes(&mut self, now: Duration, channel: Channel, bytes: Bytes) {
        count(&self.counters.bytes_in, bytes.len() as u64);
        self.session.handle_bytes(now, channel, bytes);
        self.pump(now);
    }

    /// A datagram, or the whole content of a one-way stream.
    pub fn handle_one_way(&mut self, now: Duration, bytes: Bytes) {
        count(&self.counters.bytes_in, bytes.len() as u64);
        self.session.handle_one_way(now, bytes);
        let dropped = self.session.one_way_dropped();
        count(&self.counters.one_way_dropped, dropped.saturating_sub(self.session_dropped));
        self.session_dropped = dropped;
        self.pump(now);
    }

    /// A command from the mailbox.
    pub fn handle_command(&mut self, now: Duration, command: LinkCommand) {
        if self.closed.is_some() {
            return;
        }
        // A congested session ends by itself; the event says so.
        let _ = match command {
            LinkCommand::Send(message) => self.session.send(*message),
            LinkCommand::StartFetch(order) => self.session.start_fetch(order),
            LinkCommand::StopFetch(number) => {
                self.drop_held(number);
                self.session.stop_fetch(number)
            }
            LinkCommand::RaiseAllowance(number, total) => self.session.raise_allowance(number, total),
            other => {
                self.handle_serving(now, other);
                Ok(())
            }
        };
        self.pump(now);
    }

    fn handle_serving(&mut self, now: Duration, command: LinkCommand) {
        match command {
            LinkCommand::Serve(number) => self.session.serve(number),
            LinkCommand::Passed(number, batch, ticket) => self.feed(number, batch, ticket),
            LinkCommand::EndServed(ended) => self.session.end_served(ended),
            LinkCommand::Advanced(log) => self.session.handle_advanced(&log),
            LinkCommand::Stored(lane, credit) => {
                self.storing.stored(now);
                self.session.release(lane, credit);
            }
            LinkCommand::Stopped(lane, credit, poisoned) => {
                self.storing.stored(now);
                self.session.release(lane, credit);
                self.hub.on_stopped(now, &poisoned.to_string());
            }
            LinkCommand::Retry => self.submit_held(now),
            LinkCommand::OneWay(message) => self.queue_one_way(now, &message),
            LinkCommand::Close(reason) => self.session.close(reason),
            LinkCommand::Send(_)
            | LinkCommand::StartFetch(_)
            | LinkCommand::StopFetch(_)
            | LinkCommand::RaiseAllowance(..) => {}
        }
    }

    /// The answer to a [`ReadJob`].
    pub fn handle_read_done(&mut self, now: Duration, number: FetchNumber, outcome: Result<Read, ReadError>) {
        self.read_done(now, number, outcome);
        self.pump(now);
    }

    /// Time passed; call at or after [`LinkDriver::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
            self.submit_held(now);
        }
        self.look_at_rates(now);
        self.session.handle_timeout(now);
        self.pump(now);
        self.look_for_trouble(now);
    }

    fn look_for_trouble(&mut self, now: Duration) {
        if self.closed.is_some() || self.session.peer().is_none() {
            return;
        }
        let mut vitals = self.session.vitals(now);
        vitals.here = self.storing.trouble(now, vitals.patience, self.hub.is_stopped());
        self.session.say_condition(now, vitals.here.as_ref().map_or("", |here| here.what.as_str()));
        let (trouble, limited) = (vitals.incoming(now), vitals.limit_in());
        *self.counters.vitals.lock() = Some(vitals);
        *self.counters.buffered.lock() = self.session.buffered();
        if self.troubled != trouble {
            self.hub.on_condition(now, self.link, trouble.clone());
            self.troubled = trouble;
        }
        if self.limited != limited {
            self.hub.on_limited(now, self.link, limited.clone());
            self.limited = limited;
        }
    }

    /// The transport is gone: the session is over at once and nothing more is sent.
    pub fn handle_lost(&mut self, now: Duration, why: String) {
        self.session.close(CloseReason::Lost(why));
        self.pump(now);
    }

    // ---- output -----------------------------------------------------------------------------

    /// The next frames of a channel; call when the channel can take more.
    pub fn poll_transmit(&mut self, now: Duration, channel: Channel) -> Option<Transmit> {
        let transmit = self.session.poll_transmit(now, channel);
        if let Some(transmit) = &transmit {
            count(&self.counters.bytes_out, transmit.chunks.iter().map(|c| c.len() as u64).sum());
            count(&self.counters.batches_out, transmit.batches.into());
        }
        // What was sent makes room for reads, and may be worth telling the hub.
        self.pump(now);
        if self.troubled.is_some() {
            self.look_for_trouble(now);
        }
        transmit
    }

    /// The next one-way message to be sent: as a datagram if it fits one, else on a short stream of its own.
    pub fn poll_one_way(&mut self) -> Option<Bytes> {
        let bytes = self.one_way.pop_front()?;
        self.one_way_bytes = self.one_way_bytes.saturating_sub(bytes.len());
        self.counters.one_way_queued.set(self.one_way_bytes as u64);
        count(&self.counters.one_way_out, 1);
        count(&self.counters.bytes_out, bytes.len() as u64);
        Some(bytes)
    }

    /// The next read that the shell has to run.
    pub fn poll_read_job(&mut self) -> Option<ReadJob> {
        self.jobs.pop_front()
    }

    /// When to call [`LinkDriver::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Duration> {
        let session = self.session.poll_timeout()?;
        Some(self.retry_at.map_or(session, |at| at.min(session)))
    }

    /// Set once the session is over: send what [`LinkDriver::poll_transmit`] still gives for the control channel, then
    /// close the transport.
    pub fn closed(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// The peer, once its hello was accepted.
    pub fn peer(&self) -> Option<&PeerInfo> {
        self.session.peer()
    }

    /// What the link has done so far.
    pub fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.counters)
    }

    // ---- what the session tells -----------------------------------------------------------------

    fn pump(&mut self, now: Duration) {
        while let Some(event) = self.session.poll_event() {
            self.handle_event(now, event);
        }
        self.stopped.clear();
        while let Some((number, bytes)) = self.session.poll_fed_gone() {
            self.fed_gone(number, bytes);
        }
    }

    fn feed(&mut self, number: FetchNumber, batch: Batch, ticket: PassTicket) {
        let bytes = batch.len() as u64;
        if self.session.push_passed(number, batch) {
            self.tickets.entry(number).or_default().push_back((bytes, ticket));
        }
    }

    fn fed_gone(&mut self, number: FetchNumber, mut bytes: u64) {
        let Some(tickets) = self.tickets.get_mut(&number) else { return };
        while bytes > 0
            && let Some((len, _left)) = tickets.pop_front()
        {
            bytes = bytes.saturating_sub(len);
        }
        if tickets.is_empty() {
            self.tickets.remove(&number);
        }
    }

    fn handle_event(&mut self, now: Duration, event: Event) {
        let link = self.link;
        match event {
            Event::Up(peer) => {
                self.hub.on_up(now, link, peer);
                self.look_for_trouble(now);
            }
            Event::Control(message) => self.hub.on_control(now, link, message),
            Event::FetchRequested(order) => self.hub.on_fetch_requested(now, link, order),
            Event::Read { number, log, from, line, bytes_max } => {
                let line = match line {
                    FetchLine::Main => Line::Main,
                    FetchLine::Incarnation => Line::Incarnation,
                };
                match self.log.read_cached(&log, from, line, bytes_max) {
                    Some(read) => self.read_done(now, number, Ok(read)),
                    None => self.jobs.push_back(ReadJob { number, log, from, line, bytes_max }),
                }
            }
            Event::FetchStopped(number) | Event::ServedOver(number) => self.hub.on_served_over(now, link, number),
            Event::ServedMoved(number) => {
                if let Some(at) = self.session.served_at(number) {
                    self.hub.on_served_room(now, link, number, at.next, at.passed, at.room);
                }
            }
            Event::Batch { number, lane, credit, .. } if self.stopped.contains(&number) => {
                self.session.release(lane, credit);
            }
            Event::FetchEnded(ended) if self.stopped.contains(&ended.number) => {}
            Event::Batch { number, lane, credit, passing, batch } => {
                count(&self.counters.batches_in, 1);
                if passing {
                    self.hub.on_passed_batch(now, link, number, batch, lane, credit);
                } else {
                    self.store(now, Incoming { number, lane, credit, batch });
                }
            }
            // It must not overtake batches that the log had no room for.
            Event::FetchEnded(ended) if self.held.iter().any(|h| h.number() == ended.number) => {
                self.held.push_back(Waiting::Ended(ended));
            }
            Event::FetchEnded(ended) => self.hub.on_fetch_ended(now, link, ended),
            Event::OneWay(message) => {
                count(&self.counters.one_way_in, 1);
                self.hub.on_one_way(now, link, message);
            }
            Event::RoundTrip(took) => {
                let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
                self.counters.round_trip_us.store(took, Ordering::Relaxed);
                self.look_for_trouble(now);
            }
            Event::Closed(reason) => {
                self.held.clear();
                self.retry_at = None;
                self.jobs.clear();
                self.tickets.clear();
                self.one_way.clear();
                self.one_way_bytes = 0;
                self.hub.on_closed(now, link, &reason);
                self.closed = Some(reason);
            }
        }
    }

    // ---- fetches served ---------------------------------------------------------------------------

    fn read_done(&mut self, now: Duration, number: FetchNumber, outcome: Result<Read, ReadError>) {
        match outcome {
            Ok(Read::Batches { batches, next }) => {
                self.session.handle_read(number, ReadOutcome::Batches(batches, next));
            }
            Ok(Read::AtEnd { .. }) if self.is_final(number) => self.served_outside(now, number),
            // What the fetch follows became a fork: its asker finds the way from what it holds by then.
            Ok(Read::AtEnd { at, beside: true }) => {
                self.end_served(now, number, FetchEnd::AtEnd, Some(at), String::new())
            }
            Ok(Read::AtEnd { at, .. }) => self.session.handle_read(number, ReadOutcome::AtEnd(at)),
            Ok(Read::Outside(_)) => self.served_outside(now, number),
            Err(error) => {
                if self.session.served_at(number).is_none() {
                    return;
                }
                tracing::warn!(%error, "a fetch of another node ends, since it could not be read for");
                self.end_served(now, number, FetchEnd::Failed, None, error.to_string());
            }
        }
    }

    fn end_served(&mut self, now: Duration, number: FetchNumber, end: FetchEnd, at: Option<Place>, text: String) {
        let answered_by = self.site.to_string();
        self.session.end_served(FetchEnded { number, end, at, answered_by, text });
        self.hub.on_served_over(now, self.link, number);
    }

    fn served_outside(&mut self, now: Duration, number: FetchNumber) {
        self.session.handle_read(number, ReadOutcome::Outside);
        if let Some(at) = self.session.served_at(number) {
            self.hub.on_served_outside(now, self.link, number, at.next, at.room);
        }
    }

    /// Whether what a fetch of the peer reads is a copy that does not grow any more.
    fn is_final(&self, number: FetchNumber) -> bool {
        let copy = |log: &LogName| !self.origin || log.origin != self.site;
        self.hub.is_stopped() && self.session.served_log(number).is_some_and(copy)
    }

    // ---- batches that came ------------------------------------------------------------------------

    fn store(&mut self, now: Duration, incoming: Incoming) {
        // Nothing may overtake what is held.
        if self.held.is_empty() {
            self.submit(now, incoming);
        } else {
            self.held.push_back(Waiting::Batch(incoming));
        }
    }

    fn submit_held(&mut self, now: Duration) {
        // One that has to wait again is put back at the front, and ends the round.
        for _ in 0..self.held.len() {
            match self.held.pop_front() {
                Some(Waiting::Batch(incoming)) => {
                    if !self.submit(now, incoming) {
                        return;
                    }
                }
                Some(Waiting::Ended(ended)) => self.hub.on_fetch_ended(now, self.link, ended),
                None => return,
            }
        }
    }

    /// Hands a batch to the commit log; false if it has to wait.
    fn submit(&mut self, now: Duration, incoming: Incoming) -> bool {
        let Incoming { number, lane, credit, batch } = incoming;
        let own = self.origin && batch.header().log.origin == self.site;
        let role = if own { Role::Own } else { Role::Copy };
        let unit = Unit { entries: vec![Entry::Append { role, batch: batch.clone() }] };
        let mailbox = Arc::clone(&self.mailbox);
        let done = Box::new(move |stored: Result<(), _>| {
            mailbox.post(match stored {
                Ok(()) => LinkCommand::Stored(lane, credit),
                Err(poisoned) => LinkCommand::Stopped(lane, credit, poisoned),
            });
        });
        let Err(rejected) = self.log.submit(unit, done) else {
            self.storing.submitted(now);
            if batch.header().body_version != BODY_VERSION {
                self.hub.on_body_version(now, &batch.header().log, batch.header().body_version);
            }
            return true;
        };
        match rejected.reason {
            RejectReason::Busy => {
                // As the log charges it: a wake for less than that would only find it busy again.
                let bytes = rejected.unit.room_bytes();
                self.storing.put_back(now, "its commit log has no room; its disk is slow or stuck");
                self.held.push_front(Waiting::Batch(Incoming { number, lane, credit, batch }));
                let mailbox = Arc::clone(&self.mailbox);
                self.log.ready(bytes, Box::new(move || mailbox.post(LinkCommand::Retry)));
                return false;
            }
            RejectReason::DiskFull { .. } | RejectReason::ShareFull { .. } => {
                let share = matches!(rejected.reason, RejectReason::ShareFull { .. });
                self.storing.put_back(
                    now,
                    if share { "its share of the disk for copies is used up" } else { "its disk is nearly full" },
                );
                self.held.push_front(Waiting::Batch(Incoming { number, lane, credit, batch }));
                self.retry_at = Some(now.saturating_add(DISK_FULL_RETRY));
                return false;
            }
            // What is held is served on: the link stays.
            RejectReason::Poisoned(poisoned) => {
                self.session.release(lane, credit);
                self.stop(number);
                self.hub.on_stopped(now, &poisoned.to_string());
            }
            RejectReason::Refused { refusal, .. } => {
                self.session.release(lane, credit);
                if matches!(refusal, AppendRefusal::Repeat(_)) {
                    count(&self.counters.repeats, 1);
                } else {
                    self.stop(number);
                    self.hub.on_refused_batch(now, self.link, number, refusal);
                }
            }
            RejectReason::Invalid { why, .. } => {
                self.session.release(lane, credit);
                self.stop(number);
                let at = Some(batch.begin());
                let text = format!("this node cannot store the batch: {why}");
                let answered_by = self.site.to_string();
                let ended = FetchEnded { number, end: FetchEnd::Failed, at, answered_by, text };
                self.hub.on_fetch_ended(now, self.link, ended);
            }
        }
        true
    }

    fn stop(&mut self, number: FetchNumber) {
        self.stopped.insert(number);
        self.drop_held(number);
        // A congested session ends by itself; the event says so.
        let _ = self.session.stop_fetch(number);
    }

    /// Batches of a fetch that is stopped are dropped, and their credit is given back.
    fn drop_held(&mut self, number: FetchNumber) {
        self.storing.looked_again();
        let session = &mut self.session;
        self.held.retain(|held| {
            match held {
                held if held.number() != number => return true,
                Waiting::Batch(incoming) => session.release(incoming.lane, incoming.credit),
                Waiting::Ended(_) => {}
            }
            false
        });
    }

    // ---- one-way messages -------------------------------------------------------------------------

    fn queue_one_way(&mut self, now: Duration, message: &link::OneWay) {
        let len = message.encoded_len();
        let fits = self.one_way.is_empty() || self.one_way_bytes.saturating_add(len) <= ONE_WAY_QUEUE_BYTES_MAX;
        let taken = self.session.peer().is_some_and(|peer| len <= peer.batch_bytes_max);
        if !fits || !taken {
            return count(&self.counters.one_way_dropped, 1);
        }
        if !self.session.admit_one_way(now, len) {
            return count(&self.counters.one_way_limited, 1);
        }
        self.one_way_bytes += len;
        self.counters.one_way_queued.set(self.one_way_bytes as u64);
        self.one_way.push_back(message.encode_to_vec().into());
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
