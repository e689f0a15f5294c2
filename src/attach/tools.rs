//! Programs that are called, and what the kernel says of block devices.

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a program to its end and returns what it printed; an error says what it said.
pub(super) fn run(program: &str, arguments: &[&OsStr]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {program}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{program} failed: {}", said.trim())
}

/// An error when the device is mounted or held otherwise; else what was written to it is on the disk
/// afterwards.
pub(super) fn in_use(device: &Path) -> anyhow::Result<()> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_EXCL.bits())
        .open(device);
    match opened {
        Ok(file) => {
            // A device that gives errors can't be synced, and is detached all the same.
            if let Err(error) = file.sync_all() {
                eprintln!(
                    "lockstep: not everything that was written to {} is on the disk: {error}",
                    device.display()
                );
            }
            Ok(())
        }
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => {
            bail!("it is in use\n  to do: unmount it, and stop what has it open")
        }
        Err(error) => Err(error).context("it can't be opened"),
    }
}
