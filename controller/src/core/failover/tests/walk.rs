//! A random walk with all faults at once: at no true time may two nodes answer (checked in `world`), and
//! soon after the last fault one does. Each deliberate fault of the core is noticed.

use super::super::*;
use super::world::{World, id};

fn walk(seed: u64) {
    let count = 2 + u8::try_from(seed % 4).unwrap();
    let replicas = if seed.is_multiple_of(3) {
        count.min(2)
    } else {
        count
    };
    let mut world = World::new(count, replicas, seed);
    let choose = |world: &mut World, of: &[(u64, u64)]| {
        let index = world.random(of.len() as u64);
        of[usize::try_from(index).unwrap()]
    };
    world.delay_ms = choose(&mut world, &[(0, 2), (0, 150), (0, 900)]);
    (world.loss_percent, _) = choose(&mut world, &[(0, 0), (5, 0), (30, 0)]);
    (world.double_percent, _) = choose(&mut world, &[(0, 0), (20, 0)]);
    for _ in 0..40 {
        let (span, _) = choose(&mut world, &[(20, 0), (200, 0), (1_500, 0)]);
        let span = 1 + world.random(span);
        world.run_ms(span);
        let mut any = || 1 + u8::try_from(world.random(u64::from(count))).unwrap();
        let (a, b) = (any(), any());
        let primary = world.answers().map_or(a, NodeId::get);
        let reset = world.random(2) == 0;
        match world.random(15) {
            0 => world.kill(a),
            1 => {
                world.kill(a);
                world.start(a, reset);
            }
            2 if !world.machine(a).up => world.start(a, reset),
            3 => {
                let (ms, _) = choose(&mut world, &[(50, 0), (700, 0), (5_000, 0)]);
                world.pause(primary, ms);
            }
            4 => world.cut_off(primary),
            5 if a != b => {
                world.cut.insert((id(a), id(b)));
            }
            6 if a != b => world.cut_between(id(a), id(b)),
            7 | 8 => {
                world.cut.clear();
                world.apart = NodeSet::EMPTY;
            }
            9 => world.apart.insert(id(a)),
            10 => {
                let turning = world.machine(primary).turning;
                world.turn(primary, !turning);
            }
            11 => world.resource().next = Some(id(b)),
            12 => {
                let (ms, _) = choose(&mut world, &[(50, 0), (700, 0)]);
                world.pause(b, ms);
            }
            13 => {
                world.kill(primary);
                world.start(primary, reset);
            }
            _ => {}
        }
    }
    world.cut.clear();
    world.apart = NodeSet::EMPTY;
    (world.loss_percent, world.double_percent) = (0, 0);
    world.delay_ms = (0, 2);
    world.resource().next = None;
    for node in 1..=count {
        if !world.machine(node).up {
            world.start(node, false);
        }
        world.turn(node, true);
    }
    world.until("one answers when all is well", 15_000, |w| {
        w.answers().is_some()
    });
}

#[test]
fn at_no_time_may_two_nodes_answer_whatever_happens() {
    for seed in 0..1_500 {
        walk(seed);
    }
}

/// Seeds that the walk may take to notice a fault.
const SEEDS: u64 = 20_000;

fn walk_notices(mutation: Mutation) {
    crate::core::mutation::activate(Some(mutation));
    let noticed = (0..SEEDS).find(|&seed| std::panic::catch_unwind(|| walk(seed)).is_err());
    crate::core::mutation::activate(None);
    assert!(noticed.is_some(), "{mutation:?} goes unnoticed");
    println!("{mutation:?} is noticed at seed {noticed:?}");
}

#[test]
fn the_walk_notices_a_lease_that_counts_from_its_receipt() {
    walk_notices(Mutation::LeaseFromReceipt);
}

#[test]
fn the_walk_notices_a_late_beacon_that_is_granted() {
    walk_notices(Mutation::LateBeaconAcknowledged);
}

#[test]
fn the_walk_notices_a_restart_without_grace() {
    walk_notices(Mutation::NoGraceAfterRestart);
}

#[test]
fn a_dead_data_plane_that_sends_beacons_is_noticed() {
    crate::core::mutation::activate(Some(Mutation::BeaconsDespiteDeadPlane));
    let replaced = std::panic::catch_unwind(|| {
        let mut world = World::served_by_1(3, 2, 16);
        world.turn(1, false);
        world.until("2 answers", 10_000, |w| w.answers() == Some(id(2)));
    });
    crate::core::mutation::activate(None);
    assert!(replaced.is_err(), "it was replaced in spite of its beacons");
}
