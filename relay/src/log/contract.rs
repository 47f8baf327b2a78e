//! The contract of a commit log, which every implementation MUST keep and the conformance suite checks.
//!
//! # Units
//! What is submitted together is a [`Unit`]: it becomes durable and visible as a whole or not at
//! all, across any crash. Units take effect in the order in which [`CommitLog::submit`] accepted them.
//!
//! # Two ends
//! Every log has a *submitted* end (what `submit` checks against; it moves at once) and a *durable*
//! end (moves when the unit is durable). An implementation MUST check each append against the rules
//! of [`seaway_federation_proto::copies`] before it accepts the unit, and MUST refuse the whole unit
//! when one of its entries is refused (giving it back).
//!
//! # Durability
//! `done` MUST be called exactly once for each accepted unit, in order, with `Ok` only after the
//! unit's bytes and everything before them are durable *and* reads and state look-ups see it. After
//! a failed write or fsync the log is poisoned: every `done` still out and every later `submit`
//! fails with [`Poisoned`]; nothing is retried.
//!
//! # Reading
//! Reads of the node's own logs MUST NOT return what is not durable. Reads of copies may return
//! what is accepted but not yet durable. A read never returns a batch that was trimmed or dropped
//! by a durable unit.
//!
//! # Recovery
//! After a crash at any moment the log holds a prefix of the accepted units that contains every
//! unit whose `done` was called with `Ok`. Bytes that are bad before the durable point are damage:
//! reported with file and position, fenced (reads there answer [`Outside::Damaged`]), never cut.
//!
//! # Threads
//! `submit` does not wait on the disk and may be called from async tasks; `done` runs on a storage
//! thread and must be quick. `read` may wait on the disk; `read_cached` never does.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use seaway_federation_proto::{
    copies::{AppendRefusal, Hole, HoleKind, LogInfo},
    envelope::{Batch, Chain},
    ids::{Incarnation, LogName, Offset, Place},
};

use super::sync_times::SyncTimes;

/// The tables of durable state beside the logs. Numbers are permanent: they are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Facts of the node itself: last start, format, clock high-water mark.
    Node = 1,
    /// This site's durable wants.
    Wants = 2,
    /// Per origin (and want): the resolved starts.
    Starts = 3,
    /// Registrations stated by this site, until answered, and answered.
    Registrations = 4,
    /// What registered sites have stated to hold of this node's own logs.
    Held = 5,
    /// Producers: last epoch and sequence for each topic.
    Producers = 6,
    /// Durable groups and their positions.
    Groups = 7,
    /// Topic settings at this origin.
    Topics = 8,
    /// Access tokens (hashed) and their rights.
    Tokens = 9,
    /// Sites that registered with this origin.
    Sites = 10,
    /// Edge brokers ever heard of.
    Nodes = 11,
    /// Topics that were deleted, of this origin and of others: their tombstones.
    Deleted = 12,
    /// What commands set of topics here, whatever the configuration says.
    Overrides = 13,
    /// What hold-back gave up for which site, and when sites were last heard of.
    HoldBack = 120,
    /// Sites that were removed from the federation, for ever.
    Removed = 121,
}

impl Table {
    /// All of them, in the order of their numbers.
    pub const ALL: [Table; 15] = [
        Table::Node,
        Table::Wants,
        Table::Starts,
        Table::Registrations,
        Table::Held,
        Table::Producers,
        Table::Groups,
        Table::Topics,
        Table::Tokens,
        Table::Sites,
        Table::Nodes,
        Table::Deleted,
        Table::Overrides,
        Table::HoldBack,
        Table::Removed,
    ];
}

/// Whose log a batch belongs to, from this node's view: decides what readers may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// This site's own: visible once durable.
    Own,
    /// A copy of another origin's: visible once accepted.
    Copy,
}

