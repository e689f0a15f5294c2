//! A slot's bits on their way to another node, page by page: as runs where that is shorter, else as
//! they are. What arrives is OR-ed in (RULES 7); it is another node's word and is checked.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vocabulary::ByteRange;

use super::page::{BITS_PER_PAGE, Words};
use super::{Bitmap, bits_in};

/// Runs beyond which a page is sent as it is: what takes 3968 bytes, at four bytes a run.
const MAX_RUNS: usize = BITS_PER_PAGE as usize / 8 / 4;

/// Set bits of a page that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first bit.
    pub first: u16,
    /// How many.
    pub len: u16,
}

/// The bits of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageBits {
    /// The runs of set bits.
    Runs(Vec<Run>),
    /// The bits as they are on disk: 3968 bytes.
    Raw(Vec<u8>),
}

/// Why a page from another node is refused. Nothing of it was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadExchange {
    /// The volume has no such page.
    #[error("bitmap page {page}: the volume has {pages}")]
    NoSuchPage {
        /// The page sent.
        page: u32,
        /// Pages of the volume.
        pages: u32,
    },
    /// A run goes beyond the page.
    #[error("a run of {len} bits from bit {first} does not fit a bitmap page")]
    BadRun {
        /// The run's first bit.
        first: u16,
        /// Its length.
        len: u16,
    },
    /// A page as it is has another length.
    #[error("a bitmap page of {bytes} bytes: it has 3968")]
    BadLength {
        /// Bytes sent.
        bytes: usize,
    },
}

impl Bitmap {
    /// The pages of a slot that have a set bit, in ascending order.
    pub fn export(&self, slot: u8) -> impl Iterator<Item = (u32, PageBits)> {
        (0u32..)
            .zip(&self.slot(slot).pages)
            .filter(|(_, page)| page.count() > 0)
            .map(|(number, page)| {
                let bits = bits_in(number, self.blocks);
                let mut runs = Vec::new();
                let mut from = 0;
                while let Some(first) = page.next_set(from) {
                    if runs.len() == MAX_RUNS {
                        let words = page.to_words(bits);
                        let raw = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                        return (number, PageBits::Raw(raw));
                    }
                    let end = page.next_clear(first).unwrap_or(BITS_PER_PAGE);
                    let narrow = |bit: u32| u16::try_from(bit).expect("a page's bit");
                    runs.push(Run {
                        first: narrow(first),
                        len: narrow(end - first),
                    });
                    from = end;
                }
                (number, PageBits::Runs(runs))
            })
    }

    /// Sets the bits that another node's page has set; bits beyond the volume's end are passed over.
    ///
    /// # Errors
    /// [`BadExchange`].
    pub fn import(&mut self, slot: u8, page: u32, bits: &PageBits) -> Result<(), BadExchange> {
        let blocks = self.blocks;
        let slot = self.slot_mut(slot);
        let pages = u32::try_from(slot.pages.len()).expect("pages fit in 32 bits");
        if page >= pages {
            return Err(BadExchange::NoSuchPage { page, pages });
        }
        let valid = bits_in(page, blocks);
        match bits {
            PageBits::Runs(runs) => {
                let end = |run: &Run| u32::from(run.first) + u32::from(run.len);
                if let Some(bad) = runs.iter().find(|run| end(run) > BITS_PER_PAGE) {
                    return Err(BadExchange::BadRun {
                        first: bad.first,
                        len: bad.len,
                    });
                }
                slot.change(page, |page| {
                    for run in runs {
                        page.set(u32::from(run.first), end(run).min(valid), valid);
                    }
                });
            }
            PageBits::Raw(bytes) => {
                let (words, rest) = bytes.as_chunks::<8>();
                let bad = BadExchange::BadLength { bytes: bytes.len() };
                let words: &Words = match words.len() {
                    _ if !rest.is_empty() => return Err(bad),
                    _ => &<[[u8; 8]; _]>::try_from(words)
                        .map_err(|_| bad)?
                        .map(u64::from_le_bytes),
                };
                slot.change(page, |page| page.union(words, valid));
            }
        }
        Ok(())
    }

    /// All of the volume as one range: for peers whose disk is not known.
    #[must_use]
    pub fn whole(&self) -> ByteRange {
        ByteRange::between(0, self.data_bytes)
    }
}
