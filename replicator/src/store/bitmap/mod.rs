//! The bitmap of a volume: which 4 KiB blocks each peer may lack, one slot per peer (RULES 7).
//! Setting rounds outwards, clearing inwards; a last partial block counts as a block. Memory is used
//! only for pages that have both set and clear bits.
//!
//! This file answers questions and tracks which pages differ from the disk; `page.rs` is one page,
//! in memory and on disk; `exchange.rs` hands a slot's bits to another node.
//!
//! **Pages on disk.** A page covers 31 extents (124 MiB), so that an extent's bits lie in one page. A
//! page that is torn, rotten, of another disk, slot or page number, or of a later binding of the slot
//! (of a session whose superblock did not reach the disk) means *all bits set*. A page was never
//! written in this binding if it holds only zeroes or a good page of an earlier binding, which has a
//! lower number. What it means then is fixed by the slot's [`Blank`] in the superblock, from when the
//! slot was bound:
//! - [`Blank::Set`]: all bits set. Needs no preparation of the region, whatever is in it.
//! - [`Blank::Clear`]: no bit set. Only where the slot's whole region was known, durably *before* the
//!   superblock that binds the slot was written, to hold nothing but zeroes (created as a hole by
//!   Lockstep, or zeroed by it) and pages of earlier bindings. In a region of unknown contents, such
//!   as that of internal metadata on a used device, foreign bytes would count as bad pages.

mod exchange;
mod page;

use vocabulary::{BLOCK_BYTES, ByteRange, EXTENT_BYTES};

use super::block::{Block, BlockError, DiskTag};
use super::layout::{MAX_DATA_BYTES, MAX_PEER_SLOTS, pages_for};
use super::superblock::PeerSlot;
use page::{Page, PageId};

pub use exchange::{BadExchange, PageBits, Run};
pub use page::{BITS_PER_PAGE, EXTENTS_PER_PAGE, PAGE_COVERS_BYTES};

/// What a bitmap page of only zeroes means. See the head of this module for when which may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blank {
    /// No bit is set.
    Clear,
    /// All bits are set.
    Set,
}

/// The bits of one peer.
#[derive(Clone, Debug)]
struct Slot {
    peer: DiskTag,
    binding: u64,
    blank: Blank,
    pages: Vec<Page>,
    /// Set bits of all pages.
    set: u64,
    /// Pages that are unsaved or being saved.
    unsettled: u32,
}

/// The bitmap of one volume in memory. Methods that take a slot panic where it is not open: which
/// slots are is the caller's (the superblock's) knowledge.
#[derive(Clone, Debug)]
pub struct Bitmap {
    disk: DiskTag,
    data_bytes: u64,
    blocks: u64,
    slots: Vec<Option<Slot>>,
}

/// Bits that a page of a volume with this many blocks has.
fn bits_in(page: u32, blocks: u64) -> u32 {
    let before = u64::from(page) * u64::from(BITS_PER_PAGE);
    let bits = blocks.saturating_sub(before).min(u64::from(BITS_PER_PAGE));
    u32::try_from(bits).expect("at most a page's bits")
}

/// The pages that a range of blocks touches, with the part of each: `(page, first bit, end bit)`.
fn parts(start: u64, end: u64) -> impl Iterator<Item = (u32, u32, u32)> {
    let width = u64::from(BITS_PER_PAGE);
    let pages = if start < end {
        start / width..end.div_ceil(width)
    } else {
        0..0
    };
    pages.map(move |page| {
        let base = page * width;
        let narrow = |bit: u64| u32::try_from(bit).expect("a page's bit");
        let number = u32::try_from(page).expect("within the largest volume");
        (
            number,
            narrow(start.max(base) - base),
            narrow(end.min(base + width) - base),
        )
    })
}

impl Bitmap {
    /// A bitmap without slots.
    ///
    /// # Panics
    /// Where the volume is larger than [`MAX_DATA_BYTES`].
    #[must_use]
    pub fn new(disk: DiskTag, data_bytes: u64) -> Self {
        assert!(data_bytes <= MAX_DATA_BYTES);
        let blocks = data_bytes.div_ceil(BLOCK_BYTES);
        let slots = (0..MAX_PEER_SLOTS).map(|_| None).collect();
        Self {
            disk,
            data_bytes,
            blocks,
            slots,
        }
    }

    /// Size of the volume in bytes.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Opens a slot for a peer's disk, as bound in the superblock, and as if every page on disk were blank. For a slot that has been
    /// in use, [`Self::load_page`] of each page that is not blank follows.
    ///
    /// # Panics
    /// Where there is no such slot.
    pub fn open_slot(&mut self, slot: u8, peer: &PeerSlot) {
        let PeerSlot {
            disk,
            blank,
            binding,
            ..
        } = *peer;
        let is_set = blank == Blank::Set;
        let pages = (0..pages_for(self.data_bytes))
            .map(|page| Page::uniform(is_set, bits_in(page, self.blocks)))
            .collect();
        let set = if is_set { self.blocks } else { 0 };
        let peer = DiskTag::of(disk);
        self.slots[usize::from(slot)] = Some(Slot {
            peer,
            binding,
            blank,
            pages,
            set,
            unsettled: 0,
        });
    }

