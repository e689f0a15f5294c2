//! Metadata contexts and BLOCK_STATUS, byte by byte, and the holes of READs.

mod common;

use common::R0_BYTES;
use common::message::*;
use common::session::Session;
use nbd_frontend::{Contexts, Extent, HOLE, Limits, Request, Step, ZERO};

const BOTH: [&str; 2] = ["base:allocation", "x-test:odd"];

fn haggling(structured: bool) -> Session {
    let mut session = Session::new(Limits::default());
    session.feed(&CLIENT_FLAGS);
    if structured {
        session.feed(&option(STRUCTURED_REPLY, b""));
    }
    session.take_out();
    session
}

fn ask(session: &mut Session, number: u32, data: &[u8]) -> Vec<u8> {
    session.feed(&option(number, data));
    session.take_out()
}

fn context(number: u32, id: u32, name: &str) -> Vec<u8> {
    let data = [&id.to_be_bytes()[..], name.as_bytes()].concat();
    option_reply(number, META_CONTEXT, &data)
}

fn ack(number: u32) -> Vec<u8> {
    option_reply(number, ACK, b"")
}

fn invalid(number: u32, text: &str) -> Vec<u8> {
    option_reply(number, ERR_INVALID, text.as_bytes())
}

/// In the transmission phase of `r0` with these contexts.
fn open(contexts: &[&str]) -> Session {
    Session::after(&[
        (STRUCTURED_REPLY, Vec::new()),
        (SET_META_CONTEXT, meta_question("r0", contexts)),
    ])
}

fn last(session: &Session) -> Request {
    match session.steps.last() {
        Some(Step::Request(request)) => *request,
        step => panic!("not a request: {step:?}"),
    }
}

fn extents(of: &[(u64, u32)]) -> Vec<Extent> {
    let extent = |(length, flags): &(u64, u32)| Extent {
        length: *length,
        flags: *flags,
    };
    of.iter().map(extent).collect()
}

fn status(session: &mut Session, flags: u16, length: u32, answer: &[(u64, u32)]) -> Vec<u8> {
    session.feed(&request(flags, BLOCK_STATUS, 9, 4096, length));
    let asked = last(session);
    let answers = [(0, extents(answer))];
    session
        .connection
        .reply_status(&asked, &answers, &mut session.out);
    assert_eq!(session.connection.in_flight(), 0);
    session.take_out()
}

fn status_chunk(extents: &[(u32, u32)]) -> Vec<u8> {
    let mut data = vec![0, 0, 0, 1];
    for (length, flags) in extents {
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(&flags.to_be_bytes());
    }
    chunk(5, 9, &data)
}

fn expect_invalid(session: &mut Session, message: &[u8], text: &str) {
    session.feed(message);
    assert_eq!(session.steps.last(), Some(&Step::Answered));
    assert_eq!(session.take_out(), error_chunk(9, EINVAL, text));
    session.feed(&request(0, READ, 1, 0, 512));
    assert!(
        matches!(session.steps.last(), Some(Step::Request(_))),
        "out of step"
    );
}

#[test]
fn list_shows_all_contexts_or_those_of_the_queries() {
    let number = LIST_META_CONTEXT;
    let base = context(number, 0, "base:allocation");
    let odd = context(number, 0, "x-test:odd");
    for (queries, shown) in [
        (&[][..], &[&base, &odd][..]),
        (&["base:"], &[&base]),
        (&["x-test:"], &[&odd]),
        (&["x-test:odd", "base:allocation"], &[&base, &odd]),
        (&["base:allocation", "base:", "base:allocation"], &[&base]),
        (
            &[
                "base",
                "x-test:o",
                "qemu:dirty-bitmap:b",
                "",
                ":",
                "\u{e9}:",
            ],
            &[],
        ),
    ] {
        let mut session = haggling(true);
        let mut expected: Vec<u8> = shown.iter().copied().flatten().copied().collect();
        expected.extend_from_slice(&ack(number));
        let answer = ask(&mut session, number, &meta_question("r0", queries));
        assert_eq!(answer, expected, "{queries:?}");
    }
    // An export without contexts.
    let mut session = haggling(true);
    assert_eq!(
        ask(&mut session, number, &meta_question("backup", &[])),
        ack(number)
    );
}

#[test]
fn set_selects_what_is_named_in_full_and_replaces_what_was_selected() {
    let number = SET_META_CONTEXT;
    let mut session = haggling(true);
    let answer = ask(
        &mut session,
        number,
        &meta_question("r0", &["base:", "x-test:"]),
    );
    assert_eq!(answer, ack(number), "a namespace selects nothing");
    let twice = [
        "x-test:odd",
        "nobody:knows",
        "base:allocation",
        "x-test:odd",
    ];
    let answer = ask(&mut session, number, &meta_question("r0", &twice));
    let both = [
        context(number, 1, "base:allocation"),
        context(number, 2, "x-test:odd"),
        ack(number),
    ];
    assert_eq!(answer, both.concat());
    let answer = ask(&mut session, number, &meta_question("", &["x-test:odd"]));
    assert_eq!(
        answer,
        [context(number, 2, "x-test:odd"), ack(number)].concat()
    );
    ask(&mut session, GO, &question("r0", &[]));
    session.feed(&request(0, BLOCK_STATUS, 9, 0, 512));
    assert_eq!(last(&session).contexts, Contexts::from_bits(0b10));
}

