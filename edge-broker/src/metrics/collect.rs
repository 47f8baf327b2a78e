//! From the node's snapshots to a page of samples.

use std::{
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use seaway_relay::{
    log::{contract::LogStats, sync_times::SYNC_BOUNDS_US},
    node::{
        Node,
        queues::{QueueView, Unit},
    },
    transport::expiry::CertificateEnd,
};
use tokio::sync::Semaphore;

use super::{
    CERTIFICATES_MAX, CLIENTS_MAX, COPIES_MAX, GROUPS_MAX, OTHER, PEERS_MAX, TOPICS_MAX,
    exposition::{Apart, Page, number},
    process, table as t,
};
use crate::{
    api::{self, LinkState, TopicState},
    certificates,
    door::DoorHandle,
    engine::Engine,
    groups::Described,
    grpc::{queues, shared::Shared, status},
};

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
    limited_topics: Apart,
    limited_clients: Apart,
}

impl Collector {
    /// The metrics of a process whose node is not up yet.
    pub(crate) fn process_page() -> String {
        let mut page = Page::default();
        page.count(&t::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
        page.count(&t::READY, &[], 0);
        add_times(&mut page);
        process::add(&mut page);
        page.text()
    }

    /// All metrics as text.
    pub(crate) async fn page(&self, node: &Node, door: Option<&DoorHandle<Node>>, ready: bool) -> String {
        let _turn = self.turn.acquire().await;
        let groups = match door {
            Some(door) => door.shared().groups.described("").await,
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
            add_times(&mut page);
            process::add(&mut page);
            let topics: Vec<_> = status::topics(&node, "").map(|(_, topic)| topic).collect();
            if let Some(shared) = &shared {
                shared.traffic.keep(&topics.iter().map(|topic| topic.topic.as_str()).collect());
            }
            add_topics(&mut page, &mut apart.copies, &topics);
            add_links(&mut page, &mut apart.peers, &status::keyed_links(&node).map(|(_, l)| l).collect::<Vec<_>>());
            add_log(&mut page, &node.log_stats());
            add_engine(&mut page, &node);
            add_certificates(&mut page, &mut apart.certificates, &ends);
            add_groups(&mut page, &mut apart.groups, &groups);
            match shared {
                Some(shared) => {
                    add_door(&mut page, &shared);
                    add_limits(&mut page, &mut apart, &shared);
                }
                None => node.queues().iter().for_each(|row| add_queue(&mut page, row)),
            }
            page.text()
        };
        tokio::task::spawn_blocking(collect).await.unwrap_or_default()
    }
}

/// When the process started, by both clocks, noted once: a clock that is set later must not move the start.
static STARTED: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (SystemTime::now(), Instant::now()));

/// Notes that the process starts now.
pub(crate) fn note_start() {
    LazyLock::force(&STARTED);
}

fn add_times(page: &mut Page) {
    let (wall, monotonic) = *STARTED;
    page.add(&t::UPTIME, &[], monotonic.elapsed().as_secs_f64());
    page.add(&t::START_TIME, &[], wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
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
        // What nobody wants stands where it stands.
        if matches!(topic.state(), TopicState::Own | TopicState::NotWanted) {
            continue;
        }
        let holes = topic.queues.iter().map(|queue| u64::from(queue.holes_total)).sum();
        // Of those that are not told apart the worst is shown.
        page.least(&t::COPY_LIVE, &labels, flag(topic.state() == TopicState::Live));
        page.least(&t::COPY_LAG_KNOWN, &labels, flag(topic.lag_known));
        page.count(&t::COPY_HOLES, &labels, holes);
        if topic.lag_known {
            page.greatest(&t::COPY_LAG_MESSAGES, &labels, number(topic.lag_messages));
            page.greatest(&t::COPY_LAG_BYTES, &labels, number(topic.lag_bytes));
            page.greatest(&t::COPY_LAG_SECONDS, &labels, topic.lag_s);
        }
    }
}

fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
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
        page.least(&t::LINK_LIVE, &labels, flag(link.state() == LinkState::Live));
        page.count(&t::LINKS, &[link_state(link.state())], 1);
        page.count(&t::LINK_RECONNECTS, &labels, link.reconnects);
        page.count(&t::LINK_DROPPED, &labels, link.one_way_dropped);
        if link.up_since_us == 0 {
            continue;
        }
        for (lane, credit) in [("live", link.credit_live_bytes), ("backlog", link.credit_backlog_bytes)] {
            let Some(credit) = credit else { continue };
            let labels: Vec<&str> = labels.iter().copied().chain([lane]).collect();
            page.least(&t::LINK_CREDIT, &labels, number(credit));
        }
        page.greatest(&t::LINK_RTT, &labels, link.rtt_ms / 1000.0);
        page.greatest(&t::LINK_LOSS, &labels, link.loss);
        // Those begin anew with each connection: a sum of several would fall and look like one that did.
        if labels.first() == Some(&OTHER) {
            continue;
        }
        page.count(&t::LINK_RECEIVED, &labels, link.bytes_in);
        page.count(&t::LINK_SENT, &labels, link.bytes_out);
        page.count(&t::LINK_SEND_LIMITED, &labels, link.send_limited);
        page.count(&t::LINK_RECEIVE_LIMITED, &labels, link.receive_limited);
        page.count(&t::LINK_ONE_WAY_LIMITED, &labels, link.one_way_limited);
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
    let times = &stats.sync_times;
    let buckets = SYNC_BOUNDS_US.iter().zip(times.within).map(|(bound, count)| (number(*bound) / 1e6, count));
    page.histogram(&t::LOG_SYNC_SECONDS, buckets, times.beyond, number(times.total_us) / 1e6);
}

fn add_queue(page: &mut Page, row: &QueueView) {
    let metrics = match row.unit {
        Unit::Pieces => [&t::QUEUE_ITEMS, &t::QUEUE_ITEMS_MAX],
        Unit::Bytes => [&t::QUEUE_BYTES, &t::QUEUE_BYTES_MAX],
    };
    for (metric, value) in metrics.into_iter().zip([row.used, Some(row.bound)]) {
        value.into_iter().for_each(|value| page.count(metric, &[row.name], value));
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
        page.least(&t::CERTIFICATE_EXPIRY, &apart.labels(&[end.role, &end.holder]), number(end.expires_us / 1_000_000));
    }
}

fn add_groups(page: &mut Page, apart: &mut Apart, groups: &[Described]) {
    let silent = groups.iter().filter(|group| matches!(group, Described::Silent(_))).count();
    page.count(&t::GROUPS_SILENT, &[], u64::try_from(silent).unwrap_or(u64::MAX));
    apart.keep(groups.iter().map(|group| vec![group.name()]), GROUPS_MAX);
    for group in groups {
        let Described::Told(group) = group else { continue };
        let labels = apart.labels(&[&group.name]);
        page.count(&t::GROUP_MEMBERS, &labels, u64::from(group.members));
        page.count(&t::GROUP_LAG, &labels, group.lag_messages);
        page.count(&t::GROUP_UNCONFIRMED, &labels, group.unconfirmed);
    }
}

/// Whom rate limits held back.
fn add_limits<E: Engine>(page: &mut Page, apart: &mut Told, shared: &Shared<E>) {
    let of = [
        (&mut apart.limited_topics, TOPICS_MAX, shared.topic_rates.held_back(), [&t::TOPIC_DELAYED, &t::TOPIC_REFUSED]),
        (&mut apart.limited_clients, CLIENTS_MAX, shared.rates.held_back(), [&t::CLIENT_DELAYED, &t::CLIENT_REFUSED]),
    ];
    for (apart, max, held, [delayed_metric, refused_metric]) in of {
        apart.keep(held.iter().map(|(name, ..)| vec![name.as_str()]), max);
        for (name, delayed, refused) in &held {
            let labels = apart.labels(&[name]);
            page.count(delayed_metric, &labels, *delayed);
            page.count(refused_metric, &labels, *refused);
        }
    }
}

