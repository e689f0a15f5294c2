//! Clients' requests on a node that follows (RULES 12): each write gets a number in this node's
//! session, and each request is kept until it is answered, by this node's own primary or by the
//! present primary elsewhere, to which a *link* is kept up while there is something to ask. What a
//! loss of the link or a change of the primary leaves unanswered is sent again, in the order of its
//! numbers and marked as such; what may not be sent again ends with an error.

use super::Step;
use super::api::{
    Access, Action, ClientError, ClientRequest, ConnId, Payload, RequestId, Settings,
};
use super::message::{ClientMark, MAX_SPAN, Message};
use super::mutation::{Mutation, mutated};
use super::sessions::session_id;
use slab::Slab;
use std::collections::VecDeque;
use vocabulary::{ByteRange, Epoch, HistoryId, NodeId, Record, Time, VolumeId};

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
enum Waiter {
    Client(RequestId),
    /// A piece of a long write of zeroes.
    Piece(usize),
}

/// A long write of zeroes, cut into requests of their own: a number stands for one write.
#[derive(Clone, Debug)]
struct Whole {
    id: RequestId,
    left: usize,
    result: Result<(), ClientError>,
    rest: Option<Rest>,
}

/// Of a write of zeroes that shall be fast, what lies behind its first piece. That one alone finds out
/// whether it is: a refusal says that nothing was changed.
#[derive(Clone, Copy, Debug)]
struct Rest {
    volume: VolumeId,
    range: ByteRange,
    hole: bool,
    fua: bool,
}

#[derive(Clone, Debug)]
struct Kept<P> {
    waiter: Waiter,
    volume: VolumeId,
    request: ClientRequest<P>,
    /// A primary may have it.
    again: bool,
}

/// A number that was given out.
#[derive(Clone, Debug)]
enum Slot<P> {
    Answered,
    /// This node's own primary has the request.
    Here(Waiter),
    Kept(Kept<P>),
}

/// The connection to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Idle,
    Dialing(NodeId),
    Attaching(Connected),
    Attached(Connected),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connected {
    conn: ConnId,
    heard: Time,
    asked: Time,
}

/// A request for this node's own primary.
#[derive(Debug)]
pub(crate) struct Given<P> {
    pub(crate) mark: ClientMark,
    pub(crate) again: bool,
    pub(crate) volume: VolumeId,
    pub(crate) request: ClientRequest<P>,
}

/// What this node's own primary gives back unanswered.
#[derive(Clone, Debug)]
pub(crate) struct Returned<P> {
    pub(crate) owner: Owner,
    pub(crate) volume: VolumeId,
    pub(crate) request: ClientRequest<P>,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It has no number.
    Client(RequestId),
    /// It has.
    Number(u64),
}

/// The requests of this node's clients.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder<P> {
    node: NodeId,
    access: Access,
    session: u64,
    /// Longest write of zeroes that has one number, in bytes.
    piece_bytes: u64,
    /// The number of the first slot.
    base: u64,
    slots: VecDeque<Slot<P>>,
    /// Numbers below were sent on the present link, or given to this node's own primary.
    sent: u64,
    /// Requests that the span has no room for.
    waiting: VecDeque<(Waiter, VolumeId, ClientRequest<P>)>,
    wholes: Slab<Whole>,
    link: Link,
    /// The primary, elsewhere, and its epoch.
    target: Option<(NodeId, Epoch)>,
    retry_at: Time,
    backoff_ms: u64,
    /// The era in which numbers were sent, and the history.
    era: Option<Epoch>,
    history: Option<HistoryId>,
    /// Since when what waits has had no primary.
    stranded: Option<Time>,
}

impl<P: Payload> Forwarder<P> {
    pub(crate) fn new(node: NodeId, piece_bytes: u64) -> Self {
        Self {
            node,
            access: Access::Exclusive,
            session: 0,
            piece_bytes,
            base: 1,
            slots: VecDeque::new(),
            sent: 1,
            waiting: VecDeque::new(),
            wholes: Slab::new(),
            link: Link::Idle,
            target: None,
            retry_at: Time(0),
            backoff_ms: 0,
            era: None,
            history: None,
            stranded: None,
        }
    }

    /// Changes the access mode. With exclusive access nothing is kept: what is there ends.
    pub(crate) fn set_access(&mut self, step: &mut Step<'_, P>, access: Access) {
        self.access = access;
        match access {
            Access::Follow { session, .. } if self.session == 0 => {
                self.session = session_id(session, self.node);
            }
            Access::Follow { .. } => {}
            Access::Exclusive => {
                self.fail(step, |_| true, ClientError::NotPrimary);
                self.close(step);
            }
        }
    }

    /// Does this node forward?
    pub(crate) const fn follows(&self) -> bool {
        matches!(self.access, Access::Follow { .. })
    }

