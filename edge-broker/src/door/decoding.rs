//! A bound for requests while they are read: tonic gathers a message whole before anything of ours sees it, and takes the
//! length that its five bytes of framing claim. So these are read here first: a message that is longer than its call allows
//! is refused by its claim, a large one is let in only when its client and the door have room for all of it, and one of too
//! many parts is cut off.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
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

use super::parts::{self, Parts, Refused};
use crate::{
    auth::Caller,
    engine::Engine,
    grpc::{
        errors,
        shared::{PERMIT_BYTES, Shared},
    },
    limits::{
        DECODING_SMALL_BYTES, PART_BYTES, REQUEST_BYTES_MAX, REQUEST_PARTS_MAX, REQUEST_TIME_MAX,
        SUBSCRIBE_REQUEST_BYTES_MAX,
    },
};

/// Bytes of framing before a message: a flag and its length.
const FRAMING_BYTES: usize = 5;
/// Room for parts is taken in steps of so many bytes.
const PARTS_STEP_BYTES: usize = 256 * 1024;

/// A service whose requests are metered.
#[derive(Debug)]
pub(super) struct Metered<S, E: Engine> {
    pub(super) inner: S,
    pub(super) shared: Arc<Shared<E>>,
}

impl<S: Clone, E: Engine> Clone for Metered<S, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<S: NamedService, E: Engine> NamedService for Metered<S, E> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>, E: Engine> Service<http::Request<Body>> for Metered<S, E> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let (confirms, bytes_max, fields) = match request.uri().path().rsplit('/').next() {
            Some("Subscribe") => (true, SUBSCRIBE_REQUEST_BYTES_MAX, parts::SUBSCRIBE),
            Some("Publish") => (false, REQUEST_BYTES_MAX, parts::PUBLISH),
            _ => (false, REQUEST_BYTES_MAX, parts::PUBLISH_BATCH),
        };
        // Without a caller the service refuses the call by itself.
        let name = Caller::of(request.extensions()).map(|caller| caller.name.clone()).unwrap_or_default();
        let client = self.shared.rates.of(&name, Instant::now());
        let own = if confirms { &client.confirming } else { &client.decoding };
        let parts = [client.parts.clone(), self.shared.parts.clone()];
        let room = Rooms { own: own.clone(), all: self.shared.decoding.clone(), parts };
        self.inner.call(request.map(|body| Body::new(MeteredBody::new(body, bytes_max, fields, room))))
    }
}

type Claim = Pin<Box<dyn Future<Output = Result<[OwnedSemaphorePermit; 2], AcquireError>> + Send>>;

/// Room for what is read, in permits of [`PERMIT_BYTES`].
#[derive(Debug, Clone)]
struct Rooms {
    /// The client's, taken first: who waits for that holds nothing of the others'.
    own: Arc<Semaphore>,
    /// All clients'.
    all: Arc<Semaphore>,
    /// For what the parts take beyond their bytes: the client's, and all clients'.
    parts: [Arc<Semaphore>; 2],
}

impl Rooms {
    fn claim(&self, bytes: usize) -> Claim {
        let Self { own, all, .. } = self.clone();
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        Box::pin(async move { Ok([own.acquire_many_owned(permits).await?, all.acquire_many_owned(permits).await?]) })
    }

    /// Room for one step of parts. Not waited for: those who wait would hold what each other waits for.
    fn try_parts(&self) -> Option<[Option<OwnedSemaphorePermit>; 2]> {
        let permits = u32::try_from(PARTS_STEP_BYTES.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        let [own, all] = &self.parts;
        let own = own.clone().try_acquire_many_owned(permits).ok()?;
        Some([Some(own), Some(all.clone().try_acquire_many_owned(permits).ok()?)])
    }
}

/// A large message that is let in.
struct Held {
    /// Until the next is asked for: so long what was read may wait for room further on.
    _own: OwnedSemaphorePermit,
    /// Until it has been passed on whole.
    all: Option<OwnedSemaphorePermit>,
    /// For its parts, the client's and all clients': each as long as those above.
    parts: Vec<[Option<OwnedSemaphorePermit>; 2]>,
    /// Until then it must have come.
    until: Pin<Box<Sleep>>,
}

impl Held {
    /// Takes room for so many parts.
    fn take_parts(&mut self, count: usize, room: &Rooms) -> Result<(), Status> {
        while self.all.is_some() && count.saturating_mul(PART_BYTES) > self.parts.len() * PARTS_STEP_BYTES {
            self.parts.push(room.try_parts().ok_or_else(|| {
                errors::too_many(
                    "there is no room for so many messages and headers at once; send fewer, or the same again later",
                )
            })?);
        }
        Ok(())
    }
}

struct MeteredBody {
    inner: Body,
    bytes_max: usize,
    room: Rooms,
    parts: Parts,
    /// Framing that was seen in part.
    framing: [u8; FRAMING_BYTES],
    seen: usize,
    /// What is still to come of the present message.
    left: usize,
    /// Not passed on yet; it begins with the last byte of a large message's framing.
    rest: Bytes,
    /// Room that is waited for, or held.
    claim: Option<Claim>,
    held: Option<Held>,
}

impl MeteredBody {
    fn new(inner: Body, bytes_max: usize, fields: parts::Fields, room: Rooms) -> Self {
        let (framing, rest, parts) = ([0; FRAMING_BYTES], Bytes::new(), Parts::new(fields));
        Self { inner, bytes_max, room, parts, framing, seen: 0, left: 0, rest, claim: None, held: None }
    }

