//! Executions that show a fault which random seeds meet too rarely: each goes through on the sound
//! core, and breaks a rule with the fault that it was written for.

use crate::client::Ask;
use crate::hunt::Fault;
use crate::rules::replicas_are_equal;
use crate::stage::{Stage, V, block, node};
use crate::world::World;
use controller::core::mutation::Mutation as Control;
use replicator::core::api::Command;
use replicator::core::mutation::Mutation;
use vocabulary::{BLOCK_BYTES, ByteRange, EXTENT_BYTES, NodeSet};

/// How often an execution that needs luck is tried.
const VARIATIONS: u32 = 12;

/// An execution and the fault that it shows.
pub const ALL: &[(Fault, fn())] = &[
    (
        Fault::Engine(Mutation::CopiesOutsideWindow),
        copies_are_in_the_targets_window,
    ),
    (
        Fault::Engine(Mutation::ForceWithoutBits),
        force_sets_all_bits,
    ),
    (
        Fault::Engine(Mutation::WriteWithoutLease),
        a_write_that_ends_without_the_lease_is_not_answered,
    ),
    (
        Fault::Engine(Mutation::LeaseCheckedBeforeRead),
        a_read_that_ends_without_the_lease_is_not_answered,
    ),
    (
        Fault::Engine(Mutation::ServeWithoutWord),
        nobody_serves_while_an_older_lease_may_run,
    ),
    (
        Fault::Engine(Mutation::HandOverKeepsOldBits),
        a_replica_that_was_removed_lacks_everything,
    ),
    (
        Fault::Engine(Mutation::GivenUpNotAwaited),
        what_was_given_up_does_not_come_back,
    ),
    (
        Fault::Engine(Mutation::PiecesByLengthOnly),
        zeroes_across_a_pieces_end_are_forwarded,
    ),
    (
        Fault::Control(Control::LeaseFromReceipt),
        a_late_answer_makes_no_lease_longer,
    ),
    (
        Fault::Control(Control::BeaconsDespiteDeadPlane),
        a_primary_whose_plane_stands_still_is_replaced,
    ),
];

/// Time in which another node takes over, with some slack: leases are of 150 ms.
const TAKE_OVER_MS: u64 = 2_000;

/// The data plane of the primary stands still for long while its controller goes on: another node takes
/// over (RULES 4).
///
/// # Panics
/// Where a rule is broken, or nobody takes over.
pub fn a_primary_whose_plane_stands_still_is_replaced() {
    let mut stage = Stage::whole(2, 1, false);
    let old = primary(&stage);
    stage.write(old, block(10));
    let now = stage.world.now;
    let stalled = stage.world.node_mut(node(old));
    stalled.stalled_since = now;
    stalled.stalled_until = now.plus_ms(10 * TAKE_OVER_MS);
    let other = node(1 - old);
    let done = stage
        .world
        .run_until(TAKE_OVER_MS, |w| w.serving() == Some(other));
    stage.check();
    assert!(done, "nobody took over");
    stage.read(1 - old, block(10));
    stage.wait("the old one is back", World::is_at_rest);
}

/// The primary's own disk holds a request up; another node takes over, and then the request is done, with
/// all that it needed but a lease (RULES 4, and the first execution of section 5).
fn ends_without_the_lease(request: Ask) {
    let mut stage = Stage::whole(2, 1, false);
    let old = primary(&stage);
    stage.write(old, block(10));
    stage.health(old).stuck = true;
    let open = stage.ask(old, request);
    stage.pass(20);
    leave_alone(&mut stage, old);
    stage.wait("another serves", |w| w.serving() == Some(node(1 - old)));
    stage.mend_disk(old);
    stage.pass(20);
    assert!(stage.is_open(open), "it is answered without a lease");
    stage.world.repair_all();
    stage.rest();
}

/// Nobody of two nodes and a witness hears this one.
fn leave_alone(stage: &mut Stage, number: u8) {
    for other in (0..3).filter(|other| *other != number) {
        stage.cut(number, other);
    }
}

/// A write that all have.
///
/// # Panics
/// Where a rule is broken.
pub fn a_write_that_ends_without_the_lease_is_not_answered() {
    ends_without_the_lease(Ask::Write(block(10), false));
}

/// A read that began under the lease.
///
/// # Panics
/// Where a rule is broken.
pub fn a_read_that_ends_without_the_lease_is_not_answered() {
    ends_without_the_lease(Ask::Read(block(10)));
}

/// A node is promoted at an operator's word right after it was cut off from the primary, whose lease still
/// runs (RULES 4).
///
/// # Panics
/// Where a rule is broken.
pub fn nobody_serves_while_an_older_lease_may_run() {
    let mut stage = Stage::whole(2, 1, false);
    let old = primary(&stage);
    let new = 1 - old;
    leave_alone(&mut stage, old);
    let promotion = stage.world.promotion(node(new), NodeSet::only(node(old)));
    assert_eq!(stage.command(new, promotion), Ok(()));
    stage.wait("serving", |w| w.serving() == Some(node(new)));
    stage.world.repair_all();
    stage.rest();
}

