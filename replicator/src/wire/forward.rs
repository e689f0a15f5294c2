//! Bodies of what nodes that follow and primaries say to each other (RULES 12), and of the numbers
//! that a primary gives a replica. All numbers are little endian, reserved bytes are 0 and checked.
//!
//! | frame                        | body (bytes)                                                              |
//! |------------------------------|---------------------------------------------------------------------------|
//! | `Numbers`                    | era 8, then numbers                                                       |
//! | `Settled`                    | nothing                                                                   |
//! | `Attach`                     | offer 24, session 8, epoch 8, node 1, to 1, reserved 6                    |
//! | `Attached`                   | offer 24, era 8                                                           |
//! | `Forward` (perhaps payload)  | number 8, offset 8, len 8, behind 4, volume 2, request 1, flags 1         |
//! | `Answer` (perhaps payload)   | number 8, outcome 1, reserved 7                                           |
//!
//! A number is session 8, number 8, offset 8, len 8, behind 4, volume 2, flags 1 (bit 0 torn),
//! reserved 1. `behind`: how far below the number all are answered, less than [`MAX_SPAN`].
//! Requests: 0 read, 1 write (the payload), 2 zero, 3 flush (no range). Flags of `Forward`: bit 0
//! FUA, bit 1 hole, bit 2 sent again, bit 3 fast. Outcomes: 0 done, 1 not the primary, 2 out of range, 3 I/O
//! error, 4 no space, 5 shutdown, 6 not fast.

use super::body::{FLAG_FUA, FLAG_HOLE, FLAG_YES, Reader, WithoutPayload, check_range};
use super::error::{EncodeError, WireError};
use super::handshake::{LOCAL_OFFER, OFFER_BYTES, RawOffer};
use super::kind::Kind;
use crate::core::api::{ClientError, ClientRequest};
use crate::core::message::{ClientMark, MAX_SPAN, Message, NumberEntry, VolumeRange};
use vocabulary::{ByteRange, Epoch, NodeId, VolumeId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// `Forward`: a primary may have the request already.
const FLAG_AGAIN: u8 = 4;
/// `Forward`: refused where it is not fast.
const FLAG_FAST: u8 = 8;

const READ: u8 = 0;
const WRITE: u8 = 1;
const ZERO: u8 = 2;
const FLUSH: u8 = 3;

/// Outcomes but 0, in the order of their numbers from 1 on.
const ERRORS: [ClientError; 6] = [
    ClientError::NotPrimary,
    ClientError::OutOfRange,
    ClientError::Io,
    ClientError::NoSpace,
    ClientError::Shutdown,
    ClientError::NotFast,
];

/// `Forward`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ForwardBody {
    number: U64,
    offset: U64,
    len: U64,
    behind: U32,
    volume: U16,
    request: u8,
    flags: u8,
}
const _: () = assert!(size_of::<ForwardBody>() == 32);

/// `Answer`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct AnswerBody {
    number: U64,
    outcome: u8,
    reserved: [u8; 7],
}
const _: () = assert!(size_of::<AnswerBody>() == 16);

/// `Attach` behind its offer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct AttachBody {
    session: U64,
    epoch: U64,
    node: u8,
    to: u8,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<AttachBody>() == 24);

/// A number in `Numbers`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawNumber {
    session: U64,
    number: U64,
    offset: U64,
    len: U64,
    behind: U32,
    volume: U16,
    flags: u8,
    reserved: u8,
}

/// Bytes of a number in `Numbers`.
pub(super) const NUMBER_BYTES: usize = size_of::<RawNumber>();
const _: () = assert!(NUMBER_BYTES == 40);

/// How far below a number all are answered, as frames have it.
pub(super) fn behind(kind: Kind, number: u64, released: u64) -> Result<U32, EncodeError> {
    let behind = number.checked_sub(released).filter(|n| *n < MAX_SPAN);
    let found = behind.and_then(|n| u32::try_from(n).ok());
    found
        .map(U32::from)
        .ok_or(EncodeError::Invalid(WireError::Value {
            kind,
            field: "the lowest unanswered number",
            value: released,
        }))
}

