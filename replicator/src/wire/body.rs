//! Bodies of fixed layout: everything that is sent per request, and lists of ranges. All numbers are
//! little endian; reserved bytes are 0 and checked, so that one message has exactly one form.
//!
//! | frame                        | body (bytes)                                                                         |
//! |------------------------------|--------------------------------------------------------------------------------------|
//! | `Write` (payload)            | seq 8, offset 8, session 8, number 8, volume 2, kind 1, flags 1, behind 4            |
//! | `Zero`                       | seq 8, offset 8, len 8, session 8, number 8, volume 2, kind 1, flags 1, behind 4     |
//! | `Touch`                      | seq 8, then ranges                                                                   |
//! | `Acks`                       | seqs of 8                                                                            |
//! | `Flush`, `FlushAck`          | seq 8                                                                                |
//! | `Release`                    | upto 8, stable_on 4, flags 1, reserved 3                                             |
//! | `HashRequest`, `Fetch`       | id 8, offset 8, len 8, volume 2, reserved 6                                          |
//! | `HashReply`                  | id 8, flags 1, reserved 7, then digests of 16                                        |
//! | `Fetched` (perhaps payload)  | id 8                                                                                 |
//! | `Ranges`                     | of 1, node 1, flags 1, reserved 5, disk 16, then ranges                              |
//! | `Grow`                       | id 8, size 8, volume 2, reserved 6                                                   |
//! | `Grown`                      | id 8, flags 1, reserved 7                                                            |
//! | `HandOverEnd`, `HandOverDone`| id 8                                                                                 |
//! | `Ping`, `Pong`               | token 8                                                                              |
//! | `FastZeroes`                 | flags 1, reserved 7                                                                  |
//! | `WelcomeEnd`, `DiskFailed`   | nothing                                                                              |
//!
//! A range is offset 8, len 8, volume 2, reserved 6. Write kinds: 0 client, 1 reconcile, 2 copy.
//! `of`: 0 window, 1 bits, 2 bits for the node. Flags: `Write`, `Zero` bit 0 FUA; `Zero` bit 1 hole;
//! `Release` bit 0 old; `HashReply` bit 0 the blocks were read; `Ranges` bit 0 the disk is known;
//! `Grown` bit 0 it worked; `FastZeroes` bit 0 holes, bit 1 allocated. `behind` and the frames that are missing here: see `forward` and `map`.

use super::error::WireError;
use super::forward;
use super::kind::Kind;
use super::map;
use super::{MAX_HASHES, MAX_PAYLOAD_BYTES};
use crate::core::api::{BlockHash, ClientRequest, FastZeroes};
use crate::core::message::{ClientMark, Message, RangesOf, Seq, VolumeRange, WriteKind};
use vocabulary::{BLOCK_BYTES, ByteRange, DiskId, NodeId, NodeSet, VolumeId};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident: $bytes:literal { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
            #[repr(C)]
            pub(super) struct $name {
                $(pub(super) $field: $type,)*
            }
            const _: () = assert!(size_of::<$name>() == $bytes);
        )*
    };
}

