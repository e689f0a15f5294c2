//! Promises of the voters' agreement, each on a little network in `net`; `walk` lets loose all faults at
//! once.

mod net;
mod walk;

use super::*;
use net::{Change, Net, No, blank, voter, voter_as};

// --- elections ------------------------------------------------------------------------------------

#[test]
fn a_single_voter_elects_itself_and_commits_what_it_is_told() {
    let mut net = Net::new(1, 1);
    net.commit(Change::Put(7));
    assert!(net.place(1).knows.as_ref().unwrap().has(7));
    assert_eq!(
        net.sent.len(),
        0,
        "a single voter has nobody to talk to: {:?}",
        net.sent
    );
    net.restart(1);
    net.commit(Change::Same);
    assert!(net.place(1).knows.as_ref().unwrap().has(7));
}

#[test]
fn one_voter_is_elected_and_all_know_it() {
    for seed in 0..50 {
        let mut net = Net::new(5, seed);
        net.until("all know one leader", |net| {
            let known: BTreeSet<_> = (1..=5).map(|n| net.core(n).leader()).collect();
            known.len() == 1 && !known.contains(&None)
        });
        assert!(net.leader().is_some());
    }
}

#[test]
fn a_store_has_a_new_leader_soon_after_the_old_one_died() {
    let mut slowest = 0;
    for seed in 0..100 {
        let mut net = Net::led_by_1(3, seed);
        let died = net.now;
        net.stop(1);
        net.until("another leads", |net| net.leader().is_some());
        slowest = slowest.max(net.now.ms_since(died));
    }
    // Twice the shortest time-out of an election, and one split vote.
    assert!(slowest <= 1000, "{slowest} ms");
}

#[test]
fn a_voter_that_was_cut_off_does_not_depose_the_leader_when_it_is_back() {
    let mut net = Net::led_by_1(3, 2);
    let term = net.term(1);
    net.cut_off(3);
    net.run_ms(5_000);
    assert_eq!(net.term(3), term, "asking costs no term");
    net.cut.clear();
    net.commit(Change::Put(1));
    net.until("it follows again", |net| {
        net.place(3).knows.as_ref().is_some_and(|doc| doc.has(1))
    });
    assert_eq!((net.leader(), net.term(1)), (Some(1), term));
}

#[test]
fn a_voter_that_is_cut_off_from_the_leader_alone_does_not_depose_it() {
    for one_way in [false, true] {
        let mut net = Net::led_by_1(3, 3);
        let term = net.term(1);
        net.cut.insert((1, 3));
        if !one_way {
            net.cut.insert((3, 1));
        }
        net.run_ms(5_000);
        net.commit(Change::Put(1));
        assert_eq!((net.leader(), net.term(1)), (Some(1), term));
    }
}

#[test]
fn a_voter_with_an_older_document_is_not_elected() {
    let mut net = Net::led_by_1(3, 4);
    net.cut_off(3);
    net.commit(Change::Put(1));
    net.until("2 stores it", |net| {
        net.place(2).knows.as_ref().is_some_and(|doc| doc.has(1))
    });
    net.cut.clear();
    net.cut_off(1);
    // 3 is the first to ask; its document is old until a leader sends the newer one.
    net.elect(2);
    net.until("3 has it too", |net| {
        net.place(3).knows.as_ref().is_some_and(|doc| doc.has(1))
    });
}

#[test]
fn a_voter_with_the_newest_document_wins_though_another_is_in_a_higher_term() {
    let mut net = Net::led_by_1(3, 5);
    net.stop(2);
    // 3 goes through terms that nobody else hears of.
    let mut promise = net.places[&3].disk.clone();
    net.stop(3);
    net.commit_stored_by_1_alone(Change::Put(1));
    promise.term = Term(9);
    promise.vote = Some(VoterId(3));
    net.install(3, promise);
    net.cut.clear();
    net.commit(Change::Put(2));
    assert_eq!(net.leader(), Some(1));
    assert!(net.place(1).knows.as_ref().unwrap().has(1));
}

