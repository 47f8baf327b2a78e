//! The fetches that the peer asked for: what is read for them, and whose batch goes next.
//!
//! Every fetch has a queue of batches, filled by reads of the own copy or by what is read through from another
//! link. A lane's credit goes round its ready fetches by bytes (deficit round robin), so that one log cannot starve
//! another. A batch goes only when the whole of it fits the lane's credit; a passing fetch gets its next batch while
//! fewer bytes than its allowance were sent, so it runs over by less than one batch and cannot stand still for want
//! of a few bytes.
//!
//! What is read ahead is bounded per lane ([`READ_AHEAD_BYTES`]), and no more is read for a fetch than it may send, so that
//! one that may not go on takes nothing from the others. What is read through is bounded by the core, which asks for no more
//! than [`ServedAt`] has room for and is told when it has left ([`super::Session::poll_fed_gone`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    Event, Fault, FetchEnded, FetchLine, FetchNumber, FetchOrder, LANES, Lane, ReadOutcome, ServedAt,
    credit::Allowed,
    fetches::{contains, follows},
    frames::TransmitBuilder,
    lane_index,
    pace::Pace,
    vitals::Wait,
};
use crate::{
    envelope::Batch,
    ids::{LogName, Place},
    wire::{link, link::FetchEnd, link::RefuseReason},
};

/// About how much one read asks for, in bytes.
pub const READ_BYTES: usize = 256 * 1024;
/// Bytes that a lane holds of batches read, and of reads under way, before it begins another read.
pub const READ_AHEAD_BYTES: u64 = 2 * 1024 * 1024;
/// Bytes that a fetch may send when its turn comes, before the next fetch has its turn.
const QUANTUM_BYTES: u64 = 64 * 1024;
/// The core is told how a fed fetch goes on whenever this many bytes were sent on, or when it had less room than this
/// and has more now.
const FED_REPORT_BYTES: u64 = 256 * 1024;
/// How much later than said a rate may let something go before it is the line's fault.
const LIMIT_SLACK: Duration = Duration::from_millis(500);
/// Looks remembered, to tell when the oldest of what waits came.
const LOOKS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The core has not yet decided.
    Paused,
    /// The own copy, which may have more.
    Copy,
    /// The own copy, at whose end the fetch waits.
    CopyAtEnd,
    /// Batches read through, pushed by the core.
    Fed,
}

/// A batch that waits to be sent.
#[derive(Debug)]
struct Queued {
    batch: Batch,
    /// Read through, not from the own copy.
    fed: bool,
}

#[derive(Debug)]
struct Served {
    order: FetchOrder,
    source: Source,
    /// After everything queued.
    next: Place,
    queue: VecDeque<Queued>,
    queued: u64,
    sent: u64,
    allowance: u64,
    deficit: u64,
    ready: bool,
    /// Bytes reserved for the read that is out.
    reading: Option<u64>,
    waits_for_read: bool,
    /// The log advanced while the read was out.
    advanced: bool,
    ended: Option<link::FetchEnded>,
    /// Bytes pushed since the core began to feed it.
    fed: u64,
    reported: (u64, u64),
}

impl Served {
    fn new(order: FetchOrder) -> Self {
        Self {
            source: Source::Paused,
            next: order.from,
            queue: VecDeque::new(),
            queued: 0,
            sent: 0,
            allowance: if order.passing { order.allowance } else { u64::MAX },
            deficit: 0,
            ready: false,
            reading: None,
            waits_for_read: false,
            advanced: false,
            ended: None,
            fed: 0,
            reported: (0, 0),
            order,
        }
    }

    fn allowance_left(&self) -> u64 {
        self.allowance.saturating_sub(self.sent)
    }

    /// Bytes sent of what was fed: the queue is in order, so what was fed is its last part.
    fn passed(&self) -> u64 {
        self.fed.saturating_sub(self.queued)
    }

    fn fed_queued(&self) -> u64 {
        self.queue.iter().filter(|q| q.fed).map(|q| q.batch.len() as u64).sum()
    }
}

