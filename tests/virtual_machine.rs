//! `lockstep attach` with the kernel's NBD client, in a virtual machine that has one.

mod common;

use common::cluster::Cluster;
use common::vm::Vm;
use common::{SOON, wait_for};

const MIB: u64 = 1 << 20;

/// Writes files of 64 KiB, each synced before its name is noted; ends when /tmp/stop is there.
const WRITER: &str = r"
n=0
while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    yes $n | head -c 65536 >/tmp/want
    dd if=/tmp/want of=/m/$((n % 100)) conv=fsync bs=64k 2>/tmp/writer-error || { echo $n >/tmp/failed; exit; }
    echo $n >/tmp/last
done
";

fn start_writer(vm: &mut Vm) {
    vm.run(&format!("cat >/tmp/writer <<'@'\n{WRITER}\n@\n"));
    vm.run("sh /tmp/writer >/dev/null 2>&1 &");
}

/// Waits until the writer has synced so many more files.
fn wait_writes(vm: &mut Vm, more: u64) {
    let last = |vm: &mut Vm| {
        vm.run("cat /tmp/last 2>/dev/null || echo 0")
            .parse()
            .unwrap_or(0_u64)
    };
    let goal = last(vm) + more;
    wait_for("the writer in the machine", SOON * 2, || {
        let failed =
            vm.try_run("cat /tmp/failed /tmp/writer-error 2>/dev/null && [ -e /tmp/failed ]");
        assert_ne!(failed.0, 0, "the writer failed: {}", failed.1);
        match last(vm) {
            now if now >= goal => Ok(()),
            now => Err(format!("{now} of {goal} writes")),
        }
    });
}

#[test]
fn a_kernel_device_outlives_the_primary_and_its_own_node_and_grows() {
    let mut cluster = Cluster::start(3, 64 * MIB);
    let mut vm = Vm::boot();
    let server = format!("10.0.2.2:{}", cluster.port(3));
    let attach = format!("lockstep attach r0 --server {server} --reconnect --timeout 3");

    // The module is not loaded, and there is none to load.
    let refusal = vm.refusal(&attach);
    assert!(
        refusal.contains("no NBD client") && refusal.contains("--fuse"),
        "{refusal}"
    );
    vm.run("insmod /modules/nbd.ko");

    assert_eq!(
        vm.run(&format!("{attach} /dev/nbd5 --json")),
        r#"{"data":{"device":"/dev/nbd5"},"message":"r0 is attached as /dev/nbd5"}"#
    );
    assert_eq!(vm.run("lockstep detach r0"), "/dev/nbd5 is detached");
    assert_eq!(vm.run(&attach), "/dev/nbd0");
    let refusal = vm.refusal(&attach);
    assert!(
        refusal.contains("attached already, as /dev/nbd0"),
        "{refusal}"
    );
    assert_eq!(vm.run("cat /sys/block/nbd0/backend"), "lockstep:r0/0");
    assert_eq!(
        vm.run("cat /sys/block/nbd0/size"),
        (64 * MIB / 512).to_string()
    );
    assert_eq!(
        vm.run("cat /sys/block/nbd0/queue/logical_block_size"),
        "4096"
    );
    assert_eq!(
        vm.run("cat /sys/block/nbd0/queue/write_cache"),
        "write back"
    );
    assert_eq!(vm.run("netstat -tn | grep -c ESTABLISHED"), "4");

    vm.run("/sbin/mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 -o discard /dev/nbd0 /m");
    let refusal = vm.refusal("lockstep detach r0");
    assert!(refusal.contains("in use"), "{refusal}");
    start_writer(&mut vm);
    wait_writes(&mut vm, 5);
    cluster.kill_node(1);
    wait_writes(&mut vm, 10);
    cluster.start_node(1);
    cluster.wait_all_in_sync();
    // The node that it is connected to.
    cluster.kill_node(3);
    cluster.start_node(3);
    wait_writes(&mut vm, 10);

    // A device goes on without the process that keeps it until its connections are lost, and goes on again
    // when it is attached once more.
    vm.run("kill -9 $(cat /sys/block/nbd0/pid)");
    wait_writes(&mut vm, 5);
    cluster.kill_node(3);
    cluster.start_node(3);
    assert_eq!(vm.run(&attach), "/dev/nbd0");
    wait_writes(&mut vm, 10);
    let refusal = vm.refusal(&attach);
    assert!(
        refusal.contains("attached already, as /dev/nbd0"),
        "{refusal}"
    );
    cluster.wait_all_in_sync();

    cluster.must(1, &["volume", "resize", "r0", "96MiB"]);
    wait_for("the device to grow", SOON, || {
        let sectors = vm.run("cat /sys/block/nbd0/size");
        if sectors == (96 * MIB / 512).to_string() {
            Ok(())
        } else {
            Err(sectors)
        }
    });
    wait_writes(&mut vm, 5);
    vm.run(
        "touch /tmp/stop; while ps | grep -q '[w]riter'; do sleep 0.1; done; [ ! -e /tmp/failed ]",
    );
    let last: u64 = vm.run("cat /tmp/last").parse().expect("a number");
    vm.run("umount /m && /sbin/e2fsck -f -n /dev/nbd0 && mount -t ext4 /dev/nbd0 /m");
    vm.run(&format!(
        "n={last}; while [ $n -gt 0 ] && [ $n -gt $(({last} - 100)) ]; do yes $n | head -c 65536 | cmp - /m/$((n % 100)) || exit 1; n=$((n - 1)); done"
    ));
    // Beyond the old end.
    vm.run("umount /m && dd if=/tmp/want of=/dev/nbd0 bs=64k seek=1500 oflag=direct conv=fsync && dd if=/dev/nbd0 bs=64k skip=1500 count=1 iflag=direct | cmp - /tmp/want");
    println!("{last} files were synced in the machine; nothing failed");
    println!("{}", vm.run("cat /run/lockstep/attach/*.log"));
    assert_eq!(vm.run("lockstep detach /dev/nbd0"), "/dev/nbd0 is detached");
    vm.run("[ ! -e /sys/block/nbd0/pid ]");
    let wait_for_keeper = "while ps | grep -q '[l]ockstep attach'; do sleep 0.1; done";
    vm.run(wait_for_keeper);

    // When the server stays away what is asked for fails, and the device ends.
    vm.run(&format!("{attach} --dead-timeout 3"));
    cluster.kill_node(3);
    let (code, said) = vm.try_run("dd if=/tmp/want of=/dev/nbd0 bs=64k seek=1500 oflag=direct");
    assert!(code != 0 && said.contains("Input/output error"), "{said}");
    vm.run("while [ -e /sys/block/nbd0/pid ]; do sleep 0.1; done");
    vm.run(wait_for_keeper);
    let log = vm.run("tail -n 2 /run/lockstep/attach/r0.0.log");
    assert!(log.contains("no connection for 3 s"), "{log}");
    let refusal = vm.refusal("lockstep detach r0");
    assert!(refusal.contains("attached nowhere"), "{refusal}");
    cluster.start_node(3);
    cluster.wait_all_in_sync();
    cluster.size_bytes = 96 * MIB;
    cluster.stop_and_compare_replicas();
}

