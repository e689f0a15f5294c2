//! Client connections: what a protocol frontend has to offer to be driven by the data plane
//! ([`ClientProtocol`], implemented outside this crate for NBD), and the state of one connection. The
//! protocol is pure: it gets bytes and says what they mean; sockets, buffers, limits and the order in
//! which connections are served are the plane's (`plane::clients`).

use super::ring::Fd;
use super::socket::{Inbox, Outbox};
use super::tls::Tls;
use crate::core::api::ClientError;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use vocabulary::{ByteRange, ResourceId, Time, VolumeId};

/// What a client wants of the volume that it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCommand {
    /// The bytes of the range.
    Read,
    /// The payload into the range.
    Write,
    /// The range reads as zeroes afterwards.
    Zero {
        /// Its space may be given back.
        hole: bool,
        /// Refused where the zeroes would have to be written.
        fast: bool,
    },
    /// What was answered is on stable storage.
    Flush,
    /// What holds in the parts of the range.
    Status {
        /// Where is nothing allocated?
        allocation: bool,
        /// Where may a replica lack bytes?
        out_of_sync: bool,
    },
    /// Nothing: answered at once, in its turn.
    Nothing,
}

/// A part of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// In bytes, not 0.
    pub len: u64,
    /// Whether what was asked holds here.
    pub is: bool,
}

/// The answer to [`ClientCommand::Status`]: extents from the range's start on, not necessarily to its
/// end. What was not asked for says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStatus {
    /// Nothing is allocated, and it reads as zeroes. Not so is always true enough.
    pub holes: Vec<StatusExtent>,
    /// A replica may lack bytes. So is always true enough.
    pub out_of_sync: Vec<StatusExtent>,
}

/// A piece of a reply with data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPiece {
    /// The bytes of the data that follow its header.
    pub send: Range<usize>,
    /// Where in the data the next piece begins; `None`: this is the last.
    pub next: Option<usize>,
}

/// A request as a client made it. `cookie` and `word` are the protocol's own and come back unchanged,
/// so that the protocol keeps no table of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOp {
    /// The client's name for the request.
    pub cookie: u64,
    /// Whatever the protocol needs to make the reply.
    pub word: u64,
    /// What to do.
    pub command: ClientCommand,
    /// Where; empty for [`ClientCommand::Flush`].
    pub range: ByteRange,
    /// On stable storage before the reply.
    pub fua: bool,
}

impl ClientOp {
    /// Bytes of payload that go with the request or its reply.
    #[must_use]
    pub const fn payload_bytes(&self) -> u64 {
        match self.command {
            ClientCommand::Read | ClientCommand::Write => self.range.len,
            ClientCommand::Zero { .. }
            | ClientCommand::Flush
            | ClientCommand::Status { .. }
            | ClientCommand::Nothing => 0,
        }
    }
}

/// The volume behind an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportTarget {
    /// The resource.
    pub resource: ResourceId,
    /// Its volume.
    pub volume: VolumeId,
}

/// The other end of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddress {
    /// Over TCP.
    Tcp(SocketAddr),
    /// The process that connected to the unix socket. It may have handed its end to another one, or to
    /// the kernel.
    Process(u32),
    /// The kernel does not tell.
    Unknown,
}

impl ClientAddress {
    /// Of a connected socket.
    fn of(fd: &Fd) -> Self {
        let socket = socket2::SockRef::from(&**fd);
        if let Some(address) = socket.peer_addr().ok().and_then(|a| a.as_socket()) {
            return Self::Tcp(address);
        }
        let credentials = getsockopt(&**fd, PeerCredentials).ok();
        // 0: a process that is not to be seen from here.
        credentials
            .and_then(|credentials| u32::try_from(credentials.pid()).ok())
            .filter(|&pid| pid != 0)
            .map_or(Self::Unknown, Self::Process)
    }
}

/// A client that has an export open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenClient {
    /// What it has open.
    pub target: ExportTarget,
    /// Who it is.
    pub address: ClientAddress,
}

