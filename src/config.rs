//! `lockstep.toml`: what a node is told about itself. What the cluster is, it knows since it joined. Unknown keys are errors, and
//! every error names the file, the line, the key and the value.

mod nbd;

pub(crate) use nbd::NbdTls;

use controller::core::{MAX_ADDRESSES, Name, Node};
use controller::pki::Identity;
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

/// A node's validated file; relative paths were taken from the file's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeFile {
    /// This node's name.
    pub(crate) name: Name,
    /// Where everything of this node lies that has no path of its own.
    pub(crate) data_directory: PathBuf,
    /// The API's unix socket.
    pub(crate) api_socket: PathBuf,
    /// For the other nodes' controllers.
    pub(crate) control: Addresses,
    /// For the other nodes' replicas.
    pub(crate) replication: Addresses,
    /// Replication is encrypted.
    pub(crate) secure_replication: bool,
    /// Where this node reaches others that it does not reach at their own addresses.
    pub(crate) reach: BTreeMap<Name, Reach>,
    /// Where NBD clients connect.
    pub(crate) nbd_listen: Vec<SocketAddr>,
    /// The same on a unix socket.
    pub(crate) nbd_socket: Option<PathBuf>,
    /// NBD may be had from other machines without encryption.
    pub(crate) nbd_insecure: bool,
    /// Encryption of NBD; `None`: there is none.
    pub(crate) nbd_tls: Option<NbdTls>,
    /// Limits and time-outs of the engine.
    pub(crate) settings: Settings,
}

/// Addresses of this node for one purpose, `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// What the other nodes use, the best first.
    pub(crate) own: Vec<String>,
    /// What it listens on.
    pub(crate) listen: Vec<String>,
}

/// Another node's addresses as this one sees them; none: those that the cluster knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) control: Vec<String>,
    pub(crate) replication: Vec<String>,
}

/// A node as its daemon runs it: its file, and what it has been since it joined.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The file.
    pub(crate) file: NodeFile,
    /// What proves who it is.
    pub(crate) identity: Identity,
    /// This node.
    pub(crate) node: NodeId,
    /// The cluster.
    pub(crate) cluster: ClusterId,
    /// The cluster's nodes as this one last knew them.
    pub(crate) known_nodes: Vec<Node>,
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
    #[error("a node has 1 to {MAX_ADDRESSES} addresses for each purpose")]
    AddressCount,
    #[error("this address is named twice; each serves one purpose")]
    Twice,
    #[error("not an address: HOST:PORT is wanted, for instance 10.0.0.1:7788")]
    HostPort,
    #[error("not an address: IP:PORT is wanted, for instance 127.0.0.1:10809")]
    IpPort,
    #[error(
        "this address can be reached from other machines and NBD is not encrypted: whoever reaches it reads and writes every disk; set [nbd_tls] mode = \"require\", listen on a loopback address or a unix socket, or say nbd_insecure = true if the network is trusted"
    )]
    Insecure,
    #[error("not a mode: \"off\", \"on\" or \"require\"")]
    TlsMode,
    #[error("this needs nbd_tls.certificate and nbd_tls.key, the paths of PEM files")]
    TlsFiles,
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
    control: Spanned<OneOrMore>,
    control_listen: Option<Spanned<OneOrMore>>,
    replication: Spanned<OneOrMore>,
    replication_listen: Option<Spanned<OneOrMore>>,
    #[serde(default)]
    tls: RawTls,
    #[serde(default)]
    reach: BTreeMap<Spanned<String>, RawReach>,
    #[serde(default)]
    nbd_listen: Vec<Spanned<String>>,
    nbd_socket: Option<Spanned<PathBuf>>,
    #[serde(default)]
    nbd_insecure: bool,
    nbd_tls: Option<nbd::RawNbdTls>,
    #[serde(default)]
    tuning: Tuning,
}

fn here() -> PathBuf {
    PathBuf::from(".")
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    #[serde(default = "yes")]
    replication: bool,
}

