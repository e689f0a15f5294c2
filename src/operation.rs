//! The API's words: what can be asked of a daemon and what it answers. The same words go from the
//! command line to a daemon and from daemon to daemon.

use crate::spec::Spec;
use controller::core::{Access, NodeState, OnNoQuorum, Policy, Timings};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Something to do. Nodes, resources and volumes are named as people name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Operation {
    /// A new resource, created on all its nodes before the answer.
    CreateResource {
        name: String,
        /// Bytes of each volume.
        sizes: Vec<u64>,
        /// Where replicas lie; none: on every node, under its data directory.
        replicas: Vec<ReplicaSpec>,
        min_redundancy: u8,
        /// How it is used.
        #[serde(default)]
        policy: Policy,
    },
    /// A resource is used otherwise; what is absent stays.
    SetResource {
        resource: String,
        min_redundancy: Option<u8>,
        access: Option<AccessMode>,
        on_no_quorum: Option<NoQuorum>,
        preferred: Option<Preference>,
    },
    /// Another replica of a resource.
    AddReplica {
        resource: String,
        replica: ReplicaSpec,
    },
    /// A replica is given up; its data stay.
    RemoveReplica { resource: String, node: String },
    /// The cluster's time-outs; what is absent stays.
    SetTimings { timings: TimingsSpec },
    /// A node leaves the cluster for good.
    RemoveNode {
        node: String,
        /// Its replicas are given up too.
        replicas: bool,
    },
    /// The cluster as a text.
    Export,
    /// What has to be done to make the text true.
    Plan { spec: Spec, prune: bool },
    /// A token that lets one machine join.
    Token {
        /// Seconds until it expires.
        valid_s: u64,
    },
    /// A resource ceases to be; its data stay.
    DeleteResource { name: String },
    /// Another, empty disk takes the place of a replica's.
    ReplaceDisk {
        resource: String,
        node: String,
        /// One path a volume; none: where the old ones were.
        paths: Vec<String>,
        metadata: MetadataSpec,
    },
    /// Every resource with its replicas' places.
    ListResources,
    /// Where the node that is asked exports a volume ([`ExportPlace`]).
    FindExport { resource: String, volume: u16 },
    /// A node becomes primary.
    Promote {
        resource: String,
        /// None: the node that is asked.
        node: Option<String>,
        /// Take this node's data whatever other replicas hold.
        accept_data_loss: bool,
        /// A node that the operator knows to be dead.
        confirm_dead: Option<String>,
    },
    /// Another node becomes primary, after a drain.
    Move {
        resource: String,
        /// None: the best of the others.
        node: Option<String>,
    },
    /// The node that is asked becomes primary, unless somebody uses the resource where it is now.
    TakeOver { resource: String },
    /// The primary, which is asked, makes way for another node unless somebody uses the resource there.
    HandOver { resource: String, to: String },
    /// What an operator says of a node.
    SetNode { node: String, state: NodeWord },
    /// How a node is switched off; none: not at all.
    SetFencing {
        node: String,
        fencing: Option<FencingSpec>,
    },
    /// A node is to be switched off, or is, by the operator's word.
    Fence { node: String, confirmed: bool },
    /// The primary stops serving, and nobody else does.
    Demote {
        resource: String,
        node: Option<String>,
    },
    /// Connections of this node to a peer (none: to all) are allowed and tried now.
    Connect {
        resource: String,
        node: Option<String>,
    },
    /// They are dropped and kept down.
    Disconnect {
        resource: String,
        node: Option<String>,
    },
    /// All blocks are compared.
    Verify {
        resource: String,
        node: Option<String>,
        repair: bool,
        stop: bool,
    },
    /// Replicas that lack something are brought up to date now.
    Resync {
        resource: String,
        node: Option<String>,
    },
    /// A replica's data are thrown away and copied anew.
    Invalidate { resource: String, node: String },
    /// A volume grows.
    Resize {
        resource: String,
        volume: u16,
        size_bytes: u64,
    },
    /// What this node alone knows; daemons ask each other for it.
    LocalView,
}

