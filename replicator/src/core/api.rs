//! What goes into the core and what comes out of it. The driver (the ring runtime, or the simulator)
//! hands in one [`Event`] at a time with the present time and then carries out the [`Action`]s in
//! their order. *Persist before send* is the order of that outbox: the core emits a message that
//! promises something only after the [`Event::MetaDone`] of the write that makes it durable.

use super::map::{Map, MapQuestion};
use super::message::{Message, ZERO_PIECE_BYTES};
use super::primary::Regions;
use crate::store::Layout;
use vocabulary::{
    ByteRange, ClusterId, DiskId, Epoch, Generation, Incarnation, NodeId, NodeSet, Record, Refusal,
    ResourceId, Time, VolumeId,
};

/// Bytes that the core passes on and never looks into: a shared slice of a pool buffer in
/// production, of a vector in the simulator. Cloning shares.
pub trait Payload: Clone + std::fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// Is it without bytes?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of it, shared.
    fn slice(&self, start: usize, len: usize) -> Self;
}

/// An I/O request of the core to its driver; comes back exactly once with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A client's request, named by the driver; comes back exactly once in [`Action::Reply`], or in
/// [`Action::Map`] where it is a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// An operator's command, named by the driver; comes back exactly once in [`Action::CommandDone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// A connection to a peer, named by the driver, never used again for another; of two accepted ones
/// the later has the greater name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Why local I/O failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The device answered an error (errno).
    Io(i32),
    /// No space is left on the device below (ENOSPC, EDQUOT).
    NoSpace,
}

/// What a store zeroes without writing zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FastZeroes {
    /// Where the space may be given back.
    pub holes: bool,
    /// Where it stays allocated.
    pub allocated: bool,
}

impl FastZeroes {
    /// Everything.
    pub const ALL: Self = Self {
        holes: true,
        allocated: true,
    };

    /// Is a write of zeroes among it that may, or may not, punch a hole?
    #[must_use]
    pub const fn cover(self, hole: bool) -> bool {
        if hole { self.holes } else { self.allocated }
    }

    /// What both zero so.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            holes: self.holes && other.holes,
            allocated: self.allocated && other.allocated,
        }
    }
}

/// What a client wants.
#[derive(Clone, Debug)]
pub enum ClientRequest<P> {
    /// Read the range.
    Read {
        /// What to read.
        range: ByteRange,
    },
    /// Write the payload at the offset.
    Write {
        /// Where; as long as the payload.
        range: ByteRange,
        /// The bytes.
        data: P,
        /// On stable storage before the reply.
        fua: bool,
    },
    /// Write zeroes, or discard (which is the same, see RULES).
    Zero {
        /// Where.
        range: ByteRange,
        /// May the stores punch a hole?
        hole: bool,
        /// On stable storage before the reply.
        fua: bool,
        /// Refused where a store would have to write the zeroes.
        fast: bool,
    },
    /// Everything answered before is on stable storage before the reply.
    Flush,
}

/// Why a client's request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// This node is not the primary (EPERM).
    NotPrimary,
    /// The request is not within the volume (EINVAL, ENOSPC for writes).
    OutOfRange,
    /// The last good disk failed (EIO).
    Io,
    /// The last good disk is full (ENOSPC).
    NoSpace,
    /// This node stops serving (ESHUTDOWN).
    Shutdown,
    /// Zeroing would not be fast, and nothing was changed (ENOTSUP).
    NotFast,
}

/// Which nodes take clients' requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Access {
    /// The primary alone.
    #[default]
    Exclusive,
    /// Every node; those that are not primary forward to it (RULES 12).
    Follow {
        /// A random number: the session of this run of the daemon. That of the first event counts.
        session: u64,
        /// Requests that find no primary within [`Settings::no_primary_ms`] are answered with an
        /// error; otherwise they wait.
        errors: bool,
    },
}

/// What the cluster has agreed on for a resource: parts of [`Settings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Another only while nobody is primary.
    pub lease_ms: u64,
    /// As there.
    pub no_quorum_errors: bool,
}

