//! The transmission phase, byte by byte: what each command becomes, and every reply to it.

mod common;

use common::message::*;
use common::session::Session;
use common::{Catalog, R0_BYTES};
use nbd_frontend::{
    CloseReason, Command, CommandFlags, Connection, DATA_CHUNK_HEADER_BYTES, ExportError,
    ExportInfo, ExportListing, Exports, Limits, NbdError, Outcome, Request, SIMPLE_REPLY_BYTES,
    Step, TlsMode,
};

/// The one request that the session handed out last.
fn last(session: &Session) -> Request {
    match session.steps.last() {
        Some(Step::Request(request) | Step::Write(request)) => *request,
        step => panic!("not a request: {step:?}"),
    }
}

/// Sends a request and answers it; gives back the header and the bytes of data that follow it.
fn answered(
    session: &mut Session,
    command: u16,
    offset: u64,
    length: u32,
    outcome: Outcome,
) -> (Vec<u8>, u32) {
    session.feed(&request(0, command, 7, offset, length));
    let taken = last(session);
    if command == WRITE {
        session.feed(&vec![0xab; usize::try_from(length).unwrap()]);
    }
    let data_bytes = session.connection.reply(&taken, outcome, &mut session.out);
    (session.take_out(), data_bytes)
}

/// Asserts that a request is refused with `error` under both kinds of replies, that nothing is
/// handed out, and that the next request is served.
fn refused(export: &str, flags: u16, command: u16, offset: u64, length: u32, error: u32) {
    for structured in [false, true] {
        let mut session = Session::open(export, structured);
        session.feed(&request(flags, command, 0xc0ffee, offset, length));
        if command == WRITE && length > 0 {
            assert!(session.out.is_empty(), "answered before the payload");
            let payload = vec![0x25; 1 << 16];
            let mut left = usize::try_from(length).unwrap();
            while left > 0 {
                let now = left.min(payload.len());
                session.feed(&payload[..now]);
                left -= now;
            }
        }
        assert_eq!(session.steps, [Step::Answered]);
        let reply = session.take_out();
        if structured {
            assert_eq!(reply[..6], [0x66, 0x8e, 0x33, 0xef, 0, 1]);
            assert_eq!(reply[6..8], [0x80, 1]);
            assert_eq!(reply[8..16], 0xc0ffee_u64.to_be_bytes());
            assert_eq!(reply[20..24], error.to_be_bytes());
            let text = String::from_utf8(reply[26..].to_vec()).unwrap();
            assert!(!text.is_empty());
            assert_eq!(reply, error_chunk(0xc0ffee, error, &text));
        } else {
            assert_eq!(reply, simple(error, 0xc0ffee));
        }
        assert_eq!(session.connection.in_flight(), 0);
        session.feed(&request(0, READ, 1, 0, 512));
        assert_eq!(last(&session).command, Command::Read);
    }
}

#[test]
fn every_command_arrives_as_it_was_sent() {
    let mut session = Session::open("r0", true);
    for (command, expected, offset, length) in [
        (READ, Command::Read, 4096, 8192),
        (FLUSH, Command::Flush, 0, 0),
        (TRIM, Command::Trim, 512, 100),
        (CACHE, Command::Cache, 0, 1),
        (WRITE_ZEROES, Command::WriteZeroes, R0_BYTES - 1, 1),
        (WRITE, Command::Write, 3, 5),
    ] {
        for flags in [0, FUA] {
            session.feed(&request(
                flags,
                command,
                0x0123_4567_89ab_cdef,
                offset,
                length,
            ));
            let taken = last(&session);
            assert_eq!(taken.cookie, 0x0123_4567_89ab_cdef);
            assert_eq!(taken.command, expected);
            assert_eq!((taken.offset, taken.length), (offset, u64::from(length)));
            assert_eq!(taken.flags.fua(), flags == FUA);
            assert_eq!(
                taken.flags,
                if flags == FUA {
                    CommandFlags::FUA
                } else {
                    CommandFlags::NONE
                }
            );
            if command == WRITE {
                assert!(matches!(session.steps.last(), Some(Step::Write(_))));
                session.feed(b"12345");
            }
        }
    }
    assert_eq!(session.payload, b"1234512345");
    assert_eq!(session.connection.in_flight(), 12);
    assert!(session.out.is_empty());
}

