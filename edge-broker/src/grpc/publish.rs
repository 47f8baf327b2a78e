//! Publishing: one message, or a stream of them whose receipts come in the order of the requests.

use std::sync::Arc;

use seaway_relay::node::{PendingReceipt, PublishError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Status, Streaming};

use super::{
    convert, errors,
    shared::{DoorCounters, PERMIT_BYTES, Shared},
};
use crate::{
    api::{PublishFailure, PublishReply, PublishRequest, Receipt, publish_reply},
    auth::Caller,
    engine::Engine,
    limits::{
        ClientRate, IN_FLIGHT_OVERHEAD_BYTES, REPLIES_QUEUED_MAX, STREAM_IN_FLIGHT_BYTES_MAX, STREAM_IN_FLIGHT_MAX,
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

/// A message that was taken, or not.
enum Taken {
    /// Its receipt follows.
    Pending(PendingReceipt),
    /// That is all there is to say.
    Now(Box<Result<Receipt, PublishFailure>>),
}

/// A stream's request on its way to its reply.
struct InOrder {
    taken: Taken,
    /// Of the stream's own bound: a client that does not read its receipts stops itself, and nobody else.
    _room: Option<OwnedSemaphorePermit>,
}

impl<E: Engine> Publisher<E> {
    /// Publishes one message and waits for its receipt.
    pub(crate) async fn publish(&self, request: PublishRequest) -> Result<Receipt, Status> {
        let taken = self.take(request).await;
        let result = finish(taken).await;
        self.count(&result);
        result.map_err(|failure| errors::failure_status(&failure))
    }

    /// Publishes a stream; the replies end with a status where the stream is cut by this node.
    pub(crate) fn publish_stream(
        self,
        requests: Streaming<PublishRequest>,
    ) -> mpsc::Receiver<Result<PublishReply, Status>> {
        let (order, ordered) = mpsc::channel(STREAM_IN_FLIGHT_MAX);
        let (replies, receiver) = mpsc::channel(REPLIES_QUEUED_MAX);
        let publisher = Arc::new(self);
        tokio::spawn(publisher.clone().take_all(requests, order));
        tokio::spawn(publisher.answer_all(ordered, replies));
        receiver
    }

    /// Takes requests in order, as far as there is room for what is in flight.
    async fn take_all(
        self: Arc<Self>,
        mut requests: Streaming<PublishRequest>,
        order: mpsc::Sender<Result<InOrder, Status>>,
    ) {
        let stream_room = Arc::new(Semaphore::new(STREAM_IN_FLIGHT_BYTES_MAX / PERMIT_BYTES));
        loop {
            let request = tokio::select! {
                biased;
                () = self.shared.drain.cancelled() => Err(errors::draining()),
                () = order.closed() => return,
                request = requests.message() => request,
            };
            let next = match request {
                Ok(Some(request)) => {
                    let room = take_room(&stream_room, convert::request_bytes(&request)).await;
                    Ok(InOrder { taken: self.take(request).await, _room: room })
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

    /// Answers in the order of the requests.
    async fn answer_all(
        self: Arc<Self>,
        mut ordered: mpsc::Receiver<Result<InOrder, Status>>,
        replies: mpsc::Sender<Result<PublishReply, Status>>,
    ) {
        let mut number = 0_u64;
        while let Some(next) = ordered.recv().await {
            let reply = match next {
                Ok(InOrder { taken, _room }) => {
                    let result = finish(taken).await;
                    self.count(&result);
                    let result = Some(match result {
                        Ok(receipt) => publish_reply::Result::Receipt(receipt),
                        Err(failure) => publish_reply::Result::Failure(failure),
                    });
                    Ok(PublishReply { number, result })
                }
                Err(status) => Err(status),
            };
            number = number.wrapping_add(1);
            if replies.send(reply).await.is_err() {
                return; // the client left; what was taken is stored all the same
            }
        }
    }

    /// Checks a request and hands it to the engine.
    async fn take(&self, request: PublishRequest) -> Taken {
        match self.try_take(request).await {
            Ok(taken) => taken,
            Err(failure) => Taken::Now(Box::new(Err(failure))),
        }
    }

    async fn try_take(&self, request: PublishRequest) -> Result<Taken, PublishFailure> {
        let failure = |error: PublishError| errors::failure(&error);
        if self.shared.drain.is_cancelled() {
            let text = "this node is draining; publish to another or try again later";
            return Err(failure(PublishError::Unavailable(text.into())));
        }
        let bytes = convert::request_bytes(&request);
        let (mode, publish) = convert::publish(request, self.shared.config.publish_deadline).map_err(failure)?;
        if let Err(missing) = self.caller.check_publish(&publish.path) {
            DoorCounters::count(&self.shared.counters.not_allowed);
            return Err(errors::publish_not_allowed(missing));
        }
        self.rate.admit(bytes).await.map_err(errors::limited)?;
        // Held until the engine has the message in its own, bounded queue.
        let _room = take_room(&self.shared.in_flight, bytes).await;
        if mode == crate::api::Mode::OneWay {
            self.shared.engine.publish_one_way(publish).map_err(failure)?;
            return Ok(Taken::Now(Box::new(Ok(Receipt::default()))));
        }
        Ok(Taken::Pending(self.shared.engine.publish(publish).await.map_err(failure)?))
    }

    fn count(&self, result: &Result<Receipt, PublishFailure>) {
        let counters = &self.shared.counters;
        DoorCounters::count(if result.is_ok() { &counters.published } else { &counters.failed });
    }
}

async fn finish(taken: Taken) -> Result<Receipt, PublishFailure> {
    let pending = match taken {
        Taken::Now(result) => return *result,
        Taken::Pending(pending) => pending,
    };
    match pending.await {
        Ok(Ok(receipt)) => Ok(convert::receipt(receipt)),
        Ok(Err(PublishError::StoredBefore { asked: false })) => Ok(Receipt { repeated: true, ..Receipt::default() }),
        Ok(Err(error)) => Err(errors::failure(&error)),
        Err(_) => {
            let text = "the node stopped before the message was durable; it may be stored or not, publish it again";
            Err(errors::failure(&PublishError::Unavailable(text.into())))
        }
    }
}

/// Room for a message of so many bytes, waited for; `None` only when the door is closed.
async fn take_room(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = bytes.saturating_add(IN_FLIGHT_OVERHEAD_BYTES);
    let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    room.clone().acquire_many_owned(permits).await.ok()
}