#[derive(Debug, Default)]
struct LaneOut {
    credit: Allowed,
    ready: VecDeque<FetchNumber>,
    /// Answers to stops; the fetches are gone.
    ends: VecDeque<link::FetchEnded>,
    to_read: VecDeque<FetchNumber>,
    /// Bytes of all batches that wait, and of those among them that were read through.
    queued: u64,
    queued_fed: u64,
    reading: u64,
    fed: BTreeSet<FetchNumber>,
    /// Bytes of batches that were sent, or dropped with their fetch.
    gone: u64,
    /// Since when something is due and nothing went, and what had gone by then.
    idle: Option<(Duration, u64)>,
    /// How much had come at each look, as long as some of it is due.
    came: VecDeque<(Duration, u64)>,
    /// Until when a rate holds back what is due.
    limited: Option<Duration>,
}

/// What waits for the peer, over all lanes.
pub(super) struct Look {
    /// Since when something is due and nothing goes, and why.
    pub(super) waits: Option<(Duration, Wait)>,
    /// When the oldest of what is due came.
    pub(super) oldest: Option<Duration>,
    /// Whether a lane gets nothing because another goes first.
    pub(super) yields: bool,
    /// What the peer has granted and is not used, by lane in the order of [`LANES`].
    pub(super) credit: [u64; LANES.len()],
}

/// All fetches served on a link.
#[derive(Debug)]
pub(super) struct Serving {
    site: String,
    fetches_max: usize,
    batch_bytes_max: usize,
    fetches: BTreeMap<FetchNumber, Served>,
    by_log: BTreeMap<LogName, BTreeSet<FetchNumber>>,
    lanes: [LaneOut; LANES.len()],
    highest: FetchNumber,
    /// Fed fetches whose progress the core has not yet been told.
    moved: BTreeSet<FetchNumber>,
    /// Bytes that were fed and have left, by fetch, until the shell takes note: at most one entry for each batch.
    fed_gone: VecDeque<(FetchNumber, u64)>,
    /// When any lane was last seen to have moved, and what had gone on all of them by then.
    any_moved: Option<(Duration, u64)>,
}

impl Serving {
    pub(super) fn new(site: String, fetches_max: usize) -> Self {
        Self {
            site,
            fetches_max,
            batch_bytes_max: 0,
            fetches: BTreeMap::new(),
            by_log: BTreeMap::new(),
            lanes: Default::default(),
            highest: 0,
            moved: BTreeSet::new(),
            fed_gone: VecDeque::new(),
            any_moved: None,
        }
    }

    /// What the peer's hello granted.
    pub(super) fn open(&mut self, credit: [Allowed; 2], batch_bytes_max: usize) {
        self.batch_bytes_max = batch_bytes_max;
        for (lane, credit) in self.lanes.iter_mut().zip(credit) {
            lane.credit = credit;
        }
    }

    pub(super) fn raise_credit(&mut self, lane: Lane, total: u64) -> Result<(), Fault> {
        self.lane(lane).credit.raise(total)?;
        self.room_grew(lane);
        Ok(())
    }

    /// Fed fetches that were told of little room are told anew.
    fn room_grew(&mut self, lane: Lane) {
        let fed = self.lane(lane).fed.clone();
        let short = |number: &FetchNumber| self.fetches.get(number).is_some_and(|f| f.reported.1 < FED_REPORT_BYTES);
        self.moved.extend(fed.into_iter().filter(short));
    }

    /// The peer asks.
    pub(super) fn request(&mut self, order: &FetchOrder) -> Result<(), Fault> {
        if order.number <= self.highest {
            return Err(Fault::protocol(format!("fetch {} came after fetch {}", order.number, self.highest)));
        }
        let unsent: usize = self.lanes.iter().map(|l| l.ends.len()).sum();
        if self.fetches.len() + unsent >= self.fetches_max {
            let text = format!("it has more than {} fetches open", self.fetches_max);
            return Err(Fault { reason: RefuseReason::Overloaded, text });
        }
        self.highest = order.number;
        self.by_log.entry(order.log.clone()).or_default().insert(order.number);
        self.fetches.insert(order.number, Served::new(order.clone()));
        Ok(())
    }

