//! What a resource looks like from this node at a moment.

use vocabulary::{DiskId, Epoch, Generation, Incarnation, NodeId, NodeSet, VolumeId};

/// Role of this node for the resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Does not serve.
    Secondary,
    /// Primary by the record, not serving yet: promise, sessions, windows are being gathered.
    Starting,
    /// Serves.
    Primary,
    /// Stops serving.
    Demoting,
}

/// State of a replica's disk, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskState {
    /// Not connected, nothing known.
    Unknown,
    /// No disk attached.
    Diskless,
    /// The disk failed.
    Failed,
    /// A resync is under way or was interrupted.
    Inconsistent,
    /// Consistent, but not in the in-sync set.
    Outdated,
    /// In the in-sync set.
    UpToDate,
}

/// What a replica does in its session: of this node for [`Status::replication`], of the peer for
/// [`PeerStatus::replication`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationState {
    /// No session.
    Off,
    /// A session is being opened.
    Connecting,
    /// Writes are mirrored, nothing else to do.
    Established,
    /// The replica sends others what they lack.
    SyncSource,
    /// The replica is sent what it lacks.
    SyncTarget,
    /// The replica compares its blocks with others'.
    VerifyS,
    /// The replica's blocks are compared.
    VerifyT,
}

/// Progress of a resync, reconcile or verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that there were to do.
    pub total_bytes: u64,
    /// Bytes left.
    pub left_bytes: u64,
    /// Seconds left at the present rate; `None` before the rate is known.
    pub seconds_left: Option<u64>,
}

/// One volume as seen here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// The volume.
    pub volume: VolumeId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Hot extents of the local activity log.
    pub hot_extents: u64,
}

/// A peer as seen here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Its disk, once known.
    pub disk: Option<DiskId>,
    /// State of its disk.
    pub disk_state: DiskState,
    /// What the session does.
    pub replication: ReplicationState,
    /// Per volume, bytes in which the peer may differ.
    pub out_of_sync_bytes: Vec<u64>,
    /// Per volume, progress of the work under way.
    pub progress: Vec<Option<Progress>>,
}

/// What leases and fail-over need to know of this node's replica (RULES 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its disk has failed.
    pub failed: bool,
    /// It is primary in this epoch: from its promotion's commit until it proposes to demote.
    pub primary: Option<Epoch>,
    /// What its answers are relative to, when it is primary.
    pub required: NodeSet,
}

/// The resource as seen here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Its disk's state.
    pub disk_state: DiskState,
    /// Its disk.
    pub disk: DiskId,
    /// The disk's incarnation.
    pub incarnation: Incarnation,
    /// What the local session does (on a secondary: with the primary).
    pub replication: ReplicationState,
    /// The record's generation; 0: none known.
    pub generation: Generation,
    /// The record's epoch.
    pub epoch: Epoch,
    /// The record's primary.
    pub primary: Option<NodeId>,
    /// The record's in-sync set.
    pub in_sync: NodeSet,
    /// Volumes.
    pub volumes: Vec<VolumeStatus>,
    /// Configured replicas but this one.
    pub peers: Vec<PeerStatus>,
    /// Requests wait for these members, which may not be dropped or could not be yet.
    pub waiting_for: NodeSet,
    /// Verify under way: progress and bytes found to differ.
    pub verify: Option<(Progress, u64)>,
}
