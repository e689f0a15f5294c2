//! Has nodes switched off by their fence agents, and passes on what became of it. An agent is any
//! executable that reads `key=value` lines on its standard input (the fence agents' protocol): `action=off`
//! must end with 0, then `action=status` with 2 ("off"). What takes too long has failed.

use super::beacons::FailoverHandle;
use super::voter::{Input, Known};
use crate::core::Fencing;
use crate::core::consensus::NotAlone;
use std::fmt::Write;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use vocabulary::NodeId;

/// Tries within an agent's time limit.
const TRIES: u32 = 3;
/// Pause between tries, and between looks whether a node is off.
const PAUSE: Duration = Duration::from_millis(500);
/// What an agent's `status` ends with when the node is off.
const STATUS_OFF: i32 = 2;

/// Something about a node that is, or is to be, switched off.
#[derive(Debug)]
pub(super) enum Order {
    /// Switch it off.
    Fence(NodeId, Option<oneshot::Sender<Result<(), FenceError>>>),
    /// An operator says that it is off.
    Confirm(NodeId, oneshot::Sender<Result<(), FenceError>>),
}

/// Why a node does not count as switched off.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The configuration does not know the node.
    #[error("node {0} is not in the cluster")]
    Unknown(NodeId),
    /// It has no agent.
    #[error("no fence agent is configured for it")]
    NoAgent,
    /// The agent can't be started.
    #[error("{agent} can't be started: {source}")]
    Start {
        /// The executable.
        agent: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{agent} has failed ({code:?}): {said}")]
    Failed {
        /// The executable.
        agent: String,
        /// Its exit code.
        code: Option<i32>,
        /// Its last line on standard error.
        said: String,
    },
    /// It took too long.
    #[error("{agent} has not ended within {limit_s} s")]
    TimedOut {
        /// The executable.
        agent: String,
        /// The limit.
        limit_s: u32,
    },
    /// It said that it has done it, and the node is not off.
    #[error("{agent} says that the node is still on")]
    StillOn {
        /// The executable.
        agent: String,
    },
    /// The node is off, and this one may not go on alone all the same.
    #[error(transparent)]
    NotAlone(#[from] NotAlone),
    /// The controller stops.
    #[error("this node stops")]
    Stopping,
}

pub(super) struct Fencer {
    pub(super) known: Known,
    pub(super) voter: Option<mpsc::Sender<Input>>,
    pub(super) failover: FailoverHandle,
}

impl Fencer {
    /// Carries out orders, one after the other, until there are no more.
    pub(super) async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            let (node, answer, result) = match order {
                Order::Fence(node, answer) => (node, answer, self.fence(node).await),
                Order::Confirm(node, answer) => {
                    tracing::warn!(%node, "an operator says that the node is off");
                    (node, Some(answer), Ok(()))
                }
            };
            let result = match result {
                Ok(()) => {
                    self.failover.fenced(node);
                    self.go_on_without(node).await
                }
                Err(error) => {
                    tracing::error!(%node, %error, "the node could not be switched off");
                    self.failover.fence_failed(node);
                    Err(error)
                }
            };
            if let Some(answer) = answer {
                // Whoever asked may have given up.
                let _ = answer.send(result);
            }
        }
    }

    /// Where the node is the other one of two voters, this one goes on alone.
    async fn go_on_without(&self, node: NodeId) -> Result<(), FenceError> {
        let document = self.known.documents.borrow().clone();
        let Some(document) = document.filter(|document| document.voters.len() == 2) else {
            return Ok(());
        };
        let lost = document.voters.iter().find(|voter| voter.node == node);
        let (Some(lost), Some(voter)) = (lost, &self.voter) else {
            return Ok(());
        };
        if self.known.leader.borrow().is_some() {
            // A majority is there: nothing has to be decided without one.
            return Ok(());
        }
        let (answer, done) = oneshot::channel();
        let input = Input::Fenced {
            voter: lost.id,
            answer,
        };
        voter.send(input).await.map_err(|_| FenceError::Stopping)?;
        Ok(done.await.map_err(|_| FenceError::Stopping)??)
    }

    async fn fence(&self, node: NodeId) -> Result<(), FenceError> {
        let document = self.known.documents.borrow().clone();
        let found = document.as_ref().and_then(|document| document.node(node));
        let found = found.ok_or(FenceError::Unknown(node))?;
        let fencing = found.fencing.clone().ok_or(FenceError::NoAgent)?;
        let name = found.name.to_string();
        tracing::warn!(node = %name, agent = %fencing.agent, "the node is being switched off");
        let limit_s = fencing.timeout_s;
        let deadline = Instant::now() + Duration::from_secs(u64::from(limit_s));
        let mut last = Ok(());
        for _ in 0..TRIES {
            last = off(&fencing, &name, deadline).await;
            if last.is_ok() || Instant::now() >= deadline {
                break;
            }
            sleep(PAUSE).await;
        }
        last?;
        tracing::warn!(node = %name, "the node is switched off");
        Ok(())
    }
}

