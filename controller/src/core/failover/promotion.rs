//! When this node becomes primary, when it lets go, and what it waits for.

use super::*;

/// A node that an operator has named gets this long before the next best takes over, in ms.
const NEXT_MS: u64 = 3_000;

/// A promotion of which nothing is heard for this long has ended, in ms: longer than the engine gives one.
const PROMOTION_LIMIT_MS: u64 = 30_000;

/// Why nobody is promoted: what is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// An operator has demoted it.
    Down,
    /// The cluster was recovered: nobody knows which replica has the latest data, an operator chooses.
    Choice,
    /// Its replicas are still being created.
    Creation,
    /// The configuration store has no leader within reach: a majority of voters is missing.
    Quorum,
    /// This node is back and the other one of two voters is not: it may have gone on alone.
    Peer(NodeId),
    /// The other one of two voters is lost and has no fence agent: an operator has to say that it is off.
    ConfirmDead(NodeId),
    /// The other one of two voters is lost and is being switched off.
    Fence(NodeId),
    /// These nodes have the last good copies, and none of them can be promoted now.
    LastGoodCopy(NodeSet),
    /// Leases of the last primary may still run.
    Lease,
    /// It is under way.
    Promotion,
    /// The node that could is on standby or in maintenance.
    Standby(NodeSet),
}

impl Failover {
    /// Among several nodes that could take over, the better one goes first.
    fn order(subject: &Subject, node: NodeId) -> (bool, bool, NodeId) {
        (
            subject.next != Some(node),
            subject.preferred != Some(node),
            node,
        )
    }

    /// Could this other node be promoted, as far as this one knows?
    fn could(&self, now: Time, resource: ResourceId, record: &Record, node: NodeId) -> bool {
        let Some(peer) = self.peers.get(&node) else {
            return false;
        };
        record.member(node).is_some()
            && peer.state == NodeState::Online
            && !peer.faulty.contains(&resource)
            && self.reaches(now, node)
    }

    pub(super) fn check_promotions(&mut self, now: Time, out: &mut Vec<Action>) {
        let resources: Vec<ResourceId> = self.subjects.keys().copied().collect();
        for resource in resources {
            self.check_demotion(now, resource, out);
            if let Some(subject) = self.subjects.get_mut(&resource) {
                let limit = PROMOTION_LIMIT_MS;
                subject.promoting = subject.promoting.filter(|at| now.ms_since(*at) < limit);
            }
            let Some((wait_ms, drop, over)) = self.candidacy(now, resource) else {
                if let Some(subject) = self.subjects.get_mut(&resource) {
                    subject.ready_since = None;
                }
                continue;
            };
            let Some(subject) = self.subjects.get_mut(&resource) else {
                continue;
            };
            let since = *subject.ready_since.get_or_insert(now);
            if now.ms_since(since) < wait_ms {
                continue;
            }
            subject.promoting = Some(now);
            subject.ready_since = None;
            let why = self.why_promoted(now, resource);
            out.push(Action::Promote {
                resource,
                drop,
                over,
                why,
            });
        }
    }

    /// Is this node to be promoted? After how long, without whom, in place of which epoch.
    fn candidacy(&self, now: Time, resource: ResourceId) -> Option<(u64, NodeSet, Epoch)> {
        let subject = self.subjects.get(&resource)?;
        let record = subject.record.as_ref()?;
        let local = subject.local?;
        if !subject.up
            || !self.store
            || self.state != NodeState::Online
            || !self.turning
            || local.failed
            || local.primary.is_some()
            || subject.promoting.is_some()
            // Whom it makes way for is known when its demotion is committed.
            || record.primary == Some(self.me) && subject.yields == Some(record.epoch)
        {
            return None;
        }
        record.eligible(&local.member, &subject.declared)?;
        if !self.is_silent(now, subject, record) {
            return None;
        }
        let mine = Self::order(subject, self.me);
        let better = record.in_sync.iter().map(|member| member.node);
        let mut wait_ms = 0;
        for node in better.filter(|&node| node != self.me && Self::order(subject, node) < mine) {
            if self.could(now, resource, record, node) {
                wait_ms += if subject.next == Some(node) {
                    NEXT_MS
                } else {
                    self.settings.stagger_ms
                };
            }
        }
        Some((
            wait_ms,
            self.out_of_reach(now, resource, record),
            record.epoch,
        ))
    }

    /// No primary but this node can still answer anything: it has demoted, or the leases that this node
    /// granted have run out since.
    fn is_silent(&self, now: Time, subject: &Subject, record: &Record) -> bool {
        if now < self.leases_run_until(subject) {
            return false;
        }
        // A primary that this node has only just heard of had no time to send a beacon.
        let other = record.primary.is_some_and(|primary| primary != self.me);
        let other = other && !mutated(Mutation::NoGraceAfterRestart);
        !other || now.ms_since(subject.epoch_since) >= self.settings.silence_ms()
    }

