//! Peer connections of the data plane: dialling, accepting, routing the first frame to its resource,
//! messages in both directions.

use super::super::peer::{Broken, HELLO_TIMEOUT_MS, Incoming, LINGER_MS, Peer, PeerState, prepare};
use super::super::pool::PoolBuf;
use super::super::ring::{Fd, Op};
use super::super::socket::{Received, shut};
use super::super::tls::Tls;
use super::{Place, Plane, Token};
use crate::core::api::{ConnId, Event};
use crate::core::message::Message;
use crate::wire::{FrameHeader, RejectReason};
use nix::errno::Errno;
use vocabulary::{ClusterId, NodeId, Time};

/// Most peer connections of a data plane: every node for a good number of resources, and some that
/// have not said who they are.
const MAX_PEERS: usize = 4096;

/// Bits of a [`ConnId`] that say where the connection is in the table; the others are its serial.
const INDEX_BITS: u32 = 16;

fn conn_id(index: usize, serial: u64) -> ConnId {
    ConnId(serial << INDEX_BITS | u64::try_from(index).unwrap_or(0))
}

impl Plane {
    fn peer_of(&mut self, conn: ConnId) -> Option<usize> {
        let index = usize::try_from(conn.0 & ((1 << INDEX_BITS) - 1)).ok()?;
        let peer = self.peers.get(index)?;
        (peer.serial == conn.0 >> INDEX_BITS).then_some(index)
    }

    fn mark_peer(&mut self, index: usize) {
        if !std::mem::replace(&mut self.peers[index].dirty, true) {
            self.dirty_peers.push(index);
        }
    }

    pub(super) fn flush_peer(&mut self, index: usize) {
        let Some(peer) = self.peers.get_mut(index) else {
            return;
        };
        peer.dirty = false;
        match peer.flush(&mut self.ring, Token::PeerSend(index)) {
            Ok(()) => self.end_peer(index),
            Err(_) => self.lose_peer(index),
        }
    }

    /// Begins to connect; the answer is an event in any case.
    pub(super) fn dial(&mut self, place: Place, node: NodeId) {
        let slot = &self.resources[place.index];
        let identity = (slot.cluster, slot.id);
        self.dials = self.dials.wrapping_add(1);
        let addresses = self.addresses.get(&node).map_or(&[][..], Vec::as_slice);
        let turn = self.dials.checked_rem(addresses.len());
        let socket = turn
            .and_then(|turn| addresses.get(turn))
            .and_then(|address| Some((address.socket().ok()?, address.to_system().ok()?)));
        let Some((fd, address)) = socket.filter(|_| self.peers.len() < MAX_PEERS) else {
            self.events
                .push_back((place, Event::DialFailed { peer: node }));
            return;
        };
        let serial = self.next_serial();
        let index = self.peers.vacant_key();
        let op = Op::Connect {
            fd: fd.clone(),
            address: Box::new(address),
        };
        let key = self.ring.start(Token::PeerConnect(index), op);
        let state = PeerState::Connecting { peer: node, key };
        let owner = (place.index, place.serial);
        self.peers
            .insert(Peer::dialing(serial, fd, identity, owner, state, self.now));
    }

    pub(super) fn peer_connected(&mut self, index: usize, result: Result<usize, Errno>) {
        let peer = &mut self.peers[index];
        let PeerState::Connecting { peer: node, .. } = peer.state else {
            // Given up meanwhile.
            self.peers.remove(index);
            return;
        };
        let Some((at, serial)) = peer.resource else {
            return;
        };
        let place = Place { index: at, serial };
        if result.is_err() {
            self.peers.remove(index);
            self.feed(place, Event::DialFailed { peer: node });
            return;
        }
        prepare(&peer.fd);
        let Some(credentials) = &self.credentials else {
            peer.state = PeerState::Open;
            peer.arm(&mut self.ring, &self.pool, Token::PeerRecv(index));
            return self.dialed(index, node);
        };
        let tls = credentials
            .name(node)
            .map(|name| Tls::connecting(credentials.client(), name));
        peer.state = PeerState::Securing { peer: node };
        let Some(Ok(tls)) = tls else {
            return self.lose_peer(index);
        };
        peer.secure(tls);
        peer.arm(&mut self.ring, &self.pool, Token::PeerRecv(index));
        self.mark_peer(index);
    }

    /// The node that was dialled is there.
    fn dialed(&mut self, index: usize, node: NodeId) {
        let peer = &mut self.peers[index];
        peer.state = PeerState::Open;
        peer.deadline = None;
        let conn = conn_id(index, peer.serial);
        if let Some((at, serial)) = peer.resource {
            let place = Place { index: at, serial };
            self.feed(place, Event::Dialed { peer: node, conn });
        }
    }

