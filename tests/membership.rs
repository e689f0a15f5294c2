//! How machines come into a cluster, and who is kept out: `init`, `token` and `join` with real daemons,
//! and tokens, certificates and connections that are not good.

mod common;

use common::command::{LOCKSTEP, output_within, text};
use common::ports::Ports;
use common::tls::Credentials;
use common::{SOON, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::Duration;
use tempfile::TempDir;

/// Machines without a cluster, counted from 1.
struct Machines {
    ports: Ports,
    daemons: Vec<(usize, Child)>,
    temporary: TempDir,
}

impl Drop for Machines {
    fn drop(&mut self) {
        for (k, child) in &mut self.daemons {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = self.temporary.path().join(format!("{k}/log"));
                eprintln!(
                    "--- {k}\n{}",
                    std::fs::read_to_string(log).unwrap_or_default()
                );
            }
        }
    }
}

impl Machines {
    fn new(count: usize) -> Self {
        let machines = Self {
            ports: Ports::take(),
            daemons: Vec::new(),
            temporary: TempDir::with_prefix("lockstep-test-").expect("a temporary directory"),
        };
        for k in 1..=count {
            std::fs::create_dir(machines.dir(k)).expect("a directory");
            machines.configure(k, &format!("node{k}"), k);
        }
        machines
    }

    /// Writes the configuration of machine `k` with the addresses of machine `place`.
    fn configure(&self, k: usize, name: &str, place: usize) {
        let text = format!(
            "node = \"{name}\"\ncontrol = [\"{}\"]\nreplication = \"{}\"\n",
            self.control(place),
            self.replication(place),
        );
        std::fs::write(self.config(k), text).expect("the configuration can be written");
    }

    fn dir(&self, k: usize) -> PathBuf {
        self.temporary.path().join(k.to_string())
    }

    fn config(&self, k: usize) -> PathBuf {
        self.dir(k).join("lockstep.toml")
    }

    fn control(&self, k: usize) -> String {
        format!("127.0.0.1:{}", self.ports.of_node(2 * k))
    }

    fn replication(&self, k: usize) -> String {
        format!("127.0.0.1:{}", self.ports.of_node(2 * k + 1))
    }

    fn run(&self, k: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(LOCKSTEP);
        command
            .args(arguments)
            .arg("--socket")
            .arg(self.dir(k).join("api.sock"));
        output_within(command, SOON)
    }

    fn must(&self, k: usize, arguments: &[&str]) -> String {
        let output = self.run(k, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn init(&self, k: usize) -> Output {
        let config = self.config(k);
        self.run(k, &["init", "--config", &config.display().to_string()])
    }

    fn join(&self, k: usize, token: &str) -> Output {
        let config = self.config(k);
        self.run(
            k,
            &["join", "--config", &config.display().to_string(), token],
        )
    }

    fn refused(&self, k: usize, token: &str, words: &str) {
        let output = self.join(k, token);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words), "{words}: {said}");
        assert!(said.contains("can't join"), "{said}");
    }

    fn start(&mut self, k: usize) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir(k).join("log"))
            .expect("a log");
        let child = Command::new(LOCKSTEP)
            .arg("daemon")
            .arg("--config")
            .arg(self.config(k))
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        self.daemons.push((k, child));
        wait_for("the daemon to answer", SOON, || {
            let output = self.run(k, &["status", "--json"]);
            if output.status.success() {
                Ok(())
            } else {
                Err(text(&output))
            }
        });
    }

    fn kill_all(&mut self) {
        for (_, mut child) in self.daemons.drain(..) {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
    }

    /// A cluster of machine 1, running.
    fn found(&mut self) {
        let output = self.init(1);
        assert!(output.status.success(), "{}", text(&output));
        self.start(1);
        self.wait_status(1, "a leader", |status| status["nodes"][0]["leader"] == true);
    }

    fn wait_status(&self, k: usize, what: &str, good: impl Fn(&serde_json::Value) -> bool) {
        wait_for(what, SOON, || {
            let text = self.must(k, &["status", "--json"]);
            let status = serde_json::from_str(&text).expect("JSON");
            if good(&status) { Ok(()) } else { Err(text) }
        });
    }
}

fn all(status: &serde_json::Value, count: usize, key: &str) -> bool {
    let nodes = status["nodes"].as_array().expect("a list of nodes");
    nodes.len() == count && nodes.iter().all(|node| node[key] == true)
}

