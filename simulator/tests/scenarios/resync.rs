//! Resync: direction and amount. The cases are DRBD's, under the names of its tests (cases only; nothing
//! else is taken).

use super::*;

#[test]
fn resync_copies_exactly_what_was_missed() {
    let mut s = Stage::behind(3);
    s.mend(0, 1);
    s.rest();
    assert_eq!(s.resynced(1), (3 * BLOCK, 3 * BLOCK));
    assert!(!s.is_blank(1, 12));
}

#[test]
fn resync_chain_and_reverse() {
    for (first, second) in [(1, 2), (2, 1)] {
        let mut s = Stage::new(3);
        s.evict(0, 2);
        s.write_blocks(0, 10, 2);
        s.flush(0);
        s.pass(500);
        s.evict(0, 1);
        s.write_blocks(0, 100, 3);
        s.flush(0);
        s.forget_notices();
        s.mend(0, first);
        s.wait_in(first);
        s.mend(0, second);
        s.rest();
        assert_eq!(s.resynced(1), (3 * BLOCK, 3 * BLOCK));
        assert_eq!(s.resynced(2), (5 * BLOCK, 5 * BLOCK));
    }
}

#[test]
fn resync_after_failover_comes_from_the_new_primary() {
    let mut s = Stage::new(3);
    s.evict(0, 2);
    s.write_blocks(0, 10, 4);
    s.flush(0);
    s.pass(500);
    s.kill(0);
    s.promote(1);
    s.forget_notices();
    s.mend(0, 2);
    s.wait_in(2);
    s.pass(50);
    // It marked what the absent one lacked while it was a secondary (RULES 7).
    let (compared, sent) = s.resynced(2);
    assert_eq!(sent, 4 * BLOCK);
    assert!(compared < EXTENT_BYTES + 5 * BLOCK, "{compared}");
    s.start(0);
    s.rest();
}

#[test]
fn checksum_resync_sends_nothing_that_is_equal() {
    let mut s = Stage::new(2);
    s.write_blocks(0, 10, 4);
    s.flush(0);
    s.forget_notices();
    assert_eq!(s.command(0, Command::Invalidate { node: node(1) }), Ok(()));
    s.wait_out(1);
    s.rest();
    assert_eq!(s.resynced(1), (2 * EXTENT_BYTES, 0));
}

#[test]
fn resync_finish_last_message_lost() {
    let mut s = Stage::behind(8);
    s.mend(0, 1);
    s.wait_in(1);
    // Neither knows yet that it is decided.
    s.cut(0, 1);
    s.world.store_cut[1] = true;
    s.pass(40);
    s.world.store_cut[1] = false;
    s.forget_notices();
    s.mend(0, 1);
    s.rest();
    assert!(s.resynced(1).1 <= BLOCK, "{:?}", s.resynced(1));
}

#[test]
fn resync_interrupt_variants() {
    let interrupts: [fn(&mut Stage); 5] = [
        |s| s.break_conns(0, 1),
        |s| {
            s.cut(0, 1);
            s.pass(500);
            s.mend(0, 1);
        },
        |s| {
            s.kill(1);
            s.start(1);
        },
        |s| {
            s.power_off(1);
            s.start(1);
        },
        |s| {
            s.kill(0);
            s.start(0);
            s.promote(0);
        },
    ];
    for (which, interrupt) in interrupts.into_iter().enumerate() {
        let mut s = Stage::behind(60);
        s.mend(0, 1);
        s.wait("half of it", |w| {
            let disk = |n: u8, at| w.node(node(n)).volumes[0].data.block(at).to_vec();
            disk(0, 60) == disk(1, 60)
        });
        assert!(!s.same(0, 1, 128), "variant {which} came too late");
        interrupt(&mut s);
        assert!(!s.world.record().members().contains(node(1)) || s.same(0, 1, 128));
        s.rest();
    }
}

#[test]
fn resync_multiple_interrupt_gets_on_every_time() {
    let mut s = Stage::behind(60);
    s.mend(0, 1);
    for _ in 0..5 {
        s.pass(20);
        s.break_conns(0, 1);
    }
    s.forget_notices();
    s.pass(60);
    s.rest();
    // What was copied before an interruption is at most compared again.
    assert!(s.resynced(1).1 < 50 * BLOCK, "{:?}", s.resynced(1));
}

#[test]
fn write_during_resync_does_not_deadlock() {
    let mut s = Stage::behind(60);
    s.mend(0, 1);
    for round in 0..200 {
        s.begin_write(
            0,
            ByteRange::between((10 + round % 64) * BLOCK + 512, (14 + round % 64) * BLOCK),
        );
        s.pass(1);
    }
    s.rest();
}

#[test]
fn busy_resync_start() {
    let mut s = Stage::behind(4);
    s.health(0).slower = 100;
    for at in 0..20 {
        s.begin_write(0, block(10 + at % 8));
    }
    s.mend(0, 1);
    s.pass(30);
    s.mend_disk(0);
    s.rest();
}

