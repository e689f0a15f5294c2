//! The core by itself: a handful of replicas stepped on a virtual clock until nothing is left to do,
//! with disks that obey and a network that delivers. What can go wrong is the simulator's business;
//! here is shown that what should happen does.

use super::api::*;
use super::attach::{Expected, NewVolume, Source, attach, create};
use super::message::{Message, WriteKind};
use super::status::{DiskState, Role};
use super::*;
use crate::store::dump::ReadAt;
use crate::store::{LogCapacity, Placement};
use std::collections::BTreeMap;
use std::io;
use vocabulary::*;

mod fast_zeroes;
mod follow;
mod forwarding;
mod leases;
mod maps;
mod regions;
mod roles;
mod terms;
mod upkeep;

const SIZE: u64 = 64 << 20;

#[derive(Clone, Debug)]
struct Bytes(std::rc::Rc<Vec<u8>>, usize, usize);

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self(std::rc::Rc::new(bytes), 0, len)
    }

    fn get(&self) -> &[u8] {
        &self.0[self.1..self.1 + self.2]
    }
}

impl Payload for Bytes {
    fn len(&self) -> usize {
        self.2
    }

    fn slice(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.2);
        Self(self.0.clone(), self.1 + start, len)
    }
}

#[derive(Default, Clone)]
struct Sparse(BTreeMap<u64, Vec<u8>>);

impl Sparse {
    fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (at, byte) in (offset..).zip(buffer) {
            *byte = self
                .0
                .get(&(at / 4096))
                .map_or(0, |b| b[(at % 4096) as usize]);
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let block = self.0.entry(at / 4096).or_insert_with(|| vec![0; 4096]);
            block[(at % 4096) as usize] = *byte;
        }
    }

    fn zero(&mut self, range: ByteRange) {
        for at in range.offset..range.end() {
            if let Some(block) = self.0.get_mut(&(at / 4096)) {
                block[(at % 4096) as usize] = 0;
            }
        }
    }
}

impl ReadAt for Sparse {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read(offset, buffer);
        Ok(())
    }
}

struct Node {
    core: Option<Resource<Bytes>>,
    data: Sparse,
    meta: Sparse,
    /// Reads and writes of the data area fail.
    fail_writes: bool,
    fail_reads: bool,
}

struct Cluster {
    now: Time,
    nodes: Vec<Node>,
    record: Record,
    conns: BTreeMap<ConnId, (usize, usize)>,
    next_conn: u64,
    next_id: u64,
    replies: BTreeMap<u64, Result<Option<Bytes>, ClientError>>,
    /// Ids in the order of their replies.
    order: Vec<u64>,
    commands: BTreeMap<u64, Result<(), CommandError>>,
    notices: Vec<(usize, Notice)>,
    hung_up: Vec<usize>,
    /// Beacons go out this often; nodes in `mute` answer none.
    beacons: bool,
    mute: Vec<usize>,
    word: bool,
    /// Proposals come to nothing.
    undecided: bool,
    /// Answers to forwarded requests are lost.
    lose_answers: bool,
    maps: BTreeMap<u64, Map>,
    /// Looks at stores do not end: whose they are, and what they told.
    hold_looks: bool,
    looks: Vec<(usize, Event<Bytes>)>,
    questions: usize,
    sent: Vec<(usize, &'static str, u64)>,
}

fn id(node: usize) -> NodeId {
    NodeId::new(u8::try_from(node).unwrap()).unwrap()
}

impl Cluster {
    fn new(count: usize) -> Self {
        let now = Time(1_000_000_000);
        let mut nodes = Vec::new();
        for node in 0..count {
            let new = NewVolume {
                cluster: ClusterId(1),
                resource: ResourceId(2),
                volume: VolumeId(0),
                node: id(node),
                disk: DiskId(100 + node as u128),
                data_bytes: SIZE,
                placement: Placement::External,
                slots: 31,
                log_capacity: LogCapacity::new(16).unwrap(),
                boot_id: 1,
                created_empty: true,
            };
            let mut meta = Sparse::default();
            for (offset, bytes) in create(&new).unwrap() {
                meta.write(offset, &bytes);
            }
            nodes.push(Node {
                core: None,
                data: Sparse::default(),
                meta,
                fail_writes: false,
                fail_reads: false,
            });
        }
        let record = Record {
            resource: ResourceId(2),
            generation: Generation(1),
            epoch: Epoch(0),
            history: HistoryId(1),
            sizes: vec![SIZE],
            primary: None,
            in_sync: (0..count)
                .map(|n| Member {
                    node: id(n),
                    disk: DiskId(100 + n as u128),
                    incarnation: Incarnation(1),
                })
                .collect(),
            replicas: (0..count).map(id).collect(),
            min_redundancy: 1,
        };
        let mut cluster = Self {
            now,
            nodes,
            record,
            conns: BTreeMap::new(),
            next_conn: 1,
            next_id: 1,
            replies: BTreeMap::new(),
            order: Vec::new(),
            commands: BTreeMap::new(),
            notices: Vec::new(),
            hung_up: Vec::new(),
            beacons: true,
            mute: Vec::new(),
            word: true,
            undecided: false,
            lose_answers: false,
            maps: BTreeMap::new(),
            hold_looks: false,
            looks: Vec::new(),
            questions: 0,
            sent: Vec::new(),
        };
        for node in 0..count {
            cluster.start(node);
        }
        cluster
    }

