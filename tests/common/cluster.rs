//! A cluster of real daemons in a temporary directory. `lockstep demo` lays it out; then every node
//! runs as a child of the test, which can kill, freeze and restart it.

use super::command::{LOCKSTEP, kill, lockstep, output_within, text};
use super::fio::Fio;
use super::lab::Lab;
use super::nbd::Client;
use super::ports::Ports;
use super::status::{Resource, Status};
use super::{SOON, wait_for};
use nix::sys::signal::Signal;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use tempfile::TempDir;

/// As much of a node's log as is shown when a test fails.
const LOG_TAIL_BYTES: usize = 8 << 10;

/// One node.
#[derive(Debug)]
struct Node {
    dir: PathBuf,
    process: Option<Child>,
}

/// A cluster with resource r0. Nodes are counted from 1; witnesses, which have no replica, come last.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    /// How many of them have a replica.
    replicas: usize,
    ports: Ports,
    /// The network between the nodes, where a test can cut it.
    lab: Option<Lab>,
    /// File systems that were mounted for this cluster.
    mounts: Vec<PathBuf>,
    /// Size of r0.
    pub(crate) size_bytes: u64,
    // Last, so that the directory goes after everything in it has ended.
    temporary: TempDir,
}

/// The name of node `k`.
pub(crate) fn name(k: usize) -> String {
    format!("node{k}")
}

/// An address in a configuration file: `control` or `replication`.
pub(crate) fn address_in(config: &Path, key: &str) -> String {
    let text = std::fs::read_to_string(config).expect("a configuration");
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(&format!("{key} = ")));
    value
        .expect("the key is there")
        .trim_matches('"')
        .to_owned()
}

impl Cluster {
    /// Lays out a cluster that goes on without any one of its nodes: two get a witness. No node runs.
    pub(crate) fn new(replicas: usize, size_bytes: u64) -> Self {
        Self::with_witnesses(replicas, usize::from(replicas == 2), size_bytes)
    }

    /// The same with so many witnesses.
    pub(crate) fn with_witnesses(replicas: usize, witnesses: usize, size_bytes: u64) -> Self {
        let cluster = Self::empty(replicas, witnesses, size_bytes, None);
        let dir = cluster.temporary.path().join("c");
        let output = lockstep([
            "demo".as_ref(),
            "--nodes".as_ref(),
            replicas.to_string().as_ref(),
            "--witnesses".as_ref(),
            witnesses.to_string().as_ref(),
            "--size".as_ref(),
            size_bytes.to_string().as_ref(),
            "--dir".as_ref(),
            dir.as_os_str(),
            "--port".as_ref(),
            cluster.ports.of_node(1).to_string().as_ref(),
            "--exec".as_ref(),
            "true".as_ref(),
        ]);
        assert!(output.status.success(), "demo: {}", text(&output));
        cluster
    }

    fn empty(replicas: usize, witnesses: usize, size_bytes: u64, lab: Option<Lab>) -> Self {
        let temporary = TempDir::with_prefix("lockstep-test-").expect("a temporary directory");
        let nodes = (1..=replicas + witnesses).map(|k| Node {
            dir: temporary.path().join("c").join(name(k)),
            process: None,
        });
        Self {
            nodes: nodes.collect(),
            replicas,
            ports: Ports::take(),
            lab,
            mounts: Vec::new(),
            size_bytes,
            temporary,
        }
    }

