//! The activity log of a volume: which 4 MiB extents may hold writes that are not known to be stable
//! everywhere. It covers the window on disk (RULES 6): an extent is durably *hot* before the first
//! byte of a write goes to it, and leaves only when nothing of the window touches it (it is not
//! pinned) and its bitmap pages are on disk.
//!
//! This file is the table in memory and its transactions; `ring.rs` is the format on disk and the
//! recovery from it, `table.rs` the map and the list of idle extents.
//!
//! How a transaction goes: [`ActivityLog::begin`] (or [`ActivityLog::retire`]) gives the blocks to
//! write and the extents that leave. The caller first brings the leaving extents' bitmap pages to
//! disk, then writes the blocks, each to both copies of the ring, in any order; once all of that is
//! durable it calls [`ActivityLog::commit`]. One transaction is open at a time: misses that come
//! meanwhile are gathered for the next one. A write that fails makes the disk Failed (RULES 1), so
//! there is no way to take a transaction back.

mod ring;
mod table;

use std::collections::BTreeSet;

use thiserror::Error;
use vocabulary::Time;

use super::block::{Block, DiskTag};
use super::layout::MAX_EXTENTS;
use table::{NO_EXTENT, Table};

pub use ring::{Recovered, Repair, Unusable, recover};

/// Updates in one block of the ring.
pub const UPDATES_PER_BLOCK: usize = 64;

/// Slots whose contents each block of the ring repeats. With this many the largest log's table goes
/// round in 72 blocks.
pub const CONTEXT_PER_BLOCK: u32 = 912;

/// Most blocks in one transaction: what may be torn at a time, and so what the ring has besides a
/// whole round of the table.
pub const MAX_TRANSACTION_BLOCKS: u32 = 64;

/// Most extents that one transaction activates or retires.
pub const MAX_TRANSACTION_UPDATES: usize = UPDATES_PER_BLOCK * MAX_TRANSACTION_BLOCKS as usize;

/// Blocks in each copy of the ring of the largest log.
pub const MAX_RING_BLOCKS: u32 = LogCapacity::MAX.ring_blocks();

/// How many extents a log can hold: 1 to 65534, the range that DRBD's largest log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCapacity(u32);

impl LogCapacity {
    /// The largest log, and the default: 65534 extents, 256 GiB.
    pub const MAX: Self = Self(65534);

    /// The capacity, or `None` where there may be no log of this size.
    #[must_use]
    pub const fn new(extents: u32) -> Option<Self> {
        if extents >= 1 && extents <= Self::MAX.0 {
            Some(Self(extents))
        } else {
            None
        }
    }

    /// Extents.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Blocks after which each slot of the table was repeated once.
    #[must_use]
    pub const fn round_blocks(self) -> u32 {
        self.0.div_ceil(CONTEXT_PER_BLOCK)
    }

    /// Blocks in each copy of the ring: a whole round that no unfinished transaction overwrites.
    #[must_use]
    pub const fn ring_blocks(self) -> u32 {
        self.round_blocks() + MAX_TRANSACTION_BLOCKS
    }
}

impl Default for LogCapacity {
    fn default() -> Self {
        Self::MAX
    }
}

/// What [`ActivityLog::pin`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The extent is durably hot and is now pinned once more.
    Hot,
    /// The extent is not hot; nothing was pinned. It has to go through a transaction first.
    Cold,
    /// The extent becomes hot when the open transaction is committed; nothing was pinned.
    Pending,
}

/// The extents do not fit; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the activity log has room for {room} of these extents: all others are in use")]
pub struct Full {
    /// How many of the extents asked for could be activated now, from the first.
    pub room: usize,
}

/// Changes of the log on their way to disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the log is blocked until the transaction is committed"]
pub struct Transaction {
    first: u64,
    /// Extents that leave the log: their bitmap pages have to be durable before a block is written.
    pub evicted: Vec<u32>,
    /// Extents that are hot once the transaction is committed.
    pub activated: Vec<u32>,
    /// The blocks: index in the ring and contents. Each goes to both copies of the ring.
    pub blocks: Vec<(u32, Block)>,
}

/// What the open transaction changes.
#[derive(Clone, Debug)]
struct Open {
    first: u64,
    activated: Vec<u32>,
    retired: Vec<u32>,
}

/// The activity log of one volume in memory. Extents are numbers of 4 MiB units of the volume.
#[derive(Clone, Debug)]
pub struct ActivityLog {
    disk: DiskTag,
    generation: u64,
    capacity: LogCapacity,
    next_number: u64,
    table: Table,
    open: Option<Open>,
}

impl ActivityLog {
    /// An empty log, and the blocks to write, durably and to both copies, before the superblock
    /// names `generation`. Each log that is created on a disk needs another generation.
    #[must_use]
    pub fn create(
        disk: DiskTag,
        generation: u64,
        capacity: LogCapacity,
    ) -> (Self, Vec<(u32, Block)>) {
        let round = u64::from(capacity.round_blocks());
        let log = Self {
            disk,
            generation,
            capacity,
            next_number: round,
            table: Table::new(capacity.get()),
            open: None,
        };
        let blocks = (0..round)
            .map(|number| log.ring_block(number, number, 1, &[]))
            .collect();
        (log, blocks)
    }

    /// Extents that the log can hold.
    #[must_use]
    pub const fn capacity(&self) -> LogCapacity {
        self.capacity
    }

