//! Frames on a controller connection. All numbers little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `LSCT` |
//! | 4 | 2 | protocol version, 2 |
//! | 6 | 2 | zero |
//! | 8 | 4 | length of the message in bytes, at most [`MAX_FRAME_BYTES`] |
//! | 12 | 16 | cluster id |
//! | 28 | 4 | crc32c of bytes 0 to 27 and the message |
//! | 32 | … | the message, postcard |

use crate::pki::TlsError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vocabulary::ClusterId;

/// Largest message: a document and its envelope.
pub const MAX_FRAME_BYTES: usize = (1 << 20) + 4096;
const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"LSCT";
const VERSION: u16 = 2;

/// Why a connection can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed or closed.
    #[error("{0}")]
    Io(io::Error),
    /// The other side is not who it should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Not this protocol.
    #[error("the other side does not speak lockstep's controller protocol")]
    Magic,
    /// Another version of it.
    #[error(
        "the other side speaks version {0} of the controller protocol, this node version {VERSION}"
    )]
    Version(u16),
    /// A length beyond the limit.
    #[error("a message of {0} bytes is announced, the limit is {MAX_FRAME_BYTES}")]
    TooLong(u32),
    /// A node of another cluster.
    #[error("the other side belongs to cluster {0}")]
    OtherCluster(ClusterId),
    /// Damaged on the way.
    #[error("wrong checksum")]
    Checksum,
    /// The checksum fits and the message does not.
    #[error("a message that makes no sense")]
    Contents,
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        match error.into() {
            TlsError::Io(error) => Self::Io(error),
            refused => Self::Tls(refused),
        }
    }
}

pub(super) fn encode<T: Serialize>(cluster: ClusterId, message: &T) -> Result<Vec<u8>, FrameError> {
    let body = postcard::to_stdvec(message).map_err(|_| FrameError::Contents)?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&cluster.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads one message. Not to be dropped half way: its caller owns the connection and closes it then.
pub(super) async fn read<T: DeserializeOwned>(
    input: &mut (impl AsyncRead + Unpin),
    cluster: ClusterId,
) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header).await?;
    if header[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let bytes = usize::try_from(length)
        .ok()
        .filter(|&bytes| bytes <= MAX_FRAME_BYTES)
        .ok_or(FrameError::TooLong(length))?;
    let mut body = vec![0; bytes];
    input.read_exact(&mut body).await?;
    let crc = u32::from_le_bytes([header[28], header[29], header[30], header[31]]);
    if crc32c::crc32c_append(crc32c::crc32c(&header[..28]), &body) != crc {
        return Err(FrameError::Checksum);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&header[12..28]);
    let found = ClusterId(u128::from_le_bytes(id));
    if found != cluster {
        return Err(FrameError::OtherCluster(found));
    }
    postcard::from_bytes(&body).map_err(|_| FrameError::Contents)
}

pub(super) async fn write<T: Serialize>(
    output: &mut (impl AsyncWrite + Unpin),
    cluster: ClusterId,
    message: &T,
) -> Result<(), FrameError> {
    output.write_all(&encode(cluster, message)?).await?;
    // What is secured waits to be sent until it is told to.
    output.flush().await?;
    Ok(())
}
