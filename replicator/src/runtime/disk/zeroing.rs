//! What a store zeroes without writing zeroes: found out when it is opened, without changing a byte of it,
//! and corrected by its first refusal.

use super::{Disk, Opened, file_bytes, punch, sysfs_queue};
use crate::core::api::FastZeroes;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use vocabulary::{BLOCK_BYTES, ByteRange};

#[derive(Debug)]
pub(super) struct Zeroing {
    holes: AtomicBool,
    allocated: AtomicBool,
}

impl Zeroing {
    /// What can't be found out counts as slow.
    pub(super) fn probe(opened: &Opened, path: &Path) -> Self {
        let (holes, allocated) = if opened.is_device {
            // With allocation kept the kernel writes the zeroes itself where the device can't, and does
            // not tell: that it is fast is never promised.
            let most = sysfs_queue(&opened.file, "write_zeroes_max_bytes");
            let most: Option<u64> = most.and_then(|text| text.parse().ok());
            (most.is_some_and(|bytes| bytes > 0), false)
        } else {
            (punches(&opened.file), keeps_allocated(path))
        };
        Self {
            holes: AtomicBool::new(holes),
            allocated: AtomicBool::new(allocated),
        }
    }

    /// The store has refused to; true where nothing else was known of it. It is not asked again.
    pub(super) fn refused(&self, hole: bool) -> bool {
        let kind = if hole { &self.holes } else { &self.allocated };
        kind.swap(false, Ordering::Relaxed)
    }
}

impl Disk {
    /// What the store zeroes without writing zeroes, as far as is known.
    #[must_use]
    pub fn fast_zeroes(&self) -> FastZeroes {
        FastZeroes {
            holes: self.zeroing.holes.load(Ordering::Relaxed),
            allocated: self.zeroing.allocated.load(Ordering::Relaxed),
        }
    }

    /// As if a probe had shown so.
    #[cfg(test)]
    pub(crate) fn assume(&self, fast: FastZeroes) {
        self.zeroing.holes.store(fast.holes, Ordering::Relaxed);
        self.zeroing
            .allocated
            .store(fast.allocated, Ordering::Relaxed);
    }
}

/// A hole beyond the end changes nothing.
fn punches(file: &File) -> bool {
    file_bytes(file.as_fd(), false).is_ok_and(|bytes| {
        let beyond = bytes.checked_next_multiple_of(BLOCK_BYTES);
        let range = beyond.and_then(|offset| ByteRange::new(offset, BLOCK_BYTES));
        range.is_some_and(|range| punch(file.as_fd(), range).is_ok())
    })
}

/// Zeroing a range allocates it, so this is tried on a nameless file of the same file system.
fn keeps_allocated(path: &Path) -> bool {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let nameless = OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(parent.unwrap_or(Path::new(".")));
    let mode = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nameless.is_ok_and(|file| fallocate(&file, mode, 0, 4096).is_ok())
}
