//! How internal metadata moves to the new end of a device that has grown. Only arithmetic: which
//! bytes are copied where, and which of several places holds.
//!
//! The order makes it safe to stop at any byte:
//! 1. the list of places names the new one as well, durably (see the driver's `places`);
//! 2. the new place is zeroed, activity log and bitmaps are copied there, durably (positions in
//!    metadata blocks are logical, so the bytes stay as they are); meanwhile nothing is written to
//!    the old ones;
//! 3. the superblock is written to the new place, copy A, then copy B, as a later write than those at
//!    the old place: from the first good copy on the new place holds;
//! 4. the list names only the new place, durably;
//! 5. the old place is data from here on: it is zeroed, and then the superblock takes the new size.

use vocabulary::ByteRange;

use super::block::{Block, BlockError, METADATA_BLOCK_BYTES};
use super::dump::ReadAt;
use super::layout::{Layout, MAX_PEER_SLOTS, MetaCopy, Placement};
use super::superblock::Superblock;

/// Bytes to copy: from where, to which offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// In the old metadata.
    pub from: ByteRange,
    /// In the new.
    pub to: u64,
}

/// What has to be copied so that the new place holds all that the old one does, but the superblock.
/// Both layouts are internal, with the same number of slots; the new one is clear of the old.
#[must_use]
pub fn copies(old: &Layout, new: &Layout) -> Vec<Copy> {
    let mut copies = Vec::new();
    for (from, to) in old.rings().into_iter().zip(new.rings()) {
        copies.push(Copy {
            from,
            to: to.offset,
        });
    }
    for slot in 0..old.slots().min(MAX_PEER_SLOTS) {
        for (first, from) in old.page_runs(slot, old.usable_data_bytes()) {
            if let Some(to) = new.page_offset(slot, first) {
                copies.push(Copy { from, to });
            }
        }
    }
    copies
}

/// The sizes that a device has, or had, of which one says where its metadata lies: the one whose
/// superblock was written last. `sizes` in the order of trust: a place of another disk than the first
/// good one's does not count. `None`: there is no superblock at any of them.
#[must_use]
pub fn find(source: &dyn ReadAt, sizes: &[u64]) -> Option<u64> {
    let mut best: Option<(u64, Option<Superblock>)> = None;
    for &device_bytes in sizes {
        // The superblock's place does not depend on the number of slots.
        let Ok(layout) = Layout::internal(device_bytes, 1) else {
            continue;
        };
        for copy in MetaCopy::BOTH {
            let mut block: Block = [0; METADATA_BLOCK_BYTES];
            if source
                .read_at(layout.superblock_offset(copy), &mut block)
                .is_err()
            {
                continue;
            }
            match Superblock::decode(&block, copy) {
                Ok(found) if found.placement == (Placement::Internal { device_bytes }) => {
                    let newer = match &best {
                        None => true,
                        Some((_, None)) => false,
                        Some((_, Some(other))) => {
                            found.disk == other.disk && found.version_count > other.version_count
                        }
                    };
                    if newer {
                        best = Some((device_bytes, Some(found)));
                    }
                }
                // Not for this program to judge: whoever attaches it says so.
                Err(BlockError::NewerVersion { .. }) => best = Some((device_bytes, None)),
                _ => {}
            }
        }
    }
    best.map(|(device_bytes, _)| device_bytes)
}

#[cfg(test)]
mod tests;
