//! Who may serve, on one node and for all its resources (RULES 3 and 4): beacons to the other nodes
//! and the leases that their answers grant, the leases that this node grants to others, and the
//! promotion of this node when nobody else serves. `beacons` is the first part, `promotion` the rest.
//!
//! One state machine holds both on purpose: a node that has proposed itself must know it before it
//! answers the next beacon. It decides nothing about the record: a promotion is a command to the
//! engine, which proposes it to the configuration store.

mod beacons;
mod cause;
mod fencing;
mod promotion;
#[cfg(test)]
mod tests;

use super::document::{Document, NodeState, Timings};
use super::mutation::{Mutation, mutated};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use vocabulary::{Epoch, Member, NodeId, NodeSet, Record, ResourceId, Time};

pub use cause::Cause;
use fencing::Lost;
pub use promotion::Waiting;

/// Several beacons may be lost before the lease is.
const BEACONS_PER_LEASE: u64 = 5;

/// Time-outs in ms: until a document says what the cluster has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A beacon goes out this often.
    pub beacon_ms: u64,
    /// A beacon that was acknowledged lets the primary answer for this long from when it was sent.
    pub lease_ms: u64,
    /// Clocks of two nodes run apart by no more than this, in percent.
    pub drift_percent: u64,
    /// Among several nodes that could take over, each waits this long for every better one.
    pub stagger_ms: u64,
    /// Of two voters without a witness the one that does not serve waits this long before it has the
    /// other one switched off.
    pub fence_delay_ms: u64,
    /// A command to the engine is given again when it has had no effect for this long.
    pub again_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self::with_lease(500)
    }
}

impl Settings {
    /// Time-outs that go with a lease of so many ms.
    #[must_use]
    pub const fn with_lease(lease_ms: u64) -> Self {
        Self {
            beacon_ms: lease_ms / BEACONS_PER_LEASE,
            lease_ms,
            drift_percent: 1,
            stagger_ms: 150,
            fence_delay_ms: 5_000,
            again_ms: 2_000,
        }
    }

    /// What the cluster has agreed on.
    fn agree(&mut self, timings: &Timings) {
        self.lease_ms = u64::from(timings.lease_ms);
        self.beacon_ms = self.lease_ms / BEACONS_PER_LEASE;
        self.drift_percent = u64::from(timings.drift_percent);
        self.fence_delay_ms = u64::from(timings.fence_delay_ms);
    }
}

/// Allowance for the rounding of times and the turn of a loop, in ms.
const SLACK_MS: u64 = 5;

impl Settings {
    /// How long a node that granted leases keeps away from serving: the lease as the slower of two
    /// clocks counts it.
    #[must_use]
    pub const fn silence_ms(&self) -> u64 {
        self.lease_ms + self.lease_ms * 2 * self.drift_percent / 100 + SLACK_MS
    }
}

/// A lease asked for or granted: for this resource in this epoch.
pub type Lease = (ResourceId, Epoch);

/// What nodes tell each other all the time, in datagrams that may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The sender lives. With leases it is a beacon, without a probe.
    Beacon {
        /// The sender's run; comes back in the answer.
        run: u64,
        /// Comes back too: when it was sent, by the sender's clock, in ns.
        sent: Time,
        /// How long a lease is for the sender, in ms.
        lease_ms: u32,
        /// Leases that the sender asks for.
        leases: Vec<Lease>,
        /// Resources whose replica on the sender can't serve.
        faulty: Vec<ResourceId>,
    },
    /// To that.
    Answer {
        /// Of the beacon.
        run: u64,
        /// Of the beacon.
        sent: Time,
        /// Leases that are granted: the sender won't serve these before they have run out.
        granted: Vec<Lease>,
    },
}

