//! The activity log on disk: its blocks and how the table is rebuilt from the ring.
//!
//! The ring is a row of blocks, kept twice (copies A and B, with the same bytes). Blocks are numbered
//! from 0 for ever; number n lies at index n mod the ring's length. Each block holds changes of slots
//! and, in turn, the contents of a part of the table, so that any whole round of blocks rebuilds all
//! of it. Layout, little endian; the first 32 bytes are the header that every metadata block has
//! (`block.rs`), its position is the index.
//!
//! | offset | bytes | field         | meaning                                                      |
//! |-------:|------:|---------------|--------------------------------------------------------------|
//! |     32 |     8 | number        | the block's number                                           |
//! |     40 |     8 | generation    | the log that it belongs to, as the superblock names it       |
//! |     48 |     8 | first         | number of the first block of its transaction                 |
//! |     56 |     2 | count         | blocks of its transaction                                    |
//! |     58 |     2 | updates       | how many of the updates are used                             |
//! |     60 |     2 | context start | first slot of the context                                    |
//! |     62 |     2 | context count | how many slots the context has                               |
//! |     64 |   384 | update        | 64 entries: slot (2 bytes), its new extent (4 bytes)         |
//! |    448 |  3648 | context       | 912 extents: what the slots hold after the transaction       |
//!
//! Extent 0xffffffff stands for none; unused entries are zero.
//!
//! **Recovery.** The last transaction may be unfinished: some of its blocks are missing or torn. It
//! was never acknowledged, so it does not matter which of its changes are found: an extent that it
//! activates was not written yet, one that it evicts has its bitmap pages on disk. Every older block
//! of the round that is needed must be good in one of the copies; otherwise the log is unusable, and
//! the caller has to take the whole volume for hot. So one bad sector never loses an extent; two, in
//! both copies of the very last block, can't be told from a transaction that was not finished. Copies
//! that are not good are written again, blocks that the unfinished transaction lacks with the
//! recovered table as context: after that the ring has no gap, and a crash in the middle of it changes
//! nothing.

use thiserror::Error;
use vocabulary::Time;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::table::{NO_EXTENT, Table};
use super::{
    ActivityLog, CONTEXT_PER_BLOCK, LogCapacity, MAX_TRANSACTION_BLOCKS, UPDATES_PER_BLOCK,
};
use crate::store::block::{self, Block, BlockError, BlockKind, DiskTag, HEADER_BYTES, Header};
use crate::store::layout::{MAX_EXTENTS, MetaCopy};

/// Numbers beyond this are not believed: at a million blocks a second the log would have run for
/// a hundred thousand years.
const MAX_NUMBER: u64 = 1 << 62;

/// Why the hot extents can't be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// No block of this log was found.
    #[error("the activity log's ring holds no block of this log")]
    Empty,
    /// A block that is needed is bad in both copies.
    #[error("block {number} of the activity log, of a finished transaction, is bad in both copies")]
    Hole {
        /// The block's number.
        number: u64,
    },
    /// A newer program wrote the ring: refuse the disk.
    #[error("the activity log has format version {found}; this program knows up to {known}")]
    NewerVersion {
        /// The newer block's version.
        found: u16,
        /// The newest version known here.
        known: u16,
    },
}

/// What the ring told.
#[derive(Debug)]
pub struct Recovered {
    /// The log, with every recovered extent idle.
    pub log: ActivityLog,
    /// Blocks that have to be durable before the log is used.
    pub repair: Vec<Repair>,
}

/// A block of one copy of the ring that is bad, missing or older than the other copy's. Only the bad
/// copy is written, so that a torn repair can't lose the good one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The copy to write to.
    pub copy: MetaCopy,
    /// Index in the ring.
    pub index: u32,
    /// What to write.
    pub block: Block,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Update {
    slot: U16,
    extent: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    header: Header,
    number: U64,
    generation: U64,
    first: U64,
    count: U16,
    update_count: U16,
    context_start: U16,
    context_count: U16,
    updates: [Update; UPDATES_PER_BLOCK],
    context: [U32; CONTEXT_PER_BLOCK as usize],
}

const _: () = {
    assert!(size_of::<Raw>() == block::METADATA_BLOCK_BYTES);
    assert!(std::mem::offset_of!(Raw, number) == HEADER_BYTES);
    assert!(std::mem::offset_of!(Raw, updates) == 64);
    assert!(std::mem::offset_of!(Raw, context) == 448);
};

