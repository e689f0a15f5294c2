//! Simulated storage of a replica: a data area with a volatile write cache and a metadata area, per
//! volume. What a power loss may bring back is known exactly, sector by sector; what a failing device
//! does is decided by its [`Health`]. Holds no queue and no clock: the node decides when an operation
//! takes place.

use crate::payload::{BLOCK_SECTORS, SECTOR, ZERO};
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use vocabulary::{BLOCK_BYTES, ByteRange};

/// What a power loss does with writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Every one is lost.
    All,
    /// The cache happened to be written out.
    Nothing,
    /// Each sector keeps any version since its last stable one.
    Random,
    /// Everything written before a random moment stays, the rest is lost.
    Suffix,
}

/// How a device behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Health {
    /// Writes and zeroes answer EIO.
    pub write_errors: bool,
    /// Flushes and durable writes answer EIO.
    pub flush_errors: bool,
    /// Reads answer EIO.
    pub read_errors: bool,
    /// Metadata writes answer EIO.
    pub meta_errors: bool,
    /// Writes answer ENOSPC.
    pub full: bool,
    /// Nothing completes until this ends.
    pub stuck: bool,
    /// Everything takes this many times longer (0 and 1: as usual).
    pub slower: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Version {
    /// Number of the write that brought it; 0: the stable one.
    at: u64,
    stamp: u64,
}

/// The data area of one volume: sectors, their unstable versions, and what is allocated.
#[derive(Clone, Debug)]
pub struct DataArea {
    now: Vec<u64>,
    unstable: BTreeMap<usize, Vec<Version>>,
    bad: BTreeSet<usize>,
    touched: BTreeSet<u64>,
    allocated: BTreeSet<u64>,
    writes: u64,
}

/// Sectors of a byte count or offset; the simulator's offsets are whole sectors.
#[must_use]
pub fn sectors(bytes: u64) -> usize {
    usize::try_from(bytes / SECTOR).unwrap_or(usize::MAX)
}

/// Sectors as a byte count or offset.
#[must_use]
pub fn bytes(sectors: usize) -> u64 {
    u64::try_from(sectors).unwrap_or(u64::MAX) * SECTOR
}

