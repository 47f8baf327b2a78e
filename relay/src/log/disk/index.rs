//! What is looked up: RocksDB, without its own write-ahead log, one write batch for each group.
//!
//! | column family | key (integers big-endian) | value |
//! |---|---|---|
//! | `meta` | name | format, directory id, *applied*, next log id |
//! | `segments` | number u64, 0 or 1 | bytes of batches put into the index, or taken out again |
//! | `logs` | log id u64 | version u32, role, name, the state of the copy as of its last change of shape |
//! | `ends` | log id, incarnation | version u32, end, chain, messages, bytes, newest origin time |
//! | `batches` | log id, incarnation, first offset | [`BatchEntry`] |
//! | `fills` | log id, incarnation, first offset | bytes of a batch that filled a hole |
//! | `damage` | log id, incarnation, from | to |
//! | `state` | table u8, key | value |
//! | `garbage` | log id, incarnation, offset below which all entries go | – |
//!
//! A log's id is its own within this index; it is new each time that a copy is made, so that what an
//! earlier copy left behind never mixes with a later one.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRawIterator, FlushOptions, Options,
    ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
    statistics::{StatsLevel, Ticker},
};
use seaway_federation_proto::{
    envelope::Chain,
    ids::{Incarnation, Offset, Place},
};

use super::codec::{Fields, Position, PutFields};

/// Memory for blocks of the index that were read, in bytes.
const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// Memory for what is not flushed yet, all column families together, in bytes.
const WRITE_BUFFER_BYTES: usize = 64 << 20;
/// And at least, whatever the reserve.
const WRITE_BUFFER_BYTES_MIN: usize = 1 << 20;
/// What the index holds in memory at most, but for what RocksDB keeps for each file and iterator.
pub const INDEX_MEMORY_BYTES: u64 = (BLOCK_CACHE_BYTES + WRITE_BUFFER_BYTES) as u64;
/// Files that the index keeps open.
const OPEN_FILES_MAX: i32 = 512;
/// Format of the keys and values here; another one is thrown away and rebuilt.
const INDEX_FORMAT: u32 = 1;
/// Made in the index directory when the index could not be read: the next opening makes it anew.
const UNREADABLE: &str = "UNREADABLE";

/// The column families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Meta,
    Segments,
    Logs,
    Ends,
    Batches,
    Fills,
    Damage,
    State,
    Garbage,
}

impl Family {
    const ALL: [Family; 9] = [
        Family::Meta,
        Family::Segments,
        Family::Logs,
        Family::Ends,
        Family::Batches,
        Family::Fills,
        Family::Damage,
        Family::State,
        Family::Garbage,
    ];

    fn name(self) -> &'static str {
        match self {
            Family::Meta => "meta",
            Family::Segments => "segments",
            Family::Logs => "logs",
            Family::Ends => "ends",
            Family::Batches => "batches",
            Family::Fills => "fills",
            Family::Damage => "damage",
            Family::State => "state",
            Family::Garbage => "garbage",
        }
    }
}

/// Where a batch is, and what is asked of it without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchEntry {
    /// Where its bytes begin.
    pub(crate) position: Position,
    /// How many they are.
    pub(crate) length: u32,
    /// Messages.
    pub(crate) count: u32,
    /// Origin time, microseconds since 1970.
    pub(crate) origin_time_us: u64,
    /// When it was appended here, microseconds since 1970.
    pub(crate) stored_at_us: u64,
    /// Bytes of the batches appended to its incarnation before it.
    pub(crate) bytes_before: u64,
    /// Chain value after it.
    pub(crate) chain_after: Chain,
}

impl BatchEntry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(72);
        out.put_position(self.position);
        out.put_u32(self.length);
        out.put_u32(self.count);
        out.put_u64(self.origin_time_us);
        out.put_u64(self.stored_at_us);
        out.put_u64(self.bytes_before);
        out.put_chain(self.chain_after);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        Some(Self {
            position: fields.position()?,
            length: fields.u32()?,
            count: fields.u32()?,
            origin_time_us: fields.u64()?,
            stored_at_us: fields.u64()?,
            bytes_before: fields.u64()?,
            chain_after: fields.chain()?,
        })
    }
}

/// How far the index has been brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Applied {
    /// Everything before is in the index.
    pub(crate) to: Position,
    /// Where the last group in it begins.
    pub(crate) group: Position,
    /// That group's sequence.
    pub(crate) sequence: u64,
    /// The CRC of that group's header.
    pub(crate) crc: u32,
}

