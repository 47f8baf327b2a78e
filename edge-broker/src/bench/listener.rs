//! A subscriber that tells how long messages took from their publisher to it.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use super::{BenchError, load};
use crate::api::{
    SubscribeReply, SubscribeRequest,
    messages_client::MessagesClient,
    subscribe_reply::Kind,
    subscribe_request::{self, Credit, Open, open::From},
};

/// What the server may send ahead.
const CREDIT_MESSAGES: u32 = 65_536;
const CREDIT_BYTES: u64 = 32 << 20;
/// Credit is given back after so much.
const GIVE_BACK_MESSAGES: u32 = CREDIT_MESSAGES / 4;
const GIVE_BACK_BYTES: u64 = CREDIT_BYTES / 4;
/// How long the next message may take.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// A subscription that runs.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Held, or the subscription ends.
    to_server: mpsc::Sender<SubscribeRequest>,
    replies: Streaming<SubscribeReply>,
}

fn lost(url: &str, error: &dyn std::error::Error) -> BenchError {
    BenchError(format!("subscribing at {url} failed: {error}"))
}

impl Listener {
    /// Subscribes to what comes from now on.
    pub(crate) async fn open(url: String, topic: &str) -> Result<Self, BenchError> {
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|e| lost(&url, &e))?.tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|e| lost(&url, &e))?;
        let (to_server, requests) = mpsc::channel(64);
        let open = Open {
            pattern: topic.to_owned(),
            from: Some(From::Latest(true)),
            credit: Some(Credit { messages: CREDIT_MESSAGES, bytes: CREDIT_BYTES }),
            ..Open::default()
        };
        let _ = to_server.send(SubscribeRequest { kind: Some(subscribe_request::Kind::Open(open)) }).await;
        let mut client = MessagesClient::new(channel).max_decoding_message_size(64 << 20);
        let replies = client.subscribe(ReceiverStream::new(requests)).await.map_err(|e| lost(&url, &e))?;
        let mut replies = replies.into_inner();
        match replies.message().await.map_err(|e| lost(&url, &e))?.and_then(|reply| reply.kind) {
            Some(Kind::Opened(_)) => Ok(Self { to_server, replies }),
            other => Err(BenchError(format!("the server at {url} answered a subscription with {other:?}"))),
        }
    }

    /// Takes messages that were stamped since `epoch`, in a task of its own, until `count` says how many there were and all of
    /// them came.
    pub(crate) fn listen(
        self,
        epoch: Instant,
        count: tokio::sync::oneshot::Receiver<u64>,
    ) -> JoinHandle<Result<Histogram<u64>, BenchError>> {
        tokio::spawn(self.take(epoch, count))
    }

    async fn take(
        mut self,
        epoch: Instant,
        mut count: tokio::sync::oneshot::Receiver<u64>,
    ) -> Result<Histogram<u64>, BenchError> {
        let mut times = load::histogram()?;
        let (mut taken, mut all) = (0_u64, None);
        let mut used = Credit::default();
        while all.is_none_or(|all| taken < all) {
            let reply = tokio::select! {
                told = &mut count, if all.is_none() => {
                    all = Some(told.map_err(|_| BenchError("the publisher failed".into()))?);
                    continue;
                }
                reply = tokio::time::timeout(QUIET_MAX, self.replies.message()) => reply,
            };
            let reply = reply.map_err(|_| BenchError(format!("no message came for {} s", QUIET_MAX.as_secs())))?;
            let reply = reply.map_err(|e| BenchError(format!("the subscription broke: {e}")))?;
            let reply = reply.ok_or_else(|| BenchError("the server ended the subscription".into()))?;
            let messages = match reply.kind {
                Some(Kind::Messages(messages)) => messages.messages,
                Some(Kind::Gap(gap)) => return Err(BenchError(format!("messages are missing: {}", gap.text))),
                _ => continue,
            };
            let now = load::stamp(epoch);
            for message in &messages {
                let sent = message.payload.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                times.saturating_record(now.saturating_sub(sent) / 1_000);
                used.bytes += message.payload.len() as u64;
            }
            taken += messages.len() as u64;
            used.messages += u32::try_from(messages.len()).unwrap_or(u32::MAX);
            if used.messages >= GIVE_BACK_MESSAGES || used.bytes >= GIVE_BACK_BYTES {
                let credit = subscribe_request::Kind::Credit(std::mem::take(&mut used));
                let _ = self.to_server.send(SubscribeRequest { kind: Some(credit) }).await;
            }
        }
        Ok(times)
    }
}
