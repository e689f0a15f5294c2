//! A virtual machine with a kernel that has NBD, for what the machine that runs the tests may not
//! have: QEMU without hardware help, Debian's kernel, and an initramfs of busybox, the program under
//! test and mke2fs. A shell in it takes commands from the test. 10.0.2.2 in it is loopback here.

use super::command::LOCKSTEP;
use super::disk::tool;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for an emulated machine on a busy one.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// In the order in which they need each other; what is not there is built into the kernel.
const MODULES: [&str; 9] = [
    "failover",
    "net_failover",
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
];
/// What a command's output ends with, before its exit code.
const END: &str = "@@";

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# The initramfs hands over to the disk, where there is one.
if [ "$1" != disk ]; then
    for module in $(cat /modules/order); do insmod /modules/$module.ko; done
    if [ -e /dev/vda ] && mount -t ext4 /dev/vda /m; then
        umount /proc /sys /dev
        exec switch_root /m /init disk
    fi
fi
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
stty -F /dev/ttyS1 raw -echo
if [ -e /lib/systemd/systemd ]; then exec /lib/systemd/systemd --unit=shell.service; fi
sh /dev/ttyS1 </dev/null >/dev/ttyS1 2>&1
"#;

/// The shell where systemd is the first process.
const SHELL: &str = "
[Unit]
Requires=basic.target
After=basic.target
[Service]
ExecStart=/bin/sh /dev/ttyS1
Environment=PATH=/sbin:/bin
IgnoreSIGPIPE=no
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
";
/// What units need of systemd's own.
const TARGETS: [&str; 3] = ["basic.target", "sysinit.target", "shutdown.target"];

/// A running machine.
#[derive(Debug)]
pub(crate) struct Vm {
    process: Child,
    say: ChildStdin,
    lines: Receiver<String>,
    directory: TempDir,
}

/// Directory of the kernel that scripts/test has fetched.
fn kernel() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest-kernel");
    assert!(
        directory.join("vmlinuz").exists(),
        "no kernel in {}; `scripts/test packages` fetches it",
        directory.display()
    );
    directory
}

/// Copies a program and the libraries that it needs, to where it looks for them.
fn install(root: &Path, program: &Path, to: &str) {
    let target = root.join(to);
    fs::create_dir_all(target.parent().expect("a directory")).expect("it can be made");
    fs::copy(program, &target).expect("a program can be copied");
    let said = tool("ldd", [program]);
    for word in said.split_whitespace().filter(|word| word.starts_with('/')) {
        let library = root.join(&word[1..]);
        fs::create_dir_all(library.parent().expect("a directory")).expect("it can be made");
        fs::copy(word, library).expect("a library can be copied");
    }
}

/// Puts the machine's file system into a directory: what the initramfs is made of, and what a
/// machine can boot from.
pub(crate) fn make_root(root: &Path) {
    for each in [
        "bin", "sbin", "proc", "sys", "dev", "modules", "run", "tmp", "m",
    ] {
        fs::create_dir_all(root.join(each)).expect("a directory can be made");
    }
    // Without its debug information it is small enough for the machine's memory.
    let stripped = root.join("stripped");
    tool(
        "strip",
        ["-o".as_ref(), stripped.as_os_str(), LOCKSTEP.as_ref()],
    );
    install(root, &stripped, "bin/lockstep");
    fs::remove_file(&stripped).expect("it is there");
    install(root, Path::new("/sbin/mke2fs"), "sbin/mke2fs");
    install(root, Path::new("/sbin/e2fsck"), "sbin/e2fsck");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox is installed");
    let modules = kernel().join("modules");
    let present = |name: &&str| modules.join(format!("{name}.ko")).exists();
    let order: Vec<&str> = MODULES.into_iter().filter(present).collect();
    for name in order.iter().chain(&["nbd"]) {
        let file = format!("{name}.ko");
        fs::copy(modules.join(&file), root.join("modules").join(&file)).expect("a module");
    }
    fs::write(root.join("modules/order"), order.join("\n")).expect("a file can be written");
    fs::write(root.join("init"), INIT).expect("a file can be written");
    tool("chmod", ["+x".as_ref(), root.join("init").as_os_str()]);
}

/// Adds systemd, with the units that Lockstep comes with.
fn add_systemd(root: &Path) {
    // The last one since version 255.
    let executor = "usr/lib/systemd/systemd-executor";
    for program in ["lib/systemd/systemd", "bin/systemctl", executor] {
        let path = Path::new("/").join(program);
        if program != executor || path.exists() {
            install(root, &path, program);
        }
    }
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(&units).expect("a directory can be made");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd");
    let theirs = TARGETS.map(|unit| Path::new("/lib/systemd/system").join(unit));
    let ours = ["lockstep.service", "lockstep-attach@.service"].map(|unit| ours.join(unit));
    for unit in ours.iter().chain(&theirs) {
        let name = unit.file_name().expect("a file");
        fs::copy(unit, units.join(name)).expect("a unit");
    }
    fs::write(units.join("shell.service"), SHELL).expect("a file can be written");
    fs::write(root.join("etc/machine-id"), "7".repeat(32) + "\n").expect("a file can be written");
    fs::create_dir_all(root.join("usr/bin")).expect("a directory can be made");
    symlink("/bin/lockstep", root.join("usr/bin/lockstep")).expect("a link can be made");
}

