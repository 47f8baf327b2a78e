//! Tools for a stopped node: check everything in a data directory, or list what is in it. They take the
//! directory's lock, read segments only, and change nothing.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use seaway_federation_proto::{
    copies::{Facts, Hole, HoleKind},
    envelope::Batch,
    ids::{Incarnation, LogName, Offset, Place},
};

use super::{
    codec::Position,
    group::{GroupHeader, GroupKey},
    identity::{self, OpenError, io_failed},
    record::Record,
    scan::{Depth, FoundGroup, Scanner, Step},
    segment::{self, HEADER_BYTES},
    survey,
};
use crate::log::{
    contract::{Damage, Entry, Role},
    files::{Files, OsFiles},
};

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Whose directory it is: `FEDERATION SITE/NODE`.
    pub owner: String,
    /// Segment files.
    pub segments: u64,
    /// Their bytes in use.
    pub bytes: u64,
    /// Groups.
    pub groups: u64,
    /// Units.
    pub units: u64,
    /// Batches.
    pub batches: u64,
    /// Messages in them.
    pub messages: u64,
    /// Logs that batches were found of.
    pub logs: u64,
    /// Damage, broken chains included.
    pub damage: Vec<Damage>,
    /// What a start of the node would cut, in bytes.
    pub torn_bytes: u64,
    /// Where: segment file and byte.
    pub torn_at: Option<(String, u64)>,
}

/// Which records [`dump`] lists.
#[derive(Debug, Clone, Default)]
pub struct DumpFilter {
    /// Only of this topic.
    pub topic: Option<String>,
    /// Only of this origin.
    pub origin: Option<String>,
    /// Only in this segment.
    pub segment: Option<u64>,
    /// Groups too, those without units (idle durable points) included.
    pub groups: bool,
}

/// One line of [`dump`].
#[derive(Debug, Clone)]
pub struct DumpLine {
    /// Segment number.
    pub segment: u64,
    /// Byte in the file: of the batch, or of the unit that holds the record.
    pub at: u64,
    /// When the unit was stored, microseconds since 1970.
    pub stored_at_us: u64,
    /// Kind: `append`, `moved`, `begin-copy`, `hole`, `rekind`, `trim`, `drop`, `put`, `delete`, `checkpoint-begin`,
    /// `checkpoint-part`, `checkpoint-end`, `reclaimed`, `group`, `damage`.
    pub kind: &'static str,
    /// The log, where there is one.
    pub log: Option<LogName>,
    /// The place, where there is one.
    pub place: Option<Place>,
    /// The rest in words.
    pub detail: String,
    /// The batch, for those who want its messages.
    pub batch: Option<Batch>,
}

/// Checks every byte of every segment of a stopped node.
pub fn verify(dir: &Path) -> Result<VerifyReport, OpenError> {
    let files: Arc<dyn Files> = Arc::new(OsFiles);
    let mut report = VerifyReport::default();
    let mut chains = Chains::default();
    let mut walk = Walk::begin(&files, dir)?;
    report.owner = walk.owner.clone();
    report.torn_bytes = walk.end.torn_bytes;
    report.torn_at = walk.end.cut.map(|cut| (walk.name(cut.segment), cut.at));
    report.segments = walk.numbers.len() as u64;
    let mut damage = Vec::new();
    let mut reclaimed = Vec::new();
    walk.run(&mut |step| {
        match step {
            Seen::Damage(found) => damage.push(found),
            Seen::Group { name, group } => {
                report.groups += 1;
                report.units += group.units.len() as u64;
                report.bytes += group.header.length;
                for (at, _, record) in located(&group) {
                    if let Record::Reclaimed { segment } = record {
                        reclaimed.push(*segment);
                    }
                    if let Some((_, batch)) = record.batch() {
                        report.batches += 1;
                        report.messages += u64::from(batch.header().count);
                    }
                    damage.extend(chains.follow(record, &name, at));
                }
            }
        }
        true
    })?;
    let first = walk.numbers.first().copied().unwrap_or(1);
    let last = walk.numbers.last().copied().unwrap_or(0);
    for number in (first..last).filter(|n| !walk.numbers.contains(n) && !reclaimed.contains(n)) {
        damage.push(Damage { file: walk.name(number), from: 0, to: 0, detail: "the segment file is missing".into() });
    }
    report.logs = chains.logs.len() as u64;
    report.damage = damage;
    Ok(report)
}

