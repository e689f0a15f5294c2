//! Bodies of clients' questions about ranges, which nodes that follow ask the primary, and of the
//! answers. All numbers are little endian, reserved bytes are 0 and checked.
//!
//! | frame    | body (bytes)                                                                    |
//! |----------|---------------------------------------------------------------------------------|
//! | `AskMap` | number 8, offset 8, len 8, volume 2, flags 1, reserved 5                        |
//! | `Map`    | number 8, holes' end 8, lacking's end 8, holes 4, reserved 4, then both's ranges |
//!
//! A range is offset 8, len 8. Those of each sort ascend, overlap nowhere, are not empty and lie before
//! their end; first come as many as there are holes, the rest is lacking. Flags: bit 0 holes, bit 1
//! lacking.

use super::body::{Reader, check_range};
use super::encode::{check_count, flag, put};
use super::error::{EncodeError, WireError};
use super::kind::Kind;
use crate::core::message::{MAX_MAP_RANGES, Message, VolumeRange};
use crate::core::{Map, MapQuestion, Regions};
use vocabulary::VolumeId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const FLAG_HOLES: u8 = 1;
const FLAG_LACKING: u8 = 2;

/// `AskMap`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct AskMapBody {
    number: U64,
    offset: U64,
    len: U64,
    volume: U16,
    flags: u8,
    reserved: [u8; 5],
}
const _: () = assert!(size_of::<AskMapBody>() == 32);

/// `Map` before its ranges.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MapHead {
    number: U64,
    holes_end: U64,
    lacking_end: U64,
    holes: U32,
    reserved: [u8; 4],
}

/// Bytes of `Map` before its ranges.
pub(super) const HEAD_BYTES: usize = size_of::<MapHead>();
const _: () = assert!(HEAD_BYTES == 32);

/// A range in `Map`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MapRange {
    offset: U64,
    len: U64,
}

/// Bytes of a range in `Map`.
pub(super) const RANGE_BYTES: usize = size_of::<MapRange>();
const _: () = assert!(RANGE_BYTES == 16);

/// The body of an `AskMap`.
pub(super) fn question(
    kind: Kind,
    number: u64,
    question: &MapQuestion,
) -> Result<AskMapBody, EncodeError> {
    let MapQuestion { at, holes, lacking } = question;
    check_asked(kind, at.range.offset, at.range.len)?;
    Ok(AskMapBody {
        number: number.into(),
        offset: at.range.offset.into(),
        len: at.range.len.into(),
        volume: at.volume.0.into(),
        flags: flag(*holes, FLAG_HOLES) | flag(*lacking, FLAG_LACKING),
        reserved: [0; 5],
    })
}

/// Reads the body of an `AskMap`.
pub(super) fn read_question<P>(read: Reader, body: &[u8]) -> Result<Message<P>, WireError> {
    let raw: &AskMapBody = read.whole(body)?;
    read.zero(&raw.reserved)?;
    read.flags(raw.flags, FLAG_HOLES | FLAG_LACKING)?;
    let range = check_asked(read.0, raw.offset.get(), raw.len.get())?;
    Ok(Message::AskMap {
        number: raw.number.get(),
        question: MapQuestion {
            at: VolumeRange {
                volume: VolumeId(raw.volume.get()),
                range,
            },
            holes: raw.flags & FLAG_HOLES != 0,
            lacking: raw.flags & FLAG_LACKING != 0,
        },
    })
}

/// A question is about something.
fn check_asked(kind: Kind, offset: u64, len: u64) -> Result<vocabulary::ByteRange, WireError> {
    let range = check_range(kind, offset, len)?;
    if range.is_empty() {
        return Err(WireError::Value {
            kind,
            field: "the length",
            value: len,
        });
    }
    Ok(range)
}

/// Writes the body of a `Map`.
pub(super) fn write(
    kind: Kind,
    number: u64,
    map: &Map,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let Map { holes, lacking } = map;
    for regions in [holes, lacking] {
        check_count(kind, regions.ranges.len(), MAX_MAP_RANGES)?;
        check_regions(kind, regions)?;
    }
    let head = MapHead {
        number: number.into(),
        holes_end: holes.end.into(),
        lacking_end: lacking.end.into(),
        holes: u32::try_from(holes.ranges.len()).unwrap_or(u32::MAX).into(),
        reserved: [0; 4],
    };
    put(out, &head);
    for range in holes.ranges.iter().chain(&lacking.ranges) {
        let raw = MapRange {
            offset: range.offset.into(),
            len: range.len.into(),
        };
        put(out, &raw);
    }
    Ok(())
}

/// Reads the body of a `Map`.
pub(super) fn read<P>(read: Reader, body: &[u8]) -> Result<Message<P>, WireError> {
    let (head, ranges) = read.with_entries::<MapHead, MapRange>(body)?;
    read.zero(&head.reserved)?;
    let regions = |raw: &[MapRange], end: U64| {
        let range = |raw: &MapRange| check_range(read.0, raw.offset.get(), raw.len.get());
        if raw.len() > MAX_MAP_RANGES {
            return Err(count(read.0, raw.len()));
        }
        let regions = Regions {
            ranges: raw.iter().map(range).collect::<Result<_, _>>()?,
            end: end.get(),
        };
        check_regions(read.0, &regions)?;
        Ok(regions)
    };
    let (holes, lacking) = usize::try_from(head.holes.get())
        .ok()
        .and_then(|holes| ranges.split_at_checked(holes))
        .ok_or_else(|| WireError::Value {
            kind: read.0,
            field: "the number of holes",
            value: head.holes.get().into(),
        })?;
    Ok(Message::Map {
        number: head.number.get(),
        map: Map {
            holes: regions(holes, head.holes_end)?,
            lacking: regions(lacking, head.lacking_end)?,
        },
    })
}

fn count(kind: Kind, count: usize) -> WireError {
    WireError::Value {
        kind,
        field: "the number of ranges of one sort",
        value: u64::try_from(count).unwrap_or(u64::MAX),
    }
}

/// Ranges that ascend, overlap nowhere, are not empty and lie before their end.
fn check_regions(kind: Kind, regions: &Regions) -> Result<(), WireError> {
    match regions.first_improper() {
        None => Ok(()),
        Some(range) => Err(WireError::Value {
            kind,
            field: "the place of a range among its neighbours",
            value: range.offset,
        }),
    }
}
