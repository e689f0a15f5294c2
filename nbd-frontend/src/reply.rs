//! Replies of the transmission phase, byte by byte. Only headers: the data of a READ stays in the
//! driver's buffer and is sent after them.

use std::ops::Range;

use crate::NbdError;
use crate::meta::{Extent, id_of};
use crate::request::{Command, Request};
use crate::wire::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::wire::{clip, put_u16, put_u32, put_u64};

/// Bytes of a simple reply: u32 magic, u32 error, u64 cookie.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes in front of the data of a READ under structured replies: u32 magic, u16 flags, u16 type,
/// u64 cookie, u32 length of what follows, u64 offset.
pub const DATA_CHUNK_HEADER_BYTES: usize = 28;

/// Zeroes in the data of a READ are looked for in blocks of this size, counted from the device's
/// start; so chunks begin at such places, as they should ("NBD_CMD_READ": multiples of 512).
const ZERO_BLOCK_BYTES: u64 = 4096;
/// Zeroes within data are told as a hole from so many bytes on: a shorter hole saves less than another
/// chunk costs both sides.
const MIN_HOLE_BYTES: usize = 16 << 10;

/// How replies look, as it was negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Replies {
    /// One header, errors without words.
    #[default]
    Simple,
    /// READs, and all errors, in chunks; what succeeds otherwise still in simple replies.
    Structured,
    /// Everything in chunks with headers of 32 bytes.
    Extended,
}

impl Replies {
    pub(crate) const fn are_structured(self) -> bool {
        !matches!(self, Self::Simple)
    }
}

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
}

impl From<&Request> for Head {
    fn from(request: &Request) -> Self {
        Self {
            cookie: request.cookie,
            offset: request.offset,
        }
    }
}

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

/// A piece of the reply to a READ whose bytes are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the data that have to be sent right after the piece's header; may be empty.
    pub send: Range<usize>,
    /// Where in the data the next piece begins; `None` after the last.
    pub next: Option<usize>,
}

/// Writes the reply's header; returns the bytes of data that have to follow it.
pub(crate) fn put_reply(
    request: &Request,
    outcome: Outcome,
    replies: Replies,
    out: &mut Vec<u8>,
) -> u32 {
    if let Outcome::Failed(error) = outcome {
        put_error(request.into(), error, error.text(), replies, out);
        return 0;
    }
    let length = request.payload_bytes();
    let is_read = request.command == Command::Read;
    if replies == Replies::Simple || replies == Replies::Structured && !is_read {
        put_simple(request.cookie, 0, out);
        if is_read { length } else { 0 }
    } else if !is_read || length == 0 {
        // A content chunk describes at least one byte.
        put_chunk(request.into(), chunk::NONE, 0, true, replies, out);
        0
    } else if outcome == Outcome::Zeroes {
        put_hole(request, request.offset, length, true, replies, out);
        0
    } else {
        put_data(request, request.offset, length, true, replies, out);
        length
    }
}

/// Writes the header of the next piece of the reply to a READ, from `from` of its `data` on. Pieces
/// that are zeroes are told as holes where the client takes chunks and has not forbidden to split.
pub(crate) fn put_piece(
    request: &Request,
    data: &[u8],
    from: usize,
    replies: Replies,
    out: &mut Vec<u8>,
) -> Piece {
    let end = data.len();
    let (length, hole) = if !replies.are_structured() || from >= end {
        let _all = put_reply(request, Outcome::Done, replies, out);
        return Piece {
            send: 0..end,
            next: None,
        };
    } else if request.flags.dont_fragment() {
        (end - from, is_zero(data))
    } else {
        next_run(data, from, request.offset)
    };
    let to = from + length;
    let offset = request.offset.saturating_add(length_u64(from));
    // Within a payload, whose limit is a u32.
    let bytes = u32::try_from(length).unwrap_or(u32::MAX);
    let send = if hole {
        put_hole(request, offset, bytes, to == end, replies, out);
        to..to
    } else {
        put_data(request, offset, bytes, to == end, replies, out);
        from..to
    };
    let next = (to < end).then_some(to);
    Piece { send, next }
}

/// The length of what comes next in the data, and whether it is a hole.
fn next_run(data: &[u8], from: usize, offset: u64) -> (usize, bool) {
    let end = data.len();
    let mut at = from;
    while at < end {
        let zeroes = zero_run(data, at, offset);
        let is_hole = zeroes >= MIN_HOLE_BYTES || zeroes > 0 && zeroes == end;
        if is_hole {
            return if at == from {
                (zeroes, true)
            } else {
                (at - from, false)
            };
        }
        at = block_end(at + zeroes, offset, end);
    }
    (end - from, false)
}

/// Bytes of whole blocks of zeroes from a place on.
fn zero_run(data: &[u8], from: usize, offset: u64) -> usize {
    let mut at = from;
    while at < data.len() {
        let end = block_end(at, offset, data.len());
        if !is_zero(&data[at..end]) {
            break;
        }
        at = end;
    }
    at - from
}

/// Where the block that holds this place of the data ends, or the data.
fn block_end(at: usize, offset: u64, end: usize) -> usize {
    let into = offset.wrapping_add(length_u64(at)) % ZERO_BLOCK_BYTES;
    let left = usize::try_from(ZERO_BLOCK_BYTES - into).unwrap_or(usize::MAX);
    at.saturating_add(left).min(end)
}

