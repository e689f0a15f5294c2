//! Promises of the configuration file: what is taken, and the exact words of what is not.

use super::*;

const GOOD: &str = r#"node = "node1"
data_directory = "data"
nbd_listen = ["127.0.0.1:10809"]
nbd_socket = "nbd.sock"
control = ["127.0.0.1:7001", "node1.example:7001"]
replication = "127.0.0.1:7101"
replication_listen = "0.0.0.0:7101"

[reach.node2]
control = "192.0.2.1:7001"

[tuning]
ping_interval_ms = 100
"#;

fn parse(text: &str) -> Result<NodeFile, ConfigError> {
    NodeFile::parse(Path::new("/etc/lockstep/lockstep.toml"), text)
}

/// The error's text after the file name, for the good file with one piece replaced.
fn complaint(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    let error = parse(&GOOD.replacen(old, new, 1)).unwrap_err().to_string();
    error
        .strip_prefix("/etc/lockstep/lockstep.toml:")
        .unwrap()
        .to_owned()
}

#[test]
fn a_whole_file_is_taken() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.name.as_str(), "node1");
    assert_eq!(config.data_directory, Path::new("/etc/lockstep/data"));
    assert_eq!(config.api_socket, Path::new("/etc/lockstep/data/api.sock"));
    assert_eq!(
        config.nbd_socket.as_deref(),
        Some(Path::new("/etc/lockstep/data/nbd.sock"))
    );
    assert_eq!(config.control.own.len(), 2);
    assert_eq!(config.control.listen, config.control.own);
    assert_eq!(config.replication.own, ["127.0.0.1:7101"]);
    assert_eq!(config.replication.listen, ["0.0.0.0:7101"]);
    assert!(config.secure_replication);
    let reach = &config.reach[&Name::new("node2").unwrap()];
    assert_eq!(reach.control, ["192.0.2.1:7001"]);
    assert!(reach.replication.is_empty());
    assert_eq!(config.settings.ping_interval_ms, 100);
    assert_eq!(
        config.settings.peer_timeout_ms,
        Settings::default().peer_timeout_ms
    );
}

