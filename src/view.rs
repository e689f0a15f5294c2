//! What one node knows ([`LocalView`]), and how what all nodes know becomes one picture of the
//! cluster ([`merge`]). Pure: the daemon gathers, this decides whose word counts.

use controller::core::failover::Waiting;
use controller::core::{Document, Resource};
use replicator::core::status::{DiskState, PeerStatus, Progress, ReplicationState, Role, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vocabulary::NodeId;

/// What one node knows about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalView {
    /// Its resources, by name.
    pub(crate) resources: BTreeMap<String, LocalResource>,
}

/// What one node knows about a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalResource {
    pub(crate) role: String,
    pub(crate) disk_state: String,
    pub(crate) replication_state: String,
    /// Why the replica is not attached, or what else is wrong; for people.
    pub(crate) problem: Option<String>,
    /// Why nobody serves it, as far as this node knows; for people.
    pub(crate) reason: Option<String>,
    /// Ids of members that requests wait for.
    pub(crate) waiting_for: Vec<u8>,
    /// Verify under way.
    pub(crate) verify: Option<VerifyView>,
    /// Whether clients are served.
    pub(crate) primary: bool,
    /// By the peer's id.
    pub(crate) peers: BTreeMap<u8, LocalPeer>,
    /// Connections of clients that have a volume open on this node.
    pub(crate) clients: Vec<LocalClient>,
}

/// A client's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalClient {
    pub(crate) volume: u16,
    /// Its address, or the process on the node; for people.
    pub(crate) who: String,
}

/// What one node knows about a peer's replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalPeer {
    pub(crate) disk_state: String,
    pub(crate) replication_state: String,
    /// One entry a volume.
    pub(crate) out_of_sync_bytes: Vec<u64>,
    /// One entry a volume.
    pub(crate) progress: Vec<Option<ProgressView>>,
}

/// Progress of a resync.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResyncView {
    /// Done, with one decimal.
    pub(crate) percent: f64,
    pub(crate) bytes_left: u64,
    pub(crate) seconds_left: Option<u64>,
}

/// Progress in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgressView {
    pub(crate) total_bytes: u64,
    pub(crate) left_bytes: u64,
    pub(crate) seconds_left: Option<u64>,
}

/// A verify under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VerifyView {
    pub(crate) progress: ProgressView,
    pub(crate) differing_bytes: u64,
}

/// The cluster as the node that was asked sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterView {
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) resources: Vec<ResourceView>,
    /// What stands in the way of a complete picture; for people.
    pub(crate) notes: Vec<String>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeView {
    pub(crate) name: String,
    pub(crate) online: bool,
    pub(crate) voter: bool,
    pub(crate) leader: bool,
}

/// A resource of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResourceView {
    pub(crate) name: String,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    pub(crate) primary: Option<String>,
    pub(crate) in_sync: Vec<String>,
    pub(crate) volumes: Vec<VolumeView>,
    /// Why nobody serves it; for people.
    pub(crate) reason: Option<String>,
    /// Nodes that requests or a promotion wait for.
    pub(crate) waiting_for: Vec<String>,
    pub(crate) verify: Option<VerifyView>,
    /// What is wrong, by node; for people.
    pub(crate) problems: BTreeMap<String, String>,
}

/// A volume of a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VolumeView {
    pub(crate) volume: u16,
    pub(crate) size_bytes: u64,
    pub(crate) replicas: Vec<ReplicaView>,
}

/// A node's disk for a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplicaView {
    pub(crate) node: String,
    pub(crate) role: String,
    pub(crate) disk_state: String,
    pub(crate) replication_state: String,
    pub(crate) out_of_sync_bytes: u64,
    pub(crate) resync: Option<ResyncView>,
    /// Connections of clients that have the volume open on this node, each by its address or process.
    pub(crate) clients: Vec<String>,
}

const UNKNOWN: &str = "Unknown";

