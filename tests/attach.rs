//! `lockstep attach --fuse` and `detach`: a volume as a local disk, without the kernel's NBD client
//! (with it: `virtual_machine.rs`).

mod common;

use common::cluster::{Cluster, name};
use common::command::{lockstep, text};
use common::disk::{Disk, tool};
use common::status::Volume;
use common::{SOON, wait_for};
use std::io::Write;
use std::os::unix::fs::FileExt;

const SIZE: u64 = 64 << 20;

fn write_file(disk: &Disk, file: &str, data: &[u8]) {
    let mut file = std::fs::File::create(disk.path().join(file)).expect("a file can be made");
    file.write_all(data).expect("it can be written");
    file.sync_all().expect("it can be synced");
}

fn read_file(disk: &Disk, file: &str) -> Vec<u8> {
    std::fs::read(disk.path().join(file)).expect("the file is there")
}

#[test]
fn a_file_system_goes_on_while_the_primary_is_killed_and_is_the_same_on_another_node() {
    let mut cluster = Cluster::start(3, SIZE);
    let mut disk = Disk::attach(&cluster, 3, "r0");
    let again = cluster.refusal(3, &["attach", "r0", "--fuse"]);
    assert!(again.contains("attached already"), "{again}");
    disk.make_file_system("ext4");
    disk.mount();
    write_file(&disk, "before", &[1; 1 << 20]);

    let in_use = lockstep(["detach", "r0"]);
    assert!(text(&in_use).contains("in use"), "{}", text(&in_use));
    assert!(!in_use.status.success());

    cluster.kill_node(1);
    write_file(&disk, "after", &[2; 1 << 20]);
    assert_eq!(read_file(&disk, "before"), [1; 1 << 20]);
    disk.detach();
    let nothing = lockstep(["detach", "r0"]);
    assert!(
        text(&nothing).contains("attached nowhere"),
        "{}",
        text(&nothing)
    );

    cluster.start_node(1);
    let mut disk = Disk::attach(&cluster, 1, "r0");
    tool(
        "fsck.ext4",
        ["-f".as_ref(), "-n".as_ref(), disk.device.as_os_str()],
    );
    disk.mount();
    assert_eq!(read_file(&disk, "before"), [1; 1 << 20]);
    assert_eq!(read_file(&disk, "after"), [2; 1 << 20]);
    disk.detach();
    cluster.stop_and_compare_replicas();
}

/// Clients of each volume of x on node `k`, as another node says.
fn clients_on(cluster: &Cluster, k: usize) -> Vec<usize> {
    let x = cluster.resource(1, "x").expect("it is there");
    let on = |volume: &Volume| {
        let mut replicas = volume.replicas.iter();
        let replica = replicas.find(|replica| replica.node == name(k));
        replica.expect("a replica").clients.len()
    };
    x.volumes.iter().map(on).collect()
}

#[test]
fn with_exclusive_access_attach_promotes_and_a_disk_fails_once_another_node_is_primary() {
    let mut cluster = Cluster::start(3, SIZE);
    let create = [
        "resource", "create", "x", "--size", "32MiB", "--size", "16MiB",
    ];
    cluster.must(1, &create);
    // Nobody was primary.
    let first = Disk::attach(&cluster, 2, "x");
    let volume1 = Disk::attach(&cluster, 2, "x/1");
    let x = cluster.resource(2, "x").expect("it is there");
    assert_eq!(x.primary.as_deref(), Some(name(2).as_str()));
    let refusal = cluster.refusal(3, &["attach", "x", "--fuse"]);
    assert!(
        refusal.contains("node2 is its primary, and it is used there: nbdfuse (process ")
            && refusal.contains("lockstep move x node3"),
        "{refusal}"
    );
    // nbdfuse has four connections.
    assert_eq!(
        (clients_on(&cluster, 2), clients_on(&cluster, 3)),
        (vec![4, 4], vec![0, 0])
    );
    let open = |disk: &Disk| {
        let options = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&disk.device);
        options.expect("the device can be opened")
    };
    let device = open(&first);
    device.write_all_at(&[1; 4096], 0).expect("a write");
    device.sync_all().expect("the primary serves");
    open(&volume1).write_all_at(&[3; 4096], 0).expect("a write");
    volume1.detach();

    cluster.must(1, &["move", "x", "node3"]);
    let second = Disk::attach(&cluster, 3, "x");
    let other = open(&second);
    other.write_all_at(&[2; 4096], 4096).expect("a write");
    other.sync_all().expect("the new primary serves");
    // Nor when its node is primary again.
    device
        .write_all_at(&[1; 4096], 4096)
        .expect("into the cache");
    device.sync_all().expect_err("its primary is gone");
    cluster.must(1, &["move", "x", "node2"]);
    device
        .write_all_at(&[1; 4096], 4096)
        .expect("into the cache");
    device.sync_all().expect_err("its primary is gone");
    drop((device, other));
    first.detach();
    second.detach();

    let third = Disk::attach(&cluster, 2, "x");
    let mut data = [0; 8192];
    open(&third).read_exact_at(&mut data, 0).expect("a read");
    assert_eq!(data[..4096], [1; 4096]);
    assert_eq!(data[4096..], [2; 4096]);
    third.detach();
    let volume1 = Disk::attach(&cluster, 2, "x/1");
    let mut data = [0; 4096];
    open(&volume1).read_exact_at(&mut data, 0).expect("a read");
    assert_eq!(data, [3; 4096]);
    volume1.detach();

    // Its primary makes way when nobody uses it there any more.
    let fourth = Disk::attach(&cluster, 3, "x");
    let x = cluster.resource(1, "x").expect("it is there");
    assert_eq!(x.primary.as_deref(), Some(name(3).as_str()));
    open(&fourth).read_exact_at(&mut data, 0).expect("a read");
    assert_eq!(data, [1; 4096]);
    fourth.detach();
    // Or when it is dead: that is waited for.
    cluster.kill_node(3);
    let fifth = cluster.must(1, &["attach", "x", "--fuse"]);
    let fifth = Disk::attached(fifth.trim());
    open(&fifth).read_exact_at(&mut data, 4096).expect("a read");
    assert_eq!(data, [2; 4096]);
    fifth.detach();
}

