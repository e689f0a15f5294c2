//! How a machine becomes a node: it shows a token to the node that made it, and gets its id, its
//! certificate and the cluster's document. Both sides.
//!
//! A token is marked as used, for one key, before the node stands in the document; so a machine whose
//! answer was lost asks again with the same token and key and gets the same id.

use super::handle::{CommandError, StoreHandle};
use super::tls::connect_by_token;
use super::{FrameError, frame};
use crate::core::{Command, Document, Name, Node, NodeState, Refused};
use crate::pki::authority::{NodeKey, PublicKey};
use crate::pki::identity::Parts;
use crate::pki::issuer::Used;
use crate::pki::token::Secret;
use crate::pki::{Issuer, PkiError, TlsError, Token, TokenRefused};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;
use tokio::time::timeout;
use vocabulary::NodeId;

/// The answer to a machine that joins is there by then: longer than the store takes to give up.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Who wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    /// Its name.
    pub name: Name,
    /// Where the others will reach its controller, `host:port`.
    pub control: Vec<String>,
    /// Where they will reach its replicas.
    pub replication: Vec<String>,
    /// It takes the place of a node that was lost before the cluster was recovered.
    pub rejoin: bool,
}

/// What a machine says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    secret: Secret,
    key: PublicKey,
    newcomer: Newcomer,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Joined {
        certificate: Vec<u8>,
        beacons: [u8; 32],
        document: Document,
    },
    Refused(JoinRefused),
}

/// Why a machine is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefused {
    /// The token is not good.
    #[error("{0}")]
    Token(#[from] TokenRefused),
    /// The node can't sign.
    #[error("the node that made the token does not have the authority's key (ca.key) any more")]
    NoAuthority,
    /// The document does not take the node.
    #[error("{0}")]
    Document(Refused),
    /// Every id was given.
    #[error("the cluster has had {} nodes, which is the most", NodeId::LIMIT)]
    NoId,
    /// The store does not decide.
    #[error("{0}")]
    Store(StoreTrouble),
    /// The issuer's disk.
    #[error("the node that made the token can't write its files; see the log of its daemon")]
    Issuer,
    /// A lost node's name, and the machine does not say that it is the one.
    #[error("{name} is a node of the cluster that was lost before it was recovered")]
    Lost {
        /// The name.
        name: Name,
    },
    /// The machine says that it was lost, and the cluster does not know of it.
    #[error("the cluster has lost no node {name}")]
    NotLost {
        /// The name.
        name: Name,
    },
}

/// Why the configuration store does not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StoreTrouble {
    /// Nobody to ask.
    #[error("the configuration store is out of reach (a majority of its voters is missing)")]
    Unreachable,
    /// No answer.
    #[error("the configuration store has not decided in time")]
    Undecided,
}

/// Why a machine has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody there, or not the cluster of the token.
    #[error("can't reach {address}: {source}")]
    Connect {
        /// The address, from the token.
        address: String,
        /// Why.
        source: TlsError,
    },
    /// The connection broke.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// No answer.
    #[error("no answer within {} s; it may have joined all the same", ANSWER_LIMIT.as_secs())]
    TimedOut,
    /// It was refused.
    #[error("{0}")]
    Refused(#[from] JoinRefused),
    /// What came makes no sense.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// What a machine has got.
#[derive(Debug)]
pub struct Joined {
    /// Its certificate and what belongs to it.
    pub parts: Parts,
    /// The cluster's document, with the new node.
    pub document: Document,
}

/// Joins the cluster of a token. The key must be on disk already, so that another attempt with the
/// same token uses the same one.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(token: &Token, newcomer: Newcomer, key: NodeKey) -> Result<Joined, JoinError> {
    let mut found = Err(JoinError::TimedOut);
    for address in &token.addresses {
        found = connect_by_token(token, address)
            .await
            .map_err(|source| JoinError::Connect {
                address: address.clone(),
                source,
            });
        if found.is_ok() {
            break;
        }
    }
    let (mut stream, authority) = found?;
    let request = Request {
        secret: token.secret,
        key: key.public(),
        newcomer,
    };
    let work = async {
        frame::write(&mut stream, token.cluster, &request).await?;
        frame::read::<Answer>(&mut stream, token.cluster).await
    };
    let answer = timeout(ANSWER_LIMIT, work)
        .await
        .map_err(|_| JoinError::TimedOut)??;
    match answer {
        Answer::Refused(refused) => Err(refused.into()),
        Answer::Joined {
            certificate,
            beacons,
            document,
        } => Ok(Joined {
            parts: Parts {
                authority,
                certificate: CertificateDer::from(certificate),
                key,
                beacons,
            },
            document,
        }),
    }
}

