//! A follower's standing connection to the voter: carries commands there and documents here,
//! notices silence, and comes back after a break.

use super::handle::{Job, LinkState};
use super::wire::{Decision, FromServer, ToServer, Who};
use super::{FrameError, frame};
use crate::core::Document;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use vocabulary::NodeId;

/// First wait before the voter is dialled again; doubles each time.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
/// Longest wait.
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// A connection that is not made by then is given up.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A ping goes out this often.
const PING_EVERY: Duration = Duration::from_millis(500);
/// A voter that was not heard of for this long is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(3);
/// Messages read ahead.
const READ_AHEAD: usize = 16;

pub(super) struct Link {
    pub(super) who: Who,
    pub(super) voter: NodeId,
    pub(super) address: String,
    pub(super) documents: watch::Sender<Option<Arc<Document>>>,
    pub(super) state: watch::Sender<LinkState>,
}

/// Why a connection to the voter ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it has not answered in time")]
    Silent,
    #[error("node {0} answers there")]
    WrongNode(NodeId),
    #[error("it keeps no configuration")]
    NotVoter,
}

impl Link {
    /// Runs until nobody can send jobs any more.
    pub(super) async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut wait = RECONNECT_MIN;
        let mut reported = false;
        loop {
            match self.connected(&mut jobs, &mut wait).await {
                Ok(()) => return,
                Err(error) => {
                    let was = self.state.send_replace(LinkState::Searching);
                    // Once a break, not once a try.
                    if was == LinkState::Connected || !reported {
                        reported = true;
                        tracing::warn!(
                            voter = %self.voter, address = %self.address, %error,
                            "not connected to the configuration store; trying again"
                        );
                    }
                }
            }
            let again = Instant::now() + wait;
            wait = (wait * 2).min(RECONNECT_MAX);
            loop {
                tokio::select! {
                    () = sleep_until(again) => break,
                    job = jobs.recv() => match job {
                        // Out of reach: said at once, the proposer tries again in its own time.
                        Some(job) => { let _ = job.answer.send(Decision::NotVoter); }
                        None => return,
                    },
                }
            }
        }
    }

    async fn connected(
        &self,
        jobs: &mut mpsc::Receiver<Job>,
        wait: &mut Duration,
    ) -> Result<(), LinkError> {
        let cluster = self.who.cluster;
        let stream = timeout(CONNECT_LIMIT, TcpStream::connect(&self.address))
            .await
            .map_err(|_| LinkError::Silent)??;
        stream.set_nodelay(true)?;
        let (mut input, mut output) = stream.into_split();
        let hello = ToServer::Hello {
            node: self.who.node,
            name: self.who.name.clone(),
            to: self.voter,
            subscribe: true,
        };
        frame::write(&mut output, cluster, &hello).await?;
        let greeting = timeout(SILENCE_LIMIT, frame::read(&mut input, cluster))
            .await
            .map_err(|_| LinkError::Silent)??;
        match greeting {
            FromServer::Welcome { voter: true, .. } => {}
            FromServer::Welcome { .. } => return Err(LinkError::NotVoter),
            FromServer::NotMe { node } => return Err(LinkError::WrongNode(node)),
            _ => return Err(FrameError::Contents.into()),
        }
        *wait = RECONNECT_MIN;
        self.state.send_replace(LinkState::Connected);
        tracing::info!(voter = %self.voter, "connected to the configuration store");

        // Reading has a task of its own: a read that is dropped half way would lose bytes.
        let (heard, mut inbox) = mpsc::channel(READ_AHEAD);
        let reader = tokio::spawn(async move {
            loop {
                let message = frame::read::<FromServer>(&mut input, cluster).await;
                let ended = message.is_err();
                if heard.send(message).await.is_err() || ended {
                    return;
                }
            }
        });
        let result = self.exchange(jobs, &mut inbox, &mut output).await;
        reader.abort();
        result
    }

    async fn exchange(
        &self,
        jobs: &mut mpsc::Receiver<Job>,
        inbox: &mut mpsc::Receiver<Result<FromServer, FrameError>>,
        output: &mut tokio::net::tcp::OwnedWriteHalf,
    ) -> Result<(), LinkError> {
        let cluster = self.who.cluster;
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
                        FromServer::Document(document) => self.publish(document),
                        FromServer::Pong => {}
                        FromServer::Welcome { .. }
                        | FromServer::NotMe { .. }
                        | FromServer::Forwarded { .. } => return Err(FrameError::Contents.into()),
                    }
                }
                job = jobs.recv() => {
                    let Some(job) = job else { return Ok(()) };
                    let id = next_id;
                    next_id += 1;
                    pending.retain(|_, answer| !answer.is_closed());
                    pending.insert(id, job.answer);
                    let message = ToServer::Command { id, command: job.command };
                    self.send(output, &message).await?;
                }
                _ = ticks.tick() => {
                    if heard_at.elapsed() > SILENCE_LIMIT {
                        return Err(LinkError::Silent);
                    }
                    timeout(SILENCE_LIMIT, frame::write(output, cluster, &ToServer::Ping))
                        .await
                        .map_err(|_| LinkError::Silent)??;
                }
            }
        }
    }

    async fn send(
        &self,
        output: &mut tokio::net::tcp::OwnedWriteHalf,
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

    fn publish(&self, document: Document) {
        self.documents.send_if_modified(|known| {
            let newer = known
                .as_ref()
                .is_none_or(|known| document.version > known.version);
            if newer {
                *known = Some(Arc::new(document));
            }
            newer
        });
    }
}