/// The lowest number that is not answered.
pub(super) fn released(kind: Kind, number: u64, behind: U32) -> Result<u64, WireError> {
    let behind = u64::from(behind.get());
    let released = number.checked_sub(behind).filter(|_| behind < MAX_SPAN);
    released.ok_or(WireError::Value {
        kind,
        field: "the distance to the lowest unanswered number",
        value: behind,
    })
}

fn append(out: &mut Vec<u8>, body: &(impl IntoBytes + Immutable)) {
    out.extend_from_slice(body.as_bytes());
}

const fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

/// Writes the body of one of these messages; nothing for others.
pub(super) fn write<P>(
    kind: Kind,
    message: &Message<P>,
    payload_len: u32,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    match message {
        Message::Numbers { era, entries } => {
            append(out, &U64::from(era.0));
            for NumberEntry { mark, at, torn } in entries {
                check_range(kind, at.range.offset, at.range.len)?;
                let raw = RawNumber {
                    session: mark.session.into(),
                    number: mark.number.into(),
                    offset: at.range.offset.into(),
                    len: at.range.len.into(),
                    behind: behind(kind, mark.number, mark.released)?,
                    volume: at.volume.0.into(),
                    flags: flag(*torn, FLAG_YES),
                    reserved: 0,
                };
                append(out, &raw);
            }
        }
        Message::Attach {
            node,
            to,
            session,
            epoch,
        } => {
            append(out, &RawOffer::from(LOCAL_OFFER));
            let raw = AttachBody {
                session: (*session).into(),
                epoch: epoch.0.into(),
                node: node.get(),
                to: to.get(),
                reserved: [0; 6],
            };
            append(out, &raw);
        }
        Message::Attached { era } => {
            append(out, &RawOffer::from(LOCAL_OFFER));
            append(out, &U64::from(era.0));
        }
        Message::Forward {
            number,
            released,
            again,
            volume,
            request,
        } => {
            let (code, range, flags) = match request {
                ClientRequest::Read { range } => (READ, *range, 0),
                ClientRequest::Write { range, fua, .. } => (WRITE, *range, flag(*fua, FLAG_FUA)),
                ClientRequest::Zero {
                    range,
                    hole,
                    fua,
                    fast,
                } => {
                    let how = flag(*hole, FLAG_HOLE) | flag(*fast, FLAG_FAST);
                    (ZERO, *range, flag(*fua, FLAG_FUA) | how)
                }
                ClientRequest::Flush => (FLUSH, ByteRange::between(0, 0), 0),
            };
            check_range(kind, range.offset, range.len)?;
            if code == WRITE && range.len != u64::from(payload_len) {
                return Err(EncodeError::Invalid(length(kind, range.len)));
            }
            let raw = ForwardBody {
                number: (*number).into(),
                offset: range.offset.into(),
                len: range.len.into(),
                behind: behind(kind, *number, *released)?,
                volume: volume.0.into(),
                request: code,
                flags: flags | flag(*again, FLAG_AGAIN),
            };
            append(out, &raw);
        }
        Message::Answer { number, result } => {
            let found = result.as_ref().err().and_then(|error| {
                let place = ERRORS.iter().position(|known| known == error)?;
                u8::try_from(place + 1).ok()
            });
            let raw = AnswerBody {
                number: (*number).into(),
                outcome: found.unwrap_or(0),
                reserved: [0; 7],
            };
            append(out, &raw);
        }
        _ => {}
    }
    Ok(())
}

const fn length(kind: Kind, value: u64) -> WireError {
    WireError::Value {
        kind,
        field: "the length",
        value,
    }
}

/// Reads the body of a `Forward` with this payload.
pub(super) fn read_write(body: &[u8], payload_len: u32) -> Result<WithoutPayload, WireError> {
    let read = Reader(Kind::Forward);
    let raw: &ForwardBody = read.whole(body)?;
    if raw.request != WRITE {
        return Err(read.value("the request", raw.request));
    }
    read.flags(raw.flags, FLAG_FUA | FLAG_AGAIN)?;
    if raw.len.get() != u64::from(payload_len) {
        return Err(length(Kind::Forward, raw.len.get()));
    }
    let number = raw.number.get();
    Ok(WithoutPayload::Forward {
        number,
        released: released(Kind::Forward, number, raw.behind)?,
        again: raw.flags & FLAG_AGAIN != 0,
        volume: VolumeId(raw.volume.get()),
        range: check_range(Kind::Forward, raw.offset.get(), raw.len.get())?,
        fua: raw.flags & FLAG_FUA != 0,
    })
}