/// The field's word for a role.
pub(crate) const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Secondary => "Secondary",
        Role::Starting => "Starting",
        Role::Primary => "Primary",
        Role::Demoting => "Demoting",
    }
}

/// The field's word for a disk state.
pub(crate) const fn disk_word(state: DiskState) -> &'static str {
    match state {
        DiskState::Unknown => UNKNOWN,
        DiskState::Diskless => "Diskless",
        DiskState::Failed => "Failed",
        DiskState::Inconsistent => "Inconsistent",
        DiskState::Outdated => "Outdated",
        DiskState::UpToDate => "UpToDate",
    }
}

/// The field's word for a replication state.
pub(crate) const fn replication_word(state: ReplicationState) -> &'static str {
    match state {
        ReplicationState::Off => "Off",
        ReplicationState::Connecting => "Connecting",
        ReplicationState::Established => "Established",
        ReplicationState::SyncSource => "SyncSource",
        ReplicationState::SyncTarget => "SyncTarget",
        ReplicationState::VerifyS => "VerifyS",
        ReplicationState::VerifyT => "VerifyT",
    }
}

impl From<Progress> for ProgressView {
    fn from(progress: Progress) -> Self {
        Self {
            total_bytes: progress.total_bytes,
            left_bytes: progress.left_bytes,
            seconds_left: progress.seconds_left,
        }
    }
}

impl ProgressView {
    /// Done, with one decimal, 0 to 100.
    pub(crate) fn percent(self) -> f64 {
        let done = self.total_bytes.saturating_sub(self.left_bytes);
        let permille = (u128::from(done) * 1000)
            .checked_div(u128::from(self.total_bytes))
            .unwrap_or(1000);
        f64::from(u16::try_from(permille.min(1000)).unwrap_or(1000)) / 10.0
    }
}

impl From<ProgressView> for ResyncView {
    fn from(progress: ProgressView) -> Self {
        Self {
            percent: progress.percent(),
            bytes_left: progress.left_bytes,
            seconds_left: progress.seconds_left,
        }
    }
}

impl From<&PeerStatus> for LocalPeer {
    fn from(peer: &PeerStatus) -> Self {
        Self {
            disk_state: disk_word(peer.disk_state).to_owned(),
            replication_state: replication_word(peer.replication).to_owned(),
            out_of_sync_bytes: peer.out_of_sync_bytes.clone(),
            progress: peer.progress.iter().map(|p| p.map(Into::into)).collect(),
        }
    }
}

impl From<&Status> for LocalResource {
    fn from(status: &Status) -> Self {
        Self {
            role: role_word(status.role).to_owned(),
            disk_state: disk_word(status.disk_state).to_owned(),
            replication_state: replication_word(status.replication).to_owned(),
            problem: None,
            reason: None,
            waiting_for: status.waiting_for.iter().map(NodeId::get).collect(),
            verify: status.verify.map(|(progress, differing_bytes)| VerifyView {
                progress: progress.into(),
                differing_bytes,
            }),
            primary: status.role != Role::Secondary,
            peers: status
                .peers
                .iter()
                .map(|peer| (peer.node.get(), peer.into()))
                .collect(),
            clients: Vec::new(),
        }
    }
}

impl LocalResource {
    /// A replica that is not attached.
    pub(crate) fn detached(problem: String) -> Self {
        Self::without_disk("Diskless", Some(problem))
    }

    /// A replica that is being attached.
    pub(crate) fn attaching() -> Self {
        Self::without_disk("Attaching", None)
    }

    /// Can it take part in the resource's life now or in a moment?
    pub(crate) fn has_disk(&self) -> bool {
        !matches!(self.disk_state.as_str(), "Diskless" | "Failed")
    }

    fn without_disk(disk_state: &str, problem: Option<String>) -> Self {
        Self {
            role: "Secondary".to_owned(),
            disk_state: disk_state.to_owned(),
            replication_state: "Off".to_owned(),
            problem,
            reason: None,
            waiting_for: Vec::new(),
            verify: None,
            primary: false,
            peers: BTreeMap::new(),
            clients: Vec::new(),
        }
    }
}

