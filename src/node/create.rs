//! `resource create`: from words to a command for the configuration store, then the wait for the
//! nodes to make their replicas.

use super::{Node, node_id};
use crate::operation::{Done, Failure, MetadataSpec, ReplicaSpec};
use controller::core::{
    Backing, Command, Document, MetadataKind, Name, Policy, Refused, Replica, Resource,
};
use controller::runtime::CommandError;
use std::time::Duration;
use tokio::time::timeout;
use vocabulary::{HistoryId, NodeId, ResourceId};

/// The voter begins a resource after 10 s with the replicas that are there; a little more than that.
const CREATE_LIMIT: Duration = Duration::from_secs(20);

impl Node {
    pub(super) async fn create(
        &self,
        name: &str,
        sizes: Vec<u64>,
        replicas: &[ReplicaSpec],
        min_redundancy: u8,
        policy: Policy,
    ) -> Result<Done, Failure> {
        let what = format!("can't create {name}");
        let document = self.document(&what)?;
        let name = Name::new(name).map_err(|error| Failure::new(&what, error, ""))?;
        let volumes = sizes.len();
        let replicas = if replicas.is_empty() {
            let everywhere = document.nodes.iter().map(|node| node.id);
            everywhere
                .map(|node| replica(node, &name, volumes, &[], MetadataSpec::Default))
                .collect()
        } else {
            named_replicas(&what, &document, &name, volumes, replicas)?
        };
        let id = ResourceId(rand::random());
        let command = Command::CreateResource {
            name: name.clone(),
            id,
            history: HistoryId(rand::random()),
            sizes,
            replicas,
            min_redundancy,
            policy,
        };
        self.store.command(command).await.map_err(|error| {
            let remedy = match error {
                CommandError::Refused(_) => "",
                CommandError::Unreachable => "start the other nodes' daemons",
                CommandError::Undecided => "look at `lockstep resource list`",
            };
            Failure::new(&what, error, remedy)
        })?;
        self.begun(&what, &name, id).await
    }

    /// `resource replace-disk`: the replica's disk is given up and another one made.
    pub(super) async fn replace_disk(
        &self,
        resource: &str,
        node: &str,
        paths: &[String],
        metadata: MetadataSpec,
    ) -> Result<Done, Failure> {
        let what = format!("can't replace the disk of {resource} on {node}");
        let document = self.document(&what)?;
        let id = node_id(&what, &document, node)?;
        let found = document.resource_named(resource).ok_or_else(|| {
            let why = format!("there is no resource {resource}");
            Failure::new(&what, why, "see `lockstep resource list`")
        })?;
        let old = found.replica(id).ok_or_else(|| {
            let why = format!("{node} holds no replica of it");
            Failure::new(&what, why, "see `lockstep resource list`")
        })?;
        let Some(report) = old.report else {
            return Err(Failure::new(
                what,
                "no disk was made there since it was last replaced, or since the resource was created",
                format!("`lockstep status {resource}` on {node} says why"),
            ));
        };
        let volumes = found.sizes().len();
        if !paths.is_empty() && paths.len() != volumes {
            return Err(Failure::new(
                what,
                format!("{} paths for {volumes} volumes", paths.len()),
                "name one path for each volume, or none",
            ));
        }
        let backing = if paths.is_empty() {
            old.backing.clone()
        } else {
            replica(id, &found.name, volumes, paths, metadata).backing
        };
        let command = Command::ReplaceDisk {
            resource: found.id,
            node: id,
            disk: report.member.disk,
            backing,
        };
        self.store.command(command).await.map_err(|error| {
            let remedy = match &error {
                CommandError::Refused(Refused::DiskInSync { .. }) => {
                    "see `lockstep status`; if it is the primary, promote another node first"
                }
                CommandError::Refused(_) => "",
                _ => "try again when the nodes can reach each other",
            };
            Failure::new(&what, &error, remedy)
        })?;
        Ok(Done::new(format!(
            "the disk of {resource} on {node} is given up; a new one is made and brought up to date (`lockstep status {resource}` shows how far, or what is in the way)"
        )))
    }

    /// Waits until the resource has its record, and says which replicas it began without.
    async fn begun(&self, what: &str, name: &Name, id: ResourceId) -> Result<Done, Failure> {
        let mut documents = self.store.subscribe();
        let begun = documents.wait_for(|document| {
            let resource = document.as_ref().and_then(|document| document.resource(id));
            resource.is_some_and(|resource| resource.record.is_some())
        });
        // The guard that `wait_for` gives must not live on.
        let in_time = matches!(timeout(CREATE_LIMIT, begun).await, Ok(Ok(_)));
        let document = self.document(what)?;
        let missing = document
            .resource(id)
            .map(|resource| missing(&document, resource))
            .unwrap_or_default();
        if !in_time {
            return Err(Failure::new(
                what,
                format!("no replica was created within {} s", CREATE_LIMIT.as_secs()),
                format!(
                    "`lockstep status {name}` says why; it begins when they are there, or delete it"
                ),
            ));
        }
        let mut message = format!("{name} is created");
        if !missing.is_empty() {
            message.push_str(&format!(
                "; not yet on {}, which will be brought up to date when its replica is there (`lockstep status {name}` says what is wrong)",
                missing.join(", ")
            ));
        }
        Ok(Done::new(message))
    }
}

fn missing(document: &Document, resource: &Resource) -> Vec<String> {
    let late = resource.replicas.iter().filter(|r| r.report.is_none());
    late.map(|replica| document.node_name(replica.node))
        .collect()
}

pub(super) fn named_replicas(
    what: &str,
    document: &Document,
    name: &Name,
    volumes: usize,
    specs: &[ReplicaSpec],
) -> Result<Vec<Replica>, Failure> {
    specs
        .iter()
        .map(|spec| {
            let node = node_id(what, document, &spec.node)?;
            if specs.iter().filter(|other| other.node == spec.node).count() > 1 {
                return Err(Failure::new(
                    what,
                    format!("{} is named twice", spec.node),
                    "a node holds one replica of a resource; a path for each volume follows its name",
                ));
            }
            if !spec.paths.is_empty() && spec.paths.len() != volumes {
                return Err(Failure::new(
                    what,
                    format!(
                        "{} paths for {volumes} volumes on {}",
                        spec.paths.len(),
                        spec.node
                    ),
                    "name one path for each volume, or none",
                ));
            }
            Ok(replica(node, name, volumes, &spec.paths, spec.metadata))
        })
        .collect()
}

fn replica(
    node: NodeId,
    name: &Name,
    volumes: usize,
    paths: &[String],
    metadata: MetadataSpec,
) -> Replica {
    let default = |volume: usize| match volume {
        0 => format!("{name}.img"),
        volume => format!("{name}-{volume}.img"),
    };
    Replica {
        node,
        backing: (0..volumes)
            .map(|volume| Backing {
                path: paths
                    .get(volume)
                    .cloned()
                    .unwrap_or_else(|| default(volume)),
                metadata: match metadata {
                    MetadataSpec::Default => MetadataKind::Default,
                    MetadataSpec::Internal => MetadataKind::Internal,
                    MetadataSpec::External => MetadataKind::External { path: None },
                },
            })
            .collect(),
        report: None,
        replaced: None,
    }
}
