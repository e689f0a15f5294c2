//! The superblock of a volume's replica: what this disk is, and the promises that its node made
//! (RULES 2, 3 and 11). Encodes, decodes and chooses between the two copies; when they are written
//! is the core's business: A, then B once A is durable, both before the answer.
//!
//! Layout, little endian; the first 32 bytes are the header that every metadata block has
//! (`block.rs`), its position is 0 in copy A and 1 in copy B.
//!
//! | offset | bytes | field           | meaning                                                   |
//! |-------:|------:|-----------------|-----------------------------------------------------------|
//! |     32 |    16 | cluster         | [`ClusterId`]                                             |
//! |     48 |    16 | resource        | [`ResourceId`]                                            |
//! |     64 |    16 | disk            | [`DiskId`]; the header's tag is its hash                  |
//! |     80 |    16 | boot id         | the kernel's boot id when the disk was last opened        |
//! |     96 |    16 | history         | [`HistoryId`] that the contents belong to                 |
//! |    112 |     8 | incarnation     | [`Incarnation`]                                           |
//! |    120 |     8 | epoch           | highest [`Epoch`] promised (RULES 2)                      |
//! |    128 |     8 | data bytes      | size of the volume on this disk                           |
//! |    136 |     8 | device bytes    | internal: device size of the layout; external: 0          |
//! |    144 |     8 | version count   | counts the writes of the superblock                       |
//! |    152 |     8 | ring generation | generation of the activity log's ring                     |
//! |    160 |     4 | log capacity    | extents that the activity log can hold                    |
//! |    164 |     2 | volume          | [`VolumeId`]                                              |
//! |    166 |     1 | node            | [`NodeId`]                                                |
//! |    167 |     1 | placement       | 1 external, 2 internal                                    |
//! |    168 |     4 | flags           | 1 open, 2 created empty, 4 never written, 8 whole window, |
//! |        |       |                 | 16 failed                                                |
//! |    172 |     1 | slots           | peer slots of the layout (external: 31)                   |
//! |    173 |     3 | reserved        | zero                                                      |
//! |    176 |     8 | bindings        | highest number that a slot's binding had, see below       |
//! |    184 |     8 | reserved        | zero                                                      |
//! |    192 |   992 | peers           | 31 entries of 32 bytes, below                             |
//! |   1184 |  2912 | reserved        | zero                                                      |
//!
//! | offset | bytes | field of a peer | meaning                                                   |
//! |-------:|------:|-----------------|-----------------------------------------------------------|
//! |      0 |    16 | disk            | the peer's [`DiskId`]; 0 where the slot is free           |
//! |     16 |     1 | node            | the peer's [`NodeId`]                                     |
//! |     17 |     1 | state           | 0 free, 1 bound and blank pages are clear, 2 bound and blank pages are set |
//! |     18 |     6 | reserved        | zero                                                      |
//! |     24 |     8 | binding         | number of this binding; pages of another are not the slot's |
//!
//! **Bindings.** A slot may be given up and bound again to the same disk; pages left from before
//! must not count. So each binding has a number that no other has, though a binding (and pages of it)
//! may be on disk while the superblock that names it is not: [`Superblock::begin_session`] raises the
//! counter by a whole range, durably, before the disk is used, and a session takes its numbers from
//! its range.

use thiserror::Error;
use vocabulary::{ClusterId, DiskId, Epoch, HistoryId, Incarnation, NodeId, ResourceId, VolumeId};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::activity_log::LogCapacity;
use super::bitmap::Blank;
use super::block::{self, Block, BlockError, BlockKind, DiskTag, HEADER_BYTES, Header};
use super::layout::{Layout, LayoutError, MAX_DATA_BYTES, MAX_PEER_SLOTS, MetaCopy, Placement};

const SLOTS: usize = MAX_PEER_SLOTS as usize;

const EXTERNAL: u8 = 1;
const INTERNAL: u8 = 2;
const OPEN: u32 = 1;
const CREATED_EMPTY: u32 = 2;
const NEVER_WRITTEN: u32 = 4;
const WHOLE_WINDOW: u32 = 8;
const FAILED: u32 = 16;
const BLANK_CLEAR: u8 = 1;
const BLANK_SET: u8 = 2;

