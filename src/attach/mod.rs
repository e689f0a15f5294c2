//! `lockstep attach` and `lockstep detach`: an export becomes a block device of this machine, by the
//! kernel's NBD client ([`kernel`]) or by nbdfuse and a loop device ([`fuse`]). What is attached is
//! known to the kernel, so nothing is kept in files of ours and detaching works without a daemon.
//!
//! A device is connected to one node, by default the one on this machine, and to no other later: a
//! second node could execute a request anew that the first one still holds (RULES 12).

mod fuse;
mod handshake;
mod keeper;
mod kernel;
mod netlink;
mod target;
mod tools;

pub(crate) use handshake::Server;
pub(crate) use kernel::all_devices as kernel_devices;
pub(crate) use target::{Attached, VolumeName};

use crate::cli::AttachArgs;
use crate::client::Client;
use crate::commands::Outcome;
use crate::operation::{ExportPlace, Operation};
use crate::service_manager;
use anyhow::{Context, bail};
use controller::core::Access;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Directory for attachments, in the node's data directory or in [`RUN`].
const DIRECTORY: &str = "attach";
/// Where no daemon is asked.
const RUN: &str = "/run/lockstep";

/// How a disk is to be.
#[derive(Clone, Debug)]
struct Options {
    device: Option<PathBuf>,
    connections: u8,
    block_bytes: u32,
    timeout_s: u32,
    dead_timeout_s: u32,
}

/// Where files of attachments lie.
#[derive(Clone, Debug)]
struct Place {
    directory: PathBuf,
}

impl Place {
    /// What is said after the command has ended.
    fn log(&self, volume: &VolumeName) -> PathBuf {
        self.directory.join(format!("{}.log", volume.directory()))
    }
}

/// Whether a lost connection may be made again, so that the device's user goes on with the disk as
/// it was.
#[derive(Clone, Debug)]
enum Again {
    /// Never.
    No,
    /// By the operator's word.
    Always,
    /// While nobody else can have changed what was read: with exclusive access in the same epoch,
    /// with follow access in the same history.
    While {
        client: Client,
        place: Box<ExportPlace>,
    },
}

impl Again {
    /// By what a disk can be told from what others have made of it: a device that was left without its
    /// keeper goes on with the same one only.
    fn mark(&self) -> Option<String> {
        let Self::While { place, .. } = self else {
            return None;
        };
        Some(match place.access {
            Access::Exclusive => format!("{}.epoch-{}", place.id, place.epoch),
            Access::Follow => format!("{}.history-{}", place.id, place.history),
        })
    }
}

