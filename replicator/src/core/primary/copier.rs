//! Brings replicas up to date, and compares them: resync, reconcile and verify are one mechanism. A
//! step takes a chunk under the range lock, has it digested here and on every replica that needs it,
//! sends the blocks that differ, and lets go when they are acknowledged. Several targets share a
//! step. How many steps run at a time adapts to the clients' latency: no fixed cap, no fixed floor.

use super::*;
use crate::core::api::BlockHash;
use crate::core::status::Progress;
use vocabulary::BLOCK_BYTES;

/// The clients' latency is measured undisturbed this often: the copying pauses for one tick.
const MEASURE_EVERY_MS: u64 = 2_000;

/// Copying slows down when clients wait longer than this many times what they wait undisturbed, and
/// this much more, in microseconds (below that nobody notices).
const LATENCY_FACTOR: u64 = 2;
const LATENCY_SLACK_US: u64 = 500;

/// A chunk that could not be read or settled is tried again after this long.
const RETRY_MS: u64 = 1_000;

/// What a replica lacks, and how far the copying is.
#[derive(Clone, Debug)]
pub(crate) struct Sync {
    pub(super) todo: Vec<BlockSet>,
    /// Part of the reconciliation of a new primary (RULES 8).
    pub(super) reconciling: bool,
    total: Vec<u64>,
    since: Time,
    pub(super) sent_bytes: u64,
    /// Copied or found equal, not yet stable: at which place of the stream, and what.
    unstable: VecDeque<(Seq, VolumeRange)>,
}

impl Sync {
    pub(super) fn new(todo: Vec<BlockSet>, reconciling: bool, since: Time) -> Self {
        let total = todo.iter().map(BlockSet::bytes).collect();
        Self {
            todo,
            reconciling,
            total,
            since,
            sent_bytes: 0,
            unstable: VecDeque::new(),
        }
    }

    /// More that it lacks.
    pub(super) fn add(&mut self, sets: &[BlockSet]) {
        for (set, other) in self.todo.iter_mut().zip(sets) {
            set.union(other);
        }
        self.total = self.todo.iter().map(BlockSet::bytes).collect();
    }

    pub(super) fn left_bytes(&self) -> u64 {
        self.todo.iter().map(BlockSet::bytes).sum()
    }

    pub(super) fn has_unstable(&self) -> bool {
        !self.unstable.is_empty()
    }

    /// Bytes left of a volume.
    pub(crate) fn left_of(&self, volume: VolumeId) -> u64 {
        self.todo.get(volume.index()).map_or(0, BlockSet::bytes)
    }

    /// Progress of a volume.
    pub(crate) fn progress(&self, volume: VolumeId, now: Time) -> Progress {
        let total_bytes = self.total.get(volume.index()).copied().unwrap_or(0);
        progress(total_bytes, self.left_of(volume), now.ms_since(self.since))
    }
}