#[test]
fn a_selection_is_gone_after_an_error_and_holds_for_its_export_only() {
    let text = "no metadata context was selected for this export";
    let select = (SET_META_CONTEXT, meta_question("r0", &BOTH));
    let structured = (STRUCTURED_REPLY, Vec::new());
    for spoilt in [
        vec![structured.clone()],
        vec![
            structured.clone(),
            (SET_META_CONTEXT, meta_question("r0", &[])),
        ],
        vec![
            structured.clone(),
            select.clone(),
            (SET_META_CONTEXT, meta_question("nothing", &BOTH)),
        ],
        vec![
            structured.clone(),
            select.clone(),
            (SET_META_CONTEXT, b"rubbish".to_vec()),
        ],
        vec![structured, (SET_META_CONTEXT, meta_question("r0/1", &BOTH))],
    ] {
        let mut session = Session::after(&spoilt);
        expect_invalid(&mut session, &request(0, BLOCK_STATUS, 9, 0, 512), text);
    }
}

#[test]
fn both_options_need_structured_replies_first() {
    let text = "metadata contexts need structured replies or extended headers first";
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let mut session = haggling(false);
        let answer = ask(&mut session, number, &meta_question("r0", &BOTH));
        assert_eq!(answer, invalid(number, text));
    }
    let mut session = Session::open("r0", false);
    session.feed(&request(0, BLOCK_STATUS, 9, 0, 512));
    assert_eq!(session.take_out(), simple(EINVAL, 9));
}

#[test]
fn malformed_questions_are_invalid_and_leave_the_stream_in_step() {
    let good = meta_question("r0", &BOTH);
    let mut many = meta_question("r0", &[]);
    let count = many.len() - 4;
    many[count..].copy_from_slice(&u32::MAX.to_be_bytes());
    let long = "x".repeat(4097);
    let short = "the option's data ends too early";
    let cases = [
        (good[..good.len() - 1].to_vec(), short),
        (good[..5].to_vec(), short),
        (Vec::new(), short),
        (many, short),
        (u32::MAX.to_be_bytes().to_vec(), short),
        (
            [&good[..], b"trailing"].concat(),
            "the option's data is longer than its contents",
        ),
        (
            meta_question("r0", &[&long]),
            "a query is longer than 4096 bytes",
        ),
        (
            meta_question(&long, &[]),
            "the export's name is longer than 4096 bytes",
        ),
        (
            meta_question("r0\0", &[]),
            "the export's name contains a NUL character",
        ),
    ];
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let mut session = haggling(true);
        for (data, text) in &cases {
            assert_eq!(ask(&mut session, number, data), invalid(number, text));
        }
        let answer = ask(&mut session, number, &meta_question("nothing", &[]));
        assert_eq!(answer[12..16], ERR_UNKNOWN.to_be_bytes());
        ask(&mut session, GO, &question("r0", &[]));
        assert_eq!(session.steps.last(), Some(&Step::Opened));
    }
}

#[test]
fn block_status_byte_by_byte() {
    let mut session = open(&["base:allocation"]);
    let two = status(&mut session, 0, 8192, &[(4096, HOLE | ZERO), (4096, 0)]);
    assert_eq!(two, status_chunk(&[(4096, 3), (4096, 0)]));
    // Neighbours of one status are one; nothing goes beyond the question.
    let cut = [(1000, 1), (3000, 1), (96, 1), (1 << 40, 0), (5, 1)];
    assert_eq!(
        status(&mut session, 0, 8192, &cut),
        status_chunk(&[(4096, 1), (4096, 0)])
    );
    // Less than was asked for is an answer too.
    assert_eq!(
        status(&mut session, 0, 8192, &[(512, 0)]),
        status_chunk(&[(512, 0)])
    );
    // One extent, not longer than the question.
    assert_eq!(
        status(&mut session, REQ_ONE, 8192, &cut),
        status_chunk(&[(4096, 1)])
    );
    let long = [(u64::MAX, 2)];
    assert_eq!(
        status(&mut session, REQ_ONE, 8192, &long),
        status_chunk(&[(8192, 2)])
    );
    // FUA may stand on any command.
    session.feed(&request(FUA | REQ_ONE, BLOCK_STATUS, 9, 0, 512));
    assert!(last(&session).flags.req_one());
}