    /// A running cluster whose nodes have machines of their own, as far as the network goes: node 1 is
    /// primary, all replicas are in sync. Set up as an operator would: init, token, join.
    pub(crate) fn in_a_lab(replicas: usize, witnesses: usize, size_bytes: u64) -> Self {
        let count = replicas + witnesses;
        let mut cluster = Self::empty(replicas, witnesses, size_bytes, Some(Lab::new(count)));
        for k in 1..=count {
            std::fs::create_dir_all(cluster.dir(k)).expect("a directory can be made");
            let ip = Lab::ip(k);
            let text = format!(
                "node = \"{}\"\ncontrol = \"{ip}:7788\"\nreplication = \"{ip}:7789\"\nnbd_socket = \"nbd.sock\"\n",
                name(k)
            );
            std::fs::write(cluster.file(k, "lockstep.toml"), text).expect("a configuration");
            let config = cluster.file(k, "lockstep.toml");
            let config = config.to_str().expect("a plain path");
            if k == 1 {
                cluster.run(k, &["init", "--config", config]);
            } else {
                let token = cluster.must(1, &["token"]);
                cluster.run(k, &["join", "--config", config, token.trim()]);
            }
            cluster.start_node(k);
        }
        wait_for("every node to have a vote", SOON, || {
            let status = cluster.try_status(1)?;
            let votes = status.nodes.iter().filter(|node| node.voter).count();
            if votes == count {
                Ok(())
            } else {
                Err(format!("{votes} of {count} vote"))
            }
        });
        let size = size_bytes.to_string();
        let holders: Vec<String> = (1..=replicas)
            .map(|k| format!("--replica={}", name(k)))
            .collect();
        let mut create = vec!["resource", "create", "r0", "--size", &size];
        create.extend(holders.iter().map(String::as_str));
        cluster.must(1, &create);
        cluster.promote(1);
        cluster.wait_all_in_sync();
        cluster
    }

    /// Runs a command as on the machine of node `k`, without its daemon.
    fn run(&self, k: usize, arguments: &[&str]) {
        let mut command = self.lab().command(k, LOCKSTEP);
        command.args(arguments);
        let output = output_within(command, SOON);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }

    /// The network between the nodes.
    pub(crate) fn lab(&self) -> &Lab {
        let lab = self.lab.as_ref();
        lab.expect("the cluster was started with in_a_lab")
    }

    /// Changes the configuration file of node `k`; it counts from the next start.
    pub(crate) fn change_config(&self, k: usize, change: impl FnOnce(String) -> String) {
        let path = self.file(k, "lockstep.toml");
        let text = std::fs::read_to_string(&path).expect("the configuration can be read");
        std::fs::write(&path, change(text)).expect("the configuration can be written");
    }

    /// An address in the configuration of node `k`: `control` or `replication`.
    pub(crate) fn address(&self, k: usize, key: &str) -> String {
        address_in(&self.file(k, "lockstep.toml"), key)
    }

    /// A running cluster: node 1 is primary, all replicas are in sync.
    pub(crate) fn start(nodes: usize, size_bytes: u64) -> Self {
        let mut cluster = Self::new(nodes, size_bytes);
        cluster.start_all();
        cluster
    }

    /// Starts every node, makes node 1 primary and waits until all replicas are in sync.
    pub(crate) fn start_all(&mut self) {
        for k in 1..=self.nodes.len() {
            let command = self.daemon_command(k);
            self.spawn_node(k, command);
        }
        for k in 1..=self.nodes.len() {
            self.wait_answering(k);
        }
        self.promote(1);
        self.wait_all_in_sync();
    }

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The directory of node `k`.
    pub(crate) fn dir(&self, k: usize) -> &Path {
        &self.nodes[k - 1].dir
    }

    /// A file of node `k`.
    pub(crate) fn file(&self, k: usize, file: &str) -> PathBuf {
        self.dir(k).join(file)
    }

    /// The port on which node `k` exports r0.
    pub(crate) fn port(&self, k: usize) -> u16 {
        self.ports.of_node(k)
    }

    /// r0 as exported by node `k`.
    pub(crate) fn uri(&self, k: usize) -> String {
        match &self.lab {
            None => format!("nbd://127.0.0.1:{}/r0", self.port(k)),
            Some(_) => format!(
                "nbd+unix:///r0?socket={}",
                self.file(k, "nbd.sock").display()
            ),
        }
    }

    /// Opens r0 on node `k`, if it is exported there.
    pub(crate) fn try_client(&self, k: usize) -> std::io::Result<Client> {
        match &self.lab {
            None => Client::connect(self.port(k), "r0"),
            Some(_) => Client::connect_unix(&self.file(k, "nbd.sock"), "r0"),
        }
    }

    /// An fio job on the export of node `k`.
    pub(crate) fn fio(&self, k: usize, offset_bytes: u64, size_bytes: u64) -> Fio {
        Fio {
            uri: self.uri(k),
            offset_bytes,
            size_bytes,
            seed: 1,
        }
    }