impl Applied {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(44);
        out.put_position(self.to);
        out.put_position(self.group);
        out.put_u64(self.sequence);
        out.put_u32(self.crc);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        Some(Self { to: fields.position()?, group: fields.position()?, sequence: fields.u64()?, crc: fields.u32()? })
    }
}

/// RocksDB's own words on what failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the index failed: {0}")]
pub(crate) struct IndexError(pub(crate) String);

impl IndexError {
    /// Whether RocksDB only found no room on the disk: it tells that in words alone. It goes on by itself some seconds after
    /// there is room.
    pub(crate) fn is_no_room(&self) -> bool {
        self.0.contains("No space left on device") || self.0.contains("Disk quota exceeded")
    }
}

impl From<rocksdb::Error> for IndexError {
    fn from(e: rocksdb::Error) -> Self {
        Self(e.into_string())
    }
}

/// The index of one data directory.
pub(crate) struct Index {
    db: DB,
    dir: PathBuf,
    no_wal: WriteOptions,
    /// Kept for its counters.
    options: Options,
    stepped: bool,
    /// What the first read said that failed.
    unreadable: OnceLock<String>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Index {
    /// Opens the index, empty if there is none; see [`super::DiskConfig::stepped`].
    ///
    /// `reserve` is what is kept in a file for a disk that others fill, bytes: RocksDB goes on after it found no room only where as much is
    /// free as it gathers before it writes, so it gathers less than that.
    pub(crate) fn open(dir: &Path, stepped: bool, reserve: u64) -> Result<Self, IndexError> {
        let (buffer, cached) = memory(reserve);
        std::fs::create_dir_all(dir).map_err(|e| IndexError(format!("making {} failed: {e}", dir.display())))?;
        if let Ok(why) = std::fs::read_to_string(dir.join(UNREADABLE)) {
            return Err(IndexError(format!("it could not be read before ({why})")));
        }
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_atomic_flush(true);
        options.set_db_write_buffer_size(buffer);
        options.set_max_background_jobs(2);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_keep_log_file_num(2);
        options.set_log_level(rocksdb::LogLevel::Warn);
        options.set_paranoid_checks(true);
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers); // counters alone, which cost next to nothing
        let cache = Cache::new_lru_cache(cached);
        // The one that RocksDB always has, too, though nothing is in it: the largest buffer of all counts.
        let names = Family::ALL.iter().map(|family| family.name()).chain([rocksdb::DEFAULT_COLUMN_FAMILY_NAME]);
        let families = names.map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache, buffer)));
        let db = DB::open_cf_descriptors(&options, dir, families)?;
        let mut no_wal = WriteOptions::default();
        no_wal.disable_wal(true);
        let index = Self { db, dir: dir.to_owned(), no_wal, options, stepped, unreadable: OnceLock::new() };
        index.check_files()?;
        index.settle()?;
        Ok(index)
    }

    /// Whether all files that it consists of are there with their lengths: RocksDB itself looks at them only when it reads.
    fn check_files(&self) -> Result<(), IndexError> {
        for file in self.db.live_files()? {
            let path = self.dir.join(file.name.trim_start_matches('/'));
            let len = std::fs::metadata(&path).map(|found| found.len());
            match len {
                Ok(len) if len == file.size as u64 => {}
                Ok(len) => {
                    let expected = file.size;
                    return Err(IndexError(format!("{} has {len} bytes instead of {expected}", path.display())));
                }
                Err(e) => return Err(IndexError(format!("{} cannot be found: {e}", path.display()))),
            }
        }
        Ok(())
    }

    /// Why the index can no longer be trusted to answer, if so: a read of it failed.
    pub(crate) fn unreadable(&self) -> Option<&str> {
        self.unreadable.get().map(String::as_str)
    }

    /// A read failed: nobody must take that for "not there", and the next opening must not meet it again.
    fn read_failed(&self, e: rocksdb::Error) -> IndexError {
        let e = IndexError::from(e);
        let why = self.unreadable.get_or_init(|| e.0.clone());
        if let Err(e) = std::fs::write(self.dir.join(UNREADABLE), why) {
            tracing::warn!("the index could not be marked for rebuilding: {e}; delete {} by hand", self.dir.display());
        }
        e
    }

    /// Deletes an index that is not open.
    pub(crate) fn destroy(dir: &Path) -> std::io::Result<()> {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn family(&self, family: Family) -> Result<&ColumnFamily, IndexError> {
        self.db.cf_handle(family.name()).ok_or_else(|| IndexError(format!("it has no family {}", family.name())))
    }

    /// Whether it is of this format and directory (a new one becomes so).
    pub(crate) fn claim(&self, directory: &[u8; 16]) -> Result<bool, IndexError> {
        let format = INDEX_FORMAT.to_le_bytes();
        match (self.get(Family::Meta, b"format")?, self.get(Family::Meta, b"directory")?) {
            (None, None) => {
                let mut changes = self.changes();
                changes.put(Family::Meta, b"format", &format)?;
                changes.put(Family::Meta, b"directory", directory)?;
                self.write(changes)?;
                Ok(true)
            }
            (found, id) => Ok(found.as_deref() == Some(&format[..]) && id.as_deref() == Some(&directory[..])),
        }
    }

    pub(crate) fn applied(&self) -> Result<Option<Applied>, IndexError> {
        Ok(self.get(Family::Meta, b"applied")?.and_then(|bytes| Applied::decode(&bytes)))
    }

    pub(crate) fn next_id(&self) -> Result<u64, IndexError> {
        let found = self.get(Family::Meta, b"next id")?;
        Ok(found.and_then(|bytes| Fields::new(&bytes).u64()).unwrap_or(1))
    }

    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        let found = self.db.get_cf(self.family(family)?, key).map_err(|e| self.read_failed(e))?;
        Ok(found.map(Bytes::from))
    }

    /// Begins a set of changes.
    pub(crate) fn changes(&self) -> Changes<'_> {
        Changes { index: self, batch: WriteBatch::default() }
    }

    /// Makes changes visible together.
    pub(crate) fn write(&self, changes: Changes<'_>) -> Result<(), IndexError> {
        Ok(self.db.write_opt(changes.batch, &self.no_wal)?)
    }

    /// As [`Index::write`]; where RocksDB finds no room, `wait` is asked whether to try once more.
    pub(crate) fn write_patiently(
        &self,
        changes: Changes<'_>,
        mut wait: impl FnMut(&IndexError) -> bool,
    ) -> Result<(), IndexError> {
        loop {
            let again = WriteBatch::from_data(changes.batch.data());
            match self.db.write_opt(again, &self.no_wal).map_err(IndexError::from) {
                Err(e) if e.is_no_room() && wait(&e) => {}
                done => return done,
            }
        }
    }

    /// Makes everything durable; with `wait` false only begins to.
    pub(crate) fn flush(&self, wait: bool) -> Result<(), IndexError> {
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        let families = Family::ALL.iter().map(|family| self.family(*family)).collect::<Result<Vec<_>, _>>()?;
        self.db.flush_cfs_opt(&families, &options)?;
        self.settle()
    }

    /// In a log that is stepped: waits until RocksDB's own threads have nothing to do.
    pub(crate) fn settle(&self) -> Result<(), IndexError> {
        if self.stepped {
            self.db.wait_for_compact(&WaitForCompactOptions::default())?;
        }
        Ok(())
    }

    /// Calls `visit` with each pair whose key begins with `prefix`, in order, until it answers false.
    pub(crate) fn visit(
        &self,
        family: Family,
        prefix: &[u8],
        from: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), IndexError> {
        let mut iterator = self.iterator(family, prefix)?;
        iterator.seek(if from.is_empty() { prefix } else { from });
        while let Some((key, value)) = iterator.item() {
            if !visit(key, value) {
                return Ok(());
            }
            iterator.next();
        }
        iterator.status().map_err(|e| self.read_failed(e))
    }

    fn iterator(&self, family: Family, prefix: &[u8]) -> Result<DBRawIterator<'_>, IndexError> {
        let mut options = ReadOptions::default();
        if !prefix.is_empty() {
            options.set_iterate_range(rocksdb::PrefixRange(prefix));
        }
        Ok(self.db.raw_iterator_cf_opt(self.family(family)?, options))
    }

    /// The entry of the batch that begins there.
    pub(crate) fn batch(&self, id: u64, begin: Place) -> Result<Option<BatchEntry>, IndexError> {
        let found = self.get(Family::Batches, &batch_key(id, begin.incarnation, begin.offset))?;
        let malformed = || IndexError("an entry of a batch is malformed".to_owned());
        found.map(|bytes| BatchEntry::decode(&bytes).ok_or_else(malformed)).transpose()
    }

    /// The last entry of an incarnation that begins at or below `offset`.
    pub(crate) fn floor(
        &self,
        id: u64,
        incarnation: Incarnation,
        offset: Offset,
    ) -> Result<Option<(Offset, BatchEntry)>, IndexError> {
        let mut iterator = self.iterator(Family::Batches, &incarnation_key(id, incarnation))?;
        iterator.seek_for_prev(batch_key(id, incarnation, offset));
        let found = iterator.item().and_then(|(key, value)| Some((offset_of(key)?, BatchEntry::decode(value)?)));
        iterator.status().map_err(|e| self.read_failed(e))?;
        Ok(found)
    }

    /// The first entry of an incarnation that begins at or above `offset`.
    pub(crate) fn ceiling(
        &self,
        id: u64,
        incarnation: Incarnation,
        offset: Offset,
    ) -> Result<Option<(Offset, BatchEntry)>, IndexError> {
        let mut found = None;
        self.visit_batches(id, incarnation, offset, |offset, entry| {
            found = Some((offset, entry));
            false
        })?;
        Ok(found)
    }

    /// Calls `visit` with the entries of an incarnation that begin at or above `from`, until it answers false.
    pub(crate) fn visit_batches(
        &self,
        id: u64,
        incarnation: Incarnation,
        from: Offset,
        mut visit: impl FnMut(Offset, BatchEntry) -> bool,
    ) -> Result<(), IndexError> {
        let mut broken = false;
        let from = batch_key(id, incarnation, from);
        self.visit(Family::Batches, &incarnation_key(id, incarnation), &from, |key, value| {
            match (offset_of(key), BatchEntry::decode(value)) {
                (Some(offset), Some(entry)) => visit(offset, entry),
                _ => {
                    broken = true;
                    false
                }
            }
        })?;
        if broken { Err(IndexError("an entry of a batch is malformed".to_owned())) } else { Ok(()) }
    }

    /// Bytes appended to an incarnation below `offset`, fills left out.
    fn bytes_below(&self, id: u64, incarnation: Incarnation, offset: Offset) -> Result<u64, IndexError> {
        if let Some((_, entry)) = self.ceiling(id, incarnation, offset)? {
            return Ok(entry.bytes_before);
        }
        self.bytes_of(id, incarnation)
    }

    /// Bytes appended to an incarnation so far, fills left out.
    pub(crate) fn bytes_of(&self, id: u64, incarnation: Incarnation) -> Result<u64, IndexError> {
        let Some((offset, entry)) = self.floor(id, incarnation, Offset::MAX)? else { return Ok(0) };
        let is_fill = self.is_fill(id, Place { incarnation, offset })?;
        Ok(entry.bytes_before + if is_fill { 0 } else { u64::from(entry.length) })
    }

    /// Whether the batch that begins there filled a hole.
    pub(crate) fn is_fill(&self, id: u64, begin: Place) -> Result<bool, IndexError> {
        Ok(self.get(Family::Fills, &batch_key(id, begin.incarnation, begin.offset))?.is_some())
    }

    /// Bytes of batches in a range of an incarnation whose bounds are batch boundaries.
    pub(crate) fn bytes_in(
        &self,
        id: u64,
        incarnation: Incarnation,
        from: Offset,
        to: Offset,
    ) -> Result<u64, IndexError> {
        let below = self.bytes_below(id, incarnation, from)?;
        let mut bytes = self.bytes_below(id, incarnation, to)?.saturating_sub(below);
        let from = batch_key(id, incarnation, from);
        self.visit(Family::Fills, &incarnation_key(id, incarnation), &from, |key, value| {
            let inside = offset_of(key).is_some_and(|offset| offset < to);
            bytes += Fields::new(value).u32().filter(|_| inside).map_or(0, u64::from);
            inside
        })?;
        Ok(bytes)
    }

    /// Bytes of the index's files, as RocksDB counts them.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let of = |family: &Family| {
            let family = self.family(*family).ok()?;
            self.db.property_int_value_cf(family, "rocksdb.total-sst-files-size").ok().flatten()
        };
        Family::ALL.iter().filter_map(of).sum()
    }

    /// Bytes that RocksDB wrote to its files since it was opened: flushes and compactions.
    pub(crate) fn written_bytes(&self) -> u64 {
        let of = |ticker| self.options.get_ticker_count(ticker);
        of(Ticker::FlushWriteBytes).saturating_add(of(Ticker::CompactWriteBytes))
    }

    /// A view that later writes do not change.
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        Snapshot { index: self, snapshot: self.db.snapshot() }
    }
}

