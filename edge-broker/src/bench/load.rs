//! A publisher that keeps many messages on the way, or keeps to a rate, and measures its receipts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::BenchError;
use crate::api::{
    Acknowledgement, Mode, OnDeadline, PublishBatch, PublishReply, SiteList, acknowledgement::Of,
    messages_client::MessagesClient, publish_batch::Content, publish_reply,
};

/// On the way at most, over all streams.
const WINDOW_BYTES: usize = 32 << 20;
const WINDOW_MESSAGES: usize = 65_536;
/// What gathers in one batch, at most, unless one message alone is larger.
const BATCH_BYTES: usize = 64 << 10;
const BATCH_MESSAGES: usize = 512;
/// Streams, each with a connection of its own.
const STREAMS: usize = 2;
/// How long a receipt is waited for.
const DEADLINE: Duration = Duration::from_secs(120);

/// What to publish.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The door.
    pub(crate) url: String,
    /// The topic.
    pub(crate) topic: String,
    /// The site that must hold each message; `None`: it is published async, and durable where it is published.
    pub(crate) holder: Option<String>,
    /// Size of a payload, bytes.
    pub(crate) size: usize,
    /// For how long.
    pub(crate) time: Duration,
    /// Messages a second; `None`: as many as the window allows.
    pub(crate) rate: Option<f64>,
    /// Where given, each payload begins with the time since then; see [`stamp`].
    pub(crate) epoch: Option<Instant>,
}

/// The time since `epoch` as it stands in payloads: nanoseconds, 8 bytes, little end first.
pub(crate) fn stamp(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Messages with a receipt that names the holder.
    pub(crate) messages: u64,
    /// From the first request to the last receipt.
    pub(crate) elapsed: Duration,
    /// From request to receipt, in microseconds.
    pub(crate) latency_us: Histogram<u64>,
}

impl Load {
    /// Publishes, and waits for every receipt.
    pub(crate) async fn run(&self) -> Result<Measured, BenchError> {
        let began = Instant::now();
        let mut streams = Vec::new();
        for number in 0..STREAMS {
            streams.push(tokio::spawn(self.clone().stream(number)));
        }
        let mut sum = Measured { messages: 0, elapsed: Duration::ZERO, latency_us: histogram()? };
        for stream in streams {
            let measured = stream.await.map_err(|e| BenchError(format!("a publisher ended: {e}")))??;
            sum.messages += measured.messages;
            sum.latency_us.add(&measured.latency_us).map_err(|e| BenchError(e.to_string()))?;
        }
        sum.elapsed = began.elapsed();
        Ok(sum)
    }

