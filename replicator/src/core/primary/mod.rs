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
mod peers;
mod regions;
mod repair;

use super::Outstanding;
use super::api::{
    Action, ClientError, ClientRequest, Command, CommandError, CommandId, ConnId, DiskError,
    Notice, Payload, RequestId, Settings, StopReason,
};
use super::block_set::BlockSet;
use super::forward::{Owner, Returned};
use super::local::{Done, Local};
use super::message::{ClientMark, Message, Seq, VolumeRange, WriteKind, ZERO_PIECE_BYTES};
use super::mutation::{Mutation, mutated};
use super::range_lock::{Mode, RangeLock};
use super::sessions::Applied;
use super::{Step, Tag};
use attached::Attachment;
use copier::Copier;
use flush::Flushes;
use lease::Lease;
use membership::{Admitting, Proposal, Resize};
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
    Zero { hole: bool, fua: bool },
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
    demote_command: Option<(CommandId, Time)>,
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
            demote_command: None,
            invalidate_commands: BTreeMap::new(),
            waiting_for: NodeSet::EMPTY,
            latency: Latency::default(),
            granted: Vec::new(),
            follow,
            attached: Vec::new(),
            answered: Vec::new(),
            returned: Vec::new(),
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

    // ---- the way of a request ----

    /// A client's request.
    pub(crate) fn client(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        asked: Asked,
        volume: VolumeId,
        request: ClientRequest<P>,
    ) {
        let refuse = match self.stage {
            Stage::Draining => Some(ClientError::Shutdown),
            Stage::Demoting if !mutated(Mutation::ServeAfterDemote) => Some(ClientError::Shutdown),
            _ if volume.index() >= cx.local.volumes() => Some(ClientError::OutOfRange),
            _ if cx.local.failed() => Some(self.disk_error(cx)),
            _ => None,
        };
        let (range, body) = match request {
            ClientRequest::Read { range } => (range, Body::Read),
            ClientRequest::Write { range, data, fua } => (range, Body::Write { data, fua }),
            ClientRequest::Zero { range, hole, fua } => (range, Body::Zero { hole, fua }),
            ClientRequest::Flush => (ByteRange::between(0, 0), Body::Flush),
        };
        let refuse = refuse.or_else(|| {
            let size = cx.record.sizes[volume.index()];
            let short = matches!(&body, Body::Write { data, .. } if data.len() as u64 != range.len);
            (range.end() > size || short).then_some(ClientError::OutOfRange)
        });
        let nothing = range.is_empty() && !matches!(body, Body::Flush);
        let piece = match body {
            Body::Zero { .. } => first_piece(range, range.offset),
            _ => range,
        };
        let request = Request {
            asked,
            at: VolumeRange { volume, range },
            body,
            since: cx.now(),
            piece,
            started: false,
        };
        match refuse {
            Some(error) => self.finish(cx, request, Err(error)),
            None if nothing => self.finish(cx, request, Ok(None)),
            None => {
                let key = self.requests.insert(request);
                self.admit_request(cx, key);
            }
        }
    }

    /// What clients get when this node's disk has failed. With follow access another primary answers.
    fn disk_error(&self, cx: &Cx<'_, '_, P>) -> ClientError {
        if self.follow && !cx.other_members().is_empty() {
            ClientError::Shutdown
        } else {
            ClientError::Io
        }
    }

    /// Starts a request, or puts it where it waits.
    fn admit_request(&mut self, cx: &mut Cx<'_, '_, P>, key: usize) {
        let request = &self.requests[key];
        if self.stage == Stage::Promising || self.stage == Stage::Gathering {
            self.gated.push_back(key);
            return;
        }
        if matches!(request.body, Body::Flush) {
            self.requests[key].started = true;
            self.flush_request(cx, key);
            return;
        }
        let volume = request.at.volume.index();
        let full = !matches!(request.body, Body::Read) && self.window_full(cx);
        let in_doubt = [&self.unreconciled[volume], &self.unrenewed[volume]];
        if full || in_doubt.iter().any(|set| set.overlaps(request.piece)) {
            self.gated.push_back(key);
            return;
        }
        if request.asked.again && !request.started && self.was_applied(cx, key) {
            return;
        }
        let request = &self.requests[key];
        let mode = match request.body {
            Body::Read => Mode::Shared,
            _ => Mode::Exclusive,
        };
        let mode = if mutated(Mutation::WriteDoesNotWaitForReads) {
            Mode::Shared
        } else {
            mode
        };
        let piece = request.piece;
        self.requests[key].started = true;
        if self.locks[volume].acquire(Key::Client(key), piece, mode) {
            self.start_request(cx, key);
        }
    }

    /// The window is bounded: writes wait while it is full.
    fn window_full(&self, cx: &Cx<'_, '_, P>) -> bool {
        let window = cx.local.window();
        window.live_len() >= 2 * self.settings.window_writes
            || window.live_bytes() >= 2 * self.settings.window_bytes
            // Each of these pins an extent, and none may have to wait for another's release.
            || window.live_extents() >= cx.local.log_capacity() / 2
    }

    /// Looks again at what waits for the stage, the window or the reconciliation.
    fn open_gate(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.stage == Stage::Promising || self.stage == Stage::Gathering {
            return;
        }
        for _ in 0..self.gated.len() {
            let Some(key) = self.gated.pop_front() else {
                break;
            };
            self.admit_request(cx, key);
        }
    }

    /// The request holds its range.
    fn start_request(&mut self, cx: &mut Cx<'_, '_, P>, key: usize) {
        // Answered while it waited (the disk failed): then nothing is started any more.
        let Some(request) = self.requests.get(key) else {
            return;
        };
        let at = VolumeRange {
            volume: request.at.volume,
            range: request.piece,
        };
        let body = match &request.body {
            Body::Read => {
                cx.local.read(cx.step, Tag::Read(key as u64), at);
                return;
            }
            Body::Flush => return,
            Body::Write { data, fua } => OpBody::Write {
                data: data.clone(),
                fua: *fua,
            },
            Body::Zero { hole, fua } => OpBody::Zero {
                hole: *hole,
                fua: *fua,
            },
        };
        let mark = request.asked.mark;
        let seq = self.take_seq();
        cx.local.sessions.seen(mark.session);
        let mut op = Op {
            request: key,
            mark,
            at,
            body,
            sent: NodeSet::EMPTY,
            acked: NodeSet::EMPTY,
            unlocked: false,
            since: cx.now(),
        };
        cx.local.window_add(cx.step, seq, at, WriteKind::Client);
        self.own.begin(seq);
        match &op.body {
            OpBody::Write { data, fua } => {
                cx.local
                    .write(cx.step, Tag::Write(seq), at, data.clone(), *fua, mark);
            }
            OpBody::Zero { hole, fua } => {
                cx.local
                    .zero(cx.step, Tag::Write(seq), at, *hole, *fua, mark);
            }
        }
        for peer in self.peers.values_mut() {
            if peer.is_live() {
                peer.send(cx.step, op_message(seq, &op));
                op.sent.insert(peer.node);
            }
        }
        if let Some(slot) = self.ops.back_mut() {
            *slot = Some(op);
        }
    }

    /// A replica, or this node, has a write of the stream.
    fn acknowledged(&mut self, cx: &mut Cx<'_, '_, P>, seq: Seq, node: NodeId) {
        let (required, counting, me) = (self.required, self.counting, self.node);
        let Some(op) = self.op_mut(seq) else { return };
        op.acked.insert(node);
        let acked = op.acked;
        if is_complete(acked, required, counting, me) {
            self.complete(cx, seq);
        } else if required.is_subset_of(acked) && !std::mem::replace(&mut op.unlocked, true) {
            // A member with a new incarnation has it too, but its word counts only once that is
            // admitted; the copies that the admit needs must not wait for this range.
            let (volume, key) = (op.at.volume, Key::Client(op.request));
            self.unlock(cx, volume, key);
        }
    }

    /// Every required replica has the write: the client is answered.
    fn complete(&mut self, cx: &mut Cx<'_, '_, P>, seq: Seq) {
        let Some(index) = self.op_index(seq) else {
            return;
        };
        let Some(op) = self.ops[index].take() else {
            return;
        };
        rule!(
            "1: every required replica has the write before the client is answered",
            self.required.is_subset_of(op.acked) || cfg!(feature = "mutations")
        );
        let key = op.request;
        if !op.unlocked {
            self.unlock(cx, op.at.volume, Key::Client(key));
        }
        let Some(request) = self.requests.get_mut(key) else {
            return;
        };
        if matches!(request.body, Body::Zero { .. }) && request.piece.end() < request.at.range.end()
        {
            request.piece = first_piece(request.at.range, request.piece.end());
            request.started = false;
            self.admit_request(cx, key);
            return;
        }
        self.reply(cx, key, Ok(None));
    }

    fn answer(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        key: usize,
        result: Result<Option<P>, ClientError>,
    ) {
        if let Some(request) = self.requests.try_remove(key) {
            self.latency.count += 1;
            self.latency.sum_us += cx.now().0.saturating_sub(request.since.0) / 1000;
            self.finish(cx, request, result);
        }
    }

    fn unlock(&mut self, cx: &mut Cx<'_, '_, P>, volume: VolumeId, key: Key) {
        let mut granted = std::mem::take(&mut self.granted);
        let start = granted.len();
        self.locks[volume.index()].release(key, &mut granted);
        // What is granted may grant more in turn (a refused repair): each has its own tail.
        let mine = granted.split_off(start);
        self.granted = granted;
        for key in mine {
            match key {
                Key::Client(key) => self.start_request(cx, key),
                Key::Copy(id) => self.copy_locked(cx, id),
                Key::Repair(id) => self.repair_locked(cx, id),
            }
        }
    }

    // ---- local I/O is done ----

    pub(crate) fn done(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        tag: Tag,
        at: Option<VolumeRange>,
        done: Done<P>,
    ) {
        let failed = done.error();
        // What the role before left under way is nobody's any more; serving waits until it is drained.
        let starting = matches!(self.stage, Stage::Promising | Stage::Gathering);
        if starting && !matches!(tag, Tag::Promise(_)) {
            self.changed = true;
            return;
        }
        match tag {
            Tag::Write(seq) if failed.is_none() => {
                self.own.finish(seq);
                self.own_flush(cx);
                self.acknowledged(cx, seq, self.node);
            }
            Tag::Write(seq) => {
                // The disk is Failed now; `maintain` abdicates. With no other member left the
                // client gets the error.
                self.fail_op(cx, seq, failed);
            }
            Tag::Read(key) => self.read_done(cx, key, at, done),
            Tag::Flush(seq) => self.own_flushed(cx, seq, failed.is_none()),
            Tag::Hash(id) => self.copy_hashed_here(cx, id, done),
            Tag::Repair(id) => self.repair_written(cx, id, failed.is_none()),
            Tag::Grow(u64::MAX) => self.grown(cx, self.node, failed.is_none()),
            Tag::Promise(epoch) if failed.is_none() && epoch >= self.epoch => self.promised(cx),
            Tag::Touch(seq) => {
                self.own.finish(seq);
                self.own_flush(cx);
            }
            Tag::Promise(_)
            | Tag::Grow(_)
            | Tag::Bits(_)
            | Tag::WholeSettled
            | Tag::Close
            | Tag::Nobody => {}
        }
        if failed.is_some() {
            self.changed = true;
        }
    }

    fn fail_op(&mut self, cx: &mut Cx<'_, '_, P>, seq: Seq, error: Option<DiskError>) {
        self.changed = true;
        if !cx.other_members().is_empty() {
            return;
        }
        let Some(index) = self.op_index(seq) else {
            return;
        };
        if let Some(op) = self.ops[index].take() {
            if !op.unlocked {
                self.unlock(cx, op.at.volume, Key::Client(op.request));
            }
            self.reply(cx, op.request, Err(client_error(error)));
        }
    }

    fn read_done(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        key: u64,
        at: Option<VolumeRange>,
        done: Done<P>,
    ) {
        let (Ok(key), Some(at)) = (usize::try_from(key), at) else {
            return;
        };
        self.unlock(cx, at.volume, Key::Client(key));
        match done {
            // A failed disk may have dropped what it held: nothing it says is answered any more.
            _ if cx.local.failed() => {
                let error = self.disk_error(cx);
                self.reply(cx, key, Err(error));
            }
            Done::Data(data) => self.reply(cx, key, Ok(Some(data))),
            _ => self.start_repair(cx, at, Some(key)),
        }
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
        if let Some((id, _)) = self.demote_command.take() {
            cx.step.emit(Action::CommandDone {
                id,
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
            Command::Demote => self.start_demote(cx, id),
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

fn first_piece(range: ByteRange, from: u64) -> ByteRange {
    // Pieces end at multiples of their length, so that extents are touched once.
    let end = (from / ZERO_PIECE_BYTES + 1) * ZERO_PIECE_BYTES;
    ByteRange::between(from, end.min(range.end()))
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
