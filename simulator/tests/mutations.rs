//! Every deliberate fault of the core is noticed: by a random seed within a bound, or by an execution
//! that was written for it; and the sound core passes with that same seed, or goes through the same
//! execution. `cargo test --profile sim -p simulator --features mutations --test mutations --
//! --nocapture` prints who noticed what.

#![cfg(feature = "mutations")]

use replicator::core::mutation::Mutation;
use simulator::deviate::{deviate_from, scope};
use simulator::executions;
use simulator::explore::{SCOPES, explore};
use simulator::hunt::{Fault, guarded, hunt};
use simulator::rules::Rule;
use std::time::{Duration, Instant};

/// Most seeds that a fault may need; the slowest known ones need a few hundred.
const SEEDS: u64 = 4_000;

#[test]
fn every_fault_that_has_an_execution_is_noticed_by_it() {
    std::panic::set_hook(Box::new(|_| {}));
    for (fault, script) in executions::ALL {
        let run = |fault: Option<Fault>| {
            guarded(fault, || {
                script();
                Ok(())
            })
        };
        let name = fault.name();
        assert_eq!(run(None), Ok(()), "the sound core fails {name}'s execution");
        let violation = run(Some(*fault)).expect_err(&name);
        println!("{name}: its execution: {}", violation.what);
    }
    let _ = std::panic::take_hook();
}

#[test]
fn every_fault_of_the_core_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    let scripted = |mutation| {
        let mut all = executions::ALL.iter();
        all.any(|(fault, _)| *fault == Fault::Engine(mutation))
    };
    let hunted = Mutation::ALL.iter().copied().filter(|m| !scripted(*m));
    for mutation in hunted {
        let started = Instant::now();
        match hunt(mutation, 0..SEEDS, 2) {
            Some(caught) => println!(
                "{mutation:?}: seed {} after {} seeds and {:.1} s: {}",
                caught.seed,
                caught.seeds,
                started.elapsed().as_secs_f64(),
                caught.violation
            ),
            None => missed.push(mutation),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// Of the controller's faults those that whole nodes show. What only breaks the voters' agreement in
/// rarer orders is shown by the exhaustive check of the controller's core.
#[test]
fn every_fault_of_the_controller_that_whole_nodes_show_is_noticed() {
    use controller::core::mutation::Mutation as Control;
    std::panic::set_hook(Box::new(|_| {}));
    let faults = [
        Control::LeaseFromReceipt,
        Control::LateBeaconAcknowledged,
        Control::NoGraceAfterRestart,
        Control::BlankVoterVotes,
        Control::LowerEntryAccepted,
        Control::AnswerBeforePersist,
    ];
    for fault in faults {
        let caught = hunt(fault, 0..2 * SEEDS, 2).expect("noticed");
        println!("{fault:?}: seed {}: {}", caught.seed, caught.violation);
    }
    let _ = std::panic::take_hook();
}

/// What needs no luck at all: at most one deviation from a plain course shows these.
#[test]
fn one_deviation_from_a_plain_course_shows_a_fault() {
    std::panic::set_hook(Box::new(|_| {}));
    for (name, mutation) in [
        ("third", Mutation::AdmitWithoutHandOver),
        ("pair", Mutation::RejoinWithoutOwnLog),
        ("third", Mutation::BitClearedByOlderVersion),
    ] {
        let scope = scope(name).unwrap();
        let seen = deviate_from(scope, Some(mutation.into()), 1, Duration::from_secs(60), 2);
        let (violation, path) = seen.broken.expect("noticed");
        assert_ne!(violation.rule, Rule::Bounded, "{violation}");
        println!(
            "{mutation:?} in '{name}' after {} states: {violation} by {path:?}",
            seen.states
        );
    }
}

/// What random seeds meet late or never, breadth-first search finds within a few thousand states, and
/// by the shortest way.
#[test]
fn exploring_every_order_of_a_small_scope_shows_a_fault() {
    std::panic::set_hook(Box::new(|_| {}));
    for (name, mutation) in [
        ("write-break", Mutation::CopyWithoutLock),
        ("write-break", Mutation::AckWhileEvictProposed),
        ("write-kill", Mutation::ReleaseWithoutNames),
        ("write-kill", Mutation::LogNotWindow),
        ("write-kill", Mutation::ResumePrimaryship),
        ("write-power", Mutation::RebootKeepsIncarnation),
    ] {
        let scope = SCOPES.iter().find(|s| s.name == name).expect("a scope");
        let explored = guarded(Some(mutation.into()), || Ok(explore(scope, 5_000, 64)));
        let found = match explored {
            Ok(Err(found)) => found.to_string(),
            Ok(Ok(seen)) => panic!("{mutation:?} was not noticed in '{name}': {seen:?}"),
            Err(violation) => violation.to_string(),
        };
        assert!(!found.contains("rule Bounded"), "{mutation:?}: {found}");
        println!("{mutation:?} in '{name}': {found}");
    }
    let _ = std::panic::take_hook();
}
