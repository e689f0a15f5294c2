//! The configuration record of a resource and the changes that it can take (RULES section 1). Each
//! change is a compare-and-set on the generation; [`Record::apply`] is the only place where a record
//! is made from another, so the store, the simulator and the tests agree on what a change means.

use crate::{
    DiskId, Epoch, Generation, HistoryId, Incarnation, NodeId, NodeSet, ResourceId, VolumeId,
};
use serde::{Deserialize, Serialize};

/// A replica's disk as the record names it. Only a replica whose disk *and* incarnation stand here
/// is promoted (RULES 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The node that holds the disk.
    pub node: NodeId,
    /// The disk's contents.
    pub disk: DiskId,
    /// Its incarnation when it was admitted.
    pub incarnation: Incarnation,
}

/// What the configuration store holds for a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The resource.
    pub resource: ResourceId,
    /// Counts every change.
    pub generation: Generation,
    /// Generation of the last promote or force; 0 before the first.
    pub epoch: Epoch,
    /// Changes when unflushed writes may have been lost.
    pub history: HistoryId,
    /// Size in bytes of each volume.
    pub sizes: Vec<u64>,
    /// The node that may serve in this epoch.
    pub primary: Option<NodeId>,
    /// The in-sync set, ascending by node.
    pub in_sync: Vec<Member>,
    /// Every node that is configured to hold a replica.
    pub replicas: NodeSet,
    /// No change leaves fewer members in the in-sync set than this. At least 1.
    pub min_redundancy: u8,
}

/// A change of a record; there are no others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Change {
    /// The candidate becomes primary in a new epoch; members that it cannot reach leave.
    Promote {
        /// The candidate with its present disk and incarnation.
        candidate: Member,
        /// Members that leave in the same change.
        drop: NodeSet,
        /// The new history, used only where every member's caches may have been lost (RULES 3).
        history: HistoryId,
    },
    /// The primary serves no more.
    Demote {
        /// The primary.
        node: NodeId,
        /// Whom it makes way for. A wish: the record stays without a primary.
        to: Option<NodeId>,
    },
    /// A member leaves the in-sync set, by the primary's word.
    Evict {
        /// The member.
        node: NodeId,
    },
    /// A replica enters the in-sync set, or a member's incarnation is renewed.
    Admit {
        /// The replica with its present disk and incarnation.
        member: Member,
    },
    /// A volume has another size.
    Resize {
        /// The volume.
        volume: VolumeId,
        /// Its new size in bytes.
        size_bytes: u64,
    },
    /// An operator's word: the replica's bytes are taken as the truth, whatever others hold.
    Force {
        /// The replica.
        candidate: Member,
        /// The new history.
        history: HistoryId,
    },
}

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The record has changed since the proposer read it.
    #[error("the record is at generation {current}, the change was based on {based_on}")]
    Stale {
        /// What the proposer had.
        based_on: Generation,
        /// What the store has.
        current: Generation,
    },
    /// The candidate's disk or incarnation does not stand in the in-sync set.
    #[error(
        "node {node} is not in the in-sync set with this disk and incarnation; it has no claim to the latest data"
    )]
    NotEligible {
        /// The candidate.
        node: NodeId,
    },
    /// Too few members would be left.
    #[error("{left} in-sync members would be left, min_redundancy is {min_redundancy}")]
    Redundancy {
        /// Members after the change.
        left: u8,
        /// What the record asks for.
        min_redundancy: u8,
    },
    /// The node is not the primary.
    #[error("node {node} is not the primary")]
    NotPrimary {
        /// The node.
        node: NodeId,
    },
    /// The primary itself can't be evicted: it demotes.
    #[error("node {node} is the primary: it demotes instead of being evicted")]
    IsPrimary {
        /// The node.
        node: NodeId,
    },
    /// The node holds no replica, or is not in the in-sync set.
    #[error("node {node} is not a member")]
    NotMember {
        /// The node.
        node: NodeId,
    },
    /// There is no such volume.
    #[error("there is no volume {volume}")]
    NoVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The store does not know the resource.
    #[error("there is no resource {resource}")]
    NoResource {
        /// The resource.
        resource: ResourceId,
    },
}