/// What an operator asks of a resource on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Become primary; members in `drop` are known to be out of reach.
    Promote {
        /// Members to leave out.
        drop: NodeSet,
        /// The epoch that ends. Where the record is in another one, somebody else's promotion came
        /// first, and this one ends with an error.
        over: Epoch,
    },
    /// Become primary whatever others hold. The operator has accepted the loss of data.
    Force,
    /// Drain, flush and stop being primary.
    Demote {
        /// In favour of this member of the in-sync set.
        to: Option<NodeId>,
    },
    /// Compare every block with every connected replica that is in sync (on the primary).
    Verify {
        /// Only with this one.
        node: Option<NodeId>,
        /// Write the primary's bytes where a replica differs.
        repair: bool,
    },
    /// Stop a running verify.
    VerifyStop,
    /// Mark every block of this replica as out of sync, so that it is copied anew (on the primary,
    /// for a node; the in-sync set loses it first).
    Invalidate {
        /// The replica to copy anew.
        node: NodeId,
    },
    /// Try the connection to this peer now, and allow it.
    Connect {
        /// The peer.
        node: NodeId,
    },
    /// Drop the connection to this peer and keep it down.
    Disconnect {
        /// The peer.
        node: NodeId,
    },
    /// Grow a volume on every required replica.
    Resize {
        /// The volume.
        volume: VolumeId,
        /// The new size in bytes.
        size_bytes: u64,
    },
    /// Release everything: stop serving, close sessions, mark the superblock closed.
    Close,
}

/// Why a command was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Only the primary does that.
    #[error("this node is not the primary of the resource")]
    NotPrimary,
    /// The resource has no record yet.
    #[error(
        "the configuration store has not answered yet; the resource's record is not known here"
    )]
    NoRecord,
    /// The local disk can't serve.
    #[error("the local disk has failed or is not attached")]
    NoDisk,
    /// The store refused the change.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Somebody's promotion came first.
    #[error("another promotion came first: the record is in epoch {0}")]
    Superseded(Epoch),
    /// The store did not decide in time.
    #[error(
        "the configuration store did not decide within the time limit; the change may still happen"
    )]
    Undecided,
    /// A peer needed for it is not connected.
    #[error("node {0} is not connected")]
    NotConnected(NodeId),
    /// The same kind of work is under way.
    #[error("another command of this kind is under way")]
    Busy,
    /// The node holds no replica.
    #[error("node {0} holds no replica of the resource")]
    NoReplica(NodeId),
    /// It would leave no replica with the data.
    #[error("node {0} holds the last good copy")]
    LastCopy(NodeId),
    /// A volume can't shrink, or there is none of this number.
    #[error("the volume can't take that size")]
    BadSize,
    /// A replica could not do its part.
    #[error("node {0} could not do its part")]
    Failed(NodeId),
    /// The resource closed or lost its role meanwhile.
    #[error("the resource stopped before the command was done")]
    Stopped,
}

/// Per 4 KiB block of a chunk: a digest, and whether all its bytes are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BlockHash(pub u128);

