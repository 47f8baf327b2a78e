//! Reading a segment from front to back, whatever state it is in: groups, and the bad bytes between them.
//!
//! The scanner never decides whether bad bytes are torn or damaged; it says where they are, and looks past
//! them for the next header that was written for its own position.

use std::{io, sync::Arc};

use bytes::Bytes;

use super::{
    codec::Position,
    group::{ALIGN, FIXED_BYTES, GroupHeader, GroupKey, HEADER_BYTES_MAX, MAGIC, align_up},
    record::{DecodedUnit, UnitFault},
};
use crate::log::files::LogFile;

/// Bytes looked through at once in search of the next header.
const WINDOW_BYTES: usize = 256 * 1024;
/// Bytes read at first for a group's header: enough for most.
const HEADER_GUESS_BYTES: usize = 1024;

/// A group as it was found. Its header is good; its units may not be.
#[derive(Debug)]
pub(crate) struct FoundGroup {
    /// The header.
    pub(crate) header: GroupHeader,
    /// The header's CRC.
    pub(crate) crc: u32,
    /// Its units; `None` for one that is bad.
    pub(crate) units: Vec<FoundUnit>,
}

/// A unit of a group, good or bad.
#[derive(Debug)]
pub(crate) struct FoundUnit {
    /// First byte in the file.
    pub(crate) from: u64,
    /// Byte after the last.
    pub(crate) to: u64,
    /// Its contents, where they are what was written.
    pub(crate) unit: Option<DecodedUnit>,
}

impl FoundGroup {
    /// Bad byte ranges inside, as positions in the file.
    pub(crate) fn bad(&self) -> Vec<BadRange> {
        let mut bad = Vec::new();
        for found in &self.units {
            match &found.unit {
                None => bad.push(BadRange::new(found.from, found.to, "a unit does not match its checksum")),
                Some(unit) => bad.extend(unit.bad.iter().map(|batch| {
                    let at = |byte: u32| found.from + u64::from(byte);
                    BadRange::new(at(batch.from), at(batch.to), &format!("a batch is bad: {}", batch.detail))
                })),
            }
        }
        bad
    }
}

/// Bytes that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadRange {
    /// First byte.
    pub(crate) from: u64,
    /// Byte after the last.
    pub(crate) to: u64,
    /// In words.
    pub(crate) detail: String,
}

impl BadRange {
    fn new(from: u64, to: u64, detail: &str) -> Self {
        Self { from, to, detail: detail.to_owned() }
    }
}

/// What the scanner met next.
#[derive(Debug)]
pub(crate) enum Step {
    /// A group.
    Group(Box<FoundGroup>),
    /// Bytes that are no group, with a group after them.
    Bad(BadRange),
    /// The end: no group follows. `written_to` is the byte after the last that is not zero.
    End {
        /// Byte after the last group or bad range.
        at: u64,
        /// At `at` or below where only zeros follow.
        written_to: u64,
    },
}

/// How thoroughly units are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Headers only; units are left out.
    Headers,
    /// Units are checked and read, bodies of batches are trusted.
    Units,
    /// Everything is checked.
    Bodies,
}

/// Goes through one segment.
#[derive(Debug)]
pub(crate) struct Scanner {
    file: Arc<dyn LogFile>,
    key: GroupKey,
    segment: u64,
    len: u64,
    at: u64,
    last_sequence: u64,
    depth: Depth,
    pending: Option<(GroupHeader, u32)>,
}

impl Scanner {
    /// Begins at `from`; only groups with a sequence above `after_sequence` count.
    pub(crate) fn new(
        file: Arc<dyn LogFile>,
        key: GroupKey,
        from: Position,
        after_sequence: u64,
        depth: Depth,
    ) -> io::Result<Self> {
        // Padding is zeros, and so is what was never written: a last sector that is not whole lacks nothing but those.
        let len = align_up(file.len()?);
        let (segment, at) = (from.segment, from.at);
        Ok(Self { file, key, segment, len, at, last_sequence: after_sequence, depth, pending: None })
    }

    /// The segment's number.
    pub(crate) fn segment(&self) -> u64 {
        self.segment
    }