    fn start(&mut self, node: usize) {
        let expected = Expected {
            cluster: ClusterId(1),
            former: &[],
            resource: ResourceId(2),
            node: id(node),
            boot_id: 1,
        };
        let source = Source {
            metadata: &self.nodes[node].meta,
            placement: Placement::External,
            store_bytes: SIZE,
        };
        let attached = attach(&expected, &[source], self.now).unwrap();
        for (offset, bytes) in &attached.writes[0] {
            self.nodes[node].meta.write(*offset, bytes);
        }
        let settings = Settings {
            window_age_ms: 100,
            ..Settings::default()
        };
        self.nodes[node].core = Some(Resource::new(
            attached.identity,
            settings,
            attached.volumes,
            self.now,
        ));
        let record = self.record.clone();
        self.event(node, Event::Record(record));
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].core = None;
        let gone: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, (a, b))| *a == node || *b == node)
            .map(|(c, _)| *c)
            .collect();
        for conn in gone {
            let (a, b) = self.conns.remove(&conn).unwrap();
            self.event(if a == node { b } else { a }, Event::Disconnected { conn });
        }
    }

    fn event(&mut self, node: usize, event: Event<Bytes>) {
        let mut work = std::collections::VecDeque::from([(node, event)]);
        while let Some((node, event)) = work.pop_front() {
            let Some(core) = &mut self.nodes[node].core else {
                continue;
            };
            let mut out = Vec::new();
            core.handle(self.now, event, &mut out);
            core.end_turn(self.now, &mut out);
            let generation = core.frame_context().1;
            for action in out {
                self.act(node, generation, action, &mut work);
            }
        }
    }

    #[allow(clippy::too_many_lines)]
    fn act(
        &mut self,
        node: usize,
        generation: Generation,
        action: Action<Bytes>,
        work: &mut std::collections::VecDeque<(usize, Event<Bytes>)>,
    ) {
        let n = &mut self.nodes[node];
        let io = |fail: bool| if fail { Err(DiskError::Io(5)) } else { Ok(()) };
        match action {
            Action::Read { op, range, .. } => {
                let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
                n.data.read(range.offset, &mut bytes);
                let result = io(n.fail_reads).map(|()| Bytes::new(bytes));
                work.push_back((node, Event::ReadDone { op, result }));
            }
            Action::Write {
                op, offset, data, ..
            } => {
                let result = io(n.fail_writes);
                if result.is_ok() {
                    n.data.write(offset, data.get());
                }
                work.push_back((node, Event::DiskDone { op, result }));
            }
            Action::Zero { op, range, .. } => {
                n.data.zero(range);
                work.push_back((
                    node,
                    Event::DiskDone {
                        op,
                        result: io(n.fail_writes),
                    },
                ));
            }
            Action::Flush { op, .. } => {
                work.push_back((
                    node,
                    Event::DiskDone {
                        op,
                        result: io(n.fail_writes),
                    },
                ));
            }
            Action::Hash { op, range, .. } => {
                let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
                n.data.read(range.offset, &mut bytes);
                let hashes = bytes
                    .chunks(4096)
                    .map(|b| {
                        BlockHash(b.iter().fold(0, |h: u128, b| {
                            h.wrapping_mul(31).wrapping_add(u128::from(*b))
                        }))
                    })
                    .collect();
                let result = io(n.fail_reads).map(|()| (hashes, Bytes::new(bytes)));
                work.push_back((node, Event::HashDone { op, result }));
            }
            Action::MetaWrite {
                op, offset, data, ..
            } => {
                n.meta.write(offset, &data);
                work.push_back((node, Event::MetaDone { op, result: Ok(()) }));
            }
            Action::MoveMetadata { .. } => panic!("these have a metadata file"),
            Action::Grow { op, .. } => {
                work.push_back((node, Event::GrowDone { op, result: Ok(()) }))
            }
            Action::Look { op, range, .. } => {
                let holes = n.data.holes(range);
                let looked = (node, Event::Looked { op, holes });
                match self.hold_looks {
                    true => self.looks.push(looked),
                    false => work.push_back(looked),
                }
            }
            Action::Map { id, map } => {
                assert!(self.maps.insert(id.0, map).is_none(), "answered twice");
            }
            Action::Dial { peer } => {
                let to = usize::from(peer.get());
                if self.nodes[to].core.is_some() {
                    let conn = ConnId(self.next_conn);
                    self.next_conn += 1;
                    self.conns.insert(conn, (node, to));
                    work.push_back((node, Event::Dialed { peer, conn }));
                } else {
                    work.push_back((node, Event::DialFailed { peer }));
                }
            }
            Action::Send { conn, message } => {
                if let Some((a, b)) = self.conns.get(&conn) {
                    let to = if *a == node { *b } else { *a };
                    let answer = matches!(message, Message::Answer { .. } | Message::Map { .. });
                    if self.lose_answers && answer {
                        return;
                    }
                    self.questions += usize::from(matches!(message, Message::AskMap { .. }));
                    if let Message::Write {
                        kind: WriteKind::Copy,
                        data,
                        ..
                    } = &message
                    {
                        self.sent.push((to, "copy", data.len() as u64));
                    }
                    work.push_back((
                        to,
                        Event::Message {
                            conn,
                            generation,
                            message,
                        },
                    ));
                }
            }
            Action::Close { conn } => {
                if let Some((a, b)) = self.conns.remove(&conn) {
                    work.push_back((a, Event::Disconnected { conn }));
                    work.push_back((b, Event::Disconnected { conn }));
                }
            }
            Action::Reply { id, result } => {
                self.order.push(id.0);
                assert!(
                    self.replies.insert(id.0, result).is_none(),
                    "answered twice"
                );
            }
            Action::Propose { .. } if self.undecided => {}
            Action::Propose { based_on, change } => {
                match self.record.apply(based_on, &change, &[]) {
                    Ok(next) => {
                        self.record = next.clone();
                        for to in 0..self.nodes.len() {
                            work.push_back((to, Event::Record(next.clone())));
                        }
                    }
                    Err(refusal) => {
                        work.push_back((node, Event::Record(self.record.clone())));
                        work.push_back((node, Event::Refused { based_on, refusal }));
                    }
                }
            }
            Action::CommandDone { id, result } => {
                assert!(
                    self.commands.insert(id.0, result).is_none(),
                    "a command done twice"
                );
            }
            Action::HangUp => self.hung_up.push(node),
            Action::Notice(notice) => self.notices.push((node, notice)),
        }
    }

    /// Every primary's beacon is answered by whom it requires, and it is told to serve.
    fn beacon(&mut self) {
        let sent = self.now;
        for from in 0..self.nodes.len() {
            let standing = self.nodes[from].core.as_ref().map(Resource::standing);
            let Some(epoch) = standing.and_then(|s| s.primary) else {
                continue;
            };
            for to in 0..self.nodes.len() {
                let answers = self.nodes[to].core.is_some() && !self.mute.contains(&to);
                if self.beacons && to != from && answers {
                    let node = id(to);
                    self.event(from, Event::Granted { node, epoch, sent });
                }
            }
            if self.word {
                self.event(from, Event::Serve { epoch });
            }
        }
    }

    fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now.plus_ms(10);
            self.beacon();
            for node in 0..self.nodes.len() {
                let Some(core) = &mut self.nodes[node].core else {
                    continue;
                };
                let mut out = Vec::new();
                core.handle_timeout(self.now, &mut out);
                core.end_turn(self.now, &mut out);
                let generation = core.frame_context().1;
                let mut work = std::collections::VecDeque::new();
                for action in out {
                    self.act(node, generation, action, &mut work);
                }
                for (to, event) in work {
                    self.event(to, event);
                }
            }
        }
    }

    fn command(&mut self, node: usize, command: Command) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.event(
            node,
            Event::Command {
                id: CommandId(id),
                command,
            },
        );
        id
    }

    fn request(&mut self, node: usize, request: ClientRequest<Bytes>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.event(
            node,
            Event::Client {
                id: RequestId(id),
                volume: VolumeId(0),
                request,
            },
        );
        id
    }

    fn write(&mut self, node: usize, offset: u64, fill: u8, len: usize) -> u64 {
        let range = ByteRange::new(offset, len as u64).unwrap();
        let data = Bytes::new(vec![fill; len]);
        self.request(
            node,
            ClientRequest::Write {
                range,
                data,
                fua: false,
            },
        )
    }

    fn ok(&self, request: u64) -> bool {
        matches!(self.replies.get(&request), Some(Ok(_)))
    }

    fn ask_promotion(&mut self, node: usize, drop: NodeSet) -> u64 {
        let over = self.record.epoch;
        self.command(node, Command::Promote { drop, over })
    }

    fn promote(&mut self, node: usize) {
        let command = self.ask_promotion(node, NodeSet::EMPTY);
        assert_eq!(self.commands.get(&command), Some(&Ok(())));
        self.run_ms(100);
        assert!(self.nodes[node].core.as_ref().unwrap().serves());
    }

    fn byte(&self, node: usize, offset: u64) -> u8 {
        let mut b = [0];
        self.nodes[node].data.read(offset, &mut b);
        b[0]
    }

    fn status(&self, node: usize) -> status::Status {
        self.nodes[node].core.as_ref().unwrap().status(self.now)
    }

    fn in_sync(&self) -> Vec<u8> {
        self.record.in_sync.iter().map(|m| m.node.get()).collect()
    }
}

