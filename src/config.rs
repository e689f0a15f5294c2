//! `lockstep.toml`: what a node is told about itself and its cluster. Unknown keys are errors, and
//! every error names the file, the line, the key and the value.

use controller::core::Name;
use replicator::core::api::Settings;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;
use vocabulary::{ClusterId, NodeId};

/// Longest path of a unix socket that the kernel takes, in bytes (`sockaddr_un`, less the zero).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A validated configuration; relative paths were taken from the file's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// This node.
    pub(crate) node: NodeId,
    /// Where everything of this node lies that has no path of its own.
    pub(crate) data_directory: PathBuf,
    /// The API's unix socket.
    pub(crate) api_socket: PathBuf,
    /// The cluster's name, for people.
    pub(crate) cluster_name: Name,
    /// The cluster.
    pub(crate) cluster: ClusterId,
    /// Every node of the cluster.
    pub(crate) nodes: BTreeMap<NodeId, NodeConfig>,
    /// Where NBD clients connect.
    pub(crate) nbd_listen: Vec<SocketAddr>,
    /// The same on a unix socket.
    pub(crate) nbd_socket: Option<PathBuf>,
    /// Limits and time-outs of the engine.
    pub(crate) settings: Settings,
}

/// A node as every node's file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeConfig {
    pub(crate) name: Name,
    pub(crate) control: String,
    pub(crate) replication: String,
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("can't read the configuration file {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("{}:{line}: {key} = {value}: {problem}", path.display())]
    Value {
        path: PathBuf,
        line: usize,
        key: &'static str,
        value: String,
        problem: Problem,
    },
}

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("{0}")]
    Name(#[from] controller::core::NameError),
    #[error("not a cluster id: 32 hexadecimal digits, not all zero")]
    ClusterId,
    #[error("there is no [[nodes]] entry of that name")]
    NoSuchNode,
    #[error("node ids are 0 to {}", NodeId::LIMIT - 1)]
    NodeId,
    #[error("two [[nodes]] entries have this {0}; each node has its own")]
    Twice(&'static str),
    #[error("not an address: HOST:PORT is wanted, for instance 10.0.0.1:7788")]
    HostPort,
    #[error("not an address: IP:PORT is wanted, for instance 127.0.0.1:10809")]
    IpPort,
    #[error(
        "this address can be reached from other machines and NBD has no encryption or passwords here: whoever reaches it reads and writes every disk; listen on a loopback address or a unix socket, or say nbd_insecure = true if the network is trusted"
    )]
    Insecure,
    #[error("longer than the {MAX_SOCKET_PATH_BYTES} bytes that a unix socket's path may have")]
    SocketPath,
    #[error("out of range: {min} to {max}")]
    Range { min: u64, max: u64 },
    #[error("{0}")]
    Pair(&'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    node: Spanned<String>,
    #[serde(default = "here")]
    data_directory: PathBuf,
    api_socket: Option<Spanned<PathBuf>>,
    cluster: RawCluster,
    nodes: Vec<RawNode>,
    #[serde(default)]
    nbd_listen: Vec<Spanned<String>>,
    nbd_socket: Option<Spanned<PathBuf>>,
    #[serde(default)]
    nbd_insecure: bool,
    #[serde(default)]
    tuning: Tuning,
}

fn here() -> PathBuf {
    PathBuf::from(".")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    name: Spanned<String>,
    id: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    id: Spanned<u64>,
    name: Spanned<String>,
    control: Spanned<String>,
    replication: Spanned<String>,
}