    /// Members that a promotion leaves out, unless the record does not allow to do without them.
    fn out_of_reach(&self, now: Time, resource: ResourceId, record: &Record) -> NodeSet {
        let members = record.members();
        let lost: NodeSet = members
            .without(self.me)
            .iter()
            .filter(|&node| {
                let faulty = self
                    .peers
                    .get(&node)
                    .is_none_or(|peer| peer.faulty.contains(&resource));
                faulty || !self.reaches(now, node)
            })
            .collect();
        if members.difference(lost).len() < u32::from(record.min_redundancy) {
            NodeSet::EMPTY
        } else {
            lost
        }
    }

    /// Lets go of what is to be primary elsewhere, or nowhere.
    fn check_demotion(&mut self, now: Time, resource: ResourceId, out: &mut Vec<Action>) {
        let Some(subject) = self.subjects.get(&resource) else {
            return;
        };
        let (Some(record), Some(local)) = (&subject.record, &subject.local) else {
            return;
        };
        if local.primary != Some(record.epoch) || record.primary != Some(self.me) {
            return;
        }
        let elsewhere = |node: NodeId| node != self.me && self.could(now, resource, record, node);
        let members = record.members();
        let wanted = match subject.next {
            _ if !subject.up => true,
            Some(next) => elsewhere(next),
            None => self.state == NodeState::Standby && members.iter().any(elsewhere),
        };
        let again = subject
            .demoted_at
            .is_none_or(|at| now.ms_since(at) >= self.settings.again_ms);
        if !wanted || !again {
            return;
        }
        let why = match subject.next {
            _ if !subject.up => Cause::Down,
            Some(node) => Cause::Moves(node),
            None => Cause::Standby,
        };
        if let Some(subject) = self.subjects.get_mut(&resource) {
            subject.demoted_at = Some(now);
            out.push(Action::Demote { resource, why });
        }
    }

    /// Tells the engine to serve once its promotion is committed and no lease that this node granted
    /// to an earlier primary can still run.
    pub(super) fn check_serving(&mut self, now: Time, out: &mut Vec<Action>) {
        let due: Vec<(ResourceId, Epoch)> = self
            .subjects
            .iter()
            .filter_map(|(&resource, subject)| {
                let epoch = subject.local?.primary?;
                let record = subject.record.as_ref()?;
                // From this record on no earlier epoch is granted anything.
                let mine = record.epoch == epoch && record.primary == Some(self.me);
                let late = mutated(Mutation::LateBeaconAcknowledged);
                let silent = now >= self.leases_run_until(subject) || late;
                (mine && silent && subject.serves != Some(epoch)).then_some((resource, epoch))
            })
            .collect();
        for (resource, epoch) in due {
            if let Some(subject) = self.subjects.get_mut(&resource) {
                subject.serves = Some(epoch);
                subject.promoting = None;
            }
            out.push(Action::Serve { resource, epoch });
        }
    }

    /// What a resource without a primary that serves waits for, as far as this node knows.
    #[must_use]
    pub fn waiting(&self, now: Time, resource: ResourceId) -> Option<Waiting> {
        let subject = self.subjects.get(&resource)?;
        let Some(record) = &subject.record else {
            return Some(Waiting::Creation);
        };
        if record.primary.is_some_and(|primary| {
            primary == self.me && subject.local.is_some_and(|l| l.primary.is_some())
                || primary != self.me && self.reaches(now, primary)
        }) {
            return None;
        }
        if record.in_sync.is_empty() {
            return Some(Waiting::Choice);
        }
        if !subject.up {
            return Some(Waiting::Down);
        }
        if let Some(stuck) = self.stuck(now) {
            return Some(stuck);
        }
        let here = subject.local.filter(|local| {
            !local.failed && record.eligible(&local.member, &subject.declared).is_some()
        });
        let able: NodeSet = record
            .members()
            .iter()
            .filter(|&node| {
                if node == self.me {
                    here.is_some()
                } else {
                    let peer = self.peers.get(&node);
                    self.reaches(now, node)
                        && peer.is_some_and(|peer| !peer.faulty.contains(&resource))
                }
            })
            .collect();
        if able.is_empty() {
            return Some(Waiting::LastGoodCopy(record.members()));
        }
        let online: NodeSet = able
            .iter()
            .filter(|&node| {
                let peer = self.peers.get(&node).map(|peer| peer.state);
                peer.unwrap_or(self.state) == NodeState::Online
            })
            .collect();
        if online.is_empty() {
            return Some(Waiting::Standby(able));
        }
        if !self.is_silent(now, subject, record) {
            return Some(Waiting::Lease);
        }
        Some(Waiting::Promotion)
    }
}
