//! Where the metadata of a volume lies. Only arithmetic: what is written there is the business of
//! the other files of this module.
//!
//! **External** metadata is a sparse file of its own beside the backing store. Nothing in it ever
//! moves: a larger volume and more peers only use places further back.
//!
//! | offset        | region                                                                     |
//! |--------------:|----------------------------------------------------------------------------|
//! |             0 | superblock, copy A                                                         |
//! |        64 KiB | superblock, copy B                                                         |
//! |       128 KiB | activity log ring, copy A (room for [`MAX_RING_BLOCKS`])                   |
//! |         1 MiB | activity log ring, copy B                                                  |
//! |         2 MiB | bitmap pages: groups of 64 pages, a group for each of the 31 slots in turn |
//!
//! **Internal** metadata is the end of the backing device; everything before it is data. It is
//! found from the size that the device had when it was placed there (`relocation.rs`: a device may
//! have grown since, and then the metadata moves when the volume needs the room):
//!
//! | offset from the end | region                                                                |
//! |--------------------:|-----------------------------------------------------------------------|
//! |     2 MiB + bitmaps | bitmap pages: slot 0 whole, then slot 1, ... (slots fixed at creation)|
//! |               2 MiB | activity log ring, copy A                                             |
//! |               1 MiB | activity log ring, copy B                                             |
//! |              68 KiB | superblock, copy B                                                    |
//! |               4 KiB | superblock, copy A: the device's last block                           |

use thiserror::Error;
use vocabulary::{BLOCK_BYTES, ByteRange, EXTENT_BYTES};

use super::activity_log::MAX_RING_BLOCKS;
use super::bitmap::PAGE_COVERS_BYTES;
use super::block::BLOCK;

/// Largest volume: 1 PiB. Extent and page numbers then fit in 32 bits with room to spare, and a
/// peer's bitmap (34 GiB) and the sparse metadata file (1 TiB) stay within what file systems hold.
pub const MAX_DATA_BYTES: u64 = 1 << 50;

/// One more than the greatest extent number of the largest volume.
pub const MAX_EXTENTS: u32 = 1 << 28;

const _: () = assert!(MAX_DATA_BYTES / EXTENT_BYTES == MAX_EXTENTS as u64);

/// Most peers that a volume can have a bitmap for: every other node of a cluster of 32.
pub const MAX_PEER_SLOTS: u8 = 31;

/// Peer slots that internal metadata reserves unless told otherwise: eight replicas. 30 MiB per TiB
/// and slot.
pub const DEFAULT_PEER_SLOTS: u8 = 7;

const HEAD_BYTES: u64 = 2 << 20;
const COPY_DISTANCE_BYTES: u64 = 64 << 10;
const RING_COPY_DISTANCE_BYTES: u64 = 1 << 20;
const EXTERNAL_RING_OFFSET: u64 = 128 << 10;
const GROUP_PAGES: u32 = 64;

const _: () = assert!(
    EXTERNAL_RING_OFFSET + MAX_RING_BLOCKS as u64 * BLOCK <= RING_COPY_DISTANCE_BYTES
        && RING_COPY_DISTANCE_BYTES + MAX_RING_BLOCKS as u64 * BLOCK
            <= HEAD_BYTES - COPY_DISTANCE_BYTES - BLOCK
);

/// One of the two copies of superblock and activity log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaCopy {
    /// The copy that is written first.
    A,
    /// The copy that is written once A is durable.
    B,
}

impl MetaCopy {
    /// Both, in the order in which they are written.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// 0 for A, 1 for B.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// Why metadata can't be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The volume is larger than [`MAX_DATA_BYTES`].
    #[error("{bytes} bytes are more than the largest volume, {MAX_DATA_BYTES} bytes (1 PiB)")]
    TooLarge {
        /// The size asked for.
        bytes: u64,
    },
    /// The device has no room for metadata and at least one block of data.
    #[error(
        "a device of {device_bytes} bytes is too small for its metadata: it needs {needed_bytes}"
    )]
    TooSmall {
        /// The device's size.
        device_bytes: u64,
        /// The smallest size that will do.
        needed_bytes: u64,
    },
    /// There may be 1 to [`MAX_PEER_SLOTS`] slots.
    #[error("{slots} peer slots: there may be 1 to {MAX_PEER_SLOTS}")]
    Slots {
        /// The number asked for.
        slots: u8,
    },
    /// The new metadata would overwrite the old before it is complete, or the device shrank.
    #[error(
        "growing from {old_bytes} to {new_bytes} bytes: the metadata's new place overlaps the old \
         one; grow the device to {needed_bytes} bytes or more"
    )]
    Overlap {
        /// The device's old size.
        old_bytes: u64,
        /// Its new size.
        new_bytes: u64,
        /// The smallest new size that will do.
        needed_bytes: u64,
    },
    /// External metadata does not move.
    #[error("external metadata stays where it is when a volume grows")]
    NotInternal,
}

