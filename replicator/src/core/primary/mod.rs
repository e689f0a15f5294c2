//! The primary's role. This file holds the state and the way of a client's request; `peers` opens
//! and keeps sessions, `flush` makes writes stable and lets them leave the windows, `copier` brings
//! replicas up to date (resync, reconcile, verify), `membership` changes the record.
//!
//! After every event [`Primary::maintain`] runs: it looks at the state as a whole and does what it
//! calls for, so that no transition has to be remembered at each place that could cause it.

mod attached;
mod copier;
mod flush;
mod lease;
mod membership;
mod patience;
mod peers;
mod regions;
mod repair;
mod requests;

use super::Outstanding;
use super::api::{
    Action, ClientError, ClientRequest, Command, CommandError, CommandId, ConnId, DiskError,
    Notice, Payload, RequestId, Settings, StopReason,
};
use super::block_set::BlockSet;
use super::forward::{Owner, Returned};
use super::local::{Done, Local};
use super::message::{ClientMark, Message, Seq, VolumeRange, WriteKind};
use super::mutation::{Mutation, mutated};
use super::range_lock::{Mode, RangeLock};
use super::sessions::Applied;
use super::{Step, Tag};
use attached::Attachment;
use copier::Copier;
use flush::Flushes;
use lease::Lease;
use membership::{Admitting, Demotion, Proposal, Resize};
use repair::Repair;
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use vocabulary::{ByteRange, Epoch, NodeId, NodeSet, Record, Time, VolumeId};

pub(crate) use attached::Forwarded;
pub(crate) use membership::next_history;
pub(crate) use peers::{Link, Peer};
pub use regions::Regions;

/// What a step of the primary works on.
pub(crate) struct Cx<'a, 'b, P> {
    pub(crate) step: &'a mut Step<'b, P>,
    pub(crate) local: &'a mut Local<P>,
    pub(crate) record: &'a Record,
}

impl<P: Payload> Cx<'_, '_, P> {
    fn now(&self) -> Time {
        self.step.now
    }

    /// Members of the committed record but this node.
    fn other_members(&self) -> NodeSet {
        self.record.members().without(self.local.identity().node)
    }
}

/// How far this primary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The promise of the epoch is on its way to disk.
    Promising,
    /// Every member's window is asked for, and earlier primaries' leases run out.
    Gathering,
    /// Clients are served.
    Serving,
    /// Requests under way end, new ones are refused.
    Draining,
    /// The demotion is proposed: nothing is served any more in this epoch.
    Demoting,
}

/// Who holds a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Client(usize),
    Copy(u64),
    Repair(u64),
}

#[derive(Clone, Debug)]
enum Body<P> {
    Read,
    Write { data: P, fua: bool },
    Zero { hole: bool, fua: bool, fast: bool },
    Flush,
}

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client of this node.
    Client(RequestId),
    /// A client of this node, whose forwarder knows it by the mark's number.
    Own,
    /// Another node, in the session of the mark.
    Forwarded(ConnId),
    /// Whoever asked was answered with an error already.
    Nobody,
}

/// What goes with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) origin: Origin,
    /// Zero for one that has no number.
    pub(crate) mark: ClientMark,
    /// It may have been executed before.
    pub(crate) again: bool,
}

/// A client's request until its reply.
#[derive(Clone, Debug)]
struct Request<P> {
    asked: Asked,
    at: VolumeRange,
    body: Body<P>,
    since: Time,
    /// What of `at` is under way: all, or a piece of a long zero.
    piece: ByteRange,
    started: bool,
}

/// A write of the stream until every required replica has it.
#[derive(Clone, Debug)]
struct Op<P> {
    request: usize,
    mark: ClientMark,
    at: VolumeRange,
    body: OpBody<P>,
    /// Replicas that it was sent to in their present session.
    sent: NodeSet,
    /// Replicas that have it, as they said (this node included).
    acked: NodeSet,
    /// Its range was given back: every required replica has it, and only their word is missing.
    unlocked: bool,
    since: Time,
}

#[derive(Clone, Debug)]
enum OpBody<P> {
    Write { data: P, fua: bool },
    Zero { hole: bool, fua: bool },
}