    pub(super) fn accept_peer(&mut self, serial: u64, fd: Fd, cluster: ClusterId) {
        if self.peers.len() >= MAX_PEERS {
            tracing::warn!(limit = MAX_PEERS, "too many peer connections");
            return;
        }
        let tls = self
            .credentials
            .as_ref()
            .map(|credentials| Tls::accepting(credentials.server()));
        let tls = match tls.transpose() {
            Ok(tls) => tls,
            Err(error) => {
                tracing::error!(%error, "a peer connection can't be secured");
                return;
            }
        };
        let index = self
            .peers
            .insert(Peer::accepted(serial, fd, cluster, tls, self.now));
        self.peers[index].arm(&mut self.ring, &self.pool, Token::PeerRecv(index));
    }

    pub(super) fn peer_received(&mut self, index: usize, op: Op, result: Result<usize, Errno>) {
        let peer = &mut self.peers[index];
        match peer.inbox.received(op, result) {
            _ if matches!(peer.state, PeerState::Closing | PeerState::Dead) => self.end_peer(index),
            Ok(Received::Bytes(_) | Received::Nothing) => self.pump_peer(index),
            Ok(Received::End) | Err(_) => self.lose_peer(index),
        }
    }

    pub(super) fn peer_sent(&mut self, index: usize, op: Op, result: Result<usize, Errno>) {
        let peer = &mut self.peers[index];
        let token = Token::PeerSend(index);
        if peer
            .outbox
            .sent(&mut self.ring, &peer.fd, token, op, result)
            .is_err()
        {
            self.lose_peer(index);
        } else if peer.tls.is_some() {
            self.flush_peer(index);
        } else {
            self.end_peer(index);
        }
    }

    /// Hands all messages that have come to the core.
    fn pump_peer(&mut self, index: usize) {
        loop {
            let peer = &mut self.peers[index];
            let goes_on = matches!(
                peer.state,
                PeerState::Securing { .. } | PeerState::Open | PeerState::Anonymous
            );
            if !goes_on || peer.inbox.is_armed() {
                return;
            }
            let next = peer.next(&self.pool);
            if peer.tls.as_ref().is_some_and(|tls| tls.wants_to_send()) {
                self.mark_peer(index);
            }
            let peer = &mut self.peers[index];
            if let (PeerState::Securing { peer: node }, Ok(_)) = (peer.state, &next)
                && peer.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
            {
                self.dialed(index, node);
            }
            let peer = &mut self.peers[index];
            match next {
                Ok(Incoming::Message(header, message)) => {
                    self.message(index, header, message);
                }
                Ok(Incoming::NeedMore) => {
                    return peer.arm(&mut self.ring, &self.pool, Token::PeerRecv(index));
                }
                Ok(Incoming::Stalled) => {
                    if !std::mem::replace(&mut peer.stalled, true) {
                        self.stalled_peers.push(index);
                    }
                    return;
                }
                Err(error) => return self.broken(index, &error),
            }
        }
    }

    pub(super) fn retry_peer(&mut self, index: usize) {
        if self
            .peers
            .get_mut(index)
            .is_some_and(|peer| std::mem::take(&mut peer.stalled))
        {
            self.pump_peer(index);
        }
    }

    fn message(&mut self, index: usize, header: FrameHeader, message: Message<PoolBuf>) {
        let peer = &mut self.peers[index];
        if peer.state == PeerState::Anonymous {
            // The decoder lets nothing but a Hello or an Attach of this cluster through first.
            if let (Some(tls), Some(credentials)) = (&peer.tls, &self.credentials) {
                let proved = credentials.node(tls.certificates());
                let claimed = match &message {
                    Message::Hello { node, .. } | Message::Attach { node, .. } => Some(*node),
                    _ => None,
                };
                if claimed.is_none() || claimed != proved {
                    tracing::warn!(
                        ?proved,
                        "a peer says that it is another node than it proves"
                    );
                    return self.lose_peer(index);
                }
            }
            let Some(place) = self.place_of(header.context.resource) else {
                return self.refuse(index, RejectReason::Resource);
            };
            let peer = &mut self.peers[index];
            peer.state = PeerState::Open;
            peer.deadline = None;
            peer.resource = Some((place.index, place.serial));
        }
        let peer = &self.peers[index];
        let Some((at, serial)) = peer.resource else {
            return;
        };
        let conn = conn_id(index, peer.serial);
        let generation = header.context.generation;
        self.feed(
            Place { index: at, serial },
            Event::Message {
                conn,
                generation,
                message,
            },
        );
    }

