//! Standing connections to the other nodes' controllers: voters' messages and commands go there,
//! committed documents and the leader's name come back. They notice silence and come back after a
//! break.

use super::addresses::Addresses;
use super::handle::Job;
use super::voter::Known;
use super::wire::{Decision, FromServer, ToServer, Who};
use super::{FrameError, frame};
use crate::core::Document;
use crate::core::consensus::Envelope;
use crate::pki::TlsError;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use vocabulary::NodeId;

/// First wait before a node is dialled again; doubles each time.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
/// Longest wait: an election needs the connections, so not much longer than one takes.
const RECONNECT_MAX: Duration = Duration::from_millis(500);
/// A ping goes out this often.
const PING_EVERY: Duration = Duration::from_millis(500);
/// A node that was not heard of for this long is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// Messages read ahead.
const READ_AHEAD: usize = 16;
/// Messages that wait for a connection to take them; more are lost, which voters survive.
const WAITING: usize = 256;

/// Something to carry over.
#[derive(Debug)]
enum Load {
    Consensus(Envelope<Document>),
    Job(Job),
}

#[derive(Debug)]
struct Link {
    loads: mpsc::Sender<Load>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The links to all other nodes.
#[derive(Clone, Debug)]
pub(super) struct Links {
    who: Who,
    known: Known,
    addresses: Addresses,
    links: Arc<Mutex<BTreeMap<NodeId, Link>>>,
}

impl Links {
    pub(super) fn new(who: Who, known: Known, addresses: Addresses) -> Self {
        Self {
            who,
            known,
            addresses,
            links: Arc::default(),
        }
    }

    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Link>> {
        self.links
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// Keeps a link to each other node that is known, until the end.
    pub(super) async fn keep(self) {
        let mut documents = self.known.documents.subscribe();
        loop {
            let nodes = self.addresses.nodes();
            {
                let mut links = self.links();
                links.retain(|node, _| nodes.contains(node));
                for node in nodes.into_iter().filter(|&node| node != self.who.node) {
                    links.entry(node).or_insert_with(|| self.start(node));
                }
            }
            if documents.changed().await.is_err() {
                return;
            }
        }
    }

    fn start(&self, node: NodeId) -> Link {
        let (loads, queue) = mpsc::channel(WAITING);
        let runner = Runner {
            who: self.who.clone(),
            node,
            known: self.known.clone(),
            addresses: self.addresses.clone(),
        };
        Link {
            loads,
            task: tokio::spawn(runner.run(queue)),
        }
    }

    /// Sends a voter's message, or loses it.
    pub(super) fn consensus(&self, node: NodeId, envelope: Envelope<Document>) {
        if let Some(link) = self.links().get(&node) {
            // Full: the receiver is slow or away, and voters' messages may be lost.
            let _ = link.loads.try_send(Load::Consensus(envelope));
        }
    }

    /// Hands a command to that node's voter; where that can't be, it is answered at once.
    pub(super) fn command(&self, node: NodeId, job: Job) {
        let refused = match self.links().get(&node) {
            None => Some(job),
            Some(link) => match link.loads.try_send(Load::Job(job)) {
                Err(TrySendError::Full(Load::Job(job)) | TrySendError::Closed(Load::Job(job))) => {
                    Some(job)
                }
                _ => None,
            },
        };
        if let Some(job) = refused {
            // Whoever asked may have given up waiting.
            let _ = job.answer.send(Decision::NotLeader { leader: None });
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("it has not answered in time")]
    Silent,
    #[error("node {0} answers there")]
    WrongNode(NodeId),
    #[error("this node was removed from the cluster")]
    Departed,
    #[error("its address is not known")]
    NoAddress,
}

struct Runner {
    who: Who,
    node: NodeId,
    known: Known,
    addresses: Addresses,
}

impl Runner {
    /// Runs until nobody can send any more.
    async fn run(self, mut loads: mpsc::Receiver<Load>) {
        let mut wait = RECONNECT_MIN;
        let mut connected = true;
        for attempt in 0_usize.. {
            match self.connected(attempt, &mut loads, &mut wait).await {
                Ok(()) => return,
                Err(error) => {
                    self.known.says(self.node, false);
                    // Once a break, not once a try.
                    if std::mem::replace(&mut connected, wait == RECONNECT_MIN) {
                        tracing::warn!(node = %self.node, %error, "not connected to its controller; trying again");
                    }
                }
            }
            let again = Instant::now() + wait;
            wait = (wait * 2).min(RECONNECT_MAX);
            loop {
                tokio::select! {
                    () = sleep_until(again) => break,
                    load = loads.recv() => match load {
                        // Out of reach: lost, or said at once; the asker tries in its own time.
                        Some(Load::Consensus(_)) => {}
                        Some(Load::Job(job)) => {
                            let _ = job.answer.send(Decision::NotLeader { leader: None });
                        }
                        None => return,
                    },
                }
            }
        }
    }

    async fn connected(
        &self,
        attempt: usize,
        loads: &mut mpsc::Receiver<Load>,
        wait: &mut Duration,
    ) -> Result<(), LinkError> {
        let cluster = self.who.cluster;
        // Each of its addresses in turn.
        let addresses = self.addresses.of(self.node);
        let address = addresses
            .get(attempt.checked_rem(addresses.len()).unwrap_or(0))
            .ok_or(LinkError::NoAddress)?;
        let stream = self.who.identity.connect(address, self.node).await?;
        let (mut input, mut output) = tokio::io::split(stream);
        let hello = ToServer::Hello {
            node: self.who.node,
            name: self.who.name.clone(),
            to: self.node,
            subscribe: true,
        };
        frame::write(&mut output, cluster, &hello).await?;
        let greeting = timeout(SILENCE_LIMIT, frame::read(&mut input, cluster))
            .await
            .map_err(|_| LinkError::Silent)??;
        match greeting {
            FromServer::Welcome { .. } => {}
            FromServer::NotMe { node } => return Err(LinkError::WrongNode(node)),
            FromServer::Departed => {
                self.known.departed.store(true, Ordering::Relaxed);
                return Err(LinkError::Departed);
            }
            _ => return Err(FrameError::Contents.into()),
        }
        *wait = RECONNECT_MIN;
        tracing::info!(node = %self.node, "connected to its controller");

        // Reading has a task of its own: a read that is dropped half way would lose bytes.
        let (heard, mut inbox) = mpsc::channel(READ_AHEAD);
        let reader = tokio::spawn(read_all(input, cluster, heard));
        let result = self.exchange(loads, &mut inbox, &mut output).await;
        reader.abort();
        result
    }

    async fn exchange(
        &self,
        loads: &mut mpsc::Receiver<Load>,
        inbox: &mut mpsc::Receiver<Result<FromServer, FrameError>>,
        output: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), LinkError> {
        // Answers that are awaited; dropped with the connection, which says "undecided".
        let mut pending: BTreeMap<u64, oneshot::Sender<Decision>> = BTreeMap::new();
        let mut next_id = 0;
        let mut heard_at = Instant::now();
        let mut ticks = interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = inbox.recv() => {
                    heard_at = Instant::now();
                    match message.ok_or(LinkError::Silent)?? {
                        FromServer::Decided { id, result } => {
                            if let Some(answer) = pending.remove(&id) {
                                let _ = answer.send(result);
                            }
                        }
                        FromServer::Document(document) => self.known.learn(document),
                        FromServer::Leader(leader) => {
                            self.known.says(self.node, leader == Some(self.node));
                        }
                        FromServer::Pong => {}
                        FromServer::Welcome { .. }
                        | FromServer::NotMe { .. }
                        | FromServer::Departed
                        | FromServer::Forwarded { .. } => return Err(FrameError::Contents.into()),
                    }
                }
                load = loads.recv() => {
                    let message = match load {
                        None => return Ok(()),
                        Some(Load::Consensus(envelope)) => ToServer::Consensus(envelope),
                        Some(Load::Job(Job { command, answer })) => {
                            let id = next_id;
                            next_id += 1;
                            pending.retain(|_, answer| !answer.is_closed());
                            pending.insert(id, answer);
                            ToServer::Command { id, command }
                        }
                    };
                    self.send(output, &message).await?;
                }
                _ = ticks.tick() => {
                    if heard_at.elapsed() > SILENCE_LIMIT {
                        return Err(LinkError::Silent);
                    }
                    self.send(output, &ToServer::Ping).await?;
                }
            }
        }
    }

    async fn send(
        &self,
        output: &mut (impl AsyncWrite + Unpin),
        message: &ToServer,
    ) -> Result<(), LinkError> {
        timeout(
            SILENCE_LIMIT,
            frame::write(output, self.who.cluster, message),
        )
        .await
        .map_err(|_| LinkError::Silent)??;
        Ok(())
    }
}

async fn read_all(
    mut input: impl AsyncRead + Unpin,
    cluster: vocabulary::ClusterId,
    heard: mpsc::Sender<Result<FromServer, FrameError>>,
) {
    loop {
        let message = frame::read::<FromServer>(&mut input, cluster).await;
        let ended = message.is_err();
        if heard.send(message).await.is_err() || ended {
            return;
        }
    }
}
