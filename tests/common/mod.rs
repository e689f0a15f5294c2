//! What end-to-end tests stand on: clusters of real `lockstep` processes, and real clients.
//! Nothing here knows how the program is made: only its command line, its files and NBD.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod apache;
pub(crate) mod cluster;
pub(crate) mod command;
pub(crate) mod disk;
pub(crate) mod fio;
pub(crate) mod lab;
pub(crate) mod loops;
pub(crate) mod mariadb;
pub(crate) mod nbd;
pub(crate) mod pki;
pub(crate) mod ports;
pub(crate) mod stamps;
pub(crate) mod status;
pub(crate) mod tls;
pub(crate) mod vm;

use std::time::{Duration, Instant};

/// How long a test waits for what must happen soon. Far above what a busy machine needs, so that
/// only a hang reaches it.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Polls until `attempt` gives a value; panics with its last reason when that takes too long.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(reason) => assert!(
                start.elapsed() < limit,
                "waited {limit:?} for {what}; at last: {reason}"
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
