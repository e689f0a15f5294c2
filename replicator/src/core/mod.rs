//! The replication engine as a state machine: no I/O, no clock, no threads, no async, no randomness.
//!
//! [`Resource`] is one resource on one node. It owns the local disk's bookkeeping (`local`: window,
//! activity log, bitmap, superblock) and plays one of two roles on top of it: `secondary` obeys a
//! primary's session, `primary` serves clients and keeps the other replicas equal. `api` is what
//! goes in and out, `message` what peers say to each other.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Asserts a rule of RULES.md by its number and name. In debug builds only: the simulator runs them
/// all; a release build that finds itself wrong has nothing better to do than go on.
macro_rules! rule {
    ($rule:literal, $condition:expr) => {
        debug_assert!($condition, concat!("RULES ", $rule))
    };
}

pub mod api;
pub mod attach;
mod block_set;
mod forward;
mod local;
mod map;
pub mod message;
pub mod mutation;
mod primary;
mod range_lock;
mod resource;
mod secondary;
mod sessions;
pub mod status;
#[cfg(test)]
mod tests;
mod window;

pub use map::{Map, MapQuestion};
pub use primary::Regions;
pub use resource::Resource;

use api::ConnId;
use message::Seq;
use std::collections::VecDeque;
use vocabulary::Time;

/// One step of the core: the present time and the outbox.
#[derive(Debug)]
pub(crate) struct Step<'a, P> {
    pub(crate) now: Time,
    pub(crate) out: &'a mut Vec<api::Action<P>>,
}

impl<P> Step<'_, P> {
    pub(crate) fn emit(&mut self, action: api::Action<P>) {
        self.out.push(action);
    }

    pub(crate) fn notice(&mut self, notice: api::Notice) {
        self.out.push(api::Action::Notice(notice));
    }
}

/// What a piece of local I/O was for: comes back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// The write at this place of the stream.
    Write(Seq),
    /// Ranges without bytes entered the window.
    Touch(Seq),
    /// The flush at this place.
    Flush(Seq),
    /// A read; the number is the role's.
    Read(u64),
    /// A chunk's digests; the number is the role's.
    Hash(u64),
    /// The write of a repaired block; the number is the role's.
    Repair(u64),
    /// The superblock with this epoch is on disk.
    Promise(vocabulary::Epoch),
    /// The bitmap is on disk; the number is the role's.
    Bits(u64),
    /// The store has grown; the number is the role's.
    Grow(u64),
    /// The bits that replace a window of everything are on disk.
    WholeSettled,
    /// All is on disk and the superblock says closed.
    Close,
    /// Nobody waits.
    Nobody,
}

/// Writes under way in the order of the stream: knows up to where all are done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outstanding {
    entries: VecDeque<(Seq, bool)>,
}

impl Outstanding {
    pub(crate) fn begin(&mut self, seq: Seq) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| *last < seq));
        self.entries.push_back((seq, false));
    }

    pub(crate) fn finish(&mut self, seq: Seq) {
        let at = self.entries.partition_point(|(s, _)| *s < seq);
        if let Some(entry) = self.entries.get_mut(at)
            && entry.0 == seq
        {
            entry.1 = true;
        }
        while self.entries.front().is_some_and(|(_, done)| *done) {
            self.entries.pop_front();
        }
    }

    /// Is everything before this place done?
    pub(crate) fn done_before(&self, seq: Seq) -> bool {
        self.entries.front().is_none_or(|(first, _)| *first >= seq)
    }
}
