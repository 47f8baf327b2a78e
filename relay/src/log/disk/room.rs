//! Room on the disk: the reserve, the part of it that is kept in a file, and the shares of own logs and copies.
//!
//! **The reserve** is what must stay free when something is appended, all that is on its way counted. State goes on into half of it;
//! what makes room (trims, drops, deletions, checkpoints, moving, what is written when segments go) uses all of it. A part of it
//! ([`DiskConfig::ballast_bytes`](super::DiskConfig::ballast_bytes)) is kept in the file `reserve`, so that nobody else on the file
//! system can take it: where a write finds the file system full to the last byte, the storage thread
//! removes that file, and what was accepted before gets its room, and after it the trims and checkpoints that make more. What
//! still finds none is held, in its order, and written when there is some; nothing is answered meanwhile, and the log is not
//! poisoned, because nothing was synced. A failed *sync* poisons it as ever.
//!
//! **Shares** bound own logs and copies by what they take of the disk: the bytes that live in them, plus their part of the
//! overhead (dead bytes of segments, checkpoints, index) in the proportion of what lives, but never more than as much again:
//! what a small log shares a segment with is not held against it. Only appends are refused for a share; what is on its way counts.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{cell::Cell, queue::Full, shared::Shared};
use crate::log::contract::{Entry, RejectReason, Role, Unit, makes_room};

/// Name of the file that keeps a part of the reserve.
const BALLAST: &str = "reserve";
/// A share that was full is open again once it is this part below its size.
const SHARE_HYSTERESIS: u64 = 16;
/// A share is nearly full from this part below its size on.
const SHARE_NEAR: u64 = 8;

/// One of the two shares.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// What it takes, as last measured.
    measured: AtomicU64,
    /// Accepted since.
    since: AtomicU64,
    full: AtomicBool,
}

impl Share {
    /// Bytes that it takes of the disk, what was accepted since the last look counted.
    pub(crate) fn used(&self) -> u64 {
        self.measured.load(Ordering::Relaxed).saturating_add(self.since.load(Ordering::Relaxed))
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Notes what it takes now; a change of whether it is full is logged.
    fn note(&self, role: Role, used: u64, max: u64) {
        self.measured.store(used, Ordering::Relaxed);
        let bound = if self.is_full() { max - max / SHARE_HYSTERESIS } else { max };
        self.set_full(role, used >= bound, used, max);
    }

    fn set_full(&self, role: Role, full: bool, used: u64, max: u64) {
        if self.full.swap(full, Ordering::Relaxed) == full {
            return;
        }
        let whose = whose(role);
        if full {
            tracing::warn!(used, max, "the share of the disk for {whose} is used up: appends are refused there");
        } else {
            tracing::info!(used, max, "there is room in the share of the disk for {whose} again");
        }
    }
}

/// Both shares.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    own: Share,
    copies: Share,
}

impl Shares {
    pub(crate) fn of(&self, role: Role) -> &Share {
        match role {
            Role::Own => &self.own,
            Role::Copy => &self.copies,
        }
    }
}

/// Whose share it is, in words.
pub(crate) fn whose(role: Role) -> &'static str {
    match role {
        Role::Own => "own logs",
        Role::Copy => "copies",
    }
}

/// What a share takes: what lives in it, and its part of what nobody lives in.
pub(crate) fn taken(live: u64, all_live: u64, overhead: u64) -> u64 {
    let part = u128::from(overhead) * u128::from(live) / u128::from(all_live.max(1));
    live.saturating_add(u64::try_from(part).unwrap_or(u64::MAX).min(live))
}

/// How much of the disk's reserve must be free for a unit.
enum Needs {
    /// All: it appends.
    Reserve,
    /// Half: state goes on for a while when messages no longer do, but must not use up what makes room.
    HalfReserve,
    /// It makes room.
    Nothing,
}

fn needs_of(unit: &Unit) -> Needs {
    if makes_room(&unit.entries) {
        return Needs::Nothing;
    }
    let appends = unit.entries.iter().any(|entry| matches!(entry, Entry::Append { .. }));
    if appends { Needs::Reserve } else { Needs::HalfReserve }
}

/// Bytes that a unit appends, own and copies'.
fn appended(unit: &Unit) -> [(Role, u64); 2] {
    let mut sums = [(Role::Own, 0), (Role::Copy, 0)];
    for entry in &unit.entries {
        if let Entry::Append { role, batch } = entry {
            sums.iter_mut().filter(|(of, _)| of == role).for_each(|(_, sum)| *sum += batch.len() as u64);
        }
    }
    sums
}