fn progress(total_bytes: u64, left_bytes: u64, ms: u64) -> Progress {
    let done = total_bytes.saturating_sub(left_bytes);
    let rate = done.saturating_mul(1000).checked_div(ms).unwrap_or(0);
    let seconds_left = (rate > 0).then(|| left_bytes.div_ceil(rate.max(1)));
    Progress {
        total_bytes,
        left_bytes,
        seconds_left,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Resync,
    Verify { repair: bool },
}

/// A chunk under way.
#[derive(Clone, Debug)]
struct Copy<P> {
    at: VolumeRange,
    purpose: Purpose,
    locked: bool,
    since: Time,
    targets: NodeSet,
    /// Targets whose digests are still to come.
    asked: NodeSet,
    digests: BTreeMap<NodeId, Vec<BlockHash>>,
    here: Option<(Vec<BlockHash>, P)>,
    /// Copies that are not acknowledged yet.
    unacked: usize,
    /// Digests were compared: only acknowledgements are missing.
    compared: bool,
}

#[derive(Clone, Debug)]
struct Verify {
    command: Option<CommandId>,
    /// The only replica that is compared, where one was named.
    only: Option<NodeId>,
    repair: bool,
    volume: usize,
    offset: u64,
    done_bytes: u64,
    total_bytes: u64,
    differing_bytes: u64,
    since: Time,
    stopping: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Copier<P> {
    copies: BTreeMap<u64, Copy<P>>,
    next: u64,
    /// Which copy a place belongs to, per target.
    acks: BTreeMap<(NodeId, Seq), u64>,
    /// Touches that are not acknowledged, and since when.
    pub(super) touches: BTreeMap<(NodeId, Seq), Time>,
    /// Where the next chunk is looked for.
    cursor: (usize, u64),
    depth: usize,
    baseline_us: Option<u64>,
    measured: Time,
    measuring: bool,
    retry_at: Time,
    verify: Option<Verify>,
    volumes: usize,
}

impl<P> Copier<P> {
    pub(super) fn new(volumes: usize) -> Self {
        Self {
            copies: BTreeMap::new(),
            next: 0,
            acks: BTreeMap::new(),
            touches: BTreeMap::new(),
            cursor: (0, 0),
            depth: 4,
            baseline_us: None,
            measured: Time(0),
            measuring: false,
            retry_at: Time(0),
            verify: None,
            volumes,
        }
    }

    pub(super) fn verify_command(&mut self) -> Option<CommandId> {
        self.verify.take().and_then(|v| v.command)
    }

    /// Is a chunk with this target under way?
    pub(super) fn busy_with(&self, node: NodeId) -> bool {
        self.copies.values().any(|c| c.targets.contains(node))
            || self.touches.keys().any(|(n, _)| *n == node)
    }

    /// Targets that hold a chunk up for longer than this.
    pub(super) fn slow_targets(&self, now: Time, limit_ms: u64) -> NodeSet {
        let late = self
            .touches
            .iter()
            .filter(|(_, since)| now.ms_since(**since) > limit_ms);
        let mut slow: NodeSet = late.map(|((node, _), _)| *node).collect();
        for (id, copy) in &self.copies {
            if !copy.locked || now.ms_since(copy.since) <= limit_ms {
                continue;
            }
            if copy.compared {
                slow = slow.union(
                    self.acks
                        .iter()
                        .filter(|(_, c)| *c == id)
                        .map(|((n, _), _)| *n)
                        .collect(),
                );
            } else if copy.here.is_some() {
                slow = slow.union(copy.asked);
            }
        }
        slow
    }
}

impl<P: Payload> Primary<P> {
    /// Progress and differing bytes of a verify under way.
    pub(crate) fn verify_progress(&self, now: Time) -> Option<(Progress, u64)> {
        let v = self.copier.verify.as_ref()?;
        let left = v.total_bytes.saturating_sub(v.done_bytes);
        Some((
            progress(v.total_bytes, left, now.ms_since(v.since)),
            v.differing_bytes,
        ))
    }

    /// Starts as many steps as may run.
    pub(super) fn copy_more(&mut self, cx: &mut Cx<'_, '_, P>) {
        let idle = self.copier.verify.is_none() && self.peers.values().all(|p| p.sync.is_none());
        let stage = matches!(self.stage, Stage::Serving | Stage::Draining);
        if idle || !stage || cx.local.failed() {
            return;
        }
        while self.copier.copies.len() < self.copier.depth
            && !self.copier.measuring
            && self.copier.retry_at <= cx.now()
        {
            let Some((at, targets, purpose)) = self.next_chunk(cx) else {
                break;
            };
            self.start_copy(cx, at, targets, purpose);
        }
        self.check_verify_done(cx);
    }

    /// The next chunk that some replica lacks, from the cursor on; then what verify has to compare.
    fn next_chunk(&mut self, cx: &Cx<'_, '_, P>) -> Option<(VolumeRange, NodeSet, Purpose)> {
        for round in 0..=self.copier.volumes {
            let (volume, from) = self.copier.cursor;
            let found = self
                .peers
                .values()
                .filter(|p| p.is_live())
                .filter_map(|p| p.sync.as_ref()?.todo.get(volume)?.next(from))
                .min_by_key(|run| run.offset);
            if let Some(run) = found {
                let chunk = self.settings.chunk_bytes;
                let end = (run.offset / chunk + 1) * chunk;
                let range = ByteRange::between(run.offset, end.min(run.end()));
                let range =
                    ByteRange::between(range.offset, range.end().min(cx.record.sizes[volume]));
                self.copier.cursor = (volume, range.end().div_ceil(BLOCK_BYTES) * BLOCK_BYTES);
                if range.is_empty() {
                    continue;
                }
                let volume = VolumeId(u16::try_from(volume).ok()?);
                let at = VolumeRange { volume, range };
                let busy = self.copier.copies.values().any(|c| {
                    c.purpose == Purpose::Resync
                        && c.at.volume == volume
                        && c.at.range.overlaps(range)
                });
                if busy {
                    // All the way round: what is left is under way.
                    return None;
                }
                let targets: NodeSet = self
                    .peers
                    .values()
                    .filter(|p| p.is_live() && p.lacks(at))
                    .map(|p| p.node)
                    .collect();
                return Some((at, targets, Purpose::Resync));
            }
            if round < self.copier.volumes {
                self.copier.cursor = ((volume + 1) % self.copier.volumes.max(1), 0);
            }
        }
        self.next_verify(cx)
    }

    fn next_verify(&mut self, cx: &Cx<'_, '_, P>) -> Option<(VolumeRange, NodeSet, Purpose)> {
        let chunk = self.settings.chunk_bytes;
        let (volume, range, only, repair) = {
            let verify = self.copier.verify.as_mut().filter(|v| !v.stopping)?;
            while verify.offset >= *cx.record.sizes.get(verify.volume)? {
                verify.volume += 1;
                verify.offset = 0;
            }
            let end = (verify.offset + chunk).min(cx.record.sizes[verify.volume]);
            let range = ByteRange::between(verify.offset, end);
            verify.offset = end;
            (verify.volume, range, verify.only, verify.repair)
        };
        let at = VolumeRange {
            volume: VolumeId(u16::try_from(volume).ok()?),
            range,
        };
        let targets: NodeSet = self
            .peers
            .values()
            .filter(|p| {
                only.is_none_or(|node| node == p.node) && self.is_comparable(p) && !p.lacks(at)
            })
            .map(|p| p.node)
            .collect();
        Some((at, targets, Purpose::Verify { repair }))
    }

    fn start_copy(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        at: VolumeRange,
        targets: NodeSet,
        purpose: Purpose,
    ) {
        let id = self.copier.next;
        self.copier.next += 1;
        let copy = Copy {
            at,
            purpose,
            locked: false,
            since: cx.now(),
            targets,
            asked: NodeSet::EMPTY,
            digests: BTreeMap::new(),
            here: None,
            unacked: 0,
            compared: false,
        };
        self.copier.copies.insert(id, copy);
        if mutated(Mutation::CopyWithoutLock)
            || self.locks[at.volume.index()].acquire(Key::Copy(id), at.range, Mode::Exclusive)
        {
            self.copy_locked(cx, id);
        }
    }

    /// The chunk is held: have it digested everywhere.
    pub(super) fn copy_locked(&mut self, cx: &mut Cx<'_, '_, P>, id: u64) {
        let Some(copy) = self.copier.copies.get_mut(&id) else {
            return;
        };
        copy.locked = true;
        copy.since = cx.step.now;
        let at = copy.at;
        // Targets may have left while the chunk waited for its turn.
        let live: NodeSet = self
            .peers
            .values()
            .filter(|p| p.is_live())
            .map(|p| p.node)
            .collect();
        copy.targets = copy.targets.intersection(live);
        copy.asked = copy.targets;
        if copy.targets.is_empty() {
            self.end_copy(cx, id);
            return;
        }
        let targets = copy.targets;
        cx.local.hash(cx.step, Tag::Hash(id), at);
        for node in targets.iter() {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.send(cx.step, Message::HashRequest { id, at });
            }
        }
    }

    pub(super) fn copy_hashed_here(&mut self, cx: &mut Cx<'_, '_, P>, id: u64, done: Done<P>) {
        let Some(copy) = self.copier.copies.get_mut(&id) else {
            return;
        };
        if let Done::Hashes(hashes, data) = done {
            copy.here = Some((hashes, data));
            self.compare(cx, id);
        } else {
            // Unreadable here: fetched from a member first, then tried again (RULES 9).
            let at = copy.at;
            self.copier.retry_at = cx.now().plus_ms(RETRY_MS);
            self.end_copy(cx, id);
            self.start_repair(cx, at, None);
        }
    }

    pub(super) fn copy_hashed(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        node: NodeId,
        id: u64,
        hashes: Option<Vec<BlockHash>>,
    ) {
        let Some(copy) = self.copier.copies.get_mut(&id) else {
            return;
        };
        if !copy.asked.contains(node) {
            return;
        }
        copy.asked.remove(node);
        // What it can't read is written anew.
        copy.digests.insert(node, hashes.unwrap_or_default());
        self.compare(cx, id);
    }

    /// All digests are there: send what differs.
    fn compare(&mut self, cx: &mut Cx<'_, '_, P>, id: u64) {
        let Some(copy) = self.copier.copies.get_mut(&id) else {
            return;
        };
        if !copy.asked.is_empty() || copy.compared {
            return;
        }
        let Some((here, data)) = copy.here.take() else {
            return;
        };
        copy.compared = true;
        let (at, purpose) = (copy.at, copy.purpose);
        let digests = std::mem::take(&mut copy.digests);
        for (node, theirs) in digests {
            let runs = differing_runs(at.range, &here, &theirs);
            let differing: u64 = runs.iter().map(|(r, _)| r.len).sum();
            if let Purpose::Verify { repair } = purpose {
                if let Some(verify) = &mut self.copier.verify {
                    verify.differing_bytes += differing;
                }
                for (range, _) in &runs {
                    let (volume, range) = (at.volume, *range);
                    cx.step.notice(Notice::Differs {
                        node,
                        volume,
                        range,
                        repaired: repair,
                    });
                }
                if !repair {
                    continue;
                }
            }
            let reconcile = purpose != Purpose::Resync
                || self
                    .peers
                    .get(&node)
                    .is_some_and(|p| p.sync.as_ref().is_some_and(|s| s.reconciling));
            let kind = if reconcile {
                WriteKind::Reconcile
            } else {
                WriteKind::Copy
            };
            for (range, zero) in runs {
                let seq = self.take_seq();
                self.copier.acks.insert((node, seq), id);
                if let Some(copy) = self.copier.copies.get_mut(&id) {
                    copy.unacked += 1;
                }
                let message = copy_message(seq, at, range, zero, &data, kind);
                let Some(peer) = self.peers.get_mut(&node) else {
                    continue;
                };
                if let Some(sync) = &mut peer.sync {
                    sync.sent_bytes += range.len;
                }
                peer.send(cx.step, message);
            }
        }
        self.check_copy(cx, id);
    }

    pub(super) fn copy_acked(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, seq: Seq) {
        if self.copier.touches.remove(&(node, seq)).is_some() {
            self.changed = true;
            return;
        }
        let Some(id) = self.copier.acks.remove(&(node, seq)) else {
            return;
        };
        if let Some(copy) = self.copier.copies.get_mut(&id) {
            copy.unacked -= 1;
            self.check_copy(cx, id);
        }
    }

    fn check_copy(&mut self, cx: &mut Cx<'_, '_, P>, id: u64) {
        let Some(copy) = self.copier.copies.get(&id) else {
            return;
        };
        if !copy.compared || copy.unacked > 0 {
            return;
        }
        let (at, targets, purpose) = (copy.at, copy.targets, copy.purpose);
        if purpose == Purpose::Resync {
            let place = Seq(self.next_seq - 1);
            for node in targets.iter() {
                let Some(sync) = self.peers.get_mut(&node).and_then(|p| p.sync.as_mut()) else {
                    continue;
                };
                // The last block of a volume may be short: all of it was compared.
                let whole = VolumeRange {
                    range: at.range.outward(BLOCK_BYTES),
                    ..at
                };
                sync.todo[at.volume.index()].remove(whole.range);
                sync.unstable.push_back((place, whole));
            }
            self.settle(at);
        }
        self.end_copy(cx, id);
        if self
            .peers
            .values()
            .any(|p| p.sync.as_ref().is_some_and(|s| s.left_bytes() == 0))
            || !self.gated.is_empty()
            || self.admitting.is_none()
        {
            self.changed = true;
        }
    }

    /// What no required replica lacks any more is reconciled.
    fn settle(&mut self, at: VolumeRange) {
        if !self.reconciling {
            return;
        }
        let lacking = self
            .peers
            .values()
            .filter(|p| self.required.contains(p.node))
            .any(|p| p.sync.as_ref().is_some_and(|s| s.reconciling) && p.lacks(at));
        if !lacking {
            self.unreconciled[at.volume.index()].remove(at.range.outward(BLOCK_BYTES));
        }
    }

    fn end_copy(&mut self, cx: &mut Cx<'_, '_, P>, id: u64) {
        let Some(copy) = self.copier.copies.remove(&id) else {
            return;
        };
        if matches!(copy.purpose, Purpose::Verify { .. })
            && let Some(verify) = &mut self.copier.verify
        {
            verify.done_bytes += copy.at.range.len;
        }
        self.unlock(cx, copy.at.volume, Key::Copy(id));
    }

    /// A target's session ended: its part of every chunk is void.
    pub(super) fn copy_target_lost(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        self.copier.touches.retain(|(n, _), _| *n != node);
        let acks: Vec<((NodeId, Seq), u64)> = self
            .copier
            .acks
            .iter()
            .filter(|((n, _), _)| *n == node)
            .map(|(key, id)| (*key, *id))
            .collect();
        for (key, id) in acks {
            self.copier.acks.remove(&key);
            if let Some(copy) = self.copier.copies.get_mut(&id) {
                copy.unacked -= 1;
            }
        }
        let ids: Vec<u64> = self
            .copier
            .copies
            .iter()
            .filter(|(_, c)| c.targets.contains(node))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(copy) = self.copier.copies.get_mut(&id) else {
                continue;
            };
            copy.targets.remove(node);
            copy.asked.remove(node);
            copy.digests.remove(&node);
            if copy.locked {
                self.compare(cx, id);
                self.check_copy(cx, id);
            }
        }
        if let Some(peer) = self.peers.get_mut(&node)
            && let Some(sync) = &mut peer.sync
        {
            // Not known to be stable: the durable bits stay as they are.
            sync.unstable.clear();
            if !sync.reconciling {
                peer.sync = None;
            }
        }
    }

    /// Everything before this place is stable on a target: its bits for what was copied before and
    /// not written since are cleared (RULES 7).
    pub(super) fn copies_stable(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, upto: Seq) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let Some(sync) = &mut peer.sync else { return };
        while sync.unstable.front().is_some_and(|(seq, _)| *seq < upto) {
            let Some((seq, at)) = sync.unstable.pop_front() else {
                break;
            };
            if sync.reconciling {
                continue;
            }
            if mutated(Mutation::BitClearedByOlderVersion) {
                cx.local.forget(at);
                cx.local.clear_bits(node, at);
            } else if !cx.local.window().written_after(at, seq) {
                cx.local.clear_bits(node, at);
            }
        }
    }

    /// Adapts to the clients' latency.
    pub(super) fn tick_copier(&mut self, cx: &mut Cx<'_, '_, P>) {
        let now = cx.now();
        let latency = std::mem::take(&mut self.latency);
        let busy = !self.copier.copies.is_empty() || self.copier.measuring;
        let copier = &mut self.copier;
        let max = self.settings.max_chunks;
        if let Some(mean_us) = latency.sum_us.checked_div(latency.count) {
            if copier.measuring && copier.copies.is_empty() || !busy {
                copier.baseline_us = Some(mean_us);
                copier.measured = now;
                copier.measuring = false;
            } else if now.ms_since(copier.measured) >= MEASURE_EVERY_MS {
                copier.measuring = true;
            }
            let limit = copier.baseline_us.map_or(u64::MAX, |us| {
                (us * LATENCY_FACTOR).max(us + LATENCY_SLACK_US)
            });
            copier.depth = if mean_us > limit {
                (copier.depth / 2).max(1)
            } else {
                (copier.depth + 1).min(max)
            };
        } else {
            // Nobody to disturb.
            copier.depth = (copier.depth * 2).clamp(1, max);
            copier.measuring = false;
        }
        self.copy_more(cx);
    }

    // ---- verify ----

    pub(super) fn start_verify(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        id: CommandId,
        only: Option<NodeId>,
        repair: bool,
    ) -> Option<Result<(), CommandError>> {
        if self.copier.verify.is_some() {
            return Some(Err(CommandError::Busy));
        }
        if self.stage != Stage::Serving {
            return Some(Err(CommandError::NotPrimary));
        }
        if let Some(node) = only
            && !self.peers.get(&node).is_some_and(|p| self.is_comparable(p))
        {
            return Some(Err(CommandError::NotConnected(node)));
        }
        self.copier.verify = Some(Verify {
            command: Some(id),
            only,
            repair,
            volume: 0,
            offset: 0,
            done_bytes: 0,
            total_bytes: cx.record.sizes.iter().sum(),
            differing_bytes: 0,
            since: cx.now(),
            stopping: false,
        });
        self.copy_more(cx);
        None
    }

    /// Is it in session and in sync, so that a difference would be one?
    fn is_comparable(&self, peer: &Peer) -> bool {
        peer.is_live() && self.counting.contains(peer.node) && self.required.contains(peer.node)
    }

    pub(super) fn stop_verify(&mut self, cx: &mut Cx<'_, '_, P>) {
        if let Some(verify) = &mut self.copier.verify {
            verify.stopping = true;
        }
        self.check_verify_done(cx);
    }

    fn check_verify_done(&mut self, cx: &mut Cx<'_, '_, P>) {
        let under_way = self
            .copier
            .copies
            .values()
            .any(|c| matches!(c.purpose, Purpose::Verify { .. }));
        let Some(verify) = &self.copier.verify else {
            return;
        };
        let through = verify.volume >= cx.record.sizes.len()
            || (verify.volume + 1 == cx.record.sizes.len()
                && verify.offset >= cx.record.sizes[verify.volume]);
        if under_way || !(through || verify.stopping) {
            return;
        }
        let (bytes, differing_bytes) = (verify.done_bytes, verify.differing_bytes);
        cx.step.notice(Notice::VerifyDone {
            bytes,
            differing_bytes,
        });
        if let Some(id) = self.copier.verify_command() {
            cx.step.emit(Action::CommandDone { id, result: Ok(()) });
        }
    }
}

