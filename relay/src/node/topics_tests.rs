//! Commands about topics: what they set is stored with what they do, or not at all.

use seaway_federation_proto::ids::Incarnation;
use tokio::sync::oneshot;

use super::*;
use crate::{
    log::memory::{MemoryConfig, MemoryDisk, MemoryLog},
    node::{
        Acknowledgement, OnDeadline, Publish,
        origin::{OWN_QUEUES_MAX, Stored as StoredAt},
        publish::tests::config,
        receipts::Need,
    },
};

fn memory() -> Arc<MemoryLog> {
    MemoryLog::open(MemoryDisk::default(), MemoryConfig { auto: true, ..MemoryConfig::default() })
}

fn topic(name: &str) -> Topic {
    name.parse().unwrap()
}

async fn publish(node: &Node, path: &str) -> Result<(), PublishError> {
    let publish = Publish {
        path: path.parse().unwrap(),
        key: None,
        headers: vec![],
        payload: Bytes::from_static(b"x"),
        producer: None,
        acknowledgement: Acknowledgement::Local,
        deadline: Duration::from_secs(60),
        on_deadline: OnDeadline::Fail,
    };
    node.publish(publish).await?.await.unwrap().map(drop)
}

fn queues(queues: u16) -> TopicChange {
    TopicChange { queues: Set::To(queues), ..TopicChange::default() }
}

#[tokio::test]
async fn a_refused_command_sets_nothing_and_takes_no_topic_out_of_service() {
    let log = memory();
    let node = Node::start_on(config(), log.clone()).await.unwrap();
    let most = limits::QUEUES_MAX;
    publish(&node, "t").await.unwrap();
    for n in 0..OWN_QUEUES_MAX / usize::from(most) {
        node.create_topic(&topic(&format!("full{n}")), queues(most)).await.unwrap();
    }
    let refused = node.set_topic(&topic("t"), queues(most)).await;
    assert!(matches!(&refused, Err(PublishError::Unavailable(why)) if why.contains("queues")), "{refused:?}");
    publish(&node, "t").await.unwrap();
    let refused = node.create_topic(&topic("new"), queues(most)).await;
    assert!(matches!(&refused, Err(PublishError::Unavailable(why)) if why.contains("queues")), "{refused:?}");
    publish(&node, "new").await.unwrap();
    for name in ["t", "new"] {
        assert_eq!(node.topic_settings(&topic(name)).overrides, Overrides::default(), "{name}");
        assert!(log.get(Table::Overrides, name.as_bytes()).is_none(), "{name}");
    }
    // What is taken holds, and is stored.
    node.set_topic(&topic("t"), queues(2)).await.unwrap();
    let retention = TopicChange { retention_bytes: Set::To(Some(1 << 30)), ..TopicChange::default() };
    node.set_topic(&topic("t"), retention).await.unwrap();
    let set = Overrides { queues: Some(2), retention_bytes: Some(Some(1 << 30)), ..Overrides::default() };
    assert_eq!(node.topic_settings(&topic("t")).overrides, set);
    assert_eq!(decode(&log.get(Table::Overrides, b"t").unwrap()), Some(set));
    publish(&node, "t").await.unwrap();
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_deletion_takes_what_was_set_with_it_and_ends_the_waits() {
    let log = memory();
    let node = Node::start_on(config(), log.clone()).await.unwrap();
    node.create_topic(&topic("t"), queues(3)).await.unwrap();
    publish(&node, "t").await.unwrap();
    let (sender, waited) = oneshot::channel();
    let stored = StoredAt {
        log: LogName { topic: topic("t"), origin: "home".parse().unwrap(), queue: Queue(1) },
        place: Place { incarnation: Incarnation { counter: 1, random: 1 }, offset: 0 },
        repeated: false,
    };
    let sites: Arc<[Site]> = ["eu".parse::<Site>().unwrap()].into();
    let need = Need { sites, count: 1, all: true };
    let answer = Box::new(move |result| _ = sender.send(result));
    node.inner.receipts.wait(stored, need, Duration::from_secs(100_000), OnDeadline::Fail, answer);
    // Nothing more is taken after the unit of the deletion: what a second one would do is never done.
    node.delete_topic(&topic("t")).await.unwrap();
    assert_eq!(waited.await.unwrap(), Err(PublishError::Deleted(topic("t"))));
    assert!(log.get(Table::Overrides, b"t").is_none());
    assert_eq!(node.topic_settings(&topic("t")).overrides, Overrides::default());
    node.create_topic(&topic("t"), TopicChange::default()).await.unwrap();
    let control = node.topic_settings(&topic("t")).own.unwrap();
    assert_eq!(control.settings.queues, config_queues(&node), "its former life's settings are gone");
    node.shutdown().await.unwrap();
}

fn config_queues(node: &Node) -> u16 {
    node.topic_config(&topic("t")).queues
}

/// At no moment does the disk have the one without the other.
#[tokio::test]
async fn a_deletion_and_the_end_of_its_settings_are_one_unit() {
    let log = memory();
    let node = Node::start_on(config(), log.clone()).await.unwrap();
    node.create_topic(&topic("t"), queues(3)).await.unwrap();
    node.shutdown().await.unwrap();
    let log = MemoryLog::open(log.disk_copy(), MemoryConfig::default());
    let mut start = Box::pin(Node::start_on(config(), log.clone()));
    let node = loop {
        tokio::select! {
            node = &mut start => break node.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(1)) => log.sync_now(),
        }
    };
    let key = seaway_federation_proto::replication::tombstone_key(&"home".parse().unwrap(), &topic("t"));
    let name = topic("t");
    let mut deleting = Box::pin(node.delete_topic(&name));
    let deleted = loop {
        tokio::select! {
            deleted = &mut deleting => break deleted,
            () = tokio::time::sleep(Duration::from_millis(1)) => log.sync_units(1),
        }
        let gone = log.get(Table::Deleted, &key).is_some();
        assert_eq!(gone, log.get(Table::Overrides, b"t").is_none());
    };
    assert_eq!(deleted, Ok(()));
    assert!(log.get(Table::Overrides, b"t").is_none());
}
