//! A whole cluster in virtual time: what is due next, and who gets it. The machines, the network and
//! the store are data in here; `drive` carries out what a core asks for, [`crate::operator`]
//! plays the operator, [`crate::faults`] the bad luck. One seed fixes everything.

mod machines;
mod records;
mod surroundings;

use crate::checker::Checker;
use crate::client::{Clients, Load};
use crate::control::{Control, Whole, Word};
use crate::engine::{Attached, Expected, Factory, NewReplica};
use crate::faults::{Faults, Repair};
use crate::net::{Due, End, Net};
use crate::node::{Node, OpKind, State, Volume};
use crate::operator::Operator;
use crate::rng::Rng;
use crate::rules::{Rule, Violation};
use crate::store::{Process, Store};
use replicator::core::api::{Access, Event, Settings};
use replicator::core::message::Message;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use vocabulary::{
    Change, ClusterId, DiskId, Epoch, Generation, HistoryId, Member, NodeId, Record, Refusal,
    ResourceId, Time, VolumeId,
};

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Machines, each with a replica.
    pub nodes: u8,
    /// Size of each volume in bytes.
    pub sizes: Vec<u64>,
    /// Extents that an activity log holds.
    pub al_extents: u16,
    /// Of the record.
    pub min_redundancy: u8,
    /// Of the cores.
    pub settings: Settings,
    /// Every node takes requests and forwards them (RULES 12); else the primary alone does.
    pub follow: bool,
    /// Whole nodes, with their controllers; `None`: engines with a perfect store and an operator who
    /// promotes.
    pub whole: Option<Whole>,
}

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub enum Occurrence {
    /// A core's time-out may be due.
    Timer(Process),
    /// A disk operation completes.
    Disk(Process, u64),
    /// The next metadata write of an attach is done, or the attach is.
    Attach(Process),
    /// Something arrives at a part of a node's controller, or at its engine from there.
    Word(Process, Box<Word>),
    /// Something arrives at an end of a connection.
    Deliver(u64, End),
    /// A dial comes to its end.
    Dial(Process, NodeId),
    /// The end of a connection hears that its own close is done.
    Closed(Process, u64),
    /// A proposal arrives at the store.
    Propose(Process, Generation, Box<Change>),
    /// A record arrives at a node.
    Record(NodeId, Box<Record>),
    /// A refusal arrives at a node.
    Refused(Process, Generation, Box<Refusal>),
    /// A node's declaration arrives at the store.
    Declare(Member),
    /// The store and the nodes exchange what they have.
    StoreTick,
    /// A client thinks of something.
    Client(usize),
    /// A client's request arrives at its node.
    Arrive(u64),
    /// The operator looks around.
    Operator,
    /// Something goes wrong.
    Fault,
    /// Something is mended.
    Repair(Repair),
    /// The disks are compared with what the cores know.
    Audit,
}