#[test]
fn a_write_is_on_every_replica_when_it_is_answered() {
    let mut c = Cluster::new(3);
    c.promote(0);
    let w = c.write(0, 4096, 7, 8192);
    assert!(c.ok(w));
    for node in 0..3 {
        assert_eq!(c.byte(node, 5000), 7);
    }
    let r = c.request(
        0,
        ClientRequest::Read {
            range: ByteRange::new(4000, 200).unwrap(),
        },
    );
    let Some(Ok(Some(data))) = c.replies.get(&r) else {
        panic!("no data")
    };
    assert_eq!((data.get()[95], data.get()[96]), (0, 7));
}

#[test]
fn only_the_primary_serves() {
    let mut c = Cluster::new(2);
    let w = c.write(1, 0, 1, 512);
    assert!(matches!(c.replies[&w], Err(ClientError::NotPrimary)));
    c.promote(0);
    let w = c.write(1, 0, 1, 512);
    assert!(matches!(c.replies[&w], Err(ClientError::NotPrimary)));
}

#[test]
fn the_window_and_the_log_empty_themselves_when_writing_stops() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 0, 1, 4096);
    assert_eq!(c.status(1).volumes[0].hot_extents, 1);
    c.run_ms(15_000);
    for node in 0..2 {
        assert_eq!(c.status(node).volumes[0].hot_extents, 0, "node {node}");
        assert!(
            c.nodes[node]
                .core
                .as_ref()
                .unwrap()
                .may_differ(id(1 - node), VolumeId(0))
                .is_empty()
        );
    }
}

