//! What peers say to each other. The primary dials every configured replica and opens a *session*;
//! all data flows from it (RULES 9). `wire` gives these messages their bytes; every frame also
//! carries the cluster's, the resource's and the sender's epoch and record generation, so that a
//! message of a new generation never comes before its record ("record travels first").

use super::api::{BlockHash, ClientError, ClientRequest, FastZeroes};
use super::map::{Map, MapQuestion};
pub use super::sessions::MAX_SPAN;
use serde::{Deserialize, Serialize};
use vocabulary::{
    ByteRange, DiskId, Epoch, Generation, HistoryId, Incarnation, NodeId, NodeSet, Record, VolumeId,
};

/// Position of a write, copy or flush in the primary's stream of one epoch. Strictly ascending on
/// every connection.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Seq(pub u64);

/// A primary's attempt to work with a replica, ascending within an epoch: a replica obeys only the
/// newest one.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct SessionId(pub u64);

/// Why a replica refuses a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefuseReason {
    /// It has promised a later epoch.
    Superseded {
        /// The epoch that it has promised.
        promised: Epoch,
    },
    /// A newer session of the same epoch exists.
    OlderSession,
    /// The sender is not the primary of the record that it sent.
    NotPrimary,
    /// Its disk has failed or is not attached.
    NoDisk,
    /// It serves another resource or another cluster.
    WrongIdentity,
    /// Its volumes do not fit the record's.
    WrongSize,
    /// An operator has told it to stay disconnected.
    Disconnected,
    /// It is closing.
    Closing,
}

/// How a write came about; decides what it marks when it leaves the window (RULES 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WriteKind {
    /// A client's write.
    Client,
    /// The primary's bytes for ranges that any member's window held (RULES 8), and repairs: they
    /// count as writes and mark absent replicas.
    Reconcile,
    /// A resync copy: what third replicas lack is handed over at the admit instead.
    Copy,
}

/// The session and request number of a client's write (RULES 12); zero for what is no client's, and
/// where access is exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClientMark {
    /// The session of the node that the client is connected to.
    pub session: u64,
    /// The number within it.
    pub number: u64,
    /// All numbers below this one are answered; at most [`MAX_SPAN`] below `number`.
    pub released: u64,
}

/// A number of the primary's table, for a replica (RULES 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberEntry {
    /// The write.
    pub mark: ClientMark,
    /// Its range.
    pub at: VolumeRange,
    /// Only a part of it was applied: it is neither answered nor executed.
    pub torn: bool,
}

/// A range of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeRange {
    /// The volume.
    pub volume: VolumeId,
    /// The bytes.
    pub range: ByteRange,
}

