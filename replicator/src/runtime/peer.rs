//! Connections to other nodes: frames in and out through [`crate::wire`]. What messages mean is the
//! core's business; here they get their bytes, their payloads go where they were received, and a
//! connection that breaks the protocol ends.

use super::pool::{Pool, PoolBuf};
use super::ring::{Fd, OpKey, Ring};
use super::socket::{Inbox, Outbox, append};
use super::tls::{Opened, Tls};
use crate::core::message::Message;
use crate::wire::{
    Decoded, Decoder, FrameContext, FrameHeader, PayloadBytes, PayloadCrc, RejectReason, WireError,
    encode, encode_reject,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use vocabulary::{ClusterId, Epoch, Generation, NodeId, ResourceId, Time};

/// A connection that is not made after this long has failed, in ms.
pub const DIAL_TIMEOUT_MS: u64 = 2_000;

/// An accepted connection that has not said Hello after this long is closed, in ms.
pub const HELLO_TIMEOUT_MS: u64 = 5_000;

/// A connection that closes has this long to take what was sent last, in ms.
pub const LINGER_MS: u64 = 1_000;

/// Bytes that wait for a peer to read them at which it is given up: twice the window that the core
/// allows (its flow control acts long before), so that a defect can't take all memory.
pub const MAX_UNSENT_BYTES: usize = 512 << 20;

impl PayloadBytes for PoolBuf {
    fn bytes(&self) -> &[u8] {
        Self::bytes(self)
    }
}

/// Where a node listens for its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket, for nodes on one machine.
    Unix(PathBuf),
}

impl PeerAddress {
    /// The address as the system takes it.
    ///
    /// # Errors
    /// Where a path is too long for a socket.
    pub fn to_system(&self) -> io::Result<SockAddr> {
        match self {
            Self::Tcp(address) => Ok((*address).into()),
            Self::Unix(path) => SockAddr::unix(path),
        }
    }

    /// A socket to dial from.
    pub(super) fn socket(&self) -> io::Result<Fd> {
        let domain = match self {
            Self::Tcp(address) => Domain::for_address(*address),
            Self::Unix(_) => Domain::UNIX,
        };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        Ok(Arc::new(OwnedFd::from(socket)))
    }
}

/// Settings of a connected stream socket: small messages must not wait for acknowledgements of
/// earlier ones.
pub(super) fn prepare(fd: &Fd) {
    // Fails on unix sockets, which have no such delay.
    let _ = socket2::SockRef::from(&**fd).set_tcp_nodelay(true);
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerState {
    /// Being dialled.
    Connecting {
        /// To whom.
        peer: NodeId,
        /// The operation, to stop it.
        key: OpKey,
    },
    /// Dialled; who is there is being made sure of.
    Securing {
        /// Who should be.
        peer: NodeId,
    },
    /// Accepted; nobody has said for which resource.
    Anonymous,
    /// Frames go to the core.
    Open,
    /// Nothing more is received; what was sent still leaves.
    Closing,
    /// The socket is of no more use.
    Dead,
}

/// The checksum of a payload that goes to several peers one after the other is computed once.
#[derive(Debug, Default)]
pub(super) struct CrcCache(Option<(PoolBuf, PayloadCrc)>);

impl CrcCache {
    fn of(&mut self, payload: &PoolBuf) -> PayloadCrc {
        if let Some((known, crc)) = &self.0
            && std::ptr::eq(known.bytes(), payload.bytes())
        {
            return *crc;
        }
        let crc = PayloadCrc::of(payload.bytes());
        self.0 = Some((payload.clone(), crc));
        crc
    }

    /// Lets go of the payload.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The peer breaks the protocol, or a frame was damaged.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It is not who it should be, or the bytes were changed on the way.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// It has said that no more comes.
    #[error("the peer has closed it")]
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Never the same for two connections.
    pub(super) serial: u64,
    pub(super) fd: Fd,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    /// `None`: in the open.
    pub(super) tls: Option<Box<Tls>>,
    pub(super) decoder: Decoder,
    pub(super) state: PeerState,
    /// The resource's place in the plane's table and its serial, once known.
    pub(super) resource: Option<(usize, u64)>,
    /// What frames say of the sender's record: of the last record that went out on this connection
    /// ("record travels first"), or on the replica's side of the record that the core has.
    pub(super) position: (Epoch, Generation),
    /// This node dialled as the primary, whose record travels first.
    pub(super) is_dialed: bool,
    /// The payload that the decoder waits for, while the pool is at its limit.
    payload_wanted: Option<usize>,
    pub(super) stalled: bool,
    pub(super) dirty: bool,
    pub(super) deadline: Option<Time>,
}

/// What a connection received.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A message.
    Message(FrameHeader, Message<PoolBuf>),
    /// Nothing yet: receive more.
    NeedMore,
    /// The pool is at its limit: again later.
    Stalled,
}

impl Peer {
    pub(super) fn dialing(
        serial: u64,
        fd: Fd,
        identity: (ClusterId, ResourceId),
        place: (usize, u64),
        state: PeerState,
        now: Time,
    ) -> Self {
        let decoder = Decoder::dialing(identity.0, identity.1);
        let deadline = now.plus_ms(DIAL_TIMEOUT_MS);
        Self::new(serial, fd, decoder, state, Some(place), deadline)
    }

