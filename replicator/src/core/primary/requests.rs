//! The way of a request: in, to the disk and the other replicas, and back to whoever asked.

use super::*;

impl<P: Payload> Primary<P> {
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
            _ if self.refusing => Some(ClientError::Io),
            _ => None,
        };
        let (range, body) = match request {
            ClientRequest::Read { range } => (range, Body::Read),
            ClientRequest::Write { range, data, fua } => (range, Body::Write { data, fua }),
            ClientRequest::Zero {
                range,
                hole,
                fua,
                fast,
            } => (range, Body::Zero { hole, fua, fast }),
            ClientRequest::Flush => (ByteRange::between(0, 0), Body::Flush),
        };
        let refuse = refuse.or_else(|| {
            let size = cx.record.sizes[volume.index()];
            let short = matches!(&body, Body::Write { data, .. } if data.len() as u64 != range.len);
            (range.end() > size || short).then_some(ClientError::OutOfRange)
        });
        let nothing = range.is_empty() && !matches!(body, Body::Flush);
        let piece = match body {
            Body::Zero { .. } => self.piece_of(range, range.offset),
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

    /// The first piece, from an offset on, of a write of zeroes. Pieces end at multiples of their length,
    /// so that extents are touched once.
    pub(super) fn piece_of(&self, range: ByteRange, from: u64) -> ByteRange {
        let piece = self.settings.zero_piece_bytes;
        let end = (from / piece + 1) * piece;
        ByteRange::between(from, end.min(range.end()))
    }

    /// What clients get when this node's disk has failed. With follow access another primary answers.
    pub(super) fn disk_error(&self, cx: &Cx<'_, '_, P>) -> ClientError {
        if self.follow && !cx.other_members().is_empty() {
            ClientError::Shutdown
        } else {
            ClientError::Io
        }
    }

    /// Starts a request, or puts it where it waits.
    pub(super) fn admit_request(&mut self, cx: &mut Cx<'_, '_, P>, key: usize) {
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
        if self.is_too_slow(cx, &self.requests[key]) {
            return self.answer(cx, key, Err(ClientError::NotFast));
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

    /// Is it a write of zeroes that shall be fast and would not be, with nothing done of it yet? Every
    /// replica that gets it counts, and every one that must acknowledge it.
    fn is_too_slow(&self, cx: &Cx<'_, '_, P>, request: &Request<P>) -> bool {
        let Body::Zero {
            hole, fast: true, ..
        } = request.body
        else {
            return false;
        };
        if request.started || request.piece.offset != request.at.range.offset {
            return false;
        }
        let others = self.required.without(self.node).iter();
        let live = self.peers.values().filter(|peer| peer.is_live());
        let mut nodes = others.chain(live.map(|peer| peer.node));
        let known = |node| self.peers.get(&node).map(|peer| peer.fast_zeroes);
        !cx.local.fast_zeroes.cover(hole)
            || !nodes.all(|node| known(node).is_some_and(|fast| fast.cover(hole)))
    }

    /// The window is bounded: writes wait while it is full.
    pub(super) fn window_full(&self, cx: &Cx<'_, '_, P>) -> bool {
        let window = cx.local.window();
        window.live_len() >= 2 * self.settings.window_writes
            || window.live_bytes() >= 2 * self.settings.window_bytes
            // Each of these pins an extent, and none may have to wait for another's release.
            || window.live_extents() >= cx.local.log_capacity() / 2
    }

    /// Looks again at what waits for the stage, the window or the reconciliation.
    pub(super) fn open_gate(&mut self, cx: &mut Cx<'_, '_, P>) {
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
    pub(super) fn start_request(&mut self, cx: &mut Cx<'_, '_, P>, key: usize) {
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
            Body::Zero { hole, fua, .. } => OpBody::Zero {
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
    pub(super) fn acknowledged(&mut self, cx: &mut Cx<'_, '_, P>, seq: Seq, node: NodeId) {
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
    pub(super) fn complete(&mut self, cx: &mut Cx<'_, '_, P>, seq: Seq) {
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
            let (range, from) = (request.at.range, request.piece.end());
            request.started = false;
            self.requests[key].piece = self.piece_of(range, from);
            self.admit_request(cx, key);
            return;
        }
        self.reply(cx, key, Ok(None));
    }

    pub(super) fn answer(
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

    pub(super) fn unlock(&mut self, cx: &mut Cx<'_, '_, P>, volume: VolumeId, key: Key) {
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

    pub(super) fn fail_op(&mut self, cx: &mut Cx<'_, '_, P>, seq: Seq, error: Option<DiskError>) {
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

    pub(super) fn read_done(
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
}
