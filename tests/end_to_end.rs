//! The replication engine as its users meet it: real processes on loopback, real clients, and the
//! losses that the design promises to survive. Each test has a cluster of its own.

mod common;

use common::cluster::{Cluster, name};
use common::command::{LOCKSTEP, lockstep, output_within, text};
use common::fio::FioLoop;
use common::ports::Ports;
use common::stamps::{History, Writers};
use common::{SOON, wait_for};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

const MIB: u64 = 1 << 20;
const EXTENT_BYTES: u64 = 4 * MIB;
const SIZE: u64 = 64 * MIB;

/// Enough acknowledged writes to be sure that many more are on their way.
const BUSY_WRITES: u64 = 2000;

fn wait_busy(writers: &Writers, more: u64) {
    let goal = writers.acknowledged_writes() + more;
    wait_for("the writers to get on", SOON, || {
        let now = writers.acknowledged_writes();
        if now >= goal {
            Ok(())
        } else {
            Err(format!("{now} of {goal} writes"))
        }
    });
}

fn check_histories(cluster: &Cluster, k: usize, histories: &[History]) {
    let written: u64 = histories.iter().map(History::acknowledged_writes).sum();
    assert!(written > 0, "nothing was written, so nothing was tested");
    let mut client = cluster.client(k);
    for history in histories {
        history
            .check(&mut client)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

// --- demo and status -------------------------------------------------------------------------

#[test]
fn demo_exec_gives_the_command_its_uris_and_ends_with_its_status() {
    let ports = Ports::take();
    let parent = tempfile::tempdir().expect("a temporary directory");
    let dir = parent.path().join("demo");
    let script = format!(
        "test \"$NBD_URI\" = \"$NBD_URI_1\" && test -n \"$NBD_URI_2\" \
         && test \"$LOCKSTEP_DIR\" -ef {dir} && test -s {dir}/node1/pid && test -S {dir}/node2/api.sock \
         && test -f {dir}/node2/r0.img && nbdinfo --size \"$NBD_URI\" && exit 7",
        dir = dir.display()
    );
    let port = ports.of_node(1);
    let output = lockstep([
        "demo",
        "--nodes=2",
        "--size=64MiB",
        &format!("--dir={}", dir.display()),
        &format!("--port={port}"),
        &format!("--exec={script}"),
    ]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains(&SIZE.to_string()),
        "nbdinfo told another size: {said}"
    );
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "something serves port {port} after the demo's end"
    );
}

#[test]
fn fio_verifies_what_it_wrote_through_demo_exec() {
    let ports = Ports::take();
    let parent = tempfile::tempdir().expect("a temporary directory");
    let output = lockstep([
        "demo",
        "--size=64MiB",
        &format!("--dir={}", parent.path().join("demo").display()),
        &format!("--port={}", ports.of_node(1)),
        "--exec=fio --name=v --ioengine=nbd --uri=\"$NBD_URI\" --rw=randwrite --bs=4k --iodepth=32 \
         --verify=crc32c --verify_fatal=1 --verify_state_save=0",
    ]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("err= 0"),
        "fio told no result: {}",
        text(&output)
    );
}

#[test]
fn status_json_has_the_documented_shape() {
    let cluster = Cluster::start(2, SIZE);
    let output = cluster.command(1, &["status", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for key in ["name", "online", "voter", "leader"] {
        assert!(
            status["nodes"][0].get(key).is_some(),
            "nodes[] lacks {key}: {status}"
        );
    }
    let resource = &status["resources"][0];
    for key in [
        "name",
        "generation",
        "epoch",
        "primary",
        "in_sync",
        "volumes",
    ] {
        assert!(
            resource.get(key).is_some(),
            "resources[] lacks {key}: {status}"
        );
    }
    let volume = &resource["volumes"][0];
    assert_eq!(volume["volume"], 0);
    assert_eq!(volume["size_bytes"], SIZE);
    assert_eq!(volume["replicas"].as_array().map(Vec::len), Some(2));
    for key in [
        "node",
        "role",
        "disk_state",
        "replication_state",
        "out_of_sync_bytes",
        "resync",
    ] {
        assert!(
            volume["replicas"][0].get(key).is_some(),
            "replicas[] lacks {key}: {status}"
        );
    }
}

// --- loss of a secondary ---------------------------------------------------------------------

#[test]
fn fio_sees_no_error_while_a_secondary_is_killed_and_returns() {
    let mut cluster = Cluster::start(3, SIZE);
    let load = FioLoop::start(cluster.fio(1, 0, SIZE));
    for k in [2, 3] {
        cluster.kill_node(k);
        cluster.wait_evicted(1, k);
        cluster.start_node(k);
        cluster.wait(1, "the killed secondary to be in sync again", |r0| {
            r0.is_in_sync(&name(k))
        });
    }
    load.finish().expect("clients see no error");
    cluster.stop_and_compare_replicas();
}

#[test]
fn fio_sees_no_error_while_both_secondaries_are_away() {
    // Five voters, so that two may be lost at a time.
    let mut cluster = Cluster::with_witnesses(3, 2, SIZE);
    cluster.start_all();
    let load = FioLoop::start(cluster.fio(1, 0, SIZE));
    cluster.kill_node(2);
    cluster.kill_node(3);
    cluster.wait_evicted(1, 2);
    cluster.wait_evicted(1, 3);
    load.finish().expect("clients see no error");
    let alone = cluster.fio(1, 0, SIZE);
    alone
        .write_and_verify()
        .expect("the last member serves alone");
    cluster.start_node(3);
    cluster.start_node(2);
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_frozen_secondary_is_evicted_and_admitted_again_when_it_goes_on() {
    let mut cluster = Cluster::start(2, SIZE);
    let load = FioLoop::start(cluster.fio(1, 0, SIZE));
    cluster.freeze_node(2);
    cluster.wait_evicted(1, 2);
    cluster.thaw_node(2);
    cluster.wait(1, "the frozen secondary to be in sync again", |r0| {
        r0.is_in_sync("node2")
    });
    load.finish().expect("clients see no error");
    cluster.stop_and_compare_replicas();
}

#[test]
fn out_of_sync_bytes_after_a_short_absence_cover_what_was_written_and_no_more_than_its_extents() {
    let mut cluster = Cluster::start(2, SIZE);
    let mut client = cluster.client(1);
    let block = vec![0x5a; 4096];
    client.write(0, &block).expect("a write with both replicas");
    client.flush().expect("a flush with both replicas");

    cluster.kill_node(2);
    cluster.wait_evicted(1, 2);
    let touched = 5;
    for extent in 0..touched {
        let offset = (2 * extent + 3) * EXTENT_BYTES + 8192;
        client
            .write(offset, &block)
            .expect("a write with one replica");
    }
    client.flush().expect("a flush with one replica");
    let behind = cluster.r0(1).replica("node2").out_of_sync_bytes;
    assert!(
        behind >= touched * 4096,
        "{behind} bytes cannot cover {touched} blocks"
    );
    // One more extent: the one that was written just before the absence.
    let most = (touched + 1) * EXTENT_BYTES;
    assert!(
        behind <= most,
        "{behind} bytes are more than the {most} of the extents touched"
    );

    cluster.start_node(2);
    cluster.stop_and_compare_replicas();
}

#[test]
fn an_absence_without_a_write_leaves_next_to_nothing_to_copy() {
    let mut cluster = Cluster::start(2, SIZE);
    cluster.kill_node(2);
    cluster.wait_evicted(1, 2);
    let behind = cluster.r0(1).replica("node2").out_of_sync_bytes;
    assert_eq!(behind, 0, "nothing was ever written");
    cluster.start_node(2);
    cluster.wait_all_in_sync();
}

#[test]
fn a_full_disk_under_a_secondary_evicts_it_and_clients_go_on() {
    let mut cluster = Cluster::new(2, SIZE);
    cluster.move_to_small_file_system(2, SIZE / 2);
    cluster.start_all();
    let job = cluster.fio(1, 0, SIZE);
    job.write_and_verify()
        .expect("the primary's disk is large enough");
    let r0 = cluster.wait(1, "the full replica to be dropped", |r0| {
        !r0.is_in_sync("node2") && r0.replica("node2").disk_state != "UpToDate"
    });
    assert_eq!(r0.primary.as_deref(), Some("node1"));
    assert!(
        r0.replica("node2").out_of_sync_bytes > 0,
        "it lacks half of the device: {r0:?}"
    );
}

// --- loss of all nodes -----------------------------------------------------------------------

#[test]
fn every_acknowledged_write_is_there_after_kill_9_of_all_nodes() {
    let mut cluster = Cluster::start(3, SIZE);
    for _ in 0..3 {
        let writers = Writers::start(cluster.port(1), "r0", 4, 500);
        wait_busy(&writers, BUSY_WRITES);
        cluster.kill_all();
        let histories = writers.finish();
        cluster.start_all();
        check_histories(&cluster, 1, &histories);
        // The next round's stamps begin at 1 again.
        let mut client = cluster.client(1);
        client
            .write(0, &vec![0; 4 * 500 * 4096])
            .expect("the blocks can be cleared");
    }
    cluster.stop_and_compare_replicas();
}

#[test]
fn every_acknowledged_write_is_on_the_other_node_when_the_primary_stays_away_for_the_promotion() {
    let mut cluster = Cluster::start(3, SIZE);
    let writers = Writers::start(cluster.port(1), "r0", 4, 500);
    wait_busy(&writers, BUSY_WRITES);
    cluster.kill_all();
    let histories = writers.finish();
    for k in 1..=3 {
        cluster.start_node(k);
    }
    cluster.promote(2);
    check_histories(&cluster, 2, &histories);
    cluster.stop_and_compare_replicas();
}

#[test]
fn what_fio_flushed_is_there_after_kill_9_of_all_nodes_in_mid_write() {
    let mut cluster = Cluster::start(2, SIZE);
    let flushed = cluster.fio(1, 0, SIZE / 2);
    flushed.write_and_flush().expect("writes succeed");
    let mut unfinished = cluster.fio(1, SIZE / 2, SIZE / 2);
    unfinished.seed = 2;
    let load = std::thread::spawn(move || {
        while unfinished.write_and_flush().is_ok() {
            unfinished.seed += 1;
        }
    });
    // fio is in mid-write once something shows up in the second half of the device.
    let mut client = cluster.client(1);
    wait_for("fio to write", SOON, || {
        let data = client
            .read(SIZE / 2, 1 << 20)
            .map_err(|error| error.to_string())?;
        if data.iter().any(|&byte| byte != 0) {
            Ok(())
        } else {
            Err("zeroes".to_owned())
        }
    });
    cluster.kill_all();
    load.join().expect("fio ends");
    cluster.start_all();
    flushed.verify_only().expect("what was flushed is there");
    cluster.stop_and_compare_replicas();
}

// --- moving ----------------------------------------------------------------------------------

#[test]
fn a_promotion_elsewhere_serves_every_byte_and_ends_service_on_the_old_primary() {
    let mut cluster = Cluster::start(2, SIZE);
    cluster
        .fio(1, 0, SIZE)
        .write_and_flush()
        .expect("writes succeed");
    let before = cluster.r0(1);

    let output = cluster.command(1, &["demote", "r0"]);
    assert!(output.status.success(), "{}", text(&output));
    cluster.promote(2);
    let after = cluster.r0(1);
    assert!(
        after.epoch > before.epoch,
        "a promotion opens an epoch: {before:?} {after:?}"
    );
    assert!(after.generation > before.generation);

    cluster
        .fio(2, 0, SIZE)
        .verify_only()
        .expect("everything is on the new primary");
    let mut again = cluster.fio(2, 0, SIZE);
    again.seed = 9;
    again
        .write_and_verify()
        .expect("the new primary serves writes");
    let old = common::nbd::Client::connect(cluster.port(1), "r0")
        .and_then(|mut client| client.write(0, &[0; 4096]));
    if old.is_ok() {
        // In follow access a node forwards; then the write must be on the primary.
        let data = cluster
            .client(2)
            .read(0, 4096)
            .expect("the primary serves reads");
        assert_eq!(
            data, [0; 4096],
            "a superseded primary acknowledged a write of its own"
        );
    }
    cluster.stop_and_compare_replicas();
}

#[test]
fn demo_on_a_port_in_use_says_so_and_leaves_nothing_running() {
    let ports = Ports::take();
    let port = ports.of_node(1);
    let holder = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let parent = tempfile::tempdir().expect("a temporary directory");
    let dir = parent.path().join("demo");
    let output = lockstep([
        "demo",
        "--nodes=2",
        "--size=64MiB",
        &format!("--dir={}", dir.display()),
        &format!("--port={port}"),
        "--exec=true",
    ]);
    assert!(!output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(&port.to_string()),
        "the error does not name port {port}: {said}"
    );
    assert!(
        said.contains("--port"),
        "the error does not say what to do: {said}"
    );
    let running = Command::new("pgrep")
        .arg("-f")
        .arg(&dir)
        .output()
        .expect("pgrep runs");
    assert_eq!(
        String::from_utf8_lossy(&running.stdout),
        "",
        "processes were left behind"
    );
    drop(holder);
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused_and_the_first_serves_on() {
    let cluster = Cluster::start(2, SIZE);
    for k in [1, 2] {
        let output = output_within(cluster.daemon_command(k), SOON);
        assert!(
            !output.status.success(),
            "a second daemon ran: {}",
            text(&output)
        );
        let said = text(&output);
        assert!(
            said.contains(&cluster.dir(k).display().to_string()),
            "the error does not name the directory: {said}"
        );
    }
    cluster
        .fio(1, 0, SIZE)
        .write_and_verify()
        .expect("the cluster serves on");
    cluster.wait_all_in_sync();
}

/// Restarts node 2 after `damage` was done to its files: its replica must be refused, the daemon
/// must be up and say why, and the primary must serve everything that was written.
fn damaged_replica_is_refused(damage: impl FnOnce(&Cluster)) {
    let mut cluster = Cluster::start(3, SIZE);
    let written = cluster.fio(1, 0, SIZE);
    written.write_and_flush().expect("writes succeed");
    cluster.wait_all_in_sync();
    cluster.stop_all();
    damage(&cluster);
    for k in 1..=3 {
        cluster.start_node(k);
    }
    cluster.promote(1);
    let refused = cluster.wait(2, "node 2 to tell of its replica", |r0| {
        matches!(
            r0.replica("node2").disk_state.as_str(),
            "Diskless" | "Failed"
        )
    });
    assert!(refused.primary.as_deref() != Some("node2"));
    cluster.wait_evicted(1, 2);
    written.verify_only().expect("the others have everything");
    let log = std::fs::read_to_string(cluster.file(2, "log")).expect("node 2 has a log");
    assert!(
        log.contains("r0.img"),
        "the log does not name the refused file:\n{log}"
    );
}

#[test]
fn an_empty_backing_file_is_refused() {
    damaged_replica_is_refused(|cluster| {
        std::fs::write(cluster.file(2, "r0.img"), b"").expect("the file can be emptied");
    });
}

#[test]
fn a_truncated_backing_file_is_refused() {
    damaged_replica_is_refused(|cluster| {
        let path = cluster.file(2, "r0.img");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("the file opens");
        file.set_len(SIZE / 2).expect("the file can be cut");
    });
}

#[test]
fn another_nodes_backing_files_are_refused() {
    damaged_replica_is_refused(|cluster| {
        for theirs in cluster.store_files(3) {
            let file = theirs.file_name().expect("a file name").to_owned();
            std::fs::copy(&theirs, cluster.dir(2).join(file)).expect("the file can be copied");
        }
    });
}

#[test]
fn backing_files_of_another_cluster_are_refused() {
    damaged_replica_is_refused(|cluster| {
        let foreign = Cluster::new(2, SIZE);
        for theirs in foreign.store_files(2) {
            let file = theirs.file_name().expect("a file name").to_owned();
            std::fs::copy(&theirs, cluster.dir(2).join(file)).expect("the file can be copied");
        }
    });
}

#[test]
fn swapped_backing_files_are_refused_on_both_nodes_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, SIZE);
    let written = cluster.fio(1, 0, SIZE);
    written.write_and_flush().expect("writes succeed");
    cluster.wait_all_in_sync();
    cluster.stop_all();
    let swap = |a: &std::path::Path, b: &std::path::Path| {
        let aside = a.with_extension("aside");
        std::fs::rename(a, &aside).expect("a file can be renamed");
        std::fs::rename(b, a).expect("a file can be renamed");
        std::fs::rename(&aside, b).expect("a file can be renamed");
    };
    for path in cluster.store_files(2) {
        swap(
            &path,
            &cluster.dir(3).join(path.file_name().expect("a file name")),
        );
    }
    for k in 1..=3 {
        cluster.start_node(k);
    }
    cluster.promote(1);
    for k in [2, 3] {
        cluster.wait(k, "the swapped replica to be refused", |r0| {
            matches!(
                r0.replica(&name(k)).disk_state.as_str(),
                "Diskless" | "Failed"
            )
        });
    }
    written.verify_only().expect("node 1 has everything");
}

#[test]
fn a_write_to_a_secondary_is_refused_or_forwarded_but_never_kept_there() {
    let mut cluster = Cluster::start(2, SIZE);
    let opened = common::nbd::Client::connect(cluster.port(2), "r0");
    if let Ok(mut client) = opened
        && client.write(0, &[0x77; 4096]).is_ok()
    {
        let data = cluster
            .client(1)
            .read(0, 4096)
            .expect("the primary serves reads");
        assert_eq!(
            data, [0x77; 4096],
            "an acknowledged write is not on the primary"
        );
    }
    cluster.stop_and_compare_replicas();
}

#[test]
fn unknown_commands_and_options_are_refused_with_advice() {
    for arguments in [vec!["frobnicate"], vec!["status", "--frobnicate"]] {
        let mut command = Command::new(LOCKSTEP);
        command.args(&arguments);
        let output = output_within(command, SOON);
        assert!(!output.status.success(), "{arguments:?} was accepted");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("frobnicate"),
            "the error does not name the word: {said}"
        );
        assert!(
            said.contains("--help"),
            "the error does not say where help is: {said}"
        );
    }
}