/// This node's replica of a resource as the engine says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its disk and present incarnation.
    pub member: Member,
    /// Its disk has failed.
    pub failed: bool,
    /// It is primary in this epoch and has not begun to demote.
    pub primary: Option<Epoch>,
    /// What its acknowledgements are relative to, when it is primary.
    pub required: NodeSet,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// This document is known to be committed.
    Document(&'a Document),
    /// This is the replica now; `None`: it is not attached.
    Replica(ResourceId, Option<Local>),
    /// A message came from a node.
    Message(NodeId, Message),
    /// A promotion that was asked for has ended, well or not.
    PromotionEnded(ResourceId),
    /// The configuration store has a leader that this node can reach, or none.
    Store(bool),
    /// The data plane turns and no disk request is overdue, or not: without it nothing is promised.
    Turning(bool),
    /// This node's voter has been brought up to date since its start.
    Current,
    /// The node is switched off for certain: no lease of it runs any more.
    Fenced(NodeId),
    /// It could not be switched off, or nobody knows.
    FenceFailed(NodeId),
    /// Time has passed (see [`Failover::poll_timeout`]).
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram.
    Send(NodeId, Message),
    /// To the engine: a beacon of this epoch, sent then, was acknowledged by the node.
    Granted {
        /// The resource.
        resource: ResourceId,
        /// Who.
        node: NodeId,
        /// In this epoch.
        epoch: Epoch,
        /// When the beacon was sent.
        sent: Time,
    },
    /// To the engine: no earlier primary can still answer, serve.
    Serve {
        /// The resource.
        resource: ResourceId,
        /// In this epoch.
        epoch: Epoch,
    },
    /// To the engine: become primary while the record's epoch is `over`.
    Promote {
        /// The resource.
        resource: ResourceId,
        /// Members to leave out.
        drop: NodeSet,
        /// The epoch that ends.
        over: Epoch,
        /// For people.
        why: Cause,
    },
    /// To the engine: demote in order.
    Demote {
        /// The resource.
        resource: ResourceId,
        /// For people.
        why: Cause,
    },
    /// Have the node switched off; answered by [`Event::Fenced`] or [`Event::FenceFailed`].
    Fence {
        /// The node.
        node: NodeId,
    },
}

/// Another node as this one hears it.
#[derive(Clone, Debug, Default)]
struct Peer {
    /// When the newest of this node's beacons that it answered was sent.
    answered: Option<Time>,
    faulty: BTreeSet<ResourceId>,
    state: NodeState,
    /// It has a fence agent.
    fenceable: bool,
}

/// A lease that this node has granted.
#[derive(Clone, Copy, Debug)]
struct Grant {
    epoch: Epoch,
    node: NodeId,
    at: Time,
}

/// A resource as this node sees it.
#[derive(Clone, Debug, Default)]
struct Subject {
    record: Option<Record>,
    declared: Vec<Member>,
    replicas: NodeSet,
    preferred: Option<NodeId>,
    next: Option<NodeId>,
    up: bool,
    local: Option<Local>,
    /// Since when the record's epoch is known here.
    epoch_since: Time,
    /// The newest lease granted in each epoch that may still run.
    grants: Vec<Grant>,
    /// A promotion is under way since then: no lease is granted.
    promoting: Option<Time>,
    /// Since when nothing but the order among candidates keeps this node from promotion.
    ready_since: Option<Time>,
    /// The epoch in which the engine was told to serve.
    serves: Option<Epoch>,
    /// When the engine was last told to demote.
    demoted_at: Option<Time>,
    /// The epoch in which the engine has begun to demote: it goes on until that is decided.
    yields: Option<Epoch>,
}

/// The state machine of one node.
#[derive(Clone, Debug)]
pub struct Failover {
    me: NodeId,
    /// Random: another with every start of the process.
    run: u64,
    settings: Settings,
    /// Leases may have been granted until then by the process before this one.
    started: Time,
    state: NodeState,
    peers: BTreeMap<NodeId, Peer>,
    voters: Vec<NodeId>,
    lost: Option<Lost>,
    subjects: BTreeMap<ResourceId, Subject>,
    next_beacon: Time,
    next_tick: Time,
    store: bool,
    current: bool,
    turning: bool,
}

