//! The process that stays with a kernel device: makes lost connections again, lets the device follow
//! the export's size, and ends the device when its user must not go on with it.

use super::handshake::{self, Server};
use super::kernel::Device;
use super::{Again, Place, VolumeName, place_of};
use crate::client::ClientError;
use crate::commands::Outcome;
use crate::operation::ExportPlace;
use anyhow::Context;
use controller::core::Access;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Whether the device is still there is looked at this often, in milliseconds.
const LOOK_EVERY_MS: u16 = 1000;
/// The export's size is looked at this often.
const SIZE_EVERY: Duration = Duration::from_secs(5);
/// Waits between attempts to connect, doubling.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// Starts this very command again as a process that stays, and ends once that has said how it went.
pub(super) fn start_in_background() -> Outcome {
    let program = std::env::current_exe().context("can't find this program's file")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--background")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start the process that keeps the device connected")?;
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let errors = scope.spawn(|| err.map(|mut err| err.read_to_end(&mut complained)));
        // A pipe that can't be read has nothing more to say.
        let _ = out.map(|mut out| out.read_to_end(&mut said));
        let _ = errors.join();
    });
    std::io::stderr().write_all(&complained)?;
    std::io::stdout().write_all(&said)?;
    if !said.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let code = child
        .wait()?
        .code()
        .and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The device's name was said: who waits for it may go. What is said from now on goes into a file.
pub(super) fn leave_terminal(place: &Place, volume: &VolumeName) -> anyhow::Result<()> {
    std::fs::create_dir_all(&place.directory)
        .with_context(|| format!("can't make the directory {}", place.directory.display()))?;
    let path = place.log(volume);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("can't write {}", path.display()))?;
    nix::unistd::dup2_stdout(&log)?;
    nix::unistd::dup2_stderr(&log)?;
    // It would keep the file system from being unmounted.
    Ok(std::env::set_current_dir("/")?)
}

/// Whether to connect again.
#[derive(Debug)]
enum Verdict {
    Now,
    /// Perhaps later.
    Wait(String),
    /// The disk is not what the device's user knows.
    Never(String),
}

