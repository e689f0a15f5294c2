//! Two voters and no witness (RULES section 3): when one is lost no majority is left, and the other one goes
//! on only once the lost one is switched off for certain. The side that serves shoots first; a node
//! that was not brought up to date since its start never does.

use super::*;

/// A fence agent that failed is tried again after this long, in ms.
const AGAIN_MS: u64 = 10_000;

/// A lost voter that stands in the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    node: NodeId,
    since: Time,
    /// When the agent was last asked, and whether it has not answered yet.
    asked: Option<(Time, bool)>,
}

impl Failover {
    /// The other one of two voters, if it is out of reach and no majority is left without it.
    fn lost_voter(&self, now: Time) -> Option<NodeId> {
        let [a, b] = self.voters[..] else { return None };
        let other = match (a == self.me, b == self.me) {
            (true, false) => b,
            (false, true) => a,
            _ => return None,
        };
        let silence = self.settings.silence_ms();
        let silent = !self.reaches(now, other) && now.ms_since(self.started) >= silence;
        (silent && !self.store).then_some(other)
    }

    /// How long this side waits before it shoots.
    fn fence_delay_ms(&self, other: NodeId) -> u64 {
        let serves = |node: NodeId| {
            self.subjects.values().any(|subject| {
                let record = subject.record.as_ref();
                record.is_some_and(|record| record.primary == Some(node))
            })
        };
        let first = match (serves(self.me), serves(other)) {
            (true, false) => true,
            (false, true) => false,
            _ => self.me < other,
        };
        if first {
            0
        } else {
            self.settings.fence_delay_ms
        }
    }

    pub(super) fn check_fencing(&mut self, now: Time, out: &mut Vec<Action>) {
        let Some(node) = self.lost_voter(now) else {
            self.lost = None;
            return;
        };
        let lost = match self.lost {
            Some(lost) if lost.node == node => lost,
            _ => Lost {
                node,
                since: now,
                asked: None,
            },
        };
        self.lost = Some(lost);
        let peer = self.peers.get(&node);
        let hands_off = self.state == NodeState::Maintenance
            || peer.is_none_or(|peer| peer.state == NodeState::Maintenance || !peer.fenceable);
        let current = self.current || mutated(Mutation::BootingNodeFences);
        let waits = match lost.asked {
            Some((_, true)) => true,
            Some((at, false)) => now.ms_since(at) < AGAIN_MS,
            None => now.ms_since(lost.since) < self.fence_delay_ms(node),
        };
        if hands_off || !current || waits {
            return;
        }
        self.lost = Some(Lost {
            asked: Some((now, true)),
            ..lost
        });
        out.push(Action::Fence { node });
    }

    /// The node was switched off: what it was granted before is over. What it was granted since the shot was
    /// ordered is not: the machine may have started again before a slow agent has answered.
    pub(super) fn forget_leases(&mut self, node: NodeId) {
        let lost = self.lost.filter(|lost| lost.node == node);
        let Some((shot, _)) = lost.and_then(|lost| lost.asked) else {
            // Not by this node's order: they run out by themselves.
            return;
        };
        for subject in self.subjects.values_mut() {
            let since = |grant: &Grant| grant.node != node || grant.at > shot;
            subject.grants.retain(since);
        }
    }

    /// The agent has failed: nothing is known of the node.
    pub(super) fn fence_failed(&mut self, now: Time, node: NodeId) {
        if let Some(lost) = &mut self.lost
            && lost.node == node
        {
            lost.asked = Some((now, false));
        }
    }

    /// What keeps the configuration store from deciding, as far as this node knows.
    #[must_use]
    pub fn stuck(&self, now: Time) -> Option<Waiting> {
        if self.store {
            return None;
        }
        let Some(node) = self.lost_voter(now) else {
            return Some(Waiting::Quorum);
        };
        let fenceable = self.peers.get(&node).is_some_and(|peer| peer.fenceable);
        Some(match (self.current, fenceable) {
            (false, _) => Waiting::Peer(node),
            (true, false) => Waiting::ConfirmDead(node),
            (true, true) => Waiting::Fence(node),
        })
    }
}
