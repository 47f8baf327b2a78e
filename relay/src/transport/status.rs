//! What is known of each link, for `seaway status` and `seaway link ls`.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use seaway_federation_proto::{
    ids::NodeName,
    limits::MESSAGE_BYTES_CEILING,
    session::{NodeKind, vitals::Standing},
};

use super::{
    bounds::{
        CHANNEL_UNACKED_BYTES_MAX, CONNECTION_WINDOW_BYTES, DATAGRAM_RECEIVE_BYTES_MAX, DATAGRAM_SEND_BYTES_MAX,
        MAILBOX_BYTES_MAX, ONE_WAY_STREAM_BYTES_MAX, STREAM_BYTES_MAX,
    },
    channels::CHANNELS,
    mailbox::LinkMailbox,
};
use crate::{
    link::driver::LinkCounters,
    node::{LinkStatus, queues::QueueView},
};

/// Rates and loss are taken over about so long.
const WINDOW: Duration = Duration::from_secs(10);

/// State of a link that somebody paused, here or there.
pub(super) const PAUSED: &str = "paused";

/// A moment's counters.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    bytes_in: u64,
    bytes_out: u64,
    sent_packets: u64,
    lost_packets: u64,
}

/// A connection that carries a link now.
#[derive(Debug)]
struct Active {
    connection: quinn::Connection,
    /// What the driver's time is counted from.
    epoch: Instant,
    counters: Arc<LinkCounters>,
    mailbox: LinkMailbox,
    up_since_us: Option<u64>,
    kind: Option<NodeKind>,
    samples: VecDeque<Sample>,
    one_way_dropped: u64,
    /// Bytes written and not yet acknowledged by the peer's QUIC, as of the last sample.
    unacknowledged: u64,
}

#[derive(Debug)]
struct State {
    peer: Option<NodeName>,
    address: String,
    state: &'static str,
    /// Since when.
    since: Instant,
    reason: String,
    connections: u64,
    active: Option<Active>,
    /// Of connections that are over.
    one_way_dropped: u64,
}

/// One link's state, over all its connections; shared between its task and status.
#[derive(Debug)]
pub struct LinkBoard {
    dials: bool,
    state: Mutex<State>,
}

fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

impl State {
    /// Goes over into a state, if it is another one.
    fn turn(&mut self, to: &'static str) {
        if std::mem::replace(&mut self.state, to) != to {
            self.since = Instant::now();
        }
    }
}

impl LinkBoard {
    /// A link that is not up yet.
    pub fn new(peer: Option<NodeName>, dials: bool, address: String) -> Self {
        let state = State {
            peer,
            address,
            state: "connecting",
            since: Instant::now(),
            reason: String::new(),
            connections: 0,
            active: None,
            one_way_dropped: 0,
        };
        Self { dials, state: Mutex::new(state) }
    }

    /// An attempt begins. A link that is known to be down stays so, with the reason, until it is up.
    pub fn connecting(&self, address: String) {
        self.state.lock().address = address;
    }

    /// A connection stands; the session's hello is still to come. Gives the connection's number.
    pub fn connected(
        &self,
        connection: quinn::Connection,
        epoch: Instant,
        counters: Arc<LinkCounters>,
        mailbox: LinkMailbox,
    ) -> u64 {
        let mut state = self.state.lock();
        if let Some(replaced) = state.active.take() {
            state.one_way_dropped += dropped(&replaced);
        }
        state.connections += 1;
        state.turn("connecting");
        let remote = connection.remote_address();
        state.address = SocketAddr::new(remote.ip().to_canonical(), remote.port()).to_string();
        "waiting for the peer's hello".clone_into(&mut state.reason);
        state.active = Some(Active {
            connection,
            epoch,
            counters,
            mailbox,
            up_since_us: None,
            kind: None,
            samples: VecDeque::new(),
            one_way_dropped: 0,
            unacknowledged: 0,
        });
        state.connections
    }

    /// The session is up.
    pub fn live(&self, number: u64, kind: NodeKind) {
        let mut state = self.state.lock();
        if state.connections != number {
            return;
        }
        state.turn("live");
        state.reason.clear();
        if let Some(active) = state.active.as_mut() {
            active.kind = Some(kind);
            active.up_since_us = Some(wall_us());
        }
    }

    /// An attempt failed.
    pub fn failed(&self, reason: String, paused: bool) {
        let mut state = self.state.lock();
        state.turn(if paused { PAUSED } else { "down" });
        state.reason = reason;
    }

    /// A connection is over. A newer one may have taken its place; then nothing changes. `paused`: by the peer.
    pub fn down(&self, number: u64, reason: String, paused: bool) {
        let mut state = self.state.lock();
        if state.connections != number {
            return;
        }
        state.turn(if paused { PAUSED } else { "down" });
        state.reason = reason;
        if let Some(active) = state.active.take() {
            state.one_way_dropped += dropped(&active);
        }
    }

    /// Once a second, from the link's task; `one_way_dropped`: by the transport, on this connection.
    pub fn sample(&self, number: u64, one_way_dropped: u64, unacknowledged: u64) {
        let mut state = self.state.lock();
        if state.connections != number {
            return;
        }
        let Some(active) = state.active.as_mut() else { return };
        active.one_way_dropped = one_way_dropped;
        active.unacknowledged = unacknowledged;
        let now = sample(active);
        active.samples.push_back(now);
        while active.samples.front().is_some_and(|first| now.at.duration_since(first.at) > WINDOW) {
            active.samples.pop_front();
        }
    }

