//! What leaves a socket in one `sendmsg`: any number of headers and payloads in their order, gathered
//! during one turn of the loop. Payloads are shared, not copied. A batch is used again for the next
//! turn, so it allocates nothing once it has grown to its size.

use super::super::pool::PoolBuf;
use crate::core::api::Payload;
use nix::libc;
use std::fmt;
use std::ops::Range;

/// Most pieces of one sendmsg (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// A payload that is shorter than this is copied between the headers: two pieces more cost more than
/// copying so few bytes.
const COPY_BELOW: usize = 512;

#[derive(Debug)]
enum Part {
    /// A range of `SendBatch::headers`.
    Headers(Range<usize>),
    Payload(PoolBuf),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Headers(range) => range.len(),
            Self::Payload(payload) => payload.len(),
        }
    }
}

/// Headers and payloads to send, and how far it got.
pub struct SendBatch {
    headers: Vec<u8>,
    /// Bytes of `headers` that are in `parts`.
    closed: usize,
    parts: Vec<Part>,
    payload_bytes: usize,
    sent: usize,
    /// The first part that is not sent whole, and how much of it is.
    at: (usize, usize),
    pieces: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendBatch({} of {} bytes sent)", self.sent, self.len())
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self {
            headers: Vec::new(),
            closed: 0,
            parts: Vec::new(),
            payload_bytes: 0,
            sent: 0,
            at: (0, 0),
            pieces: Vec::new(),
            // SAFETY: all zeroes is a valid msghdr: null pointers and no lengths.
            message: unsafe { std::mem::zeroed() },
        }
    }
}

impl SendBatch {
    /// Where headers are appended. Only append: what was there is part of the batch.
    pub const fn headers(&mut self) -> &mut Vec<u8> {
        &mut self.headers
    }

    /// Appends a payload after all that was appended before.
    pub fn payload(&mut self, payload: PoolBuf) {
        if payload.len() < COPY_BELOW {
            self.headers.extend_from_slice(payload.bytes());
            return;
        }
        self.close_headers();
        self.payload_bytes += payload.len();
        self.parts.push(Part::Payload(payload));
    }

    /// Bytes of the whole batch.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.headers.len() + self.payload_bytes
    }

    /// Is there nothing in it?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes not sent yet.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.len() - self.sent
    }

    /// Copies what comes next into the space, as far as both reach, and counts it as sent. Gives how
    /// much that was.
    pub fn copy_out(&mut self, space: &mut [u8]) -> usize {
        self.close_headers();
        let (first, mut skip) = self.at;
        let mut filled = 0;
        for part in &self.parts[first..] {
            let bytes = match part {
                Part::Headers(range) => &self.headers[range.clone()],
                Part::Payload(payload) => payload.bytes(),
            };
            let bytes = &bytes[skip..];
            skip = 0;
            let count = bytes.len().min(space.len() - filled);
            space[filled..filled + count].copy_from_slice(&bytes[..count]);
            filled += count;
            if filled == space.len() {
                break;
            }
        }
        self.advance(filled);
        filled
    }

    /// Notes that so many bytes were sent.
    pub fn advance(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.left());
        self.sent += bytes;
        let (mut part, mut within) = self.at;
        within += bytes;
        while part < self.parts.len() && within >= self.parts[part].len() {
            within -= self.parts[part].len();
            part += 1;
        }
        self.at = (part, within);
    }

    /// Empties the batch for use again; payloads are let go.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.closed = 0;
        self.parts.clear();
        self.payload_bytes = 0;
        self.sent = 0;
        self.at = (0, 0);
    }

    fn close_headers(&mut self) {
        if self.closed < self.headers.len() {
            self.parts
                .push(Part::Headers(self.closed..self.headers.len()));
            self.closed = self.headers.len();
        }
    }

    /// The kernel's form of what is left. Valid until the batch is changed: the ring owns the batch
    /// from here to the completion.
    pub(super) fn prepare(&mut self) -> *const libc::msghdr {
        self.close_headers();
        let (first, mut skip) = self.at;
        self.pieces.clear();
        for part in self.parts[first..].iter().take(MAX_PIECES) {
            let bytes = match part {
                Part::Headers(range) => &self.headers[range.clone()],
                Part::Payload(payload) => payload.bytes(),
            };
            let bytes = &bytes[skip..];
            skip = 0;
            self.pieces.push(libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            });
        }
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = self.pieces.len();
        &raw const self.message
    }
}
