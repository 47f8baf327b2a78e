//! A bound for requests while they are read: tonic gathers a message whole before anything of ours sees it, and takes the
//! length that its five bytes of framing claim. So these are read here first: a message that is longer than its call allows
//! is refused by its claim, and a large one is let in only when the door has room for all of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::Frame;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use crate::{
    grpc::{errors, shared::PERMIT_BYTES},
    limits::{DECODING_SMALL_BYTES, REQUEST_BYTES_MAX, REQUEST_TIME_MAX, SUBSCRIBE_REQUEST_BYTES_MAX},
};

/// Bytes of framing before a message: a flag and its length.
const FRAMING_BYTES: usize = 5;

/// A service whose requests are metered; `room` counts in permits of [`PERMIT_BYTES`].
#[derive(Debug, Clone)]
pub(super) struct Metered<S> {
    pub(super) inner: S,
    pub(super) room: Arc<Semaphore>,
}

impl<S: NamedService> NamedService for Metered<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Metered<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let subscribes = request.uri().path().ends_with("/Subscribe");
        let bytes_max = if subscribes { SUBSCRIBE_REQUEST_BYTES_MAX } else { REQUEST_BYTES_MAX };
        let room = self.room.clone();
        self.inner.call(request.map(|body| Body::new(MeteredBody::new(body, bytes_max, room))))
    }
}

type Claim = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

struct MeteredBody {
    inner: Body,
    bytes_max: usize,
    room: Arc<Semaphore>,
    /// Framing that was seen in part.
    framing: [u8; FRAMING_BYTES],
    seen: usize,
    /// What is still to come of the present message.
    left: usize,
    /// Not passed on yet; it begins with the last byte of a large message's framing.
    rest: Bytes,
    /// Room that is waited for, or held until the message has been passed on.
    claim: Option<Claim>,
    held: Option<(OwnedSemaphorePermit, Pin<Box<Sleep>>)>,
}

impl MeteredBody {
    fn new(inner: Body, bytes_max: usize, room: Arc<Semaphore>) -> Self {
        let (framing, rest) = ([0; FRAMING_BYTES], Bytes::new());
        Self { inner, bytes_max, room, framing, seen: 0, left: 0, rest, claim: None, held: None }
    }

    /// How much of `data` may be passed on now. Stops before a large message's framing is complete, and claims its room.
    fn admit(&mut self, data: &Bytes) -> Result<usize, Status> {
        let mut at = 0;
        while at < data.len() {
            if self.left > 0 {
                let now = self.left.min(data.len() - at);
                self.left -= now;
                at += now;
                continue;
            }
            let (Some(slot), Some(byte)) = (self.framing.get_mut(self.seen), data.get(at)) else { break };
            *slot = *byte;
            if self.seen + 1 < FRAMING_BYTES {
                self.seen += 1;
                at += 1;
                continue;
            }
            let [_, length @ ..] = self.framing;
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if length > self.bytes_max {
                let text = format!("the request has {length} bytes, more than the {} that it may have", self.bytes_max);
                return Err(errors::too_many(text));
            }
            if length > DECODING_SMALL_BYTES && self.held.is_none() {
                let permits = u32::try_from(length.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
                self.claim = Some(Box::pin(self.room.clone().acquire_many_owned(permits)));
                break;
            }
            (self.seen, self.left) = (0, length);
            at += 1;
        }
        Ok(at)
    }

    /// Whether data may flow: room that is waited for has come, a held message is not too slow.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        if self.left == 0 && self.rest.is_empty() && self.claim.is_none() {
            self.held = None; // asked for more: what was passed on has been taken in
        }
        if let Some(claim) = &mut self.claim {
            let Poll::Ready(granted) = claim.as_mut().poll(context) else { return Poll::Pending };
            self.claim = None;
            let permit = granted.map_err(|_| errors::draining())?;
            self.held = Some((permit, Box::pin(tokio::time::sleep(REQUEST_TIME_MAX))));
        }
        if let Some((_, sleep)) = &mut self.held
            && sleep.as_mut().poll(context).is_ready()
        {
            let text = format!("the request did not come whole within {} s; send it anew", REQUEST_TIME_MAX.as_secs());
            return Poll::Ready(Err(Status::deadline_exceeded(text)));
        }
        Poll::Ready(Ok(()))
    }
}

impl http_body::Body for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            match self.poll_room(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(status)) => return Poll::Ready(Some(Err(status))),
                Poll::Pending => return Poll::Pending,
            }
            let mut data = if self.rest.is_empty() {
                match Pin::new(&mut self.inner).poll_frame(context) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => data,
                        Err(other) => return Poll::Ready(Some(Ok(other))),
                    },
                    Poll::Ready(other) => return Poll::Ready(other),
                    Poll::Pending => return Poll::Pending,
                }
            } else {
                std::mem::take(&mut self.rest)
            };
            let now = match self.admit(&data) {
                Ok(now) => now,
                Err(status) => return Poll::Ready(Some(Err(status))),
            };
            let passed = data.split_to(now);
            self.rest = data;
            if passed.has_remaining() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, time::Duration};

    use http_body::Body as _;

    use super::*;

    /// Frames as they come from a connection.
    struct Frames(VecDeque<Bytes>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
        }
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.extend((0..length).map(|n| n as u8));
        bytes
    }

    fn metered(bytes: &[u8], piece: usize, room: &Arc<Semaphore>) -> MeteredBody {
        let frames = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        MeteredBody::new(Body::new(Frames(frames)), 1 << 20, room.clone())
    }

    async fn next(body: &mut MeteredBody) -> Option<Result<Bytes, Status>> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn bytes_pass_unchanged_however_they_are_cut() {
        let all: Vec<u8> = [0, 10, 100_000, 3, 5_000, 0, 70_000].into_iter().flat_map(message).collect();
        for piece in [1, 2, 3, 7, 4_096, 1 << 20] {
            let room = Arc::new(Semaphore::new(100_000_usize.div_ceil(PERMIT_BYTES)));
            let mut body = metered(&all, piece, &room);
            let mut got = Vec::new();
            while let Some(data) = next(&mut body).await {
                got.extend(data.unwrap());
            }
            assert!(got == all, "pieces of {piece}");
            drop(body);
            assert_eq!(room.available_permits(), 100_000_usize.div_ceil(PERMIT_BYTES));
        }
    }

    #[tokio::test]
    async fn a_large_message_waits_for_room_before_its_length_is_told() {
        let room = Arc::new(Semaphore::new(200_000 / PERMIT_BYTES));
        let taken = room.clone().try_acquire_many_owned(400).unwrap();
        let all: Vec<u8> = [message(20), message(150_000)].concat();
        let mut body = metered(&all, 1 << 20, &room);
        let first = next(&mut body).await.unwrap().unwrap();
        assert_eq!(first.len(), FRAMING_BYTES + 20 + FRAMING_BYTES - 1, "the last byte of the length is held back");
        let waits = tokio::time::timeout(Duration::from_millis(50), next(&mut body)).await;
        assert!(waits.is_err(), "there is no room for it");
        drop(taken);
        assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 150_001);
        assert!(room.available_permits() < 200_000 / PERMIT_BYTES, "held until the next is asked for");
        assert!(next(&mut body).await.is_none());
        assert_eq!(room.available_permits(), 200_000 / PERMIT_BYTES);
    }

    #[tokio::test]
    async fn what_claims_to_be_longer_than_is_allowed_is_refused_by_its_claim() {
        let room = Arc::new(Semaphore::new(1_000_000));
        let mut body = metered(&message((1 << 20) + 1)[..FRAMING_BYTES], 1 << 20, &room);
        let status = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
