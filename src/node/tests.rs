//! Promises of the operators' commands, with a real configuration store on loopback and a data plane
//! that only notes what it is asked.

use super::*;
use crate::config::NodeFile;
use crate::engine::Tell;
use crate::operation::ReplicaSpec;
use crate::plane::{AttachRequest, Attached, Leader, NotHandedOver, PlaneEvent};
use controller::core::consensus::{self, Voter, VoterId};
use controller::core::failover;
use controller::core::{Access, Policy};
use controller::pki::{Authority, Identity};
use controller::runtime::{Config as ControllerConfig, Controller, Engine};
use controller::store::{Promise, PromiseStore};
use replicator::core::status::{DiskState, ReplicationState, Role, Standing, Status, VolumeStatus};
use replicator::runtime::client::{ClientAddress, ExportTarget, OpenClient};
use std::path::Path;
use std::sync::Mutex;
use tokio::sync::oneshot;
use vocabulary::{
    Change, ClusterId, DiskId, Generation, HistoryId, Incarnation, Member, NodeSet, ResourceId,
};

const BOUND: Duration = Duration::from_secs(20);

/// A data plane whose replicas attach at once and whose promotions go to the store.
#[derive(Debug)]
struct FakePlane {
    node: NodeId,
    up: mpsc::UnboundedSender<PlaneEvent>,
    tell: Tell,
    state: Mutex<FakeState>,
}

#[derive(Debug, Default)]
struct FakeState {
    attached: Vec<AttachRequest>,
    record: Option<Record>,
    commands: Vec<Command>,
    waiting: Vec<oneshot::Sender<Result<(), CommandError>>>,
    refuse_attach: bool,
    policy: Option<Policy>,
    users: Vec<OpenClient>,
    promotion: Option<Change>,
}

impl FakePlane {
    fn state(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.state.lock().unwrap()
    }

    fn member(&self) -> Member {
        Member {
            node: self.node,
            disk: DiskId(100 + u128::from(self.node.get())),
            incarnation: Incarnation(1),
        }
    }

    /// Fail-over hears how the replica is.
    fn tell(&self, resource: ResourceId, record: Option<&Record>) {
        let record = record.filter(|record| record.primary == Some(self.node));
        self.tell.attached(resource, self.member());
        let standing = Standing {
            failed: false,
            primary: record.map(|record| record.epoch),
            required: record.map(Record::members).unwrap_or_default(),
        };
        self.tell.standing(resource, standing);
    }

    fn role(&self, record: Option<&Record>) -> Role {
        if record.is_some_and(|record| record.primary == Some(self.node)) {
            Role::Primary
        } else {
            Role::Secondary
        }
    }
}

impl Plane for FakePlane {
    fn attach(&self, request: AttachRequest) -> oneshot::Receiver<Result<Attached, String>> {
        let (answer, receiver) = oneshot::channel();
        let result = if self.state().refuse_attach {
            Err("r0.img is gone".to_owned())
        } else {
            Ok(Attached {
                member: self.member(),
                empty: true,
            })
        };
        if result.is_ok() {
            self.tell(request.resource, None);
        }
        self.state().attached.push(request);
        answer.send(result).unwrap();
        receiver
    }

    fn detach(&self, _: ResourceId, _: Leader) -> oneshot::Receiver<()> {
        oneshot::channel().1
    }

    fn policy(&self, _: ResourceId, policy: Policy, _: u32) {
        self.state().policy = Some(policy);
    }
    fn nodes(&self, _: &[NodeEntry]) {}

    fn record(&self, record: Record) {
        self.tell(record.resource, Some(&record));
        let mut state = self.state();
        // As the engine does: what came too early is proposed again.
        state.promotion = state.promotion.take().filter(|_| record.primary.is_none());
        if let Some(change) = state.promotion.clone() {
            let (resource, based_on) = (record.resource, record.generation);
            let _ = self.up.send(PlaneEvent::Propose {
                resource,
                based_on,
                change,
            });
        }
        state.record = Some(record);
        for waiting in state.waiting.drain(..) {
            let _ = waiting.send(Ok(()));
        }
    }