    /// What the link holds while it is up.
    pub fn queues(&self) -> Vec<QueueView> {
        let state = self.state.lock();
        let Some(active) = &state.active else { return Vec::new() };
        let of = state.peer.as_ref().map_or_else(|| state.address.clone(), ToString::to_string);
        let mailbox = QueueView::bytes(
            "link-mailbox",
            active.mailbox.bytes(),
            MAILBOX_BYTES_MAX,
            "one-way messages are dropped from its half on; the link is closed",
        );
        // A stream counts until all of it is acknowledged.
        let unacknowledged_max =
            CHANNELS.len() as u64 * (CHANNEL_UNACKED_BYTES_MAX + STREAM_BYTES_MAX) + MESSAGE_BYTES_CEILING as u64;
        let rows = [
            mailbox,
            QueueView::bytes("link-sent", active.unacknowledged, unacknowledged_max, "nothing more is given to QUIC"),
            QueueView::unseen("link-quic-received", CONNECTION_WINDOW_BYTES.into(), "QUIC lets the peer send no more"),
            QueueView::unseen(
                "link-datagrams",
                (DATAGRAM_SEND_BYTES_MAX + DATAGRAM_RECEIVE_BYTES_MAX) as u64,
                "one-way messages are dropped",
            ),
            QueueView::unseen("link-one-way-streams", 2 * ONE_WAY_STREAM_BYTES_MAX as u64, "dropped and counted"),
        ];
        rows.into_iter().chain(active.counters.queues()).map(|row| row.of(&of)).collect()
    }

    /// For people and machines.
    pub fn status(&self) -> LinkStatus {
        let state = self.state.lock();
        let mut status = LinkStatus {
            peer: state.peer.clone(),
            peer_kind: None,
            dials: self.dials,
            address: state.address.clone(),
            state: state.state,
            reason: state.reason.clone(),
            lasting: state.since.elapsed(),
            heard: None,
            rtt: None,
            loss: 0.0,
            rate_in: 0.0,
            rate_out: 0.0,
            bytes_in: 0,
            bytes_out: 0,
            batches_in: 0,
            batches_out: 0,
            credit: None,
            up_since_us: None,
            reconnects: state.connections.saturating_sub(1),
            one_way_dropped: state.one_way_dropped,
            send_limited: 0,
            receive_limited: 0,
            one_way_limited: 0,
        };
        if let Some(active) = &state.active {
            fill(&mut status, active);
            let now = active.epoch.elapsed();
            status.heard = active.counters.silence(now);
            status.credit = active.counters.credit();
            if state.state == "live"
                && let Some(judged) = active.counters.judge(now)
            {
                status.state = match judged.standing {
                    Standing::Live => "live",
                    Standing::CatchingUp => "catching-up",
                    Standing::Stalled => "stalled",
                };
                status.reason = judged.reason;
                status.lasting = judged.since.map_or(status.lasting, |since| now.saturating_sub(since));
            }
        }
        status
    }
}

fn dropped(active: &Active) -> u64 {
    let driver = active.counters.one_way_dropped.load(Ordering::Relaxed);
    active.one_way_dropped + active.mailbox.one_way_dropped() + driver
}

fn sample(active: &Active) -> Sample {
    let path = active.connection.stats().path;
    Sample {
        at: Instant::now(),
        bytes_in: active.counters.bytes_in.load(Ordering::Relaxed),
        bytes_out: active.counters.bytes_out.load(Ordering::Relaxed),
        sent_packets: path.sent_packets,
        lost_packets: path.lost_packets,
    }
}

#[allow(clippy::cast_precision_loss, reason = "rates are for people; 52 bits do")]
fn fill(status: &mut LinkStatus, active: &Active) {
    let counters = &active.counters;
    let probe_us = counters.round_trip_us.load(Ordering::Relaxed);
    let probed = Some(Duration::from_micros(probe_us)).filter(|_| probe_us > 0);
    status.rtt = probed.or_else(|| Some(active.connection.rtt()));
    status.peer_kind = active.kind;
    status.up_since_us = active.up_since_us;
    status.bytes_in = counters.bytes_in.load(Ordering::Relaxed);
    status.bytes_out = counters.bytes_out.load(Ordering::Relaxed);
    status.batches_in = counters.batches_in.load(Ordering::Relaxed);
    status.batches_out = counters.batches_out.load(Ordering::Relaxed);
    status.send_limited = counters.send_limited.load(Ordering::Relaxed);
    status.receive_limited = counters.receive_limited.load(Ordering::Relaxed);
    status.one_way_limited = counters.one_way_limited.load(Ordering::Relaxed);
    status.one_way_dropped += dropped(active);
    let (Some(first), now) = (active.samples.front(), sample(active)) else { return };
    let seconds = now.at.duration_since(first.at).as_secs_f64().max(0.001);
    let sent = now.sent_packets.saturating_sub(first.sent_packets);
    status.rate_in = now.bytes_in.saturating_sub(first.bytes_in) as f64 / seconds;
    status.rate_out = now.bytes_out.saturating_sub(first.bytes_out) as f64 / seconds;
    status.loss = now.lost_packets.saturating_sub(first.lost_packets) as f64 / sent.max(1) as f64;
}
