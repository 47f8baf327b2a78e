//! One link's task: moves bytes between a QUIC connection and the link's driver.
//!
//! Everything the link waits for is polled in one place, round by round: commands from the mailbox,
//! bytes and one-way messages received, finished reads, the session's timer, and each channel's
//! readiness to take more. Nothing here waits for one thing while another could move, so a lane that is
//! full holds up neither the other lane nor control.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use quinn::{Connection, ConnectionError};
use seaway_federation_proto::{
    session::{Channel, CloseReason, FetchNumber, PeerInfo, Transmit},
    wire::link::RefuseReason,
};
use tokio::{task::JoinHandle, time::Sleep};
use tokio_util::sync::CancellationToken;

use super::{
    channels::{CHANNELS, ChannelError, Datagrams, OneWaySender, Readers, Received, Writers},
    mailbox::{LinkMailbox, MailboxReceiver},
    reason::{CLOSE_GOODBYE, CLOSE_NAME_TAKEN, CLOSE_PAUSED, CLOSE_REFUSED, describe},
    status::LinkBoard,
};
use crate::{
    link::{
        command::LinkCommand,
        driver::{LinkCounters, LinkDriver, ReadJob},
    },
    log::contract::{CommitLog, Read, ReadError},
};

/// Rounds of polling before other tasks get their turn.
const ROUNDS_MAX: usize = 16;
/// Things of one kind handled in a round.
const STEPS_MAX: usize = 128;
/// Reads of one link that run at once on the blocking pool.
const READS_MAX: usize = 4;
/// How long the last frames may take to reach the peer before the connection is closed all the same.
const FAREWELL: Duration = Duration::from_secs(1);
/// Interval of the samples behind rates and loss.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// A read's number and outcome.
pub type ReadDone = (FetchNumber, Result<Read, ReadError>);
/// A read to be run where it may block.
pub type BoxedRead = Box<dyn FnOnce() -> ReadDone + Send>;

/// What a link's task drives: a [`LinkDriver`] with its log, or something smaller in tests.
pub trait Drive: Send {
    /// See [`LinkDriver::handle_bytes`].
    fn handle_bytes(&mut self, now: Duration, channel: Channel, bytes: Bytes);
    /// See [`LinkDriver::handle_one_way`].
    fn handle_one_way(&mut self, now: Duration, bytes: Bytes);
    /// See [`LinkDriver::handle_command`].
    fn handle_command(&mut self, now: Duration, command: LinkCommand);
    /// See [`LinkDriver::handle_read_done`].
    fn handle_read_done(&mut self, now: Duration, done: ReadDone);
    /// See [`LinkDriver::handle_timeout`].
    fn handle_timeout(&mut self, now: Duration);
    /// See [`LinkDriver::handle_lost`].
    fn handle_lost(&mut self, now: Duration, why: String);
    /// See [`LinkDriver::poll_transmit`].
    fn poll_transmit(&mut self, now: Duration, channel: Channel) -> Option<Transmit>;
    /// See [`LinkDriver::poll_one_way`].
    fn poll_one_way(&mut self) -> Option<Bytes>;
    /// See [`LinkDriver::poll_read_job`].
    fn poll_read(&mut self) -> Option<BoxedRead>;
    /// See [`LinkDriver::poll_timeout`].
    fn poll_timeout(&self) -> Option<Duration>;
    /// See [`LinkDriver::closed`].
    fn closed(&self) -> Option<&CloseReason>;
    /// See [`LinkDriver::peer`].
    fn peer(&self) -> Option<&PeerInfo>;
    /// See [`LinkDriver::counters`].
    fn counters(&self) -> Arc<LinkCounters>;
}

/// A [`LinkDriver`] and the log that its reads go to.
#[derive(Debug)]
pub struct LoggedDriver {
    driver: LinkDriver,
    log: Arc<dyn CommitLog>,
}

impl LoggedDriver {
    /// Joins the two.
    pub fn new(driver: LinkDriver, log: Arc<dyn CommitLog>) -> Self {
        Self { driver, log }
    }
}

