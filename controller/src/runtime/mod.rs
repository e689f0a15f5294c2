//! What carries the configuration store over the network: a thread of its own with a tokio runtime
//! of its own, so that nothing an operator does can delay it. The rest of the node sees it through
//! [`StoreHandle`] only, which is the interface that the store of several voters will have too.

mod frame;
mod handle;
mod link;
mod server;
mod tls;
mod voter;
mod wire;

pub use frame::{FrameError, MAX_FRAME_BYTES};
pub use handle::{CommandError, Forwarded, LinkState, PeerError, StoreHandle};
pub use tls::{Caller, Stream};

use crate::core::{Document, Name};
use crate::store::{DocumentStore, StoreError};
use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, watch};
use vocabulary::{ClusterId, NodeId};

/// Jobs that wait for the store; more wait at the sender.
const QUEUE: usize = 256;

/// What the controller is told at its start.
#[derive(Debug)]
pub struct Config {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Where this node's controller listens.
    pub listen: String,
    /// Where the other nodes' controllers listen.
    pub peers: BTreeMap<NodeId, String>,
    /// This node's part.
    pub role: Role,
}

/// A node's part in the configuration store.
#[derive(Debug)]
pub enum Role {
    /// It keeps the document.
    Voter {
        /// Where it keeps it.
        store: DocumentStore,
        /// What was found there.
        document: Document,
    },
    /// It follows another node.
    Follower {
        /// The voter.
        voter: NodeId,
    },
}

/// Why the controller could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error("can't listen on {address} for the other nodes' controllers: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The system gave no thread or no event loop.
    #[error("can't start the controller's thread: {0}")]
    Thread(io::Error),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The running controller. Dropping it stops it.
#[derive(Debug)]
pub struct Controller {
    handle: StoreHandle,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Starts the controller. Operators' commands that other nodes forward come out of the receiver.
    ///
    /// # Errors
    /// When the address is taken or the thread can't be made.
    pub fn start(config: Config) -> Result<(Self, mpsc::Receiver<Forwarded>), StartError> {
        let listener = TcpListener::bind(&config.listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| StartError::Listen {
                address: config.listen.clone(),
                source,
            })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let (jobs, job_queue) = mpsc::channel(QUEUE);
        let (forwarded, forwarded_queue) = mpsc::channel(QUEUE);
        let (documents, _) = watch::channel(None);
        let (link, _) = watch::channel(LinkState::default());
        let (stop, stopped) = watch::channel(false);
        let handle = StoreHandle::new(
            config.cluster,
            config.node,
            Arc::new(config.peers.clone()),
            jobs.clone(),
            documents.clone(),
            link.clone(),
        );
        let thread = std::thread::Builder::new()
            .name("controller".to_owned())
            .spawn(move || {
                runtime.block_on(run(
                    config,
                    listener,
                    Wiring {
                        jobs,
                        job_queue,
                        forwarded,
                        documents,
                        link,
                    },
                    stopped,
                ));
            })
            .map_err(StartError::Thread)?;
        Ok((
            Self {
                handle,
                stop,
                thread: Some(thread),
            },
            forwarded_queue,
        ))
    }

    /// The interface for the rest of the node.
    #[must_use]
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the controller's thread had panicked");
        }
    }
}

struct Wiring {
    jobs: mpsc::Sender<handle::Job>,
    job_queue: mpsc::Receiver<handle::Job>,
    forwarded: mpsc::Sender<Forwarded>,
    documents: watch::Sender<Option<Arc<Document>>>,
    link: watch::Sender<LinkState>,
}

async fn run(
    config: Config,
    listener: TcpListener,
    wiring: Wiring,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the controller can't use its listening socket");
            return;
        }
    };
    let who = wire::Who {
        cluster: config.cluster,
        node: config.node,
        name: config.name,
    };
    let jobs = matches!(config.role, Role::Voter { .. }).then_some(wiring.jobs);
    let serve = server::Server {
        who: who.clone(),
        jobs,
        documents: wiring.documents.subscribe(),
        forwarded: wiring.forwarded,
    };
    let work = async {
        match config.role {
            Role::Voter { store, document } => {
                wiring.link.send_replace(LinkState::Voter);
                voter::run(store, document, wiring.job_queue, wiring.documents).await;
            }
            Role::Follower { voter } => {
                let address = config.peers.get(&voter).cloned().unwrap_or_default();
                let link = link::Link {
                    who,
                    voter,
                    address,
                    documents: wiring.documents,
                    state: wiring.link,
                };
                link.run(wiring.job_queue).await;
            }
        }
    };
    tokio::select! {
        () = serve.run(listener) => {}
        () = work => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

#[cfg(test)]
mod tests;