/// Hands every record of a stopped node's log to `sink`, in the order of storage, until it answers false.
pub fn dump(dir: &Path, filter: &DumpFilter, sink: &mut dyn FnMut(DumpLine) -> bool) -> Result<(), OpenError> {
    let files: Arc<dyn Files> = Arc::new(OsFiles);
    let mut walk = Walk::begin(&files, dir)?;
    if let Some(only) = filter.segment {
        walk.numbers.retain(|number| *number == only);
    }
    walk.run(&mut |step| match step {
        Seen::Damage(found) => {
            let number = Path::new(&found.file).file_name().and_then(|name| segment::number_of(name.to_str()?));
            let detail = format!("up to byte {}: {}", found.to, found.detail);
            let line = DumpLine { at: found.from, ..line_of(number.unwrap_or(0), "damage", detail) };
            sink(line)
        }
        Seen::Group { group, .. } => {
            if filter.groups && !sink(group_line(&group.header)) {
                return false;
            }
            let lines = located(&group).map(|(at, stored, record)| record_line(&group.header, at, stored, record));
            let wanted = |line: &DumpLine| {
                let topic = line.log.as_ref().map(|log| log.topic.as_str());
                let origin = line.log.as_ref().map(|log| log.origin.as_str());
                filter.topic.as_deref().is_none_or(|wanted| topic == Some(wanted))
                    && filter.origin.as_deref().is_none_or(|wanted| origin == Some(wanted))
            };
            lines.filter(wanted).all(&mut *sink)
        }
    })
}

fn located(group: &FoundGroup) -> impl Iterator<Item = (u64, u64, &Record)> {
    group.units.iter().flat_map(|found| {
        let records =
            found.unit.iter().flat_map(|unit| unit.records.iter().map(|located| (unit.stored_at_us, located)));
        records.map(|(stored, located)| (found.from + u64::from(located.batch_at), stored, &located.record))
    })
}

enum Seen {
    Group { name: String, group: Box<FoundGroup> },
    Damage(Damage),
}

/// Goes through a directory's segments, up to where it is torn.
struct Walk<'a> {
    files: &'a Arc<dyn Files>,
    dir: &'a Path,
    owner: String,
    directory: [u8; 16],
    numbers: Vec<u64>,
    end: survey::End,
    _lock: Box<dyn crate::log::files::LockGuard>,
}

impl<'a> Walk<'a> {
    fn begin(files: &'a Arc<dyn Files>, dir: &'a Path) -> Result<Self, OpenError> {
        let not_there = || OpenError::NotThere { dir: dir.display().to_string() };
        if !dir.join("identity").exists() {
            return Err(not_there());
        }
        let lock = identity::lock(files, dir)?;
        let identity = identity::read(files, dir)?.ok_or_else(not_there)?;
        let numbers = survey::list(files, dir)?;
        let end = survey::survey(files, dir, &numbers, None, Some(&identity.directory))?;
        let owner = format!("{} {}/{}", identity.federation, identity.site, identity.node);
        Ok(Self { files, dir, owner, directory: identity.directory, numbers, end, _lock: lock })
    }

    fn name(&self, number: u64) -> String {
        self.dir.join(segment::relative_path(number)).display().to_string()
    }

    fn run(&mut self, see: &mut dyn FnMut(Seen) -> bool) -> Result<(), OpenError> {
        for (index, number) in self.numbers.iter().enumerate() {
            if !self.segment(*number, self.numbers.get(index + 1).copied(), see)? {
                break;
            }
        }
        Ok(())
    }

