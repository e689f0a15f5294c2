//! The configuration store of a simulation: one voter that applies [`Record::apply`] and remembers
//! who proposed what. Never fails and never forgets; that messages to and from it are lost, late or
//! doubled, and that it does not answer for a while, is the world's business.

use vocabulary::{Change, Epoch, Generation, Member, NodeId, NodeSet, Record, Refusal};

/// Which run of which node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    /// The node.
    pub node: NodeId,
    /// Counts starts over the whole cluster.
    pub run: u64,
}

/// The store's state.
#[derive(Clone, Debug)]
pub struct Store {
    record: Record,
    declared: Vec<Member>,
    /// Every promotion: who proposed it.
    promotions: Vec<(Epoch, Process)>,
    /// What every process has asked for, decided or not: a late proposal of a dead process may commit
    /// what its successor asks for in the same words.
    asked: Vec<(Process, Generation, Change)>,
    /// Does it answer?
    pub up: bool,
}

impl Store {
    /// A store that holds this record.
    #[must_use]
    pub fn new(record: Record) -> Self {
        Self {
            record,
            declared: Vec::new(),
            promotions: Vec::new(),
            asked: Vec::new(),
            up: true,
        }
    }

    /// The committed record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What each node last declared.
    #[must_use]
    pub fn declared(&self) -> &[Member] {
        &self.declared
    }

    /// A node declares its disk. A late, older declaration of the same disk changes nothing.
    pub fn declare(&mut self, member: Member) {
        match self.declared.iter_mut().find(|d| d.node == member.node) {
            Some(old) if old.disk == member.disk && old.incarnation >= member.incarnation => {}
            Some(old) => *old = member,
            None => self.declared.push(member),
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    /// Where the record does not take it.
    pub fn propose(
        &mut self,
        from: Process,
        based_on: Generation,
        change: &Change,
    ) -> Result<(), Refusal> {
        let next = self.record.apply(based_on, change, &self.declared)?;
        if next.epoch != self.record.epoch {
            self.promotions.push((next.epoch, from));
        }
        self.record = next;
        Ok(())
    }

    /// An operator configures other replicas.
    pub fn configure(&mut self, replicas: NodeSet, min_redundancy: u8) {
        self.record = self.record.configured(replicas, min_redundancy);
    }

    /// A process sends a proposal.
    pub fn note(&mut self, from: Process, based_on: Generation, change: &Change) {
        if matches!(change, Change::Promote { .. } | Change::Force { .. }) {
            self.asked.push((from, based_on, change.clone()));
        }
    }

    /// Has this process asked for just the promotion that opened the present epoch?
    #[must_use]
    pub fn entitled(&self, process: Process) -> bool {
        let epoch = self.record.epoch;
        self.askers(epoch).any(|(asker, _)| asker == process)
    }

    /// Who has asked for the present primary in this epoch, and how.
    fn askers(&self, epoch: Epoch) -> impl Iterator<Item = (Process, &Change)> {
        let asked = self.asked.iter().filter(move |(_, based_on, change)| {
            let (Change::Promote { candidate, .. } | Change::Force { candidate, .. }) = change
            else {
                return false;
            };
            based_on.next().0 == epoch.0
                && self.record.primary == Some(candidate.node)
                && self.record.member(candidate.node) == Some(candidate)
        });
        asked.map(|(asker, _, change)| (*asker, change))
    }

    /// Another store has committed this record. The promotion that it was, if one.
    pub fn learn(&mut self, record: Record, declared: Vec<Member>) -> Option<(Process, Change)> {
        let promoted = record.epoch != self.record.epoch;
        self.record = record;
        self.declared = declared;
        if !promoted {
            return None;
        }
        let epoch = self.record.epoch;
        let (asker, change) = self.askers(epoch).last()?;
        let (asker, change) = (asker, change.clone());
        self.promotions.push((epoch, asker));
        Some((asker, change))
    }

    /// The process that proposed the promotion of this epoch.
    #[must_use]
    pub fn promoter(&self, epoch: Epoch) -> Option<Process> {
        self.promotions
            .iter()
            .find(|(e, _)| *e == epoch)
            .map(|(_, process)| *process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vocabulary::{DiskId, HistoryId, Incarnation, ResourceId};

    fn member(id: u8, incarnation: u64) -> Member {
        Member {
            node: NodeId::new(id).unwrap(),
            disk: DiskId(u128::from(id)),
            incarnation: Incarnation(incarnation),
        }
    }

    fn store() -> Store {
        Store::new(Record {
            resource: ResourceId(1),
            generation: Generation(1),
            epoch: Epoch(0),
            history: HistoryId(1),
            sizes: vec![4096],
            primary: None,
            in_sync: vec![member(0, 1), member(1, 1)],
            replicas: (0..2).filter_map(NodeId::new).collect(),
            min_redundancy: 1,
        })
    }

    #[test]
    fn the_promoter_of_an_epoch_is_remembered() {
        let mut store = store();
        let from = Process {
            node: member(1, 1).node,
            run: 9,
        };
        let change = Change::Promote {
            candidate: member(1, 1),
            drop: NodeSet::EMPTY,
            history: HistoryId(2),
        };
        store.propose(from, Generation(1), &change).unwrap();
        assert_eq!(store.promoter(store.record().epoch), Some(from));
        assert!(store.propose(from, Generation(1), &change).is_err());
    }

    #[test]
    fn a_late_declaration_does_not_take_an_incarnation_back() {
        let mut store = store();
        store.declare(member(0, 3));
        store.declare(member(0, 2));
        assert_eq!(store.declared(), &[member(0, 3)]);
    }
}