#[test]
fn a_leader_that_hears_no_majority_is_none() {
    let mut net = Net::led_by_1(3, 6);
    net.cut_off(1);
    net.run_ms(2 * net.settings.election_ms + 2 * net.settings.beat_ms + 10);
    assert!(!net.core(1).leads());
    assert_eq!(net.core(1).leader(), None);
}

#[test]
fn a_leader_that_hears_no_majority_is_none_however_busy_it_is() {
    let mut net = Net::led_by_1(3, 7);
    net.cut_off(1);
    let id = net.ask(1, Change::Same);
    for _ in 0..100 {
        net.run_ms(10);
        net.ask(1, Change::Same);
    }
    assert!(!net.core(1).leads());
    assert_eq!(net.answers[&id], Decision::Undecided);
}

#[test]
fn a_busy_leader_is_heard_no_more_often_than_needed_by_those_that_have_everything() {
    let mut net = Net::led_by_1(3, 8);
    let before = net.sent.len();
    net.run_ms(1_000);
    let beats = net.sent.len() - before;
    assert!(
        (60..=84).contains(&beats),
        "{beats}: 20 beats, 2 voters, 2 ways"
    );
}

// --- entries --------------------------------------------------------------------------------------

#[test]
fn nothing_is_committed_before_a_majority_has_stored_it() {
    let mut net = Net::led_by_1(3, 9);
    net.place(2).stuck = true;
    net.place(3).stuck = true;
    let id = net.ask(1, Change::Put(1));
    net.run_ms(200);
    assert!(!net.core(1).is_committed());
    assert_eq!(net.answers.get(&id), None);
    net.place(3).stuck = false;
    net.until("it is committed", |net| net.answers.contains_key(&id));
    assert_eq!(net.answers[&id], Decision::Committed);
    assert!(net.places[&3].disk.entry.content.has(1));
    assert!(!net.places[&2].disk.entry.content.has(1));
}

#[test]
fn a_new_leader_stamps_the_document_anew_before_it_counts_as_committed() {
    let mut net = Net::led_by_1(3, 10);
    net.commit_stored_by_1_alone(Change::Put(1));
    let old = net.core(1).promise().entry.at;
    net.restart(1);
    net.cut.clear();
    net.elect(1);
    net.until("it is committed", |net| net.core(1).is_committed());
    let at = net.core(1).promise().entry.at;
    assert!(at.term > old.term && at.index == old.index + 1);
    assert!(net.place(1).knows.as_ref().unwrap().has(1));
    assert!(!net.committed.contains_key(&old));
    let of_older_term = |e: &Envelope<_>| match &e.message {
        Message::Entry { entry, .. } => entry.at.term != e.term,
        _ => false,
    };
    assert_eq!(net.count(of_older_term), 0);
}

#[test]
fn an_entry_that_only_its_dead_leader_stored_is_gone_and_its_command_undecided() {
    let mut net = Net::led_by_1(3, 11);
    net.cut_off(1);
    let id = net.ask(1, Change::Put(1));
    net.run_ms(10);
    net.elect(2);
    net.commit(Change::Put(2));
    net.until("1 has given up", |net| net.answers.contains_key(&id));
    assert_eq!(net.answers[&id], Decision::Undecided);
    net.cut.clear();
    net.until("1 follows", |net| {
        net.place(1).knows.as_ref().is_some_and(|doc| doc.has(2))
    });
    assert!(!net.place(1).knows.as_ref().unwrap().has(1));
}

#[test]
fn commands_that_come_while_a_document_is_on_its_way_share_the_next_one() {
    let mut net = Net::led_by_1(3, 12);
    let before = net.core(1).promise().entry.at.index;
    let ids: Vec<u64> = (0..50).map(|n| net.ask(1, Change::Put(n))).collect();
    net.until("all are committed", |net| {
        ids.iter().all(|id| net.answers.contains_key(id))
    });
    assert!(ids.iter().all(|id| net.answers[id] == Decision::Committed));
    assert_eq!(net.core(1).promise().entry.at.index, before + 2);
}

