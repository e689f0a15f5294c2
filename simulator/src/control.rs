//! The controllers of whole nodes: on each machine a voter, whose promise lies on a simulated disk, and
//! fail-over, which gets documents from it and talks to the engine, as in production each in a thread
//! of its own. What voters and beacons say travels over the simulated network and is lost, late,
//! doubled and overtaken. Mirrors the node's glue, and notes what is committed anywhere.

mod fencing;
mod joining;
mod leases;
mod operator;
mod shape;
mod voter;

use crate::faults::Repair;
use crate::node::{Clock, Node};
use crate::rng::Rng;
use crate::rules::Rule;
use crate::store::Process;
use crate::world::{Occurrence, World};
use controller::core::consensus::{
    self, Action, CommandId, Consensus, Decision, Envelope, Event, Promise, Term, Voter, VoterId,
};
use controller::core::failover::{self, Failover, Local, Message};
use controller::core::{
    Command, Document, Name, Node as DocumentNode, NodeState, Policy, Refused, Replica, Report,
    Resource, Timings, Version,
};
use replicator::core::api;
use std::collections::BTreeMap;
use std::rc::Rc;
use vocabulary::{Change, ClusterId, Generation, NodeId, Record, Refusal, ResourceId, Time};

/// Commands of fail-over to its engine are numbered from here; even: promotions, odd: demotions.
pub const FAILOVER_COMMANDS: u64 = 1 << 40;
/// The process that runs on a node when something arrives.
const ANYBODY: u64 = u64::MAX;
/// A leader is looked for this long, in ms.
const SEARCH_MS: u64 = 5_000;
/// Wait before a leader that was not one is asked again, in ms.
const AGAIN_MS: u64 = 30;
/// Wait before a replica is declared again, in ms.
const DECLARE_MS: u64 = 500;

/// How whole nodes are made.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Machines with a vote only.
    pub witnesses: u8,
    /// Of the voters.
    pub consensus: consensus::Settings,
    /// Of leases.
    pub failover: failover::Settings,
    /// Every machine can be switched off by a fence agent.
    pub agents: bool,
    /// A data plane that stood still for so long is not trusted, in ms.
    pub turn_limit_ms: u64,
    /// Nor one with a disk request that old, in ms.
    pub disk_limit_ms: u64,
}

impl Whole {
    /// A machine's clock: any value, and as fast or slow as the drift bound between two allows.
    #[must_use]
    pub fn clock(&self, rng: &mut Rng) -> Clock {
        let bound = self.failover.drift_percent * 10_000 / 2;
        let ppm = [0, bound / 2, bound][rng.index(3)];
        let ppm = i64::try_from(ppm).unwrap_or(0);
        Clock {
            base: Time(rng.between(10_000_000, 1 << 50)),
            at: Time(0),
            ppm: if rng.percent(50) { ppm } else { -ppm },
        }
    }
}

/// What arrives at a thread of a node.
#[derive(Clone, Debug)]
pub enum Word {
    /// To the voter: from another one.
    Envelope(Envelope<Document>),
    /// To the voter: its time may have come.
    VoterTick,
    /// To the voter: a copy of its promise is written.
    Written,
    /// To the leader: a node wants a change.
    Ask(Process, u64, Command),
    /// To the asker: what became of it.
    Decided(u64, Decision<Refused>),
    /// To the asker: try that again.
    Again(u64),
    /// To fail-over: a datagram.
    Beacon(NodeId, Message),
    /// To fail-over: this is committed.
    Document(Rc<Document>),
    /// To fail-over: there is a leader, or none.
    Leader(bool),
    /// To fail-over: the voter is up to date.
    Current,
    /// To fail-over: how the replica stands.
    Local(Local),
    /// To fail-over: its promotion has ended.
    Ended,
    /// To fail-over: its time may have come.
    BeaconTick,
    /// To whoever wanted the node to be switched off, or an operator's word that it is: is it?
    Shot(NodeId, bool),
    /// A machine is switched off by a fence agent.
    SwitchedOff,
    /// The node looks after its own vote, and tells those that have none what it knows.
    Rounds,
    /// To a node without a vote: this is committed; does the sender lead?
    Told(NodeId, bool, Rc<Document>),
    /// To the engine: something from the controller.
    Engine(Box<api::Event<crate::payload::Stamps>>),
}

/// Between which threads something is passed on; the order is kept.
#[derive(Clone, Copy, Debug)]
enum Lane {
    VoterToBeacons,
    EngineToBeacons,
    BeaconsToEngine,
    VoterToEngine,
}

/// Who wants a change.
#[derive(Clone, Debug)]
enum Origin {
    Engine(Generation),
    Declaration,
    Operator,
    Vote,
}

