//! The header of a group: what one write put into a segment, and where it stood. Layout: see [`super`].

use seaway_federation_proto::ids::Start;

use super::codec::{Fields, Position, PutFields};

/// Groups begin at multiples of this many bytes: a sector, so that no durable sector is written again.
pub(crate) const ALIGN: u64 = 512;
/// Length of a group header without its table of units, in bytes (the CRC at its end counted).
pub(crate) const FIXED_BYTES: usize = 92;
/// Length of one line of the table of units.
const LINE_BYTES: usize = 8;
/// Most units of one group: bounds its header to 64 KiB and a bit.
pub(crate) const UNITS_MAX: usize = 8192;
/// First bytes of a group.
pub(crate) const MAGIC: &[u8; 4] = b"SWG1";

/// Most bytes of fields that a later version may add to the header.
const LATER_BYTES_MAX: usize = 4096;
/// Most bytes of a header.
pub(crate) const HEADER_BYTES_MAX: usize = FIXED_BYTES + UNITS_MAX * LINE_BYTES + LATER_BYTES_MAX;

/// Flag: the group holds the beginning or the end of a checkpoint.
pub(crate) const FLAG_CHECKPOINT: u32 = 1;
/// Flags that a reader must know: a group with one that it does not know is a newer version's. Of the others those that are
/// not known are ignored.
const FLAGS_TO_BE_KNOWN: u32 = 0xffff_0000;

/// What the checksums of a directory's group headers begin with: nobody who only publishes knows it, so that no message's
/// content passes for a group when the bytes around it are torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupKey(u32);

impl GroupKey {
    /// From the directory's random id.
    pub(crate) fn of(directory: &[u8; 16]) -> Self {
        Self(crc32c::crc32c(directory))
    }

    fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

/// One line of the table of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnitLine {
    /// Bytes of the unit.
    pub(crate) length: u32,
    /// CRC32C over the unit without the bodies of batches.
    pub(crate) crc: u32,
}

/// What a group's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    /// Where the group itself begins.
    pub(crate) position: Position,
    /// Bytes of the whole group, without the padding after it.
    pub(crate) length: u64,
    /// See the `FLAG_` constants.
    pub(crate) flags: u32,
    /// The start of the process that wrote it.
    pub(crate) start: Start,
    /// One more than that of the group before it.
    pub(crate) sequence: u64,
    /// Up to where the log was durable when the group was issued.
    pub(crate) durable: Position,
    /// When it was written, microseconds since 1970.
    pub(crate) written_at_us: u64,
    /// Its units.
    pub(crate) units: Vec<UnitLine>,
    /// Bytes of fields between the table of units and the CRC that only a newer version knows; 0 in what is written.
    pub(crate) later: usize,
}

/// Length of a header with so many units.
pub(crate) fn header_bytes(units: usize) -> usize {
    FIXED_BYTES + units * LINE_BYTES
}

/// The next multiple of [`ALIGN`].
pub(crate) fn align_up(at: u64) -> u64 {
    at.next_multiple_of(ALIGN)
}

impl GroupHeader {
    /// Where the next group begins.
    pub(crate) fn end(&self) -> Position {
        Position { at: align_up(self.position.at.saturating_add(self.length)), ..self.position }
    }

    /// Bytes of the header.
    pub(crate) fn header_bytes(&self) -> usize {
        header_bytes(self.units.len()) + self.later
    }

    /// Whether it says something that a reader must know and this version does not.
    pub(crate) fn is_newer(&self) -> bool {
        self.flags & FLAGS_TO_BE_KNOWN != 0
    }

    /// Appends the header's bytes to `out`; answers its CRC.
    pub(crate) fn encode(&self, key: GroupKey, out: &mut Vec<u8>) -> u32 {
        let from = out.len();
        out.reserve(self.header_bytes());
        out.put(MAGIC);
        out.put_u32(self.header_bytes() as u32);
        out.put_position(self.position);
        out.put_u64(self.length);
        out.put_u32(self.flags);
        out.put_u32(self.units.len() as u32);
        out.put_start(self.start);
        out.put_u64(self.sequence);
        out.put_position(self.durable);
        out.put_u64(self.written_at_us);
        for unit in &self.units {
            out.put_u32(unit.length);
            out.put_u32(unit.crc);
        }
        out.resize(out.len() + self.later, 0);
        let crc = key.crc(out.get(from..).unwrap_or_default());
        out.put_u32(crc);
        crc
    }