    fn segment(&self, number: u64, next: Option<u64>, see: &mut dyn FnMut(Seen) -> bool) -> Result<bool, OpenError> {
        let path = self.dir.join(segment::relative_path(number));
        let name = self.name(number);
        let damage =
            |from, to, detail: &str| Seen::Damage(Damage { file: name.clone(), from, to, detail: detail.to_owned() });
        let torn = |at: u64| self.end.cut.is_some_and(|cut| Position { segment: number, at } >= cut);
        if torn(0) {
            return Ok(false);
        }
        let open = survey::open_segment(self.files, self.dir, number, Some(&self.directory))?;
        if open.header.is_none() && !see(damage(0, HEADER_BYTES, "the segment's header is damaged")) {
            return Ok(false);
        }
        let after = open.header.map_or(0, |header| header.first_sequence.saturating_sub(1));
        let from = Position { segment: number, at: HEADER_BYTES };
        let key = GroupKey::of(&self.directory);
        let mut scanner =
            Scanner::new(open.file, key, from, after, Depth::Bodies).map_err(io_failed("reading", &path))?;
        loop {
            let goes_on = match scanner.step().map_err(io_failed("reading", &path))? {
                Step::Group(group) if torn(group.header.position.at) => return Ok(false),
                Step::Group(group) => {
                    let bad = group.bad();
                    bad.into_iter().all(|bad| see(damage(bad.from, bad.to, &bad.detail)))
                        && see(Seen::Group { name: name.clone(), group })
                }
                Step::Bad(range) if torn(range.from) => return Ok(false),
                Step::Bad(range) => see(damage(range.from, range.to, &range.detail)),
                Step::End { at, .. } => {
                    let should = self.should_end(number, next, at)?;
                    return Ok(at >= should || see(damage(at, should, "bytes that were durable are gone")));
                }
            };
            if !goes_on {
                return Ok(false);
            }
        }
    }

    fn should_end(&self, number: u64, next: Option<u64>, end: u64) -> Result<u64, OpenError> {
        let durable = self.end.durable;
        let should = if durable.segment == number { durable.at.max(end) } else { end };
        let Some(next) = next else { return Ok(should) };
        let header = survey::open_segment(self.files, self.dir, next, Some(&self.directory))?.header;
        Ok(header.filter(|h| h.previous.0 == number).map_or(should, |h| should.max(h.previous.1)))
    }
}

/// Follows the chains of all logs, as far as batches follow each other.
#[derive(Debug, Default)]
struct Chains {
    logs: BTreeMap<LogName, BTreeMap<Incarnation, (Offset, seaway_federation_proto::envelope::Chain)>>,
}

impl Chains {
    fn follow(&mut self, record: &Record, name: &str, at: u64) -> Option<Damage> {
        let Record::Entry(Entry::Append { batch, .. }) = record else { return None };
        let facts = Facts::from(batch);
        let log = self.logs.entry(batch.header().log.clone()).or_default();
        let before = log.insert(facts.begin.incarnation, (facts.end, facts.chain_after));
        let broken = before.is_some_and(|(end, chain)| end == facts.begin.offset && chain != facts.chain_before);
        broken.then(|| Damage {
            file: name.to_owned(),
            from: at,
            to: at + batch.len() as u64,
            detail: format!("the batch of {} at {} does not follow the one before it", batch.header().log, facts.begin),
        })
    }
}

fn line_of(segment: u64, kind: &'static str, detail: String) -> DumpLine {
    DumpLine { segment, at: 0, stored_at_us: 0, kind, log: None, place: None, detail, batch: None }
}

fn group_line(header: &GroupHeader) -> DumpLine {
    let durable = header.durable;
    let detail = format!(
        "sequence {}, {} units, {} bytes, durable up to segment {} byte {}, process start {}",
        header.sequence,
        header.units.len(),
        header.length,
        durable.segment,
        durable.at,
        header.start.time_us
    );
    let line = line_of(header.position.segment, "group", detail);
    DumpLine { at: header.position.at, stored_at_us: header.written_at_us, ..line }
}

