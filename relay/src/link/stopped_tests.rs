//! Whole nodes without their shells, joined by links: what becomes of the others when one's commit log stops.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use seaway_federation_proto::{
    envelope::{Batch, Chain, Codec, Placement},
    ids::{Incarnation, LogName, Place, Queue, Start},
    message::{BodyBuilder, Message},
    replication::{CopyStatus, LinkId, RemoteHeld, ReplicationConfig, Want, WantStart, plain_cost},
    session::{Channel, LANES, Lane, NodeKind, SessionConfig},
    wire::link,
};

use super::{
    command::{LinkCommand, Mailbox},
    driver::LinkDriver,
    hub::{Hub, NodePort},
};
use crate::log::{
    contract::{CommitLog, Entry, Role, Unit},
    memory::{MemoryConfig, MemoryDisk, MemoryLog},
};

const STEP: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Posts(Mutex<VecDeque<LinkCommand>>);

impl Mailbox for Posts {
    fn post(&self, command: LinkCommand) {
        self.0.lock().push_back(command);
    }
}

struct Nobody;

impl NodePort for Nobody {
    fn on_remote_held(&self, _: RemoteHeld) {}
    fn on_registrations_changed(&self) {}
    fn on_one_way(&self, _: Box<link::OneWayBody>) {}
    fn on_log(&self, _: &LogName) {}
}

struct Node {
    name: &'static str,
    kind: NodeKind,
    log: Arc<MemoryLog>,
    hub: Arc<Hub>,
}

impl Node {
    fn new(name: &'static str, kind: NodeKind, now: Duration) -> Self {
        let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig::default());
        let config = ReplicationConfig {
            node: name.parse().unwrap(),
            kind,
            start: start(name),
            mark_interval: Duration::from_millis(500),
            hops: 8,
            replicate: Vec::new(),
            lost_after: Duration::from_secs(3600),
            costs: Vec::new(),
            logs_max: 100,
            wants_max: 100,
            sites_max: 100,
            body_versions: vec![1],
            no_transit: false,
        };
        let hub = Hub::open(config, log.clone(), Arc::new(Nobody), Arc::default(), Arc::new(|| {}), now, 1);
        if kind == NodeKind::Edge {
            let all = Want {
                id: "all".to_owned(),
                pattern: "#".parse().unwrap(),
                origins: Vec::new(),
                start: WantStart::Earliest,
                registers: true,
            };
            hub.put_want(now, all);
        }
        Self { name, kind, log, hub }
    }

    fn end(&self) -> Option<u64> {
        self.log.info(&log_name(), true).map(|info| info.end.offset)
    }
}

fn start(name: &str) -> Start {
    Start { time_us: 1, random: name.bytes().map(u64::from).sum() }
}

fn log_name() -> LogName {
    LogName { topic: "x".parse().unwrap(), origin: "a".parse().unwrap(), queue: Queue(1) }
}

fn at(offset: u64) -> Place {
    Place { incarnation: Incarnation { counter: 1, random: 5 }, offset }
}

/// One end of a link.
struct End {
    node: usize,
    id: LinkId,
    mailbox: Arc<Posts>,
    driver: LinkDriver,
}

struct Net {
    now: Duration,
    nodes: Vec<Node>,
    /// Two after two.
    ends: Vec<End>,
    chain: Chain,
    published: u64,
}

impl Net {
    fn new() -> Self {
        Self {
            now: Duration::from_secs(10),
            nodes: Vec::new(),
            ends: Vec::new(),
            chain: Chain::default(),
            published: 0,
        }
    }

    fn add(&mut self, name: &'static str, kind: NodeKind) -> usize {
        self.nodes.push(Node::new(name, kind, self.now));
        self.nodes.len() - 1
    }

    fn join(&mut self, one: usize, other: usize) {
        for node in [one, other] {
            let Node { name, kind, log, hub } = &self.nodes[node];
            let config = SessionConfig {
                federation: "test".to_owned(),
                node: name.parse().unwrap(),
                kind: *kind,
                start: start(name),
                versions: 1..=1,
                batch_bytes_max: 4096,
                lane_credit: LANES.map(|lane| (lane, 8000)),
                control_queue_bytes_max: 1 << 20,
                probe_interval: Duration::from_secs(1),
                dead_after: Duration::from_secs(10),
                software: "test".to_owned(),
                fetches_max: 100,
                peer_identity: None,
            };
            let mailbox = Arc::new(Posts::default());
            let id = hub.attach(mailbox.clone());
            let driver = LinkDriver::new(id, config, log.clone(), hub.clone(), mailbox.clone(), self.now);
            self.ends.push(End { node, id, mailbox, driver });
        }
    }

    /// One batch of one message at the origin, node 0.
    fn publish(&mut self, count: u64) {
        for _ in 0..count {
            let mut body = BodyBuilder::default();
            body.push(&Message {
                path: "x".parse().unwrap(),
                key: None,
                headers: Vec::new(),
                time_us: 1,
                producer: None,
                payload: vec![7; 1000].into(),
            });
            let placement = Placement {
                log: &log_name(),
                begin: at(self.published),
                first_of_incarnation: self.published == 0,
                previous: None,
                origin_time_us: 1,
                chain_before: self.chain,
            };
            let batch = Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap();
            self.chain = batch.chain_after();
            self.published += 1;
            let unit = Unit { entries: vec![Entry::Append { role: Role::Own, batch }] };
            self.nodes[0].log.submit(unit, Box::new(|done| done.unwrap())).unwrap();
        }
    }

