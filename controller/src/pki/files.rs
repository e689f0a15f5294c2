//! The directory `tls` in a node's data directory.
//!
//! | file | what | mode |
//! |---|---|---|
//! | `ca.crt` | the authority's certificate | 0644 |
//! | `node.crt`, `node.key` | this node's certificate and key | 0644, 0600 |
//! | `beacons.key` | the key of the seals on beacons, the same on every node | 0600 |
//! | `ca.key` | the authority's key: on the node that ran `init` | 0600 |
//! | `tokens.json` | tokens that were handed out, their secrets as hashes: there too | 0600 |
//!
//! A file is there whole or not at all, and stays: it is written beside its place, brought to
//! stable storage, renamed, and the directory after it.

use super::PkiError;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a node's keys lie, of its data directory.
#[must_use]
pub fn directory(data_directory: &Path) -> PathBuf {
    data_directory.join("tls")
}

/// The authority's certificate.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The authority's key.
pub const CA_KEY: &str = "ca.key";
/// The node's certificate. It is written last: where it is, all of the node's files are.
pub const NODE_CERTIFICATE: &str = "node.crt";
/// The node's key.
pub const NODE_KEY: &str = "node.key";
/// The key of the seals on beacons.
pub const BEACONS_KEY: &str = "beacons.key";
/// The tokens.
pub const TOKENS: &str = "tokens.json";

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// The daemon's user.
    Private,
}

/// Makes the directory.
///
/// # Errors
/// [`PkiError::Io`].
pub fn make_directory(directory: &Path) -> Result<(), PkiError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error(directory, source))
        }
        _ => sync_parent(directory),
    }
}

/// Puts a file in its place, over an older one.
///
/// # Errors
/// [`PkiError::Io`]; then the older one is there as it was, or the new one.
pub fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), PkiError> {
    let beside = path.with_extension("new");
    // One that an interrupted attempt left.
    match std::fs::remove_file(&beside) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(&beside, source));
        }
        _ => {}
    }
    let mode = match access {
        Access::Public => 0o644,
        Access::Private => 0o600,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(|source| io_error(&beside, source))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|source| io_error(&beside, source))?;
    std::fs::rename(&beside, path).map_err(|source| io_error(path, source))?;
    sync_parent(path)
}

/// Reads a file; `None` where there is none.
///
/// # Errors
/// [`PkiError::Io`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, PkiError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path, source)),
    }
}

fn sync_parent(path: &Path) -> Result<(), PkiError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| io_error(parent, source))
}

pub(super) fn io_error(path: &Path, source: io::Error) -> PkiError {
    PkiError::Io {
        path: path.into(),
        source,
    }
}

/// Says which file a problem is with.
pub(super) fn damaged(path: &Path) -> impl FnOnce(PkiError) -> PkiError {
    let path = path.to_owned();
    move |problem| PkiError::Damaged {
        path,
        problem: Box::new(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_readable_by_their_owner_only_and_a_rest_of_an_interrupted_write_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let tls = directory(dir.path());
        make_directory(&tls).unwrap();
        make_directory(&tls).unwrap();
        let path = tls.join(NODE_KEY);
        std::fs::write(path.with_extension("new"), "half").unwrap();
        for (access, mode) in [(Access::Private, 0o600), (Access::Public, 0o644)] {
            write(&path, b"key", access).unwrap();
            let found = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
        assert_eq!(read(&path).unwrap().unwrap(), b"key");
        assert!(read(&tls.join(CA_KEY)).unwrap().is_none());
    }
}