fn boxed_read(job: ReadJob, log: Arc<dyn CommitLog>) -> BoxedRead {
    Box::new(move || (job.number, job.run(log.as_ref())))
}

impl Drive for LoggedDriver {
    fn handle_bytes(&mut self, now: Duration, channel: Channel, bytes: Bytes) {
        self.driver.handle_bytes(now, channel, bytes);
    }
    fn handle_one_way(&mut self, now: Duration, bytes: Bytes) {
        self.driver.handle_one_way(now, bytes);
    }
    fn handle_command(&mut self, now: Duration, command: LinkCommand) {
        self.driver.handle_command(now, command);
    }
    fn handle_read_done(&mut self, now: Duration, (number, outcome): ReadDone) {
        self.driver.handle_read_done(now, number, outcome);
    }
    fn handle_timeout(&mut self, now: Duration) {
        self.driver.handle_timeout(now);
    }
    fn handle_lost(&mut self, now: Duration, why: String) {
        self.driver.handle_lost(now, why);
    }
    fn poll_transmit(&mut self, now: Duration, channel: Channel) -> Option<Transmit> {
        self.driver.poll_transmit(now, channel)
    }
    fn poll_one_way(&mut self) -> Option<Bytes> {
        self.driver.poll_one_way()
    }
    fn poll_read(&mut self) -> Option<BoxedRead> {
        self.driver.poll_read_job().map(|job| boxed_read(job, self.log.clone()))
    }
    fn poll_timeout(&self) -> Option<Duration> {
        self.driver.poll_timeout()
    }
    fn closed(&self) -> Option<&CloseReason> {
        self.driver.closed()
    }
    fn peer(&self) -> Option<&PeerInfo> {
        self.driver.peer()
    }
    fn counters(&self) -> Arc<LinkCounters> {
        self.driver.counters()
    }
}

/// What a link's task needs beside its connection.
pub struct LinkParts {
    /// The driver.
    pub drive: Box<dyn Drive>,
    /// Commands for it.
    pub mailbox: (LinkMailbox, MailboxReceiver),
    /// The moment that the driver's time is counted from.
    pub epoch: Instant,
    /// Where to say how it goes.
    pub board: Arc<LinkBoard>,
    /// Says when to close the link in peace.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for LinkParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkParts").finish_non_exhaustive()
    }
}

/// How a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEnd {
    /// In one sentence.
    pub reason: String,
    /// How long its session was up, if it ever was.
    pub lived: Option<Duration>,
    /// The peer refused it: it is linked with another process of this node's name.
    pub name_taken: bool,
    /// It was closed since somebody paused it at the peer.
    pub paused: bool,
}

impl LinkEnd {
    /// Of a link that never came up.
    pub(super) fn before_it_began(reason: String) -> Self {
        Self { reason, lived: None, name_taken: false, paused: false }
    }
}

struct LinkTask {
    connection: Connection,
    drive: Box<dyn Drive>,
    mailbox: MailboxReceiver,
    epoch: Instant,
    board: Arc<LinkBoard>,
    /// This connection's number on the board.
    number: u64,
    writers: Writers,
    readers: Readers,
    one_way: OneWaySender,
    datagrams: Datagrams,
    reads: FuturesUnordered<JoinHandle<ReadDone>>,
    waiting_reads: VecDeque<BoxedRead>,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Duration>,
    sampler: tokio::time::Interval,
    up_since: Option<Instant>,
}

