//! The simulator's command line: runs seeds, or one seed again with a trace.

use clap::Parser;
use simulator::production::Production;
use simulator::rules::Violation;
use simulator::run::{Outcome, run_seed};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Deterministic simulation of whole Lockstep clusters.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seeds to run, FIRST..LAST (LAST not included).
    #[arg(long, value_parser = parse_seeds, default_value = "0..1000")]
    seeds: (u64, u64),
    /// One seed only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Switch on a deliberate fault of the core (needs the feature `mutations`).
    #[arg(long)]
    mutation: Option<String>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Go on after a failure, and print every failing seed.
    #[arg(long)]
    keep_going: bool,
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let (first, last) = text
        .split_once("..")
        .ok_or("write seeds as FIRST..LAST, such as 0..1000")?;
    let number = |s: &str| {
        s.parse::<u64>()
            .map_err(|e| format!("'{s}' is not a seed: {e}"))
    };
    Ok((number(first)?, number(last)?))
}

/// Runs a seed; a panic of the core counts as a broken rule.
fn run(seed: u64, trace: bool, mutation: Option<&str>) -> Result<Outcome, String> {
    activate(mutation);
    let result = catch_unwind(AssertUnwindSafe(|| {
        run_seed(seed, Rc::new(Production), trace)
    }));
    match result {
        Ok(outcome) => outcome.map_err(|violation: Violation| violation.to_string()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default();
            Err(format!("rule Assertion: {text}"))
        }
    }
}

#[cfg(feature = "mutations")]
fn activate(mutation: Option<&str>) {
    use replicator::core::mutation::{Mutation, activate};
    let found = mutation.and_then(|name| {
        Mutation::ALL
            .iter()
            .copied()
            .find(|m| format!("{m:?}").eq_ignore_ascii_case(name))
    });
    activate(found);
}

#[cfg(not(feature = "mutations"))]
fn activate(_: Option<&str>) {}

fn known_mutation(name: &str) -> bool {
    cfg!(feature = "mutations")
        && replicator::core::mutation::Mutation::ALL
            .iter()
            .any(|m| format!("{m:?}").eq_ignore_ascii_case(name))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(name) = &arguments.mutation
        && !known_mutation(name)
    {
        eprintln!(
            "there is no mutation '{name}' in this build; build with --features mutations, and take one of:"
        );
        for mutation in replicator::core::mutation::Mutation::ALL {
            eprintln!("  {mutation:?}");
        }
        return ExitCode::from(2);
    }
    let mutation = arguments.mutation.as_deref();
    if let Some(seed) = arguments.seed {
        return match run(seed, arguments.trace, mutation) {
            Ok(outcome) => {
                println!("seed {seed}: {outcome:?}");
                ExitCode::SUCCESS
            }
            Err(what) => {
                report(seed, &what, mutation);
                ExitCode::FAILURE
            }
        };
    }
    if run_many(&arguments) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn report(seed: u64, what: &str, mutation: Option<&str>) {
    println!("seed {seed} FAILED: {what}");
    let features = mutation.map_or("", |_| " --features mutations");
    let mutation = mutation.map_or_else(String::new, |m| format!(" --mutation {m}"));
    let profile = if cfg!(debug_assertions) {
        ""
    } else {
        " --release"
    };
    println!(
        "  replay: cargo run{profile} -p simulator{features} -- --seed {seed} --trace{mutation}"
    );
}

fn run_many(arguments: &Arguments) -> bool {
    let (first, last) = arguments.seeds;
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let totals = Mutex::new((0u64, Outcome::default()));
    let started = Instant::now();
    // A failing seed is reported once, by us.
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last || (failed.load(Ordering::Relaxed) && !arguments.keep_going) {
                        return;
                    }
                    let result = run(seed, false, arguments.mutation.as_deref());
                    let Ok(mut totals) = totals.lock() else {
                        return;
                    };
                    totals.0 += 1;
                    match result {
                        Ok(outcome) => {
                            totals.1.steps += outcome.steps;
                            totals.1.served += outcome.served;
                            totals.1.generations += outcome.generations;
                            totals.1.ms += outcome.ms;
                        }
                        Err(what) => {
                            failed.store(true, Ordering::Relaxed);
                            report(seed, &what, arguments.mutation.as_deref());
                        }
                    }
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    if let Ok(totals) = totals.into_inner() {
        let (seeds, sum) = totals;
        println!(
            "{seeds} seeds in {seconds:.1} s, {:.0} seeds/s; {} occurrences, {} requests served, {} changes of the record, {} s of virtual time",
            per_second(seeds, seconds),
            sum.steps,
            sum.served,
            sum.generations,
            sum.ms / 1000
        );
    }
    !failed.load(Ordering::Relaxed)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from) / seconds.max(0.001)
}