bodies! {
    /// `Write`; the length is the payload's.
    WriteBody: 40 {
        seq: U64,
        offset: U64,
        session: U64,
        number: U64,
        volume: U16,
        kind: u8,
        flags: u8,
        behind: U32,
    }
    /// `Zero`.
    ZeroBody: 48 {
        seq: U64,
        offset: U64,
        len: U64,
        session: U64,
        number: U64,
        volume: U16,
        kind: u8,
        flags: u8,
        behind: U32,
    }
    /// A single number: a place, a token or the name of an answer.
    NumberBody: 8 {
        number: U64,
    }
    /// `Release`.
    ReleaseBody: 16 {
        upto: U64,
        stable_on: U32,
        flags: u8,
        reserved: [u8; 3],
    }
    /// `HashRequest` and `Fetch`.
    RangeRequestBody: 32 {
        id: U64,
        offset: U64,
        len: U64,
        volume: U16,
        reserved: [u8; 6],
    }
    /// `HashReply` before its digests.
    HashReplyHead: 16 {
        id: U64,
        flags: u8,
        reserved: [u8; 7],
    }
    /// `Fetched`; the bytes are the payload.
    FetchedBody: 8 {
        id: U64,
    }
    /// `Ranges` before its ranges.
    RangesHead: 24 {
        of: u8,
        node: u8,
        flags: u8,
        reserved: [u8; 5],
        disk: U128,
    }
    /// A range in `Ranges` and `Touch`.
    RawRange: 24 {
        offset: U64,
        len: U64,
        volume: U16,
        reserved: [u8; 6],
    }
    /// `Grow`.
    GrowBody: 24 {
        id: U64,
        size_bytes: U64,
        volume: U16,
        reserved: [u8; 6],
    }
    /// `FastZeroes`.
    FastZeroesBody: 8 {
        flags: u8,
        reserved: [u8; 7],
    }
    /// `Grown`.
    GrownBody: 16 {
        id: U64,
        flags: u8,
        reserved: [u8; 7],
    }
}

/// Bytes of a range.
pub(super) const RANGE_BYTES: usize = size_of::<RawRange>();
/// Bytes of `Ranges` before its ranges.
pub(super) const RANGES_HEAD_BYTES: usize = size_of::<RangesHead>();
/// Bytes of a digest.
pub(super) const HASH_BYTES: usize = size_of::<U128>();

/// `Write` and `Zero`: durable before the acknowledgement.
pub(super) const FLAG_FUA: u8 = 1;
/// `Zero`: punch a hole.
pub(super) const FLAG_HOLE: u8 = 2;
/// `Release`, `HashReply`, `Ranges`, `Grown`: their only yes or no. `FastZeroes`: with holes.
pub(super) const FLAG_YES: u8 = 1;
/// `FastZeroes`: allocated.
pub(super) const FLAG_ALLOCATED: u8 = 2;

const OF_WINDOW: u8 = 0;
const OF_BITS: u8 = 1;
const OF_BITS_FOR: u8 = 2;

/// A message that waits for its payload.
#[derive(Clone, Copy, Debug)]
pub(super) enum WithoutPayload {
    Write {
        seq: Seq,
        volume: VolumeId,
        offset: u64,
        fua: bool,
        kind: WriteKind,
        mark: ClientMark,
    },
    Fetched {
        id: u64,
    },
    Forward {
        number: u64,
        released: u64,
        again: bool,
        volume: VolumeId,
        range: ByteRange,
        fua: bool,
    },
    Answer {
        number: u64,
    },
}

impl WithoutPayload {
    pub(super) fn with<P>(self, data: P) -> Message<P> {
        match self {
            Self::Write {
                seq,
                volume,
                offset,
                fua,
                kind,
                mark,
            } => Message::Write {
                seq,
                volume,
                offset,
                data,
                fua,
                kind,
                mark,
            },
            Self::Fetched { id } => Message::Fetched {
                id,
                data: Some(data),
            },
            Self::Forward {
                number,
                released,
                again,
                volume,
                range,
                fua,
            } => Message::Forward {
                number,
                released,
                again,
                volume,
                request: ClientRequest::Write { range, data, fua },
            },
            Self::Answer { number } => Message::Answer {
                number,
                result: Ok(Some(data)),
            },
        }
    }
}

/// The number that stands for how a write came about.
pub(super) const fn write_kind_code(kind: WriteKind) -> u8 {
    match kind {
        WriteKind::Client => 0,
        WriteKind::Reconcile => 1,
        WriteKind::Copy => 2,
    }
}

/// The head of `Ranges`.
pub(super) fn ranges_head(of: RangesOf) -> RangesHead {
    let head = RangesHead::new_zeroed();
    match of {
        RangesOf::Window => RangesHead {
            of: OF_WINDOW,
            ..head
        },
        RangesOf::Bits => RangesHead {
            of: OF_BITS,
            ..head
        },
        RangesOf::BitsFor { node, disk } => RangesHead {
            of: OF_BITS_FOR,
            node: node.get(),
            flags: disk.map_or(0, |_| FLAG_YES),
            disk: disk.unwrap_or_default().0.into(),
            ..head
        },
    }
}