    fn refused(&self, _: ResourceId, _: Generation, refusal: Refusal) {
        let mut state = self.state();
        if !matches!(refusal, Refusal::Stale { .. }) {
            state.promotion = None;
        }
        for waiting in state.waiting.drain(..) {
            let _ = waiting.send(Err(refusal.clone().into()));
        }
    }

    fn command(
        &self,
        resource: ResourceId,
        command: Command,
    ) -> oneshot::Receiver<Result<(), CommandError>> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state();
        state.commands.push(command);
        let change = match command {
            Command::Promote { drop, .. } => Change::Promote {
                candidate: self.member(),
                drop,
                history: HistoryId(9),
            },
            Command::Demote { to } => Change::Demote {
                node: self.node,
                to,
            },
            Command::Resize { volume, size_bytes } => Change::Resize { volume, size_bytes },
            _ => {
                let _ = answer.send(Ok(()));
                return receiver;
            }
        };
        if let Change::Promote { .. } = change {
            state.promotion = Some(change.clone());
        }
        state.waiting.push(answer);
        let based_on = state
            .record
            .as_ref()
            .map_or(Generation(0), |r| r.generation);
        let _ = self.up.send(PlaneEvent::Propose {
            resource,
            based_on,
            change,
        });
        receiver
    }

    fn hand_over(
        &self,
        resource: ResourceId,
        to: NodeId,
    ) -> oneshot::Receiver<Result<(), NotHandedOver>> {
        let (answer, receiver) = oneshot::channel();
        let users = self.state().users.clone();
        let result = if users.is_empty() {
            drop(self.command(resource, Command::Demote { to: Some(to) }));
            Ok(())
        } else {
            Err(NotHandedOver::InUse(users))
        };
        answer.send(result).unwrap();
        receiver
    }

    fn clients(&self) -> oneshot::Receiver<Vec<OpenClient>> {
        let (answer, receiver) = oneshot::channel();
        answer.send(self.state().users.clone()).unwrap();
        receiver
    }

    fn status(&self, _: ResourceId) -> oneshot::Receiver<Status> {
        let (answer, receiver) = oneshot::channel();
        let record = self.state().record.clone();
        let _ = answer.send(Status {
            node: self.node,
            role: self.role(record.as_ref()),
            disk_state: DiskState::UpToDate,
            disk: self.member().disk,
            incarnation: Incarnation(1),
            replication: ReplicationState::Off,
            generation: Generation(0),
            epoch: vocabulary::Epoch(0),
            primary: None,
            in_sync: NodeSet::EMPTY,
            volumes: vec![VolumeStatus {
                volume: VolumeId(0),
                size_bytes: 1 << 20,
                hot_extents: 0,
            }],
            peers: Vec::new(),
            waiting_for: NodeSet::EMPTY,
            verify: None,
        });
        receiver
    }
}

/// The fake data plane as fail-over sees it.
struct FakeEngine(Arc<FakePlane>);

impl Engine for FakeEngine {
    fn act(&self, action: failover::Action) {
        let (resource, command) = match action {
            failover::Action::Promote {
                resource,
                drop,
                over,
                ..
            } => (resource, Command::Promote { drop, over }),
            failover::Action::Demote { resource, .. } => (resource, Command::Demote { to: None }),
            _ => return,
        };
        drop(self.0.command(resource, command));
    }

    fn turns(&self) -> bool {
        true
    }
}

struct Running {
    node: Arc<Node>,
    plane: Arc<FakePlane>,
    _controller: Controller,
}

/// Nodes of one cluster, whose keys nobody has written down.
fn configs(count: u8) -> Vec<Arc<Config>> {
    let authority = Authority::create(ClusterId(7)).unwrap();
    let listeners: Vec<std::net::TcpListener> = (0..2 * count)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let files: Vec<NodeFile> = listeners
        .chunks(2)
        .enumerate()
        .map(|(id, pair)| {
            let [control, replication] = [0, 1].map(|k: usize| pair[k].local_addr().unwrap());
            let text = format!(
                "node = \"node{}\"\ncontrol = \"{control}\"\nreplication = \"{replication}\"\n",
                id + 1
            );
            NodeFile::parse(Path::new("/tmp/t.toml"), &text).unwrap()
        })
        .collect();
    let ids = || (0..count).map(|id| NodeId::new(id).unwrap());
    let known_nodes: Vec<NodeEntry> = ids()
        .zip(&files)
        .map(|(id, file)| crate::membership::entry(id, file))
        .collect();
    ids()
        .zip(files)
        .map(|(node, file)| {
            let mut parts = Identity::first(&authority, node).unwrap();
            parts.beacons = [7; 32];
            Arc::new(Config {
                file,
                identity: Identity::new(parts).unwrap(),
                node,
                cluster: ClusterId(7),
                known_nodes: known_nodes.clone(),
            })
        })
        .collect()
}

