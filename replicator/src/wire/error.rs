//! What can be wrong with a frame, in sentences.

use super::handshake::{Features, Offer};
use super::header::MAGIC;
use super::kind::Kind;
use super::{MAX_PAYLOAD_BYTES, MAX_VOLUMES};
use vocabulary::{ClusterId, ResourceId, VolumeId};

/// What was wrong with received bytes. After one of these the connection is of no more use: the
/// driver may send [a rejection](super::encode_reject) and closes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are no frame.
    #[error(
        "this is not Lockstep's peer protocol: a frame begins with {MAGIC:02x?}, not {found:02x?}"
    )]
    BadMagic {
        /// What came instead; zero bytes where nothing had come yet.
        found: [u8; 4],
    },
    /// Header damaged.
    #[error("the checksum of a frame's header is wrong")]
    HeaderChecksum,
    /// Body damaged.
    #[error("the checksum of the body of a {kind} is wrong")]
    BodyChecksum {
        /// The frame.
        kind: Kind,
    },
    /// Payload damaged.
    #[error("the checksum of the payload of a {kind} is wrong")]
    PayloadChecksum {
        /// The frame.
        kind: Kind,
    },
    /// The body is in a version that was not agreed.
    #[error("a frame is in protocol version {found}; this connection speaks {expected}")]
    Version {
        /// The frame's version.
        found: u16,
        /// The version that this program speaks here.
        expected: u16,
    },
    /// The two ends have no version in common.
    #[error("the peer speaks protocol versions {} to {}, this node {} to {}: upgrade the older one", theirs.min_version, theirs.max_version, ours.min_version, ours.max_version)]
    NoCommonVersion {
        /// What the peer offers.
        theirs: Offer,
        /// What this node offers.
        ours: Offer,
    },
    /// The peer requires features that this program does not have.
    #[error(
        "the peer requires protocol features {features} that this node does not know: upgrade this node"
    )]
    UnknownFeatures {
        /// The unknown ones.
        features: Features,
    },
    /// This program requires features that the peer does not have.
    #[error(
        "this node requires protocol features {features} that the peer does not offer: upgrade the peer"
    )]
    MissingFeatures {
        /// The missing ones.
        features: Features,
    },
    /// An offer that contradicts itself.
    #[error("the peer's offer makes no sense: versions {} to {}, features {}, of these required {}", theirs.min_version, theirs.max_version, theirs.features, theirs.required)]
    BadOffer {
        /// The offer.
        theirs: Offer,
    },
    /// The peer could not understand this node.
    #[error("the peer refused the connection: {reason}; it speaks protocol versions {} to {}", theirs.min_version, theirs.max_version)]
    Rejected {
        /// Why.
        reason: RejectReason,
        /// What the peer would speak.
        theirs: Offer,
    },
    /// The frame belongs to another cluster.
    #[error("the frame is of cluster {found}, this node is in {ours}")]
    OtherCluster {
        /// The frame's.
        found: ClusterId,
        /// This node's.
        ours: ClusterId,
    },
    /// The frame belongs to another resource than the connection.
    #[error("the frame is of resource {found}, the connection serves {ours}")]
    OtherResource {
        /// The frame's.
        found: ResourceId,
        /// The connection's.
        ours: ResourceId,
    },
    /// No such type.
    #[error("there is no frame of type {code}")]
    UnknownType {
        /// Its number.
        code: u16,
    },
    /// Flags that have no meaning.
    #[error("a {kind} has unknown flags {flags:#x}")]
    UnknownFlags {
        /// The frame.
        kind: Kind,
        /// The unknown ones.
        flags: u32,
    },
    /// This end of a connection never gets such a frame.
    #[error("a {kind} came from the end of the connection that never sends it")]
    WrongDirection {
        /// The frame.
        kind: Kind,
    },
    /// A frame that can't stand at this place.
    #[error("a {kind} came where the session's opening does not allow it")]
    OutOfPlace {
        /// The frame.
        kind: Kind,
    },
    /// The body's length is impossible for the type.
    #[error("the body of a {kind} has {min} to {max} bytes, not {len}")]
    BodyLength {
        /// The frame.
        kind: Kind,
        /// Its length in bytes.
        len: u32,
        /// Shortest possible, bytes.
        min: usize,
        /// Longest possible, bytes.
        max: usize,
    },
    /// The body does not consist of whole entries.
    #[error("the body of a {kind} ends inside an entry")]
    PartOfEntry {
        /// The frame.
        kind: Kind,
    },
    /// The payload is too long.
    #[error("the payload of a {kind} has {len} bytes; the limit is {MAX_PAYLOAD_BYTES}")]
    PayloadTooLong {
        /// The frame.
        kind: Kind,
        /// Its length in bytes.
        len: u32,
    },
    /// A payload where none may be, or none where one must be.
    #[error(
        "a {kind} came with a payload that it may not have, or without the one that it must have"
    )]
    PayloadPresence {
        /// The frame.
        kind: Kind,
    },
    /// The driver's mistake: it handed over another number of bytes than asked for.
    #[error("a payload of {expected} bytes was handed over as {found}")]
    PayloadSize {
        /// Asked for, bytes.
        expected: usize,
        /// Handed over, bytes.
        found: usize,
    },
    /// The driver's mistake: the payload of the last frame was not handed over yet.
    #[error("the payload of the last frame was not handed over yet")]
    PayloadPending,
    /// The driver's mistake: a payload was handed over that was not asked for.
    #[error("a payload was handed over that no frame waits for")]
    NoPayloadPending,
    /// A control message's body is laid out in another way.
    #[error("the body of a {kind} has layout {found}, this node knows {known}")]
    BodyLayout {
        /// The frame.
        kind: Kind,
        /// Its layout.
        found: u8,
        /// The one that is known.
        known: u8,
    },
    /// A control message's body can't be read.
    #[error("the body of a {kind} can't be read")]
    Body {
        /// The frame.
        kind: Kind,
        /// Where it went wrong.
        source: postcard::Error,
    },
    /// Bytes after the end of a message.
    #[error("the body of a {kind} has {count} bytes after its end")]
    TrailingBytes {
        /// The frame.
        kind: Kind,
        /// How many.
        count: usize,
    },
    /// Reserved bytes with a value.
    #[error("reserved bytes of a {kind} are not zero")]
    Reserved {
        /// The frame.
        kind: Kind,
    },
    /// A field with a value that has no meaning.
    #[error("{field} of a {kind} can't be {value}")]
    Value {
        /// The frame.
        kind: Kind,
        /// The field.
        field: &'static str,
        /// What it held.
        value: u64,
    },
    /// A range that ends beyond 2^63 - 1.
    #[error("a {kind} names {len} bytes from offset {offset}: that ends beyond any volume")]
    RangeOverflow {
        /// The frame.
        kind: Kind,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A range that is too long for its answer.
    #[error("a {kind} asks for {len} bytes; the answer to one has room for {limit}")]
    RangeTooLong {
        /// The frame.
        kind: Kind,
        /// Length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A record that can't be one.
    #[error("the record in a {kind} is invalid")]
    Record {
        /// The frame.
        kind: Kind,
        /// What is wrong with it.
        source: RecordError,
    },
}

impl WireError {
    /// What to tell the peer before closing, if there is a point: not where the bytes are no frame
    /// at all, where the peer itself has rejected this node, or where the driver made the mistake.
    #[must_use]
    pub const fn reject_reason(&self) -> Option<RejectReason> {
        Some(match self {
            Self::BadMagic { .. }
            | Self::Rejected { .. }
            | Self::PayloadSize { .. }
            | Self::PayloadPending
            | Self::NoPayloadPending => return None,
            Self::HeaderChecksum | Self::BodyChecksum { .. } | Self::PayloadChecksum { .. } => {
                RejectReason::Checksum
            }
            Self::Version { .. } | Self::NoCommonVersion { .. } => RejectReason::Version,
            Self::UnknownFeatures { .. } | Self::MissingFeatures { .. } => RejectReason::Features,
            Self::OtherCluster { .. } => RejectReason::Cluster,
            Self::OtherResource { .. } => RejectReason::Resource,
            _ => RejectReason::Malformed,
        })
    }
}

/// Why a node could not understand its peer, as it tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// What came broke the protocol.
    #[error("what this node sent broke the protocol")]
    Malformed,
    /// What came was damaged.
    #[error("what this node sent arrived with a wrong checksum")]
    Checksum,
    /// No common version.
    #[error("the two speak no common protocol version")]
    Version,
    /// Features missing on one side.
    #[error("one requires protocol features that the other does not have")]
    Features,
    /// Another cluster.
    #[error("it belongs to another cluster")]
    Cluster,
    /// Another resource.
    #[error("it does not serve this resource")]
    Resource,
}

