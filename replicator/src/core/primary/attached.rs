//! Other nodes' clients (RULES 12): nodes that follow *attach* and forward requests, which take the
//! way of this node's own clients' requests and are answered on the connection they came on. What is
//! sent again is not executed again. What this primary may not answer any more it does not answer:
//! the connection ends, and the request goes to another primary.

use super::*;
use crate::core::message::{MAX_NUMBERS, NumberEntry, RefuseReason};
use crate::core::sessions::node_bits;

/// A node that forwards.
#[derive(Clone, Debug)]
pub(super) struct Attachment {
    conn: ConnId,
    node: NodeId,
    session: u64,
    /// The node's earlier sessions have ended; requests are taken.
    admitted: bool,
    /// The highest number that came.
    last: u64,
    heard: Time,
}

/// A request as another node forwards it.
#[derive(Debug)]
pub(crate) struct Forwarded<P> {
    pub(crate) number: u64,
    pub(crate) released: u64,
    pub(crate) again: bool,
    pub(crate) volume: VolumeId,
    pub(crate) request: ClientRequest<P>,
}

impl<P: Payload> Primary<P> {
    /// May requests be given to this primary now?
    pub(crate) fn takes_requests(&self, cx: &Cx<'_, '_, P>) -> bool {
        let up = matches!(
            self.stage,
            Stage::Promising | Stage::Gathering | Stage::Serving
        );
        up && !(cx.local.failed() && self.disk_error(cx) == ClientError::Shutdown)
    }

    pub(crate) fn set_follow(&mut self, cx: &mut Cx<'_, '_, P>, follow: bool) {
        if self.follow && !follow {
            self.detach_all(cx);
        }
        self.follow = follow;
    }

    /// A node wants to forward.
    pub(crate) fn attach(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        conn: ConnId,
        node: NodeId,
        session: u64,
    ) {
        let older = |a: &Attachment| a.node == node && a.conn > conn;
        let reason = if self.attached.iter().any(older) {
            // What an earlier connection still brings comes too late.
            Some(RefuseReason::OlderSession)
        } else if !self.follow || !self.takes_requests(cx) {
            Some(RefuseReason::NotPrimary)
        } else {
            None
        };
        if let Some(reason) = reason {
            let message = Message::Refuse { reason };
            cx.step.emit(Action::Send { conn, message });
            cx.step.emit(Action::Close { conn });
            return;
        }
        for older in self.attached.extract_if(.., |a| a.node == node) {
            cx.step.emit(Action::Close { conn: older.conn });
        }
        self.attached.push(Attachment {
            conn,
            node,
            session,
            admitted: false,
            last: 0,
            heard: cx.now(),
        });
        self.admit_attachments(cx);
    }

    /// Takes requests of a node once those of its earlier sessions have ended: replicas keep the
    /// numbers of one session a node.
    pub(super) fn admit_attachments(&mut self, cx: &mut Cx<'_, '_, P>) {
        for attachment in self.attached.iter_mut().filter(|a| !a.admitted) {
            let session = attachment.session;
            let earlier = |mark: ClientMark| {
                let same_node = node_bits(mark.session) == node_bits(session);
                mark.session != 0 && mark.session != session && same_node
            };
            if self.requests.iter().any(|(_, r)| earlier(r.asked.mark)) {
                continue;
            }
            let Some(era) = cx.local.sessions.era() else {
                continue;
            };
            attachment.admitted = true;
            cx.local.sessions.seen(session);
            let message = Message::Attached { era };
            let conn = attachment.conn;
            cx.step.emit(Action::Send { conn, message });
        }
    }

