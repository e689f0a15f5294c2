//! Verify, I/O errors and resize. The cases are DRBD's, under the names of its tests (cases only).

use super::*;

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

fn begin_verify(s: &mut Stage) -> u64 {
    let (node, repair) = (None, false);
    s.world
        .command(simulator::stage::node(0), Command::Verify { node, repair })
}

#[test]
fn verify_ends_under_writes_and_finds_nothing() {
    let mut s = Stage::new(2);
    let id = begin_verify(&mut s);
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
    let id = begin_verify(&mut s);
    s.pass(5);
    s.power_off(1);
    s.wait("an end", |w| w.operator.answers.contains_key(&id));
    s.start(1);
    s.rest();
}

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
    assert_eq!(
        s.status(0).map(|s| s.waiting_for),
        Some(NodeSet::only(node(1)))
    );
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
    let mut s = Stage::behind(2);
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
