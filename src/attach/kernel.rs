//! A local disk by the kernel's NBD client: `/dev/nbdX`. The kernel keeps whose it is, in
//! `/sys/block/nbdX/backend`, and who connected it, in `pid`.

use super::handshake::{self, ExportTerms, Server};
use super::netlink::{Connect, Nbd, Watch};
use super::target::{VolumeName, device_number};
use super::tools::{in_use, run};
use super::{Again, Options};
use anyhow::{Context, bail};
use nbd_frontend::wire::transmission_flag::CAN_MULTI_CONN;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What every backend of ours begins with.
const BACKEND_PREFIX: &str = "lockstep:";
/// How long the kernel may take to let go of a device.
const LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A device of ours.
#[derive(Debug)]
pub(super) struct Device {
    nbd: Nbd,
    pub(super) watch: Watch,
    pub(super) index: u32,
    pub(super) volume: VolumeName,
    backend: String,
    /// The process that connected it, which the kernel names as long as it is connected.
    pid: u32,
    /// Shows that somebody keeps it.
    _claim: Option<UnixListener>,
    pub(super) size_bytes: u64,
    pub(super) connections: usize,
    /// Found connected; its connections may be lost already.
    pub(super) adopted: bool,
}

impl Device {
    /// Connects a device, or takes over one of the volume's that nobody keeps connected.
    pub(super) fn attach(
        volume: &VolumeName,
        server: &Server,
        options: &Options,
        again: &Again,
    ) -> anyhow::Result<Self> {
        let what = || format!("can't attach {volume}");
        let wanted = match &options.device {
            None => None,
            Some(device) => Some(device_number(device, "nbd").with_context(|| {
                format!(
                    "can't attach {volume} as {}: it becomes /dev/nbdX, or with --fuse /dev/loopX",
                    device.display()
                )
            })?),
        };
        let nbd = family().with_context(what)?;
        // Before there is a device, so that no loss goes unheard.
        let watch = nbd.watch().with_context(what)?;
        let mut device = Self {
            nbd,
            watch,
            index: 0,
            volume: volume.clone(),
            backend: volume.backend(again.mark().as_deref()),
            pid: 0,
            _claim: None,
            size_bytes: 0,
            connections: usize::from(options.connections),
            adopted: false,
        };
        if device.adopt(wanted)? {
            device.size_bytes = handshake::ask(server, &volume.export())
                .with_context(what)?
                .size_bytes;
            return Ok(device);
        }
        let (sockets, terms) = open(server, volume, device.connections).with_context(what)?;
        device.connections = sockets.len();
        device.size_bytes = terms.size_bytes;
        let connect = Connect {
            index: wanted,
            size_bytes: terms.size_bytes,
            block_bytes: options.block_bytes,
            timeout_s: options.timeout_s,
            dead_timeout_s: match again {
                Again::No => 0,
                Again::Always | Again::While { .. } => options.dead_timeout_s,
            },
            server_flags: terms.flags,
            sockets: &sockets,
            backend: &device.backend,
        };
        device.index = match device.nbd.connect(&connect) {
            Ok(index) => index,
            Err(error) => return Err(refusal(&error, volume, wanted)),
        };
        device.pid = keeper_of(device.index).unwrap_or_default();
        let deadline = Instant::now() + LIMIT;
        device._claim = loop {
            match claim(device.index) {
                // The last device of this number was unmade a moment ago, and its keeper looks soon.
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(LOOK_EVERY);
                }
                claimed => break claimed.ok(),
            }
        };
        Ok(device)
    }

    /// Takes over the volume's device that was left by its keeper, if there is one. An error when
    /// another process keeps it, or when the disk is not what the device's user knows.
    fn adopt(&mut self, wanted: Option<u32>) -> anyhow::Result<bool> {
        let Some(path) = devices_of(&self.volume)?.into_iter().next() else {
            return Ok(false);
        };
        let (volume, shown) = (&self.volume, path.display());
        let found = device_number(&path, "nbd").and_then(|i| Some((i, keeper_of(i)?)));
        let Some((index, pid)) = found else {
            return Ok(false);
        };
        let free = !is_lockstep(pid) && wanted.is_none_or(|wanted| wanted == index);
        let claimed = if free { claim(index).ok() } else { None };
        let Some(claimed) = claimed else {
            bail!(
                "can't attach {volume}: it is attached already, as {shown}\n  to do: use that, or `lockstep detach {shown}` first"
            );
        };
        if backend_of(index).as_ref() != Some(&self.backend) {
            bail!(
                "can't attach {volume}: it was attached as {shown}, nobody keeps that connected any more, and the disk may have been changed by others since\n  to do: unmount {shown}, `lockstep detach {shown}`, then attach it again"
            );
        }
        self.index = index;
        self.pid = pid;
        self._claim = Some(claimed);
        self.adopted = true;
        Ok(true)
    }

    /// Its name.
    pub(super) fn path(&self) -> PathBuf {
        path(self.index)
    }

    /// It is there, and still this volume's.
    pub(super) fn is_connected(&self) -> bool {
        keeper_of(self.index) == Some(self.pid)
            && backend_of(self.index).is_none_or(|backend| backend == self.backend)
    }

    /// Puts new connections in the place of lost ones.
    pub(super) fn reconnect(&mut self, server: &Server, lost: usize) -> anyhow::Result<()> {
        let (sockets, terms) = open(server, &self.volume, lost)?;
        self.reconfigure(terms.size_bytes, &sockets)?;
        Ok(())
    }

    /// Follows the export when it grows.
    pub(super) fn resize(&mut self, size_bytes: u64) -> io::Result<()> {
        self.reconfigure(size_bytes, &[])
    }

    fn reconfigure(&mut self, size_bytes: u64, sockets: &[OwnedFd]) -> io::Result<()> {
        self.nbd
            .reconfigure(self.index, &self.backend, size_bytes, sockets)?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// From now on everything that is asked of it fails.
    pub(super) fn disconnect(&mut self) -> io::Result<()> {
        self.nbd.disconnect(self.index)
    }
}

