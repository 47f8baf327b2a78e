//! Segment files: their names and the header in front of each.
//!
//! ```text
//! magic "SEAWAYSG" | format u32 | header length u32 (4096) | segment number u64
//! | directory's id 16 B | made at u64 (µs since 1970) | previous segment's end: segment u64, position u64
//! | sequence of the first group u64 | federation, site, node (each u16 length + UTF-8)
//! | zeros | CRC32C u32 of all before it, in the header's last four bytes
//! ```

use std::path::{Path, PathBuf};

use super::codec::{Fields, Position, PutFields};

/// Version of the format of segments, groups and records. A segment with a greater one is refused, one with a lower is
/// read and not gone on in; see the module's documentation for when it rises.
pub const FORMAT: u32 = 1;
/// Length of a segment's header in bytes; groups begin after it.
pub(crate) const HEADER_BYTES: u64 = 4096;
/// Directory of the segment files within the data directory.
pub(crate) const DIRECTORY: &str = "segments";

const MAGIC: &[u8; 8] = b"SEAWAYSG";

/// What a segment's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The format that all of it is written in, up to [`FORMAT`].
    pub(crate) format: u32,
    /// Its number; the first is 1.
    pub(crate) number: u64,
    /// Random id of the data directory.
    pub(crate) directory: [u8; 16],
    /// When it was made, microseconds since 1970.
    pub(crate) made_at_us: u64,
    /// Number and end of the segment before it (0, 0: there was none).
    pub(crate) previous: (u64, u64),
    /// Sequence of its first group.
    pub(crate) first_sequence: u64,
    /// Whose it is.
    pub(crate) federation: String,
    /// See above.
    pub(crate) site: String,
    /// See above.
    pub(crate) node: String,
}

/// Why a header is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SegmentError {
    /// Written by a newer Seaway.
    #[error("it has format {0}, and this Seaway reads up to {FORMAT}; run the newer version")]
    NewerFormat(u32),
    /// Not a header, or its checksum is wrong.
    #[error("its header is damaged")]
    Damaged,
}

impl SegmentHeader {
    /// The header's bytes, [`HEADER_BYTES`] of them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.put(MAGIC);
        out.put_u32(self.format);
        out.put_u32(HEADER_BYTES as u32);
        out.put_u64(self.number);
        out.put(&self.directory);
        out.put_u64(self.made_at_us);
        out.put_position(Position { segment: self.previous.0, at: self.previous.1 });
        out.put_u64(self.first_sequence);
        out.put_text(&self.federation);
        out.put_text(&self.site);
        out.put_text(&self.node);
        out.resize(HEADER_BYTES as usize - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.put_u32(crc);
        out
    }

    /// Reads a header from the first bytes of a file.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SegmentError> {
        let mut fields = Fields::new(bytes);
        if fields.bytes(MAGIC.len()) != Some(MAGIC) {
            return Err(SegmentError::Damaged);
        }
        let format = fields.u32().ok_or(SegmentError::Damaged)?;
        let length = fields.u32().ok_or(SegmentError::Damaged)?;
        let covered = (length as usize).checked_sub(4).and_then(|at| bytes.split_at_checked(at));
        let (covered, crc) = covered.ok_or(SegmentError::Damaged)?;
        if Fields::new(crc).u32() != Some(crc32c::crc32c(covered)) {
            return Err(SegmentError::Damaged);
        }
        if format > FORMAT {
            return Err(SegmentError::NewerFormat(format));
        }
        let mut fields = Fields::new(covered);
        fields.bytes(MAGIC.len() + 8);
        Self::decode_fields(format, &mut fields).ok_or(SegmentError::Damaged)
    }

    fn decode_fields(format: u32, fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            format,
            number: fields.u64()?,
            directory: fields.bytes(16)?.try_into().ok()?,
            made_at_us: fields.u64()?,
            previous: (fields.u64()?, fields.u64()?),
            first_sequence: fields.u64()?,
            federation: fields.text()?.to_owned(),
            site: fields.text()?.to_owned(),
            node: fields.text()?.to_owned(),
        })
    }
}

/// Path of a segment's file, relative to the data directory.
pub(crate) fn relative_path(number: u64) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{number:020}.seg"))
}

/// The number in a segment's file name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn header() -> impl Strategy<Value = SegmentHeader> {
        (any::<u64>(), any::<[u8; 16]>(), any::<u64>(), any::<(u64, u64)>(), any::<u64>(), "[a-z]{0,63}", "[a-z]{1,63}")
            .prop_map(|(number, directory, made_at_us, previous, first_sequence, federation, site)| SegmentHeader {
                format: FORMAT,
                number,
                directory,
                made_at_us,
                previous,
                first_sequence,
                federation,
                node: site.chars().rev().collect(),
                site,
            })
    }

    proptest! {
        #[test]
        fn headers_come_back(header in header()) {
            let bytes = header.encode();
            prop_assert_eq!(bytes.len() as u64, HEADER_BYTES);
            prop_assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        }

        #[test]
        fn any_flipped_bit_is_noticed(header in header(), bit in 0..HEADER_BYTES as usize * 8) {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = SegmentHeader::decode(&bytes);
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let header = SegmentHeader {
            format: FORMAT,
            number: 1,
            directory: [7; 16],
            made_at_us: 1,
            previous: (0, 0),
            first_sequence: 1,
            federation: "f".into(),
            site: "s".into(),
            node: "n".into(),
        };
        let mut bytes = header.encode();
        bytes[8] = 9;
        let at = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(SegmentError::NewerFormat(9)));
    }

    #[test]
    fn names_carry_the_number() {
        let path = relative_path(42);
        assert_eq!(path.to_str(), Some("segments/00000000000000000042.seg"));
        assert_eq!(number_of("00000000000000000042.seg"), Some(42));
        for wrong in ["42.seg", "0000000000000000004x.seg", "00000000000000000042", "00000000000000000000.seg", ""] {
            assert_eq!(number_of(wrong), None, "{wrong}");
        }
    }
}
