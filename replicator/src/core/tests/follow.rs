//! Follow access and RULES 12 by themselves: clients on every node, a primary that dies with their
//! requests at every point of their way, two fail-overs in a row, restarts in between; every
//! interleaving of messages, disks and records is a pick from a seed. Clients must see no error
//! where none is due, and what they see of each block must be the history of one disk.

mod checker;

use super::*;
use checker::is_linearizable;
use std::collections::{BTreeSet, VecDeque};

/// Blocks that clients use.
const BLOCKS: u64 = 2;
const BLOCK: u64 = 4096;

/// A lease, and a little more.
const LEASE_MS: u64 = 550;

/// What is on its way. Things of one channel come in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Channel {
    /// From one end of a connection to the other node.
    Conn(ConnId, usize),
    /// A disk's request by itself: completions come in any order.
    Disk(usize, OpId),
    /// From the configuration store.
    Store(usize),
    /// The driver of a node.
    Driver(usize),
}

#[derive(Debug)]
enum Thing {
    Event(Event<Bytes>),
    Write { op: OpId, offset: u64, data: Bytes },
    Zero { op: OpId, range: ByteRange },
    Read { op: OpId, range: ByteRange },
    Hash { op: OpId, range: ByteRange },
    Close(ConnId),
}

struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// What a client did to a block: the register's history.
#[derive(Clone, Copy, Debug)]
struct Seen {
    block: u64,
    write: bool,
    value: u8,
    begun: u64,
    ended: Option<u64>,
}

#[derive(Debug)]
struct Asking {
    node: usize,
    client: usize,
    seen: Vec<usize>,
    read: bool,
}

/// A client that has one request at a time.
#[derive(Clone, Copy, Debug)]
struct Client {
    node: usize,
    left: usize,
    busy: bool,
}

struct Net {
    now: Time,
    nodes: Vec<Node>,
    boots: u64,
    record: Record,
    conns: BTreeMap<ConnId, (usize, usize)>,
    next_conn: u64,
    next_id: u64,
    things: VecDeque<(Channel, usize, Thing)>,
    steps: u64,
    clients: Vec<Client>,
    asking: BTreeMap<u64, Asking>,
    seen: Vec<Seen>,
    next_value: u8,
    errors: Vec<(usize, ClientError)>,
    commands: BTreeMap<u64, Result<(), CommandError>>,
    hung_up: BTreeSet<usize>,
    /// A node that is about to be primary, and since when.
    promoting: Option<(usize, Time)>,
    rng: Option<Rng>,
}

impl Net {
    fn new(count: usize, rng: Option<Rng>) -> Self {
        let old = Cluster::new(count);
        let mut net = Self {
            now: old.now,
            nodes: old.nodes,
            boots: 0,
            record: old.record,
            conns: BTreeMap::new(),
            next_conn: 1,
            next_id: 1,
            things: VecDeque::new(),
            steps: 0,
            clients: Vec::new(),
            asking: BTreeMap::new(),
            seen: Vec::new(),
            next_value: 1,
            errors: Vec::new(),
            commands: BTreeMap::new(),
            hung_up: BTreeSet::new(),
            promoting: None,
            rng,
        };
        for node in 0..count {
            net.start(node);
        }
        net
    }

    fn start(&mut self, node: usize) {
        self.boots += 1;
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
        let (identity, volumes) = (attached.identity, attached.volumes);
        let core = Resource::new(identity, settings, volumes, self.now);
        self.nodes[node].core = Some(core);
        let access = Access::Follow {
            session: self.boots << 5,
            errors: false,
        };
        self.event(node, Event::Access(access));
        let record = self.record.clone();
        self.event(node, Event::Record(record));
    }

