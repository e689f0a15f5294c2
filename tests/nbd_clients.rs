//! Other people's NBD clients on a mirrored disk: what they are told of holes and of replicas that lag
//! behind, small and unaligned requests, and the order in which a node lets them go.

mod common;

use common::cluster::Cluster;
use common::command::{client, output_within, said_by, text};
use common::{SOON, wait_for};
use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const CLIENT_LIMIT: Duration = Duration::from_secs(120);

fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = client(program);
    command.args(arguments);
    said_by(command, CLIENT_LIMIT)
}

/// A script of `nbdsh`, with `h` connected to the URI.
fn nbdsh(uri: &str, script: &str) -> String {
    run("nbdsh", &["-u", uri, "-c", script])
}

/// `(offset, length, status)` of each extent.
fn map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let output = run("nbdinfo", &[&format!("--map={context}"), "--json", uri]);
    let extents: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().expect("a number");
    let extents = extents.as_array().expect("a list");
    extents
        .iter()
        .map(|extent| {
            (
                number(extent, "offset"),
                number(extent, "length"),
                number(extent, "type"),
            )
        })
        .collect()
}

#[test]
fn holes_are_told_and_copies_keep_them() {
    let mut cluster = Cluster::start(3, SIZE);
    let uri = cluster.uri(1);
    assert_eq!(map(&uri, "base:allocation"), [(0, SIZE, 3)]);
    let mut client = cluster.client(1);
    client.write(MIB, &[7; 65536]).expect("a write");
    client.write(40 * MIB, &[8; 4096]).expect("a write");
    let written = [
        (0, MIB, 3),
        (MIB, 65536, 0),
        (MIB + 65536, 39 * MIB - 65536, 3),
        (40 * MIB, 4096, 0),
        (40 * MIB + 4096, 24 * MIB - 4096, 3),
    ];
    assert_eq!(map(&uri, "base:allocation"), written);
    let json = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let seen: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(seen.as_array().map(Vec::len), Some(5), "{json}");
    // Every node asks the primary.
    for k in [2, 3] {
        assert_eq!(map(&cluster.uri(k), "base:allocation"), written);
    }

    let dir = tempfile::tempdir().expect("a temporary directory");
    let copy = dir.path().join("copy").display().to_string();
    for k in [1, 2] {
        run("nbdcopy", &["--synchronous", &cluster.uri(k), &copy]);
        run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &copy, &uri],
        );
    }
    for k in [1, 2] {
        let from = cluster.uri(k);
        run(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "raw", &from, &copy],
        );
        run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &copy, &uri],
        );
        let copied = std::fs::metadata(&copy).expect("a copy");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&copied);
        assert!(
            blocks * 512 <= MIB,
            "{blocks} blocks of 512: the copy from node {k} has lost its holes"
        );
    }

    cluster.client(2).trim(MIB, 65536).expect("a discard");
    for k in 1..=3 {
        let told = map(&cluster.uri(k), "base:allocation");
        assert_eq!(told[0], (0, 40 * MIB, 3), "node {k}");
    }
    // Each extent of a part, as a client that goes on from the end of the last answer sees it.
    let script = "\
        seen = []\n\
        def extents(context, offset, found, error):\n    seen.append((context, found))\n\
        h.block_status(8192, (40 << 20) - 4096, extents)\n\
        assert seen == [('base:allocation', [4096, 3, 4096, 0])], seen\n";
    for k in [1, 3] {
        let connect = format!(
            "h.add_meta_context('base:allocation')\nh.connect_uri('{}')\n{script}",
            cluster.uri(k)
        );
        run("nbdsh", &["-c", &connect]);
    }
    run("nbdcopy", &["--destination-is-zero", &copy, &uri]);
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &copy, &uri],
    );
    cluster.stop_and_compare_replicas();
}

