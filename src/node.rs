//! A running node as its operators see it: carries out their commands, here or on the node that they
//! concern, and puts together the picture of the cluster. Every command has a time limit, and every
//! refusal says what, why and what to do.

mod create;
mod export;
mod roles;
mod shape;
mod take_over;
mod token;

use crate::config::Config;
use crate::events::Events;
use crate::operation::{Answer, Done, Failure, Operation, ReplicaListing, ResourceListing};
use crate::plane::Plane;
use crate::resources::Resources;
use crate::size::show_size;
use crate::view::{ClusterView, LocalView, merge};
use crate::who::Caller;
use controller::core::{Command as StoreCommand, Document, Node as NodeEntry, Resource};
use controller::pki::Issuer;
use controller::runtime::{FailoverHandle, Forwarded, StoreHandle};
use replicator::core::api::{Command, CommandError};
use replicator::core::status::Role;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use vocabulary::{NodeId, Record, Refusal, ResourceId, VolumeId};

/// Another node's view that is not there within this time is left out of the picture.
const VIEW_LIMIT: Duration = Duration::from_secs(1);
/// A command waits this long for the newest document before it goes by the one that is known.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(1);
/// A command of the engine that has not ended by then is given up waiting for. Longer than the
/// engine's own limit (`command_timeout_ms`), which gives the reason.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// The same for a command that runs on another node.
const FORWARD_LIMIT: Duration = Duration::from_secs(40);
/// The answer to a promotion waits this long for the node to serve.
const SERVE_LIMIT: Duration = Duration::from_secs(5);
/// What is waited for is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What remains when a majority of the voters is lost for good.
const WAY_OUT: &str = "stop this daemon, then `lockstep recover --config FILE` on this machine";

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Arc<Config>,
    /// Where the key of the cluster's authority is.
    pub(crate) issuer: Option<Arc<Issuer>>,
    pub(crate) store: StoreHandle,
    pub(crate) failover: FailoverHandle,
    pub(crate) plane: Arc<dyn Plane>,
    pub(crate) resources: Arc<Resources>,
    pub(crate) events: Arc<Events>,
}

/// A resource as a command finds it.
struct Subject {
    document: Arc<Document>,
    resource: Resource,
    record: Option<Record>,
}

impl Subject {
    fn name(&self) -> &str {
        self.resource.name.as_str()
    }

    fn record(&self, what: &str) -> Result<&Record, Failure> {
        self.record.as_ref().ok_or_else(|| {
            Failure::new(
                what,
                "its replicas are still being created",
                "wait for them; `lockstep status` names the nodes that are missing",
            )
        })
    }
}

impl Node {
    /// Carries out an operator's command.
    pub(crate) async fn operate(&self, operation: Operation) -> Result<Done, Failure> {
        self.carry_out(operation, false).await
    }

    /// The same for somebody at the API: the events tell who gave which command, and how it ended.
    pub(crate) async fn operate_for(
        &self,
        caller: Caller,
        operation: Operation,
    ) -> Result<Done, Failure> {
        let told = operation.told();
        let result = self.operate(operation).await;
        if let Some((resource, command)) = told {
            let end = match &result {
                Ok(_) => "done".to_owned(),
                Err(failure) => format!("refused: {}", failure.why),
            };
            let text = format!("{caller} gave the command {command}: {end}");
            self.events.push(resource.as_deref(), "command", text);
        }
        result
    }

    /// Answers commands that other nodes forward until there are no more.
    pub(crate) async fn answer_forwarded(self: Arc<Self>, mut queue: mpsc::Receiver<Forwarded>) {
        while let Some(asked) = queue.recv().await {
            let node = Arc::clone(&self);
            tokio::spawn(async move {
                let answer = match serde_json::from_slice(&asked.body) {
                    Ok(operation) => match node.carry_out(operation, true).await {
                        Ok(done) => Answer::Done(done),
                        Err(failure) => Answer::Failed(failure),
                    },
                    Err(error) => Answer::Failed(Failure::new(
                        format!(
                            "node {} can't understand a forwarded command",
                            node.my_name()
                        ),
                        error,
                        "run the same version on every node",
                    )),
                };
                let body = serde_json::to_vec(&answer).unwrap_or_default();
                // The asking node may have given up.
                let _ = asked.answer.send(body);
            });
        }
    }