#[test]
fn resync_write_to_an_outdated_replica_arrives() {
    // While it is copied to, it is sent live writes as well.
    let mut s = Stage::behind(60);
    s.mend(0, 1);
    s.wait_for_resync();
    s.write(0, block(1000));
    s.rest();
    assert!(s.same(0, 1, 1000) && !s.is_blank(1, 1000));
    assert_eq!(s.resynced(1).1, 60 * BLOCK);
}

#[test]
fn resync_after_the_target_lost_its_cache() {
    let mut s = Stage::new(2);
    s.write(0, block(10));
    s.power_off(1);
    s.start(1);
    s.rest();
    assert!(s.same(0, 1, 10) && !s.is_blank(1, 10));
    assert_eq!(s.world.node(node(1)).incarnation.0, 2);
}

#[test]
fn resync_after_primary_crash_without_writes() {
    let mut s = Stage::new(3);
    s.pass(1000);
    s.kill(0);
    s.promote(1);
    s.forget_notices();
    s.start(0);
    s.rest();
    assert_eq!(s.resynced(0), (0, 0));
}

#[test]
fn resync_reconciliation() {
    let mut s = Stage::new(3);
    // One secondary has the write, the other does not, and nobody was answered.
    s.world.net.cut(node(0), node(2));
    let id = s.begin_write(0, block(10));
    s.wait("one has it", |w| {
        w.node(node(1)).volumes[0].data.block(10)[0] != 0
    });
    assert!(s.is_open(id) && s.is_blank(2, 10));
    s.kill(0);
    s.mend(0, 2);
    s.promote(1);
    s.read(1, block(10));
    s.start(0);
    s.rest();
    assert!(!s.is_blank(2, 10) && !s.is_blank(0, 10));
}

#[test]
fn switch_sync_source() {
    let mut s = Stage::new(3);
    s.evict(0, 1);
    s.evict(0, 2);
    s.write_blocks(0, 10, 40);
    s.flush(0);
    s.mend(0, 1);
    s.wait_in(1);
    s.pass(300);
    s.mend(0, 2);
    s.wait("a part", |w| {
        w.node(node(2)).volumes[0].data.block(20)[0] != 0
    });
    s.kill(0);
    s.promote(1);
    s.wait_in(2);
    assert!(s.same(1, 2, 88));
    s.start(0);
    s.rest();
}

#[test]
fn resync_between_targets_of_different_age() {
    let mut s = Stage::new(3);
    s.evict(0, 1);
    s.write_blocks(0, 10, 10);
    s.evict(0, 2);
    s.write_blocks(0, 100, 20);
    s.flush(0);
    s.forget_notices();
    s.mend(0, 1);
    s.mend(0, 2);
    s.rest();
    assert_eq!(s.resynced(1).1, 30 * BLOCK);
    assert_eq!(s.resynced(2).1, 20 * BLOCK);
}

#[test]
fn resync_target_promote_is_refused() {
    let mut s = Stage::behind(20);
    s.kill(0);
    let promotion = s.world.promotion(node(1), NodeSet::EMPTY);
    let refused = s.command(1, promotion);
    assert_eq!(
        refused,
        Err(CommandError::Refused(Refusal::NotEligible {
            node: node(1)
        }))
    );
    s.start(0);
    s.promote(0);
    s.mend(0, 1);
    s.rest();
}

#[test]
fn resync_discard_thin_target_stays_thin() {
    let mut s = Stage::new(2);
    s.write_blocks(0, 10, 8);
    s.evict(0, 1);
    assert!(s.asked(
        0,
        Ask::Zero(ByteRange::between(10 * BLOCK, 20 * BLOCK), true, false)
    ));
    s.mend(0, 1);
    s.rest();
    let taken = |s: &Stage, n| s.world.node(node(n)).volumes[0].data.allocated().clone();
    assert_eq!(taken(&s, 0), taken(&s, 1));
    assert!(!taken(&s, 1).contains(&12));
}

#[test]
fn a_new_disk_is_filled_and_stays_thin() {
    let mut s = Stage::new(2);
    s.write_blocks(0, 10, 8);
    s.flush(0);
    s.forget_notices();
    s.replace_disk(1);
    s.rest();
    assert_eq!(s.resynced(1), (2 * EXTENT_BYTES, 8 * BLOCK));
    let taken = |n| s.world.node(node(n)).volumes[0].data.allocated().len();
    assert_eq!(taken(0), taken(1));
}

#[test]
fn force_resync_invalidate_of_the_last_copy_is_refused() {
    let mut s = Stage::new(2);
    let refused = s.command(0, Command::Invalidate { node: node(0) });
    assert_eq!(refused, Err(CommandError::LastCopy(node(0))));
    s.rest();
}

#[test]
fn lost_primary_after_no_writes_and_a_clean_close() {
    let mut s = Stage::new(2);
    s.write(0, block(10));
    assert_eq!(s.command(1, Command::Close), Ok(()));
    s.power_off(1);
    s.wait_out(1);
    s.forget_notices();
    s.start(1);
    s.rest();
    // Closed in order: the reboot lost nothing, so nothing is in doubt.
    assert_eq!(s.world.node(node(1)).incarnation.0, 1);
    assert_eq!(s.resynced(1).1, 0);
}
