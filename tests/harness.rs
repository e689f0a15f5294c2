//! The end-to-end tests' own tools, tried on another NBD server: they must see what they exist to see.

mod common;

use common::command::kill;
use common::fio::{Fio, FioLoop};
use common::nbd::Client;
use common::ports::Ports;
use common::stamps::Writers;
use common::{SOON, wait_for};
use nix::sys::signal::Signal;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use tempfile::TempDir;

const SIZE: u64 = 16 << 20;

/// nbdkit with a file.
struct Server {
    child: Child,
    ports: Ports,
    image: PathBuf,
    _dir: TempDir,
}

impl Server {
    fn start(filters: &[&str], parameters: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports = Ports::take();
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).expect("the image can be made");
        file.set_len(SIZE).expect("the image can be sized");
        let child = Command::new("nbdkit")
            .args(["--foreground", "--ipaddr=127.0.0.1"])
            .arg(format!("--port={}", ports.of_node(1)))
            .args(filters.iter().map(|filter| format!("--filter={filter}")))
            .arg("file")
            .arg(&image)
            .args(parameters)
            .spawn()
            .expect("nbdkit starts; scripts/test installs it");
        let server = Self {
            child,
            ports,
            image,
            _dir: dir,
        };
        wait_for("nbdkit to serve", SOON, || {
            Client::connect(server.port(), "").map_err(|error| error.to_string())
        });
        server
    }

    fn port(&self) -> u16 {
        self.ports.of_node(1)
    }

    fn fio(&self) -> Fio {
        let uri = format!("nbd://127.0.0.1:{}", self.port());
        Fio {
            uri,
            offset_bytes: 0,
            size_bytes: SIZE,
            seed: 1,
        }
    }

    fn overwrite(&self, offset: u64, data: &[u8]) {
        let file = OpenOptions::new()
            .write(true)
            .open(&self.image)
            .expect("the image opens");
        file.write_all_at(data, offset)
            .expect("the image can be written");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(self.child.id(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[test]
fn fio_passes_on_an_honest_server_and_fails_on_one_changed_byte() {
    let server = Server::start(&[], &[]);
    let job = server.fio();
    job.write_and_verify().expect("nothing is wrong");
    job.write_and_flush().expect("nothing is wrong");
    job.verify_only().expect("nothing is wrong");
    server.overwrite(5_000_000, b"?");
    job.verify_only().expect_err("a byte was changed");
}

#[test]
fn fio_fails_on_error_replies_and_on_a_lost_connection() {
    let failing = Server::start(&["error"], &["error=EIO", "error-pwrite-rate=1%"]);
    failing
        .fio()
        .write_and_verify()
        .expect_err("one write in a hundred fails");

    let server = Server::start(&[], &[]);
    let load = FioLoop::start(server.fio());
    let mut client = Client::connect(server.port(), "").expect("a second connection");
    wait_for("fio to write", SOON, || {
        let data = client.read(0, 1 << 20).map_err(|error| error.to_string())?;
        if data.iter().any(|&byte| byte != 0) {
            Ok(())
        } else {
            Err("zeroes".to_owned())
        }
    });
    kill(server.child.id(), Signal::SIGKILL);
    load.finish()
        .expect_err("the connection was lost in mid-write");
}

#[test]
fn client_sees_the_number_of_an_error_reply_and_stays_connected() {
    let server = Server::start(&["error"], &["error=ENOSPC", "error-pwrite-rate=100%"]);
    let mut client = Client::connect(server.port(), "").expect("the server is there");
    assert_eq!(client.size_bytes, SIZE);
    let error = client.write(0, &[1; 512]).expect_err("every write fails");
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    client.flush().expect("the connection is still good");
    assert_eq!(
        client.read(0, 512).expect("the connection is still good"),
        [0; 512]
    );
}

#[test]
fn stamps_show_lost_torn_and_misplaced_writes() {
    let server = Server::start(&[], &[]);
    let writers = Writers::start(server.port(), "", 2, 8);
    wait_for("every block to be written twice", SOON, || {
        let writes = writers.acknowledged_writes();
        if writes >= 64 {
            Ok(())
        } else {
            Err(format!("{writes} writes"))
        }
    });
    let histories = writers.finish();
    let mut client = Client::connect(server.port(), "").expect("the server is there");
    for history in &histories {
        history.check(&mut client).expect("nothing is wrong");
    }

    let intact = std::fs::read(&server.image).expect("the image can be read");
    let block = |k: usize| &intact[k * 4096..(k + 1) * 4096];
    let torn = [&block(3)[..2048], &[0; 2048]].concat();
    for (bytes, what) in [
        (&[0; 4096][..], "write 0 is there"),
        (&torn[..], "torn or of another block"),
        (block(4), "torn or of another block"),
    ] {
        server.overwrite(3 * 4096, bytes);
        let error = histories[0].check(&mut client).expect_err(what);
        assert!(error.contains("block 3") && error.contains(what), "{error}");
    }
}