/// A node in the machine, with its stores in memory.
struct NodeInside;

impl NodeInside {
    fn create(vm: &mut Vm) {
        vm.run("mkdir /tmp/n");
        vm.run(r#"printf 'node = "alpha"\ncontrol = "127.0.0.1:7788"\nreplication = "127.0.0.1:7789"\nnbd_socket = "nbd.sock"\napi_socket = "/run/lockstep/api.sock"\n' >/tmp/n/lockstep.toml; mkdir -p /run/lockstep"#);
        vm.run("lockstep init --config /tmp/n/lockstep.toml");
        Self::start(vm);
    }

    fn start(vm: &mut Vm) {
        vm.run("lockstep daemon --config /tmp/n/lockstep.toml >>/tmp/n/log 2>&1 & echo $! >/tmp/n/daemon");
        Self::wait(vm, "lockstep resource list");
    }

    fn kill(vm: &mut Vm) {
        vm.run("kill -9 $(cat /tmp/n/daemon); while kill -0 $(cat /tmp/n/daemon) 2>/dev/null; do sleep 0.1; done");
    }

    /// Tries a command until it succeeds.
    fn wait(vm: &mut Vm, command: &str) -> String {
        wait_for(command, SOON * 2, || match vm.try_run(command) {
            (0, said) => Ok(said.trim_end().to_owned()),
            (_, said) => Err(format!("{said}\n{}", vm.try_run("tail -n 30 /tmp/n/log").1)),
        })
    }
}

#[test]
fn a_kernel_device_with_exclusive_access_ends_with_its_primary_and_with_follow_access_outlives_its_daemon()
 {
    let mut vm = Vm::boot_with_systemd();
    vm.run("insmod /modules/nbd.ko");
    NodeInside::create(&mut vm);
    NodeInside::wait(&mut vm, "lockstep resource create x --size 16MiB");

    // Nobody was primary.
    assert_eq!(NodeInside::wait(&mut vm, "lockstep attach x"), "/dev/nbd0");
    vm.run("/sbin/mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 /dev/nbd0 /m && echo 1 >/m/first && sync");
    let ended = "dd if=/dev/zero of=/m/later bs=4k count=1 conv=fsync";
    vm.run("lockstep demote x");
    wait_for("the device to fail", SOON, || match vm.try_run(ended).0 {
        0 => Err("a write succeeded".to_owned()),
        _ => Ok(()),
    });
    let log = "cat /tmp/n/attach/x.0.log";
    assert!(vm.run(log).contains("ceased to be primary"));
    vm.run("umount /m; while [ -e /sys/block/nbd0/pid ]; do sleep 0.1; done");
    assert!(vm.refusal("lockstep detach x").contains("attached nowhere"));

    assert_eq!(NodeInside::wait(&mut vm, "lockstep attach x"), "/dev/nbd0");
    vm.run("mount -t ext4 /dev/nbd0 /m && [ $(cat /m/first) = 1 ] && echo 2 >/m/second && sync");
    NodeInside::kill(&mut vm);
    wait_for("the device to fail", SOON, || match vm.try_run(ended).0 {
        0 => Err("a write succeeded".to_owned()),
        _ => Ok(()),
    });
    assert!(vm.run(log).contains("daemon has ended"));
    vm.run("umount /m");
    NodeInside::start(&mut vm);
    NodeInside::wait(&mut vm, "lockstep attach x --dead-timeout 2");
    vm.run("mount -t ext4 /dev/nbd0 /m && [ $(cat /m/second) = 2 ]");
    let status = vm.run("lockstep status x");
    assert!(status.contains("4: /dev/nbd0 (process "), "{status}");

    // Without the process that keeps it a device goes on, but not with a disk that may be another's.
    vm.run("kill -9 $(cat /sys/block/nbd0/pid) && echo 3 >/m/third && sync");
    vm.run("lockstep demote x");
    let refusal = vm.refusal("lockstep attach x");
    assert!(
        refusal.contains("may have been changed by others")
            && refusal.contains("`lockstep detach /dev/nbd0`"),
        "{refusal}"
    );
    wait_for("the device to fail", SOON, || match vm.try_run(ended).0 {
        0 => Err("a write succeeded".to_owned()),
        _ => Ok(()),
    });
    vm.run("umount /m && lockstep detach /dev/nbd0");
    vm.run("lockstep attach x && mount -t ext4 /dev/nbd0 /m && [ $(cat /m/third) = 3 ]");
    vm.run("umount /m && lockstep detach x");

    vm.run("lockstep resource create f --size 16MiB --access follow");
    NodeInside::wait(&mut vm, "lockstep attach f /dev/nbd3 --timeout 3");
    vm.run("/sbin/mke2fs -q -t ext4 /dev/nbd3 && mount -t ext4 /dev/nbd3 /m");
    start_writer(&mut vm);
    wait_writes(&mut vm, 5);
    NodeInside::kill(&mut vm);
    NodeInside::start(&mut vm);
    wait_writes(&mut vm, 5);
    vm.run(
        "touch /tmp/stop; while ps | grep -q '[w]riter'; do sleep 0.1; done; [ ! -e /tmp/failed ]",
    );
    println!("{}", vm.run("cat /tmp/n/attach/*.log"));
    vm.run("umount /m && /sbin/e2fsck -f -n /dev/nbd3 && lockstep detach f");
    as_services_of_systemd(&mut vm);
}

/// The units that Lockstep comes with, for the node that the machine has.
fn as_services_of_systemd(vm: &mut Vm) {
    vm.run(
        "kill $(cat /tmp/n/daemon); while kill -0 $(cat /tmp/n/daemon) 2>/dev/null; do sleep 0.1; done",
    );
    vm.run("mkdir -p /etc/lockstep/attach && (echo 'data_directory = \"/tmp/n\"'; cat /tmp/n/lockstep.toml) >/etc/lockstep/lockstep.toml");
    vm.run("echo OPTIONS=/dev/nbd7 >/etc/lockstep/attach/x");
    vm.run("systemctl start lockstep");
    NodeInside::wait(vm, "lockstep resource list");
    // Started means that the device is there.
    vm.run("systemctl start lockstep-attach@x && mount -t ext4 /dev/nbd7 /m && [ $(cat /m/third) = 3 ]");
    vm.run("systemctl reload lockstep && [ $(systemctl is-active lockstep) = active ]");

    // A keeper that is killed is started again, and takes over the device, which is in use.
    let keeper = "systemctl show -p MainPID --value lockstep-attach@x";
    let first = vm.run(keeper);
    vm.run(&format!("kill -9 {first}"));
    wait_for("the keeper to be started again", SOON, || {
        let (_, state) = vm.try_run("systemctl is-active lockstep-attach@x");
        let (_, now) = vm.try_run(keeper);
        if state.trim() == "active" && now.trim() != "0" && now.trim() != first {
            Ok(())
        } else {
            Err(state + &now)
        }
    });
    vm.run("echo 4 >/m/fourth && sync && umount /m");
    vm.run("systemctl stop lockstep-attach@x && [ ! -e /sys/block/nbd7/pid ]");
    vm.run("systemctl stop lockstep");
    let results = vm.run("systemctl show -p Result --value lockstep lockstep-attach@x");
    assert_eq!(results, "success\n\nsuccess", "{results}");
}
