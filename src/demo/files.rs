//! The demo's files: what is where, and the nodes' configuration. A directory that a demo has used
//! before keeps its cluster, and the ports by which its nodes know each other.

use crate::cli::DemoArgs;
use crate::client::Client;
use crate::config::NodeFile;
use crate::lock::DirectoryLock;
use crate::membership::create_cluster;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

/// Size of the disk where none is asked for.
const DEFAULT_SIZE_BYTES: u64 = 1 << 30;
/// The nodes talk to each other on the first free ports from this distance after `--port` on.
const FIRST_NODE_PORT: u16 = 16;
/// What a directory remembers of its demo.
const FILE: &str = "demo.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    /// Of each node: for controllers and for replicas. The cluster knows the nodes by them.
    ports: Vec<[u16; 2]>,
    nodes: u8,
    witnesses: u8,
    size_bytes: u64,
}

/// A demo's files and addresses. Nodes are counted from 1, those without a replica last.
#[derive(Debug)]
pub(super) struct Layout {
    /// Absolute, so that commands can change their directory.
    pub(super) directory: PathBuf,
    pub(super) nodes: u8,
    pub(super) witnesses: u8,
    pub(super) size_bytes: u64,
    port: u16,
}

impl Layout {
    /// Makes the directories, configuration and cluster that are not there yet.
    pub(super) fn prepare(args: &DemoArgs, directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("can't make the directory {}", directory.display()))?;
        let directory = std::fs::canonicalize(directory)
            .with_context(|| format!("can't use {}", directory.display()))?;
        let memory = directory.join(FILE);
        let remembered = match std::fs::read_to_string(&memory) {
            Ok(text) => Some(
                serde_json::from_str::<Remembered>(&text)
                    .with_context(|| format!("{} is not a demo's", memory.display()))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => bail!("can't read {}: {error}", memory.display()),
        };
        if let Some(old) = &remembered {
            let other_size = args.size.is_some_and(|size| size != old.size_bytes);
            if (old.nodes, old.witnesses) != (args.nodes, args.witnesses) || other_size {
                bail!(
                    "{} holds a demo with --nodes {} --witnesses {} --size {}\n  to do: use the same options, or another --dir",
                    directory.display(),
                    old.nodes,
                    old.witnesses,
                    old.size_bytes
                );
            }
        }
        let remembered = match remembered {
            Some(remembered) => remembered,
            None => Remembered {
                ports: free_ports(args.port, args.nodes + args.witnesses)?,
                nodes: args.nodes,
                witnesses: args.witnesses,
                size_bytes: args.size.unwrap_or(DEFAULT_SIZE_BYTES),
            },
        };
        let layout = Self {
            directory,
            nodes: remembered.nodes,
            witnesses: remembered.witnesses,
            size_bytes: remembered.size_bytes,
            port: args.port,
        };
        layout.check_free(&remembered.ports)?;
        layout.write_configuration(&remembered.ports)?;
        if !layout.has_joined(1) {
            create_cluster(&NodeFile::load(&layout.config(1))?)?;
        }
        std::fs::write(&memory, serde_json::to_vec(&remembered)?)?;
        Ok(layout)
    }

    /// Neither another demo nor another program is in the way; said before anything is started.
    fn check_free(&self, ports: &[[u16; 2]]) -> anyhow::Result<()> {
        for number in 1..=self.all() {
            let directory = self.node(number);
            if let Some(pid) = DirectoryLock::holder(&directory) {
                bail!(
                    "{} is in use by a running daemon (pid {pid})\n  to do: stop that demo, or use another --dir",
                    directory.display()
                );
            }
        }
        for number in 1..=self.nodes {
            let port = self.nbd_port(number);
            TcpListener::bind(("127.0.0.1", port)).with_context(|| {
                format!("port {port} of 127.0.0.1 is in use or not allowed; choose another --port")
            })?;
        }
        for &port in ports.iter().flatten() {
            if !is_free(port) {
                bail!(
                    "port {port} of 127.0.0.1 is in use, and the nodes in {} know each other by it\n  to do: stop what uses it, or use another --dir",
                    self.directory.display()
                );
            }
        }
        Ok(())
    }

