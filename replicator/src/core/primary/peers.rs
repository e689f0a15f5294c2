//! Sessions with the other replicas: dialled, opened, kept alive, and ended when a peer is silent,
//! slow or wrong. What a replica lacks is decided here, when it joins.

use super::copier::Sync;
use super::membership::AdmitStage;
use super::*;
use crate::core::api::{CommandError, ConnId, EvictReason, FastZeroes, LossReason};
use crate::core::message::{MAX_RANGES, RangesOf, RefuseReason, SessionId};
use vocabulary::{DiskId, Member};

/// What a replica said of itself while the session opened.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    conn: ConnId,
    since: Time,
    welcome: Option<Welcome>,
    window: Vec<BlockSet>,
    bits: Vec<BlockSet>,
}

#[derive(Clone, Copy, Debug)]
struct Welcome {
    identity: Member,
    bits_for: Option<DiskId>,
    whole_window: bool,
}

/// The connection to a peer.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// None; tried again from this time on.
    Down { retry_at: Time },
    /// Being made.
    Dialing,
    /// Made, the session is being opened.
    Greeting(Greeting),
    /// In session.
    Live(Live),
}

/// A session.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) conn: ConnId,
    heard: Time,
    sent: Time,
    asked: Time,
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) link: Link,
    backoff_ms: u64,
    /// Told by an operator to stay away.
    pub(super) blocked: bool,
    /// Its disk as of its last welcome.
    pub(crate) identity: Option<Member>,
    /// What its stores zero without writing, as it said in its last session.
    pub(super) fast_zeroes: FastZeroes,
    /// It said that its disk has failed.
    pub(super) disk_failed: bool,
    /// It has been in session in this epoch as the member that the record names.
    pub(super) joined: bool,
    /// Its window when it joined, until the reconciliation begins.
    pub(super) window: Option<Vec<BlockSet>>,
    /// Everything before this place is stable on it.
    pub(super) stable: Seq,
    /// A flush that it has not acknowledged: since when.
    pub(super) flush_since: Option<Time>,
    /// What it lacks and how far the copying is.
    pub(crate) sync: Option<Sync>,
    /// Every write from this place on was sent to it, in its present session or before.
    pub(super) sent_from: Seq,
    /// `old` parts of its window may go with releases from this place on.
    pub(super) old_after: Seq,
    /// Since when it has had no session.
    pub(super) lost_since: Option<Time>,
    /// A connection was refused, broken, or a session refused, since it was lost.
    pub(super) refused: bool,
}

impl Peer {
    fn new(node: NodeId, now: Time, settings: &Settings) -> Self {
        Self {
            node,
            link: Link::Down { retry_at: now },
            backoff_ms: settings.reconnect_min_ms,
            blocked: false,
            identity: None,
            fast_zeroes: FastZeroes::default(),
            disk_failed: false,
            joined: false,
            window: None,
            stable: Seq(0),
            flush_since: None,
            sync: None,
            sent_from: Seq(0),
            old_after: Seq(0),
            lost_since: Some(now),
            refused: false,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.link, Link::Live(_))
    }

    fn conn(&self) -> Option<ConnId> {
        match &self.link {
            Link::Down { .. } | Link::Dialing => None,
            Link::Greeting(greeting) => Some(greeting.conn),
            Link::Live(live) => Some(live.conn),
        }
    }

    /// Sends in the session; nothing where there is none.
    pub(super) fn send<P>(&mut self, step: &mut Step<'_, P>, message: Message<P>) {
        if let Link::Live(live) = &mut self.link {
            live.sent = step.now;
            step.emit(Action::Send {
                conn: live.conn,
                message,
            });
        }
    }

    pub(super) fn close<P>(&mut self, step: &mut Step<'_, P>) {
        if let Some(conn) = self.conn() {
            step.emit(Action::Close { conn });
        }
        self.link = Link::Down { retry_at: step.now };
    }

    /// May it differ from the primary in this range?
    pub(super) fn lacks(&self, at: VolumeRange) -> bool {
        self.sync
            .as_ref()
            .is_some_and(|s| s.todo[at.volume.index()].overlaps(at.range))
    }
}

