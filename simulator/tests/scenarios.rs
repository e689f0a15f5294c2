//! Scripted cases. Those of resync, metadata and I/O are DRBD's, under the names of its tests (cases
//! only; nothing else is taken), the last group are the executions of RULES section 5. Each asserts
//! direction and amount: who was copied to, how many bytes were compared and sent.

use replicator::core::api::{Command, CommandError, Notice};
use replicator::core::status::DiskState;
use simulator::client::Ask;
use simulator::disk::Loss;
use simulator::stage::{Stage, block, node};
use vocabulary::{BLOCK_BYTES, ByteRange, EXTENT_BYTES, NodeSet, Refusal, VolumeId};

const BLOCK: u64 = BLOCK_BYTES;

// --- resync: direction and amount ---

#[test]
fn resync_copies_exactly_what_was_missed() {
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 3);
    s.flush(0);
    s.forget_notices();
    s.mend(0, 1);
    s.rest();
    assert_eq!(s.resynced(1), (3 * BLOCK, 3 * BLOCK));
    assert!(!s.is_blank(1, 12));
}

#[test]
fn resync_chain() {
    let mut s = Stage::new(3);
    s.evict(0, 2);
    s.write_blocks(0, 10, 2);
    s.flush(0);
    s.pass(500);
    s.evict(0, 1);
    s.write_blocks(0, 100, 3);
    s.flush(0);
    s.forget_notices();
    s.mend(0, 1);
    s.wait_in(1);
    s.mend(0, 2);
    s.rest();
    assert_eq!(s.resynced(1), (3 * BLOCK, 3 * BLOCK));
    assert_eq!(s.resynced(2), (5 * BLOCK, 5 * BLOCK));
}

#[test]
fn resync_reverse() {
    let mut s = Stage::new(3);
    s.evict(0, 2);
    s.write_blocks(0, 10, 2);
    s.flush(0);
    s.pass(500);
    s.evict(0, 1);
    s.write_blocks(0, 100, 3);
    s.flush(0);
    s.forget_notices();
    s.mend(0, 2);
    s.wait_in(2);
    s.mend(0, 1);
    s.rest();
    assert_eq!(s.resynced(1), (3 * BLOCK, 3 * BLOCK));
    assert_eq!(s.resynced(2), (5 * BLOCK, 5 * BLOCK));
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
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 8);
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
        let mut s = Stage::new(2);
        s.evict(0, 1);
        s.write_blocks(0, 10, 60);
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
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 60);
    s.flush(0);
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
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 60);
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
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 4);
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
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 60);
    s.flush(0);
    s.forget_notices();
    s.mend(0, 1);
    s.wait("a resync", |w| {
        w.notices
            .iter()
            .any(|(_, n)| matches!(n, Notice::ResyncStarted { .. }))
    });
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
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 20);
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

// --- verify ---

#[test]
fn verify_finds_exactly_the_planted_differences() {
    let mut s = Stage::new(2);
    s.write_blocks(0, 10, 8);
    s.flush(0);
    s.pass(1000);
    for sector in [10 * 8 + 1, 14 * 8 + 7, 14 * 8] {
        s.world.node_mut(node(1)).volumes[0].data.rot(sector, 0);
    }
    let found = |s: &mut Stage, repair: bool| {
        s.forget_notices();
        assert_eq!(s.command(0, Command::Verify { node: None, repair }), Ok(()));
        s.world
            .notices
            .iter()
            .find_map(|(_, n)| match n {
                Notice::VerifyDone {
                    bytes,
                    differing_bytes,
                } => Some((*bytes, *differing_bytes)),
                _ => None,
            })
            .unwrap()
    };
    assert_eq!(found(&mut s, false), (2 * EXTENT_BYTES, 2 * BLOCK));
    assert_eq!(found(&mut s, true), (2 * EXTENT_BYTES, 2 * BLOCK));
    assert_eq!(found(&mut s, false), (2 * EXTENT_BYTES, 0));
    s.rest();
}

