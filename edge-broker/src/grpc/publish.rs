//! Publishing: one message, or a stream of batches whose receipts come in the order of the messages.

use std::sync::Arc;

use seaway_relay::node::{Outcome, OwnMessage, PendingRun, PublishError};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tonic::{Status, Streaming};

use super::{
    convert::{self, Terms},
    errors,
    shared::{DoorCounters, PERMIT_BYTES, Shared},
};
use crate::{
    api::{Mode, PublishBatch, PublishFailure, PublishReply, PublishRequest, Receipt, publish_reply},
    auth::Caller,
    engine::Engine,
    limits::{
        BATCH_MESSAGES_MAX, CLIENT_RECEIPTS_MAX, ClientRate, IN_FLIGHT_OVERHEAD_BYTES, REPLIES_QUEUED_MAX,
        STREAM_IN_FLIGHT_BYTES_MAX, STREAM_IN_FLIGHT_MAX,
    },
};

/// Who publishes, and what holds for it.
pub(crate) struct Publisher<E: Engine> {
    /// What the door's services share.
    pub(crate) shared: Arc<Shared<E>>,
    /// The caller.
    pub(crate) caller: Arc<Caller>,
    /// Its rate.
    pub(crate) rate: Arc<ClientRate>,
}

/// Messages that were taken, or not.
enum Taken {
    /// So many; what becomes of them follows. Until then they count in the client's share.
    Pending(u32, PendingRun, Option<OwnedSemaphorePermit>),
    /// Of so many that is all there is to say.
    Now(u32, Box<Result<Receipt, PublishFailure>>),
}

/// What became of neighbours.
type Told = (u32, Result<Receipt, PublishFailure>);

/// A stream's batch on its way to its replies.
struct InOrder {
    taken: Vec<Taken>,
    /// Of the stream's own bound: a client that does not read its receipts stops itself, and nobody else.
    _room: Option<OwnedSemaphorePermit>,
}

impl<E: Engine> Publisher<E> {
    /// Publishes one message and waits for its receipt.
    pub(crate) async fn publish(&self, request: PublishRequest) -> Result<Receipt, Status> {
        let mut told = Vec::new();
        for taken in self.take(convert::batch_of_one(request)).await {
            told.extend(finish(taken).await);
        }
        self.count(&told);
        let only = told.into_iter().next().unwrap_or_else(|| (1, Err(in_doubt())));
        only.1.map_err(|failure| errors::failure_status(&failure))
    }

    /// Publishes a stream; the replies end with a status where the stream is cut by this node.
    pub(crate) fn publish_stream(
        self,
        batches: Streaming<PublishBatch>,
    ) -> mpsc::Receiver<Result<PublishReply, Status>> {
        let (order, ordered) = mpsc::channel(STREAM_IN_FLIGHT_MAX);
        let (replies, receiver) = mpsc::channel(REPLIES_QUEUED_MAX);
        let publisher = Arc::new(self);
        tokio::spawn(publisher.clone().take_all(batches, order));
        tokio::spawn(publisher.answer_all(ordered, replies));
        receiver
    }

    /// Takes batches in order, as far as there is room for what is in flight.
    async fn take_all(
        self: Arc<Self>,
        mut batches: Streaming<PublishBatch>,
        order: mpsc::Sender<Result<InOrder, Status>>,
    ) {
        let stream_room = Arc::new(Semaphore::new(STREAM_IN_FLIGHT_BYTES_MAX / PERMIT_BYTES));
        let mut ended = std::pin::pin!(self.caller.ended());
        loop {
            let batch = tokio::select! {
                biased;
                () = self.shared.drain.cancelled() => Err(errors::draining()),
                status = &mut ended => Err(status),
                () = order.closed() => return,
                batch = batches.message() => batch,
            };
            let next = match batch.and_then(|batch| batch.map(checked_count).transpose()) {
                Ok(Some(batch)) => {
                    let room = take_room(&stream_room, batch.messages.len(), convert::batch_bytes(&batch)).await;
                    Ok(InOrder { taken: self.take(batch).await, _room: room })
                }
                Ok(None) => return,
                Err(status) => Err(status),
            };
            let last = next.is_err();
            if order.send(next).await.is_err() || last {
                return;
            }
        }
    }

    /// Answers in the order of the messages.
    async fn answer_all(
        self: Arc<Self>,
        mut ordered: mpsc::Receiver<Result<InOrder, Status>>,
        replies: mpsc::Sender<Result<PublishReply, Status>>,
    ) {
        let mut number = 0_u64;
        while let Some(next) = ordered.recv().await {
            let InOrder { taken, _room } = match next {
                Ok(batch) => batch,
                Err(status) => return drop(replies.send(Err(status)).await),
            };
            for taken in taken {
                let told = finish(taken).await;
                self.count(&told);
                for (count, result) in told {
                    let result = Some(match result {
                        Ok(receipt) => publish_reply::Result::Receipt(receipt),
                        Err(failure) => publish_reply::Result::Failure(failure),
                    });
                    if replies.send(Ok(PublishReply { number, result, count })).await.is_err() {
                        return; // the client left; what was taken is stored all the same
                    }
                    number = number.wrapping_add(u64::from(count));
                }
            }
        }
    }

