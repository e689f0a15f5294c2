//! Is what the clients saw possible? Every 512-byte sector is an atomic register (rules 1 to 3, 5, 8
//! seen from outside). Writes carry unique stamps, so the exact test of Gibbons and Korach ("Testing
//! shared memories", 1997) applies: each write and its reads make a zone; the history is linearizable
//! exactly where no two forward zones overlap and no backward zone lies within a forward one. Zeroes
//! are not unique: a read of zeroes is laid at the door of a write of zeroes only where no other could
//! have been meant.
//!
//! A new history (RULES 3, force) starts every register anew from what may have survived.
//! Knows nothing of nodes, records or disks.

use crate::disk::sectors;
use crate::payload::ZERO;
use std::collections::BTreeMap;
use vocabulary::{ByteRange, VolumeId};

/// The checker's time: counts invocations and answers.
pub type Tick = u64;

/// Names a write; also the upper part of its stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u32);

const INDEX_BITS: u32 = 20;

/// The stamp of sector `index` of a write.
#[must_use]
pub fn stamp(write: WriteId, index: usize) -> u64 {
    (u64::from(write.0) << INDEX_BITS) | u64::try_from(index).unwrap_or(0)
}

fn stamp_write(stamp: u64) -> WriteId {
    WriteId(u32::try_from(stamp >> INDEX_BITS).unwrap_or(u32::MAX))
}

#[derive(Clone, Debug)]
struct Write {
    volume: VolumeId,
    first: usize,
    count: usize,
    zero: bool,
    invoked: Tick,
    acked: Option<Tick>,
    /// Covered by an answered flush, or FUA.
    stable: bool,
    history: u32,
}

impl Write {
    fn stamp_at(&self, id: WriteId, sector: usize) -> u64 {
        if self.zero {
            ZERO
        } else {
            stamp(id, sector - self.first)
        }
    }

    fn covers(&self, volume: VolumeId, sector: usize) -> bool {
        self.volume == volume && self.first <= sector && sector < self.first + self.count
    }
}

/// A write and the reads that saw it, in one register.
#[derive(Clone, Debug)]
struct Zone {
    write: WriteId,
    stamp: u64,
    /// Latest begin of any of them.
    last_begin: Tick,
    /// Earliest end of any of them; `Tick::MAX`: unknown and unseen.
    first_end: Tick,
    /// When the write was sent.
    sent: Tick,
    /// When it was answered with an error, so that it may have happened or not.
    given_up: Tick,
}

impl Zone {
    fn counts(&self) -> bool {
        self.first_end != Tick::MAX
    }

    /// Two forward zones that overlap, or a backward one within a forward one: both come down to this
    /// (and two backward zones never fulfil it).
    fn conflicts(&self, other: &Self) -> bool {
        self.first_end < other.last_begin && other.first_end < self.last_begin
            || self.comes_back_over(other)
            || other.comes_back_over(self)
    }

    /// The write was given up, and a later one that was seen to happen came before it.
    fn comes_back_over(&self, later: &Self) -> bool {
        self.given_up < later.sent && later.first_end < self.last_begin
    }
}

#[derive(Clone, Debug, Default)]
struct Register {
    /// What the register may have held when its history began; more than one until a read told.
    initial: Vec<u64>,
    /// The zone of the initial value.
    start: Option<Zone>,
    zones: Vec<Zone>,
}

/// What a client saw that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// A read returned something that was never written there.
    #[error(
        "a read of volume {volume} sector {sector} returned {stamp:#x}, which nobody wrote there"
    )]
    Invented {
        /// The volume.
        volume: VolumeId,
        /// The sector.
        sector: usize,
        /// What was read.
        stamp: u64,
    },
    /// No order of the requests explains the answers.
    #[error(
        "volume {volume} sector {sector}: no order of the requests explains {stamp:#x} (write {write:?}) beside {other:#x} (write {other_write:?})"
    )]
    NotLinearizable {
        /// The volume.
        volume: VolumeId,
        /// The sector.
        sector: usize,
        /// The value seen or written.
        stamp: u64,
        /// Its write.
        write: WriteId,
        /// The value that contradicts it.
        other: u64,
        /// Its write.
        other_write: WriteId,
    },
}

/// Stands for the initial contents.
const INITIAL: WriteId = WriteId(0);

