//! Extended headers, byte by byte: requests with 64-bit lengths, replies that are all chunks, and
//! payloads where the flag says so.

mod common;

use common::R0_BYTES;
use common::message::*;
use common::session::Session;
use nbd_frontend::{
    CloseReason, Command, Contexts, ExportError, ExportInfo, ExportListing, Exports, Extent,
    Limits, MAX_PAYLOAD_BYTES, NbdError, Outcome, Request, Step,
};

const COOKIE: u64 = 0x0102_0304_0506_0708;
/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 0b1101_1110_1101;
const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

fn open() -> Session {
    Session::after(&[(EXTENDED_HEADERS, Vec::new())])
}

fn open_with_contexts() -> Session {
    let both = meta_question("r0", &["base:allocation", "x-test:odd"]);
    Session::after(&[(EXTENDED_HEADERS, Vec::new()), (SET_META_CONTEXT, both)])
}

fn last(session: &Session) -> Request {
    match session.steps.last() {
        Some(Step::Request(request) | Step::Write(request)) => *request,
        step => panic!("not a request: {step:?}"),
    }
}

fn error(offset: u64, error: NbdError, text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    let data = [
        &error.code().to_be_bytes()[..],
        &length.to_be_bytes(),
        text.as_bytes(),
    ]
    .concat();
    extended_chunk(true, 0x8001, COOKIE, offset, &data)
}

fn expect_error(session: &mut Session, message: &[u8], offset: u64, kind: NbdError, text: &str) {
    session.feed(message);
    assert_eq!(session.take_out(), error(offset, kind, text));
    session.feed(&extended(0, READ, 1, 0, 512));
    assert_eq!(last(session).command, Command::Read, "out of step");
}

fn answer(session: &mut Session, outcome: Outcome) -> (Vec<u8>, u32) {
    let request = last(session);
    let follows = session
        .connection
        .reply(&request, outcome, &mut session.out);
    (session.take_out(), follows)
}

#[test]
fn the_option_is_acknowledged_and_replaces_structured_replies() {
    let mut session = Session::new(Limits::default());
    session.feed(&CLIENT_FLAGS);
    session.feed(&option(STRUCTURED_REPLY, b""));
    session.take_out();
    session.feed(&option(EXTENDED_HEADERS, b"x"));
    let text = b"this option takes no data";
    assert_eq!(
        session.take_out(),
        option_reply(EXTENDED_HEADERS, ERR_INVALID, text)
    );
    session.feed(&option(EXTENDED_HEADERS, b""));
    assert_eq!(session.take_out(), option_reply(EXTENDED_HEADERS, ACK, b""));
    session.feed(&option(STRUCTURED_REPLY, b""));
    let answer = session.take_out();
    assert_eq!(answer[12..16], ERR_EXT_HEADER_REQD.to_be_bytes());
    session.feed(&option(EXPORT_NAME, b"r0"));
    assert_eq!(
        session.steps.last(),
        Some(&Step::Close(CloseReason::NeedsGo))
    );
    assert!(session.take_out().is_empty());
}

#[test]
fn a_payload_of_block_status_is_offered_once_contexts_are_selected() {
    let ask = |contexts: &[&str]| {
        let mut session = Session::new(Limits::default());
        session.feed(&CLIENT_FLAGS);
        session.feed(&option(EXTENDED_HEADERS, b""));
        session.feed(&option(SET_META_CONTEXT, &meta_question("r0", contexts)));
        session.take_out();
        session.feed(&option(INFO, &question("r0", &[])));
        let out = session.take_out();
        u16::from_be_bytes([out[30], out[31]])
    };
    assert_eq!(ask(&[]), FLAGS);
    assert_eq!(ask(&["base:allocation"]), FLAGS | BLOCK_STATUS_PAYLOAD);
}

