//! A whole NBD connection from any bytes: the client flags, options, requests of both kinds of headers
//! (TLS is taken as if it were there: what it carries is the same). The stream is given
//! to one connection at once and to another in pieces; both must do the same. The session itself
//! asserts that nothing is taken that was not given and that no step writes without bound.
#![no_main]

#[path = "../../nbd-frontend/tests/common/mod.rs"]
mod common;

use common::session::Session;
use libfuzzer_sys::fuzz_target;
use nbd_frontend::{Limits, TlsMode};

/// Small limits, so that small inputs go beyond them.
fn session(tls: TlsMode) -> Session {
    let limits = Limits {
        max_payload_bytes: 600,
        max_option_bytes: 90,
        max_options: 20,
        ..Limits::default()
    };
    let mut session = Session::with_tls(limits, tls);
    session.serving = true;
    session
}

fuzz_target!(|input: &[u8]| {
    // The first byte says how the second connection's stream is cut, and whether there is TLS.
    let Some((piece, stream)) = input.split_first() else {
        return;
    };
    let tls = match piece / 61 {
        0 | 1 => TlsMode::Off,
        2 => TlsMode::On,
        _ => TlsMode::Require,
    };
    let mut whole = session(tls);
    whole.feed(stream);
    let mut split = session(tls);
    for piece in stream.chunks(usize::from(*piece % 61) + 1) {
        split.feed(piece);
    }
    assert_eq!(whole.steps, split.steps);
    assert_eq!(whole.payload, split.payload);
    assert_eq!(whole.sent, split.sent);
    assert_eq!(whole.out, split.out);
    assert_eq!(whole.connection.in_flight(), 0);
});