impl From<&VolumeRange> for RawRange {
    fn from(at: &VolumeRange) -> Self {
        Self {
            offset: at.range.offset.into(),
            len: at.range.len.into(),
            volume: at.volume.0.into(),
            reserved: [0; 6],
        }
    }
}

/// Checks a range that a message names.
pub(super) fn check_range(kind: Kind, offset: u64, len: u64) -> Result<ByteRange, WireError> {
    ByteRange::new(offset, len).ok_or(WireError::RangeOverflow { kind, offset, len })
}

/// Checks that the answer to a request for a range fits into a frame.
pub(super) fn check_answer(kind: Kind, range: ByteRange) -> Result<(), WireError> {
    let limit = u64::from(MAX_PAYLOAD_BYTES);
    let fits = match kind {
        Kind::HashRequest => {
            let blocks = range.units(BLOCK_BYTES);
            usize::try_from(blocks.end - blocks.start).is_ok_and(|blocks| blocks <= MAX_HASHES)
        }
        _ => range.len <= limit,
    };
    let limit = match kind {
        Kind::HashRequest => MAX_HASHES as u64 * BLOCK_BYTES,
        _ => limit,
    };
    if fits {
        Ok(())
    } else {
        let len = range.len;
        Err(WireError::RangeTooLong { kind, len, limit })
    }
}

/// Reads bodies of one type of frame; the body's length is already known to be possible for it.
#[derive(Clone, Copy)]
pub(super) struct Reader(pub(super) Kind);

impl Reader {
    /// The body as this structure.
    pub(super) fn whole<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        self,
        body: &[u8],
    ) -> Result<&T, WireError> {
        T::ref_from_bytes(body).map_err(|_| WireError::PartOfEntry { kind: self.0 })
    }

    /// The body as this structure and entries behind it.
    pub(super) fn with_entries<T, E>(self, body: &[u8]) -> Result<(&T, &[E]), WireError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
        E: FromBytes + Immutable + Unaligned,
    {
        let part = || WireError::PartOfEntry { kind: self.0 };
        let (head, rest) = T::ref_from_prefix(body).map_err(|_| part())?;
        let entries = <[E]>::ref_from_bytes(rest).map_err(|_| part())?;
        Ok((head, entries))
    }

    pub(super) fn zero(self, reserved: &[u8]) -> Result<(), WireError> {
        if reserved.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(WireError::Reserved { kind: self.0 })
        }
    }

    pub(super) fn value(self, field: &'static str, value: u8) -> WireError {
        WireError::Value {
            kind: self.0,
            field,
            value: value.into(),
        }
    }

    pub(super) fn flags(self, flags: u8, known: u8) -> Result<(), WireError> {
        if flags & !known == 0 {
            Ok(())
        } else {
            Err(self.value("flags", flags))
        }
    }

    fn write_kind(self, code: u8) -> Result<WriteKind, WireError> {
        [WriteKind::Client, WriteKind::Reconcile, WriteKind::Copy]
            .into_iter()
            .find(|kind| write_kind_code(*kind) == code)
            .ok_or_else(|| self.value("the kind", code))
    }

    fn range(self, raw: &RawRange) -> Result<VolumeRange, WireError> {
        self.zero(&raw.reserved)?;
        Ok(VolumeRange {
            volume: VolumeId(raw.volume.get()),
            range: check_range(self.0, raw.offset.get(), raw.len.get())?,
        })
    }

    fn ranges(self, raw: &[RawRange]) -> Result<Vec<VolumeRange>, WireError> {
        raw.iter().map(|raw| self.range(raw)).collect()
    }

    fn ranges_of(self, head: &RangesHead) -> Result<RangesOf, WireError> {
        self.zero(&head.reserved)?;
        self.flags(head.flags, FLAG_YES)?;
        let disk = (head.flags & FLAG_YES != 0).then(|| DiskId(head.disk.get()));
        if disk.is_none() && head.disk.get() != 0 {
            return Err(WireError::Reserved { kind: self.0 });
        }
        let unnamed = head.node == 0 && head.flags == 0;
        match head.of {
            OF_WINDOW if unnamed => Ok(RangesOf::Window),
            OF_BITS if unnamed => Ok(RangesOf::Bits),
            OF_BITS_FOR => Ok(RangesOf::BitsFor {
                node: NodeId::new(head.node).ok_or_else(|| self.value("the node", head.node))?,
                disk,
            }),
            OF_WINDOW | OF_BITS => Err(WireError::Reserved { kind: self.0 }),
            of => Err(self.value("the sort of ranges", of)),
        }
    }

    fn range_request(self, body: &[u8]) -> Result<(u64, VolumeRange), WireError> {
        let raw: &RangeRequestBody = self.whole(body)?;
        self.zero(&raw.reserved)?;
        let range = check_range(self.0, raw.offset.get(), raw.len.get())?;
        check_answer(self.0, range)?;
        let volume = VolumeId(raw.volume.get());
        Ok((raw.id.get(), VolumeRange { volume, range }))
    }

    fn mark(self, session: U64, number: U64, behind: U32) -> Result<ClientMark, WireError> {
        let number = number.get();
        Ok(ClientMark {
            session: session.get(),
            number,
            released: forward::released(self.0, number, behind)?,
        })
    }

    fn number(self, body: &[u8]) -> Result<u64, WireError> {
        Ok(self.whole::<NumberBody>(body)?.number.get())
    }
}

