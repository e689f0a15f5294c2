//! The network between the nodes of a cluster, as relays on loopback: each node's configuration
//! names relays in place of the other nodes, so that a test can cut a node off and heal it. While a
//! path is cut nothing passes and nothing breaks, as when a cable is pulled: what was sent before
//! arrives once it is plugged in again.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a relay looks whether its path was cut or is no longer needed.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const BUFFER_BYTES: usize = 256 << 10;

/// All paths between the nodes of a cluster.
#[derive(Debug)]
pub(crate) struct Network {
    /// Which nodes are cut off, counted from 0.
    cut: Arc<Mutex<Vec<bool>>>,
    stop: Arc<AtomicBool>,
}

/// One direction of one node's view of another.
#[derive(Clone, Debug)]
struct Path {
    from: usize,
    to: usize,
    cut: Arc<Mutex<Vec<bool>>>,
    stop: Arc<AtomicBool>,
}

impl Path {
    fn is_cut(&self) -> bool {
        let cut = self.cut.lock().expect("nobody panics with it");
        cut[self.from] || cut[self.to]
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until something may pass. False: nothing will any more.
    fn wait_open(&self) -> bool {
        while self.is_cut() && !self.stopped() {
            std::thread::sleep(LOOK_EVERY);
        }
        !self.stopped()
    }

    fn serve(&self, listener: &TcpListener, target: &str) {
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        while !self.stopped() {
            match listener.accept() {
                Ok((near, _)) => {
                    let (path, target) = (self.clone(), target.to_owned());
                    std::thread::spawn(move || path.relay(near, &target));
                }
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn relay(&self, near: TcpStream, target: &str) {
        near.set_nonblocking(false)
            .expect("a socket can be made blocking");
        if !self.wait_open() {
            return;
        }
        let Ok(far) = TcpStream::connect(target) else {
            return;
        };
        let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
            return;
        };
        let back = self.clone();
        std::thread::spawn(move || back.pump(far_too, near_too));
        self.pump(near, far);
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let _ = to.set_nodelay(true);
        from.set_read_timeout(Some(LOOK_EVERY))
            .expect("a time-out can be set");
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.wait_open() {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    // What arrived just as the path was cut is held back as well.
                    if !self.wait_open() || to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Network {
    /// Puts relays between nodes with these configuration files, none of which may run.
    pub(crate) fn between(configs: &[PathBuf]) -> Self {
        let cut = Arc::new(Mutex::new(vec![false; configs.len()]));
        let stop = Arc::new(AtomicBool::new(false));
        for (from, config) in configs.iter().enumerate() {
            let text = std::fs::read_to_string(config).expect("the configuration can be read");
            let mut node = None;
            let lines = text.lines().map(|line| {
                if let Some(id) = line.strip_prefix("id = ") {
                    node = id.parse::<usize>().ok();
                }
                let address = ["control", "replication"].iter().find_map(|key| {
                    let value = line.strip_prefix(&format!("{key} = \""))?;
                    Some((*key, value.trim_end_matches('"').to_owned()))
                });
                match (address, node) {
                    (Some((key, target)), Some(to)) if to != from => {
                        let path = Path {
                            from,
                            to,
                            cut: Arc::clone(&cut),
                            stop: Arc::clone(&stop),
                        };
                        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
                        let relay = listener.local_addr().expect("an address");
                        std::thread::spawn(move || path.serve(&listener, &target));
                        format!("{key} = \"{relay}\"\n")
                    }
                    _ => format!("{line}\n"),
                }
            });
            let changed: String = lines.collect();
            std::fs::write(config, changed).expect("the configuration can be written");
        }
        Self { cut, stop }
    }

    /// Cuts node `k`, counted from 1, off from all others, or heals that.
    pub(crate) fn set_cut(&self, k: usize, is_cut: bool) {
        self.cut.lock().expect("nobody panics with it")[k - 1] = is_cut;
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
