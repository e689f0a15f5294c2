//! What every metadata block has in common: one 4 KiB block with a header that says what it is,
//! whose it is, where it belongs and whether it is whole. This file only seals and opens blocks; it
//! does not know what is in their bodies.
//!
//! Header of every metadata block, little endian. Its layout is the same in every version of every
//! kind of block, so that a newer version is recognised as such:
//!
//! | offset | bytes | field    | meaning                                                          |
//! |-------:|------:|----------|------------------------------------------------------------------|
//! |      0 |     8 | magic    | `LKSTEPSB`, `LKSTEPAL` or `LKSTEPBM`                             |
//! |      8 |     4 | checksum | CRC-32C of the 4096 bytes, with these four as zeroes             |
//! |     12 |     2 | version  | version of the body's format, from 1                             |
//! |     14 |     2 | reserved | zero                                                             |
//! |     16 |     8 | disk     | [`DiskTag`] of the disk that the block belongs to                |
//! |     24 |     8 | position | where it belongs: superblock copy, ring index, or slot and page  |
//!
//! Positions are logical, not byte offsets: internal metadata moves when a volume grows.

use std::fmt;

use thiserror::Error;
use vocabulary::DiskId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a metadata block: what is written at once, at offsets that are multiples of it. The
/// largest unit that disks in use today are addressed in.
pub const METADATA_BLOCK_BYTES: usize = 4096;

/// [`METADATA_BLOCK_BYTES`] for arithmetic with offsets.
pub(super) const BLOCK: u64 = METADATA_BLOCK_BYTES as u64;

/// A metadata block as it is on disk.
pub type Block = [u8; METADATA_BLOCK_BYTES];

/// Bytes of the header of every metadata block.
pub(super) const HEADER_BYTES: usize = 32;

const CHECKSUM_AT: usize = 8;
const CHECKSUM_END: usize = 12;

/// A 64-bit hash (XXH3) of a [`DiskId`]: marks each metadata block with the disk that it belongs
/// to. It only has to tell blocks apart that strayed here by accident; identity is decided by the
/// superblock's whole [`DiskId`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskTag(pub u64);

impl DiskTag {
    /// The tag of a disk.
    #[must_use]
    pub fn of(disk: DiskId) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(&disk.0.to_le_bytes()))
    }
}

impl fmt::Debug for DiskTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskTag({:016x})", self.0)
    }
}

impl fmt::Display for DiskTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The kinds of metadata blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// A copy of the superblock.
    Superblock,
    /// A block of the activity log's ring.
    ActivityLog,
    /// A page of a peer's bitmap.
    Bitmap,
}

impl BlockKind {
    /// The first eight bytes of a block of this kind.
    #[must_use]
    pub const fn magic(self) -> [u8; 8] {
        match self {
            Self::Superblock => *b"LKSTEPSB",
            Self::ActivityLog => *b"LKSTEPAL",
            Self::Bitmap => *b"LKSTEPBM",
        }
    }

    /// The newest version of this kind's format that this program knows.
    #[must_use]
    pub const fn version(self) -> u16 {
        match self {
            Self::Superblock | Self::ActivityLog | Self::Bitmap => 1,
        }
    }
}

/// Why a metadata block is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    /// Only zeroes: never written.
    #[error("empty: the block holds only zeroes")]
    Empty,
    /// Something else's bytes, or another kind of metadata block.
    #[error("foreign: the block begins with {magic:02x?}, not with a magic number of Lockstep's")]
    Foreign {
        /// The first eight bytes.
        magic: [u8; 8],
    },
    /// Torn or rotten.
    #[error("bad checksum: the block says {stored:08x}, its bytes have {computed:08x}")]
    BadChecksum {
        /// The checksum in the block.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// Written by a newer program: to be refused, never to be overwritten.
    #[error("format version {found} is newer than {known}, the newest that this program knows")]
    NewerVersion {
        /// The block's version.
        found: u16,
        /// The newest version known here.
        known: u16,
    },
    /// Whole, but of another disk.
    #[error("the block belongs to disk tag {found}, not to {expected}")]
    OtherDisk {
        /// The tag in the block.
        found: DiskTag,
        /// The tag of the disk that it was read from.
        expected: DiskTag,
    },
    /// Whole, but of an earlier binding of its slot.
    #[error("the page belongs to binding {found} of its slot, not to {expected}")]
    OtherBinding {
        /// The binding in the page.
        found: u64,
        /// The slot's binding.
        expected: u64,
    },
    /// Whole, but of another place of this disk.
    #[error("misplaced: the block belongs to position {found:#x}, not to {expected:#x}")]
    Misplaced {
        /// The position in the block.
        found: u64,
        /// The position that it was read from.
        expected: u64,
    },
    /// Whole, but a field has a value that no program writes.
    #[error("malformed: the field `{field}` has an impossible value")]
    Malformed {
        /// The field's name in the layout table.
        field: &'static str,
    },
}

/// The header of every metadata block: see the table at the top of this file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 8],
    checksum: U32,
    version: U16,
    reserved: U16,
    disk: U64,
    position: U64,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