#[test]
fn a_command_is_answered_once_its_document_was_handed_out() {
    let mut net = Net::led_by_1(3, 13);
    let id = net.ask(1, Change::Put(1));
    net.until("it is answered", |net| net.answers.contains_key(&id));
    assert!(net.place(1).knows.as_ref().unwrap().has(1));
}

#[test]
fn a_voter_that_does_not_lead_names_the_leader() {
    let mut net = Net::led_by_1(3, 14);
    let id = net.ask(2, Change::Put(1));
    let leader = NodeId::new(1);
    assert_eq!(net.answers[&id], Decision::NotLeader { leader });
}

#[test]
fn a_refusal_within_a_document_is_answered_with_it() {
    let mut net = Net::led_by_1(3, 15);
    net.ask(1, Change::Put(1));
    let first = net.ask(1, Change::Unless(2));
    let second = net.ask(1, Change::Unless(2));
    net.until("both are answered", |net| net.answers.contains_key(&second));
    assert_eq!(net.answers[&first], Decision::Committed);
    assert_eq!(net.answers[&second], Decision::Refused(No));
}

#[test]
fn what_changes_nothing_is_confirmed_without_a_new_document() {
    let mut net = Net::led_by_1(3, 16);
    net.commit(Change::Put(1));
    let before = net.core(1).promise().entry.at;
    let (same, refused) = (net.ask(1, Change::Same), net.ask(1, Change::Unless(1)));
    assert_eq!(net.answers.get(&same), None, "not from its own knowledge");
    net.until("both are answered", |net| {
        net.answers.contains_key(&refused)
    });
    assert_eq!(net.answers[&same], Decision::Committed);
    assert_eq!(net.answers[&refused], Decision::Refused(No));
    assert_eq!(net.core(1).promise().entry.at, before);
}

#[test]
fn a_deposed_leader_does_not_answer_from_what_it_once_knew() {
    let mut net = Net::led_by_1(3, 17);
    net.commit(Change::Put(1));
    net.cut_off(1);
    net.elect(2);
    net.commit(Change::Put(2));
    // 1 still believes that it leads, and that 2 was never put.
    assert!(net.core(1).leads());
    let (refused, same) = (net.ask(1, Change::Unless(1)), net.ask(1, Change::Same));
    net.until("1 has given up", |net| !net.core(1).leads());
    assert_eq!(net.answers[&refused], Decision::Undecided);
    assert_eq!(net.answers[&same], Decision::Undecided);
}

#[test]
fn a_late_answer_to_an_older_beat_confirms_nothing() {
    let mut net = Net::led_by_1(3, 18);
    net.run_ms(500);
    let old: Vec<_> = net
        .sent
        .iter()
        .filter(|e| e.to == VoterId(1))
        .cloned()
        .collect();
    net.cut_off(1);
    let id = net.ask(1, Change::Same);
    for envelope in old {
        net.deliver(1, envelope);
    }
    assert_eq!(net.answers.get(&id), None);
}

#[test]
fn a_lost_entry_is_sent_again() {
    let mut net = Net::led_by_1(3, 19);
    net.loss_percent = 100;
    let id = net.ask(1, Change::Put(1));
    net.run_ms(20);
    net.loss_percent = 0;
    net.until("it is committed", |net| net.answers.contains_key(&id));
    assert_eq!(net.answers[&id], Decision::Committed);
    assert_eq!(net.leader(), Some(1));
}

// --- persistence ----------------------------------------------------------------------------------

#[test]
fn no_vote_leaves_before_it_is_durable() {
    let mut net = Net::new(3, 20);
    net.place(2).stuck = true;
    net.place(3).stuck = true;
    net.run_ms(3_000);
    assert_eq!(net.leader(), None);
    let votes = |e: &Envelope<_>| matches!(e.message, Message::VoteAnswer { granted: true });
    assert_eq!(net.count(votes), 0);
    net.place(2).stuck = false;
    net.until("an election is won", |net| net.leader().is_some());
}

