//! What a recovery leaves in a node's directory, wherever it is broken off.

use super::*;
use crate::successor::{NODES, PROMISE};
use controller::core::{Command, Name, NodeState};
use std::collections::BTreeSet;
use std::path::Path;
use tempfile::TempDir;

const OLD: ClusterId = ClusterId(0xabc);

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

fn entry(id: u8) -> Node {
    Node {
        id: node(id),
        name: Name::new(&format!("node{id}")).unwrap(),
        control: vec![format!("127.0.0.1:{}", 2 * id + 1)],
        replication: vec![format!("127.0.0.1:{}", 2 * id + 2)],
        state: NodeState::Online,
        fencing: None,
    }
}

fn voter(id: u8) -> Voter {
    Voter {
        node: node(id),
        id: VoterId(u64::from(id) + 50),
    }
}

/// Three voters.
fn document() -> Document {
    let commands = (0..3)
        .map(|id| Command::AddNode { node: entry(id) })
        .chain((0..3).map(|id| Command::AddVoter { voter: voter(id) }));
    commands.fold(Document::new(OLD), |document, command| {
        document.apply(&command).unwrap()
    })
}

fn file(directory: &Path, name: &str) -> NodeFile {
    let text =
        format!("node = \"{name}\"\ncontrol = \"127.0.0.1:5\"\nreplication = \"127.0.0.1:6\"\n");
    NodeFile::parse(&directory.join("lockstep.toml"), &text).unwrap()
}

/// The directory of node 2 of the old cluster, which did not make the cluster.
fn survivor() -> (TempDir, NodeFile) {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), "node2");
    let authority = Authority::create(OLD).unwrap();
    let parts = Identity::first(&authority, node(2)).unwrap();
    controller::pki::files::make_directory(&file.keys()).unwrap();
    parts.save(&file.keys()).unwrap();
    successor::save_nodes(&file.nodes_path(), &document().nodes).unwrap();
    let promise = Promise::new(voter(2).id, document());
    PromiseStore::create(&file.promise_path(), &promise).unwrap();
    (dir, file)
}