#[test]
fn a_lost_secondary_is_evicted_and_brought_up_to_date_when_it_returns() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.write(0, 0, 1, 4096);
    c.run_ms(15_000);
    c.kill(2);
    let w = c.write(0, 8 << 20, 2, 4096);
    c.run_ms(1500);
    assert!(c.ok(w));
    assert_eq!(c.in_sync(), [0, 1]);
    c.run_ms(1000);
    assert_eq!(c.status(0).peers[1].out_of_sync_bytes, [4096]);
    assert_eq!(c.byte(2, 8 << 20), 0);
    c.sent.clear();
    c.start(2);
    c.run_ms(5000);
    assert_eq!(c.in_sync(), [0, 1, 2]);
    assert_eq!(c.byte(2, 8 << 20), 2);
    assert_eq!(c.sent, [(2, "copy", 4096)]);
    assert_eq!(c.status(0).peers[1].disk_state, DiskState::UpToDate);
}

#[test]
fn writes_wait_for_a_member_that_may_not_be_dropped_and_go_on_by_themselves() {
    let mut c = Cluster::new(2);
    c.record.min_redundancy = 2;
    for n in 0..2 {
        c.kill(n);
        c.start(n);
    }
    c.promote(0);
    c.kill(1);
    let w = c.write(0, 0, 3, 4096);
    c.run_ms(5000);
    assert!(!c.replies.contains_key(&w));
    assert_eq!(c.status(0).waiting_for, NodeSet::only(id(1)));
    c.start(1);
    c.run_ms(3000);
    assert!(c.ok(w));
    assert_eq!(c.byte(1, 0), 3);
    assert_eq!(c.in_sync(), [0, 1]);
}

