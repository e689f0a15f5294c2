//! The command line's grammar. What a command does is in `commands`.

use crate::attach::{Attached, Server, VolumeName};
use crate::operation::{AccessMode, MetadataSpec, NoQuorum, TimingsSpec};
use crate::size::{parse_duration, parse_size};
use clap::{ArgGroup, Args, Parser, Subcommand};
use std::path::PathBuf;

/// A replicated block device in userspace: disks that are mirrored synchronously over the network and used over NBD.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    /// The daemon's API socket (a path); by default /run/lockstep/api.sock
    #[arg(long, global = true, env = "LOCKSTEP_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Answer in JSON, for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A whole cluster on this machine in one command, with a mirrored disk to try
    Demo(DemoArgs),
    /// Run one node
    Daemon(DaemonArgs),
    /// Create a new cluster with its keys: once, on its first node, before its daemon is started
    Init {
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print a token that lets one machine join; on the node where the cluster was created
    Token {
        /// How long it may be used: a number with s, m, h or d behind it
        #[arg(long, default_value = "1h", value_parser = parse_duration)]
        valid: u64,
    },
    /// Make this machine a node of the token's cluster: once, before its daemon is started
    Join {
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// What `lockstep token` printed
        token: String,
        /// In the place of the node of this name, which was lost before the cluster was recovered
        #[arg(long)]
        rejoin: bool,
    },
    /// A majority of the voters is lost for good: make a new cluster of this node alone; its daemon must not run
    Recover {
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// What other nodes have written or decided without this one may be lost for good
        #[arg(long)]
        accept_data_loss: bool,
    },
    /// Nodes, resources and replicas as they are now
    Status {
        /// Only this resource
        resource: Option<String>,
        /// Show it anew every second until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// What happened on the node, and what happens (until Ctrl-C)
    Events {
        /// Stop after the events that are known already
        #[arg(long)]
        once: bool,
    },
    /// Make the cluster's time-outs, nodes and resources what a file says
    Apply {
        /// The file, in the words of `lockstep export`; - for the standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Remove resources and replicas that the file does not name; their data stay where they are
        #[arg(long)]
        prune: bool,
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the cluster's time-outs, nodes and resources for `lockstep apply` (with the fence agents' passwords)
    Export,
    /// What all nodes have to agree on
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Create, delete and list resources
    #[command(subcommand)]
    Resource(ResourceCommand),
    /// Change volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Make a node primary: it serves the resource's disks
    Promote(PromoteArgs),
    /// Stop serving: drain, flush, and leave the resource without a primary
    Demote(Target),
    /// Make another node primary: drain, flush, and go on there
    Move(Target),
    /// Say what a node is to do
    #[command(subcommand)]
    Node(NodeCommand),
    /// Allow connections to a peer again and try them now
    Connect(Target),
    /// Drop the connections to a peer and keep them down
    Disconnect(Target),
    /// Compare every block of every connected replica with the primary's, online
    Verify(VerifyArgs),
    /// Bring replicas that lack something up to date now
    Resync(Awaited),
    /// Throw away a replica's data and copy it anew
    Invalidate(InvalidateArgs),
    /// Make a volume a block device of this machine, and print the device's name
    Attach(AttachArgs),
    /// Unmake a block device that `attach` made; it must not be in use
    Detach {
        /// RESOURCE, RESOURCE/VOLUME, or the device
        target: Attached,
    },
    /// Print the metadata of a backing store (not of a running daemon's)
    DumpMetadata {
        /// The store, or its metadata file
        file: PathBuf,
        /// The size that the device had when its metadata were placed at its end, if it has grown since
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        device_size: Option<u64>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Nodes with a replica, 1 to 5
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub(crate) nodes: u8,
    /// Nodes without a replica besides those
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=4))]
    pub(crate) witnesses: u8,
    /// Size of the disk [default: 1GiB]
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Keep everything here, and start again what a demo has left here; without it a temporary directory is used and removed
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Node K serves at this port + K - 1 on 127.0.0.1
    #[arg(long, default_value_t = 10809, value_parser = clap::value_parser!(u16).range(1..=65000))]
    pub(crate) port: u16,
    /// Run this by `sh -c` with NBD_URI, NBD_URI_1..N and LOCKSTEP_DIR set, then stop and exit with its status
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// RESOURCE (its volume 0) or RESOURCE/VOLUME
    pub(crate) volume: VolumeName,
    /// The device: /dev/nbdX, with --fuse /dev/loopX; by default the first free one
    pub(crate) device: Option<PathBuf>,
    /// Without the kernel's NBD client: by nbdfuse and a loop device. It does not connect again
    #[arg(long)]
    pub(crate) fuse: bool,
    /// NBD server to connect to instead of the node's own, without asking a daemon: IP:PORT, or a unix socket's path
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) server: Option<Server>,
    /// With --server: connect again when the connection is lost. Only for follow access, and not after `promote --accept-data-loss`
    #[arg(long, requires = "server", conflicts_with = "fuse")]
    pub(crate) reconnect: bool,
    /// Connections, so that requests need not wait for each other
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) connections: u8,
    /// Logical block size: 512, 1024, 2048 or 4096 bytes
    #[arg(long, default_value_t = 4096, value_parser = block_size)]
    pub(crate) block_size: u32,
    /// A request without an answer is sent again after so many seconds, on another connection; 0: never. Longer than the cluster takes to decide that a node is lost
    #[arg(
        long,
        default_value_t = 20,
        value_name = "SECONDS",
        conflicts_with = "fuse"
    )]
    pub(crate) timeout: u32,
    /// After so many seconds without any connection requests fail, and the device ends
    #[arg(
        long,
        default_value_t = 120,
        value_name = "SECONDS",
        conflicts_with = "fuse"
    )]
    pub(crate) dead_timeout: u32,
    /// Stay until the device is detached, and tell systemd when it is there
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Started by `attach` itself: stay, but leave the terminal
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub(crate) background: bool,
}