#[test]
fn flags_arrive_with_the_commands_they_belong_to() {
    let mut session = Session::open("r0", true);
    session.feed(&request(NO_HOLE | FAST_ZERO | FUA, WRITE_ZEROES, 1, 0, 512));
    let flags = last(&session).flags;
    assert!(flags.no_hole() && flags.fast_zero() && flags.fua() && !flags.dont_fragment());
    session.feed(&request(DF, READ, 1, 0, 512));
    assert!(last(&session).flags.dont_fragment());
}

#[test]
fn simple_replies_byte_by_byte() {
    let mut session = Session::open("r0", false);
    let ok = simple(0, 7);
    assert_eq!(ok.len(), SIMPLE_REPLY_BYTES);
    for command in [WRITE, TRIM, CACHE, WRITE_ZEROES] {
        assert_eq!(
            answered(&mut session, command, 0, 512, Outcome::Done),
            (ok.clone(), 0)
        );
    }
    assert_eq!(
        answered(&mut session, FLUSH, 0, 0, Outcome::Done),
        (ok.clone(), 0)
    );
    assert_eq!(
        answered(&mut session, READ, 0, 512, Outcome::Done),
        (ok.clone(), 512)
    );
    assert_eq!(
        answered(&mut session, READ, 0, 512, Outcome::Zeroes),
        (ok, 512)
    );
    let failed = Outcome::Failed(NbdError::Io);
    assert_eq!(
        answered(&mut session, READ, 0, 512, failed),
        (simple(EIO, 7), 0)
    );
    assert_eq!(session.connection.in_flight(), 0);
}

#[test]
fn structured_replies_byte_by_byte() {
    let mut session = Session::open("r0", true);
    for command in [WRITE, TRIM, CACHE, WRITE_ZEROES] {
        assert_eq!(
            answered(&mut session, command, 0, 512, Outcome::Done),
            (simple(0, 7), 0)
        );
    }
    assert_eq!(
        answered(&mut session, FLUSH, 0, 0, Outcome::Done),
        (simple(0, 7), 0)
    );

    let (header, data_bytes) = answered(&mut session, READ, 0x1000, 0x200, Outcome::Done);
    assert_eq!(header.len(), DATA_CHUNK_HEADER_BYTES);
    assert_eq!(data_bytes, 0x200);
    let whole = [&header[..], &[0xab; 0x200]].concat();
    let content = [&0x1000_u64.to_be_bytes()[..], &[0xab; 0x200]].concat();
    assert_eq!(whole, chunk(1, 7, &content));

    let hole = chunk(2, 7, &[0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]);
    assert_eq!(
        answered(&mut session, READ, 0x1000, 0x200, Outcome::Zeroes),
        (hole, 0)
    );

    for command in [READ, WRITE] {
        let failed = Outcome::Failed(NbdError::Io);
        let expected = error_chunk(7, EIO, "input/output error");
        assert_eq!(
            answered(&mut session, command, 0, 512, failed),
            (expected, 0)
        );
    }
}

#[test]
fn every_error_has_its_number_on_the_wire() {
    let mut session = Session::open("r0", false);
    for (error, code) in [
        (NbdError::NotPermitted, 1),
        (NbdError::Io, 5),
        (NbdError::NoMemory, 12),
        (NbdError::Invalid, 22),
        (NbdError::NoSpace, 28),
        (NbdError::Overflow, 75),
        (NbdError::NotSupported, 95),
        (NbdError::ShuttingDown, 108),
    ] {
        let reply = answered(&mut session, WRITE_ZEROES, 0, 512, Outcome::Failed(error));
        assert_eq!(reply, (simple(code, 7), 0));
    }
}

