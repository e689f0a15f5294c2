//! How a machine comes into a cluster and finds it again: `init` makes a cluster with one node,
//! `join` a node of another machine, and again one of a node that a recovery has left behind. The cluster's nodes are kept in a file beside the keys, so that a
//! node that restarts finds the others before it has heard of anybody.

use crate::config::{Config, NodeFile};
use crate::lock::DirectoryLock;
use crate::successor::{self, Successor, save_nodes};
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

/// The key of a node that joins again, until it is one.
const REJOIN_KEY: &str = "rejoin.key";
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

/// Makes a cluster of this node alone.
pub(crate) fn create_cluster(file: &NodeFile) -> anyhow::Result<ClusterId> {
    let _lock = DirectoryLock::take(&file.data_directory)?;
    successor::finish(&file.data_directory)?;
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
    successor::finish(&file.data_directory)?;
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
    let key = kept_key(&keys.join(files::NODE_KEY))?;
    let joined = join(token, newcomer(file, false), key).await;
    let joined = joined.map_err(explain)?;
    save_nodes(&file.nodes_path(), &joined.document.nodes)?;
    joined.parts.save(&keys)?;
    let identity = Identity::load(&keys)?;
    Ok((identity.cluster(), identity.node()))
}

/// Joins the recovered cluster of a token in the place of a node that was lost; gives the cluster's id and
/// this node's. What the machine was before is moved aside, once it is let in.
pub(crate) async fn rejoin_cluster(
    file: &NodeFile,
    token: &Token,
) -> anyhow::Result<(ClusterId, NodeId)> {
    let directory = &file.data_directory;
    let _lock = DirectoryLock::take(directory)?;
    successor::finish(directory)?;
    let before = Identity::load(&file.keys()).map(|identity| identity.cluster());
    if matches!(before, Ok(cluster) if cluster == token.cluster) {
        bail!("this machine is a node of the token's cluster already\n  to do: start its daemon");
    }
    let path = directory.join(REJOIN_KEY);
    let key = kept_key(&path)?;
    let joined = join(token, newcomer(file, true), key).await;
    let joined = joined.map_err(explain)?;
    let promise = Promise::new(VoterId(rand::random()), Document::new(token.cluster));
    let nodes = &joined.document.nodes;
    let suffix = before.map_or_else(|_| "old".to_owned(), |cluster| cluster.to_string());
    let successor = Successor::prepare(directory)?;
    successor.fill(nodes, &promise, &joined.parts, &suffix)?;
    successor.commit()?;
    // Of no use any more.
    let _ = std::fs::remove_file(&path);
    let identity = Identity::load(&file.keys())?;
    Ok((identity.cluster(), identity.node()))
}

/// A key for a machine that joins, kept for another attempt with the same token: the issuer knows the
/// machine by it.
fn kept_key(path: &Path) -> anyhow::Result<NodeKey> {
    match files::read(path)? {
        Some(text) => NodeKey::from_pem(&text)
            .with_context(|| format!("{} is no key; remove it", path.display())),
        None => {
            let key = NodeKey::generate()?;
            files::write(path, key.to_pem().as_bytes(), Access::Private)?;
            Ok(key)
        }
    }
}

fn newcomer(file: &NodeFile, rejoin: bool) -> Newcomer {
    Newcomer {
        name: file.name.clone(),
        control: file.control.own.clone(),
        replication: file.replication.own.clone(),
        rejoin,
    }
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
        JoinError::Refused(JoinRefused::Lost { .. }) => {
            "where this machine takes its place: add --rejoin; else choose another name"
        }
        JoinError::Refused(JoinRefused::NotLost { .. }) => {
            "leave out --rejoin, or correct the name; the token is still good"
        }
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