impl Record {
    /// The in-sync set as nodes.
    #[must_use]
    pub fn members(&self) -> NodeSet {
        self.in_sync.iter().map(|m| m.node).collect()
    }

    /// The member of this node.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.in_sync.iter().find(|m| m.node == node)
    }

    /// The record with replicas on these nodes, in a new generation if that changes anything. One that
    /// is not configured any more leaves the in-sync set too; a new one lacks everything.
    #[must_use]
    pub fn configured(&self, replicas: NodeSet, min_redundancy: u8) -> Self {
        let mut next = self.clone();
        next.replicas = replicas;
        next.min_redundancy = min_redundancy;
        next.in_sync.retain(|m| replicas.contains(m.node));
        if next != *self {
            next.generation = self.generation.next();
        }
        next
    }

    /// May this replica be promoted (RULES 3)? `declared` are the incarnations that replicas last
    /// declared: where every member has declared a newer one, all caches may be gone and any member
    /// will do; `Some(true)` then says that a new history begins.
    #[must_use]
    pub fn eligible(&self, candidate: &Member, declared: &[Member]) -> Option<bool> {
        let listed = self.member(candidate.node)?;
        if listed.disk != candidate.disk {
            return None;
        }
        if listed.incarnation == candidate.incarnation {
            return Some(false);
        }
        let all_restarted = self.in_sync.iter().all(|member| {
            declared.iter().chain([candidate]).any(|d| {
                d.node == member.node && d.disk == member.disk && d.incarnation > member.incarnation
            })
        });
        all_restarted.then_some(true)
    }

    /// The record after the change, or why it was refused. `declared`: see [`Self::eligible`].
    ///
    /// # Errors
    /// A [`Refusal`]; the record is as it was.
    pub fn apply(
        &self,
        based_on: Generation,
        change: &Change,
        declared: &[Member],
    ) -> Result<Self, Refusal> {
        if based_on != self.generation {
            return Err(Refusal::Stale {
                based_on,
                current: self.generation,
            });
        }
        let mut next = self.clone();
        next.generation = self.generation.next();
        match change {
            Change::Promote {
                candidate,
                drop,
                history,
            } => {
                let node = candidate.node;
                let new_history = self
                    .eligible(candidate, declared)
                    .ok_or(Refusal::NotEligible { node })?;
                next.in_sync
                    .retain(|m| m.node == node || !drop.contains(m.node));
                for member in &mut next.in_sync {
                    if member.node == node {
                        *member = *candidate;
                    }
                }
                if new_history {
                    next.history = *history;
                }
                next.primary = Some(node);
                next.epoch = Epoch(next.generation.0);
            }
            Change::Demote { node, .. } => {
                self.expect_primary(*node)?;
                next.primary = None;
            }
            Change::Evict { node } => {
                if self.primary == Some(*node) {
                    return Err(Refusal::IsPrimary { node: *node });
                }
                if self.member(*node).is_none() {
                    return Err(Refusal::NotMember { node: *node });
                }
                next.in_sync.retain(|m| m.node != *node);
            }
            Change::Admit { member } => {
                if !self.replicas.contains(member.node) {
                    return Err(Refusal::NotMember { node: member.node });
                }
                next.in_sync.retain(|m| m.node != member.node);
                next.in_sync.push(*member);
                next.in_sync.sort_unstable();
                return Ok(next);
            }
            Change::Resize { volume, size_bytes } => {
                let size = next
                    .sizes
                    .get_mut(volume.index())
                    .ok_or(Refusal::NoVolume { volume: *volume })?;
                *size = *size_bytes;
                return Ok(next);
            }
            Change::Force { candidate, history } => {
                if !self.replicas.contains(candidate.node) {
                    return Err(Refusal::NotMember {
                        node: candidate.node,
                    });
                }
                next.in_sync = vec![*candidate];
                next.primary = Some(candidate.node);
                next.epoch = Epoch(next.generation.0);
                next.history = *history;
                return Ok(next);
            }
        }
        let left = u8::try_from(next.in_sync.len()).unwrap_or(u8::MAX);
        // A change that takes nobody out is not to blame for a set that was too small before.
        if left < self.min_redundancy && next.in_sync.len() < self.in_sync.len() {
            return Err(Refusal::Redundancy {
                left,
                min_redundancy: self.min_redundancy,
            });
        }
        Ok(next)
    }

    fn expect_primary(&self, node: NodeId) -> Result<(), Refusal> {
        if self.primary == Some(node) {
            Ok(())
        } else {
            Err(Refusal::NotPrimary { node })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u8) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn member(id: u8, incarnation: u64) -> Member {
        Member {
            node: node(id),
            disk: DiskId(u128::from(id) + 100),
            incarnation: Incarnation(incarnation),
        }
    }

    fn record() -> Record {
        Record {
            resource: ResourceId(7),
            generation: Generation(3),
            epoch: Epoch(2),
            history: HistoryId(1),
            sizes: vec![1 << 20],
            primary: Some(node(0)),
            in_sync: vec![member(0, 1), member(1, 1)],
            replicas: (0..3).map(node).collect(),
            min_redundancy: 1,
        }
    }

    fn promote(candidate: Member, drop: NodeSet) -> Change {
        Change::Promote {
            candidate,
            drop,
            history: HistoryId(9),
        }
    }

    #[test]
    fn a_change_based_on_another_generation_is_refused() {
        let change = Change::Demote {
            node: node(0),
            to: None,
        };
        assert_eq!(
            record().apply(Generation(2), &change, &[]),
            Err(Refusal::Stale {
                based_on: Generation(2),
                current: Generation(3)
            })
        );
    }

    #[test]
    fn only_a_member_with_its_disk_and_incarnation_is_promoted() {
        let record = record();
        let at = record.generation;
        for candidate in [
            member(2, 1),
            member(1, 2),
            Member {
                disk: DiskId(5),
                ..member(1, 1)
            },
        ] {
            assert!(matches!(
                record.apply(at, &promote(candidate, NodeSet::EMPTY), &[]),
                Err(Refusal::NotEligible { .. })
            ));
        }
        let next = record
            .apply(at, &promote(member(1, 1), NodeSet::only(node(0))), &[])
            .unwrap();
        assert_eq!(next.epoch, Epoch(4));
        assert_eq!(next.in_sync, vec![member(1, 1)]);
        assert_eq!(next.history, HistoryId(1));
    }

    #[test]
    fn when_every_member_lost_its_caches_any_may_be_promoted_in_a_new_history() {
        let record = record();
        let at = record.generation;
        let change = promote(member(1, 2), NodeSet::EMPTY);
        assert!(record.apply(at, &change, &[member(0, 1)]).is_err());
        let next = record.apply(at, &change, &[member(0, 2)]).unwrap();
        assert_eq!(next.history, HistoryId(9));
        assert_eq!(next.in_sync, vec![member(0, 1), member(1, 2)]);
    }

    #[test]
    fn no_change_goes_below_min_redundancy() {
        let record = Record {
            min_redundancy: 2,
            ..record()
        };
        let evict = Change::Evict { node: node(1) };
        assert!(matches!(
            record.apply(record.generation, &evict, &[]),
            Err(Refusal::Redundancy {
                left: 1,
                min_redundancy: 2
            })
        ));
        assert!(
            record
                .apply(
                    record.generation,
                    &promote(member(1, 1), NodeSet::only(node(0))),
                    &[]
                )
                .is_err()
        );
    }

    #[test]
    fn the_primary_is_not_evicted_and_only_it_demotes() {
        let record = record();
        let at = record.generation;
        assert!(
            record
                .apply(at, &Change::Evict { node: node(0) }, &[])
                .is_err()
        );
        assert!(
            record
                .apply(
                    at,
                    &Change::Demote {
                        node: node(1),
                        to: None,
                    },
                    &[]
                )
                .is_err()
        );
        assert_eq!(
            record
                .apply(
                    at,
                    &Change::Demote {
                        node: node(0),
                        to: None,
                    },
                    &[]
                )
                .unwrap()
                .primary,
            None
        );
    }

    #[test]
    fn admit_replaces_the_members_incarnation() {
        let record = record();
        let next = record
            .apply(
                record.generation,
                &Change::Admit {
                    member: member(1, 5),
                },
                &[],
            )
            .unwrap();
        assert_eq!(next.in_sync, vec![member(0, 1), member(1, 5)]);
        assert_eq!(next.epoch, record.epoch);
    }
}
