//! Where a device's internal metadata lie, kept outside the device: the sizes that it had when they
//! were placed at its end. A device may grow at any time, even while no daemon runs, and its size
//! alone then tells nothing. More than one size stands here only while metadata move; the superblocks
//! say which holds (`store::relocation`). The file is only a hint where to look: what is found there
//! is believed by its checksum and its ids.
//!
//! Text, a line for each size in bytes, the newest last; lines that begin with `#` are comments.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Sizes that are kept at most: the present place and the next. A few more for moves that failed.
const MAX_SIZES: usize = 8;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places(PathBuf);

impl Places {
    /// Kept in this file, which need not exist.
    #[must_use]
    pub fn in_file(path: PathBuf) -> Self {
        Self(path)
    }

    /// The sizes, the oldest first; none where the file does not exist.
    ///
    /// # Errors
    /// What the system reports; `InvalidData` for what is not such a file.
    pub fn read(&self) -> io::Result<Vec<u64>> {
        let text = match std::fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let lines = text.lines().map(str::trim);
        let sizes: Result<Vec<u64>, _> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::parse)
            .collect();
        sizes.map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Replaces the sizes, durably.
    ///
    /// # Errors
    /// What the system reports; then the old ones or the new ones stand there.
    pub fn write(&self, sizes: &[u64]) -> io::Result<()> {
        let parent = self.0.parent().unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(parent)?;
        let new = self.0.with_extension("new");
        let mut text = String::from(
            "# Sizes in bytes that the device had when metadata were placed at its end.\n",
        );
        for size in &sizes[sizes.len().saturating_sub(MAX_SIZES)..] {
            text.push_str(&format!("{size}\n"));
        }
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &self.0)?;
        File::open(parent)?.sync_all()
    }

    /// One more size is possible from now on.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn add(&self, size: u64) -> io::Result<()> {
        let mut sizes = self.read()?;
        sizes.retain(|other| *other != size);
        sizes.push(size);
        self.write(&sizes)
    }

    /// No other size counts any more.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn only(&self, size: u64) -> io::Result<()> {
        if self.read()? == [size] {
            return Ok(());
        }
        self.write(&[size])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_and_the_text_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("places/r0-0");
        let places = Places::in_file(path.clone());
        assert_eq!(places.read().unwrap(), Vec::<u64>::new());
        places.only(1 << 30).unwrap();
        places.add(2 << 30).unwrap();
        places.add(1 << 30).unwrap();
        assert_eq!(places.read().unwrap(), vec![2 << 30, 1 << 30]);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "# Sizes in bytes that the device had when metadata were placed at its end.\n\
             2147483648\n1073741824\n"
        );
        places.only(2 << 30).unwrap();
        assert_eq!(places.read().unwrap(), vec![2 << 30]);
        std::fs::write(&path, "12x\n").unwrap();
        assert_eq!(
            places.read().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
