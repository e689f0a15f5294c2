//! That clients are served again soon once nothing is wrong any more (RULES 10): every machine is on and
//! reaches every other, the resource is to be up, and a member of its in-sync set is there. Of whole nodes:
//! it is about detection and fail-over.

use crate::rules::{Rule, valid_members};
use crate::world::World;
use controller::core::NodeState;
use vocabulary::Time;

/// Longest time without service, in ms: leases of 500 ms and the drift bound, the order among
/// candidates, an election, a promotion, connections that are found dead, and writes that wait for an
/// eviction. The time-outs of the simulated cores are of that order, see `run`.
pub const SERVED_WITHIN_MS: u64 = 5_000;

/// What is known of the time without service.
#[derive(Clone, Copy, Debug, Default)]
pub struct Liveness {
    /// Since when nothing stands in the way.
    ready: Option<Time>,
    /// Since when nobody serves.
    unserved: Option<Time>,
    /// The longest time without service while nothing stood in the way, in ms.
    pub longest_ms: u64,
}

impl World {
    /// Nothing that a client would have to wait for.
    fn nothing_stands_in_the_way(&self) -> bool {
        let Some(document) = self.control.as_ref().map(|c| c.document()) else {
            return false;
        };
        let record = self.record();
        let up = document
            .resources
            .first()
            .is_some_and(|r| r.up && r.next.is_none());
        let online = document.nodes.iter().all(|n| n.state == NodeState::Online);
        let informed = |n: &crate::node::Node| {
            let holds = record.replicas.contains(n.id);
            !holds || n.core.as_ref().is_some_and(|core| core.known().is_some())
        };
        let machines = self
            .nodes
            .iter()
            .all(|n| n.is_running() && !n.disk_failed && informed(n));
        // A member whose caches were lost is brought up to date first, where none may be left out.
        let valid = valid_members(record, &self.nodes)
            .filter(|n| {
                record
                    .member(n.id)
                    .is_some_and(|m| m.incarnation == n.incarnation)
            })
            .count();
        let members = valid == record.in_sync.len() || record.min_redundancy == 1 && valid > 0;
        self.operator.healing && up && online && machines && members
    }

    /// Looks whether clients are served.
    pub(crate) fn look_at_service(&mut self) {
        let now = self.now;
        let serves = self.serving().is_some();
        let ready = self.nothing_stands_in_the_way();
        let state = &mut self.operator.liveness;
        if !ready {
            (state.ready, state.unserved) = (None, None);
            return;
        }
        let since = *state.ready.get_or_insert(now);
        let unserved = if serves {
            state.unserved = None;
            None
        } else {
            Some(*state.unserved.get_or_insert(since))
        };
        let oldest = self.clients.pending.values().map(|p| p.at.max(since)).min();
        let Some(at) = unserved.into_iter().chain(oldest).min() else {
            return;
        };
        let ms = now.ms_since(at);
        let state = &mut self.operator.liveness;
        state.longest_ms = state.longest_ms.max(ms);
        if ms > SERVED_WITHIN_MS {
            let why = self.why_not_at_rest().unwrap_or_default();
            let what = format!("no service for {ms} ms though nothing stands in the way: {why}");
            self.broken(Rule::Bounded, what);
        }
    }
}
