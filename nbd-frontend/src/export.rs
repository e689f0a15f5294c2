//! What a client may open: exports, what is told about them, and why one cannot be had. Who decides
//! that is the embedding program, through [`Exports`].

use thiserror::Error;

use crate::meta::{Contexts, MAX_CONTEXTS};
use crate::reply::Replies;
use crate::wire::{MAX_STRING_BYTES, clip_to, transmission_flag as flag};

/// Largest advertised minimum block size ("Block size constraints").
const MAX_MIN_BLOCK_BYTES: u32 = 64 << 10;
/// Smallest advertised preferred block size (same section).
const MIN_PREFERRED_BLOCK_BYTES: u32 = 512;
/// Names of valid exports in an error message stop after this many bytes: the text is for a person.
const MAX_NAMES_TEXT_BYTES: usize = 1024;

/// One line of the answer to LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportListing {
    /// The name to open it by.
    pub name: String,
    /// A sentence for a person; may be empty.
    pub description: String,
}

/// What a client is told about an export when it opens it. Fixed for the connection: a device that
/// grows is seen by clients that connect again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The export's own name, also when it was opened as the default export.
    pub name: String,
    /// A sentence for a person; may be empty.
    pub description: String,
    /// Size in bytes, a multiple of `min_block_bytes`.
    pub size_bytes: u64,
    /// Smallest unit of requests: a power of two up to 64 KiB. Binds only clients that asked for the
    /// block sizes; the device has to serve any byte range to the others.
    pub min_block_bytes: u32,
    /// Unit that the device serves best: a power of two, at least 512 and `min_block_bytes`.
    pub preferred_block_bytes: u32,
    /// No writes: they are answered EPERM.
    pub read_only: bool,
    /// The client may schedule as for a spinning disk.
    pub rotational: bool,
    /// What one connection flushes is flushed for all of them (FLUSH and FUA reach every write that
    /// was answered on any connection). Say so only if the device does it.
    pub can_multi_conn: bool,
    /// WRITE_ZEROES with FAST_ZERO is either fast or refused at once with
    /// [`NbdError::NotSupported`](crate::NbdError::NotSupported).
    pub can_fast_zero: bool,
    /// Metadata contexts that BLOCK_STATUS can tell about, at most [`MAX_CONTEXTS`], named as in
    /// "Metadata querying": [`BASE_ALLOCATION`](crate::BASE_ALLOCATION), or a namespace of the program's own.
    pub meta_contexts: &'static [&'static str],
}

impl ExportInfo {
    /// A writable export without promises: blocks of 1 byte, 4096 preferred (the unit of backing
    /// stores and of the dirty bitmap), one connection at a time.
    #[must_use]
    pub fn new(name: impl Into<String>, size_bytes: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size_bytes,
            min_block_bytes: 1,
            preferred_block_bytes: 4096,
            read_only: false,
            rotational: false,
            can_multi_conn: false,
            can_fast_zero: false,
            meta_contexts: &[],
        }
    }

    /// True when name and sizes are ones that a server may advertise.
    #[must_use]
    pub fn is_coherent(&self) -> bool {
        self.name.len() <= MAX_STRING_BYTES
            && !self.name.contains('\0')
            && self.min_block_bytes.is_power_of_two()
            && self.min_block_bytes <= MAX_MIN_BLOCK_BYTES
            && self.meta_contexts.len() <= MAX_CONTEXTS
            && self.preferred_block_bytes.is_power_of_two()
            && self.preferred_block_bytes >= MIN_PREFERRED_BLOCK_BYTES.max(self.min_block_bytes)
            && self
                .size_bytes
                .is_multiple_of(u64::from(self.min_block_bytes))
    }

    /// "Transmission flags". TRIM and WRITE_ZEROES are not offered where they would be refused, DF
    /// only with structured replies, and a payload of BLOCK_STATUS only with extended headers and
    /// where there is something to choose from.
    pub(crate) const fn transmission_flags(&self, replies: Replies, contexts: Contexts) -> u16 {
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
        if self.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
            if self.can_fast_zero {
                flags |= flag::SEND_FAST_ZERO;
            }
        }
        if self.rotational {
            flags |= flag::ROTATIONAL;
        }
        if self.can_multi_conn {
            flags |= flag::CAN_MULTI_CONN;
        }
        if replies.are_structured() {
            flags |= flag::SEND_DF;
        }
        if matches!(replies, Replies::Extended) && !contexts.is_empty() {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }
}

/// Why an export cannot be opened. The text is sent to the client, so it names the way out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExportError {
    /// There is no such export (ERR_UNKNOWN).
    #[error("there is no export named \"{asked}\" here; {}", names(.valid))]
    Unknown {
        /// The name that the client asked for; empty for the default export.
        asked: String,
        /// The names that it could have asked for.
        valid: Vec<String>,
    },
    /// The export exists and must not be opened here and now (ERR_POLICY).
    #[error("export \"{export}\" cannot be opened here: {reason}")]
    Refused {
        /// Name of the export.
        export: String,
        /// Why, and what to do; a clause without a full stop.
        reason: String,
    },
    /// The server is going away (ERR_SHUTDOWN).
    #[error("this server is shutting down; connect to another one")]
    ShuttingDown,
}

/// The exports of a server, as the embedding program sees them at this moment.
pub trait Exports {
    /// Every export that a client may be told of.
    fn list(&self) -> Vec<ExportListing>;

    /// The export of this name. The empty name is the default export.
    ///
    /// # Errors
    /// When it does not exist or must not be opened; the text goes to the client.
    fn find(&self, name: &str) -> Result<ExportInfo, ExportError>;
}

fn names(valid: &[String]) -> String {
    if valid.is_empty() {
        return "there are no exports at the moment".to_owned();
    }
    let all = valid.join(", ");
    let shown = clip_to(&all, MAX_NAMES_TEXT_BYTES);
    let more = if shown.len() < all.len() { ", …" } else { "" };
    format!("exports: {shown}{more}")
}