#[test]
fn replies_are_chunks_whatever_the_command() {
    let mut session = open();
    for (flags, command, offset, length) in [
        (0, FLUSH, 0, 0),
        (0, TRIM, 4096, 512),
        (FUA | NO_HOLE, WRITE_ZEROES, 8192, 512),
        (0, CACHE, 1, 1),
        (PAYLOAD_LEN | FUA, WRITE, 512, 5),
        // As QEMU 10.0 sends it, against the specification.
        (FUA, WRITE, 512, 5),
    ] {
        session.feed(&extended(flags, command, COOKIE, offset, length));
        if command == WRITE {
            session.feed(b"12345");
        }
        let taken = last(&session);
        assert_eq!(
            (taken.offset, taken.length, taken.cookie),
            (offset, length, COOKIE)
        );
        assert_eq!(
            taken.flags.bits(),
            flags & !PAYLOAD_LEN,
            "the flag is the stream's matter"
        );
        let expected = extended_chunk(true, 0, COOKIE, offset, b"");
        assert_eq!(answer(&mut session, Outcome::Done), (expected, 0));
    }
    assert_eq!(session.payload, b"1234512345");
    session.feed(&extended(0, READ, COOKIE, 4096, 512));
    let mut header = extended_chunk(true, 1, COOKIE, 4096, &[0; 520]);
    header.truncate(32);
    header.extend_from_slice(&4096_u64.to_be_bytes());
    assert_eq!(answer(&mut session, Outcome::Done), (header, 512));
    session.feed(&extended(0, READ, COOKIE, 4096, 512));
    let hole = [&4096_u64.to_be_bytes()[..], &512_u32.to_be_bytes()].concat();
    let expected = extended_chunk(true, 2, COOKIE, 4096, &hole);
    assert_eq!(answer(&mut session, Outcome::Zeroes), (expected, 0));
    session.feed(&extended(0, TRIM, COOKIE, 7, 1));
    let expected = error(7, NbdError::Io, NbdError::Io.text());
    assert_eq!(
        answer(&mut session, Outcome::Failed(NbdError::Io)),
        (expected, 0)
    );
}

#[test]
fn every_piece_of_a_read_repeats_the_offset_of_the_request() {
    let mut session = open();
    let mut data = vec![7; 64 << 10];
    data[32 << 10..].fill(0);
    session.feed(&extended(0, READ, COOKIE, 8192, 64 << 10));
    let taken = last(&session);
    let first = session
        .connection
        .reply_piece(&taken, &data, 0, &mut session.out);
    assert_eq!((first.send, first.next), (0..32 << 10, Some(32 << 10)));
    let mut header = extended_chunk(false, 1, COOKIE, 8192, &vec![0; (32 << 10) + 8]);
    header.truncate(32);
    header.extend_from_slice(&8192_u64.to_be_bytes());
    assert_eq!(session.take_out(), header);
    let second = session
        .connection
        .reply_piece(&taken, &data, 32 << 10, &mut session.out);
    assert!(second.send.is_empty() && second.next.is_none());
    let hole = [&40_960_u64.to_be_bytes()[..], &32_768_u32.to_be_bytes()].concat();
    assert_eq!(
        session.take_out(),
        extended_chunk(true, 2, COOKIE, 8192, &hole)
    );
}

#[test]
fn a_request_that_is_refused_has_its_payload_consumed() {
    let text = "a flag is unknown or does not apply to the command";
    for command in [READ, FLUSH, TRIM, WRITE_ZEROES] {
        let message = [
            extended(PAYLOAD_LEN, command, COOKIE, 0, 100),
            vec![0x21; 100],
        ]
        .concat();
        let mut session = open();
        expect_error(&mut session, &message, 0, NbdError::Invalid, text);
    }
    let mut session = open();
    let message = [extended(PAYLOAD_LEN, 77, COOKIE, 0, 100), vec![0x21; 100]].concat();
    expect_error(
        &mut session,
        &message,
        0,
        NbdError::Invalid,
        "unknown command",
    );
    let mut session = open();
    let text = "the range goes past the end of the export";
    for flags in [PAYLOAD_LEN, 0] {
        let message = [
            extended(flags, WRITE, COOKIE, R0_BYTES, 100),
            vec![0x21; 100],
        ];
        expect_error(
            &mut session,
            &message.concat(),
            R0_BYTES,
            NbdError::NoSpace,
            text,
        );
    }
}

#[test]
fn a_payload_beyond_the_maximum_ends_the_connection() {
    for (command, length) in [
        (WRITE, u64::MAX),
        (TRIM, u64::from(MAX_PAYLOAD_BYTES) + 1),
        (BLOCK_STATUS, 1 << 40),
    ] {
        let mut session = open_with_contexts();
        session.feed(&extended(PAYLOAD_LEN, command, COOKIE, 0, length));
        let reason = CloseReason::PayloadTooLong(length);
        assert_eq!(session.steps, [Step::Close(reason)]);
    }
}

#[test]
fn a_compact_request_ends_the_connection_and_so_does_an_extended_one_without_the_option() {
    let mut session = open();
    session.feed(&request(0, READ, 1, 0, 512));
    session.feed(&[0; 4]);
    let reason = CloseReason::BadRequestMagic(0x2560_9513);
    assert_eq!(session.steps, [Step::Close(reason)]);
    let mut session = Session::open("r0", true);
    session.feed(&extended(0, READ, 1, 0, 512));
    let reason = CloseReason::BadRequestMagic(0x21e4_1c71);
    assert_eq!(session.steps, [Step::Close(reason)]);
}

