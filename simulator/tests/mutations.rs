//! Every deliberate fault of the core is noticed: by a random seed within a bound, and by the rule
//! that the fault breaks rather than by some accident. `cargo test --profile sim -p simulator
//! --features mutations --test mutations -- --nocapture` prints who noticed what.

#![cfg(feature = "mutations")]

use replicator::core::mutation::Mutation;
use simulator::hunt::hunt;
use std::time::Instant;

/// Most seeds that a fault may need. The slowest one known needs about 1,300.
const SEEDS: u64 = 6_000;

#[test]
fn every_fault_of_the_core_is_noticed_by_a_random_seed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for mutation in Mutation::ALL.iter().copied() {
        let started = Instant::now();
        match hunt(mutation, 0..SEEDS, 2) {
            Some(caught) => println!(
                "{mutation:?}: seed {} of {:.1} s: {}",
                caught.seed,
                started.elapsed().as_secs_f64(),
                caught.violation
            ),
            None => missed.push(mutation),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