    /// The peer grants a passing fetch more.
    pub(super) fn raise_allowance(&mut self, number: FetchNumber, total: u64) -> Result<(), Fault> {
        self.check_known(number)?;
        let Some(fetch) = self.fetches.get_mut(&number) else { return Ok(()) };
        if !fetch.order.passing || total < fetch.allowance {
            return Err(Fault::protocol(format!("it lowered the allowance of fetch {number}, or it has none")));
        }
        fetch.allowance = total;
        self.moved.insert(number);
        self.make_ready(number);
        self.want_read(number);
        Ok(())
    }

    /// The peer stops a fetch; whether it still ran.
    pub(super) fn stop(&mut self, number: FetchNumber) -> Result<bool, Fault> {
        self.check_known(number)?;
        // Where it is gone already, its end is on the way, and answers the stop too.
        let Some(fetch) = self.remove(number) else { return Ok(false) };
        let end = link::FetchEnded { number, end: FetchEnd::Stopped.into(), ..Default::default() };
        self.lane(fetch.order.lane).ends.push_back(end);
        Ok(fetch.ended.is_none())
    }

    fn check_known(&self, number: FetchNumber) -> Result<(), Fault> {
        if number > self.highest {
            return Err(Fault::protocol(format!("it speaks of fetch {number}, which it never asked for")));
        }
        Ok(())
    }