    /// Forgets a slot.
    pub fn close_slot(&mut self, slot: u8) {
        self.slots[usize::from(slot)] = None;
    }

    /// The slots that are open.
    pub fn open_slots(&self) -> impl Iterator<Item = u8> {
        (0..MAX_PEER_SLOTS).filter(|slot| self.slots[usize::from(*slot)].is_some())
    }

    fn slot(&self, slot: u8) -> &Slot {
        self.slots[usize::from(slot)]
            .as_ref()
            .expect("the slot is open")
    }

    fn slot_mut(&mut self, slot: u8) -> &mut Slot {
        self.slots[usize::from(slot)]
            .as_mut()
            .expect("the slot is open")
    }

    fn id(&self, slot: u8, page: u32) -> PageId {
        PageId {
            disk: self.disk,
            peer: self.slot(slot).peer,
            binding: self.slot(slot).binding,
            slot,
            page,
        }
    }

    /// The blocks that the range touches, within the volume.
    fn outward(&self, range: ByteRange) -> (u64, u64) {
        let blocks = range.units(BLOCK_BYTES);
        (blocks.start.min(self.blocks), blocks.end.min(self.blocks))
    }

    /// The blocks that lie wholly in the range; the volume's last block does if the range goes to the
    /// volume's end.
    fn inward(&self, range: ByteRange) -> (u64, u64) {
        let end = if range.end() >= self.data_bytes {
            self.blocks
        } else {
            range.end() / BLOCK_BYTES
        };
        (range.offset.div_ceil(BLOCK_BYTES), end)
    }

    fn bytes_of(&self, start: u64, end: u64) -> ByteRange {
        ByteRange::between(
            start * BLOCK_BYTES,
            (end * BLOCK_BYTES).min(self.data_bytes),
        )
    }

    /// Marks every block that the range touches; what lies beyond the volume is passed over. Returns
    /// how many were not marked before.
    pub fn set(&mut self, slot: u8, range: ByteRange) -> u64 {
        let (start, end) = self.outward(range);
        let blocks = self.blocks;
        let slot = self.slot_mut(slot);
        let before = slot.set;
        for (page, first, end) in parts(start, end) {
            slot.change(page, |bits| bits.set(first, end, bits_in(page, blocks)));
        }
        slot.set - before
    }

    /// Unmarks every block that lies wholly in the range. Returns how many were marked before.
    pub fn clear(&mut self, slot: u8, range: ByteRange) -> u64 {
        let (start, end) = self.inward(range);
        let blocks = self.blocks;
        let slot = self.slot_mut(slot);
        let before = slot.set;
        for (page, first, end) in parts(start, end) {
            slot.change(page, |bits| bits.clear(first, end, bits_in(page, blocks)));
        }
        before - slot.set
    }

    /// Marks every block.
    pub fn set_all(&mut self, slot: u8) {
        self.set(slot, ByteRange::between(0, self.data_bytes));
    }

    /// Unmarks every block.
    pub fn clear_all(&mut self, slot: u8) {
        self.clear(slot, ByteRange::between(0, self.data_bytes));
    }

    /// Marks every block that one of the ranges touches.
    pub fn union_from(&mut self, slot: u8, ranges: impl IntoIterator<Item = ByteRange>) {
        for range in ranges {
            self.set(slot, range);
        }
    }

    /// Is a block that the range touches marked?
    #[must_use]
    pub fn is_any_set(&self, slot: u8, range: ByteRange) -> bool {
        let (start, end) = self.outward(range);
        let slot = self.slot(slot);
        slot.set > 0
            && parts(start, end).any(|(page, first, end)| {
                slot.pages[page as usize]
                    .next_set(first)
                    .is_some_and(|bit| bit < end)
            })
    }

    /// Bytes of the marked blocks. Needs no scan.
    #[must_use]
    pub fn count_bytes(&self, slot: u8) -> u64 {
        let set = self.slot(slot).set;
        let missing = self.blocks * BLOCK_BYTES - self.data_bytes;
        let last = ByteRange::between(self.data_bytes.saturating_sub(1), self.data_bytes);
        let cut = if missing > 0 && self.is_any_set(slot, last) {
            missing
        } else {
            0
        };
        set * BLOCK_BYTES - cut
    }

