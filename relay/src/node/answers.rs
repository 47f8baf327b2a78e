//! From what the origin tells of a run's messages to the publisher's answer.
//!
//! The origin tells pieces: neighbours that came into one batch. A batch is held at a site as a whole or not at all, so
//! a piece waits for other sites as one, by the place of its last message.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use seaway_federation_proto::ids::Place;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    OnDeadline, Outcome, PublishError, Receipt,
    inner::NodeInner,
    origin::{Stored, TellRun},
    receipts::Need,
    room::ReceiptRoom,
};

/// Called once, with what became of all messages in their order.
pub(super) type RunDone = Box<dyn FnOnce(Vec<Outcome>) + Send>;

/// Gathers what became of a run's messages.
pub(super) struct Answers(Mutex<Gathered>);

struct Gathered {
    /// First message and what became of it and its neighbours.
    pieces: Vec<(u32, Outcome)>,
    /// Messages without an answer.
    open: u32,
    done: Option<RunDone>,
}

impl Answers {
    /// For a run of `count` messages.
    pub(super) fn new(count: u32, done: RunDone) -> Self {
        Self(Mutex::new(Gathered { pieces: Vec::new(), open: count, done: Some(done) }))
    }

    /// The answer of `count` messages from number `first` on.
    pub(super) fn put(&self, first: u32, count: u32, result: Result<Receipt, PublishError>) {
        let mut gathered = self.0.lock();
        gathered.pieces.push((first, Outcome { count, result }));
        gathered.open = gathered.open.saturating_sub(count);
        if gathered.open > 0 {
            return;
        }
        let mut pieces = std::mem::take(&mut gathered.pieces);
        let done = gathered.done.take();
        drop(gathered);
        pieces.sort_unstable_by_key(|(first, _)| *first);
        if let Some(done) = done {
            done(pieces.into_iter().map(|(_, outcome)| outcome).collect());
        }
    }
}

/// For which sites a part's messages wait once they are durable here.
pub(super) struct Waits {
    pub(super) node: Weak<NodeInner>,
    pub(super) need: Need,
    /// By the node's clock.
    pub(super) deadline: Duration,
    pub(super) on_deadline: OnDeadline,
}

/// Room that a part takes.
pub(super) struct PartRoom {
    /// Of messages that wait for other sites.
    pub(super) receipts: Option<ReceiptRoom>,
    /// Of messages that are not durable yet.
    pub(super) bytes: OwnedSemaphorePermit,
}

/// Messages of a run that were handed over together.
pub(super) struct Part {
    answers: Arc<Answers>,
    waits: Option<Waits>,
    untold: Mutex<Untold>,
    /// Given back as the messages are answered.
    receipts: Arc<Mutex<Option<ReceiptRoom>>>,
}

/// Messages of which the origin has not told yet. Their bytes are given back with the last.
struct Untold {
    count: usize,
    bytes: Option<OwnedSemaphorePermit>,
}

impl Part {
    /// `count` messages with their room.
    pub(super) fn new(answers: Arc<Answers>, waits: Option<Waits>, count: usize, room: PartRoom) -> Self {
        let untold = Mutex::new(Untold { count, bytes: Some(room.bytes) });
        Self { answers, waits, untold, receipts: Arc::new(Mutex::new(room.receipts)) }
    }

    fn give_back(&self, count: u32) {
        let mut untold = self.untold.lock();
        untold.count = untold.count.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
        if untold.count == 0 {
            untold.bytes = None;
        }
    }
}

impl TellRun for Part {
    fn tell(&self, first: u32, count: u32, result: Result<Stored, PublishError>) {
        self.give_back(count);
        let receipts = self.receipts.clone();
        let answers = self.answers.clone();
        let answer = move |result| {
            // So many receipts no longer wait.
            drop(receipts.lock().as_mut().and_then(|all| all.split(usize::try_from(count).unwrap_or(usize::MAX))));
            answers.put(first, count, result);
        };
        let (stored, waits) = match (result, &self.waits) {
            (Ok(stored), Some(waits)) => (stored, waits),
            (Err(PublishError::StoredBefore { .. }), Some(_)) => {
                return answer(Err(PublishError::StoredBefore { asked: true }));
            }
            (result, _) => return answer(result.map(local_receipt)),
        };
        let Some(node) = waits.node.upgrade() else { return };
        let begin = stored.place;
        let last = Place { offset: begin.offset.saturating_add(u64::from(count.saturating_sub(1))), ..begin };
        let origin = waits.node.clone();
        let back_to_first = move |result: Result<Receipt, PublishError>| {
            answer(match result {
                Ok(receipt) => Ok(Receipt { place: begin, ..receipt }),
                Err(PublishError::Deadline { log, missing, .. }) => {
                    let missing = match origin.upgrade() {
                        Some(node) => node.with_reasons(&log.topic, missing),
                        None => missing,
                    };
                    Err(PublishError::Deadline { log, place: begin, missing })
                }
                Err(error) => Err(error),
            });
        };
        let stored = Stored { place: last, ..stored };
        node.receipts.wait(stored, waits.need.clone(), waits.deadline, waits.on_deadline, Box::new(back_to_first));
        node.hub_wake.wake();
    }
}

fn local_receipt(stored: Stored) -> Receipt {
    let Stored { log, place, repeated } = stored;
    Receipt { log, place, sites: Vec::new(), degraded: false, missing: Vec::new(), removed: Vec::new(), repeated }
}
