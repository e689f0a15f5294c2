//! Replies of the transmission phase, byte by byte. Only headers: the data of a READ stays in the
//! driver's buffer and is sent after them.

use crate::NbdError;
use crate::request::{Command, Request};
use crate::wire::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::wire::{clip, put_u16, put_u32, put_u64};

/// Bytes of a simple reply: u32 magic, u32 error, u64 cookie.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes in front of the data of a READ under structured replies: u32 magic, u16 flags, u16 type,
/// u64 cookie, u32 length of what follows, u64 offset.
pub const DATA_CHUNK_HEADER_BYTES: usize = 28;

/// How a device ended a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; a READ has its bytes in the buffer.
    Done,
    /// A READ of nothing but zeroes, which need not be in the buffer.
    Zeroes,
    /// Failed, or refused.
    Failed(NbdError),
}

/// Writes the reply's header; returns the bytes of data that have to follow it.
pub(crate) fn put_reply(
    request: &Request,
    outcome: Outcome,
    structured: bool,
    out: &mut Vec<u8>,
) -> u32 {
    if let Outcome::Failed(error) = outcome {
        put_error(request.cookie, error, error.text(), structured, out);
        return 0;
    }
    let length = request.payload_bytes();
    if request.command != Command::Read {
        put_simple(request.cookie, 0, out);
        0
    } else if !structured {
        put_simple(request.cookie, 0, out);
        length
    } else if length == 0 {
        // A content chunk describes at least one byte.
        put_chunk(request.cookie, chunk::NONE, 0, out);
        0
    } else if outcome == Outcome::Zeroes {
        put_chunk(request.cookie, chunk::OFFSET_HOLE, 12, out);
        put_u64(out, request.offset);
        put_u32(out, length);
        0
    } else {
        // Payloads are limited far below this saturation (`Limits::max_payload_bytes`).
        put_chunk(
            request.cookie,
            chunk::OFFSET_DATA,
            length.saturating_add(8),
            out,
        );
        put_u64(out, request.offset);
        length
    }
}

/// Writes an error reply; a structured one says `reason`, which is one of this crate's sentences.
pub(crate) fn put_error(
    cookie: u64,
    error: NbdError,
    reason: &'static str,
    structured: bool,
    out: &mut Vec<u8>,
) {
    if !structured {
        put_simple(cookie, error.code(), out);
        return;
    }
    let reason = clip(reason);
    // `clip` keeps it to 4096 bytes.
    let reason_bytes = u16::try_from(reason.len()).unwrap_or(0);
    put_chunk(cookie, chunk::ERROR, 6 + u32::from(reason_bytes), out);
    put_u32(out, error.code());
    put_u16(out, reason_bytes);
    out.extend_from_slice(reason.as_bytes());
}

fn put_simple(cookie: u64, error: u32, out: &mut Vec<u8>) {
    let mut reply = [0; SIMPLE_REPLY_BYTES];
    reply[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply[4..8].copy_from_slice(&error.to_be_bytes());
    reply[8..].copy_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&reply);
}

/// The header of a chunk. Every reply of this crate is one chunk, so each is the last.
fn put_chunk(cookie: u64, kind: u16, length: u32, out: &mut Vec<u8>) {
    put_u32(out, STRUCTURED_REPLY_MAGIC);
    put_u16(out, chunk::FLAG_DONE);
    put_u16(out, kind);
    put_u64(out, cookie);
    put_u32(out, length);
}