/// Reads the body of a frame that has a payload of this many bytes.
pub(super) fn read_with_payload(
    kind: Kind,
    body: &[u8],
    payload_len: u32,
) -> Result<WithoutPayload, WireError> {
    let read = Reader(kind);
    if kind == Kind::Fetched {
        return Ok(WithoutPayload::Fetched {
            id: read.number(body)?,
        });
    }
    if kind == Kind::Forward {
        return forward::read_write(body, payload_len);
    }
    if kind == Kind::Answer {
        return forward::read_data(body);
    }
    let raw: &WriteBody = read.whole(body)?;
    read.flags(raw.flags, FLAG_FUA)?;
    let range = check_range(kind, raw.offset.get(), payload_len.into())?;
    Ok(WithoutPayload::Write {
        seq: Seq(raw.seq.get()),
        volume: VolumeId(raw.volume.get()),
        offset: range.offset,
        fua: raw.flags & FLAG_FUA != 0,
        kind: read.write_kind(raw.kind)?,
        mark: read.mark(raw.session, raw.number, raw.behind)?,
    })
}

/// Reads a body of fixed layout without a payload; `None` for the types that have another layout.
pub(super) fn read<P>(kind: Kind, body: &[u8]) -> Result<Option<Message<P>>, WireError> {
    let read = Reader(kind);
    Ok(Some(match kind {
        Kind::Hello | Kind::Welcome | Kind::Refuse | Kind::Reject | Kind::Record | Kind::Write => {
            return Ok(None);
        }
        Kind::Numbers
        | Kind::Settled
        | Kind::Attach
        | Kind::Attached
        | Kind::Forward
        | Kind::Answer => return forward::read(kind, body),
        Kind::AskMap => map::read_question(read, body)?,
        Kind::Map => map::read(read, body)?,
        Kind::Ranges => {
            let (head, ranges) = read.with_entries::<RangesHead, RawRange>(body)?;
            Message::Ranges {
                of: read.ranges_of(head)?,
                ranges: read.ranges(ranges)?,
            }
        }
        Kind::WelcomeEnd => Message::WelcomeEnd,
        Kind::Zero => {
            let raw: &ZeroBody = read.whole(body)?;
            read.flags(raw.flags, FLAG_FUA | FLAG_HOLE)?;
            Message::Zero {
                seq: Seq(raw.seq.get()),
                at: VolumeRange {
                    volume: VolumeId(raw.volume.get()),
                    range: check_range(kind, raw.offset.get(), raw.len.get())?,
                },
                hole: raw.flags & FLAG_HOLE != 0,
                fua: raw.flags & FLAG_FUA != 0,
                kind: read.write_kind(raw.kind)?,
                mark: read.mark(raw.session, raw.number, raw.behind)?,
            }
        }
        Kind::Touch => {
            let (seq, ranges) = read.with_entries::<NumberBody, RawRange>(body)?;
            Message::Touch {
                seq: Seq(seq.number.get()),
                ranges: read.ranges(ranges)?,
            }
        }
        Kind::Acks => {
            let seqs = <[U64]>::ref_from_bytes(body)
                .map_err(|_| WireError::PartOfEntry { kind })?
                .iter();
            Message::Acks {
                seqs: seqs.map(|seq| Seq(seq.get())).collect(),
            }
        }
        Kind::Flush => Message::Flush {
            seq: Seq(read.number(body)?),
        },
        Kind::FlushAck => Message::FlushAck {
            seq: Seq(read.number(body)?),
        },
        Kind::Release => {
            let raw: &ReleaseBody = read.whole(body)?;
            read.zero(&raw.reserved)?;
            read.flags(raw.flags, FLAG_YES)?;
            Message::Release {
                upto: Seq(raw.upto.get()),
                old: raw.flags & FLAG_YES != 0,
                stable_on: NodeSet(raw.stable_on.get()),
            }
        }
        Kind::HashRequest => {
            let (id, at) = read.range_request(body)?;
            Message::HashRequest { id, at }
        }
        Kind::HashReply => {
            let (head, hashes) = read.with_entries::<HashReplyHead, U128>(body)?;
            read.zero(&head.reserved)?;
            read.flags(head.flags, FLAG_YES)?;
            let readable = head.flags & FLAG_YES != 0;
            if !readable && !hashes.is_empty() {
                return Err(WireError::TrailingBytes {
                    kind,
                    count: hashes.len() * HASH_BYTES,
                });
            }
            Message::HashReply {
                id: head.id.get(),
                hashes: readable.then(|| hashes.iter().map(|hash| BlockHash(hash.get())).collect()),
            }
        }
        Kind::Fetch => {
            let (id, at) = read.range_request(body)?;
            Message::Fetch { id, at }
        }
        Kind::Fetched => Message::Fetched {
            id: read.number(body)?,
            data: None,
        },
        Kind::HandOverEnd => Message::HandOverEnd {
            id: read.number(body)?,
        },
        Kind::HandOverDone => Message::HandOverDone {
            id: read.number(body)?,
        },
        Kind::Grow => {
            let raw: &GrowBody = read.whole(body)?;
            read.zero(&raw.reserved)?;
            Message::Grow {
                id: raw.id.get(),
                volume: VolumeId(raw.volume.get()),
                size_bytes: check_range(kind, 0, raw.size_bytes.get())?.len,
            }
        }
        Kind::Grown => {
            let raw: &GrownBody = read.whole(body)?;
            read.zero(&raw.reserved)?;
            read.flags(raw.flags, FLAG_YES)?;
            Message::Grown {
                id: raw.id.get(),
                ok: raw.flags & FLAG_YES != 0,
            }
        }
        Kind::FastZeroes => {
            let raw: &FastZeroesBody = read.whole(body)?;
            read.zero(&raw.reserved)?;
            read.flags(raw.flags, FLAG_YES | FLAG_ALLOCATED)?;
            Message::FastZeroes {
                fast: FastZeroes {
                    holes: raw.flags & FLAG_YES != 0,
                    allocated: raw.flags & FLAG_ALLOCATED != 0,
                },
            }
        }
        Kind::DiskFailed => Message::DiskFailed,
        Kind::Ping => Message::Ping {
            token: read.number(body)?,
        },
        Kind::Pong => Message::Pong {
            token: read.number(body)?,
        },
    }))
}