    /// The process dies; what its disk had begun is finished or not.
    fn kill(&mut self, node: usize) {
        self.nodes[node].core = None;
        let things = std::mem::take(&mut self.things);
        for (channel, to, thing) in things {
            if to == node {
                let finished = self.rng.as_mut().is_none_or(|rng| rng.below(2) == 0);
                if finished {
                    self.disk(node, &thing);
                }
                continue;
            }
            self.things.push_back((channel, to, thing));
        }
        let gone: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, (a, b))| *a == node || *b == node)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in gone {
            let (a, b) = self.conns.remove(&conn).unwrap();
            let other = if a == node { b } else { a };
            // After all that is on its way to it.
            let event = Thing::Event(Event::Disconnected { conn });
            self.things
                .push_back((Channel::Conn(conn, other), other, event));
        }
        // Its clients go with it.
        let gone: Vec<u64> = self
            .asking
            .iter()
            .filter(|(_, a)| a.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            let asking = self.asking.remove(&id).unwrap();
            self.clients[asking.client].busy = false;
            self.clients[asking.client].left = 0;
        }
    }

    fn disk(&mut self, node: usize, thing: &Thing) {
        let data = &mut self.nodes[node].data;
        match thing {
            Thing::Write {
                offset,
                data: bytes,
                ..
            } => data.write(*offset, bytes.get()),
            Thing::Zero { range, .. } => data.zero(*range),
            _ => {}
        }
    }

    fn event(&mut self, node: usize, event: Event<Bytes>) {
        let Some(core) = &mut self.nodes[node].core else {
            return;
        };
        let mut out = Vec::new();
        core.handle(self.now, event, &mut out);
        core.end_turn(self.now, &mut out);
        self.carry_out(node, out);
    }

    fn carry_out(&mut self, node: usize, out: Vec<Action<Bytes>>) {
        let core = self.nodes[node].core.as_ref().unwrap();
        let generation = core.frame_context().1;
        for action in out {
            self.act(node, generation, action);
        }
    }

    fn push(&mut self, channel: Channel, to: usize, thing: Thing) {
        self.things.push_back((channel, to, thing));
    }

    #[allow(clippy::too_many_lines)]
    fn act(&mut self, node: usize, generation: Generation, action: Action<Bytes>) {
        let driver = Channel::Driver(node);
        match action {
            Action::Read { op, range, .. } => {
                self.push(Channel::Disk(node, op), node, Thing::Read { op, range });
            }
            Action::Write {
                op, offset, data, ..
            } => {
                let thing = Thing::Write { op, offset, data };
                self.push(Channel::Disk(node, op), node, thing);
            }
            Action::Zero { op, range, .. } => {
                self.push(Channel::Disk(node, op), node, Thing::Zero { op, range });
            }
            Action::Hash { op, range, .. } => {
                self.push(Channel::Disk(node, op), node, Thing::Hash { op, range });
            }
            Action::Flush { op, .. } => {
                let done = Event::DiskDone { op, result: Ok(()) };
                self.push(Channel::Disk(node, op), node, Thing::Event(done));
            }
            Action::MetaWrite {
                op, offset, data, ..
            } => {
                self.nodes[node].meta.write(offset, &data);
                let done = Event::MetaDone { op, result: Ok(()) };
                self.push(Channel::Disk(node, op), node, Thing::Event(done));
            }
            Action::MoveMetadata { .. } => unreachable!("metadata lie in files of their own"),
            Action::Grow { op, .. } => {
                let done = Event::GrowDone { op, result: Ok(()) };
                self.push(driver, node, Thing::Event(done));
            }
            Action::Look { .. } | Action::Map { .. } => unreachable!("nobody asks"),
            Action::Dial { peer } => {
                let to = usize::from(peer.get());
                let event = if self.nodes[to].core.is_some() {
                    let conn = ConnId(self.next_conn);
                    self.next_conn += 1;
                    self.conns.insert(conn, (node, to));
                    Event::Dialed { peer, conn }
                } else {
                    Event::DialFailed { peer }
                };
                self.push(driver, node, Thing::Event(event));
            }
            Action::Send { conn, message } => {
                if let Some((a, b)) = self.conns.get(&conn) {
                    let to = if *a == node { *b } else { *a };
                    let event = Event::Message {
                        conn,
                        generation,
                        message,
                    };
                    self.push(Channel::Conn(conn, to), to, Thing::Event(event));
                }
            }
            Action::Close { conn } => {
                if let Some((a, b)) = self.conns.get(&conn) {
                    let to = if *a == node { *b } else { *a };
                    self.push(Channel::Conn(conn, to), to, Thing::Close(conn));
                    self.push(Channel::Conn(conn, node), node, Thing::Close(conn));
                }
            }
            Action::Reply { id, result } => self.replied(id.0, result),
            Action::HangUp => {
                self.hung_up.insert(node);
            }
            Action::Propose { based_on, change } => {
                match self.record.apply(based_on, &change, &[]) {
                    Ok(next) => {
                        self.record = next.clone();
                        for to in 0..self.nodes.len() {
                            let event = Event::Record(next.clone());
                            self.push(Channel::Store(to), to, Thing::Event(event));
                        }
                    }
                    Err(refusal) => {
                        let record = Event::Record(self.record.clone());
                        self.push(Channel::Store(node), node, Thing::Event(record));
                        let refused = Event::Refused { based_on, refusal };
                        self.push(Channel::Store(node), node, Thing::Event(refused));
                    }
                }
            }
            Action::CommandDone { id, result } => {
                self.commands.insert(id.0, result);
            }
            Action::Notice(_) => {}
        }
    }

    // ---- time ----

    /// Something that is on its way arrives; where nothing is, time passes.
    fn step(&mut self) {
        self.steps += 1;
        self.ask();
        let mut heads = Vec::new();
        let mut known = BTreeSet::new();
        for (index, (channel, ..)) in self.things.iter().enumerate() {
            if known.insert(*channel) {
                heads.push(index);
            }
        }
        let tick = heads.is_empty() || self.rng.as_mut().is_some_and(|rng| rng.below(40) == 0);
        if tick {
            return self.tick();
        }
        let pick = match &mut self.rng {
            Some(rng) => heads[rng.below(heads.len())],
            None => heads[0],
        };
        let (_, node, thing) = self.things.remove(pick).unwrap();
        self.arrive(node, thing);
    }

    fn arrive(&mut self, node: usize, thing: Thing) {
        if self.nodes[node].core.is_none() {
            return;
        }
        self.disk(node, &thing);
        let data = &self.nodes[node].data;
        let read = |range: ByteRange| {
            let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
            data.read(range.offset, &mut bytes);
            bytes
        };
        let event = match thing {
            Thing::Event(event) => event,
            Thing::Write { op, .. } | Thing::Zero { op, .. } => {
                Event::DiskDone { op, result: Ok(()) }
            }
            Thing::Read { op, range } => {
                let result = Ok(Bytes::new(read(range)));
                Event::ReadDone { op, result }
            }
            Thing::Hash { op, range } => {
                let bytes = read(range);
                let hashes = bytes.chunks(4096).map(digest).collect();
                let result = Ok((hashes, Bytes::new(bytes)));
                Event::HashDone { op, result }
            }
            Thing::Close(conn) => {
                self.conns.remove(&conn);
                Event::Disconnected { conn }
            }
        };
        self.event(node, event);
    }

    fn tick(&mut self) {
        self.now = self.now.plus_ms(10);
        for node in 0..self.nodes.len() {
            let Some(core) = &mut self.nodes[node].core else {
                continue;
            };
            let mut out = Vec::new();
            core.handle_timeout(self.now, &mut out);
            core.end_turn(self.now, &mut out);
            self.carry_out(node, out);
        }
        self.lease();
    }

    /// What the controllers do: nodes grant leases to the primary of their record, none while one
    /// of them is about to be promoted, and a new primary serves once the old ones have run out.
    fn lease(&mut self) {
        let cores = self.nodes.iter().map(|node| node.core.as_ref());
        let standing: Vec<Option<(Epoch, bool)>> = cores
            .map(|core| {
                let core = core?;
                let leads = core.status(self.now).role != Role::Secondary;
                Some((core.frame_context().0, leads))
            })
            .collect();
        for primary in 0..standing.len() {
            let Some((epoch, true)) = standing[primary] else {
                continue;
            };
            for (node, other) in standing.iter().enumerate() {
                let promoting = self.promoting.is_some_and(|(n, _)| n == node);
                if node != primary && other.is_some_and(|(e, _)| e == epoch) && !promoting {
                    let (node, sent) = (id(node), self.now);
                    self.event(primary, Event::Granted { node, epoch, sent });
                }
            }
            let early = self
                .promoting
                .is_some_and(|(_, since)| self.now.ms_since(since) <= LEASE_MS);
            if !early {
                self.event(primary, Event::Serve { epoch });
                self.promoting = self.promoting.filter(|(n, _)| *n != primary);
            }
        }
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = self.now.plus_ms(120_000);
        while !done(self) {
            self.step();
            assert!(self.now < end, "waited in vain for {what}");
        }
    }

    fn promote(&mut self, node: usize) {
        let command = Command::Promote {
            drop: NodeSet::EMPTY,
            over: self.record.epoch,
        };
        self.promoting = Some((node, self.now));
        self.next_id += 1;
        let id = CommandId(self.next_id);
        self.event(node, Event::Command { id, command });
    }

    fn demote(&mut self, node: usize) {
        self.next_id += 1;
        let id = CommandId(self.next_id);
        let command = Command::Demote { to: None };
        self.event(node, Event::Command { id, command });
    }

    fn serves(&self, node: usize) -> bool {
        self.nodes[node].core.as_ref().is_some_and(Resource::serves)
    }

    /// Promotes and waits until the node serves.
    fn make_primary(&mut self, node: usize) {
        self.promote(node);
        self.run_until("a primary", |net| net.serves(node));
    }

    /// Nothing is on its way: every replica has the primary's table.
    fn settle(&mut self) {
        self.run_until("quiet", |net| net.things.is_empty());
    }

    // ---- clients ----

    fn client(&mut self, node: usize, requests: usize) {
        self.clients.push(Client {
            node,
            left: requests,
            busy: false,
        });
    }

    /// Every client that waits for nothing asks something.
    fn ask(&mut self) {
        for client in 0..self.clients.len() {
            let Client { node, left, busy } = self.clients[client];
            if busy || left == 0 {
                continue;
            }
            self.clients[client].busy = true;
            self.clients[client].left -= 1;
            let dice = match &mut self.rng {
                Some(rng) => rng.next(),
                None => self.next_id,
            };
            let (first, count) = match dice / 4 % 8 {
                0 => (0, BLOCKS),
                other => (other % BLOCKS, 1),
            };
            let range = ByteRange::new(first * BLOCK, count * BLOCK).unwrap();
            let write = dice % 4 != 0;
            let value = if write {
                self.next_value += 1;
                self.next_value
            } else {
                0
            };
            let begun = self.steps;
            let seen = (first..first + count)
                .map(|block| {
                    self.seen.push(Seen {
                        block,
                        write,
                        value,
                        begun,
                        ended: None,
                    });
                    self.seen.len() - 1
                })
                .collect();
            self.next_id += 1;
            let id = self.next_id;
            let read = !write;
            self.asking.insert(
                id,
                Asking {
                    node,
                    client,
                    seen,
                    read,
                },
            );
            let request = if write {
                ClientRequest::Write {
                    range,
                    data: Bytes::new(vec![value; usize::try_from(range.len).unwrap()]),
                    fua: dice & 32 != 0,
                }
            } else {
                ClientRequest::Read { range }
            };
            let event = Event::Client {
                id: RequestId(id),
                volume: VolumeId(0),
                request,
            };
            self.event(node, event);
        }
    }

    fn replied(&mut self, id: u64, result: Result<Option<Bytes>, ClientError>) {
        let Some(asking) = self.asking.remove(&id) else {
            return;
        };
        self.clients[asking.client].busy = false;
        match result {
            Ok(data) => {
                for (place, index) in asking.seen.iter().enumerate() {
                    let seen = &mut self.seen[*index];
                    seen.ended = Some(self.steps);
                    if asking.read {
                        seen.value = data.as_ref().unwrap().get()[place * 4096];
                    }
                }
            }
            Err(error) => self.errors.push((asking.node, error)),
        }
    }

    fn clients_are_done(&mut self) {
        self.run_until("the clients", |net| {
            net.clients.iter().all(|c| c.left == 0 && !c.busy)
        });
    }

    /// What was seen of a block.
    fn history(&self, block: u64) -> Vec<Seen> {
        let of_block = self.seen.iter().filter(|s| s.block == block);
        of_block
            .filter(|s| s.write || s.ended.is_some())
            .copied()
            .collect()
    }

    /// It is the history of one disk.
    fn check(&self) {
        for block in 0..BLOCKS {
            let history = self.history(block);
            assert!(
                is_linearizable(&history),
                "block {block} was no disk: {history:#?}"
            );
        }
    }
}

