//! One machine among neighbours that say what no honest node says, or what only a newer one would.

use prost::Message as _;

use super::*;
use crate::{
    ids::Incarnation,
    session::PeerInfo,
    wire::link::{self, carried_body, control::Kind},
};

/// Config, and a machine of it with links 1, 2, … to these peers, each of whom stated the neighbours given.
struct One {
    machine: Replication,
    now: Duration,
}

fn start_of(name: &str) -> Start {
    Start { time_us: 1000, random: name.len() as u64 }
}

fn record(name: &str, kind: i32, neighbours: &[&str]) -> Kind {
    record_since(name, kind, neighbours, start_of(name))
}

fn record_since(name: &str, kind: i32, neighbours: &[&str], start: Start) -> Kind {
    let neighbour = |n: &&str| link::Neighbour { node: Some((&n.parse::<NodeName>().unwrap()).into()), cost: 1 };
    let body = link::RecordBody {
        node: Some((&name.parse::<NodeName>().unwrap()).into()),
        kind,
        start: Some(start.into()),
        sequence: 1,
        neighbours: neighbours.iter().map(neighbour).collect(),
        ..Default::default()
    };
    Kind::Record(link::Record { body: body.encode_to_vec().into(), age_ms: 0 })
}

impl One {
    fn new(name: &str, kind: NodeKind, peers: &[&str]) -> Self {
        let now = Duration::from_secs(1);
        let config = ReplicationConfig {
            node: name.parse().unwrap(),
            kind,
            start: Start { time_us: 1, random: 1 },
            mark_interval: Duration::from_secs(1),
            hops: 16,
            replicate: Vec::new(),
            lost_after: Duration::from_secs(60),
            costs: Vec::new(),
            logs_max: 1000,
            wants_max: 100,
            sites_max: 10,
            body_versions: vec![1],
            no_transit: false,
        };
        let mut one = Self { machine: Replication::new(config, now), now };
        for (number, peer) in (1..).zip(peers) {
            let info = PeerInfo {
                node: peer.parse().unwrap(),
                kind: NodeKind::Relay,
                start: start_of(peer),
                version: 1,
                software: String::new(),
                batch_bytes_max: 1 << 20,
                body_versions: vec![1],
                fetches_max: 1000,
                features: Vec::new(),
            };
            one.machine.handle_link_up(now, LinkId(number), info);
        }
        one.outputs();
        one
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.machine.poll_output()).collect()
    }

    fn hear(&mut self, from: u64, message: Kind) -> Vec<Output> {
        self.machine.handle_message(self.now, LinkId(from), message);
        self.outputs()
    }

    fn count(&self, name: &str) -> u64 {
        self.machine.counters().into_iter().find(|(n, _)| *n == name).map_or(0, |(_, count)| count)
    }
}

fn body(author: &str, to: carried_body::To, kind: Option<carried_body::Kind>) -> link::CarriedBody {
    link::CarriedBody {
        author: Some((&author.parse::<NodeName>().unwrap()).into()),
        start: Some(start_of(author).into()),
        to: Some(to),
        note_way: false,
        kind,
    }
}

fn carry(body: &link::CarriedBody, hops: u32) -> Kind {
    Kind::Carried(link::Carried { body: body.encode_to_vec().into(), hops, way: Vec::new() })
}

fn to_site(site: &str) -> carried_body::To {
    carried_body::To::Site(site.into())
}

fn held(log: LogName) -> carried_body::Kind {
    let place = link::Place { incarnation: Some(link::Incarnation { counter: 1, random: 1 }), offset: 7 };
    let held = link::HeldLog { log: Some(log.into()), below: Some(place), from: Some(place), ..Default::default() };
    carried_body::Kind::Held(link::Held { sequence: 1, logs: vec![held] })
}

fn question(topic: &str) -> carried_body::Kind {
    let log = link::LogName { topic: topic.into(), origin: "b".into(), queue: 1 };
    let place = link::Place { incarnation: Some(link::Incarnation { counter: 1, random: 1 }), offset: 7 };
    let known = link::HeldLog { log: Some(log), below: Some(place), ..Default::default() };
    carried_body::Kind::Question(link::Question { origin: "b".into(), known: vec![known], patterns: Vec::new() })
}

/// A relay between a/edge (link 1) and b/edge (link 2).
fn relay() -> One {
    let mut one = One::new("r/relay", NodeKind::Relay, &["a/edge", "b/edge"]);
    one.hear(1, record("a/edge", 1, &["r/relay"]));
    one.hear(2, record("b/edge", 1, &["r/relay"]));
    one
}

