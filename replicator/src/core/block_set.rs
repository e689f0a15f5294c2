//! A set of blocks of one volume: what is left to copy, what an earlier session left in the window.
//! Memory only where something is in it, and one word for a page that is in it as a whole, so that
//! "everything" is cheap.

use std::collections::BTreeMap;
use vocabulary::{BLOCK_BYTES, ByteRange};

/// Blocks of a page: 64 words of 64 bits, 16 MiB of the volume.
const PAGE_BLOCKS: u64 = 4096;
const WORDS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Page {
    Full,
    Some(Box<[u64; WORDS]>),
}

/// A set of blocks of 4 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockSet {
    pages: BTreeMap<u64, Page>,
    blocks: u64,
}

/// The bits of a word from `from` (incl.) to `to` (excl.).
const fn mask(from: u32, to: u32) -> u64 {
    let upper = if to >= 64 { u64::MAX } else { (1 << to) - 1 };
    upper & !((1 << from) - 1)
}

impl BlockSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Bytes of all blocks in the set.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Puts in every block that the range touches.
    pub(crate) fn insert(&mut self, range: ByteRange) {
        self.change(range.units(BLOCK_BYTES), true);
    }

    /// Takes out every block that the range covers whole.
    pub(crate) fn remove(&mut self, range: ByteRange) {
        let inner = range.inward(BLOCK_BYTES);
        self.change(inner.units(BLOCK_BYTES), false);
    }

    /// Puts in all of the other.
    pub(crate) fn union(&mut self, other: &Self) {
        for range in other.ranges() {
            self.insert(range);
        }
    }

    pub(crate) fn overlaps(&self, range: ByteRange) -> bool {
        !self.is_empty()
            && self
                .next(range.outward(BLOCK_BYTES).offset)
                .is_some_and(|run| run.overlaps(range))
    }

    fn change(&mut self, mut blocks: std::ops::Range<u64>, insert: bool) {
        if !insert {
            // Nothing to remove beyond the last page: "to the end" may be far away.
            let last = self.pages.last_key_value().map_or(0, |(last, _)| last + 1);
            blocks.end = blocks.end.min(last * PAGE_BLOCKS);
        }
        let mut block = blocks.start;
        while block < blocks.end {
            let number = block / PAGE_BLOCKS;
            let page_end = (number + 1) * PAGE_BLOCKS;
            let end = blocks.end.min(page_end);
            self.change_page(
                number,
                block % PAGE_BLOCKS,
                end - number * PAGE_BLOCKS,
                insert,
            );
            block = end;
        }
    }

    fn change_page(&mut self, number: u64, from: u64, to: u64, insert: bool) {
        let before = match self.pages.get(&number) {
            None => 0,
            Some(Page::Full) => PAGE_BLOCKS,
            Some(Page::Some(words)) => count(words),
        };
        if from == 0 && to == PAGE_BLOCKS {
            if insert {
                self.pages.insert(number, Page::Full);
                self.blocks += PAGE_BLOCKS - before;
            } else {
                self.pages.remove(&number);
                self.blocks -= before;
            }
            return;
        }
        if before == if insert { PAGE_BLOCKS } else { 0 } {
            return;
        }
        let page = self
            .pages
            .entry(number)
            .or_insert_with(|| Page::Some(Box::new([0; WORDS])));
        if matches!(page, Page::Full) {
            *page = Page::Some(Box::new([u64::MAX; WORDS]));
        }
        let Page::Some(words) = page else { return };
        for (word, base) in words.iter_mut().zip((0..).step_by(64)) {
            let (start, end) = (from.max(base), to.min(base + 64));
            if start >= end {
                continue;
            }
            let bits = mask(bit(start - base), bit(end - base));
            if insert {
                *word |= bits;
            } else {
                *word &= !bits;
            }
        }
        let after = count(words);
        self.blocks = self.blocks + after - before;
        if after == 0 {
            self.pages.remove(&number);
        } else if after == PAGE_BLOCKS {
            self.pages.insert(number, Page::Full);
        }
    }

    /// The first run of blocks at or after this offset (within one page or several full ones).
    pub(crate) fn next(&self, from: u64) -> Option<ByteRange> {
        let first = from.div_ceil(BLOCK_BYTES);
        let mut run: Option<(u64, u64)> = None;
        for (number, page) in self.pages.range(first / PAGE_BLOCKS..) {
            let base = number * PAGE_BLOCKS;
            if let Some((_, end)) = run
                && end != base
            {
                break;
            }
            match page {
                Page::Full => {
                    let start = run.map_or(base.max(first), |(start, _)| start);
                    run = Some((start, base + PAGE_BLOCKS));
                }
                Page::Some(words) => {
                    let skip = first.saturating_sub(base);
                    if let Some((start, _)) = run {
                        // A run that reached this page goes on while its first bits are set.
                        let end = base + run_length(words, 0);
                        run = Some((start, end));
                        break;
                    }
                    if let Some(at) = next_set(words, skip) {
                        run = Some((base + at, base + at + run_length(words, at)));
                        if !(base + at + run_length(words, at)).is_multiple_of(PAGE_BLOCKS) {
                            break;
                        }
                    }
                }
            }
        }
        run.map(|(start, end)| ByteRange::between(start * BLOCK_BYTES, end * BLOCK_BYTES))
    }

    /// All runs in ascending order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = ByteRange> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next(from)?;
            from = run.end();
            Some(run)
        })
    }
}

