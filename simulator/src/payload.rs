//! What stands for a client's bytes in the simulator: one stamp for each 512-byte sector. The core
//! never looks into a payload, so a stamp tells all that the checker wants to know (which write put
//! the sector there) at a sixty-fourth of the copying.

use replicator::core::api::{BlockHash, Payload};
use std::fmt;
use std::rc::Rc;

/// Bytes of a sector: what a device writes whole or not at all, and one register of the checker.
pub const SECTOR: u64 = 512;
/// Sectors of a 4 KiB block.
pub const BLOCK_SECTORS: u64 = vocabulary::BLOCK_BYTES / SECTOR;
/// The stamp of a sector of zeroes.
pub const ZERO: u64 = 0;

/// A run of sectors, shared.
#[derive(Clone, PartialEq, Eq)]
pub struct Stamps {
    data: Rc<[u64]>,
    start: usize,
    sectors: usize,
}

impl Stamps {
    /// These sectors.
    #[must_use]
    pub fn new(stamps: Vec<u64>) -> Self {
        Self {
            start: 0,
            sectors: stamps.len(),
            data: stamps.into(),
        }
    }

    /// The stamps.
    #[must_use]
    pub fn as_slice(&self) -> &[u64] {
        &self.data[self.start..self.start + self.sectors]
    }
}

impl fmt::Debug for Stamps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_slice() {
            [] => write!(f, "[]"),
            [one] => write!(f, "[{one:x}]"),
            [first, .., last] => write!(f, "[{first:x}..{last:x}]"),
        }
    }
}

impl Payload for Stamps {
    fn len(&self) -> usize {
        self.sectors * sector_bytes()
    }

    fn slice(&self, start: usize, len: usize) -> Self {
        assert!(
            start.is_multiple_of(sector_bytes()) && len.is_multiple_of(sector_bytes()),
            "the core cut a payload inside a sector: {start}+{len}"
        );
        let (start, sectors) = (start / sector_bytes(), len / sector_bytes());
        assert!(
            start + sectors <= self.sectors,
            "the core cut beyond the payload"
        );
        Self {
            data: Rc::clone(&self.data),
            start: self.start + start,
            sectors,
        }
    }
}

fn sector_bytes() -> usize {
    usize::try_from(SECTOR).unwrap_or(usize::MAX)
}

/// The digest of each block of the sectors; zero blocks get [`BlockHash::ZERO`].
#[must_use]
pub fn digests(stamps: &[u64]) -> Vec<BlockHash> {
    let per_block = usize::try_from(BLOCK_SECTORS).unwrap_or(1);
    stamps
        .chunks(per_block)
        .map(|block| {
            if block.iter().all(|stamp| *stamp == ZERO) {
                return BlockHash::ZERO;
            }
            let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
            for stamp in block {
                hash ^= u128::from(*stamp);
                hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
                hash ^= hash >> 61;
            }
            BlockHash(hash | 1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_nest() {
        let all = Stamps::new((10..20).collect());
        assert_eq!(all.len(), 5120);
        let part = all.slice(1024, 2048).slice(512, 1024);
        assert_eq!(part.as_slice(), &[13, 14]);
    }

    #[test]
    fn digests_differ_where_a_sector_differs_and_zero_blocks_are_told_apart() {
        let mut stamps = vec![0; 16];
        stamps[9] = 5;
        let a = digests(&stamps);
        assert_eq!(a[0], BlockHash::ZERO);
        stamps[9] = 6;
        let b = digests(&stamps);
        assert_ne!(a[1], b[1]);
        assert_ne!(a[1], BlockHash::ZERO);
    }
}