impl Shared {
    /// Whether there is room for a unit of so many bytes, in the queue and on the disk.
    pub(crate) fn check_room(&self, unit: &Unit, bytes: usize) -> Result<(), RejectReason> {
        match self.queue.check(bytes) {
            Ok(()) => {}
            Err(Full::Busy) => return Err(RejectReason::Busy),
            Err(Full::Stopped(poisoned)) => return Err(poisoned.into()),
        }
        let free = self.figures.disk_free.load(Ordering::Relaxed);
        let needs = needs_of(unit);
        let (has_room, needed) = match needs {
            Needs::Reserve => (self.has_disk_for(bytes), self.reserve()),
            Needs::HalfReserve => {
                let needed = self.reserve().div_ceil(2);
                (!self.figures.disk_full.load(Ordering::Relaxed) || free >= needed, needed)
            }
            Needs::Nothing => (true, 0),
        };
        if !has_room {
            // What is on its way will take its part of what was free when it was last measured.
            let free = free.saturating_sub(self.queue.fill().0 as u64).saturating_sub(bytes as u64);
            return Err(RejectReason::DiskFull { free, needed });
        }
        if matches!(needs, Needs::Nothing) { Ok(()) } else { self.check_shares(unit) }
    }

    fn check_shares(&self, unit: &Unit) -> Result<(), RejectReason> {
        for (role, bytes) in appended(unit).into_iter().filter(|(_, bytes)| *bytes > 0) {
            let Some(max) = self.share_bytes_max(role) else { continue };
            let share = self.figures.shares.of(role);
            let used = share.used().saturating_add(bytes);
            if used > max {
                share.set_full(role, true, used, max);
            }
            if share.is_full() {
                return Err(RejectReason::ShareFull { role, used: share.used(), max });
            }
        }
        Ok(())
    }

