//! Types of frames: their numbers, how long their bodies are, and who may send them.

use super::body::{
    FastZeroesBody, FetchedBody, GrowBody, GrownBody, HASH_BYTES, HashReplyHead, NumberBody,
    RANGE_BYTES, RANGES_HEAD_BYTES, RangeRequestBody, ReleaseBody, WriteBody, ZeroBody,
};
use super::forward::{AnswerBody, AttachBody, ForwardBody, NUMBER_BYTES};
use super::handshake::{OFFER_BYTES, RejectBody};
use super::map::{self, AskMapBody};
use super::{MAX_ACKS, MAX_HASHES, MAX_VOLUMES};
use crate::core::message::{MAX_MAP_RANGES, MAX_NUMBERS, MAX_RANGES};
use std::fmt;

/// Which end of a connection may send a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// The primary, which dialled.
    Primary,
    /// The replica, which accepted.
    Replica,
    /// The node that forwards, which dialled.
    Follower,
    /// The primary that it forwards to, which accepted.
    Attached,
    /// Either.
    Either,
}

/// May or must a frame of the type have a payload?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayloadRule {
    Never,
    Maybe,
    Always,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $sender:ident;)*) => {
        /// Type of a frame. Numbers are never given to another type.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $name = $code,)*
        }

        impl Kind {
            /// All types.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The type of this number.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The type's number.
            #[must_use]
            pub const fn code(self) -> u16 {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            pub(super) const fn sender(self) -> Sender {
                match self {
                    $(Self::$name => Sender::$sender,)*
                }
            }

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

kinds! {
    /// Opens a session; first on a connection.
    Hello = 1, Primary;
    /// Accepts it.
    Welcome = 2, Replica;
    /// Refuses it.
    Refuse = 3, Replica;
    /// The sender could not understand what came and closes; known to this layer only.
    Reject = 4, Either;
    /// Ranges of a welcome or a hand-over.
    Ranges = 5, Either;
    /// Ends a welcome.
    WelcomeEnd = 6, Replica;
    /// A newer record.
    Record = 7, Primary;
    /// A write.
    Write = 16, Primary;
    /// A range of zeroes.
    Zero = 17, Primary;
    /// Ranges for the window.
    Touch = 18, Primary;
    /// Acknowledgements.
    Acks = 19, Replica;
    /// A flush.
    Flush = 20, Primary;
    /// Its acknowledgement.
    FlushAck = 21, Replica;
    /// A release notice.
    Release = 22, Primary;
    /// Asks for digests.
    HashRequest = 32, Primary;
    /// Digests.
    HashReply = 33, Replica;
    /// Asks for bytes.
    Fetch = 34, Primary;
    /// The bytes.
    Fetched = 35, Replica;
    /// Ends a hand-over.
    HandOverEnd = 48, Primary;
    /// It is stored.
    HandOverDone = 49, Replica;
    /// Asks for room.
    Grow = 50, Primary;
    /// The answer.
    Grown = 51, Replica;
    /// The disk has failed.
    DiskFailed = 52, Replica;
    /// Request numbers that the primary holds.
    Numbers = 53, Primary;
    /// They are the replica's too.
    Settled = 54, Primary;
    /// Still there?
    Ping = 64, Either;
    /// Yes.
    Pong = 65, Either;
    /// A node wants to forward to the primary; first on a connection.
    Attach = 80, Follower;
    /// Accepts that.
    Attached = 81, Attached;
    /// A client's request.
    Forward = 82, Follower;
    /// Its answer.
    Answer = 83, Attached;
    /// A client's question about a range.
    AskMap = 84, Follower;
    /// Its answer.
    Map = 85, Attached;
    /// What the replica zeroes without writing.
    FastZeroes = 55, Replica;
}

/// Longest record in postcard: numbers of 63 bits take 9 bytes, of 64 bits 10, of 128 bits 19;
/// 32 members of node, disk and incarnation; the rest is below 128 bytes.
const RECORD_BYTES: usize = MAX_VOLUMES * 9 + 32 * (1 + 19 + 10) + 128;

impl Kind {
    /// Shortest and longest body of the type.
    pub(super) const fn body_bytes(self) -> (usize, usize) {
        const fn exactly(bytes: usize) -> (usize, usize) {
            (bytes, bytes)
        }
        match self {
            Self::Hello => (OFFER_BYTES + 1, OFFER_BYTES + 32 + RECORD_BYTES),
            Self::Record => (1, 1 + RECORD_BYTES),
            Self::Welcome => (OFFER_BYTES + 1, OFFER_BYTES + 128),
            Self::Refuse => (1, 16),
            Self::Reject => exactly(size_of::<RejectBody>()),
            Self::Ranges => (
                RANGES_HEAD_BYTES,
                RANGES_HEAD_BYTES + MAX_RANGES * RANGE_BYTES,
            ),
            Self::Touch => (
                size_of::<NumberBody>(),
                size_of::<NumberBody>() + MAX_RANGES * RANGE_BYTES,
            ),
            Self::WelcomeEnd | Self::DiskFailed | Self::Settled => exactly(0),
            Self::Write => exactly(size_of::<WriteBody>()),
            Self::Zero => exactly(size_of::<ZeroBody>()),
            Self::Acks => (0, MAX_ACKS * size_of::<NumberBody>()),
            Self::Flush
            | Self::FlushAck
            | Self::HandOverEnd
            | Self::HandOverDone
            | Self::Ping
            | Self::Pong => exactly(size_of::<NumberBody>()),
            Self::Release => exactly(size_of::<ReleaseBody>()),
            Self::HashRequest | Self::Fetch => exactly(size_of::<RangeRequestBody>()),
            Self::HashReply => (
                size_of::<HashReplyHead>(),
                size_of::<HashReplyHead>() + MAX_HASHES * HASH_BYTES,
            ),
            Self::Fetched => exactly(size_of::<FetchedBody>()),
            Self::Grow => exactly(size_of::<GrowBody>()),
            Self::Grown => exactly(size_of::<GrownBody>()),
            Self::FastZeroes => exactly(size_of::<FastZeroesBody>()),
            Self::Numbers => (
                size_of::<NumberBody>(),
                size_of::<NumberBody>() + MAX_NUMBERS * NUMBER_BYTES,
            ),
            Self::Attach => exactly(OFFER_BYTES + size_of::<AttachBody>()),
            Self::Attached => exactly(OFFER_BYTES + size_of::<NumberBody>()),
            Self::Forward => exactly(size_of::<ForwardBody>()),
            Self::Answer => exactly(size_of::<AnswerBody>()),
            Self::AskMap => exactly(size_of::<AskMapBody>()),
            Self::Map => (
                map::HEAD_BYTES,
                map::HEAD_BYTES + 2 * MAX_MAP_RANGES * map::RANGE_BYTES,
            ),
        }
    }

    pub(super) const fn payload(self) -> PayloadRule {
        match self {
            Self::Write => PayloadRule::Always,
            Self::Fetched | Self::Forward | Self::Answer => PayloadRule::Maybe,
            _ => PayloadRule::Never,
        }
    }

    /// Does its body begin with an offer, which is read whatever version the rest is in?
    pub(super) const fn has_offer(self) -> bool {
        matches!(
            self,
            Self::Hello | Self::Welcome | Self::Attach | Self::Attached
        )
    }

    /// May it come to the node that dialled before the connection is accepted?
    pub(super) const fn before_welcome(self) -> bool {
        matches!(
            self,
            Self::Welcome
                | Self::Attached
                | Self::Refuse
                | Self::DiskFailed
                | Self::Ping
                | Self::Pong
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