fn start(config: &Arc<Config>, dir: &Path, refuse_attach: bool) -> Running {
    let name = &config.file.name;
    let voter = (config.node.get() == 0).then(|| {
        let me = Voter {
            node: config.node,
            id: VoterId(1),
        };
        let add = config
            .known_nodes
            .iter()
            .map(|node| StoreCommand::AddNode { node: node.clone() });
        let document = add
            .chain([StoreCommand::AddVoter { voter: me }])
            .fold(Document::new(config.cluster), |d, c| d.apply(&c).unwrap());
        let promise = Promise::new(me.id, document);
        let store = PromiseStore::create(&dir.join("configuration"), &promise).unwrap();
        (store, promise)
    });
    let (up, from_plane) = mpsc::unbounded_channel();
    let plane = Arc::new(FakePlane {
        node: config.node,
        up,
        tell: Tell::default(),
        state: Mutex::new(FakeState {
            refuse_attach,
            ..FakeState::default()
        }),
    });
    let (controller, forwarded) = Controller::start(ControllerConfig {
        identity: config.identity.clone(),
        issuer: None,
        name: name.clone(),
        listen: config.file.control.listen.clone(),
        nodes: config.known_nodes.clone(),
        reach: BTreeMap::new(),
        voter,
        consensus: consensus::Settings::default(),
        failover: failover::Settings::default(),
        engine: Box::new(FakeEngine(Arc::clone(&plane))),
        run: 1,
    })
    .unwrap();
    plane.tell.begin(controller.failover());
    let events = Arc::new(Events::new(name.to_string()));
    let resources = Arc::new(Resources::new(
        Arc::clone(config),
        controller.handle(),
        controller.failover(),
        Arc::<FakePlane>::clone(&plane),
        Arc::clone(&events),
    ));
    tokio::spawn(Arc::clone(&resources).run(from_plane));
    let node = Arc::new(Node {
        config: Arc::clone(config),
        issuer: None,
        store: controller.handle(),
        failover: controller.failover(),
        plane: Arc::<FakePlane>::clone(&plane),
        resources,
        events,
    });
    tokio::spawn(Arc::clone(&node).answer_forwarded(forwarded));
    Running {
        node,
        plane,
        _controller: controller,
    }
}

fn test<F: Future<Output = ()>>(work: impl FnOnce(std::path::PathBuf) -> F) {
    let dir = tempfile::tempdir().unwrap();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { timeout(BOUND, work(dir.path().to_owned())).await.unwrap() });
}

async fn known(node: &Node) {
    let mut documents = node.store.subscribe();
    documents.wait_for(Option::is_some).await.unwrap();
}

async fn cluster(dir: &Path) -> (Running, Running) {
    let configs = configs(2);
    let first = start(&configs[0], dir, false);
    let second = start(&configs[1], dir, false);
    known(&first.node).await;
    known(&second.node).await;
    (first, second)
}

fn create(min_redundancy: u8) -> Operation {
    Operation::CreateResource {
        name: "r0".to_owned(),
        sizes: vec![1 << 20],
        replicas: Vec::new(),
        min_redundancy,
        policy: Policy {
            access: Access::Follow,
            ..Policy::default()
        },
    }
}

fn promote(node: Option<&str>) -> Operation {
    Operation::Promote {
        resource: "r0".to_owned(),
        node: node.map(str::to_owned),
        accept_data_loss: false,
        confirm_dead: None,
    }
}

fn demote(node: Option<&str>) -> Operation {
    Operation::Demote {
        resource: "r0".to_owned(),
        node: node.map(str::to_owned),
    }
}

