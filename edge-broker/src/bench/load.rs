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
    Acknowledgement, OnDeadline, PublishReply, PublishRequest, SiteList, acknowledgement::Of,
    messages_client::MessagesClient, publish_reply,
};

/// On the way at most, over all streams.
const WINDOW_BYTES: usize = 32 << 20;
const WINDOW_MESSAGES: usize = 65_536;
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
    /// The site that must hold each message.
    pub(crate) holder: String,
    /// Size of a payload, bytes.
    pub(crate) size: usize,
    /// For how long.
    pub(crate) time: Duration,
    /// Messages a second; `None`: as many as the window allows.
    pub(crate) rate: Option<f64>,
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
        let (to_server, requests) = mpsc::channel(1024);
        let (to_receiver, mut times) = mpsc::unbounded_channel::<Instant>();
        let window = (WINDOW_BYTES / self.size.max(1)).clamp(STREAMS, WINDOW_MESSAGES) / STREAMS;
        let window = Arc::new(Semaphore::new(window));
        let mut client = MessagesClient::new(channel);
        let mut replies =
            client.publish_stream(ReceiverStream::new(requests)).await.map_err(|e| lost(&e))?.into_inner();
        let sending = tokio::spawn(self.clone().send(number, to_server, to_receiver, window.clone()));
        let began = Instant::now();
        let mut measured = Measured { messages: 0, elapsed: Duration::ZERO, latency_us: histogram()? };
        while let Some(reply) = replies.message().await.map_err(|e| lost(&e))? {
            window.add_permits(1);
            check(&reply, &self.holder)?;
            measured.messages += 1;
            if let Some(sent) = times.recv().await {
                let us = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                measured.latency_us.saturating_record(us);
            }
        }
        sending.await.map_err(|e| BenchError(format!("a publisher ended: {e}")))?;
        measured.elapsed = began.elapsed();
        Ok(measured)
    }

    async fn send(
        self,
        number: usize,
        to_server: mpsc::Sender<PublishRequest>,
        to_receiver: mpsc::UnboundedSender<Instant>,
        window: Arc<Semaphore>,
    ) {
        let request = PublishRequest {
            path: self.topic.clone(),
            payload: payload(self.size, number as u64),
            acknowledgement: Some(Acknowledgement {
                of: Some(Of::Sites(SiteList { sites: vec![self.holder.clone()] })),
            }),
            deadline_ms: u64::try_from(DEADLINE.as_millis()).unwrap_or(u64::MAX),
            on_deadline: OnDeadline::Fail.into(),
            ..Default::default()
        };
        let began = Instant::now();
        let mut sent = 0u64;
        while began.elapsed() < self.time {
            if let Some(rate) = self.rate {
                let due = began + Duration::from_secs_f64(sent as f64 * STREAMS as f64 / rate);
                tokio::time::sleep_until(due.into()).await;
            }
            // The clock runs before the window is asked: waiting for it is latency, too.
            let now = Instant::now();
            let Ok(permit) = window.acquire().await else { return };
            permit.forget();
            if to_receiver.send(now).is_err() || to_server.send(request.clone()).await.is_err() {
                return;
            }
            sent += 1;
        }
    }
}

fn histogram() -> Result<Histogram<u64>, BenchError> {
    Histogram::new_with_bounds(1, 600_000_000, 3).map_err(|e| BenchError(e.to_string()))
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

fn check(reply: &PublishReply, holder: &str) -> Result<(), BenchError> {
    match &reply.result {
        Some(publish_reply::Result::Receipt(receipt)) if receipt.sites.iter().any(|site| site == holder) => Ok(()),
        Some(publish_reply::Result::Receipt(_)) => Err(BenchError(format!("a receipt does not name {holder}"))),
        Some(publish_reply::Result::Failure(failure)) => Err(BenchError(failure.text.clone())),
        None => Err(BenchError("the server answered without a result".into())),
    }
}
