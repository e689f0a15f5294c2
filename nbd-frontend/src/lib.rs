//! An NBD server without I/O. [`Connection`] turns a client's bytes into requests and their outcomes
//! into bytes: the whole fixed newstyle handshake and transmission phase, no socket, no clock, no
//! thread. [`BlockDevice`] is all that is known of what is behind an export; a driver that owns the
//! sockets and buffers stands between the two.
//!
//! Nothing here knows of replication, blocks, prints or panics on input, and no length that a client
//! sends is trusted: [`Limits`] bounds what a connection may cost. "Quoted" names in comments are
//! sections of the NBD protocol document.

mod connection;
mod device;
mod error;
mod export;
mod limits;
mod meta;
mod options;
mod reply;
mod request;
pub mod wire;

pub use connection::{Connection, Step, TlsMode};
pub use device::{BlockDevice, Completion, Tag};
pub use error::{CloseReason, NbdError};
pub use export::{ExportError, ExportInfo, ExportListing, Exports};
pub use limits::{
    Limits, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_PAYLOAD_BYTES,
    MAX_UNSENT_BYTES,
};
pub use meta::{BASE_ALLOCATION, Contexts, Extent, HOLE, MAX_CONTEXTS, ZERO};
pub use reply::{DATA_CHUNK_HEADER_BYTES, Outcome, Piece, SIMPLE_REPLY_BYTES};
pub use request::{Command, CommandFlags, Request};
