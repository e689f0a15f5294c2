//! What can be asked of the configuration store, and why it may say no.

use super::consensus::{Voter, VoterId};
use super::document::{
    Backing, Fencing, MAX_ADDRESSES, MAX_REPLICAS, MAX_RESOURCES, MAX_VOLUMES, MAX_VOTERS, Node,
    NodeState, Policy, Replica, Report, Timings, TimingsError,
};
use super::name::Name;
use serde::{Deserialize, Serialize};
use vocabulary::{BLOCK_BYTES, Change, DiskId, Generation, HistoryId, NodeId, Refusal, ResourceId};

/// Largest volume, in bytes: what a file offset holds less room for metadata (4 EiB).
pub const MAX_VOLUME_BYTES: u64 = 1 << 62;

/// A change of the document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Changes nothing: its answer names a version that includes all that was committed before.
    Nothing,
    /// A machine joins, or one that was lost joins again.
    AddNode {
        /// The node; its id is new, or the one that it had.
        node: Node,
    },
    /// A node leaves for good.
    RemoveNode {
        /// The node; it holds no replica any more. Its vote goes with it.
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
    /// The time-outs that all nodes keep.
    SetTimings {
        /// From now on.
        timings: Timings,
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
    /// A resource is used otherwise.
    SetResource {
        /// The resource.
        resource: ResourceId,
        /// No change leaves fewer members in the in-sync set.
        min_redundancy: u8,
        /// How it is used.
        policy: Policy,
    },
    /// Another replica; it lacks everything.
    AddReplica {
        /// The resource.
        resource: ResourceId,
        /// Where it lies; its report is ignored.
        replica: Replica,
    },
    /// A replica is given up. Its data stay where they are, and are never taken for current again.
    RemoveReplica {
        /// The resource.
        resource: ResourceId,
        /// The replica's node.
        node: NodeId,
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
    /// A replica that is to go belongs to the primary.
    #[error("node {node} is the primary of {resource}; move it to another node first")]
    RemovesPrimary {
        /// The node.
        node: NodeId,
        /// The resource.
        resource: Name,
    },
    /// A replica that is to go may be the only one that has every acknowledged write.
    #[error(
        "node {node} may have the last good copy of {resource}: nobody else serves it; promote another node first"
    )]
    LastGoodCopy {
        /// The node.
        node: NodeId,
        /// The resource.
        resource: Name,
    },
    /// There is a replica on the node, and it lies elsewhere.
    #[error("node {node} holds a replica of {resource} already; `resource replace-disk` moves it")]
    ReplicaExists {
        /// The node.
        node: NodeId,
        /// The resource.
        resource: Name,
    },
    /// The lease can't change while somebody may hold one.
    #[error(
        "{resource} has a primary, which holds leases of the present length; demote every resource first"
    )]
    LeaseInUse {
        /// The resource.
        resource: Name,
    },
    /// Time-outs that contradict each other.
    #[error(transparent)]
    Timings(#[from] TimingsError),
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
