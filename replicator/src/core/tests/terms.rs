//! What the cluster agrees on for a resource, changed while it is used: how long clients wait for a
//! primary that may not answer, and where replicas are.

use super::super::api::Terms;
use super::super::message::ZERO_PIECE_BYTES;
use super::*;

const LIMIT_MS: u64 = 1_000;

/// Two nodes that both have to be in sync, the first of them primary.
fn needs_both(no_quorum_errors: bool) -> Cluster {
    let mut c = Cluster::new(2);
    c.record.min_redundancy = 2;
    for n in 0..2 {
        c.kill(n);
        c.start(n);
        let settings = Settings::default();
        c.event(
            n,
            Event::Terms(Terms {
                lease_ms: settings.lease_ms,
                no_quorum_errors,
            }),
        );
    }
    c.promote(0);
    c
}

fn limit_ms() -> u64 {
    Settings::default().no_primary_ms
}

#[test]
fn requests_that_may_not_be_answered_end_with_errors_if_the_terms_say_so() {
    let mut c = needs_both(true);
    c.kill(1);
    let early = c.write(0, 0, 1, 4096);
    c.run_ms(LIMIT_MS);
    let late = c.write(0, 4096, 1, 4096);
    c.run_ms(limit_ms() - LIMIT_MS);
    assert!(matches!(c.replies[&early], Err(ClientError::Io)));
    assert!(
        !c.replies.contains_key(&late),
        "its own time has not passed"
    );
    // From the first one on there is no waiting.
    let next = c.write(0, 8192, 1, 4096);
    assert!(matches!(c.replies[&next], Err(ClientError::Io)));
    c.run_ms(LIMIT_MS);
    assert!(matches!(c.replies[&late], Err(ClientError::Io)));
}

#[test]
fn what_was_given_up_does_not_come_back_over_a_later_write() {
    let mut c = needs_both(true);
    c.kill(1);
    // Two pieces: the second one is not begun before all have the first one.
    let second = ZERO_PIECE_BYTES;
    let range = ByteRange::new(second - 4096, 8192).unwrap();
    let (hole, fua) = (false, false);
    let given_up = c.request(
        0,
        ClientRequest::Zero {
            range,
            hole,
            fua,
            fast: false,
        },
    );
    // Waits for the range behind it.
    let behind = c.write(0, second - 4096, 2, 4096);
    c.run_ms(limit_ms() + LIMIT_MS);
    for id in [given_up, behind] {
        assert!(matches!(c.replies[&id], Err(ClientError::Io)));
    }
    let mut last = c.write(0, second, 9, 4096);
    c.start(1);
    // Whenever a new write is taken, the old ones are done.
    for _ in 0..1000 {
        c.run_ms(110);
        if c.ok(last) {
            break;
        }
        if c.replies.contains_key(&last) {
            last = c.write(0, second, 9, 4096);
        }
    }
    assert!(c.ok(last), "it takes requests again by itself");
    c.run_ms(3_000);
    assert_eq!((c.byte(0, second), c.byte(1, second)), (9, 9));
}

#[test]
fn a_read_that_has_no_lease_ends_with_an_error_and_no_data() {
    let mut c = needs_both(true);
    c.mute = vec![1];
    c.run_ms(2 * LIMIT_MS);
    let range = ByteRange::new(0, 4096).unwrap();
    let read = c.request(0, ClientRequest::Read { range });
    c.run_ms(limit_ms());
    assert!(matches!(c.replies[&read], Err(ClientError::Io)));
    c.mute.clear();
    c.run_ms(LIMIT_MS);
    let read = c.request(0, ClientRequest::Read { range });
    c.run_ms(LIMIT_MS);
    assert!(matches!(c.replies[&read], Ok(Some(_))));
}

#[test]
fn they_wait_for_ever_if_the_terms_do_not_say_so() {
    let mut c = needs_both(false);
    c.kill(1);
    let waits = c.write(0, 0, 1, 4096);
    c.run_ms(20 * limit_ms());
    assert!(!c.replies.contains_key(&waits));
    c.start(1);
    c.run_ms(5_000);
    assert!(c.ok(waits));
}

/// Every node hears of a record with these replicas.
fn configure(c: &mut Cluster, replicas: &[usize]) {
    let replicas = replicas.iter().map(|&n| id(n)).collect();
    c.record = c.record.configured(replicas, 1);
    for node in 0..c.nodes.len() {
        let record = c.record.clone();
        c.event(node, Event::Record(record));
    }
}

#[test]
fn a_replica_that_was_removed_lacks_everything_when_it_is_added_again() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.write(0, 0, 1, 4096);
    c.run_ms(1_000);
    configure(&mut c, &[0, 1]);
    c.run_ms(1_000);
    assert_eq!(c.in_sync(), [0, 1]);
    let w = c.write(0, 0, 2, 4096);
    c.run_ms(1_000);
    assert!(c.ok(w));
    // Nobody keeps account of what it lacks. Its store holds something of its own.
    c.nodes[2].data.write(20 << 20, &[7; 4096]);
    configure(&mut c, &[0, 1, 2]);
    c.run_ms(10_000);
    assert_eq!(c.in_sync(), [0, 1, 2]);
    assert_eq!((c.byte(2, 0), c.byte(2, 20 << 20)), (2, 0));
}

#[test]
fn a_member_that_was_away_meanwhile_does_not_know_better() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.run_ms(1_000);
    c.kill(1);
    c.run_ms(3_000);
    configure(&mut c, &[0, 1]);
    // Its store holds something of its own, of which a copy to 1 tells nothing.
    c.nodes[2].data.write(20 << 20, &[7; 4096]);
    let w = c.write(0, 0, 2, 4096);
    c.run_ms(1_000);
    assert!(c.ok(w));
    c.kill(2);
    configure(&mut c, &[0, 1, 2]);
    // It saw neither change, and its bits for the third replica are from before.
    c.start(1);
    c.run_ms(5_000);
    assert_eq!(c.in_sync(), [0, 1]);
    c.kill(0);
    c.promote(1);
    c.start(2);
    c.run_ms(10_000);
    assert_eq!(c.in_sync(), [1, 2]);
    assert_eq!((c.byte(2, 0), c.byte(2, 20 << 20)), (2, 0));
}

#[test]
fn a_replica_on_its_way_in_may_be_removed() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.kill(2);
    c.run_ms(3_000);
    c.write(0, 0, 3, 4096);
    c.start(2);
    for _ in 0..50 {
        c.run_ms(1);
    }
    configure(&mut c, &[0, 1]);
    let w = c.write(0, 0, 4, 4096);
    c.run_ms(2_000);
    assert!(c.ok(w));
    assert_eq!(c.in_sync(), [0, 1]);
}

/// Each of these promises is kept by what its fault takes away.
#[cfg(feature = "mutations")]
#[test]
fn what_keeps_these_promises_is_missed() {
    use super::super::mutation::{Mutation, activate};
    let tests: [(Mutation, fn()); 3] = [
        (
            Mutation::GivenUpNotAwaited,
            what_was_given_up_does_not_come_back_over_a_later_write,
        ),
        (
            Mutation::HandOverKeepsOldBits,
            a_member_that_was_away_meanwhile_does_not_know_better,
        ),
        (
            Mutation::RemovedKeepsItsBits,
            a_replica_that_was_removed_lacks_everything_when_it_is_added_again,
        ),
    ];
    for (fault, test) in tests {
        activate(Some(fault));
        let result = std::panic::catch_unwind(test);
        activate(None);
        assert!(result.is_err(), "{fault:?}");
    }
}