/// Makes the device.
pub(crate) async fn attach(client: &Client, args: AttachArgs, json: bool) -> Outcome {
    let volume = &args.volume;
    let options = Options {
        device: args.device.clone(),
        connections: args.connections,
        block_bytes: args.block_size,
        timeout_s: args.timeout,
        dead_timeout_s: args.dead_timeout,
    };
    let (server, again, directory) = match args.server.clone() {
        Some(mut server) => {
            if let Server::Unix(path) = &mut server {
                *path = std::path::absolute(&*path)?;
            }
            let again = if args.reconnect {
                Again::Always
            } else {
                Again::No
            };
            (server, again, PathBuf::from(RUN))
        }
        None => {
            let export = prepare(client, volume).await?;
            let server = server_of(&export)?;
            let directory = export.data_directory.clone();
            let again = Again::While {
                client: client.clone(),
                place: Box::new(export),
            };
            (server, again, directory)
        }
    };
    let place = Place {
        directory: directory.join(DIRECTORY),
    };
    // Refusals are told in the server's words.
    let terms = handshake::ask(&server, &volume.export())
        .with_context(|| format!("can't attach {volume}"))?;
    if terms.min_block_bytes > options.block_bytes {
        bail!(
            "can't attach {volume}: the server takes no blocks smaller than {} bytes\n  to do: --block-size {}",
            terms.min_block_bytes,
            terms.min_block_bytes
        );
    }
    if args.fuse {
        let mut disk = fuse::attach(volume, &server, &place, &options)?;
        tell(&disk.device, volume, json)?;
        if args.foreground {
            service_manager::ready();
            disk.nbdfuse.wait()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.foreground && !args.background && !matches!(again, Again::No) {
        return keeper::start_in_background();
    }
    if args.background {
        nix::unistd::setsid().context("can't leave the terminal")?;
    }
    let device = kernel::Device::attach(volume, &server, &options, &again)?;
    tell(&device.path(), volume, json)?;
    if matches!(again, Again::No) && !args.foreground {
        return Ok(ExitCode::SUCCESS);
    }
    if args.background {
        keeper::leave_terminal(&place, volume)?;
    }
    service_manager::ready();
    let dead_limit = Duration::from_secs(options.dead_timeout_s.into());
    keeper::keep(device, &server, &again, dead_limit).await
}

/// Unmakes the device.
pub(crate) fn detach(target: &Attached, json: bool) -> Outcome {
    let device = match target {
        Attached::Device(device) => device.clone(),
        Attached::Volume(volume) => {
            let mut devices = kernel::devices_of(volume)?;
            devices.extend(fuse::devices_of(volume)?);
            match &devices[..] {
                [] => bail!(
                    "can't detach {volume}: it is attached nowhere on this machine\n  to do: name the device, if its kernel does not tell what it belongs to (before Linux 5.14)"
                ),
                [device] => device.clone(),
                several => {
                    let names: Vec<_> = several.iter().map(|d| d.display().to_string()).collect();
                    bail!(
                        "can't detach {volume}: it is attached as {}\n  to do: name the device",
                        names.join(" and as ")
                    )
                }
            }
        }
    };
    if let Some(index) = target::device_number(&device, "nbd") {
        kernel::detach(index)?;
    } else if target::device_number(&device, "loop").is_some() {
        fuse::detach(&device)?;
    } else {
        bail!(
            "can't detach {}: it is neither /dev/nbdX nor /dev/loopX",
            device.display()
        );
    }
    if json {
        let data = serde_json::json!({ "device": device });
        let message = format!("{} is detached", device.display());
        println!(
            "{}",
            serde_json::json!({ "message": message, "data": data })
        );
    } else {
        println!("{} is detached", device.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// On standard output there is the device's name and nothing else.
fn tell(device: &Path, volume: &VolumeName, json: bool) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if json {
        let message = format!("{volume} is attached as {}", device.display());
        let data = serde_json::json!({ "device": device });
        writeln!(
            out,
            "{}",
            serde_json::json!({ "message": message, "data": data })
        )?;
    } else {
        writeln!(out, "{}", device.display())?;
    }
    Ok(out.flush()?)
}

/// Makes the node export the volume, as far as that cuts nobody off.
async fn prepare(client: &Client, volume: &VolumeName) -> anyhow::Result<ExportPlace> {
    let export = place_of(client, volume).await?;
    let resource = volume.resource.clone();
    let operation = match (export.access, &export.primary) {
        (Access::Follow, Some(_)) => return Ok(export),
        (Access::Follow, None) => Operation::Promote {
            resource,
            node: None,
            accept_data_loss: false,
            confirm_dead: None,
        },
        (Access::Exclusive, _) => Operation::TakeOver { resource },
    };
    let done = client.operate(&operation).await;
    done.with_context(|| format!("can't attach {volume}"))?;
    place_of(client, volume).await
}

/// Where the node exports the volume, and how things stand with it.
async fn place_of(client: &Client, volume: &VolumeName) -> anyhow::Result<ExportPlace> {
    let operation = Operation::FindExport {
        resource: volume.resource.clone(),
        volume: volume.number,
    };
    let done = client.operate(&operation).await?;
    let data = done
        .data
        .context("the daemon did not say where it exports")?;
    Ok(serde_json::from_value(data)?)
}

/// A unix socket before TCP.
fn server_of(export: &ExportPlace) -> anyhow::Result<Server> {
    if let Some(path) = &export.nbd_socket {
        return Ok(Server::Unix(path.clone()));
    }
    let Some(&(mut address)) = export.nbd_listen.first() else {
        bail!(
            "{} listens for no NBD clients\n  to do: set nbd_socket = \"nbd.sock\" in its lockstep.toml and restart its daemon",
            export.node
        );
    };
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(Server::Tcp(address))
}
