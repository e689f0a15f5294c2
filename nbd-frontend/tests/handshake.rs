//! The handshake, byte by byte: every message that this server sends, and its answer to every
//! option, good and bad.

mod common;

use common::message::*;
use common::session::Session;
use common::{Catalog, R0_BYTES};
use nbd_frontend::{CloseReason, Limits, Step};

/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
const R0_FLAGS: u16 = 0b1101_0110_1101;

fn haggling() -> Session {
    let mut session = Session::new(Limits::default());
    assert_eq!(session.take_out(), GREETING);
    session.feed(&CLIENT_FLAGS);
    session
}

/// Sends one option and gives back the answer.
fn ask(session: &mut Session, number: u32, data: &[u8]) -> Vec<u8> {
    session.feed(&option(number, data));
    session.take_out()
}

fn info_export(number: u32, size_bytes: u64, flags: u16) -> Vec<u8> {
    let data = [&[0, 0], &size_bytes.to_be_bytes()[..], &flags.to_be_bytes()].concat();
    option_reply(number, REP_INFO, &data)
}

fn error(number: u32, kind: u32, message: &str) -> Vec<u8> {
    option_reply(number, kind, message.as_bytes())
}

#[test]
fn server_speaks_first_with_the_fixed_newstyle_greeting() {
    let mut session = Session::new(Limits::default());
    assert_eq!(session.take_out(), GREETING);
    assert_eq!(GREETING.len(), 18);
}

#[test]
fn known_client_flags_are_taken_and_unknown_ones_end_the_connection() {
    for flags in 0..4 {
        let mut session = Session::new(Limits::default());
        session.feed(&[0, 0, 0, flags]);
        assert!(session.steps.is_empty());
    }
    for flags in [4_u32, 1 << 31, 0x0100_0001] {
        let mut session = Session::new(Limits::default());
        session.take_out();
        session.feed(&flags.to_be_bytes());
        assert_eq!(
            session.steps,
            [Step::Close(CloseReason::UnknownClientFlags(flags))]
        );
        assert!(session.out.is_empty());
    }
}

#[test]
fn garbage_instead_of_an_option_ends_the_connection() {
    let mut session = haggling();
    session.feed(b"GET / HTTP/1.1\r\n\r\n");
    let magic = u64::from_be_bytes(*b"GET / HT");
    assert_eq!(
        session.steps,
        [Step::Close(CloseReason::BadOptionMagic(magic))]
    );
    session.feed(&option(LIST, b""));
    assert_eq!(
        session.steps.len(),
        1,
        "nothing revives a closed connection"
    );
    assert!(session.out.is_empty());
}

#[test]
fn export_name_answers_size_flags_and_padding() {
    let mut session = Session::new(Limits::default());
    session.take_out();
    session.feed(&[0, 0, 0, 1]);
    let answer = ask(&mut session, EXPORT_NAME, b"r0");
    let mut expected = R0_BYTES.to_be_bytes().to_vec();
    expected.extend_from_slice(&R0_FLAGS.to_be_bytes());
    expected.resize(134, 0);
    assert_eq!(answer, expected);
    assert_eq!(session.steps, [Step::Opened]);
    assert_eq!(session.connection.export().unwrap().name, "r0");
}

#[test]
fn export_name_leaves_the_padding_out_for_clients_that_do_without() {
    let mut session = haggling();
    let answer = ask(&mut session, EXPORT_NAME, b"");
    assert_eq!(
        answer,
        [&R0_BYTES.to_be_bytes()[..], &R0_FLAGS.to_be_bytes()].concat()
    );
    assert_eq!(
        session.connection.export().unwrap().name,
        "r0",
        "the default export"
    );
}

