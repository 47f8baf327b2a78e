//! The node's state as clients see it: what the engine says, named and summed, never guessed.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use seaway_federation_proto::{
    copies::{HoleKind, LogInfo},
    ids::{LogName, Place, Queue, Site, Topic},
    replication::CopyStatus,
    session::NodeKind,
};
use seaway_relay::{log::contract::LogStats, node::LinkStatus};

use super::{convert::place, pages::page, queues, shared::Shared, sites, topics};
use crate::{
    api::{self, TopicState},
    auth::tokens::Token,
    engine::Engine,
    limits::{CONNECTIONS_MAX, SUBSCRIPTIONS_MAX},
};

/// States of copies, worst first: a topic shows the worst of its queues.
const WORST_FIRST: [TopicState; 6] = [
    TopicState::Down,
    TopicState::NotWanted,
    TopicState::Stalled,
    TopicState::CatchingUp,
    TopicState::Live,
    TopicState::Own,
];
/// Holes of a queue that a list gives.
const HOLES_SHOWN_MAX: usize = 64;

/// Certificates that status shows, those that end first.
const CERTIFICATES_SHOWN_MAX: usize = 64;

/// Everything at once.
pub(crate) fn status<E: Engine>(shared: &Shared<E>) -> api::StatusReply {
    let engine = &shared.engine;
    let (federation, name, kind) = engine.identity();
    let state = if shared.drain.is_cancelled() { Err("draining".to_owned()) } else { engine.readiness() };
    let alarm = |a: seaway_relay::node::Alarm| api::Alarm {
        name: a.report.name.to_owned(),
        text: a.report.text,
        since_us: a.since_us,
        last_us: a.last_us,
        count: a.count,
    };
    let (topics, more) = page(topics(engine, ""), "", 0);
    let (drained, receipts_waiting) = engine.draining();
    api::StatusReply {
        federation,
        site: name.site.to_string(),
        node: name.node.to_string(),
        kind: kind_name(kind),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: shared.since.elapsed().as_secs(),
        state: state.err().unwrap_or_else(|| "ready".into()),
        links: links(engine),
        topics,
        topics_left_out: !more.is_empty(),
        log: Some(log_status(engine.log_stats())),
        disk: Some(super::disk::usage(engine.disk_usage())),
        alarms: engine.alarms().into_iter().map(alarm).collect(),
        subscribers: shared.standings.list(),
        counters: counters(shared),
        queues: queues(shared),
        certificates: certificates(shared),
        hold_back: sites::hold_back(engine),
        drained,
        receipts_waiting,
    }
}

/// How a kind of node is called.
pub(crate) fn kind_name(kind: NodeKind) -> String {
    match kind {
        NodeKind::Edge => "edge".into(),
        NodeKind::Relay => "relay".into(),
        NodeKind::Other(number) => format!("kind {number}"),
    }
}

/// Connections and subscriptions that are open.
pub(crate) fn held<E: Engine>(shared: &Shared<E>) -> (u64, u64) {
    let connections = CONNECTIONS_MAX.saturating_sub(shared.connections.available_permits());
    let subscriptions = SUBSCRIPTIONS_MAX.saturating_sub(shared.subscriptions.available_permits());
    (to_u64(connections), to_u64(subscriptions))
}

fn counters<E: Engine>(shared: &Shared<E>) -> Vec<api::Counter> {
    let engine = shared.engine.counters().into_iter();
    let mut counters: Vec<_> =
        engine.map(|(name, label, value)| api::Counter { name: name.into(), label, value }).collect();
    let door = &shared.counters;
    let rates = shared.rates.counters();
    let own: [(&str, &str, &AtomicU64); 8] = [
        ("seaway_door_publishes_total", "receipt", &door.published),
        ("seaway_door_publishes_total", "failure", &door.failed),
        ("seaway_door_delivered_total", "", &door.delivered),
        ("seaway_door_subscriptions_total", "", &door.subscribers),
        ("seaway_door_refused_total", "not-allowed", &door.not_allowed),
        ("seaway_door_refused_total", "connections", &door.connections_refused),
        ("seaway_door_refused_total", "rate", &rates.refused),
        ("seaway_door_delayed_total", "rate", &rates.delayed),
    ];
    let own = own.map(|(name, label, value)| (name, label, value.load(Relaxed)));
    let (connections, subscriptions) = held(shared);
    let held = [("seaway_door_connections", "", connections), ("seaway_door_subscriptions", "", subscriptions)];
    let counter =
        |(name, label, value): (&str, &str, u64)| api::Counter { name: name.into(), label: label.into(), value };
    counters.extend(own.into_iter().chain(held).map(counter));
    counters
}

