//! Runs every command of docs/cookbook.md as it stands there, in order, in the shell of a demo. Only
//! measurements are shorter than there.

mod common;

use common::command::{LOCKSTEP, output_within, text};
use common::ports::Ports;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(150);

/// What goes before: the first command that fails ends it all, and leaves nothing behind.
const PROLOGUE: &str = r#"set -eu
clean_up() {
    jobs -p | xargs -r kill 2>/dev/null || true
    wait
    umount -l "$LOCKSTEP_DIR/mnt" 2>/dev/null || true
    [ -z "${dev:-}" ] || lockstep detach "$dev" 2>/dev/null || true
}
trap clean_up EXIT
set -x
"#;

/// The commands of the blocks marked as `sh`.
fn commands(cookbook: &str) -> String {
    let mut commands = String::new();
    let mut inside = false;
    for line in cookbook.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => commands += &format!("{line}\n"),
            _ => {}
        }
    }
    assert!(!inside, "a block is not closed");
    commands
}

#[test]
fn every_command_of_the_cookbook_works_as_it_stands() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cookbook.md");
    let cookbook = std::fs::read_to_string(path).expect("the cookbook is there");
    let commands = commands(&cookbook);
    assert_eq!(commands.matches("fio ").count(), 6, "recipes");
    let commands = commands.replace("--runtime=5", "--runtime=1");
    let directory = tempfile::TempDir::with_prefix("lockstep-test-").expect("a directory");
    let script = directory.path().join("script");
    std::fs::write(&script, format!("{PROLOGUE}{commands}")).expect("it can be written");
    let programs = Path::new(LOCKSTEP).parent().expect("a directory").display();
    let path = std::env::var("PATH").expect("there is a PATH");
    let ports = Ports::take();
    let mut demo = Command::new(LOCKSTEP);
    demo.args(["demo", "--nodes", "3", "--size", "1GiB", "--dir"])
        .arg(directory.path().join("demo"))
        .args(["--port", &ports.of_node(1).to_string()])
        .arg("--exec")
        .arg(format!("timeout -k 10 120 bash {}", script.display()))
        .env("PATH", format!("{programs}:{path}"));
    let output = output_within(demo, LIMIT);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    println!("{said}");
    for words in [
        "hello\nworld",
        "shop.t\tcheck\tstatus\tOK",
        "It works",
        "read 1048576/1048576 bytes",
    ] {
        assert!(said.contains(words), "{words:?} is missing in {said}");
    }
}
