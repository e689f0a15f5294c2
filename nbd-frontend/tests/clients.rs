//! Other people's clients against this server, over real sockets: libnbd's tools, qemu's, fio, and a
//! few raw ones that behave badly. A client that is not installed fails its test; `scripts/test`
//! installs them.

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::device::Disk;
use common::message::{self, CLIENT_FLAGS, GREETING, option, request, simple};
use common::{Catalog, driver};
use nbd_frontend::{
    CloseReason, Command as NbdCommand, ExportError, ExportInfo, ExportListing, Exports,
};

/// Size of every export here.
const DISK_BYTES: u64 = 64 << 20;
/// No client takes longer, not even on a busy machine.
const CLIENT_SECONDS: &str = "120";

/// The exports of the other tests, larger, and one whose device fails.
#[derive(Debug)]
struct Served;

impl Exports for Served {
    fn list(&self) -> Vec<ExportListing> {
        Catalog.list()
    }

    fn find(&self, name: &str) -> Result<ExportInfo, ExportError> {
        if name == "broken" {
            return Ok(ExportInfo::new(name, DISK_BYTES));
        }
        Catalog.find(name).map(|info| ExportInfo {
            size_bytes: DISK_BYTES,
            ..info
        })
    }
}

/// A server on loopback and on a unix socket. All exports are the same disk.
struct Server {
    disk: Arc<Disk>,
    address: SocketAddr,
    directory: tempfile::TempDir,
    stopping: Arc<AtomicBool>,
    /// How each connection ended.
    ends: Arc<Mutex<Vec<io::Result<Option<CloseReason>>>>>,
    acceptors: Vec<thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(directory.path().join("nbd.sock")).unwrap();
        let mut server = Self {
            disk: Disk::new(DISK_BYTES),
            address: tcp.local_addr().unwrap(),
            directory,
            stopping: Arc::default(),
            ends: Arc::default(),
            acceptors: Vec::new(),
        };
        server.accept(move || {
            let (stream, _) = tcp.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        });
        server.accept(move || unix.accept().unwrap().0);
        server
    }

    fn accept<S: Read + Write + Send + 'static>(
        &mut self,
        mut next: impl FnMut() -> S + Send + 'static,
    ) {
        let disk = Arc::clone(&self.disk);
        let stopping = Arc::clone(&self.stopping);
        let ends = Arc::clone(&self.ends);
        self.acceptors.push(thread::spawn(move || {
            let mut connections = Vec::new();
            loop {
                let stream = next();
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let (disk, ends) = (Arc::clone(&disk), Arc::clone(&ends));
                connections.push(thread::spawn(move || {
                    let end = driver::serve(stream, &Served, &disk);
                    ends.lock().unwrap().push(end);
                }));
            }
            for connection in connections {
                connection.join().expect("a connection panicked");
            }
        }));
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    fn unix_uri(&self, export: &str) -> String {
        let socket = self.directory.path().join("nbd.sock");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn saw(&self, wanted: impl Fn(&nbd_frontend::Request) -> bool) -> bool {
        self.disk.seen.lock().unwrap().iter().any(wanted)
    }

    /// Stops accepting, waits for every connection's end and gives them back. Panics if one of
    /// them did.
    fn stop(mut self) -> Vec<io::Result<Option<CloseReason>>> {
        self.stopping.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).unwrap();
        UnixStream::connect(self.directory.path().join("nbd.sock")).unwrap();
        for acceptor in self.acceptors.drain(..) {
            acceptor.join().unwrap();
        }
        std::mem::take(&mut self.ends.lock().unwrap())
    }

    /// A raw client that has read the greeting.
    fn connect(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, GREETING);
        stream
    }

    /// A raw client in the transmission phase of `r0`, with simple replies.
    fn open(&self) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&CLIENT_FLAGS).unwrap();
        stream
            .write_all(&option(message::EXPORT_NAME, b"r0"))
            .unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        stream
    }
}

/// Runs a client to its end.
fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new("timeout")
        .arg(CLIENT_SECONDS)
        .arg(program)
        .args(arguments)
        .output()
        .expect("`timeout` of coreutils is needed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_ne!(
        output.status.code(),
        Some(127),
        "{program} is not installed: {text}"
    );
    assert_ne!(
        output.status.code(),
        Some(124),
        "{program} {arguments:?} hangs"
    );
    output
}

/// Runs a client that must succeed; gives back what it printed.
fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}:\n{stdout}\n{stderr}"
    );
    stdout
}

