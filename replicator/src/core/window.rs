//! The window (RULES 6): every range that this replica has received and that is not yet known to be
//! stable on all of *required*. `live` is the present session's, place by place; `old` is what
//! earlier sessions, an activity log or a hand-over left, by blocks.

use super::block_set::BlockSet;
use super::message::{Seq, VolumeRange, WriteKind};
use std::collections::VecDeque;
use vocabulary::EXTENT_BYTES;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) seq: Seq,
    pub(crate) at: VolumeRange,
    pub(crate) kind: WriteKind,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    pub(crate) live: VecDeque<Entry>,
    pub(crate) old: Vec<BlockSet>,
    live_bytes: u64,
    live_extents: u64,
}

impl Window {
    pub(crate) fn new(old: Vec<BlockSet>) -> Self {
        Self {
            live: VecDeque::new(),
            old,
            live_bytes: 0,
            live_extents: 0,
        }
    }

    pub(crate) fn add(&mut self, entry: Entry) {
        debug_assert!(self.live.back().is_none_or(|last| last.seq <= entry.seq));
        self.live_bytes += entry.at.range.len;
        self.live_extents += extents_of(&entry);
        self.live.push_back(entry);
    }

    /// Takes out the first entry if its place is not after this one.
    pub(crate) fn pop_upto(&mut self, seq: Seq) -> Option<Entry> {
        if self.live.front()?.seq > seq {
            return None;
        }
        let entry = self.live.pop_front()?;
        self.live_bytes -= entry.at.range.len;
        self.live_extents -= extents_of(&entry);
        Some(entry)
    }

    /// Takes out all live entries.
    pub(crate) fn take_live(&mut self) -> VecDeque<Entry> {
        self.live_bytes = 0;
        self.live_extents = 0;
        std::mem::take(&mut self.live)
    }

    pub(crate) fn live_len(&self) -> usize {
        self.live.len()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Extents that the live entries touch, each entry by itself: at least as many as they pin.
    pub(crate) fn live_extents(&self) -> u64 {
        self.live_extents
    }

    pub(crate) fn has_old(&self) -> bool {
        self.old.iter().any(|set| !set.is_empty())
    }

    /// Was the range written at a place after this one?
    pub(crate) fn written_after(&self, at: VolumeRange, seq: Seq) -> bool {
        self.live
            .iter()
            .rev()
            .take_while(|e| e.seq > seq)
            .any(|e| e.at.volume == at.volume && e.at.range.overlaps(at.range))
    }

    /// All of it, by blocks.
    pub(crate) fn sets(&self) -> Vec<BlockSet> {
        let mut sets = self.old.clone();
        for entry in &self.live {
            if let Some(set) = sets.get_mut(entry.at.volume.index()) {
                set.insert(entry.at.range);
            }
        }
        sets
    }
}

fn extents_of(entry: &Entry) -> u64 {
    let extents = entry.at.range.units(EXTENT_BYTES);
    extents.end - extents.start
}