impl<P: Payload> Primary<P> {
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    fn peer_of(&self, conn: ConnId) -> Option<NodeId> {
        self.peers
            .values()
            .find(|p| p.conn() == Some(conn))
            .map(|p| p.node)
    }

    /// Keeps a peer for each configured replica; dials, pings, and ends what has become silent.
    pub(super) fn tick_peers(&mut self, cx: &mut Cx<'_, '_, P>) {
        let now = cx.now();
        self.tick_attached(cx);
        for node in cx.record.replicas.without(self.node).iter() {
            self.peers
                .entry(node)
                .or_insert_with(|| Peer::new(node, now, &self.settings));
        }
        let gone: Vec<NodeId> = self
            .peers
            .keys()
            .copied()
            .filter(|n| !cx.record.replicas.contains(*n))
            .collect();
        for node in gone {
            self.lose(cx, node, LossReason::Operator);
            self.peers.remove(&node);
        }
        if matches!(self.stage, Stage::Promising | Stage::Demoting) {
            return;
        }
        let mut lost = Vec::new();
        for peer in self.peers.values_mut() {
            match &mut peer.link {
                Link::Down { retry_at } if !peer.blocked && *retry_at <= now => {
                    peer.link = Link::Dialing;
                    cx.step.emit(Action::Dial { peer: peer.node });
                }
                // A replica drains its disk and stores the epoch before it answers.
                Link::Greeting(greeting)
                    if now.ms_since(greeting.since) > self.settings.write_timeout_ms =>
                {
                    lost.push((peer.node, LossReason::Silent));
                }
                Link::Live(live) => {
                    if now.ms_since(live.heard) > self.settings.peer_timeout_ms {
                        lost.push((peer.node, LossReason::Silent));
                    } else if now.ms_since(live.asked.max(live.heard))
                        >= self.settings.ping_interval_ms
                    {
                        live.asked = now;
                        live.sent = now;
                        let message = Message::Ping { token: now.0 };
                        cx.step.emit(Action::Send {
                            conn: live.conn,
                            message,
                        });
                    }
                }
                _ => {}
            }
        }
        for node in self.slow_peers(now).iter() {
            lost.push((node, LossReason::Slow));
        }
        for (node, why) in lost {
            self.lose(cx, node, why);
        }
    }

    /// Peers that answer pings and do not finish what they were given.
    fn slow_peers(&self, now: Time) -> NodeSet {
        let limit = self.settings.write_timeout_ms;
        let mut slow: NodeSet = self
            .peers
            .values()
            .filter(|p| p.is_live() && p.flush_since.is_some_and(|t| now.ms_since(t) > limit))
            .map(|p| p.node)
            .collect();
        for (_, op) in self
            .ops_under_way()
            .take_while(|(_, op)| now.ms_since(op.since) > limit)
        {
            // A local disk that is slow itself says nothing about peers that were sent it late.
            slow = slow.union(op.sent.difference(op.acked));
        }
        slow.union(self.copier.slow_targets(now, limit))
            .without(self.node)
    }

    pub(crate) fn dialed(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, conn: ConnId) {
        let dialing = self
            .peers
            .get_mut(&node)
            .filter(|p| matches!(p.link, Link::Dialing) && !p.blocked);
        let Some(peer) = dialing else {
            cx.step.emit(Action::Close { conn });
            return;
        };
        let volumes = cx.local.volumes();
        peer.link = Link::Greeting(Greeting {
            conn,
            since: cx.step.now,
            welcome: None,
            window: vec![BlockSet::default(); volumes],
            bits: vec![BlockSet::default(); volumes],
        });
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let record = cx.record.clone();
        let message = Message::Hello {
            node: self.node,
            to: node,
            session,
            record,
        };
        cx.step.emit(Action::Send { conn, message });
    }