/// All that clients asked and were answered.
#[derive(Clone, Debug)]
pub struct Checker {
    writes: Vec<Write>,
    registers: BTreeMap<(VolumeId, usize), Register>,
    unstable: Vec<WriteId>,
    tick: Tick,
    history: u32,
    history_began: Tick,
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// Nothing was asked yet; everything reads as zeroes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            writes: Vec::new(),
            registers: BTreeMap::new(),
            unstable: Vec::new(),
            tick: 1,
            history: 0,
            history_began: 0,
        }
    }

    /// A moment later than all before.
    pub fn tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    fn write_of(&self, id: WriteId) -> Option<&Write> {
        self.writes.get(usize::try_from(id.0).ok()?.checked_sub(1)?)
    }

    fn write_mut(&mut self, id: WriteId) -> Option<&mut Write> {
        self.writes
            .get_mut(usize::try_from(id.0).ok()?.checked_sub(1)?)
    }

    /// A client sends a write, or a write of zeroes.
    pub fn invoke_write(&mut self, volume: VolumeId, range: ByteRange, zero: bool) -> WriteId {
        let invoked = self.tick();
        let id = WriteId(u32::try_from(self.writes.len() + 1).unwrap_or(u32::MAX));
        let write = Write {
            volume,
            first: sectors(range.offset),
            count: sectors(range.len),
            zero,
            invoked,
            acked: None,
            stable: false,
            history: self.history,
        };
        for sector in write.first..write.first + write.count {
            let zone = Zone {
                write: id,
                stamp: write.stamp_at(id, sector),
                last_begin: invoked,
                first_end: Tick::MAX,
                sent: invoked,
                given_up: Tick::MAX,
            };
            self.register(volume, sector).zones.push(zone);
        }
        self.writes.push(write);
        id
    }

    /// The stamps that a write carries.
    #[must_use]
    pub fn stamps(&self, id: WriteId) -> Vec<u64> {
        self.write_of(id).map_or_else(Vec::new, |w| {
            (w.first..w.first + w.count)
                .map(|sector| w.stamp_at(id, sector))
                .collect()
        })
    }

    fn register(&mut self, volume: VolumeId, sector: usize) -> &mut Register {
        let began = self.history_began;
        self.registers
            .entry((volume, sector))
            .or_insert_with(|| Register::starting_with(vec![ZERO], began))
    }

    /// The write was answered with success. `fua`: it is stable. False where it belongs to a history
    /// that has ended: then its outcome counts as unknown.
    ///
    /// # Errors
    /// Where no order of the requests explains that.
    pub fn ack_write(&mut self, id: WriteId, fua: bool) -> Result<bool, Impossible> {
        let now = self.tick();
        let current = self.history;
        let Some(write) = self.write_mut(id) else {
            return Ok(false);
        };
        if write.history != current {
            return Ok(false);
        }
        if write.acked.is_some() {
            // Answered once more, to a node that sent it again.
            return Ok(true);
        }
        write.acked = Some(now);
        write.stable = fua;
        let write = write.clone();
        if !fua {
            self.unstable.push(id);
        }
        for sector in write.first..write.first + write.count {
            let register = self.register(write.volume, sector);
            if let Some(at) = register.zones.iter().position(|z| z.write == id) {
                register.zones[at].first_end = register.zones[at].first_end.min(now);
                register.check(at, write.volume, sector)?;
            }
        }
        Ok(true)
    }

    /// The write was answered with an error: it may happen or not, but not over a later one.
    pub fn give_up(&mut self, id: WriteId) {
        let now = self.tick();
        let Some((volume, first, count)) = self.extent_of(id) else {
            return;
        };
        for sector in first..first + count {
            let zones = &mut self.register(volume, sector).zones;
            if let Some(zone) = zones.iter_mut().find(|zone| zone.write == id) {
                zone.given_up = now;
            }
        }
    }

    /// Writes that were answered before `invoked` and are not known to be stable: what a flush that
    /// was sent then has to cover.
    pub fn covered_by_flush(
        &self,
        volume: VolumeId,
        invoked: Tick,
    ) -> impl Iterator<Item = WriteId> + '_ {
        self.unstable.iter().copied().filter(move |id| {
            self.write_of(*id)
                .is_some_and(|w| w.volume == volume && w.acked.is_some_and(|at| at < invoked))
        })
    }

    /// A flush of the volume that was sent at `invoked` is answered: what was answered before it is stable.
    pub fn ack_flush(&mut self, volume: VolumeId, invoked: Tick) {
        let covered: Vec<WriteId> = self.covered_by_flush(volume, invoked).collect();
        for id in &covered {
            if let Some(write) = self.write_mut(*id) {
                write.stable = true;
            }
        }
        self.unstable.retain(|id| !covered.contains(id));
    }

    /// A read that was sent at `invoked` is answered with these sectors.
    ///
    /// # Errors
    /// Where no order of the requests explains that.
    pub fn ack_read(
        &mut self,
        volume: VolumeId,
        range: ByteRange,
        invoked: Tick,
        stamps: &[u64],
    ) -> Result<(), Impossible> {
        let now = self.tick();
        for (i, stamp) in stamps.iter().enumerate() {
            let sector = sectors(range.offset) + i;
            self.register(volume, sector)
                .saw(*stamp, invoked, now, volume, sector)?;
        }
        Ok(())
    }

    /// A read of a node that was superseded meanwhile, where no lease forbids it (that is rule 4's
    /// business): it may be old, but not invented.
    ///
    /// # Errors
    /// Where a sector holds what nobody wrote there.
    pub fn ack_stale_read(
        &self,
        volume: VolumeId,
        range: ByteRange,
        stamps: &[u64],
    ) -> Result<(), Impossible> {
        for (i, stamp) in stamps.iter().enumerate() {
            self.expect_written(volume, sectors(range.offset) + i, *stamp)?;
        }
        Ok(())
    }

    /// Was that ever written there (or is it zero)?
    ///
    /// # Errors
    /// Where it was not.
    pub fn expect_written(
        &self,
        volume: VolumeId,
        sector: usize,
        stamp: u64,
    ) -> Result<(), Impossible> {
        let id = stamp_write(stamp);
        let written = stamp == ZERO
            || self
                .write_of(id)
                .is_some_and(|w| w.covers(volume, sector) && w.stamp_at(id, sector) == stamp);
        if written {
            Ok(())
        } else {
            Err(Impossible::Invented {
                volume,
                sector,
                stamp,
            })
        }
    }

    /// The range of a write: volume, first sector, count.
    #[must_use]
    pub fn extent_of(&self, id: WriteId) -> Option<(VolumeId, usize, usize)> {
        self.write_of(id).map(|w| (w.volume, w.first, w.count))
    }

    /// Is this write of the present history?
    #[must_use]
    pub fn is_current(&self, id: WriteId) -> bool {
        self.write_of(id).is_some_and(|w| w.history == self.history)
    }

    /// May a disk hold this where the answered write `id` must be in place: the write itself, or one
    /// that need not come before it?
    #[must_use]
    pub fn holds_or_newer(&self, id: WriteId, sector: usize, stamp: u64) -> bool {
        let Some(write) = self.write_of(id) else {
            return true;
        };
        if write.stamp_at(id, sector) == stamp {
            return true;
        }
        let Some(register) = self.registers.get(&(write.volume, sector)) else {
            return false;
        };
        register
            .zones
            .iter()
            .any(|z| z.stamp == stamp && z.first_end.min(z.given_up) >= write.invoked)
            || (register.initial.contains(&stamp)
                && register
                    .start
                    .as_ref()
                    .is_none_or(|s| s.first_end >= write.invoked))
    }

    /// A new history begins because the caches of all members may have been lost: what was not
    /// flushed may be gone. With `forced`, anything that was ever written may come back.
    pub fn new_history(&mut self, forced: bool) {
        let now = self.tick();
        let keys: Vec<(VolumeId, usize)> = self.registers.keys().copied().collect();
        for key in keys {
            let Some(register) = self.registers.get(&key) else {
                continue;
            };
            let mut initial: Vec<u64> = if forced {
                self.ever_written(key.0, key.1)
            } else {
                self.survivors(register)
            };
            initial.sort_unstable();
            initial.dedup();
            let mut next = Register::starting_with(initial, now);
            next.zones = register
                .zones
                .iter()
                .filter(|z| self.write_of(z.write).is_some_and(|w| w.acked.is_none()))
                .map(|z| Zone {
                    first_end: Tick::MAX,
                    last_begin: self.write_of(z.write).map_or(0, |w| w.invoked),
                    ..z.clone()
                })
                .collect();
            self.registers.insert(key, next);
        }
        self.unstable.clear();
        self.history += 1;
        self.history_began = now;
    }

    fn ever_written(&self, volume: VolumeId, sector: usize) -> Vec<u64> {
        let mut all = vec![ZERO];
        for (i, write) in self.writes.iter().enumerate() {
            if write.covers(volume, sector) {
                let id = WriteId(u32::try_from(i + 1).unwrap_or(u32::MAX));
                all.push(write.stamp_at(id, sector));
            }
        }
        all
    }

    /// What a register may hold after the caches were lost.
    fn survivors(&self, register: &Register) -> Vec<u64> {
        let stable: Vec<Tick> = register
            .zones
            .iter()
            .filter_map(|z| self.write_of(z.write))
            .filter(|w| w.stable && w.acked.is_some())
            .map(|w| w.invoked)
            .collect();
        let buried = |end: Tick| stable.iter().any(|invoked| end < *invoked);
        let mut values: Vec<u64> = register
            .zones
            .iter()
            .filter(|z| !buried(z.first_end))
            .map(|z| z.stamp)
            .collect();
        let began = register.start.as_ref().map_or(0, |s| s.first_end);
        if !buried(began) {
            values.extend_from_slice(&register.initial);
        }
        values
    }
}

