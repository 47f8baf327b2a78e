//! Conversions: round trips of the checked types, refusals, and mutated messages.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

prop_compose! {
    fn places()(counter in any::<u64>(), random in any::<u64>(), offset in any::<u64>()) -> Place {
        Place { incarnation: Incarnation { counter, random }, offset }
    }
}

prop_compose! {
    fn logs()(topic in "[a-z_$][a-zé]{0,9}", origin in "[a-z]{1,9}", queue in 0..=u16::MAX) -> LogName {
        LogName { topic: topic.parse().unwrap(), origin: origin.parse().unwrap(), queue: Queue(queue) }
    }
}

prop_compose! {
    fn orders()(
        number in any::<u64>(), live in any::<bool>(), log in logs(), from in places(), main in any::<bool>(),
        passing in any::<bool>(), hops in any::<u32>(), allowance in any::<u64>(),
        until in prop::option::of(1..u64::MAX), no_wait in any::<bool>(), towards in prop::option::of("[a-z]{1,9}"),
    ) -> FetchOrder {
        let lane = if live { Lane::Live } else { Lane::Backlog };
        let line = if main { FetchLine::Main } else { FetchLine::Incarnation };
        let towards = towards.map(|site| NodeName::new(site.parse().unwrap(), "a").unwrap());
        FetchOrder { number, lane, log, from, line, passing, hops, allowance, until, no_wait, towards }
    }
}

prop_compose! {
    fn held()(
        log in logs(), from in prop::option::of(places()), below in places(), chain in prop::option::of(any::<[u8; 16]>()),
        holes in prop::collection::vec((places(), 1..1000u64, 0..3usize), 0..4), fork_tips in prop::collection::vec(places(), 0..4),
        jumps in prop::collection::btree_map(1..100u64, (0..1000u64, prop::option::of(places())), 0..4),
    ) -> HeldLog {
        let kinds = [HoleKind::Pending, HoleKind::NotWanted, HoleKind::Lost];
        let hole = |(at, len, kind): (Place, u64, usize)| {
            let from = at.offset / 2;
            Hole { incarnation: at.incarnation, from, to: from + len, kind: kinds[kind] }
        };
        let holes = holes.into_iter().map(hole).collect();
        let jump = |(counter, (begin, from))| Jump { incarnation: Incarnation { counter, random: 7 }, begin, from };
        let jumps = jumps.into_iter().map(jump).collect();
        HeldLog { log, from, below, chain: chain.map(Chain), holes, fork_tips, jumps }
    }
}

proptest! {
    #[test]
    fn fetches_come_back(order in orders()) {
        let bytes = link::Fetch::from(&order).encode_to_vec();
        let read: FetchOrder = link::Fetch::decode(&bytes[..]).unwrap().try_into().unwrap();
        prop_assert_eq!(read, order);
    }

    #[test]
    fn statements_come_back(held in held()) {
        let bytes = link::HeldLog::from(held.clone()).encode_to_vec();
        let read: HeldLog = link::HeldLog::decode(&bytes[..]).unwrap().try_into().unwrap();
        prop_assert_eq!(read, held);
    }

    #[test]
    fn ends_come_back(number in any::<u64>(), at in prop::option::of(places()), end in 0..10, site in "[a-z]{0,5}") {
        let end = link::FetchEnd::try_from(end).unwrap();
        let ended = FetchEnded { number, end, at, answered_by: site, text: "why".into() };
        let bytes = link::FetchEnded::from(ended.clone()).encode_to_vec();
        prop_assert_eq!(FetchEnded::try_from(link::FetchEnded::decode(&bytes[..]).unwrap()).unwrap(), ended);
    }

    #[test]
    fn mutated_messages_never_panic(held in held(), order in orders(), at in any::<prop::sample::Index>(), by in any::<u8>()) {
        for mut bytes in [link::HeldLog::from(held).encode_to_vec(), link::Fetch::from(&order).encode_to_vec()] {
            let at = at.index(bytes.len());
            bytes[at] = by;
            let _ = link::HeldLog::decode(&bytes[..]).map(HeldLog::try_from);
            let _ = link::Fetch::decode(&bytes[..]).map(FetchOrder::try_from);
        }
    }
}

#[test]
fn what_is_impossible_is_refused() {
    let log = link::LogName { topic: "a".into(), origin: "b".into(), queue: 70_000 };
    assert_eq!(LogName::try_from(log), Err(WireError::Range { what: "queue", found: 70_000 }));
    let log = link::LogName { topic: "a/b".into(), origin: "b".into(), queue: 1 };
    assert!(matches!(LogName::try_from(log), Err(WireError::Name(_))));
    assert_eq!(Place::try_from(link::Place::default()), Err(WireError::Missing("place.incarnation")));
    let hole = link::Hole { incarnation: Some(link::Incarnation::default()), from: 5, to: 5, kind: 1 };
    assert_eq!(Hole::try_from(hole), Err(WireError::Range { what: "hole.to", found: 5 }));
    assert!(matches!(chain_from_wire(&[1; 15]), Err(WireError::Length { found: 15, .. })));
    assert_eq!(Lane::try_from(3), Err(WireError::Range { what: "lane", found: 3 }));
    let name = link::NodeName { site: "Berlin".into(), node: "a".into() };
    assert!(matches!(NodeName::try_from(name), Err(WireError::Name(_))));
}