#[derive(Clone, Debug)]
struct Asked {
    command: Command,
    origin: Origin,
    until: Time,
}

type Slot = Option<(u64, Promise<Document>)>;

#[derive(Clone, Debug)]
struct Write {
    number: u64,
    promise: Promise<Document>,
    copies: usize,
}

/// A running controller.
#[derive(Clone, Debug)]
struct Mind {
    voter: Consensus<Document>,
    failover: Failover,
    write: Option<Write>,
    pending: Option<(u64, Promise<Document>)>,
    asked: BTreeMap<u64, Asked>,
    /// Commands that this voter has taken, by its number.
    jobs: BTreeMap<u64, (Process, u64)>,
    /// The newest document that it knows to be committed.
    known: Option<Rc<Document>>,
    /// Who leads, as others say, and when that was said: for a node without a vote.
    said: Option<(NodeId, Time)>,
    leader: Option<NodeId>,
    current: bool,
    turns: bool,
    told: Option<replicator::core::status::Standing>,
    /// The length of leases that the engine was told, in ms, and that fail-over was.
    terms: Option<u32>,
    lease_ms: u32,
    /// The engine is closing: its replica was removed.
    lets_go: bool,
    lanes: [Time; 4],
    voter_armed: Option<Time>,
    beacons_armed: Option<Time>,
}

#[derive(Clone, Debug)]
struct Seat {
    /// Both copies of the voter's promise, with the number of the write.
    copies: [Slot; 2],
    writes: u64,
    /// Its voter's identity.
    voter: VoterId,
    mind: Option<Mind>,
}

/// All controllers, and what is known of them from outside.
#[derive(Clone, Debug)]
pub struct Control {
    whole: Whole,
    resource: ResourceId,
    seats: Vec<Seat>,
    next: u64,
    /// Who has led in which term.
    leaders: BTreeMap<Term, VoterId>,
    /// Every document that was seen committed.
    chain: BTreeMap<Version, Rc<Document>>,
    newest: Rc<Document>,
    /// Percent of datagrams that are lost, and that are late.
    loss: u64,
    late: u64,
}

/// What the document says of the time-outs that the nodes run with.
fn timings(whole: &Whole) -> Timings {
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    Timings {
        lease_ms: ms(whole.failover.lease_ms),
        drift_percent: u8::try_from(whole.failover.drift_percent).unwrap_or(u8::MAX),
        election_ms: ms(whole.consensus.election_ms),
        fence_delay_ms: ms(whole.failover.fence_delay_ms),
    }
}

impl Control {
    /// Voters on all of these machines that agree on this record.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        whole: &Whole,
        nodes: &[Node],
        record: &Record,
        rng: &mut Rng,
    ) -> Self {
        let voters: Vec<Voter> = nodes
            .iter()
            .map(|node| Voter {
                node: node.id,
                id: VoterId(rng.draw()),
            })
            .collect();
        let name = |text: String| Name::new(&text);
        let mut document = Document::new(cluster);
        document.voters.clone_from(&voters);
        document.timings = timings(whole);
        for node in nodes {
            let Ok(name) = name(format!("node{}", node.id)) else {
                continue;
            };
            document.nodes.push(DocumentNode {
                id: node.id,
                name,
                control: Vec::new(),
                replication: Vec::new(),
                state: NodeState::Online,
                fencing: whole.agents.then(fencing::agent),
            });
        }
        if let Ok(name) = name("r0".to_owned()) {
            let replica = |node| shape::replica(node, record.sizes.len());
            document.resources.push(Resource {
                name,
                id: record.resource,
                initial_sizes: record.sizes.clone(),
                replicas: record.replicas.iter().map(replica).collect(),
                min_redundancy: record.min_redundancy,
                policy: Policy::default(),
                up: true,
                next: None,
                history: record.history,
                record: Some(record.clone()),
            });
        }
        let seats = voters
            .iter()
            .map(|voter| {
                let copy = Some((0, Promise::new(voter.id, document.clone())));
                Seat {
                    copies: [copy.clone(), copy],
                    writes: 0,
                    voter: voter.id,
                    mind: None,
                }
            })
            .collect();
        let newest = Rc::new(document);
        Self {
            whole: whole.clone(),
            resource: record.resource,
            seats,
            next: 0,
            leaders: BTreeMap::new(),
            chain: BTreeMap::from([(newest.version, Rc::clone(&newest))]),
            newest,
            loss: 0,
            late: 0,
        }
    }

    /// The network carries datagrams so badly, in percent.
    pub fn disturb(&mut self, loss: u64, late: u64) {
        (self.loss, self.late) = (loss, late);
    }

    /// The newest document that is committed anywhere.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.newest
    }

    fn mind(&mut self, id: NodeId) -> Option<&mut Mind> {
        self.seats.get_mut(id.index())?.mind.as_mut()
    }
}