/// Binding numbers in the range of one session: more than a session binds, and 2^40 sessions.
const SESSION_BINDINGS: u64 = 1 << 24;

/// A higher number was never reached: sums with it do not overflow.
const MAX_BINDINGS: u64 = 1 << 62;

/// The peer whose bitmap a slot holds. Bits belong to the disk, not to the node (RULES 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSlot {
    /// The peer's node.
    pub node: NodeId,
    /// The peer's disk.
    pub disk: DiskId,
    /// What a page of the slot that was never written means.
    pub blank: Blank,
    /// Number of the binding, never used before: see [`Superblock::bind`].
    pub binding: u64,
}

/// What a replica's disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster that the disk belongs to.
    pub cluster: ClusterId,
    /// The resource that it is a replica of.
    pub resource: ResourceId,
    /// The resource's volume.
    pub volume: VolumeId,
    /// The node that made it.
    pub node: NodeId,
    /// Its own identity.
    pub disk: DiskId,
    /// Raised when the disk's caches may have been lost.
    pub incarnation: Incarnation,
    /// Highest epoch that was promised (RULES 2).
    pub epoch: Epoch,
    /// The history that the contents belong to.
    pub history: HistoryId,
    /// The kernel's boot id when the disk was last opened.
    pub boot_id: u128,
    /// Opened and not closed cleanly since.
    pub open: bool,
    /// Lockstep itself created the store, and it read as zeroes everywhere.
    pub created_empty: bool,
    /// No write has reached the volume yet.
    pub never_written: bool,
    /// The activity log was lost: until this is settled the whole volume counts as written.
    pub whole_window: bool,
    /// A write or flush failed since the disk was attached: what its caches held may be lost.
    pub failed: bool,
    /// Size of the volume on this disk in bytes.
    pub data_bytes: u64,
    /// Where the metadata lies.
    pub placement: Placement,
    /// Peer slots of the layout ([`MAX_PEER_SLOTS`] for external metadata).
    pub slots: u8,
    /// Extents that the activity log can hold.
    pub log_capacity: LogCapacity,
    /// Generation of the activity log's ring: blocks of another one are not the log's. A log that is
    /// created anew gets the next one; its ring is durable before the superblock that names it.
    pub ring_generation: u64,
    /// The highest number that a binding of a slot had.
    pub bindings: u64,
    /// Whose bits each slot holds.
    pub peers: [Option<PeerSlot>; SLOTS],
    /// Raised with each write of the superblock; of two good copies the higher one is used.
    pub version_count: u64,
}

/// An identity that a store was expected to have and does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WrongStore {
    /// Of another cluster.
    #[error("the store belongs to cluster {found}, not to {expected}")]
    Cluster {
        /// The superblock's.
        found: ClusterId,
        /// The one asked for.
        expected: ClusterId,
    },
    /// Of another resource.
    #[error("the store belongs to resource {found}, not to {expected}")]
    Resource {
        /// The superblock's.
        found: ResourceId,
        /// The one asked for.
        expected: ResourceId,
    },
    /// Of another volume of the resource.
    #[error("the store holds volume {found}, not {expected}")]
    Volume {
        /// The superblock's.
        found: VolumeId,
        /// The one asked for.
        expected: VolumeId,
    },
    /// Of another node.
    #[error("the store belongs to node {found}, not to {expected}")]
    Node {
        /// The superblock's.
        found: NodeId,
        /// The one asked for.
        expected: NodeId,
    },
    /// Another disk than the one that was there: replaced, or restored from a copy.
    #[error("the store is disk {found}, not {expected}")]
    Disk {
        /// The superblock's.
        found: DiskId,
        /// The one asked for.
        expected: DiskId,
    },
    /// The internal metadata was laid out for a device of another size.
    #[error("the metadata was made for a device of {found} bytes, the device has {expected}")]
    DeviceSize {
        /// The superblock's.
        found: u64,
        /// The device's.
        expected: u64,
    },
}

