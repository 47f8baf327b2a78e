//! What the hub owes the machine.

use prost::Message as _;
use seaway_federation_proto::{
    envelope::{Chain, Codec, Placement},
    ids::{Incarnation, NodeName, Queue, Start},
    message::{BodyBuilder, Message},
    replication::WantStart,
    session::NodeKind,
};

use super::*;
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
    let edge = link::IncarnationEdge { incarnation: Some(at(0).incarnation.into()), previous: None, begin: 0, end: 5 };
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

/// A fetch ends before the hub was told what it brought: the machine must know that first, or it would take it for missing.
#[test]
fn the_machine_knows_what_a_fetch_brought_when_it_hears_its_end() {
    let log = MemoryLog::open(MemoryDisk::default(), MemoryConfig::default());
    let hub = Hub::open(config(), log.clone(), Arc::new(Nobody), Arc::default(), Arc::new(|| {}), NOW, 1);
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
    let end = link::AnnounceEnd { key: key.unwrap(), origin: "a".to_owned() };
    hub.on_control(NOW, upstream, Box::new(link::control::Kind::AnnounceEnd(end)));
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
