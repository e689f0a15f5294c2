//! Promises of the store's runtime, over real sockets on loopback with bounded waits.

use super::*;
use crate::core::Document;
use crate::core::consensus::{Voter, VoterId};
use crate::core::{
    Backing, Command, MetadataKind, Node, NodeState, Policy, Refused, Replica, Report,
};
use crate::pki::authority::NodeKey;
use crate::pki::{Authority, Token, TokenRefused};
use std::net::TcpListener as StdListener;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use vocabulary::{
    Change, ClusterId, DiskId, Generation, HistoryId, Incarnation, Member, NodeId, NodeSet,
    ResourceId,
};

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

/// The nodes' identities.
struct Identities(Authority);

fn cluster() -> &'static Identities {
    static CLUSTER_OF_TESTS: OnceLock<Identities> = OnceLock::new();
    CLUSTER_OF_TESTS.get_or_init(|| Identities(Authority::create(CLUSTER).unwrap()))
}

impl Identities {
    fn identity(&self, node: NodeId) -> Identity {
        let mut parts = Identity::first(&self.0, node).unwrap();
        parts.beacons = [7; 32];
        Identity::new(parts).unwrap()
    }
}

/// An engine that only listens.
struct Deaf;

impl Engine for Deaf {
    fn act(&self, _: failover::Action) {}

    fn turns(&self) -> bool {
        true
    }
}

fn start(
    id: u8,
    peers: &BTreeMap<NodeId, String>,
    voter: Option<(PromiseStore, Promise)>,
) -> (Controller, mpsc::Receiver<Forwarded>) {
    let config = Config {
        identity: cluster().identity(node(id)),
        issuer: None,
        name: Name::new(&format!("node{}", id + 1)).unwrap(),
        listen: vec![peers[&node(id)].clone()],
        nodes: document(peers).nodes,
        reach: BTreeMap::new(),
        voter,
        consensus: consensus::Settings::default(),
        failover: failover::Settings::default(),
        engine: Box::new(Deaf),
        run: u64::from(id),
    };
    Controller::start(config).unwrap()
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
                        control: vec![address.clone()],
                        replication: vec![format!("{address}0")],
                        state: NodeState::Online,
                        fencing: None,
                    },
                })
                .unwrap()
        })
}

/// A voter with its file in the directory: the first one begins the cluster, others join.
fn start_voter(
    dir: &std::path::Path,
    id: u8,
    peers: &BTreeMap<NodeId, String>,
) -> (Controller, mpsc::Receiver<Forwarded>) {
    let path = dir.join(format!("configuration{id}"));
    let opened = if path.exists() {
        PromiseStore::open(&path, CLUSTER).unwrap()
    } else {
        let voter = VoterId(rand_id());
        let content = if id == 0 {
            let me = Voter {
                node: node(0),
                id: voter,
            };
            let add = Command::AddVoter { voter: me };
            document(peers).apply(&add).unwrap()
        } else {
            Document::new(CLUSTER)
        };
        let promise = Promise::new(voter, content);
        (PromiseStore::create(&path, &promise).unwrap(), promise)
    };
    start(id, peers, Some(opened))
}

/// Ids that are never used again within a test run.
fn rand_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn start_follower(
    id: u8,
    peers: &BTreeMap<NodeId, String>,
) -> (Controller, mpsc::Receiver<Forwarded>) {
    start(id, peers, None)
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
                replaced: None,
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
    let (voter, _a) = start_voter(dir.path(), 0, &peers);
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
    let (voter, _a) = start_voter(dir.path(), 0, &peers);
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
    let (voter, _a) = start_voter(dir.path(), 0, &peers);
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
    let (voter, _a) = start_voter(dir.path(), 0, &peers);
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(2));
    let (voter, _a) = start_voter(dir.path(), 0, &peers);
    let hello = wire::ToServer::Ping;
    let mut long = frame::encode(CLUSTER, &hello).unwrap();
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut damaged = frame::encode(CLUSTER, &hello).unwrap();
    damaged[28] ^= 1;
    let mut newer = frame::encode(CLUSTER, &hello).unwrap();
    newer[4] = 9;
    let other = frame::encode(ClusterId(1), &hello).unwrap();
    let somebody_else = wire::ToServer::Hello {
        node: node(5),
        name: Name::new("x").unwrap(),
        to: node(0),
        subscribe: true,
    };
    let somebody_else = frame::encode(CLUSTER, &somebody_else).unwrap();
    block_on(async {
        let address = &peers[&node(0)];
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3),
            long,
            damaged,
            newer,
            other,
            somebody_else,
        ] {
            // From a node, and in the open.
            let identity = cluster().identity(node(1));
            let mut secure = identity.connect(address, node(0)).await.unwrap();
            secure.write_all(&bytes).await.unwrap();
            secure.flush().await.unwrap();
            let mut answer = Vec::new();
            // Closed, or reset because not everything was read; never answered.
            let _ = secure.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
            let mut plain = tokio::net::TcpStream::connect(address).await.unwrap();
            plain.write_all(&bytes).await.unwrap();
            let _ = plain.read_to_end(&mut answer).await;
            // At most an alert of TLS, which has 7 bytes.
            assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7));
        }
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
            "0200",
            "0000",
            "01000000",
            "01000000000000000000000000000000",
            "67bb012a",
            "04",
        )
    );
}