/// One export of 8 EiB, nearly.
struct Vast;

const VAST_BYTES: u64 = (1 << 63) - 512;

impl Exports for Vast {
    fn list(&self) -> Vec<ExportListing> {
        Vec::new()
    }

    fn find(&self, _name: &str) -> Result<ExportInfo, ExportError> {
        Ok(ExportInfo {
            meta_contexts: &["base:allocation"],
            ..ExportInfo::new("vast", VAST_BYTES)
        })
    }
}

#[test]
fn effects_reach_beyond_four_gibibytes() {
    let mut session = Session::new(Limits::default());
    let handshake = [
        CLIENT_FLAGS.to_vec(),
        option(EXTENDED_HEADERS, b""),
        option(
            SET_META_CONTEXT,
            &meta_question("vast", &["base:allocation"]),
        ),
        option(GO, &question("vast", &[])),
    ];
    session.feed_with(&handshake.concat(), &Vast);
    session.take_out();
    for (command, expected) in [
        (TRIM, Command::Trim),
        (WRITE_ZEROES, Command::WriteZeroes),
        (CACHE, Command::Cache),
        (BLOCK_STATUS, Command::BlockStatus),
    ] {
        session.feed(&extended(0, command, COOKIE, 512, VAST_BYTES - 512));
        let taken = last(&session);
        assert_eq!((taken.command, taken.length), (expected, VAST_BYTES - 512));
    }
    let taken = last(&session);
    let extents = vec![
        Extent {
            length: 1 << 40,
            flags: 3,
        },
        Extent {
            length: u64::MAX,
            flags: 0,
        },
    ];
    session
        .connection
        .reply_status(&taken, &[(0, extents)], &mut session.out);
    let data = [
        &[0, 0, 0, 1, 0, 0, 0, 2][..],
        &(1_u64 << 40).to_be_bytes(),
        &3_u64.to_be_bytes(),
        &(VAST_BYTES - 512 - (1 << 40)).to_be_bytes(),
        &0_u64.to_be_bytes(),
    ];
    let expected = extended_chunk(true, 6, COOKIE, 512, &data.concat());
    assert_eq!(session.take_out(), expected);
    // A range that wraps around, and a read of more than can be sent.
    let outside = "the range goes past the end of the export";
    let message = extended(0, TRIM, COOKIE, 512, u64::MAX);
    expect_error(&mut session, &message, 512, NbdError::Invalid, outside);
    let message = extended(0, READ, COOKIE, 0, 1 << 40);
    let text = "longer than the maximum payload of this server";
    expect_error(&mut session, &message, 0, NbdError::Invalid, text);
}

#[test]
fn a_payload_chooses_among_the_selected_contexts() {
    let status = |payload: &[u8]| {
        let length = u64::try_from(payload.len()).unwrap();
        [
            extended(PAYLOAD_LEN | REQ_ONE, BLOCK_STATUS, COOKIE, 4096, length),
            payload.to_vec(),
        ]
        .concat()
    };
    let payload = |length: u64, ids: &[u32]| {
        let mut payload = length.to_be_bytes().to_vec();
        for id in ids {
            payload.extend_from_slice(&id.to_be_bytes());
        }
        payload
    };
    for (ids, bits) in [(&[2][..], 0b10), (&[2, 1], 0b11), (&[1], 0b01)] {
        let mut session = open_with_contexts();
        session.feed(&status(&payload(8192, ids)));
        let taken = last(&session);
        assert_eq!(taken.contexts, Contexts::from_bits(bits));
        assert_eq!((taken.offset, taken.length), (4096, 8192));
        assert!(taken.flags.req_one());
    }
    let malformed = "the payload of a block status is malformed";
    let foreign = "a metadata context was not selected, or is named twice";
    for (payload, text) in [
        (payload(8192, &[]), malformed),
        (payload(8192, &[1])[..11].to_vec(), malformed),
        (vec![0; 1], malformed),
        (payload(8192, &[1, 1]), foreign),
        (payload(8192, &[0]), foreign),
        (payload(8192, &[3]), foreign),
        (payload(8192, &[u32::MAX]), foreign),
        (payload(8192, &[1; 9]), malformed),
        (payload(0, &[1]), "a block status of no bytes"),
        (
            payload(R0_BYTES, &[1]),
            "the range goes past the end of the export",
        ),
    ] {
        let mut session = open_with_contexts();
        expect_error(
            &mut session,
            &status(&payload),
            4096,
            NbdError::Invalid,
            text,
        );
    }
    // Without contexts there is nothing to choose from.
    let mut session = open();
    expect_error(
        &mut session,
        &status(&payload(512, &[1])),
        4096,
        NbdError::Invalid,
        foreign,
    );
}
