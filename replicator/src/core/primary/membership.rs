//! Changes of the record by the primary: members leave (evict), replicas enter (admit), volumes
//! grow, the primary stops (demote). One proposal is open at a time and stays open until a record of
//! a higher generation is known to be committed (RULES section 1).

use super::*;
use crate::core::message::RangesOf;
use crate::core::secondary::send_ranges;
use vocabulary::{Change, Generation, HistoryId, Member, Refusal};

#[derive(Clone, Debug)]
pub(super) struct Proposal {
    based_on: Generation,
    change: Change,
    next: Time,
    wait_ms: u64,
}

/// A replica on its way into the in-sync set.
#[derive(Clone, Debug)]
pub(crate) struct Admitting {
    pub(super) member: Member,
    pub(super) stage: AdmitStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdmitStage {
    /// Required already; the rest is being copied.
    Copying,
    /// All is copied and has to be stable from this place on.
    Flushing { after: Seq },
    /// The bits for third replicas are on their way.
    HandingOver { id: u64, done: bool },
    /// Decided by the store alone.
    Proposed,
}

/// A demotion that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Demotion {
    pub(super) command: CommandId,
    deadline: Time,
    to: Option<NodeId>,
}

#[derive(Clone, Debug)]
pub(super) struct Resize {
    pub(super) command: CommandId,
    volume: VolumeId,
    size_bytes: u64,
    waiting: NodeSet,
    proposed: bool,
    deadline: Time,
}

impl<P: Payload> Primary<P> {
    fn propose(&mut self, cx: &mut Cx<'_, '_, P>, change: Change) {
        let based_on = cx.record.generation;
        cx.step.emit(Action::Propose {
            based_on,
            change: change.clone(),
        });
        let wait_ms = self.settings.propose_again_ms;
        let next = cx.now().plus_ms(wait_ms);
        self.proposal = Some(Proposal {
            based_on,
            change,
            next,
            wait_ms,
        });
    }

    pub(super) fn tick_proposal(&mut self, cx: &mut Cx<'_, '_, P>) {
        let now = cx.now();
        let longest = self.settings.propose_again_ms * 10;
        if let Some(proposal) = &mut self.proposal
            && proposal.next <= now
        {
            proposal.wait_ms = (proposal.wait_ms * 2).min(longest);
            proposal.next = now.plus_ms(proposal.wait_ms);
            let (based_on, change) = (proposal.based_on, proposal.change.clone());
            cx.step.emit(Action::Propose { based_on, change });
        }
        if self
            .resize
            .as_ref()
            .is_some_and(|r| !r.proposed && r.deadline <= now)
        {
            let waiting = self.resize.as_ref().and_then(|r| r.waiting.iter().next());
            let error = waiting.map_or(CommandError::Undecided, CommandError::Failed);
            self.end_resize(cx, Err(error));
        }
    }

    /// The store refused for good what was based on this generation.
    pub(crate) fn proposal_refused(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        based_on: Generation,
        refusal: &Refusal,
    ) {
        if matches!(refusal, Refusal::Stale { .. })
            || self
                .proposal
                .as_ref()
                .is_none_or(|p| p.based_on != based_on)
        {
            // A newer record is on its way and decides it.
            return;
        }
        let Some(proposal) = self.proposal.take() else {
            return;
        };
        if matches!(proposal.change, Change::Resize { .. }) {
            self.end_resize(cx, Err(CommandError::Refused(refusal.clone())));
        }
        if matches!(proposal.change, Change::Admit { .. }) {
            self.admitting = None;
            self.refresh(cx);
        }
        self.changed = true;
    }

    pub(super) fn proposed_evict(&self) -> NodeSet {
        match self.proposal.as_ref().map(|p| &p.change) {
            Some(Change::Evict { node }) => NodeSet::only(*node),
            _ => NodeSet::EMPTY,
        }
    }

    /// A newer record is in force.
    pub(super) fn membership_changed(&mut self, cx: &mut Cx<'_, '_, P>, before: &Record) {
        let record = cx.record;
        if self
            .proposal
            .as_ref()
            .is_some_and(|p| p.based_on < record.generation)
        {
            self.proposal = None;
        }
        if let Some(admitting) = &self.admitting {
            let member = admitting.member;
            if record.member(member.node) == Some(&member) {
                self.admitting = None;
                self.admitted(cx, member.node);
            } else if admitting.stage == AdmitStage::Proposed {
                // Decided otherwise: tried again from the start of the end.
                if self.peers.get(&member.node).is_some_and(Peer::is_live) {
                    self.admitting = Some(Admitting {
                        member,
                        stage: AdmitStage::Copying,
                    });
                } else {
                    self.admitting = None;
                }
            }
        }
        for (index, (old, new)) in before.sizes.iter().zip(&record.sizes).enumerate() {
            let Ok(index) = u16::try_from(index) else {
                continue;
            };
            if old != new {
                self.resized(cx, VolumeId(index), *old, *new);
            }
        }
        let nodes: Vec<NodeId> = self
            .invalidate_commands
            .keys()
            .copied()
            .filter(|n| record.member(*n).is_none())
            .collect();
        for node in nodes {
            self.invalidated(cx, node);
        }
    }

