//! The session itself: which state it is in, and which part each message goes to.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use prost::Message as _;

use super::{
    Buffered, Channel, CloseReason, Congested, Event, FEATURE_CONDITION, Fault, FetchEnded, FetchNumber, FetchOrder,
    LANES, Lane, PeerInfo, ReadOutcome, ServedAt, SessionConfig, Transmit,
    credit::Granted,
    fetches::{Asking, Taken},
    frames::{self, Frame, FrameDecoder, TransmitBuilder},
    handshake, lane_index,
    pace::{DirectionRates, LinkRates, Pace, receive_window},
    probes::Probes,
    serving::{Look, READ_AHEAD_BYTES, Serving},
    vitals::{Limits, Trouble, Vitals},
};
use crate::{
    envelope::Batch,
    ids::LogName,
    limits,
    wire::{link, link::RefuseReason, link::control::Kind, plain},
};

/// Longest sentence that is taken of a peer's condition, characters.
const CONDITION_CHARS_MAX: usize = 256;

#[derive(Debug)]
enum State {
    /// Awaiting the peer's hello, until then at the latest.
    Hello { until: Duration },
    /// Usable.
    Up,
    /// Over; what is in `last` is still to be sent.
    Closed,
}

/// One link's state machine; see the module's documentation.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    state: State,
    peer: Option<PeerInfo>,
    control_in: FrameDecoder,
    lanes_in: [FrameDecoder; LANES.len()],
    granted: [(Lane, Granted); LANES.len()],
    asking: Asking,
    serving: Serving,
    probes: Probes,
    hello: Option<Bytes>,
    control_out: VecDeque<Bytes>,
    control_out_bytes: usize,
    last: Option<Bytes>,
    events: VecDeque<Event>,
    skipped: u64,
    one_way_dropped: u64,
    /// Why the peer stores nothing, as it says; and what it was told of this side.
    there: Option<Trouble>,
    limits_there: Limits,
    condition: link::Condition,
    /// What is sent, and what the peer is let send.
    pace_out: Pace,
    pace_in: Pace,
    rates_in: DirectionRates,
    /// When what a rate holds back can go on.
    resume_at: Option<Duration>,
    one_way_limited: u64,
}

impl Session {
    /// A session that begins with its hello.
    pub fn new(config: SessionConfig, now: Duration) -> Self {
        let max = config.batch_bytes_max;
        let capacity = |lane| {
            let stated = config.lane_credit.iter().filter(|(l, _)| *l == lane).map(|(_, bytes)| *bytes).max();
            (lane, Granted::new(stated.unwrap_or_default(), max as u64))
        };
        let granted = LANES.map(capacity);
        Self {
            state: State::Hello { until: now.saturating_add(config.dead_after) },
            peer: None,
            control_in: FrameDecoder::new(false, max),
            lanes_in: LANES.map(|_| FrameDecoder::new(true, max)),
            hello: Some(frames::control_frame(Kind::Hello(handshake::hello(&config, &granted)))),
            granted,
            asking: Asking::default(),
            serving: Serving::new(config.node.site.to_string(), config.fetches_max),
            probes: Probes::new(config.probe_interval, config.dead_after, now),
            control_out: VecDeque::new(),
            control_out_bytes: 0,
            last: None,
            events: VecDeque::new(),
            skipped: 0,
            one_way_dropped: 0,
            there: None,
            limits_there: Limits::default(),
            condition: link::Condition::default(),
            pace_out: Pace::default(),
            pace_in: Pace::default(),
            rates_in: DirectionRates::default(),
            resume_at: None,
            one_way_limited: 0,
            config,
        }
    }

    // ---- input ------------------------------------------------------------------------------

