//! From metadata on disk to a replica, and the other way round when one is created. Pure: the driver
//! reads and writes; here is decided what that means. An attach that finds the store *open* under
//! another boot raises the incarnation before anything else, because the machine's caches may have
//! been lost (RULES section 1).

use super::api::Identity;
use super::mutation::{Mutation, mutated};
use crate::store::activity_log::recover;
use crate::store::dump::ReadAt;
use crate::store::{
    ActivityLog, Bitmap, Block, BlockError, IdentityLost, Layout, LayoutError, LogCapacity,
    METADATA_BLOCK_BYTES, MetaCopy, Placement, Superblock, Unusable, WrongStore, choose,
};
use vocabulary::{
    ClusterId, DiskId, Epoch, HistoryId, Incarnation, NodeId, ResourceId, Time, VolumeId,
};

/// A durable write of the metadata area that has to be done, in the order given, each before the
/// next: offset and whole 4 KiB blocks.
pub type MetaWrite = (u64, Vec<u8>);

/// What a new replica's volume is made from.
#[derive(Clone, Copy, Debug)]
pub struct NewVolume {
    /// The cluster.
    pub cluster: ClusterId,
    /// The resource.
    pub resource: ResourceId,
    /// The volume.
    pub volume: VolumeId,
    /// This node.
    pub node: NodeId,
    /// The new, random identity; the same for all volumes of the replica.
    pub disk: DiskId,
    /// Size of the volume in bytes.
    pub data_bytes: u64,
    /// Where the metadata goes.
    pub placement: Placement,
    /// Peer slots (internal metadata; external has all).
    pub slots: u8,
    /// Extents of the activity log.
    pub log_capacity: LogCapacity,
    /// The kernel's boot id.
    pub boot_id: u128,
    /// The store is Lockstep's own and reads as zeroes.
    pub created_empty: bool,
}

/// Why a replica can't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The superblock is not one, or lost.
    #[error("volume {volume}: {source}")]
    Identity {
        /// The volume.
        volume: VolumeId,
        /// What was found.
        source: IdentityLost,
    },
    /// It is of something else.
    #[error("volume {volume}: {source}")]
    Wrong {
        /// The volume.
        volume: VolumeId,
        /// What differs.
        source: WrongStore,
    },
    /// Volumes of different replicas.
    #[error(
        "volume {volume} belongs to disk {found}, volume 0 to {expected}: the backing stores are mixed up"
    )]
    Mixed {
        /// The volume.
        volume: VolumeId,
        /// Its disk.
        found: DiskId,
        /// That of volume 0.
        expected: DiskId,
    },
    /// The activity log or a bitmap page is of a newer program.
    #[error(
        "volume {volume}: metadata of format version {found}; this program knows up to {known}"
    )]
    NewerVersion {
        /// The volume.
        volume: VolumeId,
        /// The block's.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// The data area is smaller than the metadata says.
    #[error(
        "volume {volume}: the backing store holds {found_bytes} bytes of data, its metadata says {expected_bytes}: it was truncated or replaced"
    )]
    Truncated {
        /// The volume.
        volume: VolumeId,
        /// What is there.
        found_bytes: u64,
        /// What should be.
        expected_bytes: u64,
    },
    /// The metadata does not fit.
    #[error("volume {volume}: {source}")]
    Layout {
        /// The volume.
        volume: VolumeId,
        /// Why.
        source: LayoutError,
    },
}

/// Whose replica is expected.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The cluster.
    pub cluster: ClusterId,
    /// What the cluster was before it was recovered: a store of theirs becomes one of the cluster.
    pub former: &'a [ClusterId],
    /// The resource.
    pub resource: ResourceId,
    /// This node.
    pub node: NodeId,
    /// The kernel's boot id.
    pub boot_id: u128,
}

