//! What a cluster is made of, changed while it runs: replicas that come and go, nodes that leave, time-outs,
//! policies, and the text of it all.

mod common;

use common::cluster::{Cluster, name};
use common::command::text;
use common::stamps::Writers;
use common::{SOON, wait_for};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
const BUSY_WRITES: u64 = 300;

fn wait_busy(writers: &Writers) {
    writers.get_on(BUSY_WRITES);
}

fn check(cluster: &Cluster, writers: Writers, k: usize) {
    let histories = writers.finish();
    let mut client = cluster.client(k);
    for history in histories {
        assert!(history.error.is_none(), "{:?}", history.error);
        let checked = history.check(&mut client);
        checked.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_replica_that_was_removed_lacks_everything_when_it_is_added_again() {
    let mut cluster = Cluster::start(3, SIZE);
    let writers = Writers::start(cluster.port(1), "r0", 2, 200);
    wait_busy(&writers);
    // Node 2 sees neither the removal nor the addition.
    cluster.kill_node(2);
    cluster.wait_evicted(1, 2);
    cluster.must(1, &["resource", "remove-replica", "r0", "node3"]);
    cluster.wait(1, "one replica less", |r0| {
        r0.in_sync == [name(1)] && r0.volumes[0].replicas.len() == 2
    });
    wait_for("node 3 to let its replica go", SOON, || {
        let told = cluster.events(3, "deleted");
        if told.iter().any(|text| text.contains("removed")) {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    });
    wait_busy(&writers);
    cluster.must(1, &["resource", "add-replica", "r0", "node3"]);
    cluster.start_node(2);
    cluster.wait_all_in_sync();
    let sent = cluster.events(1, "resync-started");
    assert!(
        sent.iter()
            .any(|text| text.contains("node3") && text.contains("32 MiB")),
        "node 3's old store was taken for known: {sent:?}"
    );
    wait_busy(&writers);
    check(&cluster, writers, 1);
    cluster.stop_and_compare_replicas();
}

#[test]
fn what_may_be_the_last_good_copy_is_not_removed() {
    let mut cluster = Cluster::start(3, SIZE);
    let told = cluster.refusal(2, &["resource", "remove-replica", "r0", "node1"]);
    assert!(
        told.contains("is the primary") && told.contains("lockstep move r0"),
        "{told}"
    );
    cluster.must(1, &["demote", "r0"]);
    let told = cluster.refusal(2, &["resource", "remove-replica", "r0", "node1"]);
    assert!(told.contains("last good copy"), "{told}");
    cluster.promote(1);
    cluster.kill_node(2);
    cluster.kill_node(3);
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.wait_all_in_sync();
    let told = cluster.refusal(1, &["resource", "remove-replica", "r0", "nodeX"]);
    assert!(told.contains("there is no node nodeX"), "{told}");
    let told = cluster.refusal(1, &["resource", "set", "r0", "--min-redundancy", "4"]);
    assert!(told.contains("min_redundancy is 4"), "{told}");
    let told = cluster.refusal(1, &["resource", "add-replica", "r0", "node2:/other"]);
    assert!(told.contains("holds a replica"), "{told}");
}

#[test]
fn a_dead_node_is_removed_for_good_and_not_let_in_again() {
    let mut cluster = Cluster::start(3, SIZE);
    let writers = Writers::start(cluster.port(1), "r0", 2, 200);
    wait_busy(&writers);
    let told = cluster.refusal(3, &["node", "remove", "node3", "--replicas"]);
    assert!(told.contains("this node itself"), "{told}");
    let told = cluster.refusal(2, &["node", "remove", "node1", "--replicas"]);
    assert!(told.contains("is the primary of r0"), "{told}");
    cluster.kill_node(3);
    // Of the two voters that would be left one would be missing.
    let told = cluster.refusal(1, &["node", "remove", "node2", "--replicas"]);
    assert!(told.contains("node3 do not answer"), "{told}");
    let told = cluster.refusal(1, &["node", "remove", "node3"]);
    assert!(told.contains("holds replicas of r0"), "{told}");
    cluster.must(1, &["node", "remove", "node3", "--replicas"]);
    wait_busy(&writers);
    let status = cluster.must(2, &["status"]);
    assert!(!status.contains("node3"), "{status}");
    cluster.start_node(3);
    wait_for("node 3 to be told", SOON, || {
        let told = text(&cluster.command(3, &["status"]));
        if told.contains("was removed from the cluster") {
            Ok(())
        } else {
            Err(told)
        }
    });
    wait_busy(&writers);
    check(&cluster, writers, 1);
    let status = cluster.must(1, &["status"]);
    assert!(!status.contains("node3"), "{status}");
}

#[test]
fn what_export_prints_apply_makes() {
    let cluster = Cluster::start(3, SIZE);
    let exported = cluster.must(1, &["export"]);
    let file = cluster.file(1, "cluster.toml");
    let path = file.to_str().expect("a path");
    let apply = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).expect("a file");
        let arguments = [&["apply", "-f", path], more].concat();
        cluster.must(2, &arguments)
    };
    assert_eq!(apply(&exported, &["--prune"]).trim(), "nothing to do");
    let more = "\n[resources.db]\nsizes = [\"8MiB\", \"4MiB\"]\naccess = \"follow\"\npreferred = \"node2\"\nup = true\nreplicas = { node2 = {}, node3 = {} }\n";
    let wanted = exported.replace("\"32MiB\"", "\"48MiB\"") + more;
    let told = apply(&wanted, &["--dry-run"]);
    assert!(
        told.contains("would create db (8 MiB + 4 MiB) on node2, node3"),
        "{told}"
    );
    assert_eq!(cluster.must(1, &["export"]), exported);
    let told = apply(&wanted, &[]);
    for words in [
        "grow volume 0 of r0",
        "create db",
        "prefer node2",
        "promote db on node2",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(apply(&wanted, &["--prune"]).trim(), "nothing to do");
    let told = apply(&exported.replace("\"32MiB\"", "\"48MiB\""), &[]);
    assert!(
        told.contains("left as it is") && told.contains("resource db"),
        "{told}"
    );
    apply(&exported.replace("\"32MiB\"", "\"48MiB\""), &["--prune"]);
    assert!(cluster.resource(1, "db").is_none());
    std::fs::write(&file, "[resources.r0]\nsizes = [\"1MiB\"]\n").expect("a file");
    let told = cluster.refusal(1, &["apply", "-f", path]);
    assert!(
        told.contains("[resources.r0]") && told.contains("can't shrink"),
        "{told}"
    );
}

#[test]
fn the_lease_is_changed_while_nobody_holds_one_and_counts_from_then_on() {
    let mut cluster = Cluster::start(3, SIZE);
    let longer = [
        "cluster",
        "timings",
        "--lease-ms",
        "1500",
        "--election-ms",
        "300",
    ];
    let told = cluster.refusal(2, &longer);
    assert!(told.contains("r0 has a primary"), "{told}");
    let told = cluster.refusal(2, &["cluster", "timings", "--election-ms", "400"]);
    assert!(
        told.contains("election_ms is 400; with lease_ms = 500 it is from 50 to 250"),
        "{told}"
    );
    cluster.must(2, &["demote", "r0"]);
    let told = cluster.must(2, &longer);
    assert!(
        told.contains("lease_ms = 1500") && told.contains("election_ms = 300"),
        "{told}"
    );
    cluster.promote(1);
    cluster.wait_all_in_sync();
    let writers = Writers::start(cluster.port(3), "r0", 2, 200);
    wait_busy(&writers);
    let before = std::time::Instant::now();
    cluster.kill_node(1);
    cluster.wait_primary(3, "another primary", |k| k != 1);
    assert!(
        before.elapsed() >= std::time::Duration::from_millis(1400),
        "a lease of 1.5 s was not waited out: {:?}",
        before.elapsed()
    );
    wait_busy(&writers);
    cluster.start_node(1);
    cluster.wait_all_in_sync();
    check(&cluster, writers, 3);
    cluster.stop_and_compare_replicas();
}

#[test]
fn without_a_quorum_a_primarys_clients_wait_or_get_errors_as_the_policy_says() {
    let mut cluster = Cluster::new(3, SIZE);
    for k in 1..=3 {
        cluster.change_config(k, |text| {
            // The demo's file may have the table already.
            if text.contains("[tuning]") {
                text.replace("[tuning]", "[tuning]\nno_primary_ms = 1000")
            } else {
                text + "\n[tuning]\nno_primary_ms = 1000\n"
            }
        });
    }
    cluster.start_all();
    for access in ["follow", "exclusive"] {
        let policy = [
            "resource",
            "set",
            "r0",
            "--access",
            access,
            "--on-no-quorum",
            "error",
        ];
        cluster.must(1, &policy);
        let mut client = cluster.client(1);
        client.write(0, &[1; 4096]).expect("a write");
        cluster.kill_node(2);
        cluster.kill_node(3);
        let error = client
            .write(4096, &[2; 4096])
            .expect_err("nobody may answer");
        assert!(error.to_string().contains("error 5"), "{error}");
        // At once from now on.
        client.write(0, &[3; 4096]).expect_err("nobody may answer");
        cluster.start_node(2);
        cluster.start_node(3);
        cluster.wait_primary(2, "a primary", |_| true);
        cluster.promote(1);
        cluster.wait_all_in_sync();
        let mut client = cluster.client(1);
        client.write(0, &[4; 4096]).expect("a write");
        let read = client.read(0, 4096).expect("a read");
        assert_eq!(read, [4; 4096]);
    }
    cluster.must(1, &["resource", "set", "r0", "--on-no-quorum", "suspend"]);
    let mut client = cluster.client(1);
    client.write(0, &[5; 4096]).expect("a write");
    cluster.kill_node(2);
    cluster.kill_node(3);
    client.set_limit(std::time::Duration::from_secs(3));
    client.write(0, &[6; 4096]).expect_err("no answer");
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.wait_all_in_sync();
    let mut client = cluster.client(cluster.wait_primary(2, "a primary", |_| true));
    client.write(0, &[7; 4096]).expect("a write");
}
