//! Roles and who may have them.

use super::*;

#[test]
fn switch_primaries() {
    let mut s = Stage::new(2);
    for round in 0..4u8 {
        let (old, new) = (round % 2, (round + 1) % 2);
        s.write(old, block(10));
        assert_eq!(s.command(old, Command::Demote { to: None }), Ok(()));
        s.promote(new);
        s.read(new, block(10));
    }
    s.rest();
}

#[test]
fn a_demotion_goes_on_when_the_replicas_are_others_meanwhile() {
    let mut s = Stage::new(3);
    s.world.store.up = false;
    let demotion = s.world.command(node(0), Command::Demote { to: None });
    s.pass(50);
    s.configure(&[0, 1]);
    s.world.store.up = true;
    s.wait("demoted", |w| w.operator.answers.contains_key(&demotion));
    assert_eq!(s.world.operator.answers[&demotion], Ok(()));
    s.promote(1);
    s.rest();
}

/// It waits for a member that it may not leave out, whose window it does not know yet.
#[test]
fn a_primary_that_still_gathers_demotes_and_settles_nothing() {
    let mut s = Stage::of(2, EXTENT_BYTES, |config| config.min_redundancy = 2);
    s.health(0).stuck = true;
    s.begin_write(0, block(10));
    s.pass(5);
    s.kill(0);
    s.mend_disk(0);
    let promotion = s.world.promotion(node(1), NodeSet::EMPTY);
    assert_eq!(s.command(1, promotion), Ok(()));
    // Its promise is on disk.
    s.pass(100);
    s.world.store.up = false;
    // For longer than anything is left without a flush.
    let undecided = Err(CommandError::Undecided);
    assert_eq!(s.command(1, Command::Demote { to: None }), undecided);
    s.world.store.up = true;
    s.wait("demoted", |w| w.record().primary.is_none());
    s.start(0);
    s.promote(1);
    s.rest();
}

#[test]
fn concurrent_promotions_have_one_winner() {
    let mut s = Stage::new(3);
    assert_eq!(s.command(0, Command::Demote { to: None }), Ok(()));
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