/// Why there is no superblock to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityLost {
    /// Neither copy is good: this disk's promises are lost (RULES 11).
    #[error("no usable superblock: copy A: {a}; copy B: {b}")]
    BothBad {
        /// What copy A is.
        a: BlockError,
        /// What copy B is.
        b: BlockError,
    },
    /// A newer program wrote at least one copy: refuse the disk, it may have promised more.
    #[error(
        "a copy of the superblock has format version {found}; this program knows up to {known}"
    )]
    NewerVersion {
        /// The newer copy's version.
        found: u16,
        /// The newest version known here.
        known: u16,
    },
    /// Two good copies that can't both be this disk's.
    #[error(
        "the two superblock copies contradict each other: disks {a} and {b}, writes {a_count} and {b_count}"
    )]
    Contradiction {
        /// The disk id in copy A.
        a: DiskId,
        /// The disk id in copy B.
        b: DiskId,
        /// The version count of copy A.
        a_count: u64,
        /// The version count of copy B.
        b_count: u64,
    },
}

/// The superblock in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// What it says.
    pub superblock: Superblock,
    /// The copy that has to be written again, durably, before anything is done in its name.
    pub rewrite: Option<MetaCopy>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPeer {
    disk: U128,
    node: u8,
    state: u8,
    reserved: [u8; 6],
    binding: U64,
}

const _: () = assert!(size_of::<RawPeer>() == 32);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    header: Header,
    cluster: U128,
    resource: U128,
    disk: U128,
    boot_id: U128,
    history: U128,
    incarnation: U64,
    epoch: U64,
    data_bytes: U64,
    device_bytes: U64,
    version_count: U64,
    ring_generation: U64,
    log_capacity: U32,
    volume: U16,
    node: u8,
    placement: u8,
    flags: U32,
    slots: u8,
    reserved: [u8; 3],
    bindings: U64,
    reserved_too: [u8; 8],
    peers: [RawPeer; SLOTS],
    reserved_end: [u8; 2912],
}

const _: () = {
    assert!(size_of::<Raw>() == block::METADATA_BLOCK_BYTES);
    assert!(std::mem::offset_of!(Raw, cluster) == HEADER_BYTES);
    assert!(std::mem::offset_of!(Raw, peers) == 192);
    assert!(std::mem::offset_of!(Raw, reserved_end) == 1184);
};

impl Superblock {
    /// The layout of this store's metadata.
    ///
    /// # Errors
    /// [`LayoutError`] where the superblock's sizes make none; never for a decoded superblock.
    pub fn layout(&self) -> Result<Layout, LayoutError> {
        match self.placement {
            Placement::External => Ok(Layout::external()),
            Placement::Internal { device_bytes } => Layout::internal(device_bytes, self.slots),
        }
    }

    /// The tag that every other metadata block of this disk carries.
    #[must_use]
    pub fn tag(&self) -> DiskTag {
        DiskTag::of(self.disk)
    }

    /// The slot that holds a disk's bits.
    #[must_use]
    pub fn slot_of(&self, disk: DiskId) -> Option<u8> {
        (0..MAX_PEER_SLOTS)
            .find(|slot| self.peers[usize::from(*slot)].is_some_and(|peer| peer.disk == disk))
    }

    /// A slot that nobody's bits are in, within the layout's slots.
    #[must_use]
    pub fn free_slot(&self) -> Option<u8> {
        (0..self.slots.min(MAX_PEER_SLOTS)).find(|slot| self.peers[usize::from(*slot)].is_none())
    }

    /// To be called once when the disk is opened: the superblock has to be durable, both copies, before
    /// a slot is bound or a page is written.
    pub fn begin_session(&mut self) {
        self.bindings = (self.bindings / SESSION_BINDINGS)
            .saturating_add(1)
            .saturating_mul(SESSION_BINDINGS);
    }

    /// Binds a slot to a disk under a new number, in place of what was in it. The superblock has to
    /// be written; the bitmap's slot is opened with what is returned.
    ///
    /// # Panics
    /// Where there is no such slot.
    pub fn bind(&mut self, slot: u8, node: NodeId, disk: DiskId, blank: Blank) -> PeerSlot {
        self.bindings += 1;
        let peer = PeerSlot {
            node,
            disk,
            blank,
            binding: self.bindings,
        };
        self.peers[usize::from(slot)] = Some(peer);
        peer
    }