/// Which log a block belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Log {
    pub(super) disk: DiskTag,
    pub(super) generation: u64,
    pub(super) capacity: LogCapacity,
}

/// What is in a block besides the context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) number: u64,
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) updates: &'a [(u32, u32)],
}

impl Log {
    fn index(&self, number: u64) -> u32 {
        u32::try_from(number % u64::from(self.capacity.ring_blocks())).expect("a ring's index")
    }

    /// The slots whose contents this block repeats.
    fn context(&self, number: u64) -> std::ops::Range<u32> {
        let round = u64::from(self.capacity.round_blocks());
        let part = u32::try_from(number % round).expect("less than a round");
        let width = CONTEXT_PER_BLOCK;
        part * width..((part + 1) * width).min(self.capacity.get())
    }
}

fn narrow(number: u32) -> U16 {
    U16::new(u16::try_from(number).expect("slots and counts fit in 16 bits"))
}

fn narrow_len(len: usize) -> U16 {
    U16::new(u16::try_from(len).expect("counts of a block fit in 16 bits"))
}

pub(super) fn encode(log: &Log, entry: &Entry<'_>, extent_in: impl Fn(u32) -> u32) -> (u32, Block) {
    let index = log.index(entry.number);
    let mut raw = Raw::new_zeroed();
    raw.header = Header::new(BlockKind::ActivityLog, log.disk, u64::from(index));
    raw.number = entry.number.into();
    raw.generation = log.generation.into();
    raw.first = entry.first.into();
    raw.count = narrow(entry.count);
    raw.update_count = narrow_len(entry.updates.len());
    for (raw, (slot, extent)) in raw.updates.iter_mut().zip(entry.updates) {
        *raw = Update {
            slot: narrow(*slot),
            extent: (*extent).into(),
        };
    }
    let context = log.context(entry.number);
    raw.context_start = narrow(context.start);
    raw.context_count = narrow_len(context.len());
    for (raw, slot) in raw.context.iter_mut().zip(context) {
        *raw = extent_in(slot).into();
    }
    let mut block: Block = zerocopy::transmute!(raw);
    block::seal(&mut block);
    (index, block)
}

/// A good block of another log (an older generation) is `None`.
fn decode<'a>(log: &Log, index: u32, block: &'a Block) -> Result<Option<&'a Raw>, BlockError> {
    let header = block::open(block, BlockKind::ActivityLog)?;
    header.belongs(log.disk, u64::from(index))?;
    let raw: &Raw = zerocopy::transmute_ref!(block);
    if raw.generation.get() != log.generation {
        return Ok(None);
    }
    let malformed = |field| Err(BlockError::Malformed { field });
    let number = raw.number.get();
    if number > MAX_NUMBER || log.index(number) != index {
        return malformed("number");
    }
    if !(1..=MAX_TRANSACTION_BLOCKS).contains(&u32::from(raw.count.get())) {
        return malformed("count");
    }
    if !(raw.first.get()..raw.last_end()).contains(&number) {
        return malformed("first");
    }
    if usize::from(raw.update_count.get()) > UPDATES_PER_BLOCK {
        return malformed("updates");
    }
    let context = log.context(number);
    if u32::from(raw.context_start.get()) != context.start {
        return malformed("context start");
    }
    if usize::from(raw.context_count.get()) != context.len() {
        return malformed("context count");
    }
    let fits = |extent: u32| extent < MAX_EXTENTS || extent == NO_EXTENT;
    for (slot, extent) in raw.used_updates() {
        if slot >= log.capacity.get() || !fits(extent) {
            return malformed("update");
        }
    }
    if !raw.used_context().all(|(_, extent)| fits(extent)) {
        return malformed("context");
    }
    Ok(Some(raw))
}

impl Raw {
    /// One more than the number of the last block of the transaction.
    fn last_end(&self) -> u64 {
        self.first.get().saturating_add(u64::from(self.count.get()))
    }

    fn used_updates(&self) -> impl Iterator<Item = (u32, u32)> {
        self.updates
            .iter()
            .take(usize::from(self.update_count.get()))
            .map(|update| (u32::from(update.slot.get()), update.extent.get()))
    }

