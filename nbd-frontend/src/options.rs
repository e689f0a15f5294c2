//! The handshake's options: reading the data of one, and writing the replies to one, byte by byte.
//! In which order options may come, and what they change, is the connection's matter.

use crate::export::{ExportError, ExportInfo, ExportListing};
use crate::meta::id_of;
use crate::wire::{Fields, MAX_STRING_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, option_reply};
use crate::wire::{clip, handshake_flag, put_u16, put_u32, put_u64};
use crate::{CloseReason, wire};

/// Bytes in front of an option's data: u64 magic `IHAVEOPT`, u32 option, u32 length of the data.
pub(crate) const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of the client flags: one u32.
pub(crate) const CLIENT_FLAGS_BYTES: usize = 4;
/// Zeroes at the end of the answer to EXPORT_NAME, unless the client does without.
const EXPORT_NAME_PADDING: [u8; 124] = [0; 124];

/// What the client flags said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientFlags {
    pub(crate) no_zeroes: bool,
}

/// Writes the greeting.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | `NBDMAGIC` |
/// | 8 | 8 | `IHAVEOPT` |
/// | 16 | 2 | handshake flags |
pub(crate) fn put_greeting(out: &mut Vec<u8>) {
    put_u64(out, wire::GREETING_MAGIC);
    put_u64(out, OPTION_MAGIC);
    put_u16(
        out,
        handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES,
    );
}

/// A client without FIXED_NEWSTYLE is served like the others, which the protocol allows.
pub(crate) fn parse_client_flags(
    bytes: [u8; CLIENT_FLAGS_BYTES],
) -> Result<ClientFlags, CloseReason> {
    let flags = u32::from_be_bytes(bytes);
    let fixed_newstyle = u32::from(handshake_flag::FIXED_NEWSTYLE);
    let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
    if flags & !(fixed_newstyle | no_zeroes) != 0 {
        return Err(CloseReason::UnknownClientFlags(flags));
    }
    Ok(ClientFlags {
        no_zeroes: flags & no_zeroes != 0,
    })
}

/// Number and data length of an option.
pub(crate) fn parse_option_header(
    bytes: [u8; OPTION_HEADER_BYTES],
) -> Result<(u32, u32), CloseReason> {
    let [
        m0,
        m1,
        m2,
        m3,
        m4,
        m5,
        m6,
        m7,
        o0,
        o1,
        o2,
        o3,
        l0,
        l1,
        l2,
        l3,
    ] = bytes;
    let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
    if magic != OPTION_MAGIC {
        return Err(CloseReason::BadOptionMagic(magic));
    }
    Ok((
        u32::from_be_bytes([o0, o1, o2, o3]),
        u32::from_be_bytes([l0, l1, l2, l3]),
    ))
}

/// An export's name as a client gave it, or what is wrong with it.
pub(crate) fn parse_name(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err("the export's name is longer than 4096 bytes");
    }
    match std::str::from_utf8(bytes) {
        Ok(name) if name.contains('\0') => Err("the export's name contains a NUL character"),
        Ok(name) => Ok(name),
        Err(_) => Err("the export's name is not UTF-8"),
    }
}

/// Data of INFO and GO: u32 length of the name, the name, u16 number of infos, u16 for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InfoQuestion<'a> {
    pub(crate) export: &'a str,
    pub(crate) name: bool,
    pub(crate) description: bool,
    pub(crate) block_sizes: bool,
}

impl<'a> InfoQuestion<'a> {
    /// The question, or what is wrong with it. Infos that we do not know are ignored, as they must
    /// be; repeated ones are answered once.
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "the option's data ends too early";
        let mut fields = Fields(data);
        let name_bytes = fields.u32().ok_or(SHORT)?;
        let export = parse_name(fields.bytes(name_bytes).ok_or(SHORT)?)?;
        let mut question = Self {
            export,
            name: false,
            description: false,
            block_sizes: false,
        };
        for _ in 0..fields.u16().ok_or(SHORT)? {
            match fields.u16().ok_or(SHORT)? {
                info::NAME => question.name = true,
                info::DESCRIPTION => question.description = true,
                info::BLOCK_SIZE => question.block_sizes = true,
                _ => {}
            }
        }
        if !fields.is_empty() {
            return Err("the option's data is longer than its contents");
        }
        Ok(question)
    }
}