/// A volume's backing store as the driver opened it.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Reads the metadata area; beyond the end of a metadata file it reads zeroes.
    pub metadata: &'a dyn ReadAt,
    /// Where the metadata is.
    pub placement: Placement,
    /// Bytes that the store has for data (external) or as a whole (internal).
    pub store_bytes: u64,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

/// A volume whose metadata was read.
#[derive(Clone, Debug)]
pub struct AttachedVolume {
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    pub(crate) log: ActivityLog,
    pub(crate) bitmap: Bitmap,
    /// The activity log could not be read: the whole volume may have been written.
    pub(crate) whole_window: bool,
    /// Damage was found and read the safe way.
    pub(crate) damaged: bool,
}

impl AttachedVolume {
    /// Size of the volume in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.superblock.data_bytes
    }

    /// Where its metadata are.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.superblock.placement
    }
}

/// A replica ready to be driven, once its `writes` are durable.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Who it is.
    pub identity: Identity,
    /// Its volumes.
    pub volumes: Vec<AttachedVolume>,
    /// Per volume, what has to be durable before the first event, in this order.
    pub writes: Vec<Vec<MetaWrite>>,
}

/// The writes that make a new volume: its activity log, then the superblock, copy A, then copy B.
/// The bitmap area has to read as zeroes.
///
/// # Errors
/// [`LayoutError`] where the metadata does not fit.
pub fn create(new: &NewVolume) -> Result<Vec<MetaWrite>, LayoutError> {
    let layout = match new.placement {
        Placement::External => Layout::external(),
        Placement::Internal { device_bytes } => Layout::internal(device_bytes, new.slots)?,
    };
    let generation = 1;
    let superblock = Superblock {
        cluster: new.cluster,
        resource: new.resource,
        volume: new.volume,
        node: new.node,
        disk: new.disk,
        incarnation: Incarnation(1),
        epoch: Epoch(0),
        history: HistoryId(0),
        boot_id: new.boot_id,
        open: false,
        created_empty: new.created_empty,
        never_written: new.created_empty,
        whole_window: false,
        failed: false,
        data_bytes: new.data_bytes,
        placement: new.placement,
        slots: layout.slots(),
        log_capacity: new.log_capacity,
        ring_generation: generation,
        bindings: 0,
        peers: [None; crate::store::MAX_PEER_SLOTS as usize],
        version_count: 1,
    };
    let mut writes = Vec::new();
    let (_, blocks) = ActivityLog::create(superblock.tag(), generation, new.log_capacity);
    write_ring(&layout, &blocks, &mut writes);
    for copy in MetaCopy::BOTH {
        writes.push((
            layout.superblock_offset(copy),
            superblock.encode(copy).to_vec(),
        ));
    }
    Ok(writes)
}

fn write_ring(layout: &Layout, blocks: &[(u32, Block)], writes: &mut Vec<MetaWrite>) {
    for (index, block) in blocks {
        for offset in layout.ring_offsets(*index) {
            writes.push((offset, block.to_vec()));
        }
    }
}

