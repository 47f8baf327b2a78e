//! The end of the log as a crash left it: where the greatest durable point is, and what is torn after it.

use std::{io, path::Path, sync::Arc};

use super::{
    codec::Position,
    group::GroupKey,
    identity::{OpenError, io_failed},
    index::Applied,
    scan::{Depth, Scanner, Step, read_padded},
    segment::{self, HEADER_BYTES, SegmentError, SegmentHeader},
};
use crate::log::files::{Files, LogFile};

/// Bytes that [`settle`] writes at once.
const SETTLE_BYTES: usize = 1 << 20;

/// The segment files of a directory, in order.
pub(crate) fn list(files: &Arc<dyn Files>, dir: &Path) -> Result<Vec<u64>, OpenError> {
    let path = dir.join(segment::DIRECTORY);
    let mut numbers: Vec<u64> = match files.list(&path) {
        Ok(names) => names.iter().filter_map(|name| segment::number_of(name)).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(io_failed("listing", &path)(e)),
    };
    numbers.sort_unstable();
    Ok(numbers)
}

/// An open segment and its header, where that can be read.
pub(crate) struct OpenSegment {
    pub(crate) file: Arc<dyn LogFile>,
    pub(crate) header: Option<SegmentHeader>,
}

/// Opens a segment; one of a newer format or of another directory is refused.
pub(crate) fn open_segment(
    files: &Arc<dyn Files>,
    dir: &Path,
    number: u64,
    directory: Option<&[u8; 16]>,
) -> Result<OpenSegment, OpenError> {
    let path = dir.join(segment::relative_path(number));
    let file = files.open(&path).map_err(io_failed("opening", &path))?;
    let mut bytes = vec![0; HEADER_BYTES as usize];
    let len = file.len().map_err(io_failed("reading", &path))?;
    bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    let read = file.read_exact_at(&mut bytes, 0);
    let header = match read.map(|()| SegmentHeader::decode(&bytes)) {
        Ok(Ok(header)) => header,
        Ok(Err(SegmentError::NewerFormat(found))) => {
            return Err(OpenError::NewerFormat { file: path.display().to_string(), found });
        }
        Ok(Err(SegmentError::Damaged)) | Err(_) => return Ok(OpenSegment { file, header: None }),
    };
    let malformed = |why: String| Err(OpenError::Malformed { file: path.display().to_string(), why });
    if directory.is_some_and(|directory| *directory != header.directory) {
        let owner = format!("federation {}, node {}/{}", header.federation, header.site, header.node);
        return malformed(format!(
            "it was written in another data directory (of {owner}) than the file identity beside it; put back the one of the two that belongs here, from a backup"
        ));
    }
    if header.number != number {
        return malformed(format!("inside it says that it is segment {}; give it back its name", header.number));
    }
    Ok(OpenSegment { file, header: Some(header) })
}

/// What is known of one segment at the end of the log.
#[derive(Debug)]
struct Tail {
    number: u64,
    header_ok: bool,
    groups: usize,
    /// Where groups with something bad in them, or bytes that are no group, begin.
    bad: Vec<u64>,
    /// Byte after the last group.
    end: u64,
    /// Byte after the last that is not zero.
    written_to: u64,
    len: u64,
}

/// What the end of the log looks like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct End {
    /// The greatest durable point.
    pub(crate) durable: Position,
    /// From here on everything is torn; `None`: nothing is.
    pub(crate) cut: Option<Position>,
    /// How many bytes that are.
    pub(crate) torn_bytes: u64,
    /// Good bytes after the durable point, by segment: from, to.
    pub(crate) unsettled: Vec<(u64, u64, u64)>,
}

/// Looks at the last segments until the greatest durable point is known.
pub(crate) fn survey(
    files: &Arc<dyn Files>,
    dir: &Path,
    numbers: &[u64],
    applied: Option<&Applied>,
    directory: Option<&[u8; 16]>,
) -> Result<End, OpenError> {
    let mut durable = applied.map(|applied| applied.to).unwrap_or_default();
    let mut tails = Vec::new();
    let applied_to = durable.segment;
    for number in numbers.iter().rev().copied().take_while(|number| *number >= applied_to) {
        let open = open_segment(files, dir, number, directory)?;
        let path = dir.join(segment::relative_path(number));
        let (tail, point) = survey_one(&open, number, applied, directory).map_err(io_failed("reading", &path))?;
        durable = durable.max(point);
        let known = tail.header_ok || tail.groups > 0;
        tails.push(tail);
        if known {
            break;
        }
    }
    tails.reverse();
    let cut = tails.iter().find_map(|tail| cut_in(tail, durable));
    let torn_bytes = cut.map_or(0, |cut| tails.iter().map(|tail| torn_in(tail, cut)).sum());
    let unsettled = tails.iter().filter_map(|tail| unsettled_in(tail, durable, cut)).collect();
    Ok(End { durable, cut, torn_bytes, unsettled })
}