    fn used_context(&self) -> impl Iterator<Item = (u32, u32)> {
        (u32::from(self.context_start.get())..)
            .zip(&self.context)
            .take(usize::from(self.context_count.get()))
            .map(|(slot, extent)| (slot, extent.get()))
    }

    fn apply(&self, slots: &mut [u32]) {
        for (slot, extent) in self.used_updates().chain(self.used_context()) {
            slots[slot as usize] = extent;
        }
    }
}

/// The good blocks at one index: at most one of each copy.
#[derive(Clone, Copy)]
struct Place<'a> {
    raw: &'a Raw,
    block: &'a Block,
    copies: [&'a Block; 2],
}

impl Place<'_> {
    /// The copies that do not hold this block, to be written.
    fn repair(&self, index: u32) -> impl Iterator<Item = Repair> {
        MetaCopy::BOTH
            .into_iter()
            .zip(self.copies)
            .filter(|(_, bytes)| *bytes != self.block)
            .map(move |(copy, _)| Repair {
                copy,
                index,
                block: *self.block,
            })
    }
}

/// What the two copies of a block are worth together: the one with the higher number.
fn place<'a>(log: &Log, index: u32, copies: [&'a Block; 2]) -> Result<Option<Place<'a>>, Unusable> {
    let mut best: Option<Place<'a>> = None;
    for block in copies {
        match decode(log, index, block) {
            Ok(Some(raw)) => {
                if best.is_none_or(|best| best.raw.number.get() < raw.number.get()) {
                    best = Some(Place { raw, block, copies });
                }
            }
            Err(BlockError::NewerVersion { found, known }) => {
                return Err(Unusable::NewerVersion { found, known });
            }
            Ok(None) | Err(_) => {}
        }
    }
    Ok(best)
}

/// Rebuilds a log from the two copies of its ring, each [`LogCapacity::ring_blocks`] long (a copy
/// that is shorter lacks its last blocks). Write [`Recovered::repair`] before the log is used.
///
/// # Errors
/// [`Unusable`]: the caller takes every extent for hot (sets all bits) and creates a new log, or
/// refuses the disk if it was written by a newer program.
pub fn recover(
    copies: [&[Block]; 2],
    disk: DiskTag,
    generation: u64,
    capacity: LogCapacity,
    now: Time,
) -> Result<Recovered, Unusable> {
    const MISSING: &Block = &[0; block::METADATA_BLOCK_BYTES];
    let log = Log {
        disk,
        generation,
        capacity,
    };
    let ring = (0..capacity.ring_blocks())
        .map(|index| {
            let copies = copies.map(|copy| copy.get(index as usize).unwrap_or(MISSING));
            place(&log, index, copies)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let at = |number: u64| {
        ring[log.index(number) as usize].filter(|place| place.raw.number.get() == number)
    };

    let newest = ring
        .iter()
        .flatten()
        .max_by_key(|place| place.raw.number.get())
        .ok_or(Unusable::Empty)?;
    let (first, end) = (newest.raw.first.get(), newest.raw.last_end());
    let finished = (first..end).all(|number| at(number).is_some());
    let round = u64::from(capacity.round_blocks());
    let needed_end = if finished { end } else { first };
    let start = needed_end
        .checked_sub(round)
        .ok_or(Unusable::Hole { number: 0 })?;

    let mut slots = vec![NO_EXTENT; capacity.get() as usize];
    let mut repair = Vec::new();
    for number in start..needed_end {
        let place = at(number).ok_or(Unusable::Hole { number })?;
        place.raw.apply(&mut slots);
        repair.extend(place.repair(log.index(number)));
    }
    for place in (needed_end..end).filter_map(at) {
        place.raw.apply(&mut slots);
    }
    let count = u32::from(newest.raw.count.get());
    for number in needed_end..end {
        match at(number) {
            Some(place) => repair.extend(place.repair(log.index(number))),
            None => {
                let entry = Entry {
                    number,
                    first,
                    count,
                    updates: &[],
                };
                let (index, block) = encode(&log, &entry, |slot| slots[slot as usize]);
                repair.extend(MetaCopy::BOTH.map(|copy| Repair { copy, index, block }));
            }
        }
    }

    let log = ActivityLog {
        disk,
        generation,
        capacity,
        next_number: end,
        table: Table::with(&slots, now),
        open: None,
    };
    Ok(Recovered { log, repair })
}