/// Reads a replica's metadata.
///
/// # Errors
/// [`AttachError`]: nothing was changed.
pub fn attach(
    expected: &Expected<'_>,
    sources: &[Source<'_>],
    now: Time,
) -> Result<Attached, AttachError> {
    let mut superblocks = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let volume = VolumeId(u16::try_from(index).unwrap_or(u16::MAX));
        let superblock = read_superblock(expected, volume, source)?;
        superblocks.push(superblock);
    }
    let Some(first) = superblocks.first().cloned() else {
        return Ok(Attached {
            identity: nobody(expected),
            volumes: Vec::new(),
            writes: Vec::new(),
        });
    };
    // Caches may have been lost if any volume was open under another boot, or failed.
    let reset = superblocks
        .iter()
        .any(|s| s.failed || s.open && s.boot_id != expected.boot_id)
        && !mutated(Mutation::RebootKeepsIncarnation);
    let newest = superblocks
        .iter()
        .map(|s| s.incarnation)
        .max()
        .unwrap_or_default();
    let incarnation = if reset { newest.next() } else { newest };
    let epoch = superblocks
        .iter()
        .map(|s| s.epoch)
        .max()
        .unwrap_or_default();
    agree_on_slots(&mut superblocks);
    let mut volumes = Vec::new();
    let mut writes = Vec::new();
    for (mut superblock, source) in superblocks.into_iter().zip(sources) {
        let volume = superblock.volume;
        if superblock.disk != first.disk {
            let (found, expected) = (superblock.disk, first.disk);
            return Err(AttachError::Mixed {
                volume,
                found,
                expected,
            });
        }
        let layout = superblock
            .layout()
            .map_err(|source| AttachError::Layout { volume, source })?;
        let mut durable = Vec::new();
        let (log, lost) = read_log(&mut superblock, &layout, source, now, &mut durable)?;
        let (bitmap, bad_pages) = read_bitmap(&superblock, &layout, source)?;
        let mut attached = AttachedVolume {
            whole_window: superblock.whole_window || lost,
            superblock,
            layout,
            log,
            bitmap,
            damaged: lost || bad_pages,
        };
        if lost {
            // Nobody knows what was written where (RULES 11).
            let slots: Vec<u8> = attached.bitmap.open_slots().collect();
            for slot in slots {
                attached.bitmap.set_all(slot);
            }
        }
        let superblock = &mut attached.superblock;
        superblock.cluster = expected.cluster;
        superblock.whole_window = attached.whole_window;
        superblock.incarnation = incarnation;
        superblock.epoch = epoch;
        superblock.open = true;
        superblock.failed = false;
        superblock.boot_id = expected.boot_id;
        superblock.version_count += 1;
        superblock.begin_session();
        for copy in MetaCopy::BOTH {
            durable.push((
                attached.layout.superblock_offset(copy),
                superblock.encode(copy).to_vec(),
            ));
        }
        writes.push(durable);
        volumes.push(attached);
    }
    let identity = Identity {
        cluster: expected.cluster,
        resource: expected.resource,
        node: expected.node,
        disk: first.disk,
        incarnation,
    };
    Ok(Attached {
        identity,
        volumes,
        writes,
    })
}

/// Volumes whose superblocks were written before and after a change of a slot: the slot is nobody's,
/// and whoever it was lacks everything.
fn agree_on_slots(superblocks: &mut [Superblock]) {
    let Some((first, others)) = superblocks.split_first_mut() else {
        return;
    };
    for slot in 0..first.peers.len() {
        let owner = |s: &Superblock| s.peers[slot].map(|peer| (peer.node, peer.disk));
        if others.iter().any(|other| owner(other) != owner(first)) {
            first.peers[slot] = None;
            for other in others.iter_mut() {
                other.peers[slot] = None;
            }
        }
    }
}

fn nobody(expected: &Expected<'_>) -> Identity {
    Identity {
        cluster: expected.cluster,
        resource: expected.resource,
        node: expected.node,
        disk: DiskId(0),
        incarnation: Incarnation(0),
    }
}

/// A block that can't be read counts as a damaged one: its other copy, or the safe reading, has to do
/// (RULES 11). No block of metadata looks like this.
fn read_block(source: &Source<'_>, offset: u64) -> Block {
    let mut block = [0; METADATA_BLOCK_BYTES];
    if source.metadata.read_at(offset, &mut block).is_err() {
        block.fill(0xff);
    }
    block
}

