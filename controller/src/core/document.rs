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
    /// Time-outs that all nodes keep.
    pub timings: Timings,
    /// Resources, ascending by name.
    pub resources: Vec<Resource>,
    /// Nodes that a recovery has left behind: each is let in again, under its name and id, when it joins.
    pub lost: NodeSet,
    /// The clusters that this one was before it was recovered, the last one last: stores of theirs
    /// are its own.
    pub former: Vec<ClusterId>,
}

/// Time-outs that all nodes have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timings {
    /// A beacon that was acknowledged lets the primary answer for this long from when it was sent, in
    /// ms. A lost primary is replaced a little more than this later.
    pub lease_ms: u32,
    /// The clocks of two nodes run apart by no more than this, in percent.
    pub drift_percent: u8,
    /// Voters elect a leader when they have heard of none for this long, and up to twice as long by
    /// chance, in ms.
    pub election_ms: u32,
    /// Of two voters without a witness the one that does not serve waits this long before it has the
    /// other one switched off, in ms.
    pub fence_delay_ms: u32,
}

/// Why time-outs don't go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum TimingsError {
    /// The lease.
    #[error("lease_ms is {0}; it is from {LEASE_MIN_MS} to {LEASE_MAX_MS}")]
    Lease(u32),
    /// The drift.
    #[error("drift_percent is {0}; it is from 1 to {DRIFT_MAX_PERCENT}")]
    Drift(u8),
    /// The election's time-out.
    #[error(
        "election_ms is {election_ms}; with lease_ms = {lease_ms} it is from {ELECTION_MIN_MS} to {}, so that a leader is there when a lease has run out",
        .lease_ms / 2
    )]
    Election {
        /// As asked.
        election_ms: u32,
        /// As asked.
        lease_ms: u32,
    },
    /// The delay of the one that shoots second.
    #[error(
        "fence_delay_ms is {delay_ms}; with lease_ms = {lease_ms} it is from {} to {FENCE_DELAY_MAX_MS}, so that the side that serves shoots first",
        .lease_ms * 2
    )]
    FenceDelay {
        /// As asked.
        delay_ms: u32,
        /// As asked.
        lease_ms: u32,
    },
}

/// Shortest lease: five beacons to a lease, and a busy machine's hiccups must not end it.
const LEASE_MIN_MS: u32 = 100;
/// Longest lease.
const LEASE_MAX_MS: u32 = 60_000;
/// Clocks that drift more are broken.
const DRIFT_MAX_PERCENT: u8 = 20;
/// Shortest time-out of an election: several times a round trip and a write to disk.
const ELECTION_MIN_MS: u32 = 50;
/// Longest delay before the second side shoots.
const FENCE_DELAY_MAX_MS: u32 = 600_000;

impl Timings {
    /// What a cluster begins with: a lost primary is replaced within a second.
    pub const DEFAULT: Self = Self {
        lease_ms: 500,
        drift_percent: 1,
        election_ms: 200,
        fence_delay_ms: 5_000,
    };

    /// Do they go together?
    ///
    /// # Errors
    /// The first one that does not.
    pub fn check(&self) -> Result<(), TimingsError> {
        let lease_ms = self.lease_ms;
        if !(LEASE_MIN_MS..=LEASE_MAX_MS).contains(&lease_ms) {
            return Err(TimingsError::Lease(lease_ms));
        }
        if !(1..=DRIFT_MAX_PERCENT).contains(&self.drift_percent) {
            return Err(TimingsError::Drift(self.drift_percent));
        }
        if !(ELECTION_MIN_MS..=lease_ms / 2).contains(&self.election_ms) {
            return Err(TimingsError::Election {
                election_ms: self.election_ms,
                lease_ms,
            });
        }
        if !(lease_ms * 2..=FENCE_DELAY_MAX_MS).contains(&self.fence_delay_ms) {
            return Err(TimingsError::FenceDelay {
                delay_ms: self.fence_delay_ms,
                lease_ms,
            });
        }
        Ok(())
    }
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
            timings: Timings::DEFAULT,
            resources: Vec::new(),
            lost: NodeSet::EMPTY,
            former: Vec::new(),
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