#[test]
fn verify_ends_under_writes_and_finds_nothing() {
    let mut s = Stage::new(2);
    let id = s.world.command(
        node(0),
        Command::Verify {
            node: None,
            repair: false,
        },
    );
    for at in 0..100 {
        s.begin_write(0, block(at % 7));
        s.pass(1);
    }
    s.wait("an end", |w| w.operator.answers.contains_key(&id));
    assert!(!s.noticed(|n| matches!(n, Notice::Differs { .. })));
    s.rest();
}

#[test]
fn verify_target_becomes_inconsistent_and_verify_ends() {
    let mut s = Stage::new(2);
    let id = s.world.command(
        node(0),
        Command::Verify {
            node: None,
            repair: false,
        },
    );
    s.pass(5);
    s.power_off(1);
    s.wait("an end", |w| w.operator.answers.contains_key(&id));
    s.start(1);
    s.rest();
}

// --- I/O ---

#[test]
fn io_errors_on_a_secondary_are_masked() {
    let mut s = Stage::new(2);
    s.write(0, block(10));
    s.health(1).write_errors = true;
    s.write(0, block(12));
    s.wait_out(1);
    s.write(0, block(14));
    s.mend_disk(1);
    s.rest();
    assert!(s.same(0, 1, 12) && s.same(0, 1, 14));
}

#[test]
fn io_errors_on_the_primary_move_it() {
    let mut s = Stage::new(2);
    s.write(0, block(10));
    s.flush(0);
    s.health(0).write_errors = true;
    assert!(!s.asked(0, Ask::Write(block(12), false)));
    s.wait("demoted", |w| w.record().primary.is_none());
    s.promote(1);
    s.read(1, block(10));
    s.write(1, block(12));
    s.mend_disk(0);
    s.rest();
}

#[test]
fn io_errors_of_the_last_member_reach_the_client() {
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.health(0).flush_errors = true;
    s.write(0, block(10));
    assert!(!s.asked(0, Ask::Flush));
    // It is not tried until it succeeds.
    s.health(0).flush_errors = false;
    assert!(!s.asked(0, Ask::Flush));
    assert!(!s.asked(0, Ask::Write(block(10), false)));
}

#[test]
fn read_errors_are_repaired_from_a_member() {
    let mut s = Stage::new(2);
    s.write(0, block(10));
    s.flush(0);
    s.world.node_mut(node(0)).volumes[0].data.spoil(83);
    s.read(0, block(10));
    let from = node(1);
    assert!(s.noticed(|n| matches!(n, Notice::Repaired { from: f, .. } if *f == from)));
    s.rest();
}

#[test]
fn disk_timeout_stuck_disk_of_a_secondary() {
    let mut s = Stage::new(2);
    s.health(1).stuck = true;
    let before = s.world.now;
    s.write(0, block(10));
    assert!(s.world.now.ms_since(before) < 2_000);
    s.wait_out(1);
    s.mend_disk(1);
    s.rest();
}

#[test]
fn a_full_secondary_is_evicted_and_taken_back() {
    let mut s = Stage::new(2);
    s.health(1).full = true;
    s.write(0, block(10));
    s.wait_out(1);
    s.mend_disk(1);
    s.rest();
}

#[test]
fn suspend_resume_io() {
    let mut s = Stage::of(2, EXTENT_BYTES, |c| c.min_redundancy = 2);
    s.cut(0, 1);
    let id = s.begin_write(0, block(10));
    s.pass(3000);
    assert!(s.is_open(id));
    let status = s
        .world
        .node(node(0))
        .core
        .as_ref()
        .map(|c| c.status(s.world.now));
    assert_eq!(status.map(|s| s.waiting_for), Some(NodeSet::only(node(1))));
    assert!(s.noticed(|n| matches!(n, Notice::Suspended { .. })));
    s.mend(0, 1);
    s.wait("resumed", |w| !w.clients.pending.contains_key(&id));
    assert_eq!(s.world.clients.refused, 0);
    s.rest();
}

#[test]
fn stress_al_many_cold_extents() {
    let mut s = Stage::of(2, 40 * EXTENT_BYTES, |c| c.al_extents = 4);
    for round in 0..3 {
        for extent in 0..40 {
            let at = extent * EXTENT_BYTES + round * BLOCK;
            s.begin_write(0, ByteRange::between(at, at + 512));
        }
        s.wait("all answers", |w| w.clients.pending.is_empty());
    }
    assert_eq!(s.world.clients.refused, 0);
    s.rest();
}