/// One change. The numbers of its kinds on disk are permanent.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A batch at the end of its log or incarnation. For an unknown log it makes the copy, provided it is
    /// the log's very first batch or [`Entry::BeginCopy`] came before.
    Append {
        /// Whose.
        role: Role,
        /// The batch; its envelope names log and place.
        batch: Batch,
    },
    /// Makes an empty copy that begins at `at`; the next batch accepted is the one at `at`. Refused when the copy exists.
    BeginCopy {
        /// The log.
        log: LogName,
        /// Where it begins.
        at: Place,
        /// The chain value there, where it is known.
        chain: Option<Chain>,
    },
    /// States that the copy will lack a range that begins at an incarnation's end; moves that end.
    Hole {
        /// The log.
        log: LogName,
        /// The range and its kind.
        hole: Hole,
    },
    /// Changes the kind of a stated hole.
    Rekind {
        /// The log.
        log: LogName,
        /// The range; must be a stated hole, or a part of one.
        hole: Hole,
        /// The kind it had.
        was: HoleKind,
    },
    /// Raises the copy's begin to the first batch boundary at or below `to`.
    Trim {
        /// The log.
        log: LogName,
        /// New begin.
        to: Place,
    },
    /// Forgets the copy wholly.
    Drop {
        /// The log.
        log: LogName,
    },
    /// Sets a value in a table.
    Put {
        /// The table.
        table: Table,
        /// Key, at most 4 KiB.
        key: Bytes,
        /// Value, at most 1 MiB.
        value: Bytes,
    },
    /// Deletes a key from a table; absent is fine.
    Delete {
        /// The table.
        table: Table,
        /// The key.
        key: Bytes,
    },
}

/// What becomes durable together.
#[derive(Debug, Clone, Default)]
pub struct Unit {
    /// Applied in this order.
    pub entries: Vec<Entry>,
}

/// What a unit that trims or drops may append and put beside that and still go into the disk's reserve, bytes: the entry that says why.
pub const REASON_BYTES_MAX: usize = 64 << 10;

/// Whether what these entries change may use up the disk's reserve, since it makes room: they trim, drop or delete only (or write down
/// what hold-back gives up by that), or what they say beside a trim or drop is small.
pub fn makes_room<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> bool {
    let (mut said, mut trims, mut others) = (0_usize, false, false);
    for entry in entries {
        match entry {
            Entry::Trim { .. } | Entry::Drop { .. } => trims = true,
            Entry::Delete { .. } | Entry::Put { table: Table::HoldBack, .. } => {}
            Entry::Append { batch, .. } => (said, others) = (said.saturating_add(batch.len()), true),
            Entry::Put { key, value, .. } => (said, others) = (said.saturating_add(key.len() + value.len()), true),
            Entry::BeginCopy { .. } | Entry::Hole { .. } | Entry::Rekind { .. } => others = true,
        }
    }
    !others || (trims && said <= REASON_BYTES_MAX)
}

impl Unit {
    /// Room to ask [`CommitLog::ready`] for when this unit was refused as busy: its content and ample framing, bytes.
    pub fn room_bytes(&self) -> usize {
        let content = |entry: &Entry| match entry {
            Entry::Append { batch, .. } => batch.len(),
            Entry::Put { key, value, .. } => key.len() + value.len(),
            Entry::Delete { key, .. } => key.len(),
            Entry::BeginCopy { .. }
            | Entry::Hole { .. }
            | Entry::Rekind { .. }
            | Entry::Trim { .. }
            | Entry::Drop { .. } => 1_024,
        };
        self.entries.iter().map(|entry| content(entry) + 256).sum::<usize>() + 4_096
    }
}

/// The node stopped accepting because a write or fsync failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the commit log stopped: {why}; free or replace the disk, then restart the node")]
pub struct Poisoned {
    /// What failed, with file and system error.
    pub why: Arc<str>,
}