    /// Length that a header claims, if `bytes` (at least [`FIXED_BYTES`]) begin like one: how many bytes
    /// [`GroupHeader::decode`] needs.
    pub(crate) fn claimed_bytes(bytes: &[u8]) -> Option<usize> {
        let mut fields = Fields::new(bytes);
        if fields.bytes(MAGIC.len())? != MAGIC {
            return None;
        }
        let claimed = fields.u32()? as usize;
        (FIXED_BYTES..=HEADER_BYTES_MAX).contains(&claimed).then_some(claimed)
    }

    /// Reads and checks the header of the group at `position`, with its CRC; `None` for anything else than a
    /// header that was written for that position.
    pub(crate) fn decode(bytes: &[u8], key: GroupKey, position: Position) -> Option<(Self, u32)> {
        let claimed = Self::claimed_bytes(bytes)?;
        let bytes = bytes.get(..claimed)?;
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        let crc = u32::from_le_bytes(*crc);
        if key.crc(covered) != crc {
            return None;
        }
        let mut fields = Fields::new(covered);
        fields.bytes(MAGIC.len() + 4)?;
        let found = fields.position()?;
        let length = fields.u64()?;
        let flags = fields.u32()?;
        let count = fields.u32()? as usize;
        let start = fields.start()?;
        let sequence = fields.u64()?;
        let durable = fields.position()?;
        let written_at_us = fields.u64()?;
        if count > UNITS_MAX {
            return None;
        }
        let mut units = Vec::with_capacity(count);
        for _ in 0..count {
            units.push(UnitLine { length: fields.u32()?, crc: fields.u32()? });
        }
        let later = fields.rest().len();
        let sum = units.iter().map(|unit| u64::from(unit.length)).sum::<u64>().saturating_add(claimed as u64);
        if found != position || later > LATER_BYTES_MAX || sum != length || durable > position {
            return None;
        }
        Some((Self { position, length, flags, start, sequence, durable, written_at_us, units, later }, crc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: GroupKey = GroupKey(5);

    fn group() -> impl Strategy<Value = GroupHeader> {
        let unit = (0..1_000_000_u32, any::<u32>()).prop_map(|(length, crc)| UnitLine { length, crc });
        let units = proptest::collection::vec(unit, 0..20);
        (
            1..u64::MAX,
            0..(1_u64 << 40),
            any::<u32>(),
            any::<(u64, u64)>(),
            any::<u64>(),
            any::<u64>(),
            (units, 0..40_usize),
        )
            .prop_map(|(segment, sector, flags, start, sequence, written_at_us, (units, later))| {
                let position = Position { segment, at: sector * ALIGN };
                let length = units.iter().map(|unit| u64::from(unit.length)).sum::<u64>();
                GroupHeader {
                    position,
                    length: length + (header_bytes(units.len()) + later) as u64,
                    flags,
                    start: Start { time_us: start.0, random: start.1 },
                    sequence,
                    durable: Position { segment: segment - 1, at: start.0 },
                    written_at_us,
                    units,
                    later,
                }
            })
    }

    proptest! {
        #[test]
        fn headers_come_back(group in group()) {
            let mut bytes = Vec::new();
            let crc = group.encode(KEY, &mut bytes);
            prop_assert_eq!(bytes.len(), group.header_bytes());
            prop_assert_eq!(GroupHeader::claimed_bytes(&bytes), Some(bytes.len()));
            prop_assert_eq!(GroupHeader::decode(&bytes, KEY, group.position), Some((group.clone(), crc)));
            let elsewhere = Position { at: group.position.at + ALIGN, ..group.position };
            prop_assert_eq!(GroupHeader::decode(&bytes, KEY, elsewhere), None);
            let another = GroupKey::of(&[8; 16]);
            prop_assert_eq!(GroupHeader::decode(&bytes, another, group.position), None, "another directory's");
            prop_assert_eq!(group.end().at % ALIGN, 0);
        }

        #[test]
        fn any_flipped_bit_is_noticed(group in group(), bit in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            group.encode(KEY, &mut bytes);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(GroupHeader::decode(&bytes, KEY, group.position), None);
        }

        #[test]
        fn any_bytes_are_survived(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(tail);
            let _ = GroupHeader::decode(&bytes, KEY, Position::default());
        }
    }
}