impl DataArea {
    /// A store of this size that reads as zeroes and has nothing allocated.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            now: vec![ZERO; sectors(size_bytes)],
            unstable: BTreeMap::new(),
            bad: BTreeSet::new(),
            touched: BTreeSet::new(),
            allocated: BTreeSet::new(),
            writes: 0,
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        bytes(self.now.len())
    }

    /// Larger, zeroed beyond the old size.
    pub fn grow(&mut self, size_bytes: u64) {
        let want = sectors(size_bytes);
        if want > self.now.len() {
            self.now.resize(want, ZERO);
        }
    }

    /// The sectors of a range, or `None` where one of them can't be read or lies beyond the end.
    #[must_use]
    pub fn read(&self, range: ByteRange) -> Option<&[u64]> {
        let (first, end) = (sectors(range.offset), sectors(range.end()));
        if self.bad.range(first..end).next().is_some() {
            return None;
        }
        self.now.get(first..end)
    }

    /// Writes; false where the range lies beyond the end.
    pub fn write(&mut self, offset: u64, stamps: &[u64], durable: bool) -> bool {
        let first = sectors(offset);
        if first + stamps.len() > self.now.len() {
            return false;
        }
        self.writes += 1;
        for (i, stamp) in stamps.iter().enumerate() {
            self.put(first + i, *stamp, durable);
        }
        self.touch(
            ByteRange::between(offset, offset + bytes(stamps.len())),
            true,
        );
        true
    }

    /// Writes only some of the sectors, as an interrupted write does.
    pub fn write_torn(&mut self, offset: u64, stamps: &[u64], rng: &mut Rng) {
        let first = sectors(offset);
        self.writes += 1;
        let in_order = rng.percent(50);
        let stop = rng.index(stamps.len() + 1);
        for (i, stamp) in stamps.iter().enumerate() {
            let keep = if in_order { i < stop } else { rng.percent(50) };
            if keep && first + i < self.now.len() {
                self.put(first + i, *stamp, false);
            }
        }
        self.touch(
            ByteRange::between(offset, offset + bytes(stamps.len())),
            true,
        );
    }

    /// Zeroes a range; whole blocks of it lose their allocation where a hole is punched.
    pub fn zero(&mut self, range: ByteRange, hole: bool, durable: bool) -> bool {
        let (first, end) = (sectors(range.offset), sectors(range.end()));
        if end > self.now.len() {
            return false;
        }
        self.writes += 1;
        for sector in first..end {
            self.put(sector, ZERO, durable);
        }
        self.touch(range, !hole);
        if hole {
            for block in range.inward(BLOCK_BYTES).units(BLOCK_BYTES) {
                self.allocated.remove(&block);
            }
        }
        true
    }

    fn put(&mut self, sector: usize, stamp: u64, durable: bool) {
        self.bad.remove(&sector);
        let Some(now) = self.now.get_mut(sector) else {
            return;
        };
        let before = std::mem::replace(now, stamp);
        if durable {
            self.unstable.remove(&sector);
            return;
        }
        let versions = self.unstable.entry(sector).or_insert_with(|| {
            vec![Version {
                at: 0,
                stamp: before,
            }]
        });
        versions.push(Version {
            at: self.writes,
            stamp,
        });
    }

    fn touch(&mut self, range: ByteRange, allocate: bool) {
        for block in range.units(BLOCK_BYTES) {
            self.touched.insert(block);
            if allocate {
                self.allocated.insert(block);
            }
        }
    }

    /// What a flush that is submitted now will cover.
    #[must_use]
    pub fn flush_mark(&self) -> u64 {
        self.writes
    }

    /// A flush is done: what it covers is stable.
    pub fn flush_done(&mut self, mark: u64) {
        self.unstable.retain(|_, versions| {
            let covered = versions.iter().rposition(|v| v.at <= mark).unwrap_or(0);
            versions.drain(..covered);
            if let Some(stable) = versions.first_mut() {
                stable.at = 0;
            }
            versions.len() > 1
        });
    }

    /// A flush failed: the device has dropped some of what was dirty, and says nothing of it again
    /// (which is why a failed flush is never tried until it succeeds, RULES 1).
    pub fn flush_failed(&mut self, rng: &mut Rng) {
        let all = rng.percent(30);
        let unstable = std::mem::take(&mut self.unstable);
        for (sector, versions) in unstable {
            if !all && rng.percent(50) {
                self.unstable.insert(sector, versions);
            } else if let (Some(now), Some(stable)) = (self.now.get_mut(sector), versions.first()) {
                *now = stable.stamp;
            }
        }
    }

    /// The power is gone: the cache is lost as `loss` says.
    pub fn power_loss(&mut self, loss: Loss, rng: &mut Rng) {
        let moment = rng.between(0, self.writes);
        let unstable = std::mem::take(&mut self.unstable);
        for (sector, versions) in unstable {
            let keep = match loss {
                Loss::All => 0,
                Loss::Nothing => versions.len() - 1,
                Loss::Random => rng.index(versions.len()),
                Loss::Suffix => versions.iter().rposition(|v| v.at <= moment).unwrap_or(0),
            };
            if let (Some(now), Some(version)) = (self.now.get_mut(sector), versions.get(keep)) {
                *now = version.stamp;
            }
        }
    }

    /// The sector as it reads now.
    #[must_use]
    pub fn sector(&self, sector: usize) -> u64 {
        self.now.get(sector).copied().unwrap_or(ZERO)
    }

    /// Every version of the sector that a power loss now could leave behind.
    pub fn possible(&self, sector: usize) -> impl Iterator<Item = u64> + '_ {
        let unstable = self.unstable.get(&sector).map_or(&[][..], Vec::as_slice);
        unstable
            .iter()
            .map(|v| v.stamp)
            .chain(unstable.is_empty().then(|| self.sector(sector)))
    }

    /// Blocks that were ever written.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.touched.iter().copied()
    }

    /// Blocks that take space.
    #[must_use]
    pub fn allocated(&self) -> &BTreeSet<u64> {
        &self.allocated
    }

    /// Sectors of a block as they read now.
    #[must_use]
    pub fn block(&self, block: u64) -> &[u64] {
        let first = sectors(block * BLOCK_BYTES);
        let end = (first + usize::try_from(BLOCK_SECTORS).unwrap_or(0)).min(self.now.len());
        self.now.get(first..end).unwrap_or(&[])
    }

    /// Reading this sector fails until it is written again.
    pub fn spoil(&mut self, sector: usize) {
        self.bad.insert(sector);
    }

    /// The device has found another place for its bad sectors.
    pub fn unspoil(&mut self) {
        self.bad.clear();
    }

    /// The sector silently holds something else, on the medium too.
    pub fn rot(&mut self, sector: usize, stamp: u64) {
        if let Some(now) = self.now.get_mut(sector) {
            *now = stamp;
            self.unstable.remove(&sector);
        }
        self.touch(
            ByteRange::between(bytes(sector), bytes(sector) + SECTOR),
            true,
        );
    }

    /// Is anything written and not stable yet?
    #[must_use]
    pub fn has_unstable(&self) -> bool {
        !self.unstable.is_empty()
    }

    /// Puts what decides the future of this area into a hasher (the exploration's state).
    pub fn fingerprint(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        for block in &self.touched {
            block.hash(state);
            self.block(*block).hash(state);
        }
        for (sector, versions) in &self.unstable {
            sector.hash(state);
            for version in versions {
                version.stamp.hash(state);
            }
        }
        self.bad.hash(state);
    }
}

/// The metadata area of one volume: 4 KiB blocks, written durably. An interrupted write may be torn
/// at any sector.
#[derive(Clone, Debug, Default)]
pub struct MetaArea {
    // Shared between the copies of a world that an exploration makes.
    blocks: BTreeMap<u64, Rc<Vec<u8>>>,
    bad: BTreeSet<u64>,
}