    /// A connection to r0 on node `k`, which must serve it.
    pub(crate) fn client(&self, k: usize) -> Client {
        wait_for("the export to open", SOON, || {
            self.try_client(k).map_err(|error| error.to_string())
        })
    }

    // --- processes ---------------------------------------------------------------------------

    /// The command that runs node `k`.
    pub(crate) fn daemon_command(&self, k: usize) -> Command {
        let mut command = match &self.lab {
            None => Command::new(LOCKSTEP),
            Some(lab) => lab.command(k, LOCKSTEP),
        };
        command
            .arg("daemon")
            .arg("--config")
            .arg(self.file(k, "lockstep.toml"));
        command
    }

    /// Starts node `k` and waits until it answers.
    pub(crate) fn start_node(&mut self, k: usize) {
        let command = self.daemon_command(k);
        self.start_node_with(k, command, || ());
    }

    /// The same by another command that becomes the daemon, perhaps only after something was done.
    pub(crate) fn start_node_with(&mut self, k: usize, command: Command, then: impl FnOnce()) {
        self.spawn_node(k, command);
        then();
        self.wait_answering(k);
    }

    fn spawn_node(&mut self, k: usize, mut command: Command) {
        assert!(self.nodes[k - 1].process.is_none(), "node {k} runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.file(k, "log"))
            .expect("the node's log can be opened");
        let child = command
            .stdout(log.try_clone().expect("the log's descriptor can be copied"))
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        self.nodes[k - 1].process = Some(child);
    }

    fn wait_answering(&mut self, k: usize) {
        wait_for(&format!("node {k} to answer"), SOON, || {
            let child = self.nodes[k - 1].process.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                panic!("node {k} ended: {status}\n{}", self.log_tail(k));
            }
            self.try_status(k)
        });
    }

    fn child(&mut self, k: usize) -> Child {
        let process = self.nodes[k - 1].process.take();
        process.unwrap_or_else(|| panic!("node {k} does not run"))
    }

    /// kill -9 of node `k`.
    pub(crate) fn kill_node(&mut self, k: usize) {
        let mut child = self.child(k);
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// kill -9 of all nodes that run, all of them before the first is waited for.
    pub(crate) fn kill_all(&mut self) {
        let mut children: Vec<Child> = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.process.take())
            .collect();
        for child in &mut children {
            child.kill().expect("a child can be killed");
        }
        for child in &mut children {
            child.wait().expect("a child can be waited for");
        }
    }

    /// Stops node `k` as an operator would (SIGTERM).
    pub(crate) fn stop_node(&mut self, k: usize) -> ExitStatus {
        let mut child = self.child(k);
        kill(child.id(), Signal::SIGTERM);
        wait_for(&format!("node {k} to end after SIGTERM"), SOON, || {
            let status = child.try_wait().expect("a child can be waited for");
            status.ok_or_else(|| "it runs".to_owned())
        })
    }

    /// Stops all nodes as an operator would, secondaries first.
    pub(crate) fn stop_all(&mut self) {
        for k in (1..=self.nodes.len()).rev() {
            if self.nodes[k - 1].process.is_some() {
                let status = self.stop_node(k);
                assert!(
                    status.success(),
                    "node {k} ended with {status}\n{}",
                    self.log_tail(k)
                );
            }
        }
    }

    /// Freezes node `k`: it holds its connections and does nothing.
    pub(crate) fn freeze_node(&self, k: usize) {
        kill(self.pid(k), Signal::SIGSTOP);
    }

    /// Lets node `k` go on.
    pub(crate) fn thaw_node(&self, k: usize) {
        kill(self.pid(k), Signal::SIGCONT);
    }

    fn pid(&self, k: usize) -> u32 {
        let process = self.nodes[k - 1].process.as_ref();
        process
            .unwrap_or_else(|| panic!("node {k} does not run"))
            .id()
    }

    // --- commands ----------------------------------------------------------------------------

    /// Runs a command against node `k`.
    pub(crate) fn command(&self, k: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(LOCKSTEP);
        command
            .args(arguments)
            .arg("--socket")
            .arg(self.file(k, "api.sock"));
        output_within(command, SOON)
    }