#[test]
fn a_resource_is_created_everywhere_promoted_elsewhere_demoted_and_deleted() {
    test(async |dir| {
        let (first, second) = cluster(&dir).await;
        let done = second.node.operate(create(1)).await.unwrap();
        assert_eq!(done.message, "r0 is created");
        let request = first.plane.state().attached[0].clone();
        let policy = first.plane.state().policy.unwrap();
        assert_eq!(policy.access, Access::Follow);
        assert!(request.create);
        assert_eq!(request.volumes[0].path, Path::new("/tmp/r0.img"));
        assert_eq!(
            request.volumes[0].metadata.as_deref(),
            Some(Path::new("/tmp/r0.img.meta"))
        );

        // Asked of the first node, done by the second.
        let done = first.node.operate(promote(Some("node2"))).await.unwrap();
        assert_eq!(done.message, "node2 is primary of r0");
        let view = first.node.status().await;
        assert_eq!(view.resources[0].primary.as_deref(), Some("node2"));
        assert!(view.nodes.iter().all(|node| node.online));

        let failure = first.node.operate(promote(None)).await.unwrap_err();
        assert_eq!(failure.why, "node2 is its primary and serves it");
        assert_eq!(failure.remedy, "lockstep move r0 node1");
        let failure = first
            .node
            .operate(Operation::DeleteResource {
                name: "r0".to_owned(),
            })
            .await
            .unwrap_err();
        assert_eq!(failure.why, "it has a primary, node2");
        let failure = first.node.operate(demote(Some("node1"))).await.unwrap_err();
        assert_eq!(failure.why, "its primary is node2");

        first.node.operate(demote(None)).await.unwrap();
        let done = first.node.operate(demote(None)).await.unwrap();
        assert_eq!(done.message, "r0 has no primary already");
        let delete = Operation::DeleteResource {
            name: "r0".to_owned(),
        };
        first.node.operate(delete).await.unwrap();
        assert!(first.node.status().await.resources.is_empty());
    });
}

#[test]
fn a_primary_that_nobody_uses_makes_way_and_one_that_is_used_does_not() {
    test(async |dir| {
        let (first, second) = cluster(&dir).await;
        let take_over = || Operation::TakeOver {
            resource: "r0".to_owned(),
        };
        first.node.operate(create(1)).await.unwrap();
        // Nobody is primary.
        first.node.operate(take_over()).await.unwrap();
        let done = first.node.operate(take_over()).await.unwrap();
        assert_eq!(done.message, "node1 is primary of r0");

        let id = first.plane.state().attached[0].resource;
        let user = OpenClient {
            target: ExportTarget {
                resource: id,
                volume: VolumeId(0),
            },
            address: ClientAddress::Tcp("10.0.0.5:700".parse().unwrap()),
        };
        first.plane.state().users = vec![user];
        let failure = second.node.operate(take_over()).await.unwrap_err();
        let why = "node1 is its primary, and it is used there: 10.0.0.5:700";
        assert_eq!(failure.why, why);
        assert!(failure.remedy.contains("lockstep move r0 node2"));
        let view = second.node.status().await;
        let volume = &view.resources[0].volumes[0];
        assert_eq!(view.resources[0].primary.as_deref(), Some("node1"));
        assert_eq!(volume.replicas[0].clients, ["10.0.0.5:700"]);
        assert!(volume.replicas[1].clients.is_empty());

        first.plane.state().users.clear();
        let done = second.node.operate(take_over()).await.unwrap();
        assert_eq!(done.message, "node2 is primary of r0");
        let commands = first.plane.state().commands.clone();
        let to = Some(second.node.config.node);
        assert_eq!(commands.last(), Some(&Command::Demote { to }));
    });
}

