//! A local disk without the kernel's NBD: nbdfuse shows the export as a file, and a loop device over
//! that file is the disk. nbdfuse never connects again, so what it is connected to has to stay: the
//! node on the same machine. With exclusive access that is also what is wanted: a disk whose node
//! ceased to be primary fails.

use super::handshake::Server;
use super::target::{VolumeName, device_number};
use super::tools::{in_use, run};
use super::{Options, Place};
use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The file in nbdfuse's directory.
const FILE: &str = "disk";
/// How long nbdfuse may take to show its file, and the kernel to let go of a loop device.
const LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A disk that is there.
#[derive(Debug)]
pub(super) struct FuseDisk {
    /// The loop device.
    pub(super) device: PathBuf,
    /// Ends when the disk is detached.
    pub(super) nbdfuse: Child,
}

/// Makes the disk.
pub(super) fn attach(
    volume: &VolumeName,
    server: &Server,
    place: &Place,
    options: &Options,
) -> anyhow::Result<FuseDisk> {
    if let Some(device) = &options.device
        && device_number(device, "loop").is_none()
    {
        bail!(
            "can't attach {volume} as {}: with --fuse it becomes a loop device\n  to do: name /dev/loopX, or none",
            device.display()
        );
    }
    let directory = place.directory.join(volume.directory());
    let file = directory.join(FILE);
    if let Some(device) = find_by_file(&file)? {
        bail!(
            "{volume} is attached already, as {}\n  to do: use that, or `lockstep detach {}` first",
            device.display(),
            device.display()
        );
    }
    // What is left of an nbdfuse that was killed.
    unmount_if_mounted(&directory)?;
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("can't make the directory {}", directory.display()))?;
    let log_path = place.log(volume);
    let log =
        File::create(&log_path).with_context(|| format!("can't write {}", log_path.display()))?;
    let mut command = Command::new("nbdfuse");
    command
        .args(["-C", &options.connections.to_string()])
        .arg(&file)
        .arg(uri(server, &volume.export()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in the terminal is not meant for it.
        .process_group(0);
    let mut nbdfuse = command.spawn().map_err(|error| {
        anyhow::anyhow!("can't run nbdfuse: {error}\n  to do: install it (Debian: libnbd-bin)")
    })?;
    let made = wait_for_file(&mut nbdfuse, &file, &log_path)
        .and_then(|()| set_up_loop(&file, options))
        .with_context(|| format!("can't attach {volume}"));
    match made {
        Ok(device) => Ok(FuseDisk { device, nbdfuse }),
        Err(error) => {
            // The first error is the one to tell.
            let _ = unmount_if_mounted(&directory);
            let _ = nbdfuse.kill();
            let _ = nbdfuse.wait();
            Err(error)
        }
    }
}

fn uri(server: &Server, export: &str) -> String {
    match server {
        Server::Tcp(address) => format!("nbd://{address}/{export}"),
        Server::Unix(path) => {
            let path = path.as_os_str().as_encoded_bytes();
            format!("nbd+unix:///{export}?socket={}", percent(path))
        }
    }
}

/// As part of a URI's query (RFC 3986).
fn percent(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text += &format!("%{byte:02X}");
        }
    }
    text
}

fn wait_for_file(nbdfuse: &mut Child, file: &Path, log: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = nbdfuse.try_wait()? {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("nbdfuse ended ({status}): {}", said.trim());
        }
        if std::fs::metadata(file).is_ok_and(|file| file.len() > 0) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "nbdfuse shows no file within {} s; see {}",
                LIMIT.as_secs(),
                log.display()
            );
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn set_up_loop(file: &Path, options: &Options) -> anyhow::Result<PathBuf> {
    let mut arguments: Vec<&OsStr> = vec!["--direct-io=on".as_ref(), "--sector-size".as_ref()];
    let sector = options.block_bytes.to_string();
    arguments.push(sector.as_ref());
    match &options.device {
        None => arguments.extend(["--find".as_ref(), "--show".as_ref(), file.as_os_str()]),
        Some(device) => arguments.extend([device.as_os_str(), file.as_os_str()]),
    }
    let said = run("losetup", &arguments)?;
    Ok(match &options.device {
        Some(device) => device.clone(),
        None => PathBuf::from(said.trim()),
    })
}

/// The loop devices with their files.
fn loops() -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").context("can't read /sys/block")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) {
            let file = file.trim_end_matches('\n');
            found.push((Path::new("/dev").join(name), PathBuf::from(file)));
        }
    }
    Ok(found)
}

fn find_by_file(file: &Path) -> anyhow::Result<Option<PathBuf>> {
    let found = loops()?.into_iter().find(|(_, backing)| backing == file);
    Ok(found.map(|(device, _)| device))
}

/// The devices that a volume has here: of each node on this machine at most one.
pub(super) fn devices_of(volume: &VolumeName) -> anyhow::Result<Vec<PathBuf>> {
    let end: PathBuf = [super::DIRECTORY, &volume.directory(), FILE]
        .iter()
        .collect();
    let of_volume = loops()?
        .into_iter()
        .filter(|(_, file)| file.ends_with(&end));
    Ok(of_volume.map(|(device, _)| device).collect())
}

/// Unmakes the disk. Refused while something uses it.
pub(super) fn detach(device: &Path) -> anyhow::Result<()> {
    let what = || format!("can't detach {}", device.display());
    let found = loops()?.into_iter().find(|(other, _)| other == device);
    let Some((_, file)) = found else {
        bail!("{}: it is attached to nothing", what());
    };
    let directory = match file.parent() {
        Some(directory)
            if file.ends_with(FILE)
                && directory
                    .parent()
                    .is_some_and(|d| d.ends_with(super::DIRECTORY)) =>
        {
            directory
        }
        _ => bail!(
            "{}: lockstep did not attach it, its file is {}",
            what(),
            file.display()
        ),
    };
    in_use(device).with_context(what)?;
    run("losetup", &["--detach".as_ref(), device.as_os_str()]).with_context(what)?;
    let deadline = Instant::now() + LIMIT;
    while loops()?
        .iter()
        .any(|(other, backing)| other == device && *backing == file)
    {
        if Instant::now() > deadline {
            bail!("{}: the kernel does not let go of it", what());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    unmount_if_mounted(directory).with_context(what)?;
    // What stays is an empty directory.
    let _ = std::fs::remove_dir(directory);
    Ok(())
}

/// nbdfuse ends when its directory is unmounted.
fn unmount_if_mounted(directory: &Path) -> anyhow::Result<()> {
    let Some(name) = directory.to_str() else {
        bail!("{} is no path in UTF-8", directory.display());
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .context("can't read /proc/self/mountinfo")?;
    // Field 5 is the mount point; space, tab, newline and backslash are octal there.
    let escaped = name
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    let mounted = |line: &str| line.split(' ').nth(4) == Some(&escaped);
    if mounts.lines().any(mounted) {
        run("umount", &[directory.as_os_str()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_has_a_uri_however_its_socket_is_called() {
        let server = Server::Unix("/run/a b/100%.sock".into());
        assert_eq!(
            uri(&server, "db/1"),
            "nbd+unix:///db/1?socket=/run/a%20b/100%25.sock"
        );
        let server = Server::Tcp("127.0.0.1:10809".parse().unwrap());
        assert_eq!(uri(&server, "db"), "nbd://127.0.0.1:10809/db");
    }
}