/// The kernel's NBD client, its module loaded where that is needed.
fn family() -> anyhow::Result<Nbd> {
    if let Some(nbd) = Nbd::open()? {
        return Ok(nbd);
    }
    let loaded = run("modprobe", &["nbd".as_ref()]);
    match (Nbd::open()?, loaded) {
        (Some(nbd), _) => Ok(nbd),
        (None, loaded) => {
            let why = loaded
                .err()
                .map_or_else(String::new, |error| format!(" ({error:#})"));
            bail!(
                "this kernel has no NBD client, and its module `nbd` can't be loaded{why}\n  to do: install the module, or use `lockstep attach --fuse`, which needs nbdfuse and loop devices instead"
            )
        }
    }
}

/// Opens so many connections to an export, or one where the server allows no more.
fn open(
    server: &Server,
    volume: &VolumeName,
    connections: usize,
) -> anyhow::Result<(Vec<OwnedFd>, ExportTerms)> {
    let (first, terms) = handshake::open(server, &volume.export())?;
    let mut sockets = vec![first];
    if terms.flags & CAN_MULTI_CONN != 0 {
        for _ in 1..connections {
            sockets.push(handshake::open(server, &volume.export())?.0);
        }
    }
    Ok((sockets, terms))
}

fn refusal(error: &io::Error, volume: &VolumeName, wanted: Option<u32>) -> anyhow::Error {
    let device = wanted.map_or_else(
        || "a /dev/nbdX".to_owned(),
        |i| path(i).display().to_string(),
    );
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => "run it as root",
        Some(Errno::EBUSY) => "`lockstep detach` that device first, or name another one",
        _ => "see the kernel's log (`dmesg`)",
    };
    anyhow::anyhow!("can't attach {volume} as {device}: {error}\n  to do: {remedy}")
}

fn path(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

/// What the kernel says of a device.
fn attribute(index: u32, name: &str) -> Option<String> {
    let path = format!("/sys/block/nbd{index}/{name}");
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned())
}

fn backend_of(index: u32) -> Option<String> {
    attribute(index, "backend")
}

/// The process that connected a device; `None`: it is not connected.
fn keeper_of(index: u32) -> Option<u32> {
    attribute(index, "pid")?.parse().ok()
}

/// What a keeper holds while it keeps a device: a socket of this name, which ends with the process.
fn claim(index: u32) -> io::Result<UnixListener> {
    let name = format!("lockstep/nbd{index}");
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Whether a process is one of ours that runs.
fn is_lockstep(pid: u32) -> bool {
    pid == std::process::id()
        || std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim_end() == "lockstep")
}

/// The devices that a volume has.
pub(super) fn devices_of(volume: &VolumeName) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for index in indices().context("can't read /sys/block")? {
        if keeper_of(index).is_some()
            && backend_of(index).is_some_and(|backend| volume.has_backend(&backend))
        {
            found.push(path(index));
        }
    }
    Ok(found)
}

/// All devices that are connected, whoever did that, by the process that did.
pub(crate) fn all_devices() -> BTreeMap<u32, PathBuf> {
    let indices = indices().unwrap_or_default().into_iter();
    indices
        .filter_map(|index| Some((keeper_of(index)?, path(index))))
        .collect()
}

/// The numbers of the kernel's NBD devices, connected or not.
fn indices() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let device = Path::new("/dev").join(entry?.file_name());
        found.extend(device_number(&device, "nbd"));
    }
    Ok(found)
}

/// Unmakes a device. Refused while something uses it.
pub(super) fn detach(index: u32) -> anyhow::Result<()> {
    let device = path(index);
    let what = || format!("can't detach {}", device.display());
    if keeper_of(index).is_none() {
        bail!("{}: it is attached to nothing", what());
    }
    if let Some(backend) = backend_of(index)
        && !backend.starts_with(BACKEND_PREFIX)
    {
        bail!(
            "{}: lockstep did not attach it, it belongs to {backend}",
            what()
        );
    }
    in_use(&device).with_context(what)?;
    let mut nbd = family().with_context(what)?;
    nbd.disconnect(index).with_context(what)?;
    let deadline = Instant::now() + LIMIT;
    while keeper_of(index).is_some() {
        if Instant::now() > deadline {
            bail!("{}: the kernel does not let go of it", what());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