    /// Refuses the store of another cluster, resource, volume or node.
    ///
    /// # Errors
    /// [`WrongStore`], the first difference in that order.
    pub fn check_owner(
        &self,
        cluster: ClusterId,
        resource: ResourceId,
        volume: VolumeId,
        node: NodeId,
    ) -> Result<(), WrongStore> {
        if self.cluster != cluster {
            return Err(WrongStore::Cluster {
                found: self.cluster,
                expected: cluster,
            });
        }
        if self.resource != resource {
            return Err(WrongStore::Resource {
                found: self.resource,
                expected: resource,
            });
        }
        if self.volume != volume {
            return Err(WrongStore::Volume {
                found: self.volume,
                expected: volume,
            });
        }
        if self.node != node {
            return Err(WrongStore::Node {
                found: self.node,
                expected: node,
            });
        }
        Ok(())
    }

    /// Refuses another disk than the one that was there before.
    ///
    /// # Errors
    /// [`WrongStore::Disk`].
    pub fn check_disk(&self, disk: DiskId) -> Result<(), WrongStore> {
        if self.disk == disk {
            Ok(())
        } else {
            Err(WrongStore::Disk {
                found: self.disk,
                expected: disk,
            })
        }
    }

    /// Refuses internal metadata that was laid out for a device of another size.
    ///
    /// # Errors
    /// [`WrongStore::DeviceSize`].
    pub fn check_device(&self, expected: u64) -> Result<(), WrongStore> {
        match self.placement {
            Placement::Internal {
                device_bytes: found,
            } if found != expected => Err(WrongStore::DeviceSize { found, expected }),
            _ => Ok(()),
        }
    }

    /// The block to write as this copy.
    #[must_use]
    pub fn encode(&self, copy: MetaCopy) -> Block {
        let mut raw = Raw::new_zeroed();
        raw.header = Header::new(BlockKind::Superblock, self.tag(), copy.number());
        raw.cluster = self.cluster.0.into();
        raw.resource = self.resource.0.into();
        raw.disk = self.disk.0.into();
        raw.boot_id = self.boot_id.into();
        raw.history = self.history.0.into();
        raw.incarnation = self.incarnation.0.into();
        raw.epoch = self.epoch.0.into();
        raw.data_bytes = self.data_bytes.into();
        raw.version_count = self.version_count.into();
        raw.ring_generation = self.ring_generation.into();
        raw.log_capacity = self.log_capacity.get().into();
        raw.volume = self.volume.0.into();
        raw.node = self.node.get();
        raw.slots = self.slots;
        raw.bindings = self.bindings.into();
        (raw.placement, raw.device_bytes) = match self.placement {
            Placement::External => (EXTERNAL, U64::ZERO),
            Placement::Internal { device_bytes } => (INTERNAL, device_bytes.into()),
        };
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        raw.flags = U32::new(
            flag(self.open, OPEN)
                | flag(self.created_empty, CREATED_EMPTY)
                | flag(self.never_written, NEVER_WRITTEN)
                | flag(self.whole_window, WHOLE_WINDOW)
                | flag(self.failed, FAILED),
        );
        for (raw, peer) in raw.peers.iter_mut().zip(&self.peers) {
            let Some(peer) = peer else { continue };
            raw.disk = peer.disk.0.into();
            raw.node = peer.node.get();
            raw.binding = peer.binding.into();
            raw.state = match peer.blank {
                Blank::Clear => BLANK_CLEAR,
                Blank::Set => BLANK_SET,
            };
        }
        let mut block: Block = zerocopy::transmute!(raw);
        block::seal(&mut block);
        block
    }

