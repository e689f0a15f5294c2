//! Beacons out, answers in, and the answers to other nodes' beacons.

use super::*;

impl Failover {
    /// Has the node answered something that was sent within the last lease interval?
    pub(super) fn reaches(&self, now: Time, node: NodeId) -> bool {
        let peer = self.peers.get(&node);
        peer.and_then(|peer| peer.answered)
            .is_some_and(|sent| now.ms_since(sent) < self.settings.lease_ms)
    }

    /// Leases that this node asks for now. A primary that can't have its lease, because somebody whom
    /// it requires does not answer, asks for none: else the others would never take over from it.
    fn wanted(&self, now: Time) -> Vec<(NodeSet, Lease)> {
        if !self.turning && !mutated(Mutation::BeaconsDespiteDeadPlane) {
            return Vec::new();
        }
        let mut leases = Vec::new();
        for (&resource, subject) in &self.subjects {
            let Some(local) = &subject.local else {
                continue;
            };
            let Some(epoch) = local.primary.filter(|_| !local.failed) else {
                continue;
            };
            let others = local.required.without(self.me);
            if others.iter().all(|node| self.reaches(now, node)) {
                leases.push((subject.replicas, (resource, epoch)));
            }
        }
        leases
    }

    pub(super) fn send_beacons(&self, now: Time, out: &mut Vec<Action>) {
        let wanted = self.wanted(now);
        let faulty: Vec<ResourceId> = self
            .subjects
            .iter()
            .filter(|(_, subject)| {
                let here = subject.replicas.contains(self.me);
                here && (!self.turning || subject.local.is_none_or(|local| local.failed))
            })
            .map(|(&resource, _)| resource)
            .collect();
        for &node in self.peers.keys() {
            let leases = wanted
                .iter()
                .filter(|(replicas, _)| replicas.contains(node))
                .map(|&(_, lease)| lease)
                .collect();
            let message = Message::Beacon {
                run: self.run,
                sent: now,
                lease_ms: u32::try_from(self.settings.lease_ms).unwrap_or(u32::MAX),
                leases,
                faulty: faulty.clone(),
            };
            out.push(Action::Send(node, message));
        }
    }

    pub(super) fn message(
        &mut self,
        now: Time,
        from: NodeId,
        message: Message,
        out: &mut Vec<Action>,
    ) {
        if !self.peers.contains_key(&from) {
            // Not in the cluster, as far as this node knows.
            return;
        }
        match message {
            Message::Beacon {
                run,
                sent,
                lease_ms,
                leases,
                faulty,
            } => {
                if let Some(peer) = self.peers.get_mut(&from) {
                    peer.faulty = faulty.into_iter().collect();
                }
                // One of the two has not heard yet of another length.
                let agreed = u64::from(lease_ms) == self.settings.lease_ms
                    || mutated(Mutation::UnequalLeaseGranted);
                let granted = leases
                    .into_iter()
                    .filter(|&lease| agreed && self.grant(now, from, lease))
                    .collect();
                let answer = Message::Answer { run, sent, granted };
                out.push(Action::Send(from, answer));
            }
            Message::Answer { run, sent, granted } => {
                if run != self.run || sent > now {
                    return;
                }
                let counted = if mutated(Mutation::LeaseFromReceipt) {
                    now
                } else {
                    sent
                };
                if let Some(peer) = self.peers.get_mut(&from) {
                    let lease_ms = self.settings.lease_ms;
                    let first = peer
                        .answered
                        .is_none_or(|before| now.ms_since(before) >= lease_ms);
                    peer.answered = peer.answered.max(Some(sent));
                    if first {
                        // Leases that were not asked for without this node may be now.
                        self.next_beacon = now;
                    }
                }
                for (resource, epoch) in granted {
                    let local = self.subjects.get(&resource).and_then(|s| s.local);
                    if local.is_some_and(|local| local.primary == Some(epoch)) {
                        out.push(Action::Granted {
                            resource,
                            node: from,
                            epoch,
                            sent: counted,
                        });
                    }
                }
            }
        }
    }

    /// May the node have this lease of this one? Then this one does not serve before it has run out.
    fn grant(&mut self, now: Time, node: NodeId, (resource, epoch): Lease) -> bool {
        let Some(subject) = self.subjects.get_mut(&resource) else {
            return false;
        };
        let late = mutated(Mutation::LateBeaconAcknowledged);
        if subject.promoting.is_some() && !late {
            // It has proposed itself: what comes now is too late.
            return false;
        }
        if let Some(record) = &subject.record {
            let superseded = record.epoch > epoch;
            let other = record.epoch == epoch && record.primary != Some(node);
            if (superseded || other) && !late {
                return false;
            }
        }
        subject.ready_since = None;
        let silence = self.settings.silence_ms();
        subject
            .grants
            .retain(|grant| grant.epoch != epoch && now < grant.at.plus_ms(silence));
        subject.grants.push(Grant {
            epoch,
            node,
            at: now,
        });
        true
    }

    /// The last moment at which a lease that this node granted to another one may still run.
    pub(super) fn leases_run_until(&self, subject: &Subject) -> Time {
        let silence = self.settings.silence_ms();
        let granted = subject.grants.iter().map(|grant| grant.at.plus_ms(silence));
        // What the process before this one granted is not known.
        let before = if mutated(Mutation::NoGraceAfterRestart) {
            Time(0)
        } else {
            self.started.plus_ms(silence)
        };
        granted.max().map_or(before, |until| until.max(before))
    }
}