    /// How much of `data` may be passed on now. Stops before a large message's framing is complete, and claims its room.
    fn admit(&mut self, data: &Bytes) -> Result<usize, Status> {
        let mut at = 0;
        while at < data.len() {
            if self.left > 0 {
                let now = self.left.min(data.len() - at);
                self.parts.read(data.get(at..at + now).unwrap_or_default()).map_err(refused)?;
                if let Some(held) = &mut self.held {
                    held.take_parts(self.parts.count(), &self.room)?;
                }
                self.left -= now;
                at += now;
                if self.left == 0 {
                    self.passed_whole();
                }
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
            if length > DECODING_SMALL_BYTES {
                match &self.held {
                    None => {
                        self.claim = Some(self.room.claim(length));
                        break;
                    }
                    // That is the message before, whose room goes back once more is asked for.
                    Some(held) if held.all.is_none() => break,
                    Some(_) => {}
                }
            }
            (self.seen, self.left) = (0, length);
            self.parts.begin();
            at += 1;
        }
        Ok(at)
    }

    /// It is decoded now; from here on it counts for its client alone.
    fn passed_whole(&mut self) {
        if let Some(held) = &mut self.held {
            held.all = None;
            held.parts.iter_mut().for_each(|[_, all]| *all = None);
        }
    }

    /// Whether data may flow: room that is waited for has come, a held message is not too slow.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        if self.left == 0 && self.held.as_ref().is_some_and(|held| held.all.is_none()) {
            self.held = None; // asked for more: what was passed on has been taken in
        }
        if let Some(claim) = &mut self.claim {
            let Poll::Ready(granted) = claim.as_mut().poll(context) else { return Poll::Pending };
            self.claim = None;
            let [own, all] = granted.map_err(|_| errors::draining())?;
            let until = Box::pin(tokio::time::sleep(REQUEST_TIME_MAX));
            self.held = Some(Held { _own: own, all: Some(all), parts: Vec::new(), until });
        }
        if let Some(held) = &mut self.held
            && held.until.as_mut().poll(context).is_ready()
        {
            let text = format!("the request did not come whole within {} s; send it anew", REQUEST_TIME_MAX.as_secs());
            return Poll::Ready(Err(Status::deadline_exceeded(text)));
        }
        Poll::Ready(Ok(()))
    }
}