#[derive(Clone, Debug)]
struct Entry {
    at: Time,
    seq: u64,
    what: Occurrence,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// Ids of 32 digits say nothing that 4 don't.
fn shorten(line: String) -> String {
    let mut out = String::with_capacity(line.len());
    let mut hex = 0;
    for c in line.chars() {
        hex = if c.is_ascii_hexdigit() { hex + 1 } else { 0 };
        if hex <= 4 || hex < 16 && !out.ends_with('~') {
            out.push(c);
        } else if hex == 16 {
            out.truncate(out.len() - 11);
            out.push('~');
        }
    }
    out
}

/// A cluster.
#[derive(Clone, Debug)]
pub struct World {
    /// Virtual time.
    pub now: Time,
    /// Occurrences so far.
    pub steps: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    seq: u64,
    runs: u64,
    /// How it was made.
    pub config: Config,
    /// The cluster.
    pub cluster: ClusterId,
    /// Machines.
    pub nodes: Vec<Node>,
    /// Network.
    pub net: Net,
    /// Configuration store.
    pub store: Store,
    /// Nodes that the store can't reach now.
    pub store_cut: Vec<bool>,
    /// The nodes' controllers, where nodes are whole.
    pub control: Option<Control>,
    /// What clients have under way.
    pub clients: Clients,
    /// How they behave.
    pub load: Load,
    /// Whether what they see is possible.
    pub checker: Checker,
    /// The operator.
    pub operator: Operator,
    /// Bad luck.
    pub faults: Faults,
    /// Who has served in which epoch.
    pub served: BTreeMap<Epoch, Process>,
    /// The first broken rule.
    pub violation: Option<Violation>,
    /// Randomness of the world.
    pub rng: Rng,
    /// Prints what happens.
    pub trace: bool,
    pub(crate) factory: Rc<dyn Factory>,
    /// Steps, so far, of every kind of notice: scripts wait for them.
    pub notices: Vec<(NodeId, replicator::core::api::Notice)>,
}

impl World {
    /// A cluster whose disks were just created, with all machines on and all processes starting.
    #[must_use]
    pub fn new(config: Config, factory: Rc<dyn Factory>, mut rng: Rng) -> Self {
        let cluster = ClusterId(rng.id());
        let resource = ResourceId(rng.id());
        let ids: Vec<NodeId> = (0..config.nodes).filter_map(NodeId::new).collect();
        let mut nodes: Vec<Node> = ids
            .iter()
            .map(|id| Node::new(*id, DiskId(rng.id()), &config.sizes, rng.id()))
            .collect();
        if let Some(whole) = &config.whole {
            let witnesses = config.nodes..config.nodes + whole.witnesses;
            for id in witnesses.filter_map(NodeId::new) {
                let mut witness = Node::new(id, DiskId(rng.id()), &[], rng.id());
                witness.witness = true;
                nodes.push(witness);
            }
            for node in &mut nodes {
                node.clock = whole.clock(&mut rng);
            }
        }
        let mut in_sync = Vec::new();
        for node in nodes.iter_mut().filter(|node| !node.witness) {
            let new = NewReplica {
                cluster,
                resource,
                node: node.id,
                disk: node.disk,
                sizes: config.sizes.clone(),
                replicas: ids.iter().copied().collect(),
                al_extents: config.al_extents,
                boot: node.boot,
                pristine: true,
            };
            for (volume, offset, data) in factory.create(&new) {
                if let Some(store) = node.volumes.get_mut(volume.index()) {
                    store.meta.write(offset, &data);
                }
            }
            let expected = Expected {
                cluster,
                resource,
                node: node.id,
                boot: node.boot,
                settings: config.settings,
            };
            let volumes: Vec<&Volume> = node.volumes.iter().collect();
            if let Ok(attached) = factory.attach(&volumes, &expected, Time(1_000_000)) {
                in_sync.push(attached.member());
            }
        }
        let record = Record {
            resource,
            generation: Generation(1),
            epoch: Epoch(0),
            history: HistoryId(rng.id()),
            sizes: config.sizes.clone(),
            primary: None,
            in_sync,
            replicas: ids.iter().copied().collect(),
            min_redundancy: config.min_redundancy,
        };
        let control = config
            .whole
            .as_ref()
            .map(|whole| Control::new(cluster, whole, &nodes, &record, &mut rng));
        let store = Store::new(record);
        let load = Load::new(&config.sizes, &mut rng);
        let mut world = Self {
            now: Time(1_000_000),
            steps: 0,
            queue: BinaryHeap::new(),
            seq: 0,
            runs: 0,
            cluster,
            net: Net::new(nodes.len()),
            store,
            store_cut: vec![false; nodes.len()],
            control,
            clients: Clients::default(),
            load,
            checker: Checker::new(),
            operator: Operator::new(&mut rng),
            faults: Faults::none(),
            served: BTreeMap::new(),
            violation: None,
            rng,
            trace: false,
            factory,
            notices: Vec::new(),
            nodes,
            config,
        };
        for at in 0..world.nodes.len() {
            world.start_process(world.nodes[at].id);
        }
        world.after_us(100, Occurrence::StoreTick);
        world
    }

