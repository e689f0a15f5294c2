//! Breadth-first exploration of small scopes of the production core (RULES section 5): every order in
//! which what is under way may happen, with a few writes, one crash, one promotion, one broken
//! connection. Random seeds go deep and miss short, unlikely executions; this goes wide and finds the
//! shortest one. A state is the whole world; two that differ only in the time are one. The smallest
//! scopes are explored to the end.
//!
//! What makes that possible:
//! - time stands still while anything else can happen: a time-out fires only when nothing is under way,
//!   and time passes until something comes of it. There are no keep-alives;
//! - a disk works in the order of its requests, a connection delivers in order, the rest in any order;
//! - what concerns nothing else comes at once (an attach, a dial, a request on its way to its node, a record that
//!   is known already), so it is not tried in every order with the rest;
//! - nothing is left to chance: what follows from a state and a choice is always the same.

use crate::client::Ask;
use crate::fingerprint;
use crate::net::End;
use crate::rng::Rng;
use crate::rules::{Rule, Violation, differences_are_known};
use crate::stage::{Stage, block, node};
use crate::store::Process;
use crate::world::{Occurrence, World};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use vocabulary::NodeSet;

/// What may happen besides the natural course of things, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Writes of block 0 by a client.
    pub writes: u8,
    /// Flushes by a client.
    pub flushes: u8,
    /// A process is killed and started again.
    pub kills: u8,
    /// A machine loses power, with its caches, and comes back.
    pub power_losses: u8,
    /// All connections between two nodes break.
    pub breaks: u8,
    /// An operator promotes another node.
    pub promotions: u8,
}

/// A small cluster and what may happen to it.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Replicas.
    pub nodes: u8,
    /// What may happen.
    pub budget: Budget,
}

impl Budget {
    fn number(self) -> u64 {
        u64::from_be_bytes([
            0,
            0,
            self.writes,
            self.flushes,
            self.kills,
            self.power_losses,
            self.breaks,
            self.promotions,
        ])
    }
}

const NOTHING: Budget = Budget {
    writes: 0,
    flushes: 0,
    kills: 0,
    power_losses: 0,
    breaks: 0,
    promotions: 0,
};

