//! One run: what kind of cluster, load and bad luck a seed stands for, and its course: a while with
//! faults, then none, then everything must come to rest.

use crate::control::Whole;
use crate::engine::Factory;
use crate::faults::Faults;
use crate::rng::Rng;
use crate::rules::{Rule, Violation};
use crate::world::{Config, World};
use controller::core::{consensus, failover};
use replicator::core::api::Settings;
use std::rc::Rc;
use vocabulary::EXTENT_BYTES;

/// Virtual time within which a cluster must come to rest once the faults have stopped.
const REST_MS: u64 = 120_000;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Occurrences.
    pub steps: u64,
    /// Requests answered with success.
    pub served: u64,
    /// Changes of the record.
    pub generations: u64,
    /// Virtual time in ms.
    pub ms: u64,
    /// The longest time without service after the faults had stopped, in ms.
    pub unserved_ms: u64,
}

/// Time-outs as short as the simulated network allows.
#[must_use]
pub fn fast_settings(rng: &mut Rng) -> Settings {
    Settings {
        lease_ms: crate::production::NO_LEASES_MS,
        ping_interval_ms: 60,
        peer_timeout_ms: rng.between(200, 500),
        write_timeout_ms: rng.between(300, 1500),
        evict_after_ms: rng.between(20, 300),
        reconnect_min_ms: 10,
        reconnect_max_ms: 200,
        propose_again_ms: 40,
        command_timeout_ms: 3_000,
        window_writes: [4, 32, 1024][rng.index(3)],
        window_bytes: [64 << 10, 4 << 20][rng.index(2)],
        window_age_ms: [20, 200, 1000][rng.index(3)],
        extent_idle_ms: [50, 500, 5000][rng.index(3)],
        chunk_bytes: [16 << 10, 64 << 10, 256 << 10][rng.index(3)],
        max_chunks: rng.index(4) + 1,
        admit_below_bytes: [4 << 10, 64 << 10, 1 << 20][rng.index(3)],
        zero_piece_bytes: [4 << 10, 16 << 10, 32 << 20][rng.index(3)],
        no_primary_ms: Settings::default().no_primary_ms,
        no_quorum_errors: false,
    }
}

/// What a seed is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Engines, with a perfect configuration store and an operator who promotes.
    Engines,
    /// Whole nodes.
    Whole,
}

/// Voters and leases as short as the simulated network allows.
fn whole_of(nodes: u8, settings: &mut Settings, rng: &mut Rng) -> Whole {
    let lease_ms = [150, 300, 500][rng.index(3)];
    settings.lease_ms = lease_ms;
    // What is in doubt after a fail-over keeps clients waiting no longer than `liveness` allows.
    settings.chunk_bytes = settings.chunk_bytes.max(64 << 10);
    let failover = failover::Settings {
        beacon_ms: lease_ms / 5,
        lease_ms,
        stagger_ms: lease_ms / 3,
        fence_delay_ms: [200, 1000, 3000][rng.index(3)],
        ..failover::Settings::default()
    };
    let election_ms = rng.between(100, 250);
    let witness = nodes.is_multiple_of(2) && rng.percent(if nodes == 2 { 50 } else { 90 });
    Whole {
        witnesses: u8::from(witness),
        agents: nodes == 2 && rng.percent(75),
        consensus: consensus::Settings {
            beat_ms: election_ms / 4,
            election_ms,
        },
        failover,
        turn_limit_ms: lease_ms / 2,
        disk_limit_ms: lease_ms,
    }
}

/// The world of a seed, ready to run.
#[must_use]
pub fn world_of(seed: u64, kind: Kind, factory: Rc<dyn Factory>) -> World {
    let mut rng = Rng::new(seed);
    let nodes = [2, 2, 3, 3, 3, 4, 5][rng.index(7)];
    let volumes = if rng.percent(25) { 2 } else { 1 };
    let sizes = (0..volumes)
        .map(|_| {
            let extents = rng.between(1, 4);
            let odd = rng.below(64) * 512;
            extents * EXTENT_BYTES - [0, 0, odd][rng.index(3)]
        })
        .collect();
    let al_extents = [4, 8, 64][rng.index(3)];
    let min_redundancy = if nodes > 2 && rng.percent(15) { 2 } else { 1 };
    let mut settings = fast_settings(&mut rng);
    let whole = (kind == Kind::Whole).then(|| whole_of(nodes, &mut settings, &mut rng));
    if rng.percent(25) {
        settings.no_quorum_errors = true;
        settings.no_primary_ms = rng.between(400, 3000);
    }
    let follow = rng.percent(40);
    let config = Config {
        follow,
        whole,
        nodes,
        sizes,
        al_extents,
        min_redundancy,
        settings,
    };
    let mut world = World::new(config, factory, rng.fork());
    let slow_net = rng.percent(20);
    for row in &mut world.net.delay_us {
        for delay in row.iter_mut() {
            *delay = if slow_net {
                rng.between(1000, 15_000)
            } else {
                rng.between(60, 600)
            };
        }
    }
    world.operator.supersede = [0, 0, 1, 5][rng.index(4)];
    world.operator.silly = [0, 0, 2, 10][rng.index(4)];
    let mut faults = Faults::random(&mut rng);
    if let Some(control) = &mut world.control {
        world.operator.shapes = [0, 0, 8, 25][rng.index(4)];
        control.disturb([0, 2, 20][rng.index(3)], [0, 0, 5][rng.index(3)]);
        // A superseded primary is what this is about: it must be alive somewhere.
        faults.weights.store = 0;
        faults.weights.pause += 15;
        faults.weights.link += 15;
        faults.weights.stall += 10;
        faults.weights.forget += 4;
    }
    world.start_faults(faults);
    world.start_load();
    world
}

/// Runs a seed to its end.
///
/// # Errors
/// The first broken rule.
pub fn run_seed(
    seed: u64,
    kind: Kind,
    factory: Rc<dyn Factory>,
    trace: bool,
) -> Result<Outcome, Violation> {
    let mut world = world_of(seed, kind, factory);
    world.trace = trace;
    let faulty_ms = world.rng.between(1000, 5000);
    world.run_ms(faulty_ms);
    let result = settle(&mut world);
    if trace && result.is_err() {
        for node in &world.nodes {
            println!("{:?}: {:?} {:?}", node.id, node.process(), node.core);
        }
    }
    result
}

/// Stops the faults and waits for rest.
///
/// # Errors
/// The first broken rule, [`Rule::Bounded`] where the cluster does not come to rest.
pub fn settle(world: &mut World) -> Result<Outcome, Violation> {
    if world.violation.is_none() {
        world.heal();
    }
    world.load.left = world.load.left.min(40);
    let rested = world.run_until(REST_MS, |w| w.operator.at_rest);
    if let Some(violation) = world.violation.take() {
        return Err(violation);
    }
    if !rested {
        let why = world.why_not_at_rest().unwrap_or_default();
        return Err(Violation::new(
            Rule::Bounded,
            format!(
                "not at rest {REST_MS} ms after the faults stopped: {why} (min_redundancy {})",
                world.record().min_redundancy
            ),
        ));
    }
    Ok(Outcome {
        steps: world.steps,
        served: world.clients.served,
        generations: world.record().generation.0,
        ms: world.now.0 / 1_000_000,
        unserved_ms: world.operator.liveness.longest_ms,
    })
}
