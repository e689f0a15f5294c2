//! Bad input from every side: NBD clients, peers, controllers, configuration, metadata. Each time the
//! daemon is up afterwards, says what it refused and why, grows no memory, and the clients that
//! behave notice nothing.

mod common;

use common::cluster::Cluster;
use common::command::{output_within, text};
use common::fio::FioLoop;
use common::nbd::Client;
use common::tls::Credentials;
use common::{SOON, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// What a daemon may have grown by after all that was thrown at it: its buffers are bounded, and
/// what bad clients made it allocate is given back or used again.
const GROWTH_BYTES: u64 = 192 * MIB;

const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const CACHE: u16 = 5;

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port is served");
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).expect("a time-out");
    stream.set_write_timeout(limit).expect("a time-out");
    stream
}

/// Sends these bytes, then reads until the other side closes or falls silent.
fn throw(address: &str, bytes: &[u8]) {
    let mut stream = connect(address);
    // The other side may close in the middle of it.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// The same in the open, and over a connection of a node that has lost its mind.
fn throw_at_node(cluster: &Cluster, k: usize, address: &str, bytes: &[u8]) {
    throw(address, bytes);
    let other = if k == 1 { 2 } else { 1 };
    let credentials = Credentials::of(cluster.dir(other));
    let mut stream = credentials.connect(address, k).expect("a handshake");
    let limit = Some(Duration::from_secs(10));
    stream.sock.set_read_timeout(limit).expect("a time-out");
    // The other side may close in the middle of it.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    let _ = stream.sock.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Bytes that look like nothing (xorshift64).
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn be(numbers: &[u64], widths: &[usize]) -> Vec<u8> {
    let parts = numbers.iter().zip(widths);
    parts
        .flat_map(|(number, width)| number.to_be_bytes()[8 - width..].to_vec())
        .collect()
}

/// A cluster under load, to which bad things are done, and which must not notice.
fn unharmed_by(harm: impl FnOnce(&Cluster)) {
    let mut cluster = Cluster::start(2, SIZE);
    let load = FioLoop::start(cluster.fio(1, 0, SIZE / 2));
    wait_for("the load to begin", SOON, || {
        let data = cluster.client(1).read(0, 1 << 20);
        let data = data.map_err(|error| error.to_string())?;
        if data.iter().any(|&byte| byte != 0) {
            Ok(())
        } else {
            Err("zeroes".to_owned())
        }
    });
    let before = [1, 2].map(|k| cluster.memory_bytes(k));
    let epoch = cluster.r0(1).epoch;
    harm(&cluster);
    let after = [1, 2].map(|k| cluster.memory_bytes(k));
    for (before, after) in before.iter().zip(after) {
        assert!(
            after <= before + GROWTH_BYTES,
            "a daemon grew from {before} to {after} bytes"
        );
    }
    load.finish().expect("clients that behave see no error");
    cluster.wait_all_in_sync();
    assert_eq!(cluster.r0(1).epoch, epoch, "the primary has changed");
    cluster.stop_and_compare_replicas();
}

// --- NBD clients -----------------------------------------------------------------------------

#[test]
fn nbd_handshakes_that_make_no_sense_harm_nobody() {
    const OPTION: u64 = 0x4948_4156_454f_5054;
    unharmed_by(|cluster| {
        let address = format!("127.0.0.1:{}", cluster.port(1));
        let mut scripts = vec![
            noise(1 << 20, 7),
            b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n".to_vec(),
            // Flags that nobody knows.
            vec![0xff; 4],
            // An option whose magic is wrong.
            be(&[3, 1, 1, 0], &[4, 8, 4, 4]),
            // Options that announce more than will ever come.
            be(&[3, OPTION, 1, 0xffff_ffff], &[4, 8, 4, 4]),
            be(&[3, OPTION, 7, 0xffff_ffff], &[4, 8, 4, 4]),
            be(&[3, OPTION, 7, 0x7fff_ffff], &[4, 8, 4, 4]),
            // GO whose name is longer than the option.
            be(&[3, OPTION, 7, 6, 0xffff_ffff, 0], &[4, 8, 4, 4, 4, 2]),
            // GO whose list of infos is longer than the option.
            be(&[3, OPTION, 7, 6, 0, 0xffff], &[4, 8, 4, 4, 4, 2]),
            // An export that is not there.
            [be(&[3, OPTION, 1, 3], &[4, 8, 4, 4]), b"r00".to_vec()].concat(),
            // A name that is no text.
            [be(&[3, OPTION, 1, 4], &[4, 8, 4, 4]), vec![0xff; 4]].concat(),
        ];
        // An option with this much data, all of it sent: to be skipped, not to be kept.
        let mut large = be(&[3, OPTION, 99, 32 << 20], &[4, 8, 4, 4]);
        large.resize(large.len() + (32 << 20), 0x55);
        scripts.push(large);
        // Options without end.
        let unknown = be(&[OPTION, 98, 0], &[8, 4, 4]);
        scripts.push([be(&[3], &[4]), unknown.repeat(5000)].concat());
        for script in &scripts {
            throw(&address, script);
        }
    });
}

#[test]
fn nbd_requests_that_make_no_sense_get_their_error_and_harm_nobody() {
    unharmed_by(|cluster| {
        // An error reply, and the connection is still good.
        let mut client = cluster.client(1);
        let size = client.size_bytes;
        let negative = u64::MAX - 4095;
        for (command, offset, len, numbers) in [
            (READ, size, 4096, &[EINVAL][..]),
            (READ, size - 4096, 8192, &[EINVAL]),
            (READ, negative, 4096, &[EINVAL]),
            (READ, i64::MIN.cast_unsigned(), 4096, &[EINVAL]),
            (READ, u64::MAX, 1, &[EINVAL]),
            (TRIM, size, 4096, &[EINVAL, ENOSPC]),
            (TRIM, negative, u32::MAX, &[EINVAL, ENOSPC]),
            (CACHE, negative, 4096, &[EINVAL]),
            (77, 0, 4096, &[EINVAL]),
            (0xffff, 0, 0, &[EINVAL]),
        ] {
            let error = client
                .raw(command, offset, len, &[])
                .expect_err("it makes no sense");
            assert!(
                error.raw_os_error().is_some_and(|n| numbers.contains(&n)),
                "command {command} at {offset:#x} + {len}: {error}"
            );
        }
        for offset in [size, size - 2048, negative] {
            let error = client
                .write(offset, &[0; 4096])
                .expect_err("it does not fit");
            assert_eq!(error.raw_os_error(), Some(ENOSPC), "write at {offset:#x}");
        }
        client.read(0, 4096).expect("the connection is still good");

        // These may cost the connection, and no more than that.
        for (command, len) in [(READ, u32::MAX), (WRITE, u32::MAX), (WRITE, 0x8000_0000)] {
            let mut client = cluster.client(1);
            // For a write it waits for the bytes that were announced, to skip them.
            let limit = Some(Duration::from_secs(1));
            client.stream().set_read_timeout(limit).expect("a time-out");
            assert!(client.raw(command, 0, len, &[]).is_err());
        }
        let mut client = cluster.client(1);
        let _ = client.stream().write_all(&noise(1 << 20, 3));
        let _ = client.stream().read_to_end(&mut Vec::new());
    });
}

#[test]
fn nbd_clients_that_vanish_or_fall_silent_harm_nobody() {
    const SILENT: usize = 200;
    unharmed_by(|cluster| {
        let address = format!("127.0.0.1:{}", cluster.port(1));
        // Some say nothing, some stop in the middle of the handshake.
        let silent: Vec<TcpStream> = (0..SILENT)
            .map(|number| {
                let mut stream = connect(&address);
                let half = be(&[3, 0x4948_4156], &[4, 4]);
                stream
                    .write_all(&half[..number % (half.len() + 1)])
                    .expect("the first bytes are taken");
                stream
            })
            .collect();
        // In the middle of a request's header, and of its payload.
        for sent in [0, 1, 27, 28, 29, 4096, 1 << 20] {
            let mut client = cluster.client(1);
            let header = be(
                &[0x2560_9513, 0, 1, 1, SIZE - 8 * MIB, 4 << 20],
                &[4, 2, 2, 8, 8, 4],
            );
            let mut bytes = header;
            bytes.resize(bytes.len() + (4 << 20), 0x66);
            client
                .stream()
                .write_all(&bytes[..sent])
                .expect("a part of a request is taken");
            client
                .stream()
                .shutdown(Shutdown::Both)
                .expect("a socket can be closed");
        }
        // With many requests under way, and nobody to read the answers.
        for _ in 0..8 {
            let mut client = cluster.client(1);
            for number in 0..256 {
                client
                    .send_only(READ, (number % 16) * MIB, 65_536, &[])
                    .expect("requests are taken");
            }
            client
                .stream()
                .shutdown(Shutdown::Both)
                .expect("a socket can be closed");
        }
        // Requests without end from one that never reads: the server stops reading, too.
        let mut greedy = cluster.client(1);
        let limit = Some(Duration::from_secs(1));
        greedy
            .stream()
            .set_write_timeout(limit)
            .expect("a time-out");
        while greedy.send_only(READ, 0, 1 << 20, &[]).is_ok() {}
        let others = cluster.client(1).read(0, 4096);
        others.expect("another client is served");
        assert_eq!(silent.len(), SILENT);
    });
}

// --- peers -----------------------------------------------------------------------------------

/// A frame's header as `replicator::wire::header` lays it out, its own checksum right.
struct PeerHeader {
    version: u16,
    kind: u16,
    flags: u32,
    body_len: u32,
    cluster: u128,
    payload_len: u32,
    body_crc: u32,
}

impl PeerHeader {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"LkS1".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.body_len.to_le_bytes());
        bytes.extend(self.cluster.to_le_bytes());
        bytes.extend([0x5a; 16]); // a resource that is not there
        bytes.extend([0; 16]); // epoch and generation
        bytes.extend(self.payload_len.to_le_bytes());
        bytes.extend(self.body_crc.to_le_bytes());
        bytes.extend([0; 4]); // the payload's checksum
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        assert_eq!(bytes.len(), 80);
        bytes
    }
}