    /// Goes on to the next group, bad range, or the end. `Unsupported`: a newer version wrote what is next.
    pub(crate) fn step(&mut self) -> io::Result<Step> {
        let header = match self.pending.take() {
            Some(header) => Some(header),
            None => self.header_at(self.at)?,
        };
        if let Some((header, crc)) = header {
            return self.take_group(header, crc);
        }
        let from = self.at;
        let (next, written_to) = self.look_past(from)?;
        match next {
            Some((header, crc)) => {
                self.at = header.position.at;
                self.pending = Some((header, crc));
                Ok(Step::Bad(BadRange::new(from, self.at, "no group header is here, but groups follow")))
            }
            None => Ok(Step::End { at: from, written_to }),
        }
    }

    fn take_group(&mut self, header: GroupHeader, crc: u32) -> io::Result<Step> {
        if header.is_newer() {
            return Err(unknown("the group", header.position.at));
        }
        self.at = header.end().at;
        self.last_sequence = header.sequence;
        let units = match self.depth {
            Depth::Headers => Vec::new(),
            depth => self.units(&header, depth == Depth::Units)?,
        };
        Ok(Step::Group(Box::new(FoundGroup { header, crc, units })))
    }

    /// Reads the units of a group that was met with [`Depth::Headers`]; bodies are trusted.
    pub(crate) fn read_units(&self, header: &GroupHeader) -> io::Result<Vec<FoundUnit>> {
        self.units(header, true)
    }

    fn units(&self, header: &GroupHeader, trust_bodies: bool) -> io::Result<Vec<FoundUnit>> {
        let from = header.position.at + header.header_bytes() as u64;
        let length = header.length.saturating_sub(header.header_bytes() as u64);
        let bytes = self.read(from, usize::try_from(length).unwrap_or(usize::MAX))?;
        let mut at = 0_usize;
        let mut units = Vec::with_capacity(header.units.len());
        for line in &header.units {
            let end = at + line.length as usize;
            let unit = match bytes.get(at..end) {
                Some(slice) => match DecodedUnit::decode(&bytes.slice_ref(slice), line.crc, trust_bodies) {
                    Ok(unit) => Some(unit),
                    Err(UnitFault::Damaged) => None,
                    // What a newer version wrote must neither be cut nor be called damaged.
                    Err(UnitFault::Unknown) => return Err(unknown("an entry of the unit", from + at as u64)),
                },
                None => None,
            };
            units.push(FoundUnit { from: from + at as u64, to: from + end as u64, unit });
            at = end;
        }
        Ok(units)
    }

    /// Reads up to `len` bytes, fewer at the end of the file's last sector.
    fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
        Ok(read_padded(self.file.as_ref(), at, len.min(left))?.into())
    }

    fn header_at(&self, at: u64) -> io::Result<Option<(GroupHeader, u32)>> {
        let mut bytes = self.read(at, HEADER_GUESS_BYTES)?;
        if bytes.len() < FIXED_BYTES {
            return Ok(None);
        }
        let Some(claimed) = GroupHeader::claimed_bytes(&bytes) else { return Ok(None) };
        if claimed > bytes.len() {
            bytes = self.read(at, claimed.min(HEADER_BYTES_MAX))?;
        }
        let found = GroupHeader::decode(&bytes, self.key, Position { segment: self.segment, at });
        Ok(found
            .filter(|(header, _)| header.sequence > self.last_sequence && at.saturating_add(header.length) <= self.len))
    }

    /// Looks for the next header after `from`; also answers the byte after the last that is not zero.
    fn look_past(&self, from: u64) -> io::Result<(Option<(GroupHeader, u32)>, u64)> {
        let mut written_to = from;
        let mut at = from;
        while at < self.len {
            let window = self.read(at, WINDOW_BYTES)?;
            if let Some(last) = window.iter().rposition(|byte| *byte != 0) {
                written_to = at + last as u64 + 1;
                for sector in (0..window.len()).step_by(ALIGN as usize) {
                    let here = at + sector as u64;
                    let like = window.get(sector..).is_some_and(|bytes| bytes.starts_with(MAGIC));
                    if like
                        && here != from
                        && let Some(found) = self.header_at(here)?
                    {
                        return Ok((Some(found), written_to));
                    }
                }
            }
            at = align_up(at + window.len() as u64);
        }
        Ok((None, written_to))
    }
}

fn unknown(what: &str, at: u64) -> io::Error {
    let text = format!(
        "{what} at byte {at} is of a kind that this Seaway does not know; run the version that wrote it, or a newer one"
    );
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Reads `len` bytes; what lies past the end of the file is zeros.
pub(crate) fn read_padded(file: &dyn LogFile, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}