fn block_size(word: &str) -> Result<u32, String> {
    match word.parse() {
        Ok(bytes @ (512 | 1024 | 2048 | 4096)) => Ok(bytes),
        _ => Err(format!("\"{word}\" is not 512, 1024, 2048 or 4096")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Stop when the process that started this one ends
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ResourceCommand {
    /// Create a resource and its replicas
    Create(CreateArgs),
    /// Delete a resource that has no primary; its data stay where they are
    Delete {
        /// Its name
        name: String,
    },
    /// Put a new, empty disk in the place of a replica's that is broken or gone; it is brought up to date in full
    ReplaceDisk(ReplaceDiskArgs),
    /// Change how a resource is used
    Set(SetArgs),
    /// Add a replica; it is brought up to date in full
    AddReplica {
        /// The resource
        resource: String,
        /// A node, and after a colon its files or block devices, one a volume, separated by commas
        #[arg(value_name = "NODE[:PATH,…]")]
        replica: String,
        /// Where metadata lies
        #[arg(long, value_enum, default_value_t)]
        metadata: MetadataSpec,
    },
    /// Give a replica up; its data stay where they are
    RemoveReplica {
        /// The resource
        resource: String,
        /// The replica's node
        node: String,
    },
    /// All resources and where their replicas lie
    List,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct SetArgs {
    /// The resource
    pub(crate) resource: String,
    /// Writes wait rather than go on with fewer in-sync replicas than this
    #[arg(long, group = "change")]
    pub(crate) min_redundancy: Option<u8>,
    /// Which nodes export it
    #[arg(long, value_enum, group = "change")]
    pub(crate) access: Option<AccessMode>,
    /// What clients see while no primary may answer
    #[arg(long, value_enum, group = "change")]
    pub(crate) on_no_quorum: Option<NoQuorum>,
    /// The node that becomes primary where several may; it takes nothing over from one that serves
    #[arg(
        long,
        value_name = "NODE",
        group = "change",
        conflicts_with = "prefer_nobody"
    )]
    pub(crate) prefer: Option<String>,
    /// No node is preferred any more
    #[arg(long, group = "change")]
    pub(crate) prefer_nobody: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the time-outs, or change those that are named; the lease only while no resource has a primary
    Timings(TimingsSpec),
}

#[derive(Debug, Args)]
pub(crate) struct ReplaceDiskArgs {
    /// The resource
    pub(crate) resource: String,
    /// The node whose disk is replaced
    pub(crate) node: String,
    /// The new files or block devices, one a volume; none: where the old ones were, which must be gone or empty
    pub(crate) path: Vec<String>,
    /// Where metadata lies
    #[arg(long, value_enum, default_value_t)]
    pub(crate) metadata: MetadataSpec,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name
    pub(crate) name: String,
    /// Size of a volume, for instance 100GiB; once for each volume
    #[arg(long, required = true, value_parser = parse_size)]
    pub(crate) size: Vec<u64>,
    /// A replica: a node, and after a colon its files or block devices, one a volume, separated by commas; without any: one on every node, as NAME.img in its data directory
    #[arg(long, value_name = "NODE[:PATH,…]")]
    pub(crate) replica: Vec<String>,
    /// Where metadata lies
    #[arg(long, value_enum, default_value_t)]
    pub(crate) metadata: MetadataSpec,
    /// Writes wait rather than go on with fewer in-sync replicas than this
    #[arg(long, default_value_t = 1)]
    pub(crate) min_redundancy: u8,
    /// Which nodes export it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) access: AccessMode,
    /// What clients see while no primary may answer
    #[arg(long, value_enum, default_value_t)]
    pub(crate) on_no_quorum: NoQuorum,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// It is primary of nothing; its replicas stay in sync
    Standby {
        /// The node
        node: String,
    },
    /// It takes part in everything
    Online {
        /// The node
        node: String,
    },
    /// Nothing is started, moved or stopped on its account
    Maintenance {
        /// The node
        node: String,
    },
    /// Switch it off by its fence agent
    Fence {
        /// The node
        node: String,
    },
    /// You know that it is switched off: where two nodes need each other, go on without it
    ConfirmDead {
        /// The node
        node: String,
    },
    /// How it is switched off
    Fencing(FencingArgs),
    /// Take it out of the cluster for good, dead or alive
    Remove {
        /// The node
        node: String,
        /// Give its replicas up too
        #[arg(long)]
        replicas: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct FencingArgs {
    /// The node
    pub(crate) node: String,
    /// The fence agent: an executable that reads key=value lines on its standard input
    #[arg(long, value_name = "PATH", required_unless_present = "none")]
    pub(crate) agent: Option<String>,
    /// What the agent is told, such as --set ip=10.0.0.9; the action and the node's name are added
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// An action that has not ended by then has failed, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) timeout: u32,
    /// It has no fence agent any more
    #[arg(long, conflicts_with_all = ["agent", "set"])]
    pub(crate) none: bool,
}

fn key_value(word: &str) -> Result<(String, String), String> {
    match word.split_once('=') {
        Some((key, value)) if !key.is_empty() && !word.contains('\n') => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("\"{word}\" is not KEY=VALUE")),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Grow a volume on all its replicas, online; clients that ask for the size see it
    Resize {
        /// RESOURCE, or RESOURCE/VOLUME
        volume: String,
        /// The new size, for instance 200GiB
        #[arg(value_parser = parse_size)]
        size: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The resource
    pub(crate) resource: String,
    /// The node
    pub(crate) node: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Awaited {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Show progress and return when it is done
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InvalidateArgs {
    /// The resource
    pub(crate) resource: String,
    /// The node whose replica is copied anew
    pub(crate) node: String,
    /// Show progress and return when it is done
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) awaited: Awaited,
    /// Write the primary's bytes where a replica differs
    #[arg(long)]
    pub(crate) repair: bool,
    /// Stop the verify that is under way
    #[arg(long, conflicts_with_all = ["repair", "wait"])]
    pub(crate) stop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Take this node's data as the truth, whatever newer data other replicas hold: last resort
    #[arg(long)]
    pub(crate) accept_data_loss: bool,
    /// With --accept-data-loss: you know that this node, the old primary, is switched off
    #[arg(long, value_name = "NODE", requires = "accept_data_loss")]
    pub(crate) confirm_dead: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_command_line_is_taken() {
        for line in [
            "lockstep demo",
            "lockstep demo --nodes 3 --witnesses 0 --size 1GiB --dir DIR --port 10809 --exec CMD",
            "lockstep daemon --config lockstep.toml",
            "lockstep init --config lockstep.toml",
            "lockstep token",
            "lockstep token --valid 10m",
            "lockstep join --config lockstep.toml lsjoin1_x",
            "lockstep join --config lockstep.toml lsjoin1_x --rejoin",
            "lockstep recover --config lockstep.toml",
            "lockstep recover --config lockstep.toml --accept-data-loss",
            "lockstep status",
            "lockstep status r0 --json --watch",
            "lockstep --socket S status",
            "lockstep status --socket S",
            "lockstep events --json",
            "lockstep resource create r0 --size 1GiB",
            "lockstep resource create r0 --size 1GiB --size 2GiB --replica n1:/dev/sdb,/dev/sdc --replica n2 --min-redundancy 2 --metadata internal",
            "lockstep resource delete r0",
            "lockstep resource replace-disk r0 node2",
            "lockstep resource replace-disk r0 node2 /dev/sdd --metadata internal",
            "lockstep resource list --json",
            "lockstep resource set r0 --min-redundancy 2 --access follow --on-no-quorum error --prefer node2",
            "lockstep resource set r0 --prefer-nobody",
            "lockstep resource add-replica r0 node4:/dev/sdb --metadata internal",
            "lockstep resource remove-replica r0 node4",
            "lockstep apply -f cluster.toml --prune --dry-run",
            "lockstep export",
            "lockstep cluster timings",
            "lockstep cluster timings --lease-ms 1000 --election-ms 400 --drift-percent 2 --fence-delay-ms 8000",
            "lockstep node remove node3 --replicas",
            "lockstep volume resize r0 2GiB",
            "lockstep volume resize r0/1 2GiB",
            "lockstep promote r0",
            "lockstep promote r0 node2",
            "lockstep promote r0 node2 --accept-data-loss --confirm-dead node1",
            "lockstep demote r0 node1",
            "lockstep move r0",
            "lockstep move r0 node2",
            "lockstep node standby node1",
            "lockstep node online node1",
            "lockstep node maintenance node1",
            "lockstep node fence node1",
            "lockstep node confirm-dead node1",
            "lockstep node fencing node1 --agent /usr/sbin/fence_ipmilan --set ip=10.0.0.9 --set lanplus=1 --timeout 30",
            "lockstep node fencing node1 --none",
            "lockstep connect r0",
            "lockstep disconnect r0 node2",
            "lockstep verify r0 --repair --wait",
            "lockstep verify r0 --stop",
            "lockstep resync r0 node2 --wait",
            "lockstep invalidate r0 node2",
            "lockstep dump-metadata r0.img",
            "lockstep attach r0",
            "lockstep attach r0/1 /dev/nbd3 --connections 2 --block-size 512 --timeout 5 --dead-timeout 60 --foreground",
            "lockstep attach r0 /dev/loop7 --fuse",
            "lockstep attach r0 --server 10.0.0.1:10809 --reconnect",
            "lockstep attach r0 --server /run/nbd.sock --fuse",
            "lockstep detach r0/1",
            "lockstep detach /dev/nbd3",
            "lockstep dump-metadata /dev/sdb --device-size 100GiB",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_word_on_it() {
        for (line, word) in [
            ("lockstep", "Usage"),
            ("lockstep frobnicate", "frobnicate"),
            ("lockstep demo --nodes 0", "0 is not in 1..=5"),
            ("lockstep demo --nodes 9", "9 is not in 1..=5"),
            ("lockstep demo --size big", "\"big\" is not a size"),
            ("lockstep demo --port 0", "0 is not in 1..=65000"),
            ("lockstep resource create r0", "--size"),
            ("lockstep promote", "<RESOURCE>"),
            ("lockstep apply", "--file"),
            ("lockstep resource set r0", "--access"),
            (
                "lockstep resource set r0 --prefer n --prefer-nobody",
                "--prefer",
            ),
            ("lockstep cluster timings --lease-ms soon", "soon"),
            (
                "lockstep promote r0 n --confirm-dead m",
                "--accept-data-loss",
            ),
            ("lockstep verify r0 --stop --repair", "--repair"),
            ("lockstep invalidate r0", "<NODE>"),
            ("lockstep daemon", "--config"),
            ("lockstep attach", "<VOLUME>"),
            ("lockstep attach r0/x", "\"r0/x\" is not a volume"),
            (
                "lockstep attach r0 --server alpha",
                "\"alpha\" is not an address",
            ),
            ("lockstep attach r0 --reconnect", "--server"),
            (
                "lockstep attach r0 --block-size 4095",
                "\"4095\" is not 512",
            ),
            ("lockstep attach r0 --fuse --timeout 3", "--timeout"),
            ("lockstep detach", "<TARGET>"),
            ("lockstep recover", "--config"),
            ("lockstep join --config lockstep.toml", "<TOKEN>"),
            ("lockstep token --valid soon", "\"soon\" is not a time"),
            ("lockstep node fencing node1", "--agent"),
            (
                "lockstep node fencing node1 --agent /a --set ip",
                "KEY=VALUE",
            ),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
