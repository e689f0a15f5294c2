//! Forwarded requests one at a time (RULES 12): what they wait for, what ends them, and what is not done twice.

use super::*;

fn follow(session: u64, errors: bool) -> Event<Bytes> {
    Event::Access(Access::Follow { session, errors })
}

/// Two nodes that follow; node 0 is primary.
fn pair(errors: bool) -> Cluster {
    let mut c = Cluster::new(2);
    for node in 0..2 {
        c.event(node, follow(64 << node, errors));
    }
    c.promote(0);
    c
}

#[test]
fn requests_end_with_errors_when_the_history_changes() {
    let mut c = pair(false);
    let before = c.write(1, 0, 1, 4096);
    assert!(c.ok(before));
    c.kill(0);
    let waits = c.write(1, 0, 2, 4096);
    c.run_ms(1000);
    assert!(!c.replies.contains_key(&waits));
    c.start(0);
    c.event(0, follow(128, false));
    let forced = c.command(0, Command::Force);
    c.run_ms(1000);
    assert_eq!(c.commands[&forced], Ok(()));
    assert!(matches!(c.replies[&waits], Err(ClientError::Io)));
    assert!(c.hung_up.contains(&1));
    assert_eq!(c.byte(0, 0), 1);
    // New connections find the new history.
    let after = c.write(1, 0, 3, 4096);
    c.run_ms(3000);
    assert!(c.ok(after));
}

#[test]
fn without_a_primary_requests_wait_or_fail_as_the_policy_says() {
    for errors in [false, true] {
        let mut c = pair(errors);
        let demoted = c.command(0, Command::Demote { to: None });
        c.run_ms(1000);
        assert_eq!(c.commands[&demoted], Ok(()));
        let w = c.write(1, 0, 1, 4096);
        let limit = Settings::default().no_primary_ms;
        c.run_ms(limit - 200);
        assert!(!c.replies.contains_key(&w));
        c.run_ms(60_000);
        assert_eq!(c.replies.contains_key(&w), errors);
        c.promote(1);
        let w = c.write(0, 0, 2, 4096);
        c.run_ms(1000);
        assert!(c.ok(w));
    }
}

#[test]
fn a_long_discard_is_forwarded_in_pieces_and_answered_once() {
    let mut c = pair(false);
    c.write(1, 33 << 20, 6, 4096);
    let range = ByteRange::new(1 << 20, 60 << 20).unwrap();
    let (hole, fua, fast) = (true, false, false);
    let zero = ClientRequest::Zero {
        range,
        hole,
        fua,
        fast,
    };
    let z = c.request(1, zero);
    c.run_ms(100);
    assert!(c.ok(z));
    assert_eq!(c.byte(0, 33 << 20), 0);
}

#[test]
fn a_client_beyond_the_end_gets_the_error_wherever_it_is() {
    let mut c = pair(false);
    for node in 0..2 {
        let w = c.write(node, SIZE, 1, 4096);
        c.run_ms(100);
        assert!(matches!(c.replies[&w], Err(ClientError::OutOfRange)));
    }
}

#[test]
fn more_than_the_span_of_numbers_waits_its_turn() {
    let mut c = pair(false);
    c.kill(0);
    let many = super::super::message::MAX_SPAN + 100;
    let asked: Vec<u64> = (0..many)
        .map(|i| c.write(1, (i % 64) * 4096, 1, 4096))
        .collect();
    c.promote(1);
    c.run_ms(3000);
    assert!(asked.iter().all(|id| c.ok(*id)));
}

#[test]
fn with_exclusive_access_clients_connections_end_with_the_primary() {
    let mut c = Cluster::new(2);
    c.promote(0);
    assert!(c.hung_up.is_empty());
    c.command(0, Command::Demote { to: None });
    c.run_ms(1000);
    assert_eq!(c.hung_up, [0]);
}

/// RULES section 5, "Sent again": a write was executed and its answer lost; another client has read it
/// and written the block anew; after the fail-over it is sent again. What the block holds then.
fn sent_again_over_a_newer_write() -> u8 {
    let mut c = Cluster::new(3);
    for node in 0..3 {
        c.event(node, follow(64 << node, false));
    }
    c.promote(0);
    c.lose_answers = true;
    let first = c.write(1, 0, 1, 4096);
    c.run_ms(200);
    assert!(!c.replies.contains_key(&first));
    assert_eq!(c.byte(0, 0), 1, "it was executed");
    // The primary's own client writes the block anew.
    let second = c.write(0, 0, 2, 4096);
    c.run_ms(200);
    assert!(c.ok(second));
    c.lose_answers = false;
    c.kill(0);
    c.promote(2);
    c.run_ms(3_000);
    assert!(c.ok(first), "it is answered at last");
    c.byte(2, 0)
}

#[test]
fn a_write_that_is_sent_again_does_not_come_back_over_a_newer_one() {
    assert_eq!(sent_again_over_a_newer_write(), 2);
}

#[cfg(feature = "mutations")]
#[test]
fn a_write_that_is_executed_twice_is_noticed() {
    use super::super::mutation::{Mutation, activate};
    activate(Some(Mutation::ResentExecutedTwice));
    let holds = sent_again_over_a_newer_write();
    activate(None);
    assert_eq!(holds, 1, "the fault has no effect");
}
