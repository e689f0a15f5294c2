//! A volume as a disk of this machine, with a file system on it, as applications use it. Made by
//! `lockstep attach --fuse`, because not every machine that runs tests has the kernel's NBD client.
//! Needs root, FUSE and loop devices.

use super::cluster::{Cluster, name};
use super::command::{LOCKSTEP, lockstep, output_within, text};
use super::{SOON, wait_for};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A disk, and where it is mounted.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) device: PathBuf,
    mounted: bool,
    /// The mount point.
    directory: TempDir,
}

/// Runs a tool that must succeed; gives what it said.
pub(crate) fn tool<I: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = I>,
) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let shown = format!("{command:?}");
    let output = output_within(command, SOON);
    assert!(output.status.success(), "{shown}: {}", text(&output));
    text(&output)
}

impl Disk {
    /// Attaches a volume on node `k`, as soon as that is possible there.
    pub(crate) fn attach(cluster: &Cluster, k: usize, volume: &str) -> Self {
        let said = wait_for(
            &format!("{volume} to be attached on {}", name(k)),
            SOON,
            || {
                let output = cluster.command(k, &["attach", volume, "--fuse"]);
                if output.status.success() {
                    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
                } else {
                    Err(text(&output))
                }
            },
        );
        Self::attached(said.trim())
    }

    /// One that is attached already, by its device.
    pub(crate) fn attached(device: &str) -> Self {
        Self {
            device: device.into(),
            mounted: false,
            directory: TempDir::with_prefix("lockstep-test-mount-").expect("a directory"),
        }
    }

    /// Puts a file system on it, `ext4` or `xfs`.
    pub(crate) fn make_file_system(&self, kind: &str) {
        tool(
            &format!("mkfs.{kind}"),
            ["-q".as_ref(), self.device.as_os_str()],
        );
    }

    /// Mounts it.
    pub(crate) fn mount(&mut self) {
        // A file system from before a crash is recovered here.
        tool(
            "mount",
            [self.device.as_os_str(), self.directory.path().as_os_str()],
        );
        self.mounted = true;
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Unmounts it, as soon as nothing uses it: a killed process' io_uring holds its files for a
    /// moment after the process has ended.
    pub(crate) fn unmount(&mut self) {
        wait_for("the file system to be unmounted", SOON, || {
            let mut command = Command::new("umount");
            command.arg(self.directory.path());
            let output = output_within(command, SOON);
            if output.status.success() {
                Ok(())
            } else {
                Err(text(&output))
            }
        });
        self.mounted = false;
    }

    /// Unmakes it.
    pub(crate) fn detach(mut self) {
        if self.mounted {
            self.unmount();
        }
        let output = lockstep(["detach".as_ref(), self.device.as_os_str()]);
        assert!(output.status.success(), "{}", text(&output));
        self.device = PathBuf::new();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.device.as_os_str().is_empty() {
            return;
        }
        // Only after a failure: as much as can be done, whatever still uses it.
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
        let _ = Command::new(LOCKSTEP)
            .arg("detach")
            .arg(&self.device)
            .status();
    }
}