/// Stays with the device until it is gone, or was without any connection for so long that requests fail.
pub(super) async fn keep(
    mut device: Device,
    server: &Server,
    again: &Again,
    dead_limit: Duration,
) -> Outcome {
    let name = device.path().display().to_string();
    let mut lost = if device.adopted {
        device.connections
    } else {
        0
    };
    let mut size_seen = Instant::now();
    let mut connected = Instant::now();
    let mut pause = RETRY[0];
    let mut said = String::new();
    while device.is_connected() {
        let wait_ms = if lost == 0 {
            LOOK_EVERY_MS
        } else {
            u16::try_from(pause.as_millis()).unwrap_or(LOOK_EVERY_MS)
        };
        if heard(&device, wait_ms)? {
            let more = device.watch.lost(device.index)?;
            lost = more.map_or(device.connections, |n| device.connections.min(lost + n));
            if !device.is_connected() {
                break;
            }
        }
        if lost < device.connections {
            connected = Instant::now();
        }
        if lost == 0 {
            if size_seen.elapsed() >= SIZE_EVERY {
                size_seen = Instant::now();
                follow_size(&mut device, server, &name);
            }
            continue;
        }
        let verdict = match verdict(again, &device.volume).await {
            Verdict::Now => match device.reconnect(server, lost) {
                Ok(()) => Verdict::Now,
                Err(error) => Verdict::Wait(format!("{error:#}")),
            },
            other => other,
        };
        let verdict = match verdict {
            Verdict::Wait(why) if connected.elapsed() >= dead_limit => Verdict::Never(format!(
                "it had no connection for {} s: {}",
                dead_limit.as_secs(),
                first_line(&why)
            )),
            other => other,
        };
        match verdict {
            Verdict::Now => {
                eprintln!("lockstep: {name}: {lost} connections are made anew");
                (lost, pause) = (0, RETRY[0]);
                said.clear();
            }
            Verdict::Wait(why) => {
                let why = first_line(&why).to_owned();
                if said != why {
                    eprintln!("lockstep: {name}: connections are lost: {why}; trying again");
                    said = why;
                }
                pause = (pause * 2).min(RETRY[1]);
            }
            Verdict::Never(why) => {
                // It may have been detached this very moment.
                let _ = device.disconnect();
                anyhow::bail!("{name} is ended: {why}\n  to do: unmount it, then attach it again");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without what is to be done, which is said after it.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Waits until the kernel tells something, so long at most.
fn heard(device: &Device, wait_ms: u16) -> anyhow::Result<bool> {
    let mut polled = [PollFd::new(
        device.watch.socket().as_fd(),
        PollFlags::POLLIN,
    )];
    match poll(&mut polled, PollTimeout::from(wait_ms)) {
        Ok(count) => Ok(count > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("can't wait for the kernel's messages"),
    }
}

/// A look that fails is repeated; when the server is gone its connections tell.
fn follow_size(device: &mut Device, server: &Server, name: &str) {
    let Ok(terms) = handshake::ask(server, &device.volume.export()) else {
        return;
    };
    if terms.size_bytes == device.size_bytes {
        return;
    }
    match device.resize(terms.size_bytes) {
        Ok(()) => eprintln!("lockstep: {name} has {} bytes now", terms.size_bytes),
        Err(error) => eprintln!("lockstep: {name} can't follow its export's size: {error}"),
    }
}

async fn verdict(again: &Again, volume: &VolumeName) -> Verdict {
    let (client, was) = match again {
        Again::No => return Verdict::Never("its connection is lost".to_owned()),
        Again::Always => return Verdict::Now,
        Again::While { client, place } => (client, place),
    };
    match place_of(client, volume).await {
        Ok(is) => judge(was, &is),
        Err(error) => {
            let gone = matches!(error.downcast_ref(), Some(ClientError::Connect { .. }));
            if gone && was.access == Access::Exclusive {
                // Primaryship ends with the process.
                Verdict::Never("the node's daemon has ended".to_owned())
            } else {
                Verdict::Wait(format!("{error:#}"))
            }
        }
    }
}

/// Whether the disk is still the one that was attached.
fn judge(was: &ExportPlace, is: &ExportPlace) -> Verdict {
    if was.id != is.id {
        return Verdict::Never("another resource has its name now".to_owned());
    }
    if was.history != is.history {
        return Verdict::Never(
            "writes that were acknowledged may have been lost meanwhile".to_owned(),
        );
    }
    if was.access == Access::Exclusive
        && (was.epoch != is.epoch || is.primary.as_ref() != Some(&was.node))
    {
        return Verdict::Never(format!(
            "{} ceased to be primary; others may have written to the disk",
            was.node
        ));
    }
    Verdict::Now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(access: Access) -> ExportPlace {
        ExportPlace {
            node: "alpha".to_owned(),
            id: "7".to_owned(),
            access,
            epoch: 3,
            history: "1".to_owned(),
            primary: Some("alpha".to_owned()),
            nbd_socket: None,
            nbd_listen: Vec::new(),
            data_directory: "/".into(),
        }
    }

    #[test]
    fn with_exclusive_access_a_device_ends_with_the_epoch() {
        let was = place(Access::Exclusive);
        assert!(matches!(judge(&was, &was), Verdict::Now));
        for change in [
            |place: &mut ExportPlace| place.epoch = 4,
            |place: &mut ExportPlace| place.primary = Some("beta".to_owned()),
            |place: &mut ExportPlace| place.primary = None,
            |place: &mut ExportPlace| place.history = "2".to_owned(),
            |place: &mut ExportPlace| place.id = "8".to_owned(),
        ] {
            let mut is = was.clone();
            change(&mut is);
            assert!(matches!(judge(&was, &is), Verdict::Never(_)), "{is:?}");
        }
    }

    #[test]
    fn with_follow_access_a_device_outlives_primaries_but_no_loss_of_writes() {
        let was = place(Access::Follow);
        let mut is = was.clone();
        is.epoch = 9;
        is.primary = None;
        assert!(matches!(judge(&was, &is), Verdict::Now));
        is.history = "2".to_owned();
        assert!(matches!(judge(&was, &is), Verdict::Never(_)));
    }
}