/// Why nobody serves a resource, and what would help.
pub(crate) fn reason(waiting: &Waiting, document: &Document) -> String {
    let names = |nodes: &vocabulary::NodeSet| {
        let names: Vec<String> = nodes.iter().map(|node| document.node_name(node)).collect();
        names.join(" or ")
    };
    match waiting {
        Waiting::Down => "an operator has demoted it; `lockstep promote` brings it up".to_owned(),
        Waiting::Choice => "the cluster was recovered, and nobody knows which replica has the latest data: choose one, `lockstep promote RESOURCE NODE --accept-data-loss`".to_owned(),
        Waiting::Creation => "its replicas are still being created".to_owned(),
        Waiting::Quorum => "waiting for a majority of the configuration store's voters: start more of the nodes, or mend the network; if a majority is lost for good: `lockstep recover`".to_owned(),
        Waiting::Peer(node) => format!(
            "waiting for {0}: it may have gone on alone while this node was away; if it never returns: `lockstep recover`, which may lose what it wrote",
            document.node_name(*node)
        ),
        Waiting::ConfirmDead(node) => format!(
            "waiting for {0}, or for your word: two voters need each other, and no fence agent is configured; make sure that it is off, then `lockstep node confirm-dead {0}`",
            document.node_name(*node)
        ),
        Waiting::Fence(node) => format!(
            "{} does not answer and is being switched off by its fence agent",
            document.node_name(*node)
        ),
        Waiting::LastGoodCopy(nodes) => format!(
            "waiting for {}: it has the last good copy; if it never returns: `lockstep promote RESOURCE NODE --accept-data-loss`",
            names(nodes)
        ),
        Waiting::Lease => "waiting until the last primary can't answer any more".to_owned(),
        Waiting::Promotion => "a new primary is taking over".to_owned(),
        Waiting::Standby(nodes) => format!(
            "{} could serve it but is on standby or in maintenance; `lockstep node online` ends that",
            names(nodes)
        ),
    }
}

/// One picture from all. `views` holds the nodes that answered. A node's own word counts for its
/// role and disk; for what a replica lacks the primary's word counts, without one the greatest claim
/// of any in-sync member.
pub(crate) fn merge(
    document: &Document,
    leader: Option<NodeId>,
    views: &BTreeMap<NodeId, LocalView>,
) -> ClusterView {
    ClusterView {
        nodes: document
            .nodes
            .iter()
            .map(|node| NodeView {
                name: node.name.to_string(),
                online: views.contains_key(&node.id),
                voter: document.voters.iter().any(|voter| voter.node == node.id),
                leader: leader == Some(node.id),
            })
            .collect(),
        resources: document
            .resources
            .iter()
            .map(|resource| merge_resource(document, resource, views))
            .collect(),
        notes: lost(document).into_iter().collect(),
    }
}

/// Who has to join again.
fn lost(document: &Document) -> Option<String> {
    let lost: Vec<String> = document
        .lost
        .iter()
        .map(|n| document.node_name(n))
        .collect();
    (!lost.is_empty()).then(|| {
        format!(
            "lost before the cluster was recovered: {}; each comes back by `lockstep join --config FILE TOKEN --rejoin`, or goes by `lockstep node remove NODE`",
            lost.join(", ")
        )
    })
}

