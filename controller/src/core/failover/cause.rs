//! Why a role changes, for the log of events.

use super::*;

/// Why this node is promoted, or lets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An operator has named this node.
    Named,
    /// Nobody was primary.
    Vacant,
    /// This node was primary before its restart, or its promotion has come to nothing before.
    Again,
    /// The primary's replica can't serve, as the primary says itself.
    Faulty(NodeId),
    /// Nothing was heard of the primary: for so many ms, or since this node's start.
    Silent(NodeId, Option<u64>),
    /// The primary asks for no lease any more, though it is heard: it can't reach somebody whom it needs.
    NoLease(NodeId),
    /// An operator has demoted the resource.
    Down,
    /// An operator has named another node.
    Moves(NodeId),
    /// This node is on standby.
    Standby,
}

impl Failover {
    pub(super) fn why_promoted(&self, now: Time, resource: ResourceId) -> Cause {
        let Some(subject) = self.subjects.get(&resource) else {
            return Cause::Vacant;
        };
        let primary = subject.record.as_ref().and_then(|record| record.primary);
        match primary {
            None if subject.next == Some(self.me) => Cause::Named,
            None => Cause::Vacant,
            Some(node) if node == self.me => Cause::Again,
            Some(node) => {
                let peer = self.peers.get(&node);
                let answered = peer.and_then(|peer| peer.answered);
                if peer.is_some_and(|peer| peer.faulty.contains(&resource)) {
                    Cause::Faulty(node)
                } else if self.reaches(now, node) {
                    Cause::NoLease(node)
                } else {
                    Cause::Silent(node, answered.map(|at| now.ms_since(at)))
                }
            }
        }
    }
}
