//! The device behind an export, as a driver loop sees it. The driver owns sockets and buffers, the
//! device owns what happens to the bytes; neither blocks the other.
//!
//! A loop is: parse requests with [`Connection`](crate::Connection), [`submit`](BlockDevice::submit)
//! each with a tag that leads back to its connection, then take completions and write each one's
//! reply. `tests/common` holds a blocking one in a hundred lines.

use crate::{ExportInfo, Outcome, Request};

/// The driver's name for a request in flight, unique over all connections while it is. (A cookie is
/// the client's word and need not be unique.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// The end of a request.
#[derive(Debug)]
pub struct Completion<B> {
    /// As submitted.
    pub tag: Tag,
    /// As submitted.
    pub request: Request,
    /// What became of it.
    pub outcome: Outcome,
    /// The buffer of the submission. After a READ that is [`Outcome::Done`] it begins with the
    /// bytes that were read.
    pub buffer: Option<B>,
}

/// A block device that takes requests in any number and completes them in any order.
///
/// Durability is the device's: a FUA request completes once what it wrote is durable, and a FLUSH
/// once everything is that was completed before it was submitted, on whichever connection. Any byte
/// range inside [`info`](Self::info) has to be served, since clients that do not ask for block sizes
/// send such requests; overlapping requests in flight may be applied in any order, but not torn
/// apart.
pub trait BlockDevice {
    /// What carries payloads, for instance a slot of a pool of aligned buffers. A buffer belongs to
    /// the device from submission to completion.
    type Buffer;

    /// What clients are told about the device now.
    fn info(&self) -> ExportInfo;

    /// Begins a request that a connection let through. `buffer` is there for READ (to be filled) and
    /// WRITE (filled) and holds at least [`Request::payload_bytes`]. Never fails here: refusals are
    /// completions too.
    fn submit(&mut self, tag: Tag, request: Request, buffer: Option<Self::Buffer>);

    /// The next request that ended, if any has. Exactly one for each submission.
    fn next_completion(&mut self) -> Option<Completion<Self::Buffer>>;
}
