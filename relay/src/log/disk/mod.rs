//! The commit log that ships: batches in segment files, written once; what is looked up in RocksDB.
//!
//! A newcomer reads this page, then [`group`] and [`record`] (what is on disk), [`writer`] (how it gets
//! there), [`recover`] (how it is read back after a crash) and [`index`] (what is looked up).
//!
//! # The directory
//! ```text
//! lock                                locked while a process has the directory open
//! reserve                             room that is kept for what makes room; see `room`
//! identity                            text: format, federation, site, node, and the directory's random id
//! segments/00000000000000000001.seg   the log itself; the number is in the name and in the file
//! index/                              RocksDB; may be deleted while the node is stopped, and is rebuilt
//! ```
//!
//! # Segments and groups
//! A segment begins with a header of [`segment::HEADER_BYTES`] bytes that names format, federation, site,
//! node and number. Groups follow, each beginning at a multiple of [`group::ALIGN`] bytes (a sector), so
//! a sector that is durable is never written again. The file is given its room in advance where the disk
//! allows; what has not been written reads as zeros. All integers are little-endian.
//!
//! ```text
//! group:   magic "SWG1" u32 | header length u32 | segment u64, position u64 (its own)
//!          | length u64 (of the whole, without padding) | flags u32 | units u32
//!          | process start: time u64, random u64 | sequence u64 | durable point: segment u64, position u64
//!          | written at u64 (µs since 1970)
//!          | for each unit: length u32, CRC32C u32
//!          | (fields of later versions, up to 4096 bytes)
//!          | CRC32C of the header up to here u32
//!          | the units | zeros up to the next multiple of 512
//! unit:    stored at u64 (µs since 1970) | entries u32 | the entries
//! entry:   kind u8 | length u32 | payload, see `record`
//! ```
//! A unit's CRC covers all of it except the bodies of entries of the kinds 128 to 255, which are batches today: these are covered by the XXH3-128 in their
//! envelope, which the CRC does cover, so that a body is hashed once in its life and never for storage
//! alone. The lengths stand in the group's header, so that one bad unit does not hide those after it, and
//! one bad body costs that batch alone.
//!
//! # Formats to come
//! Written once, read for ever: an older version that meets what it does not know says so and stops, with
//! nothing cut and nothing called damage. What may change, from small to large:
//! * *A field in a group's header* goes behind the table of units; the header's length and CRC cover it, and older versions
//!   pass over it. One that must not be passed over sets one of the upper 16 flags, which a reader refuses unless it
//!   knows them; of the lower 16 it ignores what it does not know.
//! * *Another kind of entry*, of either layout in [`record`], or another item of a checkpoint: an older version can check it
//!   and refuses the log for it. No new [`segment::FORMAT`] is needed.
//! * *Everything else* (what a unit or header looks like, what a field or kind means) is another FORMAT. The number stands
//!   in front of every segment and is checked before anything else in it is believed. **A segment is of one format**: no
//!   version goes on in a segment of another format than the one it writes, it begins a new one, so that the number in
//!   front never promises less than what follows. A version reads all formats up to its own; the identity file's is
//!   the one that the directory was made with, and rises only where the directory itself changes.
//!
//! # Writing
//! One storage thread takes all that is queued (up to [`writer::GROUP_BYTES_MAX`]), makes it one group,
//! writes it, issues one fdatasync, and only then puts it into the index, answers the callers and tells the
//! listener. Where the file system takes direct writes (`O_DIRECT`), the group is copied into an aligned buffer and goes
//! past the page cache, 4 MiB a write; elsewhere it is one vectored write from the callers' own buffers. Whatever fails poisons the log for good: a failed fsync
//! may have thrown the pages away, and asking again would lie.
//!
//! # Durable point; torn and damaged
//! A group's header says up to where the log was durable when the group was issued. As one group is
//! durable before the next is issued, that is where the group itself stands (or the end of the segment
//! before); the format allows for several on the way. A log that falls idle writes one group without
//! units, so that its last real one is covered too. At opening the greatest durable point is that of all
//! headers that can be read (looking past bad bytes, sector by sector) and of the index's *applied*
//! position. Bad bytes before it are **damage**: reported with file and position, fenced, never cut. Bad
//! bytes at or after it are **torn**: everything from there on is cut, valid or not, the cut is durable before
//! the next append, and its size is reported. What is good after the durable point (one group at most) is
//! written once more and synced, since after a failed fsync and a restart of the process the system may
//! show bytes that are on no disk. A stale header (not its own position, another sequence) counts as
//! bad bytes.
//!
//! # Index and applied position
//! RocksDB runs without its own write-ahead log and flushes all column families atomically. Each group is
//! one write batch, which also sets *applied*: the end of the group, its sequence and its header's CRC. So
//! whatever the index holds after a crash is exactly the state as of its *applied*, which makes any older
//! state of the index correct: what follows in the segments is replayed. At opening the group that *applied*
//! names must be there, and all segments since; if not (the index is ahead of the segments, or of another
//! directory, or older than a segment that was reclaimed since), the index is thrown away, which is reported, and rebuilt.
//!
//! # Checkpoints and rebuilding
//! What retained batches do not yield (the bounds, holes and incarnations of every log, all tables, the
//! list of segments) is written into the log as a checkpoint: a snapshot of the index as of its *applied*
//! position P, in parts, between other units. No segment since P of the last two complete
//! checkpoints goes. To rebuild, the last complete checkpoint is loaded; batches before its P count only
//! within its bounds, so what was trimmed or dropped stays so; from P on everything is replayed. A log
//! without a checkpoint is replayed from segment 1.
//!
//! # Space
//! [`Trim`](super::contract::Entry::Trim) and [`Drop`](super::contract::Entry::Drop) change bounds at
//! once and leave a note of garbage; `reclaim` walks the notes, deletes index entries and counts the
//! bytes of each segment that are dead. A segment without live batches, before both checkpoints, goes: an
//! entry *Reclaimed* is durable before the file is removed, so a segment that is missing without one is
//! damage. What lives in segments that are mostly dead is moved to the end first ([`moving`]). Where dead bytes only wait for a
//! checkpoint, and there are many or the room is short, one is written before its time.
//!
//! # Reading
//! Readers take bounds from memory, batches from the [`tail`] if it still has them, and else entries from
//! the index and bytes from the segment, checked against the envelope. What fails the check is read once more,
//! then reported and fenced.

mod apply;
mod cell;
mod checkpoint;
mod codec;
mod group;
mod identity;
mod index;
mod log;
mod moving;
mod queue;
mod reader;
mod rebuild;
mod reclaim;
mod record;
mod recover;
mod room;
mod scan;
mod segment;
mod shared;
mod submit;
mod survey;
mod tail;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use self::{
    identity::OpenError,
    log::{DiskConfig, DiskLog, WallClock},
    recover::Recovery,
    segment::FORMAT,
    verify::{DumpFilter, DumpLine, Inspected, VerifyReport, dump, inspect_segment, verify},
    writer::GROUP_BYTES_MAX,
};
pub use index::INDEX_MEMORY_BYTES;