fn read_superblock(
    expected: &Expected<'_>,
    volume: VolumeId,
    source: &Source<'_>,
) -> Result<Superblock, AttachError> {
    // The superblock's place does not depend on the number of slots.
    let probe = match source.placement {
        Placement::External => Layout::external(),
        Placement::Internal { device_bytes } => Layout::internal(device_bytes, 1)
            .map_err(|source| AttachError::Layout { volume, source })?,
    };
    let mut copies = MetaCopy::BOTH.into_iter().map(|copy| {
        let block = read_block(source, probe.superblock_offset(copy));
        Ok(Superblock::decode(&block, copy))
    });
    let (Some(a), Some(b)) = (copies.next(), copies.next()) else {
        unreachable!("there are two copies");
    };
    let chosen = choose(a?, b?).map_err(|source| AttachError::Identity { volume, source })?;
    let superblock = chosen.superblock;
    let wrong = |source| AttachError::Wrong { volume, source };
    let cluster = if expected.former.contains(&superblock.cluster) {
        superblock.cluster
    } else {
        expected.cluster
    };
    superblock
        .check_owner(cluster, expected.resource, volume, expected.node)
        .map_err(wrong)?;
    superblock.check_device(source.store_bytes).map_err(wrong)?;
    if source.placement == Placement::External && source.store_bytes < superblock.data_bytes {
        return Err(AttachError::Truncated {
            volume,
            found_bytes: source.store_bytes,
            expected_bytes: superblock.data_bytes,
        });
    }
    Ok(superblock)
}

/// The activity log, and whether it was lost.
fn read_log(
    superblock: &mut Superblock,
    layout: &Layout,
    source: &Source<'_>,
    now: Time,
    writes: &mut Vec<MetaWrite>,
) -> Result<(ActivityLog, bool), AttachError> {
    let volume = superblock.volume;
    let blocks = superblock.log_capacity.ring_blocks();
    let mut copies: [Vec<Block>; 2] = [Vec::new(), Vec::new()];
    for index in 0..blocks {
        for (copy, offset) in copies.iter_mut().zip(layout.ring_offsets(index)) {
            copy.push(read_block(source, offset));
        }
    }
    let recovered = recover(
        [&copies[0], &copies[1]],
        superblock.tag(),
        superblock.ring_generation,
        superblock.log_capacity,
        now,
    );
    match recovered {
        Ok(recovered) => {
            for repair in recovered.repair {
                let [a, b] = layout.ring_offsets(repair.index);
                let offset = if repair.copy == MetaCopy::A { a } else { b };
                writes.push((offset, repair.block.to_vec()));
            }
            Ok((recovered.log, false))
        }
        Err(Unusable::NewerVersion { found, known }) => Err(AttachError::NewerVersion {
            volume,
            found,
            known,
        }),
        Err(_) => {
            superblock.ring_generation += 1;
            let (log, blocks) = ActivityLog::create(
                superblock.tag(),
                superblock.ring_generation,
                superblock.log_capacity,
            );
            // Said before the new ring replaces the old one.
            superblock.whole_window = true;
            write_ring(layout, &blocks, writes);
            Ok((log, true))
        }
    }
}

/// The bitmap, and whether a page was bad (its bits are all set then).
fn read_bitmap(
    superblock: &Superblock,
    layout: &Layout,
    source: &Source<'_>,
) -> Result<(Bitmap, bool), AttachError> {
    let volume = superblock.volume;
    let mut bitmap = Bitmap::new(superblock.tag(), superblock.data_bytes);
    let mut bad = false;
    for (slot, peer) in (0u8..).zip(&superblock.peers) {
        let Some(peer) = peer else { continue };
        bitmap.open_slot(slot, peer);
        for (first, run) in layout.page_runs(slot, superblock.data_bytes) {
            let count = u32::try_from(run.len / METADATA_BLOCK_BYTES as u64).unwrap_or(0);
            for page in first..first + count {
                let Some(offset) = layout.page_offset(slot, page) else {
                    continue;
                };
                let block = read_block(source, offset);
                match bitmap.load_page(slot, page, &block) {
                    Ok(()) => {}
                    Err(BlockError::NewerVersion { found, known }) => {
                        return Err(AttachError::NewerVersion {
                            volume,
                            found,
                            known,
                        });
                    }
                    Err(_) => bad = true,
                }
            }
        }
    }
    Ok((bitmap, bad))
}

#[cfg(test)]
mod tests;