/// Where machines are taken in: on the node with the authority's key.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    issuer: Arc<Issuer>,
    store: StoreHandle,
    /// One at a time, so that no two get the same id.
    turn: Arc<Mutex<()>>,
}

impl Desk {
    pub(super) fn new(issuer: Arc<Issuer>, store: StoreHandle) -> Self {
        Self {
            issuer,
            store,
            turn: Arc::default(),
        }
    }

    pub(super) async fn admit(desk: Option<&Self>, request: Request) -> Answer {
        let name = request.newcomer.name.clone();
        let result = match desk {
            Some(desk) => desk.take_in(request).await,
            None => Err(JoinRefused::NoAuthority),
        };
        match result {
            Ok(joined) => {
                tracing::info!(node = %name, "a machine has joined the cluster");
                joined
            }
            Err(refused) => {
                tracing::warn!(node = %name, %refused, "a machine was not taken into the cluster");
                Answer::Refused(refused)
            }
        }
    }

    async fn take_in(&self, request: Request) -> Result<Answer, JoinRefused> {
        let _turn = self.turn.lock().await;
        let Request {
            secret,
            key,
            newcomer,
        } = request;
        let known = self.issuer.check(SystemTime::now(), secret, key)?;
        // An id that was given here a moment ago stands in the document.
        let version = self.store.command(Command::Nothing).await;
        let version = version.map_err(store_trouble)?;
        let document = self.document(|d| d.version >= version).await?;
        let id = match known {
            Some(id) => id,
            None => place(&document, &newcomer)?,
        };
        let used = Used { key, node: id };
        self.mark(secret, Some(used)).await?;
        // What operators have said of it stays.
        let before = document.node(id);
        let node = Node {
            id,
            name: newcomer.name,
            control: newcomer.control,
            replication: newcomer.replication,
            state: before.map_or(NodeState::Online, |node| node.state),
            fencing: before.and_then(|node| node.fencing.clone()),
        };
        match self.store.command(Command::AddNode { node }).await {
            Ok(version) => {
                let document = self.document(|d| d.version >= version).await?;
                let certificate = self.issuer.certificate(used).map_err(issuer_trouble)?;
                Ok(Answer::Joined {
                    certificate: certificate.to_vec(),
                    beacons: self.issuer.beacons(),
                    document: Document::clone(&document),
                })
            }
            Err(CommandError::Refused(refused)) => {
                // Nothing has changed, and the reason can be mended: the token is still good.
                self.mark(secret, None).await?;
                Err(JoinRefused::Document(refused))
            }
            Err(other) => Err(store_trouble(other)),
        }
    }

    async fn document(
        &self,
        good: impl Fn(&Document) -> bool,
    ) -> Result<Arc<Document>, JoinRefused> {
        let mut documents = self.store.subscribe();
        let found = documents.wait_for(|known| known.as_ref().is_some_and(|d| good(d)));
        let found = timeout(ANSWER_LIMIT, found).await;
        let found = found.ok().and_then(|found| found.ok()?.clone());
        found.ok_or(JoinRefused::Store(StoreTrouble::Undecided))
    }

    /// The disk must not keep the controller's thread.
    async fn mark(&self, secret: Secret, used: Option<Used>) -> Result<(), JoinRefused> {
        let issuer = Arc::clone(&self.issuer);
        let marked = tokio::task::spawn_blocking(move || issuer.mark(secret, used)).await;
        match marked {
            Ok(marked) => marked.map_err(issuer_trouble),
            Err(_) => Err(JoinRefused::Issuer),
        }
    }
}

/// The id for a machine: that of the lost node whose place it takes, else one that nobody had.
fn place(document: &Document, newcomer: &Newcomer) -> Result<NodeId, JoinRefused> {
    let name = newcomer.name.clone();
    match (document.lost_node(name.as_str()), newcomer.rejoin) {
        (Some(id), true) => Ok(id),
        (Some(_), false) => Err(JoinRefused::Lost { name }),
        (None, true) => Err(match document.node_named(name.as_str()) {
            Some(node) => JoinRefused::Document(Refused::NodeNameTaken { name, id: node.id }),
            None => JoinRefused::NotLost { name },
        }),
        (None, false) => document.free_node_id().ok_or(JoinRefused::NoId),
    }
}

fn issuer_trouble(error: PkiError) -> JoinRefused {
    tracing::error!(%error, "a machine can't be taken in");
    JoinRefused::Issuer
}

fn store_trouble(error: CommandError) -> JoinRefused {
    match error {
        CommandError::Refused(refused) => JoinRefused::Document(refused),
        CommandError::Unreachable => JoinRefused::Store(StoreTrouble::Unreachable),
        CommandError::Undecided => JoinRefused::Store(StoreTrouble::Undecided),
    }
}
