//! Executions that show a fault which random seeds meet too rarely: each goes through on the sound
//! core, and breaks a rule with the fault that it was written for.

use crate::rules::replicas_are_equal;
use crate::stage::{Stage, V, block, node};
use replicator::core::api::Command;
use replicator::core::mutation::Mutation;
use vocabulary::EXTENT_BYTES;

/// How often an execution that needs luck is tried.
const VARIATIONS: u32 = 12;

/// An execution and the fault that it shows.
pub const ALL: &[(Mutation, fn())] = &[
    (
        Mutation::CopiesOutsideWindow,
        copies_are_in_the_targets_window,
    ),
    (Mutation::ForceWithoutBits, force_sets_all_bits),
];

/// {0, 1} in sync, 2 away. 0 writes W, which reaches nobody else, and is promoted anew; while it
/// copies W to 2, 1 has not heard yet that W's range is in doubt; 0 dies, 1 is promoted. Only 2's own
/// window says that 2 holds W (RULES 6).
///
/// # Panics
/// Where a rule is broken.
pub fn copies_are_in_the_targets_window() {
    // What a dead process had handed to the network is a matter of luck: it is tried several times.
    let went = (0..VARIATIONS)
        .filter(|v| copy_before_the_touch(*v))
        .count();
    assert!(went > 0, "the execution never went as it is meant to");
}

/// False where 1 heard of W or of its range, so that this variation shows nothing.
fn copy_before_the_touch(variation: u32) -> bool {
    let mut stage = Stage::of(3, EXTENT_BYTES, |_| {});
    for _ in 0..variation {
        stage.world.rng.draw();
    }
    // Keeps the extent in 2's activity log, so that the fault does not show as a write that waits.
    stage.write(0, block(500));
    stage.evict(0, 2);
    stage.cut(1, 2);
    stage.pass(1000);
    // 1 hears nothing of W, neither now nor when the link is mended.
    stage.world.store_cut[0] = true;
    stage.cut(0, 1);
    stage.break_conns(0, 1);
    stage.begin_write(0, block(10));
    stage.pass(2);
    stage.kill(0);
    stage.world.store_cut[0] = false;
    stage.pass(2);
    stage.mend(0, 1);
    stage.mend(0, 2);
    stage.pass(5);
    if !stage.is_blank(1, 10) {
        return false;
    }
    stage.start(0);
    stage.promote(0);
    stage.world.store_cut[0] = true;
    // What was sent to 1 stays in the link for good.
    stage.cut(0, 1);
    stage.wait("the copy", |w| {
        w.node(node(2)).volumes[0].data.block(10)[0] != 0
    });
    stage.kill(0);
    let heard = stage.world.node(node(1)).core.as_ref().is_some_and(|core| {
        core.may_differ(node(2), V)
            .iter()
            .any(|r| r.overlaps(block(10)))
    });
    if heard || !stage.is_blank(1, 10) {
        return false;
    }
    stage.promote(1);
    stage.mend(1, 2);
    stage.wait_in(2);
    stage.audit();
    if let Err(violation) = replicas_are_equal(stage.world.record(), &stage.world.nodes) {
        panic!("{violation}");
    }
    true
}

/// 0 alone writes; 2 gets half of it in a resync that breaks off; 0 is lost and the operator takes 1's
/// bytes for the truth. Nobody but the force knows that 2 differs from 1: 2 took copies, for which it
/// marks nobody (RULES 7, force in section 1).
///
/// # Panics
/// Where a rule is broken.
pub fn force_sets_all_bits() {
    let mut stage = Stage::new(3);
    stage.pass(1000);
    stage.cut(1, 2);
    stage.evict(0, 1);
    stage.evict(0, 2);
    stage.write_blocks(0, 10, 200);
    stage.flush(0);
    stage.health(2).slower = 30;
    stage.mend(0, 2);
    stage.wait("a part that is released", |w| {
        let disk = &w.node(node(2)).volumes[0].data;
        let core = w.node(node(2)).core.as_ref();
        let window = core.map(|c| c.may_differ(node(1), V));
        disk.block(20)[0] != 0
            && window.is_some_and(|ranges| !ranges.iter().any(|r| r.overlaps(block(20))))
    });
    stage.kill(0);
    stage.mend_disk(2);
    if stage.command(1, Command::Force) != Ok(()) {
        panic!("force was refused");
    }
    stage.wait("serving", |w| w.serving() == Some(node(1)));
    stage.mend(1, 2);
    stage.wait_in(2);
    stage.audit();
    if let Err(violation) = replicas_are_equal(stage.world.record(), &stage.world.nodes) {
        panic!("{violation}");
    }
}
