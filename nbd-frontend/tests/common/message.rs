//! A client's messages and a server's answers, written out independently of the crate, so that a
//! wrong constant there does not hide.

/// Client flags FIXED_NEWSTYLE and NO_ZEROES.
pub const CLIENT_FLAGS: [u8; 4] = [0, 0, 0, 3];
/// The server's first 18 bytes.
pub const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";

pub const EXPORT_NAME: u32 = 1;
pub const ABORT: u32 = 2;
pub const LIST: u32 = 3;
pub const PEEK_EXPORT: u32 = 4;
pub const STARTTLS: u32 = 5;
pub const INFO: u32 = 6;
pub const GO: u32 = 7;
pub const STRUCTURED_REPLY: u32 = 8;
pub const LIST_META_CONTEXT: u32 = 9;
pub const SET_META_CONTEXT: u32 = 10;
pub const EXTENDED_HEADERS: u32 = 11;

pub const ACK: u32 = 1;
pub const SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const META_CONTEXT: u32 = 4;
pub const ERR_UNSUP: u32 = 0x8000_0001;
pub const ERR_POLICY: u32 = 0x8000_0002;
pub const ERR_INVALID: u32 = 0x8000_0003;
pub const ERR_TLS_REQD: u32 = 0x8000_0005;
pub const ERR_UNKNOWN: u32 = 0x8000_0006;
pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
pub const ERR_TOO_BIG: u32 = 0x8000_0009;
pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;
pub const PAYLOAD_LEN: u16 = 32;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

/// An option with its data.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        b"IHAVEOPT",
        &option.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// Data of INFO and GO.
pub fn question(export: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&u16::try_from(infos.len()).unwrap().to_be_bytes());
    for info in infos {
        data.extend_from_slice(&info.to_be_bytes());
    }
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_question(export: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| {
        let length = u32::try_from(text.len()).unwrap();
        [&length.to_be_bytes()[..], text.as_bytes()].concat()
    };
    let count = u32::try_from(queries.len()).unwrap();
    let mut data = [string(export), count.to_be_bytes().to_vec()].concat();
    for query in queries {
        data.extend_from_slice(&string(query));
    }
    data
}

/// A reply to an option.
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        &[0, 3, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9],
        &option.to_be_bytes()[..],
        &kind.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// A request without its payload.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        &[0x25, 0x60, 0x95, 0x13],
        &flags.to_be_bytes()[..],
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// A request with extended headers, without its payload.
pub fn extended(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    [
        &[0x21, 0xe4, 0x1c, 0x71],
        &flags.to_be_bytes()[..],
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// A chunk of a reply with extended headers.
pub fn extended_chunk(done: bool, kind: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let length = u64::try_from(data.len()).unwrap();
    [
        &[0x6e, 0x8a, 0x27, 0x8c, 0, u8::from(done)],
        &kind.to_be_bytes()[..],
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// A simple reply without data.
pub fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [
        &[0x67, 0x44, 0x66, 0x98],
        &error.to_be_bytes()[..],
        &cookie.to_be_bytes(),
    ]
    .concat()
}

/// The one and last chunk of a structured reply.
pub fn chunk(kind: u16, cookie: u64, data: &[u8]) -> Vec<u8> {
    chunk_of(true, kind, cookie, data)
}

/// A chunk of a structured reply.
pub fn chunk_of(done: bool, kind: u16, cookie: u64, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        &[0x66, 0x8e, 0x33, 0xef, 0, u8::from(done)],
        &kind.to_be_bytes()[..],
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// A structured error with a message.
pub fn error_chunk(cookie: u64, error: u32, message: &str) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    let data = [
        &error.to_be_bytes()[..],
        &length.to_be_bytes(),
        message.as_bytes(),
    ]
    .concat();
    chunk(0x8001, cookie, &data)
}