#[test]
fn a_candidate_does_not_count_its_own_vote_before_it_is_durable() {
    let mut net = Net::new(1, 21);
    net.place(1).stuck = true;
    net.run_ms(3_000);
    assert_eq!(net.leader(), None);
    net.place(1).stuck = false;
    net.until("an election is won", |net| net.leader() == Some(1));
}

#[test]
fn a_voter_that_restarts_before_its_vote_is_durable_may_vote_anew_and_nobody_counts_the_old_one() {
    let mut net = Net::new(3, 22);
    net.place(2).stuck = true;
    net.cut_off(3);
    net.calm(2);
    let vote = |e: &Envelope<_>| matches!(e.message, Message::Vote { .. }) && e.to == VoterId(2);
    net.until("1 asks 2 for its vote", |net| net.count(vote) > 0);
    net.run_ms(20);
    assert_eq!(net.core(2).promise().vote, Some(VoterId(1)));
    net.stop(2);
    net.place(2).stuck = false;
    net.start(2);
    assert_eq!(net.core(2).promise().vote, None);
    assert_eq!(net.leader(), None);
    net.cut.clear();
    net.cut_off(1);
    net.until("2 or 3 leads", |net| net.leader().is_some());
}

#[test]
fn a_leader_whose_disk_fails_does_not_count_itself() {
    let mut net = Net::led_by_1(3, 23);
    net.place(1).stuck = true;
    net.cut_between(1, 3);
    let id = net.ask(1, Change::Put(1));
    net.run_ms(100);
    assert_eq!(net.answers.get(&id), None, "stored by 2 alone");
    net.cut.clear();
    net.until("2 and 3 store it", |net| net.answers.contains_key(&id));
    assert_eq!(net.answers[&id], Decision::Committed);
    assert!(!net.places[&1].disk.entry.content.has(1));
    net.stop(1);
    net.until("another leads", |net| net.leader().is_some());
    net.commit(Change::Put(2));
    let leader = net.leader().unwrap();
    assert!(net.place(leader).knows.as_ref().unwrap().has(1));
}

#[test]
fn a_voter_whose_disk_hangs_keeps_a_bounded_number_of_answers() {
    let mut net = Net::led_by_1(3, 24);
    net.place(3).stuck = true;
    for number in 0..500 {
        net.commit(Change::Put(number));
        net.run_ms(60);
    }
    let held = net.core(3).held.len();
    assert!(held <= 8, "{held}");
    net.place(3).stuck = false;
    net.until("it has caught up", |net| {
        net.place(3).knows.as_ref().is_some_and(|doc| doc.has(499))
    });
}

#[test]
fn a_slow_disk_delays_answers_and_keeps_none_back_for_ever() {
    let mut net = Net::led_by_1(3, 25);
    net.places.get_mut(&3).unwrap().stuck = false;
    net.disk_ms = (30, 40);
    net.stop(2);
    let term = net.term(1);
    for number in 0..20 {
        net.commit(Change::Put(number));
    }
    assert_eq!((net.leader(), net.term(1)), (Some(1), term));
}

// --- messages that are late, doubled, misled ------------------------------------------------------

#[test]
fn messages_that_come_twice_or_years_later_change_nothing() {
    let mut net = Net::led_by_1(3, 26);
    for number in 0..5 {
        net.commit(Change::Put(number));
    }
    net.stop(1);
    net.until("another leads", |net| net.leader().is_some());
    net.start(1);
    net.commit(Change::Put(9));
    net.run_ms(500);
    let promises: Vec<_> = (1..=3).map(|n| net.core(n).promise().clone()).collect();
    let leader = net.leader();
    let mut old = net.sent.clone();
    old.reverse();
    for envelope in old {
        let number = net.core(1).me().id.0;
        assert_eq!(number, 1);
        let to = u8::try_from(envelope.to.0).unwrap();
        // A leader's own confirmed rounds aside, a message of any age is without effect.
        net.deliver(to, envelope);
    }
    assert_eq!(net.leader(), leader);
    for (number, before) in (1..=3).zip(promises) {
        assert_eq!(*net.core(number).promise(), before);
    }
}

