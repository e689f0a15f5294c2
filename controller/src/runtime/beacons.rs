//! Drives [`Failover`] on a thread of its own, over datagrams of its own, so that neither bulk data nor a
//! busy API nor a slow disk delays a beacon.

use super::addresses::Addresses;
use super::datagram::{MAX_DATAGRAM_BYTES, Sockets, decode, encode};
use super::fencing::{FenceError, Order};
use super::voter::Known;
use super::{StartError, clock};
use crate::core::failover::{Action, Event, Failover, Local, Settings, Waiting};
use crate::pki::BeaconKey;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use vocabulary::{NodeId, ResourceId};

/// Names of nodes are looked up anew this often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);
/// Where nobody knows a node's address yet, sooner.
const LOOK_UP_SOON: Duration = Duration::from_millis(200);
/// Datagrams handled before anything else is looked at.
const TURN: usize = 64;

/// The engine, as fail-over sees it.
pub trait Engine: Send {
    /// Carries out an action; never waits.
    fn act(&self, action: Action);

    /// Does the data plane turn, with no disk request overdue?
    fn turns(&self) -> bool;
}

/// What the rest of the node tells.
#[derive(Debug)]
enum Input {
    Replica(ResourceId, Option<Local>),
    PromotionEnded(ResourceId),
    Fenced(NodeId),
    FenceFailed(NodeId),
    Waiting(ResourceId, oneshot::Sender<Option<Waiting>>),
}

/// Tells fail-over what happens on this node. Can be used from any thread.
#[derive(Clone, Debug)]
pub struct FailoverHandle {
    inputs: mpsc::UnboundedSender<Input>,
    orders: mpsc::UnboundedSender<Order>,
}

impl FailoverHandle {
    /// This is the replica now; `None`: it is not attached.
    pub fn replica(&self, resource: ResourceId, local: Option<Local>) {
        self.send(Input::Replica(resource, local));
    }

    /// A promotion that was asked for has ended, well or not.
    pub fn promotion_ended(&self, resource: ResourceId) {
        self.send(Input::PromotionEnded(resource));
    }

    /// The node is switched off for certain.
    pub(super) fn fenced(&self, node: NodeId) {
        self.send(Input::Fenced(node));
    }

    /// The node could not be switched off.
    pub(super) fn fence_failed(&self, node: NodeId) {
        self.send(Input::FenceFailed(node));
    }

    /// Has the node switched off by its fence agent.
    ///
    /// # Errors
    /// Why it does not count as switched off.
    pub async fn fence(&self, node: NodeId) -> Result<(), FenceError> {
        self.order(|answer| Order::Fence(node, Some(answer))).await
    }

    /// Takes an operator's word that the node is off.
    ///
    /// # Errors
    /// Why this node does not go on without it all the same.
    pub async fn confirm_dead(&self, node: NodeId) -> Result<(), FenceError> {
        self.order(|answer| Order::Confirm(node, answer)).await
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), FenceError>>) -> Order,
    ) -> Result<(), FenceError> {
        let (answer, done) = oneshot::channel();
        self.orders
            .send(order(answer))
            .map_err(|_| FenceError::Stopping)?;
        done.await.map_err(|_| FenceError::Stopping)?
    }

    /// What a resource without a primary waits for.
    pub async fn waiting(&self, resource: ResourceId) -> Option<Waiting> {
        let (answer, waiting) = oneshot::channel();
        self.send(Input::Waiting(resource, answer));
        waiting.await.ok().flatten()
    }

    fn send(&self, input: Input) {
        // Nobody there: the controller stops.
        let _ = self.inputs.send(input);
    }
}

/// Each with its place among the addresses of its node.
type Found = Arc<Mutex<BTreeMap<NodeId, Vec<(usize, SocketAddr)>>>>;

pub(super) struct Beacons {
    pub(super) seals: BeaconKey,
    pub(super) node: NodeId,
    pub(super) run: u64,
    pub(super) settings: Settings,
    pub(super) known: Known,
    pub(super) addresses: Addresses,
    pub(super) engine: Box<dyn Engine>,
    /// Where nodes are switched off.
    pub(super) orders: mpsc::UnboundedSender<Order>,
}

/// Starts the thread; it ends when `stopped` says so.
pub(super) fn start(
    beacons: Beacons,
    sockets: Vec<std::net::UdpSocket>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(FailoverHandle, JoinHandle<()>), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    let (inputs, queue) = mpsc::unbounded_channel();
    let orders = beacons.orders.clone();
    let thread = std::thread::Builder::new()
        .name("beacons".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = beacons.drive(sockets, queue) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
        })
        .map_err(StartError::Thread)?;
    Ok((FailoverHandle { inputs, orders }, thread))
}