fn merge_resource(
    document: &Document,
    resource: &Resource,
    views: &BTreeMap<NodeId, LocalView>,
) -> ResourceView {
    let local: BTreeMap<NodeId, &LocalResource> = views
        .iter()
        .filter_map(|(&node, view)| Some((node, view.resources.get(resource.name.as_str())?)))
        .collect();
    let record = resource.record.as_ref();
    let members = record.map(vocabulary::Record::members).unwrap_or_default();
    let primary = record.and_then(|record| record.primary);
    // Whose word on other replicas counts.
    let source = primary.and_then(|node| Some((node, *local.get(&node).filter(|l| l.primary)?)));
    let witnesses: Vec<&LocalResource> = match source {
        Some((_, view)) => vec![view],
        None => local
            .iter()
            .filter(|(node, _)| members.contains(**node))
            .map(|(_, view)| *view)
            .collect(),
    };
    let name = |node: NodeId| document.node_name(node);
    let replica = |volume: usize, node: NodeId| {
        let own = local.get(&node);
        let seen = witnesses
            .iter()
            .filter_map(|view| view.peers.get(&node.get()));
        let lacks = seen
            .clone()
            .filter_map(|peer| peer.out_of_sync_bytes.get(volume));
        let progress = seen.clone().find_map(|peer| *peer.progress.get(volume)?);
        let by_source = source.and_then(|(_, view)| view.peers.get(&node.get()));
        let replication_state = match (own, by_source) {
            // Both ends see a session: the primary's word, which names the work under way.
            (_, Some(peer)) => peer.replication_state.clone(),
            (Some(own), None) => own.replication_state.clone(),
            (None, None) => "Off".to_owned(),
        };
        let syncs = replication_state == "SyncTarget";
        ReplicaView {
            node: name(node),
            role: own.map_or_else(|| UNKNOWN.to_owned(), |own| own.role.clone()),
            disk_state: own
                .map(|own| &own.disk_state)
                .or(by_source.map(|peer| &peer.disk_state))
                .map_or_else(|| UNKNOWN.to_owned(), Clone::clone),
            replication_state,
            out_of_sync_bytes: lacks.copied().max().unwrap_or(0),
            resync: progress.filter(|_| syncs).map(Into::into),
            clients: own
                .iter()
                .flat_map(|own| &own.clients)
                .filter(|client| usize::from(client.volume) == volume)
                .map(|client| client.who.clone())
                .collect(),
        }
    };
    ResourceView {
        name: resource.name.to_string(),
        generation: record.map_or(0, |record| record.generation.0),
        epoch: record.map_or(0, |record| record.epoch.0),
        primary: primary.map(name),
        in_sync: members.iter().map(name).collect(),
        volumes: (0u16..)
            .zip(resource.sizes())
            .map(|(volume, &size_bytes)| VolumeView {
                volume,
                size_bytes,
                replicas: resource
                    .replicas
                    .iter()
                    .map(|r| replica(usize::from(volume), r.node))
                    .collect(),
            })
            .collect(),
        // Whoever says that somebody serves is right; else the node that sees the most.
        reason: if source.is_some_and(|(_, view)| view.role == "Primary") {
            None
        } else {
            let reasons = local.values().filter_map(|view| view.reason.clone());
            reasons.max()
        },
        waiting_for: waiting_for(resource, &local, source.map(|(_, view)| view))
            .into_iter()
            .map(name)
            .collect(),
        verify: source.and_then(|(_, view)| view.verify),
        problems: local
            .iter()
            .filter_map(|(&node, view)| Some((name(node), view.problem.clone()?)))
            .collect(),
    }
}

/// Whom the resource waits for: a new one for replicas that were not created yet, one whose primary
/// suspends I/O for the members that it may not drop.
fn waiting_for(
    resource: &Resource,
    local: &BTreeMap<NodeId, &LocalResource>,
    source: Option<&LocalResource>,
) -> Vec<NodeId> {
    if resource.record.is_none() {
        let missing = resource.replicas.iter().filter(|r| r.report.is_none());
        return missing.map(|replica| replica.node).collect();
    }
    let views = source.map_or_else(|| local.values().copied().collect(), |view| vec![view]);
    let mut waiting: Vec<NodeId> = views
        .iter()
        .flat_map(|view| view.waiting_for.iter())
        .filter_map(|&id| NodeId::new(id))
        .collect();
    waiting.sort_unstable();
    waiting.dedup();
    waiting
}
