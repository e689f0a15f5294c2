//! Who of two voters has the other one switched off, and when (RULES section 3).

use super::*;
use crate::core::Fencing;
use crate::core::consensus::{Voter, VoterId};

/// One of two voters, `me`; node 1 serves r0. It has heard nothing of the other one since its start.
struct Side {
    core: Failover,
    now: Time,
    shots: Vec<Time>,
}

impl Side {
    fn new(me: u8, agents: bool, change: impl FnOnce(&mut Document)) -> Self {
        let mut document = World::served_by_1(2, 2, 30).document.clone();
        document.voters = [1, 2]
            .map(|n| Voter {
                node: id(n),
                id: VoterId(u64::from(n)),
            })
            .to_vec();
        for node in &mut document.nodes {
            node.fencing = agents.then(|| Fencing {
                agent: "/bin/off".to_owned(),
                parameters: Vec::new(),
                timeout_s: 60,
            });
        }
        change(&mut document);
        let mut side = Self {
            core: Failover::new(id(me), 7, Settings::default(), Time(0)),
            now: Time(0),
            shots: Vec::new(),
        };
        side.event(Event::Document(&document));
        side.event(Event::Store(false));
        side
    }

    fn event(&mut self, event: Event<'_>) {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        let shots = out.iter().filter(|a| matches!(a, Action::Fence { .. }));
        self.shots.extend(shots.map(|_| self.now));
    }

    fn run_ms(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = self.now.plus_ms(10);
            self.event(Event::Tick);
        }
    }

    fn other(&self) -> NodeId {
        if self.core.me == id(1) { id(2) } else { id(1) }
    }
}

#[test]
fn the_side_that_serves_shoots_first() {
    let settings = Settings::default();
    for (me, delay_ms) in [(1, 0), (2, settings.fence_delay_ms)] {
        let mut side = Side::new(me, true, |_| ());
        side.event(Event::Current);
        side.run_ms(settings.silence_ms() + delay_ms - 20);
        assert_eq!(side.shots, [], "node {me}");
        side.run_ms(100);
        assert_eq!(side.shots.len(), 1, "node {me}");
    }
}

#[test]
fn a_shot_is_not_repeated_before_it_has_failed_and_then_after_a_while() {
    let mut side = Side::new(1, true, |_| ());
    side.event(Event::Current);
    side.run_ms(60_000);
    assert_eq!(side.shots.len(), 1);
    let other = side.other();
    side.event(Event::FenceFailed(other));
    side.run_ms(9_000);
    assert_eq!(side.shots.len(), 1);
    side.run_ms(2_000);
    assert_eq!(side.shots.len(), 2);
}

#[test]
fn nobody_shoots_without_an_agent_or_in_maintenance() {
    let mut side = Side::new(1, false, |_| ());
    side.event(Event::Current);
    side.run_ms(60_000);
    assert_eq!(side.shots, []);
    let other = side.other();
    assert_eq!(side.core.stuck(side.now), Some(Waiting::ConfirmDead(other)));
    for node in 0..2 {
        let mut side = Side::new(1, true, |d| d.nodes[node].state = NodeState::Maintenance);
        side.event(Event::Current);
        side.run_ms(60_000);
        assert_eq!(side.shots, [], "node {node} in maintenance");
    }
}

fn shots_of_a_booting_node() -> usize {
    let mut side = Side::new(1, true, |_| ());
    side.run_ms(600_000);
    side.shots.len()
}

#[test]
fn a_node_that_was_not_brought_up_to_date_since_its_start_never_shoots() {
    assert_eq!(shots_of_a_booting_node(), 0);
    let mut side = Side::new(1, true, |_| ());
    side.run_ms(2_000);
    let other = side.other();
    assert_eq!(side.core.stuck(side.now), Some(Waiting::Peer(other)));
}

#[cfg(feature = "mutations")]
#[test]
fn a_booting_node_that_shoots_is_noticed() {
    use crate::core::mutation::{Mutation, activate};
    activate(Some(Mutation::BootingNodeFences));
    let shots = shots_of_a_booting_node();
    activate(None);
    assert_eq!(shots, 1, "the fault has no effect");
}

#[test]
fn leases_granted_after_the_shot_are_not_forgotten_with_the_machine() {
    let mut side = Side::new(2, true, |_| ());
    side.event(Event::Current);
    side.run_ms(10_000);
    assert_eq!(side.shots.len(), 1);
    // The machine is off and on again before the agent has answered, and asks for a lease.
    let epoch = side.core.subjects[&R].record.as_ref().unwrap().epoch;
    let beacon = Message::Beacon {
        run: 8,
        sent: Time(1),
        lease_ms: 500,
        leases: vec![(R, epoch)],
        faulty: Vec::new(),
    };
    side.event(Event::Message(id(1), beacon));
    assert_eq!(side.core.subjects[&R].grants.len(), 1);
    side.event(Event::Fenced(id(1)));
    assert_eq!(side.core.subjects[&R].grants.len(), 1);
}