    /// What this copy says.
    ///
    /// # Errors
    /// [`BlockError`], naming what was found instead.
    pub fn decode(block: &Block, copy: MetaCopy) -> Result<Self, BlockError> {
        let header = block::open(block, BlockKind::Superblock)?;
        let raw: &Raw = zerocopy::transmute_ref!(block);
        let disk = DiskId(raw.disk.get());
        header.belongs(DiskTag::of(disk), copy.number())?;
        let malformed = |field| BlockError::Malformed { field };
        let node = NodeId::new(raw.node).ok_or(malformed("node"))?;
        let placement = match raw.placement {
            EXTERNAL => Placement::External,
            INTERNAL => Placement::Internal {
                device_bytes: raw.device_bytes.get(),
            },
            _ => return Err(malformed("placement")),
        };
        let flags = raw.flags.get();
        if flags & !(OPEN | CREATED_EMPTY | NEVER_WRITTEN | WHOLE_WINDOW | FAILED) != 0 {
            return Err(malformed("flags"));
        }
        let mut peers = [None; SLOTS];
        for (peer, raw) in peers.iter_mut().zip(&raw.peers) {
            *peer = raw.decode()?;
        }
        let superblock = Self {
            cluster: ClusterId(raw.cluster.get()),
            resource: ResourceId(raw.resource.get()),
            volume: VolumeId(raw.volume.get()),
            node,
            disk,
            incarnation: Incarnation(raw.incarnation.get()),
            epoch: Epoch(raw.epoch.get()),
            history: HistoryId(raw.history.get()),
            boot_id: raw.boot_id.get(),
            open: flags & OPEN != 0,
            created_empty: flags & CREATED_EMPTY != 0,
            never_written: flags & NEVER_WRITTEN != 0,
            whole_window: flags & WHOLE_WINDOW != 0,
            failed: flags & FAILED != 0,
            data_bytes: raw.data_bytes.get(),
            placement,
            slots: raw.slots,
            log_capacity: LogCapacity::new(raw.log_capacity.get())
                .ok_or(malformed("log capacity"))?,
            ring_generation: raw.ring_generation.get(),
            bindings: raw.bindings.get(),
            peers,
            version_count: raw.version_count.get(),
        };
        if superblock.bindings >= MAX_BINDINGS {
            return Err(malformed("bindings"));
        }
        if superblock.data_bytes > MAX_DATA_BYTES {
            return Err(malformed("data bytes"));
        }
        let layout = superblock.layout().map_err(|_| malformed("device bytes"))?;
        if superblock.slots != layout.slots() {
            return Err(malformed("slots"));
        }
        if superblock.data_bytes > layout.usable_data_bytes() {
            return Err(malformed("data bytes"));
        }
        Ok(superblock)
    }
}

impl RawPeer {
    fn decode(&self) -> Result<Option<PeerSlot>, BlockError> {
        let blank = match self.state {
            0 => return Ok(None),
            BLANK_CLEAR => Blank::Clear,
            BLANK_SET => Blank::Set,
            _ => {
                return Err(BlockError::Malformed {
                    field: "peers.state",
                });
            }
        };
        let node = NodeId::new(self.node).ok_or(BlockError::Malformed {
            field: "peers.node",
        })?;
        Ok(Some(PeerSlot {
            node,
            disk: DiskId(self.disk.get()),
            blank,
            binding: self.binding.get(),
        }))
    }
}

/// Which copy holds (RULES 11): of two good ones the newer, of one good and one bad the good one.
/// A promise was answered only once both copies had it, so neither choice forgets one.
///
/// # Errors
/// [`IdentityLost`], naming what was found.
pub fn choose(
    a: Result<Superblock, BlockError>,
    b: Result<Superblock, BlockError>,
) -> Result<Chosen, IdentityLost> {
    for copy in [&a, &b] {
        if let Err(BlockError::NewerVersion { found, known }) = copy {
            return Err(IdentityLost::NewerVersion {
                found: *found,
                known: *known,
            });
        }
    }
    let chosen = |superblock, rewrite| {
        Ok(Chosen {
            superblock,
            rewrite,
        })
    };
    match (a, b) {
        (Ok(a), Ok(b)) => {
            if a.disk != b.disk || (a.version_count == b.version_count && a != b) {
                return Err(IdentityLost::Contradiction {
                    a: a.disk,
                    b: b.disk,
                    a_count: a.version_count,
                    b_count: b.version_count,
                });
            }
            match a.version_count.cmp(&b.version_count) {
                std::cmp::Ordering::Equal => chosen(a, None),
                std::cmp::Ordering::Greater => chosen(a, Some(MetaCopy::B)),
                std::cmp::Ordering::Less => chosen(b, Some(MetaCopy::A)),
            }
        }
        (Ok(a), Err(_)) => chosen(a, Some(MetaCopy::B)),
        (Err(_), Ok(b)) => chosen(b, Some(MetaCopy::A)),
        (Err(a), Err(b)) => Err(IdentityLost::BothBad { a, b }),
    }
}

#[cfg(test)]
mod tests;