/// Runs a client that must fail; gives back what it printed.
fn fail(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        !output.status.success(),
        "{program} {arguments:?} succeeded:\n{text}"
    );
    text
}

/// Runs commands of `qemu-io`, which all have to succeed. It reports a failed command in words and
/// goes on.
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(uri);
    succeed("qemu-io", &arguments)
}

/// A file of bytes that no other block has.
fn pattern_file(path: &str, bytes: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let content: Vec<u8> = (0..bytes / 8)
        .flat_map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()
        })
        .collect();
    std::fs::write(path, content).unwrap();
}

#[test]
fn nbdinfo_sees_what_the_export_promises() {
    let server = Server::start();
    for uri in [server.uri("r0"), server.uri(""), server.unix_uri("r0")] {
        let text = succeed("nbdinfo", &["--json", &uri]);
        for line in [
            "\"export-size\": 67108864",
            "\"description\": \"a mirrored disk\"",
            "\"structured\": true",
            "\"is_rotational\": false",
            "\"is_read_only\": false",
            "\"can_cache\": true",
            "\"can_df\": true",
            "\"can_fast_zero\": true",
            "\"can_flush\": true",
            "\"can_fua\": true",
            "\"can_multi_conn\": true",
            "\"can_trim\": true",
            "\"can_zero\": true",
            "\"block_size_minimum\": 1,",
            "\"block_size_preferred\": 4096,",
            "\"block_size_maximum\": 67108864,",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
    assert_eq!(
        succeed("nbdinfo", &["--is", "read-only", &server.uri("backup")]),
        ""
    );
    assert_eq!(
        succeed("nbdinfo", &["--is", "rotational", &server.uri("r0/1")]),
        ""
    );
    server.stop();
}

#[test]
fn exports_are_listed_for_libnbd_and_qemu() {
    let server = Server::start();
    let text = succeed("nbdinfo", &["--list", &server.uri("")]);
    for name in [
        "export=\"r0\"",
        "export=\"r0/1\"",
        "export=\"backup\"",
        "a mirrored disk",
    ] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    let port = server.address.port().to_string();
    let text = succeed("qemu-nbd", &["--list", "-b", "127.0.0.1", "-p", &port]);
    for line in [
        "exports available: 3",
        "export: 'r0/1'",
        "max block: 67108864",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    server.stop();
}

#[test]
fn refusals_reach_the_user_with_their_reason() {
    let server = Server::start();
    let text = fail("qemu-img", &["info", &server.uri("r7")]);
    assert!(
        text.contains("there is no export named \"r7\" here; exports: r0, r0/1, backup"),
        "{text}"
    );
    let text = fail("qemu-img", &["info", &server.uri("elsewhere")]);
    assert!(
        text.contains("its primary is node2; connect there"),
        "{text}"
    );
    fail("nbdinfo", &[&server.uri("r7")]);
    fail("nbdinfo", &[&server.uri("leaving")]);
    server.stop();
}

#[test]
fn nbdcopy_brings_back_what_it_took_there() {
    let server = Server::start();
    let (source, back) = (server.file("source"), server.file("back"));
    pattern_file(&source, DISK_BYTES);
    let uri = server.uri("r0");
    succeed("nbdcopy", &["-C", "4", "-R", "64", &source, &uri]);
    succeed(
        "nbdcopy",
        &["-C", "4", "-R", "64", "--request-size=4194304", &uri, &back],
    );
    let expected = std::fs::read(&source).unwrap();
    assert!(
        *server.disk.bytes.lock().unwrap() == expected,
        "the disk differs"
    );
    assert!(
        std::fs::read(&back).unwrap() == expected,
        "what came back differs"
    );
    succeed("nbdcopy", &["--flush", &server.unix_uri("backup"), "null:"]);
    server.stop();
}

#[test]
fn qemu_io_reads_what_it_wrote_zeroed_and_discarded() {
    let server = Server::start();
    for uri in [server.uri("r0"), server.unix_uri("r0")] {
        let text = qemu_io(
            &uri,
            &[
                "discard 0 64M",
                "write -P 0xab 0 1M",
                "read -P 0xab 0 1M",
                "write -f -P 0xcd 64k 4k",
                "read -P 0xcd 64k 4k",
                "write -z 128k 64k",
                "write -z -u 256k 64k",
                "write -z -f 384k 4k",
                "read -P 0 128k 64k",
                "read -P 0 256k 64k",
                "read -P 0xab 192k 64k",
                "write -P 0x11 1000 3",
                "read -P 0x11 1000 3",
                "read -P 0xab 1003 500",
                "discard 512k 512k",
                "read -P 0 2M 32M",
                "write -P 0x77 8M 32M",
                "read -P 0x77 8M 32M",
                "aio_write -P 0x22 40M 4k",
                "aio_write -P 0x33 41M 4k",
                "aio_flush",
                "read -P 0x22 40M 4k",
                "flush",
            ],
        );
        assert!(
            !text.contains("failed") && !text.contains("error"),
            "{text}"
        );
    }
    assert!(server.saw(|r| r.command == NbdCommand::Write && r.flags.fua()));
    assert!(server.saw(|r| r.command == NbdCommand::WriteZeroes && r.flags.no_hole()));
    assert!(server.saw(|r| r.command == NbdCommand::WriteZeroes && !r.flags.no_hole()));
    assert!(server.saw(|r| r.command == NbdCommand::Trim));
    assert!(server.saw(|r| r.command == NbdCommand::Flush));
    let ends = server.stop();
    let left = |end: &&io::Result<_>| matches!(end, Ok(Some(CloseReason::Disconnected)));
    assert_eq!(ends.iter().filter(left).count(), ends.len(), "{ends:?}");
}

#[test]
fn errors_reach_the_user_and_the_connection_goes_on() {
    let server = Server::start();
    let text = fail(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "read 0 4k",
            "-c",
            "write 0 4k",
            "-c",
            "flush",
            &server.uri("broken"),
        ],
    );
    assert_eq!(text.matches("Input/output error").count(), 2, "{text}");
    assert!(server.saw(|request| request.command == NbdCommand::Flush));
    let text = fail(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 4k", &server.uri("backup")],
    );
    assert!(
        text.contains("Permission denied") || text.contains("read only"),
        "{text}"
    );
    server.stop();
}

#[test]
fn qemu_img_converts_compares_and_keeps_many_requests_in_flight() {
    let server = Server::start();
    let source = server.file("source");
    pattern_file(&source, DISK_BYTES / 2);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&source)
        .unwrap()
        .set_len(DISK_BYTES)
        .unwrap();
    let uri = server.uri("r0");
    succeed(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri],
    );
    let text = succeed(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, &uri],
    );
    assert!(text.contains("Images are identical."), "{text}");
    let bench = ["bench", "-f", "raw", "-d", "64", "-s", "4k", "-c", "5000"];
    succeed("qemu-img", &[&bench[..], &["-w", &uri]].concat());
    succeed("qemu-img", &[&bench[..], &[&uri]].concat());
    server.stop();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let server = Server::start();
    for (name, uri) in [("tcp", server.uri("r0")), ("unix", server.unix_uri("r0"))] {
        let uri = format!("--uri={uri}");
        let name = format!("--name={name}");
        succeed(
            "fio",
            &[
                &name,
                "--ioengine=nbd",
                &uri,
                "--rw=randrw",
                "--bs=4k",
                "--size=32M",
                "--iodepth=64",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--do_verify=1",
                "--verify_state_save=0",
            ],
        );
    }
    assert!(server.saw(|request| request.command == NbdCommand::Read));
    server.stop();
}