/// Where a volume's metadata is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In a file of its own.
    External,
    /// At the end of the backing device.
    Internal {
        /// The device's size.
        device_bytes: u64,
    },
}

/// Where each metadata block of a volume lies. Offsets are bytes in the metadata file (external) or
/// in the backing device (internal); all are multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    placement: Placement,
    slots: u8,
    /// Pages of each slot that there is room for.
    pages: u32,
    usable_bytes: u64,
}

/// Pages that the bitmap of a volume of this size has.
#[must_use]
pub fn pages_for(data_bytes: u64) -> u32 {
    u32::try_from(data_bytes.div_ceil(PAGE_COVERS_BYTES)).unwrap_or(u32::MAX)
}

/// Extents that a volume of this size has; the last one may be partial.
#[must_use]
pub fn extents_for(data_bytes: u64) -> u32 {
    u32::try_from(data_bytes.div_ceil(EXTENT_BYTES)).unwrap_or(u32::MAX)
}

fn bitmap_bytes(pages: u32, slots: u8) -> u64 {
    u64::from(pages) * u64::from(slots) * BLOCK
}

impl Layout {
    /// The layout of a metadata file.
    #[must_use]
    pub fn external() -> Self {
        Self {
            placement: Placement::External,
            slots: MAX_PEER_SLOTS,
            pages: pages_for(MAX_DATA_BYTES),
            usable_bytes: MAX_DATA_BYTES,
        }
    }

    /// The layout of a device with its metadata at its end. Bytes beyond the last whole 4 KiB of
    /// the device are not used.
    ///
    /// # Errors
    /// [`LayoutError::Slots`], [`LayoutError::TooSmall`], [`LayoutError::TooLarge`].
    pub fn internal(device_bytes: u64, slots: u8) -> Result<Self, LayoutError> {
        let needed_bytes = Self::device_bytes_for(BLOCK_BYTES, slots)?;
        if device_bytes < needed_bytes {
            return Err(LayoutError::TooSmall {
                device_bytes,
                needed_bytes,
            });
        }
        let room = device_bytes - device_bytes % BLOCK - HEAD_BYTES;
        // The fewest pages p with room <= p * (what a page covers + the page itself in each slot):
        // they cover whatever of the room they leave.
        let pages = room.div_ceil(PAGE_COVERS_BYTES + u64::from(slots) * BLOCK);
        let pages = u32::try_from(pages).map_err(|_| LayoutError::TooLarge {
            bytes: device_bytes,
        })?;
        let usable_bytes = room - bitmap_bytes(pages, slots);
        if usable_bytes > MAX_DATA_BYTES {
            return Err(LayoutError::TooLarge {
                bytes: usable_bytes,
            });
        }
        Ok(Self {
            placement: Placement::Internal { device_bytes },
            slots,
            pages,
            usable_bytes,
        })
    }

    /// The size of the smallest device that holds this much data and its metadata.
    ///
    /// # Errors
    /// [`LayoutError::Slots`], [`LayoutError::TooLarge`].
    pub fn device_bytes_for(data_bytes: u64, slots: u8) -> Result<u64, LayoutError> {
        if slots == 0 || slots > MAX_PEER_SLOTS {
            return Err(LayoutError::Slots { slots });
        }
        if data_bytes > MAX_DATA_BYTES {
            return Err(LayoutError::TooLarge { bytes: data_bytes });
        }
        Ok(data_bytes.next_multiple_of(BLOCK)
            + bitmap_bytes(pages_for(data_bytes), slots)
            + HEAD_BYTES)
    }

    /// The layout after the device has grown to `new_device_bytes`: the metadata at its new end,
    /// clear of the old one. How it gets there: `relocation.rs`.
    ///
    /// # Errors
    /// As [`Self::internal`]; [`LayoutError::Overlap`] where the device grew by less than its
    /// metadata's size; [`LayoutError::NotInternal`].
    pub fn grown(&self, new_device_bytes: u64) -> Result<Self, LayoutError> {
        let Placement::Internal {
            device_bytes: old_bytes,
        } = self.placement
        else {
            return Err(LayoutError::NotInternal);
        };
        let new = Self::internal(new_device_bytes, self.slots)?;
        let old_end = old_bytes - old_bytes % BLOCK;
        if new.usable_bytes < old_end {
            return Err(LayoutError::Overlap {
                old_bytes,
                new_bytes: new_device_bytes,
                needed_bytes: Self::device_bytes_for(old_end, self.slots)?,
            });
        }
        Ok(new)
    }

    /// File or end of the device.
    #[must_use]
    pub const fn placement(&self) -> Placement {
        self.placement
    }