    /// The next run of marked blocks: from the first one at or after the block that holds
    /// `from_byte`, up to the next unmarked one or to `max_len` bytes (rounded down to blocks, at
    /// least one). `None` where no more are marked. Go on at the end of what is returned.
    #[must_use]
    pub fn next_dirty(&self, slot: u8, from_byte: u64, max_len: u64) -> Option<ByteRange> {
        if from_byte >= self.data_bytes {
            return None;
        }
        let slot = self.slot(slot);
        let start = slot.next(from_byte / BLOCK_BYTES, Page::next_set)?;
        let limit = start
            .saturating_add((max_len / BLOCK_BYTES).max(1))
            .min(self.blocks);
        let end = slot
            .next_until(start, limit, Page::next_clear)
            .unwrap_or(limit);
        Some(self.bytes_of(start, end))
    }

    /// All runs of marked blocks in ascending order, none longer than `max_len` bytes: what two
    /// nodes tell each other when they meet.
    pub fn runs(&self, slot: u8, max_len: u64) -> impl Iterator<Item = ByteRange> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_dirty(slot, from, max_len)?;
            from = run.end();
            Some(run)
        })
    }

    /// The pages, `(slot, page)`, that hold an extent's bits and are not known to be on disk as they
    /// are in memory: what has to be durable before the extent leaves the activity log. Those for
    /// which [`Self::is_being_saved`] wait for that save, and for another if they changed since.
    pub fn unsaved_pages_of(&self, extent: u32) -> impl Iterator<Item = (u8, u32)> {
        let page = extent / EXTENTS_PER_PAGE;
        self.open_slots().filter_map(move |slot| {
            let pages = &self.slot(slot).pages;
            pages
                .get(page as usize)?
                .is_unsettled()
                .then_some((slot, page))
        })
    }

    /// All pages, `(slot, page)`, that are not known to be on disk as they are in memory. A slot
    /// without any costs nothing.
    pub fn unsaved_pages(&self) -> impl Iterator<Item = (u8, u32)> {
        self.open_slots()
            .filter(|slot| self.slot(*slot).unsettled > 0)
            .flat_map(|slot| {
                (0u32..)
                    .zip(&self.slot(slot).pages)
                    .filter(|(_, page)| page.is_unsettled())
                    .map(move |(number, _)| (slot, number))
            })
    }

    /// Is a save of the page under way?
    #[must_use]
    pub fn is_being_saved(&self, slot: u8, page: u32) -> bool {
        self.slot(slot).pages[page as usize].is_saving()
    }

    /// Is the page on disk as it is in memory?
    #[must_use]
    pub fn is_saved(&self, slot: u8, page: u32) -> bool {
        !self.slot(slot).pages[page as usize].is_unsettled()
    }

    /// The page's block, to be written durably; [`Self::saved`] or [`Self::save_failed`] follows.
    /// `None` where a save of the page is under way: two could overtake each other.
    ///
    /// # Panics
    /// Where the volume has no such page.
    #[must_use]
    pub fn encode_page(&mut self, slot: u8, page: u32) -> Option<Block> {
        let id = self.id(slot, page);
        let bits = bits_in(page, self.blocks);
        let slot = self.slot_mut(slot);
        let page = &mut slot.pages[page as usize];
        let was_unsettled = page.is_unsettled();
        if !page.start_save() {
            return None;
        }
        slot.unsettled += u32::from(!was_unsettled);
        Some(page.encode(&id, bits))
    }

    /// The save is durable. Changes that were made meanwhile leave the page unsaved.
    pub fn saved(&mut self, slot: u8, page: u32) {
        self.slot_mut(slot).settle(page, Page::finish_save);
    }

    /// The save failed: what is on disk is not known.
    pub fn save_failed(&mut self, slot: u8, page: u32) {
        self.slot_mut(slot).settle(page, Page::fail_save);
    }

    /// Takes over a page from disk.
    ///
    /// # Errors
    /// Why the page is not used: all its bits are set then, and it is unsaved. The caller reports it;
    /// [`BlockError::NewerVersion`] refuses the disk.
    ///
    /// # Panics
    /// Where the volume has no such page.
    pub fn load_page(&mut self, slot: u8, page: u32, block: &Block) -> Result<(), BlockError> {
        let id = self.id(slot, page);
        let bits = bits_in(page, self.blocks);
        let blank = self.slot(slot).blank;
        let never_written = Ok(Page::uniform(blank == Blank::Set, bits));
        let loaded = match Page::decode(&id, bits, block) {
            Err(BlockError::Empty) => never_written,
            Err(BlockError::OtherBinding { found, expected }) if found < expected => never_written,
            other => other,
        };
        let (new, error) = match loaded {
            Ok(page) => (page, None),
            Err(error) => {
                let mut page = Page::uniform(true, bits);
                page.touch();
                (page, Some(error))
            }
        };
        let slot = self.slot_mut(slot);
        let old = std::mem::replace(&mut slot.pages[page as usize], new);
        let new = &slot.pages[page as usize];
        slot.set = slot.set - u64::from(old.count()) + u64::from(new.count());
        slot.unsettled =
            slot.unsettled - u32::from(old.is_unsettled()) + u32::from(new.is_unsettled());
        error.map_or(Ok(()), Err)
    }

    /// Gives the volume another size. Blocks that are new, the formerly partial last one included,
    /// are marked in every slot if `set_new`; marks beyond a smaller size are forgotten. The caller
    /// places the metadata first: new pages on disk are taken for blank (for [`Blank::Clear`] they
    /// have to be, or hold no fewer set bits). No page beyond the new size may be on its way to disk.
    ///
    /// # Panics
    /// Where the volume would be larger than [`MAX_DATA_BYTES`].
    pub fn resize(&mut self, data_bytes: u64, set_new: bool) {
        assert!(data_bytes <= MAX_DATA_BYTES);
        let old_bytes = self.data_bytes;
        let (old, new) = (self.blocks, data_bytes.div_ceil(BLOCK_BYTES));
        for slot in self.slots.iter_mut().flatten() {
            slot.resize(old, new);
        }
        self.data_bytes = data_bytes;
        self.blocks = new;
        let added = ByteRange::between(old_bytes, data_bytes);
        for slot in 0..MAX_PEER_SLOTS {
            if self.slots[usize::from(slot)].is_none() {
                continue;
            }
            if set_new {
                self.set(slot, added);
            } else if new > old {
                let fresh = ByteRange::between(old * BLOCK_BYTES, data_bytes);
                self.clear(slot, fresh);
            }
        }
    }

    /// Marks all blocks of an extent in every open slot.
    pub fn set_extent(&mut self, extent: u32) {
        let start = u64::from(extent) * EXTENT_BYTES;
        for slot in 0..MAX_PEER_SLOTS {
            if self.slots[usize::from(slot)].is_some() {
                self.set(slot, ByteRange::between(start, start + EXTENT_BYTES));
            }
        }
    }
}