fn bit(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(64)
}

fn count(words: &[u64; WORDS]) -> u64 {
    words.iter().map(|w| u64::from(w.count_ones())).sum()
}

fn next_set(words: &[u64; WORDS], from: u64) -> Option<u64> {
    let mut index = usize::try_from(from / 64).ok()?;
    let mut keep = u64::MAX << (from % 64);
    while index < WORDS {
        let word = words[index] & keep;
        if word != 0 {
            return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
        }
        keep = u64::MAX;
        index += 1;
    }
    None
}

fn run_length(words: &[u64; WORDS], from: u64) -> u64 {
    let mut at = from;
    while at < PAGE_BLOCKS {
        let index = usize::try_from(at / 64).unwrap_or(WORDS - 1);
        let ones = u64::from((words[index] >> (at % 64)).trailing_ones());
        at += ones;
        if ones < 64 - (at - ones) % 64 {
            break;
        }
    }
    at - from
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn model_runs(model: &BTreeSet<u64>) -> Vec<ByteRange> {
        let mut runs: Vec<ByteRange> = Vec::new();
        for block in model {
            let start = block * BLOCK_BYTES;
            match runs.last_mut() {
                Some(last) if last.end() == start => last.len += BLOCK_BYTES,
                _ => runs.push(ByteRange::between(start, start + BLOCK_BYTES)),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_block_numbers(
            steps in prop::collection::vec((any::<bool>(), 0u64..3 * PAGE_BLOCKS, 1u64..6000), 1..40),
            probe in 0u64..3 * PAGE_BLOCKS,
        ) {
            let mut set = BlockSet::default();
            let mut model = BTreeSet::new();
            for (insert, start, len) in steps {
                let range = ByteRange::between(start * BLOCK_BYTES, (start + len) * BLOCK_BYTES);
                if insert {
                    set.insert(range);
                    model.extend(start..start + len);
                } else {
                    set.remove(range);
                    model.retain(|b| !(start..start + len).contains(b));
                }
            }
            prop_assert_eq!(set.bytes(), model.len() as u64 * BLOCK_BYTES);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.ranges().collect::<Vec<_>>(), model_runs(&model));
            let one = ByteRange::between(probe * BLOCK_BYTES + 5, probe * BLOCK_BYTES + 6);
            prop_assert_eq!(set.overlaps(one), model.contains(&probe));
        }
    }

    #[test]
    fn inserting_rounds_outwards_and_removing_inwards() {
        let mut set = BlockSet::default();
        set.insert(ByteRange::between(4095, 4097));
        assert_eq!(set.bytes(), 8192);
        set.remove(ByteRange::between(1, 8192));
        assert_eq!(
            set.ranges().collect::<Vec<_>>(),
            vec![ByteRange::between(0, 4096)]
        );
    }
}
