//! Whose data directory it is: the lock and the identity file.

use std::{io, io::IoSlice, path::Path, sync::Arc};

use seaway_federation_proto::ids::NodeName;

use super::{
    segment::{FORMAT, SegmentHeader},
    survey,
};
use crate::log::files::{Files, LockGuard};

/// Why a data directory cannot be used: one sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another opening in this one.
    #[error("the data directory {dir} is in use by another process; stop it, or give this node a directory of its own")]
    Locked {
        /// The directory.
        dir: String,
    },
    /// It belongs to someone else.
    #[error(
        "the data directory {dir} belongs to {found}, but this node is {expected}; give it its own directory, or correct the configuration"
    )]
    Foreign {
        /// The directory.
        dir: String,
        /// Whose it is: `FEDERATION, SITE/NODE`.
        found: String,
        /// Who asks.
        expected: String,
    },
    /// Written by a newer Seaway.
    #[error(
        "{file} has format {found}, and this Seaway reads up to {FORMAT}; run the version that wrote it, or a newer one"
    )]
    NewerFormat {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
    },
    /// There is a log, and nothing says whose: a new identity would make all of it another directory's.
    #[error(
        "the file identity is missing in {dir}, where segments are; put it back from a backup of the directory, or write it anew with these lines, and leave the segments where they are: {lines}"
    )]
    IdentityMissing {
        /// The directory.
        dir: String,
        /// What stood in it, as far as the segments tell.
        lines: String,
    },
    /// No room to open it in.
    #[error(
        "the disk of {dir} has only {free} bytes free, and opening needs some; make room there, then start again ({why})"
    )]
    NoRoom {
        /// The directory.
        dir: String,
        /// Bytes free.
        free: u64,
        /// What failed first.
        why: String,
    },
    /// A file is not what it should be, in a way that recovery must not decide.
    #[error("{file} cannot be understood: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// In words, with what to do.
        why: String,
    },
    /// There is no log in the directory (tools only).
    #[error("{dir} is not a Seaway data directory: it has no identity file")]
    NotThere {
        /// The directory.
        dir: String,
    },
    /// The system refused.
    #[error("{what} failed: {why}")]
    Io {
        /// Operation and file.
        what: String,
        /// The system's words.
        why: String,
    },
    /// RocksDB refused, and rebuilding the index did not help.
    #[error("the index in {dir} cannot be used: {why}")]
    Index {
        /// The directory.
        dir: String,
        /// RocksDB's words.
        why: String,
    },
}

/// Makes an [`OpenError::Io`] that names operation and file.
pub(crate) fn io_failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let what = format!("{what} {}", path.display());
    move |e| OpenError::Io { what, why: e.to_string() }
}

/// What the identity file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The federation.
    pub(crate) federation: String,
    /// The site's name.
    pub(crate) site: String,
    /// The node's label.
    pub(crate) node: String,
    /// Random, made with the directory.
    pub(crate) directory: [u8; 16],
}

impl Identity {
    fn owner(&self) -> String {
        format!("federation {}, node {}/{}", self.federation, self.site, self.node)
    }

    fn encode(&self) -> String {
        let id = self.directory.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!(
            "format = {FORMAT}\nfederation = {}\nsite = {}\nnode = {}\ndirectory = {id}\n",
            self.federation, self.site, self.node
        )
    }

    fn decode(text: &str, file: &str) -> Result<Self, OpenError> {
        let malformed = |what: &str| OpenError::Malformed {
            file: file.to_owned(),
            why: format!("it has no proper line '{what} = …'; restore it from a backup of this directory"),
        };
        let value = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let format = value("format").and_then(|text| text.parse().ok()).ok_or_else(|| malformed("format"))?;
        if format > FORMAT {
            return Err(OpenError::NewerFormat { file: file.to_owned(), found: format });
        }
        let text = |name: &str| value(name).map(str::to_owned).ok_or_else(|| malformed(name));
        let id = value("directory").and_then(parse_id).ok_or_else(|| malformed("directory"))?;
        Ok(Self { federation: text("federation")?, site: text("site")?, node: text("node")?, directory: id })
    }
}

fn parse_id(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 {
        return None;
    }
    let mut id = [0; 16];
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(id)
}

/// Takes the directory's lock.
pub(crate) fn lock(files: &Arc<dyn Files>, dir: &Path) -> Result<Box<dyn LockGuard>, OpenError> {
    let path = dir.join("lock");
    files.lock(&path).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { dir: dir.display().to_string() },
        _ => io_failed("locking", &path)(e),
    })
}

/// Reads the identity file, if there is one.
pub(crate) fn read(files: &Arc<dyn Files>, dir: &Path) -> Result<Option<Identity>, OpenError> {
    let path = dir.join("identity");
    let file = match files.open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_failed("opening", &path)(e)),
    };
    let len = file.len().map_err(io_failed("reading", &path))?.min(64 * 1024);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(io_failed("reading", &path))?;
    Identity::decode(&String::from_utf8_lossy(&bytes), &path.display().to_string()).map(Some)
}

/// A directory with segments has an identity: they are of no use under another.
fn refuse_to_orphan(files: &Arc<dyn Files>, dir: &Path) -> Result<(), OpenError> {
    let numbers = survey::list(files, dir)?;
    if numbers.is_empty() {
        return Ok(());
    }
    let header = numbers.iter().rev().find_map(|number| survey::open_segment(files, dir, *number, None).ok()?.header);
    let lines = match header {
        Some(of) => {
            let SegmentHeader { federation, site, node, directory, .. } = of;
            Identity { federation, site, node, directory }.encode().trim_end().replace('\n', ", ")
        }
        None => "the headers of the segments, which would tell, are damaged".to_owned(),
    };
    Err(OpenError::IdentityMissing { dir: dir.display().to_string(), lines })
}

/// Checks that the directory is this node's; a new one becomes so, durably.
pub(crate) fn claim(
    files: &Arc<dyn Files>,
    dir: &Path,
    federation: &str,
    name: &NodeName,
    directory: [u8; 16],
) -> Result<Identity, OpenError> {
    let expected = Identity {
        federation: federation.to_owned(),
        site: name.site.to_string(),
        node: name.node.to_string(),
        directory,
    };
    if let Some(found) = read(files, dir)? {
        if found.owner() != expected.owner() {
            return Err(OpenError::Foreign {
                dir: dir.display().to_string(),
                found: found.owner(),
                expected: expected.owner(),
            });
        }
        return Ok(found);
    }
    refuse_to_orphan(files, dir)?;
    let path = dir.join("identity");
    let temporary = dir.join("identity.new");
    match files.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_failed("removing", &temporary)(e)),
        _ => {}
    }
    let file = files.create(&temporary).map_err(io_failed("making", &temporary))?;
    file.write_all_at(&mut [IoSlice::new(expected.encode().as_bytes())], 0)
        .map_err(io_failed("writing", &temporary))?;
    file.sync_data().map_err(io_failed("syncing", &temporary))?;
    files.rename(&temporary, &path).map_err(io_failed("renaming", &temporary))?;
    files.sync_dir(dir).map_err(io_failed("syncing", dir))?;
    Ok(expected)
}