impl Slot {
    /// Changes a page and keeps the sums.
    fn change(&mut self, page: u32, change: impl FnOnce(&mut Page)) {
        let page = &mut self.pages[page as usize];
        let (count, was_unsettled) = (page.count(), page.is_unsettled());
        change(page);
        self.set = self.set - u64::from(count) + u64::from(page.count());
        self.unsettled = self.unsettled - u32::from(was_unsettled) + u32::from(page.is_unsettled());
    }

    fn settle(&mut self, page: u32, change: fn(&mut Page)) {
        // The page may be gone: the volume shrank while it was saved.
        if (page as usize) < self.pages.len() {
            self.change(page, change);
        }
    }

    /// The first block from `from` on that the search finds.
    fn next(&self, from: u64, search: impl Fn(&Page, u32) -> Option<u32>) -> Option<u64> {
        self.next_until(from, u64::MAX, search)
    }

    /// The first block from `from` on, before `limit`, that the search finds.
    fn next_until(
        &self,
        from: u64,
        limit: u64,
        search: impl Fn(&Page, u32) -> Option<u32>,
    ) -> Option<u64> {
        let width = u64::from(BITS_PER_PAGE);
        let first = usize::try_from(from / width).ok()?;
        let mut bit = u32::try_from(from % width).expect("a page's bit");
        let mut base = from - from % width;
        for page in self.pages.get(first..)? {
            if base >= limit {
                return None;
            }
            if let Some(bit) = search(page, bit) {
                return Some(base + u64::from(bit)).filter(|block| *block < limit);
            }
            bit = 0;
            base += width;
        }
        None
    }

    fn resize(&mut self, old: u64, new: u64) {
        let last_of = |blocks: u64| u32::try_from(blocks.div_ceil(BITS_PER_PAGE.into()));
        let (old_pages, new_pages) = (last_of(old).expect("pages"), last_of(new).expect("pages"));
        let kept = old_pages.min(new_pages);
        if let Some(page) = kept.checked_sub(1) {
            let (from, to) = (bits_in(page, old), bits_in(page, new));
            if from != to {
                self.change(page, |page| page.resize(from, to));
            }
        }
        for page in self.pages.drain(kept as usize..) {
            self.set -= u64::from(page.count());
            self.unsettled -= u32::from(page.is_unsettled());
        }
        for page in kept..new_pages {
            let mut page = Page::uniform(self.blank == Blank::Set, bits_in(page, new));
            if self.blank == Blank::Set {
                // The place may hold a good page with fewer bits, from before the volume shrank.
                page.touch();
                self.unsettled += 1;
            }
            self.set += u64::from(page.count());
            self.pages.push(page);
        }
    }
}

#[cfg(test)]
mod tests;
