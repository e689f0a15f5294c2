//! Real applications on a replicated disk while nodes are killed under them. Figures are printed, for
//! whoever wants to see them (`--no-capture`).
//!
//! LOCKSTEP_TEST_ROUNDS: how many times each database loses its machine (default: on either file system 10
//! times with exclusive access, twice with follow access).

mod common;

use common::apache::{self, Apache};
use common::cluster::{Cluster, name};
use common::disk::Disk;
use common::mariadb::{self, Account, Server};
use common::vm::Vm;
use common::{SOON, wait_for};
use std::time::Instant;

const MIB: u64 = 1 << 20;
const CLIENTS: usize = 4;
/// Enough to be sure that more are on their way.
const BUSY_COMMITS: u64 = 300;
const BUSY_VISITS: u64 = 500;

fn rounds(usual: usize) -> usize {
    std::env::var("LOCKSTEP_TEST_ROUNDS").map_or(usual, |rounds| {
        rounds
            .parse()
            .unwrap_or_else(|_| panic!("LOCKSTEP_TEST_ROUNDS={rounds} is no number"))
    })
}

/// Waits until another node than `old` serves the resource.
fn next_primary(cluster: &Cluster, asked: usize, resource: &str, old: usize) -> usize {
    wait_for("another node to serve", SOON, || {
        let view = cluster.resource(asked, resource).ok_or("no answer")?;
        let serves = |&k: &usize| {
            view.primary.as_deref() == Some(&name(k)) && view.replica(&name(k)).role == "Primary"
        };
        let found = (1..=3).filter(|&k| k != old).find(serves);
        found.ok_or_else(|| format!("{view:?}"))
    })
}

