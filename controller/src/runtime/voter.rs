//! Drives this node's voter: messages and commands in, its promise to the disk, messages out to the
//! links. It also puts an end to the creation of a resource whose replicas don't all report.

use super::clock;
use super::handle::Job;
use super::link::Links;
use super::wire::Decision;
use crate::core::consensus::{
    self, Action, CommandId, Consensus, Envelope, Event, NotAlone, Settings, VoterId,
};
use crate::core::{Command, Document, Resource};
use crate::store::{Promise, PromiseStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use vocabulary::{NodeId, ResourceId};

/// A new resource waits this long for all replicas to be created, then it begins with those that
/// are there.
const CREATION_LIMIT: Duration = Duration::from_secs(10);
/// A failed write is tried again this much later.
const MEND_AFTER: Duration = Duration::from_secs(1);
/// Events handled before what they call for is done.
const TURN: usize = 64;

/// What comes to the voter.
#[derive(Debug)]
pub(super) enum Input {
    Envelope(Envelope<Document>),
    Job(Job),
    /// The other one of two voters is switched off for certain.
    Fenced {
        voter: VoterId,
        answer: oneshot::Sender<Result<(), NotAlone>>,
    },
}

/// Newest committed document and leader, as they become known; whoever needs them subscribes.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) documents: watch::Sender<Option<Arc<Document>>>,
    pub(super) leader: watch::Sender<Option<NodeId>>,
    /// This node's voter has been brought up to date since its start.
    pub(super) current: watch::Sender<bool>,
    /// Another node says that this one was removed from the cluster.
    pub(super) departed: Arc<AtomicBool>,
    /// Who leads by the word of other nodes.
    said: watch::Sender<Option<NodeId>>,
    /// This node has a vote: then its voter alone says who leads.
    votes: Arc<AtomicBool>,
}

impl Known {
    /// A document is known to be committed.
    pub(super) fn learn(&self, document: Document) {
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

    /// This node's voter says who leads, and whether it has a vote by the document that it stores. That
    /// one may be old, or may never have been committed: the others may have taken its vote, and then
    /// only they say who leads.
    fn lead(&self, leader: Option<NodeId>, vote: Option<VoterId>) {
        let votes = vote.is_some_and(|id| {
            let known = self.documents.borrow();
            let mut voters = known.iter().flat_map(|document| &document.voters);
            known.is_none() || voters.any(|voter| voter.id == id)
        });
        let voted = self.votes.swap(votes, Ordering::Relaxed);
        if votes {
            self.set_leader(leader);
        } else if voted {
            self.set_leader(*self.said.borrow());
        }
    }

    /// A node says that it leads, or that it does not.
    pub(super) fn says(&self, node: NodeId, leads: bool) {
        self.said.send_if_modified(|said| match said {
            _ if leads => said.replace(node) != Some(node),
            Some(leader) if *leader == node => said.take().is_some(),
            _ => false,
        });
        if !self.votes.load(Ordering::Relaxed) {
            self.set_leader(*self.said.borrow());
        }
    }

    fn set_leader(&self, leader: Option<NodeId>) {
        self.leader
            .send_if_modified(|known| std::mem::replace(known, leader) != leader);
    }
}

/// A running voter.
pub(super) struct Voter {
    consensus: Consensus<Document>,
    known: Known,
    links: Links,
    /// The writer's side of the disk.
    writes: watch::Sender<Option<(u64, Promise)>>,
    jobs: BTreeMap<u64, oneshot::Sender<Decision>>,
    next_job: u64,
    /// Version of the newest document that this voter knows to be committed.
    version: u64,
    creations: BTreeMap<ResourceId, Instant>,
}

/// Runs until nobody can send anything any more.
pub(super) async fn run(
    node: NodeId,
    (store, promise): (PromiseStore, Promise),
    settings: Settings,
    random: u64,
    known: Known,
    links: Links,
    mut inbox: mpsc::Receiver<Input>,
) {
    let (writes, pending) = watch::channel(None);
    let (written, mut durable) = mpsc::channel(4);
    let writer = tokio::spawn(write_promises(store, pending, written));
    let mut voter = Voter {
        consensus: Consensus::new(node, promise, settings, random, clock::now()),
        known,
        links,
        writes,
        jobs: BTreeMap::new(),
        next_job: 0,
        version: 0,
        creations: BTreeMap::new(),
    };
    loop {
        let tick = Instant::now() + clock::until(voter.consensus.poll_timeout());
        let creation = voter.creation_due();
        let mut events = Vec::new();
        tokio::select! {
            input = inbox.recv() => match input {
                Some(input) => events.extend(voter.event(input)),
                None => break,
            },
            Some(number) = durable.recv() => events.push(Event::Persisted(number)),
            () = sleep_until(tick) => events.push(Event::Tick),
            () = sleep_until(creation.map_or_else(far_away, |(at, _)| at)),
                if creation.is_some() => events.extend(voter.begin(creation.map(|(_, id)| id))),
        }
        while events.len() < TURN
            && let Ok(input) = inbox.try_recv()
        {
            events.extend(voter.event(input));
        }
        let mut actions = Vec::new();
        for event in events {
            voter.consensus.handle(clock::now(), event, &mut actions);
        }
        voter.carry_out(actions);
        let consensus = &voter.consensus;
        let vote = consensus.votes().then(|| consensus.me().id);
        voter.known.lead(consensus.leader(), vote);
        voter.known.current.send_if_modified(|current| {
            let now = voter.consensus.is_current();
            std::mem::replace(current, now) != now
        });
    }
    writer.abort();
}

/// Writes the newest promise, again and again where that fails, and says which one is durable.
async fn write_promises(
    mut store: PromiseStore,
    mut pending: watch::Receiver<Option<(u64, Promise)>>,
    written: mpsc::Sender<u64>,
) {
    while pending.changed().await.is_ok() {
        loop {
            let Some((number, promise)) = pending.borrow_and_update().clone() else {
                break;
            };
            let done = tokio::task::spawn_blocking(move || {
                let result = store.save(&promise);
                (store, result)
            });
            let Ok((returned, result)) = done.await else {
                tracing::error!("the configuration store's writer panicked; this voter stops");
                return;
            };
            store = returned;
            match result {
                Ok(()) => {
                    if written.send(number).await.is_err() {
                        return;
                    }
                    break;
                }
                Err(error) => {
                    // Nothing is promised until a later write succeeds.
                    tracing::error!(%error, "the configuration could not be written");
                    sleep(MEND_AFTER).await;
                }
            }
        }
    }
}

impl Voter {
    fn event(&mut self, input: Input) -> Option<Event<Document>> {
        Some(match input {
            Input::Envelope(envelope) => Event::Message(envelope),
            Input::Fenced { voter, answer } => {
                let may = self.consensus.may_go_on_without(voter);
                // Whoever asked may have given up waiting.
                let _ = answer.send(may);
                may.ok()?;
                Event::Fenced {
                    voter,
                    removal: Command::RemoveVoter { id: voter },
                }
            }
            Input::Job(job) => {
                self.next_job += 1;
                self.jobs.retain(|_, answer| !answer.is_closed());
                self.jobs.insert(self.next_job, job.answer);
                Event::Command {
                    id: CommandId(self.next_job),
                    command: job.command,
                }
            }
        })
    }