macro_rules! tuning {
    ($($(#[$doc:meta])* $name:ident: $min:expr, $max:expr;)*) => {
        #[derive(Deserialize, Default)]
        #[serde(deny_unknown_fields)]
        struct Tuning {
            $($name: Option<Spanned<u64>>,)*
        }

        impl Tuning {
            fn apply(&self, check: &Checker<'_>) -> Result<Settings, ConfigError> {
                let mut settings = Settings::default();
                $(
                    if let Some(value) = &self.$name {
                        let (min, max): (u64, u64) = ($min, $max);
                        let given = *value.get_ref();
                        let fits = given.try_into().ok().filter(|_| (min..=max).contains(&given));
                        settings.$name = fits.ok_or_else(|| {
                            check.error(stringify!($name), value, given, Problem::Range { min, max })
                        })?;
                    }
                )*
                Ok(settings)
            }
        }
    };
}

// The bounds keep a typing error (seconds for milliseconds) from making a cluster that evicts its
// members at every hiccup, or never.
tuning! {
    ping_interval_ms: 50, 60_000;
    peer_timeout_ms: 200, 600_000;
    write_timeout_ms: 500, 600_000;
    evict_after_ms: 0, 600_000;
    lease_ms: 100, 60_000;
    reconnect_min_ms: 10, 60_000;
    reconnect_max_ms: 10, 600_000;
    propose_again_ms: 50, 10_000;
    command_timeout_ms: 1_000, 600_000;
    window_writes: 64, 1 << 20;
    window_bytes: 1 << 20, 16 << 30;
    window_age_ms: 10, 60_000;
    extent_idle_ms: 1_000, 86_400_000;
    chunk_bytes: 4096, 1 << 20;
    max_chunks: 1, 256;
    admit_below_bytes: 4096, 1 << 30;
}

struct Checker<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Checker<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or(self.text);
        before.bytes().filter(|&byte| byte == b'\n').count() + 1
    }

    fn error<T>(
        &self,
        key: &'static str,
        at: &Spanned<T>,
        value: impl fmt::Debug,
        problem: impl Into<Problem>,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.into(),
            line: self.line(at.span().start),
            key,
            value: format!("{value:?}"),
            problem: problem.into(),
        }
    }

    fn name(&self, key: &'static str, value: &Spanned<String>) -> Result<Name, ConfigError> {
        Name::new(value.get_ref()).map_err(|error| self.error(key, value, value.get_ref(), error))
    }

    fn host_port(&self, key: &'static str, value: &Spanned<String>) -> Result<String, ConfigError> {
        let text = value.get_ref();
        text.rsplit_once(':')
            .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0))
            .map(|_| text.clone())
            .ok_or_else(|| self.error(key, value, text, Problem::HostPort))
    }

    fn socket(
        &self,
        key: &'static str,
        value: Option<&Spanned<PathBuf>>,
        directory: &Path,
    ) -> Result<Option<PathBuf>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        let path = directory.join(value.get_ref());
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(self.error(key, value, path, Problem::SocketPath));
        }
        Ok(Some(path))
    }
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let check = Checker { path, text };
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.into(),
            line: check.line(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', ", "),
        })?;
        let nodes = nodes(&check, &raw.nodes)?;
        let node = nodes
            .iter()
            .find(|(_, node)| node.name.as_str() == raw.node.get_ref())
            .map(|(&id, _)| id)
            .ok_or_else(|| {
                check.error("node", &raw.node, raw.node.get_ref(), Problem::NoSuchNode)
            })?;
        let base = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let data_directory = match base {
            Some(base) => base.join(&raw.data_directory),
            None => raw.data_directory.clone(),
        };
        let id = raw.cluster.id.get_ref();
        let cluster = Some(id)
            .filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|id| u128::from_str_radix(id, 16).ok())
            .filter(|&id| id != 0)
            .ok_or_else(|| check.error("cluster.id", &raw.cluster.id, id, Problem::ClusterId))?;
        let api_socket = check
            .socket("api_socket", raw.api_socket.as_ref(), &data_directory)?
            .unwrap_or_else(|| data_directory.join("api.sock"));
        let settings = raw.tuning.apply(&check)?;
        check_pairs(&check, &raw.tuning, &settings)?;
        Ok(Self {
            node,
            api_socket,
            cluster_name: check.name("cluster.name", &raw.cluster.name)?,
            cluster: ClusterId(cluster),
            nodes,
            nbd_listen: nbd_listen(&check, &raw.nbd_listen, raw.nbd_insecure)?,
            nbd_socket: check.socket("nbd_socket", raw.nbd_socket.as_ref(), &data_directory)?,
            settings,
            data_directory,
        })
    }

    /// This node's entry.
    pub(crate) fn this_node(&self) -> &NodeConfig {
        // `parse` has found it there.
        &self.nodes[&self.node]
    }

    /// The node on which the cluster is created: the first one.
    pub(crate) fn founder(&self) -> NodeId {
        self.nodes.keys().next().copied().unwrap_or(self.node)
    }

    /// Where this node's voter keeps its promise.
    pub(crate) fn document_path(&self) -> PathBuf {
        self.data_directory.join("configuration")
    }
}