fn sent(outputs: &[Output]) -> Vec<(u64, link::Carried)> {
    let carried = |output: &Output| match output {
        Output::Send(link, message) | Output::SendDurable(link, message) => match &**message {
            Kind::Carried(carried) => Some((link.0, carried.clone())),
            _ => None,
        },
        _ => None,
    };
    outputs.iter().filter_map(carried).collect()
}

fn closed(outputs: &[Output]) -> bool {
    outputs.iter().any(|o| matches!(o, Output::CloseLink(..)))
}

#[test]
fn what_a_newer_node_writes_is_passed_on_as_it_wrote_it() {
    let mut one = relay();
    // A field of a known message and a whole message that this build does not know.
    let mut newer_field = body("a/edge", to_site("b"), Some(held(log("t", "b", 1)))).encode_to_vec();
    newer_field.extend([0xfa, 0x3e, 3, 1, 2, 3]);
    let mut newer_kind = body("a/edge", to_site("b"), None).encode_to_vec();
    newer_kind.extend([0xfa, 0x3e, 2, 9, 9]);
    for bytes in [newer_field, newer_kind] {
        let carried = link::Carried { body: bytes.clone().into(), hops: 5, way: Vec::new() };
        let outputs = one.hear(1, Kind::Carried(carried));
        let on = sent(&outputs);
        assert_eq!(on.len(), 1, "{outputs:?}");
        assert_eq!((on[0].0, on[0].1.hops), (2, 4));
        assert_eq!(on[0].1.body, bytes);
    }
    assert_eq!(one.count("carried_passed_unknown"), 1);
}

#[test]
fn hops_are_clamped() {
    let mut one = relay();
    let outputs = one.hear(1, carry(&body("a/edge", to_site("b"), Some(held(log("t", "b", 1)))), u32::MAX));
    assert_eq!(sent(&outputs)[0].1.hops, 15);
    let outputs = one.hear(1, carry(&body("a/edge", to_site("b"), Some(held(log("t", "b", 1)))), 0));
    assert!(sent(&outputs).is_empty());
}

#[test]
fn a_malformed_message_ends_at_the_first_node_and_costs_only_its_author_the_link() {
    let mut one = relay();
    one.hear(2, record("c/edge", 1, &["b/edge"]));
    let all = carried_body::To::All(1);
    // From c by way of b: b is innocent.
    let outputs = one.hear(2, carry(&body("c/edge", all.clone(), Some(question("no/topic"))), 5));
    assert!(outputs.is_empty(), "{outputs:?}");
    assert_eq!(one.count("carried_dropped_malformed"), 1);
    let outputs = one.hear(1, carry(&body("a/edge", all.clone(), Some(question("no/topic"))), 5));
    assert!(closed(&outputs) && sent(&outputs).is_empty(), "{outputs:?}");
    let outputs = one.hear(1, carry(&body("a/edge", all, Some(question("topic"))), 5));
    assert_eq!(sent(&outputs).iter().map(|(link, _)| *link).collect::<Vec<_>>(), [2, 1], "on, and answered");
    // What is no message at all cannot be anybody's.
    let rubbish = Kind::Carried(link::Carried { body: vec![0xff; 9].into(), hops: 3, way: Vec::new() });
    assert!(one.hear(1, rubbish).is_empty());
    assert_eq!(one.count("carried_dropped_unreadable"), 1);
}

#[test]
fn a_node_of_an_unknown_kind_is_passed_on_and_nobodys_edge_broker() {
    let mut one = relay();
    let outputs = one.hear(2, record("d/standby", 7, &["b/edge"]));
    assert!(!closed(&outputs));
    assert!(outputs.iter().any(|o| matches!(o, Output::Send(LinkId(1), m) if matches!(**m, Kind::Record(_)))));
    assert!(one.machine.sites().iter().all(|s| s.site.as_str() != "d"));
}

#[test]
fn a_hole_of_an_unknown_kind_is_still_not_held() {
    let incarnation = Some(link::Incarnation { counter: 1, random: 1 });
    let hole = link::Hole { incarnation, from: 3, to: 5, kind: 99 };
    let read = Hole::try_from(hole).unwrap();
    assert_eq!((read.from, read.to), (3, 5));
}