#[test]
fn export_name_that_cannot_be_had_ends_the_connection() {
    let long = "x".repeat(4097);
    for name in [
        &b"nothing"[..],
        b"elsewhere",
        b"leaving",
        b"\xff",
        b"r0\0",
        long.as_bytes(),
    ] {
        let mut session = haggling();
        assert_eq!(ask(&mut session, EXPORT_NAME, name), b"");
        assert_eq!(session.steps, [Step::Close(CloseReason::ExportRefused)]);
    }
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection_even_with_data() {
    let too_long = vec![7; 70_000];
    for data in [&b""[..], b"good bye", &too_long] {
        let mut session = haggling();
        assert_eq!(
            ask(&mut session, ABORT, data),
            option_reply(ABORT, ACK, b"")
        );
        assert_eq!(session.steps, [Step::Close(CloseReason::Aborted)]);
        assert!(CloseReason::Aborted.is_orderly());
    }
}

#[test]
fn list_names_every_export_with_its_description() {
    let mut session = haggling();
    let expected = [
        option_reply(LIST, SERVER, b"\0\0\0\x02r0a mirrored disk"),
        option_reply(LIST, SERVER, b"\0\0\0\x04r0/1"),
        option_reply(LIST, SERVER, b"\0\0\0\x06backup"),
        option_reply(LIST, ACK, b""),
    ];
    assert_eq!(ask(&mut session, LIST, b""), expected.concat());
    let refused = error(LIST, ERR_INVALID, "this option takes no data");
    assert_eq!(ask(&mut session, LIST, b"x"), refused);
    assert_eq!(
        ask(&mut session, LIST, b""),
        expected.concat(),
        "and the stream is in step"
    );
}

#[test]
fn info_and_go_answer_the_same() {
    let infos = [3, 1, 2, 1, 0, 4711];
    let answer = |number| {
        [
            info_export(number, R0_BYTES, R0_FLAGS),
            option_reply(number, REP_INFO, b"\0\x01r0"),
            option_reply(number, REP_INFO, b"\0\x02a mirrored disk"),
            option_reply(number, REP_INFO, b"\0\x03\0\0\0\x01\0\0\x10\0\x04\0\0\0"),
            option_reply(number, ACK, b""),
        ]
        .concat()
    };
    let mut session = haggling();
    assert_eq!(ask(&mut session, INFO, &question("", &infos)), answer(INFO));
    assert_eq!(session.steps, [Step::Answered]);
    assert_eq!(ask(&mut session, GO, &question("", &infos)), answer(GO));
    assert_eq!(session.steps, [Step::Answered, Step::Opened]);
}

#[test]
fn infos_come_only_when_asked_for_and_when_there_is_something_to_say() {
    let mut session = haggling();
    let flags = 0b0100_0111_1101; // as r0, rotational, without MULTI_CONN and FAST_ZERO
    let bare = [
        info_export(INFO, R0_BYTES, flags & !0x100),
        option_reply(INFO, ACK, b""),
    ]
    .concat();
    assert_eq!(ask(&mut session, INFO, &question("r0/1", &[])), bare);
    assert_eq!(
        ask(&mut session, INFO, &question("r0/1", &[2])),
        bare,
        "no description"
    );
}

#[test]
fn a_read_only_export_offers_nothing_that_writes() {
    let mut session = haggling();
    // HAS_FLAGS, READ_ONLY, FLUSH, FUA, CACHE
    let expected = [
        info_export(INFO, R0_BYTES, 0b100_0000_1111),
        option_reply(INFO, ACK, b""),
    ];
    assert_eq!(
        ask(&mut session, INFO, &question("backup", &[])),
        expected.concat()
    );
}

#[test]
fn structured_replies_bring_the_dont_fragment_flag() {
    let mut session = haggling();
    let ack = option_reply(STRUCTURED_REPLY, ACK, b"");
    assert_eq!(ask(&mut session, STRUCTURED_REPLY, b""), ack);
    assert_eq!(
        ask(&mut session, STRUCTURED_REPLY, b""),
        ack,
        "twice changes nothing"
    );
    assert_eq!(
        ask(&mut session, STRUCTURED_REPLY, b"1"),
        error(STRUCTURED_REPLY, ERR_INVALID, "this option takes no data")
    );
    let expected = [
        info_export(GO, R0_BYTES, R0_FLAGS | 1 << 7),
        option_reply(GO, ACK, b""),
    ]
    .concat();
    assert_eq!(ask(&mut session, GO, &question("r0", &[])), expected);
}

#[test]
fn exports_that_cannot_be_had_are_refused_with_the_reason_and_haggling_goes_on() {
    let mut session = haggling();
    for number in [INFO, GO] {
        for (name, kind, text) in [
            (
                "r1",
                ERR_UNKNOWN,
                "there is no export named \"r1\" here; exports: r0, r0/1, backup",
            ),
            (
                "elsewhere",
                ERR_POLICY,
                "export \"elsewhere\" cannot be opened here: its primary is node2; connect there",
            ),
            (
                "leaving",
                ERR_SHUTDOWN,
                "this server is shutting down; connect to another one",
            ),
        ] {
            let answer = ask(&mut session, number, &question(name, &[]));
            assert_eq!(answer, error(number, kind, text));
        }
    }
    ask(&mut session, GO, &question("r0", &[]));
    assert_eq!(session.steps.last(), Some(&Step::Opened));
}

#[test]
fn malformed_info_and_go_are_invalid_and_leave_the_stream_in_step() {
    let good = question("r0", &[3, 1]);
    let mut session = haggling();
    for number in [INFO, GO] {
        for length in 0..good.len() {
            let answer = ask(&mut session, number, &good[..length]);
            assert_eq!(
                answer,
                error(number, ERR_INVALID, "the option's data ends too early")
            );
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(
            ask(&mut session, number, &longer),
            error(
                number,
                ERR_INVALID,
                "the option's data is longer than its contents"
            )
        );
        let huge_name = [&u32::MAX.to_be_bytes()[..], b"r0\0\0"].concat();
        assert_eq!(
            ask(&mut session, number, &huge_name),
            error(number, ERR_INVALID, "the option's data ends too early")
        );
        let long = question(&"x".repeat(4097), &[]);
        assert_eq!(
            ask(&mut session, number, &long),
            error(
                number,
                ERR_INVALID,
                "the export's name is longer than 4096 bytes"
            )
        );
        assert_eq!(
            ask(&mut session, number, b"\0\0\0\x01\xff\0\0"),
            error(number, ERR_INVALID, "the export's name is not UTF-8")
        );
        assert_eq!(
            ask(&mut session, number, b"\0\0\0\x01\0\0\0"),
            error(
                number,
                ERR_INVALID,
                "the export's name contains a NUL character"
            )
        );
    }
    ask(&mut session, GO, &good);
    assert_eq!(session.steps.last(), Some(&Step::Opened));
}

#[test]
fn unknown_and_withdrawn_options_are_unsupported() {
    let mut session = haggling();
    for number in [0, PEEK_EXPORT, 12, 0x7fff_ffff, u32::MAX] {
        let text = format!("option {number} is not supported by this server");
        let expected = error(number, ERR_UNSUP, &text);
        assert_eq!(ask(&mut session, number, b"any data"), expected);
    }
    assert!(session.steps.iter().all(|step| *step == Step::Answered));
}

#[test]
fn data_that_is_too_long_is_skipped_and_refused_without_being_kept() {
    let mut session = haggling();
    for number in [INFO, LIST, 4711] {
        let text = "the option's data is longer than 65536 bytes";
        let answer = ask(&mut session, number, &vec![1; 65_537]);
        assert_eq!(answer, error(number, ERR_TOO_BIG, text));
    }
    let fits = ask(&mut session, 4711, &vec![1; 65_536]);
    assert_eq!(
        fits,
        error(
            4711,
            ERR_UNSUP,
            "option 4711 is not supported by this server"
        )
    );
}

#[test]
fn a_handshake_without_end_is_ended() {
    let mut session = Session::new(Limits {
        max_options: 3,
        ..Limits::default()
    });
    session.feed(&CLIENT_FLAGS);
    for _ in 0..3 {
        session.feed(&option(LIST, b""));
    }
    session.take_out();
    let text = "too many options on one connection; connect again";
    assert_eq!(ask(&mut session, LIST, b""), error(LIST, ERR_POLICY, text));
    assert_eq!(
        session.steps.last(),
        Some(&Step::Close(CloseReason::TooManyOptions))
    );
}

#[test]
fn a_client_that_asks_and_never_reads_is_not_answered_on() {
    let mut session = Session::new(Limits {
        max_unsent_bytes: 1000,
        ..Limits::default()
    });
    session.feed(&CLIENT_FLAGS);
    for _ in 0..100 {
        session.feed(&option(LIST, b""));
    }
    assert!(session.out.len() < 1200, "{} bytes wait", session.out.len());
    let at_limit = session
        .connection
        .receive(b"IHAVEOPT", &Catalog, &mut session.out);
    assert_eq!(at_limit, (0, Step::AtLimit));
    session.take_out();
    let goes_on = session
        .connection
        .receive(&option(LIST, b""), &Catalog, &mut session.out);
    assert_eq!(goes_on, (16, Step::Answered));
}

#[test]
fn a_server_that_shuts_down_refuses_options_and_still_acknowledges_abort() {
    let mut session = haggling();
    session.connection.shut_down();
    let text = "this server is shutting down; connect to another one";
    for number in [LIST, GO, STRUCTURED_REPLY, 4711] {
        assert_eq!(
            ask(&mut session, number, b"x"),
            error(number, ERR_SHUTDOWN, text)
        );
    }
    assert_eq!(ask(&mut session, ABORT, b""), option_reply(ABORT, ACK, b""));

    let mut session = haggling();
    session.connection.shut_down();
    session.feed(&option(EXPORT_NAME, b"r0"));
    assert_eq!(session.steps, [Step::Close(CloseReason::ExportRefused)]);
}
