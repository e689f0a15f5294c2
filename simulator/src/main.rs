//! The simulator's command line: runs seeds, or one seed again with a trace.

use clap::Parser;
use simulator::deviate;
use simulator::explore::{SCOPES, explore};
use simulator::hunt::{Fault, by_name, guarded, hunt, run_one};
use simulator::run::{Kind, Outcome};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Deterministic simulation of whole Lockstep clusters.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seeds to run, FIRST..LAST (LAST not included).
    #[arg(long, value_parser = parse_seeds, default_value = "0..1000")]
    seeds: (u64, u64),
    /// One seed only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Whole nodes with their controllers, instead of engines with a perfect configuration store.
    #[arg(long)]
    whole: bool,
    /// Print everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Switch on a deliberate fault of the core (needs the feature `mutations`).
    #[arg(long)]
    mutation: Option<String>,
    /// For every deliberate fault, look for a seed that notices it.
    #[arg(long)]
    mutations: bool,
    /// Try every deviation from the plain course of small scopes: of all, or of the one named.
    #[arg(long, num_args = 0..=1, default_missing_value = "all")]
    deviate: Option<String>,
    /// Deviations at a time (with --deviate).
    #[arg(long, default_value_t = 1)]
    deviations: u32,
    /// Longest time for each scope and number of deviations in seconds (with --deviate).
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Explore the small scopes breadth first instead of running seeds.
    #[arg(long)]
    explore: bool,
    /// States of each scope, with --explore.
    #[arg(long, default_value_t = 12_000)]
    states: usize,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Go on after a failure, and print every failing seed.
    #[arg(long)]
    keep_going: bool,
}

impl Arguments {
    fn kind(&self) -> Kind {
        if self.whole {
            Kind::Whole
        } else {
            Kind::Engines
        }
    }
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

/// Every fault of the core with the first seed that notices it.
fn hunt_all(seeds: (u64, u64), threads: usize) -> bool {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = 0;
    for mutation in Fault::all() {
        let name = mutation.name();
        let started = Instant::now();
        let caught = hunt(mutation, None, seeds.0..seeds.1, threads);
        let seconds = started.elapsed().as_secs_f64();
        match caught {
            Some(c) => println!(
                "{name}: seed {} after {} seeds, {seconds:.1} s: {}",
                c.seed, c.seeds, c.violation
            ),
            None => {
                missed += 1;
                println!("{name}: NOT NOTICED, {seconds:.1} s");
            }
        }
    }
    missed == 0
}

/// Tries the deviations of scopes, one more at a time.
fn deviate(name: &str, mutation: Option<Fault>, arguments: &Arguments) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let chosen: Vec<&deviate::Scope> = deviate::SCOPES
        .iter()
        .filter(|s| name == "all" || s.name == name)
        .collect();
    if chosen.is_empty() {
        eprintln!("there is no scope '{name}'; take one of:");
        for scope in deviate::SCOPES {
            eprintln!("  {}: {}", scope.name, scope.about);
        }
        return ExitCode::from(2);
    }
    let threads = u64::try_from(arguments.threads).unwrap_or(1);
    for scope in chosen {
        println!("{}: {}", scope.name, scope.about);
        for deviations in 0..=arguments.deviations {
            let started = Instant::now();
            let limit = Duration::from_secs(arguments.seconds);
            let seen = deviate::deviate_from(scope, mutation, deviations, limit, threads);
            println!(
                "  up to {deviations} deviations: {} states, {} runs to rest, depth {}, {:.1} s{}",
                seen.states,
                seen.rests,
                seen.depth,
                started.elapsed().as_secs_f64(),
                if seen.cut_short { ", cut short" } else { "" }
            );
            if let Some((violation, path)) = seen.broken {
                println!("  FAILED: {violation}");
                for step in path {
                    println!("    {step}");
                }
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// From one state in so many of an exploration the cluster is run to rest.
const REST_EVERY: usize = 64;

/// Explores every scope, two at a time.
fn explore_all(states: usize, mutation: Option<Fault>) -> bool {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scope) = usize::try_from(at).ok().and_then(|at| SCOPES.get(at)) else {
                        return;
                    };
                    let started = Instant::now();
                    let explored = guarded(mutation, || Ok(explore(scope, states, REST_EVERY)));
                    match explored.unwrap_or_else(|violation| Err(Box::new(violation.into()))) {
                        Ok(seen) => println!(
                            "scope {}: {} states by {} steps, depth {}, {} of them run to rest, {}, {:.1} s",
                            scope.name,
                            seen.states,
                            seen.steps,
                            seen.depth,
                            seen.rested,
                            if seen.complete {
                                "all there are"
                            } else {
                                "no more were asked for"
                            },
                            started.elapsed().as_secs_f64()
                        ),
                        Err(found) => {
                            failed.store(true, Ordering::Relaxed);
                            println!("scope {} FAILED: {found}", scope.name);
                        }
                    }
                }
            });
        }
    });
    !failed.load(Ordering::Relaxed)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mutation = arguments.mutation.as_deref().map(by_name);
    let wants = arguments.mutations || mutation.is_some();
    if mutation == Some(None) || wants && !cfg!(feature = "mutations") {
        eprintln!("no such fault in this build; build with --features mutations, and take one of:");
        for mutation in Fault::all() {
            eprintln!("  {}", mutation.name());
        }
        return ExitCode::from(2);
    }
    let mutation = mutation.flatten();
    if let Some(name) = &arguments.deviate {
        return deviate(name, mutation, &arguments);
    }
    if arguments.mutations {
        return if hunt_all(arguments.seeds, arguments.threads) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    if arguments.explore {
        return if explore_all(arguments.states, mutation) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    if let Some(seed) = arguments.seed {
        return match run_one(seed, arguments.kind(), mutation, arguments.trace) {
            Ok(outcome) => {
                println!("seed {seed}: {outcome:?}");
                ExitCode::SUCCESS
            }
            Err(what) => {
                report(seed, &what.to_string(), &arguments, mutation);
                ExitCode::FAILURE
            }
        };
    }
    if run_many(&arguments, mutation) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn report(seed: u64, what: &str, arguments: &Arguments, mutation: Option<Fault>) {
    let whole = if arguments.whole { " --whole" } else { "" };
    println!("seed {seed} FAILED: {what}");
    let features = mutation.map_or("", |_| " --features mutations");
    let mutation = mutation.map_or_else(String::new, |m| format!(" --mutation {}", m.name()));
    println!(
        "  replay: cargo run --profile sim -p simulator{features} --{whole} --seed {seed} --trace{mutation}"
    );
}

fn run_many(arguments: &Arguments, mutation: Option<Fault>) -> bool {
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
                    let result = run_one(seed, arguments.kind(), mutation, false);
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
                            totals.1.unserved_ms = totals.1.unserved_ms.max(outcome.unserved_ms);
                        }
                        Err(what) => {
                            failed.store(true, Ordering::Relaxed);
                            report(seed, &what.to_string(), arguments, mutation);
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
            "{seeds} seeds in {seconds:.1} s, {:.0} seeds/s; {} occurrences, {} requests served, {} changes of the record, {} s of virtual time{}",
            per_second(seeds, seconds),
            sum.steps,
            sum.served,
            sum.generations,
            sum.ms / 1000,
            if arguments.whole {
                format!(
                    "; longest time without service once nothing was wrong: {} ms",
                    sum.unserved_ms
                )
            } else {
                String::new()
            }
        );
    }
    !failed.load(Ordering::Relaxed)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from) / seconds.max(0.001)
}
