//! How the rest of the process talks to a data plane's thread: a [`PlaneHandle`] posts, answers come
//! through callbacks and reports through one sink. Nothing here blocks, and nothing that a caller
//! does can hold the data plane up for longer than a message takes.

use super::super::client::{ClientProtocol, OpenClient};
use super::super::disk::Disk;
use super::super::mailbox::Post;
use super::super::peer::PeerAddress;
use super::super::pool::{PoolBuf, PoolStats};
use super::super::ring::{RingError, RingStats};
use super::super::tls::PeerCredentials;
use super::super::worker::WorkDone;
use super::{Pulse, WorkKey};
use crate::core::Regions;
use crate::core::api::{Access, Action, Command, CommandError, Event, Notice, Terms};
use crate::core::status::{Standing, Status};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vocabulary::{Change, ClusterId, Epoch, Generation, NodeId, Record, Refusal, ResourceId, Time};

/// Gets an answer, in the data plane's thread: it must not block (send it on).
pub type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// A resource's state machine as the data plane drives it; `core`'s `Resource`, or a fake in tests.
pub trait Machine {
    /// Takes in an event; appends what is to be done.
    fn handle(&mut self, now: Time, event: Event<PoolBuf>, out: &mut Vec<Action<PoolBuf>>);
    /// [`poll_timeout`](Self::poll_timeout) is due.
    fn handle_timeout(&mut self, now: Time, out: &mut Vec<Action<PoolBuf>>);
    /// When it wants to be called next.
    fn poll_timeout(&self) -> Option<Time>;
    /// [`crate::core::Resource::end_turn`].
    fn end_turn(&mut self, now: Time, out: &mut Vec<Action<PoolBuf>>);
    /// What an operator is shown.
    fn status(&self, now: Time) -> Status;
    /// Epoch and generation of the record that it has.
    fn frame_context(&self) -> (Epoch, Generation);
    /// The record that it has.
    fn record(&self) -> Option<&Record>;
    /// Does it take clients' requests?
    fn takes_clients(&self) -> bool;
    /// What leases and fail-over need to know of it.
    fn standing(&self) -> Standing;
}

/// Makes a machine in the data plane's thread, at the time that it then is.
pub type MakeMachine = Box<dyn FnOnce(Time) -> Box<dyn Machine> + Send>;

/// A resource to drive.
pub struct NewResource {
    /// The cluster.
    pub cluster: ClusterId,
    /// The resource.
    pub resource: ResourceId,
    /// Its volumes' stores in their order, attached.
    pub disks: Vec<Arc<Disk>>,
    /// Its state machine.
    pub machine: MakeMachine,
    /// Bytes of the metadata of a volume of so many bytes, for side files when a volume grows.
    pub meta_bytes: fn(u64) -> u64,
}

impl fmt::Debug for NewResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewResource")
            .field("resource", &self.resource)
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}

/// What a resource has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Something that an operator wants to know.
    Notice(Notice),
    /// A change for the configuration store.
    Propose {
        /// The generation that it is based on.
        based_on: Generation,
        /// The change.
        change: Change,
    },
    /// It takes clients' requests now, or not any more, or has another record: what exports are made
    /// of. Or its standing is another: what leases and fail-over go by.
    State {
        /// Does it take clients' requests?
        takes_clients: bool,
        /// The record that it has.
        record: Option<Record>,
        /// Its disk, its epoch as primary, and whom it requires.
        standing: Standing,
    },
}

/// Gets the reports of all resources, in the data plane's thread: it must not block.
pub type ReportSink = Box<dyn FnMut(ResourceId, Report) + Send>;

/// Settings of a data plane.
pub struct PlaneConfig {
    /// Bytes of buffers in use at which clients and peers are not read further.
    pub pool_bytes: usize,
    /// Bytes of free buffers that are kept.
    pub keep_bytes: usize,
    /// How long the thread looks for work before it sleeps, in µs; 0: not at all. Waking a sleeping
    /// core takes longer than a request does.
    pub busy_poll_us: u64,
    /// Secures peer connections; `None`: they are in the open.
    pub credentials: Option<Arc<dyn PeerCredentials>>,
    /// Gets all reports.
    pub report: ReportSink,
}