#[test]
fn nobody_speaks_for_a_site_that_it_does_not_lie_before() {
    let mut one = relay();
    // b says what a holds, and registers it, and a site that nobody ever saw.
    for author in ["a/edge", "x/edge"] {
        let outputs = one.hear(2, carry(&body(author, to_site("a"), Some(held(log("t", "a", 1)))), 5));
        assert!(outputs.is_empty(), "{outputs:?}");
    }
    assert_eq!(one.count("carried_dropped_not_from_its_author"), 2);

    let mut origin = One::new("o/edge", NodeKind::Edge, &["r/relay", "q/relay", "s/edge"]);
    origin.hear(1, record("r/relay", 2, &["o/edge", "a/edge"]));
    origin.hear(2, record("q/relay", 2, &["o/edge", "a/edge"]));
    origin.hear(3, record("s/edge", 1, &["o/edge"]));
    let a = |kind| carry(&body("a/edge", to_site("o"), Some(kind)), 5);
    let register = || {
        let patterns = vec!["t".to_owned()];
        carried_body::Kind::Register(link::Register { sequence: 1, patterns, withdraw: false })
    };
    let registered = |one: &One| one.machine.registered(&"t".parse().unwrap()).len();
    origin.hear(1, a(register()));
    assert_eq!(registered(&origin), 0, "nobody knows of that site yet");
    origin.hear(1, record("a/edge", 1, &["r/relay", "q/relay"]));
    for (from, counts) in [(3, 0), (2, 1), (1, 1)] {
        origin.hear(from, a(register()));
        assert_eq!(registered(&origin), counts, "link {from}");
    }
    // Both of two shortest ways may be taken by what a says.
    for (from, heard) in [(3, false), (2, true), (1, true)] {
        let outputs = origin.hear(from, a(held(log("t", "o", 1))));
        assert_eq!(outputs.iter().any(|o| matches!(o, Output::RemoteHeld { .. })), heard, "link {from}");
    }
}

#[test]
fn what_a_registered_site_holds_is_stored_before_it_is_told_so() {
    let mut one = One::new("o/edge", NodeKind::Edge, &["a/edge"]);
    one.hear(1, record("a/edge", 1, &["o/edge"]));
    let patterns = vec!["t".to_owned()];
    let register = carried_body::Kind::Register(link::Register { sequence: 1, patterns, withdraw: false });
    let outputs = one.hear(1, carry(&body("a/edge", to_site("o"), Some(register)), 5));
    let stored = |outputs: &[Output]| outputs.iter().position(|o| matches!(o, Output::Store(_)));
    let told = |outputs: &[Output]| outputs.iter().position(|o| matches!(o, Output::SendDurable(..)));
    assert!(stored(&outputs).is_some() && stored(&outputs) < told(&outputs), "{outputs:?}");
    one.hear(1, carry(&body("a/edge", to_site("o"), Some(held(log("t", "o", 1)))), 5));
    // The answer comes before the next tick.
    one.now += Duration::from_millis(150);
    one.machine.handle_timeout(one.now, 1);
    let outputs = one.outputs();
    assert!(stored(&outputs).is_some() && stored(&outputs) < told(&outputs), "{outputs:?}");
}

#[test]
fn what_others_said_and_found_no_room_is_stored_when_they_say_it_again() {
    let mut one = One::new("o/edge", NodeKind::Edge, &["a/edge"]);
    one.hear(1, record("a/edge", 1, &["o/edge"]));
    let given_back = |one: &mut One, outputs: Vec<Output>| {
        let changes = |o| if let Output::Store(changes) = o { Some(changes) } else { None };
        let changes: Vec<_> = outputs.into_iter().filter_map(changes).flatten().collect();
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert!(changes.iter().all(crate::replication::Change::is_said_again));
        one.machine.handle_not_stored(changes.clone());
        changes
    };
    for withdraw in [false, true, false] {
        let register = || {
            let patterns = vec!["t".to_owned()];
            let register = carried_body::Kind::Register(link::Register { sequence: 1, patterns, withdraw });
            carry(&body("a/edge", to_site("o"), Some(register)), 5)
        };
        for _ in 0..2 {
            let outputs = one.hear(1, register());
            given_back(&mut one, outputs);
        }
    }
    one.hear(1, carry(&body("a/edge", to_site("o"), Some(held(log("t", "o", 1)))), 5));
    for _ in 0..3 {
        // Nobody says it again: it is stored with the next tick all the same.
        one.now += Duration::from_secs(1);
        one.machine.handle_timeout(one.now, 1);
        let outputs = one.outputs();
        given_back(&mut one, outputs);
    }
    assert_eq!(one.count("changes_given_back"), 9);
}