impl Operation {
    /// The resource that it concerns and the command in words, for the log of events; `None` for one that
    /// only asks. Secrets are left out.
    pub(crate) fn told(&self) -> Option<(Option<String>, String)> {
        if matches!(
            self,
            Self::ListResources | Self::Export | Self::Plan { .. } | Self::LocalView
        ) {
            return None;
        }
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else {
            return None;
        };
        let field = |key: &str| fields.get(key).and_then(|value| value.as_str());
        let resource = field("resource").map(str::to_owned);
        let mut words = field("operation").unwrap_or_default().to_owned();
        for (key, value) in &fields {
            let shown = match value {
                _ if key == "operation" => continue,
                serde_json::Value::Null | serde_json::Value::Bool(false) => continue,
                // A fence agent's parameters hold passwords.
                serde_json::Value::Object(fencing) if key == "fencing" => fencing
                    .get("agent")
                    .map_or_else(String::new, ToString::to_string),
                serde_json::Value::String(word) => word.clone(),
                other => other.to_string(),
            };
            words.push_str(&format!(" {key}={shown}"));
        }
        Some((resource, words))
    }
}

/// A fence agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FencingSpec {
    pub(crate) agent: String,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) timeout_s: u32,
}

/// Time-outs that all nodes keep; see [`Timings`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimingsSpec {
    /// How long a beacon lets the primary answer, in ms; a lost primary is replaced a little later
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease_ms: Option<u32>,
    /// The clocks of two nodes run apart by no more than this, in percent
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) drift_percent: Option<u8>,
    /// Without a leader for this long voters elect another one, in ms; at most half a lease
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) election_ms: Option<u32>,
    /// Of two voters the one that does not serve has the other one switched off this much later, in ms
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fence_delay_ms: Option<u32>,
}

impl TimingsSpec {
    /// These, and the present ones for what is absent.
    pub(crate) fn over(&self, present: Timings) -> Timings {
        Timings {
            lease_ms: self.lease_ms.unwrap_or(present.lease_ms),
            drift_percent: self.drift_percent.unwrap_or(present.drift_percent),
            election_ms: self.election_ms.unwrap_or(present.election_ms),
            fence_delay_ms: self.fence_delay_ms.unwrap_or(present.fence_delay_ms),
        }
    }
}

impl From<Timings> for TimingsSpec {
    fn from(timings: Timings) -> Self {
        Self {
            lease_ms: Some(timings.lease_ms),
            drift_percent: Some(timings.drift_percent),
            election_ms: Some(timings.election_ms),
            fence_delay_ms: Some(timings.fence_delay_ms),
        }
    }
}

/// Which nodes export a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AccessMode {
    /// The primary's node
    #[default]
    Exclusive,
    /// Every node with a replica; the others forward to the primary
    Follow,
}

impl std::fmt::Display for AccessMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Follow => "follow",
        })
    }
}

impl From<AccessMode> for Access {
    fn from(mode: AccessMode) -> Self {
        match mode {
            AccessMode::Exclusive => Self::Exclusive,
            AccessMode::Follow => Self::Follow,
        }
    }
}

impl From<Access> for AccessMode {
    fn from(access: Access) -> Self {
        match access {
            Access::Exclusive => Self::Exclusive,
            Access::Follow => Self::Follow,
        }
    }
}

/// What clients see while no primary may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NoQuorum {
    /// Their requests wait
    #[default]
    Suspend,
    /// They get errors
    Error,
}

impl std::fmt::Display for NoQuorum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Suspend => "suspend",
            Self::Error => "error",
        })
    }
}

impl From<NoQuorum> for OnNoQuorum {
    fn from(policy: NoQuorum) -> Self {
        match policy {
            NoQuorum::Suspend => Self::Suspend,
            NoQuorum::Error => Self::Error,
        }
    }
}

impl From<OnNoQuorum> for NoQuorum {
    fn from(policy: OnNoQuorum) -> Self {
        match policy {
            OnNoQuorum::Suspend => Self::Suspend,
            OnNoQuorum::Error => Self::Error,
        }
    }
}

/// The node that becomes primary where several may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preference {
    Nobody,
    Node(String),
}

impl std::fmt::Display for Preference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("nobody"),
            Self::Node(node) => f.write_str(node),
        }
    }
}

/// A node's state in the API's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NodeWord {
    Online,
    Standby,
    Maintenance,
}

impl std::fmt::Display for NodeWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Standby => "standby",
            Self::Maintenance => "maintenance",
        })
    }
}

impl From<NodeState> for NodeWord {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Online => Self::Online,
            NodeState::Standby => Self::Standby,
            NodeState::Maintenance => Self::Maintenance,
        }
    }
}

impl From<NodeWord> for NodeState {
    fn from(word: NodeWord) -> Self {
        match word {
            NodeWord::Online => Self::Online,
            NodeWord::Standby => Self::Standby,
            NodeWord::Maintenance => Self::Maintenance,
        }
    }
}

