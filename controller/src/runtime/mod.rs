//! What carries the controller over the network. One thread with a tokio runtime for the configuration
//! store (`voter` drives this node's vote, `link` and `server` the connections, `router` brings commands
//! to the leader, `tls` who is at the other end, `join` how that began) and one for beacons and leases (`beacons`), so that nothing an operator does can delay
//! them. The rest of the node sees [`StoreHandle`] and [`FailoverHandle`] only.

mod addresses;
mod beacons;
mod clock;
mod datagram;
mod fencing;
mod frame;
mod handle;
mod join;
mod link;
mod router;
mod server;
mod tls;
mod voter;
mod wire;

pub use beacons::{Engine, FailoverHandle};
pub use fencing::FenceError;
pub use frame::{FrameError, MAX_FRAME_BYTES};
pub use handle::{CommandError, Forwarded, PeerError, StoreHandle};
pub use join::{JoinError, JoinRefused, Joined, Newcomer, join};
pub use tls::{Caller, Stream};

use crate::core::{Name, Node, consensus, failover};
use crate::pki::{Identity, Issuer};
use crate::store::{Promise, PromiseStore, StoreError};
use addresses::Addresses;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, watch};
use voter::Known;

/// Jobs that wait for the store; more wait at the sender.
const QUEUE: usize = 256;

/// What the controller is told at its start.
pub struct Config {
    /// Who this node is.
    pub identity: Identity,
    /// Hands out tokens and takes machines in; `None` where the authority's key is not.
    pub issuer: Option<Arc<Issuer>>,
    /// Its name.
    pub name: Name,
    /// Where this node's controller listens, for connections and for beacons.
    pub listen: Vec<String>,
    /// The cluster's nodes, until a document names them.
    pub nodes: Vec<Node>,
    /// Addresses of controllers that this node does not reach where the document says.
    pub reach: BTreeMap<Name, Vec<String>>,
    /// This node's voter; `None`: it follows without a vote.
    pub voter: Option<(PromiseStore, Promise)>,
    /// Time-outs of the configuration store.
    pub consensus: consensus::Settings,
    /// Time-outs of leases and promotions.
    pub failover: failover::Settings,
    /// What carries out promotions.
    pub engine: Box<dyn Engine>,
    /// Random: another with every start.
    pub run: u64,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("identity", &self.identity)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
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
    failover: FailoverHandle,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Controller {
    /// Starts the controller. Operators' commands that other nodes forward come out of the receiver.
    ///
    /// # Errors
    /// When the address is taken or a thread can't be made.
    pub fn start(config: Config) -> Result<(Self, mpsc::Receiver<Forwarded>), StartError> {
        let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
        for address in &config.listen {
            let listen = |source| StartError::Listen {
                address: address.clone(),
                source,
            };
            let listener = TcpListener::bind(address).map_err(listen)?;
            listener.set_nonblocking(true).map_err(listen)?;
            listeners.push(listener);
            let socket = UdpSocket::bind(address).map_err(listen)?;
            socket.set_nonblocking(true).map_err(listen)?;
            sockets.push(socket);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let (jobs, job_queue) = mpsc::channel(QUEUE);
        let (forwarded, forwarded_queue) = mpsc::channel(QUEUE);
        let (orders, order_queue) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let known = Known::default();
        let addresses = Addresses::new(config.nodes, config.reach, known.clone());
        let who = wire::Who {
            cluster: config.identity.cluster(),
            node: config.identity.node(),
            name: config.name,
            identity: config.identity.clone(),
        };
        let stored = config
            .voter
            .as_ref()
            .map(|(_, promise)| &promise.entry.content);
        let stored = stored
            .filter(|document| !document.nodes.is_empty())
            .map(|document| Arc::new(document.clone()));
        let handle = StoreHandle::new(who.clone(), stored, addresses.clone(), jobs, known.clone());
        let beacons = beacons::Beacons {
            seals: config.identity.beacons().clone(),
            node: config.identity.node(),
            run: config.run,
            settings: config.failover,
            known: known.clone(),
            addresses: addresses.clone(),
            engine: config.engine,
            orders,
        };
        let (failover, beacons) = beacons::start(beacons, sockets, stopped.clone())?;
        let links = link::Links::new(who.clone(), known.clone(), addresses);
        let store = Store {
            who,
            issuer: config.issuer,
            handle: handle.clone(),
            known,
            links,
            voter: config.voter,
            settings: config.consensus,
            random: config.run,
            failover: failover.clone(),
        };
        let queues = (job_queue, order_queue);
        let thread = std::thread::Builder::new()
            .name("controller".to_owned())
            .spawn(move || runtime.block_on(store.run(listeners, queues, forwarded, stopped)))
            .map_err(StartError::Thread)?;
        Ok((
            Self {
                handle,
                failover,
                stop,
                threads: vec![beacons, thread],
            },
            forwarded_queue,
        ))
    }

    /// The configuration store for the rest of the node.
    #[must_use]
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Leases and promotions for the rest of the node.
    #[must_use]
    pub fn failover(&self) -> FailoverHandle {
        self.failover.clone()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the controller had panicked");
            }
        }
    }
}

struct Store {
    who: wire::Who,
    issuer: Option<Arc<Issuer>>,
    handle: StoreHandle,
    known: Known,
    links: link::Links,
    voter: Option<(PromiseStore, Promise)>,
    settings: consensus::Settings,
    random: u64,
    failover: FailoverHandle,
}

impl Store {
    async fn run(
        self,
        listeners: Vec<TcpListener>,
        (jobs, orders): (
            mpsc::Receiver<handle::Job>,
            mpsc::UnboundedReceiver<fencing::Order>,
        ),
        forwarded: mpsc::Sender<Forwarded>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let listeners = listeners.into_iter().map(tokio::net::TcpListener::from_std);
        let listeners: Vec<_> = match listeners.collect() {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::error!(%error, "the controller can't use its listening sockets");
                return;
            }
        };
        let (inbox, inputs) = mpsc::channel(QUEUE);
        let voter = self.voter.is_some().then_some(inbox);
        let router = router::Router {
            node: self.who.node,
            voter: voter.clone(),
            known: self.known.clone(),
            links: self.links.clone(),
        };
        let fencer = fencing::Fencer {
            known: self.known.clone(),
            voter: voter.clone(),
            failover: self.failover,
        };
        let server = server::Server {
            who: self.who.clone(),
            voter,
            known: self.known.clone(),
            forwarded,
            desk: self
                .issuer
                .map(|issuer| join::Desk::new(issuer, self.handle)),
        };
        let links = self.links.clone();
        let joining = router.clone();
        let vote = async {
            let Some(voter) = self.voter else {
                return pending().await;
            };
            let join = joining.join(voter.1.voter);
            let run = voter::run(
                self.who.node,
                voter,
                self.settings,
                self.random,
                self.known,
                self.links,
                inputs,
            );
            tokio::join!(run, join);
        };
        tokio::select! {
            () = server.run(listeners) => {}
            () = links.keep() => {}
            () = router.run(jobs) => {}
            () = fencer.run(orders) => {}
            () = vote => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }
}

#[cfg(test)]
mod tests;
