//! What can be asked of the configuration store, and what it answers. [`Document::apply`] is the only
//! place where a document is made from another.

use super::consensus::{Voter, VoterId};
use super::document::{
    Backing, Document, Fencing, MAX_ADDRESSES, MAX_REPLICAS, MAX_RESOURCES, MAX_VOLUMES,
    MAX_VOTERS, Node, NodeState, Policy, Replica, Report, Resource, Version,
};
use super::name::Name;
use serde::{Deserialize, Serialize};
use vocabulary::{
    BLOCK_BYTES, Change, DiskId, Epoch, Generation, HistoryId, Member, NodeId, Record, Refusal,
    ResourceId,
};

/// Largest volume, in bytes: what a file offset holds less room for metadata (4 EiB).
pub const MAX_VOLUME_BYTES: u64 = 1 << 62;

/// A change of the document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Changes nothing: its answer names a version that includes all that was committed before.
    Nothing,
    /// A machine joins.
    AddNode {
        /// The node; its id is new.
        node: Node,
    },
    /// A node leaves for good.
    RemoveNode {
        /// The node; it has no vote and no replica any more.
        node: NodeId,
    },
    /// A node has new addresses.
    SetNode {
        /// The node; what operators have said of it is kept if it is known already.
        node: Node,
    },
    /// An operator's word about a node.
    SetNodeState {
        /// The node.
        node: NodeId,
        /// What it is from now on.
        state: NodeState,
    },
    /// How a node is switched off.
    SetFencing {
        /// The node.
        node: NodeId,
        /// Its fence agent; `None`: it has none any more.
        fencing: Option<Fencing>,
    },
    /// Another voter. One change of voters is under way at a time (RULES 4).
    AddVoter {
        /// Its node has none yet.
        voter: Voter,
    },
    /// A voter is none any more.
    RemoveVoter {
        /// Which.
        id: VoterId,
    },
    /// The resource is to have a primary: this one, if it is named and can be.
    Up {
        /// The resource.
        resource: ResourceId,
        /// The primary wanted.
        next: Option<NodeId>,
    },
    /// The resource is to have no primary.
    Down {
        /// The resource.
        resource: ResourceId,
    },
    /// A new resource. Its nodes create their replicas and report them; then it gets its record.
    CreateResource {
        /// Its name.
        name: Name,
        /// Its identity, random.
        id: ResourceId,
        /// The history that it begins with, random.
        history: HistoryId,
        /// Size in bytes of each volume.
        sizes: Vec<u64>,
        /// Where the replicas lie; their reports are ignored.
        replicas: Vec<Replica>,
        /// No change leaves fewer members in the in-sync set.
        min_redundancy: u8,
        /// How it is used.
        policy: Policy,
    },
    /// A resource ceases to be. Its replicas' data stay where they are.
    DeleteResource {
        /// The resource.
        resource: ResourceId,
    },
    /// A node attached its replica, and this is its disk.
    Declare {
        /// The resource.
        resource: ResourceId,
        /// The disk.
        report: Report,
    },
    /// The record of a new resource is made with those replicas that have reported, without waiting
    /// for the others any longer.
    BeginResource {
        /// The resource.
        resource: ResourceId,
    },
    /// A change of a resource's record.
    Propose {
        /// The resource.
        resource: ResourceId,
        /// The generation of the record that the change was made for.
        based_on: Generation,
        /// The change.
        change: Change,
    },
    /// A replica's disk is gone for good: another, empty one takes its place.
    ReplaceDisk {
        /// The resource.
        resource: ResourceId,
        /// The replica's node.
        node: NodeId,
        /// The disk that is given up.
        disk: DiskId,
        /// Where the new one lies.
        backing: Vec<Backing>,
    },
}

