//! Promises of fail-over, each on a little cluster in `world`; `walk` lets loose all faults at once.

mod fencing;
mod walk;
mod world;

use super::*;
use world::{R, World, id};

/// A silence and what a candidate takes to notice it, by the slower clock, and the store's round.
fn take_over_ms(settings: &Settings) -> u64 {
    settings.silence_ms() + TICK_MS + 2 * settings.stagger_ms / 2 + 30
}

#[test]
fn the_best_member_takes_over_from_a_dead_primary_within_silence_and_stagger() {
    for seed in 0..100 {
        let mut world = World::served_by_1(4, 3, seed);
        world.kill(1);
        let took = world.until("another answers", 5_000, |w| w.answers().is_some());
        assert_eq!(world.answers(), Some(id(2)));
        assert!(took <= take_over_ms(&world.settings), "{took} ms");
        world.run_ms(3_000);
        assert_eq!(world.promoted.len(), 1, "{:?}", world.promoted);
    }
}

#[test]
fn the_preferred_member_takes_over_before_others() {
    let mut world = World::served_by_1(4, 3, 1);
    world.resource().policy.preferred = Some(id(3));
    world.run_ms(200);
    world.kill(1);
    world.until("another answers", 2_000, |w| w.answers().is_some());
    assert_eq!(world.answers(), Some(id(3)));
}

#[test]
fn the_next_best_takes_over_where_the_best_does_not() {
    let mut world = World::served_by_1(4, 3, 2);
    // 2 answers beacons but has no way to the store.
    world.apart.insert(id(2));
    world.run_ms(200);
    world.kill(1);
    world.until("another answers", 2_000, |w| w.answers().is_some());
    assert_eq!(world.answers(), Some(id(3)));
}

#[test]
fn a_primary_that_came_back_does_not_take_over_again() {
    let mut world = World::served_by_1(4, 3, 3);
    world.resource().policy.preferred = Some(id(1));
    world.kill(1);
    world.until("another answers", 2_000, |w| w.answers().is_some());
    world.start(1, false);
    world.run_ms(5_000);
    assert_eq!(world.answers(), Some(id(2)));
    assert!(
        world.record().members().contains(id(1)),
        "it is in sync again"
    );
}

#[test]
fn a_primary_whose_process_restarts_waits_out_what_it_may_have_granted() {
    let mut world = World::served_by_1(3, 1, 4);
    world.kill(1);
    world.start(1, false);
    let took = world.until("it answers again", 3_000, |w| w.answers().is_some());
    assert!(took >= world.settings.silence_ms(), "{took} ms");
}

#[test]
fn a_node_that_restarts_grants_nothing_away_that_it_granted_before() {
    for seed in 0..50 {
        let mut world = World::served_by_1(3, 2, seed);
        // 2 restarts within a moment and hears nothing of 1 any more, which has its lease yet.
        world.cut.insert((id(1), id(2)));
        world.apart.insert(id(1));
        world.kill(2);
        world.start(2, seed % 2 == 0);
        let took = world.until("2 answers", 3_000, |w| w.answers() == Some(id(2)));
        assert!(took >= world.settings.lease_ms, "{took} ms");
    }
}

#[test]
fn a_primary_that_lacks_a_members_answer_asks_for_no_lease_and_is_replaced_where_it_cannot_evict() {
    let mut world = World::served_by_1(4, 3, 5);
    // 1 and 3 do not hear each other, 2 hears both; 1 has no way to the store.
    world.cut_between(id(1), id(3));
    world.apart.insert(id(1));
    let took = world.until("another answers", 3_000, |w| {
        w.answers().is_some_and(|node| node != id(1))
    });
    // 3 has heard nothing of 1 for longer than 2, so it may go first.
    assert_ne!(world.answers(), Some(id(1)));
    assert!(
        took <= world.settings.lease_ms + take_over_ms(&world.settings),
        "{took} ms"
    );
}

