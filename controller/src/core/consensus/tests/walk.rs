//! A random walk with all faults at once: nothing that was committed is lost, whatever happens, and
//! each deliberate fault of the core is noticed.

use super::super::*;
use super::net::{Change, Net, blank, voter};

/// Faults of every kind for a while, then none: nothing that was committed is ever lost, and soon
/// after the last fault commands are committed again. Checks are in `net`.
fn walk(seed: u64) {
    let count = 1 + u8::try_from(seed % 5).unwrap();
    let mut net = Net::new(count, seed);
    net.loss_percent = [0, 5, 30][usize::try_from(net.random(3)).unwrap()];
    net.double_percent = [0, 20][usize::try_from(net.random(2)).unwrap()];
    net.delay_ms = [(1, 3), (1, 80), (1, 500)][usize::try_from(net.random(3)).unwrap()];
    net.disk_ms = [(0, 1), (1, 100), (1, 300)][usize::try_from(net.random(3)).unwrap()];
    let mut number = 0;
    for _ in 0..60 {
        let span = net.random(200);
        net.run_ms(span);
        let places: Vec<u8> = net.places.keys().copied().collect();
        let any = |net: &mut Net| places[usize::try_from(net.random(places.len() as u64)).unwrap()];
        let (a, b) = (any(&mut net), any(&mut net));
        match net.random(12) {
            0 => net.restart(a),
            1 => net.stop(a),
            2 if net.places[&a].core.is_none() => net.start(a),
            3 => net.cut_off(a),
            4 if a != b => {
                net.cut.insert((a, b));
            }
            5 => net.cut.clear(),
            6 => net.place(a).stuck ^= true,
            7 if places.len() < 5 => {
                let new = u8::try_from(1 + places.len()).unwrap();
                net.install(new, blank(voter(new), &[]));
                net.ask(a, Change::Add(voter(new)));
            }
            8 => {
                net.ask(a, Change::Remove(VoterId(u64::from(b))));
            }
            9 => {
                net.ask(a, Change::Add(voter(b)));
            }
            _ => {
                for place in places.clone() {
                    number += 1;
                    net.ask(place, Change::Unless(number / 2));
                }
            }
        }
    }
    net.cut.clear();
    (net.loss_percent, net.double_percent) = (0, 0);
    (net.delay_ms, net.disk_ms) = ((1, 3), (1, 3));
    let places: Vec<u8> = net.places.keys().copied().collect();
    for place in places {
        net.place(place).stuck = false;
        if net.places[&place].core.is_none() {
            net.start(place);
        }
    }
    let healed = net.now;
    net.commit(Change::Put(1_000_000));
    let took = net.now.ms_since(healed);
    assert!(took < 5_000, "{took} ms until a command was committed");
}

#[test]
fn no_fault_loses_what_was_committed_and_all_is_well_soon_after_the_last() {
    for seed in 0..2_000 {
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
fn the_walk_notices_an_answer_before_it_is_durable() {
    walk_notices(Mutation::AnswerBeforePersist);
}

#[test]
fn the_walk_notices_a_notice_that_is_matched_by_its_index() {
    walk_notices(Mutation::NoticeByIndexOnly);
}

#[test]
fn the_walk_notices_a_lower_entry_that_is_accepted() {
    walk_notices(Mutation::LowerEntryAccepted);
}

#[test]
fn the_walk_notices_an_older_entry_that_counts_as_committed() {
    walk_notices(Mutation::OldEntryCommitted);
}

#[test]
fn the_walk_notices_two_changes_of_voters_at_once() {
    walk_notices(Mutation::TwoVoterChanges);
}

#[test]
fn the_walk_notices_a_voter_that_forgot_its_vote() {
    walk_notices(Mutation::BlankVoterVotes);
}
