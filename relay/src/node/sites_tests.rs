//! Removing a site: what becomes durable, and which sites there are to remove.

use seaway_federation_proto::ids::{LogName, Queue};

use super::*;
use crate::{
    log::{
        contract::{CommitLog as _, Entry, Table, Unit},
        memory::{MemoryConfig, MemoryDisk, MemoryLog, Survive},
    },
    node::{Node, publish::tests::config},
};

async fn started(log: &std::sync::Arc<MemoryLog>) -> Node {
    let mut start = Box::pin(Node::start_on(config(), log.clone()));
    loop {
        tokio::select! {
            node = &mut start => return node.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(1)) => log.sync_now(),
        }
    }
}

/// A log of another site, so that the site is known.
fn known(log: &MemoryLog, site: &str) {
    let name = LogName { topic: "t".parse().unwrap(), origin: site.parse().unwrap(), queue: Queue(1) };
    let at = Place { incarnation: seaway_federation_proto::ids::Incarnation { counter: 1, random: 1 }, offset: 0 };
    log.submit(Unit { entries: vec![Entry::BeginCopy { log: name, at, chain: None }] }, Box::new(|_| {})).unwrap();
    log.sync_now();
}

#[tokio::test]
async fn a_removal_is_one_unit_and_answered_when_it_is_durable() {
    let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig::default());
    known(&log, "eu");
    let node = started(&log).await;
    let eu: Site = "eu".parse().unwrap();
    assert!(node.remove_site(&"nowhere".parse().unwrap()).await.is_err());
    log.sync_now();
    let mut removing = Box::pin(node.remove_site(&eu));
    let waited = tokio::time::timeout(Duration::from_millis(50), &mut removing).await;
    assert!(waited.is_err(), "nothing is durable yet");
    let kept = |disk: MemoryDisk| {
        let log = MemoryLog::open(disk, MemoryConfig::default());
        !log.scan(Table::Removed, &[]).is_empty()
    };
    assert!(!kept(log.disk_copy()));
    let done = loop {
        tokio::select! {
            done = &mut removing => break done,
            () = tokio::time::sleep(Duration::from_millis(1)) => log.sync_now(),
        }
    };
    assert_eq!(done, Ok(()));
    assert!(kept(log.crash(Survive::Nothing)), "it was promised");
}