impl Default for RawTls {
    fn default() -> Self {
        Self { replication: true }
    }
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReach {
    control: Option<Spanned<OneOrMore>>,
    replication: Option<Spanned<OneOrMore>>,
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
    no_primary_ms: 100, 600_000;
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

    fn addresses(
        &self,
        key: &'static str,
        value: &Spanned<OneOrMore>,
    ) -> Result<Vec<String>, ConfigError> {
        let all = value.get_ref().all();
        if all.is_empty() || all.len() > MAX_ADDRESSES {
            return Err(self.error(key, value, all, Problem::AddressCount));
        }
        for (place, text) in all.iter().enumerate() {
            let parts = text.rsplit_once(':').filter(|(host, port)| {
                // A space separates the addresses in a token.
                let good = !host.is_empty() && !host.contains(char::is_whitespace);
                good && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
            if parts.is_none() {
                return Err(self.error(key, value, text, Problem::HostPort));
            }
            if all[..place].contains(text) {
                return Err(self.error(key, value, text, Problem::Twice));
            }
        }
        Ok(all.to_vec())
    }

    fn own_addresses(
        &self,
        [key, listen_key]: [&'static str; 2],
        own: &Spanned<OneOrMore>,
        listen: Option<&Spanned<OneOrMore>>,
    ) -> Result<Addresses, ConfigError> {
        let own = self.addresses(key, own)?;
        let listen = match listen {
            Some(listen) => self.addresses(listen_key, listen)?,
            None => own.clone(),
        };
        Ok(Addresses { own, listen })
    }

    fn reach(&self, raw: &RawReach) -> Result<Reach, ConfigError> {
        let some = |key, value: &Option<Spanned<OneOrMore>>| match value {
            Some(value) => self.addresses(key, value),
            None => Ok(Vec::new()),
        };
        Ok(Reach {
            control: some("reach.control", &raw.control)?,
            replication: some("reach.replication", &raw.replication)?,
        })
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

impl NodeFile {
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
        let base = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let data_directory = match base {
            Some(base) => base.join(&raw.data_directory),
            None => raw.data_directory.clone(),
        };
        let api_socket = check
            .socket("api_socket", raw.api_socket.as_ref(), &data_directory)?
            .unwrap_or_else(|| data_directory.join("api.sock"));
        let settings = raw.tuning.apply(&check)?;
        check_pairs(&check, &raw.tuning, &settings)?;
        let control = check.own_addresses(
            ["control", "control_listen"],
            &raw.control,
            raw.control_listen.as_ref(),
        )?;
        let replication = check.own_addresses(
            ["replication", "replication_listen"],
            &raw.replication,
            raw.replication_listen.as_ref(),
        )?;
        let both = |address: &&String| control.own.contains(address);
        if let Some(address) = replication.own.iter().find(both) {
            return Err(check.error("replication", &raw.replication, address, Problem::Twice));
        }
        let mut reach = BTreeMap::new();
        for (name, addresses) in &raw.reach {
            reach.insert(check.name("reach", name)?, check.reach(addresses)?);
        }
        let nbd_tls = match raw.nbd_tls {
            Some(tls) => tls.check(&check, &data_directory)?,
            None => None,
        };
        let anywhere = raw.nbd_insecure || nbd_tls.as_ref().is_some_and(|tls| tls.required);
        Ok(Self {
            name: check.name("node", &raw.node)?,
            api_socket,
            control,
            replication,
            secure_replication: raw.tls.replication,
            reach,
            nbd_listen: nbd::listen(&check, &raw.nbd_listen, anywhere)?,
            nbd_insecure: raw.nbd_insecure,
            nbd_tls,
            nbd_socket: check.socket("nbd_socket", raw.nbd_socket.as_ref(), &data_directory)?,
            settings,
            data_directory,
        })
    }

    /// Where this node's voter keeps its promise.
    pub(crate) fn promise_path(&self) -> PathBuf {
        self.data_directory.join(crate::successor::PROMISE)
    }

    /// Where the cluster's nodes are kept, as this node last knew them.
    pub(crate) fn nodes_path(&self) -> PathBuf {
        self.data_directory.join(crate::successor::NODES)
    }

    /// Where this node's keys lie.
    pub(crate) fn keys(&self) -> PathBuf {
        controller::pki::files::directory(&self.data_directory)
    }
}

impl Config {
    /// A node that has joined a cluster.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let file = NodeFile::load(path)?;
        let identity = Identity::load(&file.keys())?;
        let known_nodes = crate::membership::load_nodes(&file)?;
        let node = identity.node();
        if let Some(entry) = known_nodes.iter().find(|entry| entry.id == node)
            && entry.name != file.name
        {
            anyhow::bail!(
                "{}: node = {:?}: this machine is {} in its cluster\n  to do: correct the name; under another name it has to leave the cluster and join anew",
                path.display(),
                file.name.as_str(),
                entry.name
            );
        }
        Ok(Self {
            node,
            cluster: identity.cluster(),
            identity,
            file,
            known_nodes,
        })
    }

    /// This node as the cluster should know it.
    pub(crate) fn entry(&self) -> Node {
        crate::membership::entry(self.node, &self.file)
    }
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
