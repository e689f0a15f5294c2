//! The request numbers of clients' marked writes (RULES 12): which of them this replica's disk
//! holds. A write that is sent again after a fail-over is looked up here and never executed twice.
//!
//! A number enters when its write *completes* on the local disk, which is before the write is
//! acknowledged and before a promotion is proposed (the disk is drained first). What a session left
//! waiting for a range or for the activity log when it ended was never applied, and its number never
//! enters.
//!
//! While a new primary reconciles, a member's bytes and the primary's may differ in exactly the
//! writes that only one of the two holds. So an entry says of both sides whether they have it, and
//! a write of the primary's over its range makes the one side what the other is. Once the primary
//! says that all is settled, its table is the replica's.
//!
//! An *era* begins with a primary that lost its table (its process was restarted and nobody gave it
//! another one): of numbers of an earlier era nothing is known, and whoever sent them learns that by
//! the era and gives them up with an error.

use super::message::{ClientMark, NumberEntry, VolumeRange};
use std::collections::VecDeque;
use vocabulary::Epoch;

/// Numbers of a session from the lowest unanswered one on: its node sends no higher ones before
/// that is answered. Bounds the table; far above what clients keep in flight.
pub const MAX_SPAN: u64 = 4096;

/// The low bits of a session's id are its node's: a node has one session at a time.
const NODE_BITS: u64 = 31;

/// Which node's session it is.
pub(crate) const fn node_bits(id: u64) -> u64 {
    id & NODE_BITS
}

/// The id of a node's session, made from a random number.
pub(crate) fn session_id(random: u64, node: vocabulary::NodeId) -> u64 {
    // Zero stands for no session.
    ((random | (NODE_BITS + 1)) & !NODE_BITS) | u64::from(node.get())
}

/// What a disk has of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Nothing, or nothing that is not overwritten.
    No,
    /// All of it.
    Yes,
    /// A part: it can neither be answered nor executed.
    Torn,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: VolumeRange,
    /// This replica's disk.
    here: Applied,
    /// The primary's, until all is settled; the same as `here` where there is none.
    there: Applied,
}

#[derive(Clone, Debug)]
struct Session {
    id: u64,
    /// Numbers below are answered; the entries begin here.
    base: u64,
    entries: VecDeque<Option<Entry>>,
}

impl Session {
    fn release(&mut self, upto: u64) {
        while self.base < upto && self.entries.pop_front().is_some() {
            self.base += 1;
        }
        self.base = self.base.max(upto);
    }

    fn entry(&mut self, number: u64) -> Option<&mut Option<Entry>> {
        let index = number.checked_sub(self.base).filter(|i| *i < MAX_SPAN)?;
        let index = usize::try_from(index).ok()?;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, None);
        }
        self.entries.get_mut(index)
    }
}

/// The table of one replica. Volatile: a restarted process has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    era: Option<Epoch>,
    sessions: Vec<Session>,
    /// The era of the primary in session, once told.
    primary_era: Option<Epoch>,
    /// A primary is in session and has not said that all is settled.
    unsettled: bool,
}

impl Sessions {
    fn find(&self, id: u64) -> Option<usize> {
        self.sessions.iter().position(|s| s.id == id)
    }

    /// A write of the session comes in, in the order of the primary's stream. Another session of
    /// the same node is over: the primary has drained it.
    pub(crate) fn seen(&mut self, id: u64) {
        if id != 0 && self.find(id).is_none() {
            self.sessions.retain(|s| node_bits(s.id) != node_bits(id));
            self.sessions.push(Session {
                id,
                base: 0,
                entries: VecDeque::new(),
            });
        }
    }

    /// A write is on the local disk. `mark` is zero for what carries no number.
    pub(crate) fn wrote(&mut self, mark: ClientMark, at: VolumeRange) {
        if mark.session != 0
            && let Some(index) = self.find(mark.session)
        {
            let session = &mut self.sessions[index];
            session.release(mark.released);
            if let Some(entry) = session.entry(mark.number) {
                *entry = Some(Entry {
                    at,
                    here: Applied::Yes,
                    there: Applied::Yes,
                });
            }
        }
        if self.unsettled {
            self.overwritten(at);
        }
    }