    /// What the record ought to be, one change at a time.
    pub(super) fn check_membership(&mut self, cx: &mut Cx<'_, '_, P>) {
        if cx.local.failed() && !cx.other_members().is_empty() && self.stage != Stage::Demoting {
            self.abdicate(cx);
            return;
        }
        match self.stage {
            Stage::Promising => return,
            Stage::Demoting => {
                // Another change of the record came first.
                if self.proposal.is_none() {
                    self.propose_demotion(cx);
                }
                return;
            }
            Stage::Gathering | Stage::Serving | Stage::Draining => {}
        }
        self.advance_admit(cx);
        if self.proposal.is_none()
            && let Some(node) = self.member_to_evict(cx)
        {
            self.propose(cx, Change::Evict { node });
            if mutated(Mutation::AckWhileEvictProposed) {
                self.refresh(cx);
            }
        }
        if self.proposal.is_none() && self.admitting.is_none() {
            self.start_admit(cx);
        }
        self.propose_resize(cx);
    }

    // ---- evict ----

    fn member_to_evict(&self, cx: &Cx<'_, '_, P>) -> Option<NodeId> {
        let left = cx.record.in_sync.len().saturating_sub(1);
        if left < usize::from(cx.record.min_redundancy.max(1)) {
            return None;
        }
        let now = cx.now();
        let lost = cx.other_members().iter().find(|node| {
            let Some(peer) = self.peers.get(node) else {
                return false;
            };
            let lost = peer.lost_since.is_some_and(|since| {
                peer.refused && !matches!(peer.link, Link::Greeting(_))
                    || now.ms_since(since) >= self.settings.evict_after_ms
            });
            let other = peer.is_live()
                && peer.identity.is_some()
                && peer.identity.as_ref() != cx.record.member(*node);
            lost && !peer.is_live()
                || peer.disk_failed
                || peer.blocked
                || other
                || self.invalidate_commands.contains_key(node)
        });
        lost.or_else(|| {
            // The one that has kept its lease back for longest: without it nobody else is asked for one.
            let owing = cx.other_members().iter();
            let owing = owing.filter_map(|node| Some((self.lease_owed(cx, node)?, node)));
            owing.min().map(|(_, node)| node)
        })
    }

    // ---- admit ----

    fn start_admit(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.stage != Stage::Serving {
            return;
        }
        let ready = self.peers.values().filter(|peer| {
            peer.is_live()
                && self.leased_by(peer.node, cx.now())
                && !self.invalidate_commands.contains_key(&peer.node)
                && peer.sync.as_ref().is_some_and(|sync| {
                    !sync.reconciling && sync.left_bytes() <= self.settings.admit_below_bytes
                })
        });
        // A member whose new incarnation is to be renewed first: writes wait for it.
        let first = ready.min_by_key(|peer| cx.record.member(peer.node).is_none());
        let Some(member) = first.and_then(|p| p.identity) else {
            return;
        };
        // Every write under way is on its way to it, so that none is answered without it.
        if self
            .ops_under_way()
            .any(|(_, op)| !op.sent.contains(member.node))
        {
            return;
        }
        self.admitting = Some(Admitting {
            member,
            stage: AdmitStage::Copying,
        });
        self.refresh(cx);
        self.advance_admit(cx);
    }

