//! The same door over a real node on disk: what the engine in memory cannot show.

use std::time::Duration;

use seaway_federation_proto::session::NodeKind;
use seaway_relay::{
    ca::{Authority, Holder, Request as CertificateRequest},
    node::{LinkTls, Node, NodeConfig, TopicConfig},
    transport::identity::Identity,
};

use crate::{
    api::{Mode, PublishRequest, subscribe_reply::Kind, subscribe_request::Open},
    testing::*,
};

fn config(dir: &std::path::Path) -> NodeConfig {
    let name: seaway_federation_proto::ids::NodeName = "east/edge-1".parse().unwrap();
    let lifetime = Duration::from_secs(3600);
    Authority::create(dir, "test", lifetime * 2).unwrap();
    let holder = Holder::Member(Identity::node("test", name.clone()).unwrap());
    let request = CertificateRequest { holder, hosts: vec!["localhost".into()], lifetime };
    let issued = Authority::open(dir).unwrap().issue(&request, dir, "edge").unwrap();
    NodeConfig {
        federation: "test".into(),
        name,
        kind: NodeKind::Edge,
        data_dir: dir.join("data"),
        listen: None,
        dial: vec![],
        tls: LinkTls { cert: issued.cert, key: issued.key, ca: dir.join("ca.pem") },
        wants: vec![],
        replicate: vec![],
        topics: vec![("#".parse().unwrap(), TopicConfig { queues: 1, ..TopicConfig::default() })],
        segment_bytes: 64 << 20,
        disk_reserve_bytes: 0,
        cache_bytes_max: None,
        lane_credit_bytes: 32 << 20,
        probe_interval: Duration::from_millis(300),
        dead_after: Duration::from_secs(10),
        mark_interval: Duration::from_millis(200),
        costs: vec![],
        tail_bytes_max: 64 << 20,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_and_its_messages_survive_a_restart_of_a_node_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let node = Node::start(config.clone()).await.unwrap();
    let harness = Harness::start(&node).await;
    harness.publish("orders/a", numbered(0..20)).await;
    let mut first = harness.subscribe(member("g", "orders/#")).await.unwrap();
    let messages = first.messages(20).await;
    assert_eq!(payloads(&messages), numbered(0..20));
    assert_eq!(first.confirm(1, ids(&messages[7..8]), true).await.refused, "");
    let mut plain = harness.subscribe(Open { one_way: true, ..open("orders/#") }).await.unwrap();
    assert_eq!(payloads(&plain.messages(20).await), numbered(0..20));
    let one_way = PublishRequest { mode: Mode::OneWay.into(), ..request("orders/a", "quick") };
    soon("handing over", harness.messages().await.publish(one_way)).await.unwrap();
    assert_eq!(payloads(&plain.messages(1).await), ["quick"]);
    harness.stop().await;
    node.shutdown().await.unwrap();
    drop(node);

    let node = soon("the second start", async {
        loop {
            match Node::start(config.clone()).await {
                Ok(node) => return node,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await, // the lock of the first, for a moment
            }
        }
    })
    .await;
    let harness = Harness::start(&node).await;
    harness.publish("orders/a", numbered(20..22)).await;
    let mut second = harness.subscribe(member("g", "orders/#")).await.unwrap();
    assert_eq!(payloads(&second.messages(14).await), numbered(8..22));
    let mut all = harness.subscribe(Open { until_end: true, ..open("orders/a") }).await.unwrap();
    assert_eq!(payloads(&all.messages(22).await), numbered(0..22));
    assert!(matches!(all.next().await.unwrap(), Some(Kind::AtEnd(_))));
    harness.stop().await;
    node.shutdown().await.unwrap();
}