    /// A request that another node forwards. `ahead`: that node knows a newer record than this one.
    pub(crate) fn forwarded(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        conn: ConnId,
        ahead: bool,
        forwarded: Forwarded<P>,
    ) {
        let now = cx.now();
        let Forwarded {
            number,
            released,
            again,
            volume,
            request,
        } = forwarded;
        let (range, long) = match &request {
            ClientRequest::Read { range } | ClientRequest::Write { range, .. } => (*range, false),
            ClientRequest::Zero { range, .. } => {
                (*range, self.piece_of(*range, range.offset) != *range)
            }
            ClientRequest::Flush => (ByteRange::between(0, 0), false),
        };
        let Some(attachment) = self.attached.iter_mut().find(|a| a.conn == conn) else {
            return;
        };
        let beyond = |size: &u64| range.end() > *size;
        let unknown = ahead && cx.record.sizes.get(volume.index()).is_none_or(beyond);
        if !attachment.admitted || number <= attachment.last || long || unknown {
            // Nonsense, or a size that is not known here yet: it is sent again.
            return self.detach(cx, conn);
        }
        attachment.last = number;
        attachment.heard = now;
        let session = attachment.session;
        cx.local.sessions.release(session, released);
        if again && self.is_under_way(session, number, conn) {
            return;
        }
        let mark = ClientMark {
            session,
            number,
            released,
        };
        let asked = Asked {
            origin: Origin::Forwarded(conn),
            mark,
            again,
        };
        self.client(cx, asked, volume, request);
    }

    /// Is this the connection of a node whose requests are taken? If so it has been heard.
    pub(crate) fn takes_from(&mut self, cx: &mut Cx<'_, '_, P>, conn: ConnId) -> bool {
        let now = cx.now();
        let mut attached = self.attached.iter_mut();
        let attachment = attached.find(|a| a.conn == conn && a.admitted);
        attachment.map(|a| a.heard = now).is_some()
    }

    /// The request came on an earlier connection and is under way: it is answered on this one.
    fn is_under_way(&mut self, session: u64, number: u64, conn: ConnId) -> bool {
        let mut requests = self.requests.iter_mut();
        let found = requests
            .find(|(_, r)| (r.asked.mark.session, r.asked.mark.number) == (session, number));
        if let Some((_, request)) = found {
            request.asked.origin = Origin::Forwarded(conn);
            return true;
        }
        false
    }

    /// Deals with a write that was sent again and was executed before; false where it was not.
    pub(super) fn was_applied(&mut self, cx: &mut Cx<'_, '_, P>, key: usize) -> bool {
        let request = &mut self.requests[key];
        let fua = match &request.body {
            Body::Write { fua, .. } | Body::Zero { fua, .. } => *fua,
            Body::Read | Body::Flush => return false,
        };
        let mark = request.asked.mark;
        match cx.local.sessions.applied(mark.session, mark.number) {
            _ if mutated(Mutation::ResentExecutedTwice) => return false,
            Applied::No => return false,
            // All required replicas have it. Those that got it by reconciliation have it in a cache.
            Applied::Yes if fua => {
                request.body = Body::Flush;
                request.started = true;
                self.flush_request(cx, key);
            }
            Applied::Yes => self.reply(cx, key, Ok(None)),
            Applied::Torn => self.reply(cx, key, Err(ClientError::Io)),
        }
        true
    }

    /// Answers a request, or hands it on where another primary is to answer it.
    pub(super) fn finish(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        request: Request<P>,
        result: Result<Option<P>, ClientError>,
    ) {
        let over = matches!(result, Err(ClientError::Shutdown));
        let Asked { origin, mark, .. } = request.asked;
        match origin {
            // Without a number only what can't have been executed goes elsewhere.
            Origin::Client(id) if over && self.follow && request.is_repeatable() => {
                self.give_back(Owner::Client(id), request);
            }
            Origin::Own if over => self.give_back(Owner::Number(mark.number), request),
            Origin::Forwarded(_) if over => {}
            _ => self.tell(cx, request.asked, result),
        }
    }

    /// Tells whoever asked.
    pub(super) fn tell(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        asked: Asked,
        result: Result<Option<P>, ClientError>,
    ) {
        let number = asked.mark.number;
        match asked.origin {
            Origin::Client(id) => cx.step.emit(Action::Reply { id, result }),
            Origin::Own => self.answered.push((number, result)),
            Origin::Forwarded(conn) => {
                let message = Message::Answer { number, result };
                cx.step.emit(Action::Send { conn, message });
            }
            Origin::Nobody => {}
        }
    }