/// What a client's request loop has seen lately: the copier keeps out of its way.
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    sum_us: u64,
    count: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Primary<P> {
    node: NodeId,
    epoch: Epoch,
    settings: Settings,
    stage: Stage,
    peers: BTreeMap<NodeId, Peer>,
    next_session: u64,
    /// In the record, or about to be: every acknowledgement is relative to it.
    required: NodeSet,
    /// Replicas whose acknowledgements count: their disk and incarnation are the required ones.
    counting: NodeSet,
    lease: Lease<P>,
    next_seq: u64,
    ops: VecDeque<Option<Op<P>>>,
    own: Outstanding,
    locks: Vec<RangeLock<Key>>,
    requests: Slab<Request<P>>,
    gated: VecDeque<usize>,
    flushes: Flushes,
    copier: Copier<P>,
    repairs: BTreeMap<u64, Repair<P>>,
    next_repair: u64,
    /// Ranges that not all members are known to hold alike (RULES 8); requests there wait.
    unreconciled: Vec<BlockSet>,
    reconciling: bool,
    /// Where members that came to this epoch with another incarnation may differ, until each of them
    /// is renewed or evicted; requests there wait as well.
    unrenewed: Vec<BlockSet>,
    /// A flush from this place on settles what the reconciliation copied.
    settled_after: Seq,
    admitting: Option<Admitting>,
    proposal: Option<Proposal>,
    resize: Option<Resize>,
    demotion: Option<Demotion>,
    invalidate_commands: BTreeMap<NodeId, CommandId>,
    waiting_for: NodeSet,
    latency: Latency,
    granted: Vec<Key>,
    /// Other nodes forward their clients' requests here (RULES 12).
    follow: bool,
    attached: Vec<Attachment>,
    /// For this node's forwarder: answers to what it gave, and what another primary is to answer.
    pub(crate) answered: Vec<(u64, Result<Option<P>, ClientError>)>,
    pub(crate) returned: Vec<Returned<P>>,
    /// Requests were given up: new ones are refused until nothing of those is under way.
    refusing: bool,
    last_tick: Time,
    /// Something changed that `maintain` has to look at in full.
    changed: bool,
}

