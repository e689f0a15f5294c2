//! Fail-over by itself, with real processes: the primary is killed, frozen, cut off one way or both, or
//! loses its disk, and the nodes around it come and go in every order. Every write that was
//! acknowledged must be there, and no read may go back in time.

mod common;

use common::cluster::{Cluster, name};
use common::lab::Cut;
use common::nbd::Client;
use common::stamps::{History, Writers};
use common::{SOON, wait_for};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const WRITERS: u64 = 3;
const BLOCKS: u64 = 200;
/// Longer than every lease, election and time-out of a cluster at its defaults.
const LONGER_THAN_TIME_OUTS: Duration = Duration::from_secs(6);

fn writers(cluster: &Cluster, k: usize) -> Writers {
    writers_of_round(cluster, k, 0)
}

/// Each round has blocks of its own: a writer knows only what it wrote itself.
fn writers_of_round(cluster: &Cluster, k: usize, round: u64) -> Writers {
    let first = round * WRITERS * BLOCKS;
    let writers = Writers::start_on(|| cluster.client(k), first, WRITERS, BLOCKS);
    wait_acknowledged(&writers, 300);
    writers
}

fn wait_acknowledged(writers: &Writers, goal: u64) {
    wait_for("the writers to get on", SOON, || {
        let now = writers.acknowledged_writes();
        if now >= goal {
            Ok(())
        } else {
            Err(format!("{now} of {goal} writes"))
        }
    });
}