#[test]
fn a_resource_begins_without_the_replica_that_never_reports() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(2));
    let (voter, _a) = start_voter(dir.path(), 0, &peers);
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

/// Three voters: the first begins the cluster, the others join.
fn three(dir: &std::path::Path, peers: &BTreeMap<NodeId, String>) -> Vec<Controller> {
    let voters: Vec<Controller> = (0..3).map(|id| start_voter(dir, id, peers).0).collect();
    block_on(async {
        for voter in &voters {
            until(&voter.handle(), |document| document.voters.len() == 3).await;
        }
    });
    voters
}

#[test]
fn voters_join_and_go_on_without_the_one_that_leads() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(3));
    let mut voters = three(dir.path(), &peers);
    block_on(async {
        voters[1].handle().command(create()).await.unwrap();
    });
    let leader = voters[1].handle().leader().unwrap();
    drop(voters.remove(leader.index()));
    block_on(async {
        // An election later.
        voters[0]
            .handle()
            .command(declare(member(1)))
            .await
            .unwrap();
        until(&voters[1].handle(), |document| {
            document
                .resource(R0)
                .is_some_and(|resource| resource.declared() == vec![member(1)])
        })
        .await;
    });
    // It comes back as the voter that it was.
    let id = u8::try_from(leader.index()).unwrap();
    let (back, _forwarded) = start_voter(dir.path(), id, &peers);
    block_on(async {
        let document = until(&back.handle(), |document| {
            document
                .resource(R0)
                .is_some_and(|resource| resource.declared() == vec![member(1)])
        })
        .await;
        assert_eq!(document.voters.len(), 3);
    });
}

#[test]
fn nothing_is_decided_without_a_majority() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(3));
    let mut voters = three(dir.path(), &peers);
    voters.truncate(1);
    block_on(async {
        let error = voters[0].handle().command(create()).await.unwrap_err();
        assert!(
            matches!(error, CommandError::Unreachable | CommandError::Undecided),
            "{error}"
        );
    });
}

#[test]
fn a_voter_that_lost_its_state_comes_back_as_another_one() {
    let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(3));
    let mut voters = three(dir.path(), &peers);
    let before = voters[0].handle().document().unwrap().voters.clone();
    drop(voters.pop());
    std::fs::remove_file(dir.path().join("configuration2")).unwrap();
    let (_back, _forwarded) = start_voter(dir.path(), 2, &peers);
    block_on(async {
        let old = before.iter().find(|voter| voter.node == node(2)).unwrap();
        until(&voters[0].handle(), |document| {
            document.voters.len() == 3 && document.voters.iter().all(|voter| voter.id != old.id)
        })
        .await;
    });
}

/// The first node of a cluster with the authority's key, and a machine's attempt to join it.
struct Desk {
    issuer: Arc<Issuer>,
    controller: Controller,
    _forwarded: mpsc::Receiver<Forwarded>,
    address: String,
    _dir: tempfile::TempDir,
}

impl Desk {
    fn open() -> Self {
        Self::with(|document, _| document)
    }

