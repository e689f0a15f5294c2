//! Who is primary, by an operator's word. An operator says what is wanted, durably, in the document;
//! the nodes' fail-over makes it so, and the command waits for that. Only `force` goes to the engine
//! directly: nothing else may take a replica's data for the truth.

use super::{LOOK_EVERY, Node, Subject, WAY_OUT, node_id};
use crate::operation::{Done, Failure, FencingSpec, NodeWord, Operation};
use crate::view::{LocalResource, LocalView};
use controller::core::consensus::NotAlone;
use controller::core::{Command as StoreCommand, Fencing, NodeState};
use controller::runtime::FenceError;
use replicator::core::api::Command;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use vocabulary::{NodeId, Record};

/// A promotion, a demotion or a move gets this long: a drain, an election and a lease fit in it.
const ROLE_LIMIT: Duration = Duration::from_secs(20);

impl Node {
    /// Makes a node primary of a resource that nobody serves.
    pub(super) async fn promote(
        &self,
        resource: &str,
        node: Option<&str>,
    ) -> Result<Done, Failure> {
        let what = format!("can't promote {resource}");
        let subject = self.subject(&what, resource)?;
        let target = self.target(&what, &subject, node)?;
        let record = subject.record(&what)?;
        let name = |node: NodeId| subject.document.node_name(node);
        if let Some(primary) = record.primary
            && let Some(view) = self.resource_view(primary, resource).await
            && view.primary
        {
            if primary == target {
                let text = format!("{} is primary of {resource} already", name(target));
                return Ok(Done::new(text));
            }
            return Err(Failure::new(
                what,
                format!("{} is its primary and serves it", name(primary)),
                format!("lockstep move {resource} {}", name(target)),
            ));
        }
        self.bring_up(&what, &subject, target).await
    }

    /// Moves a resource to another node, with a drain in between.
    pub(super) async fn move_resource(
        &self,
        resource: &str,
        node: Option<&str>,
    ) -> Result<Done, Failure> {
        let what = format!("can't move {resource}");
        let subject = self.subject(&what, resource)?;
        let record = subject.record(&what)?;
        let target = match node {
            Some(_) => self.target(&what, &subject, node)?,
            None => self.other_member(&what, &subject, record).await?,
        };
        if record.primary == Some(target) {
            let name = subject.document.node_name(target);
            return Ok(Done::new(format!(
                "{name} is primary of {resource} already"
            )));
        }
        self.bring_up(&what, &subject, target).await
    }

    /// The node that is named, or this one; it holds a replica.
    fn target(&self, what: &str, subject: &Subject, node: Option<&str>) -> Result<NodeId, Failure> {
        let target = match node {
            Some(node) => node_id(what, &subject.document, node)?,
            None => self.config.node,
        };
        if subject.resource.replica(target).is_some() {
            return Ok(target);
        }
        let replicas = subject.resource.replicas.iter();
        let holders: Vec<String> = replicas
            .map(|replica| subject.document.node_name(replica.node))
            .collect();
        let name = subject.document.node_name(target);
        Err(Failure::new(
            what,
            format!("{name} holds no replica of it"),
            format!("name one of these: {}", holders.join(", ")),
        ))
    }

    async fn other_member(
        &self,
        what: &str,
        subject: &Subject,
        record: &Record,
    ) -> Result<NodeId, Failure> {
        let others = record.members().iter();
        for node in others.filter(|node| record.primary != Some(*node)) {
            let view = self.resource_view(node, subject.name()).await;
            if view.is_some_and(|view| view.has_disk()) {
                return Ok(node);
            }
        }
        Err(Failure::new(
            what,
            "no other replica is in sync and answers",
            "see `lockstep status`; wait until a replica is UpToDate",
        ))
    }

    /// Refuses what could not become primary.
    pub(super) async fn check_fit(
        &self,
        what: &str,
        subject: &Subject,
        target: NodeId,
    ) -> Result<(), Failure> {
        let document = &subject.document;
        let record = subject.record(what)?;
        let target_name = document.node_name(target);
        let declared = subject.resource.declared();
        let member = declared.iter().find(|member| member.node == target);
        if member.is_none_or(|member| record.eligible(member, &declared).is_none()) {
            let error = vocabulary::Refusal::NotEligible { node: target };
            return Err(self.explain(what, subject, &error.into()));
        }
        let state = document.node(target).map(|node| node.state);
        if let Some(state @ (NodeState::Standby | NodeState::Maintenance)) = state {
            let word = NodeWord::from(state);
            return Err(Failure::new(
                what,
                format!("{target_name} is on {word}"),
                format!("lockstep node online {target_name}"),
            ));
        }
        let Some(view) = self.resource_view(target, subject.name()).await else {
            return Err(Failure::new(
                what,
                format!("{target_name} does not answer"),
                "start the daemon there, or mend the network between the two",
            ));
        };
        if let Some(problem) = view.problem {
            return Err(Failure::new(
                what,
                format!("its replica on {target_name} is not attached: {problem}"),
                "put the store back, or promote another node",
            ));
        }
        Ok(())
    }