#[test]
fn unknown_commands_and_flags_are_invalid_and_the_connection_goes_on() {
    for command in [BLOCK_STATUS, 8, 9, 0x100, 0xffff] {
        refused("r0", 0, command, 0, 512, EINVAL);
    }
    for (command, flags) in [
        (READ, NO_HOLE),
        (READ, FAST_ZERO),
        (WRITE, DF),
        (WRITE, NO_HOLE),
        (WRITE, PAYLOAD_LEN),
        (TRIM, REQ_ONE),
        (TRIM, NO_HOLE),
        (CACHE, DF),
        (FLUSH, NO_HOLE),
        (WRITE_ZEROES, DF),
        (READ, 1 << 15),
        (WRITE, 0x40),
    ] {
        let length = if command == FLUSH { 0 } else { 512 };
        refused("r0", flags, command, 0, length, EINVAL);
        refused("r0", flags | FUA, command, 0, length, EINVAL);
    }
    refused("r0/1", FAST_ZERO, WRITE_ZEROES, 0, 512, EINVAL);
}

#[test]
fn dont_fragment_needs_structured_replies() {
    let mut session = Session::open("r0", false);
    session.feed(&request(DF, READ, 1, 0, 512));
    assert_eq!(session.take_out(), simple(EINVAL, 1));
}

#[test]
fn ranges_outside_the_export_are_refused_by_the_error_of_their_command() {
    for (offset, length) in [
        (R0_BYTES, 1),
        (R0_BYTES - 1, 2),
        (0, 0x10_0001),
        (u64::MAX, 1),
        (u64::MAX, 0x2_0000),
        (u64::MAX - 511, 512),
        (1 << 63, 512),
    ] {
        refused("r0", 0, READ, offset, length, EINVAL);
        refused("r0", 0, TRIM, offset, length, EINVAL);
        refused("r0", 0, CACHE, offset, length, EINVAL);
        refused("r0", 0, WRITE, offset, length, ENOSPC);
        refused("r0", 0, WRITE_ZEROES, offset, length, ENOSPC);
    }
    for command in [READ, TRIM, CACHE] {
        refused("r0", 0, command, 0, u32::MAX, EINVAL);
    }
    refused("r0", 0, WRITE_ZEROES, 0, u32::MAX, ENOSPC);
    refused("r0", 0, FLUSH, 0, 1, EINVAL);
    refused("r0", 0, FLUSH, 1, 0, EINVAL);
}

#[test]
fn the_last_byte_of_the_export_is_served() {
    let mut session = Session::open("r0", false);
    for (offset, length) in [(R0_BYTES - 1, 1), (0, 1 << 20)] {
        session.feed(&request(0, READ, 1, offset, length));
        assert_eq!(last(&session).offset, offset);
    }
}

/// `r0`, which becomes larger.
struct Growing(std::cell::Cell<u64>);

impl Exports for Growing {
    fn list(&self) -> Vec<ExportListing> {
        Vec::new()
    }

    fn find(&self, name: &str) -> Result<ExportInfo, ExportError> {
        Ok(ExportInfo::new(name, self.0.get()))
    }
}

#[test]
fn an_export_that_has_grown_is_served_to_its_new_end_without_a_new_connection() {
    let exports = Growing(R0_BYTES.into());
    let mut out = Vec::new();
    let mut connection = Connection::new(Limits::default(), TlsMode::Off, &mut out);
    let mut feed = |bytes: &[u8]| connection.receive(bytes, &exports, &mut out).1;
    assert_eq!(feed(&CLIENT_FLAGS), Step::NeedMore);
    assert_eq!(feed(&option(EXPORT_NAME, b"r0")), Step::Opened);
    let beyond = request(0, READ, 1, R0_BYTES, 512);
    assert_eq!(feed(&beyond), Step::Answered, "an error");
    exports.0.set(2 * R0_BYTES);
    assert!(matches!(feed(&beyond), Step::Request(_)));
    let last = request(0, READ, 2, 2 * R0_BYTES - 512, 512);
    assert!(matches!(feed(&last), Step::Request(_)));
    let past = request(0, READ, 3, 2 * R0_BYTES - 511, 512);
    assert_eq!(feed(&past), Step::Answered, "an error");
}

#[test]
fn ranges_of_no_bytes_succeed_without_reaching_the_device() {
    for structured in [false, true] {
        let mut session = Session::open("r0", structured);
        for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
            for offset in [0, 5, R0_BYTES] {
                session.feed(&request(FUA, command, 9, offset, 0));
                let content = structured && command == READ;
                let expected = if content {
                    chunk(0, 9, b"")
                } else {
                    simple(0, 9)
                };
                assert_eq!(session.take_out(), expected);
            }
        }
        assert!(session.steps.iter().all(|step| *step == Step::Answered));
    }
    refused("r0", 0, READ, R0_BYTES + 1, 0, EINVAL);
    refused("r0", 0, WRITE, R0_BYTES + 1, 0, ENOSPC);
}