    /// Moves the admit under way on as far as it goes now.
    fn advance_admit(&mut self, cx: &mut Cx<'_, '_, P>) {
        let Some(admitting) = &self.admitting else {
            return;
        };
        let member = admitting.member;
        let node = member.node;
        if self.lease_owed(cx, node).is_some() {
            // Requiring it holds up every answer.
            self.admitting_lost(cx, node);
        }
        let Some(admitting) = &self.admitting else {
            return;
        };
        match admitting.stage {
            AdmitStage::Copying => {
                let copied = self
                    .peers
                    .get(&node)
                    .is_some_and(|p| p.sync.as_ref().is_none_or(|s| s.left_bytes() == 0));
                if !copied || self.copier.busy_with(node) {
                    return;
                }
                let after = Seq(self.next_seq);
                self.set_admit_stage(AdmitStage::Flushing { after });
                self.want_flush();
                self.start_flush(cx);
                self.advance_admit(cx);
            }
            AdmitStage::Flushing { after } => {
                let stable = self.peers.get(&node).is_some_and(|p| p.stable >= after);
                if stable || mutated(Mutation::AdmitWithoutFlush) {
                    self.hand_over(cx, node);
                } else if self.flushes.under_way().is_none_or(|seq| seq < after) {
                    self.want_flush();
                    self.start_flush(cx);
                }
            }
            AdmitStage::HandingOver { done: true, .. }
                if self.proposal.is_none()
                    && !self.copier.busy_with(node)
                    && self.leased_by(node, cx.now()) =>
            {
                self.set_admit_stage(AdmitStage::Proposed);
                self.propose(cx, Change::Admit { member });
            }
            AdmitStage::HandingOver { .. } | AdmitStage::Proposed => {}
        }
    }

    fn set_admit_stage(&mut self, stage: AdmitStage) {
        if let Some(admitting) = &mut self.admitting {
            admitting.stage = stage;
        }
    }

    /// Gives the replica this primary's bits and window for every third replica, so that it can stand
    /// in for this primary.
    fn hand_over(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let id = self.next_seq;
        let third = cx
            .record
            .replicas
            .without(self.node)
            .without(node)
            .difference(self.required);
        let skip = mutated(Mutation::AdmitWithoutHandOver);
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let Link::Live(live) = &peer.link else { return };
        let conn = live.conn;
        if !skip {
            for third in third.iter() {
                let of = RangesOf::BitsFor {
                    node: third,
                    disk: cx.local.bound_disk(third),
                };
                let message = Message::Ranges {
                    of,
                    ranges: Vec::new(),
                };
                cx.step.emit(Action::Send { conn, message });
                // A grow that was called off may have left this store larger than the volume is.
                let sizes = &cx.record.sizes;
                let bits = cx.local.bit_ranges(third).filter_map(|at| {
                    let whole = ByteRange::between(0, *sizes.get(at.volume.index())?);
                    at.range
                        .intersection(whole)
                        .map(|range| VolumeRange { range, ..at })
                });
                send_ranges(cx.step, conn, of, bits);
            }
            let window = peers::volume_ranges(cx.record, &cx.local.window().sets());
            if !window.is_empty() {
                self.touch_peer(cx, node, &window);
            }
        }
        // All that is under way is on its way to it, and the rest is stable there.
        for message in [Message::Settled, Message::HandOverEnd { id }] {
            cx.step.emit(Action::Send { conn, message });
        }
        self.set_admit_stage(AdmitStage::HandingOver { id, done: false });
    }

    pub(super) fn handed_over(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, id: u64) {
        if let Some(admitting) = &mut self.admitting
            && admitting.member.node == node
            && admitting.stage == (AdmitStage::HandingOver { id, done: false })
        {
            admitting.stage = AdmitStage::HandingOver { id, done: true };
            self.advance_admit(cx);
        }
    }

    /// The session of a replica on its way in broke: that is called off, unless it is proposed.
    pub(super) fn admitting_lost(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let called_off = self.admitting.as_ref().is_some_and(|a| {
            a.member.node == node
                && (a.stage != AdmitStage::Proposed || mutated(Mutation::LargerSetDroppedOnTimeout))
        });
        if called_off {
            self.admitting = None;
            self.refresh(cx);
        }
    }

    fn admitted(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let old_after = Seq(self.next_seq);
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let sent_bytes = peer.sync.take().map_or(0, |s| s.sent_bytes);
        peer.joined = true;
        peer.old_after = old_after;
        cx.step.notice(Notice::ResyncDone { node, sent_bytes });
    }

    // ---- demote ----