#[test]
fn machines_join_with_a_token_each_vote_and_find_the_cluster_again_after_a_restart() {
    let mut machines = Machines::new(3);
    machines.found();
    for k in [2, 3] {
        let token = machines.must(1, &["token", "--valid", "5m"]);
        let output = machines.join(k, &token);
        assert!(output.status.success(), "{}", text(&output));
        machines.start(k);
    }
    machines.wait_status(3, "three voters", |status| {
        all(status, 3, "online") && all(status, 3, "voter")
    });
    machines.must(2, &["resource", "create", "r0", "--size", "16MiB"]);
    // Every node by itself knows who the others are.
    machines.kill_all();
    machines.start(2);
    machines.wait_status(2, "the nodes' names", |status| {
        status["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 3)
    });
    // And without the first one the two others are a cluster.
    machines.start(3);
    machines.wait_status(3, "a leader", |status| {
        let nodes = status["nodes"].as_array().expect("a list of nodes");
        nodes.iter().any(|node| node["leader"] == true)
            && status["resources"]
                .as_array()
                .is_some_and(|all| all.len() == 1)
    });
    // But only the first one has the authority's key.
    let output = machines.run(3, &["token"]);
    assert!(
        text(&output).contains("does not have the key"),
        "{}",
        text(&output)
    );
    machines.kill_all();
    // A machine that is in a cluster is not taken into another.
    let output = machines.init(3);
    assert!(
        text(&output).contains("belongs to a cluster"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_node_that_was_moved_to_other_addresses_is_found_there() {
    let mut machines = Machines::new(3);
    machines.found();
    for k in [2, 3] {
        let token = machines.must(1, &["token"]);
        assert!(machines.join(k, &token).status.success());
        machines.start(k);
    }
    machines.wait_status(1, "three voters", |status| all(status, 3, "voter"));
    machines.kill_all();
    machines.configure(3, "node3", 4);
    for k in [1, 2, 3] {
        machines.start(k);
    }
    machines.wait_status(1, "all nodes", |status| all(status, 3, "online"));
}

#[test]
fn tokens_that_are_not_good_are_refused_with_the_reason() {
    let mut machines = Machines::new(4);
    machines.found();
    let token = machines.must(1, &["token"]);
    let output = machines.join(2, &token[..token.len() - 3]);
    assert!(
        text(&output).contains("cut off or mistyped"),
        "{}",
        text(&output)
    );
    let output = machines.join(2, "hello");
    assert!(
        text(&output).contains("not a join token"),
        "{}",
        text(&output)
    );
    assert!(machines.join(2, &token).status.success());
    machines.refused(3, &token, "used already, for node 1");
    let short = machines.must(1, &["token", "--valid", "1s"]);
    std::thread::sleep(Duration::from_millis(2100));
    machines.refused(3, &short, "has expired");
    // One of another cluster that answers at the same address.
    let output = machines.init(4);
    assert!(output.status.success(), "{}", text(&output));
    machines.kill_all();
    machines.configure(4, "node4", 1);
    machines.start(4);
    machines.refused(3, &token, "belongs to another cluster");
    machines.kill_all();
    machines.refused(3, &token, "Connection refused");
}

#[test]
fn names_and_addresses_that_are_taken_are_refused_and_the_token_stays_good() {
    let mut machines = Machines::new(2);
    machines.found();
    let token = machines.must(1, &["token"]);
    machines.configure(2, "node1", 2);
    machines.refused(2, &token, "the name node1 belongs to node 0 already");
    machines.configure(2, "node2", 1);
    let words = format!("the address {} belongs to node node1", machines.control(1));
    machines.refused(2, &token, &words);
    machines.configure(2, "node2", 2);
    assert!(machines.join(2, &token).status.success());
    // Under a name that it has not joined with it does not start.
    machines.configure(2, "other", 2);
    let mut daemon = Command::new(LOCKSTEP);
    daemon.arg("daemon").arg("--config").arg(machines.config(2));
    let output = output_within(daemon, SOON);
    assert!(
        text(&output).contains("this machine is node2"),
        "{}",
        text(&output)
    );
}

/// What a server says to something that it does not like: an alert of TLS, or nothing.
fn answer_to(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).expect("a time-out");
    // It may close in the middle of it.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn nobody_talks_to_a_node_in_the_open_or_with_keys_of_another_cluster() {
    let mut machines = Machines::new(2);
    machines.found();
    assert!(machines.init(2).status.success());
    let [ours, theirs] = [1, 2].map(|k| Credentials::of(&machines.dir(k)));
    for address in [machines.control(1), machines.replication(1)] {
        let stream = TcpStream::connect(&address).expect("it listens");
        let answer = answer_to(stream, &b"GET / HTTP/1.1\r\n\r\n".repeat(100));
        assert!(answer.len() <= 7, "{answer:?}");
        assert!(ours.connect(&address, 1).is_ok());
        // They look at our certificate, we at theirs.
        let error = theirs
            .connect(&address, 1)
            .expect_err("it is another cluster");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        let error = theirs
            .posing_as(&ours)
            .connect(&address, 1)
            .and_then(|mut stream| {
                stream.read_exact(&mut [0])?;
                Ok(stream)
            });
        let error = error.expect_err("it is another cluster").to_string();
        assert!(
            error.contains("UnknownCA") || error.contains("DecryptError"),
            "{error}"
        );
    }
}

#[test]
fn a_machine_without_a_cluster_has_no_daemon_and_is_told_what_to_do() {
    let machines = Machines::new(1);
    let mut daemon = Command::new(LOCKSTEP);
    daemon.arg("daemon").arg("--config").arg(machines.config(1));
    let output = output_within(daemon, SOON);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    for words in [
        "belongs to no cluster yet",
        "lockstep init",
        "lockstep join",
    ] {
        assert!(said.contains(words), "{said}");
    }
}