#[test]
fn what_one_site_states_is_bounded() {
    let mut one = One::new("o/edge", NodeKind::Edge, &["a/edge"]);
    one.hear(1, record("a/edge", 1, &["o/edge"]));
    let incarnation = Some(link::Incarnation { counter: 1, random: 1 });
    let mut heard = 0;
    for number in 0..40u64 {
        let hole = |n: u64| link::Hole { incarnation, from: 2 * n, to: 2 * n + 1, kind: 1 };
        let stated = link::HeldLog {
            log: Some(log("t", "o", u16::try_from(number).unwrap()).into()),
            below: Some(link::Place { incarnation, offset: 1 << 40 }),
            holes: (0..20_000).map(hole).collect(),
            ..Default::default()
        };
        let held = carried_body::Kind::Held(link::Held { sequence: number, logs: vec![stated] });
        let outputs = one.hear(1, carry(&body("a/edge", to_site("o"), Some(held)), 5));
        heard += usize::from(outputs.iter().any(|o| matches!(o, Output::RemoteHeld { .. })));
    }
    assert_eq!(heard, 13, "263,144 holes and tips are remembered of one site here");
    assert_eq!(one.count("statement-refused"), 27);
}

#[test]
fn what_a_newer_node_says_that_cannot_be_read_here_costs_no_neighbour_the_link() {
    let mut one = relay();
    let newer_name = || Some(link::NodeName { site: "a newer site's name".into(), node: "edge".into() });
    let (start, sequence) = (Some(start_of("c/edge").into()), 9);
    // A record with a neighbour whose name is not allowed here: its author is known all the same, and it is passed on whole.
    let odd_neighbour = link::RecordBody {
        node: Some((&"c/edge".parse::<NodeName>().unwrap()).into()),
        kind: 1,
        start,
        sequence,
        neighbours: vec![link::Neighbour { node: newer_name(), cost: 1 }],
        ..Default::default()
    };
    let body = bytes::Bytes::from(odd_neighbour.encode_to_vec());
    let outputs = one.hear(2, Kind::Record(link::Record { body: body.clone(), age_ms: 0 }));
    let passed =
        |o: &Output| matches!(o, Output::Send(LinkId(1), m) if matches!(&**m, Kind::Record(r) if r.body == body));
    assert!(outputs.iter().any(passed), "{outputs:?}");
    assert_eq!(one.count("message-not-understood"), 0);

    let record_body = link::RecordBody { node: newer_name(), ..odd_neighbour };
    let heads = vec![link::RecordHead { node: newer_name(), start, sequence }];
    let name = link::LogName { topic: "a//b".into(), origin: "b".into(), queue: 1 };
    let unreadable = [
        Kind::Record(link::Record { body: record_body.encode_to_vec().into(), age_ms: 0 }),
        Kind::Announce(link::Announce { log: Some(name.clone()), ..Default::default() }),
        Kind::Unannounce(link::Unannounce { log: Some(name) }),
        Kind::WantPut(link::WantPut { key: 1, origin: "b".into(), pattern: "a/#/newer".into() }),
    ];
    let count = unreadable.len() as u64;
    for message in unreadable {
        let outputs = one.hear(2, message.clone());
        assert!(!closed(&outputs), "{message:?}: {outputs:?}");
        let told = |o: &Output| matches!(o, Output::Report(r) if r.name == "message-not-understood" && r.text.contains("b/edge"));
        assert!(outputs.iter().any(told), "{message:?}: {outputs:?}");
    }
    assert_eq!(one.count("message-not-understood"), count);
    // A digest is read as far as it can be: what the peer lacks is sent.
    let outputs = one.hear(2, Kind::RecordDigest(link::RecordDigest { heads }));
    let records = outputs.iter().filter(|o| matches!(o, Output::Send(LinkId(2), m) if matches!(**m, Kind::Record(_))));
    assert_eq!(records.count(), 4, "itself, a/edge, b/edge and c/edge: {outputs:?}");
}

