//! Leases: who may answer, until when, and whom their lack costs what (RULES 4).

use super::*;

#[test]
fn an_answer_waits_for_every_required_lease_and_leaves_in_order() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.run_ms(500);
    c.mute = vec![2];
    // Too short for an eviction: the lease of node 2 ends within it, those of the others are renewed.
    c.beacons = false;
    c.record.min_redundancy = 3;
    for n in 0..3 {
        let record = Record {
            generation: c.record.generation.next(),
            ..c.record.clone()
        };
        c.event(n, Event::Record(record));
    }
    c.record.generation = c.record.generation.next();
    c.run_ms(600);
    let read = ClientRequest::Read {
        range: ByteRange::new(0, 512).unwrap(),
    };
    let waiting = [
        c.write(0, 0, 1, 4096),
        c.request(0, read),
        c.request(0, ClientRequest::Flush),
        c.request(
            0,
            ClientRequest::Zero {
                range: ByteRange::new(0, 4096).unwrap(),
                hole: true,
                fua: false,
                fast: false,
            },
        ),
    ];
    assert!(waiting.iter().all(|id| !c.replies.contains_key(id)));
    // It is on every disk all the same.
    assert_eq!(c.byte(2, 0), 0);
    c.beacons = true;
    c.run_ms(50);
    assert!(waiting.iter().all(|id| !c.replies.contains_key(id)));
    assert_eq!(c.status(0).waiting_for, NodeSet::only(id(2)));
    c.mute.clear();
    c.run_ms(50);
    assert!(waiting.iter().all(|id| c.ok(*id)));
    assert_eq!(c.order, waiting);
    assert_eq!(c.status(0).waiting_for, NodeSet::EMPTY);
}

#[test]
fn an_error_needs_no_lease() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.mute = vec![1];
    c.beacons = false;
    c.run_ms(490);
    let beyond = c.write(0, SIZE, 1, 4096);
    assert!(matches!(c.replies[&beyond], Err(ClientError::OutOfRange)));
}

#[test]
fn a_promoted_node_serves_only_when_no_earlier_primary_can_answer() {
    let mut c = Cluster::new(2);
    c.word = false;
    let promoted = c.ask_promotion(0, NodeSet::EMPTY);
    assert_eq!(c.commands[&promoted], Ok(()));
    let w = c.write(0, 0, 1, 4096);
    c.run_ms(2000);
    assert!(!c.replies.contains_key(&w));
    assert_eq!(c.status(0).role, Role::Starting);
    // The word of another epoch is none.
    let epoch = Epoch(c.record.epoch.0 + 1);
    c.event(0, Event::Serve { epoch });
    c.run_ms(100);
    assert!(!c.replies.contains_key(&w));
    c.word = true;
    c.run_ms(100);
    assert!(c.ok(w));
}

#[test]
fn a_member_that_grants_no_lease_costs_one_lease_and_is_evicted() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.run_ms(1000);
    c.mute = vec![1];
    let lease_ms = Settings::default().lease_ms;
    c.run_ms(lease_ms - 20);
    assert_eq!(c.in_sync(), [0, 1, 2]);
    let w = c.write(0, 0, 1, 4096);
    c.run_ms(40);
    assert!(c.ok(w));
    assert_eq!(c.in_sync(), [0, 2]);
    // It is brought up to date and not admitted, and nobody waits for it.
    c.run_ms(5000);
    assert_eq!(c.in_sync(), [0, 2]);
    let w = c.write(0, 0, 2, 4096);
    assert!(c.ok(w));
    c.mute.clear();
    c.run_ms(3000);
    assert_eq!(c.in_sync(), [0, 1, 2]);
}

#[test]
fn a_new_primary_gives_the_others_the_time_of_a_lease() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.kill(0);
    c.beacons = false;
    let promoted = c.ask_promotion(1, NodeSet::only(id(0)));
    assert_eq!(c.commands[&promoted], Ok(()));
    c.run_ms(Settings::default().lease_ms - 20);
    assert_eq!(c.in_sync(), [1, 2]);
}

#[test]
fn a_primary_that_stood_still_does_not_blame_the_others() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.run_ms(1000);
    // Stopped: its own sessions outlive it, the leases do not.
    c.now = c.now.plus_ms(1500);
    let w = c.write(0, 0, 1, 4096);
    assert!(!c.replies.contains_key(&w));
    c.beacons = false;
    c.run_ms(100);
    assert_eq!(c.in_sync(), [0, 1, 2]);
    c.beacons = true;
    c.run_ms(100);
    assert!(c.ok(w));
    assert_eq!(c.in_sync(), [0, 1, 2]);
}