fn nodes(
    check: &Checker<'_>,
    raw: &[RawNode],
) -> Result<BTreeMap<NodeId, NodeConfig>, ConfigError> {
    let mut nodes = BTreeMap::new();
    let mut names = Vec::new();
    for entry in raw {
        let number = *entry.id.get_ref();
        let id = u8::try_from(number)
            .ok()
            .and_then(NodeId::new)
            .ok_or_else(|| check.error("nodes.id", &entry.id, number, Problem::NodeId))?;
        let name = check.name("nodes.name", &entry.name)?;
        if names.contains(&name) {
            return Err(check.error("nodes.name", &entry.name, &name, Problem::Twice("name")));
        }
        names.push(name.clone());
        let node = NodeConfig {
            name,
            control: check.host_port("nodes.control", &entry.control)?,
            replication: check.host_port("nodes.replication", &entry.replication)?,
        };
        if nodes.insert(id, node).is_some() {
            return Err(check.error("nodes.id", &entry.id, number, Problem::Twice("id")));
        }
    }
    Ok(nodes)
}

fn nbd_listen(
    check: &Checker<'_>,
    raw: &[Spanned<String>],
    insecure: bool,
) -> Result<Vec<SocketAddr>, ConfigError> {
    raw.iter()
        .map(|value| {
            let text = value.get_ref();
            let address: SocketAddr = text
                .parse()
                .map_err(|_| check.error("nbd_listen", value, text, Problem::IpPort))?;
            if !address.ip().is_loopback() && !insecure {
                return Err(check.error("nbd_listen", value, text, Problem::Insecure));
            }
            Ok(address)
        })
        .collect()
}

/// Settings that only make sense together.
fn check_pairs(
    check: &Checker<'_>,
    tuning: &Tuning,
    settings: &Settings,
) -> Result<(), ConfigError> {
    let pairs = [
        (
            settings.peer_timeout_ms < settings.ping_interval_ms.saturating_mul(2),
            [
                ("tuning.peer_timeout_ms", &tuning.peer_timeout_ms),
                ("tuning.ping_interval_ms", &tuning.ping_interval_ms),
            ],
            "peer_timeout_ms must be at least twice ping_interval_ms, or one late ping loses the peer",
        ),
        (
            settings.reconnect_max_ms < settings.reconnect_min_ms,
            [
                ("tuning.reconnect_max_ms", &tuning.reconnect_max_ms),
                ("tuning.reconnect_min_ms", &tuning.reconnect_min_ms),
            ],
            "reconnect_max_ms must not be less than reconnect_min_ms",
        ),
    ];
    for (wrong, keys, problem) in pairs {
        let given = keys
            .iter()
            .find_map(|(key, value)| Some((*key, value.as_ref()?)));
        if let (true, Some((key, value))) = (wrong, given) {
            return Err(check.error(key, value, *value.get_ref(), Problem::Pair(problem)));
        }
    }
    if !settings.chunk_bytes.is_multiple_of(4096)
        && let Some(value) = &tuning.chunk_bytes
    {
        let problem = Problem::Pair("must be a multiple of 4096");
        return Err(check.error("tuning.chunk_bytes", value, *value.get_ref(), problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
