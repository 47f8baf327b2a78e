//! The messages on the way: sent in order over a stream, settled by its answers in the same order, and sent again over
//! another stream when one breaks.
//!
//! `pending` holds every message that is not settled, oldest first. On the stream in use the first `sent` of them were
//! sent, and the first `refused` of those were answered "not now" and stay to be sent again; the answer that comes next
//! is for `pending[refused]`. Messages that an earlier stream left unanswered are the first `doubtful`.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use indicatif::ProgressBar;
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{
    RECONNECT_FOR,
    input::Batch,
    request::{Producer, Template, content_bytes},
};
use crate::{
    api::{
        ProducerStamp, PublishBatch, PublishFailure, PublishReply, Receipt, publish_batch::Content, publish_failure,
        publish_reply,
    },
    cli::{
        CliError, Exit,
        args::Mode,
        client::{Servers, messages},
        json::position_text,
        output,
    },
    grpc::messages::SITE_KEY,
};

/// Messages on the way, at most this many and (one reading of the input aside) so many bytes.
const WINDOW_MESSAGES: usize = 65_536;
const WINDOW_BYTES: usize = 32 << 20;
/// Batches between this task and the connection, and what one gathers at most unless one message alone is larger.
const OUTBOX: usize = 4;
const BATCH_MESSAGES: usize = 1024;
const BATCH_BYTES: usize = 256 << 10;
/// Between two attempts to connect.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A stream that lived so long was good, although nothing may have been settled on it: other sites take their time.
const GOOD_STREAM: Duration = Duration::from_secs(5);
/// How long answers are waited for once a message has failed for good.
const SETTLE_FOR: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Messages with a receipt.
    pub(crate) done: u64,
    /// Of these, not acknowledged as asked.
    pub(crate) degraded: u64,
    /// Went on without a site that was removed meanwhile, and those sites.
    pub(crate) without: u64,
    pub(crate) removed: BTreeSet<String>,
    /// Stored without the acknowledgement asked for.
    pub(crate) unacknowledged: u64,
    /// Perhaps stored.
    pub(crate) in_doubt: u64,
    /// One-way messages whose connection broke.
    pub(crate) lost: u64,
    /// Where.
    pub(crate) site: Option<String>,
    /// Sites that hold every message.
    pub(crate) sites: BTreeSet<String>,
    /// Sites that did not acknowledge one in time.
    pub(crate) missing: BTreeSet<String>,
}

struct Pending {
    topic: String,
    content: Content,
    stamp: Option<ProducerStamp>,
}

impl Pending {
    fn bytes(&self) -> usize {
        content_bytes(&self.content) + 256
    }

    /// Whether it can stand behind `before` in one batch.
    fn follows(&self, before: &Pending) -> bool {
        match (&self.stamp, &before.stamp) {
            (Some(ours), Some(theirs)) => {
                let next = theirs.sequence.checked_add(1) == Some(ours.sequence);
                self.topic == before.topic && ours.epoch == theirs.epoch && next
            }
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        }
    }
}

/// Why a stream is of no more use.
enum Pumped {
    /// All input is settled.
    Done,
    /// Broken; another may be tried.
    Broken(CliError),
    /// The server says that it takes nothing at present.
    NotNow(CliError),
    /// The producer must begin a new epoch; nothing is in doubt.
    NewEpoch,
}

/// One stream.
struct Stream {
    to_server: mpsc::Sender<PublishBatch>,
    replies: Streaming<PublishReply>,
    site: Option<String>,
}

/// The publisher.
pub(crate) struct Publisher {
    servers: Servers,
    server: usize,
    template: Template,
    producer: Producer,
    print_receipts: bool,
    progress: ProgressBar,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    sent: usize,
    refused: usize,
    doubtful: usize,
    settled: u64,
    /// Since when nothing is settled although streams open, how many messages were then, and whether that is because the server
    /// refuses them.
    stalled: Option<(Instant, (u64, bool))>,
    pause: Duration,
    /// When the stream in use was opened.
    opened: Instant,
    input_open: bool,
    tally: Tally,
}

