//! Whole nodes in one process, over QUIC on loopback: two edge brokers with a relay between them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use seaway_federation_proto::{
    envelope::Batch,
    ids::{LogName, NodeName, Queue, Site},
    message::decode_messages,
    replication::{Want, WantStart},
    session::NodeKind,
};
use seaway_relay::{
    ca::{AUTHORITY_LIFETIME, Authority, CERTIFICATE_LIFETIME, Holder, Request},
    log::contract::{Line, Read},
    node::{
        Acknowledgement, LinkTls, Node, NodeConfig, OnDeadline, Publish, PublishError, Receipt, StartError, TopicConfig,
    },
    transport::identity::Identity,
};
use tempfile::TempDir;

/// Far more than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_secs(60);
const FEDERATION: &str = "test";

struct Certificates {
    dir: TempDir,
    authority: Authority,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), FEDERATION, AUTHORITY_LIFETIME).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        Self { dir, authority }
    }

    fn tls(&self, name: &NodeName) -> LinkTls {
        let identity = Identity::node(FEDERATION, name.clone()).unwrap();
        let hosts = vec!["localhost".to_owned()];
        let request = Request { holder: Holder::Member(identity), hosts, lifetime: CERTIFICATE_LIFETIME };
        let file = name.to_string().replace('/', "-");
        let issued = self.authority.issue(&request, self.dir.path(), &file).unwrap();
        LinkTls { cert: issued.cert, key: issued.key, ca: self.dir.path().join("ca.pem") }
    }
}

/// A node that can be stopped and started again on its disk.
struct Member {
    config: NodeConfig,
    node: Option<Node>,
}

impl Member {
    async fn start(certificates: &Certificates, name: &str, kind: NodeKind, dial: Option<(&str, SocketAddr)>) -> Self {
        let mut member = Self::new(certificates, name, kind, dial);
        member.start_again().await;
        member
    }

