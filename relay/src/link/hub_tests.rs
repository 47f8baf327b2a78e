//! What the hub owes the machine.

use prost::Message as _;
use seaway_federation_proto::{
    envelope::{Chain, Codec, Placement},
    ids::{Incarnation, Queue, Start},
    message::{BodyBuilder, Message},
    replication::WantStart,
    session::NodeKind,
};

use super::{super::stores::Bounds, *};
use crate::log::{
    contract::{Entry, Role, Unit},
    memory::{MemoryConfig, MemoryDisk, MemoryLog},
};

const NOW: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Posts(Mutex<Vec<LinkCommand>>);

impl Mailbox for Posts {
    fn post(&self, command: LinkCommand) {
        self.0.lock().push(command);
    }
}

impl Posts {
    fn fetch(&self) -> FetchOrder {
        let posts = mem::take(&mut *self.0.lock());
        let order =
            posts.into_iter().rev().find_map(|c| if let LinkCommand::StartFetch(o) = c { Some(o) } else { None });
        order.expect("a fetch was begun")
    }
}

struct Nobody;

impl NodePort for Nobody {
    fn on_remote_held(&self, _: RemoteHeld) {}
    fn on_registrations_changed(&self) {}
    fn on_one_way(&self, _: Box<link::OneWayBody>) {}
    fn on_log(&self, _: &LogName) {}
}

fn name() -> LogName {
    LogName { topic: "t".parse().unwrap(), origin: "a".parse().unwrap(), queue: Queue(1) }
}

fn at(offset: u64) -> Place {
    Place { incarnation: Incarnation { counter: 1, random: 5 }, offset }
}

fn batch() -> Batch {
    let placement = Placement {
        log: &name(),
        begin: at(0),
        first_of_incarnation: true,
        previous: None,
        origin_time_us: 1,
        chain_before: Chain::default(),
    };
    let mut body = BodyBuilder::default();
    for _ in 0..5 {
        body.push(&Message {
            path: "t".parse().unwrap(),
            key: None,
            headers: Vec::new(),
            time_us: 1,
            producer: None,
            payload: vec![7; 10].into(),
        });
    }
    Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap()
}

fn config() -> ReplicationConfig {
    ReplicationConfig {
        node: "b/edge".parse().unwrap(),
        kind: NodeKind::Edge,
        start: Start { time_us: 1, random: 2 },
        mark_interval: Duration::from_secs(1),
        hops: 8,
        replicate: Vec::new(),
        lost_after: Duration::from_secs(60),
        costs: Vec::new(),
        logs_max: 100,
        wants_max: 100,
        sites_max: 100,
        body_versions: vec![1],
        no_transit: false,
    }
}

/// What the upstream says of itself and of its log, which holds five messages.
fn announcements(a: &NodeName) -> Vec<link::control::Kind> {
    use link::control::Kind;
    let start = Some(Start { time_us: 1, random: 1 }.into());
    let body = link::RecordBody {
        node: Some(a.into()),
        kind: link::NodeKind::Edge.into(),
        start,
        sequence: 1,
        neighbours: vec![link::Neighbour { node: Some((&config().node).into()), cost: 1 }],
        ..Default::default()
    };
    let edge = link::IncarnationEdge {
        incarnation: Some(at(0).incarnation.into()),
        previous: None,
        begin: 0,
        end: 5,
        jumped: false,
    };
    vec![
        Kind::Record(link::Record { body: body.encode_to_vec().into(), ..Default::default() }),
        Kind::Announce(link::Announce {
            facts: bytes::Bytes::new(),
            log: Some((&name()).into()),
            begin: Some(at(0).into()),
            tips: vec![at(5).into()],
            incarnations: vec![edge],
        }),
    ]
}

/// A hub with one want, and its upstream, which has announced its log.
struct Site {
    log: Arc<MemoryLog>,
    hub: Arc<Hub>,
    mailbox: Arc<Posts>,
    upstream: LinkId,
    /// Key of the want at the upstream.
    key: u64,
}

