//! A majority of the voters lost for good: a survivor becomes a cluster of its own, and the others come back
//! to it, on their old machines or on new ones. Real daemons, real keys, real data.

mod common;

use common::cluster::{Cluster, name};
use common::command::{lockstep, text};
use common::stamps::{History, Writers};
use common::tls::Credentials;
use common::{SOON, wait_for};
use std::io::Read;
use std::path::Path;
use std::process::Output;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const BLOCKS: u64 = 200;

/// Writes to blocks of this round's own through node `k`, and gives what was acknowledged.
fn write(cluster: &Cluster, k: usize, round: u64) -> Vec<History> {
    let writers = Writers::start_on(|| cluster.client(k), round * 2 * BLOCKS, 2, BLOCKS);
    wait_for("the writers to get on", SOON, || {
        match writers.acknowledged_writes() {
            300.. => Ok(()),
            now => Err(format!("{now} writes")),
        }
    });
    let histories = writers.finish();
    assert!(histories.iter().all(|history| history.error.is_none()));
    histories
}

fn check(cluster: &Cluster, k: usize, histories: &[History]) {
    let mut client = cluster.client(k);
    for history in histories {
        history
            .check(&mut client)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

fn config(cluster: &Cluster, k: usize) -> String {
    cluster.file(k, "lockstep.toml").display().to_string()
}

fn recover(cluster: &Cluster, k: usize) -> Output {
    lockstep([
        "recover",
        "--config",
        &config(cluster, k),
        "--accept-data-loss",
    ])
}

fn recovered(cluster: &Cluster, k: usize) -> String {
    let output = recover(cluster, k);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

fn refused(output: &Output, words: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", text(output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(words), "no \"{words}\" in: {said}");
}

/// Node `k` joins again with a token of node `at`.
fn rejoin(cluster: &Cluster, k: usize, at: usize) {
    let token = cluster.must(at, &["token"]);
    let output = lockstep([
        "join",
        "--config",
        &config(cluster, k),
        token.trim(),
        "--rejoin",
    ]);
    assert!(output.status.success(), "{}", text(&output));
}

/// Every node is online and votes, and nothing is left to be said.
fn wait_healthy(cluster: &Cluster, asked: usize) {
    wait_for("a healthy cluster", SOON, || {
        let text = cluster.must(asked, &["status"]);
        let votes = text.lines().filter(|line| line.contains("  voter")).count();
        if votes == 3 && !text.contains("offline") && !text.contains('!') {
            Ok(())
        } else {
            Err(text)
        }
    });
}

/// The daemon of the old cluster's node `k`, which runs, does not get a word out of node `new`.
fn are_strangers(cluster: &Cluster, k: usize, new: usize) {
    // It has tried, and says why not.
    wait_for("the old daemon to be refused", SOON, || {
        let log = std::fs::read_to_string(cluster.file(k, "log")).expect("a log");
        let told = "it belongs to another cluster";
        let found = log.lines().any(|line| line.contains(told));
        if found { Ok(()) } else { Err(log) }
    });
    let [old, ours] = [k, new].map(|k| Credentials::of(cluster.dir(k)));
    for key in ["control", "replication"] {
        let address = cluster.address(new, key);
        // Each by itself is enough: they look at our certificate, we at theirs.
        let error = old.connect(&address, new).expect_err("another cluster");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        let posing = old.posing_as(&ours).connect(&address, new);
        let posing = posing.and_then(|mut stream| stream.read_exact(&mut [0]));
        let error = posing.expect_err("another cluster").to_string();
        assert!(
            error.contains("UnknownCA") || error.contains("DecryptError"),
            "{error}"
        );
    }
    let status = cluster.must(new, &["status"]);
    let row = status.lines().find(|line| line.starts_with(&name(k)));
    assert!(row.is_some_and(|row| row.contains("offline")), "{status}");
    let output = cluster.command(k, &["promote", "r0", &name(k), "--accept-data-loss"]);
    assert!(!output.status.success(), "{}", text(&output));
}

#[test]
fn a_survivor_goes_on_alone_and_an_old_and_a_new_machine_come_back_to_it() {
    let mut cluster = Cluster::start(3, SIZE);
    let mut histories = write(&cluster, 1, 0);
    cluster.wait_all_in_sync();
    cluster.kill_all();

    // Alone it decides nothing, and says what would help.
    cluster.start_node(3);
    for command in [
        &["status"][..],
        &["node", "confirm-dead", "node1"],
        &["promote", "r0", "node3", "--accept-data-loss"],
    ] {
        let output = cluster.command(3, command);
        assert!(
            text(&output).contains("lockstep recover"),
            "{}",
            text(&output)
        );
    }
    refused(&recover(&cluster, 3), "in use by another lockstep daemon");
    assert!(cluster.stop_node(3).success());
    let output = lockstep(["recover", "--config", &config(&cluster, 3)]);
    refused(&output, "without --accept-data-loss");
    refused(&output, "r0: the latest data were on node1, node2, node3");
    let said = recovered(&cluster, 3);
    assert!(said.contains("(node1, node2) joins again"), "{said}");

    cluster.start_node(3);
    let before = cluster.wait(3, "the replica of the new cluster", |r0| {
        r0.in_sync.is_empty() && r0.replica("node3").disk_state == "Outdated"
    });
    let status = cluster.must(3, &["status"]);
    for words in [
        "lost before the cluster was recovered: node1, node2",
        "in sync: not known",
        "nobody knows which replica has the latest data",
    ] {
        assert!(status.contains(words), "no \"{words}\" in: {status}");
    }
    let refusal = cluster.refusal(3, &["promote", "r0", "node3"]);
    assert!(refusal.contains("--accept-data-loss"), "{refusal}");
    cluster.must(3, &["promote", "r0", "node3", "--accept-data-loss"]);
    assert!(cluster.r0(3).epoch > before.epoch);
    check(&cluster, 3, &histories);
    histories.extend(write(&cluster, 3, 1));

    // The first node is back after all, and knows nothing of this.
    cluster.start_node(1);
    are_strangers(&cluster, 1, 3);
    refused(&recover(&cluster, 1), "in use by another lockstep daemon");
    assert!(cluster.stop_node(1).success());
    let token = cluster.must(3, &["token"]);
    let output = lockstep(["join", "--config", &config(&cluster, 1), token.trim()]);
    refused(&output, "belongs to a cluster");
    rejoin(&cluster, 1, 3);
    cluster.start_node(1);
    cluster.wait(3, "node 1 to be in sync", |r0| {
        r0.all_in_sync(["node1", "node3"].map(str::to_owned).into_iter())
    });

    // The second one is another machine under its name.
    empty(cluster.dir(2));
    let output = lockstep(["join", "--config", &config(&cluster, 2), token.trim()]);
    refused(&output, "add --rejoin");
    rejoin(&cluster, 2, 3);
    cluster.start_node(2);
    wait_for("the missing disk to be told", SOON, || {
        let status = cluster.must(3, &["status"]);
        let told = status.contains("is gone");
        if told { Ok(()) } else { Err(status) }
    });
    cluster.must(3, &["resource", "replace-disk", "r0", "node2"]);
    cluster.wait_all_in_sync();
    wait_healthy(&cluster, 2);

    // It is a cluster like any other: the primary is lost, and nothing else.
    cluster.kill_node(3);
    let new = cluster.wait_primary(1, "another primary", |k| k != 3);
    check(&cluster, new, &histories);
    cluster.start_node(3);
    cluster.stop_and_compare_replicas();
}

/// Leaves nothing but the configuration.
fn empty(directory: &Path) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path).expect("a directory can be removed");
        } else if path.extension().is_none_or(|extension| extension != "toml") {
            std::fs::remove_file(&path).expect("a file can be removed");
        }
    }
}

