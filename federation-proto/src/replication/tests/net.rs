//! Several machines joined by ideal links, each with a toy log in memory that keeps the rules of copies. Sessions are
//! played by queues; every choice comes from one seed.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::super::*;
use crate::{
    control::Control,
    copies::{AppendRefusal, Copies, Facts, Located, OnLine, TakenAsGiven},
    envelope::{Batch, Chain, Codec, Placement, SealedBody, Tags},
    ids::{Incarnation, Queue, Topic},
    message::{BodyBuilder, Message, decode_messages},
    session::{FetchLine, Lane, PeerInfo},
    wire::link::FetchEnd,
};

/// Room that every asker grants, bytes: small, so that allowances matter.
const ROOM: u64 = 600;

#[derive(Debug)]
enum Item {
    Control(Box<link::control::Kind>),
    Fetch(FetchOrder),
    More(FetchNumber, u64),
    Stop(FetchNumber),
    Batch(FetchNumber, Batch),
    Ended(FetchEnded),
    OneWay(Box<link::OneWay>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Paused,
    Serving,
    Passed,
}

#[derive(Debug)]
struct Serving {
    order: FetchOrder,
    next: Place,
    mode: Mode,
    sent: u64,
    passed: u64,
    allowance: u64,
}

#[derive(Debug)]
struct End {
    node: usize,
    id: LinkId,
    serving: BTreeMap<FetchNumber, Serving>,
    fetching: BTreeMap<FetchNumber, FetchOrder>,
    inbox: VecDeque<Item>,
}

#[derive(Debug)]
struct TestLink {
    ends: [End; 2],
}

#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) copies: Copies,
    pub(super) batches: BTreeMap<LogName, BTreeMap<Place, Batch>>,
    pub(super) states: BTreeMap<(StateTable, Bytes), Bytes>,
}

#[derive(Debug)]
pub(super) struct TestNode {
    pub(super) machine: Replication,
    pub(super) config: ReplicationConfig,
    pub(super) disk: Disk,
    pub(super) wants: Vec<Want>,
    pub(super) reports: Vec<Report>,
    pub(super) over: Vec<(&'static str, String)>,
    pub(super) one_way: Vec<link::OneWayBody>,
    /// Its disk does not find times.
    pub(super) unreadable: bool,
    opened: BTreeMap<LogName, Incarnation>,
    passes: BTreeMap<(LinkId, FetchNumber), (LinkId, FetchNumber)>,
    pub(super) passed_batches: u64,
}

pub(super) struct Net {
    pub(super) seed: u64,
    pub(super) now: Duration,
    rng: SmallRng,
    pub(super) nodes: Vec<TestNode>,
    links: BTreeMap<(usize, usize), TestLink>,
    next_link: u64,
    pub(super) repeats: u64,
    pub(super) refusals: Vec<AppendRefusal>,
    pub(super) control_messages: u64,
    /// Lanes of the fetches begun, in order.
    pub(super) started: Vec<Lane>,
    /// Links that a node asked to close because the peer's site was removed.
    pub(super) closing: Vec<LinkId>,
    /// Most fetches that a node lets a neighbour have open.
    pub(super) fetches_max: usize,
    /// What does not arrive at a node although its links stand.
    pub(super) loses: Option<(usize, Loses)>,
    /// What nodes understand beyond their version, from now on.
    pub(super) features: Vec<u32>,
    /// By how much the clocks of nodes that start now are ahead.
    pub(super) clock_ahead: Duration,
    /// Of nodes that are added or restarted from now on.
    pub(super) lost_after: Duration,
}

/// What is lost on the way to a node: batches, so many of the next marks that name logs, and answers to what it asks about marks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Loses {
    pub(super) batches: bool,
    pub(super) marks: usize,
    pub(super) told: bool,
}

