//! The network between the nodes of a cluster, as relays on loopback: each node's configuration
//! reaches the other nodes through relays, so that a test can cut a node off and heal it. While a
//! path is cut nothing passes and nothing breaks, as when a cable is pulled: what was sent before
//! arrives once it is plugged in again.

use super::cluster::address_in;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
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
    target: String,
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

    /// A datagram on a path that is cut is lost.
    fn carry_datagrams(&self, socket: &UdpSocket) {
        socket
            .set_read_timeout(Some(LOOK_EVERY))
            .expect("a time-out can be set");
        let mut buffer = vec![0; BUFFER_BYTES];
        while !self.stopped() {
            if let Ok((count, _)) = socket.recv_from(&mut buffer)
                && !self.is_cut()
            {
                // Nobody there: lost as well.
                let _ = socket.send_to(&buffer[..count], &self.target);
            }
        }
    }

    fn serve(&self, listener: &TcpListener) {
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        while !self.stopped() {
            match listener.accept() {
                Ok((near, _)) => {
                    let path = self.clone();
                    std::thread::spawn(move || path.relay(near));
                }
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn relay(&self, near: TcpStream) {
        near.set_nonblocking(false)
            .expect("a socket can be made blocking");
        if !self.wait_open() {
            return;
        }
        let Ok(far) = TcpStream::connect(&self.target) else {
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
        let network = Self {
            cut: Arc::new(Mutex::new(vec![false; configs.len()])),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let targets: Vec<[String; 2]> = configs
            .iter()
            .map(|config| ["control", "replication"].map(|key| address_in(config, key)))
            .collect();
        for (from, config) in configs.iter().enumerate() {
            let mut text = std::fs::read_to_string(config).expect("the configuration can be read");
            for (to, target) in targets.iter().enumerate().filter(|(to, _)| *to != from) {
                let [control, replication] = target.clone().map(|target| {
                    network.relay(Path {
                        from,
                        to,
                        target,
                        cut: Arc::clone(&network.cut),
                        stop: Arc::clone(&network.stop),
                    })
                });
                text.push_str(&format!(
                    "\n[reach.node{}]\ncontrol = \"{control}\"\nreplication = \"{replication}\"\n",
                    to + 1
                ));
            }
            std::fs::write(config, text).expect("the configuration can be written");
        }
        network
    }

    /// Starts a relay and gives its address.
    fn relay(&self, path: Path) -> SocketAddr {
        // The same port for connections and for datagrams.
        let (listener, socket, address) = (0..100)
            .find_map(|_| {
                let listener = TcpListener::bind("127.0.0.1:0").ok()?;
                let address = listener.local_addr().ok()?;
                Some((listener, UdpSocket::bind(address).ok()?, address))
            })
            .expect("a port that is free for both");
        let datagrams = path.clone();
        std::thread::spawn(move || datagrams.carry_datagrams(&socket));
        std::thread::spawn(move || path.serve(&listener));
        address
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
