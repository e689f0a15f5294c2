//! Promises of the store's runtime, over real sockets on loopback with bounded waits.

use super::*;
use crate::core::{
    Backing, Command, MetadataKind, Node, NodeState, Policy, Refused, Replica, Report,
};
use std::net::TcpListener as StdListener;
use std::time::Duration;
use vocabulary::{Change, DiskId, Generation, HistoryId, Incarnation, Member, NodeSet, ResourceId};

const CLUSTER: ClusterId = ClusterId(42);
const BOUND: Duration = Duration::from_secs(20);
const R0: ResourceId = ResourceId(7);

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

fn free_address() -> String {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn addresses(count: u8) -> BTreeMap<NodeId, String> {
    (0..count).map(|id| (node(id), free_address())).collect()
}

fn config(cluster: ClusterId, id: u8, peers: &BTreeMap<NodeId, String>, role: Role) -> Config {
    Config {
        cluster,
        node: node(id),
        name: Name::new(&format!("node{}", id + 1)).unwrap(),
        listen: peers[&node(id)].clone(),
        peers: peers.clone(),
        role,
    }
}

fn document(peers: &BTreeMap<NodeId, String>) -> Document {
    peers
        .iter()
        .fold(Document::new(CLUSTER), |document, (&id, address)| {
            document
                .apply(&Command::SetNode {
                    node: Node {
                        id,
                        name: Name::new(&format!("node{}", id.get() + 1)).unwrap(),
                        control: address.clone(),
                        replication: address.clone(),
                        state: NodeState::Online,
                    },
                })
                .unwrap()
        })
}

fn start_voter(
    dir: &std::path::Path,
    peers: &BTreeMap<NodeId, String>,
) -> (Controller, mpsc::Receiver<Forwarded>) {
    let path = dir.join("configuration");
    let (store, document) = if path.exists() {
        DocumentStore::open(&path, CLUSTER).unwrap()
    } else {
        let document = document(peers);
        (DocumentStore::create(&path, &document).unwrap(), document)
    };
    Controller::start(config(CLUSTER, 0, peers, Role::Voter { store, document })).unwrap()
}

fn start_follower(
    id: u8,
    peers: &BTreeMap<NodeId, String>,
) -> (Controller, mpsc::Receiver<Forwarded>) {
    let role = Role::Follower { voter: node(0) };
    Controller::start(config(CLUSTER, id, peers, role)).unwrap()
}

fn member(id: u8) -> Member {
    Member {
        node: node(id),
        disk: DiskId(u128::from(id) + 1),
        incarnation: Incarnation(1),
    }
}

fn create() -> Command {
    Command::CreateResource {
        name: Name::new("r0").unwrap(),
        id: R0,
        history: HistoryId(1),
        sizes: vec![1 << 20],
        replicas: [0, 1]
            .map(|id| Replica {
                node: node(id),
                backing: vec![Backing {
                    path: "r0.img".to_owned(),
                    metadata: MetadataKind::Default,
                }],
                report: None,
            })
            .to_vec(),
        min_redundancy: 1,
        policy: Policy::default(),
    }
}

const fn declare(member: Member) -> Command {
    Command::Declare {
        resource: R0,
        report: Report {
            member,
            empty: true,
        },
    }
}

async fn until(handle: &StoreHandle, good: impl Fn(&Document) -> bool) -> Arc<Document> {
    let mut documents = handle.subscribe();
    let found = tokio::time::timeout(
        BOUND,
        documents.wait_for(|document| document.as_ref().is_some_and(|d| good(d))),
    )
    .await
    .unwrap()
    .unwrap()
    .clone();
    found.unwrap()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(BOUND * 2, future).await.unwrap() })
}

#[test]
fn what_a_follower_proposes_is_committed_and_told_to_every_node() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(2));
    let (voter, _a) = start_voter(dir.path(), &peers);
    let (follower, _b) = start_follower(1, &peers);
    block_on(async {
        let handle = follower.handle();
        until(&handle, |_| true).await;
        handle.command(create()).await.unwrap();
        handle.command(declare(member(1))).await.unwrap();
        voter.handle().command(declare(member(0))).await.unwrap();
        let promote = Change::Promote {
            candidate: member(1),
            drop: NodeSet::EMPTY,
            history: HistoryId(2),
        };
        let version = handle
            .propose(R0, Generation(1), promote.clone())
            .await
            .unwrap();
        for handle in [handle.clone(), voter.handle()] {
            let document = until(&handle, |document| document.version >= version).await;
            let record = document.resource(R0).unwrap().record.clone().unwrap();
            assert_eq!(record.primary, Some(node(1)));
        }
        let again = handle.propose(R0, Generation(1), promote).await;
        assert!(matches!(
            again,
            Err(CommandError::Refused(Refused::Record(_)))
        ));
    });
}

