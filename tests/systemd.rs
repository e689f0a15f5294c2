//! The units of `contrib/systemd` under systemd itself: a container that boots from this machine's `/usr`,
//! with a root directory in memory and a network of its own. What is done in it is `systemd/check.sh`.

mod common;

use common::command::{LOCKSTEP, kill, output_within};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// systemd's own limit for a unit's start or stop is as long.
const LIMIT: Duration = Duration::from_secs(90);

/// A loop device that is free, for the container: it has no others.
struct FreeLoop(PathBuf);

impl FreeLoop {
    fn find() -> Self {
        let mut command = Command::new("losetup");
        command.arg("--find");
        let output = output_within(command, LIMIT);
        let device = String::from_utf8(output.stdout).expect("a plain name");
        assert!(output.status.success(), "no loop device is to be had");
        Self(PathBuf::from(device.trim()))
    }
}

impl Drop for FreeLoop {
    fn drop(&mut self) {
        // What the container has not let go of. An error: it is not in use.
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}

/// Lays what is to be in the container's `/usr` besides this machine's.
fn lay_usr(usr: &Path) {
    let units = usr.join("lib/systemd/system");
    fs::create_dir_all(usr.join("bin")).expect("a directory");
    fs::create_dir_all(&units).expect("a directory");
    fs::copy(LOCKSTEP, usr.join("bin/lockstep")).expect("the program can be copied");
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    for unit in fs::read_dir(source.join("contrib/systemd")).expect("the units") {
        let unit = unit.expect("an entry");
        fs::copy(unit.path(), units.join(unit.file_name())).expect("a unit can be copied");
    }
}

#[test]
fn the_units_start_reload_restart_mount_and_stop_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let device = FreeLoop::find();
    let (usr, check) = (dir.path().join("usr"), dir.path().join("check"));
    lay_usr(&usr);
    fs::create_dir(&check).expect("a directory");
    fs::write(check.join("check.sh"), include_str!("systemd/check.sh")).expect("a file");
    let bind = |what: &Path, to: &str| format!("--bind={}:{to}", what.display());
    let loop_device = device.0.display().to_string();
    let unit = dir.path().join("check.service");
    let text = format!(
        "[Service]\nType=oneshot\nExecStart=/bin/bash /check/check.sh {loop_device}\n\
         StandardOutput=append:/check/said\nStandardError=append:/check/said\n\
         ExecStopPost=/bin/systemctl poweroff --force\n"
    );
    fs::write(&unit, text).expect("a file");

    let mut command = Command::new("systemd-nspawn");
    command
        .args([
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--machine=lockstep-test",
        ])
        .args(["--private-network", "--volatile=yes", "--directory=/"])
        .arg(format!("--overlay-ro=/usr:{}:/usr", usr.display()))
        .arg(bind(&check, "/check"))
        .arg(bind(&unit, "/run/systemd/system/check.service"))
        .args(["--bind=/dev/fuse", "--bind=/dev/loop-control"])
        .arg(format!("--bind={loop_device}"))
        .args([
            "--boot",
            "systemd.unit=check.service",
            "systemd.firstboot=no",
        ]);
    let log = fs::File::create(dir.path().join("log")).expect("a file");
    let mut container = command
        .stdin(Stdio::null())
        .stderr(log.try_clone().expect("a descriptor"))
        .stdout(log)
        .spawn()
        .expect("systemd-nspawn starts; `scripts/test packages` installs it");
    let begin = Instant::now();
    let ended = loop {
        match container.try_wait().expect("a child can be waited for") {
            Some(_) => break true,
            None if begin.elapsed() > LIMIT => break false,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    if !ended {
        // Twice ends it at once.
        for _ in 0..2 {
            kill(container.id(), Signal::SIGTERM);
        }
        container.wait().expect("a child can be waited for");
    }
    let read = |file: &Path| fs::read_to_string(file).unwrap_or_default();
    assert!(
        ended && check.join("passed").exists(),
        "{}\n--- the container\n{}",
        read(&check.join("said")),
        read(&dir.path().join("log"))
    );
}