/// The cluster's id.
fn cluster_id(cluster: &Cluster) -> u128 {
    Credentials::of(cluster.dir(1)).cluster
}

#[test]
fn peers_that_make_no_sense_harm_nobody_and_the_log_says_what_was_wrong() {
    unharmed_by(|cluster| {
        let ours = cluster_id(cluster);
        let hello = |change: fn(&mut PeerHeader)| {
            let body = [0; 32];
            let mut header = PeerHeader {
                version: 1,
                kind: 1,
                flags: 0,
                body_len: 32,
                cluster: ours,
                payload_len: 0,
                body_crc: crc32c::crc32c(&body),
            };
            change(&mut header);
            [header.bytes(), body.to_vec()].concat()
        };
        let mut wrong_header_crc = hello(|_| {});
        wrong_header_crc[79] ^= 1;
        let scripts = [
            noise(1 << 20, 11),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"LkS1".to_vec(),
            wrong_header_crc,
            hello(|header| header.version = 99),
            hello(|header| header.cluster ^= 1),
            hello(|header| header.body_crc ^= 1),
            hello(|header| header.kind = 999),
            hello(|header| header.body_len = u32::MAX),
            hello(|header| {
                header.flags = 1;
                header.payload_len = u32::MAX;
            }),
            // A hello that says nothing; a write before any hello.
            hello(|_| {}),
            hello(|header| header.kind = 16),
        ];
        for k in [1, 2] {
            let address = cluster.address(k, "replication");
            for script in &scripts {
                throw_at_node(cluster, k, &address, script);
            }
            let silent: Vec<TcpStream> = (0..50).map(|_| connect(&address)).collect();
            drop(silent);
            let log = std::fs::read_to_string(cluster.file(k, "log")).expect("a log");
            for words in ["version", "cluster", "checksum"] {
                assert!(
                    log.lines()
                        .any(|line| line.contains("peer connection") && line.contains(words)),
                    "nothing about the {words} in the log of node {k}:\n{log}"
                );
            }
        }
    });
}

