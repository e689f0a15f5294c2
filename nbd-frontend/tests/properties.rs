//! Promises that hold for every stream of bytes: where it is split changes nothing, nothing panics,
//! nothing is taken that was not given, and memory stays bounded.

mod common;

use common::message::{self, extended, meta_question, option, question, request};
use common::session::Session;
use nbd_frontend::{Limits, Step, TlsMode};
use proptest::collection::vec;
use proptest::prelude::*;

/// Small limits, so that small inputs go beyond them.
fn limits() -> Limits {
    Limits {
        max_payload_bytes: 600,
        max_option_bytes: 90,
        max_options: 20,
        ..Limits::default()
    }
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just(""),
        Just("r0"),
        Just("r0/1"),
        Just("backup"),
        Just("nope")
    ];
    let any_option = (0_u32..13, vec(any::<u8>(), 0..80)).prop_map(|(n, data)| option(n, &data));
    let meta_option = (
        prop_oneof![Just("r0"), Just(""), Just("nope")],
        vec(
            prop_oneof![
                Just("base:"),
                Just("base:allocation"),
                Just("x-test:odd"),
                Just("x")
            ],
            0..3,
        ),
        9_u32..11,
    )
        .prop_map(|(name, queries, number)| option(number, &meta_question(name, &queries)));
    let bare_option = prop_oneof![Just(5_u32), Just(8), Just(11)].prop_map(|n| option(n, b""));
    let extended_request = (
        0_u16..64,
        0_u16..10,
        any::<u64>(),
        0_u64..1_100_000,
        prop_oneof![0_u64..700, Just(1 << 20), Just(u64::MAX)],
        vec(0_u32..4, 0..4),
    )
        .prop_map(|(flags, command, cookie, offset, length, ids)| {
            let mut payload: Vec<u8> = length.to_be_bytes().to_vec();
            for id in ids {
                payload.extend_from_slice(&id.to_be_bytes());
            }
            let has_payload = flags & message::PAYLOAD_LEN != 0 || command == message::WRITE;
            let is_status = has_payload && command == message::BLOCK_STATUS;
            let length = match length {
                _ if is_status => u64::try_from(payload.len()).unwrap(),
                length => length,
            };
            let mut bytes = extended(flags, command, cookie, offset, length);
            if is_status {
                bytes.extend_from_slice(&payload);
            } else if has_payload && length < 1000 {
                bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0x5a);
            }
            bytes
        });
    let good_option = (name, vec(0_u16..5, 0..4), prop_oneof![Just(6_u32), Just(7)])
        .prop_map(|(name, infos, number)| option(number, &question(name, &infos)));
    let any_request = (
        0_u16..64,
        0_u16..10,
        any::<u64>(),
        0_u64..1_100_000,
        0_u32..700,
    )
        .prop_map(|(flags, command, cookie, offset, length)| {
            let mut bytes = request(flags, command, cookie, offset, length);
            if command == message::WRITE {
                bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0x5a);
            }
            bytes
        });
    let good_request = (0_u16..2, 0_u16..7, any::<u64>(), 0_u64..2048, 1_u32..600)
        .prop_filter("DISC ends everything", |(_, command, ..)| {
            *command != message::DISC
        })
        .prop_map(|(flags, command, cookie, offset, length)| {
            let (offset, length) = if command == message::FLUSH {
                (0, 0)
            } else {
                (offset * 512, length)
            };
            let mut bytes = request(flags, command, cookie, offset, length);
            if command == message::WRITE {
                bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0xa5);
            }
            bytes
        });
    prop_oneof![
        2 => any_option,
        2 => good_option,
        2 => meta_option,
        2 => bare_option,
        4 => extended_request,
        3 => any_request,
        6 => good_request,
        1 => vec(any::<u8>(), 0..40),
    ]
}

/// A stream that gets somewhere: flags, perhaps structured replies, perhaps an export, messages.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    (
        any::<bool>(),
        0..3,
        any::<bool>(),
        any::<bool>(),
        vec(message(), 0..20),
    )
        .prop_map(|(zeroes, replies, contexts, open, messages)| {
            let mut bytes = vec![0, 0, 0, if zeroes { 1 } else { 3 }];
            match replies {
                0 => {}
                1 => bytes.extend_from_slice(&option(message::STRUCTURED_REPLY, b"")),
                _ => bytes.extend_from_slice(&option(message::EXTENDED_HEADERS, b"")),
            }
            if contexts {
                let both = meta_question("r0", &common::CONTEXTS);
                bytes.extend_from_slice(&option(message::SET_META_CONTEXT, &both));
            }
            if open {
                bytes.extend_from_slice(&option(message::GO, &question("r0", &[3])));
            }
            bytes.extend_from_slice(&messages.concat());
            bytes
        })
}

fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Session {
    let mut session = Session::with_tls(limits(), TlsMode::On);
    session.serving = true;
    for piece in pieces {
        session.feed(piece);
    }
    session
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn where_the_stream_is_split_changes_nothing(
        bytes in stream(),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let whole = run([&bytes[..]]);
        let single = run(bytes.chunks(1));
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        ends.push(0);
        ends.push(bytes.len());
        ends.sort_unstable();
        let split = run(ends.windows(2).map(|pair| &bytes[pair[0]..pair[1]]));
        for other in [&single, &split] {
            prop_assert_eq!(&whole.steps, &other.steps);
            prop_assert_eq!(&whole.payload, &other.payload);
            prop_assert_eq!(&whole.sent, &other.sent);
            prop_assert_eq!(&whole.out, &other.out);
        }
    }

    #[test]
    fn garbage_is_survived_in_bounded_memory(bytes in vec(any::<u8>(), 0..2000)) {
        let session = run(bytes.chunks(100));
        // Every message of at least 16 bytes gets at most the list of exports.
        prop_assert!(session.sent.len() + session.out.len() <= 64 + bytes.len() * 20);
    }

    #[test]
    fn damaged_streams_are_survived(
        mut bytes in stream(),
        hits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        for (place, value) in hits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let session = run([&bytes[..]]);
        prop_assert!(session.connection.in_flight() == 0);
    }

    #[test]
    fn requests_that_are_handed_out_lie_inside_the_export(
        flags in any::<u16>(),
        command in 0_u16..9,
        offset in prop_oneof![any::<u64>(), 0_u64..1_100_000],
        length in prop_oneof![any::<u32>(), 0_u32..5000],
        wide in any::<bool>(),
    ) {
        let replies = if wide { message::EXTENDED_HEADERS } else { message::STRUCTURED_REPLY };
        let mut session = Session::after(&[
            (replies, Vec::new()),
            (message::SET_META_CONTEXT, meta_question("r0", &common::CONTEXTS)),
        ]);
        if wide {
            session.feed(&extended(flags, command, 1, offset, length.into()));
        } else {
            session.feed(&request(flags, command, 1, offset, length));
        }
        for step in &session.steps {
            if let Step::Request(taken) | Step::Write(taken) = step {
                prop_assert!(taken.offset + taken.length <= common::R0_BYTES);
                prop_assert!(taken.payload_bytes() <= nbd_frontend::MAX_PAYLOAD_BYTES);
                prop_assert_eq!(taken.offset, offset);
                prop_assert_eq!(taken.length, u64::from(length));
            }
        }
    }

    #[test]
    fn after_any_option_the_next_one_is_understood(
        number in 0_u32..16,
        replies in 0..3,
        data in prop_oneof![
            vec(any::<u8>(), 0..200),
            (vec(any::<u8>(), 0..20), 0_u32..40, vec(any::<u8>(), 0..60)).prop_map(
                |(name, count, rest)| {
                    let length = u32::try_from(name.len()).unwrap();
                    [&length.to_be_bytes()[..], &name, &count.to_be_bytes(), &rest].concat()
                }
            ),
        ],
    ) {
        let mut session = Session::with_tls(Limits::default(), TlsMode::On);
        session.feed(&message::CLIENT_FLAGS);
        match replies {
            0 => {}
            1 => session.feed(&option(message::STRUCTURED_REPLY, b"")),
            _ => session.feed(&option(message::EXTENDED_HEADERS, b"")),
        }
        session.steps.clear();
        session.out.clear();
        session.feed(&option(number, &data));
        match session.steps[..] {
            [Step::Answered | Step::Secure] => {
                let out = session.take_out();
                // A final reply: an error, or an acknowledgement at the end.
                prop_assert!(out[12] == 0x80 || out.ends_with(&[0, 0, 0, 1, 0, 0, 0, 0]));
                session.feed(&option(message::LIST, b""));
                let ack = message::option_reply(message::LIST, message::ACK, b"");
                prop_assert!(session.take_out().ends_with(&ack));
            }
            [Step::Opened] => prop_assert!([message::GO, message::EXPORT_NAME].contains(&number)),
            [Step::Close(_)] => {
                prop_assert!([message::ABORT, message::EXPORT_NAME].contains(&number));
            }
            ref steps => prop_assert!(false, "{steps:?}"),
        }
    }
}
