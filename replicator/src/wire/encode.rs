//! From a message to the header and body of its frame. The payload is never touched except to
//! compute its checksum where the driver does not have it yet.

use super::body::{
    FLAG_ALLOCATED, FLAG_FUA, FLAG_HOLE, FLAG_YES, FastZeroesBody, FetchedBody, GrowBody,
    GrownBody, HashReplyHead, NumberBody, RangeRequestBody, RawRange, ReleaseBody, WriteBody,
    ZeroBody, check_answer, check_range, ranges_head, write_kind_code,
};
use super::control;
use super::error::{EncodeError, RejectReason};
use super::forward;
use super::handshake::{LOCAL_OFFER, RawOffer, RejectBody};
use super::header::{FLAG_PAYLOAD, HEADER_BYTES, RawHeader};
use super::kind::Kind;
use super::map;
use super::{
    FrameContext, MAX_ACKS, MAX_HASHES, MAX_PAYLOAD_BYTES, PayloadBytes, PayloadCrc, VERSION,
};
use crate::core::message::{MAX_NUMBERS, MAX_RANGES, Message, VolumeRange};
use vocabulary::{ClusterId, Epoch, Generation, ResourceId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U64, U128};

/// Appends a message's header and body to `out`; the driver sends the payload's bytes, if the
/// message has any, right behind them. `cached` is the payload's checksum where the driver has it
/// already (a payload that goes to several peers); it must be that of the payload's bytes.
///
/// Allocates nothing for messages of fixed layout beyond `out` itself.
///
/// # Errors
/// An [`EncodeError`] where a peer would refuse the message; `out` is as it was.
pub fn encode<P: PayloadBytes>(
    context: &FrameContext,
    message: &Message<P>,
    cached: Option<PayloadCrc>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = out.len();
    let result = append(context, message, cached, out, start);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Appends a frame that tells the peer, before the connection is closed, why this node can't
/// understand it. It names no cluster and no resource: those may be what is wrong.
pub fn encode_reject(reason: RejectReason, out: &mut Vec<u8>) {
    let nobody = FrameContext {
        cluster: ClusterId(0),
        resource: ResourceId(0),
        epoch: Epoch(0),
        generation: Generation(0),
    };
    let body = RejectBody {
        offer: LOCAL_OFFER.into(),
        reason: reason.code().into(),
        reserved: [0; 6],
    };
    let header = RawHeader {
        version: VERSION.into(),
        kind: Kind::Reject.code().into(),
        body_len: len32(size_of::<RejectBody>()).into(),
        body_crc: crc32c::crc32c(body.as_bytes()).into(),
        ..RawHeader::new(&nobody)
    };
    out.extend_from_slice(header.sealed().as_bytes());
    out.extend_from_slice(body.as_bytes());
}

/// The type of a message's frame.
pub(super) const fn kind_of<P>(message: &Message<P>) -> Kind {
    match message {
        Message::Hello { .. } => Kind::Hello,
        Message::Refuse { .. } => Kind::Refuse,
        Message::Welcome { .. } => Kind::Welcome,
        Message::Ranges { .. } => Kind::Ranges,
        Message::WelcomeEnd => Kind::WelcomeEnd,
        Message::Record { .. } => Kind::Record,
        Message::Write { .. } => Kind::Write,
        Message::Zero { .. } => Kind::Zero,
        Message::Touch { .. } => Kind::Touch,
        Message::Acks { .. } => Kind::Acks,
        Message::Flush { .. } => Kind::Flush,
        Message::FlushAck { .. } => Kind::FlushAck,
        Message::Release { .. } => Kind::Release,
        Message::HashRequest { .. } => Kind::HashRequest,
        Message::HashReply { .. } => Kind::HashReply,
        Message::Fetch { .. } => Kind::Fetch,
        Message::Fetched { .. } => Kind::Fetched,
        Message::HandOverEnd { .. } => Kind::HandOverEnd,
        Message::HandOverDone { .. } => Kind::HandOverDone,
        Message::Grow { .. } => Kind::Grow,
        Message::Grown { .. } => Kind::Grown,
        Message::FastZeroes { .. } => Kind::FastZeroes,
        Message::DiskFailed => Kind::DiskFailed,
        Message::Ping { .. } => Kind::Ping,
        Message::Pong { .. } => Kind::Pong,
        Message::Numbers { .. } => Kind::Numbers,
        Message::Settled => Kind::Settled,
        Message::Attach { .. } => Kind::Attach,
        Message::Attached { .. } => Kind::Attached,
        Message::Forward { .. } => Kind::Forward,
        Message::Answer { .. } => Kind::Answer,
        Message::AskMap { .. } => Kind::AskMap,
        Message::Map { .. } => Kind::Map,
    }
}

/// A length that is known to be below 4 GiB.
fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn append<P: PayloadBytes>(
    context: &FrameContext,
    message: &Message<P>,
    cached: Option<PayloadCrc>,
    out: &mut Vec<u8>,
    start: usize,
) -> Result<(), EncodeError> {
    let kind = kind_of(message);
    let payload = message.payload();
    let mut header = RawHeader {
        version: VERSION.into(),
        kind: kind.code().into(),
        ..RawHeader::new(context)
    };
    let mut payload_len = 0;
    if let Some(payload) = payload {
        let len = payload.len();
        payload_len = u32::try_from(len)
            .ok()
            .filter(|len| *len <= MAX_PAYLOAD_BYTES)
            .ok_or(EncodeError::PayloadTooLong { kind, len })?;
        let crc = cached.unwrap_or_else(|| PayloadCrc::of(payload.bytes()));
        debug_assert_eq!(
            crc,
            PayloadCrc::of(payload.bytes()),
            "another payload's CRC"
        );
        header.flags = FLAG_PAYLOAD.into();
        header.payload_len = payload_len.into();
        header.payload_crc = crc.0.into();
    }
    out.resize(start + HEADER_BYTES, 0);
    write_body(kind, message, payload_len, out)?;
    let body = &out[start + HEADER_BYTES..];
    header.body_len = len32(body.len()).into();
    header.body_crc = crc32c::crc32c(body).into();
    out[start..start + HEADER_BYTES].copy_from_slice(header.sealed().as_bytes());
    Ok(())
}

/// Refuses more entries than a frame may have.
pub(super) fn check_count(kind: Kind, count: usize, limit: usize) -> Result<(), EncodeError> {
    if count <= limit {
        Ok(())
    } else {
        Err(EncodeError::TooMany { kind, count, limit })
    }
}

pub(super) fn put(out: &mut Vec<u8>, body: &(impl IntoBytes + zerocopy::Immutable)) {
    out.extend_from_slice(body.as_bytes());
}

fn put_ranges(kind: Kind, ranges: &[VolumeRange], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    check_count(kind, ranges.len(), MAX_RANGES)?;
    for at in ranges {
        check_range(kind, at.range.offset, at.range.len)?;
        put(out, &RawRange::from(at));
    }
    Ok(())
}

fn number(number: u64) -> NumberBody {
    NumberBody {
        number: number.into(),
    }
}

fn range_request(kind: Kind, id: u64, at: &VolumeRange) -> Result<RangeRequestBody, EncodeError> {
    check_answer(kind, check_range(kind, at.range.offset, at.range.len)?)?;
    Ok(RangeRequestBody {
        id: id.into(),
        offset: at.range.offset.into(),
        len: at.range.len.into(),
        volume: at.volume.0.into(),
        reserved: [0; 6],
    })
}

/// A flag byte: `flag` where it is set.
pub(super) const fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

fn write_body<P>(
    kind: Kind,
    message: &Message<P>,
    payload_len: u32,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    match message {
        Message::Hello { .. } | Message::Welcome { .. } => {
            put(out, &RawOffer::from(LOCAL_OFFER));
            control::write(kind, message, out)?;
        }
        Message::Refuse { .. } | Message::Record { .. } => control::write(kind, message, out)?,
        Message::Ranges { of, ranges } => {
            put(out, &ranges_head(*of));
            put_ranges(kind, ranges, out)?;
        }
        Message::Touch { seq, ranges } => {
            put(out, &number(seq.0));
            put_ranges(kind, ranges, out)?;
        }
        Message::Write {
            seq,
            volume,
            offset,
            data: _,
            fua,
            kind: write_kind,
            mark,
        } => {
            check_range(kind, *offset, payload_len.into())?;
            let body = WriteBody {
                seq: seq.0.into(),
                offset: (*offset).into(),
                session: mark.session.into(),
                number: mark.number.into(),
                volume: volume.0.into(),
                kind: write_kind_code(*write_kind),
                flags: flag(*fua, FLAG_FUA),
                behind: forward::behind(kind, mark.number, mark.released)?,
            };
            put(out, &body);
        }
        Message::Zero {
            seq,
            at,
            hole,
            fua,
            kind: write_kind,
            mark,
        } => {
            check_range(kind, at.range.offset, at.range.len)?;
            let body = ZeroBody {
                seq: seq.0.into(),
                offset: at.range.offset.into(),
                len: at.range.len.into(),
                session: mark.session.into(),
                number: mark.number.into(),
                volume: at.volume.0.into(),
                kind: write_kind_code(*write_kind),
                flags: flag(*fua, FLAG_FUA) | flag(*hole, FLAG_HOLE),
                behind: forward::behind(kind, mark.number, mark.released)?,
            };
            put(out, &body);
        }
        Message::Acks { seqs } => {
            check_count(kind, seqs.len(), MAX_ACKS)?;
            for seq in seqs {
                put(out, &U64::from(seq.0));
            }
        }
        Message::Release {
            upto,
            old,
            stable_on,
        } => {
            let body = ReleaseBody {
                upto: upto.0.into(),
                stable_on: stable_on.0.into(),
                flags: flag(*old, FLAG_YES),
                reserved: [0; 3],
            };
            put(out, &body);
        }
        Message::HashRequest { id, at } | Message::Fetch { id, at } => {
            put(out, &range_request(kind, *id, at)?);
        }
        Message::HashReply { id, hashes } => {
            let digests = hashes.as_deref().unwrap_or_default();
            check_count(kind, digests.len(), MAX_HASHES)?;
            let head = HashReplyHead {
                id: (*id).into(),
                flags: flag(hashes.is_some(), FLAG_YES),
                reserved: [0; 7],
            };
            put(out, &head);
            for digest in digests {
                put(out, &U128::from(digest.0));
            }
        }
        Message::Fetched { id, .. } => put(out, &FetchedBody { id: (*id).into() }),
        Message::Grow {
            id,
            volume,
            size_bytes,
        } => {
            check_range(kind, 0, *size_bytes)?;
            let body = GrowBody {
                id: (*id).into(),
                size_bytes: (*size_bytes).into(),
                volume: volume.0.into(),
                reserved: [0; 6],
            };
            put(out, &body);
        }
        Message::Grown { id, ok } => {
            let body = GrownBody {
                id: (*id).into(),
                flags: flag(*ok, FLAG_YES),
                reserved: [0; 7],
            };
            put(out, &body);
        }
        Message::FastZeroes { fast } => {
            let body = FastZeroesBody {
                flags: flag(fast.holes, FLAG_YES) | flag(fast.allocated, FLAG_ALLOCATED),
                reserved: [0; 7],
            };
            put(out, &body);
        }
        Message::WelcomeEnd | Message::DiskFailed => {}
        Message::Flush { seq } | Message::FlushAck { seq } => put(out, &number(seq.0)),
        Message::HandOverEnd { id } | Message::HandOverDone { id } => put(out, &number(*id)),
        Message::Ping { token } | Message::Pong { token } => put(out, &number(*token)),
        Message::Numbers { entries, .. } => {
            check_count(kind, entries.len(), MAX_NUMBERS)?;
            forward::write(kind, message, payload_len, out)?;
        }
        Message::Settled
        | Message::Attach { .. }
        | Message::Attached { .. }
        | Message::Forward { .. }
        | Message::Answer { .. } => forward::write(kind, message, payload_len, out)?,
        Message::AskMap { number, question } => put(out, &map::question(kind, *number, question)?),
        Message::Map { number, map } => map::write(kind, *number, map, out)?,
    }
    Ok(())
}
