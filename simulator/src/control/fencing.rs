//! Two voters without a witness (RULES section 3): fence agents that switch a machine off, fail, or take
//! too long with or without having done it; and an operator who says that a machine is off. Mirrors the
//! node's fencer.

use super::*;
use crate::node::State;
use controller::core::Fencing;

/// An agent that has not answered by then has failed, in s.
const TIMEOUT_S: u32 = 2;

/// The agent that every document names.
pub(super) fn agent() -> Fencing {
    Fencing {
        agent: "simulated".to_owned(),
        parameters: Vec::new(),
        timeout_s: TIMEOUT_S,
    }
}

impl World {
    /// A node has another one switched off. What becomes of it is a matter of luck.
    pub(super) fn shoot(&mut self, id: NodeId, node: NodeId) {
        let off_us = self.rng.between(20_000, 400_000);
        let says_us = off_us + self.rng.between(1_000, 300_000);
        let late_us = u64::from(TIMEOUT_S) * 1_000_000;
        let (hits, says, after_us) = match self.rng.below(10) {
            _ if !self.faults.is_active() => (true, true, says_us),
            0 | 1 => (false, false, off_us),
            2 => (false, false, late_us),
            3 => (true, false, late_us),
            _ => (true, true, says_us),
        };
        self.say(|| format!("{id:?} shoots {node:?}: hits: {hits}, says so: {says}"));
        if hits {
            let anybody = Process { node, run: ANYBODY };
            self.after_us(
                off_us,
                Occurrence::Word(anybody, Box::new(Word::SwitchedOff)),
            );
            if self.faults.is_active() {
                // Somebody switches it on again, at times before the agent has said that it was off.
                let soonest = if self.rng.percent(10) {
                    off_us
                } else {
                    says_us
                };
                let on_us = soonest + self.rng.between(1_000, 3_000_000);
                self.after_us(on_us, Occurrence::Repair(Repair::Power(node)));
            }
        }
        let process = self.node(id).process();
        let word = Word::Shot(node, says);
        self.after_us(after_us, Occurrence::Word(process, Box::new(word)));
    }

    /// What became of it.
    pub(super) fn shot(&mut self, id: NodeId, node: NodeId, off: bool) {
        if !off {
            return self.failover(id, failover::Event::FenceFailed(node));
        }
        self.failover(id, failover::Event::Fenced(node));
        let leader = self.leader_known_to(id);
        let Some(mind) = self.mind(id) else { return };
        let Some(known) = &mind.known else { return };
        let lost = known.voters.iter().find(|voter| voter.node == node);
        let Some(voter) = lost
            .map(|voter| voter.id)
            .filter(|_| known.voters.len() == 2 && leader.is_none())
        else {
            return;
        };
        if mind.voter.may_go_on_without(voter).is_ok() {
            self.say(|| format!("{id:?} goes on without {node:?}"));
            let removal = Command::RemoveVoter { id: voter };
            self.voter(id, Event::Fenced { voter, removal });
        }
    }

    /// The operator sees that one of two machines is off, and says so to the other one.
    pub(super) fn confirm_dead(&mut self) {
        let voters = self.control.as_ref().map(|c| c.newest.voters.clone());
        let Some([a, b]) = voters
            .as_deref()
            .and_then(|v| <&[Voter; 2]>::try_from(v).ok())
        else {
            return;
        };
        for (dead, alive) in [(a.node, b.node), (b.node, a.node)] {
            let off = matches!(self.node(dead).state, State::Off);
            if off && self.node(alive).is_running() {
                self.say(|| format!("operator says to {alive:?} that {dead:?} is off"));
                self.shot(alive, dead, true);
                return;
            }
        }
    }
}