fn digest(block: &[u8]) -> BlockHash {
    BlockHash(block.iter().fold(0, |h: u128, b| {
        h.wrapping_mul(31).wrapping_add(u128::from(*b))
    }))
}

/// The primary dies after so many steps of its clients' requests; node 1 takes over.
fn fail_over_after(steps: u64, rng: Option<Rng>) -> Net {
    let mut net = Net::new(3, rng);
    net.make_primary(0);
    net.settle();
    net.client(2, 5);
    net.client(2, 5);
    net.client(1, 5);
    for _ in 0..steps {
        net.step();
    }
    net.kill(0);
    net.make_primary(1);
    net
}

#[test]
fn clients_of_every_node_are_served_by_the_primary() {
    let mut net = Net::new(3, None);
    for node in 0..3 {
        net.client(node, 8);
    }
    // Without a primary they wait.
    for _ in 0..200 {
        net.step();
    }
    assert_eq!(net.asking.len(), 3);
    net.make_primary(0);
    net.clients_are_done();
    assert_eq!(net.errors, []);
    net.check();
}

#[test]
fn a_primary_that_dies_at_any_point_of_a_request_costs_survivors_no_error_and_no_write() {
    let mut ended_early = 0;
    for steps in (0..400).step_by(2) {
        let mut net = fail_over_after(steps, None);
        net.clients_are_done();
        assert_eq!(net.errors, [], "killed after {steps} steps");
        net.check();
        ended_early += u64::from(net.seen.iter().all(|s| s.ended.is_some()));
    }
    assert!(ended_early > 0);
}