#[test]
fn every_error_names_file_line_key_and_value() {
    let cases = [
        (
            "node = \"node1\"",
            "node = \"no/de\"",
            "1: node = \"no/de\": \"no/de\" is not a name: 1 to 64 letters, digits, '-', '_' and '.', beginning with a letter or a digit",
        ),
        (
            "node1.example:7001",
            "node1.example",
            "5: control = \"node1.example\": not an address: HOST:PORT is wanted, for instance 10.0.0.1:7788",
        ),
        (
            "node1.example:7001",
            "127.0.0.1:7001",
            "5: control = \"127.0.0.1:7001\": this address is named twice; each serves one purpose",
        ),
        (
            "replication = \"127.0.0.1:7101\"",
            "replication = \"127.0.0.1:7001\"",
            "6: replication = \"127.0.0.1:7001\": this address is named twice; each serves one purpose",
        ),
        (
            "\"127.0.0.1:7101\"",
            "[]",
            "6: replication = []: a node has 1 to 4 addresses for each purpose",
        ),
        (
            "192.0.2.1:7001",
            "192.0.2.1:0",
            "10: reach.control = \"192.0.2.1:0\": not an address: HOST:PORT is wanted, for instance 10.0.0.1:7788",
        ),
        (
            "127.0.0.1:10809",
            "localhost",
            "3: nbd_listen = \"localhost\": not an address: IP:PORT is wanted, for instance 127.0.0.1:10809",
        ),
        (
            "ping_interval_ms = 100",
            "ping_interval_ms = 1",
            "13: ping_interval_ms = 1: out of range: 50 to 60000",
        ),
        (
            "ping_interval_ms = 100",
            "ping_interval_ms = 2000",
            "13: tuning.ping_interval_ms = 2000: peer_timeout_ms must be at least twice ping_interval_ms, or one late ping loses the peer",
        ),
        (
            "ping_interval_ms = 100",
            "chunk_bytes = 5000",
            "13: tuning.chunk_bytes = 5000: must be a multiple of 4096",
        ),
    ];
    for (old, new, expected) in cases {
        assert_eq!(complaint(old, new), expected);
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_errors_with_their_line() {
    for (old, new, words) in [
        (
            "nbd_socket",
            "nbd_sokcet",
            ["4: ", "unknown field `nbd_sokcet`"],
        ),
        (
            "[reach.node2]",
            "[[nodes]]",
            ["9: ", "unknown field `nodes`"],
        ),
        (
            "replication = \"127.0.0.1:7101\"",
            "replication = 7101",
            ["6: ", ""],
        ),
        ("[tuning]", "[tuning", ["12: ", ""]),
        (
            "ping_interval_ms",
            "ping_intervall_ms",
            ["13: ", "unknown field"],
        ),
    ] {
        let error = complaint(old, new);
        assert!(error.starts_with(words[0]), "{error}");
        assert!(error.contains(words[1]), "{error}");
    }
}

#[test]
fn nbd_listens_beyond_loopback_only_when_told_so_in_so_many_words() {
    let error = complaint("127.0.0.1:10809", "0.0.0.0:10809");
    assert!(error.starts_with("3: nbd_listen = \"0.0.0.0:10809\": this address"));
    assert!(error.contains("nbd_insecure = true"));
    assert!(error.contains("[nbd_tls] mode = \"require\""));
    let text = GOOD
        .replace("127.0.0.1:10809", "0.0.0.0:10809")
        .replace("data_directory", "nbd_insecure = true\ndata_directory");
    assert!(parse(&text).is_ok());
}

#[test]
fn a_socket_path_that_the_kernel_refuses_is_refused_here() {
    let error = complaint("nbd.sock", &"x".repeat(100));
    assert!(error.starts_with("4: nbd_socket = "));
    assert!(error.contains("107 bytes"));
}

#[test]
fn a_missing_file_is_named() {
    let error = NodeFile::load(Path::new("/nonexistent/lockstep.toml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/lockstep.toml"));
}

#[test]
fn replication_is_in_the_open_only_when_told_so_in_so_many_words() {
    let text = format!("{GOOD}\n[tls]\nreplication = false\n");
    assert!(!parse(&text).unwrap().secure_replication);
}

#[test]
fn tls_for_nbd_needs_its_files_and_opens_other_addresses_only_where_it_is_required() {
    let with = |mode: &str, files: &str| {
        let tls = format!("[nbd_tls]\nmode = \"{mode}\"\n{files}\n[reach.node2]");
        let text = GOOD.replace("127.0.0.1:10809", "192.0.2.7:10809");
        (
            parse(&GOOD.replace("[reach.node2]", &tls)),
            parse(&text.replace("[reach.node2]", &tls)),
        )
    };
    let files = "certificate = \"nbd.crt\"\nkey = \"/keys/nbd.key\"";
    let (loopback, outside) = with("require", &format!("{files}\nclient_ca = \"ca.crt\""));
    let expected = NbdTls {
        required: true,
        certificate: "/etc/lockstep/data/nbd.crt".into(),
        key: "/keys/nbd.key".into(),
        client_ca: Some("/etc/lockstep/data/ca.crt".into()),
    };
    assert_eq!(loopback.unwrap().nbd_tls, Some(expected));
    assert_eq!(outside.unwrap().nbd_listen.len(), 1);
    let (loopback, outside) = with("on", files);
    assert!(!loopback.unwrap().nbd_tls.unwrap().required);
    assert!(outside.unwrap_err().to_string().contains("nbd_listen"));
    let (loopback, outside) = with("off", "");
    assert_eq!(loopback.unwrap().nbd_tls, None);
    outside.unwrap_err();
    let error = with("require", "key = \"k\"").0.unwrap_err().to_string();
    assert!(
        error.ends_with(
            ":10: nbd_tls.mode = \"require\": this needs nbd_tls.certificate and nbd_tls.key, the paths of PEM files"
        ),
        "{error}"
    );
    let error = parse(&format!("{GOOD}\n[nbd_tls]\n{files}")).unwrap_err();
    assert!(
        error.to_string().contains("missing field `mode`"),
        "{error}"
    );
    let error = with("always", files).0.unwrap_err().to_string();
    assert!(
        error.ends_with("nbd_tls.mode = \"always\": not a mode: \"off\", \"on\" or \"require\""),
        "{error}"
    );
}
