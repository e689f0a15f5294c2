//! What a cluster is made of: replicas and policies of resources, time-outs, nodes that leave, and the
//! text of it all.

use super::{Node, Subject, create, node_id};
use crate::operation::{
    AccessMode, Done, Failure, NoQuorum, Operation, Preference, ReplicaSpec, TimingsSpec,
};
use crate::spec::{self, Spec};
use controller::core::{Command, Policy, Refused};
use controller::runtime::CommandError;
use vocabulary::NodeId;

impl Node {
    /// `resource set`.
    pub(super) async fn set_resource(
        &self,
        resource: &str,
        min_redundancy: Option<u8>,
        access: Option<AccessMode>,
        on_no_quorum: Option<NoQuorum>,
        preferred: Option<Preference>,
    ) -> Result<Done, Failure> {
        let what = format!("can't change {resource}");
        let subject = self.subject(&what, resource)?;
        let present = subject.resource.policy;
        let preferred = match preferred {
            None => present.preferred,
            Some(Preference::Nobody) => None,
            Some(Preference::Node(node)) => {
                let id = node_id(&what, &subject.document, &node)?;
                self.holder(&what, &subject, &node, id)?;
                Some(id)
            }
        };
        let command = Command::SetResource {
            resource: subject.resource.id,
            min_redundancy: min_redundancy.unwrap_or(subject.resource.min_redundancy),
            policy: Policy {
                access: access.map_or(present.access, Into::into),
                on_no_quorum: on_no_quorum.map_or(present.on_no_quorum, Into::into),
                preferred,
            },
        };
        self.change(&what, command).await?;
        Ok(Done::new(format!("{resource} is changed")))
    }

    fn holder(
        &self,
        what: &str,
        subject: &Subject,
        name: &str,
        node: NodeId,
    ) -> Result<(), Failure> {
        if subject.resource.replica(node).is_some() {
            return Ok(());
        }
        Err(Failure::new(
            what,
            format!("{name} holds no replica of {}", subject.name()),
            "see `lockstep resource list`",
        ))
    }

    /// `resource add-replica`.
    pub(super) async fn add_replica(
        &self,
        resource: &str,
        spec: &ReplicaSpec,
    ) -> Result<Done, Failure> {
        let node = &spec.node;
        let what = format!("can't add a replica of {resource} on {node}");
        let subject = self.subject(&what, resource)?;
        let volumes = subject.resource.sizes().len();
        let specs = std::slice::from_ref(spec);
        let name = &subject.resource.name;
        let mut replicas = create::named_replicas(&what, &subject.document, name, volumes, specs)?;
        let Some(replica) = replicas.pop() else {
            return Err(Failure::new(what, "no replica was named", ""));
        };
        let command = Command::AddReplica {
            resource: subject.resource.id,
            replica,
        };
        self.change(&what, command).await?;
        Ok(Done::new(format!(
            "{node} gets a replica of {resource}, which is brought up to date in full (`lockstep status {resource}` shows how far, or what is in the way)"
        )))
    }

    /// `resource remove-replica`.
    pub(super) async fn remove_replica(&self, resource: &str, node: &str) -> Result<Done, Failure> {
        let what = format!("can't remove the replica of {resource} on {node}");
        let subject = self.subject(&what, resource)?;
        let id = node_id(&what, &subject.document, node)?;
        self.holder(&what, &subject, node, id)?;
        self.give_up_replica(&what, &subject, id).await?;
        Ok(Done::new(format!(
            "{node} holds no replica of {resource} any more; its data stay where they are"
        )))
    }

    async fn give_up_replica(
        &self,
        what: &str,
        subject: &Subject,
        node: NodeId,
    ) -> Result<(), Failure> {
        let record = subject.record.as_ref();
        let name = subject.name();
        if let Some(record) = record
            && record.member(node).is_some()
            && let Some(primary) = record.primary.filter(|&primary| primary != node)
        {
            // The record alone does not tell whether the primary lives.
            let view = self.resource_view(primary, name).await;
            if view.is_none_or(|view| view.role != "Primary") {
                let primary = subject.document.node_name(primary);
                return Err(Failure::new(
                    what,
                    format!(
                        "it may be the last good copy of {name}: its primary, {primary}, does not serve"
                    ),
                    format!("see `lockstep status {name}`; remove it when the resource is served"),
                ));
            }
        }
        let command = Command::RemoveReplica {
            resource: subject.resource.id,
            node,
        };
        self.store.command(command).await.map_err(|error| {
            let remedy = match &error {
                CommandError::Refused(Refused::RemovesPrimary { .. }) => {
                    format!("lockstep move {name}")
                }
                CommandError::Refused(Refused::LastGoodCopy { .. }) => {
                    format!("lockstep promote {name} NODE")
                }
                CommandError::Refused(_) => String::new(),
                _ => "look at `lockstep status` and try again".to_owned(),
            };
            Failure::new(what, error, remedy)
        })?;
        Ok(())
    }

