//! Every deviation from a plain course: from one prepared cluster, a fixed program of writes runs event
//! by event to rest, and at *every* event every deviation that the budget allows is tried: a process dies, a
//! machine loses power and its cache, a connection breaks, a link is cut for a while, an event comes
//! late. Deviations deepen one by one, so what is found first needs the fewest. A state that was seen
//! with as large a budget is not explored again; the clock does not belong to a state (what only
//! differs by times counts as the same). Each state is held against the same rules as in a random run.

use crate::client::Ask;
use crate::disk::Loss;
use crate::faults::Repair;
use crate::fingerprint;
use crate::hunt::{Fault, guarded};
use crate::rules::{Rule, Violation, differences_are_known, replicas_are_equal};
use crate::stage::{Stage, block, node};
use crate::world::{Occurrence, World};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vocabulary::{ByteRange, EXTENT_BYTES, NodeId};

/// A scope.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    nodes: u8,
    begin: fn(&mut Stage),
}

/// All scopes.
pub const SCOPES: &[Scope] = &[
    Scope {
        name: "pair",
        about: "2 replicas, 2 writes of one block and a flush",
        nodes: 2,
        begin: |_| {},
    },
    Scope {
        name: "admit",
        about: "2 replicas, one comes back and is admitted, 2 writes and a flush",
        nodes: 2,
        begin: |s| {
            s.evict(0, 1);
            s.write(0, block(10));
            s.mend(0, 1);
        },
    },
    Scope {
        name: "third",
        about: "3 replicas, one is away, one comes back and is admitted, 2 writes and a flush",
        nodes: 3,
        begin: |s| {
            s.evict(0, 2);
            s.cut(1, 2);
            s.evict(0, 1);
            s.write(0, block(10));
            s.mend(0, 1);
            for (a, b) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
                let what = Repair::Link(node(a), node(b));
                s.world.after_us(THIRD_COMES_US, Occurrence::Repair(what));
            }
        },
    },
];

/// The scope of this name.
#[must_use]
pub fn scope(name: &str) -> Option<&'static Scope> {
    SCOPES.iter().find(|s| s.name == name)
}

/// What an exploration saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Deviations up to which everything was explored.
    pub deviations: u32,
    /// Different states.
    pub states: u64,
    /// Events of the longest run.
    pub depth: u64,
    /// Runs that came to rest.
    pub rests: u64,
    /// Time was up before everything was explored.
    pub cut_short: bool,
    /// The first broken rule and the deviations that lead to it.
    pub broken: Option<(Violation, Vec<String>)>,
}

/// Time from a fault to its repair; shorter and longer than what evicts a member.
const REPAIR_US: [u64; 2] = [3_000, 250_000];
/// When the third replica of its scope comes back: after the second was admitted.
const THIRD_COMES_US: u64 = 400_000;
/// Events after which a run that does not come to rest is broken.
const LONGEST: u64 = 20_000;