    /// Checks a batch and hands it to the engine. Each message has its own fate.
    async fn take(&self, batch: PublishBatch) -> Vec<Taken> {
        let count = u32::try_from(batch.messages.len()).unwrap_or(u32::MAX);
        let refused = |error: PublishError| vec![Taken::Now(count, Box::new(Err(errors::failure(&error))))];
        if self.shared.drain.is_cancelled() {
            let text = "this node is draining; publish to another or try again later";
            return refused(PublishError::Unavailable(text.into()));
        }
        let bytes = convert::batch_bytes(&batch);
        let (terms, contents) = match convert::batch(batch, self.shared.config.publish_deadline) {
            Ok(converted) => converted,
            Err(error) => return refused(error),
        };
        // Held until the engine has the messages in its own, bounded queue. The client's own share first: who waits for that
        // holds nothing of the others'.
        let room = async {
            let own = take_room(&self.rate.in_flight, contents.len(), bytes).await;
            (own, take_room(&self.shared.in_flight, contents.len(), bytes).await)
        };
        let Ok(_room) = tokio::time::timeout(terms.deadline(), room).await else { return refused(no_room()) };
        let mut taken = Vec::new();
        let mut run = Vec::with_capacity(contents.len());
        for content in contents {
            match self.check(content).await {
                Ok(message) => run.push(message),
                Err(failure) => {
                    self.hand_over(&terms, std::mem::take(&mut run), &mut taken).await;
                    taken.push(Taken::Now(1, Box::new(Err(failure))));
                }
            }
            // What a client's rate delays must not wait for what comes after it.
            if self.rate.is_limited() {
                self.hand_over(&terms, std::mem::take(&mut run), &mut taken).await;
            }
        }
        self.hand_over(&terms, run, &mut taken).await;
        taken
    }

    /// Whether a message may be published, as far as the door can tell.
    async fn check(&self, message: Result<OwnMessage, PublishError>) -> Result<OwnMessage, PublishFailure> {
        let message = message.map_err(|error| errors::failure(&error))?;
        if let Err(missing) = self.caller.check_publish(&message.path) {
            DoorCounters::count(&self.shared.counters.not_allowed);
            return Err(errors::publish_not_allowed(missing));
        }
        self.rate.admit(message.content_bytes()).await.map_err(errors::limited)?;
        Ok(message)
    }

    async fn hand_over(&self, terms: &Terms, messages: Vec<OwnMessage>, taken: &mut Vec<Taken>) {
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return;
        }
        if terms.mode == Mode::OneWay {
            taken.extend(messages.into_iter().map(|message| {
                let sent = self.shared.engine.publish_one_way(terms.publish(message));
                Taken::Now(1, Box::new(sent.map(|()| Receipt::default()).map_err(|error| errors::failure(&error))))
            }));
            return;
        }
        let refused = |error: PublishError| Taken::Now(count, Box::new(Err(errors::failure(&error))));
        let until = Instant::now() + terms.deadline();
        let share = if terms.waits_for_others() {
            let permits = count.min(u32::try_from(CLIENT_RECEIPTS_MAX).unwrap_or(u32::MAX));
            match tokio::time::timeout_at(until, self.rate.receipts.clone().acquire_many_owned(permits)).await {
                Ok(share) => share.ok(),
                Err(_) => return taken.push(refused(no_room())),
            }
        } else {
            None
        };
        let left = until.saturating_duration_since(Instant::now());
        taken.push(match self.shared.engine.publish_run(terms.run(messages, left)).await {
            Ok(pending) => Taken::Pending(count, pending, share),
            Err(error) => refused(error),
        });
    }

    fn count(&self, told: &[Told]) {
        let counters = &self.shared.counters;
        for (count, result) in told {
            let counter = if result.is_ok() { &counters.published } else { &counters.failed };
            DoorCounters::add(counter, u64::from(*count));
        }
    }
}

async fn finish(taken: Taken) -> Vec<Told> {
    let (count, pending, _share) = match taken {
        Taken::Now(count, result) => return vec![(count, *result)],
        Taken::Pending(count, pending, share) => (count, pending, share),
    };
    let Ok(outcomes) = pending.await else { return vec![(count, Err(in_doubt()))] };
    let told = outcomes.into_iter().map(|Outcome { count, result }| match result {
        Ok(receipt) => (count, Ok(convert::receipt(receipt))),
        // Nothing but local durability was asked for: that it has.
        Err(PublishError::StoredBefore { asked: false }) => {
            (count, Ok(Receipt { repeated: true, ..Receipt::default() }))
        }
        Err(error) => (count, Err(errors::failure(&error))),
    });
    told.collect()
}

fn no_room() -> PublishError {
    let text = "there was no room for the message before its deadline, and it was not stored; publish it again later";
    PublishError::Unavailable(text.into())
}

fn in_doubt() -> PublishFailure {
    let text = "the node stopped before the message was durable; it may be stored or not, publish it again";
    errors::failure(&PublishError::Unavailable(text.into()))
}

#[allow(clippy::result_large_err, reason = "a status is what the stream answers")]
fn checked_count(batch: PublishBatch) -> Result<PublishBatch, Status> {
    match batch.messages.len() {
        0 => Err(errors::invalid("a batch has no message; send at least one")),
        count if count > BATCH_MESSAGES_MAX => {
            Err(errors::invalid(format!("a batch has {count} messages; send at most {BATCH_MESSAGES_MAX} in one")))
        }
        _ => Ok(batch),
    }
}

/// Room for so many messages of so many bytes in all, waited for; `None` only when the door is closed.
async fn take_room(room: &Arc<Semaphore>, count: usize, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = bytes.saturating_add(IN_FLIGHT_OVERHEAD_BYTES.saturating_mul(count));
    let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    room.clone().acquire_many_owned(permits).await.ok()
}