fn record_line(header: &GroupHeader, at: u64, stored_at_us: u64, record: &Record) -> DumpLine {
    let batch_detail = |role: &Role, batch: &Batch| {
        format!("{role:?}, {} messages, {} bytes", batch.header().count, batch.len()).to_lowercase()
    };
    let hole_detail = |hole: &Hole, was: Option<&HoleKind>| match was {
        None => format!("to {}, {:?}", hole.to, hole.kind),
        Some(was) => format!("to {}, {:?}, was {was:?}", hole.to, hole.kind),
    };
    let hole_place = |hole: &Hole| Place { incarnation: hole.incarnation, offset: hole.from };
    let key = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    let (kind, log, place, detail) = match record {
        Record::Entry(entry) => match entry {
            Entry::Append { role, batch } => {
                let header = batch.header();
                ("append", Some(&header.log), Some(header.begin), batch_detail(role, batch))
            }
            Entry::BeginCopy { log, at, chain } => ("begin-copy", Some(log), Some(*at), format!("chain {chain:?}")),
            Entry::Hole { log, hole } => ("hole", Some(log), Some(hole_place(hole)), hole_detail(hole, None)),
            Entry::Rekind { log, hole, was } => {
                ("rekind", Some(log), Some(hole_place(hole)), hole_detail(hole, Some(was)))
            }
            Entry::Trim { log, to } => ("trim", Some(log), Some(*to), String::new()),
            Entry::Drop { log } => ("drop", Some(log), None, String::new()),
            Entry::Put { table, key: k, value } => {
                ("put", None, None, format!("{table:?} {:?}, {} bytes", key(k), value.len()))
            }
            Entry::Delete { table, key: k } => ("delete", None, None, format!("{table:?} {:?}", key(k))),
        },
        Record::Moved { role, batch, .. } => {
            let header = batch.header();
            ("moved", Some(&header.log), Some(header.begin), batch_detail(role, batch))
        }
        Record::CheckpointBegin { number, as_of, .. } => {
            ("checkpoint-begin", None, None, format!("{number}, as of segment {} byte {}", as_of.segment, as_of.at))
        }
        Record::CheckpointPart { number, part, body } => {
            ("checkpoint-part", None, None, format!("{number}, part {part}, {} bytes", body.len()))
        }
        Record::CheckpointEnd { number, parts } => ("checkpoint-end", None, None, format!("{number}, {parts} parts")),
        Record::Reclaimed { segment } => ("reclaimed", None, None, format!("segment {segment}")),
    };
    DumpLine {
        segment: header.position.segment,
        at,
        stored_at_us,
        kind,
        log: log.cloned(),
        place,
        detail,
        batch: record.batch().map(|(_, batch)| batch.clone()),
    }
}

/// What [`inspect_segment`] counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inspected {
    /// Groups whose header is good.
    pub groups: usize,
    /// Units in them that are good.
    pub units: usize,
    /// Batches in these that are good.
    pub batches: usize,
    /// Ranges of bytes that are not what was written.
    pub bad: usize,
}

/// Reads bytes as those of segment `number`, whatever they are: for fuzzing, and for pieces saved from a broken disk.
pub fn inspect_segment(number: u64, bytes: Vec<u8>) -> Inspected {
    let mut found = Inspected::default();
    let directory = segment::SegmentHeader::decode(&bytes).map(|header| header.directory).unwrap_or_default();
    let from = Position { segment: number, at: HEADER_BYTES };
    let key = GroupKey::of(&directory);
    let Ok(mut scanner) = Scanner::new(Arc::new(Memory(bytes)), key, from, 0, Depth::Bodies) else { return found };
    while let Ok(step) = scanner.step() {
        match step {
            Step::Group(group) => {
                found.groups += 1;
                found.bad += group.bad().len();
                for (_, _, record) in located(&group) {
                    found.batches += usize::from(record.batch().is_some());
                    if let Record::CheckpointPart { body, .. } = record {
                        let _ = super::checkpoint::decode_part(body);
                    }
                }
                found.units += group.units.iter().filter(|found| found.unit.is_some()).count();
            }
            Step::Bad(_) => found.bad += 1,
            Step::End { .. } => break,
        }
    }
    found
}

/// Bytes as a file that is only read.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl crate::log::files::LogFile for Memory {
    fn write_all_at(&self, _: &mut [std::io::IoSlice<'_>], _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = rest.len().min(into.len());
        if let (Some(into), Some(from)) = (into.get_mut(..len), rest.get(..len)) {
            into.copy_from_slice(from);
        }
        Ok(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn truncate(&self, _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn allocate(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}