#[test]
fn a_primary_that_can_evict_whom_it_lost_goes_on() {
    // A cut between two replicas that both reach the witness.
    let mut world = World::served_by_1(3, 2, 6);
    world.cut_between(id(1), id(2));
    world.run_ms(3_000);
    assert_eq!(world.answers(), Some(id(1)));
    assert_eq!(world.record().members(), NodeSet::only(id(1)));
    assert_eq!(world.promoted, []);
    world.cut.clear();
    world.until("2 is in sync again", 3_000, |w| {
        w.record().members().len() == 2
    });
    assert_eq!(world.answers(), Some(id(1)));
}

#[test]
fn a_primary_that_hears_but_is_not_heard_is_replaced_and_the_other_way_round() {
    for inwards in [false, true] {
        let mut world = World::served_by_1(3, 2, 7);
        let cut = if inwards {
            (id(2), id(1))
        } else {
            (id(1), id(2))
        };
        world.cut.insert(cut);
        world.apart.insert(id(1));
        world.until("2 answers", 3_000, |w| w.answers() == Some(id(2)));
    }
}

#[test]
fn a_primary_that_is_cut_off_answers_nothing_when_its_lease_is_over() {
    let mut world = World::served_by_1(3, 2, 8);
    world.cut_off(1);
    let took = world.until("it answers nothing", 1_000, |w| w.answers().is_none());
    assert!(took <= world.settings.lease_ms + 10, "{took} ms");
    world.until("2 answers", 1_000, |w| w.answers() == Some(id(2)));
}

#[test]
fn a_primary_that_stood_still_for_a_minute_finds_itself_replaced() {
    let mut world = World::served_by_1(3, 2, 9);
    world.pause(1, 60_000);
    world.until("2 answers", 2_000, |w| w.answers() == Some(id(2)));
    world.run_ms(65_000);
    assert_eq!(world.answers(), Some(id(2)));
    assert_eq!(world.promoted.len(), 1);
}

#[test]
fn a_demotion_frees_the_others_at_once() {
    let mut world = World::served_by_1(3, 2, 10);
    world.resource().next = Some(id(2));
    let took = world.until("2 answers", 3_000, |w| w.answers() == Some(id(2)));
    assert!(took <= 200, "{took} ms");
    assert_eq!(world.promoted.len(), 1);
}

#[test]
fn a_node_on_standby_hands_over_and_is_not_promoted() {
    let mut world = World::served_by_1(4, 3, 11);
    world.document.nodes[0].state = NodeState::Standby;
    world.until("2 answers", 3_000, |w| w.answers() == Some(id(2)));
    world.kill(2);
    world.until("3 answers", 3_000, |w| w.answers() == Some(id(3)));
    world.kill(3);
    world.run_ms(5_000);
    assert_eq!(world.answers(), None);
    assert!(matches!(
        world.waiting(1),
        Some(Waiting::Standby(_) | Waiting::LastGoodCopy(_))
    ));
}

#[test]
fn a_resource_that_is_down_has_no_primary_until_it_is_up_again() {
    let mut world = World::served_by_1(3, 2, 12);
    world.resource().up = false;
    world.run_ms(3_000);
    assert_eq!((world.answers(), world.record().primary), (None, None));
    assert_eq!(world.waiting(2), Some(Waiting::Down));
    world.resource().up = true;
    world.until("one answers", 1_000, |w| w.answers().is_some());
}

#[test]
fn a_faulty_replica_is_not_promoted_and_is_left_out() {
    let mut world = World::served_by_1(4, 3, 13);
    world.fail_disk(2, true);
    world.run_ms(300);
    world.kill(1);
    world.until("another answers", 2_000, |w| w.answers().is_some());
    assert_eq!(world.answers(), Some(id(3)));
    assert_eq!(world.record().members(), NodeSet::only(id(3)));
}

#[test]
fn a_primary_whose_disk_fails_hands_over() {
    let mut world = World::served_by_1(3, 2, 14);
    world.fail_disk(1, true);
    world.until("2 answers", 1_000, |w| w.answers() == Some(id(2)));
}