#[test]
fn controllers_that_make_no_sense_harm_nobody() {
    unharmed_by(|cluster| {
        let ours = cluster_id(cluster);
        // As in `controller::runtime::frame`.
        let frame = |version: u16, length: u32, id: u128, body: &[u8]| {
            let mut bytes = b"LSCT".to_vec();
            bytes.extend(version.to_le_bytes());
            bytes.extend([0; 2]);
            bytes.extend(length.to_le_bytes());
            bytes.extend(id.to_le_bytes());
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
            bytes.extend(crc.to_le_bytes());
            bytes.extend(body);
            bytes
        };
        let body = noise(64, 5);
        let mut wrong_crc = frame(1, 64, ours, &body);
        wrong_crc[28] ^= 1;
        let scripts = [
            noise(1 << 20, 13),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"LSCT".to_vec(),
            wrong_crc,
            frame(99, 64, ours, &body),
            frame(1, 64, ours ^ 1, &body),
            frame(1, 64, ours, &body),
            frame(1, 0, ours, &[]),
            frame(1, u32::MAX, ours, &body),
            // As long as is allowed, and never sent.
            frame(1, 1 << 20, ours, &body),
        ];
        for k in [1, 2] {
            let address = cluster.address(k, "control");
            for script in &scripts {
                throw_at_node(cluster, k, &address, script);
            }
        }
        // Connections that say nothing must not keep the nodes from each other.
        let address = cluster.address(1, "control");
        let silent: Vec<TcpStream> = (0..300).map(|_| connect(&address)).collect();
        cluster.wait(2, "node 2 to hear of the cluster", |r0| {
            r0.is_in_sync("node1")
        });
        cluster.must(2, &["verify", "r0", "--wait"]);
        drop(silent);
    });
}

