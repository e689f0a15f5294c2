//! Running the `lockstep` command, with a bound on the time that it may take (RULES 10: every
//! command answers within a time limit).

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Longer than every time limit that a command has by itself.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// Runs `lockstep` with these arguments.
pub(crate) fn lockstep<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Output {
    let mut command = Command::new(LOCKSTEP);
    command.args(arguments);
    output_within(command, COMMAND_LIMIT)
}

/// A client from a package. Those that are scripts need the interpreter of the system.
pub(crate) fn client(program: &str) -> Command {
    let mut command = Command::new(program);
    let others = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/bin:/bin:/usr/sbin:/sbin:{others}"));
    command
}

/// Runs a command to its end, which must come within `limit`.
pub(crate) fn output_within(mut command: Command, limit: Duration) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap_or_else(|error| {
        panic!("{command:?} does not start: {error}; scripts/test installs what tests need")
    });
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        // Nobody listens any more when the limit was exceeded.
        let _ = sender.send(child.wait_with_output());
    });
    let Ok(output) = receiver.recv_timeout(limit) else {
        kill(pid, nix::sys::signal::Signal::SIGKILL);
        waiter.join().expect("the waiting thread does not panic");
        panic!("{command:?} did not end within {limit:?}");
    };
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What a command says on standard output; it must succeed, within `limit`.
pub(crate) fn said_by(command: Command, limit: Duration) -> String {
    let what = format!("{command:?}");
    let output = output_within(command, limit);
    assert!(output.status.success(), "{what}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both outputs of a command, for messages and for searching.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Sends a signal to a process of this test.
pub(crate) fn kill(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid is positive"));
    // A process that is gone already needs no signal.
    let _ = nix::sys::signal::kill(pid, signal);
}
