//! Requests of the transmission phase: what they are, and which of them an export takes. Checking
//! is pure; what a rejected request costs (its reply, its payload) is the connection's matter.

use crate::export::{ExportInfo, Exports};
use crate::meta::{Contexts, id_of};
use crate::reply::{Head, Replies};
use crate::wire::{EXTENDED_REQUEST_MAGIC, Fields, REQUEST_MAGIC, command, command_flag as flag};
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

/// Bytes of a request with extended headers: the same with magic 0x21e41c71 and a length of 8 bytes.
pub(crate) const EXTENDED_REQUEST_BYTES: usize = 32;

/// Most payload of a BLOCK_STATUS: u64 length, and u32 for each context wanted, once.
pub(crate) const MAX_STATUS_PAYLOAD_BYTES: u32 = 8 + 4 * 8;

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
    /// Tell what the contexts of [`Request::contexts`] say about the range.
    BlockStatus,
}

/// Flags of a request; only those that apply to its command are ever set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CommandFlags(u16);

impl CommandFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Only FUA.
    pub const FUA: Self = Self(flag::FUA);

    /// The flags as they stand on the wire.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Flags that came from [`bits`](Self::bits).
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

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

    /// READ: answer in a single chunk.
    #[must_use]
    pub const fn dont_fragment(self) -> bool {
        self.0 & flag::DF != 0
    }

    /// BLOCK_STATUS: one extent, no longer than what was asked about.
    #[must_use]
    pub const fn req_one(self) -> bool {
        self.0 & flag::REQ_ONE != 0
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
    /// What BLOCK_STATUS asks for, not empty; [`Contexts::NONE`] for other commands.
    pub contexts: Contexts,
}

impl Request {
    /// Bytes that travel with the request (WRITE) or its successful reply (READ), else 0.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        match self.command {
            // Checked against the limit, which is a u32, when the request was taken.
            Command::Read | Command::Write => u32::try_from(self.length).unwrap_or(u32::MAX),
            Command::Flush
            | Command::Trim
            | Command::WriteZeroes
            | Command::Cache
            | Command::BlockStatus => 0,
        }
    }

    /// True when there is no byte to do anything with.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0 && !matches!(self.command, Command::Flush | Command::BlockStatus)
    }
}

/// The fields of a request as they stand on the wire, nothing checked but the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawRequest {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl RawRequest {
    pub(crate) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, CloseReason> {
        let [head @ .., l0, l1, l2, l3] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        Self::with_magic(REQUEST_MAGIC, head, u64::from(length))
    }

    pub(crate) fn parse_extended(
        bytes: &[u8; EXTENDED_REQUEST_BYTES],
    ) -> Result<Self, CloseReason> {
        let [head @ .., l0, l1, l2, l3, l4, l5, l6, l7] = *bytes;
        let length = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        Self::with_magic(EXTENDED_REQUEST_MAGIC, head, length)
    }

    fn with_magic(expected: u32, head: [u8; 24], length: u64) -> Result<Self, CloseReason> {
        let [m0, m1, m2, m3, f0, f1, c0, c1, numbers @ ..] = head;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != expected {
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
        ] = numbers;
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([c0, c1]),
            cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length,
        })
    }

    pub(crate) const fn head(&self) -> Head {
        Head {
            cookie: self.cookie,
            offset: self.offset,
        }
    }

    pub(crate) const fn is_disconnect(&self) -> bool {
        self.command == command::DISC
    }

    /// Bytes that follow on the stream, whether or not the request is any good: a WRITE's, and with
    /// extended headers those of any command that says so. A WRITE has to say so then, but QEMU's client
    /// (10.0) does not.
    pub(crate) fn payload_bytes(&self, replies: Replies) -> u64 {
        let says_so = replies == Replies::Extended && self.flags & flag::PAYLOAD_LEN != 0;
        if says_so || self.command == command::WRITE {
            self.length
        } else {
            0
        }
    }

    /// Is it a BLOCK_STATUS whose payload says what it is about?
    pub(crate) fn has_status_payload(&self, replies: Replies) -> bool {
        self.command == command::BLOCK_STATUS && self.payload_bytes(replies) > 0
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
    pub(crate) replies: Replies,
    /// The client asked for the block sizes, so it has to keep to the minimum.
    pub(crate) block_sizes_asked: bool,
    /// The metadata contexts that were selected for the export.
    pub(crate) contexts: Contexts,
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
        let end = raw.offset.checked_add(raw.length);
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

    /// A BLOCK_STATUS with the payload that came with it, if both fit the export.
    ///
    /// | offset | size | field |
    /// |---|---|---|
    /// | 0 | 8 | length of the range |
    /// | 8 | 4 each | contexts wanted, one at least |
    pub(crate) fn check_status(
        &self,
        raw: &RawRequest,
        payload: &[u8],
    ) -> Result<Request, Rejection> {
        let mut fields = Fields(payload);
        let mut contexts = Contexts::NONE;
        let length = fields.u64();
        while let Some(id) = fields.u32() {
            let place = self.contexts.places().find(|place| id_of(*place) == id);
            if !place.is_some_and(|place| contexts.insert(place)) {
                return reject(
                    NbdError::Invalid,
                    "a metadata context was not selected, or is named twice",
                );
            }
        }
        let Some(length) = length.filter(|_| fields.is_empty() && !contexts.is_empty()) else {
            return reject(
                NbdError::Invalid,
                "the payload of a block status is malformed",
            );
        };
        let flags = raw.flags & !flag::PAYLOAD_LEN;
        let plain = RawRequest {
            flags,
            length,
            ..*raw
        };
        let request = self.check(&plain)?;
        Ok(Request {
            contexts,
            ..request
        })
    }

    /// The request, if it fits the export. "Request types", "Error values", "Block size constraints".
    pub(crate) fn check(&self, raw: &RawRequest) -> Result<Request, Rejection> {
        let is_extended = self.replies == Replies::Extended;
        let (command, allowed) = match raw.command {
            command::READ => {
                let df = if self.replies.are_structured() {
                    flag::DF
                } else {
                    0
                };
                (Command::Read, df)
            }
            command::WRITE if is_extended => (Command::Write, flag::PAYLOAD_LEN),
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
            command::BLOCK_STATUS => {
                if self.contexts.is_empty() {
                    return reject(
                        NbdError::Invalid,
                        "no metadata context was selected for this export",
                    );
                }
                if raw.length == 0 {
                    return reject(NbdError::Invalid, "a block status of no bytes");
                }
                (Command::BlockStatus, flag::REQ_ONE)
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
            length: raw.length,
            flags: CommandFlags(raw.flags & !flag::PAYLOAD_LEN),
            contexts: if command == Command::BlockStatus {
                self.contexts
            } else {
                Contexts::NONE
            },
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
                _ => NbdError::Invalid,
            };
            return reject(error, "the range goes past the end of the export");
        }
        let has_payload = matches!(request.command, Command::Read | Command::Write);
        if has_payload && request.length > u64::from(self.max_payload_bytes) {
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
