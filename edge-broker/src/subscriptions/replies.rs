//! Replies on their way to a subscriber: at most a few of each, and of all subscribers together no more bytes than
//! [`SUBSCRIBERS_REPLIES_BYTES_MAX`], beyond which each has one on its way at a time. So one that does not read takes little from the others.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use prost::Message as _;
use seaway_relay::node::queues::Gauge;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

use crate::{
    api::SubscribeReply,
    limits::{SUBSCRIBE_REPLIES_MAX, SUBSCRIBERS_REPLIES_BYTES_MAX},
};

/// How often one that waits for all subscribers' room looks again.
const LOOK: Duration = Duration::from_millis(20);

/// A reply that waits, and the room that it takes.
#[derive(Debug)]
struct Queued {
    reply: Result<SubscribeReply, Status>,
    bytes: u64,
    all: Arc<Gauge>,
}

impl Queued {
    fn new(reply: Result<SubscribeReply, Status>, all: Arc<Gauge>) -> Self {
        let bytes = reply.as_ref().map_or(0, |reply| reply.encoded_len());
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        all.add(bytes);
        Self { reply, bytes, all }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.all.sub(self.bytes);
    }
}

/// Where one subscriber's replies go.
#[derive(Debug, Clone)]
pub(crate) struct Replies {
    sender: mpsc::Sender<Queued>,
    all: Arc<Gauge>,
}

/// Room for one reply.
#[derive(Debug)]
pub(crate) struct Permit {
    permit: mpsc::OwnedPermit<Queued>,
    all: Arc<Gauge>,
}

/// What a subscriber is sent, in order.
#[derive(Debug)]
pub(crate) struct Receiver(mpsc::Receiver<Queued>);

/// Why there is no room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Not now.
    Full,
    /// The subscriber left.
    Closed,
}

/// A way to one subscriber; `all`: what waits for all of them.
pub(crate) fn replies(all: &Arc<Gauge>) -> (Replies, Receiver) {
    let (sender, receiver) = mpsc::channel(SUBSCRIBE_REPLIES_MAX);
    (Replies { sender, all: all.clone() }, Receiver(receiver))
}

impl Replies {
    /// Resolves when the subscriber left.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Whether nothing waits here, or all together have room.
    fn has_room(&self) -> bool {
        self.sender.capacity() == self.sender.max_capacity() || self.all.used() < SUBSCRIBERS_REPLIES_BYTES_MAX
    }

    /// Room for one more, if there is some now.
    pub(crate) fn try_reserve(&self) -> Result<Permit, NoRoom> {
        if !self.has_room() {
            return Err(if self.sender.is_closed() { NoRoom::Closed } else { NoRoom::Full });
        }
        match self.sender.clone().try_reserve_owned() {
            Ok(permit) => Ok(Permit { permit, all: self.all.clone() }),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NoRoom::Full),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(NoRoom::Closed),
        }
    }

    /// Waits for room for one more; `None`: the subscriber left.
    pub(crate) async fn reserve(self) -> Option<Permit> {
        loop {
            let permit = self.sender.clone().reserve_owned().await.ok()?;
            // The permit itself is one of those that are taken.
            let alone = self.sender.capacity() + 1 == self.sender.max_capacity();
            if alone || self.all.used() < SUBSCRIBERS_REPLIES_BYTES_MAX {
                return Some(Permit { permit, all: self.all.clone() });
            }
            drop(permit);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Sends, once there is room; who left does not mind.
    pub(crate) async fn send(&self, reply: Result<SubscribeReply, Status>) {
        if let Some(permit) = self.clone().reserve().await {
            permit.send(reply);
        }
    }

    /// Sends, if there is room.
    pub(crate) fn try_send(&self, reply: Result<SubscribeReply, Status>) {
        if let Ok(permit) = self.try_reserve() {
            permit.send(reply);
        }
    }
}

impl Permit {
    /// Uses the room.
    pub(crate) fn send(self, reply: Result<SubscribeReply, Status>) {
        self.permit.send(Queued::new(reply, self.all));
    }
}

impl Stream for Receiver {
    type Item = Result<SubscribeReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let queued = self.0.poll_recv(context);
        queued
            .map(|queued| queued.map(|mut queued| std::mem::replace(&mut queued.reply, Ok(SubscribeReply::default()))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::api::{
        Message,
        subscribe_reply::{Kind, Messages},
    };

    fn reply(bytes: usize) -> Result<SubscribeReply, Status> {
        let message = Message { payload: vec![0; bytes].into(), ..Message::default() };
        Ok(SubscribeReply { kind: Some(Kind::Messages(Messages { messages: vec![message] })) })
    }

    #[tokio::test]
    async fn what_waits_is_counted_until_it_is_read_or_dropped() {
        let all = Arc::<Gauge>::default();
        let (replies, mut receiver) = replies(&all);
        (0..SUBSCRIBE_REPLIES_MAX).for_each(|_| replies.try_send(reply(1000)));
        let full = all.used();
        assert!(full >= 4000 && replies.try_reserve().is_err_and(|why| why == NoRoom::Full));
        receiver.next().await.unwrap().unwrap();
        assert!(all.used() < full);
        drop(receiver);
        assert_eq!((all.used(), replies.try_reserve().map(drop)), (0, Err(NoRoom::Closed)));
        assert_eq!(all.row("x", 1, "").highest, Some(full));
    }

    #[tokio::test]
    async fn beyond_the_room_of_all_each_subscriber_has_one_at_a_time() {
        let all = Arc::<Gauge>::default();
        all.add(SUBSCRIBERS_REPLIES_BYTES_MAX);
        let (one, mut of_one) = replies(&all);
        let (other, _of_other) = replies(&all);
        for subscriber in [&one, &other] {
            subscriber.try_reserve().unwrap().send(reply(10));
            assert_eq!(subscriber.try_reserve().map(drop), Err(NoRoom::Full));
        }
        let waiting = tokio::spawn(one.clone().reserve());
        assert!(of_one.next().await.unwrap().is_ok());
        waiting.await.unwrap().unwrap().send(reply(10));
        assert!(of_one.next().await.unwrap().is_ok());
        all.sub(SUBSCRIBERS_REPLIES_BYTES_MAX);
        assert!(other.try_reserve().is_ok());
    }
}