#[test]
fn a_survivor_that_missed_writes_does_not_count_until_an_operator_says_so() {
    let mut cluster = Cluster::start(3, SIZE);
    let mut histories = write(&cluster, 1, 0);
    cluster.wait_all_in_sync();
    cluster.kill_node(3);
    cluster.wait_evicted(1, 3);
    // Epochs that the survivor has never heard of.
    for k in [2, 1, 2] {
        cluster.promote(k);
    }
    histories.extend(write(&cluster, 2, 1));
    let missed = cluster.r0(2).epoch;
    cluster.kill_all();

    let said = recovered(&cluster, 3);
    // It does not know better.
    assert!(
        said.contains("r0: the latest data were on node1, node2, node3"),
        "{said}"
    );
    interrupt(cluster.dir(3));
    cluster.start_node(3);
    let r0 = cluster.wait(3, "the record of the new cluster", |r0| {
        r0.in_sync.is_empty()
    });
    assert!(r0.generation > missed && r0.epoch > missed, "{r0:?}");
    let refusal = cluster.refusal(3, &["promote", "r0", "node3"]);
    assert!(refusal.contains("nobody knows"), "{refusal}");
    refused(
        &lockstep([
            "join",
            "--config",
            &config(&cluster, 1),
            cluster.must(3, &["token"]).trim(),
        ]),
        "belongs to a cluster",
    );
    // A machine that has the latest data comes back before anything is lost.
    rejoin(&cluster, 1, 3);
    cluster.start_node(1);
    cluster.wait(3, "node 1 to have its disk", |r0| {
        r0.replica("node1").disk_state == "Outdated"
    });
    cluster.must(3, &["promote", "r0", "node1", "--accept-data-loss"]);
    check(&cluster, 1, &histories);
    rejoin(&cluster, 2, 3);
    cluster.start_node(2);
    cluster.wait_all_in_sync();
    wait_healthy(&cluster, 1);
    check(&cluster, 1, &histories);
    cluster.stop_and_compare_replicas();
}

/// As a crash leaves it after the new files were put in force and before they were in their places.
fn interrupt(directory: &Path) {
    let successor = directory.join("successor");
    std::fs::create_dir(&successor).expect("a directory");
    for file in ["configuration", "tls"] {
        let from = directory.join(file);
        std::fs::rename(from, successor.join(file)).expect("a file can be moved");
    }
    std::fs::write(successor.join("suffix"), "x").expect("a file can be written");
}
