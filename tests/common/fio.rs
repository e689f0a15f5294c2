//! fio as a client that checks what it reads.

use super::command::{output_within, text};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Long enough for the slowest pass; a client that hangs ends there.
const PASS_LIMIT: Duration = Duration::from_secs(120);

/// One fio job: 4 KiB blocks at random offsets, each written once, each with a checksum.
#[derive(Clone, Debug)]
pub(crate) struct Fio {
    /// The export.
    pub(crate) uri: String,
    /// Where the written range begins.
    pub(crate) offset_bytes: u64,
    /// Its length.
    pub(crate) size_bytes: u64,
    /// Decides the contents and the order of writes.
    pub(crate) seed: u64,
}

impl Fio {
    fn run(&self, more: &[&str]) -> Result<(), String> {
        let mut command = Command::new("fio");
        command
            .args([
                "--name=verify",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bs=4k",
            ])
            .args(["--iodepth=16", "--verify=crc32c", "--verify_fatal=1"])
            .args(["--verify_state_save=0", "--output-format=terse"])
            .arg(format!("--uri={}", self.uri))
            .arg(format!("--offset={}", self.offset_bytes))
            .arg(format!("--size={}", self.size_bytes))
            .arg(format!("--randseed={}", self.seed))
            .args(more);
        let output = output_within(command, PASS_LIMIT);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // fio tells of I/O errors in its output and ends with 0 in some of these cases.
        if output.status.success() && !errors.contains("error=") && !text(&output).contains("err=")
        {
            Ok(())
        } else {
            Err(format!(
                "{} on {}: {}",
                output.status,
                self.uri,
                text(&output)
            ))
        }
    }

    /// Writes, flushes, then reads everything back and compares.
    pub(crate) fn write_and_verify(&self) -> Result<(), String> {
        self.run(&["--end_fsync=1", "--do_verify=1"])
    }

    /// Writes and flushes.
    pub(crate) fn write_and_flush(&self) -> Result<(), String> {
        self.run(&["--end_fsync=1", "--do_verify=0"])
    }

    /// Reads what an earlier job with the same seed wrote, and compares.
    pub(crate) fn verify_only(&self) -> Result<(), String> {
        self.run(&["--verify_only=1"])
    }
}

/// fio writing and verifying again and again, each pass with other contents, until stopped.
#[derive(Debug)]
pub(crate) struct FioLoop {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, String>>,
}

impl FioLoop {
    /// Starts it.
    pub(crate) fn start(mut job: Fio) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut passes = 0;
            while !stopped.load(Ordering::Relaxed) {
                job.write_and_verify()?;
                job.seed += 1;
                passes += 1;
            }
            Ok(passes)
        });
        Self { stop, thread }
    }

    /// Lets the present pass end. An error of any pass is the answer, else how many were made.
    pub(crate) fn finish(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        let passes = self.thread.join().expect("the fio thread does not panic")?;
        if passes == 0 {
            return Err("fio made no pass".to_owned());
        }
        Ok(passes)
    }
}