/// The scopes that CI explores.
pub const SCOPES: &[Scope] = &[
    Scope {
        name: "write-break",
        nodes: 2,
        budget: Budget {
            writes: 1,
            breaks: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "write-kill",
        nodes: 2,
        budget: Budget {
            writes: 1,
            kills: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "write-power",
        nodes: 2,
        budget: Budget {
            writes: 1,
            power_losses: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "two-writes",
        nodes: 2,
        budget: Budget {
            writes: 2,
            flushes: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "three",
        nodes: 3,
        budget: Budget {
            writes: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "two-writes-power",
        nodes: 2,
        budget: Budget {
            writes: 2,
            power_losses: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "kill-promote",
        nodes: 2,
        budget: Budget {
            writes: 1,
            kills: 1,
            promotions: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "power-promote",
        nodes: 2,
        budget: Budget {
            writes: 1,
            power_losses: 1,
            promotions: 1,
            ..NOTHING
        },
    },
];

/// A volume of two blocks: one that is written and one that is not.
const VOLUME_BYTES: u64 = 2 * vocabulary::BLOCK_BYTES;

/// Virtual time within which a cluster must come to rest.
const REST_MS: u64 = 120_000;

/// Virtual time after which nothing comes of waiting any more: longer than every time-out but the
/// keep-alives'.
const LONGEST_WAIT_MS: u64 = 2_000;

/// What an exploration saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps that were tried.
    pub steps: usize,
    /// Steps from the start to the farthest of them.
    pub depth: usize,
    /// Of these, states from which the cluster was also run to rest.
    pub rested: usize,
    /// Nothing was left to explore: every state of the scope was seen.
    pub complete: bool,
}

/// A rule that was broken, and the shortest way there.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{violation}; after: {}", steps.join(" | "))]
pub struct Found {
    /// What.
    pub violation: Violation,
    /// How.
    pub steps: Vec<String>,
}

impl From<Violation> for Found {
    /// What stopped an exploration from outside: an assertion of the core.
    fn from(violation: Violation) -> Self {
        Self {
            violation,
            steps: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    /// The occurrence with this number happens.
    Fire(u64),
    /// Time passes until something comes of it.
    Wait,
    Write,
    Flush,
    /// With this fate of what it had under way.
    Kill(u8, u64),
    PowerLoss(u8, u64),
    Start(u8),
    Break(u8, u8, u64),
    Promote(u8),
}

/// What was under way when a process dies, a machine stops or a connection breaks is done, half done
/// or not done at all; so many ways of it are tried.
const FATES: u64 = 2;

#[derive(Debug)]
struct Way {
    before: Option<Rc<Self>>,
    what: String,
}

struct State {
    world: World,
    budget: Budget,
    way: Option<Rc<Way>>,
    depth: usize,
}

/// Explores a scope until nothing is left or this many states were seen. From one in `rest_every`
/// states the cluster is healed and has to come to rest with every rule kept.
///
/// # Errors
/// The first rule found broken, with the way to it.
pub fn explore(
    scope: &Scope,
    max_states: usize,
    rest_every: usize,
) -> Result<Explored, Box<Found>> {
    let mut first = State {
        world: prepare(scope),
        budget: scope.budget,
        way: None,
        depth: 0,
    };
    settle(&mut first.world);
    let mut seen = BTreeSet::from([fingerprint(&first.world, scope.budget)]);
    let mut frontier = VecDeque::from([first]);
    let mut explored = Explored {
        states: 1,
        complete: true,
        ..Explored::default()
    };
    while let Some(state) = frontier.pop_front() {
        for choice in choices(&state.world, state.budget, scope.nodes) {
            let (mut world, budget) = take(&state.world, state.budget, choice);
            settle(&mut world);
            explored.steps += 1;
            if !seen.insert(fingerprint(&world, budget)) {
                continue;
            }
            let way = Rc::new(Way {
                before: state.way.clone(),
                what: describe(&state.world, choice),
            });
            let depth = state.depth + 1;
            explored.states += 1;
            explored.depth = explored.depth.max(depth);
            let mut broken = world.violation.clone();
            if broken.is_none() {
                broken = differences_are_known(world.record(), &world.nodes).err();
            }
            if broken.is_none() && seen.len().is_multiple_of(rest_every) {
                explored.rested += 1;
                broken = comes_to_rest(world.clone()).err();
            }
            if let Some(violation) = broken {
                return Err(Box::new(Found {
                    violation,
                    steps: steps(Some(&way)),
                }));
            }
            if explored.states >= max_states {
                explored.complete = false;
                return Ok(explored);
            }
            frontier.push_back(State {
                world,
                budget,
                way: Some(way),
                depth,
            });
        }
    }
    Ok(explored)
}

/// The cluster of a scope, at rest. Keep-alives are left out: nothing is silent here without having
/// been told so.
fn prepare(scope: &Scope) -> World {
    const NEVER_MS: u64 = 1_000_000_000;
    let stage = Stage::of(scope.nodes, VOLUME_BYTES, |config| {
        config.settings.ping_interval_ms = NEVER_MS;
        config.settings.peer_timeout_ms = NEVER_MS;
    });
    let mut world = stage.world;
    world.operator.keep_notices = false;
    world.notices.clear();
    world
}

/// Lets happen what no other order can make different: it concerns one node only and is not
/// something that another event of that node waits for, or would come at once in any order.
fn settle(world: &mut World) {
    loop {
        let next = world.pending().into_iter().find_map(|(_, seq, what)| {
            let at_once = match what {
                Occurrence::Attach(_)
                | Occurrence::Dial(..)
                | Occurrence::Closed(..)
                | Occurrence::Declare(_)
                | Occurrence::Arrive(_)
                | Occurrence::Refused(..) => true,
                // Known already.
                Occurrence::Record(id, record) => world
                    .node(*id)
                    .core
                    .as_ref()
                    .is_none_or(|core| core.generation() >= record.generation),
                _ => false,
            };
            at_once.then_some(seq)
        });
        let Some(seq) = next else { return };
        reseed(world, 0);
        world.fire(seq);
    }
}

/// What follows from a state and a choice is always the same; the number of processes started so
/// far keeps ids of boots apart.
fn reseed(world: &mut World, fate: u64) {
    let runs: u64 = world.nodes.iter().map(|n| n.run).sum();
    world.rng = Rng::new(runs << 8 | fate);
}

/// Nothing goes wrong any more: the cluster, with an operator, comes to rest and no rule is broken.
fn comes_to_rest(mut world: World) -> Result<(), Violation> {
    world.heal();
    world.operator.promotes = true;
    world.after_us(1000, Occurrence::Operator);
    let rested = world.run_until(REST_MS, World::is_at_rest);
    if let Some(violation) = world.violation.take() {
        return Err(violation);
    }
    if rested {
        return Ok(());
    }
    let why = world.why_not_at_rest().unwrap_or_default();
    Err(Violation::new(
        Rule::Bounded,
        format!("not at rest after {REST_MS} ms: {why}"),
    ))
}

fn steps(way: Option<&Rc<Way>>) -> Vec<String> {
    let mut steps = Vec::new();
    let mut at = way;
    while let Some(way) = at {
        steps.push(way.what.clone());
        at = way.before.as_ref();
    }
    steps.reverse();
    steps
}

/// Everything that may happen next.
fn choices(world: &World, budget: Budget, nodes: u8) -> Vec<Choice> {
    let mut choices = Vec::new();
    let mut ends: BTreeSet<(u64, End)> = BTreeSet::new();
    let mut disks: BTreeMap<Process, u64> = BTreeMap::new();
    for (_, seq, what) in world.pending() {
        match what {
            // A connection delivers in order.
            Occurrence::Deliver(conn, end) => {
                if ends.insert((*conn, *end)) {
                    choices.push(Choice::Fire(seq));
                }
            }
            // And a disk works in order.
            Occurrence::Disk(process, _) if world.node(process.node).process() == *process => {
                let first = disks.entry(*process).or_insert(seq);
                *first = seq.min(*first);
            }
            Occurrence::Timer(_)
            | Occurrence::StoreTick
            | Occurrence::Client(_)
            | Occurrence::Operator
            | Occurrence::Fault
            | Occurrence::Audit
            | Occurrence::Disk(..) => {}
            _ => choices.push(Choice::Fire(seq)),
        }
    }
    choices.extend(disks.into_values().map(Choice::Fire));
    if choices.is_empty() {
        choices.push(Choice::Wait);
    }
    if world.serving().is_some() {
        if budget.writes > 0 {
            choices.push(Choice::Write);
        }
        if budget.flushes > 0 {
            choices.push(Choice::Flush);
        }
    }
    for number in 0..nodes {
        let machine = world.node(node(number));
        if !machine.is_running() {
            choices.push(Choice::Start(number));
            continue;
        }
        for fate in 0..FATES {
            if budget.kills > 0 {
                choices.push(Choice::Kill(number, fate));
            }
            if budget.power_losses > 0 {
                choices.push(Choice::PowerLoss(number, fate));
            }
            for other in number + 1..nodes {
                let ends = [node(number), node(other)];
                let joined = world.net.conns().any(|(_, c)| {
                    [End::Dialer, End::Acceptor].map(|e| c.process(e).node) == ends
                        || [End::Acceptor, End::Dialer].map(|e| c.process(e).node) == ends
                });
                if budget.breaks > 0 && joined {
                    choices.push(Choice::Break(number, other, fate));
                }
            }
        }
        if budget.promotions > 0 && world.record().primary != Some(node(number)) {
            choices.push(Choice::Promote(number));
        }
    }
    choices
}

/// Nothing is under way: time-outs come until one of them changes something.
fn wait(world: &mut World) {
    let before = fingerprint::of_orders(world);
    let until = world.now.plus_ms(LONGEST_WAIT_MS);
    while world.now < until && fingerprint::of_orders(world) == before {
        let timer = world.pending().into_iter().find_map(|(_, seq, what)| {
            matches!(what, Occurrence::Timer(_) | Occurrence::StoreTick).then_some(seq)
        });
        let Some(seq) = timer else { return };
        world.fire(seq);
        settle(world);
    }
}

fn describe(world: &World, choice: Choice) -> String {
    let Choice::Fire(seq) = choice else {
        return format!("{choice:?}");
    };
    let pending = world.pending();
    let what = pending.iter().find(|(_, s, _)| *s == seq);
    let Some((_, _, what)) = what else {
        return String::new();
    };
    let mut text = match what {
        Occurrence::Deliver(conn, end) => {
            let conn = world.net.conn(*conn);
            let item = conn.and_then(|c| c.incoming(*end).next());
            let to = conn.map(|c| c.process(*end).node);
            format!("to {to:?}: {item:?}")
        }
        Occurrence::Disk(process, op) => {
            let node = world.node(process.node);
            format!(
                "{:?} done: {:?}",
                node.id,
                node.ops.get(op).map(|o| &o.kind)
            )
        }
        what => format!("{what:?}"),
    };
    text.truncate(text.floor_char_boundary(160));
    text
}

fn take(world: &World, mut budget: Budget, choice: Choice) -> (World, Budget) {
    let mut stage = Stage {
        world: world.clone(),
    };
    let fate = match choice {
        Choice::Kill(_, fate) | Choice::PowerLoss(_, fate) | Choice::Break(_, _, fate) => fate,
        _ => 0,
    };
    reseed(&mut stage.world, fate);
    let primary = world.serving().map_or(0, |n| n.get());
    match choice {
        Choice::Fire(seq) => stage.world.fire(seq),
        Choice::Wait => wait(&mut stage.world),
        Choice::Write => {
            budget.writes -= 1;
            stage.ask(primary, Ask::Write(block(0), false));
        }
        Choice::Flush => {
            budget.flushes -= 1;
            stage.ask(primary, Ask::Flush);
        }
        Choice::Kill(number, _) => {
            budget.kills -= 1;
            stage.kill(number);
        }
        Choice::PowerLoss(number, _) => {
            budget.power_losses -= 1;
            stage.power_off(number);
            // Without keep-alives nobody would notice.
            for other in world.nodes.iter().filter(|n| n.id != node(number)) {
                stage.world.break_conns(node(number), other.id);
            }
        }
        Choice::Start(number) => {
            stage.world.power_on(node(number));
            stage.world.start_process(node(number));
        }
        Choice::Break(a, b, _) => {
            budget.breaks -= 1;
            stage.break_conns(a, b);
        }
        Choice::Promote(number) => {
            budget.promotions -= 1;
            let old = world.record().primary;
            let drop = old.map_or(NodeSet::EMPTY, NodeSet::only);
            let command = stage.world.promotion(node(number), drop);
            stage.world.command(node(number), command);
        }
    }
    (stage.world, budget)
}

fn fingerprint(world: &World, budget: Budget) -> u128 {
    u128::from(fingerprint::of_orders(world)) << 64 | u128::from(budget.number())
}
