//! The bytes of everything that the log writes, as they were when each was settled: a round trip does not notice a layout
//! that changed. What stands in `golden.hex` may be added to, and never changed: see [`super::super`] for what a new
//! layout needs instead.

use std::fmt::Write as _;

use bytes::Bytes;
use seaway_federation_proto::{
    copies::{Hole, HoleKind, LogCopy},
    envelope::{Batch, Chain, Codec, Placement},
    ids::{Incarnation, LogName, Place, Queue, Start},
    message::{BodyBuilder, Message},
};

use crate::log::{
    contract::{Entry, Role, Table},
    disk::{
        checkpoint::Item,
        codec::Position,
        group::{FLAG_CHECKPOINT, GroupHeader, GroupKey, UnitLine},
        record::{DecodedUnit, EncodedUnit, Record},
        segment::{FORMAT, SegmentHeader},
    },
};

const INCARNATION: Incarnation = Incarnation { counter: 3, random: 0x1122_3344_5566_7788 };
const AT: Place = Place { incarnation: INCARNATION, offset: 9 };
const HOLE: Hole = Hole { incarnation: INCARNATION, from: 9, to: 12, kind: HoleKind::NotWanted };

fn name() -> LogName {
    LogName { topic: "orders".parse().unwrap(), origin: "eu".parse().unwrap(), queue: Queue(2) }
}

fn batch() -> Batch {
    let mut body = BodyBuilder::default();
    body.push(&Message {
        path: "orders/new".parse().unwrap(),
        key: Some(Bytes::from_static(b"k")),
        headers: Vec::new(),
        time_us: 1_700_000_000_000_000,
        producer: None,
        payload: Bytes::from_static(b"content"),
    });
    let log = name();
    let placement = Placement {
        log: &log,
        begin: AT,
        first_of_incarnation: true,
        previous: Some(Place { incarnation: Incarnation { counter: 2, random: 1 }, offset: 9 }),
        origin_time_us: 1_700_000_000_000_000,
        chain_before: Chain([7; 16]),
    };
    Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap()
}

fn records() -> Vec<(&'static str, Record)> {
    let (log, key) = (name(), Bytes::from_static(b"key"));
    let entries = [
        ("append, own", Entry::Append { role: Role::Own, batch: batch() }),
        ("append, copy", Entry::Append { role: Role::Copy, batch: batch() }),
        ("begin copy", Entry::BeginCopy { log: log.clone(), at: AT, chain: Some(Chain([5; 16])) }),
        ("begin copy, chain unknown", Entry::BeginCopy { log: log.clone(), at: AT, chain: None }),
        ("hole", Entry::Hole { log: log.clone(), hole: HOLE }),
        ("rekind", Entry::Rekind { log: log.clone(), hole: HOLE, was: HoleKind::Lost }),
        ("trim", Entry::Trim { log: log.clone(), to: AT }),
        ("drop", Entry::Drop { log }),
        ("put", Entry::Put { table: Table::Groups, key: key.clone(), value: Bytes::from_static(b"value") }),
        ("delete", Entry::Delete { table: Table::Nodes, key }),
    ];
    let mut all: Vec<_> = entries.into_iter().map(|(what, entry)| (what, Record::Entry(entry))).collect();
    all.extend([
        ("moved", Record::Moved { stored_at_us: 5, role: Role::Own, batch: batch() }),
        (
            "checkpoint begins",
            Record::CheckpointBegin { number: 4, as_of: Position { segment: 2, at: 512 }, sequence: 6 },
        ),
        ("checkpoint part", Record::CheckpointPart { number: 4, part: 1, body: Bytes::from_static(b"items") }),
        ("checkpoint ends", Record::CheckpointEnd { number: 4, parts: 2 }),
        ("reclaimed", Record::Reclaimed { segment: 8 }),
    ]);
    all
}

fn items() -> Vec<(&'static str, Item)> {
    let copy = Box::new(LogCopy::begin(AT, Some(Chain([5; 16]))));
    vec![
        ("item segment", Item::Segment(7)),
        ("item log", Item::Log { role: Role::Copy, name: name(), copy }),
        ("item value", Item::Value { key: Bytes::from_static(b"\x06key"), value: Bytes::from_static(b"value") }),
        ("item damage", Item::Damage { name: name(), incarnation: INCARNATION, from: 9, to: 12 }),
    ]
}

fn unit(record: &Record) -> (Vec<u8>, u32) {
    let unit = EncodedUnit::encode(1_700_000_000_000_001, std::slice::from_ref(record));
    assert!(unit.bodies.is_empty(), "small bodies stand inside");
    (unit.small, unit.crc)
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        format: FORMAT,
        number: 2,
        directory: [0xd1; 16],
        made_at_us: 1_700_000_000_000_000,
        previous: (1, 8192),
        first_sequence: 17,
        federation: "acme".into(),
        site: "eu".into(),
        node: "edge".into(),
    }
}

fn group_header() -> GroupHeader {
    let units = vec![UnitLine { length: 100, crc: 0xaabb_ccdd }, UnitLine { length: 1, crc: 1 }];
    GroupHeader {
        position: Position { segment: 2, at: 4096 },
        length: (crate::log::disk::group::header_bytes(2) + 101) as u64,
        flags: FLAG_CHECKPOINT,
        start: Start { time_us: 11, random: 12 },
        sequence: 17,
        durable: Position { segment: 1, at: 8192 },
        written_at_us: 13,
        units,
        later: 0,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn what_is_written_stays_as_it_is() {
    let mut found = String::new();
    let mut line = |what: &str, bytes: &[u8]| writeln!(found, "{what}: {}", hex(bytes)).unwrap();
    let header = segment_header().encode();
    let used = header.iter().take(4092).rposition(|byte| *byte != 0).unwrap() + 1;
    line("segment header", &header[..used]);
    line("segment header crc", &header[4092..]);
    let mut bytes = Vec::new();
    group_header().encode(GroupKey::of(&[0xd1; 16]), &mut bytes);
    line("group header", &bytes);
    for (what, record) in records() {
        let (bytes, crc) = unit(&record);
        line(what, &bytes);
        line(&format!("{what}, crc"), &crc.to_le_bytes());
    }
    for (what, item) in items() {
        let mut bytes = Vec::new();
        item.encode(&mut bytes);
        line(what, &bytes);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/log/disk/tests/golden.hex");
    let expected = std::fs::read_to_string(path).unwrap();
    assert!(found == expected, "the bytes written have changed; they are now\n{found}");
}

#[test]
fn what_was_written_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/log/disk/tests/golden.hex");
    let text = std::fs::read_to_string(path).unwrap();
    let line = |what: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
        unhex(found.unwrap_or_else(|| panic!("there is no line for {what}")))
    };
    let position = group_header().position;
    let (header, _) = GroupHeader::decode(&line("group header"), GroupKey::of(&[0xd1; 16]), position).unwrap();
    assert_eq!(header, group_header());
    for (what, record) in records() {
        let crc = u32::from_le_bytes(line(&format!("{what}, crc")).try_into().unwrap());
        let read = DecodedUnit::decode(&line(what).into(), crc, false).unwrap();
        assert_eq!((read.records.len(), read.bad.len()), (1, 0), "{what}");
        assert_eq!(format!("{:?}", read.records[0].record), format!("{record:?}"), "{what}");
    }
    for (what, item) in items() {
        assert_eq!(crate::log::disk::checkpoint::decode_part(&line(what)), Some(vec![item]), "{what}");
    }
}