    /// Says that this node is to be the primary, and waits until it serves.
    pub(super) async fn bring_up(
        &self,
        what: &str,
        subject: &Subject,
        target: NodeId,
    ) -> Result<Done, Failure> {
        self.check_fit(what, subject, target).await?;
        let target_name = subject.document.node_name(target);
        self.change(
            what,
            StoreCommand::Up {
                resource: subject.resource.id,
                next: Some(target),
            },
        )
        .await?;
        let deadline = Instant::now() + ROLE_LIMIT;
        loop {
            let view = self.resource_view(target, subject.name()).await;
            if view.as_ref().is_some_and(|view| view.role == "Primary") {
                return Ok(Done::new(format!(
                    "{target_name} is primary of {}",
                    subject.name()
                )));
            }
            if Instant::now() >= deadline {
                let reason = view.and_then(|view| view.reason);
                return Err(Failure::new(
                    what,
                    format!(
                        "{target_name} does not serve it after {} s{}",
                        ROLE_LIMIT.as_secs(),
                        reason
                            .map(|reason| format!(": {reason}"))
                            .unwrap_or_default()
                    ),
                    "it goes on trying; `lockstep status` says what it waits for",
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Leaves a resource without a primary until an operator wants one again.
    pub(super) async fn demote(&self, resource: &str, node: Option<&str>) -> Result<Done, Failure> {
        let what = format!("can't demote {resource}");
        let subject = self.subject(&what, resource)?;
        let primary = subject.record(&what)?.primary;
        let name = primary.map(|node| subject.document.node_name(node));
        if let (Some(node), Some(name)) = (node, &name)
            && node != name
        {
            return Err(Failure::new(
                what,
                format!("its primary is {name}"),
                format!("lockstep demote {resource} {name}"),
            ));
        }
        let id = subject.resource.id;
        self.change(&what, StoreCommand::Down { resource: id })
            .await?;
        let Some(name) = name else {
            return Ok(Done::new(format!("{resource} has no primary already")));
        };
        let mut documents = self.store.subscribe();
        let demoted = documents.wait_for(|document| {
            let resource = document.as_ref().and_then(|document| document.resource(id));
            let record = resource.and_then(|resource| resource.record.as_ref());
            record.is_none_or(|record| record.primary.is_none())
        });
        match tokio::time::timeout(ROLE_LIMIT, demoted).await {
            Ok(_) => Ok(Done::new(format!("{name} serves {resource} no more"))),
            Err(_) => Err(Failure::new(
                what,
                format!("{name} has not let go within {} s", ROLE_LIMIT.as_secs()),
                "it will when it has drained or is back; nobody else becomes primary meanwhile",
            )),
        }
    }

    /// Last resort: this node's data are the truth.
    pub(super) async fn force(
        &self,
        what: &str,
        subject: &Subject,
        confirmed_dead: Option<&str>,
    ) -> Result<Done, Failure> {
        let record = subject.record(what)?;
        self.target(what, subject, None)?;
        let name = |node: NodeId| subject.document.node_name(node);
        let old = record.primary.filter(|&node| node != self.config.node);
        if let Some(old) = old {
            match self.resource_view(old, subject.name()).await {
                Some(view) if view.primary => {
                    return Err(Failure::new(
                        what,
                        format!("{} is its primary and serves it", name(old)),
                        format!("first: lockstep demote {} {}", subject.name(), name(old)),
                    ));
                }
                Some(_) => {}
                // It could still serve where nobody can ask it.
                None if confirmed_dead != Some(name(old).as_str()) => {
                    return Err(Failure::new(
                        what,
                        format!(
                            "{} was its primary, does not answer, and may still be serving",
                            name(old)
                        ),
                        format!(
                            "switch it off, make sure, and add --confirm-dead {}",
                            name(old)
                        ),
                    ));
                }
                None => {
                    // Where it was one of two voters, this node goes on alone if it may.
                    let confirmed = self.failover.confirm_dead(old).await;
                    confirmed.map_err(|error| Failure::new(what, error, ""))?;
                }
            }
        }
        self.command(what, subject, Command::Force).await?;
        let serves = self.wait_serving(subject.resource.id).await;
        Ok(Done::new(format!(
            "{} is primary of {}{}",
            self.my_name(),
            subject.name(),
            if serves {
                ""
            } else {
                "; it will serve when the leases of the last one have run out"
            }
        )))
    }

    /// Standby, maintenance or neither.
    pub(super) async fn set_node_state(&self, node: &str, word: NodeWord) -> Result<Done, Failure> {
        let what = format!("can't put {node} on {word}");
        let document = self.document(&what)?;
        let id = node_id(&what, &document, node)?;
        let state = word.into();
        self.change(&what, StoreCommand::SetNodeState { node: id, state })
            .await?;
        Ok(Done::new(match word {
            NodeWord::Standby => format!(
                "{node} is on standby: what it serves moves to other nodes, its replicas stay in sync"
            ),
            NodeWord::Online => format!("{node} is online"),
            NodeWord::Maintenance => {
                format!("{node} is in maintenance: nothing is started or moved on its account")
            }
        }))
    }

    /// How a node is switched off from now on.
    pub(super) async fn set_fencing(
        &self,
        node: &str,
        fencing: Option<FencingSpec>,
    ) -> Result<Done, Failure> {
        let what = format!("can't set the fence agent of {node}");
        let document = self.document(&what)?;
        let id = node_id(&what, &document, node)?;
        let text = match &fencing {
            Some(spec) => format!("{node} is switched off by {}", spec.agent),
            None => format!("{node} has no fence agent"),
        };
        let fencing = fencing.map(|spec| Fencing {
            agent: spec.agent,
            parameters: spec.parameters,
            timeout_s: spec.timeout_s,
        });
        self.change(&what, StoreCommand::SetFencing { node: id, fencing })
            .await?;
        Ok(Done::new(text))
    }

    /// Has a node switched off, or takes the operator's word that it is.
    pub(super) async fn fence(&self, node: &str, confirmed: bool) -> Result<Done, Failure> {
        let what = if confirmed {
            format!("can't go on without {node}")
        } else {
            format!("can't switch {node} off")
        };
        let document = self.document(&what)?;
        let id = node_id(&what, &document, node)?;
        if id == self.config.node {
            let remedy = "give the command on another node";
            return Err(Failure::new(what, "it is this node itself", remedy));
        }
        let alive = self.ask(id, &Operation::LocalView, super::VIEW_LIMIT).await;
        if confirmed && alive.is_ok() {
            return Err(Failure::new(
                what,
                "it answers",
                format!("lockstep node standby {node}"),
            ));
        }
        let result = if confirmed {
            self.failover.confirm_dead(id).await
        } else {
            self.failover.fence(id).await
        };
        if let Err(error) = result {
            let remedy = match error {
                FenceError::NoAgent => format!("lockstep node fencing {node} --agent PATH"),
                FenceError::NotAlone(NotAlone::NotCurrent) => {
                    format!("start {node}; where it is lost for good: {WAY_OUT}")
                }
                FenceError::NotAlone(NotAlone::OtherVoters) => {
                    "start the other node; `lockstep status` says what this one waits for"
                        .to_owned()
                }
                _ => "see the daemon's log".to_owned(),
            };
            return Err(Failure::new(what, error, remedy));
        }
        let verb = if confirmed { "counts as" } else { "is" };
        Ok(Done::new(format!("{node} {verb} switched off")))
    }

    pub(super) async fn change(&self, what: &str, command: StoreCommand) -> Result<(), Failure> {
        match self.store.command(command).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(
                what,
                error,
                "look at `lockstep status` and try again",
            )),
        }
    }

    /// What a node knows of a resource; `None`: it does not answer.
    pub(super) async fn resource_view(
        &self,
        node: NodeId,
        resource: &str,
    ) -> Option<LocalResource> {
        let mut view: LocalView = if node == self.config.node {
            self.resources.view().await
        } else {
            match self
                .ask(node, &Operation::LocalView, super::VIEW_LIMIT)
                .await
            {
                Ok(crate::operation::Answer::Done(done)) => {
                    serde_json::from_value(done.data?).ok()?
                }
                _ => return None,
            }
        };
        view.resources.remove(resource)
    }
}