impl Publisher {
    pub(crate) fn new(
        servers: Servers,
        template: Template,
        print_receipts: bool,
        progress: ProgressBar,
    ) -> Result<Self, CliError> {
        Ok(Self {
            servers,
            server: 0,
            template,
            producer: Producer::new()?,
            print_receipts,
            progress,
            pending: VecDeque::new(),
            pending_bytes: 0,
            sent: 0,
            refused: 0,
            doubtful: 0,
            settled: 0,
            stalled: None,
            pause: RETRY_MIN,
            opened: Instant::now(),
            input_open: true,
            tally: Tally::default(),
        })
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Publishes all batches.
    pub(crate) async fn run(&mut self, mut batches: mpsc::Receiver<Batch>) -> Result<(), CliError> {
        let mut stream = match self.open_once(false).await {
            // A frozen node takes the connection and answers no call; nothing was sent yet.
            Err(e) if matches!(e.exit(), Exit::Failed | Exit::TimedOut | Exit::Refused) && self.servers.len() > 1 => {
                self.open_once(true).await?
            }
            opened => opened?,
        };
        loop {
            let (broken, answers) = match self.pump(&mut stream, &mut batches).await {
                Ok(Pumped::Done) => return Ok(()),
                Ok(Pumped::NewEpoch) => (None, true),
                Ok(Pumped::NotNow(why)) => (Some(why), true),
                Ok(Pumped::Broken(why)) => (Some(why), false),
                Err(e) => {
                    self.tally.in_doubt = self.unanswered() as u64;
                    return Err(e);
                }
            };
            self.leave_stream();
            if broken.is_none() {
                self.restamp();
            }
            self.tally.in_doubt = self.doubtful as u64;
            stream = self.reopen(broken, answers).await?;
            self.tally.in_doubt = 0;
        }
    }

    /// For how long a server is tried: one that answers that it takes nothing as long as a message may take, one that is away
    /// for a time of its own.
    fn patience(&self, answers: bool) -> Duration {
        self.template.deadline.filter(|_| answers).unwrap_or(RECONNECT_FOR)
    }

    /// What is said when that time is over.
    fn gave_up(&self, broken: Option<&CliError>, answers: bool) -> CliError {
        let text = broken.map_or_else(|| "the server does not answer".into(), ToString::to_string);
        let in_time = !answers || self.template.deadline.is_none();
        CliError::new(if in_time { Exit::Failed } else { Exit::TimedOut }, text)
    }

    fn unanswered(&self) -> usize {
        self.doubtful.max(self.sent.saturating_sub(self.refused))
    }

    /// What was sent on the stream and not answered is in doubt; a one-way message is not sent twice.
    fn leave_stream(&mut self) {
        let unanswered = self.sent - self.refused;
        if self.template.mode == Mode::OneWay {
            for _ in 0..unanswered {
                self.settle(0);
            }
            self.tally.lost += unanswered as u64;
        } else if unanswered > 0 {
            self.doubtful = self.doubtful.max(self.sent);
        }
        (self.sent, self.refused) = (0, 0);
    }

    fn restamp(&mut self) {
        self.producer.begin_epoch();
        for pending in self.pending.iter_mut().filter(|pending| pending.stamp.is_some()) {
            pending.stamp = Some(self.producer.stamp(&pending.topic));
        }
    }

    /// Connects, and opens a stream.
    async fn open_once(&mut self, next: bool) -> Result<Stream, CliError> {
        let first = if next { (self.server + 1) % self.servers.len() } else { self.server };
        let (server, door) = self.servers.connect(first).await?;
        let (to_server, requests) = mpsc::channel(OUTBOX);
        let answer = messages(door).publish_stream(ReceiverStream::new(requests)).await?;
        let site = answer.metadata().get(SITE_KEY).and_then(|site| site.to_str().ok()).map(str::to_string);
        let same = match (&site, &self.tally.site) {
            (Some(now), Some(before)) => now == before,
            _ => server == self.server,
        };
        if !same && self.doubtful > 0 {
            return Err(self.elsewhere(site.as_deref()));
        }
        if !same && self.tally.site.is_some() {
            // Another site knows nothing of this producer, and nothing is in doubt.
            self.restamp();
        }
        self.server = server;
        self.opened = Instant::now();
        if site.is_some() {
            self.tally.site.clone_from(&site);
        }
        Ok(Stream { to_server, replies: answer.into_inner(), site })
    }

    fn elsewhere(&self, site: Option<&str>) -> CliError {
        CliError::failed(format!(
            "the connection broke with {} in doubt, and only another site ({}) answers, where sending again would make \
             new messages; run again once {} is back, or accept repeats",
            output::count(self.doubtful as u64, "message"),
            site.unwrap_or("unknown"),
            self.tally.site.as_deref().unwrap_or("the first"),
        ))
    }

    /// Opens a stream after one broke, trying until nothing was settled for so long as patience lasts; whether the server
    /// `answers` that it takes nothing is known only until it is asked again.
    async fn reopen(&mut self, broken: Option<CliError>, mut answers: bool) -> Result<Stream, CliError> {
        let refuses = answers && broken.is_some();
        // One that refuses may take its time for that.
        let was_good = !refuses && self.opened.elapsed() >= GOOD_STREAM;
        if was_good || self.stalled.is_none_or(|(_, before)| before != (self.settled, refuses)) {
            self.stalled = Some((Instant::now(), (self.settled, refuses)));
            self.pause = if broken.is_some() { RETRY_MIN } else { Duration::ZERO };
            if let Some(why) = &broken {
                let patience = humantime::format_duration(self.patience(answers));
                self.progress.suspend(|| output::note(&format!("seaway: {why}; trying again for {patience}")));
            }
        }
        let mut since = self.stalled.map_or_else(Instant::now, |(since, _)| since);
        // Where one refuses, the next may not.
        let mut next = refuses && self.doubtful == 0;
        loop {
            if Instant::now() >= since + self.patience(answers) {
                return Err(self.gave_up(broken.as_ref(), answers));
            }
            tokio::select! {
                () = tokio::time::sleep(self.pause) => {}
                () = crate::cli::node::interrupted() => return Err(interrupted()),
            }
            self.pause = (self.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
            // It may be away by now.
            let until = since + self.patience(answers).max(RECONNECT_FOR);
            let tried = tokio::time::timeout_at(until, self.open_once(next)).await;
            match tried {
                Ok(Ok(stream)) => {
                    tracing::debug!(site = ?stream.site, "connected again");
                    return Ok(stream);
                }
                // What the next one refuses the last one may take again.
                Ok(Err(e)) if e.exit() == Exit::Refused && !(next && self.servers.len() > 1) => return Err(e),
                Ok(Err(e)) if Instant::now() + RETRY_MIN >= until => return Err(e),
                Err(_) => return Err(self.gave_up(broken.as_ref(), false)),
                // From here on it is away, for which it has time of its own.
                Ok(Err(_)) => {
                    if std::mem::replace(&mut answers, false) {
                        since = Instant::now();
                    }
                }
            }
            next = self.doubtful == 0 && !next;
        }
    }

    /// Sends and settles until the input is settled or the stream is of no more use.
    async fn pump(&mut self, stream: &mut Stream, batches: &mut mpsc::Receiver<Batch>) -> Result<Pumped, CliError> {
        let mut stop: Option<CliError> = None;
        let mut broken: Option<Pumped> = None;
        let mut interrupt = std::pin::pin!(crate::cli::node::interrupted());
        let mut settle_until = None;
        loop {
            let halted = stop.is_some() || broken.is_some();
            if !halted {
                self.send_some(stream);
            }
            if self.sent == self.refused {
                match (stop.take(), broken.take()) {
                    (Some(e), _) => return Err(e),
                    (None, Some(pumped)) => return Ok(pumped),
                    (None, None) if !self.input_open && self.pending.is_empty() => return Ok(Pumped::Done),
                    (None, None) => {}
                }
            }
            if halted && settle_until.is_none() {
                settle_until = Some(Instant::now() + SETTLE_FOR);
            }
            let room =
                !halted && self.input_open && self.pending.len() < WINDOW_MESSAGES && self.pending_bytes < WINDOW_BYTES;
            let more = !halted && self.sent < self.pending.len();
            tokio::select! {
                reply = stream.replies.message() => match reply {
                    Ok(Some(reply)) => match self.answered(reply) {
                        Ok(None) => {}
                        Ok(Some(pumped)) => { broken.get_or_insert(pumped); }
                        Err(e) => { stop.get_or_insert(e); }
                    },
                    // What an answer said before says more than how the stream ended.
                    ended => return match (stop, broken) {
                        (Some(e), _) => Err(e),
                        (None, Some(pumped)) => Ok(pumped),
                        (None, None) => ended.map_or_else(lost, |_| Ok(Pumped::Broken(CliError::failed("the server ended the stream")))),
                    },
                },
                permit = stream.to_server.reserve(), if more => match permit {
                    Ok(permit) => permit.send(self.next_batch()),
                    // The reason comes with the replies.
                    Err(_) => {
                        let status = stream.replies.message().await.err();
                        return status.map_or_else(|| Ok(Pumped::Broken(CliError::failed("the server ended the stream"))), lost);
                    }
                },
                batch = batches.recv(), if room => match batch {
                    Some(Ok((items, bytes))) => {
                        self.progress.inc(bytes);
                        for item in items {
                            if let Err(e) = self.enqueue(item) {
                                stop.get_or_insert(e);
                                break;
                            }
                        }
                    }
                    Some(Err(e)) => { stop.get_or_insert(e); }
                    None => self.input_open = false,
                },
                () = &mut interrupt, if stop.is_none() => stop = Some(interrupted()),
                () = sleep_until(settle_until), if settle_until.is_some() => {
                    return stop.map_or_else(|| Ok(Pumped::Broken(CliError::failed("the server does not answer"))), Err);
                }
            }
        }
    }

    fn send_some(&mut self, stream: &Stream) {
        while self.sent < self.pending.len() {
            // Without a place in the outbox, nothing is gathered: more may come until there is one.
            let Ok(permit) = stream.to_server.try_reserve() else { return };
            permit.send(self.next_batch());
        }
    }

    /// The next messages to be sent, as many as go together.
    fn next_batch(&mut self) -> PublishBatch {
        let mut batch = self.template.batch();
        let mut bytes = 0;
        let mut before: Option<&Pending> = None;
        for pending in self.pending.iter().skip(self.sent) {
            bytes += pending.bytes();
            let apart = before.is_some_and(|before| !pending.follows(before));
            if apart || batch.messages.len() == BATCH_MESSAGES || (bytes > BATCH_BYTES && before.is_some()) {
                break;
            }
            let mut content = pending.content.clone();
            match before {
                None => batch.producer.clone_from(&pending.stamp),
                Some(before) if before.content.path == content.path => content.path.clear(),
                Some(_) => {}
            }
            batch.messages.push(content);
            before = Some(pending);
        }
        self.sent += batch.messages.len();
        batch
    }

    fn enqueue(&mut self, item: super::input::Item) -> Result<(), CliError> {
        let (topic, content) = self.template.content(item)?;
        let stamp = (self.template.mode != Mode::OneWay).then(|| self.producer.stamp(&topic));
        let pending = Pending { topic, content, stamp };
        self.pending_bytes += pending.bytes();
        self.pending.push_back(pending);
        Ok(())
    }

    /// Takes a message off that will not be sent again.
    fn settle(&mut self, at: usize) {
        if let Some(pending) = self.pending.remove(at) {
            self.pending_bytes = self.pending_bytes.saturating_sub(pending.bytes());
            self.sent = self.sent.saturating_sub(1);
            self.doubtful = if at < self.doubtful { self.doubtful - 1 } else { self.doubtful };
            self.settled += 1;
        }
    }

    /// An answer for the oldest messages that have none on this stream.
    fn answered(&mut self, reply: PublishReply) -> Result<Option<Pumped>, CliError> {
        let unfit = |what: &str| Err(CliError::failed(format!("{what}; its version may not fit this command's")));
        let count = usize::try_from(reply.count).unwrap_or(usize::MAX);
        if count == 0 || self.sent.saturating_sub(self.refused) < count {
            return unfit("the server answered what was not asked");
        }
        let mut pumped = None;
        match reply.result {
            Some(publish_reply::Result::Receipt(mut receipt)) => {
                for _ in 0..count {
                    self.receipt(&receipt)?;
                    self.settle(self.refused);
                    if let Some(place) = receipt.id.as_mut().and_then(|id| id.place.as_mut()) {
                        place.offset = place.offset.saturating_add(1);
                    }
                }
            }
            Some(publish_reply::Result::Failure(failure)) => {
                // All of them are answered, also where the first ends the command.
                let mut failed = None;
                for _ in 0..count {
                    match self.failure(&failure) {
                        Ok(now) => pumped = pumped.or(now),
                        Err(e) => failed = failed.or(Some(e)),
                    }
                }
                if let Some(e) = failed {
                    return Err(e);
                }
            }
            None => return unfit("the server answered without a result"),
        }
        Ok(pumped)
    }

    fn receipt(&mut self, receipt: &Receipt) -> Result<(), CliError> {
        let first = self.tally.done == 0;
        self.tally.done += 1;
        let sites: BTreeSet<String> = receipt.sites.iter().cloned().collect();
        if first {
            self.tally.sites = sites;
        } else {
            self.tally.sites.retain(|site| sites.contains(site));
        }
        if let Some(id) = &receipt.id {
            self.tally.site.get_or_insert_with(|| id.origin.clone());
        }
        if receipt.degraded {
            self.tally.degraded += 1;
            self.tally.missing.extend(receipt.missing.iter().cloned());
        }
        if !receipt.removed.is_empty() {
            self.tally.without += 1;
            self.tally.removed.extend(receipt.removed.iter().cloned());
        }
        if self.tally.done.is_multiple_of(4096) {
            self.progress.set_message(format!("{} stored", self.tally.done));
        }
        if !self.print_receipts {
            return Ok(());
        }
        let line = ReceiptLine {
            number: self.settled,
            position: receipt.id.as_ref().map(position_text),
            sites: &receipt.sites,
            degraded: receipt.degraded,
            missing: &receipt.missing,
            removed: &receipt.removed,
            repeated: receipt.repeated,
        };
        output::line(&serde_json::to_string(&line).map_err(|e| CliError::failed(e.to_string()))?)
    }

    fn failure(&mut self, failure: &PublishFailure) -> Result<Option<Pumped>, CliError> {
        use publish_failure::Code as F;
        let number = self.settled + self.refused as u64 + 1;
        let text = format!("message {number}: {}", failure.text);
        let error = |exit| Err(CliError::new(exit, text.clone()));
        match failure.code() {
            // Not stored, and another time it may be. What follows it in its topic is out of sequence until then.
            F::Unavailable => {
                self.refused += 1;
                Ok(Some(Pumped::NotNow(CliError::failed(text))))
            }
            F::ProducerSequence if self.refused > 0 => {
                self.refused += 1;
                Ok(None)
            }
            F::ProducerUnknown if self.doubtful == 0 => {
                self.refused += 1;
                Ok(Some(Pumped::NewEpoch))
            }
            // (Perhaps) stored, and sent again under the same number it is stored once: only there.
            F::Stopping | F::InDoubt => {
                self.refused += 1;
                self.doubtful = self.doubtful.max(self.refused);
                Ok(Some(Pumped::Broken(CliError::failed(text))))
            }
            F::Deadline => {
                self.settle(self.refused);
                self.tally.unacknowledged += 1;
                error(Exit::TimedOut)
            }
            code => {
                self.settle(self.refused);
                error(match code {
                    F::NotAllowed | F::Limited | F::Invalid | F::NobodyToAcknowledge | F::NoTopic => Exit::Refused,
                    _ => Exit::Failed,
                })
            }
        }
    }
}

/// A receipt as a line of JSON; `number` counts the messages of the command from 0.
#[derive(Serialize)]
struct ReceiptLine<'a> {
    number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    sites: &'a [String],
    degraded: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    missing: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    removed: &'a [String],
    repeated: bool,
}

fn interrupted() -> CliError {
    CliError::failed("interrupted")
}

fn lost(status: Status) -> Result<Pumped, CliError> {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::ResourceExhausted | Code::Unimplemented => {
            Err(status.into())
        }
        _ => Ok(Pumped::Broken(status.into())),
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
