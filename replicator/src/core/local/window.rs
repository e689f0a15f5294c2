//! What the window takes in and lets go (RULES 6 and 7), and the activity log behind it.

use super::*;

impl<P: Payload> Local<P> {
    /// Remembers a range that is about to be written.
    pub(crate) fn window_add(
        &mut self,
        _step: &mut Step<'_, P>,
        seq: Seq,
        at: VolumeRange,
        kind: WriteKind,
    ) {
        self.window.add(Entry { seq, at, kind });
        let volume = &mut self.volumes[at.volume.index()];
        for extent in extents(at) {
            volume.pin(extent);
        }
    }

    /// Drops what waits for the log: it was never started.
    pub(super) fn cancel_waiting(&mut self) {
        for volume in &mut self.volumes {
            self.busy -= volume.waiting.len();
            volume.waiting.clear();
        }
    }

    /// The session is over: its part of the window becomes part of the old one.
    pub(crate) fn live_becomes_old(&mut self) {
        self.cancel_waiting();
        let now = Time::default();
        for entry in self.window.take_live() {
            let index = entry.at.volume.index();
            self.window.old[index].insert(entry.at.range);
            let volume = &mut self.volumes[index];
            for extent in extents(entry.at) {
                if volume.old_pins.insert(extent) {
                    volume.pin(extent);
                }
                volume.unpin(extent, now);
            }
        }
    }

    /// Extents that the smallest log of a volume can hold.
    pub(crate) fn log_capacity(&self) -> u64 {
        self.volumes
            .iter()
            .map(|v| u64::from(v.log.capacity().get()))
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Takes ranges into the old part of the window; done when the log covers them. What the log has
    /// no room for is marked for every other replica instead, which says more than the window would.
    pub(crate) fn touch(&mut self, step: &mut Step<'_, P>, tag: Tag, ranges: &[VolumeRange]) {
        let left = ranges.len() + 2;
        let join = self.joins.insert(Join {
            tag,
            at: None,
            left,
            error: None,
        }) as u64;
        let mut marked = false;
        for at in ranges {
            let index = at.volume.index();
            let volume = &mut self.volumes[index];
            let new = extents(*at)
                .filter(|e| !volume.old_pins.contains(e))
                .count();
            // Half of the log is left to writes.
            let room = volume.log.capacity().get() as usize / 2;
            if volume.old_pins.len() + new > room.max(1) && new > 0 {
                for node in self.bound_nodes() {
                    self.mark(node, *at);
                }
                marked = true;
                self.join_done(join, None);
                continue;
            }
            self.window.old[index].insert(at.range);
            for extent in extents(*at) {
                if volume.old_pins.insert(extent) {
                    volume.pin(extent);
                }
            }
            let body = Body::Touch(join);
            self.submit(
                step,
                Waiting {
                    tag: Tag::Nobody,
                    at: *at,
                    body,
                    mark: ClientMark::default(),
                },
            );
        }
        if marked {
            self.save_bits_for(step, join);
        } else {
            self.join_done(join, None);
        }
        self.join_done(join, None);
    }

    /// What is stable on all of *required* leaves the window and is marked for every replica that is
    /// not named. With `old`, what was left of earlier sessions leaves too; of that only members are
    /// known to have everything.
    pub(crate) fn release(
        &mut self,
        step: &mut Step<'_, P>,
        upto: Seq,
        old: Option<NodeSet>,
        named: NodeSet,
        replicas: NodeSet,
    ) {
        let unnamed = replicas.difference(named).without(self.identity.node);
        while let Some(entry) = self.window.pop_upto(upto) {
            if entry.kind != WriteKind::Copy {
                for node in unnamed.iter() {
                    self.mark(node, entry.at);
                }
            }
            let volume = &mut self.volumes[entry.at.volume.index()];
            for extent in extents(entry.at) {
                volume.unpin(extent, step.now);
            }
        }
        if let Some(members) = old
            && self.window.has_old()
        {
            let unnamed = unnamed
                .union(replicas.difference(members))
                .without(self.identity.node);
            for id in self.volume_ids() {
                let set = std::mem::take(&mut self.window.old[id.index()]);
                for range in set.ranges() {
                    for node in unnamed.iter() {
                        self.mark(node, VolumeRange { volume: id, range });
                    }
                }
                let volume = &mut self.volumes[id.index()];
                for extent in std::mem::take(&mut volume.old_pins) {
                    volume.unpin(extent, step.now);
                }
            }
            if std::mem::take(&mut self.whole_window) {
                // The superblock says so until the bits that replace it are on disk.
                self.save_bits(step, Tag::WholeSettled);
            }
        }
        // Room in the log may be what a write waits for.
        for index in 0..self.volumes.len() {
            self.pump_log(step, index);
        }
    }

    /// A fault for the simulator: forgets that the range was written.
    pub(crate) fn forget(&mut self, at: VolumeRange) {
        for entry in &mut self.window.live {
            if entry.at.volume == at.volume && entry.at.range.overlaps(at.range) {
                entry.kind = WriteKind::Copy;
            }
        }
    }

    /// The bits that stand for a window of the whole volume are on disk.
    pub(crate) fn whole_settled(&mut self, step: &mut Step<'_, P>, ok: bool) {
        if ok && !self.whole_window {
            for volume in &mut self.volumes {
                volume.superblock.whole_window = false;
            }
            self.persist(step, Tag::Nobody);
        }
    }

    /// A clean close, one step after the other: drain, flush, bits, superblock.
    pub(crate) fn advance_close(&mut self, step: &mut Step<'_, P>) {
        if self.closing == Closing::No && self.drained() {
            self.closing = Closing::Flushing;
            self.flush(step, Tag::Nobody);
        } else if self.closing == Closing::Flushing && self.drained() {
            self.closing = Closing::Saving;
            self.close(step);
        }
    }
}
