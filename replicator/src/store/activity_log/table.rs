//! The slots of an activity log: which extent each holds, how often it is pinned, and the order in
//! which the others fell idle. All storage is made at creation; nothing is allocated later. Knows
//! nothing of blocks.

use vocabulary::Time;

/// What a slot without an extent holds, in memory and on disk.
pub(super) const NO_EXTENT: u32 = u32::MAX;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    extent: u32,
    pins: u32,
    /// Neighbours in the list of idle slots.
    older: u32,
    newer: u32,
    idle_since: Time,
    /// Part of the open transaction.
    pending: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    /// Slot numbers by the hash of their extent: open addressing with linear probing, a power of two
    /// of at least twice the slots, so that probes stay short and always end.
    places: Box<[u32]>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
    idle: usize,
}

impl Table {
    pub(super) fn new(capacity: u32) -> Self {
        let slot = Slot {
            extent: NO_EXTENT,
            pins: 0,
            older: NONE,
            newer: NONE,
            idle_since: Time(0),
            pending: false,
        };
        Self {
            slots: vec![slot; capacity as usize].into_boxed_slice(),
            places: vec![NONE; (capacity as usize * 2).next_power_of_two()].into_boxed_slice(),
            free: (0..capacity).rev().collect(),
            oldest: NONE,
            newest: NONE,
            idle: 0,
        }
    }

    /// A table with these extents, all idle since `now`; of two slots with the same extent (no log
    /// writes that) one is left free.
    pub(super) fn with(extents: &[u32], now: Time) -> Self {
        let mut table = Self::new(u32::try_from(extents.len()).expect("a log's capacity"));
        table.free.clear();
        for (slot, extent) in (0u32..).zip(extents) {
            if *extent == NO_EXTENT || table.find(*extent).is_some() {
                table.free.push(slot);
            } else {
                table.put(slot, *extent);
                table.slots[slot as usize].idle_since = now;
                table.link_newest(slot);
            }
        }
        table.free.reverse();
        table
    }

    fn slot(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    fn home(&self, extent: u32) -> usize {
        // Fibonacci hashing: neighbouring extents, the usual case, land far apart.
        let hash = u64::from(extent).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(hash).expect("32 bits") & (self.places.len() - 1)
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    #[inline]
    pub(super) fn find(&self, extent: u32) -> Option<u32> {
        let mut place = self.home(extent);
        loop {
            let slot = self.places[place];
            if slot == NONE {
                return None;
            }
            if self.slot(slot).extent == extent {
                return Some(slot);
            }
            place = self.next(place);
        }
    }

    fn put(&mut self, slot: u32, extent: u32) {
        self.slot_mut(slot).extent = extent;
        let mut place = self.home(extent);
        while self.places[place] != NONE {
            place = self.next(place);
        }
        self.places[place] = slot;
    }

    /// Takes a slot out of the map, and moves those behind it up so that no probe meets a gap.
    fn unmap(&mut self, slot: u32) {
        let mut hole = self.home(self.slot(slot).extent);
        while self.places[hole] != slot {
            hole = self.next(hole);
        }
        let mut place = self.next(hole);
        while self.places[place] != NONE {
            let home = self.home(self.slot(self.places[place]).extent);
            let mask = self.places.len() - 1;
            // May move to the hole unless its home lies between the hole and where it is.
            if (place.wrapping_sub(home) & mask) >= (place.wrapping_sub(hole) & mask) {
                self.places[hole] = self.places[place];
                hole = place;
            }
            place = self.next(place);
        }
        self.places[hole] = NONE;
    }

    fn link_newest(&mut self, slot: u32) {
        let older = self.newest;
        self.slot_mut(slot).older = older;
        self.slot_mut(slot).newer = NONE;
        if older == NONE {
            self.oldest = slot;
        } else {
            self.slot_mut(older).newer = slot;
        }
        self.newest = slot;
        self.idle += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { older, newer, .. } = *self.slot(slot);
        if older == NONE {
            self.oldest = newer;
        } else {
            self.slot_mut(older).newer = newer;
        }
        if newer == NONE {
            self.newest = older;
        } else {
            self.slot_mut(newer).older = older;
        }
        self.idle -= 1;
    }

    pub(super) fn is_pending(&self, slot: u32) -> bool {
        self.slot(slot).pending
    }

    pub(super) fn pin(&mut self, slot: u32) {
        if self.slot(slot).pins == 0 {
            self.unlink(slot);
        }
        self.slot_mut(slot).pins += 1;
    }

    pub(super) fn unpin(&mut self, slot: u32, now: Time) {
        let pins = self
            .slot(slot)
            .pins
            .checked_sub(1)
            .expect("an unpin follows its pin");
        self.slot_mut(slot).pins = pins;
        if pins == 0 {
            self.slot_mut(slot).idle_since = now;
            self.link_newest(slot);
        }
    }

    /// Extents that could be activated now.
    pub(super) fn room(&self) -> usize {
        self.free.len() + self.idle
    }

    /// Puts an extent, pending, in a free slot or in that of the extent that was idle for longest.
    /// There must be room.
    pub(super) fn replace_idlest(&mut self, extent: u32) -> (u32, Option<u32>) {
        let (slot, old) = match self.free.pop() {
            Some(slot) => (slot, None),
            None => {
                let slot = self.oldest;
                let old = self.slot(slot).extent;
                self.unlink(slot);
                self.unmap(slot);
                (slot, Some(old))
            }
        };
        self.put(slot, extent);
        self.slot_mut(slot).pending = true;
        (slot, old)
    }

    /// Takes out the extent that was idle for longest if that was before this time. Its slot is not
    /// free before [`Self::free`].
    pub(super) fn take_idle(&mut self, idle_before: Time) -> Option<(u32, u32)> {
        let slot = self.oldest;
        if slot == NONE || self.slot(slot).idle_since >= idle_before {
            return None;
        }
        let extent = self.slot(slot).extent;
        self.unlink(slot);
        self.unmap(slot);
        self.slot_mut(slot).extent = NO_EXTENT;
        Some((slot, extent))
    }

    pub(super) fn activate(&mut self, extent: u32, now: Time) {
        let slot = self
            .find(extent)
            .expect("the open transaction's extents are in the map");
        self.slot_mut(slot).pending = false;
        self.slot_mut(slot).idle_since = now;
        self.link_newest(slot);
    }

    pub(super) fn free(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// What the slot holds, the open transaction's changes included.
    pub(super) fn extent_in(&self, slot: u32) -> u32 {
        self.slot(slot).extent
    }

    pub(super) fn extents(&self) -> impl Iterator<Item = u32> {
        self.slots
            .iter()
            .filter(|slot| slot.extent != NO_EXTENT && !slot.pending)
            .map(|slot| slot.extent)
    }
}
