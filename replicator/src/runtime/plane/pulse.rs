//! Signs of life of a data plane, for the thread that sends beacons: without them nothing is promised
//! to anybody (RULES 4: a beacon is sent only while every data-plane thread turns and no local disk
//! request is overdue). Written by the data plane's thread, read by any.

use std::sync::atomic::{AtomicU64, Ordering};
use vocabulary::Time;

/// What a data plane's thread shows of itself.
#[derive(Debug)]
pub struct Pulse {
    turned: AtomicU64,
    /// 0: none.
    oldest: AtomicU64,
}

impl Pulse {
    pub(super) fn new(now: Time) -> Self {
        Self {
            turned: AtomicU64::new(now.0),
            oldest: AtomicU64::new(0),
        }
    }

    pub(super) fn turn(&self, now: Time) {
        self.turned.store(now.0, Ordering::Relaxed);
    }

    pub(super) fn oldest(&self, since: Option<Time>) {
        let since = since.map_or(0, |since| since.0.max(1));
        self.oldest.store(since, Ordering::Relaxed);
    }

    /// When the loop began its last turn. While it has a resource or a listener it turns at least every
    /// 100 ms.
    #[must_use]
    pub fn turned(&self) -> Time {
        Time(self.turned.load(Ordering::Relaxed))
    }

    /// Since when the oldest disk request under way is, as of one of the last turns.
    #[must_use]
    pub fn oldest_request(&self) -> Option<Time> {
        match self.oldest.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Time(since)),
        }
    }

    /// Has the loop turned within so many ms, and was no disk request older than that?
    #[must_use]
    pub fn is_well(&self, now: Time, limit_ms: u64) -> bool {
        let young = |since: Time| now.ms_since(since) < limit_ms;
        young(self.turned()) && self.oldest_request().is_none_or(young)
    }
}
