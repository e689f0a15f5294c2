//! The cluster's document: who belongs to the cluster, which resources there are, where their
//! replicas lie, and each resource's record. Small by construction: every list has a bound.

use super::command::{Command, Refused};
use super::consensus::{Content, Voter};
use super::name::Name;
use serde::{Deserialize, Serialize};
use std::fmt;
use vocabulary::{ClusterId, DiskId, HistoryId, Member, NodeId, NodeSet, Record, ResourceId};

/// Most resources in a cluster: keeps a document under the frame limit.
pub const MAX_RESOURCES: usize = 256;
/// Most volumes of a resource.
pub const MAX_VOLUMES: usize = 16;
/// Most replicas of a resource.
pub const MAX_REPLICAS: usize = 5;
/// Most addresses of a node for each of its two purposes.
pub const MAX_ADDRESSES: usize = 4;
/// Most voters; further nodes follow without a vote.
pub const MAX_VOTERS: usize = 7;

/// Counts the changes of a document: the newer of two has the greater one.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What the configuration store holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Document {
    /// The cluster.
    pub cluster: ClusterId,
    /// Counts every change.
    pub version: Version,
    /// Who votes on it, ascending by node.
    pub voters: Vec<Voter>,
    /// The cluster's nodes, ascending by id.
    pub nodes: Vec<Node>,
    /// Nodes that were removed: their ids are not given again, and they are not let in again.
    pub departed: NodeSet,
    /// Resources, ascending by name.
    pub resources: Vec<Resource>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Node {
    /// Its id, never given to another machine.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where the others reach its controller, `host:port`, the best first.
    pub control: Vec<String>,
    /// Where they reach its replicas.
    pub replication: Vec<String>,
    /// What an operator has said about it.
    pub state: NodeState,
    /// How it is switched off.
    pub fencing: Option<Fencing>,
}

/// A fence agent for a node: an executable that takes `key=value` lines on its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fencing {
    /// The executable's path.
    pub agent: String,
    /// What it is told besides the action and the node's name.
    pub parameters: Vec<(String, String)>,
    /// An action that has not ended by then has failed, in s.
    pub timeout_s: u32,
}

/// What an operator has said about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum NodeState {
    /// It takes part in everything.
    #[default]
    Online,
    /// It is primary of nothing; its replicas stay in sync.
    Standby,
    /// Nothing is started, moved or stopped on its account.
    Maintenance,
}

/// Which nodes export a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Access {
    /// The primary's node.
    #[default]
    Exclusive,
    /// Every node; the others forward to the primary.
    Follow,
}

/// What clients of a primary see that may not answer for lack of a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum OnNoQuorum {
    /// Their requests wait.
    #[default]
    Suspend,
    /// They get errors.
    Error,
}

/// How a resource is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Which nodes export it.
    pub access: Access,
    /// What clients see when the primary may not answer.
    pub on_no_quorum: OnNoQuorum,
    /// The node that becomes primary where several may.
    pub preferred: Option<NodeId>,
}

/// A resource: a consistency group of volumes with one primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resource {
    /// Its name.
    pub name: Name,
    /// Its identity; a resource made again under an old name has another.
    pub id: ResourceId,
    /// Size in bytes of each volume when it was created; the record has the present ones.
    pub initial_sizes: Vec<u64>,
    /// Where its replicas lie, ascending by node.
    pub replicas: Vec<Replica>,
    /// No change leaves fewer members in the in-sync set.
    pub min_redundancy: u8,
    /// How it is used.
    pub policy: Policy,
    /// It is to have a primary: an operator's promotion says so, an operator's demotion the opposite.
    pub up: bool,
    /// The node that an operator wants as primary; until it is.
    pub next: Option<NodeId>,
    /// The history that the record begins with.
    pub history: HistoryId,
    /// The record; `None` until the replicas were created.
    pub record: Option<Record>,
}

/// A replica of a resource on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// The node.
    pub node: NodeId,
    /// One backing store a volume.
    pub backing: Vec<Backing>,
    /// What the node last said about its disk; `None`: it was never attached.
    pub report: Option<Report>,
    /// The disk that an operator had replaced last: never again this replica's.
    pub replaced: Option<DiskId>,
}

/// Where a volume of a replica lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Backing {
    /// A file or a block device; a relative path is taken from the node's data directory.
    pub path: String,
    /// Where its metadata lies.
    pub metadata: MetadataKind,
}

/// Where the metadata of a backing store lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MetadataKind {
    /// External for files, internal for block devices.
    Default,
    /// At the end of the store.
    Internal,
    /// In a file of its own; `None`: the store's path with `.meta` behind it.
    External {
        /// The file.
        path: Option<String>,
    },
}

/// What a node said about its replica's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// The disk and its present incarnation.
    pub member: Member,
    /// Lockstep created it, every byte of it reads as zero, and nothing was written since.
    pub empty: bool,
}

impl Content for Document {
    type Command = Command;
    type Refused = Refused;

    fn voters(&self) -> &[Voter] {
        &self.voters
    }

    fn apply(&self, command: &Command) -> Result<Self, Refused> {
        Self::apply(self, command)
    }
}

impl Document {
    /// The document of a cluster that was just made.
    #[must_use]
    pub const fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            version: Version(0),
            voters: Vec::new(),
            nodes: Vec::new(),
            departed: NodeSet::EMPTY,
            resources: Vec::new(),
        }
    }

    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The lowest id that no node has or had.
    #[must_use]
    pub fn free_node_id(&self) -> Option<NodeId> {
        (0..NodeId::LIMIT)
            .filter_map(NodeId::new)
            .find(|&id| self.node(id).is_none() && !self.departed.contains(id))
    }

    /// The node with this name.
    #[must_use]
    pub fn node_named(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name.as_str() == name)
    }

    /// The node's name, or its number where the document does not know it.
    #[must_use]
    pub fn node_name(&self, id: NodeId) -> String {
        self.node(id)
            .map_or_else(|| id.to_string(), |node| node.name.to_string())
    }

    /// The resource with this identity.
    #[must_use]
    pub fn resource(&self, id: ResourceId) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.id == id)
    }

    /// The resource with this name.
    #[must_use]
    pub fn resource_named(&self, name: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|resource| resource.name.as_str() == name)
    }
}

impl Resource {
    /// Size in bytes of each volume now.
    #[must_use]
    pub fn sizes(&self) -> &[u64] {
        self.record
            .as_ref()
            .map_or(&self.initial_sizes, |record| &record.sizes)
    }

    /// The replica on this node.
    #[must_use]
    pub fn replica(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    /// The disks and incarnations that the replicas last declared (RULES 3).
    #[must_use]
    pub fn declared(&self) -> Vec<Member> {
        self.replicas
            .iter()
            .filter_map(|replica| replica.report.map(|report| report.member))
            .collect()
    }
}