impl Header {
    /// A header whose checksum is not there yet.
    pub(super) fn new(kind: BlockKind, disk: DiskTag, position: u64) -> Self {
        Self {
            magic: kind.magic(),
            checksum: U32::ZERO,
            version: U16::new(kind.version()),
            reserved: U16::ZERO,
            disk: U64::new(disk.0),
            position: U64::new(position),
        }
    }

    /// The disk that the block belongs to.
    pub(super) fn disk(&self) -> DiskTag {
        DiskTag(self.disk.get())
    }

    /// Refuses a block of another disk or position.
    pub(super) fn belongs(&self, disk: DiskTag, position: u64) -> Result<(), BlockError> {
        if self.disk() != disk {
            return Err(BlockError::OtherDisk {
                found: self.disk(),
                expected: disk,
            });
        }
        if self.position.get() != position {
            return Err(BlockError::Misplaced {
                found: self.position.get(),
                expected: position,
            });
        }
        Ok(())
    }
}

fn checksum(block: &Block) -> u32 {
    let before = crc32c::crc32c(&block[..CHECKSUM_AT]);
    let zeroed = crc32c::crc32c_append(before, &[0; CHECKSUM_END - CHECKSUM_AT]);
    crc32c::crc32c_append(zeroed, &block[CHECKSUM_END..])
}

/// The last step of encoding a block: puts the checksum in.
pub(super) fn seal(block: &mut Block) {
    let sum = checksum(block).to_le_bytes();
    block[CHECKSUM_AT..CHECKSUM_END].copy_from_slice(&sum);
}

/// Does the block hold only zeroes?
pub(super) fn is_blank(block: &Block) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// The first step of decoding a block: is it a whole block of this kind, in a version known here?
pub(super) fn open(block: &Block, kind: BlockKind) -> Result<Header, BlockError> {
    if is_blank(block) {
        return Err(BlockError::Empty);
    }
    let Ok((header, _)) = Header::read_from_prefix(block) else {
        return Err(BlockError::Empty);
    };
    if header.magic != kind.magic() {
        return Err(BlockError::Foreign {
            magic: header.magic,
        });
    }
    let (stored, computed) = (header.checksum.get(), checksum(block));
    if stored != computed {
        return Err(BlockError::BadChecksum { stored, computed });
    }
    let (found, known) = (header.version.get(), kind.version());
    if found > known {
        return Err(BlockError::NewerVersion { found, known });
    }
    if found == 0 {
        return Err(BlockError::Malformed { field: "version" });
    }
    Ok(header)
}

/// For tests: the block with another version, sealed again.
#[cfg(test)]
pub(super) fn with_version(mut block: Block, version: u16) -> Block {
    block[12..14].copy_from_slice(&version.to_le_bytes());
    seal(&mut block);
    block
}

/// For tests: every way to tear a new block over an old one at 512-byte sectors, and every flip of
/// one byte, without the cases that leave either block as it is.
#[cfg(test)]
pub(super) fn damaged(old: &Block, new: &Block) -> Vec<Block> {
    let mut all = Vec::new();
    for sectors in 1..METADATA_BLOCK_BYTES / 512 {
        let mut prefix = *old;
        prefix[..sectors * 512].copy_from_slice(&new[..sectors * 512]);
        let mut suffix = *new;
        suffix[..sectors * 512].copy_from_slice(&old[..sectors * 512]);
        all.extend([prefix, suffix]);
    }
    for at in 0..METADATA_BLOCK_BYTES {
        for flip in [0x01, 0x80, 0xff] {
            let mut flipped = *new;
            flipped[at] ^= flip;
            all.push(flipped);
        }
    }
    all.retain(|block| block != old && block != new);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_tags_stay_what_they_are_on_disk() {
        assert_eq!(DiskTag::of(DiskId(0)).to_string(), "d0a66a65c7528968");
        assert_eq!(
            DiskTag::of(DiskId(0x0123_4567_89ab_cdef)).to_string(),
            "0c172a9a4f01eaab"
        );
    }

    #[test]
    fn checksum_is_the_crc_of_the_block_with_its_own_field_zeroed() {
        let mut block = [7; METADATA_BLOCK_BYTES];
        let mut zeroed = block;
        zeroed[CHECKSUM_AT..CHECKSUM_END].fill(0);
        seal(&mut block);
        assert_eq!(&block[8..12], &crc32c::crc32c(&zeroed).to_le_bytes());
    }

    #[test]
    fn a_block_of_another_kind_is_foreign() {
        let mut block = [0; METADATA_BLOCK_BYTES];
        let header = Header::new(BlockKind::Bitmap, DiskTag(1), 2);
        block[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        seal(&mut block);
        assert!(open(&block, BlockKind::Bitmap).is_ok());
        assert_eq!(
            open(&block, BlockKind::ActivityLog).unwrap_err(),
            BlockError::Foreign {
                magic: *b"LKSTEPBM"
            }
        );
    }
}
