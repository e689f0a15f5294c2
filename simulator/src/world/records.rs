//! The configuration store and the nodes: proposals, records, and what a commit means for what is checked.

use super::*;

impl World {
    pub(super) fn store_tick(&mut self) {
        if self.is_whole() {
            return;
        }
        if self.store.up {
            for i in 0..self.nodes.len() {
                let node = &self.nodes[i];
                let skipped = self.faults.chance(20, &mut self.rng);
                if !node.is_running() || self.store_cut[i] || skipped {
                    continue;
                }
                let (id, member) = (node.id, node.member());
                self.store.declare(member);
                let stale = self
                    .node(id)
                    .core
                    .as_ref()
                    .is_none_or(|c| c.generation() < self.store.record().generation);
                if stale || self.faults.chance(10, &mut self.rng) {
                    let record = Box::new(self.store.record().clone());
                    let us = self.rng.between(100, 3000);
                    self.after_us(us, Occurrence::Record(id, record));
                }
            }
        }
        self.after_us(100_000, Occurrence::StoreTick);
    }

    pub(super) fn proposal(&mut self, from: Process, based_on: Generation, change: &Change) {
        if !self.store.up || self.store_cut[from.node.index()] {
            return;
        }
        let before = self.store.record().clone();
        let delay = self.faults.store_us(&mut self.rng);
        match self.store.propose(from, based_on, change) {
            Ok(()) => {
                self.say(|| format!("store  commits {change:?}: {:?}", self.store.record()));
                self.committed(from, &before, change);
                for i in 0..self.nodes.len() {
                    let id = self.nodes[i].id;
                    for _ in 0..self.faults.copies(&mut self.rng) {
                        let record = Box::new(self.store.record().clone());
                        let us = self.faults.store_us(&mut self.rng);
                        self.after_us(us, Occurrence::Record(id, record));
                    }
                }
            }
            Err(refusal) => {
                self.say(|| format!("store  refuses {change:?} of {from:?}: {refusal}"));
                let refused = Occurrence::Refused(from, based_on, Box::new(refusal));
                self.after_us(delay, refused);
            }
        }
    }

    pub(crate) fn committed(&mut self, from: Process, before: &Record, change: &Change) {
        let after = self.store.record().clone();
        match change {
            Change::Promote { candidate, .. } => {
                let node = candidate.node;
                // A late proposal of a process that has died meanwhile: nobody will serve in that epoch.
                if self.node(from.node).process() == from && self.node(from.node).is_running() {
                    let result =
                        crate::rules::promotion_was_allowed(before, &after, &self.nodes, node);
                    self.expect(result);
                }
                if before.history != after.history {
                    self.checker.new_history(false);
                }
            }
            Change::Force { .. } => {
                // An operator has made sure that nobody else serves.
                self.operator.forced = true;
                self.checker.new_history(true);
            }
            Change::Admit { member } => {
                if !self.node(member.node).backs(member) {
                    // The admit of a disk that lost its cache meanwhile: worthless, but nobody could know.
                    self.say(|| format!("store  admitted {member:?}, which has lost its cache"));
                }
            }
            Change::Demote { .. } | Change::Evict { .. } | Change::Resize { .. } => {}
        }
    }

    /// A size of a volume, by the record.
    #[must_use]
    pub fn size_of(&self, volume: VolumeId) -> u64 {
        self.record()
            .sizes
            .get(volume.index())
            .copied()
            .unwrap_or(0)
    }
}