#[test]
fn stress_al_survives_a_crash_with_what_was_written_lately() {
    let mut s = Stage::of(2, 40 * EXTENT_BYTES, |c| c.al_extents = 4);
    for extent in 0..40 {
        let at = extent * EXTENT_BYTES;
        s.write(0, ByteRange::between(at, at + 512));
    }
    s.kill(0);
    s.start(0);
    s.forget_notices();
    s.promote(0);
    s.rest();
}

#[test]
fn resize_while_a_peer_is_away() {
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 2);
    s.flush(0);
    s.forget_notices();
    let size_bytes = 3 * EXTENT_BYTES;
    let volume = VolumeId(0);
    assert_eq!(s.command(0, Command::Resize { volume, size_bytes }), Ok(()));
    let last = size_bytes / BLOCK - 1;
    s.write(0, block(last));
    s.flush(0);
    s.mend(0, 1);
    s.rest();
    // The new part is in doubt on the absent one, not the old: no bit is lost, none comes from nowhere.
    let (compared, sent) = s.resynced(1);
    assert_eq!(compared, EXTENT_BYTES + 2 * BLOCK);
    assert_eq!(sent, 3 * BLOCK);
    assert!(s.same(0, 1, last));
}

#[test]
fn resize_one_that_has_no_room_is_refused_and_nothing_changes() {
    let mut s = Stage::new(2);
    s.health(1).full = true;
    let volume = VolumeId(0);
    let size_bytes = 3 * EXTENT_BYTES;
    let refused = s.command(0, Command::Resize { volume, size_bytes });
    assert_eq!(refused, Err(CommandError::Failed(node(1))));
    s.mend_disk(1);
    s.rest();
    assert_eq!(s.world.size_of(volume), 2 * EXTENT_BYTES);
}

// --- roles ---

#[test]
fn switch_primaries() {
    let mut s = Stage::new(2);
    for round in 0..4u8 {
        let (old, new) = (round % 2, (round + 1) % 2);
        s.write(old, block(10));
        assert_eq!(s.command(old, Command::Demote), Ok(()));
        s.promote(new);
        s.read(new, block(10));
    }
    s.rest();
}

#[test]
fn concurrent_promotions_have_one_winner() {
    let mut s = Stage::new(3);
    assert_eq!(s.command(0, Command::Demote), Ok(()));
    for n in 0..3 {
        let promotion = s.world.promotion(node(n), NodeSet::EMPTY);
        s.world.command(node(n), promotion);
    }
    s.wait("rest", simulator::world::World::is_at_rest);
    let serving = s.world.nodes.iter().filter(|n| n.serving.is_some()).count();
    assert_eq!(serving, 1);
}

#[test]
fn quorum_isolated_primary_answers_nothing_once_superseded() {
    let mut s = Stage::new(2);
    s.cut(0, 1);
    s.world.store_cut[0] = true;
    s.promote(1);
    let old = s.begin_write(0, block(10));
    s.write(1, block(10));
    s.pass(2000);
    assert!(s.is_open(old) || s.world.clients.refused > 0);
    s.world.store_cut[0] = false;
    s.mend(0, 1);
    s.rest();
    s.read(1, block(10));
}

#[test]
fn disconnect_and_connect_by_an_operators_word() {
    let mut s = Stage::new(2);
    assert_eq!(s.command(0, Command::Disconnect { node: node(1) }), Ok(()));
    s.wait_out(1);
    s.write(0, block(10));
    s.pass(1000);
    assert!(!s.world.record().members().contains(node(1)));
    assert_eq!(s.command(0, Command::Connect { node: node(1) }), Ok(()));
    s.rest();
}

// --- the executions of RULES section 5 ---

#[test]
fn incarnation_of_a_reset_machine_does_not_answer_for_the_old_one() {
    let mut s = Stage::new(2);
    s.write(0, block(10));
    s.power_off(1);
    s.start(1);
    s.flush(0);
    // Answered: then it is stable on every member's disk, or that member is none any more.
    s.kill(0);
    s.wait("a primary", |w| w.node(node(1)).is_running());
    let drop = NodeSet::only(node(0));
    let promotion = s.world.promotion(node(1), drop);
    if s.command(1, promotion).is_ok() {
        s.wait("serving", |w| w.serving() == Some(node(1)));
        s.read(1, block(10));
    }
    s.start(0);
    if s.world.serving().is_none() {
        s.promote(0);
    }
    s.rest();
    assert!(!s.is_blank(1, 10));
}

