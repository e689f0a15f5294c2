//! Requests of the transmission phase: what they are, and which of them an export takes. Checking
//! is pure; what a rejected request costs (its reply, its payload) is the connection's matter.

use crate::export::{ExportInfo, Exports};
use crate::wire::{REQUEST_MAGIC, command, command_flag as flag};
use crate::{CloseReason, NbdError};

/// Bytes of a compact request.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | magic 0x25609513 |
/// | 4 | 2 | command flags |
/// | 6 | 2 | command |
/// | 8 | 8 | cookie |
/// | 16 | 8 | offset |
/// | 24 | 4 | length |
pub(crate) const REQUEST_BYTES: usize = 28;

/// What a client asks a device to do. DISC and everything malformed never gets this far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Give the bytes of the range.
    Read,
    /// Put the payload into the range.
    Write,
    /// Make every write that was answered on any connection durable.
    Flush,
    /// The range's contents are no longer needed.
    Trim,
    /// Make the range read as zeroes.
    WriteZeroes,
    /// The range will be read soon; doing nothing is allowed.
    Cache,
}

/// Flags of a request; only those that apply to its command are ever set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CommandFlags(u16);

impl CommandFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Only FUA.
    pub const FUA: Self = Self(flag::FUA);

    /// What the command writes is durable before it is answered.
    #[must_use]
    pub const fn fua(self) -> bool {
        self.0 & flag::FUA != 0
    }

    /// WRITE_ZEROES: keep the range allocated, make no hole.
    #[must_use]
    pub const fn no_hole(self) -> bool {
        self.0 & flag::NO_HOLE != 0
    }

    /// READ: answer in a single chunk. Replies of this crate always are.
    #[must_use]
    pub const fn dont_fragment(self) -> bool {
        self.0 & flag::DF != 0
    }

    /// WRITE_ZEROES: fast, or refuse at once with the data untouched.
    #[must_use]
    pub const fn fast_zero(self) -> bool {
        self.0 & flag::FAST_ZERO != 0
    }
}

/// A request that fits the export: known command, applicable flags, a range inside the device that
/// is not empty (FLUSH: empty, at 0), a payload within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The client's name for this request, repeated in the reply. Nothing stops a client from using
    /// one twice, so it is no key.
    pub cookie: u64,
    /// What to do.
    pub command: Command,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range. Up to 4 GiB for commands without payload (more with extended headers);
    /// see [`payload_bytes`](Self::payload_bytes) for the others.
    pub length: u64,
    /// How to do it.
    pub flags: CommandFlags,
}

impl Request {
    /// Bytes that travel with the request (WRITE) or its successful reply (READ), else 0.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        match self.command {
            // Checked against the limit, which is a u32, when the request was taken.
            Command::Read | Command::Write => u32::try_from(self.length).unwrap_or(u32::MAX),
            Command::Flush | Command::Trim | Command::WriteZeroes | Command::Cache => 0,
        }
    }

    /// True when there is no byte to do anything with.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0 && self.command != Command::Flush
    }
}

/// The fields of a request as they stand on the wire, nothing checked but the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawRequest {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

impl RawRequest {
    pub(crate) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, CloseReason> {
        let [m0, m1, m2, m3, f0, f1, c0, c1, rest @ ..] = *bytes;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REQUEST_MAGIC {
            return Err(CloseReason::BadRequestMagic(magic));
        }
        let [
            k0,
            k1,
            k2,
            k3,
            k4,
            k5,
            k6,
            k7,
            o0,
            o1,
            o2,
            o3,
            o4,
            o5,
            o6,
            o7,
            l0,
            l1,
            l2,
            l3,
        ] = rest;
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([c0, c1]),
            cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    pub(crate) const fn is_disconnect(&self) -> bool {
        self.command == command::DISC
    }

    /// Bytes that follow on the stream, whether or not the request is any good: only WRITE has any.
    pub(crate) const fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE {
            self.length
        } else {
            0
        }
    }
}

/// Why a request is not passed on, with a sentence for clients that can take one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) error: NbdError,
    pub(crate) reason: &'static str,
}

