//! `seaway bench opening`: how long an edge broker with many queues takes to be ready again, and how much memory.
//!
//! Each of the queues gets messages through the door; then the node is stopped and started, and killed and started. What counts
//! is from the start of its process until its door says that it is ready.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::{
    BenchError, Figure,
    cluster::{Cluster, Kind},
    process,
};
use crate::api::{
    Mode, PublishBatch, StatusReply, StatusRequest, admin_client::AdminClient, messages_client::MessagesClient,
    publish_batch::Content, publish_reply,
};

/// Queues of each topic.
const QUEUES_OF_TOPIC: usize = 100;
/// Messages for each queue of a topic, by keys that nobody steers: fewer than one topic in three million is left with a queue
/// that got none.
const KEYS_FOR_QUEUE: usize = 20;
/// Topics whose messages are on the way at one time.
const ON_THE_WAY: usize = 8;
/// How long a node may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(300);
/// Between two looks whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const NODE: &str = "a/edge";

/// Measures with about so many queues. `binary` is the `seaway` binary, `parent` a directory for the node's data.
pub async fn run(
    binary: PathBuf,
    parent: &Path,
    queues: usize,
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<Vec<Figure>, BenchError> {
    let topics = queues.div_ceil(QUEUES_OF_TOPIC);
    let mut cluster = Cluster::new(binary, parent)?;
    let settings = format!("[logging]\nlevel = \"warn\"\n\n[[topic]]\npattern = \"#\"\nqueues = {QUEUES_OF_TOPIC}\n");
    cluster.add(NODE, Kind::Edge, &[], &settings)?;
    start(&mut cluster).await?;
    tell(format!("filling {} queues", topics * QUEUES_OF_TOPIC));
    fill(&cluster.member(NODE)?.url(), topics).await?;
    let mut figures = Vec::new();
    let node = cluster.member_mut(NODE)?;
    node.stop();
    tell("opening after a stop".to_owned());
    let stopped = start(&mut cluster).await?;
    let node = cluster.member_mut(NODE)?;
    node.kill();
    tell("opening after a kill".to_owned());
    let killed = start(&mut cluster).await?;
    for (name, opened) in [("opening", stopped), ("opening.killed", killed)] {
        figures.push(Figure::new(format!("{name}.time"), opened.time.as_secs_f64(), "s"));
        figures.push(Figure::new(format!("{name}.memory"), opened.peak_bytes / 1e6, "MB"));
        figures.push(Figure::new(format!("{name}.queues"), opened.queues as f64, "queues"));
    }
    Ok(figures)
}

struct Opened {
    time: Duration,
    peak_bytes: f64,
    queues: usize,
}

/// Starts the node and waits until it is ready.
async fn start(cluster: &mut Cluster) -> Result<Opened, BenchError> {
    let began = Instant::now();
    cluster.start(NODE)?;
    let node = cluster.member_mut(NODE)?;
    let (state, time) = loop {
        if let Ok(status) = status(&node.url()).await
            && status.state == "ready"
        {
            break (status, began.elapsed());
        }
        if !node.is_running() {
            return Err(BenchError(format!("the node ended: {}", node.logged().trim())));
        }
        if began.elapsed() > READY_WITHIN {
            return Err(BenchError(format!("the node is not ready after {} s", READY_WITHIN.as_secs())));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let peak_bytes = node.pid().and_then(process::peak_memory);
    let peak_bytes = peak_bytes.ok_or_else(|| BenchError("the node has ended; see its log".into()))?;
    let queues = if state.topics_left_out { listed(&node.url()).await? } else { count(&state.topics) };
    Ok(Opened { time, peak_bytes, queues })
}

fn count(topics: &[crate::api::TopicStatus]) -> usize {
    topics.iter().flat_map(|topic| &topic.queues).filter(|queue| queue.queue > 0).count()
}

async fn admin(url: &str) -> Result<AdminClient<tonic::transport::Channel>, tonic::Status> {
    let wrong = |e: tonic::transport::Error| tonic::Status::unavailable(e.to_string());
    let channel = Endpoint::from_shared(url.to_owned()).map_err(wrong)?.connect().await.map_err(wrong)?;
    Ok(AdminClient::new(channel).max_decoding_message_size(64 << 20))
}

async fn status(url: &str) -> Result<StatusReply, tonic::Status> {
    Ok(admin(url).await?.status(StatusRequest {}).await?.into_inner())
}

/// Queues that hold messages, by the pages of the list of topics.
async fn listed(url: &str) -> Result<usize, BenchError> {
    let failed = |e: tonic::Status| BenchError(format!("listing topics at {url} failed: {}", e.message()));
    let mut admin = admin(url).await.map_err(failed)?;
    let (mut queues, mut request) = (0, crate::api::ListTopicsRequest::default());
    loop {
        let reply = admin.list_topics(request.clone()).await.map_err(failed)?.into_inner();
        queues += count(&reply.topics);
        if reply.next_page_token.is_empty() {
            return Ok(queues);
        }
        request.page_token = reply.next_page_token;
    }
}

/// Publishes to every queue of so many topics, and waits for all receipts.
async fn fill(url: &str, topics: usize) -> Result<(), BenchError> {
    let lost = |e: &dyn std::error::Error| BenchError(format!("publishing at {url} failed: {e}"));
    let channel = Endpoint::from_shared(url.to_owned()).map_err(|e| lost(&e))?.connect().await.map_err(|e| lost(&e))?;
    let (to_server, requests) = mpsc::channel(ON_THE_WAY);
    let replies = MessagesClient::new(channel).publish_stream(ReceiverStream::new(requests)).await;
    let mut replies = replies.map_err(|e| lost(&e))?.into_inner();
    let messages = QUEUES_OF_TOPIC * KEYS_FOR_QUEUE;
    let sending = tokio::spawn(async move {
        for topic in 0..topics {
            let content = |key: usize| Content {
                path: if key == 0 { format!("bench-{topic}") } else { String::new() },
                key: Some(key.to_le_bytes().to_vec().into()),
                payload: vec![b'x'; 64].into(),
                ..Content::default()
            };
            let messages = (0..messages).map(content).collect();
            let batch = PublishBatch { messages, mode: Mode::Async.into(), ..PublishBatch::default() };
            if to_server.send(batch).await.is_err() {
                return;
            }
        }
    });
    let mut stored = 0;
    while let Some(reply) = replies.message().await.map_err(|e| lost(&e))? {
        if let Some(publish_reply::Result::Failure(failure)) = reply.result {
            return Err(BenchError(failure.text));
        }
        stored += reply.count as usize;
    }
    sending.await.map_err(|e| BenchError(format!("the publisher ended: {e}")))?;
    if stored != topics * messages {
        return Err(BenchError(format!("only {stored} of {} messages were stored", topics * messages)));
    }
    Ok(())
}