impl PlaneConfig {
    /// The defaults with this sink.
    #[must_use]
    pub fn new(report: ReportSink) -> Self {
        Self {
            // The core takes 256 MiB of client requests; as much again for peers and resync.
            pool_bytes: 768 << 20,
            keep_bytes: super::super::pool::DEFAULT_KEEP_BYTES,
            busy_poll_us: 50,
            credentials: None,
            report,
        }
    }
}

impl fmt::Debug for PlaneConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaneConfig")
            .field("pool_bytes", &self.pool_bytes)
            .field("keep_bytes", &self.keep_bytes)
            .field("busy_poll_us", &self.busy_poll_us)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The thread has ended.
    #[error("the data plane has stopped")]
    Stopped,
    /// It has no such resource.
    #[error("the data plane does not hold resource {0}")]
    Unknown(ResourceId),
    /// It has the resource already.
    #[error("the data plane holds resource {0} already")]
    Known(ResourceId),
    /// Clients have the resource open.
    #[error("{} clients have the resource open", .0.len())]
    InUse(Vec<OpenClient>),
    /// The core answered.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// No ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No thread, no descriptors.
    #[error("the data plane could not be started: {0}")]
    Start(#[from] std::io::Error),
}

/// Counters of a data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneStats {
    /// The ring's.
    pub ring: RingStats,
    /// The buffers'.
    pub pool: PoolStats,
    /// Client connections now.
    pub clients: usize,
    /// Peer connections now.
    pub peers: usize,
    /// Client requests since the start.
    pub requests: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Times that the thread slept.
    pub sleeps: u64,
    /// Times that looking for work before sleeping found some.
    pub polls_hit: u64,
    /// Times that it did not.
    pub polls_missed: u64,
}

/// What is posted to the thread.
pub(super) enum Control {
    Add(Box<NewResource>, Reply<Result<(), PlaneError>>),
    Remove(ResourceId, Reply<Result<(), PlaneError>>),
    Peers(BTreeMap<NodeId, Vec<PeerAddress>>),
    Access(ResourceId, Access),
    Terms(ResourceId, Terms),
    Record(Box<Record>),
    Refused {
        resource: ResourceId,
        based_on: Generation,
        refusal: Refusal,
    },
    Lease(ResourceId, Lease),
    Command(ResourceId, Command, Reply<Result<(), PlaneError>>),
    HandOver(ResourceId, NodeId, Reply<Result<(), PlaneError>>),
    Clients(Reply<Vec<OpenClient>>),
    Status(Reply<Vec<(ResourceId, Status)>>),
    Stats(Reply<PlaneStats>),
    ListenClients {
        listener: OwnedFd,
        protocol: Box<dyn ClientProtocol>,
        shared: bool,
    },
    ListenPeers(OwnedFd, ClusterId),
    Work(WorkKey, WorkDone),
    Looked(WorkKey, Regions),
    Shutdown,
}

/// What fail-over says about leases.
pub(super) enum Lease {
    Granted {
        node: NodeId,
        epoch: Epoch,
        sent: Time,
    },
    Serve {
        epoch: Epoch,
    },
}

impl From<Lease> for Event<PoolBuf> {
    fn from(lease: Lease) -> Self {
        match lease {
            Lease::Granted { node, epoch, sent } => Self::Granted { node, epoch, sent },
            Lease::Serve { epoch } => Self::Serve { epoch },
        }
    }
}

/// A way to talk to a data plane. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct PlaneHandle {
    post: Post<Control>,
    pulse: Arc<Pulse>,
}

impl fmt::Debug for PlaneHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlaneHandle")
    }
}

impl PlaneHandle {
    pub(super) fn new(post: Post<Control>, pulse: Arc<Pulse>) -> Self {
        Self { post, pulse }
    }

    /// Whether the thread turns and its disk requests are answered, readable at any time.
    #[must_use]
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// A node acknowledged a beacon of this epoch that was sent then, by [`super::boot_time`].
    pub fn granted(&self, resource: ResourceId, node: NodeId, epoch: Epoch, sent: Time) {
        let lease = Lease::Granted { node, epoch, sent };
        let _ = self.post.send(Control::Lease(resource, lease));
    }

    /// No primary of an epoch before this one can answer any more.
    pub fn serve(&self, resource: ResourceId, epoch: Epoch) {
        let lease = Lease::Serve { epoch };
        let _ = self.post.send(Control::Lease(resource, lease));
    }

    pub(super) fn work(&self, key: WorkKey, done: WorkDone) {
        let _ = self.post.send(Control::Work(key, done));
    }