#[test]
fn garbage_on_the_api_socket_harms_nobody() {
    use std::os::unix::net::UnixStream;
    unharmed_by(|cluster| {
        for bytes in [
            noise(1 << 20, 17),
            b"POST /v1/operations HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n".to_vec(),
            b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        ] {
            let mut stream = UnixStream::connect(cluster.file(1, "api.sock")).expect("it listens");
            let limit = Some(Duration::from_secs(10));
            stream.set_read_timeout(limit).expect("a time-out");
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
        cluster.must(1, &["status"]);
    });
}

// --- configuration and commands --------------------------------------------------------------

#[test]
fn a_wrong_configuration_is_refused_with_file_line_and_reason() {
    let cluster = Cluster::new(2, SIZE);
    let path = cluster.file(1, "lockstep.toml");
    let good = std::fs::read_to_string(&path).expect("a configuration");
    let control = cluster.address(1, "control");
    let replication = cluster.address(1, "replication");
    for (old, new, words) in [
        ("node =", "colour = \"red\"\nnode =", "colour"),
        ("node =", "[[nodes]]\nid = 1\n[x]\nnode =", "nodes"),
        (
            "node = \"node1\"",
            "node = \"nobody\"",
            "this machine is node1 in its cluster",
        ),
        ("node =", "api_socket = 5\nnode =", "invalid type"),
        (
            "node =",
            "data_directory = \"/nowhere/at/all\"\nnode =",
            "/nowhere/at/all",
        ),
        (
            "nbd_listen = [\"127.0.0.1:",
            "nbd_listen = [\"0.0.0.0:",
            "whoever reaches it reads and writes every disk",
        ),
        (control.as_str(), "somewhere", "HOST:PORT"),
        (
            replication.as_str(),
            control.as_str(),
            "this address is named twice",
        ),
        (
            "node =",
            "tuning = { evict_after_ms = 9999999 }\nnode =",
            "out of range",
        ),
        ("node =", "[node", "unclosed table"),
    ] {
        assert!(good.contains(old), "{old} is not in: {good}");
        cluster.change_config(1, |_| good.replacen(old, new, 1));
        let output = output_within(cluster.daemon_command(1), SOON);
        assert_eq!(output.status.code(), Some(1), "{new}: {}", text(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words), "{new}: {said}");
        let names_place = said.contains(&path.display().to_string()) || words.starts_with('/');
        assert!(names_place, "{new}: the file is not named: {said}");
    }
    cluster.change_config(1, |_| good);
}

#[test]
fn resources_that_can_not_be_are_refused_and_the_daemon_goes_on() {
    let cluster = Cluster::start(2, SIZE);
    let long = "x".repeat(65);
    for (arguments, words) in [
        (&["r0", "--size", "16MiB"][..], "r0"),
        (&["no/name", "--size", "16MiB"], "not a name"),
        (&[long.as_str(), "--size", "16MiB"], "not a name"),
        (&["a", "--size", "0"], "size"),
        (&["a", "--size", "5000"], "4096"),
        (&["a", "--size", "99PiB"], "PiB"),
        (&["a", "--size", "-1"], "-1"),
        (&["a", "--size", "1MiB", "--replica", "node7"], "node7"),
        (
            &[
                "a",
                "--size",
                "1MiB",
                "--replica",
                "node1",
                "--replica",
                "node1",
            ],
            "node1",
        ),
        (
            &["a", "--size", "1MiB", "--replica", "node1:x.img,y.img"],
            "2 paths for 1 volumes",
        ),
        (&["a", "--size", "1MiB", "--min-redundancy", "4"], "3"),
        (&["a", "--size", "1MiB", "--min-redundancy", "0"], "0"),
    ] {
        let all = [&["resource", "create"], arguments].concat();
        let said = cluster.refusal(1, &all);
        assert!(said.contains(words), "{all:?}: {said}");
        assert!(cluster.resource(1, "a").is_none(), "{all:?} made something");
    }
    for (arguments, words) in [
        (&["promote", "nothing"][..], "nothing"),
        (&["promote", "r0", "nobody"], "nobody"),
        (&["verify", "nothing"], "nothing"),
        (&["resource", "delete", "r0"], "primary"),
        (&["volume", "resize", "r0/7", "1GiB"], "no volume 7"),
        (&["volume", "resize", "r0", "100000001"], "4096"),
    ] {
        let said = cluster.refusal(1, arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    cluster
        .fio(1, 0, SIZE)
        .write_and_verify()
        .expect("the cluster serves on");
}

#[test]
fn a_replica_in_a_directory_that_is_not_there_is_named_and_the_others_begin() {
    let cluster = Cluster::start(2, SIZE);
    let output = cluster.command(
        1,
        &[
            "resource",
            "create",
            "a",
            "--size",
            "16MiB",
            "--replica",
            "node1",
            "--replica",
            "node2:/nowhere/at/all/a.img",
        ],
    );
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("node2"), "{}", text(&output));
    cluster.must(1, &["promote", "a", "node1"]);
    let said = cluster.must(1, &["status", "a"]);
    assert!(said.contains("/nowhere/at/all/a.img"), "{said}");
    let mut client = Client::connect(cluster.port(1), "a").expect("it is served");
    client.write(0, &[1; 4096]).expect("it takes writes");
}

// --- metadata --------------------------------------------------------------------------------

const SUPERBLOCK_B: u64 = 64 << 10;

fn open(path: &Path) -> std::fs::File {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    file.expect("the metadata file opens")
}

fn rewrite_block(file: &std::fs::File, offset: u64, change: impl FnOnce(&mut [u8; 4096])) {
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, offset).expect("a block");
    change(&mut block);
    file.write_all_at(&block, offset).expect("a block");
}

/// Sets the version of a metadata block's format; its checksum is right.
fn set_version(block: &mut [u8; 4096], version: u16) {
    block[12..14].copy_from_slice(&version.to_le_bytes());
    block[8..12].fill(0);
    let crc = crc32c::crc32c(&block[..]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// Node 2 starts with damaged metadata. Its daemon must be up; says why its replica is not there,
/// if `words` are given, else it must have mended it; the primary has everything either way.
fn with_damaged_metadata(damage: impl FnOnce(&std::fs::File), words: Option<&str>) {
    let mut cluster = Cluster::start(2, SIZE);
    let written = cluster.fio(1, 0, SIZE);
    written.write_and_flush().expect("writes succeed");
    cluster.wait_all_in_sync();
    cluster.stop_all();
    let path = cluster.file(2, "r0.img.meta");
    damage(&open(&path));
    let damaged = std::fs::read(&path).expect("the metadata");
    cluster.start_node(1);
    cluster.start_node(2);
    cluster.promote(1);
    if let Some(words) = words {
        cluster.wait(2, "node 2 to refuse its replica", |r0| {
            r0.replica("node2").disk_state == "Diskless"
        });
        let said = cluster.must(2, &["status"]);
        assert!(said.contains(words), "{words} is not in: {said}");
        assert!(said.contains("r0.img"), "the file is not named: {said}");
        written.verify_only().expect("the primary has everything");
        assert_eq!(
            std::fs::read(&path).expect("the metadata"),
            damaged,
            "metadata that was refused was written to"
        );
    } else {
        cluster.stop_and_compare_replicas();
        cluster.start_all();
        written.verify_only().expect("everything is there");
    }
}

#[test]
fn metadata_of_a_newer_version_are_refused_and_left_alone() {
    with_damaged_metadata(
        |file| rewrite_block(file, 0, |block| set_version(block, 2)),
        Some("format version 2"),
    );
}

#[test]
fn metadata_torn_in_both_copies_are_refused_and_left_alone() {
    with_damaged_metadata(
        |file| {
            rewrite_block(file, 0, |block| block[100..].fill(0x5a));
            rewrite_block(file, SUPERBLOCK_B, |block| block[..100].fill(0xff));
        },
        Some("no usable superblock"),
    );
}

#[test]
fn something_elses_bytes_in_the_place_of_metadata_are_refused() {
    with_damaged_metadata(
        |file| {
            for offset in [0, SUPERBLOCK_B] {
                file.write_all_at(&noise(4096, 23), offset)
                    .expect("a block");
            }
        },
        Some("foreign"),
    );
}

#[test]
fn metadata_torn_in_one_copy_are_mended_from_the_other() {
    for torn in [0, SUPERBLOCK_B] {
        with_damaged_metadata(
            |file| rewrite_block(file, torn, |block| block[1500..].fill(0xaa)),
            None,
        );
    }
}

#[test]
fn a_lost_activity_log_costs_a_comparison_and_no_data() {
    with_damaged_metadata(
        |file| {
            let ring = noise(512 << 10, 29);
            file.write_all_at(&ring, 128 << 10).expect("the ring");
            file.write_all_at(&ring, 1 << 20).expect("its copy");
        },
        None,
    );
}