#[test]
fn a_message_to_another_identity_is_not_heard() {
    let mut net = Net::led_by_1(3, 27);
    let envelope = Envelope {
        from: voter(3),
        to: VoterId(99),
        term: Term(50),
        message: Message::Vote {
            last: Position {
                term: Term(50),
                index: 50,
            },
        },
    };
    let before = net.core(2).promise().clone();
    net.deliver(2, envelope);
    assert_eq!(*net.core(2).promise(), before);
}

#[test]
fn an_entry_at_a_lower_place_replaces_nothing() {
    let mut net = Net::led_by_1(3, 28);
    net.commit(Change::Put(1));
    net.run_ms(300);
    let first = net
        .sent
        .iter()
        .find(|e| e.to == VoterId(2) && matches!(e.message, Message::Entry { .. }));
    let first = first.unwrap().clone();
    assert_eq!(first.term, net.term(2));
    net.deliver(2, first);
    assert!(net.core(2).promise().entry.content.has(1));
}

#[test]
fn a_commit_notice_holds_for_an_equal_place_only() {
    let mut net = Net::led_by_1(3, 29);
    net.cut_off(1);
    net.ask(1, Change::Put(1));
    net.run_ms(10);
    let stored = net.core(1).promise().entry.at;
    net.elect(2);
    let envelope = Envelope {
        from: voter(2),
        to: VoterId(1),
        term: net.term(2),
        message: Message::Beat {
            committed: Some(Position {
                term: net.term(2),
                index: stored.index,
            }),
            round: 1,
        },
    };
    net.deliver(1, envelope);
    assert!(!net.core(1).is_committed());
    assert_eq!(net.core(1).promise().entry.at, stored);
}

// --- voters ---------------------------------------------------------------------------------------

#[test]
fn voters_are_added_one_at_a_time_up_to_seven() {
    let mut net = Net::led_by_1(1, 30);
    for number in 2..=7 {
        net.install(number, blank(voter(number), &[]));
        net.commit(Change::Add(voter(number)));
        net.until("it has the document", |net| {
            net.place(number)
                .knows
                .as_ref()
                .is_some_and(|doc| doc.voters.len() == usize::from(number))
        });
    }
    for number in 1..=3 {
        net.stop(number);
    }
    net.until("the other four go on", |net| {
        net.leader().is_some_and(|n| n > 3)
    });
    net.commit(Change::Put(1));
}

#[test]
fn a_voter_that_is_none_yet_does_not_stand_for_election() {
    let mut net = Net::led_by_1(3, 31);
    net.install(4, blank(voter(4), &[]));
    net.run_ms(3_000);
    assert_eq!(net.count(|e| e.from == voter(4)), 0);
}

#[test]
fn a_change_of_voters_counts_by_the_new_document_and_the_next_one_waits_for_it() {
    let mut net = Net::led_by_1(3, 32);
    net.install(4, blank(voter(4), &[]));
    net.cut_off(2);
    net.cut_off(4);
    let add = net.ask(1, Change::Add(voter(4)));
    let remove = net.ask(1, Change::Remove(VoterId(2)));
    net.run_ms(100);
    // 1 and 3 are two of four.
    assert_eq!(net.answers.get(&add), None);
    assert_eq!(net.core(1).promise().entry.content.voters.len(), 4);
    net.cut.clear();
    net.cut_off(2);
    net.until("both are done", |net| net.answers.contains_key(&remove));
    assert_eq!(net.answers[&add], Decision::Committed);
    assert_eq!(net.answers[&remove], Decision::Committed);
    assert_eq!(
        net.core(1).promise().entry.content.voters,
        [voter(1), voter(3), voter(4)]
    );
}