    /// Counts what a unit that was accepted appends.
    pub(crate) fn count_appended(&self, unit: &Unit) {
        for (role, bytes) in appended(unit) {
            self.figures.shares.of(role).since.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn share_bytes_max(&self, role: Role) -> Option<u64> {
        match role {
            Role::Own => self.config.own_bytes_max,
            Role::Copy => self.config.copies_bytes_max,
        }
    }

    /// What must be free, beside the part of the reserve that is kept in a file.
    pub(crate) fn reserve(&self) -> u64 {
        self.config.reserve_bytes.saturating_sub(self.figures.ballast_bytes.load(Ordering::Relaxed))
    }

    /// Whether the reserve stays whole when so many bytes more are written than are on their way already: what was
    /// accepted since the disk was measured counts, or a fast publisher would fill it between two looks.
    fn has_disk_for(&self, bytes: usize) -> bool {
        let free = self.figures.disk_free.load(Ordering::Relaxed);
        let coming = (self.queue.fill().0 as u64).saturating_add(bytes as u64);
        let full = self.figures.disk_full.load(Ordering::Relaxed);
        // 0 as long as the disk could not be measured.
        if !full && free > 0 && free < self.reserve().saturating_add(coming) {
            self.note_disk_full(free, true);
            return false;
        }
        !full
    }

    /// Whether what is free comes near the reserve, or is below it, or a share comes near its end.
    pub(crate) fn is_short(&self) -> bool {
        let free = self.figures.disk_free.load(Ordering::Relaxed);
        let near = self.reserve().saturating_add(self.reserve() / 4);
        let near_full = |role| {
            let share = self.figures.shares.of(role);
            share.is_full() || self.share_bytes_max(role).is_some_and(|max| share.used() > max - max / SHARE_NEAR)
        };
        self.figures.disk_full.load(Ordering::Relaxed)
            || (free > 0 && free < near)
            || near_full(Role::Own)
            || near_full(Role::Copy)
    }

    /// Room for own messages until publishing would come near its end, negative where it has come there: what is free above the reserve and a
    /// quarter of it, and what own logs have left below an eighth of their share. `None` as long as it is not known.
    pub(crate) fn own_room(&self) -> Option<i64> {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let free = self.figures.disk_free.load(Ordering::Relaxed);
        let known = free > 0 || self.figures.disk_full.load(Ordering::Relaxed);
        let near = self.reserve().saturating_add(self.reserve() / 4);
        let on_disk = known.then(|| signed(free).saturating_sub(signed(near)));
        let share = self.figures.shares.of(Role::Own);
        let in_share =
            self.config.own_bytes_max.map(|max| signed(max - max / SHARE_NEAR).saturating_sub(signed(share.used())));
        [on_disk, in_share].into_iter().flatten().min()
    }

    /// Takes appends, or takes none; a change is logged.
    fn note_disk_full(&self, free: u64, full: bool) {
        if self.figures.disk_full.swap(full, Ordering::Relaxed) == full {
            return;
        }
        if full {
            let reserve = self.reserve();
            tracing::warn!(free, reserve, "the disk is nearly full: appends are refused until there is room");
        } else {
            tracing::info!(free, "there is room on the disk again: appends are taken");
        }
    }

    /// Measures the room on the disk and in the shares, and decides whether appends are taken.
    pub(crate) fn measure_disk(&self) {
        match self.config.files.free_bytes(&self.config.dir) {
            Ok(free) => {
                self.figures.disk_free.store(free, Ordering::Relaxed);
                let reserve = self.reserve();
                let was = self.figures.disk_full.load(Ordering::Relaxed);
                // Some room above the reserve before appends are taken again, so that it does not turn with every write.
                let full = self.figures.no_room.load(Ordering::Relaxed)
                    || free < if was { reserve.saturating_add(reserve / 8) } else { reserve };
                self.note_disk_full(free, full);
            }
            Err(e) => tracing::warn!("the free room on the disk cannot be measured: {e}"),
        }
        self.measure_shares();
    }

    fn measure_shares(&self) {
        let roles = [Role::Own, Role::Copy];
        if roles.iter().all(|role| self.share_bytes_max(*role).is_none()) {
            return;
        }
        let shares = &self.figures.shares;
        // What is accepted while this goes on counts twice until the next look.
        roles.iter().for_each(|role| shares.of(*role).since.store(0, Ordering::Relaxed));
        let mut live = [0_u64; 2];
        let cells: Vec<Arc<Cell>> = self.cells.read().values().cloned().collect();
        for cell in cells {
            let state = cell.state.lock();
            let bytes = state.submitted.as_ref().map_or(0, |copy| copy.bytes());
            let [own, copies] = &mut live;
            *(if state.role == Role::Own { own } else { copies }) += bytes;
        }
        let all: u64 = live.iter().sum();
        let disk = self.existing.lock().values().sum::<u64>() + self.figures.index_bytes.load(Ordering::Relaxed);
        let overhead = disk.saturating_sub(all);
        for (role, live) in roles.into_iter().zip(live) {
            let max = self.share_bytes_max(role).unwrap_or(u64::MAX);
            shares.of(role).note(role, taken(live, all, overhead), max);
        }
    }

    fn ballast_path(&self) -> PathBuf {
        self.config.dir.join(BALLAST)
    }

    /// Makes the file that keeps a part of the reserve, where there is room for it and it is not there with its size.
    pub(crate) fn keep_ballast(&self) {
        let wanted = self.config.ballast_bytes;
        let has = self.figures.ballast_bytes.load(Ordering::Relaxed);
        let free = self.config.files.free_bytes(&self.config.dir).unwrap_or(0);
        if has == wanted || free.saturating_add(has) < self.config.reserve_bytes.saturating_add(wanted) {
            return;
        }
        let path = self.ballast_path();
        let made = match self.config.files.open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.config.files.create(&path),
            opened => opened,
        };
        let made = made.and_then(|file| {
            if file.len()? > wanted {
                file.truncate(wanted)?;
            }
            file.allocate(wanted)?;
            file.len()
        });
        match made {
            Ok(len) => self.figures.ballast_bytes.store(len.min(wanted), Ordering::Relaxed),
            Err(e) => tracing::warn!("no room is kept in {}: {e}", path.display()),
        }
    }

    /// What a file of an earlier process keeps counts from the start; where none is to be kept, it goes.
    pub(crate) fn find_ballast(&self) {
        let path = self.ballast_path();
        let wanted = self.config.ballast_bytes;
        let len = self.config.files.open(&path).and_then(|file| file.len()).unwrap_or(0);
        self.figures.ballast_bytes.store(len.min(wanted), Ordering::Relaxed);
        if wanted == 0 && len > 0 {
            self.release_ballast();
        }
    }

    /// Gives the file's room to what needs it now; answers whether there was some.
    pub(crate) fn release_ballast(&self) -> bool {
        let had = self.figures.ballast_bytes.swap(0, Ordering::Relaxed);
        match self.config.files.remove(&self.ballast_path()) {
            Ok(()) => {
                tracing::warn!(bytes = had, "the part of the reserve that was kept in a file is used now");
                had > 0
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => {
                tracing::error!("removing {} failed: {e}", self.ballast_path().display());
                false
            }
        }
    }
}