    /// Goes on from the own copy.
    pub(super) fn serve(&mut self, number: FetchNumber) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        fetch.source = Source::Copy;
        let lane = fetch.order.lane;
        self.lane(lane).fed.remove(&number);
        self.want_read(number);
    }

    /// From here on the core feeds the fetch; what it pushes is counted anew.
    fn feed(&mut self, number: FetchNumber) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        fetch.source = Source::Fed;
        fetch.fed = 0;
        fetch.reported = (0, 0);
        let lane = fetch.order.lane;
        self.lane(lane).fed.insert(number);
    }

    /// A batch read through; whether it waits to be sent now.
    pub(super) fn push_passed(&mut self, number: FetchNumber, batch: Batch, events: &mut VecDeque<Event>) -> bool {
        if self.fetches.get(&number).is_some_and(|f| f.source == Source::Paused) {
            self.feed(number);
        }
        // What still comes after the copy took over is in the copy, too.
        let fed = |f: &&mut Served| f.source == Source::Fed && f.ended.is_none();
        let Some(fetch) = self.fetches.get_mut(&number).filter(fed) else { return false };
        let next = fetch.next;
        if batch.begin().incarnation == next.incarnation && batch.end_offset() <= next.offset {
            // As good as sent.
            fetch.fed = fetch.fed.saturating_add(batch.len() as u64);
            return false;
        }
        // Batch boundaries are the same everywhere, so only a fetch's first batch may begin below its place.
        let begins = next == fetch.order.from && contains(&batch, next);
        if !begins && !follows(&batch, next, FetchLine::Main) {
            let text = format!("what was read through jumped from {next} to {}", batch.begin());
            self.end_self(number, FetchEnd::Failed, Some(next), text, events);
            return false;
        }
        let len = batch.len() as u64;
        fetch.fed = fetch.fed.saturating_add(len);
        let taken = self.enqueue(number, batch, true, events);
        if let Some(fetch) = self.fetches.get_mut(&number).filter(|_| !taken) {
            fetch.fed = fetch.fed.saturating_sub(len);
        }
        taken
    }

    /// A read came back; whether it ran outside the copy.
    pub(super) fn handle_read(&mut self, number: FetchNumber, outcome: ReadOutcome, events: &mut VecDeque<Event>) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        let lane = fetch.order.lane;
        let Some(reserved) = fetch.reading.take() else { return };
        let advanced = std::mem::take(&mut fetch.advanced);
        let wanted = fetch.source == Source::Copy && fetch.ended.is_none();
        let lane = self.lane(lane);
        lane.reading = lane.reading.saturating_sub(reserved);
        if !wanted {
            return;
        }
        match outcome {
            ReadOutcome::Batches(batches, next) if !batches.is_empty() => {
                for batch in batches {
                    self.enqueue(number, batch, false, events);
                }
                if let Some(fetch) = self.fetches.get_mut(&number).filter(|f| f.ended.is_none()) {
                    fetch.next = next;
                }
                self.want_read(number);
            }
            ReadOutcome::Batches(_, at) | ReadOutcome::AtEnd(at) => self.at_end(number, at, advanced, events),
            ReadOutcome::Outside => self.feed(number),
        }
    }

    fn at_end(&mut self, number: FetchNumber, at: Place, advanced: bool, events: &mut VecDeque<Event>) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        if advanced {
            self.want_read(number);
        } else if fetch.order.no_wait {
            self.end_self(number, FetchEnd::AtEnd, Some(at), String::new(), events);
        } else {
            fetch.source = Source::CopyAtEnd;
        }
    }

    /// Puts a batch at the end of its fetch's queue; false if the fetch ended before it.
    fn enqueue(&mut self, number: FetchNumber, batch: Batch, fed: bool, events: &mut VecDeque<Event>) -> bool {
        let batch_bytes_max = self.batch_bytes_max;
        let Some(fetch) = self.fetches.get_mut(&number).filter(|f| f.ended.is_none()) else { return false };
        let until = fetch.order.until;
        let next = fetch.next;
        if until.is_some_and(|until| batch.begin().offset >= until) {
            self.end_self(number, FetchEnd::Done, Some(next), String::new(), events);
            return false;
        }
        if batch.len() > batch_bytes_max {
            let text = format!(
                "the batch at {} has {} bytes, and this node takes at most {batch_bytes_max}",
                next,
                batch.len()
            );
            self.end_self(number, FetchEnd::Failed, Some(next), text, events);
            return false;
        }
        let len = batch.len() as u64;
        let end = batch.end();
        fetch.next = end;
        fetch.queued = fetch.queued.saturating_add(len);
        fetch.queue.push_back(Queued { batch, fed });
        let lane = fetch.order.lane;
        let out = self.lane(lane);
        out.queued += len;
        if fed {
            out.queued_fed += len;
        }
        self.make_ready(number);
        if until.is_some_and(|until| end.offset >= until) {
            self.end_self(number, FetchEnd::Done, Some(end), String::new(), events);
        }
        true
    }

    /// The fetch ends by itself, which the core is told.
    fn end_self(
        &mut self,
        number: FetchNumber,
        end: FetchEnd,
        at: Option<Place>,
        text: String,
        events: &mut VecDeque<Event>,
    ) {
        let ended = FetchEnded { number, end, at, answered_by: self.site.clone(), text };
        if self.end(ended) {
            events.push_back(Event::ServedOver(number));
        }
    }

    /// Ends a fetch in order after what is queued; whether it had not ended before.
    pub(super) fn end(&mut self, ended: FetchEnded) -> bool {
        let number = ended.number;
        let Some(fetch) = self.fetches.get_mut(&number).filter(|f| f.ended.is_none()) else { return false };
        fetch.ended = Some(ended.into());
        let lane = fetch.order.lane;
        self.lane(lane).fed.remove(&number);
        self.moved.remove(&number);
        self.make_ready(number);
        true
    }

    /// The readable end of a log moved.
    pub(super) fn advanced(&mut self, log: &LogName) {
        let numbers: Vec<_> = self.by_log.get(log).into_iter().flatten().copied().collect();
        for number in numbers {
            let Some(fetch) = self.fetches.get_mut(&number) else { continue };
            if fetch.reading.is_some() {
                fetch.advanced = true;
            } else if fetch.source == Source::CopyAtEnd {
                fetch.source = Source::Copy;
                self.want_read(number);
            } else if matches!(fetch.source, Source::Fed | Source::Paused) && fetch.ended.is_none() {
                // The own copy may be able to take over; told even if nothing was sent since.
                fetch.reported = (u64::MAX, u64::MAX);
                self.moved.insert(number);
            }
        }
    }

    pub(super) fn served_at(&self, number: FetchNumber) -> Option<ServedAt> {
        let fetch = self.fetches.get(&number).filter(|f| f.ended.is_none())?;
        let lane = self.lanes.get(lane_index(fetch.order.lane))?;
        let by_allowance = fetch.allowance_left().saturating_sub(fetch.queued);
        let by_credit = lane.credit.room().saturating_sub(lane.queued);
        Some(ServedAt { next: fetch.next, room: by_allowance.min(by_credit), passed: fetch.passed() })
    }

    pub(super) fn served_log(&self, number: FetchNumber) -> Option<&LogName> {
        self.fetches.get(&number).filter(|f| f.ended.is_none()).map(|f| &f.order.log)
    }

    /// Bytes that were fed to a fetch and have left this node, or were dropped with it.
    pub(super) fn poll_fed_gone(&mut self) -> Option<(FetchNumber, u64)> {
        self.fed_gone.pop_front()
    }

    /// The next fed fetch whose progress or room is worth telling.
    pub(super) fn poll_moved(&mut self) -> Option<FetchNumber> {
        while let Some(number) = self.moved.pop_first() {
            let Some(at) = self.served_at(number) else { continue };
            let Some(fetch) = self.fetches.get_mut(&number) else { continue };
            if matches!(fetch.source, Source::Fed | Source::Paused) && fetch.reported != (at.passed, at.room) {
                fetch.reported = (at.passed, at.room);
                return Some(number);
            }
        }
        None
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneOut {
        let [live, backlog] = &mut self.lanes;
        match lane {
            Lane::Live => live,
            Lane::Backlog => backlog,
        }
    }

    fn remove(&mut self, number: FetchNumber) -> Option<Served> {
        let fetch = self.fetches.remove(&number)?;
        if let Some(numbers) = self.by_log.get_mut(&fetch.order.log) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_log.remove(&fetch.order.log);
            }
        }
        self.moved.remove(&number);
        let fed_queued = fetch.fed_queued();
        if fed_queued > 0 {
            self.fed_gone.push_back((number, fed_queued));
        }
        let lane = self.lane(fetch.order.lane);
        lane.fed.remove(&number);
        lane.queued_fed = lane.queued_fed.saturating_sub(fed_queued);
        lane.queued = lane.queued.saturating_sub(fetch.queued);
        lane.gone = lane.gone.saturating_add(fetch.queued);
        lane.reading = lane.reading.saturating_sub(fetch.reading.unwrap_or_default());
        if fetch.ready {
            lane.ready.retain(|n| *n != number);
        }
        if fetch.waits_for_read {
            lane.to_read.retain(|n| *n != number);
        }
        if fetch.queued > 0 {
            self.room_grew(fetch.order.lane);
        }
        Some(fetch)
    }

    fn make_ready(&mut self, number: FetchNumber) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        if fetch.ready || (fetch.queue.is_empty() && fetch.ended.is_none()) {
            return;
        }
        fetch.ready = true;
        let lane = fetch.order.lane;
        self.lane(lane).ready.push_back(number);
    }

    fn want_read(&mut self, number: FetchNumber) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        let idle = fetch.reading.is_none() && !fetch.waits_for_read && fetch.ended.is_none();
        let hungry = fetch.queued < READ_BYTES as u64 && fetch.queued < fetch.allowance_left();
        if fetch.source == Source::Copy && idle && hungry {
            fetch.waits_for_read = true;
            let lane = fetch.order.lane;
            self.lane(lane).to_read.push_back(number);
        }
    }

    /// Notes what moved on a lane since the last look, and answers since when what is due there does not, and why; and when the
    /// oldest of it came.
    fn look_at(&mut self, now: Duration, lane: Lane) -> (Option<(Duration, Wait)>, Option<Duration>) {
        let out = self.lane(lane);
        let (room, first, reads) = (out.credit.room(), out.ready.front().copied(), out.reading > 0);
        let batch = first.and_then(|number| self.fetches.get(&number)?.queue.front()).map(|q| q.batch.len() as u64);
        let wait = match batch {
            Some(len) if len > room => Some(Wait::Credit),
            // Past its time it is the line that does not take it.
            Some(_) if self.lane(lane).limited.is_some_and(|until| now <= until.saturating_add(LIMIT_SLACK)) => {
                Some(Wait::Limit)
            }
            Some(_) => Some(Wait::Line),
            None => (first.is_none() && reads).then_some(Wait::Disk),
        };
        let out = self.lane(lane);
        let Some(wait) = wait else {
            out.idle = None;
            out.came.clear();
            return (None, None);
        };
        let gone = out.gone;
        let idle = out.idle.filter(|(_, before)| *before == gone).unwrap_or((now, gone));
        out.idle = Some(idle);
        let came = gone.saturating_add(out.queued);
        while out.came.front().is_some_and(|(_, came)| *came <= gone) {
            out.came.pop_front();
        }
        if came > gone && out.came.back().is_none_or(|(_, before)| *before != came) {
            if out.came.len() >= LOOKS_MAX {
                // Any but the oldest.
                out.came.remove(1);
            }
            out.came.push_back((now, came));
        }
        (Some((idle.0, wait)), out.came.front().map(|(at, _)| *at))
    }

    /// The same over all lanes: what waits longest. A lane that only yields to another, which moves, does not wait for the line.
    pub(super) fn look(&mut self, now: Duration) -> Look {
        let looks = LANES.map(|lane| self.look_at(now, lane));
        let gone = self.lanes.iter().fold(0_u64, |sum, lane| sum.saturating_add(lane.gone));
        let moved = self.any_moved.filter(|(_, before)| *before == gone).unwrap_or((now, gone));
        self.any_moved = Some(moved);
        let mut yields = false;
        let mut waits = Vec::new();
        for (since, wait) in looks.iter().filter_map(|(waits, _)| *waits) {
            let line = wait == Wait::Line;
            yields |= line && since < moved.0;
            waits.push((if line { since.max(moved.0) } else { since }, wait));
        }
        let waits = waits.into_iter().min_by_key(|(since, wait)| (*wait == Wait::Limit, *since));
        let credit = LANES.map(|lane| self.lane(lane).credit.room());
        Look { credit, waits, oldest: looks.iter().filter_map(|(_, oldest)| *oldest).min(), yields }
    }

    /// Bytes that wait to be sent: of the own copies, reads under way included, and read through.
    pub(super) fn buffered(&self) -> (u64, u64) {
        let own = self
            .lanes
            .iter()
            .map(|lane| lane.queued.saturating_sub(lane.queued_fed).saturating_add(lane.reading))
            .sum();
        (own, self.lanes.iter().map(|lane| lane.queued_fed).sum())
    }

    /// Begins the reads that there is room for.
    pub(super) fn issue_reads(&mut self, events: &mut VecDeque<Event>) {
        for lane in LANES {
            loop {
                let out = self.lane(lane);
                let held = out.queued.saturating_sub(out.queued_fed).saturating_add(out.reading);
                if held > 0 && held.saturating_add(READ_BYTES as u64) > READ_AHEAD_BYTES {
                    break;
                }
                let Some(number) = out.to_read.pop_front() else { break };
                let Some(fetch) = self.fetches.get_mut(&number) else { continue };
                fetch.waits_for_read = false;
                if fetch.source != Source::Copy || fetch.ended.is_some() {
                    continue;
                }
                // What it may not send would keep others from being read for.
                let left = fetch.allowance_left().saturating_sub(fetch.queued);
                let left = usize::try_from(left).unwrap_or(usize::MAX);
                let bytes_max = READ_BYTES.min(left).max(1);
                fetch.reading = Some(bytes_max as u64);
                let (log, from, line) = (fetch.order.log.clone(), fetch.next, fetch.order.line);
                self.lane(lane).reading += bytes_max as u64;
                events.push_back(Event::Read { number, log, from, line, bytes_max });
            }
        }
    }

    /// Gathers what goes next on a lane, as far as its rate allows; how long to wait where that is what ends it.
    pub(super) fn transmit(
        &mut self,
        now: Duration,
        lane: Lane,
        pace: &mut Pace,
        out: &mut TransmitBuilder,
    ) -> Option<Duration> {
        self.lane(lane).limited = None;
        while !out.is_full() {
            let this = self.lane(lane);
            if let Some(end) = this.ends.pop_front() {
                out.push_end(end);
                continue;
            }
            let room = this.credit.room();
            let number = this.ready.front().copied()?;
            let Some(fetch) = self.fetches.get_mut(&number) else {
                self.lane(lane).ready.pop_front();
                continue;
            };
            match turn(fetch, room, |bytes, messages| pace.wait(now, lane, bytes, messages)) {
                Turn::NoCredit => {
                    let this = self.lane(lane);
                    let gone = this.gone;
                    this.idle.get_or_insert((now, gone));
                    return None;
                }
                Turn::Limited(wait) => {
                    let this = self.lane(lane);
                    let gone = this.gone;
                    this.idle.get_or_insert((now, gone));
                    this.limited = Some(now.saturating_add(wait));
                    return Some(wait);
                }
                Turn::Over => {
                    if let Some(end) = self.remove(number).and_then(|f| f.ended) {
                        out.push_end(end);
                    }
                }
                Turn::Nothing => {
                    fetch.ready = false;
                    fetch.deficit = 0;
                    self.lane(lane).ready.pop_front();
                }
                Turn::Next => {
                    fetch.deficit = fetch.deficit.saturating_add(QUANTUM_BYTES);
                    self.lane(lane).ready.rotate_left(1);
                }
                Turn::Send(Queued { batch, fed }) => {
                    pace.take(lane, batch.len() as u64, u64::from(batch.header().count));
                    out.push_batch(number, &batch);
                    self.sent(number, lane, batch.len() as u64, fed);
                }
            }
        }
        None
    }

    fn sent(&mut self, number: FetchNumber, lane: Lane, len: u64, fed: bool) {
        let out = self.lane(lane);
        out.idle = None;
        out.gone = out.gone.saturating_add(len);
        out.credit.take(len);
        out.queued = out.queued.saturating_sub(len);
        if fed {
            out.queued_fed = out.queued_fed.saturating_sub(len);
            self.fed_gone.push_back((number, len));
        }
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        let untold = fetch.passed().saturating_sub(fetch.reported.0);
        // With nothing left here, what is still to come is all that is promised to it.
        if fetch.source == Source::Fed && (untold >= FED_REPORT_BYTES || (untold > 0 && fetch.queue.is_empty())) {
            self.moved.insert(number);
        }
        self.want_read(number);
    }
}

