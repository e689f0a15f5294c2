//! A little cluster on true time: nodes whose clocks run apart, machines that pause, processes that
//! restart, datagrams that are late, lost or doubled; an ideal configuration store; and of the engine
//! just what leases are about. At every event it is checked that no two nodes may answer.

use super::super::*;
use crate::core::{Access, Name, OnNoQuorum, Policy, Replica, Report, Resource, Version};
use vocabulary::{Change, ClusterId, DiskId, Generation, HistoryId, Incarnation};

pub(super) const R: ResourceId = ResourceId(7);

const MS: u64 = 1_000_000;
/// The engine gives up on a member that has granted nothing for this long.
const EVICT_MS: u64 = 300;
/// A proposal that was not answered is made again after this long.
const PROPOSE_MS: u64 = 400;
/// The store tells everybody its document this often.
const SYNC_MS: u64 = 50;

pub(super) fn id(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

fn member(node: NodeId) -> Member {
    Member {
        node,
        disk: DiskId(u128::from(node.get())),
        incarnation: Incarnation(1),
    }
}

/// What leases are about in an engine.
#[derive(Clone, Debug)]
struct Engine {
    me: NodeId,
    known: Option<Record>,
    failed: bool,
    primary: Option<Epoch>,
    required: NodeSet,
    /// The generation that an admit was based on, until it is decided; the greatest: not yet proposed.
    admitting: Option<Generation>,
    /// Since when it is required.
    asked: Time,
    grants: BTreeMap<NodeId, Time>,
    since: Time,
    serving: Option<Epoch>,
    /// The epoch of a promotion that was proposed.
    promoting: Option<(Epoch, Time)>,
    demoting: bool,
    proposed: Option<Time>,
}

impl Engine {
    const fn new(me: NodeId, failed: bool) -> Self {
        Self {
            me,
            known: None,
            failed,
            primary: None,
            required: NodeSet::EMPTY,
            admitting: None,
            asked: Time(0),
            grants: BTreeMap::new(),
            since: Time(0),
            serving: None,
            promoting: None,
            demoting: false,
            proposed: None,
        }
    }

    fn local(&self) -> Local {
        Local {
            member: member(self.me),
            failed: self.failed,
            primary: self.primary,
            required: self.required,
        }
    }

    fn stop(&mut self) {
        self.primary = None;
        self.serving = None;
        self.required = NodeSet::EMPTY;
        self.admitting = None;
        self.grants.clear();
    }

    fn learn(&mut self, now: Time, record: &Record) {
        let known = self.known.as_ref();
        if known.is_some_and(|known| known.generation >= record.generation) {
            return;
        }
        let mine = record.primary == Some(self.me);
        if self
            .primary
            .is_some_and(|epoch| !mine || epoch != record.epoch)
        {
            self.stop();
        }
        if mine
            && self
                .promoting
                .is_some_and(|(epoch, _)| epoch == record.epoch)
        {
            self.stop();
            self.promoting = None;
            self.primary = Some(record.epoch);
            self.since = now;
            self.proposed = None;
        }
        if !mine {
            self.demoting = false;
        }
        if self.primary.is_some() {
            let decided = self
                .admitting
                .is_none_or(|based_on| record.generation > based_on);
            if decided {
                self.admitting = None;
                self.required = record.members();
            } else {
                self.required = self.required.union(record.members());
            }
        }
        self.known = Some(record.clone());
    }

    fn has_lease_of(&self, now: Time, node: NodeId, lease_ms: u64) -> bool {
        let sent = self.grants.get(&node);
        sent.is_some_and(|sent| now.ms_since(*sent) < lease_ms)
    }

    fn may_answer(&self, now: Time, lease_ms: u64) -> bool {
        let others = self.required.without(self.me);
        self.primary.is_some()
            && self.serving == self.primary
            && others
                .iter()
                .all(|node| self.has_lease_of(now, node, lease_ms))
    }

    /// A change that is due.
    fn proposal(&mut self, now: Time, lease_ms: u64) -> Option<(Generation, Change)> {
        let known = self.known.as_ref()?;
        if self
            .proposed
            .is_some_and(|at| now.ms_since(at) < PROPOSE_MS)
        {
            return None;
        }
        let node = self.me;
        let change = if self.demoting {
            Change::Demote { node, to: None }
        } else {
            self.primary?;
            let silent = |node: &NodeId| {
                let last = self.grants.get(node).copied().unwrap_or(self.since);
                now.ms_since(last.max(self.since)) >= EVICT_MS
            };
            let lost = known.members().without(node).iter().find(silent);
            let enough = known.members().len() > u32::from(known.min_redundancy);
            if let Some(lost) = lost.filter(|_| enough) {
                Change::Evict { node: lost }
            } else {
                self.serving?;
                let absent = known.replicas.difference(known.members());
                let has = |node: &NodeId| self.has_lease_of(now, *node, lease_ms / 4);
                let begun = absent.intersection(self.required).iter().next();
                let back = begun.or_else(|| absent.iter().find(has))?;
                if begun.is_none() {
                    // First it is required, then it grants, then it is proposed.
                    self.required.insert(back);
                    self.admitting = Some(Generation(u64::MAX));
                    self.asked = now;
                    return None;
                }
                let granted = self
                    .grants
                    .get(&back)
                    .is_some_and(|sent| *sent > self.asked);
                let proposed = self.admitting != Some(Generation(u64::MAX));
                if !granted && !proposed {
                    if now.ms_since(self.asked) >= EVICT_MS {
                        // It is called off.
                        self.required.remove(back);
                        self.admitting = None;
                    }
                    return None;
                }
                self.admitting = Some(known.generation);
                Change::Admit {
                    member: member(back),
                }
            }
        };
        self.proposed = Some(now);
        Some((known.generation, change))
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) core: Failover,
    engine: Engine,
    pub(super) up: bool,
    paused_until: u64,
    /// The clock: parts in a million of true time, and what it showed then.
    rate: u64,
    base: (u64, u64),
    pub(super) turning: bool,
    store: bool,
}

impl Machine {
    fn clock(&self, now: u64) -> Time {
        let (then, shown) = self.base;
        let passed = u128::from(now - then) * u128::from(self.rate) / 1_000_000;
        Time(shown + u64::try_from(passed).unwrap())
    }

    /// When the clock shows this.
    fn when(&self, shows: Time) -> u64 {
        let (then, shown) = self.base;
        let passed = u128::from(shows.0.saturating_sub(shown)) * 1_000_000;
        then + u64::try_from(passed.div_ceil(u128::from(self.rate))).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Happening {
    Mail(NodeId, NodeId, Message),
    Propose(NodeId, Generation, Change),
    /// A promotion was decided; this is the document then.
    Ended(NodeId, Box<Document>),
    Learn(NodeId, Box<Document>),
    Sync,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: u64,
    pub(super) machines: BTreeMap<NodeId, Machine>,
    queue: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    random: u64,
    pub(super) settings: Settings,
    pub(super) document: Document,
    /// From and to.
    pub(super) cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes without a way to the store.
    pub(super) apart: NodeSet,
    pub(super) delay_ms: (u64, u64),
    pub(super) loss_percent: u64,
    pub(super) double_percent: u64,
    /// Every promotion: when and who.
    pub(super) promoted: Vec<(u64, NodeId)>,
    pub(super) actions: Vec<(NodeId, Action)>,
}

impl World {
    /// Nodes 1 to `count`; the first `replicas` of them hold one, in sync; nobody is primary.
    pub(super) fn new(count: u8, replicas: u8, seed: u64) -> Self {
        let name = |number: u8| Name::new(&format!("n{number}")).unwrap();
        let mut document = Document::new(ClusterId(1));
        for number in 1..=count {
            document.nodes.push(crate::core::Node {
                id: id(number),
                name: name(number),
                control: Vec::new(),
                replication: Vec::new(),
                state: NodeState::Online,
                fencing: None,
            });
        }
        let holders = 1..=replicas;
        let replica = |number: u8| Replica {
            node: id(number),
            backing: Vec::new(),
            replaced: None,
            report: Some(Report {
                member: member(id(number)),
                empty: false,
            }),
        };
        document.resources.push(Resource {
            name: Name::new("r0").unwrap(),
            id: R,
            initial_sizes: vec![4096],
            replicas: holders.clone().map(replica).collect(),
            min_redundancy: 1,
            policy: Policy {
                access: Access::Exclusive,
                on_no_quorum: OnNoQuorum::Suspend,
                preferred: None,
            },
            up: true,
            next: None,
            history: HistoryId(1),
            record: Some(Record {
                resource: R,
                generation: Generation(1),
                epoch: Epoch(0),
                history: HistoryId(1),
                sizes: vec![4096],
                primary: None,
                in_sync: holders.clone().map(|n| member(id(n))).collect(),
                replicas: holders.map(id).collect(),
                min_redundancy: 1,
            }),
        });
        let mut world = Self {
            now: 1_000 * MS,
            machines: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            random: seed,
            settings: Settings::default(),
            document,
            cut: BTreeSet::new(),
            apart: NodeSet::EMPTY,
            delay_ms: (0, 2),
            loss_percent: 0,
            double_percent: 0,
            promoted: Vec::new(),
            actions: Vec::new(),
        };
        for number in 1..=count {
            let me = id(number);
            let rate = 995_000 + world.random(10_000);
            let shown = world.random(1_000_000) * MS;
            let machine = Machine {
                core: Failover::new(me, world.random(u64::MAX), world.settings, Time(shown)),
                engine: Engine::new(me, false),
                up: true,
                paused_until: 0,
                rate,
                base: (world.now, shown),
                turning: true,
                store: false,
            };
            world.machines.insert(me, machine);
        }
        world.queue.insert((world.now, 0), Happening::Sync);
        world
    }

    /// The same once node 1 is primary of all members and answers.
    pub(super) fn served_by_1(count: u8, replicas: u8, seed: u64) -> Self {
        let mut world = Self::new(count, replicas, seed);
        world.resource().next = Some(id(1));
        world.until("node 1 answers", 10_000, |world| {
            world.answers() == Some(id(1))
        });
        world.resource().next = None;
        world.run_ms(1_000);
        assert_eq!(world.answers(), Some(id(1)));
        world.promoted.clear();
        world.actions.clear();
        world
    }

    pub(super) fn resource(&mut self) -> &mut Resource {
        self.document.version = Version(self.document.version.0 + 1);
        &mut self.document.resources[0]
    }

    pub(super) fn record(&self) -> &Record {
        self.document.resources[0].record.as_ref().unwrap()
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn later(&mut self, what: Happening) {
        let (least, most) = self.delay_ms;
        let delay = least * MS + self.random((most - least) * MS + 1);
        self.sequence += 1;
        let key = (self.now + delay, self.sequence);
        self.queue.insert(key, what);
    }

    pub(super) fn cut_off(&mut self, node: u8) {
        let others: Vec<NodeId> = self.machines.keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != id(node)) {
            self.cut_between(id(node), other);
        }
        self.apart.insert(id(node));
    }

    pub(super) fn cut_between(&mut self, a: NodeId, b: NodeId) {
        self.cut.insert((a, b));
        self.cut.insert((b, a));
    }

    pub(super) fn kill(&mut self, node: u8) {
        self.machine(node).up = false;
    }

    /// The process starts anew; after a reset of the machine its clock does too.
    pub(super) fn start(&mut self, node: u8, reset: bool) {
        let (run, settings, now) = (self.random(u64::MAX), self.settings, self.now);
        let shown = self.random(1_000) * MS;
        let machine = self.machine(node);
        if reset {
            machine.base = (now, shown);
        }
        let clock = machine.clock(now);
        machine.core = Failover::new(id(node), run, settings, clock);
        machine.engine = Engine::new(id(node), machine.engine.failed);
        (machine.up, machine.store) = (true, false);
        let turning = machine.turning;
        self.handle(id(node), Event::Turning(turning));
        self.tell(id(node));
    }

    /// The machine stands still for so long; its clock does not.
    pub(super) fn pause(&mut self, node: u8, ms: u64) {
        self.machine(node).paused_until = self.now + ms * MS;
    }

    pub(super) fn turn(&mut self, node: u8, turning: bool) {
        self.machine(node).turning = turning;
        self.handle(id(node), Event::Turning(turning));
    }

    pub(super) fn fail_disk(&mut self, node: u8, failed: bool) {
        let machine = self.machine(node);
        machine.engine.failed = failed;
        if failed && machine.engine.primary.is_some() {
            // RULES section 1: a primary whose disk failed demotes.
            return self.let_go(node);
        }
        self.tell(id(node));
    }

    /// The engine demotes.
    pub(super) fn let_go(&mut self, node: u8) {
        let machine = self.machine(node);
        machine.engine.stop();
        machine.engine.demoting = true;
        self.tell(id(node));
    }

    pub(super) fn machine(&mut self, node: u8) -> &mut Machine {
        self.machines.get_mut(&id(node)).unwrap()
    }

    pub(super) fn waiting(&self, node: u8) -> Option<Waiting> {
        let machine = &self.machines[&id(node)];
        machine.core.waiting(machine.clock(self.now), R)
    }

    /// Who may answer a client now.
    pub(super) fn answers(&self) -> Option<NodeId> {
        let lease_ms = self.settings.lease_ms;
        let mut able = self.machines.iter().filter(|(_, machine)| {
            let runs = machine.up && machine.turning && machine.paused_until <= self.now;
            let engine = &machine.engine;
            runs && !engine.failed && engine.may_answer(machine.clock(self.now), lease_ms)
        });
        let first = able.next().map(|(node, _)| *node);
        let second = able.next().map(|(node, _)| *node);
        assert!(
            second.is_none(),
            "RULES 4: {first:?} and {second:?} may answer"
        );
        first
    }

    fn tell(&mut self, node: NodeId) {
        let local = self.machines[&node].engine.local();
        self.handle(node, Event::Replica(R, Some(local)));
    }

    fn handle(&mut self, node: NodeId, event: Event<'_>) {
        let now = self.now;
        let machine = self.machines.get_mut(&node).unwrap();
        if !machine.up {
            return;
        }
        let clock = machine.clock(now);
        let mut out = Vec::new();
        machine.core.handle(clock, event, &mut out);
        for action in out {
            if !matches!(action, Action::Send(..) | Action::Granted { .. }) {
                self.actions.push((node, action.clone()));
            }
            self.act(node, clock, action);
        }
    }

    fn act(&mut self, node: NodeId, clock: Time, action: Action) {
        let engine = &mut self.machines.get_mut(&node).unwrap().engine;
        match action {
            Action::Send(to, message) => {
                if self.cut.contains(&(node, to)) || self.random(100) < self.loss_percent {
                    return;
                }
                if self.random(100) < self.double_percent {
                    self.later(Happening::Mail(node, to, message.clone()));
                }
                self.later(Happening::Mail(node, to, message));
            }
            Action::Granted {
                node: of,
                epoch,
                sent,
                ..
            } => {
                if engine.primary == Some(epoch) {
                    let newest = engine.grants.entry(of).or_insert(sent);
                    *newest = sent.max(*newest);
                }
            }
            Action::Serve { epoch, .. } => {
                if engine.primary == Some(epoch) {
                    engine.serving = Some(epoch);
                }
            }
            Action::Promote { drop, over, .. } => {
                let known = engine.known.as_ref();
                let Some(known) = known.filter(|known| known.epoch == over) else {
                    self.handle(node, Event::PromotionEnded(R));
                    return;
                };
                let based_on = known.generation;
                engine.promoting = Some((Epoch(based_on.next().0), clock));
                let change = Change::Promote {
                    candidate: member(node),
                    drop,
                    history: HistoryId(1),
                };
                self.propose(node, based_on, change);
            }
            Action::Demote { .. } => {
                self.let_go(node.get());
            }
            Action::Fence { .. } => {}
        }
    }

    fn propose(&mut self, node: NodeId, based_on: Generation, change: Change) {
        if !self.apart.contains(node) {
            self.later(Happening::Propose(node, based_on, change));
        }
    }

    fn decide(&mut self, from: NodeId, based_on: Generation, change: &Change) {
        let record = self.record().clone();
        if let Ok(next) = record.apply(based_on, change, &[]) {
            if let Change::Promote { candidate, .. } = change {
                self.promoted.push((self.now, candidate.node));
                let resource = self.resource();
                if resource.next == Some(candidate.node) {
                    resource.next = None;
                }
            }
            self.resource().record = Some(next);
            self.sync();
        }
        if matches!(change, Change::Promote { .. }) {
            let document = Box::new(self.document.clone());
            self.later(Happening::Ended(from, document));
        }
    }

    fn sync(&mut self) {
        let nodes: Vec<NodeId> = self.machines.keys().copied().collect();
        for node in nodes {
            let machine = &self.machines[&node];
            let reaches = !self.apart.contains(node);
            if machine.up && machine.paused_until <= self.now && machine.store != reaches {
                self.machines.get_mut(&node).unwrap().store = reaches;
                self.handle(node, Event::Store(reaches));
            }
            if reaches && self.random(100) >= self.loss_percent {
                let document = Box::new(self.document.clone());
                self.later(Happening::Learn(node, document));
            }
        }
    }

    fn learn(&mut self, node: NodeId, document: &Document) {
        let machine = self.machines.get_mut(&node).unwrap();
        if !machine.up {
            return;
        }
        let clock = machine.clock(self.now);
        if let Some(record) = &document.resources[0].record {
            machine.engine.learn(clock, record);
        }
        self.handle(node, Event::Document(document));
        self.tell(node);
    }

    /// What the engine does by itself.
    fn turn_engine(&mut self, node: NodeId) {
        let (now, lease_ms) = (self.now, self.settings.lease_ms);
        let machine = self.machines.get_mut(&node).unwrap();
        if !machine.up || !machine.turning {
            return;
        }
        let clock = machine.clock(now);
        let promoting = machine.engine.promoting;
        let before = machine.engine.local();
        let proposal = machine.engine.proposal(clock, lease_ms);
        let changed = machine.engine.local() != before;
        if promoting.is_some_and(|(_, at)| clock.ms_since(at) > 1_500) {
            // Nobody answered; it may be committed all the same.
            machine.engine.promoting = promoting.map(|(epoch, _)| (epoch, Time(u64::MAX)));
            self.handle(node, Event::PromotionEnded(R));
        }
        if let Some((based_on, change)) = proposal {
            self.propose(node, based_on, change);
        }
        if changed {
            self.tell(node);
        }
    }

    /// The next thing that happens.
    fn step(&mut self) {
        let timer = self.machines.iter().filter(|(_, machine)| machine.up);
        let timer = timer
            .map(|(&node, machine)| {
                let due = machine.when(machine.core.poll_timeout());
                (due.max(machine.paused_until).max(self.now), node)
            })
            .min();
        let first = self.queue.keys().next().map(|(at, _)| *at).unwrap();
        // After a pause what comes first is a matter of luck.
        let timer =
            timer.filter(|(at, _)| *at < first || *at == first && self.random.is_multiple_of(2));
        if let Some((at, node)) = timer {
            self.now = at;
            self.answers();
            self.handle(node, Event::Tick);
            self.turn_engine(node);
            self.answers();
            return;
        }
        let ((at, _), what) = self.queue.pop_first().unwrap();
        self.now = self.now.max(at);
        let to = match &what {
            Happening::Mail(_, to, _) | Happening::Ended(to, _) | Happening::Learn(to, _) => *to,
            Happening::Propose(from, based_on, change) => {
                self.decide(*from, *based_on, change);
                return;
            }
            Happening::Sync => {
                self.sync();
                self.sequence += 1;
                let key = (self.now + SYNC_MS * MS, self.sequence);
                self.queue.insert(key, Happening::Sync);
                return;
            }
        };
        let paused_until = self.machines[&to].paused_until;
        if paused_until > self.now {
            self.sequence += 1;
            self.queue.insert((paused_until, self.sequence), what);
            return;
        }
        self.answers();
        match what {
            Happening::Mail(from, to, message) => self.handle(to, Event::Message(from, message)),
            Happening::Ended(to, document) => {
                self.learn(to, &document);
                self.handle(to, Event::PromotionEnded(R));
            }
            Happening::Learn(to, document) => self.learn(to, &document),
            Happening::Propose(..) | Happening::Sync => {}
        }
        self.answers();
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        let end = self.now + ms * MS;
        while self.now < end {
            self.step();
        }
    }

    /// Goes on until it is so and returns after how many ms that is.
    pub(super) fn until(&mut self, what: &str, ms: u64, so: impl Fn(&Self) -> bool) -> u64 {
        let began = self.now;
        while !so(self) {
            let waiting: Vec<_> = (1..=self.machines.len())
                .map(|n| self.waiting(u8::try_from(n).unwrap()))
                .collect();
            let engines: Vec<_> = self.machines.values().map(|m| (m.up, &m.engine)).collect();
            assert!(
                self.now <= began + ms * MS,
                "in {ms} ms not: {what}; {:?}; waiting {waiting:?}; {engines:#?}",
                self.record(),
            );
            self.step();
        }
        (self.now - began) / MS
    }
}
