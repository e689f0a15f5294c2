//! Fail-over of whole nodes: beacons, its word to the engine and the engine's to it; and bad luck at the
//! moments that matter for leases.

use super::*;

impl World {
    /// Does the data plane turn, and no disk request is overdue?
    pub(super) fn turns(&self, id: NodeId) -> bool {
        let Some(control) = &self.control else {
            return true;
        };
        let node = self.node(id);
        let oldest = node.ops.values().map(|op| op.since).min();
        let stalled = node.stalled_until > self.now
            && self.now.ms_since(node.stalled_since) >= control.whole.turn_limit_ms;
        let overdue = oldest.is_some_and(|at| self.now.ms_since(at) >= control.whole.disk_limit_ms);
        !stalled && !overdue
    }

    pub(super) fn failover(&mut self, id: NodeId, event: failover::Event<'_>) {
        let now = self.clock(id);
        let Some(mind) = self.mind(id) else { return };
        let mut out = Vec::new();
        if let failover::Event::Document(document) = &event {
            mind.lease_ms = document.timings.lease_ms;
        }
        let agreed = match &event {
            failover::Event::Message(_, Message::Beacon { lease_ms, .. }) => {
                *lease_ms == mind.lease_ms
            }
            _ => true,
        };
        mind.failover.handle(now, event, &mut out);
        for action in out {
            match action {
                failover::Action::Send(_, Message::Answer { granted, .. })
                    if !agreed && !granted.is_empty() =>
                {
                    let what = format!("{id:?} grants leases of another length than it counts");
                    self.broken(Rule::Lease, what);
                    return;
                }
                failover::Action::Send(node, message) => {
                    self.post(id, node, Word::Beacon(id, message));
                }
                failover::Action::Granted {
                    node, epoch, sent, ..
                } => {
                    let event = api::Event::Granted { node, epoch, sent };
                    self.tell_engine(id, Lane::BeaconsToEngine, event);
                }
                failover::Action::Serve { epoch, .. } => {
                    self.say(|| format!("{id:?} may serve in {epoch:?}"));
                    self.tell_engine(id, Lane::BeaconsToEngine, api::Event::Serve { epoch });
                }
                failover::Action::Promote { drop, over, .. } => {
                    self.say(|| format!("{id:?} stands in without {drop:?} over {over:?}"));
                    let command = api::Command::Promote { drop, over };
                    self.failover_command(id, command, 0);
                    self.haunt_promotion(id);
                }
                failover::Action::Demote { .. } => {
                    self.failover_command(id, api::Command::Demote { to: None }, 1);
                }
                failover::Action::Fence { node } => self.shoot(id, node),
            }
        }
        self.arm(id);
    }

    pub(super) fn failover_command(&mut self, id: NodeId, command: api::Command, kind: u64) {
        let Some(control) = &mut self.control else {
            return;
        };
        control.next += 1;
        let number = api::CommandId(FAILOVER_COMMANDS + control.next * 2 + kind);
        let event = api::Event::Command {
            id: number,
            command,
        };
        self.tell_engine(id, Lane::BeaconsToEngine, event);
    }

    /// The engine has answered a command of fail-over's.
    pub(crate) fn failover_answered(&mut self, id: NodeId, command: u64) {
        if command.is_multiple_of(2) {
            self.pass(id, Lane::EngineToBeacons, Word::Ended);
        }
    }

    /// Tells fail-over how the engine's replica stands, when that changes.
    pub(crate) fn tell_standing(&mut self, id: NodeId) {
        if !self.is_whole() {
            return;
        }
        let node = self.node(id);
        let Some(standing) = node.core.as_ref().map(|core| core.standing()) else {
            return;
        };
        let member = node.member();
        let Some(mind) = self.mind(id) else { return };
        if mind.told == Some(standing) {
            return;
        }
        mind.told = Some(standing);
        let local = Local {
            member,
            failed: standing.failed,
            primary: standing.primary,
            required: standing.required,
        };
        self.pass(id, Lane::EngineToBeacons, Word::Local(local));
    }

    /// A primary whose admit is decided hears nothing any more.
    pub(crate) fn haunt_admit(&mut self, id: NodeId) {
        if !self.faults.is_active() || !self.rng.percent(10) {
            return;
        }
        self.say(|| format!("!! {id:?} hears nothing"));
        let us = self.rng.between(50_000, 2_500_000);
        for at in 0..self.nodes.len() {
            let other = self.nodes[at].id;
            if other != id {
                self.net.cut(other, id);
                self.after_us(us, Occurrence::Repair(Repair::Link(other, id)));
            }
        }
    }

    /// The old primary is heard again when it is too late, and hears nobody but the new one.
    pub(super) fn haunt_promotion(&mut self, id: NodeId) {
        let Some(old) = self.record().primary.filter(|old| *old != id) else {
            return;
        };
        if !self.faults.is_active() || !self.rng.percent(30) {
            return;
        }
        self.say(|| format!("!! {old:?} is joined with {id:?} only"));
        let us = self.rng.between(50_000, 1_500_000);
        for at in 0..self.nodes.len() {
            let other = self.nodes[at].id;
            if other == id {
                self.repair(Repair::Link(old, id));
                self.repair(Repair::Link(id, old));
            } else if other != old {
                self.net.cut(other, old);
                self.net.cut(old, other);
                self.after_us(us, Occurrence::Repair(Repair::Link(other, old)));
                self.after_us(us, Occurrence::Repair(Repair::Link(old, other)));
            }
        }
    }
}