    fn carry_out(&mut self, actions: Vec<Action<Document>>) {
        for action in actions {
            match action {
                Action::Persist { number, promise } => {
                    self.writes.send_replace(Some((number, promise)));
                }
                Action::Send { node, envelope } => self.links.consensus(node, envelope),
                Action::Committed { content, .. } => {
                    self.version = content.version.0;
                    let election_ms = u64::from(content.timings.election_ms);
                    self.consensus.set(Settings::with_election(election_ms));
                    self.watch_creations(&content);
                    self.known.learn(content);
                }
                // Looked at after every turn.
                Action::Leader(_) => {}
                Action::Answer { id, decision } => {
                    let decision = match decision {
                        consensus::Decision::Committed => Decision::Committed {
                            version: self.version,
                        },
                        consensus::Decision::Refused(refused) => Decision::Refused(refused),
                        consensus::Decision::NotLeader { leader } => Decision::NotLeader { leader },
                        consensus::Decision::Undecided => Decision::Undecided,
                    };
                    if let Some(answer) = self.jobs.remove(&id.0) {
                        // Whoever asked may have given up waiting.
                        let _ = answer.send(decision);
                    }
                }
            }
        }
    }

    /// Notes since when resources have waited for their record.
    fn watch_creations(&mut self, document: &Document) {
        let waits = |resource: &&Resource| resource.record.is_none();
        self.creations
            .retain(|id, _| document.resource(*id).is_some_and(|r| waits(&r)));
        for resource in document.resources.iter().filter(waits) {
            self.creations
                .entry(resource.id)
                .or_insert_with(|| Instant::now() + CREATION_LIMIT);
        }
    }

    /// The resource that has waited the longest: the leader ends that.
    fn creation_due(&self) -> Option<(Instant, ResourceId)> {
        let waiting = self.creations.iter().map(|(&id, &at)| (at, id));
        waiting.min().filter(|_| self.consensus.leads())
    }

    fn begin(&mut self, resource: Option<ResourceId>) -> Option<Event<Document>> {
        let resource = resource?;
        self.creations
            .insert(resource, Instant::now() + CREATION_LIMIT);
        // Nobody waits for the answer: the document tells.
        self.next_job += 1;
        Some(Event::Command {
            id: CommandId(self.next_job),
            command: Command::BeginResource { resource },
        })
    }
}

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Version, consensus};
    use vocabulary::ClusterId;

    /// A node that was fenced comes back with a document in which it votes, and its voter hears nobody:
    /// it must learn from the others who leads, or it could never ask for its vote.
    #[test]
    fn a_node_whose_vote_was_taken_hears_from_others_who_leads() {
        let [me, other] = [1, 2].map(|id| consensus::Voter {
            node: NodeId::new(id).unwrap(),
            id: VoterId(u64::from(id)),
        });
        let mut old = Document::new(ClusterId(1));
        old.version = Version(5);
        old.voters = vec![me, other];
        let known = Known::default();
        known.learn(old.clone());
        known.lead(None, Some(me.id));
        known.says(other.node, true);
        assert_eq!(*known.leader.borrow(), None, "its own voter says who leads");
        let mut new = old.clone();
        new.version = Version(6);
        new.voters = vec![other];
        known.learn(new);
        // It was said before, and is not said again.
        known.lead(None, Some(me.id));
        assert_eq!(*known.leader.borrow(), Some(other.node));
    }
}