/// A replica of a new resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplicaSpec {
    pub(crate) node: String,
    /// One path a volume; none: `RESOURCE.img`, `RESOURCE-1.img`, … in the data directory.
    pub(crate) paths: Vec<String>,
    pub(crate) metadata: MetadataSpec,
}

/// Where a replica's metadata lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MetadataSpec {
    /// External for files, internal for block devices
    #[default]
    Default,
    /// At the end of the store
    Internal,
    /// In a file beside the store
    External,
}

/// A daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It is done (or under way, the message says which).
    Done(Done),
    /// It is not.
    Failed(Failure),
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// A sentence for a person.
    pub(crate) message: String,
    /// What was asked for, where something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<serde_json::Value>,
}

impl Done {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            data: None,
        }
    }
}

/// Why something was not done: what was refused, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {why}{}", remedy_text(.remedy))]
pub(crate) struct Failure {
    /// What was refused or failed.
    pub(crate) what: String,
    /// Why.
    pub(crate) why: String,
    /// What to do; empty where the reason says it.
    pub(crate) remedy: String,
}

fn remedy_text(remedy: &str) -> String {
    if remedy.is_empty() {
        String::new()
    } else {
        format!("\n  to do: {remedy}")
    }
}

impl Failure {
    pub(crate) fn new(
        what: impl Into<String>,
        why: impl std::fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            why: why.to_string(),
            remedy: remedy.into(),
        }
    }
}

/// Where a node exports a volume, and what a client that lost its connection compares before it goes
/// on with the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportPlace {
    /// The node that was asked.
    pub(crate) node: String,
    /// The resource's id.
    pub(crate) id: String,
    pub(crate) access: Access,
    /// Changes with every promotion.
    pub(crate) epoch: u64,
    /// Changes when acknowledged writes may have been lost.
    pub(crate) history: String,
    pub(crate) primary: Option<String>,
    pub(crate) nbd_socket: Option<PathBuf>,
    pub(crate) nbd_listen: Vec<SocketAddr>,
    pub(crate) data_directory: PathBuf,
}

/// An answer of the listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResourceListing {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) sizes_bytes: Vec<u64>,
    pub(crate) min_redundancy: u8,
    pub(crate) primary: Option<String>,
    pub(crate) replicas: Vec<ReplicaListing>,
}

/// A replica in the listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaListing {
    pub(crate) node: String,
    pub(crate) paths: Vec<String>,
    pub(crate) in_sync: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_api_stay_as_they_are() {
        let promote = Operation::Promote {
            resource: "r0".to_owned(),
            node: None,
            accept_data_loss: false,
            confirm_dead: None,
        };
        let text = r#"{"operation":"promote","resource":"r0","node":null,"accept_data_loss":false,"confirm_dead":null}"#;
        assert_eq!(serde_json::to_string(&promote).unwrap(), text);
        assert_eq!(serde_json::from_str::<Operation>(text).unwrap(), promote);
        assert_eq!(
            serde_json::to_string(&Answer::Failed(Failure::new("a", "b", "c"))).unwrap(),
            r#"{"failed":{"what":"a","why":"b","remedy":"c"}}"#
        );
    }

    #[test]
    fn a_command_is_told_without_secrets() {
        let fencing = Operation::SetFencing {
            node: "node1".to_owned(),
            fencing: Some(FencingSpec {
                agent: "/bin/off".to_owned(),
                parameters: vec![("password".to_owned(), "hidden".to_owned())],
                timeout_s: 60,
            }),
        };
        let (resource, told) = fencing.told().unwrap();
        assert_eq!(resource, None);
        assert_eq!(told, "set-fencing fencing=\"/bin/off\" node=node1");
        let moves = Operation::Move {
            resource: "r0".to_owned(),
            node: Some("node2".to_owned()),
        };
        let told = (
            Some("r0".to_owned()),
            "move node=node2 resource=r0".to_owned(),
        );
        assert_eq!(moves.told(), Some(told));
        assert_eq!(Operation::Export.told(), None);
    }

    #[test]
    fn unknown_operations_and_fields_are_refused() {
        for bad in [
            r#"{"operation":"explode"}"#,
            r#"{"operation":"demote","resource":"r0","node":null,"fast":true}"#,
            r#"{"operation":"demote","node":null}"#,
        ] {
            assert!(serde_json::from_str::<Operation>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        assert_eq!(
            Failure::new("can't promote r0", "no disk", "attach it").to_string(),
            "can't promote r0: no disk\n  to do: attach it"
        );
    }
}