    fn turn_end(&mut self, index: usize) -> bool {
        let (now, mut busy) = (self.now, false);
        let [one, two] = self.ends.chunks_exact_mut(2).nth(index / 2).unwrap() else { unreachable!() };
        let (end, peer) = if index.is_multiple_of(2) { (one, two) } else { (two, one) };
        while let Some(command) = { end.mailbox.0.lock().pop_front() } {
            end.driver.handle_command(now, command);
            busy = true;
        }
        for channel in [Channel::Control, Channel::Lane(Lane::Live), Channel::Lane(Lane::Backlog)] {
            while let Some(transmit) = end.driver.poll_transmit(now, channel) {
                busy = true;
                transmit.chunks.into_iter().for_each(|c| peer.driver.handle_bytes(now, channel, c));
            }
        }
        while let Some(job) = end.driver.poll_read_job() {
            let outcome = job.run(&*self.nodes[end.node].log);
            end.driver.handle_read_done(now, job.number, outcome);
            busy = true;
        }
        if end.driver.poll_timeout().is_some_and(|at| at <= now) {
            end.driver.handle_timeout(now);
        }
        busy
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            for index in 0..self.ends.len() {
                busy |= self.turn_end(index);
            }
            for node in &self.nodes {
                busy |= node.log.units_waiting() > 0 && node.log.stats().poisoned.is_none();
                node.log.sync_now();
                node.hub.pump(self.now, 1);
            }
            if !busy {
                return;
            }
        }
        panic!("the nodes never come to rest");
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        while self.now < until {
            self.now += STEP;
            self.settle();
        }
    }

    fn status(&self, node: usize) -> CopyStatus {
        self.nodes[node].hub.copy_status(self.now, &log_name()).unwrap()
    }

    fn cost(&self, node: usize, site: &str) -> Option<u64> {
        self.nodes[node].hub.sites().into_iter().find(|s| s.site.as_str() == site)?.cost
    }

    /// Batches that a node received so far.
    fn received(&self, node: usize) -> u64 {
        let ends = self.ends.iter().filter(|end| end.node == node);
        ends.map(|end| end.driver.counters().batches_in.load(Ordering::Relaxed)).sum()
    }

    fn assert_all_links_stand(&self) {
        for end in &self.ends {
            assert_eq!(end.driver.closed(), None, "{} {:?}", self.nodes[end.node].name, end.id);
        }
        let ids: BTreeSet<_> = self.ends.iter().map(|end| (end.node, end.id)).collect();
        assert_eq!(ids.len(), self.nodes.iter().map(|node| node.hub.links()).sum::<usize>());
    }
}

/// A relay that stops goes on serving its cache, and reads the rest through, for those who have no other way.
#[test]
fn a_stopped_relay_serves_what_it_holds_and_reads_the_rest_through() {
    let mut net = Net::new();
    let (a, r, b) =
        (net.add("a/edge", NodeKind::Edge), net.add("r/relay", NodeKind::Relay), net.add("b/edge", NodeKind::Edge));
    net.join(a, r);
    net.join(b, r);
    net.run(Duration::from_secs(3));
    net.publish(20);
    net.run(Duration::from_secs(3));
    assert_eq!((net.nodes[r].end(), net.nodes[b].end()), (Some(20), Some(20)));
    assert_eq!(net.cost(b, "a"), Some(2));

    net.nodes[r].log.fail_next_write("the disk is on fire");
    net.publish(20);
    net.run(Duration::from_secs(5));
    assert_eq!((net.nodes[r].end(), net.nodes[b].end()), (Some(20), Some(40)));
    net.assert_all_links_stand();
    let status = net.status(r);
    assert_eq!(status.state, "stalled");
    assert!(status.reason.starts_with("the commit log stopped: the disk is on fire"), "{}", status.reason);
    assert!(net.cost(b, "a") > Some(2), "a way through it costs more than any other");
    assert_eq!(net.cost(b, "a").map(plain_cost).map(|(_, through)| through), Some(true));

    // A site that comes only now gets all: what the relay holds from there, the rest from the origin.
    let before = net.received(r);
    let c = net.add("c/edge", NodeKind::Edge);
    net.join(c, r);
    net.run(Duration::from_secs(5));
    assert_eq!(net.nodes[c].end(), Some(40));
    assert!(net.received(r) - before <= 20, "what the relay holds was fetched anew");
    net.publish(20);
    net.run(Duration::from_secs(5));
    assert_eq!((net.nodes[b].end(), net.nodes[c].end(), net.nodes[r].end()), (Some(60), Some(60), Some(20)));
    assert_eq!(net.status(c).state, "live");
    assert!(["b", "c"].iter().all(|site| net.nodes[a].hub.site_holds(&site.parse().unwrap(), &log_name(), at(59))));
    net.assert_all_links_stand();
}

/// An edge broker that stops fetches no more, says so, and is not counted for what is not durable there.
#[test]
fn a_stopped_site_keeps_its_links_and_states_no_more_than_is_durable() {
    let mut net = Net::new();
    let (a, b) = (net.add("a/edge", NodeKind::Edge), net.add("b/edge", NodeKind::Edge));
    net.join(a, b);
    net.publish(5);
    net.run(Duration::from_secs(3));
    let holds = |net: &Net, offset| net.nodes[a].hub.site_holds(&"b".parse().unwrap(), &log_name(), at(offset));
    assert!(holds(&net, 4));
    assert_eq!(net.status(b).state, "live");
    net.nodes[b].log.fail_next_write("the disk is on fire");
    net.publish(30);
    net.run(Duration::from_secs(3));
    let received = net.received(b);
    net.publish(30);
    net.run(Duration::from_secs(30));
    net.assert_all_links_stand();
    assert_eq!(net.nodes[b].end(), Some(5));
    assert_eq!(net.received(b), received, "it fetches what it cannot store");
    assert!(holds(&net, 4) && !holds(&net, 5));
    assert_eq!(net.status(b).state, "stalled");
}