#[test]
fn whatever_the_order_of_messages_and_disks_a_fail_over_costs_no_error_and_no_write() {
    for seed in 1..60 {
        let mut rng = Rng::new(seed);
        let steps = rng.next() % 500;
        let mut net = fail_over_after(steps, Some(rng));
        net.clients_are_done();
        assert_eq!(net.errors, [], "seed {seed}");
        net.check();
    }
}

#[test]
fn two_fail_overs_in_a_row_execute_nothing_twice() {
    let mut with_errors = 0;
    for seed in 1..60 {
        let mut rng = Rng::new(seed);
        let (first, second) = (rng.next() % 400, rng.next() % 300);
        let mut net = Net::new(3, Some(rng));
        net.make_primary(0);
        net.settle();
        net.client(2, 5);
        net.client(2, 5);
        net.client(1, 4);
        for _ in 0..first {
            net.step();
        }
        net.kill(0);
        net.make_primary(1);
        // In the middle of the reconciliation, or of what is sent again.
        for _ in 0..second {
            net.step();
        }
        net.kill(1);
        net.make_primary(2);
        net.start(0);
        net.start(1);
        net.clients_are_done();
        with_errors += usize::from(!net.errors.is_empty());
        net.check();
    }
    // Only a write of several blocks of which the reconciliation has replaced some.
    assert!(with_errors <= 2, "{with_errors}");
}

