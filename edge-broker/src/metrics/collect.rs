//! From the node's snapshots to a page of samples.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use seaway_relay::{log::contract::LogStats, node::Node, transport::expiry::CertificateEnd};
use tokio::sync::Semaphore;

use super::{
    CERTIFICATES_MAX, COPIES_MAX, GROUPS_MAX, PEERS_MAX,
    exposition::{Apart, Page},
    process, table as t,
};
use crate::{
    api::{self, LinkState, TopicState},
    certificates,
    door::DoorHandle,
    engine::Engine,
    grpc::{shared::Shared, status},
};

/// How long groups may take to describe themselves; those of a scrape that takes longer are left out of it.
const GROUPS_WITHIN: Duration = Duration::from_secs(2);

/// Makes pages, one at a time: a scrape takes the hub's lock for each log.
pub(crate) struct Collector {
    turn: Semaphore,
    apart: Arc<Mutex<Told>>,
}

impl Default for Collector {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), apart: Arc::default() }
    }
}

/// Who is told apart.
#[derive(Default)]
struct Told {
    copies: Apart,
    peers: Apart,
    groups: Apart,
    certificates: Apart,
}

impl Collector {
    /// The metrics of a process whose node is not up yet.
    pub(crate) fn process_page() -> String {
        let mut page = Page::default();
        page.count(&t::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
        page.count(&t::READY, &[], 0);
        process::add(&mut page);
        page.text()
    }

    /// All metrics as text.
    pub(crate) async fn page(&self, node: &Node, door: Option<&DoorHandle<Node>>, ready: bool) -> String {
        let _turn = self.turn.acquire().await;
        let groups = match door {
            Some(door) => tokio::time::timeout(GROUPS_WITHIN, door.shared().groups.list("")).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let ends = certificates::ends(node, door);
        let (node, shared, apart) = (node.clone(), door.map(|door| door.shared().clone()), self.apart.clone());
        let collect = move || {
            let (mut page, mut apart) = (Page::default(), apart.lock());
            let kind = status::kind_name(node.identity().2);
            let (federation, name, _) = node.identity();
            page.count(&t::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
            page.count(&t::NODE_INFO, &[&federation, name.site.as_str(), &name.node, &kind], 1);
            page.count(&t::READY, &[], u64::from(ready));
            add_times(&mut page, node.uptime());
            process::add(&mut page);
            add_topics(&mut page, &mut apart.copies, &status::topics(&node, "").map(|(_, t)| t).collect::<Vec<_>>());
            add_links(&mut page, &mut apart.peers, &status::keyed_links(&node).map(|(_, l)| l).collect::<Vec<_>>());
            add_log(&mut page, &node.log_stats());
            add_engine(&mut page, &node);
            add_certificates(&mut page, &mut apart.certificates, &ends);
            add_groups(&mut page, &mut apart.groups, &groups);
            match shared {
                Some(shared) => add_door(&mut page, &shared),
                None => {
                    node.queues().into_iter().for_each(|(name, used, bound)| add_queue(&mut page, &name, used, bound))
                }
            }
            page.text()
        };
        tokio::task::spawn_blocking(collect).await.unwrap_or_default()
    }
}

fn add_times(page: &mut Page, uptime: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    page.add(&t::UPTIME, &[], uptime.as_secs_f64());
    page.add(&t::START_TIME, &[], now.saturating_sub(uptime).as_secs_f64());
}

/// How a state is called in a label.
fn topic_state(state: TopicState) -> &'static str {
    match state {
        TopicState::Own => "own",
        TopicState::Live => "live",
        TopicState::CatchingUp => "catching-up",
        TopicState::Stalled => "stalled",
        TopicState::Down => "down",
        TopicState::NotWanted => "not-wanted",
        _ => "other",
    }
}

fn add_topics(page: &mut Page, apart: &mut Apart, topics: &[api::TopicStatus]) {
    apart.keep(topics.iter().map(|topic| vec![topic.topic.as_str(), topic.origin.as_str()]), COPIES_MAX);
    for topic in topics {
        let labels = apart.labels(&[&topic.topic, &topic.origin]);
        page.count(&t::STORED_MESSAGES, &labels, topic.messages);
        page.count(&t::STORED_BYTES, &labels, topic.bytes);
        page.count(&t::COPIES, &[topic_state(topic.state())], 1);
        if topic.state() == TopicState::Own {
            continue;
        }
        let holes = topic.queues.iter().map(|queue| u64::from(queue.holes_total)).sum();
        page.count(&t::COPY_LIVE, &labels, u64::from(topic.state() == TopicState::Live));
        page.count(&t::COPY_LAG_KNOWN, &labels, u64::from(topic.lag_known));
        page.count(&t::COPY_HOLES, &labels, holes);
        if topic.lag_known {
            page.count(&t::COPY_LAG_MESSAGES, &labels, topic.lag_messages);
            page.count(&t::COPY_LAG_BYTES, &labels, topic.lag_bytes);
            page.add(&t::COPY_LAG_SECONDS, &labels, topic.lag_s);
        }
    }
}

fn link_state(state: LinkState) -> &'static str {
    match state {
        LinkState::Connecting => "connecting",
        LinkState::Live => "live",
        LinkState::CatchingUp => "catching-up",
        LinkState::Stalled => "stalled",
        LinkState::Down => "down",
        LinkState::Paused => "paused",
        _ => "other",
    }
}

fn add_links(page: &mut Page, apart: &mut Apart, links: &[api::LinkStatus]) {
    // A peer that is dialled under a wrong name has none: its address stands for it.
    let peer = |link: &api::LinkStatus| if link.peer.is_empty() { link.address.clone() } else { link.peer.clone() };
    let keys: Vec<_> = links.iter().map(|link| (peer(link), link.direction.clone())).collect();
    apart.keep(keys.iter().map(|(peer, direction)| vec![peer.as_str(), direction.as_str()]), PEERS_MAX);
    for (link, (peer, direction)) in links.iter().zip(&keys) {
        let labels = apart.labels(&[peer, direction]);
        page.count(&t::LINK_LIVE, &labels, u64::from(link.state() == LinkState::Live));
        page.count(&t::LINKS, &[link_state(link.state())], 1);
        page.count(&t::LINK_RECONNECTS, &labels, link.reconnects);
        page.count(&t::LINK_DROPPED, &labels, link.one_way_dropped);
        if link.up_since_us == 0 {
            continue;
        }
        page.add(&t::LINK_RTT, &labels, link.rtt_ms / 1000.0);
        page.add(&t::LINK_LOSS, &labels, link.loss);
        page.count(&t::LINK_RECEIVED, &labels, link.bytes_in);
        page.count(&t::LINK_SENT, &labels, link.bytes_out);
        page.count(&t::LINK_BATCHES_IN, &labels, link.batches_in);
        page.count(&t::LINK_BATCHES_OUT, &labels, link.batches_out);
    }
}

fn add_log(page: &mut Page, stats: &LogStats) {
    let figures = [
        (&t::LOG_GROUPS, stats.groups),
        (&t::LOG_SYNCS, stats.syncs),
        (&t::LOG_WRITTEN, stats.written_bytes),
        (&t::LOG_MOVED, stats.moved_bytes),
        (&t::LOG_INDEX_WRITTEN, stats.index_written_bytes),
        (&t::DISK_KEPT, stats.ballast_bytes),
        (&t::OWN_FULL, u64::from(stats.own_full)),
        (&t::COPIES_FULL, u64::from(stats.copies_full)),
        (&t::LOG_ACCEPTED, stats.accepted_bytes),
        (&t::LOG_SEGMENTS, stats.segments),
        (&t::LOG_SEGMENT_BYTES, stats.segment_bytes),
        (&t::LOG_LIVE_BYTES, stats.live_bytes),
        (&t::LOG_INDEX_BYTES, stats.index_bytes),
        (&t::LOG_POISONED, u64::from(stats.poisoned.is_some())),
        (&t::LOG_DAMAGES, u64::try_from(stats.damage.len()).unwrap_or(u64::MAX)),
        (&t::LOG_TORN, stats.torn_bytes),
        (&t::DISK_FREE, stats.disk_free),
        (&t::DISK_FULL, u64::from(stats.disk_full)),
    ];
    for (metric, value) in figures {
        page.count(metric, &[], value);
    }
}

/// Of a queue's name in status: `receipts (number)` counts pieces.
const IN_PIECES: &str = " (number)";

fn add_queue(page: &mut Page, name: &str, used: u64, bound: u64) {
    let (metrics, name) = match name.strip_suffix(IN_PIECES) {
        Some(name) => ([&t::QUEUE_ITEMS, &t::QUEUE_ITEMS_MAX], name),
        None => ([&t::QUEUE_BYTES, &t::QUEUE_BYTES_MAX], name),
    };
    for (metric, value) in metrics.into_iter().zip([used, bound]) {
        page.count(metric, &[name], value);
    }
}

fn add_engine<E: Engine>(page: &mut Page, engine: &E) {
    for alarm in engine.alarms() {
        page.count(&t::ALARMS, &[alarm.report.name], 1);
    }
    // Those with a label are told elsewhere, by link.
    for (name, _, value) in engine.counters().into_iter().filter(|(_, label, _)| label.is_empty()) {
        page.count(&t::EVENTS, &[name], value);
    }
}

fn add_certificates(page: &mut Page, apart: &mut Apart, ends: &[CertificateEnd]) {
    apart.keep(ends.iter().map(|end| vec![end.role, end.holder.as_str()]), CERTIFICATES_MAX);
    for end in ends {
        page.least(&t::CERTIFICATE_EXPIRY, &apart.labels(&[end.role, &end.holder]), end.expires_us / 1_000_000);
    }
}

fn add_groups(page: &mut Page, apart: &mut Apart, groups: &[api::Group]) {
    apart.keep(groups.iter().map(|group| vec![group.name.as_str()]), GROUPS_MAX);
    for group in groups {
        let labels = apart.labels(&[&group.name]);
        page.count(&t::GROUP_MEMBERS, &labels, u64::from(group.members));
        page.count(&t::GROUP_LAG, &labels, group.lag_messages);
        page.count(&t::GROUP_UNCONFIRMED, &labels, group.unconfirmed);
    }
}

fn add_door<E: Engine>(page: &mut Page, shared: &Shared<E>) {
    for queue in status::queues(shared) {
        add_queue(page, &queue.name, queue.bytes, queue.bytes_max);
    }
    for (topic, flows) in shared.traffic.all() {
        let flows = [
            (&t::PUBLISHED_MESSAGES, &flows.published.messages),
            (&t::PUBLISHED_BYTES, &flows.published.bytes),
            (&t::DELIVERED_MESSAGES, &flows.delivered.messages),
            (&t::DELIVERED_BYTES, &flows.delivered.bytes),
        ];
        for (metric, value) in flows {
            page.count(metric, &[&topic], value.load(Relaxed));
        }
    }
    let (counters, rates) = (&shared.counters, shared.rates.counters());
    page.count(&t::DOOR_PUBLISHES, &["receipt"], counters.published.load(Relaxed));
    page.count(&t::DOOR_PUBLISHES, &["failure"], counters.failed.load(Relaxed));
    page.count(&t::DOOR_DELIVERED, &[], counters.delivered.load(Relaxed));
    page.count(&t::DOOR_REFUSED, &["not-allowed"], counters.not_allowed.load(Relaxed));
    page.count(&t::DOOR_REFUSED, &["connections"], counters.connections_refused.load(Relaxed));
    page.count(&t::DOOR_REFUSED, &["rate"], rates.refused.load(Relaxed));
    page.count(&t::DOOR_DELAYED, &[], rates.delayed.load(Relaxed));
    page.count(&t::AUDIT_FAILURES, &[], counters.audit_failures.load(Relaxed));
    let (connections, subscriptions) = status::held(shared);
    page.count(&t::DOOR_CONNECTIONS, &[], connections);
    page.count(&t::DOOR_SUBSCRIPTIONS, &[], subscriptions);
}