/// Switches a node off and makes sure that it is.
async fn off(fencing: &Fencing, node: &str, deadline: Instant) -> Result<(), FenceError> {
    let agent = || fencing.agent.clone();
    let (code, said) = run(fencing, "off", node, deadline).await?;
    if code != Some(0) {
        return Err(FenceError::Failed {
            agent: agent(),
            code,
            said,
        });
    }
    loop {
        let (code, said) = run(fencing, "status", node, deadline).await?;
        match code {
            Some(STATUS_OFF) => return Ok(()),
            Some(0) if Instant::now() < deadline => sleep(PAUSE).await,
            Some(0) => return Err(FenceError::StillOn { agent: agent() }),
            code => {
                return Err(FenceError::Failed {
                    agent: agent(),
                    code,
                    said,
                });
            }
        }
    }
}

/// Runs an agent to its end; gives its exit code and the last line that it wrote to standard error.
async fn run(
    fencing: &Fencing,
    action: &str,
    node: &str,
    deadline: Instant,
) -> Result<(Option<i32>, String), FenceError> {
    let agent = || fencing.agent.clone();
    let start = |source| FenceError::Start {
        agent: agent(),
        source,
    };
    // The agent's own group: what it has started ends with it.
    let mut child = Command::new(&fencing.agent)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let mut lines = format!("action={action}\nnodename={node}\nport={node}\nplug={node}\n");
    for (key, value) in &fencing.parameters {
        // The last line of a key counts.
        let _ = writeln!(lines, "{key}={value}");
    }
    let work = async {
        if let Some(mut input) = child.stdin.take() {
            // An agent that does not read tells by its exit code.
            let _ = input.write_all(lines.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match timeout_at(deadline, work).await {
        Ok(output) => {
            let output = output.map_err(start)?;
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().last().unwrap_or_default().to_owned();
            Ok((output.status.code(), said))
        }
        Err(_) => {
            if let Some(group) = group {
                let group = nix::unistd::Pid::from_raw(group);
                // It may have ended just now.
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            }
            Err(FenceError::TimedOut {
                agent: agent(),
                limit_s: fencing.timeout_s,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// An agent made of shell: `$action` is what it was asked for.
    fn agent(dir: &std::path::Path, body: &str, timeout_s: u32) -> Fencing {
        let path = dir.join("agent");
        let text = format!(
            "#!/bin/sh\nwhile read -r line; do case $line in action=*) action=${{line#action=}};; esac; echo \"$line\" >> {}; done\n{body}\n",
            dir.join("asked").display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Fencing {
            agent: path.display().to_string(),
            parameters: vec![("ip".to_owned(), "10.0.0.9".to_owned())],
            timeout_s,
        }
    }

    fn shoot(fencing: &Fencing) -> Result<(), FenceError> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let limit = Duration::from_secs(u64::from(fencing.timeout_s));
                off(fencing, "node2", Instant::now() + limit).await
            })
    }

    #[test]
    fn a_node_is_off_when_the_agent_says_so_twice() {
        let dir = tempfile::tempdir().unwrap();
        let good = agent(dir.path(), "[ $action = off ] && exit 0; exit 2", 10);
        shoot(&good).unwrap();
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        for line in [
            "action=off",
            "action=status",
            "nodename=node2",
            "ip=10.0.0.9",
        ] {
            assert!(asked.lines().any(|asked| asked == line), "{asked}");
        }
    }

    #[test]
    fn an_agent_that_fails_hangs_or_lies_has_switched_nothing_off() {
        let dir = tempfile::tempdir().unwrap();
        let failing = agent(dir.path(), "echo 'login denied' >&2; exit 1", 10);
        let error = shoot(&failing).unwrap_err();
        assert!(error.to_string().contains("login denied"), "{error}");
        let hanging = agent(dir.path(), "sleep 1000", 1);
        assert!(matches!(shoot(&hanging), Err(FenceError::TimedOut { .. })));
        // "Off" succeeds, and the node stays on.
        let lying = agent(dir.path(), "exit 0", 1);
        assert!(matches!(
            shoot(&lying),
            Err(FenceError::StillOn { .. } | FenceError::TimedOut { .. })
        ));
        let missing = Fencing {
            agent: "/nowhere/agent".to_owned(),
            ..lying
        };
        assert!(matches!(shoot(&missing), Err(FenceError::Start { .. })));
    }
}