/// Runs a link on a connection until it ends; the connection is closed then.
pub async fn run(connection: Connection, parts: LinkParts) -> LinkEnd {
    let LinkParts { drive, mailbox: (sender, mailbox), epoch, board, stop } = parts;
    let number = board.connected(connection.clone(), epoch, drive.counters(), sender);
    let mut sampler = tokio::time::interval(SAMPLE_INTERVAL);
    sampler.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut task = LinkTask {
        drive,
        mailbox,
        epoch,
        board: board.clone(),
        number,
        writers: Writers::new(connection.clone()),
        readers: Readers::new(connection.clone()),
        one_way: OneWaySender::new(connection.clone()),
        datagrams: Datagrams::new(connection.clone()),
        reads: FuturesUnordered::new(),
        waiting_reads: VecDeque::new(),
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        timer_at: None,
        sampler,
        up_since: None,
        connection,
    };
    let mut stopping = Box::pin(stop.cancelled_owned());
    let mut stopped = false;
    let lost = poll_fn(|cx| {
        if !stopped && stopping.as_mut().poll(cx).is_ready() {
            stopped = true;
            let goodbye = CloseReason::Goodbye("the node is stopping".to_owned());
            task.drive.handle_command(task.epoch.elapsed(), LinkCommand::Close(goodbye));
        }
        task.poll(cx)
    })
    .await;
    let lived = task.up_since.map(|since| since.elapsed());
    // Before this side closes it too.
    let closed = task.connection.close_reason();
    let reason = task.end(lost).await;
    let closed_with = |code| matches!(&closed, Some(ConnectionError::ApplicationClosed(c)) if c.error_code == code);
    let (name_taken, paused) = (closed_with(CLOSE_NAME_TAKEN), closed_with(CLOSE_PAUSED));
    board.down(number, reason.clone(), paused);
    LinkEnd { reason, lived, name_taken, paused }
}