#[test]
fn an_answered_command_survives_the_voter_and_followers_come_back() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(2));
    let (voter, _a) = start_voter(dir.path(), &peers);
    let (follower, _b) = start_follower(1, &peers);
    let handle = follower.handle();
    block_on(async {
        until(&handle, |_| true).await;
        handle.command(create()).await.unwrap();
    });
    drop(voter);
    block_on(async {
        // Said within the time limit, and not taken for a decision.
        let error = handle.command(declare(member(1))).await.unwrap_err();
        assert!(matches!(
            error,
            CommandError::Unreachable | CommandError::Undecided
        ));
    });
    let (voter, _a) = start_voter(dir.path(), &peers);
    assert!(voter.handle().link() == LinkState::Voter || voter.handle().document().is_none());
    block_on(async {
        until(&voter.handle(), |document| document.resource(R0).is_some()).await;
        let deadline = tokio::time::Instant::now() + BOUND;
        while handle.command(declare(member(1))).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        until(&handle, |document| {
            document
                .resource(R0)
                .is_some_and(|resource| resource.declared() == vec![member(1)])
        })
        .await;
    });
}

#[test]
fn a_forwarded_command_is_answered_by_the_node_that_was_meant() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(3));
    let (voter, _a) = start_voter(dir.path(), &peers);
    let (_follower, mut forwarded) = start_follower(1, &peers);
    block_on(async {
        let handle = voter.handle();
        let ask = handle.forward(node(1), b"promote".to_vec(), BOUND);
        let answer = async {
            let asked = forwarded.recv().await.unwrap();
            assert_eq!(
                (asked.from, asked.body.as_slice()),
                (node(0), &b"promote"[..])
            );
            asked.answer.send(b"done".to_vec()).unwrap();
        };
        let (body, ()) = tokio::join!(ask, answer);
        assert_eq!(body.unwrap(), b"done");
        // Nobody listens at the third node's address.
        let error = handle
            .forward(node(2), Vec::new(), BOUND)
            .await
            .unwrap_err();
        assert!(matches!(error, PeerError::Connection { .. }));
        let error = handle
            .forward(node(9), Vec::new(), BOUND)
            .await
            .unwrap_err();
        assert!(matches!(error, PeerError::Unknown(_)));
    });
}

#[test]
fn garbage_other_clusters_and_endless_lengths_end_a_connection_and_nothing_else() {
    use std::io::{Read, Write};
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(2));
    let (voter, _a) = start_voter(dir.path(), &peers);
    let hello = wire::ToServer::Ping;
    let mut long = frame::encode(CLUSTER, &hello).unwrap();
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut damaged = frame::encode(CLUSTER, &hello).unwrap();
    damaged[28] ^= 1;
    let mut newer = frame::encode(CLUSTER, &hello).unwrap();
    newer[4] = 9;
    let other = frame::encode(ClusterId(1), &hello).unwrap();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3),
        long,
        damaged,
        newer,
        other,
    ] {
        let mut stream = std::net::TcpStream::connect(&peers[&node(0)]).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        // Closed, or reset because not everything was read; never answered.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    block_on(async {
        voter.handle().command(create()).await.unwrap();
    });
}

#[test]
fn the_bytes_of_a_frame_stay_as_they_are() {
    let bytes = frame::encode(ClusterId(1), &wire::ToServer::Ping).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "4c534354",
            "0100",
            "0000",
            "01000000",
            "01000000000000000000000000000000",
            "2b83968c",
            "03",
        )
    );
}

#[test]
fn a_resource_begins_without_the_replica_that_never_reports() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(2));
    let (voter, _a) = start_voter(dir.path(), &peers);
    block_on(async {
        let handle = voter.handle();
        handle.command(create()).await.unwrap();
        handle.command(declare(member(0))).await.unwrap();
        let document = until(&handle, |document| {
            document
                .resource(R0)
                .is_some_and(|resource| resource.record.is_some())
        })
        .await;
        let record = document.resource(R0).unwrap().record.clone().unwrap();
        assert_eq!(record.members(), NodeSet::only(node(0)));
    });
}
