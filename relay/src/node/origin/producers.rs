//! Idempotent producers: which sequences are stored, where, and which are on their way.
//!
//! A producer numbers its messages per topic; messages of one producer may go to several queues, whose units
//! become durable one after the other. So beside "the greatest so far" this keeps, per producer and topic, the
//! *floor* (everything below is stored), what is pending, and what is missing above the floor (a batch that was
//! refused, or did not survive a crash, while a later one of another queue did): a missing sequence is accepted
//! again, lowest first, and nothing new before it. Every unit that stores a producer's messages carries the
//! floor and the batch's places ([`ProducerHead`], [`ProducerRow`]), so a restart knows exactly what is stored.
//!
//! A sequence below the floor is always known to be stored; where it stands is remembered for the last
//! [`SEQUENCES_REMEMBERED`]. A row grows while its producer's batches follow each other in one queue, so that the usual
//! producer has one row, however long it goes on.
//!
//! Bounds: [`PRODUCERS_MAX`] producers, [`RUNS_MAX`] remembered runs in all (past it the places of those unused longest go first),
//! [`REMEMBERED_FOR`] since the last use.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::{
    ids::{Incarnation, Place, Queue, Topic},
    message::ProducerStamp,
    wire::store::{self, ProducerHead, ProducerRow, ProducerRun},
};

use super::teller::Teller;
use crate::{
    log::contract::{Entry, Table},
    node::PublishError,
};

/// Most producers remembered; past it the one unused longest is forgotten.
pub(super) const PRODUCERS_MAX: usize = 10_000;
/// Most runs of sequences remembered over all producers (about 100 bytes each).
pub(super) const RUNS_MAX: usize = 500_000;
/// For how many of the last sequences of a producer in a topic the place is remembered: twice what one stream of a door may
/// have on the way (65,536), since all of it may be stored and in doubt when a connection breaks.
pub(super) const SEQUENCES_REMEMBERED: u64 = 131_072;
/// How long an unused producer is remembered, by the monotonic clock; a restart begins it anew.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Most retries that wait for one pending message.
const RETRIES_WAITING_MAX: usize = 16;
/// Most rows of forgotten sequences deleted in one unit.
const DELETES_PER_UNIT: usize = 64;

/// What to do with a stamped message.
pub(super) enum Verdict {
    /// Store it; it is pending from now on.
    Accept(Teller),
    /// Stored before, durable, at this place.
    Repeated(Teller, Queue, Place),
    /// Stored before, durable; so long ago that its place is no longer remembered.
    StoredBefore(Teller),
    /// The first call's message is on its way; this one is told with it.
    Waits,
    /// Refused; nothing is stored.
    Refused(Teller, PublishError),
}

/// One stamped message of a batch: its sequence and its index in the batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamped {
    pub(super) stamp: ProducerStamp,
    pub(super) index: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    count: u64,
    queue: Queue,
    first: Place,
}

#[derive(Default)]
struct Pending {
    submitted: bool,
    retries: Vec<Teller>,
}

/// One producer's sequences in one topic, for its present epoch.
#[derive(Default)]
struct Sequences {
    /// Everything below is stored, or submitted before what is submitted next.
    floor: u64,
    /// One more than the greatest accepted.
    next: u64,
    /// Whether something was accepted in this process: a producer that is ahead of what was restored is ahead of an origin that went back.
    accepted_here: bool,
    /// Above the floor: neither stored nor pending. First sequence to the one after the last.
    missing: BTreeMap<u64, u64>,
    pending: BTreeMap<u64, Pending>,
    /// Places by first sequence.
    runs: BTreeMap<u64, Run>,
    /// Rows in the table: first sequence to last.
    rows: BTreeMap<u64, u64>,
    /// The row written last in this process.
    newest: Option<(u64, ProducerRow)>,
}

struct Producer {
    epoch: u32,
    topics: BTreeMap<Topic, Sequences>,
    used: u64,
    used_at: Duration,
}

/// All producers of this origin.
#[derive(Default)]
pub(super) struct Producers {
    by_id: HashMap<u128, Producer>,
    /// Order of last use.
    by_use: BTreeMap<u64, u128>,
    uses: u64,
    runs: usize,
    /// Keys of rows to be deleted with the next units, unless they are written again before.
    garbage: BTreeSet<Bytes>,
    /// Why nothing can become durable any more: what was submitted then may never have been.
    poisoned: Option<String>,
}