#[test]
fn block_status_has_a_chunk_for_each_context_and_the_last_ends_the_reply() {
    let mut session = open(&BOTH);
    session.feed(&request(0, BLOCK_STATUS, 9, 0, 512));
    let asked = last(&session);
    assert_eq!(asked.contexts.places().collect::<Vec<_>>(), [0, 1]);
    let answers = [
        (0, extents(&[(512, 3)])),
        (1, extents(&[(100, 1), (412, 0)])),
    ];
    session
        .connection
        .reply_status(&asked, &answers, &mut session.out);
    let base = [[0, 0, 0, 1], [0, 0, 2, 0], [0, 0, 0, 3]].concat();
    let odd = [
        [0, 0, 0, 2],
        [0, 0, 0, 100],
        [0, 0, 0, 1],
        [0, 0, 1, 156],
        [0; 4],
    ]
    .concat();
    let expected = [chunk_of(false, 5, 9, &base), chunk(5, 9, &odd)].concat();
    assert_eq!(session.take_out(), expected);
}

#[test]
fn block_status_is_refused_where_it_makes_no_sense() {
    let outside = "the range goes past the end of the export";
    let size = u32::try_from(R0_BYTES).unwrap();
    for (flags, offset, length, text) in [
        (0, R0_BYTES, 1, outside),
        (0, 1, size, outside),
        (0, u64::MAX, 1, outside),
        (0, 0, 0, "a block status of no bytes"),
        (
            DF,
            0,
            1,
            "a flag is unknown or does not apply to the command",
        ),
        (
            PAYLOAD_LEN,
            0,
            1,
            "a flag is unknown or does not apply to the command",
        ),
    ] {
        let mut session = open(&BOTH);
        let message = request(flags, BLOCK_STATUS, 9, offset, length);
        expect_invalid(&mut session, &message, text);
    }
    // REQ_ONE belongs to no other command.
    let mut session = open(&BOTH);
    let text = "a flag is unknown or does not apply to the command";
    expect_invalid(&mut session, &request(REQ_ONE, READ, 9, 0, 512), text);
}

/// Reads and answers with these bytes; gives back the whole reply.
fn read(session: &mut Session, flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    session.feed(&request(flags, READ, 9, offset, length));
    let asked = last(session);
    let mut from = 0;
    loop {
        let piece = session
            .connection
            .reply_piece(&asked, data, from, &mut session.out);
        session.out.extend_from_slice(&data[piece.send]);
        match piece.next {
            Some(next) => {
                assert!(next > from, "no progress");
                from = next;
            }
            None => break,
        }
    }
    assert_eq!(session.connection.in_flight(), 0);
    session.take_out()
}

fn data_chunk(done: bool, offset: u64, data: &[u8]) -> Vec<u8> {
    chunk_of(done, 1, 9, &[&offset.to_be_bytes()[..], data].concat())
}

fn hole_chunk(done: bool, offset: u64, length: u32) -> Vec<u8> {
    chunk_of(
        done,
        2,
        9,
        &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat(),
    )
}

#[test]
fn reads_bring_holes_where_longer_runs_of_zeroes_are() {
    const KIB: usize = 1024;
    let mut session = open(&[]);
    // Nothing but zeroes, of any length.
    assert_eq!(
        read(&mut session, 0, 512, &[0; 512]),
        hole_chunk(true, 512, 512)
    );
    assert_eq!(
        read(&mut session, DF, 0, &[0; 4096]),
        hole_chunk(true, 0, 4096)
    );
    // Nothing but data.
    assert_eq!(
        read(&mut session, 0, 3, &[7; 5000]),
        data_chunk(true, 3, &[7; 5000])
    );
    // Data, a hole, data, short zeroes, a hole at the end.
    let mut data = vec![7; 96 * KIB];
    data[8 * KIB..40 * KIB].fill(0);
    data[48 * KIB..56 * KIB].fill(0);
    data[64 * KIB..].fill(0);
    let expected = [
        data_chunk(false, 4096, &data[..8 * KIB]),
        hole_chunk(false, 4096 + 8 * 1024, 32 * 1024),
        data_chunk(false, 4096 + 40 * 1024, &data[40 * KIB..64 * KIB]),
        hole_chunk(true, 4096 + 64 * 1024, 32 * 1024),
    ];
    assert_eq!(read(&mut session, 0, 4096, &data), expected.concat());
    // Not to be split.
    assert_eq!(
        read(&mut session, DF, 4096, &data),
        data_chunk(true, 4096, &data)
    );
    // Blocks are those of the device: the zeroes begin within one.
    let mut data = vec![0; 32 * KIB];
    data[..100].fill(7);
    let expected = [
        data_chunk(false, 512, &data[..3584]),
        hole_chunk(true, 4096, 29_184),
    ];
    assert_eq!(read(&mut session, 0, 512, &data), expected.concat());
    // A client that takes no chunks gets everything.
    let mut plain = Session::open("r0", false);
    let data = vec![0; 20 * KIB];
    assert_eq!(read(&mut plain, 0, 0, &data), [simple(0, 9), data].concat());
}