impl Register {
    fn starting_with(initial: Vec<u64>, began: Tick) -> Self {
        Self {
            start: Some(Zone {
                write: INITIAL,
                stamp: initial.first().copied().unwrap_or(ZERO),
                last_begin: began,
                first_end: began,
                sent: 0,
                given_up: Tick::MAX,
            }),
            initial,
            zones: Vec::new(),
        }
    }

    /// The first zone that contradicts this one.
    fn contradiction(&self, zone: &Zone) -> Option<&Zone> {
        let start = self.start.iter().filter(|_| self.initial.len() == 1);
        self.zones
            .iter()
            .chain(start)
            .filter(|other| other.write != zone.write && other.counts())
            .find(|other| zone.conflicts(other))
    }

    fn check(&self, at: usize, volume: VolumeId, sector: usize) -> Result<(), Impossible> {
        let zone = &self.zones[at];
        match self.contradiction(zone) {
            None => Ok(()),
            Some(other) => Err(Impossible::NotLinearizable {
                volume,
                sector,
                stamp: zone.stamp,
                write: zone.write,
                other: other.stamp,
                other_write: other.write,
            }),
        }
    }

    fn saw(
        &mut self,
        stamp: u64,
        invoked: Tick,
        now: Tick,
        volume: VolumeId,
        sector: usize,
    ) -> Result<(), Impossible> {
        let widened = |zone: &Zone| Zone {
            last_begin: zone.last_begin.max(invoked),
            first_end: zone.first_end.min(now),
            ..zone.clone()
        };
        let sources: Vec<usize> = (0..self.zones.len())
            .filter(|i| self.zones[*i].stamp == stamp)
            .collect();
        let from_start = self.initial.contains(&stamp);
        let mut refuted = None;
        let mut possible = Vec::new();
        for at in sources {
            let zone = widened(&self.zones[at]);
            match self.contradiction(&zone) {
                None => possible.push((Some(at), zone)),
                Some(other) => refuted = Some((zone, other.clone())),
            }
        }
        if from_start && let Some(start) = &self.start {
            let zone = Zone {
                stamp,
                ..widened(start)
            };
            match self.contradiction(&zone) {
                None => possible.push((None, zone)),
                Some(other) => refuted = Some((zone, other.clone())),
            }
        }
        match (possible.pop(), possible.is_empty()) {
            (Some((Some(at), zone)), true) => self.zones[at] = zone,
            (Some((None, zone)), true) => {
                self.start = Some(zone);
                self.initial = vec![stamp];
            }
            // More than one write may be meant: no conclusion.
            (Some(_), false) => {}
            (None, _) => {
                let Some((zone, other)) = refuted else {
                    return Err(Impossible::Invented {
                        volume,
                        sector,
                        stamp,
                    });
                };
                return Err(Impossible::NotLinearizable {
                    volume,
                    sector,
                    stamp,
                    write: zone.write,
                    other: other.stamp,
                    other_write: other.write,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(0);
    const R: ByteRange = ByteRange::between(0, 512);

    fn write(c: &mut Checker) -> (WriteId, u64) {
        let id = c.invoke_write(V, R, false);
        (id, c.stamps(id)[0])
    }

    fn read(c: &mut Checker, stamp: u64) -> Result<(), Impossible> {
        let at = c.tick();
        c.ack_read(V, R, at, &[stamp])
    }

    #[test]
    fn a_read_after_an_answered_write_must_see_it() {
        let mut c = Checker::new();
        read(&mut c, ZERO).unwrap();
        let (w, stamp) = write(&mut c);
        c.ack_write(w, false).unwrap();
        assert!(read(&mut c.clone(), ZERO).is_err());
        read(&mut c, stamp).unwrap();
    }

    #[test]
    fn a_write_in_flight_may_be_seen_or_not_but_not_taken_back() {
        let mut c = Checker::new();
        let (_, stamp) = write(&mut c);
        read(&mut c, ZERO).unwrap();
        read(&mut c, stamp).unwrap();
        assert!(read(&mut c, ZERO).is_err());
    }

    #[test]
    fn a_write_that_was_given_up_may_still_happen_but_not_over_a_later_one() {
        let mut c = Checker::new();
        let (given_up, old) = write(&mut c);
        let (other, _) = write(&mut c);
        c.give_up(given_up);
        read(&mut c, ZERO).unwrap();
        // Sent before it was given up.
        c.ack_write(other, false).unwrap();
        read(&mut c.clone(), old).unwrap();
        let (later, new) = write(&mut c);
        read(&mut c.clone(), old).unwrap();
        c.ack_write(later, false).unwrap();
        assert!(read(&mut c.clone(), old).is_err());
        read(&mut c, new).unwrap();
    }

    #[test]
    fn concurrent_writes_keep_the_order_that_reads_have_shown() {
        let mut c = Checker::new();
        let (a, sa) = write(&mut c);
        let (b, sb) = write(&mut c);
        c.ack_write(a, false).unwrap();
        c.ack_write(b, false).unwrap();
        read(&mut c, sb).unwrap();
        assert!(read(&mut c.clone(), sa).is_err());
        read(&mut c, sb).unwrap();
    }

    #[test]
    fn what_nobody_wrote_there_is_invented() {
        let mut c = Checker::new();
        let (w, stamp) = write(&mut c);
        c.ack_write(w, false).unwrap();
        assert!(matches!(
            read(&mut c, stamp + 1),
            Err(Impossible::Invented { .. })
        ));
    }

    #[test]
    fn a_write_of_zeroes_hides_what_was_before() {
        let mut c = Checker::new();
        let (w, stamp) = write(&mut c);
        c.ack_write(w, false).unwrap();
        let zero = c.invoke_write(V, R, true);
        read(&mut c, stamp).unwrap();
        c.ack_write(zero, false).unwrap();
        read(&mut c, ZERO).unwrap();
        assert!(read(&mut c, stamp).is_err());
    }

    #[test]
    fn a_new_history_may_lose_what_was_not_flushed_but_not_more() {
        let mut c = Checker::new();
        let (a, sa) = write(&mut c);
        c.ack_write(a, false).unwrap();
        let flush = c.tick();
        c.ack_flush(V, flush);
        let (b, sb) = write(&mut c);
        c.ack_write(b, false).unwrap();
        c.new_history(false);
        assert!(read(&mut c.clone(), ZERO).is_err());
        read(&mut c.clone(), sb).unwrap();
        read(&mut c, sa).unwrap();
        // Once seen, that is what it is.
        assert!(read(&mut c, sb).is_err());
    }

    #[test]
    fn a_flush_does_not_cover_what_was_answered_after_it_was_sent() {
        let mut c = Checker::new();
        let (a, _) = write(&mut c);
        let flush = c.tick();
        c.ack_write(a, false).unwrap();
        c.ack_flush(V, flush);
        c.new_history(false);
        read(&mut c, ZERO).unwrap();
    }

    #[test]
    fn a_disk_that_lacks_an_answered_write_is_told_from_one_that_has_a_newer_one() {
        let mut c = Checker::new();
        let (a, sa) = write(&mut c);
        let (_, sb) = write(&mut c);
        c.ack_write(a, false).unwrap();
        assert!(c.holds_or_newer(a, 0, sa));
        assert!(c.holds_or_newer(a, 0, sb));
        assert!(!c.holds_or_newer(a, 0, ZERO));
    }
}
