//! The data directory's lock: one daemon at a time. The lock file holds the daemon's pid, so that
//! the refusal can name it.

use crate::taken::once_free;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The file with the pid.
const FILE: &str = "pid";

/// Held while the daemon lives; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: Flock<File>,
}

/// Why the directory can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error(
        "the data directory {} is in use by another lockstep daemon (pid {pid})\n  to do: stop that one first, or give this node a data directory of its own",
        directory.display()
    )]
    InUse { directory: PathBuf, pid: String },
    #[error("can't use the data directory {}: {source}", directory.display())]
    Io {
        directory: PathBuf,
        source: std::io::Error,
    },
}

impl DirectoryLock {
    /// Takes the lock and writes the pid, or names who has it.
    pub(crate) fn take(directory: &Path) -> Result<Self, LockError> {
        once_free(
            || Self::try_take(directory),
            |error| matches!(error, LockError::InUse { .. }),
        )
    }

    fn try_take(directory: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io {
            directory: directory.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(FILE))
            .map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).map_err(io)?;
                writeln!(file, "{}", std::process::id()).map_err(io)?;
                Ok(Self { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(io)?;
                Err(LockError::InUse {
                    directory: directory.to_owned(),
                    pid: pid.trim().to_owned(),
                })
            }
            Err((_, error)) => Err(io(error.into())),
        }
    }

    /// The pid of the daemon that holds the directory now, if one does.
    pub(crate) fn holder(directory: &Path) -> Option<i32> {
        let mut file = File::open(directory.join(FILE)).ok()?;
        let mut pid = String::new();
        file.read_to_string(&mut pid).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => pid.trim().parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(dir.path()).unwrap();
        let error = DirectoryLock::take(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        assert!(error.contains(&dir.path().display().to_string()));
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(DirectoryLock::holder(dir.path()), Some(me));
        drop(lock);
        assert_eq!(DirectoryLock::holder(dir.path()), None);
        DirectoryLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = DirectoryLock::take(Path::new("/nonexistent/x")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x"));
    }
}