impl BlockHash {
    /// The digest that stands for a block of zeroes, whatever the digest function gives.
    pub const ZERO: Self = Self(0);
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// A disk write, zero or flush is done.
    DiskDone {
        /// The request.
        op: OpId,
        /// How it went.
        result: Result<(), DiskError>,
    },
    /// A disk read is done.
    ReadDone {
        /// The request.
        op: OpId,
        /// The bytes.
        result: Result<P, DiskError>,
    },
    /// A chunk was read and its blocks digested (see [`Action::Hash`]).
    HashDone {
        /// The request.
        op: OpId,
        /// One digest a block, [`BlockHash::ZERO`] for zero blocks, and the bytes.
        result: Result<(Vec<BlockHash>, P), DiskError>,
    },
    /// A metadata write is durable.
    MetaDone {
        /// The request.
        op: OpId,
        /// How it went.
        result: Result<(), DiskError>,
    },
    /// The metadata of a volume were copied to a new place (see [`Action::MoveMetadata`]): at the end of
    /// a device of this many bytes.
    MetadataMoved {
        /// The request.
        op: OpId,
        /// How it went.
        result: Result<u64, DiskError>,
    },
    /// The store of a volume now has the size asked for (see [`Action::Grow`]).
    GrowDone {
        /// The request.
        op: OpId,
        /// How it went.
        result: Result<(), DiskError>,
    },
    /// A client's request for a volume.
    Client {
        /// Its name.
        id: RequestId,
        /// The volume.
        volume: VolumeId,
        /// What it wants.
        request: ClientRequest<P>,
    },
    /// A client's question about a range.
    AskMap {
        /// Its name.
        id: RequestId,
        /// What it wants to know.
        question: MapQuestion,
    },
    /// The store was looked at (see [`Action::Look`]).
    Looked {
        /// The request.
        op: OpId,
        /// Its holes, as far as was looked; none where that can't be found out.
        holes: Regions,
    },
    /// A connection that [`Action::Dial`] asked for is there.
    Dialed {
        /// The peer.
        peer: NodeId,
        /// The new connection.
        conn: ConnId,
    },
    /// It could not be made.
    DialFailed {
        /// The peer.
        peer: NodeId,
    },
    /// A message came. On an accepted connection the first one is a Hello.
    Message {
        /// The connection.
        conn: ConnId,
        /// The generation of the sender's record (frame header).
        generation: Generation,
        /// The message.
        message: Message<P>,
    },
    /// The connection is gone; nothing more comes from it.
    Disconnected {
        /// The connection.
        conn: ConnId,
    },
    /// What all stores of this replica zero without writing, from now on; nothing before that is known.
    FastZeroes(FastZeroes),
    /// Which nodes take clients' requests, from now on.
    Access(Access),
    /// What the cluster has agreed on, from now on.
    Terms(Terms),
    /// A record is known to be committed.
    Record(Record),
    /// The store refused a proposal for good.
    Refused {
        /// The generation that it was based on.
        based_on: Generation,
        /// Why.
        refusal: Refusal,
    },
    /// A node acknowledged a beacon that asked for a lease of this primary.
    Granted {
        /// The node.
        node: NodeId,
        /// The epoch that the beacon named.
        epoch: Epoch,
        /// When it was *sent*, by this node's clock.
        sent: Time,
    },
    /// No primary of an epoch before this one can answer a request any more (RULES 4).
    Serve {
        /// The epoch.
        epoch: Epoch,
    },
    /// An operator's command.
    Command {
        /// Its name.
        id: CommandId,
        /// What to do.
        command: Command,
    },
}

