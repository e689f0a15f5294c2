//! Links that are there and not good: they flap, are slow, or swallow one kind of packet. Writes go on, no
//! acknowledged one is lost, and everything is in sync again once the link is.

mod common;

use common::cluster::{Cluster, name};
use common::stamps::Writers;
use common::{SOON, wait_for};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Packets of the data connections, by either end's port.
const REPLICATION: [&[&str]; 2] = [&["tcp", "dport", "7789"], &["tcp", "sport", "7789"]];
/// Beacons.
const BEACONS: [&[&str]; 1] = [&["udp", "dport", "7788"]];

/// Clients of node `k`, whose export forwards where it is not primary.
fn writers(cluster: &Cluster, k: usize) -> Writers {
    let writers = Writers::start_on(|| cluster.client(k), 0, 3, 200);
    get_on(&writers);
    writers
}

fn get_on(writers: &Writers) {
    writers.get_on(300);
}

/// Everything is good again, no client saw an error, and every write is there.
fn finish(mut cluster: Cluster, writers: Writers, k: usize) {
    get_on(&writers);
    let histories = writers.finish();
    let mut client = cluster.client(k);
    for history in histories {
        assert!(history.error.is_none(), "{:?}", history.error);
        let checked = history.check(&mut client);
        checked.unwrap_or_else(|error| panic!("{error}"));
    }
    drop(client);
    cluster.wait_all_in_sync();
    cluster.stop_and_compare_replicas();
}

fn follow(replicas: usize, witnesses: usize) -> Cluster {
    let cluster = Cluster::in_a_lab(replicas, witnesses, SIZE);
    cluster.must(1, &["resource", "set", "r0", "--access", "follow"]);
    cluster
}

fn evicted_for(cluster: &Cluster, primary: usize, words: &str) {
    wait_for("the member to be evicted", SOON, || {
        let told = cluster.events(primary, "evicted");
        if told.iter().any(|text| text.contains(words)) {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    });
}

#[test]
fn a_flapping_link_costs_pauses_and_no_error() {
    let cluster = follow(3, 0);
    let writers = writers(&cluster, 3);
    for (k, ms) in [
        (1, 60),
        (2, 120),
        (1, 400),
        (2, 700),
        (1, 900),
        (1, 150),
        (2, 300),
    ] {
        cluster.lab().set_link(k, false);
        // Not synchronisation: this is how long the link is away.
        std::thread::sleep(Duration::from_millis(ms));
        cluster.lab().set_link(k, true);
        get_on(&writers);
    }
    cluster.wait_all_in_sync();
    finish(cluster, writers, 3);
}

#[test]
fn a_slow_link_does_not_stop_the_others() {
    let cluster = follow(3, 0);
    let writers = writers(&cluster, 1);
    cluster.lab().set_rate(2, Some(256));
    for _ in 0..3 {
        get_on(&writers);
    }
    // What the primary itself sends is slow now, acknowledgements of clients elsewhere included.
    cluster.lab().set_rate(2, None);
    cluster.lab().set_rate(1, Some(20_000));
    get_on(&writers);
    cluster.lab().set_rate(1, None);
    cluster.wait_all_in_sync();
    finish(cluster, writers, 1);
}

#[test]
fn a_data_connection_that_swallows_everything_is_given_up() {
    let cluster = follow(3, 0);
    let writers = writers(&cluster, 3);
    cluster.lab().blackhole(1, 2, &REPLICATION);
    cluster.wait_evicted(3, 2);
    assert_eq!(cluster.r0(3).primary, Some(name(1)));
    get_on(&writers);
    cluster.lab().heal();
    cluster.wait_all_in_sync();
    // Now the one over which the clients' requests are forwarded: it is given up and made anew.
    cluster.lab().blackhole(1, 3, &REPLICATION);
    cluster.wait_evicted(2, 3);
    cluster.lab().heal();
    cluster.wait_all_in_sync();
    finish(cluster, writers, 3);
}

#[test]
fn a_member_whose_beacons_are_swallowed_is_evicted_and_told_why() {
    let cluster = follow(3, 0);
    let writers = writers(&cluster, 3);
    cluster.lab().blackhole(1, 2, &BEACONS);
    evicted_for(
        &cluster,
        1,
        "node2 has left the in-sync set: it acknowledges no beacons",
    );
    get_on(&writers);
    assert_eq!(cluster.r0(3).primary, Some(name(1)));
    cluster.lab().heal();
    cluster.wait_all_in_sync();
    finish(cluster, writers, 3);
}

#[test]
fn without_the_witness_and_the_secondary_writes_wait_for_either() {
    let mut cluster = follow(2, 1);
    let writers = writers(&cluster, 1);
    for back in [3, 2] {
        cluster.kill_node(3);
        get_on(&writers);
        cluster.kill_node(2);
        let waits = |cluster: &Cluster| cluster.must(1, &["status"]).contains("no leader");
        wait_for("the loss of the majority to be told", SOON, || {
            if waits(&cluster) {
                Ok(())
            } else {
                Err("it is not".to_owned())
            }
        });
        // What was on its way is over: from here on nothing is acknowledged.
        let stopped = wait_for("the writers to stop", SOON, || {
            let before = writers.acknowledged_writes();
            std::thread::sleep(Duration::from_secs(1));
            let after = writers.acknowledged_writes();
            if after == before {
                Ok(after)
            } else {
                Err(format!("{before} to {after}"))
            }
        });
        assert_eq!(writers.acknowledged_writes(), stopped);
        cluster.start_node(back);
        get_on(&writers);
        cluster.start_node(5 - back);
        cluster.wait_all_in_sync();
    }
    finish(cluster, writers, 1);
}

#[test]
fn who_gave_which_command_and_why_roles_changed_is_told() {
    let mut cluster = Cluster::start(3, SIZE);
    cluster.must(2, &["move", "r0", "node2"]);
    cluster.wait_all_in_sync();
    let told = cluster.events(2, "command");
    assert!(
        told.iter().any(
            |text| text.contains("gave the command move node=node2 resource=r0: done")
                && text.contains("process")
        ),
        "{told:?}"
    );
    let told = cluster.events(1, "demoting");
    assert_eq!(
        told.last().map(String::as_str),
        Some("this node lets go: an operator has named node2")
    );
    let told = cluster.events(2, "promoting");
    assert_eq!(
        told.last().map(String::as_str),
        Some("this node stands in as primary: an operator has named it")
    );
    cluster.kill_node(2);
    let next = cluster.wait_primary(cluster.running(), "another primary", |k| k != 2);
    let told = cluster.events(next, "promoting");
    let last = told.last().expect("a promotion");
    assert!(
        last.contains("the primary, node2, has answered nothing for"),
        "{last}"
    );
    assert!(last.contains("without node2, out of reach"), "{last}");
    let refused = cluster.refusal(next, &["promote", "r9"]);
    assert!(refused.contains("no resource r9"), "{refused}");
    let told = cluster.events(next, "command");
    assert!(
        told.iter()
            .any(|text| text.contains("refused: there is no resource r9")),
        "{told:?}"
    );
}
