//! Access to a resource from every node: with follow access clients of a node that is not primary see a
//! pause and no error when the primary is killed or moved; with exclusive access a connection never
//! outlives the primary that it was made to.

mod common;

use common::cluster::{Cluster, name};
use common::fio::FioLoop;
use common::nbd::Client;
use common::stamps::Writers;
use common::{SOON, wait_for};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Enough acknowledged writes to be sure that more are on their way.
const BUSY_WRITES: u64 = 500;

fn wait_busy(writers: &Writers) {
    writers.get_on(BUSY_WRITES);
}

/// The primary as node `asked` sees it, once one other than `old` serves.
fn next_primary(cluster: &Cluster, asked: usize, old: usize) -> usize {
    let r0 = cluster.wait(asked, "another node to serve", |r0| {
        let primary = r0.primary.as_deref();
        let serves = |node: &str| r0.replica(node).role == "Primary";
        primary.is_some_and(|node| node != name(old) && serves(node))
    });
    (1..=3)
        .find(|k| r0.primary.as_deref() == Some(&name(*k)))
        .expect("one of three nodes")
}

/// Writers in the lower half of the disk and fio in the upper one, all on the export of one node.
fn load(cluster: &Cluster, k: usize) -> (Writers, FioLoop) {
    let writers = Writers::start(cluster.port(k), "r0", 4, 500);
    let fio = FioLoop::start(cluster.fio(k, SIZE / 2, SIZE / 2));
    wait_busy(&writers);
    (writers, fio)
}

fn finish(cluster: &mut Cluster, (writers, fio): (Writers, FioLoop), k: usize) {
    wait_busy(&writers);
    let histories = writers.finish();
    fio.finish().expect("fio sees no error and verifies");
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

#[test]
fn clients_of_a_survivor_see_no_error_and_lose_no_write_when_the_primary_is_killed_twice() {
    let mut cluster = Cluster::start(3, SIZE);
    let load = load(&cluster, 3);
    let mut primary = 1;
    for _ in 0..2 {
        cluster.kill_node(primary);
        let next = next_primary(&cluster, 3, primary);
        wait_busy(&load.0);
        cluster.start_node(primary);
        cluster.wait_all_in_sync();
        primary = if next == 3 {
            // Its clients would die with it.
            cluster.must(3, &["demote", "r0"]);
            cluster.promote(2);
            cluster.wait_all_in_sync();
            2
        } else {
            next
        };
    }
    finish(&mut cluster, load, 3);
}

#[test]
fn planned_moves_cost_clients_of_every_node_a_pause_and_no_error() {
    let mut cluster = Cluster::start(3, SIZE);
    let writers = Writers::start(cluster.port(1), "r0", 2, 250);
    let others = load_behind(&cluster);
    for primary in [2, 3, 1] {
        cluster.must(1, &["demote", "r0"]);
        cluster.promote(primary);
        wait_busy(&writers);
        wait_busy(&others.0);
    }
    let histories = writers.finish();
    assert!(histories.iter().all(|history| history.error.is_none()));
    finish(&mut cluster, others, 2);
}

/// As [`load`] on node 2, with the writers' blocks behind those of other writers.
fn load_behind(cluster: &Cluster) -> (Writers, FioLoop) {
    let writers = Writers::start_on(|| cluster.client(2), 1000, 2, 250);
    let fio = FioLoop::start(cluster.fio(2, SIZE / 2, SIZE / 2));
    wait_busy(&writers);
    (writers, fio)
}

#[test]
fn what_one_node_writes_is_read_at_every_other() {
    let cluster = Cluster::start(3, SIZE);
    for k in 1..=3 {
        let mut writer = cluster.client(k);
        let fill = u8::try_from(k).expect("small");
        writer.write(0, &[fill; 4096]).expect("writes succeed");
        writer.flush().expect("flushes succeed");
        for other in 1..=3 {
            let data = cluster.client(other).read(0, 4096).expect("reads succeed");
            assert_eq!(data, [fill; 4096], "written at {k}, read at {other}");
        }
    }
    let mut client = cluster.client(2);
    assert_eq!(client.size_bytes, SIZE);
    // No longer than one piece, but across the end of one.
    let piece = u32::try_from(32 * MIB).expect("small");
    client
        .write_zeroes(MIB, piece)
        .expect("it is cut up all the same");
    let all = u32::try_from(SIZE).expect("small");
    client.write_zeroes(0, all).expect("a long range is cut up");
    let data = cluster.client(3).read(0, 4096).expect("reads succeed");
    assert_eq!(data, [0; 4096]);
}

#[test]
fn with_exclusive_access_a_connection_does_not_outlive_the_primary_that_it_was_made_to() {
    let cluster = Cluster::start(3, SIZE);
    cluster.must(
        1,
        &[
            "resource",
            "create",
            "x",
            "--size",
            "16MiB",
            "--access",
            "exclusive",
        ],
    );
    cluster.wait_in_sync("x", &[1, 2, 3]);
    let promote = |k: usize| {
        wait_for("a promotion", SOON, || {
            let output = cluster.command(1, &["promote", "x", &name(k)]);
            if output.status.success() {
                Ok(())
            } else {
                Err(common::command::text(&output))
            }
        });
    };
    let open = |k: usize| {
        wait_for("the export to open", SOON, || {
            Client::connect(cluster.port(k), "x").map_err(|error| error.to_string())
        })
    };
    promote(1);
    let mut old = open(1);
    old.write(0, &[1; 4096]).expect("the primary serves");
    assert!(Client::connect(cluster.port(2), "x").is_err());
    cluster.must(1, &["demote", "x"]);
    promote(2);
    open(2).write(0, &[2; 4096]).expect("the primary serves");
    old.write(0, &[1; 4096]).expect_err("its primary is gone");
    // Not even when its node is primary again.
    cluster.must(1, &["demote", "x"]);
    promote(1);
    old.write(0, &[1; 4096]).expect_err("its primary is gone");
    let data = open(1).read(0, 4096).expect("the primary serves");
    assert_eq!(data, [2; 4096]);
}
