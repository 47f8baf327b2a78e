//! The same door over a real node on disk: what the engine in memory cannot show.

use std::time::Duration;

use seaway_federation_proto::session::NodeKind;
use seaway_relay::{
    ca::{Authority, Holder, Request as CertificateRequest},
    node::{LinkTls, Node, NodeConfig, TopicConfig},
    transport::identity::Identity,
};

use crate::{
    admin::{Probed, Watched},
    api::{self, Mode, PublishRequest, subscribe_reply::Kind, subscribe_request::Open},
    door::{Door, DoorConfig},
    metrics::exposition::tests::read,
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
        auto_create: seaway_relay::node::AutoCreate::Local,
        accept_message_bytes_max: 16 << 20,
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
        space: seaway_relay::node::SpaceConfig::default(),
        cache_bytes_max: None,
        lane_credit_bytes: 32 << 20,
        probe_interval: Duration::from_millis(300),
        dead_after: Duration::from_secs(10),
        mark_interval: Duration::from_millis(200),
        costs: vec![],
        tail_bytes_max: 64 << 20,
        hold_back: seaway_relay::node::HoldBackConfig::default(),
        limits: seaway_relay::node::limits::LimitsConfig::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_a_node_at_work_are_right_and_read_back_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let watched = Watched::default();
    assert!(watched.live().is_ok() && watched.started().is_err() && watched.ready().is_err());
    assert!(read(&watched.metrics().await).contains_key("seaway_process_resident_memory_bytes"));
    let node = Node::start(config(dir.path())).await.unwrap();
    let mut door = DoorConfig::new(([127, 0, 0, 1], 0).into());
    door.auth.anonymous = Some(all_rights());
    let door = Door::open(door, node.clone()).await.unwrap();
    watched.is_up(&node, Some(door.handle()));
    let harness = Harness::serve(door);
    harness.publish("orders/a", numbered(0..20)).await;
    let mut first = harness.subscribe(member("g", "orders/#")).await.unwrap();
    first.messages(20).await;
    let series = read(&watched.metrics().await);
    let is = |name: &str, value: f64| assert_eq!(series.get(name), Some(&value), "{name} in {series:#?}");
    is("seaway_ready", 1.0);
    is("seaway_node_info{federation=\"test\",site=\"east\",node=\"edge-1\",kind=\"edge\"}", 1.0);
    is("seaway_topic_published_messages_total{topic=\"orders\"}", 20.0);
    is("seaway_topic_published_bytes_total{topic=\"orders\"}", 190.0);
    is("seaway_topic_delivered_messages_total{topic=\"orders\"}", 20.0);
    is("seaway_topic_stored_messages{topic=\"orders\",origin=\"east\"}", 20.0);
    is("seaway_copies{state=\"own\"}", 1.0);
    is("seaway_group_members{group=\"g\"}", 1.0);
    is("seaway_group_unconfirmed_messages{group=\"g\"}", 20.0);
    is("seaway_door_publishes_total{result=\"receipt\"}", 20.0);
    is("seaway_log_poisoned", 0.0);
    assert!(series["seaway_log_syncs_total"] >= 1.0 && series["seaway_disk_free_bytes"] > 0.0);
    assert!(series["seaway_process_cpu_seconds_total"] > 0.0 && series["seaway_uptime_seconds"] > 0.0);
    assert!(watched.live().is_ok() && watched.started().is_ok() && watched.ready().is_ok());
    harness.stop().await;
    assert_eq!(watched.ready(), Err("the node is stopping".to_owned()));
    node.shutdown().await.unwrap();
    assert!(watched.live().is_ok(), "who stops is not stuck");
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

#[tokio::test(flavor = "multi_thread")]
async fn nobody_trims_the_audit_trail() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(config(dir.path())).await.unwrap();
    let mut door = DoorConfig::new(([127, 0, 0, 1], 0).into());
    door.auth.token_file = Some(super::rights::token_file(super::rights::TOKENS));
    let harness = Harness::serve(Door::open(door, node.clone()).await.unwrap());
    let mut admin = harness.admin().await;
    let gone = api::RevokeTokenRequest { name: "gone".into() };
    admin.revoke_token(with_token(gone, "admin-admin-admin")).await.unwrap_err();
    let held = || node.logs().into_iter().find(|log| log.topic.as_str() == "_audit" && log.queue.0 > 0).unwrap();
    let begin = node.info(&held()).unwrap().begin;
    for to in [api::trim_topic_request::To::KeepSize(0), api::trim_topic_request::To::BeforeUs(u64::MAX)] {
        let trim = api::TrimTopicRequest { topic: "_audit".into(), origin: String::new(), to: Some(to) };
        let status = admin.trim_topic(with_token(trim, "admin-admin-admin")).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{}", status.message());
    }
    assert_eq!(node.info(&held()).unwrap().begin, begin);
    harness.stop().await;
    node.shutdown().await.unwrap();
}