#[test]
fn a_replica_that_restarts_between_two_fail_overs_executes_nothing_twice() {
    for seed in 1..60 {
        let mut rng = Rng::new(seed);
        let (first, second) = (rng.next() % 400, rng.next() % 400);
        let mut net = Net::new(3, Some(rng));
        net.make_primary(0);
        net.settle();
        net.client(2, 8);
        net.client(2, 8);
        for _ in 0..first {
            net.step();
        }
        net.kill(1);
        for _ in 0..second {
            net.step();
        }
        net.start(1);
        net.run_until("node 1 to be back", |net| {
            net.record.member(id(1)).is_some()
                && net.nodes[0]
                    .core
                    .as_ref()
                    .unwrap()
                    .status(net.now)
                    .in_sync
                    .contains(id(1))
        });
        net.kill(0);
        net.make_primary(1);
        net.clients_are_done();
        net.check();
    }
}

#[test]
fn a_planned_move_costs_a_pause_and_no_error() {
    for seed in 1..60 {
        let mut rng = Rng::new(seed);
        let steps = rng.next() % 400;
        let mut net = Net::new(3, Some(rng));
        net.make_primary(0);
        net.settle();
        for node in 0..3 {
            net.client(node, 5);
        }
        for _ in 0..steps {
            net.step();
        }
        net.demote(0);
        net.run_until("the demotion", |net| net.record.primary.is_none());
        net.make_primary(1);
        net.clients_are_done();
        assert_eq!(net.errors, [], "seed {seed}");
        net.check();
    }
}

#[test]
fn a_primary_that_is_superseded_hands_its_own_clients_over() {
    for seed in 1..60 {
        let mut rng = Rng::new(seed);
        let steps = rng.next() % 400;
        let mut net = Net::new(3, Some(rng));
        net.make_primary(0);
        net.settle();
        for node in 0..3 {
            net.client(node, 5);
        }
        for _ in 0..steps {
            net.step();
        }
        // Node 0 lives and learns of it like everybody else.
        net.make_primary(1);
        net.clients_are_done();
        assert_eq!(net.errors, [], "seed {seed}");
        net.check();
    }
}

// ---- by themselves ----
