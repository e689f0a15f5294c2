//! Breadth-first exploration of small scopes of the production core (RULES section 5): every order in
//! which what is under way may happen, with a few writes, one crash, one promotion, one broken
//! connection. Random seeds go deep and miss short, unlikely executions; this goes wide and finds the
//! shortest one. A state is the whole world; two that differ only in the time are one.
//!
//! Time stands still while anything else can happen: a time-out fires only when nothing is under way.

use crate::client::Ask;
use crate::net::End;
use crate::rules::{Rule, Violation};
use crate::stage::{Stage, block, node};
use crate::world::{Occurrence, World};
use std::collections::{BTreeSet, VecDeque};
use std::fmt::{self, Write};
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
        name: "two-power",
        nodes: 2,
        budget: Budget {
            writes: 2,
            flushes: 1,
            power_losses: 1,
            promotions: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "two-kill",
        nodes: 2,
        budget: Budget {
            writes: 2,
            kills: 1,
            breaks: 1,
            promotions: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "three-kill",
        nodes: 3,
        budget: Budget {
            writes: 1,
            kills: 1,
            promotions: 1,
            ..NOTHING
        },
    },
    Scope {
        name: "three-break",
        nodes: 3,
        budget: Budget {
            writes: 2,
            breaks: 1,
            ..NOTHING
        },
    },
];

/// A volume of two blocks: one that is written and one that is not.
const VOLUME_BYTES: u64 = 2 * vocabulary::BLOCK_BYTES;

/// Virtual time within which a cluster must come to rest.
const REST_MS: u64 = 120_000;

/// What an exploration saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
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

#[derive(Clone, Copy, Debug)]
enum Choice {
    /// The occurrence with this number happens.
    Fire(u64),
    Write,
    Flush,
    Kill(u8),
    PowerLoss(u8),
    Break(u8, u8),
    Promote(u8),
}

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
    let stage = Stage::of(scope.nodes, VOLUME_BYTES, |_| {});
    let first = State {
        world: stage.world,
        budget: scope.budget,
        way: None,
        depth: 0,
    };
    let mut seen = BTreeSet::from([fingerprint(&first.world, scope.budget)]);
    let mut frontier = VecDeque::from([first]);
    let mut explored = Explored {
        states: 1,
        complete: true,
        ..Explored::default()
    };
    while let Some(state) = frontier.pop_front() {
        for choice in choices(&state.world, state.budget, scope.nodes) {
            let (world, budget, what) = take(&state.world, state.budget, choice);
            let mark = fingerprint(&world, budget);
            if !seen.insert(mark) {
                continue;
            }
            let way = Rc::new(Way {
                before: state.way.clone(),
                what,
            });
            let depth = state.depth + 1;
            explored.states += 1;
            explored.depth = explored.depth.max(depth);
            let mut broken = world.violation.clone();
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
    let mut next_timer = None;
    for (_, seq, what) in world.pending() {
        match what {
            // A connection delivers in order.
            Occurrence::Deliver(conn, end) => {
                if ends.insert((*conn, *end)) {
                    choices.push(Choice::Fire(seq));
                }
            }
            Occurrence::Timer(_) | Occurrence::StoreTick => {
                next_timer = next_timer.or(Some(seq));
            }
            Occurrence::Client(_)
            | Occurrence::Operator
            | Occurrence::Fault
            | Occurrence::Audit => {}
            _ => choices.push(Choice::Fire(seq)),
        }
    }
    if choices.is_empty() {
        choices.extend(next_timer.map(Choice::Fire));
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
        let running = world.node(node(number)).is_running();
        if running && budget.kills > 0 {
            choices.push(Choice::Kill(number));
        }
        if running && budget.power_losses > 0 {
            choices.push(Choice::PowerLoss(number));
        }
        if running && budget.promotions > 0 && world.record().primary != Some(node(number)) {
            choices.push(Choice::Promote(number));
        }
        for other in number + 1..nodes {
            if budget.breaks > 0 {
                choices.push(Choice::Break(number, other));
            }
        }
    }
    choices
}

fn take(world: &World, mut budget: Budget, choice: Choice) -> (World, Budget, String) {
    let mut what = format!("{choice:?}");
    let mut stage = Stage {
        world: world.clone(),
    };
    let primary = world.serving().map_or(0, |n| n.get());
    match choice {
        Choice::Fire(seq) => {
            let pending = world.pending();
            if let Some((_, _, occurrence)) = pending.iter().find(|(_, s, _)| *s == seq) {
                what = format!("{occurrence:?}");
                what.truncate(80);
            }
            stage.world.fire(seq);
        }
        Choice::Write => {
            budget.writes -= 1;
            stage.ask(primary, Ask::Write(block(0), false));
        }
        Choice::Flush => {
            budget.flushes -= 1;
            stage.ask(primary, Ask::Flush);
        }
        Choice::Kill(number) => {
            budget.kills -= 1;
            stage.kill(number);
            stage.start(number);
        }
        Choice::PowerLoss(number) => {
            budget.power_losses -= 1;
            stage.power_off(number);
            stage.start(number);
        }
        Choice::Break(a, b) => {
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
    (stage.world, budget, what)
}

/// A digest of all that matters of a state: everything but the clock's readings.
fn fingerprint(world: &World, budget: Budget) -> u128 {
    let mut digest = Digest {
        state: [0xcbf2_9ce4_8422_2325, 0x9e37_79b9_7f4a_7c15],
        skip: 0,
    };
    let mut pending: Vec<String> = world
        .pending()
        .into_iter()
        .filter(|(_, _, what)| !matches!(what, Occurrence::Timer(_) | Occurrence::StoreTick))
        .map(|(_, _, what)| format!("{what:?}"))
        .collect();
    pending.sort_unstable();
    let (nodes, net, store) = (&world.nodes, &world.net, &world.store);
    let (clients, checker) = (&world.clients.pending, &world.checker);
    write!(
        digest,
        "{nodes:?};{net:?};{store:?};{clients:?};{checker:?};{pending:?};{budget:?}"
    )
    .expect("a digest takes everything");
    u128::from(digest.state[0]) << 64 | u128::from(digest.state[1])
}

/// Hashes text and leaves out what stands in `Time(...)`.
struct Digest {
    state: [u64; 2],
    /// How much of `Time(` was seen; all of it: within the brackets.
    skip: usize,
}

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const OPEN: &[u8] = b"Time(";
        for byte in text.bytes() {
            if self.skip == OPEN.len() {
                if byte == b')' {
                    self.skip = 0;
                }
                continue;
            }
            self.skip = if byte == OPEN[self.skip] {
                self.skip + 1
            } else {
                0
            };
            let [a, b] = &mut self.state;
            *a = (*a ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            *b = (b.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        Ok(())
    }
}