impl Site {
    /// The changes that wait are bounded by so many bytes, and so is what the log queues.
    fn new(bytes: usize) -> Self {
        let memory = MemoryConfig { queued_bytes_max: bytes as u64, ..MemoryConfig::default() };
        let log = MemoryLog::open(MemoryDisk::default(), memory);
        let mut hub = Hub::open(config(), log.clone(), Arc::new(Nobody), Arc::default(), Arc::new(|| {}), NOW, 1);
        let bounds = Bounds { said: bytes, copies: bytes, promises: bytes };
        Arc::get_mut(&mut hub).unwrap().stores = Stores::bounded(log.clone(), Arc::new(|| {}), bounds);
        let all = Want {
            id: "all".to_owned(),
            pattern: "#".parse().unwrap(),
            origins: Vec::new(),
            start: WantStart::Earliest,
            registers: false,
        };
        hub.put_want(NOW, all);
        let mailbox = Arc::new(Posts::default());
        let upstream = hub.attach(mailbox.clone());
        let a: NodeName = "a/edge".parse().unwrap();
        let peer = PeerInfo {
            node: a.clone(),
            kind: NodeKind::Edge,
            start: Start { time_us: 1, random: 1 },
            version: 1,
            software: String::new(),
            batch_bytes_max: 1 << 20,
            body_versions: vec![1],
            fetches_max: 1000,
            features: Vec::new(),
        };
        hub.on_up(NOW, upstream, peer);
        for message in announcements(&a) {
            hub.on_control(NOW, upstream, Box::new(message));
        }
        let key = mailbox.0.lock().iter().find_map(|c| match c {
            LinkCommand::Send(kind) => match &**kind {
                link::control::Kind::WantPut(want) => Some(want.key),
                _ => None,
            },
            _ => None,
        });
        Self { log, hub, mailbox, upstream, key: key.unwrap() }
    }

    /// The upstream has announced all: the copy is begun.
    fn announced(&self) {
        let end = link::AnnounceEnd { key: self.key, origin: "a".to_owned() };
        self.hub.on_control(NOW, self.upstream, Box::new(link::control::Kind::AnnounceEnd(end)));
    }

    /// Nothing more finds room to wait.
    fn fill(&self) {
        for key in 0..10 {
            let (key, value) = (vec![key].into(), vec![0; 5000].into());
            assert!(self.hub.stores.store(vec![Change::Put { table: StateTable::Starts, key, value }]).is_empty());
        }
    }

    fn drain(&self, now: Duration) {
        for _ in 0..20 {
            self.log.sync_now();
            self.hub.pump(now, 1);
        }
    }
}

/// A fetch ends before the hub was told what it brought: the machine must know that first, or it would take it for missing.
#[test]
fn the_machine_knows_what_a_fetch_brought_when_it_hears_its_end() {
    let site = Site::new(1 << 20);
    site.announced();
    let Site { log, hub, mailbox, upstream, .. } = site;
    hub.pump(NOW, 1);
    let order = mailbox.fetch();
    assert_eq!(order.from, at(0));
    let unit = Unit { entries: vec![Entry::Append { role: Role::Copy, batch: batch() }] };
    log.submit(unit, Box::new(|_| {})).unwrap();
    // No pump in between: another thread is about to.
    let (end, answered_by) = (link::FetchEnd::AtEnd, String::new());
    let ended = FetchEnded { number: order.number, end, at: Some(at(5)), answered_by, text: String::new() };
    hub.on_fetch_ended(NOW, upstream, ended);
    let later = NOW + Duration::from_millis(500);
    hub.act(|core| core.machine.handle_timeout(later, 1));
    assert_eq!(mailbox.fetch().from, at(5), "it goes on where the batch ended");
}

/// The machine takes a copy for begun as soon as it asked for that.
#[test]
fn a_copy_that_there_was_no_room_to_begin_is_begun_later() {
    let site = Site::new(20_000);
    site.fill();
    site.announced();
    assert_eq!(site.hub.stores.dropped(), 1);
    site.drain(NOW);
    assert_eq!(site.log.info(&name(), false), None);
    site.drain(NOW + Duration::from_secs(1));
    assert_eq!(site.mailbox.fetch().from, at(0));
    assert_eq!(site.hub.stores.dropped(), 1);
}

/// The machine takes a fetch for begun as soon as it asked for that.
#[test]
fn a_fetch_that_there_was_no_room_to_begin_is_begun_later() {
    let site = Site::new(20_000);
    site.announced();
    site.fill();
    site.hub.pump(NOW, 1);
    assert_eq!(site.log.info(&name(), false).unwrap().end, at(0));
    assert_eq!(site.hub.stores.dropped(), 1);
    site.drain(NOW);
    assert!(!site.mailbox.0.lock().iter().any(|c| matches!(c, LinkCommand::StartFetch(_))));
    site.drain(NOW + Duration::from_secs(1));
    assert_eq!(site.mailbox.fetch().from, at(0));
    assert_eq!(site.hub.stores.dropped(), 1);
}
