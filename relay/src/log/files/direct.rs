//! Writing past the page cache (`O_DIRECT`).
//!
//! What the commit log writes it syncs at once, and what is read soon after is still in its own memory; so
//! a stay in the page cache only costs a copy into pages that the kernel has to find first. `seaway bench log`
//! prints how fast plain files are written both ways on the machine at hand, with an fdatasync for each write.
//!
//! Positions and lengths of such writes are multiples of what the device writes at once, and the bytes lie
//! aligned in memory. Groups are padded to [`UNIT`], so a device that writes at least so little takes all of
//! them; on others, on file systems without `O_DIRECT`, and for anything that does not fit, the caller
//! writes through the page cache as ever. The parts of a write are copied into one aligned buffer of at most [`PIECE_BYTES`]
//! and handed to the device from there, one `pwrite` for each time it is full. Only the file that is written has a
//! second opening and a buffer: both go when the next segment begins. Both ways may be mixed in one file: the kernel keeps them
//! coherent as long as they do not overlap in time, and only the storage thread writes.

use std::{
    fs, io,
    io::IoSlice,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{AtFlags, OFlags, StatxFlags};

/// Positions and lengths of direct writes are multiples of it, in bytes: a sector.
const UNIT: u64 = 512;
/// Alignment in memory, in bytes, which suits every device.
const MEMORY_ALIGN: usize = 4096;
/// Bytes handed to the device at once, at most; the buffer grows up to it as groups need it.
const PIECE_BYTES: usize = 4 << 20;

/// A second, direct opening of a file.
#[derive(Debug)]
pub(super) struct DirectWriter {
    file: fs::File,
    buffer: AlignedBuffer,
    /// The file system took the flag and then no write: not tried again.
    refused: bool,
}

impl DirectWriter {
    /// Opens the file at `path` once more; `None` where the system says that direct writes of [`UNIT`] do not work,
    /// or where the name means another file than `file` by now.
    pub(super) fn open(path: &Path, file: &fs::File) -> Option<Self> {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN | StatxFlags::INO).ok()?;
        let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        let fits = told && (1..=UNIT).contains(&u64::from(stat.stx_dio_offset_align));
        if !fits || stat.stx_dio_mem_align as usize > MEMORY_ALIGN {
            return None;
        }
        let flags = OFlags::DIRECT.bits().cast_signed();
        let direct = fs::OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
        let same = rustix::fs::fstat(&direct).ok()?.st_ino == stat.stx_ino;
        same.then(|| Self { file: direct, buffer: AlignedBuffer::default(), refused: false })
    }

    /// Writes all parts, or answers `false`: they do not fit, or the file system refuses, and all of them are to be written
    /// another way. Some bytes may have been written even then.
    pub(super) fn write_all_at(&mut self, parts: &[IoSlice<'_>], at: u64) -> io::Result<bool> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let fits = at.is_multiple_of(UNIT) && (length as u64).is_multiple_of(UNIT);
        if !fits || self.refused {
            return Ok(false);
        }
        self.buffer.clear_for(length.min(PIECE_BYTES));
        let mut end = at;
        match self.write_pieces(parts, &mut end) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput && end == at => {
                self.refused = true;
                Ok(false)
            }
            written => written.map(|()| true),
        }
    }

    fn write_pieces(&mut self, parts: &[IoSlice<'_>], end: &mut u64) -> io::Result<()> {
        for part in parts {
            let mut rest: &[u8] = part;
            while !rest.is_empty() {
                rest = self.buffer.fill(rest);
                if self.buffer.is_full() {
                    self.flush(end)?;
                }
            }
        }
        self.flush(end)
    }

    fn flush(&mut self, end: &mut u64) -> io::Result<()> {
        let bytes = self.buffer.filled();
        // A short write may end within a unit, where a direct write cannot go on: an error, for the log to stop at.
        self.file.write_all_at(bytes, *end)?;
        *end += bytes.len() as u64;
        self.buffer.length = 0;
        Ok(())
    }
}

/// Bytes that lie as direct writes want them.
#[derive(Debug, Default)]
struct AlignedBuffer {
    memory: Vec<u8>,
    /// Where the aligned part of `memory` begins.
    begin: usize,
    capacity: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Empties it, with room for `bytes` at least.
    fn clear_for(&mut self, bytes: usize) {
        self.length = 0;
        if self.capacity < bytes {
            self.capacity = bytes.next_power_of_two().max(MEMORY_ALIGN);
            self.memory = vec![0; self.capacity + MEMORY_ALIGN];
            self.begin = self.memory.as_ptr().align_offset(MEMORY_ALIGN);
        }
    }

    /// Takes as much of `bytes` as there is room for; answers the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, rest) = bytes.split_at(bytes.len().min(self.capacity - self.length));
        let from = self.begin + self.length;
        if let Some(room) = self.memory.get_mut(from..from + now.len()) {
            room.copy_from_slice(now);
            self.length += now.len();
        }
        rest
    }

    fn is_full(&self) -> bool {
        self.length == self.capacity
    }

    fn filled(&self) -> &[u8] {
        self.memory.get(self.begin..self.begin + self.length).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A directory on the disk that the tests were built on: where temporary files go there may be no direct writes, and
    /// a test that is content with that shows nothing.
    pub(in crate::log) fn directory() -> tempfile::TempDir {
        let program = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = dir.path().join("probe");
        let probe = fs::File::create(&path).unwrap();
        assert!(
            DirectWriter::open(&path, &probe).is_some(),
            "{} takes no direct writes: set CARGO_TARGET_DIR to a directory on ext4 or XFS",
            dir.path().display()
        );
        fs::remove_file(&path).unwrap();
        dir
    }

    #[test]
    fn pieces_arrive_whole_and_in_order() {
        let dir = directory();
        let path = dir.path().join("a");
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut direct = DirectWriter::open(&path, &file).unwrap();
        let bytes: Vec<u8> = (0..PIECE_BYTES + 3 * 512).map(|n| ((n * 7) >> 3) as u8).collect();
        for cut in [1, 511, 512, 4097, PIECE_BYTES] {
            let parts = [IoSlice::new(&bytes[..cut]), IoSlice::new(&[]), IoSlice::new(&bytes[cut..])];
            assert!(direct.write_all_at(&parts, 512).unwrap());
            assert_eq!(fs::read(&path).unwrap()[512..], bytes);
            file.set_len(0).unwrap();
        }
        assert!(!direct.write_all_at(&[IoSlice::new(&bytes[..513])], 0).unwrap(), "a part of a unit");
        assert!(!direct.write_all_at(&[IoSlice::new(&bytes[..512])], 100).unwrap(), "beside the units");
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_name_that_means_another_file_is_not_written() {
        let dir = directory();
        let path = dir.path().join("a");
        let file = fs::File::create(&path).unwrap();
        fs::rename(&path, dir.path().join("b")).unwrap();
        fs::write(&path, "another").unwrap();
        assert!(DirectWriter::open(&path, &file).is_none());
    }
}