enum Turn {
    /// The lane's credit does not hold its next batch; a smaller one of another fetch must not slip past.
    NoCredit,
    /// The link's rate does not let it go yet.
    Limited(Duration),
    /// Everything was sent and it has ended.
    Over,
    /// It has nothing to send, or may not.
    Nothing,
    /// It has used up its share of this round.
    Next,
    /// This goes.
    Send(Queued),
}

/// What the fetch at the head of the round does with a lane's room.
fn turn(fetch: &mut Served, room: u64, limited: impl FnOnce(u64, u64) -> Option<Duration>) -> Turn {
    let Some(next) = fetch.queue.front() else {
        return if fetch.ended.is_some() { Turn::Over } else { Turn::Nothing };
    };
    let (len, messages) = (next.batch.len() as u64, u64::from(next.batch.header().count));
    if fetch.sent >= fetch.allowance {
        return Turn::Nothing;
    }
    if len > room {
        return Turn::NoCredit;
    }
    if fetch.deficit < len {
        return Turn::Next;
    }
    if let Some(wait) = limited(len, messages) {
        return Turn::Limited(wait);
    }
    let Some(next) = fetch.queue.pop_front() else { return Turn::Nothing };
    fetch.deficit -= len;
    fetch.sent = fetch.sent.saturating_add(len);
    fetch.queued = fetch.queued.saturating_sub(len);
    Turn::Send(next)
}