#[test]
fn writes_to_a_read_only_export_are_not_permitted() {
    for command in [WRITE, TRIM, WRITE_ZEROES] {
        refused("backup", 0, command, 0, 512, EPERM);
        refused("backup", FUA, command, 0, 0, EPERM);
    }
    let mut session = Session::open("backup", false);
    for command in [READ, CACHE] {
        session.feed(&request(0, command, 1, 0, 512));
        assert_eq!(last(&session).length, 512);
    }
    session.feed(&request(0, FLUSH, 1, 0, 0));
    assert_eq!(last(&session).command, Command::Flush);
}

/// A session on `r0` whose client may move 4096 bytes at most.
fn small_payloads(structured: bool) -> Session {
    let mut session = Session::new(Limits {
        max_payload_bytes: 4096,
        ..Limits::default()
    });
    session.feed(&CLIENT_FLAGS);
    if structured {
        session.feed(&option(STRUCTURED_REPLY, b""));
    }
    session.feed(&option(EXPORT_NAME, b"r0"));
    session.take_out();
    session
}

#[test]
fn payloads_beyond_the_maximum_are_refused_and_other_lengths_are_not_bound_by_it() {
    let mut session = small_payloads(true);
    session.feed(&request(0, READ, 1, 0, 4096));
    assert_eq!(last(&session).payload_bytes(), 4096);
    let text = "longer than the maximum payload of this server";
    session.feed(&request(0, READ, 1, 0, 4097));
    assert_eq!(session.take_out(), error_chunk(1, EINVAL, text));
    session.feed(&request(DF, READ, 1, 0, 4097));
    assert_eq!(session.take_out(), error_chunk(1, EOVERFLOW, text));
    session.feed(&request(0, WRITE, 1, 0, 4097));
    session.feed(&[0; 4096]);
    assert!(session.out.is_empty());
    session.feed(&[0]);
    assert_eq!(session.take_out(), error_chunk(1, EINVAL, text));
    for command in [TRIM, CACHE, WRITE_ZEROES] {
        session.feed(&request(0, command, 1, 0, 1 << 20));
        assert_eq!(last(&session).length, 1 << 20);
        assert_eq!(last(&session).payload_bytes(), 0);
    }
}

/// A session on `r0/1` (minimum block 512) by GO with these infos.
fn go(infos: &[u16]) -> Session {
    let mut session = Session::new(Limits::default());
    session.feed(&CLIENT_FLAGS);
    session.feed(&option(GO, &question("r0/1", infos)));
    session.take_out();
    session.steps.clear();
    session
}

#[test]
fn the_minimum_block_size_binds_only_clients_that_asked_for_it() {
    let mut session = go(&[3]);
    for (offset, length) in [(1, 512), (0, 511), (512, 1)] {
        session.feed(&request(0, READ, 1, offset, length));
        assert_eq!(session.take_out(), simple(EINVAL, 1));
    }
    session.feed(&request(0, READ, 1, 512, 512));
    assert_eq!(last(&session).offset, 512);

    let mut session = go(&[1]);
    session.feed(&request(0, READ, 1, 1, 1));
    assert_eq!(last(&session).offset, 1);
}

#[test]
fn disconnect_lets_what_is_in_flight_be_answered() {
    let mut session = Session::open("r0", false);
    session.feed(&request(0, READ, 1, 0, 512));
    let pending = last(&session);
    session.feed(&request(0, DISC, 2, 0, 0));
    session.feed(b"whatever comes after");
    assert_eq!(session.steps[1..], [Step::Close(CloseReason::Disconnected)]);
    assert!(session.out.is_empty(), "a disconnect has no reply");
    assert_eq!(session.connection.in_flight(), 1);
    let data_bytes = session
        .connection
        .reply(&pending, Outcome::Done, &mut session.out);
    assert_eq!((session.take_out(), data_bytes), (simple(0, 1), 512));
    assert_eq!(session.connection.in_flight(), 0);
}

