//! One page of a bitmap: its bits in memory, whether they are on disk, and its block on disk. Knows
//! nothing of volumes; how many of its bits count is told by the caller.
//!
//! Layout, little endian; the first 32 bytes are the header that every metadata block has
//! (`block.rs`), its position is slot * 2^32 + page number.
//!
//! | offset | bytes | field    | meaning                                                          |
//! |-------:|------:|----------|------------------------------------------------------------------|
//! |     32 |     8 | peer     | tag of the disk that the bits are about                          |
//! |     40 |     4 | set bits | how many bits are set                                            |
//! |     44 |     4 | reserved | zero                                                             |
//! |     48 |     8 | binding  | number of the slot's binding, as in the superblock               |
//! |     56 |    72 | reserved | zero                                                             |
//! |    128 |  3968 | bits     | 31744 bits, 128 bytes for each of 31 extents; bit 0 of byte 0 is the page's first block; bits beyond the volume are 0 |

use vocabulary::{BLOCK_BYTES, EXTENT_BYTES};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::store::block::{self, Block, BlockError, BlockKind, DiskTag, HEADER_BYTES, Header};

/// Extents whose bits are in one page.
pub const EXTENTS_PER_PAGE: u32 = 31;

/// Bits in one page.
pub const BITS_PER_PAGE: u32 = EXTENTS_PER_PAGE * 1024;

/// Bytes of the volume that one page is about: 124 MiB.
pub const PAGE_COVERS_BYTES: u64 = BITS_PER_PAGE as u64 * BLOCK_BYTES;

const _: () = assert!(PAGE_COVERS_BYTES == EXTENTS_PER_PAGE as u64 * EXTENT_BYTES);

const WORDS: usize = BITS_PER_PAGE as usize / 64;

pub(super) type Words = [u64; WORDS];

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    header: Header,
    peer: U64,
    set: U32,
    reserved: [u8; 4],
    binding: U64,
    reserved_too: [u8; 72],
    words: [U64; WORDS],
}

const _: () = {
    assert!(size_of::<Raw>() == block::METADATA_BLOCK_BYTES);
    assert!(std::mem::offset_of!(Raw, peer) == HEADER_BYTES);
    assert!(std::mem::offset_of!(Raw, words) == 128);
};

/// Where a page belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageId {
    pub(crate) disk: DiskTag,
    pub(crate) peer: DiskTag,
    pub(crate) binding: u64,
    pub(crate) slot: u8,
    pub(crate) page: u32,
}

impl PageId {
    fn position(&self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.page)
    }
}

/// A page. Without words all of its bits are equal: clear where `count` is 0, else set.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    words: Option<Box<Words>>,
    count: u32,
    /// Changed since the last save began.
    unsaved: bool,
    /// A save is under way.
    saving: bool,
}

/// The bits of a word from `first` to `end` (not included) of the page.
fn mask(word: usize, first: u32, end: u32) -> u64 {
    let base = u32::try_from(word).expect("a page's word") * 64;
    let low = first.saturating_sub(base);
    let high = end.saturating_sub(base).min(64);
    if low >= high {
        return 0;
    }
    (u64::MAX >> (64 - (high - low))) << low
}

fn words_of(first: u32, end: u32) -> std::ops::Range<usize> {
    first as usize / 64..(end as usize).div_ceil(64)
}