/// The state is looked at this often, besides beacons.
const TICK_MS: u64 = 20;

impl Failover {
    /// A node that has just started. `run` is random: its clock may have begun anew, and an answer to
    /// the process before it must not count.
    #[must_use]
    pub fn new(me: NodeId, run: u64, settings: Settings, now: Time) -> Self {
        Self {
            me,
            run,
            settings,
            started: now,
            state: NodeState::Online,
            peers: BTreeMap::new(),
            voters: Vec::new(),
            lost: None,
            subjects: BTreeMap::new(),
            next_beacon: now,
            next_tick: now,
            store: false,
            current: false,
            turning: true,
        }
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        self.next_beacon.min(self.next_tick)
    }

    /// One step.
    pub fn handle(&mut self, now: Time, event: Event<'_>, out: &mut Vec<Action>) {
        match event {
            Event::Document(document) => self.learn(now, document),
            Event::Replica(resource, local) => {
                let subject = self.subjects.entry(resource).or_default();
                let before = std::mem::replace(&mut subject.local, local);
                subject.yields = match (before, local) {
                    (Some(Local { primary, .. }), Some(Local { primary: None, .. })) => {
                        primary.or(subject.yields)
                    }
                    _ => None,
                };
                let role = |local: Option<Local>| local.map(|l| (l.primary, l.required));
                if role(before) != role(local) {
                    // Whoever is required now is asked at once: answers wait for its lease.
                    self.next_beacon = now;
                }
            }
            Event::Message(from, message) => self.message(now, from, message, out),
            Event::PromotionEnded(resource) => {
                if let Some(subject) = self.subjects.get_mut(&resource) {
                    subject.promoting = None;
                    subject.ready_since = None;
                }
            }
            Event::Store(reachable) => self.store = reachable,
            Event::Turning(turning) => self.turning = turning,
            Event::Current => self.current = true,
            Event::FenceFailed(node) => self.fence_failed(now, node),
            Event::Fenced(node) => self.forget_leases(node),
            Event::Tick => {}
        }
        self.look(now, out);
    }

    fn look(&mut self, now: Time, out: &mut Vec<Action>) {
        if now >= self.next_tick {
            self.next_tick = now.plus_ms(TICK_MS);
            self.check_promotions(now, out);
            self.check_fencing(now, out);
        }
        if now >= self.next_beacon {
            self.next_beacon = now.plus_ms(self.settings.beacon_ms);
            self.send_beacons(now, out);
        }
        self.check_serving(now, out);
    }

    fn learn(&mut self, now: Time, document: &Document) {
        self.settings.agree(&document.timings);
        self.voters = document.voters.iter().map(|voter| voter.node).collect();
        self.peers
            .retain(|id, _| document.nodes.iter().any(|node| node.id == *id));
        for node in &document.nodes {
            if node.id == self.me {
                self.state = node.state;
            } else {
                let peer = self.peers.entry(node.id).or_default();
                peer.state = node.state;
                peer.fenceable = node.fencing.is_some();
            }
        }
        self.subjects
            .retain(|id, _| document.resource(*id).is_some());
        self.next_tick = now;
        for resource in &document.resources {
            let subject = self.subjects.entry(resource.id).or_default();
            subject.replicas = resource.replicas.iter().map(|r| r.node).collect();
            subject.declared = resource.declared();
            subject.preferred = resource.policy.preferred;
            subject.next = resource.next;
            subject.up = resource.up;
            let Some(record) = &resource.record else {
                continue;
            };
            let known = subject.record.as_ref();
            if known.is_some_and(|known| known.generation >= record.generation) {
                continue;
            }
            if known.is_none_or(|known| known.epoch != record.epoch) {
                subject.epoch_since = now;
            }
            if record.primary.is_none() {
                // It has demoted: it answers nothing any more in this epoch, leases or not.
                subject.grants.retain(|grant| grant.epoch != record.epoch);
            }
            subject.record = Some(record.clone());
            subject.ready_since = None;
        }
    }
}