impl Beacons {
    async fn drive(
        self,
        sockets: Vec<std::net::UdpSocket>,
        mut inputs: mpsc::UnboundedReceiver<Input>,
    ) {
        let sockets = match Sockets::new(sockets) {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::error!(%error, "beacons can't use their sockets");
                return;
            }
        };
        let found = Found::default();
        let look_up = tokio::spawn(look_up(self.addresses.clone(), Arc::clone(&found)));
        let mut documents = self.known.documents.subscribe();
        documents.mark_changed();
        let mut leaders = self.known.leader.subscribe();
        leaders.mark_changed();
        let mut current = self.known.current.subscribe();
        current.mark_changed();
        let mut core = Failover::new(self.node, self.run, self.settings, clock::now());
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        let mut turned = true;
        loop {
            let mut out = Vec::new();
            let tick = Instant::now() + clock::until(core.poll_timeout());
            tokio::select! {
                biased;
                Some(input) = inputs.recv() => self.input(&mut core, input, &mut out),
                received = sockets.receive(&mut buffer) => match received {
                    Ok(length) => {
                        self.datagram(&mut core, &buffer[..length], &mut out);
                        for _ in 0..TURN {
                            let Some(length) = sockets.try_receive(&mut buffer) else {
                                break;
                            };
                            self.datagram(&mut core, &buffer[..length], &mut out);
                        }
                    }
                    // A port of another node that is not there yet: the kernel tells once.
                    Err(error) => tracing::debug!(%error, "a beacon could not be received"),
                },
                Ok(()) = documents.changed() => {
                    let document = documents.borrow_and_update().clone();
                    if let Some(document) = document {
                        core.handle(clock::now(), Event::Document(&document), &mut out);
                    }
                }
                Ok(()) = current.changed() => {
                    if *current.borrow_and_update() {
                        core.handle(clock::now(), Event::Current, &mut out);
                    }
                }
                Ok(()) = leaders.changed() => {
                    let leader = *leaders.borrow_and_update();
                    core.handle(clock::now(), Event::Store(leader.is_some()), &mut out);
                }
                () = sleep_until(tick) => {
                    let turns = self.engine.turns();
                    if turns != std::mem::replace(&mut turned, turns) {
                        tracing::warn!(turns, "the data plane stands still, or goes on");
                        core.handle(clock::now(), Event::Turning(turns), &mut out);
                    }
                    core.handle(clock::now(), Event::Tick, &mut out);
                }
                else => break,
            }
            self.carry_out(&sockets, &found, out);
        }
        look_up.abort();
    }

    fn input(&self, core: &mut Failover, input: Input, out: &mut Vec<Action>) {
        let now = clock::now();
        match input {
            Input::Replica(resource, local) => {
                core.handle(now, Event::Replica(resource, local), out);
            }
            Input::PromotionEnded(resource) => {
                core.handle(now, Event::PromotionEnded(resource), out);
            }
            Input::Fenced(node) => core.handle(now, Event::Fenced(node), out),
            Input::FenceFailed(node) => core.handle(now, Event::FenceFailed(node), out),
            Input::Waiting(resource, answer) => {
                // Whoever asked may have given up.
                let _ = answer.send(core.waiting(now, resource));
            }
        }
    }

    fn datagram(&self, core: &mut Failover, bytes: &[u8], out: &mut Vec<Action>) {
        // What is not for this node is not worth a word: anybody can send a datagram.
        if let Some((from, message)) = decode(&self.seals, bytes) {
            core.handle(clock::now(), Event::Message(from, message), out);
        }
    }

    fn carry_out(&self, sockets: &Sockets, found: &Found, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(node, message) => {
                    let bytes = encode(&self.seals, node, &message);
                    let found = found.lock().unwrap_or_else(|broken| broken.into_inner());
                    // Over every address that it has: the first to arrive counts.
                    for &(place, address) in found.get(&node).into_iter().flatten() {
                        if let Err(error) = sockets.send(&bytes, place, address) {
                            tracing::trace!(%node, %address, %error, "a beacon is lost");
                        }
                    }
                }
                Action::Fence { node } => {
                    // Nobody there: the controller stops.
                    let _ = self.orders.send(Order::Fence(node, None));
                }
                action => self.engine.act(action),
            }
        }
    }
}

/// Keeps the nodes' addresses, so that a name service that is away delays no beacon.
async fn look_up(addresses: Addresses, found: Found) {
    loop {
        let mut missing = false;
        for node in addresses.nodes() {
            let mut all = Vec::new();
            for (place, address) in addresses.of(node).into_iter().enumerate() {
                match tokio::net::lookup_host(&address).await {
                    Ok(some) => all.extend(some.map(|address| (place, address))),
                    Err(error) => tracing::debug!(%node, address, %error, "address not found"),
                }
            }
            missing |= all.is_empty();
            let mut found = found.lock().unwrap_or_else(|broken| broken.into_inner());
            found.insert(node, all);
        }
        let wait = if missing { LOOK_UP_SOON } else { LOOK_UP_EVERY };
        let changed = addresses.changed();
        let _ = tokio::time::timeout(wait, changed).await;
    }
}