#[test]
fn a_primary_that_lets_go_does_not_stand_in_before_that_is_decided() {
    let mut world = World::served_by_1(3, 2, 21);
    let promoted = |world: &World| {
        let by_1 = |(node, action): &&(NodeId, Action)| {
            *node == id(1) && matches!(action, Action::Promote { .. })
        };
        world.actions.iter().filter(by_1).count()
    };
    let before = promoted(&world);
    world.delay_ms = (80, 80);
    world.let_go(1);
    world.until("it is decided", 1_000, |w| w.record().primary.is_none());
    assert_eq!(promoted(&world), before);
    world.until("one answers", 2_000, |w| w.answers().is_some());
}

#[test]
fn no_member_is_left_out_below_min_redundancy() {
    let mut world = World::served_by_1(4, 3, 15);
    let resource = world.resource();
    resource.min_redundancy = 2;
    resource.record.as_mut().unwrap().min_redundancy = 2;
    resource.record.as_mut().unwrap().generation = vocabulary::Generation(1000);
    world.run_ms(500);
    world.kill(1);
    world.kill(3);
    world.run_ms(3_000);
    let members = world.record().members();
    assert!(members.len() >= 2, "{members:?}");
    assert_eq!(world.answers(), None);
    world.start(3, false);
    world.until("one answers", 5_000, |w| w.answers().is_some());
}

#[test]
fn a_primary_whose_data_plane_stands_still_is_replaced() {
    let mut world = World::served_by_1(3, 2, 16);
    world.turn(1, false);
    world.until("2 answers", 2_000, |w| w.answers() == Some(id(2)));
}

#[test]
fn a_node_whose_data_plane_stands_still_is_not_promoted() {
    let mut world = World::served_by_1(4, 3, 17);
    world.turn(2, false);
    world.run_ms(300);
    world.kill(1);
    world.until("another answers", 2_000, |w| w.answers().is_some());
    assert_eq!(world.answers(), Some(id(3)));
    assert!(world.promoted.iter().all(|(_, node)| *node == id(3)));
}

#[test]
fn a_beacon_that_comes_after_a_promotion_was_proposed_is_granted_nothing() {
    let mut world = World::served_by_1(3, 2, 18);
    let epoch = world.record().epoch;
    world.pause(1, 1_000);
    world.until("2 proposes itself", 2_000, |w| {
        w.actions
            .iter()
            .any(|(_, action)| matches!(action, Action::Promote { .. }))
    });
    let machine = world.machine(2);
    let late = Message::Beacon {
        lease_ms: 500,
        run: 1,
        sent: Time(1),
        leases: vec![(R, epoch)],
        faulty: Vec::new(),
    };
    let mut core = machine.core.clone();
    let mut out = Vec::new();
    core.handle(core.poll_timeout(), Event::Message(id(1), late), &mut out);
    let granted = out.iter().find_map(|action| match action {
        Action::Send(_, Message::Answer { granted, .. }) => Some(granted.len()),
        _ => None,
    });
    assert_eq!(granted, Some(0));
}

#[test]
fn an_answer_to_the_process_before_this_one_grants_nothing() {
    let mut core = Failover::new(id(1), 5, Settings::default(), Time(1));
    let mut out = Vec::new();
    let world = World::new(3, 2, 19);
    core.handle(Time(2), Event::Document(&world.document), &mut out);
    out.clear();
    let answer = Message::Answer {
        run: 4,
        sent: Time(1),
        granted: vec![(R, Epoch(2))],
    };
    core.handle(Time(3), Event::Message(id(2), answer), &mut out);
    assert!(!core.reaches(Time(3), id(2)));
}

#[test]
fn the_last_good_copy_is_waited_for_and_named() {
    let mut world = World::served_by_1(3, 2, 20);
    world.kill(2);
    world.until("2 is evicted", 2_000, |w| {
        w.record().members() == NodeSet::only(id(1))
    });
    world.kill(1);
    world.start(2, false);
    world.run_ms(5_000);
    assert_eq!(world.answers(), None);
    assert_eq!(
        world.waiting(2),
        Some(Waiting::LastGoodCopy(NodeSet::only(id(1))))
    );
    world.start(1, true);
    world.until("1 answers", 3_000, |w| w.answers() == Some(id(1)));
}
