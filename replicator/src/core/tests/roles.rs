//! Who becomes primary, and how a primary ceases to be one.

use super::*;

#[test]
fn another_member_takes_over_after_the_primary_died_and_reconciles() {
    let mut c = Cluster::new(3);
    c.promote(0);
    let w = c.write(0, 4 << 20, 5, 4096);
    assert!(c.ok(w));
    // A write that only one secondary got.
    c.nodes[1].data.write(0, &[9; 4096]);
    c.kill(0);
    c.promote(2);
    c.run_ms(3000);
    assert_eq!(c.status(2).role, Role::Primary);
    assert_eq!(c.in_sync(), [1, 2]);
    c.start(0);
    c.run_ms(5000);
    assert_eq!(c.in_sync(), [0, 1, 2]);
    let r = c.request(
        2,
        ClientRequest::Read {
            range: ByteRange::new(4 << 20, 1).unwrap(),
        },
    );
    let Some(Ok(Some(data))) = c.replies.get(&r) else {
        panic!("no data")
    };
    assert_eq!(data.get(), [5]);
}

#[test]
fn demote_drains_and_another_serves_what_was_written() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 0, 4, 4096);
    let stranger = c.command(0, Command::Demote { to: Some(id(3)) });
    let refusal = vocabulary::Refusal::NotEligible { node: id(3) };
    assert_eq!(c.commands[&stranger], Err(refusal.into()));
    let demote = c.command(0, Command::Demote { to: Some(id(1)) });
    c.run_ms(1000);
    assert_eq!(c.commands.get(&demote), Some(&Ok(())));
    assert_eq!(c.record.primary, None);
    c.promote(1);
    let r = c.request(
        1,
        ClientRequest::Read {
            range: ByteRange::new(0, 1).unwrap(),
        },
    );
    assert!(c.ok(r));
}

#[test]
fn a_primary_that_demotes_before_it_serves_leaves_what_is_in_doubt_to_the_next_one() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 0, 4, 4096);
    for node in [0, 1] {
        c.kill(node);
    }
    // As after a write that only one of them had begun.
    c.nodes[1].data.write(0, &[5]);
    for node in [0, 1] {
        c.start(node);
    }
    c.word = false;
    c.ask_promotion(0, NodeSet::EMPTY);
    c.run_ms(500);
    assert_eq!(c.status(0).role, Role::Starting);
    // For longer than anything is left without a flush.
    c.undecided = true;
    let demote = c.command(0, Command::Demote { to: None });
    c.run_ms(3000);
    c.undecided = false;
    c.run_ms(3000);
    assert_eq!(c.commands.get(&demote), Some(&Ok(())));
    assert_eq!(c.record.primary, None);
    c.word = true;
    c.promote(1);
    c.run_ms(1000);
    assert_eq!((c.byte(0, 0), c.byte(1, 0)), (5, 5));
}

#[test]
fn a_restarted_primary_does_not_resume() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.kill(0);
    c.start(0);
    c.run_ms(1000);
    let w = c.write(0, 0, 1, 4096);
    assert!(matches!(c.replies[&w], Err(ClientError::NotPrimary)));
    c.promote(0);
    c.run_ms(3000);
    let w = c.write(0, 0, 1, 4096);
    assert!(c.ok(w));
}

#[test]
fn a_promotion_is_not_proposed_on_top_of_another_one() {
    let mut c = Cluster::new(3);
    let over = c.record.epoch;
    c.promote(0);
    let late = c.command(
        1,
        Command::Promote {
            drop: NodeSet::EMPTY,
            over,
        },
    );
    let epoch = c.record.epoch;
    assert_eq!(c.commands[&late], Err(CommandError::Superseded(epoch)));
    assert_eq!(c.record.primary, Some(id(0)));
}