/// What the bytes that were taken mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// All input was taken: receive more.
    NeedMore,
    /// Something was answered in the output: go on with the rest of the input.
    Answered,
    /// The output is sent in the clear; the rest of the input, and all that comes after it, is TLS
    /// ([`ClientConnection::tls`]).
    Secure,
    /// An export was opened: requests follow.
    Opened(ExportTarget),
    /// A request without payload.
    Request(ClientOp),
    /// A write; its payload is the next `range.len` bytes of the stream, and the driver's to take.
    Write(ClientOp),
    /// Nothing was taken, because too much is in flight: again after a reply was made or sent.
    AtLimit,
    /// The rest of the input is void: answer what is in flight, send the output, close.
    Close,
}

/// One connection of a protocol, without its socket.
pub trait ClientConnection {
    /// Takes bytes from the front of the input up to the next step; returns how many. What it has to
    /// say is appended to `out`, which is what was not sent yet.
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, ClientStep);

    /// How TLS is spoken after [`ClientStep::Secure`].
    fn tls(&self) -> Option<Arc<ServerConfig>>;

    /// Appends the reply to a request. Each request gets one reply, from one of these three.
    fn reply(&mut self, op: &ClientOp, outcome: Result<(), ClientError>, out: &mut Vec<u8>);

    /// Appends the header of a piece of the reply to a read that brought `data`: of the one that begins
    /// at `from`, which is 0 at first.
    fn reply_data(
        &mut self,
        op: &ClientOp,
        data: &[u8],
        from: usize,
        out: &mut Vec<u8>,
    ) -> DataPiece;

    /// Appends the reply to [`ClientCommand::Status`].
    fn reply_status(&mut self, op: &ClientOp, status: &ClientStatus, out: &mut Vec<u8>);

    /// The node stops: no further request is taken. What is in flight is still answered.
    fn shut_down(&mut self);
}

/// A protocol that clients speak on a listener.
pub trait ClientProtocol: Send {
    /// A new connection; what the server says first is appended to `out`.
    fn connect(&mut self, out: &mut Vec<u8>) -> Box<dyn ClientConnection>;
}

/// Payload bytes of one connection's requests at which it is not read further. One request may go
/// beyond it.
pub(super) const MAX_IN_FLIGHT_BYTES: u64 = 64 << 20;

/// Bytes of replies that wait for a client to read them, at which its requests are not read further.
pub(super) const MAX_UNSENT_BYTES: usize = 64 << 20;

/// While memory is scarce each connection has at least this much of it, in bytes.
pub(super) const MIN_SHARE_BYTES: u64 = 256 << 10;

/// Requests with more payload than this leave a quarter of the memory to others, in bytes: however many
/// large replies wait for clients that don't take them, small requests get through.
pub(super) const LARGE_BYTES: usize = 1 << 20;

/// When others wait for memory, a client that takes none of its replies for this long is closed, in ms.
pub(super) const STUCK_MS: u64 = 10_000;

/// A client that has not opened an export after this long is closed, in ms.
pub(super) const HANDSHAKE_MS: u64 = 30_000;

/// A client that closes has this long to take its last replies, in ms.
pub(super) const LINGER_MS: u64 = 5_000;

/// When the node stops, one that was told all has this long to go, in ms: the process waits for it.
pub(super) const GOODBYE_MS: u64 = 500;

/// A new connection waits at most this long for what older connections of its export had pending, in
/// ms; longer only for those whose clients take their replies slowly.
pub(super) const GATE_MS: u64 = 5_000;

/// Within this time it also waits for their sockets to be found empty, in ms.
pub(super) const SETTLE_MS: u64 = 50;

/// How often that is looked at when nothing else happens, in ms.
pub(super) const GATE_LOOK_MS: u64 = 5;