/// A message between the primary (P) and a replica (R).
#[derive(Clone, Debug)]
pub enum Message<P> {
    /// P to R, first on a connection: opens a session. The record goes with it.
    Hello {
        /// The sender.
        node: NodeId,
        /// The receiver that the sender wants.
        to: NodeId,
        /// The session.
        session: SessionId,
        /// The sender's record; its epoch is the session's.
        record: Record,
    },
    /// R to P: the session is refused; the connection closes.
    Refuse {
        /// Why.
        reason: RefuseReason,
    },
    /// R to P: accepted; the epoch is promised durably and the disk is drained. `Ranges` follow,
    /// then `WelcomeEnd`.
    Welcome {
        /// R's disk.
        disk: DiskId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// The history that its data belongs to.
        history: HistoryId,
        /// The disk that R's bits for P belong to; other than P's: all bits are set.
        bits_for: Option<DiskId>,
        /// R's window is its whole disk (its activity log could not be read).
        whole_window: bool,
    },
    /// Ranges of a hand-over or a welcome.
    Ranges {
        /// What they are.
        of: RangesOf,
        /// The ranges, at most [`MAX_RANGES`].
        ranges: Vec<VolumeRange>,
    },
    /// R to P: what R's stores zero without writing: behind the welcome, where that is anything, and when
    /// it changes.
    FastZeroes {
        /// That.
        fast: FastZeroes,
    },
    /// R to P: all ranges of the welcome were sent.
    WelcomeEnd,
    /// P to R: a newer record is known to be committed. Before any message of its generation.
    Record {
        /// The record.
        record: Record,
    },
    /// P to R: write.
    Write {
        /// Its place.
        seq: Seq,
        /// The volume.
        volume: VolumeId,
        /// Where.
        offset: u64,
        /// The bytes.
        data: P,
        /// On stable storage before the acknowledgement.
        fua: bool,
        /// How it came about.
        kind: WriteKind,
        /// Rule 12.
        mark: ClientMark,
    },
    /// P to R: zero a range.
    Zero {
        /// Its place.
        seq: Seq,
        /// Where.
        at: VolumeRange,
        /// Punch a hole where holes read as zeroes.
        hole: bool,
        /// On stable storage before the acknowledgement.
        fua: bool,
        /// How it came about.
        kind: WriteKind,
        /// Rule 12.
        mark: ClientMark,
    },
    /// P to R: take these ranges into the window as a write whose bytes R already holds (reconcile,
    /// hand-over of the window).
    Touch {
        /// Its place.
        seq: Seq,
        /// The ranges, at most [`MAX_RANGES`].
        ranges: Vec<VolumeRange>,
    },
    /// R to P: these are written (durably where that was asked for). Several at a time.
    Acks {
        /// The places, in the order of completion.
        seqs: Vec<Seq>,
    },
    /// P to R: bring all that came before to stable storage.
    Flush {
        /// Its place.
        seq: Seq,
    },
    /// R to P: everything up to here in this session is on stable storage.
    FlushAck {
        /// The flush's place.
        seq: Seq,
    },
    /// P to R: everything up to here is stable on all of *required*; it leaves the window and is
    /// marked for every configured replica that is not named.
    Release {
        /// Up to and with this place.
        upto: Seq,
        /// What was in the window before the session began leaves too.
        old: bool,
        /// Replicas on which all of it is stable.
        stable_on: NodeSet,
    },
    /// P to R: digest these blocks.
    HashRequest {
        /// Names the answer.
        id: u64,
        /// The chunk.
        at: VolumeRange,
    },
    /// R to P: one digest a block; `None`: R could not read them.
    HashReply {
        /// The request.
        id: u64,
        /// The digests.
        hashes: Option<Vec<BlockHash>>,
    },
    /// P to R: give me your bytes (RULES 9: a block that P cannot read).
    Fetch {
        /// Names the answer.
        id: u64,
        /// The bytes wanted.
        at: VolumeRange,
    },
    /// R to P: the bytes; `None`: R could not read them either.
    Fetched {
        /// The request.
        id: u64,
        /// The bytes.
        data: Option<P>,
    },
    /// P to R: all ranges of the hand-over were sent: store them and say so.
    HandOverEnd {
        /// Names the answer.
        id: u64,
    },
    /// R to P: the bits handed over are stored.
    HandOverDone {
        /// The hand-over.
        id: u64,
    },
    /// P to R: make room for a volume of this size.
    Grow {
        /// Names the answer.
        id: u64,
        /// The volume.
        volume: VolumeId,
        /// The new size in bytes.
        size_bytes: u64,
    },
    /// R to P: whether there is room.
    Grown {
        /// The request.
        id: u64,
        /// It worked.
        ok: bool,
    },
    /// R to P: the disk has failed; nothing more is acknowledged.
    DiskFailed,
    /// P to R, first in the session's stream: the request numbers of rule 12 that P holds. Those of
    /// writes that are under way come with them.
    Numbers {
        /// Since which epoch none was lost.
        era: Epoch,
        /// The numbers, at most [`MAX_NUMBERS`]; more follow in another message.
        entries: Vec<NumberEntry>,
    },
    /// P to R: R holds P's bytes wherever a number of either's table was written: P's table is R's.
    Settled,
    /// F to P, first on a connection: F, a node that is not primary, forwards its clients' requests
    /// to P. An older connection of the node is closed.
    Attach {
        /// The sender.
        node: NodeId,
        /// The receiver that the sender wants.
        to: NodeId,
        /// The sender's session.
        session: u64,
        /// The epoch in which the receiver is primary.
        epoch: Epoch,
    },
    /// P to F: accepted.
    Attached {
        /// Since which epoch P's table lost no number: what was sent in an earlier era is not sent
        /// again.
        era: Epoch,
    },
    /// F to P: a client's request. Numbers ascend on a connection.
    Forward {
        /// Its number in the session.
        number: u64,
        /// All below this one are answered; at most [`MAX_SPAN`] below `number`.
        released: u64,
        /// It may have been sent to a primary before.
        again: bool,
        /// The volume.
        volume: VolumeId,
        /// What the client wants; no write of zeroes longer than a piece.
        request: ClientRequest<P>,
    },
    /// P to F: the answer.
    Answer {
        /// The request's number.
        number: u64,
        /// `Some` for a read.
        result: Result<Option<P>, ClientError>,
    },
    /// F to P: a client's question. At most 64 are under way on a connection.
    AskMap {
        /// Names the answer.
        number: u64,
        /// What it wants to know.
        question: MapQuestion,
    },
    /// P to F: the answer, of what P holds at this moment.
    Map {
        /// The question.
        number: u64,
        /// At most [`MAX_MAP_RANGES`] ranges of each sort.
        map: Map,
    },
    /// Either way: still there?
    Ping {
        /// Comes back.
        token: u64,
    },
    /// Yes.
    Pong {
        /// The ping's.
        token: u64,
    },
}

