//! A machine that serves one volume and mirrors it to at most one
//! peer, and nodes made of them.

use super::super::*;
use super::line::{LineClient, LineProtocol};
use crate::core::api::{
    BlockHash, ClientError, ClientRequest, Command, CommandError, ConnId, FastZeroes, LossReason,
    Notice, RequestId,
};
use crate::core::message::{ClientMark, Message, Seq, SessionId, VolumeRange, WriteKind};
use crate::core::status::{DiskState, ReplicationState, Role, Standing, Status};
use crate::core::{Map, MapQuestion};
use crate::runtime::disk::{DiskConfig, Engine, MetaPlace};
use crate::runtime::tls::PeerCredentials;
use crate::runtime::tls::tests::Authority;
use socket2::SockAddr;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Instant;
use tempfile::TempDir;
use vocabulary::{
    ByteRange, Change, DiskId, HistoryId, Incarnation, Member, NodeSet, Record, VolumeId,
};

pub(super) const CLUSTER: ClusterId = ClusterId(7);
pub(super) const RESOURCE: ResourceId = ResourceId(8);
const VOLUME_BYTES: u64 = 16 << 20;

pub(super) fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(
            Instant::now() < end,
            "the condition did not come about within 20 s"
        );
        std::thread::yield_now();
    }
}

pub(super) fn ask<T: Send + 'static>(post: impl FnOnce(Reply<T>)) -> T {
    let (sender, receiver) = channel();
    post(Box::new(move |answer| drop(sender.send(answer))));
    receiver.recv_timeout(Duration::from_secs(20)).unwrap()
}

pub(super) fn command(
    handle: &PlaneHandle,
    resource: ResourceId,
    command: Command,
) -> Result<(), PlaneError> {
    ask(|reply| handle.command(resource, command, reply))
}