    pub(super) fn start_demote(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        id: CommandId,
        to: Option<NodeId>,
    ) -> Option<Result<(), CommandError>> {
        if self.demotion.is_some() {
            return Some(Err(CommandError::Busy));
        }
        if let Some(node) = to.filter(|&node| cx.record.member(node).is_none()) {
            return Some(Err(Refusal::NotEligible { node }.into()));
        }
        self.demotion = Some(Demotion {
            command: id,
            deadline: cx.now().plus_ms(self.settings.command_timeout_ms),
            to,
        });
        let served = !matches!(self.stage, Stage::Promising | Stage::Gathering);
        self.stage = if served {
            Stage::Draining
        } else {
            Stage::Demoting
        };
        // What was never started needs no drain.
        for key in std::mem::take(&mut self.gated) {
            self.reply(cx, key, Err(ClientError::Shutdown));
        }
        if served {
            self.want_flush();
            self.check_drained(cx);
        }
        // Otherwise where replicas may differ is not settled, and a flush would forget it: their windows
        // stay as they are, for the next primary (RULES 8). `check_membership` proposes.
        None
    }

    /// A demotion that can't drain in time is called off; one that is proposed goes on.
    pub(super) fn tick_demote(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self
            .demotion
            .as_ref()
            .is_none_or(|demotion| demotion.deadline > cx.now())
        {
            return;
        }
        if self.stage == Stage::Draining {
            self.stage = Stage::Serving;
            // What came meanwhile was not taken: it is sent again.
            self.detach_all(cx);
        }
        if let Some(Demotion { command: id, .. }) = self.demotion.take() {
            let result = Err(CommandError::Undecided);
            cx.step.emit(Action::CommandDone { id, result });
        }
    }

    /// Proposes to demote once every request has ended and all is stable.
    pub(super) fn check_drained(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.stage != Stage::Draining
            || !self.requests.is_empty()
            || self.proposal.is_some()
            || self.admitting.is_some()
        {
            return;
        }
        if !self.all_released(cx) {
            self.want_flush();
            self.start_flush(cx);
            if !self.reconciling {
                return;
            }
        }
        self.stage = Stage::Demoting;
        self.propose_demotion(cx);
    }

    fn propose_demotion(&mut self, cx: &mut Cx<'_, '_, P>) {
        let to = self.demotion.as_ref().and_then(|demotion| demotion.to);
        let node = self.node;
        self.propose(cx, Change::Demote { node, to });
    }

    /// The disk failed and another member can take over: demote undrained.
    fn abdicate(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.proposal.is_some() {
            return;
        }
        self.stage = Stage::Demoting;
        let error = self.disk_error(cx);
        for (_, request) in std::mem::take(&mut self.requests) {
            self.finish(cx, request, Err(error));
        }
        self.gated.clear();
        self.forget_waiting();
        self.propose_demotion(cx);
    }

    // ---- reconcile ----

    pub(super) fn check_reconciled(&mut self, cx: &mut Cx<'_, '_, P>) {
        if !self.reconciling {
            return;
        }
        let members = cx.other_members();
        let left = self.peers.values().any(|p| {
            members.contains(p.node)
                && (p
                    .sync
                    .as_ref()
                    .is_some_and(|s| s.reconciling && s.left_bytes() > 0)
                    || self.copier.touches.keys().any(|(n, _)| *n == p.node))
        });
        if left {
            return;
        }
        self.reconciling = false;
        for set in &mut self.unreconciled {
            set.clear();
        }
        for peer in self.peers.values_mut() {
            if peer.sync.as_ref().is_some_and(|s| s.reconciling) {
                peer.sync = None;
            }
        }
        self.tell_settled(cx);
        self.settled_after = Seq(self.next_seq);
        self.want_flush();
        self.start_flush(cx);
    }

    /// Members that came to this epoch with another incarnation are renewed or gone: only now can none
    /// of them be promoted with other bytes than clients have read here, whoever loses power (RULES 8).
    pub(super) fn check_renewed(&mut self, cx: &mut Cx<'_, '_, P>) {
        let mut others = cx.record.in_sync.iter().filter(|m| m.node != self.node);
        if others.all(|m| self.peers.get(&m.node).is_some_and(|p| p.joined)) {
            for set in &mut self.unrenewed {
                set.clear();
            }
        }
    }

    // ---- invalidate ----

    pub(super) fn start_invalidate(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        id: CommandId,
        node: NodeId,
    ) -> Option<Result<(), CommandError>> {
        if node == self.node {
            return Some(Err(CommandError::LastCopy(node)));
        }
        if !cx.record.replicas.contains(node) {
            return Some(Err(CommandError::NoReplica(node)));
        }
        if self.invalidate_commands.contains_key(&node) {
            return Some(Err(CommandError::Busy));
        }
        let left = cx.record.in_sync.len().saturating_sub(1);
        if cx.record.member(node).is_some() && left < usize::from(cx.record.min_redundancy.max(1)) {
            return Some(Err(CommandError::LastCopy(node)));
        }
        self.invalidate_commands.insert(node, id);
        if cx.record.member(node).is_none() {
            self.invalidated(cx, node);
        }
        None
    }

