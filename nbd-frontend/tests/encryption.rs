//! STARTTLS in all three modes. The encryption itself is the driver's; here it is what may be said
//! before, and that nothing of it counts afterwards.

mod common;

use common::message::*;
use common::session::Session;
use nbd_frontend::{CloseReason, Limits, Step, TlsMode};

fn haggling(tls: TlsMode) -> Session {
    let mut session = Session::with_tls(Limits::default(), tls);
    session.feed(&CLIENT_FLAGS);
    session.take_out();
    session
}

fn ask(session: &mut Session, number: u32, data: &[u8]) -> Vec<u8> {
    session.feed(&option(number, data));
    session.take_out()
}

fn kind(answer: &[u8]) -> u32 {
    u32::from_be_bytes(answer[12..16].try_into().unwrap())
}

#[test]
fn without_tls_the_option_is_refused_and_never_asked_for() {
    let mut session = haggling(TlsMode::Off);
    assert_eq!(kind(&ask(&mut session, STARTTLS, b"")), ERR_POLICY);
    ask(&mut session, GO, &question("r0", &[]));
    assert_eq!(session.steps, [Step::Answered, Step::Opened]);
}

#[test]
fn tls_begins_right_after_the_acknowledgement() {
    for mode in [TlsMode::On, TlsMode::Require] {
        let mut session = haggling(mode);
        assert_eq!(
            ask(&mut session, STARTTLS, b""),
            option_reply(STARTTLS, ACK, b"")
        );
        assert_eq!(session.steps, [Step::Secure]);
        assert_eq!(
            kind(&ask(&mut session, STARTTLS, b"")),
            ERR_INVALID,
            "a second time"
        );
        ask(&mut session, GO, &question("r0", &[]));
        assert_eq!(session.steps.last(), Some(&Step::Opened));
    }
}

#[test]
fn starttls_takes_no_data() {
    let mut session = haggling(TlsMode::Require);
    assert_eq!(kind(&ask(&mut session, STARTTLS, b"x")), ERR_INVALID);
    assert_eq!(session.steps, [Step::Answered]);
    ask(&mut session, STARTTLS, b"");
    assert_eq!(session.steps.last(), Some(&Step::Secure));
}

#[test]
fn a_step_of_the_handshake_behind_starttls_in_the_clear_is_not_taken() {
    let mut session = Session::with_tls(Limits::default(), TlsMode::On);
    let input = [
        CLIENT_FLAGS.to_vec(),
        option(STARTTLS, b""),
        option(LIST, b""),
    ]
    .concat();
    let taken = input.len() - option(LIST, b"").len();
    session.out.clear();
    let mut rest = &input[..];
    loop {
        let (count, step) = session
            .connection
            .receive(rest, &common::Catalog, &mut session.out);
        rest = &rest[count..];
        if step == Step::Secure {
            break;
        }
    }
    assert_eq!(input.len() - rest.len(), taken, "the rest is TLS");
    assert_eq!(session.out, option_reply(STARTTLS, ACK, b""));
}

#[test]
fn nothing_that_was_negotiated_in_the_clear_counts_afterwards() {
    let mut session = haggling(TlsMode::On);
    ask(&mut session, STRUCTURED_REPLY, b"");
    ask(
        &mut session,
        SET_META_CONTEXT,
        &meta_question("r0", &["base:allocation"]),
    );
    ask(&mut session, INFO, &question("r0", &[3]));
    ask(&mut session, STARTTLS, b"");
    assert_eq!(
        kind(&ask(
            &mut session,
            LIST_META_CONTEXT,
            &meta_question("r0", &[])
        )),
        ERR_INVALID,
        "structured replies are forgotten"
    );
    ask(&mut session, GO, &question("r0", &[]));
    session.feed(&request(0, BLOCK_STATUS, 7, 0, 512));
    assert_eq!(session.take_out(), simple(EINVAL, 7));
    let mut session = haggling(TlsMode::On);
    ask(&mut session, EXTENDED_HEADERS, b"");
    ask(&mut session, STARTTLS, b"");
    ask(&mut session, EXPORT_NAME, b"r0");
    session.feed(&request(0, READ, 7, 0, 512));
    assert!(matches!(session.steps.last(), Some(Step::Request(_))));
}

#[test]
fn where_tls_is_required_nothing_else_is_answered_before_it() {
    let mut session = haggling(TlsMode::Require);
    let longest = vec![0; 100 << 10];
    for (number, data) in [
        (LIST, Vec::new()),
        (LIST, b"data".to_vec()),
        (INFO, question("r0", &[])),
        (GO, question("nothing", &[])),
        (GO, b"rubbish".to_vec()),
        (STRUCTURED_REPLY, Vec::new()),
        (EXTENDED_HEADERS, Vec::new()),
        (SET_META_CONTEXT, meta_question("r0", &[])),
        (77, b"anything".to_vec()),
    ] {
        let answer = ask(&mut session, number, &data);
        assert_eq!(kind(&answer), ERR_TLS_REQD, "option {number}");
    }
    assert_eq!(kind(&ask(&mut session, LIST, &longest)), ERR_TOO_BIG);
    let mut other = haggling(TlsMode::Require);
    assert!(ask(&mut other, EXPORT_NAME, b"r0").is_empty());
    assert_eq!(other.steps, [Step::Close(CloseReason::TlsRequired)]);
    let answer = ask(&mut session, ABORT, b"");
    assert_eq!(answer, option_reply(ABORT, ACK, b""));
    assert_eq!(
        session.steps.last(),
        Some(&Step::Close(CloseReason::Aborted))
    );
}

#[test]
fn where_tls_may_be_used_clients_without_it_are_served() {
    let mut session = haggling(TlsMode::On);
    ask(&mut session, EXPORT_NAME, b"r0");
    assert_eq!(session.steps, [Step::Opened]);
}