#[test]
fn a_change_of_voters_is_not_sent_before_the_new_leader_has_committed_in_its_term() {
    let mut net = Net::led_by_1(3, 33);
    net.place(2).stuck = false;
    net.stop(1);
    net.until("another leads", |net| net.leader().is_some());
    let leader = net.leader().unwrap();
    net.cut_off(leader);
    assert!(!net.core(leader).is_committed());
    let id = net.ask(leader, Change::Remove(VoterId(1)));
    net.run_ms(50);
    assert_eq!(net.core(leader).promise().entry.content.voters.len(), 3);
    net.cut.clear();
    net.until("it is done", |net| net.answers.contains_key(&id));
    assert_eq!(net.answers[&id], Decision::Committed);
}

#[test]
fn a_leader_that_is_removed_leads_until_that_is_committed_and_no_longer() {
    let mut net = Net::led_by_1(3, 34);
    net.cut_off(3);
    let id = net.ask(1, Change::Remove(VoterId(1)));
    net.run_ms(100);
    assert!(
        net.core(1).leads(),
        "1 itself does not count: 2 is one of two"
    );
    assert_eq!(net.answers.get(&id), None);
    net.cut.clear();
    net.until("it is answered", |net| net.answers.contains_key(&id));
    assert_eq!(net.answers[&id], Decision::Committed);
    assert!(!net.core(1).leads());
    net.until("another leads", |net| net.leader().is_some());
    net.commit(Change::Put(1));
    net.run_ms(3_000);
    assert!(!net.core(1).leads());
    let term = net.term(2);
    net.run_ms(3_000);
    assert_eq!(net.term(2), term, "the removed one bothers nobody");
}

#[test]
fn a_leader_that_restarts_while_it_removes_itself_goes_on_with_it() {
    let mut net = Net::led_by_1(2, 38);
    net.cut_off(1);
    net.ask(1, Change::Remove(VoterId(1)));
    net.until("1 stores it", |net| {
        net.places[&1].disk.entry.content.voters == [voter(2)]
    });
    net.restart(1);
    net.cut.clear();
    // 2 would need the vote of 1, whose document is newer.
    net.commit(Change::Put(1));
    assert_eq!(net.leader(), Some(2));
}

#[test]
fn a_removed_voter_that_does_not_know_it_bothers_nobody() {
    let mut net = Net::led_by_1(3, 35);
    net.cut_off(3);
    net.commit(Change::Remove(VoterId(3)));
    net.cut.clear();
    let term = net.term(1);
    net.run_ms(5_000);
    net.commit(Change::Put(1));
    assert_eq!((net.leader(), net.term(1)), (Some(1), term));
}

#[test]
fn a_voter_that_lost_its_state_comes_back_under_a_new_identity() {
    let mut net = Net::led_by_1(3, 36);
    net.commit(Change::Put(1));
    net.stop(3);
    // Messages to the old identity are none of its business.
    net.install(3, blank(voter_as(3, 33), &[]));
    net.run_ms(2_000);
    assert_eq!(net.core(3).promise().entry.at, Position::default());
    net.commit(Change::Remove(VoterId(3)));
    net.commit(Change::Add(voter_as(3, 33)));
    net.stop(2);
    net.commit(Change::Put(2));
    assert!(net.places[&3].disk.entry.content.has(1));
}

#[test]
fn a_dead_voter_is_removed_by_the_rest_of_two_only_while_it_leads() {
    let mut net = Net::led_by_1(2, 37);
    net.stop(2);
    net.run_ms(2_000);
    // 1 has no majority any more, and thus no leader to ask.
    assert_eq!(net.leader(), None);
    let id = net.ask(1, Change::Remove(VoterId(2)));
    assert_eq!(net.answers[&id], Decision::NotLeader { leader: None });
}
