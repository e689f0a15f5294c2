//! Byte ranges of a volume.

use serde::{Deserialize, Serialize};

/// Bytes that one bit of the bitmap stands for.
pub const BLOCK_BYTES: u64 = 4096;

/// Bytes of an activity log extent.
pub const EXTENT_BYTES: u64 = 4 << 20;

/// A range of bytes of a volume: `offset` to `offset + len`, the end not included. Never wraps: the
/// constructors refuse a range whose end does not fit in 63 bits (what a file offset holds).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl ByteRange {
    /// The range, or `None` where its end would pass 2^63 - 1.
    #[must_use]
    pub const fn new(offset: u64, len: u64) -> Option<Self> {
        match offset.checked_add(len) {
            Some(end) if end <= i64::MAX as u64 => Some(Self { offset, len }),
            _ => None,
        }
    }

    /// The range from `start` to `end` (not included); empty where they are out of order.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self {
            offset: start,
            len: end.saturating_sub(start),
        }
    }

    /// The first byte after the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Is it without bytes?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Do the two share a byte?
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// Is every byte of `other` in this range?
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }

    /// The bytes that both have, if any.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Option<Self> {
        let start = if self.offset > other.offset {
            self.offset
        } else {
            other.offset
        };
        let end = if self.end() < other.end() {
            self.end()
        } else {
            other.end()
        };
        if start < end {
            Some(Self::between(start, end))
        } else {
            None
        }
    }

    /// Rounded outwards to whole units (a power of two): what to mark.
    #[must_use]
    pub const fn outward(self, unit: u64) -> Self {
        let start = self.offset - self.offset % unit;
        let end = self.end().div_ceil(unit) * unit;
        Self::between(start, end)
    }

    /// Rounded inwards to whole units: what to clear. May be empty.
    #[must_use]
    pub const fn inward(self, unit: u64) -> Self {
        let start = self.offset.div_ceil(unit) * unit;
        let end = self.end() - self.end() % unit;
        Self::between(start, end)
    }

    /// Numbers of the units that the range touches.
    #[must_use]
    pub const fn units(self, unit: u64) -> std::ops::Range<u64> {
        if self.is_empty() {
            return 0..0;
        }
        self.offset / unit..self.end().div_ceil(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_would_wrap_are_refused() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(i64::MAX as u64, 1), None);
        assert!(ByteRange::new(i64::MAX as u64 - 1, 1).is_some());
    }

    #[test]
    fn marking_rounds_outwards_and_clearing_inwards() {
        let range = ByteRange::between(100, 9000);
        assert_eq!(range.outward(4096), ByteRange::between(0, 12288));
        assert_eq!(range.inward(4096), ByteRange::between(4096, 8192));
        assert!(ByteRange::between(100, 200).inward(4096).is_empty());
        assert_eq!(range.units(4096), 0..3);
        assert_eq!(ByteRange::between(5, 5).units(4096), 0..0);
    }

    #[test]
    fn overlap_needs_a_common_byte() {
        let a = ByteRange::between(0, 10);
        assert!(!a.overlaps(ByteRange::between(10, 20)));
        assert!(a.overlaps(ByteRange::between(9, 20)));
        assert_eq!(
            a.intersection(ByteRange::between(9, 20)),
            Some(ByteRange::between(9, 10))
        );
        assert_eq!(a.intersection(ByteRange::between(10, 20)), None);
    }
}