/// Reads the body of an `Answer` with a payload.
pub(super) fn read_data(body: &[u8]) -> Result<WithoutPayload, WireError> {
    let read = Reader(Kind::Answer);
    let raw: &AnswerBody = read.whole(body)?;
    read.zero(&raw.reserved)?;
    if raw.outcome != 0 {
        return Err(read.value("the outcome of an answer with bytes", raw.outcome));
    }
    Ok(WithoutPayload::Answer {
        number: raw.number.get(),
    })
}

/// Reads the body of one of these messages that has no payload; `None` for other types.
pub(super) fn read<P>(kind: Kind, body: &[u8]) -> Result<Option<Message<P>>, WireError> {
    let read = Reader(kind);
    let behind_offer = || body.get(OFFER_BYTES..).unwrap_or_default();
    Ok(Some(match kind {
        Kind::Numbers => {
            let (era, numbers) = read.with_entries::<U64, RawNumber>(body)?;
            let entries = numbers.iter().map(|raw| number(read, raw));
            Message::Numbers {
                era: Epoch(era.get()),
                entries: entries.collect::<Result<_, _>>()?,
            }
        }
        Kind::Settled => Message::Settled,
        Kind::Attach => {
            let raw: &AttachBody = read.whole(behind_offer())?;
            read.zero(&raw.reserved)?;
            let node = |id: u8| NodeId::new(id).ok_or_else(|| read.value("the node", id));
            Message::Attach {
                node: node(raw.node)?,
                to: node(raw.to)?,
                session: raw.session.get(),
                epoch: Epoch(raw.epoch.get()),
            }
        }
        Kind::Attached => Message::Attached {
            era: Epoch(read.whole::<U64>(behind_offer())?.get()),
        },
        Kind::Forward => {
            let raw: &ForwardBody = read.whole(body)?;
            let range = check_range(kind, raw.offset.get(), raw.len.get())?;
            let known = match raw.request {
                ZERO => FLAG_FUA | FLAG_HOLE | FLAG_AGAIN | FLAG_FAST,
                _ => FLAG_AGAIN,
            };
            read.flags(raw.flags, known)?;
            let number = raw.number.get();
            Message::Forward {
                number,
                released: released(kind, number, raw.behind)?,
                again: raw.flags & FLAG_AGAIN != 0,
                volume: VolumeId(raw.volume.get()),
                request: match raw.request {
                    READ => ClientRequest::Read { range },
                    ZERO => ClientRequest::Zero {
                        range,
                        hole: raw.flags & FLAG_HOLE != 0,
                        fua: raw.flags & FLAG_FUA != 0,
                        fast: raw.flags & FLAG_FAST != 0,
                    },
                    FLUSH if range == ByteRange::between(0, 0) => ClientRequest::Flush,
                    FLUSH => return Err(WireError::Reserved { kind }),
                    other => return Err(read.value("the request", other)),
                },
            }
        }
        Kind::Answer => {
            let raw: &AnswerBody = read.whole(body)?;
            read.zero(&raw.reserved)?;
            let result = match usize::from(raw.outcome).checked_sub(1) {
                None => Ok(None),
                Some(place) => Err(*ERRORS
                    .get(place)
                    .ok_or_else(|| read.value("the outcome", raw.outcome))?),
            };
            Message::Answer {
                number: raw.number.get(),
                result,
            }
        }
        _ => return Ok(None),
    }))
}

fn number(read: Reader, raw: &RawNumber) -> Result<NumberEntry, WireError> {
    read.zero(&[raw.reserved])?;
    read.flags(raw.flags, FLAG_YES)?;
    let number = raw.number.get();
    Ok(NumberEntry {
        mark: ClientMark {
            session: raw.session.get(),
            number,
            released: released(read.0, number, raw.behind)?,
        },
        at: VolumeRange {
            volume: VolumeId(raw.volume.get()),
            range: check_range(read.0, raw.offset.get(), raw.len.get())?,
        },
        torn: raw.flags & FLAG_YES != 0,
    })
}
