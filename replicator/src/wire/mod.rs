//! The bytes of the peer protocol: [`encode`] turns a [`Message`](crate::core::message::Message)
//! into a frame, [`Decoder`] turns received bytes into messages. Pure: no sockets, no clock, no
//! rules of replication; what a message means is the core's business.
//!
//! A frame is a fixed [header], a body and, for messages that have bytes of a volume, the payload as
//! it is. [`encode`] writes header and body only; the driver sends the payload straight from its
//! buffer behind them, and receives it straight into one (see [`Decoded::Payload`]).
//!
//! Nothing that a peer says about a length is believed before the header's own checksum was right
//! and the length is within the limits of the frame's type, so that neither a flipped bit nor a
//! hostile peer makes the receiver wait for, or allocate, more than [`MAX_BODY_BYTES`] plus
//! [`MAX_PAYLOAD_BYTES`].

mod body;
mod control;
mod decode;
mod encode;
mod error;
mod forward;
mod handshake;
pub mod header;
mod kind;
mod map;
#[cfg(test)]
mod tests;

use crate::core::api::Payload;
use crate::core::message::{MAX_MAP_RANGES, MAX_NUMBERS, MAX_RANGES};
use vocabulary::{ClusterId, Epoch, Generation, ResourceId};

pub use decode::{Decoded, Decoder, FrameHeader};
pub use encode::{encode, encode_reject};
pub use error::{EncodeError, RecordError, RejectReason, WireError};
pub use handshake::{Features, LOCAL_OFFER, Negotiated, Offer, negotiate};
pub use header::HEADER_BYTES;
pub use kind::Kind;

/// The protocol version that this program writes, and the only one that it reads so far.
pub const VERSION: u16 = 2;

/// Longest payload of a frame. NBD clients send up to 32 MiB in a request; twice that leaves room,
/// and a receiver can still hold one for each of its peers.
pub const MAX_PAYLOAD_BYTES: u32 = 64 << 20;

/// Longest body of a frame: the next power of two above the largest one, `Ranges` with
/// [`MAX_RANGES`] entries. A receive buffer of [`MAX_HEAD_BYTES`] holds header and body of any frame.
pub const MAX_BODY_BYTES: usize = 128 << 10;

/// Longest header and body together: what a receiver must be able to hold in one piece.
pub const MAX_HEAD_BYTES: usize = HEADER_BYTES + MAX_BODY_BYTES;

/// Most acknowledgements in one frame: far above any window of requests in flight.
pub const MAX_ACKS: usize = 4096;

/// Most digests in one frame: a chunk of 16 MiB in blocks of 4 KiB, 64 times the default chunk.
pub const MAX_HASHES: usize = 4096;

/// Most volumes of a resource that a record in a frame can name.
pub const MAX_VOLUMES: usize = 4096;

const _: () = assert!(body::RANGES_HEAD_BYTES + MAX_RANGES * body::RANGE_BYTES <= MAX_BODY_BYTES);
const _: () = assert!(8 + MAX_NUMBERS * forward::NUMBER_BYTES <= MAX_BODY_BYTES);
const _: () = assert!(map::HEAD_BYTES + 2 * MAX_MAP_RANGES * map::RANGE_BYTES <= MAX_BODY_BYTES);
const _: () = assert!(MAX_PAYLOAD_BYTES as usize >= MAX_HASHES * 4096);

/// A payload whose bytes can be seen: what the checksum needs.
pub trait PayloadBytes: Payload {
    /// All its bytes, [`Payload::len`] of them.
    fn bytes(&self) -> &[u8];
}

/// CRC-32C of a payload's bytes. A driver that sends one payload to several peers computes it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PayloadCrc(pub u32);

impl PayloadCrc {
    /// The checksum of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32c::crc32c(bytes))
    }

    /// The checksum of the bytes that this one stands for, followed by these: for payloads that
    /// arrive in parts. The checksum of no bytes is [`Self::EMPTY`].
    #[must_use]
    pub fn then(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }

    /// The checksum of no bytes.
    pub const EMPTY: Self = Self(0);
}

/// What every frame says of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameContext {
    /// The cluster.
    pub cluster: ClusterId,
    /// The resource.
    pub resource: ResourceId,
    /// The epoch of the sender's record.
    pub epoch: Epoch,
    /// The generation of the sender's record.
    pub generation: Generation,
}