/// What the driver has to do.
#[derive(Debug)]
pub enum Action<P> {
    /// Read from the volume's data area; answer with [`Event::ReadDone`].
    Read {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// What to read (any alignment; the driver widens it where the device needs that).
        range: ByteRange,
    },
    /// Write to the data area; answer with [`Event::DiskDone`]. Requests that the core has under way
    /// at one time never overlap in blocks of 4 KiB unless all of them are reads.
    Write {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// Where.
        offset: u64,
        /// The bytes.
        data: P,
        /// On stable storage before the answer.
        durable: bool,
    },
    /// Zero a range; answer with [`Event::DiskDone`].
    Zero {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// Where.
        range: ByteRange,
        /// Punch a hole where the store reads holes as zeroes.
        hole: bool,
        /// On stable storage before the answer.
        durable: bool,
    },
    /// Bring every write that is done to stable storage; answer with [`Event::DiskDone`].
    Flush {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
    },
    /// Read a chunk and digest its blocks in the background; answer with [`Event::HashDone`].
    Hash {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// The chunk, whole blocks (the last one of the volume may be short).
        range: ByteRange,
    },
    /// Write metadata durably; answer with [`Event::MetaDone`]. Whole 4 KiB blocks.
    MetaWrite {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// Offset in the metadata area, bytes.
        offset: u64,
        /// The blocks.
        data: Vec<u8>,
    },
    /// Internal metadata are in the way of a volume of this many bytes: copy all of them but the
    /// superblock to the store's new end, durably (`store::relocation`); answer with
    /// [`Event::MetadataMoved`]. Until then nothing is written to them.
    MoveMetadata {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// Where they are.
        from: Layout,
        /// The size in bytes that the volume shall have.
        size_bytes: u64,
    },
    /// Make the volume's store able to hold this many bytes, zeroed beyond the old size; answer with
    /// [`Event::GrowDone`].
    Grow {
        /// Its name.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// The new size in bytes.
        size_bytes: u64,
        /// Where its metadata are: no other place counts any more.
        layout: Layout,
    },
    /// Look where a part of the volume's store has holes, in the background; answer with
    /// [`Event::Looked`].
    Look {
        /// Its name, among looks.
        op: OpId,
        /// The volume.
        volume: VolumeId,
        /// Where.
        range: ByteRange,
    },
    /// Connect to the peer; answer with [`Event::Dialed`] or [`Event::DialFailed`].
    Dial {
        /// The peer.
        peer: NodeId,
    },
    /// Send on a connection, after all that was sent on it before. Sending on a connection that is
    /// gone does nothing.
    Send {
        /// The connection.
        conn: ConnId,
        /// The message.
        message: Message<P>,
    },
    /// Close a connection. The driver still reports [`Event::Disconnected`], once.
    Close {
        /// The connection.
        conn: ConnId,
    },
    /// Answer a client.
    Reply {
        /// The request.
        id: RequestId,
        /// `Some` for a read.
        result: Result<Option<P>, ClientError>,
    },
    /// Answer a client's question. There is always an answer.
    Map {
        /// The question.
        id: RequestId,
        /// What is known.
        map: Map,
    },
    /// Close all connections of the resource's clients once they are answered: what they have not
    /// sent yet must not be taken for a continuation.
    HangUp,
    /// Propose a change to the configuration store. Repeated until it is decided: the compare-and-set
    /// makes that harmless.
    Propose {
        /// The generation it is based on.
        based_on: Generation,
        /// The change.
        change: vocabulary::Change,
    },
    /// A command is done.
    CommandDone {
        /// The command.
        id: CommandId,
        /// How it went.
        result: Result<(), CommandError>,
    },
    /// Something that an operator wants to know.
    Notice(Notice),
}

/// Something that an operator wants to know: shown by `events` and in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This node serves now.
    Serving,
    /// This node does not serve any more.
    StoppedServing {
        /// Why.
        why: StopReason,
    },
    /// A session with a peer is up.
    PeerConnected {
        /// The peer.
        node: NodeId,
    },
    /// It is gone.
    PeerLost {
        /// The peer.
        node: NodeId,
        /// Why.
        why: LossReason,
    },
    /// A peer refused the session.
    PeerRefused {
        /// The peer.
        node: NodeId,
        /// Why.
        why: super::message::RefuseReason,
    },
    /// A resync begins.
    ResyncStarted {
        /// The target.
        node: NodeId,
        /// Bytes to compare.
        bytes: u64,
    },
    /// It ended with the target in the in-sync set.
    ResyncDone {
        /// The target.
        node: NodeId,
        /// Bytes that were sent.
        sent_bytes: u64,
    },
    /// A member has left.
    Evicted {
        /// The member.
        node: NodeId,
        /// Why.
        why: EvictReason,
    },
    /// The local disk failed.
    DiskFailed {
        /// The volume.
        volume: VolumeId,
        /// The error.
        error: DiskError,
    },
    /// A block that could not be read was written anew from a member.
    Repaired {
        /// The volume.
        volume: VolumeId,
        /// The bytes.
        range: ByteRange,
        /// Where the bytes came from.
        from: NodeId,
    },
    /// Verify found a difference.
    Differs {
        /// The replica.
        node: NodeId,
        /// The volume.
        volume: VolumeId,
        /// The bytes.
        range: ByteRange,
        /// It was repaired.
        repaired: bool,
    },
    /// Verify is done.
    VerifyDone {
        /// Bytes compared.
        bytes: u64,
        /// Bytes that differed.
        differing_bytes: u64,
    },
    /// Writes wait because no more members may be dropped.
    Suspended {
        /// For whom.
        waiting_for: NodeSet,
    },
    /// They go on.
    Resumed,
    /// Metadata was found damaged and the safe reading was taken.
    MetadataDamaged {
        /// The volume.
        volume: VolumeId,
    },
    /// A volume has a new size.
    Resized {
        /// The volume.
        volume: VolumeId,
        /// In bytes.
        size_bytes: u64,
    },
}