/// Runs of blocks whose digests differ, each all zero or not; a side without digests differs
/// everywhere.
fn differing_runs(
    range: ByteRange,
    here: &[BlockHash],
    theirs: &[BlockHash],
) -> Vec<(ByteRange, bool)> {
    let mut runs: Vec<(ByteRange, bool)> = Vec::new();
    for (index, (start, hash)) in (range.offset / BLOCK_BYTES..)
        .map(|block| block * BLOCK_BYTES)
        .zip(here)
        .enumerate()
    {
        if theirs.get(index) == Some(hash) {
            continue;
        }
        let block = ByteRange::between(start, (start + BLOCK_BYTES).min(range.end()));
        let zero = *hash == BlockHash::ZERO;
        match runs.last_mut() {
            Some((run, z)) if run.end() == block.offset && *z == zero => run.len += block.len,
            _ => runs.push((block, zero)),
        }
    }
    runs
}

fn copy_message<P: Payload>(
    seq: Seq,
    at: VolumeRange,
    range: ByteRange,
    zero: bool,
    data: &P,
    kind: WriteKind,
) -> Message<P> {
    let mark = ClientMark::default();
    if zero {
        let at = VolumeRange { range, ..at };
        return Message::Zero {
            seq,
            at,
            hole: true,
            fua: false,
            kind,
            mark,
        };
    }
    let start = usize::try_from(range.offset - at.range.offset).unwrap_or(usize::MAX);
    let len = usize::try_from(range.len).unwrap_or(usize::MAX);
    Message::Write {
        seq,
        volume: at.volume,
        offset: range.offset,
        data: data.slice(start, len),
        fua: false,
        kind,
        mark,
    }
}