#[test]
fn what_only_a_primary_does_is_done_by_it_or_refused_with_the_way_out() {
    test(async |dir| {
        let (first, second) = cluster(&dir).await;
        first.node.operate(create(1)).await.unwrap();
        let resize = |size_bytes| Operation::Resize {
            resource: "r0".to_owned(),
            volume: 0,
            size_bytes,
        };
        let failure = first.node.operate(resize(2 << 20)).await.unwrap_err();
        assert_eq!(failure.remedy, "lockstep promote r0 NODE");
        second.node.operate(promote(None)).await.unwrap();
        first.node.operate(resize(2 << 20)).await.unwrap();
        let commands = second.plane.state().commands.clone();
        assert!(matches!(commands.last(), Some(Command::Resize { .. })));
        let failure = first.node.operate(resize(1 << 20)).await.unwrap_err();
        assert_eq!(
            failure.why,
            "the volume has 2 MiB, and volumes can't shrink"
        );
        let failure = first.node.operate(resize((2 << 20) + 5)).await.unwrap_err();
        assert_eq!(failure.remedy, "round it");

        let invalidate = |node: &str| Operation::Invalidate {
            resource: "r0".to_owned(),
            node: node.to_owned(),
        };
        first.node.operate(invalidate("node1")).await.unwrap();
        let failure = first.node.operate(invalidate("node2")).await.unwrap_err();
        assert!(failure.why.contains("is its primary"));
        let failure = first.node.operate(invalidate("node9")).await.unwrap_err();
        assert_eq!(failure.remedy, "name one of these: node1, node2");
    });
}

#[test]
fn a_replica_that_cannot_be_made_is_named_and_the_others_begin() {
    test(async |dir| {
        let configs = configs(2);
        let first = start(&configs[0], &dir, false);
        let second = start(&configs[1], &dir, true);
        known(&first.node).await;
        known(&second.node).await;
        let done = first.node.operate(create(1)).await.unwrap();
        assert!(
            done.message.starts_with("r0 is created; not yet on node2"),
            "{}",
            done.message
        );
        let view = first.node.status().await;
        assert_eq!(view.resources[0].in_sync, ["node1"]);
        assert_eq!(view.resources[0].problems["node2"], "r0.img is gone");
        assert_eq!(
            view.resources[0].volumes[0].replicas[1].disk_state,
            "Diskless"
        );
        let failure = second.node.operate(promote(None)).await.unwrap_err();
        assert!(!failure.remedy.is_empty());
    });
}

#[test]
fn a_dead_old_primary_is_left_out_and_force_wants_it_confirmed() {
    test(async |dir| {
        let (first, second) = cluster(&dir).await;
        first.node.operate(create(1)).await.unwrap();
        second.node.operate(promote(None)).await.unwrap();
        drop(second);
        let force = |confirm_dead: Option<&str>| Operation::Promote {
            resource: "r0".to_owned(),
            node: None,
            accept_data_loss: true,
            confirm_dead: confirm_dead.map(str::to_owned),
        };
        let failure = first.node.operate(force(None)).await.unwrap_err();
        assert!(failure.remedy.ends_with("--confirm-dead node2"));
        first.node.operate(force(Some("node2"))).await.unwrap();
        assert_eq!(first.plane.state().commands, [Command::Force]);
        first.node.operate(promote(None)).await.unwrap();
        let dropped = NodeSet::only(NodeId::new(1).unwrap());
        assert_eq!(
            first.plane.state().commands.last(),
            Some(&Command::Promote {
                drop: dropped,
                over: vocabulary::Epoch(2)
            })
        );
        let view = first.node.status().await;
        assert_eq!(view.resources[0].in_sync, ["node1"]);
        assert!(!view.nodes[1].online);
    });
}

#[test]
fn bad_names_and_places_are_refused_with_advice() {
    test(async |dir| {
        let (first, _second) = cluster(&dir).await;
        let failure = first.node.operate(promote(None)).await.unwrap_err();
        assert_eq!(failure.why, "there is no resource r0");
        assert!(failure.remedy.contains("resource create"));
        let with = |name: &str, node: &str, paths: &[&str]| Operation::CreateResource {
            name: name.to_owned(),
            sizes: vec![1 << 20],
            replicas: vec![ReplicaSpec {
                node: node.to_owned(),
                paths: paths.iter().map(|&path| path.to_owned()).collect(),
                metadata: crate::operation::MetadataSpec::Default,
            }],
            min_redundancy: 1,
            policy: Policy::default(),
        };
        for (operation, words) in [
            (with("a/b", "node1", &[]), "is not a name"),
            (with("r1", "node7", &[]), "there is no node node7"),
            (with("r1", "node1", &["a", "b"]), "2 paths for 1 volumes"),
            (create(3), "min_redundancy is 3"),
        ] {
            let failure = first.node.operate(operation).await.unwrap_err();
            assert!(failure.why.contains(words), "{failure}");
        }
    });
}