    fn next(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    fn has_room(&self) -> bool {
        (self.slots.len() as u64) < MAX_SPAN
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot<P>> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(index)
    }

    // ---- requests ----

    /// Is nothing kept for a primary?
    pub(crate) fn is_clear(&self) -> bool {
        self.sent == self.next() && self.waiting.is_empty()
    }

    /// A write goes to this node's own primary straight away: its mark, if there is room for it.
    pub(crate) fn pass(&mut self, id: RequestId) -> Option<ClientMark> {
        if !self.has_room() {
            return None;
        }
        let number = self.next();
        self.slots.push_back(Slot::Here(Waiter::Client(id)));
        self.sent = self.next();
        Some(self.mark(number))
    }

    const fn mark(&self, number: u64) -> ClientMark {
        ClientMark {
            session: self.session,
            number,
            released: self.base,
        }
    }

    /// Keeps a request for a primary.
    pub(crate) fn keep(&mut self, id: RequestId, volume: VolumeId, request: ClientRequest<P>) {
        match request {
            ClientRequest::Zero {
                range,
                hole,
                fua,
                fast,
            } if !self.is_one_piece(range) => {
                let mut first = range;
                if fast && let Some(piece) = self.pieces(range).next() {
                    first = piece;
                }
                let range = ByteRange::between(first.end(), range.end());
                let key = self.wholes.insert(Whole {
                    id,
                    left: 0,
                    result: Ok(()),
                    rest: fast.then_some(Rest {
                        volume,
                        range,
                        hole,
                        fua,
                    }),
                });
                let first = Rest {
                    volume,
                    range: first,
                    hole,
                    fua,
                };
                self.enter_pieces(key, first, fast);
            }
            request => self.enter(Waiter::Client(id), volume, request, false),
        }
    }

    fn enter_pieces(&mut self, key: usize, of: Rest, fast: bool) {
        let Rest {
            volume,
            range,
            hole,
            fua,
        } = of;
        let pieces: Vec<ByteRange> = self.pieces(range).collect();
        for range in pieces {
            if let Some(whole) = self.wholes.get_mut(key) {
                whole.left += 1;
            }
            let request = ClientRequest::Zero {
                range,
                hole,
                fua,
                fast,
            };
            self.enter(Waiter::Piece(key), volume, request, false);
        }
    }

    fn enter(&mut self, waiter: Waiter, volume: VolumeId, request: ClientRequest<P>, again: bool) {
        if self.waiting.is_empty() && self.has_room() {
            self.slots.push_back(Slot::Kept(Kept {
                waiter,
                volume,
                request,
                again,
            }));
        } else {
            self.waiting.push_back((waiter, volume, request));
        }
    }

    fn admit_waiting(&mut self) {
        while self.has_room()
            && let Some((waiter, volume, request)) = self.waiting.pop_front()
        {
            self.slots.push_back(Slot::Kept(Kept {
                waiter,
                volume,
                request,
                again: false,
            }));
        }
    }

    /// This node's own primary gives a request back: another primary gets it.
    pub(crate) fn take_back(&mut self, returned: Returned<P>) {
        let Returned {
            owner,
            volume,
            request,
        } = returned;
        match owner {
            Owner::Client(id) => self.keep(id, volume, request),
            Owner::Number(number) => {
                if let Some(slot) = self.slot(number)
                    && let Slot::Here(waiter) = slot
                {
                    *slot = Slot::Kept(Kept {
                        waiter: *waiter,
                        volume,
                        request,
                        again: true,
                    });
                    self.sent = self.sent.min(number);
                }
            }
        }
    }

    /// A numbered request is answered by whoever had it.
    pub(crate) fn answered(
        &mut self,
        step: &mut Step<'_, P>,
        number: u64,
        result: Result<Option<P>, ClientError>,
    ) {
        let Some(slot) = self.slot(number) else {
            return;
        };
        let waiter = match std::mem::replace(slot, Slot::Answered) {
            Slot::Answered => return,
            Slot::Here(waiter) => waiter,
            Slot::Kept(kept) => kept.waiter,
        };
        self.release();
        self.reply(step, waiter, result);
    }

    fn release(&mut self) {
        while matches!(self.slots.front(), Some(Slot::Answered)) {
            self.slots.pop_front();
            self.base += 1;
        }
        self.sent = self.sent.max(self.base);
    }

    fn reply(
        &mut self,
        step: &mut Step<'_, P>,
        waiter: Waiter,
        result: Result<Option<P>, ClientError>,
    ) {
        match waiter {
            Waiter::Client(id) => step.emit(Action::Reply { id, result }),
            Waiter::Piece(key) => {
                let Some(whole) = self.wholes.get_mut(key) else {
                    return;
                };
                whole.left -= 1;
                whole.result = whole.result.and(result.map(|_| ()));
                if whole.left > 0 {
                    return;
                }
                if whole.result.is_ok()
                    && let Some(rest) = whole.rest.take()
                {
                    return self.enter_pieces(key, rest, false);
                }
                let whole = self.wholes.remove(key);
                let result = whole.result.map(|()| None);
                step.emit(Action::Reply {
                    id: whole.id,
                    result,
                });
            }
        }
    }

    /// Answers kept requests with an error; those that this node's own primary has are its to answer.
    fn fail(
        &mut self,
        step: &mut Step<'_, P>,
        which: impl Fn(&Kept<P>) -> bool,
        error: ClientError,
    ) {
        for index in 0..self.slots.len() {
            if let Slot::Kept(kept) = &self.slots[index]
                && which(kept)
            {
                let waiter = kept.waiter;
                self.slots[index] = Slot::Answered;
                self.reply(step, waiter, Err(error));
            }
        }
        self.release();
        for (waiter, volume, request) in std::mem::take(&mut self.waiting) {
            let kept = Kept {
                waiter,
                volume,
                request,
                again: false,
            };
            if which(&kept) {
                self.reply(step, waiter, Err(error));
            } else {
                self.waiting
                    .push_back((kept.waiter, kept.volume, kept.request));
            }
        }
    }

    /// The resource closes: nothing is forwarded any more.
    pub(crate) fn stop(&mut self, step: &mut Step<'_, P>) {
        self.fail(step, |_| true, ClientError::Shutdown);
        self.close(step);
    }

    // ---- this node's own primary ----

    /// The next request for this node's own primary, whose table is of this era.
    pub(crate) fn give(&mut self, step: &mut Step<'_, P>, era: Epoch) -> Option<Given<P>> {
        self.close(step);
        self.stranded = None;
        self.enter_era(step, era);
        self.admit_waiting();
        while self.sent < self.next() {
            let number = self.sent;
            self.sent += 1;
            let Some(slot) = self.slot(number) else {
                continue;
            };
            if let Slot::Kept(kept) = slot {
                let here = Slot::Here(kept.waiter);
                let Slot::Kept(kept) = std::mem::replace(slot, here) else {
                    continue;
                };
                return Some(Given {
                    mark: self.mark(number),
                    again: kept.again,
                    volume: kept.volume,
                    request: kept.request,
                });
            }
        }
        None
    }

    // ---- the link ----

    /// Keeps the link to the record's primary up while there is something to ask (`asked`: besides what
    /// is kept here), and sends what it has not got yet.
    pub(crate) fn drive(
        &mut self,
        step: &mut Step<'_, P>,
        record: Option<&Record>,
        ms: &Settings,
        asked: bool,
    ) {
        let target = record
            .and_then(|r| Some((r.primary?, r.epoch)))
            .filter(|(primary, _)| *primary != self.node);
        if std::mem::replace(&mut self.target, target) != target {
            self.close(step);
            // Whatever kept the last one away says nothing of this one.
            self.backoff_ms = 0;
            self.retry_at = step.now;
        }
        self.admit_waiting();
        let idle = self.slots.is_empty();
        if matches!(self.link, Link::Attached(_)) || idle && target.is_some() {
            self.stranded = None;
        } else if self.stranded.is_none() && !idle {
            self.stranded = Some(step.now);
        }
        match (self.link, target) {
            (Link::Idle, Some((peer, _))) if (!idle || asked) && self.retry_at <= step.now => {
                self.link = Link::Dialing(peer);
                self.backoff_ms =
                    (self.backoff_ms * 2).clamp(ms.reconnect_min_ms, ms.ping_interval_ms);
                self.retry_at = step.now.plus_ms(self.backoff_ms);
                step.emit(Action::Dial { peer });
            }
            (Link::Attached(connected), _) => self.send(step, connected.conn),
            _ => {}
        }
    }

    fn send(&mut self, step: &mut Step<'_, P>, conn: ConnId) {
        let released = self.base;
        while self.sent < self.next() {
            let number = self.sent;
            self.sent += 1;
            if let Some(Slot::Kept(kept)) = self.slot(number) {
                let message = Message::Forward {
                    number,
                    released,
                    again: std::mem::replace(&mut kept.again, true),
                    volume: kept.volume,
                    request: kept.request.clone(),
                };
                step.emit(Action::Send { conn, message });
            }
        }
    }

    pub(crate) fn close(&mut self, step: &mut Step<'_, P>) {
        if let Link::Attaching(c) | Link::Attached(c) = self.link {
            step.emit(Action::Close { conn: c.conn });
        }
        if self.link != Link::Idle {
            self.unlink();
        }
    }

    fn unlink(&mut self) {
        self.link = Link::Idle;
        self.sent = self.base;
    }

    /// Is this connection the link?
    pub(crate) fn has(&self, conn: ConnId) -> bool {
        matches!(self.link, Link::Attaching(c) | Link::Attached(c) if c.conn == conn)
    }

    /// The link, once the primary has accepted it.
    pub(crate) const fn attached(&self) -> Option<ConnId> {
        match self.link {
            Link::Attached(connected) => Some(connected.conn),
            _ => None,
        }
    }

    /// The primary has said something that concerns others.
    pub(crate) const fn heard(&mut self, now: Time) {
        if let Link::Attached(connected) = &mut self.link {
            connected.heard = now;
        }
    }

    /// A connection is there; false where it is not for the link.
    pub(crate) fn dialed(&mut self, step: &mut Step<'_, P>, peer: NodeId, conn: ConnId) -> bool {
        let Some((_, epoch)) = self.target.filter(|_| self.link == Link::Dialing(peer)) else {
            return false;
        };
        self.link = Link::Attaching(Connected {
            conn,
            heard: step.now,
            asked: step.now,
        });
        let message = Message::Attach {
            node: self.node,
            to: peer,
            session: self.session,
            epoch,
        };
        step.emit(Action::Send { conn, message });
        true
    }

    /// It could not be made; false where it was not for the link.
    pub(crate) fn dial_failed(&mut self, peer: NodeId) -> bool {
        let mine = self.link == Link::Dialing(peer);
        if mine {
            self.link = Link::Idle;
        }
        mine
    }

    pub(crate) fn disconnected(&mut self, conn: ConnId) {
        if self.has(conn) {
            self.unlink();
        }
    }

    /// A message on the link.
    pub(crate) fn message(&mut self, step: &mut Step<'_, P>, message: Message<P>) {
        let (Link::Attaching(connected) | Link::Attached(connected)) = &mut self.link else {
            return;
        };
        connected.heard = step.now;
        let connected = *connected;
        match message {
            Message::Attached { era } if matches!(self.link, Link::Attaching(_)) => {
                self.link = Link::Attached(connected);
                self.backoff_ms = 0;
                self.retry_at = step.now;
                self.enter_era(step, era);
            }
            Message::Answer { number, result }
                if matches!(self.link, Link::Attached(_)) && number < self.sent =>
            {
                self.answered(step, number, result);
            }
            Message::Pong { .. } => {}
            // Refused, or nonsense: tried again after a while.
            _ => self.close(step),
        }
    }

    /// Numbers that were sent in another era may have been executed, and nobody knows.
    fn enter_era(&mut self, step: &mut Step<'_, P>, era: Epoch) {
        if self.era.replace(era).is_some_and(|before| before != era) {
            self.fail(step, |kept| kept.again, ClientError::Io);
        }
    }

    /// A newer record. A session ends with errors when the history changes: what clients were told
    /// is written may be gone.
    pub(crate) fn new_record(&mut self, step: &mut Step<'_, P>, record: &Record) {
        let before = self.history.replace(record.history);
        if before.is_some_and(|before| before != record.history)
            && !mutated(Mutation::SessionSurvivesHistory)
        {
            self.fail(step, |_| true, ClientError::Io);
            self.close(step);
            step.emit(Action::HangUp);
        }
    }

    pub(crate) fn tick(&mut self, step: &mut Step<'_, P>, ms: &Settings) {
        if let Link::Attaching(connected) | Link::Attached(connected) = &mut self.link {
            if step.now.ms_since(connected.heard) > ms.peer_timeout_ms {
                self.close(step);
            } else if step.now.ms_since(connected.asked.max(connected.heard)) >= ms.ping_interval_ms
            {
                connected.asked = step.now;
                let message = Message::Ping { token: step.now.0 };
                step.emit(Action::Send {
                    conn: connected.conn,
                    message,
                });
            }
        }
        if let (Access::Follow { errors: true, .. }, Some(since)) = (self.access, self.stranded)
            && step.now.ms_since(since) >= ms.no_primary_ms
        {
            self.fail(step, |_| true, ClientError::Io);
        }
    }

    // ---- pieces ----

    /// Whether a primary does a write of zeroes as one write, so that one number can stand for it: also
    /// a shorter one may lie across a piece's end.
    pub(crate) fn is_one_piece(&self, range: ByteRange) -> bool {
        if mutated(Mutation::PiecesByLengthOnly) {
            return range.len <= self.piece_bytes;
        }
        self.pieces(range).nth(1).is_none()
    }

    /// Pieces end at multiples of their length, so that extents are touched once.
    fn pieces(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + use<P> {
        let length = self.piece_bytes;
        range.units(length).filter_map(move |piece| {
            let start = piece * length;
            ByteRange::between(start, start + length).intersection(range)
        })
    }
}