    /// Bytes of a channel, in order, cut anywhere.
    pub fn handle_bytes(&mut self, now: Duration, channel: Channel, mut bytes: Bytes) {
        if self.is_closed() || bytes.is_empty() {
            return;
        }
        self.probes.heard(now);
        loop {
            let decoder = match channel {
                Channel::Control => Some(&mut self.control_in),
                Channel::Lane(lane) => self.lanes_in.get_mut(lane_index(lane)),
            };
            let Some(decoder) = decoder else { return };
            let taken = decoder.next(&mut bytes).and_then(|frame| match frame {
                None => Ok(false),
                Some(frame) => self.handle_frame(now, channel, frame).map(|()| true),
            });
            match taken {
                Ok(true) if !self.is_closed() => {}
                Ok(_) => break,
                Err(fault) => return self.refuse(fault),
            }
        }
        self.serving.issue_reads(&mut self.events);
    }

    /// A datagram, or the whole content of a one-way stream. What comes before hello, is too large or cannot be read
    /// is dropped and counted.
    pub fn handle_one_way(&mut self, now: Duration, bytes: Bytes) {
        if self.is_closed() {
            return;
        }
        self.probes.heard(now);
        let fits = bytes.len() <= self.config.batch_bytes_max && matches!(self.state, State::Up);
        if fits && !self.pace_in.admit(now, bytes.len() as u64) {
            self.one_way_limited = self.one_way_limited.saturating_add(1);
            return;
        }
        match fits.then(|| link::OneWay::decode(bytes)) {
            Some(Ok(message)) => self.events.push_back(Event::OneWay(Box::new(message))),
            _ => self.one_way_dropped = self.one_way_dropped.saturating_add(1),
        }
    }