fn certificates<E: Engine>(shared: &Shared<E>) -> Vec<api::CertificateStatus> {
    let mut ends = shared.ends.load().to_vec();
    ends.sort_by_key(|end| end.expires_us);
    let shown = ends.into_iter().take(CERTIFICATES_SHOWN_MAX);
    let status = |end: seaway_relay::transport::expiry::CertificateEnd| api::CertificateStatus {
        role: end.role.into(),
        holder: end.holder,
        expires_us: end.expires_us,
    };
    shown.map(status).collect()
}

/// What status shows of queues: those that the node has once. `ListQueues` has those of links, too.
fn queues<E: Engine>(shared: &Shared<E>) -> Vec<api::QueueStatus> {
    queues::all(shared).into_iter().filter(|row| row.of.is_empty() && row.used.is_some()).map(queues::status).collect()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The links with their keys for pages.
pub(crate) fn keyed_links<E: Engine>(engine: &E) -> impl Iterator<Item = (String, api::LinkStatus)> {
    let key = |l: &api::LinkStatus| format!("{}\u{1}{}\u{1}{}", l.peer, l.direction, l.address);
    let mut links: Vec<_> = links(engine).into_iter().map(|link| (key(&link), link)).collect();
    links.sort_by(|a, b| a.0.cmp(&b.0));
    links.into_iter()
}

/// The links.
fn links<E: Engine>(engine: &E) -> Vec<api::LinkStatus> {
    engine.links().into_iter().map(link).collect()
}

fn link(link: LinkStatus) -> api::LinkStatus {
    api::LinkStatus {
        peer: link.peer.map(|p| p.to_string()).unwrap_or_default(),
        peer_kind: link.peer_kind.map(kind_name).unwrap_or_default(),
        direction: if link.dials { "out".into() } else { "in".into() },
        address: link.address,
        state: link_state(link.state).into(),
        reason: link.reason,
        state_for_ms: milliseconds(link.lasting),
        heard_ms_ago: link.heard.map(milliseconds),
        rtt_ms: link.rtt.map_or(0.0, |rtt| rtt.as_secs_f64() * 1000.0),
        loss: link.loss,
        bytes_per_s_in: link.rate_in,
        bytes_per_s_out: link.rate_out,
        bytes_in: link.bytes_in,
        bytes_out: link.bytes_out,
        up_since_us: link.up_since_us.unwrap_or(0),
        reconnects: link.reconnects,
        batches_in: link.batches_in,
        batches_out: link.batches_out,
        one_way_dropped: link.one_way_dropped,
        credit_live_bytes: link.credit.map(|[live, _]| live),
        credit_backlog_bytes: link.credit.map(|[_, backlog]| backlog),
        send_limited: link.send_limited,
        receive_limited: link.receive_limited,
        one_way_limited: link.one_way_limited,
    }
}

fn link_state(state: &str) -> api::LinkState {
    match state {
        "connecting" => api::LinkState::Connecting,
        "live" => api::LinkState::Live,
        "catching-up" => api::LinkState::CatchingUp,
        "stalled" => api::LinkState::Stalled,
        "down" => api::LinkState::Down,
        "paused" => api::LinkState::Paused,
        _ => api::LinkState::Unspecified,
    }
}

fn topic_state(state: &str) -> TopicState {
    match state {
        "own" => TopicState::Own,
        "live" => TopicState::Live,
        "catching-up" => TopicState::CatchingUp,
        "stalled" => TopicState::Stalled,
        "down" => TopicState::Down,
        "not-wanted" => TopicState::NotWanted,
        _ => TopicState::Unspecified,
    }
}

/// The logs, gathered by topic and origin, with their keys for pages; of one topic where it is named. Takes a lock for each log: not
/// for async tasks.
pub(crate) fn topics<E: Engine>(engine: &E, topic: &str) -> impl Iterator<Item = (String, api::TopicStatus)> {
    let mut gathered: BTreeMap<(Topic, Site), api::TopicStatus> = BTreeMap::new();
    for log in engine.logs() {
        if !topic.is_empty() && log.topic.as_str() != topic {
            continue;
        }
        let Some(info) = engine.info(&log) else { continue };
        // What was deleted is told of where somebody asks for it by name.
        let deleted = engine.control(&log.topic, &log.origin).is_some_and(|control| control.is_deleted());
        if deleted && topic.is_empty() {
            continue;
        }
        let entry = gathered.entry((log.topic.clone(), log.origin.clone())).or_insert_with(|| api::TopicStatus {
            topic: log.topic.to_string(),
            origin: log.origin.to_string(),
            lag_known: true,
            ..api::TopicStatus::default()
        });
        add_log(entry, &log, &info, engine.copy_status(&log));
    }
    if !topic.is_empty() {
        gathered.iter_mut().for_each(|((topic, origin), status)| topics::describe(engine, topic, origin, status));
    }
    // No name holds a control character: keys are ordered as the pairs are.
    gathered.into_iter().map(|((topic, origin), status)| (format!("{topic}\u{1}{origin}"), status))
}

fn add_log(topic: &mut api::TopicStatus, log: &LogName, info: &LogInfo, status: Option<CopyStatus>) {
    if log.queue != Queue::CONTROL {
        topic.messages = topic.messages.saturating_add(info.messages);
    }
    topic.bytes = topic.bytes.saturating_add(info.bytes);
    // The origin's last mark may be older than what has come since: it holds at least what is here.
    let origin_end = status.as_ref().and_then(|s| s.origin_end).map(|end| at_least(end, info));
    let verified = status.as_ref().and_then(|s| s.proven).map(place);
    match status {
        Some(status) => add_status(topic, status),
        None => topic.lag_known = false,
    }
    let chain = info.incarnations.iter().find(|i| i.incarnation == info.end.incarnation).and_then(|i| i.chain_at_end);
    topic.queues.push(api::QueueCopy {
        queue: u32::from(log.queue.0),
        begin: Some(place(info.begin)),
        end: Some(place(info.end)),
        origin_end: origin_end.map(place),
        verified,
        holes: info.holes.iter().take(HOLES_SHOWN_MAX).map(hole).collect(),
        holes_total: u32::try_from(info.holes.len()).unwrap_or(u32::MAX),
        forks: info.fork_tips.iter().copied().map(place).collect(),
        chain: chain.map(|chain| format!("{chain:?}")).unwrap_or_default(),
    });
}

fn at_least(stated: Place, info: &LogInfo) -> Place {
    let here = info.end;
    if stated.incarnation == here.incarnation && stated.offset < here.offset { here } else { stated }
}

/// Sums the lag and keeps the worst state.
fn add_status(topic: &mut api::TopicStatus, status: CopyStatus) {
    let rank = |state: TopicState| WORST_FIRST.iter().position(|s| *s == state).unwrap_or(WORST_FIRST.len());
    let state = topic_state(status.state);
    if rank(state) < rank(topic.state()) {
        topic.set_state(state);
        topic.reason = status.reason;
        topic.state_for_ms = milliseconds(status.lasting);
    }
    // Of an origin that nothing is heard of, the last mark says only the least that the lag is.
    topic.lag_known &= status.lag_messages.is_some() && state != TopicState::Down;
    topic.lag_messages = topic.lag_messages.saturating_add(status.lag_messages.unwrap_or(0));
    topic.lag_bytes = topic.lag_bytes.saturating_add(status.lag_bytes.unwrap_or(0));
    topic.lag_s = topic.lag_s.max(status.lag.map_or(0.0, |lag: Duration| lag.as_secs_f64()));
}

fn hole(hole: &seaway_federation_proto::copies::Hole) -> api::Hole {
    let from = seaway_federation_proto::ids::Place { incarnation: hole.incarnation, offset: hole.from };
    let why = match hole.kind {
        HoleKind::Pending => api::HoleReason::Pending,
        HoleKind::NotWanted => api::HoleReason::NotWanted,
        HoleKind::Lost => api::HoleReason::Lost,
    };
    api::Hole { from: Some(place(from)), to_offset: hole.to, why: why.into() }
}

fn log_status(stats: LogStats) -> api::LogStatus {
    api::LogStatus {
        segments: stats.segments,
        segment_bytes: stats.segment_bytes,
        live_bytes: stats.live_bytes,
        index_bytes: stats.index_bytes,
        disk_free: stats.disk_free,
        disk_full: stats.disk_full,
        poisoned: stats.poisoned.map(|why| why.to_string()).unwrap_or_default(),
        groups: stats.groups,
        syncs: stats.syncs,
        written_bytes: stats.written_bytes,
        accepted_bytes: stats.accepted_bytes,
        torn_bytes: stats.torn_bytes,
        moved_bytes: stats.moved_bytes,
        index_written_bytes: stats.index_written_bytes,
        damage: stats.damage.into_iter().map(|d| format!("{} {}..{}: {}", d.file, d.from, d.to, d.detail)).collect(),
    }
}

/// A token as it may be shown: never the token itself.
pub(crate) fn token(token: &Token) -> api::TokenInfo {
    let texts = |patterns: &[seaway_federation_proto::ids::Pattern]| patterns.iter().map(ToString::to_string).collect();
    let rights = api::Rights {
        publish: texts(&token.rights.publish),
        subscribe: texts(&token.rights.subscribe),
        admin: token.rights.admin,
    };
    api::TokenInfo {
        name: token.name.clone(),
        rights: Some(rights),
        expires_us: token.expires_us,
        from: token.from.into(),
    }
}