    pub(super) fn looked(&self, key: WorkKey, holes: Regions) {
        let _ = self.post.send(Control::Looked(key, holes));
    }

    /// Hands over a resource; it is driven from the answer on.
    pub fn add_resource(&self, new: NewResource, reply: Reply<Result<(), PlaneError>>) {
        if let Err(Control::Add(_, reply)) = self.post.send(Control::Add(Box::new(new), reply)) {
            reply(Err(PlaneError::Stopped));
        }
    }

    /// Takes a resource out: its connections are closed; the answer comes when its disk requests are
    /// done and its stores let go. Send [`Command::Close`] first: this drains nothing.
    pub fn remove_resource(&self, resource: ResourceId, reply: Reply<Result<(), PlaneError>>) {
        if let Err(Control::Remove(_, reply)) = self.post.send(Control::Remove(resource, reply)) {
            reply(Err(PlaneError::Stopped));
        }
    }

    /// Where the other nodes' replicas listen from now on; each dial takes the next address of a node.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, Vec<PeerAddress>>) {
        let _ = self.post.send(Control::Peers(peers));
    }

    /// Which nodes take clients' requests of a resource, from now on.
    pub fn access(&self, resource: ResourceId, access: Access) {
        let _ = self.post.send(Control::Access(resource, access));
    }

    /// What the cluster has agreed on for a resource, from now on.
    pub fn terms(&self, resource: ResourceId, terms: Terms) {
        let _ = self.post.send(Control::Terms(resource, terms));
    }

    /// A record that is known to be committed, in any order and as often as it likes.
    pub fn record(&self, record: Record) {
        let _ = self.post.send(Control::Record(Box::new(record)));
    }

    /// The store refused a proposal for good.
    pub fn refused(&self, resource: ResourceId, based_on: Generation, refusal: Refusal) {
        let _ = self.post.send(Control::Refused {
            resource,
            based_on,
            refusal,
        });
    }

    /// An operator's command; the core bounds how long it takes.
    pub fn command(
        &self,
        resource: ResourceId,
        command: Command,
        reply: Reply<Result<(), PlaneError>>,
    ) {
        let sent = self.post.send(Control::Command(resource, command, reply));
        if let Err(Control::Command(_, _, reply)) = sent {
            reply(Err(PlaneError::Stopped));
        }
    }

    /// Demotes in favour of another node unless a client has the resource open
    /// ([`PlaneError::InUse`]). That is decided in one turn: whoever opens it later is refused, and
    /// nobody is cut off.
    pub fn hand_over(
        &self,
        resource: ResourceId,
        to: NodeId,
        reply: Reply<Result<(), PlaneError>>,
    ) {
        let sent = self.post.send(Control::HandOver(resource, to, reply));
        if let Err(Control::HandOver(_, _, reply)) = sent {
            reply(Err(PlaneError::Stopped));
        }
    }

    /// The clients that have something open now. Dropped unanswered where the thread has ended.
    pub fn clients(&self, reply: Reply<Vec<OpenClient>>) {
        let _ = self.post.send(Control::Clients(reply));
    }

    /// How all resources look now, within one turn of the loop. Dropped unanswered where the thread
    /// has ended.
    pub fn status(&self, reply: Reply<Vec<(ResourceId, Status)>>) {
        let _ = self.post.send(Control::Status(reply));
    }

    /// Counters. Dropped unanswered where the thread has ended.
    pub fn stats(&self, reply: Reply<PlaneStats>) {
        let _ = self.post.send(Control::Stats(reply));
    }

    /// Serves clients on a listening socket (TCP or unix). `shared`: other processes hold it too, and it
    /// goes on without this one.
    pub fn listen_clients(
        &self,
        listener: OwnedFd,
        protocol: Box<dyn ClientProtocol>,
        shared: bool,
    ) {
        let _ = self.post.send(Control::ListenClients {
            listener,
            protocol,
            shared,
        });
    }

    /// Takes connections of the cluster's other nodes on a listening socket (TCP or unix).
    pub fn listen_peers(&self, listener: OwnedFd, cluster: ClusterId) {
        let _ = self.post.send(Control::ListenPeers(listener, cluster));
    }

    /// Ends the thread: clients get their last answers, for at most some seconds.
    pub fn shutdown(&self) {
        let _ = self.post.send(Control::Shutdown);
    }
}