#[test]
fn maps_of_both_contexts_reach_the_user() {
    let server = Server::start();
    let uri = server.uri("r0");
    qemu_io(&uri, &["write -P 1 128k 64k", "write -P 2 1M 1"]);
    let map = |context: &str| {
        let text = succeed("nbdinfo", &[&format!("--map={context}"), &uri]);
        let numbers = |line: &str| -> Vec<u64> {
            let words = line.split_whitespace().take(3);
            words.map(|word| word.parse().unwrap()).collect()
        };
        text.lines().map(numbers).collect::<Vec<_>>()
    };
    let (kib, end) = (1024, DISK_BYTES);
    assert_eq!(
        map("base:allocation"),
        [
            [0, 128 * kib, 3],
            [128 * kib, 64 * kib, 0],
            [192 * kib, 832 * kib, 3],
            [1024 * kib, 64 * kib, 0],
            [1088 * kib, end - 1088 * kib, 3],
        ]
    );
    let odd = map("x-test:odd");
    assert_eq!(odd.len(), 1024);
    assert_eq!(odd[..2], [[0, 64 * kib, 0], [64 * kib, 64 * kib, 1]]);
    let text = succeed("nbdinfo", &["--list", &uri]);
    assert!(
        text.contains("base:allocation") && text.contains("x-test:odd"),
        "{text}"
    );
    server.stop();
}