    pub(crate) fn dial_failed(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node)
            && matches!(peer.link, Link::Dialing)
        {
            down(peer, cx.step.now, &self.settings);
        }
        self.changed = true;
    }

    pub(crate) fn disconnected(&mut self, cx: &mut Cx<'_, '_, P>, conn: ConnId) {
        match self.peer_of(conn) {
            Some(node) => self.lose(cx, node, LossReason::Broken),
            None => self.detached(conn),
        }
    }

    /// The session with a peer ends.
    pub(super) fn lose(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, why: LossReason) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let live = peer.is_live();
        peer.close(cx.step);
        down(peer, cx.step.now, &self.settings);
        if peer.lost_since.is_none() {
            peer.lost_since = Some(cx.step.now);
        }
        peer.flush_since = None;
        if live {
            cx.step.notice(Notice::PeerLost { node, why });
        }
        self.copy_target_lost(cx, node);
        let asked: Vec<u64> = self
            .repairs
            .iter()
            .filter(|(_, r)| r.asked == Some(node))
            .map(|(id, _)| *id)
            .collect();
        for id in asked {
            self.repair_ask(cx, id);
        }
        self.admitting_lost(cx, node);
        self.resize_lost(cx, node);
        for op in self.ops.iter_mut().flatten() {
            op.sent.remove(node);
        }
        self.changed = true;
    }

    pub(super) fn block_peer(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        node: NodeId,
        blocked: bool,
    ) -> Result<(), CommandError> {
        let now = cx.now();
        let peer = self
            .peers
            .get_mut(&node)
            .ok_or(CommandError::NoReplica(node))?;
        peer.blocked = blocked;
        if blocked {
            self.lose(cx, node, LossReason::Operator);
        } else if let Link::Down { retry_at } = &mut peer.link {
            *retry_at = now;
            peer.disk_failed = false;
            self.tick_peers(cx);
        }
        Ok(())
    }

    /// A message from a replica.
    pub(crate) fn message(&mut self, cx: &mut Cx<'_, '_, P>, conn: ConnId, message: Message<P>) {
        let Some(node) = self.peer_of(conn) else {
            return self.attached_message(cx, conn, &message);
        };
        let now = cx.now();
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        match &mut peer.link {
            Link::Greeting(greeting) => {
                greeting.since = now;
                let sizes = &cx.record.sizes;
                match message {
                    Message::Refuse { reason } => self.refused(cx, node, reason),
                    Message::Welcome {
                        disk,
                        incarnation,
                        bits_for,
                        whole_window,
                        ..
                    } => {
                        let identity = Member {
                            node,
                            disk,
                            incarnation,
                        };
                        peer.fast_zeroes = FastZeroes::default();
                        greeting.welcome = Some(Welcome {
                            identity,
                            bits_for,
                            whole_window,
                        });
                    }
                    Message::FastZeroes { fast } => peer.fast_zeroes = fast,
                    Message::Ranges { of, ranges } => {
                        let sets = match of {
                            RangesOf::Window => &mut greeting.window,
                            _ => &mut greeting.bits,
                        };
                        for at in ranges {
                            // A replica may be larger than the record; beyond it nothing counts.
                            if let (Some(set), Some(size)) = (
                                sets.get_mut(at.volume.index()),
                                sizes.get(at.volume.index()),
                            ) && let Some(range) =
                                at.range.intersection(ByteRange::between(0, *size))
                            {
                                set.insert(range);
                            }
                        }
                    }
                    Message::WelcomeEnd => self.join(cx, node),
                    _ => self.lose(cx, node, LossReason::Protocol),
                }
            }
            Link::Live(live) => {
                live.heard = now;
                match message {
                    Message::Acks { seqs } => {
                        for seq in seqs {
                            self.peer_acked(cx, node, seq);
                        }
                    }
                    Message::FlushAck { seq } => self.peer_flushed(cx, node, seq),
                    Message::FastZeroes { fast } => peer.fast_zeroes = fast,
                    Message::HashReply { id, hashes } => self.copy_hashed(cx, node, id, hashes),
                    Message::Fetched { id, data } => self.fetched(cx, node, id, data),
                    Message::HandOverDone { id } => self.handed_over(cx, node, id),
                    Message::Grown { id: _, ok } => self.grown(cx, node, ok),
                    Message::DiskFailed => {
                        peer.disk_failed = true;
                        self.lose(cx, node, LossReason::DiskFailed);
                    }
                    Message::Ping { token } => peer.send(cx.step, Message::Pong { token }),
                    Message::Pong { .. } => {}
                    _ => self.lose(cx, node, LossReason::Protocol),
                }
            }
            Link::Down { .. } | Link::Dialing => {}
        }
    }

    fn peer_acked(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, seq: Seq) {
        if self.op_mut(seq).is_some() {
            self.acknowledged(cx, seq, node);
        } else {
            self.copy_acked(cx, node, seq);
        }
    }

    fn refused(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, reason: RefuseReason) {
        cx.step.notice(Notice::PeerRefused { node, why: reason });
        if let Some(peer) = self.peers.get_mut(&node)
            && reason == RefuseReason::NoDisk
        {
            peer.disk_failed = true;
        }
        self.lose(cx, node, LossReason::Broken);
    }

    /// The replica has said all of itself: what it lacks is decided, and the stream begins.
    fn join(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let now = cx.now();
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let Link::Greeting(greeting) =
            std::mem::replace(&mut peer.link, Link::Down { retry_at: now })
        else {
            return;
        };
        let Some(welcome) = greeting.welcome else {
            peer.link = Link::Greeting(greeting);
            return self.lose(cx, node, LossReason::Protocol);
        };
        let identity = welcome.identity;
        peer.link = Link::Live(Live {
            conn: greeting.conn,
            heard: now,
            sent: now,
            asked: now,
        });
        peer.backoff_ms = self.settings.reconnect_min_ms;
        peer.lost_since = None;
        peer.refused = false;
        peer.disk_failed = false;
        let changed = peer.identity != Some(identity);
        peer.identity = Some(identity);
        if changed {
            // An acknowledgement counts only for the incarnation that made it.
            peer.stable = Seq(0);
            if !mutated(Mutation::NewIncarnationCounts) {
                for op in self.ops.iter_mut().flatten() {
                    op.acked.remove(node);
                }
            }
        }
        cx.step.notice(Notice::PeerConnected { node });
        let proposed = self
            .admitting
            .as_ref()
            .is_some_and(|a| a.stage == AdmitStage::Proposed && a.member == identity);
        let member = cx.record.member(node) == Some(&identity) || proposed;
        let window = whole_or(welcome.whole_window, greeting.window, cx.record);
        if member {
            if !peer.joined && self.stage == Stage::Gathering {
                peer.window = Some(window);
            } else if !peer.joined && !proposed {
                // A member that no window was gathered from can only be one whose incarnation was
                // renewed meanwhile: it holds everything but what is re-sent below.
                peer.window = None;
            }
            peer.joined = true;
        } else {
            let all_bits = welcome.bits_for != Some(cx.local.identity().disk);
            let bits = whole_or(all_bits, greeting.bits, cx.record);
            self.lacking(cx, node, identity, window, bits);
        }
        self.tell_numbers(cx, node);
        self.send_again(cx, node);
        self.tell_settled_to(cx, node);
        self.changed = true;
    }

    /// A replica that is not the member which the record names has to be brought up to date: what it
    /// lacks is the union of both sides' bits and windows (RULES 7).
    fn lacking(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        node: NodeId,
        identity: Member,
        window: Vec<BlockSet>,
        bits: Vec<BlockSet>,
    ) {
        let known = cx.local.bound_disk(node) == Some(identity.disk);
        let mut todo = if known {
            cx.local.bit_sets(node)
        } else {
            all_blocks(cx.record)
        };
        for (set, other) in todo.iter_mut().zip(&cx.local.window().sets()) {
            set.union(other);
        }
        if !mutated(Mutation::RejoinWithoutOwnLog) {
            for (set, other) in todo.iter_mut().zip(&window) {
                set.union(other);
            }
            for (set, other) in todo.iter_mut().zip(&bits) {
                set.union(other);
            }
        }
        clip(&mut todo, cx.record);
        cx.local.bind(cx.step, node, identity.disk, false);
        for (volume, set) in cx.local.volume_ids().zip(&todo) {
            for range in set.ranges() {
                cx.local.mark(node, VolumeRange { volume, range });
            }
        }
        let bytes = todo.iter().map(BlockSet::bytes).sum();
        cx.step.notice(Notice::ResyncStarted { node, bytes });
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        peer.joined = false;
        peer.sent_from = Seq(self.next_seq);
        peer.sync = Some(Sync::new(todo, false, cx.step.now));
    }

    /// What was under way is sent in the new session, at the places that it had.
    fn send_again(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let flush = self.flushes.under_way();
        let base = self.ops_base();
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let mut flush = flush.filter(|seq| peer.stable < *seq);
        if let Some(seq) = flush.filter(|seq| seq.0 < base) {
            peer.flush_since = Some(cx.step.now);
            peer.send(cx.step, Message::Flush { seq });
            flush = None;
        }
        for (op, seq) in self.ops.iter_mut().zip(base..) {
            let seq = Seq(seq);
            if flush.is_some_and(|at| at == seq) {
                peer.flush_since = Some(cx.step.now);
                peer.send(cx.step, Message::Flush { seq });
                flush = None;
            }
            if let Some(op) = op
                && !op.acked.contains(node)
            {
                peer.send(cx.step, op_message(seq, op));
                op.sent.insert(node);
            } else if let Some(op) = op {
                op.sent.insert(node);
            }
        }
        peer.old_after = Seq(self.next_seq);
        if self.reconciling && self.peers.get(&node).is_some_and(|p| p.joined) {
            self.touch_unreconciled(cx, node);
        }
    }

    /// Is every member's window known, or the member's place in the record given up?
    pub(super) fn gathered(&self, cx: &Cx<'_, '_, P>) -> bool {
        cx.other_members().iter().all(|node| {
            self.peers.get(&node).is_some_and(|peer| {
                // A member that came back with another incarnation or disk is not one whose window
                // counts: it is copied to, or evicted.
                peer.joined || (peer.is_live() && peer.sync.is_some())
            })
        })
    }

    /// RULES 8: what any member's window holds is treated as a write of this primary's that is under
    /// way, until all members hold its bytes.
    pub(super) fn start_serving(&mut self, cx: &mut Cx<'_, '_, P>) {
        let mut union = cx.local.window().sets();
        if cx.local.whole_window() {
            union = all_blocks(cx.record);
        }
        let mut joined = NodeSet::EMPTY;
        for peer in self.peers.values_mut() {
            if let Some(window) = peer.window.take()
                && peer.joined
            {
                joined.insert(peer.node);
                for (set, other) in union.iter_mut().zip(&window) {
                    set.union(other);
                }
            }
        }
        clip(&mut union, cx.record);
        self.stage = Stage::Serving;
        for node in cx.other_members().iter() {
            let lacking = self.peers.get(&node).filter(|p| !p.joined);
            let todo = lacking.and_then(|p| Some(&p.sync.as_ref()?.todo));
            for (set, other) in self.unrenewed.iter_mut().zip(todo.into_iter().flatten()) {
                set.union(other);
            }
        }
        cx.step.notice(Notice::Serving);
        let ranges = volume_ranges(cx.record, &union);
        if ranges.is_empty() || mutated(Mutation::NoReconcile) {
            self.tell_settled(cx);
            return;
        }
        // Replicas outside the in-sync set that joined before the windows were known lack them too.
        for node in cx
            .record
            .replicas
            .without(self.node)
            .difference(joined)
            .iter()
        {
            for at in &ranges {
                cx.local.mark(node, *at);
            }
            if let Some(sync) = self.peers.get_mut(&node).and_then(|p| p.sync.as_mut()) {
                sync.add(&union);
            }
        }
        let seq = self.take_seq();
        self.settled_after = seq;
        self.own.begin(seq);
        cx.local.touch(cx.step, Tag::Touch(seq), &ranges);
        if joined.is_empty() {
            return;
        }
        self.reconciling = true;
        self.unreconciled.clone_from(&union);
        for node in joined.iter() {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.sync = Some(Sync::new(union.clone(), true, cx.step.now));
            }
            self.touch_unreconciled(cx, node);
        }
    }

    /// The member takes what is not reconciled into its window, whether or not its bytes differ, so
    /// that it marks absent replicas when that leaves.
    fn touch_unreconciled(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let ranges = volume_ranges(cx.record, &self.unreconciled);
        self.touch_peer(cx, node, &ranges);
    }

    pub(super) fn touch_peer(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        node: NodeId,
        ranges: &[VolumeRange],
    ) {
        for ranges in ranges.chunks(MAX_RANGES) {
            let seq = self.take_seq();
            let Some(peer) = self.peers.get_mut(&node) else {
                return;
            };
            self.copier.touches.insert((node, seq), cx.step.now);
            peer.send(
                cx.step,
                Message::Touch {
                    seq,
                    ranges: ranges.to_vec(),
                },
            );
            peer.old_after = Seq(self.next_seq);
        }
    }

    /// A newer record is committed: peers learn it before anything of its generation.
    pub(crate) fn new_record(&mut self, cx: &mut Cx<'_, '_, P>, before: &Record) {
        let record = cx.record;
        for peer in self.peers.values_mut() {
            if peer.is_live() {
                peer.send(
                    cx.step,
                    Message::Record {
                        record: record.clone(),
                    },
                );
            }
        }
        for node in before.members().difference(record.members()).iter() {
            let session = self.peers.get(&node).is_some_and(Peer::is_live);
            let why = if !record.replicas.contains(node) {
                EvictReason::Removed
            } else if self.invalidate_commands.contains_key(&node) {
                EvictReason::Invalidated
            } else if session {
                EvictReason::NoLease
            } else {
                EvictReason::Gone
            };
            cx.step.notice(Notice::Evicted { node, why });
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.joined = false;
                if peer.sync.as_ref().is_some_and(|s| s.reconciling) {
                    // What it had still to be given is in the window, which marks it.
                    peer.sync = None;
                }
                if peer.is_live() && peer.sync.is_none() {
                    // Opened anew, it joins as a target with all that it lacks.
                    self.lose(cx, node, LossReason::Broken);
                }
            }
        }
        self.membership_changed(cx, before);
        self.refresh(cx);
        self.changed = true;
    }
}