pub(super) fn node_id(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

/// A backing store in a directory of its own.
pub(super) struct Store {
    dir: TempDir,
    engine: Engine,
}

impl Store {
    fn new(parent: &str, engine: Engine) -> Self {
        let store = Self {
            dir: tempfile::tempdir_in(parent).unwrap(),
            engine,
        };
        Disk::create_files(&store.config(), VOLUME_BYTES, 1 << 20).unwrap();
        store
    }

    pub(super) fn in_memory() -> Self {
        Self::new("/dev/shm", Engine::Sync)
    }

    pub(super) fn everywhere() -> Vec<Self> {
        vec![
            Self::in_memory(),
            Self::new("/var/tmp", Engine::Sync),
            Self::new("/var/tmp", Engine::Uring),
        ]
    }

    fn config(&self) -> DiskConfig {
        let path = self.dir.path().join("r0.img");
        DiskConfig {
            meta: MetaPlace::beside(&path),
            path,
            engine: Some(self.engine),
        }
    }

    pub(super) fn open(&self) -> Disk {
        let disk = Disk::open(&self.config()).unwrap();
        disk.set_volume_bytes(VOLUME_BYTES).unwrap();
        disk
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let file = std::fs::File::open(self.config().path).unwrap();
        file.read_exact_at(into, offset).unwrap();
    }
}

/// What is to be done when an operation ends.
enum Then {
    Reply {
        id: RequestId,
        left: usize,
        failed: bool,
    },
    Ack {
        conn: ConnId,
        seq: Seq,
    },
    Verify(CommandId),
    Map(RequestId, MapQuestion),
}

/// Serves volume 0, and mirrors writes to `peer`. Overlapping requests in flight are queued one behind
/// the other, as the core does.
#[derive(Default)]
pub(super) struct Fake {
    peer: Option<NodeId>,
    conn: Option<ConnId>,
    dial_at: Option<Time>,
    fast_zeroes: FastZeroes,
    ops: u64,
    then: BTreeMap<u64, Then>,
    ranges: BTreeMap<u64, ByteRange>,
    queue: Vec<(RequestId, ClientRequest<PoolBuf>)>,
    /// Replies that wait for the peer, by sequence number of the write.
    unacked: BTreeMap<u64, u64>,
}

impl Fake {
    fn op(&mut self, then: Then) -> OpId {
        self.ops += 1;
        self.then.insert(self.ops, then);
        OpId(self.ops)
    }

    fn client(
        &mut self,
        id: RequestId,
        request: ClientRequest<PoolBuf>,
        out: &mut Vec<Action<PoolBuf>>,
    ) {
        let range = match &request {
            ClientRequest::Read { range }
            | ClientRequest::Write { range, .. }
            | ClientRequest::Zero { range, .. } => range.outward(4096),
            ClientRequest::Flush => ByteRange::between(0, 0),
        };
        if let ClientRequest::Zero {
            hole, fast: true, ..
        } = request
            && !self.fast_zeroes.cover(hole)
        {
            let result = Err(ClientError::NotFast);
            return out.push(Action::Reply { id, result });
        }
        if self.ranges.values().any(|busy| busy.overlaps(range)) {
            self.queue.push((id, request));
            return;
        }
        let volume = VolumeId(0);
        let op = self.op(Then::Reply {
            id,
            left: 1,
            failed: false,
        });
        self.ranges.insert(op.0, range);
        let action = match request {
            ClientRequest::Read { range } => Action::Read { op, volume, range },
            ClientRequest::Flush => Action::Flush { op, volume },
            ClientRequest::Zero {
                range, hole, fua, ..
            } => Action::Zero {
                op,
                volume,
                range,
                hole,
                durable: fua,
            },
            ClientRequest::Write { range, data, fua } => {
                if self.peer.is_some() {
                    let Some(conn) = self.conn else {
                        self.then.remove(&op.0);
                        self.ranges.remove(&op.0);
                        out.push(Action::Reply {
                            id,
                            result: Err(ClientError::Io),
                        });
                        return;
                    };
                    self.unacked.insert(op.0, op.0);
                    if let Some(Then::Reply { left, .. }) = self.then.get_mut(&op.0) {
                        *left = 2;
                    }
                    out.push(Action::Send {
                        conn,
                        message: Message::Write {
                            seq: Seq(op.0),
                            volume,
                            offset: range.offset,
                            data: data.clone(),
                            fua,
                            kind: WriteKind::Client,
                            mark: ClientMark::default(),
                        },
                    });
                }
                Action::Write {
                    op,
                    volume,
                    offset: range.offset,
                    data,
                    durable: fua,
                }
            }
        };
        out.push(action);
    }

    /// One part of an operation is done.
    fn part(&mut self, op: u64, ok: bool, data: Option<PoolBuf>, out: &mut Vec<Action<PoolBuf>>) {
        match self
            .then
            .get_mut(&op)
            .expect("an answer to something in flight")
        {
            Then::Reply { id, left, failed } => {
                *left -= 1;
                *failed |= !ok;
                if *left > 0 {
                    return;
                }
                let result = if *failed {
                    Err(ClientError::Io)
                } else {
                    Ok(data)
                };
                out.push(Action::Reply { id: *id, result });
                self.ranges.remove(&op);
                for (id, request) in std::mem::take(&mut self.queue) {
                    self.client(id, request, out);
                }
            }
            Then::Ack { conn, seq } => {
                assert!(ok);
                out.push(Action::Send {
                    conn: *conn,
                    message: Message::Acks { seqs: vec![*seq] },
                });
            }
            Then::Verify(_) | Then::Map(..) => panic!("not a disk request"),
        }
        self.then.remove(&op);
    }

    fn message(&mut self, conn: ConnId, message: Message<PoolBuf>, out: &mut Vec<Action<PoolBuf>>) {
        match message {
            Message::Hello { .. } => out.push(Action::Send {
                conn,
                message: Message::Welcome {
                    disk: DiskId(1),
                    incarnation: Incarnation(1),
                    history: HistoryId(1),
                    bits_for: None,
                    whole_window: false,
                },
            }),
            Message::Welcome { .. } => self.conn = Some(conn),
            Message::Write {
                seq, offset, data, ..
            } => {
                let op = self.op(Then::Ack { conn, seq });
                out.push(Action::Write {
                    op,
                    volume: VolumeId(0),
                    offset,
                    data,
                    durable: false,
                });
            }
            Message::Acks { seqs } => {
                for seq in seqs {
                    let op = self.unacked.remove(&seq.0).unwrap();
                    self.part(op, true, None, out);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Machine for Fake {
    fn handle(&mut self, now: Time, event: Event<PoolBuf>, out: &mut Vec<Action<PoolBuf>>) {
        match event {
            Event::Client {
                id,
                volume,
                request,
            } => {
                assert_eq!(volume, VolumeId(0));
                self.client(id, request, out);
            }
            Event::DiskDone { op, result } => self.part(op.0, result.is_ok(), None, out),
            Event::ReadDone { op, result } => {
                let ok = result.is_ok();
                self.part(op.0, ok, result.ok(), out);
            }
            Event::HashDone { op, result } => {
                let Some(Then::Verify(id)) = self.then.remove(&op.0) else {
                    panic!()
                };
                let (hashes, bytes) = result.unwrap();
                assert_eq!((hashes.len(), bytes.bytes().len()), (2, 8192));
                let ok = hashes[0] == BlockHash::ZERO;
                let result = if ok { Ok(()) } else { Err(CommandError::Busy) };
                out.push(Action::CommandDone { id, result });
            }
            Event::FastZeroes(fast) => self.fast_zeroes = fast,
            Event::AskMap { id, question } => {
                let VolumeRange { volume, range } = question.at;
                let op = self.op(Then::Map(id, question));
                out.push(Action::Look { op, volume, range });
            }
            Event::Looked { op, holes } => {
                let Some(Then::Map(id, question)) = self.then.remove(&op.0) else {
                    panic!()
                };
                let unknown = Map::unknown(question.at.range);
                let map = Map { holes, ..unknown };
                out.push(Action::Map { id, map });
            }
            Event::Dialed { peer, conn } => {
                let record = Record {
                    resource: RESOURCE,
                    generation: Generation(2),
                    epoch: Epoch(1),
                    history: HistoryId(1),
                    sizes: vec![VOLUME_BYTES],
                    primary: Some(node_id(0)),
                    in_sync: vec![Member {
                        node: node_id(0),
                        disk: DiskId(1),
                        incarnation: Incarnation(1),
                    }],
                    replicas: NodeSet::only(node_id(0)).with(node_id(1)),
                    min_redundancy: 1,
                };
                let session = SessionId(1);
                let message = Message::Hello {
                    node: node_id(0),
                    to: peer,
                    session,
                    record,
                };
                out.push(Action::Send { conn, message });
            }
            Event::DialFailed { peer } => {
                self.dial_at = Some(now.plus_ms(10));
                // In no test does this happen to a member.
                out.push(Action::Notice(Notice::Evicted {
                    node: peer,
                    why: crate::core::api::EvictReason::Gone,
                }));
            }
            Event::Disconnected { conn } => {
                if let Some(node) = self.peer {
                    assert!(self.conn.is_none_or(|known| known == conn));
                    self.conn = None;
                    self.dial_at = Some(now.plus_ms(10));
                    let why = LossReason::Broken;
                    out.push(Action::Notice(Notice::PeerLost { node, why }));
                    for op in std::mem::take(&mut self.unacked).into_keys() {
                        self.part(op, false, None, out);
                    }
                }
            }
            Event::Message { conn, message, .. } => self.message(conn, message, out),
            Event::Command { id, command } => match command {
                Command::Verify { .. } => {
                    let op = self.op(Then::Verify(id));
                    let range = ByteRange::between(0, 8192);
                    out.push(Action::Hash {
                        op,
                        volume: VolumeId(0),
                        range,
                    });
                }
                Command::Demote { to } => {
                    let node = node_id(0);
                    let change = Change::Demote { node, to };
                    out.push(Action::Propose {
                        based_on: Generation(1),
                        change,
                    });
                    out.push(Action::CommandDone { id, result: Ok(()) });
                }
                _ => {
                    let result = Err(CommandError::NoRecord);
                    out.push(Action::CommandDone { id, result });
                }
            },
            other => panic!("{other:?}"),
        }
    }

    fn end_turn(&mut self, _now: Time, _out: &mut Vec<Action<PoolBuf>>) {}

    fn handle_timeout(&mut self, _now: Time, out: &mut Vec<Action<PoolBuf>>) {
        self.dial_at = None;
        out.extend(self.peer.map(|peer| Action::Dial { peer }));
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.dial_at
    }

    fn status(&self, _now: Time) -> Status {
        Status {
            node: node_id(0),
            role: Role::Primary,
            disk_state: DiskState::UpToDate,
            disk: DiskId(1),
            incarnation: Incarnation(1),
            replication: ReplicationState::Off,
            generation: Generation(1),
            epoch: Epoch(1),
            primary: None,
            in_sync: NodeSet::EMPTY,
            volumes: Vec::new(),
            peers: Vec::new(),
            waiting_for: NodeSet::EMPTY,
            verify: None,
        }
    }

    fn frame_context(&self) -> (Epoch, Generation) {
        (Epoch(1), Generation(1))
    }

    fn record(&self) -> Option<&Record> {
        None
    }

    fn takes_clients(&self) -> bool {
        true
    }

    fn standing(&self) -> Standing {
        Standing {
            failed: false,
            primary: Some(Epoch(1)),
            required: NodeSet::EMPTY,
        }
    }
}

/// A resource on a store, mirrored to node 1 if told so.
pub(super) fn machine_of(store: &Store, mirrored: bool) -> NewResource {
    machine_on(store.open(), mirrored)
}

/// As that, on a store that is open.
pub(super) fn machine_on(disk: Disk, mirrored: bool) -> NewResource {
    let dials = mirrored.then(|| node_id(1));
    NewResource {
        cluster: CLUSTER,
        resource: RESOURCE,
        disks: vec![Arc::new(disk)],
        machine: Box::new(move |now| {
            Box::new(Fake {
                peer: dials,
                dial_at: dials.map(|_| now),
                ..Fake::default()
            })
        }),
        meta_bytes: |_| 0,
    }
}

/// A data plane with both listeners.
pub(super) struct Node {
    pub(super) handle: PlaneHandle,
    pub(super) client_address: SocketAddr,
    pub(super) peer_address: SocketAddr,
    reports: Arc<Mutex<Vec<Report>>>,
    dir: TempDir,
    thread: Option<PlaneThread>,
}

impl Node {
    pub(super) fn empty(peer_address: &str, change: impl FnOnce(&mut PlaneConfig)) -> Self {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = reports.clone();
        let mut config =
            PlaneConfig::new(Box::new(move |_, report| sink.lock().unwrap().push(report)));
        change(&mut config);
        let thread = start(config).unwrap();
        let handle = thread.handle();
        let clients = TcpListener::bind("127.0.0.1:0").unwrap();
        let client_address = clients.local_addr().unwrap();
        handle.listen_clients(clients.into(), Box::new(LineProtocol), false);
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("nbd.sock")).unwrap();
        handle.listen_clients(unix.into(), Box::new(LineProtocol), false);
        let peers = TcpListener::bind(peer_address).unwrap();
        let peer_address = peers.local_addr().unwrap();
        handle.listen_peers(peers.into(), CLUSTER);
        Self {
            handle,
            client_address,
            peer_address,
            reports,
            dir,
            thread: Some(thread),
        }
    }

    pub(super) fn with(store: &Store, change: impl FnOnce(&mut PlaneConfig)) -> Self {
        let node = Self::empty("127.0.0.1:0", change);
        node.add(machine_of(store, false));
        node
    }

    pub(super) fn single(store: &Store) -> Self {
        Self::with(store, |_| {})
    }

    pub(super) fn add(&self, new: NewResource) {
        ask(|reply| self.handle.add_resource(new, reply)).unwrap();
    }

    pub(super) fn client(&self) -> LineClient {
        LineClient::connect(&self.client_address.into())
    }

    /// On a unix socket, where all that was sent has arrived.
    pub(super) fn unix_client(&self) -> LineClient {
        LineClient::connect(&SockAddr::unix(self.dir.path().join("nbd.sock")).unwrap())
    }

    pub(super) fn reports(&self) -> Vec<Report> {
        self.reports.lock().unwrap().clone()
    }

    pub(super) fn stop(&mut self) {
        self.thread = None;
    }
}

pub(super) type Credentials = Option<Arc<dyn PeerCredentials>>;

pub(super) fn credentials(authority: &Authority, id: u8) -> Credentials {
    Some(authority.credentials(node_id(id)))
}

/// A primary that mirrors to a secondary.
pub(super) struct Cluster {
    pub(super) primary: Node,
    secondary: Option<Node>,
    address: SocketAddr,
}

impl Cluster {
    pub(super) fn pair(here: &Store, there: &Store) -> Self {
        Self::pair_with(here, there, [None, None])
    }

    /// A pair whose connections are secured.
    pub(super) fn secured(here: &Store, there: &Store) -> Self {
        let authority = Authority::new("ours");
        Self::pair_with(here, there, [0, 1].map(|id| credentials(&authority, id)))
    }

    fn pair_with(here: &Store, there: &Store, credentials: [Credentials; 2]) -> Self {
        let cluster = Self::apart(here, there, credentials);
        wait_until(|| cluster.primary.client().write(0, &[0]) == Ok(()));
        cluster
    }

    /// Two nodes that may not find to each other.
    pub(super) fn apart(here: &Store, there: &Store, [ours, theirs]: [Credentials; 2]) -> Self {
        let secondary = Node::with(there, |config| config.credentials = theirs);
        let address = secondary.peer_address;
        let primary = Node::empty("127.0.0.1:0", |config| config.credentials = ours);
        // Nobody is at the first address: the next dial takes the second.
        let nobody = PeerAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)));
        let addresses = vec![nobody, PeerAddress::Tcp(address)];
        primary
            .handle
            .set_peers(BTreeMap::from([(node_id(1), addresses)]));
        primary.add(machine_of(here, true));
        Self {
            primary,
            secondary: Some(secondary),
            address,
        }
    }

    /// Attempts of the primary to reach the secondary that have failed, or ended soon.
    pub(super) fn failures(&self) -> usize {
        let failed = |report: &&Report| {
            matches!(
                report,
                Report::Notice(Notice::Evicted { .. } | Notice::PeerLost { .. })
            )
        };
        self.primary.reports().iter().filter(failed).count()
    }

    pub(super) fn stop_secondary(&mut self) {
        self.secondary = None;
    }

    pub(super) fn start_secondary(&mut self, store: &Store) {
        let node = Node::empty(&self.address.to_string(), |_| {});
        node.add(machine_of(store, false));
        self.secondary = Some(node);
    }
}
