//! The header of every frame. All numbers are little endian.
//!
//! | offset | bytes | field         | meaning                                                    |
//! |-------:|------:|---------------|------------------------------------------------------------|
//! |      0 |     4 | `magic`       | `LkS1`; another header would have another magic            |
//! |      4 |     2 | `version`     | protocol version that the body is written in               |
//! |      6 |     2 | `kind`        | [type of the message](super::Kind)                         |
//! |      8 |     4 | `flags`       | bit 0: a payload follows the body; the others are 0        |
//! |     12 |     4 | `body_len`    | bytes of the body                                          |
//! |     16 |    16 | `cluster`     | cluster id                                                 |
//! |     32 |    16 | `resource`    | resource id                                                |
//! |     48 |     8 | `epoch`       | epoch of the sender's record                               |
//! |     56 |     8 | `generation`  | generation of the sender's record                          |
//! |     64 |     4 | `payload_len` | bytes of the payload; 0 without one                        |
//! |     68 |     4 | `body_crc`    | CRC-32C of the body                                        |
//! |     72 |     4 | `payload_crc` | CRC-32C of the payload; 0 without one                      |
//! |     76 |     4 | `header_crc`  | CRC-32C of bytes 0 to 75                                   |
//!
//! The header has a checksum of its own so that a wrong length is known before anybody waits for
//! that many bytes; it covers the other two checksums. The layout is the same in all versions.

use super::FrameContext;
use super::error::WireError;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 80;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"LkS1";

/// Flag: a payload (perhaps an empty one) follows the body.
pub(super) const FLAG_PAYLOAD: u32 = 1;

/// The header as it lies in a frame; the table is in the module's description.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: [u8; 4],
    pub(super) version: U16,
    pub(super) kind: U16,
    pub(super) flags: U32,
    pub(super) body_len: U32,
    pub(super) cluster: U128,
    pub(super) resource: U128,
    pub(super) epoch: U64,
    pub(super) generation: U64,
    pub(super) payload_len: U32,
    pub(super) body_crc: U32,
    pub(super) payload_crc: U32,
    pub(super) header_crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// Bytes that the header's checksum covers: all but itself.
const COVERED: usize = HEADER_BYTES - size_of::<U32>();

impl RawHeader {
    /// A header with its identity filled in and the rest 0.
    pub(super) fn new(context: &FrameContext) -> Self {
        Self {
            magic: MAGIC,
            cluster: context.cluster.0.into(),
            resource: context.resource.0.into(),
            epoch: context.epoch.0.into(),
            generation: context.generation.0.into(),
            ..Self::new_zeroed()
        }
    }

    /// The header with its checksum.
    pub(super) fn sealed(mut self) -> Self {
        self.header_crc = crc32c::crc32c(&self.as_bytes()[..COVERED]).into();
        self
    }

    /// The header at the start of the input, or `None` while that is too short. Its checksum is
    /// right; nothing else was looked at. A wrong magic is seen from the first byte on, so that
    /// nobody waits for the rest of something that is no frame.
    pub(super) fn read(input: &[u8]) -> Result<Option<Self>, WireError> {
        let seen = input.len().min(MAGIC.len());
        if input[..seen] != MAGIC[..seen] {
            let mut found = [0; 4];
            found[..seen].copy_from_slice(&input[..seen]);
            return Err(WireError::BadMagic { found });
        }
        let Ok((raw, _)) = Self::read_from_prefix(input) else {
            return Ok(None);
        };
        if crc32c::crc32c(&input[..COVERED]) != raw.header_crc.get() {
            return Err(WireError::HeaderChecksum);
        }
        Ok(Some(raw))
    }
}
