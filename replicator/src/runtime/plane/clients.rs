//! Client connections of the data plane: accepting, reading requests as far as the limits allow,
//! replying, and the order between connections of one export (RULES 12).

use super::super::client::{
    Client, ClientCommand, ClientOp, ClientStep, GATE_LOOK_MS, GATE_MS, GOODBYE_MS, Gate,
    LARGE_BYTES, LINGER_MS, MAX_UNSENT_BYTES, MIN_SHARE_BYTES, Pending as Behind, SETTLE_MS,
    STUCK_MS,
};
use super::super::pool::PoolBuf;
use super::super::ring::{Op, sys};
use super::super::socket::{Outbox, Received, shut, shut_sending};
use super::super::tls::{Opened, Tls};
use super::{Listener, Pending, Plane, Token};
use crate::core::api::{ClientError, ClientRequest, Event, RequestId};
use nix::errno::Errno;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use vocabulary::{ResourceId, VolumeId};

/// Most client connections of a data plane: each may hold a receive buffer.
const MAX_CLIENTS: usize = 1024;

/// What became of one look at a client's input.
enum Parsed {
    /// Something was taken: look again.
    GoOn,
    /// More must be received.
    NeedMore,
    /// Something in flight must end first.
    Stalled,
    /// Nothing more is read.
    Stop,
}

impl Plane {
    pub(super) fn listen(&mut self, listener: Listener) {
        let index = self.listeners.insert(listener);
        self.arm_listener(index);
    }

    pub(super) fn arm_listener(&mut self, index: usize) {
        if self.shutdown.is_some() {
            return;
        }
        if let Some(Listener::Clients { fd, armed, .. } | Listener::Peers { fd, armed, .. }) =
            self.listeners.get_mut(index)
            && !std::mem::replace(armed, true)
        {
            let op = Op::Accept {
                fd: fd.clone(),
                accepted: None,
            };
            self.ring.start(Token::Accept(index), op);
        }
    }

    pub(super) fn accepted(&mut self, index: usize, op: Op, result: Result<usize, Errno>) {
        if let Some(Listener::Clients { armed, .. } | Listener::Peers { armed, .. }) =
            self.listeners.get_mut(index)
        {
            *armed = false;
        }
        match (result, op) {
            (
                Ok(_),
                Op::Accept {
                    accepted: Some(socket),
                    ..
                },
            ) => {
                self.take_in(index, socket);
                self.arm_listener(index);
            }
            (Err(Errno::ECONNABORTED | Errno::EINTR), _) => self.arm_listener(index),
            // No descriptors or no memory: again with the next scan. ECANCELED, EINVAL: shutdown.
            (Err(error), _) if self.shutdown.is_none() => {
                tracing::warn!(%error, "a connection could not be accepted");
            }
            _ => {}
        }
    }

    fn take_in(&mut self, index: usize, socket: OwnedFd) {
        if self.shutdown.is_some() {
            return;
        }
        let fd = Arc::new(socket);
        super::super::peer::prepare(&fd);
        let serial = self.next_serial();
        match self.listeners.get_mut(index) {
            Some(Listener::Clients { protocol, .. }) => {
                let client = Client::new(serial, fd, protocol.as_mut(), self.now);
                if self.clients.len() >= MAX_CLIENTS && !self.make_way() {
                    tracing::warn!(limit = MAX_CLIENTS, "too many client connections");
                    return;
                }
                let index = self.clients.insert(client);
                self.mark_client(index);
                self.pump_client(index);
            }
            Some(Listener::Peers { cluster, .. }) => {
                let cluster = *cluster;
                self.accept_peer(serial, fd, cluster);
            }
            None => {}
        }
    }

    /// Ends the connection that has been in its handshake for the longest time, so that those who say
    /// nothing keep nobody out; false where there is none.
    fn make_way(&mut self) -> bool {
        let undecided = self
            .clients
            .iter()
            .filter(|(_, client)| client.target.is_none() && !client.dead)
            .min_by_key(|(_, client)| client.serial);
        let Some((index, _)) = undecided else {
            return false;
        };
        self.kill_client(index);
        true
    }

    pub(super) fn mark_client(&mut self, index: usize) {
        if !std::mem::replace(&mut self.clients[index].dirty, true) {
            self.dirty_clients.push(index);
        }
    }

    pub(super) fn flush_client(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else {
            return;
        };
        client.dirty = false;
        let token = Token::ClientSend(index);
        let flushed = match &mut client.tls {
            None => {
                client.outbox.flush(&mut self.ring, &client.fd, token);
                Ok(())
            }
            Some(tls) => client
                .outbox
                .flush_secured(tls, &mut self.ring, &client.fd, token),
        };
        if flushed.is_err() {
            self.kill_client(index);
        } else {
            self.end_client(index);
        }
    }