#[test]
fn a_failed_secondary_disk_is_evicted_and_a_failed_primary_disk_abdicates() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.nodes[2].fail_writes = true;
    let w = c.write(0, 0, 1, 4096);
    c.run_ms(1000);
    assert!(c.ok(w));
    assert_eq!(c.in_sync(), [0, 1]);
    c.nodes[0].fail_writes = true;
    let w = c.write(0, 0, 2, 4096);
    c.run_ms(1000);
    assert!(matches!(c.replies[&w], Err(ClientError::Io)));
    assert_eq!(c.record.primary, None);
    let promote = c.ask_promotion(1, NodeSet::only(id(0)));
    c.run_ms(1000);
    assert_eq!(c.commands[&promote], Ok(()));
    assert!(c.nodes[1].core.as_ref().unwrap().serves());
}

#[test]
fn the_last_member_answers_the_error() {
    let mut c = Cluster::new(1);
    c.promote(0);
    c.nodes[0].fail_writes = true;
    let w = c.write(0, 0, 1, 4096);
    assert!(matches!(c.replies[&w], Err(ClientError::Io)));
}

#[test]
fn an_unreadable_block_is_served_from_a_member() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 0, 6, 4096);
    c.nodes[0].fail_reads = true;
    let r = c.request(
        0,
        ClientRequest::Read {
            range: ByteRange::new(100, 10).unwrap(),
        },
    );
    let Some(Ok(Some(data))) = c.replies.get(&r) else {
        panic!("{:?}", c.replies.get(&r))
    };
    assert_eq!(data.get(), [6; 10]);
    assert!(
        c.notices
            .iter()
            .any(|(_, n)| matches!(n, Notice::Repaired { .. }))
    );
}

#[test]
fn a_long_discard_is_done_in_pieces_and_answered_once() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 33 << 20, 6, 4096);
    let range = ByteRange::new(1 << 20, 60 << 20).unwrap();
    let z = c.request(
        0,
        ClientRequest::Zero {
            range,
            hole: true,
            fua: false,
            fast: false,
        },
    );
    assert!(c.ok(z));
    assert_eq!(c.byte(1, 33 << 20), 0);
}

#[test]
fn a_clean_close_leaves_the_superblock_closed_and_the_node_returns() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 0, 6, 4096);
    let close = c.command(1, Command::Close);
    c.run_ms(3000);
    assert_eq!(c.commands[&close], Ok(()));
    c.kill(1);
    c.start(1);
    c.run_ms(5000);
    assert_eq!(c.in_sync(), [0, 1]);
}
