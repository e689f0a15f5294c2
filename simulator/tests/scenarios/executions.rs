//! The executions of RULES section 5.

use super::*;

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

/// 1 lacks a block and gets it; the proposal to admit it is on its way for a long time.
fn an_admit_is_on_its_way() -> Stage {
    let mut s = Stage::behind(1);
    s.mend(0, 1);
    s.world.faults.store_late = 100;
    s.wait("an admit is proposed", |w| {
        w.pending().iter().any(|(_, _, what)| {
            matches!(what, simulator::world::Occurrence::Propose(_, _, change)
                if matches!(**change, vocabulary::Change::Admit { .. }))
        })
    });
    s.world.faults.store_late = 0;
    s
}

#[test]
fn undecided_admit_counts_until_it_is_decided() {
    let mut s = an_admit_is_on_its_way();
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
    let mut s = an_admit_is_on_its_way();
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
        let mut s = Stage::behind(1);
        s.mend(0, 1);
        s.wait_for_resync();
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
    let peers = s.status(1).map(|status| status.peers).unwrap_or_default();
    let left = peers.first();
    let left = left.map(|p| (p.disk_state, p.out_of_sync_bytes.clone()));
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

#[test]
fn a_primary_whose_plane_stands_still_is_replaced() {
    simulator::executions::a_primary_whose_plane_stands_still_is_replaced();
}

#[test]
fn a_booting_node_fences_nobody() {
    simulator::executions::a_booting_node_fences_nobody();
}

#[test]
fn a_greeting_brings_nobody_up_to_date() {
    simulator::executions::a_greeting_brings_nobody_up_to_date();
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

/// A member that restarts may meet an old record first, from a node that has heard nothing newer. What that
/// one says of who holds the same says nothing of the bits that were set since.
#[test]
fn an_old_record_after_a_restart_clears_no_bit() {
    let mut s = Stage::new(3);
    let old = s.world.record().clone();
    s.evict(0, 1);
    s.cut(1, 2);
    s.write(0, block(10));
    s.flush(0);
    s.pass(1000);
    s.kill(0);
    s.kill(2);
    s.world.store_cut[2] = true;
    s.world.start_process(node(2));
    s.wait("it runs", |w| w.node(node(2)).core.is_some());
    s.world.feed(node(2), Event::Record(old));
    s.pass(50);
    s.world.store_cut[2] = false;
    let newest = s.world.record().generation;
    s.wait("it knows the newest record", |w| {
        let core = w.node(node(2)).core.as_ref();
        core.is_some_and(|core| core.generation() == newest)
    });
    s.audit();
    s.promote(2);
    s.mend(1, 2);
    s.wait_in(1);
    assert!(!s.is_blank(1, 10));
    s.start(0);
    s.mend(0, 1);
    s.rest();
}
