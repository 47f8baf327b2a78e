//! Publishing: one message, or a stream of batches whose receipts come in the order of the messages.

use std::{pin::Pin, sync::Arc};

use seaway_relay::node::{Outcome, OwnMessage, PendingRun, PublishError, ReceiptRoom};
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
        BATCH_MESSAGES_MAX, ClientRate, IN_FLIGHT_OVERHEAD_BYTES, REPLIES_QUEUED_MAX, STREAM_IN_FLIGHT_BYTES_MAX,
    },
    metrics::traffic::{Traffic, topic_of},
    rates::Passage,
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
    Pending(u32, PendingRun, Option<OwnedSemaphorePermit>, Tally),
    /// Of so many that is all there is to say.
    Now(u32, Box<Result<Receipt, PublishFailure>>),
}

/// What became of neighbours.
type Told = (u32, Result<Receipt, PublishFailure>);

/// Where what was taken goes on to its replies. Each piece of a batch goes at once: what the client's share lends it comes
/// back with its own outcome, and never waits for the rest of the batch.
#[derive(Clone)]
struct Onward {
    /// Without a bound of its own: what waits here is within the stream's room.
    order: mpsc::UnboundedSender<InOrder>,
    /// Of the stream's own bound: a client that does not read its receipts stops itself, and nobody else. Free with the last
    /// piece of the batch.
    room: Option<Arc<OwnedSemaphorePermit>>,
}

/// A piece of a stream's batch on its way to its replies, or why the stream ends.
struct InOrder {
    taken: Result<Taken, Status>,
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Onward {
    fn hand(&self, taken: Result<Taken, Status>) {
        // Who answers outlives who takes.
        let _ = self.order.send(InOrder { taken, _room: self.room.clone() });
    }
}

/// Until when a publish may wait, and what ends its wait before.
struct Patience {
    until: Instant,
    /// Resolves when the caller's token no longer counts, or the client left.
    ended: Pin<Box<dyn Future<Output = Status> + Send>>,
}

/// Why a wait ended without what was waited for.
enum Cut {
    /// Its time is over.
    Late,
    /// The call ends: the node drains, the caller's token no longer counts, or the client left.
    Over(Status),
}

impl<E: Engine> Publisher<E> {
    /// Publishes one message and waits for its receipt.
    pub(crate) async fn publish(&self, request: PublishRequest) -> Result<Receipt, Status> {
        let (order, mut ordered) = mpsc::unbounded_channel();
        // A call whose client left is dropped as a whole.
        let mut patience = self.patience(std::future::pending());
        self.take(convert::batch_of_one(request), &mut patience, &Onward { order, room: None }).await?;
        let mut told = Vec::new();
        while let Ok(piece) = ordered.try_recv() {
            told.extend(self.finish(piece.taken?).await);
        }
        let only = told.into_iter().next().unwrap_or_else(|| (1, Err(in_doubt())));
        only.1.map_err(|failure| errors::failure_status(&failure))
    }

    /// Publishes a stream; the replies end with a status where the stream is cut by this node.
    pub(crate) fn publish_stream(
        self,
        batches: Streaming<PublishBatch>,
    ) -> mpsc::Receiver<Result<PublishReply, Status>> {
        let (order, ordered) = mpsc::unbounded_channel();
        let (replies, receiver) = mpsc::channel(REPLIES_QUEUED_MAX);
        let publisher = Arc::new(self);
        let reader = replies.clone();
        let patience = publisher.patience(async move { reader.closed().await });
        tokio::spawn(publisher.clone().take_all(batches, patience, Onward { order, room: None }));
        tokio::spawn(publisher.answer_all(ordered, replies));
        receiver
    }

    /// Takes batches in order, as far as there is room for what is in flight.
    async fn take_all(
        self: Arc<Self>,
        mut batches: Streaming<PublishBatch>,
        mut patience: Patience,
        mut onward: Onward,
    ) {
        let stream_room = Arc::new(Semaphore::new(STREAM_IN_FLIGHT_BYTES_MAX / PERMIT_BYTES));
        loop {
            onward.room = None;
            let batch = tokio::select! {
                biased;
                () = self.shared.drain.cancelled() => Err(errors::draining()),
                status = &mut patience.ended => Err(status),
                batch = batches.message() => batch,
            };
            let taken = match batch.and_then(|batch| batch.map(checked_count).transpose()) {
                Ok(Some(batch)) => self.take_next(batch, &stream_room, &mut patience, &mut onward).await,
                Ok(None) => return,
                Err(status) => Err(status),
            };
            if let Err(status) = taken {
                return onward.hand(Err(status));
            }
        }
    }