    /// Is a transaction open?
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Keeps the extent hot until it is unpinned, if it is hot.
    #[inline]
    pub fn pin(&mut self, extent: u32) -> Pin {
        match self.table.find(extent) {
            None => Pin::Cold,
            Some(slot) if self.table.is_pending(slot) => Pin::Pending,
            Some(slot) => {
                self.table.pin(slot);
                Pin::Hot
            }
        }
    }

    /// Takes back one [`Pin::Hot`]; with the last one the extent is idle from `now` on.
    ///
    /// # Panics
    /// Where the extent is not pinned: the caller has lost count, and the window is not covered.
    #[inline]
    pub fn unpin(&mut self, extent: u32, now: Time) {
        let slot = self
            .table
            .find(extent)
            .expect("RULES 6: a pinned extent stays in the log");
        self.table.unpin(slot, now);
    }

    /// Is the extent durably hot, and not on its way out?
    #[must_use]
    pub fn is_hot(&self, extent: u32) -> bool {
        self.table
            .find(extent)
            .is_some_and(|slot| !self.table.is_pending(slot))
    }

    /// The extents that are durably hot and not on their way out, in no particular order (but the
    /// same for the same history).
    pub fn hot_extents(&self) -> impl Iterator<Item = u32> {
        self.table.extents()
    }

    /// Opens a transaction that activates these extents: first in free slots, then in place of those
    /// that have been idle for longest. Extents that are hot already, and repeated ones, are passed
    /// over (and, not being pinned, may be what others replace); `None` where nothing is left to do.
    ///
    /// # Errors
    /// [`Full`] where too many extents are pinned, or the transaction would be too large.
    ///
    /// # Panics
    /// Where a transaction is open, or an extent is not below [`MAX_EXTENTS`].
    pub fn begin(&mut self, cold: &[u32]) -> Result<Option<Transaction>, Full> {
        assert!(
            self.open.is_none(),
            "one activity log transaction at a time"
        );
        let room = self.table.room().min(MAX_TRANSACTION_UPDATES);
        let mut wanted = Vec::with_capacity(cold.len());
        let mut seen = BTreeSet::new();
        for (at, extent) in cold.iter().enumerate() {
            assert!(
                *extent < MAX_EXTENTS,
                "extent {extent} is beyond the largest volume"
            );
            if self.table.find(*extent).is_some() || !seen.insert(*extent) {
                continue;
            }
            if wanted.len() == room {
                return Err(Full { room: at });
            }
            wanted.push(*extent);
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut updates = Vec::with_capacity(wanted.len());
        let mut evicted = Vec::new();
        for extent in &wanted {
            let (slot, old) = self.table.replace_idlest(*extent);
            evicted.extend(old);
            updates.push((slot, *extent));
        }
        Ok(Some(self.open(&updates, evicted, wanted, Vec::new())))
    }

    /// Opens a transaction that takes out up to `max` extents (and no more than a transaction holds)
    /// that have been idle since before `idle_before`, longest idle first; `None` where there are
    /// none.
    ///
    /// # Panics
    /// Where a transaction is open.
    pub fn retire(&mut self, idle_before: Time, max: usize) -> Option<Transaction> {
        assert!(
            self.open.is_none(),
            "one activity log transaction at a time"
        );
        let mut updates = Vec::new();
        let mut evicted = Vec::new();
        let mut retired = Vec::new();
        while updates.len() < max.min(MAX_TRANSACTION_UPDATES) {
            let Some((slot, extent)) = self.table.take_idle(idle_before) else {
                break;
            };
            updates.push((slot, NO_EXTENT));
            evicted.push(extent);
            retired.push(slot);
        }
        if updates.is_empty() {
            return None;
        }
        Some(self.open(&updates, evicted, Vec::new(), retired))
    }

    /// The transaction is durable, both copies of every block: its extents are hot, idle from `now`
    /// on until they are pinned.
    ///
    /// # Panics
    /// Where this is not the open transaction.
    pub fn commit(&mut self, transaction: Transaction, now: Time) {
        let open = self
            .open
            .take()
            .expect("a transaction that is committed was begun");
        assert_eq!(
            open.first, transaction.first,
            "only the open transaction can be committed"
        );
        for extent in open.activated {
            self.table.activate(extent, now);
        }
        for slot in open.retired {
            self.table.free(slot);
        }
    }

    fn open(
        &mut self,
        updates: &[(u32, u32)],
        evicted: Vec<u32>,
        activated: Vec<u32>,
        retired: Vec<u32>,
    ) -> Transaction {
        let first = self.next_number;
        let chunks = updates.chunks(UPDATES_PER_BLOCK);
        let count = u32::try_from(chunks.len()).expect("bounded by MAX_TRANSACTION_UPDATES");
        let blocks = (first..)
            .zip(chunks)
            .map(|(number, chunk)| self.ring_block(number, first, count, chunk))
            .collect();
        self.next_number += u64::from(count);
        self.open = Some(Open {
            first,
            activated: activated.clone(),
            retired,
        });
        Transaction {
            first,
            evicted,
            activated,
            blocks,
        }
    }

    fn ring_block(
        &self,
        number: u64,
        first: u64,
        count: u32,
        updates: &[(u32, u32)],
    ) -> (u32, Block) {
        ring::encode(
            &ring::Log {
                disk: self.disk,
                generation: self.generation,
                capacity: self.capacity,
            },
            &ring::Entry {
                number,
                first,
                count,
                updates,
            },
            |slot| self.table.extent_in(slot),
        )
    }
}

#[cfg(test)]
mod tests;