    /// These bytes are the primary's now.
    fn overwritten(&mut self, at: VolumeRange) {
        for entry in self.entries_mut() {
            if entry.here == entry.there
                || entry.at.volume != at.volume
                || !entry.at.range.overlaps(at.range)
            {
                continue;
            }
            let whole = entry.at.range.intersection(at.range) == Some(entry.at.range);
            entry.here = if whole { entry.there } else { Applied::Torn };
        }
    }

    fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        let sessions = self.sessions.iter_mut();
        sessions.flat_map(|s| s.entries.iter_mut().flatten())
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        for slot in self.sessions.iter_mut().flat_map(|s| s.entries.iter_mut()) {
            if slot.as_ref().is_some_and(|entry| !keep(entry)) {
                *slot = None;
            }
        }
    }

    /// Everything below this number was answered.
    pub(crate) fn release(&mut self, id: u64, upto: u64) {
        if let Some(index) = self.find(id) {
            self.sessions[index].release(upto);
        }
    }

    /// Is the write on this replica's disk?
    pub(crate) fn applied(&self, id: u64, number: u64) -> Applied {
        let entry = self.find(id).and_then(|index| {
            let session = &self.sessions[index];
            let index = usize::try_from(number.checked_sub(session.base)?).ok()?;
            session.entries.get(index)?.as_ref()
        });
        entry.map_or(Applied::No, |entry| entry.here)
    }

    // ---- the primary's side ----

    /// This replica is primary now: its disk is what counts.
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        if self.era.is_none() {
            self.era = Some(epoch);
            self.sessions.clear();
        }
        self.unsettled = false;
        self.primary_era = None;
        self.retain(|entry| entry.here != Applied::No);
        for entry in self.entries_mut() {
            entry.there = entry.here;
        }
    }

    /// The era, once there is one.
    pub(crate) fn era(&self) -> Option<Epoch> {
        self.era
    }

    /// The whole table, for a replica.
    pub(crate) fn all(&self) -> impl Iterator<Item = NumberEntry> {
        self.sessions.iter().flat_map(|session| {
            let numbers = (0..).zip(&session.entries);
            numbers.filter_map(|(place, entry)| {
                let entry = entry.as_ref()?;
                Some(NumberEntry {
                    mark: ClientMark {
                        session: session.id,
                        number: session.base + place,
                        released: session.base,
                    },
                    at: entry.at,
                    torn: entry.here == Applied::Torn,
                })
            })
        })
    }

    // ---- the replica's side ----

    /// A session with a primary begins: nothing is known of what it has.
    pub(crate) fn meet(&mut self) {
        self.unsettled = true;
        self.primary_era = None;
        for entry in self.entries_mut() {
            entry.there = Applied::No;
        }
    }

    /// A part of the primary's table, before anything else of its session.
    pub(crate) fn told(&mut self, era: Epoch, entries: &[NumberEntry]) {
        if self.primary_era.is_none() {
            self.primary_era = Some(era);
            if self.era != Some(era) {
                // The primary may bring bytes here whose numbers it does not know.
                self.era = None;
                self.sessions.clear();
            }
        }
        for told in entries {
            self.seen(told.mark.session);
            let Some(index) = self.find(told.mark.session) else {
                continue;
            };
            let session = &mut self.sessions[index];
            session.release(told.mark.released);
            if let Some(slot) = session.entry(told.mark.number) {
                let entry = slot.get_or_insert(Entry {
                    at: told.at,
                    here: Applied::No,
                    there: Applied::No,
                });
                entry.there = if told.torn {
                    Applied::Torn
                } else {
                    Applied::Yes
                };
            }
        }
    }

    /// This replica holds the primary's bytes: its table is this one's.
    pub(crate) fn settled(&mut self) {
        if self.primary_era.is_none() {
            return;
        }
        self.era = self.primary_era;
        self.unsettled = false;
        self.retain(|entry| entry.there != Applied::No);
        for entry in self.entries_mut() {
            entry.here = entry.there;
        }
    }
}

#[cfg(test)]
mod tests;
