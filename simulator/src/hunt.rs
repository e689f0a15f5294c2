//! Shows that a deliberate fault of the core is noticed: runs seeds with the fault until one breaks a
//! rule which the sound core keeps with the same seed. Needs the feature `mutations` to find anything.

use crate::engine::Factory;
use crate::production::Production;
use crate::rules::{Rule, Violation};
use crate::run::{Kind, Outcome, run_seed};
use replicator::core::mutation::Mutation;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a fault was noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The seed that shows it.
    pub seed: u64,
    /// Seeds that were run until then.
    pub seeds: u64,
    /// The rule that it broke.
    pub violation: Violation,
}

/// A deliberate fault of one of the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Of the engine.
    Engine(Mutation),
    /// Of the controller.
    Control(controller::core::mutation::Mutation),
}

impl From<Mutation> for Fault {
    fn from(mutation: Mutation) -> Self {
        Self::Engine(mutation)
    }
}

impl From<controller::core::mutation::Mutation> for Fault {
    fn from(mutation: controller::core::mutation::Mutation) -> Self {
        Self::Control(mutation)
    }
}

impl Fault {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let control = controller::core::mutation::Mutation::ALL.iter();
        let engine = Mutation::ALL.iter().copied().map(Self::Engine);
        engine.chain(control.copied().map(Self::Control))
    }

    /// What shows it: leases and agreement exist in whole nodes only.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Engine(
                Mutation::WriteWithoutLease
                | Mutation::LeaseOverInSyncOnly
                | Mutation::LeaseCheckedBeforeRead
                | Mutation::ServeWithoutWord
                | Mutation::RemovedKeepsItsBits
                | Mutation::HandOverKeepsOldBits,
            )
            | Self::Control(_) => Kind::Whole,
            Self::Engine(_) => Kind::Engines,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Engine(mutation) => format!("{mutation:?}"),
            Self::Control(mutation) => format!("{mutation:?}"),
        }
    }
}

/// The fault of this name, whatever its letters' case.
#[must_use]
pub fn by_name(name: &str) -> Option<Fault> {
    Fault::all().find(|fault| fault.name().eq_ignore_ascii_case(name))
}

/// Switches a fault on for this thread, or all off. False where this build has none.
#[cfg(feature = "mutations")]
pub fn activate(fault: Option<Fault>) -> bool {
    let (engine, control) = match fault {
        None => (None, None),
        Some(Fault::Engine(mutation)) => (Some(mutation), None),
        Some(Fault::Control(mutation)) => (None, Some(mutation)),
    };
    replicator::core::mutation::activate(engine);
    controller::core::mutation::activate(control);
    true
}

/// Switches a fault on for this thread, or all off. False where this build has none.
#[cfg(not(feature = "mutations"))]
pub fn activate(fault: Option<Fault>) -> bool {
    fault.is_none()
}

/// Runs with a fault; a panic of the core counts as a broken rule.
///
/// # Errors
/// The first broken rule.
pub fn guarded<T>(
    fault: Option<Fault>,
    run: impl FnOnce() -> Result<T, Violation>,
) -> Result<T, Violation> {
    activate(fault);
    let result = catch_unwind(AssertUnwindSafe(run));
    activate(None);
    result.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default();
        Err(Violation::new(Rule::Assertion, text))
    })
}

/// One seed of the production core.
///
/// # Errors
/// The first broken rule.
pub fn run_one(
    seed: u64,
    kind: Kind,
    mutation: Option<Fault>,
    trace: bool,
) -> Result<Outcome, Violation> {
    let factory: Rc<dyn Factory> = Rc::new(Production);
    guarded(mutation, || run_seed(seed, kind, factory, trace))
}

/// How the seed shows the fault: it breaks a rule with it and none without. No fault is about getting stuck,
/// and another seed's way shows nothing: the sound core must keep the rule with this very seed.
fn shown(fault: Fault, seed: u64) -> Option<Violation> {
    let kind = fault.kind();
    let violation = run_one(seed, kind, Some(fault), false).err()?;
    let shown = violation.rule != Rule::Bounded && run_one(seed, kind, None, false).is_ok();
    shown.then_some(violation)
}

/// A seed found that breaks a rule with the fault and none without it. `known` is tried before the others.
#[must_use]
pub fn hunt(
    fault: impl Into<Fault>,
    known: Option<u64>,
    seeds: Range<u64>,
    threads: usize,
) -> Option<Caught> {
    let fault = fault.into();
    if let Some(seed) = known
        && let Some(violation) = shown(fault, seed)
    {
        return Some(Caught {
            seed,
            seeds: 1,
            violation,
        });
    }
    let next = AtomicU64::new(seeds.start);
    let over = AtomicBool::new(false);
    let found: Mutex<Option<Caught>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let Some(violation) = shown(fault, seed) else {
                        continue;
                    };
                    over.store(true, Ordering::Relaxed);
                    if let Ok(mut found) = found.lock()
                        && found.is_none()
                    {
                        *found = Some(Caught {
                            seed,
                            seeds: seed + 1 - seeds.start,
                            violation,
                        });
                    }
                }
            });
        }
    });
    found.into_inner().ok().flatten()
}
