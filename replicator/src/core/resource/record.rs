//! Records that are known to be committed, and what follows from each: who holds the same, and whether this
//! node has become primary or ceased to be.

use super::*;

impl<P: Payload> Resource<P> {
    /// A record is known to be committed.
    pub(super) fn learn(&mut self, step: &mut Step<'_, P>, record: Record) {
        if record.resource != self.identity.resource
            || self
                .record
                .as_ref()
                .is_some_and(|known| known.generation >= record.generation)
        {
            return;
        }
        let before = self.record.replace(record);
        let Some(record) = self.record.clone() else {
            return;
        };
        let record = &record;
        // Another epoch, or no primary any more: this node's own is over.
        if let Role::Primary(primary) = &mut self.role
            && (record.epoch != primary.epoch() || record.primary != Some(self.identity.node))
        {
            let demoted = record.primary.is_none() && record.epoch == primary.epoch();
            let why = match demoted {
                _ if self.local.failed() => StopReason::DiskFailed,
                true if self.closing.is_some() => StopReason::Closed,
                true => StopReason::Demoted,
                false => StopReason::Superseded,
            };
            primary.stop(
                &mut Cx {
                    step,
                    local: &mut self.local,
                    record,
                },
                why,
            );
            self.collect(step);
            self.local.live_becomes_old();
            self.role = Role::Secondary(Box::new(Secondary::new(self.local.volumes())));
        }
        self.forwarder.new_record(step, record);
        if let Role::Secondary(secondary) = &mut self.role
            && secondary
                .primary()
                .is_some_and(|p| record.primary != Some(p))
        {
            secondary.end_session(step, &mut self.local);
        }
        for node in self.local.bound_nodes() {
            if !record.replicas.contains(node) && !mutated(Mutation::RemovedKeepsItsBits) {
                // No replica any more: should it become one again it lacks everything.
                self.local.mark_all(step, node);
            }
        }
        let current = match &self.role {
            Role::Secondary(secondary) => secondary.is_led_by(record),
            Role::Primary(_) => true,
        };
        self.note_members(step, record, current);
        if let (Role::Primary(primary), Some(before)) = (&mut self.role, &before) {
            let cx = &mut Cx {
                step,
                local: &mut self.local,
                record,
            };
            primary.new_record(cx, before);
        }
        self.check_promoted(step, record);
    }

    /// What the record says of who holds the same: bits are kept for a member's disk, and there are
    /// none between members (RULES 7: entering a committed admit clears them). A process that has
    /// restarted may hear of old records first, which say nothing of bits that were set since; so only
    /// a record counts that is `current`: this node's own as primary, or one that comes while it is
    /// in session with the primary, who made it.
    pub(super) fn note_members(&mut self, step: &mut Step<'_, P>, record: &Record, current: bool) {
        let me = self.identity;
        let is_member = record
            .member(me.node)
            .is_some_and(|m| m.disk == me.disk && m.incarnation == me.incarnation);
        if !is_member {
            return;
        }
        let forced = record.in_sync.len() == 1 && self.local.history() != record.history;
        if forced && record.epoch > Epoch(0) && !mutated(Mutation::ForceWithoutBits) {
            // An operator took this replica's bytes for the truth: nobody else has them.
            for node in record.replicas.without(me.node).iter() {
                self.local.mark_all(step, node);
            }
        }
        for member in record
            .in_sync
            .iter()
            .filter(|m| current && m.node != me.node)
        {
            self.local.bind(step, member.node, member.disk, true);
        }
        self.local.set_history(step, record.history);
    }

    /// Did this node's own promotion commit? Nothing else makes it primary: neither a record from
    /// before its restart nor one whose epoch it has promised already.
    pub(super) fn check_promoted(&mut self, step: &mut Step<'_, P>, record: &Record) {
        let mine = self.promotion.as_ref().is_some_and(|p| {
            p.based_on
                .is_some_and(|g| record.epoch == Epoch(g.next().0))
        }) && record.epoch > self.local.promised()
            && record.member(self.identity.node) == Some(&self.member());
        let resumed = mutated(Mutation::ResumePrimaryship) && record.epoch > Epoch(0);
        if record.primary != Some(self.identity.node)
            || !(mine || resumed)
            || matches!(self.role, Role::Primary(_))
        {
            if self.promotion.as_ref().is_some_and(|p| p.ended_by(record)) {
                self.end_promotion(step, Err(CommandError::Superseded(record.epoch)));
            } else if let Some(promotion) = &mut self.promotion {
                // Decided otherwise: proposed again, based on this record.
                promotion.based_on = None;
                promotion.next = step.now;
            }
            return;
        }
        self.end_promotion(step, Ok(()));
        if let Role::Secondary(secondary) = &mut self.role {
            secondary.stop(step, &mut self.local);
        }
        self.note_members(step, record, true);
        let cx = &mut Cx {
            step,
            local: &mut self.local,
            record,
        };
        let primary = Primary::begin(cx, self.settings, self.forwarder.follows());
        self.role = Role::Primary(Box::new(primary));
    }

    pub(super) fn refused(
        &mut self,
        step: &mut Step<'_, P>,
        based_on: Generation,
        refusal: &vocabulary::Refusal,
    ) {
        if let (Role::Primary(primary), Some(record)) = (&mut self.role, &self.record) {
            let cx = &mut Cx {
                step,
                local: &mut self.local,
                record,
            };
            primary.proposal_refused(cx, based_on, refusal);
            return;
        }
        let stale = matches!(refusal, vocabulary::Refusal::Stale { .. });
        if let Some(promotion) = &mut self.promotion
            && promotion.based_on == Some(based_on)
        {
            if stale {
                promotion.based_on = None;
                promotion.next = step.now;
            } else {
                self.end_promotion(step, Err(CommandError::Refused(refusal.clone())));
            }
        }
    }

    pub(super) fn end_promotion(
        &mut self,
        step: &mut Step<'_, P>,
        result: Result<(), CommandError>,
    ) {
        if let Some(promotion) = self.promotion.take() {
            let id = promotion.command;
            step.emit(Action::CommandDone { id, result });
        }
    }
}
