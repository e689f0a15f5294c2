//! One option with any data, with the real limits, and after it one that is good: whatever the first
//! is answered, the connection is in step for the second.
#![no_main]

#[path = "../../nbd-frontend/tests/common/mod.rs"]
mod common;

use common::message::{self, option};
use common::session::Session;
use libfuzzer_sys::fuzz_target;
use nbd_frontend::{Limits, Step, TlsMode};

fuzz_target!(|input: &[u8]| {
    let Some((number, data)) = input.split_first() else {
        return;
    };
    let (number, before) = (u32::from(number % 16), number / 16);
    let mut session = Session::with_tls(Limits::default(), TlsMode::On);
    session.feed(&message::CLIENT_FLAGS);
    // What an option may say depends on the kind of replies.
    match before % 3 {
        0 => {}
        1 => session.feed(&option(message::STRUCTURED_REPLY, b"")),
        _ => session.feed(&option(message::EXTENDED_HEADERS, b"")),
    }
    session.steps.clear();
    session.out.clear();
    session.feed(&option(number, data));
    match session.steps[..] {
        [Step::Answered | Step::Secure] => {
            // A final reply: an error, or an acknowledgement at the end.
            let out = &session.out;
            assert_eq!(out[..8], [0, 3, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9]);
            assert!(out[12] == 0x80 || out.ends_with(&[0, 0, 0, 1, 0, 0, 0, 0]));
            session.feed(&option(message::LIST, b""));
            assert_eq!(session.steps.len(), 2);
            assert_eq!(session.steps[1], Step::Answered);
        }
        [Step::Opened] => assert!(number == message::GO || number == message::EXPORT_NAME),
        [Step::Close(_)] => assert!(number == message::ABORT || number == message::EXPORT_NAME),
        ref steps => panic!("{steps:?}"),
    }
});