/// The member that lost its cache stands in the record all the while that it is renewed. What it has
/// not got back is not flushed on it, whatever it answers: should the others lose their caches too, it
/// may be promoted.
#[test]
fn a_flush_covers_what_a_renewed_member_lost() {
    let last = EXTENT_BYTES / BLOCK - 1;
    for at_us in (0..40).map(|n| n * 50) {
        let mut s = Stage::of(2, EXTENT_BYTES, |config| {
            config.min_redundancy = 2;
            config.settings.admit_below_bytes = 64 << 10;
        });
        s.pass(1000);
        s.write(0, block(last));
        s.power_off(1);
        s.start(1);
        s.wait("little is left to copy", |w| {
            let status = w.node(node(0)).core.as_ref().map(|c| c.status(w.now));
            let peers = status.into_iter().flat_map(|s| s.peers);
            let mut progress = peers.flat_map(|p| p.progress).flatten();
            progress.any(|p| p.left_bytes <= 64 << 10)
        });
        s.world.run_us(at_us);
        s.flush(0);
        s.rest();
    }
}

#[test]
fn bits_are_handed_over_at_the_admit() {
    let mut s = Stage::new(3);
    s.evict(0, 2);
    s.cut(1, 2);
    s.evict(0, 1);
    s.write(0, block(10));
    s.flush(0);
    s.mend(0, 1);
    s.wait_in(1);
    s.pass(300);
    s.kill(0);
    s.promote(1);
    s.mend(1, 2);
    s.wait_in(2);
    assert!(!s.is_blank(2, 10));
    s.kill(1);
    s.promote(2);
    s.read(2, block(10));
}

#[test]
fn undecided_admit_counts_until_it_is_decided() {
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write(0, block(10));
    s.mend(0, 1);
    // The proposal is on its way for a long time.
    s.world.faults.store_late = 100;
    s.wait("an admit is proposed", |w| {
        w.pending().iter().any(|(_, _, what)| {
            matches!(what, simulator::world::Occurrence::Propose(_, _, change)
                if matches!(**change, vocabulary::Change::Admit { .. }))
        })
    });
    s.world.faults.store_late = 0;
    s.cut(0, 1);
    let id = s.begin_write(0, block(12));
    s.pass(30);
    assert!(
        s.is_open(id),
        "answered without a replica whose admit is undecided"
    );
    s.wait("an answer", |w| !w.clients.pending.contains_key(&id));
    s.mend(0, 1);
    s.rest();
}

#[test]
fn a_late_admit_of_a_dead_process_lets_nobody_in_without_a_write() {
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write(0, block(10));
    s.mend(0, 1);
    s.world.faults.store_late = 100;
    s.wait("an admit is proposed", |w| {
        w.pending().iter().any(|(_, _, what)| {
            matches!(what, simulator::world::Occurrence::Propose(_, _, change)
                if matches!(**change, vocabulary::Change::Admit { .. }))
        })
    });
    s.world.faults.store_late = 0;
    s.kill(0);
    s.cut(0, 1);
    s.start(0);
    s.promote(0);
    s.write(0, block(12));
    s.pass(2000);
    s.kill(0);
    let drop = NodeSet::only(node(0));
    let promotion = s.world.promotion(node(1), drop);
    if s.command(1, promotion).is_ok() {
        s.wait("serving", |w| w.serving() == Some(node(1)));
        s.read(1, block(12));
    }
}

#[test]
fn a_bit_is_not_cleared_by_an_older_version() {
    for us in 0..40u64 {
        let mut s = Stage::new(2);
        s.evict(0, 1);
        s.write(0, block(10));
        s.mend(0, 1);
        s.wait("a resync", |w| {
            w.notices
                .iter()
                .rev()
                .take(3)
                .any(|(_, n)| matches!(n, Notice::ResyncStarted { .. }))
        });
        // The copy is on its way; the next version's message is lost.
        let until = vocabulary::Time(s.world.now.0 + us * 50_000);
        while s.world.step(until) {}
        s.begin_write(0, block(10));
        s.break_conns(0, 1);
        s.pass(20);
        s.audit();
        s.rest();
    }
}