    /// Takes a stream's next batch; an error ends the stream.
    async fn take_next(
        &self,
        batch: PublishBatch,
        stream_room: &Arc<Semaphore>,
        patience: &mut Patience,
        onward: &mut Onward,
    ) -> Result<(), Status> {
        // Room of the stream's own comes back as its client reads: that may take as long as it likes.
        let room = tokio::select! {
            biased;
            () = self.shared.drain.cancelled() => return Err(errors::draining()),
            status = &mut patience.ended => return Err(status),
            room = take_room(stream_room, batch.messages.len(), convert::batch_bytes(&batch)) => room,
        };
        onward.room = room.map(Arc::new);
        self.take(batch, patience, onward).await
    }

    /// Answers in the order of the messages. Of a client that left, what was taken is stored all the same and counts in its
    /// share until then: leaving makes nobody's share larger.
    async fn answer_all(
        self: Arc<Self>,
        mut ordered: mpsc::UnboundedReceiver<InOrder>,
        replies: mpsc::Sender<Result<PublishReply, Status>>,
    ) {
        let mut number = 0_u64;
        while let Some(InOrder { taken, _room }) = ordered.recv().await {
            let taken = match taken {
                Ok(taken) => taken,
                Err(status) => return drop(replies.send(Err(status)).await),
            };
            let told = self.finish(taken).await;
            for (count, result) in told {
                let result = Some(match result {
                    Ok(receipt) => publish_reply::Result::Receipt(receipt),
                    Err(failure) => publish_reply::Result::Failure(failure),
                });
                let _ = replies.send(Ok(PublishReply { number, result, count })).await;
                number = number.wrapping_add(u64::from(count));
            }
        }
    }

    fn patience(&self, left: impl Future<Output = ()> + Send + 'static) -> Patience {
        let caller = self.caller.clone();
        let ended = async move {
            tokio::select! {
                status = caller.ended() => status,
                () = left => Status::cancelled("the client left"),
            }
        };
        Patience { until: Instant::now(), ended: Box::pin(ended) }
    }

    /// Waits, but no longer than patience lasts.
    async fn wait<T>(&self, patience: &mut Patience, work: impl Future<Output = T>) -> Result<T, Cut> {
        tokio::select! {
            biased;
            () = self.shared.drain.cancelled() => Err(Cut::Over(errors::draining())),
            status = &mut patience.ended => Err(Cut::Over(status)),
            done = tokio::time::timeout_at(patience.until, work) => done.map_err(|_| Cut::Late),
        }
    }

    /// Checks a batch and hands it to the engine, piece by piece; each message has its own fate, which goes onward. An error
    /// ends the call: of what was not handed onward until then nothing is stored.
    ///
    /// A batch has one deadline, which counts from here. Only where the client's own rate holds messages back, each one's counts
    /// from its turn, as if it had been sent alone; the first that comes too late takes the rest of its batch with it.
    async fn take(&self, batch: PublishBatch, patience: &mut Patience, onward: &Onward) -> Result<(), Status> {
        let count = count_of(batch.messages.len());
        let refuse = |count, error: PublishError| onward.hand(Ok(refused(count, &error)));
        if self.shared.drain.is_cancelled() {
            let text = "this node is draining; publish to another or try again later";
            refuse(count, PublishError::Unavailable(text.into()));
            return Ok(());
        }
        let bytes = convert::batch_bytes(&batch);
        let (terms, contents) = match convert::batch(batch, self.shared.config.publish_deadline) {
            Ok(converted) => converted,
            Err(error) => {
                refuse(count, error);
                return Ok(());
            }
        };
        patience.until = Instant::now() + terms.deadline();
        // Of the client's own share: who waits for that holds nothing of the others'.
        let own = self.wait(patience, take_room(&self.rate.in_flight, contents.len(), bytes)).await;
        let mut left = count;
        let taken = match own {
            Ok(_own) => self.take_each(&terms, contents, patience, onward, &mut left).await,
            Err(cut) => Err(cut),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(Cut::Late) => {
                refuse(left, no_room());
                Ok(())
            }
            Err(Cut::Over(status)) => Err(status),
        }
    }

