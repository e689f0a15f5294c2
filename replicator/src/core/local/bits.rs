//! What other replicas lack, as far as this one knows (RULES 7). Bits belong to a disk; a node whose
//! disk has no slot lacks everything.

use super::super::block_set::BlockSet;
use super::*;
use crate::store::Blank;
use vocabulary::{BLOCK_BYTES, ByteRange, DiskId, NodeId};

/// Longest run of marked blocks in one step of an exchange.
const MAX_RUN_BYTES: u64 = 1 << 40;

impl<P: Payload> Local<P> {
    fn slot(&self, node: NodeId) -> Option<u8> {
        let first = self.volumes.first()?;
        (0u8..)
            .zip(&first.superblock.peers)
            .find(|(_, peer)| peer.is_some_and(|p| p.node == node))
            .map(|(slot, _)| slot)
    }

    /// Nodes that bits are kept for.
    pub(crate) fn bound_nodes(&self) -> Vec<NodeId> {
        let peers = self
            .volumes
            .first()
            .map(|v| v.superblock.peers.iter().flatten());
        peers.into_iter().flatten().map(|peer| peer.node).collect()
    }

    /// The disk that the bits kept for a node belong to.
    pub(crate) fn bound_disk(&self, node: NodeId) -> Option<DiskId> {
        let slot = self.slot(node)?;
        self.volumes.first()?.superblock.peers[usize::from(slot)].map(|p| p.disk)
    }

    /// Keeps bits for this disk of the node from now on: none set if `equal`, all set otherwise. A
    /// disk that has a slot keeps its bits, unless it is `equal`.
    pub(crate) fn bind(&mut self, step: &mut Step<'_, P>, node: NodeId, disk: DiskId, equal: bool) {
        if let Some(slot) = self.slot(node)
            && self.bound_disk(node) == Some(disk)
        {
            if equal {
                for volume in &mut self.volumes {
                    volume.bitmap.clear_all(slot);
                }
            }
            return;
        }
        let old = self.slot(node);
        let free = self.volumes.first().and_then(|v| v.superblock.free_slot());
        let Some(slot) = free.or(old) else { return };
        let blank = if equal { Blank::Clear } else { Blank::Set };
        for volume in &mut self.volumes {
            if let Some(old) = old {
                volume.superblock.peers[usize::from(old)] = None;
                volume.bitmap.close_slot(old);
            }
            let peer = volume.superblock.bind(slot, node, disk, blank);
            volume.bitmap.open_slot(slot, &peer);
        }
        self.persist(step, Tag::Nobody);
    }

    /// Keeps no bits for the node: it lacks everything.
    fn unbind(&mut self, step: &mut Step<'_, P>, node: NodeId) {
        let Some(slot) = self.slot(node) else { return };
        for volume in &mut self.volumes {
            volume.superblock.peers[usize::from(slot)] = None;
            volume.bitmap.close_slot(slot);
        }
        self.persist(step, Tag::Nobody);
    }

    /// Bits that a primary hands over, OR-ed into what is known here.
    pub(crate) fn take_over_bits(
        &mut self,
        step: &mut Step<'_, P>,
        node: NodeId,
        disk: Option<DiskId>,
        ranges: &[VolumeRange],
    ) {
        let Some(disk) = disk else {
            if !mutated(Mutation::HandOverKeepsOldBits) {
                self.unbind(step, node);
            }
            return;
        };
        if self.bound_disk(node) != Some(disk) {
            // All that the primary knows follows; this replica is not a member before it is stored.
            self.bind(step, node, disk, true);
        }
        for at in ranges {
            self.mark(node, *at);
        }
    }

    /// The node may differ in this range.
    pub(crate) fn mark(&mut self, node: NodeId, at: VolumeRange) {
        if let Some(slot) = self.slot(node) {
            self.volumes[at.volume.index()].bitmap.set(slot, at.range);
        }
    }

    /// The node lacks everything.
    pub(crate) fn mark_all(&mut self, step: &mut Step<'_, P>, node: NodeId) {
        self.unbind(step, node);
    }

    /// The node has these blocks as they are here, on stable storage.
    pub(crate) fn clear_bits(&mut self, node: NodeId, at: VolumeRange) {
        if let Some(slot) = self.slot(node) {
            self.volumes[at.volume.index()].bitmap.clear(slot, at.range);
        }
    }

    /// The runs marked for a node. Where its disk is unknown: none (the disk's absence says all).
    pub(crate) fn bit_ranges(&self, node: NodeId) -> impl Iterator<Item = VolumeRange> + '_ {
        let slot = self.slot(node);
        self.volume_ids()
            .zip(&self.volumes)
            .flat_map(move |(volume, v)| {
                slot.into_iter().flat_map(move |slot| {
                    v.bitmap
                        .runs(slot, MAX_RUN_BYTES)
                        .map(move |range| VolumeRange { volume, range })
                })
            })
    }

    /// The runs marked for a node from an offset on; all of the volume where its disk is unknown.
    pub(crate) fn marked_from(
        &self,
        node: NodeId,
        volume: VolumeId,
        mut from: u64,
    ) -> impl Iterator<Item = ByteRange> + '_ {
        let slot = self.slot(node);
        let v = &self.volumes[volume.index()];
        let size = v.superblock.data_bytes;
        std::iter::from_fn(move || {
            let run = match slot {
                Some(slot) => v.bitmap.next_dirty(slot, from, MAX_RUN_BYTES)?,
                None if from < size => ByteRange::between(from, size),
                None => return None,
            };
            from = run.end();
            Some(run)
        })
    }

    /// The same by volume.
    pub(crate) fn bit_sets(&self, node: NodeId) -> Vec<BlockSet> {
        let mut sets = vec![BlockSet::default(); self.volumes.len()];
        for at in self.bit_ranges(node) {
            sets[at.volume.index()].insert(at.range);
        }
        sets
    }

    /// Bytes marked for a node; all of the volume where its disk is unknown.
    pub(crate) fn marked_bytes(&self, node: NodeId, volume: VolumeId) -> u64 {
        let v = &self.volumes[volume.index()];
        self.slot(node)
            .map_or(v.superblock.data_bytes, |slot| v.bitmap.count_bytes(slot))
    }

    /// The window's ranges, both parts.
    pub(crate) fn window_ranges(&self) -> impl Iterator<Item = VolumeRange> + '_ {
        let old = self
            .volume_ids()
            .zip(&self.window.old)
            .flat_map(|(volume, set)| set.ranges().map(move |range| VolumeRange { volume, range }));
        let live = self.window.live.iter().map(|entry| VolumeRange {
            range: entry.at.range.outward(BLOCK_BYTES),
            ..entry.at
        });
        old.chain(live)
    }

    /// Where a node may differ from this replica, for tests: bits and window.
    pub(crate) fn may_differ(&self, node: NodeId, volume: VolumeId) -> Vec<ByteRange> {
        let mut set = self.bit_sets(node).swap_remove(volume.index());
        if self.slot(node).is_none() {
            set.insert(ByteRange::between(0, self.size(volume)));
        }
        set.union(&self.window.sets()[volume.index()]);
        set.ranges().collect()
    }
}