#[test]
fn what_is_left_of_a_killed_nbdfuse_is_cleared_away() {
    let cluster = Cluster::start(1, SIZE);
    let disk = Disk::attach(&cluster, 1, "r0");
    let mountpoint = cluster.file(1, "attach/r0.0/disk");
    let pid = wait_for("nbdfuse to be found", SOON, || {
        let found = std::fs::read_dir("/proc")
            .expect("/proc")
            .find_map(|entry| {
                let path = entry.ok()?.path();
                let line = std::fs::read(path.join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).into_owned();
                let ours = line.starts_with("nbdfuse\0") && line.contains(mountpoint.to_str()?);
                ours.then(|| path.file_name()?.to_str()?.parse::<u32>().ok())?
            });
        found.ok_or_else(|| "no process of this name and argument".to_owned())
    });
    common::command::kill(pid, nix::sys::signal::Signal::SIGKILL);
    disk.detach();
    let disk = Disk::attach(&cluster, 1, "r0");
    disk.make_file_system("ext4");
    disk.detach();
}

#[test]
fn the_units_for_systemd_are_sound() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut units = Vec::new();
    for unit in ["lockstep.service", "lockstep-attach@.service"] {
        let path = format!("{}/contrib/systemd/{unit}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).expect("the unit is there");
        assert!(text.contains("/usr/bin/lockstep "), "{unit}");
        // Where the program lies before it is installed.
        let text = text.replace("/usr/bin/lockstep", common::command::LOCKSTEP);
        let unit = directory.path().join(unit.replace('@', "@db-1"));
        std::fs::write(&unit, text).expect("it can be copied");
        units.push(unit);
    }
    let verify = ["verify".into(), "--man=no".into()].into_iter();
    let said = tool("systemd-analyze", verify.chain(units));
    assert!(!said.contains("lockstep"), "{said}");
}

#[test]
fn what_cannot_be_attached_is_named_with_the_reason() {
    let mut cluster = Cluster::with_witnesses(1, 1, SIZE);
    cluster.start_all();
    for (node, arguments, words) in [
        (
            1,
            &["attach", "db", "--fuse"][..],
            "there is no resource db",
        ),
        (1, &["attach", "r0/1", "--fuse"], "r0 has 1 volumes"),
        (2, &["attach", "r0", "--fuse"], "node2 holds no replica"),
        (1, &["attach", "r0", "/dev/sda", "--fuse"], "/dev/sda"),
        (1, &["attach", "r0", "/dev/nbd0", "--fuse"], "/dev/nbd0"),
        (
            1,
            &["attach", "r0", "--fuse", "--server", "/nowhere/nbd.sock"],
            "/nowhere/nbd.sock",
        ),
        (1, &["detach", "/dev/sda"], "/dev/sda"),
        (1, &["detach", "/dev/loop999"], "attached to nothing"),
        (1, &["detach", "db"], "attached nowhere"),
    ] {
        let refusal = cluster.refusal(node, arguments);
        assert!(refusal.contains(words), "{arguments:?}: {refusal}");
    }
}