impl World {
    /// Do the nodes have controllers?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.control.is_some()
    }

    fn mind(&mut self, id: NodeId) -> Option<&mut Mind> {
        self.control.as_mut()?.mind(id)
    }

    // --- processes ---

    /// The process has started: its controller does too.
    pub(crate) fn begin_control(&mut self, id: NodeId) {
        let random = self.rng.draw();
        let now = self.clock(id);
        let run = self.node(id).run;
        let witness = self.node(id).witness;
        let Some(control) = &mut self.control else {
            return;
        };
        let (settings, leases) = (control.whole.consensus, control.whole.failover);
        let lease_ms = timings(&control.whole).lease_ms;
        let seat = &mut control.seats[id.index()];
        let newest = seat
            .copies
            .iter()
            .flatten()
            .max_by_key(|(number, _)| *number);
        let promise = match newest.cloned() {
            Some((_, promise)) => promise,
            // A blank state is a new voter (section 4).
            None => Promise::new(seat.blank(random), Document::new(control.newest.cluster)),
        };
        seat.voter = promise.voter;
        let copy = Some((seat.writes, promise.clone()));
        seat.copies = [copy.clone(), copy];
        seat.mind = Some(Mind {
            voter: Consensus::new(id, promise, settings, random, now),
            failover: Failover::new(id, run, leases, now),
            write: None,
            pending: None,
            asked: BTreeMap::new(),
            jobs: BTreeMap::new(),
            known: None,
            said: None,
            leader: None,
            current: false,
            turns: true,
            told: None,
            terms: None,
            lease_ms,
            lets_go: false,
            lanes: [Time(0); 4],
            voter_armed: None,
            beacons_armed: None,
        });
        self.arm(id);
        let process = self.node(id).process();
        self.after_us(1000, Occurrence::Word(process, Box::new(Word::Rounds)));
        if !witness {
            self.tell_standing(id);
            self.declare(id);
        }
    }

    /// The process is dead. A copy that was being written may be old, new or, without power, torn.
    pub(crate) fn end_control(&mut self, id: NodeId, power: bool) {
        let fate = self.rng.below(if power { 3 } else { 2 });
        let Some(control) = &mut self.control else {
            return;
        };
        let seat = &mut control.seats[id.index()];
        let Some(mind) = seat.mind.take() else { return };
        if let Some(write) = mind.write {
            match fate {
                0 => {}
                1 => seat.copies[write.copies] = Some((seat.writes, write.promise)),
                _ => seat.copies[write.copies] = None,
            }
        }
    }

    /// Like [`World::awake`], for the threads that the data plane's does not hold up.
    fn thinks(&mut self, process: Process, again: impl FnOnce() -> Occurrence) -> Option<NodeId> {
        let node = self.node(process.node);
        if node.run != process.run || !node.is_running() {
            return None;
        }
        let until = node.paused_until;
        if until > self.now {
            self.at(until, again());
            return None;
        }
        Some(process.node)
    }

    fn arm(&mut self, id: NodeId) {
        let clock = self.node(id).clock;
        let process = self.node(id).process();
        let now = self.now;
        let Some(mind) = self.mind(id) else { return };
        let voter = clock.when(mind.voter.poll_timeout()).max(now);
        let beacons = clock.when(mind.failover.poll_timeout()).max(now);
        let due = |armed: &mut Option<Time>, at: Time| {
            let sooner = armed.is_none_or(|armed| at < armed);
            if sooner {
                *armed = Some(at);
            }
            sooner
        };
        let voter_due = due(&mut mind.voter_armed, voter);
        let beacons_due = due(&mut mind.beacons_armed, beacons);
        if voter_due {
            self.at(voter, Occurrence::Word(process, Box::new(Word::VoterTick)));
        }
        if beacons_due {
            self.at(
                beacons,
                Occurrence::Word(process, Box::new(Word::BeaconTick)),
            );
        }
    }

    /// Something arrives.
    pub(crate) fn word(&mut self, mut process: Process, word: Word) {
        if process.run == ANYBODY {
            process = self.node(process.node).process();
        }
        if let Word::SwitchedOff = word {
            let loss = crate::faults::random_loss(&mut self.rng);
            return self.power_off(process.node, loss);
        }
        if let Word::Engine(event) = word {
            let again = || Occurrence::Word(process, Box::new(Word::Engine(event.clone())));
            if self.awake(process, again).is_some() {
                let granted = matches!(*event, api::Event::Granted { .. });
                self.feed(process.node, *event);
                if granted {
                    self.one_may_answer();
                }
            }
            return;
        }
        let again = || Occurrence::Word(process, Box::new(word.clone()));
        let Some(id) = self.thinks(process, again) else {
            return;
        };
        if !matches!(word, Word::VoterTick | Word::BeaconTick | Word::Rounds) {
            self.say(|| format!("{id:?} : {}", brief(&word)));
        }
        match word {
            Word::Envelope(envelope) => self.voter(id, Event::Message(envelope)),
            Word::VoterTick => {
                if let Some(mind) = self.mind(id) {
                    mind.voter_armed = None;
                }
                self.voter(id, Event::Tick);
            }
            Word::Written => self.written(id),
            Word::Ask(from, number, command) => self.take(id, from, number, command),
            Word::Decided(number, decision) => self.decided(id, number, decision),
            Word::Again(number) => self.route(id, number),
            Word::Beacon(from, message) => {
                self.failover(id, failover::Event::Message(from, message));
            }
            Word::Document(document) => {
                self.failover(id, failover::Event::Document(&document));
            }
            Word::Leader(is) => self.failover(id, failover::Event::Store(is)),
            Word::Current => self.failover(id, failover::Event::Current),
            Word::Local(local) => {
                let resource = self.control.as_ref().map(|c| c.resource);
                if let Some(resource) = resource {
                    self.failover(id, failover::Event::Replica(resource, Some(local)));
                }
            }
            Word::Ended => {
                let resource = self.control.as_ref().map(|c| c.resource);
                if let Some(resource) = resource {
                    self.failover(id, failover::Event::PromotionEnded(resource));
                }
            }
            Word::BeaconTick => {
                let turns = self.turns(id);
                if let Some(mind) = self.mind(id) {
                    mind.beacons_armed = None;
                    if std::mem::replace(&mut mind.turns, turns) != turns {
                        self.failover(id, failover::Event::Turning(turns));
                    }
                }
                self.failover(id, failover::Event::Tick);
            }
            Word::Shot(node, off) => self.shot(id, node, off),
            Word::Rounds => self.rounds(id),
            Word::Told(from, leads, document) => self.told(id, from, leads, document),
            Word::Engine(_) | Word::SwitchedOff => {}
        }
    }

    /// Passes something on between two threads of a node.
    fn pass(&mut self, id: NodeId, lane: Lane, word: Word) {
        // A thread may have to wait for a core of the machine.
        let us = if self.rng.percent(2) {
            self.rng.between(500, 20_000)
        } else {
            self.rng.between(2, 100)
        };
        let at = Time(self.now.0 + us * 1000);
        let Some(mind) = self.mind(id) else { return };
        let due = &mut mind.lanes[lane as usize];
        *due = at.max(*due);
        let at = *due;
        let process = self.node(id).process();
        self.at(at, Occurrence::Word(process, Box::new(word)));
    }

    fn tell_engine(&mut self, id: NodeId, lane: Lane, event: api::Event<crate::payload::Stamps>) {
        if !self.node(id).witness {
            self.pass(id, lane, Word::Engine(Box::new(event)));
        }
    }

    /// Sends something to another node's controller.
    fn post(&mut self, from: NodeId, to: NodeId, word: Word) {
        let Some(control) = &self.control else { return };
        let (loss, late) = (control.loss, control.late);
        if self.net.is_cut(from, to) || to.index() >= self.nodes.len() {
            return;
        }
        let copies = match self.rng.below(100) {
            dice if dice < loss => 0,
            dice if dice < loss + loss / 4 => 2,
            _ => 1,
        };
        let longest = self.net.delay_us[from.index()][to.index()];
        for _ in 0..copies {
            let us = if self.rng.percent(late) {
                self.rng.between(longest, 1_500_000)
            } else {
                self.rng.between(longest / 4 + 1, longest + 1)
            };
            let process = Process {
                node: to,
                run: ANYBODY,
            };
            self.after_us(us, Occurrence::Word(process, Box::new(word.clone())));
        }
    }
}

fn brief(word: &Word) -> String {
    match word {
        Word::Envelope(e) => {
            let what = match &e.message {
                consensus::Message::Entry { entry, round } => {
                    format!(
                        "Entry {:?} {:?} round {round}",
                        entry.at, entry.content.version
                    )
                }
                other => format!("{other:?}"),
            };
            format!("{:?} in {:?}: {what}", e.from.node, e.term)
        }
        Word::Document(document) => format!("Document {:?}", document.version),
        other => format!("{other:?}"),
    }
}