    pub(super) fn accepted(
        serial: u64,
        fd: Fd,
        cluster: ClusterId,
        tls: Option<Tls>,
        now: Time,
    ) -> Self {
        let (decoder, state) = (Decoder::accepting(cluster), PeerState::Anonymous);
        let deadline = now.plus_ms(HELLO_TIMEOUT_MS);
        let mut peer = Self::new(serial, fd, decoder, state, None, deadline);
        if let Some(tls) = tls {
            peer.secure(tls);
        }
        peer
    }

    /// From now on all that passes is sealed. Nothing has passed yet.
    pub(super) fn secure(&mut self, tls: Tls) {
        self.inbox = Inbox::secured();
        self.outbox = Outbox::secured();
        self.tls = Some(Box::new(tls));
    }

    fn new(
        serial: u64,
        fd: Fd,
        decoder: Decoder,
        state: PeerState,
        resource: Option<(usize, u64)>,
        deadline: Time,
    ) -> Self {
        Self {
            serial,
            fd,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            tls: None,
            decoder,
            state,
            resource,
            position: (Epoch(0), Generation(0)),
            is_dialed: matches!(state, PeerState::Connecting { .. }),
            payload_wanted: None,
            stalled: false,
            dirty: false,
            deadline: Some(deadline),
        }
    }

    /// The next message of what was received.
    ///
    /// # Errors
    /// The peer broke the protocol, or a frame was damaged.
    pub(super) fn next(&mut self, pool: &Pool) -> Result<Incoming, Broken> {
        loop {
            let incoming = self.next_opened(pool)?;
            let (Incoming::NeedMore, Some(tls)) = (&incoming, &mut self.tls) else {
                return Ok(incoming);
            };
            match self.inbox.open(tls, pool)? {
                Opened::Plaintext => {}
                Opened::NeedMore => return Ok(Incoming::NeedMore),
                Opened::Closed => return Err(Broken::Closed),
            }
        }
    }

    fn next_opened(&mut self, pool: &Pool) -> Result<Incoming, WireError> {
        loop {
            if let Some(len) = self.payload_wanted {
                if !self.inbox.begin_payload(pool, len) {
                    return Ok(Incoming::Stalled);
                }
                self.payload_wanted = None;
            }
            if self.inbox.in_payload() {
                let Some(payload) = self.inbox.take_payload() else {
                    return Ok(Incoming::NeedMore);
                };
                let (header, message) = self.decoder.finish(payload)?;
                return Ok(Incoming::Message(header, message));
            }
            let input = self.inbox.input();
            if input.is_empty() {
                return Ok(Incoming::NeedMore);
            }
            match self.decoder.decode(input)? {
                Decoded::NeedMore(_) => return Ok(Incoming::NeedMore),
                Decoded::Frame {
                    consumed,
                    header,
                    message,
                } => {
                    self.inbox.consume(consumed);
                    return Ok(Incoming::Message(header, message));
                }
                Decoded::Payload { consumed, len, .. } => {
                    self.inbox.consume(consumed);
                    self.payload_wanted = Some(len);
                }
            }
        }
    }

    /// Puts a message into the next send. False where the message can't be sent or too much waits:
    /// the connection is to be given up.
    pub(super) fn send(
        &mut self,
        identity: (ClusterId, ResourceId),
        message: Message<PoolBuf>,
        crcs: &mut CrcCache,
    ) -> bool {
        if let Message::Hello { record, .. } | Message::Record { record } = &message {
            self.position = (record.epoch, record.generation);
        }
        let context = FrameContext {
            cluster: identity.0,
            resource: identity.1,
            epoch: self.position.0,
            generation: self.position.1,
        };
        let crc = message.payload().map(|data| crcs.of(data));
        if let Err(error) = encode(&context, &message, crc, self.outbox.batch.headers()) {
            tracing::error!(%error, "a message can't be sent");
            return false;
        }
        if let Some(data) = message.into_payload() {
            append(&mut self.outbox.batch, data);
        }
        self.outbox.unsent() <= MAX_UNSENT_BYTES
    }

    /// Tells the peer why the connection ends, where it may not know.
    pub(super) fn reject(&mut self, reason: RejectReason) {
        encode_reject(reason, self.outbox.batch.headers());
    }

    /// Sends what was gathered, unless a send is in flight.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub(super) fn flush<T>(&mut self, ring: &mut Ring<T>, token: T) -> Result<(), rustls::Error> {
        match &mut self.tls {
            None => self.outbox.flush(ring, &self.fd, token),
            Some(tls) => self.outbox.flush_secured(tls, ring, &self.fd, token)?,
        }
        Ok(())
    }

    /// Starts the next receive where one is wanted.
    pub(super) fn arm<T>(&mut self, ring: &mut Ring<T>, pool: &Pool, token: T) {
        let wanted = matches!(
            self.state,
            PeerState::Securing { .. } | PeerState::Anonymous | PeerState::Open
        );
        if wanted && !self.stalled {
            self.inbox.arm(ring, pool, &self.fd, token);
        }
    }

    /// Can the connection be forgotten?
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.state, PeerState::Dead) && !self.inbox.is_armed() && !self.outbox.is_sending()
    }
}
