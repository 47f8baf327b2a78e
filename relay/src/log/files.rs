//! The file operations of the commit log, as a trait, so that tests can put a disk underneath that
//! forgets, tears, reorders, fails or is slow. [`OsFiles`] is the operating system's.
//!
//! What the log may rely on, and a faulty layer may do:
//! * bytes and length of a file are certain only after [`LogFile::sync_data`] has returned `Ok`; before
//!   that, after a loss of power, any subset of the written bytes may be there, old or new, and the
//!   length may be any that the file had since its last sync;
//! * that a name exists, is gone, or means another file is certain only after [`Files::sync_dir`] of its
//!   directory has returned `Ok`;
//! * after a failed [`LogFile::sync_data`] nothing that was written since the last one that succeeded is
//!   certain, whatever later syncs answer.
//!
//! RocksDB's files do not go through this layer: the index may be old, or gone, after a loss of power,
//! and is brought up to date from the log.

mod direct;

use std::{
    fmt, fs, io,
    io::IoSlice,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use direct::DirectWriter;
use parking_lot::Mutex;

/// A directory tree that the commit log works in.
pub trait Files: fmt::Debug + Send + Sync + 'static {
    /// Makes a directory; `AlreadyExists` where its name is taken, `NotFound` where the one above it is missing.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a new, empty file for reading and writing; `AlreadyExists` where there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Opens a file for reading and writing; `NotFound` where there is none.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Gives a file another name in the same directory, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name. Files that are open stay readable.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory's names durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that this process may still write to the directory's file system.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Locks a file (made if it is not there) against other processes and other openings in this one,
    /// until the answer is dropped; `WouldBlock` while somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;
}

/// Makes a directory and those above it, and the names of all that were made durable: a directory whose own name is lost
/// takes everything in it along. The one above is synced before anything is made in the new one, so that what
/// is found there later was certain. There already is fine.
///
/// # Errors
/// The system's, of making or of syncing.
pub fn create_dirs(files: &dyn Files, dir: &Path) -> io::Result<()> {
    let made = match files.create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.parent().is_some() => {
            create_dirs(files, above(dir))?;
            files.create_dir(dir)
        }
        made => made,
    };
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| files.sync_dir(above(dir))),
    }
}

/// Makes the name of a directory durable that may have been there before, made by whoever. Where the directory above it is not
/// this user's to open, or cannot be synced at all, it is left to whom it belongs.
///
/// # Errors
/// The system's, if syncing was possible and failed.
pub fn sync_name(files: &dyn Files, dir: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    match files.sync_dir(above(dir)) {
        Err(e) if matches!(e.kind(), PermissionDenied | InvalidInput | ReadOnlyFilesystem | Unsupported) => {
            tracing::debug!(dir = %dir.display(), "the name of the directory could not be synced: {e}");
            Ok(())
        }
        synced => synced,
    }
}

/// The directory that holds a name.
fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// Holds a lock of [`Files::lock`]; dropping it lets go.
pub trait LockGuard: fmt::Debug + Send + Sync {}

/// An open file. Shared between the storage thread, which writes, and readers.
pub trait LogFile: fmt::Debug + Send + Sync {
    /// Writes all parts one after the other, beginning at byte `at`; the file grows as needed. The
    /// slices are used up.
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()>;

    /// Lets go of what only writing needs: nothing more is about to be written. Writing again is allowed.
    fn end_writing(&self) {}

    /// Reads as many bytes as there are from byte `at` on, up to `into`'s length; 0 at or past the end.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize>;

    /// Makes bytes and length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether there are no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends (with zeros) to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Takes room on the disk so that the file is at least `len` bytes long; what is new reads as zeros.
    /// A file system that cannot do so is no error; one that is full is.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Reads exactly `into.len()` bytes from byte `at` on; `UnexpectedEof` where there are fewer.
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, at.saturating_add(done as u64)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    path: PathBuf,
    /// Past the page cache; opened with the first write, the inner `None` where the file system cannot.
    direct: Mutex<Option<Option<DirectWriter>>>,
}

#[derive(Debug)]
struct OsLock(#[allow(dead_code, reason = "held for its lock")] fs::File);

impl LockGuard for OsLock {}

impl Files for OsFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(OsFile { file, path: path.to_owned(), direct: Mutex::default() }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(OsFile { file, path: path.to_owned(), direct: Mutex::default() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(dir)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(OsLock(file))),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }
}

/// Most parts that one vectored write of the system takes (`IOV_MAX` on Linux).
const PARTS_MAX: usize = 1024;

impl LogFile for OsFile {
    fn write_all_at(&self, parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        let mut direct = self.direct.lock();
        if let Some(direct) = direct.get_or_insert_with(|| DirectWriter::open(&self.path, &self.file))
            && direct.write_all_at(parts, at)?
        {
            return Ok(());
        }
        drop(direct);
        let mut rest = parts;
        let mut at = at;
        IoSlice::advance_slices(&mut rest, 0); // drops empty parts in front
        while !rest.is_empty() {
            let now = rest.get(..PARTS_MAX).unwrap_or(rest);
            match rustix::io::pwritev(&self.file, now, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    at += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn end_writing(&self) {
        *self.direct.lock() = None;
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(&self.file, into, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::{fs::FallocateFlags, io::Errno};
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) | Ok(()) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
pub(in crate::log) use direct::tests::directory as direct_directory;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_many_parts_at_a_position_and_reads_them_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsFiles.create(&dir.path().join("a")).unwrap();
        file.allocate(64 * 1024).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000_u32).map(|n| n.to_le_bytes()[..(n % 5).min(4) as usize].to_vec()).collect();
        let whole: Vec<u8> = parts.concat();
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        file.write_all_at(&mut slices, 77).unwrap();
        file.sync_data().unwrap();
        let mut back = vec![0; whole.len()];
        file.read_exact_at(&mut back, 77).unwrap();
        assert_eq!(back, whole);
        let len = file.len().unwrap();
        assert!(len >= 77 + whole.len() as u64);
        assert_eq!(file.read_at(&mut back, len).unwrap(), 0);
        assert_eq!(file.read_exact_at(&mut back, len - 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// How often this process has a file open.
    fn openings(path: &Path) -> usize {
        let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        open.filter(|target| target == path).count()
    }

    #[test]
    fn what_only_writing_needs_goes_when_writing_ends() {
        let dir = direct_directory();
        let path = dir.path().join("a");
        let file = OsFiles.create(&path).unwrap();
        assert_eq!(openings(&path), 1);
        for round in 0..2_u8 {
            file.write_all_at(&mut [IoSlice::new(&[round; 1024])], 512).unwrap();
            assert_eq!(openings(&path), 2, "the second opening is the direct one");
            file.end_writing();
            assert_eq!(openings(&path), 1);
            assert_eq!(fs::read(&path).unwrap()[512..], [round; 1024]);
        }
    }

    #[test]
    fn directories_are_made_down_to_the_one_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dirs(&OsFiles, &deep).unwrap();
        create_dirs(&OsFiles, &deep).unwrap();
        sync_name(&OsFiles, &deep).unwrap();
        assert!(deep.is_dir());
        fs::write(dir.path().join("file"), "").unwrap();
        create_dirs(&OsFiles, &dir.path().join("file/d")).unwrap_err();
        assert_eq!(above(Path::new("data")), Path::new("."));
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = OsFiles.lock(&path).unwrap();
        assert_eq!(OsFiles.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        OsFiles.lock(&path).unwrap();
    }
}
