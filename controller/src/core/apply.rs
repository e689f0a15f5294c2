//! [`Document::apply`]: the only place where a document is made from another. Nodes and voters are
//! here, `resources` has the rest.

mod resources;

use super::command::{Command, Refused};
use super::consensus::{Voter, VoterId};
use super::document::{
    Document, Fencing, MAX_ADDRESSES, MAX_VOTERS, Node, NodeState, Resource, Timings, Version,
};
use super::mutation::{Mutation, mutated};
use vocabulary::NodeId;

impl Document {
    /// The document after the command, or why it was refused. A command that changes nothing gives
    /// the same document with the same version.
    ///
    /// # Errors
    /// [`Refused`]; the document is as it was.
    pub fn apply(&self, command: &Command) -> Result<Self, Refused> {
        let mut next = self.clone();
        match command {
            Command::Nothing => {}
            Command::AddNode { node } => next.add_node(node)?,
            Command::RemoveNode { node } => next.remove_node(*node)?,
            Command::SetNode { node } => next.set_node(node)?,
            Command::SetNodeState { node, state } => next.set_node_state(*node, *state)?,
            Command::SetFencing { node, fencing } => next.set_fencing(*node, fencing.clone())?,
            Command::SetTimings { timings } => next.set_timings(*timings)?,
            Command::AddVoter { voter } => next.add_voter(*voter)?,
            Command::RemoveVoter { id } => next.remove_voter(*id)?,
            Command::Up {
                resource,
                next: wanted,
            } => next.up(*resource, *wanted)?,
            Command::Down { resource } => {
                let resource = next.find_mut(*resource)?;
                resource.up = false;
                resource.next = None;
            }
            Command::CreateResource {
                name,
                id,
                history,
                sizes,
                replicas,
                min_redundancy,
                policy,
            } => next.create(Resource {
                name: name.clone(),
                id: *id,
                initial_sizes: sizes.clone(),
                replicas: replicas.clone(),
                min_redundancy: *min_redundancy,
                policy: *policy,
                up: false,
                next: None,
                history: *history,
                record: None,
            })?,
            Command::SetResource {
                resource,
                min_redundancy,
                policy,
            } => next.set_resource(*resource, *min_redundancy, *policy)?,
            Command::AddReplica { resource, replica } => next.add_replica(*resource, replica)?,
            Command::RemoveReplica { resource, node } => next.remove_replica(*resource, *node)?,
            Command::DeleteResource { resource } => next.delete(*resource)?,
            Command::Declare { resource, report } => next.declare(*resource, *report)?,
            Command::BeginResource { resource } => next.begin(*resource)?,
            Command::ReplaceDisk {
                resource,
                node,
                disk,
                backing,
            } => next.replace_disk(*resource, *node, *disk, backing)?,
            Command::Propose {
                resource,
                based_on,
                change,
            } => next.propose(*resource, *based_on, change)?,
        }
        if next != *self {
            next.version = Version(self.version.0 + 1);
        }
        Ok(next)
    }

    fn add_node(&mut self, node: &Node) -> Result<(), Refused> {
        match self.node(node.id) {
            // The same command once more (its answer was lost) is not an error.
            Some(known) if known == node && !self.lost.contains(node.id) => Ok(()),
            None if !self.departed.contains(node.id) => self.set_node(node),
            _ => self.rejoin(node),
        }
    }

    fn remove_node(&mut self, id: NodeId) -> Result<(), Refused> {
        let mut resources = self.resources.iter();
        if let Some(resource) = resources.find(|resource| resource.replica(id).is_some()) {
            return Err(Refused::HoldsReplica {
                node: id,
                resource: resource.name.clone(),
            });
        }
        if let Some(&voter) = self.voters.iter().find(|voter| voter.node == id) {
            self.remove_voter(voter.id)?;
        }
        if self.node(id).is_some() {
            self.nodes.retain(|node| node.id != id);
            self.departed.insert(id);
            self.lost.remove(id);
        }
        Ok(())
    }