fn check(cluster: &Cluster, k: usize, histories: &[History]) {
    let mut client = cluster.client(k);
    for history in histories {
        history
            .check(&mut client)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A write and a read at node `k`, which serves.
fn serves(cluster: &Cluster, k: usize) {
    let mut client = cluster.client(k);
    let offset = SIZE - 4096;
    client
        .write(offset, &[0x5a; 4096])
        .expect("it serves writes");
    let data = client.read(offset, 4096).expect("it serves reads");
    assert_eq!(data, [0x5a; 4096]);
}

/// Nobody is primary, and stays so for longer than any fail-over takes; the reason is told.
fn nobody_serves(cluster: &Cluster, asked: usize, word: &str) {
    // Not synchronisation: this is how long nothing may happen.
    std::thread::sleep(LONGER_THAN_TIME_OUTS);
    for replica in &cluster.r0(asked).volumes[0].replicas {
        assert_ne!(replica.role, "Primary", "{replica:?}");
    }
    let text = cluster.must(asked, &["status"]);
    assert!(text.contains(word), "no \"{word}\" in:\n{text}");
}

#[test]
fn a_killed_primary_is_replaced_and_no_acknowledged_write_is_lost() {
    let mut cluster = Cluster::start(3, SIZE);
    for round in 0..5 {
        let old = cluster.wait_primary(cluster.running(), "a primary", |_| true);
        let writers = writers_of_round(&cluster, old, round);
        cluster.kill_node(old);
        let asked = cluster.running();
        let new = cluster.wait_primary(asked, "another primary", |k| k != old);
        let histories = writers.finish();
        assert!(
            histories.iter().all(|history| history.error.is_some()),
            "round {round}: a connection outlived its node"
        );
        check(&cluster, new, &histories);
        serves(&cluster, new);
        cluster.start_node(old);
        cluster.wait_all_in_sync();
    }
    cluster.stop_and_compare_replicas();
}

#[test]
fn two_nodes_and_a_witness_survive_the_loss_of_any_one_of_them() {
    let mut cluster = Cluster::start(2, SIZE);
    for lost in [3, 2, 1] {
        cluster.promote(1);
        cluster.wait_all_in_sync();
        cluster.kill_node(lost);
        let asked = cluster.running();
        let primary = cluster.wait_primary(asked, "a primary", |k| k != lost);
        assert_eq!(
            primary == 1,
            lost != 1,
            "only the loss of the primary moves it"
        );
        serves(&cluster, primary);
        cluster.start_node(lost);
        cluster.wait_all_in_sync();
    }
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_primary_that_is_stopped_in_order_is_replaced_at_once() {
    let mut cluster = Cluster::start(3, SIZE);
    let started = Instant::now();
    assert!(cluster.stop_node(1).success());
    let log = std::fs::read_to_string(cluster.file(1, "log")).expect("a log");
    assert!(!log.contains("without having been"), "{log}");
    let new = cluster.wait_primary(2, "another primary", |k| k != 1);
    serves(&cluster, new);
    assert!(started.elapsed() < SOON);
    cluster.start_node(1);
    cluster.wait_all_in_sync();
    assert_eq!(
        cluster.r0(1).primary,
        Some(name(new)),
        "it does not go back unless asked"
    );
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_frozen_primary_is_replaced_and_writes_nothing_when_it_goes_on() {
    let mut cluster = Cluster::start(3, SIZE);
    let writers = writers(&cluster, 1);
    let mut reader = cluster.client(1);
    let before = reader.read(0, 4096).expect("a read");
    cluster.freeze_node(1);
    let new = cluster.wait_primary(2, "another primary", |k| k != 1);
    let mut client = cluster.client(new);
    // The successor's clients go on with the same block.
    client.write(0, &[0x77; 4096]).expect("a write");
    // Not synchronisation: this is how long it stays frozen.
    std::thread::sleep(LONGER_THAN_TIME_OUTS);
    cluster.thaw_node(1);
    // What the old primary answers now is an error, or nothing: never its old bytes.
    if let Ok(data) = reader.read(0, 4096) {
        assert_ne!(data, before, "a read went back in time");
    }
    let histories = writers.finish();
    cluster.wait_all_in_sync();
    let data = client.read(0, 4096).expect("a read");
    assert_eq!(
        data, [0x77; 4096],
        "the old primary wrote after its successor"
    );
    // Block 0 was overwritten; all others of the writers are as they left them.
    for history in &histories[1..] {
        history
            .check(&mut client)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    drop(client);
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_cut_off_primary_answers_nothing_that_its_successor_lacks() {
    let mut cluster = Cluster::in_a_lab(3, 0, SIZE);
    let writers = writers(&cluster, 1);
    cluster.lab().cut_off(1);
    let new = cluster.wait_primary(2, "another primary", |k| k != 1);
    serves(&cluster, new);
    let stuck = writers.acknowledged_writes();
    // Not synchronisation: the time in which the old primary could do wrong.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        writers.acknowledged_writes(),
        stuck,
        "the old primary goes on answering"
    );
    cluster.lab().heal();
    cluster.wait(new, "the old primary to be back in sync", |r0| {
        r0.primary == Some(name(new)) && r0.is_in_sync("node1")
    });
    let histories = writers.finish();
    assert!(histories.iter().all(|history| history.error.is_some()));
    check(&cluster, new, &histories);
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_primary_that_is_deaf_or_mute_or_cut_from_one_node_never_serves_beside_another() {
    let mut cluster = Cluster::in_a_lab(2, 1, SIZE);
    let cases: [&[Cut]; 4] = [
        // Deaf: it hears nobody.
        &[Cut { from: 2, to: 1 }, Cut { from: 3, to: 1 }],
        // Mute: nobody hears it.
        &[Cut { from: 1, to: 2 }, Cut { from: 1, to: 3 }],
        // The two replicas don't see each other; the witness sees both.
        &[Cut { from: 1, to: 2 }, Cut { from: 2, to: 1 }],
        // One way only between the replicas.
        &[Cut { from: 1, to: 2 }],
    ];
    for (round, cuts) in (0..).zip(cases) {
        cluster.promote(1);
        cluster.wait_all_in_sync();
        let writers = writers_of_round(&cluster, 1, round);
        cluster.lab().set_cuts(cuts);
        // One of the two serves: an answered write shows which.
        let serving = wait_for("I/O to go on somewhere", SOON, || {
            for k in [1, 2] {
                let answered = cluster.r0(k).replica(&name(k)).role == "Primary"
                    && cluster
                        .try_client(k)
                        .is_ok_and(|mut client| probe(&mut client));
                if answered {
                    return Ok(k);
                }
            }
            Err(format!("{:?}", cluster.r0(2)))
        });
        cluster.lab().heal();
        let primary = cluster.wait_primary(3, "one primary", |_| true);
        cluster.wait_all_in_sync();
        let histories = writers.finish();
        check(&cluster, primary, &histories);
        eprintln!("{cuts:?}: node {serving} went on");
    }
    cluster.stop_and_compare_replicas();
}

/// Is a write beyond the writers' blocks answered soon?
fn probe(client: &mut Client) -> bool {
    client.set_limit(Duration::from_secs(3));
    client.write(SIZE - 8192, &[1; 4096]).is_ok()
}

#[test]
fn the_last_good_copy_is_waited_for_and_nobody_else_is_promoted() {
    let mut cluster = Cluster::start(2, SIZE);
    // Node 1 goes on alone and acknowledges more.
    cluster.kill_node(2);
    cluster.wait_evicted(1, 2);
    let writers = writers(&cluster, 1);
    let histories = writers.finish();
    cluster.kill_node(1);
    cluster.start_node(2);
    nobody_serves(&cluster, 2, "waiting for node1: it has the last good copy");
    let refusal = cluster.refusal(2, &["promote", "r0", "node2"]);
    assert!(refusal.contains("node1"), "{refusal}");
    cluster.start_node(1);
    let primary = cluster.wait_primary(2, "the good copy to serve", |k| k == 1);
    check(&cluster, primary, &histories);
    cluster.stop_and_compare_replicas();
}

#[test]
fn without_a_majority_io_waits_and_goes_on_by_itself() {
    let mut cluster = Cluster::start(2, SIZE);
    let writers = writers(&cluster, 1);
    cluster.kill_node(3);
    cluster.kill_node(2);
    // With the secondary and the witness gone, nobody can be evicted: writes wait, without an error.
    let stuck = wait_for("the writers to be stuck", SOON, || {
        let before = writers.acknowledged_writes();
        std::thread::sleep(Duration::from_millis(500));
        let after = writers.acknowledged_writes();
        if before == after {
            Ok(after)
        } else {
            Err(format!("{} writes", after - before))
        }
    });
    let text = cluster.must(1, &["status"]);
    assert!(text.contains("no leader within reach"), "{text}");
    cluster.start_node(3);
    wait_acknowledged(&writers, stuck + 100);
    cluster.start_node(2);
    cluster.wait_all_in_sync();
    let histories = writers.finish();
    assert!(histories.iter().all(|history| history.error.is_none()));
    check(&cluster, 1, &histories);
    cluster.stop_and_compare_replicas();
}

#[test]
fn everything_comes_back_in_every_order() {
    let mut cluster = Cluster::start(3, SIZE);
    for (round, order) in (0..).zip([[1, 2, 3], [3, 2, 1], [2, 3, 1]]) {
        let primary = cluster.wait_primary(cluster.running(), "a primary", |_| true);
        let writers = writers_of_round(&cluster, primary, round);
        cluster.kill_all();
        let histories = writers.finish();
        for k in order {
            cluster.start_node(k);
        }
        let primary = cluster.wait_primary(1, "a primary", |_| true);
        check(&cluster, primary, &histories);
        cluster.wait_all_in_sync();
    }
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_planned_move_a_standby_and_a_demotion_do_what_they_say() {
    let mut cluster = Cluster::start(3, SIZE);
    cluster.must(1, &["move", "r0", "node3"]);
    serves(&cluster, 3);
    cluster.must(2, &["node", "standby", "node3"]);
    let new = cluster.wait_primary(1, "a primary that is not on standby", |k| k != 3);
    serves(&cluster, new);
    let refusal = cluster.refusal(1, &["move", "r0", "node3"]);
    assert!(refusal.contains("standby"), "{refusal}");
    cluster.must(2, &["node", "online", "node3"]);
    cluster.must(1, &["demote", "r0"]);
    nobody_serves(&cluster, 1, "an operator has demoted it");
    cluster.must(1, &["promote", "r0", "node1"]);
    serves(&cluster, 1);
    cluster.stop_and_compare_replicas();
}

#[test]
fn two_nodes_without_a_witness_wait_for_a_fence_or_an_operators_word() {
    let mut cluster = Cluster::with_witnesses(2, 0, SIZE);
    cluster.start_all();
    cluster.kill_node(1);
    nobody_serves(&cluster, 2, "lockstep node confirm-dead node1");
    cluster.must(2, &["node", "confirm-dead", "node1"]);
    let new = cluster.wait_primary(2, "the survivor to serve", |k| k == 2);
    serves(&cluster, new);
    // It goes on alone, also after a restart of its own.
    cluster.kill_node(2);
    cluster.start_node(2);
    cluster.wait_primary(2, "the survivor to serve again", |k| k == 2);
    // The other one is taken in again.
    cluster.start_node(1);
    cluster.wait_all_in_sync();
    wait_for("both to vote again", SOON, || {
        let text = cluster.must(2, &["status"]);
        match text.lines().filter(|line| line.contains("voter")).count() {
            2 => Ok(()),
            count => Err(format!("{count} vote")),
        }
    });
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_fence_agent_decides_between_two_nodes_and_a_booting_node_never_shoots() {
    let mut cluster = Cluster::with_witnesses(2, 0, SIZE);
    cluster.start_all();
    // An agent that notes whom it shoots and says that it worked.
    let shots = cluster.file(1, "shots");
    let agent = cluster.file(1, "agent");
    let script = format!(
        "#!/bin/sh\nwhile read -r line; do case $line in action=*) action=${{line#action=}};; nodename=*) node=${{line#nodename=}};; esac; done\n[ $action = off ] && echo $node >> {} && exit 0\nexit 2\n",
        shots.display()
    );
    std::fs::write(&agent, script).expect("an agent");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&agent, executable).expect("it can be executed");
    let agent = agent.to_str().expect("a plain path").to_owned();
    for node in ["node1", "node2"] {
        cluster.must(1, &["node", "fencing", node, "--agent", &agent]);
    }
    cluster.kill_node(1);
    let new = cluster.wait_primary(2, "the survivor to serve", |k| k == 2);
    serves(&cluster, new);
    assert_eq!(std::fs::read_to_string(&shots).expect("a shot"), "node1\n");
    // The survivor goes; the one that was shot boots, and may lack what was written: it does nothing.
    cluster.kill_node(2);
    cluster.start_node(1);
    nobody_serves(&cluster, 1, "waiting for node2");
    assert_eq!(std::fs::read_to_string(&shots).expect("a shot"), "node1\n");
    cluster.start_node(2);
    cluster.wait_all_in_sync();
    cluster.stop_and_compare_replicas();
}