#[test]
fn a_release_notice_marks_whom_it_does_not_name() {
    let mut s = Stage::new(3);
    s.world.store_cut[1] = true;
    s.power_off(2);
    s.write(0, block(10));
    s.flush(0);
    s.pass(500);
    s.kill(0);
    s.world.store_cut[1] = false;
    s.promote(1);
    s.start(2);
    s.wait_in(2);
    assert!(!s.is_blank(2, 10));
    s.start(0);
    s.rest();
}

#[test]
fn reconcile_marks_absent_replicas() {
    let mut s = Stage::new(3);
    s.evict(0, 2);
    s.cut(1, 2);
    let id = s.begin_write(0, block(10));
    s.wait("the other has it", |w| {
        w.node(node(1)).volumes[0].data.block(10)[0] != 0
    });
    let _ = id;
    s.kill(0);
    s.promote(1);
    s.start(0);
    s.wait_in(0);
    s.flush(1);
    s.pass(1000);
    s.kill(1);
    s.promote(0);
    s.mend(0, 2);
    s.wait_in(2);
    assert!(!s.is_blank(2, 10));
    s.start(1);
    s.mend(1, 2);
    s.rest();
}

#[test]
fn an_ex_primary_rejoins_with_its_own_log() {
    let mut s = Stage::new(2);
    // Written here alone, never answered.
    s.cut(0, 1);
    let id = s.begin_write(0, block(10));
    s.pass(5);
    assert!(s.is_open(id));
    s.kill(0);
    s.promote(1);
    s.mend(0, 1);
    s.start(0);
    s.rest();
    assert!(s.same(0, 1, 10));
}

#[test]
fn force_takes_one_replicas_bytes_for_the_truth() {
    let mut s = Stage::new(2);
    s.evict(0, 1);
    s.write_blocks(0, 10, 4);
    s.kill(0);
    assert_eq!(s.command(1, Command::Force), Ok(()));
    s.wait("serving", |w| w.serving() == Some(node(1)));
    let peers = s
        .world
        .node(node(1))
        .core
        .as_ref()
        .map(|c| c.status(s.world.now).peers);
    let left = peers.and_then(|p| {
        p.first()
            .map(|p| (p.disk_state, p.out_of_sync_bytes.clone()))
    });
    assert_eq!(left, Some((DiskState::Unknown, vec![2 * EXTENT_BYTES])));
    s.mend(0, 1);
    s.start(0);
    s.rest();
    assert!(s.is_blank(0, 10));
}

#[test]
fn copies_are_in_the_targets_window() {
    simulator::executions::copies_are_in_the_targets_window();
}

#[test]
fn force_sets_all_bits() {
    simulator::executions::force_sets_all_bits();
}

/// A client that saw, after a power loss of all, that a write is gone must not meet it again after the
/// next one, as it does not on one disk: it has decided by what it read (a journal was replayed or not).
#[test]
fn what_was_read_in_a_new_history_stays_so_after_the_next_power_loss() {
    for (first, second) in [(0, 1), (1, 0)] {
        let mut s = Stage::new(2);
        s.pass(1000);
        // Lost in 0's cache, on 1 it had reached the medium.
        s.write(0, block(10));
        s.world.power_off(node(0), Loss::All);
        s.world.power_off(node(1), Loss::Nothing);
        s.start(0);
        s.start(1);
        s.pass(200);
        s.promote(first);
        // The other is a member still, by its old incarnation, and can't be evicted.
        s.world.store.up = false;
        let read = s.ask(first, Ask::Read(block(10)));
        s.pass(20);
        assert!(s.is_open(read), "answered while {second} may say otherwise");
        s.power_off(0);
        s.power_off(1);
        s.world.store.up = true;
        s.start(0);
        s.start(1);
        s.pass(200);
        s.promote(second);
        s.read(second, block(10));
        s.rest();
    }
}