impl Rejection {
    pub(crate) const SHUTTING_DOWN: Self = Self {
        error: NbdError::ShuttingDown,
        reason: "the server is shutting down",
    };
}

const fn reject<T>(error: NbdError, reason: &'static str) -> Result<T, Rejection> {
    Err(Rejection { error, reason })
}

/// What a request is checked against.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) export: ExportInfo,
    /// Structured replies were negotiated.
    pub(crate) structured: bool,
    /// The client asked for the block sizes, so it has to keep to the minimum.
    pub(crate) block_sizes_asked: bool,
    pub(crate) max_payload_bytes: u32,
}

impl Terms {
    /// As [`check`](Self::check). Where it goes past the end, the export may have grown since it was
    /// opened: a client that has learnt of that need not connect again.
    pub(crate) fn check_now(
        &mut self,
        raw: &RawRequest,
        exports: &dyn Exports,
    ) -> Result<Request, Rejection> {
        let checked = self.check(raw);
        let end = raw.offset.checked_add(u64::from(raw.length));
        if checked.is_ok() || end.is_some_and(|end| end <= self.export.size_bytes) {
            return checked;
        }
        match exports.find(&self.export.name) {
            Ok(now) if now.size_bytes > self.export.size_bytes => {
                self.export.size_bytes = now.size_bytes;
                self.check(raw)
            }
            _ => checked,
        }
    }

    /// The request, if it fits the export. "Request types", "Error values", "Block size constraints".
    pub(crate) fn check(&self, raw: &RawRequest) -> Result<Request, Rejection> {
        let (command, allowed) = match raw.command {
            command::READ => (Command::Read, if self.structured { flag::DF } else { 0 }),
            command::WRITE => (Command::Write, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => {
                let fast = if self.export.can_fast_zero {
                    flag::FAST_ZERO
                } else {
                    0
                };
                (Command::WriteZeroes, flag::NO_HOLE | fast)
            }
            _ => return reject(NbdError::Invalid, "unknown command"),
        };
        // FUA is legal on every command once it is advertised.
        if raw.flags & !(allowed | flag::FUA) != 0 {
            return reject(
                NbdError::Invalid,
                "a flag is unknown or does not apply to the command",
            );
        }
        let request = Request {
            cookie: raw.cookie,
            command,
            offset: raw.offset,
            length: u64::from(raw.length),
            flags: CommandFlags(raw.flags),
        };
        let writes = matches!(
            command,
            Command::Write | Command::Trim | Command::WriteZeroes
        );
        if writes && self.export.read_only {
            return reject(NbdError::NotPermitted, "the export is read-only");
        }
        if command == Command::Flush {
            if raw.offset != 0 || raw.length != 0 {
                return reject(NbdError::Invalid, "a flush takes neither offset nor length");
            }
            return Ok(request);
        }
        self.check_range(&request)?;
        Ok(request)
    }

    fn check_range(&self, request: &Request) -> Result<(), Rejection> {
        let unit = u64::from(self.export.min_block_bytes.max(1));
        if self.block_sizes_asked
            && !(request.offset.is_multiple_of(unit) && request.length.is_multiple_of(unit))
        {
            return reject(
                NbdError::Invalid,
                "offset or length is not a multiple of the minimum block size",
            );
        }
        let end = request.offset.checked_add(request.length);
        if end.is_none_or(|end| end > self.export.size_bytes) {
            let error = match request.command {
                Command::Write | Command::WriteZeroes => NbdError::NoSpace,
                Command::Read | Command::Trim | Command::Cache | Command::Flush => {
                    NbdError::Invalid
                }
            };
            return reject(error, "the range goes past the end of the export");
        }
        if request.payload_bytes() > self.max_payload_bytes {
            // EOVERFLOW is reserved for reads that must not be fragmented.
            let error = if request.flags.dont_fragment() {
                NbdError::Overflow
            } else {
                NbdError::Invalid
            };
            return reject(error, "longer than the maximum payload of this server");
        }
        Ok(())
    }
}
