//! `dump-metadata`: finds the metadata of a backing store and has it printed. Reads only.

use anyhow::{Context, bail};
use replicator::store::Placement;
use replicator::store::dump::{self, ReadAt};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a metadata file beside its store is called.
const SUFFIX: &str = "meta";

struct Source(File);

impl ReadAt for Source {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// The text for a store, or for a metadata file itself. `device_size`: where to look for metadata at
/// the end of a device that has grown since.
pub(crate) fn dump(path: &Path, device_size: Option<u64>) -> anyhow::Result<String> {
    let mut file = open(path)?;
    let beside = beside(path);
    let (source, placement) = if path.extension().is_some_and(|e| e == SUFFIX) {
        (file, Placement::External)
    } else if beside.exists() {
        (open(&beside)?, Placement::External)
    } else {
        // The end of a block device is its size; its file length is not.
        let device_bytes = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("can't find the size of {}", path.display()))?;
        let device_bytes = device_size.unwrap_or(device_bytes);
        (file, Placement::Internal { device_bytes })
    };
    if source.metadata().is_ok_and(|m| m.is_dir()) {
        bail!(
            "{} is a directory\n  to do: name a backing store or its metadata file",
            path.display()
        );
    }
    Ok(dump::dump(&Source(source), placement))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".");
    name.push(SUFFIX);
    name.into()
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| {
        format!(
            "can't read {}\n  to do: name a backing store or its metadata file",
            path.display()
        )
    })
}
