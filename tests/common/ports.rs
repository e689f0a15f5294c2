//! TCP ports for clusters. Test processes run at the same time, so a block of ports is held by a
//! lock on a file until its cluster is gone.

use std::fs::File;
use std::net::TcpListener;
use std::ops::Range;

/// Below the range that the kernel hands out by itself (32768 and above).
const BASES: Range<u16> = 22_000..30_000;
/// More than any cluster takes.
const BLOCK: u16 = 64;

/// Adjacent ports that nobody else uses.
#[derive(Debug)]
pub(crate) struct Ports {
    first: u16,
    _lock: File,
}

impl Ports {
    /// Takes a block of ports.
    pub(crate) fn take() -> Self {
        for first in BASES.step_by(usize::from(BLOCK)) {
            let path = std::env::temp_dir().join(format!("lockstep-test-ports-{first}.lock"));
            let lock =
                File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if lock.try_lock().is_err() {
                continue;
            }
            let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if (first..first + BLOCK).all(free) {
                return Self { first, _lock: lock };
            }
        }
        panic!("no free block of {BLOCK} ports in {BASES:?}");
    }

    /// The port of node `k`, counted from 1.
    pub(crate) fn of_node(&self, k: usize) -> u16 {
        self.first + u16::try_from(k).expect("a small number") - 1
    }
}