/// Called once, on a storage thread, when a unit is durable and visible, or never will be.
pub type Done = Box<dyn FnOnce(Result<(), Poisoned>) + Send>;

/// Why a unit was not accepted. Nothing of it took effect; it is given back.
pub struct Rejected {
    /// The unit as it was submitted.
    pub unit: Unit,
    /// Not called.
    pub done: Done,
    /// Why.
    pub reason: RejectReason,
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected").field("unit", &self.unit).field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// See [`Rejected`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// The entry of this index breaks the rules of copies.
    #[error("entry {index}: {refusal}")]
    Refused {
        /// Index in the unit.
        index: usize,
        /// Why.
        refusal: AppendRefusal,
    },
    /// An entry makes no sense (drop of an unknown log, hole not at an end, key too long …).
    #[error("entry {index}: {why}")]
    Invalid {
        /// Index in the unit.
        index: usize,
        /// In words.
        why: &'static str,
    },
    /// The queue to the storage thread holds as many bytes as it may; try again when [`CommitLog::ready`] says so.
    #[error("the append queue is full")]
    Busy,
    /// The disk's reserve, or the share of `role`, is reached.
    #[error(
        "the disk is nearly full: {free} bytes are free, and after this write {needed} must be; make room or lower the retention"
    )]
    DiskFull {
        /// Bytes free.
        free: u64,
        /// Bytes kept.
        needed: u64,
    },
    /// The share of the disk for own logs, or for copies, is used up; what is not appended there goes on.
    #[error(
        "the share of the disk for {} is used up: {used} of {max} bytes; lower their retention, or raise log.{}",
        if *.role == Role::Own { "own logs" } else { "copies" },
        if *.role == Role::Own { "own_size" } else { "copies_size" }
    )]
    ShareFull {
        /// Whose.
        role: Role,
        /// Bytes that it takes of the disk.
        used: u64,
        /// Its size.
        max: u64,
    },
    /// See [`Poisoned`].
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// How a read goes on where a log has more than one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// Runs on into the next incarnation of the main line.
    Main,
    /// Stays in the incarnation of the place: for a fork's part above what its successor names.
    Incarnation,
}

/// What a read found.
#[derive(Debug, Clone)]
pub enum Read {
    /// Batches that follow each other from the place asked for (the first may begin below it: the
    /// one that contains it), at least one, at most about `bytes_max`.
    Batches {
        /// In order.
        batches: Vec<Batch>,
        /// Where to read on.
        next: Place,
    },
    /// Nothing more yet: the place is the readable end (perhaps in a later incarnation: `at`).
    AtEnd {
        /// The end, as a place of the newest incarnation reached.
        at: Place,
        /// The reader follows the main line, which does not run through there (any more): it is a fork's end.
        beside: bool,
    },
    /// Not in this copy.
    Outside(Outside),
}

/// Why a place cannot be read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// No copy of this log.
    NoCopy,
    /// Below the begin.
    Below {
        /// Where the copy begins.
        begin: Place,
    },
    /// In a stated hole; go on at `to`.
    Hole {
        /// The hole.
        hole: Hole,
    },
    /// Above the end of that incarnation.
    Above {
        /// Its end here.
        end: Place,
    },
    /// An incarnation that is not here.
    UnknownIncarnation,
    /// In a fenced range; a hole to be fetched again.
    Damaged {
        /// First offset after the damage in that incarnation.
        to: Offset,
    },
}

/// A read that failed for a reason of this node's.
#[derive(Debug, Clone, thiserror::Error)]
#[error("reading {log} at {place} failed: {why}")]
pub struct ReadError {
    /// The log.
    pub log: LogName,
    /// The place.
    pub place: Place,
    /// What failed, with file and position.
    pub why: String,
}