#[test]
fn two_edge_brokers_of_one_site_are_told_everywhere_and_one_of_them_counts() {
    let mut one = One::new("r/relay", NodeKind::Relay, &["eu/b", "eu/a", "o/edge"]);
    one.hear(3, record("o/edge", 1, &["r/relay"]));
    let reports = |outputs: &[Output]| {
        let named = |o: &&Output| matches!(o, Output::Report(r) if r.name == "two-edges-one-site");
        outputs.iter().filter(named).count()
    };
    let later = Start { time_us: 2000, random: 1 };
    assert_eq!(reports(&one.hear(1, record_since("eu/b", 1, &["r/relay"], later))), 0);
    let upstream = |one: &One| one.machine.sites().into_iter().find(|s| s.site.as_str() == "eu").unwrap().next_hop;
    assert_eq!(upstream(&one), Some(LinkId(1)));
    let outputs = one.hear(2, record("eu/a", 1, &["r/relay"]));
    assert_eq!(reports(&outputs), 1, "{outputs:?}");
    assert_eq!(upstream(&one), Some(LinkId(2)), "the one that was there first");
    // The other one's statements are nobody's.
    let mut origin = One::new("o/edge", NodeKind::Edge, &["r/relay"]);
    origin.hear(1, record("r/relay", 2, &["o/edge", "eu/a", "eu/b"]));
    origin.hear(1, record_since("eu/b", 1, &["r/relay"], later));
    origin.hear(1, record("eu/a", 1, &["r/relay"]));
    for (author, heard) in [("eu/b", false), ("eu/a", true)] {
        let outputs = origin.hear(1, carry(&body(author, to_site("o"), Some(held(log("t", "o", 1)))), 5));
        assert_eq!(outputs.iter().any(|o| matches!(o, Output::RemoteHeld { .. })), heard, "{author}");
    }
    // The site itself.
    let mut second = One::new("eu/b", NodeKind::Edge, &["r/relay"]);
    second.hear(1, record("r/relay", 2, &["eu/a", "eu/b"]));
    assert_eq!(second.machine.outdone_by(), None);
    let earlier = Start { time_us: 0, random: 1 };
    let outputs = second.hear(1, record_since("eu/a", 1, &["r/relay"], earlier));
    assert_eq!(reports(&outputs), 1);
    assert_eq!(second.machine.outdone_by(), Some("eu/a".parse().unwrap()));
    // It is gone when its neighbour says that the link is.
    let mut gone = link::RecordBody::decode(match record("r/relay", 2, &["eu/b"]) {
        Kind::Record(record) => record.body,
        _ => panic!("not a record"),
    })
    .unwrap();
    gone.sequence = 2;
    second.hear(1, Kind::Record(link::Record { body: gone.encode_to_vec().into(), age_ms: 0 }));
    assert_eq!(second.machine.outdone_by(), None);
}

#[test]
fn announcements_come_as_fast_as_the_neighbour_takes_them() {
    let mut one = relay();
    let announce = |number: u64| {
        let place = |counter: u64| link::Place {
            incarnation: Some(Incarnation { counter, random: counter }.into()),
            offset: counter,
        };
        let edge = |counter: u64| link::IncarnationEdge {
            incarnation: place(counter).incarnation,
            previous: (counter > 1).then(|| place(counter - 1)),
            begin: counter - 1,
            end: counter,
            jumped: false,
        };
        Kind::Announce(link::Announce {
            log: Some(log(&format!("t{number}"), "a", 1).into()),
            begin: Some(link::Place { offset: 0, ..place(1) }),
            tips: vec![place(300)],
            incarnations: (1..=300).map(edge).collect(),
            facts: vec![7, 8].into(),
        })
    };
    const LOGS: usize = 400;
    for number in 0..LOGS as u64 {
        one.hear(1, announce(number));
    }
    let mut outputs = one.hear(2, Kind::WantPut(link::WantPut { key: 5, origin: "a".into(), pattern: "#".into() }));
    let key = outputs.iter().find_map(|o| match o {
        Output::Send(LinkId(1), m) => match &**m {
            Kind::WantPut(want) => Some(want.key),
            _ => None,
        },
        _ => None,
    });
    outputs.extend(one.hear(1, Kind::AnnounceEnd(link::AnnounceEnd { key: key.unwrap(), origin: "a".into() })));
    let (mut announced, mut ended, mut turns) = (0, false, 0);
    loop {
        let (mut bytes, mut paces) = (0, Vec::new());
        for output in outputs {
            let Output::Send(LinkId(2), message) = output else { continue };
            match *message {
                Kind::Announce(announce) => {
                    assert!(!ended);
                    assert_eq!(&announce.facts[..], [7, 8], "passed on unread");
                    bytes += announce.encoded_len();
                    announced += 1;
                }
                Kind::AnnounceEnd(_) => ended = true,
                Kind::Pace(pace) => paces.push(pace.number),
                _ => {}
            }
        }
        assert!(bytes < 5 * 256 * 1024, "{bytes} bytes at once");
        let Some(last) = paces.pop() else { break };
        turns += 1;
        outputs = one.hear(2, Kind::Paced(link::Paced { number: last }));
    }
    assert_eq!((announced, ended), (LOGS, true));
    assert!(turns > 2, "{turns}");
}
