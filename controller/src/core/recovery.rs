//! When a majority of the voters is lost for good (RULES section 4): the document of a survivor becomes
//! that of a new cluster, in which it is the only voter. The others come back by joining again.

use super::command::Refused;
use super::consensus::Voter;
use super::document::{Document, Node, Resource, Version};
use vocabulary::{ClusterId, Epoch, Generation, NodeId, Record};

/// A record's generation rises by this much: no cluster has changed a record so often behind the
/// survivor's back, so that every epoch which anybody has stored is a lower one (RULES 2).
const GENERATIONS: u64 = 1 << 32;

/// Most clusters that a document remembers to have been; the oldest is forgotten first.
pub const MAX_FORMER: usize = 16;

/// Why no new cluster is made of a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// The survivor is not a node of it.
    #[error("the configuration does not know node {node}")]
    NoNode {
        /// The survivor.
        node: NodeId,
    },
    /// The survivor decides alone already.
    #[error("this node is the only voter of its cluster: nobody is missing")]
    OnlyVoter,
    /// The counters are used up.
    #[error("the generation of a record can't rise any further")]
    Exhausted,
}

impl Document {
    /// The document of the new cluster. Every other node counts as lost.
    ///
    /// The survivor may have missed changes: what it has for the in-sync set may name replicas that
    /// lack acknowledged writes, its own among them. So no set is taken over: `in_sync` is empty,
    /// nobody is eligible (RULES 3), and only an operator's force makes a primary.
    ///
    /// # Errors
    /// See [`RecoveryError`].
    pub fn recovered(&self, cluster: ClusterId, survivor: Voter) -> Result<Self, RecoveryError> {
        let node = survivor.node;
        if self.node(node).is_none() {
            return Err(RecoveryError::NoNode { node });
        }
        let voters: Vec<NodeId> = self.voters.iter().map(|voter| voter.node).collect();
        if voters == [node] {
            return Err(RecoveryError::OnlyVoter);
        }
        let mut next = self.clone();
        next.cluster = cluster;
        next.version = Version(self.version.0 + 1);
        next.voters = vec![survivor];
        next.lost = self.nodes.iter().map(|node| node.id).collect();
        next.lost.remove(node);
        next.former.push(self.cluster);
        let forgotten = next.former.len().saturating_sub(MAX_FORMER);
        next.former.drain(..forgotten);
        for resource in &mut next.resources {
            resource.up = false;
            resource.next = None;
            resource.record = Some(recovered_record(resource)?);
        }
        Ok(next)
    }

    /// The id of a node that was lost and has this name.
    #[must_use]
    pub fn lost_node(&self, name: &str) -> Option<NodeId> {
        let node = self.node_named(name)?;
        self.lost.contains(node.id).then_some(node.id)
    }

    /// A lost node comes back, on the same machine or on another one, at these addresses.
    pub(super) fn rejoin(&mut self, node: &Node) -> Result<(), Refused> {
        if self.lost_node(node.name.as_str()) != Some(node.id) {
            return Err(Refused::NodeIdTaken { id: node.id });
        }
        self.set_node(node)?;
        self.lost.remove(node.id);
        Ok(())
    }
}

/// A resource that has no record here may have one with the others, and data: it gets one too.
fn recovered_record(resource: &Resource) -> Result<Record, RecoveryError> {
    let known = resource.record.as_ref();
    let reached = known.map_or(0, |record| record.generation.0.max(record.epoch.0));
    let generation = reached
        .checked_add(GENERATIONS)
        .filter(|&generation| generation < u64::MAX - GENERATIONS)
        .ok_or(RecoveryError::Exhausted)?;
    Ok(Record {
        resource: resource.id,
        generation: Generation(generation),
        epoch: Epoch(generation),
        history: known.map_or(resource.history, |record| record.history),
        sizes: resource.sizes().to_vec(),
        primary: None,
        in_sync: Vec::new(),
        replicas: resource.replicas.iter().map(|r| r.node).collect(),
        min_redundancy: resource.min_redundancy,
    })
}

#[cfg(test)]
mod tests;