impl RejectReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Malformed,
        Self::Checksum,
        Self::Version,
        Self::Features,
        Self::Cluster,
        Self::Resource,
    ];

    pub(super) const fn code(self) -> u16 {
        match self {
            Self::Malformed => 1,
            Self::Checksum => 2,
            Self::Version => 3,
            Self::Features => 4,
            Self::Cluster => 5,
            Self::Resource => 6,
        }
    }

    /// The reason of this number. One that a later version added counts as [`Self::Malformed`]: the
    /// peer closes in any case.
    pub(super) fn from_code(code: u16) -> Self {
        Self::ALL
            .into_iter()
            .find(|reason| reason.code() == code)
            .unwrap_or(Self::Malformed)
    }
}

/// What is wrong with a record in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A node that can't be.
    #[error("there is no node {found}; ids go from 0 to 31")]
    Node {
        /// Its number.
        found: u8,
    },
    /// Too many volumes.
    #[error("it has {count} volumes; the limit is {MAX_VOLUMES}")]
    Volumes {
        /// How many.
        count: usize,
    },
    /// A volume that is too large.
    #[error("volume {volume} has {size_bytes} bytes; the limit is 2^63 - 1")]
    VolumeSize {
        /// The volume.
        volume: VolumeId,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// Members not ascending by node, or one twice.
    #[error("its members are not in ascending order of their nodes")]
    MemberOrder,
    /// No or too much redundancy.
    #[error("a minimal redundancy of {found} is not between 1 and 32")]
    MinRedundancy {
        /// What it says.
        found: u8,
    },
}

/// Why a message can't be sent. Each is a mistake of the sender's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More entries than a frame may have.
    #[error("a {kind} with {count} entries; the limit is {limit}")]
    TooMany {
        /// The frame.
        kind: Kind,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The payload is too long.
    #[error("a {kind} with a payload of {len} bytes; the limit is {MAX_PAYLOAD_BYTES}")]
    PayloadTooLong {
        /// The frame.
        kind: Kind,
        /// Its length in bytes.
        len: usize,
    },
    /// What the message says would be refused by any peer.
    #[error("the peer would refuse the message")]
    Invalid(#[from] WireError),
    /// The body could not be written.
    #[error("the body of a {kind} can't be written")]
    Body {
        /// The frame.
        kind: Kind,
        /// Why.
        source: postcard::Error,
    },
}