    /// Time passed; call at or after [`Session::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Duration) {
        match self.state {
            State::Closed => return,
            State::Hello { until } if now >= until => {
                return self.finish(CloseReason::Dead(self.config.dead_after), None);
            }
            _ => {}
        }
        // The caller polls everything again; what still has to wait says so anew.
        self.resume_at = self.resume_at.filter(|at| now < *at);
        if let Some(silence) = self.probes.silence(now) {
            return self.finish(CloseReason::Dead(silence), None);
        }
        if matches!(self.state, State::Up)
            && let Some(number) = self.probes.poll(now)
        {
            let _ = self.send(Kind::Probe(link::Probe { number }));
        }
    }

    /// Sends a control message; before the peer's hello it waits for it, after the end it is dropped.
    ///
    /// # Errors
    /// [`Congested`], and the session is over.
    pub fn send(&mut self, message: Kind) -> Result<(), Congested> {
        if self.is_closed() {
            return Ok(());
        }
        let frame = frames::control_frame(message);
        if frame.len() > limits::CONTROL_FRAME_BYTES_MAX {
            let text = format!("this node made a control message of {} bytes, which is more than it may", frame.len());
            self.refuse(Fault { reason: RefuseReason::Overloaded, text });
            return Err(Congested);
        }
        if self.control_out_bytes.saturating_add(frame.len()) > self.config.control_queue_bytes_max {
            let text = Congested.to_string();
            self.refuse(Fault { reason: RefuseReason::Overloaded, text });
            return Err(Congested);
        }
        self.control_out_bytes += frame.len();
        self.control_out.push_back(frame);
        Ok(())
    }

    /// Asks the peer for a log.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn start_fetch(&mut self, order: FetchOrder) -> Result<(), Congested> {
        if self.is_closed() {
            return Ok(());
        }
        let message = Kind::Fetch((&order).into());
        self.asking.start(order);
        self.send(message)
    }

    /// Raises a passing fetch's allowance to a new total.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn raise_allowance(&mut self, number: FetchNumber, total: u64) -> Result<(), Congested> {
        if self.asking.raise(number, total) {
            self.send(Kind::FetchMore(link::FetchMore { number, allowance_total: total }))?;
        }
        Ok(())
    }

    /// Ends a fetch of ours; its batches still under way are dropped here and their credit returned.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn stop_fetch(&mut self, number: FetchNumber) -> Result<(), Congested> {
        if self.asking.stop(number) {
            if self.asking.is_stuck() {
                self.refuse(Fault::protocol("it does not answer when fetches are stopped".to_owned()));
                return Err(Congested);
            }
            self.send(Kind::FetchStop(link::FetchStop { number }))?;
        }
        Ok(())
    }

    /// Gives back the credit of a batch that was stored, passed on or dropped.
    pub fn release(&mut self, lane: Lane, credit: u64) {
        if let Some((_, granted)) = self.granted.get_mut(lane_index(lane)) {
            granted.release(credit);
        }
    }

    /// Serve this fetch of the peer from the own copy, from its present place on.
    pub fn serve(&mut self, number: FetchNumber) {
        self.serving.serve(number);
        self.serving.issue_reads(&mut self.events);
    }

    /// The answer to [`Event::Read`].
    pub fn handle_read(&mut self, number: FetchNumber, outcome: ReadOutcome) {
        self.serving.handle_read(number, outcome, &mut self.events);
        self.serving.issue_reads(&mut self.events);
    }

    /// The log's readable end moved: served fetches that wait there read again.
    pub fn handle_advanced(&mut self, log: &LogName) {
        self.serving.advanced(log);
        self.serving.issue_reads(&mut self.events);
    }

    /// A batch read through for a served fetch that is not served from the own copy: sent in order; must begin at (or
    /// contain) its next place. After [`Session::serve`] it is ignored. Whether it waits to be sent now; if so,
    /// [`Session::poll_fed_gone`] tells of it later.
    pub fn push_passed(&mut self, number: FetchNumber, batch: Batch) -> bool {
        self.serving.push_passed(number, batch, &mut self.events)
    }

    /// The next fetch of which batches given to [`Session::push_passed`] were sent, or dropped with it, and how many bytes
    /// of them, in the order in which they were given.
    pub fn poll_fed_gone(&mut self) -> Option<(FetchNumber, u64)> {
        self.serving.poll_fed_gone()
    }

    /// Where a served fetch stands; `None` once it has ended.
    pub fn served_at(&self, number: FetchNumber) -> Option<ServedAt> {
        self.serving.served_at(number)
    }

    /// The log of a served fetch; `None` once it has ended.
    pub fn served_log(&self, number: FetchNumber) -> Option<&LogName> {
        self.serving.served_log(number)
    }

    /// Ends a served fetch with an answer, in order after what was sent.
    pub fn end_served(&mut self, ended: FetchEnded) {
        self.serving.end(ended);
    }

    /// Begins the end: sends the reason as the last control frame.
    pub fn close(&mut self, reason: CloseReason) {
        if self.is_closed() {
            return;
        }
        let last = match &reason {
            CloseReason::Goodbye(text) => Some(Kind::Goodbye(link::Goodbye { text: text.clone() })),
            CloseReason::Refused { reason, text } => {
                Some(Kind::Refuse(link::Refuse { reason: (*reason).into(), text: text.clone() }))
            }
            CloseReason::RefusedByPeer { .. } | CloseReason::Lost(_) | CloseReason::Dead(_) => None,
        };
        self.finish(reason, last);
    }

    // ---- output -----------------------------------------------------------------------------

    /// The next frames of a channel; call when the channel can take more. Lanes: about 64 KiB to one batch at a time.
    pub fn poll_transmit(&mut self, now: Duration, channel: Channel) -> Option<Transmit> {
        let mut out = TransmitBuilder::default();
        match channel {
            Channel::Control => self.transmit_control(now, &mut out),
            Channel::Lane(lane) if matches!(self.state, State::Up) => {
                let wait = self.serving.transmit(now, lane, &mut self.pace_out, &mut out);
                self.resume_in(now, wait);
                self.serving.issue_reads(&mut self.events);
            }
            Channel::Lane(_) => {}
        }
        out.finish()
    }

    fn resume_in(&mut self, now: Duration, wait: Option<Duration>) {
        let at = wait.map(|wait| now.saturating_add(wait));
        self.resume_at = [self.resume_at, at].into_iter().flatten().min();
    }

    /// Grants what has come free, as far as the rate allows.
    fn grant(&mut self, now: Duration, out: &mut TransmitBuilder) {
        let mut resume = None;
        for (lane, granted) in &mut self.granted {
            let Some(fresh) = granted.due() else { continue };
            match self.pace_in.take_some(now, *lane, fresh) {
                Ok(more) => {
                    let credit = link::Credit { lane: (*lane).into(), granted_total: granted.grant(more) };
                    out.push_frame(frames::control_frame(Kind::Credit(credit)));
                }
                Err(wait) => resume = [resume, Some(wait)].into_iter().flatten().min(),
            }
        }
        self.resume_in(now, resume);
    }

    fn transmit_control(&mut self, now: Duration, out: &mut TransmitBuilder) {
        if let Some(hello) = self.hello.take() {
            out.push_frame(hello);
            self.granted.iter_mut().for_each(|(_, granted)| granted.said());
        }
        if matches!(self.state, State::Up) {
            self.grant(now, out);
        }
        if !matches!(self.state, State::Hello { .. }) {
            while !out.is_full()
                && let Some(frame) = self.control_out.pop_front()
            {
                self.control_out_bytes = self.control_out_bytes.saturating_sub(frame.len());
                out.push_frame(frame);
            }
        }
        if self.control_out.is_empty()
            && let Some(last) = self.last.take()
        {
            out.push_frame(last);
        }
        // It goes at once, and batches wait the longer.
        self.pace_out.take(Lane::Live, out.bytes(), 0);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.is_closed() {
            return None;
        }
        let number = self.serving.poll_moved()?;
        Some(Event::ServedMoved(number))
    }

    /// When to call [`Session::handle_timeout`]; `None` once the session is over.
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.state {
            State::Closed => None,
            State::Hello { until } => Some(until.min(self.probes.dead_at())),
            State::Up => {
                let probes = self.probes.due().min(self.probes.dead_at());
                Some(self.resume_at.map_or(probes, |at| at.min(probes)))
            }
        }
    }

    /// Looks at whether probes come back and what is due moves; to be called with each timeout, and judged at any later time.
    pub fn vitals(&mut self, now: Duration) -> Vitals {
        let Look { waits, oldest, yields, credit } = self.serving.look(now);
        Vitals {
            looked: now,
            patience: self.probes.patience(),
            unanswered: self.probes.unanswered(),
            heard: self.probes.heard_at(),
            waits,
            oldest,
            yields,
            credit,
            here: None,
            there: self.there.clone(),
            limited: self.limits_here(now),
            limited_there: self.limits_there.clone(),
        }
    }

    /// Tells the peer, if it understands that, why this node stores nothing of what it sends, or (empty) that it does again; and
    /// which rates hold back what goes between them.
    pub fn say_condition(&mut self, now: Duration, stalled: &str) {
        let understands = self.peer.as_ref().is_some_and(|peer| peer.features.contains(&FEATURE_CONDITION));
        let Limits { sends, takes, .. } = self.limits_here(now);
        let condition = link::Condition { stalled: stalled.to_owned(), sends_at_most: sends, takes_at_most: takes };
        if understands && self.condition != condition {
            self.condition = condition.clone();
            // Congestion ends the session by itself.
            let _ = self.send(Kind::Condition(condition));
        }
    }

    /// Other rates from now on. What was granted before still comes.
    pub fn set_rates(&mut self, now: Duration, rates: LinkRates) {
        if rates.send != self.pace_out.rates() {
            self.pace_out.set(rates.send, now);
        }
        if rates.receive == self.rates_in {
            return;
        }
        self.rates_in = rates.receive;
        let (window, paced) = receive_window(rates.receive);
        self.pace_in.set(paced, now);
        self.granted.iter_mut().for_each(|(_, granted)| granted.narrow(window));
        if self.hello.is_some() {
            self.hello = Some(frames::control_frame(Kind::Hello(handshake::hello(&self.config, &self.granted))));
        }
        // To look at once.
        self.resume_in(now, Some(Duration::ZERO));
    }

    fn limits_here(&self, now: Duration) -> Limits {
        let words = |pace: &Pace| pace.limited(now).unwrap_or_default();
        let since = self.pace_out.limited_since().max(self.pace_in.limited_since());
        Limits { sends: words(&self.pace_out), takes: words(&self.pace_in), since }
    }

    /// Whether the rate lets a one-way message of so many bytes go, which then counts.
    pub fn admit_one_way(&mut self, now: Duration, bytes: usize) -> bool {
        self.pace_out.admit(now, bytes as u64)
    }

    /// How often a rate held back what is sent; and what the peer is let send; and one-way messages that came above it and were
    /// dropped.
    pub fn times_limited(&self) -> [u64; 3] {
        [self.pace_out.times(), self.pace_in.times(), self.one_way_limited]
    }

    /// What it holds.
    pub fn buffered(&self) -> Buffered {
        let (sum, lanes) =
            (|of: &dyn Fn(&Granted) -> u64| self.granted.iter().map(|(_, g)| of(g)).sum(), LANES.len() as u64);
        let (reads, passing) = self.serving.buffered();
        let largest = self.config.batch_bytes_max as u64;
        let credit: u64 = sum(&|granted| granted.held().1);
        Buffered {
            control: (self.control_out_bytes as u64, self.config.control_queue_bytes_max as u64),
            received: (sum(&|granted| granted.held().0), credit),
            reads: (reads, lanes * (READ_AHEAD_BYTES + largest)),
            passing,
        }
    }

    /// The peer, once its hello was accepted.
    pub fn peer(&self) -> Option<&PeerInfo> {
        self.peer.as_ref()
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Control messages of kinds that this build does not know, which were skipped.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// One-way messages that came and were dropped.
    pub fn one_way_dropped(&self) -> u64 {
        self.one_way_dropped
    }

    // ---- what comes in ------------------------------------------------------------------------

    fn handle_frame(&mut self, now: Duration, channel: Channel, frame: Frame) -> Result<(), Fault> {
        let up = matches!(self.state, State::Up);
        match channel {
            Channel::Control => {
                let message = link::Control::decode(frame.payload)
                    .map_err(|_| Fault::protocol("a control message cannot be decoded".to_owned()))?;
                match message.kind {
                    Some(kind) => self.handle_control(now, kind),
                    None if up => {
                        self.skipped = self.skipped.saturating_add(1);
                        Ok(())
                    }
                    None => Err(Fault::before_hello()),
                }
            }
            Channel::Lane(_) if !up => Err(Fault::before_hello()),
            Channel::Lane(lane) if frame.kind == frames::KIND_BATCH => self.handle_batch(lane, frame.payload),
            Channel::Lane(lane) => self.handle_lane_control(lane, frame.payload),
        }
    }

    fn handle_control(&mut self, now: Duration, kind: Kind) -> Result<(), Fault> {
        match (kind, &self.state) {
            (Kind::Refuse(refuse), _) => {
                let reason = refuse.reason();
                let text = plain(&refuse.text);
                self.finish(CloseReason::RefusedByPeer { reason, text }, None);
                Ok(())
            }
            (Kind::Goodbye(goodbye), _) => {
                self.finish(CloseReason::Goodbye(plain(&goodbye.text)), None);
                Ok(())
            }
            (Kind::Hello(hello), State::Hello { .. }) => self.handle_hello(now, hello),
            (Kind::Hello(_), _) => Err(Fault::protocol("it said hello twice".to_owned())),
            (_, State::Hello { .. }) => Err(Fault::before_hello()),
            (kind, _) => self.handle_message(now, kind),
        }
    }

    fn handle_hello(&mut self, now: Duration, hello: link::Hello) -> Result<(), Fault> {
        let (peer, credit) = handshake::check(&self.config, hello)?;
        self.serving.open(credit, peer.batch_bytes_max);
        self.state = State::Up;
        self.peer = Some(peer.clone());
        self.events.push_back(Event::Up(peer));
        if let Some(number) = self.probes.poll(now) {
            let _ = self.send(Kind::Probe(link::Probe { number }));
        }
        Ok(())
    }

    fn handle_message(&mut self, now: Duration, kind: Kind) -> Result<(), Fault> {
        match kind {
            Kind::Credit(credit) => self.serving.raise_credit(credit.lane.try_into()?, credit.granted_total)?,
            Kind::Probe(link::Probe { number }) => {
                // Congestion ends the session by itself.
                let _ = self.send(Kind::ProbeReply(link::ProbeReply { number }));
            }
            Kind::Condition(condition) => {
                let what: String = plain(&condition.stalled).chars().take(CONDITION_CHARS_MAX).collect();
                let since = self.there.as_ref().map_or(now, |there| there.since);
                self.there = (!what.is_empty()).then_some(Trouble::storing(since, what));
                let words = |text: &str| plain(text).chars().take(CONDITION_CHARS_MAX).collect();
                let (sends, takes): (String, String) =
                    (words(&condition.sends_at_most), words(&condition.takes_at_most));
                let before = &self.limits_there;
                let goes_on = !(before.sends.is_empty() && before.takes.is_empty());
                let since = if goes_on { before.since } else { now };
                self.limits_there = Limits { sends, takes, since };
            }
            Kind::ProbeReply(reply) => {
                if let Some(took) = self.probes.answered(reply.number, now) {
                    self.events.push_back(Event::RoundTrip(took));
                }
            }
            Kind::Fetch(fetch) => {
                let order = FetchOrder::try_from(fetch)?;
                self.serving.request(&order)?;
                self.events.push_back(Event::FetchRequested(order));
            }
            Kind::FetchMore(more) => self.serving.raise_allowance(more.number, more.allowance_total)?,
            Kind::FetchStop(stop) => {
                if self.serving.stop(stop.number)? {
                    self.events.push_back(Event::FetchStopped(stop.number));
                }
            }
            other => self.events.push_back(Event::Control(Box::new(other))),
        }
        Ok(())
    }

    fn handle_batch(&mut self, lane: Lane, payload: Bytes) -> Result<(), Fault> {
        let (number, batch) = frames::read_batch(payload, self.config.batch_bytes_max)?;
        let credit = batch.len() as u64;
        if let Some((_, granted)) = self.granted.get_mut(lane_index(lane)) {
            granted.take(credit)?;
        }
        self.pace_in.take(lane, 0, u64::from(batch.header().count));
        match self.asking.take(lane, number, &batch)? {
            Taken::Next { passing } => self.events.push_back(Event::Batch { number, lane, credit, passing, batch }),
            Taken::Dropped => self.release(lane, credit),
        }
        Ok(())
    }

    fn handle_lane_control(&mut self, lane: Lane, payload: Bytes) -> Result<(), Fault> {
        let message = link::LaneControl::decode(payload)
            .map_err(|_| Fault::protocol("a lane's control message cannot be decoded".to_owned()))?;
        match message.kind {
            Some(link::lane_control::Kind::FetchEnded(ended)) => {
                let ended = FetchEnded::try_from(ended)?;
                if self.asking.end(lane, ended.number)? {
                    self.events.push_back(Event::FetchEnded(ended));
                }
            }
            None => self.skipped = self.skipped.saturating_add(1),
        }
        Ok(())
    }

    // ---- the end ------------------------------------------------------------------------------

    fn refuse(&mut self, fault: Fault) {
        self.close(CloseReason::Refused { reason: fault.reason, text: fault.text });
    }

    /// A peaceful end lets the queue out first; any other does not.
    fn finish(&mut self, reason: CloseReason, last: Option<Kind>) {
        if self.is_closed() {
            return;
        }
        if !matches!(reason, CloseReason::Goodbye(_)) || last.is_none() || matches!(self.state, State::Hello { .. }) {
            self.control_out.clear();
            self.control_out_bytes = 0;
        }
        self.state = State::Closed;
        self.asking = Asking::default();
        self.serving = Serving::new(String::new(), 0);
        self.last = last.map(frames::control_frame);
        self.events.push_back(Event::Closed(reason));
    }
}