/// What is stored is read for ever; a round trip does not notice a field whose number changed.
#[test]
#[allow(clippy::too_many_lines, reason = "one list of all that is stored")]
fn what_is_stored_stays_as_it_is() {
    let at = store::Place { counter: 1, random: 2, offset: 3 };
    let settings =
        store::TopicSettings { queues: 4, message_bytes_max: 1000, codec: 2, ..store::TopicSettings::default() };
    let end = store::QueueEnd { queue: 1, end: Some(at), ..Default::default() };
    let deleted =
        store::TopicDeleted { life: 1, time_us: 2, ends: vec![end.clone()], entry: Some(at), ..Default::default() };
    let full = store::TopicSettings {
        replicate: Some(store::Replicate { sites: vec!["us".into()] }),
        change: Some(store::QueueChange { ends: vec![end], entry: Some(at) }),
        life: 1,
        written_us: 12,
        deleted: Some(deleted.clone()),
        ..settings.clone()
    };
    let overrides = store::TopicOverrides {
        queues: Some(1),
        message_bytes_max: Some(2),
        codec: Some(1),
        replicate: Some(store::ReplicateOverride { all: false, sites: vec!["us".into()] }),
        retention_bytes: Some(3),
        retention_us: Some(0),
    };
    let run = store::ProducerRun { sequence: 5, count: 6, offset: 7 };
    let want = |start| store::StoredWant {
        pattern: "orders/#".into(),
        origins: vec!["eu".into()],
        registers: true,
        start: Some(start),
    };
    let incarnation = Some(link::Incarnation { counter: 1, random: 2 });
    let place = |offset| Some(link::Place { incarnation, offset });
    let start = Some(link::Start { time_us: 8, random: 9 });
    let held = link::HeldLog {
        log: Some(link::LogName { topic: "orders".into(), origin: "eu".into(), queue: 1 }),
        below: place(10),
        chain: vec![7; 16].into(),
        holes: vec![link::Hole { incarnation, from: 2, to: 4, kind: 1 }],
        fork_tips: vec![link::Place { incarnation, offset: 12 }],
        from: place(1),
        jumps: vec![link::Jump { incarnation, begin: 2, from: place(1) }],
        refused: String::new(),
        untaken: false,
    };
    let node =
        store::NodeStart { time_us: 8, random: 9, federation: "acme".into(), site: "eu".into(), node: "edge".into() };
    let registration = link::StoredRegistration {
        site: "us".into(),
        start,
        sequence: 3,
        origin: "eu".into(),
        patterns: vec!["#".into()],
    };
    let all = [
        (
            "ControlEntry",
            store::ControlEntry { kind: Some(store::control_entry::Kind::Settings(settings.clone())) }.encode_to_vec(),
        ),
        ("TopicSettings", settings.encode_to_vec()),
        ("ProducerHead", store::ProducerHead { epoch: 1, floor: 2 }.encode_to_vec()),
        ("ProducerRow", store::ProducerRow { queue: 1, first: Some(at), runs: vec![run] }.encode_to_vec()),
        ("StoredWant earliest", want(store::stored_want::Start::Earliest(true)).encode_to_vec()),
        ("StoredWant latest", want(store::stored_want::Start::Latest(true)).encode_to_vec()),
        ("StoredWant time", want(store::stored_want::Start::TimeUs(11)).encode_to_vec()),
        ("NodeStart", node.encode_to_vec()),
        (
            "StoredHeld",
            link::StoredHeld { site: "us".into(), start, sequence: 3, log: Some(held), ..Default::default() }
                .encode_to_vec(),
        ),
        ("StoredRegistration", registration.encode_to_vec()),
        ("TopicSettings in full", full.encode_to_vec()),
        ("TopicDeleted", deleted.encode_to_vec()),
        ("TopicOverrides", overrides.encode_to_vec()),
        ("LogFacts", link::LogFacts { deleted_below: 5 }.encode_to_vec()),
    ];
    let mut found = String::new();
    for (name, bytes) in all {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        found += &format!("{name}: {hex}\n");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/stored_golden.hex");
    let expected = std::fs::read_to_string(path).unwrap();
    assert!(found == expected, "the bytes stored have changed; they are now\n{found}");
}