fn add_door<E: Engine>(page: &mut Page, shared: &Shared<E>) {
    queues::all(shared).iter().for_each(|row| add_queue(page, row));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exposition::tests::read;

    fn topic(topic: &str, state: TopicState, lag: Option<u64>) -> api::TopicStatus {
        let mut status = api::TopicStatus {
            topic: topic.into(),
            origin: "eu".into(),
            lag_known: lag.is_some(),
            lag_messages: lag.unwrap_or_default(),
            lag_s: lag.map_or(0.0, |lag| f64::from(u32::try_from(lag).unwrap())),
            ..Default::default()
        };
        status.set_state(state);
        status
    }

    #[test]
    fn of_what_is_not_told_apart_the_worst_is_shown() {
        let told: Vec<_> = (0..COPIES_MAX).map(|n| topic(&format!("a{n:04}"), TopicState::Live, Some(0))).collect();
        let mut topics = told.clone();
        topics.push(topic("z1", TopicState::Live, Some(3)));
        topics.push(topic("z2", TopicState::CatchingUp, Some(7)));
        topics.push(topic("z3", TopicState::Down, None));
        topics.push(topic("z4", TopicState::NotWanted, Some(99)));
        let (mut page, mut apart) = (Page::default(), Apart::default());
        add_topics(&mut page, &mut apart, &told);
        let mut page_of_all = Page::default();
        add_topics(&mut page_of_all, &mut apart, &topics);
        let series = read(&page_of_all.text());
        let other = |name: &str| series.get(&format!("{name}{{topic=\"_other\",origin=\"_other\"}}")).copied();
        assert_eq!((other("seaway_copy_live"), other("seaway_copy_lag_known")), (Some(0.0), Some(0.0)));
        assert_eq!((other("seaway_copy_lag_messages"), other("seaway_copy_lag_seconds")), (Some(7.0), Some(7.0)));
        assert_eq!(series["seaway_copy_live{topic=\"a0001\",origin=\"eu\"}"], 1.0);
    }

    #[test]
    fn of_links_not_told_apart_there_is_no_sum_of_what_begins_anew() {
        let link = |n: usize| {
            let mut link = api::LinkStatus {
                peer: format!("s{n:04}/edge"),
                direction: "in".into(),
                rtt_ms: 1000.0 * f64::from(u32::try_from(n).unwrap()),
                bytes_in: 5,
                reconnects: 1,
                up_since_us: 1,
                ..Default::default()
            };
            link.set_state(if n == PEERS_MAX { LinkState::Down } else { LinkState::Live });
            link
        };
        let links: Vec<_> = (0..PEERS_MAX + 3).map(link).collect();
        let (mut page, mut apart) = (Page::default(), Apart::default());
        add_links(&mut page, &mut apart, &links);
        let series = read(&page.text());
        let other = |name: &str| series.get(&format!("{name}{{peer=\"_other\",direction=\"_other\"}}")).copied();
        assert_eq!(other("seaway_link_live"), Some(0.0));
        assert_eq!(other("seaway_link_round_trip_seconds"), Some(202.0));
        assert_eq!(
            (other("seaway_link_received_bytes_total"), other("seaway_link_reconnects_total")),
            (None, Some(3.0))
        );
        assert_eq!(series["seaway_link_received_bytes_total{peer=\"s0001/edge\",direction=\"in\"}"], 5.0);
    }

    #[test]
    fn the_start_does_not_move() {
        let start = || {
            let mut page = Page::default();
            add_times(&mut page);
            read(&page.text())["seaway_start_time_seconds"]
        };
        let first = start();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(start().to_bits(), first.to_bits());
    }
}