    async fn carry_out(&self, operation: Operation, forwarded: bool) -> Result<Done, Failure> {
        if operation != Operation::LocalView {
            // What another node has just been told is known here too, as far as that can be had.
            self.store.catch_up(CATCH_UP_LIMIT).await;
        }
        match operation {
            Operation::LocalView => Ok(Done {
                message: String::new(),
                data: serde_json::to_value(self.resources.view().await).ok(),
            }),
            Operation::CreateResource {
                name,
                sizes,
                replicas,
                min_redundancy,
                policy,
            } => {
                self.create(&name, sizes, &replicas, min_redundancy, policy)
                    .await
            }
            Operation::SetResource { .. }
            | Operation::AddReplica { .. }
            | Operation::RemoveReplica { .. }
            | Operation::SetTimings { .. }
            | Operation::RemoveNode { .. }
            | Operation::Export
            | Operation::Plan { .. } => self.shape(operation).await,
            Operation::Token { valid_s } => self.token(valid_s, forwarded).await,
            Operation::DeleteResource { name } => self.delete(&name).await,
            Operation::ReplaceDisk {
                resource,
                node,
                paths,
                metadata,
            } => self.replace_disk(&resource, &node, &paths, metadata).await,
            Operation::ListResources => self.list(),
            Operation::FindExport { resource, volume } => self.find_export(&resource, volume),
            Operation::Promote {
                ref resource,
                ref node,
                accept_data_loss: true,
                ref confirm_dead,
            } => {
                let what = format!("can't promote {resource}");
                let subject = self.subject(&what, resource)?;
                let target = match node {
                    Some(node) => node_id(&what, &subject.document, node)?,
                    None => self.config.node,
                };
                if target != self.config.node {
                    return self.forward(&what, target, &operation, forwarded).await;
                }
                self.force(&what, &subject, confirm_dead.as_deref()).await
            }
            Operation::Promote {
                ref resource,
                ref node,
                ..
            } => self.promote(resource, node.as_deref()).await,
            Operation::Move {
                ref resource,
                ref node,
            } => self.move_resource(resource, node.as_deref()).await,
            Operation::TakeOver { resource } => self.take_over(&resource).await,
            Operation::HandOver { resource, to } => self.hand_over(&resource, &to).await,
            Operation::SetNode { ref node, state } => self.set_node_state(node, state).await,
            Operation::SetFencing { ref node, fencing } => self.set_fencing(node, fencing).await,
            Operation::Fence {
                ref node,
                confirmed,
            } => self.fence(node, confirmed).await,
            Operation::Demote {
                ref resource,
                ref node,
            } => self.demote(resource, node.as_deref()).await,
            Operation::Connect {
                ref resource,
                ref node,
            } => self.connections(resource, node.as_deref(), true).await,
            Operation::Disconnect {
                ref resource,
                ref node,
            } => self.connections(resource, node.as_deref(), false).await,
            Operation::Verify { .. }
            | Operation::Resync { .. }
            | Operation::Invalidate { .. }
            | Operation::Resize { .. } => self.on_primary(&operation, forwarded).await,
        }
    }

    fn my_name(&self) -> &str {
        self.config.file.name.as_str()
    }

    fn document(&self, what: &str) -> Result<Arc<Document>, Failure> {
        self.store.document().ok_or_else(|| {
            Failure::new(
                what,
                "this node has not heard of the configuration since its start",
                format!(
                    "start the daemons on the other nodes, or mend the network to them; where they are lost for good: {WAY_OUT}"
                ),
            )
        })
    }