    /// `left`: messages whose fate is not known yet, the last ones of the batch.
    async fn take_each(
        &self,
        terms: &Terms,
        contents: Vec<Result<OwnMessage, PublishError>>,
        patience: &mut Patience,
        onward: &Onward,
        left: &mut u32,
    ) -> Result<(), Cut> {
        // Of topics' rates most messages do not feel anything, and go on together.
        let is_limited = self.rate.gate.is_limited();
        let any_limit = is_limited || self.shared.topic_rates.any(&self.shared.engine);
        let mut run = Vec::with_capacity(if is_limited { 1 } else { contents.len() });
        for (index, content) in contents.into_iter().enumerate() {
            if any_limit && index > 0 {
                patience.until = Instant::now() + terms.deadline();
            }
            let mut checked = self.check(content);
            if any_limit && let Ok(message) = &checked {
                let passed = self.pass_rates(message, terms, &mut run, patience, onward, left).await?;
                checked = passed.and(checked);
            }
            match checked {
                Ok(message) => {
                    // Room for receipts is a topic's.
                    if terms.waits_for_others() && run.last().is_some_and(|last| !of_one_topic(last, &message)) {
                        self.hand_over(terms, std::mem::take(&mut run), patience, onward, left).await?;
                    }
                    run.push(message);
                }
                Err(failure) => {
                    self.hand_over(terms, std::mem::take(&mut run), patience, onward, left).await?;
                    onward.hand(Ok(Taken::Now(1, Box::new(Err(*failure)))));
                    *left = left.saturating_sub(1);
                }
            }
            // What a client's rate delays must not wait for what comes after it.
            if is_limited {
                self.hand_over(terms, std::mem::take(&mut run), patience, onward, left).await?;
            }
        }
        self.hand_over(terms, run, patience, onward, left).await
    }

    /// Whether a message may be published, as far as rights can tell.
    fn check(&self, message: Result<OwnMessage, PublishError>) -> Result<OwnMessage, Box<PublishFailure>> {
        let message = message.map_err(|error| Box::new(errors::failure(&error)))?;
        if let Err(missing) = self.caller.check_publish(&message.path) {
            DoorCounters::count(&self.shared.counters.not_allowed);
            return Err(Box::new(errors::publish_not_allowed(missing)));
        }
        Ok(message)
    }

    /// Takes room in the rates that hold for a message, its client's and its topic's: waits, or is refused. What a rate delays must
    /// not keep what came before it, so that goes on first.
    async fn pass_rates(
        &self,
        message: &OwnMessage,
        terms: &Terms,
        run: &mut Vec<OwnMessage>,
        patience: &mut Patience,
        onward: &Onward,
        left: &mut u32,
    ) -> Result<Result<(), Box<PublishFailure>>, Cut> {
        let shared = &self.shared;
        let topic = shared.topic_rates.of(&shared.engine, topic_of(message.path.as_str()), std::time::Instant::now());
        let bytes = message.content_bytes();
        for gate in std::iter::once(&self.rate.gate).chain(topic.as_deref()) {
            let mut passage = Passage::default();
            if gate.try_pass(&mut passage, bytes).is_ok() {
                continue;
            }
            self.hand_over(terms, std::mem::take(run), patience, onward, left).await?;
            if let Err(limited) = self.wait(patience, gate.pass(&mut passage, bytes)).await? {
                return Ok(Err(Box::new(errors::limited(&limited))));
            }
        }
        Ok(Ok(()))
    }

    /// Hands messages that follow one another to the engine, and what comes of it onward.
    async fn hand_over(
        &self,
        terms: &Terms,
        messages: Vec<OwnMessage>,
        patience: &mut Patience,
        onward: &Onward,
        left: &mut u32,
    ) -> Result<(), Cut> {
        let count = count_of(messages.len());
        if count == 0 {
            return Ok(());
        }
        if terms.mode == Mode::OneWay {
            for message in messages {
                let (path, bytes) = (message.path.clone(), message.content_bytes());
                let sent = self.shared.engine.publish_one_way(terms.publish(message));
                if sent.is_ok() {
                    self.shared.traffic.of(topic_of(path.as_str())).published.add(1, bytes);
                }
                let sent = sent.map(|()| Receipt::default()).map_err(|error| errors::failure(&error));
                onward.hand(Ok(Taken::Now(1, Box::new(sent))));
            }
            *left = left.saturating_sub(count);
            return Ok(());
        }
        // First what a site that is cut off may hold back for long, the client's own share and the engine's room; then of the
        // room that all need. That is held until the engine has the messages in its own, bounded queue.
        let (share, receipts) = self.receipt_room(terms, &messages, patience).await?;
        let bytes = messages.iter().map(|m| m.content_bytes().saturating_add(m.path.as_str().len())).sum();
        let _room = self.wait(patience, take_room(&self.shared.in_flight, messages.len(), bytes)).await?;
        let time = patience.until.saturating_duration_since(Instant::now());
        *left = left.saturating_sub(count);
        // To its end in any case: what the engine began to take is not given up half-way.
        let tally = Tally::of(&messages);
        onward.hand(Ok(match self.shared.engine.publish_run(terms.run(messages, time), receipts).await {
            Ok(pending) => Taken::Pending(count, pending, share, tally),
            Err(error) => refused(count, &error),
        }));
        Ok(())
    }

