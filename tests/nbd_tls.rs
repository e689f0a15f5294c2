//! NBD over TLS with the operator's own certificates: each mode and who may come in, with libnbd (GnuTLS)
//! and QEMU; and listening sockets that systemd hands over.

mod common;

use common::cluster::Cluster;
use common::command::{LOCKSTEP, client, kill, output_within, text};
use common::pki::Certificates;
use common::{SOON, wait_for};
use nix::sys::signal::Signal;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const SIZE: u64 = 64 << 20;
const CLIENT_LIMIT: Duration = Duration::from_secs(120);

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = client(program);
    command.args(arguments);
    output_within(command, CLIENT_LIMIT)
}

fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fail(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        !output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output)
    );
    text(&output)
}

/// A cluster that runs with this section in node 1's configuration.
fn with(section: &str, change: impl FnOnce(String) -> String) -> Cluster {
    let mut cluster = Cluster::new(2, SIZE);
    cluster.change_config(1, |config| change(config) + section);
    cluster.start_all();
    cluster
}

fn secure(cluster: &Cluster, certificates: &Path) -> String {
    format!(
        "nbds://127.0.0.1:{}/r0?tls-certificates={}",
        cluster.port(1),
        certificates.display()
    )
}

#[test]
fn where_tls_is_required_nobody_gets_in_without_it() {
    let certificates = Certificates::new();
    let cluster = with(&certificates.section("require", false), |config| {
        // Encrypted, it may be had from everywhere.
        config.replace("nbd_listen = [\"127.0.0.1:", "nbd_listen = [\"0.0.0.0:")
    });
    let uri = secure(&cluster, &certificates.of("nobody"));
    let info = succeed("nbdinfo", &[&uri]);
    assert!(info.contains("with TLS"), "{info}");
    let refused = fail("nbdinfo", &[&cluster.uri(1)]);
    assert!(refused.contains("TLS"), "{refused}");
    fail("qemu-img", &["info", "-f", "raw", &cluster.uri(1)]);
    common::nbd::Client::connect(cluster.port(1), "r0").expect_err("EXPORT_NAME in the clear");
    let list = fail(
        "nbdinfo",
        &["--list", &format!("nbd://127.0.0.1:{}", cluster.port(1))],
    );
    assert!(
        !list.contains("r0"),
        "exports are told in the clear: {list}"
    );
    // A unix socket is on this machine.
    let socket = cluster.file(1, "nbd.sock");
    let mut local = common::nbd::Client::connect_unix(&socket, "r0").expect("a local client");
    local.write(0, &[7; 4096]).expect("a write");

    // Both ways, in large requests.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let pattern: Vec<u8> = (0..SIZE / 4)
        .flat_map(|n| u32::try_from(n % 1_000_003).expect("small").to_le_bytes())
        .collect();
    std::fs::write(file("source"), &pattern).expect("a file");
    succeed(
        "nbdcopy",
        &["--request-size=8388608", &file("source"), &uri],
    );
    succeed("nbdcopy", &[&uri, &file("back")]);
    assert!(
        std::fs::read(file("back")).expect("a file") == pattern,
        "the copy differs"
    );
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let certificates = Certificates::new();
    let cluster = with(&certificates.section("on", false), |config| config);
    let dir = certificates.of("nobody");
    let image = format!(
        "driver=nbd,host=127.0.0.1,port={},export=r0,tls-creds=t",
        cluster.port(1)
    );
    let with_version = |version: &str| {
        let object = format!(
            "tls-creds-x509,id=t,endpoint=client,dir={},priority=NORMAL:-VERS-ALL:+{version}:%COMPAT",
            dir.display()
        );
        run(
            "qemu-img",
            &["info", "--object", &object, "--image-opts", &image],
        )
    };
    for version in ["VERS-TLS1.3", "VERS-TLS1.2"] {
        let output = with_version(version);
        assert!(output.status.success(), "{version}: {}", text(&output));
    }
    let output = with_version("VERS-TLS1.1");
    assert!(
        !output.status.success(),
        "TLS 1.1 was accepted: {}",
        text(&output)
    );
    // Where it is not required, clients without it are served as well.
    succeed("nbdinfo", &[&cluster.uri(1)]);

    // Other certificates count from a SIGHUP on, and what is none changes nothing.
    let pid = std::fs::read_to_string(cluster.file(1, "pid")).expect("a file");
    let pid = pid.trim().parse().expect("a process id");
    let reload = |expected: &str| {
        kill(pid, Signal::SIGHUP);
        wait_for("the certificates to be read", SOON, || {
            let log = std::fs::read_to_string(cluster.file(1, "log")).expect("a log");
            let mut lines = log.lines();
            let found = lines.find(|line| line.contains("[nbd_tls]") && line.contains(expected));
            found.map(str::to_owned).ok_or(log)
        })
    };
    let old = secure(&cluster, &dir);
    certificates.spoil();
    let line = reload("can't be used");
    assert!(
        line.contains("ERROR") && line.contains("server.crt holds no certificate"),
        "{line}"
    );
    succeed("nbdinfo", &[&old]);
    certificates.renew();
    fail("nbdinfo", &[&secure(&cluster, &certificates.of("renewed"))]);
    reload("are read anew");
    succeed("nbdinfo", &[&secure(&cluster, &certificates.of("renewed"))]);
    fail("nbdinfo", &[&old]);
}

