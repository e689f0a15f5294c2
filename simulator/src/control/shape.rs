//! What is configured changes while all goes on: replicas come and go, min_redundancy and the length of
//! leases are others. Mirrors the node's glue, which lets go of a replica that was removed, attaches one
//! that was added, and tells the engine the terms before the records that they hold for; and holds
//! against the rules what is committed.

use super::*;
use controller::core::{Backing, MetadataKind};
use replicator::core::api::Terms;
use vocabulary::NodeSet;

/// Lengths of leases that operators choose from, in ms.
const LEASES_MS: [u32; 4] = [150, 200, 300, 500];

/// A replica as the document names it; simulated ones have no places.
pub(super) fn replica(node: NodeId, volumes: usize) -> Replica {
    let backing = Backing {
        path: String::new(),
        metadata: MetadataKind::Default,
    };
    Replica {
        node,
        backing: vec![backing; volumes],
        report: None,
        replaced: None,
    }
}

impl World {
    /// An operator changes something that is configured.
    pub(crate) fn reshape(&mut self) {
        let Some(control) = &self.control else { return };
        let document = Rc::clone(&control.newest);
        let Some(configured) = document.resources.first() else {
            return;
        };
        let resource = configured.id;
        let record = self.record().clone();
        let node = self.nodes[self.rng.index(self.replicas())].id;
        let command = match self.rng.below(10) {
            // The node that is asked does not take away the last good copy that it knows of.
            0..=2 if record.member(node).is_some() && self.serving().is_none_or(|p| p == node) => {
                return;
            }
            0..=2 => Command::RemoveReplica { resource, node },
            3..=5 => Command::AddReplica {
                resource,
                replica: replica(node, record.sizes.len()),
            },
            6 => Command::SetResource {
                resource,
                min_redundancy: if self.rng.percent(70) { 1 } else { 2 },
                policy: configured.policy,
            },
            // Refused while there is a primary.
            _ if record.primary.is_none() || self.rng.percent(30) => {
                let lease_ms = LEASES_MS[self.rng.index(LEASES_MS.len())];
                self.timings_with(lease_ms)
            }
            _ => Command::Down { resource },
        };
        self.operate(command);
    }

    /// The command that makes leases so long.
    #[must_use]
    pub fn timings_with(&self, lease_ms: u32) -> Command {
        let now = self.control.as_ref().map(|c| c.newest.timings);
        let now = now.unwrap_or(Timings::DEFAULT);
        let timings = Timings {
            lease_ms,
            election_ms: lease_ms / 2,
            fence_delay_ms: now.fence_delay_ms.max(lease_ms * 2),
            ..now
        };
        Command::SetTimings { timings }
    }

    /// Every node with a disk gets its replica back.
    pub(super) fn restore_shape(&mut self, configured: &Resource) {
        for at in 0..self.replicas() {
            let node = self.nodes[at].id;
            if configured.replica(node).is_none() {
                let replica = replica(node, self.record().sizes.len());
                let resource = configured.id;
                self.operate(Command::AddReplica { resource, replica });
            }
        }
    }

    /// The node knows that this is committed: its engine is what the document says.
    pub(super) fn follow(&mut self, id: NodeId, document: &Document) {
        let errors = self.config.settings.no_quorum_errors;
        let node = self.node(id);
        let attached = node.core.is_some();
        let Some(resource) = document.resources.first().filter(|_| !node.witness) else {
            return;
        };
        let Some(mind) = self.mind(id) else { return };
        let Some(placed) = resource.replica(id) else {
            if attached && !std::mem::replace(&mut mind.lets_go, true) {
                let close = api::Command::Close;
                let number = self.operator.note(self.node(id).process(), close, self.now);
                let event = api::Event::Command {
                    id: number,
                    command: close,
                };
                self.tell_engine(id, Lane::VoterToEngine, event);
            }
            return;
        };
        if !attached {
            self.take_up(id);
            if self.node(id).core.is_none() || !self.node(id).is_running() {
                return;
            }
            self.tell_standing(id);
        }
        let member = self.node(id).member();
        let Some(mind) = self.mind(id) else { return };
        let declares = |a: &Asked| matches!(a.origin, Origin::Declaration);
        let declared = placed.report.map(|report| report.member) == Some(member);
        let declare = !declared && !mind.asked.values().any(declares);
        let lease_ms = document.timings.lease_ms;
        if mind.terms.replace(lease_ms) != Some(lease_ms) {
            let terms = Terms {
                lease_ms: u64::from(lease_ms),
                no_quorum_errors: errors,
            };
            self.tell_engine(id, Lane::VoterToEngine, api::Event::Terms(terms));
        }
        if let Some(record) = resource.record.clone() {
            self.tell_engine(id, Lane::VoterToEngine, api::Event::Record(record));
        }
        if declare {
            self.declare(id);
        }
    }

    /// The node declares its disk, again and again until that is decided.
    pub(super) fn declare(&mut self, id: NodeId) {
        let member = self.node(id).member();
        if let Some(resource) = self.control.as_ref().map(|c| c.resource) {
            let report = Report {
                member,
                empty: false,
            };
            let command = Command::Declare { resource, report };
            self.ask(id, command, Origin::Declaration);
        }
    }

    /// The engine has closed its replica: it is let go if it was removed.
    pub(crate) fn closed(&mut self, id: NodeId) {
        if !self.mind(id).is_some_and(|mind| mind.lets_go) {
            return;
        }
        self.say(|| format!("{id:?} lets its replica go"));
        let process = self.node(id).process();
        let mut rng = self.rng.fork();
        self.node_mut(id).let_go(&mut rng);
        self.clients.forget(process);
        self.operator.forget(process);
        self.end_conns(process, true);
        if let Some(mind) = self.mind(id) {
            (mind.lets_go, mind.told, mind.terms) = (false, None, None);
        }
        let resource = self.control.as_ref().map(|c| c.resource);
        if let Some(resource) = resource {
            self.failover(id, failover::Event::Replica(resource, None));
        }
        // It may have been added again meanwhile.
        let known = self.mind(id).and_then(|mind| mind.known.clone());
        if let Some(known) = known {
            self.follow(id, &known);
        }
    }

    /// Section 1, "configured", and rule 4: replicas are those of the document, nobody else is in sync or
    /// primary, and who comes back lacks everything; the length of leases is another only where nobody
    /// is primary.
    pub(super) fn shape_is_kept(&mut self, before: &Document, after: &Document) {
        let resource = |document: &Document| document.resources.first().cloned();
        let (Some(old), Some(new)) = (resource(before), resource(after)) else {
            return;
        };
        let (Some(was), Some(is)) = (old.record, new.record) else {
            return;
        };
        let replicas: NodeSet = new.replicas.iter().map(|replica| replica.node).collect();
        let named = is
            .members()
            .union(is.primary.map_or(NodeSet::EMPTY, NodeSet::only));
        let fresh = is.replicas.difference(was.replicas).intersection(named);
        let terms = (replicas, new.min_redundancy) == (is.replicas, is.min_redundancy);
        if !terms || !named.is_subset_of(replicas) || !fresh.is_empty() {
            let what = format!("replicas {replicas:?} are configured after {was:?}, and {is:?}");
            self.broken(Rule::Configured, what);
        }
        let served = was.primary.is_some() && was.epoch == is.epoch;
        if served && before.timings.lease_ms != after.timings.lease_ms {
            let what = format!("leases get another length while {:?} has some", is.primary);
            self.broken(Rule::Lease, what);
        }
    }
}
