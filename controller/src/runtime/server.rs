//! The listening side of a controller: greets, takes messages and commands for the voter and forwarded
//! commands for this node, and tells documents and leaders to those who asked for them. Every connection is bounded in
//! number, in silence and in the size of its messages.

use super::handle::{Forwarded, Job};
use super::join::Desk;
use super::tls::Caller;
use super::voter::{Input, Known};
use super::wire::{Decision, FromServer, ToServer, Who};
use super::{FrameError, frame};
use crate::core::Document;
use crate::pki::TlsError;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use vocabulary::{ClusterId, NodeId};

/// Connections at a time: 32 nodes with a standing one and a few forwarded commands each.
const MAX_CONNECTIONS: usize = 128;
/// Connections at a time that have not said yet who they are.
const MAX_GREETING: usize = 64;
/// A connection has to say who it is within this time.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// A standing connection that says nothing for this long is closed; the other side pings.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// A receiver that does not take an answer for this long is given up.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// Wait after a failed accept (no descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Answers that wait on one connection.
const ANSWERS: usize = 64;

#[derive(Clone)]
pub(super) struct Server {
    pub(super) who: Who,
    /// This node's voter; `None` where it has none.
    pub(super) voter: Option<mpsc::Sender<Input>>,
    pub(super) known: Known,
    pub(super) forwarded: mpsc::Sender<Forwarded>,
    /// Takes machines in, where this node can.
    pub(super) desk: Option<Desk>,
}

/// Connections that have not said yet who they are. Of too many the oldest one goes, so that silent ones
/// keep nobody out: a node says who it is within milliseconds.
#[derive(Debug)]
struct Door {
    visits: AtomicU64,
    greeting: Mutex<VecDeque<(u64, AbortHandle)>>,
    places: Semaphore,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            visits: AtomicU64::new(0),
            greeting: Mutex::default(),
            places: Semaphore::new(MAX_CONNECTIONS),
        }
    }
}

impl Door {
    fn greeting(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, AbortHandle)>> {
        self.greeting
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn next(&self) -> u64 {
        self.visits.fetch_add(1, Ordering::Relaxed)
    }

    fn enter(&self, visit: u64, task: AbortHandle) {
        let mut greeting = self.greeting();
        greeting.push_back((visit, task));
        if greeting.len() > MAX_GREETING
            && let Some((_, oldest)) = greeting.pop_front()
        {
            oldest.abort();
        }
    }

    /// It has said who it is, or ended.
    fn leave(&self, visit: u64) {
        self.greeting().retain(|(other, _)| *other != visit);
    }
}

impl Server {
    /// Serves all addresses until the end.
    pub(super) async fn run(self, listeners: Vec<TcpListener>) {
        let door = Arc::new(Door::default());
        let mut all = JoinSet::new();
        for listener in listeners {
            all.spawn(self.clone().listen(listener, Arc::clone(&door)));
        }
        while all.join_next().await.is_some() {}
    }