    /// `cluster timings`: shows them, or changes them.
    pub(super) async fn set_timings(&self, wanted: TimingsSpec) -> Result<Done, Failure> {
        let what = "can't change the cluster's time-outs";
        let document = self.document(what)?;
        let timings = wanted.over(document.timings);
        if timings != document.timings {
            let changed = self.store.command(Command::SetTimings { timings }).await;
            changed.map_err(|error| {
                let remedy = match error {
                    CommandError::Refused(_) => "",
                    _ => "look at `lockstep status` and try again",
                };
                Failure::new(what, error, remedy)
            })?;
        }
        Ok(Done {
            message: format!(
                "lease_ms = {}\ndrift_percent = {}\nelection_ms = {}\nfence_delay_ms = {}",
                timings.lease_ms,
                timings.drift_percent,
                timings.election_ms,
                timings.fence_delay_ms
            ),
            data: serde_json::to_value(TimingsSpec::from(timings)).ok(),
        })
    }

    /// `node remove`: for good. Nothing is changed before it is known that the rest can go on.
    pub(super) async fn remove_node(&self, node: &str, replicas: bool) -> Result<Done, Failure> {
        let what = format!("can't remove {node}");
        let document = self.document(&what)?;
        let id = node_id(&what, &document, node)?;
        if id == self.config.node {
            let remedy = "give the command on another node";
            return Err(Failure::new(what, "it is this node itself", remedy));
        }
        let held: Vec<String> = document
            .resources
            .iter()
            .filter(|resource| resource.replica(id).is_some())
            .map(|resource| resource.name.to_string())
            .collect();
        if !held.is_empty() && !replicas {
            return Err(Failure::new(
                what,
                format!("it holds replicas of {}", held.join(", ")),
                format!(
                    "`lockstep resource remove-replica RESOURCE {node}`, or add --replicas to give all of them up"
                ),
            ));
        }
        self.check_quorum_without(&what, id).await?;
        for resource in &held {
            let subject = self.subject(&what, resource)?;
            self.give_up_replica(&what, &subject, id).await?;
        }
        self.change(&what, Command::RemoveNode { node: id }).await?;
        Ok(Done::new(format!(
            "{node} does not belong to the cluster any more, and is not let in again under this identity; stop its daemon"
        )))
    }

    /// A majority of the voters that are left has to be there, or nothing could be decided any more.
    async fn check_quorum_without(&self, what: &str, leaving: NodeId) -> Result<(), Failure> {
        let document = self.document(what)?;
        if document.voters.iter().all(|voter| voter.node != leaving) {
            return Ok(());
        }
        let left = document.voters.iter().map(|voter| voter.node);
        let left: Vec<NodeId> = left.filter(|&node| node != leaving).collect();
        let views = self.views().await;
        let missing: Vec<String> = left
            .iter()
            .filter(|node| !views.contains_key(node))
            .map(|&node| document.node_name(node))
            .collect();
        if (left.len() - missing.len()) * 2 > left.len() {
            return Ok(());
        }
        Err(Failure::new(
            what,
            format!(
                "of the {} voters that would be left {} do not answer, and without a majority nothing can be decided",
                left.len(),
                missing.join(", ")
            ),
            format!("start {} first", missing.join(", ")),
        ))
    }

    /// `export`.
    pub(super) fn export(&self) -> Result<Done, Failure> {
        let document = self.document("can't export the cluster")?;
        Ok(Done {
            message: String::new(),
            data: serde_json::to_value(spec::export(&document)).ok(),
        })
    }

    /// What `apply` has to do.
    pub(super) fn plan(&self, spec: &Spec, prune: bool) -> Result<Done, Failure> {
        let document = self.document("can't apply")?;
        let plan = spec::plan(&document, spec, prune)?;
        Ok(Done {
            message: String::new(),
            data: serde_json::to_value(plan).ok(),
        })
    }

    pub(super) async fn shape(&self, operation: Operation) -> Result<Done, Failure> {
        match operation {
            Operation::SetResource {
                resource,
                min_redundancy,
                access,
                on_no_quorum,
                preferred,
            } => {
                self.set_resource(&resource, min_redundancy, access, on_no_quorum, preferred)
                    .await
            }
            Operation::AddReplica { resource, replica } => {
                self.add_replica(&resource, &replica).await
            }
            Operation::RemoveReplica { resource, node } => {
                self.remove_replica(&resource, &node).await
            }
            Operation::SetTimings { timings } => self.set_timings(timings).await,
            Operation::RemoveNode { node, replicas } => self.remove_node(&node, replicas).await,
            Operation::Plan { spec, prune } => self.plan(&spec, prune),
            _ => self.export(),
        }
    }
}