/// Answers to the primary's beacons are on their way for long when it is cut off: its lease ends when it
/// would have (RULES 4).
///
/// # Panics
/// Where a rule is broken.
pub fn a_late_answer_makes_no_lease_longer() {
    for late_us in [80_000, 100_000, 120_000] {
        let mut stage = Stage::whole(2, 1, false);
        let old = primary(&stage);
        let new = 1 - old;
        stage.world.net.delay_us[usize::from(new)][usize::from(old)] = late_us;
        stage.pass(500);
        leave_alone(&mut stage, old);
        stage.wait("another serves", |w| w.serving() == Some(node(new)));
        stage.world.repair_all();
        stage.rest();
    }
}

/// Two nodes without a witness, A and B. A had B switched off, goes on alone and acknowledges W. A dies, B
/// boots: it may not shoot A and go on with what it has (section 3).
///
/// # Panics
/// Where a rule is broken.
pub fn a_booting_node_fences_nobody() {
    let (mut stage, a, b) = alone_after_a_fence();
    stage.power_off(a);
    stage.world.power_on(node(b));
    stage.pass(3 * TAKE_OVER_MS);
    assert_eq!(stage.world.serving(), None, "it may lack what A wrote");
    taken_back(&mut stage, a);
}

/// The same, but B boots while A lives, they exchange a greeting, and then A dies.
///
/// # Panics
/// Where a rule is broken.
pub fn a_greeting_brings_nobody_up_to_date() {
    for ms in (80..300).step_by(10) {
        let (mut stage, a, b) = alone_after_a_fence();
        stage.world.power_on(node(b));
        stage.pass(ms);
        stage.power_off(a);
        stage.pass(3 * TAKE_OVER_MS);
        taken_back(&mut stage, a);
    }
}

/// A cluster of A alone, which has had B switched off and acknowledged a write since.
fn alone_after_a_fence() -> (Stage, u8, u8) {
    let mut stage = Stage::whole(2, 0, true);
    let a = primary(&stage);
    let b = 1 - a;
    stage.cut(a, b);
    stage.wait("A goes on alone", |w| {
        let control = w.control.as_ref();
        !w.node(node(b)).is_on() && control.is_some_and(|c| c.document().voters.len() == 1)
    });
    stage.mend(a, b);
    stage.wait("A serves", |w| w.serving() == Some(node(a)));
    stage.write(a, block(10));
    stage.flush(a);
    (stage, a, b)
}

/// A boots, and B is a voter and in sync again.
fn taken_back(stage: &mut Stage, a: u8) {
    stage.world.power_on(node(a));
    stage.rest();
    let serving = primary(stage);
    stage.read(serving, block(10));
}

fn primary(stage: &Stage) -> u8 {
    stage.world.serving().map_or(0, |node| node.get())
}

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

/// {0, 1, 2} in sync. 1 is away while 2 is removed and added again, and is admitted before 2 is: what 1
/// knew of 2 is worth nothing (section 1, "configured").
///
/// # Panics
/// Where a rule is broken.
pub fn a_replica_that_was_removed_lacks_everything() {
    let mut stage = Stage::new(3);
    stage.write(0, block(10));
    stage.pass(1000);
    stage.kill(1);
    stage.wait_out(1);
    stage.configure(&[0, 1]);
    stage.pass(500);
    stage.cut(0, 2);
    stage.cut(1, 2);
    // What becomes of the store of a replica that is none is nobody's business.
    stage.scribble(2, 300);
    stage.write(0, block(12));
    stage.configure(&[0, 1, 2]);
    stage.start(1);
    stage.wait_in(1);
    stage.kill(0);
    stage.promote(1);
    stage.mend(1, 2);
    stage.wait_in(2);
    stage.audit();
    if let Err(violation) = replicas_are_equal(stage.world.record(), &stage.world.nodes) {
        panic!("{violation}");
    }
}

/// Pieces of this length, in bytes.
const PIECE: u64 = 16 << 10;

/// Zeroes of two pieces are given up with the first one under way. The second one does not come over a
/// later write (errors without a quorum).
///
/// # Panics
/// Where a rule is broken.
pub fn what_was_given_up_does_not_come_back() {
    let mut stage = Stage::of(2, EXTENT_BYTES, |config| {
        config.min_redundancy = 2;
        config.settings.no_quorum_errors = true;
        config.settings.no_primary_ms = 500;
        config.settings.zero_piece_bytes = PIECE;
    });
    stage.cut(0, 1);
    let both = ByteRange::between(PIECE - BLOCK_BYTES, PIECE + BLOCK_BYTES);
    let second = ByteRange::between(PIECE, both.end());
    let zeroes = Ask::Zero(both, false, false);
    assert!(!stage.asked(0, zeroes), "nobody can have answered that");
    stage.begin_write(0, second);
    stage.mend(0, 1);
    stage.rest();
    stage.pass(500);
    stage.read(0, second);
    stage.write(0, second);
    stage.read(0, second);
}

/// A short write of zeroes across a piece's end goes to the primary in two (RULES 12: a number stands for
/// one write).
///
/// # Panics
/// Where it is not answered.
pub fn zeroes_across_a_pieces_end_are_forwarded() {
    let mut stage = Stage::of(2, EXTENT_BYTES, |config| {
        config.follow = true;
        config.settings.zero_piece_bytes = PIECE;
    });
    let both = ByteRange::between(PIECE - BLOCK_BYTES, PIECE + BLOCK_BYTES);
    stage.write(1, both);
    assert!(stage.asked(1, Ask::Zero(both, false, false)), "an error");
    stage.read(0, both);
}