    /// With another document than that of a new cluster.
    fn with(change: impl FnOnce(Document, Voter) -> Document) -> Self {
        let (dir, peers) = (tempfile::tempdir().unwrap(), addresses(1));
        let authority = Authority::create(CLUSTER).unwrap();
        authority.save(dir.path()).unwrap();
        let parts = Identity::first(&authority, node(0)).unwrap();
        parts.save(dir.path()).unwrap();
        let identity = Identity::load(dir.path()).unwrap();
        let issuer = Issuer::load(dir.path(), &identity).unwrap().unwrap();
        let issuer = Arc::new(issuer);
        let voter = VoterId(rand_id());
        let me = Voter {
            node: node(0),
            id: voter,
        };
        let add = Command::AddVoter { voter: me };
        let content = change(document(&peers).apply(&add).unwrap(), me);
        let promise = Promise::new(voter, content);
        let store = PromiseStore::create(&dir.path().join("c"), &promise).unwrap();
        let address = peers[&node(0)].clone();
        let (controller, forwarded) = Controller::start(Config {
            identity,
            issuer: Some(Arc::clone(&issuer)),
            name: Name::new("node1").unwrap(),
            listen: vec![address.clone()],
            nodes: Vec::new(),
            reach: BTreeMap::new(),
            voter: Some((store, promise)),
            consensus: consensus::Settings::default(),
            failover: failover::Settings::default(),
            engine: Box::new(Deaf),
            run: 1,
        })
        .unwrap();
        Self {
            issuer,
            controller,
            _forwarded: forwarded,
            address,
            _dir: dir,
        }
    }

    fn token(&self, valid_s: u64) -> Token {
        let addresses = vec!["127.0.0.1:1".to_owned(), self.address.clone()];
        let valid = Duration::from_secs(valid_s);
        let token = self.issuer.token(SystemTime::now(), valid, addresses);
        token.unwrap()
    }
}

fn newcomer(name: &str, port: u16) -> Newcomer {
    Newcomer {
        name: Name::new(name).unwrap(),
        control: vec![format!("127.0.0.1:{port}")],
        replication: vec![format!("127.0.0.1:{}", port + 1)],
        rejoin: false,
    }
}

fn key() -> NodeKey {
    NodeKey::generate().unwrap()
}

#[test]
fn a_machine_with_a_token_becomes_a_node_and_talks_to_the_others() {
    let desk = Desk::open();
    block_on(async {
        let token = desk.token(60);
        let joined = join(&token, newcomer("node2", 5), key()).await.unwrap();
        let entry = joined.document.node_named("node2").unwrap();
        assert_eq!((entry.id, &entry.control[0][..]), (node(1), "127.0.0.1:5"));
        let identity = Identity::new(joined.parts).unwrap();
        assert_eq!((identity.node(), identity.cluster()), (node(1), CLUSTER));
        identity.connect(&desk.address, node(0)).await.unwrap();
        // Its beacons are understood.
        let sealed = identity.beacons().seal(node(0), b"x");
        let first = Identity::load(desk._dir.path()).unwrap();
        assert_eq!(first.beacons().open(&sealed), Some((node(1), &b"x"[..])));
        // Once it has left it is refused.
        let handle = desk.controller.handle();
        let left = Command::RemoveNode { node: node(1) };
        handle.command(left).await.unwrap();
        until(&handle, |document| document.departed.contains(node(1))).await;
        let mut stream = identity.connect(&desk.address, node(0)).await.unwrap();
        let hello = wire::ToServer::Hello {
            node: node(1),
            name: Name::new("node2").unwrap(),
            to: node(0),
            subscribe: true,
        };
        frame::write(&mut stream, CLUSTER, &hello).await.unwrap();
        let answer: wire::FromServer = frame::read(&mut stream, CLUSTER).await.unwrap();
        assert_eq!(answer, wire::FromServer::Departed);
        // And its id is not given again.
        let joined = join(&desk.token(60), newcomer("node2", 5), key()).await;
        assert_eq!(
            joined.unwrap().document.node_named("node2").unwrap().id,
            node(2)
        );
    });
}

#[test]
fn a_token_is_taken_once_and_again_only_from_the_machine_that_missed_the_answer() {
    let desk = Desk::open();
    block_on(async {
        let token = desk.token(60);
        let key = key();
        let again = NodeKey::from_pem(key.to_pem().as_bytes()).unwrap();
        let first = join(&token, newcomer("node2", 5), key).await.unwrap();
        let second = join(&token, newcomer("node2", 5), again).await.unwrap();
        assert_eq!(first.document.nodes, second.document.nodes);
        let error = join(&token, newcomer("node3", 7), self::key()).await;
        assert!(matches!(
            error.unwrap_err(),
            JoinError::Refused(JoinRefused::Token(TokenRefused::Used(by))) if by == node(1)
        ));
    });
}