/// What the ranges of a [`Message::Ranges`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangesOf {
    /// R's window (welcome).
    Window,
    /// R's bits for P (welcome).
    Bits,
    /// P's bits for a third replica (hand-over).
    BitsFor {
        /// The third replica.
        node: NodeId,
        /// Its disk, as far as P knows it; an unknown one has all bits set.
        disk: Option<DiskId>,
    },
}

/// Most ranges in one message: bounds what a parser allocates (24 bytes each, 96 KiB).
pub const MAX_RANGES: usize = 4096;

/// Most numbers in one message (48 bytes each, 96 KiB).
pub const MAX_NUMBERS: usize = 2048;

/// Most ranges of one sort in a map: both sorts fit into a frame (16 bytes each, 64 KiB).
pub const MAX_MAP_RANGES: usize = 2048;

/// Longest piece of a discard or write of zeroes that is done in one go, unless a simulation has it
/// shorter: a client's discard may
/// cover gigabytes (the kernel sends up to 4 GiB), which would hold the range too long and touch
/// a thousand extents at once.
pub const ZERO_PIECE_BYTES: u64 = 32 << 20;

impl<P> Message<P> {
    /// The bytes that go with the message.
    #[must_use]
    pub const fn payload(&self) -> Option<&P> {
        match self {
            Self::Write { data, .. }
            | Self::Fetched {
                data: Some(data), ..
            }
            | Self::Forward {
                request: ClientRequest::Write { data, .. },
                ..
            }
            | Self::Answer {
                result: Ok(Some(data)),
                ..
            } => Some(data),
            _ => None,
        }
    }

    /// As [`Self::payload`], without the message.
    #[must_use]
    pub fn into_payload(self) -> Option<P> {
        match self {
            Self::Write { data, .. }
            | Self::Fetched {
                data: Some(data), ..
            }
            | Self::Forward {
                request: ClientRequest::Write { data, .. },
                ..
            }
            | Self::Answer {
                result: Ok(Some(data)),
                ..
            } => Some(data),
            _ => None,
        }
    }

    /// The generation that a message of this kind may be ahead of its record by: none but these two.
    #[must_use]
    pub const fn carries_record(&self) -> Option<Generation> {
        match self {
            Self::Hello { record, .. } | Self::Record { record } => Some(record.generation),
            _ => None,
        }
    }
}
