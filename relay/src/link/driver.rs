//! One link's driver: the session of the link, joined to the commit log and the hub.
//!
//! Synchronous and without threads: the shell brings bytes, time, posted commands and finished reads by `handle_*`,
//! and takes what is to be written and read by `poll_*`. After any `handle_*` the shell polls everything again.
//! See [`super`] for the flow of data.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use seaway_federation_proto::{
    ids::{LogName, Place},
    replication::LinkId,
    session::{Channel, CloseReason, FetchNumber, PeerInfo, SessionConfig, Transmit},
};

use super::{
    command::{LinkCommand, Mailbox},
    port::HubPort,
};
use crate::log::contract::{CommitLog, Line, Read, ReadError};

/// A read that may wait on the disk: to be run by the shell where that does no harm, and answered
/// with [`LinkDriver::handle_read_done`]. At most one is out a served fetch.
#[derive(Debug, Clone)]
pub struct ReadJob {
    /// The peer's fetch.
    pub number: FetchNumber,
    /// The log.
    pub log: LogName,
    /// From where.
    pub from: Place,
    /// How it goes on.
    pub line: Line,
    /// About how many bytes.
    pub bytes_max: usize,
}

impl ReadJob {
    /// Reads; may wait on the disk.
    ///
    /// # Errors
    /// As [`CommitLog::read`].
    pub fn run(&self, log: &dyn CommitLog) -> Result<Read, ReadError> {
        log.read(&self.log, self.from, self.line, self.bytes_max)
    }
}

/// What a link has done so far, for status; shared, so that it can be read while the driver runs.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// Bytes of all channels and one-way messages, received.
    pub bytes_in: AtomicU64,
    /// The same, handed to the transport.
    pub bytes_out: AtomicU64,
    /// Batches received for fetches of ours.
    pub batches_in: AtomicU64,
    /// Batches handed to the transport.
    pub batches_out: AtomicU64,
    /// Batches that our copy held already.
    pub repeats: AtomicU64,
    /// One-way messages received.
    pub one_way_in: AtomicU64,
    /// One-way messages handed to the transport.
    pub one_way_out: AtomicU64,
    /// One-way messages dropped here: the queue was full, or they could not be read.
    pub one_way_dropped: AtomicU64,
    /// Newest round trip of a probe through the whole session, microseconds; 0 before the first.
    pub round_trip_us: AtomicU64,
}

impl LinkCounters {
    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct LinkDriver {}

#[allow(unused_variables, clippy::todo, reason = "signatures first")]
impl LinkDriver {
    /// A driver whose session begins with its hello. `mailbox` is this link's own: what the commit log
    /// tells later comes through it.
    pub fn new(
        link: LinkId,
        config: SessionConfig,
        log: Arc<dyn CommitLog>,
        hub: Arc<dyn HubPort>,
        mailbox: Arc<dyn Mailbox>,
        now: Duration,
    ) -> Self {
        todo!()
    }

    /// Bytes of a channel, in order, cut anywhere.
    pub fn handle_bytes(&mut self, now: Duration, channel: Channel, bytes: Bytes) {
        todo!()
    }

    /// A datagram, or the whole content of a one-way stream.
    pub fn handle_one_way(&mut self, now: Duration, bytes: Bytes) {
        todo!()
    }

    /// A command from the mailbox.
    pub fn handle_command(&mut self, now: Duration, command: LinkCommand) {
        todo!()
    }

    /// The answer to a [`ReadJob`].
    pub fn handle_read_done(&mut self, now: Duration, number: FetchNumber, outcome: Result<Read, ReadError>) {
        todo!()
    }

    /// Time passed; call at or after [`LinkDriver::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Duration) {
        todo!()
    }

    /// The transport is gone: the session is over at once and nothing more is sent.
    pub fn handle_lost(&mut self, now: Duration, why: String) {
        todo!()
    }

    /// The next frames of a channel; call when the channel can take more.
    pub fn poll_transmit(&mut self, now: Duration, channel: Channel) -> Option<Transmit> {
        todo!()
    }

    /// The next one-way message to be sent: as a datagram if it fits one, else on a short stream of its own.
    pub fn poll_one_way(&mut self) -> Option<Bytes> {
        todo!()
    }

    /// The next read that the shell has to run.
    pub fn poll_read_job(&mut self) -> Option<ReadJob> {
        todo!()
    }

    /// When to call [`LinkDriver::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Duration> {
        todo!()
    }

    /// Set once the session is over: send what [`LinkDriver::poll_transmit`] still gives for the control channel, then
    /// close the transport.
    pub fn closed(&self) -> Option<&CloseReason> {
        todo!()
    }

    /// The peer, once its hello was accepted.
    pub fn peer(&self) -> Option<&PeerInfo> {
        todo!()
    }

    /// What the link has done so far.
    pub fn counters(&self) -> Arc<LinkCounters> {
        todo!()
    }
}
