//! Words that Lockstep's crates share: identities, byte ranges and the configuration record of a
//! resource (RULES section 1). No I/O, no clock, no policy: only what a value means and how values
//! of one kind combine.

mod ids;
mod range;
mod record;

pub use ids::{
    ClusterId, DiskId, Epoch, Generation, HistoryId, Incarnation, NodeId, NodeSet, ResourceId,
    VolumeId,
};
pub use range::{BLOCK_BYTES, ByteRange, EXTENT_BYTES};
pub use record::{Change, Member, Record, Refusal};

use serde::{Deserialize, Serialize};

/// A point in time in nanoseconds of a clock that never goes back and counts suspended time
/// (`CLOCK_BOOTTIME`). Handed to the cores; they never read a clock.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// This time plus a duration in milliseconds.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Milliseconds from `earlier` to this time, 0 when it is not earlier.
    #[must_use]
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}