impl Page {
    /// A page whose bits are all set or all clear, as it is on disk.
    pub(crate) fn uniform(is_set: bool, bits: u32) -> Self {
        let count = if is_set { bits } else { 0 };
        Self {
            words: None,
            count,
            unsaved: false,
            saving: false,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Does it take memory of its own?
    #[cfg(test)]
    pub(super) fn has_words(&self) -> bool {
        self.words.is_some()
    }

    /// Is it not known to be on disk as it is?
    pub(super) fn is_unsettled(&self) -> bool {
        self.unsaved || self.saving
    }

    pub(super) fn is_saving(&self) -> bool {
        self.saving
    }

    /// Not on disk as it is.
    pub(super) fn touch(&mut self) {
        self.unsaved = true;
    }

    /// False where a save is under way.
    pub(super) fn start_save(&mut self) -> bool {
        if self.saving {
            return false;
        }
        self.saving = true;
        self.unsaved = false;
        true
    }

    pub(super) fn finish_save(&mut self) {
        self.saving = false;
    }

    pub(super) fn fail_save(&mut self) {
        self.saving = false;
        self.unsaved = true;
    }

    fn words_mut(&mut self, bits: u32) -> &mut Words {
        let count = self.count;
        self.words.get_or_insert_with(|| {
            let mut words = Box::new([0; WORDS]);
            if count > 0 {
                for word in words_of(0, bits) {
                    words[word] = mask(word, 0, bits);
                }
            }
            words
        })
    }

    /// Gives back the memory of a page whose bits are all equal.
    fn settle_count(&mut self, count: u32, bits: u32) {
        if count != self.count {
            self.touch();
        }
        self.count = count;
        if count == 0 || count == bits {
            self.words = None;
        }
    }

    fn is_uniform(&self, is_set: bool) -> bool {
        self.words.is_none() && (self.count > 0) == is_set
    }

    /// Sets bits; the page has `bits` of them.
    pub(super) fn set(&mut self, first: u32, end: u32, bits: u32) {
        if self.is_uniform(true) || first >= end {
            return;
        }
        let count = if first == 0 && end == bits {
            bits
        } else {
            let mut added = 0;
            let words = self.words_mut(bits);
            for word in words_of(first, end) {
                let mask = mask(word, first, end);
                added += (mask & !words[word]).count_ones();
                words[word] |= mask;
            }
            self.count + added
        };
        self.settle_count(count, bits);
    }

    /// Clears bits; the page has `bits` of them.
    pub(super) fn clear(&mut self, first: u32, end: u32, bits: u32) {
        if self.is_uniform(false) || first >= end {
            return;
        }
        let count = if first == 0 && end == bits {
            0
        } else {
            let mut removed = 0;
            let words = self.words_mut(bits);
            for word in words_of(first, end) {
                let mask = mask(word, first, end);
                removed += (mask & words[word]).count_ones();
                words[word] &= !mask;
            }
            self.count - removed
        };
        self.settle_count(count, bits);
    }

    /// The first set bit from `from` on.
    pub(super) fn next_set(&self, from: u32) -> Option<u32> {
        match &self.words {
            None => (from < self.count).then_some(from),
            Some(words) => scan(from, |word| words[word]),
        }
    }

    /// The first clear bit from `from` on. Bits beyond the volume are clear.
    pub(super) fn next_clear(&self, from: u32) -> Option<u32> {
        match &self.words {
            None if from >= self.count => (from < BITS_PER_PAGE).then_some(from),
            None => (self.count < BITS_PER_PAGE).then_some(self.count),
            Some(words) => scan(from, |word| !words[word]),
        }
    }

    /// The page's bits change in number; new ones are clear.
    pub(super) fn resize(&mut self, from: u32, to: u32) {
        if to > from {
            if self.is_uniform(true) {
                // On disk it may be a blank page, which now means more set bits than it did.
                self.words_mut(from);
                self.touch();
            }
            return;
        }
        let mut count = self.count;
        if let Some(words) = &mut self.words {
            for word in words_of(to, from) {
                let mask = mask(word, to, from);
                count -= (mask & words[word]).count_ones();
                words[word] &= !mask;
            }
        } else {
            count = count.min(to);
        }
        self.settle_count(count, to);
    }

    /// Sets the bits that are set in `other`; bits from `bits` on are passed over.
    pub(super) fn union(&mut self, other: &Words, bits: u32) {
        if self.is_uniform(true) {
            return;
        }
        let words = self.words_mut(bits);
        let mut count = 0;
        for word in 0..WORDS {
            words[word] |= other[word] & mask(word, 0, bits);
            count += words[word].count_ones();
        }
        self.settle_count(count, bits);
    }

    /// The bits, written out.
    pub(super) fn to_words(&self, bits: u32) -> Words {
        match &self.words {
            Some(words) => **words,
            None => {
                let end = if self.count > 0 { bits } else { 0 };
                std::array::from_fn(|word| mask(word, 0, end))
            }
        }
    }

    pub(super) fn encode(&self, id: &PageId, bits: u32) -> Block {
        let mut raw = Raw::new_zeroed();
        raw.header = Header::new(BlockKind::Bitmap, id.disk, id.position());
        raw.peer = id.peer.0.into();
        raw.binding = id.binding.into();
        raw.set = self.count.into();
        raw.words = self.to_words(bits).map(U64::new);
        let mut block: Block = zerocopy::transmute!(raw);
        block::seal(&mut block);
        block
    }

    /// A page from disk; bits from `bits` on, left from when the volume was larger, are dropped.
    pub(crate) fn decode(id: &PageId, bits: u32, block: &Block) -> Result<Self, BlockError> {
        let header = block::open(block, BlockKind::Bitmap)?;
        header.belongs(id.disk, id.position())?;
        let raw: &Raw = zerocopy::transmute_ref!(block);
        let binding = raw.binding.get();
        if binding != id.binding {
            return Err(BlockError::OtherBinding {
                found: binding,
                expected: id.binding,
            });
        }
        let peer = DiskTag(raw.peer.get());
        if peer != id.peer {
            return Err(BlockError::OtherDisk {
                found: peer,
                expected: id.peer,
            });
        }
        let mut words = Box::new(raw.words.map(U64::get));
        let stored: u32 = words.iter().map(|word| word.count_ones()).sum();
        if stored != raw.set.get() {
            return Err(BlockError::Malformed { field: "set bits" });
        }
        let mut count = 0;
        for (at, word) in words.iter_mut().enumerate() {
            *word &= mask(at, 0, bits);
            count += word.count_ones();
        }
        let words = (count != 0 && count != bits).then_some(words);
        Ok(Self {
            words,
            count,
            unsaved: false,
            saving: false,
        })
    }
}

/// The first set bit from `from` on of words that a function gives.
fn scan(from: u32, word_at: impl Fn(usize) -> u64) -> Option<u32> {
    let first = from as usize / 64;
    if first >= WORDS {
        return None;
    }
    let mut word = word_at(first) & (u64::MAX << (from % 64));
    let mut at = first;
    while word == 0 {
        at += 1;
        if at == WORDS {
            return None;
        }
        word = word_at(at);
    }
    Some(u32::try_from(at).expect("a page's word") * 64 + word.trailing_zeros())
}