    /// Peer slots that there is room for.
    #[must_use]
    pub const fn slots(&self) -> u8 {
        self.slots
    }

    /// Bytes of data that there is room for: what the device has before the metadata, or the largest
    /// volume for an external layout.
    #[must_use]
    pub const fn usable_data_bytes(&self) -> u64 {
        self.usable_bytes
    }

    /// Bytes that the metadata of this much data takes: the length of the (sparse) file when it has
    /// pages of every slot, or all between data and the end of the device.
    #[must_use]
    pub fn metadata_bytes(&self, data_bytes: u64) -> u64 {
        match self.placement {
            Placement::External => {
                let groups = u64::from(pages_for(data_bytes).div_ceil(GROUP_PAGES));
                HEAD_BYTES + groups * u64::from(MAX_PEER_SLOTS) * u64::from(GROUP_PAGES) * BLOCK
            }
            Placement::Internal { .. } => HEAD_BYTES + bitmap_bytes(self.pages, self.slots),
        }
    }

    /// All of the metadata of an internal layout, bitmaps first. Empty for an external one.
    #[must_use]
    pub fn area(&self) -> ByteRange {
        match self.placement {
            Placement::External => ByteRange::between(0, 0),
            Placement::Internal { .. } => {
                ByteRange::between(self.usable_bytes, self.tail() + HEAD_BYTES)
            }
        }
    }

    /// Where both copies of the activity log's ring lie, as a whole.
    pub(super) fn rings(&self) -> [ByteRange; 2] {
        self.ring_offsets(0)
            .map(|offset| ByteRange::between(offset, offset + u64::from(MAX_RING_BLOCKS) * BLOCK))
    }

    /// Start of the fixed part of internal metadata: 2 MiB before the end.
    fn tail(&self) -> u64 {
        self.usable_bytes + bitmap_bytes(self.pages, self.slots)
    }

    /// Where a copy of the superblock lies.
    #[must_use]
    pub fn superblock_offset(&self, copy: MetaCopy) -> u64 {
        match self.placement {
            Placement::External => copy.number() * COPY_DISTANCE_BYTES,
            Placement::Internal { .. } => {
                self.tail() + HEAD_BYTES - BLOCK - copy.number() * COPY_DISTANCE_BYTES
            }
        }
    }

    /// Where both copies of a block of the activity log's ring lie.
    ///
    /// # Panics
    /// Where there is no such block: `index` is not below [`MAX_RING_BLOCKS`].
    #[must_use]
    pub fn ring_offsets(&self, index: u32) -> [u64; 2] {
        assert!(index < MAX_RING_BLOCKS);
        let block = u64::from(index) * BLOCK;
        match self.placement {
            Placement::External => [
                EXTERNAL_RING_OFFSET + block,
                RING_COPY_DISTANCE_BYTES + block,
            ],
            Placement::Internal { .. } => [
                self.tail() + block,
                self.tail() + RING_COPY_DISTANCE_BYTES + block,
            ],
        }
    }

    /// Where a page of a slot's bitmap lies; `None` where the layout has no such slot or page.
    #[must_use]
    pub fn page_offset(&self, slot: u8, page: u32) -> Option<u64> {
        if slot >= self.slots || page >= self.pages {
            return None;
        }
        Some(match self.placement {
            Placement::External => {
                let group = u64::from(page / GROUP_PAGES);
                let run = group * u64::from(MAX_PEER_SLOTS) + u64::from(slot);
                let index = run * u64::from(GROUP_PAGES) + u64::from(page % GROUP_PAGES);
                HEAD_BYTES + index * BLOCK
            }
            Placement::Internal { .. } => {
                let index = u64::from(slot) * u64::from(self.pages) + u64::from(page);
                self.usable_bytes + index * BLOCK
            }
        })
    }

    /// The page offsets of a slot as contiguous runs, `(first page, bytes)`: what to read when the
    /// bitmap is loaded, and what must read as zeroes before the slot is bound with
    /// [`super::Blank::Clear`]. Empty for a slot that the layout has no room for.
    pub fn page_runs(&self, slot: u8, data_bytes: u64) -> impl Iterator<Item = (u32, ByteRange)> {
        let layout = *self;
        let pages = pages_for(data_bytes).min(layout.pages);
        let step = match layout.placement {
            Placement::External => GROUP_PAGES,
            Placement::Internal { .. } => pages.max(1),
        };
        (0..pages.div_ceil(step)).filter_map(move |run| {
            let first = run * step;
            let offset = layout.page_offset(slot, first)?;
            let count = step.min(pages - first);
            Some((
                first,
                ByteRange::between(offset, offset + u64::from(count) * BLOCK),
            ))
        })
    }
}

#[cfg(test)]
mod tests;
