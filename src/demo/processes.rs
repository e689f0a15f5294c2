//! The demo's daemons. They are stopped by the pid in their directories, so that one that was killed
//! and started again by hand is stopped too.

use super::files::Layout;
use crate::lock::DirectoryLock;
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A daemon that has not stopped by then is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// What is waited for is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of a log that are shown when the start fails.
const LOG_LINES: usize = 5;

#[derive(Debug)]
pub(super) struct Processes {
    children: Vec<(u8, Child)>,
    logs: Vec<PathBuf>,
}

impl Processes {
    /// Starts a daemon for each node that is in the cluster.
    pub(super) fn start(layout: &Layout) -> anyhow::Result<Self> {
        let mut processes = Self {
            children: Vec::new(),
            logs: Vec::new(),
        };
        for number in (1..=layout.all()).filter(|&number| layout.has_joined(number)) {
            processes.start_one(layout, number)?;
        }
        Ok(processes)
    }

    /// Starts one daemon.
    pub(super) fn start_one(&mut self, layout: &Layout, number: u8) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("can't find this program's own file")?;
        let path = layout.log(number);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("can't write {}", path.display()))?;
        let child = Command::new(&program)
            .arg("daemon")
            .arg("--config")
            .arg(layout.config(number))
            .arg("--exit-with-parent")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is the demo's: it stops the daemons in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("can't start {}", program.display()))?;
        self.children.push((number, child));
        self.logs.push(path);
        Ok(())
    }

    /// An error if a daemon has ended by itself.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for (number, child) in &mut self.children {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the daemon of {} has ended ({status})",
                    Layout::name(*number)
                );
            }
        }
        Ok(())
    }

    /// The ends of the logs, for a start that failed.
    pub(super) fn show_logs(&self) {
        for path in &self.logs {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("{}:", path.display());
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                eprintln!("  {line}");
            }
        }
    }

    /// Stops all daemons, the configuration store's node last, since the others need it.
    pub(super) async fn stop(&mut self, layout: &Layout) {
        let others: Vec<u8> = (2..=layout.all()).collect();
        for group in [others, vec![1]] {
            let deadline = Instant::now() + STOP_LIMIT;
            for &number in &group {
                self.signal(layout, number, Signal::SIGTERM);
            }
            for &number in &group {
                while self.lives(layout, number) {
                    if Instant::now() > deadline {
                        eprintln!(
                            "lockstep: {} does not stop and is killed",
                            Layout::name(number)
                        );
                        self.signal(layout, number, Signal::SIGKILL);
                    }
                    sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    fn child(&mut self, number: u8) -> Option<&mut Child> {
        let found = self.children.iter_mut().find(|(n, _)| *n == number);
        found.map(|(_, child)| child)
    }

    fn lives(&mut self, layout: &Layout, number: u8) -> bool {
        let child_lives = self
            .child(number)
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        child_lives || DirectoryLock::holder(&layout.node(number)).is_some()
    }

    fn signal(&mut self, layout: &Layout, number: u8, signal: Signal) {
        let child = self.child(number).and_then(|child| match child.try_wait() {
            Ok(None) => i32::try_from(child.id()).ok(),
            _ => None,
        });
        let holder = DirectoryLock::holder(&layout.node(number));
        for pid in child
            .into_iter()
            .chain(holder.filter(|&pid| Some(pid) != child))
        {
            // It may have ended by itself at this moment.
            let _ = kill(Pid::from_raw(pid), signal);
            // A stopped process ends only when it goes on.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
    }
}