    fn subject(&self, what: &str, name: &str) -> Result<Subject, Failure> {
        let document = self.document(what)?;
        let resource = document.resource_named(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = document.resources.iter().map(|r| r.name.as_str()).collect();
            let remedy = if names.is_empty() {
                "create one with `lockstep resource create`".to_owned()
            } else {
                format!("name one of these: {}", names.join(", "))
            };
            Failure::new(what, format!("there is no resource {name}"), remedy)
        })?;
        let record = resource.record.clone();
        Ok(Subject {
            document,
            resource,
            record,
        })
    }

    /// Hands the command to the node that it concerns.
    async fn forward(
        &self,
        what: &str,
        target: NodeId,
        operation: &Operation,
        forwarded: bool,
    ) -> Result<Done, Failure> {
        if forwarded {
            return Err(Failure::new(
                what,
                "the primary has changed while the command was on its way",
                "look at `lockstep status` and try again",
            ));
        }
        match self.ask(target, operation, FORWARD_LIMIT).await {
            Ok(Answer::Done(done)) => Ok(done),
            Ok(Answer::Failed(failure)) => Err(failure),
            Err(error) => Err(Failure::new(
                what,
                error,
                "start the daemon there, or mend the network between the two",
            )),
        }
    }

    async fn ask(
        &self,
        target: NodeId,
        operation: &Operation,
        limit: Duration,
    ) -> Result<Answer, AskError> {
        let body = serde_json::to_vec(operation)?;
        let answer = self.store.forward(target, body, limit).await?;
        if answer.is_empty() {
            return Err(AskError::NotReady(target));
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    /// What every node knows, without those that do not answer in time.
    async fn views(&self) -> BTreeMap<NodeId, LocalView> {
        let mut asked = JoinSet::new();
        let nodes = self.nodes();
        for id in nodes.iter().map(|node| node.id) {
            if id == self.config.node {
                continue;
            }
            let store = self.store.clone();
            asked.spawn(async move {
                let body = serde_json::to_vec(&Operation::LocalView).ok()?;
                let answer = store.forward(id, body, VIEW_LIMIT).await.ok()?;
                match serde_json::from_slice(&answer).ok()? {
                    Answer::Done(done) => Some((id, serde_json::from_value(done.data?).ok()?)),
                    Answer::Failed(_) => None,
                }
            });
        }
        let mut views = BTreeMap::from([(self.config.node, self.resources.view().await)]);
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some((id, view))) = answer {
                views.insert(id, view);
            }
        }
        views
    }

    /// The picture of the cluster. Always answers.
    pub(crate) async fn status(&self) -> ClusterView {
        let (views, _) = tokio::join!(self.views(), self.store.catch_up(CATCH_UP_LIMIT));
        let known = self.store.document();
        let mut notes = Vec::new();
        if self.store.departed() {
            notes.push("this node was removed from the cluster, and what follows is old: stop its daemon; to join again the machine needs an empty data_directory".to_owned());
        }
        let document = match (known, self.store.stored()) {
            (Some(document), _) => {
                if self.store.leader().is_none() {
                    notes.push("the configuration store has no leader within reach: what follows may be old, and no role can change".to_owned());
                }
                document
            }
            (None, Some(document)) => {
                notes.push(self.waiting_since_start(&document));
                document
            }
            (None, None) => {
                notes.push("the configuration store was not reached since this node's start: nothing is known of resources".to_owned());
                let mut document = Document::new(self.config.cluster);
                document.nodes = self.nodes();
                Arc::new(document)
            }
        };
        let mut view = merge(&document, self.store.leader(), &views);
        view.notes.splice(0..0, notes);
        view
    }

    /// What a node that has just started waits for, by the document that it had when it stopped.
    fn waiting_since_start(&self, document: &Document) -> String {
        let others = document.voters.iter().map(|voter| voter.node);
        let others: Vec<String> = others
            .filter(|&node| node != self.config.node)
            .map(|node| document.node_name(node))
            .collect();
        let why = match &others[..] {
            [other] => {
                format!("waiting for {other}: it may have gone on alone while this node was away")
            }
            others => format!(
                "waiting for a majority of the voters: start more of {}",
                others.join(", ")
            ),
        };
        format!(
            "{why}, or if that never comes: {WAY_OUT}; what follows is what this node knew when it stopped"
        )
    }

    /// The cluster's nodes, as far as they are known.
    fn nodes(&self) -> Vec<NodeEntry> {
        match self.store.document() {
            Some(document) => document.nodes.clone(),
            None => self.config.known_nodes.clone(),
        }
    }

    fn list(&self) -> Result<Done, Failure> {
        let document = self.document("can't list the resources")?;
        let listing: Vec<ResourceListing> = document
            .resources
            .iter()
            .map(|resource| {
                let record = resource.record.as_ref();
                let members = record.map(Record::members).unwrap_or_default();
                ResourceListing {
                    name: resource.name.to_string(),
                    id: resource.id.to_string(),
                    sizes_bytes: resource.sizes().to_vec(),
                    min_redundancy: resource.min_redundancy,
                    primary: record
                        .and_then(|record| record.primary)
                        .map(|node| document.node_name(node)),
                    replicas: resource
                        .replicas
                        .iter()
                        .map(|replica| ReplicaListing {
                            node: document.node_name(replica.node),
                            paths: replica.backing.iter().map(|b| b.path.clone()).collect(),
                            in_sync: members.contains(replica.node),
                        })
                        .collect(),
                }
            })
            .collect();
        Ok(Done {
            message: String::new(),
            data: serde_json::to_value(listing).ok(),
        })
    }

    async fn delete(&self, name: &str) -> Result<Done, Failure> {
        let what = format!("can't delete {name}");
        let subject = self.subject(&what, name)?;
        if let Some(primary) = subject.record.as_ref().and_then(|record| record.primary) {
            let primary = subject.document.node_name(primary);
            return Err(Failure::new(
                what,
                format!("it has a primary, {primary}"),
                format!("lockstep demote {name}"),
            ));
        }
        let command = StoreCommand::DeleteResource {
            resource: subject.resource.id,
        };
        self.store
            .command(command)
            .await
            .map_err(|error| Failure::new(what, error, ""))?;
        Ok(Done::new(format!(
            "{name} is deleted; its data stay in the nodes' backing stores"
        )))
    }

    /// Waits until this node serves a resource, so that a script may open it next.
    async fn wait_serving(&self, id: ResourceId) -> bool {
        let serving = async {
            loop {
                match self.plane.status(id).await {
                    Ok(status) if status.role == Role::Primary => return true,
                    Ok(status) if status.role == Role::Starting => sleep(LOOK_EVERY).await,
                    // Demoted or closed meanwhile.
                    _ => return false,
                }
            }
        };
        timeout(SERVE_LIMIT, serving).await.unwrap_or(false)
    }

    async fn connections(
        &self,
        resource: &str,
        node: Option<&str>,
        connect: bool,
    ) -> Result<Done, Failure> {
        let verb = if connect { "connect" } else { "disconnect" };
        let what = format!("can't {verb} {resource}");
        let subject = self.subject(&what, resource)?;
        let peers = self.peers(&what, &subject, node)?;
        for &node in &peers {
            let command = if connect {
                Command::Connect { node }
            } else {
                Command::Disconnect { node }
            };
            self.command(&what, &subject, command).await?;
        }
        let names: Vec<String> = peers
            .iter()
            .map(|&n| subject.document.node_name(n))
            .collect();
        Ok(Done::new(format!(
            "{}: {} {}",
            resource,
            if connect {
                "connecting to"
            } else {
                "disconnected from"
            },
            names.join(", ")
        )))
    }

    /// The replicas on other nodes: the one named, or all.
    fn peers(
        &self,
        what: &str,
        subject: &Subject,
        node: Option<&str>,
    ) -> Result<Vec<NodeId>, Failure> {
        let here = self.config.node;
        let others = subject
            .resource
            .replicas
            .iter()
            .map(|r| r.node)
            .filter(|&n| n != here);
        let Some(node) = node else {
            return Ok(others.collect());
        };
        let id = node_id(what, &subject.document, node)?;
        if id == here {
            return Err(Failure::new(
                what,
                format!("{node} is this node itself"),
                "name the node at the other end, or none for all",
            ));
        }
        if !others.into_iter().any(|other| other == id) {
            return Err(Failure::new(
                what,
                format!("{node} holds no replica of {}", subject.name()),
                "see `lockstep resource list`",
            ));
        }
        Ok(vec![id])
    }

    /// Commands that are the primary's: carried out here if that is this node.
    async fn on_primary(&self, operation: &Operation, forwarded: bool) -> Result<Done, Failure> {
        let (verb, resource) = match operation {
            Operation::Resync { resource, .. } => ("resync", resource),
            Operation::Invalidate { resource, .. } => ("invalidate a replica of", resource),
            Operation::Resize { resource, .. } => ("resize", resource),
            Operation::Verify { resource, .. } => ("verify", resource),
            _ => {
                return Err(Failure::new(
                    "can't do this",
                    "it is not a primary's command",
                    "",
                ));
            }
        };
        let what = format!("can't {verb} {resource}");
        let subject = self.subject(&what, resource)?;
        let Some(primary) = subject.record(&what)?.primary else {
            return Err(Failure::new(
                what,
                "it has no primary, and data flow only from a primary",
                format!("lockstep promote {resource} NODE"),
            ));
        };
        if primary != self.config.node {
            return self.forward(&what, primary, operation, forwarded).await;
        }
        let message = match operation {
            Operation::Verify {
                node, repair, stop, ..
            } => {
                let named = self.peers(&what, &subject, node.as_deref())?;
                if *stop {
                    self.command(&what, &subject, Command::VerifyStop).await?;
                    format!("verify of {resource} is stopped")
                } else {
                    let command = Command::Verify {
                        node: node.as_ref().and(named.first().copied()),
                        repair: *repair,
                    };
                    self.command(&what, &subject, command).await?;
                    format!(
                        "verify of {resource} is under way; `lockstep status` shows how far, `lockstep events` what differs"
                    )
                }
            }
            Operation::Resync { node, .. } => {
                for node in self.peers(&what, &subject, node.as_deref())? {
                    self.command(&what, &subject, Command::Connect { node })
                        .await?;
                }
                format!(
                    "replicas of {resource} that lack something are brought up to date; `lockstep status` shows how far"
                )
            }
            Operation::Invalidate { node, .. } => {
                let id = node_id(&what, &subject.document, node)?;
                if id == primary {
                    return Err(Failure::new(
                        what,
                        format!("{node} is its primary, and data flow only from the primary"),
                        "promote another node first",
                    ));
                }
                self.peers(&what, &subject, Some(node))?;
                self.command(&what, &subject, Command::Invalidate { node: id })
                    .await?;
                format!(
                    "the replica of {resource} on {node} is copied anew; `lockstep status` shows how far"
                )
            }
            Operation::Resize {
                volume, size_bytes, ..
            } => {
                self.check_growth(&what, &subject, *volume, *size_bytes)?;
                let command = Command::Resize {
                    volume: VolumeId(*volume),
                    size_bytes: *size_bytes,
                };
                self.command(&what, &subject, command).await?;
                format!(
                    "volume {volume} of {resource} has {} now; clients see it when they connect again",
                    show_size(*size_bytes)
                )
            }
            _ => String::new(),
        };
        Ok(Done::new(message))
    }

    fn check_growth(
        &self,
        what: &str,
        subject: &Subject,
        volume: u16,
        size_bytes: u64,
    ) -> Result<(), Failure> {
        let sizes = subject.resource.sizes();
        let Some(&now) = sizes.get(usize::from(volume)) else {
            let why = format!("it has no volume {volume}");
            let remedy = format!("its volumes are 0 to {}", sizes.len().saturating_sub(1));
            return Err(Failure::new(what, why, remedy));
        };
        if size_bytes < now {
            return Err(Failure::new(
                what,
                format!(
                    "the volume has {}, and volumes can't shrink",
                    show_size(now)
                ),
                "name a greater size",
            ));
        }
        if !size_bytes.is_multiple_of(vocabulary::BLOCK_BYTES) {
            return Err(Failure::new(
                what,
                format!("{size_bytes} bytes is not a multiple of 4096"),
                "round it",
            ));
        }
        Ok(())
    }

    /// Gives a command to the engine and turns its error into words.
    async fn command(
        &self,
        what: &str,
        subject: &Subject,
        command: Command,
    ) -> Result<(), Failure> {
        let id = subject.resource.id;
        let result = match timeout(COMMAND_LIMIT, self.plane.command(id, command)).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                let problem = self.resources.problem(id);
                return Err(Failure::new(
                    what,
                    format!("its replica on {} is not attached", self.my_name()),
                    problem.unwrap_or_else(|| "see the daemon's log".to_owned()),
                ));
            }
            Err(_) => {
                return Err(Failure::new(
                    what,
                    format!(
                        "it has not ended within {} s; it may still",
                        COMMAND_LIMIT.as_secs()
                    ),
                    "look at `lockstep status`",
                ));
            }
        };
        result.map_err(|error| self.explain(what, subject, &error))
    }

    fn explain(&self, what: &str, subject: &Subject, error: &CommandError) -> Failure {
        let name = |node: &NodeId| subject.document.node_name(*node);
        let resource = subject.name();
        let members = subject
            .record
            .as_ref()
            .map(Record::members)
            .unwrap_or_default();
        let members: Vec<String> = members.iter().map(|node| name(&node)).collect();
        let members = members.join(", ");
        match error {
            CommandError::Refused(Refusal::NotEligible { node }) if members.is_empty() => {
                Failure::new(
                    what,
                    "the cluster was recovered, and nobody knows which replica has the latest data",
                    format!(
                        "choose the one that is to count: `lockstep promote {resource} {} --accept-data-loss`",
                        name(node)
                    ),
                )
            }
            CommandError::Refused(Refusal::NotEligible { node }) => Failure::new(
                what,
                format!(
                    "the latest data are on {members}, not (with this disk) on {}",
                    name(node)
                ),
                format!(
                    "promote one of those; if they never return: `lockstep promote {resource} {} --accept-data-loss`",
                    name(node)
                ),
            ),
            CommandError::Refused(Refusal::Redundancy {
                left,
                min_redundancy,
            }) => Failure::new(
                what,
                format!(
                    "{left} replicas in sync would be left and min_redundancy is {min_redundancy}"
                ),
                format!("bring back the missing ones of {members}"),
            ),
            CommandError::Refused(Refusal::Stale { .. }) => Failure::new(
                what,
                "the resource's state changed at the same time",
                "look at `lockstep status` and try again",
            ),
            CommandError::NotConnected(node) | CommandError::Failed(node) => {
                let why = match error {
                    CommandError::NotConnected(_) => "is not connected",
                    _ => "could not do its part (out of space?)",
                };
                Failure::new(
                    what,
                    format!("{} {why}", name(node)),
                    format!("see the daemon's log on {}", name(node)),
                )
            }
            CommandError::NoReplica(node) => Failure::new(
                what,
                format!("{} holds no replica of it", name(node)),
                "see `lockstep resource list`",
            ),
            CommandError::LastCopy(node) => Failure::new(
                what,
                format!("{} holds the last good copy", name(node)),
                "bring another replica up to date first",
            ),
            CommandError::NoDisk => Failure::new(
                what,
                error,
                self.resources
                    .problem(subject.resource.id)
                    .unwrap_or_else(|| "see `lockstep status` and the daemon's log".to_owned()),
            ),
            CommandError::Undecided => Failure::new(
                what,
                error,
                "see whether the first node's daemon runs, then look at `lockstep status`",
            ),
            other => Failure::new(what, other, "look at `lockstep status` and try again"),
        }
    }
}

/// Why another node gave no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Peer(#[from] controller::runtime::PeerError),
    #[error("node {0} is starting or stopping")]
    NotReady(NodeId),
    #[error("its daemon is of another version: {0}")]
    Answer(#[from] serde_json::Error),
}

fn node_id(what: &str, document: &Document, name: &str) -> Result<NodeId, Failure> {
    document
        .node_named(name)
        .map(|node| node.id)
        .ok_or_else(|| {
            let names: Vec<&str> = document
                .nodes
                .iter()
                .map(|node| node.name.as_str())
                .collect();
            Failure::new(
                what,
                format!("there is no node {name}"),
                format!("name one of these: {}", names.join(", ")),
            )
        })
}

#[cfg(test)]
mod tests;