fn wait_in_sync(cluster: &Cluster, resource: &str) {
    wait_for("all replicas to be in sync", SOON, || {
        match cluster.resource(1, resource) {
            Some(view) if view.all_in_sync((1..=3).map(name)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn acknowledged(accounts: &[Account]) -> Vec<u64> {
    accounts
        .iter()
        .map(|account| account.acknowledged)
        .collect()
}

/// A database on a disk with exclusive access loses the machine that it runs on, again and again, and
/// is started on the next primary.
fn database_moves(file_system: &str) {
    let mut cluster = Cluster::start(3, 16 * MIB);
    let create = [
        "resource",
        "create",
        "db",
        "--size",
        "512MiB",
        "--access",
        "exclusive",
    ];
    cluster.must(1, &create);
    let mut primary = 1;
    let mut disk = Disk::attach(&cluster, primary, "db");
    disk.make_file_system(file_system);
    disk.mount();
    mariadb::install(&disk.path().join("data"));
    let mut server = Server::start(&disk.path().join("data"));
    server.create_bank();
    wait_in_sync(&cluster, "db");
    let mut known = vec![0; CLIENTS];
    for round in 1..=rounds(10) {
        let load = server.load(&known);
        load.wait_commits(BUSY_COMMITS);
        let killed = Instant::now();
        cluster.kill_node(primary);
        // The database can't go on: its disk fails.
        load.wait_failed();
        let failed = killed.elapsed();
        let accounts = load.finish();
        known = acknowledged(&accounts);
        server.kill();
        disk.detach();
        let old = primary;
        let asked = cluster.running();
        primary = next_primary(&cluster, asked, "db", old);
        disk = Disk::attach(&cluster, primary, "db");
        disk.mount();
        server = Server::start(&disk.path().join("data"));
        let answers = killed.elapsed();
        let transactions = server.check_bank(&known);
        let log = server.log();
        assert!(
            log.contains("Starting crash recovery"),
            "no recovery was needed: {log}"
        );
        println!(
            "{file_system}, round {round}: the disk failed after {failed:.1?}, the database answered on node{primary} after {answers:.1?} (its start took {:.1?}); {} commits acknowledged, {transactions} found",
            server.start_time,
            known.iter().sum::<u64>()
        );
        // What was on its way and was committed after all is known now.
        known = (0..CLIENTS)
            .map(|client| {
                let sql = format!(
                    "SELECT COALESCE(MAX(number), 0) FROM bank.ledger WHERE client = {client}"
                );
                server.query(&sql).trim().parse().expect("a number")
            })
            .collect();
        cluster.start_node(old);
        wait_in_sync(&cluster, "db");
    }
    server.stop();
    disk.detach();
}

#[test]
fn a_database_on_ext4_has_every_commit_after_its_machine_was_lost() {
    database_moves("ext4");
}

#[test]
fn a_database_on_xfs_has_every_commit_after_its_machine_was_lost() {
    database_moves("xfs");
}

/// A database on a disk with follow access, on a node that is not primary.
fn database_stays(file_system: &str) {
    // XFS wants more than 300 MB.
    let mut cluster = Cluster::start(3, 320 * MIB);
    let mut disk = Disk::attach(&cluster, 3, "r0");
    disk.make_file_system(file_system);
    disk.mount();
    mariadb::install(&disk.path().join("data"));
    let server = Server::start(&disk.path().join("data"));
    server.create_bank();
    let load = server.load(&[0; CLIENTS]);
    let begin = Instant::now();
    load.wait_commits(BUSY_COMMITS);
    let mut primary = 1;
    for round in 1..=rounds(2) {
        if primary == 3 {
            // The database would die with it.
            cluster.must(3, &["move", "r0", "node2"]);
            primary = 2;
        }
        cluster.kill_node(primary);
        let next = next_primary(&cluster, 3, "r0", primary);
        load.wait_commits(BUSY_COMMITS);
        println!("{file_system}, round {round}: node{primary} was killed, node{next} took over");
        cluster.start_node(primary);
        wait_in_sync(&cluster, "r0");
        primary = next;
    }
    let commits = load.commits();
    let time = begin.elapsed();
    let accounts = load.finish();
    for account in &accounts {
        assert!(account.error.is_none(), "a client saw {:?}", account.error);
    }
    server.check_bank(&acknowledged(&accounts));
    let longest = accounts.iter().map(|account| account.longest).max();
    println!(
        "{file_system}: {commits} commits in {time:.1?}, no error, the longest took {:.2?}",
        longest.unwrap_or_default()
    );
    server.stop();
    disk.detach();
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_database_on_ext4_sees_a_pause_and_no_error_when_the_primary_is_lost() {
    database_stays("ext4");
}

#[test]
fn a_database_on_xfs_sees_a_pause_and_no_error_when_the_primary_is_lost() {
    database_stays("xfs");
}

#[test]
fn visitors_of_a_web_server_see_a_pause_and_no_error_when_the_primary_is_lost() {
    let mut cluster = Cluster::start(3, 64 * MIB);
    let mut disk = Disk::attach(&cluster, 3, "r0");
    disk.make_file_system("ext4");
    disk.mount();
    apache::make_site(disk.path());
    let server = Apache::start(disk.path());
    let visitors = server.visitors(4);
    visitors.wait(BUSY_VISITS);
    cluster.kill_node(1);
    next_primary(&cluster, 3, "r0", 1);
    visitors.wait(BUSY_VISITS);
    cluster.start_node(1);
    wait_in_sync(&cluster, "r0");
    let visits = visitors.visits();
    let longest = visitors.finish();
    let logged = server.stop();
    assert!(logged >= visits, "{visits} visits, {logged} in the log");
    println!("Apache: {logged} visits, none went wrong, the longest took {longest:.2?}");
    disk.detach();
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_virtual_machine_boots_from_a_disk_whose_primary_is_lost_meanwhile() {
    let mut cluster = Cluster::start(3, 128 * MIB);
    let mut disk = Disk::attach(&cluster, 3, "r0");
    disk.make_file_system("ext4");
    disk.mount();
    common::vm::make_root(disk.path());
    disk.detach();
    let uri = format!(
        "nbd+unix:///r0?socket={}",
        cluster.file(3, "nbd.sock").display()
    );
    let drive = format!("file={uri},format=raw,if=virtio,cache=none");
    let begin = Instant::now();
    let booting = std::thread::spawn(move || Vm::boot_from(&drive));
    cluster.kill_node(1);
    next_primary(&cluster, 3, "r0", 1);
    let mut vm = booting.join().expect("it boots");
    println!("QEMU: booted from the disk in {:.1?}", begin.elapsed());
    // The root file system is the disk.
    assert_eq!(
        vm.run("grep ' / ' /proc/mounts | tail -n 1 | cut -d' ' -f1"),
        "/dev/vda"
    );
    vm.run("yes lockstep | head -c 8000000 >/file && sync");
    cluster.start_node(1);
    wait_in_sync(&cluster, "r0");
    cluster.must(3, &["move", "r0", "node2"]);
    cluster.kill_node(2);
    next_primary(&cluster, 3, "r0", 2);
    vm.run("echo 3 >/proc/sys/vm/drop_caches; yes lockstep | head -c 8000000 | cmp - /file");
    vm.run("lockstep --version && echo 1 >/done && sync && mount -o remount,ro /");
    drop(vm);
    cluster.start_node(2);
    wait_in_sync(&cluster, "r0");
    let mut disk = Disk::attach(&cluster, 1, "r0");
    common::disk::tool(
        "fsck.ext4",
        ["-f".as_ref(), "-n".as_ref(), disk.device.as_os_str()],
    );
    disk.mount();
    assert_eq!(
        std::fs::read(disk.path().join("done")).expect("a file"),
        b"1\n"
    );
    disk.detach();
}