#[test]
fn disconnect_comes_after_the_writes_before_it() {
    let server = Server::start();
    let mut client = server.open();
    let mut burst = Vec::new();
    for cookie in 0..100 {
        burst.extend_from_slice(&request(0, message::WRITE, cookie, cookie * 4096, 4096));
        burst.resize(burst.len() + 4096, 0x42);
    }
    burst.extend_from_slice(&request(0, message::DISC, 0, 0, 0));
    client.write_all(&burst).unwrap();
    // The server closes by itself, and not before it has answered.
    let mut replies = Vec::new();
    client.read_to_end(&mut replies).unwrap();
    let mut cookies: Vec<u8> = replies.chunks(16).map(|reply| reply[15]).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..100).collect::<Vec<u8>>());
    assert!(
        replies
            .chunks(16)
            .all(|reply| reply == simple(0, u64::from(reply[15])))
    );
    assert!(
        server.disk.bytes.lock().unwrap()[..409_600]
            .iter()
            .all(|byte| *byte == 0x42)
    );
    let ends = server.stop();
    assert!(
        matches!(ends[..], [Ok(Some(CloseReason::Disconnected))]),
        "{ends:?}"
    );
}

#[test]
fn clients_that_vanish_or_talk_nonsense_harm_nobody_else() {
    let server = Server::start();
    let mut witness = server.open();

    drop(server.connect());
    let mut client = server.connect();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    drop(client);
    // In the middle of an option, of a request, of a payload.
    let mut client = server.connect();
    client.write_all(&CLIENT_FLAGS).unwrap();
    client.write_all(&option(message::GO, b"r0")[..18]).unwrap();
    drop(client);
    let mut client = server.open();
    client
        .write_all(&request(0, message::READ, 1, 0, 512)[..20])
        .unwrap();
    drop(client);
    let mut client = server.open();
    client
        .write_all(&request(0, message::WRITE, 1, 0, 1 << 20))
        .unwrap();
    client.write_all(&[1; 1000]).unwrap();
    drop(client);
    // With replies that nobody reads: the socket is reset.
    let mut client = server.open();
    for cookie in 0..16 {
        client
            .write_all(&request(0, message::READ, cookie, 0, 1 << 20))
            .unwrap();
    }
    client.read_exact(&mut [0; 1]).unwrap();
    drop(client);
    // Half open: it says no more, but takes its reply.
    let mut client = server.open();
    client
        .write_all(&request(0, message::FLUSH, 5, 0, 0))
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, simple(0, 5));

    // Garbage requests, then a good one, on a connection that lives on.
    let bad = request(0xffff, 0xeeee, 3, u64::MAX, u32::MAX);
    for _ in 0..1000 {
        witness.write_all(&bad).unwrap();
        let mut reply = [0; 16];
        witness.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..], simple(message::EINVAL, 3));
    }
    witness
        .write_all(&request(0, message::FLUSH, 9, 0, 0))
        .unwrap();
    let mut reply = [0; 16];
    witness.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..], simple(0, 9));
    witness
        .write_all(&request(0, message::DISC, 0, 0, 0))
        .unwrap();
    assert_eq!(witness.read(&mut reply).unwrap(), 0);

    assert!(
        server
            .disk
            .bytes
            .lock()
            .unwrap()
            .iter()
            .all(|byte| *byte == 0),
        "half a write landed"
    );
    assert_eq!(server.stop().len(), 8);
}

#[test]
fn a_client_of_simple_replies_reads_data_and_holes() {
    let server = Server::start();
    server.disk.bytes.lock().unwrap()[5000..5003].copy_from_slice(b"abc");
    let mut client = server.open();
    for (offset, length) in [(0, 1), (4999, 5), (8192, 100_000), (4096, 300_000)] {
        client
            .write_all(&request(0, message::READ, 6, offset, length))
            .unwrap();
        let mut reply = vec![0; 16 + usize::try_from(length).unwrap()];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..16], simple(0, 6));
        let start = usize::try_from(offset).unwrap();
        let bytes = server.disk.bytes.lock().unwrap();
        assert!(
            reply[16..] == bytes[start..][..reply.len() - 16],
            "wrong bytes at {offset}"
        );
    }
    drop(client);
    server.stop();
}