fn down(peer: &mut Peer, now: Time, settings: &Settings) {
    peer.link = Link::Down {
        retry_at: now.plus_ms(peer.backoff_ms),
    };
    peer.backoff_ms = (peer.backoff_ms * 2).min(settings.reconnect_max_ms);
    peer.refused = true;
}

fn whole_or(whole: bool, sets: Vec<BlockSet>, record: &Record) -> Vec<BlockSet> {
    if whole { all_blocks(record) } else { sets }
}

pub(super) fn all_blocks(record: &Record) -> Vec<BlockSet> {
    record
        .sizes
        .iter()
        .map(|size| {
            let mut set = BlockSet::default();
            set.insert(ByteRange::between(0, *size));
            set
        })
        .collect()
}

/// Takes out what lies beyond the volumes: a store may be larger than its volume, after a grow that was
/// called off.
fn clip(sets: &mut [BlockSet], record: &Record) {
    const BLOCK: u64 = vocabulary::BLOCK_BYTES;
    for (set, size) in sets.iter_mut().zip(&record.sizes) {
        let beyond = size.div_ceil(BLOCK) * BLOCK;
        set.remove(ByteRange::between(beyond, i64::MAX as u64 / BLOCK * BLOCK));
    }
}

/// The sets' runs as ranges within the volumes (the last block of a volume may be short).
pub(super) fn volume_ranges(record: &Record, sets: &[BlockSet]) -> Vec<VolumeRange> {
    let volumes = (0..).map(VolumeId).zip(&record.sizes).zip(sets);
    volumes
        .flat_map(|((volume, size), set)| {
            let whole = ByteRange::between(0, *size);
            set.ranges()
                .filter_map(move |run| run.intersection(whole))
                .map(move |range| VolumeRange { volume, range })
        })
        .collect()
}