/// Told to the listener after a unit took effect (copies: also at acceptance).
#[derive(Debug, Clone)]
pub struct Advanced {
    /// Which log.
    pub log: LogName,
    /// New readable end of the main line; `None`: the log was dropped.
    pub readable: Option<Place>,
    /// New durable end of the main line.
    pub durable: Option<Place>,
    /// Chain value at the durable end.
    pub chain: Option<Chain>,
    /// Whether the begin, the holes or the incarnations changed (take [`CommitLog::info`] anew).
    pub shape_changed: bool,
}

/// The listener: called on storage or submitting threads; must not block or call back into the log's `submit`.
pub type Listener = Arc<dyn Fn(&[Advanced]) + Send + Sync>;

/// Retention for one log, by the holder's own clock and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Keep at most this many bytes of batches.
    pub bytes_max: Option<u64>,
    /// Drop what this node appended before this time, microseconds since 1970.
    pub appended_before_us: Option<u64>,
    /// What claims to have been appended after this was stored by a clock that stood wrong: its age is that of what was
    /// appended after it, and as long as there is nothing after it, it stays.
    pub not_after_us: Option<u64>,
    /// Never trim at or above this place, whatever the two above say (hold-back, confirmed positions).
    pub keep_from: Option<Place>,
}

/// A batch as [`CommitLog::survey`] meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surveyed {
    /// Place of its first message.
    pub begin: Place,
    /// The place after its last.
    pub end: Place,
    /// Its length.
    pub bytes: u64,
    /// When this node appended it, microseconds since 1970.
    pub stored_at_us: u64,
}

/// Damage found, at opening or by a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// File.
    pub file: String,
    /// First bad byte.
    pub from: u64,
    /// First good byte after.
    pub to: u64,
    /// What was there, as far as it can be told.
    pub detail: String,
}

/// Figures of the commit log as a whole.
#[derive(Debug, Clone, Default)]
pub struct LogStats {
    /// Set when poisoned.
    pub poisoned: Option<Arc<str>>,
    /// Segment files.
    pub segments: u64,
    /// Bytes of segment files on disk.
    pub segment_bytes: u64,
    /// Bytes of batches still retained by some log.
    pub live_bytes: u64,
    /// Bytes of the index directory, as last measured.
    pub index_bytes: u64,
    /// Bytes waiting for the storage thread.
    pub queued_bytes: u64,
    /// Bound of `queued_bytes`.
    pub queued_bytes_max: u64,
    /// Group writes so far.
    pub groups: u64,
    /// fsyncs so far.
    pub syncs: u64,
    /// How long those of group writes took.
    pub sync_times: SyncTimes,
    /// Bytes written to segment files so far.
    pub written_bytes: u64,
    /// Whether what was accepted waits for room on the disk: it is written when there is some.
    pub waits_for_room: bool,
    /// Bytes that the index wrote to its own files so far, compactions counted.
    pub index_written_bytes: u64,
    /// When the newest durable group was written, by the clock of whoever wrote it, microseconds since 1970; 0 if not known.
    pub newest_us: u64,
    /// Bytes of the reserve that are kept in a file, so that nobody else takes them.
    pub ballast_bytes: u64,
    /// Bytes of batches that were moved so far, so that old segments could go; part of `written_bytes`.
    pub moved_bytes: u64,
    /// Checkpoints written so far.
    pub checkpoints: u64,
    /// Bytes of the last of them.
    pub checkpoint_bytes: u64,
    /// Whether [`CommitLog::reclaim`] has more to do as soon as its rate allows it: call it again soon.
    pub reclaim_again: bool,
    /// Bytes of batches accepted so far.
    pub accepted_bytes: u64,
    /// Free bytes of the file system, as last measured.
    pub disk_free: u64,
    /// Whether appends are refused for lack of room.
    pub disk_full: bool,
    /// Whether the room on the disk or in a share comes near its end, or is used up: retention and reclaiming are urgent.
    pub short: bool,
    /// Bytes of own messages that still fit before that; negative: so much is lacking. `None` as long as it is not known.
    pub own_room: Option<i64>,
    /// Whether appends to own logs are refused since their share of the disk is used up.
    pub own_full: bool,
    /// Whether appends to copies are refused since their share of the disk is used up.
    pub copies_full: bool,
    /// Damage found since opening.
    pub damage: Vec<Damage>,
    /// Bytes cut as torn at opening.
    pub torn_bytes: u64,
}