    pub(super) fn client_received(&mut self, index: usize, op: Op, result: Result<usize, Errno>) {
        let client = &mut self.clients[index];
        match client.inbox.received(op, result) {
            Ok(Received::Bytes(_) | Received::Nothing) if client.leaving && !client.dead => {
                self.see_client_off(index);
            }
            Ok(Received::Bytes(_) | Received::Nothing) if !client.dead => self.pump_client(index),
            Ok(Received::End) if !client.dead && !client.leaving => {
                // It may still read: what is in flight is answered.
                self.close_client(index);
            }
            _ => {
                self.clients[index].outbox.fail();
                self.kill_client(index);
            }
        }
    }

    pub(super) fn client_sent(&mut self, index: usize, op: Op, result: Result<usize, Errno>) {
        let client = &mut self.clients[index];
        let token = Token::ClientSend(index);
        if client
            .outbox
            .sent(&mut self.ring, &client.fd, token, op, result)
            .is_err()
        {
            self.kill_client(index);
        } else if client.tls.is_some() {
            self.flush_client(index);
        } else {
            self.end_client(index);
        }
    }

    /// Begins TLS once what was to be said in the clear is said.
    fn secure_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let tls = client.protocol.tls().map(|config| Tls::accepting(&config));
        client.securing = false;
        let Some(Ok(tls)) = tls else {
            tracing::error!("a client connection can't be secured");
            return self.kill_client(index);
        };
        client.inbox.secure();
        client.outbox = Outbox::secured();
        client.tls = Some(Box::new(tls));
        self.pump_client(index);
    }

    /// Opens the next record of a secured connection.
    fn open_record(&mut self, index: usize) -> Parsed {
        let client = &mut self.clients[index];
        let Some(tls) = &mut client.tls else {
            return Parsed::NeedMore;
        };
        let opened = client.inbox.open(tls, &self.pool);
        if tls.wants_to_send() {
            self.mark_client(index);
        }
        match opened {
            Ok(Opened::Plaintext) => Parsed::GoOn,
            Ok(Opened::NeedMore) => Parsed::NeedMore,
            Ok(Opened::Closed) => {
                self.close_client(index);
                Parsed::Stop
            }
            Err(error) => {
                tracing::info!(%error, "a client connection is given up: TLS");
                // What tells the client so still leaves.
                self.close_client(index);
                Parsed::Stop
            }
        }
    }

    /// Takes requests out of what was received until more must come or something must end.
    pub(super) fn pump_client(&mut self, index: usize) {
        loop {
            let mut parsed = self.parse_client(index);
            if matches!(parsed, Parsed::NeedMore) {
                parsed = self.open_record(index);
            }
            let Some(client) = self.clients.get_mut(index) else {
                return;
            };
            match parsed {
                Parsed::GoOn => {}
                Parsed::NeedMore => {
                    client.stalled = false;
                    let token = Token::ClientRecv(index);
                    return client
                        .inbox
                        .arm(&mut self.ring, &self.pool, &client.fd, token);
                }
                Parsed::Stalled => {
                    if !std::mem::replace(&mut client.stalled, true) {
                        self.stalled_clients.push(index);
                    }
                    return;
                }
                Parsed::Stop => return,
            }
        }
    }

    fn parse_client(&mut self, index: usize) -> Parsed {
        let client = &mut self.clients[index];
        if client.closing || client.dead || client.securing || client.inbox.is_armed() {
            return Parsed::Stop;
        }
        if !matches!(client.gate, Gate::Open) {
            return Parsed::Stop;
        }
        if let Some(op) = client.held {
            return self.go_on_with(index, op);
        }
        let share = self.share();
        let client = &mut self.clients[index];
        if client.at_limit(share) {
            return Parsed::Stalled;
        }
        if client.inbox.input().is_empty() {
            return Parsed::NeedMore;
        }
        let before = client.outbox.batch.len();
        let (taken, step) = client
            .protocol
            .receive(client.inbox.input(), client.outbox.batch.headers());
        client.inbox.consume(taken);
        if client.outbox.batch.len() > before {
            self.mark_client(index);
        }
        let client = &mut self.clients[index];
        match step {
            ClientStep::NeedMore => Parsed::NeedMore,
            ClientStep::Answered => Parsed::GoOn,
            ClientStep::AtLimit => Parsed::Stalled,
            ClientStep::Secure => {
                client.securing = true;
                self.mark_client(index);
                Parsed::Stop
            }
            ClientStep::Opened(target) => {
                client.target = Some(target);
                client.deadline = None;
                client.gate = Gate::Arrived;
                self.gated.push(index);
                Parsed::Stop
            }
            ClientStep::Request(op) => {
                client.begin(&op);
                if op.command == ClientCommand::Read {
                    client.held = Some(op);
                    return self.go_on_with(index, op);
                }
                self.submit(index, op, None);
                Parsed::GoOn
            }
            ClientStep::Write(op) => {
                client.begin(&op);
                client.held = Some(op);
                Parsed::GoOn
            }
            ClientStep::Close => {
                self.close_client(index);
                Parsed::Stop
            }
        }
    }

    /// A read waits for memory, a write for its payload too.
    fn go_on_with(&mut self, index: usize, op: ClientOp) -> Parsed {
        let len = usize::try_from(op.range.len).unwrap_or(usize::MAX);
        let has_room = self.clients[index].inbox.in_payload() || self.has_room(len);
        let client = &mut self.clients[index];
        let data = if op.command == ClientCommand::Read {
            if !has_room {
                self.scarce = true;
                return Parsed::Stalled;
            }
            None
        } else {
            let begun = client.inbox.in_payload()
                || has_room && client.inbox.begin_payload(&self.pool, len);
            if !begun {
                self.scarce = true;
                return Parsed::Stalled;
            }
            let Some(data) = client.inbox.take_payload() else {
                return Parsed::NeedMore;
            };
            Some(data)
        };
        client.held = None;
        self.submit(index, op, data);
        Parsed::GoOn
    }

    /// Is there memory for a payload? Reads count twice once they have their buffers, which is cheaper
    /// than to know.
    fn has_room(&self, len: usize) -> bool {
        let used = self.pool.used_bytes().saturating_add(self.read_bytes);
        let limit = self.pool.limit_bytes();
        let kept = if len > LARGE_BYTES { limit / 4 } else { 0 };
        used == 0 || used.saturating_add(len) <= limit - kept
    }

    /// What each connection may use once half of the memory is in use; before that there is no limit to
    /// it.
    fn share(&self) -> Option<u64> {
        let half = self.pool.limit_bytes() / 2;
        let is_scarce = self.pool.used_bytes() > half;
        is_scarce.then(|| {
            let share = half / self.clients.len().max(1);
            u64::try_from(share).map_or(MIN_SHARE_BYTES, |share| share.max(MIN_SHARE_BYTES))
        })
    }

    /// Hands a request to the core.
    fn submit(&mut self, index: usize, op: ClientOp, data: Option<PoolBuf>) {
        self.stats.requests += 1;
        let client = &self.clients[index];
        let target = client.target.map(|t| (self.place_of(t.resource), t.volume));
        let (place, volume) = match target {
            Some((Some(place), volume)) if op.command != ClientCommand::Nothing => (place, volume),
            _ => {
                let result = match op.command {
                    ClientCommand::Nothing => Ok(None),
                    _ => Err(ClientError::Shutdown),
                };
                return self.answer(index, &op, result);
            }
        };
        if let ClientCommand::Status { .. } = op.command {
            return self.ask_status(place, volume, index, op);
        }
        let request = match (op.command, data) {
            (ClientCommand::Write, Some(data)) => ClientRequest::Write {
                range: op.range,
                data,
                fua: op.fua,
            },
            (ClientCommand::Read | ClientCommand::Write, _) => {
                ClientRequest::Read { range: op.range }
            }
            (ClientCommand::Zero { hole, fast }, _) => ClientRequest::Zero {
                range: op.range,
                hole,
                fua: op.fua,
                fast,
            },
            (ClientCommand::Flush | ClientCommand::Status { .. } | ClientCommand::Nothing, _) => {
                ClientRequest::Flush
            }
        };
        let serial = client.serial;
        self.read_bytes += read_bytes(&op);
        let id = self.requests.insert(Pending {
            client: index,
            serial,
            op,
        });
        let id = RequestId(u64::try_from(id).unwrap_or(u64::MAX));
        self.request(place, id, volume, request);
    }

    fn request(
        &mut self,
        place: super::Place,
        id: RequestId,
        volume: VolumeId,
        request: ClientRequest<PoolBuf>,
    ) {
        self.feed(
            place,
            Event::Client {
                id,
                volume,
                request,
            },
        );
    }

    /// Takes no more requests; the rest is answered and sent first.
    fn close_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if !client.closing {
            client.closing = true;
            if let Some(op) = client.held.take() {
                // There was no memory for it, or its payload never came as a whole: the request was never made.
                client.end(&op);
            }
            client.stalled = false;
            client.deadline = Some(self.now.plus_ms(LINGER_MS));
        }
        self.mark_client(index);
    }

    /// Forgets what is to be sent: the socket is gone.
    fn kill_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if !client.dead {
            client.dead = true;
            client.closing = true;
            client.stalled = false;
            client.outbox.fail();
            shut(&client.fd);
        }
        self.mark_client(index);
    }

    /// Closes what is to be closed and has nothing left to say; forgets what is over.
    fn end_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let is_quiet = !client.dead && client.outbox.is_idle() && client.in_flight == 0;
        if is_quiet && client.securing && !client.closing {
            return self.secure_client(index);
        }
        if is_quiet && client.hanging_up && !client.closing && client.inbox.is_read() {
            return self.close_client(index);
        }
        if is_quiet && client.closing && !client.leaving {
            client.leaving = true;
            if self.shutdown.is_some() {
                client.deadline = Some(self.now.plus_ms(GOODBYE_MS));
            }
            match &mut client.tls {
                Some(tls) => {
                    tls.close();
                    return self.mark_client(index);
                }
                None => self.see_client_off(index),
            }
        } else if is_quiet && client.leaving && client.tls.is_some() && !client.dirty {
            client.tls = None;
            self.see_client_off(index);
        }
        let client = &mut self.clients[index];
        if client.is_over() && !client.dirty {
            self.clients.remove(index);
        }
    }

    /// Says that all was sent, and waits for the client to go.
    fn see_client_off(&mut self, index: usize) {
        let client = &mut self.clients[index];
        shut_sending(&client.fd);
        if !client.inbox.is_armed() {
            client.inbox.discard();
            let token = Token::ClientRecv(index);
            client
                .inbox
                .arm(&mut self.ring, &self.pool, &client.fd, token);
        }
    }

    pub(super) fn retry_stalled(&mut self) {
        if self.stalled_clients.is_empty() && self.stalled_peers.is_empty() {
            return;
        }
        for index in std::mem::take(&mut self.stalled_clients) {
            if self
                .clients
                .get_mut(index)
                .is_some_and(|c| std::mem::take(&mut c.stalled))
            {
                self.pump_client(index);
            }
        }
        for index in std::mem::take(&mut self.stalled_peers) {
            self.retry_peer(index);
        }
    }

    /// New connections of an export are served once what its other connections had pending when they
    /// came was read (RULES 12): requests that a client sends again after a reconnect come after the
    /// old ones.
    pub(super) fn open_gates(&mut self) {
        for index in std::mem::take(&mut self.gated) {
            let Some(client) = self.clients.get(index) else {
                continue;
            };
            if client.closing {
                continue;
            }
            if matches!(client.gate, Gate::Arrived) {
                // What the kernel has put into our buffers and we have not seen yet is in neither
                // count: look at it first.
                if self.ring.is_ready() {
                    self.gated.push(index);
                    continue;
                }
                let behind = self.pending_before(index);
                self.clients[index].gate = Gate::Waiting {
                    behind,
                    since: self.now,
                };
            }
            if self.may_serve(index) {
                self.clients[index].gate = Gate::Open;
                self.pump_client(index);
            } else {
                self.gated.push(index);
            }
        }
        if !self.gated.is_empty() {
            self.next_scan = self.next_scan.min(self.now.plus_ms(GATE_LOOK_MS));
        }
    }

    fn pending_before(&self, index: usize) -> Vec<Behind> {
        let (target, serial) = (self.clients[index].target, self.clients[index].serial);
        let others = self.clients.iter().filter(|(_, other)| {
            other.target == target && other.serial < serial && !other.dead && !other.closing
        });
        others
            .map(|(client, other)| {
                let unread = sys::unread_bytes(other.fd.as_fd()).unwrap_or(0);
                let upto = other.inbox.total() + unread;
                Behind {
                    client,
                    serial: other.serial,
                    upto,
                    sent_bytes: other.outbox.sent_bytes(),
                    sent_at: self.now,
                }
            })
            .collect()
    }

    fn may_serve(&mut self, index: usize) -> bool {
        let now = self.now;
        let Gate::Waiting { behind, since } = &mut self.clients[index].gate else {
            return true;
        };
        let since = *since;
        let waited_ms = now.ms_since(since);
        // What a TCP client's own kernel still holds follows as soon as there is room: it has come
        // when the socket is found empty. A busy connection may never be; that is waited for a moment.
        let settling = waited_ms < SETTLE_MS;
        let mut behind = std::mem::take(behind);
        behind.retain_mut(|pending| {
            let Some(other) = self.clients.get(pending.client) else {
                return false;
            };
            if other.serial != pending.serial || other.closing {
                return false;
            }
            let sent_bytes = other.outbox.sent_bytes();
            if sent_bytes != pending.sent_bytes {
                (pending.sent_bytes, pending.sent_at) = (sent_bytes, now);
            }
            let unread = || sys::unread_bytes(other.fd.as_fd()).is_ok_and(|bytes| bytes > 0);
            !other.has_read(pending.upto) || (settling && unread())
        });
        if behind.is_empty() {
            return true;
        }
        for pending in &behind {
            let mute = self.clients[pending.client].outbox.unsent() >= MAX_UNSENT_BYTES;
            if mute && now.ms_since(pending.sent_at) >= GATE_MS {
                // It takes no replies: given up. What was not read of it is never executed, which is
                // as good an order.
                self.kill_client(pending.client);
            } else if !mute && waited_ms >= GATE_MS {
                // Requests themselves are stuck: the new connection goes, its client may try again.
                self.kill_client(index);
                return false;
            }
        }
        self.clients[index].gate = Gate::Waiting { behind, since };
        false
    }

    pub(super) fn scan_clients(&mut self) {
        let scarce = std::mem::take(&mut self.scarce);
        for index in 0..self.clients.capacity() {
            let Some(client) = self.clients.get_mut(index) else {
                continue;
            };
            let sent = client.outbox.sent_bytes();
            if client.outbox.unsent() == 0 || sent != client.seen_sent.0 {
                client.seen_sent = (sent, self.now);
            } else if scarce && !client.dead && self.now.ms_since(client.seen_sent.1) >= STUCK_MS {
                tracing::info!(
                    ms = STUCK_MS,
                    "a client that takes no replies is disconnected: others wait for its memory"
                );
                self.kill_client(index);
                continue;
            }
            let client = &self.clients[index];
            let late = client.deadline.is_some_and(|at| at <= self.now);
            // A closing client's requests in flight still run to their end; their replies don't.
            let ends = client.closing || client.hanging_up;
            if late && !client.dead && (!ends || client.in_flight == 0) {
                self.kill_client(index);
            }
        }
    }

    pub(super) fn close_clients_of(&mut self, resource: ResourceId) {
        for index in 0..self.clients.capacity() {
            let Some(client) = self.clients.get(index) else {
                continue;
            };
            if client
                .target
                .is_some_and(|target| target.resource == resource)
            {
                // The core answers no more: requests in flight are forgotten with the connection.
                let serial = client.serial;
                let read_bytes_left = &mut self.read_bytes;
                self.requests.retain(|_, request| {
                    let stays = request.client != index || request.serial != serial;
                    if !stays {
                        *read_bytes_left -= read_bytes(&request.op);
                    }
                    stays
                });
                self.kill_client(index);
            }
        }
    }

    /// Takes no more requests of a resource's clients; what is in flight is answered first.
    pub(super) fn hang_up(&mut self, resource: ResourceId) {
        for index in 0..self.clients.capacity() {
            if self
                .clients
                .get(index)
                .is_some_and(|client| client.target.is_some_and(|t| t.resource == resource))
            {
                self.hang_up_client(index);
            }
        }
    }

    /// What is asked from now on is refused in the protocol's own words.
    fn hang_up_client(&mut self, index: usize) {
        let deadline = self.now.plus_ms(LINGER_MS);
        let client = &mut self.clients[index];
        client.protocol.shut_down();
        if client.held.is_some() || !matches!(client.gate, Gate::Open) {
            // Half a request, or none yet: there is nothing to say.
            return self.close_client(index);
        }
        if !client.closing && !std::mem::replace(&mut client.hanging_up, true) {
            client.deadline = Some(deadline);
            self.pump_client(index);
            self.mark_client(index);
        }
    }

    pub(super) fn shut_clients_down(&mut self) {
        for index in 0..self.clients.capacity() {
            if self.clients.contains(index) {
                self.hang_up_client(index);
            }
        }
    }
}

/// Bytes that a read will bring.
pub(super) fn read_bytes(op: &ClientOp) -> usize {
    match op.command {
        ClientCommand::Read => usize::try_from(op.range.len).unwrap_or(usize::MAX),
        _ => 0,
    }
}

impl Client {
    pub(super) const fn end(&mut self, op: &ClientOp) {
        self.in_flight -= 1;
        self.in_flight_bytes -= op.payload_bytes();
    }

    const fn begin(&mut self, op: &ClientOp) {
        self.in_flight += 1;
        self.in_flight_bytes += op.payload_bytes();
    }
}
