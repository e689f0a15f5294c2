//! The one interface between the configuration store and the rest of a node. It can be used from any
//! thread and any runtime with timers.

use super::addresses::Addresses;
use super::voter::Known;
use super::wire::{Decision, FromServer, ToServer, Who};
use super::{FrameError, frame};
use crate::core::{Command, Document, Refused, Version};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use vocabulary::{Change, Generation, NodeId, ResourceId};

/// A command that was not decided after this long is given up; it may still happen.
const DECISION_LIMIT: Duration = Duration::from_secs(10);

/// A command on its way to the voter.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) command: Command,
    pub(super) answer: oneshot::Sender<Decision>,
}

/// An operator's command that another node forwarded to this one.
#[derive(Debug)]
pub struct Forwarded {
    /// Who forwarded it.
    pub from: NodeId,
    /// The command, in the API's words.
    pub body: Vec<u8>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Vec<u8>>,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The store said no.
    #[error("{0}")]
    Refused(Refused),
    /// No leader can be reached.
    #[error(
        "the configuration store has no leader within reach (a majority of its voters is missing); nothing was changed"
    )]
    Unreachable,
    /// No decision within the time limit, or the connection broke before it came.
    #[error("the configuration store has not decided in time; the change may still happen")]
    Undecided,
}

/// Why another node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The configuration does not name it.
    #[error("node {0} is not in this node's configuration")]
    Unknown(NodeId),
    /// Nobody answers there.
    #[error("node {node} at {address} does not answer: {source}")]
    Connection {
        /// The node.
        node: NodeId,
        /// Its address.
        address: String,
        /// Why.
        source: FrameError,
    },
    /// It took too long.
    #[error("node {node} has not answered within {}", seconds(.limit))]
    TimedOut {
        /// The node.
        node: NodeId,
        /// How long was waited.
        limit: Duration,
    },
    /// It does not talk to this node any more.
    #[error("this node was removed from the cluster")]
    Departed,
    /// Another node listens at the address.
    #[error("node {other} answers at the address of node {node}; correct their addresses")]
    WrongNode {
        /// Who was meant.
        node: NodeId,
        /// Who answers.
        other: NodeId,
    },
}

/// The configuration store as the rest of the node sees it.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    who: Who,
    stored: Option<Arc<Document>>,
    addresses: Addresses,
    jobs: mpsc::Sender<Job>,
    known: Known,
}

impl StoreHandle {
    pub(super) const fn new(
        who: Who,
        stored: Option<Arc<Document>>,
        addresses: Addresses,
        jobs: mpsc::Sender<Job>,
        known: Known,
    ) -> Self {
        Self {
            who,
            stored,
            addresses,
            jobs,
            known,
        }
    }

    /// Carries out a command; gives the version of a committed document that includes it.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn command(&self, command: Command) -> Result<Version, CommandError> {
        let (answer, decided) = oneshot::channel();
        let work = async {
            self.jobs
                .send(Job { command, answer })
                .await
                .map_err(|_| CommandError::Unreachable)?;
            decided.await.map_err(|_| CommandError::Undecided)
        };
        match timeout(DECISION_LIMIT, work).await {
            Err(_) => Err(CommandError::Undecided),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Decision::Committed { version })) => Ok(Version(version)),
            Ok(Ok(Decision::Refused(refused))) => Err(CommandError::Refused(refused)),
            Ok(Ok(Decision::NotLeader { .. })) => Err(CommandError::Unreachable),
            Ok(Ok(Decision::Undecided)) => Err(CommandError::Undecided),
        }
    }

    /// Waits until this node knows everything that was committed before the call, at most as long as
    /// `limit`. False: it may not; the voter is out of reach or slow.
    pub async fn catch_up(&self, limit: Duration) -> bool {
        let work = async {
            let version = self.command(Command::Nothing).await.ok()?;
            let mut documents = self.known.documents.subscribe();
            let reached = documents
                .wait_for(|document| document.as_ref().is_some_and(|d| d.version >= version))
                .await;
            reached.ok().map(drop)
        };
        matches!(timeout(limit, work).await, Ok(Some(())))
    }

    /// Proposes a change of a resource's record.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn propose(
        &self,
        resource: ResourceId,
        based_on: Generation,
        change: Change,
    ) -> Result<Version, CommandError> {
        self.command(Command::Propose {
            resource,
            based_on,
            change,
        })
        .await
    }

    /// Committed documents as they become known: always the newest, `None` before the first.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Document>>> {
        self.known.documents.subscribe()
    }

    /// The newest committed document that is known here.
    #[must_use]
    pub fn document(&self) -> Option<Arc<Document>> {
        self.known.documents.borrow().clone()
    }

    /// The node that leads the store, as far as is known here; `None`: a majority is missing, or an
    /// election is under way.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        *self.known.leader.borrow()
    }

    /// The same as it changes.
    #[must_use]
    pub fn leaders(&self) -> watch::Receiver<Option<NodeId>> {
        self.known.leader.subscribe()
    }

    /// Has another node said that this one was removed from the cluster?
    #[must_use]
    pub fn departed(&self) -> bool {
        self.known.departed.load(Ordering::Relaxed)
    }

    /// What this node's voter had stored when it started: to be shown, never to be acted on. `None`
    /// where it has none, or had been told nothing yet.
    #[must_use]
    pub fn stored(&self) -> Option<Arc<Document>> {
        self.stored.clone()
    }

    /// Hands an operator's command to another node and waits for its answer.
    ///
    /// # Errors
    /// See [`PeerError`]; after a time-out the other node may still carry it out.
    pub async fn forward(
        &self,
        node: NodeId,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let work = async {
            let mut result = Err(PeerError::Unknown(node));
            for address in self.addresses.of(node) {
                result = self.forward_to(node, &address, body.clone()).await;
                // Another address helps only where this one was not reached.
                if !matches!(
                    result,
                    Err(PeerError::Connection { .. } | PeerError::TimedOut { .. })
                ) {
                    break;
                }
            }
            result
        };
        timeout(limit, work)
            .await
            .unwrap_or(Err(PeerError::TimedOut { node, limit }))
    }

    async fn forward_to(
        &self,
        node: NodeId,
        address: &str,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, PeerError> {
        let broken = |source: FrameError| PeerError::Connection {
            node,
            address: address.to_owned(),
            source,
        };
        let stream = self.who.identity.connect(address, node).await;
        let mut stream = stream.map_err(|error| broken(error.into()))?;
        let cluster = self.who.cluster;
        let hello = ToServer::Hello {
            node: self.who.node,
            name: self.who.name.clone(),
            to: node,
            subscribe: false,
        };
        for message in [hello, ToServer::Forward { id: 0, body }] {
            frame::write(&mut stream, cluster, &message)
                .await
                .map_err(broken)?;
        }
        loop {
            match frame::read(&mut stream, cluster).await.map_err(broken)? {
                FromServer::Forwarded { body, .. } => return Ok(body),
                FromServer::NotMe { node: other } => {
                    return Err(PeerError::WrongNode { node, other });
                }
                FromServer::Departed => return Err(PeerError::Departed),
                FromServer::Welcome { .. }
                | FromServer::Decided { .. }
                | FromServer::Document(_)
                | FromServer::Leader(_)
                | FromServer::Pong => {}
            }
        }
    }
}

fn seconds(limit: &Duration) -> String {
    format!("{} s", limit.as_secs_f32())
}