fn make_initramfs(directory: &Path, systemd: bool) -> PathBuf {
    let root = directory.join("root");
    make_root(&root);
    if systemd {
        add_systemd(&root);
    }
    let archive = directory.join("initramfs");
    let pack = r#"cd "$1" && find . | busybox cpio -o -H newc >"$2""#;
    let arguments = ["-c", pack, "sh"].map(std::ffi::OsString::from);
    let paths = [root.as_os_str().to_owned(), archive.as_os_str().to_owned()];
    tool("sh", arguments.into_iter().chain(paths));
    archive
}

impl Vm {
    /// Boots a machine and waits for its shell.
    pub(crate) fn boot() -> Self {
        Self::boot_with(&[], false)
    }

    /// The same with systemd.
    pub(crate) fn boot_with_systemd() -> Self {
        Self::boot_with(&[], true)
    }

    /// Boots a machine from a disk on which [`make_root`] was; the disk as QEMU's `-drive` has it.
    pub(crate) fn boot_from(drive: &str) -> Self {
        Self::boot_with(&["-drive", drive], false)
    }

    fn boot_with(more: &[&str], systemd: bool) -> Self {
        let directory = TempDir::with_prefix("lockstep-test-vm-").expect("a directory");
        let initramfs = make_initramfs(directory.path(), systemd);
        let mut process = Command::new("qemu-system-x86_64")
            .args([
                "-accel", "tcg", "-cpu", "max", "-m", "768", "-display", "none",
            ])
            .args(["-no-reboot", "-nodefaults", "-monitor", "none"])
            .args([
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net,romfile=",
            ])
            .arg("-serial")
            .arg(format!(
                "file:{}",
                directory.path().join("console").display()
            ))
            .args(["-serial", "stdio"])
            .args(["-append", "console=ttyS0 panic=-1"])
            .arg("-kernel")
            .arg(kernel().join("vmlinuz"))
            .arg("-initrd")
            .arg(initramfs)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 is installed");
        let say = process.stdin.take().expect("a pipe");
        let hear = BufReader::new(process.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in hear.split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line)
                    .trim_end_matches('\r')
                    .to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut vm = Self {
            process,
            say,
            lines,
            directory,
        };
        vm.wait_for_shell();
        vm
    }

    /// Its kernel's messages.
    pub(crate) fn console(&self) -> String {
        let text = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// What comes before the shell reads may be lost, so it is said until there is an answer.
    fn wait_for_shell(&mut self) {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            self.say
                .write_all(b"\necho ready\n")
                .expect("the machine lives");
            match self.lines.recv_timeout(Duration::from_millis(500)) {
                Ok(line) if line == "ready" => break,
                _ => assert!(Instant::now() < deadline, "no shell:\n{}", self.console()),
            }
        }
        // The other answers.
        self.run("true");
    }

    fn answer(&mut self, what: &str, limit: Duration) -> (i32, String) {
        let deadline = Instant::now() + limit;
        let mut said = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix(END).map(str::parse) {
                    Some(Ok(code)) => return (code, said),
                    _ => said = said + &line + "\n",
                },
                Err(error) => panic!("{what} in the virtual machine: {error}; so far: {said}"),
            }
        }
    }

    /// Runs a command line of the shell; gives its exit code and what it said.
    pub(crate) fn try_run(&mut self, command: &str) -> (i32, String) {
        let line = format!("({command}) </dev/null 2>&1; echo {END}$?\n");
        self.say
            .write_all(line.as_bytes())
            .expect("the machine lives");
        self.answer(command, COMMAND_LIMIT)
    }

    /// The same where it must succeed.
    pub(crate) fn run(&mut self, command: &str) -> String {
        let (code, said) = self.try_run(command);
        assert_eq!(code, 0, "{command}: {said}");
        said.trim_end().to_owned()
    }

    /// The same where it must fail.
    pub(crate) fn refusal(&mut self, command: &str) -> String {
        let (code, said) = self.try_run(command);
        assert_ne!(code, 0, "{command} was not refused: {said}");
        said
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = self.console();
            let tail = console.len().saturating_sub(6000);
            eprintln!(
                "--- the virtual machine's console\n{}",
                console.get(tail..).unwrap_or(&console)
            );
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
