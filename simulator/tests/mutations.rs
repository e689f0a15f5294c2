//! Every deliberate fault of the core is noticed: by a random seed within a bound, or by an execution
//! that was written for it; and the sound core passes with that same seed, or goes through the same
//! execution. `cargo test --profile sim -p simulator --features mutations --test mutations --
//! --nocapture` prints who noticed what.

#![cfg(feature = "mutations")]

use controller::core::mutation::Mutation as Control;
use replicator::core::mutation::Mutation;
use simulator::deviate::{deviate_from, scope};
use simulator::executions;
use simulator::explore::{SCOPES, explore};
use simulator::hunt::{Fault, guarded, hunt};
use simulator::rules::Rule;
use std::time::{Duration, Instant};

/// Most seeds that a fault may need; all but one need fewer than are run without faults.
const SEEDS: u64 = 8_000;

/// Faults that random seeds meet late, and a seed that has shown each: it is tried first. When the code's way
/// has changed so that it shows it no more, the search finds another one, which takes minutes: put it here.
const SHOWN_BY: &[(Fault, u64)] = &[
    (Fault::Engine(Mutation::LargerSetDroppedOnTimeout), 125),
    (Fault::Engine(Mutation::AdmitWithoutFlush), 280),
    (Fault::Engine(Mutation::AdmitWithoutHandOver), 238),
    (Fault::Engine(Mutation::RejoinWithoutOwnLog), 188),
    (Fault::Engine(Mutation::ResentExecutedTwice), 107),
    (Fault::Engine(Mutation::RemovedKeepsItsBits), 197),
    (Fault::Control(Control::LateBeaconAcknowledged), 128),
    (Fault::Control(Control::BlankVoterVotes), 152),
    (Fault::Control(Control::LowerEntryAccepted), 689),
    (Fault::Control(Control::AnswerBeforePersist), 5470),
];

/// Finds a seed that shows the fault and prints it.
fn found(fault: Fault) -> bool {
    let started = Instant::now();
    let known = SHOWN_BY.iter().find(|(shown, _)| *shown == fault);
    let caught = hunt(fault, known.map(|(_, seed)| *seed), 0..SEEDS, 2);
    if let Some(caught) = &caught {
        println!(
            "{}: seed {} after {} seeds and {:.1} s: {}",
            fault.name(),
            caught.seed,
            caught.seeds,
            started.elapsed().as_secs_f64(),
            caught.violation
        );
    }
    caught.is_some()
}

#[test]
fn every_fault_that_has_an_execution_is_noticed_by_it() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (fault, script) in executions::ALL {
        let run = |fault: Option<Fault>| {
            guarded(fault, || {
                script();
                Ok(())
            })
        };
        let name = fault.name();
        let sound = run(None);
        let violation = run(Some(*fault)).err();
        match &violation {
            Some(violation) if sound.is_ok() => {
                println!("{name}: its execution: {}", violation.what);
            }
            _ => missed.push(format!("{name}: {violation:?}; the sound core: {sound:?}")),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn every_fault_of_the_core_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let scripted = |fault| executions::ALL.iter().any(|(of, _)| *of == fault);
    let engine = Mutation::ALL.iter().copied().map(Fault::Engine);
    let hunted = engine.filter(|fault| !scripted(*fault));
    let missed: Vec<Fault> = hunted.filter(|fault| !found(*fault)).collect();
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// Of the controller's faults those that whole nodes show. What only breaks the voters' agreement in
/// rarer orders is shown by the exhaustive check of the controller's core.
#[test]
fn every_fault_of_the_controller_that_whole_nodes_show_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let faults = [
        Control::LateBeaconAcknowledged,
        Control::NoGraceAfterRestart,
        Control::BlankVoterVotes,
        Control::LowerEntryAccepted,
        Control::AnswerBeforePersist,
        Control::RemovedStaysInSync,
        Control::LeaseChangesUnderAPrimary,
        Control::UnequalLeaseGranted,
    ];
    let hunted = faults.into_iter().map(Fault::Control);
    let missed: Vec<Fault> = hunted.filter(|fault| !found(*fault)).collect();
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
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