    fn invalidated(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let Some(id) = self.invalidate_commands.remove(&node) else {
            return;
        };
        cx.local.mark_all(cx.step, node);
        self.lose(cx, node, crate::core::api::LossReason::Operator);
        cx.step.emit(Action::CommandDone { id, result: Ok(()) });
    }

    // ---- resize ----

    pub(super) fn start_resize(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        id: CommandId,
        volume: VolumeId,
        size_bytes: u64,
    ) -> Option<Result<(), CommandError>> {
        let Some(old) = cx.record.sizes.get(volume.index()) else {
            return Some(Err(CommandError::BadSize));
        };
        if size_bytes <= *old
            || size_bytes > crate::store::MAX_DATA_BYTES
            || !size_bytes.is_multiple_of(512)
        {
            return Some(Err(CommandError::BadSize));
        }
        if self.resize.is_some() {
            return Some(Err(CommandError::Busy));
        }
        if self.stage != Stage::Serving {
            return Some(Err(CommandError::NotPrimary));
        }
        let others = self.required.without(self.node);
        for node in others.iter() {
            if !self.peers.get(&node).is_some_and(Peer::is_live) {
                return Some(Err(CommandError::NotConnected(node)));
            }
        }
        for node in others.iter() {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.send(
                    cx.step,
                    Message::Grow {
                        id: 0,
                        volume,
                        size_bytes,
                    },
                );
            }
        }
        let deadline = cx.now().plus_ms(self.settings.command_timeout_ms);
        self.resize = Some(Resize {
            command: id,
            volume,
            size_bytes,
            waiting: self.required,
            proposed: false,
            deadline,
        });
        cx.local
            .grow(cx.step, Tag::Grow(u64::MAX), volume, size_bytes);
        None
    }

    pub(super) fn grown(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, ok: bool) {
        let Some(resize) = &mut self.resize else {
            return;
        };
        if ok {
            resize.waiting.remove(node);
            self.changed = true;
        } else {
            self.end_resize(cx, Err(CommandError::Failed(node)));
        }
    }

    pub(super) fn resize_lost(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let lost = self
            .resize
            .as_ref()
            .is_some_and(|r| !r.proposed && r.waiting.contains(node));
        if lost {
            self.end_resize(cx, Err(CommandError::NotConnected(node)));
        }
    }

    /// Every store of *required* has grown: commit the size. A replica that became required
    /// meanwhile has not.
    fn propose_resize(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.proposal.is_some() || self.admitting.is_some() {
            return;
        }
        let Some(resize) = &mut self.resize else {
            return;
        };
        if resize.proposed || !resize.waiting.is_empty() {
            return;
        }
        resize.proposed = true;
        let (volume, size_bytes) = (resize.volume, resize.size_bytes);
        self.propose(cx, Change::Resize { volume, size_bytes });
    }

    fn resized(&mut self, cx: &mut Cx<'_, '_, P>, volume: VolumeId, old: u64, new: u64) {
        cx.step.notice(Notice::Resized {
            volume,
            size_bytes: new,
        });
        if self
            .resize
            .as_ref()
            .is_some_and(|r| r.volume == volume && r.size_bytes == new)
        {
            self.end_resize(cx, Ok(()));
        }
        // Replicas outside *required* open their session anew and grow before they answer.
        let range = ByteRange::between(old, new);
        let outside: Vec<NodeId> = self
            .peers
            .keys()
            .copied()
            .filter(|n| cx.record.member(*n).is_none())
            .collect();
        for node in outside {
            cx.local.mark(node, VolumeRange { volume, range });
            if self.peers.get(&node).is_some_and(Peer::is_live) {
                self.lose(cx, node, crate::core::api::LossReason::Broken);
            }
        }
    }

    fn end_resize(&mut self, cx: &mut Cx<'_, '_, P>, result: Result<(), CommandError>) {
        if let Some(resize) = self.resize.take() {
            cx.step.emit(Action::CommandDone {
                id: resize.command,
                result,
            });
        }
        self.changed = true;
    }
}

/// The history that a promotion would begin where every member's caches may have been lost: made from
/// what is unique, since the core draws no randomness.
pub(crate) fn next_history(record: &Record, candidate: &Member) -> HistoryId {
    let mixed = record.history.0.rotate_left(1)
        ^ candidate.disk.0
        ^ (u128::from(record.generation.0) << 64)
        ^ u128::from(candidate.incarnation.0);
    HistoryId(mixed)
}