/// See [`Index::snapshot`].
pub(crate) struct Snapshot<'a> {
    index: &'a Index,
    snapshot: rocksdb::Snapshot<'a>,
}

impl Snapshot<'_> {
    /// *Applied* as of the snapshot.
    pub(crate) fn applied(&self) -> Result<Option<Applied>, IndexError> {
        let found = self.snapshot.get_cf(self.index.family(Family::Meta)?, b"applied");
        let found = found.map_err(|e| self.index.read_failed(e))?;
        Ok(found.and_then(|bytes| Applied::decode(&bytes)))
    }

    /// Calls `visit` with every pair of a family, in order, until it fails.
    pub(crate) fn visit<E: From<IndexError>>(
        &self,
        family: Family,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut iterator = self.snapshot.raw_iterator_cf(self.index.family(family)?);
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item() {
            visit(key, value)?;
            iterator.next();
        }
        Ok(iterator.status().map_err(|e| self.index.read_failed(e))?)
    }
}

/// Changes that become visible together.
pub(crate) struct Changes<'a> {
    index: &'a Index,
    batch: WriteBatch,
}

impl Changes<'_> {
    pub(crate) fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        self.batch.put_cf(self.index.family(family)?, key, value);
        Ok(())
    }

    pub(crate) fn delete(&mut self, family: Family, key: &[u8]) -> Result<(), IndexError> {
        self.batch.delete_cf(self.index.family(family)?, key);
        Ok(())
    }

    /// Deletes all keys from `from` on and below `to`.
    pub(crate) fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]) -> Result<(), IndexError> {
        self.batch.delete_range_cf(self.index.family(family)?, from, to);
        Ok(())
    }

    pub(crate) fn put_batch(
        &mut self,
        id: u64,
        incarnation: Incarnation,
        offset: Offset,
        entry: &BatchEntry,
    ) -> Result<(), IndexError> {
        self.put(Family::Batches, &batch_key(id, incarnation, offset), &entry.encode())
    }

    pub(crate) fn set_applied(&mut self, applied: &Applied) -> Result<(), IndexError> {
        self.put(Family::Meta, b"applied", &applied.encode())
    }

    pub(crate) fn set_next_id(&mut self, next: u64) -> Result<(), IndexError> {
        self.put(Family::Meta, b"next id", &next.to_le_bytes())
    }
}

