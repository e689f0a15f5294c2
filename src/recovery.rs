//! `lockstep recover`: a majority of the voters is lost for good, and a survivor becomes a cluster of its
//! own (RULES section 4), with a new id and a new authority. The daemons of the old cluster can neither talk
//! to it nor write to a store of it.

use crate::config::NodeFile;
use crate::lock::DirectoryLock;
use crate::successor::{self, Successor};
use anyhow::{Context, bail};
use controller::core::consensus::{Voter, VoterId};
use controller::core::{Document, Node, RecoveryError};
use controller::pki::{Authority, Identity};
use controller::store::{Promise, PromiseStore, StoreError};
use serde::Serialize;
use std::io;
use vocabulary::{ClusterId, NodeId};

/// What a recovery has made.
#[derive(Debug, Serialize)]
pub(crate) struct Recovery {
    /// The new cluster.
    pub(crate) cluster: String,
    /// The one that it was.
    pub(crate) former: String,
    /// The node.
    pub(crate) node: u8,
    /// Names of the nodes that have to join again.
    pub(crate) lost: Vec<String>,
    /// What is known of the resources' data; empty where an interrupted recovery was finished.
    pub(crate) resources: Vec<LastKnown>,
}

/// Where the latest data of a resource were, as far as the survivor knew.
#[derive(Debug, Serialize)]
pub(crate) struct LastKnown {
    pub(crate) resource: String,
    /// Nodes in the in-sync set.
    pub(crate) in_sync: Vec<String>,
    /// Generation of the record that says so.
    pub(crate) generation: u64,
    /// The survivor holds a replica.
    pub(crate) here: bool,
}

impl LastKnown {
    /// For people.
    pub(crate) fn text(&self, node: &str) -> String {
        let held = if self.in_sync.is_empty() {
            "no replica is known to hold the latest data".to_owned()
        } else {
            format!(
                "the latest data were on {} (generation {})",
                self.in_sync.join(", "),
                self.generation
            )
        };
        let here = if !self.here {
            format!("; {node} holds no replica")
        } else if self.in_sync.iter().any(|other| other == node) {
            String::new()
        } else {
            format!("; the replica on {node} is older")
        };
        format!("{}: {held}{here}", self.resource)
    }
}

/// Makes a cluster of this node alone.
pub(crate) fn recover(file: &NodeFile, accept_data_loss: bool) -> anyhow::Result<Recovery> {
    recover_with(file, accept_data_loss, &mut || Ok(()))
}

fn recover_with(
    file: &NodeFile,
    accept_data_loss: bool,
    step: &mut dyn FnMut() -> io::Result<()>,
) -> anyhow::Result<Recovery> {
    let _lock = DirectoryLock::take(&file.data_directory)?;
    let finished = successor::finish(&file.data_directory)?;
    let (promise, node) = survivor(file)?;
    let old = &promise.entry.content;
    if finished && old.voters.iter().all(|voter| voter.node == node) {
        return Ok(Recovery::of(old, node, Vec::new()));
    }
    let cluster = ClusterId(rand::random::<u128>().max(1));
    let me = Voter {
        node,
        id: VoterId(rand::random()),
    };
    let new = old.recovered(cluster, me).map_err(|error| {
        let remedy = match error {
            RecoveryError::OnlyVoter => "\n  to do: start its daemon",
            RecoveryError::NoNode { .. } | RecoveryError::Exhausted => "",
        };
        anyhow::anyhow!("can't recover: {error}{remedy}")
    })?;
    let known = last_known(old, node);
    let recovery = Recovery::of(&new, node, known);
    if !accept_data_loss {
        bail!("{}", recovery.warning(file));
    }
    let successor = Successor::prepare(&file.data_directory)?;
    step()?;
    let authority = Authority::create(cluster)?;
    authority.save(&successor.keys())?;
    step()?;
    let parts = Identity::first(&authority, node)?;
    let promise = Promise::new(me.id, new);
    let nodes = &promise.entry.content.nodes;
    successor.fill(nodes, &promise, &parts, &recovery.former)?;
    successor.commit_with(step)?;
    Ok(recovery)
}

/// What this node's voter has stored, and which node it is.
fn survivor(file: &NodeFile) -> anyhow::Result<(Promise, NodeId)> {
    let path = file.promise_path();
    let promise = match PromiseStore::read(&path) {
        Err(StoreError::Missing { path }) => bail!(
            "can't recover: {} does not exist: this machine was not in a cluster, or its data directory is another one",
            path.display()
        ),
        other => other.context("can't recover")?,
    };
    let document = &promise.entry.content;
    if document.nodes.is_empty() {
        bail!(
            "can't recover: {} holds no configuration: this node was never told one\n  to do: recover on a node that was in the cluster for longer",
            path.display()
        );
    }
    let names = document.nodes.iter().map(|node| node.name.as_str());
    let names: Vec<&str> = names.collect();
    let node = document
        .node_named(file.name.as_str())
        .map(|node| node.id)
        .with_context(|| {
            format!(
                "can't recover: no node {} is in the cluster, whose nodes are {}\n  to do: correct `node` in the configuration file",
                file.name,
                names.join(", ")
            )
        })?;
    let voter = document.voters.iter().find(|v| v.id == promise.voter);
    if let Some(voter) = voter.filter(|voter| voter.node != node) {
        bail!(
            "can't recover: {} is the configuration of {}, not of {}\n  to do: correct `node` or `data_directory` in the configuration file",
            path.display(),
            document.node_name(voter.node),
            file.name
        );
    }
    Ok((promise, node))
}

fn last_known(document: &Document, node: NodeId) -> Vec<LastKnown> {
    let names =
        |members: vocabulary::NodeSet| members.iter().map(|n| document.node_name(n)).collect();
    let resources = document.resources.iter();
    resources
        .map(|resource| LastKnown {
            resource: resource.name.to_string(),
            in_sync: resource
                .record
                .as_ref()
                .map_or_else(Vec::new, |record| names(record.members())),
            generation: resource.record.as_ref().map_or(0, |r| r.generation.0),
            here: resource.replica(node).is_some(),
        })
        .collect()
}

impl Recovery {
    fn of(document: &Document, node: NodeId, resources: Vec<LastKnown>) -> Self {
        let lost = document.nodes.iter();
        let lost = lost.filter(|node| document.lost.contains(node.id));
        let lost = lost.map(|Node { name, .. }| name.to_string());
        let former = document.former.last().copied().unwrap_or_default();
        Self {
            cluster: document.cluster.to_string(),
            former: former.to_string(),
            node: node.get(),
            lost: lost.collect(),
            resources,
        }
    }

    /// What an operator has to know beforehand.
    fn warning(&self, file: &NodeFile) -> String {
        let name = &file.name;
        let lost = self.lost.join(", ");
        let mut text = format!(
            "{name} is not made a cluster of its own without --accept-data-loss\n  what may be lost: every write that is not on the replica that you will promote, and all that was decided without {name}. What {name} knows, which may be old:"
        );
        for known in &self.resources {
            text.push_str("\n    ");
            text.push_str(&known.text(name.as_str()));
        }
        text.push_str(&format!(
            "\n  before: make sure that a majority never comes back. {lost}: where one of them lives it must not go on serving in the old cluster, and where one has newer data recover there instead\n  to do: the same command with --accept-data-loss"
        ));
        text
    }
}

#[cfg(test)]
mod tests;