impl LinkTask {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Ready when the session is over (`None`) or the connection is of no more use.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<ChannelError>> {
        for _ in 0..ROUNDS_MAX {
            let mut moved = self.poll_commands(cx);
            match self.poll_received(cx).and_then(|received| Ok(self.poll_sending(cx)? || received)) {
                Ok(more) => moved |= more,
                Err(error) => return Poll::Ready(Some(error)),
            }
            moved |= self.poll_reads(cx);
            moved |= self.poll_time(cx);
            if self.drive.closed().is_some() {
                return Poll::Ready(None);
            }
            self.notice_up();
            if !moved {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn notice_up(&mut self) {
        if self.up_since.is_none()
            && let Some(peer) = self.drive.peer()
        {
            self.up_since = Some(Instant::now());
            self.board.live(self.number, peer.kind);
            tracing::info!(peer = %peer.node, address = %self.connection.remote_address(), software = %peer.software, "link is up");
        }
    }

    fn poll_commands(&mut self, cx: &mut Context<'_>) -> bool {
        for step in 0..STEPS_MAX {
            let now = self.now();
            match self.mailbox.poll(cx) {
                Poll::Ready(Ok(command)) => self.drive.handle_command(now, command),
                Poll::Ready(Err(overflowed)) => {
                    let reason =
                        CloseReason::Refused { reason: RefuseReason::Overloaded, text: overflowed.to_string() };
                    self.drive.handle_command(now, LinkCommand::Close(reason));
                    return true;
                }
                Poll::Pending => return step > 0,
            }
        }
        true
    }

    fn poll_received(&mut self, cx: &mut Context<'_>) -> Result<bool, ChannelError> {
        let mut moved = false;
        for _ in 0..STEPS_MAX {
            match self.datagrams.poll(cx) {
                Poll::Ready(Ok(bytes)) => self.drive.handle_one_way(self.now(), bytes),
                // The streams below are read to their end first: the peer's last words may be in them.
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
            moved = true;
        }
        for _ in 0..STEPS_MAX {
            match self.readers.poll(cx)? {
                Poll::Ready(Received::Bytes(channel, bytes)) => self.drive.handle_bytes(self.now(), channel, bytes),
                Poll::Ready(Received::OneWay(bytes)) => self.drive.handle_one_way(self.now(), bytes),
                Poll::Ready(Received::OneWayDropped) => self.one_way.count_dropped(),
                Poll::Pending => return Ok(moved),
            }
            moved = true;
        }
        Ok(true)
    }

    fn poll_sending(&mut self, cx: &mut Context<'_>) -> Result<bool, ChannelError> {
        let mut moved = false;
        self.writers.poll_acknowledged(cx);
        for channel in CHANNELS {
            for _ in 0..STEPS_MAX {
                let Poll::Ready(ready) = self.writers.poll_ready(cx, channel) else { break };
                ready?;
                let Some(transmit) = self.drive.poll_transmit(self.epoch.elapsed(), channel) else { break };
                self.writers.push(channel, transmit);
                moved = true;
            }
        }
        for _ in 0..STEPS_MAX {
            let Some(message) = self.drive.poll_one_way() else { break };
            self.one_way.send(message);
            moved = true;
        }
        self.one_way.poll(cx);
        Ok(moved)
    }

    fn poll_reads(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(done)) = self.reads.poll_next_unpin(cx) {
            match done {
                Ok(done) => self.drive.handle_read_done(self.epoch.elapsed(), done),
                // Only while the runtime shuts down, or if the read panicked: the link cannot go on.
                Err(error) => {
                    self.drive.handle_lost(self.epoch.elapsed(), format!("a read of the log failed: {error}"))
                }
            }
            moved = true;
        }
        while let Some(read) = self.drive.poll_read() {
            self.waiting_reads.push_back(read);
        }
        while self.reads.len() < READS_MAX {
            let Some(read) = self.waiting_reads.pop_front() else { break };
            self.reads.push(tokio::task::spawn_blocking(read));
            moved = true;
        }
        moved
    }

    fn poll_time(&mut self, cx: &mut Context<'_>) -> bool {
        while self.sampler.poll_tick(cx).is_ready() {
            self.one_way.look();
            self.datagrams.look();
            let dropped = self.one_way.dropped().saturating_add(self.datagrams.dropped());
            self.board.sample(self.number, dropped, self.writers.buffered());
        }
        let due = self.drive.poll_timeout();
        let now = self.now();
        if due.is_some_and(|due| due <= now) {
            self.drive.handle_timeout(now);
            return true;
        }
        let Some(due) = due else { return false };
        if self.timer_at != Some(due) {
            self.timer_at = Some(due);
            self.timer.as_mut().reset((self.epoch + due).into());
        }
        // Fired: what is due is handled in the next round.
        self.timer.as_mut().poll(cx).is_ready()
    }

    /// Sends what is left to be said, closes the connection, tells the driver; why it ended.
    async fn end(mut self, lost: Option<ChannelError>) -> String {
        let remote = self.connection.remote_address();
        if let Some(error) = lost {
            let why = match error {
                ChannelError::Connection(error) => describe(&error, remote),
                broken @ ChannelError::Protocol(_) => broken.to_string(),
            };
            // The peer reads it as our refusal.
            self.connection.close(CLOSE_REFUSED, why.as_bytes());
            if self.drive.closed().is_none() {
                self.drive.handle_lost(self.now(), why.clone());
            }
            return why;
        }
        let (reason, code, text) = match self.drive.closed() {
            Some(reason @ CloseReason::Goodbye(text)) => (reason.to_string(), CLOSE_GOODBYE, text.clone()),
            Some(reason @ CloseReason::Refused { text, .. }) => (reason.to_string(), CLOSE_REFUSED, text.clone()),
            Some(reason) => (reason.to_string(), CLOSE_GOODBYE, reason.to_string()),
            None => (String::new(), CLOSE_GOODBYE, String::new()),
        };
        if !matches!(self.drive.closed(), Some(CloseReason::Dead(_))) {
            // Lost, or too slow to hear it: then the text of the closing says it.
            let _ = tokio::time::timeout(FAREWELL, self.say_farewell()).await;
        }
        self.connection.close(code, text.as_bytes());
        reason
    }

    /// Writes the control channel's last frames and waits until the peer has them.
    async fn say_farewell(&mut self) -> Result<(), ChannelError> {
        poll_fn(|cx| {
            loop {
                match self.writers.poll_ready(cx, Channel::Control) {
                    Poll::Ready(Ok(())) => {}
                    other => return other,
                }
                match self.drive.poll_transmit(self.epoch.elapsed(), Channel::Control) {
                    Some(transmit) => self.writers.push(Channel::Control, transmit),
                    None => return Poll::Ready(Ok(())),
                }
            }
        })
        .await?;
        self.writers.finish(Channel::Control).await;
        Ok(())
    }
}