impl<P: Payload> Primary<P> {
    /// Begins an epoch: the caller has drained the disk.
    pub(crate) fn begin(cx: &mut Cx<'_, '_, P>, settings: Settings, follow: bool) -> Self {
        let node = cx.local.identity().node;
        let volumes = cx.local.volumes();
        let mut primary = Self {
            node,
            epoch: cx.record.epoch,
            settings,
            stage: Stage::Promising,
            peers: BTreeMap::new(),
            next_session: 1,
            required: NodeSet::only(node),
            counting: NodeSet::only(node),
            lease: Lease::new(cx.now()),
            next_seq: 1,
            ops: VecDeque::new(),
            own: Outstanding::default(),
            locks: (0..volumes).map(|_| RangeLock::default()).collect(),
            requests: Slab::new(),
            gated: VecDeque::new(),
            flushes: Flushes::default(),
            copier: Copier::new(volumes),
            repairs: BTreeMap::new(),
            next_repair: 0,
            unreconciled: vec![BlockSet::default(); volumes],
            reconciling: false,
            unrenewed: vec![BlockSet::default(); volumes],
            settled_after: Seq(0),
            admitting: None,
            proposal: None,
            resize: None,
            demotion: None,
            invalidate_commands: BTreeMap::new(),
            waiting_for: NodeSet::EMPTY,
            latency: Latency::default(),
            granted: Vec::new(),
            follow,
            attached: Vec::new(),
            answered: Vec::new(),
            returned: Vec::new(),
            refusing: false,
            last_tick: cx.now(),
            changed: true,
        };
        cx.local.live_becomes_old();
        cx.local.sessions.begin(cx.record.epoch);
        primary.refresh(cx);
        if mutated(Mutation::PromiseNotPersisted) {
            primary.promised(cx);
        } else {
            cx.local
                .promise(cx.step, Tag::Promise(cx.record.epoch), cx.record.epoch);
        }
        primary
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn required(&self) -> NodeSet {
        self.required
    }

    pub(crate) fn waiting_for(&self) -> NodeSet {
        self.waiting_for
    }

    fn promised(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.stage == Stage::Promising {
            self.stage = Stage::Gathering;
            self.changed = true;
            self.tick_peers(cx);
        }
    }

    fn take_seq(&mut self) -> Seq {
        let seq = Seq(self.next_seq);
        self.next_seq += 1;
        self.ops.push_back(None);
        while self.ops.len() > 1 && self.ops.front().is_some_and(Option::is_none) {
            self.ops.pop_front();
        }
        seq
    }

    fn ops_base(&self) -> u64 {
        self.next_seq - self.ops.len() as u64
    }

    fn op_index(&self, seq: Seq) -> Option<usize> {
        usize::try_from(seq.0.checked_sub(self.ops_base())?)
            .ok()
            .filter(|i| *i < self.ops.len())
    }

    fn op_mut(&mut self, seq: Seq) -> Option<&mut Op<P>> {
        let index = self.op_index(seq)?;
        self.ops.get_mut(index)?.as_mut()
    }

    fn ops_under_way(&self) -> impl Iterator<Item = (Seq, &Op<P>)> {
        let base = self.ops_base();
        self.ops
            .iter()
            .zip(base..)
            .filter_map(|(op, seq)| Some((Seq(seq), op.as_ref()?)))
    }

    // ---- the pass after every event ----

    /// What the record or a session's change means for who is required and who counts; then
    /// everything that waited for less.
    pub(crate) fn refresh(&mut self, cx: &mut Cx<'_, '_, P>) {
        let mut required = cx.record.members().with(self.node);
        let mut counting = NodeSet::only(self.node);
        if let Some(admitting) = &self.admitting {
            required.insert(admitting.member.node);
        }
        if mutated(Mutation::AckBeforeReplicas) {
            required = NodeSet::only(self.node);
        }
        if mutated(Mutation::AckWhileEvictProposed) {
            required = required.difference(self.proposed_evict());
        }
        for peer in self.peers.values() {
            let wanted = self
                .admitting
                .as_ref()
                .map(|a| a.member)
                .filter(|m| m.node == peer.node)
                .or_else(|| cx.record.member(peer.node).copied());
            if (wanted.is_some() && peer.identity == wanted)
                || (mutated(Mutation::NewIncarnationCounts) && peer.identity.is_some())
            {
                counting.insert(peer.node);
            }
        }
        if (required, counting) == (self.required, self.counting) {
            return;
        }
        self.required = required;
        self.counting = counting;
        self.changed = true;
        self.lease_over(cx);
        let node = self.node;
        let complete: Vec<Seq> = self
            .ops_under_way()
            .filter(|(_, op)| is_complete(op.acked, required, counting, node))
            .map(|(seq, _)| seq)
            .collect();
        for seq in complete {
            self.complete(cx, seq);
        }
    }

    /// The window may have reached its bound.
    pub(crate) fn check_window_bound(&mut self, cx: &mut Cx<'_, '_, P>) {
        self.check_window(cx);
    }

    /// Looks at the whole state and does what it calls for.
    pub(crate) fn maintain(&mut self, cx: &mut Cx<'_, '_, P>) {
        self.check_flush(cx);
        self.copy_more(cx);
        if !std::mem::take(&mut self.changed) {
            return;
        }
        self.refresh(cx);
        self.check_membership(cx);
        let word = self.lease.word || mutated(Mutation::ServeWithoutWord);
        if self.stage == Stage::Gathering && word && cx.local.drained() && self.gathered(cx) {
            self.start_serving(cx);
        }
        self.check_reconciled(cx);
        self.check_renewed(cx);
        self.check_drained(cx);
        self.admit_attachments(cx);
        self.open_gate(cx);
        self.answer_waiting(cx);
        self.check_waiting(cx);
    }

    pub(crate) fn tick(&mut self, cx: &mut Cx<'_, '_, P>) {
        self.tick_lease(cx.now());
        self.tick_peers(cx);
        self.tick_flush(cx);
        self.tick_copier(cx);
        self.tick_proposal(cx);
        self.tick_demote(cx);
        self.tick_patience(cx);
        self.changed = true;
    }

    /// Says whom requests wait for, when that changes.
    fn check_waiting(&mut self, cx: &mut Cx<'_, '_, P>) {
        if matches!(self.stage, Stage::Promising | Stage::Gathering) {
            // Sessions are being opened; `status` says so by the role.
            return;
        }
        let live: NodeSet = self
            .peers
            .values()
            .filter(|p| p.is_live())
            .map(|p| p.node)
            .collect();
        let present = live.intersection(self.counting);
        let others = self.required.without(self.node).iter();
        let waiting: NodeSet = others
            .filter(|&node| !present.contains(node) || self.lease_owed(cx, node).is_some())
            .collect();
        if waiting == self.waiting_for {
            return;
        }
        let before = std::mem::replace(&mut self.waiting_for, waiting);
        if waiting.is_empty() {
            cx.step.notice(Notice::Resumed);
        } else if before.is_empty() {
            cx.step.notice(Notice::Suspended {
                waiting_for: waiting,
            });
        }
    }

    /// The end of this primary: every request and command is answered.
    pub(crate) fn stop(&mut self, cx: &mut Cx<'_, '_, P>, why: StopReason) {
        for peer in self.peers.values_mut() {
            peer.close(cx.step);
        }
        let error = match why {
            StopReason::DiskFailed => self.disk_error(cx),
            _ => ClientError::Shutdown,
        };
        for (_, request) in std::mem::take(&mut self.requests) {
            self.finish(cx, request, Err(error));
        }
        self.detach_all(cx);
        if !self.follow {
            cx.step.emit(Action::HangUp);
        }
        let demoted = if why == StopReason::Superseded {
            Err(CommandError::Stopped)
        } else {
            Ok(())
        };
        if let Some(demotion) = self.demotion.take() {
            cx.step.emit(Action::CommandDone {
                id: demotion.command,
                result: demoted,
            });
        }
        let others = std::mem::take(&mut self.invalidate_commands)
            .into_values()
            .chain(self.resize.take().map(|r| r.command))
            .chain(self.copier.verify_command());
        for id in others {
            let result = Err(CommandError::Stopped);
            cx.step.emit(Action::CommandDone { id, result });
        }
        cx.step.notice(Notice::StoppedServing { why });
    }

    /// An operator's command that concerns the primary.
    pub(crate) fn command(&mut self, cx: &mut Cx<'_, '_, P>, id: CommandId, command: Command) {
        let result = match command {
            Command::Demote { to } => self.start_demote(cx, id, to),
            Command::Verify { node, repair } => self.start_verify(cx, id, node, repair),
            Command::VerifyStop => {
                self.stop_verify(cx);
                Some(Ok(()))
            }
            Command::Invalidate { node } => self.start_invalidate(cx, id, node),
            Command::Connect { node } | Command::Disconnect { node } => {
                let blocked = matches!(command, Command::Disconnect { .. });
                Some(self.block_peer(cx, node, blocked))
            }
            Command::Resize { volume, size_bytes } => self.start_resize(cx, id, volume, size_bytes),
            Command::Promote { .. } | Command::Force | Command::Close => Some(Ok(())),
        };
        if let Some(result) = result {
            cx.step.emit(Action::CommandDone { id, result });
        }
        self.changed = true;
    }
}

fn is_complete(acked: NodeSet, required: NodeSet, counting: NodeSet, node: NodeId) -> bool {
    if mutated(Mutation::AckBeforeReplicas) {
        return acked.contains(node);
    }
    required.is_subset_of(acked.intersection(counting))
}

fn client_error(error: Option<DiskError>) -> ClientError {
    match error {
        Some(DiskError::NoSpace) => ClientError::NoSpace,
        _ => ClientError::Io,
    }
}

fn op_message<P: Payload>(seq: Seq, op: &Op<P>) -> Message<P> {
    let (kind, mark) = (WriteKind::Client, op.mark);
    match &op.body {
        OpBody::Write { data, fua } => Message::Write {
            seq,
            volume: op.at.volume,
            offset: op.at.range.offset,
            data: data.clone(),
            fua: *fua,
            kind,
            mark,
        },
        OpBody::Zero { hole, fua } => Message::Zero {
            seq,
            at: op.at,
            hole: *hole,
            fua: *fua,
            kind,
            mark,
        },
    }
}