/// The contract; see the module's documentation.
pub trait CommitLog: Send + Sync + 'static {
    /// Accepts a unit, or gives it back with the reason.
    fn submit(&self, unit: Unit, done: Done) -> Result<(), Box<Rejected>>;

    /// Calls `wake` once (at once if there is room now) when at least `bytes` fit into the append queue.
    fn ready(&self, bytes: usize, wake: Box<dyn FnOnce() + Send>);

    /// Reads batches from `from` on, at least one where there is one, about `bytes_max` in all. May wait on the disk.
    fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError>;

    /// As [`CommitLog::read`], but only if it can be answered without the disk.
    fn read_cached(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Option<Read>;

    /// The begin of the first batch whose origin time is at or after `time_us` (the main line's end if none). May wait on the disk.
    fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError>;

    /// Chain value at a batch boundary, if that boundary is held. May wait on the disk.
    fn chain_at(&self, log: &LogName, place: Place) -> Result<Option<Chain>, ReadError>;

    /// The copy as of the last accepted unit (`submitted`) or the last durable one.
    fn info(&self, log: &LogName, durable: bool) -> Option<LogInfo>;

    /// The newest incarnation held, as of the last accepted unit: what [`CommitLog::info`] says of it, at less cost.
    fn newest(&self, log: &LogName) -> Option<Incarnation> {
        self.info(log, false)?.incarnations.last().map(|i| i.incarnation)
    }

    /// Bytes of a log's batches, as of the last durable unit: what [`CommitLog::info`] says of it, at less cost.
    fn bytes(&self, log: &LogName) -> Option<u64> {
        Some(self.info(log, true)?.bytes)
    }

    /// All logs held, in order of name.
    fn logs(&self) -> Vec<LogName>;

    /// A value as of the last durable unit.
    fn get(&self, table: Table, key: &[u8]) -> Option<Bytes>;

    /// All pairs of a table whose key begins with `prefix`, in order, as of the last durable unit.
    fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)>;

    /// Goes along the main line as of the last durable unit, batch by batch, from `from` (a batch's begin on it; the line's begin where
    /// `None` or below it) until `visit` answers false; holes are passed over. May wait on the disk. `false`: `from` is not on the main
    /// line (any more), or there is no such log.
    fn survey(
        &self,
        log: &LogName,
        from: Option<Place>,
        visit: &mut dyn FnMut(Surveyed) -> bool,
    ) -> Result<bool, ReadError>;

    /// Where a log's begin would move under `retention` (`None`: nowhere). Trimming itself is a [`Entry::Trim`].
    fn trim_target(&self, log: &LogName, retention: Retention) -> Result<Option<Place>, ReadError>;

    /// Deletes whole segments that no log, checkpoint or replay needs; moves what lives out of old segments that are mostly dead,
    /// as far as the rate of moving allows now ([`LogStats::reclaim_again`]); writes a checkpoint where one is
    /// due. Readers, trims and appends go on meanwhile; whatever moves, what is held, and since when, MUST stay the same. Waits
    /// on the disk; answers how many bytes came back.
    fn reclaim(&self) -> Result<u64, Poisoned>;

    /// Registers the one listener; replaces an earlier one.
    fn set_listener(&self, listener: Listener);

    /// Figures.
    fn stats(&self) -> LogStats;

    /// Writes what is queued, makes it durable, flushes the index, and stops accepting.
    fn close(&self) -> Result<(), Poisoned>;
}

impl fmt::Debug for dyn CommitLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommitLog")
    }
}