/// The node as its daemon would find it.
fn as_started(file: &NodeFile) -> (Identity, Document) {
    successor::finish(&file.data_directory).unwrap();
    let identity = Identity::load(&file.keys()).unwrap();
    // The daemon refuses keys and a promise that are not of one cluster.
    let (_, promise) = PromiseStore::open(&file.promise_path(), identity.cluster()).unwrap();
    let nodes = crate::membership::load_nodes(file).unwrap();
    assert_eq!(nodes.len(), 3);
    (identity, promise.entry.content)
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn the_survivor_gets_new_keys_and_the_old_ones_are_kept_beside() {
    let (dir, file) = survivor();
    let made = recover(&file, true).unwrap();
    assert_eq!(made.former, OLD.to_string());
    assert_eq!(made.lost, ["node0", "node1"]);
    let (identity, document) = as_started(&file);
    assert_eq!(identity.node(), node(2));
    assert_eq!(identity.cluster().to_string(), made.cluster);
    assert_eq!(document.cluster, identity.cluster());
    assert_eq!(document.former, [OLD]);
    assert_eq!(document.voters.len(), 1);
    assert_ne!(document.voters[0].id, voter(2).id, "a new voter");
    // It can take machines in, which it could not before.
    let issuer = controller::pki::Issuer::load(&file.keys(), &identity).unwrap();
    assert!(issuer.is_some());
    let aside = |name: &str| format!("{name}.{OLD}");
    let left = [
        "pid".to_owned(),
        "tls".to_owned(),
        PROMISE.to_owned(),
        NODES.to_owned(),
        aside("tls"),
        aside(PROMISE),
        aside(NODES),
    ];
    assert_eq!(names(dir.path()), left.into_iter().collect());
    let old = Identity::load(&dir.path().join(aside("tls"))).unwrap();
    assert_eq!(old.cluster(), OLD);
    let old = PromiseStore::read(&dir.path().join(aside(PROMISE))).unwrap();
    assert_eq!(old, Promise::new(voter(2).id, self::document()));
    // Nothing is missing now.
    let error = recover(&file, true).unwrap_err().to_string();
    assert!(error.contains("the only voter"), "{error}");
}

#[test]
fn a_recovery_that_breaks_off_anywhere_leaves_the_old_node_or_the_new_one() {
    let mut broken_off = 0;
    for crash in 0.. {
        let (_dir, file) = survivor();
        let mut steps = 0;
        let mut step = || {
            steps += 1;
            if steps > crash {
                Err(io::Error::other("power failed"))
            } else {
                Ok(())
            }
        };
        let whole = recover_with(&file, true, &mut step).is_ok();
        let (identity, document) = as_started(&file);
        assert_eq!(document.cluster, identity.cluster(), "after {crash} steps");
        let recovered = identity.cluster() != OLD;
        assert_eq!(recovered, document.former == [OLD], "after {crash} steps");
        if whole {
            assert!(recovered);
            break;
        }
        broken_off += 1;
        // The same with the command once more in place of the daemon: it finishes or starts over.
        let (dir, file) = survivor();
        steps = 0;
        let mut step = || {
            steps += 1;
            if steps > crash {
                Err(io::Error::other("power failed"))
            } else {
                Ok(())
            }
        };
        assert!(recover_with(&file, true, &mut step).is_err());
        let made = recover(&file, true).unwrap();
        let (identity, document) = as_started(&file);
        assert_eq!(identity.cluster().to_string(), made.cluster);
        assert_eq!((made.former, document.former), (OLD.to_string(), vec![OLD]));
        assert_eq!(made.lost, ["node0", "node1"]);
        let left = names(dir.path());
        assert!(
            left.iter().all(|name| !name.starts_with("successor")),
            "{left:?}"
        );
    }
    // Three files, each moved aside and replaced, and what is before and after.
    assert!(broken_off >= 8, "{broken_off} crash points");
}

#[test]
fn nothing_is_touched_without_the_word_or_while_a_daemon_runs() {
    let (dir, file) = survivor();
    let before = names(dir.path());
    let error = recover(&file, false).unwrap_err().to_string();
    for words in ["--accept-data-loss", "may be lost", "node0, node1"] {
        assert!(error.contains(words), "{error}");
    }
    let lock = DirectoryLock::take(dir.path()).unwrap();
    let error = recover(&file, true).unwrap_err().to_string();
    assert!(
        error.contains("is in use by another lockstep daemon"),
        "{error}"
    );
    drop(lock);
    let mut after = names(dir.path());
    after.remove("pid");
    assert_eq!(after, before);
    assert_eq!(as_started(&file).0.cluster(), OLD);
}

#[test]
fn a_node_without_a_document_or_under_another_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = file(dir.path(), "node2");
    let error = recover(&nobody, true).unwrap_err().to_string();
    assert!(error.contains("configuration does not exist"), "{error}");
    let blank = Promise::new(VoterId(1), Document::new(OLD));
    PromiseStore::create(&nobody.promise_path(), &blank).unwrap();
    let error = recover(&nobody, true).unwrap_err().to_string();
    assert!(error.contains("holds no configuration"), "{error}");

    let (dir, _) = survivor();
    let error = recover(&file(dir.path(), "other"), true).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("no node other is in the cluster"), "{error}");
    let error = recover(&file(dir.path(), "node1"), true).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("is the configuration of node2"), "{error}");
}

#[test]
fn damaged_keys_are_replaced_and_a_damaged_promise_is_an_error() {
    let (_dir, file) = survivor();
    std::fs::remove_dir_all(file.keys()).unwrap();
    std::fs::create_dir(file.keys()).unwrap();
    std::fs::write(file.keys().join("node.crt"), "rust").unwrap();
    let path = file.promise_path();
    let mut bytes = std::fs::read(&path).unwrap();
    // One copy of the promise is damaged too.
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    recover(&file, true).unwrap();
    assert_ne!(as_started(&file).0.cluster(), OLD);

    let (_dir, file) = survivor();
    let path = file.promise_path();
    std::fs::write(&path, [0xff; 4096]).unwrap();
    let error = format!("{:#}", recover(&file, true).unwrap_err());
    assert!(error.contains("both copies"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), [0xff; 4096]);
}

#[test]
fn what_was_moved_aside_before_is_not_overwritten() {
    let (dir, file) = survivor();
    let kept = dir.path().join(format!("tls.{OLD}"));
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("node.key"), "mine").unwrap();
    recover(&file, true).unwrap();
    assert_eq!(std::fs::read(kept.join("node.key")).unwrap(), b"mine");
    let second = Identity::load(&dir.path().join(format!("tls.{OLD}.2")));
    assert_eq!(second.unwrap().cluster(), OLD);
}