/// Writes one reply to an option.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | magic 0x3e889045565a9 |
/// | 8 | 4 | the option |
/// | 12 | 4 | type of the reply |
/// | 16 | 4 | length of the data |
pub(crate) fn put_option_reply(option: u32, kind: u32, data: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    put_u64(out, OPTION_REPLY_MAGIC);
    put_u32(out, option);
    put_u32(out, kind);
    // Every part is either fixed or a clipped string.
    put_u32(out, u32::try_from(length).unwrap_or(0));
    for part in data {
        out.extend_from_slice(part);
    }
}

/// Writes an error reply to an option, with its sentence.
pub(crate) fn put_option_error(option: u32, kind: u32, message: &str, out: &mut Vec<u8>) {
    put_option_reply(option, kind, &[clip(message).as_bytes()], out);
}

/// Writes the error reply for an export that cannot be had.
pub(crate) fn put_export_error(option: u32, error: &ExportError, out: &mut Vec<u8>) {
    let kind = match error {
        ExportError::Unknown { .. } => option_reply::ERR_UNKNOWN,
        ExportError::Refused { .. } => option_reply::ERR_POLICY,
        ExportError::ShuttingDown => option_reply::ERR_SHUTDOWN,
    };
    put_option_error(option, kind, &error.to_string(), out);
}

/// Writes one export of the answer to LIST: u32 length of the name, name, description.
pub(crate) fn put_listing(option: u32, listing: &ExportListing, out: &mut Vec<u8>) {
    // A longer name could not be asked for, so it is as good as absent.
    let Ok(name_bytes) = u32::try_from(listing.name.len()) else {
        return;
    };
    if listing.name.len() > MAX_STRING_BYTES {
        return;
    }
    let data: [&[u8]; 3] = [
        &name_bytes.to_be_bytes(),
        listing.name.as_bytes(),
        clip(&listing.description).as_bytes(),
    ];
    put_option_reply(option, option_reply::SERVER, &data, out);
}

/// Writes one metadata context of the answer to LIST_META_CONTEXT (where its number means nothing) or
/// SET_META_CONTEXT: u32 number of the context, its name.
pub(crate) fn put_meta_context(
    option: u32,
    place: usize,
    name: &str,
    is_selected: bool,
    out: &mut Vec<u8>,
) {
    let id = if is_selected { id_of(place) } else { 0 };
    let data: [&[u8]; 2] = [&id.to_be_bytes(), clip(name).as_bytes()];
    put_option_reply(option, option_reply::META_CONTEXT, &data, out);
}

/// Writes the answer to INFO and GO, up to and with the acknowledgement. INFO_EXPORT always comes,
/// the others when asked for, a description only when there is one.
pub(crate) fn put_infos(
    option: u32,
    question: &InfoQuestion<'_>,
    export: &ExportInfo,
    flags: u16,
    max_payload_bytes: u32,
    out: &mut Vec<u8>,
) {
    let mut put = |kind: u16, parts: [&[u8]; 3]| {
        let data: [&[u8]; 4] = [&kind.to_be_bytes(), parts[0], parts[1], parts[2]];
        put_option_reply(option, option_reply::INFO, &data, out);
    };
    put(
        info::EXPORT,
        [&export.size_bytes.to_be_bytes(), &flags.to_be_bytes(), &[]],
    );
    if question.name {
        put(info::NAME, [clip(&export.name).as_bytes(), &[], &[]]);
    }
    if question.description && !export.description.is_empty() {
        put(
            info::DESCRIPTION,
            [clip(&export.description).as_bytes(), &[], &[]],
        );
    }
    if question.block_sizes {
        put(
            info::BLOCK_SIZE,
            [
                &export.min_block_bytes.to_be_bytes(),
                &export.preferred_block_bytes.to_be_bytes(),
                &max_payload_bytes.to_be_bytes(),
            ],
        );
    }
    put_option_reply(option, option_reply::ACK, &[], out);
}

/// Writes the answer to EXPORT_NAME: u64 size, u16 flags, 124 zeroes unless the client does without.
pub(crate) fn put_export_name_answer(
    export: &ExportInfo,
    flags: u16,
    no_zeroes: bool,
    out: &mut Vec<u8>,
) {
    put_u64(out, export.size_bytes);
    put_u16(out, flags);
    if !no_zeroes {
        out.extend_from_slice(&EXPORT_NAME_PADDING);
    }
}
