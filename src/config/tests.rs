//! Promises of the configuration file: what is taken, and the exact words of what is not.

use super::*;

const GOOD: &str = r#"node = "node1"
data_directory = "data"
nbd_listen = ["127.0.0.1:10809"]
nbd_socket = "nbd.sock"

[cluster]
name = "demo"
id = "0123456789abcdef0123456789abcdef"

[[nodes]]
id = 0
name = "node1"
control = "127.0.0.1:7001"
replication = "127.0.0.1:7101"

[[nodes]]
id = 1
name = "node2"
control = "node2.example:7001"
replication = "node2.example:7101"

[tuning]
ping_interval_ms = 100
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/lockstep/lockstep.toml"), text)
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
    assert_eq!(config.node.get(), 0);
    assert_eq!(config.data_directory, Path::new("/etc/lockstep/data"));
    assert_eq!(config.api_socket, Path::new("/etc/lockstep/data/api.sock"));
    assert_eq!(
        config.nbd_socket.as_deref(),
        Some(Path::new("/etc/lockstep/data/nbd.sock"))
    );
    assert_eq!(
        config.cluster,
        ClusterId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)
    );
    assert_eq!(config.nodes.len(), 2);
    assert_eq!(config.founder(), config.node);
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
            "node = \"node7\"",
            "1: node = \"node7\": there is no [[nodes]] entry of that name",
        ),
        (
            "0123456789abcdef0123456789abcdef",
            "0123",
            "8: cluster.id = \"0123\": not a cluster id: 32 hexadecimal digits, not all zero",
        ),
        (
            "id = 1",
            "id = 32",
            "17: nodes.id = 32: node ids are 0 to 31",
        ),
        (
            "id = 1",
            "id = 0",
            "17: nodes.id = 0: two [[nodes]] entries have this id; each node has its own",
        ),
        (
            "name = \"node2\"",
            "name = \"node1\"",
            "18: nodes.name = \"node1\": two [[nodes]] entries have this name; each node has its own",
        ),
        (
            "name = \"node2\"",
            "name = \"no/de\"",
            "18: nodes.name = \"no/de\": \"no/de\" is not a name: 1 to 64 letters, digits, '-', '_' and '.', beginning with a letter or a digit",
        ),
        (
            "node2.example:7001",
            "node2.example",
            "19: nodes.control = \"node2.example\": not an address: HOST:PORT is wanted, for instance 10.0.0.1:7788",
        ),
        (
            "127.0.0.1:10809",
            "localhost",
            "3: nbd_listen = \"localhost\": not an address: IP:PORT is wanted, for instance 127.0.0.1:10809",
        ),
        (
            "ping_interval_ms = 100",
            "ping_interval_ms = 1",
            "23: ping_interval_ms = 1: out of range: 50 to 60000",
        ),
        (
            "ping_interval_ms = 100",
            "ping_interval_ms = 2000",
            "23: tuning.ping_interval_ms = 2000: peer_timeout_ms must be at least twice ping_interval_ms, or one late ping loses the peer",
        ),
        (
            "ping_interval_ms = 100",
            "chunk_bytes = 5000",
            "23: tuning.chunk_bytes = 5000: must be a multiple of 4096",
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
            "name = \"demo\"",
            "nam = \"demo\"",
            ["7: ", "unknown field `nam`"],
        ),
        ("id = 1", "id = \"1\"", ["17: ", "invalid type"]),
        ("id = 1", "id = -1", ["17: ", "-1"]),
        ("[tuning]", "[tuning", ["22: ", ""]),
        (
            "ping_interval_ms",
            "ping_intervall_ms",
            ["23: ", "unknown field"],
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
    let error = Config::load(Path::new("/nonexistent/lockstep.toml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/lockstep.toml"));
}
