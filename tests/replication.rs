//! What operators do to replicas and what networks do to them, with real processes: cuts, verify and
//! repair, invalidate, resize, holes, redundancy, several volumes, many replicas, unix sockets.

mod common;

use common::cluster::{Cluster, name};
use common::command::{output_within, text};
use common::fio::{Fio, FioLoop};
use common::nbd::Client;
use common::stamps::Writers;
use common::{SOON, wait_for};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Blocks that the writers of these tests have each.
const BLOCKS: u64 = 500;

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

// --- cuts ------------------------------------------------------------------------------------

#[test]
fn a_secondary_that_is_cut_off_by_the_network_is_evicted_and_returns_when_it_heals() {
    let mut cluster = Cluster::in_a_lab(3, 0, SIZE);
    let load = FioLoop::start(cluster.fio(1, 0, SIZE));
    cluster.lab().cut_off(2);
    let r0 = cluster.wait(1, "the cut-off secondary to be evicted", |r0| {
        !r0.is_in_sync("node2")
    });
    assert!(
        r0.is_in_sync("node3"),
        "the other secondary was dropped too"
    );
    cluster.lab().heal();
    cluster.wait(1, "the healed secondary to be in sync again", |r0| {
        r0.is_in_sync("node2")
    });
    load.finish().expect("clients see no error");
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_cut_that_is_shorter_than_the_time_outs_costs_a_pause_and_nothing_else() {
    let mut cluster = Cluster::in_a_lab(2, 1, SIZE);
    let before = cluster.r0(1);
    let writers = Writers::start_on(|| cluster.client(1), 0, 2, BLOCKS);
    wait_acknowledged(&writers, 500);
    cluster.lab().set_deaf(2, true);
    // Not synchronisation: this is how long the cut lasts.
    std::thread::sleep(Duration::from_millis(100));
    cluster.lab().set_deaf(2, false);
    wait_acknowledged(&writers, writers.acknowledged_writes() + 500);
    let histories = writers.finish();
    assert!(histories.iter().all(|history| history.error.is_none()));
    assert_eq!(
        cluster.r0(1).generation,
        before.generation,
        "no change was needed"
    );
    cluster.stop_and_compare_replicas();
}

#[test]
fn verify_finds_what_differs_and_repair_mends_it() {
    let mut cluster = Cluster::start(3, SIZE);
    // The other half is never written: extents that were written lately are compared, and mended,
    // at each promotion.
    cluster
        .fio(1, 0, SIZE / 2)
        .write_and_flush()
        .expect("writes succeed");
    cluster.wait_all_in_sync();
    cluster.must(1, &["verify", "r0", "--wait"]);
    assert_eq!(
        cluster.events(1, "differs"),
        Vec::<String>::new(),
        "nothing differs"
    );
    // So that no replica leaves the in-sync set, and nothing is compared when they are back.
    cluster.must(1, &["demote", "r0"]);
    cluster.stop_all();

    let planted = [(SIZE / 2 + 20 * MIB + 8192, 4096_u64), (SIZE - 4096, 100)];
    let image = std::fs::OpenOptions::new()
        .write(true)
        .open(cluster.file(2, "r0.img"))
        .expect("the image opens");
    for (offset, len) in planted {
        let bytes = vec![0xee; usize::try_from(len).expect("a small number")];
        image
            .write_all_at(&bytes, offset)
            .expect("the image can be written");
    }
    cluster.start_all();

    cluster.must(1, &["verify", "r0", "--wait"]);
    let found = cluster.events(1, "differs");
    for (offset, _) in planted {
        assert!(
            found.iter().any(|text| text.contains("node2")
                && text.contains(&format!("4096 bytes at {offset}"))
                && !text.contains("repaired")),
            "the difference at {offset} is not among {found:?}"
        );
    }
    assert_eq!(found.len(), planted.len(), "{found:?}");
    // One replica alone, and only that.
    cluster.must(1, &["verify", "r0", "node3", "--wait"]);
    assert_eq!(cluster.events(1, "differs").len(), planted.len());
    cluster.must(1, &["verify", "r0", "node2", "--wait"]);
    assert_eq!(cluster.events(1, "differs").len(), 2 * planted.len());

    cluster.must(1, &["verify", "r0", "--repair", "--wait"]);
    let done = cluster.events(1, "verify-done");
    assert!(
        done.last().is_some_and(|text| text.contains("8 KiB")),
        "{done:?}"
    );
    cluster.wait_all_in_sync();
    cluster.must(1, &["verify", "r0", "--wait"]);
    let done = cluster.events(1, "verify-done");
    assert!(
        done.last()
            .is_some_and(|text| text.contains(", 0 B differed")),
        "{done:?}"
    );
    cluster.stop_and_compare_replicas();
}

#[test]
fn verify_under_writes_finds_no_difference_where_there_is_none() {
    let mut cluster = Cluster::start(2, SIZE);
    let load = FioLoop::start(cluster.fio(1, 0, SIZE));
    for _ in 0..3 {
        cluster.must(1, &["verify", "r0", "--wait"]);
    }
    load.finish().expect("clients see no error");
    assert_eq!(cluster.events(1, "differs"), Vec::<String>::new());
    assert_eq!(cluster.events(1, "verify-done").len(), 3);
    cluster.stop_and_compare_replicas();
}

#[test]
fn an_invalidated_replica_is_copied_anew_while_clients_go_on() {
    let mut cluster = Cluster::start(2, SIZE);
    cluster
        .fio(1, 0, SIZE)
        .write_and_flush()
        .expect("writes succeed");
    let load = FioLoop::start(cluster.fio(1, 0, SIZE));
    cluster.must(1, &["invalidate", "r0", "node2", "--wait"]);
    cluster.wait(1, "the invalidated replica to be in sync", |r0| {
        r0.is_in_sync("node2")
    });
    assert!(
        !cluster.events(1, "resync-done").is_empty(),
        "nothing was copied"
    );
    load.finish().expect("clients see no error");
    cluster.stop_and_compare_replicas();
}

#[test]
fn the_last_replica_in_sync_can_not_be_invalidated() {
    let cluster = Cluster::start(2, SIZE);
    let said = cluster.refusal(1, &["invalidate", "r0", "node1"]);
    assert!(said.contains("node1"), "{said}");
    cluster.wait_all_in_sync();
}

#[test]
fn a_grown_volume_is_seen_by_clients_that_reconnect_and_stays_grown() {
    let mut cluster = Cluster::start(3, SIZE);
    let mut early = cluster.client(1);
    assert_eq!(early.size_bytes, SIZE);
    cluster.kill_node(3);
    cluster.wait_evicted(1, 3);

    let grown = 2 * SIZE;
    cluster.must(1, &["volume", "resize", "r0", &grown.to_string()]);
    let mut late = cluster.client(1);
    assert_eq!(late.size_bytes, grown);
    early
        .write(0, &[0x11; 4096])
        .expect("a connection from before goes on");
    assert_eq!(
        late.read(SIZE, 4096).expect("the new part can be read"),
        [0; 4096]
    );
    late.write(grown - 4096, &[0x22; 4096])
        .expect("the new part can be written");
    let said = cluster.refusal(1, &["volume", "resize", "r0", &SIZE.to_string()]);
    assert!(
        said.contains("shrink") || said.contains("smaller"),
        "{said}"
    );

    cluster.start_node(3);
    cluster.size_bytes = grown;
    cluster.stop_and_compare_replicas();
    cluster.start_all();
    let mut again = cluster.client(1);
    assert_eq!(again.size_bytes, grown);
    assert_eq!(
        again.read(grown - 4096, 4096).expect("the end can be read"),
        [0x22; 4096]
    );
}

// --- thin replicas ---------------------------------------------------------------------------

#[test]
fn discards_and_zeroes_arrive_as_holes_and_resync_keeps_replicas_thin() {
    let mut cluster = Cluster::start(2, SIZE);
    let allocated = |cluster: &Cluster| [1, 2].map(|k| cluster.allocated_bytes(k, "r0.img"));
    assert_eq!(allocated(&cluster), [0, 0], "nothing was ever written");
    let mut client = cluster.client(1);
    let piece = vec![0x44; 1 << 20];
    for number in 0..16 {
        client.write(number * MIB, &piece).expect("writes succeed");
    }
    client.flush().expect("a flush");
    assert!(allocated(&cluster).iter().all(|&bytes| bytes >= 16 * MIB));

    client.trim(0, 8 << 20).expect("a discard");
    client.write_zeroes(8 * MIB, 4 << 20).expect("zeroes");
    client.flush().expect("a flush");
    let thin = allocated(&cluster);
    assert!(
        thin.iter().all(|&bytes| bytes <= 4 * MIB + 128 * 1024),
        "there should be 4 MiB left: {thin:?}"
    );
    for offset in [0, 8 * MIB - 4096, 8 * MIB, 12 * MIB - 4096] {
        assert_eq!(client.read(offset, 4096).expect("a read"), [0; 4096]);
    }

    // What is discarded in its absence is a hole on the returning replica too.
    cluster.kill_node(2);
    cluster.wait_evicted(1, 2);
    client.trim(12 * MIB, 3 << 20).expect("a discard");
    client.flush().expect("a flush");
    cluster.start_node(2);
    cluster.wait_all_in_sync();
    let thin = allocated(&cluster);
    assert!(
        thin.iter().all(|&bytes| bytes <= MIB + 128 * 1024),
        "there should be 1 MiB left: {thin:?}"
    );

    // So is what was never written, when everything is copied.
    cluster.must(1, &["invalidate", "r0", "node2", "--wait"]);
    cluster.wait_all_in_sync();
    let thin = allocated(&cluster);
    assert!(
        thin.iter().all(|&bytes| bytes <= MIB + 128 * 1024),
        "there should be 1 MiB left: {thin:?}"
    );
    cluster.stop_and_compare_replicas();
}

// --- resources -------------------------------------------------------------------------------

#[test]
fn with_min_redundancy_2_writes_wait_for_the_second_replica_and_go_on_by_themselves() {
    let mut cluster = Cluster::start(2, SIZE);
    cluster.must(
        1,
        &[
            "resource",
            "create",
            "careful",
            "--size",
            "16MiB",
            "--min-redundancy",
            "2",
            "--replica=node1",
            "--replica=node2",
        ],
    );
    cluster.must(1, &["promote", "careful", "node1"]);
    cluster.wait_in_sync("careful", &[1, 2]);
    let writers = Writers::start(cluster.port(1), "careful", 2, BLOCKS);
    wait_acknowledged(&writers, 500);
    cluster.kill_node(2);
    wait_for("the status to say what is waited for", SOON, || {
        let said = cluster.must(1, &["status", "careful"]);
        if said.contains("waits for node2") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let waiting = writers.acknowledged_writes();
    // Many times longer than a write takes, and than an eviction would.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        writers.acknowledged_writes(),
        waiting,
        "a write was acknowledged with one replica"
    );
    let careful = cluster.resource(1, "careful").expect("it is there");
    assert_eq!(careful.in_sync, ["node1", "node2"]);
    // The other resource is content with one replica.
    cluster
        .client(1)
        .write(0, &[1; 4096])
        .expect("r0 goes on with one replica");
    cluster.start_node(2);
    wait_acknowledged(&writers, waiting + 500);
    let histories = writers.finish();
    for history in &histories {
        assert!(history.error.is_none(), "{:?}", history.error);
    }
    cluster.wait_in_sync("careful", &[1, 2]);
    cluster.stop_and_compare_replicas();
    cluster.compare_files(1, 2, "careful.img", 16 * MIB);
}

#[test]
fn volumes_of_a_resource_have_exports_of_their_own_and_are_resynced_together() {
    let mut cluster = Cluster::start(2, SIZE);
    let sizes = [8 * MIB, 24 * MIB];
    cluster.must(
        1,
        &[
            "resource", "create", "pair", "--size", "8MiB", "--size", "24MiB",
        ],
    );
    cluster.must(1, &["promote", "pair", "node1"]);
    cluster.wait_in_sync("pair", &[1, 2]);
    let mut listing = Command::new("nbdinfo");
    listing
        .arg("--list")
        .arg(format!("nbd://127.0.0.1:{}", cluster.port(1)));
    let listed = text(&output_within(listing, SOON));
    for export in ["\"r0\"", "\"pair\"", "\"pair/1\""] {
        assert!(listed.contains(export), "{export} is not in: {listed}");
    }
    let jobs: Vec<Fio> = ["pair", "pair/1"]
        .into_iter()
        .zip(sizes)
        .map(|(export, size_bytes)| Fio {
            uri: format!("nbd://127.0.0.1:{}/{export}", cluster.port(1)),
            ..cluster.fio(1, 0, size_bytes)
        })
        .collect();
    for (job, size_bytes) in jobs.iter().zip(sizes) {
        let name = job.uri.rsplit_once("/pair").expect("an export").1;
        let client = Client::connect(cluster.port(1), &format!("pair{name}"));
        assert_eq!(client.expect("it opens").size_bytes, size_bytes);
        job.write_and_verify().expect("writes succeed");
    }
    cluster.kill_node(2);
    wait_for("node 2 to be evicted", SOON, || {
        let pair = cluster.resource(1, "pair").expect("it is there");
        if pair.is_in_sync("node2") {
            Err(format!("{pair:?}"))
        } else {
            Ok(())
        }
    });
    for job in &jobs {
        let mut other = job.clone();
        other.seed = 5;
        other.write_and_verify().expect("writes succeed");
    }
    assert!(
        Client::connect(cluster.port(1), "pair/2").is_err(),
        "there is no volume 2"
    );
    cluster.start_node(2);
    cluster.wait_in_sync("pair", &[1, 2]);
    cluster.stop_and_compare_replicas();
    cluster.compare_files(1, 2, "pair.img", sizes[0]);
    cluster.compare_files(1, 2, "pair-1.img", sizes[1]);
}

#[test]
fn five_replicas_lose_two_and_end_up_equal() {
    let mut cluster = Cluster::start(5, SIZE);
    let load = FioLoop::start(cluster.fio(1, 0, SIZE));
    cluster.kill_node(3);
    cluster.kill_node(5);
    cluster.wait_evicted(1, 3);
    cluster.wait_evicted(1, 5);
    cluster.start_node(5);
    cluster.start_node(3);
    for k in [3, 5] {
        cluster.wait(1, "the lost replica to be in sync again", |r0| {
            r0.is_in_sync(&name(k))
        });
    }
    load.finish().expect("clients see no error");
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_unix_socket_serves_the_same_exports() {
    let mut cluster = Cluster::start(2, SIZE);
    let socket = cluster.file(1, "nbd.sock");
    let job = Fio {
        uri: format!("nbd+unix:///r0?socket={}", socket.display()),
        ..cluster.fio(1, 0, SIZE)
    };
    job.write_and_verify().expect("the socket serves");
    cluster
        .fio(1, 0, SIZE)
        .verify_only()
        .expect("the port shows what was written through the socket");
    // A daemon that was killed leaves its socket behind; the next one takes its place.
    cluster.kill_node(1);
    assert!(socket.exists());
    cluster.start_node(1);
    cluster.promote(1);
    cluster.wait_all_in_sync();
    job.verify_only().expect("the socket serves again");
    cluster.stop_and_compare_replicas();
}