    async fn listen(self, listener: TcpListener, door: Arc<Door>) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (server, own) = (self.clone(), Arc::clone(&door));
                    let visit = door.next();
                    let task = tokio::spawn(async move {
                        if let Err(error) = server.serve(stream, &own, visit).await {
                            tracing::debug!(%from, %error, "a controller connection ended");
                        }
                        own.leave(visit);
                    });
                    door.enter(visit, task.abort_handle());
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a controller connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream, door: &Door, visit: u64) -> Result<(), FrameError> {
        let cluster = self.who.cluster;
        let (stream, caller) = self.who.identity.accept(stream).await?;
        let (mut input, mut output) = tokio::io::split(stream);
        let certified = match caller {
            Caller::Node(node) => node,
            Caller::Stranger => {
                let request = timeout(HELLO_LIMIT, frame::read(&mut input, cluster))
                    .await
                    .map_err(|_| silent())??;
                let answer = Desk::admit(self.desk.as_ref(), request).await;
                return send(&mut output, cluster, &answer).await;
            }
        };
        let hello = timeout(HELLO_LIMIT, frame::read(&mut input, cluster))
            .await
            .map_err(|_| silent())??;
        let ToServer::Hello {
            node,
            name,
            to,
            subscribe,
        } = hello
        else {
            return Err(FrameError::Contents);
        };
        if node != certified {
            let found = certified;
            let expected = node;
            return Err(TlsError::WrongNode { expected, found }.into());
        }
        let has_left = |document: &Arc<Document>| document.departed.contains(node);
        let greeting = if self.known.documents.borrow().as_ref().is_some_and(has_left) {
            FromServer::Departed
        } else if to == self.who.node {
            FromServer::Welcome {
                node: self.who.node,
            }
        } else {
            FromServer::NotMe {
                node: self.who.node,
            }
        };
        send(&mut output, cluster, &greeting).await?;
        if !matches!(greeting, FromServer::Welcome { .. }) {
            return Ok(());
        }
        door.leave(visit);
        let Ok(_place) = door.places.try_acquire() else {
            return Err(FrameError::Io(std::io::ErrorKind::QuotaExceeded.into()));
        };
        tracing::debug!(%node, %name, subscribe, "a controller connected");
        let (answers, mut outbox) = mpsc::channel(ANSWERS);
        let reader = self.read_all(node, input, answers);
        tokio::pin!(reader);
        let mut documents = self.known.documents.subscribe();
        let mut leaders = self.known.leader.subscribe();
        if subscribe {
            documents.mark_changed();
            leaders.mark_changed();
        }
        loop {
            tokio::select! {
                end = &mut reader => return end,
                Some(answer) = outbox.recv() => send(&mut output, cluster, &answer).await?,
                changed = documents.changed(), if subscribe => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let document: Option<Arc<Document>> = documents.borrow_and_update().clone();
                    if let Some(document) = document {
                        let message = FromServer::Document(Document::clone(&document));
                        send(&mut output, cluster, &message).await?;
                    }
                }
                changed = leaders.changed(), if subscribe => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let leader = *leaders.borrow_and_update();
                    send(&mut output, cluster, &FromServer::Leader(leader)).await?;
                }
            }
        }
    }

    /// Reads until the connection ends. Answers go to the writer through a bounded queue.
    fn read_all(
        &self,
        from: NodeId,
        mut input: impl AsyncRead + Unpin,
        answers: mpsc::Sender<FromServer>,
    ) -> impl Future<Output = Result<(), FrameError>> {
        let (cluster, voter, forwarded) =
            (self.who.cluster, self.voter.clone(), self.forwarded.clone());
        async move {
            loop {
                let message = timeout(SILENCE_LIMIT, frame::read(&mut input, cluster))
                    .await
                    .map_err(|_| silent())??;
                match message {
                    ToServer::Hello { .. } => return Err(FrameError::Contents),
                    ToServer::Ping => {
                        let _ = answers.send(FromServer::Pong).await;
                    }
                    ToServer::Consensus(envelope) => {
                        if envelope.from.node != from {
                            return Err(FrameError::Contents);
                        }
                        if let Some(voter) = &voter {
                            // Too many wait: voters' messages may be lost.
                            let _ = voter.try_send(Input::Envelope(envelope));
                        }
                    }
                    ToServer::Command { id, command } => {
                        let (answer, decided) = oneshot::channel();
                        let job = Input::Job(Job { command, answer });
                        let queued = match &voter {
                            Some(voter) => voter.send(job).await.is_ok(),
                            None => false,
                        };
                        let answers = answers.clone();
                        tokio::spawn(async move {
                            let result = match decided.await {
                                Ok(decision) => decision,
                                Err(_) if queued => Decision::Undecided,
                                Err(_) => Decision::NotLeader { leader: None },
                            };
                            let _ = answers.send(FromServer::Decided { id, result }).await;
                        });
                    }
                    ToServer::Forward { id, body } => {
                        let (answer, answered) = oneshot::channel();
                        // A node that starts or stops has nobody to take it: the queue is closed,
                        // and the empty answer says so.
                        let _ = forwarded.send(Forwarded { from, body, answer }).await;
                        let answers = answers.clone();
                        tokio::spawn(async move {
                            let body = answered.await.unwrap_or_default();
                            let _ = answers.send(FromServer::Forwarded { id, body }).await;
                        });
                    }
                }
            }
        }
    }
}

async fn send(
    output: &mut (impl AsyncWrite + Unpin),
    cluster: ClusterId,
    message: &impl Serialize,
) -> Result<(), FrameError> {
    timeout(WRITE_LIMIT, async {
        frame::write(output, cluster, message).await
    })
    .await
    .map_err(|_| silent())?
}

fn silent() -> FrameError {
    FrameError::Io(std::io::ErrorKind::TimedOut.into())
}