/// Why a command was refused. The document is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// The record does not take the change.
    #[error("{0}")]
    Record(#[from] Refusal),
    /// There is no record yet.
    #[error(
        "resource {resource} has no record yet: its replicas are still being created; see `lockstep status`"
    )]
    NotBegun {
        /// The resource.
        resource: Name,
    },
    /// The name is taken.
    #[error("there is a resource {name} already; choose another name or delete that one")]
    ResourceExists {
        /// The name.
        name: Name,
    },
    /// No such resource (any more).
    #[error("there is no resource {resource}; it may have been deleted meanwhile")]
    NoResource {
        /// The resource.
        resource: ResourceId,
    },
    /// It is in use.
    #[error("resource {name} has a primary (node {primary}); demote it first")]
    InUse {
        /// The resource.
        name: Name,
        /// The primary.
        primary: NodeId,
    },
    /// Another node has that name.
    #[error("the name {name} belongs to node {id} already; give each node its own name")]
    NodeNameTaken {
        /// The name.
        name: Name,
        /// Who has it.
        id: NodeId,
    },
    /// Another machine has that id.
    #[error("the node id {id} was given to another machine; try again")]
    NodeIdTaken {
        /// The id.
        id: NodeId,
    },
    /// Another node has that address.
    #[error(
        "the address {address} belongs to node {name} already; give each node addresses of its own"
    )]
    AddressTaken {
        /// The address.
        address: String,
        /// Who has it.
        name: Name,
    },
    /// A node is to have none or too many.
    #[error("{count} addresses were given; a node has 1 to {MAX_ADDRESSES} for each purpose")]
    AddressCount {
        /// As asked.
        count: u32,
    },
    /// A node that is to go has a vote.
    #[error("node {node} has a vote; it gives that up first")]
    StillVotes {
        /// The node.
        node: NodeId,
    },
    /// A node that is to go holds a replica.
    #[error("node {node} holds a replica of {resource}; remove that first")]
    HoldsReplica {
        /// The node.
        node: NodeId,
        /// The resource.
        resource: Name,
    },
    /// A replica is placed on a node that is not in the cluster.
    #[error("node {node} is not in the cluster")]
    NoNode {
        /// The node.
        node: NodeId,
    },
    /// Two replicas on one node.
    #[error("node {node} is named twice; a node holds one replica of a resource")]
    NodeTwice {
        /// The node.
        node: NodeId,
    },
    /// A report from a node that holds no replica.
    #[error("node {node} holds no replica of the resource")]
    NoReplica {
        /// The node.
        node: NodeId,
    },
    /// The disk is one that the latest data may be on.
    #[error(
        "node {node}'s disk is in the in-sync set; it leaves when its node or disk is gone and another member serves, or by `lockstep disconnect`"
    )]
    DiskInSync {
        /// The node.
        node: NodeId,
    },
    /// It is not the replica's disk, or was replaced.
    #[error("disk {disk} is not the one that node {node}'s replica has")]
    NotItsDisk {
        /// The node.
        node: NodeId,
        /// The disk.
        disk: DiskId,
    },
    /// No replica has reported.
    #[error("no replica of {name} has been created yet; see the daemons' logs for the reason")]
    NothingReported {
        /// The resource.
        name: Name,
    },
    /// The number of replicas does not fit.
    #[error("{count} replicas were asked for; a resource has 1 to {MAX_REPLICAS}")]
    ReplicaCount {
        /// As asked.
        count: u32,
    },
    /// The number of volumes does not fit.
    #[error("{count} volumes were asked for; a resource has 1 to {MAX_VOLUMES}")]
    VolumeCount {
        /// As asked.
        count: u32,
    },
    /// A replica does not say where each volume lies.
    #[error("node {node} has {given} backing stores for {wanted} volumes; name one for each")]
    BackingCount {
        /// The replica's node.
        node: NodeId,
        /// Backing stores.
        given: u32,
        /// Volumes.
        wanted: u32,
    },
    /// A size is no size.
    #[error(
        "{size_bytes} bytes is not a size for a volume: a multiple of {BLOCK_BYTES} bytes from {BLOCK_BYTES} to {MAX_VOLUME_BYTES}"
    )]
    BadSize {
        /// As asked.
        size_bytes: u64,
    },
    /// `min_redundancy` can't be kept.
    #[error("min_redundancy is {asked}; with {replicas} replicas it is from 1 to {replicas}")]
    BadRedundancy {
        /// As asked.
        asked: u8,
        /// Replicas.
        replicas: u32,
    },
    /// The node votes already.
    #[error("node {node} votes already, as {}", .voter.0)]
    VotesAlready {
        /// The node.
        node: NodeId,
        /// As whom.
        voter: VoterId,
    },
    /// There are enough voters.
    #[error(
        "the cluster has {MAX_VOTERS} voters, which is the most; this node follows without a vote"
    )]
    TooManyVoters,
    /// No such voter (any more).
    #[error("there is no voter {}", .id.0)]
    NoVoter {
        /// Which.
        id: VoterId,
    },
    /// The last voter can't go.
    #[error("it is the last voter; without one nothing can be decided any more")]
    LastVoter,
    /// The cluster has enough of them.
    #[error("a cluster has at most {MAX_RESOURCES} resources; delete one first")]
    TooManyResources,
}

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
            Some(known) if known == node => Ok(()),
            None if !self.departed.contains(node.id) => self.set_node(node),
            _ => Err(Refused::NodeIdTaken { id: node.id }),
        }
    }

    fn remove_node(&mut self, id: NodeId) -> Result<(), Refused> {
        if self.voters.iter().any(|voter| voter.node == id) {
            return Err(Refused::StillVotes { node: id });
        }
        let mut resources = self.resources.iter();
        if let Some(resource) = resources.find(|resource| resource.replica(id).is_some()) {
            return Err(Refused::HoldsReplica {
                node: id,
                resource: resource.name.clone(),
            });
        }
        if self.node(id).is_some() {
            self.nodes.retain(|node| node.id != id);
            self.departed.insert(id);
        }
        Ok(())
    }

    fn set_node(&mut self, node: &Node) -> Result<(), Refused> {
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

    fn up(&mut self, id: ResourceId, next: Option<NodeId>) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        if let Some(node) = next
            && resource.replica(node).is_none()
        {
            return Err(Refused::NoReplica { node });
        }
        let primary = resource.record.as_ref().and_then(|record| record.primary);
        resource.up = true;
        resource.next = next.filter(|_| primary != next);
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

    fn create(&mut self, mut resource: Resource) -> Result<(), Refused> {
        if let Some(present) = self.resource_named(resource.name.as_str()) {
            // The same command once more (its answer was lost) is not an error.
            if present.id == resource.id {
                return Ok(());
            }
            return Err(Refused::ResourceExists {
                name: resource.name,
            });
        }
        if self.resources.len() >= MAX_RESOURCES {
            return Err(Refused::TooManyResources);
        }
        self.check_shape(&resource)?;
        for replica in &mut resource.replicas {
            replica.report = None;
        }
        resource
            .replicas
            .sort_unstable_by_key(|replica| replica.node);
        self.resources.push(resource);
        self.resources.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    fn check_shape(&self, resource: &Resource) -> Result<(), Refused> {
        let volumes = resource.initial_sizes.len();
        if volumes == 0 || volumes > MAX_VOLUMES {
            return Err(Refused::VolumeCount {
                count: count(volumes),
            });
        }
        if let Some(&size_bytes) = resource.initial_sizes.iter().find(|&&size| !is_size(size)) {
            return Err(Refused::BadSize { size_bytes });
        }
        let replicas = count(resource.replicas.len());
        if resource.replicas.is_empty() || resource.replicas.len() > MAX_REPLICAS {
            return Err(Refused::ReplicaCount { count: replicas });
        }
        let min = resource.min_redundancy;
        if min == 0 || u32::from(min) > replicas {
            return Err(Refused::BadRedundancy {
                asked: min,
                replicas,
            });
        }
        for (place, replica) in resource.replicas.iter().enumerate() {
            let node = replica.node;
            if self.node(node).is_none() {
                return Err(Refused::NoNode { node });
            }
            if resource.replicas[..place].iter().any(|r| r.node == node) {
                return Err(Refused::NodeTwice { node });
            }
            if replica.backing.len() != volumes {
                return Err(Refused::BackingCount {
                    node,
                    given: count(replica.backing.len()),
                    wanted: count(volumes),
                });
            }
        }
        Ok(())
    }

    fn delete(&mut self, id: ResourceId) -> Result<(), Refused> {
        let resource = self.find(id)?;
        if let Some(primary) = resource.record.as_ref().and_then(|record| record.primary) {
            return Err(Refused::InUse {
                name: resource.name.clone(),
                primary,
            });
        }
        self.resources.retain(|resource| resource.id != id);
        Ok(())
    }

    fn declare(&mut self, id: ResourceId, report: Report) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        let node = report.member.node;
        let replica = resource
            .replicas
            .iter_mut()
            .find(|replica| replica.node == node)
            .ok_or(Refused::NoReplica { node })?;
        let disk = report.member.disk;
        if replica.replaced == Some(disk) {
            return Err(Refused::NotItsDisk { node, disk });
        }
        replica.report = Some(report);
        let all = resource.replicas.iter().all(|r| r.report.is_some());
        if resource.record.is_none() && all {
            resource.record = first_record(resource);
        }
        Ok(())
    }

    /// A disk that is not in the in-sync set holds nothing that another does not: it may go. The node
    /// then makes another one, which is brought up to date like any replica that nobody knows.
    fn replace_disk(
        &mut self,
        id: ResourceId,
        node: NodeId,
        disk: DiskId,
        backing: &[Backing],
    ) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        let volumes = resource.initial_sizes.len();
        let name = resource.name.clone();
        let record = resource.record.as_ref();
        let member = record
            .ok_or(Refused::NotBegun { resource: name })?
            .member(node)
            .copied();
        let replica = resource
            .replicas
            .iter_mut()
            .find(|replica| replica.node == node)
            .ok_or(Refused::NoReplica { node })?;
        // The same command once more (its answer was lost) is not an error.
        if replica.replaced == Some(disk) && replica.backing == backing {
            return Ok(());
        }
        if member.is_some_and(|member| member.disk == disk) {
            return Err(Refused::DiskInSync { node });
        }
        if replica.report.map(|report| report.member.disk) != Some(disk) {
            return Err(Refused::NotItsDisk { node, disk });
        }
        if backing.len() != volumes {
            return Err(Refused::BackingCount {
                node,
                given: count(backing.len()),
                wanted: count(volumes),
            });
        }
        replica.backing = backing.to_vec();
        replica.report = None;
        replica.replaced = Some(disk);
        Ok(())
    }

    fn begin(&mut self, id: ResourceId) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        if resource.record.is_none() {
            resource.record = first_record(resource);
            if resource.record.is_none() {
                return Err(Refused::NothingReported {
                    name: resource.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn propose(
        &mut self,
        id: ResourceId,
        based_on: Generation,
        change: &Change,
    ) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        let Some(record) = &resource.record else {
            return Err(Refused::NotBegun {
                resource: resource.name.clone(),
            });
        };
        if let Change::Resize { size_bytes, .. } = change
            && !is_size(*size_bytes)
        {
            return Err(Refused::BadSize {
                size_bytes: *size_bytes,
            });
        }
        let next = record.apply(based_on, change, &resource.declared())?;
        if matches!(change, Change::Promote { .. } | Change::Force { .. }) {
            resource.up = true;
            // What an operator wanted has come true, or can't.
            resource.next = None;
        }
        resource.record = Some(next);
        Ok(())
    }

    fn find(&self, id: ResourceId) -> Result<&Resource, Refused> {
        self.resource(id)
            .ok_or(Refused::NoResource { resource: id })
    }

    fn find_mut(&mut self, id: ResourceId) -> Result<&mut Resource, Refused> {
        self.resources
            .iter_mut()
            .find(|resource| resource.id == id)
            .ok_or(Refused::NoResource { resource: id })
    }
}

/// The record that a resource begins with: no primary, epoch 0. Stores that are known to read as
/// zeroes are equal and all in sync; where one is not, the contents of the first of them count and
/// the others are copied from it.
fn first_record(resource: &Resource) -> Option<Record> {
    let reports: Vec<Report> = resource.replicas.iter().filter_map(|r| r.report).collect();
    let in_sync: Vec<Member> = match reports.iter().find(|report| !report.empty) {
        None => reports.iter().map(|report| report.member).collect(),
        Some(first) => vec![first.member],
    };
    if in_sync.is_empty() {
        return None;
    }
    Some(Record {
        resource: resource.id,
        generation: Generation(1),
        epoch: Epoch(0),
        history: resource.history,
        sizes: resource.initial_sizes.clone(),
        primary: None,
        in_sync,
        replicas: resource.replicas.iter().map(|r| r.node).collect(),
        min_redundancy: resource.min_redundancy,
    })
}

const fn is_size(size_bytes: u64) -> bool {
    size_bytes >= BLOCK_BYTES
        && size_bytes <= MAX_VOLUME_BYTES
        && size_bytes.is_multiple_of(BLOCK_BYTES)
}

fn addresses(node: &Node) -> impl Iterator<Item = &String> {
    node.control.iter().chain(&node.replication)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