#[test]
fn what_a_lost_replica_lacks_is_told_until_it_is_back() {
    let context = "lockstep:out-of-sync";
    let mut cluster = Cluster::start(3, SIZE);
    let uri = cluster.uri(1);
    assert_eq!(map(&uri, context), [(0, SIZE, 0)]);
    assert_eq!(map(&cluster.uri(2), context), [(0, SIZE, 0)]);
    cluster.kill_node(3);
    cluster.wait_evicted(1, 3);
    let mut client = cluster.client(1);
    client.write(20 * MIB + 8192, &[7; 4096]).expect("a write");
    let told = map(&uri, context);
    assert_eq!(map(&cluster.uri(2), context), told);
    let lacking = (20 * MIB + 8192, 4096, 1);
    assert!(told.contains(&lacking), "{lacking:?} is not among {told:?}");
    let bytes: u64 = told.iter().map(|(_, length, lacks)| length * lacks).sum();
    let status = cluster.r0(1).replica("node3").out_of_sync_bytes;
    assert_eq!(bytes, status.max(4096), "{told:?}");
    cluster.start_node(3);
    cluster.wait_all_in_sync();
    wait_for("nothing to be lacking", SOON, || match map(&uri, context) {
        told if told == [(0, SIZE, 0)] => Ok(()),
        told => Err(format!("{told:?}")),
    });
}

#[test]
fn neighbouring_bytes_that_are_written_at_once_are_all_kept_on_every_replica() {
    let mut cluster = Cluster::start(3, SIZE);
    // Each byte of three blocks in a request of its own, from two connections by turns, and through
    // another node as well.
    let script = format!(
        "import nbd\n\
         handles = [h]\n\
         for uri in ['{}', '{}']:\n    \
             other = nbd.NBD()\n    other.connect_uri(uri)\n    handles.append(other)\n\
         first = 1 << 20\n\
         count = 3 * 4096\n\
         def byte(i): return bytes([(i * 7 + i // 256) % 256])\n\
         waiting = []\n\
         for i in range(count):\n    \
             one = handles[i % 3]\n    \
             waiting.append((one, one.aio_pwrite(byte(i), first + i)))\n    \
             while one.aio_in_flight() > 100: one.poll(-1)\n\
         for one, cookie in waiting:\n    \
             while not one.aio_command_completed(cookie): one.poll(-1)\n\
         for one in handles:\n    \
             assert one.pread(count, first) == b''.join(byte(i) for i in range(count))\n\
         assert h.pread(3, first + 4095) == byte(4095) + byte(4096) + byte(4097)\n\
         assert h.pread(1, first - 1) == b'\\0' and h.pread(1, first + count) == b'\\0'\n\
         h.zero(100, first + 5)\n\
         assert h.pread(102, first + 4) == byte(4) + bytes(100) + byte(105)\n\
         h.trim(511, first + 4097)\n\
         assert h.pread(1, first + 4096) == byte(4096)\n\
         h.flush()\n",
        cluster.uri(1),
        cluster.uri(2),
    );
    nbdsh(&cluster.uri(1), &script);
    cluster.stop_and_compare_replicas();
}

#[test]
fn the_largest_payload_and_the_smallest_block_sizes_are_served() {
    let cluster = Cluster::start(2, 2 * SIZE);
    let script = "\
        assert h.get_block_size(nbd.SIZE_MAXIMUM) == 64 << 20\n\
        data = bytes(range(256)) * (256 << 10)\n\
        h.pwrite(data, 4096)\n\
        assert h.pread(64 << 20, 4096) == data\n\
        for at in range(0, 4096, 512):\n    h.pwrite(bytes([at // 512 + 1]) * 512, at)\n\
        assert h.pread(512, 3584) == bytes([8]) * 512\n\
        assert h.pread(4096, 512)[:3584] == b''.join(bytes([n]) * 512 for n in range(2, 9))\n";
    nbdsh(&cluster.uri(1), script);
    let list = run(
        "nbd-client",
        &["-l", "127.0.0.1", &cluster.port(1).to_string()],
    );
    assert!(list.lines().any(|line| line.trim() == "r0"), "{list}");
}