    fn give_back(&mut self, owner: Owner, request: Request<P>) {
        let range = request.at.range;
        self.returned.push(Returned {
            owner,
            volume: request.at.volume,
            request: match request.body {
                Body::Read => ClientRequest::Read { range },
                Body::Write { data, fua } => ClientRequest::Write { range, data, fua },
                Body::Zero { hole, fua, fast } => ClientRequest::Zero {
                    range,
                    hole,
                    fua,
                    fast,
                },
                Body::Flush => ClientRequest::Flush,
            },
        });
    }

    // ---- connections ----

    /// A message on a node's connection that is no request.
    pub(super) fn attached_message(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        conn: ConnId,
        message: &Message<P>,
    ) {
        let now = cx.now();
        let Some(attachment) = self.attached.iter_mut().find(|a| a.conn == conn) else {
            return;
        };
        attachment.heard = now;
        match message {
            Message::Ping { token } => {
                let message = Message::Pong { token: *token };
                cx.step.emit(Action::Send { conn, message });
            }
            Message::Pong { .. } => {}
            _ => self.detach(cx, conn),
        }
    }

    pub(super) fn detached(&mut self, conn: ConnId) {
        self.attached.retain(|a| a.conn != conn);
    }

    pub(crate) fn detach(&mut self, cx: &mut Cx<'_, '_, P>, conn: ConnId) {
        cx.step.emit(Action::Close { conn });
        self.detached(conn);
    }

    pub(super) fn detach_all(&mut self, cx: &mut Cx<'_, '_, P>) {
        for Attachment { conn, .. } in std::mem::take(&mut self.attached) {
            cx.step.emit(Action::Close { conn });
        }
    }

    /// A node pings; a silence of several time-outs means that it is gone.
    pub(super) fn tick_attached(&mut self, cx: &mut Cx<'_, '_, P>) {
        let (now, limit) = (cx.now(), 3 * self.settings.peer_timeout_ms);
        let silent = |a: &mut Attachment| now.ms_since(a.heard) > limit;
        for Attachment { conn, .. } in self.attached.extract_if(.., silent) {
            cx.step.emit(Action::Close { conn });
        }
    }

    // ---- the table, for replicas ----

    /// Gives a replica this primary's numbers, before anything else in its session. What is under
    /// way and not acknowledged comes with its write.
    pub(super) fn tell_numbers(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let Some(era) = cx.local.sessions.era() else {
            return;
        };
        let coming: Vec<(u64, u64)> = self
            .ops_under_way()
            .filter(|(_, op)| !op.acked.contains(node))
            .map(|(_, op)| (op.mark.session, op.mark.number))
            .collect();
        let entries: Vec<NumberEntry> = cx
            .local
            .sessions
            .all()
            .filter(|entry| !coming.contains(&(entry.mark.session, entry.mark.number)))
            .collect();
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        // The era goes there in any case.
        let mut chunks = entries.chunks(MAX_NUMBERS);
        let mut chunk = chunks.next().unwrap_or_default();
        loop {
            let entries = chunk.to_vec();
            peer.send(cx.step, Message::Numbers { era, entries });
            match chunks.next() {
                Some(next) => chunk = next,
                None => return,
            }
        }
    }

    /// Members that hold this primary's bytes are told so.
    pub(super) fn tell_settled(&mut self, cx: &mut Cx<'_, '_, P>) {
        for node in cx.other_members().iter() {
            self.tell_settled_to(cx, node);
        }
    }

    pub(super) fn tell_settled_to(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId) {
        let serving = matches!(self.stage, Stage::Serving | Stage::Draining);
        if let Some(peer) = self.peers.get_mut(&node)
            && serving
            && !self.reconciling
            && peer.joined
            && peer.sync.is_none()
        {
            peer.send(cx.step, Message::Settled);
        }
    }
}

impl<P> Request<P> {
    /// Is it without effect, or never begun?
    const fn is_repeatable(&self) -> bool {
        !self.started || matches!(self.body, Body::Read | Body::Flush)
    }
}