    /// Room for messages of one topic among those that wait for other sites, where they do: the client's, and the engine's.
    async fn receipt_room(
        &self,
        terms: &Terms,
        messages: &[OwnMessage],
        patience: &mut Patience,
    ) -> Result<(Option<OwnedSemaphorePermit>, ReceiptRoom), Cut> {
        let Some(first) = messages.first().filter(|_| terms.waits_for_others()) else {
            return Ok((None, ReceiptRoom::default()));
        };
        let permits = count_of(messages.len().min(self.rate.receipts_max));
        let share = self.wait(patience, self.rate.receipts.clone().acquire_many_owned(permits)).await?.ok();
        let topic = first.path.topic();
        let room = self.shared.engine.receipt_room(&topic, terms.acknowledgement(), messages.len());
        Ok((share, self.wait(patience, room).await?))
    }

    /// What became of messages that were taken, counted.
    async fn finish(&self, taken: Taken) -> Vec<Told> {
        let (told, tally) = match taken {
            Taken::Now(count, result) => (vec![(count, *result)], None),
            Taken::Pending(count, pending, _share, tally) => (outcomes(count, pending).await, Some(tally)),
        };
        self.count(&told);
        if let Some(tally) = tally {
            tally.count(&told, &self.shared.traffic);
        }
        told
    }

    fn count(&self, told: &[Told]) {
        let counters = &self.shared.counters;
        for (count, result) in told {
            let counter = if result.is_ok() { &counters.published } else { &counters.failed };
            DoorCounters::add(counter, u64::from(*count));
        }
    }
}

/// Messages that were handed to the engine, by topic in their order, each with its bytes.
struct Tally(Vec<(String, Vec<usize>)>);

impl Tally {
    fn of(messages: &[OwnMessage]) -> Self {
        let run = |run: &[OwnMessage]| {
            let topic = topic_of(run.first()?.path.as_str()).to_owned();
            Some((topic, run.iter().map(OwnMessage::content_bytes).collect()))
        };
        Self(messages.chunk_by(of_one_topic).filter_map(run).collect())
    }

    /// Counts those that got a receipt: what was refused is no traffic, and its topic may not even exist.
    fn count(&self, told: &[Told], traffic: &Traffic) {
        let mut fates = told.iter().flat_map(|(count, result)| std::iter::repeat_n(result.is_ok(), *count as usize));
        for (topic, sizes) in &self.0 {
            let (mut messages, mut bytes) = (0, 0_usize);
            for (size, is_taken) in sizes.iter().zip(fates.by_ref().take(sizes.len())) {
                if is_taken {
                    messages += 1;
                    bytes = bytes.saturating_add(*size);
                }
            }
            if messages > 0 {
                traffic.of(topic).published.add(messages, bytes);
            }
        }
    }
}

async fn outcomes(count: u32, pending: PendingRun) -> Vec<Told> {
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

fn of_one_topic(a: &OwnMessage, b: &OwnMessage) -> bool {
    topic_of(a.path.as_str()) == topic_of(b.path.as_str())
}

fn count_of(messages: usize) -> u32 {
    u32::try_from(messages).unwrap_or(u32::MAX)
}

fn refused(count: u32, error: &PublishError) -> Taken {
    Taken::Now(count, Box::new(Err(errors::failure(error))))
}

fn no_room() -> PublishError {
    let text = "there was no room for the message before its deadline, and it was not stored; publish it again later";
    PublishError::Unavailable(text.into())
}

fn in_doubt() -> PublishFailure {
    errors::failure(&PublishError::InDoubt("the node stopped before it said so".into()))
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn only_what_got_a_receipt_is_traffic_and_only_that_names_a_topic() {
        let traffic = Traffic::default();
        let tally = Tally(vec![("a".into(), vec![1, 2, 4]), ("b".into(), vec![8, 16]), ("a".into(), vec![32])]);
        // Of a's first run the last is refused, of b's both, and what follows is taken.
        let told = [(2, Ok(Receipt::default())), (3, Err(in_doubt())), (1, Ok(Receipt::default()))];
        tally.count(&told, &traffic);
        let all = traffic.all();
        let seen: Vec<_> = all
            .iter()
            .map(|(t, f)| (t.as_str(), f.published.messages.load(Relaxed), f.published.bytes.load(Relaxed)))
            .collect();
        assert_eq!(seen, [("a", 3, 35)]);
    }
}