    /// Starts the clients, the operator and the auditor.
    pub fn start_load(&mut self) {
        for client in 0..self.load.clients {
            self.after_us(1000, Occurrence::Client(client));
        }
        self.after_us(1000, Occurrence::Operator);
        self.after_us(5000, Occurrence::Audit);
    }

    /// What the node's clock shows.
    #[must_use]
    pub fn clock(&self, id: NodeId) -> Time {
        self.node(id).clock.shows(self.now)
    }

    /// How many nodes hold a replica: the first ones.
    #[must_use]
    pub fn replicas(&self) -> usize {
        usize::from(self.config.nodes)
    }

    /// The record as committed.
    #[must_use]
    pub fn record(&self) -> &Record {
        self.store.record()
    }

    /// The node of this id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The node of this id.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Notes a broken rule; the first one counts.
    pub fn broken(&mut self, rule: Rule, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation::new(rule, what));
        }
    }

    /// Notes a broken rule, if that is what it is.
    pub fn expect(&mut self, result: Result<(), impl Into<Violation>>) {
        if let Err(e) = result
            && self.violation.is_none()
        {
            self.violation = Some(e.into());
        }
    }

    /// Prints a line of the trace; `line` is made only where it is wanted.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if self.trace {
            let (ms, us) = (self.now.0 / 1_000_000, self.now.0 / 1000 % 1000);
            println!("{ms:6}.{us:03} {}", shorten(line()));
        }
    }

    /// Lets something happen at this time.
    pub fn at(&mut self, at: Time, what: Occurrence) {
        self.seq += 1;
        let entry = Entry {
            at: at.max(self.now),
            seq: self.seq,
            what,
        };
        self.queue.push(Reverse(entry));
    }

    /// Lets something happen in this many microseconds.
    pub fn after_us(&mut self, us: u64, what: Occurrence) {
        self.at(Time(self.now.0 + us * 1000), what);
    }

    pub(crate) fn due(&mut self, due: impl IntoIterator<Item = Due>) {
        for (conn, end, at) in due {
            self.at(at, Occurrence::Deliver(conn, end));
        }
    }

    /// What is going to happen, in order (for the exploration).
    #[must_use]
    pub fn pending(&self) -> Vec<(Time, u64, &Occurrence)> {
        let mut entries: Vec<_> = self
            .queue
            .iter()
            .map(|Reverse(e)| (e.at, e.seq, &e.what))
            .collect();
        entries.sort_unstable_by_key(|(at, seq, _)| (*at, *seq));
        entries
    }

    /// Lets one of [`Self::pending`] happen now, before its turn. The clock stands still, but for a
    /// time-out, which comes at its time.
    pub fn fire(&mut self, seq: u64) {
        let mut entries = std::mem::take(&mut self.queue).into_vec();
        let at = entries.iter().position(|Reverse(e)| e.seq == seq);
        let chosen = at.map(|at| entries.swap_remove(at));
        self.queue = entries.into();
        if let Some(Reverse(entry)) = chosen {
            if matches!(entry.what, Occurrence::Timer(_) | Occurrence::StoreTick) {
                self.now = self.now.max(entry.at);
            }
            self.happen(entry.what);
        }
    }

    /// The next thing comes later.
    pub fn postpone(&mut self, us: u64) {
        if let Some(Reverse(entry)) = self.queue.pop() {
            let at = Time(entry.at.0 + us * 1000);
            self.at(at, entry.what);
        }
    }

    /// The connections between two nodes break; the links stay.
    pub fn break_conns(&mut self, a: NodeId, b: NodeId) {
        let conns: Vec<u64> = self
            .net
            .conns()
            .filter(|(_, c)| {
                let ends = [c.process(End::Dialer).node, c.process(End::Acceptor).node];
                ends == [a, b] || ends == [b, a]
            })
            .map(|(id, _)| id)
            .collect();
        for conn in conns {
            let due = self.net.break_off(conn, self.now, &mut self.rng);
            self.due(due);
        }
    }

    /// Lets the next thing happen. False when there is none, it is after `until`, or a rule is broken.
    pub fn step(&mut self, until: Time) -> bool {
        if self.violation.is_some() {
            return false;
        }
        match self.queue.peek() {
            Some(Reverse(entry)) if entry.at <= until => {}
            _ => {
                self.now = self.now.max(until);
                return false;
            }
        }
        if let Some(Reverse(entry)) = self.queue.pop() {
            self.now = entry.at;
            self.happen(entry.what);
        }
        true
    }

    /// Runs for this many milliseconds.
    pub fn run_ms(&mut self, ms: u64) {
        self.run_us(ms * 1000);
    }

    /// Runs for this many microseconds.
    pub fn run_us(&mut self, us: u64) {
        let until = Time(self.now.0 + us * 1000);
        while self.step(until) {}
    }

    /// Runs until the condition holds; false when it did not within this many milliseconds.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let until = self.now.plus_ms(ms);
        while !done(self) {
            if !self.step(until) {
                return done(self) && self.violation.is_none();
            }
        }
        true
    }

    fn happen(&mut self, what: Occurrence) {
        self.steps += 1;
        match what {
            Occurrence::Timer(process) => self.timer(process),
            Occurrence::Disk(process, op) => self.disk_done(process, op),
            Occurrence::Attach(process) => self.attach_step(process),
            Occurrence::Word(process, word) => self.word(process, *word),
            Occurrence::Deliver(conn, end) => self.deliver(conn, end),
            Occurrence::Dial(process, peer) => self.dial_done(process, peer),
            Occurrence::Closed(process, conn) => {
                if let Some(process) = self.awake(process, || Occurrence::Closed(process, conn)) {
                    let conn = replicator::core::api::ConnId(conn);
                    self.feed(process.node, Event::Disconnected { conn });
                }
            }
            Occurrence::Propose(from, based_on, change) => self.proposal(from, based_on, &change),
            Occurrence::Record(node, record) => {
                let process = self.node(node).process();
                if self.node(node).is_running()
                    && !self.store_cut[node.index()]
                    && self
                        .awake(process, || Occurrence::Record(node, record.clone()))
                        .is_some()
                {
                    self.feed(node, Event::Record(*record));
                }
            }
            Occurrence::Refused(process, based_on, refusal) => {
                if self
                    .awake(process, || {
                        Occurrence::Refused(process, based_on, refusal.clone())
                    })
                    .is_some()
                {
                    let refusal = *refusal;
                    self.feed(process.node, Event::Refused { based_on, refusal });
                }
            }
            Occurrence::Declare(member) => {
                if self.store.up {
                    self.store.declare(member);
                }
            }
            Occurrence::StoreTick => self.store_tick(),
            Occurrence::Client(client) => self.client_step(client),
            Occurrence::Arrive(id) => self.request_arrives(id),
            Occurrence::Operator => self.operator_tick(),
            Occurrence::Fault => self.fault(),
            Occurrence::Repair(repair) => self.repair(repair),
            Occurrence::Audit => self.audit(),
        }
    }

    /// The process, if that run of it is alive and not stopped; a stopped one gets it later.
    pub(crate) fn awake(
        &mut self,
        process: Process,
        again: impl FnOnce() -> Occurrence,
    ) -> Option<Process> {
        let node = self.node(process.node);
        if node.run != process.run || !node.is_running() {
            return None;
        }
        let until = node.paused_until.max(node.stalled_until);
        if until > self.now {
            self.at(until, again());
            return None;
        }
        Some(process)
    }

    fn audit(&mut self) {
        let record = self.store.record().clone();
        let result = crate::rules::differences_are_known(&record, &self.nodes);
        self.expect(result);
        if !self.operator.at_rest {
            let us = self.rng.between(10_000, 60_000);
            self.after_us(us, Occurrence::Audit);
        }
    }
}