    fn new(certificates: &Certificates, name: &str, kind: NodeKind, dial: Option<(&str, SocketAddr)>) -> Self {
        let name: NodeName = name.parse().unwrap();
        let want = Want {
            id: "all".into(),
            pattern: "#".parse().unwrap(),
            origins: vec![],
            start: WantStart::Earliest,
            registers: true,
        };
        let config = NodeConfig {
            auto_create: seaway_relay::node::AutoCreate::Local,
            accept_message_bytes_max: 16 << 20,
            federation: FEDERATION.into(),
            tls: certificates.tls(&name),
            kind,
            data_dir: certificates.dir.path().join(name.to_string().replace('/', "-")),
            name,
            listen: (kind == NodeKind::Relay).then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            dial: dial.into_iter().map(|(peer, at)| (peer.parse().unwrap(), at.to_string())).collect(),
            wants: if kind == NodeKind::Edge { vec![want] } else { vec![] },
            replicate: vec![],
            topics: vec![("#".parse().unwrap(), TopicConfig { queues: 2, ..TopicConfig::default() })],
            segment_bytes: 64 << 20,
            disk_reserve_bytes: 0,
            space: seaway_relay::node::SpaceConfig::default(),
            cache_bytes_max: (kind == NodeKind::Relay).then_some(64 << 20),
            lane_credit_bytes: 32 << 20,
            probe_interval: Duration::from_millis(300),
            dead_after: Duration::from_secs(10),
            mark_interval: Duration::from_millis(200),
            costs: vec![],
            tail_bytes_max: 64 << 20,
            hold_back: seaway_relay::node::HoldBackConfig::default(),
            limits: seaway_relay::node::limits::LimitsConfig::default(),
        };
        Self { config, node: None }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn site(&self) -> Site {
        self.config.name.site.clone()
    }

    async fn stop(&mut self) {
        let node = self.node.take().unwrap();
        if let Some(address) = node.local_address() {
            self.config.listen = Some(address);
        }
        node.shutdown().await.unwrap();
    }

    async fn start_again(&mut self) {
        let deadline = Instant::now() + LONG;
        self.node = loop {
            match Node::start(self.config.clone()).await {
                Ok(node) => break Some(node),
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
    }

    async fn publish(&self, text: &str, asked: Acknowledgement) -> Result<Receipt, PublishError> {
        let publish = message("orders/new", text, asked);
        self.node().publish(publish).await?.await.unwrap()
    }

    fn state(&self) -> String {
        let node = self.node();
        let logs: Vec<_> = node.logs().into_iter().map(|l| (l.clone(), node.info(&l), node.copy_status(&l))).collect();
        format!(
            "{}:\n{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}",
            self.config.name,
            node.sites(),
            node.links(),
            node.alarms(),
            node.counters(),
            logs
        )
    }

    /// Until the site is registered for the topic here.
    async fn wait_registered(&self, site: &Site) {
        let deadline = Instant::now() + LONG;
        loop {
            match self.publish("hello", Acknowledgement::Sites(vec![site.clone()])).await {
                Ok(receipt) => return assert_eq!(receipt.sites, vec![site.clone()]),
                Err(PublishError::NobodyToAcknowledge(_)) if Instant::now() < deadline => {}
                Err(error) => panic!("{error}\n{}", self.state()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn batches(&self, origin: &Site) -> Vec<Batch> {
        let mut all = Vec::new();
        for queue in 0..=2 {
            let log = LogName { topic: "orders".parse().unwrap(), origin: origin.clone(), queue: Queue(queue) };
            let Some(info) = self.node().info(&log) else { continue };
            let mut at = info.begin;
            while let Read::Batches { batches, next } = self.node().read(&log, at, Line::Main, 1 << 20).await.unwrap() {
                all.extend(batches);
                at = next;
            }
        }
        all
    }

    /// The texts of an origin's messages here, in order.
    async fn texts(&self, origin: &Site) -> Vec<String> {
        let batches = self.batches(origin).await;
        let messages = batches.iter().filter(|b| b.header().log.queue != Queue::CONTROL);
        let messages = messages.flat_map(|b| decode_messages(b, 1 << 26).unwrap());
        let mut texts: Vec<String> = messages.map(|m| String::from_utf8(m.payload.to_vec()).unwrap()).collect();
        texts.sort();
        texts.retain(|t| t != "hello");
        texts
    }

    async fn wait_equal(&self, origin: &Member) {
        let deadline = Instant::now() + LONG;
        let bytes =
            |all: Vec<Batch>| all.iter().map(|b| (b.begin(), b.head().clone(), b.body().clone())).collect::<Vec<_>>();
        let expected = bytes(origin.batches(&origin.site()).await);
        loop {
            let found = bytes(self.batches(&origin.site()).await);
            if found == expected {
                return;
            }
            let (held, of) = (found.len(), expected.len());
            assert!(Instant::now() < deadline, "{held} of {of} batches\n{}\n{}", self.state(), origin.state());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn message(path: &str, text: &str, acknowledgement: Acknowledgement) -> Publish {
    Publish {
        path: path.parse().unwrap(),
        key: Some(text.to_owned().into()),
        headers: vec![],
        payload: text.to_owned().into(),
        producer: None,
        acknowledgement,
        deadline: LONG,
        on_deadline: OnDeadline::Fail,
    }
}

async fn three(certificates: &Certificates) -> (Member, Member, Member) {
    three_by_way_of(certificates, "hub/r1").await
}

async fn three_by_way_of(certificates: &Certificates, name: &str) -> (Member, Member, Member) {
    let relay = Member::start(certificates, name, NodeKind::Relay, None).await;
    let at = relay.node().local_address().unwrap();
    let west = Member::start(certificates, "west/e1", NodeKind::Edge, Some((name, at))).await;
    let east = Member::start(certificates, "east/e1", NodeKind::Edge, Some((name, at))).await;
    (relay, west, east)
}

async fn publish_many(from: &Member, range: std::ops::Range<u32>, asked: Acknowledgement) {
    let mut pending = Vec::new();
    for n in range {
        let publish = message("orders/new", &format!("{n:06}"), asked.clone());
        pending.push(from.node().publish(publish).await.unwrap());
    }
    for receipt in pending {
        receipt.await.unwrap().unwrap();
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("{n:06}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_to_all_goes_both_ways_over_a_relay() {
    both_ways_over("hub/r1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_may_stand_in_the_site_of_an_edge_broker() {
    both_ways_over("east/r1").await;
}

async fn both_ways_over(relay: &str) {
    let certificates = Certificates::new();
    let (mut relay, mut west, mut east) = three_by_way_of(&certificates, relay).await;
    west.wait_registered(&east.site()).await;
    east.wait_registered(&west.site()).await;
    tokio::join!(
        publish_many(&west, 0..500, Acknowledgement::All),
        publish_many(&east, 500..1000, Acknowledgement::Count(1)),
    );
    // The receipts were true: everything is at the other site already.
    assert_eq!(east.texts(&west.site()).await, numbers(0..500));
    assert_eq!(west.texts(&east.site()).await, numbers(500..1000));
    east.wait_equal(&west).await;
    west.wait_equal(&east).await;
    for member in [&mut relay, &mut west, &mut east] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_while_a_node_was_away_arrives_when_it_is_back() {
    let certificates = Certificates::new();
    let (mut relay, mut west, mut east) = three(&certificates).await;
    west.wait_registered(&east.site()).await;
    publish_many(&west, 0..100, Acknowledgement::All).await;
    // Without the relay a local receipt is still given, one from the other site is not.
    relay.stop().await;
    publish_many(&west, 100..200, Acknowledgement::Local).await;
    let short = |publish| Publish { deadline: Duration::from_millis(300), ..publish };
    let publish = short(message("orders/new", "late", Acknowledgement::All));
    let failed = west.node().publish(publish).await.unwrap().await.unwrap();
    assert!(matches!(failed, Err(PublishError::Deadline { .. })), "{failed:?}");
    let publish = short(message("orders/new", "degraded", Acknowledgement::All));
    let publish = Publish { on_deadline: OnDeadline::Degrade, ..publish };
    let degraded = west.node().publish(publish).await.unwrap().await.unwrap().unwrap();
    assert!(degraded.degraded);
    assert_eq!(degraded.missing, vec![east.site()]);
    relay.start_again().await;
    east.wait_equal(&west).await;
    // A site that was away, and an origin that was.
    east.stop().await;
    publish_many(&west, 200..300, Acknowledgement::Local).await;
    west.stop().await;
    west.start_again().await;
    east.start_again().await;
    publish_many(&west, 300..400, Acknowledgement::All).await;
    east.wait_equal(&west).await;
    let mut expected = numbers(0..400);
    expected.extend(["degraded".to_owned(), "late".to_owned()]);
    assert_eq!(east.texts(&west.site()).await, expected);
    for member in [&mut relay, &mut west, &mut east] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_way_messages_reach_the_other_sites_subscribers() {
    let certificates = Certificates::new();
    let (_relay, west, east) = three(&certificates).await;
    west.wait_registered(&east.site()).await;
    let mut receiver = east.node().subscribe_one_way("orders/#".parse().unwrap());
    let deadline = Instant::now() + LONG;
    for text in ["small".to_owned(), "x".repeat(100_000)] {
        loop {
            let publish = Publish { key: None, ..message("orders/quick", &text, Acknowledgement::Local) };
            west.node().publish_one_way(publish).unwrap();
            if let Ok(Some(got)) = tokio::time::timeout(Duration::from_millis(200), receiver.recv()).await {
                assert_eq!((got.origin, got.message.payload.len()), (west.site(), text.len()));
                break;
            }
            assert!(Instant::now() < deadline, "{} {}", west.state(), east.state());
        }
        while tokio::time::timeout(Duration::from_millis(200), receiver.recv()).await.is_ok() {}
    }
    let asked = message("orders/quick", "x", Acknowledgement::All);
    assert!(matches!(west.node().publish_one_way(asked), Err(PublishError::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_to_acknowledge_is_refused_and_nothing_is_stored() {
    let certificates = Certificates::new();
    let relay = Member::start(&certificates, "hub/r1", NodeKind::Relay, None).await;
    let at = relay.node().local_address().unwrap();
    let west = Member::start(&certificates, "west/e1", NodeKind::Edge, Some(("hub/r1", at))).await;
    for asked in [
        Acknowledgement::All,
        Acknowledgement::Count(1),
        Acknowledgement::Sites(vec!["nowhere".parse().unwrap()]),
        Acknowledgement::Sites(vec![]),
    ] {
        let refused = west.publish("x", asked).await;
        assert!(matches!(refused, Err(PublishError::NobodyToAcknowledge(_))), "{refused:?}");
    }
    assert!(west.node().logs().is_empty());
    let refused = relay.publish("x", Acknowledgement::Local).await;
    assert!(matches!(refused, Err(PublishError::Unavailable(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_mid_publish_gives_receipts_that_are_true() {
    let certificates = Certificates::new();
    let mut west = Member::start(&certificates, "west/e1", NodeKind::Edge, None).await;
    let node = west.node().clone();
    let publisher = tokio::spawn(async move {
        let (mut pending, mut refused) = (Vec::new(), 0);
        for n in 0..u32::MAX {
            let text = format!("{n:06}");
            match node.publish(message("orders/new", &text, Acknowledgement::Local)).await {
                Ok(receipt) => pending.push((text, receipt)),
                Err(PublishError::Unavailable(_)) if refused < 10 => refused += 1,
                Err(PublishError::Unavailable(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        drop(node);
        let mut receipted = Vec::new();
        for (text, receipt) in pending {
            match receipt.await.expect("every accepted message is answered") {
                Ok(_) => receipted.push(text),
                Err(error) => assert!(matches!(error, PublishError::Unavailable(_)), "{error}"),
            }
        }
        receipted
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    west.stop().await;
    let receipted = publisher.await.unwrap();
    assert!(!receipted.is_empty());
    west.start_again().await;
    let found = west.texts(&west.site()).await;
    // What was taken was finished, and nothing came in behind the receipts' back.
    assert_eq!(found, receipted);
    west.stop().await;
}

/// What a relay's cache no longer holds is read through from the origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_was_away_longer_than_the_relay_remembers_gets_all() {
    let certificates = Certificates::new();
    let mut relay = Member::new(&certificates, "hub/r1", NodeKind::Relay, None);
    relay.config.cache_bytes_max = Some(256 << 10);
    relay.start_again().await;
    let at = relay.node().local_address().unwrap();
    let west = Member::start(&certificates, "west/e1", NodeKind::Edge, Some(("hub/r1", at))).await;
    let mut east = Member::start(&certificates, "east/e1", NodeKind::Edge, Some(("hub/r1", at))).await;
    let north = Member::start(&certificates, "north/e1", NodeKind::Edge, Some(("hub/r1", at))).await;
    west.wait_registered(&east.site()).await;
    west.wait_registered(&north.site()).await;
    east.stop().await;
    let payload = "x".repeat(64 << 10);
    for n in 0..100 {
        let publish = message("orders/new", &format!("{n:06}{payload}"), Acknowledgement::Sites(vec![north.site()]));
        let publish = Publish { key: Some(format!("{n}").into()), ..publish };
        west.node().publish(publish).await.unwrap().await.unwrap().unwrap();
    }
    // The relay forgets.
    let deadline = Instant::now() + LONG;
    let begins = |node: &Node| node.logs().iter().filter_map(|l| node.info(l)).map(|i| i.begin.offset).sum::<u64>();
    while begins(relay.node()) == 0 {
        assert!(Instant::now() < deadline, "{}", relay.state());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    east.start_again().await;
    east.wait_equal(&west).await;
    north.wait_equal(&west).await;
}

/// A typo in the site's name must not claim the directory for that name.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_does_not_fit_leaves_the_directory_unclaimed() {
    let certificates = Certificates::new();
    let mut member = Member::new(&certificates, "eu/relay", NodeKind::Relay, None);
    let right = member.config.name.clone();
    member.config.name = "us/relay".parse().unwrap();
    let refused = Node::start(member.config.clone()).await.unwrap_err();
    assert!(matches!(refused, StartError::Tls(_)), "{refused}");
    assert!(!member.config.data_dir.join("identity").exists());
    member.config.name = right;
    Node::start(member.config.clone()).await.unwrap().shutdown().await.unwrap();
    assert!(member.config.data_dir.join("identity").exists());
}

/// Of two edge brokers of one site the one whose data is older counts; the other takes nothing until that one is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_edge_broker_of_a_site_takes_messages_once_the_first_is_gone() {
    let certificates = Certificates::new();
    let relay = Member::start(&certificates, "hub/r1", NodeKind::Relay, None).await;
    let at = relay.node().local_address().unwrap();
    let mut first = Member::start(&certificates, "west/e1", NodeKind::Edge, Some(("hub/r1", at))).await;
    let second = Member::start(&certificates, "west/e2", NodeKind::Edge, Some(("hub/r1", at))).await;
    let until = async |refused: bool| {
        let deadline = Instant::now() + LONG;
        loop {
            match second.publish("one", Acknowledgement::Local).await {
                Ok(_) if !refused => return,
                Err(PublishError::Unavailable(why)) if refused => {
                    return assert!(
                        why.starts_with("west/e1 is the edge broker of this site already; stop this node"),
                        "{why}"
                    );
                }
                Ok(_) | Err(PublishError::Unavailable(_)) => {}
                Err(error) => panic!("{error}\n{}", second.state()),
            }
            assert!(Instant::now() < deadline, "{}", second.state());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    until(true).await;
    first.publish("two", Acknowledgement::Local).await.unwrap();
    first.stop().await;
    until(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_share_of_copies_stands_still_until_there_is_room_and_publishers_go_on() {
    let certificates = Certificates::new();
    let relay = Member::start(&certificates, "hub/r1", NodeKind::Relay, None).await;
    let at = relay.node().local_address().unwrap();
    let west = Member::start(&certificates, "west/e1", NodeKind::Edge, Some(("hub/r1", at))).await;
    let mut east = Member::new(&certificates, "east/e1", NodeKind::Edge, Some(("hub/r1", at)));
    east.config.space.copies_bytes_max = Some(1 << 20);
    let kept = TopicConfig { queues: 2, retention_age: Some(Duration::from_secs(4)), ..TopicConfig::default() };
    east.config.topics = vec![("#".parse().unwrap(), kept)];
    east.start_again().await;
    west.wait_registered(&east.site()).await;
    let text = "x".repeat(4_000);
    for _ in 0..500 {
        west.publish(&text, Acknowledgement::Local).await.unwrap();
    }
    let deadline = Instant::now() + LONG * 3;
    let full = |east: &Member| east.node().alarms().iter().any(|alarm| alarm.report.name == "copies-full");
    while !full(&east) {
        assert!(Instant::now() < deadline, "two MB fit into a share of one\n{}", east.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    east.publish("mine", Acknowledgement::Local).await.unwrap();
    assert_eq!(east.node().readiness(), Ok(()));
    let ends = |of: &Member| -> Vec<_> {
        let queues = (1..=2).map(|queue| LogName {
            topic: "orders".parse().unwrap(),
            origin: "west".parse().unwrap(),
            queue: Queue(queue),
        });
        queues.map(|log| of.node().info(&log).map(|info| info.end)).collect()
    };
    let mut said = false;
    while ends(&east) != ends(&west) {
        assert!(Instant::now() < deadline, "the copy does not go on\n{}", east.state());
        let logs = east.node().logs();
        let statuses = logs.iter().filter_map(|log| east.node().copy_status(log));
        said |= statuses.into_iter().any(|status| status.state == "stalled" && status.reason.contains("copies_size"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(said, "the copy's state said why it stood still");
}
