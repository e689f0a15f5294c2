//! Small scopes of the production core, explored breadth first: no order of what is under way breaks a
//! rule. Prints how many states that were.

use simulator::explore::{SCOPES, explore};
use std::time::Instant;

/// States that a scope may have in CI; the rest of a larger one is for a longer run
/// (`cargo run --profile sim -p simulator -- --explore`).
const MAX_STATES: usize = 12_000;

/// From one state in so many the cluster is run to rest.
const REST_EVERY: usize = 16;

#[test]
fn no_order_of_a_small_scope_breaks_a_rule() {
    std::thread::scope(|threads| {
        for half in 0..2 {
            threads.spawn(move || {
                for scope in SCOPES.iter().skip(half).step_by(2) {
                    let begin = Instant::now();
                    let explored = match explore(scope, MAX_STATES, REST_EVERY) {
                        Ok(explored) => explored,
                        Err(found) => panic!("scope {}: {found}", scope.name),
                    };
                    println!(
                        "scope {}: {} states, depth {}, {} run to rest, {}, {:.1} s",
                        scope.name,
                        explored.states,
                        explored.depth,
                        explored.rested,
                        if explored.complete {
                            "complete"
                        } else {
                            "bounded"
                        },
                        begin.elapsed().as_secs_f64(),
                    );
                    assert!(explored.states > 1000, "{explored:?}");
                }
            });
        }
    });
}