fn key_prefix(topic: &Topic, id: u128) -> Vec<u8> {
    let mut key = Vec::with_capacity(topic.as_str().len() + 30);
    key.extend_from_slice(topic.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

fn head_key(topic: &Topic, id: u128) -> Bytes {
    let mut key = key_prefix(topic, id);
    key.push(0);
    key.into()
}

fn row_key(topic: &Topic, id: u128, epoch: u32, first: u64) -> Bytes {
    let mut key = key_prefix(topic, id);
    key.push(1);
    key.extend_from_slice(&epoch.to_be_bytes());
    key.extend_from_slice(&first.to_be_bytes());
    key.into()
}

enum Key {
    Head,
    Row { epoch: u32, first: u64 },
}

fn parse_key(key: &[u8]) -> Option<(Topic, u128, Key)> {
    let zero = key.iter().position(|b| *b == 0)?;
    let (topic, rest) = key.split_at_checked(zero)?;
    let topic = std::str::from_utf8(topic).ok()?.parse().ok()?;
    let (id, rest) = rest.get(1..)?.split_at_checked(16)?;
    let id = u128::from_be_bytes(id.try_into().ok()?);
    let (kind, rest) = rest.split_first()?;
    match (kind, rest.len()) {
        (0, 0) => Some((topic, id, Key::Head)),
        (1, 12) => {
            let (epoch, first) = rest.split_at_checked(4)?;
            let epoch = u32::from_be_bytes(epoch.try_into().ok()?);
            Some((topic, id, Key::Row { epoch, first: u64::from_be_bytes(first.try_into().ok()?) }))
        }
        _ => None,
    }
}

fn decode_place(place: &store::Place) -> Place {
    Place { incarnation: Incarnation { counter: place.counter, random: place.random }, offset: place.offset }
}

fn encode_place(place: Place) -> store::Place {
    store::Place { counter: place.incarnation.counter, random: place.incarnation.random, offset: place.offset }
}

impl Sequences {
    fn place(&self, sequence: u64) -> Option<(Queue, Place)> {
        let (from, run) = self.runs.range(..=sequence).next_back()?;
        let above = sequence.checked_sub(*from).filter(|above| *above < run.count)?;
        Some((run.queue, Place { offset: run.first.offset.saturating_add(above), ..run.first }))
    }

    /// Whether it is missing, and the lowest that is.
    fn lowest_missing(&self) -> Option<u64> {
        self.missing.keys().next().copied()
    }

    fn fill_lowest_missing(&mut self) {
        if let Some((from, to)) = self.missing.pop_first()
            && from + 1 < to
        {
            self.missing.insert(from + 1, to);
        }
    }

    fn add_missing(&mut self, sequence: u64) {
        let to = self.missing.remove(&(sequence + 1)).unwrap_or(sequence + 1);
        if let Some((_, before)) = self.missing.range_mut(..sequence).next_back()
            && *before == sequence
        {
            *before = to;
            return;
        }
        self.missing.insert(sequence, to);
    }

    /// Moves the floor over what is stored or submitted.
    fn raise_floor(&mut self) {
        let unsubmitted = self.pending.range(self.floor..).find(|(_, p)| !p.submitted).map(|(s, _)| *s);
        let stop = [unsubmitted, self.lowest_missing()].into_iter().flatten().min().unwrap_or(self.next);
        self.floor = self.floor.max(stop);
    }

    fn judge(&mut self, stamp: ProducerStamp, teller: Teller) -> Verdict {
        let found = stamp.sequence;
        if let Some(pending) = self.pending.get_mut(&found) {
            if pending.retries.len() >= RETRIES_WAITING_MAX {
                let text = "too many retries of one message wait already; wait for the first call's answer";
                return Verdict::Refused(teller, PublishError::Unavailable(text.to_owned()));
            }
            pending.retries.push(teller);
            return Verdict::Waits;
        }
        if let Some((queue, place)) = self.place(found) {
            return Verdict::Repeated(teller, queue, place);
        }
        if found < self.floor {
            return Verdict::StoredBefore(teller);
        }
        match self.lowest_missing() {
            Some(lowest) if found == lowest => self.fill_lowest_missing(),
            Some(lowest) => {
                return Verdict::Refused(
                    teller,
                    PublishError::ProducerSequence { found, last: lowest.saturating_sub(1) },
                );
            }
            None if found == self.next && found < u64::MAX => self.next += 1,
            None if found > self.next && !self.accepted_here => {
                return Verdict::Refused(teller, PublishError::ProducerUnknown);
            }
            None => {
                let last = self.next.saturating_sub(1);
                return Verdict::Refused(teller, PublishError::ProducerSequence { found, last });
            }
        }
        self.accepted_here = true;
        self.pending.insert(found, Pending::default());
        Verdict::Accept(teller)
    }

    /// Forgets places outside the window; answers the first sequences of rows to delete, and how many runs went.
    fn forget_old(&mut self) -> (Vec<u64>, usize) {
        self.forget_places_below(self.next.saturating_sub(SEQUENCES_REMEMBERED))
    }

    /// Forgets places below, but none above the floor, where they say what is stored.
    fn forget_places_below(&mut self, low: u64) -> (Vec<u64>, usize) {
        let low = low.min(self.floor);
        let before = self.runs.len();
        while let Some(first) = self.runs.first_entry() {
            if first.key().saturating_add(first.get().count) > low {
                break;
            }
            first.remove();
        }
        let rows: Vec<u64> = self.rows.range(..low).filter(|(_, last)| **last < low).map(|(first, _)| *first).collect();
        for first in &rows {
            self.rows.remove(first);
            self.newest.take_if(|(newest, _)| newest == first);
        }
        (rows, before - self.runs.len())
    }

    /// The row for a batch with these runs, and its first sequence: the newest row once more where they go on in it.
    fn row_with(&self, queue: Queue, begin: Place, runs: Vec<ProducerRun>) -> (u64, ProducerRow) {
        if let (Some((first, row)), [more]) = (&self.newest, runs.as_slice())
            && row.queue == u32::from(queue.0)
            && row.first.as_ref().is_some_and(|place| decode_place(place).incarnation == begin.incarnation)
            && let [run] = row.runs.as_slice()
            && run.sequence.saturating_add(run.count) == more.sequence
            && run.offset.saturating_add(run.count) == more.offset
        {
            let run = ProducerRun { count: run.count.saturating_add(more.count), ..*run };
            return (*first, ProducerRow { runs: vec![run], ..row.clone() });
        }
        let first = runs.first().map_or(0, |run| run.sequence);
        (first, ProducerRow { queue: u32::from(queue.0), first: Some(encode_place(begin)), runs })
    }

    /// Remembers a row that was submitted; answers how many runs there are more.
    fn remember(&mut self, queue: Queue, begin: Place, first: u64, row: ProducerRow) -> usize {
        let before = self.runs.len();
        for run in &row.runs {
            let first = Place { offset: run.offset, ..begin };
            self.runs.insert(run.sequence, Run { count: run.count, queue, first });
        }
        let last = row.runs.iter().map(|run| run.sequence.saturating_add(run.count)).max().unwrap_or(first + 1) - 1;
        self.rows.insert(first, last);
        self.newest = Some((first, row));
        self.runs.len() - before
    }
}

type Row = (Bytes, Topic, u128, u32, u64, ProducerRow);

fn parse_pairs(pairs: Vec<(Bytes, Bytes)>) -> (HashMap<(Topic, u128), ProducerHead>, Vec<Row>) {
    let mut heads: HashMap<(Topic, u128), ProducerHead> = HashMap::new();
    let mut rows = Vec::new();
    for (key, value) in pairs {
        match parse_key(&key) {
            Some((topic, id, Key::Head)) => {
                if let Ok(head) = ProducerHead::decode(value) {
                    heads.insert((topic, id), head);
                }
            }
            Some((topic, id, Key::Row { epoch, first })) => {
                if let Ok(row) = ProducerRow::decode(value) {
                    rows.push((key, topic, id, epoch, first, row));
                }
            }
            None => {}
        }
    }
    (heads, rows)
}

/// What [`Producers::submitting`] changed, for [`Producers::not_submitted`].
pub(super) struct Undo(Vec<(u128, u64)>);

impl Producers {
    /// Brings back what the table holds. Pairs that do not parse are left alone.
    pub(super) fn restore(pairs: Vec<(Bytes, Bytes)>, now: Duration) -> Self {
        let (heads, rows) = parse_pairs(pairs);
        let mut all = Self::default();
        all.restore_heads(heads, now);
        for (key, topic, id, epoch, first, row) in rows {
            all.restore_row(key, &topic, id, epoch, first, &row);
        }
        for sequences in all.by_id.values_mut().flat_map(|p| p.topics.values_mut()) {
            sequences.find_missing();
        }
        all
    }

    fn restore_heads(&mut self, heads: HashMap<(Topic, u128), ProducerHead>, now: Duration) {
        let mut epochs: HashMap<u128, u32> = HashMap::new();
        for ((_, id), head) in &heads {
            let epoch = epochs.entry(*id).or_default();
            *epoch = head.epoch.max(*epoch);
        }
        for ((topic, id), head) in heads {
            if epochs.get(&id).is_some_and(|epoch| *epoch > head.epoch) {
                self.garbage.insert(head_key(&topic, id));
                continue;
            }
            let producer =
                self.by_id.entry(id).or_insert(Producer { epoch: 0, topics: BTreeMap::new(), used: 0, used_at: now });
            producer.epoch = producer.epoch.max(head.epoch);
            let sequences = Sequences { floor: head.floor, next: head.floor, ..Sequences::default() };
            producer.topics.insert(topic, sequences);
            if producer.used == 0 {
                self.uses += 1;
                producer.used = self.uses;
                self.by_use.insert(self.uses, id);
            }
        }
    }

    fn restore_row(&mut self, key: Bytes, topic: &Topic, id: u128, epoch: u32, first: u64, row: &ProducerRow) {
        let current = self.by_id.get_mut(&id).filter(|p| p.epoch == epoch).and_then(|p| p.topics.get_mut(topic));
        let (Some(sequences), Some(place), Ok(queue)) = (current, &row.first, u16::try_from(row.queue)) else {
            self.garbage.insert(key);
            return;
        };
        let begin = decode_place(place);
        for run in &row.runs {
            let end = run.sequence.saturating_add(run.count);
            let place = Place { offset: run.offset, ..begin };
            sequences.runs.insert(run.sequence, Run { count: run.count, queue: Queue(queue), first: place });
            sequences.next = sequences.next.max(end);
            let last = sequences.rows.entry(first).or_insert(end.saturating_sub(1));
            *last = (*last).max(end.saturating_sub(1));
            self.runs += 1;
        }
    }

    /// Decides about a stamped message; what is accepted is pending until [`Producers::stored`] or [`Producers::failed`].
    pub(super) fn judge(&mut self, topic: &Topic, stamp: ProducerStamp, now: Duration, teller: Teller) -> Verdict {
        if let Some(poisoned) = &self.poisoned {
            return Verdict::Refused(teller, PublishError::Unavailable(poisoned.clone()));
        }
        self.uses += 1;
        let uses = self.uses;
        if let Some(producer) = self.by_id.get_mut(&stamp.id) {
            self.by_use.remove(&producer.used);
            self.by_use.insert(uses, stamp.id);
            (producer.used, producer.used_at) = (uses, now);
            if stamp.epoch < producer.epoch {
                let error = PublishError::ProducerFenced { found: stamp.epoch, current: producer.epoch };
                return Verdict::Refused(teller, error);
            }
            if stamp.epoch == producer.epoch {
                if let Some(sequences) = producer.topics.get_mut(topic) {
                    return sequences.judge(stamp, teller);
                }
                if stamp.sequence != 0 {
                    return Verdict::Refused(teller, PublishError::ProducerUnknown);
                }
                return producer.topics.entry(topic.clone()).or_default().judge(stamp, teller);
            }
        }
        if stamp.sequence != 0 {
            return Verdict::Refused(teller, PublishError::ProducerUnknown);
        }
        if self.by_id.get(&stamp.id).is_some_and(Producer::is_busy) {
            let text = "messages of this producer's former epoch are still being stored; try again in a moment";
            return Verdict::Refused(teller, PublishError::Unavailable(text.to_owned()));
        }
        self.forget(stamp.id, false);
        self.make_room();
        let mut sequences = Sequences::default();
        let verdict = sequences.judge(stamp, teller);
        let topics = BTreeMap::from([(topic.clone(), sequences)]);
        self.by_use.insert(uses, stamp.id);
        self.by_id.insert(stamp.id, Producer { epoch: stamp.epoch, topics, used: uses, used_at: now });
        verdict
    }

    /// The batch is about to be submitted with these entries added to its unit. Hold the lock until it is decided.
    pub(super) fn submitting(
        &mut self,
        topic: &Topic,
        queue: Queue,
        begin: Place,
        batch: &[Stamped],
    ) -> (Vec<Entry>, Undo) {
        let mut per_producer: BTreeMap<(u128, u32), Vec<Stamped>> = BTreeMap::new();
        for stamped in batch {
            per_producer.entry((stamped.stamp.id, stamped.stamp.epoch)).or_default().push(*stamped);
        }
        let mut entries = Vec::new();
        let mut undo = Vec::new();
        for ((id, epoch), mut messages) in per_producer {
            let Some(sequences) = self.by_id.get_mut(&id).and_then(|p| p.topics.get_mut(topic)) else { continue };
            undo.push((id, sequences.floor));
            messages.sort_unstable_by_key(|m| m.stamp.sequence);
            for message in &messages {
                if let Some(pending) = sequences.pending.get_mut(&message.stamp.sequence) {
                    pending.submitted = true;
                }
            }
            sequences.raise_floor();
            let (first, row) = sequences.row_with(queue, begin, runs_of(begin, &messages));
            let head = ProducerHead { epoch, floor: sequences.floor };
            for (key, value) in
                [(head_key(topic, id), head.encode_to_vec()), (row_key(topic, id, epoch, first), row.encode_to_vec())]
            {
                self.garbage.remove(&key);
                entries.push(Entry::Put { table: Table::Producers, key, value: value.into() });
            }
        }
        let deletes = self.garbage.iter().take(DELETES_PER_UNIT);
        entries.extend(deletes.map(|key| Entry::Delete { table: Table::Producers, key: key.clone() }));
        (entries, Undo(undo))
    }

    /// The unit was accepted: the rows it deletes need not be deleted again, the places are known.
    pub(super) fn submitted(&mut self, topic: &Topic, queue: Queue, begin: Place, batch: &[Stamped]) {
        self.take_garbage(DELETES_PER_UNIT);
        let mut per_producer: BTreeMap<u128, Vec<Stamped>> = BTreeMap::new();
        for stamped in batch {
            per_producer.entry(stamped.stamp.id).or_default().push(*stamped);
        }
        for (id, mut messages) in per_producer {
            let Some(producer) = self.by_id.get_mut(&id) else { continue };
            let epoch = producer.epoch;
            let Some(sequences) = producer.topics.get_mut(topic) else { continue };
            messages.sort_unstable_by_key(|m| m.stamp.sequence);
            let (first, row) = sequences.row_with(queue, begin, runs_of(begin, &messages));
            self.runs += sequences.remember(queue, begin, first, row);
            let (rows, gone) = sequences.forget_old();
            self.runs = self.runs.saturating_sub(gone);
            self.garbage.extend(rows.into_iter().map(|first| row_key(topic, id, epoch, first)));
        }
        if self.runs > RUNS_MAX {
            self.forget_places();
        }
    }

    /// The unit was not accepted: as before [`Producers::submitting`].
    pub(super) fn not_submitted(&mut self, topic: &Topic, batch: &[Stamped], undo: Undo) {
        for stamped in batch {
            if let Some(pending) = self.pending(topic, stamped.stamp) {
                pending.submitted = false;
            }
        }
        for (id, floor) in undo.0 {
            if let Some(sequences) = self.by_id.get_mut(&id).and_then(|p| p.topics.get_mut(topic)) {
                sequences.floor = floor;
            }
        }
    }

    /// The message is durable: answers the retries that waited with it.
    pub(super) fn stored(&mut self, topic: &Topic, stamp: ProducerStamp) -> Vec<Teller> {
        let Some(sequences) = self.sequences(topic, stamp) else { return Vec::new() };
        sequences.pending.remove(&stamp.sequence).map(|p| p.retries).unwrap_or_default()
    }

    /// The message was not stored and may be sent again: answers the retries that waited with it.
    pub(super) fn failed(&mut self, topic: &Topic, stamp: ProducerStamp) -> Vec<Teller> {
        let Some(sequences) = self.sequences(topic, stamp) else { return Vec::new() };
        let retries = sequences.pending.remove(&stamp.sequence).map(|p| p.retries).unwrap_or_default();
        if stamp.sequence + 1 == sequences.next {
            sequences.next = stamp.sequence;
            while let Some(last) = sequences.missing.last_entry().filter(|last| *last.get() == sequences.next) {
                sequences.next = *last.key();
                last.remove();
            }
        } else {
            sequences.add_missing(stamp.sequence);
        }
        retries
    }

    /// Forgets producers unused for [`REMEMBERED_FOR`]; answers deletions for a unit of their own, if there are any.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<Entry> {
        while let Some((_, id)) = self.by_use.first_key_value() {
            let id = *id;
            let old = |p: &Producer| now.saturating_sub(p.used_at) >= REMEMBERED_FOR && !p.is_busy();
            if !self.by_id.get(&id).is_some_and(old) {
                break;
            }
            self.forget(id, true);
        }
        let keys = self.take_garbage(16 * DELETES_PER_UNIT).into_iter();
        keys.map(|key| Entry::Delete { table: Table::Producers, key }).collect()
    }

    /// The deletions were not accepted: the next time.
    pub(super) fn not_expired(&mut self, entries: Vec<Entry>) {
        let key = |entry| if let Entry::Delete { key, .. } = entry { Some(key) } else { None };
        self.garbage.extend(entries.into_iter().filter_map(key));
    }

    fn take_garbage(&mut self, most: usize) -> Vec<Bytes> {
        (0..most).map_while(|_| self.garbage.pop_first()).collect()
    }

    /// Producers and runs remembered.
    pub(super) fn remembered(&self) -> (usize, usize) {
        (self.by_id.len(), self.runs)
    }

    fn sequences(&mut self, topic: &Topic, stamp: ProducerStamp) -> Option<&mut Sequences> {
        self.by_id.get_mut(&stamp.id).filter(|p| p.epoch == stamp.epoch)?.topics.get_mut(topic)
    }

    fn pending(&mut self, topic: &Topic, stamp: ProducerStamp) -> Option<&mut Pending> {
        self.sequences(topic, stamp)?.pending.get_mut(&stamp.sequence)
    }

    /// Drops a producer from memory, its rows (and heads) to the garbage.
    fn forget(&mut self, id: u128, heads: bool) {
        let Some(producer) = self.by_id.remove(&id) else { return };
        self.by_use.remove(&producer.used);
        for (topic, sequences) in &producer.topics {
            self.runs = self.runs.saturating_sub(sequences.runs.len());
            let rows = sequences.rows.keys().map(|first| row_key(topic, id, producer.epoch, *first));
            self.garbage.extend(rows);
            if heads {
                self.garbage.insert(head_key(topic, id));
            }
        }
    }

    /// Too many places are remembered: those of the producers unused longest go, down to seven eighths. That they are stored
    /// stays known.
    fn forget_places(&mut self) {
        for id in self.by_use.values() {
            let Some(producer) = self.by_id.get_mut(id) else { continue };
            for (topic, sequences) in &mut producer.topics {
                let (rows, gone) = sequences.forget_places_below(u64::MAX);
                self.runs = self.runs.saturating_sub(gone);
                self.garbage.extend(rows.into_iter().map(|first| row_key(topic, *id, producer.epoch, first)));
            }
            if self.runs <= RUNS_MAX / 8 * 7 {
                return;
            }
        }
    }

    /// The commit log is poisoned: from now on nothing is taken, and nothing is called stored, since places were
    /// remembered when they were submitted.
    pub(super) fn poison(&mut self, why: &str) {
        self.poisoned.get_or_insert_with(|| why.to_owned());
    }

    fn make_room(&mut self) {
        while self.by_id.len() >= PRODUCERS_MAX {
            let idle = self.by_use.values().find(|id| self.by_id.get(id).is_some_and(|p| !p.is_busy()));
            let Some(id) = idle.copied() else { return };
            self.forget(id, true);
        }
    }
}

impl Producer {
    fn is_busy(&self) -> bool {
        self.topics.values().any(|s| !s.pending.is_empty())
    }
}

impl Sequences {
    /// After a restore: what lies between the floor and the greatest stored sequence without being stored.
    fn find_missing(&mut self) {
        let mut at = self.floor;
        let mut missing = BTreeMap::new();
        for (from, run) in &self.runs {
            if *from > at {
                missing.insert(at, *from);
            }
            at = at.max(from.saturating_add(run.count));
        }
        self.missing = missing;
    }
}

/// The runs of a batch's messages of one producer, which are in order of sequence.
fn runs_of(begin: Place, messages: &[Stamped]) -> Vec<ProducerRun> {
    let mut runs: Vec<ProducerRun> = Vec::new();
    for message in messages {
        let offset = begin.offset.saturating_add(message.index);
        match runs.last_mut() {
            Some(run) if run.sequence + run.count == message.stamp.sequence && run.offset + run.count == offset => {
                run.count += 1
            }
            _ => runs.push(ProducerRun { sequence: message.stamp.sequence, count: 1, offset }),
        }
    }
    runs
}
