//! A voter's promise on disk (term, vote, document): one file with two slots. A change is written to the
//! first slot and brought to stable storage, then to the second, and only then answered (RULES 11), so
//! that at any moment one slot is whole. Where both are bad the voter's identity is lost, and it says
//! so instead of guessing.

mod slot;

use crate::core::Document;
use crate::core::consensus;
use slot::{Chosen, SLOT_BYTES, choose, encode};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vocabulary::ClusterId;

pub use slot::MAX_DOCUMENT_BYTES;

/// What a voter keeps.
pub type Promise = consensus::Promise<Document>;

/// The voter's file. The caller holds the lock of the data directory, so that there
/// is one at a time.
#[derive(Debug)]
pub struct PromiseStore {
    file: File,
    path: PathBuf,
    sequence: u64,
}

/// What can go wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is one already.
    #[error("{path} exists already: a cluster was created here before; it is not overwritten")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is none.
    #[error(
        "{path} does not exist: no cluster was created here; run `lockstep init` once on this node (its first one)"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Both copies are damaged.
    #[error(
        "{path}: both copies of the configuration are damaged ({first}; {second}); what this node has promised is lost and it must not vote: put back the file, or create a new cluster"
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// What is wrong with the first copy.
        first: SlotError,
        /// What is wrong with the second copy.
        second: SlotError,
    },
    /// It belongs to another cluster.
    #[error("{path} belongs to cluster {found}, the configuration file says {expected}")]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        expected: ClusterId,
    },
    /// The document has grown too large.
    #[error("the configuration would be {bytes} bytes, at most {MAX_DOCUMENT_BYTES} are kept")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
}

/// Why a copy can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// It is not there or was never written.
    #[error("cut short or never written")]
    Blank,
    /// A checksum does not fit.
    #[error("wrong checksum")]
    Checksum,
    /// A newer program wrote it.
    #[error("written by a newer version of lockstep (format {0})")]
    Newer(u32),
    /// The checksum fits and the contents don't.
    #[error("not a configuration")]
    Contents,
}

impl PromiseStore {
    /// Creates the file for a new cluster.
    ///
    /// # Errors
    /// When there is one already, or it can't be written.
    pub fn create(path: &Path, promise: &Promise) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Exists { path: path.into() },
                _ => io_error(path, source),
            })?;
        let mut store = Self {
            file,
            path: path.into(),
            sequence: 0,
        };
        store.save(promise)?;
        // The name has to survive a power loss as well as the contents.
        if let Some(directory) = path.parent() {
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|source| io_error(path, source))?;
        }
        Ok(store)
    }

    /// Opens the file and makes both copies equal to the newer one before anything is acted on.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path, cluster: ClusterId) -> Result<(Self, Promise), StoreError> {
        let file = open_file(path, OpenOptions::new().read(true).write(true))?;
        let chosen = read_both(&file, path)?;
        if chosen.promise.entry.content.cluster != cluster {
            return Err(StoreError::OtherCluster {
                path: path.into(),
                found: chosen.promise.entry.content.cluster,
                expected: cluster,
            });
        }
        let mut store = Self {
            file,
            path: path.into(),
            sequence: chosen.sequence,
        };
        if !chosen.both_equal {
            tracing::warn!(
                path = %path.display(),
                "one copy of the configuration was damaged or behind; it is written anew"
            );
            store.save(&chosen.promise)?;
        }
        Ok((store, chosen.promise))
    }

    /// What the file holds, of whatever cluster; nothing is changed.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn read(path: &Path) -> Result<Promise, StoreError> {
        let file = open_file(path, OpenOptions::new().read(true))?;
        Ok(read_both(&file, path)?.promise)
    }

    /// Writes both copies, one after the other. After an error the caller must not act on the promise,
    /// nor on the one before it, until a later call succeeds.
    ///
    /// # Errors
    /// When it is too large or the file can't be written.
    pub fn save(&mut self, promise: &Promise) -> Result<(), StoreError> {
        let sequence = self.sequence + 1;
        let bytes = encode(sequence, promise)?;
        for slot in 0..2 {
            self.file
                .write_all_at(&bytes, slot * SLOT_BYTES)
                .and_then(|()| self.file.sync_all())
                .map_err(|source| io_error(&self.path, source))?;
        }
        self.sequence = sequence;
        Ok(())
    }
}

fn open_file(path: &Path, options: &OpenOptions) -> Result<File, StoreError> {
    options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StoreError::Missing { path: path.into() },
        _ => io_error(path, source),
    })
}

fn read_both(file: &File, path: &Path) -> Result<Chosen, StoreError> {
    let first = read_slot(file, 0).map_err(|source| io_error(path, source))?;
    let second = read_slot(file, 1).map_err(|source| io_error(path, source))?;
    choose(&first, &second).map_err(|(first, second)| StoreError::Lost {
        path: path.into(),
        first,
        second,
    })
}

fn read_slot(file: &File, slot: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(SLOT_BYTES).unwrap_or(usize::MAX)];
    let mut filled = 0;
    while filled < bytes.len() {
        let at = slot * SLOT_BYTES + u64::try_from(filled).unwrap_or(u64::MAX);
        match file.read_at(&mut bytes[filled..], at)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests;