fn refused(why: Refused) -> Status {
    match why {
        Refused::TooMany => errors::too_many(format!(
            "the request has more than {REQUEST_PARTS_MAX} messages, headers and the like; send them in several requests"
        )),
        Refused::Malformed => errors::invalid("the request is none that this call takes; check the client's version"),
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
        // One field that is counted nowhere, for the most part.
        let head = [0x7a, 0x80 | (length & 0x7f) as u8, 0x80 | (length >> 7 & 0x7f) as u8, (length >> 14) as u8];
        bytes.extend((0..length).map(|n| head.get(n).copied().unwrap_or(n as u8)));
        bytes
    }

    fn rooms(bytes: usize) -> Rooms {
        let room = || Arc::new(Semaphore::new(bytes.div_ceil(PERMIT_BYTES)));
        Rooms { own: room(), all: room(), parts: [room(), room()] }
    }

    fn metered(bytes: &[u8], piece: usize, room: &Rooms) -> MeteredBody {
        let frames = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        MeteredBody::new(Body::new(Frames(frames)), 1 << 20, parts::PUBLISH_BATCH, room.clone())
    }

    async fn next(body: &mut MeteredBody) -> Option<Result<Bytes, Status>> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn bytes_pass_unchanged_however_they_are_cut() {
        let all: Vec<u8> = [0, 10, 100_000, 3, 5_000, 0, 70_000].into_iter().flat_map(message).collect();
        for piece in [1, 2, 3, 7, 4_096, 1 << 20] {
            let room = rooms(100_000);
            let mut body = metered(&all, piece, &room);
            let mut got = Vec::new();
            while let Some(data) = next(&mut body).await {
                got.extend(data.unwrap());
            }
            assert!(got == all, "pieces of {piece}");
            drop(body);
            for room in [room.own, room.all] {
                assert_eq!(room.available_permits(), 100_000_usize.div_ceil(PERMIT_BYTES));
            }
        }
    }

    #[tokio::test]
    async fn large_messages_in_one_frame_have_room_each_by_itself() {
        let room = rooms(200_000);
        let mut body = metered(&[message(150_000), message(150_000)].concat(), 1 << 20, &room);
        let mut lengths = Vec::new();
        while let Some(data) = next(&mut body).await {
            lengths.push(data.unwrap().len());
        }
        let before_its_length = FRAMING_BYTES - 1;
        assert_eq!(lengths, [before_its_length, 1 + 150_000 + before_its_length, 1 + 150_000]);
    }

    #[tokio::test]
    async fn a_large_message_waits_for_room_before_its_length_is_told() {
        let room = rooms(200_000);
        let taken = room.all.clone().try_acquire_many_owned(400).unwrap();
        let all: Vec<u8> = [message(20), message(150_000)].concat();
        let mut body = metered(&all, 1 << 20, &room);
        let first = next(&mut body).await.unwrap().unwrap();
        assert_eq!(first.len(), FRAMING_BYTES + 20 + FRAMING_BYTES - 1, "the last byte of the length is held back");
        let waits = tokio::time::timeout(Duration::from_millis(50), next(&mut body)).await;
        assert!(waits.is_err(), "there is no room for it");
        drop(taken);
        assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 150_001);
        let all = 200_000_usize.div_ceil(PERMIT_BYTES);
        assert_eq!(room.all.available_permits(), all, "what was read whole holds nothing of the others'");
        assert!(room.own.available_permits() < all, "and of its client's until the next is asked for");
        assert!(next(&mut body).await.is_none());
        assert_eq!(room.own.available_permits(), all);
    }

    #[tokio::test]
    async fn a_request_of_too_many_parts_is_cut_off() {
        let parts = [0x0a, 0x00].repeat(REQUEST_PARTS_MAX + 1);
        let mut request = vec![0];
        request.extend(u32::try_from(parts.len()).unwrap().to_be_bytes());
        request.extend(parts);
        let mut body = metered(&request, 10_000, &rooms(1 << 28));
        let mut passed = 0;
        let status = loop {
            match next(&mut body).await.unwrap() {
                Ok(data) => passed += data.len(),
                Err(status) => break status,
            }
        };
        assert!(passed < request.len() && status.message().contains("several requests"), "{passed} {status:?}");
    }

    #[tokio::test]
    async fn parts_find_room_or_the_request_is_refused_while_it_is_read() {
        let parts = [0x0a, 0x00].repeat(100_000);
        let mut request = vec![0];
        request.extend(u32::try_from(parts.len()).unwrap().to_be_bytes());
        request.extend(parts);
        let takes = (100_000 * PART_BYTES).next_multiple_of(PARTS_STEP_BYTES);
        for (bytes, fits) in [(takes, true), (takes - PERMIT_BYTES, false)] {
            let room = rooms(1 << 20);
            let room = Rooms { parts: rooms(bytes).parts, ..room };
            let mut body = metered(&request, 10_000, &room);
            let mut refused = None;
            while let Some(data) = next(&mut body).await {
                refused = data.err();
                if refused.is_some() {
                    break;
                }
            }
            assert_eq!(
                refused.map(|status| status.code()),
                (!fits).then_some(tonic::Code::ResourceExhausted),
                "{bytes}"
            );
            drop(body);
            for room in &room.parts {
                assert_eq!(room.available_permits(), bytes.div_ceil(PERMIT_BYTES));
            }
        }
    }

    #[tokio::test]
    async fn what_claims_to_be_longer_than_is_allowed_is_refused_by_its_claim() {
        let room = rooms(1 << 24);
        let mut body = metered(&message((1 << 20) + 1)[..FRAMING_BYTES], 1 << 20, &room);
        let status = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