/// Data mostly end this at the first word.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

fn length_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Writes the answer to a BLOCK_STATUS: a chunk for each context, its extents cut at the end of what
/// was asked about, neighbours of one status put together, and only the first where one is wanted.
///
/// | size | field (32-bit extents) | size | field (with extended headers) |
/// |---|---|---|---|
/// | 4 | context | 4 | context |
/// | | | 4 | number of extents |
/// | 4 each | length | 8 each | length |
/// | 4 each | status | 8 each | status |
///
/// False, and nothing written, where a context has no extent.
pub(crate) fn put_status(
    request: &Request,
    answers: &[(usize, Vec<Extent>)],
    replies: Replies,
    out: &mut Vec<u8>,
) -> bool {
    let before = out.len();
    let most = if request.flags.req_one() {
        1
    } else {
        usize::MAX
    };
    let wide = replies == Replies::Extended;
    for (number, (place, extents)) in answers.iter().enumerate() {
        let told = told_extents(extents, request.length, most);
        let count = u32::try_from(told.len()).unwrap_or(u32::MAX);
        if count == 0 {
            out.truncate(before);
            return false;
        }
        let last = number + 1 == answers.len();
        if wide {
            let length = count.saturating_mul(16).saturating_add(8);
            put_chunk(
                request.into(),
                chunk::BLOCK_STATUS_EXT,
                length,
                last,
                replies,
                out,
            );
            put_u32(out, id_of(*place));
            put_u32(out, count);
        } else {
            let length = count.saturating_mul(8).saturating_add(4);
            put_chunk(
                request.into(),
                chunk::BLOCK_STATUS,
                length,
                last,
                replies,
                out,
            );
            put_u32(out, id_of(*place));
        }
        for Extent { length, flags } in told {
            if wide {
                put_u64(out, length);
                put_u64(out, u64::from(flags));
            } else {
                // Within the request, whose length was a u32.
                put_u32(out, u32::try_from(length).unwrap_or(u32::MAX));
                put_u32(out, flags);
            }
        }
    }
    !answers.is_empty()
}

fn told_extents(extents: &[Extent], length: u64, most: usize) -> Vec<Extent> {
    let mut left = length;
    let mut told: Vec<Extent> = Vec::with_capacity(extents.len().min(most));
    for extent in extents {
        let length = extent.length.min(left);
        if length == 0 {
            continue;
        }
        let is_full = told.len() == most;
        match told.last_mut() {
            Some(last) if last.flags == extent.flags => last.length += length,
            _ if is_full => break,
            _ => told.push(Extent { length, ..*extent }),
        }
        left -= length;
    }
    told
}

/// Writes an error reply; a structured one says `reason`, which is one of this crate's sentences.
pub(crate) fn put_error(
    head: Head,
    error: NbdError,
    reason: &'static str,
    replies: Replies,
    out: &mut Vec<u8>,
) {
    if !replies.are_structured() {
        put_simple(head.cookie, error.code(), out);
        return;
    }
    let reason = clip(reason);
    // `clip` keeps it to 4096 bytes.
    let reason_bytes = u16::try_from(reason.len()).unwrap_or(0);
    let length = 6 + u32::from(reason_bytes);
    put_chunk(head, chunk::ERROR, length, true, replies, out);
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

fn put_data(
    request: &Request,
    offset: u64,
    length: u32,
    last: bool,
    replies: Replies,
    out: &mut Vec<u8>,
) {
    // Payloads are limited far below this saturation (`Limits::max_payload_bytes`).
    let follows = length.saturating_add(8);
    put_chunk(
        request.into(),
        chunk::OFFSET_DATA,
        follows,
        last,
        replies,
        out,
    );
    put_u64(out, offset);
}

fn put_hole(
    request: &Request,
    offset: u64,
    length: u32,
    last: bool,
    replies: Replies,
    out: &mut Vec<u8>,
) {
    put_chunk(request.into(), chunk::OFFSET_HOLE, 12, last, replies, out);
    put_u64(out, offset);
    put_u32(out, length);
}

/// The header of a chunk.
///
/// | size | structured | size | extended |
/// |---|---|---|---|
/// | 4 | magic 0x668e33ef | 4 | magic 0x6e8a278c |
/// | 2 | flags | 2 | flags |
/// | 2 | type | 2 | type |
/// | 8 | cookie | 8 | cookie |
/// | | | 8 | the request's offset |
/// | 4 | length of what follows | 8 | length of what follows |
fn put_chunk(head: Head, kind: u16, length: u32, last: bool, replies: Replies, out: &mut Vec<u8>) {
    let wide = replies == Replies::Extended;
    let magic = if wide {
        EXTENDED_REPLY_MAGIC
    } else {
        STRUCTURED_REPLY_MAGIC
    };
    put_u32(out, magic);
    put_u16(out, if last { chunk::FLAG_DONE } else { 0 });
    put_u16(out, kind);
    put_u64(out, head.cookie);
    if wide {
        put_u64(out, head.offset);
        put_u64(out, u64::from(length));
    } else {
        put_u32(out, length);
    }
}