#[test]
fn wrong_and_expired_tokens_are_refused_and_names_and_addresses_in_use_leave_a_token_good() {
    let desk = Desk::open();
    block_on(async {
        let good = desk.token(60);
        let wrong = Token {
            secret: crate::pki::token::Secret([0; 16]),
            ..good.clone()
        };
        let error = join(&wrong, newcomer("node2", 5), key()).await.unwrap_err();
        assert!(matches!(
            error,
            JoinError::Refused(JoinRefused::Token(TokenRefused::Unknown))
        ));
        let valid = Duration::from_secs(10);
        let past = SystemTime::now() - Duration::from_secs(20);
        let old = desk.issuer.token(past, valid, good.addresses.clone());
        let error = join(&old.unwrap(), newcomer("node2", 5), key()).await;
        assert!(matches!(
            error.unwrap_err(),
            JoinError::Refused(JoinRefused::Token(TokenRefused::Expired))
        ));
        let strange = Token {
            authority: [0; 32],
            ..good.clone()
        };
        let error = join(&strange, newcomer("node2", 5), key()).await;
        assert!(matches!(error.unwrap_err(), JoinError::Connect { .. }));
        let error = join(&good, newcomer("node1", 5), key()).await.unwrap_err();
        assert!(matches!(
            error,
            JoinError::Refused(JoinRefused::Document(Refused::NodeNameTaken { .. }))
        ));
        let mut taken = newcomer("node2", 5);
        taken.control = vec![desk.address.clone()];
        let error = join(&good, taken, key()).await.unwrap_err();
        assert!(matches!(
            error,
            JoinError::Refused(JoinRefused::Document(Refused::AddressTaken { .. }))
        ));
        join(&good, newcomer("node2", 5), key()).await.unwrap();
    });
}

#[test]
fn a_lost_node_gets_its_id_back_when_it_says_that_it_is_the_one() {
    let desk = Desk::with(|document, me| {
        let lost = Node {
            id: node(7),
            name: Name::new("node8").unwrap(),
            control: vec!["127.0.0.1:3".to_owned()],
            replication: vec!["127.0.0.1:4".to_owned()],
            state: NodeState::Standby,
            fencing: None,
        };
        let voter = Voter {
            node: lost.id,
            id: VoterId(rand_id()),
        };
        let add = Command::AddNode { node: lost };
        let document = document.apply(&add).unwrap();
        let document = document.apply(&Command::AddVoter { voter }).unwrap();
        document.recovered(CLUSTER, me).unwrap()
    });
    let lost = |name, port| Newcomer {
        rejoin: true,
        ..newcomer(name, port)
    };
    block_on(async {
        let token = desk.token(60);
        let error = join(&token, newcomer("node8", 5), key()).await.unwrap_err();
        assert!(matches!(
            error,
            JoinError::Refused(JoinRefused::Lost { .. })
        ));
        let error = join(&token, lost("node9", 5), key()).await.unwrap_err();
        assert!(matches!(
            error,
            JoinError::Refused(JoinRefused::NotLost { .. })
        ));
        let error = join(&token, lost("node1", 5), key()).await.unwrap_err();
        assert!(matches!(
            error,
            JoinError::Refused(JoinRefused::Document(Refused::NodeNameTaken { .. }))
        ));
        let key = key();
        let again = NodeKey::from_pem(key.to_pem().as_bytes()).unwrap();
        let joined = join(&token, lost("node8", 5), key).await.unwrap();
        let identity = Identity::new(joined.parts).unwrap();
        assert_eq!(identity.node(), node(7));
        let known = joined.document.node(node(7)).unwrap();
        assert_eq!(known.control, ["127.0.0.1:5"]);
        assert_eq!(known.state, NodeState::Standby, "an operator's word stays");
        assert_eq!(joined.document.lost_node("node8"), None);
        // Its answer was lost: the same machine asks once more.
        let joined = join(&token, lost("node8", 5), again).await.unwrap();
        assert_eq!(Identity::new(joined.parts).unwrap().node(), node(7));
        // Nobody else takes its place now.
        let token = desk.token(60);
        let error = join(&token, lost("node8", 6), self::key()).await;
        assert!(matches!(
            error.unwrap_err(),
            JoinError::Refused(JoinRefused::Document(Refused::NodeNameTaken { .. }))
        ));
    });
}

#[test]
fn a_stranger_may_ask_to_join_and_nothing_else() {
    use tokio::io::AsyncReadExt;
    let desk = Desk::open();
    block_on(async {
        let token = desk.token(60);
        let stream = tls::connect_by_token(&token, &desk.address).await;
        let (mut stream, _) = stream.unwrap();
        let hello = wire::ToServer::Hello {
            node: node(0),
            name: Name::new("node1").unwrap(),
            to: node(0),
            subscribe: true,
        };
        frame::write(&mut stream, CLUSTER, &hello).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    });
}