/// What is gathered before it is written, and what is kept of what was read, bytes, where so much of the reserve is kept in a file (0: none).
fn memory(reserve: u64) -> (usize, usize) {
    if reserve == 0 {
        return (WRITE_BUFFER_BYTES, BLOCK_CACHE_BYTES);
    }
    let part = usize::try_from(reserve / 4).unwrap_or(usize::MAX);
    let buffer = part.clamp(WRITE_BUFFER_BYTES_MIN, WRITE_BUFFER_BYTES);
    (buffer, buffer.saturating_mul(2).min(BLOCK_CACHE_BYTES))
}

fn family_options(cache: &Cache, buffer: usize) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(buffer);
    options
}

/// Key of a log.
pub(crate) fn log_key(id: u64) -> [u8; 8] {
    id.to_be_bytes()
}

/// Key of an incarnation of a log: the prefix of its batches.
pub(crate) fn incarnation_key(id: u64, incarnation: Incarnation) -> [u8; 24] {
    let mut key = [0; 24];
    let parts = [id, incarnation.counter, incarnation.random];
    for (into, part) in key.chunks_exact_mut(8).zip(parts) {
        into.copy_from_slice(&part.to_be_bytes());
    }
    key
}

/// Key of a batch, a fill, a damaged range or garbage.
pub(crate) fn batch_key(id: u64, incarnation: Incarnation, offset: Offset) -> [u8; 32] {
    let mut key = [0; 32];
    let parts = [id, incarnation.counter, incarnation.random, offset];
    for (into, part) in key.chunks_exact_mut(8).zip(parts) {
        into.copy_from_slice(&part.to_be_bytes());
    }
    key
}

/// Reads [`batch_key`] back.
pub(crate) fn split_batch_key(key: &[u8]) -> Option<(u64, Incarnation, Offset)> {
    let part = |at: usize| key.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    (key.len() == 32).then_some(())?;
    Some((part(0)?, Incarnation { counter: part(8)?, random: part(16)? }, part(24)?))
}

fn offset_of(key: &[u8]) -> Option<Offset> {
    split_batch_key(key).map(|(_, _, offset)| offset)
}

/// Key of a segment's counter.
pub(crate) fn segment_key(number: u64, dead: bool) -> [u8; 9] {
    let mut key = [0; 9];
    for (into, byte) in key.iter_mut().zip(number.to_be_bytes().into_iter().chain([u8::from(dead)])) {
        *into = byte;
    }
    key
}
