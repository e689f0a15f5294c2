//! The range lock of a volume (RULES 5): requests that overlap take turns in the order of their
//! arrival; readers share. On the primary it is held from before the first byte moves until the
//! request is answered; on a replica it orders overlapping disk I/O.

use vocabulary::{BLOCK_BYTES, ByteRange};

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With other readers.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Clone, Debug)]
struct Entry<K> {
    key: K,
    range: ByteRange,
    mode: Mode,
    held: bool,
}

/// The locks of one volume. `K` names a holder and is unique among the present ones.
///
/// Kept as a list in the order of arrival: with the few hundred requests that are under way at a
/// time a scan is faster than a tree.
#[derive(Clone, Debug)]
pub(crate) struct RangeLock<K> {
    entries: Vec<Entry<K>>,
    waiting: usize,
}

impl<K> Default for RangeLock<K> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            waiting: 0,
        }
    }
}

impl<K: Copy + Eq> RangeLock<K> {
    /// Asks for the range, widened to whole blocks. `true`: it is held now; otherwise it will be
    /// among the keys that a later [`Self::release`] gives back.
    pub(crate) fn acquire(&mut self, key: K, range: ByteRange, mode: Mode) -> bool {
        let range = range.outward(BLOCK_BYTES);
        let held = !self.entries.iter().any(|e| conflicts(e, range, mode));
        self.waiting += usize::from(!held);
        self.entries.push(Entry {
            key,
            range,
            mode,
            held,
        });
        held
    }

    /// Gives the range back (held or waiting); `granted` gets those that hold theirs now.
    pub(crate) fn release(&mut self, key: K, granted: &mut Vec<K>) {
        let Some(at) = self.entries.iter().position(|e| e.key == key) else {
            return;
        };
        if self.waiting == 0 {
            self.entries.swap_remove(at);
            return;
        }
        let gone = self.entries.remove(at);
        self.waiting -= usize::from(!gone.held);
        for i in at..self.entries.len() {
            let entry = &self.entries[i];
            if entry.held || !entry.range.overlaps(gone.range) {
                continue;
            }
            let (range, mode) = (entry.range, entry.mode);
            if !self.entries[..i].iter().any(|e| conflicts(e, range, mode)) {
                self.entries[i].held = true;
                self.waiting -= 1;
                granted.push(self.entries[i].key);
            }
        }
    }

    /// The ranges that are, or are to be, held alone.
    pub(crate) fn exclusive(&self) -> impl Iterator<Item = (K, ByteRange)> + '_ {
        let alone = self.entries.iter().filter(|e| e.mode == Mode::Exclusive);
        alone.map(|e| (e.key, e.range))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn conflicts<K>(entry: &Entry<K>, range: ByteRange, mode: Mode) -> bool {
    entry.range.overlaps(range) && (mode == Mode::Exclusive || entry.mode == Mode::Exclusive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(from: u64, to: u64) -> ByteRange {
        ByteRange::between(from * BLOCK_BYTES, to * BLOCK_BYTES)
    }

    #[test]
    fn overlapping_writes_take_turns_in_the_order_of_arrival() {
        let mut lock = RangeLock::default();
        let mut granted = Vec::new();
        assert!(lock.acquire(1, blocks(0, 4), Mode::Exclusive));
        assert!(!lock.acquire(2, blocks(2, 6), Mode::Exclusive));
        assert!(!lock.acquire(3, blocks(5, 8), Mode::Exclusive));
        assert!(lock.acquire(4, blocks(8, 9), Mode::Exclusive));
        lock.release(1, &mut granted);
        assert_eq!(granted, [2]);
        granted.clear();
        lock.release(2, &mut granted);
        assert_eq!(granted, [3]);
    }

    #[test]
    fn readers_share_and_do_not_overtake_a_waiting_writer() {
        let mut lock = RangeLock::default();
        let mut granted = Vec::new();
        assert!(lock.acquire(1, blocks(0, 1), Mode::Shared));
        assert!(lock.acquire(2, blocks(0, 1), Mode::Shared));
        assert!(!lock.acquire(3, blocks(0, 1), Mode::Exclusive));
        assert!(!lock.acquire(4, blocks(0, 1), Mode::Shared));
        lock.release(1, &mut granted);
        assert!(granted.is_empty());
        lock.release(2, &mut granted);
        assert_eq!(granted, [3]);
        granted.clear();
        lock.release(3, &mut granted);
        assert_eq!(granted, [4]);
        lock.release(4, &mut granted);
        assert!(lock.is_empty());
    }

    #[test]
    fn parts_of_one_block_exclude_each_other() {
        let mut lock = RangeLock::default();
        assert!(lock.acquire(1, ByteRange::between(0, 512), Mode::Exclusive));
        assert!(!lock.acquire(2, ByteRange::between(512, 1024), Mode::Exclusive));
    }

    #[test]
    fn a_waiting_request_that_leaves_lets_later_ones_pass() {
        let mut lock = RangeLock::default();
        let mut granted = Vec::new();
        assert!(lock.acquire(1, blocks(0, 1), Mode::Shared));
        assert!(!lock.acquire(2, blocks(0, 1), Mode::Exclusive));
        assert!(!lock.acquire(3, blocks(0, 1), Mode::Shared));
        lock.release(2, &mut granted);
        assert_eq!(granted, [3]);
    }
}