impl MetaArea {
    /// Writes whole blocks.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.write_if(offset, data, |_| true);
    }

    /// Writes some of the sectors.
    pub fn write_torn(&mut self, offset: u64, data: &[u8], rng: &mut Rng) {
        let in_order = rng.percent(50);
        let stop = rng.index(data.len() / 512 + 1);
        self.write_if(offset, data, |sector| {
            if in_order {
                sector < stop
            } else {
                rng.percent(50)
            }
        });
    }

    fn write_if(&mut self, offset: u64, data: &[u8], mut keep: impl FnMut(usize) -> bool) {
        for (i, sector) in data.chunks(512).enumerate() {
            if !keep(i) {
                continue;
            }
            let at = offset + bytes(i);
            let block = self
                .blocks
                .entry(at / BLOCK_BYTES)
                .or_insert_with(|| Rc::new(vec![0; 4096]));
            let within = usize::try_from(at % BLOCK_BYTES).unwrap_or(0);
            Rc::make_mut(block)[within..within + sector.len()].copy_from_slice(sector);
            self.bad.remove(&(at / BLOCK_BYTES));
        }
    }

    /// Fills the buffer; false where a block can't be read.
    #[must_use]
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let number = at / BLOCK_BYTES;
            if self.bad.contains(&number) {
                return false;
            }
            let within = usize::try_from(at % BLOCK_BYTES).unwrap_or(0);
            let len = rest.len().min(4096 - within);
            let (now, later) = rest.split_at_mut(len);
            match self.blocks.get(&number) {
                Some(block) => now.copy_from_slice(&block[within..within + len]),
                None => now.fill(0),
            }
            rest = later;
            at += u64::try_from(len).unwrap_or(0);
        }
        true
    }

    /// Blocks that were ever written, ascending.
    #[must_use]
    pub fn blocks(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// Silent damage: one byte of the block is another.
    pub fn rot(&mut self, block: u64, rng: &mut Rng) {
        if let Some(bytes) = self.blocks.get_mut(&block) {
            let at = rng.index(bytes.len());
            Rc::make_mut(bytes)[at] ^= u8::try_from(rng.between(1, 255)).unwrap_or(1);
        }
    }

    /// Reading this block fails until it is written again.
    pub fn spoil(&mut self, block: u64) {
        self.bad.insert(block);
    }

    /// Puts the contents into a hasher.
    pub fn fingerprint(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        self.blocks.hash(state);
        self.bad.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> DataArea {
        DataArea::new(64 * 512)
    }

    #[test]
    fn unflushed_writes_may_be_lost_and_flushed_ones_are_not() {
        let mut rng = Rng::new(1);
        let mut area = area();
        area.write(0, &[1, 1], false);
        let mark = area.flush_mark();
        area.write(512, &[2, 2], false);
        area.flush_done(mark);
        assert_eq!(area.possible(0).collect::<Vec<_>>(), vec![1]);
        assert_eq!(area.possible(1).collect::<Vec<_>>(), vec![1, 2]);
        area.power_loss(Loss::All, &mut rng);
        assert_eq!(
            (area.sector(0), area.sector(1), area.sector(2)),
            (1, 1, ZERO)
        );
    }

    #[test]
    fn a_durable_write_survives() {
        let mut area = area();
        area.write(0, &[1], false);
        area.write(0, &[2], true);
        area.power_loss(Loss::All, &mut Rng::new(1));
        assert_eq!(area.sector(0), 2);
        assert!(!area.has_unstable());
    }

    #[test]
    fn what_a_failed_flush_dropped_is_not_saved_by_a_later_one() {
        let mut area = area();
        area.write(0, &[1; 64], false);
        area.flush_failed(&mut Rng::new(1));
        area.flush_done(area.flush_mark());
        assert!((0..64).any(|sector| area.sector(sector) == ZERO));
        assert!(!area.has_unstable());
    }

    #[test]
    fn an_unreadable_sector_reads_again_once_written() {
        let mut area = area();
        area.spoil(3);
        assert!(area.read(ByteRange::between(0, 4096)).is_none());
        area.write(3 * 512, &[9], false);
        assert_eq!(area.read(ByteRange::between(1024, 2048)).unwrap(), &[0, 9]);
    }

    #[test]
    fn a_hole_takes_no_space_and_partial_blocks_keep_theirs() {
        let mut area = area();
        area.write(0, &[1; 24], false);
        assert_eq!(area.allocated().len(), 3);
        area.zero(ByteRange::between(512, 12288), true, false);
        assert_eq!(
            area.allocated().iter().copied().collect::<Vec<_>>(),
            vec![0]
        );
        assert_eq!(area.sector(0), 1);
        assert_eq!(area.sector(1), ZERO);
    }

    #[test]
    fn a_torn_metadata_write_keeps_whole_sectors_of_old_and_new() {
        let mut meta = MetaArea::default();
        meta.write(4096, &[1; 4096]);
        meta.write_torn(4096, &[2; 4096], &mut Rng::new(3));
        let mut block = [0; 4096];
        assert!(meta.read(4096, &mut block));
        for sector in block.chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]));
        }
        let mut unwritten = [7; 10];
        assert!(meta.read(0, &mut unwritten));
        assert_eq!(unwritten, [0; 10]);
    }
}