    /// Runs a command that must succeed against node `k`, and gives what it said.
    pub(crate) fn must(&self, k: usize, arguments: &[&str]) -> String {
        let output = self.command(k, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command that must be refused by node `k`, and gives the reason that it told.
    pub(crate) fn refusal(&self, k: usize, arguments: &[&str]) -> String {
        let output = self.command(k, arguments);
        assert!(!output.status.success(), "{arguments:?} was not refused");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Sentences of the events of node `k` that have this word.
    pub(crate) fn events(&self, k: usize, event: &str) -> Vec<String> {
        let all = self.must(k, &["events", "--once", "--json"]);
        all.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON"))
            .filter(|each| each["event"] == event)
            .map(|each| each["text"].as_str().expect("a sentence").to_owned())
            .collect()
    }

    /// Memory of the daemon of node `k`, in bytes.
    pub(crate) fn memory_bytes(&self, k: usize) -> u64 {
        let path = format!("/proc/{}/status", self.pid(k));
        let status = std::fs::read_to_string(path).expect("the daemon runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("a number of kB") * 1024
    }

    /// What node `k` says of a resource.
    pub(crate) fn resource(&self, k: usize, name: &str) -> Option<Resource> {
        self.try_status(k).ok()?.resource(name).cloned()
    }

    /// Waits until all replicas of a resource are in sync.
    pub(crate) fn wait_in_sync(&self, resource: &str, nodes: &[usize]) {
        wait_for("the resource to be in sync", SOON, || {
            let found = self.resource(1, resource);
            match found {
                Some(found) if found.all_in_sync(nodes.iter().map(|&k| name(k))) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// A node that runs.
    pub(crate) fn running(&self) -> usize {
        let place = self.nodes.iter().position(|node| node.process.is_some());
        place.expect("a node runs") + 1
    }

    /// The number of the node that serves r0, once one does, as node `asked` sees it.
    pub(crate) fn wait_primary(
        &self,
        asked: usize,
        what: &str,
        good: impl Fn(usize) -> bool,
    ) -> usize {
        wait_for(what, SOON, || {
            let r0 = self.r0(asked);
            let number = r0
                .primary
                .as_deref()
                .and_then(|name| name.strip_prefix("node"));
            let number = number.and_then(|number| number.parse().ok());
            match number {
                Some(k) if good(k) && r0.replica(&name(k)).role == "Primary" => Ok(k),
                _ => Err(format!("{r0:?}")),
            }
        })
    }

    fn try_status(&self, k: usize) -> Result<Status, String> {
        let output = self.command(k, &["status", "--json"]);
        if !output.status.success() {
            return Err(text(&output));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error} in: {}", text(&output)))
    }

    /// What node `k` says of r0.
    pub(crate) fn r0(&self, k: usize) -> Resource {
        let status = self.try_status(k);
        status
            .unwrap_or_else(|error| panic!("status of node {k}: {error}"))
            .r0()
            .clone()
    }

    /// Waits until what node `k` says of r0 fulfils a condition, and returns that.
    pub(crate) fn wait(
        &self,
        k: usize,
        what: &str,
        condition: impl Fn(&Resource) -> bool,
    ) -> Resource {
        wait_for(what, SOON, || {
            let r0 = self.r0(k);
            if condition(&r0) {
                Ok(r0)
            } else {
                Err(format!("{r0:?}"))
            }
        })
    }

    /// Makes node `k` primary, whoever is. A cluster that has just started may refuse for a moment.
    pub(crate) fn promote(&self, k: usize) {
        wait_for(&format!("node {k} to become primary"), SOON, || {
            let output = self.command(self.running(), &["move", "r0", &name(k)]);
            if output.status.success() {
                Ok(())
            } else {
                Err(text(&output))
            }
        });
        // It serves once it has heard of all others, or waited for those that are away.
        self.wait(self.running(), "the new primary to serve", |r0| {
            r0.primary.as_deref() == Some(&name(k)) && r0.replica(&name(k)).role == "Primary"
        });
    }

    /// Waits until all replicas are in sync with nothing left to copy.
    pub(crate) fn wait_all_in_sync(&self) {
        self.wait(self.running(), "all replicas to be in sync", |r0| {
            r0.all_in_sync((1..=self.replicas).map(name))
        });
    }

    /// Waits until node `k` was dropped from the in-sync set, as node `asked` sees it.
    pub(crate) fn wait_evicted(&self, asked: usize, k: usize) {
        self.wait(asked, &format!("node {k} to be evicted"), |r0| {
            !r0.is_in_sync(&name(k))
        });
    }

    // --- disks -------------------------------------------------------------------------------

    /// Stops all nodes and asserts that every replica holds the very same bytes.
    pub(crate) fn stop_and_compare_replicas(&mut self) {
        self.wait_all_in_sync();
        self.stop_all();
        for k in 2..=self.replicas {
            self.compare_files(1, k, "r0.img", self.size_bytes);
        }
    }

    /// Asserts that two nodes hold the very same bytes.
    pub(crate) fn compare_files(&self, a: usize, b: usize, file: &str, size_bytes: u64) {
        let open = |k| {
            File::open(self.file(k, file))
                .expect("a backing file")
                .take(size_bytes)
        };
        let (mut first, mut second) = (open(a), open(b));
        let mut offset = 0;
        loop {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            let read = |file: &mut std::io::Take<File>, into: &mut Vec<u8>| {
                file.by_ref()
                    .take(1 << 20)
                    .read_to_end(into)
                    .expect("a backing file can be read")
            };
            let (read_a, read_b) = (read(&mut first, &mut left), read(&mut second, &mut right));
            assert_eq!(
                read_a, read_b,
                "backing files of nodes {a} and {b} end at different places"
            );
            if let Some(at) = left.iter().zip(&right).position(|(x, y)| x != y) {
                panic!(
                    "replicas of nodes {a} and {b} differ at byte {}",
                    offset + at
                );
            }
            if read_a == 0 {
                break;
            }
            offset += read_a;
        }
        let expected = usize::try_from(size_bytes).expect("fits");
        assert_eq!(
            offset, expected,
            "backing files are shorter than the volume"
        );
    }

    /// Bytes that a file of node `k` takes on its file system.
    pub(crate) fn allocated_bytes(&self, k: usize, file: &str) -> u64 {
        let metadata = std::fs::metadata(self.file(k, file)).expect("the file is there");
        metadata.blocks() * 512
    }

    /// The files of r0 in the directory of node `k`: data and metadata.
    pub(crate) fn store_files(&self, k: usize) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir(k)).expect("the node's directory");
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.expect("a directory entry").path())
            .filter(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("r0."))
            })
            .collect();
        files.sort();
        assert!(
            files.contains(&self.file(k, "r0.img")),
            "no r0.img among {files:?}"
        );
        files
    }

    /// Puts the directory of node `k`, which must not run, on a file system of this size.
    pub(crate) fn move_to_small_file_system(&mut self, k: usize, size_bytes: u64) {
        let dir = self.dir(k).to_owned();
        let aside = dir.with_extension("aside");
        std::fs::rename(&dir, &aside).expect("a directory can be renamed");
        std::fs::create_dir(&dir).expect("a directory can be made");
        let run = |command: &mut Command| {
            let output = command.output().expect("the command is there");
            assert!(
                output.status.success(),
                "{command:?} (needs root): {}",
                text(&output)
            );
        };
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_bytes}"), "tmpfs"])
            .arg(&dir));
        self.mounts.push(dir.clone());
        run(Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(aside.join("."))
            .arg(&dir));
    }

    fn log_tail(&self, k: usize) -> String {
        let log = std::fs::read(self.file(k, "log")).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        format!("--- log of node {k}\n{}", String::from_utf8_lossy(tail))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.process.take() {
                // It may have ended by itself; SIGKILL ends a frozen process too.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            eprintln!("--- cluster in {}", self.temporary.path().display());
            for k in 1..=self.nodes.len() {
                eprintln!("{}", self.log_tail(k));
            }
        }
        for mount in &self.mounts {
            let _ = Command::new("umount").arg(mount).status();
        }
    }
}
