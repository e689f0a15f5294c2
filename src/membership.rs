//! How a machine comes into a cluster and finds it again: `init` makes a cluster with one node,
//! `join` a node of another machine. The cluster's nodes are kept in a file beside the keys, so that a
//! node that restarts finds the others before it has heard of anybody.

use crate::config::{Config, NodeFile};
use crate::lock::DirectoryLock;
use anyhow::{Context, bail};
use controller::core::consensus::{Voter, VoterId};
use controller::core::{Command, Document, Node, NodeState};
use controller::pki::authority::NodeKey;
use controller::pki::files::{self, Access};
use controller::pki::identity::refuse_existing;
use controller::pki::{Authority, Identity, Token};
use controller::runtime::{JoinError, JoinRefused, Newcomer, StoreHandle, join};
use controller::store::{Promise, PromiseStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use vocabulary::{ClusterId, NodeId};

/// Wait before the cluster is told again of this node's addresses.
const TELL_AGAIN: Duration = Duration::from_secs(2);

/// A node with what its file says.
pub(crate) fn entry(id: NodeId, file: &NodeFile) -> Node {
    Node {
        id,
        name: file.name.clone(),
        control: file.control.own.clone(),
        replication: file.replication.own.clone(),
        state: NodeState::Online,
        fencing: None,
    }
}

/// The cluster's nodes as this one last knew them.
pub(crate) fn load_nodes(file: &NodeFile) -> anyhow::Result<Vec<Node>> {
    let path = file.nodes_path();
    match files::read(&path)? {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged; copy it from another node of the cluster",
                path.display()
            )
        }),
    }
}

fn save_nodes(path: &Path, nodes: &[Node]) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(nodes)?;
    Ok(files::write(path, &text, Access::Public)?)
}

/// Makes a cluster of this node alone.
pub(crate) fn create_cluster(file: &NodeFile) -> anyhow::Result<ClusterId> {
    let _lock = DirectoryLock::take(&file.data_directory)?;
    let keys = file.keys();
    refuse_existing(&keys)?;
    files::make_directory(&keys)?;
    let cluster = ClusterId(rand::random::<u128>().max(1));
    let node = NodeId::new(0).context("no node has the id 0")?;
    let me = Voter {
        node,
        id: VoterId(rand::random()),
    };
    let document = Document::new(cluster)
        .apply(&Command::AddNode {
            node: entry(node, file),
        })
        .and_then(|document| document.apply(&Command::AddVoter { voter: me }))?;
    let authority = Authority::create(cluster)?;
    let parts = Identity::first(&authority, node)?;
    save_nodes(&file.nodes_path(), &document.nodes)?;
    PromiseStore::create(&file.promise_path(), &Promise::new(me.id, document))?;
    authority.save(&keys)?;
    parts.save(&keys)?;
    Ok(cluster)
}

/// Joins the cluster of a token; gives its id and this node's.
pub(crate) async fn join_cluster(
    file: &NodeFile,
    token: &Token,
) -> anyhow::Result<(ClusterId, NodeId)> {
    let _lock = DirectoryLock::take(&file.data_directory)?;
    let keys = file.keys();
    refuse_existing(&keys)?;
    let promise = file.promise_path();
    if promise.exists() {
        bail!(
            "{} is there, but no certificate: this machine was in a cluster before\n  to do: put back the directory {}, or choose an empty data_directory",
            promise.display(),
            keys.display()
        );
    }
    files::make_directory(&keys)?;
    // Kept for another attempt with the same token: the issuer knows the machine by it.
    let path = keys.join(files::NODE_KEY);
    let key = match files::read(&path)? {
        Some(text) => NodeKey::from_pem(&text)
            .with_context(|| format!("{} is no key; remove it", path.display()))?,
        None => {
            let key = NodeKey::generate()?;
            files::write(&path, key.to_pem().as_bytes(), Access::Private)?;
            key
        }
    };
    let newcomer = Newcomer {
        name: file.name.clone(),
        control: file.control.own.clone(),
        replication: file.replication.own.clone(),
    };
    let joined = join(token, newcomer, key).await.map_err(explain)?;
    save_nodes(&file.nodes_path(), &joined.document.nodes)?;
    joined.parts.save(&keys)?;
    let identity = Identity::load(&keys)?;
    Ok((identity.cluster(), identity.node()))
}

fn explain(error: JoinError) -> anyhow::Error {
    let remedy = match &error {
        JoinError::Connect { .. } => {
            "start the daemon of the node that made the token, or mend the network to it; a token of another cluster is refused here too"
        }
        JoinError::Refused(JoinRefused::Token(_)) => {
            "make a new token: `lockstep token` on the node on which the cluster was created"
        }
        JoinError::Refused(JoinRefused::Document(_)) => {
            "correct the configuration file and join again; the token is still good"
        }
        JoinError::Refused(JoinRefused::NoAuthority | JoinRefused::Issuer) => {
            "see the daemon's log there; ca.key can be put back from a backup"
        }
        JoinError::Refused(JoinRefused::NoId) => "make a new cluster",
        JoinError::Refused(JoinRefused::Store(_)) | JoinError::TimedOut => {
            "start more of the cluster's nodes and join again with the same token"
        }
        JoinError::Frame(_) | JoinError::Pki(_) => {
            "use the same version of lockstep on all nodes, and join again with the same token"
        }
    };
    anyhow::anyhow!("can't join: {error}\n  to do: {remedy}")
}

/// Keeps the file of the cluster's nodes as the document says.
pub(crate) async fn keep_nodes(config: Arc<Config>, store: StoreHandle) {
    let mut documents = store.subscribe();
    documents.mark_changed();
    let mut saved = config.known_nodes.clone();
    while documents.changed().await.is_ok() {
        let document = documents.borrow_and_update().clone();
        let Some(nodes) = document.map(|document| document.nodes.clone()) else {
            continue;
        };
        if nodes == saved {
            continue;
        }
        let (path, next) = (config.file.nodes_path(), nodes.clone());
        match tokio::task::spawn_blocking(move || save_nodes(&path, &next)).await {
            Ok(Ok(())) => saved = nodes,
            Ok(Err(error)) => tracing::error!(%error, "the list of nodes can't be written"),
            Err(_) => return,
        }
    }
}

/// Tells the cluster where this node is, where it knows otherwise.
pub(crate) async fn announce(config: Arc<Config>, store: StoreHandle) {
    let mut documents = store.subscribe();
    documents.mark_changed();
    let wanted = config.entry();
    while documents.changed().await.is_ok() {
        let document = documents.borrow_and_update().clone();
        let known = document.and_then(|document| document.node(config.node).cloned());
        let Some(known) = known else { continue };
        if (&known.control, &known.replication) == (&wanted.control, &wanted.replication) {
            return;
        }
        let node = Node {
            state: known.state,
            fencing: known.fencing,
            ..wanted.clone()
        };
        if let Err(error) = store.command(Command::SetNode { node }).await {
            tracing::warn!(%error, "the cluster can't be told of this node's new addresses yet");
            sleep(TELL_AGAIN).await;
            documents.mark_changed();
        }
    }
}
