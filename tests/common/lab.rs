//! A network of its own for the nodes of a cluster: a namespace for each node, with a link to a bridge
//! in another one, so that packets can be lost one way, both ways or between two nodes only. Clients
//! come over unix sockets, which namespaces don't separate. Needs root, `ip` and `nft`.

use super::command::{output_within, text};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longer than any of the tools takes.
const TOOL_LIMIT: Duration = Duration::from_secs(20);

/// Namespaces of one cluster; nodes are counted from 1.
#[derive(Debug)]
pub(crate) struct Lab {
    prefix: String,
    nodes: usize,
}

/// Packets from one node to another are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) from: usize,
    pub(crate) to: usize,
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(arguments[0]);
    command.args(&arguments[1..]);
    output_within(command, TOOL_LIMIT)
}

fn must(arguments: &[&str]) {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
}

impl Lab {
    /// Makes the namespaces and links.
    pub(crate) fn new(nodes: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            prefix: format!("ls{}x{number}", std::process::id()),
            nodes,
        };
        let hub = lab.hub();
        must(&["ip", "netns", "add", &hub]);
        must(&["ip", "-n", &hub, "link", "add", "br0", "type", "bridge"]);
        must(&["ip", "-n", &hub, "link", "set", "br0", "up"]);
        for k in 1..=nodes {
            let (node, port) = (lab.namespace(k), format!("p{k}"));
            must(&["ip", "netns", "add", &node]);
            must(&[
                "ip", "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &node,
            ]);
            must(&[
                "ip", "-n", &hub, "link", "set", &port, "master", "br0", "up",
            ]);
            let address = format!("{}/24", Self::ip(k));
            must(&["ip", "-n", &node, "addr", "add", &address, "dev", "eth0"]);
            must(&["ip", "-n", &node, "link", "set", "eth0", "up"]);
            must(&["ip", "-n", &node, "link", "set", "lo", "up"]);
            lab.nft(k, &["add", "table", "ip", "cut"]);
            lab.nft(
                k,
                &[
                    "add",
                    "chain",
                    "ip",
                    "cut",
                    "in",
                    "{ type filter hook input priority 0 ; }",
                ],
            );
        }
        lab
    }

    fn hub(&self) -> String {
        format!("{}h", self.prefix)
    }

    fn namespace(&self, k: usize) -> String {
        format!("{}n{k}", self.prefix)
    }

    fn nft(&self, k: usize, arguments: &[&str]) {
        let namespace = self.namespace(k);
        let mut all = vec!["ip", "netns", "exec", &namespace, "nft"];
        all.extend(arguments);
        must(&all);
    }

    /// The address of node `k`.
    pub(crate) fn ip(k: usize) -> String {
        format!("10.77.0.{k}")
    }

    /// Runs a program in the namespace of node `k`.
    pub(crate) fn command(&self, k: usize, program: &str) -> Command {
        // `exec` replaces itself by the program, so that the child's pid is the program's.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(k), program]);
        command
    }

    /// From now on exactly these packets are lost, silently.
    pub(crate) fn set_cuts(&self, cuts: &[Cut]) {
        for k in 1..=self.nodes {
            self.nft(k, &["flush", "chain", "ip", "cut", "in"]);
            for cut in cuts.iter().filter(|cut| cut.to == k) {
                let from = Self::ip(cut.from);
                self.nft(
                    k,
                    &[
                        "add", "rule", "ip", "cut", "in", "ip", "saddr", &from, "drop",
                    ],
                );
            }
        }
    }

    /// From now on nodes `a` and `b` lose each other's packets of this kind (`tcp dport 7789`), both ways,
    /// silently: what is connected stays so and brings nothing.
    pub(crate) fn blackhole(&self, a: usize, b: usize, kinds: &[&[&str]]) {
        for (to, from) in [(a, Self::ip(b)), (b, Self::ip(a))] {
            for kind in kinds {
                let rule = ["add", "rule", "ip", "cut", "in", "ip", "saddr", &from];
                self.nft(to, &[&rule[..], kind, &["drop"]].concat());
            }
        }
    }

    /// Node `k` hears nobody, or everybody again: done by one command, for short cuts.
    pub(crate) fn set_deaf(&self, k: usize, deaf: bool) {
        if deaf {
            self.nft(k, &["add", "rule", "ip", "cut", "in", "drop"]);
        } else {
            self.nft(k, &["flush", "chain", "ip", "cut", "in"]);
        }
    }

    /// Node `k` hears nobody and nobody hears it.
    pub(crate) fn cut_off(&self, k: usize) {
        let others = (1..=self.nodes).filter(|&other| other != k);
        let cuts: Vec<Cut> = others
            .flat_map(|other| [Cut { from: k, to: other }, Cut { from: other, to: k }])
            .collect();
        self.set_cuts(&cuts);
    }

    /// Two nodes don't hear each other; all others do.
    pub(crate) fn cut_between(&self, a: usize, b: usize) {
        self.set_cuts(&[Cut { from: a, to: b }, Cut { from: b, to: a }]);
    }

    /// Everything passes.
    pub(crate) fn heal(&self) {
        self.set_cuts(&[]);
    }

    /// Takes the link of node `k` down or up, as when a cable is pulled.
    pub(crate) fn set_link(&self, k: usize, up: bool) {
        let (hub, port) = (self.hub(), format!("p{k}"));
        let state = if up { "up" } else { "down" };
        must(&["ip", "-n", &hub, "link", "set", &port, state]);
    }

    /// Limits what node `k` sends, in kbit/s; `None`: no limit.
    pub(crate) fn set_rate(&self, k: usize, kbit: Option<u32>) {
        let namespace = self.namespace(k);
        let tc = ["tc", "-n", &namespace, "qdisc"];
        // There may be none to remove.
        run(&[&tc[..], &["del", "dev", "eth0", "root"]].concat());
        if let Some(kbit) = kbit {
            let rate = format!("{kbit}kbit");
            must(
                &[
                    &tc[..],
                    &[
                        "add", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "32kbit",
                        "latency", "400ms",
                    ],
                ]
                .concat(),
            );
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let nodes = (1..=self.nodes).map(|k| self.namespace(k));
        for namespace in nodes.chain([self.hub()]) {
            // What is left of it goes with the last process in it.
            run(&["ip", "netns", "del", &namespace]);
        }
    }
}