    pub(super) fn set_node(&mut self, node: &Node) -> Result<(), Refused> {
        if let Some(other) = self.node_named(node.name.as_str())
            && other.id != node.id
        {
            return Err(Refused::NodeNameTaken {
                name: node.name.clone(),
                id: other.id,
            });
        }
        for addresses in [&node.control, &node.replication] {
            if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
                return Err(Refused::AddressCount {
                    count: count(addresses.len()),
                });
            }
        }
        // An address serves one purpose of one node.
        for (place, address) in addresses(node).enumerate() {
            let others = self.nodes.iter().filter(|other| other.id != node.id);
            let mut others = others.flat_map(|other| addresses(other).map(|a| (a, &other.name)));
            let other = others.find(|(other, _)| *other == address);
            let twice = addresses(node).take(place).any(|other| other == address);
            let twice = twice.then_some((address, &node.name));
            if let Some((_, name)) = other.or(twice) {
                return Err(Refused::AddressTaken {
                    address: address.clone(),
                    name: name.clone(),
                });
            }
        }
        let mut node = node.clone();
        if let Some(known) = self.node(node.id) {
            node.state = known.state;
            node.fencing.clone_from(&known.fencing);
        }
        self.nodes.retain(|other| other.id != node.id);
        self.nodes.push(node);
        self.nodes.sort_unstable_by_key(|node| node.id);
        Ok(())
    }

    fn set_node_state(&mut self, id: NodeId, state: NodeState) -> Result<(), Refused> {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        node.ok_or(Refused::NoNode { node: id })?.state = state;
        Ok(())
    }

    fn set_fencing(&mut self, id: NodeId, fencing: Option<Fencing>) -> Result<(), Refused> {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        node.ok_or(Refused::NoNode { node: id })?.fencing = fencing;
        Ok(())
    }

    /// A lease is counted by the node that holds it and by those that granted it: its length changes
    /// only while nobody holds any.
    fn set_timings(&mut self, timings: Timings) -> Result<(), Refused> {
        timings.check()?;
        let lease = |timings: &Timings| (timings.lease_ms, timings.drift_percent);
        let primary = |resource: &&Resource| {
            let record = resource.record.as_ref();
            record.is_some_and(|record| record.primary.is_some())
        };
        if lease(&timings) != lease(&self.timings)
            && !mutated(Mutation::LeaseChangesUnderAPrimary)
            && let Some(resource) = self.resources.iter().find(primary)
        {
            let resource = resource.name.clone();
            return Err(Refused::LeaseInUse { resource });
        }
        self.timings = timings;
        Ok(())
    }

    fn add_voter(&mut self, voter: Voter) -> Result<(), Refused> {
        let node = voter.node;
        if self.node(node).is_none() {
            return Err(Refused::NoNode { node });
        }
        if let Some(present) = self.voters.iter().find(|present| present.node == node) {
            // The same command once more (its answer was lost) is not an error.
            if present.id == voter.id {
                return Ok(());
            }
            return Err(Refused::VotesAlready {
                node,
                voter: present.id,
            });
        }
        if self.voters.len() >= MAX_VOTERS {
            return Err(Refused::TooManyVoters);
        }
        self.voters.push(voter);
        self.voters.sort_unstable();
        Ok(())
    }

    fn remove_voter(&mut self, id: VoterId) -> Result<(), Refused> {
        if self.voters.iter().all(|voter| voter.id != id) {
            return Err(Refused::NoVoter { id });
        }
        if self.voters.len() == 1 {
            return Err(Refused::LastVoter);
        }
        self.voters.retain(|voter| voter.id != id);
        Ok(())
    }
}

fn addresses(node: &Node) -> impl Iterator<Item = &String> {
    node.control.iter().chain(&node.replication)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