    pub(super) fn send(&mut self, conn: ConnId, message: Message<PoolBuf>) {
        let Some(index) = self.peer_of(conn) else {
            return;
        };
        let peer = &mut self.peers[index];
        if peer.state != PeerState::Open {
            return;
        }
        let Some(slot) = peer.resource.and_then(|(at, _)| self.resources.get(at)) else {
            return;
        };
        let follows = matches!(
            message,
            Message::Attach { .. } | Message::Forward { .. } | Message::AskMap { .. }
        );
        if !peer.is_dialed || follows {
            peer.position = slot.machine.frame_context();
        }
        if peer.send((slot.cluster, slot.id), message, &mut self.crcs) {
            self.mark_peer(index);
        } else {
            self.lose_peer(index);
        }
    }

    /// The core closes a connection: what was sent before still leaves.
    pub(super) fn close_conn(&mut self, conn: ConnId) {
        if let Some(index) = self.peer_of(conn) {
            self.close_peer(index);
        }
    }

    fn close_peer(&mut self, index: usize) {
        self.report_lost(index);
        let until = self.now.plus_ms(LINGER_MS);
        let peer = &mut self.peers[index];
        if !matches!(peer.state, PeerState::Closing | PeerState::Dead) {
            peer.state = PeerState::Closing;
            peer.deadline = Some(until);
        }
        self.mark_peer(index);
    }

    fn broken(&mut self, index: usize, error: &Broken) {
        let error = match error {
            Broken::Wire(error) => error,
            Broken::Tls(error) => {
                let credentials = self.credentials.as_ref();
                let error = credentials.map(|credentials| credentials.explain(error));
                let error = error.unwrap_or_default();
                tracing::warn!(%error, "a peer connection is given up");
                // What tells the peer so still leaves.
                return self.close_peer(index);
            }
            Broken::Closed => return self.lose_peer(index),
        };
        tracing::warn!(%error, "a peer connection is given up");
        match error.reject_reason() {
            Some(reason) => self.refuse(index, reason),
            None => self.lose_peer(index),
        }
    }

    fn refuse(&mut self, index: usize, reason: RejectReason) {
        self.peers[index].reject(reason);
        self.close_peer(index);
    }

    /// The connection is gone.
    fn lose_peer(&mut self, index: usize) {
        self.report_lost(index);
        let peer = &mut self.peers[index];
        if peer.state != PeerState::Dead {
            peer.state = PeerState::Dead;
            peer.outbox.fail();
            shut(&peer.fd);
        }
        self.mark_peer(index);
    }

    /// Tells the core, once, that nothing more comes from a connection that it knows.
    fn report_lost(&mut self, index: usize) {
        let peer = &self.peers[index];
        let Some((at, serial)) = peer.resource else {
            return;
        };
        let event = match peer.state {
            PeerState::Open => Event::Disconnected {
                conn: conn_id(index, peer.serial),
            },
            PeerState::Securing { peer } => Event::DialFailed { peer },
            _ => return,
        };
        self.events.push_back((Place { index: at, serial }, event));
    }

    /// Closes what is to be closed and has sent all; forgets what is over.
    fn end_peer(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.state == PeerState::Closing && peer.outbox.is_idle() {
            peer.state = PeerState::Dead;
            shut(&peer.fd);
        }
        if peer.is_over() && !peer.dirty {
            self.peers.remove(index);
        }
    }

    pub(super) fn scan_peers(&mut self) {
        for index in 0..self.peers.capacity() {
            let Some(peer) = self.peers.get_mut(index) else {
                continue;
            };
            if peer.deadline.is_none_or(|at: Time| at > self.now) {
                continue;
            }
            // Once is enough: what was stopped completes.
            peer.deadline = None;
            match peer.state {
                PeerState::Connecting { key, .. } => self.ring.cancel(key),
                PeerState::Anonymous => {
                    tracing::info!(ms = HELLO_TIMEOUT_MS, "a connection said nothing in time");
                    self.lose_peer(index);
                }
                PeerState::Closing | PeerState::Securing { .. } => self.lose_peer(index),
                PeerState::Open | PeerState::Dead => {}
            }
        }
    }

    pub(super) fn close_peers_of(&mut self, place: Place) {
        for index in 0..self.peers.capacity() {
            let Some(peer) = self.peers.get_mut(index) else {
                continue;
            };
            if peer.resource != Some((place.index, place.serial)) {
                continue;
            }
            if let PeerState::Connecting { key, .. } = peer.state {
                self.ring.cancel(key);
            } else {
                self.lose_peer(index);
            }
        }
    }
}
