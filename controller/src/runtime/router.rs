//! Brings commands to the leader of the configuration store, wherever it is, and waits out an election.
//! Also makes this node's voter one: a voter that is in no document asks to be added.

use super::handle::Job;
use super::link::Links;
use super::voter::{Input, Known};
use super::wire::Decision;
use crate::core::consensus::{Voter, VoterId};
use crate::core::{Command, Refused};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use vocabulary::NodeId;

/// A leader is looked for this long; then the command is given back as not done.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);
/// Wait before a leader that was not one is asked again.
const AGAIN: Duration = Duration::from_millis(30);
/// Wait before a vote is asked for again.
const JOIN_AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub(super) struct Router {
    pub(super) node: NodeId,
    pub(super) voter: Option<mpsc::Sender<Input>>,
    pub(super) known: Known,
    pub(super) links: Links,
}

impl Router {
    /// Runs until nobody can ask any more.
    pub(super) async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            let router = self.clone();
            tokio::spawn(async move {
                let decision = router.decide(job.command).await;
                // Whoever asked may have given up waiting.
                let _ = job.answer.send(decision);
            });
        }
    }

    /// Has the command decided. Tried again only while it certainly did not happen.
    async fn decide(&self, command: Command) -> Decision {
        let deadline = Instant::now() + SEARCH_LIMIT;
        let mut leaders = self.known.leader.subscribe();
        loop {
            let found = timeout_at(deadline, leaders.wait_for(Option::is_some)).await;
            let Some(leader) = found.ok().and_then(|found| found.ok().and_then(|l| *l)) else {
                return Decision::NotLeader { leader: None };
            };
            let decision = self.ask(leader, command.clone()).await;
            match decision {
                Decision::NotLeader { .. } if Instant::now() < deadline => sleep(AGAIN).await,
                decision => return decision,
            }
        }
    }

    async fn ask(&self, leader: NodeId, command: Command) -> Decision {
        let (answer, decided) = oneshot::channel();
        let job = Job { command, answer };
        if leader != self.node {
            self.links.command(leader, job);
        } else if let Some(voter) = &self.voter {
            // A voter that has stopped drops the job, and so do links that can't take it.
            let _ = voter.send(Input::Job(job)).await;
        }
        match decided.await {
            Ok(decision) => decision,
            Err(_) => Decision::Undecided,
        }
    }

    /// Asks for a vote for this node's voter until it has one. Where the document names another one of
    /// this node, its state was lost: that one goes first, and this one is new (RULES 4).
    pub(super) async fn join(self, id: VoterId) {
        let mut documents = self.known.documents.subscribe();
        loop {
            let document = documents.borrow_and_update().clone();
            let Some(document) = document.filter(|document| document.node(self.node).is_some())
            else {
                if documents.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let present = document.voters.iter().find(|voter| voter.node == self.node);
            let command = match present {
                Some(voter) if voter.id == id => return,
                Some(voter) => Command::RemoveVoter { id: voter.id },
                None => Command::AddVoter {
                    voter: Voter {
                        node: self.node,
                        id,
                    },
                },
            };
            match self.decide(command).await {
                Decision::Committed { version } => {
                    let known = documents
                        .wait_for(|known| known.as_ref().is_some_and(|d| d.version.0 >= version));
                    if known.await.is_err() {
                        return;
                    }
                }
                Decision::Refused(refused @ Refused::TooManyVoters) => {
                    tracing::info!(%refused, "no vote for this node");
                    return;
                }
                Decision::Refused(refused) => {
                    tracing::warn!(%refused, "this node's voter is not taken in yet");
                    sleep(JOIN_AGAIN).await;
                }
                Decision::NotLeader { .. } | Decision::Undecided => sleep(JOIN_AGAIN).await,
            }
        }
    }
}