/// What an older connection had received, or had waiting in its socket, when a new one of the same
/// export came: the new one is served once that was read (RULES 12).
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) client: usize,
    pub(super) serial: u64,
    pub(super) upto: u64,
    /// Replies that it has taken, and since when no more than these, ns.
    pub(super) sent_bytes: u64,
    pub(super) sent_at: Time,
}

/// How far a client may go on.
#[derive(Debug)]
pub(super) enum Gate {
    /// Handshake, or served.
    Open,
    /// It opened an export; what others had pending is not known yet.
    Arrived,
    /// It waits for others.
    Waiting { behind: Vec<Pending>, since: Time },
}

/// One connection.
pub(super) struct Client {
    /// Never the same for two connections.
    pub(super) serial: u64,
    pub(super) fd: Fd,
    pub(super) address: ClientAddress,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    pub(super) tls: Option<Box<Tls>>,
    /// TLS begins once the output is sent.
    pub(super) securing: bool,
    pub(super) protocol: Box<dyn ClientConnection>,
    pub(super) target: Option<ExportTarget>,
    pub(super) gate: Gate,
    /// The write whose payload is being received, or a read for which there is no memory yet.
    pub(super) held: Option<ClientOp>,
    /// Replies that it had taken, and since when no more than these.
    pub(super) seen_sent: (u64, Time),
    pub(super) in_flight: u64,
    pub(super) in_flight_bytes: u64,
    /// Not read further until something in flight is done.
    pub(super) stalled: bool,
    /// Requests are refused; goes when what is in flight is answered.
    pub(super) hanging_up: bool,
    /// Takes no more requests; goes when all is answered and sent.
    pub(super) closing: bool,
    /// All was sent and said to be all: waits for the client to go, whose last words would otherwise
    /// take with them what it has not read yet.
    pub(super) leaving: bool,
    /// The socket is of no more use.
    pub(super) dead: bool,
    /// In the list of those with something to send.
    pub(super) dirty: bool,
    pub(super) deadline: Option<Time>,
}

impl Client {
    pub(super) fn new(serial: u64, fd: Fd, protocol: &mut dyn ClientProtocol, now: Time) -> Self {
        let mut outbox = Outbox::default();
        let protocol = protocol.connect(outbox.batch.headers());
        Self {
            serial,
            address: ClientAddress::of(&fd),
            fd,
            inbox: Inbox::default(),
            outbox,
            tls: None,
            securing: false,
            protocol,
            target: None,
            gate: Gate::Open,
            held: None,
            seen_sent: (0, now),
            in_flight: 0,
            in_flight_bytes: 0,
            stalled: false,
            hanging_up: false,
            closing: false,
            leaving: false,
            dead: false,
            dirty: false,
            deadline: Some(now.plus_ms(HANDSHAKE_MS)),
        }
    }

    /// May no other request be taken? `share`: bytes for each connection while memory is scarce.
    pub(super) fn at_limit(&self, share: Option<u64>) -> bool {
        let unsent = self.outbox.unsent();
        let all = || {
            let unsent = u64::try_from(unsent).unwrap_or(u64::MAX);
            self.in_flight_bytes.saturating_add(unsent)
        };
        self.in_flight_bytes >= MAX_IN_FLIGHT_BYTES
            || unsent >= MAX_UNSENT_BYTES
            || share.is_some_and(|share| all() >= share)
    }

    /// Has everything that had come up to this count been handed to the core?
    pub(super) fn has_read(&self, upto: u64) -> bool {
        self.inbox.total() >= upto && self.inbox.is_read() && !self.stalled
    }

    /// What it has open; `None` from the moment on when it closes.
    pub(super) fn open(&self) -> Option<OpenClient> {
        let address = self.address;
        let target = self.target.filter(|_| !self.closing)?;
        Some(OpenClient { target, address })
    }

    /// Can the connection be forgotten?
    pub(super) const fn is_over(&self) -> bool {
        self.dead && !self.inbox.is_armed() && !self.outbox.is_sending()
    }
}