impl Loses {
    fn takes(&mut self, item: &Item) -> bool {
        use link::control::Kind;
        match item {
            Item::Batch(..) => self.batches,
            Item::Control(message) => match &**message {
                Kind::MarksTold(_) => self.told,
                Kind::Carried(carried) => {
                    let body = link::CarriedBody::decode(carried.body.clone()).unwrap();
                    let names =
                        matches!(body.kind, Some(link::carried_body::Kind::Mark(mark)) if !mark.logs.is_empty());
                    let lost = names && self.marks > 0;
                    self.marks -= usize::from(lost);
                    lost
                }
                _ => false,
            },
            _ => false,
        }
    }
}

pub(super) fn log(topic: &str, origin: &str, queue: u16) -> LogName {
    LogName { topic: topic.parse().unwrap(), origin: origin.parse().unwrap(), queue: Queue(queue) }
}

pub(super) fn want(id: &str, pattern: &str, start: WantStart) -> Want {
    Want { id: id.to_owned(), pattern: pattern.parse().unwrap(), origins: Vec::new(), start, registers: true }
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        eprintln!("seed {seed}");
        Self {
            seed,
            now: Duration::from_secs(1),
            rng: SmallRng::seed_from_u64(seed),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            next_link: 0,
            repeats: 0,
            refusals: Vec::new(),
            control_messages: 0,
            started: Vec::new(),
            closing: Vec::new(),
            fetches_max: 1000,
            loses: None,
            features: vec![crate::session::FEATURE_MARKS_TOLD],
            clock_ahead: Duration::ZERO,
            lost_after: Duration::from_secs(60),
        }
    }

    pub(super) fn pick(&mut self, below: usize) -> usize {
        self.rng.random_range(0..below)
    }

    fn config(&mut self, name: &str, kind: NodeKind) -> ReplicationConfig {
        ReplicationConfig {
            node: name.parse().unwrap(),
            kind,
            start: Start {
                time_us: 1_000_000 + (self.now + self.clock_ahead).as_micros() as u64,
                random: self.rng.random(),
            },
            mark_interval: Duration::from_secs(1),
            hops: 16,
            replicate: Vec::new(),
            lost_after: self.lost_after,
            costs: Vec::new(),
            logs_max: 10_000,
            wants_max: 1000,
            sites_max: 100,
            body_versions: vec![1],
            no_transit: false,
        }
    }

    pub(super) fn add(&mut self, name: &str, kind: NodeKind) -> usize {
        let config = self.config(name, kind);
        self.nodes.push(TestNode {
            machine: Replication::new(config.clone(), self.now),
            config,
            disk: Disk::default(),
            wants: Vec::new(),
            reports: Vec::new(),
            over: Vec::new(),
            one_way: Vec::new(),
            unreadable: false,
            opened: BTreeMap::new(),
            passes: BTreeMap::new(),
            passed_batches: 0,
        });
        self.nodes.len() - 1
    }

    /// Gives a node that has no links yet smaller bounds.
    pub(super) fn limit(&mut self, node: usize, logs_max: usize, wants_max: usize) {
        let n = &mut self.nodes[node];
        n.config.logs_max = logs_max;
        n.config.wants_max = wants_max;
        n.machine = Replication::new(n.config.clone(), self.now);
    }

    pub(super) fn want(&mut self, node: usize, want: Want) {
        let now = self.now;
        let n = &mut self.nodes[node];
        n.wants.push(want.clone());
        n.machine.handle_want(now, want);
        self.pump(node);
    }

    /// Removes a site, at this node.
    pub(super) fn remove(&mut self, node: usize, site: &str, at_us: u64) -> Result<(), String> {
        let result = self.nodes[node].machine.remove_site(self.now, &site.parse().unwrap(), at_us);
        self.pump(node);
        result
    }

    fn peer_info(&self, node: usize) -> PeerInfo {
        let c = &self.nodes[node].config;
        PeerInfo {
            node: c.node.clone(),
            kind: c.kind,
            start: c.start,
            version: 1,
            software: String::new(),
            batch_bytes_max: 1 << 20,
            body_versions: vec![1],
            fetches_max: self.fetches_max,
            features: self.features.clone(),
        }
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        let key = (a.min(b), a.max(b));
        if self.links.contains_key(&key) {
            return;
        }
        let mut end = |node| {
            self.next_link += 1;
            End {
                node,
                id: LinkId(self.next_link),
                serving: BTreeMap::new(),
                fetching: BTreeMap::new(),
                inbox: VecDeque::new(),
            }
        };
        let link = TestLink { ends: [end(key.0), end(key.1)] };
        let ids = [link.ends[0].id, link.ends[1].id];
        self.links.insert(key, link);
        let now = self.now;
        for (node, peer, id) in [(key.0, key.1, ids[0]), (key.1, key.0, ids[1])] {
            let info = self.peer_info(peer);
            self.nodes[node].machine.handle_link_up(now, id, info);
        }
        self.pump(key.0);
        self.pump(key.1);
    }

    /// The greatest number of fetches open on one link in one direction now.
    pub(super) fn open_fetches(&self) -> usize {
        self.links.values().flat_map(|l| &l.ends).map(|e| e.fetching.len()).max().unwrap_or(0)
    }

    /// Cuts a link: what was under way on it is lost.
    pub(super) fn cut(&mut self, a: usize, b: usize) {
        let Some(link) = self.links.remove(&(a.min(b), a.max(b))) else { return };
        for end in link.ends {
            self.nodes[end.node].passes.retain(|ours, theirs| ours.0 != end.id && theirs.0 != end.id);
            self.nodes[end.node].machine.handle_link_down(self.now, end.id);
            self.pump(end.node);
        }
    }

    /// Stops a node and starts it again, with this disk; answers who its neighbours were.
    pub(super) fn restart(&mut self, node: usize, disk: Disk) -> Vec<usize> {
        let peers: Vec<usize> = self
            .links
            .keys()
            .filter(|(a, b)| *a == node || *b == node)
            .map(|(a, b)| if *a == node { *b } else { *a })
            .collect();
        for peer in &peers {
            self.cut(node, *peer);
        }
        let name = self.nodes[node].config.node.to_string();
        let mut config = self.config(&name, self.nodes[node].config.kind);
        config.replicate = self.nodes[node].config.replicate.clone();
        let n = &mut self.nodes[node];
        n.machine = Replication::new(config.clone(), self.now);
        n.config = config;
        let states = disk.states.iter().map(|((t, k), v)| (*t, k.clone(), v.clone())).collect();
        let logs = disk.copies.iter().map(|(l, c)| (l.clone(), c.info())).collect();
        n.machine.restore(states, logs);
        n.disk = disk;
        n.opened.clear();
        n.passes.clear();
        n.reports.clear();
        n.over.clear();
        for want in n.wants.clone() {
            n.machine.handle_want(self.now, want);
        }
        let held: Vec<LogName> = n.disk.copies.iter().map(|(log, _)| log.clone()).collect();
        held.iter().filter(|log| log.queue == Queue::CONTROL).for_each(|log| self.tell(node, log));
        self.pump(node);
        peers
    }

    /// Appends a batch to an own log, the way an origin does.
    pub(super) fn publish(&mut self, node: usize, topic: &str, queue: u16, count: u32) {
        let site = self.nodes[node].config.node.site.clone();
        let name = LogName { topic: topic.parse::<Topic>().unwrap(), origin: site, queue: Queue(queue) };
        let random = self.rng.random();
        let bytes: Vec<u8> = (0..self.rng.random_range(20..200)).map(|_| self.rng.random()).collect();
        let time = 1_000_000 + self.now.as_micros() as u64;
        let n = &mut self.nodes[node];
        let info = n.disk.copies.get(&name).map(crate::copies::LogCopy::info);
        let newest = info.as_ref().and_then(|i| i.incarnations.last().cloned());
        let opened = n.opened.get(&name).copied();
        let open = opened.filter(|o| newest.as_ref().is_some_and(|n| n.incarnation == *o));
        let (begin, previous, chain) = match (open, &newest) {
            (Some(_), Some(n)) => (Place { incarnation: n.incarnation, offset: n.end }, None, n.chain_at_end),
            (None, Some(n)) => {
                let incarnation = Incarnation { counter: n.incarnation.counter + 1, random };
                let end = Place { incarnation: n.incarnation, offset: n.end };
                (Place { incarnation, offset: n.end }, Some(end), n.chain_at_end)
            }
            (_, None) => {
                (Place { incarnation: Incarnation { counter: 1, random }, offset: 0 }, None, Some(Chain::default()))
            }
        };
        n.opened.insert(name.clone(), begin.incarnation);
        let placement = Placement {
            log: &name,
            begin,
            first_of_incarnation: open.is_none(),
            previous,
            origin_time_us: time,
            chain_before: chain.unwrap_or_default(),
        };
        let hash = twox_hash::XxHash3_128::oneshot(&bytes).to_le_bytes();
        let body = SealedBody { bytes: bytes.into(), codec: Codec::None, version: 1, hash, count, tags: Tags::Any };
        let batch = Batch::seal(&placement, body).unwrap();
        self.append(node, batch).unwrap();
        self.pump(node);
    }

    /// Appends an entry to a topic's control queue, the way an origin does; its place.
    pub(super) fn enter(&mut self, node: usize, topic: &str, payload: Bytes) -> Place {
        let name = log(topic, self.nodes[node].config.node.site.as_str(), 0);
        // A restart of the origin for each: as if the process had been a new one.
        let before = self.info(node, &name);
        let last = before.as_ref().and_then(|i| i.incarnations.last()).cloned();
        let counter = last.as_ref().map_or(1, |i| i.incarnation.counter + 1);
        let offset = before.as_ref().map_or(0, |i| i.end.offset);
        let begin = Place { incarnation: Incarnation { counter, random: self.rng.random() }, offset };
        let mut body = BodyBuilder::default();
        body.push(&Message {
            path: topic.parse().unwrap(),
            key: None,
            headers: vec![],
            time_us: 1,
            producer: None,
            payload,
        });
        let placement = Placement {
            log: &name,
            begin,
            first_of_incarnation: true,
            previous: before.map(|i| i.end),
            origin_time_us: 1,
            chain_before: last.and_then(|i| i.chain_at_end).unwrap_or_default(),
        };
        self.append(node, Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap()).unwrap();
        self.pump(node);
        begin
    }

    pub(super) fn append(&mut self, node: usize, batch: Batch) -> Result<(), AppendRefusal> {
        let name = batch.header().log.clone();
        let n = &mut self.nodes[node];
        n.disk.copies.append(&name, &Facts::from(&batch), &TakenAsGiven)?;
        n.disk.batches.entry(name.clone()).or_default().insert(batch.begin(), batch);
        self.tell(node, &name);
        Ok(())
    }

    pub(super) fn tell(&mut self, node: usize, name: &LogName) {
        let n = &mut self.nodes[node];
        let info = n.disk.copies.get(name).map(crate::copies::LogCopy::info);
        n.machine.handle_log(self.now, name.clone(), info.clone(), info);
        if name.queue == Queue::CONTROL {
            let mut control = Control::default();
            for batch in n.disk.batches.get(name).into_iter().flat_map(BTreeMap::values) {
                for (offset, message) in
                    (batch.begin().offset..).zip(decode_messages(batch, 1 << 20).unwrap_or_default())
                {
                    control.read(Place { offset, ..batch.begin() }, &message.payload);
                }
            }
            n.machine.handle_control(self.now, name, &control);
        }
    }

    /// Trims a copy to a place.
    pub(super) fn trim(&mut self, node: usize, name: &LogName, to: Place) {
        let copy = self.nodes[node].disk.copies.get_mut(name).unwrap();
        copy.trim(to, &TakenAsGiven).unwrap();
        let begin = copy.info().begin;
        let batches = self.nodes[node].disk.batches.get_mut(name).unwrap();
        batches.retain(|p, _| {
            p.incarnation > begin.incarnation || (p.incarnation == begin.incarnation && p.offset >= begin.offset)
        });
        self.tell(node, name);
        self.pump(node);
    }

    /// Part of a copy can no longer be read.
    pub(super) fn damage(&mut self, node: usize, name: &LogName, from: Place, to: u64) {
        let hole =
            Hole { incarnation: from.incarnation, from: from.offset, to, kind: crate::copies::HoleKind::Pending };
        self.nodes[node].disk.copies.get_mut(name).unwrap().damage(hole, None, None, 0).unwrap();
        let batches = self.nodes[node].disk.batches.get_mut(name).unwrap();
        batches.retain(|p, _| p.incarnation != from.incarnation || p.offset < from.offset || p.offset >= to);
        self.tell(node, name);
        self.pump(node);
    }

    /// A node's link to another.
    pub(super) fn link_of(&self, node: usize, peer: usize) -> LinkId {
        let ends = &self.links[&(node.min(peer), node.max(peer))].ends;
        ends.iter().find(|e| e.node == node).unwrap().id
    }

    fn end_mut(&mut self, id: LinkId) -> Option<&mut End> {
        self.links.values_mut().flat_map(|l| &mut l.ends).find(|e| e.id == id)
    }

    fn push_to_peer(&mut self, id: LinkId, item: Item) {
        for link in self.links.values_mut() {
            let Some(at) = link.ends.iter().position(|e| e.id == id) else { continue };
            link.ends[1 - at].inbox.push_back(item);
            return;
        }
    }

    /// Carries out what a machine asks.
    pub(super) fn pump(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].machine.poll_output() {
            self.carry_out(node, output);
        }
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        match output {
            Output::Send(link, message) | Output::SendDurable(link, message) => {
                self.control_messages += 1;
                self.push_to_peer(link, Item::Control(message));
            }
            Output::StartFetch(link, order) => {
                self.started.push(order.lane);
                if let Some(end) = self.end_mut(link) {
                    end.fetching.insert(order.number, order.clone());
                }
                self.push_to_peer(link, Item::Fetch(order));
            }
            Output::StopFetch(link, number) => {
                if let Some(end) = self.end_mut(link) {
                    end.fetching.remove(&number);
                }
                self.nodes[node].passes.remove(&(link, number));
                self.push_to_peer(link, Item::Stop(number));
            }
            Output::RaiseAllowance(link, number, total) => self.push_to_peer(link, Item::More(number, total)),
            Output::Serve(link, number) => {
                if let Some(s) = self.end_mut(link).and_then(|e| e.serving.get_mut(&number)) {
                    s.mode = Mode::Serving;
                }
            }
            Output::Pass(ours, theirs) => {
                self.nodes[node].passes.insert(ours, theirs);
                if let Some(s) = self.end_mut(theirs.0).and_then(|e| e.serving.get_mut(&theirs.1)) {
                    s.mode = Mode::Passed;
                    s.passed = 0;
                }
            }
            Output::EndServed(link, ended) => {
                if let Some(end) = self.end_mut(link) {
                    end.serving.remove(&ended.number);
                }
                self.push_to_peer(link, Item::Ended(ended));
            }
            Output::Store(changes) => {
                for change in changes {
                    self.store(node, change);
                }
            }
            Output::RemoteHeld { .. } | Output::RegistrationsChanged | Output::SiteRemoved(_) => {}
            Output::CloseLink(link, link::RefuseReason::Identity, _) => self.closing.push(link),
            Output::CloseLink(link, reason, text) => panic!("seed {}: {link:?} closed: {reason:?} {text}", self.seed),
            Output::OneWay(message, links) => {
                for link in links {
                    self.push_to_peer(link, Item::OneWay(message.clone()));
                }
            }
            Output::FindTime { token, log, time_us } => {
                let disk = &self.nodes[node].disk;
                let late = |b: &&Batch| b.header().origin_time_us >= time_us;
                let found = disk.batches.get(&log).and_then(|b| b.values().find(late).map(Batch::begin));
                let found = found.or_else(|| disk.copies.get(&log).map(|c| c.info().end));
                let found = found.filter(|_| !self.nodes[node].unreadable);
                self.nodes[node].machine.handle_time_found(self.now, token, found);
            }
            Output::DeliverOneWay(message) => self.nodes[node].one_way.push(*message),
            Output::Report(report) => self.nodes[node].reports.push(report),
            Output::ReportOver(name, subject) => self.nodes[node].over.push((name, subject)),
        }
    }

    fn store(&mut self, node: usize, change: Change) {
        let disk = &mut self.nodes[node].disk;
        match change {
            Change::BeginCopy { log, at, chain } => {
                let _ = disk.copies.begin_copy(&log, at, chain);
                self.tell(node, &log);
            }
            Change::Drop { log } => {
                let _ = disk.copies.drop_copy(&log);
                disk.batches.remove(&log);
                self.tell(node, &log);
            }
            Change::Trim { log, to } => {
                self.trim(node, &log, to);
            }
            Change::Hole { log, hole } => {
                disk.copies.get_mut(&log).unwrap().hole(hole).unwrap();
                self.tell(node, &log);
            }
            Change::Rekind { log, hole, was } => {
                disk.copies.get_mut(&log).unwrap().rekind(hole, was).unwrap();
                self.tell(node, &log);
            }
            Change::Put { table, key, value } => drop(disk.states.insert((table, key), value)),
            Change::Delete { table, key } => drop(disk.states.remove(&(table, key))),
        }
    }

    /// One random step; `false` when there is nothing to do before time passes.
    fn step(&mut self) -> bool {
        let full: Vec<(LinkId, usize)> =
            self.links.values().flat_map(|l| &l.ends).filter(|e| !e.inbox.is_empty()).map(|e| (e.id, e.node)).collect();
        if full.is_empty() {
            return self.serve_all();
        }
        let (id, node) = full[self.pick(full.len())];
        if self.pick(4) == 0 {
            self.serve_all();
        }
        let item = self.end_mut(id).and_then(|e| e.inbox.pop_front()).unwrap();
        if self.loses.as_mut().is_some_and(|(at, loses)| *at == node && loses.takes(&item)) {
            return true;
        }
        self.receive(node, id, item);
        self.pump(node);
        true
    }

    fn receive(&mut self, node: usize, id: LinkId, item: Item) {
        let now = self.now;
        match item {
            Item::Control(message) => self.nodes[node].machine.handle_message(now, id, *message),
            Item::Fetch(order) => {
                let serving = Serving {
                    next: order.from,
                    mode: Mode::Paused,
                    sent: 0,
                    passed: 0,
                    allowance: if order.passing { order.allowance } else { u64::MAX },
                    order: order.clone(),
                };
                self.end_mut(id).unwrap().serving.insert(order.number, serving);
                self.nodes[node].machine.handle_fetch_requested(now, id, order);
            }
            Item::More(number, total) => {
                if let Some(s) = self.end_mut(id).unwrap().serving.get_mut(&number) {
                    s.allowance = total;
                    let (next, passed, room) = (s.next, s.passed, s.allowance.saturating_sub(s.sent));
                    if s.mode == Mode::Passed {
                        self.nodes[node].machine.handle_served_room(now, id, number, next, passed, room);
                    }
                }
            }
            Item::Stop(number) => {
                if self.end_mut(id).unwrap().serving.remove(&number).is_some() {
                    self.nodes[node].machine.handle_served_over(now, id, number);
                }
            }
            Item::Batch(number, batch) => self.receive_batch(node, id, number, batch),
            Item::Ended(ended) => {
                if self.end_mut(id).unwrap().fetching.remove(&ended.number).is_some() {
                    self.nodes[node].machine.handle_fetch_ended(now, id, ended);
                }
            }
            Item::OneWay(message) => self.nodes[node].machine.handle_one_way(now, id, *message),
        }
    }

    fn receive_batch(&mut self, node: usize, id: LinkId, number: FetchNumber, batch: Batch) {
        let Some(order) = self.end_mut(id).unwrap().fetching.get(&number).cloned() else { return };
        if order.passing {
            let Some((link, theirs)) = self.nodes[node].passes.get(&(id, number)).copied() else { return };
            let bytes = batch.len() as u64;
            self.nodes[node].machine.handle_pass_arrived(self.now, link, theirs, bytes);
            let Some(s) = self.end_mut(link).and_then(|e| e.serving.get_mut(&theirs)) else { return };
            assert!(s.mode == Mode::Passed);
            s.next = batch.end();
            s.passed += batch.len() as u64;
            s.sent += batch.len() as u64;
            let room = if s.order.passing { s.allowance.saturating_sub(s.sent) } else { ROOM };
            let (next, passed) = (s.next, s.passed);
            self.push_to_peer(link, Item::Batch(theirs, batch));
            self.nodes[node].passed_batches += 1;
            self.nodes[node].machine.handle_served_room(self.now, link, theirs, next, passed, room);
            return;
        }
        match self.append(node, batch) {
            Ok(()) => {}
            Err(AppendRefusal::Repeat(_)) => self.repeats += 1,
            Err(refusal) => {
                self.end_mut(id).unwrap().fetching.remove(&number);
                self.push_to_peer(id, Item::Stop(number));
                self.refusals.push(refusal.clone());
                self.nodes[node].machine.handle_refused_batch(self.now, id, number, refusal);
            }
        }
    }

    /// Every served fetch sends one batch where it can.
    fn serve_all(&mut self) -> bool {
        let open: Vec<(usize, LinkId, FetchNumber)> = self
            .links
            .values()
            .flat_map(|l| &l.ends)
            .flat_map(|e| e.serving.iter().filter(|(_, s)| s.mode == Mode::Serving).map(|(n, _)| (e.node, e.id, *n)))
            .collect();
        let mut moved = false;
        for (node, id, number) in open {
            moved |= self.serve_one(node, id, number);
            self.pump(node);
        }
        moved
    }

    fn serve_one(&mut self, node: usize, id: LinkId, number: FetchNumber) -> bool {
        let Some(s) = self.end_mut(id).and_then(|e| e.serving.get(&number)) else { return false };
        let (order, next, left) = (s.order.clone(), s.next, s.allowance.saturating_sub(s.sent));
        if s.mode != Mode::Serving {
            return false;
        }
        if order.until.is_some_and(|u| next.offset >= u) {
            return self.end_by_itself(node, id, number, FetchEnd::Done, next);
        }
        let line = match order.line {
            FetchLine::Main => OnLine::Main,
            FetchLine::Incarnation => OnLine::Incarnation,
        };
        let located = self.nodes[node].disk.copies.get(&order.log).map(|c| c.locate(next, line));
        match located {
            Some(Located::Held { at, .. }) => {
                let batch = self.nodes[node].disk.batches[&order.log].get(&at).cloned();
                let batch = batch.unwrap_or_else(|| panic!("seed {}: no batch of {} at {at}", self.seed, order.log));
                if left == 0 {
                    return false;
                }
                if let Some(s) = self.end_mut(id).and_then(|e| e.serving.get_mut(&number)) {
                    s.next = batch.end();
                    s.sent += batch.len() as u64;
                }
                self.push_to_peer(id, Item::Batch(number, batch));
                true
            }
            Some(Located::AtEnd(at)) if order.no_wait => self.end_by_itself(node, id, number, FetchEnd::AtEnd, at),
            Some(Located::AtEnd(_)) => false,
            _ => {
                if let Some(s) = self.end_mut(id).and_then(|e| e.serving.get_mut(&number)) {
                    s.mode = Mode::Paused;
                }
                self.nodes[node].machine.handle_served_outside(self.now, id, number, next, ROOM);
                true
            }
        }
    }

    fn end_by_itself(&mut self, node: usize, id: LinkId, number: FetchNumber, end: FetchEnd, at: Place) -> bool {
        self.end_mut(id).unwrap().serving.remove(&number);
        let ended = FetchEnded { number, end, at: Some(at), answered_by: String::new(), text: String::new() };
        self.push_to_peer(id, Item::Ended(ended));
        self.nodes[node].machine.handle_served_over(self.now, id, number);
        true
    }

    /// Lets some of what is under way arrive, without time passing.
    pub(super) fn some_steps(&mut self, most: usize) {
        for _ in 0..self.pick(most) {
            self.step();
        }
    }

    /// Runs for so long in the machines' time.
    pub(super) fn run(&mut self, seconds: u64) {
        self.run_until(seconds, |_| false);
    }

    /// The same, or until this is so; whether it is.
    pub(super) fn run_until(&mut self, seconds: u64, is_so: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + Duration::from_secs(seconds);
        let mut steps = 0u64;
        loop {
            while self.step() {
                if is_so(self) {
                    return true;
                }
                steps += 1;
                assert!(steps < 5_000_000, "seed {}: it never comes to rest", self.seed);
            }
            let next = self.nodes.iter().filter_map(|n| n.machine.poll_timeout()).min().unwrap_or(until);
            if next > until {
                self.now = until;
                return is_so(self);
            }
            self.now = self.now.max(next);
            for node in 0..self.nodes.len() {
                let wall = 1_000_000 + self.now.as_micros() as u64;
                self.nodes[node].machine.handle_timeout(self.now, wall);
                self.pump(node);
            }
        }
    }

    pub(super) fn info(&self, node: usize, log: &LogName) -> Option<crate::copies::LogInfo> {
        self.nodes[node].disk.copies.get(log).map(crate::copies::LogCopy::info)
    }

    /// Checks that two nodes hold the same bytes wherever both hold.
    pub(super) fn same_bytes(&self, a: usize, b: usize) {
        for (log, batches) in &self.nodes[a].disk.batches {
            for (place, batch) in batches {
                let other = self.nodes[b].disk.batches.get(log).and_then(|l| l.get(place));
                if let Some(other) = other {
                    assert!(
                        other.head() == batch.head() && other.body() == batch.body(),
                        "seed {}: {log} {place}",
                        self.seed
                    );
                }
            }
        }
    }

    /// Checks that `copy` ends where the origin does and lacks this range and nothing else.
    pub(super) fn complete_but_for(&self, origin: usize, copy: usize, log: &LogName, from: u64, to: u64) {
        self.complete(origin, copy, log);
        let holes: Vec<(u64, u64)> = self.info(copy, log).unwrap().holes.iter().map(|h| (h.from, h.to)).collect();
        assert_eq!(holes, [(from, to)], "seed {}", self.seed);
    }

    /// Checks that `copy` has all of the origin's log from its own begin on.
    pub(super) fn complete(&self, origin: usize, copy: usize, log: &LogName) {
        let seed = self.seed;
        let (theirs, ours) = (self.info(origin, log).unwrap(), self.info(copy, log));
        let status = self.nodes[copy].machine.copy_status(self.now, log);
        let Some(ours) = ours else { panic!("seed {seed}: node {copy} has no copy of {log}: {status:?}") };
        assert_eq!(ours.end, theirs.end, "seed {seed}: node {copy}, {log}, {status:?}\n{theirs:?}\n{ours:?}");
        for place in self.nodes[origin].disk.batches[log].keys() {
            let below = place.offset < ours.begin.offset;
            let held = self.nodes[copy].disk.batches.get(log).is_some_and(|b| b.contains_key(place));
            assert!(below || held, "seed {seed}: node {copy} lacks {place} of {log}\n{theirs:?}\n{ours:?}");
        }
        self.same_bytes(origin, copy);
    }
}
