//! On-disk formats and their structures in memory: superblock, activity log, bitmap.
//!
//! Pure: no I/O and no clock. The core asks these for blocks, has them written and tells them when
//! that is durable. Every metadata write is whole 4 KiB blocks at offsets that [`Layout`] gives.
//!
//! Creating a store, in this order, each step durable before the next: the bitmap regions of slots
//! that are bound with [`Blank::Clear`] read as zeroes; the ring of [`ActivityLog::create`], both
//! copies; the superblock, copy A, then copy B.

pub mod activity_log;
pub mod bitmap;
pub mod block;
pub mod dump;
pub mod layout;
pub mod relocation;
pub mod superblock;

pub use activity_log::{
    ActivityLog, Full, LogCapacity, Pin, Recovered, Repair, Transaction, Unusable, recover,
};
pub use bitmap::{BadExchange, Bitmap, Blank, PageBits, Run};
pub use block::{Block, BlockError, BlockKind, DiskTag, METADATA_BLOCK_BYTES};
pub use dump::{ReadAt, dump};
pub use layout::{
    DEFAULT_PEER_SLOTS, Layout, LayoutError, MAX_DATA_BYTES, MAX_EXTENTS, MAX_PEER_SLOTS, MetaCopy,
    Placement, extents_for, pages_for,
};
pub use superblock::{Chosen, IdentityLost, PeerSlot, Superblock, WrongStore, choose};