    fn write_configuration(&self, ports: &[[u16; 2]]) -> anyhow::Result<()> {
        for (number, [control, replication]) in (1..=self.all()).zip(ports) {
            let directory = self.node(number);
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("can't make {}", directory.display()))?;
            let listen = if number <= self.nodes {
                format!(
                    "nbd_listen = [\"127.0.0.1:{}\"]\nnbd_socket = \"nbd.sock\"\n",
                    self.nbd_port(number)
                )
            } else {
                String::new()
            };
            let text = format!(
                "# Written by `lockstep demo`, anew at each start.\nnode = \"{}\"\ncontrol = \"127.0.0.1:{control}\"\nreplication = \"127.0.0.1:{replication}\"\n{listen}",
                Self::name(number)
            );
            std::fs::write(self.config(number), text)
                .with_context(|| format!("can't write {}", self.config(number).display()))?;
        }
        Ok(())
    }

    /// Is this node in the cluster already?
    pub(super) fn has_joined(&self, number: u8) -> bool {
        let keys = controller::pki::files::directory(&self.node(number));
        keys.join(controller::pki::files::NODE_CERTIFICATE).exists()
    }

    /// How many daemons there are.
    pub(super) const fn all(&self) -> u8 {
        self.nodes + self.witnesses
    }

    pub(super) fn name(number: u8) -> String {
        format!("node{number}")
    }

    pub(super) fn node(&self, number: u8) -> PathBuf {
        self.directory.join(Self::name(number))
    }

    pub(super) fn config(&self, number: u8) -> PathBuf {
        self.node(number).join("lockstep.toml")
    }

    pub(super) fn log(&self, number: u8) -> PathBuf {
        self.node(number).join("log")
    }

    pub(super) fn socket(&self, number: u8) -> PathBuf {
        self.node(number).join("api.sock")
    }

    pub(super) fn client(&self, number: u8) -> Client {
        Client::new(Some(&self.socket(number)))
    }

    const fn nbd_port(&self, number: u8) -> u16 {
        self.port + number as u16 - 1
    }

    pub(super) fn uri(&self, number: u8) -> String {
        format!(
            "nbd://127.0.0.1:{}/{}",
            self.nbd_port(number),
            super::RESOURCE
        )
    }
}

/// Two for each node. Not ports of the kernel's choosing: those it also gives to outgoing connections,
/// so that a node that restarts could find its own taken.
fn free_ports(nbd: u16, nodes: u8) -> anyhow::Result<Vec<[u16; 2]>> {
    let mut candidates = nbd.saturating_add(FIRST_NODE_PORT)..=u16::MAX;
    let mut free = || {
        candidates
            .find(|&port| is_free(port))
            .context("no free port is left for the nodes; choose a lower --port")
    };
    (0..nodes).map(|_| Ok([free()?, free()?])).collect()
}

/// For connections and for beacons.
fn is_free(port: u16) -> bool {
    let address = ("127.0.0.1", port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn args(nodes: u8, witnesses: u8) -> DemoArgs {
        DemoArgs {
            nodes,
            witnesses,
            size: Some(1 << 20),
            dir: None,
            // The port of a listener that is gone: free but for the odd accident.
            port: TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .unwrap()
                .port()
                .min(65_000),
            exec: None,
        }
    }

    #[test]
    fn a_demo_writes_configuration_that_its_daemons_take() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(&args(1, 2), dir.path()).unwrap();
        for number in 1..=3 {
            let config = NodeFile::load(&layout.config(number)).unwrap();
            assert_eq!(config.name.as_str(), Layout::name(number));
            assert_eq!(config.nbd_listen.len(), usize::from(number == 1));
            assert_eq!(config.api_socket, layout.socket(number));
        }
    }

    #[test]
    fn a_directory_is_used_again_only_for_the_same_demo() {
        let dir = tempfile::tempdir().unwrap();
        let first = Layout::prepare(&args(1, 0), dir.path()).unwrap();
        let before = Config::load(&first.config(1)).unwrap();
        let again = Layout::prepare(&args(1, 0), dir.path()).unwrap();
        let after = Config::load(&again.config(1)).unwrap();
        assert_eq!(after.cluster, before.cluster);
        assert_eq!(after.file.control, before.file.control);
        let error = Layout::prepare(&args(1, 1), dir.path()).unwrap_err();
        assert!(error.to_string().contains("--nodes 1 --witnesses 0"));
        let _lock = DirectoryLock::take(&first.node(1)).unwrap();
        let error = Layout::prepare(&args(1, 0), dir.path()).unwrap_err();
        assert!(error.to_string().contains("is in use by a running daemon"));
    }

    #[test]
    fn a_port_in_use_is_named_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut args = args(1, 0);
        args.port = taken.local_addr().unwrap().port();
        let error = Layout::prepare(&args, dir.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("port {} ", args.port)));
    }
}