    async fn stream(self, number: usize) -> Result<Measured, BenchError> {
        let lost = |e: &dyn std::error::Error| BenchError(format!("publishing at {} failed: {e}", self.url));
        let endpoint = Endpoint::from_shared(self.url.clone()).map_err(|e| lost(&e))?.tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|e| lost(&e))?;
        let (to_server, requests) = mpsc::channel(4);
        let (to_receiver, mut times) = mpsc::unbounded_channel::<(usize, Instant)>();
        let window = (WINDOW_BYTES / self.size.max(1)).clamp(STREAMS, WINDOW_MESSAGES) / STREAMS;
        let window = Arc::new(Semaphore::new(window));
        let mut client = MessagesClient::new(channel);
        let mut replies =
            client.publish_stream(ReceiverStream::new(requests)).await.map_err(|e| lost(&e))?.into_inner();
        let sending = tokio::spawn(self.clone().send(number, to_server, to_receiver, window.clone()));
        let began = Instant::now();
        let mut measured = Measured { messages: 0, elapsed: Duration::ZERO, latency_us: histogram()? };
        let (mut of_batch, mut sent) = (0, began);
        while let Some(reply) = replies.message().await.map_err(|e| lost(&e))? {
            check(&reply, self.holder.as_deref())?;
            let mut count = usize::try_from(reply.count).unwrap_or(usize::MAX);
            window.add_permits(count);
            measured.messages += u64::from(reply.count);
            while count > 0 {
                if of_batch == 0 {
                    let Some(next) = times.recv().await else { break };
                    (of_batch, sent) = next;
                }
                let now = count.min(of_batch);
                let us = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                measured.latency_us.saturating_record_n(us, now as u64);
                (count, of_batch) = (count - now, of_batch - now);
            }
        }
        sending.await.map_err(|e| BenchError(format!("a publisher ended: {e}")))?;
        measured.elapsed = began.elapsed();
        Ok(measured)
    }

    /// Sends what is due: at full rate as much as the window has room for, else what the clock says; what is due
    /// together goes together.
    async fn send(
        self,
        number: usize,
        to_server: mpsc::Sender<PublishBatch>,
        to_receiver: mpsc::UnboundedSender<(usize, Instant)>,
        window: Arc<Semaphore>,
    ) {
        let content = Content { payload: payload(self.size, number as u64), ..Content::default() };
        let (mode, of) = match &self.holder {
            Some(holder) => (Mode::Sync, Of::Sites(SiteList { sites: vec![holder.clone()] })),
            None => (Mode::Async, Of::Local(true)),
        };
        let terms = PublishBatch {
            mode: mode.into(),
            acknowledgement: Some(Acknowledgement { of: Some(of) }),
            deadline_ms: u64::try_from(DEADLINE.as_millis()).unwrap_or(u64::MAX),
            on_deadline: OnDeadline::Fail.into(),
            ..Default::default()
        };
        let most = (BATCH_BYTES / self.size.max(1)).clamp(1, BATCH_MESSAGES);
        let began = Instant::now();
        let mut sent = 0_u64;
        while began.elapsed() < self.time {
            let mut count = most;
            if let Some(rate) = self.rate {
                let rate = rate / STREAMS as f64;
                tokio::time::sleep_until((began + Duration::from_secs_f64(sent as f64 / rate)).into()).await;
                let due = (began.elapsed().as_secs_f64() * rate) as u64 + 1;
                count = usize::try_from(due.saturating_sub(sent)).unwrap_or(most).clamp(1, most);
            }
            // The clock runs before the window is asked: waiting for it is latency, too.
            let now = Instant::now();
            let Ok(permit) = window.acquire().await else { return };
            permit.forget();
            count = 1 + window.forget_permits(count - 1);
            let mut content = content.clone();
            if let Some(epoch) = self.epoch {
                content.payload = stamped(&content.payload, epoch);
            }
            let mut messages = vec![content; count];
            if let Some(first) = messages.first_mut() {
                first.path.clone_from(&self.topic);
            }
            let batch = PublishBatch { messages, ..terms.clone() };
            if to_receiver.send((count, now)).is_err() || to_server.send(batch).await.is_err() {
                return;
            }
            sent += count as u64;
        }
    }
}

pub(crate) fn histogram() -> Result<Histogram<u64>, BenchError> {
    Histogram::new_with_bounds(1, 600_000_000, 3).map_err(|e| BenchError(e.to_string()))
}

fn stamped(payload: &Bytes, epoch: Instant) -> Bytes {
    let rest = payload.get(8..).unwrap_or_default();
    stamp(epoch).to_le_bytes().into_iter().chain(rest.iter().copied()).collect()
}

/// Bytes that do not compress, the same in each run.
fn payload(size: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(size).collect()
}

fn check(reply: &PublishReply, holder: Option<&str>) -> Result<(), BenchError> {
    match (&reply.result, holder) {
        (Some(publish_reply::Result::Receipt(_)), None) => Ok(()),
        (Some(publish_reply::Result::Receipt(receipt)), Some(holder)) => {
            let named = receipt.sites.iter().any(|site| site == holder);
            named.then_some(()).ok_or_else(|| BenchError(format!("a receipt does not name {holder}")))
        }
        (Some(publish_reply::Result::Failure(failure)), _) => Err(BenchError(failure.text.clone())),
        (None, _) => Err(BenchError("the server answered without a result".into())),
    }
}
