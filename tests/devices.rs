//! Replicas on block devices and with internal metadata, with real processes and loop devices; and
//! disks that are replaced.

mod common;

use common::cluster::{Cluster, name};
use common::command::{lockstep, text};
use common::loops::Loop;
use common::nbd::Client;
use common::{SOON, wait_for};
use std::fs::File;
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// Resource `dev` on loop devices. They go after the cluster, which uses them.
struct Devices {
    cluster: Cluster,
    loops: Vec<Loop>,
    _files: tempfile::TempDir,
}

impl Devices {
    fn new(nodes: usize, device_bytes: u64, volume_bytes: u64) -> Self {
        let files = tempfile::TempDir::with_prefix("lockstep-loops-").expect("a directory");
        let loops: Vec<Loop> = (1..=nodes)
            .map(|k| Loop::new(&files.path().join(format!("disk{k}")), device_bytes))
            .collect();
        let cluster = Cluster::start(nodes, SIZE);
        let mut words = vec![
            "resource".to_owned(),
            "create".to_owned(),
            "dev".to_owned(),
            "--size".to_owned(),
            volume_bytes.to_string(),
        ];
        for (k, device) in (1..).zip(&loops) {
            words.push("--replica".to_owned());
            words.push(format!("{}:{}", name(k), device.path()));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        cluster.must(1, &words);
        let devices = Self {
            cluster,
            loops,
            _files: files,
        };
        devices.promote(1);
        devices
    }

    fn nodes(&self) -> Vec<usize> {
        (1..=self.loops.len()).collect()
    }

    /// Makes node `k` primary and waits until all replicas are in sync.
    fn promote(&self, k: usize) {
        make_primary(&self.cluster, "dev", k);
        self.cluster.wait_in_sync("dev", &self.nodes());
    }

    fn client(&self, k: usize) -> Client {
        wait_for("the export to open", SOON, || {
            Client::connect(self.cluster.port(k), "dev").map_err(|error| error.to_string())
        })
    }

    fn restart_all(&mut self, primary: usize) {
        for k in self.nodes() {
            self.cluster.start_node(k);
        }
        self.promote(primary);
    }

    /// All devices hold the same data.
    fn compare(&self, volume_bytes: u64) {
        let read = |device: &Loop, offset| {
            let mut bytes = vec![0; 1 << 20];
            let file = File::open(device.path()).expect("the device opens");
            file.read_exact_at(&mut bytes, offset)
                .expect("it can be read");
            bytes
        };
        for offset in (0..volume_bytes).step_by(1 << 20) {
            let first = read(&self.loops[0], offset);
            for device in &self.loops[1..] {
                assert!(
                    first == read(device, offset),
                    "{} and {} differ between {offset} and {}",
                    self.loops[0].path(),
                    device.path(),
                    offset + MIB
                );
            }
        }
    }
}

/// Makes node `k` primary, whoever is by now: after a crash the cluster chooses one by itself.
fn make_primary(cluster: &Cluster, resource: &str, k: usize) {
    wait_for("a primary", SOON, || {
        let promoted = cluster.command(1, &["promote", resource, &name(k)]);
        if promoted.status.success() {
            return Ok(());
        }
        let moved = cluster.command(1, &["move", resource, &name(k)]);
        if moved.status.success() {
            return Ok(());
        }
        Err(format!("{}; {}", text(&promoted), text(&moved)))
    });
}

#[test]
fn replicas_on_block_devices_survive_crashes_and_grow_with_their_devices() {
    const DEVICE: u64 = 40 * MIB;
    const VOLUME: u64 = 32 * MIB;
    let mut all = Devices::new(3, DEVICE, VOLUME);
    let mut client = all.client(1);
    assert_eq!(client.size_bytes, VOLUME);
    let piece = vec![0x5a; 1 << 20];
    client.write(MIB, &piece).expect("a write");
    client.flush().expect("a flush");

    // A secondary dies and comes back.
    all.cluster.kill_node(2);
    client
        .write(3 * MIB, &piece)
        .expect("writes go on without it");
    client.flush().expect("a flush");
    all.cluster.start_node(2);
    all.cluster.wait_in_sync("dev", &[1, 2, 3]);

    // All die; another serves.
    all.cluster.kill_all();
    all.restart_all(2);
    let mut client = all.client(2);
    for offset in [MIB, 3 * MIB] {
        assert!(client.read(offset, 1 << 20).expect("a read") == piece);
    }

    // The devices are too small for that; nothing changes.
    const GROWN: u64 = 80 * MIB;
    let grow = ["volume", "resize", "dev", &GROWN.to_string()].map(str::to_owned);
    let grow: Vec<&str> = grow.iter().map(String::as_str).collect();
    let said = all.cluster.refusal(1, &grow);
    assert!(said.contains("dev"), "{said}");
    client
        .write(5 * MIB, &piece)
        .expect("writes go on after a refused resize");

    // They grow under running daemons, then the volume does; what were metadata are zeroes.
    for device in &all.loops {
        device.grow(96 * MIB);
    }
    all.cluster.must(1, &grow);
    let mut client = all.client(2);
    assert_eq!(client.size_bytes, GROWN);
    for offset in (VOLUME..GROWN).step_by(1 << 20) {
        let found = client.read(offset, 1 << 20).expect("a read");
        assert!(found.iter().all(|&byte| byte == 0), "at {offset}");
    }
    client
        .write(DEVICE - MIB, &piece)
        .expect("a write where metadata were");
    client.write(GROWN - MIB, &piece).expect("a write");
    client.flush().expect("a flush");

    // What is there is found again after a crash, also when the devices have grown meanwhile.
    all.cluster.kill_all();
    for device in &all.loops {
        device.grow(160 * MIB);
    }
    all.restart_all(1);
    let mut client = all.client(1);
    assert_eq!(client.size_bytes, GROWN);
    for offset in [MIB, 3 * MIB, 5 * MIB, DEVICE - MIB, GROWN - MIB] {
        assert!(client.read(offset, 1 << 20).expect("a read") == piece);
    }
    all.cluster
        .must(1, &["volume", "resize", "dev", &(140 * MIB).to_string()]);
    client.write(0, &piece).expect("a write");
    client.flush().expect("a flush");
    all.cluster.wait_in_sync("dev", &[1, 2, 3]);
    all.cluster.stop_all();
    all.compare(140 * MIB);
    for device in &all.loops {
        let output = lockstep(["dump-metadata", device.path()]);
        let said = text(&output);
        assert!(said.contains("verdict: usable"), "{said}");
        assert!(said.contains("160.0 MiB"), "{said}");
    }
}

#[test]
fn a_file_with_internal_metadata_grows_and_keeps_what_it_knows() {
    let mut cluster = Cluster::start(3, SIZE);
    cluster.must(
        1,
        &[
            "resource",
            "create",
            "inside",
            "--size",
            "8MiB",
            "--metadata",
            "internal",
            "--replica",
            "node1",
            "--replica",
            "node2",
        ],
    );
    make_primary(&cluster, "inside", 1);
    cluster.wait_in_sync("inside", &[1, 2]);
    // What the absent replica lacks moves with the bitmaps.
    cluster.kill_node(2);
    let connect = |cluster: &Cluster| {
        wait_for("the export to open", SOON, || {
            Client::connect(cluster.port(1), "inside").map_err(|error| error.to_string())
        })
    };
    let mut client = connect(&cluster);
    client.write(MIB, &[0x77; 4096]).expect("a write");
    client.flush().expect("a flush");
    cluster.must(1, &["volume", "resize", "inside", "24MiB"]);
    let mut client = connect(&cluster);
    assert_eq!(client.size_bytes, 24 * MIB);
    client.write(20 * MIB, &[0x78; 4096]).expect("a write");
    client.flush().expect("a flush");
    cluster.kill_node(1);
    cluster.start_node(1);
    cluster.start_node(2);
    make_primary(&cluster, "inside", 1);
    cluster.wait_in_sync("inside", &[1, 2]);
    let mut client = connect(&cluster);
    assert_eq!(
        client.read(MIB, 4096).expect("a read"),
        [0x77; 4096].to_vec()
    );
    assert_eq!(
        client.read(20 * MIB, 4096).expect("a read"),
        [0x78; 4096].to_vec()
    );
    cluster.stop_all();
    cluster.compare_files(1, 2, "inside.img", 24 * MIB);
}

#[test]
fn a_disk_that_is_gone_is_replaced_by_an_empty_one_which_is_filled() {
    let mut cluster = Cluster::start(3, SIZE);
    cluster
        .fio(1, 0, SIZE)
        .write_and_flush()
        .expect("writes succeed");
    let said = cluster.refusal(1, &["resource", "replace-disk", "r0", "node2"]);
    assert!(said.contains("in-sync"), "{said}");

    cluster.kill_node(2);
    for file in cluster.store_files(2) {
        std::fs::remove_file(file).expect("a disk can vanish");
    }
    cluster.start_node(2);
    cluster.wait_evicted(1, 2);
    let old = cluster.events(2, "attach-failed");
    assert!(old.iter().any(|text| text.contains("is gone")), "{old:?}");

    cluster.must(1, &["resource", "replace-disk", "r0", "node2"]);
    cluster.wait_all_in_sync();
    // It stays the replica's disk.
    cluster.kill_node(2);
    cluster.start_node(2);
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_replaced_disk_is_never_taken_back() {
    let mut cluster = Cluster::start(3, SIZE);
    cluster.kill_node(2);
    cluster.wait_evicted(1, 2);
    cluster.must(1, &["resource", "replace-disk", "r0", "node2"]);
    // The old one is still there: it has to make room, or the new one goes elsewhere.
    cluster.start_node(2);
    wait_for("the old disk to be refused", SOON, || {
        let said = cluster.events(2, "attach-failed");
        if said.iter().any(|text| text.contains("was replaced")) {
            Ok(())
        } else {
            Err(format!("{said:?}"))
        }
    });
    for file in cluster.store_files(2) {
        let mut aside = file.clone().into_os_string();
        aside.push(".old");
        std::fs::rename(&file, aside).expect("a file can be moved away");
    }
    cluster.wait_all_in_sync();
    cluster.stop_and_compare_replicas();
}