#[test]
fn a_bad_magic_ends_the_connection() {
    let mut session = Session::open("r0", false);
    let mut bytes = request(0, READ, 1, 0, 512);
    bytes[0] ^= 1;
    session.feed(&bytes);
    assert_eq!(
        session.steps,
        [Step::Close(CloseReason::BadRequestMagic(0x2460_9513))]
    );
    assert!(!CloseReason::BadRequestMagic(0).is_orderly());
}

#[test]
fn a_server_that_shuts_down_refuses_requests_and_skips_their_payload() {
    let mut session = Session::open("r0", true);
    session.feed(&request(0, WRITE, 1, 0, 512));
    let pending = last(&session);
    session.feed(&[1; 512]);
    session.connection.shut_down();
    session.feed(&request(0, WRITE, 2, 0, 512));
    session.feed(&[1; 512]);
    session.feed(&request(0, FLUSH, 3, 0, 0));
    let text = "the server is shutting down";
    let expected = [
        error_chunk(2, ESHUTDOWN, text),
        error_chunk(3, ESHUTDOWN, text),
    ]
    .concat();
    assert_eq!(session.take_out(), expected);
    assert_eq!(
        session
            .connection
            .reply(&pending, Outcome::Done, &mut session.out),
        0
    );
    assert_eq!(session.connection.in_flight(), 0);
}

#[test]
fn a_payload_that_the_driver_does_not_want_is_skipped() {
    let mut session = Session::open("r0", false);
    let write = request(0, WRITE, 1, 0, 1000);
    let (taken, step) = session
        .connection
        .receive(&write, &Catalog, &mut session.out);
    let Step::Write(taken_request) = step else {
        panic!("{step:?}")
    };
    assert_eq!(taken, write.len());
    let refused = Outcome::Failed(NbdError::NoMemory);
    assert_eq!(
        session
            .connection
            .reply(&taken_request, refused, &mut session.out),
        0
    );
    session.connection.skip_payload(1000);
    session.feed(&[0x55; 999]);
    assert!(session.steps.is_empty());
    session.feed(&[&[0x55][..], &request(0, FLUSH, 2, 0, 0)].concat());
    assert_eq!(last(&session).cookie, 2);
    assert_eq!(session.take_out(), simple(12, 1));
}

#[test]
fn no_more_is_taken_than_the_limits_of_what_is_in_flight_allow() {
    let limits = Limits {
        max_in_flight: 3,
        max_in_flight_bytes: 10_000,
        ..Limits::default()
    };
    let mut session = Session::new(limits);
    session.feed(&CLIENT_FLAGS);
    session.feed(&option(EXPORT_NAME, b"r0"));
    session.steps.clear();

    let flush = request(0, FLUSH, 1, 0, 0);
    session.feed(&flush.repeat(5));
    assert_eq!(session.connection.in_flight(), 3);
    let (taken, step) = session
        .connection
        .receive(&flush, &Catalog, &mut session.out);
    assert_eq!((taken, step), (0, Step::AtLimit));
    for step in std::mem::take(&mut session.steps) {
        let Step::Request(request) = step else {
            panic!("{step:?}")
        };
        assert_eq!(
            session
                .connection
                .reply(&request, Outcome::Done, &mut session.out),
            0
        );
    }

    let read = request(0, READ, 1, 0, 6000);
    session.feed(&read.repeat(3));
    assert_eq!(
        session.connection.in_flight(),
        2,
        "one may go over the limit, none beyond"
    );
    let first = last(&session);
    let _data = session
        .connection
        .reply(&first, Outcome::Done, &mut session.out);
    session.feed(&read);
    assert_eq!(session.connection.in_flight(), 2);
}

#[test]
fn a_client_that_never_reads_its_replies_is_not_served_on() {
    let mut session = Session::open("r0", false);
    let bad = request(0, 99, 1, 0, 0);
    session.feed(&bad.repeat(100_000));
    assert!(session.out.len() < (256 << 10) + 64);
    let at_limit = session.connection.receive(&bad, &Catalog, &mut session.out);
    assert_eq!(at_limit, (0, Step::AtLimit));
}
