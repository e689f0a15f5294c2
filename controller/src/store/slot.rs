//! One copy of a voter's promise as bytes. All numbers little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `LSCONFIG` |
//! | 8 | 4 | format version, 2 |
//! | 12 | 4 | length of the promise in bytes |
//! | 16 | 8 | sequence: of two good copies the greater one counts |
//! | 24 | 16 | cluster id |
//! | 40 | 4 | crc32c of the promise |
//! | 44 | 4 | crc32c of bytes 0 to 43 |
//! | 48 | … | the promise, postcard |

use super::{Promise, SlotError, StoreError};

/// Room for a copy in the file, in bytes.
pub(super) const SLOT_BYTES: u64 = 1 << 20;
/// Largest promise in bytes: a slot less its header.
pub const MAX_DOCUMENT_BYTES: usize = (1 << 20) - HEADER_BYTES;
const HEADER_BYTES: usize = 48;
const MAGIC: [u8; 8] = *b"LSCONFIG";
const FORMAT: u32 = 2;

pub(super) struct Chosen {
    pub(super) promise: Promise,
    pub(super) sequence: u64,
    pub(super) both_equal: bool,
}

pub(super) fn encode(sequence: u64, promise: &Promise) -> Result<Vec<u8>, StoreError> {
    // Plain data in memory: the only failure of this encoder is a length that it can't know.
    let body = postcard::to_stdvec(promise).unwrap_or_default();
    let too_large = StoreError::TooLarge { bytes: body.len() };
    if body.is_empty() || body.len() > MAX_DOCUMENT_BYTES {
        return Err(too_large);
    }
    let length = u32::try_from(body.len()).map_err(|_| too_large)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&promise.entry.content.cluster.0.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    let header = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&header.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Result<(u64, Promise), SlotError> {
    let (header, rest) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(SlotError::Blank)?;
    if header.iter().all(|&byte| byte == 0) {
        return Err(SlotError::Blank);
    }
    if header[..8] != MAGIC || crc32c::crc32c(&header[..44]) != u32_at(header, 44) {
        return Err(SlotError::Checksum);
    }
    let format = u32_at(header, 8);
    if format != FORMAT {
        return Err(SlotError::Newer(format));
    }
    let length = usize::try_from(u32_at(header, 12)).unwrap_or(usize::MAX);
    let body = rest.get(..length).ok_or(SlotError::Blank)?;
    if crc32c::crc32c(body) != u32_at(header, 40) {
        return Err(SlotError::Checksum);
    }
    let promise: Promise = postcard::from_bytes(body).map_err(|_| SlotError::Contents)?;
    if promise.entry.content.cluster.0.to_le_bytes() != header[24..40] {
        return Err(SlotError::Contents);
    }
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&header[16..24]);
    Ok((u64::from_le_bytes(sequence), promise))
}

pub(super) fn choose(first: &[u8], second: &[u8]) -> Result<Chosen, (SlotError, SlotError)> {
    let whole = |(sequence, promise), both_equal| Chosen {
        promise,
        sequence,
        both_equal,
    };
    match (decode(first), decode(second)) {
        // A copy of a newer program is not damage: it may hold a promise that this one can't read.
        (Err(error @ SlotError::Newer(_)), Err(other)) => Err((error, other)),
        (Err(error @ SlotError::Newer(_)), Ok(_)) => Err((error, error)),
        (Ok(_), Err(error @ SlotError::Newer(_))) => Err((error, error)),
        (Ok(first), Ok(second)) => {
            let equal = first == second;
            Ok(whole(
                if second.0 > first.0 { second } else { first },
                equal,
            ))
        }
        (Ok(good), Err(_)) | (Err(_), Ok(good)) => Ok(whole(good, false)),
        (Err(first), Err(second)) => Err((first, second)),
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}