struct Explorer {
    seen: BTreeMap<u64, u32>,
    result: Seen,
    path: Vec<String>,
    until: Instant,
    /// Of the first deviations, which are this thread's.
    share: (u64, u64),
    firsts: Cell<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Deviation {
    Kill(NodeId, u64),
    Power(NodeId, u64),
    Break(NodeId, NodeId),
    Cut(NodeId, NodeId, u64),
    Late(u64),
}

fn prepare(scope: &Scope) -> World {
    let mut stage = Stage::of(scope.nodes, EXTENT_BYTES, |config| {
        config.al_extents = 4;
        config.settings.window_age_ms = 100;
    });
    stage.pass(700);
    (scope.begin)(&mut stage);
    stage.forget_notices();
    stage.begin_write(0, block(10));
    stage.begin_write(0, ByteRange::between(10 * 4096, 12 * 4096));
    stage.ask(0, Ask::Flush);
    let mut world = stage.world;
    world.operator.promotes = true;
    world.operator.keep_notices = false;
    world.operator.healing = true;
    world.after_us(1000, Occurrence::Operator);
    world
}

fn deviations(world: &World) -> Vec<Deviation> {
    let mut all = Vec::new();
    for node in world.nodes.iter().filter(|n| n.is_running()) {
        for us in REPAIR_US {
            all.push(Deviation::Kill(node.id, us));
            all.push(Deviation::Power(node.id, us));
        }
    }
    for (at, a) in world.nodes.iter().enumerate() {
        for b in &world.nodes[at + 1..] {
            if world.net.joined(a.id, b.id) && a.is_running() && b.is_running() {
                all.push(Deviation::Break(a.id, b.id));
                for us in REPAIR_US {
                    all.push(Deviation::Cut(a.id, b.id, us));
                }
            }
        }
    }
    if let Some((_, _, what)) = world.pending().first()
        && matches!(
            what,
            Occurrence::Disk(..)
                | Occurrence::Deliver(..)
                | Occurrence::Propose(..)
                | Occurrence::Record(..)
        )
    {
        for us in REPAIR_US {
            all.push(Deviation::Late(us));
        }
    }
    all
}

fn apply(world: &mut World, deviation: Deviation) {
    match deviation {
        Deviation::Kill(node, us) => {
            world.kill_process(node);
            world.after_us(us, Occurrence::Repair(Repair::Start(node)));
        }
        Deviation::Power(node, us) => {
            world.power_off(node, Loss::All);
            world.after_us(us, Occurrence::Repair(Repair::Power(node)));
        }
        Deviation::Break(a, b) => world.break_conns(a, b),
        Deviation::Cut(a, b, us) => {
            for (a, b) in [(a, b), (b, a)] {
                world.net.cut(a, b);
                world.after_us(us, Occurrence::Repair(Repair::Link(a, b)));
            }
        }
        Deviation::Late(us) => world.postpone(us),
    }
}

impl Explorer {
    /// Runs on to rest; tries every deviation at every event on the way.
    fn run(&mut self, mut world: World, budget: u32, first: bool) {
        let mut events = 0;
        let mut own = BTreeSet::new();
        loop {
            if self.result.broken.is_some() {
                return;
            }
            if Instant::now() >= self.until {
                self.result.cut_short = true;
                return;
            }
            if let Err(violation) = self.look(&mut world, events) {
                self.result.broken = Some((violation, self.path.clone()));
                return;
            }
            let state = fingerprint::of_course(&world);
            // Only time passed, or a ping went by: this run goes on, there is nothing new to try.
            let again = !own.insert(state);
            let known = self.seen.get(&state).copied();
            if !again {
                if known.is_some_and(|explored| explored >= budget) {
                    return;
                }
                if known.is_none() {
                    self.result.states += 1;
                }
                self.seen.insert(state, budget);
            }
            if world.is_at_rest() && world.nodes.iter().all(|n| n.is_running()) {
                self.result.rests += 1;
                if let Err(violation) = replicas_are_equal(world.record(), &world.nodes) {
                    self.result.broken = Some((violation, self.path.clone()));
                }
                return;
            }
            if budget > 0 && !again {
                for deviation in deviations(&world) {
                    if first {
                        let number = self.firsts.replace(self.firsts.get() + 1);
                        if number % self.share.1 != self.share.0 {
                            continue;
                        }
                    }
                    let mut other = world.clone();
                    self.path.push(format!("event {events}: {deviation:?}"));
                    apply(&mut other, deviation);
                    self.run(other, budget - 1, false);
                    self.path.pop();
                }
            }
            world.step(vocabulary::Time(u64::MAX));
            events += 1;
            self.result.depth = self.result.depth.max(events);
        }
    }

    fn look(&mut self, world: &mut World, events: u64) -> Result<(), Violation> {
        if let Some(violation) = world.violation.take() {
            return Err(violation);
        }
        if events > LONGEST {
            let why = world.why_not_at_rest().unwrap_or_default();
            return Err(Violation::new(
                Rule::Bounded,
                format!("never at rest: {why}"),
            ));
        }
        differences_are_known(world.record(), &world.nodes)
    }
}

/// Tries every deviation from a scope's course, with up to so many deviations, for at most so long.
#[must_use]
pub fn deviate_from(
    scope: &Scope,
    mutation: Option<Fault>,
    deviations: u32,
    limit: Duration,
    threads: u64,
) -> Seen {
    let until = Instant::now() + limit;
    let results: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
    std::thread::scope(|threads_scope| {
        for share in 0..threads.max(1) {
            let results = &results;
            threads_scope.spawn(move || {
                let mut explorer = Explorer {
                    seen: BTreeMap::new(),
                    result: Seen {
                        deviations,
                        ..Seen::default()
                    },
                    path: Vec::new(),
                    until,
                    share: (share, threads.max(1)),
                    firsts: Cell::new(0),
                };
                let run = guarded(mutation, || {
                    explorer.run(prepare(scope), deviations, true);
                    Ok(())
                });
                if let Err(violation) = run {
                    explorer.result.broken = Some((violation, explorer.path.clone()));
                }
                if let Ok(mut results) = results.lock() {
                    results.push(explorer.result);
                }
            });
        }
    });
    let mut sum = Seen {
        deviations,
        ..Seen::default()
    };
    for seen in results.into_inner().unwrap_or_default() {
        sum.states += seen.states;
        sum.depth = sum.depth.max(seen.depth);
        sum.rests += seen.rests;
        sum.cut_short |= seen.cut_short;
        sum.broken = sum.broken.or(seen.broken);
    }
    sum
}