#[test]
fn clients_prove_who_they_are_where_an_authority_is_named() {
    let certificates = Certificates::new();
    let cluster = with(&certificates.section("require", true), |config| config);
    succeed("nbdinfo", &[&secure(&cluster, &certificates.of("client"))]);
    for who in ["stranger", "nobody"] {
        fail("nbdinfo", &[&secure(&cluster, &certificates.of(who))]);
    }
    let log = std::fs::read_to_string(cluster.file(1, "log")).expect("a log");
    assert!(log.contains("a client connection is given up"), "{log}");
    // Encrypted writes of one who is known, while others bring rubbish.
    let hostile = std::thread::scope(|scope| {
        let port = cluster.port(1);
        let rubbish = scope.spawn(move || {
            for round in 0..30_u8 {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
                stream.set_read_timeout(Some(SOON)).expect("a time-out");
                stream.read_exact(&mut [0; 18]).expect("a greeting");
                stream
                    .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0")
                    .expect("STARTTLS");
                // Behind it in the clear, or at once in the same piece: it is no TLS.
                let mut junk = vec![round; 200];
                junk[..16].copy_from_slice(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
                let _ = stream.write_all(&junk);
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                assert!(
                    answer.starts_with(&[0, 3, 0xe8, 0x89]),
                    "no acknowledgement"
                );
                assert!(
                    !answer.windows(2).any(|two| two == b"r0"),
                    "an option in the clear was answered"
                );
            }
        });
        let uri = secure(&cluster, &certificates.of("client"));
        let script = format!(
            "h.set_uri_allow_local_file(True)\n\
             h.connect_uri('{uri}')\n\
             assert h.get_tls_negotiated()\n\
             for n in range(2000):\n    \
                 data = bytes([n % 256]) * 5000\n    \
                 h.pwrite(data, n * 5000)\n    \
                 assert h.pread(5000, n * 5000) == data\n"
        );
        succeed("nbdsh", &["-c", &script]);
        rubbish.join()
    });
    hostile.expect("rubbish is answered by the end of the connection");
}

#[test]
fn without_tls_a_client_that_insists_is_refused() {
    let certificates = Certificates::new();
    let cluster = Cluster::start(2, SIZE);
    fail("nbdinfo", &[&secure(&cluster, &certificates.of("client"))]);
    succeed("nbdinfo", &[&cluster.uri(1)]);
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let certificates = Certificates::new();
    let cluster = Cluster::new(2, SIZE);
    let good = certificates.section("require", true);
    let before = std::fs::read_to_string(cluster.file(1, "lockstep.toml")).expect("a file");
    for (old, new, named) in [
        ("server.crt", "missing.crt", "missing.crt"),
        ("server.crt", "server.key", "holds no certificate"),
        ("server.key", "client/client-key.pem", "are no pair"),
        ("/ca.crt", "/server.key", "holds no certificate"),
    ] {
        assert!(good.contains(old), "{old}");
        cluster.change_config(1, |_| before.clone() + &good.replace(old, new));
        let output = output_within(cluster.daemon_command(1), SOON);
        assert!(!output.status.success(), "{named}: {}", text(&output));
        assert!(text(&output).contains(named), "{named}: {}", text(&output));
    }
}

#[test]
fn a_socket_that_systemd_hands_over_is_served_and_outlives_the_daemon() {
    let mut cluster = Cluster::new(2, SIZE);
    let (port, config) = (cluster.port(1), cluster.file(1, "lockstep.toml"));
    let listen = format!("nbd_listen = [\"127.0.0.1:{port}\"]");
    cluster.change_config(1, |text| {
        assert!(text.contains(&listen), "{text}");
        text.replace(&listen, "")
    });
    let activate = |name: &str| {
        let mut command = Command::new("systemd-socket-activate");
        command
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--fdname={name}"))
            .arg(LOCKSTEP)
            .args(["daemon", "--config"])
            .arg(&config);
        command
    };
    let knock = || {
        wait_for("the socket", SOON, || {
            TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())
        })
    };
    let mut refused = activate("teapot");
    refused.stderr(Stdio::piped());
    let child = refused.spawn().expect("systemd-socket-activate runs");
    let first = knock();
    let output = child.wait_with_output().expect("it ends");
    drop(first);
    assert!(!output.status.success());
    assert!(text(&output).contains("teapot"), "{}", text(&output));

    cluster.start_node_with(1, activate("nbd"), || drop(knock()));
    for k in 2..=cluster.nodes() {
        cluster.start_node(k);
    }
    cluster.promote(1);
    succeed("nbdinfo", &[&cluster.uri(1)]);
    cluster.client(1).write(0, &[7; 4096]).expect("a write");
    cluster.stop_node(1);
}
