//! What the operator of whole nodes asks the configuration store for.

use super::*;

impl World {
    /// The operator asks for a change through some node.
    pub fn operate(&mut self, command: Command) {
        let running: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|n| n.is_running())
            .map(|n| n.id)
            .collect();
        if let Some(id) = self.rng.pick(&running).copied() {
            self.say(|| format!("operator asks {id:?} for {command:?}"));
            self.ask(id, command, Origin::Operator);
        }
    }

    /// Something that an operator may do at any time.
    pub(crate) fn operate_at_random(&mut self) {
        let Some(control) = &self.control else { return };
        let resource = control.resource;
        let voters = control.newest.voters.clone();
        let node = self.nodes[self.rng.index(self.replicas())].id;
        let command = match self.rng.below(7) {
            0 => Command::Up {
                resource,
                next: Some(node),
            },
            1 => {
                if let Some(primary) = self.serving() {
                    self.command(primary, api::Command::Demote { to: Some(node) });
                }
                return;
            }
            2 => Command::Up {
                resource,
                next: None,
            },
            3 => Command::Down { resource },
            // It asks for its vote again.
            4 if voters.len() >= 3 => match self.rng.pick(&voters) {
                Some(voter) => Command::RemoveVoter { id: voter.id },
                None => return,
            },
            5 => Command::SetNodeState {
                node,
                state: NodeState::Standby,
            },
            _ => Command::SetNodeState {
                node,
                state: NodeState::Maintenance,
            },
        };
        self.operate(command);
    }

    /// What the operator sees to: nothing is left down or on standby for long, and where the last good
    /// copy is gone for good only a word helps.
    pub(crate) fn operate_whole(&mut self) {
        let healing = self.operator.healing;
        let Some(control) = &self.control else { return };
        let document = Rc::clone(&control.newest);
        let patient = !healing && !self.rng.percent(10);
        if patient {
            return;
        }
        self.confirm_dead();
        for node in &document.nodes {
            if node.state != NodeState::Online {
                let state = NodeState::Online;
                self.operate(Command::SetNodeState {
                    node: node.id,
                    state,
                });
            }
        }
        if let Some(resource) = document.resources.first() {
            self.restore_shape(resource);
            if !resource.up || resource.next.is_some() {
                let (resource, next) = (resource.id, None);
                self.operate(Command::Up { resource, next });
            }
        }
        if healing {
            let record = self.record().clone();
            self.force_if_lost(&record);
        }
    }
}