/// What of a segment is good, stays, and is not known to be durable.
fn unsettled_in(tail: &Tail, durable: Position, cut: Option<Position>) -> Option<(u64, u64, u64)> {
    let from = match tail.number.cmp(&durable.segment) {
        std::cmp::Ordering::Less => return None,
        std::cmp::Ordering::Equal => durable.at,
        std::cmp::Ordering::Greater => 0,
    };
    let to = match cut {
        Some(cut) if cut.segment < tail.number => return None,
        Some(cut) if cut.segment == tail.number => tail.end.min(cut.at),
        _ => tail.end,
    };
    (from < to).then_some((tail.number, from, to))
}

/// Writes once more what was found good after the durable point, and makes it durable: after an fsync that failed, the
/// system may show bytes that are on no disk, and call them clean.
pub(crate) fn settle(files: &Arc<dyn Files>, dir: &Path, end: &End) -> Result<(), OpenError> {
    for (number, from, to) in end.unsettled.iter().copied() {
        let path = dir.join(segment::relative_path(number));
        let file = files.open(&path).map_err(io_failed("opening", &path))?;
        let mut at = from;
        while at < to {
            let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(SETTLE_BYTES);
            let bytes = read_padded(file.as_ref(), at, len).map_err(io_failed("reading", &path))?;
            file.write_all_at(&mut [io::IoSlice::new(&bytes)], at).map_err(io_failed("writing", &path))?;
            at += bytes.len() as u64;
        }
        file.sync_data().map_err(io_failed("syncing", &path))?;
    }
    let path = dir.join(segment::DIRECTORY);
    files.sync_dir(&path).map_err(io_failed("syncing", &path))
}

fn survey_one(
    open: &OpenSegment,
    number: u64,
    applied: Option<&Applied>,
    directory: Option<&[u8; 16]>,
) -> io::Result<(Tail, Position)> {
    let applied = applied.filter(|applied| applied.to.segment == number);
    let mut durable = Position::default();
    let mut after = 0;
    if let Some(header) = &open.header {
        durable = Position { segment: header.previous.0, at: header.previous.1 };
        after = header.first_sequence.saturating_sub(1);
    }
    let from = applied.map_or(HEADER_BYTES, |applied| applied.to.at);
    let after = applied.map_or(after, |applied| applied.sequence);
    let len = open.file.len()?;
    let directory = directory.copied().or(open.header.as_ref().map(|header| header.directory));
    let key = GroupKey::of(&directory.unwrap_or_default());
    let from_here = Position { segment: number, at: from };
    let mut scanner = Scanner::new(Arc::clone(&open.file), key, from_here, after, Depth::Bodies)?;
    let header_ok = open.header.is_some();
    let mut tail = Tail { number, header_ok, groups: 0, bad: Vec::new(), end: from, written_to: from, len };
    loop {
        match scanner.step()? {
            Step::Group(group) => {
                durable = durable.max(group.header.durable);
                tail.groups += 1;
                if !group.bad().is_empty() {
                    tail.bad.push(group.header.position.at);
                }
            }
            Step::Bad(range) => tail.bad.push(range.from),
            Step::End { at, written_to } => {
                tail.end = at;
                tail.written_to = written_to;
                return Ok((tail, durable));
            }
        }
    }
}

/// Where this segment must be cut, if it must.
fn cut_in(tail: &Tail, durable: Position) -> Option<Position> {
    let at = |at: u64| Position { segment: tail.number, at };
    if !tail.header_ok && tail.groups == 0 && at(0) >= durable {
        return Some(at(0));
    }
    let dirty = (tail.written_to > tail.end).then_some(tail.end);
    tail.bad.iter().copied().chain(dirty).map(at).find(|bad| *bad >= durable)
}

fn torn_in(tail: &Tail, cut: Position) -> u64 {
    let written = tail.written_to.max(if tail.header_ok { HEADER_BYTES } else { 0 }).min(tail.len);
    match tail.number.cmp(&cut.segment) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => written.saturating_sub(cut.at),
        std::cmp::Ordering::Greater => written,
    }
}

/// Cuts durably: the file at the cut, and whole files after it.
pub(crate) fn cut(files: &Arc<dyn Files>, dir: &Path, numbers: &mut Vec<u64>, cut: Position) -> Result<(), OpenError> {
    let mut names_changed = false;
    for number in numbers.iter().copied().filter(|number| *number >= cut.segment) {
        let path = dir.join(segment::relative_path(number));
        if number == cut.segment && cut.at > 0 {
            let file = files.open(&path).map_err(io_failed("opening", &path))?;
            file.truncate(cut.at).map_err(io_failed("cutting", &path))?;
            file.sync_data().map_err(io_failed("syncing", &path))?;
        } else {
            files.remove(&path).map_err(io_failed("removing", &path))?;
            names_changed = true;
        }
    }
    if names_changed {
        let path = dir.join(segment::DIRECTORY);
        files.sync_dir(&path).map_err(io_failed("syncing", &path))?;
        numbers.retain(|number| *number < cut.segment || (*number == cut.segment && cut.at > 0));
    }
    Ok(())
}
