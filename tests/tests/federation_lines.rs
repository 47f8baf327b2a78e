//! Three nodes in one process, two edges with a relay between, over lossy lines that go down for a while.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use seaway_federation_proto::{
    copies::LogInfo,
    ids::{LogName, NodeName, Queue},
    message::decode_messages,
    replication::{Want, WantStart},
    session::NodeKind,
};
use seaway_relay::{
    ca::{AUTHORITY_LIFETIME, Authority, CERTIFICATE_LIFETIME, Holder, Request},
    log::{
        contract::{Line, Read},
        memory::{MemoryConfig, MemoryDisk, MemoryLog},
    },
    node::{Acknowledgement, LinkStatus, LinkTls, Node, NodeConfig, OnDeadline, Publish, PublishError, TopicConfig},
    transport::identity::Identity,
};
use seaway_tests::proxy::{Bursts, Conditions, Proxy, Rate};

const LONG: Duration = Duration::from_secs(90);
/// Published at least by each origin; they go on until both lines were down and are up again.
const MESSAGES: usize = 400;

struct Federation {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Federation {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), "acme", AUTHORITY_LIFETIME).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        Self { dir, authority }
    }

    async fn node(&self, name: &str, kind: NodeKind, dial: Option<(&str, &Proxy)>) -> Node {
        let name: NodeName = name.parse().unwrap();
        let file = name.to_string().replace('/', "-");
        let holder = Holder::Member(Identity::node("acme", name.clone()).unwrap());
        let request = Request { holder, hosts: Vec::new(), lifetime: CERTIFICATE_LIFETIME };
        let issued = self.authority.issue(&request, self.dir.path(), &file).unwrap();
        let all = Want {
            id: "all".into(),
            pattern: "#".parse().unwrap(),
            origins: Vec::new(),
            start: WantStart::Earliest,
            registers: true,
        };
        let config = NodeConfig {
            auto_create: seaway_relay::node::AutoCreate::Local,
            accept_message_bytes_max: 16 << 20,
            federation: "acme".into(),
            name,
            kind,
            data_dir: self.dir.path().join(&file),
            listen: (kind == NodeKind::Relay).then(|| "127.0.0.1:0".parse().unwrap()),
            dial: dial.iter().map(|(peer, proxy)| (peer.parse().unwrap(), proxy.address().to_string())).collect(),
            tls: LinkTls { cert: issued.cert, key: issued.key, ca: self.dir.path().join("ca.pem") },
            wants: if kind == NodeKind::Edge { vec![all] } else { Vec::new() },
            replicate: Vec::new(),
            topics: vec![("#".parse().unwrap(), TopicConfig::default())],
            segment_bytes: 64 << 20,
            disk_reserve_bytes: 0,
            space: seaway_relay::node::SpaceConfig::default(),
            cache_bytes_max: Some(64 << 20),
            lane_credit_bytes: 8 << 20,
            probe_interval: Duration::from_millis(300),
            dead_after: Duration::from_secs(2),
            mark_interval: Duration::from_millis(200),
            costs: Vec::new(),
            tail_bytes_max: 64 << 20,
            hold_back: seaway_relay::node::HoldBackConfig::default(),
            limits: seaway_relay::node::limits::LimitsConfig::default(),
        };
        let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig::default());
        let weak = Arc::downgrade(&log);
        // In place of a disk: what was submitted is durable a millisecond later.
        std::thread::spawn(move || {
            while let Some(log) = weak.upgrade() {
                log.sync_now();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Node::start_on(config, log).await.unwrap()
    }
}

fn message(text: &str) -> Publish {
    Publish {
        path: "readings/north".parse().unwrap(),
        key: None,
        headers: Vec::new(),
        payload: Bytes::copy_from_slice(text.as_bytes()),
        producer: None,
        acknowledgement: Acknowledgement::All,
        deadline: LONG,
        on_deadline: OnDeadline::Fail,
    }
}

/// Publishes until `enough`, waiting for the other site's statement for each, pipelined; answers how many they were.
async fn publish_all(node: &Node, from: &str, enough: &AtomicBool) -> usize {
    let mut receipts = Vec::new();
    let until = Instant::now() + LONG;
    for number in 0.. {
        if number >= MESSAGES && enough.load(Ordering::SeqCst) {
            break;
        }
        let receipt = loop {
            match node.publish(message(&format!("{from} {number}"))).await {
                Ok(receipt) => break receipt,
                // The other site has not registered yet.
                Err(PublishError::NobodyToAcknowledge(_)) if Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        receipts.push(receipt);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut count = 0;
    for receipt in receipts {
        let receipt = receipt.await.unwrap().unwrap();
        assert_eq!(receipt.sites.len(), 1, "{receipt:?}");
        count += 1;
    }
    count
}

/// Waits until the node's only link is as wanted.
async fn until_link(node: &Node, wanted: impl Fn(&LinkStatus) -> bool) {
    while !node.links().iter().any(&wanted) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn contents(node: &Node, log: &LogName) -> Vec<String> {
    let info: LogInfo = node.info(log).unwrap();
    let (mut at, mut texts) = (info.begin, Vec::new());
    while let Read::Batches { batches, next } = node.read(log, at, Line::Main, 1 << 20).await.unwrap() {
        for batch in &batches {
            let messages = decode_messages(batch, 1 << 20).unwrap();
            texts.extend(messages.iter().map(|message| String::from_utf8_lossy(&message.payload).into_owned()));
        }
        at = next;
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_once_and_in_order_over_lines_that_lose_and_break() {
    let federation = Federation::new();
    let line = Conditions {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(5),
        loss: 0.02,
        bursts: Some(Bursts { begin: 0.002, end: 0.05, loss: 0.7 }),
        reorder: 0.02,
        reorder_by: Duration::from_millis(10),
        mtu: Some(1472),
        ..Conditions::default()
    };
    let relay = federation.node("middle/relay", NodeKind::Relay, None).await;
    let at_relay = relay.local_address().unwrap();
    let west = Proxy::start(at_relay, 1, &line).unwrap();
    let east = Proxy::start(at_relay, 2, &line).unwrap();
    let berlin = federation.node("berlin/edge", NodeKind::Edge, Some(("middle/relay", &west))).await;
    let tokyo = federation.node("tokyo/edge", NodeKind::Edge, Some(("middle/relay", &east))).await;

    let enough = AtomicBool::new(false);
    let breaking = async {
        // In both directions, then in one only; each for as long as the node takes to notice, and to come back.
        for (node, proxy, both) in [(&berlin, &west, true), (&tokyo, &east, false)] {
            until_link(node, |link| link.batches_in > 0 && link.batches_out > 0).await;
            let hole = Conditions { black_hole: true, ..line.clone() };
            if both {
                proxy.set(&hole);
            } else {
                proxy.set_down(hole);
            }
            until_link(node, |link| link.up_since_us.is_none()).await;
            proxy.set(&line);
            until_link(node, |link| link.reconnects >= 1 && link.up_since_us.is_some()).await;
        }
        enough.store(true, Ordering::SeqCst);
    };
    let begun = Instant::now();
    let (from_berlin, from_tokyo) = (publish_all(&berlin, "berlin", &enough), publish_all(&tokyo, "tokyo", &enough));
    let work = async { tokio::join!(from_berlin, from_tokyo, breaking) };
    let Ok((by_berlin, by_tokyo, ())) = tokio::time::timeout(LONG, work).await else {
        for node in [&relay, &berlin, &tokyo] {
            println!("{:?}\n{:?}\n{:?}", node.config().name, node.links(), node.alarms());
        }
        panic!("not finished in time");
    };
    println!(
        "{by_berlin} and {by_tokyo} messages after {:?}; {:?} {:?}",
        begun.elapsed(),
        west.counts(),
        east.counts()
    );

    for (origin, other, count) in [(&berlin, &tokyo, by_berlin), (&tokyo, &berlin, by_tokyo)] {
        let site = origin.config().name.site.clone();
        let log = LogName { topic: "readings".parse().unwrap(), origin: site.clone(), queue: Queue(1) };
        let expected: Vec<_> = (0..count).map(|number| format!("{site} {number}")).collect();
        assert_eq!(contents(origin, &log).await, expected);
        assert_eq!(contents(other, &log).await, expected);
    }
    let reconnects: u64 = [&berlin, &tokyo].iter().flat_map(|node| node.links()).map(|link| link.reconnects).sum();
    assert!(reconnects >= 2, "the lines were down long enough to be noticed");
    for node in [Arc::new(berlin), Arc::new(tokyo), Arc::new(relay)] {
        node.shutdown().await.unwrap();
    }
}

/// A new site asks for a history that takes its slow line minutes. What others send each other by way of the same relay does not
/// wait for it: all of that has arrived while most of the history has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_for_one_site_holds_up_nobody_elses_live_traffic() {
    const LIVE: usize = 40;
    let federation = Federation::new();
    let relay = federation.node("middle/relay", NodeKind::Relay, None).await;
    let at_relay = relay.local_address().unwrap();
    let fast = Conditions { delay: Duration::from_millis(5), ..Conditions::default() };
    let slow = Conditions {
        rate: Some(Rate { bits_per_second: 8 * (64 << 10), queue_bytes: 32 << 10 }),
        delay: Duration::from_millis(50),
        ..Conditions::default()
    };
    let proxies: Vec<Proxy> =
        [&fast, &fast, &slow].iter().zip(1..).map(|(line, seed)| Proxy::start(at_relay, seed, line).unwrap()).collect();
    let dial = |number: usize| Some(("middle/relay", &proxies[number]));
    let berlin = federation.node("berlin/edge", NodeKind::Edge, dial(0)).await;
    let tokyo = federation.node("tokyo/edge", NodeKind::Edge, dial(1)).await;

    // 16 MiB that do not compress: more than four minutes of the slow line.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut receipts = Vec::new();
    for _ in 0..256 {
        let mut payload = Vec::with_capacity(64 << 10);
        while payload.len() < 64 << 10 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            payload.extend_from_slice(&random.to_le_bytes());
        }
        let history = Publish {
            path: "archive/all".parse().unwrap(),
            payload: payload.into(),
            acknowledgement: Acknowledgement::Local,
            ..message("")
        };
        receipts.push(berlin.publish(history).await.unwrap());
    }
    for receipt in receipts {
        receipt.await.unwrap().unwrap();
    }
    let osaka = federation.node("osaka/edge", NodeKind::Edge, dial(2)).await;
    let history = LogName { topic: "archive".parse().unwrap(), origin: "berlin".parse().unwrap(), queue: Queue(1) };
    let held = |node: &Node| node.info(&history).map_or(0, |info| info.messages);
    let until = Instant::now() + LONG;
    while held(&osaka) == 0 {
        assert!(Instant::now() < until, "nothing of the history comes: {:?}", osaka.links());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let to_tokyo = || Acknowledgement::Sites(vec!["tokyo".parse().unwrap()]);
    for number in 0..LIVE {
        let receipt = loop {
            let live = Publish { acknowledgement: to_tokyo(), ..message(&format!("live {number}")) };
            match berlin.publish(live).await {
                Ok(receipt) => break receipt,
                Err(PublishError::NobodyToAcknowledge(_)) if Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        receipt.await.unwrap().unwrap();
    }
    let (here, there) = (held(&berlin), held(&osaka));
    println!("all live messages had arrived when {there} of {here} of the history had");
    assert!(there * 4 < here, "the live traffic waited for the history");
    let log = LogName { topic: "readings".parse().unwrap(), ..history.clone() };
    let live: Vec<_> = (0..LIVE).map(|number| format!("live {number}")).collect();
    assert_eq!(contents(&tokyo, &log).await, live);
    for node in [berlin, tokyo, osaka, relay] {
        node.shutdown().await.unwrap();
    }
}
