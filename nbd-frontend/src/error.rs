//! What can go wrong: the errors that a reply may carry, and why a connection ends.

use thiserror::Error;

/// An error that a reply may carry; there are no others ("Error values"). The text goes to clients
/// that negotiated structured replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("{}", self.text())]
pub enum NbdError {
    /// The export must not be written, or not from here.
    NotPermitted,
    /// The device failed.
    Io,
    /// No memory for the request; to be avoided.
    NoMemory,
    /// The request makes no sense for this export.
    Invalid,
    /// A write past the end, or a store that is full.
    NoSpace,
    /// A read that is too long to be answered in one piece.
    Overflow,
    /// FAST_ZERO was asked for and zeroing would not be fast. Nothing was changed.
    NotSupported,
    /// The server is going away.
    ShuttingDown,
}

impl NbdError {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::ShuttingDown => 108,
        }
    }

    /// What it means, for a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => "operation not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "out of memory",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space left on the device",
            Self::Overflow => "too long for one reply",
            Self::NotSupported => "not supported",
            Self::ShuttingDown => "the server is shutting down",
        }
    }
}

/// Why a connection has to be closed. What is in flight is finished and sent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum CloseReason {
    /// The client sent DISC.
    #[error("the client disconnected")]
    Disconnected,
    /// The client ended the handshake with ABORT; the acknowledgement is in the output.
    #[error("the client aborted the handshake")]
    Aborted,
    /// The client set flags that this server did not offer ("Client flags": MUST drop).
    #[error("unknown client flags {0:#x}")]
    UnknownClientFlags(u32),
    /// Where an option should start there is something else.
    #[error("{0:#018x} is not the start of an option")]
    BadOptionMagic(u64),
    /// Where a request should start there is something else; the stream cannot be followed further.
    #[error("{0:#010x} is not the start of a request")]
    BadRequestMagic(u32),
    /// EXPORT_NAME asked for an export that cannot be had; that option has no error reply.
    #[error("the export that EXPORT_NAME asked for is not available")]
    ExportRefused,
    /// EXPORT_NAME came before TLS, which is required here; that option has no error reply.
    #[error("EXPORT_NAME without TLS, which is required")]
    TlsRequired,
    /// EXPORT_NAME came after EXTENDED_HEADERS, with which only GO may be used.
    #[error("EXPORT_NAME cannot be used with extended headers")]
    NeedsGo,
    /// A request says that more payload follows than may ("Request message": SHOULD disconnect).
    #[error("a payload of {0} bytes is longer than the advertised maximum")]
    PayloadTooLong(u64),
    /// More options than [`Limits::max_options`](crate::Limits::max_options).
    #[error("too many options in one handshake")]
    TooManyOptions,
}

impl CloseReason {
    /// True when the client ended the connection as the protocol foresees.
    #[must_use]
    pub const fn is_orderly(self) -> bool {
        matches!(self, Self::Disconnected | Self::Aborted)
    }
}
