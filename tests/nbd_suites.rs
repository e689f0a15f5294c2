//! Clients and test programs of other implementations that `scripts/test packages` fetches: today's
//! libnbd and QEMU, which use extended headers, and the test client of the protocol's reference
//! implementation with the checks of its own test suite.

mod common;

use common::cluster::Cluster;
use common::command::{output_within, said_by, text};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const GIB: u64 = 1 << 30;
/// What the reference implementation's tests take for a disk.
const TESTER_SIZE: u64 = 50 << 20;
const CLIENT_LIMIT: Duration = Duration::from_secs(120);

/// What `scripts/test` has fetched into `target`.
fn fetched(what: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target")
        .join(what);
    assert!(
        directory.exists(),
        "no {}; `scripts/test packages` fetches it",
        directory.display()
    );
    directory
}

/// Output of a newer client, which must succeed.
fn newer(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("chroot");
    command.arg(fetched("newer-clients")).arg(program);
    command.args(arguments);
    // Paths of the machine's own interpreters mean nothing there.
    command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin");
    said_by(command, CLIENT_LIMIT)
}

#[test]
fn clients_of_today_use_extended_headers_on_every_node() {
    let mut cluster = Cluster::start(2, 8 * GIB);
    let uris = [cluster.uri(1), cluster.uri(2)];
    for uri in &uris {
        let info = newer("nbdinfo", &[uri]);
        assert!(info.contains("using extended packets"), "{info}");
        // Effects beyond 32 bits, a status of the whole disk in one answer, and of one context of two.
        let script = format!(
            "h.add_meta_context('base:allocation')\n\
             h.add_meta_context('lockstep:out-of-sync')\n\
             h.connect_uri('{uri}')\n\
             assert h.get_extended_headers_negotiated() and h.can_block_status_payload()\n\
             size = h.get_size()\n\
             data = bytes(range(256)) * 256\n\
             for at in 1 << 20, 5 << 30, size - len(data): h.pwrite(data, at, nbd.CMD_FLAG_FUA)\n\
             def status(ask, *more):\n    \
                 told = {{}}\n    \
                 ask(size, 0, *more, lambda context, offset, extents, error:\n        \
                     told.setdefault(context, []).extend(extents))\n    \
                 return told\n\
             both = status(h.block_status_64)\n\
             assert sorted(both) == ['base:allocation', 'lockstep:out-of-sync'], both\n\
             assert sum(length for length, _ in both['base:allocation']) == size, both\n\
             assert sum(l for l, flags in both['base:allocation'] if flags == 0) == 3 * len(data), both\n\
             one = status(h.block_status_filter, ['base:allocation'])\n\
             assert one == {{'base:allocation': both['base:allocation']}}, one\n\
             h.cache(size - 4096, 4096)\n\
             h.trim(6 << 30, 0)\n\
             assert h.pread(len(data), size - len(data)) == data\n\
             h.zero(size, 0)\n\
             assert status(h.block_status_64)['base:allocation'] == [(size, 3)]\n\
             for at in 1 << 20, 5 << 30, size - len(data):\n    \
                 assert h.pread(len(data), at) == bytes(len(data))\n"
        );
        newer("nbdsh", &["-c", &script]);
    }
    let fill = "for n in range(40): h.pwrite(bytes([n + 1]) * 65536, n * 200 << 20)";
    newer("nbdsh", &["-u", &uris[1], "-c", fill]);
    for image in &uris {
        let map = newer("qemu-img", &["map", "--output=json", "-f", "raw", image]);
        let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
        let extents = map.as_array().expect("a list");
        let data = |extent: &serde_json::Value| extent["data"] == true;
        assert_eq!(extents.iter().filter(|extent| data(extent)).count(), 40);
        newer("nbdcopy", &[image, "null:"]);
    }
    newer(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uris[0], &uris[1]],
    );
    let write = ["-f", "raw", "-c", "write -P 9 4G 1M", "-c", "flush"];
    newer("qemu-io", &[&write[..], &[&uris[0]]].concat());
    let read = ["-f", "raw", "-c", "read -P 9 4G 1M"];
    newer("qemu-io", &[&read[..], &[&uris[1]]].concat());
    cluster.stop_all();
}

/// The reference implementation's test client, with arguments as its test suite gives them.
fn tester(cluster: &Cluster, k: usize, arguments: &[&str]) {
    let directory = fetched("nbd-tester");
    let mut command = Command::new(directory.join("nbd-tester-client"));
    let port = cluster.port(k).to_string();
    command
        .args(arguments)
        .args(["-N", "r0", "127.0.0.1", &port]);
    command.current_dir(&directory);
    let output = output_within(command, CLIENT_LIMIT);
    // Its progress is longer than what it has to say.
    let said = text(&output);
    let last: Vec<&str> = said.rsplit(['\r', '\n']).take(6).collect();
    assert!(output.status.success(), "{arguments:?}: {last:?}");
}

#[test]
fn the_reference_implementations_own_tests_pass() {
    let mut cluster = Cluster::start(2, TESTER_SIZE);
    // Its suite's handshake, integrity, integrityhuge, flush, cfg1, cfgsize. The integrity tests
    // expect a disk of zeroes.
    let zero = |cluster: &Cluster| {
        let mut client = cluster.client(1);
        let half = u32::try_from(TESTER_SIZE / 2).expect("small");
        for offset in [0, TESTER_SIZE / 2] {
            client.write_zeroes(offset, half).expect("zeroes");
        }
    };
    tester(&cluster, 1, &["-h"]);
    for k in [1, 2] {
        zero(&cluster);
        tester(&cluster, k, &["-i", "-t", "integrity-test.tr"]);
    }
    zero(&cluster);
    // Requests of up to 50 MB, 5.7 GB in all.
    tester(&cluster, 1, &["-i", "-t", "integrityhuge-test.tr"]);
    tester(&cluster, 1, &["-w", "-f"]);
    tester(&cluster, 1, &[]);
    tester(&cluster, 1, &["-o"]);
    cluster.stop_and_compare_replicas();
}