/// Every node has the same stores here, so what one does fast all do.
const FAST_ZEROES: &str = "\
    fast = nbd.CMD_FLAG_FAST_ZERO\n\
    assert h.can_fast_zero()\n\
    h.pwrite(b'x' * 65536, 0)\n\
    h.zero(16384, 100, fast)\n\
    assert h.pread(16386, 99) == b'x' + bytes(16384) + b'x'\n\
    h.zero(48 << 20, 4096, fast)\n\
    assert h.pread(65536, 0) == (b'x' * 100 + bytes(65436))[:4096] + bytes(61440)\n\
    def kept(at):\n    \
        h.pwrite(b'y' * 8192, at)\n    \
        try:\n        \
            h.zero(8192, at, fast | nbd.CMD_FLAG_NO_HOLE)\n    \
        except nbd.Error as error:\n        \
            assert error.errno in ('ENOTSUP', 'EOPNOTSUPP'), error\n        \
            assert h.pread(8192, at) == b'y' * 8192\n        \
            h.zero(8192, at, nbd.CMD_FLAG_NO_HOLE)\n        \
            assert h.pread(8192, at) == bytes(8192)\n        \
            return False\n    \
        assert h.pread(8192, at) == bytes(8192)\n    \
        return True\n\
    print(kept(1 << 20))\n";

#[test]
fn zeroes_that_shall_be_fast_are_or_are_refused_on_every_node() {
    let mut cluster = Cluster::start(2, SIZE);
    let told: Vec<String> = (1..=2)
        .map(|k| nbdsh(&cluster.uri(k), FAST_ZEROES))
        .collect();
    assert_eq!(told[0], told[1]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    let mut bytes = vec![0; usize::try_from(SIZE).expect("small")];
    bytes[5000..9000].fill(7);
    std::fs::write(&image, bytes).expect("a file");
    let image = image.display().to_string();
    // What was there before has to go.
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw"];
    for (k, program, arguments) in [(1, "nbdcopy", &[][..]), (2, "qemu-img", &convert)] {
        let uri = cluster.uri(k);
        run("qemu-io", &["-f", "raw", "-c", "write -P 9 0 8M", &uri]);
        run(program, &[arguments, &[&image, &uri]].concat());
        let compare = ["compare", "-f", "raw", "-F", "raw", &image, &uri];
        run("qemu-img", &compare);
        run("qemu-io", &["-f", "raw", "-c", "write -z -u -n 0 1M", &uri]);
    }
    cluster.stop_and_compare_replicas();
}

#[test]
fn a_node_that_stops_lets_its_clients_go_in_order() {
    let mut cluster = Cluster::start(2, SIZE);
    let mut idle = TcpStream::connect(("127.0.0.1", cluster.port(1))).expect("a connection");
    idle.set_read_timeout(Some(SOON)).expect("a time-out");
    idle.read_exact(&mut [0; 18]).expect("a greeting");
    let busy = "import nbd\nn = 0\n\
         try:\n    while True:\n        h.pwrite(b'x' * 4096, (n % 1000) * 4096)\n        n += 1\n\
         except nbd.Error as error:\n    \
             print('ended', error.errno, flush=True)\n";
    let mut command = client("nbdsh");
    command.args(["-u", &cluster.uri(1), "-c", busy]);
    let client = std::thread::spawn(move || output_within(command, CLIENT_LIMIT));
    let mut reader = cluster.client(1);
    wait_for("the client to write", SOON, || {
        match reader
            .read(999 * 4096, 1)
            .map_err(|error| error.to_string())?[..]
        {
            [b'x'] => Ok(()),
            ref other => Err(format!("{other:?}")),
        }
    });
    cluster.stop_node(1);
    let output = client.join().expect("the client ends");
    let said = text(&output);
    assert!(said.contains("ended"), "{said}");
    let orderly = ["ESHUTDOWN", "ENOTCONN", "None"];
    assert!(orderly.iter().any(|word| said.contains(word)), "{said}");
    assert!(
        !said.contains("ECONNRESET") && !said.contains("EIO"),
        "{said}"
    );
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("an end, and no reset");
    assert!(rest.is_empty());
}