/// Why a node stopped serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It demoted in order.
    Demoted,
    /// Another epoch began.
    Superseded,
    /// Its disk failed.
    DiskFailed,
    /// The daemon closes.
    Closed,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The connection broke or was refused.
    Broken,
    /// Nothing was heard for too long.
    Silent,
    /// It answers pings and does not finish writes.
    Slow,
    /// Its disk failed.
    DiskFailed,
    /// It sent what the protocol does not allow.
    Protocol,
    /// An operator's word.
    Operator,
}

/// Why a member has left the in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictReason {
    /// It had no session for too long.
    Gone,
    /// It has a session and granted no lease.
    NoLease,
    /// An operator has had its data thrown away.
    Invalidated,
    /// An operator has removed the replica.
    Removed,
}

/// Who this replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The resource.
    pub resource: ResourceId,
    /// This node.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// The disk's incarnation.
    pub incarnation: Incarnation,
}

/// Limits and time-outs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A beacon that was acknowledged lets the primary answer for this long from when it was sent, in
    /// ms (RULES 4).
    pub lease_ms: u64,
    /// A ping goes out after this long without another message, in ms.
    pub ping_interval_ms: u64,
    /// A peer that was not heard of for this long is gone, in ms.
    pub peer_timeout_ms: u64,
    /// A peer whose oldest write is unanswered for this long is gone, in ms.
    pub write_timeout_ms: u64,
    /// A member without a session for this long is evicted, in ms.
    pub evict_after_ms: u64,
    /// First wait before a connection is tried again, in ms; doubles each time.
    pub reconnect_min_ms: u64,
    /// Longest wait before a connection is tried again, in ms.
    pub reconnect_max_ms: u64,
    /// A proposal is repeated after this long, in ms; doubles up to ten times that.
    pub propose_again_ms: u64,
    /// A command that needs the store's decision gives up waiting after this long, in ms.
    pub command_timeout_ms: u64,
    /// The primary flushes in the background when its window holds this many writes.
    pub window_writes: usize,
    /// Or this many bytes.
    pub window_bytes: u64,
    /// Or when its oldest write is this old, in ms.
    pub window_age_ms: u64,
    /// An activity log extent is retired after this long without a write, in ms.
    pub extent_idle_ms: u64,
    /// Bytes of one resync or verify step.
    pub chunk_bytes: u64,
    /// Most resync steps under way at a time.
    pub max_chunks: usize,
    /// The primary starts to require a resync target when no more than this is left, in bytes.
    pub admit_below_bytes: u64,
    /// Longest piece of a discard or write of zeroes that is done in one go, in bytes.
    pub zero_piece_bytes: u64,
    /// Requests that are to fail without a primary that may answer do so after this long, in ms.
    pub no_primary_ms: u64,
    /// The clients of a primary that may not answer for so long get errors; otherwise they wait.
    pub no_quorum_errors: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ms: 500,
            ping_interval_ms: 500,
            peer_timeout_ms: 2_000,
            // DRBD: timeout 6 s x ko-count 7 = 42 s, which its users find too long.
            write_timeout_ms: 10_000,
            evict_after_ms: 1_000,
            reconnect_min_ms: 50,
            reconnect_max_ms: 2_000,
            propose_again_ms: 200,
            command_timeout_ms: 15_000,
            window_writes: 16_384,
            window_bytes: 256 << 20,
            window_age_ms: 1_000,
            extent_idle_ms: 10_000,
            chunk_bytes: 256 << 10,
            max_chunks: 16,
            admit_below_bytes: 1 << 20,
            zero_piece_bytes: ZERO_PIECE_BYTES,
            // Longer than a fail-over takes at default settings.
            no_primary_ms: 5_000,
            no_quorum_errors: false,
        }
    }
}
